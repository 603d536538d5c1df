//! Suspend to memory and to disk.

use super::{Linux, SEABIOS, binary, with_linux};
use anyhow::{Result, ensure};
use testkit::{Vm, VmBuilder};

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

fn sleeps(linux: &Linux, firmware: &[&str]) -> Result<()> {
    let builder = VmBuilder::new(&binary())?.disk()?.args(firmware);
    let mut vm = linux.start(builder.args(["-m", "256", "-smp", "2"]))?;
    ensure!(vm.qmp()?.query("query-current-machine")?["wakeup-suspend-support"] == true);
    suspend(&mut vm, "")?;
    let status = vm.qmp()?.query("query-status")?;
    ensure!(status["status"] == "suspended" && status["running"] == false, "{status}");
    vm.qmp()?.query("system_wakeup")?;
    is_awake(&mut vm)?;
    ensure!(vm.qmp()?.query("system_wakeup").is_err(), "it is awake");
    // The second time, the alarm of the real-time clock ends it.
    suspend(&mut vm, "echo +3 > /sys/class/rtc/rtc0/wakealarm; ")?;
    is_awake(&mut vm)?;
    let log = vm.serial.run("dmesg | grep -c 'Waking up from system sleep state S3'")?;
    ensure!(log == "2", "{log}");
    Ok(())
}

#[test]
fn linux_sleeps_and_wakes_up() {
    with_linux("linux_sleeps_and_wakes_up", &[], |linux| sleeps(linux, &[]));
}

#[test]
fn linux_sleeps_and_wakes_up_by_seabios() {
    let name = "linux_sleeps_and_wakes_up_by_seabios";
    with_linux(name, &[SEABIOS], |linux| sleeps(linux, &["-bios", "bios-256k.bin"]));
}

/// What a guest is told that it can't do, it does not try.
#[test]
fn sleep_states_can_be_left_out() {
    with_linux("sleep_states_can_be_left_out", &[], |linux| {
        let globals = ["-global", "PIIX4_PM.disable_s3=1", "-global", "PIIX4_PM.disable_s4=1"];
        let builder = VmBuilder::new(&binary())?.args(["-m", "256"]).args(globals);
        let mut vm = linux.start(builder)?;
        let supports = vm.serial.run("dmesg | grep 'ACPI: PM: (supports'")?;
        ensure!(supports.trim().ends_with("(supports S0 S5)"), "{supports}");
        Ok(())
    });
}

/// Linux writes its memory to the disk and is switched off; when it starts again it finds it there.
#[test]
fn linux_hibernates_and_comes_back() {
    with_linux("linux_hibernates_and_comes_back", &[], |linux| {
        let disk = tempfile::NamedTempFile::new()?;
        disk.as_file().set_len(256 << 20)?;
        let drive = format!("file={},format=raw,if=virtio", disk.path().display());
        let start = || {
            let builder = VmBuilder::new(&binary())?.args(["-m", "128", "-drive", &drive]);
            linux.start(builder)
        };
        let mut vm = start()?;
        vm.qmp()?;
        vm.serial.run("mkswap /dev/vda > /dev/null; swapon /dev/vda")?;
        vm.serial.send("echo kept > /tmp/memory; echo disk > /sys/power/state\n")?;
        vm.qmp()?.event("SUSPEND_DISK")?;
        let shutdown = vm.qmp()?.event("SHUTDOWN")?;
        ensure!(shutdown["data"]["reason"] == "guest-shutdown", "{shutdown}");
        ensure!(vm.wait_exit()?.success());
        let mut vm = start()?;
        vm.serial.send("cat /sys/block/vda/dev > /sys/power/resume\n")?;
        // The command that put it to sleep ends here.
        vm.serial.wait_for("rhea-guest: status 0")?;
        vm.serial.wait_for("\n")?;
        ensure!(vm.serial.run("cat /tmp/memory")? == "kept");
        Ok(())
    });
}
