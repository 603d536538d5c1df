//! Linux with disks and CD-ROM drives on SCSI, IDE and Serial ATA.
//!
//! The guest comes from `cargo xtask guests storage-linux storage-initramfs isolinux.iso`; without it
//! these tests are skipped, loudly. `RHEA_BIN=qemu-system-x86_64` proves the tests on QEMU.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use testkit::{Guest, Vm, VmBuilder};

/// Bytes of the disk.
const DISK: usize = 32 << 20;

/// The guest, and a CD.
struct Images {
    guest: Guest,
    cd: PathBuf,
}

impl Images {
    fn find() -> Option<Self> {
        let folder = testkit::workspace().join("guest/images");
        let guest = Guest {
            kernel: folder.join("storage-linux"),
            initrd: folder.join("storage-initramfs"),
        };
        let cd = folder.join("isolinux.iso");
        let all = [&guest.kernel, &guest.initrd, &cd];
        all.iter().all(|path| path.is_file()).then_some(Self { guest, cd })
    }
}

/// Runs `body` with the images, or skips the test.
fn with_images(name: &str, body: impl FnOnce(&Images) -> Result<()>) {
    match Images::find() {
        None => testkit::skip(name, "no images: run `cargo xtask guests`"),
        Some(images) => testkit::run(name, || body(&images)),
    }
}

/// A disk whose blocks all differ.
fn make_disk(path: &Path) -> Result<()> {
    let words = (0..DISK as u64 / 8).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    fs::write(path, words.flatten().collect::<Vec<u8>>()).context("the disk")
}

fn md5(path: &Path) -> Result<String> {
    let output = Command::new("md5sum").arg(path).output().context("cannot run md5sum")?;
    let text = String::from_utf8(output.stdout)?;
    Ok(text.split_whitespace().next().context("a checksum")?.to_owned())
}

/// Boots the guest with a disk on a device of `disk` and the CD on one of `cd`, both to be completed with
/// `,drive=`, behind `adapter`.
fn boot(binary: &Path, images: &Images, adapter: &str, disk: &str, cd: &str) -> Result<Vm> {
    let builder = VmBuilder::new(binary)?;
    let path = builder.path("disk.raw");
    make_disk(&path)?;
    let drives = [
        format!("file={},format=raw,if=none,id=disk0", path.display()),
        format!("file={},format=raw,if=none,id=cd0,readonly=on", images.cd.display()),
    ];
    let devices = [format!("{disk},drive=disk0"), format!("{cd},drive=cd0,id=cd")];
    let mut vm = builder
        .args(["-device", adapter, "-drive", &drives[0], "-device", &devices[0]])
        .args(["-drive", &drives[1], "-device", &devices[1]])
        .linux(&images.guest, "commands")
        .spawn()?;
    vm.serial.wait_for("rhea-guest: commands\r\n")?;
    // Adapters look for their devices in the background.
    vm.serial.run("while ! [ -b /dev/sda -a -b /dev/sr0 ]; do sleep 1; done")?;
    Ok(vm)
}

/// What the disk holds comes to the guest, and what it writes comes to the disk, past its caches.
fn disk_works(vm: &mut Vm) -> Result<()> {
    let disk = vm.path("disk.raw");
    let size = vm.serial.run("cat /sys/block/sda/size")?;
    ensure!(size == (DISK / 512).to_string(), "{size} sectors");
    ensure!(vm.serial.run("md5sum < /dev/sda | cut -d ' ' -f 1")? == md5(&disk)?);
    vm.serial.run("dd if=/dev/urandom of=/tmp/data bs=1M count=5 2>/dev/null")?;
    vm.serial.run("dd if=/tmp/data of=/dev/sda bs=64k seek=17 conv=fsync 2>/dev/null")?;
    vm.serial.run("echo 3 > /proc/sys/vm/drop_caches")?;
    let wrote = vm.serial.run("md5sum < /tmp/data")?;
    let read = "dd if=/dev/sda iflag=direct bs=64k skip=17 count=80 2>/dev/null | md5sum";
    ensure!(vm.serial.run(read)? == wrote);
    // Single blocks, at the ends too.
    let last = DISK / 512 - 1;
    vm.serial.run(&format!(
        "dd if=/dev/urandom of=/dev/sda oflag=direct bs=512 seek={last} count=1 2>/dev/null"
    ))?;
    vm.serial.run("sync; echo 3 > /proc/sys/vm/drop_caches")?;
    ensure!(vm.serial.run("md5sum < /dev/sda | cut -d ' ' -f 1")? == md5(&disk)?);
    Ok(())
}

