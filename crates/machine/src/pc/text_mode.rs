//! The text screen that kernels find when the board enters them without firmware: mode 3 of the VGA, 80
//! columns and 25 rows in 16 colours, blank, with the font of a PC.
//!
//! Register values are those that IBM's "PS/2 Video Subsystem Technical Reference" gives for the mode.

use display::cp437;
use font8x8::UnicodeFonts;

use super::door::Door;

/// Columns and rows.
pub(super) const SIZE: (u32, u32) = (80, 25);
/// Where characters and their attributes are.
pub(super) const ADDRESS: u64 = 0xb_8000;
/// Height of a character in lines.
pub(super) const CHARACTER_HEIGHT: u16 = 16;
/// The BIOS's number for the mode.
pub(super) const BIOS_MODE: u8 = 3;

const MISC: u16 = 0x3c2;
const SEQUENCER: u16 = 0x3c4;
const DAC_MASK: u16 = 0x3c6;
const DAC_INDEX: u16 = 0x3c8;
const DAC_DATA: u16 = 0x3c9;
const GRAPHICS: u16 = 0x3ce;
const CRTC: u16 = 0x3d4;
const ATTRIBUTES: u16 = 0x3c0;
/// A read makes the next write to [`ATTRIBUTES`] one of an index.
const STATUS: u16 = 0x3da;

/// Register values, from index 0 on.
const MISC_VALUE: u8 = 0x67;
const SEQUENCER_VALUES: [u8; 5] = [0x03, 0x00, 0x03, 0x00, 0x02];
const GRAPHICS_VALUES: [u8; 9] = [0x00, 0x00, 0x00, 0x00, 0x00, 0x10, 0x0e, 0x00, 0xff];
const CRTC_VALUES: [u8; 25] = [
    0x5f, 0x4f, 0x50, 0x82, 0x55, 0x81, 0xbf, 0x1f, 0x00, 0x4f, 0x0d, 0x0e, 0x00, 0x00, 0x00, 0x00,
    0x9c, 0x8e, 0x8f, 0x28, 0x1f, 0x96, 0xb9, 0xa3, 0xff,
];
const ATTRIBUTE_VALUES: [u8; 21] = [
    0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x14, 0x07, 0x38, 0x39, 0x3a, 0x3b, 0x3c, 0x3d, 0x3e, 0x3f,
    0x0c, 0x00, 0x0f, 0x08, 0x00,
];
/// Bit 7 of this one keeps the others from being written.
const CRTC_LOCK: u8 = 0x11;
/// Lets the attribute controller show what there is.
const ATTRIBUTES_SHOW: u8 = 0x20;

/// Sequencer and graphics registers, with their values, that open plane 2 as bytes at [`FONT`].
const OPEN_FONT: [(u16, u8, u8); 5] =
    [(SEQUENCER, 2, 4), (SEQUENCER, 4, 7), (GRAPHICS, 4, 2), (GRAPHICS, 5, 0), (GRAPHICS, 6, 4)];
const FONT: u64 = 0xa_0000;
/// Bytes from one character of the font to the next.
const GLYPH: u64 = 32;

/// Places in the data area where a BIOS tells of the screen: mode, columns, port of the CRTC, last row,
/// and height of a character.
const BIOS_DATA: [(u64, u8, u16); 5] = [
    (0x449, 1, BIOS_MODE as u16),
    (0x44a, 2, SIZE.0 as u16),
    (0x463, 2, CRTC),
    (0x484, 1, SIZE.1 as u16 - 1),
    (0x485, 2, CHARACTER_HEIGHT),
];

/// Sets the mode, if there is a VGA; tells whether there is.
pub(super) fn set(door: &Door) -> bool {
    let out = |port, value: u8| door.write_port(port, 1, value.into());
    let put = |port: u16, index: u8, value: u8| {
        out(port, index);
        out(port + 1, value);
    };
    let fill = |port: u16, values: &[u8]| {
        (0..).zip(values).for_each(|(index, value)| put(port, index, *value));
    };
    out(MISC, MISC_VALUE);
    put(CRTC, CRTC_LOCK, 0);
    if door.read_port(CRTC, 1) != u32::from(CRTC_LOCK) {
        return false;
    }
    fill(SEQUENCER, &SEQUENCER_VALUES);
    fill(CRTC, &CRTC_VALUES);
    fill(GRAPHICS, &GRAPHICS_VALUES);
    for (port, index, value) in OPEN_FONT {
        put(port, index, value);
    }
    for code in 0..=u8::MAX {
        door.write(FONT + GLYPH * u64::from(code), &glyph(code));
    }
    fill(SEQUENCER, &SEQUENCER_VALUES);
    fill(GRAPHICS, &GRAPHICS_VALUES);
    set_colours(&out);
    door.read_port(STATUS, 1);
    for (index, value) in (0..).zip(ATTRIBUTE_VALUES) {
        out(ATTRIBUTES, index);
        out(ATTRIBUTES, value);
    }
    out(ATTRIBUTES, ATTRIBUTES_SHOW);
    let (columns, rows) = SIZE;
    door.write(ADDRESS, &[b' ', 7].repeat((columns * rows) as usize));
    for (at, size, value) in BIOS_DATA {
        door.store(at, size, value.into());
    }
    true
}

/// The 64 colours of an EGA: two bits each for red, green and blue, the dark one above the bright one.
fn set_colours(out: &impl Fn(u16, u8)) {
    out(DAC_MASK, 0xff);
    out(DAC_INDEX, 0);
    for colour in 0..64u8 {
        for shift in [2, 1, 0] {
            let (bright, dark) = (colour >> shift & 1, colour >> (shift + 3) & 1);
            out(DAC_DATA, bright * 0x2a + dark * 0x15);
        }
    }
}

/// What character `code` looks like: the rows of a font of 8 lines, each twice.
fn glyph(code: u8) -> [u8; CHARACTER_HEIGHT as usize] {
    let character = cp437::to_char(code);
    let fonts: [&dyn UnicodeFonts; 6] = [
        &font8x8::BASIC_FONTS,
        &font8x8::LATIN_FONTS,
        &font8x8::BOX_FONTS,
        &font8x8::BLOCK_FONTS,
        &font8x8::GREEK_FONTS,
        &font8x8::MISC_FONTS,
    ];
    let rows = fonts.iter().find_map(|font| font.get(character)).unwrap_or_default();
    // Its leftmost pixel is bit 0, that of a VGA bit 7.
    std::array::from_fn(|line| rows[line / 2].reverse_bits())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_look_like_themselves() {
        assert_eq!(glyph(b' '), [0; 16]);
        assert_eq!(glyph(0xdb), [0xff; 16]);
        let upright = glyph(b'L');
        assert!(upright[4] & 0xf0 != 0 && upright[4] & 0x0f == 0, "{upright:x?}");
        assert!((0x21..0x7f).all(|code| glyph(code) != [0; 16]));
        assert_eq!((glyph(0xb3)[0], glyph(0xb3)[15]), (glyph(0xb3)[8], glyph(0xb3)[8]));
    }
}
