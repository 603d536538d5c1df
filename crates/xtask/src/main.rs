//! `cargo xtask`: the project's chores, written in Rust so that a clone needs nothing but cargo.
//!
//! See `cargo xtask help` for the commands.

mod bench;
mod boot;
mod compare;
mod cpio;
mod guest;
mod guests;
mod modules;
mod qtests;
mod test;

use anyhow::{Result, bail};
use std::path::PathBuf;
use std::process::ExitCode;

const HELP: &str = "\
cargo xtask COMMAND

  guest [--refresh]     fetch a Debian kernel and busybox with apt, make guest/
  guests [NAME...]      make the disks and CDs that tests boot, from Debian packages, in
                        guest/images; all, or these
  boot [OPTION...]      boot that guest on this terminal; --cpus N, --memory MIB, --accel NAME,
                        --mode shell|commands|blk|smp|poweroff|reboot, -- ARGUMENT...
  compare SCRIPT [ARGUMENT...]
                        give the qtest commands of a file to this emulator and to the peer, both
                        started with the arguments; prints what they answer differently
  qtests [NAME...]      build QEMU's own tests of devices from Debian's source package, below
                        target/qtests, and run them against this emulator; all, or these
  test [ARGUMENT...]    run all tests, with real guests; arguments go to the test runner
  bench [WHAT]          measure against a peer: start, boot, cpu, smp, loop, qmp or all;
                        --rounds N, --peer PATH (qemu-system-x86_64 if it is installed),
                        --skip-peer, --accel NAME (ours); for bench cpu: --only NAME,...,
                        --cpu-time (of the host's CPUs: for a host with other work)

RHEA_BIN names another program to boot, test or measure than this project's own.
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
            Ok(ExitCode::SUCCESS)
        }
        "guests" => {
            guests::make(rest)?;
            Ok(ExitCode::SUCCESS)
        }
        "boot" => boot::run(rest),
        "compare" => compare::run(rest),
        "qtests" => qtests::run(rest),
        "test" => test::run(rest),
        "bench" => bench::run(rest),
        "help" | "--help" | "-h" => {
            print!("{HELP}");
            Ok(ExitCode::SUCCESS)
        }
        other => bail!("unknown command '{other}'\n\n{HELP}"),
    }
}

/// The root of the workspace that this program was built from.
fn workspace() -> PathBuf {
    testkit::workspace()
}
