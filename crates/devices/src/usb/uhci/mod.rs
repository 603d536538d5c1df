//! A Universal Host Controller (Universal Host Controller Interface Design Guide, revision 1.1).
//!
//! The guest's schedule is walked frame by frame, one each millisecond of guest time, by a timer that runs
//! only while the controller does. While every device answers "not now", frames are walked in batches, so
//! that an idle mouse costs little; a device that has something to say ends that at once.
//!
//! Invariants:
//! - The schedule is the guest's: each frame has a limit on bytes, on structures visited and on steps
//!   without progress, so that loops end.
//! - The frame number that the guest reads never passes a frame that is being walked.

mod schedule;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, OnceLock, Weak};

use bus::{BusDevice, Clock, Device, Timer, TimerQueue};
use memory::GuestMemory;
use serde::{Deserialize, Serialize};
use vmstate::{RestoreError, Saved, State};

use super::{Handshake, Peripheral, Ports, Transaction, Upstream};
use crate::lock;
use crate::pci::{BarKind, EndpointState, Identity, PciEndpoint, PciFunction, PciWiring};
use schedule::{Fault, Walk};

/// Number of ports.
const PORTS: usize = 2;
/// The BAR and its size in ports.
const BAR: usize = 4;
const BAR_SIZE: u64 = 0x20;

/// Registers.
mod reg {
    pub(super) const COMMAND: u64 = 0x00;
    pub(super) const STATUS: u64 = 0x02;
    pub(super) const INTERRUPT: u64 = 0x04;
    pub(super) const FRAME: u64 = 0x06;
    pub(super) const BASE_LOW: u64 = 0x08;
    pub(super) const BASE_HIGH: u64 = 0x0a;
    pub(super) const SOF: u64 = 0x0c;
    pub(super) const PORT_1: u64 = 0x10;
    pub(super) const PORT_2: u64 = 0x12;
}

/// Command register.
mod command {
    pub(super) const RUN: u16 = 1 << 0;
    pub(super) const HOST_RESET: u16 = 1 << 1;
    pub(super) const GLOBAL_RESET: u16 = 1 << 2;
    pub(super) const GLOBAL_SUSPEND: u16 = 1 << 3;
    pub(super) const ALL: u16 = 0xff;
}

/// Status register; all but the last are cleared by writing one.
mod status {
    pub(super) const INTERRUPT: u16 = 1 << 0;
    pub(super) const ERROR: u16 = 1 << 1;
    pub(super) const RESUME: u16 = 1 << 2;
    pub(super) const HOST_ERROR: u16 = 1 << 3;
    pub(super) const PROCESS_ERROR: u16 = 1 << 4;
    pub(super) const HALTED: u16 = 1 << 5;
    pub(super) const CLEARED: u16 = 0x1f;
}

/// Interrupt enable register, and the reasons for an interrupt at the end of a transfer.
mod enable {
    pub(super) const ERROR: u16 = 1 << 0;
    pub(super) const RESUME: u16 = 1 << 1;
    pub(super) const COMPLETE: u16 = 1 << 2;
    pub(super) const SHORT: u16 = 1 << 3;
    pub(super) const ALL: u16 = 0x0f;
}

/// Port registers.
mod port {
    pub(super) const CONNECTED: u16 = 1 << 0;
    pub(super) const CONNECT_CHANGE: u16 = 1 << 1;
    pub(super) const ENABLED: u16 = 1 << 2;
    pub(super) const ENABLE_CHANGE: u16 = 1 << 3;
    pub(super) const RESUME: u16 = 1 << 6;
    pub(super) const ALWAYS: u16 = 1 << 7;
    pub(super) const RESET: u16 = 1 << 9;
    pub(super) const SUSPENDED: u16 = 1 << 12;
    pub(super) const WRITABLE: u16 = ENABLED | RESUME | RESET | SUSPENDED;
    pub(super) const CLEARED: u16 = CONNECT_CHANGE | ENABLE_CHANGE;
    pub(super) const ALL: u16 = WRITABLE | CLEARED | CONNECTED | ALWAYS;
}

