//! Graphics modes: 16 colours in planes, CGA's 2 and 4 colours, 256 colours, and VBE's direct colours.

use display::{Frame, Rect, Size};

use super::palette_16;
use crate::vga::registers::{Registers, attr, crtc, gfx, seq};
use crate::vga::vram::Vram;

/// How memory becomes pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// Four planes of one bit each.
    Planar,
    /// Two pairs of planes, two bits a pixel, as CGA's 4 colours.
    Pairs,
    /// 256 colours, each pixel two dots wide (mode 13h and its kin).
    Wide256,
    /// 256 colours.
    Packed256,
    /// 5 bits a component.
    Rgb555,
    /// 5, 6 and 5 bits.
    Rgb565,
    /// Blue, green and red bytes.
    Rgb24,
    /// The same and one more.
    Rgb32,
}

/// A graphics mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::vga) struct GraphicsMode {
    format: Format,
    size: Size,
    /// Dots are two pixels wide (planar formats only).
    double_dots: bool,
    /// Offset in memory of the first line, in bytes.
    start: u32,
    /// Bytes from a line to the next.
    pitch: u32,
    /// How often each line is shown, less one.
    repeat: u32,
    line_compare: u32,
    /// Bits of the CRT controller's mode that fold odd lines into other parts of memory.
    fold: u8,
    /// Planes shown.
    planes: u32,
    /// Pixels by which the picture is moved left.
    pan: u32,
    /// Panning ends at the line compare.
    pan_split: bool,
    palette: Vec<u32>,
}

/// The bits of a byte, each in a nibble of its own.
const SPREAD: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut bit = 0;
        while bit < 8 {
            table[byte] |= ((byte as u32 >> bit) & 1) << (4 * bit);
            bit += 1;
        }
        byte += 1;
    }
    table
};

/// The pairs of bits of a byte, each in a nibble of its own.
const fn spread_pairs(byte: u8) -> u32 {
    let b = byte as u32;
    (b & 0xc0) << 6 | (b & 0x30) << 4 | (b & 0x0c) << 2 | b & 3
}

impl GraphicsMode {
    pub(in crate::vga) fn of(registers: &Registers, vram: u32) -> Self {
        let (c, a, vbe) = (&registers.crtc, &registers.attribute, &registers.vbe);
        let shift = registers.graphics[gfx::MODE] >> 5 & 3;
        let format = match (shift, vbe.is_enabled().then(|| vbe.depth())) {
            (0, _) => Format::Planar,
            (1, _) => Format::Pairs,
            (_, None | Some(4)) => Format::Wide256,
            (_, Some(8)) => Format::Packed256,
            (_, Some(15)) => Format::Rgb555,
            (_, Some(16)) => Format::Rgb565,
            (_, Some(24)) => Format::Rgb24,
            (_, Some(_)) => Format::Rgb32,
        };
        let doubled = u32::from(c[crtc::MAX_SCAN] >> 7);
        // Where scan lines are folded into memory the row's lines are not repetitions.
        let repeat = if c[crtc::MODE] & 1 == 0 {
            doubled
        } else {
            ((u32::from(c[crtc::MAX_SCAN] & 0x1f) + 1) << doubled) - 1
        };
        let planar = matches!(format, Format::Planar | Format::Pairs);
        let double_dots = planar && registers.sequencer[seq::CLOCKING] & seq::CLOCKING_HALF != 0;
        let mut mode = Self {
            format,
            size: Size::default(),
            double_dots,
            start: 0,
            pitch: 0,
            repeat,
            line_compare: u32::MAX,
            fold: c[crtc::MODE] & 3 | c[crtc::MODE] & 0x40,
            planes: 0,
            pan: 0,
            pan_split: a[attr::MODE] & attr::MODE_PAN_SPLIT != 0,
            palette: Vec::new(),
        };
        let enabled = a[attr::PLANE_ENABLE];
        mode.planes = (0..4).map(|p| u32::from(enabled >> p & 1) * (0xff << (8 * p))).sum();
        mode.palette = match format {
            Format::Planar | Format::Pairs => palette_16(registers).to_vec(),
            Format::Wide256 | Format::Packed256 => {
                let wide = vbe.wide_dac();
                (0..=255).map(|index| registers.dac.color(index, wide)).collect()
            }
            _ => Vec::new(),
        };
        if vbe.is_enabled() {
            let (width, height) = vbe.size();
            mode.size = Size::new(width, height);
            (mode.start, mode.pitch) = (vbe.start(), vbe.pitch());
        } else {
            let width = (u32::from(c[crtc::H_DISPLAY_END]) + 1) * 8;
            mode.size = Size::new(width << u32::from(double_dots), registers.lines());
            let start = u32::from(c[crtc::START_HIGH]) << 8 | u32::from(c[crtc::START_LOW]);
            let byte_pan = u32::from(c[crtc::PRESET_ROW] >> 5 & 3);
            mode.start = (start + byte_pan) * 4;
            mode.pitch = u32::from(c[crtc::OFFSET]) << 3;
            mode.line_compare = registers.line_compare();
            let pan = u32::from(a[attr::PANNING] & 7);
            mode.pan = match format {
                Format::Planar | Format::Pairs => pan << u32::from(double_dots),
                // Half a pixel is one dot.
                _ => pan & !1,
            };
        }
        mode.start &= vram - 1;
        mode
    }

    /// Bytes of memory that a line of `width` pixels takes, from a cell's first byte on.
    fn line_bytes(&self, width: u32) -> u32 {
        let bytes = match self.format {
            Format::Planar | Format::Pairs => width.div_ceil(8 << u32::from(self.double_dots)) * 4,
            Format::Wide256 => width / 2,
            Format::Packed256 => width,
            Format::Rgb555 | Format::Rgb565 => width * 2,
            Format::Rgb24 => width * 3,
            Format::Rgb32 => width * 4,
        };
        bytes.next_multiple_of(4)
    }

