//! Functions of ST(0), and of ST(0) and ST(1): square root, rounding, remainders, scaling, the
//! transcendental functions; sign changes and classification.

use iced_x86::{Instruction, Mnemonic};

use super::status::{C0, C1, C2, C3};
use crate::cpu::Cpu;
use crate::exception::Result;
use crate::fpu::Fpu;
use crate::fpu::host::{self, Outcome};
use crate::fpu::softfloat::{self as soft, Class, Env, F80, Format, Quotient};
use crate::op::{Handler, Op};

/// Finds the handler.
pub(super) fn select(insn: &Instruction) -> Option<Handler> {
    use Mnemonic::*;
    let handler: Handler = match insn.mnemonic() {
        Fchs => |cpu, op| change_sign(cpu, op, |exp| exp ^ 0x8000),
        Fabs => |cpu, op| change_sign(cpu, op, |exp| exp & 0x7fff),
        Fxam => |cpu, op| cpu.x87_on_stack(op, examine),
        Fsqrt => |cpu, op| unary(cpu, op, soft::sqrt),
        Frndint => |cpu, op| unary(cpu, op, |env, a| soft::round_to_integral(env, a, true)),
        Fscale => |cpu, op| cpu.x87_on_stack(op, scale),
        Fprem => |cpu, op| cpu.x87_on_stack(op, |fpu| remainder(fpu, false)),
        Fprem1 => |cpu, op| cpu.x87_on_stack(op, |fpu| remainder(fpu, true)),
        Fxtract => |cpu, op| cpu.x87_on_stack(op, extract),
        F2xm1 => |cpu, op| function(cpu, op, 1, host::f2xm1),
        Fsin => |cpu, op| trigonometric(cpu, op, host::fsin),
        Fcos => |cpu, op| trigonometric(cpu, op, host::fcos),
        Fptan => |cpu, op| pushing_function(cpu, op, host::fptan),
        Fsincos => |cpu, op| pushing_function(cpu, op, host::fsincos),
        Fpatan => |cpu, op| function(cpu, op, 2, host::fpatan),
        Fyl2x => |cpu, op| function(cpu, op, 2, host::fyl2x),
        Fyl2xp1 => |cpu, op| function(cpu, op, 2, host::fyl2xp1),
        _ => return None,
    };
    Some(handler)
}

fn change_sign(cpu: &mut Cpu, op: &Op, f: fn(u16) -> u16) -> Result {
    cpu.x87_on_stack(op, |fpu| match fpu.st(0) {
        Some(value) => {
            fpu.set_c1(false);
            fpu.set_st(0, F80 { exp: f(value.exp), ..value });
        }
        None => fpu.finish_underflow(0, 0),
    })
}

/// FXAM.
fn examine(fpu: &mut Fpu) {
    let value = fpu.regs[fpu.physical(0)];
    let class = if fpu.is_empty(0) {
        C3 | C0
    } else {
        match value.unpack().class {
            Class::Unsupported => 0,
            Class::QuietNan | Class::SignallingNan => C0,
            Class::Normal => C2,
            Class::Infinity => C2 | C0,
            Class::Zero => C3,
            Class::Denormal => C3 | C2,
        }
    };
    fpu.set_codes(class | if value.sign() { C1 } else { 0 });
}

#[inline(always)]
fn unary(cpu: &mut Cpu, op: &Op, f: impl Fn(&mut Env, F80) -> F80) -> Result {
    cpu.x87_on_stack(op, |fpu| match fpu.st(0) {
        Some(value) => {
            let mut env = fpu.env();
            let result = f(&mut env, value);
            fpu.finish(&env, 0, result, 0);
        }
        None => fpu.finish_underflow(0, 0),
    })
}

fn scale(fpu: &mut Fpu) {
    match (fpu.st(0), fpu.st(1)) {
        (Some(a), Some(b)) => {
            let mut env = fpu.env().full_precision();
            let result = soft::scale(&mut env, a, b);
            fpu.finish(&env, 0, result, 0);
        }
        _ => fpu.finish_underflow(0, 0),
    }
}

