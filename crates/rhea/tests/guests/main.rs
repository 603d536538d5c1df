//! Disks, CDs and kernels that were made for a PC, booted unattended and recognised by what they show.
//!
//! The images come from `cargo xtask guests`; a test without its image is skipped, loudly. With
//! `RHEA_SCREENSHOTS=docs/src/guests` each test leaves a picture of what it saw there.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Duration;
use testkit::screen::Picture;
use testkit::{Vm, VmBuilder};

fn binary() -> PathBuf {
    testkit::binary(env!("CARGO_BIN_EXE_rhea"))
}

/// Where Debian's package `ovmf` has its firmware.
const OVMF_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const OVMF_VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

/// A machine as a person would start it, but for a display, with a monitor and its first serial port
/// on standard input and output.
fn machine() -> Result<VmBuilder> {
    let builder = VmBuilder::bare(&binary())?;
    let qmp = format!("unix:{},server=on,wait=off", builder.path("qmp.sock").display());
    let builder =
        builder.args(["-display", "none", "-accel", "tcg", "-nic", "none", "-serial", "stdio"]);
    Ok(builder.args(["-qmp", &qmp]))
}

/// Runs the test called `name` with the paths of the images that it needs, or skips it.
fn with_images<const N: usize>(
    name: &str,
    images: [&str; N],
    body: impl FnOnce(VmBuilder, [String; N]) -> Result<()>,
) {
    let mut paths = [const { String::new() }; N];
    for (path, image) in paths.iter_mut().zip(images) {
        match testkit::guest_image(image) {
            Some(found) => *path = found.display().to_string(),
            None => {
                let reason = format!("no {image}: run `cargo xtask guests`");
                return testkit::skip(name, &reason);
            }
        }
    }
    testkit::run(name, || body(machine()?, paths));
}

/// Keeps a picture of the screen, if somebody wants pictures.
fn photograph(vm: &mut Vm, name: &str) -> Result<()> {
    let Some(folder) = std::env::var_os("RHEA_SCREENSHOTS") else { return Ok(()) };
    let folder = testkit::workspace().join(folder);
    std::fs::create_dir_all(&folder)?;
    let path = folder.join(format!("{name}.png"));
    vm.qmp()?.execute("screendump", json!({"filename": path, "format": "png"}))?;
    Ok(())
}

/// Presses keys together, by their QKeyCodes.
fn press(vm: &mut Vm, keys: &[&str]) -> Result<()> {
    let keys: Vec<_> = keys.iter().map(|key| json!({"type": "qcode", "data": key})).collect();
    vm.qmp()?.execute("send-key", json!({ "keys": keys }))?;
    Ok(())
}

/// Ends the machine by the monitor.
fn quit(mut vm: Vm) -> Result<()> {
    vm.qmp()?.query("quit")?;
    ensure!(vm.wait_exit()?.success());
    Ok(())
}

#[test]
fn memtest_passes_its_first_test() {
    with_images("memtest_passes_its_first_test", ["memtest.iso"], |builder, [iso]| {
        let mut vm = builder.args(["-m", "16", "-cdrom", &iso]).spawn()?;
        vm.wait_screen("Memtest86+ v6")?;
        // The first tests are over in a moment.
        let rows = vm.wait_screen("Moving inversions")?;
        ensure!(rows.iter().any(|row| row.contains("Errors: 0")), "{rows:#?}");
        photograph(&mut vm, "memtest")?;
        quit(vm)
    });
}

#[test]
fn the_installer_asks_for_a_language() {
    let images = ["installer-linux", "installer-initrd"];
    with_images("the_installer_asks_for_a_language", images, |builder, [kernel, initrd]| {
        let mut vm = builder.args(["-m", "1G", "-kernel", &kernel, "-initrd", &initrd]).spawn()?;
        // The title in the dialog's frame; the installer has a font of its own.
        let expected = testkit::workspace().join("docs/src/guests/installer.png");
        let expected = Picture::parse(&std::fs::read(expected)?)?;
        vm.wait_picture(&expected, 540..742, 16..32)?;
        photograph(&mut vm, "installer")?;
        quit(vm)
    });
}

