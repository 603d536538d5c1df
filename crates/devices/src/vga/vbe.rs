//! The Bochs display interface ("dispi"): modes beyond VGA's, set by sixteen-bit registers. Described in
//! the documentation of the Bochs VBE interface and in the drivers that use it (Linux' `bochs`).

use serde::{Deserialize, Serialize};

use super::registers::{Registers, crtc, gfx, seq};

/// Register numbers.
pub(super) mod index {
    pub(in crate::vga) const ID: usize = 0;
    pub(in crate::vga) const X_RES: usize = 1;
    pub(in crate::vga) const Y_RES: usize = 2;
    pub(in crate::vga) const BPP: usize = 3;
    pub(in crate::vga) const ENABLE: usize = 4;
    pub(in crate::vga) const BANK: usize = 5;
    pub(in crate::vga) const VIRT_WIDTH: usize = 6;
    pub(in crate::vga) const VIRT_HEIGHT: usize = 7;
    pub(in crate::vga) const X_OFFSET: usize = 8;
    pub(in crate::vga) const Y_OFFSET: usize = 9;
    pub(in crate::vga) const VIDEO_MEMORY_64K: usize = 10;
}

/// Enable: the registers rule the screen.
const ENABLED: u16 = 1;
/// Enable: resolution and depth read as the most that there is.
const GET_CAPS: u16 = 2;
/// Enable: the palette has 8 bits a component.
const WIDE_DAC: u16 = 0x20;
/// Enable: memory keeps its contents.
const NO_CLEAR: u16 = 0x80;

/// Versions of the interface that software may ask for, the last one being the default.
const IDS: std::ops::RangeInclusive<u16> = 0xb0c0..=0xb0c5;
const MAX_X: u16 = 16000;
const MAX_Y: u16 = 12000;
const MAX_BPP: u16 = 32;
/// Bytes in a bank.
const BANK_SIZE: u32 = 0x1_0000;

/// The registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Vbe {
    index: u16,
    values: [u16; 10],
}

impl Vbe {
    pub(super) fn new() -> Self {
        let mut values = [0; 10];
        values[index::ID] = *IDS.end();
        Self { index: 0, values }
    }

    pub(super) fn validate(&self, vram: u32) -> Result<(), String> {
        let mut fixed = self.clone();
        fixed.fix(vram);
        let banks = vram / BANK_SIZE;
        let bank = u32::from(self.values[index::BANK]);
        if fixed != *self || !IDS.contains(&self.values[index::ID]) || bank > banks {
            return Err("impossible VBE registers".into());
        }
        Ok(())
    }

    fn value(&self, index: usize) -> u32 {
        self.values[index].into()
    }

    /// Whether the registers rule the screen.
    pub(super) fn is_enabled(&self) -> bool {
        self.values[index::ENABLE] & ENABLED != 0
    }

    /// Whether the palette has 8 bits a component.
    pub(super) fn wide_dac(&self) -> bool {
        self.values[index::ENABLE] & WIDE_DAC != 0
    }

    /// Width and height in pixels.
    pub(super) fn size(&self) -> (u32, u32) {
        (self.value(index::X_RES), self.value(index::Y_RES))
    }

    /// Bits a pixel: 4, 8, 15, 16, 24 or 32.
    pub(super) fn depth(&self) -> u32 {
        self.value(index::BPP)
    }

    /// Bytes from one line to the next.
    pub(super) fn pitch(&self) -> u32 {
        self.value(index::VIRT_WIDTH) * bits(self.values[index::BPP]) / 8
    }

    /// Offset in memory of the first pixel shown, in bytes, whole cells.
    pub(super) fn start(&self) -> u32 {
        let x = self.value(index::X_OFFSET) * bits(self.values[index::BPP]) / 8;
        (x + self.value(index::Y_OFFSET) * self.pitch()) & !3
    }

    /// What the 64 KiB window at A0000 begins at in memory, in bytes.
    pub(super) fn bank_offset(&self) -> u32 {
        if self.is_enabled() { self.value(index::BANK) * BANK_SIZE } else { 0 }
    }

    /// Makes the registers, if they are enabled, ones that `vram` bytes of memory can show.
    fn fix(&mut self, vram: u32) {
        if !self.is_enabled() {
            return;
        }
        let v = &mut self.values;
        if !matches!(v[index::BPP], 4 | 8 | 15 | 16 | 24 | 32) {
            v[index::BPP] = 8;
        }
        let depth = bits(v[index::BPP]);
        v[index::X_RES] = (v[index::X_RES] & !7).clamp(8, MAX_X);
        v[index::VIRT_WIDTH] = (v[index::VIRT_WIDTH] & !7).min(MAX_X).max(v[index::X_RES]);
        let pitch = u32::from(v[index::VIRT_WIDTH]) * depth / 8;
        let lines = vram / pitch;
        let most = lines.clamp(1, MAX_Y.into()) as u16;
        v[index::Y_RES] = v[index::Y_RES].clamp(1, most);
        v[index::X_OFFSET] = v[index::X_OFFSET].min(MAX_X);
        v[index::Y_OFFSET] = v[index::Y_OFFSET].min(MAX_Y);
        let shown = u32::from(v[index::Y_RES]) * pitch;
        let fits = |x: u16, y: u16| u32::from(x) * depth / 8 + u32::from(y) * pitch + shown <= vram;
        if !fits(v[index::X_OFFSET], v[index::Y_OFFSET]) {
            v[index::Y_OFFSET] = 0;
            if !fits(v[index::X_OFFSET], 0) {
                v[index::X_OFFSET] = 0;
            }
        }
        v[index::VIRT_HEIGHT] = lines.min(u16::MAX.into()) as u16;
    }

