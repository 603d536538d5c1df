//! `-smbios`.

use ::options::{OptionError, Properties};
use machine::smbios::{Connector, OemString, OnboardDevice, SmbiosSpec};
use uuid::Uuid;

use super::Builder;

/// Kinds of onboard devices by their names (SMBIOS, section 7.42.2).
const ONBOARD_KINDS: &[(&str, u8)] = &[
    ("other", 1),
    ("unknown", 2),
    ("video", 3),
    ("scsi", 4),
    ("ethernet", 5),
    ("tokenring", 6),
    ("sound", 7),
    ("pata", 8),
    ("sata", 9),
    ("sas", 10),
];

pub(super) fn smbios(builder: &mut Builder, value: &str) -> Result<(), OptionError> {
    let option = format!("-smbios {value}");
    let mut options = Properties::parse(&option, value, None)?;
    let wrong = |what: &str| Err(OptionError::new(format!("{option}: {what}")));
    if let Some(file) = options.take("file") {
        options.finish()?;
        builder.machine().smbios.files.push(file.into());
        return Ok(());
    }
    let kind: u64 = match options.take_number("type")? {
        Some(kind) => kind,
        None => return wrong("Must specify type= or file="),
    };
    let spec = &mut builder.machine().smbios;
    let mut uuid = None;
    match kind {
        0 => bios(spec, &mut options)?,
        1 => uuid = system(spec, &mut options)?,
        2 => board(spec, &mut options),
        3 => chassis(spec, &mut options),
        4 => processor(spec, &mut options)?,
        8 => connector(spec, &mut options)?,
        11 => oem_strings(spec, &mut options),
        17 => memory_device(spec, &mut options)?,
        41 => onboard_device(spec, &mut options)?,
        128.. => return wrong("out of range!"),
        _ => return wrong(&format!("Don't know how to build fields for SMBIOS type {kind}")),
    }
    options.finish()?;
    if uuid.is_some() {
        builder.machine().uuid = uuid;
    }
    Ok(())
}

/// Replaces a text by the option's, if it has one.
fn text(to: &mut Option<String>, options: &mut Properties, key: &'static str) {
    if let Some(text) = options.take(key) {
        *to = Some(text);
    }
}

fn bios(spec: &mut SmbiosSpec, options: &mut Properties) -> Result<(), OptionError> {
    let bios = spec.bios.get_or_insert_default();
    text(&mut bios.vendor, options, "vendor");
    text(&mut bios.version, options, "version");
    text(&mut bios.date, options, "date");
    if let Some(release) = options.take("release") {
        let parts = release
            .split_once('.')
            .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        let wrong = || {
            OptionError::new(format!(
                "{}: Invalid release; it is two numbers up to 255, as in 1.0",
                options.option()
            ))
        };
        bios.release = Some(parts.ok_or_else(wrong)?);
    }
    bios.uefi = options.take_bool("uefi")?.unwrap_or(bios.uefi);
    Ok(())
}

/// Returns the UUID, which is then the machine's too.
fn system(spec: &mut SmbiosSpec, options: &mut Properties) -> Result<Option<Uuid>, OptionError> {
    let system = spec.system.get_or_insert_default();
    text(&mut system.manufacturer, options, "manufacturer");
    text(&mut system.product, options, "product");
    text(&mut system.version, options, "version");
    text(&mut system.serial, options, "serial");
    text(&mut system.sku, options, "sku");
    text(&mut system.family, options, "family");
    let Some(uuid) = options.take("uuid") else { return Ok(None) };
    let uuid = Uuid::parse_str(&uuid)
        .map_err(|_| OptionError::new(format!("{}: Invalid UUID", options.option())))?;
    Ok(Some(uuid))
}

fn board(spec: &mut SmbiosSpec, options: &mut Properties) {
    let board = spec.board.get_or_insert_default();
    text(&mut board.manufacturer, options, "manufacturer");
    text(&mut board.product, options, "product");
    text(&mut board.version, options, "version");
    text(&mut board.serial, options, "serial");
    text(&mut board.asset, options, "asset");
    text(&mut board.location, options, "location");
}

fn chassis(spec: &mut SmbiosSpec, options: &mut Properties) {
    let chassis = spec.chassis.get_or_insert_default();
    text(&mut chassis.manufacturer, options, "manufacturer");
    text(&mut chassis.version, options, "version");
    text(&mut chassis.serial, options, "serial");
    text(&mut chassis.asset, options, "asset");
    text(&mut chassis.sku, options, "sku");
}

fn processor(spec: &mut SmbiosSpec, options: &mut Properties) -> Result<(), OptionError> {
    let processor = spec.processor.get_or_insert_default();
    text(&mut processor.socket_prefix, options, "sock_pfx");
    text(&mut processor.manufacturer, options, "manufacturer");
    text(&mut processor.version, options, "version");
    text(&mut processor.serial, options, "serial");
    text(&mut processor.asset, options, "asset");
    text(&mut processor.part, options, "part");
    processor.max_speed = speed(options, "max-speed")?.or(processor.max_speed);
    processor.current_speed = speed(options, "current-speed")?.or(processor.current_speed);
    processor.id = options.take_number("processor-id")?.or(processor.id);
    Ok(())
}