    /// Where each line begins in memory, and by how much it is moved left.
    fn lines(&self) -> impl Iterator<Item = (u32, u32)> {
        let (mut base, mut pan) = (self.start, self.pan);
        let (mut row, mut left) = (0_u32, self.repeat);
        (0..self.size.height).map(move |y| {
            let mut offset = base;
            if self.fold & 1 == 0 {
                let bit = 14 + u32::from(self.fold >> 6 & 1);
                offset = offset & !(1 << bit) | (row & 1) << bit;
            }
            if self.fold & 2 == 0 {
                offset = offset & !0x8000 | (row & 2) << 14;
            }
            let line = (offset, pan);
            if left > 0 {
                left -= 1;
            } else {
                let last_of_fold = u32::from(self.fold & 3 ^ 3);
                if row & last_of_fold == last_of_fold {
                    base = base.wrapping_add(self.pitch);
                }
                row += 1;
                left = self.repeat;
            }
            if y == self.line_compare {
                base = 0;
                if self.pan_split {
                    pan = 0;
                }
            }
            line
        })
    }

    pub(super) fn draw(&self, vram: &Vram, frame: &mut Frame) {
        frame.set_size(self.size);
        if frame.surface.size() != self.size {
            return;
        }
        let extra = if self.pan > 0 { 16 } else { 0 };
        let bytes = self.line_bytes(self.size.width + extra);
        let dirty = vram.take_dirty();
        let len = u64::from(vram.len());
        let overlaps = |first: u64, last: u64| {
            let after = dirty.partition_point(|range| range.end <= first);
            dirty.get(after).is_some_and(|range| range.start <= last)
        };
        let is_dirty = |offset: u32| {
            let first = u64::from(offset) & (len - 1);
            let last = first + u64::from(bytes) - 1;
            overlaps(first, last) || last >= len && overlaps(0, last - len)
        };
        let mut source = vec![0; bytes as usize];
        let mut dots = Vec::with_capacity((self.size.width + extra + 16) as usize);
        let mut last = None;
        for (y, (offset, pan)) in (0..).zip(self.lines()) {
            if !frame.full && !is_dirty(offset) {
                continue;
            }
            // Lines that are shown twice or more are made once.
            if last != Some(offset) {
                vram.read(offset, &mut source);
                dots.clear();
                self.expand(&source, &mut dots);
                last = Some(offset);
            }
            let row = frame.surface.row_mut(y);
            let width = row.len();
            row.copy_from_slice(&dots[pan as usize..][..width]);
            frame.damage.add(Rect { x: 0, y, width: self.size.width, height: 1 });
        }
    }

    /// Adds the pixels that the bytes of a line stand for.
    fn expand(&self, source: &[u8], dots: &mut Vec<u32>) {
        let rgb = |red: u32, green: u32, blue: u32| red << 16 | green << 8 | blue;
        let five = |value: u32| (value & 0x1f) << 3 | (value & 0x1f) >> 2;
        let six = |value: u32| (value & 0x3f) << 2 | (value & 0x3f) >> 4;
        let word = |bytes: &[u8]| u32::from(u16::from_le_bytes([bytes[0], bytes[1]]));
        let color = |&byte: &u8| self.palette[usize::from(byte)];
        match self.format {
            Format::Planar | Format::Pairs => {
                for cell in source.chunks_exact(4) {
                    self.expand_cell([cell[0], cell[1], cell[2], cell[3]], dots);
                }
            }
            Format::Wide256 => {
                dots.extend(source.iter().flat_map(|byte| [color(byte); 2]));
            }
            Format::Packed256 => dots.extend(source.iter().map(color)),
            Format::Rgb555 => dots.extend(source.chunks_exact(2).map(|pixel| {
                let v = word(pixel);
                // The low bits stay clear, so white is not quite white; QEMU draws the same.
                rgb(v >> 7 & 0xf8, v >> 2 & 0xf8, v << 3 & 0xf8)
            })),
            Format::Rgb565 => dots.extend(source.chunks_exact(2).map(|pixel| {
                let v = word(pixel);
                rgb(five(v >> 11), six(v >> 5), five(v))
            })),
            Format::Rgb24 => dots.extend(
                source
                    .chunks_exact(3)
                    .map(|pixel| u32::from_le_bytes([pixel[0], pixel[1], pixel[2], 0])),
            ),
            Format::Rgb32 => dots.extend(
                source
                    .chunks_exact(4)
                    .map(|pixel| u32::from_le_bytes([pixel[0], pixel[1], pixel[2], 0])),
            ),
        }
    }

    /// Adds the eight dots of a cell of four planes.
    fn expand_cell(&self, cell: [u8; 4], dots: &mut Vec<u32>) {
        let planes = (u32::from_le_bytes(cell) & self.planes).to_le_bytes();
        let nibbles = if self.format == Format::Planar {
            let plane = |p: usize| SPREAD[usize::from(planes[p])] << p;
            plane(0) | plane(1) | plane(2) | plane(3)
        } else {
            let pair = |low: usize| spread_pairs(planes[low]) | spread_pairs(planes[low + 2]) << 2;
            pair(0) << 16 | pair(1)
        };
        for dot in (0..8).rev() {
            let color = self.palette[(nibbles >> (4 * dot) & 0xf) as usize];
            dots.push(color);
            if self.double_dots {
                dots.push(color);
            }
        }
    }
}