    /// The number of the register that is selected.
    pub(super) fn index(&self) -> u16 {
        self.index
    }

    pub(super) fn set_index(&mut self, index: u16) {
        self.index = index;
    }

    /// Reads the register that is selected.
    pub(super) fn read_selected(&self, vram: u32) -> u16 {
        self.read(self.index.into(), vram)
    }

    /// Reads register `number`.
    pub(super) fn read(&self, number: usize, vram: u32) -> u16 {
        let caps = self.values[index::ENABLE] & GET_CAPS != 0;
        match number {
            index::X_RES if caps => MAX_X,
            index::Y_RES if caps => MAX_Y,
            index::BPP if caps => MAX_BPP,
            index::VIDEO_MEMORY_64K => (vram / BANK_SIZE) as u16,
            _ => self.values.get(number).copied().unwrap_or(0),
        }
    }
}

/// Bits that a pixel of this depth takes.
fn bits(depth: u16) -> u32 {
    if depth == 15 { 16 } else { depth.into() }
}

impl Registers {
    /// Writes the VBE register that is selected. Returns how much of the memory is to be cleared, in
    /// bytes from its start; `vram` is its size.
    pub(super) fn write_vbe_selected(&mut self, value: u16, vram: u32) -> u32 {
        self.write_vbe(self.vbe.index.into(), value, vram)
    }

    /// Writes VBE register `number`; see [`Registers::write_vbe_selected`].
    pub(super) fn write_vbe(&mut self, number: usize, value: u16, vram: u32) -> u32 {
        let vbe = &mut self.vbe;
        match number {
            index::ID if IDS.contains(&value) => vbe.values[index::ID] = value,
            index::X_RES
            | index::Y_RES
            | index::BPP
            | index::VIRT_WIDTH
            | index::X_OFFSET
            | index::Y_OFFSET => {
                vbe.values[number] = value;
                vbe.fix(vram);
                self.vbe_rules();
            }
            index::BANK => {
                let banks = vram / BANK_SIZE;
                vbe.values[index::BANK] = (u32::from(value) & banks.saturating_sub(1)) as u16;
            }
            index::ENABLE => return self.enable_vbe(value, vram),
            _ => {}
        }
        0
    }

    fn enable_vbe(&mut self, value: u16, vram: u32) -> u32 {
        let vbe = &mut self.vbe;
        let begins = value & ENABLED != 0 && !vbe.is_enabled();
        vbe.values[index::ENABLE] = value;
        if !begins {
            return 0;
        }
        vbe.values[index::VIRT_WIDTH] = 0;
        vbe.values[index::X_OFFSET] = 0;
        vbe.values[index::Y_OFFSET] = 0;
        vbe.fix(vram);
        self.vbe_rules();
        let vbe = &self.vbe;
        if value & NO_CLEAR != 0 { 0 } else { vbe.size().1 * vbe.pitch() }
    }

    /// While VBE rules the screen, the VGA's registers say what fits the mode, for software that looks
    /// there.
    pub(super) fn vbe_rules(&mut self) {
        if !self.vbe.is_enabled() {
            return;
        }
        let (width, height) = self.vbe.size();
        let planar = self.vbe.depth() == 4;
        let g = &mut self.graphics;
        g[gfx::MISC] = g[gfx::MISC] & !0x0c | 0x04 | gfx::MISC_GRAPHICS;
        let c = &mut self.crtc;
        c[crtc::MODE] |= 3;
        c[crtc::OFFSET] = (self.vbe.pitch() >> 3) as u8;
        c[crtc::H_DISPLAY_END] = ((width >> 3) - 1) as u8;
        let last = height - 1;
        c[crtc::V_DISPLAY_END] = last as u8;
        let overflow = (last >> 7 & 2 | last >> 3 & 0x40) as u8;
        // The line compare is out of the way: all its bits are set.
        c[crtc::OVERFLOW] = c[crtc::OVERFLOW] & !0x42 | overflow | crtc::OVERFLOW_LINE_COMPARE;
        c[crtc::LINE_COMPARE] = 0xff;
        c[crtc::MAX_SCAN] = c[crtc::MAX_SCAN] & !0x9f | 0x40;
        if planar {
            self.sequencer[seq::CLOCKING] &= !seq::CLOCKING_HALF;
            g[gfx::MODE] &= !0x60;
        } else {
            self.sequencer[seq::MEMORY_MODE] |= seq::MEMORY_CHAIN_4;
            self.sequencer[seq::MAP_MASK] |= 0x0f;
            g[gfx::MODE] = g[gfx::MODE] & !0x60 | 0x40;
        }
    }
}
