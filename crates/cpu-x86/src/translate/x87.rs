//! x87 and MMX instructions: as themselves, on the host's registers.
//!
//! The host has the guest's control word with them, and all exceptions are masked in it; with one
//! unmasked, blocks that use the x87 are interpreted. So nothing here can fault but for memory.
//!
//! **The last instruction and its operand**, which FNSTENV and its like store, are not those that the
//! host's registers tell. Code that is left notes which instruction was the last (`Notes`); the address
//! of an operand is stored right after the access, when it can't fault any more.

use iced_x86::{Code, CpuidFeature, EncodingKind, Instruction, Mnemonic, OpKind, Register};

use super::asm::{at, in_state, low32};
use super::compile::Compiler;
use super::integer::point_at_host;
use super::memory::{For, number};
use super::regs::{GUEST_RAX, S1, S2, sized};
use super::state::{self, note_of};
use super::vector::{HostFeatures, is_vector};

/// What of the last x87 instructions is not in the state yet, as code at some point is translated.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Notes {
    /// Index of the last.
    last: Option<usize>,
    /// Index of the last with a memory operand.
    data: Option<usize>,
}

impl Notes {
    pub(super) fn is_empty(&self) -> bool {
        self.last.is_none() && self.data.is_none()
    }
}

/// Whether `register` is one of the x87's or of MMX's.
pub(super) fn is_x87(register: Register) -> bool {
    register.is_st() || register.is_mm()
}

impl HostFeatures {
    /// Whether `insn` is translated and needs the x87's registers.
    pub(super) fn needs_x87(&self, insn: &Instruction) -> bool {
        (is_x87_instruction(insn) || is_mmx_instruction(insn))
            && self.has_x87()
            && self.has_all(insn)
    }
}

/// Whether `insn` is an x87 instruction that the translator knows.
fn is_x87_instruction(insn: &Instruction) -> bool {
    use CpuidFeature::{FPU, FPU287, FPU387};
    use Mnemonic::*;
    match insn.mnemonic() {
        // They handle more than the stack.
        Fninit | Fnclex | Fldenv | Fnstenv | Fnsave | Frstor | Fneni | Fndisi | Fnsetpm => false,
        _ => insn.cpuid_features().iter().any(|feature| matches!(feature, FPU | FPU287 | FPU387)),
    }
}

/// Whether `insn` is an MMX instruction that the translator knows.
fn is_mmx_instruction(insn: &Instruction) -> bool {
    if insn.op_code().encoding() != EncodingKind::Legacy {
        return false;
    }
    match insn.mnemonic() {
        Mnemonic::Emms => true,
        // An implicit operand.
        Mnemonic::Maskmovq => false,
        _ => {
            let registers = (0..insn.op_count())
                .filter(|&n| insn.op_kind(n) == OpKind::Register)
                .map(|n| insn.op_register(n));
            let (mut any, mut vector) = (false, false);
            for register in registers {
                if !register.is_mm() && !register.is_gpr() && !is_vector(register) {
                    return false;
                }
                any |= register.is_mm();
                vector |= is_vector(register);
            }
            // A conversion needs MXCSR, which is there if there is a vector register.
            any && (vector || !converts(insn.mnemonic()))
        }
    }
}

/// Whether `mnemonic` is a conversion of SSE's from what may be in memory to an MMX register.
fn converts(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(mnemonic, Cvtpd2pi | Cvtps2pi | Cvttpd2pi | Cvttps2pi)
}

/// Whether `insn` is noted as the last x87 instruction.
fn is_noted(insn: &Instruction) -> bool {
    use Mnemonic::*;
    is_x87_instruction(insn) && !matches!(insn.mnemonic(), Wait | Fldcw | Fnstcw | Fnstsw)
}

/// Whether all registers that the address of `insn`'s operand is made from are in the host's.
fn is_at_hand(compiler: &Compiler, insn: &Instruction) -> bool {
    [insn.memory_base(), insn.memory_index()]
        .into_iter()
        .all(|register| !register.is_gpr() || compiler.place_of(number(register)).is_some())
}

