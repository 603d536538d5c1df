//! Checks `schema/rhea.json` and generates the code that `lib.rs` includes; and, for a test of the
//! generator, code for a schema of all forms.

use std::path::{Path, PathBuf};
use std::{env, fs, process};

use qapi_codegen::{Generated, Options};

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let schema = manifest.join("../../schema");
    let all_forms = manifest.join("tests/all-forms.json");
    println!("cargo::rerun-if-changed={}", schema.display());
    println!("cargo::rerun-if-changed={}", all_forms.display());

    let options = Options { session_commands: &["qmp_capabilities"], defined: &[] };
    let generated = generate(&schema.join("rhea.json"), &options);
    write(&out.join("schema.rs"), &generated.code);
    write(&out.join("introspection.json"), &generated.introspection);

    let options = Options { session_commands: &["session"], defined: &["DEFINED"] };
    write(&out.join("all_forms.rs"), &generate(&all_forms, &options).code);
}

fn generate(root: &Path, options: &Options<'_>) -> Generated {
    let outcome = qapi::check_file(root);
    if !outcome.is_ok() {
        eprintln!("{}", outcome.render(false));
        process::exit(1);
    }
    qapi_codegen::generate(&outcome.schema, options)
}

fn write(path: &Path, text: &str) {
    if let Err(e) = fs::write(path, text) {
        eprintln!("can't write {}: {e}", path.display());
        process::exit(1);
    }
}
