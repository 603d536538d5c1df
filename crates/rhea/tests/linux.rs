//! A real Linux guest, driven from outside.
//!
//! The guest comes from `cargo xtask guest`; without it these tests are skipped, loudly. The
//! program under test is this crate's, or what `RHEA_BIN` names:
//! `RHEA_BIN=qemu-system-x86_64 cargo test -p rhea --test linux` proves the tests on QEMU.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use testkit::{Guest, Vm, VmBuilder};

fn binary() -> PathBuf {
    testkit::binary(env!("CARGO_BIN_EXE_rhea"))
}

/// Runs `body` with a builder and the guest, or skips the test.
fn with_guest(name: &str, body: impl FnOnce(VmBuilder, &Guest) -> Result<()>) {
    let Some(guest) = Guest::find_or_skip(name) else { return };
    testkit::run(name, || body(VmBuilder::new(&binary())?, &guest));
}

/// Boots to where the guest takes commands.
fn commands(builder: VmBuilder, guest: &Guest) -> Result<Vm> {
    let mut vm = builder.linux(guest, "commands").spawn()?;
    vm.serial.wait_for("rhea-guest: commands\r\n")?;
    Ok(vm)
}

fn shell(builder: VmBuilder, guest: &Guest, cpus: &str) -> Result<()> {
    let mut vm = builder.args(["-smp", cpus]).linux(guest, "shell").spawn()?;
    vm.serial.wait_for(&format!("rhea-guest: cpus {cpus}\r\n"))?;
    vm.serial.wait_for("rhea-guest: ready")?;
    vm.serial.wait_for("rhea-guest# ")?;
    vm.serial.send("echo $((6 * 7))-answered\n")?;
    vm.serial.wait_for("42-answered")?;
    let status = vm.qmp()?.query("query-status")?;
    ensure!(status["status"] == "running", "{status}");
    Ok(())
}

#[test]
fn boots_to_a_shell() {
    with_guest("boots_to_a_shell", |builder, guest| shell(builder, guest, "1"));
}

#[test]
fn boots_to_a_shell_with_four_cpus() {
    with_guest("boots_to_a_shell_with_four_cpus", |builder, guest| shell(builder, guest, "4"));
}

/// As many as a machine can have.
#[test]
fn boots_to_a_shell_with_sixty_four_cpus() {
    with_guest("boots_to_a_shell_with_sixty_four_cpus", |builder, guest| {
        shell(builder, guest, "64")
    });
}

/// Every CPU runs a process of its own; query-cpus-fast names real threads of the emulator.
#[test]
fn four_cpus_work() {
    with_guest("four_cpus_work", |builder, guest| {
        let mut vm = builder.args(["-smp", "4"]).linux(guest, "smp").spawn()?;
        let cpus = vm.qmp()?.query("query-cpus-fast")?;
        let cpus = cpus.as_array().context("a list")?.clone();
        ensure!(cpus.len() == 4, "{cpus:?}");
        let mut threads: Vec<u64> =
            cpus.iter().filter_map(|cpu| cpu["thread-id"].as_u64()).collect();
        for thread in &threads {
            let path = format!("/proc/{}/task/{thread}", vm.pid());
            ensure!(std::path::Path::new(&path).exists(), "no thread {thread}");
        }
        threads.sort_unstable();
        threads.dedup();
        ensure!(threads.len() == 4, "one thread a CPU: {cpus:?}");
        vm.serial.wait_for("rhea-guest: smp passed")?;
        ensure!(vm.wait_exit()?.success());
        Ok(())
    });
}

/// What a domain for Windows has.
const HYPERV: &str = "qemu64,kvm=off,hv-time,hv-relaxed,hv-vapic,hv-spinlocks=0x1fff,hv-vpindex,hv-runtime,\
    hv-synic,hv-stimer,hv-stimer-direct,hv-reset,hv-frequencies,hv-tlbflush,hv-ipi,hv-crash";

