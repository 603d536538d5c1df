//! Options about drives: `-drive`, its short forms, and the drives that are there without being asked
//! for.

use ::options::{OptionError, Properties};
use machine::spec::{DriveInterface, DriveSpec, MachineSpec};

use super::Builder;

/// Interfaces by their names in `if=`.
const INTERFACES: &[(&str, DriveInterface)] = &[
    ("none", DriveInterface::None),
    ("ide", DriveInterface::Ide),
    ("scsi", DriveInterface::Scsi),
    ("floppy", DriveInterface::Floppy),
    ("pflash", DriveInterface::Pflash),
    ("mtd", DriveInterface::Mtd),
    ("sd", DriveInterface::Sd),
    ("virtio", DriveInterface::Virtio),
    ("xen", DriveInterface::Xen),
];

/// Devices that take the place of the CD-ROM drive, or of the floppy drive, that is there by default.
const INSTEAD_OF_CDROM: &[&str] = &["ide-cd", "ide-hd", "scsi-cd", "scsi-hd"];
const INSTEAD_OF_FLOPPY: &[&str] = &["isa-fdc", "floppy"];

pub(super) fn drive(builder: &mut Builder, value: &str) -> Result<(), OptionError> {
    let options = Properties::parse("-drive", value, None)?;
    add(builder, format!("-drive {value}"), options)
}

pub(super) fn hda(builder: &mut Builder, file: &str) -> Result<(), OptionError> {
    disk(builder, format!("-hda {file}"), file, 0)
}

pub(super) fn hdb(builder: &mut Builder, file: &str) -> Result<(), OptionError> {
    disk(builder, format!("-hdb {file}"), file, 1)
}

pub(super) fn hdc(builder: &mut Builder, file: &str) -> Result<(), OptionError> {
    disk(builder, format!("-hdc {file}"), file, 2)
}

pub(super) fn hdd(builder: &mut Builder, file: &str) -> Result<(), OptionError> {
    disk(builder, format!("-hdd {file}"), file, 3)
}

/// A disk image without an option.
pub(crate) fn positional(builder: &mut Builder, file: &str) -> Result<(), OptionError> {
    disk(builder, file.to_owned(), file, 0)
}

pub(super) fn cdrom(builder: &mut Builder, file: &str) -> Result<(), OptionError> {
    short(builder, format!("-cdrom {file}"), file, "if=ide,index=2,media=cdrom")
}

pub(super) fn fda(builder: &mut Builder, file: &str) -> Result<(), OptionError> {
    short(builder, format!("-fda {file}"), file, "if=floppy,index=0")
}

pub(super) fn fdb(builder: &mut Builder, file: &str) -> Result<(), OptionError> {
    short(builder, format!("-fdb {file}"), file, "if=floppy,index=1")
}

pub(super) fn snapshot(builder: &mut Builder, _: &str) -> Result<(), OptionError> {
    builder.snapshot = true;
    Ok(())
}

fn disk(
    builder: &mut Builder,
    origin: String,
    file: &str,
    index: usize,
) -> Result<(), OptionError> {
    short(builder, origin, file, &format!("if=ide,index={index},media=disk"))
}

fn short(builder: &mut Builder, origin: String, file: &str, rest: &str) -> Result<(), OptionError> {
    let text = format!("{rest},file={}", file.replace(',', ",,"));
    let options = Properties::parse(&origin, &text, None)?;
    add(builder, origin, options)
}

