//! `qmpctl`: talks to a machine by QMP, from the command line.
//!
//! One-shot commands, an interactive shell with completion, and the stream of events. It works with
//! Rhea and with QEMU: what it knows of commands and their arguments comes from the server's own schema.
//!
//! # Exit status
//! 0: done. 1: the server refused the command. 2: the command line is wrong. 3: no server there, or the
//! connection failed.

mod arguments;
mod contract;
mod events;
mod options;
mod render;
mod shell;

use std::io::Write;
use std::process::ExitCode;

use qmp::client::{BlockingClient, ClientError};
use serde_json::{Map, Value};

use crate::contract::Contract;
use crate::options::{Action, Options, Usage};

/// Why the program ends without success.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line, or a command's arguments on it, are wrong.
    Usage(String),
    /// Talking to the server failed, or it refused.
    Client(ClientError),
    /// The terminal or the output failed.
    Output(anyhow::Error),
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        Failure::Client(error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        Failure::Output(error.into())
    }
}

impl Failure {
    fn report(&self) -> ExitCode {
        match self {
            Failure::Usage(text) => {
                eprintln!("qmpctl: {text}\nTry 'qmpctl --help'.");
                ExitCode::from(2)
            }
            Failure::Client(error @ ClientError::Refused { .. }) => {
                eprintln!("qmpctl: {error}");
                ExitCode::from(1)
            }
            Failure::Client(error) => {
                eprintln!("qmpctl: {error}");
                ExitCode::from(3)
            }
            // `qmpctl ... | head` is no failure.
            Failure::Output(error) if is_broken_pipe(error) => ExitCode::SUCCESS,
            Failure::Output(error) => {
                eprintln!("qmpctl: {error:#}");
                ExitCode::from(3)
            }
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

fn main() -> ExitCode {
    let arguments = std::env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned());
    let outcome = match options::parse(arguments) {
        Ok(options) => run(&options),
        Err(Usage::Wrong(text)) => Err(Failure::Usage(text)),
        Err(Usage::Show(text)) => print(&text),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn run(options: &Options) -> Result<(), Failure> {
    match &options.action {
        Action::Execute { command, arguments } => execute(options, command, arguments),
        Action::Shell => shell::run(options),
        Action::Events { follow: true } => events::follow(options),
        Action::Events { follow: false } => {
            let mut client = BlockingClient::connect(&options.address, false)?;
            let contract = Contract::of_server(|command| client.execute(command, Map::new()))?;
            let names: Vec<Value> = contract.events().map(Value::from).collect();
            show(options, &Value::from(names))
        }
    }
}

fn execute(options: &Options, command: &str, words: &[String]) -> Result<(), Failure> {
    let mut client = BlockingClient::connect(&options.address, false)?;
    let arguments = if words.is_empty() {
        Map::new()
    } else {
        let contract = Contract::of_server(|command| client.execute(command, Map::new()))?;
        arguments::read(&contract, command, words).map_err(Failure::Usage)?
    };
    let value = client.execute(command, arguments)?;
    show(options, &value)
}

fn show(options: &Options, value: &Value) -> Result<(), Failure> {
    print(&render::value(value, options.json))
}

fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}
