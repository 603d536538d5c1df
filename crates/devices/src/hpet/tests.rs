//! Timers as systems set them up.

use super::*;
use crate::irq::testing::Recorder;

#[derive(Default)]
struct Messages(Mutex<Vec<MsiMessage>>);

impl MsiSink for Messages {
    fn send(&self, message: MsiMessage) {
        self.0.lock().unwrap().push(message);
    }
}

struct Bench {
    clock: Clock,
    timers: TimerQueue,
    irq: Arc<Recorder>,
    messages: Arc<Messages>,
    hpet: Arc<Hpet>,
}

impl Bench {
    fn new() -> Self {
        let clock = Clock::manual();
        let timers = TimerQueue::without_thread(clock.clone());
        let irq = Arc::new(Recorder::default());
        let messages = Arc::new(Messages::default());
        let lines = irq.clone();
        let lines: Lines = Box::new(move |line| IrqLine::new(lines.clone(), line));
        let hpet = Hpet::new(&timers, lines, messages.clone());
        Self { clock, timers, irq, messages, hpet }
    }

    fn read(&self, offset: u64) -> u64 {
        self.hpet.read(offset, 8)
    }

    fn write(&self, offset: u64, value: u64) {
        self.hpet.write(offset, 8, value);
    }

    /// Lets time pass up to `us` microseconds.
    fn run_to(&self, us: u64) {
        self.clock.set(us * 1000);
        self.timers.fire_due();
    }
}

#[test]
fn registers_read_as_on_other_machines() {
    let bench = Bench::new();
    assert_eq!(bench.read(0), 0x0098_9680_8086_a201);
    assert_eq!(bench.hpet.read(4, 4), 0x0098_9680);
    assert_eq!((bench.hpet.read(0, 2), bench.hpet.read(2, 4)), (0, 0));
    for timer in 0..3 {
        assert_eq!(bench.read(0x100 + 0x20 * timer), 0x4_0000_0030);
        assert_eq!(bench.read(0x108 + 0x20 * timer), u64::MAX);
        bench.hpet.write(0x100 + 0x20 * timer, 4, 0xffff_ffff);
        assert_eq!(bench.hpet.read(0x100 + 0x20 * timer, 4), 0x7f7e);
    }
    assert_eq!(bench.read(0x160), 0);
    bench.hpet.write(0xf0, 4, 0x1000);
    bench.hpet.write(0xf4, 4, 0x77);
    assert_eq!(bench.read(0xf0), 0x77_0000_1000);
    bench.run_to(5);
    assert_eq!(bench.read(0xf0), 0x77_0000_1000, "it stands");
    bench.write(0x10, 1);
    bench.run_to(10);
    assert_eq!(bench.read(0xf0), 0x77_0000_1000 + 500);
    bench.write(0x10, 0);
    bench.run_to(20);
    assert_eq!(bench.read(0xf0), 0x77_0000_1000 + 500);
}

#[test]
fn a_timer_in_place_of_the_8254_takes_its_interrupt() {
    let bench = Bench::new();
    bench.hpet.set_level(PIT_INPUT, true);
    bench.hpet.set_level(RTC_INPUT, true);
    assert!(bench.irq.level(0) && bench.irq.level(8));
    // As Linux sets it up: periodic, 1 ms.
    bench.write(0x10, 3);
    assert!(!bench.irq.level(0) && !bench.irq.level(8));
    bench.hpet.set_level(PIT_INPUT, false);
    bench.hpet.set_level(PIT_INPUT, true);
    assert_eq!(bench.irq.rises(0), 1);
    bench.write(0x100, 0x14c);
    bench.write(0x108, 100_000);
    bench.write(0x108, 100_000);
    bench.run_to(999);
    assert_eq!(bench.irq.rises(0), 1);
    for ms in 1..=3 {
        bench.run_to(ms * 1000);
        assert_eq!(bench.irq.rises(0), 1 + ms as usize);
    }
    // The host was late: one interrupt, and in step again.
    bench.run_to(7500);
    assert_eq!(bench.irq.rises(0), 5);
    assert_eq!(bench.read(0x108), 800_000);
    bench.write(0x10, 1);
    assert!(bench.irq.level(0) && bench.irq.level(8));
}

#[test]
fn one_shot_timers_match_once_and_late_ones_at_once() {
    let bench = Bench::new();
    bench.write(0x10, 1);
    // Level-triggered, on line 2.
    bench.write(0x120, 0x406);
    bench.write(0x128, 1_000);
    bench.run_to(10);
    assert!(bench.irq.level(2));
    assert_eq!(bench.read(0x20), 2);
    bench.write(0x20, 2);
    assert!(!bench.irq.level(2));
    bench.run_to(1000);
    assert_eq!(bench.irq.rises(2), 1);
    bench.write(0x128, 500);
    bench.timers.fire_due();
    assert_eq!(bench.irq.rises(2), 2);
    // By message.
    bench.write(0x150, 0xfee0_0000_0000_0041);
    bench.write(0x140, 0x4004);
    bench.write(0x148, 200_000);
    bench.run_to(2000);
    let sent = MsiMessage { address: 0xfee0_0000, data: 0x41 };
    assert_eq!(*bench.messages.0.lock().unwrap(), [sent]);
}

#[test]
fn narrow_timers_wrap_at_32_bits() {
    let bench = Bench::new();
    bench.write(0xf0, 0xffff_ff00);
    bench.write(0x100, 0x504);
    bench.hpet.write(0x108, 4, 0x100);
    bench.write(0x10, 1);
    bench.run_to(5);
    assert_eq!(bench.irq.rises(2), 0);
    bench.run_to(6);
    assert_eq!(bench.irq.rises(2), 1);
}
