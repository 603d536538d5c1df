//! The handlers of system instructions (APM volume 3, chapter 4) and of what is about segments,
//! interrupts and ports.

mod control;
mod debug;
mod far;
mod fast;
mod flags;
mod ident;
mod io;
mod segment;
mod tables;

use iced_x86::Instruction;

use crate::cpu::Cpu;
use crate::exception::{Exception, Result};
use crate::op::{Handler, Op, OpFlags};
use crate::regs::CR4_UMIP;

/// The handler of `insn`, if it is a system instruction.
pub(crate) fn select(insn: &Instruction) -> Option<Handler> {
    segment::select(insn)
        .or_else(|| flags::select(insn))
        .or_else(|| far::select(insn))
        .or_else(|| io::select(insn))
        .or_else(|| control::select(insn))
        .or_else(|| debug::select(insn))
        .or_else(|| tables::select(insn))
        .or_else(|| fast::select(insn))
        .or_else(|| ident::select(insn))
        .or_else(|| crate::smm::select(insn))
        .or_else(|| crate::svm::select(insn))
        .or_else(|| crate::kvm::select(insn))
}

/// #GP(0) unless the CPL is 0.
fn require_cpl0(cpu: &Cpu) -> Result {
    if cpu.cpl == 0 { Ok(()) } else { Err(Exception::GP0) }
}

/// #GP(0) above CPL 0 while CR4.UMIP hides where tables are.
fn require_visible_tables(cpu: &Cpu) -> Result {
    if cpu.cpl != 0 && cpu.cr4 & CR4_UMIP != 0 { Err(Exception::GP0) } else { Ok(()) }
}

/// #UD in real and virtual-8086 mode.
fn require_protected(cpu: &Cpu) -> Result {
    if cpu.mode.is_protected() { Ok(()) } else { Err(Exception::UD) }
}

/// The 16-bit operand that is in memory or register `number`.
fn source16(cpu: &mut Cpu, op: &Op, number: u8) -> Result<u16> {
    if op.flags.contains(OpFlags::MEM) { cpu.load_op(op) } else { Ok(cpu.reg(number)) }
}

/// Stores a 16-bit value to the operand: memory, or register `dst`, zero-extended as `bytes` wide.
fn store16(cpu: &mut Cpu, op: &Op, bytes: u8, value: u16) -> Result {
    if op.flags.contains(OpFlags::MEM) {
        return cpu.store_op(op, value);
    }
    match bytes {
        2 => cpu.set_reg(op.dst, value),
        4 => cpu.set_reg(op.dst, u32::from(value)),
        _ => cpu.set_reg(op.dst, u64::from(value)),
    }
    Ok(())
}
