//! The disk with a driver of the test's own, and with hostile ones.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use block::DriveOptions;
use bus::Device;
use proptest::prelude::*;

use super::*;
use crate::testing::Failing;
use crate::virtio::testing::{Machine, PLAIN, Queue, READ, WRITE, conformance};
use crate::virtio::{VirtioPci, VirtioPciOptions};

const DISK: u64 = 1 << 20;
const HEADER_AT: u64 = 0x1000;
const STATUS_AT: u64 = 0x2000;
const DATA_AT: u64 = 0x10000;

struct Disk {
    _dir: tempfile::TempDir,
    path: std::path::PathBuf,
    drive: Arc<Drive>,
}

fn disk(options: &DriveOptions) -> Disk {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    let pattern: Vec<u8> = (0..DISK).map(|i| (i / 512 + i) as u8).collect();
    File::create(&path).unwrap().write_all(&pattern).unwrap();
    let drive = Arc::new(Drive::open("disk0", &path, options).unwrap());
    Disk { _dir: dir, path, drive }
}

fn machine(drive: &Arc<Drive>, options: BlkOptions) -> Machine {
    let device = VirtioBlk::new(drive.clone(), "blk0", options).unwrap();
    Machine::new(Machine::memory(), device, pci_options())
}

fn pci_options() -> VirtioPciOptions {
    VirtioPciOptions { id: "blk0".into(), ..Default::default() }
}

fn start(machine: &Machine) -> Queue<'_> {
    machine.negotiate(PLAIN);
    let queue = machine.queue(0, 128);
    machine.driver_ok();
    queue
}

fn header(machine: &Machine, at: u64, kind: u32, sector: u64) {
    machine.memory.write(at, &kind.to_le_bytes()).unwrap();
    machine.memory.write(at + 4, &[0; 4]).unwrap();
    machine.memory.write(at + 8, &sector.to_le_bytes()).unwrap();
}

/// Makes one request and waits for it; its status.
fn request(queue: &mut Queue<'_>, kind: u32, sector: u64, data: &[(u64, u32, bool)]) -> u8 {
    let machine = queue.machine;
    header(machine, HEADER_AT, kind, sector);
    machine.memory.write(STATUS_AT, &[0xee]).unwrap();
    let mut buffers = vec![(HEADER_AT, 16, READ)];
    buffers.extend(data);
    buffers.push((STATUS_AT, 1, WRITE));
    let head = queue.submit(&buffers);
    queue.kick();
    let (used, written) = queue.wait_used();
    assert_eq!(used, head);
    let writable: u32 = buffers.iter().filter(|b| b.2).map(|b| b.1).sum();
    assert_eq!(written, writable);
    let mut status = [0];
    machine.memory.read(STATUS_AT, &mut status).unwrap();
    status[0]
}

fn file_bytes(path: &Path, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    File::open(path).unwrap().read_exact_at(&mut bytes, at).unwrap();
    bytes
}

#[test]
fn the_function_looks_as_drivers_know_it() {
    let disk = disk(&DriveOptions::default());
    let machine = machine(&disk.drive, BlkOptions::default());
    assert_eq!(machine.config(0, 4), 0x1001_1af4);
    assert_eq!(machine.config(8, 4), 0x0100_0000);
    assert_eq!(machine.config(0x2c, 4), 0x0002_1af4);
    assert_eq!(machine.config(0x3c, 4), 0x0100);
    let mut capabilities = Vec::new();
    let mut at = machine.config(0x34, 1) as u16;
    while at != 0 {
        capabilities.push((at, machine.config(at, 1), machine.config(at + 3, 1)));
        at = machine.config(at + 1, 1) as u16;
    }
    let want =
        [(0x98, 0x11, 0), (0x84, 9, 5), (0x70, 9, 2), (0x60, 9, 4), (0x50, 9, 3), (0x40, 9, 1)];
    assert_eq!(capabilities, want);
    machine.set_config(0x10, 4, u32::MAX);
    assert_eq!(machine.config(0x10, 4), 0xffff_ff81);
    assert_eq!(machine.read(0x2000, 4), DISK / 512);
    assert_eq!(machine.read(0x200c, 4), 0xfe);
    assert_eq!(machine.read(0x2014, 4), 512);
    assert_eq!(machine.read(0x2038, 4), 0xffff_ffff, "past the end");
    machine.write(0, 4, 0);
    assert_eq!(machine.read(4, 4), 0x3000_6e54);
    machine.write(0, 4, 1);
    assert_eq!(machine.read(4, 4), 0x101);
}

