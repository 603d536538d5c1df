//! The board's address spaces for an agent that is no CPU: qtest.

use std::sync::Arc;

use accel::CpuBus;
use memory::{Backing, GuestMemory, PAGE_SIZE};

use super::cpu::CpuView;

/// Memory and ports as CPU 0 sees them. Memory is reached directly; everything else by accesses that
/// devices take.
pub struct Door {
    pub(super) memory: Arc<GuestMemory>,
    pub(super) view: CpuView,
}

impl Door {
    /// Reads port `port`; `size` is 1, 2 or 4 bytes.
    pub fn read_port(&self, port: u16, size: u8) -> u32 {
        self.view.read_port(port, size) & (u32::MAX >> (32 - 8 * u32::from(size)))
    }

    /// Writes port `port`; `size` is 1, 2 or 4 bytes.
    pub fn write_port(&self, port: u16, size: u8, value: u32) {
        self.view.write_port(port, size, value & (u32::MAX >> (32 - 8 * u32::from(size))));
    }

    /// Reads `size` bytes, 1, 2, 4 or 8, in one access.
    pub fn load(&self, addr: u64, size: u8) -> u64 {
        let mut bytes = [0; 8];
        let used = &mut bytes[..usize::from(size)];
        if within_page(addr, used.len()) {
            self.read_piece(addr, used);
        } else {
            self.read(addr, used);
        }
        u64::from_le_bytes(bytes)
    }

    /// Writes `size` bytes, 1, 2, 4 or 8, in one access.
    pub fn store(&self, addr: u64, size: u8, value: u64) {
        let bytes = &value.to_le_bytes()[..usize::from(size)];
        if within_page(addr, bytes.len()) {
            self.write_piece(addr, bytes);
        } else {
            self.write(addr, bytes);
        }
    }

    /// Reads a block. What is not memory is read by aligned accesses of up to 4 bytes.
    pub fn read(&self, addr: u64, bytes: &mut [u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let at = addr.wrapping_add(done as u64);
            let is_bus = matches!(self.memory.reads_at(at), Backing::Bus);
            let len = piece(at, bytes.len() - done, is_bus);
            self.read_piece(at, &mut bytes[done..done + len]);
            done += len;
        }
    }

    /// Writes a block. What is not memory is written by aligned accesses of up to 4 bytes.
    pub fn write(&self, addr: u64, bytes: &[u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let at = addr.wrapping_add(done as u64);
            let is_bus = matches!(self.memory.writes_at(at), Backing::Bus);
            let len = piece(at, bytes.len() - done, is_bus);
            self.write_piece(at, &bytes[done..done + len]);
            done += len;
        }
    }

    /// Reads within a page: 1, 2, 4 or 8 bytes if nothing is known of what is there.
    fn read_piece(&self, addr: u64, bytes: &mut [u8]) {
        let done = match self.memory.reads_at(addr) {
            Backing::Ram => self.memory.read(addr, bytes),
            Backing::Block(block, offset) => block.read(offset, bytes),
            Backing::Bus | Backing::Nowhere => {
                let value = self.view.read_mmio(addr, bytes.len() as u8).to_le_bytes();
                bytes.copy_from_slice(&value[..bytes.len()]);
                Ok(())
            }
        };
        debug_assert!(done.is_ok(), "memory ends within a page");
    }

    /// Writes within a page: 1, 2, 4 or 8 bytes if nothing is known of what is there.
    fn write_piece(&self, addr: u64, bytes: &[u8]) {
        let done = match self.memory.writes_at(addr) {
            Backing::Ram => self.memory.write(addr, bytes),
            Backing::Block(block, offset) => block.write(offset, bytes),
            Backing::Bus => {
                let mut value = [0; 8];
                value[..bytes.len()].copy_from_slice(bytes);
                self.view.write_mmio(addr, bytes.len() as u8, u64::from_le_bytes(value));
                Ok(())
            }
            Backing::Nowhere => Ok(()),
        };
        debug_assert!(done.is_ok(), "memory ends within a page");
    }
}

fn within_page(addr: u64, len: usize) -> bool {
    addr % PAGE_SIZE + len as u64 <= PAGE_SIZE
}

/// How much of `addr..addr + left` one call can take: to the end of the page in memory, else an aligned
/// access.
fn piece(addr: u64, left: usize, is_bus: bool) -> usize {
    if !is_bus {
        return left.min((PAGE_SIZE - addr % PAGE_SIZE) as usize);
    }
    let fits = |&size: &usize| size <= left && addr.is_multiple_of(size as u64);
    [4, 2].into_iter().find(fits).unwrap_or(1)
}
