//! From the start of the process to the QMP greeting, the memory resident by then, and from `quit`
//! to the end of the process.

use super::{Bench, memory};
use anyhow::{Context as _, Result, bail};
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
    let resident = memory::beyond_guest(child.id(), GUEST_MIB);
    child.kill()?;
    child.wait()?;
    if !line.contains("QMP") {
        bail!("{} sent no greeting: {line:?}", binary.display());
    }
    Ok(vec![milliseconds, resident?])
}
