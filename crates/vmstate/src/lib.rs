//! Saved state of devices and CPUs.
//!
//! A device describes what it saves as a plain serde type that implements [`State`]: a name, a
//! version, and nothing else. The device's own type is never serialised, so that it can change freely.
//! The encoding is postcard, wrapped in a [`Saved`] record that says whose state it is.
//!
//! Invariant: restoring checks the name and the version before it decodes a byte, and bytes left over
//! are an error.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The saved form of one kind of device.
pub trait State: Serialize + DeserializeOwned {
    /// Name of the kind, as in `"16550"`; unique among all kinds.
    const NAME: &'static str;
    /// Version of this layout. Bump it when the layout changes.
    const VERSION: u32;

    /// Checks what the types can't say: that indices, lengths and register values are ones that the
    /// device can have. [`Saved::decode`] calls it, so a restored state needs no further checks.
    ///
    /// # Errors
    /// Says what is impossible about the state.
    fn validate(&self) -> Result<(), String> {
        Ok(())
    }
}

/// Encoded state with its label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// [`State::NAME`] of what was saved.
    pub name: String,
    /// [`State::VERSION`] at the time.
    pub version: u32,
    /// The postcard encoding.
    pub data: Vec<u8>,
}

/// Why saved state was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// The record belongs to another kind of device.
    #[error("state of '{found}' cannot be restored into '{expected}'")]
    WrongName {
        /// The kind that was asked to restore.
        expected: &'static str,
        /// The kind in the record.
        found: String,
    },
    /// The record was saved by another version.
    #[error("state of '{name}' has version {found}, this build reads version {expected}")]
    WrongVersion {
        /// The kind of device.
        name: &'static str,
        /// The version this build reads.
        expected: u32,
        /// The version in the record.
        found: u32,
    },
    /// The bytes do not decode, or decode to something the device can't be in.
    #[error("state of '{name}' is damaged: {reason}")]
    Damaged {
        /// The kind of device.
        name: &'static str,
        /// What is wrong.
        reason: String,
    },
}

impl Saved {
    /// Encodes `state`.
    pub fn new<S: State>(state: &S) -> Self {
        // Encoding into a growing vector fails only for types that can't be encoded at all, which
        // the conformance test of each device finds at once.
        let data = postcard::to_stdvec(state).expect("device state is plain data");
        Self { name: S::NAME.to_owned(), version: S::VERSION, data }
    }

    /// Decodes the state of kind `S`.
    ///
    /// # Errors
    /// If the record is of another kind or version, or damaged.
    pub fn decode<S: State>(&self) -> Result<S, RestoreError> {
        if self.name != S::NAME {
            return Err(RestoreError::WrongName { expected: S::NAME, found: self.name.clone() });
        }
        if self.version != S::VERSION {
            return Err(RestoreError::WrongVersion {
                name: S::NAME,
                expected: S::VERSION,
                found: self.version,
            });
        }
        let damaged = |reason: String| RestoreError::Damaged { name: S::NAME, reason };
        let (state, rest): (S, _) =
            postcard::take_from_bytes(&self.data).map_err(|e| damaged(e.to_string()))?;
        if !rest.is_empty() {
            return Err(damaged(format!("{} bytes too many", rest.len())));
        }
        state.validate().map_err(damaged)?;
        Ok(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Counter {
        value: u32,
    }

    impl State for Counter {
        const NAME: &'static str = "counter";
        const VERSION: u32 = 3;
    }

    #[test]
    fn decodes_its_own_and_refuses_the_rest() {
        let saved = Saved::new(&Counter { value: 7 });
        assert_eq!(saved.decode::<Counter>(), Ok(Counter { value: 7 }));
        let mut other = saved.clone();
        other.version = 2;
        assert!(matches!(other.decode::<Counter>(), Err(RestoreError::WrongVersion { .. })));
        other = saved.clone();
        other.name = "timer".into();
        assert!(matches!(other.decode::<Counter>(), Err(RestoreError::WrongName { .. })));
        other = saved;
        other.data.push(0);
        assert!(matches!(other.decode::<Counter>(), Err(RestoreError::Damaged { .. })));
    }
}
