//! The QMP monitors of a command line: their connections, and the server that answers on them.

use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail};
use chardev::ChardevSpec;
use chardev::socket::{SocketListener, SocketSpec, SocketStream};
use cli::Config;
use machine::Machine;
use monitor::{Connections, Monitor};
use qmp::events::EventBus;
use qmp::server::{Endpoint, SchemaService, Server, ServerHandle, SessionOptions};

/// Connections that are open but not served yet.
pub(crate) struct Monitors {
    endpoints: Vec<(String, Endpoint, SessionOptions)>,
}

/// The running server.
pub(crate) struct Serving {
    handle: ServerHandle,
    thread: JoinHandle<()>,
}

impl Monitors {
    /// Opens the character devices that monitors use, and takes them out of the machine's.
    pub(crate) fn open(config: &mut Config) -> Result<Self> {
        let mut endpoints = Vec::new();
        for monitor in &config.monitors {
            let chardevs = &mut config.machine.chardevs;
            let Some(at) = chardevs.iter().position(|c| c.id == monitor.chardev) else {
                bail!("chardev \"{}\" not found", monitor.chardev);
            };
            let chardev = chardevs.remove(at);
            let ChardevSpec::Socket(spec) = &chardev.spec else {
                bail!("-mon: chardev '{}' must be a socket", chardev.id);
            };
            let options = SessionOptions { pretty: monitor.pretty, ..SessionOptions::default() };
            endpoints.push((chardev.id, open_socket(spec)?, options));
        }
        Ok(Self { endpoints })
    }

    /// Starts to answer for `machine`.
    pub(crate) fn serve(self, machine: Arc<Machine>, events: Arc<EventBus>) -> Result<Serving> {
        let connections = Connections::default();
        let monitor = Monitor::new(machine, connections.clone());
        let service = Arc::new(SchemaService::new(monitor, &monitor::version()));
        let (server, handle) = Server::new(service, events);
        let thread = server.spawn().context("cannot start the monitor's thread")?;
        let infos = self.endpoints.into_iter();
        let infos = infos.map(|(label, endpoint, options)| handle.add(&label, endpoint, options));
        // Nobody else sets it.
        let _ = connections.set(infos.collect());
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

fn open_socket(spec: &SocketSpec) -> Result<Endpoint> {
    Ok(if spec.server {
        let listener = SocketListener::bind(spec)?;
        let first = if spec.wait { Some(listener.accept(true)?) } else { None };
        Endpoint::Listener(listener, first)
    } else {
        Endpoint::Connector(spec.clone(), Some(SocketStream::connect(spec)?))
    })
}
