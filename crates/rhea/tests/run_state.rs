//! The life of a machine, with guests of a few instructions: starting, stopping, ending, and what
//! the monitor says meanwhile. Needs nothing but the program under test; see `linux.rs` for
//! `RHEA_BIN`.

use anyhow::{Result, ensure};
use serde_json::json;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};
use testkit::{VmBuilder, bare};

fn binary() -> PathBuf {
    testkit::binary(env!("CARGO_BIN_EXE_rhea"))
}

fn with_machine(name: &str, body: impl FnOnce(VmBuilder) -> Result<()>) {
    testkit::run(name, || body(VmBuilder::new(&binary())?));
}

/// `quit` does not need the guest's help: here it spins with interrupts disabled.
#[test]
fn quit_ends_a_spinning_guest() {
    with_machine("quit_ends_a_spinning_guest", |builder| {
        let mut vm = builder.code(bare::SPIN)?.spawn()?;
        vm.serial.wait_for("S")?;
        let qmp = vm.qmp()?;
        ensure!(qmp.query("quit")? == json!({}));
        let shutdown = qmp.event("SHUTDOWN")?;
        ensure!(shutdown["data"] == json!({"guest": false, "reason": "host-qmp-quit"}));
        ensure!(vm.wait_exit()?.success());
        Ok(())
    });
}

#[test]
fn stop_and_reset_reach_a_spinning_guest() {
    with_machine("stop_and_reset_reach_a_spinning_guest", |builder| {
        let mut vm = builder.code(bare::SPIN)?.spawn()?;
        vm.serial.wait_for("S")?;
        vm.qmp()?.query("stop")?;
        vm.qmp()?.event("STOP")?;
        vm.qmp()?.query("system_reset")?;
        ensure!(!vm.serial.comes_within("S", Duration::from_secs(1)), "it ran while stopped");
        vm.qmp()?.query("cont")?;
        vm.serial.wait_for("S")?;
        ensure!(vm.is_running()?);
        Ok(())
    });
}

/// What people ask, and how QEMU's monitor answers.
#[test]
fn lines_for_people_are_answered() {
    with_machine("lines_for_people_are_answered", |builder| {
        let mut vm = builder.args(["-name", "ours"]).code(bare::SPIN)?.spawn()?;
        vm.serial.wait_for("S")?;
        let mut ask = |line: &str| -> Result<String> {
            let answer = json!({"command-line": line});
            let answer = vm.qmp()?.execute("human-monitor-command", answer)?;
            Ok(answer.as_str().unwrap_or_default().to_owned())
        };
        ensure!(ask("info name")? == "ours\r\n");
        ensure!(ask("info status")? == "VM status: running\r\n");
        ensure!(ask("  stop ")?.is_empty());
        ensure!(ask("info status")? == "VM status: paused\r\n");
        ensure!(ask("cont")?.is_empty() && ask("")?.is_empty());
        ensure!(ask("info status")? == "VM status: running\r\n");
        ensure!(ask("info jit")?.contains("translations made"));
        ensure!(ask("info nothing")? == "unknown command: 'info nothing'\r\n");
        ensure!(ask("nothing at all")? == "unknown command: 'nothing'\r\n");
        ensure!(ask("info")?.contains("info uuid  -- show the current VM UUID\r\n"));
        let absent = json!({"command-line": "info name", "cpu-index": 1});
        ensure!(vm.qmp()?.execute("human-monitor-command", absent).is_err());
        Ok(())
    });
}

/// The engine tells what it has done: the guest is a loop, which is translated.
#[test]
fn the_engine_tells_what_it_counts() {
    with_machine("the_engine_tells_what_it_counts", |builder| {
        let mut vm = builder.code(bare::SPIN)?.spawn()?;
        vm.serial.wait_for("S")?;
        let end = Instant::now() + testkit::deadline();
        loop {
            let answer = vm.qmp()?.query("x-query-jit")?;
            let text = answer["human-readable-text"].as_str().unwrap_or_default();
            let number = |name: &str| {
                let line = text.lines().find_map(|line| line.strip_prefix(name));
                line.and_then(|rest| rest.trim().parse::<u64>().ok())
            };
            ensure!(number("code buffer size") == Some(128 << 20), "{text}");
            // The loop is not translated before it has gone round some times.
            if number("translations made").is_some_and(|n| n > 0) {
                ensure!(number("TLB misses, first level").is_some_and(|n| n > 0), "{text}");
                return Ok(());
            }
            ensure!(Instant::now() < end, "{text}");
        }
    });
}

#[test]
fn started_with_s_the_guest_waits() {
    with_machine("started_with_s_the_guest_waits", |builder| {
        let mut vm = builder.args(["-S"]).code(bare::SPIN)?.spawn()?;
        let status = vm.qmp()?.query("query-status")?;
        let expected = json!({"status": "prelaunch", "singlestep": false, "running": false});
        ensure!(status == expected, "{status}");
        ensure!(!vm.serial.comes_within("S", Duration::from_secs(1)), "it ran at once");
        vm.qmp()?.query("cont")?;
        vm.qmp()?.event("RESUME")?;
        vm.serial.wait_for("S")?;
        ensure!(vm.qmp()?.query("query-status")?["status"] == "running");
        Ok(())
    });
}

