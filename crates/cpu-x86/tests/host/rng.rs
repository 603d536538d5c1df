//! Seeded random values of the kinds that instructions are sensitive to.

pub(crate) use crate::splitmix::Rng;

impl Rng {
    /// A general register's value: anything, small of either sign, or next to a power of two.
    pub(crate) fn integer(&mut self) -> u64 {
        match self.below(5) {
            0 | 1 => self.next(),
            2 => self.below(80).wrapping_sub(40),
            3 => (1u64 << self.below(64)).wrapping_add(self.below(3)).wrapping_sub(1),
            _ => self.next() >> self.below(64),
        }
    }

    /// A floating-point number of `exp_bits` and `frac_bits`, with more of the special ones.
    fn float(&mut self, exp_bits: u32, frac_bits: u32) -> u64 {
        let max = (1u64 << exp_bits) - 1;
        let bias = max >> 1;
        let exp = match self.below(8) {
            0 => 0,
            1 => max,
            2 => self.below(3),
            3 => max - self.below(3),
            4 | 5 => bias.wrapping_add(self.below(70)).wrapping_sub(35) & max,
            _ => self.next() & max,
        };
        let frac_mask = (1u64 << frac_bits) - 1;
        let frac = match self.below(4) {
            0 => 0,
            1 => 1u64 << self.below(u64::from(frac_bits)),
            2 => frac_mask << self.below(u64::from(frac_bits)),
            _ => self.next(),
        } & frac_mask;
        (self.next() & 1) << (exp_bits + frac_bits) | exp << frac_bits | frac
    }

    pub(crate) fn single(&mut self) -> u32 {
        self.float(8, 23) as u32
    }

    pub(crate) fn double(&mut self) -> u64 {
        self.float(11, 52)
    }

    /// An 80-bit number, sometimes of a kind that arithmetic does not accept.
    pub(crate) fn extended(&mut self) -> u128 {
        let head = self.float(15, 16) >> 16;
        let significand = match self.below(5) {
            0 => 1 << 63,
            1 => 1 << 63 | 1u64 << self.below(63),
            2 => u64::MAX << self.below(64),
            3 => self.next(),
            _ => self.next() | 1 << 63,
        };
        let significand = if self.one_in(16) { 0 } else { significand };
        let head = if significand == 0 && !self.one_in(4) { head & 0x8000 } else { head };
        u128::from(head) << 64 | u128::from(significand)
    }

    /// Sixteen bytes: numbers of any format, small elements, packed decimal, or anything.
    pub(crate) fn vector(&mut self) -> u128 {
        let wide = |low: u64, high: u64| u128::from(high) << 64 | u128::from(low);
        match self.below(8) {
            0 => wide(self.double(), self.double()),
            1 => (0..4).fold(0, |v, _| v << 32 | u128::from(self.single())),
            2 => self.extended() | u128::from(self.next()) << 80,
            3 => wide(self.integer(), self.integer()),
            4 => (0..16).fold(0, |v, _| v << 8 | u128::from(self.below(5))),
            5 => (0..32).fold(0, |v, _| v << 4 | u128::from(self.below(10))),
            6 => (0..8).fold(0, |v, _| v << 16 | u128::from(self.integer() as u16)),
            _ => wide(self.next(), self.next()),
        }
    }
}
