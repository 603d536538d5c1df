//! A drive: the place in the machine that a disk is in.
//!
//! A [`Drive`] has the id that queries and `-device drive=` use. A guest device claims it and sends
//! its requests through it; the drive counts them, makes each write durable if the guest has no write
//! cache to flush, and tells what a failure is to lead to.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Instant;

use crate::file::describe;
use crate::{
    BlockBackend, CacheMode, DriveOptions, FileNode, GuestSlice, IoStats, LockError, OnError,
    OpenError, StatsSnapshot, slices_len,
};

/// Why a drive could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// The image could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The image is in use elsewhere.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The image holds a format that this build does not read.
    #[error("Unknown driver '{0}'")]
    UnknownFormat(&'static str),
    /// Another device of the machine has the drive.
    #[error("Drive '{0}' is already in use by another device")]
    Claimed(String),
}

/// What a request was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// It read.
    Read,
    /// It wrote data or zeroes.
    Write,
    /// It flushed.
    Flush,
    /// It discarded.
    Discard,
}

/// What a failed request leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorAction {
    /// The guest is told that it went well.
    Ignore,
    /// The guest is told.
    Report,
    /// The machine stops; the request is made again when it continues.
    Stop,
}

/// A failed request, as the event `BLOCK_IO_ERROR` tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorEvent {
    /// The drive's id.
    pub device: String,
    /// What the request was.
    pub operation: Operation,
    /// What it leads to.
    pub action: ErrorAction,
    /// Whether the host ran out of space.
    pub no_space: bool,
    /// The host's words.
    pub reason: String,
}

/// Told of each failed request; when the action is [`ErrorAction::Stop`] it asks for the machine to be
/// stopped, without waiting for it.
pub type ErrorHook = Box<dyn Fn(ErrorEvent) + Send + Sync>;

/// How the last failure left the drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum IoStatus {
    /// Nothing stopped the machine.
    Ok = 0,
    /// A failure stopped the machine.
    Failed = 1,
    /// Lack of space stopped the machine.
    NoSpace = 2,
}

/// What is in the drive, for queries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InsertedInfo {
    /// The image's name.
    pub file: String,
    /// Name of the format node.
    pub node_name: String,
    /// Name of the protocol node.
    pub parent_node_name: String,
    /// Writes are refused.
    pub read_only: bool,
    /// Format.
    pub driver: &'static str,
    /// Caching on the host.
    pub cache: CacheMode,
    /// Size of the disk in bytes.
    pub virtual_size: u64,
    /// Bytes it takes on the host.
    pub actual_size: u64,
}

/// A drive at one moment, for queries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriveInfo {
    /// The drive's id.
    pub device: String,
    /// Id of the guest device that has it.
    pub qdev: Option<String>,
    /// The medium can be taken out.
    pub removable: bool,
    /// The guest locked the tray.
    pub locked: bool,
    /// The tray is open; `None` without a tray.
    pub tray_open: Option<bool>,
    /// How the last failure left the drive; `None` if no failure stops the machine.
    pub io_status: Option<IoStatus>,
    /// What is in it.
    pub inserted: Option<InsertedInfo>,
}

/// What is in the drive.
struct Medium {
    node: Arc<dyn BlockBackend>,
    cache: CacheMode,
    node_name: String,
    parent_node_name: String,
}

/// What failures lead to.
#[derive(Clone, Copy, Debug)]
struct ErrorPolicy {
    read: OnError,
    write: OnError,
}

/// A drive with or without a disk in it.
pub struct Drive {
    id: String,
    medium: Option<Medium>,
    read_only: bool,
    policy: ErrorPolicy,
    /// Whether the guest's device has its write cache on.
    write_cache: AtomicBool,
    io_status: AtomicU8,
    /// The guest device that has the drive.
    owner: Mutex<Option<String>>,
    stats: IoStats,
    on_error: OnceLock<ErrorHook>,
}

impl Drive {
    /// Opens the image at `path` as drive `id`.
    ///
    /// # Errors
    /// If the image can't be opened or has a format that is not read here.
    pub fn open(id: &str, path: &Path, options: &DriveOptions) -> Result<Self, BlockError> {
        let node = FileNode::open(path, options.read_only, options.cache, options.discard)?;
        if options.format.is_none() {
            refuse_other_formats(&node, path)?;
        }
        Ok(Self::with_node(id, Arc::new(node), options))
    }

    /// A drive with a disk whose bytes are in `node`.
    pub fn with_node(id: &str, node: Arc<dyn BlockBackend>, options: &DriveOptions) -> Self {
        let mut drive = Self::empty(id, options);
        drive.medium = Some(Medium {
            node,
            cache: options.cache,
            node_name: format!("#{id}"),
            parent_node_name: format!("#{id}.file"),
        });
        drive
    }

