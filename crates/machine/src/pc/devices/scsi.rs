//! SCSI: adapters, and the units on their buses.

use std::sync::Arc;

use block::{Drive, DriveOptions, OnError};
use devices::scsi::{Kind, Lun, LunOptions, Transport};
use devices::virtio::scsi::{MAX_REQUEST_QUEUES, ScsiOptions, VirtioScsi};
use options::{OptionError, Properties};

use super::storage::{id_of, query_name};
use super::virtio::{Generation, VirtioTransport};
use super::{Bus, Driver, ON_OFF_AUTO};
use crate::BuildError;
use crate::pc::bios::pci_path;
use crate::pc::board::Pc;

/// The kinds of this topic.
pub(super) const DRIVERS: &[Driver] = &[
    Driver {
        name: "scsi-cd",
        aliases: &[],
        bus: "SCSI",
        description: "virtual SCSI CD-ROM",
        make: |pc, id, properties| unit(pc, id, properties, Kind::CdRom),
    },
    Driver {
        name: "scsi-hd",
        aliases: &[],
        bus: "SCSI",
        description: "virtual SCSI disk",
        make: |pc, id, properties| unit(pc, id, properties, Kind::Disk),
    },
    Driver {
        name: "virtio-scsi-pci",
        aliases: &["virtio-scsi"],
        bus: "PCI",
        description: "SCSI adapter",
        make: |pc, id, properties| virtio_scsi(pc, id, properties, Generation::Either),
    },
    Driver {
        name: "virtio-scsi-pci-non-transitional",
        aliases: &[],
        bus: "PCI",
        description: "SCSI adapter for version 1 drivers only",
        make: |pc, id, properties| virtio_scsi(pc, id, properties, Generation::Modern),
    },
    Driver {
        name: "virtio-scsi-pci-transitional",
        aliases: &[],
        bus: "PCI",
        description: "SCSI adapter for old and new drivers",
        make: |pc, id, properties| virtio_scsi(pc, id, properties, Generation::Transitional),
    },
];

fn virtio_scsi(
    pc: &mut Pc,
    path: &str,
    mut properties: Properties,
    generation: Generation,
) -> Result<(), BuildError> {
    let transport = VirtioTransport::take(pc, path, &mut properties, generation)?;
    let defaults = ScsiOptions::default();
    let cpus = u16::try_from(pc.spec.smp.cpus).unwrap_or(u16::MAX);
    let options = ScsiOptions {
        num_queues: properties
            .take_number("num_queues")?
            .unwrap_or(cpus.clamp(1, MAX_REQUEST_QUEUES)),
        queue_size: properties.take_number("virtqueue_size")?.unwrap_or(defaults.queue_size),
        seg_max_adjust: properties.take_bool("seg_max_adjust")?.unwrap_or(defaults.seg_max_adjust),
        max_sectors: properties.take_number("max_sectors")?.unwrap_or(defaults.max_sectors),
        cmd_per_lun: properties.take_number("cmd_per_lun")?.unwrap_or(defaults.cmd_per_lun),
        hotplug: properties.take_bool("hotplug")?.unwrap_or(defaults.hotplug),
        param_change: properties.take_bool("param_change")?.unwrap_or(defaults.param_change),
    };
    let option = properties.option().to_owned();
    properties.finish()?;
    let adapter =
        VirtioScsi::new(options).map_err(|e| BuildError::Device(format!("{option}: {e}")))?;
    let devfn = pc.add_virtio(path, adapter.clone(), transport)?;
    let name = match id_of(path) {
        Some(id) => format!("{id}.0"),
        None => {
            let count = pc.buses.all(|bus| matches!(bus, Bus::Scsi(..)).then_some(())).len();
            format!("scsi.{count}")
        }
    };
    pc.buses.add(name, Bus::Scsi(adapter, pci_path("scsi", devfn)));
    Ok(())
}

/// A property in bytes that fits 32 bits.
pub(super) fn take_bytes(
    properties: &mut Properties,
    key: &'static str,
) -> Result<Option<u32>, OptionError> {
    Ok(properties.take_size(key, 1)?.map(|bytes| bytes.try_into().unwrap_or(u32::MAX)))
}

