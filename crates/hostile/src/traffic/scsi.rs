//! SCSI commands, for whatever carries them.

use super::{Bytes, Payload};
use crate::guest::Guest;

/// Operation codes that disks and CD-ROM drives know, and some that they don't.
const CODES: &[u8] = &[
    0x00, 0x01, 0x03, 0x04, 0x08, 0x0a, 0x0b, 0x12, 0x15, 0x16, 0x17, 0x1a, 0x1b, 0x1d, 0x1e, 0x25,
    0x28, 0x2a, 0x2b, 0x2e, 0x2f, 0x35, 0x37, 0x3b, 0x3c, 0x41, 0x42, 0x43, 0x44, 0x46, 0x4a, 0x4b,
    0x4d, 0x4e, 0x51, 0x52, 0x55, 0x5a, 0x5e, 0x5f, 0x85, 0x88, 0x8a, 0x8e, 0x8f, 0x91, 0x93, 0x9e,
    0xa0, 0xa1, 0xa3, 0xa4, 0xa5, 0xa8, 0xaa, 0xac, 0xad, 0xae, 0xaf, 0xb9, 0xbb, 0xbd, 0xbe, 0xef,
];

/// Commands that read or verify blocks; those that write them.
const READS: &[u8] = &[0x08, 0x28, 0x88, 0xa8, 0xbe, 0x2f, 0x8f, 0xaf];
const WRITES: &[u8] = &[0x0a, 0x2a, 0x8a, 0xaa, 0x2e, 0x8e, 0xae, 0x41, 0x93];
/// Commands that ask for something, with room for the answer.
const QUESTIONS: &[u8] = &[
    0x03, 0x12, 0x1a, 0x25, 0x42, 0x43, 0x46, 0x4a, 0x51, 0x52, 0x5a, 0x9e, 0xa0, 0xa3, 0xad, 0xbd,
];

/// Blocks of a disk, and of a CD.
pub(super) const DISK_BLOCK: u64 = 512;
pub(super) const CD_BLOCK: u64 = 2048;

/// A command with its data.
pub(super) struct Command {
    /// The command descriptor block.
    pub(super) block: [u8; 16],
    pub(super) payload: Payload,
}

/// A command to a device whose blocks have so many bytes: mostly one that it can do.
pub(super) fn command(guest: &mut Guest<'_>, block_len: u64) -> Command {
    match guest.within(0..=9) {
        0..=3 => move_blocks(guest, block_len),
        4..=5 => ask(guest),
        6 => tell(guest),
        _ => Command { block: any(guest), payload: Payload::Any },
    }
}

/// Any command descriptor block.
pub(super) fn any(guest: &mut Guest<'_>) -> [u8; 16] {
    let code = if guest.percent(3) { guest.any() } else { guest.pick(CODES) };
    let small = guest.percent(70);
    let (lba, len) =
        if small { (guest.within(0..=3), 1) } else { (guest.amount(), guest.amount()) };
    let mut block = addressed(code, lba, len);
    // Flags, page codes and service actions.
    for _ in 0..guest.within(0..=if small { 1 } else { 3 }) {
        let at = guest.within(1..=15) as usize;
        block[at] = guest.value() as u8;
    }
    block
}

/// A block with an address and a length where its group of codes has them.
fn addressed(code: u8, lba: u64, len: u64) -> [u8; 16] {
    let mut block = [0; 16];
    block[0] = code;
    match code >> 5 {
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
            block[10..14].copy_from_slice(&(len as u32).to_be_bytes());
        }
        _ => {
            block[2..6].copy_from_slice(&(lba as u32).to_be_bytes());
            block[6..10].copy_from_slice(&(len as u32).to_be_bytes());
        }
    }
    block
}