#[test]
fn the_driver_is_told_of_a_new_size() {
    let disk = disk(&DriveOptions::default());
    let machine = machine(&disk.drive, BlkOptions::default());
    disk.drive.resize(DISK / 2).unwrap();
    assert!(!machine.intx(), "there is no driver");
    let mut queue = start(&machine);
    let generation = machine.read(0x15, 1);
    disk.drive.resize(2 * DISK).unwrap();
    assert!(machine.intx());
    assert_eq!(machine.read(0x1000, 1), 3, "the configuration changed");
    assert_eq!(machine.read(0x2000, 4), 2 * DISK / 512);
    assert_ne!(machine.read(0x15, 1), generation);
    assert_eq!(request(&mut queue, request::IN, 2 * DISK / 512 - 1, &[(DATA_AT, 512, WRITE)]), 0);
    disk.drive.resize(DISK).unwrap();
    assert_eq!(request(&mut queue, request::IN, 2 * DISK / 512 - 1, &[(DATA_AT, 512, WRITE)]), 1);
}

#[test]
fn reads_and_writes_reach_the_file_and_are_counted() {
    let disk = disk(&DriveOptions::default());
    let machine = machine(&disk.drive, BlkOptions::default());
    let mut queue = start(&machine);
    // Three pieces, so that the host gets them in one call.
    let pieces = [(DATA_AT, 512, WRITE), (DATA_AT + 0x2000, 1024, WRITE), (0x30000, 512, WRITE)];
    assert_eq!(request(&mut queue, request::IN, 3, &pieces), 0);
    let mut got = Vec::new();
    for (at, len, _) in pieces {
        let mut part = vec![0; len as usize];
        machine.memory.read(at, &mut part).unwrap();
        got.extend(part);
    }
    assert_eq!(got, file_bytes(&disk.path, 3 * 512, 2048));

    machine.memory.write(DATA_AT, &[0x5a; 4096]).unwrap();
    assert_eq!(request(&mut queue, request::OUT, 100, &[(DATA_AT, 4096, READ)]), 0);
    assert_eq!(file_bytes(&disk.path, 100 * 512, 4096), [0x5a; 4096]);
    assert_eq!(request(&mut queue, request::FLUSH, 0, &[]), 0);
    let stats = disk.drive.stats();
    assert_eq!((stats.rd_operations, stats.rd_bytes), (1, 2048));
    assert_eq!((stats.wr_operations, stats.wr_bytes), (1, 4096));
    assert_eq!((stats.flush_operations, stats.wr_highest_offset), (1, 100 * 512 + 4096));
    let parent = disk.drive.parent_stats().unwrap();
    assert_eq!((parent.rd_bytes, parent.wr_bytes, parent.flush_operations), (2048, 4096, 1));
}

#[test]
fn requests_off_the_disk_or_unknown_are_refused_and_do_no_harm() {
    let disk = disk(&DriveOptions::default());
    let machine = machine(&disk.drive, BlkOptions::default());
    let mut queue = start(&machine);
    let before = file_bytes(&disk.path, 0, DISK as usize);
    let last = DISK / 512;
    assert_eq!(request(&mut queue, request::IN, last, &[(DATA_AT, 512, WRITE)]), 1);
    assert_eq!(request(&mut queue, request::OUT, last - 1, &[(DATA_AT, 1024, READ)]), 1);
    assert_eq!(request(&mut queue, request::OUT, u64::MAX, &[(DATA_AT, 512, READ)]), 1);
    assert_eq!(request(&mut queue, request::OUT, 1 << 55, &[(DATA_AT, 512, READ)]), 1);
    assert_eq!(request(&mut queue, request::OUT, 0, &[(DATA_AT, 100, READ)]), 1);
    assert_eq!(request(&mut queue, 0x1234, 0, &[]), 2);
    assert_eq!(file_bytes(&disk.path, 0, DISK as usize), before);
    assert_eq!(machine.status() & 0x40, 0);
}

#[test]
fn the_serial_is_told_as_far_as_there_is_room() {
    let disk = disk(&DriveOptions::default());
    let options =
        BlkOptions { serial: "a-serial-number-that-is-too-long".into(), ..Default::default() };
    let machine = machine(&disk.drive, options);
    let mut queue = start(&machine);
    assert_eq!(request(&mut queue, request::GET_ID, 0, &[(DATA_AT, 20, WRITE)]), 0);
    let mut serial = [0; 20];
    machine.memory.read(DATA_AT, &mut serial).unwrap();
    assert_eq!(&serial, b"a-serial-number-that");
    machine.memory.write(DATA_AT, &[9; 20]).unwrap();
    assert_eq!(request(&mut queue, request::GET_ID, 0, &[(DATA_AT, 4, WRITE)]), 0);
    machine.memory.read(DATA_AT, &mut serial).unwrap();
    assert_eq!(&serial[..6], b"a-se\x09\x09");
}

