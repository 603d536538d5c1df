//! The clock against the data sheet, on a time that is set by hand.

use super::*;
use crate::irq::testing::Recorder;
use crate::testing::Wishes;

struct Bench {
    clock: Clock,
    timers: TimerQueue,
    rtc: Arc<Mc146818>,
    irq: Arc<Recorder>,
    wishes: Arc<Wishes>,
}

/// A clock that shows 2024-02-28 23:59:50 UTC and goes by guest time.
fn bench() -> Bench {
    let config =
        RtcConfig { base: RtcBase::At(1_709_164_790), source: RtcSource::Guest, slew: false };
    bench_with(config)
}

fn bench_with(config: RtcConfig) -> Bench {
    let clock = Clock::manual();
    let timers = TimerQueue::without_thread(clock.clone());
    let irq = Arc::new(Recorder::default());
    let wishes = Arc::new(Wishes::default());
    let reference = Arc::new(Reference::new(&config, &clock));
    let rtc = Mc146818::new(reference, &timers, IrqLine::new(irq.clone(), 8), wishes.clone());
    Bench { clock, timers, rtc, irq, wishes }
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
fn the_century_is_a_number_as_the_others() {
    let bench = bench();
    bench.write(reg::B, B_BINARY | B_24_HOURS);
    assert_eq!(bench.time(), [20, 24, 2, 28, 23, 59, 50]);
    bench.write(reg::B, B_BINARY | B_24_HOURS | B_SET);
    for (index, value) in [(reg::CENTURY, 19), (reg::YEAR, 99), (reg::MONTH, 12), (reg::DAY, 31)] {
        bench.write(index, value);
    }
    bench.write(reg::B, B_BINARY | B_24_HOURS);
    bench.at_ms(10_000);
    assert_eq!(bench.time(), [20, 0, 1, 1, 0, 0, 0]);
    bench.write(reg::B, B_24_HOURS);
    assert_eq!(bench.time(), [0x20, 0, 1, 1, 0, 0, 0]);
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
fn each_period_begins_with_the_tick_before() {
    let bench = bench();
    bench.write(reg::B, B_24_HOURS | B_PERIODIC);
    bench.write(reg::A, 0x2d);
    // 8 Hz, and 2 Hz after each tick of it, in turn; the guest reads register C late.
    let mut tick_ms = 0;
    for (period_ms, next_rate) in [(125, 0x2f), (500, 0x2d)].into_iter().cycle().take(10) {
        tick_ms += period_ms;
        bench.at_ms(tick_ms - 1);
        assert!(!bench.irq.level(8), "{tick_ms}");
        bench.at_ms(tick_ms);
        assert!(bench.irq.level(8), "{tick_ms}");
        bench.at_ms(tick_ms + 20);
        assert_eq!(bench.read(reg::C) & (C_ANY | B_PERIODIC), C_ANY | B_PERIODIC);
        bench.write(reg::A, next_rate);
    }
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
fn memory_keeps_what_is_written_and_what_the_board_wrote() {
    let bench = bench();
    for (at, value) in [(0x14, 6), (0x5f, 3), (reg::A as u8, 0), (reg::CENTURY as u8, 0x99)] {
        bench.rtc.set_memory(at, value);
    }
    bench.write(0x40, 0x5a);
    bench.rtc.reset();
    assert_eq!([0x14, 0x5f, 0x40].map(|index| bench.read(index)), [6, 3, 0x5a]);
    assert_eq!([reg::A, reg::CENTURY, reg::CENTURY_PS2].map(|i| bench.read(i)), [0x26, 0x20, 0x20]);
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

#[test]
fn setting_the_clock_is_told() {
    let bench = bench();
    bench.at_ms(400);
    bench.write(reg::SECONDS, 0x20);
    assert_eq!(bench.wishes.taken(), ["notice RtcChanged { offset: -30 }"]);
    bench.write(reg::B, 0x82);
    bench.write(reg::YEAR, 0x25);
    assert!(bench.wishes.taken().is_empty(), "not while it is held");
    bench.write(reg::B, 0x02);
    assert_eq!(bench.wishes.taken().len(), 1);
}

#[test]
fn missed_ticks_are_made_up_for_if_asked() {
    let config = RtcConfig { base: RtcBase::At(0), source: RtcSource::Guest, slew: true };
    let bench = bench_with(config);
    // 1,024 Hz.
    bench.write(reg::B, 0x42);
    bench.at_ms(100);
    let ticks = (0..200).take_while(|_| bench.read(reg::C) & 0x40 != 0).count();
    assert_eq!(ticks, 102);
    bench.at_ms(200);
    bench.rtc.forget_missed_ticks();
    assert_eq!((bench.read(reg::C), bench.read(reg::C)), (0xc0, 0));
}
