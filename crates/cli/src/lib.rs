//! The command line, as users of QEMU know it.
//!
//! [`parse`] turns arguments into a [`Config`]: plain data, nothing is opened or started. Options are
//! the items of one table, [`options::OPTIONS`]; each item has its name, its help and a function that
//! applies it. An unknown option or value is an error that names the nearest known one.

pub mod config;
pub mod options;
mod readconfig;

pub use config::{Action, Config, DisplaySpec, LogSpec, MonitorSpec};

use ::options::OptionError;
use options::{Builder, OPTIONS, OptionItem, Takes};

/// Version of QEMU that options, QMP and formats are compatible with: major, minor, micro.
pub const QEMU_VERSION: (u32, u32, u32) = (7, 2, 0);

/// Reads the arguments that follow the program's name.
///
/// # Errors
/// Says what is wrong with the first argument that is.
pub fn parse<I: IntoIterator<Item = String>>(args: I) -> Result<Action, OptionError> {
    let mut args = args.into_iter();
    let mut builder = Builder::default();
    while let Some(arg) = args.next() {
        let Some(name) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')) else {
            options::drives::positional(&mut builder, &arg)?;
            continue;
        };
        let item = find(name).ok_or_else(|| unknown_option(&arg, name))?;
        let value = match item.takes {
            Takes::Nothing => String::new(),
            Takes::Value(_) => args
                .next()
                .ok_or_else(|| OptionError::new(format!("-{}: requires an argument", item.name)))?,
        };
        (item.apply)(&mut builder, &value)?;
        if let Some(text) = builder.print.take() {
            return Ok(Action::Print(text));
        }
    }
    builder.finish().map(|config| Action::Run(Box::new(config)))
}

fn find(name: &str) -> Option<&'static OptionItem> {
    OPTIONS.iter().find(|item| item.name == name || item.aliases.contains(&name))
}

fn unknown_option(arg: &str, name: &str) -> OptionError {
    let known: Vec<&str> =
        OPTIONS.iter().flat_map(|item| item.aliases.iter().copied().chain([item.name])).collect();
    let error = OptionError::unknown("invalid option", name, &known).to_string();
    // Show what was typed, dashes included.
    OptionError::new(
        error
            .replacen(&format!("'{name}'"), &format!("'{arg}'"), 1)
            .replace("did you mean '", "did you mean '-"),
    )
}
