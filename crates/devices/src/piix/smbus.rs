//! PIIX4's SMBus host controller, with nothing on its bus.
//!
//! Follows Intel's 82371AB data sheet (290562), chapter 7.4.

use serde::{Deserialize, Serialize};

/// Number of ports.
pub(super) const PORTS: u16 = 16;

const HOST_STATUS: u64 = 0;
const HOST_CONTROL: u64 = 2;
/// First of the registers that only hold what is written: command, address, data, and the slave's.
const FIRST_HELD: u64 = 3;
const BLOCK_DATA: u64 = 7;

const STATUS_INTERRUPT: u8 = 1 << 1;
const STATUS_NO_DEVICE: u8 = 1 << 2;
/// Bits cleared by writing one.
const STATUS_CLEARED: u8 = 0x1e;
const CONTROL_START: u8 = 1 << 6;
/// Starts a transaction; reads as zero.
const CONTROL_KEPT: u8 = 0x1f;

/// Registers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Smbus {
    status: u8,
    held: [u8; PORTS as usize],
}

impl Smbus {
    pub(super) fn read(&self, offset: u64) -> u8 {
        match offset {
            HOST_STATUS => self.status,
            BLOCK_DATA => 0,
            _ => self.held[(offset % u64::from(PORTS)) as usize],
        }
    }

    pub(super) fn write(&mut self, offset: u64, value: u8) {
        match offset {
            HOST_STATUS => self.status &= !(value & STATUS_CLEARED),
            HOST_CONTROL => {
                self.held[HOST_CONTROL as usize] = value & CONTROL_KEPT;
                if value & CONTROL_START != 0 {
                    // No one acknowledges the address.
                    self.status |= STATUS_NO_DEVICE | STATUS_INTERRUPT;
                }
            }
            FIRST_HELD..BLOCK_DATA => self.held[offset as usize] = value,
            _ => {}
        }
    }
}
