//! Linux that is itself a host: the initramfs of `cargo xtask guest` with KVM's modules, for Debian's
//! kernel for all machines, and a program that runs guests by it.

use super::packages::only_file;
use super::{Kitchen, run};
use crate::{guest, workspace};
use anyhow::{Context as _, Result};
use std::fs;
use std::path::Path;

const MODULES: &[&str] = &["kvm_amd", "button"];
/// The program, which needs nothing but the standard library.
const PROGRAM: &str = "crates/xtask/guest/kvm-test.rs";

pub(super) fn initramfs(kitchen: &Kitchen, image: &Path) -> Result<()> {
    let package = kitchen.packages.kernel_of("linux-image-amd64")?;
    let modules = only_file(&kitchen.packages.unpacked(&package)?.join("lib/modules"), "")?;
    let busybox = kitchen.packages.unpacked("busybox-static")?;
    let mut archive = guest::archive(&busybox, &modules, MODULES)?;
    let program = kitchen.scratch("nested")?.join("kvm-test");
    let source = workspace().join(PROGRAM);
    let mut arguments: Vec<&std::ffi::OsStr> =
        ["--edition", "2024", "-O", "-C", "target-feature=+crt-static", "-C", "panic=abort"]
            .iter()
            .chain(["-C", "strip=symbols", "-o"].iter())
            .map(std::ffi::OsStr::new)
            .collect();
    arguments.extend([program.as_os_str(), source.as_os_str()]);
    run("rustc", &arguments)?;
    let program =
        fs::read(&program).with_context(|| format!("cannot read {}", program.display()))?;
    archive.file("bin/kvm-test", 0o755, &program);
    fs::write(image, archive.finish())?;
    Ok(())
}
