//! Linux with drivers for every kind of disk, and the tools that ask disks who they are.

use super::packages::only_file;
use super::{Kitchen, programs};
use crate::guest;
use anyhow::Result;
use std::fs;
use std::path::Path;

const KERNEL: &str = "linux-image-amd64";

/// Drivers, from the adapter up, and what they use without saying so.
const MODULES: &[&str] = &[
    "crct10dif_generic",
    "crc32_generic",
    "virtio_pci",
    "virtio_scsi",
    "ahci",
    "ata_piix",
    "uhci_hcd",
    "usb_storage",
    "sd_mod",
    "sr_mod",
    "sg",
    "isofs",
    "button",
    "evdev",
];

/// Programs, each with its package.
const TOOLS: &[(&str, &str)] = &[
    ("sg3-utils", "usr/bin/sg_inq"),
    ("sg3-utils", "usr/bin/sg_vpd"),
    ("sg3-utils", "usr/bin/sg_modes"),
    ("sg3-utils", "usr/bin/sg_readcap"),
    ("sg3-utils", "usr/bin/sg_luns"),
    ("sg3-utils", "usr/bin/sg_raw"),
    ("sg3-utils", "usr/bin/sg_start"),
    ("sg3-utils", "usr/bin/sg_reset"),
    ("hdparm", "sbin/hdparm"),
];

/// What the programs are linked with.
const LIBRARIES: &[(&str, &str, &str)] =
    &[("libsgutils2-1.46-2", "usr/lib/x86_64-linux-gnu", "libsgutils2-1.46.so.2")];

pub(super) fn kernel(kitchen: &Kitchen, image: &Path) -> Result<()> {
    let tree = kitchen.packages.unpacked(&kitchen.packages.kernel_of(KERNEL)?)?;
    fs::copy(only_file(&tree.join("boot"), "vmlinuz-")?, image)?;
    Ok(())
}

pub(super) fn initramfs(kitchen: &Kitchen, image: &Path) -> Result<()> {
    let tree = kitchen.packages.unpacked(&kitchen.packages.kernel_of(KERNEL)?)?;
    let modules = only_file(&tree.join("lib/modules"), "")?;
    let busybox = kitchen.packages.unpacked("busybox-static")?;
    let mut archive = guest::archive(&busybox, &modules, MODULES)?;
    programs::add(kitchen, &mut archive, TOOLS, LIBRARIES)?;
    fs::write(image, archive.finish())?;
    Ok(())
}
