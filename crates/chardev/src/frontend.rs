//! The line between a character device and the device model in front of it.
//!
//! Threads: a [`CharReceiver`] is called on the character device's own thread, never on a vCPU's; the
//! methods of [`CharBackend`] may be called from any thread, also while a receiver is being called, and
//! never wait for I/O. A receiver may call `write` and `accept_input` of its own backend, but not
//! `set_receiver`.

/// Something other than bytes happened to a character device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CharEvent {
    /// Someone is there to read and write.
    Opened,
    /// Nobody is any more.
    Closed,
    /// A break condition on the line.
    Break,
}

/// The device model that gets the input.
pub trait CharReceiver: Send {
    /// How many bytes [`CharReceiver::receive`] would take now. At 0 input waits, in the end with its
    /// sender; [`CharBackend::accept_input`] asks again.
    fn can_receive(&self) -> usize;

    /// Takes input, at most as many bytes as [`CharReceiver::can_receive`] just said.
    fn receive(&self, data: &[u8]);

    /// Something else happened.
    fn event(&self, event: CharEvent);

    /// There is room again after [`CharBackend::write`] took less than it was given.
    fn writable(&self) {}
}

/// What a device model writes to.
pub trait CharBackend: Send + Sync {
    /// Takes as much of `data` as there is room for and returns how many bytes that is. What didn't fit
    /// is the caller's: to keep until [`CharReceiver::writable`], or to drop as a UART without flow
    /// control would. While nobody is connected all of it is taken and lost.
    fn write(&self, data: &[u8]) -> usize;

    /// Makes `receiver` the one that gets the input, in place of any other. If someone is connected, it
    /// is told so at once.
    fn set_receiver(&self, receiver: Box<dyn CharReceiver>);

    /// Says that the receiver, which had enough, can receive again.
    fn accept_input(&self);
}

/// What `query-chardev` tells of a character device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChardevInfo {
    /// The name given to it.
    pub label: String,
    /// Where its bytes go.
    pub filename: String,
    /// Whether a device model is attached.
    pub frontend_open: bool,
}
