//! A drive: the place in the machine that a disk is in.
//!
//! A [`Drive`] has the id that queries and `-device drive=` use. A guest device claims it and sends
//! its requests through it; the drive counts them, makes each write durable if the guest has no write
//! cache to flush, and tells what a failure is to lead to.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak};
use std::time::Instant;

use crate::file::describe;
use crate::media::{Bay, MediaDevice, Medium, TrayEvent};
use crate::resize::ResizeHook;
use crate::{
    BlockBackend, CacheMode, DriveOptions, GuestSlice, IoStats, LockError, OnError, OpenError,
    OutOfImage, StatsSnapshot, slices_len, sys,
};

/// Why a drive could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// The image could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The image is too small.
    #[error(transparent)]
    Part(#[from] OutOfImage),
    /// The image is in use elsewhere.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The image holds a format that this build does not read.
    #[error("Unknown driver '{0}'")]
    UnknownFormat(String),
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
    /// Name of the format node, if there is a medium.
    pub node_name: Option<String>,
    /// What the request was.
    pub operation: Operation,
    /// What it leads to.
    pub action: ErrorAction,
    /// Whether the host ran out of space; `None` if failures never stop the machine.
    pub no_space: Option<bool>,
    /// The host's words.
    pub reason: String,
}

/// Something about a drive that the machine's owner and its clients hear of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DriveEvent {
    /// A request failed. If the action is [`ErrorAction::Stop`], whoever hears it asks for the machine
    /// to be stopped, without waiting for it.
    Error(ErrorEvent),
    /// The tray opened or closed.
    TrayMoved(TrayEvent),
}

/// Told of each event; called on any thread, and must not block.
pub type EventHook = Box<dyn Fn(DriveEvent) + Send + Sync>;

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
    /// The image below, for one that holds only differences: its name, size and bytes on the host.
    pub backing: Option<BackingInfo>,
    /// Caching on the host.
    pub cache: CacheMode,
    /// Size of the disk in bytes.
    pub virtual_size: u64,
    /// Bytes it takes on the host.
    pub actual_size: u64,
}

/// The image below another, for queries. It is raw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackingInfo {
    /// The image's name.
    pub file: String,
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

/// What failures lead to.
#[derive(Clone, Copy, Debug)]
struct ErrorPolicy {
    read: OnError,
    write: OnError,
}

/// The guest device that has a drive.
pub(crate) struct Owner {
    /// Its id or path.
    pub(crate) device: String,
    share_write: bool,
    pub(crate) bay: Bay,
}

/// A drive with or without a disk in it.
///
/// A request takes the medium that is in the drive when it begins, and finishes on it whatever becomes
/// of the drive meanwhile; so changing the medium waits for no request.
pub struct Drive {
    id: String,
    pub(crate) options: DriveOptions,
    pub(crate) medium: RwLock<Option<Arc<Medium>>>,
    /// How the next medium is opened, unless its opener says.
    pub(crate) read_only: AtomicBool,
    pub(crate) locked: AtomicBool,
    pub(crate) tray_open: AtomicBool,
    policy: Mutex<ErrorPolicy>,
    /// Whether the guest's device has its write cache on.
    write_cache: AtomicBool,
    io_status: AtomicU8,
    owner: Mutex<Option<Owner>>,
    stats: IoStats,
    on_event: OnceLock<EventHook>,
    pub(crate) on_resize: Mutex<Option<ResizeHook>>,
}

impl Drive {
    /// Opens the image at `path` as drive `id`.
    ///
    /// # Errors
    /// If the image can't be opened or has a format that is not read here.
    pub fn open(id: &str, path: &Path, options: &DriveOptions) -> Result<Self, BlockError> {
        let drive = Self::empty(id, options);
        let medium = drive.open_medium(path, options.format, None)?;
        drive.put(Some(medium));
        Ok(drive)
    }

    /// A drive with a disk whose bytes are in `node`.
    pub fn with_node(id: &str, node: Arc<dyn BlockBackend>, options: &DriveOptions) -> Self {
        let drive = Self::empty(id, options);
        drive.put(Some(Medium::new(node, options)));
        drive
    }

    /// A drive with nothing in it.
    pub fn empty(id: &str, options: &DriveOptions) -> Self {
        Self {
            id: id.to_owned(),
            options: options.clone(),
            medium: RwLock::default(),
            read_only: AtomicBool::new(options.read_only),
            locked: AtomicBool::new(false),
            tray_open: AtomicBool::new(false),
            policy: Mutex::new(ErrorPolicy { read: options.rerror, write: options.werror }),
            write_cache: AtomicBool::new(options.cache.writeback),
            io_status: AtomicU8::new(IoStatus::Ok as u8),
            owner: Mutex::default(),
            stats: IoStats::default(),
            on_event: OnceLock::new(),
            on_resize: Mutex::default(),
        }
    }

