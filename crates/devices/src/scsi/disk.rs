//! Commands of direct access devices (SBC-3).
//!
//! Reservations, which matter to several initiators only, and protection information are left out:
//! commands that ask for them end with INVALID FIELD IN CDB or INVALID COMMAND OPERATION CODE.

use block::{GuestSlice, Operation, slices_len};

use super::data::{BOUNCE_LEN, gather};
use super::lun::{Lun, Stop, reply};
use super::{Cdb, Sense, Task, op};

/// Service action of SERVICE ACTION IN(16): READ CAPACITY(16).
const READ_CAPACITY_16: u8 = 0x10;
/// Bytes of an unmap list's header, and of each range in it.
const UNMAP_HEADER: usize = 8;
const UNMAP_RANGE: usize = 16;

/// Bits of the second byte of commands that read and write.
mod flag {
    /// Protection information: three bits.
    pub(super) const PROTECT: u8 = 0xe0;
    /// Force unit access.
    pub(super) const FUA: u8 = 0x08;
    /// WRITE SAME: unmap.
    pub(super) const UNMAP: u8 = 0x08;
    /// WRITE SAME: anchor, and the obsolete ways to fill blocks in.
    pub(super) const SAME_REFUSED: u8 = 0x16;
    /// WRITE SAME(16): no data come.
    pub(super) const NO_DATA: u8 = 0x01;
}

impl Lun {
    /// Whether blocks can be unmapped.
    pub(super) fn unmaps(&self) -> bool {
        self.options.discard_granularity != 0
    }

    /// Most blocks of one WRITE SAME.
    pub(super) fn max_write_same(&self) -> u64 {
        self.options.max_io_size / self.block_size()
    }

    pub(super) fn start_disk(&self, cdb: &Cdb) -> Result<Task, Sense> {
        match cdb.opcode() {
            op::REZERO_UNIT => self.ready().map(|()| Task::Done),
            op::READ_CAPACITY_10 => self.read_capacity_10(cdb),
            op::SERVICE_ACTION_IN_16 => self.read_capacity_16(cdb),
            op::SEEK_10 => self.extent(cdb.lba(), 0).map(|_| Task::Done),
            op::READ_6 | op::READ_10 | op::READ_12 | op::READ_16 => {
                refuse(cdb, op::READ_6, flag::PROTECT)?;
                let (offset, len) = self.extent(cdb.lba(), cdb.blocks())?;
                Ok(if len == 0 { Task::Done } else { Task::Read { offset, len } })
            }
            op::WRITE_6 | op::WRITE_10 | op::WRITE_12 | op::WRITE_16 => {
                refuse(cdb, op::WRITE_6, flag::PROTECT)?;
                let durable = cdb.opcode() != op::WRITE_6 && cdb.u8(1) & flag::FUA != 0;
                self.start_write(cdb, durable)
            }
            op::WRITE_VERIFY_10 | op::WRITE_VERIFY_12 | op::WRITE_VERIFY_16 => {
                refuse(cdb, op::WRITE_6, flag::PROTECT)?;
                self.start_write(cdb, true)
            }
            op::VERIFY_10 | op::VERIFY_12 | op::VERIFY_16 => self.start_verify(cdb),
            op::WRITE_SAME_10 | op::WRITE_SAME_16 => self.start_write_same(cdb),
            op::UNMAP if self.unmaps() => self.start_unmap(cdb),
            op::SYNCHRONIZE_CACHE_10 | op::SYNCHRONIZE_CACHE_16 => {
                self.extent(cdb.lba(), cdb.blocks())?;
                Ok(Task::Flush)
            }
            _ => Err(Sense::INVALID_OPCODE),
        }
    }

    /// First byte and length of a range of blocks, which are all on the medium.
    pub(super) fn extent(&self, lba: u64, blocks: u64) -> Result<(u64, u64), Sense> {
        self.ready()?;
        let end = lba.checked_add(blocks).ok_or(Sense::OUT_OF_RANGE)?;
        // The address of no blocks is to be on the medium too.
        if end > self.blocks() || blocks == 0 && lba >= self.blocks().max(1) {
            return Err(Sense::OUT_OF_RANGE);
        }
        Ok((lba * self.block_size(), blocks * self.block_size()))
    }

