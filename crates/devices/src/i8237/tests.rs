//! Registers as software sees them, and data that moves.

use super::*;

struct Waiting(Mutex<usize>);

impl DmaDevice for Waiting {
    fn dma_ready(&self) {
        *self.0.lock().unwrap() += 1;
    }
}

struct Bench {
    ports: AddressSpace,
    memory: Arc<GuestMemory>,
    device: Arc<Waiting>,
    controller: Arc<I8237>,
}

impl Bench {
    fn new() -> Self {
        let ports = AddressSpace::new();
        let memory = Arc::new(GuestMemory::new(&[(0, 0x3_0000)]).unwrap());
        let controller = I8237::new(memory.clone());
        controller.attach(&ports).unwrap();
        Self { ports, memory, device: Arc::new(Waiting(Mutex::new(0))), controller }
    }

    fn channel(&self, number: u8) -> DmaChannel {
        let device: Arc<dyn DmaDevice> = self.device.clone();
        self.controller.channel(number, Arc::downgrade(&device))
    }

    fn read(&self, port: u64) -> u64 {
        self.ports.read(port, 1).unwrap()
    }

    fn write(&self, writes: &[(u64, u64)]) {
        for &(port, value) in writes {
            self.ports.write(port, 1, value);
        }
    }

    fn bytes<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.memory.read(at, &mut bytes).unwrap();
        bytes
    }
}

#[test]
fn addresses_and_counts_go_low_byte_first() {
    let bench = Bench::new();
    bench.write(&[(0xc, 0), (0, 0x34), (0, 0x12), (1, 0x78), (1, 0x56)]);
    assert_eq!([0, 0, 1, 1, 0].map(|port| bench.read(port)), [0x34, 0x12, 0x78, 0x56, 0x34]);
    bench.write(&[(0xc, 0)]);
    assert_eq!(bench.read(0), 0x34);
    // The second controller answers at every other port, and between them.
    bench.write(&[(0xd8, 0), (0xc0, 0x11), (0xc1, 0x22)]);
    assert_eq!([0xc0, 0xc1].map(|port| bench.read(port)), [0x11, 0x22]);
    bench.write(&[(0x81, 0x5a), (0x8a, 0xa5)]);
    assert_eq!((bench.read(0x81), bench.read(0x8a)), (0x5a, 0xa5));
    bench.write(&[(9, 5)]);
    assert_eq!(bench.read(8), 0x20);
    bench.write(&[(0xe, 0), (0xa, 6)]);
    assert_eq!(bench.read(0xf), 4);
    bench.write(&[(0xd, 0)]);
    assert_eq!((bench.read(0xf), bench.read(8)), (0xf, 0));
}

#[test]
fn a_transfer_ends_with_the_count_and_masks_the_channel() {
    let bench = Bench::new();
    let channel = bench.channel(2);
    channel.request(true);
    let mut data = *b"0123456789";
    let to_memory = |data: &mut [u8]| channel.transfer(Direction::ToMemory, data);
    assert_eq!(to_memory(&mut data).bytes, 0, "masked");
    // 8 bytes to 1FFFCh, single mode: the address wraps within its page.
    bench.write(&[(0xb, 0x46), (0xc, 0), (4, 0xfc), (4, 0xff), (0x81, 1), (5, 7), (5, 0)]);
    assert_eq!(*bench.device.0.lock().unwrap(), 0);
    bench.write(&[(0xa, 2)]);
    assert_eq!(*bench.device.0.lock().unwrap(), 1);
    assert_eq!(to_memory(&mut data[..6]), Moved { bytes: 6, terminal_count: false });
    assert_eq!(to_memory(&mut data[6..]), Moved { bytes: 2, terminal_count: true });
    assert_eq!(&bench.bytes(0x1_fffc), b"0123");
    assert_eq!(&bench.bytes(0x1_0000), b"4567");
    assert_eq!(bench.read(8), 0x44);
    assert_eq!(bench.read(8), 0x40, "reading clears what was reached");
    assert_eq!(to_memory(&mut data).bytes, 0);
    assert_eq!([4, 4, 5, 5].map(|port| bench.read(port)), [4, 0, 0xff, 0xff]);
}

#[test]
fn words_count_twice_and_auto_initialisation_starts_over() {
    let bench = Bench::new();
    let channel = bench.channel(5);
    channel.request(true);
    bench.memory.write(0x2_0008, b"abcdef").unwrap();
    // Channel 5: from 20008h (word 4 of page 2), 2 words, again and again.
    bench.write(&[
        (0xd6, 0x59),
        (0xd8, 0),
        (0xc4, 4),
        (0xc4, 0),
        (0xc6, 1),
        (0xc6, 0),
        (0x8b, 3),
        (0xd4, 1),
    ]);
    let mut data = [0; 7];
    let moved = channel.transfer(Direction::FromMemory, &mut data);
    assert_eq!(moved, Moved { bytes: 4, terminal_count: true });
    assert_eq!(&data[..4], b"abcd");
    assert_eq!(channel.transfer(Direction::FromMemory, &mut data[..3]).bytes, 2);
    assert_eq!(&data[..2], b"ab");
    assert_eq!(channel.transfer(Direction::ToMemory, &mut data).bytes, 0, "set up to read");
}

#[test]
fn verifying_moves_nothing_and_counting_down_goes_down() {
    let bench = Bench::new();
    let channel = bench.channel(3);
    channel.request(true);
    bench.write(&[(0xb, 0x43), (0xc, 0), (6, 0), (6, 1), (7, 3), (7, 0), (0xa, 3)]);
    let mut data = *b"wxyz";
    assert!(channel.transfer(Direction::ToMemory, &mut data).terminal_count);
    assert_eq!(bench.bytes(0x100), [0; 4]);
    bench.write(&[(0xb, 0x67), (0xc, 0), (6, 0), (6, 1), (7, 3), (7, 0), (0xa, 3)]);
    assert!(channel.transfer(Direction::ToMemory, &mut data).terminal_count);
    assert_eq!(&bench.bytes(0xfd), b"zyxw");
}

#[test]
fn devices_share_a_channel() {
    let bench = Bench::new();
    let first = bench.channel(2);
    let other = Arc::new(Waiting(Mutex::new(0)));
    let device: Arc<dyn DmaDevice> = other.clone();
    let second = bench.controller.channel(2, Arc::downgrade(&device));
    let set_up = [(0xa, 6), (0xc, 0), (4, 0), (4, 0x10), (5, 3), (5, 0), (0xb, 0x46), (0x81, 0)];
    // The line is high while either drives it.
    bench.write(&set_up);
    first.request(true);
    second.request(true);
    first.request(false);
    assert_eq!(bench.read(8) & 0x40, 0x40);
    // Only the one that waits hears of the channel.
    bench.write(&[(0xa, 2)]);
    assert_eq!((*bench.device.0.lock().unwrap(), *other.0.lock().unwrap()), (0, 1));
    let moved = second.transfer(Direction::ToMemory, &mut [1, 2, 3, 4]);
    assert_eq!(moved, Moved { bytes: 4, terminal_count: true });
    assert_eq!(bench.bytes(0x1000), [1, 2, 3, 4]);
    second.request(false);
    assert_eq!(bench.read(8) & 0x40, 0);
    bench.write(&set_up);
    bench.write(&[(0xa, 2)]);
    first.request(true);
    let moved = first.transfer(Direction::ToMemory, &mut [5, 6, 7, 8]);
    assert_eq!(moved, Moved { bytes: 4, terminal_count: true });
    assert_eq!(bench.bytes(0x1000), [5, 6, 7, 8]);
}
