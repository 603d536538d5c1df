//! A channel: the ports that two devices share, their interrupt line, and who does their work.
//!
//! Both devices receive what is written to the command block; the one that is selected answers and
//! drives the interrupt line.
//!
//! Work that may wait for the host is done by the channel's worker with nothing locked. A reset, and the
//! end of a bus-master transfer, wait for work that is under way, so that afterwards it changes no memory.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use bus::{BusDevice, IrqLine};
use memory::GuestMemory;
use serde::{Deserialize, Serialize};

use super::UNITS;
use super::busmaster::{ACTIVE, BusMaster, INTERRUPT, NOWHERE, Regions, Wrote};
use crate::ata::{
    AtaDevice, AtaState, Connector, End, Job, Next, TaskFile, Transfer, device_bit, status,
};
use crate::lock;

/// Bits of the device control register: no interrupts, reset, and the command block shows what was
/// written before the last byte.
const NO_INTERRUPTS: u8 = 1 << 1;
const RESET: u8 = 1 << 2;
const PREVIOUS: u8 = 1 << 7;
/// EXECUTE DEVICE DIAGNOSTIC, the one command that is for both devices.
const DIAGNOSTIC: u8 = 0x90;

/// What of a channel is its own and changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Wires {
    /// The device that is selected.
    selected: u8,
    control: u8,
    /// The devices that want attention.
    pending: [bool; UNITS],
    /// The interrupt line is high.
    line: bool,
    bus_master: BusMaster,
}

/// The saved form of a [`Channel`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ChannelState {
    wires: Wires,
    devices: [Option<AtaState>; UNITS],
}

/// What the lock guards.
struct Inner {
    wires: Wires,
    devices: [Option<AtaDevice>; UNITS],
    /// The worker is at work.
    working: bool,
    /// A failure asked for the machine to stop; nothing is done until it continues.
    held: bool,
    pauses: u32,
    closed: bool,
}

/// A channel.
pub(super) struct Channel {
    irq: IrqLine,
    memory: Arc<GuestMemory>,
    /// Work is done by whoever causes it.
    inline: bool,
    /// May reach memory.
    master: AtomicBool,
    inner: Mutex<Inner>,
    /// The worker waits here.
    wake: Condvar,
    /// Whoever waits for the worker does so here.
    idle: Condvar,
}

/// Work that is ready to be done.
struct Ready {
    unit: usize,
    job: Job,
    table: u32,
}

/// How the table of a transfer fitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fit {
    /// There was none.
    NoTable,
    /// The transfer was longer, and was not made.
    Short,
    /// It ended with the transfer.
    Exact,
    /// It goes on after it.
    Long,
}

impl Inner {
    fn selected(&self) -> usize {
        usize::from(self.wires.selected)
    }

    /// The device that is selected.
    fn device(&mut self) -> Option<&mut AtaDevice> {
        let selected = self.selected();
        self.devices[selected].as_mut()
    }

    /// What the worker can do now.
    fn ready(&self) -> Option<Ready> {
        if self.held {
            return None;
        }
        let table = self.wires.bus_master.table();
        let transfers = self.wires.bus_master.armed;
        self.devices.iter().enumerate().find_map(|(unit, device)| {
            let device = device.as_ref()?;
            let is_ready = match device.next() {
                Next::Work => true,
                Next::Dma => transfers,
                Next::Command | Next::DataIn | Next::DataOut => false,
            };
            let job = is_ready.then(|| device.job()).flatten()?;
            Some(Ready { unit, job, table })
        })
    }

    /// Whether a transfer was started that the worker is about to make.
    fn transfer_waits(&self) -> bool {
        let transfers = |ready: Ready| ready.job.transfer() != Transfer::None;
        self.pauses == 0 && !self.closed && self.ready().is_some_and(transfers)
    }

    /// The status register as the selected device shows it.
    fn status(&self) -> u8 {
        match &self.devices[self.selected()] {
            Some(_) if self.wires.control & RESET != 0 => status::BSY,
            Some(device) => device.registers().status,
            None => 0,
        }
    }
}