/// The CD is mounted and read; guest and user open the tray and change what is in it.
fn cd_works(vm: &mut Vm, images: &Images) -> Result<()> {
    ensure!(vm.serial.run("md5sum < /dev/sr0 | cut -d ' ' -f 1")? == md5(&images.cd)?);
    vm.serial.run("mount -t iso9660 -o ro /dev/sr0 /mnt 2>/dev/null")?;
    let configuration = vm.serial.run("cat /mnt/isolinux/isolinux.cfg")?;
    ensure!(configuration.contains("removable media"), "{configuration}");
    vm.qmp()?;
    vm.serial.run("umount /mnt")?;
    // Linux would close the tray whenever the drive is opened.
    vm.serial.run("echo 0 > /proc/sys/dev/cdrom/autoclose")?;
    vm.serial.run("sg_start --eject /dev/sr0")?;
    let moved = vm.qmp()?.event("DEVICE_TRAY_MOVED")?;
    ensure!(moved["data"]["tray-open"] == true, "{moved}");
    let refused =
        vm.serial.run("if dd if=/dev/sr0 of=/tmp/x count=1 2>/dev/null; then echo read; fi")?;
    ensure!(refused.is_empty(), "read from an open tray");
    // Another disc, of the user's.
    let other = vm.path("other.iso");
    fs::write(&other, vec![b'x'; 4096])?;
    let change = json!({"id": "cd", "filename": other, "format": "raw"});
    vm.qmp()?.execute("blockdev-change-medium", change)?;
    let moved = vm.qmp()?.event("DEVICE_TRAY_MOVED")?;
    ensure!(moved["data"]["tray-open"] == false, "{moved}");
    // The first command is told that the medium changed.
    let read = "until dd if=/dev/sr0 bs=2048 2>/dev/null > /tmp/x && [ -s /tmp/x ]; do sleep 1; done; \
                wc -c < /tmp/x; head -c 4 /tmp/x";
    let read = vm.serial.run(read)?;
    ensure!(read == "4096\nxxxx", "{read}");
    Ok(())
}

#[test]
fn virtio_scsi_has_a_disk_and_a_cd() {
    with_images("virtio_scsi_has_a_disk_and_a_cd", |images| {
        let adapter = "virtio-scsi-pci,id=scsi0";
        let disk = "scsi-hd,bus=scsi0.0,scsi-id=2,lun=0";
        let binary = testkit::binary(env!("CARGO_BIN_EXE_rhea"));
        let mut vm = boot(&binary, images, adapter, disk, "scsi-cd,bus=scsi0.0,scsi-id=3,lun=1")?;
        disk_works(&mut vm)?;
        // A reset of the unit leaves a unit that works.
        vm.serial.run("sg_reset -d /dev/sda > /dev/null")?;
        vm.serial.run("dd if=/dev/sda of=/dev/null iflag=direct bs=4k count=10 2>/dev/null")?;
        cd_works(&mut vm, images)
    });
}

