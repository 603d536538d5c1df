//! What an emulator uses of the host: memory, time of CPUs.

use anyhow::Result;
use std::fs;

/// What the host may have split off the guest's mapping, in KiB: firmware, and what is not of a large page.
const SPLIT: u64 = 2048;

/// Resident memory of a process in MiB, but for the guest's, which is the mapping of nearly the guest's
/// size.
pub(super) fn beyond_guest(pid: u32, guest_mib: u64) -> Result<f64> {
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let guest = guest_mib * 1024;
    let mut size = 0;
    let mut resident = 0;
    let mut ends = 0;
    let mut again = false;
    for line in maps.lines() {
        if let Some((start, end)) = range(line) {
            // A mapping that grows while the kernel lists it is listed twice.
            again = start < ends;
            ends = end;
        }
        let mut words = line.split_whitespace();
        let (name, value) = (words.next(), words.next().and_then(|word| word.parse().ok()));
        match (name, value) {
            (Some("Size:"), Some(value)) => size = value,
            (Some("Rss:"), Some(value)) if !again && (size > guest || size + SPLIT < guest) => {
                resident += value;
            }
            _ => {}
        }
    }
    Ok(resident as f64 / 1024.0)
}

/// The addresses of the mapping that `line` is the first of, if it is one.
fn range(line: &str) -> Option<(u64, u64)> {
    let (start, end) = line.split(' ').next()?.split_once('-')?;
    Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
}

/// Time in nanoseconds that all threads of a process have been running.
pub(super) fn cpu_nanoseconds(pid: u32) -> Result<u64> {
    let mut sum = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may have ended meanwhile.
        let Ok(text) = fs::read_to_string(thread?.path().join("schedstat")) else { continue };
        sum += text.split(' ').next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(sum)
}

#[test]
fn time_passes_for_threads_that_run() {
    let before = cpu_nanoseconds(std::process::id()).unwrap();
    let mut number = 1_u64;
    while cpu_nanoseconds(std::process::id()).unwrap() == before {
        number = std::hint::black_box(number.wrapping_mul(3));
    }
    assert_ne!(number, 0);
}
