//! `-display curses` on a terminal: what it shows, what is typed there, and what it leaves behind.

use anyhow::{Result, ensure};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use testkit::{Qmp, Terminal};

/// What Debian's package `seabios` has.
const BIOS: &str = "/usr/share/seabios/bios-256k.bin";

/// A machine on a terminal of 25 rows and 80 columns, with a monitor.
struct Screen {
    terminal: Terminal,
    monitor: PathBuf,
    _directory: tempfile::TempDir,
}

/// Runs `body` with a machine that has these arguments beside firmware and its display; skips the test
/// without firmware.
fn on_terminal(name: &str, arguments: &[&str], body: impl FnOnce(Screen) -> Result<()>) {
    if !Path::new(BIOS).is_file() {
        return testkit::skip(name, "no firmware: install seabios");
    }
    testkit::run(name, || {
        let directory = tempfile::tempdir()?;
        let monitor = directory.path().join("qmp.sock");
        let qmp = format!("unix:{},server=on,wait=off", monitor.display());
        let mut all = vec!["-accel", "tcg", "-m", "32", "-display", "curses", "-nic", "none"];
        all.extend(["-serial", "none", "-monitor", "none", "-qmp", &qmp]);
        all.extend(arguments);
        let binary = testkit::binary(env!("CARGO_BIN_EXE_rhea"));
        let terminal = Terminal::start(&binary, &all, 25, 80)?;
        body(Screen { terminal, monitor, _directory: directory })
    });
}

impl Screen {
    fn qmp(&self) -> Result<Qmp> {
        Qmp::new(UnixStream::connect(&self.monitor)?)?.negotiated()
    }

    /// The program ends well, and the terminal is as it was.
    fn ends(mut self) -> Result<()> {
        let status = self.terminal.wait_exit()?;
        ensure!(status.success(), "{status}: {:?}", self.terminal.rows());
        let damage = self.terminal.damage()?;
        ensure!(damage.is_empty(), "{damage:?}");
        Ok(())
    }
}

#[test]
fn firmware_is_seen_on_a_terminal_of_any_size() {
    on_terminal("firmware_on_a_terminal", &[], |mut screen| {
        let terminal = &mut screen.terminal;
        let row = terminal.wait_for("SeaBIOS (version")?;
        ensure!(row == 0 && terminal.rows()[0].starts_with("SeaBIOS"));
        terminal.wait_for("No bootable device.")?;
        // A larger terminal has the screen in its middle, a smaller one shows a part.
        terminal.resize(35, 100)?;
        terminal.wait_until("SeaBIOS in the middle", |rows| {
            (rows.get(5)?.find("SeaBIOS") == Some(10)).then_some(())
        })?;
        ensure!(terminal.cursor().is_some(), "the guest's cursor is shown");
        terminal.resize(3, 20)?;
        terminal.wait_until("SeaBIOS in the corner", |rows| {
            (rows.len() == 3 && rows[0].starts_with("SeaBIOS")).then_some(())
        })?;
        screen.qmp()?.query("quit")?;
        screen.ends()
    });
}

#[test]
fn keys_go_to_the_screens_and_the_machine_ends_by_one() {
    on_terminal("keys_on_a_terminal", &["-device", "virtio-gpu-pci"], |mut screen| {
        let terminal = &mut screen.terminal;
        terminal.wait_for("No bootable device.")?;
        terminal.press("\u{1b}2")?;
        terminal.wait_for("640 x 480 graphic mode")?;
        terminal.press("\u{1b}1")?;
        terminal.wait_for("No bootable device.")?;
        // Alt-9 is a screen that is not there.
        terminal.press("\u{1b}9\u{1b}\u{11}")?;
        screen.ends()
    });
}

#[test]
fn a_boot_loader_reads_what_is_typed_on_the_terminal() {
    let Some(iso) = testkit::guest_image("isolinux.iso") else {
        let reason = "no isolinux.iso: run `cargo xtask guests`";
        return testkit::skip("typing_on_a_terminal", reason);
    };
    let iso = iso.display().to_string();
    on_terminal("typing_on_a_terminal", &["-cdrom", &iso], |mut screen| {
        let terminal = &mut screen.terminal;
        terminal.wait_for("boot:")?;
        for key in ["N", "o", "_", "s", "u", "c", "h", "-", "1", "x", "\u{7f}"] {
            terminal.press(key)?;
        }
        let row = terminal.wait_until("what was typed", |rows| {
            rows.iter().position(|row| row == "boot: No_such-1")
        })?;
        // The cursor is set after the text is written.
        let place = Some((row as u16, 15));
        for _ in 0..200 {
            if terminal.cursor() == place {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        ensure!(terminal.cursor() == place, "{:?}", terminal.cursor());
        terminal.press("\r")?;
        terminal.wait_for("No_such-1")?;
        terminal.press("memtest\r")?;
        terminal.wait_for("Memtest86+ v6")?;
        std::process::Command::new("kill").arg(terminal.pid().to_string()).status()?;
        screen.ends()
    });
}

#[test]
fn a_terminal_is_needed() {
    testkit::run("a_terminal_is_needed", || {
        let mut vm = testkit::VmBuilder::bare(&testkit::binary(env!("CARGO_BIN_EXE_rhea")))?
            .args(["-accel", "tcg", "-display", "curses", "-serial", "none", "-nic", "none"])
            .spawn()?;
        ensure!(vm.wait_exit()?.code() == Some(1));
        ensure!(vm.stderr().contains("We need a terminal output"), "{}", vm.stderr());
        Ok(())
    });
}
