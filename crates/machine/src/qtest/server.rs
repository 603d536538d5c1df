//! The thread that reads commands from a character device and writes the answers.
//!
//! One thread does all: interrupt lines, which any thread may drive, are noted in the mailbox and
//! written by it, so that no line ever comes within another.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use std::time::Instant;

use chardev::{CharBackend, CharEvent, CharReceiver};

use super::Session;
use crate::pc::board::Pc;
use crate::run::owner::GuestRequests;

/// Bytes of input that wait for the thread.
const INPUT_BYTES: usize = 64 << 10;
/// The longest line, in bytes: room to write 32 MiB of guest memory at once.
const LINE_BYTES: usize = 64 << 20;
/// Bytes of an answer that are kept back until it is complete.
const ANSWER_BYTES: usize = 64 << 10;
/// Changes of interrupt lines that wait for the thread. A client that never reads loses further ones.
const NOTICES: usize = 1 << 16;

/// Something that the thread has to tell its client or its log, in this order.
#[derive(Clone, Copy, Debug)]
enum Notice {
    Line(u32, bool),
    Event(CharEvent),
}

#[derive(Default)]
struct Mailbox {
    input: Vec<u8>,
    notices: VecDeque<Notice>,
    connected: bool,
    /// There is room for output again.
    writable: bool,
    ended: bool,
}

#[derive(Default)]
struct Link {
    mailbox: Mutex<Mailbox>,
    arrived: Condvar,
}

impl Link {
    fn lock(&self) -> MutexGuard<'_, Mailbox> {
        self.mailbox.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn change(&self, change: impl FnOnce(&mut Mailbox)) {
        change(&mut self.lock());
        self.arrived.notify_all();
    }

    fn wait_while(&self, idle: impl Fn(&Mailbox) -> bool) -> MutexGuard<'_, Mailbox> {
        let guard = self.arrived.wait_while(self.lock(), |mailbox| !mailbox.ended && idle(mailbox));
        guard.unwrap_or_else(|e| e.into_inner())
    }
}

struct Receiver(Arc<Link>);

impl CharReceiver for Receiver {
    fn can_receive(&self) -> usize {
        INPUT_BYTES.saturating_sub(self.0.lock().input.len())
    }

    fn receive(&self, data: &[u8]) {
        self.0.change(|mailbox| mailbox.input.extend_from_slice(data));
    }

    fn event(&self, event: CharEvent) {
        self.0.change(|mailbox| {
            mailbox.connected = event != CharEvent::Closed;
            mailbox.notices.push_back(Notice::Event(event));
        });
    }

    fn writable(&self) {
        self.0.change(|mailbox| mailbox.writable = true);
    }
}

/// The record of a session.
pub struct QtestLog {
    out: Box<dyn Write + Send>,
    start: Instant,
}

impl QtestLog {
    /// A log on standard error.
    pub fn stderr() -> Self {
        Self { out: Box::new(io::stderr()), start: Instant::now() }
    }

    /// A log in a file, which is made anew.
    ///
    /// # Errors
    /// If the file can't be made.
    pub fn create(path: &Path) -> io::Result<Self> {
        Ok(Self { out: Box::new(File::create(path)?), start: Instant::now() })
    }

    fn line(&mut self, what: char, text: fmt::Arguments<'_>) {
        let seconds = self.start.elapsed().as_secs_f64();
        let plus = if what == 'I' { "" } else { "+" };
        // A log that can't be written is no reason to end a test.
        let _ = writeln!(self.out, "[{what} {plus}{seconds:.6}] {text}");
    }
}

/// A running qtest server. It ends with this.
pub struct Qtest {
    link: Arc<Link>,
}

impl Qtest {
    /// Answers on `backend` for `pc`, as long as that lives. What a command makes the machine ask of its
    /// owner, by `requests`, is done before the next command.
    ///
    /// # Errors
    /// If the host can't start a thread.
    pub fn start(
        pc: &Arc<Pc>,
        requests: Arc<GuestRequests>,
        backend: Arc<dyn CharBackend>,
        log: Option<QtestLog>,
    ) -> io::Result<Self> {
        let link = Arc::new(Link::default());
        backend.set_receiver(Box::new(Receiver(Arc::clone(&link))));
        let lines = Arc::clone(&link);
        let watcher = Arc::new(move |line, level| {
            lines.change(|mailbox| {
                if mailbox.notices.len() < NOTICES {
                    mailbox.notices.push_back(Notice::Line(line, level));
                }
            });
        });
        let worker = Worker {
            wire: Wire { link: Arc::clone(&link), backend, log },
            pc: Arc::downgrade(pc),
            requests,
            session: Session::new(watcher),
            line: Vec::new(),
        };
        std::thread::Builder::new().name("qtest".into()).spawn(move || worker.run())?;
        Ok(Self { link })
    }
}

