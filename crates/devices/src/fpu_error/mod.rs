//! The PC's way to tell of floating-point errors (IBM PC AT Technical Reference, "80287 Math
//! Coprocessor"; SDM volume 1, appendix D).
//!
//! A CPU with CR0.NE clear tells the board of an error by its output FERR#, which raises interrupt 13
//! and waits. The handler writes to port 0xf0: that lowers the interrupt and asserts IGNNE#, which lets
//! the CPU go on although the error is still there, until it has been cleared.

use std::sync::{Arc, Mutex};

use bus::{AddressSpace, Device, IrqLine, MapError};
use serde::{Deserialize, Serialize};
use vmstate::{RestoreError, Saved, State};

use crate::isa::{PortDevice, map_ports};
use crate::lock;

/// The ports that clear the interrupt: 0xf0, and 0xf1, which reset the coprocessor once.
const PORTS: (u16, u16) = (0xf0, 2);

/// Saved state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FpuErrorState {
    /// The interrupt is raised.
    interrupt: bool,
    /// IGNNE# is asserted.
    ignored: bool,
}

impl State for FpuErrorState {
    const NAME: &'static str = "fpu-error";
    const VERSION: u32 = 1;
}

/// The latch between FERR# and interrupt 13.
pub struct FpuError {
    irq: IrqLine,
    state: Mutex<FpuErrorState>,
}

impl FpuError {
    /// A latch that drives `irq`.
    pub fn new(irq: IrqLine) -> Arc<Self> {
        Arc::new(Self { irq, state: Mutex::default() })
    }

    /// Maps the ports.
    ///
    /// # Errors
    /// Never in a space of 64 Ki ports.
    pub fn attach(self: &Arc<Self>, ports: &AddressSpace) -> Result<(), MapError> {
        map_ports(ports, PORTS.0, PORTS.1, self.clone())?;
        Ok(())
    }

    /// A CPU has an error (or, with false, has none any more). Returns whether it may go on.
    pub fn set(&self, pending: bool) -> bool {
        let mut state = lock(&self.state);
        if !pending {
            state.ignored = false;
        } else if !state.ignored && !state.interrupt {
            state.interrupt = true;
            self.irq.set(true);
        }
        !pending || state.ignored
    }
}

impl PortDevice for FpuError {
    fn read_port(&self, _port: u16) -> u8 {
        0xff
    }

    fn write_port(&self, _port: u16, _value: u8) {
        let mut state = lock(&self.state);
        state.ignored |= state.interrupt;
        state.interrupt = false;
        self.irq.set(false);
    }
}

impl Device for FpuError {
    fn id(&self) -> String {
        "fpu-error".into()
    }

    fn reset(&self) {
        *lock(&self.state) = FpuErrorState::default();
        self.irq.set(false);
    }

    fn save(&self) -> Saved {
        Saved::new(&*lock(&self.state))
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let restored: FpuErrorState = saved.decode()?;
        let mut state = lock(&self.state);
        *state = restored;
        self.irq.set(state.interrupt);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::irq::testing::Recorder;

    #[test]
    fn an_error_interrupts_until_the_handler_answers_and_waits_until_it_is_cleared() {
        let lines = Arc::new(Recorder::default());
        let latch = FpuError::new(IrqLine::new(lines.clone(), 13));
        let ports = AddressSpace::new();
        latch.attach(&ports).unwrap();
        assert!(!latch.set(true), "the CPU waits");
        assert!(lines.level(13));
        assert!(!latch.set(true));
        assert!(ports.write(0xf0, 1, 0));
        assert!(!lines.level(13));
        assert!(latch.set(true), "the handler runs with the error pending");
        assert!(latch.set(false));
        assert!(!latch.set(true), "another one interrupts again");
        assert_eq!(lines.rises(13), 2);
    }
}
