//! Shifts and rotates (APM volume 3: RCL, RCR, ROL, ROR, SAL, SAR, SHL, SHLD, SHR, SHRD).
//!
//! OF is defined for counts of one only; for others it is set as the same formula gives it. AF is
//! undefined after shifts and cleared; rotates leave it, and SF, ZF and PF, alone.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::{Form, form, size0, sized};
use crate::cpu::Cpu;
use crate::exception::Result;
use crate::flags::bits;
use crate::int::Int;
use crate::op::{Handler, Op};
use crate::reg::RCX;

/// A shift or rotate by a count.
trait Shift: 'static {
    /// The result for a masked `count`, which is not zero.
    fn compute<T: Int>(a: T, count: u32, carry: bool) -> T;
    /// Sets the flags for a masked `count`, which is not zero.
    fn flags<T: Int>(cpu: &mut Cpu, a: T, count: u32, result: T);
}

struct Shl;
struct Shr;
struct Sar;
struct Rol;
struct Ror;
struct Rcl;
struct Rcr;

impl Shift for Shl {
    #[inline(always)]
    fn compute<T: Int>(a: T, count: u32, _: bool) -> T {
        if count < T::BITS { a.wshl(count) } else { T::ZERO }
    }
    #[inline(always)]
    fn flags<T: Int>(cpu: &mut Cpu, a: T, count: u32, result: T) {
        let carry = count <= T::BITS && a.bit(T::BITS.wrapping_sub(count));
        cpu.flags_result(result, carry, carry ^ result.is_negative());
    }
}

impl Shift for Shr {
    #[inline(always)]
    fn compute<T: Int>(a: T, count: u32, _: bool) -> T {
        if count < T::BITS { a.wshr(count) } else { T::ZERO }
    }
    #[inline(always)]
    fn flags<T: Int>(cpu: &mut Cpu, a: T, count: u32, result: T) {
        let carry = count <= T::BITS && a.bit(count - 1);
        cpu.flags_result(result, carry, a.is_negative());
    }
}

impl Shift for Sar {
    #[inline(always)]
    fn compute<T: Int>(a: T, count: u32, _: bool) -> T {
        a.wsar(count.min(T::BITS - 1))
    }
    #[inline(always)]
    fn flags<T: Int>(cpu: &mut Cpu, a: T, count: u32, result: T) {
        let carry = a.bit((count - 1).min(T::BITS - 1));
        cpu.flags_result(result, carry, false);
    }
}

impl Shift for Rol {
    #[inline(always)]
    fn compute<T: Int>(a: T, count: u32, _: bool) -> T {
        a.rotl(count % T::BITS)
    }
    #[inline(always)]
    fn flags<T: Int>(cpu: &mut Cpu, _: T, _: u32, result: T) {
        let carry = result.bit(0);
        set_cf_of(cpu, carry, carry ^ result.is_negative());
    }
}

impl Shift for Ror {
    #[inline(always)]
    fn compute<T: Int>(a: T, count: u32, _: bool) -> T {
        a.rotl(T::BITS - count % T::BITS)
    }
    #[inline(always)]
    fn flags<T: Int>(cpu: &mut Cpu, _: T, _: u32, result: T) {
        let carry = result.is_negative();
        set_cf_of(cpu, carry, carry ^ result.bit(T::BITS - 2));
    }
}

/// Rotates `a` with the carry above it left by `count`, which is less than its width plus one.
#[inline(always)]
fn rotate_through_carry<T: Int>(a: T, count: u32, carry: bool) -> (T, bool) {
    let width = T::BITS + 1;
    let wide = a.to_u128() | u128::from(carry) << T::BITS;
    let rotated = if count == 0 { wide } else { wide << count | wide >> (width - count) };
    (T::from_u128(rotated), rotated >> T::BITS & 1 != 0)
}

impl Shift for Rcl {
    #[inline(always)]
    fn compute<T: Int>(a: T, count: u32, carry: bool) -> T {
        rotate_through_carry(a, count % (T::BITS + 1), carry).0
    }
    #[inline(always)]
    fn flags<T: Int>(cpu: &mut Cpu, a: T, count: u32, result: T) {
        let (_, carry) = rotate_through_carry(a, count % (T::BITS + 1), cpu.cf());
        set_cf_of(cpu, carry, carry ^ result.is_negative());
    }
}

