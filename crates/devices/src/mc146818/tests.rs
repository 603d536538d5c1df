//! The clock against the data sheet, on a time that is set by hand.

use super::*;
use crate::irq::testing::Recorder;

struct Bench {
    clock: Clock,
    timers: TimerQueue,
    rtc: Arc<Mc146818>,
    irq: Arc<Recorder>,
}

/// A clock that shows 2024-02-28 23:59:50 UTC and goes by guest time.
fn bench() -> Bench {
    let clock = Clock::manual();
    let timers = TimerQueue::without_thread(clock.clone());
    let irq = Arc::new(Recorder::default());
    let config = RtcConfig {
        base: RtcBase::At(1_709_164_790),
        source: RtcSource::Guest,
        low_memory: 3 << 30,
        high_memory: 5 << 30,
        cpus: 4,
    };
    let rtc = Mc146818::new(config, &timers, IrqLine::new(irq.clone(), 8));
    Bench { clock, timers, rtc, irq }
}

impl Bench {
    fn read(&self, index: usize) -> u8 {
        self.rtc.write_port(PORT, index as u8);
        self.rtc.read_port(PORT + 1)
    }

    fn write(&self, index: usize, value: u8) {
        self.rtc.write_port(PORT, index as u8);
        self.rtc.write_port(PORT + 1, value);
    }

    fn at_ms(&self, ms: u64) {
        self.clock.set(ms * 1_000_000);
        self.timers.fire_due();
    }

    /// Century, year, month, day, hours, minutes, seconds, as they read.
    fn time(&self) -> [u8; 7] {
        [reg::CENTURY, reg::YEAR, reg::MONTH, reg::DAY, reg::HOURS, reg::MINUTES, reg::SECONDS]
            .map(|index| self.read(index))
    }
}

#[test]
fn shows_the_time_in_bcd_and_rolls_over() {
    let bench = bench();
    assert_eq!(bench.time(), [0x20, 0x24, 0x02, 0x28, 0x23, 0x59, 0x50]);
    assert_eq!(bench.read(reg::WEEKDAY), 4);
    bench.at_ms(10_000);
    assert_eq!(bench.time(), [0x20, 0x24, 0x02, 0x29, 0x00, 0x00, 0x00]);
    assert_eq!(bench.read(reg::WEEKDAY), 5);
}

#[test]
fn twelve_hour_and_binary_modes() {
    let bench = bench();
    bench.write(reg::B, 0);
    assert_eq!(bench.read(reg::HOURS), 0x91);
    bench.at_ms(10_000);
    assert_eq!(bench.read(reg::HOURS), 0x12);
    bench.write(reg::B, B_BINARY | B_24_HOURS);
    bench.at_ms(9_000);
    assert_eq!(bench.read(reg::SECONDS), 59);
    assert_eq!(bench.read(reg::HOURS), 23);
}

#[test]
fn the_guest_sets_the_time_with_set_held() {
    let bench = bench();
    bench.write(reg::B, B_24_HOURS | B_SET);
    for (index, value) in [
        (reg::CENTURY, 0x19),
        (reg::YEAR, 0x99),
        (reg::MONTH, 0x12),
        (reg::DAY, 0x31),
        (reg::HOURS, 0x23),
        (reg::MINUTES, 0x59),
        (reg::SECONDS, 0x58),
    ] {
        bench.write(index, value);
    }
    bench.at_ms(5_000);
    assert_eq!(bench.read(reg::SECONDS), 0x58, "the clock stands");
    bench.write(reg::B, B_24_HOURS);
    bench.at_ms(7_000);
    assert_eq!(bench.time(), [0x20, 0x00, 0x01, 0x01, 0x00, 0x00, 0x00]);
    // A reset does not set it back.
    bench.rtc.reset();
    assert_eq!(bench.time(), [0x20, 0x00, 0x01, 0x01, 0x00, 0x00, 0x00]);
}

