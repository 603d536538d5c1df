//! The memory that translated code is in: mapped twice, once to be written and once to be executed, so
//! that no page is ever both.
#![allow(unsafe_code)]

use std::io;
use std::ptr::{self, NonNull};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// A buffer of translated code.
pub(super) struct CodeBuffer {
    write: NonNull<u8>,
    execute: NonNull<u8>,
    size: usize,
    used: usize,
}

// SAFETY: it owns its two mappings; what is in them is only used by its owner.
unsafe impl Send for CodeBuffer {}
// SAFETY: shared, it can only be asked for addresses.
unsafe impl Sync for CodeBuffer {}

impl CodeBuffer {
    /// A buffer for `size` bytes.
    pub(super) fn new(size: usize) -> io::Result<Self> {
        let file = memfd_create("rhea-code", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, size as u64)?;
        let map = |rights| {
            // SAFETY: a new mapping, at an address that the kernel chooses.
            let at = unsafe { mmap(ptr::null_mut(), size, rights, MapFlags::SHARED, &file, 0) }?;
            NonNull::new(at.cast()).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))
        };
        let write = map(ProtFlags::READ | ProtFlags::WRITE)?;
        match map(ProtFlags::READ | ProtFlags::EXEC) {
            Ok(execute) => Ok(Self { write, execute, size, used: 0 }),
            Err(error) => {
                // SAFETY: mapped above, and nothing refers to it.
                let _ = unsafe { munmap(write.as_ptr().cast(), size) };
                Err(error)
            }
        }
    }

    /// Where the next code will be executed.
    pub(super) fn next(&self) -> u64 {
        self.execute.as_ptr() as u64 + self.used as u64
    }

    /// Bytes that are still free.
    pub(super) fn free(&self) -> usize {
        self.size - self.used
    }

    /// Forgets everything after the first `used` bytes.
    pub(super) fn truncate(&mut self, used: usize) {
        self.used = self.used.min(used);
    }

    pub(super) fn size(&self) -> usize {
        self.size
    }

    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// Appends code, which was made to be at [`Self::next`]; returns where it is.
    pub(super) fn push(&mut self, code: &[u8]) -> u64 {
        assert!(code.len() <= self.free(), "room for the code");
        let at = self.next();
        // SAFETY: the bytes are within the mapping, as just checked, and only this value writes to it.
        unsafe {
            let to = self.write.as_ptr().add(self.used);
            ptr::copy_nonoverlapping(code.as_ptr(), to, code.len());
        }
        // The next code begins at a cache line's half.
        self.used = (self.used + code.len()).next_multiple_of(32).min(self.size);
        at
    }

    /// Makes the displacement at `at`, the address of a jump's last four bytes, lead to `target`.
    pub(super) fn patch(&mut self, at: u64, target: u64) {
        let offset = at.wrapping_sub(self.execute.as_ptr() as u64) as usize;
        assert!(offset.checked_add(4).is_some_and(|end| end <= self.used), "a jump in the buffer");
        let distance = target.wrapping_sub(at + 4) as i32;
        // SAFETY: within the mapping, as just checked. The CPU whose code it is is the one that calls.
        unsafe { self.write.as_ptr().add(offset).cast::<i32>().write_unaligned(distance) };
    }
}

impl Drop for CodeBuffer {
    fn drop(&mut self) {
        // SAFETY: both were mapped by `new` with this size, and no code in them runs any more.
        unsafe {
            let _ = munmap(self.write.as_ptr().cast(), self.size);
            let _ = munmap(self.execute.as_ptr().cast(), self.size);
        }
    }
}
