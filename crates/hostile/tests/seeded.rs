//! The fuzz target's guests, as many as there is time for in every run of the tests.
//!
//! `RHEA_HOSTILE=FIRST..END` runs those seeds instead, and tells of the step that took longest.

use hostile::{Reach, run_seed, watch};

/// Seeds of a normal run: ten for each machine.
const SEEDS: std::ops::Range<u64> = 0..40;

/// Drives that guests have to reach, and whether they can be written.
const READ_AND_WRITTEN: &[(&str, bool)] = &[
    ("ide0-hd0", true),
    ("ide0-hd1", true),
    ("ide1-cd0", false),
    ("floppy0", true),
    ("floppy1", false),
    ("stick", true),
    ("a", true),
    ("b", false),
    ("c", true),
    ("d", true),
];

#[test]
fn no_guest_breaks_the_machine() {
    watch::start();
    let asked = std::env::var("RHEA_HOSTILE").ok();
    let seeds = asked.as_deref().map_or(SEEDS, |asked| {
        let (first, end) = asked.split_once("..").expect("RHEA_HOSTILE=FIRST..END");
        first.parse().expect("a number")..end.parse().expect("a number")
    });
    let mut failures = Vec::new();
    let mut all = Reach::new();
    for seed in seeds {
        match run_seed(seed) {
            Ok(reach) => {
                for (drive, (reads, writes)) in reach {
                    let sum = all.entry(drive).or_default();
                    *sum = (sum.0 + reads, sum.1 + writes);
                }
            }
            Err(failure) => failures.push(format!("{failure:#}")),
        }
        if asked.is_some() {
            let (took, step) = watch::longest();
            println!("seed {seed}: longest step {took:?}: {step:.100}");
        }
    }
    watch::end();
    println!("reads and writes of each drive: {all:?}");
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    // Guests that never get to the disks find nothing there.
    if asked.is_none() {
        for (drive, expected) in READ_AND_WRITTEN {
            let (reads, writes) = all.get(*drive).copied().unwrap_or_default();
            let is_enough = reads >= 10 && (writes >= 5 || !expected);
            assert!(is_enough, "drive {drive}: {reads} reads and {writes} writes");
        }
    }
}
