//! Floating-point arithmetic in integers: binary16 (to convert only), binary32, binary64 and x87's double
//! extended format.
//!
//! Follows IEEE 754-2008 as the Intel SDM (volume 1, chapters 4, 8 and 11) and the AMD APM (volume 1,
//! chapters 4 and 6) make it concrete: tininess is found after rounding, the denormal-operand exception
//! exists, NaNs propagate by the rules of the unit (x87 or SSE), and unmasked exceptions give what the
//! unit leaves behind.
//!
//! A number is taken apart into a [`Num`], computed on exactly or with a sticky last bit in 128 bits,
//! and put together by [`round_pack`], the one place that rounds. binary32 and binary64 are held as
//! their bit patterns in `u32` and `u64`.
//!
//! Invariants: operations never touch global state, never panic, and report through [`Env::flags`]. A
//! result is meaningless when `Env::faults_before_result` says so.

mod arith;
mod convert;
mod native;
#[cfg(all(test, target_arch = "x86_64"))]
pub(crate) mod tests;

pub(crate) use arith::{
    Order, Quotient, add, compare, div, max, min, mul, multiply_add, remainder, scale, sqrt, sub,
};
pub(crate) use convert::{
    Integer, convert, extract_exponent, from_int, round_to_integral, to_int, widen, widen_operand,
};
pub(crate) use native::Native;

/// Exception flags, with the bit numbers of MXCSR and of the x87 status word.
#[allow(missing_docs)]
pub(crate) mod flag {
    pub(crate) const IE: u8 = 1;
    pub(crate) const DE: u8 = 2;
    pub(crate) const ZE: u8 = 4;
    pub(crate) const OE: u8 = 8;
    pub(crate) const UE: u8 = 16;
    pub(crate) const PE: u8 = 32;
    /// Those found before there is a result; unmasked, they suppress it.
    pub(crate) const BEFORE: u8 = IE | DE | ZE;
    pub(crate) const ALL: u8 = 0x3f;
}

/// Rounding modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Round {
    /// To nearest, ties to even.
    Nearest,
    /// Towards minus infinity.
    Down,
    /// Towards plus infinity.
    Up,
    /// Towards zero.
    Zero,
}

impl Round {
    /// Decodes the RC field as x87's control word, MXCSR and SSE4.1's immediates have it.
    pub(crate) const fn from_rc(rc: u32) -> Self {
        match rc & 3 {
            0 => Self::Nearest,
            1 => Self::Down,
            2 => Self::Up,
            _ => Self::Zero,
        }
    }
}

/// The unit whose rules apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    X87,
    Sse,
}

/// What an operation depends on beside its operands, and what it reports beside its result.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Env {
    pub(crate) unit: Unit,
    pub(crate) round: Round,
    /// Exceptions that are masked.
    pub(crate) masks: u8,
    /// Denormal operands are taken as zeros (MXCSR.DAZ).
    pub(crate) daz: bool,
    /// Tiny results become zeros while underflow is masked (MXCSR.FTZ).
    pub(crate) ftz: bool,
    /// Bits of the significand of double extended results (x87's precision control).
    pub(crate) precision: u32,
    /// The host's arithmetic gives the same result and all that it would flag is masked and set
    /// already.
    pub(crate) native: bool,
    /// An operand was a denormal before it was widened (see [`widen_operand`]).
    pub(crate) denormal_source: bool,
    /// Exceptions raised so far.
    pub(crate) flags: u8,
    /// Those of them that steps raised which are done (see [`Self::settle`]).
    settled: u8,
    /// The last result was rounded away from zero (x87's C1).
    pub(crate) rounded_up: bool,
}

impl Env {
    /// What MXCSR says.
    #[inline]
    pub(crate) fn sse(mxcsr: u32) -> Self {
        // Round to nearest, everything masked, inexact flagged already, no DAZ. FTZ does not matter,
        // since the fast path refuses tiny results.
        const RELEVANT: u32 = 0x7fe0;
        Self {
            unit: Unit::Sse,
            round: Round::from_rc(mxcsr >> 13),
            masks: (mxcsr >> 7) as u8 & flag::ALL,
            daz: mxcsr & 0x40 != 0,
            ftz: mxcsr & 0x8000 != 0,
            precision: 64,
            native: mxcsr & RELEVANT == 0x1fa0,
            denormal_source: false,
            flags: 0,
            settled: 0,
            rounded_up: false,
        }
    }

