//! The Python library qemu.qmp and its `qmp-shell`, unmodified, drive the monitor.
//!
//! `cargo xtask test` installs them from PyPI into `target/qmp-venv`; without it these tests are
//! skipped, loudly.

use anyhow::{Context as _, Result, ensure};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use testkit::{Vm, VmBuilder, bare};

/// Runs `body` with a machine that waits for `cont` and the directory of the Python programs.
fn with_python(name: &str, body: impl FnOnce(&mut Vm, PathBuf) -> Result<()>) {
    let programs = testkit::workspace().join("target/qmp-venv/bin");
    if !programs.join("qmp-shell").is_file() {
        testkit::skip(name, "no qemu.qmp: run `cargo xtask test` with python3 and a network");
        return;
    }
    testkit::run(name, || {
        let binary = testkit::binary(env!("CARGO_BIN_EXE_rhea"));
        let builder = VmBuilder::new(&binary)?.args(["-S", "-name", "driven"]);
        let mut vm = builder.code(bare::SPIN)?.spawn()?;
        // Until the socket listens; a client that finds none gives up.
        drop(vm.connect("qmp.sock")?);
        body(&mut vm, programs)
    });
}

#[test]
fn qemu_qmp_drives_the_monitor() {
    with_python("qemu_qmp_drives_the_monitor", |vm, programs| {
        let output = Command::new(programs.join("python"))
            .arg(testkit::workspace().join("tests/qemu-qmp/drive.py"))
            .arg(vm.path("qmp.sock"))
            .output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "drive.py: {errors}");
        ensure!(String::from_utf8_lossy(&output.stdout).matches("ok ").count() == 6);
        Ok(())
    });
}

#[test]
fn qmp_shell_drives_the_monitor() {
    with_python("qmp_shell_drives_the_monitor", |vm, programs| {
        let mut shell = Command::new(programs.join("qmp-shell"))
            .arg(vm.path("qmp.sock"))
            .env("HOME", vm.path(""))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let commands = "query-status\nquery-name\nballoon value=1048576\nno-such-command\n\
                        cont\nquery-status\nquit\n";
        shell.stdin.take().context("a pipe")?.write_all(commands.as_bytes())?;
        let output = shell.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        for expected in ["prelaunch", "driven", "DeviceNotActive", "CommandNotFound", "running"] {
            ensure!(text.contains(expected), "no {expected} in: {text}\n{errors}");
        }
        ensure!(vm.wait_exit()?.success());
        Ok(())
    });
}
