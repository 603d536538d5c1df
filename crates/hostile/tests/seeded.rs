//! The fuzz target's guests, as many as there is time for in every run of the tests.
//!
//! `RHEA_HOSTILE=FIRST..END` runs those seeds instead, and tells of the step that took longest.

use hostile::{run_seed, watch};

/// Seeds of a normal run: ten for each machine.
const SEEDS: std::ops::Range<u64> = 0..40;

#[test]
fn no_guest_breaks_the_machine() {
    watch::start();
    let asked = std::env::var("RHEA_HOSTILE").ok();
    let seeds = asked.as_deref().map_or(SEEDS, |asked| {
        let (first, end) = asked.split_once("..").expect("RHEA_HOSTILE=FIRST..END");
        first.parse().expect("a number")..end.parse().expect("a number")
    });
    let mut failures = Vec::new();
    for seed in seeds {
        if let Err(failure) = run_seed(seed) {
            failures.push(format!("{failure:#}"));
        }
        if asked.is_some() {
            let (took, step) = watch::longest();
            println!("seed {seed}: longest step {took:?}: {step:.100}");
        }
    }
    watch::end();
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}
