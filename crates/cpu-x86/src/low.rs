//! Memory in the lowest two gigabytes of the process, where generated code reaches it by an absolute
//! address of 32 bits, with an index and without a base register.
//!
//! Where the host has no room there, or no such place, the memory is somewhere else, and
//! [`LowBox::low_addr`] says so.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use crate::host::TlbEntry;

/// Types of which every value's bytes are valid, all zeroes too.
///
/// # Safety
/// That has to be so.
pub(crate) unsafe trait Plain {}

// SAFETY: integers only.
unsafe impl Plain for TlbEntry {}
// SAFETY: an array has its elements' bytes and no others.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}

/// An owned `T`, at first all zeroes, in memory of its own: in the lowest two gigabytes if possible.
pub(crate) struct LowBox<T: Plain> {
    at: NonNull<T>,
    owns: PhantomData<T>,
}

// SAFETY: it owns its memory, as a `Box` does.
unsafe impl<T: Plain + Send> Send for LowBox<T> {}
// SAFETY: as above.
unsafe impl<T: Plain + Sync> Sync for LowBox<T> {}

impl<T: Plain> LowBox<T> {
    /// What is at least this large begins at a multiple of it, and in a large page of the host's.
    const LARGE: usize = 2 << 20;
    const IS_LARGE: bool = size_of::<T>() >= Self::LARGE;

    pub(crate) fn new() -> Self {
        let rights = ProtFlags::READ | ProtFlags::WRITE;
        let room = size_of::<T>() + if Self::IS_LARGE { Self::LARGE } else { 0 };
        // MAP_32BIT, which only Linux on x86-64 has.
        let low = if cfg!(all(target_os = "linux", target_arch = "x86_64")) { 0x40 } else { 0 };
        let flags = [MapFlags::from_bits_retain(low), MapFlags::empty()];
        let mapped = flags.into_iter().find_map(|flags| {
            // SAFETY: a new mapping, at an address that the kernel chooses.
            unsafe { mmap_anonymous(ptr::null_mut(), room, rights, MapFlags::PRIVATE | flags) }.ok()
        });
        let Some(at) = mapped.and_then(|at| NonNull::new(Self::aligned(at.cast(), room))) else {
            std::alloc::handle_alloc_error(std::alloc::Layout::new::<T>())
        };
        Self { at, owns: PhantomData }
    }

    /// Where in the new mapping of `room` bytes at `mapped` the value shall be. What is left over is
    /// unmapped.
    fn aligned(mapped: *mut u8, room: usize) -> *mut T {
        if !Self::IS_LARGE {
            return mapped.cast();
        }
        let at = mapped.map_addr(|address| address.next_multiple_of(Self::LARGE));
        let before = at.addr() - mapped.addr();
        // The kernel unmaps whole pages.
        let end = (before + size_of::<T>()).next_multiple_of(4096);
        // SAFETY: parts of the mapping that nothing uses; and advice, which changes nothing that is read.
        unsafe {
            if before > 0 {
                let _ = munmap(mapped.cast(), before);
            }
            if end < room {
                let _ = munmap(mapped.add(end).cast(), room - end);
            }
            let _ = madvise(at.cast(), Self::LARGE, Advice::LinuxHugepage);
        }
        at.cast()
    }

    /// The address, if it is below two gigabytes.
    pub(crate) fn low_addr(&self) -> Option<u32> {
        let end = self.at.as_ptr() as usize + size_of::<T>();
        (end < 1 << 31).then_some(self.at.as_ptr() as usize as u32)
    }
}

impl<T: Plain> Deref for LowBox<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the mapping is large enough, page-aligned and this value's own; `Plain` says that any
        // bytes are a `T`.
        unsafe { self.at.as_ref() }
    }
}

impl<T: Plain> DerefMut for LowBox<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as for `deref`, and `self` is borrowed exclusively.
        unsafe { self.at.as_mut() }
    }
}

impl<T: Plain> Drop for LowBox<T> {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this size; nothing borrows it any more.
        let _ = unsafe { munmap(self.at.as_ptr().cast(), size_of::<T>()) };
    }
}
