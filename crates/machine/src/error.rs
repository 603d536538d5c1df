//! Why a machine could not be made.

use crate::pc::boot::BootError;

/// Why a machine could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] memory::MemoryError),
    /// A character device.
    #[error("chardev '{id}': {source}")]
    Chardev {
        /// Its id.
        id: String,
        /// What is wrong.
        source: chardev::ChardevError,
    },
    /// A kernel or its initial RAM disk.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// An option's value.
    #[error(transparent)]
    Option(#[from] options::OptionError),
    /// Ports or addresses that a device was told to use.
    #[error(transparent)]
    Map(#[from] bus::MapError),
    /// A device or a drive; the text names it.
    #[error("{0}")]
    Device(String),
    /// The host can't start a thread.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
}
