//! The controller with its keyboard and mouse, as a driver sees them.

use bus::{Clock, TimerQueue};
use input::{Axis, Button, Key};

use super::*;
use crate::irq::testing::Recorder;
use crate::testing::Wishes;

struct Bench {
    hub: Arc<InputHub>,
    i8042: Arc<I8042>,
    irq: Arc<Recorder>,
    wishes: Arc<Wishes>,
    timers: TimerQueue,
}

fn bench() -> Bench {
    let irq = Arc::new(Recorder::default());
    let wishes = Arc::new(Wishes::default());
    let timers = TimerQueue::without_thread(Clock::manual());
    let hub = InputHub::new(&timers);
    let line = |pin| IrqLine::new(irq.clone(), pin);
    let lines = I8042Lines { keyboard: line(1), mouse: line(12) };
    let i8042 = I8042::new(lines, A20Gate::new(|_| {}), wishes.clone(), &hub, &timers);
    Bench { hub, i8042, irq, wishes, timers }
}

impl Bench {
    fn command(&self, byte: u8) {
        self.i8042.write_port(COMMAND_PORT, byte);
    }
    fn data(&self, byte: u8) {
        self.i8042.write_port(DATA_PORT, byte);
    }
    /// All bytes that wait.
    fn output(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.i8042.read_port(COMMAND_PORT) & STATUS_FULL != 0 {
            bytes.push(self.i8042.read_port(DATA_PORT));
        }
        bytes
    }
    fn mouse(&self, byte: u8) -> Vec<u8> {
        self.command(0xd4);
        self.data(byte);
        self.output()
    }
    fn press(&self, key: Key) -> Vec<u8> {
        self.hub.send(None, &[InputEvent::Key { key, down: true }]);
        self.output()
    }
    fn release(&self, key: Key) -> Vec<u8> {
        self.hub.send(None, &[InputEvent::Key { key, down: false }]);
        self.output()
    }
    fn move_by(&self, x: i32, y: i32) {
        let event = |axis, value| InputEvent::Relative { axis, value };
        self.hub.send(None, &[event(Axis::X, x), event(Axis::Y, y)]);
    }
    fn button(&self, button: Button, down: bool) -> Vec<u8> {
        self.hub.send(None, &[InputEvent::Button { button, down }]);
        self.output()
    }
    /// Switches translation off and selects a set.
    fn raw(&self, set: u8) {
        self.command(0x60);
        self.data(0x03);
        assert_eq!(self.keyboard(0xf0), [0xfa]);
        assert_eq!(self.keyboard(set), [0xfa]);
    }
    fn keyboard(&self, byte: u8) -> Vec<u8> {
        self.data(byte);
        self.output()
    }
    /// Lets time pass, a millisecond after the other; what the keyboard says, and after how many of them.
    fn hold(&self, milliseconds: u32) -> Vec<(u32, Vec<u8>)> {
        let mut said = Vec::new();
        for millisecond in 1..=milliseconds {
            self.timers.advance(self.timers.clock().now_ns() + 1_000_000);
            let bytes = self.output();
            if !bytes.is_empty() {
                said.push((millisecond, bytes));
            }
        }
        said
    }
}

#[test]
fn a_key_that_is_held_repeats_at_the_rate_that_the_guest_set() {
    let bench = bench();
    bench.raw(2);
    let a = || vec![0x1c];
    bench.press(Key::A);
    // Half a second, then 91.74 ms each.
    assert_eq!(bench.hold(700), [(500, a()), (592, a()), (684, a())]);
    assert_eq!(bench.release(Key::A), [0xf0, 0x1c]);
    assert_eq!(bench.hold(1000), []);
    // The fastest.
    assert_eq!([bench.keyboard(0xf3), bench.keyboard(0x00)].concat(), [0xfa, 0xfa]);
    bench.press(Key::A);
    assert_eq!(bench.hold(320), [(250, a()), (284, a()), (317, a())]);
    // The slowest: a second, then half a second and a little each.
    bench.keyboard(0xf3);
    bench.keyboard(0x7f);
    bench.press(Key::A);
    assert_eq!(bench.hold(1600), [(1000, a()), (1501, a())]);
}

