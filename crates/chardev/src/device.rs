//! A character device: its state, shared between the device model in front and the thread behind.

use std::collections::VecDeque;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, eventfd};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use crate::frontend::{CharBackend, CharEvent, CharReceiver, ChardevInfo};
use crate::socket::Endpoint;
use crate::terminal::Claim;
use crate::worker::{Port, Worker};
use crate::{ChardevError, ChardevSpec};

/// Bytes of output that wait for a slow reader; further ones are not taken.
pub const OUTPUT_BYTES: usize = 64 << 10;

/// Something to tell the user while a character device is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The start is held up until a client connects.
    Waiting {
        /// Where.
        filename: String,
    },
    /// The system chose a pseudo-terminal.
    Redirected {
        /// Its path.
        path: String,
        /// The character device's name.
        label: String,
    },
    /// A client socket that reconnects found nobody yet.
    Unconnected {
        /// The character device's name.
        label: String,
        /// Why.
        reason: String,
    },
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Notice::Waiting { filename } => write!(f, "waiting for connection on: {filename}"),
            Notice::Redirected { path, label } => {
                write!(f, "char device redirected to {path} (label {label})")
            }
            Notice::Unconnected { label, reason } => {
                write!(f, "Unable to connect character device {label}: {reason}")
            }
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Output {
    pub(crate) bytes: VecDeque<u8>,
    /// Whether anyone is there to read.
    pub(crate) connected: bool,
    /// The device model has more than there was room for.
    pub(crate) refused: bool,
    pub(crate) closing: bool,
}

/// What the front and the thread share. The two locks are never held at the same time.
pub(crate) struct Shared {
    pub(crate) output: Mutex<Output>,
    pub(crate) receiver: Mutex<Option<Box<dyn CharReceiver>>>,
    pub(crate) filename: Mutex<String>,
    frontend_open: AtomicBool,
    pub(crate) wake: OwnedFd,
}

/// A poisoned lock only means that a device model panicked; the bytes are still good.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn new(filename: String) -> Result<Shared, ChardevError> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|errno| {
            ChardevError::System { what: "Failed to create an eventfd", source: errno.into() }
        })?;
        Ok(Shared {
            output: Mutex::default(),
            receiver: Mutex::new(None),
            filename: Mutex::new(filename),
            frontend_open: AtomicBool::new(false),
            wake,
        })
    }

    pub(crate) fn wake(&self) {
        // Fails only when the counter is full, and then the thread is awake.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    pub(crate) fn event(&self, event: CharEvent) {
        if let Some(receiver) = &*lock(&self.receiver) {
            receiver.event(event);
        }
    }
}

/// An open character device.
pub struct Chardev {
    label: String,
    shared: Arc<Shared>,
    kind: Kind,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Null,
    /// Keeps so many bytes of output.
    Ringbuf(usize),
    /// Has a thread.
    Threaded,
}

impl fmt::Debug for Chardev {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chardev").field("label", &self.label).field("kind", &self.kind).finish()
    }
}

impl Chardev {
    /// Opens what `spec` describes. A server with `wait=on` blocks until its first client is there. What
    /// the user should know meanwhile goes to `notify`.
    ///
    /// A [`ChardevSpec::Mux`] is opened by [`Mux::open`](crate::Mux::open).
    pub fn open(
        label: &str,
        spec: &ChardevSpec,
        notify: &dyn Fn(&Notice),
    ) -> Result<Arc<Chardev>, ChardevError> {
        let (kind, filename, port) = match spec {
            ChardevSpec::Null => (Kind::Null, "null".to_owned(), None),
            ChardevSpec::Ringbuf { size } => {
                if !size.is_power_of_two() {
                    let text = "size of ringbuf chardev must be power of two";
                    return Err(ChardevError::Option(text.to_owned()));
                }
                (Kind::Ringbuf(*size), "ringbuf".to_owned(), None)
            }
            ChardevSpec::Stdio { signal } => {
                let port = Port::Stdio { _claim: Claim::take(*signal)?, ended: false };
                (Kind::Threaded, "stdio".to_owned(), Some(port))
            }
            ChardevSpec::File { path, append } => {
                let mut options = OpenOptions::new();
                options.create(true).write(true).append(*append).truncate(!*append);
                let file = options.open(path).map_err(|source| ChardevError::Open {
                    path: path.display().to_string(),
                    source,
                })?;
                (Kind::Threaded, "file".to_owned(), Some(Port::File(file)))
            }
            ChardevSpec::Pty => {
                let (controller, path) = open_pty()?;
                notify(&Notice::Redirected { path: path.clone(), label: label.to_owned() });
                (Kind::Threaded, format!("pty:{path}"), Some(Port::pty(controller)))
            }
            ChardevSpec::Socket(spec) => {
                let port = Port::socket(Endpoint::open(label, spec, notify)?);
                (Kind::Threaded, port.filename(), Some(port))
            }
            ChardevSpec::Mux(_) => {
                let text = format!("chardev '{label}' is a multiplexer, not a plain device");
                return Err(ChardevError::Option(text));
            }
        };
        let shared = Arc::new(Shared::new(filename)?);
        lock(&shared.output).connected = matches!(kind, Kind::Ringbuf(_));
        let thread = port.map(|port| Worker::spawn(label, shared.clone(), port)).transpose()?;
        let label = label.to_owned();
        Ok(Arc::new(Chardev { label, shared, kind, thread: Mutex::new(thread) }))
    }