    /// The drive's id; empty for one that belongs to a device without a drive of its own.
    pub fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn owner(&self) -> MutexGuard<'_, Option<Owner>> {
        self.owner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the drive that of guest device `device`, whose medium stays, and locks its image;
    /// `share_write` (`share-rw=on`) lets others write to it meanwhile.
    ///
    /// # Errors
    /// If another device has it, or another process uses the image.
    pub fn claim(&self, device: &str, share_write: bool) -> Result<(), BlockError> {
        self.claim_as(Owner { device: device.to_owned(), share_write, bay: Bay::Fixed })
    }

    /// Makes the drive that of guest device `device`, whose medium can be changed and which then calls
    /// `watcher`. A device with a tray lets its medium go only when the tray is open.
    ///
    /// # Errors
    /// If another device has it, or another process uses the image.
    pub fn claim_removable(
        &self,
        device: &str,
        has_tray: bool,
        watcher: Weak<dyn MediaDevice>,
    ) -> Result<(), BlockError> {
        let bay = Bay::Removable { has_tray, watcher };
        self.claim_as(Owner { device: device.to_owned(), share_write: false, bay })
    }

    fn claim_as(&self, new: Owner) -> Result<(), BlockError> {
        let mut owner = self.owner();
        if owner.is_some() {
            return Err(BlockError::Claimed(self.id.clone()));
        }
        if let Some(medium) = self.medium() {
            medium.node.lock(new.share_write)?;
        }
        *owner = Some(new);
        Ok(())
    }

    /// Whether a guest device has the drive.
    pub fn is_claimed(&self) -> bool {
        self.owner().is_some()
    }

    /// Gives the drive back, and lets others use the image.
    pub fn release(&self) {
        *self.owner() = None;
        self.forget_resize_hook();
        if let Some(medium) = self.medium() {
            medium.node.unlock();
        }
    }

    /// Locks `medium` as the device that has the drive needs it.
    pub(crate) fn lock_for_owner(&self, medium: &Medium) -> Result<(), LockError> {
        match &*self.owner() {
            Some(owner) => medium.node.lock(owner.share_write),
            None => Ok(()),
        }
    }

