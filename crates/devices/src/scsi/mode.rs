//! Mode parameters: MODE SENSE and MODE SELECT (SPC-4, sections 6.11 to 6.14 and 7.5; SBC-3, section
//! 6.4; MMC-5, section 7).

use super::lun::{Lun, Stop, reply};
use super::{Cdb, Kind, Sense, Task, Transport, op};

/// Mode pages.
mod page {
    pub(super) const ERROR_RECOVERY: u8 = 0x01;
    pub(super) const RIGID_GEOMETRY: u8 = 0x04;
    pub(super) const FLEXIBLE_GEOMETRY: u8 = 0x05;
    pub(super) const CACHING: u8 = 0x08;
    pub(super) const AUDIO_CONTROL: u8 = 0x0e;
    pub(super) const CAPABILITIES: u8 = 0x2a;
    pub(super) const ALL: u8 = 0x3f;
}

/// Which values of the parameters.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Values {
    Current,
    /// Ones where the initiator may change something.
    Changeable,
    Default,
}

/// Write cache enable, in the first byte of the caching page's body.
const WCE: u8 = 4;
/// Bytes of a short block descriptor.
const DESCRIPTOR_LEN: usize = 8;
/// Transfer rate of an ancient drive in units of 1000 bytes a second: one times.
const SINGLE_SPEED: u16 = 176;
/// What drive speeds are claimed, most and current, as multiples of [`SINGLE_SPEED`].
const SCSI_SPEEDS: (u16, u16) = (50, 16);
const ATAPI_SPEEDS: (u16, u16) = (4, 4);

