//! A QMP client in its smallest form: blocking, one request at a time, events kept aside.

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::fmt;
use std::io::{Read, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// A connection to a monitor.
pub struct Qmp {
    stream: UnixStream,
    unread: Vec<u8>,
    events: VecDeque<Value>,
    log: Vec<String>,
    greeting: Value,
    next_id: u64,
}

/// An error that the monitor answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QmpError {
    /// The error class, such as `GenericError`.
    pub class: String,
    /// The text for a person.
    pub desc: String,
}

impl fmt::Display for QmpError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.class, self.desc)
    }
}

impl std::error::Error for QmpError {}

impl Qmp {
    /// Reads the greeting, but does not negotiate.
    pub fn new(stream: UnixStream) -> Result<Self> {
        let mut qmp = Self {
            stream,
            unread: Vec::new(),
            events: VecDeque::new(),
            log: Vec::new(),
            greeting: Value::Null,
            next_id: 0,
        };
        qmp.greeting = qmp.message(crate::deadline())?.context("no greeting came")?;
        if qmp.greeting.get("QMP").is_none() {
            bail!("this is no QMP greeting: {}", qmp.greeting);
        }
        Ok(qmp)
    }

    /// Negotiates, without capabilities.
    pub fn negotiated(mut self) -> Result<Self> {
        self.execute("qmp_capabilities", json!({}))?;
        Ok(self)
    }

    /// The greeting as it came.
    pub fn greeting(&self) -> &Value {
        &self.greeting
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.log.push(format!("-> {}", String::from_utf8_lossy(bytes).trim_end()));
        self.stream.write_all(bytes).context("cannot write to the monitor")
    }

    /// Runs a command and returns what it returned; its error is a [`QmpError`].
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        self.next_id += 1;
        let id = self.next_id;
        let request = json!({"execute": command, "arguments": arguments, "id": id});
        self.send(format!("{request}\n").as_bytes())?;
        let reply = self.reply().with_context(|| format!("no reply to {command}"))?;
        if reply["id"] != json!(id) {
            bail!("the reply to {command} has not its id: {reply}");
        }
        if let Some(error) = reply.get("error") {
            let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
            return Err(QmpError { class: text("class"), desc: text("desc") })
                .with_context(|| format!("{command} failed"));
        }
        reply.get("return").cloned().with_context(|| format!("neither return nor error: {reply}"))
    }

    /// Runs a command that takes no arguments.
    pub fn query(&mut self, command: &str) -> Result<Value> {
        self.execute(command, json!({}))
    }

    /// The next message that is not an event.
    pub fn reply(&mut self) -> Result<Value> {
        let end = Instant::now() + crate::deadline();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let message = self.message(left)?.context("no answer came in time")?;
            if message.get("event").is_none() {
                return Ok(message);
            }
            self.events.push_back(message);
        }
    }

    /// Waits for the event called `name`. Other events stay where they are, in order.
    pub fn event(&mut self, name: &str) -> Result<Value> {
        let end = Instant::now() + crate::deadline();
        loop {
            if let Some(at) = self.events.iter().position(|event| event["event"] == name) {
                return Ok(self.events.remove(at).unwrap_or_default());
            }
            let left = end.saturating_duration_since(Instant::now());
            let Some(message) = self.message(left)? else {
                bail!("the event {name} did not come; there are {:?}", self.events);
            };
            if message.get("event").is_none() {
                bail!("a reply nobody waits for: {message}");
            }
            self.events.push_back(message);
        }
    }

    /// Takes the events that have come so far.
    pub fn take_events(&mut self) -> Vec<Value> {
        self.events.drain(..).collect()
    }

    /// The next message of either kind, or `None` when none comes within `limit`. The end of the
    /// connection and a line that is no JSON object are errors.
    pub fn message(&mut self, limit: Duration) -> Result<Option<Value>> {
        let end = Instant::now() + limit;
        loop {
            if let Some(at) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=at).collect();
                let line = String::from_utf8(line).context("the monitor sent no UTF-8")?;
                self.log.push(format!("<- {}", line.trim_end()));
                let value: Value = serde_json::from_str(&line)
                    .with_context(|| format!("the monitor sent no JSON: {line:?}"))?;
                return Ok(Some(value));
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.set_read_timeout(Some(left))?;
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer) {
                Ok(0) => bail!("the monitor closed the connection"),
                Ok(count) => self.unread.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("cannot read from the monitor"),
            }
        }
    }

    /// Every line in both directions so far.
    pub fn transcript(&self) -> String {
        self.log.join("\n")
    }
}
