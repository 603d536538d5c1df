//! Guests that try to break the machine: bytes become accesses to every device, and time that passes.
//!
//! The way in is qtest ([`machine::qtest::Session`]), so what a guest does is a script of qtest commands,
//! and the end of it is in the report of a failure. The bytes come from a fuzzer (`fuzz/devices`) or from
//! a seed ([`run_seed`]); a case does the same for the same bytes, up to what the devices' own threads
//! have done by then.
//!
//! What is held, whatever the guest does:
//! - no panic, on any thread ([`watch`]);
//! - no step takes for ever, and no device's worker does;
//! - no memory without bound ([`MEMORY_BOUND`]);
//! - an image keeps its size, and one that is read-only or under a snapshot its contents;
//! - devices that were saved can be restored.
//!
//! | module | what is in it |
//! |---|---|
//! | `bench` | the machines, and the images in their drives |
//! | `guest` | the guest: its choices, its accesses, its script |
//! | `pci` | PCI functions found and switched on |
//! | `traffic` | what it does, one file a kind of device |
//! | `watch` | panics and hangs |

mod bench;
mod guest;
mod pci;
mod traffic;
pub mod watch;

use anyhow::{Context, Result, ensure};
use arbitrary::Unstructured;

use bench::Bench;
use guest::Guest;
pub use guest::Reach;

/// Bytes of a seeded case.
const CASE_BYTES: usize = 48 << 10;
/// Most that the process may ever have in RAM, in bytes: the guest's RAM and the images several times
/// over, and far below what a guest could ask for.
pub const MEMORY_BOUND: u64 = 1 << 30;

/// Runs the case that these bytes are; returns how far it got to the disks.
///
/// # Errors
/// Says what the guest managed to break.
pub fn run(bytes: &[u8]) -> Result<Reach> {
    let mut source = Unstructured::new(bytes);
    let bench = Bench::new(source.arbitrary()?)?;
    let mut guest = Guest::new(&bench, source)?;
    let done = guest.run().and_then(|()| {
        let reach = drop_machine(guest)?;
        bench.check_images()?;
        Ok(reach)
    });
    let script = watch::script();
    let reach =
        done.with_context(|| format!("after these commands, last of {}:\n{script}", bench.name()))?;
    let panics = watch::panics();
    ensure!(panics.is_empty(), "{panics:#?}\nafter, on {}:\n{script}", bench.name());
    let peak = peak_memory()?;
    ensure!(peak < MEMORY_BOUND, "the process had {peak} bytes in RAM");
    Ok(reach)
}

/// Runs the case of a seed.
///
/// # Errors
/// Those of [`run`], with the seed.
pub fn run_seed(seed: u64) -> Result<Reach> {
    let mut bytes = vec![0; CASE_BYTES];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    // Every machine has its turn.
    bytes[0] = seed as u8;
    run(&bytes).with_context(|| format!("seed {seed}"))
}

fn drop_machine(guest: Guest<'_>) -> Result<Reach> {
    watch::step("the machine ends");
    guest.end()
}

/// The most that this process ever had in RAM, in bytes.
fn peak_memory() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")).context("no VmHWM")?;
    Ok(kib.trim().parse::<u64>()? << 10)
}
