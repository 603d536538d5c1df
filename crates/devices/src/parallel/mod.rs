//! A parallel port with a printer on it, whose paper is a character device.
//!
//! Follows IEEE 1284-2000, clause 6 (compatibility mode), in the registers that the PC/AT gave it: data,
//! status, control. A strobe passes the data on; BUSY falls for as long as it lasts and the two reads of
//! the status register after it, on the first of which the printer acknowledges. The acknowledgement
//! interrupts, if control says so. Writing a strobe without having selected and initialised the printer
//! prints nothing. The ports of EPP and ECP read as ones.

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex};

use bus::{AddressSpace, Device, IrqLine, MapError};
use chardev::CharBackend;
use serde::{Deserialize, Serialize};
use vmstate::{RestoreError, Saved, State};

use crate::isa::{PortDevice, map_ports};
use crate::lock;

/// First ports of LPT1 to LPT3.
pub const LPT_PORTS: [u16; 3] = [0x378, 0x278, 0x3bc];
/// Interrupt line of all of them, unless told.
pub const IRQ: u32 = 7;
/// Number of ports.
const PORTS: u16 = 8;

const DATA: u16 = 0;
const STATUS: u16 = 1;
const CONTROL: u16 = 2;

/// Status; BUSY, ACK and ERROR are low when they are true.
const NOT_BUSY: u8 = 1 << 7;
const NOT_ACK: u8 = 1 << 6;
const SELECTED: u8 = 1 << 4;
const NOT_ERROR: u8 = 1 << 3;
/// Bit 0 is reserved; the IBM PS/2 has a time-out there, and other machines of this kind show one.
const TIME_OUT: u8 = 1 << 0;
const IDLE: u8 = NOT_BUSY | NOT_ACK | SELECTED | NOT_ERROR;

const STROBE: u8 = 1 << 0;
const INITIALISED: u8 = 1 << 2;
const SELECT: u8 = 1 << 3;
const INTERRUPT: u8 = 1 << 4;
const INPUT: u8 = 1 << 5;
/// Bits of the control register that are not there.
const CONTROL_ONES: u8 = 0xc0;

/// Saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParallelState {
    data: u8,
    status: u8,
    control: u8,
    interrupt: bool,
}

impl Default for ParallelState {
    fn default() -> Self {
        Self {
            data: 0xff,
            status: IDLE | TIME_OUT,
            control: SELECT | INITIALISED | CONTROL_ONES,
            interrupt: false,
        }
    }
}

impl State for ParallelState {
    const NAME: &'static str = "parallel";
    const VERSION: u32 = 1;
}

/// The port.
pub struct Parallel {
    id: String,
    port: u16,
    irq: IrqLine,
    backend: Arc<dyn CharBackend>,
    state: Mutex<ParallelState>,
}

impl Parallel {
    /// A port at `port` that prints on `backend`.
    pub fn new(id: &str, port: u16, irq: IrqLine, backend: Arc<dyn CharBackend>) -> Arc<Self> {
        Arc::new(Self { id: id.to_owned(), port, irq, backend, state: Mutex::default() })
    }

    /// Maps the ports.
    ///
    /// # Errors
    /// If there are not eight of them from the first on.
    pub fn attach(self: &Arc<Self>, ports: &AddressSpace) -> Result<(), MapError> {
        map_ports(ports, self.port, PORTS, self.clone())?;
        Ok(())
    }

    fn write_control(&self, state: &mut ParallelState, value: u8) {
        let old = state.control;
        state.control = value | CONTROL_ONES;
        if value & INITIALISED == 0 {
            state.status = IDLE;
        } else if value & SELECT != 0 {
            if value & STROBE != 0 {
                state.status &= !NOT_BUSY;
                if old & STROBE == 0 {
                    // A backend that has no room loses the byte: waiting is not the printer's way here.
                    self.backend.write(&[state.data]);
                }
            } else if value & INTERRUPT != 0 && old & STROBE != 0 {
                state.interrupt = true;
            }
        }
    }

    /// Reading the status moves the printer on: busy, acknowledging, idle.
    fn read_status(state: &mut ParallelState) -> u8 {
        let status = state.status;
        state.interrupt = false;
        if status & NOT_BUSY == 0 && state.control & STROBE == 0 {
            if status & NOT_ACK != 0 {
                state.status &= !NOT_ACK;
            } else {
                state.status |= NOT_ACK | NOT_BUSY;
            }
        }
        status
    }
}

impl PortDevice for Parallel {
    fn read_port(&self, port: u16) -> u8 {
        let mut state = lock(&self.state);
        match port - self.port {
            DATA if state.control & INPUT != 0 => 0xff,
            DATA => state.data,
            STATUS => {
                let status = Self::read_status(&mut state);
                self.irq.set(state.interrupt);
                status
            }
            CONTROL => state.control,
            _ => 0xff,
        }
    }

    fn write_port(&self, port: u16, value: u8) {
        let mut state = lock(&self.state);
        match port - self.port {
            DATA => state.data = value,
            CONTROL => {
                self.write_control(&mut state, value);
                self.irq.set(state.interrupt);
            }
            _ => {}
        }
    }
}

impl Device for Parallel {
    fn id(&self) -> String {
        self.id.clone()
    }

    fn reset(&self) {
        *lock(&self.state) = ParallelState::default();
        self.irq.set(false);
    }

    fn save(&self) -> Saved {
        Saved::new(&*lock(&self.state))
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let restored: ParallelState = saved.decode()?;
        let mut state = lock(&self.state);
        *state = restored;
        self.irq.set(state.interrupt);
        Ok(())
    }
}
