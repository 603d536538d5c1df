//! A disk driven through its registers, with jobs run at once.

use std::sync::Arc;

use block::{Drive, DriveOptions, GuestSlice};
use memory::GuestMemory;
use memory::vm_memory::{GuestAddress, GuestMemoryBackend};

use super::*;

/// A disk of 4096 sectors, each full of its own number, and some memory of the host.
struct Bench {
    dir: tempfile::TempDir,
    device: AtaDevice,
    memory: GuestMemory,
}

const SECTORS: u64 = 4096;

fn image() -> Vec<u8> {
    (0..SECTORS).flat_map(|sector| (sector as u16).to_le_bytes().repeat(256)).collect()
}

impl Bench {
    fn new(options: DiskOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        std::fs::write(&path, image()).unwrap();
        let drive = Arc::new(Drive::open("hd", &path, &DriveOptions::default()).unwrap());
        let device = AtaDevice::disk(drive, "dev", options).unwrap();
        Self { dir, device, memory: GuestMemory::new(&[(0, 1 << 20)]).unwrap() }
    }

    fn slices(&self, len: u64) -> Vec<GuestSlice<'_>> {
        vec![self.memory.view().get_slice(GuestAddress(0), len as usize).unwrap()]
    }

    /// Sends a command with 28-bit registers.
    fn send(&mut self, code: u8, count: u8, lba: u32) {
        let registers = self.device.registers_mut();
        registers.push_count(count);
        for (index, byte) in lba.to_le_bytes()[..3].iter().enumerate() {
            registers.push_lba(index as u32, *byte);
        }
        registers.device = device_bit::LBA | (lba >> 24) as u8;
        self.device.command(code);
    }

    fn send_ext(&mut self, code: u8, count: u16, lba: u64) {
        let registers = self.device.registers_mut();
        (registers.count, registers.lba) = (count, lba);
        registers.device = device_bit::LBA;
        self.device.command(code);
    }

    /// Runs the job that the device waits for.
    fn work(&mut self) {
        let job = self.device.job().expect("a job");
        let len = match job.transfer() {
            Transfer::None => 0,
            Transfer::In(len) | Transfer::Out(len) => len,
        };
        let end = job.run(&self.slices(len));
        self.device.finish(&job, end);
    }

    /// Takes all data of a command, block by block; returns them and the lengths of the blocks.
    fn take(&mut self) -> (Vec<u8>, Vec<usize>) {
        let (mut data, mut blocks) = (Vec::new(), Vec::new());
        loop {
            match self.device.next() {
                Next::Work => self.work(),
                Next::DataIn => {
                    assert!(self.device.take_interrupt(), "each block is announced");
                    assert_eq!(self.device.registers().status, 0x58);
                    let block = self.device.block().to_vec();
                    self.device.advance(2);
                    assert_eq!(self.device.block().len(), block.len() - 2);
                    self.device.advance(block.len() - 2);
                    blocks.push(block.len());
                    data.extend(block);
                }
                _ => return (data, blocks),
            }
        }
    }

    /// Gives `data`; returns the blocks that were announced by an interrupt.
    fn give(&mut self, mut data: &[u8]) -> Vec<bool> {
        let mut announced = Vec::new();
        loop {
            match self.device.next() {
                Next::Work => self.work(),
                Next::DataOut => {
                    announced.push(self.device.take_interrupt());
                    let block = self.device.block_mut();
                    let len = block.len();
                    block.copy_from_slice(&data[..len]);
                    data = &data[len..];
                    self.device.advance(len);
                }
                _ => {
                    assert!(data.is_empty(), "{} bytes that nobody wants", data.len());
                    return announced;
                }
            }
        }
    }

    fn disk(&self) -> Vec<u8> {
        std::fs::read(self.dir.path().join("disk.img")).unwrap()
    }

    fn status(&self) -> (u8, u8) {
        (self.device.registers().status, self.device.registers().error)
    }

    fn identify(&mut self) -> Vec<u16> {
        self.send(0xec, 0, 0);
        let data = self.take().0;
        data.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect()
    }
}

const OK: (u8, u8) = (0x50, 0);
const ABORTED: (u8, u8) = (0x51, 4);

