//! Formats of diskettes, recognised by the size of their image.

use serde::{Deserialize, Serialize};

/// Bytes of a sector; the controller reads no other size.
pub(super) const SECTOR_SIZE: u64 = 512;
/// How commands say that size.
pub(super) const SIZE_CODE: u8 = 2;

/// Kinds of drives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DriveType {
    /// 5.25 inches, 1.2 MB.
    D120,
    /// 3.5 inches, 1.44 MB.
    D144,
    /// 3.5 inches, 2.88 MB.
    D288,
}

impl DriveType {
    /// The type as CMOS memory has it.
    pub fn cmos(self) -> u8 {
        match self {
            Self::D120 => 2,
            Self::D144 => 4,
            Self::D288 => 5,
        }
    }

    /// Cylinders, and sectors a track, of the largest format.
    pub fn capacity(self) -> (u8, u8) {
        match self {
            Self::D120 => (80, 15),
            Self::D144 => (80, 18),
            Self::D288 => (80, 36),
        }
    }

    /// The format that the drive is named for.
    pub(super) fn native(self) -> Geometry {
        let own = FORMATS.iter().find(|format| format.drive == self);
        *own.unwrap_or(&FORMATS[0])
    }

    /// Whether media of `other`'s formats fit in.
    fn takes(self, other: Self) -> bool {
        self == other || (self, other) == (Self::D288, Self::D144)
    }
}

/// Data rates, by the two bits that select them.
mod rate {
    pub(super) const K500: u8 = 0;
    pub(super) const K300: u8 = 1;
    pub(super) const K250: u8 = 2;
    pub(super) const M1: u8 = 3;
}

/// How a diskette is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// The drive that it is for.
    pub drive: DriveType,
    /// Sectors a track.
    pub sectors: u8,
    /// Cylinders.
    pub cylinders: u8,
    /// Heads: 1 or 2.
    pub heads: u8,
    /// Bits of the data rate select register.
    pub(super) rate: u8,
}

const fn format(drive: DriveType, sectors: u8, cylinders: u8, heads: u8, rate: u8) -> Geometry {
    Geometry { drive, sectors, cylinders, heads, rate }
}

/// All formats; the first of a drive is the one that it is named for. Where two have the same size, the
/// earlier one is taken.
const FORMATS: &[Geometry] = &[
    format(DriveType::D144, 18, 80, 2, rate::K500),
    format(DriveType::D144, 20, 80, 2, rate::K500),
    format(DriveType::D144, 21, 80, 2, rate::K500),
    format(DriveType::D144, 21, 82, 2, rate::K500),
    format(DriveType::D144, 21, 83, 2, rate::K500),
    format(DriveType::D144, 22, 80, 2, rate::K500),
    format(DriveType::D144, 23, 80, 2, rate::K500),
    format(DriveType::D144, 24, 80, 2, rate::K500),
    format(DriveType::D288, 36, 80, 2, rate::M1),
    format(DriveType::D288, 39, 80, 2, rate::M1),
    format(DriveType::D288, 40, 80, 2, rate::M1),
    format(DriveType::D288, 44, 80, 2, rate::M1),
    format(DriveType::D288, 48, 80, 2, rate::M1),
    format(DriveType::D144, 9, 80, 2, rate::K250),
    format(DriveType::D144, 10, 80, 2, rate::K250),
    format(DriveType::D144, 10, 82, 2, rate::K250),
    format(DriveType::D144, 10, 83, 2, rate::K250),
    format(DriveType::D144, 13, 80, 2, rate::K250),
    format(DriveType::D144, 14, 80, 2, rate::K250),
    format(DriveType::D120, 15, 80, 2, rate::K500),
    format(DriveType::D120, 18, 82, 2, rate::K500),
    format(DriveType::D120, 18, 83, 2, rate::K500),
    format(DriveType::D120, 11, 80, 2, rate::K250),
    format(DriveType::D120, 9, 40, 2, rate::K300),
    format(DriveType::D120, 9, 40, 1, rate::K300),
    format(DriveType::D120, 10, 41, 2, rate::K300),
    format(DriveType::D120, 10, 42, 2, rate::K300),
    format(DriveType::D120, 8, 40, 2, rate::K250),
    format(DriveType::D120, 8, 40, 1, rate::K250),
];

impl Geometry {
    /// Size of the whole in bytes.
    pub fn size(&self) -> u64 {
        u64::from(self.sectors) * u64::from(self.cylinders) * u64::from(self.heads) * SECTOR_SIZE
    }

    /// The format of an image of `size` bytes in a drive of type `drive`, or of any type. An image of
    /// another size is taken for the drive's own format, cut off or filled up.
    pub fn of_image(size: u64, drive: Option<DriveType>, fallback: DriveType) -> Self {
        let fits = |format: &&Self| drive.is_none_or(|drive| drive.takes(format.drive));
        if let Some(format) = FORMATS.iter().filter(fits).find(|format| format.size() == size) {
            return *format;
        }
        drive.unwrap_or(fallback).native()
    }

    /// Offset of a sector in the image in bytes, if the diskette has it. Sectors count from 1.
    pub(super) fn offset(&self, cylinder: u8, head: u8, sector: u8) -> Option<u64> {
        let there =
            cylinder < self.cylinders && head < self.heads && (1..=self.sectors).contains(&sector);
        there.then(|| {
            let track = u64::from(cylinder) * u64::from(self.heads) + u64::from(head);
            (track * u64::from(self.sectors) + u64::from(sector) - 1) * SECTOR_SIZE
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_recognised_by_their_size() {
        let of = |kib: u64| Geometry::of_image(kib << 10, None, DriveType::D288);
        for (kib, drive, sectors, cylinders, heads) in [
            (1440, DriveType::D144, 18, 80, 2),
            (2880, DriveType::D288, 36, 80, 2),
            (1200, DriveType::D120, 15, 80, 2),
            (720, DriveType::D144, 9, 80, 2),
            (360, DriveType::D120, 9, 40, 2),
            (160, DriveType::D120, 8, 40, 1),
            (5, DriveType::D288, 36, 80, 2),
        ] {
            let Geometry { drive: d, sectors: s, cylinders: c, heads: h, .. } = of(kib);
            assert_eq!((d, s, c, h), (drive, sectors, cylinders, heads), "{kib} KiB");
        }
        let small = Geometry::of_image(1440 << 10, Some(DriveType::D120), DriveType::D288);
        assert_eq!((small.sectors, small.drive), (15, DriveType::D120));
        let in_large = Geometry::of_image(1440 << 10, Some(DriveType::D288), DriveType::D288);
        assert_eq!(in_large.sectors, 18);
    }

    #[test]
    fn sectors_are_numbered_track_by_track() {
        let disk = Geometry::of_image(1440 << 10, None, DriveType::D288);
        assert_eq!(disk.offset(0, 0, 1), Some(0));
        assert_eq!(disk.offset(0, 1, 1), Some(18 * 512));
        assert_eq!(disk.offset(79, 1, 18), Some(disk.size() - 512));
        for (c, h, s) in [(80, 0, 1), (0, 2, 1), (0, 0, 0), (0, 0, 19)] {
            assert_eq!(disk.offset(c, h, s), None);
        }
    }
}
