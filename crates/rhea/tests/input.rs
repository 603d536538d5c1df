//! Keyboards and pointers as Linux in the guest knows them: what it finds, and which events come out of
//! what a QMP client puts in.
//!
//! The guest comes from `cargo xtask guests storage-linux input-initramfs`; without it these tests are
//! skipped, loudly. `RHEA_BIN=qemu-system-x86_64` proves them on QEMU.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use testkit::{Guest, Vm, VmBuilder};

/// Types and codes of Linux's events.
const KEY: u16 = 1;
const RELATIVE: u16 = 2;
const ABSOLUTE: u16 = 3;
const LEFT: u16 = 0x110;
const RIGHT: u16 = 0x111;
const WHEEL: u16 = 8;

/// Runs `body` in the guest with these devices, or skips the test.
fn with_guest(name: &str, devices: &[&str], body: impl FnOnce(&mut Vm) -> Result<()>) {
    let images = testkit::workspace().join("guest/images");
    let guest =
        Guest { kernel: images.join("storage-linux"), initrd: images.join("input-initramfs") };
    if !guest.kernel.is_file() || !guest.initrd.is_file() {
        let reason = "no guest: run `cargo xtask guests storage-linux input-initramfs`";
        return testkit::skip(name, reason);
    }
    testkit::run(name, || {
        let binary = testkit::binary(env!("CARGO_BIN_EXE_rhea"));
        let mut vm = VmBuilder::new(&binary)?.args(devices).linux(&guest, "commands").spawn()?;
        vm.serial.wait_for("rhea-guest: commands\r\n")?;
        body(&mut vm)
    });
}

/// The event node of the device called `name`, once its driver has found it.
fn node(vm: &mut Vm, name: &str) -> Result<String> {
    let look = format!("grep -A5 'Name=\"{name}\"' /proc/bus/input/devices");
    let command = format!("until {look} | grep -o 'event[0-9]*'; do sleep 1; done");
    Ok(vm.serial.run(&command)?.trim().to_owned())
}

/// Type, code and value of the events of `node` that `act` causes, up to one of type and code `last` with
/// the value 0, or with any if it is no key.
fn events(
    vm: &mut Vm,
    node: &str,
    last: (u16, u16),
    act: impl FnOnce(&mut Vm) -> Result<()>,
) -> Result<Vec<(u16, u16, i32)>> {
    vm.serial.run(&format!("cat /dev/input/{node} > /tmp/events & echo $! > /tmp/reader"))?;
    // It listens once it has the file open.
    vm.serial.run(&format!(
        "until ls -l /proc/$(cat /tmp/reader)/fd | grep -q /dev/input/{node}; do sleep 1; done"
    ))?;
    act(vm)?;
    let dump = "hexdump -v -e '8/1 \"%02x\" \"\\n\"' /tmp/events";
    loop {
        let text = vm.serial.run(dump)?;
        // Each event is a time of 16 bytes, and itself.
        let rows: Vec<&str> = text.split_whitespace().collect();
        let events: Option<Vec<_>> = rows.chunks_exact(3).map(|rows| parse(rows[2])).collect();
        let events = events.with_context(|| format!("no events: {text}"))?;
        let is_last = |&(kind, code, value): &(u16, u16, i32)| {
            (kind, code) == last && (kind != KEY || value == 0)
        };
        if events.iter().any(is_last) {
            vm.serial.run("kill $(cat /tmp/reader)")?;
            let wanted = |kind: u16| matches!(kind, KEY | RELATIVE | ABSOLUTE);
            return Ok(events.into_iter().filter(|event| wanted(event.0)).collect());
        }
        vm.serial.run("sleep 1")?;
    }
}

/// An event of eight bytes in hexadecimal.
fn parse(text: &str) -> Option<(u16, u16, i32)> {
    let byte = |at: usize| u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok();
    Some((
        u16::from_le_bytes([byte(0)?, byte(1)?]),
        u16::from_le_bytes([byte(2)?, byte(3)?]),
        i32::from_le_bytes([byte(4)?, byte(5)?, byte(6)?, byte(7)?]),
    ))
}

fn send(vm: &mut Vm, events: Value) -> Result<()> {
    vm.qmp()?.execute("input-send-event", json!({ "events": events }))?;
    Ok(())
}

fn button(name: &str, down: bool) -> Value {
    json!({ "type": "btn", "data": { "button": name, "down": down } })
}

fn axis(kind: &str, axis: &str, value: i32) -> Value {
    json!({ "type": kind, "data": { "axis": axis, "value": value } })
}

/// Ctrl, the up arrow and Enter, typed as a combination, arrive in their order and go up in reverse.
fn types_a_combination(vm: &mut Vm, name: &str) -> Result<()> {
    let node = node(vm, name)?;
    let typed = events(vm, &node, (KEY, 29), |vm| {
        let keys = ["ctrl", "up", "ret"].map(|key| json!({ "type": "qcode", "data": key }));
        vm.qmp()?.execute("send-key", json!({ "keys": keys, "hold-time": 50 }))?;
        Ok(())
    })?;
    let want = [(29, 1), (103, 1), (28, 1), (28, 0), (103, 0), (29, 0)];
    let want: Vec<_> = want.into_iter().map(|(code, value)| (KEY, code, value)).collect();
    // A driver may repeat keys that are held long enough.
    let typed: Vec<_> = typed.into_iter().filter(|event| event.2 != 2).collect();
    ensure!(typed == want, "{name}: {typed:?}");
    Ok(())
}