#[test]
fn discard_frees_and_write_zeroes_zeroes() {
    let options = DriveOptions { discard: block::DiscardMode::Unmap, ..Default::default() };
    let disk = disk(&options);
    let machine = machine(&disk.drive, BlkOptions::default());
    let mut queue = start(&machine);
    let range = |sector: u64, count: u32, flags: u32| {
        machine.memory.write(DATA_AT, &sector.to_le_bytes()).unwrap();
        machine.memory.write(DATA_AT + 8, &count.to_le_bytes()).unwrap();
        machine.memory.write(DATA_AT + 12, &flags.to_le_bytes()).unwrap();
    };
    let segment = [(DATA_AT, 16, READ)];
    range(8, 16, 0);
    assert_eq!(request(&mut queue, request::WRITE_ZEROES, 0, &segment), 0);
    assert_eq!(file_bytes(&disk.path, 8 * 512, 16 * 512), [0; 16 * 512]);
    assert_ne!(file_bytes(&disk.path, 24 * 512, 512), [0; 512]);
    range(64, 64, 0);
    assert_eq!(request(&mut queue, request::DISCARD, 0, &segment), 0);
    assert_eq!(file_bytes(&disk.path, 64 * 512, 64 * 512), [0; 64 * 512]);
    range(0, 8, 1);
    assert_eq!(request(&mut queue, request::DISCARD, 0, &segment), 2, "unknown flag");
    range(DISK / 512, 1, 0);
    assert_eq!(request(&mut queue, request::WRITE_ZEROES, 0, &segment), 1);
    range(0, 0x40_0000, 0);
    assert_eq!(request(&mut queue, request::DISCARD, 0, &segment), 1, "too long");
    let two = [(DATA_AT, 32, READ)];
    assert_eq!(request(&mut queue, request::DISCARD, 0, &two), 2, "two segments");
    assert_eq!(disk.drive.stats().unmap_operations, 1);
}

#[test]
fn a_read_only_disk_refuses_writes() {
    let options = DriveOptions { read_only: true, ..Default::default() };
    let disk = disk(&options);
    let machine = machine(&disk.drive, BlkOptions::default());
    machine.write(0, 4, 0);
    assert_eq!(machine.read(4, 4) & feature::RO, feature::RO);
    let mut queue = start(&machine);
    assert_eq!(request(&mut queue, request::OUT, 0, &[(DATA_AT, 512, READ)]), 1);
    assert_eq!(request(&mut queue, request::IN, 0, &[(DATA_AT, 512, WRITE)]), 0);
    assert_eq!(request(&mut queue, request::FLUSH, 0, &[]), 0);
}

#[test]
fn larger_blocks_are_told_and_required() {
    let disk = disk(&DriveOptions::default());
    let options =
        BlkOptions { logical_block_size: 4096, physical_block_size: 8192, ..Default::default() };
    let machine = machine(&disk.drive, options);
    assert_eq!(machine.read(0x2014, 4), 4096);
    assert_eq!(machine.read(0x2018, 1), 1);
    let mut queue = start(&machine);
    assert_eq!(request(&mut queue, request::IN, 1, &[(DATA_AT, 4096, WRITE)]), 1);
    assert_eq!(request(&mut queue, request::IN, 8, &[(DATA_AT, 512, WRITE)]), 1);
    assert_eq!(request(&mut queue, request::IN, 8, &[(DATA_AT, 4096, WRITE)]), 0);
}

#[test]
fn bad_options_are_refused() {
    let disk = disk(&DriveOptions::default());
    for options in [
        BlkOptions { logical_block_size: 1000, ..Default::default() },
        BlkOptions { logical_block_size: 4096, ..Default::default() },
        BlkOptions { num_queues: 0, ..Default::default() },
        BlkOptions { queue_size: 3, ..Default::default() },
    ] {
        assert!(VirtioBlk::new(disk.drive.clone(), "blk0", options).is_err());
    }
    let first = VirtioBlk::new(disk.drive.clone(), "blk0", BlkOptions::default()).unwrap();
    let second = VirtioBlk::new(disk.drive.clone(), "blk1", BlkOptions::default());
    let message = second.err().unwrap().to_string();
    assert_eq!(message, "Drive 'disk0' is already in use by another device");
    drop(first);
    VirtioBlk::new(disk.drive.clone(), "blk1", BlkOptions::default()).unwrap();
}

