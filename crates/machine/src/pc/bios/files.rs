//! Where firmware and option ROMs are found on the host.

use std::path::{Path, PathBuf};

use crate::files;

/// Directories that are searched after those of `-L`.
const DIRECTORIES: [&str; 4] =
    ["/usr/share/rhea", "/usr/share/seabios", "/usr/share/qemu", "/usr/lib/ipxe/qemu"];

/// Debian's packages by how the names of their files begin.
const PACKAGES: [(&str, &str); 6] = [
    ("bios", "seabios"),
    ("vgabios", "seabios"),
    ("efi-", "ipxe-qemu"),
    ("pxe-", "ipxe-qemu"),
    ("OVMF", "ovmf"),
    ("sgabios", "qemu-system-data"),
];

/// Debian's package that has a file of this name, if it is one of firmware's.
pub(in crate::pc) fn package_of(path: &Path) -> Option<&'static str> {
    let name = path.file_name()?.to_str()?;
    PACKAGES.iter().find(|(start, _)| name.starts_with(start)).map(|(_, package)| *package)
}

/// The search path.
#[derive(Clone, Debug, Default)]
pub struct RomFiles {
    directories: Vec<PathBuf>,
}

impl RomFiles {
    /// The path with `first` before the usual directories.
    pub fn new(first: &[PathBuf]) -> Self {
        let usual = DIRECTORIES.iter().map(PathBuf::from);
        Self { directories: first.iter().cloned().chain(usual).collect() }
    }

    /// The directories in the order in which they are searched.
    pub fn directories(&self) -> &[PathBuf] {
        &self.directories
    }

    /// Where `name` is: a path as it stands, or else a file in one of the directories.
    pub fn find(&self, name: &str) -> Option<PathBuf> {
        let direct = Path::new(name);
        if direct.is_file() {
            return Some(direct.to_owned());
        }
        self.directories.iter().map(|dir| dir.join(name)).find(|path| path.is_file())
    }

    /// Reads the file `name` of at most `max` bytes.
    ///
    /// # Errors
    /// Says why it can't, and which package has the file.
    pub fn load(&self, name: &str, max: u64) -> Result<Vec<u8>, String> {
        let path = self.find(name).ok_or_else(|| self.missing(name))?;
        files::read(&path, max).map_err(|e| format!("{}: {e}", path.display()))
    }

    fn missing(&self, name: &str) -> String {
        let package = package_of(Path::new(name));
        if name.contains('/') {
            let remedy = package.map(|package| format!("; install Debian's package {package}"));
            return format!("no such file{}", remedy.unwrap_or_default());
        }
        let searched: Vec<_> = self.directories.iter().map(|d| d.display().to_string()).collect();
        let remedy = match package {
            Some(package) => format!("install Debian's package {package}, or use -L"),
            None => "say where it is with -L".to_owned(),
        };
        format!("it is in none of {}; {remedy}", searched.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_along_the_path_and_a_missing_one_names_its_package() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("bios-own.bin"), [1, 2, 3]).unwrap();
        let files = RomFiles::new(&[dir.path().to_owned()]);
        assert_eq!(files.load("bios-own.bin", 3), Ok(vec![1, 2, 3]));
        assert!(files.load("bios-own.bin", 2).unwrap_err().contains("more than 2 bytes"));
        let direct = dir.path().join("bios-own.bin").display().to_string();
        assert_eq!(RomFiles::default().load(&direct, 3), Ok(vec![1, 2, 3]));
        let missing = RomFiles::default().load("bios-none.bin", 3).unwrap_err();
        assert!(missing.contains("package seabios"), "{missing}");
        let missing = RomFiles::default().load("/none/OVMF.fd", 3).unwrap_err();
        assert_eq!(missing, "no such file; install Debian's package ovmf");
        assert_eq!(RomFiles::default().load("/none", 3).unwrap_err(), "no such file");
    }
}
