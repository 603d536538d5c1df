//! Local APICs on a bench, for tests.

use std::sync::Arc;

use accel::{GuestClock, Signals};
use bus::{Clock, TimerQueue};

use super::ApicBus;

/// Frequency of the bench's time-stamp counter.
pub(crate) const TSC_HZ: u64 = 2_500_000_000;

/// A guest clock over a [`Clock`].
pub(crate) struct BenchClock(pub(crate) Clock);

impl GuestClock for BenchClock {
    fn now_ns(&self) -> u64 {
        self.0.now_ns()
    }
    fn tsc(&self) -> u64 {
        (u128::from(self.0.now_ns()) * u128::from(TSC_HZ) / 1_000_000_000) as u64
    }
    fn tsc_hz(&self) -> u64 {
        TSC_HZ
    }
}

/// `count` APICs on a clock that is set by hand.
pub(crate) struct Bench {
    pub(crate) clock: Clock,
    pub(crate) timers: TimerQueue,
    pub(crate) bus: Arc<ApicBus>,
}

impl Bench {
    pub(crate) fn new(count: usize) -> Self {
        let clock = Clock::manual();
        let timers = TimerQueue::without_thread(clock.clone());
        let guest: Arc<dyn GuestClock> = Arc::new(BenchClock(clock.clone()));
        let signals = (0..count).map(|_| Arc::new(Signals::default()));
        let bus = ApicBus::new((0..).zip(signals), &guest, &timers);
        Self { clock, timers, bus }
    }

    pub(crate) fn at(&self, ns: u64) {
        self.clock.set(ns);
        self.timers.fire_due();
    }
}
