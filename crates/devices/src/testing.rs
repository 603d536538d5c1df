//! What the tests of several devices share.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use block::{BlockBackend, GuestSlice, IoStats, LockError};
use bus::{MachineControl, Notice, ShutdownCause};
use chardev::{CharBackend, CharReceiver};

use crate::lock;

/// Records what devices ask of the machine.
#[derive(Default)]
pub(crate) struct Wishes(Mutex<Vec<String>>);

impl Wishes {
    /// What was asked since the last call.
    pub(crate) fn taken(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.0))
    }

    fn note(&self, wish: String) {
        let mut wishes = lock(&self.0);
        // Random traffic asks for a lot.
        if wishes.len() < 1000 {
            wishes.push(wish);
        }
    }
}

impl MachineControl for Wishes {
    fn request_reset(&self, cause: ShutdownCause) {
        self.note(format!("reset {}", cause.name()));
    }
    fn request_shutdown(&self, cause: ShutdownCause) {
        self.note(format!("shutdown {}", cause.name()));
    }
    fn request_exit(&self, code: i32) {
        self.note(format!("exit {code}"));
    }
    fn notify(&self, notice: Notice) {
        // No device asks whether the machine sleeps.
        if matches!(notice, Notice::Wake(_)) {
            return;
        }
        self.note(format!("notice {notice:?}"));
    }
}

/// A character device that takes everything; whoever has it can call its receiver.
#[derive(Default)]
pub(crate) struct Everything {
    receiver: Mutex<Option<Box<dyn CharReceiver>>>,
}

impl Everything {
    /// Calls the device model in front, if there is one.
    pub(crate) fn with_receiver<T: Default>(&self, call: impl FnOnce(&dyn CharReceiver) -> T) -> T {
        lock(&self.receiver).as_ref().map(|receiver| call(&**receiver)).unwrap_or_default()
    }
}

impl CharBackend for Everything {
    fn write(&self, data: &[u8]) -> usize {
        data.len()
    }
    fn set_receiver(&self, receiver: Box<dyn CharReceiver>) {
        *lock(&self.receiver) = Some(receiver);
    }
    fn accept_input(&self) {}
}

/// A disk whose reads fail, or whose writes find no space, while it is told to.
pub(crate) struct Failing {
    pub(crate) fails_reads: AtomicBool,
    pub(crate) fails_writes: AtomicBool,
    /// Writes that were made.
    pub(crate) writes: AtomicU32,
    size: u64,
    stats: IoStats,
}

impl Failing {
    /// A disk of `size` bytes that does not fail yet.
    pub(crate) fn new(size: u64) -> Arc<Self> {
        Arc::new(Self {
            fails_reads: AtomicBool::default(),
            fails_writes: AtomicBool::default(),
            writes: AtomicU32::default(),
            size,
            stats: IoStats::default(),
        })
    }
}

impl BlockBackend for Failing {
    fn read_at(&self, _offset: u64, _bufs: &[GuestSlice<'_>]) -> io::Result<()> {
        const EIO: i32 = 5;
        if self.fails_reads.load(Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        Ok(())
    }
    fn write_at(&self, _offset: u64, _bufs: &[GuestSlice<'_>]) -> io::Result<()> {
        if self.fails_writes.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.writes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }
    fn write_zeroes(&self, _offset: u64, _len: u64, _may_unmap: bool) -> io::Result<()> {
        Ok(())
    }
    fn size(&self) -> u64 {
        self.size
    }
    fn allocated_size(&self) -> u64 {
        0
    }
    fn lock(&self, _share_write: bool) -> Result<(), LockError> {
        Ok(())
    }
    fn unlock(&self) {}
    fn is_read_only(&self) -> bool {
        false
    }
    fn driver(&self) -> &'static str {
        "failing"
    }
    fn filename(&self) -> String {
        "failing".into()
    }
    fn stats(&self) -> &IoStats {
        &self.stats
    }
}
