//! CDs, a floppy disk, and kernels as their packages have them.

use super::packages::only_file;
use super::{Kitchen, run};
use crate::cpio::Archive;
use anyhow::{Context as _, Result};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// What ISOLINUX and SYSLINUX are told: they show a prompt, on the serial port too, and boot memtest86+.
const CONFIGURATION: &str = "\
SERIAL 0
DEFAULT memtest
PROMPT 1
TIMEOUT 1200
SAY A boot loader on removable media.
LABEL memtest
    LINUX memtest
";

pub(super) fn memtest(kitchen: &Kitchen, image: &Path) -> Result<()> {
    let tree = kitchen.packages.unpacked("memtest86+")?;
    fs::copy(tree.join("usr/lib/memtest86+/memtest86+x64.iso"), image)?;
    Ok(())
}

pub(super) fn ipxe(kitchen: &Kitchen, image: &Path) -> Result<()> {
    let tree = kitchen.packages.unpacked("ipxe")?;
    fs::copy(tree.join("usr/lib/ipxe/ipxe.iso"), image)?;
    Ok(())
}

/// An El Torito CD without emulation, with ISOLINUX.
pub(super) fn isolinux(kitchen: &Kitchen, image: &Path) -> Result<()> {
    let folder = kitchen.scratch("isolinux")?;
    let loader = folder.join("isolinux");
    fs::create_dir(&loader)?;
    let isolinux = kitchen.packages.unpacked("isolinux")?;
    fs::copy(isolinux.join("usr/lib/ISOLINUX/isolinux.bin"), loader.join("isolinux.bin"))?;
    let modules = kitchen.packages.unpacked("syslinux-common")?;
    fs::copy(
        modules.join("usr/lib/syslinux/modules/bios/ldlinux.c32"),
        loader.join("ldlinux.c32"),
    )?;
    copy_memtest(kitchen, &loader.join("memtest"))?;
    fs::write(loader.join("isolinux.cfg"), CONFIGURATION)?;
    let options = "-as mkisofs -quiet -b isolinux/isolinux.bin -c isolinux/boot.cat \
                   -no-emul-boot -boot-load-size 4 -boot-info-table -o";
    let mut arguments: Vec<&OsStr> = options.split_whitespace().map(OsStr::new).collect();
    arguments.extend([image.as_os_str(), folder.as_os_str()]);
    run("xorriso", &arguments)
}

/// A 1.44 MB disk with a FAT12 file system and SYSLINUX.
pub(super) fn floppy(kitchen: &Kitchen, image: &Path) -> Result<()> {
    let folder = kitchen.scratch("floppy")?;
    File::create(image)?.set_len(1440 << 10)?;
    let fat = |program: &str, arguments: &[&str]| {
        let mut all = vec![OsStr::new("-i"), image.as_os_str()];
        all.extend(arguments.iter().map(OsStr::new));
        run(program, &all)
    };
    fat("mformat", &["-f", "1440", "::"])?;
    let syslinux = kitchen.packages.unpacked("syslinux")?;
    run(syslinux.join("usr/bin/syslinux"), &[OsStr::new("--install"), image.as_os_str()])?;
    let configuration = folder.join("syslinux.cfg");
    fs::write(&configuration, CONFIGURATION)?;
    fat("mcopy", &[&configuration.to_string_lossy(), "::"])?;
    let memtest = folder.join("memtest");
    copy_memtest(kitchen, &memtest)?;
    fat("mcopy", &[&memtest.to_string_lossy(), "::"])
}

fn copy_memtest(kitchen: &Kitchen, to: &Path) -> Result<()> {
    let tree = kitchen.packages.unpacked("memtest86+")?;
    fs::copy(tree.join("boot/memtest86+x64.bin"), to)?;
    Ok(())
}

const INSTALLER: &str = "debian-installer-12-netboot-amd64";
const INSTALLER_FILES: &str =
    "usr/lib/debian-installer/images/12/amd64/text/debian-installer/amd64";

pub(super) fn installer_kernel(kitchen: &Kitchen, image: &Path) -> Result<()> {
    let tree = kitchen.packages.unpacked(INSTALLER)?;
    fs::copy(tree.join(INSTALLER_FILES).join("linux"), image)?;
    Ok(())
}

pub(super) fn installer_initrd(kitchen: &Kitchen, image: &Path) -> Result<()> {
    let tree = kitchen.packages.unpacked(INSTALLER)?;
    fs::copy(tree.join(INSTALLER_FILES).join("initrd.gz"), image)?;
    Ok(())
}

/// The hypervisor as a multiboot kernel: an ELF file.
pub(super) fn xen(kitchen: &Kitchen, image: &Path) -> Result<()> {
    let package = kitchen.packages.versioned("xen-system-amd64", "xen-hypervisor-")?;
    let tree = kitchen.packages.unpacked(&package)?;
    let kernel = kitchen.scratch("xen")?.join("xen");
    let compressed = kernel.with_extension("gz");
    let boot = tree.join("boot");
    // Its configuration and its form for UEFI are there, too.
    let is_it = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "gz");
    let mut files = fs::read_dir(&boot)?.filter_map(|entry| Some(entry.ok()?.path()));
    let found = files.find(is_it).context("the package has no compressed kernel")?;
    fs::copy(found, &compressed)?;
    run("gzip", &[OsStr::new("-d"), compressed.as_os_str()])?;
    fs::rename(&kernel, image)?;
    Ok(())
}

pub(super) fn kernel_686(kitchen: &Kitchen, image: &Path) -> Result<()> {
    let package = kitchen.packages.kernel_of("linux-image-686-pae:i386")?;
    let tree = kitchen.packages.unpacked(&package)?;
    fs::copy(only_file(&tree.join("boot"), "vmlinuz-")?, image)?;
    Ok(())
}

/// An initramfs whose `/init` is busybox's shell, which says what machine it is on.
pub(super) fn initramfs_686(kitchen: &Kitchen, image: &Path) -> Result<()> {
    const INIT: &str = "\
#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys
/bin/busybox mount -t proc proc /proc
echo machine: $(/bin/busybox uname -m)
/bin/busybox grep -m1 'model name' /proc/cpuinfo
echo guest: ready
while read -r line; do
    eval \"/bin/busybox $line\"
    echo \"guest: done $?\"
done
";
    let tree = kitchen.packages.unpacked("busybox-static:i386")?;
    let busybox = [tree.join("bin/busybox"), tree.join("usr/bin/busybox")]
        .into_iter()
        .find(|path| path.is_file())
        .context("busybox-static has no busybox")?;
    let mut archive = Archive::default();
    for directory in ["bin", "dev"] {
        archive.directory(directory);
    }
    archive.character_device("dev/console", 5, 1);
    archive.file("init", 0o755, INIT.as_bytes());
    archive.file("bin/busybox", 0o755, &fs::read(busybox)?);
    fs::write(image, archive.finish())?;
    Ok(())
}
