//! Arithmetic, comparison, remainders and scaling.

use super::{
    Class, Env, F80, Format, Native, Num, Round, flag, note_denormal, operand, round_pack,
    shift_right_sticky, special_binary, special_unary,
};

/// `a + b`.
#[inline]
pub(crate) fn add<F: Native>(env: &mut Env, a: F, b: F) -> F {
    match F::native_add(env, a, b) {
        Some(sum) => sum,
        None => add_soft(env, a, b, false),
    }
}

/// `a - b`.
#[inline]
pub(crate) fn sub<F: Native>(env: &mut Env, a: F, b: F) -> F {
    match F::native_sub(env, a, b) {
        Some(difference) => difference,
        None => add_soft(env, a, b, true),
    }
}

/// `a * b`.
#[inline]
pub(crate) fn mul<F: Native>(env: &mut Env, a: F, b: F) -> F {
    match F::native_mul(env, a, b) {
        Some(product) => product,
        None => mul_soft(env, a, b),
    }
}

/// `a / b`.
#[inline]
pub(crate) fn div<F: Native>(env: &mut Env, a: F, b: F) -> F {
    match F::native_div(env, a, b) {
        Some(quotient) => quotient,
        None => div_soft(env, a, b),
    }
}

/// The square root of `a`.
#[inline]
pub(crate) fn sqrt<F: Native>(env: &mut Env, a: F) -> F {
    match F::native_sqrt(env, a) {
        Some(root) => root,
        None => sqrt_soft(env, a),
    }
}

/// ±(`a * b`) ± `c` with one rounding. NaNs are passed on as they are, whatever is negated.
#[inline]
pub(crate) fn multiply_add<F: Native>(
    env: &mut Env,
    a: F,
    b: F,
    c: F,
    negate_product: bool,
    negate_addend: bool,
) -> F {
    match F::native_multiply_add(env, a, b, c, negate_product, negate_addend) {
        Some(result) => result,
        None => multiply_add_soft(env, [a, b, c], negate_product, negate_addend),
    }
}

#[cold]
#[inline(never)]
fn multiply_add_soft<F: Format>(
    env: &mut Env,
    operands: [F; 3],
    negate_product: bool,
    negate_addend: bool,
) -> F {
    let [a, b, mut c] = operands.map(|value| operand(env, value));
    let invalid_product = matches!(
        (a.class, b.class),
        (Class::Infinity, Class::Zero) | (Class::Zero, Class::Infinity)
    );
    if let Some(nan) = [&a, &b, &c].into_iter().find(|n| n.is_nan()) {
        if [&a, &b, &c].iter().any(|n| n.class == Class::SignallingNan) {
            env.raise(flag::IE);
        }
        return F::quiet(nan);
    }
    if invalid_product {
        return env.invalid();
    }
    let sign = (a.sign != b.sign) != negate_product;
    c.sign ^= negate_addend;
    let infinite = a.class == Class::Infinity || b.class == Class::Infinity;
    if infinite && c.class == Class::Infinity && c.sign != sign {
        return env.invalid();
    }
    note_denormal(env, &[&a, &b, &c]);
    if infinite {
        return F::infinity(sign);
    }
    if c.class == Class::Infinity {
        return F::infinity(c.sign);
    }
    let zero_product = a.class == Class::Zero || b.class == Class::Zero;
    match (zero_product, c.class) {
        (true, Class::Zero) if sign == c.sign => return F::zero(sign),
        (true, Class::Zero) => return F::zero(env.round == Round::Down),
        (true, _) => return round_pack(env, c.sign, c.exp, u128::from(c.sig) << 64),
        _ => {}
    }
    // Exact: significands of 53 bits and less have products that end well above the lowest bit.
    let product = u128::from(a.sig) * u128::from(b.sig);
    let shift = product.leading_zeros();
    let product = (sign, a.exp + b.exp + 1 - shift as i32, product << shift);
    if c.class == Class::Zero {
        return round_pack(env, product.0, product.1, product.2);
    }
    let addend = (c.sign, c.exp, u128::from(c.sig) << 64);
    let (large, small) = if (product.1, product.2) >= (addend.1, addend.2) {
        (product, addend)
    } else {
        (addend, product)
    };
    // One bit of room for the carry.
    let small_sig = shift_right_sticky(small.2 >> 1, (large.1 - small.1) as u32);
    let large_sig = large.2 >> 1;
    let sum = if large.0 == small.0 { large_sig + small_sig } else { large_sig - small_sig };
    if sum == 0 {
        return F::zero(env.round == Round::Down);
    }
    let shift = sum.leading_zeros();
    round_pack(env, large.0, large.1 + 1 - shift as i32, sum << shift)
}