/// Linux finds Hyper-V's interface, tells the time by its page, and works with its timers and calls.
fn hyperv(builder: VmBuilder, guest: &Guest, cpus: &str, accel: &str) -> Result<()> {
    let builder = builder.args(["-cpu", HYPERV, "-smp", cpus, "-accel", accel]);
    let mut vm = commands(builder, guest)?;
    let clock = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    let clock = vm.serial.run(&format!("cat {clock}"))?;
    ensure!(clock == "hyperv_clocksource_tsc_page", "{clock}");
    let said = vm.serial.run("dmesg")?;
    let found = "Hypervisor detected: Microsoft Hyper-V";
    ensure!(said.contains(found), "{said}");
    ensure!(!said.contains("Call Trace"), "{said}");
    let timers = vm.serial.run("grep 'Clock Event Device' /proc/timer_list")?;
    ensure!(timers.contains("Hyper-V clockevent"), "{timers}");
    ensure!(vm.serial.run("nproc")? == cpus);
    // Processes that fault, map and die on all CPUs have translations flushed and interrupts sent.
    let work = "for i in 1 2 3 4; do (n=0; while [ $n -lt 30 ]; do busybox true; n=$((n + 1)); done) & \
        done; wait; sleep 0.2; echo done";
    ensure!(vm.serial.run(work)?.ends_with("done"));
    Ok(())
}

#[test]
fn hyperv_is_found_and_used() {
    with_guest("hyperv_is_found_and_used", |builder, guest| hyperv(builder, guest, "1", "soft"));
}

#[test]
fn hyperv_is_found_and_used_by_two_cpus() {
    with_guest("hyperv_is_found_and_used_by_two_cpus", |builder, guest| {
        hyperv(builder, guest, "2", "soft")
    });
}

#[test]
fn hyperv_is_found_and_used_by_interpreted_cpus() {
    with_guest("hyperv_is_found_and_used_by_interpreted_cpus", |builder, guest| {
        hyperv(builder, guest, "2", "soft,translate=off")
    });
}

/// What the emulator counts for `disk0`.
fn disk_counters(vm: &mut Vm) -> Result<Value> {
    let stats = vm.qmp()?.query("query-blockstats")?;
    let stats = stats.as_array().context("a list")?;
    let disk = stats.iter().find(|entry| entry["device"] == "disk0").context("disk0")?;
    Ok(disk["stats"].clone())
}

/// What the guest's kernel counts for a disk, under the emulator's names. The fields behind major,
/// minor and name are those of Documentation/admin-guide/iostats.rst of Linux; its sectors are of
/// 512 bytes whatever the device says.
fn guest_counters(diskstats: &str) -> Result<Value> {
    let fields: Vec<u64> =
        diskstats.split_whitespace().skip(3).filter_map(|field| field.parse().ok()).collect();
    ensure!(fields.len() >= 17, "diskstats: {diskstats}");
    Ok(json!({
        "rd_operations": fields[0],
        "rd_bytes": fields[2] * 512,
        "wr_operations": fields[4],
        "wr_bytes": fields[6] * 512,
        "flush_operations": fields[15],
    }))
}

fn difference(before: &Value, after: &Value, name: &str) -> Result<u64> {
    let number = |value: &Value| value[name].as_u64().with_context(|| name.to_owned());
    number(after)?.checked_sub(number(before)?).context("counters only grow")
}

/// 64 MiB through ext4 and virtio-blk come back as they were, and the emulator counted what the
/// guest's kernel counted. `-no-shutdown` keeps the machine for the questions.
#[test]
fn disk_contents_and_statistics_agree() {
    with_guest("disk_contents_and_statistics_agree", |builder, guest| {
        let mut vm = builder.disk()?.args(["-no-shutdown"]).linux(guest, "blk").spawn()?;
        vm.qmp()?;
        // Firmware may read the disk before Linux does.
        vm.serial.wait_for("Linux version")?;
        let before = disk_counters(&mut vm)?;
        vm.serial.wait_for("rhea-guest: blk passed")?;
        vm.serial.wait_for("rhea-guest: diskstats ")?;
        let guest = guest_counters(&vm.serial.wait_for("\n")?)?;
        let shutdown = vm.qmp()?.event("SHUTDOWN")?;
        ensure!(shutdown["data"]["reason"] == "guest-shutdown", "{shutdown}");
        let after = disk_counters(&mut vm)?;

        for name in ["rd_operations", "rd_bytes", "wr_bytes", "flush_operations"] {
            let counted = difference(&before, &after, name)?;
            ensure!(guest[name] == counted, "{name}: guest {}, emulator {counted}", guest[name]);
        }
        // Linux counts a flush that carries no data as a write of nothing as well.
        let counted = difference(&before, &after, "wr_operations")?;
        let flushes = difference(&before, &after, "flush_operations")?;
        let writes = guest["wr_operations"].as_u64().context("a number")?;
        let agrees = (counted..=counted + flushes).contains(&writes);
        ensure!(agrees, "writes: guest {writes}, emulator {counted}, of {flushes} flushes");
        for name in ["rd_bytes", "wr_bytes"] {
            ensure!(difference(&before, &after, name)? >= 64 << 20, "64 MiB: {after}");
        }
        Ok(())
    });
}

