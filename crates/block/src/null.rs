//! The `null-co` protocol: a disk without bytes. What is written to it is gone, and reading it costs
//! nothing; it is for tests and measurements.

use std::io;
use std::time::Instant;

use crate::file::zero;
use crate::{BlockBackend, GuestSlice, IoStats, LockError, Operation, slices_len};

/// How images of this kind are named.
pub(crate) const PREFIX: &str = "null-co://";

/// What such a disk is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NullOptions {
    /// Size in bytes.
    pub size: u64,
    /// Reads give zeroes. Else they leave memory as it is.
    pub read_zeroes: bool,
}

impl Default for NullOptions {
    fn default() -> Self {
        Self { size: 1 << 30, read_zeroes: false }
    }
}

/// A disk without bytes.
#[derive(Debug)]
pub struct NullNode {
    options: NullOptions,
    read_only: bool,
    stats: IoStats,
}

impl NullNode {
    /// Such a disk.
    pub fn new(options: NullOptions, read_only: bool) -> Self {
        Self { options, read_only, stats: IoStats::default() }
    }

    fn check(&self, operation: Operation, offset: u64, len: u64) -> io::Result<()> {
        let is_inside = offset.checked_add(len).is_some_and(|end| end <= self.options.size);
        let problem = match operation {
            Operation::Read if is_inside => return Ok(()),
            _ if self.read_only => io::ErrorKind::PermissionDenied,
            _ if is_inside => return Ok(()),
            _ => io::ErrorKind::InvalidInput,
        };
        self.stats.count_failure(operation);
        Err(problem.into())
    }
}

impl BlockBackend for NullNode {
    fn read_at(&self, offset: u64, bufs: &[GuestSlice<'_>]) -> io::Result<()> {
        let begin = Instant::now();
        let len = slices_len(bufs);
        self.check(Operation::Read, offset, len)?;
        if self.options.read_zeroes {
            bufs.iter().try_for_each(zero)?;
        }
        self.stats.count_read(len, begin.elapsed());
        Ok(())
    }

    fn write_at(&self, offset: u64, bufs: &[GuestSlice<'_>]) -> io::Result<()> {
        self.write_zeroes(offset, slices_len(bufs), false)
    }

    fn flush(&self) -> io::Result<()> {
        self.stats.count_flush(Instant::now().elapsed());
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let begin = Instant::now();
        self.check(Operation::Discard, offset, len)?;
        self.stats.count_discard(len, begin.elapsed());
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64, _may_unmap: bool) -> io::Result<()> {
        let begin = Instant::now();
        self.check(Operation::Write, offset, len)?;
        self.stats.count_write(offset, len, begin.elapsed());
        Ok(())
    }

    fn size(&self) -> u64 {
        self.options.size
    }

    fn allocated_size(&self) -> u64 {
        0
    }

    fn lock(&self, _share_write: bool) -> Result<(), LockError> {
        Ok(())
    }

    fn unlock(&self) {}

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn driver(&self) -> &'static str {
        "null-co"
    }

    fn filename(&self) -> String {
        PREFIX.to_owned()
    }

    fn stats(&self) -> &IoStats {
        &self.stats
    }
}
