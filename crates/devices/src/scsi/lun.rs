//! A logical unit: its state, the commands that all kinds have, and how tasks are done.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};

use block::{Drive, ErrorAction, GuestSlice, MediaDevice, Operation, part_of, slices_len};
use serde::{Deserialize, Serialize};

use super::cdrom::MediaEvent;
use super::data::{gather, scatter};
use super::{Cdb, Kind, LunOptions, Outcome, Sense, Task, Transport, op};
use crate::block_size::{self, BlockSizeError};
use crate::lock;

/// Most unit attentions that wait to be told; more would say nothing new.
const MAX_ATTENTIONS: usize = 8;

/// Why a unit can't be had.
#[derive(Debug, thiserror::Error)]
pub enum LunError {
    /// The drive can't be claimed.
    #[error(transparent)]
    Drive(#[from] block::BlockError),
    /// There is no disk in the drive, and it can't be put in later.
    #[error("Device needs media, but drive is empty")]
    Empty,
    /// Block sizes that it can't have.
    #[error(transparent)]
    BlockSize(#[from] BlockSizeError),
    /// A name for the device identification page that is too long.
    #[error("The device id can't be longer than 247 characters")]
    DeviceIdLength,
}

/// The saved form of a [`Lun`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LunState {
    /// What the initiator is to be told of, oldest first.
    attentions: VecDeque<Sense>,
    /// Why the last command failed, for REQUEST SENSE.
    sense: Option<Sense>,
    /// What happened to the medium, for GET EVENT STATUS NOTIFICATION.
    pub(super) event: MediaEvent,
    /// The tray is open.
    tray_open: bool,
    /// The medium is locked in.
    locked: bool,
    /// The drive's write cache is on.
    write_cache: bool,
}

/// Told when what a unit says of itself changed, with the sense that says how.
pub type ChangeHook = Box<dyn Fn(Sense) + Send + Sync>;

/// A logical unit on a [`Drive`].
pub struct Lun {
    pub(super) drive: Arc<Drive>,
    pub(super) options: LunOptions,
    state: Mutex<LunState>,
    /// The drive's write cache as the machine was told to have it.
    initial_write_cache: bool,
    /// The drive is ours, to be given back.
    claimed: AtomicBool,
    on_change: OnceLock<ChangeHook>,
}

/// Why a task stopped short.
pub(super) enum Stop {
    /// The guest is told.
    Check(Sense),
    /// The machine stops; the task is to be done again.
    Held,
}

impl From<Sense> for Stop {
    fn from(sense: Sense) -> Self {
        Self::Check(sense)
    }
}

impl Lun {
    /// A unit on `drive`, which it claims as `device`.
    ///
    /// # Errors
    /// If the drive can't be claimed or is empty for good, or an option is out of range.
    pub fn new(
        drive: Arc<Drive>,
        device: &str,
        options: LunOptions,
    ) -> Result<Arc<Self>, LunError> {
        check(&options)?;
        if !drive.is_inserted() && !options.removable {
            return Err(LunError::Empty);
        }
        let initial_write_cache = drive.write_cache();
        let lun = Arc::new(Self {
            drive,
            options,
            state: Mutex::default(),
            initial_write_cache,
            claimed: AtomicBool::new(false),
            on_change: OnceLock::new(),
        });
        if lun.options.removable {
            let watcher: Weak<dyn MediaDevice> = Arc::downgrade(&lun) as Weak<dyn MediaDevice>;
            lun.drive.claim_removable(device, true, watcher)?;
        } else {
            lun.drive.claim(device, lun.options.share_rw)?;
            let resized = Arc::downgrade(&lun);
            lun.drive.set_resize_hook(Arc::new(move || {
                if let Some(lun) = resized.upgrade() {
                    lun.attention(Sense::CAPACITY_CHANGED);
                }
            }));
        }
        lun.claimed.store(true, Ordering::Release);
        lun.reset();
        Ok(lun)
    }

