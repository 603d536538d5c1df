//! The memory that translated code is in: mapped to be executed and never to be written. What is new in
//! it goes through the file that is mapped, so that there is no page that the process could both write to
//! and execute, nor one that it could at two addresses.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;
use std::ptr::{self, NonNull};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::pwrite;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use super::asm::Placed;

/// Size of the host's large pages.
const LARGE: usize = 2 << 20;
/// From how much code on in a large page it becomes one.
const WORTH_LARGE: usize = LARGE / 8;

/// A buffer of translated code.
pub(super) struct CodeBuffer {
    file: OwnedFd,
    /// Where address space was reserved: [`LARGE`] bytes more than `size`.
    reserved: NonNull<u8>,
    /// Where the file is mapped, at a multiple of [`LARGE`].
    execute: NonNull<u8>,
    size: usize,
    /// Code that is often run is in the first so many bytes,
    used: usize,
    /// and what is seldom run in the last.
    seldom: usize,
    /// How far the buffer is in large pages, or was tried to be.
    large: usize,
}

// SAFETY: it owns its mapping; what is in it is only used by its owner.
unsafe impl Send for CodeBuffer {}
// SAFETY: shared, it can only be asked for addresses.
unsafe impl Sync for CodeBuffer {}

impl CodeBuffer {
    /// A buffer for `size` bytes.
    pub(super) fn new(size: usize) -> io::Result<Self> {
        let file = memfd_create("rhea-code", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, size as u64)?;
        let room = size + LARGE;
        let (none, executable) = (ProtFlags::empty(), ProtFlags::READ | ProtFlags::EXEC);
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let reserved = unsafe { mmap_anonymous(ptr::null_mut(), room, none, MapFlags::PRIVATE) }?;
        let reserved = NonNull::new(reserved.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let aligned = reserved.as_ptr().map_addr(|address| address.next_multiple_of(LARGE));
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        // SAFETY: in the place of a part of what was just mapped, which nothing uses yet.
        let mapped = unsafe { mmap(aligned.cast(), size, executable, flags, &file, 0) };
        let execute = NonNull::new(aligned).filter(|_| mapped.is_ok());
        match execute {
            Some(execute) => {
                Ok(Self { file, reserved, execute, size, used: 0, seldom: 0, large: 0 })
            }
            None => {
                // SAFETY: mapped above, and nothing refers to it.
                let _ = unsafe { munmap(reserved.as_ptr().cast(), room) };
                Err(mapped.err().map_or_else(|| io::ErrorKind::OutOfMemory.into(), io::Error::from))
            }
        }
    }

    /// Where code of these lengths will be executed, that is often run and that is not.
    pub(super) fn next(&self, lens: [usize; 2]) -> [u64; 2] {
        let at = self.execute.as_ptr() as u64;
        [at + self.used as u64, at + (self.size - self.seldom) as u64 - lens[1] as u64]
    }

    /// Bytes that are still free.
    pub(super) fn free(&self) -> usize {
        self.size - self.used()
    }

    /// Forgets everything after the first `used` bytes.
    pub(super) fn truncate(&mut self, used: usize) {
        self.used = self.used.min(used);
        self.seldom = 0;
    }

    pub(super) fn size(&self) -> usize {
        self.size
    }

    pub(super) fn used(&self) -> usize {
        self.used + self.seldom
    }

    /// Adds code, which was made to be at [`Self::next`].
    ///
    /// # Errors
    /// The host's, if it has no memory for it.
    pub(super) fn push(&mut self, code: &Placed) -> io::Result<()> {
        let [(_, often), (_, seldom)] = code.parts();
        assert!(often.len() + seldom.len() <= self.free(), "room for the code");
        self.write(self.used, often)?;
        self.write(self.size - self.seldom - seldom.len(), seldom)?;
        self.seldom += seldom.len();
        // The next code begins at a cache line's half.
        self.used = (self.used + often.len()).next_multiple_of(32).min(self.size - self.seldom);
        if self.used > self.large + WORTH_LARGE {
            self.enlarge();
        }
        Ok(())
    }

    /// Where in the buffer the code at address `at` is.
    pub(super) fn offset(&self, at: u64) -> u32 {
        (at - self.execute.as_ptr() as u64) as u32
    }

    /// The inverse of [`Self::offset`].
    pub(super) fn address(&self, offset: u32) -> u64 {
        self.execute.as_ptr() as u64 + u64::from(offset)
    }

    /// Makes the displacement that is `at` in the buffer, a jump's last four bytes, lead to address
    /// `target`.
    pub(super) fn patch(&mut self, at: u32, target: u64) {
        let offset = at as usize;
        assert!(offset + 4 <= self.size, "a jump in the buffer");
        let distance = target.wrapping_sub(self.address(at) + 4) as i32;
        // A jump that leads to what is no longer so can't be left.
        self.write(offset, &distance.to_le_bytes()).expect("memory that was written before");
    }

    fn write(&self, offset: usize, mut bytes: &[u8]) -> io::Result<()> {
        let mut offset = offset as u64;
        while !bytes.is_empty() {
            match pwrite(&self.file, bytes, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    bytes = &bytes[written..];
                    offset += written as u64;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Has the next part of the buffer in one large page of the host's, if it can: much code is in few
    /// entries of its TLB then.
    fn enlarge(&mut self) {
        let part = self.large;
        self.large += LARGE;
        if part + LARGE > self.size {
            return;
        }
        // SAFETY: within the mapping; what is read there stays the same. A refusal changes nothing.
        let _ = unsafe {
            libc::madvise(self.execute.as_ptr().add(part).cast(), LARGE, libc::MADV_COLLAPSE)
        };
    }
}

impl Drop for CodeBuffer {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this size, and no code in it runs any more.
        let _ = unsafe { munmap(self.reserved.as_ptr().cast(), self.size + LARGE) };
    }
}
