//! The MC146818 real-time clock of a PC with its CMOS memory.
//!
//! Follows Motorola's MC146818A data sheet. The bytes past the clock's own registers are memory; what
//! the board writes there for firmware comes from [`Mc146818::set_memory`].
//!
//! The time is a reference (the host's clock, or guest time) plus an offset that changes when the guest
//! sets the clock. Flags of register C are brought up to date when somebody looks or a timer for an
//! enabled interrupt expires, so an idle clock costs nothing.
//!
//! The periodic interrupt goes by the divider's clocks of 32,768 Hz, and each of its periods begins with the
//! tick before, also where the guest changes the rate: so do other machines of this kind, and what sets the
//! rate of the next tick in the handler of this one, relies on it. (The chip's own come from a tap of the
//! divider, whose next edge may be nearer.)
//!
//! Periodic ticks that the guest had no time for are lost, or are made up for with
//! [`RtcConfig::slew`]: then each acknowledgement of one brings on the next. Bit 7 of the index would mask
//! NMI; what raises NMIs here does so on behalf of a person, and does not ask it.

mod calendar;
mod reference;
#[cfg(test)]
mod tests;
mod time;

use std::sync::{Arc, Mutex, Weak};

use bus::{
    AddressSpace, Clock, Device, IrqLine, MachineControl, MapError, Notice, Timer, TimerQueue,
    WakeCause,
};
use serde::{Deserialize, Serialize};
use vmstate::{RestoreError, Saved, State};

use crate::isa::{PortDevice, map_ports};
use crate::lock;
pub use reference::Reference;
use time::NS;

/// Index port; the data port follows.
pub const PORT: u16 = 0x70;
/// Bytes of registers and memory.
const SIZE: usize = 128;

/// Registers.
mod reg {
    pub(super) const SECONDS: usize = 0x00;
    pub(super) const SECONDS_ALARM: usize = 0x01;
    pub(super) const MINUTES: usize = 0x02;
    pub(super) const MINUTES_ALARM: usize = 0x03;
    pub(super) const HOURS: usize = 0x04;
    pub(super) const HOURS_ALARM: usize = 0x05;
    pub(super) const WEEKDAY: usize = 0x06;
    pub(super) const DAY: usize = 0x07;
    pub(super) const MONTH: usize = 0x08;
    pub(super) const YEAR: usize = 0x09;
    pub(super) const A: usize = 0x0a;
    pub(super) const B: usize = 0x0b;
    pub(super) const C: usize = 0x0c;
    pub(super) const D: usize = 0x0d;
    /// First byte of memory.
    pub(super) const MEMORY: usize = 0x0e;
    pub(super) const CENTURY: usize = 0x32;
    /// Where the IBM PS/2 has the century.
    pub(super) const CENTURY_PS2: usize = 0x37;
}

/// Register A.
const A_UPDATING: u8 = 1 << 7;
const A_DIVIDER: u8 = 7 << 4;
const A_DIVIDER_RESET: u8 = 6 << 4;
const A_RATE: u8 = 0xf;
/// Register B.
const B_SET: u8 = 1 << 7;
const B_PERIODIC: u8 = 1 << 6;
const B_ALARM: u8 = 1 << 5;
const B_UPDATE: u8 = 1 << 4;
const B_BINARY: u8 = 1 << 2;
const B_24_HOURS: u8 = 1 << 1;
/// Register C: what happened, with the bits of register B that enable its interrupt.
const C_ANY: u8 = 1 << 7;
const C_SOURCES: u8 = B_PERIODIC | B_ALARM | B_UPDATE;
/// Register D: the battery is good.
const D_VALID: u8 = 1 << 7;

/// Most missed ticks that are made up for.
const MISSED_MAX: u64 = 1000;

/// Frequency of the divider.
const DIVIDER_HZ: u128 = 32_768;

/// How long before the end of a second the update in progress shows, in nanoseconds.
const UPDATE_NS: u64 = 8 * 1_000_000_000 / DIVIDER_HZ as u64;

/// What the clock shows when the machine is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RtcBase {
    /// The host's time in UTC.
    #[default]
    Utc,
    /// The host's local time: this many seconds east of UTC.
    LocalTime {
        /// Seconds to add to UTC.
        offset_seconds: i64,
    },
    /// This time, in seconds since 1970.
    At(i64),
}

