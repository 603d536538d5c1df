//! What needs raw pointers or structures: vectored I/O on guest memory, buffers of our own in the form
//! of guest memory, and locks that belong to an open file description.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use memory::PageLog;
use memory::vm_memory::bitmap::Bitmap;

use crate::GuestSlice;

/// Most pieces of memory in one call; what Linux takes at least.
const MAX_PIECES: usize = 1024;

/// `buf` in the form of guest memory, so that a device's own buffer takes the same way as the guest's.
pub fn buffer_slice(buf: &mut [u8]) -> GuestSlice<'_> {
    // SAFETY: the slice lives as long as the exclusive borrow of `buf`, which nobody uses meanwhile.
    unsafe { GuestSlice::with_bitmap(buf.as_mut_ptr(), buf.len(), PageLog::default(), None) }
}

/// Calls `write` with `buf` in the form of guest memory; a copy, since that form can be written to.
pub(crate) fn with_buffer<T>(buf: &[u8], write: impl FnOnce(&GuestSlice<'_>) -> T) -> T {
    write(&buffer_slice(&mut buf.to_vec()))
}

/// Reads into `bufs` at `offset` with one system call; returns the bytes read, 0 at the end of the
/// file, and notes the memory as written.
pub(crate) fn read_vectored(
    file: &File,
    bufs: &[GuestSlice<'_>],
    offset: u64,
) -> io::Result<usize> {
    let offset = file_offset(offset)?;
    let bufs = &bufs[..bufs.len().min(MAX_PIECES)];
    let guards: Vec<_> = bufs.iter().map(|b| b.ptr_guard_mut()).collect();
    let pieces: Vec<_> = guards
        .iter()
        .map(|g| libc::iovec { iov_base: g.as_ptr().cast(), iov_len: g.len() })
        .collect();
    // SAFETY: each piece is a stretch of guest memory that `bufs` keeps mapped for the call, and that
    // Rust holds no references into; the count is within what the call takes.
    let count = unsafe {
        libc::preadv64(file.as_raw_fd(), pieces.as_ptr(), pieces.len() as libc::c_int, offset)
    };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    let mut left = count;
    for buf in bufs {
        let written = left.min(buf.len());
        buf.bitmap().mark_dirty(0, written);
        left -= written;
    }
    Ok(count)
}

/// Writes `bufs` at `offset` with one system call; returns the bytes written.
pub(crate) fn write_vectored(
    file: &File,
    bufs: &[GuestSlice<'_>],
    offset: u64,
) -> io::Result<usize> {
    let offset = file_offset(offset)?;
    let bufs = &bufs[..bufs.len().min(MAX_PIECES)];
    let guards: Vec<_> = bufs.iter().map(|b| b.ptr_guard()).collect();
    let pieces: Vec<_> = guards
        .iter()
        .map(|g| libc::iovec { iov_base: g.as_ptr().cast_mut().cast(), iov_len: g.len() })
        .collect();
    // SAFETY: each piece is a stretch of guest memory that `bufs` keeps mapped for the call; the call
    // only reads it; the count is within what the call takes.
    let count = unsafe {
        libc::pwritev64(file.as_raw_fd(), pieces.as_ptr(), pieces.len() as libc::c_int, offset)
    };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

fn file_offset(offset: u64) -> io::Result<libc::off64_t> {
    offset.try_into().map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

/// What to do with one byte's lock.
#[derive(Clone, Copy)]
pub(crate) enum ByteLock {
    /// Take it, shared with others.
    Shared,
    /// Let it go.
    Unlocked,
}

/// Takes or lets go of the lock on byte `at`; the lock belongs to the open file description.
pub(crate) fn lock_byte(file: &File, at: u64, lock: ByteLock) -> io::Result<()> {
    let kind = match lock {
        ByteLock::Shared => libc::F_RDLCK,
        ByteLock::Unlocked => libc::F_UNLCK,
    };
    let range = byte_range(at, kind)?;
    // SAFETY: the call reads the structure, which lives until it returns.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &range) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether another open file description holds any lock on byte `at`.
pub(crate) fn is_byte_locked(file: &File, at: u64) -> io::Result<bool> {
    let mut range = byte_range(at, libc::F_WRLCK)?;
    // SAFETY: the call reads and writes the structure, which lives until it returns.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &mut range) };
    if result == 0 {
        Ok(range.l_type != libc::F_UNLCK as libc::c_short)
    } else {
        Err(io::Error::last_os_error())
    }
}

fn byte_range(at: u64, kind: libc::c_int) -> io::Result<libc::flock> {
    Ok(libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: file_offset(at)?,
        l_len: 1,
        l_pid: 0,
    })
}
