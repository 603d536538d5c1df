//! What suites do with these devices.

use std::sync::Arc;
use std::sync::Mutex;

use bus::{AddressSpace, Clock, IrqLine, MsiMessage, MsiSink, TimerQueue};
use memory::GuestMemory;

use super::*;
use crate::irq::testing::Recorder;
use crate::pci::{Devfn, PciBus, PciFunction, PciWiring};

#[derive(Default)]
struct Messages(Mutex<Vec<MsiMessage>>);

impl MsiSink for Messages {
    fn send(&self, message: MsiMessage) {
        self.0.lock().unwrap().push(message);
    }
}

struct Bench {
    ports: Arc<AddressSpace>,
    mmio: Arc<AddressSpace>,
    lines: Arc<Recorder>,
    messages: Arc<Messages>,
    bus: PciBus,
}

fn bench() -> Bench {
    let (ports, mmio) = (Arc::new(AddressSpace::new()), Arc::new(AddressSpace::new()));
    let lines = Arc::new(Recorder::default());
    let router = [0, 1, 2, 3].map(|pin| IrqLine::new(lines.clone(), pin));
    let messages = Arc::new(Messages::default());
    let bus = PciBus::new(ports.clone(), mmio.clone(), router, messages.clone());
    Bench { ports, mmio, lines, messages, bus }
}

impl Bench {
    fn wiring(&self) -> PciWiring {
        self.bus.wiring(Devfn::new(1, 0), 1)
    }
}

#[test]
fn the_register_shows_any_bytes_and_lines_follow_writes() {
    let Bench { ports, mmio, lines, .. } = bench();
    let device = PcTestDev::new(|pin| IrqLine::new(lines.clone(), pin));
    device.attach(&ports, &mmio).unwrap();
    ports.write(0xe0, 4, 0x1234_5678);
    assert_eq!(ports.read(0xe1, 2), Some(0x3456));
    ports.write(0xe2, 1, 0xaa);
    assert_eq!(ports.read(0xe8, 4), Some(0x12aa_5678));
    assert_eq!(ports.read(0xe3, 4), Some(0x12), "past its end");
    ports.write(0x2005, 1, 1);
    assert!(lines.level(5));
    ports.write(0x2005, 4, 0);
    assert!(!lines.level(5));
    assert_eq!(ports.read(0x2010, 1), None);
    mmio.write(0xff00_0008, 8, 0x1122_3344_5566_7788);
    assert_eq!(mmio.read(0xff00_000a, 2), Some(0x5566));
    assert_eq!(mmio.read(0xff00_fffe, 4), Some(0));
}

#[test]
fn writes_are_counted_as_the_test_says() {
    let bench = bench();
    let device = PciTestDev::new("t", 0x1_0000, bench.wiring()).unwrap();
    device.write_config(0x10, 4, 0xfe00_0000);
    device.write_config(0x14, 4, 0xc000);
    device.write_config(4, 2, 3);
    let ports = &bench.ports;
    ports.write(0xc000, 1, 0);
    assert_eq!(ports.read(0xc000, 2), Some(0x103));
    assert_eq!(ports.read(0xc004, 4), Some(0x83));
    assert_eq!(ports.read(0xc008, 4), Some(0xfa));
    assert_eq!(ports.read(0xc010, 4), Some(0x7472_6f70));
    for (size, value, count) in [(1, 0xfa, 1), (1, 0xfb, 1), (2, 0xfa, 2)] {
        ports.write(0xc083, size, value);
        assert_eq!(ports.read(0xc00c, 4), Some(count));
    }
    ports.write(0xc000, 1, 1);
    ports.write(0xc084, 1, 0xce);
    assert_eq!(ports.read(0xc00c, 4), Some(0), "handed on");
    ports.write(0xc000, 1, 3);
    assert_eq!(ports.read(0xc000, 4), Some(0));
    bench.mmio.write(0xfe00_0000, 1, 2);
    assert_eq!(bench.mmio.read(0xfe00_0000, 8), Some(0x802_0000_0102));
    assert_eq!(ports.read(0xc000, 4), Some(0), "a test of the other BAR");
    assert!(PciTestDev::new("t", 3, bench.wiring()).is_err());
}

#[test]
fn edu_computes_transfers_and_interrupts() {
    let bench = bench();
    let clock = Clock::manual();
    let timers = TimerQueue::without_thread(clock.clone());
    let memory = Arc::new(GuestMemory::new(&[(0, 0x1_0000)]).unwrap());
    let config = EduConfig::default();
    let edu = Edu::new("edu", config, bench.wiring(), memory.clone(), &timers);
    edu.write_config(0x10, 4, 0xfe00_0000);
    edu.write_config(4, 2, 6);
    let read = |offset: u64, size| bench.mmio.read(0xfe00_0000 + offset, size).unwrap();
    let write = |offset: u64, size, value| bench.mmio.write(0xfe00_0000 + offset, size, value);
    assert_eq!(read(0, 4), 0x0100_00ed);
    assert_eq!((read(0, 8), read(0, 1)), (u64::MAX, 0));
    write(4, 4, 0x1234_5678);
    assert_eq!(read(4, 4), 0xedcb_a987);
    write(0x20, 4, 0xff);
    write(8, 4, 5);
    assert_eq!((read(8, 4), read(0x24, 4)), (120, 1));
    assert!(bench.lines.level(0));
    write(0x64, 4, 1);
    assert!(!bench.lines.level(0));

    // There and back again, with a message at the end.
    edu.write_config(0x44, 4, 0xfee0_0000);
    edu.write_config(0x4c, 2, 0x4041);
    edu.write_config(0x42, 2, 1);
    memory.write(0x1000, b"sixteen bytes...").unwrap();
    let transfer = |source, destination, count: u64, command| {
        for (register, value) in [(0x80, source), (0x88, destination), (0x90, count)] {
            write(register, 8, value);
        }
        write(0x98, 8, command);
        assert_eq!(read(0x98, 8) & 1, 1);
        clock.set(clock.now_ns() + 100_000_000);
        timers.fire_due();
        assert_eq!(read(0x98, 8) & 1, 0);
    };
    transfer(0x1000, 0x4_0010, 16, 1);
    transfer(0x4_0010, 0x2000, 16, 7);
    let mut bytes = [0; 16];
    memory.read(0x2000, &mut bytes).unwrap();
    assert_eq!(&bytes, b"sixteen bytes...");
    let sent = MsiMessage { address: 0xfee0_0000, data: 0x4041 };
    assert_eq!(*bench.messages.0.lock().unwrap(), [sent]);
    assert!(!bench.lines.level(0));
    assert_eq!(read(0x24, 4), 0x100);
    // Out of the buffer, and all the numbers there are.
    transfer(0x4_0010, 0x3000, 0x1000, 3);
    transfer(u64::MAX, 0, u64::MAX, 3);
    memory.read(0x3000, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 16]);
}
