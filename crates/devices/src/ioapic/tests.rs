//! Pins against the data sheet, and levels under races.

use super::*;
use crate::lapic::testing::Bench;
use accel::InterruptController;

struct Setup {
    bench: Bench,
    ioapic: Arc<IoApic>,
}

fn setup() -> Setup {
    let bench = Bench::new(2);
    for apic in bench.bus.apics() {
        apic.write(0xf0, 4, 0x1ff);
    }
    let ioapic = IoApic::new(bench.bus.clone());
    Setup { bench, ioapic }
}

impl Setup {
    fn write(&self, index: u8, value: u32) {
        self.ioapic.write(IOREGSEL, 4, index.into());
        self.ioapic.write(IOWIN, 4, value.into());
    }

    fn read(&self, index: u8) -> u32 {
        self.ioapic.write(IOREGSEL, 4, index.into());
        self.ioapic.read(IOWIN, 4) as u32
    }

    fn entry(&self, pin: u8, low: u32, cpu: u32) {
        self.write(REDIRECTION + 2 * pin + 1, cpu << 24);
        self.write(REDIRECTION + 2 * pin, low);
    }

    fn acknowledge(&self, cpu: usize) -> Option<u8> {
        self.bench.bus.apics()[cpu].acknowledge()
    }

    fn end(&self, cpu: usize) {
        self.bench.bus.apics()[cpu].write(0xb0, 4, 0);
    }
}

#[test]
fn registers_read_as_they_should() {
    let setup = setup();
    assert_eq!(setup.read(VERSION), 0x0017_0020);
    assert_eq!(setup.read(REDIRECTION), 0x1_0000);
    setup.write(REDIRECTION, 0xffff_ffff);
    assert_eq!(setup.read(REDIRECTION), 0x1_afff);
    setup.write(ID, 0xff00_0000);
    assert_eq!(setup.read(ID), 0x0f00_0000);
    assert_eq!(setup.read(0x40), 0);
}

#[test]
fn an_edge_is_one_interrupt_at_the_addressed_cpu() {
    let setup = setup();
    setup.entry(4, 0x34, 1);
    setup.ioapic.set_level(4, true);
    setup.ioapic.set_level(4, true);
    assert_eq!(setup.acknowledge(0), None);
    assert_eq!(setup.acknowledge(1), Some(0x34));
    setup.end(1);
    assert_eq!(setup.acknowledge(1), None);
    setup.ioapic.set_level(4, false);
    setup.ioapic.set_level(4, true);
    assert_eq!(setup.acknowledge(1), Some(0x34));
}

#[test]
fn a_level_repeats_after_its_end_until_it_falls() {
    let setup = setup();
    setup.entry(10, 0x803a & !0x800, 0);
    setup.ioapic.set_level(10, true);
    for _ in 0..3 {
        assert_eq!(setup.acknowledge(0), Some(0x3a));
        assert_eq!(setup.read(REDIRECTION + 20) & 1 << 14, 1 << 14);
        assert_eq!(setup.acknowledge(0), None);
        setup.end(0);
    }
    setup.ioapic.set_level(10, false);
    // The last one was delivered while the line was still high.
    assert_eq!(setup.acknowledge(0), Some(0x3a));
    setup.end(0);
    assert_eq!(setup.read(REDIRECTION + 20) & 1 << 14, 0);
    assert_eq!(setup.acknowledge(0), None);
}

#[test]
fn a_masked_level_is_delivered_when_unmasked_and_a_masked_edge_is_lost() {
    let setup = setup();
    setup.entry(10, 0x1_803a, 0);
    setup.entry(4, 0x1_0034, 0);
    setup.ioapic.set_level(10, true);
    setup.ioapic.set_level(4, true);
    assert_eq!(setup.acknowledge(0), None);
    setup.entry(10, 0x803a, 0);
    setup.entry(4, 0x34, 0);
    assert_eq!(setup.acknowledge(0), Some(0x3a));
    setup.end(0);
    setup.ioapic.set_level(10, false);
    assert_eq!(setup.acknowledge(0), Some(0x3a));
    setup.end(0);
    assert_eq!(setup.acknowledge(0), None);
}

#[test]
fn going_to_edge_and_back_drops_remote_irr() {
    let setup = setup();
    setup.entry(11, 0x803b, 0);
    setup.ioapic.set_level(11, true);
    assert_eq!(setup.acknowledge(0), Some(0x3b));
    setup.entry(11, 0x1_003b, 0);
    assert_eq!(setup.read(REDIRECTION + 22), 0x1_003b);
    setup.entry(11, 0x803b, 0);
    setup.end(0);
    assert_eq!(setup.acknowledge(0), Some(0x3b));
}

#[test]
fn the_end_register_ends_too() {
    let setup = setup();
    setup.entry(11, 0x803b, 0);
    setup.ioapic.set_level(11, true);
    setup.ioapic.set_level(11, false);
    setup.ioapic.write(EOIR, 4, 0x3b);
    assert_eq!(setup.read(REDIRECTION + 22) & 1 << 14, 0);
}

#[test]
fn a_level_nobody_takes_waits_without_remote_irr() {
    let setup = setup();
    setup.entry(11, 0x803b, 7);
    setup.ioapic.set_level(11, true);
    assert_eq!(setup.read(REDIRECTION + 22) & 1 << 14, 0);
    setup.entry(11, 0x803b, 1);
    assert_eq!(setup.acknowledge(1), Some(0x3b));
}

/// A device thread raises and lowers a level line while the CPU acknowledges and ends: every raise is
/// seen, as the handler lowers the line before it ends the interrupt.
#[test]
fn levels_survive_races() {
    let setup = setup();
    setup.entry(10, 0x803a, 0);
    let signals = setup.bench.bus.apics()[0].signals().clone();
    const ROUNDS: usize = 20_000;
    std::thread::scope(|scope| {
        let (done, told) = std::sync::mpsc::channel();
        let setup = &setup;
        scope.spawn(move || {
            for _ in 0..ROUNDS {
                setup.ioapic.set_level(10, true);
                told.recv().unwrap();
            }
        });
        let mut served = 0;
        while served < ROUNDS {
            signals.wait(accel::Signal::Interrupt as u32, None);
            if setup.acknowledge(0).is_some() {
                setup.ioapic.set_level(10, false);
                // The device may raise again before the end of this interrupt.
                done.send(()).unwrap();
                setup.end(0);
                served += 1;
            }
        }
    });
}
