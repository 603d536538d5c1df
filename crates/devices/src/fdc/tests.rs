//! Commands as drivers give them.

use block::{BlockBackend, Drive, DriveOptions, GuestSlice, IoStats, LockError};
use memory::GuestMemory;

use super::*;
use crate::irq::testing::Recorder;

/// A diskette in memory whose sectors begin with their own number.
pub(crate) struct MemoryDisk {
    bytes: Mutex<Vec<u8>>,
    stats: IoStats,
}

impl MemoryDisk {
    pub(crate) fn new(size: u64) -> Arc<Self> {
        let mut bytes = vec![0; size as usize];
        for (i, sector) in bytes.chunks_mut(512).enumerate() {
            sector[..2].copy_from_slice(&(i as u16).to_le_bytes());
        }
        Arc::new(Self { bytes: Mutex::new(bytes), stats: IoStats::default() })
    }
}

impl BlockBackend for MemoryDisk {
    fn read_at(&self, offset: u64, bufs: &[GuestSlice<'_>]) -> std::io::Result<()> {
        let bytes = lock(&self.bytes);
        let mut at = offset as usize;
        for buf in bufs {
            buf.copy_from(&bytes[at..at + buf.len()]);
            at += buf.len();
        }
        Ok(())
    }
    fn write_at(&self, offset: u64, bufs: &[GuestSlice<'_>]) -> std::io::Result<()> {
        let mut bytes = lock(&self.bytes);
        let mut at = offset as usize;
        for buf in bufs {
            buf.copy_to(&mut bytes[at..at + buf.len()]);
            at += buf.len();
        }
        Ok(())
    }
    fn flush(&self) -> std::io::Result<()> {
        Ok(())
    }
    fn discard(&self, _offset: u64, _len: u64) -> std::io::Result<()> {
        Ok(())
    }
    fn write_zeroes(&self, offset: u64, len: u64, _may_unmap: bool) -> std::io::Result<()> {
        lock(&self.bytes)[offset as usize..][..len as usize].fill(0);
        Ok(())
    }
    fn size(&self) -> u64 {
        lock(&self.bytes).len() as u64
    }
    fn allocated_size(&self) -> u64 {
        self.size()
    }
    fn lock(&self, _share_write: bool) -> Result<(), LockError> {
        Ok(())
    }
    fn unlock(&self) {}
    fn is_read_only(&self) -> bool {
        false
    }
    fn driver(&self) -> &'static str {
        "memory"
    }
    fn filename(&self) -> String {
        "memory".into()
    }
    fn stats(&self) -> &IoStats {
        &self.stats
    }
}

/// A unit with a diskette of `size` bytes in it.
pub(crate) fn unit(size: u64) -> FloppyUnit {
    let drive = Drive::with_node("floppy0", MemoryDisk::new(size), &DriveOptions::default());
    FloppyUnit { drive: Arc::new(drive), drive_type: None, fallback: DriveType::D288 }
}

struct Bench {
    ports: AddressSpace,
    memory: Arc<GuestMemory>,
    irq: Arc<Recorder>,
    _fdc: Arc<Fdc>,
}

const ONE_SECTOR: u16 = 512;

impl Bench {
    /// Drive A with a diskette of 1.44 MB.
    fn new() -> Self {
        Self::with(unit(1440 << 10))
    }

    fn with(unit: FloppyUnit) -> Self {
        let ports = AddressSpace::new();
        let memory = Arc::new(GuestMemory::new(&[(0, 0x2_0000)]).unwrap());
        let dma = I8237::new(memory.clone());
        dma.attach(&ports).unwrap();
        let irq = Arc::new(Recorder::default());
        let fdc = Fdc::new("fdc", FdcPlace::FIRST, &dma, IrqLine::new(irq.clone(), 6));
        fdc.attach(&ports).unwrap();
        fdc.connect(Some(0), unit, "fda").unwrap();
        Self { ports, memory, irq, _fdc: fdc }
    }

    fn read(&self, port: u64) -> u8 {
        self.ports.read(port, 1).unwrap() as u8
    }

    fn write(&self, port: u64, value: u8) {
        self.ports.write(port, 1, value.into());
    }

    /// Gives a command; returns its result.
    fn command(&self, bytes: &[u8]) -> Vec<u8> {
        for &byte in bytes {
            assert_eq!(self.read(0x3f4) & 0xc0, 0x80, "ready for {byte:#x} of {bytes:x?}");
            self.write(0x3f5, byte);
        }
        self.result()
    }

    fn result(&self) -> Vec<u8> {
        let more = || self.read(0x3f4) & 0xd0 == 0xd0;
        std::iter::from_fn(|| more().then(|| self.read(0x3f5))).take(20).collect()
    }

