//! SCSI logical units: what a disk and a CD-ROM drive do with commands, whatever brings them.
//!
//! ```text
//! virtio-scsi ─► ScsiBus ─► Lun ─► block::Drive
//! ATAPI (IDE, AHCI) ────────┤
//! USB mass storage ─────────┘
//! ```
//!
//! A command goes in two steps. [`Lun::start`] decodes and checks it and says with a [`Task`] what is to
//! be done and how much data goes which way; it never waits. [`Lun::perform`] does it, straight on guest
//! memory, and may wait for the host. Transports that move data in small pieces (PIO) fetch it with
//! [`Lun::fetch`] and hand parameter lists in with [`Lun::accept`] instead.
//!
//! - [`disk`] are the block commands (SBC-3), [`cdrom`] those of CD and DVD (MMC-5), the rest of the
//!   folder is what both share (SPC-3).
//! - [`ScsiBus`] is a domain with units at addresses; it answers for those that are not there.
//!
//! Invariants:
//! - A reply is never longer than the allocation length of its command, nor than 64 KiB; data of the
//!   medium never passes through memory of ours but in pieces of [`BOUNCE_LEN`].
//! - A range of blocks is checked against the medium when the command starts.
//! - A unit's lock is never held during I/O.

mod bus;
mod cdb;
mod cdrom;
mod data;
mod disk;
mod inquiry;
mod lun;
mod mode;
mod sense;
#[cfg(test)]
mod tests;

pub use bus::{Address, AddressError, Route, ScsiBus};
pub use cdb::{Cdb, MAX_CDB, op};
pub use cdrom::SectorParts;
pub use data::{BOUNCE_LEN, slices};
pub use lun::{ChangeHook, Lun, LunError, LunState};
pub use sense::{FIXED_LEN, Sense, key};

use serde::{Deserialize, Serialize};

/// What a unit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A direct access device.
    Disk,
    /// A CD or DVD drive.
    CdRom,
}

/// What brings the commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A SCSI transport, where units tell of resets.
    Scsi,
    /// ATA packets.
    Atapi,
}

/// What can be set about a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LunOptions {
    /// What it is.
    pub kind: Kind,
    /// What brings its commands.
    pub transport: Transport,
    /// Sense is kept for REQUEST SENSE, because it does not come with the status.
    pub keeps_sense: bool,
    /// Vendor; 8 bytes of it count.
    pub vendor: String,
    /// Product; 16 bytes of it count.
    pub product: String,
    /// Product revision; 4 bytes of it count.
    pub version: String,
    /// Serial number; 36 bytes of it count. Empty for none.
    pub serial: String,
    /// Name in the device identification page, at most 247 bytes. Empty for none.
    pub device_id: String,
    /// World wide name, 0 for none.
    pub wwn: u64,
    /// World wide name of the port, 0 for none.
    pub port_wwn: u64,
    /// Relative number of the port, 0 for none.
    pub port_index: u16,
    /// Standard that it claims: 5 for SPC-3.
    pub scsi_version: u8,
    /// A disk whose medium can be taken out; a CD's always can.
    pub removable: bool,
    /// Bytes of a block.
    pub logical_block_size: u32,
    /// Bytes that the device is best written in.
    pub physical_block_size: u32,
    /// Least that is worth a transfer, in bytes, 0 for nothing said.
    pub min_io_size: u32,
    /// Best size of a transfer, in bytes, 0 for nothing said.
    pub opt_io_size: u32,
    /// Most bytes of one transfer.
    pub max_io_size: u64,
    /// Most bytes of one unmapping.
    pub max_unmap_size: u64,
    /// Bytes that are unmapped together, 0 for no unmapping.
    pub discard_granularity: u32,
    /// Turns a minute, 1 for none, 0 for nothing said.
    pub rotation_rate: u16,
    /// Shows support of DPO and FUA.
    pub dpofua: bool,
    /// Let other processes write to the image meanwhile.
    pub share_rw: bool,
}