/// Without a file system there are no flushes, and every counter agrees to the last.
#[test]
fn direct_transfers_are_counted_exactly() {
    with_guest("direct_transfers_are_counted_exactly", |builder, guest| {
        let mut vm = commands(builder.disk()?, guest)?;
        let diskstats = "grep ' vda ' /proc/diskstats";
        let before = disk_counters(&mut vm)?;
        let guest_before = guest_counters(&vm.serial.run(diskstats)?)?;
        vm.serial.run("dd if=/dev/zero of=/dev/vda bs=8k count=300 oflag=direct 2>/dev/null")?;
        vm.serial.run("dd if=/dev/vda of=/dev/null bs=4k count=200 iflag=direct 2>/dev/null")?;
        let guest_after = guest_counters(&vm.serial.run(diskstats)?)?;
        let after = disk_counters(&mut vm)?;
        for name in ["rd_operations", "rd_bytes", "wr_operations", "wr_bytes"] {
            let guest = difference(&guest_before, &guest_after, name)?;
            let counted = difference(&before, &after, name)?;
            ensure!(guest == counted, "{name}: guest {guest}, emulator {counted}");
        }
        ensure!(difference(&before, &after, "wr_operations")? == 300);
        ensure!(difference(&before, &after, "wr_bytes")? == 300 * 8192);
        Ok(())
    });
}

#[test]
fn poweroff_ends_the_process() {
    with_guest("poweroff_ends_the_process", |builder, guest| {
        let mut vm = builder.linux(guest, "poweroff").spawn()?;
        let shutdown = vm.qmp()?.event("SHUTDOWN")?;
        ensure!(shutdown["data"] == json!({"guest": true, "reason": "guest-shutdown"}));
        ensure!(vm.wait_exit()?.success());
        Ok(())
    });
}

#[test]
fn power_button_shuts_linux_down() {
    with_guest("power_button_shuts_linux_down", |builder, guest| {
        let mut vm = commands(builder, guest)?;
        vm.qmp()?.query("system_powerdown")?;
        vm.qmp()?.event("POWERDOWN")?;
        vm.serial.wait_for("rhea-guest: power button")?;
        let shutdown = vm.qmp()?.event("SHUTDOWN")?;
        ensure!(shutdown["data"]["reason"] == "guest-shutdown", "{shutdown}");
        ensure!(vm.wait_exit()?.success());
        Ok(())
    });
}

/// Seconds since the guest booted, and its idea of the date.
fn guest_clocks(vm: &mut Vm) -> Result<(f64, f64)> {
    let uptime = vm.serial.run("cut -d ' ' -f 1 /proc/uptime")?;
    let date = vm.serial.run("date +%s")?;
    Ok((uptime.parse().context("uptime")?, date.parse().context("date")?))
}

/// While the machine is stopped the guest neither works nor ages.
#[test]
fn stop_freezes_the_guest_and_its_clocks() {
    with_guest("stop_freezes_the_guest_and_its_clocks", |builder, guest| {
        let mut vm = commands(builder, guest)?;
        vm.serial.run(
            "(n=0; while :; do n=$((n + 1)); echo $n > /tmp/n; mv /tmp/n /tmp/count; done) &",
        )?;
        let before = Instant::now();
        let (uptime, date) = guest_clocks(&mut vm)?;
        vm.qmp()?.query("stop")?;
        let stopped = Instant::now();
        vm.qmp()?.event("STOP")?;
        let status = vm.qmp()?.query("query-status")?;
        ensure!(status["status"] == "paused" && status["running"] == false, "{status}");
        // Typed while the machine stands still: nothing answers.
        vm.serial.send("cat /tmp/count\n")?;
        let answered = vm.serial.comes_within("rhea-guest: status", Duration::from_secs(4));
        ensure!(!answered, "the stopped guest answered");
        let pause = stopped.elapsed();
        vm.qmp()?.query("cont")?;
        vm.qmp()?.event("RESUME")?;
        vm.serial.wait_for("rhea-guest: status 0")?;
        vm.serial.wait_for("\n")?;
        let first: u64 = vm.serial.run("cat /tmp/count")?.parse()?;
        let (uptime_after, date_after) = guest_clocks(&mut vm)?;
        // The guest may have aged by what passed outside of the pause; the rest is for rounding
        // and for a clock that the guest's kernel calibrated a little fast.
        let allowed = (before.elapsed() - pause).as_secs_f64() * 1.1 + 1.5;
        ensure!(uptime_after - uptime <= allowed, "uptime {uptime} to {uptime_after}");
        ensure!(date_after - date <= allowed + 1.0, "date {date} to {date_after}");
        let second: u64 = vm.serial.run("sleep 1; cat /tmp/count")?.parse()?;
        ensure!(second > first, "the guest works on: {first}, {second}");
        Ok(())
    });
}