#[test]
fn the_last_key_repeats_and_who_presses_it_again_begins_anew() {
    let bench = bench();
    bench.raw(2);
    bench.press(Key::A);
    bench.press(Key::B);
    bench.release(Key::A);
    assert_eq!(bench.hold(550), [(500, vec![0x32])]);
    assert_eq!(bench.press(Key::B), [0x32]);
    assert_eq!(bench.hold(499), []);
    // Nobody listens: one repeat waits, and what comes next has room.
    bench.timers.advance(bench.timers.clock().now_ns() + 60_000_000_000);
    bench.hub.send(None, &[InputEvent::Key { key: Key::B, down: false }]);
    assert_eq!(bench.output(), [0x32, 0x32, 0xf0, 0x32]);
    // Whatever ends scanning ends it.
    for command in [0xf5, 0xf6, 0xff] {
        bench.keyboard(0xf4);
        bench.press(Key::A);
        bench.keyboard(command);
        assert_eq!(bench.hold(1000), [], "{command:#x}");
    }
}

#[test]
fn some_keys_do_not_repeat_or_not_all_of_their_codes() {
    let bench = bench();
    bench.raw(2);
    bench.press(Key::Pause);
    assert_eq!(bench.hold(1000), []);
    bench.press(Key::Print);
    assert_eq!(bench.hold(550), [(500, vec![0xe0, 0x7c])]);
    bench.release(Key::Print);
    bench.press(Key::Shift);
    bench.press(Key::Print);
    assert_eq!(bench.hold(550), [(500, vec![0xe0, 0x7c])]);
    bench.release(Key::Shift);
    bench.press(Key::AltR);
    bench.press(Key::Print);
    assert_eq!(bench.hold(550), [(500, vec![0x84])]);
    // In set 3 a driver chooses.
    bench.keyboard(0xf0);
    bench.keyboard(3);
    for (command, repeats, tells) in
        [(0xf7, true, false), (0xf8, false, true), (0xf9, false, false), (0xfa, true, true)]
    {
        assert_eq!(bench.keyboard(command), [0xfa]);
        assert_eq!(bench.press(Key::A), [0x1c]);
        assert_eq!(!bench.hold(550).is_empty(), repeats, "{command:#x}");
        assert_eq!(!bench.release(Key::A).is_empty(), tells, "{command:#x}");
    }
    bench.keyboard(0xfc);
    assert_eq!(bench.keyboard(0x1c), [0xfa]);
    bench.keyboard(0xf4);
    bench.press(Key::A);
    assert_eq!(bench.hold(550), []);
}

#[test]
fn controller_self_test_and_command_byte() {
    let bench = bench();
    bench.command(0xaa);
    assert_eq!(bench.output(), [0x55]);
    assert_eq!(bench.i8042.read_port(DATA_PORT), 0x55, "the last byte stays");
    bench.command(0xd0);
    assert_eq!(bench.output(), [0xcf]);
    bench.command(0xab);
    assert_eq!(bench.output(), [0]);
    bench.command(0x60);
    bench.data(0x47);
    bench.command(0x20);
    assert_eq!(bench.output(), [0x47]);
    bench.command(0x65);
    bench.data(0xa5);
    bench.command(0x25);
    assert_eq!(bench.output(), [0xa5]);
    // The loop that Linux tests the mouse port with.
    bench.command(0xd3);
    bench.data(0x5a);
    assert_eq!(bench.i8042.read_port(COMMAND_PORT) & 0x21, 0x21);
    assert_eq!(bench.output(), [0x5a]);
}

#[test]
fn the_keyboard_answers_a_driver() {
    let bench = bench();
    assert_eq!(bench.keyboard(0xff), [0xfa, 0xaa]);
    assert_eq!(bench.keyboard(0xf2), [0xfa, 0xab, 0x83]);
    bench.command(0x60);
    bench.data(0x43);
    assert_eq!(bench.keyboard(0xf2), [0xfa, 0xab, 0x41]);
    assert_eq!(bench.keyboard(0xed), [0xfa]);
    assert_eq!(bench.keyboard(0x02), [0xfa]);
    assert_eq!(bench.keyboard(0xf0), [0xfa]);
    // Two, translated.
    assert_eq!(bench.keyboard(0x00), [0xfa, 0x41]);
    assert_eq!(bench.keyboard(0xee), [0xee]);
    assert_eq!(bench.keyboard(0x12), [0xfe]);
}

#[test]
fn the_mouse_answers_a_driver_and_becomes_a_wheel_mouse() {
    let bench = bench();
    assert_eq!(bench.mouse(0xff), [0xfa, 0xaa, 0x00]);
    assert_eq!(bench.mouse(0xf2), [0xfa, 0]);
    for (knock, id) in [([200, 100, 80], 3), ([200, 200, 80], 4)] {
        for rate in knock {
            assert_eq!(bench.mouse(0xf3), [0xfa]);
            assert_eq!(bench.mouse(rate), [0xfa]);
        }
        assert_eq!(bench.mouse(0xf2), [0xfa, id]);
    }
    assert_eq!(bench.mouse(0xf4), [0xfa]);
    assert_eq!(bench.mouse(0xe9), [0xfa, 0x20, 2, 80]);
    assert_eq!(bench.mouse(0xee), [0xfa]);
    assert_eq!(bench.mouse(0xf2), [0xf2]);
    assert_eq!(bench.mouse(0xec), [0xfa]);
}

