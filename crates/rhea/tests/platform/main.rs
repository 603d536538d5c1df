//! What Linux says of the machine, how it sleeps on it, and how it is started: directly, by SeaBIOS, by OVMF.
//!
//! Debian's kernel for all machines with an initramfs of drivers and tools, from `cargo xtask guests`;
//! without them these tests are skipped, loudly. See `linux.rs` for `RHEA_BIN`.

mod boot;
mod report;
mod sleep;

use anyhow::Result;
use std::path::{Path, PathBuf};
use testkit::{Vm, VmBuilder};

const SEABIOS: &str = "/usr/share/seabios/bios-256k.bin";
const OVMF_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const OVMF_VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

fn binary() -> PathBuf {
    testkit::binary(env!("CARGO_BIN_EXE_rhea"))
}

/// The kernel and its initramfs.
struct Linux {
    kernel: PathBuf,
    initrd: PathBuf,
}

impl Linux {
    /// A machine, without devices that nobody asked for, that boots it to where it takes commands.
    fn boot(&self, builder: VmBuilder) -> VmBuilder {
        let append = "console=ttyS0 panic=-1 rhea.test=commands cryptomgr.notests";
        builder
            .args([Path::new("-kernel"), &self.kernel, Path::new("-initrd"), &self.initrd])
            .args(["-append", append])
    }

    /// The same, started, and ready for commands.
    fn start(&self, builder: VmBuilder) -> Result<Vm> {
        let mut vm = self.boot(builder).spawn()?;
        vm.serial.wait_for("rhea-guest: commands\r\n")?;
        Ok(vm)
    }
}

/// Runs the test called `name`, which needs Linux and `firmware`, or skips it.
fn with_linux(name: &str, firmware: &[&str], body: impl FnOnce(&Linux) -> Result<()>) {
    if let Some(missing) = firmware.iter().find(|path| !Path::new(path).is_file()) {
        return testkit::skip(name, &format!("no {missing}: install seabios and ovmf"));
    }
    let images = ["storage-linux", "platform-initramfs"].map(testkit::guest_image);
    let [Some(kernel), Some(initrd)] = images else {
        return testkit::skip(name, "no platform-initramfs: run `cargo xtask guests`");
    };
    testkit::run(name, || body(&Linux { kernel, initrd }));
}
