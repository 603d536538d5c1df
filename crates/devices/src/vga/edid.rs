//! The description of a monitor that an adapter's output pretends to have (VESA Enhanced EDID Standard,
//! release A, revision 2, structure version 1.4), with an extension of large formats (CTA-861-H).

/// Size of a block in bytes.
const BLOCK: usize = 128;
/// Size of the description in bytes.
pub(crate) const SIZE: usize = 2 * BLOCK;

/// Standard timings: width, code of the aspect ratio (0 for 16:10, 1 for 4:3, 3 for 16:9).
const STANDARD: [(u32, u8); 8] =
    [(1920, 3), (1920, 0), (1600, 1), (1600, 3), (1440, 0), (1280, 0), (1280, 1), (2048, 3)];
/// Timings III, a bit each, all at 60 Hz: 1280x768 and 1280x1024; 1360x768 and 1400x1050; 1680x1050;
/// 1792x1344 and 1856x1392; 1920x1440.
const ESTABLISHED_III: [u8; 6] = [0, 0x42, 0x82, 0x20, 0x28, 0x20];
/// Formats by their codes, all at 60 Hz: 1280x720, 1920x1080, 2560x1080, 3840x2160, 4096x2160, 5120x2160.
const FORMATS: [u8; 6] = [4, 16, 90, 97, 102, 126];
/// 2560x1440 and 2560x1600 at 60 Hz, whose blanking is reduced (VESA CVT).
const LARGE: [Timing; 2] = [
    Timing {
        clock: 24_150,
        across: Span { active: 2560, blank: 160, front: 48, sync: 32 },
        down: Span { active: 1440, blank: 41, front: 3, sync: 5 },
    },
    Timing {
        clock: 26_850,
        across: Span { active: 2560, blank: 160, front: 48, sync: 32 },
        down: Span { active: 1600, blank: 46, front: 3, sync: 6 },
    },
];

/// Dots a millimetre that the picture's size is told by: 100 a inch.
const DOTS_PER_10_INCH: u32 = 1000;

/// A monitor that would like `width` by `height` pixels (up to 4095 each), 75 times a second.
pub(crate) fn monitor(width: u32, height: u32) -> [u8; SIZE] {
    let (width, height) = (width.clamp(64, 4095) & !1, height.clamp(64, 4095));
    let mm = |pixels: u32| pixels * 254 / DOTS_PER_10_INCH;
    let mut edid = [0; SIZE];
    edid[..8].copy_from_slice(&[0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0]);
    // "RHE": five bits a letter, the first in the highest.
    let letter = |c: u8| u16::from(c - b'A' + 1);
    let maker = letter(b'R') << 10 | letter(b'H') << 5 | letter(b'E');
    edid[8..10].copy_from_slice(&maker.to_be_bytes());
    edid[10..12].copy_from_slice(&0x1234_u16.to_le_bytes());
    // Week 42 of 2014, version 1.4; digital, 8 bits a colour, DisplayPort.
    edid[16..20].copy_from_slice(&[42, 24, 1, 4]);
    edid[20..24].copy_from_slice(&[0xa5, (mm(width) / 10) as u8, (mm(height) / 10) as u8, 120]);
    // RGB, the default colour space, the preferred timing is the native one.
    edid[24] = 0x06;
    // sRGB's primaries and white.
    let chromaticity = [0xee, 0x91, 0xa3, 0x54, 0x4c, 0x99, 0x26, 0x0f, 0x50, 0x54];
    edid[25..35].copy_from_slice(&chromaticity);
    // 640x480 and 800x600 at 60 Hz; 1024x768 at 60 Hz.
    edid[35..38].copy_from_slice(&[0x21, 0x08, 0]);
    for (slot, (width, ratio)) in edid[38..54].chunks_exact_mut(2).zip(STANDARD) {
        slot.copy_from_slice(&[(width / 8 - 31) as u8, ratio << 6]);
    }
    let size = (mm(width), mm(height));
    edid[54..72].copy_from_slice(&Timing::preferred(width, height).encode(size));
    edid[72..90].copy_from_slice(&range_limits());
    edid[90..108].copy_from_slice(&text(0xfc, "Rhea Monitor"));
    edid[108..120].copy_from_slice(&established_iii());
    // One more block follows.
    edid[126] = 1;
    extension(&mut edid[BLOCK..], size);
    for block in edid.chunks_exact_mut(BLOCK) {
        block[BLOCK - 1] =
            block.iter().fold(0_u8, |sum, &byte| sum.wrapping_add(byte)).wrapping_neg();
    }
    edid
}

