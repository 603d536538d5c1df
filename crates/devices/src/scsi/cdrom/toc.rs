//! What is on the disc: table of contents, disc and track information (MMC-5, sections 6.26, 6.22 and
//! 6.27).

use super::super::lun::{Lun, reply};
use super::super::{Cdb, Sense, Task};
use super::{address, msf};

/// ADR 1 (the address is a position) and the control bits of a data track.
pub(super) const CONTROL: u8 = 0x14;
/// The same for the lead-out: a data track that may be copied.
const LEAD_OUT_CONTROL: u8 = 0x16;
/// Number of the lead-out.
const LEAD_OUT: u8 = 0xaa;

impl Lun {
    pub(super) fn read_toc(&self, cdb: &Cdb) -> Result<Task, Sense> {
        self.ready()?;
        let as_msf = cdb.u8(1) & 2 != 0;
        // Before MMC the format was in the last byte.
        let format = match cdb.u8(2) & 0xf {
            0 => cdb.u8(9) >> 6,
            format => format,
        };
        let body = match format {
            0 => self.tracks(cdb.u8(6), as_msf)?,
            1 => {
                // First and last session, and the first track of the last one.
                let mut body = vec![1, 1, 0, CONTROL, 1, 0];
                body.extend(address(0, as_msf));
                body
            }
            2 => self.full_toc(cdb.u8(6))?,
            _ => return Err(Sense::INVALID_FIELD),
        };
        let mut data = (body.len() as u16).to_be_bytes().to_vec();
        data.extend(body);
        Ok(reply(data, cdb.u16(7)))
    }

    /// The tracks from number `start` on, with the lead-out behind.
    fn tracks(&self, start: u8, as_msf: bool) -> Result<Vec<u8>, Sense> {
        if start > 1 && start != LEAD_OUT {
            return Err(Sense::INVALID_FIELD);
        }
        let mut body = vec![1, 1];
        if start != LEAD_OUT {
            body.extend([0, CONTROL, 1, 0]);
            body.extend(address(0, as_msf));
        }
        body.extend([0, LEAD_OUT_CONTROL, LEAD_OUT, 0]);
        body.extend(address(self.sectors(), as_msf));
        Ok(body)
    }

    /// The lead-in's entries of the session `start` or a later one; there is only the first.
    fn full_toc(&self, start: u8) -> Result<Vec<u8>, Sense> {
        if start > 1 {
            return Err(Sense::INVALID_FIELD);
        }
        let points = [
            // First track, and that the disc is CD-DA or CD-ROM; last track; lead-out; the track.
            (0xa0, [1, 0, 0]),
            (0xa1, [1, 0, 0]),
            (0xa2, msf(self.sectors())),
            (0x01, msf(0)),
        ];
        let mut body = vec![1, 1];
        for (point, [m, s, f]) in points {
            body.extend([1, CONTROL, 0, point, 0, 0, 0, 0, m, s, f]);
        }
        Ok(body)
    }

    pub(super) fn read_disc_information(&self, cdb: &Cdb) -> Result<Task, Sense> {
        self.ready()?;
        if cdb.u8(1) & 7 != 0 {
            return Err(Sense::INVALID_FIELD);
        }
        let mut data = vec![0; 34];
        data[1] = 32;
        // The disc and its last session are complete.
        data[2] = 0x0e;
        // First track, sessions, first and last track of the last session: one each.
        data[3..7].fill(1);
        // For unrestricted use.
        data[7] = 0x20;
        Ok(reply(data, cdb.u16(7)))
    }

    pub(super) fn read_track_information(&self, cdb: &Cdb) -> Result<Task, Sense> {
        self.ready()?;
        let number = cdb.u32(2);
        let found = match cdb.u8(1) & 3 {
            0 => number < self.sectors(),
            1 | 2 => number == 1,
            _ => false,
        };
        if !found {
            return Err(Sense::INVALID_FIELD);
        }
        let mut data = vec![0; 36];
        data[1] = 34;
        // Track, session, a data track, mode 1.
        (data[2], data[3], data[5], data[6]) = (1, 1, CONTROL & 0xf, 1);
        data[24..28].copy_from_slice(&self.sectors().to_be_bytes());
        Ok(reply(data, cdb.u16(7)))
    }
}