#[cold]
#[inline(never)]
fn add_soft<F: Format>(env: &mut Env, a: F, b: F, subtract: bool) -> F {
    let (a, mut b) = (operand(env, a), operand(env, b));
    if let Some(special) = special_binary(env, &a, &b) {
        return special;
    }
    b.sign ^= subtract;
    if a.class == Class::Infinity && b.class == Class::Infinity && a.sign != b.sign {
        return env.invalid();
    }
    note_denormal(env, &[&a, &b]);
    match (a.class, b.class) {
        (Class::Infinity, _) => F::infinity(a.sign),
        (_, Class::Infinity) => F::infinity(b.sign),
        (Class::Zero, Class::Zero) if a.sign == b.sign => F::zero(a.sign),
        (Class::Zero, Class::Zero) => F::zero(env.round == Round::Down),
        (Class::Zero, _) => round_pack(env, b.sign, b.exp, u128::from(b.sig) << 64),
        (_, Class::Zero) => round_pack(env, a.sign, a.exp, u128::from(a.sig) << 64),
        _ => add_finite(env, &a, &b),
    }
}

fn add_finite<F: Format>(env: &mut Env, a: &Num, b: &Num) -> F {
    let (large, small) = if (a.exp, a.sig) >= (b.exp, b.sig) { (a, b) } else { (b, a) };
    // One bit of room for the carry; 63 bits below for the smaller operand and its sticky bit.
    let large_sig = u128::from(large.sig) << 63;
    let small_sig = shift_right_sticky(u128::from(small.sig) << 63, (large.exp - small.exp) as u32);
    let sum = if a.sign == b.sign { large_sig + small_sig } else { large_sig - small_sig };
    if sum == 0 {
        return F::zero(env.round == Round::Down);
    }
    let shift = sum.leading_zeros();
    round_pack(env, large.sign, large.exp + 1 - shift as i32, sum << shift)
}

#[cold]
#[inline(never)]
fn mul_soft<F: Format>(env: &mut Env, a: F, b: F) -> F {
    let (a, b) = (operand(env, a), operand(env, b));
    if let Some(special) = special_binary(env, &a, &b) {
        return special;
    }
    let sign = a.sign != b.sign;
    match (a.class, b.class) {
        (Class::Infinity, Class::Zero) | (Class::Zero, Class::Infinity) => return env.invalid(),
        _ => note_denormal(env, &[&a, &b]),
    }
    match (a.class, b.class) {
        (Class::Infinity, _) | (_, Class::Infinity) => F::infinity(sign),
        (Class::Zero, _) | (_, Class::Zero) => F::zero(sign),
        _ => {
            let product = u128::from(a.sig) * u128::from(b.sig);
            let shift = product.leading_zeros();
            round_pack(env, sign, a.exp + b.exp + 1 - shift as i32, product << shift)
        }
    }
}

#[cold]
#[inline(never)]
fn div_soft<F: Format>(env: &mut Env, a: F, b: F) -> F {
    let (a, b) = (operand(env, a), operand(env, b));
    if let Some(special) = special_binary(env, &a, &b) {
        return special;
    }
    let sign = a.sign != b.sign;
    match (a.class, b.class) {
        (Class::Infinity, Class::Infinity) | (Class::Zero, Class::Zero) => return env.invalid(),
        (Class::Normal | Class::Denormal, Class::Zero) => {
            env.raise(flag::ZE);
            return F::infinity(sign);
        }
        _ => note_denormal(env, &[&a, &b]),
    }
    match (a.class, b.class) {
        (Class::Infinity, _) => F::infinity(sign),
        (Class::Zero, _) | (_, Class::Infinity) => F::zero(sign),
        _ => {
            let shift = u32::from(a.sig < b.sig);
            let dividend = u128::from(a.sig) << (63 + shift);
            let divisor = u128::from(b.sig);
            let (quotient, rest) = (dividend / divisor, dividend % divisor);
            let guard = u128::from(2 * rest >= divisor);
            let sig = quotient << 64 | guard << 63 | u128::from(rest != 0);
            round_pack(env, sign, a.exp - b.exp - shift as i32, sig)
        }
    }
}

