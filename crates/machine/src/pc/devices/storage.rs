//! Disks, their controllers, and `-drive`.

use std::sync::Arc;

use block::{Drive, DriveOptions, OnError};
use devices::virtio::blk::{BlkOptions, VirtioBlk};
use options::{OptionError, Properties};

use super::virtio::{Generation, VirtioTransport};
use super::{Driver, ON_OFF_AUTO};
use crate::BuildError;
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
    let options = BlkOptions {
        serial: properties.take("serial").unwrap_or_default(),
        logical_block_size: properties
            .take_size("logical_block_size", 1)?
            .map_or(defaults.logical_block_size, |n| n.try_into().unwrap_or(u32::MAX)),
        physical_block_size: properties
            .take_size("physical_block_size", 1)?
            .map_or(defaults.physical_block_size, |n| n.try_into().unwrap_or(u32::MAX)),
        num_queues: properties.take_number("num-queues")?.unwrap_or(defaults.num_queues),
        queue_size: properties.take_number("queue-size")?.unwrap_or(defaults.queue_size),
        discard: properties.take_bool("discard")?.unwrap_or(defaults.discard),
        write_zeroes: properties.take_bool("write-zeroes")?.unwrap_or(defaults.write_zeroes),
        share_rw: properties.take_bool("share-rw")?.unwrap_or(defaults.share_rw),
    };
    let on_read_error = properties.take_choice("rerror", OnError::READ)?;
    let on_write_error = properties.take_choice("werror", OnError::WRITE)?;
    let write_cache = properties.take_choice("write-cache", ON_OFF_AUTO)?.flatten();
    // The order in which firmware would try disks; a direct boot has no use for it.
    properties.take_number::<u32>("bootindex")?;
    let option = properties.option().to_owned();
    properties.finish()?;
    let drive = pc.drives.iter().find(|drive| drive.id() == drive_id).ok_or_else(|| {
        let ids: Vec<&str> = pc.drives.iter().map(|drive| drive.id()).collect();
        OptionError::unknown(
            &format!("{option}: Property 'virtio-blk-device.drive' can't find value"),
            &drive_id,
            &ids,
        )
    })?;
    drive.set_error_policy(on_read_error, on_write_error);
    if let Some(on) = write_cache {
        drive.set_write_cache(on);
    }
    let backend = format!("{path}/virtio-backend");
    let device = VirtioBlk::new(drive.clone(), &backend, options)
        .map_err(|e| BuildError::Device(format!("{option}: {e}")))?;
    pc.add_virtio(path, device, transport)
}

impl Pc {
    /// Opens the images of all drives.
    pub(in crate::pc) fn open_drives(&mut self) -> Result<(), BuildError> {
        let spec = Arc::clone(&self.spec);
        for drive in &spec.drives {
            let failed = |e: String| BuildError::Device(format!("-drive {}: {e}", drive.id));
            let option = format!("-drive {}", drive.id);
            let options =
                DriveOptions::parse(Properties::from_map(&option, drive.options.clone()))?;
            let opened = match &drive.file {
                Some(path) => {
                    Drive::open(&drive.id, path, &options).map_err(|e| failed(e.to_string()))?
                }
                None => Drive::empty(&drive.id, &options),
            };
            self.drives.push(Arc::new(opened));
        }
        Ok(())
    }
}

/// The device that is made along with a drive.
pub(super) fn device_of(drive: &DriveSpec) -> Option<DeviceSpec> {
    match drive.interface {
        DriveInterface::None => None,
        DriveInterface::Virtio => {
            let properties = [("drive".to_owned(), drive.id.as_str().into())];
            Some(DeviceSpec {
                driver: "virtio-blk-pci".to_owned(),
                id: None,
                properties: properties.into_iter().collect(),
            })
        }
    }
}