/// What moves the clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RtcSource {
    /// The host's wall clock: it goes on while the machine is stopped.
    #[default]
    Host,
    /// The host's clock that nobody sets.
    HostMonotonic,
    /// Guest time.
    Guest,
}

/// How the clock is made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RtcConfig {
    /// What it shows.
    pub base: RtcBase,
    /// What moves it.
    pub source: RtcSource,
    /// Whether missed ticks of the periodic interrupt are made up for.
    pub slew: bool,
}

/// Saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mc146818State {
    /// Registers and memory; the time is in here only while it stands still.
    cmos: Vec<u8>,
    index: u8,
    /// The time: nanoseconds to add to the reference for nanoseconds since 1970.
    offset_ns: i128,
    /// Nanoseconds since 1970 up to which updates and alarms are in register C.
    seen_ns: i128,
    /// The last periodic tick, or when there began to be any, in guest time by clocks of the divider.
    last_tick: u64,
    /// Periodic ticks that the guest is yet to get.
    missed: u32,
}

impl State for Mc146818State {
    const NAME: &'static str = "mc146818";
    const VERSION: u32 = 3;

    fn validate(&self) -> Result<(), String> {
        if self.cmos.len() != SIZE {
            return Err(format!("{} bytes of CMOS memory", self.cmos.len()));
        }
        if usize::from(self.index) >= SIZE {
            return Err(format!("index {:#x}", self.index));
        }
        // Registers can say up to the year 16,755; arithmetic has room beyond.
        let most = 20_000 * 366 * 86_400 * NS;
        if self.offset_ns.abs() > most || self.seen_ns.abs() > most {
            return Err("a time beyond all calendars".into());
        }
        Ok(())
    }
}

/// The clock.
pub struct Mc146818 {
    reference: Arc<Reference>,
    irq: IrqLine,
    control: Arc<dyn MachineControl>,
    clock: Clock,
    timer: Timer,
    state: Mutex<Mc146818State>,
}

impl Mc146818 {
    /// A clock that `reference` moves, with timers on `timers`; it interrupts on `irq`, and tells `control`
    /// when it is set.
    pub fn new(
        reference: Arc<Reference>,
        timers: &TimerQueue,
        irq: IrqLine,
        control: Arc<dyn MachineControl>,
    ) -> Arc<Self> {
        let clock = timers.clock().clone();
        Arc::new_cyclic(|this: &Weak<Self>| {
            let this = this.clone();
            let timer = timers.timer(move || {
                if let Some(rtc) = this.upgrade() {
                    rtc.refresh(&mut lock(&rtc.state));
                }
            });
            let state = Mutex::new(Mc146818State {
                cmos: vec![0; SIZE],
                index: 0,
                offset_ns: reference.initial_offset_ns(),
                seen_ns: 0,
                last_tick: 0,
                missed: 0,
            });
            let rtc = Self { reference, irq, control, clock, timer, state };
            rtc.power_on(&mut lock(&rtc.state));
            rtc
        })
    }

    /// Maps the ports.
    ///
    /// # Errors
    /// Never in a space of 64 Ki ports.
    pub fn attach(self: &Arc<Self>, ports: &AddressSpace) -> Result<(), MapError> {
        map_ports(ports, PORT, 2, self.clone())?;
        Ok(())
    }

    /// Nanoseconds since 1970, as the clock shows it now.
    pub fn time_ns(&self) -> i128 {
        let state = lock(&self.state);
        self.now(&state)
    }

    /// Puts a byte where firmware looks for it, past registers and clock: `at` is from 0x0e on. It stays
    /// over a reset.
    pub fn set_memory(&self, at: u8, value: u8) {
        let at = usize::from(at);
        if (reg::MEMORY..SIZE).contains(&at) && !time::is_time(at) {
            lock(&self.state).cmos[at] = value;
        }
    }

    /// Forgets the periodic ticks that the guest had no time for.
    pub fn forget_missed_ticks(&self) {
        lock(&self.state).missed = 0;
    }

    fn now(&self, state: &Mc146818State) -> i128 {
        self.reference.ns() + state.offset_ns
    }

    fn power_on(&self, state: &mut Mc146818State) {
        state.cmos = vec![0; SIZE];
        state.index = 0;
        state.cmos[reg::A] = 0x26;
        state.cmos[reg::B] = B_24_HOURS;
        state.cmos[reg::D] = D_VALID;
        state.store_time(self.now(state));
        state.seen_ns = self.now(state);
        state.last_tick = self.clocks();
    }

