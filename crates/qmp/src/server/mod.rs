//! The server: many sessions on one thread, none of which can hold up another.
//!
//! A [`Server`] owns the transports: listening sockets with any number of clients each, client sockets
//! that connect (again), character devices. Every connection is a session of its own. All of them
//! share one thread; commands are futures, so a command that waits for a disk or a vCPU delays only the
//! commands behind it in its own session. [`ServerHandle`] adds transports and stops the server from
//! any thread.
//!
//! # Clients that don't read
//! Replies and events wait in bounded memory. Beyond a mark the session stops to read and to begin
//! commands; when the events kept for it exceed [`MAILBOX_BYTES`](crate::events::MAILBOX_BYTES) it is
//! disconnected. Others notice nothing.
//!
//! # The end
//! After [`ServerHandle::stop`], sessions begin no further command; replies and events on their way are
//! still written, for at most [`FLUSH_TIME`]. A `quit` handler calls it and returns: its reply goes out,
//! and what was pipelined behind it gets no answer.

mod chardev_stream;
mod contract;
mod request;
mod session;
mod transport;

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use chardev::CharBackend;
pub use chardev::socket::Endpoint;
use serde_json::{Map, Value};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio::task::LocalSet;

use crate::QmpError;
use crate::events::EventBus;
pub use contract::SchemaService;
pub use transport::MonitorInfo;

/// How long the server waits at its end for clients to read their last replies.
pub const FLUSH_TIME: Duration = Duration::from_millis(500);

/// What a session must know of a command before it runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandInfo {
    /// Whether it may run out of band.
    pub allow_oob: bool,
}

/// What answers the commands: the machine, as far as a session sees it.
///
/// `qmp_capabilities` is not among the commands; the session answers it itself.
pub trait Service: 'static {
    /// The `version` of the greeting.
    fn version(&self) -> Value;

    /// The command of that name, or `None` if there is none.
    fn command(&self, name: &str) -> Option<CommandInfo>;

    /// Runs a command. It must never block its thread, which serves all sessions; it may wait.
    /// It isn't cancelled when its client leaves, but it may be when the server ends.
    fn execute(
        &self,
        name: &str,
        arguments: Map<String, Value>,
    ) -> impl Future<Output = Result<Value, QmpError>>;
}

/// How a session talks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionOptions {
    /// Output spread over lines, for people.
    pub pretty: bool,
    /// The session goes on at the end of its input, for the events: standard input may be a file.
    pub stays: bool,
}

/// A transport to serve, as sent to the server's thread.
struct Addition {
    source: Source,
    options: SessionOptions,
    info: Arc<MonitorInfo>,
}

enum Source {
    Endpoint(Endpoint),
    Chardev(Arc<dyn CharBackend>),
}

/// Adds transports and stops the server, from any thread.
#[derive(Clone)]
pub struct ServerHandle {
    additions: mpsc::UnboundedSender<Addition>,
    stop: Arc<watch::Sender<bool>>,
}

impl ServerHandle {
    /// Serves the clients of `endpoint` from now on. `label` names it in `query-chardev`, which what is
    /// returned feeds.
    pub fn add(
        &self,
        label: &str,
        endpoint: Endpoint,
        options: SessionOptions,
    ) -> Arc<MonitorInfo> {
        let info = Arc::new(MonitorInfo::new(label, &endpoint));
        // A server that has ended serves nobody; its process is about to end, too.
        let source = Source::Endpoint(endpoint);
        let _ = self.additions.send(Addition { source, options, info: info.clone() });
        info
    }

    /// Serves whoever is at the other end of a character device, which the caller owns.
    pub fn add_chardev(&self, backend: Arc<dyn CharBackend>, options: SessionOptions) {
        let info = Arc::new(MonitorInfo::unnamed());
        let _ = self.additions.send(Addition { source: Source::Chardev(backend), options, info });
    }

    /// Lets the server end once all replies on their way are written. Doesn't wait for it.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }
}

/// Serves a machine's monitors.
pub struct Server<S> {
    service: Arc<S>,
    bus: Arc<EventBus>,
    additions: mpsc::UnboundedReceiver<Addition>,
    stop: watch::Receiver<bool>,
}

impl<S: Service> Server<S> {
    /// A server without transports yet, and the handle that gives it some.
    pub fn new(service: Arc<S>, bus: Arc<EventBus>) -> (Server<S>, ServerHandle) {
        let (additions, received) = mpsc::unbounded_channel();
        let (stop, stopped) = watch::channel(false);
        let handle = ServerHandle { additions, stop: Arc::new(stop) };
        (Server { service, bus, additions: received, stop: stopped }, handle)
    }

    /// Serves until it is stopped. On the runtime of the caller, which must be able to run local tasks.
    pub async fn run(mut self) {
        let sessions = LocalSet::new();
        let bus = self.bus.clone();
        sessions.spawn_local(async move { bus.run_timers().await });
        let (alive, mut all_ended) = mpsc::channel::<()>(1);
        let mut stop = self.stop.clone();
        sessions
            .run_until(async {
                loop {
                    tokio::select! {
                        biased;
                        _ = stop.wait_for(|stop| *stop) => break,
                        addition = self.additions.recv() => {
                            let Some(addition) = addition else { break };
                            let host = transport::Host {
                                service: self.service.clone(),
                                bus: self.bus.clone(),
                                stop: self.stop.clone(),
                                options: addition.options,
                                info: addition.info,
                                alive: alive.clone(),
                            };
                            match addition.source {
                                Source::Endpoint(endpoint) => {
                                    tokio::task::spawn_local(host.serve(endpoint));
                                }
                                Source::Chardev(backend) => {
                                    tokio::task::spawn_local(host.serve_chardev(backend));
                                }
                            }
                        }
                    }
                }
                drop(alive);
                // Sessions hold a sender each; the channel closes when the last one has ended.
                let _ = tokio::time::timeout(FLUSH_TIME, all_ended.recv()).await;
            })
            .await;
    }

    /// Serves on a thread of its own.
    pub fn spawn(self) -> io::Result<JoinHandle<()>>
    where
        S: Send + Sync,
    {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("monitor".to_owned()).spawn(move || {
            runtime.block_on(self.run());
            runtime.shutdown_background();
        })
    }
}

/// Serves one connected client until it leaves: for embedding, and for tests without sockets.
pub async fn serve_stream<S: Service>(
    service: Arc<S>,
    bus: Arc<EventBus>,
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    options: SessionOptions,
) {
    let (_running, stop) = watch::channel(false);
    let session = session::Session::new(service, bus, options, stream, stop);
    LocalSet::new().run_until(session.run()).await;
}
