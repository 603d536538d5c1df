//! The client side: connect, negotiate, execute, listen.
//!
//! [`Client`] is async, [`BlockingClient`] is the same without a runtime. Both work with any QMP server,
//! and are typed by the schema where it knows the command ([`Client::call`]); [`Client::execute`] takes any
//! name. Events that arrive while a reply is awaited are kept, in order, for [`Client::event`].

mod blocking;
mod wire;

use std::collections::VecDeque;
use std::path::Path;

use schema::{Command, QmpError};
use serde_json::{Map, Value};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

pub use blocking::BlockingClient;
pub use wire::{Greeting, ReceivedEvent};
use wire::{Message, Wire};

/// Where a server is: a Unix socket's path, or `HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A Unix socket.
    Unix(std::path::PathBuf),
    /// A TCP socket.
    Tcp(String),
}

impl From<&str> for Address {
    /// A text with a slash, or without a port at its end, is a path; `unix:` and `tcp:` say which it is.
    fn from(text: &str) -> Address {
        if let Some(path) = text.strip_prefix("unix:") {
            return Address::Unix(path.into());
        }
        if let Some(rest) = text.strip_prefix("tcp:") {
            return Address::Tcp(rest.to_owned());
        }
        let port = text.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
        match port {
            Some(Ok(_)) if !text.contains('/') => Address::Tcp(text.to_owned()),
            _ => Address::Unix(text.into()),
        }
    }
}

/// Why a conversation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// There is no server, or it can't be reached.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// Where it should be.
        address: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Reading or writing failed.
    #[error("the connection failed: {0}")]
    Io(#[from] std::io::Error),
    /// The server closed the connection.
    #[error("the server closed the connection")]
    Closed,
    /// What came isn't QMP.
    #[error("the server doesn't speak QMP: {0}")]
    Protocol(String),
    /// The server refused the command.
    #[error("{class}: {}", .error.desc)]
    Refused {
        /// The class on the wire, also one that the schema doesn't know.
        class: String,
        /// The error.
        error: QmpError,
    },
    /// What came back isn't what the schema says.
    #[error("unexpected answer to {command}: {source}")]
    Answer {
        /// The command.
        command: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A conversation with a server, past its negotiation.
pub struct Client {
    stream: Box<dyn Stream>,
    wire: Wire,
    events: VecDeque<ReceivedEvent>,
}

impl Client {
    /// Connects and negotiates, with out-of-band commands if the server offers them and `oob` is set.
    pub async fn connect(address: &Address, oob: bool) -> Result<Client, ClientError> {
        match address {
            Address::Unix(path) => Client::unix(path, oob).await,
            Address::Tcp(address) => {
                let connected = tokio::net::TcpStream::connect(address).await;
                let stream = connected
                    .map_err(|source| ClientError::Connect { address: address.clone(), source })?;
                stream.set_nodelay(true)?;
                Client::negotiate(stream, oob).await
            }
        }
    }

    async fn unix(path: &Path, oob: bool) -> Result<Client, ClientError> {
        let connected = tokio::net::UnixStream::connect(path).await;
        let stream = connected.map_err(|source| ClientError::Connect {
            address: path.display().to_string(),
            source,
        })?;
        Client::negotiate(stream, oob).await
    }

    /// Negotiates over a stream that is connected.
    pub async fn negotiate(
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        oob: bool,
    ) -> Result<Client, ClientError> {
        let stream = Box::new(stream);
        let mut client = Client { stream, wire: Wire::new(), events: VecDeque::new() };
        let greeting = client.receive().await?;
        let request = client.wire.greeted(greeting, oob)?;
        client.stream.write_all(&request).await?;
        match client.receive().await? {
            Message::Reply { outcome, .. } => outcome.map(|_| client),
            _ => Err(ClientError::Protocol("no answer to the negotiation".to_owned())),
        }
    }

    /// What the server said of itself.
    pub fn greeting(&self) -> &Greeting {
        self.wire.greeting()
    }

    /// Executes a command by name.
    pub async fn execute(
        &mut self,
        command: &str,
        arguments: Map<String, Value>,
    ) -> Result<Value, ClientError> {
        self.request("execute", command, arguments).await
    }

    /// Executes a command out of band.
    pub async fn execute_oob(
        &mut self,
        command: &str,
        arguments: Map<String, Value>,
    ) -> Result<Value, ClientError> {
        self.request("exec-oob", command, arguments).await
    }

    /// Executes a command of the schema.
    pub async fn call<C: Command>(&mut self, command: &C) -> Result<C::Ok, ClientError> {
        let value = self.execute(C::NAME, wire::arguments(command)?).await?;
        wire::answer::<C>(value)
    }

    async fn request(
        &mut self,
        verb: &str,
        command: &str,
        arguments: Map<String, Value>,
    ) -> Result<Value, ClientError> {
        let (id, request) = self.wire.request(verb, command, arguments);
        self.stream.write_all(&request).await?;
        loop {
            if let Some(outcome) = self.receive().await?.answer_to(id, &mut self.events) {
                return outcome;
            }
        }
    }

    /// The next event. May be dropped before it completes; nothing is lost.
    pub async fn event(&mut self) -> Result<ReceivedEvent, ClientError> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            if let Message::Event(event) = self.receive().await? {
                return Ok(event);
            }
        }
    }

    /// The events that have arrived and weren't asked for yet.
    pub fn take_events(&mut self) -> impl Iterator<Item = ReceivedEvent> {
        self.events.drain(..)
    }

    async fn receive(&mut self) -> Result<Message, ClientError> {
        loop {
            if let Some(message) = self.wire.next()? {
                return Ok(message);
            }
            let count = self.stream.read(self.wire.buffer()).await?;
            self.wire.filled(count)?;
        }
    }
}
