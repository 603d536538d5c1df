//! MOV to and from debug registers.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::require_cpl0;
use crate::cpu::Cpu;
use crate::exception::{Exception, Result, vector};
use crate::flags::bits;
use crate::op::{Handler, Op};
use crate::regs::{CR4_DE, DR6_BD, DR6_FIXED, DR7_FIXED, DR7_GD};
use crate::svm::code;

/// The register behind number `n`, after the checks that reads and writes share.
fn register(cpu: &mut Cpu, n: u8) -> Result<usize> {
    let index = match n {
        0..=3 | 6 | 7 => n,
        4 | 5 if cpu.cr4 & CR4_DE == 0 => n + 2,
        _ => return Err(Exception::UD),
    };
    require_cpl0(cpu)?;
    if cpu.dr[7] & DR7_GD != 0 {
        cpu.set_debug_conditions(DR6_BD);
        cpu.dr[7] &= !DR7_GD;
        // Unlike a breakpoint, this fault saves RF as set.
        cpu.system_flags |= bits::RF;
        return Err(Exception::plain(vector::DB));
    }
    Ok(usize::from(index))
}

fn read(cpu: &mut Cpu, op: &Op) -> Result {
    let index = register(cpu, op.src)?;
    cpu.intercept_assisted(code::DR_READ + u32::from(op.src), u64::from(op.dst))?;
    let value = cpu.dr[index];
    store(cpu, op.dst, value);
    Ok(())
}

/// Writes a general register in the width that MOV with system registers has.
fn store(cpu: &mut Cpu, n: u8, value: u64) {
    if cpu.mode.is_64() {
        cpu.set_reg(n, value);
    } else {
        cpu.set_reg(n, value as u32);
    }
}

fn write(cpu: &mut Cpu, op: &Op) -> Result {
    let index = register(cpu, op.dst)?;
    let value = if cpu.mode.is_64() { cpu.gpr(op.src) } else { cpu.gpr(op.src) & 0xffff_ffff };
    if matches!(index, 6 | 7) && value >> 32 != 0 {
        return Err(Exception::GP0);
    }
    cpu.intercept_assisted(code::DR_WRITE + u32::from(op.dst), u64::from(op.src))?;
    cpu.dr[index] = match index {
        6 => value & 0xe00f | DR6_FIXED,
        7 => value & 0xffff_2fff | DR7_FIXED,
        _ => value,
    };
    // Watching data goes through another class of TLB entries.
    cpu.update_class();
    cpu.break_block = true;
    Ok(())
}

/// The handler of `insn`, if it belongs to this group.
pub(super) fn select(insn: &Instruction) -> Option<Handler> {
    let is_dr = |n| insn.op_kind(n) == OpKind::Register && insn.op_register(n).is_dr();
    if insn.mnemonic() != Mnemonic::Mov {
        return None;
    }
    match (is_dr(0), is_dr(1)) {
        (true, _) => Some(write),
        (_, true) => Some(read),
        _ => None,
    }
}