    fn policy(&self) -> ErrorPolicy {
        *self.policy.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Replaces what failed reads or writes lead to, as a device's own options do.
    pub fn set_error_policy(&self, read: Option<OnError>, write: Option<OnError>) {
        let mut policy = self.policy.lock().unwrap_or_else(|e| e.into_inner());
        policy.read = read.unwrap_or(policy.read);
        policy.write = write.unwrap_or(policy.write);
    }

    /// Sets who is told of events; only the first call counts.
    pub fn set_event_hook(&self, hook: EventHook) {
        let _ = self.on_event.set(hook);
    }

    pub(crate) fn tell(&self, event: DriveEvent) {
        if let Some(hook) = self.on_event.get() {
            hook(event);
        }
    }

    /// Size of the medium in bytes, 0 if there is none.
    pub fn size(&self) -> u64 {
        self.medium().map_or(0, |m| m.node.size())
    }

    /// Sectors of 512 bytes, 0 without a medium. The last may be in the medium only in part: the rest of it
    /// reads as zeroes, and is there once it was written.
    pub fn sectors(&self) -> u64 {
        self.size().div_ceil(512)
    }

    /// Whether there is a medium in the drive, the tray open or not.
    pub fn is_inserted(&self) -> bool {
        self.medium().is_some()
    }

    /// Whether writes are refused: by the medium, or by an empty drive by what the next would do.
    pub fn is_read_only(&self) -> bool {
        self.medium().map_or_else(|| self.read_only.load(Ordering::Acquire), |m| m.read_only)
    }

    /// Whether the guest's device has its write cache on; if not, each write is durable when it ends.
    pub fn write_cache(&self) -> bool {
        self.write_cache.load(Ordering::Acquire)
    }

    /// Turns the guest-visible write cache on or off.
    pub fn set_write_cache(&self, on: bool) {
        self.write_cache.store(on, Ordering::Release);
    }

    /// What is in the drive now.
    pub(crate) fn medium(&self) -> Option<Arc<Medium>> {
        self.medium.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What is in the drive, for a request; with `write`, if it can be written.
    fn for_request(&self, write: bool) -> io::Result<Arc<Medium>> {
        match self.medium() {
            Some(medium) if write && medium.read_only => {
                Err(io::Error::from(io::ErrorKind::PermissionDenied))
            }
            Some(medium) => Ok(medium),
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
        self.counted(
            Operation::Read,
            self.for_request(false).and_then(|m| m.node.read_at(offset, bufs)),
        )?;
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
            self.for_request(true).and_then(|medium| {
                medium.node.write_at(offset, bufs)?;
                self.write_through(&*medium.node)
            }),
        )?;
        self.stats.count_write(offset, slices_len(bufs), begin.elapsed());
        Ok(())
    }

    /// Fills a buffer of the device's own from `offset` on.
    ///
    /// # Errors
    /// As [`Drive::read`].
    pub fn read_bytes(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.read(offset, &[sys::buffer_slice(buf)])
    }

    /// Writes a buffer of the device's own from `offset` on.
    ///
    /// # Errors
    /// As [`Drive::write`].
    pub fn write_bytes(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        sys::with_buffer(buf, |slice| self.write(offset, std::slice::from_ref(slice)))
    }

    /// Makes everything written before durable.
    ///
    /// # Errors
    /// As [`BlockBackend::flush`], and if there is no disk.
    pub fn flush(&self) -> io::Result<()> {
        let begin = Instant::now();
        self.counted(Operation::Flush, self.for_request(false).and_then(|m| m.node.flush()))?;
        self.stats.count_flush(begin.elapsed());
        Ok(())
    }

    /// Discards `len` bytes from `offset` on.
    ///
    /// # Errors
    /// As [`BlockBackend::discard`], and if there is no disk.
    pub fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let begin = Instant::now();
        let medium = self.for_request(true);
        self.counted(Operation::Discard, medium.and_then(|m| m.node.discard(offset, len)))?;
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
            self.for_request(true).and_then(|medium| {
                medium.node.write_zeroes(offset, len, may_unmap)?;
                self.write_through(&*medium.node)
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
            Operation::Read => self.policy().read,
            Operation::Write | Operation::Flush | Operation::Discard => self.policy().write,
        };
        let action = match policy {
            OnError::Ignore => ErrorAction::Ignore,
            OnError::Stop => ErrorAction::Stop,
            OnError::Enospc if no_space => ErrorAction::Stop,
            OnError::Report | OnError::Enospc => ErrorAction::Report,
        };
        // Nobody could stop the machine without a hook, and the request would wait for ever.
        let action = match (action, self.on_event.get()) {
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
        self.tell(DriveEvent::Error(ErrorEvent {
            device: self.id.clone(),
            node_name: self.medium().map(|_| self.node_name()),
            operation,
            action,
            no_space: self.io_status().map(|_| no_space),
            reason: describe(error),
        }));
        action
    }

    /// Forgets an earlier failure, as continuing or resetting the machine does.
    pub fn reset_io_status(&self) {
        self.io_status.store(IoStatus::Ok as u8, Ordering::Release);
    }

    /// How the last failure left the drive; `None` if no failure stops the machine, as without a device
    /// or in one without a tray (a floppy drive).
    pub fn io_status(&self) -> Option<IoStatus> {
        let asks = |owner: &Owner| !matches!(owner.bay, Bay::Removable { has_tray: false, .. });
        let policy = self.policy();
        let stops = self.owner().as_ref().is_some_and(asks)
            && (policy.read == OnError::Stop
                || matches!(policy.write, OnError::Stop | OnError::Enospc));
        let status = match self.io_status.load(Ordering::Acquire) {
            0 => IoStatus::Ok,
            1 => IoStatus::Failed,
            _ => IoStatus::NoSpace,
        };
        stops.then_some(status)
    }

    /// Whether `name` is that of a node of the medium in it.
    pub fn has_node(&self, name: &str) -> bool {
        let format = self.node_name();
        self.is_inserted() && (name == format || name == format!("{format}.file"))
    }

    fn node_name(&self) -> String {
        format!("#{}", self.id)
    }

    /// The drive as queries show it.
    pub fn info(&self) -> DriveInfo {
        // A disk has whole sectors, though its image may end within one.
        let whole = |size: u64| size.div_ceil(512).saturating_mul(512);
        let inserted = self.medium().map(|medium| InsertedInfo {
            file: medium.node.filename(),
            node_name: self.node_name(),
            parent_node_name: format!("{}.file", self.node_name()),
            read_only: medium.read_only,
            driver: medium.driver(),
            backing: medium.node.backing().map(|base| BackingInfo {
                file: base.filename(),
                virtual_size: whole(base.size()),
                actual_size: base.allocated_size(),
            }),
            cache: CacheMode { writeback: self.write_cache(), ..medium.cache },
            virtual_size: whole(medium.node.size()),
            actual_size: medium.node.allocated_size(),
        });
        let (qdev, removable, has_tray) = match &*self.owner() {
            Some(Owner { device, bay, .. }) => match bay {
                Bay::Fixed => (Some(device.clone()), false, false),
                Bay::Removable { has_tray, .. } => (Some(device.clone()), true, *has_tray),
            },
            None => (None, true, false),
        };
        DriveInfo {
            device: self.id.clone(),
            qdev,
            removable,
            locked: has_tray && self.is_locked(),
            tray_open: has_tray.then(|| self.is_tray_open()),
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
        self.medium().map(|m| m.node.stats().snapshot())
    }
}
