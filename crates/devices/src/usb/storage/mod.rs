//! A disk or CD-ROM drive (Universal Serial Bus Mass Storage Class, Bulk-Only Transport, revision 1.0).
//!
//! ```text
//! Command ─► Fetch ⇄ Send ────► Status ─► Command
//!        ├─► Receive ⇄ Store ─┤
//!        └─► Perform ─────────┘
//! ```
//!
//! The host sends a command block wrapper, moves as many bytes as it announced, and asks for a status
//! wrapper. Bytes that the command has none of are zeroes; bytes that it has no use for are dropped; the
//! residue of the status tells of both.
//!
//! What may wait for the host ([`Step::is_work`]) is done by a worker with nothing locked, in pieces of
//! [`PIECE`]; meanwhile the device answers "not now". A reset forgets a command whose piece is under way:
//! the piece has a generation, and the result of an old one is dropped.

#[cfg(test)]
mod tests;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};
use vmstate::{RestoreError, Saved, State};

use super::descriptor::{
    ConfigurationInfo, Descriptors, DeviceInfo, EndpointInfo, EndpointKind, TO_HOST, attribute,
};
use super::{Handshake, MAX_PACKET, Setup, Stalled, UsbFunction, Waker};
use crate::lock;
use crate::scsi::{Data, Lun, LunState, Outcome, Task};

/// Endpoints: one that sends, one that receives.
const IN: u8 = 1;
const OUT: u8 = 2;

/// Bytes of the wrappers, and what they begin with.
const COMMAND_LEN: usize = 31;
const STATUS_LEN: usize = 13;
const COMMAND_SIGNATURE: [u8; 4] = *b"USBC";
const STATUS_SIGNATURE: [u8; 4] = *b"USBS";
/// Longest command block.
const MAX_BLOCK: usize = 16;

/// Class requests, by [`Setup::code`].
mod request {
    pub(super) const RESET: u16 = 0x21ff;
    pub(super) const MAX_LUN: u16 = 0xa1fe;
}

/// Bytes that are read or written at a time; a multiple of all sizes of packets.
const PIECE: usize = 1 << 16;

/// How a command ended, as the status says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Status {
    #[default]
    Passed = 0,
    /// REQUEST SENSE says why.
    Failed = 1,
    /// Host and device did not agree on the data.
    PhaseError = 2,
}

/// What comes next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Step {
    /// The host sends a command.
    #[default]
    Command,
    /// The worker fetches a piece.
    Fetch,
    /// The host receives what is in the buffer, then zeroes.
    Send,
    /// The host sends into the buffer, then what is dropped.
    Receive,
    /// The worker stores what is in the buffer.
    Store,
    /// The worker does what moves no data.
    Perform,
    /// The host receives the status.
    Status,
    /// A command made no sense; only a reset helps.
    Broken,
}

impl Step {
    fn is_work(self) -> bool {
        matches!(self, Self::Fetch | Self::Store | Self::Perform)
    }
}

/// A command that is being done. Lengths are in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Command {
    tag: u32,
    task: Task,
    /// What the host will move, and which way.
    expected: u32,
    to_host: bool,
    /// What it moved so far.
    moved: u32,
    /// What of `expected` the command has a use for.
    useful: u32,
    /// What was fetched or stored so far.
    done: u32,
    status: Status,
}

/// State of the transport.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Transport {
    step: Step,
    command: Option<Command>,
    buffer: Vec<u8>,
    /// What of the buffer was sent.
    sent: u32,
}

/// Saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct StorageState {
    transport: Transport,
    lun: LunState,
}

impl State for StorageState {
    const NAME: &'static str = "usb-storage";
    const VERSION: u32 = 1;

    fn validate(&self) -> Result<(), String> {
        let Transport { step, command, buffer, sent } = &self.transport;
        if buffer.len() > PIECE || *sent as usize > buffer.len() {
            return Err(format!("{sent} of {} bytes were sent", buffer.len()));
        }
        let Some(command) = command else {
            return match step {
                Step::Command | Step::Broken => Ok(()),
                step => Err(format!("{step:?} without a command")),
            };
        };
        command.validate(*step, buffer.len())
    }
}