#[cold]
#[inline(never)]
fn sqrt_soft<F: Format>(env: &mut Env, a: F) -> F {
    let a = operand(env, a);
    if let Some(special) = special_unary(env, &a) {
        return special;
    }
    match a.class {
        Class::Zero => return F::zero(a.sign),
        _ if a.sign => return env.invalid(),
        Class::Infinity => return F::infinity(false),
        _ => note_denormal(env, &[&a]),
    }
    let odd = a.exp & 1;
    let square = u128::from(a.sig) << (63 + odd);
    let root = square.isqrt();
    let rest = square - root * root;
    // The next bit of the root is set if (root + 1/2)^2 <= square.
    let guard = u128::from(rest > root);
    round_pack(env, false, (a.exp - odd) / 2, root << 64 | guard << 63 | u128::from(rest != 0))
}

/// How two numbers compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Less,
    Equal,
    Greater,
    Unordered,
}

/// Compares `a` with `b`. Quiet NaNs raise invalid operation only if `signalling`.
#[inline]
pub(crate) fn compare<F: Native>(env: &mut Env, a: F, b: F, signalling: bool) -> Order {
    match F::native_compare(a, b) {
        Some(order) => order,
        None => compare_soft(env, a, b, signalling),
    }
}

#[cold]
#[inline(never)]
fn compare_soft<F: Format>(env: &mut Env, a: F, b: F, signalling: bool) -> Order {
    let (a, b) = (operand(env, a), operand(env, b));
    let invalid = |n: &Num| match n.class {
        Class::SignallingNan | Class::Unsupported => true,
        Class::QuietNan => signalling,
        _ => false,
    };
    if invalid(&a) || invalid(&b) {
        env.raise(flag::IE);
        return Order::Unordered;
    }
    if a.is_nan() || b.is_nan() {
        return Order::Unordered;
    }
    note_denormal(env, &[&a, &b]);
    // A key that grows with the magnitude.
    let magnitude = |n: &Num| match n.class {
        Class::Zero => (i32::MIN, 0),
        Class::Infinity => (i32::MAX, 0),
        _ => (n.exp, n.sig),
    };
    let (x, y) = (magnitude(&a), magnitude(&b));
    if a.class == Class::Zero && b.class == Class::Zero || a.sign == b.sign && x == y {
        Order::Equal
    } else if a.sign != b.sign {
        if a.sign { Order::Less } else { Order::Greater }
    } else if (x < y) != a.sign {
        Order::Less
    } else {
        Order::Greater
    }
}

/// MINPS and its like: `a` if it is less, else `b`, also for NaNs and zeros.
pub(crate) fn min<F: Native>(env: &mut Env, a: F, b: F) -> F {
    pick(env, a, b, Order::Less)
}

/// MAXPS and its like: `a` if it is greater, else `b`, also for NaNs and zeros.
pub(crate) fn max<F: Native>(env: &mut Env, a: F, b: F) -> F {
    pick(env, a, b, Order::Greater)
}

fn pick<F: Native>(env: &mut Env, a: F, b: F, wanted: Order) -> F {
    let chosen = if compare(env, a, b, true) == wanted { a } else { b };
    // Denormals become zeros under DAZ; NaNs go through as they are.
    let num = chosen.unpack();
    if env.daz && num.class == Class::Denormal { F::zero(num.sign) } else { chosen }
}

/// What FPREM and FPREM1 give.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Remainder {
    pub(crate) value: F80,
    pub(crate) quotient: Quotient,
}

