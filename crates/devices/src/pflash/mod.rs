//! Parallel flash memory, as firmware and its variables are kept in: 8 bits wide, with Intel's command
//! set (Common Flash Interface, JESD68.01; Intel "Common Flash Memory Interface and Command Sets",
//! AP-646).
//!
//! While the array is shown, CPUs read and execute it directly; writes are commands. Any other mode takes
//! the array away, and reads come here. What is programmed goes to the drive behind it at once.

mod query;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex};

use block::Drive;
use bus::{AddressSpace, BusDevice, Device, MapError};
use memory::{Access, GuestMemory, MapId, Mapping, MemoryBlock, MemoryError};
use serde::{Deserialize, Serialize};
use vmstate::{RestoreError, Saved, State};

use crate::lock;

/// Bytes that are erased at a time.
pub const SECTOR: u64 = 4096;
/// Most bytes of a buffered write.
const BUFFER_MAX: usize = 256;
/// What the drive is written in.
const DRIVE_BLOCK: u64 = 512;

/// Commands.
mod command {
    pub(super) const PROGRAM_OTHER: u8 = 0x10;
    pub(super) const ERASE: u8 = 0x20;
    pub(super) const PROGRAM: u8 = 0x40;
    pub(super) const CLEAR_STATUS: u8 = 0x50;
    pub(super) const LOCK: u8 = 0x60;
    pub(super) const READ_STATUS: u8 = 0x70;
    pub(super) const READ_ID: u8 = 0x90;
    pub(super) const QUERY: u8 = 0x98;
    pub(super) const CONFIRM: u8 = 0xd0;
    pub(super) const WRITE_BUFFER: u8 = 0xe8;
}

/// Status register.
mod status {
    pub(super) const READY: u8 = 1 << 7;
    pub(super) const ERASE_ERROR: u8 = 1 << 5;
    pub(super) const PROGRAM_ERROR: u8 = 1 << 4;
}

/// What reads show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Mode {
    Array,
    Status,
    Id,
    Query,
}

/// What the next write is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Next {
    Command,
    /// The byte to program.
    Byte,
    EraseConfirm,
    LockConfirm,
    /// The number of bytes to buffer, less one.
    BufferCount,
    /// Bytes to buffer: this many more.
    BufferData(u16),
    BufferConfirm,
}

/// Registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Registers {
    mode: Mode,
    next: Next,
    status: u8,
    /// Offsets and bytes of a buffered write.
    buffer: Vec<(u32, u8)>,
}

impl Default for Registers {
    fn default() -> Self {
        Self { mode: Mode::Array, next: Next::Command, status: status::READY, buffer: Vec::new() }
    }
}

/// Saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PflashState {
    registers: Registers,
    array: Vec<u8>,
}

impl State for PflashState {
    const NAME: &'static str = "pflash";
    const VERSION: u32 = 1;

    fn validate(&self) -> Result<(), String> {
        let left = match self.registers.next {
            Next::BufferData(left) => usize::from(left),
            _ => 0,
        };
        if self.registers.buffer.len() + left > BUFFER_MAX {
            return Err("a buffered write that is too long".into());
        }
        let len = self.array.len() as u64;
        if self.registers.buffer.iter().any(|(offset, _)| u64::from(*offset) >= len) {
            return Err("a buffered write past the end".into());
        }
        Ok(())
    }
}

struct Inner {
    registers: Registers,
    /// The array's place in memory while it is shown.
    shown: Option<MapId>,
}

/// The flash memory.
pub struct Pflash {
    block: Arc<MemoryBlock>,
    drive: Arc<Drive>,
    memory: Arc<GuestMemory>,
    start: u64,
    inner: Mutex<Inner>,
}

impl Pflash {
    /// Flash memory called `name` with the contents of `drive`, whose size is a multiple of [`SECTOR`],
    /// from guest physical `start` on.
    ///
    /// # Errors
    /// If the drive can't be read or there is no room.
    pub fn new(
        name: &str,
        drive: Arc<Drive>,
        memory: &Arc<GuestMemory>,
        start: u64,
    ) -> Result<Arc<Self>, String> {
        let failed = |e: MemoryError| e.to_string();
        let block = memory.allocate(name, drive.size()).map_err(failed)?;
        let mut buf = vec![0; SECTOR as usize];
        for offset in (0..block.len()).step_by(buf.len()) {
            drive.read_bytes(offset, &mut buf).map_err(|e| e.to_string())?;
            block.write(offset, &buf).map_err(failed)?;
        }
        let inner = Inner { registers: Registers::default(), shown: None };
        let this = Self { block, drive, memory: memory.clone(), start, inner: Mutex::new(inner) };
        this.show(&mut lock(&this.inner));
        Ok(Arc::new(this))
    }

    /// Puts its registers on the bus, beneath the array.
    ///
    /// # Errors
    /// If it would end beyond all addresses.
    pub fn attach(self: &Arc<Self>, mmio: &AddressSpace) -> Result<(), MapError> {
        mmio.map(self.start, self.block.len(), self.clone())?;
        Ok(())
    }

    /// The array.
    pub fn block(&self) -> &Arc<MemoryBlock> {
        &self.block
    }

    /// Shows the array or takes it away, as the mode says.
    fn show(&self, inner: &mut Inner) {
        let wanted = inner.registers.mode == Mode::Array;
        if wanted == inner.shown.is_some() {
            return;
        }
        inner.shown = match inner.shown.take() {
            Some(id) => {
                self.memory.unmap(id);
                None
            }
            None => {
                let mapping = Mapping::new(self.start, &self.block, Access::ROM_DEVICE);
                self.memory.map(mapping).ok()
            }
        };
    }

