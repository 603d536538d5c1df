//! Programs at work: on the host, in a Linux guest under the peer, and in the same guest under Rhea.
//!
//! `crates/bench-guest` has the programs, and Debian's packages more of them. All three run the same
//! files. Each program is repeated for a while and the time of one repetition is compared, so none
//! has to be scaled to the speed of what runs it. Both machines are up all the time, and each program
//! runs in the three places one after the other, so that a busy host harms all of them.
//!
//! A guest measures by its own clock, which an emulator could make slow. So the host measures too, by
//! what the guest prints on its serial port before and after. It also measures what its CPUs spend on each,
//! which says more on a host with other work.

mod place;
mod table;

use super::Bench;
use anyhow::{Context as _, Result, ensure};
use place::{Guests, Place, Sample};

/// How long a program is repeated, in seconds; the last repetition is finished.
const SECONDS: f64 = 0.5;

/// What one CPU does alone, then two at once; nothing that needs the kernel much.
const INDEPENDENT: &[&str] = &["integer", "sort", "hash", "double", "text"];

/// All samples of one program in one place.
type Samples = Vec<Sample>;

/// A program's samples on the host, under the peer, under ours.
struct Row {
    name: String,
    native: Samples,
    peer: Samples,
    ours: Samples,
}

pub(super) fn run(bench: &Bench) -> Result<()> {
    let guests = Guests::make()?;
    let mut places = Places::start(bench, &guests, 1)?;
    let names = chosen(places.native.programs()?, &bench.only)?;
    let time = if bench.cpu_time { "time of the host's CPUs for" } else { "time of" };
    println!("\ncpu: programs in Linux; {time} one repetition, medians");
    let mut rows: Vec<Row> = names
        .into_iter()
        .map(|name| Row { name, native: Vec::new(), peer: Vec::new(), ours: Vec::new() })
        .collect();
    let mut failed = 0;
    for _ in 0..bench.rounds.unwrap_or(3).max(1) {
        for row in &mut rows {
            // One that fails does not take the measurements of the others with it.
            match places.sample(row, 1) {
                Ok(()) => eprintln!("{}", table::last(row, bench.cpu_time)),
                Err(error) => {
                    failed += 1;
                    eprintln!("{}: {error:#}", row.name);
                }
            }
        }
        eprintln!();
    }
    table::print(&rows, bench.cpu_time);
    ensure!(failed == 0, "{failed} runs of programs failed");
    Ok(())
}

/// Two virtual CPUs against one, on work that has nothing in common.
pub(super) fn smp(bench: &Bench) -> Result<()> {
    let guests = Guests::make()?;
    let mut places = Places::start(bench, &guests, 2)?;
    println!("\nsmp: throughput of two processes on two CPUs, times that of one");
    let mut rows = Vec::new();
    for name in INDEPENDENT {
        let [mut one, mut two] = [1, 2].map(|_| Row {
            name: (*name).to_owned(),
            native: Vec::new(),
            peer: Vec::new(),
            ours: Vec::new(),
        });
        eprint!("{name} ");
        for _ in 0..bench.rounds.unwrap_or(3).max(1) {
            places.sample(&mut one, 1)?;
            places.sample(&mut two, 2)?;
        }
        rows.push((one, two));
    }
    eprintln!();
    table::print_scaling(&rows);
    Ok(())
}

/// The programs that were asked for, in the order of the list; all, if none were.
fn chosen(all: Vec<String>, only: &[String]) -> Result<Vec<String>> {
    if let Some(name) = only.iter().find(|name| !all.contains(name)) {
        anyhow::bail!("bench: there is no program '{name}'; there are {}", all.join(", "));
    }
    Ok(all.into_iter().filter(|name| only.is_empty() || only.contains(name)).collect())
}

/// Where programs run.
struct Places {
    native: Place,
    peer: Option<Place>,
    ours: Place,
}

impl Places {
    fn start(bench: &Bench, guests: &Guests, cpus: usize) -> Result<Self> {
        let peer = bench.peer.as_deref();
        let ours: Vec<&str> = bench.accel.iter().flat_map(|name| ["-accel", name]).collect();
        Ok(Self {
            native: guests.native()?,
            peer: peer
                .map(|binary| guests.boot(binary, cpus, &[]))
                .transpose()
                .context("booting the peer's guest")?,
            ours: guests.boot(&bench.ours, cpus, &ours).context("booting our guest")?,
        })
    }

    /// Runs a program once in each place, in `processes` processes.
    fn sample(&mut self, row: &mut Row, processes: usize) -> Result<()> {
        row.native.push(self.native.measure(&row.name, processes, SECONDS)?);
        if let Some(peer) = &mut self.peer {
            let sample = peer.measure(&row.name, processes, SECONDS);
            row.peer.push(sample.with_context(|| format!("{} under the peer", row.name))?);
        }
        let sample = self.ours.measure(&row.name, processes, SECONDS);
        row.ours.push(sample.with_context(|| format!("{} under ours", row.name))?);
        let expected = row.native.first().map(|sample| sample.check);
        let differs = |samples: &Samples| samples.iter().any(|s| Some(s.check) != expected);
        for (whose, samples) in [("native", &row.native), ("peer", &row.peer), ("our", &row.ours)] {
            ensure!(
                !differs(samples),
                "{}: the {whose} result is {:?}, and not {expected:?} as on the host",
                row.name,
                samples.last().map(|sample| sample.check)
            );
        }
        Ok(())
    }
}
