//! The registers of a VGA behind its ports: miscellaneous output, sequencer, CRT controller, graphics
//! controller, attribute controller and DAC (IBM, "PS/2 Video Subsystem Technical Reference", 1992).

use serde::{Deserialize, Serialize};

use super::vbe::Vbe;

/// Sequencer registers.
pub(super) mod seq {
    pub(in crate::vga) const CLOCKING: usize = 1;
    pub(in crate::vga) const MAP_MASK: usize = 2;
    pub(in crate::vga) const CHARACTER_MAP: usize = 3;
    pub(in crate::vga) const MEMORY_MODE: usize = 4;

    /// Clocking: characters are 8 dots wide, not 9.
    pub(in crate::vga) const CLOCKING_8_DOTS: u8 = 1;
    /// Clocking: each dot is twice as wide.
    pub(in crate::vga) const CLOCKING_HALF: u8 = 1 << 3;
    /// Memory mode: the address' low bits select the plane.
    pub(in crate::vga) const MEMORY_CHAIN_4: u8 = 1 << 3;
}

/// Graphics controller registers.
pub(super) mod gfx {
    pub(in crate::vga) const SET_RESET: usize = 0;
    pub(in crate::vga) const ENABLE_SET_RESET: usize = 1;
    pub(in crate::vga) const COLOR_COMPARE: usize = 2;
    pub(in crate::vga) const ROTATE: usize = 3;
    pub(in crate::vga) const READ_MAP: usize = 4;
    pub(in crate::vga) const MODE: usize = 5;
    pub(in crate::vga) const MISC: usize = 6;
    pub(in crate::vga) const COLOR_DONT_CARE: usize = 7;
    pub(in crate::vga) const BIT_MASK: usize = 8;

    /// Mode: compare colours on reads.
    pub(in crate::vga) const MODE_READ_COMPARE: u8 = 1 << 3;
    /// Mode: the address' low bit selects between even and odd planes.
    pub(in crate::vga) const MODE_ODD_EVEN: u8 = 1 << 4;
    /// Misc: graphics, not text.
    pub(in crate::vga) const MISC_GRAPHICS: u8 = 1;
}

/// CRT controller registers.
pub(super) mod crtc {
    pub(in crate::vga) const H_TOTAL: usize = 0x00;
    pub(in crate::vga) const H_DISPLAY_END: usize = 0x01;
    pub(in crate::vga) const V_TOTAL: usize = 0x06;
    pub(in crate::vga) const OVERFLOW: usize = 0x07;
    pub(in crate::vga) const PRESET_ROW: usize = 0x08;
    pub(in crate::vga) const MAX_SCAN: usize = 0x09;
    pub(in crate::vga) const CURSOR_START: usize = 0x0a;
    pub(in crate::vga) const CURSOR_END: usize = 0x0b;
    pub(in crate::vga) const START_HIGH: usize = 0x0c;
    pub(in crate::vga) const START_LOW: usize = 0x0d;
    pub(in crate::vga) const CURSOR_HIGH: usize = 0x0e;
    pub(in crate::vga) const CURSOR_LOW: usize = 0x0f;
    pub(in crate::vga) const V_RETRACE_START: usize = 0x10;
    pub(in crate::vga) const V_RETRACE_END: usize = 0x11;
    pub(in crate::vga) const V_DISPLAY_END: usize = 0x12;
    pub(in crate::vga) const OFFSET: usize = 0x13;
    pub(in crate::vga) const MODE: usize = 0x17;
    pub(in crate::vga) const LINE_COMPARE: usize = 0x18;

    /// Vertical retrace end: registers 0 to 7 can't be written.
    pub(in crate::vga) const PROTECT: u8 = 0x80;
    /// Overflow: bit 8 of the line compare, which stays writable.
    pub(in crate::vga) const OVERFLOW_LINE_COMPARE: u8 = 0x10;
}

/// Attribute controller registers.
pub(super) mod attr {
    pub(in crate::vga) const MODE: usize = 0x10;
    pub(in crate::vga) const PLANE_ENABLE: usize = 0x12;
    pub(in crate::vga) const PANNING: usize = 0x13;
    pub(in crate::vga) const COLOR_SELECT: usize = 0x14;

