//! Interrupt lines and messages.

use std::fmt;
use std::sync::Arc;

/// Something with interrupt inputs: an interrupt controller, a router, or a test's recorder.
pub trait IrqSink: Send + Sync {
    /// Drives input `pin`. Level-triggered inputs keep the level; edge-triggered ones act on a rise.
    fn set_level(&self, pin: u32, level: bool);
}

/// One wire to an input of an [`IrqSink`].
#[derive(Clone)]
pub struct IrqLine {
    sink: Arc<dyn IrqSink>,
    pin: u32,
}

impl IrqLine {
    /// A wire to input `pin` of `sink`.
    pub fn new(sink: Arc<dyn IrqSink>, pin: u32) -> Self {
        Self { sink, pin }
    }

    /// A wire that ends nowhere.
    pub fn unconnected() -> Self {
        struct Nowhere;
        impl IrqSink for Nowhere {
            fn set_level(&self, _pin: u32, _level: bool) {}
        }
        Self::new(Arc::new(Nowhere), 0)
    }

    /// Drives the wire.
    pub fn set(&self, level: bool) {
        self.sink.set_level(self.pin, level);
    }
}

impl fmt::Debug for IrqLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IrqLine({})", self.pin)
    }
}

/// A message-signalled interrupt: a write of `data` to `address` (PCI Local Bus 3.0, section 6.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiMessage {
    /// Guest physical address of the write.
    pub address: u64,
    /// The 32 bits written.
    pub data: u32,
}

/// Takes message-signalled interrupts to the CPUs.
pub trait MsiSink: Send + Sync {
    /// Delivers one message.
    fn send(&self, message: MsiMessage);
}
