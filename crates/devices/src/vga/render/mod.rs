//! Drawing what the registers and the memory say.
//!
//! [`Mode::of`] boils the registers down to what a picture depends on; as long as that stays the same
//! only what changed in memory is drawn again. The registers' lock is not held while drawing.

mod graphics;
mod text;

use display::{Frame, Size, TextScreen};

use super::registers::{Registers, attr, gfx};
use super::vram::Vram;

pub(super) use graphics::GraphicsMode;
pub(super) use text::TextMode;

/// What is shown before software set a mode.
const DEFAULT_SIZE: Size = Size::new(640, 480);

/// How the screen is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Nothing is shown.
    Blank,
    /// Characters.
    Text(Box<TextMode>),
    /// Pixels.
    Graphics(Box<GraphicsMode>),
}

impl Mode {
    /// The mode that `registers` set, with `vram` bytes of memory.
    pub(super) fn of(registers: &Registers, vram: u32) -> Self {
        if registers.attribute_index & attr::INDEX_SCREEN_ON == 0 {
            Self::Blank
        } else if registers.graphics[gfx::MISC] & gfx::MISC_GRAPHICS == 0 {
            Self::Text(Box::new(TextMode::of(registers)))
        } else {
            Self::Graphics(Box::new(GraphicsMode::of(registers, vram)))
        }
    }
}

/// The sixteen colours of text and planar modes, `0x00RRGGBB`.
fn palette_16(registers: &Registers) -> [u32; 16] {
    let select = registers.attribute[attr::COLOR_SELECT];
    let four_bits = registers.attribute[attr::MODE] & attr::MODE_COLOR_SELECT != 0;
    std::array::from_fn(|i| {
        let entry = registers.attribute[i];
        let index = if four_bits {
            select << 4 | entry & 0x0f
        } else {
            (select & 0x0c) << 4 | entry & 0x3f
        };
        registers.dac.color(index, registers.vbe.wide_dac())
    })
}

/// What was drawn last, to tell what changed since.
#[derive(Default)]
pub(super) struct Drawn {
    mode: Option<Mode>,
    text: text::DrawnText,
}

impl Drawn {
    /// Brings `frame` up to date. `now_ns` is guest time, which blinks the cursor.
    pub(super) fn draw(&mut self, mode: Mode, vram: &Vram, now_ns: u64, frame: &mut Frame) {
        if self.mode.as_ref() != Some(&mode) {
            frame.full = true;
        }
        match &mode {
            Mode::Blank => {
                if frame.surface.size() == Size::default() {
                    frame.set_size(DEFAULT_SIZE);
                }
                if frame.full {
                    frame.surface.fill(0);
                }
            }
            Mode::Text(text) => self.text.draw(text, vram, now_ns, frame),
            Mode::Graphics(graphics) => graphics.draw(vram, frame),
        }
        self.mode = Some(mode);
    }
}

/// The characters on the screen, if it shows any.
pub(super) fn text_screen(mode: &Mode, vram: &Vram) -> Option<TextScreen> {
    match mode {
        Mode::Text(text) => Some(text.screen(vram)),
        Mode::Blank | Mode::Graphics(_) => None,
    }
}
