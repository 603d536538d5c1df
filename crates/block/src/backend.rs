//! The trait of a node in the disk graph.

use std::io;

use memory::PageLog;
use memory::vm_memory::VolatileSlice;

use crate::{IoStats, LockError};

/// A stretch of guest memory that a request reads from or writes to.
pub type GuestSlice<'a> = VolatileSlice<'a, PageLog>;

/// A node that holds the bytes of a disk.
///
/// A request that returns `Ok` has moved all its bytes. Reads past the end of the bytes, but within
/// [`BlockBackend::size`] rounded up to a sector, give zeroes.
pub trait BlockBackend: Send + Sync {
    /// Fills `bufs`, in order, from `offset` on.
    ///
    /// # Errors
    /// What the host says; some of the memory may then be written.
    fn read_at(&self, offset: u64, bufs: &[GuestSlice<'_>]) -> io::Result<()>;

    /// Writes `bufs`, in order, from `offset` on.
    ///
    /// # Errors
    /// What the host says; some of the bytes may then be written.
    fn write_at(&self, offset: u64, bufs: &[GuestSlice<'_>]) -> io::Result<()>;

    /// Makes everything written before durable.
    ///
    /// # Errors
    /// What the host says.
    fn flush(&self) -> io::Result<()>;

    /// Tells that `len` bytes from `offset` on are not needed; what they then read as is undefined.
    ///
    /// # Errors
    /// What the host says. A host that can't discard is no error.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Makes `len` bytes from `offset` on read as zero; with `may_unmap` their space may be freed.
    ///
    /// # Errors
    /// What the host says.
    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()>;

    /// Size of the disk in bytes.
    fn size(&self) -> u64;

    /// Makes the disk `size` bytes long; what is new reads as zero.
    ///
    /// # Errors
    /// What the host says; [`io::ErrorKind::Unsupported`] if the size is fixed.
    fn resize(&self, _size: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Bytes that the disk takes on the host, as of the last flush or discard. Does not ask the host.
    fn allocated_size(&self) -> u64;

    /// Locks the image against uses by other processes that this one excludes; `share_write` lets
    /// others write.
    ///
    /// # Errors
    /// If it is in use so.
    fn lock(&self, share_write: bool) -> Result<(), LockError>;

    /// Lets others use the image.
    fn unlock(&self);

    /// Whether writes are refused.
    fn is_read_only(&self) -> bool;

    /// Name of the driver, as in `"file"`.
    fn driver(&self) -> &'static str;

    /// The name under which people know the node, as in a file's path.
    fn filename(&self) -> String;

    /// What went through this node.
    fn stats(&self) -> &IoStats;

    /// The node below, for one that holds only what differs from it.
    fn backing(&self) -> Option<&dyn BlockBackend> {
        None
    }
}

/// The part of `bufs` from byte `start` on, `len` bytes or what there is.
pub fn part_of<'a>(bufs: &[GuestSlice<'a>], start: u64, len: u64) -> Vec<GuestSlice<'a>> {
    let (mut skip, mut left) = (start, len);
    let mut part = Vec::new();
    for buf in bufs {
        let size = buf.len() as u64;
        if skip >= size {
            skip -= size;
            continue;
        }
        let take = (size - skip).min(left);
        // Within the slice, by the lines above.
        part.extend(buf.subslice(skip as usize, take as usize).ok());
        left -= take;
        skip = 0;
        if left == 0 {
            break;
        }
    }
    part
}

/// Sum of the lengths of `bufs` in bytes.
pub fn slices_len(bufs: &[GuestSlice<'_>]) -> u64 {
    bufs.iter().map(|b| b.len() as u64).sum()
}
