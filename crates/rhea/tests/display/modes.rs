//! Modes of the VGA, as lists of register values that a BIOS would set, and what is drawn in them.

use testkit::bare::Step;

/// Register values of a mode.
pub(crate) struct Mode {
    pub name: &'static str,
    misc: u8,
    sequencer: [u8; 5],
    crtc: [u8; 25],
    graphics: [u8; 9],
    attribute: [u8; 21],
}

const RAMP: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
const EGA: [u8; 16] = [0, 1, 2, 3, 4, 5, 0x14, 7, 0x38, 0x39, 0x3a, 0x3b, 0x3c, 0x3d, 0x3e, 0x3f];

const fn attribute(palette: [u8; 16], mode: u8, planes: u8, panning: u8) -> [u8; 21] {
    let mut all = [0; 21];
    let mut i = 0;
    while i < 16 {
        all[i] = palette[i];
        i += 1;
    }
    all[16] = mode;
    all[18] = planes;
    all[19] = panning;
    all
}

const CRTC_80: [u8; 25] = [
    0x5f, 0x4f, 0x50, 0x82, 0x54, 0x80, 0xbf, 0x1f, 0, 0x41, 0, 0, 0, 0, 0, 0, 0x9c, 0x0e, 0x8f,
    0x28, 0x40, 0x96, 0xb9, 0xa3, 0xff,
];
const CRTC_40: [u8; 25] = [
    0x2d, 0x27, 0x28, 0x90, 0x2b, 0x80, 0xbf, 0x1f, 0, 0xc0, 0, 0, 0, 0, 0, 0, 0x9c, 0x0e, 0x8f,
    0x14, 0, 0x96, 0xb9, 0xe3, 0xff,
];

const fn with(mut values: [u8; 25], changes: &[(usize, u8)]) -> [u8; 25] {
    let mut i = 0;
    while i < changes.len() {
        values[changes[i].0] = changes[i].1;
        i += 1;
    }
    values
}

/// 80 by 25 characters of 9 by 16 dots.
pub(crate) const TEXT_80: Mode = Mode {
    name: "text 80x25",
    misc: 0x67,
    sequencer: [3, 0, 3, 0, 2],
    crtc: with(CRTC_80, &[(4, 0x55), (5, 0x81), (9, 0x4f), (10, 0x0d), (11, 0x0e), (20, 0x1f)]),
    graphics: [0, 0, 0, 0, 0, 0x10, 0x0e, 0, 0xff],
    attribute: attribute(EGA, 0x0c, 0x0f, 8),
};

/// 40 by 25 characters of double width, with two fonts.
pub(crate) const TEXT_40: Mode = Mode {
    name: "text 40x25",
    misc: 0x67,
    sequencer: [3, 8, 3, 0x04, 2],
    crtc: with(CRTC_40, &[(9, 0x4f), (10, 0x06), (11, 0x07), (20, 0x1f), (23, 0xa3)]),
    graphics: [0, 0, 0, 0, 0, 0x10, 0x0e, 0, 0xff],
    attribute: attribute(EGA, 0x0c, 0x0f, 8),
};

