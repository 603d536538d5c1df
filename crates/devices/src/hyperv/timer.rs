//! A synthetic timer (Top Level Functional Specification, "Synthetic Timers"). Times and periods are in units
//! of 100 ns of the partition's reference counter.
//!
//! Invariant: `due` is there exactly while the timer is enabled and counts.

use serde::{Deserialize, Serialize};

/// Bits of the configuration register.
pub(super) const ENABLE: u64 = 1 << 0;
pub(super) const PERIODIC: u64 = 1 << 1;
pub(super) const LAZY: u64 = 1 << 2;
pub(super) const AUTO_ENABLE: u64 = 1 << 3;
pub(super) const DIRECT: u64 = 1 << 12;
/// All that there are, vector and source included. Reserved bits stay zero.
const KNOWN: u64 = 0xf_1fff;

/// Least distance of two signals: a guest may ask for a period of 1.
const MIN_SPACING: u64 = 100;
/// A timer that is further behind than so many periods leaves signals out.
const MOST_BEHIND: u64 = 16;

/// Its registers and what it waits for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SyntheticTimer {
    config: u64,
    count: u64,
    /// When it expires next.
    due: Option<u64>,
    /// The earliest time at which that is told: one that catches up keeps some distance.
    not_before: u64,
    /// It has expired at this time, and the message waits to be delivered.
    pub(super) message: Option<u64>,
}

impl SyntheticTimer {
    pub(super) fn validate(&self) -> Result<(), String> {
        let counts = self.config & ENABLE != 0 && self.count != 0;
        if self.config & !KNOWN != 0 || self.due.is_some() && !counts {
            return Err(format!(
                "a synthetic timer with configuration {:#x} and count {:#x}",
                self.config, self.count
            ));
        }
        Ok(())
    }

    pub(super) fn config(&self) -> u64 {
        self.config
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// The vector that it asserts, if it is in direct mode.
    pub(super) fn vector(&self) -> Option<u8> {
        (self.config & DIRECT != 0).then_some((self.config >> 4) as u8)
    }

    /// The source that its messages come from.
    pub(super) fn source(&self) -> usize {
        (self.config >> 16 & 0xf) as usize
    }

    /// Writes the configuration register; `direct` says that there is direct mode.
    pub(super) fn set_config(&mut self, value: u64, direct: bool, now: u64) {
        let known = if direct { KNOWN } else { KNOWN & !DIRECT };
        self.config = value & known;
        self.start(now);
    }

    /// Writes the count register.
    pub(super) fn set_count(&mut self, value: u64, now: u64) {
        self.count = value;
        if value == 0 {
            self.config &= !ENABLE;
        } else if self.config & AUTO_ENABLE != 0 {
            self.config |= ENABLE;
        }
        self.start(now);
    }

    /// Begins to count, if it is to.
    fn start(&mut self, now: u64) {
        (self.due, self.message, self.not_before) = (None, None, 0);
        if self.config & DIRECT == 0 && self.source() == 0 {
            self.config &= !ENABLE;
        }
        if self.config & ENABLE != 0 && self.count != 0 {
            let periodic = self.config & PERIODIC != 0;
            self.due = Some(if periodic { now.saturating_add(self.count) } else { self.count });
        }
    }

    /// When to look at it next.
    pub(super) fn deadline(&self) -> Option<u64> {
        self.due.map(|due| due.max(self.not_before))
    }

    /// Whether it has expired, and when; it then goes on to the next period or is done.
    pub(super) fn take_expired(&mut self, now: u64) -> Option<u64> {
        self.deadline().filter(|&deadline| deadline <= now)?;
        let expired = self.due.take()?;
        if self.config & PERIODIC == 0 {
            self.config &= !ENABLE;
            return Some(expired);
        }
        // What was missed is made up for, in half of the time that a period has; but not by a lazy timer.
        let behind = now.saturating_sub(expired) / self.count.max(1);
        let most = if self.config & LAZY != 0 { 0 } else { MOST_BEHIND };
        let left_out = if behind > most { behind } else { 0 };
        let periods = (left_out + 1).saturating_mul(self.count);
        self.due = Some(expired.saturating_add(periods));
        self.not_before = now.saturating_add((self.count / 2).max(MIN_SPACING));
        Some(expired)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: u64 = 2 << 16;

    fn timer(config: u64, count: u64, now: u64) -> SyntheticTimer {
        let mut timer = SyntheticTimer::default();
        timer.set_count(count, now);
        timer.set_config(config, true, now);
        timer
    }

    #[test]
    fn one_shots_expire_once_at_their_time_or_at_once() {
        let mut one = timer(SOURCE | ENABLE, 500, 100);
        assert_eq!((one.deadline(), one.take_expired(499)), (Some(500), None));
        assert_eq!(one.take_expired(510), Some(500));
        assert_eq!((one.config() & ENABLE, one.deadline()), (0, None));
        assert_eq!(timer(SOURCE | ENABLE, 50, 100).take_expired(100), Some(50));
    }

    #[test]
    fn counts_and_sources_decide_whether_a_timer_runs() {
        let mut automatic = timer(SOURCE | AUTO_ENABLE, 0, 0);
        assert_eq!(automatic.deadline(), None);
        automatic.set_count(70, 10);
        assert_eq!((automatic.config() & ENABLE, automatic.deadline()), (ENABLE, Some(70)));
        automatic.set_count(0, 20);
        assert_eq!((automatic.config() & ENABLE, automatic.deadline()), (0, None));
        // No source, unless it needs none.
        assert_eq!(timer(ENABLE, 70, 0).config(), 0);
        let direct = timer(ENABLE | DIRECT | 0x55 << 4, 70, 0);
        assert_eq!((direct.vector(), direct.deadline()), (Some(0x55), Some(70)));
        assert_eq!(timer(u64::MAX, 70, 0).config(), KNOWN);
    }

    #[test]
    fn periods_that_were_missed_are_caught_up_with_or_left_out() {
        let mut steady = timer(SOURCE | ENABLE | PERIODIC, 1000, 100);
        assert_eq!(steady.take_expired(1100), Some(1100));
        // Three late: they come at half the distance.
        assert_eq!(steady.take_expired(5200), Some(2100));
        assert_eq!(steady.deadline(), Some(5700));
        assert_eq!((steady.take_expired(5699), steady.take_expired(5700)), (None, Some(3100)));
        // Hopelessly late.
        assert_eq!(steady.take_expired(1_000_000), Some(4100));
        assert_eq!(steady.deadline(), Some(1_000_500));
        let mut lazy = timer(SOURCE | ENABLE | PERIODIC | LAZY, 1000, 100);
        assert_eq!((lazy.take_expired(5250), lazy.deadline()), (Some(1100), Some(6100)));
        let mut rapid = timer(SOURCE | ENABLE | PERIODIC, 1, 0);
        assert!(rapid.take_expired(10).is_some());
        assert_eq!(rapid.deadline(), Some(110));
        assert!(timer(SOURCE | ENABLE | PERIODIC, u64::MAX, 5).take_expired(u64::MAX).is_some());
    }
}
