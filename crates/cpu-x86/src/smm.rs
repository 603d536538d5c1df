//! System management mode (APM volume 2, chapter 10).
//!
//! A system management interrupt saves the CPU's state at the end of the 64 KiB from SMBASE on, in the
//! AMD64 layout (table 10-1), and continues in something like real mode at SMBASE + 0x8000. RSM takes
//! the state back, and SMBASE with it, which is how firmware moves it.
//!
//! Meanwhile further SMIs, INIT and NMI are held off, address line 20 is on, and memory that is mapped
//! for this mode alone can be seen: both ways pass through [`Cpu::switch_smm`], which empties the TLB.

use accel::Signal;

use crate::cpu::Cpu;
use crate::exception::{Exception, Result};
use crate::flags::bits;
use crate::op::{Handler, Op, OpFlags};
use crate::reg::{RCX, RDI, RSI};
use crate::regs::{
    CR0_EM, CR0_PE, CR0_PG, CR0_TS, DR6_FIXED, DR7_FIXED, EFER_LMA, EFER_LME, PENDING_SHUTDOWN,
};
use crate::segment::{CS, attr};
use crate::state::{Activity, Segment, TableRegister};
use crate::svm::{code, int_ctl};

/// SMBASE after power-on.
pub(crate) const SMBASE_RESET: u64 = 0x3_0000;
/// Revision of the AMD64 layout, with bit 17 for "SMBASE can be moved". That I/O instructions can be
/// restarted, bit 16 would tell, but firmware knows the layout by exactly this number.
const REVISION: u32 = 0x0002_0064;
/// Where the state is from SMBASE on, and its length.
const AREA: u64 = 0xfe00;
const AREA_LEN: usize = 0x200;
/// Offset of the handler's first instruction.
const ENTRY: u64 = 0x8000;

/// Offsets within the state save area.
mod at {
    /// ES, CS, SS, DS, FS, GS: selector, attributes, limit, base, 16 bytes each.
    pub(super) const SEGMENTS: usize = 0x00;
    pub(super) const GDTR: usize = 0x60;
    pub(super) const LDTR: usize = 0x70;
    pub(super) const IDTR: usize = 0x80;
    pub(super) const TR: usize = 0x90;
    pub(super) const IO_RIP: usize = 0xa0;
    pub(super) const IO_RCX: usize = 0xa8;
    pub(super) const IO_RSI: usize = 0xb0;
    pub(super) const IO_RDI: usize = 0xb8;
    pub(super) const IO_TRAP: usize = 0xc0;
    pub(super) const IO_RESTART: usize = 0xc8;
    pub(super) const HALT_RESTART: usize = 0xc9;
    pub(super) const EFER: usize = 0xd0;
    /// A guest was running (see `svm`), and what it was running by.
    pub(super) const SVM_STATE: usize = 0xd8;
    pub(super) const SVM_VMCB: usize = 0xe0;
    pub(super) const SVM_INTERRUPT: usize = 0xe8;
    pub(super) const REVISION: usize = 0xfc;
    pub(super) const SMBASE: usize = 0x100;
    pub(super) const GUEST_PAT: usize = 0x120;
    pub(super) const HOST_EFER: usize = 0x128;
    pub(super) const HOST_CR4: usize = 0x130;
    pub(super) const NESTED_CR3: usize = 0x138;
    pub(super) const HOST_CR0: usize = 0x140;
    pub(super) const CR4: usize = 0x148;
    pub(super) const CR3: usize = 0x150;
    pub(super) const CR0: usize = 0x158;
    pub(super) const DR7: usize = 0x160;
    pub(super) const DR6: usize = 0x168;
    pub(super) const RFLAGS: usize = 0x170;
    pub(super) const RIP: usize = 0x178;
    /// R15 down to RAX, 8 bytes each.
    pub(super) const GPRS: usize = 0x180;
}

/// Bits of the I/O trap doubleword, below the port number in bits 16 and up.
mod trap {
    pub(super) const IN: u32 = 1 << 0;
    pub(super) const VALID: u32 = 1 << 1;
    pub(super) const STRING: u32 = 1 << 2;
    pub(super) const REPEATED: u32 = 1 << 3;
    /// An access of one byte; of two and four the bits above.
    pub(super) const SIZE: u32 = 1 << 4;
}

/// The I/O instruction that raised an SMI, so that its handler can have it executed again.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct IoTrap {
    /// As it is saved; 0 if the last instruction was none.
    word: u32,
    rip: u64,
    rcx: u64,
    rsi: u64,
    rdi: u64,
}

/// What an I/O instruction did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IoAccess {
    pub(crate) port: u16,
    /// 1, 2 or 4 bytes.
    pub(crate) size: u8,
    pub(crate) is_in: bool,
    pub(crate) is_string: bool,
}

