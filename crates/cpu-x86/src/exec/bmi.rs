//! Bit manipulation of BMI1 and BMI2, and the additions of ADX (APM volume 3). Flags that are undefined
//! are set from the result, or left alone.

use iced_x86::{Instruction, Mnemonic};

use super::sized;
use crate::cpu::Cpu;
use crate::exception::Result;
use crate::flags::bits;
use crate::int::Int;
use crate::op::{Handler, Op, OpFlags};
use crate::reg::RDX;

/// The operand in a register or memory, and the register after it: of `dst, r/m, vvvv`.
#[inline(always)]
fn source_then_register<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<(T, T)> {
    if op.flags.contains(OpFlags::MEM) {
        Ok((cpu.load_op(op)?, cpu.reg(op.src)))
    } else {
        Ok((cpu.reg(op.src), cpu.reg(op.src2)))
    }
}

/// The register, and the operand in a register or memory after it: of `dst, vvvv, r/m`.
#[inline(always)]
fn register_then_source<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<(T, T)> {
    if op.flags.contains(OpFlags::MEM) {
        Ok((cpu.reg(op.src), cpu.load_op(op)?))
    } else {
        Ok((cpu.reg(op.src), cpu.reg(op.src2)))
    }
}

/// The only source: a register or memory.
#[inline(always)]
fn source<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<T> {
    if op.flags.contains(OpFlags::MEM) { cpu.load_op(op) } else { Ok(cpu.reg(op.src)) }
}

fn andn<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let (a, b) = register_then_source::<T>(cpu, op)?;
    let result = !a & b;
    cpu.set_reg(op.dst, result);
    cpu.flags_logic(result);
    Ok(())
}

/// The lowest `count` bits set.
#[inline(always)]
fn low_bits<T: Int>(count: u64) -> T {
    if count >= u64::from(T::BITS) { T::ONES } else { T::ONE.wshl(count as u32).wsub(T::ONE) }
}

fn bextr<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let (a, control) = source_then_register::<T>(cpu, op)?;
    let (start, len) = (control.to_u64() & 0xff, control.to_u64() >> 8 & 0xff);
    let shifted = if start >= u64::from(T::BITS) { T::ZERO } else { a.wshr(start as u32) };
    let result = shifted & low_bits(len);
    cpu.set_reg(op.dst, result);
    cpu.flags_logic(result);
    Ok(())
}

fn bzhi<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let (a, index) = source_then_register::<T>(cpu, op)?;
    let index = index.to_u64() & 0xff;
    let result = a & low_bits(index);
    cpu.set_reg(op.dst, result);
    cpu.flags_result(result, index >= u64::from(T::BITS), false);
    Ok(())
}

/// BLSI, BLSMSK, BLSR: `f` of the source; `carry` says CF.
#[inline(always)]
fn lowest<T: Int>(cpu: &mut Cpu, op: &Op, f: impl Fn(T) -> T, carry: impl Fn(T) -> bool) -> Result {
    let a = source::<T>(cpu, op)?;
    let result = f(a);
    cpu.set_reg(op.dst, result);
    cpu.flags_result(result, carry(a), false);
    Ok(())
}

fn blsi<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    lowest::<T>(cpu, op, |a| a & T::ZERO.wsub(a), |a| a != T::ZERO)
}

fn blsmsk<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    lowest::<T>(cpu, op, |a| a ^ a.wsub(T::ONE), |a| a == T::ZERO)
}

fn blsr<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    lowest::<T>(cpu, op, |a| a & a.wsub(T::ONE), |a| a == T::ZERO)
}

fn tzcnt<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let a = source::<T>(cpu, op)?;
    let count = a.tzcnt();
    cpu.set_reg(op.dst, T::from_u64(count.into()));
    let zero = if count == 0 { bits::ZF } else { 0 };
    cpu.change_flags(bits::ZF | bits::CF, zero | u64::from(a == T::ZERO));
    Ok(())
}