impl Lun {
    /// The pages that the unit has, in order.
    fn mode_pages(&self) -> &'static [u8] {
        match (self.options.kind, self.options.transport) {
            (Kind::Disk, _) => &[
                page::ERROR_RECOVERY,
                page::RIGID_GEOMETRY,
                page::FLEXIBLE_GEOMETRY,
                page::CACHING,
            ],
            (Kind::CdRom, Transport::Scsi) => {
                &[page::ERROR_RECOVERY, page::CACHING, page::AUDIO_CONTROL, page::CAPABILITIES]
            }
            (Kind::CdRom, Transport::Atapi) => {
                &[page::ERROR_RECOVERY, page::AUDIO_CONTROL, page::CAPABILITIES]
            }
        }
    }

    /// A page with its two bytes of header.
    fn mode_page(&self, code: u8, values: Values) -> Vec<u8> {
        let body = match code {
            page::ERROR_RECOVERY if self.options.transport == Transport::Atapi => {
                // The first six bytes alone, with the number of retries.
                let retries = if values == Values::Changeable { 0 } else { 5 };
                vec![0, retries, 0, 0, 0, 0]
            }
            page::ERROR_RECOVERY => self.error_recovery(values).to_vec(),
            page::RIGID_GEOMETRY => self.rigid_geometry(values).to_vec(),
            page::FLEXIBLE_GEOMETRY => self.flexible_geometry(values).to_vec(),
            page::CACHING => {
                let mut body = [0; 18];
                let on = match values {
                    Values::Current => self.drive.write_cache(),
                    Values::Changeable | Values::Default => true,
                };
                body[0] = if on { WCE } else { 0 };
                body.to_vec()
            }
            page::AUDIO_CONTROL => vec![0; 14],
            _ => self.capabilities(values).to_vec(),
        };
        let mut data = vec![code, body.len() as u8];
        data.extend(body);
        data
    }

    fn error_recovery(&self, values: Values) -> [u8; 10] {
        let mut body = [0; 10];
        if values != Values::Changeable {
            // Blocks that can't be written are replaced.
            body[0] = 0x80;
            if self.is_cdrom() {
                body[1] = 0x20;
            }
        }
        body
    }

    /// Cylinders, heads and sectors a track that a disk of old of this size would have.
    fn geometry(&self) -> (u32, u8, u8) {
        const HEADS: u64 = 16;
        const SECTORS: u64 = 63;
        let cylinders = (self.drive.sectors() / (HEADS * SECTORS)).clamp(2, 16383);
        (cylinders as u32, HEADS as u8, SECTORS as u8)
    }

    fn rigid_geometry(&self, values: Values) -> [u8; 22] {
        let mut body = [0; 22];
        if values == Values::Changeable {
            return body;
        }
        let (cylinders, heads, _) = self.geometry();
        let cylinders = &cylinders.to_be_bytes()[1..];
        body[..3].copy_from_slice(cylinders);
        body[3] = heads;
        // Where write precompensation and reduced write current begin: nowhere.
        body[4..7].copy_from_slice(cylinders);
        body[7..10].copy_from_slice(cylinders);
        // Step rate in units of 100 ns, and the landing zone: any.
        body[10..12].copy_from_slice(&200_u16.to_be_bytes());
        body[12..15].fill(0xff);
        // Turns a minute.
        body[18..20].copy_from_slice(&5400_u16.to_be_bytes());
        body
    }

    fn flexible_geometry(&self, values: Values) -> [u8; 30] {
        let mut body = [0; 30];
        if values == Values::Changeable {
            return body;
        }
        let (cylinders, heads, sectors) = self.geometry();
        let cylinders = (cylinders as u16).to_be_bytes();
        // Transfer rate in units of 1000 bits a second.
        body[..2].copy_from_slice(&5000_u16.to_be_bytes());
        (body[2], body[3]) = (heads, sectors);
        let block = u16::try_from(self.block_size()).unwrap_or(0);
        body[4..6].copy_from_slice(&block.to_be_bytes());
        body[6..8].copy_from_slice(&cylinders);
        body[8..10].copy_from_slice(&cylinders);
        body[10..12].copy_from_slice(&cylinders);
        // Head step rate in 100 us, its pulse width in 1 us, and settle delay in 100 us.
        body[12..14].copy_from_slice(&1_u16.to_be_bytes());
        body[14] = 1;
        body[15..17].copy_from_slice(&1_u16.to_be_bytes());
        // Motor on and off delays in 100 ms.
        (body[17], body[18]) = (1, 1);
        body[26..28].copy_from_slice(&5400_u16.to_be_bytes());
        body
    }

    fn capabilities(&self, values: Values) -> [u8; 20] {
        let mut body = [0; 20];
        if values == Values::Changeable {
            return body;
        }
        let is_scsi = self.options.transport == Transport::Scsi;
        // CD-R, CD-RW, method 2, DVD-ROM and DVD-R are read; nothing is written.
        body[0] = 0x3b;
        // Mode 2 forms 1 and 2, several sessions; on SCSI also the outputs for audio.
        body[2] = if is_scsi { 0x7f } else { 0x71 };
        // ISRC and UPC are read; on SCSI audio sectors and sub-channels too.
        body[3] = if is_scsi { 0xff } else { 0x60 };
        // A tray, which can be locked and is ejected by command.
        let locked = values == Values::Current && self.drive.is_locked();
        body[4] = if is_scsi { 0x2d } else { 0x29 } | if locked { 2 } else { 0 };
        let (most, current) = if is_scsi { SCSI_SPEEDS } else { ATAPI_SPEEDS };
        let current = (current * SINGLE_SPEED).to_be_bytes();
        body[6..8].copy_from_slice(&(most * SINGLE_SPEED).to_be_bytes());
        // Two levels of volume; the buffer in KiB.
        body[8..10].copy_from_slice(&2_u16.to_be_bytes());
        let buffer: u16 = if is_scsi { 2048 } else { 512 };
        body[10..12].copy_from_slice(&buffer.to_be_bytes());
        body[12..14].copy_from_slice(&current);
        if is_scsi {
            body[16..18].copy_from_slice(&current);
            body[18..20].copy_from_slice(&current);
        }
        body
    }

    pub(super) fn mode_sense(&self, cdb: &Cdb) -> Result<Task, Sense> {
        let long = cdb.opcode() == op::MODE_SENSE_10;
        let allocated = if long { cdb.u16(7) } else { cdb.u8(4).into() };
        let values = match cdb.u8(2) >> 6 {
            0 => Values::Current,
            1 => Values::Changeable,
            2 => Values::Default,
            _ => return Err(Sense::NO_SAVING),
        };
        let code = cdb.u8(2) & 0x3f;
        let pages: Vec<u8> = match (code, cdb.u8(3)) {
            (page::ALL, 0 | 0xff) => self.mode_pages().to_vec(),
            (code, 0) if self.mode_pages().contains(&code) => vec![code],
            _ => return Err(Sense::INVALID_FIELD),
        };
        let descriptor = self.block_descriptor(cdb.u8(1) & 8 != 0);
        let mut data = self.mode_header(long, descriptor.len());
        data.extend(descriptor);
        for code in pages {
            data.extend(self.mode_page(code, values));
        }
        if long {
            let len = (data.len() - 2) as u16;
            data[..2].copy_from_slice(&len.to_be_bytes());
        } else {
            data[0] = (data.len() - 1) as u8;
        }
        Ok(reply(data, allocated))
    }

    fn mode_header(&self, long: bool, descriptors: usize) -> Vec<u8> {
        let (medium, specific) = match self.options.kind {
            Kind::Disk => {
                let protected = if self.drive.is_read_only() { 0x80 } else { 0 };
                (0, protected | if self.options.dpofua { 0x10 } else { 0 })
            }
            Kind::CdRom => (self.medium_type(), 0),
        };
        if long {
            vec![0, 0, medium, specific, 0, 0, 0, descriptors as u8]
        } else {
            vec![0, medium, specific, descriptors as u8]
        }
    }

    /// What SFF-8020i calls the medium: data, none, or an open door.
    fn medium_type(&self) -> u8 {
        match (self.options.transport, self.ready()) {
            (Transport::Scsi, _) => 0,
            (Transport::Atapi, Ok(())) => 1,
            (Transport::Atapi, Err(Sense::TRAY_OPEN)) => 0x71,
            (Transport::Atapi, Err(_)) => 0x70,
        }
    }

    /// A CD has none (MMC-5, section 7.2.2).
    fn block_descriptor(&self, disabled: bool) -> Vec<u8> {
        if disabled || self.is_cdrom() || self.ready().is_err() {
            return Vec::new();
        }
        let blocks = u32::try_from(self.blocks()).unwrap_or(u32::MAX);
        let blocks = if blocks > 0xff_ffff { 0 } else { blocks };
        let mut data = blocks.to_be_bytes().to_vec();
        data.extend((self.block_size() as u32).to_be_bytes());
        data
    }

    /// Takes over the mode parameters of a MODE SELECT. None are taken over if any is wrong.
    pub(super) fn take_mode(&self, list: &[u8], long: bool) -> Result<u64, Sense> {
        let header = if long { 8 } else { 4 };
        let descriptors = match (list.get(..header), long) {
            (Some(h), true) => usize::from(u16::from_be_bytes([h[6], h[7]])),
            (Some(h), false) => usize::from(h[3]),
            (None, _) => return Err(Sense::PARAMETER_LENGTH),
        };
        let rest = list.get(header + descriptors..).ok_or(Sense::PARAMETER_LENGTH)?;
        match descriptors {
            0 => {}
            DESCRIPTOR_LEN => {
                let d = &list[header..];
                let block = u64::from(u32::from_be_bytes([0, d[5], d[6], d[7]]));
                if block != 0 && block != self.block_size() {
                    return Err(Sense::INVALID_PARAMETER);
                }
            }
            _ => return Err(Sense::INVALID_PARAMETER),
        }
        let mut pages = rest;
        let mut write_cache = None;
        while !pages.is_empty() {
            let (page, after) = self.check_page(pages)?;
            if page[0] & 0x3f == page::CACHING {
                write_cache = Some(page[2] & WCE != 0);
            }
            pages = after;
        }
        if let Some(on) = write_cache
            && on != self.drive.write_cache()
        {
            // What was written before has no cache to be in any more.
            if !on {
                self.flush().map_err(|stop| match stop {
                    Stop::Check(sense) => sense,
                    Stop::Held => Sense::IO_ERROR,
                })?;
            }
            self.drive.set_write_cache(on);
        }
        Ok(list.len() as u64)
    }

    /// Splits the first page off `list`, which is not empty; it changes no more than may be changed.
    fn check_page<'l>(&self, list: &'l [u8]) -> Result<(&'l [u8], &'l [u8]), Sense> {
        let code = list[0] & 0x3f;
        // No page has subpages.
        if list[0] & 0x40 != 0 || !self.mode_pages().contains(&code) {
            return Err(Sense::INVALID_PARAMETER);
        }
        let current = self.mode_page(code, Values::Current);
        let changeable = self.mode_page(code, Values::Changeable);
        let page = list.get(..current.len()).ok_or(Sense::PARAMETER_LENGTH)?;
        let fixed = |i: usize| page[i] & !changeable[i] == current[i] & !changeable[i];
        if page[1] != current[1] || !(2..page.len()).all(fixed) {
            return Err(Sense::INVALID_PARAMETER);
        }
        Ok((page, &list[current.len()..]))
    }
}
