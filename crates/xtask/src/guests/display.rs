//! The initramfs of `cargo xtask guest` with other modules, for Debian's kernel for all machines: drivers
//! for graphics adapters, and libdrm's program that sets modes.

use super::Kitchen;
use super::packages::only_file;
use super::programs;
use crate::guest;
use anyhow::Result;
use std::fs;
use std::path::Path;

const MODULES: &[&str] = &["virtio_pci", "virtio_gpu", "bochs", "evdev", "button"];

pub(super) fn initramfs(kitchen: &Kitchen, image: &Path) -> Result<()> {
    let package = kitchen.packages.kernel_of("linux-image-amd64")?;
    let modules = only_file(&kitchen.packages.unpacked(&package)?.join("lib/modules"), "")?;
    let busybox = kitchen.packages.unpacked("busybox-static")?;
    let mut archive = guest::archive(&busybox, &modules, MODULES)?;
    programs::add(
        kitchen,
        &mut archive,
        &[("libdrm-tests", "usr/bin/modetest")],
        &[("libdrm2", "usr/lib/x86_64-linux-gnu", "libdrm.so.2")],
    )?;
    fs::write(image, archive.finish())?;
    Ok(())
}