    /// Whether the time stands still, by SET or by a divider that is held in reset.
    fn is_halted(state: &Mc146818State) -> bool {
        state.cmos[reg::B] & B_SET != 0 || state.cmos[reg::A] & A_DIVIDER >= A_DIVIDER_RESET
    }

    /// Length of the periodic interrupt's period in clocks of the divider, if a rate is selected.
    fn period(state: &Mc146818State) -> Option<u64> {
        let rate = match state.cmos[reg::A] & A_RATE {
            0 => return None,
            rate @ 1..=2 => rate + 7,
            rate => rate,
        };
        Some(1 << (rate - 1))
    }

    /// Clocks of the divider since guest time began.
    fn clocks(&self) -> u64 {
        (u128::from(self.clock.now_ns()) * DIVIDER_HZ / 1_000_000_000) as u64
    }

    /// Brings register C up to date, drives the line, and arms the timer for what comes next.
    fn refresh(&self, state: &mut Mc146818State) {
        let now = self.now(state);
        let mut happened = 0;
        if !Self::is_halted(state) {
            if now.div_euclid(NS) > state.seen_ns.div_euclid(NS) {
                happened |= B_UPDATE;
            }
            if state.next_alarm(state.seen_ns).is_some_and(|alarm| alarm <= now) {
                happened |= B_ALARM;
            }
        }
        // A reference that went back must not count the same second twice.
        state.seen_ns = now;
        if let Some(period) = Self::period(state) {
            let ticks = self.clocks().saturating_sub(state.last_tick) / period;
            if ticks > 0 {
                happened |= B_PERIODIC;
                let waits = state.cmos[reg::C] & B_PERIODIC != 0;
                let late = ticks - u64::from(!waits);
                if self.reference.makes_up() && state.cmos[reg::B] & B_PERIODIC != 0 {
                    let missed = u64::from(state.missed).saturating_add(late);
                    state.missed = missed.min(MISSED_MAX) as u32;
                }
            }
            state.last_tick += ticks * period;
        }
        let c = &mut state.cmos[reg::C];
        *c |= happened;
        if happened & state.cmos[reg::B] & B_ALARM != 0 {
            self.control.notify(Notice::Wake(WakeCause::Rtc));
        }
        self.drive(state);
        self.arm(state, now);
    }

    /// Register C's summary bit, and the line.
    fn drive(&self, state: &mut Mc146818State) {
        let active = state.cmos[reg::C] & state.cmos[reg::B] & C_SOURCES != 0;
        let c = &mut state.cmos[reg::C];
        *c = *c & C_SOURCES | if active { C_ANY } else { 0 };
        self.irq.set(active);
    }

    fn arm(&self, state: &Mc146818State, now: i128) {
        let enabled = state.cmos[reg::B] & C_SOURCES & !state.cmos[reg::C];
        let guest_now = self.clock.now_ns();
        let halted = Self::is_halted(state);
        let at = |time: i128| {
            let ahead = u64::try_from((time - now).max(1)).unwrap_or(u64::MAX);
            guest_now.saturating_add(ahead)
        };
        let mut next: Option<u64> = None;
        let mut consider = |time: u64| next = Some(next.map_or(time, |n| n.min(time)));
        if enabled & B_UPDATE != 0 && !halted {
            consider(at((now.div_euclid(NS) + 1) * NS));
        }
        if enabled & B_ALARM != 0
            && !halted
            && let Some(alarm) = state.next_alarm(now)
        {
            consider(at(alarm));
        }
        if enabled & B_PERIODIC != 0
            && let Some(period) = Self::period(state)
        {
            let clocks = u128::from(state.last_tick) + u128::from(period);
            let ns = (clocks * 1_000_000_000).div_ceil(DIVIDER_HZ);
            consider(u64::try_from(ns).unwrap_or(u64::MAX));
        }
        match next {
            Some(time) => self.timer.arm(time),
            None => self.timer.disarm(),
        }
    }

