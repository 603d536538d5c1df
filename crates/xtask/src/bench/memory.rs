//! How much memory an emulator uses for itself.

use anyhow::Result;
use std::fs;

/// Resident memory of a process in MiB, but for the guest's, which is the mapping of exactly the
/// guest's size.
pub(super) fn beyond_guest(pid: u32, guest_mib: u64) -> Result<f64> {
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let mut size = 0;
    let mut resident = 0;
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (name, value) = (words.next(), words.next().and_then(|word| word.parse().ok()));
        match (name, value) {
            (Some("Size:"), Some(value)) => size = value,
            (Some("Rss:"), Some(value)) if size != guest_mib * 1024 => resident += value,
            _ => {}
        }
    }
    Ok(resident as f64 / 1024.0)
}