#[test]
fn the_write_cache_mode_is_the_drivers() {
    let disk = disk(&DriveOptions::default());
    let machine = machine(&disk.drive, BlkOptions::default());
    let mut queue = start(&machine);
    assert_eq!(machine.read(0x2020, 1), 1);
    machine.write(0x2020, 1, 0);
    assert_eq!(machine.read(0x2020, 1), 0);
    assert_eq!(request(&mut queue, request::OUT, 0, &[(DATA_AT, 512, READ)]), 0);
    assert_eq!(disk.drive.parent_stats().unwrap().flush_operations, 1);
    // A driver that knows neither flushes nor the mode gets writes that last.
    machine.negotiate(feature::FLUSH | feature::CONFIG_WCE);
    machine.driver_ok();
    assert!(!disk.drive.write_cache());
    machine.write(0x14, 1, 0);
    assert!(disk.drive.write_cache());
}

#[test]
fn a_legacy_driver_gets_along() {
    let disk = disk(&DriveOptions::default());
    let machine = machine(&disk.drive, BlkOptions::default());
    assert_eq!(machine.inl(0, 4), 0x3900_6e54);
    machine.outl(18, 1, 0);
    machine.outl(18, 1, 3);
    machine.outl(4, 4, feature::FLUSH);
    machine.outl(14, 2, 0);
    assert_eq!(machine.inl(12, 2), 256);
    let base = 0x20_0000;
    machine.outl(8, 4, base >> 12);
    assert_eq!(machine.inl(8, 4), base >> 12);
    let avail = base + 16 * 256;
    let used = (avail + 4 + 2 * 256 + 2).next_multiple_of(4096);
    let mut queue = Queue::new(&machine, 0, 256, base, avail, used);
    machine.outl(18, 1, 7);
    assert_eq!(machine.inl(20, 4), DISK / 512, "configuration without MSI-X");
    header(&machine, HEADER_AT, request::IN, 5);
    let pieces = [(HEADER_AT, 16, READ), (DATA_AT, 512, WRITE), (STATUS_AT, 1, WRITE)];
    queue.submit(&pieces);
    machine.outl(16, 2, 0);
    assert_eq!(queue.wait_used(), (0, 513));
    let mut got = [0; 512];
    machine.memory.read(DATA_AT, &mut got).unwrap();
    assert_eq!(got[..], file_bytes(&disk.path, 5 * 512, 512));
    machine.wait("the wire", || machine.intx());
    assert_eq!(machine.inl(19, 1), 1);
    assert!(!machine.intx());
    machine.outl(8, 4, 0);
    assert_eq!(machine.inl(8, 4), 0);
    machine.enable_msix(2);
    assert_eq!(machine.inl(24, 4), DISK / 512, "configuration with MSI-X");
    machine.outl(22, 2, 1);
    assert_eq!(machine.inl(22, 2), 1);
    machine.outl(22, 2, 7);
    assert_eq!(machine.inl(22, 2), 0xffff);
}

#[test]
fn interrupts_take_the_vector_and_heed_suppression() {
    let disk = disk(&DriveOptions::default());
    let machine = machine(&disk.drive, BlkOptions::default());
    machine.enable_msix(2);
    let mut queue = start(&machine);
    let messages = || machine.interrupts.messages.lock().unwrap().clone();
    assert_eq!(request(&mut queue, request::FLUSH, 0, &[]), 0);
    machine.wait("a message", || messages() == [0x41]);
    // The driver asks for silence.
    machine.memory.write(queue.avail, &[1, 0]).unwrap();
    assert_eq!(request(&mut queue, request::FLUSH, 0, &[]), 0);
    machine.function.core().pause();
    machine.function.core().resume();
    assert_eq!(messages(), [0x41]);
    assert!(!machine.intx());
}

#[test]
fn event_indices_say_when_to_interrupt_and_notify() {
    let disk = disk(&DriveOptions::default());
    let machine = machine(&disk.drive, BlkOptions::default());
    machine.enable_msix(2);
    machine.negotiate(0);
    let mut queue = machine.queue(0, 128);
    machine.driver_ok();
    let used_event = queue.avail + 4 + 2 * 128;
    let avail_event = queue.used + 4 + 8 * 128;
    machine.memory.write(used_event, &2_u16.to_le_bytes()).unwrap();
    for _ in 0..4 {
        assert_eq!(request(&mut queue, request::FLUSH, 0, &[]), 0);
    }
    machine.function.core().pause();
    machine.function.core().resume();
    // The first is always told, the third is the one asked for.
    assert_eq!(*machine.interrupts.messages.lock().unwrap(), [0x41, 0x41]);
    let mut event = [0; 2];
    machine.wait("the event index", || {
        let mut now = [0; 2];
        machine.memory.read(avail_event, &mut now).unwrap();
        u16::from_le_bytes(now) == 4
    });
    machine.memory.read(avail_event, &mut event).unwrap();
    assert_eq!(u16::from_le_bytes(event), 4);
}