/// The saved state, read and written by offset.
struct Area([u8; AREA_LEN]);

impl Area {
    fn put<const N: usize>(&mut self, at: usize, bytes: [u8; N]) {
        self.0[at..at + N].copy_from_slice(&bytes);
    }

    fn put64(&mut self, at: usize, value: u64) {
        self.put(at, value.to_le_bytes());
    }

    fn get<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.0[at..at + N]);
        bytes
    }

    fn get64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.get(at))
    }

    fn get32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.get(at))
    }

    fn get16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.get(at))
    }

    fn put_segment(&mut self, at: usize, segment: &Segment) {
        self.put(at, segment.selector.to_le_bytes());
        self.put(at + 2, segment.attributes.to_le_bytes());
        self.put(at + 4, segment.limit.to_le_bytes());
        self.put64(at + 8, segment.base);
    }

    fn segment(&self, at: usize) -> Segment {
        Segment {
            selector: self.get16(at),
            attributes: self.get16(at + 2) & 0xf0ff,
            limit: self.get32(at + 4),
            base: self.get64(at + 8),
        }
    }

    fn put_table(&mut self, at: usize, table: TableRegister) {
        self.put(at + 4, u32::from(table.limit).to_le_bytes());
        self.put64(at + 8, table.base);
    }

    fn table(&self, at: usize) -> TableRegister {
        TableRegister { base: self.get64(at + 8), limit: self.get16(at + 4) }
    }
}

impl Cpu {
    /// Whether the CPU is in system management mode.
    #[inline(always)]
    pub(crate) fn in_smm(&self) -> bool {
        self.smm
    }

    /// Enters or leaves the mode: another view of memory.
    fn switch_smm(&mut self, smm: bool) {
        self.smm = smm;
        self.take_up_map();
        self.tlb.flush_all();
    }

    /// Remembers the I/O instruction `op`, whose access is done, if it raised an SMI.
    #[inline(always)]
    pub(crate) fn note_io(&mut self, op: &Op, access: IoAccess) -> bool {
        let raised = self.signals.is_raised(Signal::Smi);
        if raised {
            self.remember_io(op, access);
        }
        raised
    }

    #[cold]
    fn remember_io(&mut self, op: &Op, access: IoAccess) {
        let mut word = u32::from(access.port) << 16 | trap::VALID;
        word |= trap::SIZE * u32::from(access.size);
        if access.is_in {
            word |= trap::IN;
        }
        if access.is_string {
            word |= trap::STRING;
            if op.flags.intersects(OpFlags::REP | OpFlags::REPNE) {
                word |= trap::REPEATED;
            }
        }
        self.io_trap = IoTrap {
            word,
            rip: op.rip(),
            rcx: self.gpr(RCX),
            rsi: self.gpr(RSI),
            rdi: self.gpr(RDI),
        };
    }

    /// Takes a system management interrupt, between two instructions.
    pub(crate) fn enter_smm(&mut self, io: IoTrap) {
        let mut area = Area([0; AREA_LEN]);
        self.save_area(&mut area, io);
        self.suspend_guest();
        self.switch_smm(true);
        self.write_physical(self.smbase.wrapping_add(AREA), &area.0);
        self.smm_nmi_blocked = std::mem::replace(&mut self.nmi_blocked, true);

        self.activity = Activity::Running;
        self.set_rflags(0);
        self.cr0 &= !(CR0_PE | CR0_EM | CR0_TS | CR0_PG);
        self.cr4 = 0;
        self.efer = 0;
        self.dr[7] = DR7_FIXED;
        self.cpl = 0;
        let attributes = attr::real(0) | attr::GRANULAR;
        self.seg = [Segment { selector: 0, base: 0, limit: u32::MAX, attributes }; 6];
        let code = &mut self.seg[usize::from(CS)];
        code.selector = (self.smbase >> 4) as u16;
        code.base = self.smbase;
        self.rip = ENTRY;
        self.update_mode();
    }

