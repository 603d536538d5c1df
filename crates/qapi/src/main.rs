//! `qapi`: checks schemas and shows what is in them.
//!
//! Exit status 0 for a valid schema, 1 for an invalid one or one that cannot be read, 2 for wrong
//! usage. Findings go to standard error, results to standard output.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::Value;

const USAGE: &str = "\
usage: qapi check FILE               check a schema and all it includes
       qapi dump FILE                print the checked schema as JSON
       qapi introspect FILE [-D SYMBOL]...
                                     print what query-qmp-schema returns: all of the schema,
                                     or with -D what is left with these symbols defined
       qapi doc FILE -o DIR          write the reference as Markdown

exit status: 0 valid, 1 invalid or not readable, 2 wrong usage
";

/// What the command line asks for.
#[derive(Debug)]
enum Request {
    Check(PathBuf),
    Dump(PathBuf),
    Introspect { file: PathBuf, symbols: Vec<String> },
    Doc { file: PathBuf, dir: PathBuf },
    Help,
}

fn main() -> ExitCode {
    match parse(std::env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned())) {
        Ok(request) => match run(&request) {
            Ok(valid) => ExitCode::from(u8::from(!valid)),
            // The reader of our output has gone: there is no one to tell.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
            Err(e) => {
                let _ = writeln!(io::stderr(), "qapi: {e}");
                ExitCode::FAILURE
            }
        },
        Err(message) => {
            let _ = write!(io::stderr(), "qapi: {message}\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Request, String> {
    let command = args.next().ok_or("a command is missing")?;
    if matches!(command.as_str(), "-h" | "--help" | "help") {
        return Ok(Request::Help);
    }
    if !matches!(command.as_str(), "check" | "dump" | "introspect" | "doc") {
        return Err(format!("unknown command '{command}'"));
    }
    let (mut file, mut dir, mut symbols) = (None, None, Vec::new());
    while let Some(arg) = args.next() {
        if arg == "-o" && command == "doc" {
            dir = Some(args.next().ok_or("-o needs a directory")?);
        } else if arg == "-D" && command == "introspect" {
            symbols.push(args.next().ok_or("-D needs a symbol")?);
        } else if arg.starts_with('-') && arg.len() > 1 {
            return Err(format!("unknown option '{arg}' for {command}"));
        } else if file.replace(arg).is_some() {
            return Err("more than one file is given; a schema has one root".to_owned());
        }
    }
    let file = PathBuf::from(file.ok_or("a file is missing")?);
    Ok(match command.as_str() {
        "check" => Request::Check(file),
        "dump" => Request::Dump(file),
        "introspect" => Request::Introspect { file, symbols },
        _ => Request::Doc { file, dir: PathBuf::from(dir.ok_or("doc needs -o DIR")?) },
    })
}

/// Does it; whether the schema is valid.
fn run(request: &Request) -> io::Result<bool> {
    let file = match request {
        Request::Help => {
            io::stdout().write_all(USAGE.as_bytes())?;
            return Ok(true);
        }
        Request::Check(file) | Request::Dump(file) => file,
        Request::Introspect { file, .. } | Request::Doc { file, .. } => file,
    };
    let outcome = qapi::check_file(file);
    report(&outcome)?;
    if !outcome.is_ok() {
        return Ok(false);
    }
    let schema = &outcome.schema;
    match request {
        Request::Check(_) | Request::Help => {}
        Request::Dump(_) => print(&qapi::dump::dump(schema))?,
        Request::Introspect { symbols, .. } => {
            let defined = |symbol: &str| symbols.iter().any(|s| s == symbol);
            let all = symbols.is_empty();
            print(&qapi::introspect::introspect(schema, &|c| all || c.holds(&defined)))?;
        }
        Request::Doc { dir, .. } => write_doc(schema, dir)?,
    }
    Ok(true)
}

fn write_doc(schema: &qapi::ir::Schema, dir: &Path) -> io::Result<()> {
    qapi::doc::write(schema, dir)
        .map_err(|e| io::Error::new(e.kind(), format!("can't write into '{}': {e}", dir.display())))
}

fn print(value: &Value) -> io::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    serde_json::to_writer_pretty(&mut out, value)?;
    out.write_all(b"\n")?;
    out.flush()
}

fn report(outcome: &qapi::Outcome) -> io::Result<()> {
    if outcome.diagnostics.is_empty() {
        return Ok(());
    }
    let mut err = io::stderr().lock();
    let text = outcome.render(err.is_terminal());
    let errors =
        outcome.diagnostics.iter().filter(|d| d.severity == qapi::diag::Severity::Error).count();
    let warnings = outcome.diagnostics.len() - errors;
    let plural = |n: usize| if n == 1 { "" } else { "s" };
    writeln!(
        err,
        "{text}\n\n{errors} error{}, {warnings} warning{}",
        plural(errors),
        plural(warnings)
    )
}
