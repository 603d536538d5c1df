//! RFLAGS (APM volume 1, section 3.1.4; volume 2, section 3.1.6).
//!
//! The arithmetic flags are lazy: an instruction stores its result and the carries it had, and whoever
//! needs a flag derives it. Two words are enough for every instruction and for arbitrary values:
//!
//! - `result`: the result, sign-extended. ZF is `result == 0`; SF is its bit 63; PF is the parity of
//!   its low byte.
//! - `aux`: bit 63 is CF; bit 63 differs from bit 62 when OF is set (that is, bit 62 is the carry into
//!   the sign bit); bit 3 is AF; bit 0 inverts SF; an odd number of bits among 8 to 15 inverts PF.
//!
//! The other flags are in `Cpu::system_flags`, which never has an arithmetic flag's bit set.

use crate::cpu::Cpu;
use crate::int::Int;

#[allow(missing_docs)]
pub(crate) mod bits {
    pub(crate) const CF: u64 = 1 << 0;
    pub(crate) const RESERVED1: u64 = 1 << 1;
    pub(crate) const PF: u64 = 1 << 2;
    pub(crate) const AF: u64 = 1 << 4;
    pub(crate) const ZF: u64 = 1 << 6;
    pub(crate) const SF: u64 = 1 << 7;
    pub(crate) const TF: u64 = 1 << 8;
    pub(crate) const IF: u64 = 1 << 9;
    pub(crate) const DF: u64 = 1 << 10;
    pub(crate) const OF: u64 = 1 << 11;
    pub(crate) const IOPL: u64 = 3 << 12;
    pub(crate) const NT: u64 = 1 << 14;
    pub(crate) const RF: u64 = 1 << 16;
    pub(crate) const VM: u64 = 1 << 17;
    pub(crate) const AC: u64 = 1 << 18;
    pub(crate) const VIF: u64 = 1 << 19;
    pub(crate) const VIP: u64 = 1 << 20;
    pub(crate) const ID: u64 = 1 << 21;
    /// The flags that arithmetic sets.
    pub(crate) const ARITH: u64 = CF | PF | AF | ZF | SF | OF;
    /// The flags in `Cpu::system_flags`.
    pub(crate) const SYSTEM: u64 = TF | IF | DF | IOPL | NT | RF | VM | AC | VIF | VIP | ID;
}
use bits::{AF, ARITH, CF, OF, PF, RESERVED1, SF, SYSTEM, ZF};

const AUX_CF: u64 = 1 << 63;
const AUX_CARRY_IN: u64 = 1 << 62;
const AUX_AF: u64 = 1 << 3;
const AUX_PF: u64 = 0xff00;

/// The arithmetic flags, not yet derived (see the module's description).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct LazyFlags {
    result: u64,
    aux: u64,
}

impl Default for LazyFlags {
    fn default() -> Self {
        Self::from_bits(0)
    }
}

impl LazyFlags {
    /// Flags with the values that `rflags` has.
    #[inline]
    fn from_bits(rflags: u64) -> Self {
        // A result whose low byte is 0 and sign is clear: PF and SF then come from `aux` alone.
        let result = u64::from(rflags & ZF == 0) << 16;
        let carry = rflags & CF;
        let overflow = (rflags & OF) >> 11;
        let aux = carry << 63
            | (carry ^ overflow) << 62
            | (rflags & AF) >> 1
            | (rflags & SF) >> 7
            | u64::from(rflags & PF == 0) << 8;
        Self { result, aux }
    }

    #[inline(always)]
    fn cf(self) -> bool {
        self.aux & AUX_CF != 0
    }
    #[inline(always)]
    fn pf(self) -> bool {
        ((self.result ^ (self.aux & AUX_PF) >> 8) as u8).count_ones() & 1 == 0
    }
    #[inline(always)]
    fn af(self) -> bool {
        self.aux & AUX_AF != 0
    }
    #[inline(always)]
    fn zf(self) -> bool {
        self.result == 0
    }
    #[inline(always)]
    fn sf(self) -> bool {
        (self.result >> 63 ^ self.aux) & 1 != 0
    }
    #[inline(always)]
    fn of(self) -> bool {
        ((self.aux << 1) ^ self.aux) & AUX_CF != 0
    }

    fn to_bits(self) -> u64 {
        u64::from(self.cf())
            | u64::from(self.pf()) << 2
            | u64::from(self.af()) << 4
            | u64::from(self.zf()) << 6
            | u64::from(self.sf()) << 7
            | u64::from(self.of()) << 11
    }
}

/// Moves the two top carries of a `T`-sized carry vector (bit n: carry out of bit n) to where `aux`
/// has them, and keeps AF.
#[inline(always)]
fn aux_from_carries<T: Int>(carries: u64) -> u64 {
    (carries << (64 - T::BITS)) & (AUX_CF | AUX_CARRY_IN) | carries & AUX_AF
}

