//! `cargo xtask guest`: the real guest that tests and benchmarks boot.
//!
//! A Debian cloud kernel (the package behind `linux-image-cloud-amd64`) and a static busybox are
//! fetched with apt and unpacked below `guest/`; nothing is installed and no privilege is needed.
//! The result is `guest/vmlinuz` and `guest/initramfs.cpio`, whose `/init` is ours
//! (`crates/xtask/guest/init`). What is there already is kept: packages are fetched once, and the
//! initramfs is written again only when it would change.

use crate::cpio::Archive;
use crate::{modules, workspace};
use anyhow::{Context as _, Result, bail};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const META_PACKAGE: &str = "linux-image-cloud-amd64";
const BUSYBOX_PACKAGE: &str = "busybox-static";
const INIT: &str = include_str!("../guest/init");
const POWER_BUTTON: &str = include_str!("../guest/power-button");

/// What the guest may need: its devices, its file system, and the power button with the event
/// interface by which acpid hears of it.
const MODULES: &[&str] =
    &["virtio_pci", "virtio_blk", "virtio_balloon", "virtio_rng", "ext4", "button", "evdev"];

/// Makes `guest/`, or brings it up to date, and returns its path. With `refresh` the packages are
/// fetched again, for a newer kernel.
pub(crate) fn make(refresh: bool) -> Result<PathBuf> {
    let guest = workspace().join("guest");
    let tree = guest.join("tree");
    if refresh || !tree.join("complete").exists() {
        fetch(&guest, &tree)?;
    }
    let kernel = only_file(&tree.join("boot"), "vmlinuz-")?;
    let modules = only_file(&tree.join("lib/modules"), "")?;
    write_if_changed(&guest.join("vmlinuz"), &fs::read(&kernel)?)?;
    write_if_changed(&guest.join("initramfs.cpio"), &initramfs(&tree, &modules)?)?;
    let version = kernel.file_name().and_then(OsStr::to_str).unwrap_or_default();
    println!("guest: {version} and initramfs.cpio in {}", guest.display());
    Ok(guest)
}

fn fetch(guest: &Path, tree: &Path) -> Result<()> {
    let packages = guest.join("packages");
    let _ = fs::remove_dir_all(tree);
    let _ = fs::remove_dir_all(&packages);
    fs::create_dir_all(&packages)?;
    let apt = Apt::new(guest)?;
    let kernel = match apt.kernel_package() {
        Some(kernel) if apt.download(&packages, &kernel) => kernel,
        // The lists are absent (as in a fresh container) or older than the archive.
        _ => {
            println!("guest: reading package lists (apt-get update)");
            apt.update()?;
            let kernel = apt.kernel_package().with_context(|| {
                format!(
                    "apt knows no package {META_PACKAGE}; the guest's kernel is Debian's, so a \
                     Debian source has to be among apt's sources"
                )
            })?;
            if !apt.download(&packages, &kernel) {
                bail!(
                    "apt-get cannot download {kernel} and {BUSYBOX_PACKAGE}; is there a network?"
                );
            }
            kernel
        }
    };
    println!("guest: unpacking {kernel} and {BUSYBOX_PACKAGE}");
    for entry in fs::read_dir(&packages)? {
        let package = entry?.path();
        let status = Command::new("dpkg-deb")
            .arg("-x")
            .args([&package, &tree.to_path_buf()])
            .status()
            .context("cannot run dpkg-deb, which unpacks the packages")?;
        if !status.success() {
            bail!("dpkg-deb cannot unpack {}", package.display());
        }
    }
    fs::write(tree.join("complete"), format!("{kernel}\n"))?;
    Ok(())
}

/// apt as this user may run it. Once the lists had to be read anew they are our own, below
/// `guest/apt`, so that neither privilege nor a change to the system is needed.
struct Apt {
    private: PathBuf,
}

impl Apt {
    fn new(guest: &Path) -> Result<Self> {
        if Command::new("apt-get").arg("--version").output().is_err() {
            bail!(
                "apt-get is not here: the guest's kernel and busybox come from Debian packages. \
                 On another system, put a kernel and an initramfs into guest/vmlinuz and \
                 guest/initramfs.cpio by hand"
            );
        }
        Ok(Self { private: guest.join("apt") })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        if program == "apt-get" {
            // Root would otherwise download as a user who may not write here.
            command.args(["-qq", "-o", "APT::Sandbox::User=root"]);
        }
        if self.private.exists() {
            let directory = self.private.display();
            command.arg("-o").arg(format!("Dir::State::Lists={directory}/lists"));
            command.arg("-o").arg(format!("Dir::Cache={directory}/cache"));
        }
        command
    }

