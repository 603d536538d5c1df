//! `-pidfile`: the process's number in a file that stays locked while the process lives.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, OFlags, fcntl_lock};

/// A written pidfile; removed when dropped.
pub(crate) struct PidFile {
    path: PathBuf,
    _locked: File,
}

impl PidFile {
    /// Writes the process's number to `path`.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let text = || format!("cannot create PID file '{}'", path.display());
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            // Not to wait for the reader of a pipe.
            .custom_flags(OFlags::NONBLOCK.bits() as i32)
            .open(path)
            .with_context(text)?;
        fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive)
            .context("another process has it locked")
            .with_context(text)?;
        file.set_len(0).with_context(text)?;
        writeln!(file, "{}", std::process::id()).with_context(text)?;
        // The path must still name it when the process has changed its directory.
        let path = std::path::absolute(path).with_context(text)?;
        Ok(Self { path, _locked: file })
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // Somebody may have removed it already; nothing is left to do then.
        let _ = std::fs::remove_file(&self.path);
    }
}
