//! Suspend to memory and to disk.

use super::{SEABIOS, binary, start, with_guest};
use anyhow::{Result, ensure};
use serde_json::json;
use tempfile::NamedTempFile;
use testkit::bare::Step;
use testkit::{Guest, Vm, VmBuilder};

/// The FACS of machines without firmware, and the waking vector in it.
const WAKING_VECTOR: u32 = 0xe_0000 + 12;
/// Power management registers of machines without firmware: what enables wake sources, and control with
/// the sleep type of S3 and the bit that starts it.
const PM1_ENABLE: u16 = 0x602;
const PM1_CONTROL: u16 = 0x604;
const SLEEP: u16 = 1 << 13 | 1 << 10;

/// A guest of a few instructions that does `before`, sleeps, and writes `W` to the serial port when it is
/// woken up.
fn bare_sleeper(before: &[Step]) -> Result<Vm> {
    const ENTRY: u32 = 0x8000;
    // mov al, 'W'; mov dx, 0x3f8; out dx, al; jmp $
    let real_mode = [0xb0, b'W', 0xba, 0xf8, 0x03, 0xee, 0xeb, 0xfe];
    let mut steps: Vec<Step> =
        real_mode.iter().zip(ENTRY..).map(|(&byte, at)| Step::Store8(at, byte)).collect();
    steps.push(Step::Store32(WAKING_VECTOR, ENTRY));
    steps.extend(before);
    steps.push(Step::Out16(PM1_CONTROL, SLEEP));
    let code = testkit::bare::script(&steps);
    VmBuilder::new(&binary())?.code(&code)?.spawn()
}

#[test]
fn a_guest_goes_on_at_its_waking_vector() {
    testkit::run("a_guest_goes_on_at_its_waking_vector", || {
        let mut vm = bare_sleeper(&[])?;
        vm.qmp()?;
        let status = loop {
            let status = vm.qmp()?.query("query-status")?;
            if status["status"] != "prelaunch" && status["status"] != "running" {
                break status;
            }
        };
        ensure!(status["status"] == "suspended" && status["running"] == false, "{status}");
        vm.qmp()?.query("system_wakeup")?;
        vm.qmp()?.event("WAKEUP")?;
        vm.serial.wait_for("W")?;
        ensure!(vm.qmp()?.query("query-status")?["status"] == "running");
        ensure!(vm.qmp()?.query("system_wakeup").is_err(), "it is awake");
        Ok(())
    });
}

#[test]
fn the_alarm_of_the_clock_wakes_a_guest_that_wants_it() {
    testkit::run("the_alarm_of_the_clock_wakes_a_guest_that_wants_it", || {
        const INDEX: u16 = 0x70;
        const DATA: u16 = 0x71;
        // An alarm at every second, of every minute, of every hour; its interrupt on.
        let alarm = [(1, 0xff), (3, 0xff), (5, 0xff), (0xb, 0x22)];
        let mut steps: Vec<Step> = alarm
            .into_iter()
            .flat_map(|(index, value)| [Step::Out8(INDEX, index), Step::Out8(DATA, value)])
            .collect();
        steps.push(Step::Out16(PM1_ENABLE, 1 << 10));
        let mut vm = bare_sleeper(&steps)?;
        vm.serial.wait_for("W")?;
        ensure!(vm.qmp()?.query("query-status")?["status"] == "running");
        Ok(())
    });
}

/// Puts the guest to sleep; it has one command running that ends when it is woken up.
fn suspend(vm: &mut Vm, before: &str) -> Result<()> {
    vm.serial.send(&format!("echo kept > /tmp/memory; {before}echo mem > /sys/power/state\n"))?;
    vm.qmp()?.event("SUSPEND")?;
    Ok(())
}

/// Checks that the guest goes on where it was.
fn is_awake(vm: &mut Vm) -> Result<()> {
    vm.qmp()?.event("WAKEUP")?;
    vm.serial.wait_for("rhea-guest: status 0")?;
    vm.serial.wait_for("\n")?;
    ensure!(vm.qmp()?.query("query-status")?["status"] == "running");
    ensure!(vm.serial.run("cat /tmp/memory")? == "kept");
    // Every CPU and the disk work.
    ensure!(vm.serial.run("cat /sys/devices/system/cpu/online")? == "0-1");
    vm.serial.run("taskset -c 1 dd if=/dev/vda of=/dev/null bs=64k count=16 2>/dev/null")?;
    Ok(())
}

