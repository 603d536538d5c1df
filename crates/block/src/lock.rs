//! Locks on image files, compatible with QEMU's: a process that uses an image holds, on fixed bytes of
//! the file, one shared lock for each thing it does and one for each thing that others must not do.
//! Locks belong to the open file description and end with it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::sys::{ByteLock, is_byte_locked, lock_byte};

/// Byte of the lock "I do this", plus the number of the permission.
const DOES: u64 = 100;
/// Byte of the lock "others must not do this", plus the number of the permission.
const FORBIDS: u64 = 200;
/// Permission: rely on what is read.
const READ: u64 = 0;
/// Permission: write.
const WRITE: u64 = 1;

/// The image is in use in a way that excludes this use.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process forbids what this one wants to do, or does what this one forbids.
    #[error(
        "Failed to get {}\"write\" lock\nIs another process using the image [{}]?",
        if *.shared { "shared " } else { "" }, .path.display()
    )]
    InUse {
        /// Whether it is the lock that forbids others to write.
        shared: bool,
        /// The image.
        path: PathBuf,
    },
    /// The host has no locks for this file.
    #[error("Failed to lock image '{}': {source}", .path.display())]
    Host {
        /// The image.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
}

/// Locks `file` for a user that writes if `write`, and lets others write if `share_write`.
pub(crate) fn lock_image(
    file: &File,
    path: &Path,
    write: bool,
    share_write: bool,
) -> Result<(), LockError> {
    let host = |source| LockError::Host { path: path.to_owned(), source };
    let in_use = |shared| LockError::InUse { shared, path: path.to_owned() };
    let mut taken = vec![DOES + READ];
    if write {
        taken.push(DOES + WRITE);
    }
    if !share_write {
        taken.push(FORBIDS + WRITE);
    }
    for &at in &taken {
        match lock_byte(file, at, ByteLock::Shared) {
            Ok(()) => {}
            // A file system without locks, as QEMU takes it, is used without them.
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOLCK | libc::EINVAL)) => {
                return Ok(());
            }
            Err(e) => return Err(host(e)),
        }
    }
    let conflict = || -> Result<(), LockError> {
        if write && is_byte_locked(file, FORBIDS + WRITE).map_err(host)? {
            return Err(in_use(false));
        }
        if !share_write && is_byte_locked(file, DOES + WRITE).map_err(host)? {
            return Err(in_use(true));
        }
        Ok(())
    };
    conflict().inspect_err(|_| unlock_image(file))
}

/// Lets go of all locks that [`lock_image`] took.
pub(crate) fn unlock_image(file: &File) {
    for at in [DOES + READ, DOES + WRITE, FORBIDS + WRITE] {
        // Nothing is left to do if this fails: closing the file lets go of them in any case.
        let _ = lock_byte(file, at, ByteLock::Unlocked);
    }
}
