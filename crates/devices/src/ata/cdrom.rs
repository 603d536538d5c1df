//! A CD or DVD drive: commands come in packets (ATA/ATAPI-6, chapter 9, and section 8.23), which a SCSI
//! unit does.
//!
//! By PIO, data come in blocks of at most the byte count that the host put into LBA mid and high; by DMA
//! they come in one piece.

use std::sync::Arc;

use block::Drive;
use serde::{Deserialize, Serialize};

use super::BUFFER_LEN;
use super::device::{Front, Next, Unit, UnitState};
use super::disk::op;
use super::identify::{Words, transfer_modes};
use super::job::{Act, Failure};
use super::registers::{error, status};
use crate::scsi::{Data, Lun, LunState, Sense, Task, key};

/// Bytes of a packet.
const PACKET: usize = 12;
/// Bits of the sector count register, which for packet commands tells what is going on: a packet is
/// wanted, and data go to the host.
const COMMAND: u16 = 1;
const TO_HOST: u16 = 2;
/// Bit of the features register: data go by DMA.
const DMA: u16 = 1;
/// What CHECK POWER MODE tells.
const ACTIVE: u16 = 0xff;
/// Ultra DMA 5, what a drive is set to.
const DEFAULT_MODE: u8 = 0x45;

/// What can be set about a CD-ROM drive, besides what its unit shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CdOptions {
    /// Serial number; 20 bytes of it count.
    pub serial: String,
    /// Model; 40 bytes of it count.
    pub model: String,
    /// Firmware version; 8 bytes of it count.
    pub version: String,
    /// World wide name, 0 for none.
    pub wwn: u64,
}

impl Default for CdOptions {
    fn default() -> Self {
        Self { serial: String::new(), model: "QEMU DVD-ROM".into(), version: "2.5+".into(), wwn: 0 }
    }
}

/// Where a command is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Step {
    /// There is none.
    Idle,
    /// The host gives the packet.
    Packet,
    /// Data of the task, from byte `at` on, come to the buffer.
    Fetch { task: Task, at: u64 },
    /// The host takes the buffer; `rest` is the task whose data go on after it, from the given byte.
    Give { rest: Option<(Task, u64)> },
    /// The host takes the buffer, which is no packet command's.
    GivePage,
    /// The host gives the task's parameters.
    Fill { task: Task },
    /// The task takes its parameters.
    Accept { task: Task },
    /// The task is done, by DMA if it has data.
    Perform { task: Task },
}

/// What of a CD-ROM drive changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CdState {
    step: Step,
    /// The command at hand moves its data by DMA.
    dma: bool,
    /// Most bytes of a data block of the command at hand.
    limit: u16,
    transfer_mode: u8,
    lun: LunState,
}

/// A CD-ROM drive.
pub(super) struct CdRom {
    lun: Arc<Lun>,
    options: CdOptions,
    step: Step,
    dma: bool,
    limit: u16,
    transfer_mode: u8,
}

impl CdRom {
    pub(super) fn new(lun: Arc<Lun>, options: CdOptions) -> Self {
        let transfer_mode = DEFAULT_MODE;
        Self { lun, options, step: Step::Idle, dma: false, limit: 0, transfer_mode }
    }

    fn identify(&self) -> Vec<u8> {
        let mut words = Words([0; 256]);
        let w = &mut words;
        // A packet device, for CDs, removable, that wants its packet within 50 us of 12 bytes.
        w.0[0] = 2 << 14 | 5 << 8 | 1 << 7 | 2 << 5;
        w.text(10, 20, &self.options.serial);
        w.0[20] = 3;
        w.0[21] = 512;
        w.text(23, 8, &self.options.version);
        w.text(27, 40, &self.options.model);
        w.0[48] = 1;
        w.0[49] = 1 << 11 | 1 << 9 | 1 << 8; // IORDY, LBA, DMA
        w.0[53] = 0x07; // words 64-70 and 88 are valid
        transfer_modes(w, self.transfer_mode);
        w.0[71] = 30; // nanoseconds from PACKET to the release of the bus
        w.0[72] = 30;
        w.0[80] = 0x1e; // up to ATA/ATAPI-4
        w.0[82] = 1 << 14 | 1 << 9 | 1 << 4; // NOP, DEVICE RESET, packets
        w.0[83] = 1 << 14;
        w.0[84] = 1 << 14;
        w.0[85] = w.0[82];
        w.0[87] = 1 << 14;
        if self.options.wwn != 0 {
            w.0[84] |= 1 << 8;
            w.0[87] |= 1 << 8;
            for (i, word) in w.0[108..112].iter_mut().enumerate() {
                *word = (self.options.wwn >> (48 - 16 * i)) as u16;
            }
        }
        words.into_bytes()
    }

    fn give_page(&mut self, front: &mut Front, page: Vec<u8>) {
        self.step = Step::GivePage;
        front.set_data(page);
        front.show_block(BUFFER_LEN, true);
    }

    /// Ends a packet command well.
    fn succeed(&mut self, front: &mut Front) {
        self.step = Step::Idle;
        front.succeed();
        front.registers.count = front.registers.count & !7 | TO_HOST | COMMAND;
    }