/// Boots the Debian disk to its login prompt, logs in, and powers it off from within.
fn debian(builder: VmBuilder, name: &str) -> Result<()> {
    let mut vm = builder.args(["-m", "256"]).spawn()?;
    vm.wait_screen("GNU GRUB")?;
    photograph(&mut vm, &format!("{name}-grub"))?;
    press(&mut vm, &["ret"])?;
    vm.serial.wait_for("rhea login: ")?;
    vm.wait_screen("rhea login:")?;
    photograph(&mut vm, name)?;
    vm.serial.send("root\n")?;
    vm.serial.wait_for("root@rhea:~# ")?;
    vm.serial.send("uname -m; systemctl poweroff --force\n")?;
    vm.serial.wait_for("x86_64")?;
    ensure!(vm.wait_exit()?.success());
    Ok(())
}

#[test]
fn debian_boots_from_a_virtio_disk() {
    with_images("debian_boots_from_a_virtio_disk", ["debian.img"], |builder, [disk]| {
        let drive = format!("file={disk},format=raw,if=virtio,snapshot=on");
        debian(builder.args(["-drive", &drive]), "debian-virtio")
    });
}

#[test]
fn debian_boots_from_an_ide_disk() {
    with_images("debian_boots_from_an_ide_disk", ["debian.img"], |builder, [disk]| {
        let drive = format!("file={disk},format=raw,if=ide,snapshot=on");
        debian(builder.args(["-drive", &drive]), "debian-ide")
    });
}

#[test]
fn grub_starts_from_a_usb_disk() {
    with_images("grub_starts_from_a_usb_disk", ["debian.img"], |builder, [disk]| {
        let drive = format!("file={disk},format=raw,if=none,id=stick,snapshot=on");
        let device = "usb-storage,drive=stick,removable=on,bootindex=1";
        let mut vm = builder
            .args(["-m", "64", "-usb", "-drive", &drive, "-device", device, "-device", "usb-kbd"])
            .spawn()?;
        vm.wait_screen("GNU GRUB")?;
        // The keyboard is on the bus, too; firmware asks it for GRUB.
        press(&mut vm, &["c"])?;
        vm.wait_screen("grub>")?;
        quit(vm)
    });
}

#[test]
fn debian_boots_by_uefi() {
    const NAME: &str = "debian_boots_by_uefi";
    if !Path::new(OVMF_CODE).is_file() {
        return testkit::skip(NAME, "no OVMF: install ovmf");
    }
    with_images(NAME, ["debian.img"], |builder, [disk]| {
        let variables = builder.path("variables.fd");
        std::fs::copy(OVMF_VARIABLES, &variables).context("no OVMF_VARS_4M.fd")?;
        let code = format!("if=pflash,format=raw,readonly=on,file={OVMF_CODE}");
        let variables = format!("if=pflash,format=raw,file={}", variables.display());
        let disk = format!("file={disk},format=raw,if=virtio,snapshot=on");
        let mut vm = builder
            .args(["-m", "512", "-drive", &code, "-drive", &variables, "-drive", &disk])
            .spawn()?;
        vm.serial.wait_for("GNU GRUB")?;
        photograph(&mut vm, "ovmf-grub")?;
        vm.serial.send("\r")?;
        vm.serial.wait_for("rhea login: ")?;
        vm.wait_screen("rhea login:")?;
        photograph(&mut vm, "ovmf")?;
        vm.serial.send("root\n")?;
        vm.serial.wait_for("root@rhea:~# ")?;
        vm.serial.send("ls /sys/firmware; systemctl poweroff --force\n")?;
        vm.serial.wait_for("efi")?;
        ensure!(vm.wait_exit()?.success());
        Ok(())
    });
}