#[test]
fn each_byte_is_an_edge_on_its_own_line() {
    let bench = bench();
    bench.data(0xf2);
    assert!(bench.irq.level(1));
    for _ in 0..3 {
        bench.i8042.read_port(DATA_PORT);
    }
    assert!(!bench.irq.level(1));
    assert_eq!(bench.irq.rises(1), 3);
    bench.command(0xd4);
    bench.data(0xf2);
    assert!(bench.irq.level(12) && !bench.irq.level(1));
    // A disabled mouse keeps its bytes.
    bench.i8042.read_port(DATA_PORT);
    bench.command(0xa7);
    bench.i8042.read_port(DATA_PORT);
    assert!(bench.output().is_empty());
    // To write to it switches it on.
    assert_eq!(bench.mouse(0xf2), [0xfa, 0]);
    bench.command(0x20);
    assert_eq!(bench.output(), [0x03]);
}

#[test]
fn resets_by_each_of_its_ways() {
    let bench = bench();
    bench.command(0xfe);
    assert_eq!(bench.wishes.taken(), ["reset guest-reset"]);
    bench.command(0xd1);
    bench.data(0xfe);
    assert_eq!(bench.wishes.taken(), ["reset guest-reset"]);
    bench.command(0xff);
    assert!(bench.wishes.taken().is_empty());
    let port92 = Port92::new(A20Gate::new(|_| {}), bench.wishes.clone());
    port92.write_port(0x92, 0x02);
    assert!(bench.wishes.taken().is_empty());
    port92.write_port(0x92, 0x03);
    assert_eq!(bench.wishes.taken(), ["reset guest-reset"]);
}

#[test]
fn both_ports_show_and_set_the_a20_gate() {
    let line = Arc::new(Recorder::default());
    let seen = IrqLine::new(line.clone(), 0);
    let gate = A20Gate::new(move |open| seen.set(open));
    let timers = TimerQueue::without_thread(Clock::manual());
    let hub = InputHub::new(&timers);
    let wishes = Arc::new(Wishes::default());
    let unconnected = IrqLine::unconnected;
    let lines = I8042Lines { keyboard: unconnected(), mouse: unconnected() };
    let i8042 = I8042::new(lines, gate.clone(), wishes.clone(), &hub, &timers);
    let port92 = Port92::new(gate, wishes);
    i8042.write_port(COMMAND_PORT, 0xdd);
    assert!(!line.level(0));
    assert_eq!(port92.read_port(0x92), 0);
    let closed = port92.save();
    port92.write_port(0x92, 2);
    assert!(line.level(0));
    i8042.write_port(COMMAND_PORT, 0xd0);
    assert_eq!(i8042.read_port(DATA_PORT) & 2, 2);
    i8042.write_port(COMMAND_PORT, 0xd1);
    i8042.write_port(DATA_PORT, 0xcd);
    assert!(!line.level(0));
    i8042.reset();
    assert!(line.level(0));
    port92.restore(&closed).unwrap();
    assert!(!line.level(0));
}

#[test]
fn keys_are_sent_in_each_set() {
    let bench = bench();
    let cases: [(Key, [&[u8]; 6]); 5] = [
        (Key::A, [&[0x1e], &[0x9e], &[0x1c], &[0xf0, 0x1c], &[0x1c], &[0xf0, 0x1c]]),
        (
            Key::Up,
            [
                &[0xe0, 0x48],
                &[0xe0, 0xc8],
                &[0xe0, 0x75],
                &[0xe0, 0xf0, 0x75],
                &[0x63],
                &[0xf0, 0x63],
            ],
        ),
        (
            Key::Print,
            [
                &[0xe0, 0x2a, 0xe0, 0x37],
                &[0xe0, 0xb7, 0xe0, 0xaa],
                &[0xe0, 0x12, 0xe0, 0x7c],
                &[0xe0, 0xf0, 0x7c, 0xe0, 0xf0, 0x12],
                &[0x57],
                &[0xf0, 0x57],
            ],
        ),
        (
            Key::Pause,
            [
                &[0xe1, 0x1d, 0x45, 0xe1, 0x9d, 0xc5],
                &[],
                &[0xe1, 0x14, 0x77, 0xe1, 0xf0, 0x14, 0xf0, 0x77],
                &[],
                &[0x62],
                &[0xf0, 0x62],
            ],
        ),
        (Key::Lang1, [&[0x72], &[0xf2], &[], &[], &[], &[]]),
    ];
    for set in [1, 2, 3] {
        bench.raw(set);
        for (key, codes) in &cases {
            let at = usize::from(set - 1) * 2;
            assert_eq!(bench.press(*key), codes[at], "{key:?} down in set {set}");
            assert_eq!(bench.release(*key), codes[at + 1], "{key:?} up in set {set}");
        }
    }
    // Set 2, translated, is set 1.
    bench.raw(2);
    bench.command(0x60);
    bench.data(0x43);
    for (key, codes) in &cases[..4] {
        assert_eq!(bench.press(*key), codes[0], "{key:?}");
        assert_eq!(bench.release(*key), codes[1], "{key:?}");
    }
}

