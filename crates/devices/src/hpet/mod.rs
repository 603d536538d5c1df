//! The high precision event timer.
//!
//! Follows Intel's IA-PC HPET specification 1.0a: a 64-bit counter at 100 MHz and three timers, each
//! one-shot or periodic, edge- or level-triggered, delivered by an interrupt line or by a message. In
//! legacy replacement mode timers 0 and 1 take the interrupts of the 8254 and the real-time clock,
//! whose lines end here ([`PIT_INPUT`], [`RTC_INPUT`]) so that they can be cut off.
//!
//! A comparator that the counter has passed already, as of a late driver, matches at once. A periodic
//! timer that the host was late for makes one interrupt for all periods that were missed.
//!
//! Lock order: the 8254 and the real-time clock, then this, then the interrupt controllers.

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, Weak};

use bus::{BusDevice, Clock, Device, IrqLine, IrqSink, MsiMessage, MsiSink, Timer, TimerQueue};
use serde::{Deserialize, Serialize};
use vmstate::{RestoreError, Saved, State};

use crate::irq::line;
use crate::lock;

/// Guest physical address of the registers.
pub const BASE: u64 = 0xfed0_0000;
/// Length of the register window in bytes.
pub const MMIO_SIZE: u64 = 0x400;
/// Input where the 8254's interrupt ends.
pub const PIT_INPUT: u32 = 0;
/// Input where the real-time clock's interrupt ends.
pub const RTC_INPUT: u32 = 1;

const TIMERS: usize = 3;
/// Nanoseconds of a tick.
const TICK_NS: u64 = 10;
/// Capabilities: the period in femtoseconds, Intel, legacy replacement, 64 bits, the last timer's number,
/// revision 1.
pub const CAPABILITIES: u64 =
    (TICK_NS * 1_000_000) << 32 | 0x8086_0000 | 1 << 15 | 1 << 13 | (TIMERS as u64 - 1) << 8 | 1;

/// Offsets of registers.
mod reg {
    pub(super) const CAPABILITIES: u64 = 0x000;
    pub(super) const CONFIG: u64 = 0x010;
    pub(super) const STATUS: u64 = 0x020;
    pub(super) const COUNTER: u64 = 0x0f0;
    /// First timer; each has 20h bytes.
    pub(super) const TIMER: u64 = 0x100;
    pub(super) const TIMER_SIZE: u64 = 0x20;
    /// Within a timer.
    pub(super) const COMPARATOR: u64 = 0x08;
    pub(super) const MESSAGE: u64 = 0x10;
}

const CONFIG_ENABLE: u64 = 1 << 0;
const CONFIG_LEGACY: u64 = 1 << 1;

const TIMER_LEVEL: u64 = 1 << 1;
const TIMER_ENABLE: u64 = 1 << 2;
const TIMER_PERIODIC: u64 = 1 << 3;
const TIMER_CAN_REPEAT: u64 = 1 << 4;
const TIMER_HAS_64_BITS: u64 = 1 << 5;
/// The next write of the comparator sets the accumulator too.
const TIMER_SET_VALUE: u64 = 1 << 6;
const TIMER_32_BITS: u64 = 1 << 8;
const TIMER_ROUTE_SHIFT: u32 = 9;
const TIMER_ROUTE: u64 = 0x1f;
const TIMER_MESSAGE: u64 = 1 << 14;
const TIMER_WRITABLE: u64 = 0x7f4e;
/// What a timer can do, with the interrupt lines that it can be routed to: line 2 of the I/O APIC.
const TIMER_FIXED: u64 = TIMER_CAN_REPEAT | TIMER_HAS_64_BITS | (1 << line::HPET) << 32;

/// Least distance of two interrupts of a timer in nanoseconds: a guest may ask for a period of 10.
const MIN_SPACING_NS: u64 = 10_000;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Comparator {
    config: u64,
    /// The count at which it matches next.
    value: u64,
    period: u64,
    message: u64,
}

impl Default for Comparator {
    fn default() -> Self {
        Self { config: TIMER_FIXED, value: u64::MAX, period: 0, message: 0 }
    }
}

impl Comparator {
    fn is_narrow(&self) -> bool {
        self.config & TIMER_32_BITS != 0
    }

    fn is_periodic(&self) -> bool {
        self.config & TIMER_PERIODIC != 0
    }

    fn period(&self) -> u64 {
        if self.is_narrow() { self.period & 0xffff_ffff } else { self.period }
    }

