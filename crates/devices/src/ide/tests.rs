//! The controller driven through its ports, with its work done at once unless a test is about workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use block::{BlockBackend, Drive, DriveEvent, DriveOptions, GuestSlice, IoStats, OnError};
use bus::{AddressSpace, Device, IrqLine, MsiMessage, MsiSink};
use memory::GuestMemory;

use super::*;
use crate::ata::{AtaDevice, CdOptions, DiskOptions};
use crate::irq::testing::Recorder;
use crate::scsi::{Lun, LunOptions, Transport};

struct NoMsi;

impl MsiSink for NoMsi {
    fn send(&self, _message: MsiMessage) {}
}

/// Where the tests put the bus master, the table of regions and the data.
const BUS_MASTER: u64 = 0xc000;
const TABLE: u64 = 0x8000;
const DATA: u64 = 0x1_0000;
const LAST: u32 = 1 << 31;

struct Bench {
    dir: tempfile::TempDir,
    ide: Arc<PiixIde>,
    ports: Arc<AddressSpace>,
    memory: Arc<GuestMemory>,
    lines: Arc<Recorder>,
    _bus: PciBus,
}

impl Bench {
    fn new(workers: Workers) -> Self {
        let (ports, mmio) = (Arc::new(AddressSpace::new()), Arc::new(AddressSpace::new()));
        let lines = Arc::new(Recorder::default());
        let router = [16, 17, 18, 19].map(|pin| IrqLine::new(lines.clone(), pin));
        let bus = PciBus::new(ports.clone(), mmio, router, Arc::new(NoMsi));
        let memory = Arc::new(GuestMemory::new(&[(0, 4 << 20)]).unwrap());
        let irqs = IRQS.map(|irq| IrqLine::new(lines.clone(), irq));
        let wiring = bus.wiring(PiixIde::DEVFN, 1);
        let ide = PiixIde::new(wiring, irqs, &memory, workers).unwrap();
        ide.attach(&bus, &ports).unwrap();
        ide.write_config(0x20, 4, BUS_MASTER as u32);
        ide.write_config(reg::COMMAND, 2, 5);
        let dir = tempfile::tempdir().unwrap();
        Self { dir, ide, ports, memory, lines, _bus: bus }
    }

    /// Plugs a disk of 64 Ki sectors in, each full of its own number.
    fn disk(&self, channel: usize, unit: usize) -> Arc<Drive> {
        let path = self.dir.path().join(format!("disk{channel}{unit}.img"));
        std::fs::write(&path, content()).unwrap();
        let drive = Arc::new(Drive::open("hd", &path, &DriveOptions::default()).unwrap());
        self.plug_disk(channel, unit, drive.clone());
        drive
    }

    fn plug_disk(&self, channel: usize, unit: usize, drive: Arc<Drive>) {
        let device = AtaDevice::disk(drive, "dev", DiskOptions::default()).unwrap();
        self.ide.connector(channel).plug(unit, device);
    }

    fn cdrom(&self, channel: usize, unit: usize, len: usize) -> Arc<Drive> {
        let path = self.dir.path().join("cd.iso");
        std::fs::write(&path, &content()[..len]).unwrap();
        let options = DriveOptions { read_only: true, ..DriveOptions::default() };
        let drive = Arc::new(Drive::open("cd", &path, &options).unwrap());
        let lun = Lun::new(drive.clone(), "dev", LunOptions::cdrom(Transport::Atapi)).unwrap();
        let device = AtaDevice::cdrom(lun, CdOptions::default());
        self.ide.connector(channel).plug(unit, device);
        drive
    }

    fn inb(&self, port: u64) -> u8 {
        self.ports.read(port, 1).unwrap() as u8
    }

    fn outb(&self, port: u64, value: u8) {
        assert!(self.ports.write(port, 1, value.into()));
    }

    fn irq(&self) -> bool {
        self.lines.level(14)
    }

    /// Sends a command to the primary channel's device 0 by its ports.
    fn send(&self, code: u8, count: u8, lba: u32) {
        self.outb(0x1f6, 0xe0 | (lba >> 24) as u8);
        self.outb(0x1f2, count);
        self.outb(0x1f3, lba as u8);
        self.outb(0x1f4, (lba >> 8) as u8);
        self.outb(0x1f5, (lba >> 16) as u8);
        self.outb(0x1f7, code);
    }

