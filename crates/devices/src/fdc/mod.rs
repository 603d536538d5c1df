//! The floppy disk controller of a PC.
//!
//! Follows Intel's 82077AA data sheet (290166) in PS/2 mode, with PART ID, SAVE, RESTORE, OPTION and
//! POWERDOWN of the 82078 (290474). Two drives; sectors of 512 bytes, which is all that an image of a
//! diskette can hold.
//!
//! - `registers`: bits and commands by name.
//! - `geometry`: formats of diskettes.
//! - `drive`: a drive and the diskette in it.
//! - `transfer`: the execution phase of commands that move data.
//!
//! Heads are where they are wanted at once, and a sector passes when it is asked for, so commands end
//! within the access that gives their last byte, as far as DMA lets them. The controller reads and
//! writes its image on the thread of that access; an image's host error is a data error to the guest.
//!
//! As on other machines of this kind, implied seek is on until a guest turns it off, the head is the one
//! of the sector's id, and the ports' first, status register A, does not answer.
//!
//! Invariant: while the lock is free, DREQ is high exactly if a DMA transfer is under way.

mod drive;
mod geometry;
mod registers;
#[cfg(test)]
pub(crate) mod tests;
mod transfer;

use std::sync::{Arc, Mutex, OnceLock, Weak};

use block::{BlockError, MediaDevice};
use bus::{AddressSpace, Device, IrqLine, MapError};
use serde::{Deserialize, Serialize};
use vmstate::{RestoreError, Saved, State};

use crate::i8237::{DmaChannel, DmaDevice, I8237};
use crate::isa::{PortDevice, map_ports};
use crate::lock;
pub use drive::FloppyUnit;
use drive::Mechanics;
pub use geometry::{DriveType, Geometry};
use registers::*;
use transfer::Transfer;

/// Where a controller is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FdcPlace {
    /// Its first port; there are eight of them.
    pub port: u16,
    /// Its DMA channel, 0 to 3.
    pub channel: u8,
}

impl FdcPlace {
    /// The place of the first controller of a PC.
    pub const FIRST: Self = Self { port: 0x3f0, channel: 2 };
}

/// Drives that it can have.
pub const DRIVES: usize = 2;

/// Longest command and result in bytes.
const COMMAND_MAX: usize = 17;
const RESULT_MAX: usize = 16;
/// Interrupt statuses that a reset leaves, one for each drive that a controller could have.
const POLLED: u8 = 4;
const PENDING_MAX: usize = 8;
/// Sectors a track until a command says otherwise.
const FIRST_LAST_SECTOR: u8 = 18;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Phase {
    /// Waiting for a command, or for the rest of one.
    #[default]
    Command,
    Execution,
    Result,
}

/// Saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdcState {
    /// Digital output register; its drive select follows commands, too.
    output: u8,
    /// Tape drive register.
    tape: u8,
    /// Data rate select bits.
    rate: u8,
    phase: Phase,
    /// The command as far as it came.
    command: Vec<u8>,
    /// What is left of the result.
    result: Vec<u8>,
    /// The interrupt line: a result, a byte, or an interrupt status waits that nobody has asked for.
    interrupt: bool,
    /// Status register 0 of what SENSE INTERRUPT STATUS will tell.
    pending: Vec<u8>,
    mechanics: [Mechanics; DRIVES],
    /// Second and third byte of SPECIFY and of CONFIGURE, and of the latter the last.
    specified: [u8; 2],
    config: u8,
    precompensation: u8,
    locked: bool,
    perpendicular: u8,
    power: u8,
    last_sector: u8,
    transfer: Option<Transfer>,
}

impl Default for FdcState {
    fn default() -> Self {
        Self {
            output: DOR_NOT_RESET | DOR_DMA,
            tape: 0,
            rate: 0,
            phase: Phase::default(),
            command: Vec::new(),
            result: Vec::new(),
            interrupt: false,
            pending: Vec::new(),
            mechanics: Default::default(),
            specified: [0; 2],
            config: IMPLIED_SEEK | FIFO_OFF,
            precompensation: 0,
            locked: false,
            perpendicular: 0,
            power: 0,
            last_sector: FIRST_LAST_SECTOR,
            transfer: None,
        }
    }
}

impl State for FdcState {
    const NAME: &'static str = "fdc";
    const VERSION: u32 = 1;

