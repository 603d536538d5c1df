//! INQUIRY: who the unit is, and its vital product data (SPC-4, sections 6.6 and 7.8; SBC-3, section
//! 6.5).

use super::lun::{Lun, reply};
use super::{Cdb, Kind, Sense, Task, Transport};

/// Bytes of standard INQUIRY data that we have.
const STANDARD_LEN: usize = 36;

/// Pages of vital product data.
mod page {
    pub(super) const SUPPORTED: u8 = 0x00;
    pub(super) const SERIAL: u8 = 0x80;
    pub(super) const IDENTIFICATION: u8 = 0x83;
    pub(super) const BLOCK_LIMITS: u8 = 0xb0;
    pub(super) const CHARACTERISTICS: u8 = 0xb1;
    pub(super) const PROVISIONING: u8 = 0xb2;
}

/// Peripheral device types.
pub(super) fn device_type(kind: Kind) -> u8 {
    match kind {
        Kind::Disk => 0,
        Kind::CdRom => 5,
    }
}

/// `text` in `N` bytes, with blanks behind.
fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut bytes = [b' '; N];
    let len = text.len().min(N);
    bytes[..len].copy_from_slice(&text.as_bytes()[..len]);
    bytes
}

impl Lun {
    pub(super) fn inquiry(&self, cdb: &Cdb) -> Result<Task, Sense> {
        let (vital, page, allocated) = (cdb.u8(1) & 1 != 0, cdb.u8(2), cdb.u16(3));
        let data = if vital {
            self.vital_product_data(page).ok_or(Sense::INVALID_FIELD)?
        } else if page == 0 && cdb.u8(1) & 2 == 0 {
            self.standard_inquiry().to_vec()
        } else {
            return Err(Sense::INVALID_FIELD);
        };
        Ok(reply(data, allocated))
    }

    fn standard_inquiry(&self) -> [u8; STANDARD_LEN] {
        let options = &self.options;
        let mut data = [0; STANDARD_LEN];
        data[0] = device_type(options.kind);
        data[1] = if options.removable { 0x80 } else { 0 };
        data[4] = STANDARD_LEN as u8 - 5;
        match options.transport {
            Transport::Scsi => {
                data[2] = options.scsi_version;
                // Hierarchical addressing; the standard's format of this data.
                data[3] = 0x12;
                // Synchronous transfers and command queueing.
                data[7] = 0x12;
            }
            // The version of ATAPI that it follows is 2.
            Transport::Atapi => data[3] = 0x21,
        }
        data[8..16].copy_from_slice(&padded::<8>(&options.vendor));
        data[16..32].copy_from_slice(&padded::<16>(&options.product));
        data[32..36].copy_from_slice(&padded::<4>(&options.version));
        data
    }

    fn pages(&self) -> Vec<u8> {
        let mut pages = vec![page::SUPPORTED];
        if !self.options.serial.is_empty() {
            pages.push(page::SERIAL);
        }
        pages.push(page::IDENTIFICATION);
        if self.options.kind == Kind::Disk {
            pages.extend([page::BLOCK_LIMITS, page::CHARACTERISTICS, page::PROVISIONING]);
        }
        pages
    }

    fn vital_product_data(&self, page: u8) -> Option<Vec<u8>> {
        let pages = self.pages();
        if !pages.contains(&page) {
            return None;
        }
        let body = match page {
            page::SUPPORTED => pages,
            page::SERIAL => self.options.serial.bytes().take(36).collect(),
            page::IDENTIFICATION => self.identification(),
            page::BLOCK_LIMITS => self.block_limits(),
            page::CHARACTERISTICS => {
                let mut body = vec![0; 60];
                body[..2].copy_from_slice(&self.options.rotation_rate.to_be_bytes());
                body
            }
            _ => self.provisioning(),
        };
        let mut data = vec![device_type(self.options.kind), page];
        data.extend((body.len() as u16).to_be_bytes());
        data.extend(body);
        Some(data)
    }

    /// Designators of the unit and of its port.
    fn identification(&self) -> Vec<u8> {
        let options = &self.options;
        let mut body = Vec::new();
        let mut add = |codes: u8, kind: u8, id: &[u8]| {
            body.extend([codes, kind, 0, id.len() as u8]);
            body.extend(id);
        };
        if !options.device_id.is_empty() {
            // ASCII; assigned by the vendor.
            add(2, 0, options.device_id.as_bytes());
        }
        if options.wwn != 0 {
            // Binary; NAA.
            add(1, 3, &options.wwn.to_be_bytes());
        }
        if options.port_wwn != 0 {
            // Of a SAS port; binary; NAA.
            add(0x61, 0x93, &options.port_wwn.to_be_bytes());
        }
        if options.port_index != 0 {
            let [high, low] = options.port_index.to_be_bytes();
            add(0x61, 0x94, &[0, 0, high, low]);
        }
        body
    }

    fn block_limits(&self) -> Vec<u8> {
        let options = &self.options;
        let block = self.block_size();
        let in_blocks = |bytes: u64| u32::try_from(bytes / block).unwrap_or(u32::MAX);
        let mut data = [0; 64];
        // A WRITE SAME of no blocks is refused.
        data[4] = 1;
        let granularity = u16::try_from(in_blocks(options.min_io_size.into())).unwrap_or(u16::MAX);
        data[6..8].copy_from_slice(&granularity.to_be_bytes());
        data[8..12].copy_from_slice(&in_blocks(options.max_io_size).to_be_bytes());
        data[12..16].copy_from_slice(&in_blocks(options.opt_io_size.into()).to_be_bytes());
        let unmap = if self.unmaps() { in_blocks(options.max_unmap_size) } else { 0 };
        data[20..24].copy_from_slice(&unmap.to_be_bytes());
        data[24..28].copy_from_slice(&MAX_UNMAP_RANGES.to_be_bytes());
        let granularity = in_blocks(options.discard_granularity.into());
        data[28..32].copy_from_slice(&granularity.to_be_bytes());
        data[36..44].copy_from_slice(&self.max_write_same().to_be_bytes());
        data[4..].to_vec()
    }

    fn provisioning(&self) -> Vec<u8> {
        // Unmapping by all three commands; provisioned as needed, or in full.
        if self.unmaps() { vec![0, 0xe0, 2, 0] } else { vec![0, 0, 1, 0] }
    }
}

/// Most ranges in one UNMAP that we tell of.
const MAX_UNMAP_RANGES: u32 = 255;
