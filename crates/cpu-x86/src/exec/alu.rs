//! Addition, subtraction and logic (APM volume 3: ADC, ADD, AND, CMP, DEC, INC, NEG, NOT, OR, SBB,
//! SUB, TEST, XADD, XOR).

use iced_x86::{Instruction, Mnemonic};

use super::{Form, form, size0, sized};
use crate::cpu::Cpu;
use crate::exception::Result;
use crate::int::Int;
use crate::op::{Handler, Op};

/// A two-operand operation.
trait Binary: 'static {
    /// Whether the result is kept.
    const WRITES: bool = true;
    /// The result.
    fn compute<T: Int>(a: T, b: T, carry: bool) -> T;
    /// Sets the flags.
    fn flags<T: Int>(cpu: &mut Cpu, a: T, b: T, result: T);
}

macro_rules! binary {
    ($($name:ident, $writes:expr, |$a:ident, $b:ident, $c:ident| $compute:expr,
       |$cpu:ident, $r:ident| $flags:expr;)*) => {$(
        struct $name;
        impl Binary for $name {
            const WRITES: bool = $writes;
            #[inline(always)]
            fn compute<T: Int>($a: T, $b: T, $c: bool) -> T {
                $compute
            }
            #[inline(always)]
            fn flags<T: Int>($cpu: &mut Cpu, $a: T, $b: T, $r: T) {
                $flags
            }
        }
    )*};
}

binary! {
    Add, true, |a, b, _c| a.wadd(b), |cpu, r| cpu.flags_add(a, b, r);
    Adc, true, |a, b, c| a.wadd(b).wadd(T::from_bool(c)), |cpu, r| cpu.flags_add(a, b, r);
    Sub, true, |a, b, _c| a.wsub(b), |cpu, r| cpu.flags_sub(a, b, r);
    Sbb, true, |a, b, c| a.wsub(b).wsub(T::from_bool(c)), |cpu, r| cpu.flags_sub(a, b, r);
    Cmp, false, |a, b, _c| a.wsub(b), |cpu, r| cpu.flags_sub(a, b, r);
    And, true, |a, b, _c| a & b, |cpu, r| { let _ = (a, b); cpu.flags_logic(r) };
    Or, true, |a, b, _c| a | b, |cpu, r| { let _ = (a, b); cpu.flags_logic(r) };
    Xor, true, |a, b, _c| a ^ b, |cpu, r| { let _ = (a, b); cpu.flags_logic(r) };
    Test, false, |a, b, _c| a & b, |cpu, r| { let _ = (a, b); cpu.flags_logic(r) };
}

#[inline(always)]
fn to_register<T: Int, O: Binary>(cpu: &mut Cpu, op: &Op, b: T) {
    let a = cpu.reg::<T>(op.dst);
    let result = O::compute(a, b, cpu.cf());
    if O::WRITES {
        cpu.set_reg(op.dst, result);
    }
    O::flags(cpu, a, b, result);
}

#[inline(always)]
fn to_memory<T: Int, O: Binary>(cpu: &mut Cpu, op: &Op, b: T) -> Result {
    let carry = cpu.cf();
    let a = if O::WRITES {
        cpu.update_op::<T>(op, op.locked(), |a| O::compute(a, b, carry))?
    } else {
        cpu.load_op::<T>(op)?
    };
    O::flags(cpu, a, b, O::compute(a, b, carry));
    Ok(())
}

fn reg_reg<T: Int, O: Binary>(cpu: &mut Cpu, op: &Op) -> Result {
    let b = cpu.reg::<T>(op.src);
    to_register::<T, O>(cpu, op, b);
    Ok(())
}

fn reg_mem<T: Int, O: Binary>(cpu: &mut Cpu, op: &Op) -> Result {
    let b = cpu.load_op::<T>(op)?;
    to_register::<T, O>(cpu, op, b);
    Ok(())
}

fn reg_imm<T: Int, O: Binary>(cpu: &mut Cpu, op: &Op) -> Result {
    to_register::<T, O>(cpu, op, T::from_u64(op.imm));
    Ok(())
}

fn mem_reg<T: Int, O: Binary>(cpu: &mut Cpu, op: &Op) -> Result {
    let b = cpu.reg::<T>(op.dst);
    to_memory::<T, O>(cpu, op, b)
}

