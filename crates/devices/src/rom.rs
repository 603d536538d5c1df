//! The system's ROM, as far as it is a device: what is in it belongs to the machine's state, so that a
//! machine goes on with the firmware that it began with.

use std::sync::Arc;

use bus::Device;
use memory::MemoryBlock;
use serde::{Deserialize, Serialize};
use vmstate::{RestoreError, Saved, State};

/// Saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemRomState {
    bytes: Vec<u8>,
}

impl State for SystemRomState {
    const NAME: &'static str = "rom";
    const VERSION: u32 = 1;
}

/// The ROM.
pub struct SystemRom {
    block: Arc<MemoryBlock>,
}

impl SystemRom {
    /// A ROM with the present contents of `block`.
    pub fn new(block: Arc<MemoryBlock>) -> Arc<Self> {
        Arc::new(Self { block })
    }
}

impl Device for SystemRom {
    fn id(&self) -> String {
        self.block.name().to_owned()
    }

    fn reset(&self) {}

    fn save(&self) -> Saved {
        Saved::new(&SystemRomState { bytes: self.block.to_vec() })
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let SystemRomState { bytes } = saved.decode()?;
        let damaged = |reason| RestoreError::Damaged { name: SystemRomState::NAME, reason };
        if bytes.len() as u64 != self.block.len() {
            return Err(damaged(format!("{} bytes", bytes.len())));
        }
        self.block.write(0, &bytes).map_err(|e| damaged(e.to_string()))
    }
}
