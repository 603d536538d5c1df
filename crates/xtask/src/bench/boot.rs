//! From the start of the process to a Linux guest's first process being ready.

use super::Bench;
use crate::guest;
use anyhow::Result;
use std::path::Path;
use std::time::Instant;
use testkit::{Guest, VmBuilder};

pub(super) fn run(bench: &Bench) -> Result<()> {
    let directory = guest::make(false)?;
    let guest =
        Guest { kernel: directory.join("vmlinuz"), initrd: directory.join("initramfs.cpio") };
    println!("\nboot: Debian's cloud kernel with a busybox initramfs");
    for cpus in ["1", "4"] {
        let name = format!("{cpus} CPU(s), start to ready (s)");
        bench.compare(&[&name], 3, |binary| measure(binary, &guest, cpus))?;
    }
    Ok(())
}

fn measure(binary: &Path, guest: &Guest, cpus: &str) -> Result<Vec<f64>> {
    let builder = VmBuilder::new(binary)?.disk()?.args(["-smp", cpus]).linux(guest, "shell");
    let start = Instant::now();
    let mut vm = builder.spawn()?;
    vm.serial.wait_for("rhea-guest: ready")?;
    Ok(vec![start.elapsed().as_secs_f64()])
}
