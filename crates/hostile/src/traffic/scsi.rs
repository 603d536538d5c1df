//! SCSI commands, for whatever carries them.

use crate::guest::Guest;

/// Operation codes that disks and CD-ROM drives know, and some that they don't.
const CODES: &[u8] = &[
    0x00, 0x01, 0x03, 0x04, 0x08, 0x0a, 0x0b, 0x12, 0x15, 0x16, 0x17, 0x1a, 0x1b, 0x1d, 0x1e, 0x25,
    0x28, 0x2a, 0x2b, 0x2e, 0x2f, 0x35, 0x37, 0x3b, 0x3c, 0x41, 0x42, 0x43, 0x44, 0x46, 0x4a, 0x4b,
    0x4d, 0x4e, 0x51, 0x52, 0x55, 0x5a, 0x5e, 0x5f, 0x85, 0x88, 0x8a, 0x8e, 0x8f, 0x91, 0x93, 0x9e,
    0xa0, 0xa1, 0xa3, 0xa4, 0xa5, 0xa8, 0xaa, 0xac, 0xad, 0xae, 0xaf, 0xb9, 0xbb, 0xbd, 0xbe, 0xef,
];

/// A command descriptor block.
pub(super) fn command(guest: &mut Guest<'_>) -> [u8; 16] {
    let mut block = [0; 16];
    block[0] = if guest.percent(3) { guest.any() } else { guest.pick(CODES) };
    let small = guest.percent(70);
    let (lba, len) =
        if small { (guest.within(0..=3), 1) } else { (guest.amount(), guest.amount() as u32) };
    let flags = if small { guest.within(0..=1) } else { guest.within(0..=3) };
    match block[0] >> 5 {
        0 => {
            block[1..4].copy_from_slice(&(lba as u32).to_be_bytes()[1..]);
            block[4] = len as u8;
        }
        1 | 2 => {
            block[2..6].copy_from_slice(&(lba as u32).to_be_bytes());
            block[7..9].copy_from_slice(&(len as u16).to_be_bytes());
        }
        4 => {
            block[2..10].copy_from_slice(&lba.to_be_bytes());
            block[10..14].copy_from_slice(&len.to_be_bytes());
        }
        _ => {
            block[2..6].copy_from_slice(&(lba as u32).to_be_bytes());
            block[6..10].copy_from_slice(&len.to_be_bytes());
        }
    }
    // Flags, page codes and service actions.
    for _ in 0..flags {
        let at = guest.within(1..=15) as usize;
        block[at] = guest.value() as u8;
    }
    block
}