    /// Sets the DMA channel up for `count` bytes at `at`.
    fn dma(&self, mode: u8, at: u16, count: u16) {
        let [low, high] = at.to_le_bytes();
        let [count_low, count_high] = (count - 1).to_le_bytes();
        for (port, value) in [
            (0x0a, 6),
            (0x0c, 0),
            (0x0b, mode | 2),
            (4, low),
            (4, high),
            (0x81, 0),
            (5, count_low),
            (5, count_high),
            (0x0a, 2),
        ] {
            self.write(port, value);
        }
    }

    fn word(&self, at: u64) -> u16 {
        let mut bytes = [0; 2];
        self.memory.read(at, &mut bytes).unwrap();
        u16::from_le_bytes(bytes)
    }
}

#[test]
fn a_reset_is_followed_by_four_interrupt_statuses() {
    let bench = Bench::new();
    assert_eq!([1, 2, 3, 4, 7].map(|i| bench.read(0x3f0 + i)), [0xc0, 0x0c, 0, 0x80, 0x80]);
    bench.write(0x3f2, 0);
    assert_eq!(bench.read(0x3f4), 0);
    assert!(!bench.irq.level(6));
    bench.write(0x3f2, 0x1c);
    assert!(bench.irq.level(6));
    for drive in 0..4 {
        assert_eq!(bench.command(&[8]), [0xc0 | drive, 0]);
        assert!(!bench.irq.level(6));
    }
    assert_eq!(bench.command(&[8]), [0x80]);
    bench.write(0x3f4, 0x80);
    assert!(bench.irq.level(6));
    assert_eq!(bench.command(&[8]), [0xc0, 0]);
    // A driver that asks once only is not told of the rest later.
    bench.command(&[7, 0]);
    assert!(bench.irq.level(6));
    assert_eq!(bench.command(&[8]), [0x20, 0]);
    assert_eq!(bench.command(&[8]), [0x80]);
    assert_eq!(bench.read(0x3f1), 0xc1, "motor of drive A");
}

#[test]
fn the_controller_tells_of_itself() {
    let bench = Bench::new();
    assert_eq!(bench.command(&[0x10]), [0x90]);
    assert_eq!(bench.command(&[0x18]), [0x41]);
    assert_eq!(bench.command(&[0x94]), [0x10]);
    assert!(bench.command(&[0x13, 0, 0x57, 9]).is_empty());
    assert!(bench.command(&[3, 0xdf, 2]).is_empty());
    bench.write(0x3f4, 0x80);
    bench.command(&[8]);
    let dump = bench.command(&[0x0e]);
    assert_eq!(dump, [0, 0, 0, 0, 0xdf, 2, 18, 0x80, 0x57, 9], "locked over a reset");
    assert_eq!(bench.command(&[0x14]), [0]);
    bench.write(0x3f4, 0x80);
    assert_eq!(bench.command(&[0x0e])[8..], [0x60, 0]);
    let saved = bench.command(&[0x2e]);
    assert_eq!(saved.len(), 15);
    assert_eq!(bench.command(&[0x1f]), [0x80]);
    assert_eq!(bench.command(&[0]), [0x80]);
}

#[test]
fn seeks_end_with_an_interrupt_and_reset_the_change_line() {
    let bench = Bench::new();
    bench.write(0x3f2, 0x1c);
    assert!(bench.command(&[7, 0]).is_empty());
    assert!(bench.irq.level(6));
    assert_eq!(bench.command(&[8]), [0x20, 0]);
    assert!(!bench.irq.level(6));
    assert_eq!(bench.read(0x3f7), 0x80, "no step yet");
    assert_eq!(bench.command(&[4, 0]), [0x38]);
    bench.command(&[0x0f, 0, 5]);
    assert_eq!(bench.command(&[8]), [0x20, 5]);
    assert_eq!(bench.read(0x3f7), 0);
    assert_eq!(bench.command(&[4, 0]), [0x28]);
    bench.command(&[0x8f, 0, 3]);
    assert_eq!(bench.command(&[8]), [0x20, 2]);
    bench.command(&[0xcf, 0, 3]);
    assert_eq!(bench.command(&[8]), [0x20, 5]);
    assert_eq!(bench.command(&[0x4a, 4]), [4, 0, 0, 5, 1, 1, 2]);
    assert_eq!(bench.command(&[0x4a, 0]), [0, 0, 0, 5, 0, 2, 2]);
    // Drive B is not there.
    assert_eq!(bench.command(&[0x4a, 1])[..2], [0x41, 1]);
}

#[test]
fn reads_go_over_both_heads_up_to_terminal_count() {
    let bench = Bench::new();
    bench.dma(0x44, 0x1000, 2 * ONE_SECTOR);
    assert_eq!(bench.command(&[0xe6, 0, 0, 0, 18, 2, 18, 0x1b, 0xff]), [4, 0, 0, 0, 1, 2, 2]);
    assert_eq!((bench.word(0x1000), bench.word(0x1200)), (17, 18));
    assert_eq!(bench.read(8), 0x04);
    // A whole cylinder, by implied seek.
    bench.dma(0x44, 0x1000, 36 * ONE_SECTOR);
    assert_eq!(bench.command(&[0xe6, 0, 3, 0, 1, 2, 18, 0x1b, 0xff]), [0x20, 0, 0, 4, 0, 1, 2]);
    assert_eq!(bench.word(0x1000 + 35 * 512), 3 * 36 + 35);
    // Without multi-track the end of the track comes before terminal count.
    bench.dma(0x44, 0x1000, 36 * ONE_SECTOR);
    assert_eq!(bench.command(&[0x66, 0, 3, 0, 18, 2, 18, 0x1b, 0xff]), [0x40, 0x80, 0, 4, 0, 1, 2]);
    // Part of a sector.
    bench.dma(0x44, 0x1000, 300);
    assert_eq!(bench.command(&[0x66, 0, 3, 1, 4, 2, 18, 0x1b, 0xff]), [4, 0, 0, 3, 1, 4, 2]);
}

#[test]
fn what_is_not_there_is_not_found() {
    let bench = Bench::new();
    bench.dma(0x44, 0x1000, ONE_SECTOR);
    let read = |c, h, r, n| bench.command(&[0x66, 0, c, h, r, n, 30, 0x1b, 0xff])[..3].to_vec();
    assert_eq!(read(0, 0, 19, 2), [0x40, 4, 0]);
    assert_eq!(read(0, 0, 0, 2), [0x40, 4, 0]);
    assert_eq!(read(0, 2, 1, 2), [0x40, 4, 0]);
    assert_eq!(read(0, 0, 1, 3), [0x40, 4, 0]);
    assert_eq!(read(90, 0, 1, 2), [0x40, 4, 0x10]);
    bench.write(0x3f7, 2);
    assert_eq!(read(0, 0, 1, 2), [0x40, 1, 0], "at another rate");
    bench.write(0x3f7, 0);
    assert!(bench.command(&[0x13, 0, 0x17, 0]).is_empty());
    assert_eq!(read(5, 0, 1, 2), [0x40, 4, 0x10], "without implied seek");
    assert_eq!(bench.command(&[0x66, 1, 0, 0, 1, 2, 18, 0x1b, 0xff])[..2], [0x41, 1]);
    assert_eq!(read(0, 0, 1, 2), [0, 0, 0]);
}

#[test]
fn a_transfer_waits_for_its_channel() {
    let bench = Bench::new();
    assert!(bench.command(&[0xe6, 0, 0, 0, 5, 2, 18, 0x1b, 0xff]).is_empty());
    assert_eq!(bench.read(0x3f4), 0x10);
    assert!(!bench.irq.level(6));
    bench.dma(0x44, 0x1000, ONE_SECTOR);
    assert!(bench.irq.level(6));
    assert_eq!(bench.result(), [0, 0, 0, 0, 0, 6, 2]);
    assert!(!bench.irq.level(6));
    assert_eq!(bench.word(0x1000), 4);
    // A reset ends it.
    bench.command(&[0xe6, 0, 0, 0, 5, 2, 18, 0x1b, 0xff]);
    bench.write(0x3f4, 0x80);
    assert_eq!(bench.read(0x3f4), 0x80);
}

#[test]
fn writes_formats_and_scans() {
    let bench = Bench::new();
    bench.memory.write(0x1000, &[0x5a; 512]).unwrap();
    bench.dma(0x48, 0x1000, ONE_SECTOR);
    assert_eq!(bench.command(&[0x45, 4, 1, 1, 3, 2, 18, 0x1b, 0xff])[..3], [0x24, 0, 0]);
    bench.dma(0x44, 0x2000, ONE_SECTOR);
    bench.command(&[0x46, 4, 1, 1, 3, 2, 18, 0x1b, 0xff]);
    assert_eq!(bench.word(0x21fe), 0x5a5a);
    bench.dma(0x48, 0x1000, ONE_SECTOR);
    let found = bench.command(&[0x51, 4, 1, 1, 3, 2, 18, 0x1b, 1]);
    assert_eq!(found[..3], [4, 0, 8]);
    bench.dma(0x48, 0x1000, 2 * ONE_SECTOR);
    assert_eq!(bench.command(&[0x51, 4, 1, 1, 4, 2, 5, 0x1b, 1])[..3], [4, 0, 4]);
    // Part of a sector is filled up with zeroes.
    bench.dma(0x48, 0x1000, 100);
    bench.command(&[0x45, 4, 1, 1, 3, 2, 18, 0x1b, 0xff]);
    bench.dma(0x44, 0x2000, ONE_SECTOR);
    bench.command(&[0x46, 4, 1, 1, 3, 2, 18, 0x1b, 0xff]);
    assert_eq!((bench.word(0x2062), bench.word(0x2064)), (0x5a5a, 0));

    let ids: Vec<u8> = (1..=18).flat_map(|sector| [1, 1, sector, 2]).collect();
    bench.memory.write(0x1000, &ids).unwrap();
    bench.dma(0x48, 0x1000, 72);
    assert_eq!(bench.command(&[0x4d, 4, 2, 18, 0x54, 0xf6])[..3], [4, 0, 0]);
    bench.dma(0x44, 0x2000, ONE_SECTOR);
    bench.command(&[0x46, 4, 1, 1, 18, 2, 18, 0x1b, 0xff]);
    assert_eq!(bench.word(0x2000), 0xf6f6);
    assert_eq!(bench.command(&[0x56, 4, 1, 1, 1, 2, 18, 0x1b, 0xff])[..3], [4, 0, 0]);
}

#[test]
fn data_go_through_the_port_without_dma() {
    let bench = Bench::new();
    bench.command(&[3, 0xdf, 3]);
    for byte in [0x46, 0, 0, 0, 7, 2, 7, 0x1b, 0xff] {
        bench.write(0x3f5, byte);
    }
    assert!(bench.irq.level(6));
    assert_eq!(bench.read(0x3f4), 0xf0);
    let sector: Vec<u8> = (0..512).map(|_| bench.read(0x3f5)).collect();
    assert_eq!(sector[..2], [6, 0]);
    assert!(bench.irq.level(6));
    assert_eq!(bench.result()[..3], [0, 0, 0]);
    for byte in [0x45, 0, 0, 0, 7, 2, 7, 0x1b, 0xff] {
        bench.write(0x3f5, byte);
    }
    assert_eq!(bench.read(0x3f4), 0xb0);
    for _ in 0..512 {
        bench.write(0x3f5, 0x77);
    }
    assert_eq!(bench.result()[..3], [0, 0, 0]);
    bench.command(&[3, 0xdf, 2]);
    bench.dma(0x44, 0x2000, ONE_SECTOR);
    bench.command(&[0x46, 0, 0, 0, 7, 2, 18, 0x1b, 0xff]);
    assert_eq!(bench.word(0x2000), 0x7777);
}

#[test]
fn media_are_protected_changed_and_missing() {
    let options = DriveOptions { read_only: true, ..Default::default() };
    let drive = Arc::new(Drive::with_node("floppy0", MemoryDisk::new(720 << 10), &options));
    let unit = FloppyUnit { drive: drive.clone(), drive_type: None, fallback: DriveType::D288 };
    assert_eq!(unit.kind(), DriveType::D144);
    let bench = Bench::with(unit);
    bench.write(0x3f7, 2);
    bench.dma(0x48, 0x1000, ONE_SECTOR);
    assert_eq!(bench.command(&[0x45, 0, 0, 0, 1, 2, 9, 0x1b, 0xff])[..2], [0x40, 2]);
    assert_eq!(bench.command(&[4, 0]), [0x78]);
    bench.command(&[0x0f, 0, 1]);
    bench.command(&[8]);
    assert_eq!(bench.read(0x3f7), 0);
    drive.eject(false).unwrap();
    assert_eq!(bench.read(0x3f7), 0x80);
    bench.command(&[7, 0]);
    assert_eq!(bench.read(0x3f7), 0x80, "still empty");
    bench.dma(0x44, 0x1000, ONE_SECTOR);
    assert_eq!(bench.command(&[0x46, 0, 0, 0, 1, 2, 9, 0x1b, 0xff])[..2], [0x40, 1]);
    bench.command(&[0x46, 0, 9, 0, 1, 2, 9, 0x1b, 0xff]);
    let state = bench._fdc.save().decode::<FdcState>().unwrap();
    assert_eq!(state.cylinder(0), 9, "the heads are where they were sent");
    bench.command(&[7, 0]);
    bench.command(&[8]);
    assert_eq!(bench.command(&[0x4a, 0]), [0, 0, 0, 0, 0, 1, 2], "an address");
    assert_eq!(bench.command(&[0x4a, 1])[..2], [0x41, 1], "no drive");
}
