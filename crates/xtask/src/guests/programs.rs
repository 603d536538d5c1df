//! Programs of Debian packages, with what they are linked with, in an initramfs.

use super::Kitchen;
use crate::cpio::Archive;
use anyhow::{Context as _, Result};
use std::fs;
use std::path::Path;

const LIBRARY_FOLDER: &str = "lib/x86_64-linux-gnu";
const LOADER: &str = "ld-linux-x86-64.so.2";

/// Adds `programs`, each a package and a path in it, and `libraries`, each a package, a folder in it and a
/// file's name. The C library comes by itself.
pub(super) fn add(
    kitchen: &Kitchen,
    archive: &mut Archive,
    programs: &[(&str, &str)],
    libraries: &[(&str, &str, &str)],
) -> Result<()> {
    let read =
        |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    for (package, program) in programs {
        let program = kitchen.packages.unpacked(package)?.join(program);
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        archive.file(&format!("bin/{name}"), 0o755, &read(&program)?);
    }
    archive.directory("lib64");
    archive.directory(LIBRARY_FOLDER);
    for (package, folder, name) in libraries.iter().chain(&[("libc6", LIBRARY_FOLDER, "libc.so.6")])
    {
        let folder = kitchen.packages.unpacked(package)?.join(folder);
        archive.file(&format!("{LIBRARY_FOLDER}/{name}"), 0o755, &read(&folder.join(name))?);
    }
    let loader = kitchen.packages.unpacked("libc6")?.join(LIBRARY_FOLDER).join(LOADER);
    archive.file(&format!("lib64/{LOADER}"), 0o755, &read(&loader)?);
    Ok(())
}
