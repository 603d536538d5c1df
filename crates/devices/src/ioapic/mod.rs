//! The I/O APIC: takes 24 interrupt lines to the local APICs.
//!
//! Follows Intel's 82093AA data sheet (290566), with the end-of-interrupt register of later parts,
//! which version 20h announces.
//!
//! Invariants while the lock is free: a pin whose entry is level-triggered, unmasked and not awaiting
//! an end of interrupt has no request left that somebody would take; Remote IRR is set only between
//! such a delivery and its end.

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex};

use bus::{BusDevice, Device, IrqSink};
use serde::{Deserialize, Serialize};
use vmstate::{RestoreError, Saved, State};

use crate::lapic::{ApicBus, DeliveryMode, Destination, EndOfInterrupt, Message, Shorthand};
use crate::lock;

/// Guest physical address of the registers.
pub const BASE: u64 = 0xfec0_0000;
/// Length of the register page in bytes.
pub const MMIO_SIZE: u64 = 0x1000;
/// Number of interrupt lines.
pub const PINS: u32 = 24;

/// Directly addressed registers.
const IOREGSEL: u64 = 0x00;
const IOWIN: u64 = 0x10;
const EOIR: u64 = 0x40;
/// Registers behind the window.
const ID: u8 = 0x00;
const VERSION: u8 = 0x01;
const ARBITRATION: u8 = 0x02;
const REDIRECTION: u8 = 0x10;
const REDIRECTION_LAST: u8 = REDIRECTION + 2 * PINS as u8 - 1;

const VERSION_VALUE: u32 = (PINS - 1) << 16 | 0x20;

/// Fields of a redirection entry.
const LOGICAL: u64 = 1 << 11;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
const WRITABLE: u64 = 0xff00_0000_0001_afff;

/// Saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoApicState {
    id: u8,
    select: u8,
    entries: [u64; PINS as usize],
    /// Levels of the lines, a bit a pin.
    lines: u32,
    /// Requests not delivered yet, a bit a pin.
    requests: u32,
}

impl Default for IoApicState {
    fn default() -> Self {
        Self { id: 0, select: 0, entries: [MASKED; PINS as usize], lines: 0, requests: 0 }
    }
}

impl State for IoApicState {
    const NAME: &'static str = "ioapic";
    const VERSION: u32 = 1;

    fn validate(&self) -> Result<(), String> {
        if self.id > 0xf {
            return Err(format!("id {:#x}", self.id));
        }
        if (self.lines | self.requests) >> PINS != 0 {
            return Err(format!("more than {PINS} pins"));
        }
        for (pin, entry) in self.entries.iter().enumerate() {
            let waits_without_level = entry & (REMOTE_IRR | LEVEL) == REMOTE_IRR;
            if entry & !(WRITABLE | REMOTE_IRR) != 0 || waits_without_level {
                return Err(format!("entry {pin} is {entry:#x}"));
            }
        }
        Ok(())
    }
}

/// The I/O APIC.
pub struct IoApic {
    apics: Arc<ApicBus>,
    state: Mutex<IoApicState>,
}

impl IoApic {
    /// An I/O APIC that delivers to `apics`, and hears from them of ends of interrupts.
    pub fn new(apics: Arc<ApicBus>) -> Arc<Self> {
        let this = Arc::new(Self { apics, state: Mutex::default() });
        let sink: Arc<dyn EndOfInterrupt> = this.clone();
        this.apics.connect_end_of_interrupt(Arc::downgrade(&sink));
        this
    }

    /// Delivers the request of `pin`, if there is one and its entry lets it.
    fn service(&self, state: &mut IoApicState, pin: usize) {
        let bit = 1 << pin;
        let entry = state.entries[pin];
        if state.requests & bit == 0 || entry & (MASKED | REMOTE_IRR) != 0 {
            return;
        }
        let level = entry & LEVEL != 0;
        let mode = DeliveryMode::from_bits((entry >> 8) as u32);
        let taken = mode.is_some_and(|mode| {
            // Only fixed and lowest-priority interrupts can be level-triggered.
            let acknowledged = matches!(mode, DeliveryMode::Fixed | DeliveryMode::LowestPriority);
            let destination = Destination {
                id: (entry >> 56) as u32,
                logical: entry & LOGICAL != 0,
                wide: false,
            };
            mode != DeliveryMode::Startup
                && self.apics.deliver(Message {
                    destination,
                    shorthand: Shorthand::None,
                    mode,
                    vector: entry as u8,
                    level: level && acknowledged,
                })
        });
        if !level {
            state.requests &= !bit;
        } else if taken {
            state.entries[pin] |= REMOTE_IRR;
        }
    }

