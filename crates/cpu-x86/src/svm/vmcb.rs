//! The virtual machine control block (APM volume 2, appendix B): its layout, and one read from memory.
//!
//! A block is a page of guest RAM at the physical address that VMRUN finds in RAX. It is read when a
//! guest is entered; at its exit, only what the processor writes is written back. The address is
//! anything that the program puts there: bytes that are in no memory read and write as the board has
//! them.

use crate::cpu::Cpu;
use crate::state::{Segment, TableRegister};

/// Offsets within the block.
pub(crate) mod at {
    /// The control area: six words of intercepts.
    pub(crate) const INTERCEPTS: usize = 0x000;
    pub(crate) const PAUSE_THRESHOLD: usize = 0x03c;
    pub(crate) const PAUSE_COUNT: usize = 0x03e;
    pub(crate) const IOPM_BASE: usize = 0x040;
    pub(crate) const MSRPM_BASE: usize = 0x048;
    pub(crate) const TSC_OFFSET: usize = 0x050;
    pub(crate) const ASID: usize = 0x058;
    pub(crate) const TLB_CONTROL: usize = 0x05c;
    /// Virtual interrupts (see `svm::int_ctl`).
    pub(crate) const INT_CTL: usize = 0x060;
    pub(crate) const INTERRUPT_SHADOW: usize = 0x068;
    pub(crate) const EXIT_CODE: usize = 0x070;
    pub(crate) const EXIT_INFO1: usize = 0x078;
    pub(crate) const EXIT_INFO2: usize = 0x080;
    pub(crate) const EXIT_INT_INFO: usize = 0x088;
    pub(crate) const NP_ENABLE: usize = 0x090;
    pub(crate) const EVENT_INJ: usize = 0x0a8;
    pub(crate) const N_CR3: usize = 0x0b0;
    pub(crate) const VIRT_EXT: usize = 0x0b8;
    pub(crate) const NEXT_RIP: usize = 0x0c8;
    /// Number of instruction bytes, then up to 15 of them.
    pub(crate) const INSN_BYTES: usize = 0x0d0;

    /// The state save area: ES, CS, SS, DS, FS, GS, 16 bytes each.
    pub(crate) const SEGMENTS: usize = 0x400;
    pub(crate) const FS: usize = 0x440;
    pub(crate) const GS: usize = 0x450;
    pub(crate) const GDTR: usize = 0x460;
    pub(crate) const LDTR: usize = 0x470;
    pub(crate) const IDTR: usize = 0x480;
    pub(crate) const TR: usize = 0x490;
    pub(crate) const CPL: usize = 0x4cb;
    pub(crate) const EFER: usize = 0x4d0;
    pub(crate) const CR4: usize = 0x548;
    pub(crate) const CR3: usize = 0x550;
    pub(crate) const CR0: usize = 0x558;
    pub(crate) const DR7: usize = 0x560;
    pub(crate) const DR6: usize = 0x568;
    pub(crate) const RFLAGS: usize = 0x570;
    pub(crate) const RIP: usize = 0x578;
    pub(crate) const RSP: usize = 0x5d8;
    pub(crate) const RAX: usize = 0x5f8;
    pub(crate) const STAR: usize = 0x600;
    pub(crate) const LSTAR: usize = 0x608;
    pub(crate) const CSTAR: usize = 0x610;
    pub(crate) const SFMASK: usize = 0x618;
    pub(crate) const KERNEL_GS_BASE: usize = 0x620;
    pub(crate) const SYSENTER_CS: usize = 0x628;
    pub(crate) const SYSENTER_ESP: usize = 0x630;
    pub(crate) const SYSENTER_EIP: usize = 0x638;
    pub(crate) const CR2: usize = 0x640;
    pub(crate) const G_PAT: usize = 0x668;
    /// DEBUG_CTL, then where the last branch came from and went to, then the same of the last event.
    pub(crate) const DEBUG_CTL: usize = 0x670;
}

