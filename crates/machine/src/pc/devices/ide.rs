//! The IDE controller, and disks and CD-ROM drives on it and on other controllers of ATA devices.

use std::sync::Arc;

use block::{Drive, DriveOptions, OnError};
use devices::ata::{AtaDevice, CdOptions, Connector, DiskOptions, Geometry, Translation};
use devices::ide::{IRQS, PiixIde, Workers};
use devices::scsi::{Lun, LunOptions, Transport};
use options::{OptionError, Properties};

use super::storage::query_name;
use super::{Bus, Driver, ON_OFF_AUTO};
use crate::BuildError;
use crate::pc::bios::pci_path;
use crate::pc::board::Pc;
use crate::spec::DriveInterface;

/// The kinds of this topic.
pub(super) const DRIVERS: &[Driver] = &[
    Driver {
        name: "ide-cd",
        aliases: &[],
        bus: "IDE",
        description: "virtual IDE CD-ROM",
        make: |pc, path, properties| unit(pc, path, properties, Kind::CdRom),
    },
    Driver {
        name: "ide-hd",
        aliases: &[],
        bus: "IDE",
        description: "virtual IDE disk",
        make: |pc, path, properties| unit(pc, path, properties, Kind::Disk),
    },
];

/// Number of the first drive among the devices that a machine has of its own, in their paths.
const FIRST_DRIVE: usize = 23;

/// Values of `bios-chs-trans=`.
const TRANSLATIONS: &[(&str, Option<Translation>)] = &[
    ("auto", None),
    ("none", Some(Translation::None)),
    ("lba", Some(Translation::Lba)),
    ("large", Some(Translation::Large)),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Disk,
    CdRom,
}

impl Pc {
    /// Adds the IDE interface of the south bridge.
    pub(in crate::pc) fn add_ide(&mut self) -> Result<(), BuildError> {
        let irqs = IRQS.map(|irq| self.isa_line(irq));
        let wiring = self.pci.wiring(PiixIde::DEVFN, 1);
        let ide = PiixIde::new(wiring, irqs, &self.memory, Workers::Threads)
            .map_err(BuildError::Thread)?;
        ide.attach(&self.pci, &self.ports)?;
        for channel in 0..2 {
            let firmware = format!("{}/drive@{channel}", pci_path("ide", PiixIde::DEVFN));
            let bus = Bus::Ata(ide.connector(channel), firmware);
            self.buses.add(format!("ide.{channel}"), bus);
        }
        self.devices.push(ide);
        Ok(())
    }

    /// Connects the drives of `if=ide`.
    pub(in crate::pc) fn add_ide_drives(&mut self) -> Result<(), BuildError> {
        let spec = Arc::clone(&self.spec);
        let ours = spec.drives.iter().filter(|d| d.interface == DriveInterface::Ide && d.bus < 2);
        for (index, drive) in ours.enumerate() {
            let path = format!("/machine/unattached/device[{}]", FIRST_DRIVE + index);
            let driver = &DRIVERS[usize::from(!drive.is_cdrom)];
            let properties = [
                ("drive".to_owned(), drive.id.as_str().into()),
                ("bus".to_owned(), format!("ide.{}", drive.bus).into()),
                ("unit".to_owned(), drive.unit.into()),
            ];
            self.make_device(driver, &path, &drive.origin, properties.into_iter().collect())?;
        }
        Ok(())
    }
}

