//! The firmware configuration device: numbered items and named files that the machine hands to its
//! firmware.
//!
//! Follows the interface's description in QEMU's documentation ("QEMU Firmware Configuration (fw_cfg)
//! Device"): a selector and a data port, and DMA by a command structure in guest memory. Numbers in
//! items are little-endian; the file directory and the DMA registers are big-endian.
//!
//! Invariant: an item's length never changes once the guest runs, as firmware reads the directory early.

mod items;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex};

use bus::{AddressSpace, BusDevice, Device, MapError};
use memory::GuestMemory;
use serde::{Deserialize, Serialize};
use vmstate::{RestoreError, Saved, State};

use crate::lock;
use items::Items;
pub use items::{Content, FileError, MAX_NAME, key};

/// Selector port; the data port follows.
pub const PORT: u16 = 0x510;
/// DMA address register, 8 bytes.
pub const DMA_PORT: u16 = 0x514;

/// What the DMA register reads as: "QEMU CFG".
const DMA_SIGNATURE: u64 = 0x5145_4d55_2043_4647;
/// Interfaces that [`key::ID`] tells of: ports and DMA.
const INTERFACES: u32 = 0b11;
/// Selected when an item was selected that can't be.
const NOTHING: u16 = 0xffff;
/// The selector's bits that name an item.
const KEY_BITS: u16 = 0x3fff | key::ARCH;

/// The DMA command's bits; the key to select is above.
pub mod control {
    /// The command failed; set by the device.
    pub const ERROR: u32 = 1 << 0;
    /// Copy from the item to memory.
    pub const READ: u32 = 1 << 1;
    /// Go on in the item without copying.
    pub const SKIP: u32 = 1 << 2;
    /// Select an item first.
    pub const SELECT: u32 = 1 << 3;
    /// Copy from memory to the item.
    pub const WRITE: u32 = 1 << 4;
}

/// Bytes that are moved at a time.
const CHUNK: usize = 4096;

/// Saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FwCfgState {
    /// The item that is read; [`NOTHING`] for none.
    selected: u16,
    /// The byte of it that is next.
    offset: u32,
    /// Upper half of the DMA address, until the lower is written.
    dma_high: u32,
    /// What the guest wrote into files, by name.
    written: Vec<(String, Vec<u8>)>,
}

impl State for FwCfgState {
    const NAME: &'static str = "fw_cfg";
    const VERSION: u32 = 1;

    fn validate(&self) -> Result<(), String> {
        if self.selected != NOTHING && self.selected & !KEY_BITS != 0 {
            return Err(format!("selected item {:#x}", self.selected));
        }
        Ok(())
    }
}

struct Registers {
    selected: u16,
    offset: u32,
    dma_high: u32,
    items: Items,
}

impl Registers {
    fn select(&mut self, key: u16) {
        self.offset = 0;
        let key = key & KEY_BITS;
        self.selected = if self.items.is_key(key) { key } else { NOTHING };
        self.items.refresh(key);
    }

    /// Reads on; past the end, and where nothing is, there are zeroes.
    fn read(&mut self, buf: &mut [u8]) {
        buf.fill(0);
        let data = self.items.data(self.selected);
        let rest = data.get(self.offset as usize..).unwrap_or_default();
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        self.skip(len as u32);
    }

    fn skip(&mut self, len: u32) {
        let end = self.items.data(self.selected).len() as u32;
        self.offset = self.offset.saturating_add(len).min(end.max(self.offset));
    }
}

/// The device.
pub struct FwCfg {
    memory: Arc<GuestMemory>,
    registers: Mutex<Registers>,
}

impl FwCfg {
    /// A device without files, whose DMA goes to `memory`.
    pub fn new(memory: Arc<GuestMemory>) -> Arc<Self> {
        let mut items = Items::default();
        items.set(key::SIGNATURE, Content::Fixed(b"QEMU".to_vec()));
        items.set(key::ID, Content::Fixed(INTERFACES.to_le_bytes().to_vec()));
        let registers = Registers { selected: key::SIGNATURE, offset: 0, dma_high: 0, items };
        Arc::new(Self { memory, registers: Mutex::new(registers) })
    }

    /// Maps the ports.
    ///
    /// # Errors
    /// Never in a space of 64 Ki ports.
    pub fn attach(self: &Arc<Self>, ports: &AddressSpace) -> Result<(), MapError> {
        ports.map(PORT.into(), 2, Arc::new(Ports(self.clone())))?;
        ports.map(DMA_PORT.into(), 8, Arc::new(DmaPorts(self.clone())))?;
        Ok(())
    }

    /// Sets the item `key`, one of [`key`]. Before the guest runs.
    pub fn set(&self, key: u16, data: impl Into<Vec<u8>>) {
        lock(&self.registers).items.set(key, Content::Fixed(data.into()));
    }

    /// Adds the file `name`, or replaces it by one of the same length. Before the guest runs.
    ///
    /// # Errors
    /// If the name is too long or there are too many files.
    pub fn add_file(&self, name: &str, content: Content) -> Result<(), FileError> {
        lock(&self.registers).items.add_file(name, content)
    }