    /// The name given to it.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Where its bytes go, in the words of `query-chardev`.
    pub fn filename(&self) -> String {
        lock(&self.shared.filename).clone()
    }

    /// Whether a device model is attached.
    pub fn frontend_open(&self) -> bool {
        self.shared.frontend_open.load(Ordering::Relaxed)
    }

    /// Whether anyone is there to read and write.
    pub fn is_connected(&self) -> bool {
        lock(&self.shared.output).connected
    }

    /// What `query-chardev` tells of it.
    pub fn info(&self) -> ChardevInfo {
        ChardevInfo {
            label: self.label.clone(),
            filename: self.filename(),
            frontend_open: self.frontend_open(),
        }
    }

    /// Takes the bytes that a ring buffer keeps, the oldest first; nothing from any other device.
    pub fn take_output(&self) -> Vec<u8> {
        match self.kind {
            Kind::Ringbuf(_) => lock(&self.shared.output).bytes.drain(..).collect(),
            Kind::Null | Kind::Threaded => Vec::new(),
        }
    }

    /// Hands input to the device model as if it had come from outside; returns how many bytes it took.
    /// Only for ring buffers, which have no outside.
    pub fn put_input(&self, data: &[u8]) -> usize {
        let receiver = lock(&self.shared.receiver);
        let (Kind::Ringbuf(_), Some(receiver)) = (self.kind, &*receiver) else { return 0 };
        let count = receiver.can_receive().min(data.len());
        if count > 0 {
            receiver.receive(&data[..count]);
        }
        count
    }
}

impl CharBackend for Chardev {
    fn write(&self, data: &[u8]) -> usize {
        let mut output = lock(&self.shared.output);
        match self.kind {
            Kind::Null => data.len(),
            Kind::Ringbuf(size) => {
                output.bytes.extend(data);
                let surplus = output.bytes.len().saturating_sub(size);
                output.bytes.drain(..surplus);
                data.len()
            }
            Kind::Threaded if !output.connected => data.len(),
            Kind::Threaded => {
                let room = OUTPUT_BYTES.saturating_sub(output.bytes.len());
                let count = room.min(data.len());
                let idle = output.bytes.is_empty();
                output.bytes.extend(&data[..count]);
                output.refused |= count < data.len();
                drop(output);
                if idle && count > 0 {
                    self.shared.wake();
                }
                count
            }
        }
    }

    fn set_receiver(&self, receiver: Box<dyn CharReceiver>) {
        let connected = lock(&self.shared.output).connected;
        let mut current = lock(&self.shared.receiver);
        if connected {
            receiver.event(CharEvent::Opened);
        }
        *current = Some(receiver);
        drop(current);
        self.shared.frontend_open.store(true, Ordering::Relaxed);
        self.shared.wake();
    }

    fn accept_input(&self) {
        if self.kind == Kind::Threaded {
            self.shared.wake();
        }
    }
}

impl Drop for Chardev {
    fn drop(&mut self) {
        lock(&self.shared.output).closing = true;
        self.shared.wake();
        if let Some(thread) = lock(&self.thread).take()
            && thread.thread().id() != std::thread::current().id()
        {
            // Its panic has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

fn open_pty() -> Result<(File, String), ChardevError> {
    let fail = |errno: rustix::io::Errno| ChardevError::System {
        what: "Failed to create PTY",
        source: errno.into(),
    };
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let controller = openpt(flags).map_err(fail)?;
    grantpt(&controller).map_err(fail)?;
    unlockpt(&controller).map_err(fail)?;
    let mut termios = tcgetattr(&controller).map_err(fail)?;
    termios.make_raw();
    tcsetattr(&controller, OptionalActions::Now, &termios).map_err(fail)?;
    let path = ptsname(&controller, Vec::new()).map_err(fail)?;
    Ok((controller.into(), path.to_string_lossy().into_owned()))
}