/// Bytes of the control area that mean something.
const CONTROL_LEN: usize = 0x100;
/// Bytes up to the end of what is used of the state save area.
const LEN: usize = 0x6a0;
/// What the processor writes at an exit.
const WRITTEN: [(usize, usize); 4] = [
    (at::INT_CTL, at::NP_ENABLE),
    (at::EVENT_INJ, at::N_CR3),
    (at::NEXT_RIP, at::INSN_BYTES + 16),
    (at::SEGMENTS, LEN),
];
/// What VMSAVE writes.
const SAVED: [(usize, usize); 4] =
    [(at::FS, at::GDTR), (at::LDTR, at::IDTR), (at::TR, at::TR + 16), (at::STAR, at::CR2)];

/// A block as it was read.
pub(crate) struct Vmcb {
    bytes: [u8; LEN],
    /// Width of the processor's linear addresses.
    linear_bits: u32,
}

impl Vmcb {
    /// An address as the processor has it after it loaded it from a block: canonical.
    fn canonical(&self, base: u64) -> u64 {
        let shift = 64 - self.linear_bits;
        ((base << shift) as i64 >> shift) as u64
    }

    /// The block at physical address `base`, a page's.
    pub(crate) fn read(cpu: &mut Cpu, base: u64) -> Self {
        let mut vmcb = Self { bytes: [0; LEN], linear_bits: cpu.limits.linear_bits() };
        cpu.read_physical_page(base, &mut vmcb.bytes[..CONTROL_LEN]);
        let save = at::SEGMENTS as u64;
        cpu.read_physical_page(base + save, &mut vmcb.bytes[at::SEGMENTS..]);
        vmcb
    }

    /// Writes what an exit changes.
    pub(crate) fn write_exit(&self, cpu: &mut Cpu, base: u64) {
        self.write_ranges(cpu, base, &WRITTEN);
    }

    /// Writes what VMSAVE saves.
    pub(crate) fn write_saved(&self, cpu: &mut Cpu, base: u64) {
        self.write_ranges(cpu, base, &SAVED);
    }

    fn write_ranges(&self, cpu: &mut Cpu, base: u64, ranges: &[(usize, usize)]) {
        for &(start, end) in ranges {
            cpu.write_elsewhere(base + start as u64, &self.bytes[start..end]);
        }
    }

    fn get<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.bytes[at..at + N]);
        bytes
    }

    pub(crate) fn u8(&self, at: usize) -> u8 {
        self.bytes[at]
    }

    pub(crate) fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.get(at))
    }

    pub(crate) fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.get(at))
    }

    pub(crate) fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.get(at))
    }

    /// A linear address, made canonical.
    pub(crate) fn linear(&self, at: usize) -> u64 {
        self.canonical(self.u64(at))
    }

    pub(crate) fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub(crate) fn put_u64(&mut self, at: usize, value: u64) {
        self.put(at, &value.to_le_bytes());
    }

    /// A segment register. Its 12 bits of attributes are a descriptor's without the limit's.
    pub(crate) fn segment(&self, at: usize) -> Segment {
        let attributes = self.u16(at + 2);
        Segment {
            selector: self.u16(at),
            attributes: attributes & 0xff | (attributes & 0xf00) << 4,
            limit: self.u32(at + 4),
            base: self.canonical(self.u64(at + 8)),
        }
    }

    pub(crate) fn put_segment(&mut self, at: usize, segment: &Segment) {
        let attributes = segment.attributes & 0xff | segment.attributes >> 4 & 0xf00;
        self.put(at, &segment.selector.to_le_bytes());
        self.put(at + 2, &attributes.to_le_bytes());
        self.put(at + 4, &segment.limit.to_le_bytes());
        self.put_u64(at + 8, segment.base);
    }

    pub(crate) fn table(&self, at: usize) -> TableRegister {
        TableRegister { base: self.canonical(self.u64(at + 8)), limit: self.u16(at + 4) }
    }

    pub(crate) fn put_table(&mut self, at: usize, table: TableRegister) {
        self.put(at + 4, &u32::from(table.limit).to_le_bytes());
        self.put_u64(at + 8, table.base);
    }
}
