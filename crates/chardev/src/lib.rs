//! Character devices: where the bytes of serial ports and monitors come from and go to.
//!
//! A [`Chardev`] is opened from its parsed options ([`ChardevSpec`]) and has a device model in front
//! ([`CharReceiver`]), which writes to it as a [`CharBackend`], and a thread of its own behind, which does all
//! the I/O: a vCPU that writes to a serial port never waits for a terminal, a disk or a peer. Output that
//! nobody reads is bounded by [`OUTPUT_BYTES`]; input waits with its sender until the device model wants it.
//!
//! | module | what is in it |
//! |---|---|
//! | [`socket`] | stream sockets by QEMU's options, for character devices and monitors |
//! | `device`, `worker` | the character device and its thread |
//! | `mux` | several device models on one, with Ctrl-A to choose |
//! | `terminal` | the process's terminal in raw mode, and back |
//!
//! The frontend interface is drawn after what the 16550 and virtio-serial need; options and what
//! `query-chardev` reports follow QEMU 7.2.

mod device;
mod error;
mod fd;
mod frontend;
mod mux;
pub mod socket;
mod spec;
mod terminal;
mod worker;

pub use device::{Chardev, Notice, OUTPUT_BYTES};
pub use error::{ChardevError, reason};
pub use frontend::{CharBackend, CharEvent, CharReceiver, ChardevInfo};
pub use mux::{Mux, MuxPort};
pub use spec::ChardevSpec;
pub use terminal::restore_terminal;