#[test]
fn reads_come_in_blocks_of_one_sector_or_of_several() {
    let mut bench = Bench::new(DiskOptions::default());
    bench.send(0x20, 3, 100);
    assert_eq!(bench.status().0, 0xd0);
    let (data, blocks) = bench.take();
    assert_eq!((data.as_slice(), blocks), (&image()[51200..52736], vec![512; 3]));
    assert_eq!(bench.status(), OK);
    assert!(!bench.device.take_interrupt(), "the end of a read is not announced");

    bench.send(0xc6, 8, 0);
    assert_eq!(bench.status(), OK);
    bench.send_ext(0x29, 300, 1000);
    let (data, blocks) = bench.take();
    assert_eq!(data, image()[512_000..512_000 + 300 * 512]);
    assert_eq!((blocks.len(), blocks[0], blocks[37]), (38, 4096, 2048));
    bench.send(0x20, 0, 0);
    assert_eq!(bench.take().0.len(), 256 * 512);
    bench.send_ext(0x24, 0, 0);
    assert_eq!(bench.status(), (0x51, error::IDNF), "65536 sectors are more than there are");
}

#[test]
fn writes_reach_the_disk_and_announce_each_block_but_the_first() {
    let mut bench = Bench::new(DiskOptions::default());
    let data: Vec<u8> = (0..512 * 200_u32).map(|i| (i / 3) as u8).collect();
    bench.send(0x30, 200, 50);
    let announced = bench.give(&data);
    assert_eq!((announced.len(), announced[0]), (200, false));
    assert!(announced[1..].iter().all(|&is| is));
    assert!(bench.device.take_interrupt(), "the end of a write is announced");
    assert_eq!(bench.disk()[50 * 512..250 * 512], data);
    bench.send_ext(0xce, 16, 4080);
    assert_eq!(bench.give(&data[..8192]), [false]);
    assert_eq!(bench.disk()[4080 * 512..], data[..8192]);
    assert_eq!(bench.status(), OK);
}

#[test]
fn dma_moves_data_straight_to_and_from_memory() {
    let mut bench = Bench::new(DiskOptions::default());
    bench.send_ext(0x25, 1000, 3000);
    assert_eq!(bench.device.next(), Next::Dma);
    bench.work();
    let mut data = vec![0; 512_000];
    bench.memory.read(0, &mut data).unwrap();
    assert_eq!(data, image()[3000 * 512..4000 * 512]);
    assert!(bench.device.take_interrupt());
    bench.memory.write(0, &[7; 1024]).unwrap();
    bench.send(0xca, 2, 9);
    bench.work();
    assert_eq!(bench.disk()[9 * 512..11 * 512], [7; 1024]);
    assert_eq!(bench.status(), OK);
    // A host without memory for the data ends the command.
    bench.send(0xc8, 2, 9);
    let late = bench.device.job().unwrap();
    bench.device.abandon();
    assert_eq!((bench.status(), bench.device.take_interrupt()), (OK, false));
    bench.device.finish(&late, late.run(&bench.slices(1024)));
    assert!(!bench.device.take_interrupt(), "the end of what was given up is not heard of");
}

#[test]
fn addresses_past_the_end_and_unknown_commands_are_refused() {
    let mut bench = Bench::new(DiskOptions::default());
    for code in [0x20, 0x24, 0x25, 0x30, 0x34, 0x35, 0x40, 0x42, 0xc4, 0xc5, 0xc8, 0xca, 0x70] {
        bench.send(code, 2, 0x0fff_ffff);
        bench.device.registers_mut().lba = 4095;
        assert_eq!(bench.status(), (0x51, error::IDNF), "{code:#x}");
        assert!(bench.device.take_interrupt(), "{code:#x}");
    }
    bench.send_ext(0x25, 1, 0xffff_ffff_ffff);
    assert_eq!(bench.status(), (0x51, error::IDNF));
    for code in [0x00, 0x01, 0x45, 0x60, 0x61, 0x92, 0xa0, 0xa1, 0xf1, 0xf6, 0xff] {
        bench.send(code, 1, 0);
        assert_eq!(bench.status(), ABORTED, "{code:#x}");
    }
    bench.send(0xc6, 3, 0);
    assert_eq!(bench.status(), ABORTED);
    bench.send(0xc6, 0, 0);
    bench.send(0xc4, 1, 0);
    assert_eq!(bench.status(), ABORTED, "multiple is off");
}

#[test]
fn cylinders_heads_and_sectors_follow_the_parameters_that_were_set() {
    let mut bench = Bench::new(DiskOptions::default());
    let registers = bench.device.registers_mut();
    // 5 heads of 9 sectors.
    (registers.count, registers.device) = (9, 4);
    bench.device.command(0x91);
    assert_eq!(bench.status(), OK);
    let registers = bench.device.registers_mut();
    // Cylinder 3, head 2, sector 4.
    (registers.count, registers.lba, registers.device) = (1, 0x304, 2);
    bench.device.command(0x20);
    let lba = (3 * 5 + 2) * 9 + 3;
    assert_eq!(bench.take().0, image()[lba * 512..][..512]);
    let registers = bench.device.registers_mut();
    (registers.lba, registers.device) = (0x300, 2);
    bench.device.command(0x20);
    assert_eq!(bench.status(), (0x51, error::IDNF), "sectors count from 1");
    let words = bench.identify();
    assert_eq!(words[54..57], [91, 5, 9]);
    assert_eq!((words[1], words[3], words[6]), (4, 16, 63));
}