fn move_blocks(guest: &mut Guest<'_>, block_len: u64) -> Command {
    let writes = guest.percent(50);
    let code = guest.pick(if writes { WRITES } else { READS });
    let lba = guest.within(0..=400);
    let (lba, count) = (guest.nearly(lba), guest.within(1..=16));
    let told = guest.nearly(count);
    let mut block = addressed(code, lba, told);
    let mut len = count * block_len;
    match code {
        // READ CD: its length has three bytes, and it says which parts of a sector it wants.
        0xbe => {
            block[6..9].copy_from_slice(&(told as u32).to_be_bytes()[1..]);
            block[9] = guest.pick(&[0x10, 0xf8, 0x00, 0x78]);
            block[10..14].fill(0);
            len = count * if block[9] == 0xf8 { 2352 } else { block_len };
        }
        // VERIFY compares or not; WRITE SAME has one block, and may free them.
        0x2f | 0x8f | 0xaf => {
            block[1] = guest.pick(&[0, 2, 6]);
            let data = if block[1] == 0 { 0 } else { len };
            return Command { block, payload: Payload::Out(guest.nearly(data)) };
        }
        0x41 | 0x93 => {
            block[1] = guest.pick(&[0, 0, 8, 0x18, 1]);
            len = block_len;
        }
        _ => {}
    }
    let len = guest.nearly(len);
    Command { block, payload: if writes { Payload::Out(len) } else { Payload::In(len) } }
}

fn ask(guest: &mut Guest<'_>) -> Command {
    let code = guest.pick(QUESTIONS);
    let len = guest.pick(&[4, 8, 18, 36, 96, 255, 252]);
    let mut block = addressed(code, 0, guest.nearly(len));
    match code {
        // Vital product data, mode pages, kinds of tables of contents, service actions.
        0x12 => {
            block[1] = guest.within(0..=1) as u8;
            block[2] = guest.pick(&[0, 0, 0x80, 0x83, 0xb0, 0xb1, 0xb2, 0x01]);
        }
        0x1a | 0x5a => {
            block[2] = guest.pick(&[0x3f, 0x08, 0x2a, 0x01, 0x04, 0x05, 0x0e, 0xbf, 0x48])
        }
        0x43 => block[1..3].copy_from_slice(&[guest.pick(&[0, 2]), guest.within(0..=5) as u8]),
        0x4a => block[1..5].copy_from_slice(&[1, 0, 0, guest.pick(&[0x10, 0x12, 0xff])]),
        0x9e => block[1] = guest.pick(&[0x10, 0x12]),
        0xa3 => block[1] = guest.pick(&[0x0c, 0x0a]),
        _ => {}
    }
    Command { block, payload: Payload::In(guest.nearly(len)) }
}

/// A command that comes with parameters.
fn tell(guest: &mut Guest<'_>) -> Command {
    if guest.percent(50) {
        // UNMAP.
        let count = guest.within(1..=3);
        let mut list = Bytes::default()
            .u16(guest.nearly(6 + 16 * count).swap_bytes() >> 48)
            .u16(guest.nearly(16 * count).swap_bytes() >> 48)
            .u32(0);
        for _ in 0..count {
            let (lba, blocks) = (guest.within(0..=400), guest.within(0..=64));
            list = list
                .u64(guest.nearly(lba).swap_bytes())
                .u32(guest.nearly(blocks).swap_bytes() >> 32)
                .u32(0);
        }
        let block = addressed(0x42, 0, guest.nearly(list.0.len() as u64));
        return Command { block, payload: Payload::Bytes(list.0) };
    }
    // MODE SELECT: caching, error recovery, CD audio.
    let (code, header) = guest.pick(&[(0x15, 4), (0x55, 8)]);
    let (page, len) = guest.pick(&[(0x08, 0x12), (0x01, 0x0a), (0x0e, 0x0e)]);
    let mut list = vec![0; header];
    list.push(guest.nearly(page) as u8);
    list.push(guest.nearly(len) as u8);
    list.extend((0..len).map(|_| if guest.percent(10) { guest.value() as u8 } else { 0 }));
    let mut block = addressed(code, 0, guest.nearly(list.len() as u64));
    block[1] = guest.pick(&[0x10, 0x11, 0]);
    Command { block, payload: Payload::Bytes(list) }
}