    fn save_area(&self, area: &mut Area, io: IoTrap) {
        for (n, segment) in self.seg.iter().enumerate() {
            area.put_segment(at::SEGMENTS + 16 * n, segment);
        }
        area.put_table(at::GDTR, self.gdtr);
        area.put_segment(at::LDTR, &self.ldtr);
        area.put_table(at::IDTR, self.idtr);
        area.put_segment(at::TR, &self.tr);
        if io.word != 0 {
            area.put64(at::IO_RIP, io.rip);
            area.put64(at::IO_RCX, io.rcx);
            area.put64(at::IO_RSI, io.rsi);
            area.put64(at::IO_RDI, io.rdi);
            area.put(at::IO_TRAP, io.word.to_le_bytes());
        }
        area.put(at::HALT_RESTART, [u8::from(self.activity == Activity::Halted)]);
        if let Some(vmcb) = self.guest_vmcb() {
            let (host, control) = (&self.svm.host, &self.svm.control);
            area.put64(at::SVM_STATE, 1);
            area.put64(at::SVM_VMCB, vmcb);
            area.put64(at::SVM_INTERRUPT, control.int_ctl & int_ctl::V_IRQ);
            area.put64(at::GUEST_PAT, self.msrs.pat);
            area.put64(at::HOST_EFER, host.efer);
            area.put64(at::HOST_CR4, host.cr4);
            area.put64(at::HOST_CR0, host.cr0);
            area.put64(at::NESTED_CR3, control.n_cr3);
        }
        area.put64(at::EFER, self.efer);
        area.put(at::REVISION, REVISION.to_le_bytes());
        area.put(at::SMBASE, (self.smbase as u32).to_le_bytes());
        area.put64(at::CR4, self.cr4);
        area.put64(at::CR3, self.cr3);
        area.put64(at::CR0, self.cr0);
        area.put64(at::DR7, self.dr[7]);
        area.put64(at::DR6, self.dr[6]);
        area.put64(at::RFLAGS, self.rflags());
        area.put64(at::RIP, self.rip);
        for (n, value) in self.gpr[..16].iter().rev().enumerate() {
            area.put64(at::GPRS + 8 * n, *value);
        }
    }

    /// RSM. A state that the CPU can't be in ends in shutdown.
    fn leave_smm(&mut self) {
        let mut area = Area([0; AREA_LEN]);
        self.read_physical(self.smbase.wrapping_add(AREA), &mut area.0);
        self.nmi_blocked = self.smm_nmi_blocked;
        self.smm_nmi_blocked = false;
        self.smbase = u64::from(area.get32(at::SMBASE));
        let cr0 = area.get64(at::CR0);
        let (cr3, cr4) = (area.get64(at::CR3), area.get64(at::CR4));
        let long = cr0 & CR0_PG != 0 && area.get64(at::EFER) & EFER_LME != 0;
        let efer = area.get64(at::EFER) & !EFER_LMA | if long { EFER_LMA } else { 0 };
        let rflags = area.get64(at::RFLAGS);
        let vm86 = rflags & bits::VM != 0;
        if self.check_modes(cr0, cr3, cr4, efer, self.svm.suspended).is_err() || long && vm86 {
            self.pending_debug |= PENDING_SHUTDOWN;
            return;
        }
        (self.cr0, self.cr3, self.cr4, self.efer) = (cr0, cr3, cr4, efer);
        self.dr[6] = area.get64(at::DR6) & 0xffff_ffff | DR6_FIXED;
        self.dr[7] = area.get64(at::DR7) & 0xffff_2fff | DR7_FIXED;
        for n in 0..6 {
            self.seg[n] = area.segment(at::SEGMENTS + 16 * n);
        }
        self.gdtr = area.table(at::GDTR);
        self.ldtr = area.segment(at::LDTR);
        self.idtr = area.table(at::IDTR);
        self.tr = area.segment(at::TR);
        self.set_rflags(rflags);
        for n in 0..16 {
            self.gpr[15 - n] = area.get64(at::GPRS + 8 * n);
        }
        self.rip = area.get64(at::RIP);
        if area.0[at::IO_RESTART] == 0xff && area.get32(at::IO_TRAP) & trap::VALID != 0 {
            self.rip = area.get64(at::IO_RIP);
            self.gpr[usize::from(RCX)] = area.get64(at::IO_RCX);
            self.gpr[usize::from(RSI)] = area.get64(at::IO_RSI);
            self.gpr[usize::from(RDI)] = area.get64(at::IO_RDI);
        }
        self.derive_cpl();
        self.switch_smm(false);
        self.resume_guest();
        if Self::is_pae(cr0, cr4, efer) {
            match self.read_pdptes(cr3) {
                Ok(entries) => self.pdptes = entries,
                Err(_) => self.pending_debug |= PENDING_SHUTDOWN,
            }
        }
        self.tlb.switch(self.pcid(), true);
        self.update_mode();
        if area.0[at::HALT_RESTART] & 1 != 0 {
            self.activity = Activity::Halted;
        }
        self.break_block = true;
    }
}

fn rsm(cpu: &mut Cpu, _: &Op) -> Result {
    // A host may give its guest a system management mode of its own making.
    cpu.intercept(code::RSM)?;
    if !cpu.in_smm() {
        return Err(Exception::UD);
    }
    cpu.leave_smm();
    cpu.ends_step = true;
    Ok(())
}

/// The handler of `insn`, if it is RSM.
pub(crate) fn select(insn: &iced_x86::Instruction) -> Option<Handler> {
    (insn.code() == iced_x86::Code::Rsm).then_some(rsm as Handler)
}