impl Shift for Rcr {
    #[inline(always)]
    fn compute<T: Int>(a: T, count: u32, carry: bool) -> T {
        let width = T::BITS + 1;
        rotate_through_carry(a, (width - count % width) % width, carry).0
    }
    #[inline(always)]
    fn flags<T: Int>(cpu: &mut Cpu, a: T, count: u32, result: T) {
        let width = T::BITS + 1;
        let (_, carry) = rotate_through_carry(a, (width - count % width) % width, cpu.cf());
        set_cf_of(cpu, carry, result.is_negative() ^ result.bit(T::BITS - 2));
    }
}

fn set_cf_of(cpu: &mut Cpu, carry: bool, overflow: bool) {
    let values = u64::from(carry) | u64::from(overflow) << 11;
    cpu.change_flags(bits::CF | bits::OF, values);
}

/// The count as the CPU uses it: 6 bits for 64-bit operands, 5 for the others.
#[inline(always)]
fn mask_count<T: Int>(count: u64) -> u32 {
    (count & if T::BITS == 64 { 63 } else { 31 }) as u32
}

#[inline(always)]
fn shift_reg<T: Int, O: Shift>(cpu: &mut Cpu, op: &Op, count: u64) -> Result {
    let count = mask_count::<T>(count);
    let a = cpu.reg::<T>(op.dst);
    if count == 0 {
        // Still a write: a 32-bit register's upper half is cleared.
        cpu.set_reg(op.dst, a);
        return Ok(());
    }
    let result = O::compute(a, count, cpu.cf());
    cpu.set_reg(op.dst, result);
    O::flags(cpu, a, count, result);
    Ok(())
}

#[inline(always)]
fn shift_mem<T: Int, O: Shift>(cpu: &mut Cpu, op: &Op, count: u64) -> Result {
    let count = mask_count::<T>(count);
    let carry = cpu.cf();
    let compute = |a| if count == 0 { a } else { O::compute(a, count, carry) };
    let a = cpu.update_op::<T>(op, false, compute)?;
    if count != 0 {
        O::flags(cpu, a, count, compute(a));
    }
    Ok(())
}

fn reg_imm<T: Int, O: Shift>(cpu: &mut Cpu, op: &Op) -> Result {
    shift_reg::<T, O>(cpu, op, op.imm)
}

fn reg_cl<T: Int, O: Shift>(cpu: &mut Cpu, op: &Op) -> Result {
    let count = cpu.gpr(RCX);
    shift_reg::<T, O>(cpu, op, count)
}

fn mem_imm<T: Int, O: Shift>(cpu: &mut Cpu, op: &Op) -> Result {
    shift_mem::<T, O>(cpu, op, op.imm)
}

fn mem_cl<T: Int, O: Shift>(cpu: &mut Cpu, op: &Op) -> Result {
    let count = cpu.gpr(RCX);
    shift_mem::<T, O>(cpu, op, count)
}

fn shift<O: Shift>(insn: &Instruction) -> Option<Handler> {
    let size = size0(insn);
    match form(insn) {
        Form::RegImm => sized!(size, reg_imm, O),
        Form::RegReg => sized!(size, reg_cl, O),
        Form::MemImm => sized!(size, mem_imm, O),
        Form::MemReg => sized!(size, mem_cl, O),
        _ => None,
    }
}

/// A shift that takes bits in from a second operand.
trait Double: 'static {
    /// The result for a `count` that is not zero.
    fn compute<T: Int>(a: T, fill: T, count: u32) -> T;
    /// The last bit shifted out, for a `count` that is not zero.
    fn carry<T: Int>(a: T, fill: T, count: u32) -> bool;
}

struct Shld;
struct Shrd;

// A 16-bit operand's count may be up to 31. The result is then undefined; processors shift the
// pattern a:fill:a, and so does this.
impl Double for Shld {
    #[inline(always)]
    fn compute<T: Int>(a: T, fill: T, count: u32) -> T {
        if T::BITS == 16 {
            let wide = a.to_u64() << 32 | fill.to_u64() << 16 | a.to_u64();
            return T::from_u64(wide << count >> 32);
        }
        a.wshl(count) | fill.wshr(T::BITS - count)
    }
    #[inline(always)]
    fn carry<T: Int>(a: T, fill: T, count: u32) -> bool {
        if T::BITS == 16 {
            let wide = a.to_u64() << 32 | fill.to_u64() << 16 | a.to_u64();
            return wide >> (48 - count) & 1 != 0;
        }
        a.bit(T::BITS - count)
    }
}

