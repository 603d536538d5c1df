//! A port: its registers, and how it takes commands to the device behind it (AHCI 1.3.1, sections 3.3
//! and 5).
//!
//! A port has no lock of its own and never waits: [`Port::step`] does what can be done at once and hands
//! out, as a [`Run`], what a worker has to do.

use memory::GuestMemory;
use serde::{Deserialize, Serialize};

use super::command::{Cursor, Fault, Header, Ranges, get, put};
use super::fis::{self, FromHost, area};
use crate::ata::{AtaDevice, AtaState, End, Job, Next, TaskFile, Transfer, status};
use crate::scsi::slices;

/// Offsets of registers.
pub(super) mod reg {
    pub(in super::super) const CLB: u64 = 0x00;
    pub(in super::super) const CLBU: u64 = 0x04;
    pub(in super::super) const FB: u64 = 0x08;
    pub(in super::super) const FBU: u64 = 0x0c;
    pub(in super::super) const IS: u64 = 0x10;
    pub(in super::super) const IE: u64 = 0x14;
    pub(in super::super) const CMD: u64 = 0x18;
    pub(in super::super) const TFD: u64 = 0x20;
    pub(in super::super) const SIG: u64 = 0x24;
    pub(in super::super) const SSTS: u64 = 0x28;
    pub(in super::super) const SCTL: u64 = 0x2c;
    pub(in super::super) const SERR: u64 = 0x30;
    pub(in super::super) const SACT: u64 = 0x34;
    pub(in super::super) const CI: u64 = 0x38;
}

/// Bits of the interrupt status.
mod interrupt {
    pub(super) const REGISTER_FRAME: u32 = 1 << 0;
    pub(super) const PIO_SETUP_FRAME: u32 = 1 << 1;
    pub(super) const DEVICE_BITS_FRAME: u32 = 1 << 3;
    /// The device was exchanged: as the error register says.
    pub(super) const CONNECT: u32 = 1 << 6;
    pub(super) const OVERFLOW: u32 = 1 << 24;
    /// Memory that could not be reached.
    pub(super) const HOST_BUS_FATAL: u32 = 1 << 29;
    pub(super) const TASK_FILE_ERROR: u32 = 1 << 30;
    /// All that there are.
    pub(super) const ALL: u32 = 0xfdc0_00ff;
}

/// Bits of the command register.
mod cmd {
    pub(super) const START: u32 = 1 << 0;
    pub(super) const SPIN_UP: u32 = 1 << 1;
    pub(super) const POWER_ON: u32 = 1 << 2;
    /// Clears BSY and DRQ; always reads as zero.
    pub(super) const OVERRIDE: u32 = 1 << 3;
    pub(super) const RECEIVE: u32 = 1 << 4;
    pub(super) const SLOT_SHIFT: u32 = 8;
    pub(super) const RECEIVE_RUNS: u32 = 1 << 14;
    pub(super) const LIST_RUNS: u32 = 1 << 15;
    /// Start, spin up, power on, receive, device is ATAPI, drives the LED, and link power.
    pub(super) const WRITABLE: u32 = 0x0700_0017;
}

/// Device detection, in control and status; speed and power in the latter.
const DETECT: u32 = 0xf;
const DETECT_RESET: u32 = 1;
const DETECT_OFF: u32 = 4;
const PRESENT: u32 = 0x113;
/// Error register: the device was exchanged.
const EXCHANGED: u32 = 1 << 26;
/// What the registers show before the first frame of the device.
const NO_TASK: u32 = 0x7f;
const NO_SIGNATURE: u32 = u32::MAX;
/// Device control: reset.
const SOFT_RESET: u8 = 1 << 2;
/// Commands: PACKET, and those that queue.
const PACKET: u8 = 0xa0;
const QUEUED: std::ops::RangeInclusive<u8> = 0x60..=0x65;

/// Registers that software sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Registers {
    list: u64,
    frames: u64,
    is: u32,
    ie: u32,
    cmd: u32,
    tfd: u32,
    sig: u32,
    ssts: u32,
    sctl: u32,
    serr: u32,
    sact: u32,
    ci: u32,
}

