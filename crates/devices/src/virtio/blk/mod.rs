//! A disk (specification, section 5.2).
//!
//! Requests go from the ring to the drive without a copy: the drive reads into and writes from guest
//! memory. A request whose failure stops the machine is held back and made again when it continues.

use std::io;
use std::sync::{Arc, Weak};

use block::{Drive, ErrorAction, Operation};
use serde::{Deserialize, Serialize};
use vmstate::{RestoreError, Saved, State};

use super::backlog::{Backlog, HeldRequest, Progress};
use super::{Chain, Kind, QueueError, VirtioCore, VirtioDevice, slices};
use crate::block_size::{self, BlockSizeError};

#[cfg(test)]
mod tests;

const KIND: Kind = Kind {
    name: "virtio-blk",
    device_type: 2,
    transitional_id: 0x1001,
    class: 0x01_00_00,
    extra_vectors: Some(1),
};

/// Bytes of a sector, the unit of positions in requests and of the capacity.
const SECTOR: u64 = 512;
/// Bytes of a request's header.
const HEADER: u64 = 16;
/// Bytes of a serial number.
const SERIAL_LEN: usize = 20;
/// Most sectors in one discard or write-zeroes request: what fits 31 bits of bytes.
const MAX_DISCARD_SECTORS: u32 = 0x3f_ffff;
/// Threads that serve one disk, so that a request that waits for the host does not hold up others.
const WORKERS: usize = 4;

/// Feature bits.
mod feature {
    pub(super) const SEG_MAX: u64 = 1 << 2;
    pub(super) const GEOMETRY: u64 = 1 << 4;
    pub(super) const RO: u64 = 1 << 5;
    pub(super) const BLK_SIZE: u64 = 1 << 6;
    pub(super) const FLUSH: u64 = 1 << 9;
    pub(super) const TOPOLOGY: u64 = 1 << 10;
    pub(super) const CONFIG_WCE: u64 = 1 << 11;
    pub(super) const MQ: u64 = 1 << 12;
    pub(super) const DISCARD: u64 = 1 << 13;
    pub(super) const WRITE_ZEROES: u64 = 1 << 14;
}

/// Types of requests.
mod request {
    pub(super) const IN: u32 = 0;
    pub(super) const OUT: u32 = 1;
    pub(super) const FLUSH: u32 = 4;
    pub(super) const GET_ID: u32 = 8;
    pub(super) const DISCARD: u32 = 11;
    pub(super) const WRITE_ZEROES: u32 = 13;
}

/// What the last byte of a request tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// Offset of the write cache mode in the configuration.
const CONFIG_WRITEBACK: usize = 32;
/// Bytes of the configuration, up to `write_zeroes_may_unmap`.
const CONFIG_LEN: usize = 57;

/// Most request queues of a disk.
pub const MAX_QUEUES: u16 = 63;

/// What can be set about a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlkOptions {
    /// Serial number; 20 bytes of it count.
    pub serial: String,
    /// Smallest unit of I/O in bytes: a power of two from 512 to 2 MiB.
    pub logical_block_size: u32,
    /// Best unit of I/O in bytes: a power of two from the logical size to 2 MiB.
    pub physical_block_size: u32,
    /// Request queues, 1 to [`MAX_QUEUES`].
    pub num_queues: u16,
    /// Entries of each queue: a power of two from 4 to 1024.
    pub queue_size: u16,
    /// Offer discard.
    pub discard: bool,
    /// Offer write-zeroes.
    pub write_zeroes: bool,
    /// Let other processes write to the image meanwhile.
    pub share_rw: bool,
    /// Let the driver turn the write cache on and off.
    pub config_wce: bool,
    /// Take as many segments in a request as fit the queue, and not always [`FIXED_SEGMENTS`].
    pub adjust_segments: bool,
    /// Cylinders, heads and sectors, instead of those that follow from the size.
    pub geometry: Option<(u16, u8, u8)>,
    /// Least and best size of I/O in bytes, 0 if there is none: multiples of the logical block size.
    pub io_sizes: (u32, u32),
    /// Unit of discards in bytes; `None` for the logical block size.
    pub discard_granularity: Option<u32>,
}

/// Segments of a request for old drivers that can't do with more.
const FIXED_SEGMENTS: u16 = 126;

impl Default for BlkOptions {
    fn default() -> Self {
        Self {
            serial: String::new(),
            logical_block_size: 512,
            physical_block_size: 512,
            num_queues: 1,
            queue_size: 256,
            discard: true,
            write_zeroes: true,
            share_rw: false,
            config_wce: true,
            adjust_segments: true,
            geometry: None,
            io_sizes: (0, 0),
            discard_granularity: None,
        }
    }
}

