//! What a disk says of itself: IDENTIFY DEVICE (ACS-3, section 7.12).

use super::device::Unit;
use super::disk::Disk;
use super::{BUFFER_LEN, QUEUE_DEPTH, SECTOR};

/// Most sectors of a DRQ data block of READ and WRITE MULTIPLE.
pub(super) const MAX_MULTIPLE: u8 = 16;
/// Most blocks of ranges of DATA SET MANAGEMENT.
pub(super) const MAX_TRIM_BLOCKS: u16 = (BUFFER_LEN / SECTOR as usize) as u16;

/// 256 words.
pub(super) struct Words(pub(super) [u16; 256]);

impl Words {
    /// Puts text in, the first character of each pair above, filled up with blanks.
    pub(super) fn text(&mut self, word: usize, len: usize, text: &str) {
        let mut bytes = text.bytes().chain(std::iter::repeat(b' '));
        for word in &mut self.0[word..word + len / 2] {
            let pair = [bytes.next().unwrap_or(b' '), bytes.next().unwrap_or(b' ')];
            *word = u16::from_be_bytes(pair);
        }
    }

    pub(super) fn u32(&mut self, word: usize, value: u32) {
        self.0[word] = value as u16;
        self.0[word + 1] = (value >> 16) as u16;
    }

    pub(super) fn u64(&mut self, word: usize, value: u64) {
        self.u32(word, value as u32);
        self.u32(word + 2, (value >> 32) as u32);
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0.iter().flat_map(|word| word.to_le_bytes()).collect()
    }
}

/// Transfer modes: all that there are, and the one that was set.
pub(super) fn transfer_modes(words: &mut Words, mode: u8) {
    let chosen = |kind: u8| if mode >> 3 == kind >> 3 { 0x100 << (mode & 7) } else { 0 };
    words.0[62] = 0x07 | chosen(0x10); // single word DMA 0 to 2
    words.0[63] = 0x07 | chosen(0x20); // multiword DMA 0 to 2
    words.0[64] = 0x03; // PIO 3 and 4
    for cycle in &mut words.0[65..=68] {
        *cycle = 120; // nanoseconds
    }
    words.0[88] = 0x3f | chosen(0x40); // Ultra DMA 0 to 5
    words.0[93] = 0x6001; // an 80-conductor cable, as Ultra DMA 3 and above need
}

impl Disk {
    pub(super) fn identify(&self) -> Vec<u8> {
        let mut words = Words([0; 256]);
        let w = &mut words;
        let options = self.options();
        let (native, current) = (self.geometry(), self.state.geometry);
        let sectors = self.sectors();
        w.0[0] = 0x0040; // a fixed device
        w.0[1] = native.cylinders as u16;
        w.0[3] = native.heads as u16;
        w.0[4] = 512 * native.sectors as u16;
        w.0[5] = 512;
        w.0[6] = native.sectors as u16;
        w.text(10, 20, &options.serial);
        w.0[20] = 3;
        w.0[21] = 512; // sectors of the buffer
        w.0[22] = 4;
        w.text(23, 8, &options.version);
        w.text(27, 40, &options.model);
        w.0[47] = 0x8000 | u16::from(MAX_MULTIPLE);
        w.0[48] = 1 << 14; // nothing of Trusted Computing
        w.0[49] = 1 << 11 | 1 << 9 | 1 << 8; // IORDY, LBA, DMA
        w.0[50] = 1 << 14;
        w.0[51] = 0x200;
        w.0[52] = 0x200;
        w.0[53] = 0x07; // words 54-58, 64-70 and 88 are valid
        w.0[54] = current.cylinders as u16;
        w.0[55] = current.heads as u16;
        w.0[56] = current.sectors as u16;
        w.u32(57, u32::try_from(current.total()).unwrap_or(u32::MAX));
        if self.state.multiple > 0 {
            w.0[59] = 0x100 | u16::from(self.state.multiple);
        }
        w.u32(60, sectors.min(0x0fff_ffff) as u32);
        transfer_modes(w, self.state.transfer_mode);
        w.0[69] = 1 << 14; // reads after a trim always give the same
        if options.queued {
            w.0[75] = u16::from(QUEUE_DEPTH) - 1;
            w.0[76] = 1 << 8 | 1 << 2 | 1 << 1; // NCQ; both generations of signalling
        }
        w.0[80] = 0x00f0; // ATA/ATAPI-4 to -7
        w.0[81] = 0x16;
        w.0[82] = 1 << 14 | 1 << 6 | 1 << 5 | 1; // NOP, look-ahead, write cache, SMART
        w.0[83] = 1 << 14 | 1 << 13 | 1 << 12 | 1 << 10; // flushes, 48-bit addresses
        // FUA writes, general purpose logs, SMART self-test and error log.
        w.0[84] = 1 << 14 | 1 << 6 | 1 << 5 | 1 << 1 | 1;
        let on = |yes: bool, bit: u16| if yes { 1 << bit } else { 0 };
        w.0[85] = 1 << 14
            | on(self.state.look_ahead, 6)
            | on(self.drive().write_cache(), 5)
            | on(self.state.smart.enabled, 0);
        w.0[86] = 1 << 15 | 1 << 13 | 1 << 12 | 1 << 10;
        w.0[87] = 1 << 14 | 1 << 6 | 1 << 5 | 1 << 1 | 1;
        w.u64(100, sectors);
        w.0[105] = MAX_TRIM_BLOCKS;
        let exponent = (options.physical_block_size / SECTOR as u32).max(1).ilog2() as u16;
        if exponent > 0 {
            w.0[106] = 0x6000 | exponent;
        }
        if options.wwn != 0 {
            w.0[84] |= 1 << 8;
            w.0[87] |= 1 << 8;
            for (i, word) in w.0[108..112].iter_mut().enumerate() {
                *word = (options.wwn >> (48 - 16 * i)) as u16;
            }
        }
        w.0[119] = 1 << 14;
        w.0[120] = 1 << 14;
        w.0[169] = 1; // TRIM
        w.0[217] = options.rotation_rate;
        words.into_bytes()
    }
}
