//! Packed integer arithmetic on 128-bit values, as pure functions.
//!
//! MMX instructions use the same functions on values whose upper half is zero, and drop the upper half
//! of the result; where the width matters, it is a parameter in bytes (8 or 16).

/// An integer type as a lane of a vector. Lane 0 is in the lowest bits.
pub(super) trait Lane: Copy + PartialOrd {
    const BITS: u32;
    /// All bits set.
    const ONES: Self;
    const ZERO: Self;
    /// The low bits of `bits`.
    fn from_bits(bits: u128) -> Self;
    /// Zero-extended.
    fn to_bits(self) -> u128;
    /// Its value; lanes of 64 bits unsigned are not used this way.
    fn to_i64(self) -> i64;
    /// The value nearest to `value` that fits.
    fn saturate(value: i64) -> Self;
    /// Applies `f` to each lane.
    fn map(a: u128, f: impl Fn(Self) -> Self) -> u128;
    /// Applies `f` to each pair of lanes.
    fn zip(a: u128, b: u128, f: impl Fn(Self, Self) -> Self) -> u128;
    fn wrapping_neg(self) -> Self;
}

macro_rules! lane {
    ($($t:ident)*) => {$(
        impl Lane for $t {
            const BITS: u32 = <$t>::BITS;
            const ONES: Self = !0;
            const ZERO: Self = 0;

            #[inline(always)]
            fn from_bits(bits: u128) -> Self {
                bits as Self
            }

            #[inline(always)]
            fn to_bits(self) -> u128 {
                // Through the unsigned type of the same width, so that the sign is not extended.
                (self as i128 as u128) & (u128::MAX >> (128 - <$t>::BITS))
            }

            #[inline(always)]
            fn to_i64(self) -> i64 {
                self as i64
            }

            #[inline(always)]
            fn saturate(value: i64) -> Self {
                value.clamp(<$t>::MIN as i64, (<$t>::MAX as u64).min(i64::MAX as u64) as i64) as Self
            }

            #[inline(always)]
            fn map(a: u128, f: impl Fn(Self) -> Self) -> u128 {
                Self::zip(a, 0, |x, _| f(x))
            }

            #[inline(always)]
            fn zip(a: u128, b: u128, f: impl Fn(Self, Self) -> Self) -> u128 {
                const SIZE: usize = size_of::<$t>();
                let (a, b) = (a.to_le_bytes(), b.to_le_bytes());
                let mut result = [0; 16];
                for ((r, x), y) in
                    result.chunks_exact_mut(SIZE).zip(a.chunks_exact(SIZE)).zip(b.chunks_exact(SIZE))
                {
                    let (mut p, mut q) = ([0; SIZE], [0; SIZE]);
                    p.copy_from_slice(x);
                    q.copy_from_slice(y);
                    let value = f(<$t>::from_le_bytes(p), <$t>::from_le_bytes(q));
                    r.copy_from_slice(&value.to_le_bytes());
                }
                u128::from_le_bytes(result)
            }

            #[inline(always)]
            fn wrapping_neg(self) -> Self {
                <$t>::wrapping_neg(self)
            }
        }
    )*};
}
lane!(u8 i8 u16 i16 u32 i32 u64 i64);

/// Lane `index` of `v`.
#[inline(always)]
pub(super) fn get<T: Lane>(v: u128, index: u32) -> T {
    T::from_bits(v >> (index * T::BITS))
}

/// `v` with lane `index` replaced.
#[inline(always)]
pub(super) fn put<T: Lane>(v: u128, index: u32, lane: T) -> u128 {
    let shift = index * T::BITS;
    v & !(T::ONES.to_bits() << shift) | lane.to_bits() << shift
}

/// A vector of the lanes that `f` gives by index, within `width` bytes.
#[inline(always)]
pub(super) fn build<T: Lane>(width: u32, f: impl Fn(u32) -> T) -> u128 {
    (0..width * 8 / T::BITS).fold(0, |v, i| v | f(i).to_bits() << (i * T::BITS))
}

/// All ones where `f` holds, else zero.
#[inline(always)]
pub(super) fn compare<T: Lane>(a: u128, b: u128, f: impl Fn(T, T) -> bool) -> u128 {
    T::zip(a, b, |x, y| if f(x, y) { T::ONES } else { T::ZERO })
}

