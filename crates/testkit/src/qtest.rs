//! A qtest client: drives the devices of an emulator that runs no guest, and compares two of them.
//!
//! The protocol is in QEMU's developer documentation (`docs/devel/qtest.rst`). Rhea is started with
//! `-accel qtest`; QEMU too, unless its build has not that accelerator (Debian's has not): then its CPUs
//! are held by `-S`, and there is no stepping of time.

use anyhow::{Context as _, Result, bail, ensure};
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

use crate::{Qmp, deadline};

/// A machine without a guest.
pub struct Qtest {
    child: Child,
    reader: BufReader<UnixStream>,
    qmp: Qmp,
    /// The interrupt lines that were intercepted and are high, a bit a line.
    lines: u64,
    /// How often each of them rose.
    rises: [u32; 64],
    directory: TempDir,
}

impl Qtest {
    /// Starts `binary`, which may be Rhea or QEMU, with `-nodefaults` and `arguments`.
    pub fn start(binary: &Path, arguments: &[impl AsRef<OsStr>]) -> Result<Self> {
        let mut command = Command::new(binary);
        command.args(["-nodefaults", "-display", "none"]);
        command.args(if has_accelerator(binary)? { &["-accel", "qtest"][..] } else { &["-S"] });
        command.args(arguments);
        Self::launch(command, Self::directory()?)
    }

    /// The same, but the machine counts as running, as commands want it that send keys.
    pub fn start_running(binary: &Path, arguments: &[impl AsRef<OsStr>]) -> Result<Self> {
        let mut command = Command::new(binary);
        command.args(["-nodefaults", "-display", "none"]);
        let directory = Self::directory()?;
        if has_accelerator(binary)? {
            command.args(["-accel", "qtest"]);
        } else {
            // Firmware that does nothing but halt.
            let mut firmware = vec![0; 0x1_0000];
            firmware[0xfff0..0xfff4].copy_from_slice(&[0xfa, 0xf4, 0xeb, 0xfd]);
            let path = directory.path().join("halt.bin");
            std::fs::write(&path, firmware)?;
            command.args(["-accel", "tcg", "-bios"]).arg(path);
        }
        command.args(arguments);
        Self::launch(command, directory)
    }

    fn directory() -> Result<TempDir> {
        Ok(tempfile::Builder::new().prefix("rhea-qtest-").tempdir()?)
    }

