//! Cylinders, heads and sectors: what a disk says of itself, and what a BIOS makes of it.

use block::Drive;

/// Heads and sectors a track of a disk whose partition table says nothing.
const HEADS: u32 = 16;
const SECTORS: u32 = 63;
/// Most cylinders that a disk tells of.
const MAX_CYLINDERS: u32 = 16383;

/// A disk's geometry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Cylinders, 1 to 65535.
    pub cylinders: u32,
    /// Heads, 1 to 16.
    pub heads: u32,
    /// Sectors a track, 1 to 255.
    pub sectors: u32,
}

/// How a BIOS turns cylinders, heads and sectors of its callers into addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Translation {
    /// They are the disk's own.
    None,
    /// By linear addresses.
    Lba,
    /// By making heads of cylinders.
    Large,
}

impl Geometry {
    /// The geometry of a disk of `sectors` sectors.
    pub fn for_size(sectors: u64) -> Self {
        let cylinders = sectors / u64::from(HEADS * SECTORS);
        let cylinders = cylinders.clamp(2, MAX_CYLINDERS.into()) as u32;
        Self { cylinders, heads: HEADS, sectors: SECTORS }
    }

    /// The geometry that whoever partitioned `drive` saw, or that goes by its size.
    pub fn guess(drive: &Drive) -> (Self, Translation) {
        let total = drive.sectors();
        let by_size = Self::for_size(total);
        match logical(drive, total) {
            // The disk was seen through a translation; it has itself no more than 16 heads.
            Some(seen) if seen.heads > HEADS => {
                let large = by_size.cylinders * by_size.heads <= 131_072;
                (by_size, if large { Translation::Large } else { Translation::Lba })
            }
            Some(seen) => (seen, Translation::None),
            None => {
                let small = by_size.cylinders <= 1024;
                (by_size, if small { Translation::None } else { Translation::Lba })
            }
        }
    }

    /// Sectors in all.
    pub fn total(&self) -> u64 {
        u64::from(self.cylinders) * u64::from(self.heads) * u64::from(self.sectors)
    }
}

/// What the first partition that ends on a cylinder says of heads and sectors.
fn logical(drive: &Drive, total: u64) -> Option<Geometry> {
    let mut sector = [0; super::SECTOR as usize];
    drive.read_bytes(0, &mut sector).ok()?;
    if sector[510..] != [0x55, 0xaa] {
        return None;
    }
    let entries = sector[446..510].chunks_exact(16);
    entries.into_iter().find_map(|entry| {
        let len = u32::from_le_bytes([entry[12], entry[13], entry[14], entry[15]]);
        let (heads, sectors) = (u32::from(entry[5]) + 1, u32::from(entry[6] & 63));
        if len == 0 || heads == 1 || sectors == 0 {
            return None;
        }
        let cylinders = u32::try_from(total / u64::from(heads * sectors)).ok()?;
        let fits = (1..=MAX_CYLINDERS).contains(&cylinders);
        fits.then_some(Geometry { cylinders, heads, sectors })
    })
}