/// Nanoseconds of a frame.
const FRAME_NS: u64 = 1_000_000;
/// Frames without progress after which they are walked in batches, and how many a batch has.
const IDLE_AFTER: u32 = 32;
const IDLE_FRAMES: u64 = 8;
/// Most frames that are made up for at a time; what is older is skipped.
const MAX_BEHIND: u64 = 32;
/// Frame numbers have eleven bits, of which ten choose the entry of the list.
const FRAME_MASK: u16 = 0x7ff;
/// Bytes of a transfer in a frame: what a full-speed bus carries beside its own overhead.
const SOF_DEFAULT: u8 = 64;

/// Which controller it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UhciModel {
    /// PCI device id; the vendor is Intel.
    pub device: u16,
    /// PCI revision.
    pub revision: u8,
    /// Interrupt pin, 1 for INTA# to 4 for INTD#.
    pub pin: u8,
}

impl UhciModel {
    /// Of the PIIX3.
    pub const PIIX3: Self = Self { device: 0x7020, revision: 1, pin: 4 };
    /// Of the PIIX4.
    pub const PIIX4: Self = Self { device: 0x7112, revision: 1, pin: 4 };

    /// One of the six of the ICH9, counted from 0.
    pub const fn ich9(index: u8) -> Self {
        Self { device: 0x2934 + index as u16, revision: 3, pin: index % 3 + 1 }
    }
}

/// The registers, without the ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Registers {
    command: u16,
    status: u16,
    enable: u16,
    /// Number of the next frame to walk.
    frame: u16,
    base: u32,
    sof: u8,
    ports: [u16; PORTS],
    /// Which of [`enable::COMPLETE`] and [`enable::SHORT`] are behind [`status::INTERRUPT`].
    reasons: u16,
    /// Guest time at which the next frame begins, in ns.
    next_ns: u64,
    /// Frames walked since something was transferred, up to [`IDLE_AFTER`].
    idle: u32,
}

impl Registers {
    fn new() -> Self {
        Self {
            command: 0,
            status: status::HALTED,
            enable: 0,
            frame: 0,
            base: 0,
            sof: SOF_DEFAULT,
            ports: [port::ALWAYS; PORTS],
            reasons: 0,
            next_ns: 0,
            idle: 0,
        }
    }

    fn runs(&self) -> bool {
        self.command & command::RUN != 0
    }

    /// Stops after an error that software has to look into.
    fn halt(&mut self, reason: u16) {
        self.command &= !command::RUN;
        self.status |= reason | status::HALTED;
    }

    fn interrupts(&self) -> bool {
        let Self { status: now, enable, reasons, .. } = self;
        let has = |bit: u16| now & bit != 0;
        has(status::INTERRUPT) && reasons & enable != 0
            || has(status::ERROR) && enable & enable::ERROR != 0
            || has(status::RESUME) && enable & enable::RESUME != 0
            || has(status::HOST_ERROR | status::PROCESS_ERROR)
    }

    /// Frames that have begun by `now` and were not walked.
    fn due(&self, now: u64) -> u64 {
        if now < self.next_ns { 0 } else { (now - self.next_ns) / FRAME_NS + 1 }
    }
}

/// Saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct UhciState {
    endpoint: EndpointState,
    registers: Registers,
}

impl State for UhciState {
    const NAME: &'static str = "uhci";
    const VERSION: u32 = 1;

    fn validate(&self) -> Result<(), String> {
        let Registers { command, status, enable, frame, base, ports, reasons, idle, .. } =
            &self.registers;
        let fits = command & !command::ALL == 0
            && status & !(status::CLEARED | status::HALTED) == 0
            && enable & !enable::ALL == 0
            && frame & !FRAME_MASK == 0
            && base & 0xfff == 0
            && ports.iter().all(|port| port & !port::ALL == 0)
            && reasons & !(enable::COMPLETE | enable::SHORT) == 0
            && *idle <= IDLE_AFTER;
        if fits { Ok(()) } else { Err("a register has reserved bits set".into()) }
    }
}

/// The controller.
pub struct Uhci {
    id: String,
    memory: Arc<GuestMemory>,
    clock: Clock,
    timer: Timer,
    devices: [OnceLock<Arc<Peripheral>>; PORTS],
    endpoint: Mutex<PciEndpoint>,
    registers: Mutex<Registers>,
}