impl Cpu {
    /// Carry flag.
    #[inline(always)]
    pub(crate) fn cf(&self) -> bool {
        self.flags.cf()
    }
    /// Parity flag: the result's low byte has an even number of ones.
    #[inline(always)]
    pub(crate) fn pf(&self) -> bool {
        self.flags.pf()
    }
    /// Auxiliary carry flag.
    #[inline(always)]
    pub(crate) fn af(&self) -> bool {
        self.flags.af()
    }
    /// Zero flag.
    #[inline(always)]
    pub(crate) fn zf(&self) -> bool {
        self.flags.zf()
    }
    /// Sign flag.
    #[inline(always)]
    pub(crate) fn sf(&self) -> bool {
        self.flags.sf()
    }
    /// Overflow flag.
    #[inline(always)]
    pub(crate) fn of(&self) -> bool {
        self.flags.of()
    }

    /// The whole register, reserved bit 1 set.
    pub(crate) fn rflags(&self) -> u64 {
        self.flags.to_bits() | self.system_flags | RESERVED1
    }

    /// Sets the whole register; reserved bits are dropped.
    pub(crate) fn set_rflags(&mut self, rflags: u64) {
        self.set_rflags_arith(rflags);
        self.system_flags = rflags & SYSTEM;
    }

    /// Sets CF, PF, AF, ZF, SF and OF from the bits of `rflags`; the others are ignored.
    #[inline]
    pub(crate) fn set_rflags_arith(&mut self, rflags: u64) {
        self.flags = LazyFlags::from_bits(rflags);
    }

    /// Sets those arithmetic flags that are in `mask` from `values`.
    #[inline]
    pub(crate) fn change_flags(&mut self, mask: u64, values: u64) {
        let old = self.flags.to_bits();
        self.set_rflags_arith(old & !(mask & ARITH) | values & mask);
    }

    /// Sets CF alone.
    #[inline(always)]
    pub(crate) fn set_cf(&mut self, carry: bool) {
        // Bit 62 follows, so that OF stays.
        let flip = (self.flags.aux ^ u64::from(carry) << 63) & AUX_CF;
        self.flags.aux ^= flip | flip >> 1;
    }

    /// Flags of a logical operation: CF = OF = AF = 0.
    #[inline(always)]
    pub(crate) fn flags_logic<T: Int>(&mut self, result: T) {
        self.flags = LazyFlags { result: result.sext(), aux: 0 };
    }

    /// Flags of `a + b (+ carry) = result`.
    #[inline(always)]
    pub(crate) fn flags_add<T: Int>(&mut self, a: T, b: T, result: T) {
        let carries = a & b | (a | b) & !result;
        self.flags =
            LazyFlags { result: result.sext(), aux: aux_from_carries::<T>(carries.to_u64()) };
    }

    /// Flags of `a - b (- borrow) = result`.
    #[inline(always)]
    pub(crate) fn flags_sub<T: Int>(&mut self, a: T, b: T, result: T) {
        let borrows = !a & b | (!a | b) & result;
        self.flags =
            LazyFlags { result: result.sext(), aux: aux_from_carries::<T>(borrows.to_u64()) };
    }

    /// Flags of `a + 1 = result`: as an addition, but CF stays.
    #[inline(always)]
    pub(crate) fn flags_inc<T: Int>(&mut self, a: T, result: T) {
        let carry = self.cf();
        self.flags_add(a, T::ONE, result);
        self.set_cf(carry);
    }

    /// Flags of `a - 1 = result`: as a subtraction, but CF stays.
    #[inline(always)]
    pub(crate) fn flags_dec<T: Int>(&mut self, a: T, result: T) {
        let carry = self.cf();
        self.flags_sub(a, T::ONE, result);
        self.set_cf(carry);
    }

    /// ZF, SF and PF of `result`, with CF and OF given, and AF clear.
    #[inline(always)]
    pub(crate) fn flags_result<T: Int>(&mut self, result: T, carry: bool, overflow: bool) {
        let aux = u64::from(carry) << 63 | u64::from(carry ^ overflow) << 62;
        self.flags = LazyFlags { result: result.sext(), aux };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_of_arithmetic_flags_survives() {
        for value in 0..64 {
            let mut rflags = 0;
            for (i, bit) in [CF, PF, AF, ZF, SF, OF].into_iter().enumerate() {
                if value >> i & 1 != 0 {
                    rflags |= bit;
                }
            }
            assert_eq!(LazyFlags::from_bits(rflags).to_bits(), rflags, "{rflags:#x}");
        }
    }
}