impl Channel {
    pub(super) fn new(irq: IrqLine, memory: Arc<GuestMemory>, inline: bool) -> Self {
        let inner = Inner {
            wires: Wires::default(),
            devices: [const { None }; UNITS],
            working: false,
            held: false,
            pauses: 0,
            closed: false,
        };
        Self {
            irq,
            memory,
            inline,
            master: AtomicBool::new(false),
            inner: Mutex::new(inner),
            wake: Condvar::new(),
            idle: Condvar::new(),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    pub(super) fn set_master(&self, enabled: bool) {
        self.master.store(enabled, Ordering::Release);
    }

    // The worker.

    /// Does the channel's work until the channel is closed.
    pub(super) fn serve(&self) {
        let mut inner = self.inner();
        while !inner.closed {
            let ready = if inner.pauses == 0 { inner.ready() } else { None };
            let Some(ready) = ready else {
                inner = self.wake.wait(inner).unwrap_or_else(|e| e.into_inner());
                continue;
            };
            inner.working = true;
            drop(inner);
            let (end, fit) = self.perform(&ready);
            inner = self.inner();
            inner.working = false;
            self.settle(&mut inner, &ready, end, fit);
            self.idle.notify_all();
        }
    }

    /// Does a job; `None` if its data had no room.
    fn perform(&self, ready: &Ready) -> (Option<End>, Fit) {
        let len = match ready.job.transfer() {
            Transfer::None => return (Some(ready.job.run(&[])), Fit::NoTable),
            Transfer::In(len) | Transfer::Out(len) => len,
        };
        let master = self.master.load(Ordering::Acquire);
        let regions = Regions::read(&self.memory, ready.table, len, master);
        if regions.len < len {
            return (None, Fit::Short);
        }
        let mut nowhere = vec![0; NOWHERE];
        let nowhere = block::buffer_slice(&mut nowhere);
        let end = ready.job.run(&regions.slices(&self.memory, &nowhere, master));
        (Some(end), if regions.is_exact { Fit::Exact } else { Fit::Long })
    }

    /// Takes note of the end of a job.
    fn settle(&self, inner: &mut Inner, ready: &Ready, end: Option<End>, fit: Fit) {
        if end.as_ref().is_some_and(End::is_held) {
            inner.held = true;
            return;
        }
        let Some(device) = &mut inner.devices[ready.unit] else { return };
        match end {
            Some(end) => device.finish(&ready.job, end),
            None => device.abandon(),
        }
        let failed = device.registers().status & status::ERR != 0;
        if fit != Fit::NoTable {
            let bus_master = &mut inner.wires.bus_master;
            bus_master.armed = false;
            if fit != Fit::Long || failed {
                bus_master.status &= !ACTIVE;
            }
        }
        self.update(inner);
    }

    /// Drives the interrupt line as the devices want it, and has the work done that there is.
    fn update(&self, inner: &mut Inner) {
        self.update_line(inner);
        if !self.inline {
            if inner.pauses == 0 && !inner.working && inner.ready().is_some() {
                self.wake.notify_one();
            }
            return;
        }
        while let Some(ready) = if inner.pauses == 0 { inner.ready() } else { None } {
            let (end, fit) = self.perform(&ready);
            // This comes back here once for each piece of work; what is left then is done there.
            self.settle(inner, &ready, end, fit);
        }
    }

    fn update_line(&self, inner: &mut Inner) {
        for (device, pending) in inner.devices.iter_mut().zip(&mut inner.wires.pending) {
            *pending |= device.as_mut().is_some_and(AtaDevice::take_interrupt);
        }
        let selected = inner.selected();
        let wires = &mut inner.wires;
        let level = wires.pending[selected] && wires.control & (NO_INTERRUPTS | RESET) == 0;
        if level && !wires.line {
            wires.bus_master.status |= INTERRUPT;
        }
        if level != wires.line {
            wires.line = level;
            self.irq.set(level);
        }
    }

    /// Waits until the worker is not at work.
    fn wait_idle<'a>(&'a self, mut inner: MutexGuard<'a, Inner>) -> MutexGuard<'a, Inner> {
        while inner.working {
            inner = self.idle.wait(inner).unwrap_or_else(|e| e.into_inner());
        }
        inner
    }

    // Ports.

    fn read_data(&self, size: u8) -> u64 {
        let mut inner = self.inner();
        let Some(device) = inner.device() else { return 0 };
        let block = device.block();
        let len = block.len().min(size.into());
        if len == 0 {
            return 0;
        }
        let mut value = [0; 8];
        value[..len].copy_from_slice(&block[..len]);
        if device.advance(len) {
            self.update(&mut inner);
        }
        u64::from_le_bytes(value)
    }

    fn write_data(&self, size: u8, value: u64) {
        let mut inner = self.inner();
        let Some(device) = inner.device() else { return };
        let block = device.block_mut();
        let len = block.len().min(size.into());
        if len == 0 {
            return;
        }
        block[..len].copy_from_slice(&value.to_le_bytes()[..len]);
        if device.advance(len) {
            self.update(&mut inner);
        }
    }

    fn read_register(&self, register: u64) -> u8 {
        let mut inner = self.inner();
        if register == 7 {
            let status = inner.status();
            let selected = inner.selected();
            inner.wires.pending[selected] = false;
            self.update_line(&mut inner);
            return status;
        }
        let previous = inner.wires.control & PREVIOUS != 0;
        let Some(device) = inner.device() else { return 0 };
        let registers = device.registers();
        match register {
            // What is before the error register is the features register, which is not read.
            1 => registers.error,
            2 if previous => (registers.count >> 8) as u8,
            2 => registers.count as u8,
            3..=5 => registers.lba_byte(register as u32 - 3, previous),
            6 => registers.device | device_bit::OBSOLETE,
            _ => 0xff,
        }
    }

    fn write_register(&self, register: u64, value: u8) {
        let mut inner = self.inner();
        inner.wires.control &= !PREVIOUS;
        let in_reset = inner.wires.control & RESET != 0;
        if register == 7 {
            if !in_reset {
                self.command(&mut inner, value);
            }
            return;
        }
        let selected = inner.selected();
        let busy = inner.devices[selected].as_ref().is_some_and(AtaDevice::is_busy);
        if busy || in_reset {
            return;
        }
        let write: fn(&mut TaskFile, u64, u8) = |registers, register, value| match register {
            1 => registers.push_features(value),
            2 => registers.push_count(value),
            3..=5 => registers.push_lba(register as u32 - 3, value),
            6 => registers.device = value,
            _ => {}
        };
        for device in inner.devices.iter_mut().flatten().filter(|device| !device.is_busy()) {
            write(device.registers_mut(), register, value);
        }
        if register == 6 {
            inner.wires.selected = u8::from(value & device_bit::DEV != 0);
            self.update(&mut inner);
        }
    }

    fn command(&self, inner: &mut Inner, code: u8) {
        let selected = inner.selected();
        if inner.devices[selected].is_none() {
            return;
        }
        if code == DIAGNOSTIC {
            if inner.devices.iter().flatten().any(AtaDevice::is_busy) {
                return;
            }
            for device in inner.devices.iter_mut().flatten() {
                device.diagnose();
            }
            inner.wires.selected = 0;
            // Device 0 speaks for both.
            inner.wires.pending = [false; UNITS];
            if let Some(device) = &mut inner.devices[1] {
                device.take_interrupt();
            }
        } else if let Some(device) = inner.device() {
            device.command(code);
            inner.wires.pending[selected] = false;
        }
        self.update(inner);
    }

    pub(super) fn alternate_status(&self) -> u8 {
        self.inner().status()
    }

    pub(super) fn write_control(&self, value: u8) {
        let mut inner = self.inner();
        let was = inner.wires.control;
        inner.wires.control = value & (NO_INTERRUPTS | RESET | PREVIOUS);
        if (value ^ was) & RESET != 0 {
            inner = self.wait_idle(inner);
            for device in inner.devices.iter_mut().flatten() {
                device.soft_reset();
            }
            inner.wires.pending = [false; UNITS];
            inner.wires.selected = 0;
        }
        self.update(&mut inner);
    }

    pub(super) fn read_bus_master(&self, offset: u64, size: u8) -> u64 {
        self.inner().wires.bus_master.read(offset, size)
    }

    pub(super) fn write_bus_master(&self, offset: u64, size: u8, value: u64) {
        let mut inner = self.inner();
        for i in 0..u64::from(size.min(8)) {
            match inner.wires.bus_master.write(offset + i, (value >> (8 * i)) as u8) {
                Wrote::Register => {}
                Wrote::Start => self.update(&mut inner),
                Wrote::Stop => {
                    // What was started ends first.
                    while inner.working || inner.transfer_waits() {
                        inner = self.idle.wait(inner).unwrap_or_else(|e| e.into_inner());
                    }
                    inner.wires.bus_master.stop();
                }
            }
        }
    }

    // What the machine's owner does.

    pub(super) fn reset(&self) {
        let mut inner = self.wait_idle(self.inner());
        inner.held = false;
        for device in inner.devices.iter_mut().flatten() {
            device.reset();
        }
        inner.wires = Wires { line: inner.wires.line, ..Wires::default() };
        self.update_line(&mut inner);
    }

    pub(super) fn pause(&self) {
        let mut inner = self.inner();
        inner.pauses += 1;
        // Who waits for a transfer to begin need not wait any longer.
        self.idle.notify_all();
        drop(self.wait_idle(inner));
    }

    pub(super) fn resume(&self) {
        let mut inner = self.inner();
        inner.pauses = inner.pauses.saturating_sub(1);
        inner.held = false;
        self.update(&mut inner);
    }

    pub(super) fn close(&self) {
        self.inner().closed = true;
        self.wake.notify_all();
    }

    pub(super) fn save(&self) -> ChannelState {
        let inner = self.inner();
        let devices = inner.devices.each_ref().map(|d| d.as_ref().map(AtaDevice::save));
        ChannelState { wires: inner.wires.clone(), devices }
    }

    /// # Errors
    /// If the state can't be this channel's.
    pub(super) fn check(&self, state: &ChannelState) -> Result<(), String> {
        let wires = &state.wires;
        wires.bus_master.check()?;
        let known = wires.control & !(NO_INTERRUPTS | RESET | PREVIOUS) == 0;
        if usize::from(wires.selected) >= UNITS || !known {
            return Err(format!("unit {} with control {:#x}", wires.selected, wires.control));
        }
        for (unit, pair) in self.inner().devices.iter().zip(&state.devices).enumerate() {
            match pair {
                (Some(device), Some(state)) => device.check(state)?,
                (None, None) if !wires.pending[unit] => {}
                _ => return Err(format!("a device at unit {unit} on one side only")),
            }
        }
        let level = wires.pending[usize::from(wires.selected)]
            && wires.control & (NO_INTERRUPTS | RESET) == 0;
        if level != wires.line {
            return Err("an interrupt line that nobody drives".into());
        }
        Ok(())
    }

    /// Takes over a state that [`Channel::check`] accepted.
    pub(super) fn restore(&self, state: &ChannelState) {
        let mut inner = self.wait_idle(self.inner());
        inner.held = false;
        for (device, state) in inner.devices.iter_mut().zip(&state.devices) {
            if let (Some(device), Some(state)) = (device, state) {
                device.restore(state);
            }
        }
        inner.wires = state.wires.clone();
        self.irq.set(inner.wires.line);
        self.update(&mut inner);
    }
}

impl Connector for Channel {
    fn units(&self) -> usize {
        UNITS
    }

    fn is_taken(&self, unit: usize) -> bool {
        self.inner().devices.get(unit).is_none_or(Option::is_some)
    }

    fn takes_queued(&self) -> bool {
        false
    }

    fn plug(&self, unit: usize, device: AtaDevice) {
        self.inner().devices[unit] = Some(device);
    }
}

impl BusDevice for Channel {
    fn read(&self, offset: u64, size: u8) -> u64 {
        if offset == 0 && size > 1 {
            return self.read_data(size);
        }
        (0..u64::from(size)).fold(0, |value, i| {
            let byte = match offset + i {
                0 => 0xff,
                register @ 1..=7 => self.read_register(register),
                _ => 0xff,
            };
            value | u64::from(byte) << (8 * i)
        })
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        if offset == 0 && size > 1 {
            self.write_data(size, value);
            return;
        }
        for i in 0..u64::from(size) {
            if let register @ 1..=7 = offset + i {
                self.write_register(register, (value >> (8 * i)) as u8);
            }
        }
    }
}
