//! What the host is told about guest memory: pages that are not needed, and how to treat the rest.
#![allow(unsafe_code)]

use std::io;

use rustix::mm::{Advice, madvise};
use vm_memory::VolatileSlice;
use vm_memory::bitmap::Bitmap;

use crate::PageLog;

/// How the host is to treat guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostAdvice {
    /// Leave it out of core dumps.
    NoCoreDump,
    /// Share pages with others that are equal.
    Mergeable,
    /// Use large pages.
    LargePages,
    /// Make all pages now, not when they are used.
    Preallocated,
}

/// Tells the host how to treat the pages of `slice`, which is page-aligned.
pub(crate) fn advise(slice: &VolatileSlice<'_, PageLog>, advice: HostAdvice) -> io::Result<()> {
    let advice = match advice {
        HostAdvice::NoCoreDump => Advice::LinuxDontDump,
        HostAdvice::Mergeable => Advice::LinuxMergeable,
        HostAdvice::LargePages => Advice::LinuxHugepage,
        HostAdvice::Preallocated => Advice::LinuxPopulateWrite,
    };
    let pages = slice.ptr_guard_mut();
    // SAFETY: the range is mapped guest RAM for as long as `slice` lives, and no advice here changes what
    // is read there.
    unsafe { madvise(pages.as_ptr().cast(), slice.len(), advice) }?;
    Ok(())
}

/// Frees the pages of `slice`, which is page-aligned; they read as zero afterwards.
pub(crate) fn discard(slice: &VolatileSlice<'_, PageLog>) -> io::Result<()> {
    let pages = slice.ptr_guard_mut();
    // SAFETY: the range is mapped guest RAM, private and anonymous, for as long as `slice` lives; Rust
    // holds no references into it, and reading zeroes there is like any write by the guest.
    unsafe { madvise(pages.as_ptr().cast(), slice.len(), Advice::LinuxDontNeed) }?;
    slice.bitmap().mark_dirty(0, slice.len());
    Ok(())
}
