//! A disk with a Debian system made by debootstrap, which GRUB starts by BIOS and by UEFI.
//!
//! ```text
//! sector 0      master boot record: GRUB's first 440 bytes, partition table
//! sector 1…     GRUB's core image, which knows ext4 and where its modules are
//! 1 MiB         EFI system partition, FAT
//! 16 MiB        root file system, ext4
//! ```
//!
//! The system is what debootstrap makes, but for: no root password, no pages of documentation, and an
//! initramfs with the modules of these machines' disks only (`MODULES=list`).

use super::{Kitchen, run};
use anyhow::{Context as _, Result, bail};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

const SECTOR: u64 = 512;
const ESP_START: u64 = 1 << 20;
const ROOT_START: u64 = 16 << 20;
/// Size of the root file system in bytes; most of it stays a hole.
const ROOT_SIZE: u64 = 768 << 20;
/// The file system's name, by which the kernel and GRUB find it on any disk.
const LABEL: &str = "rhea-root";
pub(super) const MIRROR: &str = "http://deb.debian.org/debian";
const INCLUDE: &str = "systemd-sysv,udev,kmod,initramfs-tools,linux-image-cloud-amd64,\
                       pciutils,dmidecode";

/// What GRUB needs until it can read its modules, wherever it was started from.
const GRUB_MODULES: &[&str] = &["part_msdos", "ext2", "search", "search_label", "normal"];

const GRUB_CONFIGURATION: &str = "\
serial --unit=0 --speed=115200
terminal_input console serial
terminal_output console serial
# By UEFI the kernel's console takes over the mode of the screen that GRUB tells it of.
if [ $grub_platform = efi ]; then insmod efi_gop; fi
set timeout=5
set default=0
menuentry 'Debian GNU/Linux' {
    search --no-floppy --label --set=root rhea-root
    linux /vmlinuz root=LABEL=rhea-root ro quiet console=tty0 console=ttyS0,115200
    initrd /initrd.img
}
menuentry 'Power off' {
    halt
}
";

/// What GRUB runs first: it looks for the file system that has the rest.
const GRUB_START: &str = "\
search --no-floppy --label --set=root rhea-root
set prefix=($root)/boot/grub
configfile /boot/grub/grub.cfg
";

pub(super) fn disk(kitchen: &Kitchen, image: &Path) -> Result<()> {
    let folder = kitchen.scratch("debian")?;
    let root = folder.join("root");
    install(kitchen, &root, INCLUDE)?;
    configure(&root)?;
    let core = folder.join("core.img");
    grub(kitchen, &root, &folder, &core)?;
    let root_image = folder.join("root.ext4");
    file_system(&root, &root_image, ROOT_SIZE, LABEL)?;
    let esp = folder.join("esp.fat");
    make_esp(kitchen, &folder, &esp)?;

    let pc = kitchen.packages.unpacked("grub-pc-bin")?.join("usr/lib/grub/i386-pc");
    let mut disk = File::create(image)?;
    disk.set_len(ROOT_START + ROOT_SIZE)?;
    disk.write_all(&master_boot_record(&fs::read(pc.join("boot.img"))?)?)?;
    let core = fs::read(core)?;
    if SECTOR + core.len() as u64 > ESP_START {
        bail!("GRUB's core image does not fit before the first partition");
    }
    disk.write_all(&core)?;
    copy_sparse(&esp, &mut disk, ESP_START)?;
    copy_sparse(&root_image, &mut disk, ROOT_START)?;
    fs::remove_dir_all(&folder)?;
    Ok(())
}

fn is_root() -> Result<bool> {
    let status = fs::read_to_string("/proc/self/status")?;
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    Ok(uid.split_whitespace().nth(1) == Some("0"))
}

