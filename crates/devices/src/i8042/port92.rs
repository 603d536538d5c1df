//! System control port A of a PS/2: fast reset and the fast A20 gate.

use std::sync::{Arc, Mutex, MutexGuard};

use bus::{AddressSpace, Device, MachineControl, MapError, ShutdownCause};
use serde::{Deserialize, Serialize};
use vmstate::{RestoreError, Saved, State};

use crate::isa::{PortDevice, map_ports};
use crate::lock;

use super::A20Gate;

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
    a20: Arc<A20Gate>,
    control: Arc<dyn MachineControl>,
    state: Mutex<Port92State>,
}

impl Port92 {
    /// A port for the gate `a20`, which resets by way of `control`.
    pub fn new(a20: Arc<A20Gate>, control: Arc<dyn MachineControl>) -> Arc<Self> {
        Arc::new(Self { a20, control, state: Mutex::default() })
    }

    /// The state, with the gate as it is now.
    fn state(&self) -> MutexGuard<'_, Port92State> {
        let mut state = lock(&self.state);
        state.value = state.value & !A20 | if self.a20.is_open() { A20 } else { 0 };
        state
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
        self.state().value
    }

    fn write_port(&self, _port: u16, value: u8) {
        let mut state = self.state();
        let before = std::mem::replace(&mut state.value, value);
        self.a20.set(value & A20 != 0);
        drop(state);
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
        self.a20.set(true);
    }

    fn save(&self) -> Saved {
        Saved::new(&*self.state())
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let restored: Port92State = saved.decode()?;
        self.a20.set(restored.value & A20 != 0);
        *lock(&self.state) = restored;
        Ok(())
    }
}
