//! A Debian system with compilers and virtual machines of many languages: what makes code while it runs, or has
//! been written for a processor's particular instructions, judges a processor by its results.
//!
//! An ext4 file system without a kernel. `/languages` in it is `crates/xtask/guest/languages`, whose script
//! `results` prints what is compared; `/languages/expected` is what it printed when the system was made.

use super::debian::{MIRROR, chroot, file_system, install};
use super::{Kitchen, run};
use crate::workspace;
use anyhow::{Result, bail};
use std::ffi::OsStr;
use std::fs;
use std::path::Path;

/// Size of the file system in bytes; most of it stays a hole.
const SIZE: u64 = 6 << 30;
const SOURCES: &str = "crates/xtask/guest/languages";
const PACKAGES: &[&str] = &[
    "erlang-base",
    "gcc-multilib",
    "gforth",
    "golang-go",
    "libc6-dev",
    "luajit",
    "nodejs",
    "openjdk-17-jdk-headless",
    "php-cli",
    "pypy3",
    "python3",
    "ruby",
    "sbcl",
    "valgrind",
];

pub(super) fn disk(kitchen: &Kitchen, image: &Path) -> Result<()> {
    let folder = kitchen.scratch("languages")?;
    let root = folder.join("root");
    install(kitchen, &root, "ca-certificates")?;
    let proc = root.join("proc");
    run("mount", &[OsStr::new("-t"), OsStr::new("proc"), OsStr::new("proc"), proc.as_os_str()])?;
    let filled = fill(&root);
    run("umount", &[&proc])?;
    filled?;
    file_system(&root, image, SIZE, "languages")?;
    fs::remove_dir_all(&folder)?;
    Ok(())
}

fn fill(root: &Path) -> Result<()> {
    fs::write(root.join("etc/apt/sources.list"), format!("deb {MIRROR} bookworm main\n"))?;
    chroot(root, &["apt-get", "-qq", "update"])?;
    println!("guests: installing languages");
    let mut command = vec!["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "install"];
    command.push("--no-install-recommends");
    command.extend(PACKAGES);
    chroot(root, &command)?;
    chroot(root, &["apt-get", "clean"])?;
    run("cp", &[Path::new("-r"), &workspace().join(SOURCES), &root.join("languages")])?;
    println!("guests: computing results");
    let script = "sh /languages/results > /tmp/expected && mv /tmp/expected /languages/expected";
    chroot(root, &["sh", "-c", script])?;
    let expected = fs::read_to_string(root.join("languages/expected"))?;
    if let Some(status) = expected.lines().find(|line| line.starts_with("status ")) {
        bail!("a language cannot compute: {status}");
    }
    Ok(())
}
