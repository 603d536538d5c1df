//! From the start of the process to a Linux guest's first process being ready, and the memory that the
//! emulator used on the way.

use super::{Bench, memory};
use crate::guest;
use anyhow::{Context as _, Result};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use testkit::{Guest, VmBuilder};

/// What `VmBuilder::linux` gives the guest.
const GUEST_MIB: u64 = 256;

pub(super) fn run(bench: &Bench) -> Result<()> {
    let directory = guest::make(false)?;
    let guest =
        Guest { kernel: directory.join("vmlinuz"), initrd: directory.join("initramfs.cpio") };
    println!("\nboot: Debian's cloud kernel with a busybox initramfs");
    for cpus in ["1", "2", "4"] {
        let time = format!("{cpus} CPU(s), start to ready (s)");
        let memory = format!("{cpus} CPU(s), resident beyond guest memory (MiB)");
        bench.compare(&[&time, &memory], 3, |binary| {
            let accel = bench.accel.as_deref().filter(|_| binary == bench.ours);
            measure(binary, &guest, cpus, accel)
        })?;
    }
    Ok(())
}

/// Seconds, and the most memory that was seen until then.
fn measure(binary: &Path, guest: &Guest, cpus: &str, accel: Option<&str>) -> Result<Vec<f64>> {
    let builder = VmBuilder::new(binary)?
        .disk()?
        .args(["-smp", cpus])
        .args(accel.iter().flat_map(|name| ["-accel", name]))
        .linux(guest, "shell");
    let start = Instant::now();
    let mut vm = builder.spawn()?;
    let pid = vm.pid();
    let ready = AtomicBool::new(false);
    let (seconds, memory) = std::thread::scope(|scope| -> Result<_> {
        let watch = scope.spawn(|| {
            let mut most: f64 = 0.0;
            while !ready.load(Ordering::Relaxed) {
                most = most.max(memory::beyond_guest(pid, GUEST_MIB)?);
                std::thread::sleep(Duration::from_millis(100));
            }
            Ok::<_, anyhow::Error>(most.max(memory::beyond_guest(pid, GUEST_MIB)?))
        });
        let waited = vm.serial.wait_for("rhea-guest: ready");
        let seconds = start.elapsed().as_secs_f64();
        ready.store(true, Ordering::Relaxed);
        waited?;
        Ok((seconds, watch.join().ok().context("the watch died")??))
    })?;
    Ok(vec![seconds, memory])
}
