//! The `file` and `host_device` protocols: the bytes are in a file or a block device of the host.
//!
//! Requests go to the host in single vectored calls on guest memory. With `cache.direct=on` they
//! bypass the host's page cache; those whose memory, offset or length is not aligned for that take the
//! page cache (the kernel keeps both coherent).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use rustix::fs::{FallocateFlags, fallocate};

use crate::Operation;
use crate::lock::{lock_image, unlock_image};
use crate::{
    BlockBackend, CacheMode, DiscardMode, GuestSlice, IoStats, LockError, slices_len, sys,
};

/// Alignment of memory, offset and length that direct I/O is tried with.
const DIRECT_ALIGNMENT: u64 = 512;
/// Sectors are what disks are made of.
const SECTOR: u64 = 512;

/// Why an image could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The host refused.
    #[error("Could not open '{}': {}", .path.display(), describe(.source))]
    Host {
        /// The image.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// It is no file that can hold a disk.
    #[error("'file' driver requires '{}' to be a regular file", .path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// No temporary file could be made.
    #[error(
        "Could not create temporary overlay in '{}': {}; set TMPDIR to a directory with room",
        .path.display(), describe(.source)
    )]
    Temporary {
        /// The directory.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The file system has no direct I/O.
    #[error(
        "Could not open '{}': filesystem does not support O_DIRECT; use cache=writeback",
        .path.display()
    )]
    NoDirect {
        /// The image.
        path: PathBuf,
    },
}

impl OpenError {
    /// Whether the image could be opened for reading only.
    pub(crate) fn is_read_only(&self) -> bool {
        use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
        let Self::Host { source, .. } = self else { return false };
        matches!(source.kind(), PermissionDenied | ReadOnlyFilesystem)
    }
}

