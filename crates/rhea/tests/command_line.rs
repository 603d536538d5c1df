//! The command line from outside: what it refuses and how, what it prints, and the files it reads
//! and writes.

use anyhow::{Context as _, Result, ensure};
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use testkit::{VmBuilder, bare};

fn binary() -> PathBuf {
    testkit::binary(env!("CARGO_BIN_EXE_rhea"))
}

fn output(arguments: &[&str]) -> Result<Output> {
    Command::new(binary()).args(arguments).output().context("cannot start the program")
}

fn is_rhea() -> Result<bool> {
    let output = output(&["-version"])?;
    ensure!(output.status.success(), "-version: {}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).to_lowercase().contains("rhea"))
}

/// Wrong options end the program with status 1 before a machine is made, and say what was wrong.
#[test]
fn wrong_options_are_refused() {
    testkit::run("wrong_options_are_refused", || {
        let cases: [(&[&str], &str); 7] = [
            (&["-nonsense"], "nonsense"),
            (&["-machine", "nonsense"], "machine type"),
            (&["-accel", "nonsense"], "nonsense"),
            (&["-device", "nonsense"], "nonsense"),
            (&["-m", "nonsense"], "nonsense"),
            (&["-kernel", "/nonexistent/kernel"], "/nonexistent/kernel"),
            (&["-drive", "file=/nonexistent/disk,format=raw,if=none"], "/nonexistent/disk"),
        ];
        for (arguments, named) in cases {
            let mut vm = VmBuilder::bare(&binary())?
                .args(["-display", "none", "-nodefaults"])
                .args(arguments)
                .spawn()?;
            let status = vm.wait_exit()?;
            ensure!(status.code() == Some(1), "{arguments:?}: {status}");
            ensure!(vm.stderr().contains(named), "{arguments:?}: {}", vm.stderr());
        }
        Ok(())
    });
}

/// Beyond QEMU: the message names what was probably meant.
#[test]
fn wrong_options_are_answered_with_the_nearest_right_one() {
    testkit::run("wrong_options_are_answered_with_the_nearest_right_one", || {
        if !is_rhea()? {
            testkit::skip("wrong_options_are_answered_with_the_nearest_right_one", "not Rhea");
            return Ok(());
        }
        let cases: [(&[&str], &str); 6] = [
            (&["-smpp", "2"], "-smp"),
            (&["-kernl", "x"], "-kernel"),
            (&["-machine", "pcc"], "pc"),
            (&["-accel", "tgc"], "tcg"),
            (&["-device", "virtio-blk-pc"], "virtio-blk-pci"),
            (&["-device", "virtio-rng-pci,ad=1"], "addr"),
        ];
        for (arguments, meant) in cases {
            let mut all = vec!["-display", "none", "-nodefaults"];
            all.extend(arguments);
            let output = output(&all)?;
            let errors = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.code() == Some(1), "{arguments:?}: {}", output.status);
            ensure!(errors.contains(meant), "{arguments:?} is not told of {meant}: {errors}");
        }
        Ok(())
    });
}

#[test]
fn help_and_version_are_printed() {
    testkit::run("help_and_version_are_printed", || {
        for (option, expected) in [
            ("-version", "version"),
            ("--version", "version"),
            ("-help", "-kernel"),
            ("-h", "-smp"),
        ] {
            let output = output(&[option])?;
            ensure!(output.status.success(), "{option}: {}", output.status);
            let text = String::from_utf8_lossy(&output.stdout);
            ensure!(text.contains(expected), "{option} prints no {expected}: {text}");
        }
        Ok(())
    });
}

