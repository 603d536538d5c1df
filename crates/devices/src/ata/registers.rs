//! The registers of a device (ACS-3, chapter 6): the command block as the host last wrote it or the
//! device left it.

use serde::{Deserialize, Serialize};

/// Bits of the status register.
pub mod status {
    /// The device is busy and owns the registers.
    pub const BSY: u8 = 1 << 7;
    /// The device is ready for commands.
    pub const DRDY: u8 = 1 << 6;
    /// The device has a fault.
    pub const DF: u8 = 1 << 5;
    /// Seek complete; always on in a device that is ready.
    pub const DSC: u8 = 1 << 4;
    /// Data are to be moved.
    pub const DRQ: u8 = 1 << 3;
    /// The command failed; for packet devices, check condition.
    pub const ERR: u8 = 1 << 0;
}

/// Bits of the error register.
pub mod error {
    /// Interface CRC error.
    pub const ICRC: u8 = 1 << 7;
    /// The data can't be read.
    pub const UNC: u8 = 1 << 6;
    /// There is no such address.
    pub const IDNF: u8 = 1 << 4;
    /// The command was aborted.
    pub const ABRT: u8 = 1 << 2;
}

/// Bits of the device register.
pub mod device_bit {
    /// Addresses are linear, not cylinders, heads and sectors.
    pub const LBA: u8 = 1 << 6;
    /// Device 1 of a channel is meant.
    pub const DEV: u8 = 1 << 4;
    /// Bits that always read as one.
    pub const OBSOLETE: u8 = 0xa0;
}

/// The command block registers. Those that are written twice for an extended command hold both bytes,
/// the one written first above.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskFile {
    /// Features.
    pub features: u16,
    /// Sector count.
    pub count: u16,
    /// LBA low, mid and high, 48 bits.
    pub lba: u64,
    /// Device.
    pub device: u8,
    /// Status.
    pub status: u8,
    /// Error.
    pub error: u8,
}

impl TaskFile {
    /// Puts a byte into features, moving the last one up.
    pub fn push_features(&mut self, value: u8) {
        self.features = self.features << 8 | u16::from(value);
    }

    /// Puts a byte into sector count, moving the last one up.
    pub fn push_count(&mut self, value: u8) {
        self.count = self.count << 8 | u16::from(value);
    }

    /// Puts a byte into LBA low, mid or high (`index` 0 to 2), moving the last one up.
    pub fn push_lba(&mut self, index: u32, value: u8) {
        let (low, high) = (8 * index, 24 + 8 * index);
        let last = self.lba >> low & 0xff;
        self.lba &= !(0xff << low | 0xff << high);
        self.lba |= u64::from(value) << low | last << high;
    }

    /// LBA low, mid or high (`index` 0 to 2): the byte written last or, with `previous`, before it.
    pub fn lba_byte(&self, index: u32, previous: bool) -> u8 {
        (self.lba >> (8 * index + if previous { 24 } else { 0 })) as u8
    }

    /// Sector count as a command with 28-bit addresses means it.
    pub(super) fn count28(&self) -> u32 {
        if self.count & 0xff == 0 { 256 } else { (self.count & 0xff).into() }
    }

    /// Sector count as a command with 48-bit addresses means it.
    pub(super) fn count48(&self) -> u32 {
        if self.count == 0 { 0x1_0000 } else { self.count.into() }
    }

    /// Byte count of a packet command's data.
    pub(super) fn byte_count(&self) -> u16 {
        (self.lba >> 8) as u16
    }

    pub(super) fn set_byte_count(&mut self, count: u16) {
        self.lba = self.lba & !0xff_ff00 | u64::from(count) << 8;
    }

    /// What a device shows after a reset or a diagnosis: that it is well, and what it is.
    pub(super) fn set_signature(&mut self, is_packet: bool) {
        self.features = 0;
        self.count = 1;
        self.lba = if is_packet { 0xeb_1401 } else { 1 };
        self.device &= !device_bit::DEV & !0xf;
        self.error = 1;
        // A packet device is not ready until it has been talked to.
        self.status = if is_packet { 0 } else { status::DRDY | status::DSC };
    }
}
