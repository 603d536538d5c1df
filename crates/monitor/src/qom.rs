//! Types of objects (`schema/qom.json`): machines, and what `-device` takes.

use ::machine::pc::devices::drivers;
use ::machine::spec::MACHINE_TYPE;
use schema::{ObjectTypeInfo, commands};

/// Types that there are no objects of, each with what it is a kind of.
const ABSTRACT: &[(&str, Option<&str>)] = &[
    ("object", None),
    ("device", Some("object")),
    ("ide-device", Some("device")),
    ("isa-device", Some("device")),
    ("pci-device", Some("device")),
    ("scsi-device", Some("device")),
    ("usb-device", Some("device")),
    ("machine", Some("object")),
];

/// The kind of devices on a bus.
fn parent_on(bus: &str) -> &'static str {
    match bus {
        "IDE" => "ide-device",
        "ISA" => "isa-device",
        "PCI" => "pci-device",
        "SCSI" => "scsi-device",
        "usb-bus" => "usb-device",
        _ => "device",
    }
}

/// Whether `name`, whose parent is `parent`, is of the kind `wanted`.
fn is_kind_of(name: &str, parent: Option<&str>, wanted: &str) -> bool {
    name == wanted
        || parent.is_some_and(|parent| {
            let above = ABSTRACT.iter().find(|(name, _)| *name == parent);
            is_kind_of(parent, above.and_then(|(_, parent)| *parent), wanted)
        })
}

pub(crate) fn types(arg: &commands::QomListTypes) -> Vec<ObjectTypeInfo> {
    let with_abstract = arg.r#abstract == Some(true);
    let abstract_types = ABSTRACT
        .iter()
        .filter(|_| with_abstract)
        .map(|&(name, parent)| (name.to_owned(), parent, Some(true)));
    let devices = drivers()
        .into_iter()
        .map(|driver| (driver.name.to_owned(), Some(parent_on(driver.bus)), None));
    let machine = (format!("{MACHINE_TYPE}-machine"), Some("machine"), None);
    let all = abstract_types.chain(devices).chain([machine]);
    let wanted = arg.implements.as_deref();
    all.filter(|(name, parent, _)| wanted.is_none_or(|wanted| is_kind_of(name, *parent, wanted)))
        .map(|(name, parent, r#abstract)| ObjectTypeInfo {
            name,
            r#abstract,
            parent: parent.map(str::to_owned),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(implements: &str, with_abstract: bool) -> Vec<String> {
        let arg = commands::QomListTypes {
            implements: Some(implements.to_owned()),
            r#abstract: Some(with_abstract),
        };
        types(&arg).into_iter().map(|info| info.name).collect()
    }

    #[test]
    fn types_are_found_by_what_they_are_a_kind_of() {
        let devices = names("device", false);
        assert!(devices.iter().any(|name| name == "virtio-blk-pci"));
        assert!(!devices.iter().any(|name| name == "device" || name.ends_with("-machine")));
        assert!(names("device", true).iter().any(|name| name == "pci-device"));
        assert!(names("isa-device", false).iter().all(|name| devices.contains(name)));
        assert_eq!(names("machine", false), ["pc-i440fx-7.2-machine"]);
        assert_eq!(names("edu", true), ["edu"]);
        assert!(names("nothing", true).is_empty());
    }
}
