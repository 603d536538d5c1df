//! Commands about block devices (`schema/block-core.json`).

use std::path::Path;
use std::sync::Arc;

use ::block::{Drive, DriveInfo, InsertedInfo, IoStatus, MediaError, StatsSnapshot};
use schema::{
    BlockDeviceInfo, BlockDeviceIoStatus, BlockDeviceStats, BlockInfo, BlockStats,
    BlockdevCacheInfo, BlockdevChangeReadOnlyMode, BlockdevDetectZeroesOptions, ErrorClass,
    ImageInfo, QmpError, commands,
};

use crate::{Monitor, int};

impl Monitor {
    pub(crate) fn block(&self) -> Vec<BlockInfo> {
        self.machine.drives().iter().map(|drive| block_info(drive.info())).collect()
    }

    /// With `query-nodes`, the nodes of the graph instead of the devices.
    pub(crate) fn block_stats(&self, arg: &commands::QueryBlockstats) -> Vec<BlockStats> {
        let drives = self.machine.drives().iter();
        if arg.query_nodes == Some(true) {
            drives.flat_map(|drive| node_stats(drive)).collect()
        } else {
            drives.map(|drive| device_stats(drive)).collect()
        }
    }

    /// The drive that a command means, by its own name or by its device's.
    fn drive(&self, device: Option<&str>, id: Option<&str>) -> Result<&Arc<Drive>, QmpError> {
        let name = match (device, id) {
            (Some(name), None) | (None, Some(name)) => name,
            _ => return Err(QmpError::generic("Need exactly one of 'device' and 'id'")),
        };
        let by_device = |drive: &Drive| {
            let qdev = drive.info().qdev;
            qdev.is_some_and(|q| q == name || format!("/machine/peripheral/{q}") == name)
        };
        let found = self.machine.drives().iter().find(|drive| match device {
            Some(_) => !name.is_empty() && drive.id() == name,
            None => by_device(drive),
        });
        found.ok_or_else(|| {
            QmpError::new(ErrorClass::DeviceNotFound, format!("Device '{name}' not found"))
        })
    }

    pub(crate) fn block_eject(&self, arg: &commands::Eject) -> Result<(), QmpError> {
        let drive = self.drive(arg.device.as_deref(), arg.id.as_deref())?;
        drive.eject(arg.force == Some(true)).map_err(refused)
    }

    pub(crate) fn block_open_tray(&self, arg: &commands::BlockdevOpenTray) -> Result<(), QmpError> {
        let drive = self.drive(arg.device.as_deref(), arg.id.as_deref())?;
        match drive.open_tray(arg.force == Some(true)) {
            // The guest has been asked.
            Err(MediaError::Locked(_)) => Ok(()),
            done => done.map_err(refused),
        }
    }

    pub(crate) fn block_close_tray(
        &self,
        arg: &commands::BlockdevCloseTray,
    ) -> Result<(), QmpError> {
        self.drive(arg.device.as_deref(), arg.id.as_deref())?.close_tray().map_err(refused)
    }

    pub(crate) fn block_remove_medium(
        &self,
        arg: &commands::BlockdevRemoveMedium,
    ) -> Result<(), QmpError> {
        self.drive(None, Some(&arg.id))?.remove_medium().map_err(refused)
    }

    /// The image is opened before the old one goes, and off the monitors' thread, since a host's file
    /// system can take its time.
    pub(crate) async fn block_change_medium(
        &self,
        arg: commands::BlockdevChangeMedium,
    ) -> Result<(), QmpError> {
        let drive = Arc::clone(self.drive(arg.device.as_deref(), arg.id.as_deref())?);
        let read_only = match arg.read_only_mode {
            None | Some(BlockdevChangeReadOnlyMode::Retain) => None,
            Some(BlockdevChangeReadOnlyMode::ReadOnly) => Some(true),
            Some(BlockdevChangeReadOnlyMode::ReadWrite) => Some(false),
        };
        let change = move || -> Result<(), MediaError> {
            let format = arg.format.as_deref().map(str::parse).transpose()?;
            let medium = drive.open_medium(Path::new(&arg.filename), format, read_only)?;
            drive.change_medium(medium, arg.force == Some(true))
        };
        match tokio::task::spawn_blocking(change).await {
            Ok(done) => done.map_err(refused),
            Err(error) => Err(QmpError::generic(format!("The image could not be opened: {error}"))),
        }
    }

    /// Off the monitors' thread, as a host's file system can take its time.
    pub(crate) async fn resize_block(&self, arg: commands::BlockResize) -> Result<(), QmpError> {
        let drives = self.machine.drives();
        let found = match (&arg.device, &arg.node_name) {
            (Some(device), _) => drives.iter().find(|d| !device.is_empty() && d.id() == device),
            (None, Some(node)) => drives.iter().find(|drive| drive.has_node(node)),
            (None, None) => None,
        };
        let drive = Arc::clone(found.ok_or_else(|| {
            QmpError::generic(format!(
                "Cannot find device='{}' nor node-name='{}'",
                arg.device.as_deref().unwrap_or_default(),
                arg.node_name.as_deref().unwrap_or_default()
            ))
        })?);
        let size = u64::try_from(arg.size)
            .map_err(|_| QmpError::generic("Parameter 'size' expects a >0 size"))?;
        match tokio::task::spawn_blocking(move || drive.resize(size)).await {
            Ok(done) => done.map_err(|error| QmpError::generic(error.to_string())),
            Err(error) => Err(QmpError::generic(format!("The disk was not resized: {error}"))),
        }
    }
}

fn refused(error: MediaError) -> QmpError {
    QmpError::generic(error.to_string())
}