    /// Puts what changed from `offset` on onto the drive; tells whether that succeeded.
    fn store(&self, offset: u64, len: u64) -> bool {
        let start = offset / DRIVE_BLOCK * DRIVE_BLOCK;
        let end = (offset + len).next_multiple_of(DRIVE_BLOCK).min(self.block.len());
        let mut bytes = vec![0; (end - start) as usize];
        self.block.read(start, &mut bytes).is_ok() && self.drive.write_bytes(start, &bytes).is_ok()
    }

    /// Programs a byte: bits can be cleared, not set. Tells whether it could.
    fn program(&self, offset: u64, byte: u8) -> bool {
        let mut old = [0];
        !self.drive.is_read_only()
            && self.block.read(offset, &mut old).is_ok()
            && self.block.write(offset, &[old[0] & byte]).is_ok()
    }

    fn erase(&self, offset: u64) -> bool {
        let start = offset / SECTOR * SECTOR;
        !self.drive.is_read_only()
            && self.block.write(start, &[0xff; SECTOR as usize]).is_ok()
            && self.store(start, SECTOR)
    }

    /// A write of one byte.
    fn write_byte(&self, registers: &mut Registers, offset: u64, byte: u8) {
        let next = std::mem::replace(&mut registers.next, Next::Command);
        let mut finish = |done: bool, error: u8| {
            registers.status |= status::READY | if done { 0 } else { error };
            registers.mode = Mode::Status;
        };
        match next {
            Next::Command => self.command(registers, byte),
            Next::Byte => {
                finish(self.program(offset, byte) && self.store(offset, 1), status::PROGRAM_ERROR);
            }
            Next::EraseConfirm => {
                let done = byte == command::CONFIRM && self.erase(offset);
                finish(done, status::ERASE_ERROR);
            }
            // Nothing is ever locked.
            Next::LockConfirm => finish(true, 0),
            Next::BufferCount => {
                registers.buffer.clear();
                registers.next = Next::BufferData(u16::from(byte) + 1);
            }
            Next::BufferData(left) => {
                registers.buffer.push((offset as u32, byte));
                registers.next =
                    if left > 1 { Next::BufferData(left - 1) } else { Next::BufferConfirm };
            }
            Next::BufferConfirm => {
                let bytes = std::mem::take(&mut registers.buffer);
                let done = byte == command::CONFIRM && self.program_all(&bytes);
                registers.status |= status::READY;
                if !done {
                    registers.status |= status::PROGRAM_ERROR;
                }
                registers.mode = Mode::Status;
            }
        }
    }

    fn program_all(&self, bytes: &[(u32, u8)]) -> bool {
        let programmed = bytes.iter().all(|&(offset, byte)| self.program(offset.into(), byte));
        let first = bytes.iter().map(|(offset, _)| u64::from(*offset)).min().unwrap_or(0);
        let last = bytes.iter().map(|(offset, _)| u64::from(*offset)).max().unwrap_or(0);
        programmed && self.store(first, last - first + 1)
    }

    fn command(&self, registers: &mut Registers, byte: u8) {
        registers.mode = Mode::Status;
        match byte {
            command::PROGRAM | command::PROGRAM_OTHER => registers.next = Next::Byte,
            command::ERASE => registers.next = Next::EraseConfirm,
            command::LOCK => registers.next = Next::LockConfirm,
            command::WRITE_BUFFER => {
                registers.status |= status::READY;
                registers.next = Next::BufferCount;
            }
            command::READ_STATUS => {}
            command::READ_ID => registers.mode = Mode::Id,
            command::QUERY => registers.mode = Mode::Query,
            // Firmware knows flash memory by a status of zero after this.
            command::CLEAR_STATUS => {
                registers.status = 0;
                registers.mode = Mode::Array;
            }
            _ => registers.mode = Mode::Array,
        }
    }

    fn read_byte(&self, registers: &Registers, offset: u64) -> u8 {
        match registers.mode {
            Mode::Status => registers.status,
            Mode::Id => query::id(offset),
            Mode::Query => query::table(offset, self.block.len()),
            Mode::Array => {
                let mut byte = [0xff];
                let _ = self.block.read(offset, &mut byte);
                byte[0]
            }
        }
    }
}

impl BusDevice for Pflash {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let inner = lock(&self.inner);
        (0..u64::from(size.min(8))).fold(0, |value, i| {
            value | u64::from(self.read_byte(&inner.registers, offset + i)) << (8 * i)
        })
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        let mut inner = lock(&self.inner);
        for i in 0..u64::from(size.min(8)).min(self.block.len() - offset) {
            self.write_byte(&mut inner.registers, offset + i, (value >> (8 * i)) as u8);
        }
        self.show(&mut inner);
    }
}

impl Device for Pflash {
    fn id(&self) -> String {
        self.block.name().to_owned()
    }

    fn reset(&self) {
        let mut inner = lock(&self.inner);
        inner.registers = Registers::default();
        self.show(&mut inner);
    }

    fn save(&self) -> Saved {
        let registers = lock(&self.inner).registers.clone();
        Saved::new(&PflashState { registers, array: self.block.to_vec() })
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let state: PflashState = saved.decode()?;
        let damaged = |reason| RestoreError::Damaged { name: PflashState::NAME, reason };
        if state.array.len() as u64 != self.block.len() {
            return Err(damaged(format!("{} bytes", state.array.len())));
        }
        let mut inner = lock(&self.inner);
        if state.array != self.block.to_vec() {
            self.block.write(0, &state.array).map_err(|e| damaged(e.to_string()))?;
            if !self.drive.is_read_only() {
                self.store(0, self.block.len());
            }
        }
        inner.registers = state.registers;
        self.show(&mut inner);
        Ok(())
    }
}
