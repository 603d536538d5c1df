//! Counters of one node or drive. Writers are I/O threads; readers take a snapshot at any time and
//! wait for nobody.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::Operation;

/// Counters that only grow.
#[derive(Debug, Default)]
pub struct IoStats {
    read: Counter,
    write: Counter,
    flush: Counter,
    discard: Counter,
    write_highest_offset: AtomicU64,
}

#[derive(Debug, Default)]
struct Counter {
    operations: AtomicU64,
    bytes: AtomicU64,
    time_ns: AtomicU64,
    failed: AtomicU64,
}

impl Counter {
    fn add(&self, bytes: u64, time: Duration) {
        self.operations.fetch_add(1, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
        self.time_ns.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }
}

/// The counters at one moment. Bytes, numbers of operations, and nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatsSnapshot {
    /// Bytes read.
    pub rd_bytes: u64,
    /// Bytes written.
    pub wr_bytes: u64,
    /// Bytes discarded.
    pub unmap_bytes: u64,
    /// Reads.
    pub rd_operations: u64,
    /// Writes.
    pub wr_operations: u64,
    /// Flushes.
    pub flush_operations: u64,
    /// Discards.
    pub unmap_operations: u64,
    /// Time spent in reads.
    pub rd_total_time_ns: u64,
    /// Time spent in writes.
    pub wr_total_time_ns: u64,
    /// Time spent in flushes.
    pub flush_total_time_ns: u64,
    /// Time spent in discards.
    pub unmap_total_time_ns: u64,
    /// Reads that failed.
    pub failed_rd_operations: u64,
    /// Writes that failed.
    pub failed_wr_operations: u64,
    /// Flushes that failed.
    pub failed_flush_operations: u64,
    /// Discards that failed.
    pub failed_unmap_operations: u64,
    /// Offset after the greatest byte written.
    pub wr_highest_offset: u64,
}

impl IoStats {
    /// A read of `bytes` ended well.
    pub fn count_read(&self, bytes: u64, time: Duration) {
        self.read.add(bytes, time);
    }

    /// A write of `bytes` at `offset` ended well.
    pub fn count_write(&self, offset: u64, bytes: u64, time: Duration) {
        self.write.add(bytes, time);
        self.write_highest_offset.fetch_max(offset.saturating_add(bytes), Relaxed);
    }

    /// A flush ended well.
    pub fn count_flush(&self, time: Duration) {
        self.flush.add(0, time);
    }

    /// A discard of `bytes` ended well.
    pub fn count_discard(&self, bytes: u64, time: Duration) {
        self.discard.add(bytes, time);
    }

    /// A request failed.
    pub fn count_failure(&self, operation: Operation) {
        let counter = match operation {
            Operation::Read => &self.read,
            Operation::Write => &self.write,
            Operation::Flush => &self.flush,
            Operation::Discard => &self.discard,
        };
        counter.failed.fetch_add(1, Relaxed);
    }

    /// The counters now.
    pub fn snapshot(&self) -> StatsSnapshot {
        StatsSnapshot {
            rd_bytes: self.read.bytes.load(Relaxed),
            wr_bytes: self.write.bytes.load(Relaxed),
            unmap_bytes: self.discard.bytes.load(Relaxed),
            rd_operations: self.read.operations.load(Relaxed),
            wr_operations: self.write.operations.load(Relaxed),
            flush_operations: self.flush.operations.load(Relaxed),
            unmap_operations: self.discard.operations.load(Relaxed),
            rd_total_time_ns: self.read.time_ns.load(Relaxed),
            wr_total_time_ns: self.write.time_ns.load(Relaxed),
            flush_total_time_ns: self.flush.time_ns.load(Relaxed),
            unmap_total_time_ns: self.discard.time_ns.load(Relaxed),
            failed_rd_operations: self.read.failed.load(Relaxed),
            failed_wr_operations: self.write.failed.load(Relaxed),
            failed_flush_operations: self.flush.failed.load(Relaxed),
            failed_unmap_operations: self.discard.failed.load(Relaxed),
            wr_highest_offset: self.write_highest_offset.load(Relaxed),
        }
    }
}
