//! One client's conversation.
//!
//! ```text
//!            ┌────────┐ in-band  ┌───────┐      ┌─────────┐
//!  bytes ──► │ parser │ ───────► │ queue │ ───► │ running │ ──► replies ─┐
//!            └────────┘          └───────┘      └─────────┘              ├──► output ──► bytes
//!                 │ exec-oob                    ┌─────────┐              │
//!                 └───────────────────────────► │   oob   │ ──► replies ─┤
//!                                               └─────────┘              │
//!  machine ──► mailbox of events ────────────────────────────────────────┘
//! ```
//!
//! Invariants:
//! * in-band requests are answered in order, one runs at a time;
//! * an event that was published before a command completed precedes its reply; no event precedes the
//!   reply to the negotiation;
//! * memory is bounded: with [`QUEUE`] requests waiting or [`HIGH_WATER`] bytes unread by the client, no
//!   further request is parsed and no further input is read, until there is room again;
//! * a command that has begun runs to its end, also when its client has left.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use schema::commands::QmpCapabilities;
use schema::{ErrorClass, QMPCapability, QmpError};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

use super::request::{Call, Request, reply};
use super::{Service, SessionOptions};
use crate::events::{EventBus, Subscription};
use crate::json::{Parser, write_compact, write_pretty};

/// In-band requests that wait, once `oob` is negotiated; before, or without it, there is one.
const QUEUE: usize = 8;
/// Commands that run out of band at a time.
const OOB: usize = 8;
/// Bytes unread by the client beyond which nothing new is begun for it.
const HIGH_WATER: usize = 64 << 10;
/// Bytes read at a time.
const READ: usize = 16 << 10;
/// How long the session stays awake after input, for the next request of a client that sends one after
/// the other. To be woken on another core costs several times what answering does.
const LINGER: Duration = Duration::from_micros(50);

type Outcome = Result<Value, QmpError>;

struct Running {
    id: Option<Value>,
    outcome: Pin<Box<dyn Future<Output = Outcome>>>,
    /// It ends the process.
    quits: bool,
}

/// A session over a stream, as a state machine that [`Session::run`] drives.
pub(super) struct Session<S, T> {
    service: Arc<S>,
    bus: Arc<EventBus>,
    options: SessionOptions,
    stream: T,

    parser: Parser,
    input: Box<[u8]>,
    /// The part of `input` that isn't parsed yet.
    unparsed: std::ops::Range<usize>,
    end_of_input: bool,
    /// Whether there is more than one core to run on.
    has_cores: bool,
    /// Until when the session stays awake without anything to do.
    lingers_until: Option<Instant>,

    /// Once negotiated; events are for those who negotiated.
    events: Option<Subscription>,
    oob_enabled: bool,
    queue: VecDeque<Request>,
    in_band: Option<Running>,
    oob: Vec<Running>,

    output: Vec<u8>,
    written: usize,
    /// Nobody reads any more: replies are dropped.
    deaf: bool,

    stop: Pin<Box<dyn Future<Output = ()>>>,
    stopping: bool,
    /// The process ends: no command is begun any more, though it may take a moment.
    ending: bool,
}