    fn take(&self, words: usize) -> Vec<u8> {
        (0..words).flat_map(|_| (self.ports.read(0x1f0, 2).unwrap() as u16).to_le_bytes()).collect()
    }

    fn table(&self, regions: &[(u64, u32)]) {
        for (i, &(base, size)) in regions.iter().enumerate() {
            let entry = base | u64::from(size) << 32;
            self.memory.write(TABLE + 8 * i as u64, &entry.to_le_bytes()).unwrap();
        }
        self.outb(BUS_MASTER, 0);
        self.outb(BUS_MASTER + 2, 4);
        assert!(self.ports.write(BUS_MASTER + 4, 4, TABLE));
    }

    /// Starts the bus master and returns its status when the transfer is over.
    fn start(&self, to_memory: bool) -> u8 {
        self.outb(BUS_MASTER, if to_memory { 9 } else { 1 });
        let status = self.inb(BUS_MASTER + 2);
        assert_eq!(self.irq(), status & 4 != 0);
        assert_eq!(self.inb(0x1f7) & 0xc8, 0x40, "neither busy nor with data");
        assert!(!self.irq(), "reading the status lowers the line");
        self.outb(BUS_MASTER, 0);
        status
    }

    fn data(&self, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.memory.read(DATA, &mut data).unwrap();
        data
    }

    fn image(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.dir.path().join(name)).unwrap()
    }

    /// Sends a packet, data to come by PIO in blocks of `limit` bytes or by DMA.
    fn packet(&self, dma: bool, limit: u16, packet: &[u8; 12]) {
        self.outb(0x1f6, 0xa0);
        self.outb(0x1f1, dma.into());
        self.outb(0x1f4, limit as u8);
        self.outb(0x1f5, (limit >> 8) as u8);
        self.outb(0x1f7, 0xa0);
        assert_eq!((self.inb(0x1f7), self.inb(0x1f2) & 7), (0x58, 1));
        for word in packet.chunks_exact(2) {
            let word = u16::from_le_bytes([word[0], word[1]]);
            assert!(self.ports.write(0x1f0, 2, word.into()));
        }
    }

    /// Takes the data of a packet command, in its blocks.
    fn take_packet(&self) -> Vec<Vec<u8>> {
        let mut blocks = Vec::new();
        while self.inb(0x3f6) & 8 != 0 {
            assert!(self.irq());
            assert_eq!(self.inb(0x1f2) & 7, 2, "data to the host");
            let len = usize::from(self.inb(0x1f4)) | usize::from(self.inb(0x1f5)) << 8;
            self.inb(0x1f7);
            let mut block = self.take(len.div_ceil(2));
            block.truncate(len);
            blocks.push(block);
        }
        blocks
    }

    /// Status and error when a packet command is over.
    fn end(&self) -> (u8, u8) {
        assert!(self.irq());
        assert_eq!(self.inb(0x1f2) & 7, 3, "over");
        let end = (self.inb(0x1f7), self.inb(0x1f1));
        assert!(!self.irq());
        end
    }
}

fn content() -> Vec<u8> {
    (0..1_u32 << 16).flat_map(|sector| (sector as u16).to_le_bytes().repeat(256)).collect()
}

fn read10(lba: u32, count: u16) -> [u8; 12] {
    let [a, b, c, d] = lba.to_be_bytes();
    let [e, f] = count.to_be_bytes();
    [0x28, 0, a, b, c, d, 0, e, f, 0, 0, 0]
}

#[test]
fn a_sector_comes_by_words_and_long_words_with_an_interrupt_each() {
    let bench = Bench::new(Workers::None);
    bench.disk(0, 0);
    bench.send(0x20, 2, 0x1234);
    assert!(bench.irq());
    assert_eq!(bench.inb(0x3f6), 0x58);
    assert!(bench.irq(), "the alternate status changes nothing");
    assert_eq!(bench.inb(0x1f7), 0x58);
    assert!(!bench.irq());
    assert_eq!(bench.take(255), content()[0x1234 * 512..][..510]);
    assert!(!bench.irq());
    assert_eq!(bench.take(1), [0x34, 0x12]);
    assert!(bench.irq(), "the second block");
    for _ in 0..128 {
        assert_eq!(bench.ports.read(0x1f0, 4), Some(0x1235_1235));
    }
    assert_eq!(bench.inb(0x1f7), 0x50);
    assert_eq!(bench.ports.read(0x1f0, 2), Some(0), "no more data");
    // With interrupts off the line stays low.
    bench.outb(0x3f6, 2);
    bench.send(0x20, 1, 0);
    assert!(!bench.irq());
    bench.outb(0x3f6, 0);
    assert!(bench.irq());
}

