//! A keyboard and a tablet with a driver of the test's own.

use bus::{Clock, TimerQueue};

use super::*;
use crate::virtio::VirtioPciOptions;
use crate::virtio::testing::{Machine, PLAIN, WRITE, conformance};

const BUFFERS: u64 = 0x10000;

struct Fixture {
    hub: Arc<InputHub>,
    machine: Machine,
}

fn fixture(kind: InputKind) -> Fixture {
    let hub = InputHub::new(&TimerQueue::without_thread(Clock::manual()));
    let device = VirtioInput::new(kind, Some("42".into()), true, None, &hub);
    let options = VirtioPciOptions {
        id: "input0".into(),
        disable_legacy: true,
        vectors: Some(2),
        ..Default::default()
    };
    Fixture { hub, machine: Machine::fresh(Machine::memory(), device, options) }
}

/// What the configuration shows of a selection.
fn select(machine: &Machine, select: u64, subselect: u64) -> Vec<u8> {
    machine.write(0x2000, 1, select);
    machine.write(0x2001, 1, subselect);
    let size = machine.read(0x2002, 1);
    (0..size).map(|at| machine.read(0x2008 + at, 1) as u8).collect()
}

/// Type, code and value of the event in buffer `index`.
fn event(machine: &Machine, index: u64) -> (u16, u16, i32) {
    let mut bytes = [0; EVENT_LEN];
    machine.memory.read(BUFFERS + 8 * index, &mut bytes).unwrap();
    let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    (word(0), word(2), i32::from_le_bytes(bytes[4..].try_into().unwrap()))
}

#[test]
fn the_configuration_describes_the_device() {
    let Fixture { machine, .. } = fixture(InputKind::Tablet);
    machine.map_bars();
    assert_eq!(machine.config(0, 4), 0x1052_1af4);
    assert_eq!(machine.config(8, 4), 0x0980_0001);
    assert_eq!(select(&machine, 1, 0), b"QEMU Virtio Tablet\0");
    assert_eq!(select(&machine, 2, 0), b"42");
    assert_eq!(select(&machine, 3, 0), [6, 0, 0x27, 6, 3, 0, 2, 0]);
    assert_eq!(select(&machine, 0x11, 3), [3]);
    assert_eq!(select(&machine, 0x11, 2), [0, 1]);
    assert_eq!(select(&machine, 0x11, 1)[0x110 / 8], 0x1f);
    assert_eq!(select(&machine, 0x12, 1)[4..8], [0xff, 0x7f, 0, 0]);
    assert!(select(&machine, 0x12, 2).is_empty());
    assert!(select(&machine, 0x77, 0).is_empty());
    for selection in 1..=3 {
        assert!(select(&machine, selection, 1).is_empty(), "{selection} has no parts");
    }
    let Fixture { machine, .. } = fixture(InputKind::Keyboard);
    machine.map_bars();
    assert_eq!(select(&machine, 0x11, 0x11), [7]);
    assert_eq!(select(&machine, 0x11, 0x14), [0]);
    let keys = select(&machine, 0x11, 1);
    assert_eq!(keys[30 / 8] >> (30 % 8) & 1, 1, "A");
}

#[test]
fn events_go_to_the_driver_that_listens() {
    let Fixture { hub, machine } = fixture(InputKind::Keyboard);
    machine.map_bars();
    let press = [InputEvent::Key { key: Key::A, down: true }];
    hub.send(None, &press);
    machine.negotiate(PLAIN);
    let mut events = machine.queue(0, 64);
    for index in 0..64 {
        events.submit(&[(BUFFERS + 8 * index, 8, WRITE)]);
    }
    machine.driver_ok();
    machine.wait("an event", || {
        hub.send(None, &press);
        events.used_index() >= 2
    });
    assert_eq!(events.wait_used(), (0, 8));
    assert_eq!(event(&machine, 0), (1, 30, 1));
    assert_eq!(events.wait_used(), (1, 8));
    assert_eq!(event(&machine, 1), (0, 0, 0));
}

struct Nothing;
impl InputSink for Nothing {
    fn event(&self, _event: &InputEvent) {}
}

#[test]
fn a_tablet_takes_over_and_tells_of_positions_and_its_wheel() {
    let Fixture { hub, machine } = fixture(InputKind::Tablet);
    let other: Arc<dyn InputSink> = Arc::new(Nothing);
    let spec =
        SinkSpec { name: "mouse", kinds: EventKinds::BUTTON | EventKinds::RELATIVE, console: None };
    let handle = hub.register(spec, Arc::downgrade(&other));
    handle.activate();
    let listens = || hub.pointers().iter().any(|p| p.absolute && p.current);
    machine.map_bars();
    machine.negotiate(PLAIN);
    let mut events = machine.queue(0, 64);
    assert!(!listens());
    machine.driver_ok();
    machine.wait("activation", listens);
    let all = [
        InputEvent::Absolute { axis: Axis::X, value: 100 },
        InputEvent::Absolute { axis: Axis::Y, value: 0x7fff },
        InputEvent::Button { button: Button::Right, down: true },
        InputEvent::Button { button: Button::WheelDown, down: true },
        InputEvent::Button { button: Button::WheelDown, down: false },
    ];
    hub.send(None, &all);
    // They wait for buffers.
    for index in 0..5 {
        events.submit(&[(BUFFERS + 8 * index, 8, WRITE)]);
    }
    events.kick();
    machine.wait("events", || events.used_index() == 5);
    let seen: Vec<_> = (0..5).map(|index| event(&machine, index)).collect();
    assert_eq!(seen, [(3, 0, 100), (3, 1, 0x7fff), (1, 0x111, 1), (2, 8, -1), (0, 0, 0)]);
    machine.write(0x14, 1, 0);
    assert!(!listens());
}

#[test]
fn keeps_the_promises_of_every_device() {
    let Fixture { hub, machine } = fixture(InputKind::Mouse);
    conformance(&machine, || {
        machine.negotiate(PLAIN);
        machine.queue(0, 64);
        machine.driver_ok();
        machine.write(0x2000, 1, 0x11);
        hub.send(None, &[InputEvent::Relative { axis: Axis::X, value: 4 }]);
    });
}
