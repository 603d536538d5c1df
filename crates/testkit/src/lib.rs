//! What tests and benchmarks share to run an emulator from outside: start the program, read its
//! serial console, talk QMP to it, and keep what it said when something fails.
//!
//! Nothing here knows Rhea's insides: the program under test is a path and a QEMU command line, so
//! that the same tests run against QEMU, which proves the tests. The QMP client is small and its
//! own on purpose: a mistake in the `qmp` crate must not hide itself.
//!
//! Deadlines only tell a hang from slowness; see [`deadline`]. No test asserts a speed.

pub mod bare;
mod guest;
mod qmp;
pub mod qtest;
pub mod screen;
mod serial;
mod terminal;
mod vm;

pub use guest::{Guest, disk_image, guest_image, skip};
pub use qmp::{Qmp, QmpError};
pub use serial::Serial;
pub use terminal::Terminal;
pub use vm::{NO_SELF_TESTS, Vm, VmBuilder, run};

use std::path::{Path, PathBuf};
use std::time::Duration;

/// The program under test: what the environment variable `RHEA_BIN` names, else `default`.
pub fn binary(default: impl Into<PathBuf>) -> PathBuf {
    std::env::var_os("RHEA_BIN").map_or_else(|| default.into(), PathBuf::from)
}

/// The peer to compare with: what `RHEA_PEER` names, else `qemu-system-x86_64` where it is
/// installed.
pub fn peer() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("RHEA_PEER") {
        return Some(path.into());
    }
    let name = "qemu-system-x86_64";
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
}

/// Root of the workspace.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("crates/testkit is two levels below the root")
        .to_owned()
}

/// How long to wait for something before calling it a hang: five minutes, or
/// `RHEA_TEST_DEADLINE` seconds.
pub fn deadline() -> Duration {
    let seconds = std::env::var("RHEA_TEST_DEADLINE").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(300))
}