/// Adds a drive; `origin` is the option in full, for messages.
fn add(builder: &mut Builder, origin: String, mut options: Properties) -> Result<(), OptionError> {
    let wrong = |what: String| OptionError::new(format!("{origin}: {what}"));
    let interface = match options.take("if") {
        None => DriveInterface::default(),
        Some(name) => {
            let found = INTERFACES.iter().find(|(known, _)| *known == name);
            found.ok_or_else(|| wrong(format!("unsupported bus type '{name}'")))?.1
        }
    };
    let is_cdrom = match options.take("media").as_deref() {
        None | Some("disk") => false,
        Some("cdrom") => true,
        Some(other) => return Err(wrong(format!("'{other}' invalid media"))),
    };
    let file = options.take("file").filter(|file| !file.is_empty()).map(Into::into);
    let id = options.take_id("id")?;
    let drives = &builder.config.machine.drives;
    let (bus, unit) = place(drives, interface, &mut options, &wrong)?;
    let id = id.unwrap_or_else(|| default_id(interface, bus, unit, is_cdrom));
    if drives.iter().any(|d| d.id == id) {
        return Err(OptionError::new(format!("-drive: Duplicate ID '{id}' for drive")));
    }
    let mut options = options.into_rest();
    if is_cdrom {
        options.shift_remove("readonly");
        options.insert("read-only".to_owned(), "on".into());
    }
    let is_default = false;
    let spec = DriveSpec { id, file, interface, bus, unit, is_cdrom, is_default, origin, options };
    builder.machine().drives.push(spec);
    Ok(())
}

/// Bus and unit of a drive: as `bus=` and `unit=` say, or `index=`, or the first that is free.
fn place(
    drives: &[DriveSpec],
    interface: DriveInterface,
    options: &mut Properties,
    wrong: &dyn Fn(String) -> OptionError,
) -> Result<(u32, u32), OptionError> {
    let given_bus: Option<u32> = options.take_number("bus")?;
    let given_unit: Option<u32> = options.take_number("unit")?;
    let index: Option<u32> = options.take_number("index")?;
    let units = interface.units();
    let (mut bus, mut unit) = (given_bus.unwrap_or(0), given_unit.unwrap_or(0));
    if let Some(index) = index {
        if bus != 0 || given_unit.is_some() {
            return Err(wrong("index cannot be used with bus and unit".into()));
        }
        (bus, unit) = units.map_or((0, index), |units| (index / units, index % units));
    }
    let is_taken = |bus: u32, unit: u32| {
        drives.iter().any(|d| (d.interface, d.bus, d.unit) == (interface, bus, unit))
    };
    if index.is_none() && given_unit.is_none() {
        while is_taken(bus, unit) {
            unit += 1;
            if units.is_some_and(|units| unit >= units) {
                (bus, unit) = (bus + 1, 0);
            }
        }
    }
    if let Some(units) = units.filter(|&units| unit >= units) {
        return Err(wrong(format!("unit {unit} too big (max is {})", units - 1)));
    }
    if is_taken(bus, unit) {
        let index = bus * units.unwrap_or(0) + unit;
        return Err(wrong(format!("drive with bus={bus}, unit={unit} (index={index}) exists")));
    }
    Ok((bus, unit))
}

/// The id of a drive that was given none.
fn default_id(interface: DriveInterface, bus: u32, unit: u32, is_cdrom: bool) -> String {
    let medium = match interface {
        DriveInterface::Ide | DriveInterface::Scsi if is_cdrom => "-cd",
        DriveInterface::Ide | DriveInterface::Scsi => "-hd",
        _ => "",
    };
    let bus = if interface.units().is_some() { bus.to_string() } else { String::new() };
    format!("{}{bus}{medium}{unit}", interface.name())
}

