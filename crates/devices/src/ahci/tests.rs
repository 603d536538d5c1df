//! The adapter with a driver of the test's own, and with hostile ones.

use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

use block::{Drive, DriveEvent, DriveOptions};
use bus::{AddressSpace, IrqLine, IrqSink, MsiMessage, MsiSink};
use proptest::prelude::*;

use super::port::reg as port_reg;
use super::*;
use crate::ata::{CdOptions, DiskOptions};
use crate::pci::{Devfn, PciBus};
use crate::scsi::{Lun, LunOptions, Transport, op};
use crate::testing::Failing;

const RAM: u64 = 4 << 20;
const BAR: u64 = 0xfebf_0000;
const DEVFN: Devfn = Devfn::new(3, 0);
const DISK: u64 = 1 << 20;
/// Where the driver keeps its things; each port has 64 KiB.
const LISTS: u64 = 0x10_0000;
const FRAMES: u64 = 0x1000;
const TABLES: u64 = 0x2000;
const DATA_AT: u64 = 0x20_0000;
/// The disk's port, and the CD-ROM drive's.
const HD: usize = 0;
const CD: usize = 2;

#[derive(Default)]
struct Interrupts {
    messages: Mutex<Vec<u32>>,
    wires: AtomicU32,
}

impl MsiSink for Interrupts {
    fn send(&self, message: MsiMessage) {
        self.messages.lock().unwrap().push(message.data);
    }
}

impl IrqSink for Interrupts {
    fn set_level(&self, pin: u32, level: bool) {
        if level {
            self.wires.fetch_or(1 << pin, Ordering::SeqCst);
        } else {
            self.wires.fetch_and(!(1 << pin), Ordering::SeqCst);
        }
    }
}

struct Bench {
    memory: Arc<GuestMemory>,
    ports: Arc<AddressSpace>,
    mmio: Arc<AddressSpace>,
    interrupts: Arc<Interrupts>,
    bus: PciBus,
    ahci: Arc<Ahci>,
    dir: tempfile::TempDir,
}

/// A byte of an image that tells its place.
fn content(at: u64) -> u8 {
    ((at >> 9) * 5 + at % 253) as u8
}