    /// Whether there is a file `name`.
    pub fn has_file(&self, name: &str) -> bool {
        lock(&self.registers).items.file(name).is_some()
    }

    /// The guest's DMA command at `address`.
    fn command(&self, address: u64) {
        let mut command = [0; 16];
        if self.memory.read(address, &mut command).is_err() {
            return;
        }
        let word = |at: usize| u32::from_be_bytes([0, 1, 2, 3].map(|i| command[at + i]));
        let (bits, length) = (word(0), word(4));
        let target = u64::from(word(8)) << 32 | u64::from(word(12));
        let done = self.execute(bits, length, target);
        let answer = if done { 0u32 } else { control::ERROR };
        // There is nobody to tell if the structure has gone.
        let _ = self.memory.write(address, &answer.to_be_bytes());
    }

    /// Carries a command out; tells whether it could.
    fn execute(&self, bits: u32, length: u32, target: u64) -> bool {
        let mut registers = lock(&self.registers);
        if bits & control::SELECT != 0 {
            registers.select((bits >> 16) as u16);
        }
        if bits & control::READ != 0 {
            self.read_to_guest(&mut registers, length, target)
        } else if bits & control::WRITE != 0 {
            self.write_from_guest(&mut registers, length, target)
        } else if bits & control::SKIP != 0 {
            registers.skip(length);
            true
        } else {
            true
        }
    }

    fn read_to_guest(&self, registers: &mut Registers, length: u32, target: u64) -> bool {
        let mut buf = [0; CHUNK];
        let mut done = 0;
        while done < u64::from(length) {
            let len = (u64::from(length) - done).min(CHUNK as u64) as usize;
            registers.read(&mut buf[..len]);
            let Some(at) = target.checked_add(done) else { return false };
            if self.memory.write(at, &buf[..len]).is_err() {
                return false;
            }
            done += len as u64;
        }
        true
    }

    fn write_from_guest(&self, registers: &mut Registers, length: u32, target: u64) -> bool {
        let (selected, offset) = (registers.selected, registers.offset as usize);
        let Some(room) = registers.items.writable(selected) else { return false };
        let Some(end) = offset.checked_add(length as usize).filter(|&end| end <= room) else {
            return false;
        };
        let mut data = vec![0; end - offset];
        if self.memory.read(target, &mut data).is_err() {
            return false;
        }
        registers.items.write(selected, offset, &data);
        registers.skip(length);
        true
    }
}

/// The selector and data ports.
struct Ports(Arc<FwCfg>);

impl BusDevice for Ports {
    fn read(&self, _offset: u64, size: u8) -> u64 {
        if size != 1 {
            return u64::MAX >> (64 - 8 * u32::from(size.clamp(1, 8)));
        }
        let mut byte = [0];
        lock(&self.0.registers).read(&mut byte);
        byte[0].into()
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        // Writing data was given up long ago.
        if (offset, size) == (0, 2) {
            lock(&self.0.registers).select(value as u16);
        }
    }
}

/// The DMA address register.
struct DmaPorts(Arc<FwCfg>);

impl BusDevice for DmaPorts {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let bytes = DMA_SIGNATURE.to_be_bytes();
        (0..u64::from(size.min(8))).fold(0, |value, i| {
            let byte = bytes.get((offset + i) as usize).copied().unwrap_or(0xff);
            value | u64::from(byte) << (8 * i)
        })
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        let half = (value as u32).swap_bytes();
        let address = match (offset, size) {
            (0, 8) => value.swap_bytes(),
            (0, 4) => {
                lock(&self.0.registers).dma_high = half;
                return;
            }
            (4, 4) => {
                let high = std::mem::take(&mut lock(&self.0.registers).dma_high);
                u64::from(high) << 32 | u64::from(half)
            }
            _ => return,
        };
        self.0.command(address);
    }
}

impl Device for FwCfg {
    fn id(&self) -> String {
        "fw_cfg".into()
    }

    fn reset(&self) {
        let mut registers = lock(&self.registers);
        registers.dma_high = 0;
        registers.items.reset();
        registers.select(key::SIGNATURE);
    }

    fn save(&self) -> Saved {
        let Registers { selected, offset, dma_high, items } = &*lock(&self.registers);
        Saved::new(&FwCfgState {
            selected: *selected,
            offset: *offset,
            dma_high: *dma_high,
            written: items.written(),
        })
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let state: FwCfgState = saved.decode()?;
        let mut registers = lock(&self.registers);
        let damaged = |reason| RestoreError::Damaged { name: FwCfgState::NAME, reason };
        if state.selected != NOTHING && !registers.items.is_key(state.selected) {
            return Err(damaged(format!("there is no item {:#x}", state.selected)));
        }
        registers.items.restore(&state.written).map_err(damaged)?;
        registers.selected = state.selected;
        registers.offset = state.offset;
        registers.dma_high = state.dma_high;
        registers.items.refresh(state.selected);
        Ok(())
    }
}
