//! `edu`: a PCI function to learn driver writing with.
//!
//! Follows "EDU device" of QEMU's specifications. Registers below 80h take 32-bit accesses only, those
//! of the DMA engine 32- and 64-bit ones; anything else reads as ones (wide) or zero (narrow). A
//! factorial is ready at once. A DMA transfer takes 100 ms of guest time; one that does not lie within
//! the function's 4 KiB buffer moves nothing, and raises its interrupt all the same.

use std::sync::{Arc, Mutex, MutexGuard, Weak};

use bus::{BusDevice, Clock, Device, Timer, TimerQueue};
use memory::GuestMemory;
use serde::{Deserialize, Serialize};
use vmstate::{RestoreError, Saved, State};

use crate::lock;
use crate::pci::{BarKind, EndpointState, Identity, PciEndpoint, PciFunction, PciWiring};

const IDENTITY: Identity = Identity {
    vendor: 0x1234,
    device: 0x11e8,
    revision: 0x10,
    class: 0x00_ff_00,
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
};

const BAR_SIZE: u64 = 1 << 20;
/// Version 1.0 and the function's mark.
const IDENTIFICATION: u32 = 0x0100_00ed;

/// Registers.
mod reg {
    pub(super) const IDENTIFICATION: u64 = 0x00;
    pub(super) const LIVENESS: u64 = 0x04;
    pub(super) const FACTORIAL: u64 = 0x08;
    pub(super) const STATUS: u64 = 0x20;
    pub(super) const INTERRUPT_STATUS: u64 = 0x24;
    pub(super) const INTERRUPT_RAISE: u64 = 0x60;
    pub(super) const INTERRUPT_ACKNOWLEDGE: u64 = 0x64;
    pub(super) const DMA_SOURCE: u64 = 0x80;
    pub(super) const DMA_DESTINATION: u64 = 0x88;
    pub(super) const DMA_COUNT: u64 = 0x90;
    pub(super) const DMA_COMMAND: u64 = 0x98;
}

/// Status: an interrupt follows each factorial.
const STATUS_INTERRUPT: u32 = 0x80;
/// Interrupt status: a factorial is ready; a transfer is done.
const INTERRUPT_FACTORIAL: u32 = 0x001;
const INTERRUPT_DMA: u32 = 0x100;
/// DMA commands.
const DMA_RUN: u64 = 1;
const DMA_FROM_FUNCTION: u64 = 1 << 1;
const DMA_INTERRUPT: u64 = 1 << 2;
/// Where the buffer is in the function's own addresses.
const BUFFER: u64 = 0x4_0000;
const BUFFER_SIZE: usize = 4096;
const DMA_NS: u64 = 100_000_000;

/// Properties.
#[derive(Clone, Copy, Debug)]
pub struct EduConfig {
    /// Address bits that the DMA engine has.
    pub dma_mask: u64,
}

impl Default for EduConfig {
    fn default() -> Self {
        Self { dma_mask: (1 << 28) - 1 }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Dma {
    source: u64,
    destination: u64,
    count: u64,
    command: u64,
    /// When the transfer under way is done, in guest nanoseconds.
    done_ns: Option<u64>,
}

/// What it holds besides configuration space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Values {
    liveness: u32,
    factorial: u32,
    status: u32,
    interrupts: u32,
    dma: Dma,
    buffer: Vec<u8>,
}

impl Default for Values {
    fn default() -> Self {
        Self {
            liveness: 0,
            factorial: 0,
            status: 0,
            interrupts: 0,
            dma: Dma::default(),
            buffer: vec![0; BUFFER_SIZE],
        }
    }
}

/// Saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct EduState {
    endpoint: EndpointState,
    values: Values,
}

impl State for EduState {
    const NAME: &'static str = "edu";
    const VERSION: u32 = 1;

