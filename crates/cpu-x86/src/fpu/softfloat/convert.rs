//! Conversions between formats, to and from integers, and rounding to integral values.

use super::{
    Class, Env, F80, Format, Num, Unit, flag, note_denormal, operand, round_pack,
    round_significand, shift_right_sticky, special_unary,
};

/// Converts between formats and rounds, as CVTSD2SS and FST do. Denormals raise an exception, except
/// in x87's stores.
pub(crate) fn convert<F: Format, G: Format>(env: &mut Env, value: F) -> G {
    let num = operand(env, value);
    if let Some(special) = special_unary(env, &num) {
        return special;
    }
    if env.unit == Unit::Sse {
        note_denormal(env, &[&num]);
    }
    match num.class {
        Class::Zero => G::zero(num.sign),
        Class::Infinity => G::infinity(num.sign),
        _ => round_pack(env, num.sign, num.exp, u128::from(num.sig) << 64),
    }
}

/// Converts to double extended without any exception: signalling NaNs stay so, for the operation to
/// find.
pub(crate) fn widen<F: Format>(value: F) -> F80 {
    let num = value.unpack();
    match num.class {
        Class::Zero => F80::zero(num.sign),
        Class::Infinity => F80::infinity(num.sign),
        Class::Normal | Class::Denormal => {
            F80::pack(num.sign, (num.exp + F80::EMAX) as u32, num.sig)
        }
        _ => F80::pack(num.sign, 0x7fff, num.sig),
    }
}

/// [`widen`] for the memory operand of arithmetic, which notes that it was a denormal.
pub(crate) fn widen_operand<F: Format>(env: &mut Env, value: F) -> F80 {
    env.denormal_source = value.unpack().class == Class::Denormal;
    widen(value)
}

/// Integers that numbers convert to.
pub(crate) trait Integer: Copy {
    const BITS: u32;
    /// What invalid conversions give: the most negative value.
    const INDEFINITE: Self;
    fn from_i64(value: i64) -> Self;
}

macro_rules! integer {
    ($($t:ty)*) => {$(
        impl Integer for $t {
            const BITS: u32 = <$t>::BITS;
            const INDEFINITE: Self = <$t>::MIN;
            fn from_i64(value: i64) -> Self {
                value as $t
            }
        }
    )*};
}
integer!(i16 i32 i64);

/// Converts to a signed integer in the environment's rounding mode. Denormals raise no exception of
/// their own.
pub(crate) fn to_int<F: Format, I: Integer>(env: &mut Env, value: F) -> I {
    let num = operand(env, value);
    if num.class == Class::Zero {
        return I::from_i64(0);
    }
    if !num.is_finite_nonzero() || num.exp > 63 {
        env.raise(flag::IE);
        return I::INDEFINITE;
    }
    let (magnitude, inexact, up) = integral_magnitude(env, &num);
    let limit = (1u128 << (I::BITS - 1)) - u128::from(!num.sign);
    if magnitude > limit {
        env.raise(flag::IE);
        return I::INDEFINITE;
    }
    if inexact {
        env.raise(flag::PE);
        env.rounded_up = up;
    }
    let magnitude = magnitude as u64;
    I::from_i64(if num.sign { magnitude.wrapping_neg() } else { magnitude } as i64)
}

/// Rounds a number below 2^64 to an integer: its magnitude, whether that was inexact, and upwards.
fn integral_magnitude(env: &Env, num: &Num) -> (u128, bool, bool) {
    // Put the binary point between the two halves of a 128-bit value.
    let fixed = shift_right_sticky(u128::from(num.sig) << 64, (63 - num.exp) as u32);
    let rounded = round_significand(fixed, 64, env.round, num.sign);
    let magnitude = u128::from(rounded.sig) << u32::from(rounded.carry);
    (magnitude, rounded.inexact, rounded.up)
}

/// Converts a signed integer.
pub(crate) fn from_int<F: Format>(env: &mut Env, value: i64) -> F {
    if value == 0 {
        return F::zero(false);
    }
    let magnitude = value.unsigned_abs();
    let shift = magnitude.leading_zeros();
    let sig = u128::from(magnitude << shift) << 64;
    round_pack(env, value < 0, 63 - shift as i32, sig)
}

/// Rounds to an integral value in the same format. `denormal_exception`: whether denormals raise DE (x87's
/// FRNDINT does, SSE4.1's ROUNDPS does not).
pub(crate) fn round_to_integral<F: Format>(env: &mut Env, value: F, denormal_exception: bool) -> F {
    let num = operand(env, value);
    if let Some(special) = special_unary(env, &num) {
        return special;
    }
    if denormal_exception {
        note_denormal(env, &[&num]);
    }
    match num.class {
        Class::Zero => return F::zero(num.sign),
        Class::Infinity => return F::infinity(num.sign),
        _ if num.exp >= 63 || env.faults_before_result() => return value,
        _ => {}
    }
    let (magnitude, inexact, up) = integral_magnitude(env, &num);
    if inexact {
        env.raise(flag::PE);
        env.rounded_up = up;
    }
    if magnitude == 0 {
        return F::zero(num.sign);
    }
    // At most 64 bits and, having been a value of this format, exact.
    let shift = magnitude.leading_zeros();
    let biased = (127 - shift as i32 + F::EMAX) as u32;
    F::pack(num.sign, biased, (magnitude << shift >> 64) as u64)
}

/// FXTRACT of a number: its exponent and its significand, which keeps the sign.
pub(crate) fn extract_exponent(env: &mut Env, value: F80) -> (F80, F80) {
    let num = operand(env, value);
    if let Some(special) = special_unary(env, &num) {
        return (special, special);
    }
    note_denormal(env, &[&num]);
    match num.class {
        Class::Zero => {
            env.raise(flag::ZE);
            (F80::infinity(true), value)
        }
        Class::Infinity => (F80::infinity(false), value),
        _ => {
            let mut exact = env.full_precision();
            let exponent = from_int(&mut exact, i64::from(num.exp));
            (exponent, F80::pack(num.sign, F80::EMAX as u32, num.sig))
        }
    }
}
