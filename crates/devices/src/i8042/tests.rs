//! The controller with its keyboard and mouse, as a driver sees them.

use super::*;
use crate::irq::testing::Recorder;
use crate::testing::Wishes;

struct Bench {
    i8042: Arc<I8042>,
    irq: Arc<Recorder>,
    wishes: Arc<Wishes>,
}

fn bench() -> Bench {
    let irq = Arc::new(Recorder::default());
    let wishes = Arc::new(Wishes::default());
    let line = |pin| IrqLine::new(irq.clone(), pin);
    let i8042 = I8042::new(line(1), line(12), wishes.clone());
    Bench { i8042, irq, wishes }
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
    fn keyboard(&self, byte: u8) -> Vec<u8> {
        self.data(byte);
        self.output()
    }
}

#[test]
fn controller_self_test_and_command_byte() {
    let bench = bench();
    bench.command(0xaa);
    assert_eq!(bench.output(), [0x55]);
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
    assert_eq!(bench.keyboard(0x00), [0xfa, 2]);
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
    let port92 = Port92::new(bench.wishes.clone());
    port92.write_port(0x92, 0x02);
    assert!(bench.wishes.taken().is_empty());
    port92.write_port(0x92, 0x03);
    assert_eq!(bench.wishes.taken(), ["reset guest-reset"]);
}
