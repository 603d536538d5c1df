//! Programs that use what vector instructions there are, with all that they are linked with, for tests that
//! run them in a guest and on the host and compare what they print.
//!
//! The folder has `bin/`, `lib/` for the dynamic linker and libraries, `python/` for Python's own library
//! with numpy, and `results`, the script that prints what is compared. The guest has it as `/workloads`.

use super::packages::only_file;
use super::{Kitchen, run};
use crate::cpio::Archive;
use crate::{guest, workspace};
use anyhow::{Context as _, Result};
use std::fs;
use std::path::Path;

const SOURCES: &str = "crates/xtask/guest/workloads";
const SCRIPTS: &[&str] = &["results", "arrays.py"];

const PROGRAMS: &[(&str, &str)] = &[
    ("stress-ng", "usr/bin/stress-ng"),
    ("openssl", "usr/bin/openssl"),
    ("python3.11-minimal", "usr/bin/python3.11"),
];

/// Packages of which all libraries are taken.
const LIBRARIES: &[&str] = &[
    "libc6",
    "libgcc-s1",
    "libstdc++6",
    "libgfortran5",
    "libquadmath0",
    "libblas3",
    "liblapack3",
    "libssl3",
    "libexpat1",
    "libffi8",
    "zlib1g",
    "libzstd1",
    "liblzma5",
    // stress-ng's.
    "libapparmor1",
    "libbsd0",
    "libcrypt1",
    "libdrm2",
    "libegl1",
    "libgbm1",
    "libgles2",
    "libglvnd0",
    "libipsec-mb1",
    "libjpeg62-turbo",
    "libjudydebian1",
    "libkmod2",
    "libmd0",
    "libsctp1",
    "libwayland-server0",
    "libxau6",
    "libxcb-randr0",
    "libxcb1",
    "libxdmcp6",
    "libxxhash0",
];
/// Where libraries are in a package.
const FOLDERS: &[&str] = &[
    "lib/x86_64-linux-gnu",
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/x86_64-linux-gnu/blas",
    "usr/lib/x86_64-linux-gnu/lapack",
];

/// Python's library: a package and a folder in it.
const PYTHON: &[(&str, &str)] = &[
    ("libpython3.11-minimal", "usr/lib/python3.11"),
    ("libpython3.11-stdlib", "usr/lib/python3.11"),
    ("python3-numpy", "usr/lib/python3/dist-packages"),
];
/// What nobody imports here.
const LEFT_OUT: &[&str] = &["tests", "idlelib", "lib2to3", "distutils", "pydoc_data", "f2py"];

pub(super) fn folder(kitchen: &Kitchen, image: &Path) -> Result<()> {
    let (bin, lib, python) = (image.join("bin"), image.join("lib"), image.join("python"));
    for folder in [&bin, &lib, &python] {
        fs::create_dir_all(folder)?;
    }
    for (package, path) in PROGRAMS {
        let program = kitchen.packages.unpacked(package)?.join(path);
        copy(&program, &bin.join(program.file_name().unwrap_or_default()))?;
    }
    for package in LIBRARIES {
        let tree = kitchen.packages.unpacked(package)?;
        for folder in FOLDERS.iter().map(|folder| tree.join(folder)) {
            let Ok(entries) = fs::read_dir(&folder) else { continue };
            for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
                let name = path.file_name().unwrap_or_default();
                if path.is_file() && name.to_string_lossy().contains(".so") {
                    copy(&path, &lib.join(name))?;
                }
            }
        }
    }
    for (package, path) in PYTHON {
        let tree = kitchen.packages.unpacked(package)?.join(path);
        run("cp", &[Path::new("-r"), &tree.join("."), &python])?;
    }
    for name in SCRIPTS {
        copy(&workspace().join(SOURCES).join(name), &image.join(name))?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}

pub(super) fn initramfs(kitchen: &Kitchen, image: &Path) -> Result<()> {
    let package = kitchen.packages.kernel_of("linux-image-amd64")?;
    let modules = only_file(&kitchen.packages.unpacked(&package)?.join("lib/modules"), "")?;
    let busybox = kitchen.packages.unpacked("busybox-static")?;
    let mut archive = guest::archive(&busybox, &modules, &["button"])?;
    add(&mut archive, "workloads", &kitchen.images.join("workloads"))?;
    fs::write(image, archive.finish())?;
    Ok(())
}

/// Adds a folder with all that is in it.
fn add(archive: &mut Archive, name: &str, folder: &Path) -> Result<()> {
    archive.directory(name);
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut paths: Vec<_> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    paths.sort();
    for path in paths {
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if LEFT_OUT.contains(&file.as_str()) {
            continue;
        }
        let name = format!("{name}/{file}");
        if path.is_dir() {
            add(archive, &name, &path)?;
        } else if path.is_file() {
            archive.file(&name, 0o755, &fs::read(&path)?);
        }
    }
    Ok(())
}