/// PADDS and its like: exact sum (or difference), saturated.
#[inline(always)]
pub(super) fn saturating<T: Lane>(a: u128, b: u128, f: impl Fn(i64, i64) -> i64) -> u128 {
    T::zip(a, b, |x, y| T::saturate(f(x.to_i64(), y.to_i64())))
}

/// PMULHW and its like: bits of the product from `shift` up.
#[inline(always)]
pub(super) fn multiply_high<T: Lane>(a: u128, b: u128, shift: u32) -> u128 {
    T::zip(a, b, |x, y| T::from_bits(((x.to_i64() * y.to_i64()) >> shift) as u128))
}

/// PMULHRSW.
pub(super) fn multiply_round(a: u128, b: u128) -> u128 {
    i16::zip(a, b, |x, y| ((((i32::from(x) * i32::from(y)) >> 14) + 1) >> 1) as i16)
}

/// PACKSSWB and its like: lanes of `a`, then of `b`, saturated to half their width.
pub(super) fn pack<S: Lane, D: Lane>(a: u128, b: u128, width: u32) -> u128 {
    let half = width * 8 / S::BITS;
    build::<D>(width, |i| {
        let lane: S = if i < half { get(a, i) } else { get(b, i - half) };
        D::saturate(lane.to_i64())
    })
}

/// PUNPCKL and PUNPCKH: lanes of the lower or upper halves, in turns.
#[inline(always)]
pub(super) fn interleave<T: Lane>(a: u128, b: u128, width: u32, high: bool) -> u128 {
    let first = if high { width * 4 / T::BITS } else { 0 };
    build::<T>(width, |i| get(if i % 2 == 0 { a } else { b }, first + i / 2))
}

/// PHADD, PHSUB: `f` on neighbours of `a`, then of `b`.
pub(super) fn horizontal<T: Lane>(a: u128, b: u128, width: u32, f: impl Fn(T, T) -> T) -> u128 {
    let half = width * 4 / T::BITS;
    build::<T>(width, |i| {
        let (v, i) = if i < half { (a, i) } else { (b, i - half) };
        f(get(v, 2 * i), get(v, 2 * i + 1))
    })
}

/// PMADDWD.
pub(super) fn multiply_add_words(a: u128, b: u128) -> u128 {
    let product = |i| i32::from(get::<i16>(a, i)) * i32::from(get::<i16>(b, i));
    build::<i32>(16, |i| product(2 * i).wrapping_add(product(2 * i + 1)))
}

/// PMADDUBSW: unsigned bytes of `a` by signed bytes of `b`.
pub(super) fn multiply_add_bytes(a: u128, b: u128) -> u128 {
    let product = |i| i64::from(get::<u8>(a, i)) * i64::from(get::<i8>(b, i));
    build::<i16>(16, |i| i16::saturate(product(2 * i) + product(2 * i + 1)))
}

/// PSADBW: sums of absolute differences in each half.
pub(super) fn sum_differences(a: u128, b: u128) -> u128 {
    build::<u64>(16, |half| {
        (0..8)
            .map(|i| get::<u8>(a, 8 * half + i).abs_diff(get(b, 8 * half + i)))
            .map(u64::from)
            .sum()
    })
}

/// MPSADBW.
pub(super) fn multiple_sum_differences(a: u128, b: u128, imm: u8) -> u128 {
    let (a, b) = (a >> (u32::from(imm >> 2 & 1) * 32), b >> (u32::from(imm & 3) * 32));
    build::<u16>(16, |i| (0..4).map(|k| u16::from(get::<u8>(a, i + k).abs_diff(get(b, k)))).sum())
}

/// PSIGN.
pub(super) fn sign<T: Lane>(a: u128, b: u128) -> u128 {
    T::zip(a, b, |x, y| {
        if y < T::ZERO {
            x.wrapping_neg()
        } else if y == T::ZERO {
            T::ZERO
        } else {
            x
        }
    })
}

/// PSHUFB.
pub(super) fn shuffle_bytes(a: u128, b: u128, width: u32) -> u128 {
    let source = a.to_le_bytes();
    let mask = width as u8 - 1;
    u8::map(b, |index| if index & 0x80 != 0 { 0 } else { source[usize::from(index & mask)] })
}

