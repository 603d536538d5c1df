//! The programs of Debian's that `cargo xtask bench cpu` measures, with all that they are linked with.
//!
//! A folder with `bin/`, and with `lib/` for the dynamic linker and libraries. The benchmark takes it as
//! it is on the host, and puts it into the guest.

use super::Kitchen;
use anyhow::{Context as _, Result};
use std::fs;
use std::path::Path;

/// Programs: package, path, and the name they get.
const PROGRAMS: &[(&str, &str, &str)] = &[
    ("cpp-12", "usr/lib/gcc/x86_64-linux-gnu/12/cc1", "cc1"),
    ("binutils-x86-64-linux-gnu", "usr/bin/x86_64-linux-gnu-as", "as"),
    ("gzip", "bin/gzip", "gzip"),
    ("zstd", "usr/bin/zstd", "zstd"),
    ("coreutils", "usr/bin/sha256sum", "sha256sum"),
    ("openssl", "usr/bin/openssl", "openssl"),
];

/// Libraries: package and names. They are in `lib` or in `usr/lib`.
const LIBRARIES: &[(&str, &[&str])] = &[
    ("libc6", &["ld-linux-x86-64.so.2", "libc.so.6", "libm.so.6"]),
    ("libgmp10", &["libgmp.so.10"]),
    ("libmpfr6", &["libmpfr.so.6"]),
    ("libmpc3", &["libmpc.so.3"]),
    ("libisl23", &["libisl.so.23"]),
    ("zlib1g", &["libz.so.1"]),
    ("libzstd1", &["libzstd.so.1"]),
    ("liblzma5", &["liblzma.so.5"]),
    ("liblz4-1", &["liblz4.so.1"]),
    ("libbinutils", &["libbfd-2.40-system.so", "libsframe.so.0"]),
    ("libssl3", &["libssl.so.3", "libcrypto.so.3"]),
];
const ARCHITECTURE: &str = "x86_64-linux-gnu";

pub(super) fn folder(kitchen: &Kitchen, image: &Path) -> Result<()> {
    let (bin, lib) = (image.join("bin"), image.join("lib"));
    fs::create_dir_all(&bin)?;
    fs::create_dir_all(&lib)?;
    let copy = |from: &Path, to: &Path| {
        fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))
    };
    for (package, path, name) in PROGRAMS {
        copy(&kitchen.packages.unpacked(package)?.join(path), &bin.join(name))?;
    }
    for (package, names) in LIBRARIES {
        let tree = kitchen.packages.unpacked(package)?;
        for name in *names {
            let place = ["lib", "usr/lib"]
                .iter()
                .map(|folder| tree.join(folder).join(ARCHITECTURE).join(name))
                .find(|path| path.exists())
                .with_context(|| format!("{package} has no {name}"))?;
            copy(&place, &lib.join(name))?;
        }
    }
    Ok(())
}