    /// Ends a packet command with CHECK CONDITION.
    fn check_condition(&mut self, front: &mut Front, sense: Sense) {
        self.step = Step::Idle;
        let aborted = if sense.key == key::ILLEGAL_REQUEST || sense.key == key::ABORTED_COMMAND {
            error::ABRT
        } else {
            0
        };
        front.fail_packet(sense.key << 4 | aborted);
        front.registers.count = front.registers.count & !7 | TO_HOST | COMMAND;
    }

    /// The packet has come.
    fn start(&mut self, front: &mut Front) {
        let mut packet = [0; PACKET];
        packet.copy_from_slice(&front.buffer[..PACKET]);
        front.set_data(Vec::new());
        front.busy();
        let task = match self.lun.start(&packet) {
            Ok(task) => task,
            Err(sense) => {
                self.check_condition(front, sense);
                return;
            }
        };
        match task.data() {
            Data::None if task == Task::Done => self.succeed(front),
            Data::None => self.step = Step::Perform { task },
            _ if self.dma => self.step = Step::Perform { task },
            _ if self.limit == 0 => {
                // Data that can't come even byte by byte.
                self.step = Step::Idle;
                front.fail(error::ABRT);
            }
            // What the unit has at hand needs no worker.
            Data::In(_) => match task {
                Task::Reply(bytes) if bytes.len() <= BUFFER_LEN => {
                    self.step = Step::Give { rest: None };
                    front.set_data(bytes);
                    self.show_block(front);
                }
                task => self.step = Step::Fetch { task, at: 0 },
            },
            Data::Out(len) => {
                self.step = Step::Fill { task };
                front.set_data(vec![0; usize::try_from(len).unwrap_or(BUFFER_LEN).min(BUFFER_LEN)]);
                self.show_block(front);
            }
        }
    }

    /// Shows the next data block, of no more bytes than the host wants, and an even number unless it is
    /// the last.
    fn show_block(&self, front: &mut Front) {
        let left = front.buffer.len() - front.at as usize;
        let limit = usize::from(self.limit);
        let len = if left <= limit { left } else { limit & !1 };
        let to_host = if matches!(self.step, Step::Give { .. }) { TO_HOST } else { 0 };
        front.registers.count = front.registers.count & !7 | to_host;
        front.registers.set_byte_count(len as u16);
        front.show_block(len.max(1), true);
    }

    /// Bytes that are fetched at a time: whole data blocks.
    fn fetch_len(&self, left: u64) -> u64 {
        let block = u64::from(self.limit & !1).max(2);
        left.min(BUFFER_LEN as u64 / block * block)
    }

    fn set_features(&mut self, front: &mut Front) -> Result<(), u8> {
        let count = front.registers.count as u8;
        match front.registers.features as u8 {
            0x03 => {
                let known = match count >> 3 {
                    0 => count <= 1,
                    1 => count <= 0x0c,
                    2 | 4 => count & 7 <= 2,
                    8 => count & 7 <= 5,
                    _ => false,
                };
                if !known {
                    return Err(error::ABRT);
                }
                self.transfer_mode = count;
            }
            0x66 | 0xcc => {}
            _ => return Err(error::ABRT),
        }
        Ok(())
    }
}

fn in_len(task: &Task) -> u64 {
    match task.data() {
        Data::In(len) => len,
        Data::None | Data::Out(_) => 0,
    }
}

impl Unit for CdRom {
    fn drive(&self) -> &Arc<Drive> {
        self.lun.drive()
    }

    fn is_packet(&self) -> bool {
        true
    }

    fn command(&mut self, front: &mut Front, code: u8) {
        self.step = Step::Idle;
        front.busy();
        match code {
            op::PACKET => {
                let features = front.registers.features;
                self.dma = features & DMA != 0;
                // All bits set means as many as are even.
                self.limit = front.registers.byte_count().min(0xfffe);
                // Overlapped commands there are none.
                if features & 2 != 0 {
                    front.fail(error::ABRT);
                    return;
                }
                self.step = Step::Packet;
                front.set_data(vec![0; PACKET]);
                front.registers.count = front.registers.count & !7 | COMMAND;
                front.show_block(PACKET, false);
            }
            op::IDENTIFY_PACKET => {
                let page = self.identify();
                self.give_page(front, page);
            }
            op::DEVICE_RESET => {
                front.registers.set_signature(true);
                front.set_data(Vec::new());
            }
            op::SET_FEATURES => match self.set_features(front) {
                Ok(()) => front.succeed(),
                Err(error) => front.fail(error),
            },
            op::CHECK_POWER | op::CHECK_POWER_OLD => {
                front.registers.count = ACTIVE;
                front.succeed();
            }
            op::IDLE_IMMEDIATE
            | op::STANDBY_IMMEDIATE
            | op::SLEEP
            | op::FLUSH
            | op::FLUSH_EXT
            | op::IDLE_IMMEDIATE_OLD
            | op::STANDBY_IMMEDIATE_OLD
            | op::SLEEP_OLD => front.succeed(),
            // Whoever takes the drive for a disk learns better from the registers.
            op::IDENTIFY | op::READ_SECTORS | op::READ_SECTORS_NORETRY => {
                front.registers.set_signature(true);
                front.fail(error::ABRT);
            }
            _ => front.fail(error::ABRT),
        }
    }

