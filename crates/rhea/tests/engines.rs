//! How the software CPU is asked to work: both engines in step, time that goes by instructions, and
//! what can be seen of translated code.
//!
//! The Linux guest comes from `cargo xtask guest`; without it these tests are skipped, loudly.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use testkit::{Guest, NO_SELF_TESTS, VmBuilder};

fn binary() -> PathBuf {
    testkit::binary(env!("CARGO_BIN_EXE_rhea"))
}

/// Runs `body` with the guest, or skips the test.
fn with_guest(name: &str, body: impl FnOnce(&Guest) -> Result<()>) {
    let Some(guest) = Guest::find_or_skip(name) else { return };
    testkit::run(name, || body(&guest));
}

/// Boots to a shell and has it compute something.
#[test]
#[ignore = "some 75 s of CPU time"]
fn linux_boots_with_both_engines_in_step() {
    with_guest("linux_boots_with_both_engines_in_step", |guest| {
        let builder = VmBuilder::new(&binary())?.args(["-accel", "soft,check=on"]);
        let mut vm = builder.linux_with(guest, "shell", NO_SELF_TESTS).spawn()?;
        vm.serial.wait_for("rhea-guest# ")?;
        vm.serial.send("echo $((6 * 7))-answered; sha256sum /bin/busybox\n")?;
        vm.serial.wait_for("42-answered")?;
        vm.serial.wait_for("rhea-guest# ")?;
        let status = vm.qmp()?.query("query-status")?;
        ensure!(status["status"] == "running", "{status}: {}", vm.stderr());
        Ok(())
    });
}

/// The console of one boot up to the shell, with the kernel's timestamps.
fn console(guest: &Guest, accel: &str) -> Result<String> {
    let builder = VmBuilder::new(&binary())?.args([
        "-icount",
        "shift=1,sleep=off",
        "-rtc",
        "base=2024-01-01,clock=vm",
        "-accel",
        accel,
    ]);
    let mut vm = builder.linux(guest, "poweroff").spawn()?;
    ensure!(vm.wait_exit()?.success(), "{}", vm.stderr());
    Ok(vm.serial.transcript())
}

#[test]
fn time_that_goes_by_instructions_is_the_same_in_each_run() {
    with_guest("time_that_goes_by_instructions_is_the_same_in_each_run", |guest| {
        let first = console(guest, "soft")?;
        ensure!(first.contains("Linux version"), "{first}");
        // The second run is of the other engine, too.
        let second = console(guest, "soft,translate=off")?;
        if let Some((a, b)) = first.lines().zip(second.lines()).find(|(a, b)| a != b) {
            anyhow::bail!("{a:?} became {b:?}");
        }
        ensure!(first == second, "one console is longer");
        Ok(())
    });
}

/// Each line of a perf map is a place, a length and a name.
fn check_map(path: &Path) -> Result<usize> {
    let map = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let mut kernel = 0;
    for line in map.lines() {
        let parts: Vec<&str> = line.splitn(3, ' ').collect();
        let [start, len, name] = parts[..] else { anyhow::bail!("{line:?}") };
        let (start, len) = (u64::from_str_radix(start, 16)?, u64::from_str_radix(len, 16)?);
        ensure!(start != 0 && len != 0 && len < 1 << 16, "{line:?}");
        ensure!(name.starts_with("guest-"), "{line:?}");
        kernel += usize::from(name.starts_with("guest-kernel-0xffffffff"));
    }
    Ok(kernel)
}

#[test]
fn translated_code_can_be_seen() {
    with_guest("translated_code_can_be_seen", |guest| {
        let builder = VmBuilder::new(&binary())?;
        let log = builder.path("log");
        let mut vm = builder
            .args(["-perfmap", "-d", "in_asm,out_asm,exec,cpu,nochain"])
            .args(["-dfilter", "0xffffffff81000000+0x4000"])
            .args([OsStr::new("-D"), log.as_os_str()])
            .linux(guest, "poweroff")
            // The kernel is where it was linked for. The last one counts.
            .args([
                "-append",
                "console=ttyS0 panic=-1 rhea.test=poweroff cryptomgr.notests nokaslr",
            ])
            .spawn()?;
        let map = PathBuf::from(format!("/tmp/perf-{}.map", vm.pid()));
        ensure!(vm.wait_exit()?.success(), "{}", vm.stderr());
        let kernel = check_map(&map);
        let _ = std::fs::remove_file(&map);
        ensure!(kernel? > 1000, "the kernel's blocks are in the map");
        let log = std::fs::read_to_string(&log)?;
        for wanted in
            ["CPU 0 IN:\n0xffffffff8100", "CPU 0 OUT: [size=", "Trace 0: [cs=0 rip=ffffffff8100"]
        {
            ensure!(log.contains(wanted), "no {wanted:?} in the log");
        }
        let elsewhere = log.lines().find(|line| {
            line.strip_prefix("Trace 0: [cs=0 rip=")
                .is_some_and(|at| !at.starts_with("ffffffff8100"))
        });
        ensure!(elsewhere.is_none(), "{elsewhere:?}");
        Ok(())
    });
}
