//! `qmpctl shell`: commands from the terminal.
//!
//! The connection lives on a thread of its own, which prints events as they come, above the line being
//! edited; the shell hands it one command at a time.

use std::borrow::Cow;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use qmp::client::{Client, ClientError};
use rustyline::completion::{Completer, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::DefaultHistory;
use rustyline::validate::Validator;
use rustyline::{CompletionType, Config, Context, Editor, ExternalPrinter, Helper};
use serde_json::{Map, Value};
use tokio::sync::{mpsc, oneshot};

use crate::contract::{Contract, Kind};
use crate::options::Options;
use crate::{Failure, arguments, render};

const HELP: &str = "\
COMMAND [NAME=VALUE ... | JSON]  executes a command
help                             lists the commands
help COMMAND                     shows the arguments of one
exit, Ctrl-D                     ends the shell
";

/// A command on its way to the connection's thread.
struct Job {
    command: String,
    arguments: Map<String, Value>,
    answer: oneshot::Sender<Result<Value, ClientError>>,
}

/// The shell's end of the connection.
struct Connection {
    jobs: mpsc::Sender<Job>,
}

impl Connection {
    fn execute(&self, command: &str, arguments: Map<String, Value>) -> Result<Value, ClientError> {
        let (answer, answered) = oneshot::channel();
        let job = Job { command: command.to_owned(), arguments, answer };
        self.jobs.blocking_send(job).map_err(|_| ClientError::Closed)?;
        answered.blocking_recv().map_err(|_| ClientError::Closed)?
    }
}

/// Talks to the server on a thread of its own; what comes unasked goes to `print`.
fn connect(
    options: &Options,
    mut print: impl FnMut(String) + Send + 'static,
) -> Result<Connection, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut client = runtime.block_on(Client::connect(&options.address, false))?;
    let (jobs, mut received) = mpsc::channel::<Job>(1);
    let json = options.json;
    std::thread::Builder::new().name("connection".to_owned()).spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    job = received.recv() => {
                        let Some(job) = job else { return };
                        let outcome = client.execute(&job.command, job.arguments).await;
                        for event in client.take_events() {
                            print(render::event(&event, json));
                        }
                        // The shell waits for it, unless it has ended.
                        let _ = job.answer.send(outcome);
                    }
                    event = client.event() => match event {
                        Ok(event) => print(render::event(&event, json)),
                        Err(error) => {
                            print(error.to_string());
                            return;
                        }
                    }
                }
            }
        });
    })?;
    Ok(Connection { jobs })
}

/// Reads and executes commands until the end of input or of the server.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    if std::io::stdin().is_terminal() { interactive(options) } else { script(options) }
}

fn interactive(options: &Options) -> Result<(), Failure> {
    let config = Config::builder().completion_type(CompletionType::List).auto_add_history(true);
    let mut editor: Editor<Assistant, DefaultHistory> =
        Editor::with_config(config.build()).context("the terminal").map_err(Failure::Output)?;
    let mut printer =
        editor.create_external_printer().context("the terminal").map_err(Failure::Output)?;
    let connection = connect(options, move |text| {
        // The terminal has gone when this fails, and the shell ends.
        let _ = printer.print(text + "\n");
    })?;
    let contract = Arc::new(Contract::of_server(|name| connection.execute(name, Map::new()))?);
    editor.set_helper(Some(Assistant { contract: contract.clone() }));
    let history = history_path();
    if let Some(path) = &history {
        // There is none the first time.
        let _ = editor.load_history(path);
    }
    let outcome = loop {
        match editor.readline("qmp> ") {
            Ok(line) => match one_line(options, &connection, &contract, &line) {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(failure) => break Err(failure),
            },
            Err(ReadlineError::Interrupted) => {}
            Err(ReadlineError::Eof) => break Ok(()),
            Err(error) => break Err(Failure::Output(error.into())),
        }
    };
    if let Some(path) = &history
        && let Err(error) = save_history(&mut editor, path)
    {
        eprintln!("qmpctl: cannot save the history to {}: {error:#}", path.display());
    }
    outcome
}