impl<S: Service, T: AsyncRead + AsyncWrite + Unpin> Session<S, T> {
    pub(super) fn new(
        service: Arc<S>,
        bus: Arc<EventBus>,
        options: SessionOptions,
        stream: T,
        mut stop: watch::Receiver<bool>,
    ) -> Session<S, T> {
        let stop = Box::pin(async move {
            // An error means that the server is gone, which is the same.
            let _ = stop.wait_for(|stop| *stop).await;
        });
        let mut session = Session {
            service,
            bus,
            options,
            stream,
            parser: Parser::new(),
            input: vec![0; READ].into_boxed_slice(),
            unparsed: 0..0,
            end_of_input: false,
            has_cores: std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1),
            lingers_until: None,
            events: None,
            oob_enabled: false,
            queue: VecDeque::new(),
            in_band: None,
            oob: Vec::new(),
            output: Vec::new(),
            written: 0,
            deaf: false,
            stop,
            stopping: false,
            ending: false,
        };
        let version = session.service.version();
        session.send(&json!({"QMP": {"version": version, "capabilities": ["oob"]}}));
        session
    }

    /// Serves the client until it leaves or the server stops.
    pub(super) async fn run(mut self) {
        std::future::poll_fn(|cx| self.poll(cx)).await;
        // A command that has begun is not for its client alone.
        for running in self.in_band.take().into_iter().chain(self.oob.drain(..)) {
            tokio::task::spawn_local(async move {
                let _ = running.outcome.await;
            });
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if !self.stopping && self.stop.as_mut().poll(cx).is_ready() {
                self.stopping = true;
                self.queue.clear();
            }
            let mut progress = self.poll_running(cx);
            progress |= self.begin_next();
            progress |= self.parse_next();
            match self.poll_events(cx) {
                Ok(moved) => progress |= moved,
                Err(Hopeless) => return Poll::Ready(()),
            }
            progress |= self.poll_write(cx);
            progress |= self.poll_read(cx);
            if self.is_finished() {
                return Poll::Ready(());
            }
            if !progress {
                if self.lingers() {
                    cx.waker().wake_by_ref();
                }
                return Poll::Pending;
            }
        }
    }

    fn lingers(&mut self) -> bool {
        let lingers = self.lingers_until.is_some_and(|until| Instant::now() < until);
        if !lingers {
            self.lingers_until = None;
        }
        lingers
    }

    /// Whether nothing is left to say and nothing can come.
    fn is_finished(&self) -> bool {
        let waits = !self.queue.is_empty() && !self.ending;
        let idle = self.in_band.is_none() && self.oob.is_empty() && !waits;
        let silent = self.output.is_empty();
        let left = self.end_of_input && self.unparsed.is_empty() && !self.options.stays;
        idle && silent && (self.stopping || left)
    }

    fn is_congested(&self) -> bool {
        self.output.len() - self.written > HIGH_WATER
    }

    /// Replies for commands that completed.
    fn poll_running(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        let mut at = 0;
        while at < self.oob.len() {
            match self.oob[at].outcome.as_mut().poll(cx) {
                Poll::Ready(outcome) => {
                    let running = self.oob.swap_remove(at);
                    self.answer(running.id, outcome);
                    progress = true;
                }
                Poll::Pending => at += 1,
            }
        }
        if let Some(running) = &mut self.in_band
            && let Poll::Ready(outcome) = running.outcome.as_mut().poll(cx)
        {
            let id = running.id.take();
            self.ending |= running.quits && outcome.is_ok();
            self.in_band = None;
            self.answer(id, outcome);
            progress = true;
        }
        progress
    }

    /// Begins the next in-band command if none runs.
    fn begin_next(&mut self) -> bool {
        let ends = self.stopping || self.ending;
        if self.in_band.is_some() || ends || self.is_congested() {
            return false;
        }
        let Some(mut request) = self.queue.pop_front() else { return false };
        let id = request.id.take();
        match self.look_up(request, false) {
            Ok(Some(call)) => self.in_band = Some(self.begin(id, call)),
            Ok(None) => {
                self.answer(id, Ok(json!({})));
                // Not before: events follow the reply.
                self.events = Some(self.bus.subscribe());
            }
            Err(error) => self.answer(id, Err(error)),
        }
        true
    }

    fn begin(&self, id: Option<Value>, call: Call) -> Running {
        let service = self.service.clone();
        let quits = call.command == "quit";
        let outcome = Box::pin(async move { service.execute(&call.command, call.arguments).await });
        Running { id, outcome, quits }
    }

    /// The call to make, if the request is one that may be made now. `None`: it was the negotiation, and
    /// it is done.
    fn look_up(&mut self, request: Request, oob: bool) -> Result<Option<Call>, QmpError> {
        let call = request.into_call(self.oob_enabled)?;
        let no_oob =
            |name: &str| Err(QmpError::generic(format!("The command {name} does not support OOB")));
        if call.command == "qmp_capabilities" {
            return if oob { no_oob(&call.command) } else { self.negotiate(call).map(|()| None) };
        }
        if self.events.is_none() {
            let text = "Expecting capabilities negotiation with 'qmp_capabilities'";
            return Err(QmpError::new(ErrorClass::CommandNotFound, text));
        }
        let Some(info) = self.service.command(&call.command) else {
            return Err(QmpError::command_not_found(&call.command));
        };
        if oob && !info.allow_oob {
            return no_oob(&call.command);
        }
        Ok(Some(call))
    }

    fn negotiate(&mut self, call: Call) -> Result<(), QmpError> {
        let oob = requested_oob(call)?;
        if self.events.is_some() {
            let text = "Capabilities negotiation is already complete, command ignored";
            return Err(QmpError::new(ErrorClass::CommandNotFound, text));
        }
        self.oob_enabled = oob;
        Ok(())
    }

    /// Parses one more request if there is room for it.
    fn parse_next(&mut self) -> bool {
        let waiting = self.queue.len();
        let full = if self.oob_enabled {
            waiting >= QUEUE || self.oob.len() >= OOB
        } else {
            waiting > 0 || self.in_band.is_some()
        };
        if full || self.stopping || self.is_congested() || self.unparsed.is_empty() {
            return false;
        }
        let mut rest = &self.input[self.unparsed.clone()];
        let parsed = self.parser.next(&mut rest);
        self.unparsed.start = self.unparsed.end - rest.len();
        let Some(parsed) = parsed else { return true };
        let mut request = Request::new(parsed);
        if !request.is_oob() {
            self.queue.push_back(request);
            return true;
        }
        let id = request.id.take();
        match self.look_up(request, true) {
            Ok(Some(call)) => {
                let running = self.begin(id, call);
                self.oob.push(running);
            }
            Ok(None) => {}
            Err(error) => self.answer(id, Err(error)),
        }
        true
    }

    /// Moves events to the output while the client keeps up.
    fn poll_events(&mut self, cx: &mut Context<'_>) -> Result<bool, Hopeless> {
        let mut progress = false;
        while !self.is_congested() {
            let Some(events) = &self.events else { break };
            match events.poll_next(cx) {
                Poll::Ready(Ok(event)) => self.send_bytes(event.line(self.options.pretty)),
                Poll::Ready(Err(_)) => return Err(Hopeless),
                Poll::Pending => break,
            }
            progress = true;
        }
        Ok(progress)
    }

    /// Queues a reply, behind all events that were published up to now.
    fn answer(&mut self, id: Option<Value>, outcome: Outcome) {
        while let Some(Ok(Some(event))) = self.events.as_ref().map(Subscription::take) {
            self.send_bytes(event.line(self.options.pretty));
        }
        self.send(&reply(id, outcome));
    }

    fn send(&mut self, value: &Value) {
        if !self.deaf {
            if self.options.pretty {
                write_pretty(value, &mut self.output);
            } else {
                write_compact(value, &mut self.output);
            }
            self.output.extend_from_slice(b"\r\n");
        }
    }

    fn send_bytes(&mut self, line: &[u8]) {
        if !self.deaf {
            self.output.extend_from_slice(line);
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        while self.written < self.output.len() {
            let rest = &self.output[self.written..];
            match Pin::new(&mut self.stream).poll_write(cx, rest) {
                Poll::Ready(Ok(count)) if count > 0 => self.written += count,
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Poll::Ready(_) => {
                    // The requests that it sent are still carried out.
                    self.deaf = true;
                    self.written = self.output.len();
                }
                Poll::Pending => return progress,
            }
            progress = true;
        }
        if self.written > 0 {
            self.written = 0;
            if self.output.capacity() > HIGH_WATER {
                self.output = Vec::new();
            } else {
                self.output.clear();
            }
        }
        progress
    }

    /// Reads more input when all of the last is parsed.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> bool {
        if self.end_of_input || self.stopping || !self.unparsed.is_empty() || self.is_congested() {
            return false;
        }
        let mut buffer = ReadBuf::new(&mut self.input);
        match Pin::new(&mut self.stream).poll_read(cx, &mut buffer) {
            Poll::Pending => false,
            Poll::Ready(Ok(())) => {
                self.unparsed = 0..buffer.filled().len();
                self.end_of_input = self.unparsed.is_empty();
                // A lone core is better left to the client.
                if self.has_cores {
                    self.lingers_until = Some(Instant::now() + LINGER);
                }
                true
            }
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::Interrupted => true,
            Poll::Ready(Err(_)) => {
                self.end_of_input = true;
                true
            }
        }
    }
}

/// The client reads too little for its events to be kept.
struct Hopeless;

/// Whether the arguments of `qmp_capabilities` ask for `oob`.
fn requested_oob(call: Call) -> Result<bool, QmpError> {
    let arguments = schema::input::arguments::<QmpCapabilities>(call.arguments)?;
    Ok(arguments.enable.is_some_and(|enable| enable.contains(&QMPCapability::Oob)))
}
