//! Character devices: where the bytes of serial ports and monitors come from and go to.

mod error;
mod fd;
pub mod socket;

pub use error::{ChardevError, reason};

/// PLACEHOLDER
#[derive(Clone, Debug)]
pub enum ChardevSpec {}