/// MULX: the upper half to the first register, the lower half to the second; if they are one, the upper.
fn mulx<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let memory = op.flags.contains(OpFlags::MEM);
    let b = if memory { cpu.load_op::<T>(op)? } else { cpu.reg(op.src2) };
    let product = cpu.reg::<T>(RDX).to_u128().wrapping_mul(b.to_u128());
    cpu.set_reg(op.src, T::from_u128(product));
    cpu.set_reg(op.dst, T::from_u128(product >> T::BITS));
    Ok(())
}

fn pdep<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let (a, mask) = register_then_source::<T>(cpu, op)?;
    let (mut from, mut mask, mut result) = (a.to_u64(), mask.to_u64(), 0);
    while mask != 0 {
        let lowest = mask & mask.wrapping_neg();
        if from & 1 != 0 {
            result |= lowest;
        }
        from >>= 1;
        mask &= mask - 1;
    }
    cpu.set_reg(op.dst, T::from_u64(result));
    Ok(())
}

fn pext<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let (a, mask) = register_then_source::<T>(cpu, op)?;
    let (from, mut mask, mut result, mut bit) = (a.to_u64(), mask.to_u64(), 0, 0);
    while mask != 0 {
        let lowest = mask & mask.wrapping_neg();
        result |= u64::from(from & lowest != 0) << bit;
        bit += 1;
        mask &= mask - 1;
    }
    cpu.set_reg(op.dst, T::from_u64(result));
    Ok(())
}

fn rorx<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let a = source::<T>(cpu, op)?;
    let count = op.imm as u32 & (T::BITS - 1);
    cpu.set_reg(op.dst, a.rotl(T::BITS - count));
    Ok(())
}

#[inline(always)]
fn shift_without_flags<T: Int>(cpu: &mut Cpu, op: &Op, f: impl Fn(T, u32) -> T) -> Result {
    let (a, count) = source_then_register::<T>(cpu, op)?;
    cpu.set_reg(op.dst, f(a, count.to_u64() as u32 & (T::BITS - 1)));
    Ok(())
}

fn sarx<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    shift_without_flags::<T>(cpu, op, T::wsar)
}

fn shlx<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    shift_without_flags::<T>(cpu, op, T::wshl)
}

fn shrx<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    shift_without_flags::<T>(cpu, op, T::wshr)
}

/// ADCX and ADOX: an addition with one flag for carry in and out.
#[inline(always)]
fn add_with<T: Int, const FLAG: u64>(cpu: &mut Cpu, op: &Op) -> Result {
    let b = source::<T>(cpu, op)?;
    let carry = if FLAG == bits::CF { cpu.cf() } else { cpu.of() };
    let sum =
        cpu.reg::<T>(op.dst).to_u128().wrapping_add(b.to_u128()).wrapping_add(u128::from(carry));
    cpu.set_reg(op.dst, T::from_u128(sum));
    cpu.change_flags(FLAG, if sum >> T::BITS != 0 { FLAG } else { 0 });
    Ok(())
}

fn adcx<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    add_with::<T, { bits::CF }>(cpu, op)
}

fn adox<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    add_with::<T, { bits::OF }>(cpu, op)
}

/// The handler of `insn`, if it belongs to this group.
pub(super) fn select(insn: &Instruction) -> Option<Handler> {
    let size = insn.op0_register().size();
    match insn.mnemonic() {
        Mnemonic::Andn => sized!(size, andn),
        Mnemonic::Bextr => sized!(size, bextr),
        Mnemonic::Bzhi => sized!(size, bzhi),
        Mnemonic::Blsi => sized!(size, blsi),
        Mnemonic::Blsmsk => sized!(size, blsmsk),
        Mnemonic::Blsr => sized!(size, blsr),
        Mnemonic::Tzcnt => sized!(size, tzcnt),
        Mnemonic::Mulx => sized!(size, mulx),
        Mnemonic::Pdep => sized!(size, pdep),
        Mnemonic::Pext => sized!(size, pext),
        Mnemonic::Rorx => sized!(size, rorx),
        Mnemonic::Sarx => sized!(size, sarx),
        Mnemonic::Shlx => sized!(size, shlx),
        Mnemonic::Shrx => sized!(size, shrx),
        Mnemonic::Adcx => sized!(size, adcx),
        Mnemonic::Adox => sized!(size, adox),
        _ => None,
    }
}
