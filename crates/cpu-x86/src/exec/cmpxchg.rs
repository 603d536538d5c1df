//! Compare and exchange (APM volume 3: CMPXCHG, CMPXCHG8B, CMPXCHG16B).
//!
//! A destination in memory is always written, with its old value if the comparison fails; one in a
//! register is not, so that a 32-bit comparison that fails leaves its upper half (as AMD's processors do).

use iced_x86::{Code, Instruction};

use super::{Form, form, size0, sized};
use crate::cpu::Cpu;
use crate::exception::Result;
use crate::flags::bits;
use crate::int::Int;
use crate::op::{Handler, Op};
use crate::reg::{RAX, RBX, RCX, RDX};

fn reg<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let expected = cpu.reg::<T>(RAX);
    let found = cpu.reg::<T>(op.dst);
    cpu.flags_sub(expected, found, expected.wsub(found));
    if found == expected {
        let new = cpu.reg::<T>(op.src);
        cpu.set_reg(op.dst, new);
    } else {
        cpu.set_reg(RAX, found);
    }
    Ok(())
}

fn mem<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let expected = cpu.reg::<T>(RAX);
    let new = cpu.reg::<T>(op.dst);
    let found =
        cpu.update_op::<T>(op, op.locked(), |found| if found == expected { new } else { found })?;
    cpu.flags_sub(expected, found, expected.wsub(found));
    if found != expected {
        cpu.set_reg(RAX, found);
    }
    Ok(())
}

fn mem_8(cpu: &mut Cpu, op: &Op) -> Result {
    let pair = |cpu: &Cpu, high, low| {
        u64::from(cpu.reg::<u32>(high)) << 32 | u64::from(cpu.reg::<u32>(low))
    };
    let expected = pair(cpu, RDX, RAX);
    let new = pair(cpu, RCX, RBX);
    let found =
        cpu.update_op::<u64>(op, op.locked(), |found| if found == expected { new } else { found })?;
    if found != expected {
        cpu.set_reg(RAX, found as u32);
        cpu.set_reg(RDX, (found >> 32) as u32);
    }
    cpu.change_flags(bits::ZF, if found == expected { bits::ZF } else { 0 });
    Ok(())
}

fn mem_16(cpu: &mut Cpu, op: &Op) -> Result {
    let pair = |cpu: &Cpu, high, low| u128::from(cpu.gpr(high)) << 64 | u128::from(cpu.gpr(low));
    let expected = pair(cpu, RDX, RAX);
    let new = pair(cpu, RCX, RBX);
    let found = cpu.compare_exchange_16(op.seg, cpu.ea(op), expected, new)?;
    if found != expected {
        cpu.set_reg(RAX, found as u64);
        cpu.set_reg(RDX, (found >> 64) as u64);
    }
    cpu.change_flags(bits::ZF, if found == expected { bits::ZF } else { 0 });
    Ok(())
}

/// The handler of `insn`, if it belongs to this group.
pub(super) fn select(insn: &Instruction) -> Option<Handler> {
    match insn.code() {
        Code::Cmpxchg8b_m64 => Some(mem_8),
        Code::Cmpxchg16b_m128 => Some(mem_16),
        Code::Cmpxchg_rm8_r8
        | Code::Cmpxchg_rm16_r16
        | Code::Cmpxchg_rm32_r32
        | Code::Cmpxchg_rm64_r64 => match form(insn) {
            Form::RegReg => sized!(size0(insn), reg),
            _ => sized!(size0(insn), mem),
        },
        _ => None,
    }
}
