//! The errors of QMP: what a client reads in an `error` object.

use std::fmt;

/// A command's failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QmpError {
    /// For programs: `GenericError`, `CommandNotFound`, `DeviceNotActive`, ...
    pub class: String,
    /// For people: which object, why, and what to do.
    pub desc: String,
}

impl QmpError {
    /// An error of class GenericError.
    pub fn generic(desc: impl Into<String>) -> QmpError {
        QmpError { class: "GenericError".to_owned(), desc: desc.into() }
    }

    /// An error of class CommandNotFound.
    pub fn command_not_found(desc: impl Into<String>) -> QmpError {
        QmpError { class: "CommandNotFound".to_owned(), desc: desc.into() }
    }
}

impl fmt::Display for QmpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.desc)
    }
}

impl std::error::Error for QmpError {}
