//! `qmpctl` as a program, driving the QEMU installed here. Without one the tests say so and pass.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

struct Qemu {
    process: Child,
    socket: PathBuf,
    _dir: tempfile::TempDir,
}

impl Qemu {
    fn start() -> Option<Qemu> {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("qmp");
        let started = Command::new("qemu-system-x86_64")
            .args(["-S", "-nodefaults", "-display", "none", "-machine", "pc", "-qmp"])
            .arg(format!("unix:{},server=on,wait=off", socket.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let Ok(process) = started else {
            eprintln!("SKIPPED: there is no qemu-system-x86_64 here");
            return None;
        };
        while !socket.exists() {
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(Qemu { process, socket, _dir: dir })
    }

    fn qmpctl(&self, arguments: &[&str]) -> Output {
        qmpctl(&self.socket, arguments)
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn qmpctl(socket: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_qmpctl"))
        .arg("-s")
        .arg(socket)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).unwrap()
}

#[test]
fn one_shot_commands() {
    let Some(qemu) = Qemu::start() else { return };
    let status = qemu.qmpctl(&["query-status"]);
    assert!(status.status.success(), "{}", text(&status.stderr));
    let shown = text(&status.stdout);
    assert!(shown.contains("status") && shown.contains("prelaunch"), "{shown}");

    let json = qemu.qmpctl(&["--json", "query-name"]);
    assert_eq!(text(&json.stdout), "{}\n");
    let table = qemu.qmpctl(&["query-cpus-fast"]);
    let shown = text(&table.stdout);
    assert!(shown.contains("thread-id"), "{shown}");

    // Typed by QEMU's own schema.
    let read = qemu.qmpctl(&["qom-get", "path=/machine", "property=type"]);
    assert_eq!(text(&read.stdout), "pc-i440fx-7.2-machine\n", "{}", text(&read.stderr));
    let read = qemu.qmpctl(&["qom-get", "{\"path\": \"/machine\", \"property\": \"graphics\"}"]);
    assert_eq!(text(&read.stdout), "true\n");
    let events = qemu.qmpctl(&["events"]);
    assert!(text(&events.stdout).lines().any(|line| line == "SHUTDOWN"));
}

#[test]
fn failures_have_their_exit_status() {
    let Some(qemu) = Qemu::start() else { return };
    let refused = qemu.qmpctl(&["nope"]);
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(
        text(&refused.stderr),
        "qmpctl: CommandNotFound: The command nope has not been found\n"
    );
    let typed = qemu.qmpctl(&["balloon", "value=many"]);
    assert_eq!(typed.status.code(), Some(2));
    assert!(text(&typed.stderr).contains("'value=many': expected an integer"));
    let nobody = qmpctl(Path::new("/nonexistent/qmp"), &["stop"]);
    assert_eq!(nobody.status.code(), Some(3));
    assert!(text(&nobody.stderr).contains("cannot connect to /nonexistent/qmp"));
}

#[test]
fn the_shell_reads_a_script_and_prints_events() {
    let Some(qemu) = Qemu::start() else { return };
    let mut shell = Command::new(env!("CARGO_BIN_EXE_qmpctl"))
        .arg("-s")
        .arg(&qemu.socket)
        .arg("shell")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let script = "help balloon\nnope\ncont\nstop\nquery-status\nexit\n";
    shell.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let output = shell.wait_with_output().unwrap();
    let shown = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(shown.contains("balloon value=..."), "{shown}");
    assert!(shown.contains(" RESUME\n") && shown.contains(" STOP\n"), "{shown}");
    assert!(shown.contains("paused"), "{shown}");
    assert!(text(&output.stderr).contains("CommandNotFound"));
}
