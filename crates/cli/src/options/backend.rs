//! Options about devices, character devices and monitors.

use std::fmt::Write;
use std::time::Duration;

use ::options::{OptionError, Properties};
use chardev::ChardevSpec;
use chardev::socket::{InetAddress, SocketAddress, SocketSpec};
use machine::pc::devices::drivers;
use machine::spec::{DeviceSpec, QtestLogSpec, SerialSpec};

use super::Builder;

/// Bytes that a ring buffer keeps unless told otherwise.
const RINGBUF_SIZE: usize = 65536;

pub(super) fn usb_device(builder: &mut Builder, value: &str) -> Result<(), OptionError> {
    let driver = match value {
        "keyboard" => "usb-kbd",
        "mouse" => "usb-mouse",
        "tablet" => "usb-tablet",
        _ => {
            let known = ["keyboard", "mouse", "tablet"];
            return Err(OptionError::unknown(
                "-usbdevice: could not add USB device",
                value,
                &known,
            ));
        }
    };
    builder.machine().usb = true;
    let device = DeviceSpec { driver: driver.to_owned(), id: None, properties: Default::default() };
    builder.machine().devices.push(device);
    Ok(())
}

pub(super) fn device(builder: &mut Builder, value: &str) -> Result<(), OptionError> {
    if matches!(value, "help" | "?") {
        let mut text = String::new();
        for driver in drivers() {
            let _ = writeln!(
                text,
                "name \"{}\", bus {}, desc \"{}\"",
                driver.name, driver.bus, driver.description
            );
        }
        builder.print = Some(text);
        return Ok(());
    }
    let mut options = Properties::parse("-device", value, Some("driver"))?;
    let driver = options.require("driver")?;
    let id = options.take_id("id")?;
    let taken =
        |id: &String| builder.config.machine.devices.iter().any(|d| d.id.as_ref() == Some(id));
    if let Some(id) = id.as_ref().filter(|&id| taken(id)) {
        return Err(OptionError::new(format!("-device: Duplicate device ID '{id}'")));
    }
    let properties = options.into_rest();
    builder.machine().devices.push(DeviceSpec { driver, id, properties });
    Ok(())
}

pub(super) fn serial(builder: &mut Builder, value: &str) -> Result<(), OptionError> {
    let index = builder.machine().serials.len();
    let serial = port(builder, "-serial", value, format!("serial{index}"))?;
    builder.machine().serials.push(serial);
    Ok(())
}

pub(super) fn parallel(builder: &mut Builder, value: &str) -> Result<(), OptionError> {
    let index = builder.machine().parallels.len();
    let parallel = port(builder, "-parallel", value, format!("parallel{index}"))?;
    builder.machine().parallels.push(parallel);
    Ok(())
}

/// The other end of a port; `id` is that of a character device made for it.
fn port(
    builder: &mut Builder,
    option: &str,
    value: &str,
    id: String,
) -> Result<SerialSpec, OptionError> {
    if value == "none" {
        return Ok(SerialSpec::None);
    }
    if let Some(id) = value.strip_prefix("chardev:") {
        return Ok(SerialSpec::Chardev(id.to_owned()));
    }
    builder.add_chardev(&id, legacy_chardev(option, value)?)?;
    Ok(SerialSpec::Chardev(id))
}

/// Where the first serial port goes if nobody says.
pub(super) fn default_serial(no_graphic: bool) -> ChardevSpec {
    if no_graphic {
        ChardevSpec::Mux(Box::new(ChardevSpec::Stdio { signal: false }))
    } else {
        ChardevSpec::Null
    }
}

pub(super) fn qmp(builder: &mut Builder, value: &str) -> Result<(), OptionError> {
    compat_monitor(builder, "-qmp", value, false)
}

pub(super) fn qmp_pretty(builder: &mut Builder, value: &str) -> Result<(), OptionError> {
    compat_monitor(builder, "-qmp-pretty", value, true)
}

fn compat_monitor(
    builder: &mut Builder,
    option: &str,
    value: &str,
    pretty: bool,
) -> Result<(), OptionError> {
    if value == "none" {
        return Ok(());
    }
    let id = match value.strip_prefix("chardev:") {
        Some(id) => id.to_owned(),
        None => {
            let id = format!("compat_monitor{}", builder.compat_monitors);
            builder.compat_monitors += 1;
            builder.add_chardev(&id, legacy_chardev(option, value)?)?;
            id
        }
    };
    builder.add_monitor(id, pretty)
}

pub(super) fn qtest(builder: &mut Builder, value: &str) -> Result<(), OptionError> {
    const ID: &str = "qtest";
    if value == "none" {
        return Ok(());
    }
    let id = match value.strip_prefix("chardev:") {
        Some(id) => id,
        None => {
            builder.add_chardev(ID, legacy_chardev("-qtest", value)?)?;
            ID
        }
    };
    builder.qtest = Some(id.to_owned());
    Ok(())
}

pub(super) fn qtest_log(builder: &mut Builder, value: &str) -> Result<(), OptionError> {
    builder.qtest_log = match value {
        "none" => QtestLogSpec::None,
        path => QtestLogSpec::File(path.into()),
    };
    Ok(())
}

