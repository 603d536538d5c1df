//! The initramfs of `cargo xtask guest` with other modules, for Debian's kernel for all machines: drivers
//! for keyboards and pointers of every kind.

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

pub(super) fn initramfs(kitchen: &Kitchen, image: &Path) -> Result<()> {
    let package = kitchen.packages.kernel_of("linux-image-amd64")?;
    let modules = only_file(&kitchen.packages.unpacked(&package)?.join("lib/modules"), "")?;
    let busybox = kitchen.packages.unpacked("busybox-static")?;
    fs::write(image, guest::archive(&busybox, &modules, MODULES)?.finish())?;
    Ok(())
}
