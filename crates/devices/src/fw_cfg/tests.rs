//! The device's interfaces as firmware uses them.

use super::*;
use std::sync::atomic::{AtomicU64, Ordering};

const COMMAND: u64 = 0x1000;
const BUFFER: u64 = 0x2000;

struct Bench {
    memory: Arc<GuestMemory>,
    ports: AddressSpace,
    device: Arc<FwCfg>,
}

impl Bench {
    fn new() -> Self {
        let memory = Arc::new(GuestMemory::new(&[(0, 0x8000)]).unwrap());
        let device = FwCfg::new(memory.clone());
        let ports = AddressSpace::new();
        device.attach(&ports).unwrap();
        Self { memory, ports, device }
    }

    fn read(&self, key: u16, len: usize) -> Vec<u8> {
        self.ports.write(0x510, 2, key.into());
        (0..len).map(|_| self.ports.read(0x511, 1).unwrap() as u8).collect()
    }

    /// Issues a DMA command; returns its status.
    fn dma(&self, control: u32, length: u32, target: u64) -> u32 {
        self.memory.write(COMMAND, &control.to_be_bytes()).unwrap();
        self.memory.write(COMMAND + 4, &length.to_be_bytes()).unwrap();
        self.memory.write(COMMAND + 8, &target.to_be_bytes()).unwrap();
        self.ports.write(0x514, 4, 0);
        self.ports.write(0x518, 4, u64::from((COMMAND as u32).swap_bytes()));
        let mut status = [0; 4];
        self.memory.read(COMMAND, &mut status).unwrap();
        u32::from_be_bytes(status)
    }

    fn buffer<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.memory.read(BUFFER, &mut bytes).unwrap();
        bytes
    }
}

#[test]
fn items_read_byte_by_byte_and_end_in_zeroes() {
    let bench = Bench::new();
    assert_eq!(bench.read(key::SIGNATURE, 6), *b"QEMU\0\0");
    assert_eq!(bench.read(key::ID, 4), [3, 0, 0, 0]);
    bench.device.set(key::CPUS, 4u16.to_le_bytes());
    assert_eq!(bench.read(key::CPUS, 3), [4, 0, 0]);
    assert_eq!(bench.read(0x3fff, 2), [0, 0]);
    // Bytes, and words to the selector alone.
    assert_eq!(bench.ports.read(0x510, 2), Some(0xffff));
    assert_eq!(bench.ports.read(0x514, 4), Some(0x554d_4551));
    assert_eq!(bench.ports.read(0x518, 4), Some(0x4746_4320));
}

#[test]
fn files_are_in_the_directory_by_name() {
    let bench = Bench::new();
    bench.device.add_file("etc/b", vec![1, 2].into()).unwrap();
    bench.device.add_file("etc/a", vec![3].into()).unwrap();
    let directory = bench.read(key::DIRECTORY, 4 + 2 * 64);
    assert_eq!(directory[..12], [0, 0, 0, 2, 0, 0, 0, 1, 0, 0x20, 0, 0]);
    assert_eq!(directory[12..18], *b"etc/a\0");
    assert_eq!(directory[68..76], [0, 0, 0, 2, 0, 0x21, 0, 0]);
    assert_eq!(bench.read(0x21, 2), [1, 2]);
    bench.device.add_file("etc/a", vec![4].into()).unwrap();
    assert_eq!(bench.read(0x20, 1), [4]);
    let refused = bench.device.add_file("etc/a", vec![4, 5].into());
    assert_eq!(refused, Err(FileError::Duplicate("etc/a".into())));
    let long = "x".repeat(MAX_NAME);
    assert_eq!(bench.device.add_file(&long, vec![].into()), Err(FileError::Name(long)));
}

#[test]
fn dma_selects_reads_and_skips() {
    let bench = Bench::new();
    bench.device.add_file("f", (0..100).collect::<Vec<u8>>().into()).unwrap();
    let select = 0x20 << 16 | control::SELECT;
    assert_eq!(bench.dma(select | control::READ, 4, BUFFER), 0);
    assert_eq!(bench.buffer(), [0, 1, 2, 3]);
    assert_eq!(bench.dma(control::SKIP, 90, 0), 0);
    assert_eq!(bench.dma(control::READ, 8, BUFFER), 0);
    assert_eq!(bench.buffer(), [94, 95, 96, 97, 98, 99, 0, 0]);
    assert_eq!(bench.dma(control::SKIP, u32::MAX, 0), 0);
    assert_eq!(bench.dma(select, 0, 0), 0);
    assert_eq!(bench.dma(control::READ, 0x9000, BUFFER), control::ERROR, "past RAM");
    assert_eq!(bench.dma(control::READ, 1, u64::MAX), control::ERROR);
    assert_eq!(bench.dma(control::WRITE, 1, BUFFER), control::ERROR, "read-only");
    // A command that is nowhere has no effect.
    bench.ports.write(0x518, 4, u64::from(0xffff_0000u32.swap_bytes()));
}

#[test]
fn a_writable_file_tells_of_writes_within_it() {
    let bench = Bench::new();
    let told = Arc::new(AtomicU64::new(1));
    let hears = told.clone();
    let content = Content::Writable(
        8,
        Box::new(move |bytes| {
            hears.store(u64::from_le_bytes(bytes.try_into().unwrap()), Ordering::SeqCst);
        }),
    );
    bench.device.add_file("etc/addr", content).unwrap();
    bench.memory.write(BUFFER, &[1, 2, 3, 4, 5, 6, 7, 8, 9]).unwrap();
    let select = 0x20 << 16 | control::SELECT;
    assert_eq!(bench.dma(select | control::WRITE, 9, BUFFER), control::ERROR);
    assert_eq!(bench.dma(select | control::WRITE, 8, BUFFER), 0);
    assert_eq!(told.load(Ordering::SeqCst), 0x0807_0605_0403_0201);
    let saved = bench.device.save();
    bench.device.reset();
    assert_eq!(told.load(Ordering::SeqCst), 0);
    bench.device.restore(&saved).unwrap();
    assert_eq!(told.load(Ordering::SeqCst), 0x0807_0605_0403_0201);
    assert!(FwCfg::new(bench.memory.clone()).restore(&saved).is_err(), "has no such file");
}

#[test]
fn a_made_item_is_made_when_it_is_selected() {
    let bench = Bench::new();
    let counter = AtomicU64::new(0);
    let make = move || vec![counter.fetch_add(1, Ordering::SeqCst) as u8];
    bench.device.add_file("f", Content::Made(vec![0xff], Box::new(make))).unwrap();
    assert_eq!(bench.read(0x20, 1), [0]);
    assert_eq!(bench.read(0x20, 1), [1]);
}
