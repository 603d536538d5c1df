//! Picks kernel modules out of an unpacked kernel package, in the order in which to load them.
//!
//! A package carries no `modules.dep` (that is made when it is installed), so the dependencies come
//! from the modules themselves: the `depends=` entry of their `.modinfo` section. What the kernel
//! has built in, as `modules.builtin` lists it, needs no file.

use anyhow::{Context as _, Result, bail};
use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A module with its uncompressed contents.
pub(crate) struct Module {
    /// Canonical name, with underscores.
    pub(crate) name: String,
    /// The ELF object, as `insmod` takes it.
    pub(crate) object: Vec<u8>,
}

/// Returns the wanted modules with everything that they depend on, dependencies first.
///
/// `directory` is `lib/modules/VERSION` of the package. A name that is neither there nor built in
/// is an error.
pub(crate) fn collect(directory: &Path, wanted: &[&str]) -> Result<Vec<Module>> {
    let mut files = HashMap::new();
    find(directory, &mut files)?;
    let list = directory.join("modules.builtin");
    let builtin: HashSet<String> = fs::read_to_string(&list)
        .with_context(|| format!("cannot read {}", list.display()))?
        .lines()
        .filter_map(|line| module_name(Path::new(line)))
        .collect();
    let mut collector = Collector { files, builtin, seen: HashSet::new(), ordered: Vec::new() };
    for name in wanted {
        collector.add(&name.replace('-', "_"))?;
    }
    Ok(collector.ordered)
}

struct Collector {
    files: HashMap<String, PathBuf>,
    builtin: HashSet<String>,
    seen: HashSet<String>,
    ordered: Vec<Module>,
}

impl Collector {
    fn add(&mut self, name: &str) -> Result<()> {
        if self.builtin.contains(name) || !self.seen.insert(name.to_owned()) {
            return Ok(());
        }
        let Some(path) = self.files.get(name) else {
            bail!("the kernel package has no module '{name}', and it is not built in either");
        };
        let object = read(path)?;
        for dependency in dependencies(&object) {
            self.add(&dependency)?;
        }
        self.ordered.push(Module { name: name.to_owned(), object });
        Ok(())
    }
}

fn find(directory: &Path, files: &mut HashMap<String, PathBuf>) -> Result<()> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() {
            find(&path, files)?;
        } else if let Some(name) = module_name(&path) {
            files.insert(name, path);
        }
    }
    Ok(())
}

/// `kernel/drivers/char/hw_random/virtio-rng.ko.xz` is the module `virtio_rng`.
fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let stem = file.strip_suffix(".xz").unwrap_or(file).strip_suffix(".ko")?;
    Some(stem.replace('-', "_"))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_some_and(|extension| extension == "xz") {
        let output = Command::new("xz")
            .arg("-dc")
            .arg(path)
            .output()
            .context("cannot run xz, which unpacks the kernel modules; install xz-utils")?;
        if !output.status.success() {
            bail!("xz cannot unpack {}", path.display());
        }
        return Ok(output.stdout);
    }
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn dependencies(object: &[u8]) -> Vec<String> {
    let key = b"\0depends=";
    let Some(at) = object.windows(key.len()).position(|window| window == key) else {
        return Vec::new();
    };
    let value = object[at + key.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(value)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{collect, module_name};
    use std::fs;
    use std::path::Path;

    #[test]
    fn dependencies_come_first_and_builtins_not_at_all() {
        let root = tempfile::tempdir().unwrap();
        let kernel = root.path().join("kernel/drivers");
        fs::create_dir_all(&kernel).unwrap();
        fs::write(root.path().join("modules.builtin"), "kernel/fs/ext4/ext4.ko\n").unwrap();
        fs::write(kernel.join("virtio-rng.ko"), b"\x7fELF\0depends=virtio,rng-core\0").unwrap();
        fs::write(kernel.join("rng-core.ko"), b"\x7fELF\0depends=\0").unwrap();
        fs::write(kernel.join("virtio.ko"), b"\x7fELF\0depends=ext4\0").unwrap();

        let modules = collect(root.path(), &["virtio-rng", "virtio", "ext4"]).unwrap();
        let names: Vec<&str> = modules.iter().map(|module| module.name.as_str()).collect();
        assert_eq!(names, ["virtio", "rng_core", "virtio_rng"]);
        assert!(collect(root.path(), &["nope"]).is_err());
    }

    #[test]
    fn names_are_canonical() {
        assert_eq!(module_name(Path::new("a/virtio-rng.ko.xz")).unwrap(), "virtio_rng");
        assert_eq!(module_name(Path::new("modules.order")), None);
    }
}
