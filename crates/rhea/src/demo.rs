//! `-demo`: a built-in guest with a disk, a timer and a serial port, and a QMP client that asks about it.
//!
//! Nothing here is special: the guest's serial port and the monitor are Unix sockets in a temporary
//! folder, and the tour is a client of both, as any other program could be.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, IsTerminal, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use chardev::ChardevSpec;
use chardev::socket::{SocketAddress, SocketSpec};
use cli::{Config, MonitorSpec};
use machine::spec::{BootImage, DirectBoot, DriveInterface, DriveSpec, NamedChardev, SerialSpec};
use qmp::client::{Address, BlockingClient};
use serde_json::{Map, Value};

/// RAM of the demonstration's machine, in bytes.
const MEMORY: u64 = 64 << 20;
/// Size of its disk, in bytes.
const DISK: u64 = 1 << 20;
/// What the guest says once it has tried everything.
const READY: &str = "guest: ready";
/// What the tour asks.
const QUESTIONS: [&str; 5] =
    ["query-version", "query-status", "query-cpus", "query-block", "query-blockstats"];

/// The folder with the demonstration's sockets and disk, removed when dropped.
pub(crate) struct Demo {
    folder: tempfile::TempDir,
    has_failed: Arc<AtomicBool>,
}

impl Demo {
    /// Makes the folder, and turns `config` into the demonstration's machine.
    pub(crate) fn prepare(config: &mut Config) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("rhea-demo-")
            .tempdir()
            .context("-demo: cannot make a temporary folder")?;
        let demo = Self { folder, has_failed: Arc::default() };
        File::create(demo.disk())
            .and_then(|file| file.set_len(DISK))
            .context("-demo: cannot make a disk image")?;
        let socket =
            |path: PathBuf| ChardevSpec::Socket(SocketSpec::server(SocketAddress::Unix(path)));
        let machine = &mut config.machine;
        machine.name = Some("demo".to_owned());
        machine.memory = MEMORY;
        machine.boot = Some(DirectBoot {
            kernel: BootImage::Embedded("the demonstration guest", demo_guest::IMAGE),
            ..DirectBoot::default()
        });
        // The guest's first words wait for the tour to listen.
        machine.start_paused = true;
        machine.chardevs = vec![
            NamedChardev { id: "serial0".to_owned(), spec: socket(demo.serial()) },
            NamedChardev { id: "monitor".to_owned(), spec: socket(demo.monitor()) },
        ];
        machine.serials = vec![SerialSpec::Chardev("serial0".to_owned())];
        machine.parallels.clear();
        machine.drives = vec![DriveSpec {
            id: "disk0".to_owned(),
            file: Some(demo.disk()),
            interface: DriveInterface::Virtio,
            options: Map::from_iter([("format".to_owned(), Value::from("raw"))]),
            ..DriveSpec::default()
        }];
        config.monitors = vec![MonitorSpec { chardev: "monitor".to_owned(), pretty: false }];
        Ok(demo)
    }

    /// Shows the guest and the monitor on a thread of its own. Once the tour is over it calls `quit`,
    /// unless somebody sits at a terminal.
    pub(crate) fn start_tour(&self, quit: impl Fn() + Send + 'static) -> Result<()> {
        let (serial, monitor) = (self.serial(), self.monitor());
        let has_failed = Arc::clone(&self.has_failed);
        std::thread::Builder::new()
            .name("tour".to_owned())
            .spawn(move || {
                match tour(&serial, &monitor, &mut std::io::stdout()) {
                    Ok(Next::Stay) => return,
                    Ok(Next::Quit) => {}
                    // Whoever read has seen enough.
                    Err(e) if is_broken_pipe(&e) => {}
                    Err(e) => {
                        eprintln!("rhea: -demo: {e:#}");
                        has_failed.store(true, Ordering::SeqCst);
                    }
                }
                quit();
            })
            .context("-demo: cannot start a thread")?;
        Ok(())
    }

    /// Whether the tour broke off.
    pub(crate) fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::SeqCst)
    }

    fn disk(&self) -> PathBuf {
        self.folder.path().join("disk.img")
    }

    fn serial(&self) -> PathBuf {
        self.folder.path().join("serial.sock")
    }

    fn monitor(&self) -> PathBuf {
        self.folder.path().join("qmp.sock")
    }
}

/// What happens to the machine after the tour.
enum Next {
    Stay,
    Quit,
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe)
}

fn tour(serial: &Path, monitor: &Path, out: &mut impl Write) -> Result<Next> {
    writeln!(out, "A guest boots in software; this is its serial port:\n")?;
    let lines = BufReader::new(UnixStream::connect(serial).context("no serial port")?).lines();
    let mut client = BlockingClient::connect(&Address::Unix(monitor.to_owned()), false)?;
    client.execute("cont", Map::new())?;
    for line in lines {
        let line = line?;
        writeln!(out, "    {}", line.trim_end())?;
        if line.trim_end() == READY {
            break;
        }
    }
    writeln!(out, "\nIts monitor answers QMP meanwhile:\n")?;
    for question in QUESTIONS {
        writeln!(out, "-> {{\"execute\": \"{question}\"}}")?;
        writeln!(out, "<- {}\n", client.execute(question, Map::new())?)?;
    }
    let stay = std::io::stdin().is_terminal();
    if stay {
        writeln!(out, "The machine goes on. Ask it yourself, from another terminal:\n")?;
    } else {
        writeln!(out, "With a terminal, the machine would go on for you to ask it:\n")?;
    }
    let socket = monitor.display();
    writeln!(out, "    cargo run --release -p qmpctl -- -s {socket} query-blockstats")?;
    writeln!(out, "    cargo run --release -p qmpctl -- -s {socket} shell")?;
    if stay {
        writeln!(out, "\nCtrl-C, or quit by QMP, ends it.")?;
    }
    Ok(if stay { Next::Stay } else { Next::Quit })
}
