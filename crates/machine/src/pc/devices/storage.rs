//! Disks, their controllers, and `-drive`.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use block::{Drive, DriveOptions, OnError};
use devices::virtio::blk::{BlkOptions, MAX_QUEUES, VirtioBlk};
use options::{OptionError, Properties};

use super::scsi::take_bytes;
use super::virtio::{Generation, VirtioTransport};
use super::{Driver, ON_OFF_AUTO};
use crate::BuildError;
use crate::pc::bios::{package_of, pci_path};
use crate::pc::board::Pc;
use crate::spec::{DeviceSpec, DriveInterface, DriveSpec};

/// The kinds of this topic.
pub(super) const DRIVERS: &[Driver] = &[
    Driver {
        name: "virtio-blk-pci",
        aliases: &["virtio-blk"],
        bus: "PCI",
        description: "disk",
        make: |pc, id, properties| virtio_blk(pc, id, properties, Generation::Either),
    },
    Driver {
        name: "virtio-blk-pci-non-transitional",
        aliases: &[],
        bus: "PCI",
        description: "disk for version 1 drivers only",
        make: |pc, id, properties| virtio_blk(pc, id, properties, Generation::Modern),
    },
    Driver {
        name: "virtio-blk-pci-transitional",
        aliases: &[],
        bus: "PCI",
        description: "disk for old and new drivers",
        make: |pc, id, properties| virtio_blk(pc, id, properties, Generation::Transitional),
    },
];

fn virtio_blk(
    pc: &mut Pc,
    path: &str,
    mut properties: Properties,
    generation: Generation,
) -> Result<(), BuildError> {
    let transport = VirtioTransport::take(pc, path, &mut properties, generation)?;
    let drive_id = properties.require("drive")?;
    let defaults = BlkOptions::default();
    // A queue for each CPU.
    let cpus = u16::try_from(pc.spec.smp.cpus).unwrap_or(u16::MAX);
    let options = BlkOptions {
        serial: properties.take("serial").unwrap_or_default(),
        logical_block_size: properties
            .take_size("logical_block_size", 1)?
            .map_or(defaults.logical_block_size, |n| n.try_into().unwrap_or(u32::MAX)),
        physical_block_size: properties
            .take_size("physical_block_size", 1)?
            .map_or(defaults.physical_block_size, |n| n.try_into().unwrap_or(u32::MAX)),
        num_queues: properties.take_number("num-queues")?.unwrap_or(cpus.clamp(1, MAX_QUEUES)),
        queue_size: properties.take_number("queue-size")?.unwrap_or(defaults.queue_size),
        discard: properties.take_bool("discard")?.unwrap_or(defaults.discard),
        write_zeroes: properties.take_bool("write-zeroes")?.unwrap_or(defaults.write_zeroes),
        share_rw: properties.take_bool("share-rw")?.unwrap_or(defaults.share_rw),
        config_wce: properties.take_bool("config-wce")?.unwrap_or(defaults.config_wce),
        adjust_segments: properties
            .take_bool("seg-max-adjust")?
            .unwrap_or(defaults.adjust_segments),
        geometry: take_geometry(&mut properties)?,
        io_sizes: (
            take_bytes(&mut properties, "min_io_size")?.unwrap_or(0),
            take_bytes(&mut properties, "opt_io_size")?.unwrap_or(0),
        ),
        // All ones stand for one that follows from the blocks.
        discard_granularity: take_bytes(&mut properties, "discard_granularity")?
            .filter(|&bytes| bytes != u32::MAX),
    };
    let on_read_error = properties.take_choice("rerror", OnError::READ)?;
    let on_write_error = properties.take_choice("werror", OnError::WRITE)?;
    let write_cache = properties.take_choice("write-cache", ON_OFF_AUTO)?.flatten();
    let bootindex = pc.boot_order.take(&mut properties)?;
    let option = properties.option().to_owned();
    properties.finish()?;
    let drive = pc.find_drive(&option, "virtio-blk-device.drive", &drive_id)?;
    drive.set_error_policy(on_read_error, on_write_error);
    if let Some(on) = write_cache {
        drive.set_write_cache(on);
    }
    let backend = format!("{path}/virtio-backend");
    let device = VirtioBlk::new(drive, &backend, options)
        .map_err(|e| BuildError::Device(format!("{option}: {e}")))?;
    let devfn = pc.add_virtio(path, device, transport)?;
    pc.boot_order.add(bootindex, pci_path("scsi", devfn) + "/disk@0,0");
    Ok(())
}