fn script(options: &Options) -> Result<(), Failure> {
    let connection = connect(options, |text| println!("{text}"))?;
    let contract = Contract::of_server(|name| connection.execute(name, Map::new()))?;
    for line in std::io::stdin().lines() {
        if !one_line(options, &connection, &contract, &line?)? {
            break;
        }
    }
    Ok(())
}

/// Executes one line; `false` ends the shell. Only a lost connection is an error here.
fn one_line(
    options: &Options,
    connection: &Connection,
    contract: &Contract,
    line: &str,
) -> Result<bool, Failure> {
    let words = match split(line) {
        Ok(words) => words,
        Err(text) => {
            eprintln!("{text}");
            return Ok(true);
        }
    };
    let Some((command, rest)) = words.split_first() else { return Ok(true) };
    match (command.as_str(), rest) {
        ("exit", []) => return Ok(false),
        ("help", []) => {
            let names: Vec<_> = contract.commands().collect();
            print!("{HELP}\n{}\n", names.join("\n"));
        }
        ("help", [name, ..]) => match contract.help(name) {
            Some(text) => print!("{text}"),
            None => eprintln!("no command '{name}'"),
        },
        (command, words) => {
            let arguments = match arguments::read(contract, command, words) {
                Ok(arguments) => arguments,
                Err(text) => {
                    eprintln!("{text}");
                    return Ok(true);
                }
            };
            match connection.execute(command, arguments) {
                Ok(value) => print!("{}", render::value(&value, options.json)),
                Err(error @ ClientError::Refused { .. }) => eprintln!("{error}"),
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(true)
}

/// Splits a line into words at blanks outside of quotes and braces. Quotes of either kind keep
/// blanks and vanish, except within a JSON object, which is taken as it is.
fn split(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut started = false;
    let mut quote: Option<char> = None;
    let mut depth = 0_usize;
    let mut escaped = false;
    for c in line.chars() {
        match (quote, c) {
            _ if escaped => {
                escaped = false;
                word.push(c);
            }
            (Some(_), '\\') if depth > 0 => {
                escaped = true;
                word.push(c);
            }
            (Some(open), c) if c == open => {
                quote = None;
                if depth > 0 {
                    word.push(c);
                }
            }
            (Some(_), c) => word.push(c),
            (None, '"') | (None, '\'') => {
                quote = Some(c);
                started = true;
                if depth > 0 {
                    word.push(c);
                }
            }
            (None, c) if c.is_whitespace() && depth == 0 => {
                if started {
                    words.push(std::mem::take(&mut word));
                }
                started = false;
            }
            (None, c) => {
                match c {
                    '{' | '[' => depth += 1,
                    '}' | ']' => depth = depth.saturating_sub(1),
                    _ => {}
                }
                started = true;
                word.push(c);
            }
        }
    }
    match (quote, depth) {
        (Some(open), _) => Err(format!("a quote {open} is not closed")),
        (None, 1..) => Err("a brace or bracket is not closed".to_owned()),
        (None, 0) => {
            if started {
                words.push(word);
            }
            Ok(words)
        }
    }
}

/// `$XDG_STATE_HOME/qmpctl/history`, by default in `~/.local/state`.
fn history_path() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
    let state = state.or_else(|| {
        std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"))
    })?;
    Some(state.join("qmpctl/history"))
}

fn save_history(
    editor: &mut Editor<Assistant, DefaultHistory>,
    path: &PathBuf,
) -> anyhow::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    editor.save_history(path)?;
    Ok(())
}

/// Completes commands, argument names and values from the schema.
struct Assistant {
    contract: Arc<Contract>,
}

impl Assistant {
    /// Where the word at the end of `line` begins, and what it may become.
    fn candidates(&self, line: &str) -> (usize, Vec<String>) {
        let start = line.rfind(char::is_whitespace).map_or(0, |at| at + 1);
        let word = &line[start..];
        let mut before = line[..start].split_whitespace();
        let command = match before.next() {
            None => return (start, self.commands(word)),
            Some("help") => return (start, self.commands(word)),
            Some(command) => command,
        };
        let Some(arguments) = self.contract.argument_type(command) else {
            return (start, Vec::new());
        };
        let members = self.contract.members(arguments);
        let given: Vec<&str> = before.filter_map(|word| word.split('=').next()).collect();
        if let Some((name, value)) = word.split_once('=') {
            let member = members.iter().find(|member| member.name == name);
            let kind = member.map_or(Kind::Any, |member| self.contract.kind(&member.type_name));
            let values = match kind {
                Kind::Boolean => vec!["off", "on"],
                Kind::Enum(values) => values,
                _ => Vec::new(),
            };
            let matching = values.into_iter().filter(|candidate| candidate.starts_with(value));
            return (start + name.len() + 1, matching.map(|v| format!("{v} ")).collect());
        }
        let names = members.iter().map(|member| member.name.as_str());
        let matching = names.filter(|name| name.starts_with(word) && !given.contains(name));
        (start, matching.map(|name| format!("{name}=")).collect())
    }

    fn commands(&self, word: &str) -> Vec<String> {
        let own = ["exit", "help"].into_iter();
        let all = self.contract.commands().chain(own);
        all.filter(|name| name.starts_with(word)).map(|name| format!("{name} ")).collect()
    }
}

impl Completer for Assistant {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        at: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        let (start, candidates) = self.candidates(&line[..at]);
        let pair = |text: String| Pair { display: text.trim_end().to_owned(), replacement: text };
        Ok((start, candidates.into_iter().map(pair).collect()))
    }
}

