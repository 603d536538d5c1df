//! The programs that `cargo xtask bench cpu` runs: on the host, and in a Linux guest under each
//! emulator.
//!
//! ```text
//! bench-guest list                        the names of the programs, and what each does
//! bench-guest run NAME OPTIONS            runs one
//! bench-guest together COUNT NAME OPTIONS runs it in COUNT processes at once
//! bench-guest nothing                     ends at once: what the program `exec` starts
//! ```
//!
//! The options are `--seconds S`, how long to measure; `--tools FOLDER`, where compilers and
//! compressors are; and `--work FOLDER`, for files, best in memory.
//!
//! A program is an iteration that is done again and again until the time is over, so that a slow
//! machine needs no other sizes than a fast one. Each iteration does the same and gives the same
//! number, its check: whoever compares machines compares checks too. What is printed is for
//! programs:
//!
//! ```text
//! bench: begin NAME
//! bench: end NAME units=N nanoseconds=N clock=N cpu=N check=N
//! ```
//!
//! `nanoseconds` is the time of all units, `clock` that between the two lines, `cpu` what of it this process
//! and those that it started and awaited were running, all in nanoseconds.
//!
//! | module | programs of |
//! |---|---|
//! | `integer` | integers: loops, calls, bytecode, hashing, sorting, text |
//! | `float` | floating point, packed vectors |
//! | `avx2`, `x87` | what needs instructions by name |
//! | `memory` | copies, chased pointers, atomics |
//! | `kernel` | system calls, processes, page faults, files |
//! | `tools` | Debian's compiler, compressors, openssl |
//! | `source` | (none) the C source that is compiled, the text that is compressed |

mod avx2;
mod float;
mod integer;
mod kernel;
mod memory;
mod random;
mod source;
mod tools;
mod x87;

use anyhow::{Context as _, Result, bail, ensure};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// A program by name.
struct Program {
    name: &'static str,
    about: &'static str,
    make: fn(&Place) -> Result<Iteration>,
}

/// One iteration. State that iterations share, made once and not measured, is in the closure.
type Iteration = Box<dyn FnMut() -> Result<Done>>;

/// What an iteration did.
struct Done {
    /// How many units of work; one, unless the program counts by itself.
    units: u64,
    /// How long it took, of a program that measures by itself.
    time: Option<Duration>,
    /// The same for each iteration on each machine.
    check: u64,
}

/// An iteration that can't fail, and is one unit.
fn simple(mut iteration: impl FnMut() -> u64 + 'static) -> Result<Iteration> {
    Ok(Box::new(move || Ok(Done { units: 1, time: None, check: iteration() })))
}

/// Where files are.
struct Place {
    tools: PathBuf,
    work: PathBuf,
    seconds: f64,
}

fn programs() -> impl Iterator<Item = &'static Program> {
    [
        integer::PROGRAMS,
        float::PROGRAMS,
        avx2::PROGRAMS,
        x87::PROGRAMS,
        memory::PROGRAMS,
        kernel::PROGRAMS,
        tools::PROGRAMS,
    ]
    .into_iter()
    .flatten()
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("bench: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<()> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["list"] => {
            for program in programs() {
                println!("{:<10} {}", program.name, program.about);
            }
            Ok(())
        }
        ["nothing"] => Ok(()),
        ["run", name, options @ ..] => measure(name, &place(options)?),
        ["together", count, name, options @ ..] => {
            together(count.parse().context("COUNT is a number")?, name, options)
        }
        _ => bail!("usage: bench-guest list | run NAME OPTION.. | together COUNT NAME OPTION.."),
    }
}

fn place(options: &[&str]) -> Result<Place> {
    let mut place = Place { tools: "/bench".into(), work: "/tmp".into(), seconds: 1.0 };
    for pair in options.chunks(2) {
        match *pair {
            ["--seconds", value] => place.seconds = value.parse().context("--seconds: a number")?,
            ["--tools", value] => place.tools = value.into(),
            ["--work", value] => place.work = value.into(),
            _ => bail!("unknown option, or one without its value: {}", pair.join(" ")),
        }
    }
    ensure!(place.seconds >= 0.0, "--seconds is not negative");
    Ok(place)
}