/// FPREM and FPREM1: C2 says that the reduction is not complete, the others have the quotient's bits.
fn remainder(fpu: &mut Fpu, nearest: bool) {
    fpu.status &= !C2;
    let (Some(a), Some(b)) = (fpu.st(0), fpu.st(1)) else {
        fpu.finish_underflow(0, 0);
        return;
    };
    let mut env = fpu.env().full_precision();
    let result = soft::remainder(&mut env, a, b, nearest);
    if fpu.commit(&env) {
        fpu.set_st(0, result.value);
        let bit = |q: u8, n: u8, code: u16| if q >> n & 1 != 0 { code } else { 0 };
        match result.quotient {
            Quotient::None => {}
            Quotient::Partial => fpu.set_codes(C2),
            Quotient::Low(q) => fpu.set_codes(bit(q, 2, C0) | bit(q, 1, C3) | bit(q, 0, C1)),
        }
    }
}

/// FXTRACT: the exponent replaces ST(0), then the significand is pushed.
fn extract(fpu: &mut Fpu) {
    let Some(value) = fpu.st(0) else {
        if fpu.stack_underflow() {
            fpu.set_st(0, F80::INDEFINITE);
            fpu.push(F80::INDEFINITE);
        }
        return;
    };
    if !push_fits(fpu) {
        return;
    }
    let mut env = fpu.env().full_precision();
    let (exponent, significand) = soft::extract_exponent(&mut env, value);
    if fpu.commit(&env) {
        fpu.set_st(0, exponent);
        fpu.push(significand);
    }
}

/// Whether there is room to push a second result; else gives what a stack overflow gives.
fn push_fits(fpu: &mut Fpu) -> bool {
    let fits = fpu.is_empty(7);
    if !fits && fpu.stack_overflow() {
        fpu.set_st(0, F80::INDEFINITE);
        fpu.push(F80::INDEFINITE);
    }
    fits
}

/// A function as the host computes it.
type Function = fn(u16, F80, F80) -> Outcome;

/// A function of `operands` registers with one result.
fn function(cpu: &mut Cpu, op: &Op, operands: u8, f: Function) -> Result {
    cpu.x87_on_stack(op, |fpu| {
        let (a, b) = (fpu.st(0), fpu.st(1));
        match (a, if operands == 1 { b.or(Some(F80::ZERO)) } else { b }) {
            (Some(a), Some(b)) => apply(fpu, a, b, f),
            _ => fpu.finish_underflow(operands - 1, operands - 1),
        }
    })
}

/// FSIN and FCOS: C2 says that the operand is out of range.
fn trigonometric(cpu: &mut Cpu, op: &Op, f: Function) -> Result {
    cpu.x87_on_stack(op, |fpu| {
        fpu.status &= !C2;
        match fpu.st(0) {
            Some(a) => apply(fpu, a, F80::ZERO, f),
            None => fpu.finish_underflow(0, 0),
        }
    })
}

/// FPTAN and FSINCOS, which have two results.
fn pushing_function(cpu: &mut Cpu, op: &Op, f: Function) -> Result {
    cpu.x87_on_stack(op, |fpu| {
        fpu.status &= !C2;
        match fpu.st(0) {
            Some(a) => {
                if push_fits(fpu) {
                    apply(fpu, a, F80::ZERO, f);
                }
            }
            None => {
                if fpu.stack_underflow() {
                    fpu.set_st(0, F80::INDEFINITE);
                    fpu.push(F80::INDEFINITE);
                }
            }
        }
    })
}

/// Takes up exceptions, C1, C2 and the results.
fn apply(fpu: &mut Fpu, a: F80, b: F80, f: Function) {
    let outcome = f(fpu.control, a, b);
    fpu.status = fpu.status & !C1 | outcome.status & (C1 | C2 | 0x3f);
    match outcome.top_change {
        -1 => {
            fpu.set_st(0, outcome.st[1]);
            fpu.push(outcome.st[0]);
        }
        1 => {
            fpu.pop();
            fpu.set_st(0, outcome.st[0]);
        }
        _ => fpu.set_st(0, outcome.st[0]),
    }
}
