//! Giving pages back to the host.
#![allow(unsafe_code)]

use std::io;

use rustix::mm::{Advice, madvise};
use vm_memory::VolatileSlice;
use vm_memory::bitmap::Bitmap;

use crate::PageLog;

/// Frees the pages of `slice`, which is page-aligned; they read as zero afterwards.
pub(crate) fn discard(slice: &VolatileSlice<'_, PageLog>) -> io::Result<()> {
    let pages = slice.ptr_guard_mut();
    // SAFETY: the range is mapped guest RAM, private and anonymous, for as long as `slice` lives; Rust
    // holds no references into it, and reading zeroes there is like any write by the guest.
    unsafe { madvise(pages.as_ptr().cast(), slice.len(), Advice::LinuxDontNeed) }?;
    slice.bitmap().mark_dirty(0, slice.len());
    Ok(())
}