#[test]
fn reset_reboots() {
    with_guest("reset_reboots", |builder, guest| {
        let mut vm = commands(builder, guest)?;
        vm.qmp()?.query("system_reset")?;
        let reset = vm.qmp()?.event("RESET")?;
        let expected = json!({"guest": false, "reason": "host-qmp-system-reset"});
        ensure!(reset["data"] == expected, "{reset}");
        vm.serial.wait_for("Linux version ")?;
        vm.serial.wait_for("rhea-guest: commands\r\n")?;
        ensure!(vm.serial.run("echo again")? == "again");
        Ok(())
    });
}

/// A stopped machine that is reset starts afresh with `cont`, its devices too.
#[test]
fn reset_while_stopped_reboots() {
    with_guest("reset_while_stopped_reboots", |builder, guest| {
        let mut vm = commands(builder.disk()?, guest)?;
        for command in ["stop", "system_reset", "system_reset"] {
            vm.qmp()?.query(command)?;
        }
        ensure!(vm.qmp()?.query("query-status")?["status"] == "prelaunch");
        vm.qmp()?.query("cont")?;
        vm.serial.wait_for("rhea-guest: commands\r\n")?;
        let read = vm.serial.run("dd if=/dev/vda of=/dev/null bs=64k count=16 2>&1 | tail -n 1")?;
        ensure!(read.starts_with("16+0 records"), "{read}");
        Ok(())
    });
}

#[test]
fn guest_reboot_resets() {
    with_guest("guest_reboot_resets", |builder, guest| {
        let mut vm = commands(builder, guest)?;
        vm.qmp()?;
        vm.serial.send("reboot -f\n")?;
        let reset = vm.qmp()?.event("RESET")?;
        ensure!(reset["data"] == json!({"guest": true, "reason": "guest-reset"}), "{reset}");
        vm.serial.wait_for("Linux version ")?;
        Ok(())
    });
}

#[test]
fn no_reboot_ends_the_process_instead() {
    with_guest("no_reboot_ends_the_process_instead", |builder, guest| {
        let mut vm = builder.args(["-no-reboot"]).linux(guest, "reboot").spawn()?;
        let shutdown = vm.qmp()?.event("SHUTDOWN")?;
        ensure!(shutdown["data"] == json!({"guest": true, "reason": "guest-reset"}), "{shutdown}");
        ensure!(vm.wait_exit()?.success());
        Ok(())
    });
}

fn meminfo_kib(vm: &mut Vm, name: &str) -> Result<u64> {
    let text = vm.serial.run(&format!("grep '^{name}:' /proc/meminfo"))?;
    text.split_whitespace().nth(1).context("a number")?.parse().context("a number")
}

