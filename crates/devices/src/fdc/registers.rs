//! Bits and commands of the controller by name.

use serde::{Deserialize, Serialize};

/// Ports, after the first.
pub(super) mod port {
    pub(crate) const STATUS_B: u16 = 1;
    pub(crate) const OUTPUT: u16 = 2;
    pub(crate) const TAPE: u16 = 3;
    /// Main status when read, data rate select when written.
    pub(crate) const MAIN_STATUS: u16 = 4;
    pub(crate) const DATA: u16 = 5;
    /// Digital input when read, configuration control when written.
    pub(crate) const INPUT: u16 = 7;
}

/// Digital output register.
pub(super) const DOR_SELECT: u8 = 3;
pub(super) const DOR_NOT_RESET: u8 = 1 << 2;
pub(super) const DOR_DMA: u8 = 1 << 3;
/// Data rate select register.
pub(super) const DSR_RESET: u8 = 1 << 7;
pub(super) const DSR_RATE: u8 = 3;
/// Digital input register.
pub(super) const DIR_CHANGED: u8 = 1 << 7;
/// Main status register.
pub(super) const MSR_READY: u8 = 1 << 7;
pub(super) const MSR_OUT: u8 = 1 << 6;
pub(super) const MSR_NO_DMA: u8 = 1 << 5;
pub(super) const MSR_BUSY: u8 = 1 << 4;

/// Status register 0: how the command ended.
pub(super) const ST0_ABNORMAL: u8 = 0x40;
pub(super) const ST0_INVALID: u8 = 0x80;
pub(super) const ST0_POLLING: u8 = 0xc0;
pub(super) const ST0_SEEK_END: u8 = 1 << 5;
pub(super) const ST0_HEAD: u8 = 1 << 2;
/// Status register 1.
pub(super) const ST1_END_OF_CYLINDER: u8 = 1 << 7;
pub(super) const ST1_DATA_ERROR: u8 = 1 << 5;
pub(super) const ST1_NO_DATA: u8 = 1 << 2;
pub(super) const ST1_NOT_WRITABLE: u8 = 1 << 1;
pub(super) const ST1_NO_ADDRESS_MARK: u8 = 1 << 0;
/// Status register 2.
pub(super) const ST2_CONTROL_MARK: u8 = 1 << 6;
pub(super) const ST2_DATA_ERROR: u8 = 1 << 5;
pub(super) const ST2_WRONG_CYLINDER: u8 = 1 << 4;
pub(super) const ST2_SCAN_HIT: u8 = 1 << 3;
pub(super) const ST2_SCAN_MISS: u8 = 1 << 2;
pub(super) const ST2_BAD_CYLINDER: u8 = 1 << 1;
/// Status register 3.
pub(super) const ST3_PROTECTED: u8 = 1 << 6;
pub(super) const ST3_READY: u8 = 1 << 5;
pub(super) const ST3_TRACK_0: u8 = 1 << 4;
pub(super) const ST3_TWO_SIDES: u8 = 1 << 3;

/// Bits of commands' first byte.
pub(super) const MULTI_TRACK: u8 = 1 << 7;
pub(super) const SKIP: u8 = 1 << 5;
/// Relative seek: towards the centre.
pub(super) const INWARDS: u8 = 1 << 6;
/// Bits of the second byte.
pub(super) const SELECT: u8 = 3;
pub(super) const HEAD: u8 = 1 << 2;
/// VERIFY takes the number of sectors from its last byte.
pub(super) const COUNTED: u8 = 1 << 7;
/// SPECIFY, last byte: no DMA.
pub(super) const NO_DMA: u8 = 1;
/// CONFIGURE, second byte: implied seek, and FIFO off.
pub(super) const IMPLIED_SEEK: u8 = 1 << 6;
pub(super) const FIFO_OFF: u8 = 1 << 5;

/// What VERSION says: an 82077AA or a later one.
pub(super) const VERSION: u8 = 0x90;
/// What PART ID says: an 82078.
pub(super) const PART: u8 = 0x41;

/// A command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Command {
    ReadData,
    ReadDeleted,
    WriteData,
    WriteDeleted,
    ReadTrack,
    Verify,
    ScanEqual,
    ScanLow,
    ScanHigh,
    Format,
    ReadId,
    Recalibrate,
    SenseInterrupt,
    Specify,
    SenseDrive,
    Seek,
    RelativeSeek,
    DumpRegisters,
    Version,
    PartId,
    Configure,
    Perpendicular,
    Lock,
    Save,
    Restore,
    Option,
    DriveSpecification,
    PowerDown,
    Invalid,
}

/// Each command: the bits of its first byte that count, what they are, its length.
const COMMANDS: &[(u8, u8, usize, Command)] = &[
    (0x1f, 0x06, 9, Command::ReadData),
    (0x1f, 0x0c, 9, Command::ReadDeleted),
    (0x3f, 0x05, 9, Command::WriteData),
    (0x3f, 0x09, 9, Command::WriteDeleted),
    (0x9f, 0x02, 9, Command::ReadTrack),
    (0x1f, 0x16, 9, Command::Verify),
    (0x1f, 0x11, 9, Command::ScanEqual),
    (0x1f, 0x19, 9, Command::ScanLow),
    (0x1f, 0x1d, 9, Command::ScanHigh),
    (0xbf, 0x0d, 6, Command::Format),
    (0xbf, 0x0a, 2, Command::ReadId),
    (0xff, 0x07, 2, Command::Recalibrate),
    (0xff, 0x08, 1, Command::SenseInterrupt),
    (0xff, 0x03, 3, Command::Specify),
    (0xff, 0x04, 2, Command::SenseDrive),
    (0xff, 0x0f, 3, Command::Seek),
    (0xbf, 0x8f, 3, Command::RelativeSeek),
    (0xff, 0x0e, 1, Command::DumpRegisters),
    (0xff, 0x10, 1, Command::Version),
    (0xff, 0x18, 1, Command::PartId),
    (0xff, 0x13, 4, Command::Configure),
    (0xff, 0x12, 2, Command::Perpendicular),
    (0x7f, 0x14, 1, Command::Lock),
    (0xff, 0x2e, 1, Command::Save),
    (0xff, 0x4e, 17, Command::Restore),
    (0xff, 0x33, 2, Command::Option),
    (0xff, 0x8e, 6, Command::DriveSpecification),
    (0xff, 0x17, 2, Command::PowerDown),
];

impl Command {
    /// The command that `first` begins, and its length in bytes.
    pub(super) fn decode(first: u8) -> (Self, usize) {
        let known = COMMANDS.iter().find(|(mask, bits, ..)| first & mask == *bits);
        known.map_or((Self::Invalid, 1), |&(_, _, len, command)| (command, len))
    }
}
