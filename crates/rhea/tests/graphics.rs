//! Graphics adapters as Linux in the guest drives them: the frame buffer's console, and the modes that a
//! program sees.
//!
//! The guest comes from `cargo xtask guests storage-linux display-initramfs`; without it these tests are
//! skipped, loudly. `RHEA_BIN=qemu-system-x86_64` proves them on QEMU.

use anyhow::{Context as _, Result, ensure};
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

/// A program sets modes of the connector in `list` and paints them all over.
fn sets_modes(vm: &mut Vm, driver: &str, list: &str) -> Result<()> {
    let row = list.lines().find(|row| row.contains("\tconnected")).context("no connector")?;
    let connector = row.split('\t').next().context("no number")?.trim();
    for size in [(1920, 1080), (800, 600), (640, 480)] {
        let (width, height) = size;
        // It keeps the mode until its input ends.
        vm.serial.run(&format!(
            "(sleep 10000 & echo $! > /tmp/input; wait) | \
             modetest -M {driver} -F smpte -s {connector}:{width}x{height} > /tmp/modetest 2>&1 &"
        ))?;
        let end = std::time::Instant::now() + testkit::deadline();
        loop {
            let picture = vm.screen()?;
            // Grey, yellow and the rest to blue, 75 % of each.
            let bar = |n: usize| picture.pixel(width * (2 * n + 1) / 14, height / 4);
            if (picture.width, picture.height) == size
                && [bar(0), bar(1), bar(6)] == [[192; 3], [192, 192, 0], [0, 0, 192]]
            {
                break;
            }
            ensure!(std::time::Instant::now() < end, "{} x {}", picture.width, picture.height);
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
        vm.serial.run("kill $(cat /tmp/input); while pidof modetest; do sleep 1; done")?;
    }
    Ok(())
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
        for mode in ["5120x2160 60.00", "2560x1440 59.95", "1680x1050 59.95", "1280x720 60.00"] {
            ensure!(list.contains(mode), "no {mode}: {list}");
        }
        ensure_no_trouble(vm)?;
        sets_modes(vm, "virtio_gpu", &list)?;
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
        let list = vm.serial.run("modetest -M bochs-drm -c")?;
        ensure!(list.contains("1680x1050 59.95"), "{list}");
        ensure_no_trouble(vm)
    });
}
