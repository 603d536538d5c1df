//! The floating-point and vector unit: x87, MMX, SSE to SSE4.2, AVX and AVX2 (APM volume 1, chapters 4 to 6;
//! volume 4 and volume 5 for the instructions).
//!
//! - `softfloat`: IEEE arithmetic on bit patterns; knows nothing of CPUs.
//! - `host`: the transcendental functions.
//! - `lanes`, `crypto`: packed integers, and AES, SHA and their like, as pure functions.
//! - `encoding`: legacy SSE and VEX, for instructions that exist in both.
//! - `operand`: availability checks, vector operands, delivery of exceptions.
//! - `packed`, `moves`, `float`, `float_convert`, `strings`: MMX and SSE instructions by kind.
//! - `avx`: what only VEX encodings have.
//! - `x87`: its instructions.
//! - `xsave`: the images of the whole unit in memory.
//!
//! Handlers are found by [`select`].

mod avx;
mod crypto;
mod encoding;
#[cfg(test)]
mod fault_tests;
mod float;
mod float_convert;
pub(crate) mod host;
mod lanes;
mod moves;
mod operand;
mod packed;
pub(crate) mod softfloat;
mod strings;
#[cfg(all(test, target_arch = "x86_64"))]
mod tests;
mod x87;
pub(crate) mod xsave;

use encoding::Legacy;
use iced_x86::{EncodingKind, Instruction};

use crate::op::Handler;
use crate::state::{CpuState, X87State};
use softfloat::{Class, F80, Format};

/// Bits of MXCSR that every processor has.
pub(crate) const MXCSR_MASK: u32 = 0xffff;
/// MXCSR, of AMD's processors that have it: operands of 128 bits that are computed with need not be aligned (APM
/// volume 1, section 4.2.2, "Misaligned Exception Mask").
pub(crate) const MXCSR_MM: u32 = 1 << 17;
/// MXCSR after reset.
pub(crate) const MXCSR_RESET: u32 = 0x1f80;

/// The unit's registers.
#[derive(Clone)]
#[repr(C)]
pub(crate) struct Fpu {
    /// XMM0 to XMM15.
    pub(crate) xmm: [u128; 16],
    /// Upper halves of YMM0 to YMM15.
    pub(crate) ymm_high: [u128; 16],
    /// x87's physical registers; MM0 to MM7 are their significands.
    pub(crate) regs: [F80; 8],
    pub(crate) mxcsr: u32,
    /// x87's control word.
    pub(crate) control: u16,
    /// x87's status word without TOP, ES and B, which are derived (see [`Self::status_word`]).
    pub(crate) status: u16,
    /// The physical register that is ST(0).
    pub(crate) top: u8,
    /// Physical registers that are not empty, a bit each.
    pub(crate) valid: u8,
    /// Last x87 instruction's opcode, address and operand.
    pub(crate) opcode: u16,
    pub(crate) cs: u16,
    pub(crate) ds: u16,
    pub(crate) ip: u64,
    pub(crate) dp: u64,
}

impl Default for Fpu {
    fn default() -> Self {
        Self {
            xmm: [0; 16],
            ymm_high: [0; 16],
            regs: [F80::ZERO; 8],
            mxcsr: MXCSR_RESET,
            control: 0x40,
            status: 0,
            top: 0,
            valid: 0xff,
            opcode: 0,
            cs: 0,
            ds: 0,
            ip: 0,
            dp: 0,
        }
    }
}

impl Fpu {
    /// FNINIT: everything but the registers' contents.
    pub(crate) fn init(&mut self) {
        self.control = 0x37f;
        self.status = 0;
        self.top = 0;
        self.valid = 0;
        self.clear_pointers();
    }

    fn clear_pointers(&mut self) {
        (self.opcode, self.cs, self.ds, self.ip, self.dp) = (0, 0, 0, 0, 0);
    }

    /// An exception is pending: one is flagged and not masked.
    #[inline]
    pub(crate) fn pending(&self) -> bool {
        self.status & !self.control & 0x3f != 0
    }

    /// The status word as instructions see it.
    pub(crate) fn status_word(&self) -> u16 {
        let summary = if self.pending() { 0x8080 } else { 0 };
        self.status | u16::from(self.top) << 11 | summary
    }

    /// Takes a status word apart.
    pub(crate) fn set_status_word(&mut self, word: u16) {
        self.status = word & 0x477f;
        self.top = (word >> 11 & 7) as u8;
    }

