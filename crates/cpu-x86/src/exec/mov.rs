//! Data movement between general registers and memory (APM volume 3: BSWAP, CBW and its relatives,
//! LEA, MOV, MOVBE, MOVNTI, MOVSX, MOVSXD, MOVZX, XCHG, XLAT).

use iced_x86::{Instruction, Mnemonic};

use super::{Form, form, size0, size1, sized};
use crate::cpu::Cpu;
use crate::exception::Result;
use crate::int::Int;
use crate::op::{Handler, Op};
use crate::reg::{RAX, RBX, RDX, addr_mask};

fn reg_reg<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let value = cpu.reg::<T>(op.src);
    cpu.set_reg(op.dst, value);
    Ok(())
}

fn reg_imm<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.set_reg(op.dst, T::from_u64(op.imm));
    Ok(())
}

fn reg_mem<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let value = cpu.load_op::<T>(op)?;
    cpu.set_reg(op.dst, value);
    Ok(())
}

fn mem_reg<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let value = cpu.reg::<T>(op.dst);
    cpu.store_op(op, value)
}

fn mem_imm<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.store_op(op, T::from_u64(op.imm))
}

fn mov(insn: &Instruction) -> Option<Handler> {
    let size = size0(insn);
    let general = |register: iced_x86::Register| register.is_gpr();
    match form(insn) {
        Form::RegReg if general(insn.op0_register()) && general(insn.op1_register()) => {
            sized!(size, reg_reg)
        }
        Form::RegMem if general(insn.op0_register()) => sized!(size, reg_mem),
        Form::MemReg if general(insn.op1_register()) => sized!(size, mem_reg),
        Form::RegImm => sized!(size, reg_imm),
        Form::MemImm => sized!(size, mem_imm),
        _ => None,
    }
}

fn movzx_reg<T: Int, S: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let value = cpu.reg::<S>(op.src).to_u64();
    cpu.set_reg(op.dst, T::from_u64(value));
    Ok(())
}

fn movzx_mem<T: Int, S: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let value = cpu.load_op::<S>(op)?.to_u64();
    cpu.set_reg(op.dst, T::from_u64(value));
    Ok(())
}

fn movsx_reg<T: Int, S: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let value = cpu.reg::<S>(op.src).sext();
    cpu.set_reg(op.dst, T::from_u64(value));
    Ok(())
}

fn movsx_mem<T: Int, S: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let value = cpu.load_op::<S>(op)?.sext();
    cpu.set_reg(op.dst, T::from_u64(value));
    Ok(())
}

/// MOVZX, MOVSX and MOVSXD.
fn extend(insn: &Instruction) -> Option<Handler> {
    let zero = insn.mnemonic() == Mnemonic::Movzx;
    let size = size0_register(insn);
    match (form(insn), size1(insn), zero) {
        (Form::RegReg, 1, true) => sized!(size, movzx_reg, u8),
        (Form::RegReg, 2, true) => sized!(size, movzx_reg, u16),
        (Form::RegMem, 1, true) => sized!(size, movzx_mem, u8),
        (Form::RegMem, 2, true) => sized!(size, movzx_mem, u16),
        (Form::RegReg, 1, false) => sized!(size, movsx_reg, u8),
        (Form::RegReg, 2, false) => sized!(size, movsx_reg, u16),
        (Form::RegReg, 4, false) => sized!(size, movsx_reg, u32),
        (Form::RegMem, 1, false) => sized!(size, movsx_mem, u8),
        (Form::RegMem, 2, false) => sized!(size, movsx_mem, u16),
        (Form::RegMem, 4, false) => sized!(size, movsx_mem, u32),
        _ => None,
    }
}

/// Size of the first operand, a register, in bytes.
fn size0_register(insn: &Instruction) -> usize {
    insn.op0_register().size()
}

fn lea<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let address = cpu.ea(op);
    cpu.set_reg(op.dst, T::from_u64(address));
    Ok(())
}

fn xchg_reg<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let (a, b) = (cpu.reg::<T>(op.dst), cpu.reg::<T>(op.src));
    cpu.set_reg(op.dst, b);
    cpu.set_reg(op.src, a);
    Ok(())
}

/// Exchanges with memory always lock.
fn xchg_mem<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let value = cpu.reg::<T>(op.dst);
    let old = cpu.update_op::<T>(op, true, |_| value)?;
    cpu.set_reg(op.dst, old);
    Ok(())
}

/// BSWAP. Of 16 bits it is undefined; processors give zero.
fn bswap<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let value = if T::BITS == 16 { T::ZERO } else { cpu.reg::<T>(op.dst).bswap() };
    cpu.set_reg(op.dst, value);
    Ok(())
}

fn movbe_load<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let value = cpu.load_op::<T>(op)?.bswap();
    cpu.set_reg(op.dst, value);
    Ok(())
}

fn movbe_store<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let value = cpu.reg::<T>(op.dst).bswap();
    cpu.store_op(op, value)
}

fn xlat(cpu: &mut Cpu, op: &Op) -> Result {
    let offset = cpu.gpr(RBX).wrapping_add(cpu.reg::<u8>(RAX).to_u64()) & addr_mask(op.addr_size);
    let value = cpu.load::<u8>(op.seg, offset)?;
    cpu.set_reg(RAX, value);
    Ok(())
}

/// CBW, CWDE, CDQE: the accumulator's `S` half sign-extended to `T`.
fn widen<T: Int, S: Int>(cpu: &mut Cpu, _: &Op) -> Result {
    let value = cpu.reg::<S>(RAX).sext();
    cpu.set_reg(RAX, T::from_u64(value));
    Ok(())
}

/// CWD, CDQ, CQO: the accumulator's sign all over the data register.
fn spread_sign<T: Int>(cpu: &mut Cpu, _: &Op) -> Result {
    let sign = if cpu.reg::<T>(RAX).is_negative() { T::ONES } else { T::ZERO };
    cpu.set_reg(RDX, sign);
    Ok(())
}

/// The handler of `insn`, if it belongs to this group.
pub(super) fn select(insn: &Instruction) -> Option<Handler> {
    match insn.mnemonic() {
        Mnemonic::Mov | Mnemonic::Movnti => mov(insn),
        Mnemonic::Movzx | Mnemonic::Movsx | Mnemonic::Movsxd => extend(insn),
        Mnemonic::Lea => sized!(size0_register(insn), lea),
        Mnemonic::Xchg => match form(insn) {
            Form::RegReg => sized!(size0(insn), xchg_reg),
            Form::MemReg => sized!(size0(insn), xchg_mem),
            _ => None,
        },
        Mnemonic::Bswap => sized!(size0(insn), bswap),
        Mnemonic::Movbe => match form(insn) {
            Form::RegMem => sized!(size0(insn), movbe_load),
            Form::MemReg => sized!(size0(insn), movbe_store),
            _ => None,
        },
        Mnemonic::Xlatb => Some(xlat),
        Mnemonic::Cbw => Some(widen::<u16, u8>),
        Mnemonic::Cwde => Some(widen::<u32, u16>),
        Mnemonic::Cdqe => Some(widen::<u64, u32>),
        Mnemonic::Cwd => Some(spread_sign::<u16>),
        Mnemonic::Cdq => Some(spread_sign::<u32>),
        Mnemonic::Cqo => Some(spread_sign::<u64>),
        _ => None,
    }
}
