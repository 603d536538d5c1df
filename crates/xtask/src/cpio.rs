//! Writer of `newc` cpio archives, the form in which Linux takes an initial RAM file system.
//!
//! Follows the kernel's `Documentation/driver-api/early-userspace/buffer-format.rst`: a header of
//! thirteen eight-digit hexadecimal fields behind the magic `070701`, the name with its NUL and the
//! contents each padded to four bytes, and an entry called `TRAILER!!!` at the end. Owners are
//! root and times are zero, so the same input always gives the same bytes; device nodes are
//! described in their headers, so no privilege is needed to make one.

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;

/// An archive under construction, held in memory.
#[derive(Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

impl Archive {
    /// Adds a directory with mode 0755. Parents have to be added before their children.
    pub(crate) fn directory(&mut self, path: &str) {
        self.entry(path, DIRECTORY | 0o755, (0, 0), &[]);
    }

    /// Adds a regular file with the given permission bits.
    pub(crate) fn file(&mut self, path: &str, permissions: u32, contents: &[u8]) {
        self.entry(path, REGULAR | permissions, (0, 0), contents);
    }

    /// Adds a symbolic link.
    pub(crate) fn symlink(&mut self, path: &str, target: &str) {
        self.entry(path, SYMLINK | 0o777, (0, 0), target.as_bytes());
    }

    /// Adds a character device node with mode 0600.
    pub(crate) fn character_device(&mut self, path: &str, major: u32, minor: u32) {
        self.entry(path, CHARACTER | 0o600, (major, minor), &[]);
    }

    /// Closes the archive and returns its bytes.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.inode = 0;
        self.header("TRAILER!!!", 0, 0, (0, 0), 0);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), contents: &[u8]) {
        self.inode += 1;
        let inode = self.inode;
        self.header(path.trim_start_matches('/'), inode, mode, device, contents.len());
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    fn header(&mut self, name: &str, inode: u32, mode: u32, device: (u32, u32), size: usize) {
        let size = u32::try_from(size).expect("an initramfs file is far below 4 GiB");
        let name_size = u32::try_from(name.len() + 1).expect("a path is short");
        let links = if mode & 0o170_000 == DIRECTORY { 2 } else { 1 };
        self.bytes.extend_from_slice(b"070701");
        // inode, mode, uid, gid, links, mtime, size, device of the file system (2), device (2),
        // size of the name, checksum (unused in newc)
        for field in [inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0] {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::Archive;
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    /// The `cpio` program is the independent reader; where it is missing there is nothing to ask.
    #[test]
    fn cpio_lists_what_was_written() {
        let mut archive = Archive::default();
        archive.directory("bin");
        archive.file("bin/odd", 0o755, b"12345");
        archive.symlink("bin/link", "odd");
        archive.character_device("console", 5, 1);
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);

        let child = Command::new("cpio")
            .args(["-itv", "--quiet", "--numeric-uid-gid"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut child) = child else {
            eprintln!("SKIPPED: cpio is not installed");
            return;
        };
        child.stdin.take().unwrap().write_all(&bytes).unwrap();
        let listing = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
        let lines: Vec<Vec<&str>> =
            listing.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines.len(), 4, "{listing}");
        assert_eq!((lines[0][0], lines[0][8]), ("drwxr-xr-x", "bin"));
        assert_eq!((lines[1][0], lines[1][4], lines[1][8]), ("-rwxr-xr-x", "5", "bin/odd"));
        assert_eq!(&lines[2][8..], ["bin/link", "->", "odd"]);
        assert_eq!((lines[3][0], lines[3][4], lines[3][5]), ("crw-------", "5,", "1"));
    }
}
