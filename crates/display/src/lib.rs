//! What a machine's screens show, between the devices that draw them and those who look.
//!
//! - A graphics device is a [`Source`]: asked to, it draws what changed into a [`Frame`].
//! - A [`Console`] is one output of one device, with the [`Surface`] that was drawn last.
//! - A [`View`] is one viewer of a console, with a copy of the surface of its own.
//!
//! Invariants:
//! - Nothing is drawn while nobody looks: devices draw only when a view asks, never by themselves.
//! - A viewer holds no lock while it shows, sends or saves what it sees, so one that hangs stops
//!   nobody. A device draws from what it copied of its registers and holds no lock that a vCPU waits
//!   for meanwhile.

mod console;
pub mod cp437;
pub mod image;
mod surface;
mod text;

pub use console::{Console, Cursor, CursorShape, Frame, Source, Update, View};
pub use surface::{Damage, Rect, Size, Surface};
pub use text::{Cell, TextScreen};