/// Why a disk can't be had.
#[derive(Debug, thiserror::Error)]
pub enum BlkError {
    /// The drive can't be claimed.
    #[error(transparent)]
    Drive(#[from] block::BlockError),
    /// There is no disk in the drive.
    #[error("Device needs media, but drive is empty")]
    Empty,
    /// Block sizes that it can't have.
    #[error(transparent)]
    BlockSize(#[from] BlockSizeError),
    /// A size of I/O that is no multiple of the logical block size.
    #[error("{0} must be a multiple of logical_block_size")]
    IoSize(&'static str),
    /// A least size of I/O that the configuration has no room for.
    #[error("min_io_size must not exceed 65535 logical blocks")]
    LeastIoSize,
    /// No queue.
    #[error("num-queues property must be larger than 0")]
    NoQueue,
    /// Too many queues.
    #[error("num-queues={0} is more than the {MAX_QUEUES} that a disk can have")]
    TooManyQueues(u16),
    /// A queue that is no power of two, or too small or large.
    #[error("invalid queue-size property ({0}), must be a power of 2 (min 4, max 1024)")]
    QueueSize(u16),
}

impl BlkOptions {
    fn check(&self) -> Result<(), BlkError> {
        block_size::check(self.logical_block_size, self.physical_block_size)?;
        let block = self.logical_block_size;
        let (least, best) = self.io_sizes;
        for (name, size) in [("min_io_size", least), ("opt_io_size", best)] {
            if !size.is_multiple_of(block) {
                return Err(BlkError::IoSize(name));
            }
        }
        if least / block > u32::from(u16::MAX) {
            return Err(BlkError::LeastIoSize);
        }
        match self.num_queues {
            0 => return Err(BlkError::NoQueue),
            1..=MAX_QUEUES => {}
            more => return Err(BlkError::TooManyQueues(more)),
        }
        if !self.queue_size.is_power_of_two() || !(4..=1024).contains(&self.queue_size) {
            return Err(BlkError::QueueSize(self.queue_size));
        }
        Ok(())
    }
}

/// The saved form of a [`VirtioBlk`].
#[derive(Debug, Serialize, Deserialize)]
struct BlkState {
    write_cache: bool,
    held: Vec<HeldRequest>,
}

impl State for BlkState {
    const NAME: &'static str = "virtio-blk";
    const VERSION: u32 = 1;
}

/// A virtio disk on a [`Drive`].
pub struct VirtioBlk {
    drive: Arc<Drive>,
    options: BlkOptions,
    serial: [u8; SERIAL_LEN],
    /// The drive's write cache as the machine was told to have it.
    initial_write_cache: bool,
    backlog: Backlog,
}

impl VirtioBlk {
    /// A disk on `drive`, which it claims as `id`.
    ///
    /// # Errors
    /// If the drive is empty or can't be claimed, or an option is out of range.
    pub fn new(drive: Arc<Drive>, id: &str, options: BlkOptions) -> Result<Arc<Self>, BlkError> {
        options.check()?;
        if !drive.is_inserted() {
            return Err(BlkError::Empty);
        }
        drive.claim(id, options.share_rw)?;
        let mut serial = [0; SERIAL_LEN];
        let len = options.serial.len().min(SERIAL_LEN);
        serial[..len].copy_from_slice(&options.serial.as_bytes()[..len]);
        Ok(Arc::new(Self {
            initial_write_cache: drive.write_cache(),
            drive,
            options,
            serial,
            backlog: Backlog::default(),
        }))
    }

    /// The drive.
    pub fn drive(&self) -> &Arc<Drive> {
        &self.drive
    }

    /// Makes one request; `None` if it is to be made again later.
    fn handle(&self, core: &VirtioCore, chain: &Chain) -> Result<Option<Status>, QueueError> {
        let memory = core.memory();
        let mut header = [0; HEADER as usize];
        if chain.read(memory, 0, &mut header)? < header.len() || chain.writable_len() == 0 {
            return Err(QueueError::BadLength);
        }
        let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let sector = u64::from_le_bytes(header[8..].try_into().unwrap_or_default());
        let readable = chain.readable_len() - HEADER;
        let writable = chain.writable_len() - 1;
        let (operation, result) = match kind {
            request::IN => {
                let Some(offset) = self.position(sector, writable) else {
                    return Ok(Some(Status::IoError));
                };
                let bufs = slices(memory, &chain.writable(0, writable))?;
                (Operation::Read, self.drive.read(offset, &bufs))
            }
            request::OUT => {
                let offset = self.position(sector, readable);
                let Some(offset) = offset.filter(|_| !self.drive.is_read_only()) else {
                    return Ok(Some(Status::IoError));
                };
                let bufs = slices(memory, &chain.readable(HEADER, readable))?;
                (Operation::Write, self.drive.write(offset, &bufs))
            }
            request::FLUSH => (Operation::Flush, self.drive.flush()),
            request::GET_ID => {
                // The status byte is not to be overwritten.
                let len = SERIAL_LEN.min(usize::try_from(writable).unwrap_or(SERIAL_LEN));
                chain.write(memory, 0, &self.serial[..len])?;
                return Ok(Some(Status::Ok));
            }
            request::DISCARD if self.options.discard => match self.range(core, chain, 0)? {
                Ok((offset, len, _)) => (Operation::Discard, self.drive.discard(offset, len)),
                Err(status) => return Ok(Some(status)),
            },
            request::WRITE_ZEROES if self.options.write_zeroes => {
                match self.range(core, chain, 1)? {
                    Ok((offset, len, flags)) => {
                        let unmap = flags & 1 != 0;
                        (Operation::Write, self.drive.write_zeroes(offset, len, unmap))
                    }
                    Err(status) => return Ok(Some(status)),
                }
            }
            _ => return Ok(Some(Status::Unsupported)),
        };
        Ok(self.outcome(operation, result))
    }

    fn outcome(&self, operation: Operation, result: io::Result<()>) -> Option<Status> {
        let Err(error) = result else { return Some(Status::Ok) };
        match self.drive.failed(operation, &error) {
            ErrorAction::Ignore => Some(Status::Ok),
            ErrorAction::Report => Some(Status::IoError),
            ErrorAction::Stop => None,
        }
    }

    /// Byte offset of a transfer of `len` bytes at `sector`, if it is in whole blocks on the disk.
    fn position(&self, sector: u64, len: u64) -> Option<u64> {
        let offset = sector.checked_mul(SECTOR)?;
        let end = offset.checked_add(len)?;
        let block = u64::from(self.options.logical_block_size);
        let whole = offset % block == 0 && len.is_multiple_of(block);
        (whole && end <= self.capacity() * SECTOR).then_some(offset)
    }

    fn capacity(&self) -> u64 {
        self.drive.sectors()
    }

    /// Byte offset, length and flags of a discard or write-zeroes request; `known` are the flags that
    /// it may have.
    fn range(
        &self,
        core: &VirtioCore,
        chain: &Chain,
        known: u32,
    ) -> Result<Result<(u64, u64, u32), Status>, QueueError> {
        let mut segment = [0; 16];
        let segments = chain.readable_len() - HEADER;
        if segments != segment.len() as u64 {
            let more = segments > segment.len() as u64;
            return Ok(Err(if more { Status::Unsupported } else { Status::IoError }));
        }
        chain.read(core.memory(), HEADER, &mut segment)?;
        let raw = u128::from_le_bytes(segment);
        let (sector, count, flags) = (raw as u64, (raw >> 64) as u32, (raw >> 96) as u32);
        if flags & !known != 0 {
            return Ok(Err(Status::Unsupported));
        }
        if count > MAX_DISCARD_SECTORS || self.drive.is_read_only() {
            return Ok(Err(Status::IoError));
        }
        let len = u64::from(count) * SECTOR;
        Ok(self.position(sector, len).map(|at| (at, len, flags)).ok_or(Status::IoError))
    }

    fn serve(&self, core: &VirtioCore, queue: u16, chain: &Chain) -> Progress {
        match self.handle(core, chain) {
            Ok(Some(status)) => {
                let last = chain.writable_len() - 1;
                match chain.write(core.memory(), last, &[status as u8]) {
                    Ok(_) => core.complete(queue, chain, (last as u32).wrapping_add(1)),
                    Err(error) => core.fail(&error),
                }
            }
            Ok(None) => return Progress::Held,
            Err(error) => core.fail(&error),
        }
        Progress::Done
    }

    /// Cylinders, heads and sectors that a BIOS of old would see.
    fn geometry(&self) -> (u16, u8, u8) {
        const HEADS: u64 = 16;
        const SECTORS: u64 = 63;
        let cylinders = (self.capacity() / (HEADS * SECTORS)).clamp(2, 16383) as u16;
        let derived = (cylinders, HEADS as u8, SECTORS as u8);
        let (cylinders, heads, sectors) = self.options.geometry.unwrap_or(derived);
        // Tracks of whole blocks.
        let in_block = self.options.logical_block_size / SECTOR as u32;
        (cylinders, heads, sectors - (u32::from(sectors) % in_block) as u8)
    }
}

impl VirtioDevice for VirtioBlk {
    fn kind(&self) -> &'static Kind {
        &KIND
    }

    fn features(&self) -> u64 {
        let always = feature::SEG_MAX
            | feature::GEOMETRY
            | feature::BLK_SIZE
            | feature::FLUSH
            | feature::TOPOLOGY;
        let when = |yes: bool, bit: u64| if yes { bit } else { 0 };
        always
            | when(self.drive.is_read_only(), feature::RO)
            | when(self.options.config_wce, feature::CONFIG_WCE)
            | when(self.options.num_queues > 1, feature::MQ)
            | when(self.options.discard, feature::DISCARD)
            | when(self.options.write_zeroes, feature::WRITE_ZEROES)
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![self.options.queue_size; usize::from(self.options.num_queues)]
    }

    fn workers(&self) -> usize {
        WORKERS
    }

    fn config(&self) -> Vec<u8> {
        let options = &self.options;
        let exponent = options.physical_block_size.ilog2() - options.logical_block_size.ilog2();
        let (cylinders, heads, sectors) = self.geometry();
        let (least, best) = options.io_sizes;
        let blocks = |bytes: u32| bytes / options.logical_block_size;
        let granularity = options.discard_granularity.unwrap_or(options.logical_block_size);
        let alignment = granularity / SECTOR as u32;
        let segments =
            if options.adjust_segments { options.queue_size - 2 } else { FIXED_SEGMENTS };
        let mut config = Vec::with_capacity(CONFIG_LEN);
        config.extend(self.capacity().to_le_bytes());
        config.extend(0_u32.to_le_bytes()); // size_max
        config.extend(u32::from(segments).to_le_bytes()); // seg_max
        config.extend(cylinders.to_le_bytes());
        config.extend([heads, sectors]);
        config.extend(options.logical_block_size.to_le_bytes());
        config.extend([exponent as u8, 0]); // alignment_offset
        config.extend((blocks(least) as u16).to_le_bytes()); // min_io_size
        config.extend(blocks(best).to_le_bytes()); // opt_io_size
        config.extend([u8::from(self.drive.write_cache()), 0]);
        config.extend(options.num_queues.to_le_bytes());
        config.extend(MAX_DISCARD_SECTORS.to_le_bytes());
        config.extend(1_u32.to_le_bytes()); // max_discard_seg
        config.extend(alignment.to_le_bytes());
        config.extend(MAX_DISCARD_SECTORS.to_le_bytes()); // max_write_zeroes_sectors
        config.extend(1_u32.to_le_bytes()); // max_write_zeroes_seg
        config.push(1); // write_zeroes_may_unmap
        debug_assert_eq!(config.len(), CONFIG_LEN);
        config
    }

    /// The driver is told when the disk gets another size.
    fn connect(&self, core: Weak<VirtioCore>) {
        self.drive.set_resize_hook(Arc::new(move || {
            if let Some(core) = core.upgrade() {
                core.config_changed();
            }
        }));
    }

    fn write_config(&self, offset: usize, data: &[u8]) {
        if let Some(at) = CONFIG_WRITEBACK.checked_sub(offset)
            && let Some(&mode) = data.get(at)
        {
            self.drive.set_write_cache(mode & 1 != 0);
        }
    }

    fn negotiated(&self, features: u64) {
        // A driver that can neither flush nor turn the cache off must not have one.
        if features & (feature::CONFIG_WCE | feature::FLUSH) == 0 {
            self.drive.set_write_cache(false);
        }
    }

    fn service(&self, core: &VirtioCore, queue: u16) {
        self.backlog.serve(core, queue, |_| (), |queue, chain| self.serve(core, queue, chain));
    }

    fn resumed(&self) {
        self.backlog.resumed();
    }

    fn queue_reset(&self, queue: u16) {
        self.backlog.queue_reset(queue);
    }

    fn reset(&self) {
        self.backlog.reset();
        self.drive.set_write_cache(self.initial_write_cache);
        self.drive.reset_io_status();
    }

    fn save(&self) -> Saved {
        let write_cache = self.drive.write_cache();
        Saved::new(&BlkState { write_cache, held: self.backlog.held().clone() })
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let state: BlkState = saved.decode()?;
        if state.held.iter().any(|held| held.queue >= self.options.num_queues) {
            let reason = "a request of a queue that is not there".into();
            return Err(RestoreError::Damaged { name: BlkState::NAME, reason });
        }
        self.drive.set_write_cache(state.write_cache);
        self.backlog.restore(state.held);
        Ok(())
    }
}

impl Drop for VirtioBlk {
    fn drop(&mut self) {
        self.drive.release();
    }
}
