//! The client for programs without a runtime.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use schema::Command;
use serde_json::{Map, Value};

use super::wire::{self, Message, Wire};
use super::{Address, ClientError, Greeting, ReceivedEvent};

enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    fn connect(address: &Address) -> io::Result<Stream> {
        match address {
            Address::Unix(path) => UnixStream::connect(path).map(Stream::Unix),
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
        }
    }

    fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Stream::Unix(stream) => stream.set_read_timeout(timeout),
            Stream::Tcp(stream) => stream.set_read_timeout(timeout),
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => stream.read(buffer),
            Stream::Tcp(stream) => stream.read(buffer),
        }
    }

    fn write_all(&mut self, data: &[u8]) -> io::Result<()> {
        match self {
            Stream::Unix(stream) => stream.write_all(data),
            Stream::Tcp(stream) => stream.write_all(data),
        }
    }
}

/// A conversation with a server, past its negotiation, on the caller's thread.
pub struct BlockingClient {
    stream: Stream,
    wire: Wire,
    events: VecDeque<ReceivedEvent>,
}

impl BlockingClient {
    /// Connects and negotiates, with out-of-band commands if the server offers them and `oob` is set.
    pub fn connect(address: &Address, oob: bool) -> Result<BlockingClient, ClientError> {
        let stream = Stream::connect(address).map_err(|source| ClientError::Connect {
            address: match address {
                Address::Unix(path) => path.display().to_string(),
                Address::Tcp(address) => address.clone(),
            },
            source,
        })?;
        let mut client = BlockingClient { stream, wire: Wire::new(), events: VecDeque::new() };
        let greeting = client.receive(None)?;
        let request = client.wire.greeted(greeting, oob)?;
        client.stream.write_all(&request)?;
        match client.receive(None)? {
            Message::Reply { outcome, .. } => outcome.map(|_| client),
            _ => Err(ClientError::Protocol("no answer to the negotiation".to_owned())),
        }
    }

    /// What the server said of itself.
    pub fn greeting(&self) -> &Greeting {
        self.wire.greeting()
    }

    /// Executes a command by name.
    pub fn execute(
        &mut self,
        command: &str,
        arguments: Map<String, Value>,
    ) -> Result<Value, ClientError> {
        let (id, request) = self.wire.request("execute", command, arguments);
        self.stream.write_all(&request)?;
        loop {
            if let Some(outcome) = self.receive(None)?.answer_to(id, &mut self.events) {
                return outcome;
            }
        }
    }

    /// Executes a command of the schema.
    pub fn call<C: Command>(&mut self, command: &C) -> Result<C::Ok, ClientError> {
        let value = self.execute(C::NAME, wire::arguments(command)?)?;
        wire::answer::<C>(value)
    }

    /// The next event; `None` when there is none within `timeout`. Without a timeout it waits for ever.
    pub fn event(
        &mut self,
        timeout: Option<Duration>,
    ) -> Result<Option<ReceivedEvent>, ClientError> {
        let until = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            match self.receive(until) {
                Ok(Message::Event(event)) => return Ok(Some(event)),
                Ok(_) => {}
                Err(ClientError::Io(error)) if error.kind() == io::ErrorKind::TimedOut => {
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn receive(&mut self, until: Option<Instant>) -> Result<Message, ClientError> {
        loop {
            if let Some(message) = self.wire.next()? {
                return Ok(message);
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Err(io::Error::from(io::ErrorKind::TimedOut).into());
            }
            self.stream.set_read_timeout(left)?;
            match self.stream.read(self.wire.buffer()) {
                Ok(count) => self.wire.filled(count)?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
