//! Machines that start in firmware. SeaBIOS writes its log to port 0x402, where the debug console is
//! put; so does the boot sector that it starts. Needs Debian's package `seabios`; see `linux.rs` for
//! `RHEA_BIN`.

use anyhow::{Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use testkit::{VmBuilder, skip};

const SEABIOS: &str = "/usr/share/seabios/bios-256k.bin";

fn binary() -> PathBuf {
    testkit::binary(env!("CARGO_BIN_EXE_rhea"))
}

/// A machine with the debug console on its standard output, unless firmware is missing.
fn with_firmware(name: &str, body: impl FnOnce(VmBuilder) -> Result<()>) {
    if !Path::new(SEABIOS).is_file() {
        return skip(name, "SeaBIOS is not installed (Debian package seabios)");
    }
    testkit::run(name, || {
        let builder = VmBuilder::bare(&binary())?.args(["-nodefaults", "-display", "none"]);
        body(builder.args(["-debugcon", "stdio", "-global", "isa-debugcon.iobase=0x402"]))
    });
}

/// A disk whose boot sector writes `text` to the debug console.
fn boot_disk(path: &Path, text: &str) -> Result<()> {
    // mov dx, 0x402; then mov al, letter; out dx, al for each; at last hlt; jmp $-1
    let mut sector = vec![0xba, 0x02, 0x04];
    for letter in text.bytes() {
        sector.extend([0xb0, letter, 0xee]);
    }
    sector.extend([0xf4, 0xeb, 0xfd]);
    ensure!(sector.len() < 440);
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    sector.resize(1 << 20, 0);
    fs::write(path, sector)?;
    Ok(())
}

/// It is said, and no reason not to start.
#[test]
fn a_boot_splash_that_is_not_there_is_done_without() {
    with_firmware("a_boot_splash_that_is_not_there_is_done_without", |builder| {
        let image = builder.path("disk.raw");
        boot_disk(&image, "<sector>")?;
        let drive = format!("file={},format=raw,if=ide,index=0", image.display());
        let splash = "menu=off,splash=/nowhere/splash.jpg";
        let mut vm = builder.args(["-drive", &drive, "-boot", splash]).spawn()?;
        vm.serial.wait_for("<sector>")?;
        let said = vm.stderr();
        ensure!(said.contains("warning: -boot splash=/nowhere/splash.jpg: "), "{said}");
        Ok(())
    });
}

/// SeaBIOS comes up by way of fw_cfg, shadow RAM, the tables' script and system management mode, and
/// starts what `bootindex` says.
#[test]
fn seabios_boots_the_first_disk_of_the_boot_order() {
    with_firmware("seabios_boots_the_first_disk_of_the_boot_order", |mut builder| {
        for (n, index) in [(0, 2), (1, 1)] {
            let image = builder.path(&format!("disk{n}.raw"));
            boot_disk(&image, &format!("<sector of disk {n}>"))?;
            let drive = format!("file={},format=raw,if=none,id=d{n}", image.display());
            let device = format!("virtio-blk-pci,drive=d{n},bootindex={index}");
            builder = builder.args(["-drive", &drive, "-device", &device]);
        }
        let mut vm = builder.spawn()?;
        let log = vm.serial.wait_for("<sector of disk 1>")?;
        for line in [
            "Found QEMU fw_cfg",
            "QEMU fw_cfg DMA interface supported",
            "qemu/e820: addr 0x0000000000000000 len 0x0000000008000000 [RAM]",
            "Moving pm_base to 0x600",
            "ACPI: parse DSDT",
            "Booting from Hard Disk...",
        ] {
            ensure!(log.contains(line), "'{line}' is missing");
        }
        ensure!(!log.contains("<sector of disk 0>"));
        Ok(())
    });
}

/// An option ROM of one sector whose initialisation writes `text` to the debug console.
fn option_rom(text: &str) -> Vec<u8> {
    // The signature, the size in sectors, and the entry: mov dx, 0x402; then mov al, letter; out dx, al for
    // each; at last retf.
    let mut rom = vec![0x55, 0xaa, 1, 0xba, 0x02, 0x04];
    for letter in text.bytes() {
        rom.extend([0xb0, letter, 0xee]);
    }
    rom.push(0xcb);
    rom.resize(512, 0);
    // All bytes add up to zero.
    let sum = rom.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    rom[511] = sum.wrapping_neg();
    rom
}

#[test]
fn option_roms_run_before_the_disk_is_booted() {
    with_firmware("option_roms_run_before_the_disk_is_booted", |mut builder| {
        for name in ["one", "two"] {
            let rom = builder.path(name);
            fs::write(&rom, option_rom(&format!("<rom {name}>")))?;
            builder = builder.args(["-option-rom", &rom.display().to_string()]);
        }
        let image = builder.path("disk.raw");
        boot_disk(&image, "<sector>")?;
        let mut vm = builder.args(["-hda", &image.display().to_string()]).spawn()?;
        let log = vm.serial.wait_for("<sector>")?;
        ensure!(log.contains("<rom one>") && log.contains("<rom two>"), "{log}");
        Ok(())
    });
}

/// The same as the ROM of a PCI function, whose ids the emulator has to put in. SeaBIOS runs it if it has no
/// driver of its own for the function.
fn pci_rom(text: &str) -> Vec<u8> {
    const ENTRY: usize = 0x40;
    let plain = option_rom(text);
    // The code, without what fills up the sector.
    let code = &plain[3..=6 + 3 * text.len()];
    let mut rom = vec![0x55, 0xaa, 1, 0xeb, ENTRY as u8 - 5];
    rom.resize(0x18, 0);
    // Where the data structure is, and the structure: an image of a sector for PCs, the last.
    rom.extend([0x1c, 0, 0, 0]);
    rom.extend(b"PCIR");
    rom.extend([0, 0, 0, 0, 0, 0, 0x18, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0x80]);
    rom.resize(ENTRY, 0);
    rom.extend(code);
    rom.resize(512, 0);
    let sum = rom.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    rom[511] = sum.wrapping_neg();
    rom
}

#[test]
fn pci_functions_have_the_roms_that_they_are_given() {
    with_firmware("pci_functions_have_the_roms_that_they_are_given", |mut builder| {
        for (name, device) in [("one", "edu"), ("two", "virtio-rng-pci"), ("three", "i6300esb")] {
            let rom = builder.path(name);
            fs::write(&rom, pci_rom(&format!("<rom {name}>")))?;
            builder = builder.args(["-device", &format!("{device},romfile={}", rom.display())]);
        }
        let image = builder.path("disk.raw");
        boot_disk(&image, "<sector>")?;
        let mut vm = builder.args(["-hda", &image.display().to_string()]).spawn()?;
        let log = vm.serial.wait_for("<sector>")?;
        for name in ["one", "two", "three"] {
            ensure!(log.contains(&format!("<rom {name}>")), "{log}");
        }
        Ok(())
    });
}

#[test]
fn a_missing_bios_is_an_error_that_names_the_package() {
    testkit::run("a_missing_bios_is_an_error_that_names_the_package", || {
        let builder = VmBuilder::bare(&binary())?;
        let mut vm = builder.args(["-display", "none", "-bios", "bios-of-nobody.bin"]).spawn()?;
        ensure!(vm.wait_exit()?.code() == Some(1));
        let said = vm.stderr();
        ensure!(said.contains("could not load PC BIOS 'bios-of-nobody.bin'"), "{said}");
        ensure!(said.contains("package seabios"), "{said}");
        Ok(())
    });
}
