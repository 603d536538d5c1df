//! A device behind its connector: registers, DRQ data blocks and the way of each command.

use std::sync::Arc;

use block::Drive;
use serde::{Deserialize, Serialize};
use vmstate::State;

use super::cdrom::{CdRom, CdState};
use super::disk::{AtaError, Disk, DiskOptions, DiskState, op};
use super::job::{Act, Failure};
use super::registers::{error, status};
use super::{BUFFER_LEN, CdOptions, End, Job, TaskFile};
use crate::scsi::Lun;

/// What a device waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// A command.
    Command,
    /// The host takes a data block.
    DataIn,
    /// The host gives a data block.
    DataOut,
    /// A job without data.
    Work,
    /// A job with data.
    Dma,
}

/// The part of a device that all kinds share; saved as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Front {
    pub(super) registers: TaskFile,
    /// Data on their way from or to the host.
    pub(super) buffer: Vec<u8>,
    /// Bytes of `buffer` that are done.
    pub(super) at: u32,
    /// Where the DRQ data block at hand ends.
    pub(super) block_end: u32,
    /// The host's attention is wanted.
    interrupt: bool,
}

impl Front {
    /// Ends the command well.
    pub(super) fn succeed(&mut self) {
        self.registers.status = status::DRDY | status::DSC;
        self.registers.error = 0;
        self.drop_data();
        self.interrupt = true;
    }

    /// Ends the command with `error`.
    pub(super) fn fail(&mut self, error: u8) {
        self.registers.status = status::DRDY | status::DSC | status::ERR;
        self.registers.error = error;
        self.drop_data();
        self.interrupt = true;
    }

    /// Ends the command with the bits of a packet device's error register.
    pub(super) fn fail_packet(&mut self, error: u8) {
        self.fail(error);
        self.registers.status &= !status::DSC;
    }

    /// The device is at work.
    pub(super) fn busy(&mut self) {
        self.registers.status = status::BSY | status::DRDY | status::DSC;
        self.registers.error = 0;
    }

    /// Shows a data block of `len` bytes, or what there is, from where the last one ended.
    pub(super) fn show_block(&mut self, len: usize, interrupt: bool) {
        let end = (self.at as usize).saturating_add(len).min(self.buffer.len());
        self.block_end = end as u32;
        self.registers.status = status::DRDY | status::DSC | status::DRQ;
        self.interrupt |= interrupt;
    }

    /// Starts with new data.
    pub(super) fn set_data(&mut self, data: Vec<u8>) {
        self.buffer = data;
        (self.at, self.block_end) = (0, 0);
    }

    fn drop_data(&mut self) {
        self.set_data(Vec::new());
    }

    fn check(&self) -> Result<(), String> {
        let len = self.buffer.len();
        let fits = self.at <= self.block_end && self.block_end as usize <= len;
        if len > BUFFER_LEN || !fits || self.registers.lba >> 48 != 0 {
            return Err(format!("block up to {} of {len} bytes of data", self.block_end));
        }
        Ok(())
    }
}

/// What a device is behind its registers.
pub(super) trait Unit: Send {
    fn drive(&self) -> &Arc<Drive>;
    fn is_packet(&self) -> bool;
    /// Starts a command.
    fn command(&mut self, front: &mut Front, code: u8);
    /// What it waits for.
    fn next(&self) -> Next;
    /// What is to be done, if it waits for that.
    fn act(&self, front: &Front) -> Option<Act>;
    /// The host moved a whole data block.
    fn block_done(&mut self, front: &mut Front);
    /// What was to be done is done; `data` is what it brought for the buffer.
    fn done(&mut self, front: &mut Front, data: Option<Vec<u8>>);
    /// What was to be done failed.
    fn failed(&mut self, front: &mut Front, failure: Failure);
    /// The command at hand is gone.
    fn forget(&mut self);
    /// The command at hand is gone, and what the host set that does not outlive a reset.
    fn soft_reset(&mut self);
    /// Power on.
    fn reset(&mut self);
    fn save(&self) -> UnitState;
    /// Whether a state fits.
    fn check(&self, state: &UnitState, front: &Front) -> Result<(), String>;
    /// Takes over a state that fits.
    fn restore(&mut self, state: &UnitState);
}

/// The saved form of a [`Unit`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum UnitState {
    Disk { state: DiskState, write_cache: bool },
    CdRom(CdState),
}

