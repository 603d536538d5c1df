//! Commands of CD and DVD drives (MMC-5).
//!
//! The medium is what its image holds: one session with one data track of mode 1, or a DVD if it is too
//! large for a CD. Audio can't be played, as there is none.

mod features;
mod sector;
mod toc;

use serde::{Deserialize, Serialize};

use super::lun::{Lun, LunState, Stop, reply};
use super::{Cdb, Sense, Task, op};
pub use sector::SectorParts;

/// Bytes of user data in a sector.
pub(super) const BLOCK: u64 = 2048;
/// Most sectors of a CD: 80 minutes.
const CD_SECTORS: u64 = 80 * 60 * 75;
/// Sectors that are read at a time when something is put around them.
const BATCH: u32 = 16;
/// First sector of a DVD's data, as its physical format counts.
const DVD_START: u32 = 0x3_0000;

/// What happened to the medium, as GET EVENT STATUS NOTIFICATION tells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum MediaEvent {
    /// Nothing.
    #[default]
    None,
    /// Someone pressed the button.
    EjectRequest,
    /// There is another medium.
    New,
    /// It was taken out.
    Removed,
}

/// Minute, second and frame of a sector; what is past the last minute that fits is that.
fn msf(lba: u32) -> [u8; 3] {
    let frames = u64::from(lba) + 150;
    let minute = u8::try_from(frames / (60 * 75)).unwrap_or(u8::MAX);
    [minute, (frames / 75 % 60) as u8, (frames % 75) as u8]
}

/// An address in four bytes, as a number or as minute, second and frame.
fn address(lba: u32, as_msf: bool) -> [u8; 4] {
    if as_msf {
        let [m, s, f] = msf(lba);
        [0, m, s, f]
    } else {
        lba.to_be_bytes()
    }
}

impl Lun {
    /// Sectors of the medium.
    fn sectors(&self) -> u32 {
        u32::try_from(self.blocks()).unwrap_or(u32::MAX)
    }

    fn is_dvd(&self) -> bool {
        self.blocks() > CD_SECTORS
    }

    pub(super) fn start_cdrom(&self, cdb: &Cdb, state: &mut LunState) -> Result<Task, Sense> {
        match cdb.opcode() {
            op::READ_CAPACITY_10 => {
                self.ready()?;
                let mut data = self.sectors().saturating_sub(1).to_be_bytes().to_vec();
                data.extend((BLOCK as u32).to_be_bytes());
                Ok(Task::Reply(data))
            }
            op::SERVICE_ACTION_IN_16 => self.read_capacity_16(cdb),
            op::READ_6 | op::READ_10 | op::READ_12 | op::READ_16 => {
                let (offset, len) = self.extent(cdb.lba(), cdb.blocks())?;
                Ok(if len == 0 { Task::Done } else { Task::Read { offset, len } })
            }
            op::READ_CD => self.start_read_cd(cdb, cdb.u32(2), cdb.u24(6)),
            op::READ_CD_MSF => {
                let first = sector::lba_of([cdb.u8(3), cdb.u8(4), cdb.u8(5)])?;
                let end = sector::lba_of([cdb.u8(6), cdb.u8(7), cdb.u8(8)])?;
                let count = end.checked_sub(first).ok_or(Sense::INVALID_FIELD)?;
                self.start_read_cd(cdb, first, count)
            }
            op::VERIFY_10 if cdb.u8(1) & 2 == 0 => {
                self.extent(cdb.lba(), cdb.blocks()).map(|_| Task::Done)
            }
            op::SEEK_10 => self.extent(cdb.lba(), 0).map(|_| Task::Done),
            op::SYNCHRONIZE_CACHE_10 | op::STOP_PLAY => self.ready().map(|()| Task::Done),
            op::SET_CD_SPEED => Ok(Task::Done),
            op::PLAY_AUDIO_10 | op::PLAY_AUDIO_MSF | op::PAUSE_RESUME => {
                self.ready()?;
                Err(Sense::ILLEGAL_TRACK_MODE)
            }
            op::READ_TOC => self.read_toc(cdb),
            op::READ_SUB_CHANNEL => self.read_sub_channel(cdb),
            op::READ_DISC_INFORMATION => self.read_disc_information(cdb),
            op::READ_TRACK_INFORMATION => self.read_track_information(cdb),
            op::READ_DVD_STRUCTURE => self.read_dvd_structure(cdb),
            op::GET_CONFIGURATION => self.get_configuration(cdb),
            op::GET_EVENT_STATUS => self.get_event_status(cdb, state),
            op::MECHANISM_STATUS => {
                let door = if self.drive.is_tray_open() { 0x10 } else { 0 };
                Ok(reply(vec![0, door, 0, 0, 0, 1, 0, 0], cdb.u16(8)))
            }
            // Known commands, to a medium that is never written.
            op::WRITE_6
            | op::WRITE_10
            | op::WRITE_12
            | op::WRITE_16
            | op::WRITE_VERIFY_10
            | op::WRITE_VERIFY_12
            | op::WRITE_VERIFY_16 => Err(Sense::WRITE_PROTECTED),
            _ => Err(Sense::INVALID_OPCODE),
        }
    }

