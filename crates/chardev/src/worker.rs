//! The thread behind a character device: moves bytes between its port and the device model.
//!
//! It sleeps in `poll` for the port, and for an eventfd by which the front says that there is output,
//! that input is wanted again, or that it is all over. Output that was taken is written before the
//! end as far as the other side takes it without delay.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::ChardevError;
use crate::device::{Shared, lock};
use crate::frontend::CharEvent;
use crate::socket::{Endpoint, SocketListener, SocketSpec, SocketStream};
use crate::terminal::Claim;

/// Bytes moved at a time. A pipe that is ready takes this much without blocking.
const CHUNK: usize = 4096;
/// How often a pseudo-terminal that nobody has open is looked at.
const PTY_POLL: Duration = Duration::from_millis(250);
/// How long output may take at the end when the reader is slow.
const FINAL_FLUSH: Duration = Duration::from_millis(200);

/// What the bytes go through.
#[derive(Debug)]
pub(crate) enum Port {
    Stdio {
        /// Sets the terminal back when it is dropped.
        _claim: Claim,
        /// Standard input has come to its end.
        ended: bool,
    },
    File(File),
    Pty {
        controller: File,
        open: bool,
    },
    Server {
        listener: SocketListener,
        stream: Option<SocketStream>,
    },
    Client {
        spec: SocketSpec,
        stream: Option<SocketStream>,
        retry: Option<Instant>,
    },
}

impl Port {
    pub(crate) fn pty(controller: File) -> Port {
        Port::Pty { controller, open: false }
    }

    pub(crate) fn socket(endpoint: Endpoint) -> Port {
        match endpoint {
            Endpoint::Listener(listener, stream) => Port::Server { listener, stream },
            Endpoint::Connector(spec, stream) => {
                let retry = spec.reconnect.map(|pause| Instant::now() + pause);
                Port::Client { spec, stream, retry }
            }
        }
    }

    /// What `query-chardev` calls a socket now.
    pub(crate) fn filename(&self) -> String {
        match self {
            Port::Server { listener, stream: Some(stream) } => listener.connected(stream),
            Port::Server { listener, stream: None } => listener.spec().disconnected(),
            Port::Client { stream: Some(stream), .. } => stream.describe(false),
            Port::Client { spec, stream: None, .. } => spec.disconnected(),
            Port::Stdio { .. } | Port::File(_) | Port::Pty { .. } => String::new(),
        }
    }

    fn is_socket(&self) -> bool {
        matches!(self, Port::Server { .. } | Port::Client { .. })
    }

    fn is_connected(&self) -> bool {
        match self {
            Port::Stdio { .. } | Port::File(_) => true,
            Port::Pty { open, .. } => *open,
            Port::Server { stream, .. } | Port::Client { stream, .. } => stream.is_some(),
        }
    }