#[test]
fn indirect_tables_are_followed() {
    let disk = disk(&DriveOptions::default());
    let machine = machine(&disk.drive, BlkOptions::default());
    let mut queue = start(&machine);
    header(&machine, HEADER_AT, request::IN, 7);
    let table = 0x8000;
    let entries = [(HEADER_AT, 16_u32, 1_u16, 1_u16), (DATA_AT, 512, 3, 2), (STATUS_AT, 1, 2, 0)];
    for (i, (addr, len, flags, next)) in (0..).zip(entries) {
        machine.memory.write(table + 16 * i, &addr.to_le_bytes()).unwrap();
        machine.memory.write(table + 16 * i + 8, &len.to_le_bytes()).unwrap();
        machine.memory.write(table + 16 * i + 12, &flags.to_le_bytes()).unwrap();
        machine.memory.write(table + 16 * i + 14, &next.to_le_bytes()).unwrap();
    }
    queue.set_desc(9, table, 48, 4, 0);
    queue.offer(9);
    queue.kick();
    assert_eq!(queue.wait_used(), (9, 513));
    let mut got = [0; 512];
    machine.memory.read(DATA_AT, &mut got).unwrap();
    assert_eq!(got[..], file_bytes(&disk.path, 7 * 512, 512));
}

#[test]
fn configuration_space_gives_access_without_a_bar() {
    let disk = disk(&DriveOptions::default());
    let machine = machine(&disk.drive, BlkOptions::default());
    machine.set_config(4, 2, 0);
    machine.set_config(0x84 + 4, 1, 4);
    machine.set_config(0x84 + 8, 4, 0x2000);
    machine.set_config(0x84 + 12, 4, 4);
    assert_eq!(machine.config(0x84 + 16, 4), (DISK / 512) as u32);
    machine.set_config(0x84 + 8, 4, 0x14);
    machine.set_config(0x84 + 12, 4, 1);
    machine.set_config(0x84 + 16, 4, 3);
    assert_eq!(machine.config(0x84 + 16, 4), 3);
    machine.set_config(0x84 + 16, 4, 0);
    assert_eq!(machine.config(0x84 + 16, 4), 0);
    for (offset, length) in [(0x4000, 4), (0xffff_fffc, 4), (2, 4), (0, 3), (0, 0)] {
        machine.set_config(0x84 + 8, 4, offset);
        machine.set_config(0x84 + 12, 4, length);
        machine.set_config(0x84 + 16, 4, 0);
        machine.config(0x84 + 16, 4);
    }
}

#[test]
fn queues_are_reset_one_by_one() {
    let disk = disk(&DriveOptions::default());
    let machine = machine(&disk.drive, BlkOptions::default());
    let mut queue = start(&machine);
    assert_eq!(request(&mut queue, request::FLUSH, 0, &[]), 0);
    machine.write(0x3a, 2, 1);
    assert_eq!(machine.read(0x3a, 2), 0);
    assert_eq!(machine.read(0x1c, 2), 0);
    assert_eq!(machine.read(0x18, 2), 256);
    let mut queue = machine.queue(0, 64);
    assert_eq!(request(&mut queue, request::FLUSH, 0, &[]), 0);
}

#[test]
fn features_that_were_not_offered_are_not_accepted() {
    let disk = disk(&DriveOptions::default());
    let options = VirtioPciOptions { disable_legacy: true, ..pci_options() };
    let device = VirtioBlk::new(disk.drive.clone(), "blk0", BlkOptions::default()).unwrap();
    let machine = Machine::new(Machine::memory(), device, options);
    assert_eq!(machine.config(0, 4), 0x1042_1af4);
    assert_eq!(machine.config(8, 1), 1);
    assert_eq!(machine.config(0x2c, 4), 0x1100_1af4);
    machine.write(0x14, 1, 3);
    machine.write(0x08, 4, 1);
    machine.write(0x0c, 4, 0x201);
    machine.write(0x14, 1, 0xb);
    assert_eq!(machine.status(), 3);
    machine.write(0x0c, 4, 0);
    machine.write(0x14, 1, 0xb);
    assert_eq!(machine.status(), 3, "a modern device wants VERSION_1");
    machine.write(0x0c, 4, 1);
    machine.write(0x14, 1, 0xb);
    assert_eq!(machine.status(), 0xb);
}