    /// What the x87 control word says.
    pub(crate) fn x87(control: u16) -> Self {
        Self {
            unit: Unit::X87,
            round: Round::from_rc(u32::from(control) >> 10),
            masks: control as u8 & flag::ALL,
            daz: false,
            ftz: false,
            precision: match control >> 8 & 3 {
                0 => 24,
                2 => 53,
                _ => 64,
            },
            native: false,
            denormal_source: false,
            flags: 0,
            settled: 0,
            rounded_up: false,
        }
    }

    /// The same with results in full precision whatever the control word says.
    pub(crate) fn full_precision(mut self) -> Self {
        self.precision = 64;
        self
    }

    /// The same with another rounding mode.
    pub(crate) fn rounding(mut self, round: Round) -> Self {
        self.round = round;
        self.native = false;
        self
    }

    #[inline]
    pub(crate) fn raise(&mut self, flags: u8) {
        self.flags |= flags;
    }

    /// Flags raised that are not masked.
    pub(crate) fn unmasked(&self) -> u8 {
        self.flags & !self.masks
    }

    /// The flags that SSE reports: if any lane faults before it has a result, nothing is known of
    /// the results of others.
    pub(crate) fn sse_flags(&self) -> u8 {
        let known = if self.faults_before_result() { flag::BEFORE } else { flag::ALL };
        self.flags & known | self.settled
    }

    /// Ends a step of an instruction that has several. Says whether to go on: no exception of the step
    /// is unmasked.
    pub(crate) fn settle(&mut self) -> bool {
        let go_on = self.unmasked() == 0;
        if go_on {
            self.settled = self.flags;
        }
        go_on
    }

    /// An unmasked exception was found before there was a result.
    pub(crate) fn faults_before_result(&self) -> bool {
        self.unmasked() & flag::BEFORE != 0
    }

    /// Raises the invalid-operation exception and gives its masked result.
    pub(crate) fn invalid<F: Format>(&mut self) -> F {
        self.raise(flag::IE);
        F::INDEFINITE
    }
}

/// A floating-point format.
pub(crate) trait Format: Copy + PartialEq + std::fmt::Debug {
    /// Bits of the significand, the integer bit included.
    const PRECISION: u32;
    /// Largest exponent, which is also the bias.
    const EMAX: i32;
    /// Smallest exponent of normal numbers.
    const EMIN: i32 = 1 - Self::EMAX;
    /// The NaN that masked invalid operations give.
    const INDEFINITE: Self;

    /// Takes the number apart.
    fn unpack(self) -> Num;

    /// Makes a number from its fields: `biased` is the exponent field, `sig` the significand with its
    /// integer bit (if any) at bit 63; low bits beyond the precision are dropped.
    fn pack(sign: bool, biased: u32, sig: u64) -> Self;

    /// Bits that results are rounded to.
    fn result_precision(env: &Env) -> u32 {
        let _ = env;
        Self::PRECISION
    }

    /// Zero with a sign.
    fn zero(sign: bool) -> Self {
        Self::pack(sign, 0, 0)
    }

    /// Infinity with a sign.
    fn infinity(sign: bool) -> Self {
        Self::pack(sign, 2 * Self::EMAX as u32 + 1, 1 << 63)
    }

    /// The quiet NaN made of `num`, a NaN.
    fn quiet(num: &Num) -> Self {
        Self::pack(num.sign, 2 * Self::EMAX as u32 + 1, num.sig | 3 << 62)
    }
}

impl Format for u32 {
    const PRECISION: u32 = 24;
    const EMAX: i32 = 127;
    const INDEFINITE: Self = 0xffc0_0000;

    #[inline]
    fn unpack(self) -> Num {
        let frac = u64::from(self & 0x7f_ffff) << 40;
        Num::from_fields::<Self>(self >> 31 != 0, self >> 23 & 0xff, frac)
    }