impl Double for Shrd {
    #[inline(always)]
    fn compute<T: Int>(a: T, fill: T, count: u32) -> T {
        if T::BITS == 16 {
            let wide = a.to_u64() << 32 | fill.to_u64() << 16 | a.to_u64();
            return T::from_u64(wide >> count);
        }
        a.wshr(count) | fill.wshl(T::BITS - count)
    }
    #[inline(always)]
    fn carry<T: Int>(a: T, fill: T, count: u32) -> bool {
        if T::BITS == 16 {
            let wide = a.to_u64() << 32 | fill.to_u64() << 16 | a.to_u64();
            return wide >> (count - 1) & 1 != 0;
        }
        a.bit(count - 1)
    }
}

fn double_flags<T: Int, O: Double>(cpu: &mut Cpu, a: T, fill: T, count: u32, result: T) {
    let overflow = a.is_negative() != result.is_negative();
    cpu.flags_result(result, O::carry(a, fill, count), overflow);
}

#[inline(always)]
fn double_reg<T: Int, O: Double>(cpu: &mut Cpu, op: &Op, count: u64) -> Result {
    let count = mask_count::<T>(count);
    let a = cpu.reg::<T>(op.dst);
    if count == 0 {
        cpu.set_reg(op.dst, a);
        return Ok(());
    }
    let fill = cpu.reg::<T>(op.src);
    let result = O::compute(a, fill, count);
    cpu.set_reg(op.dst, result);
    double_flags::<T, O>(cpu, a, fill, count, result);
    Ok(())
}

#[inline(always)]
fn double_mem<T: Int, O: Double>(cpu: &mut Cpu, op: &Op, count: u64) -> Result {
    let count = mask_count::<T>(count);
    let fill = cpu.reg::<T>(op.dst);
    let compute = |a| if count == 0 { a } else { O::compute(a, fill, count) };
    let a = cpu.update_op::<T>(op, false, compute)?;
    if count != 0 {
        double_flags::<T, O>(cpu, a, fill, count, compute(a));
    }
    Ok(())
}

fn double_reg_imm<T: Int, O: Double>(cpu: &mut Cpu, op: &Op) -> Result {
    double_reg::<T, O>(cpu, op, op.imm)
}

fn double_reg_cl<T: Int, O: Double>(cpu: &mut Cpu, op: &Op) -> Result {
    let count = cpu.gpr(RCX);
    double_reg::<T, O>(cpu, op, count)
}

fn double_mem_imm<T: Int, O: Double>(cpu: &mut Cpu, op: &Op) -> Result {
    double_mem::<T, O>(cpu, op, op.imm)
}

fn double_mem_cl<T: Int, O: Double>(cpu: &mut Cpu, op: &Op) -> Result {
    let count = cpu.gpr(RCX);
    double_mem::<T, O>(cpu, op, count)
}

fn double<O: Double>(insn: &Instruction) -> Option<Handler> {
    let size = size0(insn);
    let by_register = insn.op2_kind() == OpKind::Register;
    match (form(insn), by_register) {
        (Form::RegReg, false) => sized!(size, double_reg_imm, O),
        (Form::RegReg, true) => sized!(size, double_reg_cl, O),
        (Form::MemReg, false) => sized!(size, double_mem_imm, O),
        (Form::MemReg, true) => sized!(size, double_mem_cl, O),
        _ => None,
    }
}

/// The handler of `insn`, if it belongs to this group.
pub(super) fn select(insn: &Instruction) -> Option<Handler> {
    match insn.mnemonic() {
        Mnemonic::Shl | Mnemonic::Sal => shift::<Shl>(insn),
        Mnemonic::Shr => shift::<Shr>(insn),
        Mnemonic::Sar => shift::<Sar>(insn),
        Mnemonic::Rol => shift::<Rol>(insn),
        Mnemonic::Ror => shift::<Ror>(insn),
        Mnemonic::Rcl => shift::<Rcl>(insn),
        Mnemonic::Rcr => shift::<Rcr>(insn),
        Mnemonic::Shld => double::<Shld>(insn),
        Mnemonic::Shrd => double::<Shrd>(insn),
        _ => None,
    }
}