/// A disk of zeroes, and the option that connects it.
fn disk(size: u64) -> Result<(NamedTempFile, String)> {
    let disk = NamedTempFile::new()?;
    disk.as_file().set_len(size)?;
    let drive = format!("file={},format=raw,if=virtio", disk.path().display());
    Ok((disk, drive))
}

fn sleeps(guest: &Guest, firmware: &[&str]) -> Result<()> {
    let (_disk, drive) = disk(1 << 20)?;
    let mut vm = start(guest, &[&["-smp", "2", "-drive", &drive], firmware].concat())?;
    ensure!(vm.qmp()?.query("query-current-machine")?["wakeup-suspend-support"] == true);
    suspend(&mut vm, "")?;
    let status = vm.qmp()?.query("query-status")?;
    ensure!(status["status"] == "suspended" && status["running"] == false, "{status}");
    vm.qmp()?.query("system_wakeup")?;
    is_awake(&mut vm)?;
    ensure!(vm.qmp()?.query("system_wakeup").is_err(), "it is awake");
    // The second time, a key ends it; the third, the alarm of the clock.
    suspend(&mut vm, "")?;
    vm.qmp()?.execute("send-key", json!({"keys": [{"type": "qcode", "data": "a"}]}))?;
    is_awake(&mut vm)?;
    suspend(&mut vm, "echo +3 > /sys/class/rtc/rtc0/wakealarm; ")?;
    is_awake(&mut vm)?;
    let log = vm.serial.run("dmesg | grep -c 'Waking up from system sleep state S3'")?;
    ensure!(log == "3", "{log}");
    Ok(())
}

#[test]
fn linux_sleeps_and_wakes_up() {
    with_guest("linux_sleeps_and_wakes_up", &[], |guest| sleeps(guest, &[]));
}

#[test]
fn linux_sleeps_and_wakes_up_by_seabios() {
    let name = "linux_sleeps_and_wakes_up_by_seabios";
    with_guest(name, &[SEABIOS], |guest| sleeps(guest, &["-bios", "bios-256k.bin"]));
}

/// What a guest is told that it can't do, it does not try.
#[test]
fn sleep_states_can_be_left_out() {
    with_guest("sleep_states_can_be_left_out", &[], |guest| {
        let globals = ["-global", "PIIX4_PM.disable_s3=1", "-global", "PIIX4_PM.disable_s4=1"];
        let mut vm = start(guest, &globals)?;
        let supports = vm.serial.run("dmesg | grep 'ACPI: PM: (supports'")?;
        ensure!(supports.trim().ends_with("(supports S0 S5)"), "{supports}");
        Ok(())
    });
}

/// Linux writes its memory to the disk and is switched off; when it starts again it finds it there.
#[test]
fn linux_hibernates_and_comes_back() {
    with_guest("linux_hibernates_and_comes_back", &[], |guest| {
        let (_disk, drive) = disk(256 << 20)?;
        // The image has to fit beside what is in memory.
        let arguments = ["-m", "256", "-drive", &drive];
        let mut vm = start(guest, &arguments)?;
        vm.qmp()?;
        vm.serial.run("mkswap /dev/vda > /dev/null; swapon /dev/vda")?;
        vm.serial.send("echo kept > /tmp/memory; echo disk > /sys/power/state\n")?;
        vm.qmp()?.event("SUSPEND_DISK")?;
        let shutdown = vm.qmp()?.event("SHUTDOWN")?;
        ensure!(shutdown["data"]["reason"] == "guest-shutdown", "{shutdown}");
        ensure!(vm.wait_exit()?.success());
        let mut vm = start(guest, &arguments)?;
        vm.serial.send("cat /sys/block/vda/dev > /sys/power/resume\n")?;
        // The command that put it to sleep ends here.
        vm.serial.wait_for("rhea-guest: status 0")?;
        vm.serial.wait_for("\n")?;
        ensure!(vm.serial.run("cat /tmp/memory")? == "kept");
        Ok(())
    });
}
