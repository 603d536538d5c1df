//! The window at A0000: how the processor reaches the planes.
//!
//! Chain 4 shows the memory byte by byte, odd/even mode two planes at a time, and the planar modes all
//! four, through the graphics controller's logic unit.

use super::registers::{Registers, gfx, seq};
use super::vram::Vram;

/// Guest physical address of the window.
pub(super) const WINDOW: u64 = 0xa_0000;
/// Its size in bytes.
pub(super) const WINDOW_SIZE: u64 = 0x2_0000;

/// A byte in all four planes.
fn spread(byte: u8) -> u32 {
    u32::from(byte) * 0x0101_0101
}

/// All bits of those planes whose bit is set in `planes`.
fn plane_bits(planes: u8) -> u32 {
    (0..4).filter(|plane| planes >> plane & 1 != 0).map(|plane| 0xff << (8 * plane)).sum()
}

impl Registers {
    /// Where byte `offset` of the window is in memory, and how large the part is that answers there.
    fn translate(&self, offset: u32) -> Option<u32> {
        let (first, size, base) = self.window();
        let offset = offset.checked_sub(first).filter(|&offset| offset < size)?;
        Some(base + offset)
    }

    /// The part of the window that answers: its first byte and its size, and the offset in memory that
    /// goes with it, all in bytes.
    fn window(&self) -> (u32, u32, u32) {
        match self.graphics[gfx::MISC] >> 2 & 3 {
            0 => (0, 0x2_0000, 0),
            1 => (0, 0x1_0000, self.vbe.bank_offset()),
            2 => (0x1_0000, 0x8000, 0),
            _ => (0x1_8000, 0x8000, 0),
        }
    }

    /// If the window shows memory byte by byte, so that it needs no help of ours: the part of it, as by
    /// [`Registers::window`].
    pub(super) fn direct_window(&self) -> Option<(u32, u32, u32)> {
        let chained = self.sequencer[seq::MEMORY_MODE] & seq::MEMORY_CHAIN_4 != 0;
        let all = self.sequencer[seq::MAP_MASK] & 0xf == 0xf;
        (chained && all).then(|| self.window())
    }

    /// The processor reads byte `offset` of the window.
    pub(super) fn read_window(&mut self, vram: &Vram, offset: u32) -> u8 {
        let Some(at) = self.translate(offset) else { return 0xff };
        if self.sequencer[seq::MEMORY_MODE] & seq::MEMORY_CHAIN_4 != 0 {
            return if at < vram.len() { vram.byte(at) } else { 0xff };
        }
        let mode = self.graphics[gfx::MODE];
        let odd_even = mode & gfx::MODE_ODD_EVEN != 0;
        let cell = if odd_even { (at & !1) << 1 } else { at << 2 };
        if cell >= vram.len() {
            return 0xff;
        }
        self.latch = vram.cell(cell);
        let planes = self.latch.to_le_bytes();
        let plane = self.graphics[gfx::READ_MAP] & 3;
        if odd_even {
            planes[usize::from(plane & 2 | at as u8 & 1)]
        } else if mode & gfx::MODE_READ_COMPARE == 0 {
            planes[usize::from(plane)]
        } else {
            let wanted = plane_bits(self.graphics[gfx::COLOR_COMPARE]);
            let cared = plane_bits(self.graphics[gfx::COLOR_DONT_CARE]);
            let differs = ((self.latch ^ wanted) & cared).to_le_bytes();
            !differs.into_iter().fold(0, |all, plane| all | plane)
        }
    }

    /// The processor writes byte `offset` of the window.
    pub(super) fn write_window(&mut self, vram: &Vram, offset: u32, value: u8) {
        let Some(at) = self.translate(offset) else { return };
        let map_mask = self.sequencer[seq::MAP_MASK];
        if self.sequencer[seq::MEMORY_MODE] & seq::MEMORY_CHAIN_4 != 0 {
            if at < vram.len() && map_mask >> (at & 3) & 1 != 0 {
                vram.set_byte(at, value);
            }
            return;
        }
        if self.graphics[gfx::MODE] & gfx::MODE_ODD_EVEN != 0 {
            let plane = u32::from(self.graphics[gfx::READ_MAP] & 2) | at & 1;
            let byte = (at & !1) << 1 | plane;
            if byte < vram.len() && map_mask >> plane & 1 != 0 {
                vram.set_byte(byte, value);
            }
            return;
        }
        let cell = at << 2;
        if cell >= vram.len() {
            return;
        }
        let written = plane_bits(map_mask);
        let data = self.logic_unit(value);
        let old = if written == u32::MAX { 0 } else { vram.cell(cell) };
        vram.set_cell(cell, old & !written | data & written);
    }

    /// What a write of `value` makes of the latched cell.
    fn logic_unit(&self, value: u8) -> u32 {
        let g = &self.graphics;
        let rotated = value.rotate_right(u32::from(g[gfx::ROTATE] & 7));
        let set_reset = plane_bits(g[gfx::SET_RESET]);
        let (data, bit_mask) = match g[gfx::MODE] & 3 {
            0 => {
                let enabled = plane_bits(g[gfx::ENABLE_SET_RESET]);
                (spread(rotated) & !enabled | set_reset & enabled, g[gfx::BIT_MASK])
            }
            1 => return self.latch,
            2 => (plane_bits(value), g[gfx::BIT_MASK]),
            _ => (set_reset, g[gfx::BIT_MASK] & rotated),
        };
        let combined = match g[gfx::ROTATE] >> 3 & 3 {
            0 => data,
            1 => data & self.latch,
            2 => data | self.latch,
            _ => data ^ self.latch,
        };
        let bit_mask = spread(bit_mask);
        combined & bit_mask | self.latch & !bit_mask
    }
}