impl Bench {
    fn with(drive: impl FnOnce(&std::path::Path) -> Arc<Drive>, workers: Workers) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let memory = Arc::new(GuestMemory::new(&[(0, RAM)]).unwrap());
        let (ports, mmio) = (Arc::new(AddressSpace::new()), Arc::new(AddressSpace::new()));
        let interrupts = Arc::new(Interrupts::default());
        let router = [0, 1, 2, 3].map(|pin| IrqLine::new(interrupts.clone(), pin));
        let bus = PciBus::new(ports.clone(), mmio.clone(), router, interrupts.clone());
        let ahci = Ahci::new("ahci0", bus.wiring(DEVFN, 1), memory.clone(), workers).unwrap();
        bus.attach(DEVFN, ahci.clone());
        let drive = drive(dir.path());
        let disk = AtaDevice::disk(drive, "hd", DiskOptions { queued: true, ..Default::default() });
        ahci.connector(HD).plug(0, disk.unwrap());
        let path = dir.path().join("cd");
        std::fs::write(&path, (0..40 * 2048).map(content).collect::<Vec<_>>()).unwrap();
        let read_only = DriveOptions { read_only: true, ..DriveOptions::default() };
        let cd = Arc::new(Drive::open("cd", &path, &read_only).unwrap());
        let lun = Lun::new(cd, "cd", LunOptions::cdrom(Transport::Atapi)).unwrap();
        ahci.connector(CD).plug(0, AtaDevice::cdrom(lun, CdOptions::default()));
        Self { memory, ports, mmio, interrupts, bus, ahci, dir }
    }

    fn new(workers: Workers) -> Self {
        let open = |dir: &std::path::Path| {
            let path = dir.join("disk");
            std::fs::write(&path, (0..DISK).map(content).collect::<Vec<_>>()).unwrap();
            Arc::new(Drive::open("disk", &path, &DriveOptions::default()).unwrap())
        };
        let bench = Self::with(open, workers);
        bench.start();
        bench
    }

    /// Maps the BARs and starts the ports as a driver does.
    fn start(&self) {
        for (offset, value) in [(0x20, 0xc000), (0x24, BAR as u32)] {
            self.bus.write_config(DEVFN, offset, 4, value);
        }
        self.bus.write_config(DEVFN, 4, 2, 7);
        self.write(hba::GHC, GHC_AHCI | GHC_INTERRUPTS);
        for port in [HD, CD] {
            self.start_port(port);
        }
    }

    fn start_port(&self, port: usize) {
        self.set(port, port_reg::CLB, self.list(port) as u32);
        self.set(port, port_reg::CLBU, 0);
        self.set(port, port_reg::FB, (self.list(port) + FRAMES) as u32);
        self.set(port, port_reg::CMD, 0x16);
        self.set(port, port_reg::SERR, u32::MAX);
        self.set(port, port_reg::IS, u32::MAX);
        self.set(port, port_reg::IE, u32::MAX);
        self.set(port, port_reg::CMD, 0x17);
    }

    fn list(&self, port: usize) -> u64 {
        LISTS + 0x1_0000 * port as u64
    }

    fn table(&self, port: usize, slot: u8) -> u64 {
        self.list(port) + TABLES + 0x400 * u64::from(slot)
    }

    fn read(&self, offset: u64) -> u32 {
        self.mmio.read(BAR + offset, 4).expect("BAR 5") as u32
    }

    fn write(&self, offset: u64, value: u32) {
        assert!(self.mmio.write(BAR + offset, 4, value.into()), "BAR 5");
    }

    fn get(&self, port: usize, register: u64) -> u32 {
        self.read(0x100 + 0x80 * port as u64 + register)
    }

    fn set(&self, port: usize, register: u64, value: u32) {
        self.write(0x100 + 0x80 * port as u64 + register, value);
    }

    /// Puts a command with `regions` of data into a slot.
    fn prepare(&self, port: usize, slot: u8, frame: &[u8], packet: &[u8], regions: &[(u64, u32)]) {
        let table = self.table(port, slot);
        let header = 5 | (regions.len() as u32) << 16;
        let words = [header, 0, table as u32, 0];
        let bytes: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
        self.memory.write(self.list(port) + 32 * u64::from(slot), &bytes).unwrap();
        self.memory.write(table, frame).unwrap();
        self.memory.write(table + 0x40, packet).unwrap();
        for (at, (addr, len)) in (table + 0x80..).step_by(16).zip(regions) {
            let entry = u128::from(*addr) | u128::from(len - 1) << 96;
            self.memory.write(at, &entry.to_le_bytes()).unwrap();
        }
    }

    fn issue(&self, port: usize, slots: u32) {
        self.set(port, port_reg::CI, slots);
    }

    /// Runs a command in slot 3; returns the interrupt status, task file and byte count.
    fn run(
        &self,
        port: usize,
        frame: &[u8],
        packet: &[u8],
        regions: &[(u64, u32)],
    ) -> (u32, u32, u32) {
        self.prepare(port, 3, frame, packet, regions);
        self.issue(port, 1 << 3);
        self.wait("the command", || self.get(port, port_reg::IS) != 0);
        let is = self.get(port, port_reg::IS);
        self.set(port, port_reg::IS, is);
        let mut count = [0; 4];
        self.memory.read(self.list(port) + 32 * 3 + 4, &mut count).unwrap();
        (is, self.get(port, port_reg::TFD), u32::from_le_bytes(count))
    }

    fn wait(&self, what: &str, done: impl Fn() -> bool) {
        let begin = Instant::now();
        while !done() {
            assert!(begin.elapsed() < Duration::from_secs(20), "waited in vain: {what}");
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    fn bytes(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(addr, &mut bytes).unwrap();
        bytes
    }

    fn frame_area(&self, port: usize, offset: u64, len: usize) -> Vec<u8> {
        self.bytes(self.list(port) + FRAMES + offset, len)
    }
}

/// A frame with a command of 48 bits.
fn command(code: u8, lba: u32, count: u16, features: u16) -> Vec<u8> {
    let [l0, l1, l2, l3] = lba.to_le_bytes();
    let [count_low, count_high] = count.to_le_bytes();
    let [low, high] = features.to_le_bytes();
    let mut frame =
        vec![0x27, 0x80, code, low, l0, l1, l2, 0x40, l3, 0, 0, high, count_low, count_high];
    frame.resize(20, 0);
    frame
}

const IDENTIFY: u8 = 0xec;
const READ_DMA_EXT: u8 = 0x25;
const WRITE_DMA_EXT: u8 = 0x35;
const READ_QUEUED: u8 = 0x60;
const WRITE_QUEUED: u8 = 0x61;
const DONE: u32 = 0x50;

fn expected(from: u64, len: u64) -> Vec<u8> {
    (from..from + len).map(content).collect()
}

#[test]
fn shows_itself_as_ich9() {
    let bench = Bench::new(Workers::None);
    let config = |offset, size| bench.bus.read_config(DEVFN, offset, size);
    assert_eq!((config(0, 4), config(8, 4)), (0x2922_8086, 0x0106_0102));
    assert_eq!(config(0x34, 1), 0x80);
    assert_eq!((config(0x80, 4), config(0xa8, 4)), (0x0080_a805, 0x0010_0012));
    assert_eq!((config(0xac, 4), config(0x90, 4)), (0x48, 0x003f_0040));
    assert_eq!(bench.read(hba::CAP), 0xc014_1f05);
    assert_eq!(bench.read(hba::PI), 0x3f);
    assert_eq!(bench.read(hba::VS), 0x1_0000);
    assert_eq!(bench.get(HD, port_reg::SSTS), 0x113);
    assert_eq!(bench.get(1, port_reg::SSTS), 0);
    assert_eq!(bench.get(1, port_reg::SIG), u32::MAX);
    assert_eq!(bench.get(HD, port_reg::SIG), 0x101);
    assert_eq!(bench.get(CD, port_reg::SIG), 0xeb14_0101);
    assert_eq!(bench.get(HD, port_reg::CMD), 0xc017);
    assert_eq!(bench.read(0x100 + 0x80 * 6), 0, "there is no seventh port");
    // The same through the window.
    bench.ports.write(0xc010, 4, 0x124);
    assert_eq!(bench.ports.read(0xc014, 4), Some(0x101));
}

#[test]
fn identify_comes_by_pio() {
    let bench = Bench::new(Workers::None);
    let frame = command(IDENTIFY, 0, 0, 0);
    let (is, tfd, count) = bench.run(HD, &frame, &[], &[(DATA_AT, 100), (DATA_AT + 200, 500)]);
    assert_eq!((is, tfd, count), (3, DONE, 512));
    assert_eq!(bench.get(HD, port_reg::CI), 0);
    let setup = bench.frame_area(HD, 0x20, 20);
    assert_eq!((setup[0], setup[1], setup[15]), (0x5f, 0x60, 0x50));
    assert_eq!(setup[16..18], [0, 2]);
    let model = bench.bytes(DATA_AT + 54, 8);
    assert_eq!(&model, b"EQUMH RA");
    assert_eq!(bench.bytes(DATA_AT + 200 + 66, 2), [0x00, 0x74], "word 83");
}

#[test]
fn dma_moves_data_through_regions() {
    let bench = Bench::new(Workers::None);
    let regions = [(DATA_AT, 512), (DATA_AT + 0x1000, 1022), (DATA_AT + 0x2000, 2)];
    let (is, tfd, count) = bench.run(HD, &command(READ_DMA_EXT, 7, 3, 0), &[], &regions);
    assert_eq!((is, tfd, count), (1, DONE, 1536));
    let parts = [(DATA_AT, 512), (DATA_AT + 0x1000, 1022), (DATA_AT + 0x2000, 2)];
    let got: Vec<u8> = parts.iter().flat_map(|&(at, len)| bench.bytes(at, len)).collect();
    assert!(got == expected(7 * 512, 1536));
    assert_eq!(bench.frame_area(HD, 0x40, 4), [0x34, 0x40, 0x50, 0]);

    bench.memory.write(DATA_AT, &[0xa5; 1024]).unwrap();
    let (_, tfd, _) = bench.run(HD, &command(WRITE_DMA_EXT, 9, 2, 0), &[], &[(DATA_AT, 1024)]);
    assert_eq!(tfd, DONE);
    let image = std::fs::read(bench.dir.path().join("disk")).unwrap();
    assert_eq!(image[9 * 512..11 * 512], [0xa5; 1024]);

    // Past the end: the list stops until it is started again.
    let (is, tfd, _) = bench.run(HD, &command(READ_DMA_EXT, 2047, 2, 0), &[], &[(DATA_AT, 1024)]);
    assert_eq!(is, 1 | 1 << 30);
    assert_eq!(tfd & 1, 1);
    assert_eq!(bench.get(HD, port_reg::CI), 1 << 3);
    bench.issue(HD, 1);
    assert_eq!(bench.get(HD, port_reg::CI), 1 << 3 | 1);
    bench.set(HD, port_reg::CMD, 0x16);
    assert_eq!(bench.get(HD, port_reg::CI), 0);
    bench.set(HD, port_reg::CMD, 0x17);
    let (_, tfd, _) = bench.run(HD, &command(READ_DMA_EXT, 2047, 1, 0), &[], &[(DATA_AT, 512)]);
    assert_eq!(tfd, DONE);
}

#[test]
fn a_sector_that_is_in_the_image_in_part_can_be_read_and_written() {
    let open = |dir: &std::path::Path| {
        let path = dir.join("disk");
        std::fs::write(&path, (0..1000).map(content).collect::<Vec<_>>()).unwrap();
        Arc::new(Drive::open("disk", &path, &DriveOptions::default()).unwrap())
    };
    let bench = Bench::with(open, Workers::None);
    bench.start();
    bench.run(HD, &command(IDENTIFY, 0, 0, 0), &[], &[(DATA_AT, 512)]);
    assert_eq!(bench.bytes(DATA_AT + 120, 4), [2, 0, 0, 0], "sectors");
    let (_, tfd, _) = bench.run(HD, &command(READ_DMA_EXT, 1, 1, 0), &[], &[(DATA_AT, 512)]);
    assert_eq!(tfd, DONE);
    assert_eq!(bench.bytes(DATA_AT, 512), [expected(512, 488), vec![0; 24]].concat());
    bench.memory.write(DATA_AT, &[0xa5; 512]).unwrap();
    let (_, tfd, _) = bench.run(HD, &command(WRITE_DMA_EXT, 1, 1, 0), &[], &[(DATA_AT, 512)]);
    assert_eq!(tfd, DONE);
    assert_eq!(std::fs::read(bench.dir.path().join("disk")).unwrap()[512..], [0xa5; 512]);
}

#[test]
fn too_few_regions_overflow() {
    let bench = Bench::new(Workers::None);
    let (is, _, count) = bench.run(HD, &command(READ_DMA_EXT, 0, 2, 0), &[], &[(DATA_AT, 1000)]);
    assert_eq!(is & 1 << 24, 1 << 24);
    assert_eq!(count, 0);
    let (is, tfd, _) = bench.run(HD, &command(READ_DMA_EXT, 0, 1, 0), &[], &[(DATA_AT, 512)]);
    assert_eq!((is, tfd), (1, DONE));
}

#[test]
fn queued_commands_tell_their_tags() {
    for workers in [Workers::None, Workers::Threads] {
        let bench = Bench::new(workers);
        bench.memory.write(DATA_AT + 0x1_0000, &[0x77; 512]).unwrap();
        for slot in 0..32_u8 {
            let at = DATA_AT + 512 * u64::from(slot);
            let (code, at) = match slot {
                31 => (WRITE_QUEUED, DATA_AT + 0x1_0000),
                _ => (READ_QUEUED, at),
            };
            let lba = u32::from(slot) * 3;
            let frame = command(code, lba, u16::from(slot) << 3, 1);
            bench.prepare(HD, slot, &frame, &[], &[(at, 512)]);
        }
        bench.set(HD, port_reg::SACT, u32::MAX);
        bench.issue(HD, u32::MAX);
        bench.wait("all commands", || bench.get(HD, port_reg::SACT) == 0);
        assert_eq!(bench.get(HD, port_reg::CI), 0);
        assert_eq!(bench.get(HD, port_reg::IS), 1 << 3);
        assert_eq!(bench.get(HD, port_reg::TFD), DONE);
        for slot in 0..31 {
            let got = bench.bytes(DATA_AT + 512 * slot, 512);
            assert!(got == expected(512 * 3 * slot, 512), "slot {slot}");
        }
        let image = std::fs::read(bench.dir.path().join("disk")).unwrap();
        assert_eq!(image[93 * 512..94 * 512], [0x77; 512]);
        let frame = bench.frame_area(HD, 0x58, 8);
        assert_eq!((frame[0], frame[1]), (0xa1, 0x40));
    }
}

#[test]
fn a_queued_command_that_fails_stops_the_list() {
    let bench = Bench::new(Workers::None);
    bench.prepare(HD, 4, &command(READ_QUEUED, 4000, 4 << 3, 1), &[], &[(DATA_AT, 512)]);
    bench.set(HD, port_reg::SACT, 1 << 4);
    bench.issue(HD, 1 << 4);
    assert_eq!(bench.get(HD, port_reg::IS) & 1 << 30, 1 << 30);
    assert_eq!(bench.get(HD, port_reg::TFD) & 1, 1);
    assert_eq!(bench.get(HD, port_reg::SACT), 1 << 4);
    bench.start_port(HD);
    bench.set(HD, port_reg::CMD, 0x16);
    bench.set(HD, port_reg::CMD, 0x17);
    let (_, tfd, _) = bench.run(HD, &command(READ_DMA_EXT, 1, 1, 0), &[], &[(DATA_AT, 512)]);
    assert_eq!(tfd, DONE);
}

#[test]
fn packets_reach_the_cdrom_drive() {
    let bench = Bench::new(Workers::None);
    let packet = [op::READ_10, 0, 0, 0, 0, 5, 0, 0, 2, 0, 0, 0];
    for features in [1, 0] {
        let mut frame = command(0xa0, 0, 0, features);
        // By PIO, at most so many bytes at a time.
        (frame[5], frame[6]) = (0, 8);
        bench.memory.write(DATA_AT, &[0; 4096]).unwrap();
        let (is, tfd, count) =
            bench.run(CD, &frame, &packet, &[(DATA_AT, 4000), (DATA_AT + 4000, 96)]);
        assert_eq!((is & 1, tfd & 0x81, count), (1, 0, 4096), "features {features}");
        assert!(bench.bytes(DATA_AT, 4096) == expected(5 * 2048, 4096));
    }
    let frame = command(0xa0, 0, 0, 1);
    let (is, tfd, _) = bench.run(CD, &frame, &[0xff], &[(DATA_AT, 36)]);
    assert_eq!((is, tfd >> 12, tfd & 1), (1 | 1 << 30, 5, 1), "illegal request");
}

#[test]
fn resets_bring_the_signature() {
    let bench = Bench::new(Workers::None);
    bench.set(HD, port_reg::CMD, 0x16);
    bench.set(HD, port_reg::SCTL, 0x301);
    assert_eq!(bench.get(HD, port_reg::SSTS), 0);
    bench.set(HD, port_reg::SCTL, 0x300);
    assert_eq!(bench.get(HD, port_reg::SSTS), 0x113);
    assert_eq!(bench.get(HD, port_reg::SIG), 0x101);
    assert_eq!(bench.get(HD, port_reg::TFD), 0x150);
    assert_eq!(bench.get(HD, port_reg::IS), 1 << 6);
    bench.set(HD, port_reg::IS, 1 << 6);
    assert_eq!(bench.get(HD, port_reg::IS), 1 << 6, "until the error is cleared");
    bench.set(HD, port_reg::SERR, 1 << 26);
    assert_eq!(bench.get(HD, port_reg::IS), 0);
    // And by device control.
    bench.set(HD, port_reg::CMD, 0x17);
    bench.memory.write(bench.list(HD) + FRAMES + 0x40, &[0; 20]).unwrap();
    for control in [4, 0] {
        let mut frame = vec![0x27, 0];
        frame.resize(20, 0);
        frame[15] = control;
        bench.prepare(HD, 1, &frame, &[], &[]);
        bench.issue(HD, 2);
        assert_eq!(bench.get(HD, port_reg::CI), 0);
    }
    assert_eq!(bench.frame_area(HD, 0x40, 8), [0x34, 0, 0x50, 1, 1, 0, 0, 0]);
    // And as a command, to a disk and to a packet device.
    for (port, status, count) in [(HD, 0x50, [1, 0, 0, 1]), (CD, 0, [1, 0x14, 0xeb, 1])] {
        let (is, tfd, _) = bench.run(port, &command(0x90, 0, 0, 0), &[], &[]);
        assert_eq!((is, tfd), (1, 1 << 8 | status), "port {port}");
        assert_eq!(bench.frame_area(port, 0x42, 2), [status as u8, 1]);
        let signature = [4, 5, 6, 12].map(|at| bench.frame_area(port, 0x40 + at, 1)[0]);
        assert_eq!(signature, count, "port {port}");
    }
    let places = [port_reg::CLB, port_reg::FB].map(|register| bench.get(HD, register));
    bench.write(hba::GHC, GHC_RESET);
    assert_eq!([port_reg::CLB, port_reg::FB].map(|register| bench.get(HD, register)), places);
    assert!(places.iter().all(|&place| place != 0));
    assert_eq!(bench.read(hba::GHC), GHC_AHCI);
    assert_eq!(bench.get(HD, port_reg::CMD), 6);
    assert_eq!(bench.get(HD, port_reg::SIG), u32::MAX);
}

#[test]
fn interrupts_go_by_wire_or_message() {
    let bench = Bench::new(Workers::None);
    let wire = || bench.interrupts.wires.load(Ordering::SeqCst) != 0;
    let flush = command(0xea, 0, 0, 0);
    bench.prepare(HD, 0, &flush, &[], &[]);
    bench.issue(HD, 1);
    assert!(wire());
    assert_eq!(bench.read(hba::IS), 1);
    bench.write(hba::IS, 1);
    assert!(wire(), "the port still wants attention");
    bench.set(HD, port_reg::IS, 1);
    assert!(wire());
    bench.write(hba::IS, 1);
    assert!(!wire());
    // Messages.
    bench.bus.write_config(DEVFN, 0x84, 4, 0xfee0_0000);
    bench.bus.write_config(DEVFN, 0x8c, 2, 0x41);
    bench.bus.write_config(DEVFN, 0x82, 2, 1);
    bench.issue(HD, 1);
    bench.issue(HD, 1);
    assert!(!wire());
    assert_eq!(*bench.interrupts.messages.lock().unwrap(), [0x41]);
    bench.write(hba::IS, 1);
    assert_eq!(bench.interrupts.messages.lock().unwrap().len(), 2);
    bench.set(HD, port_reg::IE, 0);
    bench.write(hba::IS, 1);
    bench.issue(HD, 1);
    assert_eq!(bench.interrupts.messages.lock().unwrap().len(), 2);
}

#[test]
fn what_is_not_ram_stops_the_port() {
    let bench = Bench::new(Workers::None);
    bench.prepare(HD, 3, &command(READ_DMA_EXT, 0, 1, 0), &[], &[(RAM - 100, 512)]);
    bench.issue(HD, 1 << 3);
    assert_eq!(bench.get(HD, port_reg::IS), 1 << 29);
    bench.set(HD, port_reg::CMD, 0x16);
    bench.set(HD, port_reg::CLBU, 1);
    bench.set(HD, port_reg::CMD, 0x17);
    bench.set(HD, port_reg::IS, u32::MAX);
    bench.issue(HD, 1);
    assert_eq!(bench.get(HD, port_reg::IS), 1 << 29);
    bench.set(HD, port_reg::CLBU, 0);
    bench.set(HD, port_reg::CMD, 0x16);
    bench.start_port(HD);
    let (_, tfd, _) = bench.run(HD, &command(READ_DMA_EXT, 0, 1, 0), &[], &[(DATA_AT, 512)]);
    assert_eq!(tfd, DONE);
}

#[test]
fn writes_that_found_no_space_are_made_again() {
    for queued in [false, true] {
        let node = Failing::new(DISK);
        let backend = node.clone();
        let bench = Bench::with(
            |_| Arc::new(Drive::with_node("disk", backend, &DriveOptions::default())),
            Workers::Threads,
        );
        let failures = Arc::new(AtomicU32::new(0));
        let seen = failures.clone();
        let drive = {
            let port = bench.ahci.adapter.port(HD);
            port.drive().unwrap()
        };
        drive.set_event_hook(Box::new(move |event| {
            assert!(matches!(event, DriveEvent::Error(_)));
            seen.fetch_add(1, Ordering::SeqCst);
        }));
        bench.start();
        node.fails_writes.store(true, Ordering::SeqCst);
        let frame = match queued {
            true => command(WRITE_QUEUED, 5, 3 << 3, 1),
            false => command(WRITE_DMA_EXT, 5, 1, 0),
        };
        bench.prepare(HD, 3, &frame, &[], &[(DATA_AT, 512)]);
        bench.set(HD, port_reg::SACT, if queued { 1 << 3 } else { 0 });
        bench.issue(HD, 1 << 3);
        bench.wait("the failure", || failures.load(Ordering::SeqCst) > 0);
        bench.ahci.pause();
        let saved = bench.ahci.save();
        bench.ahci.reset();
        bench.ahci.restore(&saved).unwrap();
        assert_eq!(bench.ahci.save(), saved);
        assert_eq!(bench.get(HD, port_reg::IS), 0);
        node.fails_writes.store(false, Ordering::SeqCst);
        bench.ahci.resume();
        bench.wait("the write", || bench.get(HD, port_reg::IS) != 0);
        assert_eq!(bench.get(HD, port_reg::TFD), DONE);
        assert_eq!((bench.get(HD, port_reg::CI), bench.get(HD, port_reg::SACT)), (0, 0));
        assert_eq!(node.writes.load(Ordering::SeqCst), 1);
    }
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => 0..RAM,
        2 => RAM - 600..RAM + 64,
        1 => any::<u64>(),
    ]
}

