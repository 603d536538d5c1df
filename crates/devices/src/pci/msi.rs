//! MSI: messages whose address and data are in configuration space (PCI Local Bus Specification 3.0,
//! section 6.8.1).
//!
//! The capability has 64-bit addresses and no mask bits. All that it holds is in configuration space,
//! so it has no saved state of its own.

use ::bus::MsiMessage;

use super::ConfigSpace;

/// Capability id.
const ID: u8 = 0x05;
/// Registers after the capability's start.
const CONTROL: u16 = 2;
const ADDRESS_LOW: u16 = 4;
const ADDRESS_HIGH: u16 = 8;
const DATA: u16 = 12;

const CONTROL_ENABLE: u16 = 1 << 0;
/// Log of the number of messages asked for, and granted.
const CONTROL_CAPABLE_SHIFT: u32 = 1;
const CONTROL_GRANTED_SHIFT: u32 = 4;
const CONTROL_64_BITS: u16 = 1 << 7;

/// A function's MSI capability.
#[derive(Debug)]
pub(super) struct Msi {
    offset: u16,
}

impl Msi {
    /// Adds the capability for `count` messages, a power of two up to 32, at `offset` or where there is
    /// room.
    ///
    /// # Panics
    /// If `count` is none of these, or the configuration space has no room.
    pub(super) fn new(config: &mut ConfigSpace, offset: Option<u8>, count: u8) -> Self {
        assert!(count.is_power_of_two() && count <= 32, "{count} messages");
        let capable = count.ilog2() as u16;
        let control = CONTROL_64_BITS | capable << CONTROL_CAPABLE_SHIFT;
        let mut body = [0; 12];
        body[..2].copy_from_slice(&control.to_le_bytes());
        let offset = match offset {
            Some(offset) => config.add_capability_at(offset, ID, &body),
            None => config.add_capability(ID, &body),
        };
        // Who asks for one message is granted one.
        let granted = if count > 1 { 7 << CONTROL_GRANTED_SHIFT } else { 0 };
        let writable = CONTROL_ENABLE | granted;
        config.allow_writes(offset + CONTROL, &writable.to_le_bytes());
        config.allow_writes(offset + ADDRESS_LOW, &0xffff_fffcu32.to_le_bytes());
        config.allow_writes(offset + ADDRESS_HIGH, &u32::MAX.to_le_bytes());
        config.allow_writes(offset + DATA, &u16::MAX.to_le_bytes());
        Self { offset }
    }

    pub(super) fn is_enabled(&self, config: &ConfigSpace) -> bool {
        config.u16_at(self.offset + CONTROL) & CONTROL_ENABLE != 0
    }

    /// Message `vector`, folded into those that software granted.
    pub(super) fn message(&self, config: &ConfigSpace, vector: u8) -> MsiMessage {
        let control = config.u16_at(self.offset + CONTROL);
        let granted = 1u32 << (control >> CONTROL_GRANTED_SHIFT & 7).min(5);
        let low = u64::from(config.read(self.offset + ADDRESS_LOW, 4));
        let high = u64::from(config.read(self.offset + ADDRESS_HIGH, 4));
        let data = u32::from(config.u16_at(self.offset + DATA));
        let data = data & !(granted - 1) | u32::from(vector) & (granted - 1);
        MsiMessage { address: high << 32 | low, data }
    }
}
