//! qtest: a machine's devices driven by a test program instead of by a guest.
//!
//! Follows the protocol in QEMU's developer documentation (`docs/devel/qtest.rst`), and QEMU 7.2 where
//! that is silent. A line in is a command, a line out its answer: `OK` with a value perhaps, `FAIL` or
//! `ERR` with a reason. `IRQ raise N` and `IRQ lower N` come before the answer of the command that caused
//! them, or by themselves.
//!
//! | module | what is in it |
//! |---|---|
//! | `command` | the commands, from text |
//! | `session` | what each of them does |
//! | `server` | the thread that answers on a character device |
//! | `tap` | interrupt lines that somebody listens to |
//!
//! Accesses are those of CPU 0: the whole board answers. With `-accel qtest` no CPU runs, and guest time
//! passes only by `clock_step` and `clock_set`; timers fire on the thread that gave the command.

mod command;
mod server;
mod session;
mod tap;

pub use server::{Qtest, QtestLog};
pub use session::Session;
pub use tap::{LineWatcher, Tap};
