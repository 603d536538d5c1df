//! Where clients come from.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chardev::CharBackend;
use chardev::socket::{Endpoint, Listening, SocketListener, SocketSpec, SocketStream};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, mpsc, watch};

use super::chardev_stream::ChardevStream;
use super::session::Session;
use super::{Service, SessionOptions};
use crate::events::EventBus;

/// Clients of one listening socket at a time; more wait in the socket's backlog.
const CLIENTS: usize = 256;
/// How long to wait when the system can't accept a connection, say for want of descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// What `query-chardev` tells about a monitor's transport.
#[derive(Debug)]
pub struct MonitorInfo {
    label: String,
    disconnected: String,
    connected: Mutex<String>,
    sessions: AtomicUsize,
}

impl MonitorInfo {
    pub(super) fn new(label: &str, endpoint: &Endpoint) -> MonitorInfo {
        let disconnected = endpoint.spec().disconnected();
        MonitorInfo { label: label.to_owned(), disconnected, ..MonitorInfo::unnamed() }
    }

    /// For a transport that tells about itself.
    pub(super) fn unnamed() -> MonitorInfo {
        MonitorInfo {
            label: String::new(),
            disconnected: String::new(),
            connected: Mutex::default(),
            sessions: AtomicUsize::new(0),
        }
    }

    /// The label given to [`ServerHandle::add`](super::ServerHandle::add).
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The address, with that of the client who came last while one is connected.
    pub fn filename(&self) -> String {
        if self.sessions() == 0 {
            return self.disconnected.clone();
        }
        self.connected.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Clients connected now.
    pub fn sessions(&self) -> usize {
        self.sessions.load(Ordering::Relaxed)
    }

    fn enter(self: &Arc<Self>, description: String) -> Presence {
        *self.connected.lock().unwrap_or_else(PoisonError::into_inner) = description;
        self.sessions.fetch_add(1, Ordering::Relaxed);
        Presence(self.clone())
    }
}

/// Counts a session while it lives.
struct Presence(Arc<MonitorInfo>);

impl Drop for Presence {
    fn drop(&mut self) {
        self.0.sessions.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What all sessions of a transport share.
pub(super) struct Host<S> {
    pub(super) service: Arc<S>,
    pub(super) bus: Arc<EventBus>,
    pub(super) stop: watch::Receiver<bool>,
    pub(super) options: SessionOptions,
    pub(super) info: Arc<MonitorInfo>,
    /// Held by each session until its end.
    pub(super) alive: mpsc::Sender<()>,
}

impl<S: Service> Host<S> {
    pub(super) async fn serve(self, endpoint: Endpoint) {
        match endpoint {
            Endpoint::Listener(listener, first) => self.listen(listener, first).await,
            Endpoint::Connector(spec, first) => self.connect(spec, first).await,
        }
    }

    async fn listen(self, listener: SocketListener, first: Option<SocketStream>) {
        let mut stop = self.stop.clone();
        let Ok(acceptor) = Acceptor::new(&listener) else { return };
        let room = Arc::new(Semaphore::new(CLIENTS));
        let host = Arc::new(self);
        let admit = |stream: SocketStream, permit| {
            let host = host.clone();
            let description = listener.connected(&stream);
            tokio::task::spawn_local(async move {
                host.converse(stream, description).await;
                drop(permit);
            });
        };
        if let Some(stream) = first {
            admit(stream, room.clone().acquire_owned().await.ok());
        }
        let accept_all = async {
            loop {
                let permit = room.clone().acquire_owned().await.ok();
                match acceptor.accept().await {
                    Ok(stream) => admit(stream, permit),
                    Err(_) => tokio::time::sleep(ACCEPT_RETRY).await,
                }
            }
        };
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => {}
            () = accept_all => {}
        }
    }

    async fn connect(self, spec: SocketSpec, first: Option<SocketStream>) {
        let mut stop = self.stop.clone();
        let mut next = first;
        let connect_all = async {
            loop {
                if let Some(stream) = next.take() {
                    let description = stream.describe(false);
                    self.converse(stream, description).await;
                }
                let Some(pause) = spec.reconnect else { return };
                tokio::time::sleep(pause).await;
                let attempt = spec.clone();
                // Resolving a name and connecting may take long: not on the thread of the sessions.
                let connected =
                    tokio::task::spawn_blocking(move || SocketStream::connect(&attempt)).await;
                next = connected.ok().and_then(Result::ok);
            }
        };
        tokio::pin!(connect_all);
        tokio::select! {
            () = &mut connect_all => return,
            _ = stop.wait_for(|stop| *stop) => {}
        }
        if self.info.sessions() > 0 {
            // The session itself sees the stop, too, and flushes.
            connect_all.await;
        }
    }

    pub(super) async fn serve_chardev(self, backend: Arc<dyn CharBackend>) {
        let stream = ChardevStream::attach(backend);
        let mut stop = self.stop.clone();
        loop {
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                () = stream.opened() => {}
            }
            let _alive = self.alive.clone();
            self.session(&stream).await;
            if self.options.stays || *self.stop.borrow() {
                return;
            }
        }
    }

    async fn converse(&self, stream: SocketStream, description: String) {
        let _alive = self.alive.clone();
        let _present = self.info.enter(description);
        if stream.set_nonblocking(true).is_err() {
            return;
        }
        match stream {
            SocketStream::Unix(stream) => {
                if let Ok(stream) = tokio::net::UnixStream::from_std(stream) {
                    self.session(stream).await;
                }
            }
            SocketStream::Tcp(stream) => {
                // Replies are complete when they are written: nothing is gained by holding them back.
                let _ = stream.set_nodelay(true);
                if let Ok(stream) = tokio::net::TcpStream::from_std(stream) {
                    self.session(stream).await;
                }
            }
        }
    }

    async fn session(&self, stream: impl AsyncRead + AsyncWrite + Unpin) {
        let (service, bus) = (self.service.clone(), self.bus.clone());
        Session::new(service, bus, self.options, stream, self.stop.clone()).run().await;
    }
}

/// The listening socket in the hands of the event loop.
enum Acceptor {
    Unix(tokio::net::UnixListener),
    Tcp(tokio::net::TcpListener),
}

impl Acceptor {
    fn new(listener: &SocketListener) -> io::Result<Acceptor> {
        Ok(match listener.try_clone()? {
            Listening::Unix(listener) => Acceptor::Unix(listener.try_into()?),
            Listening::Tcp(listener) => Acceptor::Tcp(listener.try_into()?),
        })
    }

    async fn accept(&self) -> io::Result<SocketStream> {
        match self {
            Acceptor::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.into_std().map(SocketStream::Unix)
            }
            Acceptor::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.into_std().map(SocketStream::Tcp)
            }
        }
    }
}
