//! General registers by number and operand size (APM volume 1, section 3.1).

use crate::cpu::Cpu;
use crate::int::Int;

/// Slots in `Cpu::gpr`: a power of two, so that a masked index needs no check. Slots 0 to 15 are the
/// registers; slot 16 (`op::ZERO_REG`) and those above are always zero.
pub(crate) const GPR_SLOTS: usize = 32;

#[allow(missing_docs)]
pub(crate) const RAX: u8 = 0;
#[allow(missing_docs)]
pub(crate) const RCX: u8 = 1;
#[allow(missing_docs)]
pub(crate) const RDX: u8 = 2;
#[allow(missing_docs)]
pub(crate) const RBX: u8 = 3;
#[allow(missing_docs)]
pub(crate) const RSP: u8 = 4;
#[allow(missing_docs)]
pub(crate) const RBP: u8 = 5;
#[allow(missing_docs)]
pub(crate) const RSI: u8 = 6;
#[allow(missing_docs)]
pub(crate) const RDI: u8 = 7;

impl Cpu {
    /// All 64 bits of slot `n`.
    #[inline(always)]
    pub(crate) fn gpr(&self, n: u8) -> u64 {
        self.gpr[n as usize & (GPR_SLOTS - 1)]
    }

    /// Operand-sized register `n`; for bytes, 16 to 19 are AH, CH, DH and BH.
    #[inline(always)]
    pub(crate) fn reg<T: Int>(&self, n: u8) -> T {
        if T::BYTES == 1 && n >= 16 {
            return T::from_u64(self.gpr(n - 16) >> 8);
        }
        T::from_u64(self.gpr(n))
    }

    /// Writes operand-sized register `n` as the architecture does: 32 bits clear the upper half, 8 and
    /// 16 bits leave the rest alone.
    #[inline(always)]
    pub(crate) fn set_reg<T: Int>(&mut self, n: u8, value: T) {
        let value = value.to_u64();
        match T::BYTES {
            1 if n >= 16 => {
                let slot = &mut self.gpr[(n as usize - 16) & (GPR_SLOTS - 1)];
                *slot = *slot & !0xff00 | value << 8;
            }
            1 => {
                let slot = &mut self.gpr[n as usize & (GPR_SLOTS - 1)];
                *slot = *slot & !0xff | value;
            }
            2 => {
                let slot = &mut self.gpr[n as usize & (GPR_SLOTS - 1)];
                *slot = *slot & !0xffff | value;
            }
            _ => self.gpr[n as usize & (GPR_SLOTS - 1)] = value,
        }
    }

    /// Writes the part of register `n` that an address of `addr_size` bytes uses.
    #[inline(always)]
    pub(crate) fn set_reg_sized(&mut self, n: u8, addr_size: u8, value: u64) {
        match addr_size {
            2 => self.set_reg::<u16>(n, value as u16),
            4 => self.set_reg::<u32>(n, value as u32),
            _ => self.set_reg::<u64>(n, value),
        }
    }

    /// The part of register `n` that an address of `addr_size` bytes uses.
    #[inline(always)]
    pub(crate) fn reg_sized(&self, n: u8, addr_size: u8) -> u64 {
        self.gpr(n) & addr_mask(addr_size)
    }
}

/// The bits that an address of `addr_size` bytes (2, 4 or 8) has.
#[inline(always)]
pub(crate) fn addr_mask(addr_size: u8) -> u64 {
    match addr_size {
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => u64::MAX,
    }
}
