//! The A20 gate: whether address line 20 works. The keyboard controller's output port and port 92h both
//! show it and set it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What the gate does.
type Act = Box<dyn Fn(bool) + Send + Sync>;

/// The gate. Its state is saved by each of those who set it.
pub struct A20Gate {
    act: Act,
    open: AtomicBool,
}

impl A20Gate {
    /// An open gate, which calls `act` with whether it is open each time that changes.
    pub fn new(act: impl Fn(bool) + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { act: Box::new(act), open: AtomicBool::new(true) })
    }

    pub(super) fn is_open(&self) -> bool {
        self.open.load(Ordering::SeqCst)
    }

    pub(super) fn set(&self, open: bool) {
        if self.open.swap(open, Ordering::SeqCst) != open {
            (self.act)(open);
        }
    }
}