    /// Where input comes from, if it can.
    fn input(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Port::Stdio { ended: false, .. } => Some(rustix::stdio::stdin()),
            Port::Stdio { .. } | Port::File(_) => None,
            Port::Pty { controller, open } => open.then(|| controller.as_fd()),
            Port::Server { stream, .. } | Port::Client { stream, .. } => {
                stream.as_ref().map(AsFd::as_fd)
            }
        }
    }

    /// Where output goes, if anyone is there.
    fn output(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Port::Stdio { .. } => Some(rustix::stdio::stdout()),
            Port::File(file) => Some(file.as_fd()),
            Port::Pty { .. } | Port::Server { .. } | Port::Client { .. } => self.input(),
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Port::Stdio { .. } => Ok(rustix::io::read(rustix::stdio::stdin(), buffer)?),
            Port::File(_) => Ok(0),
            Port::Pty { controller, .. } => controller.read(buffer),
            Port::Server { stream, .. } | Port::Client { stream, .. } => match stream {
                Some(stream) => (&*stream).read(buffer),
                None => Ok(0),
            },
        }
    }

    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            Port::Stdio { .. } => Ok(rustix::io::write(rustix::stdio::stdout(), data)?),
            Port::File(file) => file.write(data),
            Port::Pty { controller, .. } => controller.write(data),
            Port::Server { stream, .. } | Port::Client { stream, .. } => match stream {
                Some(stream) => (&*stream).write(data),
                None => Err(io::ErrorKind::NotConnected.into()),
            },
        }
    }

    /// The other side has gone.
    fn hang_up(&mut self) {
        match self {
            Port::Stdio { ended, .. } => *ended = true,
            Port::File(_) => {}
            Port::Pty { open, .. } => *open = false,
            Port::Server { stream, .. } => end(stream),
            Port::Client { spec, stream, retry } => {
                end(stream);
                *retry = spec.reconnect.map(|pause| Instant::now() + pause);
            }
        }
    }

    /// When to look whether someone is there again.
    fn wake_at(&self) -> Option<Instant> {
        match self {
            Port::Pty { open: false, .. } => Some(Instant::now() + PTY_POLL),
            Port::Client { stream: None, retry, .. } => *retry,
            _ => None,
        }
    }

    /// Looks whether someone is there.
    fn try_open(&mut self) {
        match self {
            Port::Pty { controller, open } => {
                let mut fds = [PollFd::new(controller, PollFlags::OUT)];
                let polled = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
                *open = polled.is_ok() && !fds[0].revents().contains(PollFlags::HUP);
            }
            Port::Server { listener, stream } => {
                let accepted = listener.accept(false);
                *stream = accepted.ok().filter(|stream| stream.set_nonblocking(true).is_ok());
            }
            Port::Client { spec, stream, retry } => {
                if retry.is_some_and(|at| at <= Instant::now()) {
                    let connected = SocketStream::connect(spec);
                    *stream = connected.ok().filter(|s| s.set_nonblocking(true).is_ok());
                    *retry = spec.reconnect.map(|pause| Instant::now() + pause);
                }
            }
            Port::Stdio { .. } | Port::File(_) => {}
        }
    }
}

fn end(stream: &mut Option<SocketStream>) {
    if let Some(stream) = stream.take() {
        stream.shutdown();
    }
}

/// What `poll` found.
#[derive(Clone, Copy, Debug, Default)]
struct Ready {
    input: bool,
    output: bool,
}

pub(crate) struct Worker {
    shared: Arc<Shared>,
    port: Port,
}

impl Worker {
    pub(crate) fn spawn(
        label: &str,
        shared: Arc<Shared>,
        port: Port,
    ) -> Result<JoinHandle<()>, ChardevError> {
        if let Port::Server { stream: Some(stream), .. }
        | Port::Client { stream: Some(stream), .. } = &port
        {
            stream.set_nonblocking(true).map_err(|source| ChardevError::System {
                what: "Failed to make the socket non-blocking",
                source,
            })?;
        }
        lock(&shared.output).connected = port.is_connected();
        // The kernel keeps 15 bytes of a thread's name.
        let name: String = format!("chr-{label}").chars().take(15).collect();
        std::thread::Builder::new()
            .name(name)
            .stack_size(128 << 10)
            .spawn(move || Worker { shared, port }.run())
            .map_err(|source| ChardevError::System { what: "Failed to start a thread", source })
    }

    fn run(mut self) {
        loop {
            let wants_input = self.room_for_input() > 0;
            let (closing, has_output) = {
                let output = lock(&self.shared.output);
                (output.closing, !output.bytes.is_empty())
            };
            if closing {
                return self.finish();
            }
            let ready = self.wait(wants_input, has_output);
            if !self.port.is_connected() {
                self.port.try_open();
                if self.port.is_connected() {
                    self.set_connected(true);
                }
                continue;
            }
            if ready.input {
                self.move_input();
            }
            if ready.output {
                self.move_output();
            }
        }
    }

    fn room_for_input(&self) -> usize {
        lock(&self.shared.receiver).as_ref().map_or(0, |receiver| receiver.can_receive())
    }

