//! Debian's kernel for all machines with the drivers that a PC's own devices want, and the tools that show
//! what the kernel and the firmware tell of the machine.

use super::packages::only_file;
use super::{Kitchen, programs};
use crate::guest;
use anyhow::{Context as _, Result};
use std::fs;
use std::path::Path;

const MODULES: &[&str] = &[
    "ata_piix",
    "sd_mod",
    "sr_mod",
    "floppy",
    "parport_pc",
    "i2c_piix4",
    "uhci_hcd",
    "psmouse",
    "pcspkr",
    "qemu_fw_cfg",
    "virtio_pci",
    "virtio_blk",
    "button",
    "evdev",
];

const PROGRAMS: &[(&str, &str)] =
    &[("pciutils", "usr/bin/lspci"), ("dmidecode", "usr/sbin/dmidecode")];

const LIBRARIES: &[(&str, &str, &str)] = &[
    ("libpci3", "usr/lib/x86_64-linux-gnu", "libpci.so.3"),
    ("libkmod2", "usr/lib/x86_64-linux-gnu", "libkmod.so.2"),
    ("libudev1", "usr/lib/x86_64-linux-gnu", "libudev.so.1"),
    ("libzstd1", "usr/lib/x86_64-linux-gnu", "libzstd.so.1"),
    ("libssl3", "usr/lib/x86_64-linux-gnu", "libcrypto.so.3"),
    ("liblzma5", "lib/x86_64-linux-gnu", "liblzma.so.5"),
    ("zlib1g", "lib/x86_64-linux-gnu", "libz.so.1"),
];

/// Makers whose devices a machine may have; the list of all is long.
const VENDORS: &[&str] = &["1033", "1234", "1af4", "1b36", "8086"];

pub(super) fn initramfs(kitchen: &Kitchen, image: &Path) -> Result<()> {
    let package = kitchen.packages.kernel_of("linux-image-amd64")?;
    let modules = only_file(&kitchen.packages.unpacked(&package)?.join("lib/modules"), "")?;
    let busybox = kitchen.packages.unpacked("busybox-static")?;
    let mut archive = guest::archive(&busybox, &modules, MODULES)?;
    programs::add(kitchen, &mut archive, PROGRAMS, LIBRARIES)?;
    let names = kitchen.packages.unpacked("pci.ids")?.join("usr/share/misc/pci.ids");
    let names = fs::read(&names).with_context(|| format!("cannot read {}", names.display()))?;
    for folder in ["usr", "usr/share", "usr/share/misc"] {
        archive.directory(folder);
    }
    let names = select(&String::from_utf8_lossy(&names));
    archive.file("usr/share/misc/pci.ids", 0o644, names.as_bytes());
    fs::write(image, archive.finish())?;
    Ok(())
}

/// The parts of the list of names that are about [`VENDORS`], and about classes.
fn select(names: &str) -> String {
    let mut wanted = false;
    let mut selected = String::new();
    for line in names.lines() {
        // A line at the margin begins a maker, or a class: "C 01".
        if !line.starts_with(['\t', '#']) {
            wanted =
                line.starts_with("C ") || VENDORS.iter().any(|vendor| line.starts_with(vendor));
        }
        if wanted && !line.starts_with('#') {
            selected.push_str(line);
            selected.push('\n');
        }
    }
    selected
}

#[cfg(test)]
mod tests {
    #[test]
    fn makers_and_classes_are_selected() {
        let names = "# text\n0001  Nobody\n\t0001  thing\n8086  Intel\n\t1237  440FX\nC 01  Storage\n\t01  IDE\n";
        assert_eq!(super::select(names), "8086  Intel\n\t1237  440FX\nC 01  Storage\n\t01  IDE\n");
    }
}
