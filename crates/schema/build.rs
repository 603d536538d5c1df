//! Checks `schema/rhea.json` and generates the code that `lib.rs` includes.

use std::path::{Path, PathBuf};
use std::{env, fs, process};

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let root = manifest.join("../../schema/rhea.json");
    println!("cargo::rerun-if-changed={}", manifest.join("../../schema").display());
    let outcome = qapi::check_file(&root);
    if !outcome.is_ok() {
        eprintln!("{}", outcome.render(false));
        process::exit(1);
    }
    let options = qapi_codegen::Options { session_commands: &["qmp_capabilities"], defined: &[] };
    let generated = qapi_codegen::generate(&outcome.schema, &options);
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    write(&out.join("schema.rs"), &generated.code);
    write(&out.join("introspection.json"), &generated.introspection);
}

fn write(path: &Path, text: &str) {
    if let Err(e) = fs::write(path, text) {
        eprintln!("can't write {}: {e}", path.display());
        process::exit(1);
    }
}
