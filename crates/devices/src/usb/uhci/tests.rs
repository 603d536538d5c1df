//! The controller with a keyboard, driven by a schedule of the test's own.

use bus::{AddressSpace, MsiMessage, MsiSink};
use input::{InputEvent, Key};

use super::super::UsbBus;
use super::super::hid::HidKind;
use super::super::tests::Host;
use super::*;
use crate::irq::testing::Recorder;

const IO: u64 = 0xc000;
const LIST: u32 = 0x1000;
const QUEUE: u32 = 0x2000;
const TDS: u32 = 0x3000;
const DATA: u32 = 0x4000;
const ACTIVE: u32 = 3 << 27 | 1 << 23;
const COMPLETE: u32 = 1 << 24;
const SHORT: u32 = 1 << 29;

struct NoMsi;
impl MsiSink for NoMsi {
    fn send(&self, _message: MsiMessage) {}
}

struct Bench {
    host: Host,
    timers: TimerQueue,
    ports: Arc<AddressSpace>,
    memory: Arc<GuestMemory>,
    lines: Arc<Recorder>,
    _uhci: Arc<Uhci>,
}

/// With a keyboard on port 1, enabled, and the controller running.
fn bench() -> Bench {
    let host = Host::new();
    let timers = TimerQueue::without_thread(host.clock.clone());
    let ports = Arc::new(AddressSpace::new());
    let mmio = Arc::new(AddressSpace::new());
    let memory = Arc::new(GuestMemory::new(&[(0, 1 << 20)]).unwrap());
    let lines = Arc::new(Recorder::default());
    let wiring = PciWiring {
        ports: Arc::downgrade(&ports),
        mmio: Arc::downgrade(&mmio),
        intx: bus::IrqLine::new(lines.clone(), 4),
        pin: 4,
        msi: Arc::new(NoMsi),
        multifunction: false,
        rom: None,
    };
    let uhci = Uhci::new("uhci0", UhciModel::PIIX3, wiring, memory.clone(), &timers);
    let places = UsbBus::default();
    places.add_ports(None, &uhci);
    places.take(None).unwrap().plug(host.hid(HidKind::Keyboard));
    uhci.write_config(0x20, 4, IO as u32);
    uhci.write_config(4, 2, 5);
    let bench = Bench { host, timers, ports, memory, lines, _uhci: uhci };
    bench.start();
    bench
}

impl Bench {
    fn start(&self) {
        for frame in 0..1024 {
            self.write(LIST + 4 * frame, QUEUE | 2);
        }
        self.write(QUEUE, 1);
        self.write(QUEUE + 4, 1);
        self.outl(0x08, LIST);
        self.outw(0x10, 1 << 9);
        self.outw(0x10, 0);
        self.outw(0x10, 0xe);
        assert_eq!(self.inw(0x10), 0x85);
        self.outw(0x04, 0xf);
        self.outw(0x00, 1);
    }

    fn inw(&self, offset: u64) -> u16 {
        self.ports.read(IO + offset, 2).unwrap() as u16
    }
    fn outw(&self, offset: u64, value: u16) {
        assert!(self.ports.write(IO + offset, 2, value.into()));
    }
    fn outl(&self, offset: u64, value: u32) {
        assert!(self.ports.write(IO + offset, 4, value.into()));
    }
    fn read(&self, address: u32) -> u32 {
        let mut bytes = [0; 4];
        self.memory.read(address.into(), &mut bytes).unwrap();
        u32::from_le_bytes(bytes)
    }
    fn write(&self, address: u32, value: u32) {
        self.memory.write(address.into(), &value.to_le_bytes()).unwrap();
    }

    /// Lets so many frames pass, one by one.
    fn frames(&self, count: u64) {
        for _ in 0..count {
            self.host.clock.set(self.host.clock.now_ns() + FRAME_NS);
            self.timers.fire_due();
        }
    }

    /// A TD in place `index`, linked to the next; its address.
    fn td(&self, index: u32, status: u32, pid: u8, endpoint: u32, length: u32) -> u32 {
        let td = TDS + 32 * index;
        self.write(td, (td + 32) | 4);
        self.write(td + 4, status);
        let length = length.wrapping_sub(1) & 0x7ff;
        self.write(td + 8, length << 21 | endpoint << 15 | u32::from(pid));
        self.write(td + 12, DATA + 0x100 * index);
        td
    }