    fn launch(mut command: Command, directory: TempDir) -> Result<Self> {
        let listen = |name: &str| -> Result<(UnixListener, PathBuf)> {
            let path = directory.path().join(name);
            let listener = UnixListener::bind(&path)?;
            listener.set_nonblocking(true)?;
            Ok((listener, path))
        };
        let (qtest, path) = listen("qtest.sock")?;
        command.args(["-qtest", &format!("unix:{}", path.display())]);
        let log = directory.path().join("qtest.log");
        command.args([OsStr::new("-qtest-log"), log.as_os_str()]);
        let (qmp, path) = listen("qmp.sock")?;
        command.args(["-qmp", &format!("unix:{}", path.display())]);
        let program = format!("{command:?}");
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        let mut accept = |listener: &UnixListener| -> Result<UnixStream> {
            let end = Instant::now() + deadline();
            loop {
                if let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(false)?;
                    stream.set_read_timeout(Some(deadline()))?;
                    return Ok(stream);
                }
                if let Some(status) = child.try_wait()? {
                    bail!("{program} ended with {status}");
                }
                ensure!(Instant::now() < end, "{program} does not connect");
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        // Whichever it connects first, the other waits in its listener's queue.
        let reader = BufReader::new(accept(&qtest)?);
        let qmp = Qmp::new(accept(&qmp)?)?.negotiated()?;
        Ok(Self { child, reader, qmp, lines: 0, rises: [0; 64], directory })
    }

    /// The monitor.
    pub fn qmp(&mut self) -> &mut Qmp {
        &mut self.qmp
    }

    /// A path in the temporary directory of this machine.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Sends one command and returns its answer as it came, with all that came before it about
    /// interrupt lines noted.
    pub fn ask(&mut self, command: &str) -> Result<String> {
        let stream = self.reader.get_mut();
        stream.write_all(format!("{command}\n").as_bytes()).context("the machine has gone")?;
        loop {
            let mut line = String::new();
            let count = self.reader.read_line(&mut line).with_context(|| command.to_owned())?;
            ensure!(count > 0, "no answer to {command}: the machine has gone");
            let line = line.trim_end();
            let Some(change) = line.strip_prefix("IRQ ") else { return Ok(line.to_owned()) };
            let number = |text: &str| text.parse::<u8>().ok().filter(|&line| line < 64);
            match change.split_once(' ').map(|(what, line)| (what, number(line))) {
                Some(("raise", Some(line))) => {
                    self.lines |= 1 << line;
                    self.rises[usize::from(line)] += 1;
                }
                Some(("lower", Some(line))) => self.lines &= !(1 << line),
                _ => bail!("this is no change of a line: {line}"),
            }
        }
    }

    /// Sends one command that has to succeed, and returns what follows `OK`.
    pub fn command(&mut self, command: &str) -> Result<String> {
        let answer = self.ask(command)?;
        let Some(value) = answer.strip_prefix("OK") else { bail!("{command}: {answer}") };
        Ok(value.trim_start().to_owned())
    }

    fn number(&mut self, command: &str) -> Result<u64> {
        let answer = self.command(command)?;
        let parsed = match answer.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => answer.parse(),
        };
        parsed.with_context(|| format!("{command}: {answer}"))
    }

    /// Reads a byte from a port.
    pub fn inb(&mut self, port: u16) -> Result<u8> {
        Ok(self.number(&format!("inb {port:#x}"))? as u8)
    }

    /// Reads two bytes from a port.
    pub fn inw(&mut self, port: u16) -> Result<u16> {
        Ok(self.number(&format!("inw {port:#x}"))? as u16)
    }

    /// Reads four bytes from a port.
    pub fn inl(&mut self, port: u16) -> Result<u32> {
        Ok(self.number(&format!("inl {port:#x}"))? as u32)
    }

    /// Writes a byte to a port.
    pub fn outb(&mut self, port: u16, value: u8) -> Result<()> {
        self.command(&format!("outb {port:#x} {value:#x}")).map(drop)
    }

    /// Writes two bytes to a port.
    pub fn outw(&mut self, port: u16, value: u16) -> Result<()> {
        self.command(&format!("outw {port:#x} {value:#x}")).map(drop)
    }

    /// Writes four bytes to a port.
    pub fn outl(&mut self, port: u16, value: u32) -> Result<()> {
        self.command(&format!("outl {port:#x} {value:#x}")).map(drop)
    }

    /// Reads memory in one access of 1, 2, 4 or 8 bytes.
    pub fn load(&mut self, addr: u64, size: u8) -> Result<u64> {
        self.number(&format!("read{} {addr:#x}", letter(size)?))
    }

    /// Writes memory in one access of 1, 2, 4 or 8 bytes.
    pub fn store(&mut self, addr: u64, size: u8, value: u64) -> Result<()> {
        self.command(&format!("write{} {addr:#x} {value:#x}", letter(size)?)).map(drop)
    }

    /// Reads a block of memory.
    pub fn read(&mut self, addr: u64, len: usize) -> Result<Vec<u8>> {
        let answer = self.command(&format!("read {addr:#x} {len:#x}"))?;
        let digits = answer.strip_prefix("0x").context("no block came")?;
        let byte = |at: usize| digits.get(2 * at..2 * at + 2).map(|d| u8::from_str_radix(d, 16));
        (0..len).map(|at| Ok(byte(at).context("the block is short")??)).collect()
    }

