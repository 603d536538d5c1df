//! What every device can do besides its registers.

use vmstate::{RestoreError, Saved};

/// A device of a machine. Its registers are reached through [`crate::BusDevice`] or its bus's own trait.
///
/// Invariants, which the shared conformance test holds every device to: `reset` brings back the state
/// after construction; `restore(save())` changes nothing observable; `restore` of another device's or
/// damaged state is an error and leaves the device as it was.
pub trait Device: Send + Sync {
    /// The device's id, unique in its machine, as in `"virtio-blk0"`; names its section in saved state.
    fn id(&self) -> String;

    /// Brings the device into its power-on state, lines lowered and timers disarmed.
    fn reset(&self);

    /// The machine stops: returns once nothing is in flight that would change the machine, and starts
    /// nothing until [`Device::resume`]. Pauses nest. Devices that act only for a vCPU or a timer need
    /// not do anything.
    fn pause(&self) {}

    /// The machine continues.
    fn resume(&self) {}

    /// The device's state. Called while no vCPU runs.
    fn save(&self) -> Saved;

    /// Takes over saved state, lines and timers included.
    ///
    /// # Errors
    /// If the state belongs to something else or is damaged; the device is then unchanged.
    fn restore(&self, saved: &Saved) -> Result<(), RestoreError>;
}
