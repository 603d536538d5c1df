//! The watchdog of Intel's 6300ESB I/O controller hub.
//!
//! Follows its data sheet (300641), chapter 15. The time has two stages, each with a length of its own:
//! the first ends in an interrupt, the second in a reset of the machine. Registers in memory can be
//! written after the bytes 80h and 86h were written to the last of them. A reset remembers whether the
//! watchdog caused it.
//!
//! The interrupt of the first stage goes to a second I/O APIC or to system management, neither of which
//! the boards that have this function as an add-on wire up: it only shows in its status bit.

use std::sync::{Arc, Mutex, MutexGuard, Weak};

use bus::{BusDevice, Clock, Device, MachineControl, Notice, Timer, TimerQueue};
use serde::{Deserialize, Serialize};
use vmstate::{RestoreError, Saved, State};

use crate::lock;
use crate::pci::{BarKind, EndpointState, Identity, PciEndpoint, PciFunction, PciWiring};

const IDENTITY: Identity = Identity {
    vendor: 0x8086,
    device: 0x25ab,
    revision: 0,
    class: 0x08_80_00,
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
};

/// In configuration space: how it counts and what it causes.
const CONFIG: u16 = 0x60;
/// A count is a microsecond, about, not a millisecond.
const CONFIG_FAST: u8 = 1 << 2;
/// The second stage causes nothing.
const CONFIG_NO_OUTPUT: u8 = 1 << 5;
/// Kind of interrupt, and those.
const CONFIG_WRITABLE: u8 = 0x03 | CONFIG_FAST | CONFIG_NO_OUTPUT;

/// In configuration space: whether it runs.
const LOCK: u16 = 0x68;
/// The register can't be written any more, until a reset.
const LOCK_LOCKED: u8 = 1 << 0;
const LOCK_ENABLED: u8 = 1 << 1;
/// The second stage starts the first again.
const LOCK_FREE_RUNNING: u8 = 1 << 2;
const LOCK_WRITABLE: u8 = LOCK_LOCKED | LOCK_ENABLED | LOCK_FREE_RUNNING;

/// In memory: the stages' lengths.
const PRELOAD_1: u64 = 0x00;
const PRELOAD_2: u64 = 0x04;
/// Interrupt status.
const STATUS: u64 = 0x08;
/// Takes the unlocking bytes, then these bits.
const RELOAD: u64 = 0x0c;
const BAR_SIZE: u64 = 16;

const STATUS_STAGE_1: u8 = 1 << 0;
/// Start the first stage again.
const RELOAD_PING: u16 = 1 << 8;
/// The last reset was the watchdog's; cleared by writing one.
const RELOAD_TIMED_OUT: u16 = 1 << 9;
/// The place of that bit in the first edition of the data sheet, where drivers look for it.
const RELOAD_TIMED_OUT_OLD: u16 = 1 << 12;
const PRELOAD_MASK: u32 = 0xf_ffff;

/// What it counts, in hertz: the PCI clock.
const CLOCK_HZ: u64 = 33_000_000;

/// How far software is with unlocking the registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Unlocking {
    #[default]
    Locked,
    First,
    Unlocked,
}

/// The stage that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Stage {
    First,
    Second,
}

/// What it holds besides configuration space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Values {
    preload: [u32; 2],
    unlocking: Unlocking,
    status: u8,
    /// The last reset was its own.
    timed_out: bool,
    /// The stage that runs, and the guest time at which it ends, in nanoseconds.
    running: Option<(Stage, u64)>,
}

impl Default for Values {
    fn default() -> Self {
        Self {
            preload: [PRELOAD_MASK; 2],
            unlocking: Unlocking::default(),
            status: 0,
            timed_out: false,
            running: None,
        }
    }
}

/// Saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct I6300EsbState {
    endpoint: EndpointState,
    values: Values,
}

impl State for I6300EsbState {
    const NAME: &'static str = "i6300esb";
    const VERSION: u32 = 1;

