//! What moves a real-time clock and where it begins, as `-rtc` says; the time of day of a guest that asks
//! another clock comes from here, too.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bus::Clock;

use super::time::NS;
use super::{RtcBase, RtcConfig, RtcSource};

/// See the module.
#[derive(Debug)]
pub struct Reference {
    config: RtcConfig,
    clock: Clock,
    made: Instant,
    initial_offset_ns: i128,
}

impl Reference {
    /// The one that `config` asks for, beginning now, with `clock` as the guest's time.
    pub fn new(config: &RtcConfig, clock: &Clock) -> Self {
        let mut reference = Self {
            config: config.clone(),
            clock: clock.clone(),
            made: Instant::now(),
            initial_offset_ns: 0,
        };
        reference.initial_offset_ns = initial_offset(config, reference.ns());
        reference
    }

    /// Whether ticks that the guest missed are made up for.
    pub(super) fn makes_up(&self) -> bool {
        self.config.slew
    }

    /// Where it is, in nanoseconds.
    pub(super) fn ns(&self) -> i128 {
        match self.config.source {
            RtcSource::Host => host_ns(),
            RtcSource::HostMonotonic => self.made.elapsed().as_nanos() as i128,
            RtcSource::Guest => self.clock.now_ns().into(),
        }
    }

    /// What to add to it for the nanoseconds since 1970 that a clock shows which nobody has set.
    pub(super) fn initial_offset_ns(&self) -> i128 {
        self.initial_offset_ns
    }

    /// The time of day in nanoseconds since 1970, UTC, whatever a guest has set its clock to. A time before
    /// that is that.
    pub fn time_of_day_ns(&self) -> u64 {
        let zone = match self.config.base {
            RtcBase::LocalTime { offset_seconds } => i128::from(offset_seconds) * NS,
            RtcBase::Utc | RtcBase::At(_) => 0,
        };
        u64::try_from(self.ns() + self.initial_offset_ns - zone).unwrap_or(0)
    }
}

pub(super) fn host_ns() -> i128 {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => since.as_nanos() as i128,
        Err(before) => -(before.duration().as_nanos() as i128),
    }
}

/// Offset of the time shown from the reference, when the reference is at `made_ns`.
fn initial_offset(config: &RtcConfig, made_ns: i128) -> i128 {
    let shown = match config.base {
        RtcBase::Utc => host_ns(),
        RtcBase::LocalTime { offset_seconds } => host_ns() + i128::from(offset_seconds) * NS,
        RtcBase::At(seconds) => i128::from(seconds) * NS,
    };
    match (config.base, config.source) {
        // No rounding between two readings of the host's clock.
        (RtcBase::Utc, RtcSource::Host) => 0,
        (RtcBase::LocalTime { offset_seconds }, RtcSource::Host) => i128::from(offset_seconds) * NS,
        _ => shown - made_ns,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_day_is_where_the_machine_is_told_to_begin() {
        let clock = Clock::manual();
        let day = |base, source| {
            let reference = Reference::new(&RtcConfig { base, source, slew: false }, &clock);
            clock.set(clock.now_ns() + 5_000_000_000);
            reference.time_of_day_ns()
        };
        assert_eq!(day(RtcBase::At(1_000_000), RtcSource::Guest), 1_000_005_000_000_000);
        assert_eq!(day(RtcBase::At(-1_000_000), RtcSource::Guest), 0);
        let now = host_ns() as u64;
        for base in [RtcBase::Utc, RtcBase::LocalTime { offset_seconds: 7200 }] {
            assert!(day(base, RtcSource::Host).abs_diff(now) < 60 * NS as u64, "{base:?}");
        }
    }
}
