//! Options about the process: help, logs, pidfile.

use std::fmt::Write;
use std::io::Read;

use ::options::{OptionError, parse_choice};
use accel::log::Topic;

use super::{Builder, OPTIONS, Takes};
use crate::QEMU_VERSION;
use crate::readconfig;

/// Where the explanations of `-help` begin; they go to a line of their own if there is no room.
const HELP_COLUMN: usize = 34;

/// The longest configuration file, in bytes; far more than any that a person writes.
const CONFIG_FILE_MAX: u64 = 1 << 20;

pub(super) fn help(builder: &mut Builder, _: &str) -> Result<(), OptionError> {
    let mut text = version_line();
    text.push_str("\nusage: rhea [options]\n\n");
    for item in OPTIONS {
        let names: Vec<String> = std::iter::once(&item.name)
            .chain(item.aliases)
            .map(|name| format!("-{name}"))
            .collect();
        let value = match item.takes {
            Takes::Nothing => "",
            Takes::Value(syntax) => syntax,
        };
        let usage = format!("{} {value}", names.join(", "));
        let usage = usage.trim_end();
        let _ = if usage.len() <= HELP_COLUMN - 2 {
            writeln!(text, "{usage:<HELP_COLUMN$}{}", item.help)
        } else {
            writeln!(text, "{usage}\n{:HELP_COLUMN$}{}", "", item.help)
        };
    }
    builder.print = Some(text);
    Ok(())
}

pub(super) fn version(builder: &mut Builder, _: &str) -> Result<(), OptionError> {
    builder.print = Some(version_line());
    Ok(())
}

fn version_line() -> String {
    // Scripts look for the first words and the number after them.
    let (major, minor, micro) = QEMU_VERSION;
    format!(
        "QEMU emulator version {major}.{minor}.{micro} compatible: Rhea {}\n",
        env!("CARGO_PKG_VERSION")
    )
}

pub(super) fn demo(builder: &mut Builder, _: &str) -> Result<(), OptionError> {
    builder.config.demo = true;
    Ok(())
}

/// For options that ask for what is so anyway.
pub(super) fn nothing(_: &mut Builder, _: &str) -> Result<(), OptionError> {
    Ok(())
}

pub(super) fn pidfile(builder: &mut Builder, value: &str) -> Result<(), OptionError> {
    builder.config.pidfile = Some(value.into());
    Ok(())
}

pub(super) fn daemonize(builder: &mut Builder, _: &str) -> Result<(), OptionError> {
    builder.config.daemonize = true;
    Ok(())
}

pub(super) fn log(builder: &mut Builder, value: &str) -> Result<(), OptionError> {
    if value == "help" {
        let mut text = String::from("Log items (comma separated):\n");
        for (_, name, what) in Topic::ALL {
            let _ = writeln!(text, "{name:<16} {what}");
        }
        builder.print = Some(text);
        return Ok(());
    }
    let topics = Topic::ALL.map(|(topic, name, _)| (name, topic));
    for item in value.split(',') {
        builder.config.log.topics.push(parse_choice("-d", "item", item, &topics)?);
    }
    Ok(())
}

pub(super) fn log_file(builder: &mut Builder, value: &str) -> Result<(), OptionError> {
    builder.config.log.file = Some(value.into());
    Ok(())
}

pub(super) fn readconfig(builder: &mut Builder, value: &str) -> Result<(), OptionError> {
    let failed = |e: &dyn std::fmt::Display| OptionError::new(format!("-readconfig {value}: {e}"));
    let file = std::fs::File::open(value)
        .map_err(|e| failed(&format_args!("cannot read config file: {e}")))?;
    let mut text = String::new();
    file.take(CONFIG_FILE_MAX + 1)
        .read_to_string(&mut text)
        .map_err(|e| failed(&format_args!("cannot read config file: {e}")))?;
    if text.len() as u64 > CONFIG_FILE_MAX {
        return Err(failed(&format_args!("the file is longer than {CONFIG_FILE_MAX} bytes")));
    }
    readconfig::apply(builder, value, &text)
}
