//! What is in the drive, and whether it can be taken out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use block::Drive;

/// Whether there is a medium to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MediaState {
    /// There is one.
    Present,
    /// There is none, and the tray is closed.
    Empty,
    /// The tray is open.
    Open,
}

/// The tray of a drive.
pub(super) struct Media {
    drive: Arc<Drive>,
    open: AtomicBool,
    locked: AtomicBool,
}

impl Media {
    pub(super) fn new(drive: Arc<Drive>) -> Self {
        Self { drive, open: AtomicBool::new(false), locked: AtomicBool::new(false) }
    }

    pub(super) fn state(&self) -> MediaState {
        if self.is_open() {
            MediaState::Open
        } else if self.drive.is_inserted() {
            MediaState::Present
        } else {
            MediaState::Empty
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    pub(super) fn set_open(&self, open: bool) {
        self.open.store(open, Ordering::Release);
    }

    pub(super) fn is_locked(&self) -> bool {
        self.locked.load(Ordering::Acquire)
    }

    pub(super) fn set_locked(&self, locked: bool) {
        self.locked.store(locked, Ordering::Release);
    }

    /// Changes with each change of medium.
    pub(super) fn generation(&self) -> u64 {
        self.state() as u64
    }
}