fn moves_a_mouse(vm: &mut Vm, name: &str) -> Result<()> {
    let node = node(vm, name)?;
    let moved = events(vm, &node, (KEY, LEFT), |vm| {
        send(vm, json!([axis("rel", "x", 300), axis("rel", "y", -7)]))?;
        send(vm, json!([button("wheel-down", true)]))?;
        send(vm, json!([button("wheel-down", false)]))?;
        send(vm, json!([button("left", true)]))?;
        send(vm, json!([button("left", false)]))
    })?;
    let sum = |code| -> i32 {
        moved.iter().filter(|e| (e.0, e.1) == (RELATIVE, code)).map(|e| e.2).sum()
    };
    ensure!((sum(0), sum(1), sum(WHEEL)) == (300, -7, -1), "{name}: {moved:?}");
    let clicks: Vec<_> = moved.into_iter().filter(|event| event.0 == KEY).collect();
    ensure!(clicks == [(KEY, LEFT, 1), (KEY, LEFT, 0)], "{name}: {clicks:?}");
    Ok(())
}

fn points_with_a_tablet(vm: &mut Vm, name: &str) -> Result<()> {
    let node = node(vm, name)?;
    let pointed = events(vm, &node, (KEY, RIGHT), |vm| {
        send(vm, json!([axis("abs", "x", 100), axis("abs", "y", 0x7fff)]))?;
        send(vm, json!([axis("abs", "x", 30_000), button("right", true)]))?;
        send(vm, json!([button("right", false)]))
    })?;
    let mut want = vec![(ABSOLUTE, 0, 100), (ABSOLUTE, 1, 0x7fff), (ABSOLUTE, 0, 30_000)];
    want.extend([(KEY, RIGHT, 1), (KEY, RIGHT, 0)]);
    let (mut pointed, mut sorted) = (pointed, want);
    // The order within one moment is the driver's.
    pointed.sort_unstable();
    sorted.sort_unstable();
    ensure!(pointed == sorted, "{name}: {pointed:?}");
    let mice = vm.qmp()?.query("query-mice")?;
    let current = mice.as_array().and_then(|mice| mice.iter().find(|m| m["current"] == true));
    ensure!(current.is_some_and(|mouse| mouse["absolute"] == true), "{mice}");
    Ok(())
}

#[test]
fn a_ps2_keyboard_and_mouse_are_found_and_tell_of_their_events() {
    with_guest("ps2_devices", &[], |vm| {
        types_a_combination(vm, "AT Translated Set 2 keyboard")?;
        moves_a_mouse(vm, "ImExPS/2 Generic Explorer Mouse")
    });
}

#[test]
fn usb_devices_are_found_also_behind_a_hub_and_tell_of_their_events() {
    // The mouse and the tablet share the last port, for which a hub is made.
    let devices = ["-usb", "-device", "usb-kbd", "-device", "usb-mouse", "-device", "usb-tablet"];
    with_guest("usb_devices", &devices, |vm| {
        types_a_combination(vm, "QEMU QEMU USB Keyboard")?;
        points_with_a_tablet(vm, "QEMU QEMU USB Tablet")?;
        moves_a_usb_mouse(vm)?;
        let descriptors = vm.serial.run(
            "for d in /sys/bus/usb/devices/1-*; do [ -f $d/descriptors ] && \
             echo $(basename $d) $(hexdump -v -e '1/1 \"%02x\"' $d/descriptors); done; true",
        )?;
        let text = descriptors.replace('\r', "");
        ensure!(text.trim() == include_str!("golden/usb-descriptors").trim(), "{text}");
        Ok(())
    });
}

/// Movements go to the mouse whatever the tablet does; it is the first that takes them once the
/// driver polls it.
fn moves_a_usb_mouse(vm: &mut Vm) -> Result<()> {
    let node = node(vm, "QEMU QEMU USB Mouse")?;
    let moved = events(vm, &node, (RELATIVE, 1), |vm| {
        send(vm, json!([axis("rel", "x", 5), axis("rel", "y", -7)]))
    })?;
    ensure!(moved == [(RELATIVE, 0, 5), (RELATIVE, 1, -7)], "{moved:?}");
    Ok(())
}

#[test]
fn virtio_devices_are_found_and_tell_of_their_events() {
    let devices = ["-device", "virtio-keyboard-pci", "-device", "virtio-tablet-pci"];
    with_guest("virtio_devices", &devices, |vm| {
        types_a_combination(vm, "QEMU Virtio Keyboard")?;
        points_with_a_tablet(vm, "QEMU Virtio Tablet")
    });
    with_guest("virtio_mouse", &["-device", "virtio-mouse-pci"], |vm| {
        moves_a_mouse(vm, "QEMU Virtio Mouse")
    });
}