fn balloon_to(vm: &mut Vm, mib: u64) -> Result<()> {
    let bytes = mib << 20;
    vm.qmp()?.execute("balloon", json!({"value": bytes}))?;
    let end = Instant::now() + testkit::deadline();
    while vm.qmp()?.query("query-balloon")? != json!({"actual": bytes}) {
        ensure!(Instant::now() < end, "the balloon never got to {mib} MiB");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// The balloon takes memory from the guest and gives it back.
#[test]
fn balloon_takes_and_gives() {
    with_guest("balloon_takes_and_gives", |builder, guest| {
        let mut vm = commands(builder.args(["-device", "virtio-balloon-pci"]), guest)?;
        let total = meminfo_kib(&mut vm, "MemTotal")?;
        ensure!(vm.qmp()?.query("query-balloon")? == json!({"actual": 256 << 20}));
        balloon_to(&mut vm, 192)?;
        let event = vm.qmp()?.event("BALLOON_CHANGE")?;
        ensure!(event["data"]["actual"].is_u64(), "{event}");
        let smaller = meminfo_kib(&mut vm, "MemTotal")?;
        ensure!(total - smaller == 64 << 10, "MemTotal {total} to {smaller} KiB");
        balloon_to(&mut vm, 256)?;
        ensure!(meminfo_kib(&mut vm, "MemTotal")? == total);
        Ok(())
    });
}

#[test]
fn entropy_device_delivers() {
    with_guest("entropy_device_delivers", |builder, guest| {
        let mut vm = commands(builder.args(["-device", "virtio-rng-pci"]), guest)?;
        let name = vm.serial.run("cat /sys/class/misc/hw_random/rng_current")?;
        ensure!(name.starts_with("virtio_rng"), "{name}");
        let mut read = || vm.serial.run("dd if=/dev/hwrng bs=64 count=1 2>/dev/null | sha256sum");
        ensure!(read()? != read()?, "the same bytes twice");
        Ok(())
    });
}

/// The serial console on a socket, two disks by two notations, and what query-block, query-chardev
/// and query-name say of them.
#[test]
fn machine_is_described_as_it_was_asked_for() {
    with_guest("machine_is_described_as_it_was_asked_for", |_, guest| {
        let builder = VmBuilder::bare(&binary())?;
        let qmp = format!("unix:{},server=on,wait=off", builder.path("qmp.sock").display());
        let serial = format!(
            "socket,id=console,path={},server=on,wait=off",
            builder.path("serial.sock").display()
        );
        let (first, second) = (builder.path("first.raw"), builder.path("second.raw"));
        testkit::disk_image(&first)?;
        std::fs::write(&second, vec![b'r'; 1 << 20])?;
        let drives = [
            format!("file={},format=raw,if=none,id=first", first.display()),
            format!("file={},format=raw,if=none,id=second,readonly=on", second.display()),
        ];
        let uuid = "0f0e0d0c-0b0a-0908-0706-050403020100";
        let mut vm = builder
            .args(["-nodefaults", "-display", "none", "-machine", "pc,accel=tcg", "-S"])
            .args(["-name", "guest=tested,debug-threads=on", "-uuid", uuid])
            .args(["-qmp", &qmp, "-chardev", &serial, "-serial", "chardev:console"])
            .args(["-drive", &drives[0], "-device", "virtio-blk-pci,drive=first"])
            .args(["-drive", &drives[1], "-device"])
            .args([r#"{"driver":"virtio-blk-pci","drive":"second","id":"disk2"}"#])
            .linux(guest, "commands")
            .spawn()?;
        let stream = vm.connect("serial.sock")?;
        let mut serial = testkit::Serial::new(stream.try_clone()?, stream);
        vm.qmp()?.query("cont")?;
        serial.wait_for("rhea-guest: commands\r\n")?;
        ensure!(serial.run("head -c 4 /dev/vdb")? == "rrrr");
        ensure!(serial.run("cat /sys/block/vdb/ro")? == "1");
        ensure!(serial.run("cat /sys/block/vda/size")? == "524288");

        let qmp = vm.qmp()?;
        ensure!(qmp.query("query-name")? == json!({"name": "tested"}));
        ensure!(qmp.query("query-uuid")? == json!({"UUID": uuid}));
        let blocks = qmp.query("query-block")?;
        let entry = |name: &str| -> Result<Value> {
            let blocks = blocks.as_array().context("a list")?;
            blocks.iter().find(|b| b["device"] == name).cloned().with_context(|| name.to_owned())
        };
        ensure!(entry("first")?["inserted"]["ro"] == false, "{blocks}");
        ensure!(entry("second")?["inserted"]["ro"] == true, "{blocks}");
        ensure!(entry("second")?["inserted"]["file"] == json!(second), "{blocks}");
        ensure!(entry("first")?["inserted"]["drv"] == "raw", "{blocks}");
        let chardevs = qmp.query("query-chardev")?;
        let console = chardevs
            .as_array()
            .and_then(|list| list.iter().find(|chardev| chardev["label"] == "console"))
            .context("the console is listed")?;
        ensure!(console["frontend-open"] == true, "{console}");
        Ok(())
    });
}
