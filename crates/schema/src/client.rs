//! What makes the client typed.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};

/// A command with its arguments, ready to be sent.
pub trait Command: Serialize {
    /// The name on the wire.
    const NAME: &'static str;
    /// What a success returns.
    type Ok: DeserializeOwned;
}

/// The return value of commands that return nothing: an object, whose members are ignored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

/// Reads an optional member of a type that admits null: it is there if its name is.
///
/// # Errors
/// The value is not of its type.
pub fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    d: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(d).map(Some)
}
