//! What translated code and the rest of the CPU exchange.

use std::mem::offset_of;

use crate::flags::bits::{AF, CF, OF, PF, SF, ZF};
use crate::low::Plain;

/// Entries of the jump cache: what 16 bits tell apart.
pub(super) const JUMPS: usize = 1 << 16;

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
    /// Values that need a place for a moment.
    pub(super) spare: [u64; 2],
    /// What SWAPGS exchanges GS's base with.
    pub(super) kernel_gs: u64,
    /// Where SYSCALL goes to from 64-bit code.
    pub(super) lstar: u64,
    /// The bits of RFLAGS that SYSCALL leaves as they are.
    pub(super) flag_mask: u64,
    /// SYSCALL and SYSRET may be executed by translated code: not 0 if so.
    pub(super) fast_calls: u32,
    /// Which of them was the last that the CPU has not heard of; 0 if none.
    pub(super) crossing: u32,
    /// The signals for which translated code is left, now and with IF clear.
    pub(super) wanted: [u32; 2],
    /// Accesses through FS and GS need no check: not 0 if so.
    pub(super) flat: [u32; 2],
    /// Whose vector registers the host has: 0 for its own, 1 for the guest's while SSE may run, 2 while
    /// AVX may.
    pub(super) loaded: u32,
    /// MXCSR of guest and host.
    pub(super) mxcsr: [u32; 2],
    /// Keeps what follows aligned.
    pub(super) unused: u32,
    pub(super) xmm: [u128; 16],
    pub(super) ymm_high: [u128; 16],
}

/// In [`State::crossing`]: SYSCALL to 64-bit code.
pub(super) const ENTERED_KERNEL: u32 = 1;
/// In [`State::crossing`]: SYSRET to 64-bit code.
pub(super) const LEFT_KERNEL: u32 = 2;

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
const NOWHERE: u64 = 1 << 63;

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
    pub(in super::super) const KERNEL_GS: u32 = offset_of!(State, kernel_gs) as u32;
    pub(in super::super) const LSTAR: u32 = offset_of!(State, lstar) as u32;
    pub(in super::super) const FLAG_MASK: u32 = offset_of!(State, flag_mask) as u32;
    pub(in super::super) const FAST_CALLS: u32 = offset_of!(State, fast_calls) as u32;
    pub(in super::super) const CROSSING: u32 = offset_of!(State, crossing) as u32;
    pub(in super::super) const WANTED: u32 = offset_of!(State, wanted) as u32;
    pub(in super::super) const FLAT: u32 = offset_of!(State, flat) as u32;
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
    (rip ^ rip >> 16) as usize % JUMPS
}

/// What the entry at `index` has while it is for nothing: a RIP that belongs to another one, or to none.
/// So entries are for nothing while they are all zeroes, but for the first.
pub(super) fn no_jump(index: usize) -> u64 {
    if index == 0 { NOWHERE } else { 0 }
}
