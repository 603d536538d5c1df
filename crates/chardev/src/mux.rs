//! Several device models on one character device: the serial port and the monitor on one terminal.
//!
//! Output of all goes to the same place. Input goes to one of them; Ctrl-A followed by a key is for the
//! multiplexer itself: `h` lists the keys, `x` ends the program, `c` goes to the next device model,
//! `b` sends a break, Ctrl-A itself sends one Ctrl-A.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, Weak};

use crate::device::{Chardev, Notice, lock};
use crate::frontend::{CharBackend, CharEvent, CharReceiver, ChardevInfo};
use crate::{ChardevError, ChardevSpec};

const ESCAPE: u8 = 0x01;
const HELP: &str = "\r\n\
    C-a h    this list\r\n\
    C-a x    end the program\r\n\
    C-a c    go to the next of serial port and monitor\r\n\
    C-a b    send a break\r\n\
    C-a C-a  send C-a\r\n";

/// Input kept for a device model that doesn't want it yet, so that Ctrl-A still gets through.
const PENDING: usize = 64;

#[derive(Default)]
struct Line {
    receiver: Option<Box<dyn CharReceiver>>,
    pending: VecDeque<u8>,
}

impl Line {
    /// Hands over what waits, as far as it is wanted.
    fn deliver(&mut self) {
        let Some(receiver) = &self.receiver else { return };
        while !self.pending.is_empty() {
            let count = receiver.can_receive().min(self.pending.len());
            if count == 0 {
                return;
            }
            let data: Vec<u8> = self.pending.drain(..count).collect();
            receiver.receive(&data);
        }
    }
}

#[derive(Default)]
struct State {
    lines: Vec<Line>,
    focus: usize,
    escaped: bool,
}

/// A multiplexer. Its device models attach to [`Mux::port`]s; the first port has the focus.
pub struct Mux {
    label: String,
    base: Arc<Chardev>,
    state: Mutex<State>,
    quit: Box<dyn Fn() + Send + Sync>,
}

impl fmt::Debug for Mux {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mux").field("label", &self.label).field("base", &self.base).finish()
    }
}

impl Mux {
    /// Opens what `spec` describes, a [`ChardevSpec::Mux`] or a plain device, and shares it. `quit` is
    /// called, on the device's thread, when the user asks for the end.
    pub fn open(
        label: &str,
        spec: &ChardevSpec,
        notify: &dyn Fn(&Notice),
        quit: impl Fn() + Send + Sync + 'static,
    ) -> Result<Arc<Mux>, ChardevError> {
        let inner = match spec {
            ChardevSpec::Mux(inner) => inner,
            plain => plain,
        };
        let base = Chardev::open(&format!("{label}-base"), inner, notify)?;
        let label = label.to_owned();
        let quit = Box::new(quit);
        let mux = Arc::new(Mux { label, base, state: Mutex::default(), quit });
        mux.base.set_receiver(Box::new(Input(Arc::downgrade(&mux))));
        Ok(mux)
    }

    /// The name given to it.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// What is shared.
    pub fn base(&self) -> &Arc<Chardev> {
        &self.base
    }

    /// What `query-chardev` tells of it.
    pub fn info(&self) -> ChardevInfo {
        let frontend_open = lock(&self.state).lines.iter().any(|line| line.receiver.is_some());
        ChardevInfo { label: self.label.clone(), filename: "mux".to_owned(), frontend_open }
    }

    /// A place for one more device model.
    pub fn port(self: &Arc<Mux>) -> Arc<MuxPort> {
        let mut state = lock(&self.state);
        state.lines.push(Line::default());
        Arc::new(MuxPort { mux: self.clone(), index: state.lines.len() - 1 })
    }

    /// One byte of input; what it asks of the caller, who holds no lock then.
    fn take(&self, byte: u8) -> Request {
        let mut state = lock(&self.state);
        let State { lines, focus, escaped } = &mut *state;
        let count = lines.len();
        let Some(line) = lines.get_mut(*focus) else { return Request::Nothing };
        let escape = std::mem::take(escaped);
        match byte {
            ESCAPE if !escape => *escaped = true,
            b'h' | b'?' if escape => return Request::Help,
            b'x' if escape => return Request::Quit,
            b'b' if escape => {
                if let Some(receiver) = &line.receiver {
                    receiver.event(CharEvent::Break);
                }
            }
            b'c' if escape => {
                let mut others = (1..count).map(|step| (*focus + step) % count);
                *focus = others.find(|at| lines[*at].receiver.is_some()).unwrap_or(*focus);
            }
            // An unknown key behind the escape means nothing.
            _ if escape && byte != ESCAPE => {}
            _ => {
                line.pending.push_back(byte);
                line.deliver();
            }
        }
        Request::Nothing
    }
}

enum Request {
    Nothing,
    Help,
    Quit,
}

/// What the shared device sees in front of it. The multiplexer holds the device, not the reverse.
struct Input(Weak<Mux>);

impl CharReceiver for Input {
    fn can_receive(&self) -> usize {
        let Some(mux) = self.0.upgrade() else { return 0 };
        let mut state = lock(&mux.state);
        state.lines.iter_mut().for_each(Line::deliver);
        let focus = state.focus;
        // Byte by byte, because each may move the focus to a line with less room.
        state.lines.get(focus).map_or(1, |line| usize::from(line.pending.len() < PENDING))
    }

    fn receive(&self, data: &[u8]) {
        let Some(mux) = self.0.upgrade() else { return };
        for byte in data {
            match mux.take(*byte) {
                Request::Nothing => {}
                Request::Help => {
                    mux.base.write(HELP.as_bytes());
                }
                Request::Quit => (mux.quit)(),
            }
        }
    }

    fn event(&self, event: CharEvent) {
        let Some(mux) = self.0.upgrade() else { return };
        for receiver in lock(&mux.state).lines.iter().filter_map(|line| line.receiver.as_ref()) {
            receiver.event(event);
        }
    }

    fn writable(&self) {
        let Some(mux) = self.0.upgrade() else { return };
        for receiver in lock(&mux.state).lines.iter().filter_map(|line| line.receiver.as_ref()) {
            receiver.writable();
        }
    }
}

/// One device model's share of a multiplexer.
#[derive(Debug)]
pub struct MuxPort {
    mux: Arc<Mux>,
    index: usize,
}

impl CharBackend for MuxPort {
    fn write(&self, data: &[u8]) -> usize {
        self.mux.base.write(data)
    }

    fn set_receiver(&self, receiver: Box<dyn CharReceiver>) {
        if self.mux.base.is_connected() {
            receiver.event(CharEvent::Opened);
        }
        lock(&self.mux.state).lines[self.index].receiver = Some(receiver);
        self.mux.base.accept_input();
    }

    fn accept_input(&self) {
        self.mux.base.accept_input();
    }
}