/// Repeats a program until its time is over, at least once.
fn measure(name: &str, place: &Place) -> Result<()> {
    let program = programs()
        .find(|program| program.name == name)
        .with_context(|| format!("there is no program '{name}'"))?;
    let mut iteration = (program.make)(place).with_context(|| format!("preparing {name}"))?;
    let limit = Duration::from_secs_f64(place.seconds);
    let start = Stopwatch::begin(name);
    let mut units = 0;
    let mut own_time = None;
    let mut check = None;
    loop {
        let done = iteration().with_context(|| format!("running {name}"))?;
        units += done.units;
        if let Some(time) = done.time {
            *own_time.get_or_insert(Duration::ZERO) += time;
        }
        let first = *check.get_or_insert(done.check);
        ensure!(first == done.check, "{name} gave {first}, then {}", done.check);
        if start.clock.elapsed() >= limit {
            break;
        }
    }
    start.end(name, units, own_time, check.unwrap_or_default());
    Ok(())
}

/// When a program began.
struct Stopwatch {
    clock: Instant,
    cpu: Duration,
}

impl Stopwatch {
    fn begin(name: &str) -> Self {
        println!("bench: begin {name}");
        Self { clock: Instant::now(), cpu: kernel::cpu_time() }
    }

    /// `time` is that of all units, if it isn't that since the beginning.
    fn end(self, name: &str, units: u64, time: Option<Duration>, check: u64) {
        let clock = self.clock.elapsed();
        let [time, clock, cpu] =
            [time.unwrap_or(clock), clock, kernel::cpu_time() - self.cpu].map(|t| t.as_nanos());
        println!(
            "bench: end {name} units={units} nanoseconds={time} clock={clock} cpu={cpu} check={check}"
        );
    }
}

/// Runs a program in several processes at once. The units are those of all, and the time is such
/// that the two give the sum of their rates.
fn together(count: usize, name: &str, options: &[&str]) -> Result<()> {
    let start = Stopwatch::begin(name);
    let children = (0..count)
        .map(|_| {
            Command::new(std::env::current_exe()?)
                .args(["run", name])
                .args(options)
                .stdout(Stdio::piped())
                .spawn()
        })
        .collect::<std::io::Result<Vec<_>>>()?;
    let (mut rate, mut all, mut check) = (0.0, 0, 0);
    for child in children {
        let output = String::from_utf8(child.wait_with_output()?.stdout)?;
        let field = |name: &str| -> Result<u64> {
            let value = output.split_whitespace().find_map(|word| word.strip_prefix(name));
            Ok(value.with_context(|| format!("no {name} in {output:?}"))?.parse()?)
        };
        let units = field("units=")?;
        rate += units as f64 / field("nanoseconds=")? as f64;
        all += units;
        check = field("check=")?;
    }
    let time = Duration::from_nanos((all as f64 / rate) as u64);
    start.end(name, all, Some(time), check);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Place, programs};
    use std::collections::HashSet;

    #[test]
    fn names_are_unique() {
        let mut seen = HashSet::new();
        assert!(programs().all(|program| seen.insert(program.name)));
    }

    /// But for the tools, which have to be fetched, and `exec`, which starts this program.
    #[test]
    fn iterations_are_alike() {
        let place = Place { tools: "/".into(), work: std::env::temp_dir(), seconds: 0.0 };
        let tools: Vec<&str> = super::tools::PROGRAMS.iter().map(|program| program.name).collect();
        for program in programs() {
            if tools.contains(&program.name) || program.name == "exec" {
                continue;
            }
            let check = || {
                let mut iteration = (program.make)(&place).unwrap();
                [iteration().unwrap().check, iteration().unwrap().check]
            };
            let [first, second] = check();
            assert_eq!(first, second, "{}", program.name);
            assert_eq!([first; 2], check(), "{}", program.name);
        }
    }
}