    /// A drive with nothing in it.
    pub fn empty(id: &str, options: &DriveOptions) -> Self {
        Self {
            id: id.to_owned(),
            medium: None,
            read_only: options.read_only,
            policy: ErrorPolicy { read: options.rerror, write: options.werror },
            write_cache: AtomicBool::new(options.cache.writeback),
            io_status: AtomicU8::new(IoStatus::Ok as u8),
            owner: Mutex::default(),
            stats: IoStats::default(),
            on_error: OnceLock::new(),
        }
    }

    /// The drive's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    fn owner(&self) -> MutexGuard<'_, Option<String>> {
        self.owner.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Makes the drive that of guest device `device` and locks its image; `share_write` (`share-rw=on`)
    /// lets others write to it meanwhile.
    ///
    /// # Errors
    /// If another device has it, or another process uses the image.
    pub fn claim(&self, device: &str, share_write: bool) -> Result<(), BlockError> {
        let mut owner = self.owner();
        if owner.is_some() {
            return Err(BlockError::Claimed(self.id.clone()));
        }
        if let Some(medium) = &self.medium {
            medium.node.lock(share_write)?;
        }
        *owner = Some(device.to_owned());
        Ok(())
    }

    /// Gives the drive back, and lets others use the image.
    pub fn release(&self) {
        *self.owner() = None;
        if let Some(medium) = &self.medium {
            medium.node.unlock();
        }
    }

    /// Sets who is told of failed requests; only the first call counts.
    pub fn set_error_hook(&self, hook: ErrorHook) {
        let _ = self.on_error.set(hook);
    }

    /// Size of the disk in bytes, 0 if there is none.
    pub fn size(&self) -> u64 {
        self.medium.as_ref().map_or(0, |m| m.node.size())
    }

    /// Whether there is a disk in the drive.
    pub fn is_inserted(&self) -> bool {
        self.medium.is_some()
    }

    /// Whether writes are refused.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Whether the guest's device has its write cache on; if not, each write is durable when it ends.
    pub fn write_cache(&self) -> bool {
        self.write_cache.load(Ordering::Acquire)
    }

    /// Turns the guest-visible write cache on or off.
    pub fn set_write_cache(&self, on: bool) {
        self.write_cache.store(on, Ordering::Release);
    }

    fn node(&self) -> io::Result<&dyn BlockBackend> {
        match &self.medium {
            Some(medium) => Ok(&*medium.node),
            None => Err(io::Error::from_raw_os_error(libc::ENOMEDIUM)),
        }
    }

    fn counted<T>(&self, operation: Operation, result: io::Result<T>) -> io::Result<T> {
        result.inspect_err(|_| self.stats.count_failure(operation))
    }

