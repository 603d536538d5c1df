//! `cargo xtask`: the project's chores, written in Rust so that a clone needs nothing but cargo.
//!
//! See `cargo xtask help` for the commands.

mod cpio;
mod guest;
mod modules;

use anyhow::{Result, bail};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const HELP: &str = "\
cargo xtask COMMAND

  guest [--refresh]             fetch a Debian kernel and busybox, make guest/
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<ExitCode> {
    let (command, rest) = match arguments.split_first() {
        Some((command, rest)) => (command.as_str(), rest),
        None => ("help", arguments),
    };
    match command {
        "guest" => {
            guest::make(rest.iter().any(|argument| argument == "--refresh"))?;
        }
        "help" | "--help" | "-h" => print!("{HELP}"),
        other => bail!("unknown command '{other}'\n\n{HELP}"),
    }
    Ok(ExitCode::SUCCESS)
}

/// The root of the workspace that this program was built from.
fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("crates/xtask is two levels below the root")
        .to_owned()
}