impl Registers {
    const RESET: Self = Self {
        list: 0,
        frames: 0,
        is: 0,
        ie: 0,
        cmd: cmd::SPIN_UP | cmd::POWER_ON,
        tfd: NO_TASK,
        sig: NO_SIGNATURE,
        ssts: 0,
        sctl: 0,
        serr: 0,
        sact: 0,
        ci: 0,
    };
}

/// The command under way, of those that do not queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Current {
    slot: u8,
    header: Header,
    cursor: Cursor,
    /// The ATAPI command is still to go to the device.
    packet_due: bool,
}

/// The saved form of a [`Port`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PortState {
    registers: Registers,
    current: Option<Current>,
    stopped: bool,
    signature_due: bool,
    in_soft_reset: bool,
    device: Option<AtaState>,
}

/// What a worker has to do.
pub(super) struct Run {
    job: Job,
    ranges: Ranges,
    /// How far the command is in its regions when this is done.
    after: Cursor,
    /// Slot and tag, if it is a queued command.
    queued: Option<(u8, u8)>,
    epoch: u64,
}

/// How a [`Run`] ended.
pub(super) struct Ran {
    run: Run,
    end: Result<End, Fault>,
}

impl Run {
    /// Does it; may wait for the host.
    pub(super) fn perform(self, memory: &GuestMemory) -> Ran {
        let end = match slices(memory, &self.ranges) {
            Some(slices) => Ok(self.job.run(&slices)),
            None => Err(Fault),
        };
        Ran { run: self, end }
    }
}

/// What comes next.
pub(super) enum Step {
    /// Nothing, for now.
    Idle,
    /// Something was done; there may be more.
    Again,
    /// A worker has to do this.
    Run(Run),
}

/// A port.
pub(super) struct Port {
    registers: Registers,
    device: Option<AtaDevice>,
    current: Option<Current>,
    /// The job of the current command is being done.
    is_running: bool,
    /// Tags of queued commands that are being done.
    queued: u32,
    /// An error stopped the list until software starts it again.
    stopped: bool,
    /// The device's first frame after a reset is still to be received.
    signature_due: bool,
    in_soft_reset: bool,
    /// Changes when commands are dropped.
    epoch: u64,
    /// Jobs being done, dropped or not.
    pub(super) in_flight: u32,
    /// A failure stops the machine; nothing is begun until it continues.
    pub(super) halted: bool,
}

impl Port {
    pub(super) fn new() -> Self {
        Self {
            registers: Registers::RESET,
            device: None,
            current: None,
            is_running: false,
            queued: 0,
            stopped: false,
            signature_due: false,
            in_soft_reset: false,
            epoch: 0,
            in_flight: 0,
            halted: false,
        }
    }

    pub(super) fn is_taken(&self) -> bool {
        self.device.is_some()
    }

    #[cfg(test)]
    pub(super) fn drive(&self) -> Option<std::sync::Arc<block::Drive>> {
        self.device.as_ref().map(|device| device.drive().clone())
    }

    pub(super) fn plug(&mut self, device: AtaDevice) {
        self.device = Some(device);
        self.reset();
    }

    /// Whether the port wants attention.
    pub(super) fn wants_interrupt(&self) -> bool {
        self.registers.is & self.registers.ie != 0
    }

    /// Power on. Jobs being done are dropped.
    pub(super) fn reset(&mut self) {
        self.drop_commands();
        self.registers = Registers::RESET;
        self.halted = false;
        if let Some(device) = &mut self.device {
            device.reset();
        }
        self.connect();
    }

    /// A reset of the adapter by software, over which it keeps where list and frames are (AHCI 1.3.1,
    /// section 10.4.3).
    pub(super) fn reset_by_adapter(&mut self) {
        let Registers { list, frames, .. } = self.registers;
        self.reset();
        (self.registers.list, self.registers.frames) = (list, frames);
    }

    /// The device's power-on or reset is done.
    fn connect(&mut self) {
        let registers = &mut self.registers;
        (registers.tfd, registers.sig) = (NO_TASK, NO_SIGNATURE);
        registers.ssts = if self.device.is_some() { PRESENT } else { 0 };
        self.signature_due = self.device.is_some();
        self.in_soft_reset = false;
    }