impl Hinter for Assistant {
    type Hint = String;

    /// The arguments that a complete command still needs.
    fn hint(&self, line: &str, at: usize, _: &Context<'_>) -> Option<String> {
        let command = line.strip_suffix(' ').filter(|_| at == line.len())?;
        let arguments = self.contract.argument_type(command)?;
        let members = self.contract.members(arguments);
        let needed = members.iter().filter(|member| !member.optional);
        let text: Vec<_> = needed
            .map(|member| {
                format!("{}=<{}>", member.name, self.contract.describe(&member.type_name))
            })
            .collect();
        (!text.is_empty()).then(|| text.join(" "))
    }
}

impl Highlighter for Assistant {
    fn highlight_hint<'h>(&self, hint: &'h str) -> Cow<'h, str> {
        Cow::Owned(format!("\x1b[2m{hint}\x1b[0m"))
    }
}

impl Validator for Assistant {}
impl Helper for Assistant {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_words() {
        let of = |line: &str| split(line).unwrap();
        assert_eq!(of("  stop  "), ["stop"]);
        assert_eq!(of("a b='c d' \"e\""), ["a", "b=c d", "e"]);
        assert_eq!(
            of("a {\"x\": \"y } \\\" z\", 'b': [1, 2]} c=1"),
            ["a", "{\"x\": \"y } \\\" z\", 'b': [1, 2]}", "c=1"]
        );
        assert_eq!(of("a ''"), ["a", ""]);
        assert!(split("a 'b").is_err());
        assert!(split("a {\"b\": 1").is_err());
    }

    #[test]
    fn completion_follows_the_schema() {
        let assistant = Assistant { contract: Arc::new(Contract::built_in()) };
        let (start, commands) = assistant.candidates("query-bl");
        assert_eq!(start, 0);
        assert!(commands.contains(&"query-block ".to_owned()), "{commands:?}");
        assert!(commands.iter().all(|name| name.starts_with("query-bl")));
        assert_eq!(assistant.candidates("help ballo"), (5, vec!["balloon ".to_owned()]));
        assert_eq!(assistant.candidates("balloon va"), (8, vec!["value=".to_owned()]));
        assert_eq!(assistant.candidates("balloon value=1 va"), (16, vec![]));
    }
}