/// Adds what a PC has unless it is told otherwise, and applies `-snapshot`.
pub(super) fn finish(machine: &mut MachineSpec, no_defaults: bool, snapshot: bool) {
    if snapshot {
        for drive in machine.drives.iter_mut().filter(|drive| drive.file.is_some()) {
            drive.options.entry("snapshot").or_insert_with(|| "on".into());
        }
    }
    if no_defaults {
        return;
    }
    let has = |names: &[&str]| machine.devices.iter().any(|d| names.contains(&d.driver.as_str()));
    let wanted = [
        (DriveInterface::Ide, 1, !has(INSTEAD_OF_CDROM)),
        (DriveInterface::Floppy, 0, !has(INSTEAD_OF_FLOPPY)),
        (DriveInterface::Sd, 0, true),
    ];
    for (interface, bus, wanted) in wanted {
        let drives = &machine.drives;
        let is_taken = drives.iter().any(|d| (d.interface, d.bus, d.unit) == (interface, bus, 0));
        let is_cdrom = interface == DriveInterface::Ide;
        let id = default_id(interface, bus, 0, is_cdrom);
        if !wanted || is_taken || drives.iter().any(|d| d.id == id) {
            continue;
        }
        let mut spec = DriveSpec { id, interface, bus, is_cdrom, ..DriveSpec::default() };
        spec.is_default = true;
        if is_cdrom {
            spec.options.insert("read-only".to_owned(), "on".into());
        }
        machine.drives.push(spec);
    }
}

#[cfg(test)]
mod tests {
    use crate::{Action, parse};

    fn drives(line: &str) -> Result<Vec<String>, String> {
        let args = line.split_whitespace().map(str::to_owned);
        match parse(args).map_err(|e| e.to_string())? {
            Action::Run(config) => Ok(config.machine.drives.iter().map(|d| d.id.clone()).collect()),
            Action::Print(text) => Err(text),
        }
    }

    #[test]
    fn drives_are_named_by_interface_and_place() {
        let of = |line: &str| drives(line).unwrap().join(" ");
        assert_eq!(of(""), "ide1-cd0 floppy0 sd0");
        assert_eq!(of("-nodefaults"), "");
        assert_eq!(of("a.img -cdrom b.iso -nodefaults"), "ide0-hd0 ide1-cd0");
        assert_eq!(of("-hda a -hdb b -hdd d"), "ide0-hd0 ide0-hd1 ide1-hd1 ide1-cd0 floppy0 sd0");
        assert_eq!(of("-hdc c -fda f -fdb g"), "ide1-hd0 floppy0 floppy1 sd0");
        assert_eq!(of("-device ide-cd -device floppy"), "sd0");
        assert_eq!(
            of("-nodefaults -drive file=a -drive file=b -drive file=c -drive if=none -drive \
                if=none -drive if=virtio -drive if=virtio,index=3 -drive if=scsi,unit=6 -drive \
                if=scsi,index=9,media=cdrom -drive if=pflash"),
            "ide0-hd0 ide0-hd1 ide1-hd0 none0 none1 virtio0 virtio3 scsi0-hd6 scsi1-cd2 pflash0"
        );
    }

    #[test]
    fn places_are_taken_once() {
        for (line, message) in [
            ("a -hda b", "-hda b: drive with bus=0, unit=0 (index=0) exists"),
            ("a b", "b: drive with bus=0, unit=0 (index=0) exists"),
            ("-cdrom a -hdc b", "-hdc b: drive with bus=1, unit=0 (index=2) exists"),
            ("-drive if=ide,unit=3", "-drive if=ide,unit=3: unit 3 too big (max is 1)"),
            ("-drive if=foo", "-drive if=foo: unsupported bus type 'foo'"),
            ("-drive media=foo", "-drive media=foo: 'foo' invalid media"),
            (
                "-drive if=ide,index=1,unit=1",
                "-drive if=ide,index=1,unit=1: index cannot be used with bus and unit",
            ),
        ] {
            assert_eq!(drives(line).unwrap_err(), message);
        }
    }

    #[test]
    fn a_snapshot_is_of_every_drive_that_does_not_say_otherwise() {
        let line = "-nodefaults a -snapshot -drive file=b,snapshot=off -cdrom c";
        let args = line.split_whitespace().map(str::to_owned);
        let Ok(Action::Run(config)) = parse(args) else { panic!("{line}") };
        let snapshot = |i: usize| config.machine.drives[i].options["snapshot"].clone();
        assert_eq!([snapshot(0), snapshot(1), snapshot(2)], ["on", "off", "on"]);
        assert_eq!(config.machine.drives[2].options["read-only"], "on");
    }
}
