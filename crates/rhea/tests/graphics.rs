//! Graphics adapters as Linux in the guest drives them: the frame buffer's console, and modes that a
//! program sets.
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

/// The console on the frame buffer shows text, in its font and colours, at this size.
fn shows_a_console(vm: &mut Vm, size: (usize, usize)) -> Result<Picture> {
    vm.serial.run(
        "printf '\\033[?25l\\033[2J\\033[HHello, frame buffer\\n\
         \\033[1;37;41mwhite on red' > /dev/tty1; sleep 1",
    )?;
    vm.wait_screen("Hello, frame buffer")?;
    let picture = vm.screen()?;
    ensure!((picture.width, picture.height) == size, "{} x {}", picture.width, picture.height);
    ensure!(picture.text(16)?[1] == "white on red", "{:#?}", picture.text(16)?);
    ensure!(picture.pixel(0, 16) == [0xaa, 0, 0], "{:?}", picture.pixel(0, 16));
    Ok(picture)
}

/// The number of the connector with a monitor on it, of all that `modetest` lists.
fn connector(list: &str) -> Result<&str> {
    let row = list.lines().find(|row| row.contains("\tconnected"));
    row.and_then(|row| row.split_whitespace().next()).context("nothing is connected")
}

/// A program shows bars in this mode; afterwards there is the console again.
fn shows_bars(vm: &mut Vm, driver: &str, mode: &str) -> Result<()> {
    let list = vm.serial.run(&format!("modetest -M {driver} -c"))?;
    let connector = connector(&list)?;
    // It shows them until it can read a line.
    vm.serial.run(&format!(
        "(sleep 10000 | modetest -M {driver} -s {connector}:{mode} > /tmp/bars 2>&1; \
         touch /tmp/over) & true"
    ))?;
    let (width, height) = mode.split_once('x').context("a mode")?;
    let size = (width.parse::<usize>()?, height.parse::<usize>()?);
    // SMPTE's colour bars: seven of them, from grey to blue.
    let colors = [0xc0c0c0, 0xc0c000, 0x00c0c0, 0x00c000, 0xc000c0, 0xc00000, 0x0000c0_u32];
    let end = std::time::Instant::now() + testkit::deadline();
    loop {
        let picture = vm.screen()?;
        if (picture.width, picture.height) == size {
            let seen = (0..7).map(|i| picture.pixel((2 * i + 1) * size.0 / 14, size.1 / 3));
            let seen: Vec<u32> = seen.map(|[r, g, b]| u32::from_be_bytes([0, r, g, b])).collect();
            if seen == colors {
                break;
            }
            ensure!(std::time::Instant::now() < end, "{seen:06x?}");
        }
        let over = vm.serial.run("cat /tmp/over /tmp/bars; true")?;
        ensure!(std::time::Instant::now() < end, "{mode} is never shown: {over}");
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    vm.serial.run("killall sleep; until [ -e /tmp/over ]; do sleep 1; done; rm /tmp/over")?;
    vm.wait_screen("Hello, frame buffer")?;
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
fn virtio_gpu_has_a_console_and_modes() {
    let device = "virtio-gpu-pci,id=gpu,xres=1024,yres=600,max_outputs=2";
    with_guest("virtio_gpu", &["-device", device], |vm| {
        shows_a_console(vm, (1024, 600))?;
        let list = vm.serial.run("modetest -M virtio_gpu -c")?;
        ensure!(list.contains("#0 1024x600"), "{list}");
        ensure!(list.lines().filter(|row| row.contains("\tdisconnected")).count() == 1, "{list}");
        for mode in ["800x600", "1024x768"] {
            shows_bars(vm, "virtio_gpu", mode)?;
        }
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
        shows_bars(vm, "virtio_gpu", "1024x768")?;
        ensure_no_trouble(vm)
    });
}

#[test]
fn bochs_drm_drives_the_standard_vga() {
    with_guest("bochs_drm", &["-vga", "std"], |vm| {
        shows_a_console(vm, (1280, 800))?;
        shows_bars(vm, "bochs-drm", "1024x768")?;
        ensure_no_trouble(vm)
    });
}
