//! Compiles the guest in `guest/` to an ELF image with the compiler that builds this crate.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=guest");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("guest.elf");
    let here =
        PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("guest");
    let script = here.join("link.ld");
    let status = Command::new(env::var_os("RUSTC").expect("cargo sets RUSTC"))
        .arg(here.join("main.rs"))
        .args(["--crate-name", "guest", "--crate-type", "bin", "--edition", "2024"])
        .args(["--target", "x86_64-unknown-linux-gnu"])
        .args([
            "-C",
            "panic=abort",
            "-C",
            "opt-level=2",
            "-C",
            "debuginfo=0",
            "-C",
            "strip=symbols",
        ])
        .args(["-C", "relocation-model=static", "-C", "force-frame-pointers=no"])
        // An interrupt may arrive between any two instructions and uses the same stack.
        .args(["-C", "no-redzone=yes"])
        .args(["-C", "link-arg=-nostartfiles", "-C", "link-arg=-nostdlib"])
        .args([
            "-C",
            "link-arg=-static",
            "-C",
            "link-arg=-no-pie",
            "-C",
            "link-arg=-Wl,--build-id=none",
        ])
        .arg("-C")
        .arg(format!("link-arg=-Wl,-T,{}", script.display()))
        .arg("-o")
        .arg(&out)
        .status()
        .expect("rustc runs");
    assert!(status.success(), "the demonstration guest does not compile");
    println!("cargo::rustc-env=DEMO_GUEST_ELF={}", out.display());
}