#[test]
fn drives_of_scsi_bring_their_adapter() {
    with_images("drives_of_scsi_bring_their_adapter", |images| {
        let builder = VmBuilder::new(&testkit::binary(env!("CARGO_BIN_EXE_rhea")))?;
        let disk = builder.path("disk.raw");
        make_disk(&disk)?;
        let drives = [
            format!("file={},format=raw,if=scsi", disk.display()),
            format!("file={},format=raw,if=scsi,media=cdrom", images.cd.display()),
        ];
        let mut vm = builder
            .args(["-drive", &drives[0], "-drive", &drives[1]])
            .linux(&images.guest, "commands")
            .spawn()?;
        vm.serial.wait_for("rhea-guest: commands\r\n")?;
        vm.serial.run("while ! [ -b /dev/sda -a -b /dev/sr0 ]; do sleep 1; done")?;
        for (node, target, image) in [("sda", 0, &disk), ("sr0", 1, &images.cd)] {
            let read = vm.serial.run(&format!("md5sum < /dev/{node} | cut -d ' ' -f 1"))?;
            ensure!(read == md5(image)?, "{node}");
            let device = vm.serial.run(&format!("readlink -f /sys/block/{node}/device"))?;
            ensure!(device.contains("virtio") && device.ends_with(&format!(":0:{target}:0")));
        }
        Ok(())
    });
}

#[test]
fn ide_has_a_disk_and_a_cd() {
    with_images("ide_has_a_disk_and_a_cd", |images| {
        let binary = testkit::binary(env!("CARGO_BIN_EXE_rhea"));
        // The controller is the board's own; what stands in its place has nothing to do with disks.
        let (disk, cd) = ("ide-hd,bus=ide.0,unit=0", "ide-cd,bus=ide.1,unit=0");
        let mut vm = boot(&binary, images, "virtio-rng-pci", disk, cd)?;
        let modes = vm.serial.run("cat /sys/class/ata_device/dev*/dma_mode")?;
        ensure!(modes.matches("MW_DMA_2").count() == 2, "both devices use DMA: {modes}");
        disk_works(&mut vm)?;
        cd_works(&mut vm, images)
    });
}

#[test]
fn ahci_has_a_disk_and_a_cd() {
    with_images("ahci_has_a_disk_and_a_cd", |images| {
        let binary = testkit::binary(env!("CARGO_BIN_EXE_rhea"));
        let mut vm =
            boot(&binary, images, "ahci,id=sata", "ide-hd,bus=sata.0", "ide-cd,bus=sata.3")?;
        let depth = vm.serial.run("cat /sys/block/sda/device/queue_depth")?;
        ensure!(depth == "32", "queued commands are used: {depth}");
        disk_works(&mut vm)?;
        cd_works(&mut vm, images)
    });
}

/// Boots the guest with a disk of 1 MiB, called `disk.raw`, and the CD on USB, which is slow.
fn boot_usb(binary: &Path, images: &Images) -> Result<Vm> {
    let builder = VmBuilder::new(binary)?;
    let path = builder.path("disk.raw");
    make_disk(&path)?;
    fs::File::options().write(true).open(&path)?.set_len(1 << 20)?;
    let drives = [
        format!("file={},format=raw,if=none,id=disk0", path.display()),
        format!("file={},format=raw,if=none,id=cd0,media=cdrom", images.cd.display()),
    ];
    let mut vm = builder
        .args(["-usb", "-drive", &drives[0], "-device", "usb-storage,drive=disk0,removable=on"])
        .args(["-drive", &drives[1], "-device", "usb-storage,drive=cd0,serial=R123"])
        .linux(&images.guest, "commands")
        .spawn()?;
    vm.serial.wait_for("rhea-guest: commands\r\n")?;
    vm.serial.run("while ! [ -b /dev/sda -a -b /dev/sr0 ]; do sleep 1; done")?;
    Ok(vm)
}

#[test]
fn usb_has_a_disk_and_a_cd() {
    with_images("usb_has_a_disk_and_a_cd", |images| {
        let mut vm = boot_usb(&testkit::binary(env!("CARGO_BIN_EXE_rhea")), images)?;
        let disk = vm.path("disk.raw");
        for (node, image) in [("sda", &disk), ("sr0", &images.cd)] {
            let read = vm.serial.run(&format!("md5sum < /dev/{node} | cut -d ' ' -f 1"))?;
            ensure!(read == md5(image)?, "{node}");
        }
        ensure!(vm.serial.run("cat /sys/block/sda/removable")? == "1");
        vm.serial.run("dd if=/dev/urandom of=/tmp/data bs=1k count=300 2>/dev/null")?;
        vm.serial.run("dd if=/tmp/data of=/dev/sda bs=1k seek=7 conv=fsync 2>/dev/null")?;
        let wrote = vm.serial.run("md5sum < /tmp/data | cut -d ' ' -f 1")?;
        let bytes = fs::read(&disk)?;
        let data = vm.path("data");
        fs::write(&data, &bytes[7 << 10..307 << 10])?;
        ensure!(md5(&data)? == wrote);
        // A disk says once that it has been switched on.
        let log = vm.serial.run(
            "dmesg | grep -i -E 'usb|sd.*0' | grep -i -E 'error|reset|fail' | grep -v Power-on; true",
        )?;
        ensure!(log.is_empty(), "{log}");
        Ok(())
    });
}

