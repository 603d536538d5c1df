//! The pair of 8259A interrupt controllers of a PC, with their edge/level control registers.
//!
//! Follows Intel's 8259A data sheet (231468) and, for ELCR, the PIIX3 data sheet (290550), section
//! 3.5. The slave hangs on the master's input 2. The chips' cascade registers (ICW3) are accepted and
//! ignored, since the wiring is fixed; the MCS-80 mode of ICW4 is not there.
//!
//! Invariant: the output line and the cascade equal what the registers ask for whenever the lock is
//! free.

mod chip;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex};

use bus::{AddressSpace, Device, IrqLine, IrqSink, MapError};
use serde::{Deserialize, Serialize};
use vmstate::{RestoreError, Saved, State};

use crate::isa::{PortDevice, map_ports};
use crate::lapic::ExternalInterrupts;
use crate::lock;
use chip::Chip;

/// First port of the master: command, then data.
pub const MASTER_PORT: u16 = 0x20;
/// First port of the slave.
pub const SLAVE_PORT: u16 = 0xa0;
/// Edge/level control of the master; the slave's follows.
pub const ELCR_PORT: u16 = 0x4d0;

/// The master's input that the slave drives.
const CASCADE: u8 = 2;
/// Inputs whose trigger mode can be changed; the timer, keyboard, cascade, RTC and FPU stay edge.
const ELCR_WRITABLE: [u8; 2] = [0xf8, 0xde];
/// The input that a chip names when nothing is pending at acknowledge.
const SPURIOUS: u8 = 7;

/// Saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct I8259State {
    chips: [Chip; 2],
}

impl State for I8259State {
    const NAME: &'static str = "i8259";
    const VERSION: u32 = 1;

    fn validate(&self) -> Result<(), String> {
        self.chips.iter().zip(ELCR_WRITABLE).try_for_each(|(chip, elcr)| chip.validate(elcr))
    }
}

/// Both controllers.
pub struct I8259 {
    /// The CPU's INTR, by way of local APIC 0.
    output: IrqLine,
    chips: Mutex<[Chip; 2]>,
}

impl I8259 {
    /// Controllers whose interrupt output is `output`.
    pub fn new(output: IrqLine) -> Arc<Self> {
        Arc::new(Self { output, chips: Mutex::default() })
    }

    /// Maps the ports.
    ///
    /// # Errors
    /// Never in a space of 64 Ki ports.
    pub fn attach(self: &Arc<Self>, ports: &AddressSpace) -> Result<(), MapError> {
        for first in [MASTER_PORT, SLAVE_PORT, ELCR_PORT] {
            map_ports(ports, first, 2, self.clone())?;
        }
        Ok(())
    }

    /// Brings the cascade and the output in line with the registers.
    fn update(&self, chips: &mut [Chip; 2]) {
        let slave = chips[1].pending(false).is_some();
        chips[0].set_cascade(slave);
        self.output.set(chips[0].pending(true).is_some());
    }
}

impl ExternalInterrupts for I8259 {
    /// The acknowledge cycle: the vector of the most urgent request, or that of the spurious one.
    fn acknowledge(&self) -> u8 {
        let mut chips = lock(&self.chips);
        let [master, slave] = &mut *chips;
        let vector = match master.pending(true) {
            Some(CASCADE) => {
                master.acknowledge(CASCADE);
                let input = slave.pending(false).inspect(|&i| slave.acknowledge(i));
                slave.vector(input.unwrap_or(SPURIOUS))
            }
            Some(input) => {
                master.acknowledge(input);
                master.vector(input)
            }
            None => master.vector(SPURIOUS),
        };
        self.update(&mut chips);
        vector
    }
}

impl IrqSink for I8259 {
    fn set_level(&self, pin: u32, level: bool) {
        // Input 2 of the master is the cascade and has no pin outside.
        if pin >= 16 || pin == u32::from(CASCADE) {
            return;
        }
        let mut chips = lock(&self.chips);
        chips[(pin / 8) as usize].set_input((pin % 8) as u8, level);
        self.update(&mut chips);
    }
}

impl PortDevice for I8259 {
    fn read_port(&self, port: u16) -> u8 {
        let mut chips = lock(&self.chips);
        let index = usize::from(port & !1 == SLAVE_PORT);
        match port {
            ELCR_PORT | 0x4d1 => chips[usize::from(port - ELCR_PORT)].elcr,
            _ => {
                let value = chips[index].read(port & 1 != 0, index == 0);
                // Reading after a poll command is an acknowledge.
                self.update(&mut chips);
                value
            }
        }
    }

    fn write_port(&self, port: u16, value: u8) {
        let mut chips = lock(&self.chips);
        let index = usize::from(port & !1 == SLAVE_PORT);
        match port {
            ELCR_PORT | 0x4d1 => {
                let i = usize::from(port - ELCR_PORT);
                chips[i].set_elcr(value & ELCR_WRITABLE[i]);
            }
            _ => chips[index].write(port & 1 != 0, value),
        }
        self.update(&mut chips);
    }
}

impl Device for I8259 {
    fn id(&self) -> String {
        "i8259".into()
    }

    fn reset(&self) {
        let mut chips = lock(&self.chips);
        *chips = Default::default();
        self.update(&mut chips);
    }

    fn save(&self) -> Saved {
        Saved::new(&I8259State { chips: lock(&self.chips).clone() })
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let state: I8259State = saved.decode()?;
        let mut chips = lock(&self.chips);
        *chips = state.chips;
        self.update(&mut chips);
        Ok(())
    }
}
