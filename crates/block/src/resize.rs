//! Disks that become longer or shorter while the machine runs.

use std::io;
use std::sync::{Arc, PoisonError};

use crate::Drive;
use crate::file::describe;

/// Tells the guest's device that the size is another; called on any thread, and must not block.
pub type ResizeHook = Arc<dyn Fn() + Send + Sync>;

/// Why a disk keeps its size.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// There is no disk.
    #[error("Device '{0}' has no medium")]
    Empty(String),
    /// Nothing of it may change.
    #[error("Image is read-only")]
    ReadOnly,
    /// Its size is fixed.
    #[error("Image format driver does not support resize")]
    Fixed,
    /// The host refused.
    #[error("Could not resize file: {}", describe(.0))]
    Host(io::Error),
}

impl Drive {
    /// Makes the disk `size` bytes long, and tells the guest's device.
    ///
    /// # Errors
    /// If there is none, it can't be changed, or the host refuses.
    pub fn resize(&self, size: u64) -> Result<(), ResizeError> {
        let medium = self.medium().ok_or_else(|| ResizeError::Empty(self.name()))?;
        if medium.read_only {
            return Err(ResizeError::ReadOnly);
        }
        medium.node.resize(size).map_err(|error| match error.kind() {
            io::ErrorKind::Unsupported => ResizeError::Fixed,
            _ => ResizeError::Host(error),
        })?;
        let hook = self.on_resize.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(hook) = hook {
            hook();
        }
        Ok(())
    }

    /// Sets who is told of a new size, until the device that has the drive gives it back.
    pub fn set_resize_hook(&self, hook: ResizeHook) {
        *self.on_resize.lock().unwrap_or_else(PoisonError::into_inner) = Some(hook);
    }

    pub(crate) fn forget_resize_hook(&self) {
        *self.on_resize.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DriveOptions;
    use std::sync::atomic::{AtomicU64, Ordering};

    fn image(len: usize) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, vec![0xaa; len]).unwrap();
        (dir, path)
    }

    fn read(drive: &Drive, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0xee; len];
        drive.read_bytes(offset, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn an_image_and_the_device_follow() {
        let (_dir, path) = image(4096);
        let drive = Arc::new(Drive::open("hd", &path, &DriveOptions::default()).unwrap());
        drive.claim("dev", false).unwrap();
        let heard = Arc::new(AtomicU64::new(0));
        let (hears, told) = (heard.clone(), Arc::downgrade(&drive));
        drive.set_resize_hook(Arc::new(move || {
            hears.store(told.upgrade().map_or(0, |drive| drive.size()), Ordering::Release);
        }));
        drive.resize(8192).unwrap();
        assert_eq!((heard.load(Ordering::Acquire), drive.size()), (8192, 8192));
        drive.write_bytes(8191, &[1]).unwrap();
        drive.resize(1024).unwrap();
        drive.write_bytes(4096, &[1]).unwrap_err();
        drive.resize(2048).unwrap();
        assert_eq!(read(&drive, 1023, 3), [0xaa, 0, 0]);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 2048);
        drive.release();
        drive.resize(512).unwrap();
        assert_eq!(heard.load(Ordering::Acquire), 2048, "it is nobody's any more");
    }

    #[test]
    fn a_snapshot_changes_its_size_alone() {
        let (_dir, path) = image(10_000);
        let options = DriveOptions { snapshot: true, ..Default::default() };
        let drive = Drive::open("hd", &path, &options).unwrap();
        drive.write_bytes(6000, &[1; 6]).unwrap();
        drive.resize(5000).unwrap();
        drive.resize(20_000).unwrap();
        assert_eq!(read(&drive, 4999, 2), [0xaa, 0]);
        assert_eq!(read(&drive, 4096, 15_904)[904..], [0; 15_000], "what was cut off is gone");
        drive.write_bytes(4998, &[2; 4]).unwrap();
        drive.write_bytes(19_999, &[3]).unwrap();
        assert_eq!(read(&drive, 4997, 6), [0xaa, 2, 2, 2, 2, 0]);
        assert_eq!(read(&drive, 19_998, 2), [0, 3]);
        assert_eq!(std::fs::read(&path).unwrap(), vec![0xaa; 10_000]);
    }

    #[test]
    fn what_has_its_size_keeps_it() {
        let (_dir, path) = image(4096);
        let refused = |drive: Drive| drive.resize(512).unwrap_err().to_string();
        let options = DriveOptions::default();
        assert_eq!(refused(Drive::empty("cd", &options)), "Device 'cd' has no medium");
        let read_only = DriveOptions { read_only: true, ..Default::default() };
        let drive = Drive::open("hd", &path, &read_only).unwrap();
        assert_eq!(refused(drive), "Image is read-only");
        let part = DriveOptions { offset: 512, ..Default::default() };
        for drive in
            [Drive::open("hd", &path, &part), Drive::open("hd", "null-co://".as_ref(), &options)]
        {
            assert_eq!(refused(drive.unwrap()), "Image format driver does not support resize");
        }
        let drive = Drive::open("hd", &path, &options).unwrap();
        let huge = drive.resize(u64::MAX).unwrap_err().to_string();
        assert!(huge.starts_with("Could not resize file: "), "{huge}");
        assert_eq!(drive.size(), 4096);
    }
}
