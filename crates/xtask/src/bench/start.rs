//! From the start of the process to the QMP greeting, the memory resident by then, and from `quit`
//! to the end of the process.

use super::Bench;
use anyhow::{Context as _, Result, bail};
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;
use testkit::VmBuilder;

const GUEST_MIB: u64 = 128;

pub(super) fn run(bench: &Bench) -> Result<()> {
    println!("\nstart: -S -nodefaults -m {GUEST_MIB} -qmp stdio");
    let names = ["start to greeting (ms)", "resident beyond guest memory (MiB)"];
    bench.compare(&names, 21, measure)?;
    println!("\nquit: a guest that spins with interrupts disabled");
    bench.compare(&["quit to exit (ms)"], 11, measure_quit)
}

fn measure_quit(binary: &Path) -> Result<Vec<f64>> {
    let mut vm = VmBuilder::new(binary)?.code(testkit::bare::SPIN)?.spawn()?;
    vm.serial.wait_for("S")?;
    vm.qmp()?;
    let start = Instant::now();
    vm.qmp()?.query("quit")?;
    vm.wait_exit()?;
    Ok(vec![start.elapsed().as_secs_f64() * 1e3])
}

fn measure(binary: &Path) -> Result<Vec<f64>> {
    let start = Instant::now();
    let mut child = Command::new(binary)
        .args(["-S", "-nodefaults", "-display", "none", "-accel", "tcg"])
        .args(["-m", &GUEST_MIB.to_string(), "-qmp", "stdio"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", binary.display()))?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("a pipe")?).read_line(&mut line)?;
    let milliseconds = start.elapsed().as_secs_f64() * 1e3;
    let resident = resident_kib(child.id());
    child.kill()?;
    child.wait()?;
    if !line.contains("QMP") {
        bail!("{} sent no greeting: {line:?}", binary.display());
    }
    Ok(vec![milliseconds, resident? as f64 / 1024.0])
}

/// Resident memory but for the guest's, which is the mapping of exactly the guest's size.
fn resident_kib(pid: u32) -> Result<u64> {
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let mut size = 0;
    let mut resident = 0;
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (name, value) = (words.next(), words.next().and_then(|word| word.parse().ok()));
        match (name, value) {
            (Some("Size:"), Some(value)) => size = value,
            (Some("Rss:"), Some(value)) if size != GUEST_MIB * 1024 => resident += value,
            _ => {}
        }
    }
    Ok(resident)
}