/// Modes of pixels.
pub(crate) const GRAPHICS: &[Mode] = &[
    Mode {
        name: "12h: 640x480, 16 colours",
        misc: 0xe3,
        sequencer: [3, 1, 0x0f, 0, 6],
        crtc: with(
            CRTC_80,
            &[
                (6, 0x0b),
                (7, 0x3e),
                (9, 0x40),
                (16, 0xea),
                (17, 0x0c),
                (18, 0xdf),
                (20, 0),
                (21, 0xe7),
                (22, 0x04),
                (23, 0xe3),
            ],
        ),
        graphics: [0, 0, 0, 0, 0, 0, 5, 0x0f, 0xff],
        attribute: attribute(EGA, 1, 0x0f, 0),
    },
    Mode {
        name: "0Dh: 320x200, 16 colours",
        misc: 0x63,
        sequencer: [3, 9, 0x0f, 0, 6],
        crtc: CRTC_40,
        graphics: [0, 0, 0, 0, 0, 0, 5, 0x0f, 0xff],
        attribute: attribute(RAMP, 1, 0x0b, 0),
    },
    Mode {
        name: "13h: 320x200, 256 colours",
        misc: 0x63,
        sequencer: [3, 1, 0x0f, 0, 0x0e],
        crtc: CRTC_80,
        graphics: [0, 0, 0, 0, 0, 0x40, 5, 0x0f, 0xff],
        attribute: attribute(RAMP, 0x41, 0x0f, 0),
    },
    Mode {
        name: "X: 320x240, 256 colours, unchained, split",
        misc: 0xe3,
        sequencer: [3, 1, 0x0f, 0, 6],
        crtc: with(
            CRTC_80,
            &[
                (6, 0x0d),
                (7, 0x2e),
                (12, 0x10),
                (13, 0x20),
                (16, 0xea),
                (17, 0x0c),
                (18, 0xdf),
                (20, 0),
                (21, 0xe7),
                (22, 0x06),
                (23, 0xe3),
                (24, 0x40),
            ],
        ),
        graphics: [0, 0, 0, 0, 0, 0x40, 5, 0x0f, 0xff],
        attribute: attribute(RAMP, 0x41, 0x0f, 0),
    },
    Mode {
        name: "4: 320x200, 4 colours",
        misc: 0x63,
        sequencer: [3, 9, 3, 0, 2],
        crtc: with(CRTC_40, &[(9, 0xc1), (23, 0xa2)]),
        graphics: [0, 0, 0, 0, 0, 0x30, 0x0f, 0x0f, 0xff],
        attribute: attribute(
            [0, 0x13, 0x15, 0x17, 2, 4, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23],
            1,
            3,
            0,
        ),
    },
    Mode {
        name: "6: 640x200, 2 colours",
        misc: 0x63,
        sequencer: [3, 1, 1, 0, 6],
        crtc: with(CRTC_80, &[(9, 0xc1), (20, 0), (23, 0xc2)]),
        graphics: [0, 0, 0, 0, 0, 0, 0x0d, 0x0f, 0xff],
        attribute: attribute(
            [0, 23, 23, 23, 23, 23, 23, 23, 23, 23, 23, 23, 23, 23, 23, 23],
            1,
            1,
            0,
        ),
    },
];

impl Mode {
    /// Sets the mode, its palette included.
    pub(crate) fn set(&self) -> Vec<Step> {
        let mut steps = vec![Step::Out16(0x1ce, 4), Step::Out16(0x1cf, 0)];
        steps.push(Step::Out8(0x3c2, self.misc));
        let indexed = |port: u16, values: &[u8]| {
            let both = (0_u16..).zip(values).map(move |(i, &v)| (i, u16::from(v)));
            both.map(|(i, v)| Step::Out16(port, v << 8 | i)).collect::<Vec<_>>()
        };
        steps.extend(indexed(0x3c4, &self.sequencer));
        steps.push(Step::Out16(0x3d4, 0x0011));
        steps.extend(indexed(0x3d4, &self.crtc));
        steps.extend(indexed(0x3ce, &self.graphics));
        steps.push(Step::In8(0x3da));
        for (index, &value) in (0..).zip(&self.attribute) {
            steps.extend([Step::Out8(0x3c0, index), Step::Out8(0x3c0, value)]);
        }
        steps.push(Step::Out8(0x3c0, 0x20));
        steps.extend(palette());
        steps
    }
}

/// 256 colours, no two the same.
pub(crate) fn palette() -> Vec<Step> {
    let mut steps = vec![Step::Out8(0x3c6, 0xff), Step::Out8(0x3c8, 0)];
    for i in 0..=255_u8 {
        let color = [i, i.wrapping_mul(7).wrapping_add(13), i.wrapping_mul(29) ^ 0x2a];
        steps.extend(color.map(|c| Step::Out8(0x3c9, c)));
    }
    steps
}

/// `len` bytes of memory from `address` on, filled with words that hardly repeat.
pub(crate) fn noise(address: u32, len: u32) -> Vec<Step> {
    let mut state = 0x1234_5678_u32;
    let word = |at| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        Step::Store32(address + at, state)
    };
    (0..len).step_by(4).map(word).collect()
}

/// Fills all of the fonts in plane 2 with noise.
pub(crate) fn font() -> Vec<Step> {
    let mut steps: Vec<_> = [(0x3c4, 0x0402), (0x3c4, 0x0604), (0x3ce, 5), (0x3ce, 0x0406)]
        .map(|(port, value)| Step::Out16(port, value))
        .into();
    steps.extend(noise(0xa_0000, 0x1_0000));
    steps
}