/// What FPREM and FPREM1 tell of the quotient.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Quotient {
    /// There is none: the operands are invalid, or one is a NaN.
    None,
    /// The reduction is not complete.
    Partial,
    /// The three low bits.
    Low(u8),
}

/// FPREM (`nearest` false: the quotient is truncated) and FPREM1 (rounded to nearest even). If the
/// exponents are 64 or more apart, a part of the reduction is done.
pub(crate) fn remainder(env: &mut Env, a: F80, b: F80, nearest: bool) -> Remainder {
    let whole = |value| Remainder { value, quotient: Quotient::Low(0) };
    let none = |value| Remainder { value, quotient: Quotient::None };
    let (x, y) = (operand(env, a), operand(env, b));
    if let Some(special) = special_binary(env, &x, &y) {
        return none(special);
    }
    if x.class == Class::Infinity || y.class == Class::Zero {
        return none(env.invalid());
    }
    note_denormal(env, &[&x, &y]);
    if x.class == Class::Zero {
        return whole(F80::zero(x.sign));
    }
    if y.class == Class::Infinity {
        return whole(round_pack(env, x.sign, x.exp, u128::from(x.sig) << 64));
    }
    let distance = x.exp - y.exp;
    if distance < -1 || distance < 0 && !nearest {
        return whole(round_pack(env, x.sign, x.exp, u128::from(x.sig) << 64));
    }
    // The dividend is a multiple of 2^(y.exp - 63 - 1), so that FPREM1 has half of a divisor.
    let partial = distance >= 64;
    let steps = if partial { (distance & 31 | 32) as u32 } else { distance.max(0) as u32 };
    let (mut rest, divisor) = match distance {
        -1 => (u128::from(x.sig), u128::from(y.sig) << 1),
        _ => (u128::from(x.sig) << 1, u128::from(y.sig) << 1),
    };
    let mut quotient = 0u64;
    for step in (0..=steps).rev() {
        quotient <<= 1;
        if rest >= divisor {
            rest -= divisor;
            quotient |= 1;
        }
        if step != 0 {
            rest <<= 1;
        }
    }
    let mut sign = x.sign;
    if nearest && !partial && (2 * rest > divisor || 2 * rest == divisor && quotient & 1 != 0) {
        rest = divisor - rest;
        sign = !sign;
        quotient = quotient.wrapping_add(1);
    }
    let value = if rest == 0 {
        F80::zero(x.sign)
    } else {
        let shift = rest.leading_zeros();
        // `rest` counts units of 2^(exp - 64) at the exponent that the last step worked on.
        let exp = if partial { x.exp - steps as i32 } else { y.exp };
        round_pack(env, sign, exp + 63 - shift as i32, rest << shift)
    };
    let quotient = if partial { Quotient::Partial } else { Quotient::Low(quotient as u8 & 7) };
    Remainder { value, quotient }
}

/// FSCALE: `a` times two to the power of `b`'s integral part.
pub(crate) fn scale(env: &mut Env, a: F80, b: F80) -> F80 {
    let (x, y) = (operand(env, a), operand(env, b));
    if let Some(special) = special_binary(env, &x, &y) {
        return special;
    }
    if y.class == Class::Infinity {
        if x.class == Class::Infinity && y.sign || x.class == Class::Zero && !y.sign {
            return env.invalid();
        }
        note_denormal(env, &[&x, &y]);
        return if y.sign { F80::zero(x.sign) } else { F80::infinity(x.sign) };
    }
    note_denormal(env, &[&x, &y]);
    match x.class {
        Class::Infinity => return F80::infinity(x.sign),
        Class::Zero => return F80::zero(x.sign),
        _ => {}
    }
    // Anything beyond 2^16 over- or underflows whatever `a` is.
    let power = match y.exp {
        _ if y.class == Class::Zero || y.exp < 0 => 0,
        0..=16 => (y.sig >> (63 - y.exp)) as i32,
        _ => 1 << 17,
    };
    let power = if y.sign { -power } else { power };
    round_pack(env, x.sign, x.exp + power, u128::from(x.sig) << 64)
}
