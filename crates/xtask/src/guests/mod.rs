//! `cargo xtask guests`: disks, CDs and kernels that tests boot, made from Debian packages.
//!
//! Packages are downloaded and unpacked below `guest/images`, never installed, and each image is made
//! once: a recipe that changes gets a new name for its stamp. Only the disks with a Debian system need to be
//! made by root, for debootstrap.
//!
//! | module | what it makes |
//! |---|---|
//! | `packages` | the packages, unpacked |
//! | `bench_tools` | programs for `cargo xtask bench cpu`, which no test needs: made when it asks |
//! | `boot_media` | CDs, a floppy disk, and kernels as they are in packages |
//! | `display` | an initramfs with drivers of graphics adapters |
//! | `input` | an initramfs with drivers of input devices |
//! | `languages` | a disk with compilers and virtual machines of many languages: 2 GB, made when asked for by name |
//! | `nested` | Linux that runs guests by KVM |
//! | `platform` | Linux with drivers for the PC itself, and tools that show it |
//! | `programs` | programs of packages in an initramfs |
//! | `storage` | Linux with drivers for all disks, and tools |
//! | `workloads` | programs whose results in a guest are compared with the host's |
//! | `debian` | a disk with GRUB for BIOS and UEFI and a Debian system |

mod bench_tools;
mod boot_media;
mod debian;
mod display;
mod input;
mod languages;
mod nested;
mod packages;
mod platform;
mod programs;
mod storage;
mod workloads;

use crate::workspace;
use anyhow::{Context as _, Result, bail};
use packages::Packages;
use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Makes one image: the name of its file or folder below `guest/images`, the version of its recipe, and
/// the recipe.
struct Recipe {
    file: &'static str,
    version: u32,
    make: fn(&Kitchen, &Path) -> Result<()>,
}

/// `storage-linux` and the initramfs with its modules are of one package: they change together.
const RECIPES: &[Recipe] = &[
    Recipe { file: "memtest.iso", version: 1, make: boot_media::memtest },
    Recipe { file: "ipxe.iso", version: 1, make: boot_media::ipxe },
    Recipe { file: "isolinux.iso", version: 1, make: boot_media::isolinux },
    Recipe { file: "floppy.img", version: 1, make: boot_media::floppy },
    Recipe { file: "installer-linux", version: 1, make: boot_media::installer_kernel },
    Recipe { file: "installer-initrd", version: 1, make: boot_media::installer_initrd },
    Recipe { file: "xen", version: 1, make: boot_media::xen },
    Recipe { file: "linux-686", version: 1, make: boot_media::kernel_686 },
    Recipe { file: "initramfs-686", version: 1, make: boot_media::initramfs_686 },
    Recipe { file: "storage-linux", version: 2, make: storage::kernel },
    Recipe { file: "storage-initramfs", version: 2, make: storage::initramfs },
    Recipe { file: "input-initramfs", version: 2, make: input::initramfs },
    Recipe { file: "display-initramfs", version: 1, make: display::initramfs },
    Recipe { file: "platform-initramfs", version: 1, make: platform::initramfs },
    Recipe { file: "nested-initramfs", version: 1, make: nested::initramfs },
    Recipe { file: "workloads", version: 1, make: workloads::folder },
    Recipe { file: "workloads-initramfs", version: 1, make: workloads::initramfs },
    Recipe { file: "debian.img", version: 3, make: debian::disk },
];

/// What takes more to make than most want: only made if asked for by name.
const BY_NAME: &[Recipe] = &[Recipe { file: "languages.img", version: 1, make: languages::disk }];

const BENCH_TOOLS: Recipe = Recipe { file: "bench-tools", version: 1, make: bench_tools::folder };

/// Where images are made, and from what.
struct Kitchen {
    images: PathBuf,
    packages: Packages,
}

impl Kitchen {
    fn new() -> Result<Self> {
        let images = workspace().join("guest/images");
        fs::create_dir_all(&images)?;
        Ok(Self { packages: Packages::new(&images), images })
    }

    /// A folder for one image's ingredients, empty.
    fn scratch(&self, name: &str) -> Result<PathBuf> {
        let folder = self.images.join("scratch").join(name);
        if folder.exists() {
            fs::remove_dir_all(&folder)
                .with_context(|| format!("cannot empty {}", folder.display()))?;
        }
        fs::create_dir_all(&folder)?;
        Ok(folder)
    }
}

/// Makes the images with these names, or all that tests boot without being asked. One that can't be made does not
/// keep the others from it.
pub(crate) fn make(names: &[String]) -> Result<()> {
    let kitchen = Kitchen::new()?;
    let all = || RECIPES.iter().chain(BY_NAME);
    if let Some(name) = names.iter().find(|name| !all().any(|r| r.file == **name)) {
        let known: Vec<&str> = all().map(|recipe| recipe.file).collect();
        bail!("there is no guest '{name}'; there are {}", known.join(", "));
    }
    let mut failures = Vec::new();
    let wanted: Vec<&Recipe> = match names {
        [] => RECIPES.iter().collect(),
        names => all().filter(|recipe| names.iter().any(|name| name == recipe.file)).collect(),
    };
    for recipe in wanted {
        if let Err(error) = bake(&kitchen, recipe) {
            println!("guests: no {}: {error:#}", recipe.file);
            failures.push(recipe.file);
        }
    }
    if !failures.is_empty() {
        bail!("could not make {}", failures.join(", "));
    }
    println!("guests: all images are in {}", kitchen.images.display());
    Ok(())
}

/// The folder with the programs that benchmarks run, made if it isn't there.
pub(crate) fn bench_tools() -> Result<PathBuf> {
    let kitchen = Kitchen::new()?;
    bake(&kitchen, &BENCH_TOOLS)?;
    Ok(kitchen.images.join(BENCH_TOOLS.file))
}

fn bake(kitchen: &Kitchen, recipe: &Recipe) -> Result<()> {
    let image = kitchen.images.join(recipe.file);
    let stamp = kitchen.images.join(format!(".{}.version", recipe.file));
    let version = recipe.version.to_string();
    if image.exists() && fs::read_to_string(&stamp).is_ok_and(|present| present == version) {
        return Ok(());
    }
    println!("guests: making {}", recipe.file);
    let unfinished = kitchen.images.join(format!(".{}.unfinished", recipe.file));
    remove(&unfinished)?;
    (recipe.make)(kitchen, &unfinished)?;
    remove(&image)?;
    fs::rename(&unfinished, &image)?;
    fs::write(stamp, version)?;
    Ok(())
}

/// Removes a file or a folder, if there is one.
fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Runs a program and fails, with what it said, if it does.
fn run(program: impl AsRef<OsStr>, arguments: &[impl AsRef<OsStr>]) -> Result<()> {
    let program = program.as_ref();
    let name = program.to_string_lossy();
    // Some are outside the PATH of ordinary users.
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .env("LC_ALL", "C")
        .output()
        .with_context(|| format!("cannot run {name}"))?;
    if !output.status.success() {
        let told = String::from_utf8_lossy(&output.stderr);
        let last: Vec<&str> = told.trim().lines().rev().take(3).collect();
        bail!("{name} failed ({}): {}", output.status, last.join(" / "));
    }
    Ok(())
}
