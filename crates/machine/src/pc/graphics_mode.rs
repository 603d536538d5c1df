//! The screen that a kernel finds when the board enters it without firmware: text, or the graphics mode that
//! its multiboot header asks for, in a linear frame buffer.
//!
//! Modes are set by the Bochs display interface ("dispi") that graphics adapters of this board have beside
//! their VGA. Where there is none, or it has not enough memory for the mode, the kernel finds text.

use devices::pci::{PciBus, reg};

use super::door::Door;
use super::text_mode;

/// What a kernel asks for; 0 is what it leaves open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wish {
    pub(super) width: u32,
    pub(super) height: u32,
    /// Bits a pixel.
    pub(super) depth: u32,
}

/// A mode with a linear frame buffer whose pixels are colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mode {
    /// Of the frame buffer, in guest physical memory.
    pub(super) address: u64,
    /// Bytes from one line to the next.
    pub(super) pitch: u32,
    pub(super) width: u32,
    pub(super) height: u32,
    /// Bits a pixel: 15, 16, 24 or 32.
    pub(super) depth: u8,
}

/// What there is to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Screen {
    /// No screen that the board knows how to set up.
    None,
    /// That of [`super::text_mode`].
    Text,
    /// A graphics mode.
    Graphics(Mode),
}

/// A screen as both versions of multiboot tell of it.
pub(super) struct Frame {
    pub(super) address: u64,
    /// Bytes from one line to the next.
    pub(super) pitch: u32,
    /// In characters or pixels.
    pub(super) width: u32,
    pub(super) height: u32,
    /// Bits of a character or pixel.
    pub(super) bits: u8,
    /// [`COLOURS`] or [`TEXT`].
    pub(super) kind: u8,
    /// See [`Mode::colours`].
    pub(super) colours: Option<[u8; 6]>,
}

/// Kind of a screen whose pixels are colours.
const COLOURS: u8 = 1;
/// Kind of a screen in text mode.
const TEXT: u8 = 2;

impl Screen {
    /// What a kernel is told of it; `None` if there is none.
    pub(super) fn frame(self) -> Option<Frame> {
        match self {
            Self::None => None,
            Self::Text => {
                let (width, height) = text_mode::SIZE;
                let (address, pitch) = (text_mode::ADDRESS, 2 * width);
                Some(Frame { address, pitch, width, height, bits: 16, kind: TEXT, colours: None })
            }
            Self::Graphics(mode) => {
                let Mode { address, pitch, width, height, depth: bits } = mode;
                let colours = Some(mode.colours());
                Some(Frame { address, pitch, width, height, bits, kind: COLOURS, colours })
            }
        }
    }
}

const DISPI: u16 = 0x1ce;
const ID: u16 = 0;
const X_RES: u16 = 1;
const Y_RES: u16 = 2;
const DEPTH: u16 = 3;
const ENABLE: u16 = 4;
const VIRTUAL_WIDTH: u16 = 6;
/// Registers hold the mode, which has a linear frame buffer.
const ENABLE_LINEAR: u16 = 0x41;
/// The first version with 32 bits a pixel and a linear frame buffer.
const MIN_ID: u16 = 0xb0c2;
/// Class and subclass of a VGA.
const CLASS_VGA: u32 = 0x0300;
/// Who has no wish gets this.
const DEFAULT_SIZE: (u16, u16) = (1024, 768);
/// Depths whose pixels are colours; the last is for those who ask for another.
const DEPTHS: [u16; 4] = [15, 16, 24, 32];

impl Mode {
    /// Position and width in bits of red, green and blue in a pixel.
    fn colours(&self) -> [u8; 6] {
        match self.depth {
            15 => [10, 5, 5, 5, 0, 5],
            16 => [11, 5, 5, 6, 0, 5],
            _ => [16, 8, 8, 8, 0, 8],
        }
    }
}

/// Sets the mode of `wish`, on a VGA that is set up and shows what it has. `None` if there is no adapter for
/// it; its registers may have changed then.
pub(super) fn set(door: &Door, bus: &PciBus, wish: Wish) -> Option<Mode> {
    let address = frame_buffer(bus)?;
    let select = |index: u16| door.write_port(DISPI, 2, index.into());
    let get = |index: u16| {
        select(index);
        door.read_port(DISPI + 1, 2) as u16
    };
    let put = |index: u16, value: u16| {
        select(index);
        door.write_port(DISPI + 1, 2, value.into());
    };
    // Where nothing is, all bits are ones.
    if !(MIN_ID..u16::MAX).contains(&get(ID)) {
        return None;
    }
    let pixels = |wish: u32, default: u16| match u16::try_from(wish) {
        Ok(0) => default,
        Ok(wish) => wish,
        Err(_) => u16::MAX,
    };
    let depth = DEPTHS.into_iter().find(|&depth| u32::from(depth) == wish.depth).unwrap_or(32);
    put(ENABLE, 0);
    put(X_RES, pixels(wish.width, DEFAULT_SIZE.0));
    put(Y_RES, pixels(wish.height, DEFAULT_SIZE.1));
    put(DEPTH, depth);
    put(VIRTUAL_WIDTH, 0);
    put(ENABLE, ENABLE_LINEAR);
    let [width, height, virtual_width] = [X_RES, Y_RES, VIRTUAL_WIDTH].map(|i| u32::from(get(i)));
    let as_wished = get(ENABLE) & 1 != 0
        && get(DEPTH) == depth
        && (wish.width == 0 || width == wish.width & !7)
        && (wish.height == 0 || height == wish.height);
    if !as_wished {
        put(ENABLE, 0);
        return None;
    }
    let bytes = u32::from(depth).div_ceil(8);
    Some(Mode { address, pitch: virtual_width * bytes, width, height, depth: depth as u8 })
}

/// Where the memory of the first VGA on `bus` begins.
fn frame_buffer(bus: &PciBus) -> Option<u64> {
    let is_vga = |devfn| bus.read_config(devfn, reg::CLASS + 1, 2) == CLASS_VGA;
    let (devfn, _) = bus.functions().into_iter().find(|&(devfn, _)| is_vga(devfn))?;
    let bar = bus.read_config(devfn, reg::BAR0, 4);
    let address = u64::from(bar & !0xf);
    (bar & 1 == 0 && address != 0).then_some(address)
}