#[test]
fn writes_by_pio_reach_the_disk() {
    let bench = Bench::new(Workers::None);
    bench.disk(0, 0);
    bench.send(0x30, 2, 7);
    assert!(!bench.irq(), "the first block is not announced");
    for _ in 0..128 {
        assert!(bench.ports.write(0x1f0, 4, 0xa1b2_c3d4));
    }
    assert!(bench.irq());
    for _ in 0..256 {
        assert!(bench.ports.write(0x1f0, 2, 0x5566));
    }
    assert_eq!(bench.inb(0x1f7), 0x50);
    let image = bench.image("disk00.img");
    assert_eq!(image[7 * 512..8 * 512], [0xd4, 0xc3, 0xb2, 0xa1].repeat(128));
    assert_eq!(image[8 * 512..9 * 512], [0x66, 0x55].repeat(256));
}

#[test]
fn both_devices_hear_what_the_selected_one_answers() {
    let bench = Bench::new(Workers::None);
    bench.disk(0, 1);
    bench.outb(0x1f6, 0xa0);
    assert_eq!(bench.inb(0x1f7), 0, "no device 0");
    bench.outb(0x1f7, 0xec);
    bench.outb(0x1f2, 0x55);
    bench.outb(0x1f6, 0xb0);
    assert_eq!((bench.inb(0x1f2), bench.inb(0x1f6), bench.inb(0x1f7)), (0x55, 0xb0, 0x50));
    bench.outb(0x1f2, 0xaa);
    bench.outb(0x3f6, 0x80);
    assert_eq!(bench.inb(0x1f2), 0x55, "the byte before the last");
    bench.outb(0x1f7, 0x90);
    assert_eq!(bench.inb(0x1f6) & 0x10, 0, "a diagnosis selects device 0");
    let empty = [0x171, 0x172, 0x177, 0x376].map(|port| bench.inb(port));
    assert_eq!(empty, [0; 4], "nobody on the second channel");
}

#[test]
fn regions_scatter_what_a_transfer_moves() {
    let bench = Bench::new(Workers::None);
    bench.disk(0, 0);
    bench.table(&[(DATA, 100), (DATA + 100, 412), (DATA + 512, 0x8000_0000 | 512)]);
    bench.send(0xc8, 2, 40);
    assert_eq!(bench.inb(0x3f6) & 0x80, 0x80, "busy until the bus master starts");
    assert_eq!(bench.start(true), 4);
    assert_eq!(bench.data(1024), content()[40 * 512..42 * 512]);
    bench.memory.write(DATA, &[9; 65536]).unwrap();
    bench.table(&[(DATA, LAST)]);
    bench.send(0xca, 128, 0);
    assert_eq!(bench.start(false), 4, "a length of zero is 64 KiB");
    assert_eq!(bench.image("disk00.img")[..65536], [9; 65536]);
}

#[test]
fn tables_too_short_too_long_or_beyond_memory_do_no_harm() {
    let bench = Bench::new(Workers::None);
    bench.disk(0, 0);
    bench.table(&[(DATA, LAST | 512)]);
    bench.send(0xc8, 2, 0);
    assert_eq!(bench.start(true), 0, "too short: it ends without a word");
    bench.table(&[(DATA, LAST | 4096)]);
    bench.send(0xc8, 1, 3);
    assert_eq!(bench.start(true), 5, "too long: the bus master goes on");
    assert_eq!(bench.data(512), content()[3 * 512..4 * 512]);
    // Regions that are not RAM take data and give some.
    bench.table(&[(0xfee0_0000, 256), (DATA, 256), (0x3f_ff00, LAST | 512)]);
    bench.send(0xc8, 2, 5);
    assert_eq!(bench.start(true), 4);
    assert_eq!(bench.data(256), content()[5 * 512..5 * 512 + 256]);
    // A table that is not in RAM reads as regions of 64 KiB at 0, without an end.
    bench.outb(BUS_MASTER + 2, 4);
    assert!(bench.ports.write(BUS_MASTER + 4, 4, 0xf000_0000));
    bench.send(0xc8, 1, 5);
    assert_eq!(bench.start(true), 5);
    // The same without the right to reach memory, where nothing changes.
    bench.table(&[(DATA, LAST | 512)]);
    bench.memory.write(DATA, &[1; 512]).unwrap();
    bench.ide.write_config(reg::COMMAND, 2, 1);
    bench.send(0xc8, 1, 8);
    assert_eq!(bench.start(true), 5);
    assert_eq!(bench.data(512), [1; 512]);
    // A table that never ends stops at its border.
    bench.ide.write_config(reg::COMMAND, 2, 5);
    let endless = vec![(DATA, 2_u32); 8192];
    bench.table(&endless);
    bench.send(0xc8, 0, 0);
    assert_eq!(bench.start(true), 0);
}

