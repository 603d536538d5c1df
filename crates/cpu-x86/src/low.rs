//! Memory in the lowest two gigabytes of the process, where generated code reaches it by an absolute
//! address of 32 bits, with an index and without a base register.
//!
//! Where the host has no room there, or no such place, the memory is somewhere else, and
//! [`LowBox::low_addr`] says so.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

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
    pub(crate) fn new() -> Self {
        let rights = ProtFlags::READ | ProtFlags::WRITE;
        // MAP_32BIT, which only Linux on x86-64 has.
        let low = if cfg!(all(target_os = "linux", target_arch = "x86_64")) { 0x40 } else { 0 };
        let flags = [MapFlags::from_bits_retain(low), MapFlags::empty()];
        let mapped = flags.into_iter().find_map(|flags| {
            // SAFETY: a new mapping, at an address that the kernel chooses.
            let at = unsafe {
                mmap_anonymous(ptr::null_mut(), size_of::<T>(), rights, MapFlags::PRIVATE | flags)
            };
            at.ok().and_then(|at| NonNull::new(at.cast::<T>()))
        });
        match mapped {
            Some(at) => Self { at, owns: PhantomData },
            None => std::alloc::handle_alloc_error(std::alloc::Layout::new::<T>()),
        }
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
