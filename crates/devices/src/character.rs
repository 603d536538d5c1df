//! The two ends between a device that moves characters and its backend.
//!
//! Neither end calls the other with a lock held that the other's answer needs: a backend may deliver
//! input from within [`CharBackend::accept_input`].

/// The host's end: where a device's output goes.
pub trait CharBackend: Send + Sync {
    /// Takes as many bytes as it can without waiting and returns their number. A backend that nobody
    /// listens to takes and drops them all.
    fn write(&self, data: &[u8]) -> usize;

    /// The device has room again after [`CharReceiver::can_receive`] said zero.
    fn accept_input(&self);
}

/// The device's end: where input goes.
pub trait CharReceiver: Send + Sync {
    /// How many bytes the device can take now.
    fn can_receive(&self) -> usize;

    /// Hands over bytes, no more than [`CharReceiver::can_receive`] said; more are lost as they are on
    /// a real line.
    fn receive(&self, data: &[u8]);

    /// The other side sent a break condition.
    fn receive_break(&self);
}

/// A backend that drops everything.
pub struct Nowhere;

impl CharBackend for Nowhere {
    fn write(&self, data: &[u8]) -> usize {
        data.len()
    }

    fn accept_input(&self) {}
}
