//! What people do to a machine's keyboard and pointer, on its way to the devices.
//!
//! - [`InputEvent`]: a key, a button, a movement or a position.
//! - [`Key`]: the keys with their codes in every code set, in one table.
//! - [`InputHub`]: takes events from whoever has them (monitors, displays) to the device that is to get
//!   them, which has registered an [`InputSink`].
//!
//! Of several devices that take a kind of event, one gets it: the one activated last. Devices activate
//! themselves when their driver starts to listen, so a guest's tablet takes over from its mouse.

mod hub;
mod keys;

use bitflags::bitflags;

pub use hub::{InputHub, InputSink, KeyQueueFull, PointerInfo, SinkHandle, SinkSpec, Target};
pub use keys::{Key, ScanCodeSet};

/// Largest position on an axis; the smallest is 0.
pub const ABSOLUTE_MAX: i32 = 0x7fff;

/// A button of a pointer. The wheel's detents are buttons that are pressed for each step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Button {
    /// Left.
    Left,
    /// Middle, often the wheel itself.
    Middle,
    /// Right.
    Right,
    /// A step of the wheel away from the user.
    WheelUp,
    /// A step of the wheel towards the user.
    WheelDown,
    /// At the side, often "back".
    Side,
    /// At the side, often "forward".
    Extra,
    /// A step of the wheel to the left.
    WheelLeft,
    /// A step of the wheel to the right.
    WheelRight,
}

/// A direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Axis {
    /// To the right.
    X,
    /// Downwards.
    Y,
}

/// Something that somebody did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputEvent {
    /// A key went down, again if it was down, or up.
    Key {
        /// Which.
        key: Key,
        /// Whether it is down now.
        down: bool,
    },
    /// A button went down or up.
    Button {
        /// Which.
        button: Button,
        /// Whether it is down now.
        down: bool,
    },
    /// The pointer moved, in counts of the mouse.
    Relative {
        /// Along which axis.
        axis: Axis,
        /// How far.
        value: i32,
    },
    /// The pointer is somewhere.
    Absolute {
        /// On which axis.
        axis: Axis,
        /// Where, from 0 to [`ABSOLUTE_MAX`].
        value: i32,
    },
}

impl InputEvent {
    /// Its kind.
    pub fn kind(&self) -> EventKinds {
        match self {
            Self::Key { .. } => EventKinds::KEY,
            Self::Button { .. } => EventKinds::BUTTON,
            Self::Relative { .. } => EventKinds::RELATIVE,
            Self::Absolute { .. } => EventKinds::ABSOLUTE,
        }
    }
}

bitflags! {
    /// Kinds of events.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct EventKinds: u8 {
        /// Keys.
        const KEY = 1;
        /// Buttons.
        const BUTTON = 2;
        /// Movements.
        const RELATIVE = 4;
        /// Positions.
        const ABSOLUTE = 8;
    }
}
