//! The Linux guest that `cargo xtask guest` makes, and disks for it.

use crate::workspace;
use anyhow::{Context as _, Result, bail};
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Files of the real guest.
#[derive(Clone, Debug)]
pub struct Guest {
    /// The bzImage.
    pub kernel: PathBuf,
    /// The initramfs, whose `/init` obeys `rhea.test=` on the kernel command line.
    pub initrd: PathBuf,
}

impl Guest {
    /// Finds the guest in `RHEA_GUEST`, else in `guest/` of the workspace.
    pub fn find() -> Option<Self> {
        let directory =
            std::env::var_os("RHEA_GUEST").map_or_else(|| workspace().join("guest"), PathBuf::from);
        let guest =
            Self { kernel: directory.join("vmlinuz"), initrd: directory.join("initramfs.cpio") };
        (guest.kernel.is_file() && guest.initrd.is_file()).then_some(guest)
    }

    /// Like [`Guest::find`]; where there is none the test called `test` is recorded as skipped.
    pub fn find_or_skip(test: &str) -> Option<Self> {
        let guest = Self::find();
        if guest.is_none() {
            skip(test, "no real guest: run `cargo xtask guest`");
        }
        guest
    }
}

/// The image called `name` that `cargo xtask guests` makes, if it was made.
pub fn guest_image(name: &str) -> Option<PathBuf> {
    let directory =
        std::env::var_os("RHEA_GUEST").map_or_else(|| workspace().join("guest"), PathBuf::from);
    Some(directory.join("images").join(name)).filter(|path| path.is_file())
}

/// Says loudly that a test did not run, here and in the summary of `cargo xtask test`, which reads
/// the file that `RHEA_SKIPPED` names.
pub fn skip(test: &str, reason: &str) {
    let line = format!("SKIPPED {test}: {reason}");
    eprintln!("{line}");
    let Some(path) = std::env::var_os("RHEA_SKIPPED") else { return };
    let file = OpenOptions::new().create(true).append(true).open(path);
    if let Err(error) = file.and_then(|mut file| writeln!(file, "{line}")) {
        eprintln!("cannot record the skipped test: {error}");
    }
}

/// Makes a sparse raw image of 256 MiB with an empty ext4 file system at `path`.
///
/// The tables are written now, so that the guest's kernel has no background initialisation to do
/// and its disk statistics come to rest.
pub fn disk_image(path: &Path) -> Result<()> {
    File::create(path)?.set_len(256 << 20)?;
    // mke2fs is outside the PATH of ordinary users.
    let program = ["/usr/sbin/mke2fs", "/sbin/mke2fs"]
        .into_iter()
        .find(|program| Path::new(program).exists())
        .unwrap_or("mke2fs");
    let status = Command::new(program)
        .args(["-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0"])
        .arg(path)
        .status()
        .context("cannot run mke2fs; install e2fsprogs")?;
    if !status.success() {
        let _ = fs::remove_file(path);
        bail!("mke2fs failed on {}", path.display());
    }
    Ok(())
}