/// PSHUFD, PSHUFW: lanes of the low `4 * BITS` bits picked by pairs of bits.
#[inline(always)]
pub(super) fn shuffle4<T: Lane>(v: u128, imm: u8) -> u128 {
    (0..4).fold(0, |r, i| r | get::<T>(v, u32::from(imm >> (2 * i) & 3)).to_bits() << (i * T::BITS))
}

/// PALIGNR: the pair `a:b` shifted right by bytes.
pub(super) fn align_right(a: u128, b: u128, width: u32, imm: u8) -> u128 {
    let shift = u32::from(imm).min(2 * width) * 8;
    let bits = width * 8;
    let low = b.checked_shr(shift).unwrap_or(0);
    let high = if shift < bits {
        a.checked_shl(bits - shift).unwrap_or(0)
    } else {
        a.checked_shr(shift - bits).unwrap_or(0)
    };
    low | high
}

/// PMOVMSKB: the top bits of all bytes.
#[inline(always)]
pub(super) fn byte_signs(v: u128) -> u64 {
    // In each half, the multiplication brings the eight bits together in the top byte.
    let half = |v: u64| (v >> 7 & 0x0101_0101_0101_0101).wrapping_mul(0x0102_0408_1020_4080) >> 56;
    half(v as u64) | half((v >> 64) as u64) << 8
}

/// MOVMSKPS, MOVMSKPD: the top bits of all lanes.
pub(super) fn lane_signs<T: Lane>(v: u128) -> u64 {
    (0..128 / T::BITS)
        .fold(0, |mask, i| mask | ((v >> (i * T::BITS + T::BITS - 1)) as u64 & 1) << i)
}

/// Shifts left each lane; counts of the lane's width and more give zeros.
#[inline(always)]
pub(super) fn shift_left<T: Lane>(v: u128, count: u64) -> u128 {
    if count >= u64::from(T::BITS) {
        return 0;
    }
    T::map(v, |x| T::from_bits(x.to_bits() << count))
}

/// Shifts right each lane, with zeros.
#[inline(always)]
pub(super) fn shift_right<T: Lane>(v: u128, count: u64) -> u128 {
    if count >= u64::from(T::BITS) {
        return 0;
    }
    T::map(v, |x| T::from_bits(x.to_bits() >> count))
}

/// Shifts right each lane, a signed type, with its sign.
#[inline(always)]
pub(super) fn shift_right_sign<T: Lane>(v: u128, count: u64) -> u128 {
    let count = count.min(u64::from(T::BITS) - 1);
    T::map(v, |x| T::from_bits((x.to_i64() >> count) as u128))
}

/// PMOVSX and PMOVZX: the low lanes of type `S`, extended to `D`.
#[inline(always)]
pub(super) fn extend<S: Lane, D: Lane>(v: u128) -> u128 {
    build::<D>(16, |i| D::from_bits(get::<S>(v, i).to_i64() as u128))
}

/// PBLENDVB, BLENDVPS, BLENDVPD: lanes of `b` where the mask's top bit is set.
pub(super) fn blend_variable<T: Lane>(a: u128, b: u128, mask: u128) -> u128 {
    build::<T>(16, |i| {
        let pick = mask >> (i * T::BITS + T::BITS - 1) & 1 != 0;
        get(if pick { b } else { a }, i)
    })
}

/// PBLENDW, BLENDPS, BLENDPD: lanes of `b` where the immediate's bit is set.
pub(super) fn blend<T: Lane>(a: u128, b: u128, imm: u8) -> u128 {
    build::<T>(16, |i| get(if imm >> i & 1 != 0 { b } else { a }, i))
}

/// PHMINPOSUW: the least word and its index.
pub(super) fn min_position(v: u128) -> u128 {
    let (value, index) = (0..8).map(|i| (get::<u16>(v, i), i)).min().unwrap_or_default();
    u128::from(value) | u128::from(index) << 16
}

/// PMULUDQ and PMULDQ: even lanes' full products.
pub(super) fn multiply_even<T: Lane>(a: u128, b: u128) -> u128 {
    build::<u64>(16, |i| {
        get::<T>(a, 2 * i).to_i64().wrapping_mul(get::<T>(b, 2 * i).to_i64()) as u64
    })
}