#[test]
fn identify_tells_what_the_disk_can_do() {
    let options = DiskOptions {
        serial: "S1".into(),
        version: "1.0".into(),
        wwn: 0x5000_c500_1234_5678,
        queued: true,
        physical_block_size: 4096,
        ..DiskOptions::default()
    };
    let mut bench = Bench::new(options);
    let words = bench.identify();
    let text = |range: std::ops::Range<usize>| -> String {
        words[range].iter().flat_map(|w| w.to_be_bytes()).map(char::from).collect()
    };
    assert_eq!(text(10..20), format!("{:20}", "S1"));
    assert_eq!(text(23..27), format!("{:8}", "1.0"));
    assert_eq!(text(27..47), format!("{:40}", "QEMU HARDDISK"));
    assert_eq!((words[60], words[100]), (4096, 4096));
    assert_eq!((words[75], words[76] & 0x100), (31, 0x100));
    assert_eq!(words[108..112], [0x5000, 0xc500, 0x1234, 0x5678]);
    assert_eq!((words[106], words[169], words[85] & 0x21), (0x6003, 1, 0x21));
    assert_eq!(words[88] >> 8, 1 << 5, "Ultra DMA 5");
    // Multiword DMA 2, and no write cache.
    bench.device.registers_mut().features = 3;
    bench.send(0xef, 0x22, 0);
    bench.device.registers_mut().features = 0x82;
    bench.send(0xef, 0, 0);
    bench.work();
    let words = bench.identify();
    assert_eq!((words[63] >> 8, words[88] >> 8, words[85] & 0x20), (4, 0, 0));
    assert!(!bench.device.drive().write_cache());
    bench.device.reset();
    assert!(bench.device.drive().write_cache());
    bench.device.registers_mut().features = 3;
    bench.send(0xef, 0x46, 0);
    assert_eq!(bench.status(), ABORTED);
}

#[test]
fn smart_answers_with_its_key_only() {
    let mut bench = Bench::new(DiskOptions::default());
    let smart = |bench: &mut Bench, what: u8, count: u8, address: u32| {
        bench.device.registers_mut().features = what.into();
        bench.send(0xb0, count, 0xc2_4f00 | address);
    };
    for (what, address) in [(0xd0, 0), (0xd1, 0), (0xd5, 1), (0xd5, 6)] {
        smart(&mut bench, what, 1, address);
        let page = bench.take().0;
        assert_eq!(page.iter().fold(0_u8, |sum, b| sum.wrapping_add(*b)), 0, "{what:#x}");
    }
    smart(&mut bench, 0xd4, 0, 1);
    smart(&mut bench, 0xd5, 1, 6);
    assert_eq!(bench.take().0[508], 1, "one self-test");
    smart(&mut bench, 0xda, 0, 0);
    assert_eq!((bench.status(), bench.device.registers().lba & 0xff_ff00), (OK, 0xc2_4f00));
    smart(&mut bench, 0xd9, 0, 0);
    smart(&mut bench, 0xd0, 0, 0);
    assert_eq!(bench.status(), ABORTED, "SMART is off");
    bench.device.registers_mut().features = 0xd8;
    bench.send(0xb0, 0, 0);
    assert_eq!(bench.status(), ABORTED, "no key");
}

#[test]
fn trims_are_checked_before_any_is_made() {
    let mut bench = Bench::new(DiskOptions::default());
    let mut trim = |ranges: &[(u64, u64)]| {
        let mut block = [0; 512];
        for (entry, (lba, count)) in block.chunks_exact_mut(8).zip(ranges) {
            entry.copy_from_slice(&(lba | count << 48).to_le_bytes());
        }
        bench.memory.write(0, &block).unwrap();
        bench.device.registers_mut().features = 1;
        bench.send(0x06, 1, 0);
        while matches!(bench.device.next(), Next::Dma | Next::Work) {
            bench.work();
        }
        bench.status()
    };
    assert_eq!(trim(&[(0, 8), (100, 1)]), OK);
    assert_eq!(trim(&[(0, 8), (4095, 2)]), ABORTED);
    bench.device.registers_mut().features = 0;
    bench.send(0x06, 1, 0);
    assert_eq!(bench.status(), ABORTED);
}