impl Pc {
    /// Writes into CMOS memory what old firmware and boot loaders want to know of the first four disks:
    /// type and geometry of the first two, and how to translate addresses of each.
    pub(in crate::pc) fn describe_disks(&self) {
        /// The types of both disks, the second in the low half; the number that stands for "see below".
        const CMOS_TYPES: u8 = 0x12;
        const EXTENDED_TYPE: u8 = 47;
        /// Extended type and geometry of each.
        const CMOS_DISKS: [(u8, u8); 2] = [(0x19, 0x1b), (0x1a, 0x24)];
        /// Translation, two bits a disk.
        const CMOS_TRANSLATION: u8 = 0x39;
        let (mut types, mut translations) = (0, 0);
        for (index, disk) in self.disk_geometry.iter().enumerate() {
            let Some((geometry, translation)) = disk else { continue };
            translations |= match translation {
                Translation::None => 0,
                Translation::Lba => 1,
                Translation::Large => 2,
            } << (2 * index);
            let Some(&(kind, place)) = CMOS_DISKS.get(index) else { continue };
            types |= 0xf0 >> (4 * index);
            self.rtc.set_memory(kind, EXTENDED_TYPE);
            let [low, high] = (geometry.cylinders as u16).to_le_bytes();
            let control = 0xc0 | if geometry.heads > 8 { 8 } else { 0 };
            let (heads, sectors) = (geometry.heads as u8, geometry.sectors as u8);
            let bytes = [low, high, heads, 0xff, 0xff, control, low, high, sectors];
            for (at, byte) in (place..).zip(bytes) {
                self.rtc.set_memory(at, byte);
            }
        }
        self.rtc.set_memory(CMOS_TYPES, types);
        self.rtc.set_memory(CMOS_TRANSLATION, translations);
    }
}

/// Where a device goes, as `bus=` and `unit=` say or the first place that is free; and the number of
/// that place among all there are.
fn place(
    pc: &Pc,
    properties: &mut Properties,
    name: &str,
) -> Result<(Arc<dyn Connector>, usize, usize), BuildError> {
    let failed = |properties: &Properties, e: String| {
        BuildError::Device(format!("{}: {e}", properties.option()))
    };
    let named = |bus: &Bus| if let Bus::Ata(bus, _) = bus { Some(bus.clone()) } else { None };
    let all = pc.buses.all(named);
    let bus_name = properties.clone().take("bus");
    let buses = pc.buses.take(properties, named)?;
    let wanted: Option<usize> = properties.take_number("unit")?;
    let is_free = |bus: &Arc<dyn Connector>| match wanted {
        Some(unit) => unit < bus.units() && !bus.is_taken(unit),
        None => (0..bus.units()).any(|unit| !bus.is_taken(unit)),
    };
    let Some(bus) = buses.iter().find(|bus| is_free(bus)).or(buses.first()).cloned() else {
        return Err(failed(properties, format!("No 'IDE' bus found for device '{name}'")));
    };
    let unit = wanted.or_else(|| (0..bus.units()).find(|&unit| !bus.is_taken(unit)));
    let unit = match unit {
        None if bus.units() > 1 || bus_name.is_some() => {
            return Err(failed(properties, full(&bus, bus_name.as_deref())));
        }
        None => return Err(failed(properties, format!("No free 'IDE' bus for device '{name}'"))),
        Some(unit) if unit >= bus.units() => {
            let units = bus.units();
            return Err(failed(
                properties,
                format!("Can't create IDE unit {unit}, bus supports only {units} units"),
            ));
        }
        Some(unit) if bus.is_taken(unit) => {
            return Err(failed(properties, format!("IDE unit {unit} is in use")));
        }
        Some(unit) => unit,
    };
    let index = all.iter().position(|other| Arc::ptr_eq(other, &bus)).unwrap_or(0);
    Ok((bus, unit, 2 * index + unit + 1))
}

fn full(bus: &Arc<dyn Connector>, name: Option<&str>) -> String {
    match name {
        Some(name) => format!("Bus '{name}' is full"),
        None => format!("all {} units are in use", bus.units()),
    }
}

