//! What the board writes into CMOS memory for firmware: memory, CPUs, floppy drives.
//!
//! The registers are those of the IBM PC/AT and, past them, of QEMU's PCs, which SeaBIOS reads. What to
//! boot from, and which disks there are, is written elsewhere, at each reset.

use super::board::Pc;

const FLOPPIES: u8 = 0x10;
const EQUIPMENT: u8 = 0x14;
const BASE_KIB: u8 = 0x15;
const EXTENDED_KIB: [u8; 2] = [0x17, 0x30];
const ABOVE_16M: u8 = 0x34;
const ABOVE_4G: u8 = 0x5b;
const MORE_CPUS: u8 = 0x5f;

/// Equipment: there are floppy drives, a numeric coprocessor, a PS/2 mouse.
const HAS_FLOPPY: u8 = 1 << 0;
const HAS_FPU: u8 = 1 << 1;
const HAS_MOUSE: u8 = 1 << 2;
/// Number of floppy drives, less one.
const MORE_FLOPPIES_SHIFT: u32 = 6;

impl Pc {
    /// Writes down what the machine has, once it is all there.
    pub(super) fn fill_cmos(&self) {
        self.describe_memory();
        let types = self.floppies.map(|kind| kind.map_or(0, |kind| kind.cmos()));
        self.rtc.set_memory(FLOPPIES, types[0] << 4 | types[1]);
        let floppies = types.iter().filter(|&&kind| kind != 0).count() as u8;
        let floppy_bits = match floppies {
            0 => 0,
            count => HAS_FLOPPY | (count - 1) << MORE_FLOPPIES_SHIFT,
        };
        self.rtc.set_memory(EQUIPMENT, HAS_FPU | HAS_MOUSE | floppy_bits);
    }

    fn describe_memory(&self) {
        const KIB: u64 = 1 << 10;
        const MIB: u64 = 1 << 20;
        let low = self.layout.low_end;
        let put = |at: u8, bytes: &[u8]| {
            for (&byte, at) in bytes.iter().zip(at..) {
                self.rtc.set_memory(at, byte);
            }
        };
        let words = |value: u64| (value.min(0xffff) as u16).to_le_bytes();
        put(BASE_KIB, &words((low / KIB).min(640)));
        for at in EXTENDED_KIB {
            put(at, &words(low.saturating_sub(MIB) / KIB));
        }
        put(ABOVE_16M, &words(low.saturating_sub(16 * MIB) / (64 * KIB)));
        put(ABOVE_4G, &(self.layout.high_size / (64 * KIB)).to_le_bytes()[..3]);
        put(MORE_CPUS, &[self.spec.smp.cpus.saturating_sub(1).min(0xff) as u8]);
    }
}
