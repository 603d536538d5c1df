//! Operand sizes as types: [`Int`] is what handlers are generic over.
//!
//! Arithmetic on guest values always wraps, so the trait offers the wrapping forms only.

use std::fmt::Debug;
use std::ops::{BitAnd, BitOr, BitXor, Not};

/// An unsigned integer as wide as an operand: `u8`, `u16`, `u32`, `u64` or `u128`.
pub(crate) trait Int:
    Copy
    + Debug
    + Default
    + Eq
    + Ord
    + Not<Output = Self>
    + BitAnd<Output = Self>
    + BitOr<Output = Self>
    + BitXor<Output = Self>
    + 'static
{
    /// Width in bits.
    const BITS: u32;
    /// Width in bytes.
    const BYTES: usize;
    /// Zero.
    const ZERO: Self;
    /// One.
    const ONE: Self;
    /// All bits set.
    const ONES: Self;
    /// The most significant bit alone.
    const SIGN: Self;

    /// The low bits of `value`; zero-extended for `u128`.
    fn from_u64(value: u64) -> Self;
    /// Zero-extended to 64 bits; the low half of a `u128`.
    fn to_u64(self) -> u64;
    /// Sign-extended to 64 bits; the low half of a `u128`.
    fn sext(self) -> u64;
    /// Zero-extended to 128 bits.
    fn to_u128(self) -> u128;
    /// The low bits of `value`.
    fn from_u128(value: u128) -> Self;
    /// Sum, modulo the width.
    fn wadd(self, other: Self) -> Self;
    /// Difference, modulo the width.
    fn wsub(self, other: Self) -> Self;
    /// Shifted left by `count` modulo the width.
    fn wshl(self, count: u32) -> Self;
    /// Shifted right by `count` modulo the width, filled with zeros.
    fn wshr(self, count: u32) -> Self;
    /// Shifted right by `count` modulo the width, filled with the sign.
    fn wsar(self, count: u32) -> Self;
    /// Rotated left by `count` modulo the width.
    fn rotl(self, count: u32) -> Self;
    /// Number of set bits.
    fn ones(self) -> u32;
    /// Number of zeros below the lowest set bit; the width for zero.
    fn tzcnt(self) -> u32;
    /// Number of zeros above the highest set bit; the width for zero.
    fn lzcnt(self) -> u32;
    /// Bytes in reverse order.
    fn bswap(self) -> Self;
    /// Reads a little-endian value from the first bytes of `bytes`, which must be long enough.
    fn from_le(bytes: &[u8]) -> Self;
    /// Writes the value little-endian to the first bytes of `bytes`, which must be long enough.
    fn to_le(self, bytes: &mut [u8]);

    /// Whether the most significant bit is set.
    #[inline(always)]
    fn is_negative(self) -> bool {
        self & Self::SIGN != Self::ZERO
    }

    /// Bit `index` modulo the width.
    #[inline(always)]
    fn bit(self, index: u32) -> bool {
        self.wshr(index) & Self::ONE != Self::ZERO
    }

    /// One or zero.
    #[inline(always)]
    fn from_bool(value: bool) -> Self {
        if value { Self::ONE } else { Self::ZERO }
    }
}

macro_rules! int {
    ($($unsigned:ty, $signed:ty;)*) => {$(
        impl Int for $unsigned {
            const BITS: u32 = <$unsigned>::BITS;
            const BYTES: usize = size_of::<$unsigned>();
            const ZERO: Self = 0;
            const ONE: Self = 1;
            const ONES: Self = !0;
            const SIGN: Self = 1 << (<$unsigned>::BITS - 1);

            #[inline(always)]
            fn from_u64(value: u64) -> Self {
                value as Self
            }
            #[inline(always)]
            fn to_u64(self) -> u64 {
                self as u64
            }
            #[inline(always)]
            fn sext(self) -> u64 {
                self as $signed as i64 as u64
            }
            #[inline(always)]
            fn to_u128(self) -> u128 {
                self as u128
            }
            #[inline(always)]
            fn from_u128(value: u128) -> Self {
                value as Self
            }
            #[inline(always)]
            fn wadd(self, other: Self) -> Self {
                self.wrapping_add(other)
            }
            #[inline(always)]
            fn wsub(self, other: Self) -> Self {
                self.wrapping_sub(other)
            }
            #[inline(always)]
            fn wshl(self, count: u32) -> Self {
                self.wrapping_shl(count)
            }
            #[inline(always)]
            fn wshr(self, count: u32) -> Self {
                self.wrapping_shr(count)
            }
            #[inline(always)]
            fn wsar(self, count: u32) -> Self {
                (self as $signed).wrapping_shr(count) as Self
            }
            #[inline(always)]
            fn rotl(self, count: u32) -> Self {
                self.rotate_left(count)
            }
            #[inline(always)]
            fn ones(self) -> u32 {
                self.count_ones()
            }
            #[inline(always)]
            fn tzcnt(self) -> u32 {
                self.trailing_zeros()
            }
            #[inline(always)]
            fn lzcnt(self) -> u32 {
                self.leading_zeros()
            }
            #[inline(always)]
            fn bswap(self) -> Self {
                self.swap_bytes()
            }
            #[inline(always)]
            fn from_le(bytes: &[u8]) -> Self {
                let mut raw = [0; size_of::<$unsigned>()];
                raw.copy_from_slice(&bytes[..size_of::<$unsigned>()]);
                Self::from_le_bytes(raw)
            }
            #[inline(always)]
            fn to_le(self, bytes: &mut [u8]) {
                bytes[..size_of::<$unsigned>()].copy_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}

int! {
    u8, i8;
    u16, i16;
    u32, i32;
    u64, i64;
    u128, i128;
}