    /// Loads a control word; bit 6 reads as one.
    pub(crate) fn set_control(&mut self, word: u16) {
        self.control = word & 0x1f3f | 0x40;
    }

    /// The full tag word: 0 valid, 1 zero, 2 special, 3 empty, for each physical register.
    pub(crate) fn tag_word(&self) -> u16 {
        (0..8).fold(0, |word, n| {
            let tag = if self.valid >> n & 1 == 0 {
                3
            } else {
                match self.regs[n].unpack().class {
                    Class::Normal => 0,
                    Class::Zero => 1,
                    _ => 2,
                }
            };
            word | tag << (2 * n)
        })
    }

    /// Loads a full tag word, of which only emptiness is kept.
    pub(crate) fn set_tag_word(&mut self, word: u16) {
        self.valid = (0..8).fold(0, |valid, n| valid | u8::from(word >> (2 * n) & 3 != 3) << n);
    }

    /// ST(0) to ST(7), empty or not, as XSAVE has them.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn stack(&self) -> [u128; 8] {
        std::array::from_fn(|i| self.regs[(usize::from(self.top) + i) % 8].to_bits())
    }

    /// Takes what the host's x87 had, in the form of XSAVE's image.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn take_x87(&mut self, control: u16, status: u16, valid: u8, stack: &[u128; 8]) {
        self.set_control(control);
        self.set_status_word(status);
        self.valid = valid;
        for (i, &bits) in stack.iter().enumerate() {
            self.regs[(usize::from(self.top) + i) % 8] = F80::from_bits(bits);
        }
    }

    /// For saving.
    pub(crate) fn save(&self, state: &mut CpuState) {
        state.x87 = X87State {
            regs: self.regs.map(F80::to_bits),
            control: self.control,
            status: self.status_word(),
            tags: self.tag_word(),
            opcode: self.opcode,
            ip: self.ip,
            cs: self.cs,
            dp: self.dp,
            ds: self.ds,
        };
        state.xmm = self.xmm;
        state.ymm_high = self.ymm_high;
        state.mxcsr = self.mxcsr;
    }

    /// From what was saved.
    ///
    /// # Errors
    /// Says which register has bits that do not exist.
    pub(crate) fn restore(state: &CpuState) -> Result<Self, String> {
        if state.mxcsr & !(MXCSR_MASK | MXCSR_MM) != 0 {
            return Err(format!("MXCSR {:#x} has reserved bits set", state.mxcsr));
        }
        let x87 = &state.x87;
        if let Some(n) = x87.regs.iter().position(|bits| bits >> 80 != 0) {
            return Err(format!("x87 register R{n} has more than 80 bits"));
        }
        let mut fpu = Self {
            xmm: state.xmm,
            ymm_high: state.ymm_high,
            regs: x87.regs.map(F80::from_bits),
            mxcsr: state.mxcsr,
            opcode: x87.opcode & 0x7ff,
            cs: x87.cs,
            ds: x87.ds,
            ip: x87.ip,
            dp: x87.dp,
            ..Self::default()
        };
        fpu.set_control(x87.control);
        fpu.set_status_word(x87.status);
        fpu.set_tag_word(x87.tags);
        Ok(fpu)
    }
}

/// The handler of an instruction that belongs to this unit.
pub(crate) fn select(insn: &Instruction) -> Option<Handler> {
    let mnemonic = insn.mnemonic();
    if insn.op_code().encoding() == EncodingKind::VEX {
        return avx::select(insn);
    }
    x87::select(insn)
        .or_else(|| packed::select::<Legacy>(insn, mnemonic))
        .or_else(|| packed::select_legacy(mnemonic))
        .or_else(|| moves::select(insn))
        .or_else(|| float::select::<Legacy>(mnemonic))
        .or_else(|| float_convert::select(insn))
        .or_else(|| strings::select(insn))
        .or_else(|| xsave::select(insn))
}

/// What x87's opcode register takes from an instruction's bytes, if it is an x87 instruction: the low
/// bits of its first opcode byte, which is an escape (D8 to DF), and its ModRM byte.
pub(crate) fn x87_opcode(bytes: &[u8]) -> Option<u16> {
    let is_prefix = |byte: &u8| matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3);
    let start = bytes.iter().position(|byte| !is_prefix(byte))?;
    match bytes[start..] {
        [escape @ 0xd8..=0xdf, modrm, ..] => Some(u16::from(escape & 7) << 8 | u16::from(modrm)),
        _ => None,
    }
}