    fn validate(&self) -> Result<(), String> {
        if self.command.len() >= COMMAND_MAX || self.result.len() > RESULT_MAX {
            return Err("a command or result that is too long".into());
        }
        let Some(&first) = self.command.first() else { return self.validate_rest() };
        if self.phase != Phase::Command || self.command.len() >= Command::decode(first).1 {
            return Err("a command that should have begun".into());
        }
        self.validate_rest()
    }
}

impl FdcState {
    fn validate_rest(&self) -> Result<(), String> {
        if self.pending.len() > PENDING_MAX || self.rate > DSR_RATE {
            return Err("a register holds what it cannot".into());
        }
        if (self.phase == Phase::Execution) != self.transfer.is_some() {
            return Err("a transfer outside of the execution phase, or none in it".into());
        }
        if (self.phase == Phase::Result) == self.result.is_empty() {
            return Err("a result outside of its phase, or none in it".into());
        }
        self.transfer.as_ref().map_or(Ok(()), Transfer::validate)
    }

    /// Whether data go through the data port.
    fn is_pio(&self) -> bool {
        self.specified[1] & NO_DMA != 0 || self.output & DOR_DMA == 0
    }

    fn is_in_reset(&self) -> bool {
        self.output & DOR_NOT_RESET == 0
    }

    /// Begins the result phase; without a result, the command is over.
    fn show(&mut self, result: &[u8]) {
        self.transfer = None;
        self.command.clear();
        self.result = result.to_vec();
        self.phase = if result.is_empty() { Phase::Command } else { Phase::Result };
    }

    /// What both resets by software do: whatever is under way ends.
    fn reset(&mut self) {
        self.show(&[]);
        self.interrupt = false;
        self.pending.clear();
        if !self.locked {
            self.config = self.config & IMPLIED_SEEK | FIFO_OFF;
            self.precompensation = 0;
        }
    }

    /// The controller comes out of reset and polls its drives, which were not ready before.
    fn poll(&mut self) {
        self.pending = (0..POLLED).map(|drive| ST0_POLLING | drive).collect();
        self.interrupt = true;
    }

    /// Whether the end of a seek waits to be asked for.
    fn tells_seek(&self) -> bool {
        self.pending.iter().any(|st0| st0 & ST0_POLLING != ST0_POLLING)
    }

    /// Interrupts for something else than a reset, whose interrupt statuses nobody wants any more.
    fn raise(&mut self) {
        self.pending.retain(|st0| st0 & ST0_POLLING != ST0_POLLING);
        self.interrupt = true;
    }

    fn main_status(&self) -> u8 {
        if self.is_in_reset() {
            return 0;
        }
        let fifo = match (self.phase, &self.transfer) {
            (Phase::Command, _) if self.command.is_empty() => return MSR_READY,
            (Phase::Command, _) => MSR_READY,
            (Phase::Result, _) => MSR_READY | MSR_OUT,
            (_, Some(transfer)) if self.is_pio() => {
                MSR_READY | MSR_NO_DMA | if transfer.is_read() { MSR_OUT } else { 0 }
            }
            _ => 0,
        };
        fifo | MSR_BUSY
    }

    /// Makes `drive` the selected one.
    fn select(&mut self, drive: u8) {
        self.output = self.output & !DOR_SELECT | drive & SELECT;
    }

    fn cylinder(&self, drive: u8) -> u8 {
        self.mechanics.get(usize::from(drive)).map_or(0, |m| m.cylinder)
    }
}

/// A drive with the device's part of a change of media.
struct Bay {
    unit: FloppyUnit,
    /// Hears of changes; the drive knows it weakly.
    _watcher: Arc<Watcher>,
}

struct Watcher {
    fdc: Weak<Fdc>,
    drive: usize,
}

impl MediaDevice for Watcher {
    fn media_changed(&self, _loaded: bool) {
        if let Some(fdc) = self.fdc.upgrade() {
            lock(&fdc.state).mechanics[self.drive].changed = true;
        }
    }

    /// Nothing holds a diskette back.
    fn eject_requested(&self, _force: bool) {}
}

/// The controller.
pub struct Fdc {
    id: String,
    port: u16,
    irq: IrqLine,
    channel: DmaChannel,
    units: [OnceLock<Bay>; DRIVES],
    state: Mutex<FdcState>,
}