    fn update(&self) -> Result<()> {
        fs::create_dir_all(self.private.join("lists/partial"))?;
        fs::create_dir_all(self.private.join("cache/archives/partial"))?;
        if !self.command("apt-get").arg("update").status()?.success() {
            bail!("apt-get update failed; is there a network?");
        }
        Ok(())
    }

    /// The versioned package that the meta package stands for.
    fn kernel_package(&self) -> Option<String> {
        let output = self.command("apt-cache").args(["depends", META_PACKAGE]).output().ok()?;
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter_map(|line| line.trim().trim_start_matches('|').strip_prefix("Depends: "))
            .find(|name| name.starts_with("linux-image-") && !name.ends_with("-unsigned"))
            .map(str::to_owned)
    }

    fn download(&self, directory: &Path, kernel: &str) -> bool {
        println!("guest: downloading {kernel} and {BUSYBOX_PACKAGE}");
        self.command("apt-get")
            .args(["download", kernel, BUSYBOX_PACKAGE])
            .current_dir(directory)
            .status()
            .is_ok_and(|status| status.success())
    }
}

fn initramfs(tree: &Path, module_directory: &Path) -> Result<Vec<u8>> {
    Ok(archive(tree, module_directory, MODULES)?.finish())
}

/// An initramfs with our `/init`, the busybox in `tree` and `wanted` modules of the kernel whose modules
/// are in `module_directory`.
pub(crate) fn archive(tree: &Path, module_directory: &Path, wanted: &[&str]) -> Result<Archive> {
    let busybox = ["bin/busybox", "usr/bin/busybox"]
        .iter()
        .map(|path| tree.join(path))
        .find(|path| path.is_file())
        .with_context(|| format!("{BUSYBOX_PACKAGE} has no bin/busybox"))?;
    let output = Command::new(&busybox)
        .arg("--list")
        .output()
        .with_context(|| format!("cannot run {}", busybox.display()))?;
    let applets = String::from_utf8(output.stdout).context("busybox --list is not text")?;

    let mut archive = Archive::default();
    for directory in [
        "bin",
        "dev",
        "etc",
        "etc/acpi",
        "etc/acpi/PWRF",
        "lib",
        "lib/modules",
        "mnt",
        "proc",
        "root",
        "sys",
        "tmp",
        "var",
        "var/run",
        "var/log",
    ] {
        archive.directory(directory);
    }
    archive.character_device("dev/console", 5, 1);
    archive.character_device("dev/null", 1, 3);
    archive.file("init", 0o755, INIT.as_bytes());
    // Where busybox's acpid looks for what to do when the power button is pressed.
    archive.file("etc/acpi/PWRF/00000080", 0o755, POWER_BUTTON.as_bytes());
    archive.file("bin/busybox", 0o755, &fs::read(&busybox)?);
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        archive.symlink(&format!("bin/{applet}"), "busybox");
    }
    // Numbered, so that the shell's sorted glob is the order in which to load them.
    for (index, module) in modules::collect(module_directory, wanted)?.iter().enumerate() {
        let path = format!("lib/modules/{index:02}-{}.ko", module.name);
        archive.file(&path, 0o644, &module.object);
    }
    Ok(archive)
}

/// The one entry of a directory whose name has the prefix.
fn only_file(directory: &Path, prefix: &str) -> Result<PathBuf> {
    fs::read_dir(directory)
        .with_context(|| format!("cannot list {}", directory.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            path.file_name().and_then(OsStr::to_str).is_some_and(|name| name.starts_with(prefix))
        })
        .with_context(|| format!("{} has nothing called {prefix}*", directory.display()))
}

/// Replaces a file in one step, so that a reader never sees half of it.
fn write_if_changed(path: &Path, contents: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|present| present == contents) {
        return Ok(());
    }
    let directory = path.parent().context("a file has a directory")?;
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    std::io::Write::write_all(&mut file, contents)?;
    file.persist(path)?;
    Ok(())
}
