//! Media: what can be in a drive, and how it gets in and out while the machine runs.
//!
//! Both the guest, through its device, and the user, through the monitor, move the tray; the user alone
//! puts media in and takes them out. The drive keeps the tray and its lock; the device that has it is
//! told of every change through [`MediaDevice`], with none of the drive's locks held.

use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, Weak};

use crate::drive::BlockError;
use crate::part::PartNode;
use crate::{
    BlockBackend, CacheMode, Drive, DriveEvent, DriveOptions, FileNode, ImageFormat, NullNode,
    OpenError, OverlayNode, null,
};

/// A device whose medium can be changed.
pub trait MediaDevice: Send + Sync {
    /// The medium went (`loaded` is false) or came, or the tray moved so that it can no longer, or can
    /// now, be reached.
    fn media_changed(&self, loaded: bool);

    /// The user wants the medium and the guest has locked the tray: the guest is to be asked for it.
    /// With `force` the tray opens all the same.
    fn eject_requested(&self, force: bool);
}

/// Whether the medium of a device can be changed.
pub(crate) enum Bay {
    /// It stays.
    Fixed,
    /// It can be.
    Removable {
        /// Only with the tray open.
        has_tray: bool,
        /// The device.
        watcher: Weak<dyn MediaDevice>,
    },
}

/// Something to put in a drive: an opened image.
pub struct Medium {
    pub(crate) node: Arc<dyn BlockBackend>,
    pub(crate) cache: CacheMode,
    pub(crate) read_only: bool,
}

impl Medium {
    /// The disk whose bytes are in `node`, used as `options` say.
    pub fn new(node: Arc<dyn BlockBackend>, options: &DriveOptions) -> Self {
        let read_only = options.read_only || node.is_read_only();
        Self { node, cache: options.cache, read_only }
    }

    /// Name of the format.
    pub(crate) fn driver(&self) -> &'static str {
        if self.node.backing().is_some() { self.node.driver() } else { "raw" }
    }
}

/// The tray opened or closed, as the event `DEVICE_TRAY_MOVED` tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrayEvent {
    /// The drive's id.
    pub device: String,
    /// Id or path of the guest device.
    pub qdev: String,
    /// Where the tray is now.
    pub open: bool,
}

/// Why a medium could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum MediaError {
    /// The medium stays in this device.
    #[error("Device '{0}' is not removable")]
    NotRemovable(String),
    /// The guest locked the tray.
    #[error(
        "Device '{0}' is locked and force was not specified, wait for tray to open and try again"
    )]
    Locked(String),
    /// The tray is closed.
    #[error("Tray of device '{0}' is not open")]
    TrayClosed(String),
    /// Something is in the drive.
    #[error("There already is a medium in device '{0}'")]
    Occupied(String),
    /// The medium can't be used.
    #[error(transparent)]
    Block(#[from] BlockError),
}

impl Drive {
    /// Opens the image at `path` as this drive does: with its options, except for what is given here.
    ///
    /// # Errors
    /// If the image can't be opened or has a format that is not read here.
    pub fn open_medium(
        &self,
        path: &Path,
        format: Option<ImageFormat>,
        read_only: Option<bool>,
    ) -> Result<Medium, BlockError> {
        let read_only = read_only.unwrap_or_else(|| self.read_only.load(Ordering::Acquire));
        let options = &self.options;
        // What an overlay is over is only read.
        let overlaid = options.snapshot && !read_only;
        let cache = if overlaid { CacheMode::UNSAFE } else { options.cache };
        let mut node: Arc<dyn BlockBackend> = if is_null(path) {
            Arc::new(NullNode::new(options.null, read_only))
        } else {
            let open =
                |read_only| FileNode::open(path, read_only || overlaid, cache, options.discard);
            let node = match open(read_only) {
                Err(e) if e.is_read_only() && options.auto_read_only => open(true)?,
                opened => opened?,
            };
            if format.is_none() {
                refuse_other_formats(&node, path)?;
            }
            Arc::new(node)
        };
        let read_only = read_only || node.is_read_only() && !overlaid;
        if options.offset != 0 || options.size.is_some() {
            node = Arc::new(PartNode::new(node, options.offset, options.size)?);
        }
        if overlaid {
            node = Arc::new(OverlayNode::new(node, options.discard)?);
        }
        Ok(Medium { node, cache, read_only })
    }