    /// The drive.
    pub fn drive(&self) -> &Arc<Drive> {
        &self.drive
    }

    /// What the unit is.
    pub fn options(&self) -> &LunOptions {
        &self.options
    }

    /// Whether it is a CD or DVD drive.
    pub fn is_cdrom(&self) -> bool {
        self.options.kind == Kind::CdRom
    }

    /// Sets who is told of changes; only the first call counts.
    pub fn set_change_hook(&self, hook: ChangeHook) {
        let _ = self.on_change.set(hook);
    }

    /// Bytes of a block.
    pub fn block_size(&self) -> u64 {
        self.options.logical_block_size.into()
    }

    /// Blocks of the medium, 0 without one.
    pub(super) fn blocks(&self) -> u64 {
        self.drive.sectors() * 512 / self.block_size()
    }

    pub(super) fn state(&self) -> MutexGuard<'_, LunState> {
        lock(&self.state)
    }

    /// Decodes and checks a command. What needs no I/O is done when this returns.
    ///
    /// # Errors
    /// The sense data that the command ends with, in CHECK CONDITION.
    pub fn start(&self, cdb: &[u8]) -> Result<Task, Sense> {
        let cdb = Cdb::new(cdb);
        let mut state = self.state();
        let result = self.dispatch(&cdb, &mut state);
        if cdb.opcode() != op::REQUEST_SENSE {
            // What the last command left is known, or not wanted.
            state.sense = result.as_ref().err().filter(|_| self.options.keeps_sense).copied();
        }
        result
    }

    fn dispatch(&self, cdb: &Cdb, state: &mut LunState) -> Result<Task, Sense> {
        if !self.ignores_attentions(cdb.opcode())
            && let Some(attention) = state.attentions.pop_front()
        {
            return Err(attention);
        }
        match cdb.opcode() {
            op::TEST_UNIT_READY => self.ready().map(|()| Task::Done),
            op::REQUEST_SENSE => self.request_sense(cdb, state),
            op::INQUIRY => self.inquiry(cdb),
            op::REPORT_LUNS => report_luns(cdb, &[0]),
            op::MODE_SENSE_6 | op::MODE_SENSE_10 => self.mode_sense(cdb),
            op::MODE_SELECT_6 | op::MODE_SELECT_10 => mode_select(cdb),
            // There is one initiator, so a unit is always its own. Third parties there are none.
            op::RESERVE_6 | op::RELEASE_6 | op::RESERVE_10 | op::RELEASE_10
                if self.options.transport == Transport::Scsi =>
            {
                if cdb.u8(1) & 0x11 == 0 {
                    Ok(Task::Done)
                } else {
                    Err(Sense::INVALID_FIELD)
                }
            }
            op::START_STOP_UNIT => self.start_stop(cdb, state),
            op::PREVENT_ALLOW => self.prevent_allow(cdb),
            _ if self.is_cdrom() => self.start_cdrom(cdb, state),
            _ => self.start_disk(cdb),
        }
    }

    /// Whether a command is done although the initiator has to be told something.
    fn ignores_attentions(&self, opcode: u8) -> bool {
        match opcode {
            op::INQUIRY | op::REPORT_LUNS | op::REQUEST_SENSE => true,
            op::GET_CONFIGURATION | op::GET_EVENT_STATUS => self.is_cdrom(),
            _ => false,
        }
    }

    /// # Errors
    /// Why there is no medium to be had.
    pub(super) fn ready(&self) -> Result<(), Sense> {
        if self.drive.is_ready() {
            Ok(())
        } else if self.drive.is_tray_open() {
            Err(Sense::TRAY_OPEN)
        } else {
            Err(Sense::NO_MEDIUM)
        }
    }

    fn request_sense(&self, cdb: &Cdb, state: &mut LunState) -> Result<Task, Sense> {
        let sense = state.sense.take().or_else(|| state.attentions.pop_front());
        let sense = sense.unwrap_or(Sense::NONE);
        let data =
            if cdb.u8(1) & 1 != 0 { sense.descriptor().to_vec() } else { sense.fixed().to_vec() };
        Ok(reply(data, cdb.u8(4)))
    }

