//! `cargo xtask boot`: the real guest on this terminal.

use crate::{guest, workspace};
use anyhow::{Context as _, Result, bail};
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

/// Parses `[--cpus N] [--memory MIB] [--accel NAME] [--mode MODE] [-- ARGUMENT...]` and boots.
pub(crate) fn run(arguments: &[String]) -> Result<ExitCode> {
    let (mut cpus, mut memory, mut accel, mut mode) = ("1", "256", "tcg", "shell");
    let mut extra: &[String] = &[];
    let mut rest = arguments.iter();
    while let Some(option) = rest.next() {
        let place = match option.as_str() {
            "--cpus" => &mut cpus,
            "--memory" => &mut memory,
            "--accel" => &mut accel,
            "--mode" => &mut mode,
            "--" => {
                extra = rest.as_slice();
                break;
            }
            other => bail!("boot: unknown option '{other}'"),
        };
        *place = rest.next().with_context(|| format!("boot: {option} needs a value"))?;
    }

    let guest = guest::make(false)?;
    let disk = guest.join("disk.raw");
    if !disk.exists() {
        testkit::disk_image(&disk)?;
    }
    let binary = release_binary()?;
    let socket = guest.join("qmp.sock");
    println!("boot: {} with {cpus} CPU(s); QMP at {}", binary.display(), socket.display());
    // Without the kernel's self-tests of its cryptography, nearly half of a boot's instructions.
    let append = format!("console=ttyS0 panic=-1 cryptomgr.notests rhea.test={mode}");
    let path = |name: &str| guest.join(name).into_os_string();
    let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
    let mut command = Command::new(&binary);
    command
        .args(words(&["-nodefaults", "-display", "none", "-serial", "stdio", "-accel", accel]))
        .args(words(&["-m", memory, "-smp", cpus]))
        .args([OsString::from("-kernel"), path("vmlinuz")])
        .args([OsString::from("-initrd"), path("initramfs.cpio")])
        .args(words(&["-append", &append]))
        .args(words(&["-drive", &format!("file={},format=raw,if=none,id=d0", disk.display())]))
        .args(words(&["-device", "virtio-blk-pci,drive=d0"]))
        .args(words(&["-device", "virtio-balloon-pci", "-device", "virtio-rng-pci"]))
        .args(words(&["-qmp", &format!("unix:{},server=on,wait=off", socket.display())]))
        .args(extra);
    let status = command.status().with_context(|| format!("cannot start {}", binary.display()))?;
    match (status.code(), status.signal()) {
        (Some(code), _) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(1))),
        (None, signal) => bail!("{} ended by signal {signal:?}", binary.display()),
    }
}

/// What `RHEA_BIN` names, else this project's program, built with optimisation.
pub(crate) fn release_binary() -> Result<PathBuf> {
    if let Some(binary) = std::env::var_os("RHEA_BIN") {
        return Ok(binary.into());
    }
    if !cargo_build("rhea").status().context("cannot run cargo")?.success() {
        bail!("rhea does not build");
    }
    Ok(target().join("release/rhea"))
}

/// cargo, about to build a package with optimisation.
pub(crate) fn cargo_build(package: &str) -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--release", "--package", package]).current_dir(workspace());
    cargo
}

/// Where cargo puts what it builds.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}
