//! What Linux and its tools report of the machine, kept in `tests/golden/platform`: `direct` and `seabios`
//! for the two ways to boot, and `peer` for what they report on QEMU.
//!
//! `RHEA_RECORD=1` writes the files again, that of the peer where QEMU is installed.

use super::{SEABIOS, binary};
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use testkit::{Guest, Vm, VmBuilder};

/// Complaints that come of how fast the host is and how busy.
const OF_TIMING: &[&str] = &[
    "clocksource",
    "hrtimer",
    "rcu",
    "perf:",
    "sched",
    "workqueue",
    "TSC",
    "tsc",
    "Spurious LAPIC timer",
];

struct Report {
    /// The sections of the golden file.
    text: String,
    /// The kernel's warnings and errors, without their times.
    complaints: Vec<String>,
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/platform").join(name)
}

/// Boots a PC with what it has by default, and a disk.
fn report(program: &Path, linux: &Guest, firmware: &[&str]) -> Result<Report> {
    let builder = VmBuilder::bare(program)?
        .disk()?
        .args(["-display", "none", "-serial", "stdio", "-nic", "none", "-accel", "tcg"])
        .args(["-machine", "pc,usb=on", "-smp", "2"])
        .args(["-uuid", "550e8400-e29b-41d4-a716-446655440000"])
        .args(firmware);
    let mut vm = builder.linux(linux, "commands").spawn()?;
    vm.serial.wait_for("rhea-guest: commands\r\n")?;
    let text = format!(
        "== lspci -nn\n{}\n== /proc/interrupts\n{}\n== /proc/cpuinfo\n{}\n== /sys/power\n{}\n\
         == dmidecode\n{}\n",
        vm.serial.run("lspci -nn")?,
        interrupts(&mut vm)?,
        vm.serial.run("grep -m 2 -e 'model name' -e flags /proc/cpuinfo")?,
        vm.serial.run("cat /sys/power/state /sys/power/mem_sleep")?,
        vm.serial.run("dmidecode -q")?,
    );
    let complaints = complaints(&vm.serial.run("dmesg -r")?);
    Ok(Report { text, complaints })
}

/// Number, controller and name of each interrupt, without how often it came.
fn interrupts(vm: &mut Vm) -> Result<String> {
    let table = vm.serial.run("cat /proc/interrupts")?;
    let mut lines = table.lines();
    let cpus = lines.next().context("a heading")?.split_whitespace().count();
    let names = lines.map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let counts = words.iter().skip(1).take(cpus).filter(|w| w.parse::<u64>().is_ok()).count();
        let rest = words.get(1 + counts..).unwrap_or_default();
        format!("{} {}", words.first().unwrap_or(&""), rest.join(" "))
    });
    Ok(names.collect::<Vec<_>>().join("\n"))
}

/// The messages of level 4 (warning) and worse in `dmesg -r`, without those of [`OF_TIMING`]; numbers in
/// them, as addresses, are left out.
fn complaints(log: &str) -> Vec<String> {
    let serious = log.lines().filter_map(|line| {
        let (level, rest) = line.strip_prefix('<')?.split_once('>')?;
        let level: u32 = level.parse().ok()?;
        let (_, message) = rest.split_once("] ")?;
        (level & 7 <= 4).then_some(message)
    });
    let lasting = serious.filter(|m| !OF_TIMING.iter().any(|word| m.contains(word)));
    lasting.map(|message| message.replace(|c: char| c.is_ascii_digit(), "")).collect()
}

fn is_recording() -> bool {
    std::env::var_os("RHEA_RECORD").is_some()
}

fn check(name: &str, linux: &Guest, firmware: &[&str]) -> Result<()> {
    let report = report(&binary(), linux, firmware)?;
    if is_recording() {
        fs::create_dir_all(golden(""))?;
        fs::write(golden(name), &report.text)?;
        record_peer(linux)?;
    }
    let expected = fs::read_to_string(golden(name))?;
    for (ours, theirs) in report.text.lines().zip(expected.lines()) {
        ensure!(ours == theirs, "it says\n{ours}\nand said\n{theirs}");
    }
    ensure!(report.text == expected, "it says more, or less:\n{}", report.text);
    let known = fs::read_to_string(golden("peer-complaints"))?;
    let new: Vec<_> =
        report.complaints.iter().filter(|c| !known.lines().any(|known| known == *c)).collect();
    ensure!(new.is_empty(), "complaints that there are not on QEMU: {new:#?}");
    Ok(())
}

fn record_peer(linux: &Guest) -> Result<()> {
    let Some(peer) = testkit::peer() else { return Ok(()) };
    let report = report(&peer, linux, &[])?;
    fs::write(golden("peer"), report.text)?;
    let mut complaints = report.complaints;
    complaints.push(String::new());
    fs::write(golden("peer-complaints"), complaints.join("\n"))?;
    Ok(())
}

/// Runs the test called `name` with Debian's kernel for all machines and an initramfs of drivers and tools,
/// or skips it. `file` is what it is compared with.
fn with_linux(name: &str, file: &str, body: impl FnOnce(&Guest) -> Result<()>) {
    if !golden(file).is_file() && !is_recording() {
        let reason = format!("no golden/platform/{file}: run it with RHEA_RECORD=1");
        return testkit::skip(name, &reason);
    }
    if !Path::new(SEABIOS).is_file() {
        return testkit::skip(name, "SeaBIOS is not installed (Debian package seabios)");
    }
    let images = ["storage-linux", "platform-initramfs"].map(testkit::guest_image);
    let [Some(kernel), Some(initrd)] = images else {
        return testkit::skip(name, "no platform-initramfs: run `cargo xtask guests`");
    };
    testkit::run(name, || body(&Guest { kernel, initrd }));
}

#[test]
fn linux_reports_what_it_reported() {
    with_linux("linux_reports_what_it_reported", "direct", |linux| check("direct", linux, &[]));
}

#[test]
fn linux_reports_what_it_reported_by_seabios() {
    with_linux("linux_reports_what_it_reported_by_seabios", "seabios", |linux| {
        check("seabios", linux, &["-bios", "bios-256k.bin"])
    });
}