    /// Index: the palette drives the screen, which is dark otherwise.
    pub(in crate::vga) const INDEX_SCREEN_ON: u8 = 0x20;
    /// Mode: the ninth dot of line graphics repeats the eighth.
    pub(in crate::vga) const MODE_LINE_GRAPHICS: u8 = 1 << 2;
    /// Mode: the line compare ends panning.
    pub(in crate::vga) const MODE_PAN_SPLIT: u8 = 1 << 5;
    /// Mode: two more bits of a colour come from the colour select register.
    pub(in crate::vga) const MODE_COLOR_SELECT: u8 = 1 << 7;
}

/// Miscellaneous output: the controller is at 3Dx, not 3Bx.
const MISC_COLOR: u8 = 1;

/// Bits that exist.
const SEQUENCER_BITS: [u8; 8] = [0x03, 0x3d, 0x0f, 0x3f, 0x0e, 0, 0, 0xff];
const GRAPHICS_BITS: [u8; 16] =
    [0x0f, 0x0f, 0x0f, 0x1f, 0x03, 0x7b, 0x0f, 0x0f, 0xff, 0, 0, 0, 0, 0, 0, 0];
/// Registers of the CRT controller.
const CRTC_COUNT: usize = 0x19;
/// Registers of the attribute controller.
const ATTRIBUTE_COUNT: usize = 0x15;
const ATTRIBUTE_BITS: [u8; ATTRIBUTE_COUNT] = [
    0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f,
    0xef, 0xff, 0x3f, 0x0f, 0x0f,
];

/// The palette and the way to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Dac {
    /// Red, green and blue of each colour, as written.
    colors: Vec<[u8; 3]>,
    /// Which bits of a pixel choose the colour.
    pub(super) pixel_mask: u8,
    read_index: u8,
    write_index: u8,
    /// Which of red, green and blue is next.
    component: u8,
    /// Components written before the third completes the colour.
    partial: [u8; 2],
    /// Whether the last index was for writing.
    writing: bool,
}

impl Dac {
    fn new() -> Self {
        Self {
            colors: vec![[0; 3]; 256],
            pixel_mask: 0xff,
            read_index: 0,
            write_index: 0,
            component: 0,
            partial: [0; 2],
            writing: true,
        }
    }

    /// What colour `index` looks like, `0x00RRGGBB`; components have 8 bits each if `wide`, else 6.
    pub(super) fn color(&self, index: u8, wide: bool) -> u32 {
        let [red, green, blue] = self.colors[usize::from(index & self.pixel_mask)].map(|c| {
            let six = c & 0x3f;
            if wide { c } else { six << 2 | (six & 1) << 1 | six & 1 }
        });
        u32::from_be_bytes([0, red, green, blue])
    }

    fn read(&mut self) -> u8 {
        let value = self.colors[usize::from(self.read_index)][usize::from(self.component)];
        self.component += 1;
        if self.component == 3 {
            self.component = 0;
            self.read_index = self.read_index.wrapping_add(1);
        }
        value
    }

    fn write(&mut self, value: u8) {
        if let Some(part) = self.partial.get_mut(usize::from(self.component)) {
            *part = value;
            self.component += 1;
        } else {
            let [red, green] = self.partial;
            self.colors[usize::from(self.write_index)] = [red, green, value];
            self.component = 0;
            self.write_index = self.write_index.wrapping_add(1);
        }
    }
}

/// All registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Registers {
    pub(super) misc: u8,
    feature: u8,
    sequencer_index: u8,
    pub(super) sequencer: [u8; 8],
    graphics_index: u8,
    pub(super) graphics: [u8; 16],
    crtc_index: u8,
    pub(super) crtc: [u8; CRTC_COUNT],
    pub(super) attribute_index: u8,
    /// The next write to the attribute controller is data.
    attribute_data: bool,
    pub(super) attribute: [u8; ATTRIBUTE_COUNT],
    pub(super) dac: Dac,
    /// The four planes as last read.
    pub(super) latch: u32,
    pub(super) vbe: Vbe,
}