#[test]
fn the_configuration_says_what_the_user_chose() {
    let disk = disk(&DriveOptions::default());
    let options = BlkOptions {
        logical_block_size: 4096,
        physical_block_size: 4096,
        config_wce: false,
        adjust_segments: false,
        geometry: Some((16, 8, 30)),
        io_sizes: (8192, 65536),
        discard_granularity: Some(65536),
        queue_size: 512,
        ..BlkOptions::default()
    };
    let device = VirtioBlk::new(disk.drive.clone(), "blk0", options).unwrap();
    let transport = VirtioPciOptions { event_idx: false, indirect_desc: false, ..pci_options() };
    let machine = Machine::new(Machine::memory(), device, transport);
    assert_eq!(machine.read(4, 4), 0x6654);
    assert_eq!(machine.read(0x200c, 4), 126);
    assert_eq!(machine.read(0x2010, 4), 24 << 24 | 8 << 16 | 16, "tracks of whole blocks");
    assert_eq!(machine.read(0x201a, 2), 2);
    assert_eq!(machine.read(0x201c, 4), 16);
    assert_eq!(machine.read(0x202c, 4), 128);
}

#[test]
fn sizes_of_io_are_whole_blocks() {
    let refused = |least: u32, best: u32| {
        let disk = disk(&DriveOptions::default());
        let options = BlkOptions { io_sizes: (least, best), ..BlkOptions::default() };
        VirtioBlk::new(disk.drive.clone(), "blk0", options).err().unwrap().to_string()
    };
    assert_eq!(refused(1000, 0), "min_io_size must be a multiple of logical_block_size");
    assert_eq!(refused(512, 700), "opt_io_size must be a multiple of logical_block_size");
    assert_eq!(refused(32 << 20, 0), "min_io_size must not exceed 65535 logical blocks");
}

#[test]
fn both_interfaces_cannot_be_disabled() {
    let disk = disk(&DriveOptions::default());
    let device = VirtioBlk::new(disk.drive.clone(), "blk0", BlkOptions::default()).unwrap();
    let options = VirtioPciOptions { disable_legacy: true, disable_modern: true, ..pci_options() };
    let machine = machine(&self::disk(&DriveOptions::default()).drive, BlkOptions::default());
    let wiring = machine.bus.wiring(crate::pci::Devfn::new(4, 0), 1);
    assert!(VirtioPci::new(device, options, wiring, machine.memory.clone()).is_err());
}

#[test]
fn a_write_that_found_no_space_stops_the_machine_and_is_made_again() {
    let node = Failing::new(DISK);
    let drive = Arc::new(Drive::with_node("disk0", node.clone(), &DriveOptions::default()));
    let events = Arc::new(Mutex::new(Vec::new()));
    let seen = events.clone();
    drive.set_event_hook(Box::new(move |event| match event {
        block::DriveEvent::Error(error) => seen.lock().unwrap().push(error),
        other => panic!("{other:?}"),
    }));
    let machine = machine(&drive, BlkOptions::default());
    let mut queue = start(&machine);
    node.fails_writes.store(true, Ordering::SeqCst);
    header(&machine, HEADER_AT, request::OUT, 1);
    let pieces = [(HEADER_AT, 16, READ), (DATA_AT, 512, READ), (STATUS_AT, 1, WRITE)];
    let head = queue.submit(&pieces);
    queue.kick();
    machine.wait("the event", || !events.lock().unwrap().is_empty());
    machine.function.core().pause();
    assert_eq!(drive.io_status(), Some(block::IoStatus::NoSpace));
    let event = events.lock().unwrap()[0].clone();
    assert_eq!((event.action, event.no_space), (ErrorAction::Stop, Some(true)));
    assert_eq!(event.reason, "no storage space");
    assert_eq!(queue.used_index(), 0);
    // The request survives a trip through saved state.
    let saved = machine.function.save();
    machine.function.reset();
    assert_eq!(drive.io_status(), Some(block::IoStatus::Ok));
    machine.function.restore(&saved).unwrap();
    assert_eq!(machine.function.save(), saved);
    node.fails_writes.store(false, Ordering::SeqCst);
    machine.function.core().resume();
    assert_eq!(queue.wait_used(), (head, 1));
    assert_eq!(node.writes.load(Ordering::SeqCst), 1);
    // Reads are only reported.
    node.fails_reads.store(true, Ordering::SeqCst);
    assert_eq!(request(&mut queue, request::IN, 0, &[(DATA_AT, 512, WRITE)]), 1);
    assert_eq!(events.lock().unwrap()[1].reason, "Input/output error");
}

