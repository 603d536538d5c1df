//! What the flash says of itself (JESD68.01, section 2; the extension for Intel's command set).

use super::SECTOR;

/// Manufacturer (Intel) and device.
const MANUFACTURER: u8 = 0x89;
const DEVICE: u8 = 0x18;

/// The identifier codes.
pub(super) fn id(offset: u64) -> u8 {
    match offset & 0xff {
        0 => MANUFACTURER,
        1 => DEVICE,
        _ => 0,
    }
}

/// The query table of a flash of `size` bytes.
pub(super) fn table(offset: u64, size: u64) -> u8 {
    // "QRY", Intel's extended command set with its table at 31h, no alternative.
    const HEAD: [u8; 11] = [b'Q', b'R', b'Y', 1, 0, 0x31, 0, 0, 0, 0, 0];
    // 4.5 to 5.5 V; powers of two of times: byte 128 us, buffer 128 us, erase 1 s; maxima by factors.
    const TIMING: [u8; 12] = [0x45, 0x55, 0, 0, 7, 7, 10, 0, 4, 4, 4, 0];
    let sectors = (size / SECTOR).saturating_sub(1) as u16;
    match offset & 0xff {
        at @ 0x10..=0x1a => HEAD[at as usize - 0x10],
        at @ 0x1b..=0x26 => TIMING[at as usize - 0x1b],
        // log2 of the size; 8 bits wide; log2 of the write buffer; one region of equal sectors.
        0x27 => size.checked_ilog2().unwrap_or(0) as u8,
        0x2a => 8,
        0x2c => 1,
        0x2d => sectors as u8,
        0x2e => (sectors >> 8) as u8,
        0x2f => (SECTOR >> 8) as u8,
        0x30 => (SECTOR >> 16) as u8,
        // The extended table: "PRI", version 1.0, nothing optional.
        0x31 => b'P',
        0x32 => b'R',
        0x33 => b'I',
        0x34 => b'1',
        0x35 => b'0',
        _ => 0,
    }
}
