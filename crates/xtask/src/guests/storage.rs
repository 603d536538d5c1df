//! Linux with drivers for every kind of disk, and the tools that ask disks who they are.

use super::Kitchen;
use super::packages::only_file;
use crate::guest;
use anyhow::{Context as _, Result};
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
const LIBRARIES: &[(&str, &str, &str)] = &[
    ("libc6", "lib/x86_64-linux-gnu", "libc.so.6"),
    ("libsgutils2-1.46-2", "usr/lib/x86_64-linux-gnu", "libsgutils2-1.46.so.2"),
];
const LOADER: &str = "ld-linux-x86-64.so.2";

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
    let read =
        |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    for (package, program) in TOOLS {
        let program = kitchen.packages.unpacked(package)?.join(program);
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        archive.file(&format!("bin/{name}"), 0o755, &read(&program)?);
    }
    archive.directory("lib64");
    archive.directory("lib/x86_64-linux-gnu");
    for (package, folder, name) in LIBRARIES {
        let folder = kitchen.packages.unpacked(package)?.join(folder);
        archive.file(&format!("lib/x86_64-linux-gnu/{name}"), 0o755, &read(&folder.join(name))?);
    }
    let loader = kitchen.packages.unpacked("libc6")?.join("lib/x86_64-linux-gnu").join(LOADER);
    archive.file(&format!("lib64/{LOADER}"), 0o755, &read(&loader)?);
    fs::write(image, archive.finish())?;
    Ok(())
}