    fn read_register(&self, state: &mut Mc146818State, index: usize) -> u8 {
        match index {
            reg::A => {
                let into = self.now(state).rem_euclid(NS) as u64;
                let updating = !Self::is_halted(state) && into >= NS as u64 - UPDATE_NS;
                state.cmos[reg::A] | if updating { A_UPDATING } else { 0 }
            }
            reg::C => {
                self.refresh(state);
                let value = std::mem::take(&mut state.cmos[reg::C]);
                self.irq.set(false);
                if state.missed > 0 && state.cmos[reg::B] & B_PERIODIC != 0 {
                    state.missed -= 1;
                    state.cmos[reg::C] |= B_PERIODIC;
                    self.drive(state);
                }
                self.arm(state, self.now(state));
                value
            }
            _ => {
                if time::is_time(index) && !Self::is_halted(state) {
                    state.store_time(self.now(state));
                }
                state.cmos[index]
            }
        }
    }

    fn write_register(&self, state: &mut Mc146818State, index: usize, value: u8) {
        match index {
            reg::A | reg::B => self.write_control(state, index, value),
            reg::C | reg::D => {}
            _ if time::is_time(index) => {
                let running = !Self::is_halted(state);
                let now = self.now(state);
                if running {
                    state.store_time(now);
                }
                state.cmos[index] = value;
                if running {
                    self.set_time(state, now.rem_euclid(NS));
                }
            }
            reg::SECONDS_ALARM | reg::MINUTES_ALARM | reg::HOURS_ALARM => {
                // What the old alarm has done until now stays done.
                self.refresh(state);
                state.cmos[index] = value;
                self.refresh(state);
            }
            _ => state.cmos[index] = value,
        }
    }

    fn write_control(&self, state: &mut Mc146818State, index: usize, value: u8) {
        self.refresh(state);
        let was_halted = Self::is_halted(state);
        let divider_was_reset = state.cmos[reg::A] & A_DIVIDER >= A_DIVIDER_RESET;
        if !was_halted {
            state.store_time(self.now(state));
        }
        if index == reg::A {
            if Self::period(state).is_none() {
                state.last_tick = self.clocks();
            }
            state.cmos[reg::A] = value & !A_UPDATING;
        } else {
            state.cmos[reg::B] = value;
            if value & B_SET != 0 {
                state.cmos[reg::B] &= !B_UPDATE;
            }
        }
        if was_halted && !Self::is_halted(state) {
            // The first update comes half a second after the divider starts.
            let into = if divider_was_reset { NS / 2 } else { self.now(state).rem_euclid(NS) };
            self.set_time(state, into);
        }
        state.seen_ns = self.now(state);
        if state.cmos[reg::B] & B_PERIODIC == 0 {
            state.missed = 0;
        }
        self.drive(state);
        self.arm(state, state.seen_ns);
    }

    /// Takes the time from the registers, `into` nanoseconds into the second.
    fn set_time(&self, state: &mut Mc146818State, into: i128) {
        state.offset_ns = state.load_time() * NS + into - self.reference.ns();
        let offset = (state.offset_ns - self.reference.initial_offset_ns()).div_euclid(NS) as i64;
        self.control.notify(Notice::RtcChanged { offset });
        state.seen_ns = self.now(state);
        self.arm(state, state.seen_ns);
    }
}

impl PortDevice for Mc146818 {
    fn read_port(&self, port: u16) -> u8 {
        if port == PORT {
            // The index can't be read back on a PC.
            return 0xff;
        }
        let mut state = lock(&self.state);
        let index = usize::from(state.index);
        self.read_register(&mut state, index)
    }

    fn write_port(&self, port: u16, value: u8) {
        let mut state = lock(&self.state);
        if port == PORT {
            state.index = value & 0x7f;
        } else {
            let index = usize::from(state.index);
            self.write_register(&mut state, index, value);
        }
    }
}

impl Device for Mc146818 {
    fn id(&self) -> String {
        "mc146818".into()
    }

    /// The battery keeps the time, the alarm and the memory; interrupts are off after a reset.
    fn reset(&self) {
        let mut state = lock(&self.state);
        state.index = 0;
        state.cmos[reg::B] &= !C_SOURCES;
        state.cmos[reg::C] = 0;
        state.missed = 0;
        self.irq.set(false);
        self.timer.disarm();
    }

    fn save(&self) -> Saved {
        Saved::new(&*lock(&self.state))
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let restored: Mc146818State = saved.decode()?;
        let mut state = lock(&self.state);
        *state = restored;
        self.drive(&mut state);
        let now = self.now(&state);
        self.arm(&state, now);
        Ok(())
    }
}
