//! The fast path: the host's own arithmetic, where it can't differ from ours.
//!
//! In round-to-nearest, with all exceptions masked and the inexact flag set already, an operation on
//! zeros and normal numbers whose result is a normal number (or an exact zero) has nothing to report,
//! and IEEE 754 leaves no choice about its result. Results at the very bottom of the normal range are
//! left out, since they may have been tiny before they were rounded.

use super::{Env, F80, Format, Order};

/// Formats that the host may compute in.
pub(crate) trait Native: Format {
    /// `a + b`, if the host's sum will do.
    fn native_add(env: &Env, a: Self, b: Self) -> Option<Self>;
    /// `a - b`, likewise.
    fn native_sub(env: &Env, a: Self, b: Self) -> Option<Self>;
    /// `a * b`, likewise.
    fn native_mul(env: &Env, a: Self, b: Self) -> Option<Self>;
    /// `a / b`, likewise.
    fn native_div(env: &Env, a: Self, b: Self) -> Option<Self>;
    /// ±(`a * b`) ± `c` with one rounding, likewise.
    fn native_multiply_add(
        env: &Env,
        a: Self,
        b: Self,
        c: Self,
        negate_product: bool,
        negate_addend: bool,
    ) -> Option<Self>;
    /// The square root, likewise.
    fn native_sqrt(env: &Env, a: Self) -> Option<Self>;
    /// How `a` and `b` compare, if neither is a denormal nor a NaN.
    fn native_compare(a: Self, b: Self) -> Option<Order>;
}

macro_rules! native {
    ($bits:ty, $float:ty, $frac_bits:literal) => {
        impl Native for $bits {
            #[inline(always)]
            fn native_add(env: &Env, a: Self, b: Self) -> Option<Self> {
                let sum = (<$float>::from_bits(a) + <$float>::from_bits(b)).to_bits();
                // A sum is zero only if it is exactly so.
                let good = env.native && plain(a) && plain(b) && (normal(sum) || sum << 1 == 0);
                good.then_some(sum)
            }

            #[inline(always)]
            fn native_sub(env: &Env, a: Self, b: Self) -> Option<Self> {
                let difference = (<$float>::from_bits(a) - <$float>::from_bits(b)).to_bits();
                let good = env.native
                    && plain(a)
                    && plain(b)
                    && (normal(difference) || difference << 1 == 0);
                good.then_some(difference)
            }

            #[inline(always)]
            fn native_mul(env: &Env, a: Self, b: Self) -> Option<Self> {
                let product = (<$float>::from_bits(a) * <$float>::from_bits(b)).to_bits();
                let exact_zero = a << 1 == 0 || b << 1 == 0;
                let good = env.native && plain(a) && plain(b) && (normal(product) || exact_zero);
                good.then_some(product)
            }

            #[inline(always)]
            fn native_div(env: &Env, a: Self, b: Self) -> Option<Self> {
                let quotient = (<$float>::from_bits(a) / <$float>::from_bits(b)).to_bits();
                let good = env.native && plain(a) && plain(b) && normal(quotient);
                good.then_some(quotient)
            }

            #[inline(always)]
            fn native_multiply_add(
                env: &Env,
                a: Self,
                b: Self,
                c: Self,
                negate_product: bool,
                negate_addend: bool,
            ) -> Option<Self> {
                if !(env.native && plain(a) && plain(b) && plain(c)) {
                    return None;
                }
                let sign = |negate: bool, value: $float| if negate { -value } else { value };
                let (a, b, c) =
                    (<$float>::from_bits(a), <$float>::from_bits(b), <$float>::from_bits(c));
                let result = sign(negate_product, a).mul_add(b, sign(negate_addend, c)).to_bits();
                normal(result).then_some(result)
            }

            #[inline(always)]
            fn native_sqrt(env: &Env, a: Self) -> Option<Self> {
                let root = <$float>::from_bits(a).sqrt().to_bits();
                (env.native && plain(a) && normal(root)).then_some(root)
            }

            #[inline(always)]
            fn native_compare(a: Self, b: Self) -> Option<Order> {
                if !plain(a) || !plain(b) {
                    return None;
                }
                let (a, b) = (<$float>::from_bits(a), <$float>::from_bits(b));
                Some(if a < b {
                    Order::Less
                } else if a > b {
                    Order::Greater
                } else {
                    Order::Equal
                })
            }
        }

        impl Plain for $bits {
            #[inline(always)]
            fn is_normal_result(self) -> bool {
                let exp = self >> $frac_bits & (2 * Self::EMAX as Self + 1);
                exp.wrapping_sub(2) < 2 * Self::EMAX as Self - 1
            }

            #[inline(always)]
            fn is_plain_operand(self) -> bool {
                let exp = self >> $frac_bits & (2 * Self::EMAX as Self + 1);
                exp.wrapping_sub(1) < 2 * Self::EMAX as Self || self << 1 == 0
            }
        }
    };
}

/// Questions about encodings that the fast path asks.
trait Plain: Copy {
    /// Normal, and not of the smallest exponent.
    fn is_normal_result(self) -> bool;
    /// Normal or zero.
    fn is_plain_operand(self) -> bool;
}

#[inline(always)]
fn normal<T: Plain>(value: T) -> bool {
    value.is_normal_result()
}

#[inline(always)]
fn plain<T: Plain>(value: T) -> bool {
    value.is_plain_operand()
}

native!(u32, f32, 23);
native!(u64, f64, 52);

/// The host has no double extended format that is portable.
impl Native for F80 {
    fn native_add(_: &Env, _: Self, _: Self) -> Option<Self> {
        None
    }

    fn native_sub(_: &Env, _: Self, _: Self) -> Option<Self> {
        None
    }

    fn native_mul(_: &Env, _: Self, _: Self) -> Option<Self> {
        None
    }

    fn native_div(_: &Env, _: Self, _: Self) -> Option<Self> {
        None
    }

    fn native_multiply_add(_: &Env, _: Self, _: Self, _: Self, _: bool, _: bool) -> Option<Self> {
        None
    }

    fn native_sqrt(_: &Env, _: Self) -> Option<Self> {
        None
    }

    fn native_compare(_: Self, _: Self) -> Option<Order> {
        None
    }
}
