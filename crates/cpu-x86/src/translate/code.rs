//! The memory that translated code is in: mapped to be executed and never to be written. What is new in
//! it goes through the file that is mapped. Where a jump leads is changed while other CPUs may execute it, by
//! one store of four bytes through a second mapping, of which hardly anything is resident at a time.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::pwrite;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

use super::asm::Placed;
use super::cache::{Patch, To};

/// Size of the host's large pages.
const LARGE: usize = 2 << 20;
/// From how much code on in a large page it becomes one.
const WORTH_LARGE: usize = LARGE / 8;
/// Size of the host's other pages.
const SMALL: usize = 4096;
/// After how many changes of jumps the pages that they were made through are given back.
const CHANGES: u32 = 128;

/// A buffer of translated code.
pub(super) struct CodeBuffer {
    file: OwnedFd,
    /// Where address space was reserved: [`LARGE`] bytes more than `size`.
    reserved: NonNull<u8>,
    /// Where the file is mapped, at a multiple of [`LARGE`].
    execute: NonNull<u8>,
    /// Where it is mapped to change jumps, a page after a multiple of [`LARGE`]: so no more than a small page
    /// becomes resident.
    change: NonNull<u8>,
    /// How many were changed since pages were given back.
    changes: u32,
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
        let (none, executable) = (ProtFlags::empty(), ProtFlags::READ | ProtFlags::EXEC);
        let room = Self::room(size);
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let reserved = unsafe { mmap_anonymous(ptr::null_mut(), room, none, MapFlags::PRIVATE) }?;
        let reserved = NonNull::new(reserved.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let unmap = || {
            // SAFETY: mapped above, and nothing refers to it.
            let _ = unsafe { munmap(reserved.as_ptr().cast(), room) };
        };
        let map = |at: *mut u8, rights| {
            let flags = MapFlags::SHARED | MapFlags::FIXED;
            // SAFETY: in the place of a part of what was just mapped, which nothing uses yet.
            let mapped = unsafe { mmap(at.cast(), size, rights, flags, &file, 0) };
            mapped.map(|_| NonNull::new(at).unwrap_or(reserved)).inspect_err(|_| unmap())
        };
        let aligned = reserved.as_ptr().map_addr(|address| address.next_multiple_of(LARGE));
        let execute = map(aligned, executable)?;
        let beyond = aligned.wrapping_add(size.next_multiple_of(LARGE) + SMALL);
        let change = map(beyond, ProtFlags::WRITE)?;
        let (used, seldom, large, changes) = (0, 0, 0, 0);
        Ok(Self { file, reserved, execute, change, changes, size, used, seldom, large })
    }

    /// How much address space a buffer of `size` bytes needs.
    fn room(size: usize) -> usize {
        2 * size.next_multiple_of(LARGE) + LARGE + SMALL
    }

    /// Where code of these lengths will be executed, that is often run and that is not.
    pub(super) fn next(&self, lens: [usize; 2]) -> [u64; 2] {
        let at = self.execute.as_ptr() as u64;
        let seldom = (self.size - self.seldom - lens[1]) & !7;
        [at + self.used as u64, at + seldom as u64]
    }

    /// Bytes that are still free.
    pub(super) fn free(&self) -> usize {
        self.size - self.used()
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
        let start = (self.size - self.seldom - seldom.len()) & !7;
        self.write(start, seldom)?;
        self.seldom = self.size - start;
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

    /// Changes four bytes of code. CPUs that execute them meanwhile find what they were or what they are now: they
    /// are within a quadword, and stored as a part of it (SDM volume 3, section 9.1.1).
    pub(super) fn patch(&mut self, &Patch { at, to }: &Patch) {
        let end = self.address(at) + 4;
        let value = match to {
            To::Offset(offset) => self.address(offset).wrapping_sub(end) as u32,
            To::Code(code) => code.wrapping_sub(end) as u32,
            To::Number(number) => number,
        };
        let offset = at as usize;
        let (start, shift) = (offset & !7, 8 * (offset & 7));
        assert!(start + 8 <= self.size && shift <= 32, "four bytes of a quadword in the buffer");
        // SAFETY: within both mappings, which live as long as `self`, at a multiple of eight bytes; nobody
        // else writes there.
        let (executed, changed) = unsafe {
            let executed = self.execute.add(start).cast::<AtomicU64>().as_ref();
            (executed, self.change.add(start).cast::<AtomicU64>().as_ref())
        };
        let others = executed.load(Ordering::Relaxed) & !(0xffff_ffff << shift);
        changed.store(others | u64::from(value) << shift, Ordering::Release);
        self.changes += 1;
        if self.changes == CHANGES {
            self.changes = 0;
            // SAFETY: what is in the pages is in the file, and stays there.
            let _ =
                unsafe { madvise(self.change.as_ptr().cast(), self.size, Advice::LinuxDontNeed) };
        }
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
        let _ = unsafe { munmap(self.reserved.as_ptr().cast(), Self::room(self.size)) };
    }
}
