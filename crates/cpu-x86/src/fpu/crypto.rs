//! AES, carry-less multiplication and SHA (APM volume 4; FIPS 197 and FIPS 180-4 for the arithmetic), as
//! pure functions on 128-bit values. AES works on the cipher's state column by column: byte 4c + r is row
//! r of column c.

/// Multiplies by x in AES's field of 256 elements.
const fn double(a: u8) -> u8 {
    a << 1 ^ if a & 0x80 != 0 { 0x1b } else { 0 }
}

/// Multiplies in AES's field.
const fn multiply(a: u8, b: u8) -> u8 {
    let (mut a, mut b, mut product) = (a, b, 0);
    while b != 0 {
        if b & 1 != 0 {
            product ^= a;
        }
        a = double(a);
        b >>= 1;
    }
    product
}

/// The substitution: the inverse in the field, then an affine map of bits.
const SUBSTITUTE: [u8; 256] = {
    let mut table = [0; 256];
    let mut a = 0;
    while a < 256 {
        // a^254 is the inverse, and zero for zero.
        let (mut inverse, mut power, mut exponent) = (1, a as u8, 254);
        while exponent != 0 {
            if exponent & 1 != 0 {
                inverse = multiply(inverse, power);
            }
            power = multiply(power, power);
            exponent >>= 1;
        }
        let i: u8 = inverse;
        table[a] =
            i ^ i.rotate_left(1) ^ i.rotate_left(2) ^ i.rotate_left(3) ^ i.rotate_left(4) ^ 0x63;
        a += 1;
    }
    table
};

/// The inverse of [`SUBSTITUTE`].
const UNSUBSTITUTE: [u8; 256] = {
    let mut table = [0; 256];
    let mut a = 0;
    while a < 256 {
        table[SUBSTITUTE[a] as usize] = a as u8;
        a += 1;
    }
    table
};

type State = [u8; 16];

fn substitute(state: State, table: &[u8; 256]) -> State {
    state.map(|byte| table[usize::from(byte)])
}

/// Row r moves left by r columns, or right with `inverse`.
fn shift_rows(state: State, inverse: bool) -> State {
    std::array::from_fn(|i| {
        let (column, row) = (i / 4, i % 4);
        let from = if inverse { column + 4 - row } else { column + row };
        state[from % 4 * 4 + row]
    })
}

/// Multiplies each column by the polynomial with `factors`, those of the first row.
fn mix_columns(state: State, factors: [u8; 4]) -> State {
    std::array::from_fn(|i| {
        let (column, row) = (i / 4 * 4, i % 4);
        (0..4).fold(0, |sum, k| sum ^ multiply(state[column + k], factors[(k + 4 - row) % 4]))
    })
}

const MIX: [u8; 4] = [2, 3, 1, 1];
const UNMIX: [u8; 4] = [14, 11, 13, 9];

fn bytes(v: u128) -> State {
    v.to_le_bytes()
}

/// AESENC; with `last`, AESENCLAST.
pub(super) fn aes_encrypt(state: u128, key: u128, last: bool) -> u128 {
    let state = substitute(shift_rows(bytes(state), false), &SUBSTITUTE);
    let state = if last { state } else { mix_columns(state, MIX) };
    u128::from_le_bytes(state) ^ key
}

/// AESDEC; with `last`, AESDECLAST.
pub(super) fn aes_decrypt(state: u128, key: u128, last: bool) -> u128 {
    let state = substitute(shift_rows(bytes(state), true), &UNSUBSTITUTE);
    let state = if last { state } else { mix_columns(state, UNMIX) };
    u128::from_le_bytes(state) ^ key
}

/// AESIMC.
pub(super) fn aes_unmix(key: u128) -> u128 {
    u128::from_le_bytes(mix_columns(bytes(key), UNMIX))
}

/// AESKEYGENASSIST.
pub(super) fn aes_key_assist(key: u128, imm: u8) -> u128 {
    let substituted = u128::from_le_bytes(substitute(bytes(key), &SUBSTITUTE));
    let word = |n: u32| (substituted >> (32 * n)) as u32;
    let rotated = |n: u32| u128::from(word(n).rotate_right(8) ^ u32::from(imm));
    u128::from(word(1)) | rotated(1) << 32 | u128::from(word(3)) << 64 | rotated(3) << 96
}