impl Uhci {
    /// A controller with `id` that reaches `memory` and is wired by `wiring`.
    pub fn new(
        id: impl Into<String>,
        model: UhciModel,
        wiring: PciWiring,
        memory: Arc<GuestMemory>,
        timers: &TimerQueue,
    ) -> Arc<Self> {
        let identity = Identity {
            vendor: 0x8086,
            device: model.device,
            revision: model.revision,
            class: 0x0c_03_00,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
        };
        Arc::new_cyclic(|this: &Weak<Self>| {
            let expiring = this.clone();
            let timer = timers.timer(move || {
                if let Some(uhci) = expiring.upgrade() {
                    uhci.walk_frames();
                }
            });
            let mut endpoint = PciEndpoint::new(&identity, wiring);
            let window = Arc::new(Window(this.clone()));
            endpoint.add_bar(BAR, BarKind::Io, BAR_SIZE, window);
            let config = endpoint.config_mut();
            // Serial bus release number, a clock of 48 MHz, and legacy support, which only firmware with an SMI handler uses.
            config.define(0x60, &[0x10]);
            config.define(0x6a, &[1]);
            config.define(0xc0, &0x2000_u16.to_le_bytes());
            config.allow_writes(0xc0, &0x2f00_u16.to_le_bytes());
            Self {
                id: id.into(),
                memory,
                clock: timers.clock().clone(),
                timer,
                devices: Default::default(),
                endpoint: Mutex::new(endpoint),
                registers: Mutex::new(Registers::new()),
            }
        })
    }

    fn drive(&self, registers: &Registers) {
        lock(&self.endpoint).set_intx(registers.interrupts());
    }

    /// Gives a transaction to the devices on enabled ports.
    fn transact(
        &self,
        ports: [u16; PORTS],
        transaction: &mut Transaction<'_>,
    ) -> Option<Handshake> {
        let open = |bits: u16| bits & (port::ENABLED | port::SUSPENDED) == port::ENABLED;
        let devices = self.devices.iter().zip(ports).filter(|(_, bits)| open(*bits));
        devices.filter_map(|(device, _)| device.get()).find_map(|d| d.transact(transaction))
    }

    /// Walks the frames that are due and arms the timer for the next.
    fn walk_frames(&self) {
        let mut registers = lock(&self.registers);
        if !registers.runs() {
            return;
        }
        let now = self.clock.now_ns();
        let due = registers.due(now);
        let skipped = due.saturating_sub(MAX_BEHIND);
        registers.frame = registers.frame.wrapping_add(skipped as u16) & FRAME_MASK;
        for _ in skipped..due {
            if !registers.runs() {
                break;
            }
            self.walk_frame(&mut registers);
        }
        registers.next_ns = registers.next_ns.saturating_add(due.saturating_mul(FRAME_NS));
        self.arm(&registers);
        self.drive(&registers);
    }

    fn walk_frame(&self, registers: &mut Registers) {
        let entry = registers.base + u32::from(registers.frame & 0x3ff) * 4;
        let ports = registers.ports;
        let mut transact = |transaction: &mut Transaction<'_>| self.transact(ports, transaction);
        let mut walk = Walk::new(&self.memory, &mut transact);
        let end = walk.frame(entry);
        registers.frame = (registers.frame + 1) & FRAME_MASK;
        if walk.reasons != 0 {
            registers.status |= status::INTERRUPT;
            registers.reasons |= walk.reasons;
        }
        if walk.failed {
            registers.status |= status::ERROR;
        }
        registers.idle = if walk.progress { 0 } else { (registers.idle + 1).min(IDLE_AFTER) };
        match end {
            Ok(()) => {}
            Err(Fault::Memory) => registers.halt(status::HOST_ERROR),
            Err(Fault::Schedule) => registers.halt(status::PROCESS_ERROR),
        }
    }