    fn writable(&self) -> Result<(), Sense> {
        self.ready()?;
        if self.drive.is_read_only() { Err(Sense::WRITE_PROTECTED) } else { Ok(()) }
    }

    fn start_write(&self, cdb: &Cdb, durable: bool) -> Result<Task, Sense> {
        self.writable()?;
        let (offset, len) = self.extent(cdb.lba(), cdb.blocks())?;
        Ok(if len == 0 { Task::Done } else { Task::Write { offset, len, durable } })
    }

    fn start_verify(&self, cdb: &Cdb) -> Result<Task, Sense> {
        refuse(cdb, op::READ_6, flag::PROTECT)?;
        let (offset, len) = self.extent(cdb.lba(), cdb.blocks())?;
        let block = self.options.logical_block_size;
        match cdb.u8(1) >> 1 & 3 {
            // That the host can read its medium shows when it does.
            0 => Ok(Task::Done),
            1 if len > 0 => Ok(Task::Compare { offset, len, repeat: None }),
            // As with WRITE SAME, a small command must not keep the host busy for hours.
            3 if cdb.blocks() > self.max_write_same() => Err(Sense::INVALID_FIELD),
            3 if len > 0 => Ok(Task::Compare { offset, len, repeat: Some(block) }),
            1 | 3 => Ok(Task::Done),
            _ => Err(Sense::INVALID_FIELD),
        }
    }

    fn start_write_same(&self, cdb: &Cdb) -> Result<Task, Sense> {
        self.writable()?;
        let flags = cdb.u8(1);
        let no_data = cdb.opcode() == op::WRITE_SAME_16 && flags & flag::NO_DATA != 0;
        let blocks = cdb.blocks();
        let refused = flags & (flag::PROTECT | flag::SAME_REFUSED) != 0;
        if refused || blocks == 0 || blocks > self.max_write_same() {
            return Err(Sense::INVALID_FIELD);
        }
        let (offset, len) = self.extent(cdb.lba(), blocks)?;
        let block = if no_data { 0 } else { self.options.logical_block_size };
        let may_unmap = flags & flag::UNMAP != 0;
        Ok(Task::WriteSame { offset, len, block, may_unmap })
    }

    fn start_unmap(&self, cdb: &Cdb) -> Result<Task, Sense> {
        self.writable()?;
        if cdb.u8(1) & 1 != 0 {
            return Err(Sense::INVALID_FIELD);
        }
        let len = u32::from(cdb.u16(7));
        Ok(if len == 0 { Task::Done } else { Task::Unmap { len } })
    }

    fn read_capacity_10(&self, cdb: &Cdb) -> Result<Task, Sense> {
        self.ready()?;
        // Without PMI there is no address.
        if cdb.u8(8) & 1 == 0 && cdb.lba() != 0 {
            return Err(Sense::INVALID_FIELD);
        }
        let last = self.blocks().saturating_sub(1);
        let mut data = u32::try_from(last).unwrap_or(u32::MAX).to_be_bytes().to_vec();
        data.extend(self.options.logical_block_size.to_be_bytes());
        Ok(Task::Reply(data))
    }

    pub(super) fn read_capacity_16(&self, cdb: &Cdb) -> Result<Task, Sense> {
        if cdb.u8(1) & 0x1f != READ_CAPACITY_16 {
            return Err(Sense::INVALID_FIELD);
        }
        self.ready()?;
        if cdb.u8(14) & 1 == 0 && cdb.u64(2) != 0 {
            return Err(Sense::INVALID_FIELD);
        }
        let options = &self.options;
        let exponent = options.physical_block_size.ilog2() - options.logical_block_size.ilog2();
        let mut data = self.blocks().saturating_sub(1).to_be_bytes().to_vec();
        data.extend(options.logical_block_size.to_be_bytes());
        // No protection; blocks of a physical one; blocks can be unmapped.
        data.extend([0, exponent.min(15) as u8, if self.unmaps() { 0x80 } else { 0 }, 0]);
        data.resize(32, 0);
        Ok(reply(data, cdb.u32(10)))
    }

