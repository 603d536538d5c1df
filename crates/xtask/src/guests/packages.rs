//! Debian packages, downloaded and unpacked, each into a folder of its own.

use super::run;
use anyhow::{Context as _, Result, bail};
use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Packages below one folder. apt's lists are our own, so that neither privilege nor a change to the
/// system is needed, and packages of another architecture can be had.
pub(super) struct Packages {
    folder: PathBuf,
    /// The lists have been read by this run.
    fresh: Cell<bool>,
}

impl Packages {
    pub(super) fn new(images: &Path) -> Self {
        Self { folder: images.join("packages"), fresh: Cell::new(false) }
    }

    /// The folder that `package` is unpacked in, as in `/`. A name may end in an architecture:
    /// `busybox-static:i386`.
    pub(super) fn unpacked(&self, package: &str) -> Result<PathBuf> {
        let tree = self.folder.join(package.replace(':', "_"));
        if tree.is_dir() {
            return Ok(tree);
        }
        let archives = self.folder.join("download");
        let _ = fs::remove_dir_all(&archives);
        fs::create_dir_all(&archives)?;
        self.update()?;
        println!("guests: downloading {package}");
        let status = self
            .apt("apt-get")?
            .args(["-qq", "download", package])
            .current_dir(&archives)
            .status()
            .context("cannot run apt-get: the guests come from Debian packages")?;
        if !status.success() {
            bail!("apt-get cannot download {package}; is there a network, and a Debian source?");
        }
        let archive = fs::read_dir(&archives)?.next().context("apt-get downloaded nothing")??;
        let unfinished = self.folder.join("unfinished");
        let _ = fs::remove_dir_all(&unfinished);
        run("dpkg-deb", &[Path::new("-x"), &archive.path(), &unfinished])?;
        fs::rename(&unfinished, &tree)?;
        Ok(tree)
    }

    /// The versioned package that a kernel's meta package stands for.
    pub(super) fn kernel_of(&self, meta: &str) -> Result<String> {
        self.versioned(meta, "linux-image-")
    }

    /// The package that `meta` depends on whose name begins with `prefix`.
    pub(super) fn versioned(&self, meta: &str, prefix: &str) -> Result<String> {
        self.update()?;
        let output = self.apt("apt-cache")?.args(["depends", meta]).output()?;
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter_map(|line| line.trim().trim_start_matches('|').strip_prefix("Depends: "))
            .find(|name| name.starts_with(prefix) && !name.contains("-unsigned"))
            .map(str::to_owned)
            .with_context(|| format!("apt knows no package {meta}"))
    }

    fn apt(&self, program: &str) -> Result<Command> {
        let lists = self.folder.join("lists");
        let cache = self.folder.join("cache");
        fs::create_dir_all(lists.join("partial"))?;
        fs::create_dir_all(cache.join("archives/partial"))?;
        let mut command = Command::new(program);
        command
            .args(["-o", "APT::Architectures::=amd64", "-o", "APT::Architectures::=i386"])
            .arg("-o")
            .arg(format!("Dir::State::Lists={}", lists.display()))
            .arg("-o")
            .arg(format!("Dir::Cache={}", cache.display()))
            // Root would otherwise download as a user who may not write here.
            .args(["-o", "APT::Sandbox::User=root"]);
        Ok(command)
    }

    fn update(&self) -> Result<()> {
        if !self.fresh.replace(true) {
            println!("guests: reading package lists");
            // A source that fails may be one that is not needed; the download tells.
            let _ = self.apt("apt-get")?.args(["-qq", "update"]).output()?;
        }
        Ok(())
    }
}

/// The one file below `folder` whose name begins with `prefix`.
pub(super) fn only_file(folder: &Path, prefix: &str) -> Result<PathBuf> {
    fs::read_dir(folder)
        .with_context(|| format!("cannot list {}", folder.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))
        })
        .with_context(|| format!("{} has nothing called {prefix}*", folder.display()))
}
