//! Character devices: where the bytes of serial ports and monitors come from and go to.

mod error;
mod fd;
pub mod socket;
mod spec;

pub use error::{ChardevError, reason};
pub use spec::ChardevSpec;
