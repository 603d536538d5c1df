//! Why a character device can't be opened, in the words that users of QEMU know.

use std::io;

/// Why a character device can't be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChardevError {
    /// The path of a Unix socket doesn't fit in an address.
    #[error("UNIX socket path '{path}' is too long\nPath must be less than 108 bytes")]
    PathTooLong {
        /// The path as given.
        path: String,
    },
    /// A server socket can't be bound.
    #[error("Failed to bind socket to {address}: {}", reason(.source))]
    Bind {
        /// The path, or host and port.
        address: String,
        /// The system's reason.
        source: io::Error,
    },
    /// No port of a range is free.
    #[error("Failed to find an available port: {}", reason(.source))]
    NoPort {
        /// The system's reason for the last port tried.
        source: io::Error,
    },
    /// A client socket finds nobody.
    #[error("Failed to connect to '{address}': {}", reason(.source))]
    Connect {
        /// The path, or host and port.
        address: String,
        /// The system's reason.
        source: io::Error,
    },
    /// A host or service name means nothing.
    #[error("address resolution failed for {address}: {reason}")]
    Resolve {
        /// Host and port as given.
        address: String,
        /// The resolver's reason.
        reason: String,
    },
    /// A file can't be opened.
    #[error("Could not open '{path}': {}", reason(.source))]
    Open {
        /// The path as given.
        path: String,
        /// The system's reason.
        source: io::Error,
    },
    /// A file descriptor given by number isn't one that can be used.
    #[error("File descriptor '{fd}' {problem}")]
    Fd {
        /// The number.
        fd: i32,
        /// What is wrong with it.
        problem: String,
    },
    /// Options that contradict each other or are out of range.
    #[error("{0}")]
    Option(String),
    /// The system refuses something else.
    #[error("{what}: {}", reason(.source))]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's reason.
        source: io::Error,
    },
}

/// The system's text for an error, without the number that `std` appends.
pub fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    match text.rfind(" (os error ") {
        Some(at) => text[..at].to_owned(),
        None => text,
    }
}
