//! A floppy drive: where its heads are, and the diskette in it.

use std::io;
use std::sync::Arc;

use block::Drive;
use serde::{Deserialize, Serialize};

use super::geometry::{DriveType, Geometry};

/// What a drive is made of.
#[derive(Clone)]
pub struct FloppyUnit {
    /// The disk.
    pub drive: Arc<Drive>,
    /// The drive's type; by the medium that is in it when the machine is made, if none is given.
    pub drive_type: Option<DriveType>,
    /// The type of a drive that was empty then.
    pub fallback: DriveType,
}

impl FloppyUnit {
    /// The drive's type for firmware.
    pub fn kind(&self) -> DriveType {
        self.geometry().map_or(self.drive_type.unwrap_or(self.fallback), |format| {
            self.drive_type.unwrap_or(format.drive)
        })
    }

    /// How the diskette is recorded, if there is one.
    pub(super) fn geometry(&self) -> Option<Geometry> {
        let there = self.drive.is_inserted();
        there.then(|| Geometry::of_image(self.drive.size(), self.drive_type, self.fallback))
    }

    /// Reads a sector.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        // An image that is cut off goes on with zeroes.
        data.fill(0);
        let there = self.drive.size().saturating_sub(offset).min(data.len() as u64);
        if there == 0 {
            return Ok(());
        }
        self.drive.read_bytes(offset, &mut data[..there as usize])
    }

    /// Writes a sector.
    pub(super) fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if offset + data.len() as u64 > self.drive.sectors() * 512 {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        self.drive.write_bytes(offset, data)
    }
}

/// What moves in a drive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mechanics {
    /// Where the heads are.
    pub(super) cylinder: u8,
    /// The sector that passed last, for READ ID.
    pub(super) passed: u8,
    /// The disk change line: the drive was opened since the heads moved.
    pub(super) changed: bool,
}

impl Default for Mechanics {
    fn default() -> Self {
        Self { cylinder: 0, passed: 0, changed: true }
    }
}

impl Mechanics {
    /// Moves the heads. A step with a diskette in the drive resets the disk change line.
    pub(super) fn step_to(&mut self, cylinder: u8, inserted: bool) {
        if cylinder != self.cylinder && inserted {
            self.changed = false;
        }
        self.cylinder = cylinder;
    }
}
