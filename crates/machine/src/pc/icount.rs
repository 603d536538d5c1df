//! Guest time that goes by instructions (`-icount`): each makes 2^shift nanoseconds pass.
//!
//! The CPU's thread drives the clock and fires timers, so with one CPU everything that timers do happens
//! at the same instruction whenever the guest is run. While the CPU is halted, time goes on to the next
//! timer: at the host's pace, or at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use accel::{InstructionTime, Signal, Signals};
use bus::{TimerDriver, TimerQueue};

use crate::spec::IcountSpec;

/// See the module.
pub(super) struct InstructionClock {
    spec: IcountSpec,
    timers: TimerDriver,
    /// Instructions that have made time pass.
    count: AtomicU64,
    /// The count of instructions at which a timer is due, unless `stale`.
    limit: AtomicU64,
    stale: Arc<AtomicBool>,
}

impl InstructionClock {
    /// Drives the clock of `timers` by the CPU that has `signals`.
    pub(super) fn new(spec: IcountSpec, timers: &TimerQueue, signals: &Arc<Signals>) -> Self {
        let stale = Arc::new(AtomicBool::new(true));
        let (told, signals) = (Arc::clone(&stale), Arc::clone(signals));
        let timers = timers.driver(move || {
            told.store(true, Ordering::Release);
            signals.raise(Signal::Time);
        });
        Self { spec, timers, count: AtomicU64::new(0), limit: AtomicU64::new(0), stale }
    }

    /// How many instructions it takes until the next timer is due.
    fn left(&self) -> u64 {
        let gap = self.timers.next_deadline().map(|at| at.saturating_sub(self.timers.now_ns()));
        gap.map_or(u64::MAX, |gap| gap.div_ceil(1 << self.spec.shift))
    }

    /// Lets time pass without an instruction.
    fn pass(&self, ns: u64) {
        self.timers.set(self.timers.now_ns() + ns);
        self.stale.store(true, Ordering::Release);
    }
}

impl InstructionTime for InstructionClock {
    fn at(&self, count: u64) -> u64 {
        let passed = count.saturating_sub(self.count.swap(count, Ordering::Relaxed));
        if passed != 0 {
            self.timers.set(self.timers.now_ns() + (passed << self.spec.shift));
        }
        if self.stale.swap(false, Ordering::Acquire) {
            self.limit.store(count.saturating_add(self.left()), Ordering::Relaxed);
        }
        self.limit.load(Ordering::Relaxed)
    }

    fn expire(&self, _: u64) {
        self.timers.fire_due();
        self.stale.store(true, Ordering::Release);
    }

    fn idle(&self, signals: &Signals, wake: u32) {
        loop {
            let next = self.timers.fire_due();
            signals.clear(Signal::Time);
            if signals.pending() & wake != 0 {
                return;
            }
            let woken = wake | Signal::Time as u32;
            let Some(gap) = next.map(|at| at.saturating_sub(self.timers.now_ns())) else {
                signals.wait(woken, None);
                continue;
            };
            if !self.spec.sleep {
                self.pass(gap);
                continue;
            }
            let start = Instant::now();
            signals.wait(woken, Some(Duration::from_nanos(gap)));
            let early = signals.pending() & woken != 0;
            let slept = start.elapsed().as_nanos().min(u128::from(gap)) as u64;
            self.pass(if early { slept } else { gap });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use bus::Clock;

    use super::*;

    #[test]
    fn timers_are_due_at_counts_of_instructions() {
        let queue = TimerQueue::without_thread(Clock::manual());
        let signals = Arc::new(Signals::default());
        let clock = InstructionClock::new(IcountSpec { shift: 3, sleep: false }, &queue, &signals);
        let fired = Arc::new(Mutex::new(Vec::new()));
        let (seen, now) = (Arc::clone(&fired), queue.clock().clone());
        let timer = queue.timer(move || seen.lock().unwrap().push(now.now_ns()));
        assert_eq!(clock.at(5), u64::MAX);
        assert_eq!(queue.clock().now_ns(), 40);
        timer.arm(100);
        assert!(signals.is_raised(Signal::Time));
        assert_eq!(clock.at(6), 13);
        clock.expire(12);
        assert!(fired.lock().unwrap().is_empty());
        assert_eq!(clock.at(13), 13);
        clock.expire(13);
        assert_eq!(*fired.lock().unwrap(), [104]);
        assert_eq!(clock.at(13), u64::MAX);
    }

    #[test]
    fn an_idle_cpu_is_woken_by_the_next_timer_exactly() {
        for sleep in [false, true] {
            let queue = TimerQueue::without_thread(Clock::manual());
            let signals = Arc::new(Signals::default());
            let clock = InstructionClock::new(IcountSpec { shift: 0, sleep }, &queue, &signals);
            let raised = Arc::clone(&signals);
            let timer = queue.timer(move || raised.raise(Signal::Interrupt));
            clock.at(1000);
            timer.arm(3_001_000);
            let start = Instant::now();
            clock.idle(&signals, Signal::Interrupt as u32);
            assert_eq!(queue.clock().now_ns(), 3_001_000);
            assert_eq!(start.elapsed() >= Duration::from_millis(3), sleep);
            assert_eq!(clock.at(1001), u64::MAX);
            assert_eq!(queue.clock().now_ns(), 3_001_001);
        }
    }
}
