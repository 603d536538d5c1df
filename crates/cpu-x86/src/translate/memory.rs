//! Addresses and the probe of the TLB.

use iced_x86::{Code, Instruction, MemoryOperand, Mnemonic, OpKind, Register};

use super::asm::{Cond, Label, in_state, low32};
use super::compile::{Compiler, Probe};
use super::regs::{S1, S2};
use super::state::at;
use super::thunks::Missed;
use crate::host::TlbEntry;
use crate::tlb::L1_ENTRIES;

const _: () = assert!(size_of::<TlbEntry>() == 32);
const _: () = assert!(S1 as u32 == Register::R14 as u32 && S2 as u32 == Register::R15 as u32);

/// What an access is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum For {
    Read,
    Write,
    /// Of what a mask selects, maybe nothing: pages that it need not touch are not to be touched.
    MaskedRead,
    /// See [`Self::MaskedRead`].
    MaskedWrite,
}

/// What `insn`'s access to its memory operand, which is `written` or read, is for.
pub(super) fn purpose(insn: &Instruction, written: bool) -> For {
    use Mnemonic::{Vmaskmovpd, Vmaskmovps, Vpmaskmovd, Vpmaskmovq};
    let masked = matches!(insn.mnemonic(), Vmaskmovpd | Vmaskmovps | Vpmaskmovd | Vpmaskmovq);
    match (masked, written) {
        (false, false) => For::Read,
        (false, true) => For::Write,
        (true, false) => For::MaskedRead,
        (true, true) => For::MaskedWrite,
    }
}

/// The number of a general register.
pub(super) fn number(register: Register) -> usize {
    register.full_register().number()
}