    /// Arms the timer for the next frame, or the next batch.
    fn arm(&self, registers: &Registers) {
        if !registers.runs() {
            self.timer.disarm();
            return;
        }
        let frames = if registers.idle < IDLE_AFTER { 0 } else { IDLE_FRAMES - 1 };
        self.timer.arm(registers.next_ns.saturating_add(frames * FRAME_NS));
    }

    fn read_register(&self, offset: u64) -> u16 {
        let registers = lock(&self.registers);
        match offset {
            reg::COMMAND => registers.command,
            reg::STATUS => registers.status,
            reg::INTERRUPT => registers.enable,
            reg::FRAME => {
                // Frames that wait for their batch have passed on the bus.
                let due = if registers.runs() { registers.due(self.clock.now_ns()) } else { 0 };
                registers.frame.wrapping_add(due as u16) & FRAME_MASK
            }
            reg::BASE_LOW => registers.base as u16,
            reg::BASE_HIGH => (registers.base >> 16) as u16,
            reg::SOF => registers.sof.into(),
            reg::PORT_1 => registers.ports[0],
            reg::PORT_2 => registers.ports[1],
            _ => 0xff7f,
        }
    }

    fn write_register(&self, offset: u64, value: u16, mask: u16) {
        let mut registers = lock(&self.registers);
        let merge = |old: u16| old & !mask | value & mask;
        let written = value & mask;
        match offset {
            reg::COMMAND => {
                let value = merge(registers.command);
                self.write_command(&mut registers, value & command::ALL);
            }
            reg::STATUS => {
                registers.status &= !(written & status::CLEARED);
                if registers.status & status::INTERRUPT == 0 {
                    registers.reasons = 0;
                }
            }
            reg::INTERRUPT => registers.enable = merge(registers.enable) & enable::ALL,
            reg::FRAME if !registers.runs() => {
                registers.frame = merge(registers.frame) & FRAME_MASK;
            }
            reg::BASE_LOW => {
                let low = merge(registers.base as u16) & 0xf000;
                registers.base = registers.base & 0xffff_0000 | u32::from(low);
            }
            reg::BASE_HIGH => {
                let high = merge((registers.base >> 16) as u16);
                registers.base = registers.base & 0xffff | u32::from(high) << 16;
            }
            reg::SOF if mask & 0xff != 0 => registers.sof = value as u8 & 0x7f,
            reg::PORT_1 => self.write_port(&mut registers, 0, value, mask),
            reg::PORT_2 => self.write_port(&mut registers, 1, value, mask),
            _ => {}
        }
        self.drive(&registers);
    }

    fn write_command(&self, registers: &mut Registers, value: u16) {
        if value & command::HOST_RESET != 0 {
            self.reset_registers(registers);
            self.arm(registers);
            return;
        }
        let before = std::mem::replace(&mut registers.command, value);
        let rises = |bit: u16| value & !before & bit != 0;
        if rises(command::GLOBAL_RESET) {
            registers.ports = self.idle_ports();
            for device in self.devices.iter().filter_map(OnceLock::get) {
                device.bus_reset();
            }
        }
        if rises(command::RUN) {
            registers.status &= !status::HALTED;
            registers.next_ns = self.clock.now_ns().saturating_add(FRAME_NS);
            registers.idle = 0;
        }
        if value & command::RUN == 0 {
            // The frames until now have passed.
            if before & command::RUN != 0 {
                let due = registers.due(self.clock.now_ns());
                registers.frame = registers.frame.wrapping_add(due as u16) & FRAME_MASK;
            }
            registers.status |= status::HALTED;
        }
        self.arm(registers);
    }

    fn write_port(&self, registers: &mut Registers, index: usize, value: u16, mask: u16) {
        let before = registers.ports[index];
        let device = self.devices[index].get();
        let writable = port::WRITABLE & mask;
        let mut bits = before & !writable | value & writable;
        bits &= !(value & mask & port::CLEARED);
        if bits & port::RESET != 0 {
            bits &= !(port::ENABLED | port::SUSPENDED | port::RESUME);
            if before & port::RESET == 0
                && let Some(device) = device
            {
                device.bus_reset();
            }
        }
        // Software ends a resume, which ends the suspension.
        if before & port::RESUME != 0 && bits & port::RESUME == 0 {
            bits &= !port::SUSPENDED;
        }
        if device.is_none() {
            bits &= !port::ENABLED;
        }
        registers.ports[index] = bits;
        // A device that was cut off may have something to say.
        registers.idle = 0;
        self.arm(registers);
    }

