//! Self-monitoring (ATA8-ACS, SMART feature set) and the logs behind it.
//!
//! The disk is well: its attributes never come near their thresholds, and a self-test is over at once.

use serde::{Deserialize, Serialize};

use super::SECTOR;

/// Subcommands, in the features register.
pub(super) mod sub {
    pub(in super::super) const READ_DATA: u8 = 0xd0;
    pub(in super::super) const READ_THRESHOLDS: u8 = 0xd1;
    pub(in super::super) const AUTOSAVE: u8 = 0xd2;
    pub(in super::super) const SAVE_VALUES: u8 = 0xd3;
    pub(in super::super) const EXECUTE_OFFLINE: u8 = 0xd4;
    pub(in super::super) const READ_LOG: u8 = 0xd5;
    pub(in super::super) const WRITE_LOG: u8 = 0xd6;
    pub(in super::super) const ENABLE: u8 = 0xd8;
    pub(in super::super) const DISABLE: u8 = 0xd9;
    pub(in super::super) const RETURN_STATUS: u8 = 0xda;
    pub(in super::super) const AUTO_OFFLINE: u8 = 0xdb;
}

/// Addresses of logs.
pub(super) mod log {
    pub(in super::super) const DIRECTORY: u8 = 0x00;
    pub(in super::super) const SUMMARY: u8 = 0x01;
    pub(in super::super) const SELF_TEST: u8 = 0x06;
    pub(in super::super) const QUEUED_ERROR: u8 = 0x10;
    pub(in super::super) const IDENTIFY: u8 = 0x30;
    /// First of the logs that the host may write, and the last.
    pub(in super::super) const HOST_FIRST: u8 = 0x80;
    pub(in super::super) const HOST_LAST: u8 = 0x9f;
}

/// LBA mid and high of every SMART command.
pub(super) const KEY: u64 = 0xc2_4f00;
/// Bits of the address that the key is in.
pub(super) const KEY_MASK: u64 = 0xff_ff00;

/// Tests that the self-test log remembers.
const TESTS: usize = 21;
/// Id, flags, value, worst value, raw value and threshold of each attribute.
const ATTRIBUTES: &[(u8, u16, u8, u8, u64, u8)] = &[
    (1, 0x0003, 100, 100, 0, 6),    // raw read error rate
    (3, 0x0003, 100, 100, 16, 0),   // spin up time
    (4, 0x0002, 100, 100, 100, 20), // starts and stops
    (5, 0x0003, 100, 100, 0, 36),   // sectors taken out of use
    (9, 0x0003, 100, 100, 1, 0),    // hours of power
    (12, 0x0003, 100, 100, 0, 0),   // times of power on
    (190, 0x0003, 69, 69, 31, 50),  // temperature, counted down from 100
];

/// What of all this changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Smart {
    pub(super) enabled: bool,
    pub(super) autosave: bool,
    /// Kinds of the self-tests that were made, the last one last.
    tests: Vec<u8>,
}

impl Default for Smart {
    fn default() -> Self {
        Self { enabled: true, autosave: true, tests: Vec::new() }
    }
}

fn sealed(mut page: Vec<u8>) -> Vec<u8> {
    let sum = page[..511].iter().fold(0_u8, |sum, &byte| sum.wrapping_add(byte));
    page[511] = sum.wrapping_neg();
    page
}

fn page() -> Vec<u8> {
    vec![0; SECTOR as usize]
}

impl Smart {
    /// # Errors
    /// If it can't be a disk's.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.tests.len() > TESTS {
            return Err(format!("{} self-tests", self.tests.len()));
        }
        Ok(())
    }

    /// The page of SMART READ DATA.
    pub(super) fn data(&self) -> Vec<u8> {
        let mut page = page();
        page[0] = 0x01;
        for (entry, &(id, flags, value, worst, raw, _)) in
            page[2..362].chunks_exact_mut(12).zip(ATTRIBUTES)
        {
            entry[0] = id;
            entry[1..3].copy_from_slice(&flags.to_le_bytes());
            entry[3..5].copy_from_slice(&[value, worst]);
            entry[5..11].copy_from_slice(&raw.to_le_bytes()[..6]);
        }
        page[362] = 0x02; // the last collection ended well
        page[364..366].copy_from_slice(&288_u16.to_le_bytes()); // seconds that one takes
        page[367] = 1 << 4 | 1 << 3 | 1; // self-tests; collects at once, and aborts for no command
        page[368] = 0x03; // saves its attributes
        page[370] = 0x01; // logs errors
        page[372] = 2; // minutes of a short self-test
        page[373] = 54; // minutes of an extended one
        sealed(page)
    }

    /// The page of SMART READ ATTRIBUTE THRESHOLDS.
    pub(super) fn thresholds() -> Vec<u8> {
        let mut page = page();
        page[0] = 0x01;
        for (entry, &(id, .., threshold)) in page[2..362].chunks_exact_mut(12).zip(ATTRIBUTES) {
            entry[..2].copy_from_slice(&[id, threshold]);
        }
        sealed(page)
    }

    /// Makes a test of kind `kind`; false if there is no such kind.
    pub(super) fn test(&mut self, kind: u8) -> bool {
        match kind {
            // A collection of attributes, or the end of a test that is over already.
            0 | 127 => {}
            1 | 2 | 129 | 130 => {
                if self.tests.len() == TESTS {
                    self.tests.remove(0);
                }
                self.tests.push(kind);
            }
            _ => return false,
        }
        true
    }

    /// The SMART log at `address`, one page; `None` if there is none.
    pub(super) fn log(&self, address: u8) -> Option<Vec<u8>> {
        let mut page = page();
        match address {
            log::DIRECTORY => {
                page[0] = 1;
                page[2 * usize::from(log::SUMMARY)] = 1;
                page[2 * usize::from(log::SELF_TEST)] = 1;
                return Some(page);
            }
            log::SUMMARY => page[0] = 1,
            log::SELF_TEST => {
                page[0] = 1;
                for (entry, &kind) in page[2..506].chunks_exact_mut(24).zip(&self.tests) {
                    entry[0] = kind;
                    entry[2] = 1; // hours of power when it was made
                }
                page[508] = self.tests.len() as u8;
            }
            _ => return None,
        }
        Some(sealed(page))
    }
}

/// The directory of the general purpose logs.
pub(super) fn general_directory() -> Vec<u8> {
    let mut page = page();
    page[0] = 1;
    for (address, pages) in [(log::QUEUED_ERROR, 1), (log::IDENTIFY, 2)] {
        page[2 * usize::from(address)] = pages;
    }
    page
}

/// The queued error log: the tag and registers of the queued command that failed last.
pub(super) fn queued_error(tag: Option<u8>, registers: &super::TaskFile) -> Vec<u8> {
    let mut page = page();
    // Bit 7 says that the command was not a queued one.
    page[0] = tag.unwrap_or(0x80);
    if tag.is_some() {
        let lba = registers.lba.to_le_bytes();
        page[2..4].copy_from_slice(&[registers.status, registers.error]);
        page[4..7].copy_from_slice(&lba[..3]);
        page[7] = registers.device;
        page[8..11].copy_from_slice(&lba[3..6]);
        page[12..14].copy_from_slice(&registers.count.to_le_bytes());
    }
    sealed(page)
}

/// The list of pages of the identify device data log: this one, and a copy of IDENTIFY DEVICE.
pub(super) fn identify_pages() -> Vec<u8> {
    let mut page = page();
    page[0] = 1;
    page[8..11].copy_from_slice(&[2, 0, 1]);
    page
}