    /// Ticks until it matches; none are left if the counter has passed the value.
    fn ahead(&self, counter: u64) -> u64 {
        let distance = self.value.wrapping_sub(counter);
        if self.is_narrow() {
            u64::try_from(distance as u32 as i32).unwrap_or(0)
        } else {
            // A distance of more than half the range lies behind.
            if distance as i64 >= 0 { distance } else { 0 }
        }
    }

    /// Goes on to the first match after `counter`.
    fn repeat(&mut self, counter: u64) {
        let period = self.period();
        if period == 0 {
            return;
        }
        let passed = counter.wrapping_sub(self.value);
        let passed = if self.is_narrow() { passed & 0xffff_ffff } else { passed };
        let periods = passed / period + 1;
        self.value = self.value.wrapping_add(periods.wrapping_mul(period));
        if self.is_narrow() {
            self.value &= 0xffff_ffff;
        }
    }
}

/// Saved state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HpetState {
    config: u64,
    status: u64,
    /// The counter while it stands; else what is to be added to guest time in ticks for it.
    base: u64,
    timers: [Comparator; TIMERS],
    /// One-shot timers that have matched and wait to be set again.
    spent: [bool; TIMERS],
    /// Levels of the inputs.
    inputs: [bool; 2],
    /// Levels of the lines that level-triggered timers hold, by their status bits.
    held: u64,
}

impl State for HpetState {
    const NAME: &'static str = "hpet";
    const VERSION: u32 = 1;

    fn validate(&self) -> Result<(), String> {
        let known = (1 << TIMERS) - 1;
        if self.config & !(CONFIG_ENABLE | CONFIG_LEGACY) != 0
            || self.status & !known != 0
            || self.held & !known != 0
        {
            return Err("a register has reserved bits set".into());
        }
        match self.timers.iter().find(|t| t.config & !TIMER_WRITABLE != TIMER_FIXED) {
            Some(timer) => Err(format!("timer configuration {:#x}", timer.config)),
            None => Ok(()),
        }
    }
}

impl HpetState {
    fn is_enabled(&self) -> bool {
        self.config & CONFIG_ENABLE != 0
    }

    fn replaces_legacy(&self) -> bool {
        self.config & CONFIG_LEGACY != 0
    }

    fn counter(&self, now: u64) -> u64 {
        if self.is_enabled() { self.base.wrapping_add(now) } else { self.base }
    }

    fn set_counter(&mut self, value: u64, now: u64) {
        self.base = if self.is_enabled() { value.wrapping_sub(now) } else { value };
    }

    /// The interrupt line of timer `index`; none if it is routed to one that it cannot have.
    fn route(&self, index: usize) -> Option<u32> {
        match index {
            0 if self.replaces_legacy() => Some(line::TIMER),
            1 if self.replaces_legacy() => Some(line::RTC),
            _ => {
                let route = (self.timers[index].config >> TIMER_ROUTE_SHIFT & TIMER_ROUTE) as u32;
                Some(route).filter(|&route| route == line::HPET)
            }
        }
    }
}

/// Lines that a timer can drive: those of the ISA bus by number.
pub type Lines = Box<dyn Fn(u32) -> IrqLine + Send + Sync>;

/// The timers.
pub struct Hpet {
    lines: Lines,
    msi: Arc<dyn MsiSink>,
    clock: Clock,
    timers: [Timer; TIMERS],
    state: Mutex<HpetState>,
}

impl Hpet {
    /// Timers on the clock of `timers` that interrupt on `lines` and by way of `msi`.
    pub fn new(timers: &TimerQueue, lines: Lines, msi: Arc<dyn MsiSink>) -> Arc<Self> {
        let clock = timers.clock().clone();
        Arc::new_cyclic(|this: &Weak<Self>| {
            let timer = |index| {
                let this = this.clone();
                timers.timer(move || {
                    if let Some(hpet) = this.upgrade() {
                        hpet.expired(index);
                    }
                })
            };
            let timers = [0, 1, 2].map(timer);
            Self { lines, msi, clock, timers, state: Mutex::default() }
        })
    }

    /// Guest time in ticks.
    fn now(&self) -> u64 {
        self.clock.now_ns() / TICK_NS
    }

    fn expired(&self, index: usize) {
        let mut state = lock(&self.state);
        let counter = state.counter(self.now());
        let timer = &mut state.timers[index];
        if timer.ahead(counter) == 0 {
            if timer.is_periodic() && timer.period() != 0 {
                timer.repeat(counter);
                self.interrupt(&mut state, index);
                self.arm_after(&state, index, MIN_SPACING_NS);
                return;
            }
            state.spent[index] = true;
            self.interrupt(&mut state, index);
        }
        self.arm(&state, index);
    }