/// Has debootstrap make a system with the packages `include`, separated by commas, in folder `root`.
pub(super) fn install(kitchen: &Kitchen, root: &Path, include: &str) -> Result<()> {
    if !is_root()? {
        bail!("debootstrap has to be run as root");
    }
    let debootstrap = kitchen.packages.unpacked("debootstrap")?;
    // It finds its scripts by a variable of its environment.
    let home = format!("DEBOOTSTRAP_DIR={}", debootstrap.join("usr/share/debootstrap").display());
    let program = debootstrap.join("usr/sbin/debootstrap");
    let include = format!("--include={include}");
    println!("guests: debootstrap");
    run(
        "env",
        &[
            OsStr::new(&home),
            program.as_os_str(),
            OsStr::new("--variant=minbase"),
            OsStr::new(&include),
            OsStr::new("bookworm"),
            root.as_os_str(),
            OsStr::new(MIRROR),
        ],
    )
}

/// Runs a command of the system in folder `root`.
pub(super) fn chroot(root: &Path, command: &[&str]) -> Result<()> {
    let mut arguments = vec![root.as_os_str()];
    arguments.extend(command.iter().map(OsStr::new));
    run("chroot", &arguments)
}

fn configure(root: &Path) -> Result<()> {
    let write = |path: &str, text: &str| {
        let path = root.join(path);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    write("etc/hostname", "rhea\n")?;
    write("etc/hosts", "127.0.0.1 localhost rhea\n")?;
    write("etc/fstab", &format!("LABEL={LABEL} / ext4 errors=remount-ro 0 1\n"))?;
    write("etc/initramfs-tools/conf.d/modules", "MODULES=list\nCOMPRESS=lz4\nFSTYPE=ext4\n")?;
    write(
        "etc/initramfs-tools/modules",
        "virtio_pci\nvirtio_blk\nvirtio_scsi\nata_piix\nahci\nsd_mod\next4\n",
    )?;
    chroot(root, &["passwd", "-d", "root"])?;
    chroot(root, &["update-initramfs", "-u"])?;
    // Nobody waits for these in a test.
    chroot(root, &["systemctl", "mask", "apt-daily.timer", "apt-daily-upgrade.timer"])?;
    chroot(root, &["apt-get", "clean"])?;
    for path in ["usr/share/doc", "usr/share/man", "usr/share/locale", "var/lib/apt/lists"] {
        let _ = fs::remove_dir_all(root.join(path));
    }
    Ok(())
}

/// Puts GRUB's modules for BIOS into the system, and makes its core image.
fn grub(kitchen: &Kitchen, root: &Path, folder: &Path, core: &Path) -> Result<()> {
    let pc = kitchen.packages.unpacked("grub-pc-bin")?.join("usr/lib/grub/i386-pc");
    let efi = kitchen.packages.unpacked("grub-efi-amd64-bin")?.join("usr/lib/grub/x86_64-efi");
    for (from, name) in [(&pc, "i386-pc"), (&efi, "x86_64-efi")] {
        let to = root.join("boot/grub").join(name);
        fs::create_dir_all(&to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            let file = entry.file_name();
            let wanted = [".mod", ".lst"].iter().any(|end| file.to_string_lossy().ends_with(end));
            if wanted {
                fs::copy(entry.path(), to.join(&file))?;
            }
        }
    }
    fs::write(root.join("boot/grub/grub.cfg"), GRUB_CONFIGURATION)?;
    make_core(kitchen, folder, &pc, "i386-pc", &["biosdisk"], core)
}

/// Runs `grub-mkimage`, which is in the package of GRUB's common tools.
fn make_core(
    kitchen: &Kitchen,
    folder: &Path,
    modules: &Path,
    format: &str,
    extra: &[&str],
    image: &Path,
) -> Result<()> {
    let start = folder.join("start.cfg");
    fs::write(&start, GRUB_START)?;
    let common = kitchen.packages.unpacked("grub-common")?;
    let mut arguments = vec![
        OsStr::new("-d"),
        modules.as_os_str(),
        OsStr::new("-O"),
        OsStr::new(format),
        OsStr::new("-c"),
        start.as_os_str(),
        OsStr::new("-p"),
        OsStr::new("/boot/grub"),
        OsStr::new("-o"),
        image.as_os_str(),
    ];
    arguments.extend(GRUB_MODULES.iter().chain(extra).map(OsStr::new));
    run(common.join("usr/bin/grub-mkimage"), &arguments)
}

/// Makes an ext4 file system of `size` bytes, most of them holes, with what is in folder `root`.
pub(super) fn file_system(root: &Path, image: &Path, size: u64, label: &str) -> Result<()> {
    File::create(image)?.set_len(size)?;
    let options = ["-q", "-F", "-t", "ext4", "-L", label, "-E"];
    let mut arguments: Vec<&OsStr> = options.iter().map(OsStr::new).collect();
    arguments.push(OsStr::new("lazy_itable_init=0,lazy_journal_init=0"));
    arguments.extend([OsStr::new("-d"), root.as_os_str(), image.as_os_str()]);
    run("mke2fs", &arguments)
}

/// The EFI system partition, with GRUB as the program that removable media start.
fn make_esp(kitchen: &Kitchen, folder: &Path, esp: &Path) -> Result<()> {
    let modules = kitchen.packages.unpacked("grub-efi-amd64-bin")?.join("usr/lib/grub/x86_64-efi");
    let program = folder.join("BOOTX64.EFI");
    make_core(kitchen, folder, &modules, "x86_64-efi", &["fat"], &program)?;
    File::create(esp)?.set_len(ROOT_START - ESP_START)?;
    let fat = |program: &str, arguments: &[&str]| {
        let mut all = vec![OsStr::new("-i"), esp.as_os_str()];
        all.extend(arguments.iter().map(OsStr::new));
        run(program, &all)
    };
    fat("mformat", &["-h", "16", "-s", "63", "-T", "30720", "::"])?;
    fat("mmd", &["::/EFI", "::/EFI/BOOT"])?;
    fat("mcopy", &[&program.to_string_lossy(), "::/EFI/BOOT/BOOTX64.EFI"])
}

/// The first sector: GRUB's code up to the partition table, and the two partitions.
fn master_boot_record(boot: &[u8]) -> Result<[u8; SECTOR as usize]> {
    const CODE: usize = 440;
    const TABLE: usize = 446;
    let mut sector = [0; SECTOR as usize];
    sector[..CODE].copy_from_slice(boot.get(..CODE).context("GRUB's boot.img is short")?);
    let partitions =
        [(0xef, ESP_START, ROOT_START - ESP_START, 0), (0x83, ROOT_START, ROOT_SIZE, 0x80)];
    for (index, (kind, start, size, active)) in partitions.into_iter().enumerate() {
        let entry = &mut sector[TABLE + 16 * index..][..16];
        entry[0] = active;
        // Cylinders, heads and sectors are beyond what these fields can say.
        entry[1..4].copy_from_slice(&[0xfe, 0xff, 0xff]);
        entry[4] = kind;
        entry[5..8].copy_from_slice(&[0xfe, 0xff, 0xff]);
        entry[8..12].copy_from_slice(&((start / SECTOR) as u32).to_le_bytes());
        entry[12..16].copy_from_slice(&((size / SECTOR) as u32).to_le_bytes());
    }
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    Ok(sector)
}

/// Copies a file to `at`, leaving out blocks of zeroes.
fn copy_sparse(from: &Path, to: &mut File, at: u64) -> Result<()> {
    let mut from = File::open(from)?;
    let mut block = vec![0; 64 << 10];
    let mut offset = at;
    loop {
        let count = from.read(&mut block)?;
        if count == 0 {
            return Ok(());
        }
        if block[..count].iter().any(|&byte| byte != 0) {
            to.seek(SeekFrom::Start(offset))?;
            to.write_all(&block[..count])?;
        }
        offset += count as u64;
    }
}