/// Fills the block that tells of large formats.
fn extension(block: &mut [u8], size: (u32, u32)) {
    // CTA-861, third version; where detailed timings begin.
    let timings = 5 + FORMATS.len();
    block[..4].copy_from_slice(&[2, 3, timings as u8, 0]);
    // A block of video codes.
    block[4] = 2 << 5 | FORMATS.len() as u8;
    block[5..timings].copy_from_slice(&FORMATS);
    for (place, timing) in block[timings..].chunks_exact_mut(18).zip(LARGE) {
        place.copy_from_slice(&timing.encode(size));
    }
}

/// One direction of a timing, in pixels or lines: what is seen, what is not, and within that the part
/// before the sync pulse and the pulse.
#[derive(Clone, Copy)]
struct Span {
    active: u32,
    blank: u32,
    front: u32,
    sync: u32,
}

/// How a picture is sent.
#[derive(Clone, Copy)]
struct Timing {
    /// The pixel clock in units of 10 kHz.
    clock: u32,
    across: Span,
    down: Span,
}

impl Timing {
    /// 75 Hz with blanking of its own choosing: a quarter of the line, a 28th of the picture.
    fn preferred(width: u32, height: u32) -> Self {
        let (h_blank, v_blank) = ((width * 35 / 100) & !1, height * 35 / 1000 + 3);
        let front = (width * 25 / 100) & !1;
        let across = Span { active: width, blank: h_blank, front, sync: width * 3 / 100 };
        let (front, sync) = ((height * 5 / 1000).min(63), (height * 5 / 1000).clamp(1, 63));
        let down = Span { active: height, blank: v_blank, front, sync };
        let clock = 75 * (width + h_blank) * (height + v_blank) / 10_000;
        Self { clock: clock.min(u16::MAX.into()), across, down }
    }

    /// As a detailed timing descriptor, with the picture's size in millimetres.
    fn encode(self, (mm_x, mm_y): (u32, u32)) -> [u8; 18] {
        let Self { clock, across, down } = self;
        let high = |low: u32, high: u32| (low >> 8 & 0xf | (high >> 8 & 0xf) << 4) as u8;
        [
            clock as u8,
            (clock >> 8) as u8,
            across.active as u8,
            across.blank as u8,
            high(across.blank, across.active),
            down.active as u8,
            down.blank as u8,
            high(down.blank, down.active),
            across.front as u8,
            across.sync as u8,
            ((down.front & 0xf) << 4 | down.sync & 0xf) as u8,
            ((across.front >> 8 & 3) << 6
                | (across.sync >> 8 & 3) << 4
                | (down.front >> 4 & 3) << 2
                | down.sync >> 4 & 3) as u8,
            mm_x as u8,
            mm_y as u8,
            high(mm_y, mm_x),
            0,
            0,
            // Digital separate sync.
            0x18,
        ]
    }
}

/// More timings that are known by a bit each.
fn established_iii() -> [u8; 12] {
    let mut block = [0, 0, 0, 0xf7, 0, 10, 0, 0, 0, 0, 0, 0];
    block[6..].copy_from_slice(&ESTABLISHED_III);
    block
}

/// 50 to 125 Hz, 30 to 160 kHz, up to 2550 MHz.
fn range_limits() -> [u8; 18] {
    let mut block = [0x20; 18];
    block[..12].copy_from_slice(&[0, 0, 0, 0xfd, 0, 50, 125, 30, 160, 255, 1, b'\n']);
    block
}

/// A text of up to 13 characters.
fn text(kind: u8, text: &str) -> [u8; 18] {
    let mut block = [b' '; 18];
    block[..5].copy_from_slice(&[0, 0, 0, kind, 0]);
    let text = text.as_bytes();
    block[5..5 + text.len()].copy_from_slice(text);
    block[5 + text.len()] = b'\n';
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_zero_and_the_preferred_mode_is_the_one_asked_for() {
        for (width, height) in [(640, 480), (1280, 800), (1920, 1080), (4095, 4095), (1, 1)] {
            let edid = monitor(width, height);
            for block in edid.chunks_exact(BLOCK) {
                assert_eq!(block.iter().fold(0_u8, |sum, &byte| sum.wrapping_add(byte)), 0);
            }
            let timing = &edid[54..];
            let told_width = u32::from(timing[2]) | u32::from(timing[4] >> 4) << 8;
            let told_height = u32::from(timing[5]) | u32::from(timing[7] >> 4) << 8;
            assert_eq!((told_width, told_height), (width.max(64) & !1, height.max(64)));
        }
    }
}
