//! One emulator process under test.

use crate::{Guest, Qmp, Serial, deadline, workspace};
use anyhow::{Context as _, Result, bail};
use std::cell::RefCell;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// On its command line, keeps Linux from testing its cryptography.
pub const NO_SELF_TESTS: &str = "cryptomgr.notests";

/// A command line under construction. It starts as `-nodefaults -display none -accel tcg` with a
/// serial console on standard input and output and a QMP socket.
pub struct VmBuilder {
    binary: PathBuf,
    arguments: Vec<OsString>,
    directory: TempDir,
}

impl VmBuilder {
    /// Starts the command line of `binary`.
    pub fn new(binary: &Path) -> Result<Self> {
        let builder = Self::bare(binary)?;
        let qmp = format!("unix:{},server=on,wait=off", builder.path("qmp.sock").display());
        Ok(builder
            .args(["-nodefaults", "-display", "none", "-accel", "tcg", "-serial", "stdio", "-qmp"])
            .args([qmp]))
    }

    /// Starts a command line with no arguments at all.
    pub fn bare(binary: &Path) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("rhea-vm-").tempdir()?;
        Ok(Self { binary: binary.to_owned(), arguments: Vec::new(), directory })
    }

    /// A path in the temporary directory of this machine.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Appends arguments.
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// Boots the Linux guest with 256 MiB; `mode` is what `/init` is to do.
    ///
    /// The kernel's self-tests of its cryptography are nearly half of the instructions of a boot;
    /// they run in the mode `shell` only, which boots as a user's kernel would.
    pub fn linux(self, guest: &Guest, mode: &str) -> Self {
        self.linux_with(guest, mode, if mode == "shell" { "" } else { NO_SELF_TESTS })
    }

    /// The same with `words` at the end of the kernel's command line, and with all self-tests unless one
    /// of them is [`NO_SELF_TESTS`].
    pub fn linux_with(self, guest: &Guest, mode: &str, words: &str) -> Self {
        let append = format!("console=ttyS0 panic=-1 rhea.test={mode} {words}");
        self.args(["-m", "256", "-append", &append])
            .args([OsStr::new("-kernel"), guest.kernel.as_os_str()])
            .args([OsStr::new("-initrd"), guest.initrd.as_os_str()])
    }

    /// Boots a guest of a few instructions; see [`crate::bare`].
    pub fn code(self, code: &[u8]) -> Result<Self> {
        let kernel = self.path("bare.elf");
        fs::write(&kernel, crate::bare::elf(code))?;
        Ok(self.args([OsStr::new("-kernel"), kernel.as_os_str()]))
    }

    /// Adds a virtio disk with an empty ext4 file system, as `disk0`.
    pub fn disk(self) -> Result<Self> {
        let image = self.path("disk.raw");
        crate::disk_image(&image)?;
        let drive = format!("file={},format=raw,if=none,id=disk0", image.display());
        Ok(self.args(["-drive", &drive, "-device", "virtio-blk-pci,drive=disk0"]))
    }

    /// Starts the process.
    pub fn spawn(self) -> Result<Vm> {
        let stderr = self.path("stderr");
        let mut child = Command::new(&self.binary)
            .args(&self.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&stderr)?)
            .spawn()
            .with_context(|| format!("cannot start {}", self.binary.display()))?;
        let reader = child.stdout.take().context("standard output is a pipe")?;
        let writer = child.stdin.take().context("standard input is a pipe")?;
        let arguments: Vec<_> = self.arguments.iter().map(|a| a.to_string_lossy()).collect();
        let command_line = format!("{} {}", self.binary.display(), arguments.join(" "));
        let serial = Serial::new(reader, writer);
        Ok(Vm { child, serial, qmp: None, directory: self.directory, command_line })
    }
}

/// A running emulator. It is killed when dropped. See [`run`] for what becomes of its output.
pub struct Vm {
    child: Child,
    /// Standard input and output of the process, which is its serial console unless the command
    /// line says otherwise.
    pub serial: Serial,
    qmp: Option<Qmp>,
    directory: TempDir,
    command_line: String,
}

impl Vm {
    /// A path in the temporary directory of this machine.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The monitor, connected and negotiated at the first call.
    pub fn qmp(&mut self) -> Result<&mut Qmp> {
        if self.qmp.is_none() {
            self.qmp = Some(self.connect_raw("qmp.sock")?.negotiated()?);
        }
        self.qmp.as_mut().context("just connected")
    }

    /// Another session, not negotiated, on the monitor socket called `name`.
    pub fn connect_raw(&mut self, name: &str) -> Result<Qmp> {
        Qmp::new(self.connect(name)?)
    }

    /// Connects to the socket called `name` in the machine's directory, as soon as it is there.
    pub fn connect(&mut self, name: &str) -> Result<UnixStream> {
        let path = self.path(name);
        let end = Instant::now() + deadline();
        loop {
            if let Ok(stream) = UnixStream::connect(&path) {
                return Ok(stream);
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status}: {}", self.command_line, self.stderr());
            }
            if Instant::now() > end {
                bail!("nothing listens at {}: {}", path.display(), self.stderr());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits for the end of the process.
    pub fn wait_exit(&mut self) -> Result<ExitStatus> {
        let end = Instant::now() + deadline();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > end {
                bail!("the process does not end: {}", self.command_line);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Whether the process still runs.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// What the process wrote to standard error so far.
    pub fn stderr(&self) -> String {
        fs::read_to_string(self.path("stderr")).unwrap_or_default()
    }

    fn transcripts(&self) -> Transcripts {
        [
            ("command-line", self.command_line.clone()),
            ("serial", self.serial.transcript()),
            ("stderr", self.stderr()),
            ("qmp", self.qmp.as_ref().map(Qmp::transcript).unwrap_or_default()),
        ]
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let transcripts = self.transcripts();
        ENDED.with_borrow_mut(|ended| ended.push(transcripts));
    }
}

type Transcripts = [(&'static str, String); 4];

thread_local! {
    /// What the machines of this test said, those that have ended.
    static ENDED: RefCell<Vec<Transcripts>> = const { RefCell::new(Vec::new()) };
}

/// Runs the body of the test called `name`. If it fails, what its machines said is kept below
/// `target/test-artifacts/NAME` and the test panics with the whole chain of causes.
pub fn run(name: &str, body: impl FnOnce() -> Result<()>) {
    ENDED.with_borrow_mut(Vec::clear);
    let failure = match std::panic::catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return,
        // Without the backtrace, which shows the test runner only.
        Ok(Err(error)) => format!("{error:#}"),
        // The message is out already.
        Err(_) => "a check failed, see above".to_owned(),
    };
    let directory = workspace().join("target/test-artifacts").join(name);
    let kept = ENDED.with_borrow(|ended| -> std::io::Result<()> {
        for (index, transcripts) in ended.iter().enumerate() {
            let directory = directory.join(index.to_string());
            fs::create_dir_all(&directory)?;
            for (name, text) in transcripts {
                fs::write(directory.join(name), text)?;
            }
        }
        Ok(())
    });
    if let Err(error) = kept {
        eprintln!("cannot keep what the machines said: {error}");
    }
    panic!("{failure}\nwhat the machines said is in {}", directory.display());
}