/// The host's words for an error, without Rust's error number behind them.
pub(crate) fn describe(error: &io::Error) -> String {
    let text = error.to_string();
    match text.rfind(" (os error ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

/// An open file or block device. It is locked only by [`BlockBackend::lock`].
#[derive(Debug)]
pub struct FileNode {
    path: PathBuf,
    file: File,
    /// A second description of the same file, for direct I/O.
    direct: Option<File>,
    driver: &'static str,
    size: AtomicU64,
    /// What the host said last; asking it anew could take long.
    allocated: AtomicU64,
    read_only: bool,
    no_flush: bool,
    discard: DiscardMode,
    stats: IoStats,
}

impl FileNode {
    /// Opens `path`.
    ///
    /// # Errors
    /// If the host refuses, or `path` is no file or block device.
    pub fn open(
        path: &Path,
        read_only: bool,
        cache: CacheMode,
        discard: DiscardMode,
    ) -> Result<Self, OpenError> {
        let host = |source| OpenError::Host { path: path.to_owned(), source };
        // A pipe or a terminal must neither block the open nor become ours.
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY;
        let mut options = OpenOptions::new();
        options.read(true).write(!read_only).custom_flags(flags);
        let metadata = std::fs::metadata(path).map_err(host)?;
        let kind = metadata.file_type();
        let driver = if kind.is_file() {
            "file"
        } else if kind.is_block_device() {
            "host_device"
        } else {
            return Err(OpenError::NotAFile { path: path.to_owned() });
        };
        let mut file = options.open(path).map_err(host)?;
        // For block devices the metadata tells no size; the end of the file does.
        let size = io::Seek::seek(&mut file, io::SeekFrom::End(0)).map_err(host)?;
        let direct = if cache.direct {
            let open = options.custom_flags(flags | libc::O_DIRECT).open(path);
            Some(open.map_err(|e| match e.raw_os_error() {
                Some(libc::EINVAL) => OpenError::NoDirect { path: path.to_owned() },
                _ => host(e),
            })?)
        } else {
            None
        };
        Ok(Self {
            path: path.to_owned(),
            file,
            direct,
            driver,
            size: AtomicU64::new(size),
            allocated: AtomicU64::new(metadata.blocks() * 512),
            read_only,
            no_flush: cache.no_flush,
            discard,
            stats: IoStats::default(),
        })
    }

    /// A node of `size` bytes that read as zero, in an unnamed file in the directory of temporary files
    /// (`TMPDIR`, or `/var/tmp`). It takes space on the host as it is written, and is gone with the node.
    ///
    /// # Errors
    /// If the host has no room for it, or no directory.
    pub fn temporary(size: u64) -> Result<Self, OpenError> {
        let dir = std::env::var_os("TMPDIR").map_or_else(|| "/var/tmp".into(), PathBuf::from);
        let made = tempfile::tempfile_in(&dir)
            .and_then(|file| file.set_len(size.next_multiple_of(SECTOR)).map(|()| file));
        let path = dir;
        let file = made.map_err(|source| OpenError::Temporary { path: path.clone(), source })?;
        Ok(Self {
            path,
            file,
            direct: None,
            driver: "file",
            size: AtomicU64::new(size),
            allocated: AtomicU64::new(0),
            read_only: false,
            no_flush: true,
            discard: DiscardMode::Unmap,
            stats: IoStats::default(),
        })
    }

    /// The first bytes of the image, at most `buf.len()`; returns how many there are.
    ///
    /// # Errors
    /// What the host says.
    pub fn read_start(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.file.read_at(buf, 0)
    }

    /// The description to use for a request.
    fn file_for(&self, offset: u64, bufs: &[GuestSlice<'_>]) -> &File {
        let aligned = |n: u64| n.is_multiple_of(DIRECT_ALIGNMENT);
        match &self.direct {
            Some(direct)
                if aligned(offset)
                    && bufs.iter().all(|b| {
                        aligned(b.len() as u64) && aligned(b.ptr_guard().as_ptr() as u64)
                    }) =>
            {
                direct
            }
            _ => &self.file,
        }
    }

    fn check_range(&self, offset: u64, len: u64) -> io::Result<()> {
        let end = offset.checked_add(len);
        if end.is_some_and(|end| end <= self.size().next_multiple_of(SECTOR)) {
            Ok(())
        } else {
            Err(io::Error::from(io::ErrorKind::InvalidInput))
        }
    }

    fn check_write(&self, offset: u64, len: u64) -> io::Result<()> {
        if self.read_only {
            return Err(io::Error::from(io::ErrorKind::PermissionDenied));
        }
        self.check_range(offset, len)
    }

    fn note_allocated(&self) {
        if let Ok(metadata) = self.file.metadata() {
            self.allocated.store(metadata.blocks() * 512, Ordering::Relaxed);
        }
    }

    fn fallocate(&self, flags: FallocateFlags, offset: u64, len: u64) -> io::Result<bool> {
        loop {
            match fallocate(&self.file, flags, offset, len) {
                Ok(()) => return Ok(true),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => {
                    use rustix::io::Errno;
                    let unsupported = [Errno::OPNOTSUPP, Errno::NOSYS, Errno::INVAL, Errno::NODEV];
                    return if unsupported.contains(&e) { Ok(false) } else { Err(e.into()) };
                }
            }
        }
    }

    fn write_zero_bytes(&self, mut offset: u64, mut len: u64) -> io::Result<()> {
        static ZEROES: [u8; 1 << 16] = [0; 1 << 16];
        while len > 0 {
            let step = len.min(ZEROES.len() as u64);
            self.file.write_all_at(&ZEROES[..step as usize], offset)?;
            offset += step;
            len -= step;
        }
        Ok(())
    }
}

/// Makes calls of `call` until all of `bufs` are done. `call` gets what is left and its offset and
/// returns the bytes it moved; on 0, `at_end` gets what is left.
fn transfer(
    bufs: &[GuestSlice<'_>],
    mut offset: u64,
    call: impl Fn(&[GuestSlice<'_>], u64) -> io::Result<usize>,
    at_end: impl Fn(&[GuestSlice<'_>]) -> io::Result<()>,
) -> io::Result<()> {
    let mut rest: Vec<GuestSlice<'_>>;
    let mut left = bufs;
    while left.iter().any(|b| !b.is_empty()) {
        let mut moved = match call(left, offset) {
            Ok(0) => return at_end(left),
            Ok(moved) => moved,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        offset += moved as u64;
        let whole = left.iter().take_while(|b| {
            let fits = b.len() <= moved;
            if fits {
                moved -= b.len();
            }
            fits
        });
        let whole = whole.count();
        rest = left[whole..].to_vec();
        if let Some(first) = rest.first_mut() {
            *first = first.offset(moved).map_err(io::Error::other)?;
        }
        left = &rest;
        if left.is_empty() {
            break;
        }
    }
    Ok(())
}

impl BlockBackend for FileNode {
    fn read_at(&self, offset: u64, bufs: &[GuestSlice<'_>]) -> io::Result<()> {
        let len = slices_len(bufs);
        self.check_range(offset, len)?;
        let begin = Instant::now();
        let file = self.file_for(offset, bufs);
        transfer(
            bufs,
            offset,
            |bufs, offset| sys::read_vectored(file, bufs, offset),
            |rest| {
                for buf in rest {
                    zero(buf)?;
                }
                Ok(())
            },
        )
        .inspect_err(|_| self.stats.count_failure(Operation::Read))?;
        self.stats.count_read(len, begin.elapsed());
        Ok(())
    }

    fn write_at(&self, offset: u64, bufs: &[GuestSlice<'_>]) -> io::Result<()> {
        let len = slices_len(bufs);
        self.check_write(offset, len)?;
        let begin = Instant::now();
        let file = self.file_for(offset, bufs);
        let full = |_: &[GuestSlice<'_>]| Err(io::Error::from(io::ErrorKind::StorageFull));
        transfer(bufs, offset, |bufs, offset| sys::write_vectored(file, bufs, offset), full)
            .inspect_err(|_| self.stats.count_failure(Operation::Write))?;
        self.stats.count_write(offset, len, begin.elapsed());
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let begin = Instant::now();
        if !self.no_flush && !self.read_only {
            self.file.sync_data().inspect_err(|_| self.stats.count_failure(Operation::Flush))?;
        }
        self.note_allocated();
        self.stats.count_flush(begin.elapsed());
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check_write(offset, len)?;
        if len == 0 || self.discard == DiscardMode::Ignore {
            return Ok(());
        }
        let begin = Instant::now();
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        self.fallocate(flags, offset, len)
            .inspect_err(|_| self.stats.count_failure(Operation::Discard))?;
        self.note_allocated();
        self.stats.count_discard(len, begin.elapsed());
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()> {
        self.check_write(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        let begin = Instant::now();
        let unmap = may_unmap && self.discard == DiscardMode::Unmap;
        let zero_range = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let attempt = || -> io::Result<()> {
            if unmap && self.fallocate(punch, offset, len)? {
                return Ok(());
            }
            if self.fallocate(zero_range, offset, len)? {
                return Ok(());
            }
            self.write_zero_bytes(offset, len)
        };
        attempt().inspect_err(|_| self.stats.count_failure(Operation::Write))?;
        self.stats.count_write(offset, len, begin.elapsed());
        Ok(())
    }

    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        if self.driver != "file" {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.file.set_len(size)?;
        self.size.store(size, Ordering::Release);
        self.note_allocated();
        Ok(())
    }

    fn allocated_size(&self) -> u64 {
        self.allocated.load(Ordering::Relaxed)
    }

    fn lock(&self, share_write: bool) -> Result<(), LockError> {
        lock_image(&self.file, &self.path, !self.read_only, share_write)
    }

    fn unlock(&self) {
        unlock_image(&self.file);
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn driver(&self) -> &'static str {
        self.driver
    }

    fn filename(&self) -> String {
        self.path.display().to_string()
    }

    fn stats(&self) -> &IoStats {
        &self.stats
    }
}

/// Fills `buf` with zeroes.
pub(crate) fn zero(buf: &GuestSlice<'_>) -> io::Result<()> {
    use memory::vm_memory::Bytes;
    static ZEROES: [u8; 4096] = [0; 4096];
    let mut at = 0;
    while at < buf.len() {
        let step = (buf.len() - at).min(ZEROES.len());
        buf.write_slice(&ZEROES[..step], at).map_err(io::Error::other)?;
        at += step;
    }
    Ok(())
}
