//! Compiles each topic in `guest/topics` to a multiboot image, with the compiler that builds this crate.

use std::env;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=guest");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let here =
        PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("guest");
    let topics = std::fs::read_dir(here.join("topics")).expect("the topics are there");
    let mut topics: Vec<PathBuf> =
        topics.map(|entry| entry.expect("a readable folder").path()).collect();
    topics.sort();
    let mut list = String::from("&[\n");
    for topic in &topics {
        let name = topic.file_stem().and_then(|name| name.to_str()).expect("a plain name");
        let image = compile(&here, &out, name, topic);
        let _ =
            writeln!(list, "    ({name:?}, include_bytes!({:?})),", image.display().to_string());
    }
    list.push(']');
    std::fs::write(out.join("topics.rs"), list).expect("OUT_DIR can be written");
}

fn compile(here: &Path, out: &Path, name: &str, topic: &Path) -> PathBuf {
    let main = out.join(format!("{name}.rs"));
    let text = format!(
        "#![no_std]\n#![no_main]\n#[macro_use]\n#[path = {:?}]\nmod kit;\n#[path = {:?}]\nmod topic;\n",
        here.join("kit/mod.rs").display().to_string(),
        topic.display().to_string(),
    );
    std::fs::write(&main, text).expect("OUT_DIR can be written");
    let image = out.join(format!("{name}.elf"));
    let script = format!("link-arg=-Wl,-T,{}", here.join("link.ld").display());
    let mut rustc = Command::new(env::var_os("RUSTC").expect("cargo sets RUSTC"));
    rustc
        .arg(&main)
        .args(["--crate-name", "guest", "--crate-type", "bin", "--edition", "2024"])
        .args(["--target", "x86_64-unknown-linux-gnu", "-A", "warnings"]);
    for option in [
        "panic=abort",
        "opt-level=1",
        "debuginfo=0",
        "strip=symbols",
        "relocation-model=static",
        // An event may arrive between any two instructions and uses the same stack.
        "no-redzone=yes",
        "force-frame-pointers=no",
        "link-arg=-nostartfiles",
        "link-arg=-nostdlib",
        "link-arg=-static",
        "link-arg=-no-pie",
        "link-arg=-Wl,--build-id=none,-z,max-page-size=4096,-n",
        script.as_str(),
    ] {
        rustc.args(["-C", option]);
    }
    let status = rustc.arg("-o").arg(&image).status().expect("rustc runs");
    assert!(status.success(), "topic {name} does not compile");
    image
}