fn speed(options: &mut Properties, key: &'static str) -> Result<Option<u16>, OptionError> {
    let Some(speed) = options.take_number::<u64>(key)? else { return Ok(None) };
    let too_large = || {
        OptionError::new(format!("{}: SMBIOS CPU speed is too large (> 65535)", options.option()))
    };
    speed.try_into().map(Some).map_err(|_| too_large())
}

fn connector(spec: &mut SmbiosSpec, options: &mut Properties) -> Result<(), OptionError> {
    spec.connectors.push(Connector {
        internal: options.take("internal_reference"),
        external: options.take("external_reference"),
        connector: options.take_number("connector_type")?.unwrap_or_default(),
        port: options.take_number("port_type")?.unwrap_or_default(),
    });
    Ok(())
}

fn oem_strings(spec: &mut SmbiosSpec, options: &mut Properties) {
    for (key, value) in options.take_all(&["value", "path"]) {
        spec.oem_strings.push(match key {
            "path" => OemString::File(value.into()),
            _ => OemString::Text(value),
        });
    }
}

fn memory_device(spec: &mut SmbiosSpec, options: &mut Properties) -> Result<(), OptionError> {
    let device = spec.memory_device.get_or_insert_default();
    text(&mut device.locator_prefix, options, "loc_pfx");
    text(&mut device.bank, options, "bank");
    text(&mut device.manufacturer, options, "manufacturer");
    text(&mut device.serial, options, "serial");
    text(&mut device.asset, options, "asset");
    text(&mut device.part, options, "part");
    device.speed = options.take_number("speed")?.unwrap_or(device.speed);
    Ok(())
}

fn onboard_device(spec: &mut SmbiosSpec, options: &mut Properties) -> Result<(), OptionError> {
    spec.onboard_devices.push(OnboardDevice {
        designation: options.take("designation"),
        kind: options.take_choice("kind", ONBOARD_KINDS)?.unwrap_or(1),
        instance: options.take_number("instance")?.unwrap_or(1),
        pci_device: options.take("pcidev"),
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(values: &[&str]) -> Result<SmbiosSpec, String> {
        let mut builder = Builder::default();
        for value in values {
            smbios(&mut builder, value).map_err(|e| e.to_string())?;
        }
        Ok(builder.config.machine.smbios)
    }

    #[test]
    fn later_options_of_a_type_add_to_earlier_ones() {
        let spec = parse(&["type=1,product=,serial=s", "type=1,product=p"]).unwrap();
        let system = spec.system.unwrap();
        assert_eq!((system.product.as_deref(), system.serial.as_deref()), (Some("p"), Some("s")));
        let spec =
            parse(&["type=11,value=one,path=/two,value=three", "type=11,value=four"]).unwrap();
        let text = |text: &str| OemString::Text(text.to_owned());
        let expected = [text("one"), OemString::File("/two".into()), text("three"), text("four")];
        assert_eq!(spec.oem_strings, expected);
        let spec = parse(&["type=41,kind=ethernet", "type=41,kind=video,instance=2"]).unwrap();
        let kinds: Vec<_> = spec.onboard_devices.iter().map(|d| (d.kind, d.instance)).collect();
        assert_eq!(kinds, [(5, 1), (3, 2)]);
    }

    #[test]
    fn a_system_uuid_is_the_machines() {
        let mut builder = Builder::default();
        let uuid = "550e8400-e29b-41d4-a716-446655440000";
        smbios(&mut builder, &format!("type=1,uuid={uuid}")).unwrap();
        assert_eq!(builder.machine().uuid.unwrap().to_string(), uuid);
    }

    #[test]
    fn refusals_are_worded_as_on_qemu() {
        for (value, message) in [
            ("foo=1", "-smbios foo=1: Must specify type= or file="),
            ("type=127", "-smbios type=127: Don't know how to build fields for SMBIOS type 127"),
            ("type=200", "-smbios type=200: out of range!"),
            ("type=1,uuid=x", "-smbios type=1,uuid=x: Invalid UUID"),
            (
                "type=4,max-speed=70000",
                "-smbios type=4,max-speed=70000: SMBIOS CPU speed is too large (> 65535)",
            ),
        ] {
            assert_eq!(parse(&[value]).unwrap_err(), message);
        }
        for (value, part) in [
            ("type=0,release=1.300", "Invalid release"),
            ("type=1,colour=red", "'colour'"),
            ("type=41,kind=clock", "'clock'"),
            ("type=x", "expects a number"),
            ("file=a,type=1", "'type'"),
        ] {
            let message = parse(&[value]).unwrap_err();
            assert!(message.contains(part), "{message}");
        }
    }
}
