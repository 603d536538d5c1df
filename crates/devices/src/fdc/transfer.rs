//! The execution phase: sectors that go from the diskette to memory and back.

use serde::{Deserialize, Serialize};

use super::geometry::{SECTOR_SIZE, SIZE_CODE};
use super::registers::*;
use super::{DRIVES, Fdc, FdcState, FloppyUnit, Phase};
use crate::i8237::Direction;

/// Bytes that FORMAT TRACK takes for each sector: cylinder, head, sector, size.
const ID_SIZE: usize = 4;

/// Status registers 1 and 2 of a command that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Failure(u8, u8);

/// A command that moves data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Transfer {
    command: Command,
    drive: u8,
    multi_track: bool,
    skip: bool,
    /// VERIFY ends after this many sectors; FORMAT TRACK and READ TRACK, too.
    count: Option<u8>,
    cylinder: u8,
    head: u8,
    sector: u8,
    size: u8,
    /// Last sector of a track.
    last: u8,
    /// Last byte of the command: the step of a scan, or FORMAT TRACK's filler.
    extra: u8,
    /// Sectors done.
    done: u8,
    seeked: bool,
    /// No sector of the track had the number that was asked for.
    missed: bool,
    /// What is moved now: the sector, or the id of one that is formatted.
    buffer: Vec<u8>,
    at: u16,
    /// Of a scan: the sector on the diskette.
    compared: Vec<u8>,
    /// The buffer holds what is to be moved.
    loaded: bool,
}

impl Transfer {
    /// Takes a command of 9 bytes, or FORMAT TRACK's 6.
    pub(super) fn new(command: Command, bytes: &[u8], cylinder: u8) -> Self {
        let byte = |i: usize| bytes.get(i).copied().unwrap_or(0);
        let formats = command == Command::Format;
        let head = u8::from(byte(1) & HEAD != 0);
        let count = match command {
            Command::Format => Some(byte(3)),
            Command::ReadTrack => Some(byte(6)),
            Command::Verify if byte(1) & COUNTED != 0 => Some(byte(8)),
            _ => None,
        };
        Self {
            command,
            drive: byte(1) & SELECT,
            multi_track: byte(0) & MULTI_TRACK != 0 && !formats,
            skip: byte(0) & SKIP != 0,
            count,
            cylinder: if formats { cylinder } else { byte(2) },
            head: if formats { head } else { byte(3) },
            sector: if formats { 1 } else { byte(4) },
            size: if formats { byte(2) } else { byte(5) },
            last: if formats { byte(3) } else { byte(6) },
            extra: if formats { byte(5) } else { byte(8) },
            done: 0,
            seeked: false,
            missed: true,
            buffer: Vec::new(),
            at: 0,
            compared: Vec::new(),
            loaded: false,
        }
    }

    pub(super) fn validate(&self) -> Result<(), String> {
        let len = self.buffer.len();
        if len > SECTOR_SIZE as usize || usize::from(self.at) > len {
            return Err(format!("a transfer at byte {} of {len}", self.at));
        }
        if self.loaded && (len == 0 || usize::from(self.at) == len) {
            return Err("a transfer that waits with nothing to move".into());
        }
        if self.is_scan() && self.loaded && self.compared.len() != len {
            return Err("a scan without a sector to compare".into());
        }
        if self.drive > SELECT {
            return Err(format!("a transfer of drive {}", self.drive));
        }
        Ok(())
    }

    fn is_scan(&self) -> bool {
        matches!(self.command, Command::ScanEqual | Command::ScanLow | Command::ScanHigh)
    }

    fn is_write(&self) -> bool {
        matches!(self.command, Command::WriteData | Command::WriteDeleted | Command::Format)
    }

    /// Whether data go from the diskette to memory.
    pub(super) fn is_read(&self) -> bool {
        !self.is_write() && !self.is_scan()
    }

    fn direction(&self) -> Direction {
        if self.is_read() { Direction::ToMemory } else { Direction::FromMemory }
    }