#[test]
fn a_reset_ends_what_is_under_way() {
    let bench = Bench::new(Workers::None);
    bench.disk(0, 0);
    bench.cdrom(0, 1, 1 << 20);
    bench.send(0x20, 2, 9);
    bench.take(100);
    bench.outb(0x3f6, 4);
    assert_eq!(bench.inb(0x3f6), 0x80);
    assert!(!bench.irq());
    bench.outb(0x1f7, 0xec);
    bench.outb(0x3f6, 0);
    assert_eq!((bench.inb(0x1f7), bench.inb(0x1f1)), (0x50, 1));
    let signature = [0x1f2, 0x1f3, 0x1f4, 0x1f5].map(|port| bench.inb(port));
    assert_eq!(signature, [1, 1, 0, 0]);
    bench.outb(0x1f6, 0xb0);
    let signature = [0x1f2, 0x1f3, 0x1f4, 0x1f5].map(|port| bench.inb(port));
    assert_eq!((signature, bench.inb(0x1f7)), ([1, 1, 0x14, 0xeb], 0));
    // A transfer that waits for the bus master is gone too.
    bench.send(0xc8, 1, 0);
    bench.outb(0x3f6, 4);
    bench.outb(0x3f6, 0);
    bench.table(&[(DATA, LAST | 512)]);
    bench.outb(BUS_MASTER, 9);
    assert_eq!((bench.inb(BUS_MASTER + 2), bench.irq()), (1, false));
}

#[test]
fn packets_read_a_cd_by_pio_in_blocks_and_by_dma() {
    let bench = Bench::new(Workers::None);
    bench.cdrom(0, 0, 1 << 20);
    let image = &content()[..1 << 20];
    bench.packet(false, 5121, &read10(3, 40));
    let blocks = bench.take_packet();
    assert!(blocks[..15].iter().all(|block| block.len() == 5120), "even but for the last");
    assert_eq!(blocks.concat(), image[3 * 2048..43 * 2048]);
    assert_eq!(bench.end(), (0x50, 0));
    bench.table(&[(DATA, 0), (DATA + 65536, LAST | 16384)]);
    bench.packet(true, 0, &read10(100, 40));
    assert_eq!(bench.inb(0x3f6) & 0x80, 0x80);
    bench.outb(BUS_MASTER, 9);
    assert_eq!(bench.inb(BUS_MASTER + 2), 4);
    assert_eq!(bench.end(), (0x50, 0));
    assert_eq!(bench.data(40 * 2048), image[100 * 2048..140 * 2048]);
    bench.outb(BUS_MASTER, 0);
    // Past the end, and with no bytes for data.
    bench.packet(false, 2048, &read10(512, 1));
    assert_eq!(bench.end(), (0x41, 0x54));
    bench.packet(false, 8, &[3, 0, 0, 0, 18, 0, 0, 0, 0, 0, 0, 0]);
    let sense = bench.take_packet();
    assert_eq!(sense.iter().map(Vec::len).collect::<Vec<_>>(), [8, 8, 2]);
    let sense = sense.concat();
    assert_eq!((sense[2], sense[12]), (5, 0x21));
    assert_eq!(bench.end(), (0x50, 0));
    bench.packet(false, 0, &read10(0, 1));
    assert_eq!((bench.inb(0x1f7), bench.inb(0x1f1)), (0x51, 4));
    // A disk's IDENTIFY is answered by what the device is.
    bench.send(0xec, 0, 0);
    assert_eq!((bench.inb(0x1f7), bench.inb(0x1f4), bench.inb(0x1f5)), (0x51, 0x14, 0xeb));
    bench.send(0xa1, 0, 0);
    assert_eq!(bench.take(256)[..2], 0x85c0_u16.to_le_bytes());
}

