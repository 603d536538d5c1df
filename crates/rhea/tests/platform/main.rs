//! What Linux says of the machine, how it sleeps on it, and how it is started: directly, by SeaBIOS, by OVMF.
//!
//! The guests come from `cargo xtask guest` and `cargo xtask guests`; without them these tests are skipped,
//! loudly. See `linux.rs` for `RHEA_BIN`.

mod boot;
mod report;
mod sleep;

use anyhow::Result;
use std::path::{Path, PathBuf};
use testkit::{Guest, Vm, VmBuilder};

const SEABIOS: &str = "/usr/share/seabios/bios-256k.bin";
const OVMF_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const OVMF_VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

fn binary() -> PathBuf {
    testkit::binary(env!("CARGO_BIN_EXE_rhea"))
}

/// Runs the test called `name`, which needs `firmware` and the guest of `cargo xtask guest`, or skips it.
fn with_guest(name: &str, firmware: &[&str], body: impl FnOnce(&Guest) -> Result<()>) {
    if let Some(missing) = firmware.iter().find(|path| !Path::new(path).is_file()) {
        return testkit::skip(name, &format!("no {missing}: install seabios and ovmf"));
    }
    let Some(guest) = Guest::find_or_skip(name) else { return };
    testkit::run(name, || body(&guest));
}

/// Boots the guest to where it takes commands.
fn start(guest: &Guest, arguments: &[&str]) -> Result<Vm> {
    let builder = VmBuilder::new(&binary())?.linux(guest, "commands");
    let mut vm = builder.args(arguments).spawn()?;
    vm.serial.wait_for("rhea-guest: commands\r\n")?;
    Ok(vm)
}