impl Registers {
    pub(super) fn new() -> Self {
        Self {
            misc: 0,
            feature: 0,
            sequencer_index: 0,
            sequencer: [0; 8],
            graphics_index: 0,
            graphics: [0; 16],
            crtc_index: 0,
            crtc: [0; CRTC_COUNT],
            attribute_index: 0,
            attribute_data: false,
            attribute: [0; ATTRIBUTE_COUNT],
            dac: Dac::new(),
            latch: 0,
            vbe: Vbe::new(),
        }
    }

    /// Checks what a restored state must have; `vram` is the size of the memory in bytes.
    pub(super) fn validate(&self, vram: u32) -> Result<(), String> {
        let masked = |values: &[u8], bits: &[u8]| values.iter().zip(bits).all(|(v, b)| v & !b == 0);
        let fits = self.dac.colors.len() == 256
            && self.dac.component < 3
            && self.sequencer_index < 8
            && self.graphics_index < 16
            && self.attribute_index < 64
            && masked(&self.attribute, &ATTRIBUTE_BITS)
            && masked(&self.sequencer, &SEQUENCER_BITS)
            && masked(&self.graphics, &GRAPHICS_BITS);
        if !fits {
            return Err("a register has a value that it can't have".into());
        }
        self.vbe.validate(vram)
    }

    /// Whether the ports of the CRT controller at 3Bx or 3Dx, whichever `port` is, are the ones in use.
    fn decodes(&self, port: u16) -> bool {
        match port {
            0x3b0..=0x3bf => self.misc & MISC_COLOR == 0,
            0x3d0..=0x3df => self.misc & MISC_COLOR != 0,
            _ => true,
        }
    }

    /// Reads `port`, 0x3b0 to 0x3df, at guest time `now_ns`.
    pub(super) fn read(&mut self, port: u16, now_ns: u64) -> u8 {
        if !self.decodes(port) {
            return 0xff;
        }
        match port {
            0x3c0 if !self.attribute_data => self.attribute_index,
            0x3c0 => 0,
            0x3c1 => {
                self.attribute.get(usize::from(self.attribute_index & 0x1f)).copied().unwrap_or(0)
            }
            0x3c4 => self.sequencer_index,
            0x3c5 => self.sequencer[usize::from(self.sequencer_index)],
            0x3c6 => self.dac.pixel_mask,
            0x3c7 => {
                if self.dac.writing {
                    0
                } else {
                    3
                }
            }
            0x3c8 => self.dac.write_index,
            0x3c9 => self.dac.read(),
            0x3ca => self.feature,
            0x3cc => self.misc,
            0x3ce => self.graphics_index,
            0x3cf => self.graphics[usize::from(self.graphics_index)],
            0x3b4 | 0x3d4 => self.crtc_index,
            0x3b5 | 0x3d5 => self.crtc.get(usize::from(self.crtc_index)).copied().unwrap_or(0),
            0x3ba | 0x3da => {
                self.attribute_data = false;
                self.status(now_ns)
            }
            _ => 0,
        }
    }

    /// Writes `port`, 0x3b0 to 0x3df.
    pub(super) fn write(&mut self, port: u16, value: u8) {
        if !self.decodes(port) {
            return;
        }
        match port {
            0x3c0 => self.write_attribute(value),
            0x3c2 => self.misc = value & !0x10,
            0x3c4 => self.sequencer_index = value & 7,
            0x3c5 => {
                let index = usize::from(self.sequencer_index);
                self.sequencer[index] = value & SEQUENCER_BITS[index];
            }
            0x3c6 => self.dac.pixel_mask = value,
            0x3c7 => {
                self.dac.read_index = value;
                (self.dac.component, self.dac.writing) = (0, false);
            }
            0x3c8 => {
                self.dac.write_index = value;
                (self.dac.component, self.dac.writing) = (0, true);
            }
            0x3c9 => self.dac.write(value),
            0x3ce => self.graphics_index = value & 0xf,
            0x3cf => {
                let index = usize::from(self.graphics_index);
                self.graphics[index] = value & GRAPHICS_BITS[index];
                self.vbe_rules();
            }
            0x3b4 | 0x3d4 => self.crtc_index = value,
            0x3b5 | 0x3d5 => self.write_crtc(value),
            0x3ba | 0x3da => self.feature = value & 0x10,
            _ => {}
        }
    }