    /// Commands under way and waiting are forgotten.
    fn drop_commands(&mut self) {
        self.epoch += 1;
        if self.current.take().is_some()
            && let Some(device) = &mut self.device
        {
            device.abandon();
        }
        (self.is_running, self.stopped, self.queued) = (false, false, 0);
        let registers = &mut self.registers;
        (registers.ci, registers.sact) = (0, 0);
        registers.cmd &= !(0x1f << cmd::SLOT_SHIFT);
    }

    pub(super) fn read(&self, offset: u64) -> u32 {
        let r = &self.registers;
        match offset {
            reg::CLB => r.list as u32,
            reg::CLBU => (r.list >> 32) as u32,
            reg::FB => r.frames as u32,
            reg::FBU => (r.frames >> 32) as u32,
            reg::IS => r.is,
            reg::IE => r.ie,
            reg::CMD => {
                let runs = |bit: u32, shown: u32| if r.cmd & bit != 0 { shown } else { 0 };
                r.cmd | runs(cmd::START, cmd::LIST_RUNS) | runs(cmd::RECEIVE, cmd::RECEIVE_RUNS)
            }
            reg::TFD => r.tfd,
            reg::SIG => r.sig,
            reg::SSTS => r.ssts,
            reg::SCTL => r.sctl,
            reg::SERR => r.serr,
            reg::SACT => r.sact,
            reg::CI => r.ci,
            _ => 0,
        }
    }

    /// A write of a register; true if jobs being done were dropped, whose end is to be waited for.
    pub(super) fn write(&mut self, memory: &GuestMemory, offset: u64, value: u32) -> bool {
        let r = &mut self.registers;
        let wide = u64::from(value);
        match offset {
            reg::CLB => r.list = r.list & !0xffff_ffff | wide & !0x3ff,
            reg::CLBU => r.list = r.list & 0xffff_ffff | wide << 32,
            reg::FB => r.frames = r.frames & !0xffff_ffff | wide & !0xff,
            reg::FBU => r.frames = r.frames & 0xffff_ffff | wide << 32,
            reg::IS => {
                r.is &= !value;
                self.show_errors();
            }
            reg::IE => r.ie = value & interrupt::ALL,
            reg::CMD => return self.write_cmd(memory, value),
            reg::SCTL => return self.write_sctl(memory, value),
            reg::SERR => {
                r.serr &= !value;
                r.is &= !interrupt::CONNECT;
                self.show_errors();
            }
            reg::SACT if r.cmd & cmd::START != 0 => r.sact |= value,
            reg::CI if r.cmd & cmd::START != 0 => r.ci |= value,
            _ => {}
        }
        false
    }

    /// Some bits of the interrupt status only repeat the error register.
    fn show_errors(&mut self) {
        if self.registers.serr & EXCHANGED != 0 {
            self.registers.is |= interrupt::CONNECT;
        }
    }

    fn write_cmd(&mut self, memory: &GuestMemory, value: u32) -> bool {
        let old = self.registers.cmd;
        self.registers.cmd = old & !cmd::WRITABLE | value & cmd::WRITABLE;
        if value & cmd::OVERRIDE != 0 && value & old & cmd::START == 0 {
            self.registers.tfd &= !u32::from(status::BSY | status::DRQ);
        }
        if self.registers.cmd & cmd::RECEIVE != 0 {
            self.receive_signature(memory);
        }
        let stops = old & cmd::START != 0 && value & cmd::START == 0;
        if stops {
            self.drop_commands();
        }
        stops
    }

    fn write_sctl(&mut self, memory: &GuestMemory, value: u32) -> bool {
        let old = std::mem::replace(&mut self.registers.sctl, value & 0xfff);
        let (was, is) = (old & DETECT, value & DETECT);
        if was == is {
            return false;
        }
        match is {
            DETECT_RESET => {
                self.drop_commands();
                self.registers.ssts = 0;
                self.registers.tfd = NO_TASK | u32::from(status::BSY);
            }
            DETECT_OFF => {
                self.drop_commands();
                self.registers.ssts = DETECT_OFF;
            }
            _ if matches!(was, DETECT_RESET | DETECT_OFF) => {
                self.drop_commands();
                if let Some(device) = &mut self.device {
                    device.soft_reset();
                    self.registers.serr |= EXCHANGED;
                }
                self.connect();
                self.show_errors();
                self.receive_signature(memory);
            }
            _ => return false,
        }
        true
    }

