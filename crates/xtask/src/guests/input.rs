//! A guest with drivers for keyboards and pointers of every kind: Debian's kernel for all machines, and
//! the initramfs of `cargo xtask guest` with other modules.

use super::Kitchen;
use super::packages::only_file;
use crate::guest;
use anyhow::Result;
use std::fs;
use std::path::Path;

const MODULES: &[&str] = &[
    "psmouse",
    "evdev",
    "uhci_hcd",
    "usbhid",
    "hid_generic",
    "virtio_pci",
    "virtio_input",
    "button",
];

pub(super) fn kernel(kitchen: &Kitchen, image: &Path) -> Result<()> {
    let package = kitchen.packages.kernel_of("linux-image-amd64")?;
    let tree = kitchen.packages.unpacked(&package)?;
    fs::copy(only_file(&tree.join("boot"), "vmlinuz-")?, image)?;
    Ok(())
}

pub(super) fn initramfs(kitchen: &Kitchen, image: &Path) -> Result<()> {
    let package = kitchen.packages.kernel_of("linux-image-amd64")?;
    let modules = only_file(&kitchen.packages.unpacked(&package)?.join("lib/modules"), "")?;
    let busybox = kitchen.packages.unpacked("busybox-static")?;
    fs::write(image, guest::initramfs(&busybox, &modules, MODULES)?)?;
    Ok(())
}
