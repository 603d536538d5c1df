//! The IDE controller, and disks and CD-ROM drives on it and on other controllers of ATA devices.

use std::sync::Arc;

use block::{Drive, DriveOptions, OnError};
use devices::ata::{AtaDevice, CdOptions, Connector, DiskOptions, Geometry};
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
            self.buses.add(format!("ide.{channel}"), Bus::Ata(ide.connector(channel)));
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
            let kind = if drive.is_cdrom { Kind::CdRom } else { Kind::Disk };
            let properties = [
                ("drive".to_owned(), drive.id.as_str().into()),
                ("bus".to_owned(), format!("ide.{}", drive.bus).into()),
                ("unit".to_owned(), drive.unit.into()),
            ];
            let properties = properties.into_iter().collect();
            unit(self, &path, Properties::from_map(&drive.origin, properties), kind)?;
        }
        Ok(())
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
    let named = |bus: &Bus| if let Bus::Ata(bus) = bus { Some(bus.clone()) } else { None };
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
    if kind == Kind::Disk {
        take_disk(&mut properties, &mut disk)?;
    }
    let on_read_error = properties.take_choice("rerror", OnError::READ)?;
    let on_write_error = properties.take_choice("werror", OnError::WRITE)?;
    let write_cache = properties.take_choice("write-cache", ON_OFF_AUTO)?.flatten();
    let boot_index = pc.boot_order.take(&mut properties)?;
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
    connector.plug(unit, device);
    // The south bridge's channels come first; firmware is told of the disks there.
    let channel = (number - 1) / 2;
    if channel < 2 {
        let path = pci_path("ide", PiixIde::DEVFN);
        pc.boot_order.add(boot_index, format!("{path}/drive@{channel}/disk@{unit}"));
    }
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
