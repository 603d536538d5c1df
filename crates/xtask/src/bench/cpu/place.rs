//! Where programs run: on the host, or in a guest that takes commands on its serial console.

use crate::bench::memory;
use crate::boot::cargo_build;
use crate::cpio::Archive;
use crate::{guest, guests};
use anyhow::{Context as _, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use testkit::{Guest, Serial, Vm, VmBuilder};

const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Memory of a guest in MiB. The tools, twice while they are unpacked, are 140.
const MEMORY: &str = "768";

/// What one run of a program gave.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    /// Time of a repetition in nanoseconds, by the clock of where it ran.
    pub(super) nanoseconds: f64,
    /// Time in nanoseconds that the host's CPUs spent on a repetition.
    pub(super) cpu: f64,
    /// The host's clock divided by that clock, over all repetitions.
    pub(super) drift: f64,
    /// The program's result.
    pub(super) check: u64,
}

/// The programs, and the guest that has them.
pub(super) struct Guests {
    program: PathBuf,
    tools: PathBuf,
    guest: Guest,
}

impl Guests {
    pub(super) fn make() -> Result<Self> {
        let folder = guest::make(false)?;
        let tools = guests::bench_tools()?;
        let program = build()?;
        // An initramfs may be several archives, one after the other.
        let mut image = fs::read(folder.join("initramfs.cpio"))?;
        image.extend(archive(&program, &tools)?);
        let initrd = folder.join("bench-initramfs.cpio");
        fs::write(&initrd, image).with_context(|| format!("cannot write {}", initrd.display()))?;
        Ok(Self { program, tools, guest: Guest { kernel: folder.join("vmlinuz"), initrd } })
    }

    pub(super) fn native(&self) -> Result<Place> {
        // In memory if possible, as in the guest.
        let memory = Path::new("/dev/shm");
        let work = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let work = tempfile::Builder::new().prefix("rhea-bench-").tempdir_in(work)?;
        Ok(Place::Native { program: self.program.clone(), tools: self.tools.clone(), work })
    }

    /// Boots the guest under `binary`, with further arguments.
    pub(super) fn boot(&self, binary: &Path, cpus: usize, arguments: &[&str]) -> Result<Place> {
        let mut vm = VmBuilder::new(binary)?
            .linux(&self.guest, "commands")
            .args(["-m", MEMORY, "-cpu", "max", "-smp", &cpus.to_string()])
            .args(arguments)
            .spawn()?;
        vm.serial.wait_for("rhea-guest: commands")?;
        vm.serial.wait_for("\n")?;
        Ok(Place::Guest(Box::new(vm)))
    }
}

/// Builds `bench-guest` without anything that it would have to be linked with at run time.
fn build() -> Result<PathBuf> {
    let mut cargo = cargo_build("bench-guest");
    cargo.args(["--target", TARGET]).env("RUSTFLAGS", "-C target-feature=+crt-static");
    if !cargo.status().context("cannot run cargo")?.success() {
        bail!("bench-guest does not build");
    }
    Ok(crate::boot::target().join(TARGET).join("release/bench-guest"))
}

fn archive(program: &Path, tools: &Path) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    archive.directory("bin");
    archive.file("bin/bench-guest", 0o755, &fs::read(program)?);
    archive.directory("bench");
    for folder in ["bin", "lib"] {
        archive.directory(&format!("bench/{folder}"));
        for entry in fs::read_dir(tools.join(folder))? {
            let entry = entry?;
            let name = entry.file_name();
            let name = format!("bench/{folder}/{}", name.to_string_lossy());
            archive.file(&name, 0o755, &fs::read(entry.path())?);
        }
    }
    Ok(archive.finish())
}

/// Where a program can run.
pub(super) enum Place {
    Native { program: PathBuf, tools: PathBuf, work: TempDir },
    Guest(Box<Vm>),
}