/// What `-device` says about a unit itself.
fn take_unit(properties: &mut Properties, kind: Kind) -> Result<LunOptions, OptionError> {
    let mut options = match kind {
        Kind::Disk => LunOptions::disk(),
        Kind::CdRom => LunOptions::cdrom(Transport::Scsi),
    };
    for (key, text) in [
        ("vendor", &mut options.vendor),
        ("product", &mut options.product),
        ("ver", &mut options.version),
        ("serial", &mut options.serial),
        ("device_id", &mut options.device_id),
    ] {
        if let Some(given) = properties.take(key) {
            *text = given;
        }
    }
    options.wwn = properties.take_number("wwn")?.unwrap_or(options.wwn);
    options.port_wwn = properties.take_number("port_wwn")?.unwrap_or(options.port_wwn);
    options.port_index = properties.take_number("port_index")?.unwrap_or(options.port_index);
    options.scsi_version = properties.take_number("scsi_version")?.unwrap_or(options.scsi_version);
    options.share_rw = properties.take_bool("share-rw")?.unwrap_or(options.share_rw);
    let max_io_size = properties.take_number("max_io_size")?;
    options.max_io_size = max_io_size.unwrap_or(options.max_io_size);
    if kind == Kind::Disk {
        options.removable = properties.take_bool("removable")?.unwrap_or(options.removable);
        options.dpofua = properties.take_bool("dpofua")?.unwrap_or(options.dpofua);
        let rotation_rate = properties.take_number("rotation_rate")?;
        options.rotation_rate = rotation_rate.unwrap_or(options.rotation_rate);
        let max_unmap_size = properties.take_number("max_unmap_size")?;
        options.max_unmap_size = max_unmap_size.unwrap_or(options.max_unmap_size);
        take_blocks(properties, &mut options)?;
    }
    Ok(options)
}

/// What `-device` says about the blocks of a disk.
pub(super) fn take_blocks(
    properties: &mut Properties,
    options: &mut LunOptions,
) -> Result<(), OptionError> {
    /// The granularity that stands for one chosen by us, and the least that we choose.
    const AUTOMATIC: u32 = u32::MAX;
    const LEAST: u32 = 4096;
    let logical = take_bytes(properties, "logical_block_size")?;
    options.logical_block_size = logical.filter(|&n| n != 0).unwrap_or(options.logical_block_size);
    let physical = take_bytes(properties, "physical_block_size")?;
    options.physical_block_size =
        physical.filter(|&n| n != 0).unwrap_or(options.logical_block_size);
    options.min_io_size = take_bytes(properties, "min_io_size")?.unwrap_or(0);
    options.opt_io_size = take_bytes(properties, "opt_io_size")?.unwrap_or(0);
    options.discard_granularity =
        match take_bytes(properties, "discard_granularity")?.unwrap_or(AUTOMATIC) {
            AUTOMATIC => options.physical_block_size.max(LEAST),
            bytes => bytes,
        };
    Ok(())
}

fn unit(pc: &mut Pc, path: &str, mut properties: Properties, kind: Kind) -> Result<(), BuildError> {
    let option = properties.option().to_owned();
    let failed = |e: String| BuildError::Device(format!("{option}: {e}"));
    let name = if kind == Kind::Disk { "scsi-hd" } else { "scsi-cd" };
    let named = |bus: &Bus| match bus {
        Bus::Scsi(adapter, firmware) => Some((adapter.clone(), firmware.clone())),
        _ => None,
    };
    let buses = pc.buses.take(&mut properties, named)?;
    let (adapter, firmware) = buses.first().ok_or_else(|| {
        let remedy = "-device virtio-scsi-pci adds one";
        failed(format!("No 'SCSI' bus found for device '{name}'; {remedy}"))
    })?;
    let channel = properties.take_number("channel")?.unwrap_or(0);
    let target = properties.take_number("scsi-id")?;
    let lun = properties.take_number("lun")?;
    let drive_id = properties.take("drive");
    let mut options = take_unit(&mut properties, kind)?;
    let on_read_error = properties.take_choice("rerror", OnError::READ)?;
    let on_write_error = properties.take_choice("werror", OnError::WRITE)?;
    let write_cache = properties.take_choice("write-cache", ON_OFF_AUTO)?.flatten();
    let bootindex = pc.boot_order.take(&mut properties)?;
    properties.finish()?;
    let address = adapter.bus().find(channel, target, lun).map_err(|e| failed(e.to_string()))?;
    let drive = match drive_id {
        Some(id) => pc.find_drive(&option, &format!("{name}.drive"), &id)?,
        None if kind == Kind::CdRom => {
            let drive = Arc::new(Drive::empty("", &DriveOptions::default()));
            pc.drives.push(drive.clone());
            drive
        }
        None => return Err(failed("drive property not set".into())),
    };
    if options.device_id.is_empty() {
        let given = if options.serial.is_empty() { drive.id() } else { &options.serial };
        options.device_id = given.chars().take(20).collect();
    }
    drive.set_error_policy(on_read_error, on_write_error);
    if let Some(on) = write_cache {
        drive.set_write_cache(on);
    }
    let unit = Lun::new(drive, query_name(path), options).map_err(|e| failed(e.to_string()))?;
    adapter.attach(address, id_of(path).unwrap_or("(null)"), unit);
    let (target, lun) = (address.target, address.lun);
    pc.boot_order.add(bootindex, format!("{firmware}/channel@0/disk@{target:x},{lun:x}"));
    Ok(())
}