    fn validate(&self) -> Result<(), String> {
        if self.values.buffer.len() != BUFFER_SIZE {
            return Err(format!("buffer of {} bytes", self.values.buffer.len()));
        }
        if self.values.status & !STATUS_INTERRUPT != 0 {
            return Err(format!("status {:#x}", self.values.status));
        }
        let runs = self.values.dma.command & DMA_RUN != 0;
        if runs != self.values.dma.done_ns.is_some() {
            return Err("a transfer that runs without end".into());
        }
        Ok(())
    }
}

struct Registers {
    endpoint: PciEndpoint,
    values: Values,
}

impl Registers {
    fn raise(&mut self, interrupts: u32) {
        self.values.interrupts |= interrupts;
        if self.values.interrupts == 0 {
            return;
        }
        if self.endpoint.is_msi_enabled() {
            self.endpoint.send_msi(0);
        } else {
            self.endpoint.set_intx(true);
        }
    }

    fn acknowledge(&mut self, interrupts: u32) {
        self.values.interrupts &= !interrupts;
        if self.values.interrupts == 0 {
            self.endpoint.set_intx(false);
        }
    }
}

/// The function.
pub struct Edu {
    path: String,
    config: EduConfig,
    memory: Arc<GuestMemory>,
    clock: Clock,
    timer: Timer,
    registers: Mutex<Registers>,
}

impl Edu {
    /// A function named `path` that transfers to and from `memory`.
    pub fn new(
        path: &str,
        config: EduConfig,
        wiring: PciWiring,
        memory: Arc<GuestMemory>,
        timers: &TimerQueue,
    ) -> Arc<Self> {
        let clock = timers.clock().clone();
        Arc::new_cyclic(|this: &Weak<Self>| {
            let mut endpoint = PciEndpoint::new(&IDENTITY, wiring);
            endpoint.add_msi(1);
            let kind = BarKind::Memory32 { prefetchable: false };
            endpoint.add_bar(0, kind, BAR_SIZE, Arc::new(Bar(this.clone())));
            let expiring = this.clone();
            let timer = timers.timer(move || {
                if let Some(edu) = expiring.upgrade() {
                    edu.transfer();
                }
            });
            let registers = Mutex::new(Registers { endpoint, values: Values::default() });
            Self { path: path.to_owned(), config, memory, clock, timer, registers }
        })
    }