    fn start_stop(&self, cdb: &Cdb, state: &mut LunState) -> Result<Task, Sense> {
        let (load_eject, start) = (cdb.u8(4) & 2 != 0, cdb.u8(4) & 1 != 0);
        // With a power condition the other bits mean nothing. We need no power, whatever is asked.
        if cdb.u8(4) >> 4 != 0 || !load_eject || !self.options.removable {
            return Ok(Task::Done);
        }
        if start != self.drive.is_tray_open() {
            return Ok(Task::Done);
        }
        if !start && self.drive.is_locked() {
            return Err(Sense::REMOVAL_PREVENTED);
        }
        self.drive.move_tray(!start);
        // Whoever moves the tray knows that it moved, but perhaps not what is in it.
        state.event = match (start, self.drive.is_inserted()) {
            (true, true) => MediaEvent::New,
            (true, false) => MediaEvent::None,
            (false, _) => MediaEvent::Removed,
        };
        Ok(Task::Done)
    }

    fn prevent_allow(&self, cdb: &Cdb) -> Result<Task, Sense> {
        // Bit 1 asks for a persistent lock; then, too, the medium can't be taken out.
        if self.options.removable {
            self.drive.set_locked(cdb.u8(4) & 1 != 0);
        }
        Ok(Task::Done)
    }

    /// Tells the initiator something with its next command.
    pub fn attention(&self, sense: Sense) {
        push_attention(&mut self.state(), sense);
        if let Some(hook) = self.on_change.get() {
            hook(sense);
        }
    }