/// The kinds of units.
enum Kind {
    Disk(Disk),
    CdRom(CdRom),
}

impl Kind {
    fn unit(&self) -> &dyn Unit {
        match self {
            Self::Disk(disk) => disk,
            Self::CdRom(cdrom) => cdrom,
        }
    }

    fn unit_mut(&mut self) -> &mut dyn Unit {
        match self {
            Self::Disk(disk) => disk,
            Self::CdRom(cdrom) => cdrom,
        }
    }
}

/// The saved form of an [`AtaDevice`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AtaState {
    front: Front,
    unit: UnitState,
}

#[cfg(test)]
impl AtaState {
    /// Makes the state one that no device can be in.
    pub(super) fn tamper(&mut self) {
        self.front.block_end = u32::MAX;
    }
}

impl State for AtaState {
    const NAME: &'static str = "ata-device";
    const VERSION: u32 = 1;
}

/// An ATA device. See the [module](super) for how a port uses it.
pub struct AtaDevice {
    kind: Kind,
    front: Front,
    /// Numbers commands, and resets.
    generation: u64,
}

impl AtaDevice {
    /// A disk on `drive`, which it claims as `device`.
    ///
    /// # Errors
    /// If the drive is empty or can't be claimed, or an option is out of range.
    pub fn disk(drive: Arc<Drive>, device: &str, options: DiskOptions) -> Result<Self, AtaError> {
        Ok(Self::new(Kind::Disk(Disk::new(drive, device, options)?)))
    }

    /// A CD-ROM drive whose commands `lun` does; it was made for packets of ATA.
    pub fn cdrom(lun: Arc<Lun>, options: CdOptions) -> Self {
        Self::new(Kind::CdRom(CdRom::new(lun, options)))
    }

    fn new(kind: Kind) -> Self {
        let mut device = Self { kind, front: Front::default(), generation: 0 };
        device.reset();
        device
    }

    /// The drive.
    pub fn drive(&self) -> &Arc<Drive> {
        self.kind.unit().drive()
    }

    /// Whether it takes commands in packets.
    pub fn is_packet(&self) -> bool {
        self.kind.unit().is_packet()
    }

    /// The disk, if it is one.
    pub fn as_disk(&self) -> Option<&Disk> {
        match &self.kind {
            Kind::Disk(disk) => Some(disk),
            Kind::CdRom(_) => None,
        }
    }

    /// The registers.
    pub fn registers(&self) -> &TaskFile {
        &self.front.registers
    }

    /// The registers, for the host to write. It may not while the device is busy or has data.
    pub fn registers_mut(&mut self) -> &mut TaskFile {
        &mut self.front.registers
    }

    /// Whether the device is busy or in the middle of a data block.
    pub fn is_busy(&self) -> bool {
        self.front.registers.status & (status::BSY | status::DRQ) != 0
    }

    /// Whether the device wants the host's attention, which it then has.
    pub fn take_interrupt(&mut self) -> bool {
        std::mem::take(&mut self.front.interrupt)
    }

    /// Starts a command with the registers as they are. One that comes while another is under way is
    /// lost, but for DEVICE RESET of a packet device.
    pub fn command(&mut self, code: u8) {
        if self.is_busy() && !(code == op::DEVICE_RESET && self.is_packet()) {
            return;
        }
        self.generation += 1;
        if code == op::DIAGNOSTIC {
            return self.diagnose();
        }
        self.front.set_data(Vec::new());
        self.kind.unit_mut().command(&mut self.front, code);
    }

    /// What the device waits for.
    pub fn next(&self) -> Next {
        self.kind.unit().next()
    }

    /// What the host has not taken yet of the data block.
    pub fn block(&self) -> &[u8] {
        let range = self.front.at as usize..self.front.block_end as usize;
        if self.next() == Next::DataIn { &self.front.buffer[range] } else { &[] }
    }

    /// What the host has not filled yet of the data block.
    pub fn block_mut(&mut self) -> &mut [u8] {
        let range = self.front.at as usize..self.front.block_end as usize;
        if self.next() == Next::DataOut { &mut self.front.buffer[range] } else { &mut [] }
    }

