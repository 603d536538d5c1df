//! Disks: what devices read and write, and what holds the bytes.
//!
//! ```text
//! device (virtio-blk) ──► Drive ──► format node (raw) ──► protocol node (file) ──► host
//!                         name, policy,  statistics of        locks, cache mode
//!                         statistics     each node
//! ```
//!
//! - [`BlockBackend`] is a node of the disk graph: vectored reads and writes straight on guest memory,
//!   flush, discard, zeroes. It is `Send + Sync`; requests run on the threads that call it.
//! - [`FileNode`] is the protocol that keeps the bytes in a host file or block device.
//! - [`NullNode`] is the protocol that keeps nothing.
//! - [`OverlayNode`] keeps what is written to a disk apart from it, in a temporary file.
//! - [`Drive`] is what a guest device is connected to: it counts requests, applies the error policy,
//!   and holds the [`Medium`] with its tray, which can be changed meanwhile. Everything a query shows
//!   is read from it without waiting for a request.
//! - [`DriveOptions`] reads the options of `-drive`.
//!
//! Offsets and lengths are in bytes throughout.

mod backend;
mod drive;
mod file;
mod lock;
mod media;
mod null;
mod options;
mod overlay;
mod part;
mod resize;
mod stats;
mod sys;
#[cfg(test)]
mod tests;

pub use backend::{BlockBackend, GuestSlice, part_of, slices_len};
pub use drive::{
    BackingInfo, BlockError, Drive, DriveEvent, DriveInfo, ErrorAction, ErrorEvent, EventHook,
    InsertedInfo, IoStatus, Operation,
};
pub use file::{FileNode, OpenError};
pub use lock::LockError;
pub use media::{MediaDevice, MediaError, Medium, TrayEvent};
pub use null::{NullNode, NullOptions};
pub use options::{CacheMode, DiscardMode, DriveOptions, ImageFormat, OnError};
pub use overlay::OverlayNode;
pub use part::OutOfImage;
pub use resize::{ResizeError, ResizeHook};
pub use stats::{IoStats, StatsSnapshot};
pub use sys::buffer_slice;
