//! The channels against the data sheet, on a clock that is set by hand.

use super::*;
use crate::irq::testing::Recorder;

struct Bench {
    clock: Clock,
    timers: TimerQueue,
    pit: Arc<I8254>,
    irq: Arc<Recorder>,
}

fn bench() -> Bench {
    let clock = Clock::manual();
    let timers = TimerQueue::without_thread(clock.clone());
    let irq = Arc::new(Recorder::default());
    let pit = I8254::new(&timers, IrqLine::new(irq.clone(), 0));
    Bench { clock, timers, pit, irq }
}

impl Bench {
    /// Sets the time to the first nanosecond of `tick`.
    fn at(&self, tick: u64) {
        self.clock.set(ns_of(tick));
        self.timers.fire_due();
    }

    fn program(&self, channel: u8, mode: u8, count: u16) {
        self.pit.write_port(CONTROL, channel << 6 | 0x30 | mode << 1);
        let [low, high] = count.to_le_bytes();
        self.pit.write_port(PORT + u16::from(channel), low);
        self.pit.write_port(PORT + u16::from(channel), high);
    }

    fn count(&self, channel: u8) -> u16 {
        self.pit.write_port(CONTROL, channel << 6);
        let port = PORT + u16::from(channel);
        u16::from_le_bytes([self.pit.read_port(port), self.pit.read_port(port)])
    }
}

#[test]
fn tick_conversions_are_inverse() {
    for tick in [0, 1, 2, 1000, 1_193_182, 5_000_000_000, 20_000_000_000_000] {
        assert_eq!(ticks_of(ns_of(tick)), tick);
        assert!(tick == 0 || ticks_of(ns_of(tick) - 1) == tick - 1);
    }
}

#[test]
fn a_rate_generator_interrupts_once_a_period_for_ever() {
    let bench = bench();
    // The output goes high with the mode, which is an edge as well.
    bench.program(0, 2, 1193);
    assert_eq!(bench.irq.rises(0), 1);
    for round in 1..=1000 {
        bench.at(round * 1193);
        assert_eq!(bench.irq.rises(0), round as usize);
        bench.at(round * 1193 + 1);
        assert_eq!(bench.irq.rises(0), round as usize + 1);
    }
}

#[test]
fn the_count_goes_down_by_one_a_tick() {
    let bench = bench();
    bench.program(2, 0, 1000);
    // The gate is low: it stands at its count.
    bench.at(100);
    assert_eq!(bench.count(2), 1000);
    bench.pit.write_port(CONTROL_B_PORT, GATE_2);
    bench.at(350);
    assert_eq!(bench.count(2), 750);
    assert_eq!(bench.pit.read_port(CONTROL_B_PORT) & OUT_2, 0);
    bench.pit.write_port(CONTROL_B_PORT, 0);
    bench.at(5000);
    assert_eq!(bench.count(2), 750);
    bench.pit.write_port(CONTROL_B_PORT, GATE_2);
    bench.at(5750);
    assert_eq!(bench.pit.read_port(CONTROL_B_PORT) & OUT_2, OUT_2);
    bench.at(5751);
    assert_eq!(bench.count(2), 0xffff);
}

#[test]
fn mode_0_raises_its_output_once_and_falls_when_written() {
    let bench = bench();
    bench.program(0, 0, 100);
    assert!(!bench.irq.level(0));
    bench.at(100);
    assert!(!bench.irq.level(0));
    bench.at(101);
    assert!(bench.irq.level(0));
    bench.at(1_000_000);
    assert_eq!(bench.irq.rises(0), 1);
    bench.pit.write_port(PORT, 5);
    assert!(!bench.irq.level(0));
}

#[test]
fn a_square_wave_halves_and_takes_a_new_count_at_a_half() {
    let bench = bench();
    bench.pit.write_port(CONTROL_B_PORT, GATE_2);
    bench.program(2, 3, 101);
    let high = |bench: &Bench| bench.pit.read_port(CONTROL_B_PORT) & OUT_2 != 0;
    bench.at(1);
    assert_eq!(bench.count(2), 100);
    bench.at(51);
    assert!(high(&bench));
    assert_eq!(bench.count(2), 0);
    bench.at(52);
    assert!(!high(&bench));
    assert_eq!(bench.count(2), 100);
    bench.at(101);
    assert!(!high(&bench));
    bench.at(102);
    assert!(high(&bench));
    // Written within the high half: the low half is the new count's.
    bench.pit.write_port(PORT + 2, 20);
    bench.pit.write_port(PORT + 2, 0);
    bench.at(102 + 50);
    assert!(high(&bench));
    bench.at(102 + 51);
    assert!(!high(&bench));
    bench.at(102 + 51 + 9);
    assert!(!high(&bench));
    bench.at(102 + 51 + 10);
    assert!(high(&bench));
}

#[test]
fn read_back_latches_status_then_count() {
    let bench = bench();
    bench.program(1, 2, 18);
    bench.at(5);
    bench.pit.write_port(CONTROL, 0xc0 | 1 << 2);
    bench.at(9);
    assert_eq!(bench.pit.read_port(PORT + 1), 0x80 | 3 << 4 | 2 << 1);
    assert_eq!(bench.pit.read_port(PORT + 1), 14);
    assert_eq!(bench.pit.read_port(PORT + 1), 0);
    // Nothing is latched any more.
    assert_eq!(bench.pit.read_port(PORT + 1), 10);
}

#[test]
fn bcd_counts_in_decimal() {
    let bench = bench();
    bench.pit.write_port(CONTROL, 0x31);
    bench.pit.write_port(PORT, 0x00);
    bench.pit.write_port(PORT, 0x10);
    bench.at(1 + 1);
    bench.pit.write_port(CONTROL, 0);
    assert_eq!([bench.pit.read_port(PORT), bench.pit.read_port(PORT)], [0x99, 0x09]);
    bench.at(1 + 1001);
    bench.pit.write_port(CONTROL, 0);
    assert_eq!([bench.pit.read_port(PORT), bench.pit.read_port(PORT)], [0x99, 0x99]);
}

#[test]
fn a_late_host_makes_up_for_lost_interrupts_without_a_flood() {
    let bench = bench();
    bench.program(0, 2, 1000);
    bench.at(10_500);
    // Each of the ten comes with room to run the guest between two.
    for i in 1..40 {
        bench.at(10_500 + i * MIN_SPACING);
    }
    assert_eq!(bench.irq.rises(0), 1 + 10);
    bench.program(0, 2, 2);
    let before = bench.irq.rises(0);
    for tick in 20_000..21_200 {
        bench.at(tick);
    }
    assert!(bench.irq.rises(0) - before <= 110, "{}", bench.irq.rises(0) - before);
}

#[test]
fn hardware_triggered_one_shot() {
    let bench = bench();
    bench.program(2, 1, 50);
    bench.at(500);
    assert_ne!(bench.pit.read_port(CONTROL_B_PORT) & OUT_2, 0);
    bench.pit.write_port(CONTROL_B_PORT, GATE_2);
    bench.at(550);
    assert_eq!(bench.pit.read_port(CONTROL_B_PORT) & OUT_2, 0);
    bench.at(551);
    assert_ne!(bench.pit.read_port(CONTROL_B_PORT) & OUT_2, 0);
}