    /// Compares what came with the medium.
    pub(super) fn compare(
        &self,
        offset: u64,
        len: u64,
        repeat: Option<u32>,
        output: &[GuestSlice<'_>],
    ) -> Result<u64, Stop> {
        let came = slices_len(output);
        // Whole blocks repeat at the end of each piece, as both are powers of two.
        let wanted = repeat.map_or(len, u64::from);
        let len = if repeat.is_some() && came >= wanted { len } else { len.min(came) };
        let piece = BOUNCE_LEN.max(repeat.unwrap_or(0) as usize);
        let (mut medium, mut data) = (vec![0; piece], vec![0; piece]);
        let mut done = 0;
        while done < len {
            let count = usize::try_from(len - done).unwrap_or(piece).min(piece);
            self.read_bytes(offset + done, &mut medium[..count])?;
            match repeat {
                None => {
                    gather(output, done as usize, &mut data[..count]);
                }
                Some(block) => {
                    for part in data[..count].chunks_mut(block as usize) {
                        gather(output, 0, part);
                    }
                }
            }
            if medium[..count] != data[..count] {
                return Err(Stop::Check(Sense::MISCOMPARE));
            }
            done += count as u64;
        }
        Ok(came.min(wanted))
    }

    /// Fills a range with one block.
    pub(super) fn write_same(
        &self,
        offset: u64,
        len: u64,
        block: u32,
        may_unmap: bool,
        output: &[GuestSlice<'_>],
    ) -> Result<u64, Stop> {
        let mut pattern = vec![0; block as usize];
        if gather(output, 0, &mut pattern) < pattern.len() {
            return Err(Stop::Check(Sense::INVALID_FIELD));
        }
        if pattern.iter().all(|&byte| byte == 0) {
            let written = self.drive.write_zeroes(offset, len, may_unmap);
            self.settle(Operation::Write, written)?;
            return Ok(block.into());
        }
        let copies = (BOUNCE_LEN / pattern.len()).max(1);
        let many = pattern.repeat(copies);
        let mut done = 0;
        while done < len {
            let count = usize::try_from(len - done).unwrap_or(many.len()).min(many.len());
            for (piece, at) in many[..count].chunks(BOUNCE_LEN).zip((0..).step_by(BOUNCE_LEN)) {
                self.write_bytes(offset + done + at, piece)?;
            }
            done += count as u64;
        }
        Ok(block.into())
    }

    /// Unmaps the ranges of a list; none if one of them is wrong.
    pub(super) fn unmap(&self, list: &[u8]) -> Result<u64, Stop> {
        let header = list.get(..UNMAP_HEADER).ok_or(Sense::PARAMETER_LENGTH)?;
        let ranges = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let ranges =
            list.get(UNMAP_HEADER..UNMAP_HEADER + ranges).ok_or(Sense::PARAMETER_LENGTH)?;
        if ranges.len() % UNMAP_RANGE != 0 {
            return Err(Stop::Check(Sense::PARAMETER_LENGTH));
        }
        let extents = ranges.chunks_exact(UNMAP_RANGE).map(|range| {
            let range = Cdb::new(range);
            self.extent(range.u64(0), range.u32(8).into())
        });
        let extents: Vec<_> = extents.collect::<Result<_, _>>()?;
        for (offset, len) in extents {
            self.settle(Operation::Discard, self.drive.discard(offset, len))?;
        }
        Ok(list.len() as u64)
    }
}

/// Refuses a command with any of `bits` in its second byte, unless it is `six`, which has other bits
/// there.
fn refuse(cdb: &Cdb, six: u8, bits: u8) -> Result<(), Sense> {
    if cdb.opcode() != six && cdb.u8(1) & bits != 0 { Err(Sense::INVALID_FIELD) } else { Ok(()) }
}
