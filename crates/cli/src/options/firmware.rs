//! Options about firmware and what it boots from.

use std::fmt::Write;

use ::options::{OptionError, Properties, parse_number};
use machine::pc::RomFiles;
use machine::spec::{DeviceSpec, FwCfgItem, FwCfgValue, GlobalSpec, OptionRomSpec};

use super::Builder;
use super::backend::legacy_chardev;

/// Room for the name of a firmware item, in bytes.
const MAX_ITEM_NAME: usize = 55;
/// Most devices in a boot order.
const MAX_ORDER: usize = 3;

pub(super) fn bios(builder: &mut Builder, value: &str) -> Result<(), OptionError> {
    builder.machine().firmware.bios = Some(value.to_owned());
    Ok(())
}

pub(super) fn search(builder: &mut Builder, value: &str) -> Result<(), OptionError> {
    if matches!(value, "help" | "?") {
        let mut text = String::new();
        for directory in RomFiles::new(&builder.machine().firmware.search).directories() {
            let _ = writeln!(text, "{}", directory.display());
        }
        builder.print = Some(text);
    } else {
        builder.machine().firmware.search.push(value.into());
    }
    Ok(())
}

/// Checks the letters of a boot order.
fn check_order(order: &str) -> Result<(), OptionError> {
    for (at, letter) in order.char_indices() {
        if !('a'..='p').contains(&letter) {
            return Err(OptionError::new(format!("Invalid boot device '{letter}'")));
        }
        if order[..at].contains(letter) {
            return Err(OptionError::new(format!("Boot device '{letter}' was given twice")));
        }
    }
    if order.len() > MAX_ORDER {
        return Err(OptionError::new("Too many boot devices for PC"));
    }
    match order.chars().find(|letter| !matches!(letter, 'a'..='d' | 'n')) {
        Some(letter) => Err(OptionError::new(format!("Invalid boot device for PC: '{letter}'"))),
        None => Ok(()),
    }
}

pub(super) fn boot(builder: &mut Builder, value: &str) -> Result<(), OptionError> {
    let mut options = Properties::parse("-boot", value, Some("order"))?;
    let boot = &mut builder.machine().firmware.boot;
    if let Some(order) = options.take("order") {
        check_order(&order)?;
        boot.order = Some(order);
    }
    if let Some(once) = options.take("once") {
        check_order(&once)?;
        boot.once = Some(once);
    }
    boot.menu = options.take_bool("menu")?.or(boot.menu);
    boot.splash = options.take("splash").map(Into::into).or(boot.splash.take());
    if let Some(text) = options.take("splash-time") {
        let time = text.parse().map_err(|_| {
            OptionError::new("splash time is invalid, it should be a value between 0 and 65535")
        })?;
        boot.splash_time = Some(time);
    }
    if let Some(text) = options.take("reboot-timeout") {
        boot.reboot_timeout = match text.as_str() {
            "-1" => None,
            text => Some(text.parse().map_err(|_| {
                OptionError::new(
                    "reboot timeout is invalid,it should be a value between -1 and 65535",
                )
            })?),
        };
    }
    boot.strict = options.take_bool("strict")?.unwrap_or(boot.strict);
    options.finish()
}

pub(super) fn option_rom(builder: &mut Builder, value: &str) -> Result<(), OptionError> {
    let mut options = Properties::parse("-option-rom", value, Some("romfile"))?;
    let rom = OptionRomSpec {
        file: options.require("romfile")?,
        // A device that is not in the boot order.
        boot_index: match options.take("bootindex").as_deref() {
            None | Some("-1") => None,
            Some(text) => Some(parse_number("-option-rom", "bootindex", text)?),
        },
    };
    options.finish()?;
    builder.machine().firmware.option_roms.push(rom);
    Ok(())
}

pub(super) fn no_floppy_check(builder: &mut Builder, _: &str) -> Result<(), OptionError> {
    builder.machine().firmware.boot.no_floppy_check = true;
    Ok(())
}

