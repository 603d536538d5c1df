//! The bus master of a channel (SFF-8038i, revision 1.0): its registers, and the tables of physical
//! regions that say where data go.

use block::GuestSlice;
use memory::GuestMemory;
use memory::vm_memory::{GuestAddress, GuestMemoryBackend};
use serde::{Deserialize, Serialize};

/// Bits of the command register: go, and data go to memory.
pub(super) const START: u8 = 1 << 0;
const TO_MEMORY: u8 = 1 << 3;

/// Bits of the status register: the table is not done yet; an error; the device wanted attention;
/// what software noted of the devices.
pub(super) const ACTIVE: u8 = 1 << 0;
const ERROR: u8 = 1 << 1;
pub(super) const INTERRUPT: u8 = 1 << 2;
const CAPABLE: u8 = 3 << 5;

/// Bytes of a table, which does not cross a border of that size.
const TABLE: u32 = 1 << 16;
/// Bytes of an entry.
const ENTRY: u32 = 8;
/// Bytes of a region whose length is given as zero.
const LONGEST: u32 = 1 << 16;
/// Bit of an entry: it is the last.
const LAST: u32 = 1 << 31;

/// The registers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BusMaster {
    command: u8,
    pub(super) status: u8,
    table: u32,
    /// Started, and no transfer has begun since.
    pub(super) armed: bool,
}

/// What a write to a register led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wrote {
    /// Nothing else.
    Register,
    /// The start of a transfer.
    Start,
    /// The end of a transfer, which is to be over when the write is.
    Stop,
}

impl BusMaster {
    pub(super) fn table(&self) -> u32 {
        self.table
    }

    /// Reads `size` bytes at `offset` of the 8 ports.
    pub(super) fn read(&self, offset: u64, size: u8) -> u64 {
        let table = self.table.to_le_bytes();
        let ports = [self.command, 0xff, self.status, 0xff, table[0], table[1], table[2], table[3]];
        (0..u64::from(size.min(8))).fold(0, |value, i| {
            let byte = ports.get((offset + i) as usize).copied().unwrap_or(0xff);
            value | u64::from(byte) << (8 * i)
        })
    }

    /// Writes one byte.
    pub(super) fn write(&mut self, offset: u64, value: u8) -> Wrote {
        match offset {
            0 => {
                let (was, is) = (self.command & START != 0, value & START != 0);
                self.command = value & (START | TO_MEMORY);
                match (was, is) {
                    (false, true) => {
                        self.status |= ACTIVE;
                        self.armed = true;
                        return Wrote::Start;
                    }
                    (true, false) => return Wrote::Stop,
                    _ => {}
                }
            }
            2 => {
                let cleared = value & (ERROR | INTERRUPT);
                self.status = self.status & !cleared & !CAPABLE | value & CAPABLE;
            }
            4..8 => {
                let mut table = self.table.to_le_bytes();
                table[offset as usize - 4] = value;
                self.table = u32::from_le_bytes(table) & !3;
            }
            _ => {}
        }
        Wrote::Register
    }

    /// The transfer is over.
    pub(super) fn stop(&mut self) {
        self.status &= !ACTIVE;
        self.armed = false;
    }

    /// # Errors
    /// If it can't be a bus master's.
    pub(super) fn check(&self) -> Result<(), String> {
        let known = self.command & !(START | TO_MEMORY) == 0
            && self.status & !(ACTIVE | ERROR | INTERRUPT | CAPABLE) == 0;
        if known && self.table & 3 == 0 { Ok(()) } else { Err("impossible bus master".into()) }
    }
}

/// Regions of memory for a transfer.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Regions {
    /// Addresses and lengths, up to the length of the transfer.
    parts: Vec<(u32, u32)>,
    /// Bytes in all.
    pub(super) len: u64,
    /// The table ended with the transfer.
    pub(super) is_exact: bool,
}

impl Regions {
    /// Reads the table at `table` as far as a transfer of `len` bytes needs it. Without the right to
    /// reach memory, entries read as zero.
    pub(super) fn read(memory: &GuestMemory, table: u32, len: u64, may_read: bool) -> Self {
        let mut regions = Self::default();
        let mut at = table;
        while regions.len < len {
            let mut entry = [0; ENTRY as usize];
            if may_read && memory.read(at.into(), &mut entry).is_err() {
                entry = [0; ENTRY as usize];
            }
            let raw = u64::from_le_bytes(entry);
            let (base, count) = (raw as u32 & !1, (raw >> 32) as u32);
            let size = match count & (LONGEST - 2) {
                0 => LONGEST,
                size => size,
            };
            let used = u64::from(size).min(len - regions.len) as u32;
            regions.parts.push((base, used));
            regions.len += u64::from(used);
            let is_last = count & LAST != 0;
            regions.is_exact = is_last && used == size;
            at = at.wrapping_add(ENTRY);
            if is_last || at & (TABLE - 1) == 0 || at.wrapping_sub(table) >= TABLE {
                break;
            }
        }
        regions
    }

    /// The memory of the regions; `nowhere` stands in for what is no RAM, piece by piece.
    pub(super) fn slices<'m>(
        &self,
        memory: &'m GuestMemory,
        nowhere: &GuestSlice<'m>,
        may_reach: bool,
    ) -> Vec<GuestSlice<'m>> {
        let mut slices = Vec::with_capacity(self.parts.len());
        for &(base, len) in &self.parts {
            let before = slices.len();
            let mut is_ram = may_reach;
            if may_reach {
                let view = memory.view();
                for slice in view.get_slices(GuestAddress(base.into()), len as usize) {
                    match slice {
                        Ok(slice) => slices.push(slice),
                        Err(_) => is_ram = false,
                    }
                }
            }
            if !is_ram {
                slices.truncate(before);
                // A region is no longer than what stands in for it.
                slices.extend(nowhere.subslice(0, len as usize).ok());
            }
        }
        slices
    }
}

/// Bytes of what stands in for memory that is none.
pub(super) const NOWHERE: usize = LONGEST as usize;