#[test]
fn a_driver_that_was_saved_goes_on_where_it_was() {
    let disk = disk(&DriveOptions::default());
    let machine = machine(&disk.drive, BlkOptions::default());
    machine.enable_msix(2);
    let mut queue = start(&machine);
    assert_eq!(request(&mut queue, request::FLUSH, 0, &[]), 0);
    machine.function.core().pause();
    // One request that nobody has seen yet.
    header(&machine, HEADER_AT, request::IN, 1);
    let pieces = [(HEADER_AT, 16, READ), (DATA_AT, 512, WRITE), (STATUS_AT, 1, WRITE)];
    let head = queue.submit(&pieces);
    let saved = machine.function.save();
    let fresh = machine.function.save();
    assert_eq!(saved, fresh);
    machine.function.reset();
    assert_eq!(machine.config(4, 2), 0);
    machine.function.restore(&saved).unwrap();
    assert_eq!(machine.function.save(), saved);
    assert_eq!(machine.status(), 0xf);
    machine.function.core().resume();
    assert_eq!(queue.wait_used(), (head, 513));

    for cut in 0..saved.data.len() {
        let mut damaged = saved.clone();
        damaged.data.truncate(cut);
        assert!(machine.function.restore(&damaged).is_err(), "cut at {cut}");
    }
}

#[test]
fn large_transfers_go_through_in_one_piece() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("big.img");
    File::create(&path).unwrap().set_len(64 << 20).unwrap();
    let drive = Arc::new(Drive::open("big", &path, &DriveOptions::default()).unwrap());
    let memory = Arc::new(memory::GuestMemory::new(&[(0, 16 << 20)]).unwrap());
    let device = VirtioBlk::new(drive.clone(), "blk0", BlkOptions::default()).unwrap();
    let machine = Machine::new(memory, device, pci_options());
    let mut queue = start(&machine);
    let data: Vec<u8> = (0..8 << 20).map(|i: u32| (i >> 9) as u8).collect();
    machine.memory.write(0x40_0000, &data).unwrap();
    for part in 0..8 {
        let sector = part * (8 << 20) / 512;
        assert_eq!(request(&mut queue, request::OUT, sector, &[(0x40_0000, 8 << 20, READ)]), 0);
    }
    assert_eq!(drive.stats().wr_operations, 8);
    assert_eq!(drive.stats().wr_highest_offset, 64 << 20);
    assert!(file_bytes(&path, 56 << 20, 8 << 20) == data);
}

#[test]
fn many_requests_at_a_time_all_come_back() {
    let disk = disk(&DriveOptions::default());
    let machine = machine(&disk.drive, BlkOptions::default());
    let mut queue = start(&machine);
    for round in 0..50_u64 {
        let mut heads = Vec::new();
        for i in 0..32_u64 {
            let at = 0x4_0000 + i * 0x1000;
            header(&machine, at, request::IN, (round * 32 + i) % 2048);
            heads.push(queue.submit(&[
                (at, 16, READ),
                (at + 512, 512, WRITE),
                (at + 1024, 1, WRITE),
            ]));
        }
        queue.kick();
        let mut done: Vec<_> = (0..32).map(|_| queue.wait_used().0).collect();
        done.sort_unstable();
        heads.sort_unstable();
        assert_eq!(done, heads);
    }
    for i in 0..32_u64 {
        let mut got = [0; 512];
        machine.memory.read(0x4_0000 + i * 0x1000 + 512, &mut got).unwrap();
        let sector = (49 * 32 + i) % 2048;
        assert_eq!(got[..], file_bytes(&disk.path, sector * 512, 512));
    }
    assert_eq!(disk.drive.stats().rd_operations, 1600);
}

/// What one request of a hostile driver is made of.
#[derive(Clone, Debug)]
struct Hostile {
    descs: Vec<(u64, u32, u16, u16)>,
    heads: Vec<u16>,
    skip: u16,
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0..crate::virtio::testing::RAM,
        2 => Just(HEADER_AT),
        1 => Just(0x20_0000_u64),
        1 => crate::virtio::testing::RAM - 64..crate::virtio::testing::RAM + 64,
        1 => any::<u64>(),
    ]
}