    /// Does what a command asks for: data for the initiator go to `input`, data from it come from
    /// `output`. Where memory is short less is moved.
    pub fn perform(
        &self,
        task: &Task,
        input: &[GuestSlice<'_>],
        output: &[GuestSlice<'_>],
    ) -> Outcome {
        let result = match *task {
            Task::Done => Ok(0),
            Task::Reply(ref bytes) => Ok(scatter(input, 0, bytes) as u64),
            Task::Read { offset, len } => {
                let bufs = part_of(input, 0, len);
                let moved = slices_len(&bufs);
                self.settle(Operation::Read, self.drive.read(offset, &bufs)).map(|()| moved)
            }
            Task::ReadSectors { lba, count, parts } => {
                self.read_sectors(lba, count, parts, 0, slices_len(input), |at, bytes| {
                    scatter(input, at, bytes);
                })
            }
            Task::Write { offset, len, durable } => {
                let bufs = part_of(output, 0, len);
                let moved = slices_len(&bufs);
                self.settle(Operation::Write, self.drive.write(offset, &bufs))
                    .and_then(|()| if durable { self.flush() } else { Ok(()) })
                    .map(|()| moved)
            }
            Task::Compare { offset, len, repeat } => self.compare(offset, len, repeat, output),
            Task::WriteSame { offset, len, block, may_unmap } => {
                self.write_same(offset, len, block, may_unmap, output)
            }
            Task::Unmap { len } => self.unmap(&parameters(output, len)),
            Task::ModeSelect { len, long } => {
                self.take_mode(&parameters(output, len), long).map_err(Stop::from)
            }
            Task::Flush => self.flush().map(|()| 0),
        };
        self.outcome(result)
    }

    /// Fetches the part from byte `offset` on of the data that `task` has for the initiator; fills
    /// `into` as far as there are data.
    pub fn fetch(&self, task: &Task, offset: u64, into: &mut [u8]) -> Outcome {
        let result = match *task {
            Task::Reply(ref bytes) => {
                let start = usize::try_from(offset).map_or(bytes.len(), |n| n.min(bytes.len()));
                let len = into.len().min(bytes.len() - start);
                into[..len].copy_from_slice(&bytes[start..start + len]);
                Ok(len as u64)
            }
            Task::Read { offset: begin, len } => {
                let len = usize::try_from(len.saturating_sub(offset)).unwrap_or(usize::MAX);
                let len = len.min(into.len());
                self.read_bytes(begin.saturating_add(offset), &mut into[..len]).map(|()| len as u64)
            }
            Task::ReadSectors { lba, count, parts } => {
                let len = into.len() as u64;
                self.read_sectors(lba, count, parts, offset, len, |at, bytes| {
                    into[at..at + bytes.len()].copy_from_slice(bytes);
                })
            }
            _ => Ok(0),
        };
        self.outcome(result)
    }

    /// Does a task whose data from the initiator are a list of parameters, `data`.
    pub fn accept(&self, task: &Task, data: &[u8]) -> Outcome {
        let result = match *task {
            Task::ModeSelect { long, .. } => self.take_mode(data, long).map_err(Stop::from),
            Task::Unmap { .. } => self.unmap(data),
            _ => Err(Stop::Check(Sense::INVALID_OPCODE)),
        };
        self.outcome(result)
    }

    fn outcome(&self, result: Result<u64, Stop>) -> Outcome {
        match result {
            Ok(moved) => Outcome::Good(moved),
            Err(Stop::Held) => Outcome::Held,
            Err(Stop::Check(sense)) => {
                if self.options.keeps_sense {
                    self.state().sense = Some(sense);
                }
                Outcome::Check(sense)
            }
        }
    }

    /// What the end of a request to the host means.
    pub(super) fn settle(&self, operation: Operation, result: io::Result<()>) -> Result<(), Stop> {
        let Err(error) = result else { return Ok(()) };
        match self.drive.failed(operation, &error) {
            ErrorAction::Ignore => Ok(()),
            ErrorAction::Report => Err(Stop::Check(Sense::of_host_error(&error))),
            ErrorAction::Stop => Err(Stop::Held),
        }
    }

    pub(super) fn flush(&self) -> Result<(), Stop> {
        self.settle(Operation::Flush, self.drive.flush())
    }

    /// Reads into memory of ours.
    pub(super) fn read_bytes(&self, offset: u64, into: &mut [u8]) -> Result<(), Stop> {
        self.settle(Operation::Read, self.drive.read_bytes(offset, into))
    }

    /// Writes from memory of ours.
    pub(super) fn write_bytes(&self, offset: u64, bytes: &[u8]) -> Result<(), Stop> {
        self.settle(Operation::Write, self.drive.write_bytes(offset, bytes))
    }

    /// Power on or hard reset: everything as at the start. A SCSI initiator is told.
    pub fn reset(&self) {
        self.drive.set_write_cache(self.initial_write_cache);
        self.drive.reset_io_status();
        self.drive.restore_tray(false, false);
        let mut state = self.state();
        *state = LunState::default();
        if self.options.transport == Transport::Scsi {
            push_attention(&mut state, Sense::RESET);
        }
    }

    /// A logical unit reset, which only this unit knows of.
    pub fn reset_unit(&self) {
        self.drive.set_locked(false);
        let mut state = self.state();
        state.sense = None;
        state.attentions.clear();
        push_attention(&mut state, Sense::UNIT_RESET);
    }

    /// What is to be saved.
    pub fn save(&self) -> LunState {
        let mut state = self.state().clone();
        state.tray_open = self.drive.is_tray_open();
        state.locked = self.drive.is_locked();
        state.write_cache = self.drive.write_cache();
        state
    }

    /// Whether `state` could be this unit's.
    ///
    /// # Errors
    /// What does not fit.
    pub fn check(&self, state: &LunState) -> Result<(), String> {
        if state.attentions.len() > MAX_ATTENTIONS {
            return Err(format!("{} unit attentions", state.attentions.len()));
        }
        if (state.tray_open || state.locked) && !self.options.removable {
            return Err("a tray that is not there".into());
        }
        let senses = state.attentions.iter().chain(&state.sense);
        if senses.into_iter().any(|sense| sense.key > 0xf) {
            return Err("a sense key that is none".into());
        }
        Ok(())
    }

    /// Takes over a state that [`Lun::check`] accepted.
    pub fn restore(&self, state: &LunState) {
        self.drive.restore_tray(state.tray_open, state.locked);
        self.drive.set_write_cache(state.write_cache);
        let neutral = LunState::default();
        *self.state() = LunState {
            tray_open: neutral.tray_open,
            locked: neutral.locked,
            write_cache: neutral.write_cache,
            ..state.clone()
        };
    }
}

impl MediaDevice for Lun {
    fn media_changed(&self, loaded: bool) {
        self.state().event = if loaded { MediaEvent::New } else { MediaEvent::Removed };
        if loaded {
            self.attention(Sense::MEDIUM_CHANGED);
        }
    }

    fn eject_requested(&self, force: bool) {
        if force {
            self.drive.set_locked(false);
        }
        self.state().event = MediaEvent::EjectRequest;
    }
}

impl Drop for Lun {
    fn drop(&mut self) {
        if self.claimed.load(Ordering::Acquire) {
            self.drive.release();
        }
    }
}

fn check(options: &LunOptions) -> Result<(), LunError> {
    block_size::check(options.logical_block_size, options.physical_block_size)?;
    if options.device_id.len() > 247 {
        return Err(LunError::DeviceIdLength);
    }
    Ok(())
}

fn push_attention(state: &mut LunState, sense: Sense) {
    // A reset makes all that was before it old news.
    if sense == Sense::RESET {
        state.attentions.clear();
    }
    if !state.attentions.contains(&sense) && state.attentions.len() < MAX_ATTENTIONS {
        state.attentions.push_back(sense);
    }
}

/// A reply cut to the allocation length.
pub(super) fn reply(mut bytes: Vec<u8>, allocated: impl Into<u64>) -> Task {
    bytes.truncate(usize::try_from(allocated.into()).unwrap_or(usize::MAX));
    Task::Reply(bytes)
}

/// Answers REPORT LUNS (SPC-4, section 6.33) with `luns`, each below 16384.
pub(super) fn report_luns(cdb: &Cdb, luns: &[u16]) -> Result<Task, Sense> {
    let allocated = cdb.u32(6);
    // All, or all but those that are well known; of the latter there are none.
    let luns = match cdb.u8(2) {
        0 | 2 => luns,
        1 => &[],
        _ => return Err(Sense::INVALID_FIELD),
    };
    if allocated < 16 {
        return Err(Sense::INVALID_FIELD);
    }
    let mut bytes = Vec::with_capacity(8 + 8 * luns.len());
    bytes.extend((8 * luns.len() as u32).to_be_bytes());
    bytes.extend([0; 4]);
    for &lun in luns {
        // The peripheral method up to 255, the flat method beyond.
        let field = if lun < 256 { lun } else { 0x4000 | lun };
        bytes.extend(field.to_be_bytes());
        bytes.extend([0; 6]);
    }
    Ok(reply(bytes, allocated))
}

fn mode_select(cdb: &Cdb) -> Result<Task, Sense> {
    let long = cdb.opcode() == op::MODE_SELECT_10;
    let len = if long { u32::from(cdb.u16(7)) } else { u32::from(cdb.u8(4)) };
    // Pages in the standard's format; nothing is saved.
    if cdb.u8(1) & 0x11 != 0x10 {
        return Err(Sense::INVALID_FIELD);
    }
    Ok(if len == 0 { Task::Done } else { Task::ModeSelect { len, long } })
}

/// The list of parameters that came, `len` bytes or less.
fn parameters(output: &[GuestSlice<'_>], len: u32) -> Vec<u8> {
    let len = usize::try_from(slices_len(output).min(len.into())).unwrap_or(0);
    let mut bytes = vec![0; len];
    gather(output, 0, &mut bytes);
    bytes
}