#[test]
fn queued_commands_run_on_their_own_and_log_their_errors() {
    let mut bench = Bench::new(DiskOptions { queued: true, ..DiskOptions::default() });
    let fis = |tag: u16, count: u16, lba: u64| TaskFile {
        features: count,
        count: tag << 3,
        lba,
        device: device_bit::LBA,
        ..TaskFile::default()
    };
    let (tag, job) = bench.device.queue(&fis(5, 16, 8), 0x60).unwrap();
    assert_eq!((tag, job.transfer()), (5, Transfer::In(8192)));
    let end = job.run(&bench.slices(8192));
    assert!(bench.device.finish_queued(tag, &job, &end));
    let mut data = vec![0; 8192];
    bench.memory.read(0, &mut data).unwrap();
    assert_eq!(data, image()[4096..12288]);
    assert!(bench.device.queue(&fis(9, 2, 4095), 0x61).is_none());
    assert_eq!(bench.status(), (0x51, error::IDNF));
    bench.send_ext(0x2f, 1, 0x10);
    let log = bench.take().0;
    assert_eq!((log[0], log[3], u16::from_le_bytes([log[4], log[5]])), (9, error::IDNF, 4095));
    bench.send_ext(0x2f, 1, 0x10);
    assert_eq!(bench.take().0[0], 0x80, "reading the log clears it");
    bench.send_ext(0x2f, 1, 0x130);
    assert_eq!(bench.take().0.len(), 512);
}

#[test]
fn power_modes_and_native_size() {
    let mut bench = Bench::new(DiskOptions::default());
    let mode = |bench: &mut Bench| {
        bench.send(0xe5, 0, 0);
        bench.device.registers().count
    };
    assert_eq!(mode(&mut bench), 0xff);
    bench.send(0xe0, 0, 0);
    bench.work();
    assert_eq!(mode(&mut bench), 0);
    bench.send(0x40, 1, 0);
    bench.work();
    assert_eq!((mode(&mut bench), bench.status()), (0xff, OK));
    bench.send(0xf8, 0, 0);
    assert_eq!(bench.device.registers().lba & 0xff_ffff, SECTORS - 1);
    bench.send(0x27, 0, 0);
    assert_eq!(bench.device.registers().lba, SECTORS - 1);
}

#[test]
fn a_command_goes_on_from_saved_state() {
    let mut bench = Bench::new(DiskOptions::default());
    // In the middle of a block, and before a job.
    bench.send_ext(0x24, 300, 7);
    bench.work();
    bench.device.advance(100);
    let saved = bench.device.save();
    let rest = bench.take().0;
    bench.device.reset();
    bench.device.check(&saved).unwrap();
    bench.device.restore(&saved);
    assert_eq!(bench.device.save(), saved);
    assert_eq!(bench.take().0, rest);
    bench.send(0xe7, 0, 0);
    let saved = bench.device.save();
    bench.device.soft_reset();
    assert_eq!((bench.device.next(), bench.status()), (Next::Command, (0x50, 1)));
    bench.device.restore(&saved);
    bench.work();
    assert_eq!(bench.status(), OK);

    bench.send(0x30, 2, 4094);
    let mut damaged = bench.device.save();
    damaged.tamper();
    assert!(bench.device.check(&damaged).is_err());
}

#[test]
fn the_partition_table_tells_the_geometry() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    let guess = |end_head: u8, end_sector: u8, sectors: u64| {
        let mut mbr = [0; 512];
        mbr[446 + 5..446 + 7].copy_from_slice(&[end_head, end_sector]);
        mbr[446 + 12] = 1;
        mbr[510..].copy_from_slice(&[0x55, 0xaa]);
        std::fs::write(&path, mbr).unwrap();
        std::fs::File::options().write(true).open(&path).unwrap().set_len(sectors * 512).unwrap();
        let drive = Drive::open("hd", &path, &DriveOptions::default()).unwrap();
        let (geometry, translation) = Geometry::guess(&drive);
        (geometry.cylinders, geometry.heads, geometry.sectors, translation)
    };
    assert_eq!(guess(7, 32, 65536), (256, 8, 32, Translation::None));
    assert_eq!(guess(254, 63, 1 << 22), (4161, 16, 63, Translation::Large));
    assert_eq!(guess(0, 0, 1 << 20), (1040, 16, 63, Translation::Lba));
    assert_eq!(guess(0, 0, 100), (2, 16, 63, Translation::None));
}