#[test]
fn modifiers_change_print_screen_and_pause() {
    let bench = bench();
    bench.raw(1);
    bench.press(Key::AltR);
    assert_eq!(bench.press(Key::Print), [0xe0, 0xb8, 0xe0, 0x38, 0x54]);
    assert_eq!(bench.release(Key::Print), [0xd4, 0xe0, 0xb8, 0xe0, 0x38]);
    bench.release(Key::AltR);
    bench.press(Key::Ctrl);
    assert_eq!(bench.press(Key::Print), [0xe0, 0x37]);
    assert_eq!(bench.release(Key::Print), [0xe0, 0xb7]);
    assert_eq!(bench.press(Key::Pause), [0xe0, 0x46, 0xe0, 0xc6]);
    assert!(bench.release(Key::Pause).is_empty());
    bench.release(Key::Ctrl);
    bench.raw(2);
    bench.press(Key::Alt);
    assert_eq!(bench.press(Key::Sysrq), [0xf0, 0x11, 0x11, 0x84]);
    assert_eq!(bench.release(Key::Sysrq), [0xf0, 0x84, 0xf0, 0x11, 0x11]);
}

#[test]
fn set_three_keys_can_be_silenced_one_by_one() {
    let bench = bench();
    bench.raw(3);
    assert_eq!(bench.keyboard(0xf9), [0xfa]);
    assert_eq!(bench.press(Key::A), [0x1c]);
    assert!(bench.release(Key::A).is_empty());
    assert_eq!(bench.keyboard(0xfc), [0xfa]);
    assert_eq!(bench.keyboard(0x1c), [0xfa]);
    assert_eq!(bench.keyboard(0xf4), [0xfa]);
    assert_eq!(bench.release(Key::A), [0xf0, 0x1c]);
    assert!(bench.release(Key::B).is_empty());
    assert_eq!(bench.keyboard(0xf6), [0xfa]);
    assert_eq!(bench.keyboard(0xf0), [0xfa]);
    assert_eq!(bench.keyboard(0x00), [0xfa, 2]);
}

#[test]
fn a_full_keyboard_loses_whole_keys_and_answers_come_first() {
    let bench = bench();
    bench.raw(2);
    let press = |key| bench.hub.send(None, &[InputEvent::Key { key, down: true }]);
    let release = |key| bench.hub.send(None, &[InputEvent::Key { key, down: false }]);
    for _ in 0..12 {
        press(Key::Up);
        release(Key::Up);
    }
    // The first byte left for the controller, which makes room for one more.
    let bytes = bench.output();
    assert_eq!(bytes.len(), 17);
    assert_eq!(bytes[..5], [0xe0, 0x75, 0xe0, 0xf0, 0x75]);
    for key in [Key::A, Key::B, Key::C] {
        press(key);
    }
    bench.data(0xed);
    assert_eq!(bench.output(), [0x1c, 0xfa, 0x32, 0x21]);
    bench.data(0x00);
    bench.output();
    // Not scanning, it says nothing; neither while the controller keeps it off.
    assert_eq!(bench.keyboard(0xf5), [0xfa]);
    assert!(bench.press(Key::A).is_empty());
    assert_eq!(bench.keyboard(0xf4), [0xfa]);
    bench.command(0xad);
    assert!(bench.press(Key::A).is_empty());
    bench.command(0xae);
    assert_eq!(bench.output(), [0x1c]);
    assert_eq!(bench.keyboard(0xfe), [0x1c], "sent again");
}

fn knock(bench: &Bench, rates: [u8; 3]) {
    for rate in rates {
        bench.mouse(0xf3);
        bench.mouse(rate);
    }
}

