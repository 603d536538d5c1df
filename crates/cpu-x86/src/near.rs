//! Memory that generated code reaches by one register: two values in one mapping, so that the second is
//! always as far from the first, and behind them a word that other threads may change.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use crate::host::TlbEntry;

/// Size of the host's large pages. Values that are at least as large begin at a multiple of it, and with
/// a large page.
const LARGE: usize = 2 << 20;
/// Size of the host's other pages.
const SMALL: usize = 4096;

/// Types of which every value's bytes are valid, all zeroes too.
///
/// # Safety
/// That has to be so.
pub(crate) unsafe trait Plain {}

// SAFETY: integers only.
unsafe impl Plain for TlbEntry {}
// SAFETY: an array has its elements' bytes and no others.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}

/// An owned mapping.
struct Mapping {
    at: NonNull<u8>,
    len: usize,
}

// SAFETY: it owns its memory, and nobody reaches that through it.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// At least `len` bytes, all zeroes, that begin at a multiple of [`LARGE`].
    fn new(len: usize) -> Self {
        let len = len.next_multiple_of(SMALL);
        let (rights, room) = (ProtFlags::READ | ProtFlags::WRITE, len + LARGE);
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let mapped = unsafe { mmap_anonymous(ptr::null_mut(), room, rights, MapFlags::PRIVATE) };
        let Some(mapped) = mapped.ok().and_then(|at| NonNull::new(at.cast::<u8>())) else {
            let layout = std::alloc::Layout::from_size_align(room, SMALL);
            std::alloc::handle_alloc_error(layout.unwrap_or(std::alloc::Layout::new::<u8>()))
        };
        let before = mapped.as_ptr().align_offset(LARGE).min(LARGE);
        // SAFETY: parts of the mapping that nothing uses; `at` is within it.
        let at = unsafe {
            let at = mapped.add(before);
            if before > 0 {
                let _ = munmap(mapped.as_ptr().cast(), before);
            }
            if before < LARGE {
                let _ = munmap(at.add(len).as_ptr().cast(), LARGE - before);
            }
            at
        };
        Self { at, len }
    }

    /// What is `offset` bytes from the beginning, which has to be there, not to overlap anything that is
    /// used, and to be aligned.
    fn part<T: Plain>(self: &Arc<Self>, offset: usize) -> NearBox<T> {
        assert!(offset + size_of::<T>() <= self.len && offset.is_multiple_of(align_of::<T>()));
        // SAFETY: within the mapping.
        let at = unsafe { self.at.add(offset) };
        if size_of::<T>() >= LARGE {
            // SAFETY: advice, which changes nothing that is read.
            let _ = unsafe { madvise(at.as_ptr().cast(), LARGE, Advice::LinuxHugepage) };
        }
        NearBox { at: at.cast(), owns: PhantomData, _mapping: Arc::clone(self) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and every value in it is gone.
        let _ = unsafe { munmap(self.at.as_ptr().cast(), self.len) };
    }
}

/// An owned `T` in a mapping.
pub(crate) struct NearBox<T: Plain> {
    at: NonNull<T>,
    owns: PhantomData<T>,
    _mapping: Arc<Mapping>,
}

// SAFETY: it owns its memory, as a `Box` does.
unsafe impl<T: Plain + Send> Send for NearBox<T> {}
// SAFETY: as above.
unsafe impl<T: Plain + Sync> Sync for NearBox<T> {}

/// How far a `B` is from the `A` of the same [`pair`].
pub(crate) const fn distance<A: Plain, B: Plain>() -> usize {
    size_of::<A>().next_multiple_of(if size_of::<B>() >= LARGE { LARGE } else { SMALL })
}

/// How far the word is from the `B` of a [`pair`]: in a cache line of its own.
pub(crate) const fn distance_of_word<B: Plain>() -> usize {
    size_of::<B>().next_multiple_of(64)
}

/// An `A` and a `B` with [`distance`] from one to the other, and the word behind them; at first all zeroes.
pub(crate) fn pair<A: Plain, B: Plain>() -> (NearBox<A>, NearBox<B>, NearWord) {
    let (second, word) = (distance::<A, B>(), distance_of_word::<B>());
    let mapping = Arc::new(Mapping::new(second + word + size_of::<AtomicU64>()));
    // SAFETY: within the mapping, and aligned, as its beginning is.
    let at = unsafe { mapping.at.add(second + word) }.cast();
    let word = NearWord { at, _mapping: Arc::clone(&mapping) };
    (mapping.part(0), mapping.part(second), word)
}

/// A word in a mapping.
pub(crate) struct NearWord {
    at: NonNull<AtomicU64>,
    _mapping: Arc<Mapping>,
}

// SAFETY: it only gives out an atomic word, which is there as long as it is.
unsafe impl Send for NearWord {}
// SAFETY: as above.
unsafe impl Sync for NearWord {}

impl Deref for NearWord {
    type Target = AtomicU64;

    fn deref(&self) -> &AtomicU64 {
        // SAFETY: within the mapping, aligned, zeroes at first, and a part of no value but this.
        unsafe { self.at.as_ref() }
    }
}

impl<T: Plain> NearBox<T> {
    /// A value of its own, at first all zeroes.
    pub(crate) fn new() -> Self {
        Arc::new(Mapping::new(size_of::<T>())).part(0)
    }
}

impl<T: Plain> Deref for NearBox<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: within the mapping, aligned, and this value's own; `Plain` says that any bytes are a
        // `T`.
        unsafe { self.at.as_ref() }
    }
}

impl<T: Plain> DerefMut for NearBox<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as for `deref`, and `self` is borrowed exclusively.
        unsafe { self.at.as_mut() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    // SAFETY: no bytes at all.
    unsafe impl Plain for () {}

    #[test]
    fn both_of_a_pair_are_where_they_are_said_to_be() {
        type Large = [TlbEntry; LARGE / size_of::<TlbEntry>()];
        let (small, mut large, word) = pair::<[TlbEntry; 3], Large>();
        let from = (&raw const *small).addr();
        assert_eq!((&raw const *large).addr() - from, distance::<[TlbEntry; 3], Large>());
        assert!(from.is_multiple_of(LARGE) && distance::<(), [TlbEntry; 3]>() == 0);
        let distance = word.as_ptr().addr() - (&raw const *large).addr();
        assert_eq!(distance, distance_of_word::<Large>());
        drop(small);
        let last = large.len() - 1;
        large[last] = TlbEntry::empty(0);
        assert!(!large[0].is_empty(0) && large[last].is_empty(0));
        drop(large);
        assert_eq!(word.swap(7, Ordering::Relaxed), 0);
    }
}
