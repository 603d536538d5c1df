//! What the board writes into CMOS memory for firmware: memory, CPUs, floppy drives, disks.
//!
//! The registers are those of the IBM PC/AT and, past them, of QEMU's PCs, which SeaBIOS reads. What to
//! boot from is written elsewhere, at each reset.

use devices::ata::{Geometry, Translation};
use devices::fdc::Fdc;

use super::board::Pc;

const FLOPPIES: u8 = 0x10;
/// Types of the first two disks, a nibble each, and what stands there for "see the extended one".
const DISKS: u8 = 0x12;
const DISK_EXTENDED: u8 = 0xf;
const EXTENDED_DISK_TYPES: u8 = 0x19;
const USER_DEFINED: u8 = 47;
/// First byte of each of the first two disks' geometries.
const DISK_GEOMETRIES: [u8; 2] = [0x1b, 0x24];
/// How the BIOS is to translate each disk's addresses, two bits each.
const TRANSLATIONS: u8 = 0x39;
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
    pub(super) fn fill_cmos(&self, fdc: &Fdc) {
        self.describe_memory();
        let types = fdc.drive_types().map(|kind| kind.map_or(0, |kind| kind.cmos()));
        self.rtc.set_memory(FLOPPIES, types[0] << 4 | types[1]);
        let floppies = types.iter().filter(|&&kind| kind != 0).count() as u8;
        let floppy_bits = match floppies {
            0 => 0,
            count => HAS_FLOPPY | (count - 1) << MORE_FLOPPIES_SHIFT,
        };
        self.rtc.set_memory(EQUIPMENT, HAS_FPU | HAS_MOUSE | floppy_bits);
        self.describe_disks();
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

    /// The disks of the IDE controller: geometry of the two on its first channel, translation of all.
    fn describe_disks(&self) {
        let mut types = 0;
        let mut translations = 0;
        for (index, disk) in (0..).zip(&self.disk_geometry) {
            let Some((geometry, translation)) = disk else { continue };
            translations |= translation_code(*translation) << (2 * index);
            if index < 2 {
                types |= DISK_EXTENDED << (4 * (1 - index));
                self.describe_geometry(index, geometry);
            }
        }
        self.rtc.set_memory(DISKS, types);
        self.rtc.set_memory(TRANSLATIONS, translations);
    }

    fn describe_geometry(&self, unit: u8, geometry: &Geometry) {
        const NO_PRECOMPENSATION: [u8; 2] = [0xff; 2];
        /// Control byte: retries are off, and there are more than 8 heads.
        const NO_RETRIES: u8 = 0xc0;
        const MANY_HEADS: u8 = 1 << 3;
        let [low, high] = (geometry.cylinders.min(0xffff) as u16).to_le_bytes();
        let many = if geometry.heads > 8 { MANY_HEADS } else { 0 };
        let bytes = [
            low,
            high,
            geometry.heads as u8,
            NO_PRECOMPENSATION[0],
            NO_PRECOMPENSATION[1],
            NO_RETRIES | many,
            // Landing zone.
            low,
            high,
            geometry.sectors as u8,
        ];
        for (byte, at) in bytes.into_iter().zip(DISK_GEOMETRIES[usize::from(unit)]..) {
            self.rtc.set_memory(at, byte);
        }
        self.rtc.set_memory(EXTENDED_DISK_TYPES + unit, USER_DEFINED);
    }
}

fn translation_code(translation: Translation) -> u8 {
    match translation {
        Translation::None => 0,
        Translation::Lba => 1,
        Translation::Large => 2,
    }
}