    /// Writes a block of memory.
    pub fn write(&mut self, addr: u64, bytes: &[u8]) -> Result<()> {
        let mut command = format!("write {addr:#x} {:#x} 0x", bytes.len());
        for byte in bytes {
            write!(command, "{byte:02x}")?;
        }
        self.command(&command).map(drop)
    }

    /// Lets `ns` nanoseconds of guest time pass; returns the time then.
    pub fn clock_step(&mut self, ns: u64) -> Result<u64> {
        self.number(&format!("clock_step {ns}"))
    }

    /// Lets guest time pass until the next timer is due; returns the time then.
    pub fn clock_step_next(&mut self) -> Result<u64> {
        self.number("clock_step")
    }

    /// Listens to the I/O APIC's inputs.
    pub fn intercept_ioapic(&mut self) -> Result<()> {
        self.command("irq_intercept_in ioapic").map(drop)
    }

    /// Whether an intercepted line was high when the last answer came.
    pub fn line(&self, line: u8) -> bool {
        self.lines & 1 << line != 0
    }

    /// How often an intercepted line has risen.
    pub fn rises(&self, line: u8) -> u32 {
        self.rises[usize::from(line)]
    }

    /// Reads a register of PCI bus 0 by configuration mechanism 1; `size` is 1, 2 or 4 bytes.
    pub fn config_read(&mut self, devfn: u8, offset: u8, size: u8) -> Result<u32> {
        self.outl(0xcf8, 1 << 31 | u32::from(devfn) << 8 | u32::from(offset & 0xfc))?;
        let port = 0xcfc + u16::from(offset & 3);
        Ok(self.number(&format!("in{} {port:#x}", letter(size)?))? as u32)
    }

    /// Writes a register of PCI bus 0.
    pub fn config_write(&mut self, devfn: u8, offset: u8, size: u8, value: u32) -> Result<()> {
        self.outl(0xcf8, 1 << 31 | u32::from(devfn) << 8 | u32::from(offset & 0xfc))?;
        let port = 0xcfc + u16::from(offset & 3);
        self.command(&format!("out{} {port:#x} {value:#x}", letter(size)?)).map(drop)
    }
}

impl Drop for Qtest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn letter(size: u8) -> Result<char> {
    match size {
        1 => Ok('b'),
        2 => Ok('w'),
        4 => Ok('l'),
        8 => Ok('q'),
        _ => bail!("an access of {size} bytes"),
    }
}

/// Whether the program can leave its CPUs standing by `-accel qtest`.
fn has_accelerator(binary: &Path) -> Result<bool> {
    let output = Command::new(binary)
        .args(["-accel", "help"])
        .output()
        .with_context(|| format!("cannot start {}", binary.display()))?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().any(|line| line.trim() == "qtest"))
}

/// A command that two machines answered differently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The command's number in its script, from 0.
    pub index: usize,
    /// The command.
    pub command: String,
    /// What the first machine answered, with the lines that were high then.
    pub left: String,
    /// What the second machine answered.
    pub right: String,
}

/// Gives both machines the same commands, one a line, and returns those that they answered differently
/// or that left them with different interrupt lines. Empty lines and those that begin with `#` are for
/// readers.
pub fn compare(left: &mut Qtest, right: &mut Qtest, script: &str) -> Result<Vec<Difference>> {
    let commands =
        script.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut differences = Vec::new();
    for (index, command) in commands.enumerate() {
        let ask = |machine: &mut Qtest| -> Result<String> {
            let answer = machine.ask(command)?;
            let lines = (0..64).filter(|line| machine.lines & 1 << line != 0);
            let high: Vec<String> = lines.map(|line| line.to_string()).collect();
            Ok(if high.is_empty() { answer } else { format!("{answer} IRQ {}", high.join(",")) })
        };
        let (left, right) = (ask(left)?, ask(right)?);
        if left != right {
            differences.push(Difference { index, command: command.to_owned(), left, right });
        }
    }
    Ok(differences)
}