#[test]
fn movements_and_buttons_are_reported() {
    let bench = bench();
    bench.move_by(5, 5);
    assert!(bench.output().is_empty(), "not yet");
    bench.mouse(0xf4);
    bench.move_by(5, -3);
    assert_eq!(bench.output(), [0x08, 5, 3]);
    bench.move_by(-300, 0);
    assert_eq!(bench.output(), [0x18, 0x81, 0, 0x18, 0x81, 0, 0x18, 0xd2, 0]);
    assert_eq!(bench.button(Button::Left, true), [0x09, 0, 0]);
    assert_eq!(bench.mouse(0xe9), [0xfa, 0x24, 2, 100]);
    assert_eq!(bench.button(Button::Middle, true), [0x0d, 0, 0]);
    assert_eq!(bench.button(Button::Left, false), [0x0c, 0, 0]);
    assert_eq!(bench.button(Button::Middle, false), [0x08, 0, 0]);
    assert!(bench.button(Button::Side, true).is_empty());
    assert!(bench.button(Button::WheelUp, true).is_empty());
    bench.mouse(0xe7);
    bench.move_by(4, 2);
    assert_eq!(bench.output(), [0x28, 6, 0xff]);
}

#[test]
fn wheels_and_five_buttons_after_the_knocks() {
    let bench = bench();
    bench.mouse(0xf4);
    knock(&bench, [200, 100, 80]);
    assert_eq!(bench.button(Button::WheelUp, true), [0x08, 0, 0, 0xff]);
    assert!(bench.button(Button::WheelUp, false).is_empty());
    assert_eq!(bench.button(Button::WheelDown, true), [0x08, 0, 0, 1]);
    assert!(bench.button(Button::Side, true).is_empty());
    bench.button(Button::Side, false);
    knock(&bench, [200, 200, 80]);
    assert_eq!(bench.button(Button::WheelUp, true), [0x08, 0, 0, 0x0f]);
    assert_eq!(bench.button(Button::Side, true), [0x08, 0, 0, 0x10]);
    assert_eq!(bench.button(Button::Extra, true), [0x08, 0, 0, 0x30]);
    assert_eq!(bench.button(Button::WheelLeft, true), [0x08, 0, 0, 0x41]);
    assert_eq!(bench.button(Button::WheelRight, true), [0x08, 0, 0, 0x7f]);
}

#[test]
fn clicks_that_the_guest_is_too_slow_for_are_reported_one_by_one() {
    let bench = bench();
    bench.mouse(0xf4);
    knock(&bench, [200, 200, 80]);
    let press = |button, down| InputEvent::Button { button, down };
    // This fills the queue.
    bench.move_by(127 * 4, 0);
    for _ in 0..3 {
        bench.hub.send(None, &[press(Button::Left, true)]);
        bench.move_by(1, 0);
        bench.hub.send(None, &[press(Button::Left, false)]);
    }
    bench.hub.send(None, &[press(Button::Side, true)]);
    let bytes = bench.output();
    let reports: Vec<_> = bytes.chunks(4).map(|r| (r[0] & 7, r[1], r[3])).collect();
    let (down, up) = ((1, 1, 0), (0, 0, 0));
    assert_eq!(reports[4..], [down, up, down, up, down, up, (0, 0, 0x10)]);
    // There is an end to what it remembers, but how the buttons are is told in the end.
    bench.move_by(127 * 4, 0);
    for _ in 0..1000 {
        bench.hub.send(None, &[press(Button::Right, true)]);
        bench.hub.send(None, &[press(Button::Right, false)]);
    }
    bench.hub.send(None, &[press(Button::Right, true)]);
    let bytes = bench.output();
    assert!(bytes.len() < 300, "{}", bytes.len());
    assert_eq!(bytes[bytes.len() - 4..], [0x0a, 0, 0, 0x10]);
}

#[test]
fn a_mouse_that_nobody_reads_adds_its_movements_up() {
    let bench = bench();
    bench.mouse(0xf4);
    for _ in 0..100 {
        bench.move_by(3, 0);
    }
    let bytes = bench.output();
    let moved: i32 = bytes.chunks(3).map(|report| i32::from(report[1])).sum();
    assert_eq!(moved, 300);
    bench.mouse(0xf0);
    bench.move_by(7, 0);
    assert!(bench.output().is_empty(), "it reports when asked");
    assert_eq!(bench.mouse(0xeb), [0xfa, 0x08, 7, 0]);
    assert_eq!(bench.mouse(0xeb), [0xfa, 0x08, 0, 0]);
    bench.mouse(0xea);
    bench.mouse(0xf5);
    bench.move_by(7, 0);
    bench.mouse(0xf4);
    assert!(bench.output().is_empty(), "what it did not report is past");
}
