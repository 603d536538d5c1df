//! Numbers as the tests' generator gives them, from the fuzzer's bytes.

use std::sync::Arc;

/// Takes bytes one after the other, as many as a number needs; after the last there is a generator that
/// they all have seeded.
#[derive(Clone)]
pub(crate) struct Rng {
    bytes: Arc<[u8]>,
    at: usize,
    rest: u64,
}

impl Rng {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        let mix = |hash: u64, &byte: &u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        let rest = bytes.iter().fold(0xcbf2_9ce4_8422_2325, mix);
        Self { bytes: bytes.into(), at: 0, rest }
    }

    /// A number of `len` bytes, at most 8.
    fn take(&mut self, len: usize) -> u64 {
        let Some(bytes) = self.bytes.get(self.at..self.at + len) else {
            self.rest = self.rest.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            return self.rest >> 11 ^ self.rest << 29;
        };
        self.at += len;
        bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.take(8)
    }

    /// 0 to `n` - 1.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        let bits = u64::BITS - n.leading_zeros();
        self.take(bits.div_ceil(8).max(1) as usize) % n
    }

    /// True once in `n`.
    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}
