//! The board's address spaces for an agent that is no CPU: qtest.

use std::sync::Arc;

use accel::CpuBus;
use memory::{GuestMemory, PAGE_SIZE};

use super::cpu::CpuView;

/// Memory and ports as CPU 0 sees them. RAM is reached directly; everything else by accesses that
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
        if self.memory.read(addr, used).is_err() {
            let value = self.view.read_mmio(addr, size).to_le_bytes();
            used.copy_from_slice(&value[..usize::from(size)]);
        }
        u64::from_le_bytes(bytes)
    }

    /// Writes `size` bytes, 1, 2, 4 or 8, in one access.
    pub fn store(&self, addr: u64, size: u8, value: u64) {
        let bytes = &value.to_le_bytes()[..usize::from(size)];
        let mut now = [0; 8];
        if self.memory.read(addr, &mut now[..bytes.len()]).is_ok() {
            // All of it is RAM.
            let _ = self.memory.write(addr, bytes);
        } else {
            self.view.write_mmio(addr, size, value & (u64::MAX >> (64 - 8 * u32::from(size))));
        }
    }

    /// Reads a block. What is not RAM is read by aligned accesses of up to 4 bytes.
    pub fn read(&self, addr: u64, bytes: &mut [u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let (at, len) = self.piece(addr.wrapping_add(done as u64), bytes.len() - done);
            let part = &mut bytes[done..done + len];
            if self.memory.read(at, part).is_err() {
                let value = self.view.read_mmio(at, len as u8).to_le_bytes();
                part.copy_from_slice(&value[..len]);
            }
            done += len;
        }
    }

    /// Writes a block. What is not RAM is written by aligned accesses of up to 4 bytes.
    pub fn write(&self, addr: u64, bytes: &[u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let (at, len) = self.piece(addr.wrapping_add(done as u64), bytes.len() - done);
            let part = &bytes[done..done + len];
            if self.memory.write(at, part).is_err() {
                let mut value = [0; 8];
                value[..len].copy_from_slice(part);
                self.view.write_mmio(at, len as u8, u64::from_le_bytes(value));
            }
            done += len;
        }
    }

    /// The longest piece of `addr..addr + left` that one call can take: to the end of the page in RAM,
    /// else an aligned access.
    fn piece(&self, addr: u64, left: usize) -> (u64, usize) {
        if self.memory.is_ram(addr) {
            return (addr, left.min((PAGE_SIZE - addr % PAGE_SIZE) as usize));
        }
        let fits = |&size: &usize| size <= left && addr.is_multiple_of(size as u64);
        (addr, [4, 2].into_iter().find(fits).unwrap_or(1))
    }
}