    fn start_read_cd(&self, cdb: &Cdb, lba: u32, count: u32) -> Result<Task, Sense> {
        let parts = SectorParts::from_bits(cdb.u8(9))?;
        // Sub-channels are not in the image.
        if cdb.u8(10) & 7 != 0 {
            return Err(Sense::INVALID_FIELD);
        }
        let (offset, len) = self.extent(lba.into(), count.into())?;
        match cdb.u8(1) >> 2 & 7 {
            // Whatever is there, or mode 1.
            0 | 2 => {}
            1 | 3 | 4 | 5 => return Err(Sense::ILLEGAL_TRACK_MODE),
            _ => return Err(Sense::INVALID_FIELD),
        }
        Ok(if count == 0 || parts.is_empty() {
            Task::Done
        } else if parts == SectorParts::USER {
            Task::Read { offset, len }
        } else {
            Task::ReadSectors { lba, count, parts }
        })
    }

    /// Makes up to `len` bytes of the data of `count` sectors from `lba` on, from byte `skip` of them on;
    /// gives each piece to `sink` with its place. Returns how many there were.
    pub(super) fn read_sectors(
        &self,
        lba: u32,
        count: u32,
        parts: SectorParts,
        skip: u64,
        len: u64,
        mut sink: impl FnMut(usize, &[u8]),
    ) -> Result<u64, Stop> {
        let size = u64::from(parts.len());
        let end = skip.saturating_add(len).min(u64::from(count) * size);
        let mut at = skip;
        let mut user = vec![0; BATCH as usize * BLOCK as usize];
        while at < end {
            let first = (at / size) as u32;
            let batch = BATCH.min((end.div_ceil(size) as u32).saturating_sub(first));
            let user = &mut user[..batch as usize * BLOCK as usize];
            self.read_bytes(u64::from(lba + first) * BLOCK, user)?;
            for (index, user) in (first..).zip(user.chunks_exact(BLOCK as usize)) {
                let made = parts.make(lba + index, user);
                let start = u64::from(index) * size;
                let from = at.saturating_sub(start) as usize;
                let to = (end - start).min(size) as usize;
                sink((at - skip) as usize, &made[from..to]);
                at += (to - from) as u64;
            }
        }
        Ok(end.saturating_sub(skip))
    }

    fn read_sub_channel(&self, cdb: &Cdb) -> Result<Task, Sense> {
        self.ready()?;
        let as_msf = cdb.u8(1) & 2 != 0;
        // The audio status: there is none to return.
        let mut data = vec![0, 0x15, 0, 0];
        if cdb.u8(2) & 0x40 != 0 {
            match cdb.u8(3) {
                1 => {
                    data.extend([1, toc::CONTROL, 1, 1]);
                    data.extend(address(0, as_msf));
                    data.extend([0; 4]);
                }
                // Catalogue number and recording code: not there.
                format @ (2 | 3) => {
                    data.extend([format, 0, 0, 0]);
                    data.extend([0; 16]);
                }
                _ => return Err(Sense::INVALID_FIELD),
            }
        }
        data[3] = (data.len() - 4) as u8;
        Ok(reply(data, cdb.u16(7)))
    }

    fn get_event_status(&self, cdb: &Cdb, state: &mut LunState) -> Result<Task, Sense> {
        /// Class of media events, and its bit in masks.
        const MEDIA: u8 = 4;
        // Only polling; nobody is called back.
        if cdb.u8(1) & 1 == 0 {
            return Err(Sense::INVALID_FIELD);
        }
        let allocated = cdb.u16(7);
        if cdb.u8(4) & 1 << MEDIA == 0 {
            // No such event.
            return Ok(reply(vec![0, 2, 0x80, 1 << MEDIA], allocated));
        }
        let open = self.drive.is_tray_open();
        let status = u8::from(open) | u8::from(self.drive.is_inserted() && !open) << 1;
        // An event that finds no room is told next time.
        let event = if allocated > 4 { std::mem::take(&mut state.event) } else { MediaEvent::None };
        Ok(reply(vec![0, 6, MEDIA, 1 << MEDIA, event as u8, status, 0, 0], allocated))
    }

    fn read_dvd_structure(&self, cdb: &Cdb) -> Result<Task, Sense> {
        /// Formats that can be read, with the length of each structure.
        const FORMATS: [(u8, u16); 4] = [(0x00, 2048), (0x01, 4), (0x04, 2048), (0xff, 16)];
        self.ready()?;
        let (media, layer, format) = (cdb.u8(1) & 0xf, cdb.u8(6), cdb.u8(7));
        if media != 0 || layer != 0 {
            return Err(Sense::INVALID_FIELD);
        }
        if !self.is_dvd() && format != 0xff {
            return Err(Sense::INCOMPATIBLE_MEDIUM);
        }
        let found = FORMATS.iter().find(|(known, _)| *known == format);
        let &(_, len) = found.ok_or(Sense::INVALID_FIELD)?;
        let mut body = vec![0; usize::from(len)];
        match format {
            0x00 => {
                let last = DVD_START.saturating_add(self.sectors() - 1);
                // DVD-ROM, 120 mm, one layer with data that can't be written.
                body[..3].copy_from_slice(&[0x01, 0x0f, 0x01]);
                body[4..8].copy_from_slice(&DVD_START.to_be_bytes());
                body[8..12].copy_from_slice(&last.to_be_bytes());
                body[12..16].copy_from_slice(&last.to_be_bytes());
            }
            0xff => {
                for (entry, (format, len)) in body.chunks_exact_mut(4).zip(FORMATS) {
                    entry[0] = format;
                    // Can be read, not written.
                    entry[1] = 0x40;
                    entry[2..].copy_from_slice(&(len + 4).to_be_bytes());
                }
            }
            _ => {}
        }
        let mut data = (len + 2).to_be_bytes().to_vec();
        data.extend([0, 0]);
        data.extend(body);
        Ok(reply(data, cdb.u16(8)))
    }
}