    /// Goes on to the next sector; tells whether there is none.
    fn advance(&mut self, heads: u8) -> bool {
        self.done = self.done.saturating_add(1);
        let counted_out = self.count.is_some_and(|count| self.done >= count);
        if matches!(self.command, Command::Format | Command::ReadTrack) {
            self.sector = self.sector.wrapping_add(1);
            return counted_out;
        }
        let step = if self.is_scan() { self.extra.max(1) } else { 1 };
        // A scan steps over the last sector, if it steps by more than one.
        if self.sector < self.last && self.last - self.sector >= step {
            self.sector += step;
            return counted_out;
        }
        self.sector = 1;
        if self.multi_track && heads == 2 && self.head & 1 == 0 {
            self.head ^= 1;
            return counted_out;
        }
        self.cylinder = self.cylinder.wrapping_add(1);
        if self.multi_track {
            self.head &= !1;
        }
        true
    }

    /// What a scan of this sector found: the condition holds, and by equality.
    fn scan(&self) -> (bool, bool) {
        let pairs = || self.compared.iter().zip(&self.buffer);
        // FFh from either side meets any condition.
        let open = |disk: u8, given: u8| disk == 0xff || given == 0xff;
        let equal = pairs().all(|(&disk, &given)| open(disk, given) || disk == given);
        let met = match self.command {
            Command::ScanLow => pairs().all(|(&d, &g)| open(d, g) || d <= g),
            Command::ScanHigh => pairs().all(|(&d, &g)| open(d, g) || d >= g),
            _ => equal,
        };
        (met, equal)
    }
}

impl Fdc {
    pub(super) fn unit(&self, drive: u8) -> Option<&FloppyUnit> {
        self.units.get(usize::from(drive))?.get().map(|bay| &bay.unit)
    }

    /// Begins the execution phase of `transfer`.
    pub(super) fn begin(&self, state: &mut FdcState, transfer: Transfer) {
        state.last_sector = transfer.last;
        state.phase = Phase::Execution;
        state.transfer = Some(transfer);
        self.channel.request(!state.is_pio());
        self.proceed(state);
    }

    /// Moves data for as long as the other side takes or gives them.
    pub(super) fn proceed(&self, state: &mut FdcState) {
        let pio = state.is_pio();
        while let Some(mut transfer) = state.transfer.take() {
            if !transfer.loaded {
                if let Err(failure) = self.load(state, &mut transfer) {
                    self.fail(state, &transfer, failure);
                    return;
                }
                // The CPU is called for each sector.
                state.interrupt |= pio && transfer.command != Command::Verify;
            }
            let at = usize::from(transfer.at);
            if transfer.command == Command::Verify {
                self.sector_moved(state, transfer, false);
                continue;
            }
            if pio {
                state.transfer = Some(transfer);
                return;
            }
            let direction = transfer.direction();
            let moved = self.channel.transfer(direction, &mut transfer.buffer[at..]);
            transfer.at += moved.bytes as u16;
            if usize::from(transfer.at) == transfer.buffer.len() || moved.terminal_count {
                self.sector_moved(state, transfer, moved.terminal_count);
            } else {
                let waits = moved.bytes == 0;
                state.transfer = Some(transfer);
                if waits {
                    return;
                }
            }
        }
    }

    /// The next byte that the CPU reads in place of DMA.
    pub(super) fn read_byte(&self, state: &mut FdcState) -> u8 {
        let Some(mut transfer) = state.transfer.take() else { return 0 };
        state.interrupt = false;
        let byte = transfer.buffer[usize::from(transfer.at)];
        transfer.at += 1;
        self.byte_moved(state, transfer);
        byte
    }

    /// The next byte that the CPU writes in place of DMA.
    pub(super) fn write_byte(&self, state: &mut FdcState, byte: u8) {
        let Some(mut transfer) = state.transfer.take() else { return };
        state.interrupt = false;
        transfer.buffer[usize::from(transfer.at)] = byte;
        transfer.at += 1;
        self.byte_moved(state, transfer);
    }

