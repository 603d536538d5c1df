//! Option values: the `key=value` syntax, typed access to keys, errors that name the nearest known one.
//!
//! The command line and everything that takes properties from it (devices, drives) read them through
//! [`Properties`], so that values mean the same everywhere.

mod error;
mod properties;

pub use error::OptionError;
pub use properties::{Properties, next_part, parse_bool, parse_choice, parse_number, parse_size};