    fn last(&self, td: u32) {
        self.write(td, 1);
    }

    fn status(&self, index: u32) -> u32 {
        self.read(TDS + 32 * index + 4)
    }

    /// Queues a control transfer that reads up to 16 bytes.
    fn control(&self, setup: [u8; 8], flags: u32) {
        self.memory.write(DATA.into(), &setup).unwrap();
        self.td(0, ACTIVE, 0x2d, 0, 8);
        self.td(1, ACTIVE | flags, 0x69, 0, 8);
        self.td(2, ACTIVE | flags, 0x69, 0, 8);
        let status = self.td(3, ACTIVE | COMPLETE, 0xe1, 0, 0);
        self.last(status);
        self.write(QUEUE + 4, TDS);
    }
}

#[test]
fn a_control_transfer_runs_in_a_frame_and_interrupts() {
    let bench = bench();
    bench.control([0x80, 6, 0, 1, 0, 0, 16, 0], SHORT);
    bench.frames(1);
    assert_eq!(bench.read(QUEUE + 4), 1, "the queue is done");
    assert_eq!(bench.status(0) & 0xff_ffff, 7);
    assert_eq!(bench.status(1) & 0xff_ffff, 7);
    assert_eq!(bench.status(3) & 0xff_ffff, 0x7ff);
    assert_eq!(bench.read(DATA + 0x100), 0x0200_0112);
    assert_eq!(bench.inw(2), 1);
    assert!(bench.lines.level(4));
    bench.outw(2, 1);
    assert!(!bench.lines.level(4));
    assert_eq!(bench.inw(6), 1);
}

#[test]
fn a_short_packet_stops_its_queue_for_software() {
    let bench = bench();
    // Eighteen bytes do not fill three packets.
    bench.control([0x80, 6, 0, 1, 0, 0, 18, 0], SHORT);
    bench.td(2, ACTIVE | SHORT, 0x69, 0, 64);
    bench.frames(1);
    assert_eq!(bench.status(2) & 0x80_07ff, 7);
    assert_eq!(bench.read(QUEUE + 4), (TDS + 64) | 4, "the queue stays");
    assert_eq!(bench.status(3) & 1 << 23, 1 << 23);
    assert_eq!(bench.inw(2), 1);
    bench.outw(4, 0x4);
    assert!(!bench.lines.level(4), "short packets are not asked for");
}

#[test]
fn errors_end_a_transfer() {
    let bench = bench();
    // A request that the device does not know.
    bench.control([0x80, 99, 0, 0, 0, 0, 8, 0], 0);
    bench.frames(1);
    assert_eq!(bench.status(1) & 0xff << 16, 1 << 22);
    assert_eq!(bench.inw(2), 2);
    bench.outw(2, 2);
    // More than there is room for.
    bench.control([0x80, 6, 0, 1, 0, 0, 18, 0], 0);
    bench.td(1, ACTIVE, 0x69, 0, 3);
    bench.frames(1);
    assert_eq!(bench.status(1) & 0xff << 16, 1 << 22 | 1 << 20);
    bench.outw(2, 2);
    // Nobody has the address: three attempts, one a frame.
    let td = bench.td(0, ACTIVE, 0x69, 0, 8);
    bench.last(td);
    bench.write(td + 8, 7 << 21 | 9 << 8 | 0x69);
    bench.write(QUEUE + 4, td);
    bench.frames(2);
    assert_eq!(bench.status(0) & 1 << 23, 1 << 23);
    assert_eq!(bench.inw(2), 0);
    bench.frames(1);
    assert_eq!(bench.status(0) & (3 << 27 | 0xff << 16), 1 << 22 | 1 << 18);
    assert_eq!(bench.inw(2), 2);
}