fn unit(pc: &mut Pc, path: &str, mut properties: Properties, kind: Kind) -> Result<(), BuildError> {
    let option = properties.option().to_owned();
    let failed = |e: String| BuildError::Device(format!("{option}: {e}"));
    let name = if kind == Kind::Disk { "ide-hd" } else { "ide-cd" };
    let (connector, unit, number) = place(pc, &mut properties, name)?;
    let drive_id = properties.take("drive");
    let serial = properties.take("serial").unwrap_or_else(|| format!("QM{number:05}"));
    let model = properties.take("model");
    let version = properties.take("ver");
    let wwn = properties.take_number("wwn")?.unwrap_or(0);
    let mut disk = DiskOptions { serial, wwn, ..DiskOptions::default() };
    disk.queued = connector.takes_queued();
    disk.version = version.unwrap_or(disk.version);
    let mut translation = None;
    if kind == Kind::Disk {
        take_disk(&mut properties, &mut disk)?;
        translation = properties.take_choice("bios-chs-trans", TRANSLATIONS)?.flatten();
    }
    let on_read_error = properties.take_choice("rerror", OnError::READ)?;
    let on_write_error = properties.take_choice("werror", OnError::WRITE)?;
    let write_cache = properties.take_choice("write-cache", ON_OFF_AUTO)?.flatten();
    let bootindex = pc.boot_order.take(&mut properties)?;
    properties.finish()?;
    let drive = match drive_id {
        Some(id) => pc.find_drive(&option, &format!("{name}.drive"), &id)?,
        None if kind == Kind::CdRom => {
            let options = DriveOptions { read_only: true, ..DriveOptions::default() };
            let drive = Arc::new(Drive::empty("", &options));
            pc.drives.push(drive.clone());
            drive
        }
        None => return Err(failed("No drive specified".into())),
    };
    drive.set_error_policy(on_read_error, on_write_error);
    if let Some(on) = write_cache {
        drive.set_write_cache(on);
    }
    let device = match kind {
        Kind::Disk => {
            disk.model = model.unwrap_or(disk.model);
            AtaDevice::disk(drive, query_name(path), disk).map_err(|e| failed(e.to_string()))?
        }
        Kind::CdRom => {
            let defaults = CdOptions::default();
            let options = CdOptions {
                serial: disk.serial,
                model: model.unwrap_or(defaults.model),
                version: disk.version,
                wwn,
            };
            let mut lun = LunOptions::cdrom(Transport::Atapi);
            lun.version.clone_from(&options.version);
            let lun = Lun::new(drive, query_name(path), lun).map_err(|e| failed(e.to_string()))?;
            AtaDevice::cdrom(lun, options)
        }
    };
    let firmware = pc.buses.all(|bus| match bus {
        Bus::Ata(other, firmware) if Arc::ptr_eq(other, &connector) => Some(firmware.clone()),
        _ => None,
    });
    let firmware = firmware.into_iter().next().unwrap_or_default();
    pc.boot_order.add(bootindex, format!("{firmware}/disk@{unit}"));
    // Of the disks of the south bridge old firmware wants to know more.
    if let (Some(disk), Some(known)) = (device.as_disk(), pc.disk_geometry.get_mut(number - 1)) {
        *known = Some((disk.geometry(), translation.unwrap_or(disk.translation())));
    }
    connector.plug(unit, device);
    Ok(())
}

/// What `-device ide-hd` says of the disk alone.
fn take_disk(properties: &mut Properties, disk: &mut DiskOptions) -> Result<(), OptionError> {
    let option = properties.option().to_owned();
    let wrong = |what: &str| OptionError::new(format!("{option}: {what}"));
    disk.rotation_rate = properties.take_number("rotation_rate")?.unwrap_or(disk.rotation_rate);
    disk.share_rw = properties.take_bool("share-rw")?.unwrap_or(disk.share_rw);
    let logical = properties.take_size("logical_block_size", 1)?.unwrap_or(512);
    if logical != 512 {
        return Err(wrong("logical_block_size must be 512 for IDE"));
    }
    let physical = properties.take_size("physical_block_size", 1)?.unwrap_or(512);
    if !physical.is_power_of_two() || !(512..=2 << 20).contains(&physical) {
        return Err(wrong("physical_block_size must be a power of two from 512 to 2097152"));
    }
    disk.physical_block_size = physical as u32;
    let parts = [
        properties.take_number::<u32>("cyls")?,
        properties.take_number::<u32>("heads")?,
        properties.take_number::<u32>("secs")?,
    ];
    // Zero stands for none given.
    let parts = parts.map(|part| part.filter(|&part| part != 0));
    disk.geometry = match parts {
        [None, None, None] => None,
        [cylinders, heads, sectors] => Some(Geometry {
            cylinders: cylinders.unwrap_or(0),
            heads: heads.unwrap_or(0),
            sectors: sectors.unwrap_or(0),
        }),
    };
    Ok(())
}
