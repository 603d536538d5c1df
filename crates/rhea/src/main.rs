//! Rhea: arguments to a machine specification to a run.

mod daemon;
mod demo;
mod monitors;
mod pidfile;
mod run;

use std::process::ExitCode;

use cli::Action;

fn main() -> ExitCode {
    let outcome = match cli::parse(std::env::args().skip(1)) {
        Ok(Action::Print(text)) => {
            print!("{text}");
            Ok(0)
        }
        Ok(Action::Run(config)) if config.daemonize && !daemon::is_child() => daemon::detach(),
        Ok(Action::Run(config)) => run::run(*config),
        Err(e) => Err(e.into()),
    };
    // Before the message, and for devices that outlive the machine in some thread.
    chardev::restore_terminal();
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            eprintln!("rhea: {e:#}");
            ExitCode::FAILURE
        }
    }
}