    /// Sleeps until there is something to do.
    fn wait(&self, wants_input: bool, has_output: bool) -> Ready {
        let mut fds = vec![PollFd::new(&self.shared.wake, PollFlags::IN)];
        let mut input_at = None;
        let mut output_at = None;
        if let Port::Server { listener, stream: None } = &self.port {
            fds.push(PollFd::new(listener, PollFlags::IN));
        }
        if wants_input && let Some(fd) = self.port.input() {
            input_at = Some(fds.len());
            fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
        }
        if has_output && let Some(fd) = self.port.output() {
            output_at = Some(fds.len());
            fds.push(PollFd::from_borrowed_fd(fd, PollFlags::OUT));
        }
        let timeout = self.port.wake_at().map(|at| timespec(at - Instant::now()));
        if poll(&mut fds, timeout.as_ref()).is_err() {
            return Ready::default();
        }
        if fds[0].revents().contains(PollFlags::IN) {
            // Reading resets the counter; there is nothing to learn from its value.
            let _ = rustix::io::read(&self.shared.wake, &mut [0; 8]);
        }
        let is_ready = |at: Option<usize>| at.is_some_and(|at| !fds[at].revents().is_empty());
        Ready { input: is_ready(input_at), output: is_ready(output_at) }
    }

    fn set_connected(&mut self, connected: bool) {
        if self.port.is_socket() {
            *lock(&self.shared.filename) = self.port.filename();
        }
        let mut output = lock(&self.shared.output);
        let was_refused = !connected && std::mem::take(&mut output.refused);
        output.connected = connected;
        if !connected {
            output.bytes.clear();
        }
        drop(output);
        self.shared.event(if connected { CharEvent::Opened } else { CharEvent::Closed });
        if was_refused && let Some(receiver) = &*lock(&self.shared.receiver) {
            receiver.writable();
        }
    }

    fn hang_up(&mut self) {
        self.port.hang_up();
        if self.port.is_connected() {
            self.shared.event(CharEvent::Closed);
        } else {
            self.set_connected(false);
        }
    }

    fn move_input(&mut self) {
        let room = self.room_for_input().min(CHUNK);
        if room == 0 {
            return;
        }
        let mut buffer = [0; CHUNK];
        match self.port.read(&mut buffer[..room]) {
            Ok(0) => self.hang_up(),
            Ok(count) => {
                if let Some(receiver) = &*lock(&self.shared.receiver) {
                    receiver.receive(&buffer[..count]);
                }
            }
            Err(error) if is_temporary(&error) => {}
            Err(_) => self.hang_up(),
        }
    }

    fn move_output(&mut self) {
        let mut buffer = [0; CHUNK];
        let mut output = lock(&self.shared.output);
        let (front, _) = output.bytes.as_slices();
        let count = front.len().min(CHUNK);
        buffer[..count].copy_from_slice(&front[..count]);
        drop(output);
        if count == 0 {
            return;
        }
        let written = match self.port.write(&buffer[..count]) {
            Ok(written) => written,
            Err(error) if is_temporary(&error) => 0,
            // A full disk or a closed standard output: these bytes are lost, later ones may not be.
            Err(_) if !self.port.is_socket() && !matches!(self.port, Port::Pty { .. }) => count,
            Err(_) => return self.hang_up(),
        };
        output = lock(&self.shared.output);
        let left = output.bytes.len();
        output.bytes.drain(..written.min(left));
        let room_again = written > 0 && std::mem::take(&mut output.refused);
        drop(output);
        if room_again && let Some(receiver) = &*lock(&self.shared.receiver) {
            receiver.writable();
        }
    }

    /// Writes what is left, as far as that goes quickly.
    fn finish(&mut self) {
        let until = Instant::now() + FINAL_FLUSH;
        while self.port.is_connected() && !lock(&self.shared.output).bytes.is_empty() {
            let now = Instant::now();
            if now >= until {
                return;
            }
            let Some(fd) = self.port.output() else { return };
            let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
            let polled = poll(&mut fds, Some(&timespec(until - now)));
            if polled.is_ok() && !fds[0].revents().is_empty() {
                self.move_output();
            }
        }
    }
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Rounded up to a millisecond, so that the time is over when the sleep is.
fn timespec(duration: Duration) -> Timespec {
    let millis = duration.as_millis() + 1;
    Timespec {
        tv_sec: i64::try_from(millis / 1000).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(millis % 1000 * 1_000_000).unwrap_or(0),
    }
}