/// A frame that makes sense more often than not.
fn hostile_frame() -> impl Strategy<Value = Vec<u8>> {
    let code = prop_oneof![
        3 => prop::sample::select(vec![
            0x20, 0x24, 0x25, 0x29, 0x30, 0x34, 0x35, 0x39, 0x2f, 0x60, 0x61, 0x63, 0x06, 0xa0, 0xa1,
            0xb0, 0xc4, 0xc5, 0xc6, 0xc8, 0xca, 0xe7, 0xec, 0xef, 0x90, 0x08_u8,
        ]),
        1 => any::<u8>(),
    ];
    let kind = prop_oneof![12 => Just(0x27_u8), 1 => any::<u8>()];
    let flags = prop_oneof![8 => Just(0x80_u8), 2 => Just(0), 1 => any::<u8>()];
    let byte = prop_oneof![3 => Just(0_u8), 1 => 0..8_u8, 1 => any::<u8>()];
    (kind, flags, code, prop::collection::vec(byte, 61))
        .prop_map(|(kind, flags, code, rest)| [vec![kind, flags, code], rest].concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever is in lists and tables, the adapter neither panics nor hangs, and works after a reset.
    #[test]
    fn hostile_commands_do_no_harm(
        port in prop::sample::select(vec![HD, CD]),
        commands in prop::collection::vec(
            (
                0..32_u8,
                hostile_frame(),
                prop::collection::vec(any::<u8>(), 12),
                prop::collection::vec((address(), 1..0x10000_u32), 0..5),
                any::<Option<u16>>(),
            ),
            1..10,
        ),
        threads in prop::bool::weighted(0.2),
        list in prop::option::weighted(0.1, address()),
    ) {
        let bench = Bench::new(if threads { Workers::Threads } else { Workers::None });
        for (slot, frame, packet, regions, entries) in commands {
            bench.prepare(port, slot, &frame, &packet, &regions);
            if let Some(entries) = entries {
                let header = bench.list(port) + 32 * u64::from(slot);
                bench.memory.write(header + 2, &entries.to_le_bytes()).unwrap();
            }
            if let Some(list) = list {
                bench.set(port, port_reg::CLB, list as u32);
                bench.set(port, port_reg::CLBU, (list >> 32) as u32);
            }
            bench.set(port, port_reg::SACT, 1 << slot);
            bench.issue(port, 1 << slot);
            if slot & 3 == 0 {
                bench.set(port, port_reg::CMD, 0x16);
                bench.set(port, port_reg::CMD, 0x17);
            }
        }
        let saved = bench.ahci.save();
        bench.ahci.restore(&saved).unwrap();
        bench.write(hba::GHC, GHC_RESET);
        bench.start();
        let (_, tfd, _) = bench.run(HD, &command(READ_DMA_EXT, 11, 1, 0), &[], &[(DATA_AT, 512)]);
        prop_assert_eq!(tfd, DONE);
    }
}
