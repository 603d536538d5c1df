//! The command line.

use qmp::client::Address;

const HELP: &str = "\
Talks to a virtual machine by QMP.

Usage:
  qmpctl -s SOCKET [--json] COMMAND [NAME=VALUE ... | JSON]
  qmpctl -s SOCKET [--json] shell
  qmpctl -s SOCKET [--json] events [--follow]

SOCKET is the path of a Unix socket, or HOST:PORT.

COMMAND is any command that the server has. Its arguments are given as NAME=VALUE, typed by the
server's schema (NAME.MEMBER=VALUE within objects, a name given several times for a list), or as one
JSON object. 'shell' reads commands from the terminal, with completion, history and help.
'events' lists the events that the server may send; with --follow it prints them as they come.

Options:
  -s, --socket SOCKET  the server
  -j, --json           print JSON, as the server sends it, in place of tables
  -h, --help           this text
  -V, --version        the version

Exit status: 0 done, 1 refused by the server, 2 wrong usage, 3 no connection.
";

/// What to do, and with which server.
#[derive(Debug, PartialEq)]
pub(crate) struct Options {
    pub(crate) address: Address,
    pub(crate) json: bool,
    pub(crate) action: Action,
}

#[derive(Debug, PartialEq)]
pub(crate) enum Action {
    Execute { command: String, arguments: Vec<String> },
    Shell,
    Events { follow: bool },
}

/// Why there is nothing to do.
#[derive(Debug, PartialEq)]
pub(crate) enum Usage {
    /// The command line is wrong, in this way.
    Wrong(String),
    /// This text is all that was asked for.
    Show(String),
}

fn wrong<T>(text: impl Into<String>) -> Result<T, Usage> {
    Err(Usage::Wrong(text.into()))
}

/// Reads the command line, without the program's name.
pub(crate) fn parse(arguments: impl Iterator<Item = String>) -> Result<Options, Usage> {
    let mut arguments = arguments;
    let mut socket: Option<String> = None;
    let mut json = false;
    let mut follow = false;
    let mut words: Vec<String> = Vec::new();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "-h" | "--help" => return Err(Usage::Show(HELP.to_owned())),
            "-V" | "--version" => {
                return Err(Usage::Show(format!("qmpctl {}\n", env!("CARGO_PKG_VERSION"))));
            }
            "-j" | "--json" => json = true,
            "--follow" | "-f" => follow = true,
            "-s" | "--socket" => match arguments.next() {
                Some(value) => socket = Some(value),
                None => return wrong(format!("'{argument}' needs a socket's path or HOST:PORT")),
            },
            other => {
                if let Some(value) = other.strip_prefix("--socket=") {
                    socket = Some(value.to_owned());
                } else if other.starts_with('-') {
                    return wrong(format!("unknown option '{other}'"));
                } else {
                    words.push(argument);
                }
            }
        }
    }
    let Some(socket) = socket else { return wrong("no server: give its socket with -s") };
    let mut words = words.into_iter();
    let Some(command) = words.next() else {
        return wrong("no command: say what to execute, or 'shell' or 'events'");
    };
    let arguments: Vec<String> = words.collect();
    let action = match command.as_str() {
        "shell" | "events" if !arguments.is_empty() => {
            return wrong(format!("'{command}' takes no arguments, but got '{}'", arguments[0]));
        }
        "shell" => Action::Shell,
        "events" => Action::Events { follow },
        _ => Action::Execute { command: command.clone(), arguments },
    };
    if follow && command != "events" {
        return wrong("'--follow' goes with 'events'");
    }
    Ok(Options { address: Address::from(socket.as_str()), json, action })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str) -> Result<Options, Usage> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn commands_and_their_arguments() {
        let options = of("-s /run/vm.sock device_del id=net0 --json").unwrap();
        assert_eq!(options.address, Address::Unix("/run/vm.sock".into()));
        assert!(options.json);
        let arguments = vec!["id=net0".to_owned()];
        let command = "device_del".to_owned();
        assert_eq!(options.action, Action::Execute { command, arguments });
        let options = of("--socket=localhost:4444 events --follow").unwrap();
        assert_eq!(options.address, Address::Tcp("localhost:4444".to_owned()));
        assert_eq!(options.action, Action::Events { follow: true });
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (line, part) in [
            ("", "no server"),
            ("-s", "needs a socket"),
            ("-s x", "no command"),
            ("-s x --jsn stop", "'--jsn'"),
            ("-s x shell now", "'now'"),
            ("-s x stop --follow", "'--follow'"),
        ] {
            let Err(Usage::Wrong(text)) = of(line) else { panic!("{line}") };
            assert!(text.contains(part), "{text}");
        }
        assert!(matches!(of("-s x --help"), Err(Usage::Show(_))));
    }
}