    #[inline]
    fn pack(sign: bool, biased: u32, sig: u64) -> Self {
        u32::from(sign) << 31 | biased << 23 | (sig >> 40) as u32 & 0x7f_ffff
    }
}

impl Format for u16 {
    const PRECISION: u32 = 11;
    const EMAX: i32 = 15;
    const INDEFINITE: Self = 0xfe00;

    fn unpack(self) -> Num {
        let frac = u64::from(self & 0x3ff) << 53;
        Num::from_fields::<Self>(self >> 15 != 0, u32::from(self >> 10 & 0x1f), frac)
    }

    fn pack(sign: bool, biased: u32, sig: u64) -> Self {
        u16::from(sign) << 15 | (biased as u16) << 10 | (sig >> 53) as u16 & 0x3ff
    }
}

impl Format for u64 {
    const PRECISION: u32 = 53;
    const EMAX: i32 = 1023;
    const INDEFINITE: Self = 0xfff8_0000_0000_0000;

    #[inline]
    fn unpack(self) -> Num {
        let frac = (self & 0xf_ffff_ffff_ffff) << 11;
        Num::from_fields::<Self>(self >> 63 != 0, (self >> 52) as u32 & 0x7ff, frac)
    }

    #[inline]
    fn pack(sign: bool, biased: u32, sig: u64) -> Self {
        u64::from(sign) << 63 | u64::from(biased) << 52 | sig >> 11 & 0xf_ffff_ffff_ffff
    }
}

/// A number in x87's double extended format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct F80 {
    /// The significand with its explicit integer bit.
    pub(crate) sig: u64,
    /// Sign (bit 15) and biased exponent.
    pub(crate) exp: u16,
}

impl F80 {
    pub(crate) const ZERO: Self = Self { sig: 0, exp: 0 };
    pub(crate) const ONE: Self = Self { sig: 1 << 63, exp: 0x3fff };

    /// From the 80 low bits.
    pub(crate) const fn from_bits(bits: u128) -> Self {
        Self { sig: bits as u64, exp: (bits >> 64) as u16 }
    }

    /// In the 80 low bits.
    pub(crate) const fn to_bits(self) -> u128 {
        (self.exp as u128) << 64 | self.sig as u128
    }

    pub(crate) const fn sign(self) -> bool {
        self.exp >> 15 != 0
    }
}

impl Format for F80 {
    const PRECISION: u32 = 64;
    const EMAX: i32 = 16383;
    const INDEFINITE: Self = Self { sig: 3 << 62, exp: 0xffff };

    fn unpack(self) -> Num {
        let (sign, exp, sig) = (self.sign(), u32::from(self.exp & 0x7fff), self.sig);
        let integer_bit = sig >> 63 != 0;
        match exp {
            0 if sig == 0 => Num::zero(sign),
            0 => Num::denormal::<Self>(sign, sig),
            _ if !integer_bit => Num { sign, class: Class::Unsupported, exp: 0, sig },
            _ => Num::from_fields::<Self>(sign, exp, sig & !(1 << 63)),
        }
    }

    fn pack(sign: bool, biased: u32, sig: u64) -> Self {
        Self { sig, exp: u16::from(sign) << 15 | biased as u16 }
    }

    fn result_precision(env: &Env) -> u32 {
        env.precision
    }
}

/// Kinds of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Zero,
    Normal,
    Denormal,
    Infinity,
    QuietNan,
    SignallingNan,
    /// x87 encodings that no operation accepts: unnormals, pseudo-infinities, pseudo-NaNs.
    Unsupported,
}

/// A number taken apart: for normals and denormals ±`sig` / 2^63 * 2^`exp` with bit 63 of `sig` set;
/// for NaNs `sig` is the significand left-aligned, its quiet bit at bit 62.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Num {
    pub(crate) sign: bool,
    pub(crate) class: Class,
    pub(crate) exp: i32,
    pub(crate) sig: u64,
}

impl Num {
    fn zero(sign: bool) -> Self {
        Self { sign, class: Class::Zero, exp: 0, sig: 0 }
    }

    fn denormal<F: Format>(sign: bool, sig: u64) -> Self {
        let shift = sig.leading_zeros();
        Self { sign, class: Class::Denormal, exp: F::EMIN - shift as i32, sig: sig << shift }
    }

