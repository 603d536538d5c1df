//! Devices driven from outside by qtest, and compared with the peer's.

use anyhow::{Result, ensure};
use std::path::{Path, PathBuf};
use testkit::qtest::{self, Qtest};

fn binary() -> PathBuf {
    testkit::binary(env!("CARGO_BIN_EXE_rhea"))
}

const NO_ARGUMENTS: [&str; 0] = [];

/// The machine that the test drives.
fn with_machine(name: &str, body: impl FnOnce(&mut Qtest) -> Result<()>) {
    testkit::run(name, || body(&mut Qtest::start(&binary(), &NO_ARGUMENTS)?));
}

#[test]
fn time_passes_by_commands_only_and_timers_fire_at_their_own_time() {
    with_machine("time_passes_by_commands_only", |machine| {
        machine.intercept_ioapic()?;
        // The RTC's periodic interrupt, 1024 times a second.
        for (index, value) in [(0x0a, 0x26), (0x0b, 0x42)] {
            machine.outb(0x70, index)?;
            machine.outb(0x71, value)?;
        }
        let read_c = |machine: &mut Qtest| -> Result<u8> {
            machine.outb(0x70, 0x0c)?;
            machine.inb(0x71)
        };
        read_c(machine)?;
        ensure!(!machine.line(8));
        let start = machine.clock_step(0)?;
        std::thread::sleep(std::time::Duration::from_millis(5));
        ensure!(machine.clock_step(0)? == start, "time passed by itself");
        ensure!(!machine.line(8), "an interrupt came without time");
        for _ in 0..10 {
            machine.clock_step(1_000_000_000 / 1024 + 1)?;
            ensure!(machine.line(8));
            ensure!(read_c(machine)? & 0xc0 == 0xc0);
            ensure!(!machine.line(8));
        }
        ensure!(machine.rises(8) == 10);
        let now = machine.clock_step(0)?;
        let next = machine.clock_step_next()?;
        ensure!(now < next && next <= now + 1_000_000_000 / 1024 + 1, "{now} {next}");
        Ok(())
    });
}

#[test]
fn a_reset_that_a_command_asks_for_is_done_before_the_next_command() {
    with_machine("a_reset_before_the_next_command", |machine| {
        let (data, command) = (0x60, 0x64);
        for _ in 0..100 {
            machine.outb(command, 0x60)?;
            machine.outb(data, 0x47)?;
            // The CPU's reset line.
            machine.outb(command, 0xfe)?;
            machine.outb(command, 0x20)?;
            let mode = machine.inb(data)?;
            ensure!(mode == 0x03, "mode {mode:#x} after a reset");
        }
        Ok(())
    });
}

#[test]
fn blocks_of_memory_come_back_as_they_were_written() {
    with_machine("blocks_of_memory", |machine| {
        let block: Vec<u8> = (0..100_000u32).map(|i| ((i * 7) >> 3) as u8).collect();
        machine.write(0x10_0ffd, &block)?;
        ensure!(machine.read(0x10_0ffd, block.len())? == block);
        ensure!(machine.load(0x10_0ffd, 4)? == 0x0201_0000);
        machine.store(0x10_0fff, 8, 0x1122_3344_5566_7788)?;
        ensure!(machine.command("b64read 0x100fff 8")? == "iHdmVUQzIhE=");
        machine.command("b64write 0x100fff 3 QUJD")?;
        machine.command("memset 0x101001 2 0x5a")?;
        ensure!(machine.read(0x10_0fff, 4)? == b"ABZZ");
        machine.command("write 0x100fff 4 0x01")?;
        ensure!(machine.read(0x10_0fff, 5)? == [1, 0, 0, 0, 0x44]);
        Ok(())
    });
}

#[test]
fn what_makes_no_sense_is_refused_and_harmless() {
    with_machine("what_makes_no_sense_is_refused", |machine| {
        for line in [
            "",
            " ",
            "inb",
            "inb x",
            "inb 65536",
            "inq 1",
            "read 0",
            "read 0 0",
            "read 0 -",
            "write 0 4",
            "write 0 4 0",
            "write 0 4 zz",
            "write 0 4 0xzz",
            "b64write 0 4 =",
            "irq_intercept_in nothing",
            "set_irq_in ioapic unnamed-gpio-in 24 1",
            "set_irq_in ioapic other 1 1",
            "clock_step soon",
            "module_load a b",
            "bogus 1 2 3",
        ] {
            let answer = machine.ask(line)?;
            ensure!(answer.starts_with("FAIL") || answer.starts_with("ERR"), "{line}: {answer}");
        }
        ensure!(machine.command("endianness")? == "little");
        let long = "x".repeat(1 << 20);
        ensure!(machine.ask(&long)?.starts_with("FAIL"));
        machine.command("write 0xfffffffffffffffe 4 0x01020304")?;
        machine.command("read 0xfffffffffffffffe 4")?;
        Ok(())
    });
}