/// Who does what may wait for the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Worker {
    /// A thread.
    Thread,
    /// Whoever sends a packet, at once: for tests that want the same every time.
    None,
}

/// What the lock guards.
#[derive(Default)]
struct Inner {
    transport: Transport,
    /// Counts what ends work early.
    generation: u64,
    working: bool,
    /// A failure asked for the machine to stop; nothing is done until it continues.
    held: bool,
    pauses: u32,
    closed: bool,
}

impl Inner {
    fn has_work(&self) -> bool {
        self.transport.step.is_work() && !self.held && self.pauses == 0 && !self.closed
    }
}

/// What the device shares with its worker.
struct Shared {
    lun: Arc<Lun>,
    inner: Mutex<Inner>,
    waker: OnceLock<Waker>,
    /// The worker waits here.
    wake: Condvar,
    /// Whoever waits for the worker does so here.
    idle: Condvar,
}

/// A piece of work.
struct Piece {
    generation: u64,
    step: Step,
    task: Task,
    done: u32,
    /// Bytes to fetch.
    len: usize,
    /// Bytes to store.
    data: Vec<u8>,
}

/// A mass storage device with one logical unit.
pub struct UsbStorage {
    descriptors: Descriptors,
    worker: Worker,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl UsbStorage {
    /// A device with this serial number. `lun` has to keep its sense.
    ///
    /// # Errors
    /// If the host has no thread.
    pub fn new(lun: Arc<Lun>, serial: String, worker: Worker) -> std::io::Result<Arc<Self>> {
        let device = DeviceInfo {
            usb: 0x0200,
            class: 0,
            vendor: 0x46f4,
            product: 0x0001,
            release: 0,
            strings: [1, 2, 3],
        };
        let endpoint =
            |address| EndpointInfo { address, kind: EndpointKind::Bulk, packet: MAX_PACKET as u8 };
        let configuration = ConfigurationInfo {
            string: 4,
            attributes: attribute::ALWAYS | attribute::SELF_POWERED,
            power: 0,
            // SCSI commands, Bulk-Only Transport.
            class: [8, 6, 0x50],
            class_descriptors: Vec::new(),
            endpoints: vec![endpoint(TO_HOST | IN), endpoint(OUT)],
        };
        let strings = vec![
            (1, "QEMU".into()),
            (2, "QEMU USB HARDDRIVE".into()),
            (3, serial),
            (4, "Full speed config (usb 1.1)".into()),
        ];
        let shared = Arc::new(Shared {
            lun,
            inner: Mutex::default(),
            waker: OnceLock::new(),
            wake: Condvar::new(),
            idle: Condvar::new(),
        });
        let mut thread = None;
        if worker == Worker::Thread {
            let shared = Arc::clone(&shared);
            let builder = std::thread::Builder::new().name("usb-storage".into());
            thread = Some(builder.spawn(move || shared.serve())?);
        }
        let descriptors = Descriptors::new(&device, &configuration, strings);
        Ok(Arc::new(Self { descriptors, worker, shared, thread }))
    }

    /// Has the work done that there is.
    fn update(&self, inner: &mut Inner) {
        if self.worker == Worker::Thread {
            if inner.has_work() {
                self.shared.wake.notify_one();
            }
            return;
        }
        while let Some(piece) = inner.piece() {
            let (outcome, data) = self.shared.perform(&piece);
            inner.finish(piece, outcome, data);
        }
    }
}

impl Shared {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    /// Does the work until the device is gone.
    fn serve(&self) {
        let mut inner = self.inner();
        while !inner.closed {
            let Some(piece) = inner.piece() else {
                inner = self.wake.wait(inner).unwrap_or_else(|e| e.into_inner());
                continue;
            };
            inner.working = true;
            drop(inner);
            let (outcome, data) = self.perform(&piece);
            inner = self.inner();
            inner.working = false;
            inner.finish(piece, outcome, data);
            self.idle.notify_all();
            drop(inner);
            if let Some(waker) = self.waker.get() {
                waker.wake();
            }
            inner = self.inner();
        }
    }