    /// Sets what is in the drive.
    pub(crate) fn put(&self, medium: Option<Medium>) -> Option<Arc<Medium>> {
        if let Some(medium) = &medium {
            self.read_only.store(medium.read_only, Ordering::Release);
        }
        let mut slot = self.medium.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *slot, medium.map(Arc::new))
    }

    /// Name for messages: the drive's id, or that of the device of a drive without one.
    pub(crate) fn name(&self) -> String {
        match &*self.owner() {
            Some(owner) if self.id().is_empty() => owner.device.clone(),
            _ => self.id().to_owned(),
        }
    }

    /// Whether the device has a tray, and who is to be told; `None` without a device.
    ///
    /// # Errors
    /// If the medium stays in the device.
    #[allow(clippy::type_complexity)]
    fn bay(&self) -> Result<Option<(bool, Option<Arc<dyn MediaDevice>>)>, MediaError> {
        match self.owner().as_ref().map(|owner| &owner.bay) {
            None => return Ok(None),
            Some(Bay::Removable { has_tray, watcher }) => {
                return Ok(Some((*has_tray, watcher.upgrade())));
            }
            Some(Bay::Fixed) => {}
        }
        Err(MediaError::NotRemovable(self.name()))
    }

    // What the guest's device uses.

    /// Whether the tray is open.
    pub fn is_tray_open(&self) -> bool {
        self.tray_open.load(Ordering::Acquire)
    }

    /// Whether the guest locked the tray.
    pub fn is_locked(&self) -> bool {
        self.locked.load(Ordering::Acquire)
    }

    /// Whether there is a medium that can be read: inserted, and the tray closed.
    pub fn is_ready(&self) -> bool {
        !self.is_tray_open() && self.is_inserted()
    }

    /// The guest locks or unlocks the tray.
    pub fn set_locked(&self, locked: bool) {
        self.locked.store(locked, Ordering::Release);
    }

    /// The device moves its tray; clients are told if it was elsewhere. The device itself is not.
    pub fn move_tray(&self, open: bool) {
        if self.tray_open.swap(open, Ordering::AcqRel) == open {
            return;
        }
        let qdev = self.owner().as_ref().map(|owner| owner.device.clone()).unwrap_or_default();
        let device = self.id().to_owned();
        self.tell(DriveEvent::TrayMoved(TrayEvent { device, qdev, open }));
    }

    /// Puts the tray and its lock where a restored machine had them, and tells nobody.
    pub fn restore_tray(&self, open: bool, locked: bool) {
        self.tray_open.store(open, Ordering::Release);
        self.locked.store(locked, Ordering::Release);
    }

    // What the user does.

    /// Opens the tray; nothing in devices without one. If the guest locked it, it is asked to let go,
    /// and with `force` the tray opens at once.
    ///
    /// # Errors
    /// If the medium stays in the device, or the tray is locked and `force` is false.
    pub fn open_tray(&self, force: bool) -> Result<(), MediaError> {
        let Some((true, watcher)) = self.bay()? else { return Ok(()) };
        if self.is_tray_open() {
            return Ok(());
        }
        let locked = self.is_locked();
        if let Some(watcher) = watcher.as_ref().filter(|_| locked) {
            watcher.eject_requested(force);
        }
        if locked && !force {
            return Err(MediaError::Locked(self.name()));
        }
        self.move_tray(true);
        if let Some(watcher) = watcher {
            watcher.media_changed(false);
        }
        Ok(())
    }

    /// Closes the tray; nothing in devices without one.
    ///
    /// # Errors
    /// If the medium stays in the device.
    pub fn close_tray(&self) -> Result<(), MediaError> {
        let Some((true, watcher)) = self.bay()? else { return Ok(()) };
        if !self.is_tray_open() {
            return Ok(());
        }
        self.move_tray(false);
        if let Some(watcher) = watcher {
            watcher.media_changed(true);
        }
        Ok(())
    }

    /// Whether the medium can be reached by hand, and who is to be told of it.
    fn reach(&self) -> Result<Option<Arc<dyn MediaDevice>>, MediaError> {
        match self.bay()? {
            Some((true, _)) if !self.is_tray_open() => Err(MediaError::TrayClosed(self.name())),
            // The device hears of it when the tray closes.
            Some((true, _)) | None => Ok(None),
            Some((false, watcher)) => Ok(watcher),
        }
    }

    /// Takes the medium out, if there is one. Requests under way finish on it.
    ///
    /// # Errors
    /// If the medium stays in the device, or the tray is closed.
    pub fn remove_medium(&self) -> Result<(), MediaError> {
        let watcher = self.reach()?;
        let Some(medium) = self.put(None) else { return Ok(()) };
        medium.node.unlock();
        if let Some(watcher) = watcher {
            watcher.media_changed(false);
        }
        Ok(())
    }

    /// Puts a medium in.
    ///
    /// # Errors
    /// If the medium stays in the device, the tray is closed, something is in the drive, or another
    /// process uses the image.
    pub fn insert_medium(&self, medium: Medium) -> Result<(), MediaError> {
        let watcher = self.reach()?;
        if self.is_inserted() {
            return Err(MediaError::Occupied(self.name()));
        }
        self.lock_for_owner(&medium).map_err(BlockError::from)?;
        self.put(Some(medium));
        if let Some(watcher) = watcher {
            watcher.media_changed(true);
        }
        Ok(())
    }

    /// Opens the tray and takes the medium out.
    ///
    /// # Errors
    /// As [`Drive::open_tray`].
    pub fn eject(&self, force: bool) -> Result<(), MediaError> {
        self.open_tray(force)?;
        self.remove_medium()
    }

    /// Replaces the medium, the tray opening and closing over it.
    ///
    /// # Errors
    /// As [`Drive::open_tray`], and if another process uses the image; the tray then stays open.
    pub fn change_medium(&self, medium: Medium, force: bool) -> Result<(), MediaError> {
        self.eject(force)?;
        self.insert_medium(medium)?;
        self.close_tray()
    }
}