fn mem_imm<T: Int, O: Binary>(cpu: &mut Cpu, op: &Op) -> Result {
    to_memory::<T, O>(cpu, op, T::from_u64(op.imm))
}

fn binary<O: Binary>(insn: &Instruction) -> Option<Handler> {
    let size = size0(insn);
    match form(insn) {
        Form::RegReg => sized!(size, reg_reg, O),
        Form::RegMem => sized!(size, reg_mem, O),
        Form::RegImm => sized!(size, reg_imm, O),
        Form::MemReg => sized!(size, mem_reg, O),
        Form::MemImm => sized!(size, mem_imm, O),
        _ => None,
    }
}

/// A one-operand operation.
trait Unary: 'static {
    /// The result.
    fn compute<T: Int>(a: T) -> T;
    /// Sets the flags.
    fn flags<T: Int>(cpu: &mut Cpu, a: T, result: T);
}

macro_rules! unary {
    ($($name:ident, |$a:ident| $compute:expr, |$cpu:ident, $r:ident| $flags:expr;)*) => {$(
        struct $name;
        impl Unary for $name {
            #[inline(always)]
            fn compute<T: Int>($a: T) -> T {
                $compute
            }
            #[inline(always)]
            fn flags<T: Int>($cpu: &mut Cpu, $a: T, $r: T) {
                $flags
            }
        }
    )*};
}

unary! {
    Inc, |a| a.wadd(T::ONE), |cpu, r| cpu.flags_inc(a, r);
    Dec, |a| a.wsub(T::ONE), |cpu, r| cpu.flags_dec(a, r);
    Neg, |a| T::ZERO.wsub(a), |cpu, r| cpu.flags_sub(T::ZERO, a, r);
    Not, |a| !a, |cpu, r| { let _ = (cpu, a, r); };
}

fn unary_reg<T: Int, O: Unary>(cpu: &mut Cpu, op: &Op) -> Result {
    let a = cpu.reg::<T>(op.dst);
    let result = O::compute(a);
    cpu.set_reg(op.dst, result);
    O::flags(cpu, a, result);
    Ok(())
}

fn unary_mem<T: Int, O: Unary>(cpu: &mut Cpu, op: &Op) -> Result {
    let a = cpu.update_op::<T>(op, op.locked(), O::compute)?;
    O::flags(cpu, a, O::compute(a));
    Ok(())
}

fn unary<O: Unary>(insn: &Instruction) -> Option<Handler> {
    let size = size0(insn);
    match form(insn) {
        Form::Reg => sized!(size, unary_reg, O),
        Form::Mem => sized!(size, unary_mem, O),
        _ => None,
    }
}

fn xadd_reg<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let (a, b) = (cpu.reg::<T>(op.dst), cpu.reg::<T>(op.src));
    let sum = a.wadd(b);
    cpu.set_reg(op.src, a);
    cpu.set_reg(op.dst, sum);
    cpu.flags_add(a, b, sum);
    Ok(())
}

fn xadd_mem<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let b = cpu.reg::<T>(op.dst);
    let a = cpu.update_op::<T>(op, op.locked(), |a| a.wadd(b))?;
    cpu.set_reg(op.dst, a);
    cpu.flags_add(a, b, a.wadd(b));
    Ok(())
}

/// The handler of `insn`, if it belongs to this group.
pub(super) fn select(insn: &Instruction) -> Option<Handler> {
    match insn.mnemonic() {
        Mnemonic::Add => binary::<Add>(insn),
        Mnemonic::Adc => binary::<Adc>(insn),
        Mnemonic::Sub => binary::<Sub>(insn),
        Mnemonic::Sbb => binary::<Sbb>(insn),
        Mnemonic::Cmp => binary::<Cmp>(insn),
        Mnemonic::And => binary::<And>(insn),
        Mnemonic::Or => binary::<Or>(insn),
        Mnemonic::Xor => binary::<Xor>(insn),
        Mnemonic::Test => binary::<Test>(insn),
        Mnemonic::Inc => unary::<Inc>(insn),
        Mnemonic::Dec => unary::<Dec>(insn),
        Mnemonic::Neg => unary::<Neg>(insn),
        Mnemonic::Not => unary::<Not>(insn),
        Mnemonic::Xadd => match form(insn) {
            Form::RegReg => sized!(size0(insn), xadd_reg),
            Form::MemReg => sized!(size0(insn), xadd_mem),
            _ => None,
        },
        _ => None,
    }
}