    fn receives(&self) -> bool {
        self.registers.cmd & cmd::RECEIVE != 0
    }

    /// Receives a frame.
    fn receive(&mut self, memory: &GuestMemory, at: u64, frame: &[u8]) {
        if self.receives() && memory.write(self.registers.frames.wrapping_add(at), frame).is_err() {
            self.fault();
        }
    }

    /// Receives the first frame of the device, if that was not yet possible.
    fn receive_signature(&mut self, memory: &GuestMemory) {
        let Some(device) = self.device.as_ref().filter(|_| self.signature_due) else { return };
        if !self.receives() {
            return;
        }
        let task = device.registers().clone();
        self.signature_due = false;
        self.registers.sig = (task.lba as u32) << 8 | u32::from(task.count & 0xff);
        self.show_task(&task);
        self.receive(memory, area::REGISTER, &fis::registers(&task, false));
    }

    fn show_task(&mut self, task: &TaskFile) {
        self.registers.tfd = u32::from(task.status) | u32::from(task.error) << 8;
    }

    /// Memory that the list or the frames need is not there.
    fn fault(&mut self) {
        self.registers.is |= interrupt::HOST_BUS_FATAL;
        self.stopped = true;
    }

    /// Whether commands wait that could be begun while others are being done.
    pub(super) fn has_more(&self) -> bool {
        self.current.is_none() && self.registers.ci != 0 && !self.halted
    }

    /// Does one thing, if there is one to do.
    pub(super) fn step(&mut self, memory: &GuestMemory) -> Step {
        let is_on = self.registers.cmd & cmd::START != 0;
        if !is_on || self.stopped || self.halted || self.device.is_none() {
            return Step::Idle;
        }
        let stepped = match &self.current {
            Some(_) if self.is_running => Ok(Step::Idle),
            Some(_) => self.proceed(memory),
            None => match self.registers.ci.trailing_zeros() {
                32 => Ok(Step::Idle),
                slot => self.begin(memory, slot as u8),
            },
        };
        stepped.unwrap_or_else(|Fault| {
            self.fault();
            Step::Again
        })
    }

    /// Begins the command in `slot`.
    fn begin(&mut self, memory: &GuestMemory, slot: u8) -> Result<Step, Fault> {
        let header = Header::read(memory, self.registers.list, slot)?;
        let frame = fis::from_host(&header.frame(memory)?);
        let Some(device) = &mut self.device else { return Ok(Step::Idle) };
        match frame {
            None => self.end_slot(slot),
            Some(FromHost::Control(_)) if self.queued != 0 => return Ok(Step::Idle),
            Some(FromHost::Control(control)) => {
                let resets = control & SOFT_RESET != 0;
                if self.in_soft_reset && !resets {
                    device.soft_reset();
                    self.signature_due = true;
                    self.receive_signature(memory);
                }
                self.in_soft_reset = resets;
                self.end_slot(slot);
            }
            // Nothing is heard in a reset.
            Some(FromHost::Command(..)) if self.in_soft_reset => self.end_slot(slot),
            Some(FromHost::Command(code, task)) if QUEUED.contains(&code) => {
                return self.begin_queued(memory, slot, header, code, &task);
            }
            // Others wait until all that are queued are done.
            Some(FromHost::Command(..)) if self.queued != 0 => return Ok(Step::Idle),
            Some(FromHost::Command(code, task)) => {
                let registers = device.registers_mut();
                let (status, error) = (registers.status, registers.error);
                *registers = TaskFile { status, error, ..task };
                device.command(code);
                let busy = u32::from(status::BSY);
                self.registers.tfd |= busy;
                self.registers.cmd &= !(0x1f << cmd::SLOT_SHIFT);
                self.registers.cmd |= u32::from(slot) << cmd::SLOT_SHIFT;
                let packet_due = code == PACKET && device.is_packet();
                let cursor = Cursor::default();
                self.current = Some(Current { slot, header, cursor, packet_due });
            }
        }
        Ok(Step::Again)
    }

