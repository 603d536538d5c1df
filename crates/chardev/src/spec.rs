//! The parsed options of a character device, as `-chardev` and `-serial` give them.

use std::path::PathBuf;

use crate::socket::SocketSpec;

/// The parsed options of a character device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChardevSpec {
    /// Swallows everything.
    Null,
    /// Standard input and output of the process, one character device at most.
    Stdio {
        /// Whether Ctrl-C and its like still end the process (`signal=on`); otherwise the guest reads
        /// them as bytes.
        signal: bool,
    },
    /// Output to a file.
    File {
        /// The file, created when it isn't there.
        path: PathBuf,
        /// Whether what is in it stays (`append=on`).
        append: bool,
    },
    /// A stream socket.
    Socket(SocketSpec),
    /// A pseudo-terminal that the system names.
    Pty,
    /// The last bytes of output, in memory.
    Ringbuf {
        /// How many; a power of two.
        size: usize,
    },
    /// Another one, shared by several front ends that Ctrl-A c goes round (`mux=on`).
    Mux(Box<ChardevSpec>),
}
