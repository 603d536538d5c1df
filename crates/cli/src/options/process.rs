//! Options about the process: help, logs, pidfile.

use std::fmt::Write;
use std::io::Read;

use ::options::{OptionError, parse_choice};
use accel::log::Topic;

use super::{Builder, OPTIONS, Takes};
use crate::QEMU_VERSION;
use crate::readconfig;

/// Items of QEMU's `-d` that say nothing here, and why.
const NO_ITEMS: [(&str, &str); 6] = [
    ("op", "guest code becomes host code without a form between; see in_asm and out_asm"),
    ("op_opt", "guest code becomes host code without a form between; see in_asm and out_asm"),
    ("op_ind", "guest code becomes host code without a form between; see in_asm and out_asm"),
    ("plugin", "there are no plugins"),
    ("strace", "it is about programs of the host"),
    ("page", "it is about programs of the host"),
];

/// The longest configuration file, in bytes; far more than any that a person writes.
const CONFIG_FILE_MAX: u64 = 1 << 20;
/// Where the explanations of `-help` begin; they go to a line of their own if there is no room.
const HELP_COLUMN: usize = 34;

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
        if let Some((_, reason)) = NO_ITEMS.iter().find(|(name, _)| *name == item) {
            return Err(OptionError::new(format!("-d {item}: not supported: {reason}")));
        }
        builder.config.log.topics.push(parse_choice("-d", "item", item, &topics)?);
    }
    Ok(())
}

pub(super) fn log_file(builder: &mut Builder, value: &str) -> Result<(), OptionError> {
    builder.config.log.file = Some(value.into());
    Ok(())
}

/// Limits what is logged about guest code to ranges of addresses.
pub(super) fn log_filter(builder: &mut Builder, value: &str) -> Result<(), OptionError> {
    for text in value.split(',') {
        let invalid = || OptionError::new(format!("-dfilter: Invalid range \"{text}\""));
        let number = |text: &str| {
            let hex = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
            hex.map_or_else(|| text.parse(), |hex| u64::from_str_radix(hex, 16)).ok()
        };
        // As QEMU has them: start..end, start+length, start-length.
        let (at, separator) =
            ["..", "+", "-"].iter().find_map(|s| Some((text.find(s)?, *s))).ok_or_else(invalid)?;
        let first = number(&text[..at]).ok_or_else(invalid)?;
        let second = number(&text[at + separator.len()..]).ok_or_else(invalid)?;
        let range = match separator {
            ".." => Some(first..=second),
            "+" => {
                second.checked_sub(1).and_then(|n| first.checked_add(n)).map(|last| first..=last)
            }
            _ => {
                second.checked_sub(1).and_then(|n| first.checked_sub(n)).map(|start| start..=first)
            }
        };
        let range = range.filter(|range| !range.is_empty()).ok_or_else(invalid)?;
        builder.config.log.ranges.push(range);
    }
    Ok(())
}

pub(super) fn perf_map(builder: &mut Builder, _: &str) -> Result<(), OptionError> {
    builder.config.log.perf_map = true;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_items_have_qemus_names() {
        let mut builder = Builder::default();
        log(&mut builder, "in_asm,out_asm,exec,nochain,int,cpu").unwrap();
        assert_eq!(builder.config.log.topics.len(), 6);
        for item in ["op", "strace", "in_asm,op_opt", "no_such_item"] {
            let error = log(&mut builder, item).unwrap_err().to_string();
            assert!(error.contains(item.rsplit(',').next().unwrap()), "{error}");
        }
    }

    #[test]
    fn log_filters_are_ranges_in_three_forms() {
        let mut builder = Builder::default();
        log_filter(&mut builder, "0x8000..0x8fff,0xffffffc000080000+0x200,0x60000-0x1000").unwrap();
        assert_eq!(
            builder.config.log.ranges,
            [0x8000..=0x8fff, 0xffff_ffc0_0008_0000..=0xffff_ffc0_0008_01ff, 0x5_f001..=0x6_0000]
        );
        for value in ["", "0x1000", "5..4", "x+1", "1+0", "0x10-0x20", "1..", "1..2,"] {
            assert!(log_filter(&mut Builder::default(), value).is_err(), "{value}");
        }
    }
}