    /// Does a piece of work; returns the data that were fetched, too.
    fn perform(&self, piece: &Piece) -> (Outcome, Vec<u8>) {
        let Self { lun, .. } = self;
        let at = u64::from(piece.done);
        match (piece.step, &piece.task) {
            (Step::Fetch, task) => {
                let mut data = vec![0; piece.len];
                (lun.fetch(task, at, &mut data), data)
            }
            (Step::Store, &Task::Write { offset, len, durable }) => {
                let part = piece.data.len() as u64;
                // The last piece makes them all durable.
                let durable = durable && at + part == len;
                let task = Task::Write { offset: offset + at, len: part, durable };
                (with_memory(&piece.data, |memory| lun.perform(&task, &[], memory)), Vec::new())
            }
            (_, task) => {
                (with_memory(&piece.data, |memory| lun.perform(task, &[], memory)), Vec::new())
            }
        }
    }

    /// Waits until the worker is not at work.
    fn wait_idle<'a>(&'a self, mut inner: MutexGuard<'a, Inner>) -> MutexGuard<'a, Inner> {
        while inner.working {
            inner = self.idle.wait(inner).unwrap_or_else(|e| e.into_inner());
        }
        inner
    }
}

fn with_memory<T>(data: &[u8], act: impl FnOnce(&[block::GuestSlice<'_>]) -> T) -> T {
    let mut copy = data.to_vec();
    act(&[block::buffer_slice(&mut copy)])
}

impl Inner {
    /// The work that there is.
    fn piece(&self) -> Option<Piece> {
        if !self.has_work() {
            return None;
        }
        let Transport { step, command, buffer, .. } = &self.transport;
        let command = command.as_ref()?;
        let left = (command.useful - command.done) as usize;
        Some(Piece {
            generation: self.generation,
            step: *step,
            task: command.task.clone(),
            done: command.done,
            len: left.min(PIECE),
            data: if *step == Step::Store { buffer.clone() } else { Vec::new() },
        })
    }

    /// A piece of work is done.
    fn finish(&mut self, piece: Piece, outcome: Outcome, data: Vec<u8>) {
        if piece.generation != self.generation {
            return;
        }
        if outcome == Outcome::Held {
            self.held = true;
            return;
        }
        let transport = &mut self.transport;
        let Some(command) = &mut transport.command else { return };
        let len = if piece.step == Step::Fetch { piece.len } else { piece.data.len() };
        transport.buffer.clear();
        transport.sent = 0;
        if let Outcome::Check(_) = outcome {
            command.fail();
        } else {
            command.done += len as u32;
            transport.buffer = data;
        }
        transport.proceed();
    }
}

impl Transport {
    /// A command from the host.
    fn begin(&mut self, lun: &Lun, wrapper: &[u8]) {
        let Some(block) = block_of(wrapper) else {
            self.step = Step::Broken;
            return;
        };
        let word = |at: usize| [wrapper[at], wrapper[at + 1], wrapper[at + 2], wrapper[at + 3]];
        let mut command = Command {
            tag: u32::from_le_bytes(word(4)),
            task: Task::Done,
            expected: u32::from_le_bytes(word(8)),
            to_host: wrapper[12] & 0x80 != 0,
            moved: 0,
            useful: 0,
            done: 0,
            status: Status::Passed,
        };
        match lun.start(block) {
            Ok(task) => command.take(task),
            Err(_) => command.status = Status::Failed,
        }
        let works = command.status == Status::Passed && command.useful == 0;
        self.step = if works && command.task != Task::Done { Step::Perform } else { Step::Status };
        self.command = Some(command);
        self.buffer.clear();
        self.sent = 0;
        if self.step != Step::Perform {
            self.proceed();
        }
    }

    /// What comes next, now that there is nothing in the buffer to be stored.
    fn proceed(&mut self) {
        let Some(command) = &self.command else { return };
        let goes_on = command.moved < command.expected;
        self.step = match command.to_host {
            true if (self.sent as usize) < self.buffer.len() => Step::Send,
            true if command.done < command.useful => Step::Fetch,
            true if goes_on => Step::Send,
            false if goes_on => Step::Receive,
            _ => Step::Status,
        };
    }

    /// A packet for the host.
    fn send(&mut self, room: &mut [u8]) -> usize {
        let Some(command) = &mut self.command else { return 0 };
        let rest = self.buffer.get(self.sent as usize..).unwrap_or_default();
        let left = (command.expected - command.moved) as usize;
        let len = left.min(room.len());
        let real = rest.len().min(len);
        room[..real].copy_from_slice(&rest[..real]);
        // The packet goes on with zeroes only if nothing more is to come.
        let len = if command.done < command.useful { real } else { len };
        room[real..len].fill(0);
        self.sent += real as u32;
        command.moved += len as u32;
        self.proceed();
        len
    }

    /// A packet from the host.
    fn receive(&mut self, data: &[u8]) {
        let Some(command) = &mut self.command else { return };
        let left = (command.expected - command.moved) as usize;
        let data = &data[..data.len().min(left)];
        command.moved += data.len() as u32;
        let wanted = (command.useful - command.done) as usize - self.buffer.len();
        self.buffer.extend(&data[..data.len().min(wanted)]);
        let complete = (command.useful - command.done) as usize == self.buffer.len();
        if !self.buffer.is_empty() && (complete || self.buffer.len() >= PIECE) {
            self.step = Step::Store;
        } else if command.moved == command.expected {
            self.step = Step::Status;
        }
    }

    /// The status of the command, which is over with it.
    fn status(&mut self) -> [u8; STATUS_LEN] {
        let mut wrapper = [0; STATUS_LEN];
        if let Some(command) = self.command.take() {
            wrapper[..4].copy_from_slice(&STATUS_SIGNATURE);
            wrapper[4..8].copy_from_slice(&command.tag.to_le_bytes());
            let residue = command.expected - command.done.min(command.expected);
            wrapper[8..12].copy_from_slice(&residue.to_le_bytes());
            wrapper[12] = command.status as u8;
        }
        self.step = Step::Command;
        wrapper
    }
}

impl Command {
    fn validate(&self, step: Step, buffered: usize) -> Result<(), String> {
        let Self { task, expected, to_host, moved, useful, done, .. } = self;
        let len = match *task {
            Task::Write { offset, len, .. } if offset.checked_add(len).is_none() => {
                return Err(format!("{len} bytes at {offset}"));
            }
            _ => match task.data() {
                Data::None => 0,
                Data::In(len) | Data::Out(len) => len,
            },
        };
        if moved > expected || useful > expected || done > useful || u64::from(*useful) > len {
            return Err(format!("{moved}, {done} and {useful} of {expected} bytes"));
        }
        if buffered > (if *to_host { *done } else { useful - done }) as usize {
            return Err(format!("{buffered} bytes in the buffer"));
        }
        match step {
            Step::Fetch | Step::Send if !to_host => Err("data to the host".into()),
            Step::Receive | Step::Store if *to_host => Err("data from the host".into()),
            _ => Ok(()),
        }
    }

    /// It ends here; what the host still moves means nothing.
    fn fail(&mut self) {
        self.status = Status::Failed;
        self.useful = self.done;
    }

    /// Settles which data are moved (specification, section 6.7).
    fn take(&mut self, task: Task) {
        let (len, to_host) = match task.data() {
            Data::None => {
                self.task = task;
                return;
            }
            Data::In(len) => (len, true),
            Data::Out(len) => (len, false),
        };
        let is_short = u64::from(self.expected) < len;
        // A reply is cut as by an allocation length.
        let is_reply = matches!(task, Task::Reply(_));
        if self.expected == 0 && is_reply {
            return;
        }
        if self.expected == 0 || to_host != self.to_host || is_short && !to_host {
            self.status = Status::PhaseError;
            return;
        }
        // What does not go to the medium as it comes has to fit into the buffer.
        if !to_host && len > PIECE as u64 && !matches!(task, Task::Write { .. }) {
            self.status = Status::Failed;
            return;
        }
        if is_short && !is_reply {
            self.status = Status::PhaseError;
        }
        self.useful = len.min(self.expected.into()) as u32;
        self.task = task;
    }
}

/// The command block in a wrapper, if it is a meaningful one.
fn block_of(wrapper: &[u8]) -> Option<&[u8]> {
    if wrapper.len() != COMMAND_LEN || !wrapper.starts_with(&COMMAND_SIGNATURE) {
        return None;
    }
    let (lun, len) = (wrapper[13] & 0xf, usize::from(wrapper[14] & 0x1f));
    (lun == 0 && (1..=MAX_BLOCK).contains(&len)).then(|| &wrapper[15..15 + len])
}

impl UsbFunction for UsbStorage {
    fn descriptors(&self) -> &Descriptors {
        &self.descriptors
    }

    fn connect(&self, waker: Waker) {
        let _ = self.shared.waker.set(waker);
    }

    fn request(&self, setup: &Setup, _data: &[u8]) -> Result<Vec<u8>, Stalled> {
        if setup.index != 0 {
            return Err(Stalled);
        }
        match setup.code() {
            request::RESET => {
                self.reset();
                Ok(Vec::new())
            }
            request::MAX_LUN => Ok(vec![0]),
            _ => Err(Stalled),
        }
    }

    fn data_in(&self, _endpoint: u8, room: &mut [u8]) -> Handshake {
        let mut inner = self.shared.inner();
        let transport = &mut inner.transport;
        match transport.step {
            Step::Send => {
                let len = transport.send(room);
                self.update(&mut inner);
                Handshake::Ack(len)
            }
            Step::Status => {
                room[..STATUS_LEN].copy_from_slice(&transport.status());
                Handshake::Ack(STATUS_LEN)
            }
            Step::Fetch | Step::Store | Step::Perform | Step::Command => Handshake::Nak,
            Step::Receive | Step::Broken => Handshake::Stall,
        }
    }

    fn data_out(&self, _endpoint: u8, data: &[u8]) -> Handshake {
        let mut inner = self.shared.inner();
        match inner.transport.step {
            Step::Command => inner.transport.begin(&self.shared.lun, data),
            Step::Receive => inner.transport.receive(data),
            Step::Fetch | Step::Store | Step::Perform => return Handshake::Nak,
            Step::Send | Step::Status | Step::Broken => return Handshake::Stall,
        }
        let broken = inner.transport.step == Step::Broken;
        self.update(&mut inner);
        if broken { Handshake::Stall } else { Handshake::Ack(data.len()) }
    }

    fn reset(&self) {
        let mut inner = self.shared.inner();
        inner.transport = Transport::default();
        inner.generation += 1;
    }

    fn power_on(&self) {
        let mut inner = self.shared.wait_idle(self.shared.inner());
        inner.transport = Transport::default();
        inner.generation += 1;
        inner.held = false;
        drop(inner);
        self.shared.lun.reset();
    }

    fn pause(&self) {
        let mut inner = self.shared.inner();
        inner.pauses += 1;
        drop(self.shared.wait_idle(inner));
    }

    fn resume(&self) {
        let mut inner = self.shared.inner();
        inner.pauses = inner.pauses.saturating_sub(1);
        inner.held = false;
        self.update(&mut inner);
    }

    fn save(&self) -> Saved {
        let transport = self.shared.inner().transport.clone();
        Saved::new(&StorageState { transport, lun: self.shared.lun.save() })
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let state: StorageState = saved.decode()?;
        let damaged = |reason| RestoreError::Damaged { name: StorageState::NAME, reason };
        self.shared.lun.check(&state.lun).map_err(damaged)?;
        let mut inner = self.shared.wait_idle(self.shared.inner());
        self.shared.lun.restore(&state.lun);
        inner.transport = state.transport;
        inner.generation += 1;
        inner.held = false;
        self.update(&mut inner);
        Ok(())
    }
}

impl Drop for UsbStorage {
    fn drop(&mut self) {
        self.shared.inner().closed = true;
        self.shared.wake.notify_all();
        // The image is let go when this returns. The worker may be who drops the device: it ends next.
        let is_other =
            |thread: &JoinHandle<()>| thread.thread().id() != std::thread::current().id();
        if let Some(thread) = self.thread.take().filter(is_other) {
            let _ = thread.join();
        }
    }
}
