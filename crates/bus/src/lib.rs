//! The lines between devices and the rest of the machine, without any device in it.
//!
//! - [`AddressSpace`]: which device answers at which port or guest physical address.
//! - [`IrqLine`] and [`MsiSink`]: how a device asks for attention.
//! - [`clock`]: guest time and timers.
//! - [`MachineControl`]: what a device may ask of its machine.
//! - [`Device`]: what every device can do besides its registers: reset, save, restore.
//!
//! Devices know these traits and never the machine or the monitor. They are shared between vCPU
//! threads, timer threads and I/O workers, so each guards its own registers with a lock that it never
//! holds while it waits for something.

pub mod clock;
pub mod control;
pub mod device;
pub mod irq;
pub mod space;

pub use clock::{Clock, Timer, TimerDriver, TimerQueue};
pub use control::{MachineControl, Notice, ShutdownCause, WakeCause};
pub use device::Device;
pub use irq::{IrqLine, IrqSink, MsiMessage, MsiSink};
pub use space::{AddressSpace, BusDevice, MapError, MappingId};
