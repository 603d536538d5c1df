//! Decimal adjustment (APM volume 3: AAA, AAD, AAM, AAS, DAA, DAS), in 16- and 32-bit modes only.

use iced_x86::{Instruction, Mnemonic};

use crate::cpu::Cpu;
use crate::exception::{Exception, Result};
use crate::flags::bits::{AF, CF};
use crate::op::{Handler, Op};
use crate::reg::RAX;

/// Flags after an adjustment: ZF, SF and PF of AL, with CF and AF given.
fn set_flags(cpu: &mut Cpu, carry: bool, auxiliary: bool) {
    let al = cpu.reg::<u8>(RAX);
    cpu.flags_logic(al);
    let values = if carry { CF } else { 0 } | if auxiliary { AF } else { 0 };
    cpu.change_flags(CF | AF, values);
}

/// AAA and AAS: `sign` is 1 or -1.
fn ascii_adjust(cpu: &mut Cpu, sign: u16) {
    let ax = cpu.reg::<u16>(RAX);
    let adjust = ax & 0xf > 9 || cpu.af();
    let ax = if adjust { ax.wrapping_add(sign.wrapping_mul(0x106)) } else { ax };
    cpu.set_reg(RAX, ax & 0xff0f);
    set_flags(cpu, adjust, adjust);
}

fn aaa(cpu: &mut Cpu, _: &Op) -> Result {
    ascii_adjust(cpu, 1);
    Ok(())
}

fn aas(cpu: &mut Cpu, _: &Op) -> Result {
    ascii_adjust(cpu, 1u16.wrapping_neg());
    Ok(())
}

fn aad(cpu: &mut Cpu, op: &Op) -> Result {
    let [al, ah] = cpu.reg::<u16>(RAX).to_le_bytes();
    let al = al.wrapping_add(ah.wrapping_mul(op.imm as u8));
    cpu.set_reg(RAX, u16::from(al));
    set_flags(cpu, false, false);
    Ok(())
}

fn aam(cpu: &mut Cpu, op: &Op) -> Result {
    let al = cpu.reg::<u8>(RAX);
    let base = op.imm as u8;
    if base == 0 {
        return Err(Exception::DE);
    }
    cpu.set_reg(RAX, u16::from_le_bytes([al % base, al / base]));
    set_flags(cpu, false, false);
    Ok(())
}

/// DAA and DAS: `sign` is 1 or -1.
fn decimal_adjust(cpu: &mut Cpu, sign: u8) {
    let old = cpu.reg::<u8>(RAX);
    let low = old & 0xf > 9 || cpu.af();
    let high = old > 0x99 || cpu.cf();
    let mut al = old;
    let mut carry = high;
    if low {
        al = al.wrapping_add(sign.wrapping_mul(6));
        // Subtracting 6 may borrow on its own.
        carry |= sign != 1 && old < 6;
    }
    if high {
        al = al.wrapping_add(sign.wrapping_mul(0x60));
    }
    cpu.set_reg(RAX, al);
    set_flags(cpu, carry, low);
}

fn daa(cpu: &mut Cpu, _: &Op) -> Result {
    decimal_adjust(cpu, 1);
    Ok(())
}

fn das(cpu: &mut Cpu, _: &Op) -> Result {
    decimal_adjust(cpu, 1u8.wrapping_neg());
    Ok(())
}

/// The handler of `insn`, if it belongs to this group.
pub(super) fn select(insn: &Instruction) -> Option<Handler> {
    match insn.mnemonic() {
        Mnemonic::Aaa => Some(aaa),
        Mnemonic::Aas => Some(aas),
        Mnemonic::Aad => Some(aad),
        Mnemonic::Aam => Some(aam),
        Mnemonic::Daa => Some(daa),
        Mnemonic::Das => Some(das),
        _ => None,
    }
}
