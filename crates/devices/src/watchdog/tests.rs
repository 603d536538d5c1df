//! Watchdogs as drivers use them.

use std::sync::Arc;

use bus::{AddressSpace, Clock, Device, IrqLine, MsiMessage, MsiSink, TimerQueue};

use super::{I6300Esb, Ib700};
use crate::pci::{Devfn, PciBus, PciFunction};
use crate::testing::Wishes;

const SECOND: u64 = 1_000_000_000;
const EXPIRED: &str = "notice WatchdogExpired";

struct NoMsi;

impl MsiSink for NoMsi {
    fn send(&self, _message: MsiMessage) {}
}

struct Bench {
    timers: TimerQueue,
    ports: Arc<AddressSpace>,
    mmio: Arc<AddressSpace>,
    wishes: Arc<Wishes>,
}

impl Bench {
    fn new() -> Self {
        Self {
            timers: TimerQueue::without_thread(Clock::manual()),
            ports: Arc::default(),
            mmio: Arc::default(),
            wishes: Arc::default(),
        }
    }

    /// Whether a watchdog expires within `ns` nanoseconds.
    fn expires_within(&self, ns: u64) -> bool {
        self.timers.advance(self.timers.clock().now_ns() + ns);
        let wishes = self.wishes.taken();
        assert!(wishes.iter().all(|wish| wish == EXPIRED) && wishes.len() < 2, "{wishes:?}");
        !wishes.is_empty()
    }

    /// The PCI function, with its registers at 0xfe000000.
    fn i6300esb(&self) -> (Arc<I6300Esb>, PciBus) {
        let lines = [0; 4].map(|_| IrqLine::unconnected());
        let bus = PciBus::new(self.ports.clone(), self.mmio.clone(), lines, Arc::new(NoMsi));
        let wiring = bus.wiring(Devfn::new(4, 0), 1);
        let watchdog = I6300Esb::new("watchdog0", wiring, &self.timers, self.wishes.clone());
        watchdog.write_config(0x10, 4, 0xfe00_0000);
        watchdog.write_config(4, 2, 2);
        (watchdog, bus)
    }

    /// Writes a register that has to be unlocked.
    fn write(&self, offset: u64, size: u8, value: u64) {
        for byte in [0x80, 0x86] {
            self.mmio.write(0xfe00_000c, 2, byte);
        }
        self.mmio.write(0xfe00_0000 + offset, size, value);
    }
}

#[test]
fn an_ib700_that_is_fed_does_not_bite() {
    let bench = Bench::new();
    Ib700::new(&bench.timers, bench.wishes.clone()).attach(&bench.ports).unwrap();
    assert!(!bench.expires_within(100 * SECOND), "it waits to be started");
    // Code 12 is six seconds.
    bench.ports.write(0x443, 1, 12);
    for _ in 0..3 {
        assert!(!bench.expires_within(5 * SECOND));
        bench.ports.write(0x443, 1, 12);
    }
    assert!(bench.expires_within(6 * SECOND));
    assert!(!bench.expires_within(100 * SECOND), "once is enough");
    bench.ports.write(0x443, 1, 0);
    assert!(!bench.expires_within(29 * SECOND));
    bench.ports.write(0x441, 1, 0);
    assert!(!bench.expires_within(100 * SECOND));
}

#[test]
fn an_i6300esb_bites_after_its_second_stage() {
    let bench = Bench::new();
    let (watchdog, _bus) = bench.i6300esb();
    // A count of 1,000 is 0.993 seconds.
    bench.write(0, 4, 1000);
    bench.write(4, 4, 2000);
    bench.mmio.write(0xfe00_0000, 4, 1);
    assert!(!bench.expires_within(100 * SECOND), "it is not enabled");
    watchdog.write_config(0x68, 1, 2);
    assert!(!bench.expires_within(29 * SECOND / 10));
    bench.write(0xc, 2, 0x100);
    assert!(!bench.expires_within(29 * SECOND / 10), "fed");
    assert_eq!(bench.mmio.read(0xfe00_000c, 2), Some(0));
    assert!(bench.expires_within(SECOND / 10));
    assert_eq!(bench.mmio.read(0xfe00_000c, 2), Some(0x1200), "the reset was its own");
    watchdog.reset();
    watchdog.write_config(0x10, 4, 0xfe00_0000);
    watchdog.write_config(4, 2, 2);
    assert_eq!(bench.mmio.read(0xfe00_000c, 2), Some(0x1200));
    bench.write(0xc, 2, 0x200);
    assert_eq!(bench.mmio.read(0xfe00_000c, 2), Some(0));
    assert!(!bench.expires_within(10_000 * SECOND), "a reset ends it");
}

#[test]
fn an_i6300esb_that_is_locked_runs_on() {
    let bench = Bench::new();
    let (watchdog, _bus) = bench.i6300esb();
    bench.write(0, 4, 1);
    bench.write(4, 4, 1);
    // Without output, and over and over.
    watchdog.write_config(0x60, 2, 0x20);
    watchdog.write_config(0x68, 1, 7);
    watchdog.write_config(0x68, 1, 0);
    assert_eq!(watchdog.read_config(0x68, 1), 7);
    assert!(!bench.expires_within(SECOND));
    watchdog.write_config(0x60, 2, 0);
    assert!(bench.expires_within(SECOND), "it was running all the time");
}