/// PCLMULQDQ: the halves that `imm` selects, multiplied as polynomials over bits.
pub(super) fn carryless_multiply(a: u128, b: u128, imm: u8) -> u128 {
    let half = |v: u128, high: bool| (if high { v >> 64 } else { v }) as u64;
    let a = u128::from(half(a, imm & 1 != 0));
    let mut b = half(b, imm & 0x10 != 0);
    let mut product = 0;
    while b != 0 {
        product ^= a << b.trailing_zeros();
        b &= b - 1;
    }
    product
}

fn words(v: u128) -> [u32; 4] {
    std::array::from_fn(|n| (v >> (32 * n)) as u32)
}

fn vector(words: [u32; 4]) -> u128 {
    words.into_iter().rev().fold(0, |v, word| v << 32 | u128::from(word))
}

/// SHA1RNDS4: four rounds with the function and constant of group `imm`.
pub(super) fn sha1_rounds(state: u128, message: u128, imm: u8) -> u128 {
    const K: [u32; 4] = [0x5a82_7999, 0x6ed9_eba1, 0x8f1b_bcdc, 0xca62_c1d6];
    let [mut d, mut c, mut b, mut a] = words(state);
    let message = words(message);
    let mut e = 0u32;
    for round in (0..4).rev() {
        let f = match imm & 3 {
            0 => b & c ^ !b & d,
            2 => b & c ^ b & d ^ c & d,
            _ => b ^ c ^ d,
        };
        let next = f
            .wrapping_add(a.rotate_left(5))
            .wrapping_add(message[round])
            .wrapping_add(e)
            .wrapping_add(K[usize::from(imm & 3)]);
        (e, d, c, b, a) = (d, c, b.rotate_left(30), a, next);
    }
    vector([d, c, b, a])
}

/// SHA1NEXTE.
pub(super) fn sha1_next(state: u128, message: u128) -> u128 {
    let e = words(state)[3].rotate_left(30);
    let mut message = words(message);
    message[3] = message[3].wrapping_add(e);
    vector(message)
}

/// SHA1MSG1.
pub(super) fn sha1_message1(a: u128, b: u128) -> u128 {
    let ([w3, w2, w1, w0], [_, _, w5, w4]) = (words(a), words(b));
    vector([w5 ^ w3, w4 ^ w2, w3 ^ w1, w2 ^ w0])
}

/// SHA1MSG2.
pub(super) fn sha1_message2(a: u128, b: u128) -> u128 {
    let ([a3, a2, a1, a0], [w15, w14, w13, _]) = (words(a), words(b));
    let w16 = (a0 ^ w13).rotate_left(1);
    let w17 = (a1 ^ w14).rotate_left(1);
    let w18 = (a2 ^ w15).rotate_left(1);
    let w19 = (a3 ^ w16).rotate_left(1);
    vector([w19, w18, w17, w16])
}

/// SHA256RNDS2: two rounds; `keys` is XMM0, the message with its constants added.
pub(super) fn sha256_rounds(cdgh: u128, abef: u128, keys: u128) -> u128 {
    let [mut h, mut g, mut d, mut c] = words(cdgh);
    let [mut f, mut e, mut b, mut a] = words(abef);
    for key in &words(keys)[..2] {
        let choice = e & f ^ !e & g;
        let majority = a & b ^ a & c ^ b & c;
        let sum0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
        let sum1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
        let first = choice.wrapping_add(sum1).wrapping_add(*key).wrapping_add(h);
        let next = first.wrapping_add(majority).wrapping_add(sum0);
        (h, g, f, e) = (g, f, e, first.wrapping_add(d));
        (d, c, b, a) = (c, b, a, next);
    }
    vector([f, e, b, a])
}

/// SHA256MSG1.
pub(super) fn sha256_message1(a: u128, b: u128) -> u128 {
    let sigma = |w: u32| w.rotate_right(7) ^ w.rotate_right(18) ^ w >> 3;
    let [w0, w1, w2, w3] = words(a);
    let w4 = words(b)[0];
    let next = |w: u32, after: u32| w.wrapping_add(sigma(after));
    vector([next(w0, w1), next(w1, w2), next(w2, w3), next(w3, w4)])
}

/// SHA256MSG2.
pub(super) fn sha256_message2(a: u128, b: u128) -> u128 {
    let sigma = |w: u32| w.rotate_right(17) ^ w.rotate_right(19) ^ w >> 10;
    let (a, [_, _, w14, w15]) = (words(a), words(b));
    let w16 = a[0].wrapping_add(sigma(w14));
    let w17 = a[1].wrapping_add(sigma(w15));
    let w18 = a[2].wrapping_add(sigma(w16));
    let w19 = a[3].wrapping_add(sigma(w17));
    vector([w16, w17, w18, w19])
}