    fn validate(&self) -> Result<(), String> {
        let Values { preload, status, .. } = &self.values;
        if preload.iter().any(|count| count & !PRELOAD_MASK != 0) || status & !STATUS_STAGE_1 != 0 {
            return Err(format!("preload values {preload:x?}, status {status:#x}"));
        }
        Ok(())
    }
}

struct Registers {
    endpoint: PciEndpoint,
    values: Values,
}

impl Registers {
    fn config(&self) -> u8 {
        self.endpoint.read(CONFIG, 1) as u8
    }

    fn lock(&self) -> u8 {
        self.endpoint.read(LOCK, 1) as u8
    }

    /// Nanoseconds of a stage.
    fn length_ns(&self, stage: Stage) -> u64 {
        let shift = if self.config() & CONFIG_FAST != 0 { 5 } else { 15 };
        let ticks = u64::from(self.values.preload[stage as usize]) << shift;
        (u128::from(ticks) * 1_000_000_000 / u128::from(CLOCK_HZ)) as u64
    }
}

/// The function.
pub struct I6300Esb {
    path: String,
    clock: Clock,
    timer: Timer,
    control: Arc<dyn MachineControl>,
    registers: Mutex<Registers>,
}

impl I6300Esb {
    /// A function named `path` that tells `control`.
    pub fn new(
        path: &str,
        wiring: PciWiring,
        timers: &TimerQueue,
        control: Arc<dyn MachineControl>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| {
            let mut endpoint = PciEndpoint::new(&IDENTITY, PciWiring { pin: 0, ..wiring });
            let kind = BarKind::Memory32 { prefetchable: false };
            endpoint.add_bar(0, kind, BAR_SIZE, Arc::new(Bar(this.clone())));
            endpoint.config_mut().allow_writes(CONFIG, &[CONFIG_WRITABLE]);
            endpoint.config_mut().allow_writes(LOCK, &[LOCK_WRITABLE]);
            let this = this.clone();
            let timer = timers.timer(move || {
                if let Some(watchdog) = this.upgrade() {
                    watchdog.expire();
                }
            });
            let registers = Mutex::new(Registers { endpoint, values: Values::default() });
            let (path, clock) = (path.to_owned(), timers.clock().clone());
            Self { path, clock, timer, control, registers }
        })
    }

    fn registers(&self) -> MutexGuard<'_, Registers> {
        lock(&self.registers)
    }

    /// Arms the timer for the end of what runs.
    fn arm(&self, registers: &Registers) {
        match registers.values.running {
            Some((_, end)) => self.timer.arm(end),
            None => self.timer.disarm(),
        }
    }

    /// Starts a stage, if the watchdog is enabled at all.
    fn start(&self, registers: &mut Registers, stage: Stage) {
        let enabled = registers.lock() & LOCK_ENABLED != 0;
        let end = self.clock.now_ns().saturating_add(registers.length_ns(stage));
        registers.values.running = enabled.then_some((stage, end));
        self.arm(registers);
    }

    fn expire(&self) {
        let mut registers = self.registers();
        let now = self.clock.now_ns();
        // It may have been fed in this moment.
        let Some((stage, _)) = registers.values.running.filter(|&(_, end)| end <= now) else {
            return;
        };
        if stage == Stage::First {
            registers.values.status |= STATUS_STAGE_1;
            self.start(&mut registers, Stage::Second);
        } else if registers.config() & CONFIG_NO_OUTPUT == 0 {
            registers.values.timed_out = true;
            // What resets the machine resets the watchdog; and so it is where the machine does
            // something else about it.
            self.power_on(&mut registers);
            self.control.notify(Notice::WatchdogExpired);
        } else if registers.lock() & LOCK_FREE_RUNNING != 0 {
            self.start(&mut registers, Stage::First);
        } else {
            registers.values.running = None;
        }
    }

    /// All as after power-on, except what a reset is to find.
    fn power_on(&self, registers: &mut Registers) {
        let timed_out = registers.values.timed_out;
        for (offset, mask) in [(CONFIG, CONFIG_WRITABLE), (LOCK, LOCK_WRITABLE)] {
            let kept = registers.endpoint.read(offset, 1) as u8 & !mask;
            registers.endpoint.config_mut().set(offset, &[kept]);
        }
        registers.values = Values { timed_out, ..Values::default() };
        self.arm(registers);
    }

    /// A write to the reload register, in which software also unlocks the others.
    fn write_reload(&self, registers: &mut Registers, value: u16) {
        let unlocking = std::mem::take(&mut registers.values.unlocking);
        match (unlocking, value) {
            (_, 0x80) => registers.values.unlocking = Unlocking::First,
            (Unlocking::First, 0x86) => registers.values.unlocking = Unlocking::Unlocked,
            (Unlocking::Unlocked, _) => {
                if value & RELOAD_PING != 0 {
                    self.start(registers, Stage::First);
                }
                if value & (RELOAD_TIMED_OUT | RELOAD_TIMED_OUT_OLD) != 0 {
                    registers.values.timed_out = false;
                }
            }
            _ => {}
        }
    }
}

