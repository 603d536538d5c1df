//! Sense data: why a command did not end well (SPC-4, section 4.5).

use std::io;

use serde::{Deserialize, Serialize};

/// A sense key with its additional sense code and qualifier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sense {
    /// Sense key, below 16.
    pub key: u8,
    /// Additional sense code.
    pub asc: u8,
    /// Additional sense code qualifier.
    pub ascq: u8,
}

/// Sense keys.
pub mod key {
    /// Nothing to report.
    pub const NO_SENSE: u8 = 0x0;
    /// The unit can't be reached just now.
    pub const NOT_READY: u8 = 0x2;
    /// The hardware failed.
    pub const HARDWARE_ERROR: u8 = 0x4;
    /// The command or its parameters are wrong.
    pub const ILLEGAL_REQUEST: u8 = 0x5;
    /// Something happened that the initiator has to know of.
    pub const UNIT_ATTENTION: u8 = 0x6;
    /// The medium may not be written.
    pub const DATA_PROTECT: u8 = 0x7;
    /// The command was aborted and may be tried again.
    pub const ABORTED_COMMAND: u8 = 0xb;
    /// Data and medium differ.
    pub const MISCOMPARE: u8 = 0xe;
}

/// Bytes of fixed format sense data.
pub const FIXED_LEN: usize = 18;

impl Sense {
    /// NO ADDITIONAL SENSE INFORMATION.
    pub const NONE: Self = Self::new(key::NO_SENSE, 0x00, 0x00);
    /// MEDIUM NOT PRESENT - TRAY CLOSED.
    pub const NO_MEDIUM: Self = Self::new(key::NOT_READY, 0x3a, 0x01);
    /// MEDIUM NOT PRESENT - TRAY OPEN.
    pub const TRAY_OPEN: Self = Self::new(key::NOT_READY, 0x3a, 0x02);
    /// INTERNAL TARGET FAILURE.
    pub const TARGET_FAILURE: Self = Self::new(key::HARDWARE_ERROR, 0x44, 0x00);
    /// PARAMETER LIST LENGTH ERROR.
    pub const PARAMETER_LENGTH: Self = Self::new(key::ILLEGAL_REQUEST, 0x1a, 0x00);
    /// INVALID COMMAND OPERATION CODE.
    pub const INVALID_OPCODE: Self = Self::new(key::ILLEGAL_REQUEST, 0x20, 0x00);
    /// LOGICAL BLOCK ADDRESS OUT OF RANGE.
    pub const OUT_OF_RANGE: Self = Self::new(key::ILLEGAL_REQUEST, 0x21, 0x00);
    /// INVALID FIELD IN CDB.
    pub const INVALID_FIELD: Self = Self::new(key::ILLEGAL_REQUEST, 0x24, 0x00);
    /// LOGICAL UNIT NOT SUPPORTED.
    pub const NO_SUCH_UNIT: Self = Self::new(key::ILLEGAL_REQUEST, 0x25, 0x00);
    /// INVALID FIELD IN PARAMETER LIST.
    pub const INVALID_PARAMETER: Self = Self::new(key::ILLEGAL_REQUEST, 0x26, 0x00);
    /// INCOMPATIBLE MEDIUM INSTALLED.
    pub const INCOMPATIBLE_MEDIUM: Self = Self::new(key::ILLEGAL_REQUEST, 0x30, 0x00);
    /// SAVING PARAMETERS NOT SUPPORTED.
    pub const NO_SAVING: Self = Self::new(key::ILLEGAL_REQUEST, 0x39, 0x00);
    /// MEDIUM REMOVAL PREVENTED.
    pub const REMOVAL_PREVENTED: Self = Self::new(key::ILLEGAL_REQUEST, 0x53, 0x02);
    /// ILLEGAL MODE FOR THIS TRACK.
    pub const ILLEGAL_TRACK_MODE: Self = Self::new(key::ILLEGAL_REQUEST, 0x64, 0x00);
    /// NOT READY TO READY CHANGE, MEDIUM MAY HAVE CHANGED.
    pub const MEDIUM_CHANGED: Self = Self::new(key::UNIT_ATTENTION, 0x28, 0x00);
    /// POWER ON, RESET, OR BUS DEVICE RESET OCCURRED.
    pub const RESET: Self = Self::new(key::UNIT_ATTENTION, 0x29, 0x00);
    /// BUS DEVICE RESET FUNCTION OCCURRED.
    pub const UNIT_RESET: Self = Self::new(key::UNIT_ATTENTION, 0x29, 0x03);
    /// MODE PARAMETERS CHANGED.
    pub const MODE_CHANGED: Self = Self::new(key::UNIT_ATTENTION, 0x2a, 0x01);
    /// CAPACITY DATA HAS CHANGED.
    pub const CAPACITY_CHANGED: Self = Self::new(key::UNIT_ATTENTION, 0x2a, 0x09);
    /// REPORTED LUNS DATA HAS CHANGED.
    pub const LUNS_CHANGED: Self = Self::new(key::UNIT_ATTENTION, 0x3f, 0x0e);
    /// WRITE PROTECTED.
    pub const WRITE_PROTECTED: Self = Self::new(key::DATA_PROTECT, 0x27, 0x00);
    /// SPACE ALLOCATION FAILED WRITE PROTECT.
    pub const NO_SPACE: Self = Self::new(key::DATA_PROTECT, 0x27, 0x07);
    /// I/O PROCESS TERMINATED: the host could not do it.
    pub const IO_ERROR: Self = Self::new(key::ABORTED_COMMAND, 0x00, 0x06);
    /// MISCOMPARE DURING VERIFY OPERATION.
    pub const MISCOMPARE: Self = Self::new(key::MISCOMPARE, 0x1d, 0x00);

    /// From its three parts.
    pub const fn new(key: u8, asc: u8, ascq: u8) -> Self {
        Self { key, asc, ascq }
    }

    /// Whether it is a unit attention.
    pub const fn is_attention(self) -> bool {
        self.key == key::UNIT_ATTENTION
    }

    /// Fixed format.
    pub fn fixed(self) -> [u8; FIXED_LEN] {
        let mut data = [0; FIXED_LEN];
        data[0] = 0x70;
        data[2] = self.key;
        data[7] = FIXED_LEN as u8 - 8;
        (data[12], data[13]) = (self.asc, self.ascq);
        data
    }

    /// Descriptor format, without descriptors.
    pub fn descriptor(self) -> [u8; 8] {
        [0x72, self.key, self.asc, self.ascq, 0, 0, 0, 0]
    }

    /// What an error of the host means to the guest.
    pub fn of_host_error(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull => Self::NO_SPACE,
            io::ErrorKind::OutOfMemory => Self::TARGET_FAILURE,
            _ if error.raw_os_error() == Some(ENOMEDIUM) => Self::NO_MEDIUM,
            _ => Self::IO_ERROR,
        }
    }
}

/// `ENOMEDIUM` of Linux, which a drive without a disk answers.
const ENOMEDIUM: i32 = 123;
