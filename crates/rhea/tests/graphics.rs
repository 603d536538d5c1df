//! Graphics adapters as Linux in the guest drives them: the frame buffer's console, and the modes that a
//! program sees.
//!
//! The guest comes from `cargo xtask guests storage-linux display-initramfs`; without it these tests are
//! skipped, loudly. `RHEA_BIN=qemu-system-x86_64` proves them on QEMU.

use anyhow::{Result, ensure};
use serde_json::json;
use testkit::screen::Picture;
use testkit::{Guest, Vm, VmBuilder};

/// Runs `body` in the guest with these devices, or skips the test.
fn with_guest(name: &str, devices: &[&str], body: impl FnOnce(&mut Vm) -> Result<()>) {
    let images = testkit::workspace().join("guest/images");
    let guest =
        Guest { kernel: images.join("storage-linux"), initrd: images.join("display-initramfs") };
    if !guest.kernel.is_file() || !guest.initrd.is_file() {
        let reason = "no guest: run `cargo xtask guests storage-linux display-initramfs`";
        return testkit::skip(name, reason);
    }
    testkit::run(name, || {
        let binary = testkit::binary(env!("CARGO_BIN_EXE_rhea"));
        let mut vm = VmBuilder::new(&binary)?.args(devices).linux(&guest, "commands").spawn()?;
        vm.serial.wait_for("rhea-guest: commands\r\n")?;
        body(&mut vm)
    });
}

/// The console on the frame buffer has this size and shows a line in white on red.
fn shows_a_console(vm: &mut Vm, size: (usize, usize)) -> Result<()> {
    vm.serial.run(
        "printf '\\033[?25l\\033[2J\\033[HHello, frame buffer\\n\\033[1;37;41mwhite on red' > /dev/tty1",
    )?;
    let end = std::time::Instant::now() + testkit::deadline();
    loop {
        let picture = vm.screen()?;
        let shown = (picture.width, picture.height) == size
            && picture.pixel(0, 16) == [0xaa, 0, 0]
            && (0..8 * 12).any(|x| picture.pixel(x, 24) == [0xff; 3]);
        if shown {
            return Ok(());
        }
        ensure!(std::time::Instant::now() < end, "{} x {}", picture.width, picture.height);
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
}

/// What Linux says of a driver that has trouble.
fn ensure_no_trouble(vm: &mut Vm) -> Result<()> {
    let log =
        vm.serial.run("dmesg | grep -i -E 'drm|gpu|bochs' | grep -i -E 'error|fail|warn'; true")?;
    ensure!(log.is_empty(), "{log}");
    Ok(())
}

#[test]
fn virtio_gpu_has_a_console_and_lists_modes() {
    let device = "virtio-gpu-pci,id=gpu,xres=1024,yres=600,max_outputs=2";
    with_guest("virtio_gpu", &["-device", device], |vm| {
        shows_a_console(vm, (1024, 600))?;
        let list = vm.serial.run("modetest -M virtio_gpu -c")?;
        ensure!(list.contains("#0 1024x600"), "{list}");
        ensure!(list.lines().filter(|row| row.contains("\tdisconnected")).count() == 1, "{list}");
        ensure_no_trouble(vm)?;
        // The second output shows nothing.
        let path = vm.path("second.ppm");
        let second = json!({ "filename": path, "device": "gpu", "head": 1 });
        vm.qmp()?.execute("screendump", second)?;
        let second = Picture::parse(&std::fs::read(&path)?)?;
        ensure!(second.pixels.iter().all(|&pixel| pixel == [0; 3]));
        Ok(())
    });
}

#[test]
fn virtio_vga_is_driven_as_a_virtio_gpu() {
    with_guest("virtio_vga", &["-vga", "virtio"], |vm| {
        shows_a_console(vm, (1280, 800))?;
        ensure_no_trouble(vm)
    });
}

#[test]
fn bochs_drm_drives_the_standard_vga() {
    with_guest("bochs_drm", &["-vga", "std"], |vm| {
        shows_a_console(vm, (1280, 800))?;
        ensure_no_trouble(vm)
    });
}