    /// Arms the host's timer for the next match, if there will be one.
    fn arm(&self, state: &HpetState, index: usize) {
        self.arm_after(state, index, 0);
    }

    fn arm_after(&self, state: &HpetState, index: usize, least_ns: u64) {
        let timer = &state.timers[index];
        if !state.is_enabled() || timer.config & TIMER_ENABLE == 0 || state.spent[index] {
            self.timers[index].disarm();
            return;
        }
        let now = self.now();
        let due = now.saturating_add(timer.ahead(state.counter(now)));
        let soonest = self.clock.now_ns().saturating_add(least_ns);
        self.timers[index].arm(due.saturating_mul(TICK_NS).max(soonest));
    }

    fn arm_all(&self, state: &HpetState) {
        for index in 0..TIMERS {
            self.arm(state, index);
        }
    }

    /// Delivers a match of timer `index`.
    fn interrupt(&self, state: &mut HpetState, index: usize) {
        let timer = &state.timers[index];
        if timer.config & TIMER_ENABLE == 0 || !state.is_enabled() {
            return;
        }
        if timer.config & TIMER_MESSAGE != 0 {
            let message = MsiMessage { address: timer.message >> 32, data: timer.message as u32 };
            self.msi.send(message);
            return;
        }
        let level = timer.config & TIMER_LEVEL != 0;
        if level {
            state.status |= 1 << index;
            state.held |= 1 << index;
        }
        self.drive(state, index, true);
        if !level {
            self.drive(state, index, false);
        }
    }

    /// Drives the line of timer `index`.
    fn drive(&self, state: &HpetState, index: usize, level: bool) {
        if let Some(route) = state.route(index) {
            (self.lines)(route).set(level);
        }
    }

    /// Lets go of the line that level-triggered timer `index` holds.
    fn lower(&self, state: &mut HpetState, index: usize) {
        if state.held & 1 << index != 0 {
            state.held &= !(1 << index);
            self.drive(state, index, false);
        }
    }

    /// Puts the inputs on the lines that they have while no timer replaces them.
    fn pass_inputs(&self, state: &HpetState) {
        for (level, line) in state.inputs.iter().zip([line::TIMER, line::RTC]) {
            (self.lines)(line).set(*level && !state.replaces_legacy());
        }
    }

    fn write_config(&self, state: &mut HpetState, value: u64) {
        let now = self.now();
        let counter = state.counter(now);
        let old = state.config;
        let new = value & (CONFIG_ENABLE | CONFIG_LEGACY);
        if (old ^ new) & CONFIG_LEGACY != 0 || new & CONFIG_ENABLE == 0 {
            // A line that is held belongs to the route it was raised on.
            for index in 0..TIMERS {
                self.lower(state, index);
            }
        }
        state.config = new;
        state.set_counter(counter, now);
        if (old ^ new) & CONFIG_LEGACY != 0 {
            self.pass_inputs(state);
        }
        self.arm_all(state);
    }

    fn write_status(&self, state: &mut HpetState, value: u64) {
        for index in 0..TIMERS {
            if value & state.status & 1 << index != 0 {
                state.status &= !(1 << index);
                self.lower(state, index);
            }
        }
    }

    fn write_timer_config(&self, state: &mut HpetState, index: usize, value: u64) {
        self.lower(state, index);
        let timer = &mut state.timers[index];
        let was_enabled = timer.config & TIMER_ENABLE != 0;
        timer.config = timer.config & !TIMER_WRITABLE | value & TIMER_WRITABLE;
        if timer.is_narrow() {
            timer.value &= 0xffff_ffff;
            timer.period &= 0xffff_ffff;
        }
        let enabled = timer.config & TIMER_ENABLE != 0;
        let level = timer.config & TIMER_LEVEL != 0;
        if !level {
            state.status &= !(1 << index);
        }
        if enabled && !was_enabled {
            state.spent[index] = false;
        }
        // What a level-triggered timer has to say is said again on its new line.
        if enabled && level && state.is_enabled() && state.status & 1 << index != 0 {
            state.held |= 1 << index;
            self.drive(state, index, true);
        }
        self.arm(state, index);
    }