    /// Fills `bufs` from `offset` on.
    ///
    /// # Errors
    /// As [`BlockBackend::read_at`], and if there is no disk.
    pub fn read(&self, offset: u64, bufs: &[GuestSlice<'_>]) -> io::Result<()> {
        let begin = Instant::now();
        self.counted(Operation::Read, self.node().and_then(|node| node.read_at(offset, bufs)))?;
        self.stats.count_read(slices_len(bufs), begin.elapsed());
        Ok(())
    }

    /// Writes `bufs` from `offset` on.
    ///
    /// # Errors
    /// As [`BlockBackend::write_at`], and if there is no disk.
    pub fn write(&self, offset: u64, bufs: &[GuestSlice<'_>]) -> io::Result<()> {
        let begin = Instant::now();
        self.counted(
            Operation::Write,
            self.node().and_then(|node| {
                node.write_at(offset, bufs)?;
                self.write_through(node)
            }),
        )?;
        self.stats.count_write(offset, slices_len(bufs), begin.elapsed());
        Ok(())
    }

    /// Makes everything written before durable.
    ///
    /// # Errors
    /// As [`BlockBackend::flush`], and if there is no disk.
    pub fn flush(&self) -> io::Result<()> {
        let begin = Instant::now();
        self.counted(Operation::Flush, self.node().and_then(|node| node.flush()))?;
        self.stats.count_flush(begin.elapsed());
        Ok(())
    }

    /// Discards `len` bytes from `offset` on.
    ///
    /// # Errors
    /// As [`BlockBackend::discard`], and if there is no disk.
    pub fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let begin = Instant::now();
        self.counted(Operation::Discard, self.node().and_then(|node| node.discard(offset, len)))?;
        self.stats.count_discard(len, begin.elapsed());
        Ok(())
    }

    /// Zeroes `len` bytes from `offset` on.
    ///
    /// # Errors
    /// As [`BlockBackend::write_zeroes`], and if there is no disk.
    pub fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()> {
        let begin = Instant::now();
        self.counted(
            Operation::Write,
            self.node().and_then(|node| {
                node.write_zeroes(offset, len, may_unmap)?;
                self.write_through(node)
            }),
        )?;
        self.stats.count_write(offset, len, begin.elapsed());
        Ok(())
    }

    fn write_through(&self, node: &dyn BlockBackend) -> io::Result<()> {
        if self.write_cache() { Ok(()) } else { node.flush() }
    }

    /// Decides what `error` of a request leads to, and tells the hook. After [`ErrorAction::Stop`] the
    /// caller keeps the request and makes it again when the machine continues.
    pub fn failed(&self, operation: Operation, error: &io::Error) -> ErrorAction {
        let no_space = error.kind() == io::ErrorKind::StorageFull;
        let policy = match operation {
            Operation::Read => self.policy.read,
            Operation::Write | Operation::Flush | Operation::Discard => self.policy.write,
        };
        let action = match policy {
            OnError::Ignore => ErrorAction::Ignore,
            OnError::Stop => ErrorAction::Stop,
            OnError::Enospc if no_space => ErrorAction::Stop,
            OnError::Report | OnError::Enospc => ErrorAction::Report,
        };
        // Nobody could stop the machine without a hook, and the request would wait for ever.
        let action = match (action, self.on_error.get()) {
            (ErrorAction::Stop, None) => ErrorAction::Report,
            (action, _) => action,
        };
        if action == ErrorAction::Stop {
            let status = if no_space { IoStatus::NoSpace } else { IoStatus::Failed };
            // The first failure is the one to be remembered.
            let _ = self.io_status.compare_exchange(
                IoStatus::Ok as u8,
                status as u8,
                Ordering::AcqRel,
                Ordering::Acquire,
            );
        }
        if let Some(hook) = self.on_error.get() {
            let device = self.id.clone();
            hook(ErrorEvent { device, operation, action, no_space, reason: describe(error) });
        }
        action
    }

    /// Forgets an earlier failure, as continuing or resetting the machine does.
    pub fn reset_io_status(&self) {
        self.io_status.store(IoStatus::Ok as u8, Ordering::Release);
    }

    /// How the last failure left the drive; `None` if no failure stops the machine.
    pub fn io_status(&self) -> Option<IoStatus> {
        let policy = self.policy;
        let stops =
            policy.read == OnError::Stop || matches!(policy.write, OnError::Stop | OnError::Enospc);
        let status = match self.io_status.load(Ordering::Acquire) {
            0 => IoStatus::Ok,
            1 => IoStatus::Failed,
            _ => IoStatus::NoSpace,
        };
        stops.then_some(status)
    }

    /// The drive as queries show it.
    pub fn info(&self) -> DriveInfo {
        let inserted = self.medium.as_ref().map(|medium| InsertedInfo {
            file: medium.node.filename(),
            node_name: medium.node_name.clone(),
            parent_node_name: medium.parent_node_name.clone(),
            read_only: self.read_only,
            driver: "raw",
            cache: CacheMode { writeback: self.write_cache(), ..medium.cache },
            virtual_size: medium.node.size(),
            actual_size: medium.node.allocated_size(),
        });
        DriveInfo {
            device: self.id.clone(),
            qdev: self.owner().clone(),
            removable: false,
            locked: false,
            tray_open: None,
            io_status: self.io_status(),
            inserted,
        }
    }

    /// What the guest's device asked of the drive.
    pub fn stats(&self) -> StatsSnapshot {
        self.stats.snapshot()
    }

    /// What went through the protocol node, the disk's parent in `query-blockstats`.
    pub fn parent_stats(&self) -> Option<StatsSnapshot> {
        self.medium.as_ref().map(|m| m.node.stats().snapshot())
    }
}

/// Refuses images that are not raw, when nobody said that they are: a guest that writes another
/// format's header into its raw disk must not be believed later.
fn refuse_other_formats(node: &FileNode, path: &Path) -> Result<(), BlockError> {
    let mut start = [0; 8];
    let read = node.read_start(&mut start);
    let count = read.map_err(|source| OpenError::Host { path: path.to_owned(), source })?;
    let known: [(&[u8], &'static str); 4] =
        [(b"QFI\xfb", "qcow2"), (b"KDMV", "vmdk"), (b"vhdxfile", "vhdx"), (b"QED\0", "qed")];
    match known.iter().find(|(magic, _)| start[..count].starts_with(magic)) {
        Some((_, name)) => Err(BlockError::UnknownFormat(name)),
        None => Ok(()),
    }
}
