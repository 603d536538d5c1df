//! `cargo xtask bench`: Rhea and a peer (QEMU), measured side by side in the same run.
//!
//! Rounds alternate between the two, so that a busy machine harms both; the table has medians and
//! their ratio. Nothing here passes or fails.

mod boot;
mod cpu;
mod instructions;
mod memory;
mod qmp;
mod start;

use crate::boot::release_binary;
use anyhow::{Context as _, Result, bail};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Parses `start|boot|cpu|smp|loop|qmp [OPTION...]` and measures.
pub(crate) fn run(arguments: &[String]) -> Result<ExitCode> {
    let mut bench = Bench { ours: PathBuf::new(), peer: testkit::peer(), ..Bench::default() };
    let mut what = None;
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let mut value = || rest.next().with_context(|| format!("bench: {argument} needs a value"));
        match argument.as_str() {
            "--peer" => bench.peer = Some(value()?.into()),
            "--skip-peer" => bench.peer = None,
            "--cpu-time" => bench.cpu_time = true,
            "--rounds" => bench.rounds = Some(value()?.parse().context("--rounds is a number")?),
            "--only" => bench.only = value()?.split(',').map(str::to_owned).collect(),
            "--accel" => bench.accel = Some(value()?.clone()),
            option if option.starts_with('-') => bail!("bench: unknown option '{option}'"),
            name => what = Some(name),
        }
    }
    bench.ours = release_binary()?;
    match what {
        Some("start") => start::run(&bench)?,
        Some("boot") => boot::run(&bench)?,
        Some("cpu") => cpu::run(&bench)?,
        Some("smp") => cpu::smp(&bench)?,
        Some("loop") => instructions::run(&bench)?,
        Some("qmp") => qmp::run(&bench)?,
        Some("all") | None => {
            start::run(&bench)?;
            qmp::run(&bench)?;
            instructions::run(&bench)?;
            boot::run(&bench)?;
            cpu::smp(&bench)?;
            cpu::run(&bench)?;
        }
        Some(other) => bail!("bench: '{other}' is none of start, boot, cpu, smp, loop, qmp, all"),
    }
    Ok(ExitCode::SUCCESS)
}

/// The two programs, and how to measure them.
#[derive(Default)]
struct Bench {
    ours: PathBuf,
    peer: Option<PathBuf>,
    /// How often; each benchmark knows how often it is worth to.
    rounds: Option<usize>,
    /// The programs of `bench cpu`; all, if empty.
    only: Vec<String>,
    /// Whether `bench cpu` is to show the time of the host's CPUs and not that on the clock.
    cpu_time: bool,
    /// What ours gets as `-accel`, instead of what it does by itself.
    accel: Option<String>,
}

impl Bench {
    /// Measures both programs alternately and prints a line of medians for each of `names`.
    ///
    /// `measure` returns one number for each name. `rounds` is used unless the command line says
    /// otherwise.
    fn compare(
        &self,
        names: &[&str],
        rounds: usize,
        measure: impl Fn(&Path) -> Result<Vec<f64>>,
    ) -> Result<()> {
        let mut ours = Vec::new();
        let mut theirs = Vec::new();
        for _ in 0..self.rounds.unwrap_or(rounds).max(1) {
            ours.push(measure(&self.ours).context("measuring ours")?);
            if let Some(peer) = &self.peer {
                theirs.push(measure(peer).context("measuring the peer")?);
            }
        }
        println!("{:<44} {:>12} {:>12} {:>8}", "", "ours", "peer", "ratio");
        for (index, name) in names.iter().enumerate() {
            let ours = median(&ours, index).context("nothing measured")?;
            match median(&theirs, index) {
                Some(theirs) => {
                    println!("{name:<44} {ours:>12.2} {theirs:>12.2} {:>8.2}", ours / theirs);
                }
                None => println!("{name:<44} {ours:>12.2} {:>12} {:>8}", "-", "-"),
            }
        }
        Ok(())
    }
}

fn median(rounds: &[Vec<f64>], index: usize) -> Option<f64> {
    let mut values: Vec<f64> =
        rounds.iter().filter_map(|values| values.get(index).copied()).collect();
    values.sort_by(f64::total_cmp);
    let middle = [values.len().checked_sub(1)? / 2, values.len() / 2];
    Some(middle.into_iter().map(|index| values[index]).sum::<f64>() / 2.0)
}

#[test]
fn median_is_the_middle_one_or_between_two() {
    assert_eq!(median(&[vec![4.0], vec![1.0], vec![2.0], vec![3.0]], 0), Some(2.5));
    assert_eq!(median(&[vec![3.0], vec![1.0], vec![2.0]], 0), Some(2.0));
    assert_eq!(median(&[], 0), None);
}