    fn next(&self) -> Next {
        match &self.step {
            Step::Idle => Next::Command,
            Step::Packet | Step::Fill { .. } => Next::DataOut,
            Step::Give { .. } | Step::GivePage => Next::DataIn,
            Step::Fetch { .. } | Step::Accept { .. } => Next::Work,
            Step::Perform { task } => match task.data() {
                Data::None => Next::Work,
                Data::In(_) | Data::Out(_) => Next::Dma,
            },
        }
    }

    fn act(&self, front: &Front) -> Option<Act> {
        let lun = Arc::clone(&self.lun);
        match &self.step {
            Step::Fetch { task, at } => {
                let len = self.fetch_len(in_len(task).saturating_sub(*at));
                Some(Act::PacketFetch { lun, task: task.clone(), offset: *at, len })
            }
            Step::Accept { task } => {
                Some(Act::PacketAccept { lun, task: task.clone(), data: front.buffer.clone() })
            }
            Step::Perform { task } => Some(Act::Packet { lun, task: task.clone() }),
            Step::Idle | Step::Packet | Step::Give { .. } | Step::GivePage | Step::Fill { .. } => {
                None
            }
        }
    }

    fn block_done(&mut self, front: &mut Front) {
        let more = (front.at as usize) < front.buffer.len();
        match std::mem::replace(&mut self.step, Step::Idle) {
            Step::Packet => self.start(front),
            step @ (Step::Give { .. } | Step::Fill { .. }) if more => {
                self.step = step;
                self.show_block(front);
            }
            Step::Give { rest: Some((task, at)) } => {
                front.set_data(Vec::new());
                front.busy();
                self.step = Step::Fetch { task, at };
            }
            Step::Give { rest: None } => self.succeed(front),
            Step::GivePage => {
                front.registers.status = status::DRDY | status::DSC;
                front.set_data(Vec::new());
            }
            Step::Fill { task } => {
                front.busy();
                self.step = Step::Accept { task };
            }
            step => self.step = step,
        }
    }

    fn done(&mut self, front: &mut Front, data: Option<Vec<u8>>) {
        match std::mem::replace(&mut self.step, Step::Idle) {
            Step::Fetch { task, at } => {
                let data = data.unwrap_or_default();
                let next = at + data.len() as u64;
                let rest = (next < in_len(&task) && !data.is_empty()).then_some((task, next));
                self.step = Step::Give { rest };
                front.set_data(data);
                self.show_block(front);
            }
            _ => self.succeed(front),
        }
    }

    fn failed(&mut self, front: &mut Front, failure: Failure) {
        match failure {
            Failure::Check(sense) => self.check_condition(front, sense),
            Failure::Host(_) | Failure::Held => {
                self.check_condition(front, Sense::TARGET_FAILURE);
            }
        }
    }

    fn forget(&mut self) {
        self.step = Step::Idle;
    }

    fn soft_reset(&mut self) {
        self.forget();
        self.transfer_mode = DEFAULT_MODE;
    }

    fn reset(&mut self) {
        self.forget();
        (self.dma, self.limit, self.transfer_mode) = (false, 0, DEFAULT_MODE);
        self.lun.reset();
    }

    fn save(&self) -> UnitState {
        UnitState::CdRom(CdState {
            step: self.step.clone(),
            dma: self.dma,
            limit: self.limit,
            transfer_mode: self.transfer_mode,
            lun: self.lun.save(),
        })
    }

    fn check(&self, state: &UnitState, front: &Front) -> Result<(), String> {
        let UnitState::CdRom(state) = state else { return Err("state of a disk".into()) };
        self.lun.check(&state.lun)?;
        let sound = |task: &Task| match *task {
            Task::Done | Task::Flush | Task::ModeSelect { .. } => true,
            Task::Reply(ref bytes) => bytes.len() <= BUFFER_LEN,
            Task::Read { offset, len } => offset.checked_add(len).is_some(),
            Task::ReadSectors { lba, count, .. } => lba.checked_add(count).is_some(),
            // A disk's.
            _ => false,
        };
        let fits = match &state.step {
            Step::Packet => front.buffer.len() == PACKET,
            Step::Fetch { task, at } | Step::Give { rest: Some((task, at)) } => {
                sound(task) && *at <= in_len(task)
            }
            Step::Perform { task } | Step::Fill { task } | Step::Accept { task } => sound(task),
            Step::Idle | Step::GivePage | Step::Give { rest: None } => true,
        };
        if fits { Ok(()) } else { Err("impossible packet command".into()) }
    }

    fn restore(&mut self, state: &UnitState) {
        let UnitState::CdRom(state) = state else { return };
        self.step = state.step.clone();
        (self.dma, self.limit) = (state.dma, state.limit);
        self.transfer_mode = state.transfer_mode;
        self.lun.restore(&state.lun);
    }
}