impl LunOptions {
    /// A disk with blocks of 512 bytes.
    pub fn disk() -> Self {
        Self {
            kind: Kind::Disk,
            transport: Transport::Scsi,
            keeps_sense: false,
            vendor: "QEMU".into(),
            product: "QEMU HARDDISK".into(),
            version: "2.5+".into(),
            serial: String::new(),
            device_id: String::new(),
            wwn: 0,
            port_wwn: 0,
            port_index: 0,
            scsi_version: 5,
            removable: false,
            logical_block_size: 512,
            physical_block_size: 512,
            min_io_size: 0,
            opt_io_size: 0,
            max_io_size: i32::MAX as u64,
            max_unmap_size: 1 << 30,
            discard_granularity: 4096,
            rotation_rate: 0,
            dpofua: false,
            share_rw: false,
        }
    }

    /// A CD-ROM drive.
    pub fn cdrom(transport: Transport) -> Self {
        let product = match transport {
            Transport::Scsi => "QEMU CD-ROM",
            Transport::Atapi => "QEMU DVD-ROM",
        };
        Self {
            kind: Kind::CdRom,
            transport,
            keeps_sense: transport == Transport::Atapi,
            product: product.into(),
            removable: true,
            logical_block_size: cdrom::BLOCK as u32,
            physical_block_size: cdrom::BLOCK as u32,
            discard_granularity: 0,
            ..Self::disk()
        }
    }
}

/// Data that a command moves, as the initiator sees it, with its length in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// None.
    None,
    /// From the unit; what comes may be less.
    In(u64),
    /// To the unit.
    Out(u64),
}

/// What a command that was decoded and checked is to do. Offsets and lengths are in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Task {
    /// Nothing is left to do.
    Done,
    /// The unit answers with these bytes.
    Reply(Vec<u8>),
    /// Data come from the medium.
    Read {
        /// First byte.
        offset: u64,
        /// Length.
        len: u64,
    },
    /// Sectors of a CD come with what is around their user data.
    ReadSectors {
        /// Address of the first sector.
        lba: u32,
        /// How many.
        count: u32,
        /// What of each.
        parts: SectorParts,
    },
    /// Data go to the medium.
    Write {
        /// First byte.
        offset: u64,
        /// Length.
        len: u64,
        /// Durable when it ends.
        durable: bool,
    },
    /// Data are compared with the medium.
    Compare {
        /// First byte.
        offset: u64,
        /// Length.
        len: u64,
        /// The data are one block of this length, compared with each.
        repeat: Option<u32>,
    },
    /// One block goes to the medium again and again.
    WriteSame {
        /// First byte.
        offset: u64,
        /// Length.
        len: u64,
        /// Length of the block that comes; 0 stands for one of zeroes.
        block: u32,
        /// Blocks of zeroes may be unmapped.
        may_unmap: bool,
    },
    /// A list of ranges to unmap comes, of this length.
    Unmap {
        /// Length of the list.
        len: u32,
    },
    /// Mode parameters come, of this length.
    ModeSelect {
        /// Length of the list.
        len: u32,
        /// The list has the long header.
        long: bool,
    },
    /// What was written becomes durable.
    Flush,
}

impl Task {
    /// What data it moves.
    pub fn data(&self) -> Data {
        let some = |len: u64, kind: fn(u64) -> Data| if len == 0 { Data::None } else { kind(len) };
        match *self {
            Self::Done | Self::Flush => Data::None,
            Self::Reply(ref bytes) => some(bytes.len() as u64, Data::In),
            Self::Read { len, .. } => some(len, Data::In),
            Self::ReadSectors { count, parts, .. } => {
                some(u64::from(count) * u64::from(parts.len()), Data::In)
            }
            Self::Write { len, .. } | Self::Compare { len, repeat: None, .. } => {
                some(len, Data::Out)
            }
            Self::Compare { repeat: Some(block), .. } | Self::WriteSame { block, .. } => {
                some(block.into(), Data::Out)
            }
            Self::Unmap { len } | Self::ModeSelect { len, .. } => some(len.into(), Data::Out),
        }
    }
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Well, with so many bytes moved.
    Good(u64),
    /// With CHECK CONDITION.
    Check(Sense),
    /// It did not: a failure stops the machine, and the command is to be made again when it continues.
    Held,
}
