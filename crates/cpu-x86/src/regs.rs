//! Bits of control registers, EFER and the debug registers (APM volume 2, chapters 3 and 13).

#![allow(missing_docs)]

pub(crate) const CR0_PE: u64 = 1 << 0;
pub(crate) const CR0_MP: u64 = 1 << 1;
pub(crate) const CR0_EM: u64 = 1 << 2;
pub(crate) const CR0_TS: u64 = 1 << 3;
pub(crate) const CR0_ET: u64 = 1 << 4;
pub(crate) const CR0_NE: u64 = 1 << 5;
pub(crate) const CR0_WP: u64 = 1 << 16;
pub(crate) const CR0_AM: u64 = 1 << 18;
pub(crate) const CR0_NW: u64 = 1 << 29;
pub(crate) const CR0_CD: u64 = 1 << 30;
pub(crate) const CR0_PG: u64 = 1 << 31;
/// Every bit of CR0 that means something; the others read as zero.
pub(crate) const CR0_VALID: u64 = CR0_PE
    | CR0_MP
    | CR0_EM
    | CR0_TS
    | CR0_ET
    | CR0_NE
    | CR0_WP
    | CR0_AM
    | CR0_NW
    | CR0_CD
    | CR0_PG;

pub(crate) const CR4_VME: u64 = 1 << 0;
pub(crate) const CR4_PVI: u64 = 1 << 1;
pub(crate) const CR4_TSD: u64 = 1 << 2;
pub(crate) const CR4_DE: u64 = 1 << 3;
pub(crate) const CR4_PSE: u64 = 1 << 4;
pub(crate) const CR4_PAE: u64 = 1 << 5;
pub(crate) const CR4_MCE: u64 = 1 << 6;
pub(crate) const CR4_PGE: u64 = 1 << 7;
pub(crate) const CR4_PCE: u64 = 1 << 8;
pub(crate) const CR4_OSFXSR: u64 = 1 << 9;
pub(crate) const CR4_OSXMMEXCPT: u64 = 1 << 10;
pub(crate) const CR4_UMIP: u64 = 1 << 11;
pub(crate) const CR4_LA57: u64 = 1 << 12;
pub(crate) const CR4_FSGSBASE: u64 = 1 << 16;
pub(crate) const CR4_PCIDE: u64 = 1 << 17;
pub(crate) const CR4_OSXSAVE: u64 = 1 << 18;
pub(crate) const CR4_SMEP: u64 = 1 << 20;
pub(crate) const CR4_SMAP: u64 = 1 << 21;
pub(crate) const CR4_PKE: u64 = 1 << 22;
pub(crate) const CR4_PKS: u64 = 1 << 24;
pub(crate) const CR4_LAM_SUP: u64 = 1 << 28;

/// CR3: pointers of user space have a tag from bit 57, or from bit 48 on.
pub(crate) const CR3_LAM_U57: u64 = 1 << 61;
pub(crate) const CR3_LAM_U48: u64 = 1 << 62;

pub(crate) const EFER_SCE: u64 = 1 << 0;
pub(crate) const EFER_LME: u64 = 1 << 8;
pub(crate) const EFER_LMA: u64 = 1 << 10;
pub(crate) const EFER_NXE: u64 = 1 << 11;
pub(crate) const EFER_SVME: u64 = 1 << 12;
pub(crate) const EFER_FFXSR: u64 = 1 << 14;

/// DR6 bits that read as one.
pub(crate) const DR6_FIXED: u64 = 0xffff_0ff0;
/// DR6 bits of the four breakpoints.
pub(crate) const DR6_BREAKPOINTS: u64 = 0xf;
pub(crate) const DR6_BD: u64 = 1 << 13;
pub(crate) const DR6_BS: u64 = 1 << 14;
pub(crate) const DR6_BT: u64 = 1 << 15;
/// Not of DR6, but pending as its bits are: the CPU came to a state that it can't be in, and shuts down.
pub(crate) const PENDING_SHUTDOWN: u64 = 1 << 63;
/// DR7 bit that reads as one.
pub(crate) const DR7_FIXED: u64 = 1 << 10;
pub(crate) const DR7_GD: u64 = 1 << 13;