impl Fdc {
    /// Controller `id` at `place`, without drives, that interrupts on `irq` and has a channel of `dma`.
    pub fn new(id: &str, place: FdcPlace, dma: &Arc<I8237>, irq: IrqLine) -> Arc<Self> {
        let FdcPlace { port, channel } = place;
        Arc::new_cyclic(|this: &Weak<Self>| Self {
            id: id.to_owned(),
            port,
            irq,
            channel: dma.channel(channel, this.clone()),
            units: Default::default(),
            state: Mutex::default(),
        })
    }

    /// Maps the ports; the one among them that belongs to the disk controller stays free.
    ///
    /// # Errors
    /// If another device is there.
    pub fn attach(self: &Arc<Self>, ports: &AddressSpace) -> Result<(), MapError> {
        map_ports(ports, self.port + 1, 5, self.clone())?;
        map_ports(ports, self.port + port::INPUT, 1, self.clone())?;
        Ok(())
    }

    /// Connects drive `index`, 0 or 1, for guest device `device`; the first free one without an index.
    /// Returns its index.
    ///
    /// # Errors
    /// If there is no such drive or someone else has it, or someone else has the image.
    pub fn connect(
        self: &Arc<Self>,
        index: Option<usize>,
        unit: FloppyUnit,
        device: &str,
    ) -> Result<usize, FloppyError> {
        let free = || self.units.iter().position(|bay| bay.get().is_none());
        let index = index.or_else(free).ok_or(FloppyError::Full)?;
        let slot = self.units.get(index).ok_or(FloppyError::NoUnit(index))?;
        if slot.get().is_some() {
            return Err(FloppyError::InUse(index));
        }
        let watcher = Arc::new(Watcher { fdc: Arc::downgrade(self), drive: index });
        let as_device: Arc<dyn MediaDevice> = watcher.clone();
        unit.drive.claim_removable(device, false, Arc::downgrade(&as_device))?;
        // The machine is put together by one thread.
        let _ = slot.set(Bay { unit, _watcher: watcher });
        Ok(index)
    }

    /// The types of the drives that are there.
    pub fn drive_types(&self) -> [Option<DriveType>; DRIVES] {
        [0, 1].map(|drive| self.unit(drive).map(FloppyUnit::kind))
    }

    /// Drives the interrupt line.
    fn drive(&self, state: &FdcState) {
        self.irq.set(state.interrupt);
    }

    fn write_output(&self, state: &mut FdcState, value: u8) {
        let was_in_reset = state.is_in_reset();
        state.output = value;
        if state.is_in_reset() {
            state.reset();
            self.channel.request(false);
        } else if was_in_reset {
            state.poll();
        }
    }

    fn write_rate(&self, state: &mut FdcState, value: u8) {
        state.rate = value & DSR_RATE;
        if value & DSR_RESET != 0 && !state.is_in_reset() {
            state.reset();
            self.channel.request(false);
            state.poll();
        }
    }

    fn read_data(&self, state: &mut FdcState) -> u8 {
        match state.phase {
            Phase::Result => {
                let byte = state.result.remove(0);
                if state.result.is_empty() {
                    // An interrupt status that waits besides is told by its own interrupt.
                    state.interrupt &= state.tells_seek();
                    state.show(&[]);
                }
                byte
            }
            Phase::Execution
                if state.is_pio() && state.transfer.as_ref().is_some_and(Transfer::is_read) =>
            {
                self.read_byte(state)
            }
            _ => 0,
        }
    }

    fn write_data(&self, state: &mut FdcState, value: u8) {
        if state.is_in_reset() {
            return;
        }
        match state.phase {
            Phase::Command => {
                state.command.push(value);
                let (command, len) = Command::decode(state.command[0]);
                if state.command.len() >= len {
                    let bytes = std::mem::take(&mut state.command);
                    self.execute(state, command, &bytes);
                }
            }
            Phase::Execution
                if state.is_pio() && !state.transfer.as_ref().is_none_or(Transfer::is_read) =>
            {
                self.write_byte(state, value);
            }
            _ => {}
        }
    }

