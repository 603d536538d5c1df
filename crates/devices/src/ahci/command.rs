//! Command lists, command tables and physical regions (AHCI 1.3.1, section 4.2).

use memory::GuestMemory;
use serde::{Deserialize, Serialize};

use super::fis::COMMAND_LEN;

/// Bytes of a command header.
const HEADER_LEN: u64 = 32;
/// Offset of the byte count in a header.
const BYTE_COUNT: u64 = 4;
/// Offsets in a command table.
const PACKET: u64 = 0x40;
const REGIONS: u64 = 0x80;
/// Bytes of an entry of the table of regions.
const REGION_LEN: u64 = 16;
/// Bytes of an ATAPI command.
pub(super) const PACKET_LEN: usize = 16;

/// Something is not in RAM.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault;

/// A command's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    /// Where it is.
    at: u64,
    /// Where its table is.
    table: u64,
    /// Entries in the table of regions.
    regions: u16,
}

impl Header {
    /// Reads the header of `slot` in the list at `list`.
    pub(super) fn read(memory: &GuestMemory, list: u64, slot: u8) -> Result<Self, Fault> {
        let at = list.wrapping_add(HEADER_LEN * u64::from(slot));
        let mut bytes = [0; 16];
        memory.read(at, &mut bytes).map_err(|_| Fault)?;
        let raw = u128::from_le_bytes(bytes);
        Ok(Self { at, table: (raw >> 64) as u64 & !0x7f, regions: (raw >> 16) as u16 })
    }

    /// The command's frame.
    pub(super) fn frame(&self, memory: &GuestMemory) -> Result<[u8; COMMAND_LEN], Fault> {
        let mut frame = [0; COMMAND_LEN];
        memory.read(self.table, &mut frame).map_err(|_| Fault)?;
        Ok(frame)
    }

    /// The ATAPI command.
    pub(super) fn packet(&self, memory: &GuestMemory) -> Result<[u8; PACKET_LEN], Fault> {
        let mut packet = [0; PACKET_LEN];
        memory.read(self.table.wrapping_add(PACKET), &mut packet).map_err(|_| Fault)?;
        Ok(packet)
    }

    /// Tells the driver how many bytes were moved.
    pub(super) fn set_byte_count(&self, memory: &GuestMemory, count: u32) -> Result<(), Fault> {
        memory.write(self.at.wrapping_add(BYTE_COUNT), &count.to_le_bytes()).map_err(|_| Fault)
    }
}

/// How far a command is in its regions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cursor {
    region: u16,
    offset: u32,
    /// Bytes moved so far.
    pub(super) moved: u32,
}

/// Stretches of guest memory: address and length.
pub(super) type Ranges = Vec<(u64, u32)>;

impl Cursor {
    /// The next `len` bytes of the regions, or what there is, with how much that is.
    pub(super) fn take(
        &mut self,
        memory: &GuestMemory,
        header: &Header,
        len: u64,
    ) -> Result<(Ranges, u64), Fault> {
        let mut ranges = Ranges::new();
        let mut left = len;
        while left > 0 && self.region < header.regions {
            let entry = REGIONS + REGION_LEN * u64::from(self.region);
            let mut bytes = [0; REGION_LEN as usize];
            memory.read(header.table.wrapping_add(entry), &mut bytes).map_err(|_| Fault)?;
            let raw = u128::from_le_bytes(bytes);
            let (base, size) = (raw as u64 & !1, ((raw >> 96) as u32 & 0x3f_ffff) + 1);
            // The region may have shrunk under our hands.
            let rest = size.saturating_sub(self.offset);
            let taken = u32::try_from(left).unwrap_or(u32::MAX).min(rest);
            if taken > 0 {
                ranges.push((base.wrapping_add(self.offset.into()), taken));
            }
            left -= u64::from(taken);
            if taken == rest {
                self.region += 1;
                self.offset = 0;
            } else {
                self.offset += taken;
            }
        }
        let taken = len - left;
        self.moved = self.moved.saturating_add(u32::try_from(taken).unwrap_or(u32::MAX));
        Ok((ranges, taken))
    }
}

/// Copies `data` into `ranges`, which are as long.
pub(super) fn put(memory: &GuestMemory, ranges: &Ranges, mut data: &[u8]) -> Result<(), Fault> {
    for &(addr, len) in ranges {
        let (now, rest) = data.split_at(data.len().min(len as usize));
        memory.write(addr, now).map_err(|_| Fault)?;
        data = rest;
    }
    Ok(())
}

/// Copies `ranges` into `data`, which is as long.
pub(super) fn get(memory: &GuestMemory, ranges: &Ranges, data: &mut [u8]) -> Result<(), Fault> {
    let mut at = 0;
    for &(addr, len) in ranges {
        let end = (at + len as usize).min(data.len());
        memory.read(addr, &mut data[at..end]).map_err(|_| Fault)?;
        at = end;
    }
    Ok(())
}