impl Drop for Qtest {
    fn drop(&mut self) {
        self.link.change(|mailbox| mailbox.ended = true);
    }
}

/// What goes to the client.
struct Wire {
    link: Arc<Link>,
    backend: Arc<dyn CharBackend>,
    log: Option<QtestLog>,
}

impl Wire {
    fn log(&mut self, what: char, text: fmt::Arguments<'_>) {
        if let Some(log) = &mut self.log {
            log.line(what, text);
        }
    }

    /// Writes all of `bytes`, waiting for room.
    ///
    /// # Errors
    /// If the client has left.
    fn send(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            {
                let mut mailbox = self.link.lock();
                if !mailbox.connected || mailbox.ended {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                mailbox.writable = false;
            }
            let taken = self.backend.write(bytes);
            bytes = &bytes[taken..];
            if !bytes.is_empty() {
                drop(self.link.wait_while(|mailbox| mailbox.connected && !mailbox.writable));
            }
        }
        Ok(())
    }

    /// Tells what has happened to lines and to the connection.
    fn tell(&mut self, session: &Session) {
        let notices = std::mem::take(&mut self.link.lock().notices);
        for notice in notices {
            match notice {
                Notice::Line(line, level) => {
                    let text = format!("IRQ {} {line}", if level { "raise" } else { "lower" });
                    // Nobody misses it.
                    let _ = self.send(format!("{text}\n").as_bytes());
                    self.log('S', format_args!("{text}"));
                }
                Notice::Event(CharEvent::Opened) => {
                    session.opened();
                    self.log('I', format_args!("OPENED"));
                }
                Notice::Event(CharEvent::Closed) => self.log('I', format_args!("CLOSED")),
                Notice::Event(CharEvent::Break) => {}
            }
        }
    }
}

/// An answer under way. What its command did to lines is told before it, and a long one is sent in
/// parts.
struct Answer<'a> {
    wire: &'a mut Wire,
    text: Vec<u8>,
    /// Parts have been sent.
    begun: bool,
}

impl Write for Answer<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        if self.text.len() >= ANSWER_BYTES {
            self.begun = true;
            self.wire.send(&std::mem::take(&mut self.text))?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Worker {
    wire: Wire,
    pc: Weak<Pc>,
    requests: Arc<GuestRequests>,
    session: Session,
    /// The line under way.
    line: Vec<u8>,
}

impl Worker {
    fn run(mut self) {
        loop {
            let input = {
                let idle =
                    |mailbox: &Mailbox| mailbox.input.is_empty() && mailbox.notices.is_empty();
                let mut mailbox = self.wire.link.wait_while(idle);
                if mailbox.ended {
                    return;
                }
                std::mem::take(&mut mailbox.input)
            };
            if !input.is_empty() {
                self.wire.backend.accept_input();
            }
            self.wire.tell(&self.session);
            for byte in input {
                if byte == b'\n' {
                    let line = std::mem::take(&mut self.line);
                    let Some(pc) = self.pc.upgrade() else { return };
                    // A client that has left does not want the answer.
                    let _ = self.answer(&pc, &line);
                } else if self.line.len() < LINE_BYTES {
                    self.line.push(byte);
                }
            }
        }
    }

    /// Carries one command out.
    fn answer(&mut self, pc: &Pc, line: &[u8]) -> io::Result<()> {
        self.requests.settle();
        let line = String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line));
        self.wire.log('R', format_args!("{line}"));
        let mut answer = Answer { wire: &mut self.wire, text: Vec::new(), begun: false };
        if line.len() >= LINE_BYTES {
            write!(answer, "FAIL the line is too long")?;
        } else {
            self.session.execute(pc, &line, &mut answer)?;
        }
        let Answer { mut text, begun, .. } = answer;
        if !begun {
            self.wire.tell(&self.session);
        }
        self.wire.log('S', format_args!("{}", String::from_utf8_lossy(&text)));
        text.push(b'\n');
        self.wire.send(&text)
    }
}