#[test]
fn ipxe_reaches_its_prompt() {
    with_images("ipxe_reaches_its_prompt", ["ipxe.iso"], |builder, [iso]| {
        let mut vm = builder.args(["-m", "64", "-cdrom", &iso]).spawn()?;
        vm.wait_screen("iPXE initialising devices")?;
        // It looks for this key once, for a moment.
        let mut rows = Vec::new();
        for _ in 0..600 {
            press(&mut vm, &["ctrl", "b"])?;
            rows = vm.screen()?.text(16)?;
            if rows.iter().any(|row| row.starts_with("iPXE>")) {
                photograph(&mut vm, "ipxe")?;
                return quit(vm);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        anyhow::bail!("no prompt: {rows:#?}")
    });
}

#[test]
fn a_32_bit_kernel_runs_busybox() {
    let images = ["linux-686", "initramfs-686"];
    with_images("a_32_bit_kernel_runs_busybox", images, |builder, [kernel, initrd]| {
        let append = "console=tty0 console=ttyS0 panic=-1 cryptomgr.notests";
        // With a BIOS, so that there is a text mode for the kernel.
        let mut vm = builder
            .args(["-m", "128", "-no-reboot", "-kernel", &kernel, "-initrd", &initrd])
            .args(["-bios", "bios-256k.bin", "-append", append])
            .spawn()?;
        vm.serial.wait_for("machine: i686")?;
        vm.serial.wait_for("guest: ready")?;
        vm.serial.send("echo $((6 * 7))-answered\n")?;
        vm.serial.wait_for("42-answered")?;
        // The screen shows what the kernel says, and what is written to its first terminal.
        vm.serial.send("mount -t devtmpfs dev /dev\nclear > /dev/tty0\nuname -a > /dev/tty0\n")?;
        vm.wait_screen("i686 GNU/Linux")?;
        photograph(&mut vm, "linux-686")?;
        vm.serial.send("poweroff -f\n")?;
        ensure!(vm.wait_exit()?.success());
        Ok(())
    });
}

/// A hypervisor sets up what a maker's CPU of model `cpu` has, starts the second from real mode, and runs Linux
/// below the privilege that a kernel has elsewhere.
fn xen(name: &str, cpu: &str) {
    let images = ["xen", "storage-linux", "storage-initramfs"];
    with_images(name, images, |builder, [xen, linux, initramfs]| {
        let words = "console=hvc0 cryptomgr.notests rhea.test=smp";
        let modules = format!("{linux} {words},{initramfs}");
        let mut vm = builder
            .args(["-m", "512", "-smp", "2", "-cpu", cpu, "-kernel", &xen, "-initrd", &modules])
            .args(["-append", "com1=115200,8n1 console=com1"])
            .spawn()?;
        vm.serial.wait_for("Brought up 2 CPUs")?;
        vm.serial.wait_for("Dom0 has maximum 2 VCPUs")?;
        vm.serial.wait_for("rhea-guest: smp passed")?;
        ensure!(vm.wait_exit()?.success());
        Ok(())
    });
}

#[test]
fn xen_runs_linux_on_amds_cpus() {
    xen("xen_runs_linux_on_amds_cpus", "qemu64");
}

#[test]
fn xen_runs_linux_on_intels_cpus() {
    xen("xen_runs_linux_on_intels_cpus", "Haswell");
}

/// A boot loader asks what to load, on the screen and on the serial port; the kernel is memtest86+.
fn loader_with_memtest(builder: VmBuilder, loader: &str, name: &str) -> Result<()> {
    let mut vm = builder.args(["-m", "16"]).spawn()?;
    vm.wait_screen(loader)?;
    vm.wait_screen("A boot loader on removable media.")?;
    vm.wait_screen("boot:")?;
    photograph(&mut vm, name)?;
    press(&mut vm, &["ret"])?;
    vm.wait_screen("Memtest86+ v6")?;
    quit(vm)
}

#[test]
fn isolinux_boots_from_a_cd() {
    with_images("isolinux_boots_from_a_cd", ["isolinux.iso"], |builder, [iso]| {
        loader_with_memtest(builder.args(["-cdrom", &iso]), "ISOLINUX", "isolinux")
    });
}

#[test]
fn syslinux_boots_from_a_floppy_disk() {
    with_images("syslinux_boots_from_a_floppy_disk", ["floppy.img"], |builder, [image]| {
        let drive = format!("file={image},format=raw,if=floppy,snapshot=on");
        loader_with_memtest(builder.args(["-drive", &drive]), "SYSLINUX", "floppy")
    });
}

/// The stripes that the multiboot kernel paints: levels of red, green and blue, 6 bits each.
const STRIPES: [[u8; 3]; 8] = [
    [63, 63, 63],
    [63, 63, 0],
    [0, 63, 63],
    [0, 63, 0],
    [63, 0, 63],
    [63, 0, 0],
    [0, 0, 63],
    [0, 0, 0],
];
/// Pixels of the picture, one byte each: all of them are in the window at 0xa0000.
const WIDTH: u16 = 320;
const HEIGHT: u16 = 200;

/// A flat kernel behind `header`, loaded at 1 MiB, that paints [`STRIPES`], and writes `M` to the serial
/// port if it found `magic` in EAX, else `X`.
fn multiboot_kernel(header: &[u32], magic: u32) -> Vec<u8> {
    let mut image: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
    image.push(0x3d); // cmp eax, magic
    image.extend(magic.to_le_bytes());
    image.extend([
        0xb3, b'X', // mov bl, 'X'
        0x75, 0x02, // jne +2
        0xb3, b'M', // mov bl, 'M'
        0xfc, // cld
    ]);
    // The Bochs extensions: off, width, height, 8 bits a pixel, on.
    for (index, value) in [(4, 0), (1, WIDTH), (2, HEIGHT), (3, 8), (4, 1u16)] {
        image.extend([0x66, 0xba, 0xce, 0x01, 0x66, 0xb8, index, 0, 0x66, 0xef]); // out 0x1ce, index
        image.extend([0x66, 0x42, 0x66, 0xb8]); // inc dx; mov ax, value
        image.extend(value.to_le_bytes());
        image.extend([0x66, 0xef]); // out dx, ax
    }
    // The palette from its first entry on.
    image.extend([0x66, 0xba, 0xc8, 0x03, 0xb0, 0, 0xee, 0x66, 0x42]);
    for level in STRIPES.concat() {
        image.extend([0xb0, level, 0xee]); // mov al, level; out dx, al
    }
    // The attribute controller lets the picture through: in al, 0x3da; out 0x3c0, 0x20.
    image.extend([0x66, 0xba, 0xda, 0x03, 0xec, 0x66, 0xba, 0xc0, 0x03, 0xb0, 0x20, 0xee]);
    image.extend([0xbf, 0, 0, 0x0a, 0]); // mov edi, 0xa0000
    let words = u32::from(WIDTH) * u32::from(HEIGHT) / STRIPES.len() as u32 / 4;
    for stripe in 0..STRIPES.len() as u8 {
        image.extend([0xb8, stripe, stripe, stripe, stripe, 0xb9]); // mov eax, four pixels
        image.extend(words.to_le_bytes()); // mov ecx, words
        image.extend([0xf3, 0xab]); // rep stosd
    }
    image.extend([
        0x88, 0xd8, // mov al, bl
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xee, // out dx, al
        0xeb, 0xfe, // jmp $
    ]);
    image
}

fn enters_multiboot(name: &str, image: &[u8]) {
    testkit::run(name, || {
        let builder = machine()?;
        let kernel = builder.path("kernel");
        std::fs::write(&kernel, image)?;
        let kernel = kernel.display().to_string();
        let mut vm = builder.args(["-m", "32", "-kernel", &kernel]).spawn()?;
        vm.serial.wait_for("M")?;
        let picture = vm.screen()?;
        let height = usize::from(HEIGHT) / STRIPES.len();
        for (index, stripe) in STRIPES.iter().enumerate() {
            let pixel = picture.pixel(usize::from(WIDTH) / 2, index * height + height / 2);
            let bright = stripe.map(|level| level != 0);
            ensure!(pixel.map(|level| level > 0xf0) == bright, "stripe {index} is {pixel:?}");
        }
        photograph(&mut vm, name)?;
        quit(vm)
    });
}

#[test]
fn a_multiboot_kernel_is_entered() {
    const LOAD: u32 = 0x10_0000;
    let (magic, flags) = (0x1bad_b002u32, 1 << 16);
    let checksum = 0u32.wrapping_sub(magic).wrapping_sub(flags);
    let header = [magic, flags, checksum, LOAD, LOAD, 0, 0, LOAD + 32];
    enters_multiboot("multiboot", &multiboot_kernel(&header, 0x2bad_b002));
}

#[test]
fn a_kernel_that_no_firmware_starts_finds_a_text_screen() {
    const LOAD: u32 = 0x10_0000;
    let (magic, flags) = (0x1bad_b002u32, 1 << 16);
    let checksum = 0u32.wrapping_sub(magic).wrapping_sub(flags);
    let header = [magic, flags, checksum, LOAD, LOAD, 0, 0, LOAD + 32];
    let mut image: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
    image.extend([
        0x66, 0xc7, 0x05, 0, 0x80, 0x0b, 0, b'H',
        0x1f, // mov word [0xb8000], 'H' in white on blue
        0xb0, b'M', // mov al, 'M'
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xee, // out dx, al
        0xeb, 0xfe, // jmp $
    ]);
    testkit::run("a_text_screen_without_firmware", || {
        let builder = machine()?;
        let kernel = builder.path("kernel");
        std::fs::write(&kernel, &image)?;
        let kernel = kernel.display().to_string();
        let mut vm = builder.args(["-m", "32", "-kernel", &kernel]).spawn()?;
        vm.serial.wait_for("M")?;
        let picture = vm.screen()?;
        ensure!((picture.width, picture.height) == (720, 400), "{}", picture.width);
        let cell = |column: usize, colour: [u8; 3]| {
            let pixels = (0..16).flat_map(|y| (0..9).map(move |x| (9 * column + x, y)));
            pixels.filter(|&(x, y)| picture.pixel(x, y) == colour).count()
        };
        let (white, blue) = (cell(0, [0xff; 3]), cell(0, [0, 0, 0xa8]));
        ensure!(white > 30 && blue > 30 && white + blue == 9 * 16, "{white} {blue}");
        ensure!(cell(1, [0; 3]) == 9 * 16, "the rest of the screen is not blank");
        quit(vm)
    });
}

#[test]
fn a_multiboot2_kernel_is_entered() {
    const LOAD: u32 = 0x10_0000;
    let (magic, length) = (0xe852_50d6u32, 64);
    let checksum = 0u32.wrapping_sub(magic).wrapping_sub(length);
    let addresses = [2, 24, LOAD, LOAD, 0, 0];
    let entry = [3, 12, LOAD + 64, 0];
    let header = [&[magic, 0, length, checksum][..], &addresses, &entry, &[0, 8]].concat();
    enters_multiboot("multiboot2", &multiboot_kernel(&header, 0x36d7_6289));
}

/// A kernel that asks for a graphics mode finds it set, and paints the frame buffer that it is told of.
#[test]
fn a_multiboot_kernel_gets_the_graphics_mode_it_asks_for() {
    const LOAD: u32 = 0x10_0000;
    let (magic, flags) = (0x1bad_b002u32, 1 << 16 | 1 << 2);
    let checksum = 0u32.wrapping_sub(magic).wrapping_sub(flags);
    let addresses = [magic, flags, checksum, LOAD, LOAD, 0, 0, LOAD + 48];
    let header = addresses.into_iter().chain([0, 800, 600, 32]);
    let mut image: Vec<u8> = header.flat_map(u32::to_le_bytes).collect();
    image.extend([
        0xfc, // cld
        0x8b, 0x7b, 88, // mov edi, [ebx + 88]: the address
        0x8b, 0x4b, 96, // mov ecx, [ebx + 96]: bytes of a row
        0x0f, 0xaf, 0x4b, 104, // imul ecx, [ebx + 104]: rows
        0xc1, 0xe9, 2, // shr ecx, 2
        0xb8, 0x30, 0x20, 0xf0, 0, // mov eax, 0xf02030
        0xf3, 0xab, // rep stosd
        0xb0, b'M', // mov al, 'M'
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xee, // out dx, al
        0xeb, 0xfe, // jmp $
    ]);
    testkit::run("multiboot_graphics", || {
        let builder = machine()?;
        let kernel = builder.path("kernel");
        std::fs::write(&kernel, &image)?;
        let kernel = kernel.display().to_string();
        let mut vm = builder.args(["-m", "32", "-kernel", &kernel]).spawn()?;
        vm.serial.wait_for("M")?;
        let picture = vm.screen()?;
        ensure!((picture.width, picture.height) == (800, 600), "{}", picture.width);
        for (x, y) in [(0, 0), (799, 0), (400, 300), (0, 599), (799, 599)] {
            ensure!(picture.pixel(x, y) == [0xf0, 0x20, 0x30], "{x} {y}");
        }
        quit(vm)
    });
}