    fn read_window(&self, state: &IoApicState) -> u32 {
        match state.select {
            ID | ARBITRATION => u32::from(state.id) << 24,
            VERSION => VERSION_VALUE,
            select @ REDIRECTION..=REDIRECTION_LAST => {
                let entry = state.entries[usize::from((select - REDIRECTION) / 2)];
                if select & 1 == 0 { entry as u32 } else { (entry >> 32) as u32 }
            }
            _ => 0,
        }
    }

    fn write_window(&self, state: &mut IoApicState, value: u32) {
        match state.select {
            ID => state.id = (value >> 24) as u8 & 0xf,
            select @ REDIRECTION..=REDIRECTION_LAST => {
                let pin = usize::from((select - REDIRECTION) / 2);
                let old = state.entries[pin];
                let written = if select & 1 == 0 {
                    old & !0xffff_ffff | u64::from(value)
                } else {
                    old & 0xffff_ffff | u64::from(value) << 32
                };
                let mut entry = written & WRITABLE | old & REMOTE_IRR;
                let bit = 1 << pin;
                if entry & LEVEL == 0 {
                    // Guests switch an entry to edge and back to drop a stuck Remote IRR.
                    entry &= !REMOTE_IRR;
                    if old & LEVEL != 0 {
                        state.requests &= !bit;
                    }
                } else {
                    state.requests = state.requests & !bit | state.lines & bit;
                }
                state.entries[pin] = entry;
                self.service(state, pin);
            }
            _ => {}
        }
    }
}

impl IrqSink for IoApic {
    fn set_level(&self, pin: u32, level: bool) {
        if pin >= PINS {
            return;
        }
        let mut state = lock(&self.state);
        let bit = 1 << pin;
        let rose = level && state.lines & bit == 0;
        let entry = state.entries[pin as usize];
        if level {
            state.lines |= bit;
        } else {
            state.lines &= !bit;
        }
        if entry & LEVEL != 0 {
            if level {
                state.requests |= bit;
            } else {
                state.requests &= !bit;
            }
        } else if rose && entry & MASKED == 0 {
            // Edges on a masked pin are lost, as the data sheet says.
            state.requests |= bit;
        }
        self.service(&mut state, pin as usize);
    }
}

impl EndOfInterrupt for IoApic {
    fn end_of_interrupt(&self, vector: u8) {
        let mut state = lock(&self.state);
        for pin in 0..PINS as usize {
            let entry = state.entries[pin];
            if entry & REMOTE_IRR != 0 && entry as u8 == vector {
                state.entries[pin] &= !REMOTE_IRR;
                self.service(&mut state, pin);
            }
        }
    }
}

impl BusDevice for IoApic {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let state = lock(&self.state);
        let value = match offset & 0xff {
            IOREGSEL => state.select.into(),
            IOWIN if size >= 4 => self.read_window(&state),
            _ => 0,
        };
        value.into()
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        match offset & 0xff {
            IOREGSEL => lock(&self.state).select = value as u8,
            IOWIN if size >= 4 => self.write_window(&mut lock(&self.state), value as u32),
            EOIR if size >= 4 => self.end_of_interrupt(value as u8),
            _ => {}
        }
    }
}

impl Device for IoApic {
    fn id(&self) -> String {
        "ioapic".into()
    }

    fn reset(&self) {
        *lock(&self.state) = IoApicState::default();
    }

    fn save(&self) -> Saved {
        Saved::new(&*lock(&self.state))
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let restored: IoApicState = saved.decode()?;
        *lock(&self.state) = restored;
        Ok(())
    }
}