pub(super) fn mon(builder: &mut Builder, value: &str) -> Result<(), OptionError> {
    let mut options = Properties::parse("-mon", value, Some("chardev"))?;
    let chardev = options.require("chardev")?;
    let control = options.take_choice("mode", &[("control", true), ("readline", false)])?;
    let pretty = options.take_bool("pretty")?.unwrap_or(false);
    options.take_id("id")?;
    options.finish()?;
    if control != Some(true) {
        return Err(OptionError::new(
            "-mon: the human monitor is not available in this build; use mode=control",
        ));
    }
    builder.add_monitor(chardev, pretty)
}

pub(super) fn monitor(_: &mut Builder, value: &str) -> Result<(), OptionError> {
    super::machine::only_none("-monitor", value)
}

pub(super) fn chardev(builder: &mut Builder, value: &str) -> Result<(), OptionError> {
    let mut options = Properties::parse("-chardev", value, Some("backend"))?;
    let backend = options.require("backend")?;
    let id = options.take_id("id")?.ok_or_else(|| options.missing("id"))?;
    let mux = options.take_bool("mux")?.unwrap_or(false);
    let spec = match backend.as_str() {
        "null" => ChardevSpec::Null,
        "pty" => ChardevSpec::Pty,
        "stdio" => ChardevSpec::Stdio { signal: options.take_bool("signal")?.unwrap_or(true) },
        "file" => ChardevSpec::File {
            path: options.require("path")?.into(),
            append: options.take_bool("append")?.unwrap_or(false),
        },
        "ringbuf" | "memory" => ChardevSpec::Ringbuf {
            size: options.take_size("size", 1)?.map_or(RINGBUF_SIZE, |size| size as usize),
        },
        "socket" => ChardevSpec::Socket(take_socket(&mut options)?),
        other => {
            let known = ["file", "null", "pty", "ringbuf", "socket", "stdio"];
            return Err(OptionError::unknown("-chardev: unknown backend", other, &known));
        }
    };
    options.finish()?;
    builder.add_chardev(&id, if mux { ChardevSpec::Mux(Box::new(spec)) } else { spec })
}

/// The keys of a socket, whatever the option.
fn take_socket(options: &mut Properties) -> Result<SocketSpec, OptionError> {
    let address = if let Some(path) = options.take("path") {
        SocketAddress::Unix(path.into())
    } else if let Some(fd) = options.take_number::<u32>("fd")? {
        let fd = i32::try_from(fd)
            .map_err(|_| OptionError::new(format!("{}: bad fd {fd}", options.option())))?;
        SocketAddress::Fd(fd)
    } else {
        let host = options.take("host").unwrap_or_default();
        let port = options.take_number("port")?.ok_or_else(|| {
            OptionError::new(format!(
                "{}: a socket needs 'path', 'fd', or 'host' and 'port'",
                options.option()
            ))
        })?;
        SocketAddress::Inet(InetAddress {
            host,
            port,
            to: options.take_number("to")?,
            ipv4: options.take_bool("ipv4")?,
            ipv6: options.take_bool("ipv6")?,
        })
    };
    let server = options.take_bool("server")?.unwrap_or(false);
    let wait = options.take_bool("wait")?.unwrap_or(server);
    let nodelay = options.take_bool("nodelay")?.or(options.take_bool("delay")?.map(|d| !d));
    let reconnect = options
        .take_number::<u64>("reconnect")?
        .filter(|&seconds| seconds > 0)
        .map(Duration::from_secs);
    let spec = SocketSpec { address, server, wait, reconnect, nodelay: nodelay.unwrap_or(false) };
    spec.check().map_err(|e| OptionError::new(format!("{}: {e}", options.option())))?;
    Ok(spec)
}

/// A character device in the short form of `-serial` and `-qmp`: `stdio`, `unix:PATH,...`.
pub(super) fn legacy_chardev(option: &str, text: &str) -> Result<ChardevSpec, OptionError> {
    if let Some(rest) = text.strip_prefix("mon:") {
        return Ok(ChardevSpec::Mux(Box::new(legacy_chardev(option, rest)?)));
    }
    if let Some(path) = text.strip_prefix("file:") {
        return Ok(ChardevSpec::File { path: path.into(), append: false });
    }
    if let Some(rest) = text.strip_prefix("unix:") {
        let mut options = Properties::parse(option, rest, Some("path"))?;
        let spec = take_socket(&mut options)?;
        options.finish()?;
        return Ok(ChardevSpec::Socket(spec));
    }
    if let Some(rest) = text.strip_prefix("tcp:") {
        let (address, keys) = rest.split_once(',').unwrap_or((rest, ""));
        let (host, port) = address
            .rsplit_once(':')
            .ok_or_else(|| OptionError::value(option, text, "an address HOST:PORT is expected"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let keys = if keys.is_empty() { String::new() } else { format!(",{keys}") };
        let text = format!("host={host},port={port}{keys}");
        let mut options = Properties::parse(option, &text, None)?;
        let spec = take_socket(&mut options)?;
        options.finish()?;
        return Ok(ChardevSpec::Socket(spec));
    }
    match text {
        "null" => Ok(ChardevSpec::Null),
        "pty" => Ok(ChardevSpec::Pty),
        "stdio" => Ok(ChardevSpec::Stdio { signal: true }),
        _ => {
            let known = ["file:", "mon:stdio", "none", "null", "pty", "stdio", "tcp:", "unix:"];
            let kind = text.split(':').next().unwrap_or(text);
            Err(OptionError::unknown(&format!("{option}: unknown character device"), kind, &known))
        }
    }
}
