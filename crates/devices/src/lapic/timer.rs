//! The timer of a local APIC: one-shot, periodic and TSC-deadline.
//!
//! The bus clock is 1 GHz, so that a tick before division is a nanosecond of guest time.
//! A TSC deadline is in ticks of [`GuestClock::tsc`]; a CPU whose guest moved its time-stamp counter
//! takes the offset off before it hands the deadline over.

use accel::GuestClock;
use serde::{Deserialize, Serialize};

/// Least distance of two periodic interrupts in nanoseconds: a guest may ask for a period of 1.
const MIN_SPACING_NS: u64 = 10_000;

/// Writable bits of the divide configuration register.
pub(super) const DIVIDE_MASK: u32 = 0b1011;

/// What the timer does with its count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Mode {
    #[default]
    OneShot,
    Periodic,
    TscDeadline,
    /// The encoding that is reserved: nothing runs.
    Reserved,
}

impl Mode {
    /// By bits 17 and 18 of the timer's entry in the local vector table.
    pub(super) fn from_bits(bits: u32) -> Self {
        match bits & 3 {
            0 => Self::OneShot,
            1 => Self::Periodic,
            2 => Self::TscDeadline,
            _ => Self::Reserved,
        }
    }
}

/// The timer's registers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ApicTimer {
    mode: Mode,
    initial: u32,
    divide: u32,
    /// Guest time at which the count was `initial`.
    started_ns: u64,
    /// Guest time of the next expiry of a count.
    next_ns: Option<u64>,
    /// TSC deadline; 0 is none.
    tsc_deadline: u64,
}

impl ApicTimer {
    pub(super) fn validate(&self) -> Result<(), String> {
        if self.divide & !DIVIDE_MASK != 0 {
            return Err(format!("timer divide configuration {:#x}", self.divide));
        }
        let counts = matches!(self.mode, Mode::OneShot | Mode::Periodic);
        if self.next_ns.is_some() && (!counts || self.initial == 0) {
            return Err("the timer expires without a count".into());
        }
        if self.tsc_deadline != 0 && self.mode != Mode::TscDeadline {
            return Err("a TSC deadline outside of its mode".into());
        }
        Ok(())
    }

    pub(super) fn mode(&self) -> Mode {
        self.mode
    }

    pub(super) fn initial(&self) -> u32 {
        self.initial
    }

    pub(super) fn divide(&self) -> u32 {
        self.divide
    }

    pub(super) fn tsc_deadline(&self) -> u64 {
        self.tsc_deadline
    }

    /// Nanoseconds of one count.
    fn tick_ns(&self) -> u64 {
        let code = self.divide & 3 | self.divide >> 1 & 4;
        if code == 7 { 1 } else { 2 << code }
    }

    fn period_ns(&self) -> u64 {
        u64::from(self.initial) * self.tick_ns()
    }

    pub(super) fn current(&self, clock: &dyn GuestClock) -> u32 {
        if self.next_ns.is_none() {
            return 0;
        }
        let ticks = clock.now_ns().saturating_sub(self.started_ns) / self.tick_ns();
        let initial = u64::from(self.initial);
        let left = match self.mode {
            Mode::Periodic => initial - ticks % initial,
            _ => initial.saturating_sub(ticks),
        };
        left as u32
    }

    pub(super) fn set_mode(&mut self, mode: Mode) {
        if mode == self.mode {
            return;
        }
        // Between the counting modes the count goes on; into and out of the deadline it stops.
        if mode == Mode::TscDeadline || self.mode == Mode::TscDeadline || mode == Mode::Reserved {
            self.next_ns = None;
            self.tsc_deadline = 0;
        }
        self.mode = mode;
    }

    pub(super) fn set_initial(&mut self, initial: u32, clock: &dyn GuestClock) {
        if !matches!(self.mode, Mode::OneShot | Mode::Periodic) {
            return;
        }
        self.initial = initial;
        self.started_ns = clock.now_ns();
        self.next_ns = (initial != 0).then(|| self.started_ns.saturating_add(self.period_ns()));
    }

    /// Changes the divider; the count goes on from where it is.
    pub(super) fn set_divide(&mut self, divide: u32, clock: &dyn GuestClock) {
        let current = self.current(clock);
        self.divide = divide & DIVIDE_MASK;
        if self.next_ns.is_some() {
            let now = clock.now_ns();
            let tick = self.tick_ns();
            let counted = u64::from(self.initial - current) * tick;
            self.started_ns = now.saturating_sub(counted);
            self.next_ns = Some(now.saturating_add(u64::from(current) * tick));
        }
    }

    pub(super) fn set_tsc_deadline(&mut self, deadline: u64) {
        if self.mode == Mode::TscDeadline {
            self.tsc_deadline = deadline;
        }
    }

    /// Guest time at which to look again.
    pub(super) fn deadline_ns(&self, clock: &dyn GuestClock) -> Option<u64> {
        if self.mode != Mode::TscDeadline {
            return self.next_ns;
        }
        if self.tsc_deadline == 0 {
            return None;
        }
        let ticks = self.tsc_deadline.saturating_sub(clock.tsc());
        let ns = (u128::from(ticks) * 1_000_000_000).div_ceil(u128::from(clock.tsc_hz().max(1)));
        let ns = u64::try_from(ns).unwrap_or(u64::MAX);
        // At least a nanosecond ahead, for a clock whose two readings round apart.
        Some(clock.now_ns().saturating_add(ns.max(1)))
    }

    /// Whether the timer has expired; it then goes on to the next period or stops.
    pub(super) fn take_expired(&mut self, clock: &dyn GuestClock) -> bool {
        if self.mode == Mode::TscDeadline {
            let expired = self.tsc_deadline != 0 && clock.tsc() >= self.tsc_deadline;
            if expired {
                self.tsc_deadline = 0;
            }
            return expired;
        }
        let now = clock.now_ns();
        if self.next_ns.is_none_or(|next| next > now) {
            return false;
        }
        self.next_ns = match self.mode {
            Mode::Periodic => {
                // Periods that have been missed altogether are one interrupt: the APIC has one
                // request bit for them.
                let period = self.period_ns();
                let spacing = if period < MIN_SPACING_NS { MIN_SPACING_NS } else { 0 };
                let soonest = now.saturating_add(spacing);
                let periods = soonest.saturating_sub(self.started_ns) / period + 1;
                let passed = (periods - 1).saturating_mul(period);
                self.started_ns = self.started_ns.saturating_add(passed);
                Some(self.started_ns.saturating_add(period))
            }
            _ => None,
        };
        true
    }
}
