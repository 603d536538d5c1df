//! `cargo xtask compare`: the same accesses to devices here and on the peer.

use crate::boot::release_binary;
use anyhow::{Context as _, Result};
use std::process::ExitCode;
use testkit::qtest::{self, Qtest};

/// Gives the commands of a script to both machines, which are started with the arguments that follow,
/// and prints those that they answer differently.
pub(crate) fn run(arguments: &[String]) -> Result<ExitCode> {
    let (script, arguments) =
        arguments.split_first().context("usage: cargo xtask compare SCRIPT [ARGUMENT...]")?;
    let script =
        std::fs::read_to_string(script).with_context(|| format!("cannot read {script}"))?;
    let peer = testkit::peer().context("there is no qemu-system-x86_64; set RHEA_PEER")?;
    let mut ours = Qtest::start(&release_binary()?, arguments)?;
    let mut theirs = Qtest::start(&peer, arguments)?;
    let differences = qtest::compare(&mut ours, &mut theirs, &script)?;
    for difference in &differences {
        println!("{}: {}", difference.index, difference.command);
        println!("    ours {}\n    peer {}", difference.left, difference.right);
    }
    println!("{} answers differ", differences.len());
    Ok(if differences.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
