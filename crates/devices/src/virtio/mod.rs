//! Virtio devices on PCI (Virtual I/O Device specification, version 1.2; for drivers of the time before
//! it, its legacy interface, version 0.9.5).
//!
//! ```text
//! vCPU ── port, MMIO ──► VirtioPci ──► VirtioCore ──► SplitQueue   (registers, rings)
//!                        BARs, caps        │ kick
//!                                          ▼
//!                                    worker threads ──► VirtioDevice::service ──► backend
//! ```
//!
//! - [`VirtioPci`] is the function that the guest finds: modern, transitional or legacy.
//! - [`VirtioCore`] runs one device: status, features, queues, interrupts and the worker threads.
//! - [`SplitQueue`] reads and writes the rings in guest memory and believes nothing that it finds there.
//! - [`VirtioDevice`] is what a kind of device adds: [`blk`], [`scsi`], [`balloon`], [`mod@input`],
//!   [`rng`].
//!
//! Invariants:
//! - A vCPU that notifies a queue never does the work: it wakes a worker and goes on.
//! - While a device is paused ([`VirtioCore::pause`]) no request is in flight and guest memory does not
//!   change through it.
//! - A ring that breaks the rules stops its device, which asks for a reset; nothing else happens.

mod backlog;
pub mod balloon;
pub mod blk;
mod core;
pub mod input;
mod legacy;
mod modern;
mod pci;
mod queue;
pub mod rng;
pub mod scsi;
#[cfg(test)]
mod testing;

use std::sync::Weak;

use vmstate::{RestoreError, Saved};

pub use self::core::VirtioCore;
pub use pci::{TransportError, VirtioPci, VirtioPciOptions};
pub use queue::{Chain, QueueError, QueueState, Segment, SplitQueue, slices};

/// Feature bits that belong to the transport and the rings.
pub mod feature {
    /// Legacy: interrupt when the available ring runs empty, even if suppressed.
    pub const NOTIFY_ON_EMPTY: u64 = 1 << 24;
    /// Legacy: no assumptions on how a request is cut into descriptors.
    pub const ANY_LAYOUT: u64 = 1 << 27;
    /// Descriptors may point to tables of descriptors.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// Both sides say at which index they want to hear.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// The driver follows version 1 of the specification.
    pub const VERSION_1: u64 = 1 << 32;
    /// Queues can be reset one by one.
    pub const RING_RESET: u64 = 1 << 40;
}

/// What a kind of device is called, and how the guest knows it.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// Name of the kind, as in `"virtio-blk"`.
    pub name: &'static str,
    /// Device type of the specification, chapter 5.
    pub device_type: u16,
    /// PCI device id of a transitional device.
    pub transitional_id: u16,
    /// PCI class, subclass and programming interface.
    pub class: u32,
    /// MSI-X vectors beside the one of each queue, unless told otherwise; `None` for no MSI-X.
    pub extra_vectors: Option<u16>,
}

/// What one kind of virtio device adds to [`VirtioCore`]. All methods take `&self`: registers are read
/// by vCPUs while workers serve queues.
pub trait VirtioDevice: Send + Sync {
    /// Which kind it is.
    fn kind(&self) -> &'static Kind;

    /// Feature bits of the kind that the device offers.
    fn features(&self) -> u64;

    /// Largest size of each queue, a power of two up to 1024.
    fn queue_sizes(&self) -> Vec<u16>;

    /// How many threads may serve the device's queues at a time.
    fn workers(&self) -> usize {
        1
    }

    /// Called once, before anything else, with the core that runs the device.
    fn connect(&self, _core: Weak<VirtioCore>) {}

    /// Contents of the configuration structure; its length never changes.
    fn config(&self) -> Vec<u8>;

    /// The driver wrote `data` at `offset` of the configuration structure, within its length.
    fn write_config(&self, _offset: usize, _data: &[u8]) {}

    /// The driver accepted these features.
    fn negotiated(&self, _features: u64) {}

    /// Serves `queue` until it is empty or [`VirtioCore::is_pausing`]. Runs on a worker.
    fn service(&self, core: &VirtioCore, queue: u16);

    /// The machine continues after a pause; all queues are served again after this.
    fn resumed(&self) {}

    /// Forgets requests of `queue` that it held back; no worker runs.
    fn queue_reset(&self, _queue: u16) {}

    /// Back to the state before a driver came; no worker runs.
    fn reset(&self);

    /// State beyond that of the core; no worker runs.
    fn save(&self) -> Saved;

    /// Takes over saved state; no worker runs.
    ///
    /// # Errors
    /// If it does not fit; the device is then unchanged.
    fn restore(&self, saved: &Saved) -> Result<(), RestoreError>;
}