    /// The ports' registers as after a reset.
    fn idle_ports(&self) -> [u16; PORTS] {
        std::array::from_fn(|index| match self.devices[index].get() {
            Some(_) => port::ALWAYS | port::CONNECTED | port::CONNECT_CHANGE,
            None => port::ALWAYS,
        })
    }

    fn reset_registers(&self, registers: &mut Registers) {
        *registers = Registers { ports: self.idle_ports(), ..Registers::new() };
        for device in self.devices.iter().filter_map(OnceLock::get) {
            device.bus_reset();
        }
    }
}

/// The registers, wherever they are.
struct Window(Weak<Uhci>);

impl BusDevice for Window {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let Some(uhci) = self.0.upgrade() else { return u64::MAX };
        let first = offset & !1;
        let words = (0..4).map(|i| u64::from(uhci.read_register(first + 2 * i)) << (16 * i));
        let words = words.take(usize::from((offset & 1) as u8 + size).div_ceil(2));
        let value = words.fold(0, |all, word| all | word) >> (8 * (offset & 1));
        value & (u64::MAX >> (64 - 8 * u32::from(size.clamp(1, 8))))
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        let Some(uhci) = self.0.upgrade() else { return };
        let bytes = u64::MAX >> (64 - 8 * u32::from(size.clamp(1, 8)));
        let shift = 8 * (offset & 1) as u32;
        // Past the last register a misaligned access falls off.
        let (value, mask) = ((value & bytes) << shift, bytes << shift);
        for i in 0..4 {
            let mask = (mask >> (16 * i)) as u16;
            if mask != 0 {
                let at = (offset & !1) + 2 * i;
                uhci.write_register(at, (value >> (16 * i)) as u16, mask);
            }
        }
    }
}

impl Upstream for Uhci {
    fn wake(&self, index: usize, resume: bool) {
        let mut registers = lock(&self.registers);
        let bits = registers.ports[index];
        let suspended = bits & port::SUSPENDED != 0
            || registers.command & command::GLOBAL_SUSPEND != 0 && bits & port::CONNECTED != 0;
        if suspended && resume {
            registers.ports[index] |= port::RESUME;
            registers.status |= status::RESUME;
            self.drive(&registers);
        }
        registers.idle = 0;
        self.arm(&registers);
    }
}

impl Ports for Uhci {
    fn count(&self) -> usize {
        PORTS
    }

    fn plug(&self, index: usize, device: Arc<Peripheral>) {
        if self.devices[index].set(device).is_ok() {
            let mut registers = lock(&self.registers);
            registers.ports[index] |= port::CONNECTED | port::CONNECT_CHANGE;
        }
    }
}

impl PciFunction for Uhci {
    fn read_config(&self, offset: u16, size: u8) -> u32 {
        lock(&self.endpoint).read(offset, size)
    }

    fn write_config(&self, offset: u16, size: u8, value: u32) {
        lock(&self.endpoint).write(offset, size, value);
    }
}

impl Device for Uhci {
    fn id(&self) -> String {
        self.id.clone()
    }

    fn reset(&self) {
        let mut registers = lock(&self.registers);
        self.reset_registers(&mut registers);
        self.arm(&registers);
        lock(&self.endpoint).reset();
    }

    fn save(&self) -> Saved {
        let registers = lock(&self.registers).clone();
        let endpoint = lock(&self.endpoint).save();
        Saved::new(&UhciState { endpoint, registers })
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let state: UhciState = saved.decode()?;
        let mut registers = lock(&self.registers);
        let mut endpoint = lock(&self.endpoint);
        endpoint
            .check(&state.endpoint)
            .map_err(|reason| RestoreError::Damaged { name: UhciState::NAME, reason })?;
        endpoint.restore(&state.endpoint);
        drop(endpoint);
        *registers = state.registers;
        self.arm(&registers);
        self.drive(&registers);
        Ok(())
    }
}