    fn registers(&self) -> MutexGuard<'_, Registers> {
        lock(&self.registers)
    }

    fn arm(&self, registers: &Registers) {
        match registers.values.dma.done_ns {
            Some(done_ns) => self.timer.arm(done_ns),
            None => self.timer.disarm(),
        }
    }

    /// Carries out the transfer whose time has come.
    fn transfer(&self) {
        let mut registers = self.registers();
        let Registers { values: Values { dma, buffer, .. }, .. } = &mut *registers;
        if dma.done_ns.is_none_or(|done| done > self.clock.now_ns()) {
            return;
        }
        let to_ram = dma.command & DMA_FROM_FUNCTION != 0;
        let (ram, own) =
            if to_ram { (dma.destination, dma.source) } else { (dma.source, dma.destination) };
        let part = own
            .checked_sub(BUFFER)
            .and_then(|start| Some(start..start.checked_add(dma.count)?))
            .and_then(|part| {
                buffer.get_mut(part.start.try_into().ok()?..part.end.try_into().ok()?)
            });
        if let Some(part) = part {
            let ram = ram & self.config.dma_mask;
            // What is not RAM takes no writes, and reads leave the buffer as it is.
            let _ = if to_ram { self.memory.write(ram, part) } else { self.memory.read(ram, part) };
        }
        let interrupt = dma.command & DMA_INTERRUPT != 0;
        dma.command &= !DMA_RUN;
        dma.done_ns = None;
        if interrupt {
            registers.raise(INTERRUPT_DMA);
        }
    }

    fn read_register(&self, offset: u64, size: u8) -> u64 {
        let wide_register = offset >= reg::DMA_SOURCE;
        match size {
            4 => {}
            8 if wide_register => {}
            8 => return u64::MAX,
            _ => return 0,
        }
        let registers = self.registers();
        let values = &registers.values;
        let value = match offset {
            reg::IDENTIFICATION => IDENTIFICATION.into(),
            reg::LIVENESS => values.liveness.into(),
            reg::FACTORIAL => values.factorial.into(),
            reg::STATUS => values.status.into(),
            reg::INTERRUPT_STATUS => values.interrupts.into(),
            reg::DMA_SOURCE => values.dma.source,
            reg::DMA_DESTINATION => values.dma.destination,
            reg::DMA_COUNT => values.dma.count,
            reg::DMA_COMMAND => values.dma.command,
            _ => u64::MAX,
        };
        if size == 4 { value & u64::from(u32::MAX) } else { value }
    }

    fn write_register(&self, offset: u64, size: u8, value: u64) {
        let wide_register = offset >= reg::DMA_SOURCE;
        if size != 4 && !(size == 8 && wide_register) {
            return;
        }
        let value = if size == 4 { value & u64::from(u32::MAX) } else { value };
        let mut registers = self.registers();
        let values = &mut registers.values;
        let idle = values.dma.done_ns.is_none();
        match offset {
            reg::LIVENESS => values.liveness = !(value as u32),
            reg::FACTORIAL => {
                values.factorial = factorial(value as u32);
                if values.status & STATUS_INTERRUPT != 0 {
                    registers.raise(INTERRUPT_FACTORIAL);
                }
            }
            reg::STATUS => values.status = value as u32 & STATUS_INTERRUPT,
            reg::INTERRUPT_RAISE => registers.raise(value as u32),
            reg::INTERRUPT_ACKNOWLEDGE => registers.acknowledge(value as u32),
            reg::DMA_SOURCE if idle => values.dma.source = value,
            reg::DMA_DESTINATION if idle => values.dma.destination = value,
            reg::DMA_COUNT if idle => values.dma.count = value,
            reg::DMA_COMMAND if idle && value & DMA_RUN != 0 => {
                values.dma.command = value;
                values.dma.done_ns = Some(self.clock.now_ns().saturating_add(DMA_NS));
                self.arm(&registers);
            }
            _ => {}
        }
    }
}

/// n! modulo 2^32, which is zero from 34 on.
fn factorial(n: u32) -> u32 {
    (1..=n.min(34)).fold(1, u32::wrapping_mul)
}

/// The register window.
struct Bar(Weak<Edu>);

impl BusDevice for Bar {
    fn read(&self, offset: u64, size: u8) -> u64 {
        self.0.upgrade().map_or(u64::MAX, |edu| edu.read_register(offset, size))
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        if let Some(edu) = self.0.upgrade() {
            edu.write_register(offset, size, value);
        }
    }
}

impl PciFunction for Edu {
    fn read_config(&self, offset: u16, size: u8) -> u32 {
        self.registers().endpoint.read(offset, size)
    }

    fn write_config(&self, offset: u16, size: u8, value: u32) {
        self.registers().endpoint.write(offset, size, value);
    }
}

impl Device for Edu {
    fn id(&self) -> String {
        self.path.clone()
    }

    fn reset(&self) {
        let mut registers = self.registers();
        registers.endpoint.reset();
        registers.values = Values::default();
        self.timer.disarm();
    }

    fn save(&self) -> Saved {
        let registers = self.registers();
        let endpoint = registers.endpoint.save();
        Saved::new(&EduState { endpoint, values: registers.values.clone() })
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let state: EduState = saved.decode()?;
        let mut registers = self.registers();
        registers
            .endpoint
            .check(&state.endpoint)
            .map_err(|reason| RestoreError::Damaged { name: EduState::NAME, reason })?;
        registers.endpoint.restore(&state.endpoint);
        registers.values = state.values;
        self.arm(&registers);
        Ok(())
    }
}