#[test]
fn the_host_hears_of_a_new_medium_and_of_the_tray() {
    let bench = Bench::new(Workers::None);
    let drive = bench.cdrom(0, 0, 1 << 20);
    let ready = || {
        bench.packet(false, 0xffff, &[0; 12]);
        bench.end().0
    };
    let sense = || {
        bench.packet(false, 0xffff, &[3, 0, 0, 0, 18, 0, 0, 0, 0, 0, 0, 0]);
        let data = bench.take_packet().concat();
        bench.end();
        (data[2], data[12])
    };
    assert_eq!(ready(), 0x50);
    drive.eject(false).unwrap();
    assert_eq!((ready(), sense()), (0x41, (2, 0x3a)));
    let path = bench.dir.path().join("cd.iso");
    drive.change_medium(drive.open_medium(&path, None, None).unwrap(), false).unwrap();
    assert_eq!((ready(), sense()), (0x41, (6, 0x28)));
    assert_eq!(ready(), 0x50);
    // PREVENT ALLOW MEDIUM REMOVAL, and START STOP UNIT with LoEj.
    bench.packet(false, 0xffff, &[0x1e, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    bench.end();
    assert!(drive.eject(false).is_err());
    bench.packet(false, 0xffff, &[0x1e, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    bench.end();
    bench.packet(false, 0xffff, &[0x1b, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    bench.end();
    assert!(drive.is_tray_open() && drive.is_inserted());
}

/// A disk that fails, and holds requests up, when it is told to.
#[derive(Default)]
struct Moody {
    fails: AtomicBool,
    waits: AtomicBool,
    reads: AtomicBool,
    stats: IoStats,
}

impl Moody {
    fn act(&self) -> std::io::Result<()> {
        self.reads.store(true, Ordering::SeqCst);
        while self.waits.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        if self.fails.load(Ordering::SeqCst) {
            return Err(std::io::Error::from_raw_os_error(5));
        }
        Ok(())
    }
}

impl BlockBackend for Moody {
    fn read_at(&self, _offset: u64, bufs: &[GuestSlice<'_>]) -> std::io::Result<()> {
        use memory::vm_memory::Bytes;
        self.act()?;
        for buf in bufs {
            buf.write_slice(&vec![0x77; buf.len()], 0).unwrap();
        }
        Ok(())
    }
    fn write_at(&self, _offset: u64, _bufs: &[GuestSlice<'_>]) -> std::io::Result<()> {
        self.act()
    }
    fn flush(&self) -> std::io::Result<()> {
        self.act()
    }
    fn discard(&self, _offset: u64, _len: u64) -> std::io::Result<()> {
        self.act()
    }
    fn write_zeroes(&self, _offset: u64, _len: u64, _may_unmap: bool) -> std::io::Result<()> {
        self.act()
    }
    fn size(&self) -> u64 {
        1 << 20
    }
    fn allocated_size(&self) -> u64 {
        0
    }
    fn lock(&self, _share_write: bool) -> Result<(), block::LockError> {
        Ok(())
    }
    fn unlock(&self) {}
    fn is_read_only(&self) -> bool {
        false
    }
    fn driver(&self) -> &'static str {
        "moody"
    }
    fn filename(&self) -> String {
        "moody".into()
    }
    fn stats(&self) -> &IoStats {
        &self.stats
    }
}

fn moody(bench: &Bench, rerror: OnError) -> (Arc<Moody>, Arc<Drive>) {
    let node = Arc::new(Moody::default());
    let options = DriveOptions { rerror, ..DriveOptions::default() };
    let drive = Arc::new(Drive::with_node("hd", node.clone(), &options));
    bench.plug_disk(0, 0, drive.clone());
    (node, drive)
}

#[test]
fn a_failure_is_told_or_stops_the_machine() {
    let bench = Bench::new(Workers::None);
    let (node, _drive) = moody(&bench, OnError::Report);
    node.fails.store(true, Ordering::SeqCst);
    bench.send(0x20, 1, 0x77);
    assert_eq!((bench.inb(0x1f7), bench.inb(0x1f1), bench.inb(0x1f3)), (0x51, 0x40, 0x77));
    bench.table(&[(DATA, LAST | 512)]);
    bench.send(0xca, 1, 3);
    bench.outb(BUS_MASTER, 1);
    assert_eq!((bench.inb(BUS_MASTER + 2), bench.inb(0x1f7), bench.inb(0x1f1)), (4, 0x51, 4));

    let bench = Bench::new(Workers::None);
    let (node, drive) = moody(&bench, OnError::Stop);
    let stops = Arc::new(AtomicBool::new(false));
    let seen = stops.clone();
    drive.set_event_hook(Box::new(move |event| {
        let DriveEvent::Error(error) = event else { panic!("{event:?}") };
        seen.store(error.action == block::ErrorAction::Stop, Ordering::SeqCst);
    }));
    node.fails.store(true, Ordering::SeqCst);
    bench.send(0x20, 1, 0);
    assert!(stops.load(Ordering::SeqCst));
    assert_eq!(bench.inb(0x3f6) & 0x80, 0x80, "the guest does not see it");
    bench.ide.pause();
    let saved = bench.ide.save();
    bench.ide.reset();
    bench.ide.restore(&saved).unwrap();
    assert_eq!(bench.ide.save(), saved);
    node.fails.store(false, Ordering::SeqCst);
    bench.ide.resume();
    assert_eq!(bench.take(256), [0x77; 512]);
}

#[test]
fn resets_stops_and_pauses_wait_for_the_worker() {
    let bench = Bench::new(Workers::Threads);
    let (node, _drive) = moody(&bench, OnError::Report);
    let busy = |bench: &Bench| {
        node.waits.store(true, Ordering::SeqCst);
        node.reads.store(false, Ordering::SeqCst);
        bench.memory.write(DATA, &[0; 512]).unwrap();
        bench.table(&[(DATA, LAST | 512)]);
        bench.send(0xc8, 1, 0);
        bench.outb(BUS_MASTER, 9);
        while !node.reads.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        assert_eq!(bench.inb(0x3f6) & 0x80, 0x80);
    };
    type Disturbance = fn(&Bench);
    let during: [(&str, Disturbance); 3] = [
        ("reset", |bench| bench.outb(0x3f6, 4)),
        ("stop", |bench| bench.outb(BUS_MASTER, 0)),
        ("pause", |bench| bench.ide.pause()),
    ];
    for (what, act) in during {
        busy(&bench);
        std::thread::scope(|scope| {
            let acting = scope.spawn(|| act(&bench));
            std::thread::sleep(std::time::Duration::from_millis(20));
            assert!(!acting.is_finished(), "{what} waits");
            node.waits.store(false, Ordering::SeqCst);
        });
        assert_eq!(bench.data(512), [0x77; 512], "what was under way is done: {what}");
        match what {
            "reset" => bench.outb(0x3f6, 0),
            "pause" => bench.ide.resume(),
            _ => assert_eq!(bench.inb(BUS_MASTER + 2), 4),
        }
        assert_eq!(bench.inb(0x1f7), 0x50);
    }
    // Work that comes during a pause is done after it.
    bench.ide.pause();
    bench.send(0x20, 1, 0);
    assert_eq!(bench.inb(0x3f6) & 0x80, 0x80);
    bench.ide.resume();
    while bench.inb(0x3f6) & 0x80 != 0 {
        std::thread::yield_now();
    }
    assert_eq!(bench.take(256), [0x77; 512]);
}

#[test]
fn a_transfer_goes_on_from_saved_state() {
    let bench = Bench::new(Workers::None);
    bench.disk(0, 0);
    bench.cdrom(1, 0, 1 << 20);
    bench.send(0x20, 4, 77);
    bench.take(300);
    let saved = bench.ide.save();
    let rest = bench.take(4 * 256 - 300);
    bench.ide.reset();
    bench.ide.restore(&saved).unwrap();
    assert_eq!(bench.ide.save(), saved);
    assert_eq!(bench.take(4 * 256 - 300), rest);
    // Another machine without these devices is not fit for it.
    let other = Bench::new(Workers::None);
    assert!(other.ide.restore(&saved).is_err());
    for cut in 0..saved.data.len() {
        let mut damaged = saved.clone();
        damaged.data.truncate(cut);
        assert!(bench.ide.restore(&damaged).is_err(), "cut at {cut}");
    }
}