    /// The host took or gave `len` bytes of the data block; true if that was the rest of it, after which
    /// the device goes on.
    pub fn advance(&mut self, len: usize) -> bool {
        if !matches!(self.next(), Next::DataIn | Next::DataOut) {
            return false;
        }
        let left = self.front.block_end - self.front.at;
        self.front.at += left.min(u32::try_from(len).unwrap_or(u32::MAX));
        let is_over = self.front.at == self.front.block_end;
        if is_over {
            self.kind.unit_mut().block_done(&mut self.front);
        }
        is_over
    }

    /// What is to be done, for [`Next::Work`] and [`Next::Dma`].
    pub fn job(&self) -> Option<Job> {
        let act = self.kind.unit().act(&self.front)?;
        Some(Job { drive: self.drive().clone(), generation: self.generation, act })
    }

    /// `job` ended so. One that is held is not finished but made anew.
    pub fn finish(&mut self, job: &Job, end: End) {
        if job.generation != self.generation || end.is_held() {
            return;
        }
        let unit = self.kind.unit_mut();
        match end.0 {
            Ok(data) => unit.done(&mut self.front, data),
            Err(failure) => unit.failed(&mut self.front, failure),
        }
    }

    /// Ends the command under way without a word, as when the host gives up on its data.
    pub fn abandon(&mut self) {
        self.generation += 1;
        self.front.succeed();
        self.front.interrupt = false;
        self.kind.unit_mut().forget();
    }

    /// Starts a queued command (NCQ) that the host sent in `registers`; the port moves its data and runs
    /// its job, and tells the end by [`AtaDevice::finish_queued`]. Returns its tag and job; `None` if it
    /// can't be done: the registers and the queued error log then tell why, and all queued commands are
    /// to be dropped.
    pub fn queue(&mut self, registers: &TaskFile, code: u8) -> Option<(u8, Job)> {
        let Kind::Disk(disk) = &mut self.kind else { return None };
        let act = disk.queue(&mut self.front, registers, code)?;
        let drive = self.drive().clone();
        Some(((registers.count >> 3) as u8 & 31, Job { drive, generation: self.generation, act }))
    }

    /// The job of a queued command ended so; true if it ended well, or a reset overtook it. If not, the
    /// registers and the queued error log tell why, and all queued commands are to be dropped. A job that
    /// is held is not finished but run again.
    pub fn finish_queued(&mut self, tag: u8, job: &Job, end: &End) -> bool {
        let Kind::Disk(disk) = &mut self.kind else { return true };
        match (&end.0, &job.act) {
            (Err(failure), Act::Read { offset, .. } | Act::Write { offset, .. })
                if job.generation == self.generation && !end.is_held() =>
            {
                disk.queued_failed(&mut self.front, tag, *offset, failure);
                false
            }
            _ => true,
        }
    }

    /// SRST, or the port's own reset: the command under way is gone; settings stay.
    pub fn soft_reset(&mut self) {
        self.generation += 1;
        self.kind.unit_mut().soft_reset();
        self.diagnose();
        self.front.interrupt = false;
    }

    /// EXECUTE DEVICE DIAGNOSTIC, which a parallel channel sends to all its devices.
    pub fn diagnose(&mut self) {
        self.generation += 1;
        self.kind.unit_mut().forget();
        self.front.drop_data();
        let is_packet = self.is_packet();
        self.front.registers.set_signature(is_packet);
        self.front.interrupt = true;
    }

    /// Power on.
    pub fn reset(&mut self) {
        self.generation += 1;
        self.kind.unit_mut().reset();
        self.front = Front::default();
        let is_packet = self.is_packet();
        self.front.registers.set_signature(is_packet);
    }

    /// What is to be saved; no job is under way.
    pub fn save(&self) -> AtaState {
        AtaState { front: self.front.clone(), unit: self.kind.unit().save() }
    }

    /// Whether `state` could be this device's.
    ///
    /// # Errors
    /// What does not fit.
    pub fn check(&self, state: &AtaState) -> Result<(), String> {
        state.front.check()?;
        self.kind.unit().check(&state.unit, &state.front)
    }

    /// Takes over a state that [`AtaDevice::check`] accepted. A job that it waited for is made anew.
    pub fn restore(&mut self, state: &AtaState) {
        self.generation += 1;
        self.front = state.front.clone();
        self.kind.unit_mut().restore(&state.unit);
    }
}

/// The error bits of a request that the host failed to do.
pub(super) fn host_error(failure: &Failure) -> u8 {
    if *failure == Failure::Host(block::Operation::Read) { error::UNC } else { error::ABRT }
}