fn block_info(info: DriveInfo) -> BlockInfo {
    BlockInfo {
        device: info.device,
        qdev: info.qdev,
        r#type: "unknown".to_owned(),
        removable: info.removable,
        locked: info.locked,
        inserted: info.inserted.map(inserted),
        tray_open: info.tray_open,
        io_status: info.io_status.map(|status| match status {
            IoStatus::Ok => BlockDeviceIoStatus::Ok,
            IoStatus::Failed => BlockDeviceIoStatus::Failed,
            IoStatus::NoSpace => BlockDeviceIoStatus::Nospace,
        }),
    }
}

/// Throttling, encryption and backing files are not in this build: their members say so.
fn inserted(info: InsertedInfo) -> BlockDeviceInfo {
    let backing =
        info.backing.map(|base| raw_image(base.file, base.actual_size, base.virtual_size));
    let backing_file = backing.as_ref().map(|base| base.filename.clone());
    let image = raw_image(info.file.clone(), info.actual_size, info.virtual_size);
    BlockDeviceInfo {
        file: info.file.clone(),
        node_name: Some(info.node_name),
        ro: info.read_only,
        drv: info.driver.to_owned(),
        backing_file_depth: backing.is_some().into(),
        backing_file: backing_file.clone(),
        encrypted: false,
        detect_zeroes: BlockdevDetectZeroesOptions::Off,
        bps: 0,
        bps_rd: 0,
        bps_wr: 0,
        iops: 0,
        iops_rd: 0,
        iops_wr: 0,
        image: Box::new(ImageInfo {
            format: info.driver.to_owned(),
            full_backing_filename: backing_file.clone(),
            backing_filename: backing_file,
            backing_filename_format: backing.as_ref().map(|base| base.format.clone()),
            backing_image: backing.map(Box::new),
            ..image
        }),
        bps_max: None,
        bps_rd_max: None,
        bps_wr_max: None,
        iops_max: None,
        iops_rd_max: None,
        iops_wr_max: None,
        bps_max_length: None,
        bps_rd_max_length: None,
        bps_wr_max_length: None,
        iops_max_length: None,
        iops_rd_max_length: None,
        iops_wr_max_length: None,
        iops_size: None,
        group: None,
        cache: BlockdevCacheInfo {
            writeback: info.cache.writeback,
            direct: info.cache.direct,
            no_flush: info.cache.no_flush,
        },
        write_threshold: 0,
    }
}

fn raw_image(filename: String, actual_size: u64, virtual_size: u64) -> ImageInfo {
    ImageInfo {
        filename,
        format: "raw".to_owned(),
        dirty_flag: Some(false),
        actual_size: Some(int(actual_size)),
        virtual_size: int(virtual_size),
        cluster_size: None,
        encrypted: None,
        compressed: None,
        backing_filename: None,
        full_backing_filename: None,
        backing_filename_format: None,
        backing_image: None,
    }
}

fn device_stats(drive: &Drive) -> BlockStats {
    let info = drive.info();
    let inserted = info.inserted.as_ref();
    BlockStats {
        device: Some(info.device.clone()),
        qdev: info.qdev.clone(),
        node_name: inserted.map(|i| i.node_name.clone()),
        stats: stats(&drive.stats(), true),
        parent: inserted.and_then(|i| parent_stats(drive, i)).map(Box::new),
        backing: None,
    }
}

/// The format node with its protocol node as parent, then the protocol node itself.
fn node_stats(drive: &Drive) -> Vec<BlockStats> {
    let info = drive.info();
    let Some(inserted) = info.inserted.as_ref() else { return Vec::new() };
    let Some(parent) = parent_stats(drive, inserted) else { return Vec::new() };
    let format = BlockStats {
        device: None,
        qdev: None,
        node_name: Some(inserted.node_name.clone()),
        stats: parent.stats.clone(),
        parent: Some(Box::new(parent.clone())),
        backing: None,
    };
    vec![format, parent]
}

fn parent_stats(drive: &Drive, inserted: &InsertedInfo) -> Option<BlockStats> {
    Some(BlockStats {
        device: None,
        qdev: None,
        node_name: Some(inserted.parent_node_name.clone()),
        stats: stats(&drive.parent_stats()?, false),
        parent: None,
        backing: None,
    })
}

/// Requests are neither merged nor refused before they reach a drive, and no intervals are timed.
fn stats(now: &StatsSnapshot, of_device: bool) -> BlockDeviceStats {
    BlockDeviceStats {
        rd_bytes: int(now.rd_bytes),
        wr_bytes: int(now.wr_bytes),
        unmap_bytes: int(now.unmap_bytes),
        rd_operations: int(now.rd_operations),
        wr_operations: int(now.wr_operations),
        flush_operations: int(now.flush_operations),
        unmap_operations: int(now.unmap_operations),
        rd_total_time_ns: int(now.rd_total_time_ns),
        wr_total_time_ns: int(now.wr_total_time_ns),
        flush_total_time_ns: int(now.flush_total_time_ns),
        unmap_total_time_ns: int(now.unmap_total_time_ns),
        wr_highest_offset: int(now.wr_highest_offset),
        rd_merged: 0,
        wr_merged: 0,
        unmap_merged: 0,
        idle_time_ns: None,
        failed_rd_operations: int(now.failed_rd_operations),
        failed_wr_operations: int(now.failed_wr_operations),
        failed_flush_operations: int(now.failed_flush_operations),
        failed_unmap_operations: int(now.failed_unmap_operations),
        invalid_rd_operations: 0,
        invalid_wr_operations: 0,
        invalid_flush_operations: 0,
        invalid_unmap_operations: 0,
        account_invalid: of_device,
        account_failed: of_device,
        timed_stats: Vec::new(),
    }
}