/// Register traffic to the chipset, which QEMU has to answer alike.
#[test]
fn the_chipset_answers_as_qemus() {
    testkit::run("the_chipset_answers_as_qemus", || {
        let Some(peer) = testkit::peer() else {
            testkit::skip("the_chipset_answers_as_qemus", "there is no qemu-system-x86_64");
            return Ok(());
        };
        let mut ours = Qtest::start(&binary(), &NO_ARGUMENTS)?;
        let mut theirs = Qtest::start(&peer, &NO_ARGUMENTS)?;
        let differences = qtest::compare(&mut ours, &mut theirs, include_str!("qtest/chipset"))?;
        ensure!(differences.is_empty(), "{differences:#?}");
        Ok(())
    });
}

#[test]
fn devices_of_the_isa_bus_answer_as_qemus() {
    testkit::run("devices_of_the_isa_bus_answer_as_qemus", || {
        let Some(peer) = testkit::peer() else {
            let reason = "there is no qemu-system-x86_64";
            testkit::skip("devices_of_the_isa_bus_answer_as_qemus", reason);
            return Ok(());
        };
        let directory = tempfile::tempdir()?;
        // Each sector begins with its number.
        let diskette: Vec<u8> =
            (0..2880u16).flat_map(|i| [i.to_le_bytes(); 256].into_iter().flatten()).collect();
        let start = |binary: &Path, name: &str| -> Result<Qtest> {
            let image = directory.path().join(name);
            std::fs::write(&image, &diskette)?;
            let drive = format!("if=floppy,format=raw,file={}", image.display());
            let fdc = "isa-fdc,iobase=0x370,irq=5,dma=1";
            let devices = ["pc-testdev", "pci-testdev", "edu", "pvpanic", fdc];
            let mut arguments = vec!["-drive", &drive, "-parallel", "null"];
            arguments.extend(devices.into_iter().flat_map(|device| ["-device", device]));
            Qtest::start(binary, &arguments)
        };
        let (mut ours, mut theirs) = (start(&binary(), "ours")?, start(&peer, "theirs")?);
        let differences = qtest::compare(&mut ours, &mut theirs, include_str!("qtest/isa"))?;
        ensure!(differences.is_empty(), "{differences:#?}");
        Ok(())
    });
}

#[test]
fn the_smbus_and_watchdogs_answer_as_qemus() {
    testkit::run("the_smbus_and_watchdogs_answer_as_qemus", || {
        let Some(peer) = testkit::peer() else {
            let reason = "there is no qemu-system-x86_64";
            testkit::skip("the_smbus_and_watchdogs_answer_as_qemus", reason);
            return Ok(());
        };
        let devices = ["-device", "i6300esb,addr=4", "-device", "ib700"];
        let mut ours = Qtest::start(&binary(), &devices)?;
        let mut theirs = Qtest::start(&peer, &devices)?;
        let differences = qtest::compare(&mut ours, &mut theirs, include_str!("qtest/board"))?;
        ensure!(differences.is_empty(), "{differences:#?}");
        Ok(())
    });
}

/// What virtio devices and a Serial ATA adapter say of themselves before a driver comes.
#[test]
fn virtio_devices_describe_themselves_as_qemus() {
    const DISK: &str = "logical_block_size=4096,physical_block_size=4096,num-queues=3,queue-size=64,\
                        cyls=16,heads=8,secs=30,min_io_size=8192,opt_io_size=65536,config-wce=off,\
                        seg-max-adjust=off,event_idx=off,indirect_desc=off,discard_granularity=65536";
    testkit::run("virtio_devices_describe_themselves_as_qemus", || {
        let Some(peer) = testkit::peer() else {
            let reason = "there is no qemu-system-x86_64";
            testkit::skip("virtio_devices_describe_themselves_as_qemus", reason);
            return Ok(());
        };
        let directory = tempfile::tempdir()?;
        let start = |binary: &Path, name: &str| -> Result<Qtest> {
            let mut arguments = Vec::new();
            for drive in ["d0", "d1"] {
                let image = directory.path().join(format!("{name}-{drive}"));
                std::fs::write(&image, vec![0; 1954 * 512])?;
                let drive = format!("if=none,id={drive},format=raw,file={}", image.display());
                arguments.extend(["-drive".to_owned(), drive]);
            }
            for device in [
                "virtio-keyboard-pci,addr=4,serial=abc",
                "virtio-mouse-pci,addr=5",
                "virtio-tablet-pci,addr=6",
                "virtio-gpu-pci,addr=7,max_outputs=2",
                "virtio-scsi-pci,addr=8",
                "virtio-blk-pci,drive=d0,addr=9,serial=abc",
                &format!("virtio-blk-pci,drive=d1,addr=0xa,{DISK}"),
                "ich9-ahci,addr=0xb,multifunction=on",
                "virtio-rng-pci,addr=0xb.1",
            ] {
                arguments.extend(["-device".to_owned(), device.to_owned()]);
            }
            Qtest::start(binary, &arguments)
        };
        let (mut ours, mut theirs) = (start(&binary(), "ours")?, start(&peer, "theirs")?);
        let differences = qtest::compare(&mut ours, &mut theirs, include_str!("qtest/virtio"))?;
        ensure!(differences.is_empty(), "{differences:#?}");
        Ok(())
    });
}

