//! Video memory: a block of guest memory, mapped where the guest wants it.
//!
//! A byte of each of the four planes makes one 32-bit cell: plane `p` of plane address `a` is byte
//! `4 * a + p`. The linear modes see the same memory byte by byte.

use std::ops::Range;
use std::sync::Arc;

use memory::{GuestMemory, MemoryBlock, MemoryError};

/// The memory of one adapter; its size is a power of two.
pub(super) struct Vram {
    block: Arc<MemoryBlock>,
    len: u32,
}

impl Vram {
    /// Zeroed memory of `len` bytes, a power of two, at least one page.
    ///
    /// # Errors
    /// If the host has no room.
    pub(super) fn new(memory: &GuestMemory, name: &str, len: u32) -> Result<Self, MemoryError> {
        debug_assert!(len.is_power_of_two());
        Ok(Self { block: memory.allocate(name, len.into())?, len })
    }

    /// The block behind it.
    pub(super) fn block(&self) -> &Arc<MemoryBlock> {
        &self.block
    }

    /// Size in bytes.
    pub(super) fn len(&self) -> u32 {
        self.len
    }

    /// `offset` wrapped around at the end.
    fn wrap(&self, offset: u32) -> u64 {
        (offset & (self.len - 1)).into()
    }

    /// The cell that holds byte `offset`, which wraps around at the end.
    pub(super) fn cell(&self, offset: u32) -> u32 {
        let mut bytes = [0; 4];
        // Within the block, so it does not fail; the same below.
        let _ = self.block.read(self.wrap(offset & !3), &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Sets the cell that holds byte `offset`.
    pub(super) fn set_cell(&self, offset: u32, value: u32) {
        let _ = self.block.write(self.wrap(offset & !3), &value.to_le_bytes());
    }

    /// Byte `offset`.
    pub(super) fn byte(&self, offset: u32) -> u8 {
        let mut bytes = [0];
        let _ = self.block.read(self.wrap(offset), &mut bytes);
        bytes[0]
    }

    /// Sets byte `offset`.
    pub(super) fn set_byte(&self, offset: u32, value: u8) {
        let _ = self.block.write(self.wrap(offset), &[value]);
    }

    /// Copies bytes from `offset` on, which wraps around at the end.
    pub(super) fn read(&self, offset: u32, out: &mut [u8]) {
        let mut at = self.wrap(offset);
        let mut rest = out;
        while !rest.is_empty() {
            let count = rest.len().min((u64::from(self.len) - at) as usize);
            let (part, after) = rest.split_at_mut(count);
            let _ = self.block.read(at, part);
            (at, rest) = (0, after);
        }
    }

    /// Clears the first `len` bytes, or all there are.
    pub(super) fn clear(&self, len: u32) {
        const ZEROES: [u8; 4096] = [0; 4096];
        let len = len.min(self.len);
        for offset in (0..len).step_by(ZEROES.len()) {
            let count = (len - offset).min(ZEROES.len() as u32);
            let _ = self.block.write(offset.into(), &ZEROES[..count as usize]);
        }
    }

    /// Which bytes may have been written since they were last asked for.
    pub(super) fn take_dirty(&self) -> Vec<Range<u64>> {
        self.block.take_dirty(0..u64::from(self.len))
    }
}
