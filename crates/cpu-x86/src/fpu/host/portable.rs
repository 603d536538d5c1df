//! Transcendental functions for hosts that have no x87: binary64 approximations. Results have up to 53
//! good bits; exceptions are those of the operands, and inexact.

use super::Outcome;
use crate::fpu::softfloat::{Env, F80, Format, Num, convert, flag, widen};

/// Whether an operand stops the function before it starts: not a number, or an invalid encoding.
fn special(env: &mut Env, n: &Num) -> Option<F80> {
    if n.is_finite_nonzero() || n.sig == 0 || n.is_infinity() {
        return None;
    }
    if !n.is_quiet_nan() {
        env.raise(flag::IE);
    }
    Some(if n.is_nan() { F80::quiet(n) } else { F80::INDEFINITE })
}

/// Computes `f` of the operands in binary64.
fn compute(control: u16, operands: &[F80], f: impl Fn(&[f64]) -> f64) -> (F80, u16) {
    let mut env = Env::x87(control | 0x3f);
    for operand in operands {
        if let Some(result) = special(&mut env, &operand.unpack()) {
            return (result, u16::from(env.flags));
        }
    }
    let values: Vec<f64> =
        operands.iter().map(|&v| f64::from_bits(convert::<F80, u64>(&mut env, v))).collect();
    let result = f(&values);
    if result.is_nan() {
        return (F80::INDEFINITE, u16::from(flag::IE));
    }
    let inexact = u16::from(flag::PE);
    (widen(result.to_bits()), inexact)
}

fn finish(control: u16, before: [F80; 2], after: [F80; 2], top_change: i8, flags: u16) -> Outcome {
    let unmasked = flags & !control & 0x3f;
    let summary = if unmasked != 0 { 0x8080 } else { 0 };
    if unmasked & u16::from(flag::BEFORE) != 0 {
        return Outcome { st: before, top_change: 0, status: flags | summary };
    }
    Outcome { st: after, top_change, status: flags | summary }
}

/// Operands of 2^63 and more are left alone, with C2 set.
fn out_of_range(st0: F80) -> bool {
    let n = st0.unpack();
    n.is_finite_nonzero() && n.exp >= 63
}

fn unary(control: u16, st0: F80, st1: F80, f: fn(f64) -> f64) -> Outcome {
    let (result, flags) = compute(control, &[st0], |v| f(v[0]));
    finish(control, [st0, st1], [result, st1], 0, flags)
}

fn trigonometric(control: u16, st0: F80, st1: F80, f: fn(f64) -> f64) -> Outcome {
    if out_of_range(st0) {
        return Outcome { st: [st0, st1], top_change: 0, status: 0x400 };
    }
    unary(control, st0, st1, f)
}

fn binary(control: u16, st0: F80, st1: F80, f: fn(f64, f64) -> f64) -> Outcome {
    let (result, flags) = compute(control, &[st0, st1], |v| f(v[0], v[1]));
    finish(control, [st0, st1], [result, F80::ZERO], 1, flags)
}

fn pushing(control: u16, st0: F80, st1: F80, f: fn(f64) -> f64, pushed: fn(f64) -> f64) -> Outcome {
    if out_of_range(st0) {
        return Outcome { st: [st0, st1], top_change: 0, status: 0x400 };
    }
    let (result, flags) = compute(control, &[st0], |v| f(v[0]));
    let (top, _) = compute(control, &[st0], |v| pushed(v[0]));
    finish(control, [st0, st1], [top, result], -1, flags)
}

pub(crate) fn f2xm1(control: u16, st0: F80, st1: F80) -> Outcome {
    unary(control, st0, st1, |x| (x * std::f64::consts::LN_2).exp_m1())
}

pub(crate) fn fsin(control: u16, st0: F80, st1: F80) -> Outcome {
    trigonometric(control, st0, st1, f64::sin)
}

pub(crate) fn fcos(control: u16, st0: F80, st1: F80) -> Outcome {
    trigonometric(control, st0, st1, f64::cos)
}

pub(crate) fn fptan(control: u16, st0: F80, st1: F80) -> Outcome {
    pushing(control, st0, st1, f64::tan, |_| 1.0)
}

pub(crate) fn fsincos(control: u16, st0: F80, st1: F80) -> Outcome {
    pushing(control, st0, st1, f64::sin, f64::cos)
}

pub(crate) fn fpatan(control: u16, st0: F80, st1: F80) -> Outcome {
    binary(control, st0, st1, |x, y| y.atan2(x))
}

pub(crate) fn fyl2x(control: u16, st0: F80, st1: F80) -> Outcome {
    binary(control, st0, st1, |x, y| y * x.log2())
}

pub(crate) fn fyl2xp1(control: u16, st0: F80, st1: F80) -> Outcome {
    binary(control, st0, st1, |x, y| y * (x.ln_1p() / std::f64::consts::LN_2))
}

/// RCPSS of a bit pattern: the reciprocal, to single precision.
pub(crate) fn reciprocal(value: u32) -> u32 {
    approximate(value, |x| 1.0 / x)
}

/// RSQRTSS of a bit pattern: the reciprocal of the root, to single precision.
pub(crate) fn reciprocal_sqrt(value: u32) -> u32 {
    approximate(value, |x| if x == 0.0 { 1.0 / x } else { 1.0 / x.sqrt() })
}

/// Denormals are zeros on both sides; NaNs become quiet.
fn approximate(value: u32, f: impl Fn(f32) -> f32) -> u32 {
    let x = f32::from_bits(value);
    let flush = |x: f32| if x.is_subnormal() { 0f32.copysign(x) } else { x };
    if x.is_nan() {
        return value | 0x40_0000;
    }
    let result = flush(f(flush(x)));
    if result.is_nan() { u32::INDEFINITE } else { result.to_bits() }
}