impl Place {
    /// The names of all programs; of the host only.
    pub(super) fn programs(&self) -> Result<Vec<String>> {
        let Self::Native { program, .. } = self else { bail!("guests are not asked") };
        let output = Command::new(program).arg("list").output()?;
        let text = String::from_utf8(output.stdout)?;
        Ok(text.lines().filter_map(|line| Some(line.split_once(' ')?.0.to_owned())).collect())
    }

    /// Runs a program in `processes` processes at once, for about `seconds`.
    pub(super) fn measure(&mut self, name: &str, processes: usize, seconds: f64) -> Result<Sample> {
        let what = if processes == 1 {
            format!("run {name} --seconds {seconds}")
        } else {
            format!("together {processes} {name} --seconds {seconds}")
        };
        match self {
            Self::Native { program, tools, work } => {
                let mut child = Command::new(&*program)
                    .args(what.split(' '))
                    .arg("--tools")
                    .arg(tools)
                    .arg("--work")
                    .arg(work.path())
                    .stdout(Stdio::piped())
                    .spawn()
                    .with_context(|| format!("cannot start {}", program.display()))?;
                let sample = read_native(&mut child);
                child.wait()?;
                sample
            }
            Self::Guest(vm) => {
                vm.serial.send(&format!("bench-guest {what} --tools /bench --work /tmp\n"))?;
                let pid = vm.pid();
                let sample = read(&mut vm.serial, || memory::cpu_nanoseconds(pid).ok());
                vm.serial.wait_for("rhea-guest: status ")?;
                vm.serial.wait_for("\n")?;
                sample
            }
        }
    }
}

fn read_native(child: &mut Child) -> Result<Sample> {
    let output = child.stdout.take().context("standard output is a pipe")?;
    read(&mut Serial::new(output, std::io::sink()), || None)
}

/// Follows what `bench-guest` prints, measuring the time from its beginning to its end. `cpu` gives the
/// time that CPUs of the host have spent; if it doesn't, what `bench-guest` says is taken.
fn read(output: &mut Serial, cpu: impl Fn() -> Option<u64>) -> Result<Sample> {
    let mut begin = None;
    loop {
        output.wait_for("bench: ")?;
        let line = output.wait_for("\n")?;
        let now = (Instant::now(), cpu());
        match (line.trim().split_once(' '), begin) {
            (Some(("begin", _)), _) => begin = Some(now),
            (Some(("end", fields)), Some((start, spent))) => {
                let cpu = now.1.zip(spent).map(|(end, begin)| end - begin);
                return sample(fields, now.0 - start, cpu);
            }
            _ => bail!("{}", line.trim()),
        }
    }
}

fn sample(fields: &str, elapsed: Duration, cpu: Option<u64>) -> Result<Sample> {
    let field = |name: &str| -> Result<u64> {
        let value = fields.split(' ').find_map(|word| word.strip_prefix(name));
        Ok(value.with_context(|| format!("no {name} in {fields:?}"))?.parse()?)
    };
    let units = field("units=")?.max(1) as f64;
    Ok(Sample {
        nanoseconds: field("nanoseconds=")? as f64 / units,
        cpu: cpu.map_or_else(|| field("cpu="), Ok)? as f64 / units,
        drift: elapsed.as_secs_f64() * 1e9 / field("clock=")?.max(1) as f64,
        check: field("check=")?,
    })
}

#[test]
fn a_line_is_read() {
    let mut output = Serial::new(
        "noise\r\nbench: begin sort\r\nbench: end sort units=4 nanoseconds=10 clock=11 cpu=8 check=7\r\n"
            .as_bytes(),
        std::io::sink(),
    );
    let sample = read(&mut output, || None).unwrap();
    assert_eq!((sample.nanoseconds, sample.cpu, sample.check), (2.5, 2.0, 7));
    let mut output = Serial::new("bench: error: no tools\n".as_bytes(), std::io::sink());
    assert!(read(&mut output, || None).unwrap_err().to_string().contains("no tools"));
}