#[test]
fn an_idle_keyboard_is_asked_in_batches_until_a_key_is_pressed() {
    let bench = bench();
    // The configuration is set without the usual ceremony.
    bench.memory.write(DATA.into(), &[0, 9, 1, 0, 0, 0, 0, 0]).unwrap();
    bench.td(0, ACTIVE, 0x2d, 0, 8);
    let status = bench.td(1, ACTIVE, 0x69, 0, 0);
    bench.last(status);
    bench.write(QUEUE + 4, TDS);
    bench.frames(1);
    assert_eq!(bench.read(QUEUE + 4), 1);
    let poll = bench.td(2, ACTIVE | COMPLETE, 0x69, 1, 8);
    bench.last(poll);
    bench.write(QUEUE + 4, poll);
    bench.frames(40);
    assert_eq!(bench.status(2) & 0xff << 16, 0x88 << 16, "active, not now");
    let next = bench.timers.fire_due().unwrap() - bench.host.clock.now_ns();
    assert!(next > FRAME_NS, "the next frame is {next} ns away");
    // The number goes on all the same.
    let before = bench.inw(6);
    bench.frames(3);
    assert_eq!(bench.inw(6), before + 3);
    bench.host.hub.send(None, &[InputEvent::Key { key: Key::Z, down: true }]);
    bench.frames(1);
    assert_eq!(bench.status(2) & 0xff_ffff, 7);
    assert_eq!(bench.read(DATA + 0x200) >> 16 & 0xff, 0x1d);
    assert!(bench.lines.level(4));
}

#[test]
fn hostile_schedules_end() {
    let bench = bench();
    // A queue that is its own successor, and a TD that is.
    bench.write(QUEUE, QUEUE | 2);
    bench.frames(1);
    assert_eq!(bench.inw(2), 0);
    bench.write(TDS, TDS);
    bench.write(TDS + 4, 0);
    for frame in 0..1024 {
        bench.write(LIST + 4 * frame, TDS);
    }
    bench.frames(1);
    assert_eq!(bench.inw(2), 0);
    // Two queues that lead to each other through their elements.
    bench.write(QUEUE + 4, (QUEUE + 16) | 2);
    bench.write(QUEUE + 16, 1);
    bench.write(QUEUE + 20, QUEUE | 2);
    for frame in 0..1024 {
        bench.write(LIST + 4 * frame, QUEUE | 2);
    }
    bench.frames(1);
    assert_eq!(bench.inw(2), 0);
    // A pointer to nowhere stops the controller, as does a packet of no kind.
    for (link, status) in [(0xf000_0002, 0x28), (TDS, 0x30)] {
        bench.write(TDS + 4, ACTIVE);
        bench.write(TDS + 8, 0x55);
        for frame in 0..1024 {
            bench.write(LIST + 4 * frame, link);
        }
        bench.outw(2, 0x1f);
        bench.outw(0, 1);
        bench.frames(1);
        assert_eq!(bench.inw(2), status);
        assert_eq!(bench.inw(0), 0);
        assert!(bench.lines.level(4));
    }
}

#[test]
fn ports_are_reset_enabled_and_resumed() {
    let bench = bench();
    bench.outw(0, 2);
    assert_eq!(bench.inw(0x10), 0x83);
    assert_eq!(bench.inw(0x12), 0x80);
    bench.outw(0x12, 4);
    assert_eq!(bench.inw(0x12), 0x80, "nothing to enable");
    assert_eq!(bench.ports.read(IO + 0x0c, 1), Some(64));
    assert!(bench.ports.write(IO + 0x0c, 1, 33));
    assert_eq!(bench.ports.read(IO + 0x0c, 1), Some(33));
    // A key wakes the host if the device may.
    bench.start();
    bench.memory.write(DATA.into(), &[0, 3, 1, 0, 0, 0, 0, 0]).unwrap();
    bench.td(0, ACTIVE, 0x2d, 0, 8);
    let status = bench.td(1, ACTIVE, 0x69, 0, 0);
    bench.last(status);
    bench.write(QUEUE + 4, TDS);
    bench.frames(1);
    bench.outw(0x10, 1 << 12 | 4);
    bench.host.hub.send(None, &[InputEvent::Key { key: Key::Z, down: true }]);
    assert_eq!(bench.inw(0x10) & (1 << 12 | 1 << 6), 1 << 12 | 1 << 6);
    assert_eq!(bench.inw(2) & 4, 4);
    assert!(bench.lines.level(4));
    bench.outw(0x10, 4 | 1 << 12);
    assert_eq!(bench.inw(0x10), 0x85);
}