/// `cyls`, `heads` and `secs` of a disk that has them at its front, if any is given.
fn take_geometry(properties: &mut Properties) -> Result<Option<(u16, u8, u8)>, OptionError> {
    let option = properties.option().to_owned();
    let mut part = |name| -> Result<u32, OptionError> {
        Ok(properties.take_number::<u32>(name)?.unwrap_or(0))
    };
    let [cylinders, heads, sectors] = [part("cyls")?, part("heads")?, part("secs")?];
    if [cylinders, heads, sectors] == [0; 3] {
        return Ok(None);
    }
    let parts = [("cyls", cylinders, 65535), ("heads", heads, 255), ("secs", sectors, 255)];
    for (name, value, most) in parts {
        if !(1..=most).contains(&value) {
            return Err(OptionError::new(format!("{option}: {name} must be between 1 and {most}")));
        }
    }
    Ok(Some((cylinders as u16, heads as u8, sectors as u8)))
}

/// What to do about an image that can't be opened, if it is firmware of a package that is not there.
fn firmware_remedy(interface: DriveInterface, path: &Path) -> String {
    let package = package_of(path).filter(|_| interface == DriveInterface::Pflash);
    let missing = package.filter(|_| !path.exists());
    missing.map_or_else(String::new, |package| format!("; install Debian's package {package}"))
}

impl Pc {
    /// Opens the images of all drives.
    pub(in crate::pc) fn open_drives(&mut self) -> Result<(), BuildError> {
        let spec = Arc::clone(&self.spec);
        for drive in &spec.drives {
            let origin = drive.origin.as_str();
            let given = Properties::from_map(origin, drive.options.clone());
            let options = DriveOptions::parse(given)?;
            let opened = match &drive.file {
                Some(path) => Drive::open(&drive.id, path, &options).map_err(|e| {
                    let remedy = firmware_remedy(drive.interface, path);
                    BuildError::Device(format!("{origin}: {e}{remedy}"))
                })?,
                None => Drive::empty(&drive.id, &options),
            };
            self.drives.push(Arc::new(opened));
        }
        Ok(())
    }

    /// Refuses drives for a connection that this machine does not have.
    pub(in crate::pc) fn check_drives(&self) -> Result<(), BuildError> {
        for (spec, drive) in self.spec.drives.iter().zip(&self.drives) {
            let is_for_device = spec.interface == DriveInterface::None;
            if !is_for_device && !spec.is_default && !drive.is_claimed() {
                return Err(BuildError::Device(format!(
                    "{}: machine type does not support if={},bus={},unit={}",
                    spec.origin,
                    spec.interface.name(),
                    spec.bus,
                    spec.unit
                )));
            }
        }
        Ok(())
    }

    /// The drive `id`, which `property` of a device names.
    pub(in crate::pc) fn find_drive(
        &self,
        option: &str,
        property: &str,
        id: &str,
    ) -> Result<Arc<Drive>, BuildError> {
        let found = self.spec.drives.iter().zip(&self.drives).find(|(spec, _)| spec.id == id);
        let Some((spec, drive)) = found else {
            let ids: Vec<&str> = self.drives.iter().map(|drive| drive.id()).collect();
            let problem = format!("{option}: Property '{property}' can't find value");
            return Err(OptionError::unknown(&problem, id, &ids).into());
        };
        if drive.is_claimed() && spec.interface != DriveInterface::None {
            return Err(BuildError::Device(format!(
                "{option}: Drive '{id}' is already in use because it has been automatically \
                 connected to another device (did you need 'if=none' in the drive options?)"
            )));
        }
        Ok(drive.clone())
    }
}

/// The id that a user gave the device at `path`.
pub(super) fn id_of(path: &str) -> Option<&str> {
    path.strip_prefix("/machine/peripheral/")
}

/// The id that a user gave the device at `path`, or the path itself: how queries name the device.
pub(super) fn query_name(path: &str) -> &str {
    id_of(path).unwrap_or(path)
}

/// The devices that are made along with drives as if by `-device`: for `if=virtio`, and for `if=scsi`, where each
/// bus is an adapter.
pub(super) fn devices_of(drives: &[DriveSpec]) -> Vec<DeviceSpec> {
    let device = |driver: &str, properties: &[(&str, &str)]| DeviceSpec {
        driver: driver.to_owned(),
        id: None,
        properties: properties.iter().map(|&(k, v)| (k.to_owned(), v.into())).collect(),
    };
    let of = |interface| drives.iter().filter(move |drive| drive.interface == interface);
    let buses: BTreeSet<u32> = of(DriveInterface::Scsi).map(|drive| drive.bus).collect();
    let adapters = buses.iter().map(|_| device("virtio-scsi-pci", &[]));
    let units = of(DriveInterface::Scsi).map(|drive| {
        let driver = if drive.is_cdrom { "scsi-cd" } else { "scsi-hd" };
        let bus = format!("scsi.{}", buses.range(..drive.bus).count());
        let unit = drive.unit.to_string();
        device(driver, &[("drive", &drive.id), ("bus", &bus), ("scsi-id", &unit)])
    });
    let disks =
        of(DriveInterface::Virtio).map(|drive| device("virtio-blk-pci", &[("drive", &drive.id)]));
    adapters.chain(units).chain(disks).collect()
}
