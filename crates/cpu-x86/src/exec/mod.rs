//! The handlers of the integer instructions (APM volume 3), by group.
//!
//! A group's `select` picks the handler for an instruction by its mnemonic, operand kinds and size;
//! the handlers are generic over the size, so that each one is compiled without size checks.

mod alu;
mod bcd;
mod bits;
mod bmi;
mod cmpxchg;
mod control;
mod misc;
mod mov;
mod mul;
mod shift;
mod stack;
mod string;

use iced_x86::{Instruction, OpKind};
pub(crate) use misc::is_hint;

use crate::op::Handler;

/// Picks the instance of a generic handler for an operand size in bytes: `sized!(size, f)` is
/// `f::<u8>` to `f::<u64>`; further generic arguments follow the size.
macro_rules! sized {
    ($size:expr, $f:ident $(, $arg:ty)*) => {
        match $size {
            1 => Some($f::<u8 $(, $arg)*> as $crate::op::Handler),
            2 => Some($f::<u16 $(, $arg)*> as $crate::op::Handler),
            4 => Some($f::<u32 $(, $arg)*> as $crate::op::Handler),
            8 => Some($f::<u64 $(, $arg)*> as $crate::op::Handler),
            _ => None,
        }
    };
}
use sized;

/// Where an instruction's first two operands are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Register, register.
    RegReg,
    /// Register, memory.
    RegMem,
    /// Memory, register.
    MemReg,
    /// Register, immediate.
    RegImm,
    /// Memory, immediate.
    MemImm,
    /// One register.
    Reg,
    /// One memory operand.
    Mem,
    /// Anything else.
    Other,
}

/// The form of `insn`. Operands after the second don't matter.
fn form(insn: &Instruction) -> Form {
    let is_imm = |kind| {
        matches!(
            kind,
            OpKind::Immediate8
                | OpKind::Immediate16
                | OpKind::Immediate32
                | OpKind::Immediate64
                | OpKind::Immediate8to16
                | OpKind::Immediate8to32
                | OpKind::Immediate8to64
                | OpKind::Immediate32to64
        )
    };
    match (insn.op_count(), insn.op0_kind(), insn.op1_kind()) {
        (1, OpKind::Register, _) => Form::Reg,
        (1, OpKind::Memory, _) => Form::Mem,
        (2.., OpKind::Register, OpKind::Register) => Form::RegReg,
        (2.., OpKind::Register, OpKind::Memory) => Form::RegMem,
        (2.., OpKind::Memory, OpKind::Register) => Form::MemReg,
        (2.., OpKind::Register, kind) if is_imm(kind) => Form::RegImm,
        (2.., OpKind::Memory, kind) if is_imm(kind) => Form::MemImm,
        _ => Form::Other,
    }
}

/// Size of the first operand in bytes, if it is a register or in memory.
fn size0(insn: &Instruction) -> usize {
    match insn.op0_kind() {
        OpKind::Register => insn.op0_register().size(),
        _ => insn.memory_size().size(),
    }
}

/// Size of the second operand in bytes, if it is a register or in memory.
fn size1(insn: &Instruction) -> usize {
    match insn.op1_kind() {
        OpKind::Register => insn.op1_register().size(),
        _ => insn.memory_size().size(),
    }
}

/// The handler of an integer instruction.
pub(crate) fn select(insn: &Instruction) -> Option<Handler> {
    alu::select(insn)
        .or_else(|| mov::select(insn))
        .or_else(|| control::select(insn))
        .or_else(|| stack::select(insn))
        .or_else(|| shift::select(insn))
        .or_else(|| string::select(insn))
        .or_else(|| mul::select(insn))
        .or_else(|| bits::select(insn))
        .or_else(|| cmpxchg::select(insn))
        .or_else(|| bcd::select(insn))
        .or_else(|| bmi::select(insn))
        .or_else(|| misc::select(insn))
}