    fn begin_queued(
        &mut self,
        memory: &GuestMemory,
        slot: u8,
        header: Header,
        code: u8,
        task: &TaskFile,
    ) -> Result<Step, Fault> {
        let Some(device) = &mut self.device else { return Ok(Step::Idle) };
        let Some((tag, job)) = device.queue(task, code) else {
            let task = device.registers().clone();
            device.take_interrupt();
            self.receive(memory, area::REGISTER, &fis::registers(&task, true));
            self.show_task(&task);
            self.registers.is |= interrupt::REGISTER_FRAME | interrupt::TASK_FILE_ERROR;
            self.stopped = true;
            return Ok(Step::Again);
        };
        let len = match job.transfer() {
            Transfer::None => 0,
            Transfer::In(len) | Transfer::Out(len) => len,
        };
        let mut cursor = Cursor::default();
        let (ranges, taken) = cursor.take(memory, &header, len)?;
        if taken < len {
            self.registers.is |= interrupt::OVERFLOW;
            self.stopped = true;
            return Ok(Step::Again);
        }
        header.set_byte_count(memory, cursor.moved)?;
        self.end_slot(slot);
        self.queued |= 1 << tag;
        let queued = Some((slot, tag));
        Ok(Step::Run(Run { job, ranges, after: cursor, queued, epoch: self.epoch }))
    }

    fn end_slot(&mut self, slot: u8) {
        self.registers.ci &= !(1 << slot);
    }

    /// Goes on with the current command.
    fn proceed(&mut self, memory: &GuestMemory) -> Result<Step, Fault> {
        let (Some(device), Some(current)) = (&mut self.device, &mut self.current) else {
            return Ok(Step::Idle);
        };
        let next = device.next();
        match next {
            Next::Command => {
                self.finish(memory)?;
                Ok(Step::Again)
            }
            Next::DataIn | Next::DataOut => {
                let to_host = next == Next::DataIn;
                let task = device.registers().clone();
                let interrupt = device.take_interrupt();
                let len = if to_host { device.block().len() } else { device.block_mut().len() };
                let is_packet = std::mem::take(&mut current.packet_due) && !to_host;
                if is_packet {
                    let packet = current.header.packet(memory)?;
                    let block = device.block_mut();
                    let len = block.len().min(packet.len());
                    block[..len].copy_from_slice(&packet[..len]);
                } else {
                    let (ranges, taken) =
                        current.cursor.take(memory, &current.header, len as u64)?;
                    if taken < len as u64 {
                        self.overflow(memory)?;
                        return Ok(Step::Again);
                    }
                    if to_host {
                        put(memory, &ranges, device.block())?;
                    } else {
                        get(memory, &ranges, device.block_mut())?;
                    }
                }
                device.advance(len);
                let after = device.registers().status;
                let setup = fis::pio_setup(&task, to_host, interrupt, after, len as u16);
                self.receive(memory, area::PIO_SETUP, &setup);
                if interrupt {
                    self.registers.is |= interrupt::PIO_SETUP_FRAME;
                }
                Ok(Step::Again)
            }
            Next::Work | Next::Dma => {
                let Some(job) = device.job() else { return Ok(Step::Idle) };
                let len = match job.transfer() {
                    Transfer::None => 0,
                    Transfer::In(len) | Transfer::Out(len) => len,
                };
                // What was held back is made again from the start of its data.
                let mut cursor = current.cursor;
                let (ranges, taken) = cursor.take(memory, &current.header, len)?;
                if taken < len {
                    self.overflow(memory)?;
                    return Ok(Step::Again);
                }
                self.is_running = true;
                Ok(Step::Run(Run { job, ranges, after: cursor, queued: None, epoch: self.epoch }))
            }
        }
    }

    /// There is no room for the data: the command ends without them.
    fn overflow(&mut self, memory: &GuestMemory) -> Result<(), Fault> {
        if let Some(device) = &mut self.device {
            device.abandon();
        }
        self.registers.is |= interrupt::OVERFLOW;
        self.finish(memory)
    }