fn hostile() -> impl Strategy<Value = Hostile> {
    let len = prop_oneof![
        3 => 0..64_u32, 2 => Just(16), 2 => Just(512), 1 => any::<u32>(), 1 => 0..0x10000_u32,
    ];
    let flags = prop_oneof![4 => 0..8_u16, 1 => any::<u16>()];
    let next = prop_oneof![8 => 0..16_u16, 1 => any::<u16>()];
    let desc = (address(), len, flags, next);
    (
        proptest::collection::vec(desc, 16),
        proptest::collection::vec(prop_oneof![8 => 0..16_u16, 1 => any::<u16>()], 1..8),
        prop_oneof![8 => Just(0_u16), 1 => any::<u16>()],
    )
        .prop_map(|(descs, heads, skip)| Hostile { descs, heads, skip })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever is in the rings, the device neither panics nor hangs, and works after a reset.
    #[test]
    fn hostile_rings_do_no_harm(attack in hostile(), ring in proptest::option::of(address())) {
        let disk = disk(&DriveOptions { read_only: true, ..Default::default() });
        let machine = machine(&disk.drive, BlkOptions::default());
        machine.negotiate(PLAIN);
        let mut queue = machine.queue(0, 16);
        if let Some(ring) = ring {
            machine.write(0x3a, 2, 1);
            for (i, register) in [0x20, 0x28, 0x30].into_iter().enumerate() {
                machine.write(register, 8, ring.wrapping_add(0x1000 * i as u64));
            }
            machine.write(0x18, 2, 16);
            machine.write(0x1c, 2, 1);
        }
        machine.driver_ok();
        for (index, &(addr, len, flags, next)) in (0..).zip(&attack.descs) {
            queue.set_desc(index, addr, len, flags, next);
        }
        header(&machine, HEADER_AT, request::IN, 0);
        for &head in &attack.heads {
            queue.offer(head);
        }
        let skipped = queue.next_avail.wrapping_add(attack.skip);
        machine.memory.write(queue.avail + 2, &skipped.to_le_bytes()).unwrap();
        queue.kick();
        machine.function.core().pause();
        let saved = machine.function.save();
        machine.function.restore(&saved).unwrap();
        machine.function.core().resume();

        let mut queue = start(&machine);
        prop_assert_eq!(request(&mut queue, request::IN, 9, &[(DATA_AT, 512, WRITE)]), 0);
        prop_assert_eq!(machine.function.core().failure(), None);
        let mut got = [0; 512];
        machine.memory.read(DATA_AT, &mut got).unwrap();
        prop_assert_eq!(got[..].to_vec(), file_bytes(&disk.path, 9 * 512, 512));
    }

    /// Whatever a guest does with the registers, the device neither panics nor hangs.
    #[test]
    fn hostile_register_accesses_do_no_harm(
        accesses in proptest::collection::vec(
            (0..5_u8, any::<u16>(), prop_oneof![Just(1_u8), Just(2), Just(4), Just(8)], any::<u64>()),
            1..60,
        )
    ) {
        let disk = disk(&DriveOptions { read_only: true, ..Default::default() });
        let machine = machine(&disk.drive, BlkOptions::default());
        machine.negotiate(PLAIN);
        machine.queue(0, 16);
        machine.driver_ok();
        for (space, offset, size, value) in accesses {
            let at = u64::from(offset);
            match space {
                0 => { machine.mmio.write(0xfe00_0000 + at % 0x60, size, value); }
                1 => { machine.mmio.read(0xfe00_0000 + at % 0x4100, size); }
                2 => { machine.ports.write(0xc000 + at % 0x90, size, value); }
                3 => { machine.mmio.write(0xfebf_0000 + at % 0x1100, size, value); }
                _ => {
                    let at = (offset % 256) & !3;
                    machine.set_config(at, 4, value as u32);
                    machine.config(at, 4);
                }
            }
        }
        machine.function.reset();
        machine.map_bars();
        let mut queue = start(&machine);
        prop_assert_eq!(request(&mut queue, request::IN, 9, &[(DATA_AT, 512, WRITE)]), 0);
    }
}

#[test]
fn keeps_the_promises_of_every_device() {
    let disk = disk(&DriveOptions::default());
    let device = VirtioBlk::new(disk.drive.clone(), "blk0", BlkOptions::default()).unwrap();
    let machine = Machine::fresh(Machine::memory(), device, pci_options());
    conformance(&machine, || {
        machine.enable_msix(2);
        let mut queue = start(&machine);
        machine.write(0x2020, 1, 0);
        assert_eq!(request(&mut queue, request::IN, 3, &[(DATA_AT, 512, WRITE)]), 0);
    });
}
