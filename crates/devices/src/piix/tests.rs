//! The functions of the PIIX as ACPI and a driver use them.

use std::sync::Arc;

use bus::{AddressSpace, Clock, IrqLine, IrqSink, MsiMessage, MsiSink, TimerQueue, WakeCause};

use super::*;
use crate::irq::IrqRouter;
use crate::irq::testing::Recorder;
use crate::pci::{PciBus, PciFunction};
use crate::testing::Wishes;

struct NoMsi;
impl MsiSink for NoMsi {
    fn send(&self, _message: MsiMessage) {}
}

struct Bench {
    clock: Clock,
    timers: TimerQueue,
    ports: Arc<AddressSpace>,
    pm: Arc<Piix4Pm>,
    piix3: Arc<Piix3>,
    router: Arc<IrqRouter>,
    irq: Arc<Recorder>,
    pic: Arc<Recorder>,
    wishes: Arc<Wishes>,
    _bus: PciBus,
}

/// Both functions, power management at 600h.
fn bench() -> Bench {
    let clock = Clock::manual();
    let timers = TimerQueue::without_thread(clock.clone());
    let ports = Arc::new(AddressSpace::new());
    let irq = Arc::new(Recorder::default());
    let pic = Arc::new(Recorder::default());
    let sink: Arc<dyn IrqSink> = pic.clone();
    let router = IrqRouter::new(sink, Arc::new(Recorder::default()));
    let wishes = Arc::new(Wishes::default());
    let bus = PciBus::new(ports.clone(), Arc::default(), router.pirq_lines(), Arc::new(NoMsi));
    let sci = IrqLine::new(irq.clone(), 9);
    let pm = Piix4Pm::new(&ports, &timers, sci, wishes.clone(), PmOptions::default());
    pm.attach(&bus, &ports).unwrap();
    pm.write_config(reg::PM_BASE, 4, 0x600);
    pm.write_config(reg::PM_ENABLE, 1, 1);
    let piix3 = Piix3::new(router.clone(), wishes.clone());
    piix3.attach(&bus, &ports).unwrap();
    Bench { clock, timers, ports, pm, piix3, router, irq, pic, wishes, _bus: bus }
}

#[test]
fn the_window_moves_and_closes() {
    let bench = bench();
    assert_eq!(bench.ports.read(0x604, 2), Some(0));
    bench.pm.write_config(reg::PM_BASE, 4, 0xb000);
    assert_eq!(bench.ports.read(0x604, 2), None);
    assert_eq!(bench.ports.read(0xb004, 2), Some(0));
    bench.pm.write_config(reg::PM_ENABLE, 1, 0);
    assert_eq!(bench.ports.read(0xb004, 2), None);
}

#[test]
fn the_power_button_reaches_a_guest_that_listens() {
    let bench = bench();
    bench.ports.write(0x602, 2, 0x100);
    bench.pm.press_power_button();
    assert!(!bench.irq.level(9), "not in ACPI mode");
    bench.ports.write(0xb2, 1, ACPI_ENABLE.into());
    assert_eq!(bench.ports.read(0x604, 2), Some(1));
    assert!(bench.irq.level(9));
    assert_eq!(bench.ports.read(0x600, 2), Some(0x100));
    bench.ports.write(0x600, 2, 0x100);
    assert!(!bench.irq.level(9));
    assert_eq!(bench.ports.read(0x600, 4), Some(0x100_0000));
}

#[test]
fn sleeps_are_asked_for_by_their_types() {
    let bench = bench();
    bench.ports.write(0x604, 2, 0x2401);
    bench.ports.write(0x604, 2, 0x2801);
    bench.ports.write(0x604, 2, 0x2c01);
    assert_eq!(bench.wishes.taken(), ["notice Suspend", "notice Hibernate"]);
    bench.pm.wake_up(WakeCause::User);
    assert_eq!(bench.ports.read(0x600, 2), Some(0x8100));
    bench.ports.write(0x600, 2, 0x8100);
    bench.pm.wake_up(WakeCause::Rtc);
    assert_eq!(bench.ports.read(0x600, 2), Some(0x8400));
    assert!(bench.pm.wakes_on(WakeCause::User) && !bench.pm.wakes_on(WakeCause::Rtc));
    bench.ports.write(0x602, 2, 0x400);
    assert!(bench.pm.wakes_on(WakeCause::Rtc));
    // The board has the general purpose events in a place of their own too.
    bench.ports.write(0xafe2, 2, 0x1234);
    assert_eq!(bench.ports.read(0x60e, 2), Some(0x1234));
    // By bytes, as some systems write it.
    bench.ports.write(0x604, 2, 0x0001);
    bench.ports.write(0x605, 1, 0x20);
    assert_eq!(bench.wishes.taken(), ["shutdown guest-shutdown"]);
}

#[test]
fn the_timer_counts_and_overflows() {
    let bench = bench();
    bench.clock.set(1_000_000_000);
    assert_eq!(bench.ports.read(0x608, 4), Some(3_579_545));
    bench.ports.write(0x604, 2, 1);
    bench.ports.write(0x602, 2, 1);
    bench.clock.set(2_343_000_000);
    bench.timers.fire_due();
    assert!(!bench.irq.level(9));
    bench.clock.set(2_344_000_000);
    bench.timers.fire_due();
    assert!(bench.irq.level(9));
    bench.ports.write(0x600, 2, 1);
    assert!(!bench.irq.level(9));
    bench.clock.set(4_688_000_000);
    bench.timers.fire_due();
    assert!(bench.irq.level(9));
    assert_eq!(bench.ports.read(0x608, 4).unwrap() >> 24, 0);
}

#[test]
fn pirq_routes_and_reset_control() {
    let bench = bench();
    let [a, ..] = bench.router.pirq_lines();
    a.set(true);
    assert!(!bench.pic.level(11));
    bench.piix3.write_config(reg::PIRQ_ROUTES, 1, 11);
    assert!(bench.pic.level(11));
    bench.piix3.write_config(reg::PIRQ_ROUTES, 1, 0x80);
    assert!(!bench.pic.level(11));
    // Lines that have another owner on the board can't be chosen.
    bench.piix3.write_config(reg::PIRQ_ROUTES, 1, 8);
    assert!(!bench.pic.level(8));
    bench.ports.write(0xcf9, 1, 2);
    assert_eq!(bench.ports.read(0xcf9, 1), Some(2));
    assert!(bench.wishes.taken().is_empty());
    bench.ports.write(0xcf9, 1, 6);
    assert_eq!(bench.wishes.taken(), ["reset guest-reset"]);
}

#[test]
fn eeproms_are_reached_through_the_ports_of_the_smbus() {
    let bench = bench();
    bench.pm.write_config(reg::SMBUS_BASE, 4, 0x700);
    bench.pm.write_config(reg::SMBUS_ENABLE, 1, 1);
    for (address, status) in [(0x91, 4), (0xa1, 2)] {
        bench.ports.write(0x704, 1, address);
        bench.ports.write(0x702, 1, 0x48);
        assert_eq!(bench.ports.read(0x700, 1), Some(1), "busy");
        assert_eq!(bench.ports.read(0x700, 1), Some(status));
        bench.ports.write(0x700, 1, 0x1e);
        assert_eq!(bench.ports.read(0x700, 1), Some(0));
    }
}
