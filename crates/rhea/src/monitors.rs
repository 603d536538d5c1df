//! The QMP monitors of a command line: their connections, and the server that answers on them.

use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail};
use chardev::{Chardev, ChardevSpec, Notice};
use cli::Config;
use machine::Machine;
use machine::spec::NamedChardev;
use monitor::{Connection, Connections, Monitor};
use qmp::events::EventBus;
use qmp::server::{Endpoint, SchemaService, Server, ServerHandle, SessionOptions};

/// A connection that is open but not served yet.
enum Open {
    Socket(String, Endpoint),
    Chardev(Arc<Chardev>),
}

/// Connections that are open but not served yet.
pub(crate) struct Monitors {
    open: Vec<(Open, SessionOptions)>,
}

/// The running server.
pub(crate) struct Serving {
    handle: ServerHandle,
    thread: JoinHandle<()>,
}

impl Monitors {
    /// Opens the character devices that monitors use, and takes them out of the machine's.
    pub(crate) fn open(config: &mut Config) -> Result<Self> {
        let notify = |notice: &Notice| eprintln!("{notice}");
        let mut open = Vec::new();
        for monitor in &config.monitors {
            let chardevs = &mut config.machine.chardevs;
            let Some(at) = chardevs.iter().position(|c| c.id == monitor.chardev) else {
                bail!("chardev \"{}\" not found", monitor.chardev);
            };
            let NamedChardev { id, spec } = chardevs.remove(at);
            let pretty = monitor.pretty;
            open.push(match &spec {
                ChardevSpec::Socket(spec) => {
                    let endpoint = Endpoint::open(&id, spec, &notify)?;
                    (Open::Socket(id, endpoint), SessionOptions { pretty, stays: false })
                }
                other => {
                    // A shared terminal has one user here; the multiplexer would only swallow keys.
                    let spec = if let ChardevSpec::Mux(inner) = other { inner } else { other };
                    let chardev = Chardev::open(&id, spec, &notify)?;
                    (Open::Chardev(chardev), SessionOptions { pretty, stays: true })
                }
            });
        }
        Ok(Self { open })
    }

    /// Starts to answer for `machine`.
    pub(crate) fn serve(self, machine: Arc<Machine>, events: Arc<EventBus>) -> Result<Serving> {
        let connections = Connections::default();
        let monitor = Monitor::new(machine, connections.clone());
        let service = Arc::new(SchemaService::new(monitor, &monitor::version()));
        let (server, handle) = Server::new(service, events);
        let thread = server.spawn().context("cannot start the monitor's thread")?;
        let served = self.open.into_iter().map(|(open, options)| match open {
            Open::Socket(label, endpoint) => {
                Connection::Socket(handle.add(&label, endpoint, options))
            }
            Open::Chardev(chardev) => {
                handle.add_chardev(chardev.clone(), options);
                Connection::Chardev(chardev)
            }
        });
        // Nobody else sets it.
        let _ = connections.set(served.collect());
        Ok(Serving { handle, thread })
    }
}

impl Serving {
    /// Lets replies that are on their way reach their clients, and ends.
    pub(crate) fn end(self) {
        self.handle.stop();
        // A panic of the server has been reported by itself.
        let _ = self.thread.join();
    }
}
