//! What translated code and the rest of the CPU exchange.

use std::mem::offset_of;

use crate::flags::bits::{AF, CF, OF, PF, SF, ZF};
use crate::low::Plain;

/// Entries of the jump cache.
pub(super) const JUMPS: usize = 4096;

/// Where the guest's registers are when no translated code runs, and what it needs at hand.
#[repr(C)]
pub(super) struct State {
    pub(super) gpr: [u64; 16],
    /// The arithmetic flags as LAHF and SETO AL put them into RAX.
    pub(super) flags: u64,
    /// RFLAGS without the arithmetic flags.
    pub(super) system_flags: u64,
    pub(super) rip: u64,
    /// What left translated code: the link that it came from, or 0.
    pub(super) link: u64,
    /// Bases of FS and GS.
    pub(super) bases: [u64; 2],
    /// Address of the word of signals.
    pub(super) signals: u64,
    /// The `Context` of `enter`.
    pub(super) context: u64,
    /// Address of the helper that executes one instruction.
    pub(super) step: u64,
    /// Address of the helper that makes vector registers available.
    pub(super) vectors: u64,
    /// A value that needs a place for a moment.
    pub(super) spare: u64,
    /// Where checked code is expected to go.
    pub(super) expected: u64,
    /// Instructions that may be executed, if they are counted.
    pub(super) budget: i64,
    /// Always 0.
    pub(super) never: u64,
    /// Whose vector registers the host has: 0 for its own, 1 for the guest's while SSE may run, 2 while
    /// AVX may.
    pub(super) loaded: u32,
    /// MXCSR of guest and host.
    pub(super) mxcsr: [u32; 2],
    /// Keeps what follows aligned.
    pub(super) unused: [u32; 1],
    pub(super) xmm: [u128; 16],
    pub(super) ymm_high: [u128; 16],
}

/// Where the code for a guest address is.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Jump {
    pub(super) rip: u64,
    pub(super) code: u64,
}

// SAFETY: integers only.
#[allow(unsafe_code)]
unsafe impl Plain for State {}
// SAFETY: integers only.
#[allow(unsafe_code)]
unsafe impl Plain for Jump {}

/// A RIP that no jump goes to: not canonical.
pub(super) const NOWHERE: u64 = 1 << 63;

/// Offsets in [`State`].
pub(super) mod at {
    use super::{State, offset_of};

    pub(in super::super) const GPR: u32 = offset_of!(State, gpr) as u32;
    pub(in super::super) const FLAGS: u32 = offset_of!(State, flags) as u32;
    pub(in super::super) const SYSTEM_FLAGS: u32 = offset_of!(State, system_flags) as u32;
    pub(in super::super) const RIP: u32 = offset_of!(State, rip) as u32;
    pub(in super::super) const LINK: u32 = offset_of!(State, link) as u32;
    pub(in super::super) const BASES: u32 = offset_of!(State, bases) as u32;
    pub(in super::super) const SIGNALS: u32 = offset_of!(State, signals) as u32;
    pub(in super::super) const CONTEXT: u32 = offset_of!(State, context) as u32;
    pub(in super::super) const STEP: u32 = offset_of!(State, step) as u32;
    pub(in super::super) const VECTORS: u32 = offset_of!(State, vectors) as u32;
    pub(in super::super) const SPARE: u32 = offset_of!(State, spare) as u32;
    pub(in super::super) const EXPECTED: u32 = offset_of!(State, expected) as u32;
    pub(in super::super) const BUDGET: u32 = offset_of!(State, budget) as u32;
    pub(in super::super) const NEVER: u32 = offset_of!(State, never) as u32;
    pub(in super::super) const LOADED: u32 = offset_of!(State, loaded) as u32;
    pub(in super::super) const MXCSR: u32 = offset_of!(State, mxcsr) as u32;
    pub(in super::super) const XMM: u32 = offset_of!(State, xmm) as u32;
    pub(in super::super) const YMM_HIGH: u32 = offset_of!(State, ymm_high) as u32;
}

/// RFLAGS bits from what LAHF and SETO AL left.
pub(super) fn flags_to_bits(saved: u64) -> u64 {
    (saved >> 8 & (SF | ZF | AF | PF | CF)) | ((saved & 1) * OF)
}

/// The inverse of [`flags_to_bits`].
pub(super) fn bits_to_flags(bits: u64) -> u64 {
    ((bits & (SF | ZF | AF | PF | CF)) << 8) | ((bits & OF) / OF)
}

/// The jump cache's entry for `rip`.
pub(super) fn jump_index(rip: u64) -> usize {
    (rip ^ rip >> 12) as usize % JUMPS
}
