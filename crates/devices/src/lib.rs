//! The devices of a PC, each with its registers, behaviour, saved state and tests.
//!
//! Every device is shared between vCPU threads, the timer thread and I/O workers, and guards its
//! registers with one lock of its own. Locks are taken downstream only, in the direction that an
//! interrupt travels: device, then router, then 8259 or I/O APIC, then local APIC. A local APIC that
//! has something to say upstream (end of interrupt, acknowledgement of the 8259) says it with its own
//! lock released. So a device may drive its interrupt line with its lock held, which keeps the line and
//! the registers in step.

pub mod ahci;
pub mod ata;
mod block_size;
pub mod debug;
pub mod fdc;
pub mod fpu_error;
pub mod fw_cfg;
pub mod hpet;
pub mod hyperv;
pub mod i440fx;
pub mod i8042;
pub mod i8237;
pub mod i8254;
pub mod i8259;
pub mod ide;
pub mod ioapic;
pub mod irq;
pub mod isa;
pub mod lapic;
pub mod mc146818;
pub mod parallel;
pub mod pci;
pub mod pflash;
pub mod piix;
pub mod pvpanic;
pub mod rom;
pub mod scsi;
pub mod testdev;
pub mod uart16550;
pub mod usb;
pub mod vga;
pub mod virtio;
pub mod vmgenid;
pub mod watchdog;

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod testing;
mod work;

use std::sync::{Mutex, MutexGuard};

pub use block_size::BlockSizeError;

/// Locks `mutex`. A panic elsewhere must not spread to everyone who shares the device, so a poisoned
/// lock is taken as it is.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}
