//! Rhea: arguments to a machine specification to a run.

mod daemon;
mod demo;
mod monitors;
mod pidfile;
mod run;

use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use cli::Action;

fn main() -> ExitCode {
    match act() {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            eprintln!("rhea: {}", in_one_line(&e));
            ExitCode::FAILURE
        }
    }
}

fn act() -> Result<u8> {
    match cli::parse(arguments()?)? {
        Action::Print(text) => print(&text),
        Action::Run(config) if config.daemonize && !daemon::is_child() => daemon::detach(),
        Action::Run(config) => run::run(*config),
    }
}

/// The arguments after the program's name.
fn arguments() -> Result<Vec<String>> {
    let valid = |argument: std::ffi::OsString| {
        argument.into_string().map_err(|bytes| {
            anyhow!("{}: an argument must be valid UTF-8", bytes.to_string_lossy())
        })
    };
    std::env::args_os().skip(1).map(valid).collect()
}

/// Prints what an option asked for. A reader that has seen enough (`rhea -help | head`) is no error.
fn print(text: &str) -> Result<u8> {
    match io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(e).context("cannot write the output"),
        _ => Ok(0),
    }
}

/// The error with those of its causes that its own text does not show already.
fn in_one_line(error: &anyhow::Error) -> String {
    let mut line = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        // The text of an error of the host has its number at the end, which ours leave out.
        let told = cause.split(" (os error").next().unwrap_or(&cause);
        if !line.contains(told) {
            line = format!("{line}: {cause}");
        }
    }
    line
}