    /// The current command ended.
    fn finish(&mut self, memory: &GuestMemory) -> Result<(), Fault> {
        let (Some(device), Some(current)) = (&mut self.device, self.current.take()) else {
            return Ok(());
        };
        device.take_interrupt();
        let task = device.registers().clone();
        current.header.set_byte_count(memory, current.cursor.moved)?;
        self.show_task(&task);
        // A disk would let the last frame of data end a command that reads by PIO (SATA 3, "PIO data-in").
        // Emulators send this frame after it all the same, and QEMU's tests wait for it.
        self.receive(memory, area::REGISTER, &fis::registers(&task, true));
        self.registers.is |= interrupt::REGISTER_FRAME;
        if task.status & (status::ERR | status::DF) != 0 {
            self.registers.is |= interrupt::TASK_FILE_ERROR;
            self.stopped = true;
        } else {
            self.end_slot(current.slot);
        }
        Ok(())
    }

    /// A job ended.
    pub(super) fn settle(&mut self, memory: &GuestMemory, ran: Ran) {
        let Ran { run, end } = ran;
        if run.epoch != self.epoch {
            return;
        }
        match (end, run.queued) {
            (Err(Fault), _) => {
                self.is_running = false;
                self.fault();
            }
            (Ok(end), Some((slot, tag))) => self.settle_queued(memory, &run.job, &end, slot, tag),
            (Ok(end), None) => {
                self.is_running = false;
                if end.is_held() {
                    self.halted = true;
                    return;
                }
                if let Some(current) = &mut self.current {
                    current.cursor = run.after;
                }
                if let Some(device) = &mut self.device {
                    device.finish(&run.job, end);
                }
            }
        }
    }

    fn settle_queued(&mut self, memory: &GuestMemory, job: &Job, end: &End, slot: u8, tag: u8) {
        let Some(device) = &mut self.device else { return };
        self.queued &= !(1 << tag);
        if end.is_held() {
            self.registers.ci |= 1 << slot;
            self.halted = true;
            return;
        }
        let is_good = device.finish_queued(tag, job, end);
        let mut task = device.registers().clone();
        if is_good {
            (task.status, task.error) = (status::DRDY | status::DSC, 0);
            self.registers.sact &= !(1 << tag);
        } else {
            device.take_interrupt();
            self.registers.is |= interrupt::TASK_FILE_ERROR;
            self.stopped = true;
            // The others are dropped; their bits stay for software to see.
            self.epoch += 1;
            self.queued = 0;
        }
        self.show_task(&task);
        let done = if is_good { 1 << tag } else { 0 };
        self.receive(memory, area::DEVICE_BITS, &fis::device_bits(&task, done));
        self.registers.is |= interrupt::DEVICE_BITS_FRAME;
    }

    /// What is to be saved; no job is being done.
    pub(super) fn save(&self) -> PortState {
        PortState {
            registers: self.registers.clone(),
            current: self.current.clone(),
            stopped: self.stopped,
            signature_due: self.signature_due,
            in_soft_reset: self.in_soft_reset,
            device: self.device.as_ref().map(AtaDevice::save),
        }
    }

    /// Whether `state` could be this port's.
    pub(super) fn check(&self, state: &PortState) -> Result<(), String> {
        if state.current.as_ref().is_some_and(|current| current.slot > 31) {
            return Err("a command slot that is not there".into());
        }
        match (&self.device, &state.device) {
            (None, None) if state.current.is_none() && !state.signature_due => Ok(()),
            (Some(device), Some(state)) => device.check(state),
            _ => Err("a device on one side only".into()),
        }
    }

    /// Takes over a state that [`Port::check`] accepted; no job is being done.
    pub(super) fn restore(&mut self, state: &PortState) {
        self.epoch += 1;
        self.registers = state.registers.clone();
        self.current = state.current.clone();
        (self.is_running, self.queued, self.halted) = (false, 0, false);
        self.stopped = state.stopped;
        self.signature_due = state.signature_due;
        self.in_soft_reset = state.in_soft_reset;
        if let (Some(device), Some(state)) = (&mut self.device, &state.device) {
            device.restore(state);
        }
    }
}