    fn byte_moved(&self, state: &mut FdcState, transfer: Transfer) {
        if usize::from(transfer.at) == transfer.buffer.len() {
            self.sector_moved(state, transfer, false);
            self.proceed(state);
        } else {
            state.transfer = Some(transfer);
        }
    }

    /// Whether the drive's data can be read at all: a diskette is in it, recorded at the selected rate.
    pub(super) fn readable(&self, state: &FdcState, drive: u8) -> Option<super::Geometry> {
        let geometry = self.unit(drive)?.geometry()?;
        (geometry.rate == state.rate).then_some(geometry)
    }

    /// The drive and where in its image the sector is.
    fn locate(
        &self,
        state: &mut FdcState,
        transfer: &mut Transfer,
    ) -> Result<(&FloppyUnit, u64), Failure> {
        let lost = Failure(ST1_NO_ADDRESS_MARK, 0);
        let no_data = |st2| Failure(ST1_NO_DATA, st2);
        let unit = self.unit(transfer.drive).ok_or(lost)?;
        let Some(geometry) = self.readable(state, transfer.drive) else {
            // The heads are where they were sent before anybody finds that nothing passes under them.
            let mechanics = &mut state.mechanics[usize::from(transfer.drive) % DRIVES];
            if state.config & IMPLIED_SEEK != 0 && transfer.cylinder < unit.kind().capacity().0 {
                mechanics.step_to(transfer.cylinder, unit.drive.is_inserted());
            }
            return Err(lost);
        };
        if transfer.is_write() && unit.drive.is_read_only() {
            return Err(Failure(ST1_NOT_WRITABLE, 0));
        }
        let mechanics = &mut state.mechanics[usize::from(transfer.drive) % DRIVES];
        if transfer.cylinder != mechanics.cylinder {
            let reachable = transfer.cylinder < geometry.cylinders;
            if state.config & IMPLIED_SEEK == 0 || !reachable {
                let bad = if transfer.cylinder == 0xff { ST2_BAD_CYLINDER } else { 0 };
                return Err(no_data(ST2_WRONG_CYLINDER | bad));
            }
            mechanics.step_to(transfer.cylinder, true);
            transfer.seeked = true;
        }
        let sector = match transfer.command {
            Command::ReadTrack => {
                let sector = transfer.done.saturating_add(1);
                transfer.missed &= sector != transfer.sector;
                sector
            }
            _ => transfer.sector,
        };
        // A size code of 0 leaves the length to the last byte of the command; the sectors are the same.
        if transfer.size != SIZE_CODE && transfer.size != 0 {
            return Err(no_data(0));
        }
        let offset = geometry.offset(transfer.cylinder, transfer.head, sector);
        Ok((unit, offset.ok_or(no_data(0))?))
    }

    /// Makes the buffer ready for the sector that is next.
    fn load(&self, state: &mut FdcState, transfer: &mut Transfer) -> Result<(), Failure> {
        transfer.at = 0;
        transfer.loaded = true;
        if transfer.command == Command::Format {
            transfer.buffer = vec![0; ID_SIZE];
            // What can't be written or read is told before the CPU gives ids.
            let mut first = Transfer { sector: 1, ..transfer.clone() };
            return self.locate(state, &mut first).map(drop);
        }
        let (unit, offset) = self.locate(state, transfer)?;
        if transfer.command == Command::ReadDeleted && transfer.skip {
            // All our sectors have the mark of ordinary data, so all are skipped.
            return Err(Failure(ST1_END_OF_CYLINDER, ST2_CONTROL_MARK));
        }
        let mut sector = vec![0; SECTOR_SIZE as usize];
        if !transfer.is_write() {
            let read = unit.read(offset, &mut sector);
            read.map_err(|_| Failure(ST1_DATA_ERROR, ST2_DATA_ERROR))?;
        }
        if transfer.is_scan() {
            transfer.buffer = vec![0; sector.len()];
            transfer.compared = sector;
        } else {
            transfer.buffer = sector;
        }
        Ok(())
    }