/// What `sg3-utils` read out of a disk and a CD-ROM drive on virtio-scsi, for each command.
const QUESTIONS: &[&str] = &[
    "sg_inq /dev/sg0",
    "sg_inq -H /dev/sg0",
    "sg_vpd /dev/sg0",
    "sg_vpd -p 0x80 -H /dev/sg0",
    "sg_vpd -p 0x83 -H /dev/sg0",
    "sg_vpd -p 0xb0 -H /dev/sg0",
    "sg_vpd -p 0xb1 -H /dev/sg0",
    "sg_vpd -p 0xb2 -H /dev/sg0",
    "sg_modes -a /dev/sg0",
    "sg_modes -a -6 -H /dev/sg0",
    "sg_readcap /dev/sg0",
    "sg_readcap -l -H /dev/sg0",
    "sg_luns /dev/sg0",
    "sg_inq /dev/sg1",
    "sg_vpd /dev/sg1",
    "sg_vpd -p 0x83 -H /dev/sg1",
    "sg_modes -a /dev/sg1",
    "sg_modes -a -6 -H /dev/sg1",
    "sg_readcap /dev/sg1",
    "sg_raw -r 20 /dev/sg1 43 02 00 00 00 00 00 00 14 00 2>&1",
    "sg_raw -r 48 /dev/sg1 43 02 02 00 00 00 00 00 30 00 2>&1",
    "sg_raw -r 34 /dev/sg1 51 00 00 00 00 00 00 00 22 00 2>&1",
    "sg_raw -r 8 /dev/sg1 bd 00 00 00 00 00 00 00 00 08 00 00 2>&1",
    "sg_raw -r 64 /dev/sg0 a3 0c 00 00 00 00 00 00 00 40 00 00 2>&1",
    "sg_raw -r 64 /dev/sg0 5e 00 00 00 00 00 00 00 40 00 2>&1",
    "sg_raw -r 64 /dev/sg0 1a 00 0a 00 40 00 2>&1",
    "sg_raw -r 64 /dev/sg0 1a 00 c8 00 40 00 2>&1",
    "sg_raw -r 512 /dev/sg0 28 00 ff ff ff ff 00 00 01 00 2>&1",
];

#[test]
fn disks_say_of_themselves_what_the_peers_say() {
    const NAME: &str = "disks_say_of_themselves_what_the_peers_say";
    let Some(peer) = testkit::peer() else {
        testkit::skip(NAME, "no qemu-system-x86_64");
        return;
    };
    with_images(NAME, |images| {
        let answers = |binary: &Path| -> Result<Vec<String>> {
            let adapter = "virtio-scsi-pci,id=scsi0";
            let disk = "scsi-hd,bus=scsi0.0,serial=R123,wwn=0x5000c50015ea71ac";
            let mut vm = boot(binary, images, adapter, disk, "scsi-cd,bus=scsi0.0")?;
            let answer = |question: &&str| vm.serial.run(&format!("{question}; true"));
            QUESTIONS.iter().map(answer).collect()
        };
        let ours = answers(&testkit::binary(env!("CARGO_BIN_EXE_rhea")))?;
        let theirs = answers(&peer)?;
        for ((question, ours), theirs) in QUESTIONS.iter().zip(ours).zip(theirs) {
            ensure!(ours == theirs, "{question}\nours:\n{ours}\ntheirs:\n{theirs}");
        }
        Ok(())
    });
}
