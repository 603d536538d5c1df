//! The stack (APM volume 3: ENTER, LEAVE, POP, POPA, PUSH, PUSHA).
//!
//! The stack pointer changes last, so that a fault leaves it alone.

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use super::sized;
use crate::cpu::Cpu;
use crate::exception::Result;
use crate::int::Int;
use crate::op::{Handler, Op};
use crate::reg::{RBP, RSP};
use crate::segment::SS;

fn push_reg<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.push(cpu.reg::<T>(op.dst))
}

fn push_mem<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let value = cpu.load_op::<T>(op)?;
    cpu.push(value)
}

fn push_imm<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.push(T::from_u64(op.imm))
}

fn pop_reg<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let value = cpu.pop::<T>()?;
    cpu.set_reg(op.dst, value);
    Ok(())
}

/// An address that uses the stack pointer uses its value after the pop.
fn pop_mem<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let sp = cpu.gpr(RSP);
    let value = cpu.pop::<T>()?;
    let stored = cpu.store_op(op, value);
    if stored.is_err() {
        cpu.set_reg(RSP, sp);
    }
    stored
}

fn pusha<T: Int>(cpu: &mut Cpu, _: &Op) -> Result {
    let mut sp = cpu.gpr(RSP);
    for n in 0..8 {
        sp = sp.wrapping_sub(T::BYTES as u64) & cpu.stack_mask;
        cpu.store(SS, sp, cpu.reg::<T>(n))?;
    }
    cpu.set_sp(sp);
    Ok(())
}

fn popa<T: Int>(cpu: &mut Cpu, _: &Op) -> Result {
    let mut values = [T::ZERO; 8];
    let mut sp = cpu.gpr(RSP) & cpu.stack_mask;
    for value in values.iter_mut().rev() {
        *value = cpu.load(SS, sp)?;
        sp = sp.wrapping_add(T::BYTES as u64) & cpu.stack_mask;
    }
    for (n, value) in values.into_iter().enumerate() {
        if n as u8 != RSP {
            cpu.set_reg(n as u8, value);
        }
    }
    cpu.set_sp(sp);
    Ok(())
}

fn enter<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let mask = cpu.stack_mask;
    let width = T::BYTES as u64;
    let space = op.imm & 0xffff;
    let level = op.imm >> 32 & 31;
    let mut sp = cpu.gpr(RSP).wrapping_sub(width) & mask;
    cpu.store(SS, sp, cpu.reg::<T>(RBP))?;
    let frame = sp;
    if level > 0 {
        let mut link = cpu.gpr(RBP);
        for _ in 1..level {
            link = link.wrapping_sub(width);
            let value = cpu.load::<T>(SS, link & mask)?;
            sp = sp.wrapping_sub(width) & mask;
            cpu.store(SS, sp, value)?;
        }
        sp = sp.wrapping_sub(width) & mask;
        cpu.store(SS, sp, T::from_u64(frame))?;
    }
    sp = sp.wrapping_sub(space) & mask;
    // The new top of the stack has to be writable.
    cpu.probe_write(SS, sp, T::BYTES)?;
    let frame = cpu.gpr(RSP) & !mask | frame;
    cpu.set_reg(RBP, T::from_u64(frame));
    cpu.set_sp(sp);
    Ok(())
}

fn leave<T: Int>(cpu: &mut Cpu, _: &Op) -> Result {
    let frame = cpu.gpr(RBP) & cpu.stack_mask;
    let value = cpu.load::<T>(SS, frame)?;
    cpu.set_sp(frame.wrapping_add(T::BYTES as u64));
    cpu.set_reg(RBP, value);
    Ok(())
}

fn select_push(insn: &Instruction) -> Option<Handler> {
    match insn.op0_kind() {
        OpKind::Register if insn.op0_register().is_gpr() => {
            sized!(insn.op0_register().size(), push_reg)
        }
        OpKind::Register => None,
        OpKind::Memory => sized!(insn.memory_size().size(), push_mem),
        _ => match insn.code() {
            Code::Push_imm16 | Code::Pushw_imm8 => Some(push_imm::<u16>),
            Code::Pushd_imm32 | Code::Pushd_imm8 => Some(push_imm::<u32>),
            Code::Pushq_imm32 | Code::Pushq_imm8 => Some(push_imm::<u64>),
            _ => None,
        },
    }
}

fn select_pop(insn: &Instruction) -> Option<Handler> {
    match insn.op0_kind() {
        OpKind::Register if insn.op0_register().is_gpr() => {
            sized!(insn.op0_register().size(), pop_reg)
        }
        OpKind::Memory => sized!(insn.memory_size().size(), pop_mem),
        _ => None,
    }
}

/// The handler of `insn`, if it belongs to this group.
pub(super) fn select(insn: &Instruction) -> Option<Handler> {
    match insn.code() {
        Code::Pushaw => Some(pusha::<u16>),
        Code::Pushad => Some(pusha::<u32>),
        Code::Popaw => Some(popa::<u16>),
        Code::Popad => Some(popa::<u32>),
        Code::Enterw_imm16_imm8 => Some(enter::<u16>),
        Code::Enterd_imm16_imm8 => Some(enter::<u32>),
        Code::Enterq_imm16_imm8 => Some(enter::<u64>),
        Code::Leavew => Some(leave::<u16>),
        Code::Leaved => Some(leave::<u32>),
        Code::Leaveq => Some(leave::<u64>),
        _ => match insn.mnemonic() {
            Mnemonic::Push => select_push(insn),
            Mnemonic::Pop => select_pop(insn),
            _ => None,
        },
    }
}