/// Whether an image's name asks for a disk without bytes.
fn is_null(path: &Path) -> bool {
    path.to_str().is_some_and(|name| name.starts_with(null::PREFIX))
}

/// Refuses images that are not raw, when nobody said that they are: a guest that writes another
/// format's header into its raw disk must not be believed later.
fn refuse_other_formats(node: &FileNode, path: &Path) -> Result<(), BlockError> {
    let mut start = [0; 8];
    let read = node.read_start(&mut start);
    let host = |source: io::Error| OpenError::Host { path: path.to_owned(), source };
    let count = read.map_err(host)?;
    let known: [(&[u8], &'static str); 4] =
        [(b"QFI\xfb", "qcow2"), (b"KDMV", "vmdk"), (b"vhdxfile", "vhdx"), (b"QED\0", "qed")];
    match known.iter().find(|(magic, _)| start[..count].starts_with(magic)) {
        Some((_, name)) => Err(BlockError::UnknownFormat((*name).to_owned())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NullOptions;
    use std::path::PathBuf;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Device(Mutex<Vec<&'static str>>);

    impl MediaDevice for Device {
        fn media_changed(&self, loaded: bool) {
            self.0.lock().unwrap().push(if loaded { "loaded" } else { "unloaded" });
        }
        fn eject_requested(&self, force: bool) {
            self.0.lock().unwrap().push(if force { "forced" } else { "asked" });
        }
    }

    struct Bench {
        dir: tempfile::TempDir,
        drive: Drive,
        device: Arc<Device>,
        events: Arc<Mutex<Vec<DriveEvent>>>,
    }

    impl Bench {
        fn new(has_tray: bool) -> Self {
            let drive = Drive::empty("cd", &DriveOptions::default());
            let device = Arc::new(Device::default());
            let weak: Weak<dyn MediaDevice> = Arc::downgrade(&device) as Weak<dyn MediaDevice>;
            drive.claim_removable("dev", has_tray, weak).unwrap();
            let events: Arc<Mutex<Vec<DriveEvent>>> = Arc::default();
            let sink = events.clone();
            drive.set_event_hook(Box::new(move |event| sink.lock().unwrap().push(event)));
            Self { dir: tempfile::tempdir().unwrap(), drive, device, events }
        }

        fn image(&self, name: &str, len: u64) -> PathBuf {
            let path = self.dir.path().join(name);
            std::fs::File::create(&path).unwrap().set_len(len).unwrap();
            path
        }

        fn heard(&self) -> Vec<&'static str> {
            std::mem::take(&mut self.device.0.lock().unwrap())
        }

        fn trays(&self) -> Vec<bool> {
            let events = std::mem::take(&mut *self.events.lock().unwrap());
            let open = |event| match event {
                DriveEvent::TrayMoved(tray) if tray.device == "cd" && tray.qdev == "dev" => {
                    tray.open
                }
                other => panic!("{other:?}"),
            };
            events.into_iter().map(open).collect()
        }
    }

    #[test]
    fn a_medium_is_changed_over_an_open_tray() {
        let bench = Bench::new(true);
        let drive = &bench.drive;
        let path = bench.image("a", 4096);
        let medium = || drive.open_medium(&path, None, None).unwrap();
        let closed = drive.insert_medium(medium()).unwrap_err().to_string();
        assert_eq!(closed, "Tray of device 'cd' is not open");
        drive.change_medium(medium(), false).unwrap();
        assert_eq!((drive.size(), drive.is_ready()), (4096, true));
        assert_eq!(bench.heard(), ["unloaded", "loaded"]);
        assert_eq!(bench.trays(), [true, false]);
        drive.open_tray(false).unwrap();
        assert_eq!((drive.is_inserted(), drive.is_ready()), (true, false));
        let occupied = drive.insert_medium(medium()).unwrap_err().to_string();
        assert_eq!(occupied, "There already is a medium in device 'cd'");
        drive.eject(false).unwrap();
        drive.eject(false).unwrap();
        assert_eq!(drive.info().tray_open, Some(true));
        assert_eq!(bench.trays(), [true]);
    }

    #[test]
    fn a_locked_tray_opens_only_by_force() {
        let bench = Bench::new(true);
        bench.drive.set_locked(true);
        let refused = bench.drive.eject(false).unwrap_err().to_string();
        assert!(refused.contains("is locked and force was not specified"), "{refused}");
        assert_eq!((bench.heard(), bench.trays()), (vec!["asked"], vec![]));
        assert!(bench.drive.info().locked);
        bench.drive.eject(true).unwrap();
        assert_eq!((bench.heard(), bench.trays()), (vec!["forced", "unloaded"], vec![true]));
    }

    #[test]
    fn without_a_tray_the_medium_goes_at_once_and_fixed_disks_stay() {
        let bench = Bench::new(false);
        let path = bench.image("a", 512);
        let medium = bench.drive.open_medium(&path, None, Some(true)).unwrap();
        bench.drive.change_medium(medium, false).unwrap();
        assert!(bench.drive.is_read_only());
        bench.drive.eject(false).unwrap();
        assert_eq!(bench.heard(), ["loaded", "unloaded"]);
        assert!(bench.trays().is_empty() && bench.drive.info().tray_open.is_none());

        let disk = Drive::open("hd", &path, &DriveOptions::default()).unwrap();
        disk.eject(false).unwrap();
        let disk = Drive::open("hd", &path, &DriveOptions::default()).unwrap();
        disk.claim("dev", false).unwrap();
        assert_eq!(disk.eject(true).unwrap_err().to_string(), "Device 'hd' is not removable");
        let refused = bench.drive.open_medium(&path, None, None).unwrap();
        let in_use = bench.drive.insert_medium(refused).unwrap_err().to_string();
        assert!(in_use.contains("Is another process using the image"), "{in_use}");
    }

    #[test]
    fn a_snapshot_keeps_its_changes_to_itself() {
        let bench = Bench::new(false);
        let path = bench.image("a", 8192);
        let options = DriveOptions { snapshot: true, ..Default::default() };
        let drive = Drive::open("hd", &path, &options).unwrap();
        drive.write_bytes(100, b"hello").unwrap();
        let mut bytes = [0; 7];
        drive.read_bytes(99, &mut bytes).unwrap();
        assert_eq!(&bytes, b"\0hello\0");
        assert!(std::fs::read(&path).unwrap().iter().all(|&b| b == 0));
        let inserted = drive.info().inserted.unwrap();
        assert_eq!((inserted.driver, inserted.read_only), ("copy-on-write", false));
        assert_eq!(inserted.backing.unwrap().file, path.display().to_string());
    }

    #[test]
    fn a_disk_can_be_without_bytes() {
        let null = NullOptions { size: 8192, read_zeroes: true };
        let options = DriveOptions { null, ..Default::default() };
        let drive = Drive::open("hd", Path::new("null-co://"), &options).unwrap();
        drive.write_bytes(8187, b"hello").unwrap();
        drive.write_bytes(8188, b"hello").unwrap_err();
        let mut bytes = [1; 5];
        drive.read_bytes(8187, &mut bytes).unwrap();
        assert_eq!((bytes, drive.size()), ([0; 5], 8192));
        drive.read_bytes(u64::MAX, &mut bytes).unwrap_err();
    }

    #[test]
    fn a_disk_can_be_a_part_of_its_image() {
        let bench = Bench::new(false);
        let path = bench.image("a", 8192);
        let part = |offset, size| {
            let options = DriveOptions { offset, size, ..Default::default() };
            Drive::open("hd", &path, &options)
        };
        let drive = part(512, Some(1024)).unwrap();
        drive.write_bytes(0, b"hello").unwrap();
        drive.write_bytes(1020, b"hello").unwrap_err();
        assert_eq!(&std::fs::read(&path).unwrap()[512..517], b"hello");
        assert_eq!((drive.size(), part(512, None).unwrap().size()), (1024, 7680));
        for (offset, size) in [(8193, None), (512, Some(7681)), (1, Some(u64::MAX))] {
            assert!(matches!(part(offset, size), Err(BlockError::Part(_))));
        }
    }
}