    /// Writes the sector that the CPU or DMA filled, or that FORMAT TRACK names.
    fn store(&self, state: &mut FdcState, transfer: &mut Transfer) -> Result<(), Failure> {
        if transfer.command != Command::Format {
            let (unit, offset) = self.locate(state, transfer)?;
            let written = unit.write(offset, &transfer.buffer);
            return written.map_err(|_| Failure(ST1_DATA_ERROR, 0));
        }
        let id = [0, 1, 2, 3].map(|i| transfer.buffer[i]);
        let mut named = Transfer { sector: id[2], size: id[3], head: id[1], ..transfer.clone() };
        if id[0] != transfer.cylinder || id[1] != transfer.head {
            return Err(Failure(ST1_NO_DATA, 0));
        }
        // An image has no room for other sectors than its format's.
        let (unit, offset) = self.locate(state, &mut named)?;
        let filled = unit.write(offset, &[transfer.extra; SECTOR_SIZE as usize]);
        filled.map_err(|_| Failure(ST1_DATA_ERROR, 0))
    }

    /// The sector was moved, or as much of it as there was until terminal count.
    fn sector_moved(&self, state: &mut FdcState, mut transfer: Transfer, terminal: bool) {
        if transfer.is_write()
            && let Err(failure) = self.store(state, &mut transfer)
        {
            self.fail(state, &transfer, failure);
            return;
        }
        let whole = usize::from(transfer.at) == transfer.buffer.len()
            || transfer.command == Command::Verify;
        let (met, equal) = if transfer.is_scan() { transfer.scan() } else { (false, false) };
        let heads = self.unit(transfer.drive).and_then(FloppyUnit::geometry).map_or(2, |g| g.heads);
        let last = whole && transfer.advance(heads);
        transfer.loaded = false;
        let st2 = match transfer.command {
            Command::ReadDeleted => ST2_CONTROL_MARK,
            _ if transfer.is_scan() && met => u8::from(equal) * ST2_SCAN_HIT,
            _ if transfer.is_scan() => ST2_SCAN_MISS,
            _ => 0,
        };
        if terminal || met || transfer.command == Command::ReadDeleted {
            let missed = transfer.command == Command::ReadTrack && transfer.missed;
            let st1 = if missed { ST1_NO_DATA } else { 0 };
            self.finish(state, &transfer, 0, st1, st2);
        } else if last {
            // Without terminal count the controller ran into the end of the cylinder. What counts for
            // itself, or has no terminal count, ends so.
            let own = transfer.count.is_some()
                || transfer.command == Command::Verify
                || state.is_pio()
                || transfer.is_scan();
            let (st0, st1) = if own { (0, 0) } else { (ST0_ABNORMAL, ST1_END_OF_CYLINDER) };
            self.finish(state, &transfer, st0, st1, st2);
        } else {
            state.transfer = Some(transfer);
        }
    }

    fn fail(&self, state: &mut FdcState, transfer: &Transfer, failure: Failure) {
        self.finish(state, transfer, ST0_ABNORMAL, failure.0, failure.1);
    }

    /// Ends the execution phase with the seven bytes that all these commands have for result.
    fn finish(&self, state: &mut FdcState, transfer: &Transfer, st0: u8, st1: u8, st2: u8) {
        self.channel.request(false);
        let seek_end = if transfer.seeked { ST0_SEEK_END } else { 0 };
        let head = if transfer.head & 1 != 0 { ST0_HEAD } else { 0 };
        let Transfer { drive, cylinder, head: id_head, sector, size, .. } = *transfer;
        let st0 = st0 | seek_end | head | drive;
        state.show(&[st0, st1, st2, cylinder, id_head, sector, size]);
        state.raise();
    }
}