/// Options may begin with two dashes, and come from a file.
#[test]
fn options_come_from_a_file_too() {
    testkit::run("options_come_from_a_file_too", || {
        let builder = VmBuilder::new(&binary())?;
        let config = builder.path("config");
        std::fs::write(
            &config,
            "# a machine\n[name]\n  guest = \"from a file\"\n\n[smp-opts]\n  cpus = \"3\"\n",
        )?;
        let config = config.display().to_string();
        let mut vm = builder.args(["-S", "--readconfig", &config]).spawn()?;
        ensure!(vm.qmp()?.query("query-name")?["name"] == "from a file");
        let cpus = vm.qmp()?.query("query-cpus-fast")?;
        ensure!(cpus.as_array().is_some_and(|cpus| cpus.len() == 3), "{cpus}");
        Ok(())
    });
}

/// What the guest writes to a serial port goes where its character device goes.
#[test]
fn serial_port_goes_to_a_file() {
    testkit::run("serial_port_goes_to_a_file", || {
        let builder = VmBuilder::bare(&binary())?;
        let log = builder.path("serial.log");
        let file = format!("file:{}", log.display());
        let mut vm = builder
            .args(["-nodefaults", "-display", "none", "-accel", "tcg", "-serial", &file])
            .args(["-device", "isa-debug-exit"])
            .code(&[&[0x66, 0xba, 0xf8, 0x03, 0xb0, b'S', 0xee], bare::DEBUG_EXIT].concat())?
            .spawn()?;
        ensure!(vm.wait_exit()?.code() == Some(0x21));
        ensure!(std::fs::read(&log)? == b"S");
        Ok(())
    });
}

/// Devices that are not told where go to the next place that is free.
#[test]
fn serial_ports_by_device_go_where_no_other_is() {
    testkit::run("serial_ports_by_device_go_where_no_other_is", || {
        let mut builder = VmBuilder::bare(&binary())?;
        let logs = ["a", "b"].map(|id| (id, builder.path(id)));
        for (id, log) in &logs {
            let chardev = format!("file,id={id},path={}", log.display());
            let device = format!("isa-serial,chardev={id}");
            builder = builder.args(["-chardev", &chardev, "-device", &device]);
        }
        // The third has nobody at the other end, and takes what is written all the same.
        let mut code = Vec::new();
        for (port, letter) in [(0x3f8u16, b'A'), (0x2f8, b'B'), (0x3e8, b'C')] {
            let [low, high] = port.to_le_bytes();
            code.extend([0x66, 0xba, low, high, 0xb0, letter, 0xee]);
        }
        code.extend(bare::DEBUG_EXIT);
        let mut vm = builder
            .args(["-nodefaults", "-display", "none", "-accel", "tcg"])
            .args(["-device", "isa-serial", "-device", "isa-debug-exit"])
            .code(&code)?
            .spawn()?;
        ensure!(vm.wait_exit()?.code() == Some(0x21));
        for ((_, log), letter) in logs.iter().zip([b"A", b"B"]) {
            ensure!(std::fs::read(log)? == letter, "{}", log.display());
        }
        Ok(())
    });
}

/// `-nographic` puts serial port and monitor on the terminal; the serial port is what is seen.
#[test]
fn nographic_shows_the_serial_port() {
    testkit::run("nographic_shows_the_serial_port", || {
        let mut vm = VmBuilder::bare(&binary())?
            .args(["-accel", "tcg", "-nographic", "-monitor", "none"])
            .code(bare::SPIN)?
            .spawn()?;
        vm.serial.wait_for("S")?;
        Ok(())
    });
}

/// The README's first command.
#[test]
fn the_demonstration_shows_a_guest_and_its_monitor() {
    let output = Command::new(env!("CARGO_BIN_EXE_rhea"))
        .arg("-demo")
        .stdin(Stdio::null())
        .output()
        .expect("rhea runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("guest: ready") && text.contains("<- {\"running\":true"), "{text}");
}

/// As with `rhea -demo | head -1`.
#[test]
fn the_demonstration_ends_when_nobody_reads_it() {
    testkit::run("the_demonstration_ends_when_nobody_reads_it", || {
        let mut child = Command::new(env!("CARGO_BIN_EXE_rhea"))
            .arg("-demo")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no output")?).read_line(&mut line)?;
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success() && said.is_empty(), "{}: {said}", output.status);
        Ok(())
    });
}
