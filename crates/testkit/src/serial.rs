//! A serial console as a stream of bytes to search: everything that arrived is kept, and a cursor
//! moves behind what was asked for.

use anyhow::{Result, bail};
use std::io::{Read, Write};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// One end of a console.
pub struct Serial {
    shared: Arc<Shared>,
    writer: Box<dyn Write + Send>,
    cursor: usize,
}

struct Shared {
    state: Mutex<State>,
    arrived: Condvar,
}

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    closed: bool,
}

impl Serial {
    /// Reads `reader` to its end on a thread of its own; what is sent goes to `writer`.
    pub fn new(
        mut reader: impl Read + Send + 'static,
        writer: impl Write + Send + 'static,
    ) -> Self {
        let shared =
            Arc::new(Shared { state: Mutex::new(State::default()), arrived: Condvar::new() });
        let theirs = Arc::clone(&shared);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                let count = reader.read(&mut buffer).unwrap_or(0);
                let mut state = theirs.state.lock().unwrap_or_else(PoisonError::into_inner);
                state.bytes.extend_from_slice(&buffer[..count]);
                state.closed = count == 0;
                theirs.arrived.notify_all();
                if count == 0 {
                    return;
                }
            }
        });
        Self { shared, writer: Box::new(writer), cursor: 0 }
    }

    /// Waits until `pattern` has come behind the cursor; returns what came before it and leaves the
    /// cursor behind it. The error carries the last lines of the console.
    pub fn wait_for(&mut self, pattern: &str) -> Result<String> {
        self.search(pattern, crate::deadline())
    }

    /// Waits for `duration`, then says whether `pattern` came in that time.
    pub fn comes_within(&mut self, pattern: &str, duration: Duration) -> bool {
        self.search(pattern, duration).is_ok()
    }

    fn search(&mut self, pattern: &str, limit: Duration) -> Result<String> {
        let end = Instant::now() + limit;
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let unread = &state.bytes[self.cursor..];
            let found = unread.windows(pattern.len()).position(|w| w == pattern.as_bytes());
            if let Some(at) = found {
                let before = String::from_utf8_lossy(&unread[..at]).into_owned();
                self.cursor += at + pattern.len();
                return Ok(before);
            }
            let left = end.saturating_duration_since(Instant::now());
            if state.closed || left.is_zero() {
                let why = if state.closed { "the console closed" } else { "nothing came in time" };
                let tail = tail(&state.bytes, 15);
                bail!("waiting for {pattern:?} on the console: {why}; its last lines:\n{tail}");
            }
            state = self
                .shared
                .arrived
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Types `text`.
    pub fn send(&mut self, text: &str) -> Result<()> {
        self.writer.write_all(text.as_bytes())?;
        self.writer.flush()?;
        Ok(())
    }

    /// Has a guest in `rhea.test=commands` run a line of shell; returns what it printed, without
    /// the last line end. A status other than zero is an error.
    pub fn run(&mut self, command: &str) -> Result<String> {
        self.send(&format!("{command}\n"))?;
        let output = self.wait_for("rhea-guest: status ")?;
        let status = self.wait_for("\n")?;
        let output = output.replace("\r\n", "\n").trim_end_matches('\n').to_owned();
        if status.trim() != "0" {
            bail!("{command:?} in the guest: status {}, output {output:?}", status.trim());
        }
        Ok(output)
    }

    /// Everything that arrived so far.
    pub fn transcript(&self) -> String {
        let state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&state.bytes).into_owned()
    }
}

fn tail(bytes: &[u8], lines: usize) -> String {
    let text = String::from_utf8_lossy(bytes);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
