//! What can't be is refused: status 1, one line on standard error that begins with the program's name,
//! and no panic, hang or crash.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Runs the program; whatever it was told must make it end by itself.
fn run(arguments: &[&OsStr]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_rhea"))
        .args(["-nodefaults", "-display", "none", "-S"])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[track_caller]
fn refused(arguments: &[&OsStr], why: &str) {
    let output = run(arguments);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {text}");
    assert!(text.starts_with("rhea: ") && text.contains(why), "{arguments:?}: {text}");
    assert_eq!(text.lines().count(), 1, "{arguments:?}: {text}");
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let cases: [(&[&str], &str); 19] = [
        (&["-m", "1E"], "at most 1022 GiB"),
        (&["-m", "999999T"], "at most 1022 GiB"),
        (&["-cpu", "nonsense"], "unable to find CPU model"),
        (&["-chardev", "null,id=1a"], "expects an identifier"),
        (&["-daemonize", "-qmp", "stdio"], "cannot use stdio with -daemonize"),
        (&["-readconfig", "/dev/zero"], "longer than"),
        (&["-kernel", "/nonexistent"], "No such file"),
        (&["-kernel", "/dev/zero"], "not a regular file"),
        (
            &["-serial", "file:/nonexistent/x"],
            "chardev 'serial0': Could not open '/nonexistent/x': No such file",
        ),
        (&["-serial", "chardev:x"], "-serial: chardev \"x\" not found"),
        (&["-device", "isa-debugcon,chardev=x"], "-device isa-debugcon: chardev \"x\" not found"),
        (&["-device", "isa-serial,index=4"], "supported number of ISA serial ports is 4"),
        (&["-device", "isa-serial,irq=16"], "interrupt lines 0 to 15"),
        (&["-device", "isa-fdc,iobase=0x370,dma=5"], "channel of bytes, 0 to 3"),
        (&["-device", "isa-fdc,iobase=0xfff9,dma=1"], "end beyond 0xffff"),
        (&["-smbios", "file=/dev/zero"], "not a regular file"),
        (&["-fw_cfg", "name=opt/x,file=/dev/zero"], "not a regular file"),
        (&["-acpitable", "file=/dev/zero"], "not a regular file"),
        (&["-option-rom", "no-such.rom"], "-option-rom no-such.rom: it is in none of"),
    ];
    for (arguments, why) in cases {
        let arguments: Vec<&OsStr> = arguments.iter().map(OsStr::new).collect();
        refused(&arguments, why);
    }
    refused(&[&OsString::from_vec(b"-name\xff".to_vec())], "valid UTF-8");
}

#[test]
fn a_cause_is_told_once() {
    let output = run(&[OsStr::new("-kernel"), OsStr::new("/nonexistent")]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(text.matches("No such file").count(), 1, "{text}");
}

#[test]
fn a_reader_of_the_help_may_leave_early() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_rhea"))
        .arg("-help")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{text}");
}

/// An ELF64 kernel with `count` segments, each of which fills 100 MiB from 1 MiB on.
fn heap_of_segments(path: &Path, count: u16) {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    file.extend(0x10_0000_u64.to_le_bytes());
    file.extend(64_u64.to_le_bytes());
    file.extend([0; 12]);
    for half in [64, 56, count, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    for _ in 0..count {
        file.extend([1, 0, 0, 0, 7, 0, 0, 0]);
        for word in [0_u64, 0x10_0000, 0x10_0000, 0, 100 << 20, 4096] {
            file.extend(word.to_le_bytes());
        }
    }
    std::fs::write(path, file).unwrap();
}

#[test]
fn segments_upon_each_other_are_refused_before_they_are_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = folder.path().join("kernel");
    heap_of_segments(&kernel, u16::MAX);
    refused(&[OsStr::new("-kernel"), kernel.as_os_str()], "segments overlap");
}

/// The writer of a pipe may be gone before the monitor's session begins.
#[test]
fn a_monitor_on_a_pipe_answers_although_its_writer_has_left() {
    for _ in 0..20 {
        let mut child = Command::new(env!("CARGO_BIN_EXE_rhea"))
            .args(["-nodefaults", "-display", "none", "-S", "-qmp", "stdio"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let requests = br#"{"execute":"qmp_capabilities"}{"execute":"quit"}"#;
        child.stdin.take().unwrap().write_all(requests).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        assert!(String::from_utf8_lossy(&output.stdout).contains("host-qmp-quit"));
    }
}