pub(super) fn fw_cfg(builder: &mut Builder, value: &str) -> Result<(), OptionError> {
    let mut options = Properties::parse("-fw_cfg", value, Some("name"))?;
    let name = options.take("name").filter(|name| !name.is_empty());
    let (file, text) = (options.take("file"), options.take("string"));
    options.finish()?;
    let value = match (file, text) {
        (Some(file), None) if !file.is_empty() => FwCfgValue::File(file.into()),
        (None, Some(text)) => FwCfgValue::Text(text),
        _ => {
            return Err(OptionError::new("-fw_cfg: name, plus file or string, is needed"));
        }
    };
    let name =
        name.ok_or_else(|| OptionError::new("-fw_cfg: name, plus file or string, is needed"))?;
    if name.len() > MAX_ITEM_NAME {
        return Err(OptionError::new(format!(
            "-fw_cfg: name too long (max. {MAX_ITEM_NAME} char)"
        )));
    }
    if !name.starts_with("opt/") {
        eprintln!(
            "rhea: -fw_cfg {name}: warning: externally provided fw_cfg item names should be \
             prefixed with \"opt/\""
        );
    }
    builder.machine().firmware.items.push(FwCfgItem { name, value });
    Ok(())
}

pub(super) fn debugcon(builder: &mut Builder, value: &str) -> Result<(), OptionError> {
    let chardev = match value.strip_prefix("chardev:") {
        Some(id) => id.to_owned(),
        None => {
            builder.add_chardev("debugcon", legacy_chardev("-debugcon", value)?)?;
            "debugcon".to_owned()
        }
    };
    let properties = [("chardev".to_owned(), chardev.into())].into_iter().collect();
    let driver = "isa-debugcon".to_owned();
    builder.machine().devices.push(DeviceSpec { driver, id: None, properties });
    Ok(())
}

pub(super) fn global(builder: &mut Builder, value: &str) -> Result<(), OptionError> {
    let (driver, property, value) = match value.split_once('=') {
        Some((name, value)) if !name.contains(',') && name.contains('.') => {
            let (driver, property) = name.rsplit_once('.').unwrap_or_default();
            (driver.to_owned(), property.to_owned(), value.to_owned())
        }
        _ => {
            let mut options = Properties::parse("-global", value, None)?;
            let parts = ["driver", "property", "value"].map(|key| options.require(key));
            options.finish()?;
            let [driver, property, value] = parts;
            (driver?, property?, value?)
        }
    };
    builder.machine().globals.push(GlobalSpec { driver, property, value });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_orders_are_checked_as_on_qemu() {
        let refusal = |value| boot(&mut Builder::default(), value).unwrap_err().to_string();
        assert_eq!(refusal("order=cz"), "Invalid boot device 'z'");
        assert_eq!(refusal("cc"), "Boot device 'c' was given twice");
        assert_eq!(refusal("acdn"), "Too many boot devices for PC");
        assert_eq!(refusal("once=e"), "Invalid boot device for PC: 'e'");
        assert!(refusal("splash-time=70000").starts_with("splash time is invalid"));
        let mut builder = Builder::default();
        boot(&mut builder, "dc,menu=on,reboot-timeout=-1,strict=on").unwrap();
        boot(&mut builder, "once=n,splash-time=100").unwrap();
        let spec = &builder.machine().firmware.boot;
        assert_eq!((spec.order.as_deref(), spec.once.as_deref()), (Some("dc"), Some("n")));
        assert_eq!((spec.menu, spec.splash_time, spec.strict), (Some(true), Some(100), true));
    }

    #[test]
    fn globals_have_two_forms() {
        let mut builder = Builder::default();
        global(&mut builder, "isa-debugcon.iobase=0x402").unwrap();
        global(&mut builder, "driver=isa-debugcon,property=iobase,value=0x402").unwrap();
        let globals = &builder.machine().globals;
        assert_eq!(globals[0], globals[1]);
        assert!(global(&mut Builder::default(), "nothing").is_err());
    }

    #[test]
    fn items_have_one_source() {
        let mut builder = Builder::default();
        fw_cfg(&mut builder, "name=opt/a,string=text").unwrap();
        fw_cfg(&mut builder, "opt/b,file=/x").unwrap();
        for wrong in ["opt/a", "opt/a,string=x,file=y", "string=x"] {
            assert!(fw_cfg(&mut builder, wrong).is_err(), "{wrong}");
        }
        assert!(fw_cfg(&mut builder, &format!("opt/{},string=x", "x".repeat(60))).is_err());
    }
}