impl Compiler<'_> {
    /// Translates an x87 or MMX instruction; false, with nothing done, if it is none that can be.
    pub(super) fn x87(&mut self, insn: &Instruction) -> bool {
        if !self.features.needs_x87(insn) {
            return false;
        }
        let in_memory = (0..insn.op_count()).any(|n| insn.op_kind(n) == OpKind::Memory);
        match insn.code() {
            // No exception is pending.
            Code::Wait => return true,
            Code::Fnstsw_AX => self.status_to_ax(),
            Code::Fldcw_m2byte => self.load_control(insn),
            _ if is_noted(insn) && in_memory => return self.x87_with_memory(insn),
            _ => {
                if !self.plain(insn) {
                    return false;
                }
            }
        }
        if is_noted(insn) {
            self.notes.last = Some(self.index);
        }
        true
    }

    fn status_to_ax(&mut self) {
        // The flags are in RAX, if they are anywhere but in the host's.
        self.asm.mov(S2, Register::RAX);
        // fnstsw ax
        self.asm.raw(&[0xdf, 0xe0]);
        self.asm.rr(Code::Mov_rm16_r16, sized(GUEST_RAX, 2), Register::AX);
        self.asm.mov(Register::RAX, S2);
    }

    /// FLDCW. A word that does not mask all exceptions is the interpreter's. What is looked at is what is
    /// loaded, whoever else writes to memory.
    fn load_control(&mut self, insn: &Instruction) {
        self.access_alone(insn, 2, For::Read, false);
        let unmasks = self.slow();
        let spare = in_state(state::at::SPARE);
        self.asm.rm(Code::Movzx_r32_rm16, low32(S2), at(S1));
        self.asm.mr(Code::Mov_rm32_r32, spare, low32(S2));
        self.asm.r(Code::Not_rm32, low32(S2));
        self.asm.ri(Code::Test_rm8_imm8, sized(S2, 1), 0x3f);
        self.asm.jcc(super::asm::Cond::NotEqual, unmasks);
        self.asm.m(Code::Fldcw_m2byte, spare);
        self.slow_returns();
    }

    fn x87_with_memory(&mut self, insn: &Instruction) -> bool {
        let mut out = *insn;
        point_at_host(&mut out);
        let size = insn.memory_size().size();
        let Some(code) = self.asm.encode(&out).filter(|_| size > 0) else { return false };
        let pointer = in_state(state::at::X87_POINTER);
        let next_pointer = in_state(state::at::X87_NEXT_POINTER);
        let at_hand = is_at_hand(self, insn);
        let what = if is_store(insn.mnemonic()) { For::Write } else { For::Read };
        self.save();
        self.offset(insn, S1);
        if !at_hand {
            self.asm.mr(Code::Mov_rm64_r64, next_pointer, S1);
        }
        self.add_base(insn);
        self.probe(size, what, false);
        self.asm.put(&code);
        if at_hand {
            self.offset(insn, S2);
        } else {
            self.asm.rm(Code::Mov_r64_rm64, S2, next_pointer);
        }
        self.asm.mr(Code::Mov_rm64_r64, pointer, S2);
        self.slow_returns();
        self.notes = Notes { last: Some(self.index), data: Some(self.index) };
        true
    }

    /// Puts `notes` into the state. Uses [`S2`].
    pub(super) fn write_notes(&mut self, notes: Notes) {
        let number = self.number;
        let fields = [(notes.last, state::at::X87_LAST), (notes.data, state::at::X87_DATA)];
        for (index, field) in fields {
            if let Some(index) = index {
                let field = in_state(field);
                self.asm.mi(Code::Mov_rm32_imm32, field, note_of(number, index) as i32);
            }
        }
        if notes.last.is_some() {
            let (page, noted) = (in_state(state::at::PAGE), in_state(state::at::X87_PAGE));
            self.asm.rm(Code::Mov_r64_rm64, S2, page);
            self.asm.mr(Code::Mov_rm64_r64, noted, S2);
        }
    }

    /// Puts the notes that are due into the state; none are afterwards.
    pub(super) fn settle_notes(&mut self) {
        let notes = std::mem::take(&mut self.notes);
        self.write_notes(notes);
    }
}

/// Whether the memory operand of `mnemonic` is written.
fn is_store(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(mnemonic, Fst | Fstp | Fist | Fistp | Fisttp | Fbstp)
}
