//! The port against the data sheet, on a backend that can be made slow.

use super::*;
use crate::irq::testing::Recorder;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A backend that takes `room` bytes and counts how often it was asked for input.
#[derive(Default)]
struct Backend {
    taken: Mutex<Vec<u8>>,
    room: AtomicUsize,
    asked: AtomicUsize,
    receiver: Mutex<Option<Box<dyn CharReceiver>>>,
}

impl CharBackend for Backend {
    fn write(&self, data: &[u8]) -> usize {
        let count = data.len().min(self.room.load(Ordering::SeqCst));
        self.room.fetch_sub(count, Ordering::SeqCst);
        lock(&self.taken).extend_from_slice(&data[..count]);
        count
    }
    fn set_receiver(&self, receiver: Box<dyn CharReceiver>) {
        *lock(&self.receiver) = Some(receiver);
    }
    fn accept_input(&self) {
        self.asked.fetch_add(1, Ordering::SeqCst);
    }
}

struct Bench {
    clock: Clock,
    timers: TimerQueue,
    backend: Arc<Backend>,
    uart: Arc<Uart16550>,
    irq: Arc<Recorder>,
}

fn bench() -> Bench {
    let clock = Clock::manual();
    let timers = TimerQueue::without_thread(clock.clone());
    let irq = Arc::new(Recorder::default());
    let backend = Arc::new(Backend { room: AtomicUsize::new(1 << 20), ..Backend::default() });
    let line = IrqLine::new(irq.clone(), 4);
    let uart = Uart16550::new("serial0", COM_PORTS[0], &timers, line, backend.clone());
    Bench { clock, timers, backend, uart, irq }
}

impl Bench {
    fn read(&self, offset: u16) -> u8 {
        self.uart.read_port(COM_PORTS[0] + offset)
    }
    fn write(&self, offset: u16, value: u8) {
        self.uart.write_port(COM_PORTS[0] + offset, value);
    }
    fn receiver<T>(&self, call: impl FnOnce(&dyn CharReceiver) -> T) -> T {
        call(&**lock(&self.backend.receiver).as_ref().expect("the port connects itself"))
    }
    fn irq(&self) -> bool {
        self.irq.level(4)
    }
}

#[test]
fn output_reaches_the_backend_and_interrupts_when_empty() {
    let bench = bench();
    bench.write(1, 2);
    assert!(bench.irq());
    assert_eq!(bench.read(2), 0x02);
    assert!(!bench.irq(), "reading the identification clears it");
    for &byte in b"hello" {
        bench.write(0, byte);
        assert_eq!(bench.read(2), 0x02);
    }
    assert_eq!(*lock(&bench.backend.taken), b"hello");
    assert_eq!(bench.read(5), 0x60);
}

#[test]
fn a_full_backend_holds_output_back_until_it_takes_it() {
    let bench = bench();
    bench.backend.room.store(1, Ordering::SeqCst);
    bench.write(2, 1);
    bench.write(0, b'a');
    bench.write(0, b'b');
    bench.write(0, b'c');
    assert_eq!(bench.read(5) & 0x60, 0);
    assert_eq!(*lock(&bench.backend.taken), b"a");
    bench.backend.room.store(10, Ordering::SeqCst);
    bench.receiver(|uart| uart.writable());
    assert_eq!(*lock(&bench.backend.taken), b"abc");
    assert_eq!(bench.read(5) & 0x60, 0x60);
}

#[test]
fn input_interrupts_at_the_trigger_level_or_after_a_pause() {
    let bench = bench();
    bench.write(1, 1);
    bench.write(2, 0x81); // FIFOs, trigger at 8
    bench.write(3, 0x03);
    assert_eq!(bench.receiver(|uart| uart.can_receive()), 16);
    bench.receiver(|uart| uart.receive(b"1234567"));
    assert!(!bench.irq());
    bench.receiver(|uart| uart.receive(b"8"));
    assert_eq!(bench.read(2), 0xc4);
    for expected in *b"1234" {
        assert_eq!(bench.read(0), expected);
    }
    assert!(!bench.irq());
    // Four characters of ten bits at 9,600 baud.
    bench.clock.set(4 * 10 * 1_000_000_000 / 9600);
    bench.timers.fire_due();
    assert_eq!(bench.read(2), 0xcc);
    for expected in *b"5678" {
        assert_eq!(bench.read(0), expected);
    }
    assert!(!bench.irq());
    assert_eq!(bench.read(5) & 1, 0);
}

#[test]
fn the_backend_is_asked_again_once_there_is_room() {
    let bench = bench();
    bench.receiver(|uart| uart.receive(b"x"));
    assert_eq!(bench.receiver(|uart| uart.can_receive()), 0);
    assert_eq!(bench.backend.asked.load(Ordering::SeqCst), 0);
    assert_eq!(bench.read(0), b'x');
    assert_eq!(bench.backend.asked.load(Ordering::SeqCst), 1);
    bench.receiver(|uart| uart.receive(b"yz"));
    assert_eq!(bench.read(5) & 3, 3, "overrun");
    assert_eq!(bench.read(5) & 3, 1);
    assert_eq!(bench.read(0), b'z');
}

#[test]
fn priorities_of_interrupts() {
    let bench = bench();
    bench.write(1, 0xf);
    bench.write(4, 0x10); // loop: all modem inputs fall
    bench.write(4, 0);
    bench.receiver(|uart| uart.event(CharEvent::Break));
    assert_eq!(bench.read(2), 0x06);
    assert_eq!(bench.read(5) & 0x11, 0x11);
    assert_eq!(bench.read(2), 0x04);
    assert_eq!(bench.read(0), 0);
    assert_eq!(bench.read(2), 0x02);
    assert_eq!(bench.read(2), 0x00);
    assert_eq!(bench.read(6), 0xbb);
    assert_eq!(bench.read(2), 0x01);
    assert!(!bench.irq());
}

#[test]
fn loopback_connects_outputs_to_inputs() {
    let bench = bench();
    bench.write(4, 0x1a);
    assert_eq!(bench.read(6) & 0xf0, 0x90);
    assert_eq!(bench.receiver(|uart| uart.can_receive()), 0);
    bench.write(0, 0x55);
    assert_eq!(bench.read(0), 0x55);
    assert!(lock(&bench.backend.taken).is_empty());
    bench.write(4, 0x14);
    bench.read(6);
    bench.write(4, 0x10);
    assert_eq!(bench.read(6), 0x04, "ring has ended");
}

#[test]
fn divisor_and_scratch() {
    let bench = bench();
    bench.write(3, 0x83);
    bench.write(0, 1);
    bench.write(1, 0);
    assert_eq!([bench.read(0), bench.read(1)], [1, 0]);
    bench.write(3, 3);
    assert_eq!(bench.read(1), 0);
    bench.write(7, 0xa5);
    assert_eq!(bench.read(7), 0xa5);
}