#[test]
fn guest_chooses_its_exit_status() {
    with_machine("guest_chooses_its_exit_status", |builder| {
        let mut vm = builder.args(["-device", "isa-debug-exit"]).code(bare::DEBUG_EXIT)?.spawn()?;
        // The value written, doubled, plus one.
        ensure!(vm.wait_exit()?.code() == Some(0x21));
        Ok(())
    });
}

/// A guest tells Hyper-V's crash registers of its end; another one resets itself by them.
#[test]
fn a_crash_that_hyperv_is_told_of_is_told_on() {
    with_machine("a_crash_that_hyperv_is_told_of_is_told_on", |builder| {
        let crash: Vec<_> = (0..5)
            .map(|n| (0x4000_0100 + n, u64::MAX - u64::from(n)))
            .chain([(0x4000_0105, 1 << 63)])
            .collect();
        let builder = builder.args(["-S", "-cpu", "qemu64,hv-crash"]);
        let mut vm = builder.code(&bare::write_registers(&crash))?.spawn()?;
        let qmp = vm.qmp()?;
        qmp.query("cont")?;
        let info = json!({"type": "hyper-v", "arg1": u64::MAX, "arg2": u64::MAX - 1,
            "arg3": u64::MAX - 2, "arg4": u64::MAX - 3, "arg5": u64::MAX - 4});
        let panicked = qmp.event("GUEST_PANICKED")?;
        ensure!(panicked["data"] == json!({"action": "poweroff", "info": info}), "{panicked}");
        let shutdown = qmp.event("SHUTDOWN")?;
        ensure!(shutdown["data"] == json!({"guest": true, "reason": "guest-panic"}), "{shutdown}");
        ensure!(vm.wait_exit()?.success());
        Ok(())
    });
}

#[test]
fn a_guest_resets_itself_by_hyperv() {
    with_machine("a_guest_resets_itself_by_hyperv", |builder| {
        let builder = builder.args(["-S", "-no-reboot", "-cpu", "qemu64,hv-reset"]);
        let mut vm = builder.code(&bare::write_registers(&[(0x4000_0003, 1)]))?.spawn()?;
        let qmp = vm.qmp()?;
        qmp.query("cont")?;
        let shutdown = qmp.event("SHUTDOWN")?;
        ensure!(shutdown["data"] == json!({"guest": true, "reason": "guest-reset"}), "{shutdown}");
        Ok(())
    });
}

#[test]
fn triple_fault_resets() {
    with_machine("triple_fault_resets", |builder| {
        let mut vm = builder.args(["-no-reboot", "-S"]).code(bare::TRIPLE_FAULT)?.spawn()?;
        vm.qmp()?.query("cont")?;
        let shutdown = vm.qmp()?.event("SHUTDOWN")?;
        ensure!(shutdown["data"] == json!({"guest": true, "reason": "guest-reset"}), "{shutdown}");
        ensure!(vm.wait_exit()?.success());
        Ok(())
    });
}

/// A machine that has shut down stays for questions with `-no-shutdown`, and starts again only
/// after a reset.
#[test]
fn no_shutdown_keeps_the_machine() {
    with_machine("no_shutdown_keeps_the_machine", |builder| {
        let mut vm =
            builder.args(["-no-reboot", "-no-shutdown", "-S"]).code(bare::TRIPLE_FAULT)?.spawn()?;
        let qmp = vm.qmp()?;
        qmp.query("cont")?;
        qmp.event("SHUTDOWN")?;
        qmp.event("STOP")?;
        let status = qmp.query("query-status")?;
        ensure!(status["status"] == "shutdown" && status["running"] == false, "{status}");
        let error = qmp.query("cont").unwrap_err();
        let error = error.downcast_ref::<testkit::QmpError>();
        ensure!(error.is_some_and(|error| error.class == "GenericError"), "{error:?}");
        ensure!(qmp.query("quit")? == json!({}));
        ensure!(vm.wait_exit()?.success());
        Ok(())
    });
}

#[test]
fn sigterm_ends_the_machine() {
    with_machine("sigterm_ends_the_machine", |builder| {
        let mut vm = builder.code(bare::SPIN)?.spawn()?;
        vm.serial.wait_for("S")?;
        vm.qmp()?;
        Command::new("kill").arg(vm.pid().to_string()).status()?;
        let shutdown = vm.qmp()?.event("SHUTDOWN")?;
        ensure!(shutdown["data"] == json!({"guest": false, "reason": "host-signal"}));
        ensure!(vm.wait_exit()?.success());
        Ok(())
    });
}

#[test]
fn daemonize_and_pidfile() {
    testkit::run("daemonize_and_pidfile", || {
        let builder = VmBuilder::bare(&binary())?;
        let pidfile = builder.path("pid");
        let qmp = format!("unix:{},server=on,wait=off", builder.path("qmp.sock").display());
        let mut vm = builder
            .args(["-nodefaults", "-display", "none", "-accel", "tcg", "-S", "-daemonize"])
            .args(["-qmp", &qmp, "-pidfile"])
            .args([&pidfile])
            .spawn()?;
        ensure!(vm.wait_exit()?.success(), "{}", vm.stderr());
        // The parent returns when the machine can be talked to.
        let pid: u32 = std::fs::read_to_string(&pidfile)?.trim().parse()?;
        ensure!(pid != vm.pid());
        ensure!(std::path::Path::new(&format!("/proc/{pid}")).exists());
        ensure!(vm.qmp()?.query("query-status")?["status"] == "prelaunch");
        vm.qmp()?.query("quit")?;
        Ok(())
    });
}
