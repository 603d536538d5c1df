//! ATA devices: disks (ACS-3, T13/2161-D) and, by packets, CD and DVD drives (ATA/ATAPI-6, T13/1410D,
//! chapter 9), whatever they are plugged into.
//!
//! ```text
//! IDE channel (ports, bus master) ─┐
//!                                  ├─► AtaDevice ─► Disk ─────► block::Drive
//! AHCI port (FIS, command lists) ──┘            └─► CdRom ► scsi::Lun
//! ```
//!
//! [`AtaDevice`] is what lies behind the connector, and knows no ports. The port fills in
//! [`AtaDevice::registers_mut`], calls [`AtaDevice::command`] and then does what [`AtaDevice::next`]
//! says until it says [`Next::Command`] again:
//!
//! - [`Next::DataIn`]: the host takes [`AtaDevice::block`], a DRQ data block; [`AtaDevice::advance`] says
//!   how much it took.
//! - [`Next::DataOut`]: the host fills [`AtaDevice::block_mut`]; the same.
//! - [`Next::Work`]: [`AtaDevice::job`] is to be run by [`Job::run`], with no memory, and its end given to
//!   [`AtaDevice::finish`]. It may wait for the host, so it runs on a worker, without a lock on the device.
//! - [`Next::Dma`]: the same, but the job moves data and runs with the host memory that they go to or
//!   come from. If there is too little of it, [`AtaDevice::abandon`] ends the command.
//!
//! After each call [`AtaDevice::take_interrupt`] tells whether the device now wants the host's attention.
//! A port that moves PIO data by itself (AHCI) takes it as the interrupt bit of the PIO Setup FIS.
//! Queued commands (NCQ) overlap, so their port keeps their jobs: see [`AtaDevice::queue`].
//!
//! Invariants:
//! - The state between two calls is plain data and is saved as it is; a job that was under way is made
//!   anew from it ([`End::is_held`], restore).
//! - The end of a job that a reset overtook changes nothing.
//! - A device holds at most [`BUFFER_LEN`] bytes of data.

mod cdrom;
mod device;
mod disk;
mod geometry;
mod identify;
mod job;
mod registers;
mod smart;
#[cfg(test)]
mod tests;

pub use cdrom::CdOptions;
pub use device::{AtaDevice, AtaState, Next};
pub use disk::{AtaError, DiskOptions};
pub use geometry::{Geometry, Translation};
pub use job::{End, Job, Transfer};
pub use registers::{TaskFile, device_bit, error, status};

/// Bytes of a sector.
pub const SECTOR: u64 = 512;
/// Most bytes of data that a device holds for the host.
pub const BUFFER_LEN: usize = 1 << 16;
/// Tags of queued commands.
pub const QUEUE_DEPTH: u8 = 32;

/// What devices are plugged into.
pub trait Connector: Send + Sync {
    /// How many devices it has room for; they are counted from 0.
    fn units(&self) -> usize;

    /// Whether there is a device at `unit`.
    fn is_taken(&self, unit: usize) -> bool;

    /// Whether it sends queued commands.
    fn takes_queued(&self) -> bool;

    /// Plugs `device` in at `unit`, which is free.
    fn plug(&self, unit: usize, device: AtaDevice);
}
