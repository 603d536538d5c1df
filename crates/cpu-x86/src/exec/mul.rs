//! Multiplication and division (APM volume 3: DIV, IDIV, IMUL, MUL).
//!
//! A multiplication sets CF and OF when the upper half of the product matters; the other flags are
//! undefined and set from the lower half. A division's flags are undefined and left alone.

use iced_x86::{Instruction, Mnemonic};

use super::{Form, form, size0, sized};
use crate::cpu::Cpu;
use crate::exception::{Exception, Result};
use crate::int::Int;
use crate::op::{Handler, Op};
use crate::reg::{RAX, RDX};

/// AH, which takes the place of the data register when operands are bytes.
const AH: u8 = 16;

/// Sign-extended to 128 bits.
fn signed<T: Int>(value: T) -> i128 {
    i128::from(value.sext() as i64)
}

/// Writes a double-width product to AX, or to the data register and the accumulator.
#[inline(always)]
fn set_product<T: Int>(cpu: &mut Cpu, low: T, high: T) {
    cpu.set_reg(RAX, low);
    cpu.set_reg(if T::BYTES == 1 { AH } else { RDX }, high);
}

#[inline(always)]
fn mul_by<T: Int>(cpu: &mut Cpu, b: T) -> Result {
    let product = cpu.reg::<T>(RAX).to_u128().wrapping_mul(b.to_u128());
    let (low, high) = (T::from_u128(product), T::from_u128(product >> T::BITS));
    set_product(cpu, low, high);
    cpu.flags_result(low, high != T::ZERO, high != T::ZERO);
    Ok(())
}

#[inline(always)]
fn imul_by<T: Int>(cpu: &mut Cpu, b: T) -> Result {
    let product = signed(cpu.reg::<T>(RAX)).wrapping_mul(signed(b));
    let (low, high) = (T::from_u128(product as u128), T::from_u128((product >> T::BITS) as u128));
    set_product(cpu, low, high);
    let wide = signed(low) != product;
    cpu.flags_result(low, wide, wide);
    Ok(())
}

/// The double-width dividend.
#[inline(always)]
fn dividend<T: Int>(cpu: &Cpu) -> u128 {
    let high = cpu.reg::<T>(if T::BYTES == 1 { AH } else { RDX });
    high.to_u128() << T::BITS | cpu.reg::<T>(RAX).to_u128()
}

#[inline(always)]
fn div_by<T: Int>(cpu: &mut Cpu, b: T) -> Result {
    if b == T::ZERO {
        return Err(Exception::DE);
    }
    let (quotient, remainder) = if T::BYTES == 8 && cpu.reg::<T>(RDX) == T::ZERO {
        let (a, b) = (cpu.gpr(RAX), b.to_u64());
        (u128::from(a / b), u128::from(a % b))
    } else if T::BYTES < 8 {
        let (a, b) = (dividend::<T>(cpu) as u64, b.to_u64());
        (u128::from(a / b), u128::from(a % b))
    } else {
        let (a, b) = (dividend::<T>(cpu), b.to_u128());
        (a / b, a % b)
    };
    if quotient >> T::BITS != 0 {
        return Err(Exception::DE);
    }
    set_product(cpu, T::from_u128(quotient), T::from_u128(remainder));
    Ok(())
}

#[inline(always)]
fn idiv_by<T: Int>(cpu: &mut Cpu, b: T) -> Result {
    // The dividend's sign is at bit 2 * BITS - 1.
    let shift = 128 - 2 * T::BITS;
    let a = (dividend::<T>(cpu) << shift) as i128 >> shift;
    let b = signed(b);
    let (Some(quotient), Some(remainder)) = (a.checked_div(b), a.checked_rem(b)) else {
        return Err(Exception::DE);
    };
    let low = T::from_u128(quotient as u128);
    if signed(low) != quotient {
        return Err(Exception::DE);
    }
    set_product(cpu, low, T::from_u128(remainder as u128));
    Ok(())
}

macro_rules! one_operand {
    ($($by:ident, $reg:ident, $mem:ident;)*) => {$(
        fn $reg<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
            let b = cpu.reg::<T>(op.dst);
            $by(cpu, b)
        }
        fn $mem<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
            let b = cpu.load_op::<T>(op)?;
            $by(cpu, b)
        }
    )*};
}

one_operand! {
    mul_by, mul_reg, mul_mem;
    imul_by, imul_reg, imul_mem;
    div_by, div_reg, div_mem;
    idiv_by, idiv_reg, idiv_mem;
}

/// Two- and three-operand IMUL.
#[inline(always)]
fn imul_into<T: Int>(cpu: &mut Cpu, op: &Op, a: T, b: T) -> Result {
    let product = signed(a).wrapping_mul(signed(b));
    let low = T::from_u128(product as u128);
    let wide = signed(low) != product;
    cpu.set_reg(op.dst, low);
    cpu.flags_result(low, wide, wide);
    Ok(())
}

fn imul_reg_reg<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let (a, b) = (cpu.reg::<T>(op.dst), cpu.reg::<T>(op.src));
    imul_into(cpu, op, a, b)
}

fn imul_reg_mem<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let b = cpu.load_op::<T>(op)?;
    let a = cpu.reg::<T>(op.dst);
    imul_into(cpu, op, a, b)
}

fn imul_reg_reg_imm<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let a = cpu.reg::<T>(op.src);
    imul_into(cpu, op, a, T::from_u64(op.imm))
}

fn imul_reg_mem_imm<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let a = cpu.load_op::<T>(op)?;
    imul_into(cpu, op, a, T::from_u64(op.imm))
}

/// The handler of `insn`, if it belongs to this group.
pub(super) fn select(insn: &Instruction) -> Option<Handler> {
    let size = size0(insn);
    match (insn.mnemonic(), form(insn), insn.op_count()) {
        (Mnemonic::Mul, Form::Reg, _) => sized!(size, mul_reg),
        (Mnemonic::Mul, Form::Mem, _) => sized!(size, mul_mem),
        (Mnemonic::Imul, Form::Reg, _) => sized!(size, imul_reg),
        (Mnemonic::Imul, Form::Mem, _) => sized!(size, imul_mem),
        (Mnemonic::Imul, Form::RegReg, 2) => sized!(size, imul_reg_reg),
        (Mnemonic::Imul, Form::RegMem, 2) => sized!(size, imul_reg_mem),
        (Mnemonic::Imul, Form::RegReg, _) => sized!(size, imul_reg_reg_imm),
        (Mnemonic::Imul, Form::RegMem, _) => sized!(size, imul_reg_mem_imm),
        (Mnemonic::Div, Form::Reg, _) => sized!(size, div_reg),
        (Mnemonic::Div, Form::Mem, _) => sized!(size, div_mem),
        (Mnemonic::Idiv, Form::Reg, _) => sized!(size, idiv_reg),
        (Mnemonic::Idiv, Form::Mem, _) => sized!(size, idiv_mem),
        _ => None,
    }
}