    fn execute(&self, state: &mut FdcState, command: Command, bytes: &[u8]) {
        let byte = |i: usize| bytes.get(i).copied().unwrap_or(0);
        let drive = byte(1) & SELECT;
        match command {
            Command::ReadData
            | Command::ReadDeleted
            | Command::WriteData
            | Command::WriteDeleted
            | Command::ReadTrack
            | Command::Verify
            | Command::ScanEqual
            | Command::ScanLow
            | Command::ScanHigh
            | Command::Format => {
                state.select(drive);
                let transfer = Transfer::new(command, bytes, state.cylinder(drive));
                self.begin(state, transfer);
            }
            Command::ReadId => self.read_id(state, byte(1)),
            Command::Recalibrate => self.seek(state, drive, 0),
            Command::Seek => self.seek(state, drive, byte(2)),
            Command::RelativeSeek => {
                let from = state.cylinder(drive);
                let inwards = byte(0) & INWARDS != 0;
                let by = byte(2);
                let to = if inwards { from.saturating_add(by) } else { from.saturating_sub(by) };
                self.seek(state, drive, to);
            }
            Command::SenseInterrupt if state.pending.is_empty() => state.show(&[ST0_INVALID]),
            Command::SenseInterrupt => {
                let st0 = state.pending.remove(0);
                // One interrupt tells of all drives after a reset, and one of each seek.
                state.interrupt = state.tells_seek();
                state.show(&[st0, state.cylinder(st0 & SELECT)]);
            }
            Command::SenseDrive => {
                state.select(drive);
                state.show(&[self.drive_status(state, byte(1))]);
            }
            Command::Invalid => state.show(&[ST0_INVALID]),
            _ => self.control(state, command, bytes),
        }
    }

    /// Commands about the controller itself.
    fn control(&self, state: &mut FdcState, command: Command, bytes: &[u8]) {
        let byte = |i: usize| bytes.get(i).copied().unwrap_or(0);
        let lock_and_mode = |state: &FdcState| u8::from(state.locked) << 7 | state.perpendicular;
        match command {
            Command::Specify => {
                state.specified = [byte(1), byte(2)];
                state.show(&[]);
            }
            Command::Configure => {
                state.config = byte(2);
                state.precompensation = byte(3);
                state.show(&[]);
            }
            Command::Perpendicular => {
                // Only an overwrite changes which drives are perpendicular.
                let mask = if byte(1) & 0x80 != 0 { 0x3f } else { 0x03 };
                state.perpendicular = state.perpendicular & !mask | byte(1) & mask;
                state.show(&[]);
            }
            Command::Lock => {
                state.locked = byte(0) & 0x80 != 0;
                state.show(&[u8::from(state.locked) << 4]);
            }
            Command::Version => state.show(&[VERSION]),
            Command::PartId => state.show(&[PART]),
            Command::DumpRegisters => {
                let [a, b] = [0, 1].map(|drive| state.cylinder(drive));
                let [rates, load] = state.specified;
                let modes = lock_and_mode(state);
                let result = [a, b, 0, 0, rates, load, state.last_sector, modes, state.config]
                    .into_iter()
                    .chain([state.precompensation]);
                state.show(&result.collect::<Vec<_>>());
            }
            Command::Save => {
                let [a, b] = [0, 1].map(|drive| state.cylinder(drive));
                let [rates, load] = state.specified;
                let modes = lock_and_mode(state);
                let (config, precompensation) = (state.config, state.precompensation);
                let last = state.last_sector;
                let result = [
                    0,
                    0,
                    a,
                    b,
                    0,
                    0,
                    rates,
                    load,
                    last,
                    modes,
                    config,
                    precompensation,
                    state.power,
                    0,
                    0,
                ];
                state.show(&result);
            }
            Command::Restore => {
                for (mechanics, cylinder) in state.mechanics.iter_mut().zip([byte(3), byte(4)]) {
                    mechanics.cylinder = cylinder;
                }
                state.specified = [byte(7), byte(8)];
                state.last_sector = byte(9);
                state.locked = byte(10) & 0x80 != 0;
                state.perpendicular = byte(10) & 0x3f;
                state.config = byte(11);
                state.precompensation = byte(12);
                state.power = byte(13);
                state.show(&[]);
            }
            Command::PowerDown => {
                state.power = byte(1);
                state.show(&[byte(1)]);
            }
            // OPTION only says how many ids a track has, and the rest has been dealt with.
            _ => state.show(&[]),
        }
    }

    /// Moves the heads of `drive`; that it is done is told by an interrupt and no result.
    fn seek(&self, state: &mut FdcState, drive: u8, cylinder: u8) {
        state.select(drive);
        let inserted = self.unit(drive).is_some_and(|unit| unit.drive.is_inserted());
        if let Some(mechanics) = state.mechanics.get_mut(usize::from(drive)) {
            mechanics.step_to(cylinder, inserted);
        }
        state.show(&[]);
        let st0 = ST0_SEEK_END | drive;
        // Of a drive that has moved again, the last is told.
        state.pending.retain(|other| other & SELECT != drive);
        state.pending.push(st0);
        state.raise();
    }

