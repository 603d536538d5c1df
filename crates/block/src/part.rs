//! A part of the bytes below, as the `raw` format's `offset` and `size` choose it.

use std::io;
use std::sync::Arc;

use crate::{BlockBackend, GuestSlice, IoStats, LockError, slices_len};

/// A stretch of another node.
pub(crate) struct PartNode {
    below: Arc<dyn BlockBackend>,
    offset: u64,
    size: u64,
}

impl PartNode {
    /// `size` bytes of `below` from `offset` on; without `size`, all that follow.
    ///
    /// # Errors
    /// If there are not so many.
    pub(crate) fn new(
        below: Arc<dyn BlockBackend>,
        offset: u64,
        size: Option<u64>,
    ) -> Result<Self, OutOfImage> {
        let whole = below.size();
        let left = whole.checked_sub(offset).ok_or(OutOfImage { offset, size, whole })?;
        let wanted = size.unwrap_or(left);
        if wanted > left {
            return Err(OutOfImage { offset, size, whole });
        }
        Ok(Self { below, offset, size: wanted })
    }

    /// Where a request goes below.
    fn place(&self, offset: u64, len: u64) -> io::Result<u64> {
        let end = offset.checked_add(len);
        if end.is_none_or(|end| end > self.size.next_multiple_of(512)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // Within the node below, as that is.
        Ok(self.offset + offset)
    }
}

/// The image is smaller than the part that is wanted of it.
#[derive(Debug, thiserror::Error)]
#[error("offset {offset} and size {size:?} are not within the image, which has {whole} bytes")]
pub struct OutOfImage {
    offset: u64,
    size: Option<u64>,
    whole: u64,
}

impl BlockBackend for PartNode {
    fn read_at(&self, offset: u64, bufs: &[GuestSlice<'_>]) -> io::Result<()> {
        self.below.read_at(self.place(offset, slices_len(bufs))?, bufs)
    }

    fn write_at(&self, offset: u64, bufs: &[GuestSlice<'_>]) -> io::Result<()> {
        self.below.write_at(self.place(offset, slices_len(bufs))?, bufs)
    }

    fn flush(&self) -> io::Result<()> {
        self.below.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.below.discard(self.place(offset, len)?, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()> {
        self.below.write_zeroes(self.place(offset, len)?, len, may_unmap)
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn allocated_size(&self) -> u64 {
        self.below.allocated_size()
    }

    fn lock(&self, share_write: bool) -> Result<(), LockError> {
        self.below.lock(share_write)
    }

    fn unlock(&self) {
        self.below.unlock();
    }

    fn is_read_only(&self) -> bool {
        self.below.is_read_only()
    }

    fn driver(&self) -> &'static str {
        self.below.driver()
    }

    fn filename(&self) -> String {
        self.below.filename()
    }

    fn stats(&self) -> &IoStats {
        self.below.stats()
    }
}