impl Compiler<'_> {
    /// Puts the linear address of `insn`'s memory operand into [`S1`]. Uses [`S2`]. Destroys flags if
    /// the segment has a base.
    ///
    /// [`Self::can_address`] has to have said that it can.
    pub(super) fn linear(&mut self, insn: &Instruction) {
        self.offset(insn, S1);
        self.add_base(insn);
    }

    /// Adds the base of `insn`'s segment to the offset in [`S1`], if it has one.
    pub(super) fn add_base(&mut self, insn: &Instruction) {
        let base = match insn.memory_segment() {
            Register::FS => 0,
            Register::GS => 1,
            _ => return,
        };
        if !self.places.wide {
            let slow = self.slow();
            let flat = in_state(at::FLAT + 4 * base);
            self.asm.mi(Code::Cmp_rm32_imm8, flat, 0);
            self.asm.jcc(Cond::Equal, slow);
        }
        let base = in_state(at::BASES + 8 * base);
        if self.places.wide {
            self.asm.rm(Code::Add_r64_rm64, S1, base);
        } else {
            self.asm.rm(Code::Add_r32_rm32, low32(S1), base);
        }
        self.destroyed();
    }

    /// Whether translated code can address the memory operands of `insn`: outside 64-bit mode only by
    /// offsets of 32 bits.
    pub(super) fn can_address(&self, insn: &Instruction) -> bool {
        let is_memory = |n: u32| insn.op_kind(n) == OpKind::Memory;
        if self.places.wide || !(0..insn.op_count()).any(is_memory) {
            return true;
        }
        let (base, index) = (insn.memory_base(), insn.memory_index());
        let short = base.is_gpr16() || index.is_gpr16();
        let none = base == Register::None && index == Register::None;
        let flat = match insn.memory_segment() {
            // It can't be written to.
            Register::CS => insn.mnemonic() == Mnemonic::Lea,
            _ => true,
        };
        flat && !(short || none && insn.memory_displ_size() == 2)
    }

    /// Puts the offset of `insn`'s memory operand into `to`. Uses [`S2`], and `to` if it is not the
    /// guest's.
    pub(super) fn offset(&mut self, insn: &Instruction, to: Register) {
        let (base, index) = (insn.memory_base(), insn.memory_index());
        let narrow = base.is_gpr32() || index.is_gpr32() || base == Register::EIP;
        let narrow = narrow
            || base == Register::None && index == Register::None && insn.memory_displ_size() == 4;
        let displacement = insn.memory_displacement64();
        // As a displacement of 32 bits has to be, whatever the width of the address.
        let displacement = if narrow { displacement as u32 as i32 as u64 } else { displacement };
        if insn.is_ip_rel_memory_operand() {
            let address = insn.memory_displacement64();
            if narrow {
                // As near as it can be: only its lower half counts.
                let distance = (address as u32).wrapping_sub(self.start as u32) as i32;
                self.address(to, self.start.wrapping_add(distance as u64));
                self.asm.rr(Code::Mov_r32_rm32, low32(to), low32(to));
            } else {
                self.address(to, address);
            }
            return;
        }
        if base == Register::None && index == Register::None {
            let mask = if narrow { 0xffff_ffff } else { u64::MAX };
            self.asm.mov_imm(to, displacement & mask);
            return;
        }
        // What is in memory comes to the scratch registers; they are free, but for `to`, if it is one.
        let base = (base != Register::None).then(|| self.read_gpr(number(base), S1));
        let scale = insn.memory_index_scale();
        let index = (index != Register::None).then(|| (self.read_gpr(number(index), S2), scale));
        let operand = sum(base, index, displacement as i64);
        match base.filter(|_| index.is_none() && displacement == 0) {
            Some(base) if !narrow => self.asm.mov(to, base),
            _ if narrow => self.asm.rm(Code::Lea_r32_m, low32(to), operand),
            _ => self.asm.rm(Code::Lea_r64_m, to, operand),
        }
    }

    /// Turns the linear address in [`S1`] into a host address of `size` bytes. What is not so easily
    /// reached, and with `aligned` what is no multiple of `size`, is left to code out of line. Destroys
    /// [`S2`] and the flags.
    pub(super) fn probe(&mut self, size: usize, what: For, aligned: bool) {
        let (begin, end) = (self.asm.label(), self.asm.label());
        if aligned {
            // That fault comes before anything that a walk of page tables does.
            let misaligned = self.slow();
            self.asm.ri(Code::Test_rm8_imm8, super::regs::sized(S1, 1), size as i32 - 1);
            self.asm.jcc(Cond::NotEqual, misaligned);
        }
        let slow = match what {
            For::Read => self.slow_access(Probe { begin, end, what: Missed::Read }),
            For::Write => self.slow_access(Probe { begin, end, what: Missed::Write }),
            For::MaskedRead | For::MaskedWrite => self.slow(),
        };
        self.asm.bind(begin);
        let written = matches!(what, For::Write | For::MaskedWrite);
        self.probe_at(size, written, slow);
        self.asm.bind(end);
        self.destroyed();
    }

    /// PREFETCHh and PREFETCHW: of what the TLB knows. Nothing happens where they would need more than that.
    pub(super) fn prefetch(&mut self, insn: &Instruction) {
        let mut out = *insn;
        super::integer::point_at_host(&mut out);
        let plain_segment = !matches!(insn.memory_segment(), Register::FS | Register::GS);
        let known = self.places.wide && plain_segment && self.features.has_all(insn);
        let Some(code) = self.asm.encode(&out).filter(|_| known) else { return };
        self.save_for_access();
        self.linear(insn);
        let missed = self.asm.label();
        self.probe_at(1, false, missed);
        self.asm.put(&code);
        self.asm.bind(missed);
    }

    /// The probe itself; goes to `slow` if it misses.
    pub(super) fn probe_at(&mut self, size: usize, written: bool, slow: Label) {
        let tag = if written { TlbEntry::WRITE } else { TlbEntry::READ };
        let table = self.places.tlb;
        let mask = (L1_ENTRIES - 1) << 5;
        let (tag, host) = (table + tag as i32, table + TlbEntry::HOST as i32);
        self.asm.probe(tag, host, mask as u32, 4096 - size as u32, slow);
        self.destroyed();
    }

    /// Where `insn`'s memory operand of `size` bytes is on the host: relative to [`S1`], by what is
    /// returned.
    pub(super) fn access(
        &mut self,
        insn: &Instruction,
        size: usize,
        what: For,
        aligned: bool,
    ) -> i64 {
        if let Some(displacement) = self.access_in_window() {
            return displacement;
        }
        self.access_alone(insn, size, what, aligned);
        0
    }

    /// The same in [`S1`].
    pub(super) fn access_alone(
        &mut self,
        insn: &Instruction,
        size: usize,
        what: For,
        aligned: bool,
    ) {
        self.save_for_access();
        self.linear(insn);
        self.probe(size, what, aligned);
    }

    /// As [`Self::access`] for the word at `register + displacement`, which is what the instruction accesses
    /// without saying so.
    pub(super) fn access_at(&mut self, register: Register, displacement: i32, what: For) -> i64 {
        if let Some(displacement) = self.access_in_window() {
            return displacement;
        }
        self.access_at_alone(register, displacement, what);
        0
    }

    /// The same in [`S1`].
    pub(super) fn access_at_alone(&mut self, register: Register, displacement: i32, what: For) {
        self.save_for_access();
        if displacement != 0 {
            self.lea_word(S1, register, displacement);
        } else if self.places.wide {
            self.asm.mov(S1, register);
        } else {
            self.asm.rr(Code::Mov_r32_rm32, low32(S1), low32(register));
        }
        self.probe(self.word(), what, false);
    }

    /// Size in bytes of addresses, and of what the stack has.
    pub(super) fn word(&self) -> usize {
        if self.places.wide { 8 } else { 4 }
    }

    /// Puts `register + displacement`, as wide as addresses are, into `to`. Leaves the flags alone.
    pub(super) fn lea_word(&mut self, to: Register, register: Register, displacement: i32) {
        let operand = MemoryOperand::with_base_displ(register, i64::from(displacement));
        let (code, to) =
            if self.places.wide { (Code::Lea_r64_m, to) } else { (Code::Lea_r32_m, low32(to)) };
        self.asm.rm(code, to, operand);
    }

    /// Loads what is as wide as an address.
    pub(super) fn load_word(&mut self, to: Register, from: MemoryOperand) {
        if self.places.wide {
            self.asm.rm(Code::Mov_r64_rm64, to, from);
        } else {
            self.asm.rm(Code::Mov_r32_rm32, low32(to), from);
        }
    }

    /// Stores what is as wide as an address.
    pub(super) fn store_word(&mut self, to: MemoryOperand, from: Register) {
        if self.places.wide {
            self.asm.mr(Code::Mov_rm64_r64, to, from);
        } else {
            self.asm.mr(Code::Mov_rm32_r32, to, low32(from));
        }
    }
}

/// Memory at the sum of registers, the second one multiplied, and a displacement of 32 bits.
pub(super) fn sum(
    base: Option<Register>,
    index: Option<(Register, u32)>,
    displacement: i64,
) -> MemoryOperand {
    // The size that the encoder wants to be told.
    let size = match () {
        () if base.is_none() => 8,
        () if displacement == 0 => 0,
        () if i8::try_from(displacement).is_ok() => 1,
        () => 8,
    };
    let (index, scale) = index.unwrap_or((Register::None, 1));
    let base = base.unwrap_or(Register::None);
    MemoryOperand::new(base, index, scale, displacement, size, false, Register::None)
}