/// Two floppy controllers have one DMA channel and one interrupt line, as the board wires them by default.
#[test]
fn a_second_floppy_controller_shares_the_firsts_dma_channel() {
    testkit::run("a_second_floppy_controller_shares_the_firsts_dma_channel", || {
        let directory = tempfile::tempdir()?;
        let image = |name: &str, byte: u8| -> Result<String> {
            let path = directory.path().join(name);
            std::fs::write(&path, vec![byte; 1440 << 10])?;
            Ok(path.display().to_string())
        };
        let first = format!("if=floppy,format=raw,file={}", image("first", 1)?);
        let second = format!("if=none,id=second,format=raw,file={}", image("second", 2)?);
        let mut machine = Qtest::start(
            &binary(),
            &[
                "-drive",
                &first,
                "-drive",
                &second,
                "-device",
                "isa-fdc,id=more,iobase=0x370",
                "-device",
                "floppy,bus=more.0,drive=second",
            ],
        )?;
        for (base, byte) in [(0x3f0, 1), (0x370, 2), (0x3f0, 1)] {
            let (output, data) = (base + 2, base + 5);
            machine.outb(output, 0x1c)?;
            let channel = [(0xa, 6), (0xc, 0), (4, 0), (4, 0x10), (0x81, 0), (5, 0xff), (5, 1)];
            for (port, value) in channel.into_iter().chain([(0xb, 0x46), (0xa, 2)]) {
                machine.outb(port, value)?;
            }
            for value in [0xe6, 0, 0, 0, 1, 2, 18, 0x1b, 0xff] {
                machine.outb(data, value)?;
            }
            ensure!(machine.read(0x1000, 512)? == [byte; 512], "the sector of {base:#x}");
            ensure!(machine.inb(data)? == 0);
            for _ in 1..7 {
                machine.inb(data)?;
            }
        }
        Ok(())
    });
}

/// Functions of a slot beside the first are found only if that says that there are more.
#[test]
fn a_slot_has_several_functions_if_the_first_says_so() {
    testkit::run("a_slot_has_several_functions_if_the_first_says_so", || {
        let first = "edu,addr=4,multifunction=on";
        let second = "virtio-gpu-pci,addr=4.1,disable-legacy=on";
        let mut machine = Qtest::start(&binary(), &["-device", first, "-device", second])?;
        for (devfn, id, header) in [(0x20, 0x11e8_1234, 0x80), (0x21, 0x1050_1af4, 0)] {
            ensure!(machine.config_read(devfn, 0, 4)? == id);
            ensure!(machine.config_read(devfn, 0xe, 1)? == header);
        }
        for (arguments, reason) in [
            (["edu,addr=4", "edu,addr=4.1"], "can't be populated in function 4.1"),
            (["edu,addr=4.1", "edu,addr=4"], "4.0 indicates single function, but 4.1 is already"),
        ] {
            let output = std::process::Command::new(binary())
                .args(["-nodefaults", "-display", "none"])
                .args(arguments.into_iter().flat_map(|device| ["-device", device]))
                .output()?;
            let message = String::from_utf8_lossy(&output.stderr);
            ensure!(!output.status.success() && message.contains(reason), "{message}");
        }
        Ok(())
    });
}

/// What each action does about a watchdog that expires, after the event that tells of it.
#[test]
fn a_watchdog_does_what_it_was_told_to() {
    const ACTIONS: [(&str, Option<&str>); 7] = [
        ("reset", Some("RESET")),
        ("shutdown", Some("POWERDOWN")),
        ("poweroff", None),
        ("pause", Some("STOP")),
        ("debug", None),
        ("none", None),
        ("inject-nmi", None),
    ];
    testkit::run("a_watchdog_does_what_it_was_told_to", || {
        for (action, event) in ACTIONS {
            let mut machine = Qtest::start(
                &binary(),
                &["-device", "ib700", "-watchdog-action", "none", "-no-shutdown"],
            )?;
            let arguments = serde_json::json!({ "action": action });
            machine.qmp().execute("watchdog-set-action", arguments)?;
            // Two seconds.
            machine.outb(0x443, 14)?;
            machine.clock_step(1_900_000_000)?;
            // Once the process ends, nobody answers.
            let step = machine.ask("clock_step 200000000");
            ensure!(step.is_ok() || action == "poweroff", "{action}: {step:?}");
            let told = machine.qmp().event("WATCHDOG")?;
            ensure!(told["data"]["action"] == action, "{told}");
            if let Some(event) = event {
                machine.qmp().event(event)?;
            }
        }
        Ok(())
    });
}
