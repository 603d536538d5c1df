//! Options about the process: help, logs, pidfile.

use std::fmt::Write;

use super::{Builder, OPTIONS, Takes};
use crate::QEMU_VERSION;
use crate::config::LOG_ITEMS;
use crate::readconfig;
use ::options::OptionError;

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
        let _ = writeln!(text, "{:<34} {}", usage.trim_end(), item.help);
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
        for (name, what) in LOG_ITEMS {
            let _ = writeln!(text, "{name:<16} {what}");
        }
        builder.print = Some(text);
        return Ok(());
    }
    let names: Vec<&str> = LOG_ITEMS.iter().map(|item| item.0).collect();
    for wanted in value.split(',') {
        let known = names.iter().find(|name| **name == wanted);
        let name =
            known.ok_or_else(|| OptionError::unknown("-d: unknown log item", wanted, &names))?;
        if !builder.config.log.items.contains(name) {
            builder.config.log.items.push(name);
        }
    }
    Ok(())
}

pub(super) fn log_file(builder: &mut Builder, value: &str) -> Result<(), OptionError> {
    builder.config.log.file = Some(value.into());
    Ok(())
}

pub(super) fn readconfig(builder: &mut Builder, value: &str) -> Result<(), OptionError> {
    let text = std::fs::read_to_string(value).map_err(|e| {
        OptionError::new(format!("-readconfig {value}: cannot read config file: {e}"))
    })?;
    readconfig::apply(builder, value, &text)
}