struct Bar(Weak<I6300Esb>);

impl BusDevice for Bar {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let Some(watchdog) = self.0.upgrade() else { return 0 };
        let flags = RELOAD_TIMED_OUT | RELOAD_TIMED_OUT_OLD;
        match (offset, size) {
            (RELOAD, 2) if watchdog.registers().values.timed_out => flags.into(),
            _ => 0,
        }
    }

    fn write(&self, offset: u64, _size: u8, value: u64) {
        let Some(watchdog) = self.0.upgrade() else { return };
        let mut registers = watchdog.registers();
        if offset == RELOAD {
            watchdog.write_reload(&mut registers, value as u16);
            return;
        }
        let unlocked = registers.values.unlocking == Unlocking::Unlocked;
        match offset {
            PRELOAD_1 if unlocked => registers.values.preload[0] = value as u32 & PRELOAD_MASK,
            PRELOAD_2 if unlocked => registers.values.preload[1] = value as u32 & PRELOAD_MASK,
            STATUS => registers.values.status &= !(value as u8),
            _ => return,
        }
        if offset != STATUS {
            registers.values.unlocking = Unlocking::Locked;
        }
    }
}

impl PciFunction for I6300Esb {
    fn read_config(&self, offset: u16, size: u8) -> u32 {
        self.registers().endpoint.read(offset, size)
    }

    fn write_config(&self, offset: u16, size: u8, value: u32) {
        let mut registers = self.registers();
        let before = registers.lock();
        registers.endpoint.write(offset, size, value);
        let after = registers.lock();
        if before & LOCK_LOCKED != 0 {
            registers.endpoint.config_mut().set(LOCK, &[before]);
        } else if after & LOCK_ENABLED == 0 {
            registers.values.running = None;
            self.arm(&registers);
        } else if before & LOCK_ENABLED == 0 {
            self.start(&mut registers, Stage::First);
        }
    }
}

impl Device for I6300Esb {
    fn id(&self) -> String {
        self.path.clone()
    }

    fn reset(&self) {
        let mut registers = self.registers();
        registers.endpoint.reset();
        self.power_on(&mut registers);
    }

    fn save(&self) -> Saved {
        let registers = self.registers();
        Saved::new(&I6300EsbState {
            endpoint: registers.endpoint.save(),
            values: registers.values.clone(),
        })
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let state: I6300EsbState = saved.decode()?;
        let mut registers = self.registers();
        registers
            .endpoint
            .check(&state.endpoint)
            .map_err(|reason| RestoreError::Damaged { name: I6300EsbState::NAME, reason })?;
        registers.endpoint.restore(&state.endpoint);
        registers.values = state.values;
        self.arm(&registers);
        Ok(())
    }
}