    fn drive_status(&self, state: &FdcState, select: u8) -> u8 {
        let unit = self.unit(select & SELECT);
        let protected = unit.is_none_or(|unit| unit.drive.is_read_only());
        let at_0 = state.cylinder(select & SELECT) == 0;
        let flag = |condition: bool, bit: u8| if condition { bit } else { 0 };
        select & (SELECT | HEAD)
            | ST3_TWO_SIDES
            | ST3_READY
            | flag(at_0, ST3_TRACK_0)
            | flag(protected, ST3_PROTECTED)
    }

    /// Tells which sector passes next. Without a diskette, too, one of the drive's own format does: the
    /// software of machines of this kind looks at the disk change line instead.
    fn read_id(&self, state: &mut FdcState, select: u8) {
        let drive = select & SELECT;
        state.select(drive);
        let head = u8::from(select & HEAD != 0);
        let cylinder = state.cylinder(drive);
        let empty = self.unit(drive).filter(|unit| !unit.drive.is_inserted());
        let track = self.readable(state, drive).or(empty.map(|unit| unit.kind().native()));
        let track = track.filter(|g| cylinder < g.cylinders && head < g.heads);
        let (st0, st1, sector) = match (track, state.mechanics.get_mut(usize::from(drive))) {
            (Some(track), Some(mechanics)) => {
                mechanics.passed = mechanics.passed % track.sectors + 1;
                (0, 0, mechanics.passed)
            }
            _ => (ST0_ABNORMAL, ST1_NO_ADDRESS_MARK, 1),
        };
        let st0 = st0 | select & (SELECT | HEAD);
        state.show(&[st0, st1, 0, cylinder, head, sector, geometry::SIZE_CODE]);
        state.raise();
    }
}

/// Why a drive could not be connected.
#[derive(Debug, thiserror::Error)]
pub enum FloppyError {
    /// The controller has no more.
    #[error("All {DRIVES} floppy units are in use")]
    Full,
    /// There is no drive of this number.
    #[error("Can't create floppy unit {0}, bus supports only {DRIVES} units")]
    NoUnit(usize),
    /// Someone has it.
    #[error("Floppy unit {0} is in use")]
    InUse(usize),
    /// The image can't be used.
    #[error(transparent)]
    Block(#[from] BlockError),
}

impl DmaDevice for Fdc {
    fn dma_ready(&self) {
        let mut state = lock(&self.state);
        self.proceed(&mut state);
        self.drive(&state);
    }
}

impl PortDevice for Fdc {
    fn read_port(&self, port: u16) -> u8 {
        let mut state = lock(&self.state);
        match port - self.port {
            // Motors of both drives, and that drive 0 is not selected; the rest reads as ones.
            port::STATUS_B => 0xc0 | state.output >> 4 & 3 | (state.output & 1) << 5,
            port::OUTPUT => state.output,
            port::TAPE => state.tape,
            port::MAIN_STATUS => state.main_status(),
            port::DATA => {
                let value = self.read_data(&mut state);
                self.drive(&state);
                value
            }
            _ => {
                let selected = usize::from(state.output & DOR_SELECT);
                let mechanics = state.mechanics.get(selected);
                if mechanics.is_none_or(|mechanics| mechanics.changed) { DIR_CHANGED } else { 0 }
            }
        }
    }

    fn write_port(&self, port: u16, value: u8) {
        let mut state = lock(&self.state);
        match port - self.port {
            port::OUTPUT => self.write_output(&mut state, value),
            port::TAPE => state.tape = value & 3,
            port::MAIN_STATUS => self.write_rate(&mut state, value),
            port::DATA => self.write_data(&mut state, value),
            port::INPUT => state.rate = value & DSR_RATE,
            _ => {}
        }
        self.drive(&state);
    }
}

impl Device for Fdc {
    fn id(&self) -> String {
        self.id.clone()
    }

    fn reset(&self) {
        let mut state = lock(&self.state);
        *state = FdcState::default();
        self.channel.request(false);
        self.drive(&state);
    }

    fn save(&self) -> Saved {
        Saved::new(&*lock(&self.state))
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let restored: FdcState = saved.decode()?;
        let mut state = lock(&self.state);
        *state = restored;
        self.channel.request(state.transfer.is_some() && !state.is_pio());
        self.drive(&state);
        Ok(())
    }
}