    /// Writes the bits `mask` of the comparator register.
    fn write_comparator(&self, state: &mut HpetState, index: usize, value: u64, mask: u64) {
        let timer = &mut state.timers[index];
        let narrow = timer.is_narrow();
        let merge = |old: u64| {
            let merged = old & !mask | value & mask;
            if narrow { merged & 0xffff_ffff } else { merged }
        };
        if !timer.is_periodic() || timer.config & TIMER_SET_VALUE != 0 {
            timer.value = merge(timer.value);
        }
        if timer.is_periodic() {
            timer.period = merge(timer.period);
        }
        timer.config &= !TIMER_SET_VALUE;
        state.spent[index] = false;
        self.arm(state, index);
    }

    fn read_register(&self, offset: u64) -> u64 {
        let state = lock(&self.state);
        match offset {
            reg::CAPABILITIES => CAPABILITIES,
            reg::CONFIG => state.config,
            reg::STATUS => state.status,
            reg::COUNTER => state.counter(self.now()),
            _ => match timer_register(offset) {
                Some((index, 0)) => state.timers[index].config,
                Some((index, reg::COMPARATOR)) => state.timers[index].value,
                Some((index, reg::MESSAGE)) => state.timers[index].message,
                _ => 0,
            },
        }
    }

    fn write_register(&self, offset: u64, value: u64, mask: u64) {
        let mut state = lock(&self.state);
        let merge = |old: u64| old & !mask | value & mask;
        match offset {
            reg::CONFIG => {
                let value = merge(state.config);
                self.write_config(&mut state, value);
            }
            reg::STATUS => self.write_status(&mut state, value & mask),
            reg::COUNTER => {
                let now = self.now();
                let value = merge(state.counter(now));
                state.set_counter(value, now);
                self.arm_all(&state);
            }
            _ => match timer_register(offset) {
                Some((index, 0)) => {
                    let value = merge(state.timers[index].config);
                    self.write_timer_config(&mut state, index, value);
                }
                Some((index, reg::COMPARATOR)) => {
                    self.write_comparator(&mut state, index, value, mask);
                }
                Some((index, reg::MESSAGE)) => {
                    let message = &mut state.timers[index].message;
                    *message = merge(*message);
                }
                _ => {}
            },
        }
    }
}

/// The timer and the register in it that a 64-bit register's offset is.
fn timer_register(offset: u64) -> Option<(usize, u64)> {
    let after = offset.checked_sub(reg::TIMER)?;
    let index = (after / reg::TIMER_SIZE) as usize;
    (index < TIMERS).then_some((index, after % reg::TIMER_SIZE))
}

/// The 64-bit register of an access and the shift of its part; none for what the registers do not take:
/// they are accessed in aligned halves or whole.
fn part(offset: u64, size: u8) -> Option<(u64, u32)> {
    match size {
        8 if offset.is_multiple_of(8) => Some((offset, 0)),
        4 if offset.is_multiple_of(4) => Some((offset & !7, (offset & 4) as u32 * 8)),
        _ => None,
    }
}

impl BusDevice for Hpet {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let Some((register, shift)) = part(offset, size) else { return 0 };
        let value = self.read_register(register) >> shift;
        if size == 4 { value & 0xffff_ffff } else { value }
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        if let Some((register, shift)) = part(offset, size) {
            let mask = if size == 4 { 0xffff_ffff << shift } else { u64::MAX };
            self.write_register(register, value << shift, mask);
        }
    }
}

impl IrqSink for Hpet {
    fn set_level(&self, pin: u32, level: bool) {
        let line = match pin {
            PIT_INPUT => line::TIMER,
            RTC_INPUT => line::RTC,
            _ => return,
        };
        let mut state = lock(&self.state);
        state.inputs[pin as usize] = level;
        if !state.replaces_legacy() {
            (self.lines)(line).set(level);
        }
    }
}

impl Device for Hpet {
    fn id(&self) -> String {
        "hpet".into()
    }

    fn reset(&self) {
        let mut state = lock(&self.state);
        for index in 0..TIMERS {
            self.lower(&mut state, index);
            self.timers[index].disarm();
        }
        // The devices behind the inputs drive them as they are reset themselves.
        *state = HpetState::default();
        self.pass_inputs(&state);
    }

    fn save(&self) -> Saved {
        Saved::new(&*lock(&self.state))
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let restored: HpetState = saved.decode()?;
        let mut state = lock(&self.state);
        for index in 0..TIMERS {
            self.lower(&mut state, index);
        }
        *state = restored;
        self.pass_inputs(&state);
        for index in (0..TIMERS).filter(|index| state.held & 1 << index != 0) {
            self.drive(&state, index, true);
        }
        self.arm_all(&state);
        Ok(())
    }
}