#[test]
fn update_in_progress_shows_before_the_second_ends() {
    let bench = bench();
    assert_eq!(bench.read(reg::A), 0x26);
    bench.clock.set(999_800_000);
    assert_eq!(bench.read(reg::A), 0xa6);
    bench.clock.set(1_000_000_000);
    assert_eq!(bench.read(reg::A), 0x26);
}

#[test]
fn update_interrupts_come_with_each_second() {
    let bench = bench();
    bench.write(reg::B, B_24_HOURS | B_UPDATE);
    bench.at_ms(999);
    assert!(!bench.irq.level(8));
    for second in 1..5 {
        bench.at_ms(second * 1000);
        assert!(bench.irq.level(8));
        assert_eq!(bench.read(reg::C) & (C_ANY | B_UPDATE), C_ANY | B_UPDATE);
        assert!(!bench.irq.level(8));
        assert_eq!(bench.read(reg::C), 0);
    }
}

#[test]
fn periodic_interrupts_have_their_rate() {
    let bench = bench();
    bench.read(reg::C);
    bench.write(reg::B, B_24_HOURS | B_PERIODIC);
    // 1,024 Hz.
    let mut count = 0;
    for ms in 0..2000 {
        bench.at_ms(ms);
        if bench.irq.level(8) {
            count += 1;
            bench.read(reg::C);
        }
    }
    assert!((1950..=2000).contains(&count), "{count}");
}

#[test]
fn the_alarm_matches_with_and_without_wildcards() {
    let bench = bench();
    bench.write(reg::SECONDS_ALARM, 0x05);
    bench.write(reg::MINUTES_ALARM, 0x00);
    bench.write(reg::HOURS_ALARM, 0x00);
    bench.write(reg::B, B_24_HOURS | B_ALARM);
    bench.at_ms(14_999);
    assert!(!bench.irq.level(8));
    bench.at_ms(15_000);
    assert!(bench.irq.level(8));
    assert_eq!(bench.read(reg::C) & (C_ANY | B_ALARM), C_ANY | B_ALARM);
    // Every minute at second 30.
    bench.write(reg::SECONDS_ALARM, 0x30);
    bench.write(reg::MINUTES_ALARM, 0xff);
    bench.write(reg::HOURS_ALARM, 0xff);
    for second in [40, 100, 160] {
        bench.at_ms(second * 1000 - 1);
        assert!(!bench.irq.level(8));
        bench.at_ms(second * 1000);
        assert!(bench.irq.level(8));
        bench.read(reg::C);
    }
    // One that can't match is no alarm.
    bench.write(reg::SECONDS_ALARM, 0x75);
    bench.at_ms(1_000_000);
    assert!(!bench.irq.level(8));
}

#[test]
fn memory_sizes_are_as_on_a_pc() {
    let bench = bench();
    let word = |at: usize| u16::from_le_bytes([bench.read(at), bench.read(at + 1)]);
    assert_eq!(word(0x15), 640);
    assert_eq!(word(0x17), 63 << 10);
    assert_eq!(word(0x34), (((3u64 << 30) - (16 << 20)) >> 16) as u16);
    assert_eq!([0x5b, 0x5c, 0x5d].map(|i| bench.read(i)), [0, 0x40, 1]);
    assert_eq!(bench.read(0x5f), 3);
    bench.write(0x40, 0x5a);
    assert_eq!(bench.read(0x40), 0x5a);
}

#[test]
fn the_divider_starts_half_a_second_before_the_first_update() {
    let bench = bench();
    bench.write(reg::A, 0x76);
    bench.at_ms(3_000);
    assert_eq!(bench.read(reg::SECONDS), 0x50);
    bench.write(reg::A, 0x26);
    bench.at_ms(3_499);
    assert_eq!(bench.read(reg::SECONDS), 0x50);
    bench.at_ms(3_500);
    assert_eq!(bench.read(reg::SECONDS), 0x51);
}