    fn write_attribute(&mut self, value: u8) {
        self.attribute_data = !self.attribute_data;
        if self.attribute_data {
            self.attribute_index = value & 0x3f;
            return;
        }
        let index = usize::from(self.attribute_index & 0x1f);
        if let (Some(register), Some(bits)) =
            (self.attribute.get_mut(index), ATTRIBUTE_BITS.get(index))
        {
            *register = value & bits;
        }
    }

    fn write_crtc(&mut self, value: u8) {
        let index = usize::from(self.crtc_index);
        let protected = self.crtc[crtc::V_RETRACE_END] & crtc::PROTECT != 0 && index <= 7;
        let Some(register) = self.crtc.get_mut(index) else { return };
        if !protected {
            *register = value;
        } else if index == crtc::OVERFLOW {
            let bit = crtc::OVERFLOW_LINE_COMPARE;
            *register = *register & !bit | value & bit;
        }
        self.vbe_rules();
    }

    /// Ten bits of a vertical register whose two upper bits are in the overflow register.
    fn vertical(&self, register: usize, bit_8: u8, bit_9: u8) -> u32 {
        let overflow = u32::from(self.crtc[crtc::OVERFLOW]);
        u32::from(self.crtc[register]) | (overflow >> bit_8 & 1) << 8 | (overflow >> bit_9 & 1) << 9
    }

    /// Lines displayed.
    pub(super) fn lines(&self) -> u32 {
        self.vertical(crtc::V_DISPLAY_END, 1, 6) + 1
    }

    /// The last displayed line before memory is read from address 0 again.
    pub(super) fn line_compare(&self) -> u32 {
        self.vertical(crtc::LINE_COMPARE, 4, 0) & 0x1ff
            | u32::from(self.crtc[crtc::MAX_SCAN] >> 6 & 1) << 9
    }

    /// The status register: bit 0 while nothing is displayed, bit 3 while the beam returns to the top.
    /// The beam goes by guest time and by what the CRT controller says about lines and frames.
    fn status(&self, now_ns: u64) -> u8 {
        let nonzero = |value: u64, default: u64| if value < 2 { default } else { value };
        let characters = nonzero(u64::from(self.crtc[crtc::H_TOTAL]) + 5, 100);
        let shown = u64::from(self.crtc[crtc::H_DISPLAY_END]) + 1;
        let characters = characters.max(shown + 5);
        let clocking = self.sequencer[seq::CLOCKING];
        let dots = if clocking & seq::CLOCKING_8_DOTS != 0 { 8 } else { 9 };
        let dots = dots << u32::from(clocking & seq::CLOCKING_HALF != 0);
        let dots_per_second = if self.misc >> 2 & 3 == 1 { 28_322_000 } else { 25_175_000 };
        let last_shown = u64::from(self.lines());
        let total = u64::from(self.vertical(crtc::V_TOTAL, 0, 5)) + 2;
        let total = total.max(last_shown + 13);
        let line_ns = characters * dots * 1_000_000_000 / dots_per_second;
        let at = now_ns % (line_ns * total);
        let (line, in_line) = (at / line_ns, at % line_ns);
        let start = u64::from(self.vertical(crtc::V_RETRACE_START, 2, 7));
        // What was never set up, or makes no sense, has its retrace after the picture.
        let start = if (last_shown..total).contains(&start) { start } else { last_shown };
        let height = u64::from(self.crtc[crtc::V_RETRACE_END]).wrapping_sub(start) & 0xf;
        let end = (start + height.max(2)).min(total);
        let mut status = 0;
        if line >= last_shown || in_line * characters >= line_ns * shown {
            status |= 1;
        }
        if (start..end).contains(&line) {
            status |= 8;
        }
        status
    }
}