    /// From the fields of an encoding; `frac` has no integer bit and is aligned below bit 63.
    #[inline]
    fn from_fields<F: Format>(sign: bool, biased: u32, frac: u64) -> Self {
        let all_ones = 2 * F::EMAX as u32 + 1;
        let sig = frac | 1 << 63;
        if biased == all_ones {
            let class = match frac {
                0 => Class::Infinity,
                _ if frac >> 62 != 0 => Class::QuietNan,
                _ => Class::SignallingNan,
            };
            Self { sign, class, exp: 0, sig }
        } else if biased != 0 {
            Self { sign, class: Class::Normal, exp: biased as i32 - F::EMAX, sig }
        } else if frac != 0 {
            Self::denormal::<F>(sign, frac)
        } else {
            Self::zero(sign)
        }
    }

    pub(crate) fn is_nan(&self) -> bool {
        matches!(self.class, Class::QuietNan | Class::SignallingNan)
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub(crate) fn is_quiet_nan(&self) -> bool {
        self.class == Class::QuietNan
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub(crate) fn is_infinity(&self) -> bool {
        self.class == Class::Infinity
    }

    /// Normal or denormal: finite, and not zero.
    pub(crate) fn is_finite_nonzero(&self) -> bool {
        matches!(self.class, Class::Normal | Class::Denormal)
    }
}

/// Takes an operand apart, under DAZ.
#[inline]
fn operand<F: Format>(env: &Env, value: F) -> Num {
    let num = value.unpack();
    if env.daz && num.class == Class::Denormal { Num::zero(num.sign) } else { num }
}

/// Raises the denormal-operand exception if one of the operands calls for it.
fn note_denormal(env: &mut Env, operands: &[&Num]) {
    if env.denormal_source || operands.iter().any(|n| n.class == Class::Denormal) {
        env.raise(flag::DE);
    }
}

/// The result of an operation on one operand that has no ordinary value.
fn special_unary<F: Format>(env: &mut Env, a: &Num) -> Option<F> {
    match a.class {
        Class::Unsupported => Some(env.invalid()),
        Class::SignallingNan => {
            env.raise(flag::IE);
            Some(F::quiet(a))
        }
        Class::QuietNan => Some(F::quiet(a)),
        _ => None,
    }
}

/// The result of an operation on two operands of which one has no ordinary value.
fn special_binary<F: Format>(env: &mut Env, a: &Num, b: &Num) -> Option<F> {
    if a.class == Class::Unsupported || b.class == Class::Unsupported {
        return Some(env.invalid());
    }
    if !a.is_nan() && !b.is_nan() {
        return None;
    }
    let signalling = |n: &Num| n.class == Class::SignallingNan;
    if signalling(a) || signalling(b) {
        env.raise(flag::IE);
    }
    let first = match (a.is_nan(), b.is_nan(), env.unit) {
        (true, false, _) | (true, true, Unit::Sse) => true,
        (false, ..) => false,
        // x87: a quiet NaN before a signalling one, then the larger significand, then the positive.
        (true, true, Unit::X87) if signalling(a) != signalling(b) => signalling(b),
        (true, true, Unit::X87) if a.sig != b.sig => a.sig > b.sig,
        (true, true, Unit::X87) => !a.sign,
    };
    Some(F::quiet(if first { a } else { b }))
}

/// Shifts right; bits that fall out leave the lowest bit set.
fn shift_right_sticky(value: u128, count: u32) -> u128 {
    match count {
        0 => value,
        1..=127 => value >> count | u128::from(value << (128 - count) != 0),
        _ => u128::from(value != 0),
    }
}

/// A significand after rounding.
struct Rounded {
    /// Left-aligned.
    sig: u64,
    /// Rounding carried out of the top: the exponent is one more.
    carry: bool,
    inexact: bool,
    up: bool,
}

/// Rounds the 128-bit significand to its `precision` upper bits.
fn round_significand(sig: u128, precision: u32, round: Round, sign: bool) -> Rounded {
    let dropped = 128 - precision;
    let rest = sig & ((1 << dropped) - 1);
    let half = 1 << (dropped - 1);
    let kept = sig >> dropped;
    let up = match round {
        Round::Nearest => rest > half || rest == half && kept & 1 != 0,
        Round::Down => sign && rest != 0,
        Round::Up => !sign && rest != 0,
        Round::Zero => false,
    };
    let kept = kept + u128::from(up);
    let carry = kept >> precision != 0;
    let sig = if carry { 1 << 63 } else { (kept as u64) << (64 - precision) };
    Rounded { sig, carry, inexact: rest != 0, up }
}

/// What x87 adds to or takes from the exponent of results whose underflow or overflow is not masked.
const X87_BIAS_ADJUST: i32 = 0x6000;

/// Rounds ±`sig` / 2^127 * 2^`exp` (bit 127 of `sig` set, its lowest bit sticky) and raises what
/// rounding raises.
fn round_pack<F: Format>(env: &mut Env, sign: bool, exp: i32, sig: u128) -> F {
    if env.faults_before_result() {
        return F::zero(sign);
    }
    let precision = F::result_precision(env);
    let rounded = round_significand(sig, precision, env.round, sign);
    let rounded_exp = exp + i32::from(rounded.carry);
    if rounded_exp > F::EMAX {
        return overflow(env, sign, rounded_exp, &rounded);
    }
    if rounded_exp < F::EMIN {
        return underflow(env, sign, exp, sig, &rounded);
    }
    note_rounding(env, &rounded);
    F::pack(sign, (rounded_exp + F::EMAX) as u32, rounded.sig)
}

fn note_rounding(env: &mut Env, rounded: &Rounded) {
    env.rounded_up = rounded.up;
    if rounded.inexact {
        env.raise(flag::PE);
    }
}

/// What unmasked overflow and underflow leave behind. SSE and x87's stores to memory keep their
/// destination; x87 registers get the number with another exponent, or `beyond` if FSCALE went so far
/// that not even that can be expressed.
fn unmasked_response<F: Format>(
    env: &mut Env,
    sign: bool,
    biased: i32,
    rounded: &Rounded,
    beyond: F,
) -> F {
    if env.unit == Unit::X87 && F::PRECISION != F80::PRECISION {
        return beyond;
    }
    note_rounding(env, rounded);
    if biased > 0 && biased <= 2 * F::EMAX {
        return F::pack(sign, biased as u32, rounded.sig);
    }
    if env.unit == Unit::X87 {
        env.raise(flag::PE);
        env.rounded_up = beyond != F::zero(sign);
    }
    beyond
}

fn overflow<F: Format>(env: &mut Env, sign: bool, exp: i32, rounded: &Rounded) -> F {
    env.raise(flag::OE);
    if env.masks & flag::OE == 0 {
        let biased = exp - X87_BIAS_ADJUST + F::EMAX;
        return unmasked_response(env, sign, biased, rounded, F::infinity(sign));
    }
    env.raise(flag::PE);
    let to_infinity = match env.round {
        Round::Nearest => true,
        Round::Down => sign,
        Round::Up => !sign,
        Round::Zero => false,
    };
    env.rounded_up = to_infinity;
    if to_infinity {
        F::infinity(sign)
    } else {
        F::pack(sign, 2 * F::EMAX as u32, !0 << (64 - F::result_precision(env)))
    }
}

fn underflow<F: Format>(env: &mut Env, sign: bool, exp: i32, sig: u128, rounded: &Rounded) -> F {
    if env.masks & flag::UE == 0 {
        env.raise(flag::UE);
        let biased = exp + i32::from(rounded.carry) + X87_BIAS_ADJUST + F::EMAX;
        return unmasked_response(env, sign, biased, rounded, F::zero(sign));
    }
    if env.ftz {
        env.raise(flag::UE | flag::PE);
        return F::zero(sign);
    }
    let shifted = shift_right_sticky(sig, (F::EMIN - exp) as u32);
    let rounded = round_significand(shifted, F::result_precision(env), env.round, sign);
    if rounded.inexact {
        env.raise(flag::UE);
    }
    note_rounding(env, &rounded);
    F::pack(sign, (rounded.sig >> 63) as u32, rounded.sig)
}
