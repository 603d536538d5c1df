//! System control port A of a PS/2: fast reset and the fast A20 gate.

use std::sync::{Arc, Mutex};

use bus::{AddressSpace, Device, MachineControl, MapError, ShutdownCause};
use serde::{Deserialize, Serialize};
use vmstate::{RestoreError, Saved, State};

use crate::isa::{PortDevice, map_ports};
use crate::lock;

const PORT: u16 = 0x92;
/// A rise of this bit resets the CPU.
const RESET: u8 = 1 << 0;
const A20: u8 = 1 << 1;

/// Saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port92State {
    value: u8,
}

impl Default for Port92State {
    fn default() -> Self {
        Self { value: A20 }
    }
}

impl State for Port92State {
    const NAME: &'static str = "port92";
    const VERSION: u32 = 1;
}

/// The port.
pub struct Port92 {
    control: Arc<dyn MachineControl>,
    state: Mutex<Port92State>,
}

impl Port92 {
    /// A port that resets by way of `control`.
    pub fn new(control: Arc<dyn MachineControl>) -> Arc<Self> {
        Arc::new(Self { control, state: Mutex::default() })
    }

    /// Maps the port.
    ///
    /// # Errors
    /// Never in a space of 64 Ki ports.
    pub fn attach(self: &Arc<Self>, ports: &AddressSpace) -> Result<(), MapError> {
        map_ports(ports, PORT, 1, self.clone())?;
        Ok(())
    }
}

impl PortDevice for Port92 {
    fn read_port(&self, _port: u16) -> u8 {
        lock(&self.state).value
    }

    fn write_port(&self, _port: u16, value: u8) {
        let before = std::mem::replace(&mut lock(&self.state).value, value);
        if value & !before & RESET != 0 {
            self.control.request_reset(ShutdownCause::GuestReset);
        }
    }
}

impl Device for Port92 {
    fn id(&self) -> String {
        "port92".into()
    }

    fn reset(&self) {
        *lock(&self.state) = Port92State::default();
    }

    fn save(&self) -> Saved {
        Saved::new(&*lock(&self.state))
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let restored = saved.decode()?;
        *lock(&self.state) = restored;
        Ok(())
    }
}
