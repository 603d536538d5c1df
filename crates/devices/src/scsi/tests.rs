//! Units as initiators see them: commands in, data and sense out.

use std::sync::Arc;

use block::{Drive, DriveOptions};
use memory::GuestMemory;
use proptest::prelude::*;

use super::*;

const MEMORY: u64 = 1 << 20;

/// A unit with an image of its own, and guest memory for its data.
struct Bench {
    lun: Arc<Lun>,
    memory: GuestMemory,
    path: std::path::PathBuf,
    _dir: tempfile::TempDir,
}

/// A byte of the image that tells its place.
fn content(at: usize) -> u8 {
    ((at >> 9) * 7 + at % 251) as u8
}

fn bench(options: LunOptions, len: usize, drive: &DriveOptions) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    std::fs::write(&path, (0..len).map(content).collect::<Vec<_>>()).unwrap();
    let drive = Arc::new(Drive::open("drive0", &path, drive).unwrap());
    let lun = Lun::new(drive, "unit", options).unwrap();
    Bench { lun, memory: GuestMemory::new(&[(0, MEMORY)]).unwrap(), path, _dir: dir }
}

fn disk() -> Bench {
    let bench = bench(LunOptions::disk(), 1 << 20, &DriveOptions::default());
    assert_eq!(bench.run(&[op::TEST_UNIT_READY]), Err(Sense::RESET));
    bench
}

fn cdrom() -> Bench {
    let read_only = DriveOptions { read_only: true, ..DriveOptions::default() };
    bench(LunOptions::cdrom(Transport::Atapi), 2048 * 100, &read_only)
}

impl Bench {
    /// Runs a command with 64 KiB of memory each way, in uneven pieces; `out` is what goes to the unit.
    fn run_with(&self, cdb: &[u8], out: &[u8]) -> Result<Vec<u8>, Sense> {
        let half = 1 << 16;
        self.memory.write(half, out).unwrap();
        let input = slices(&self.memory, &[(1, 3), (100, 509), (0x1000, 0xe000)]).unwrap();
        let output = slices(&self.memory, &[(half, out.len() as u32)]).unwrap();
        let task = self.lun.start(cdb)?;
        match self.lun.perform(&task, &input, &output) {
            Outcome::Check(sense) => Err(sense),
            Outcome::Held => panic!("nothing stops the machine"),
            Outcome::Good(moved) => {
                let mut data = vec![0; moved as usize];
                if matches!(task.data(), Data::In(_)) {
                    data::gather(&input, 0, &mut data);
                    let mut pieces = vec![0; data.len()];
                    for (i, piece) in pieces.chunks_mut(700).enumerate() {
                        let len = piece.len() as u64;
                        let fetched = self.lun.fetch(&task, i as u64 * 700, piece);
                        assert_eq!(fetched, Outcome::Good(len));
                    }
                    assert!(pieces == data, "both ways bring the same");
                }
                Ok(data)
            }
        }
    }

    fn run(&self, cdb: &[u8]) -> Result<Vec<u8>, Sense> {
        self.run_with(cdb, &[])
    }

    fn image(&self) -> Vec<u8> {
        std::fs::read(&self.path).unwrap()
    }
}

#[test]
fn the_last_block_may_be_in_the_image_in_part() {
    for (len, options, last) in [
        (1000, LunOptions::disk(), 1),
        (512, LunOptions::disk(), 0),
        (2 * 2048 - 1, LunOptions::cdrom(Transport::Scsi), 1),
        // Less than a sector of the image is missing, or more.
        (2 * 2048 - 512, LunOptions::cdrom(Transport::Scsi), 0),
    ] {
        let block = options.logical_block_size as usize;
        let bench = bench(options, len, &DriveOptions::default());
        let _ = bench.run(&[op::TEST_UNIT_READY]);
        assert_eq!(bench.run(&[op::READ_CAPACITY_10]).unwrap()[..4], [0, 0, 0, last], "{len}");
        let data = bench.run(&[op::READ_10, 0, 0, 0, 0, last, 0, 0, 1, 0]).unwrap();
        let there = (usize::from(last) * block..).map(|at| if at < len { content(at) } else { 0 });
        assert!(data == there.take(block).collect::<Vec<_>>(), "{len}");
    }
}

#[test]
fn inquiry_tells_who_it_is() {
    let disk = disk();
    let data = disk.run(&[op::INQUIRY, 0, 0, 0, 255, 0]).unwrap();
    assert_eq!(data[..8], [0, 0, 5, 0x12, 31, 0, 0, 0x12]);
    assert_eq!(&data[8..], b"QEMU    QEMU HARDDISK   2.5+");
    assert_eq!(disk.run(&[op::INQUIRY, 0, 0, 0, 5, 0]).unwrap(), data[..5]);
    let pages = disk.run(&[op::INQUIRY, 1, 0, 0, 255, 0]).unwrap();
    assert_eq!(pages, [0, 0, 0, 5, 0, 0x83, 0xb0, 0xb1, 0xb2]);
    for &page in &pages[4..] {
        let data = disk.run(&[op::INQUIRY, 1, page, 1, 0, 0]).unwrap();
        assert_eq!((data[1], usize::from(data[3])), (page, data.len() - 4));
    }
    assert_eq!(disk.run(&[op::INQUIRY, 1, 0x80, 0, 255, 0]), Err(Sense::INVALID_FIELD));
    assert_eq!(disk.run(&[op::INQUIRY, 0, 1, 0, 255, 0]), Err(Sense::INVALID_FIELD));
    let cdrom = cdrom();
    let data = cdrom.run(&[op::INQUIRY, 0, 0, 0, 36, 0]).unwrap();
    assert_eq!(data[..8], [5, 0x80, 0, 0x21, 31, 0, 0, 0]);
    assert_eq!(&data[8..], b"QEMU    QEMU DVD-ROM    2.5+");
}

#[test]
fn a_disk_reads_writes_and_compares() {
    let disk = disk();
    assert_eq!(disk.run(&[op::READ_CAPACITY_10]).unwrap(), [0, 0, 7, 255, 0, 0, 2, 0]);
    let read = disk.run(&[op::READ_10, 0, 0, 0, 0, 9, 0, 0, 3, 0]).unwrap();
    assert_eq!(read, (9 * 512..12 * 512).map(content).collect::<Vec<_>>());
    let new = vec![0x5a; 1024];
    disk.run_with(&[op::WRITE_16, 8, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 2], &new).unwrap();
    assert_eq!(disk.image()[9 * 512..11 * 512], new);
    let verify = [op::VERIFY_10, 2, 0, 0, 0, 9, 0, 0, 2, 0];
    disk.run_with(&verify, &new).unwrap();
    let mut other = new.clone();
    other[1023] = 0;
    assert_eq!(disk.run_with(&verify, &other), Err(Sense::MISCOMPARE));
    let verify_one = [op::VERIFY_10, 6, 0, 0, 0, 9, 0, 0, 2, 0];
    disk.run_with(&verify_one, &new[..512]).unwrap();
    let same = [op::WRITE_SAME_10, 0, 0, 0, 0, 20, 0, 1, 0, 0];
    disk.run_with(&same, &read[..512]).unwrap();
    for block in disk.image()[20 * 512..276 * 512].chunks(512) {
        assert!(block == &read[..512]);
    }
    disk.run(&[op::WRITE_SAME_16, 9, 0, 0, 0, 0, 0, 0, 0, 20, 0, 0, 0, 2]).unwrap();
    assert!(disk.image()[20 * 512..22 * 512].iter().all(|&byte| byte == 0));
    disk.run(&[op::SYNCHRONIZE_CACHE_10]).unwrap();
    let small = LunOptions { max_io_size: 1024, ..LunOptions::disk() };
    let small = bench(small, 1 << 20, &DriveOptions::default());
    assert_eq!(small.run(&[op::TEST_UNIT_READY]), Err(Sense::RESET));
    let verify = |blocks| [op::VERIFY_10, 6, 0, 0, 0, 9, 0, 0, blocks, 0];
    assert_eq!(small.run_with(&verify(2), &new[..512]), Err(Sense::MISCOMPARE));
    assert_eq!(small.run_with(&verify(3), &new[..512]), Err(Sense::INVALID_FIELD));
    // Past the end, and what asks for what we have not.
    for cdb in [
        &[op::READ_10, 0, 0, 0, 8, 0, 0, 0, 1, 0][..],
        &[op::READ_10, 0, 0, 0, 7, 255, 0, 0, 2, 0],
        &[op::READ_16, 0, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 2],
        &[op::WRITE_6, 0, 8, 0, 1, 0],
    ] {
        assert_eq!(disk.run(cdb), Err(Sense::OUT_OF_RANGE));
    }
    assert_eq!(disk.run(&[op::READ_10, 0x20]), Err(Sense::INVALID_FIELD));
    assert_eq!(disk.run(&same[..7]), Err(Sense::INVALID_FIELD));
    assert_eq!(disk.run(&[0x04]), Err(Sense::INVALID_OPCODE));
    assert_eq!(disk.run(&[0x5e]), Err(Sense::INVALID_OPCODE));
}

#[test]
fn unmap_takes_all_ranges_or_none() {
    let drive = DriveOptions { discard: block::DiscardMode::Unmap, ..DriveOptions::default() };
    let disk = bench(LunOptions::disk(), 1 << 20, &drive);
    disk.run(&[op::TEST_UNIT_READY]).unwrap_err();
    let range =
        |lba: u64, blocks: u32| [&lba.to_be_bytes()[..], &blocks.to_be_bytes(), &[0; 4]].concat();
    let list = |ranges: &[Vec<u8>]| {
        let ranges = ranges.concat();
        let len = ranges.len() as u16;
        [&(len + 6).to_be_bytes()[..], &len.to_be_bytes(), &[0; 4], &ranges].concat()
    };
    let unmap =
        |list: &[u8]| disk.run_with(&[op::UNMAP, 0, 0, 0, 0, 0, 0, 0, list.len() as u8, 0], list);
    let before = disk.image();
    assert_eq!(unmap(&list(&[range(0, 8), range(2047, 2)])), Err(Sense::OUT_OF_RANGE));
    assert_eq!(disk.image(), before);
    unmap(&list(&[range(8, 8), range(2040, 8)])).unwrap();
    let after = disk.image();
    assert!(after[8 * 512..16 * 512].iter().all(|&byte| byte == 0));
    assert!(after[2040 * 512..].iter().all(|&byte| byte == 0));
    assert_eq!(after[16 * 512..2040 * 512], before[16 * 512..2040 * 512]);
    assert_eq!(unmap(&[0, 0, 0, 17, 0, 0, 0, 0]), Err(Sense::PARAMETER_LENGTH));
    assert_eq!(unmap(&[0; 3]), Err(Sense::PARAMETER_LENGTH));
}

#[test]
fn mode_parameters_are_told_and_taken() {
    let disk = disk();
    let all = disk.run(&[op::MODE_SENSE_10, 0, 0x3f, 0, 0, 0, 0, 1, 0, 0]).unwrap();
    assert_eq!(usize::from(u16::from_be_bytes([all[0], all[1]])), all.len() - 2);
    assert_eq!(all[8..16], [0, 0, 8, 0, 0, 0, 2, 0]);
    let caching = [op::MODE_SENSE_6, 8, 8, 0, 255, 0];
    let page = disk.run(&caching).unwrap();
    assert_eq!(page[4..7], [8, 18, 4]);
    let mut off = page.clone();
    (off[0], off[6]) = (0, 0);
    let select = [op::MODE_SELECT_6, 0x10, 0, 0, off.len() as u8, 0];
    disk.run_with(&select, &off).unwrap();
    assert!(!disk.lun.drive().write_cache());
    assert_eq!(disk.run(&caching).unwrap()[6], 0);
    off[7] = 1;
    assert_eq!(disk.run_with(&select, &off), Err(Sense::INVALID_PARAMETER));
    assert_eq!(disk.run_with(&select, &off[..9]), Err(Sense::PARAMETER_LENGTH));
    assert_eq!(disk.run(&[op::MODE_SENSE_6, 0, 0xc8, 0, 255, 0]), Err(Sense::NO_SAVING));
    assert_eq!(disk.run(&[op::MODE_SENSE_6, 0, 0x1c, 0, 255, 0]), Err(Sense::INVALID_FIELD));
    disk.lun.reset();
    assert!(disk.lun.drive().write_cache());
}

#[test]
fn a_read_only_disk_says_so() {
    let read_only = DriveOptions { read_only: true, ..DriveOptions::default() };
    let disk = bench(LunOptions::disk(), 1 << 20, &read_only);
    disk.run(&[op::TEST_UNIT_READY]).unwrap_err();
    let write = [op::WRITE_10, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    assert_eq!(disk.run_with(&write, &[0; 512]), Err(Sense::WRITE_PROTECTED));
    assert_eq!(disk.run(&[op::MODE_SENSE_6, 8, 8, 0, 255, 0]).unwrap()[2], 0x80);
}

#[test]
fn packet_devices_keep_sense_until_it_is_asked_for() {
    let cdrom = cdrom();
    let request = [op::REQUEST_SENSE, 0, 0, 0, 18, 0];
    assert_eq!(cdrom.run(&[op::TEST_UNIT_READY]), Ok(vec![]));
    assert_eq!(cdrom.run(&[0xff]), Err(Sense::INVALID_OPCODE));
    let sense = cdrom.run(&request).unwrap();
    assert_eq!((sense[0], sense[2], sense[12]), (0x70, 5, 0x20));
    assert_eq!(cdrom.run(&request).unwrap()[2], 0);
}

#[test]
fn a_disc_has_one_track() {
    let cdrom = cdrom();
    assert_eq!(cdrom.run(&[op::READ_CAPACITY_10]).unwrap(), [0, 0, 0, 99, 0, 0, 8, 0]);
    let toc = cdrom.run(&[op::READ_TOC, 2, 0, 0, 0, 0, 0, 1, 0, 0]).unwrap();
    assert_eq!(toc, [0, 18, 1, 1, 0, 0x14, 1, 0, 0, 0, 2, 0, 0, 0x16, 0xaa, 0, 0, 0, 3, 25]);
    let sessions = cdrom.run(&[op::READ_TOC, 0, 1, 0, 0, 0, 0, 0, 12, 0]).unwrap();
    assert_eq!(sessions, [0, 10, 1, 1, 0, 0x14, 1, 0, 0, 0, 0, 0]);
    let full = cdrom.run(&[op::READ_TOC, 2, 2, 0, 0, 0, 0, 1, 0, 0]).unwrap();
    assert_eq!(usize::from(full[1]) + 2, full.len());
    let data = cdrom.run(&[op::READ_12, 0, 0, 0, 0, 98, 0, 0, 0, 2, 0, 0]).unwrap();
    assert_eq!(data, (98 * 2048..100 * 2048).map(content).collect::<Vec<_>>());
    let raw = cdrom.run(&[op::READ_CD, 0, 0, 0, 0, 10, 0, 0, 20, 0xf8, 0, 0]).unwrap();
    assert_eq!(raw.len(), 20 * 2352);
    for (sector, raw) in (10..30).zip(raw.chunks(2352)) {
        assert!(
            raw[16..2064] == (sector * 2048..(sector + 1) * 2048).map(content).collect::<Vec<_>>()
        );
    }
    let msf = cdrom.run(&[op::READ_CD_MSF, 0, 0, 0, 2, 10, 0, 2, 30, 0xf8, 0, 0]).unwrap();
    assert!(msf == raw);
    let audio = [op::READ_CD, 4, 0, 0, 0, 10, 0, 0, 1, 0xf8, 0, 0];
    assert_eq!(cdrom.run(&audio), Err(Sense::ILLEGAL_TRACK_MODE));
    assert_eq!(
        cdrom.run(&[op::READ_12, 0, 0, 0, 0, 100, 0, 0, 0, 1, 0, 0]),
        Err(Sense::OUT_OF_RANGE)
    );
    let configuration = cdrom.run(&[op::GET_CONFIGURATION, 0, 0, 0, 0, 0, 0, 1, 0, 0]).unwrap();
    assert_eq!(usize::from(configuration[3]) + 4, configuration.len());
    assert_eq!(configuration[6..8], [0, 8]);
    assert_eq!(
        cdrom.run(&[op::READ_DVD_STRUCTURE, 0, 0, 0, 0, 0, 0, 0, 8, 0]),
        Err(Sense::INCOMPATIBLE_MEDIUM)
    );
    for (cdb, len) in [
        (&[op::READ_DISC_INFORMATION, 0, 0, 0, 0, 0, 0, 1, 0, 0][..], 34),
        (&[op::READ_TRACK_INFORMATION, 1, 0, 0, 0, 1, 0, 1, 0, 0], 36),
        (&[op::MECHANISM_STATUS, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0], 8),
        (&[op::READ_SUB_CHANNEL, 2, 0x40, 1, 0, 0, 0, 0, 255, 0], 16),
        (&[op::MODE_SENSE_10, 0, 0x2a, 0, 0, 0, 0, 1, 0, 0], 30),
    ] {
        assert_eq!(cdrom.run(cdb).unwrap().len(), len, "{cdb:x?}");
    }
}

#[test]
fn the_tray_opens_unless_it_is_locked() {
    let cdrom = cdrom();
    let eject = [op::START_STOP_UNIT, 0, 0, 0, 2, 0];
    let load = [op::START_STOP_UNIT, 0, 0, 0, 3, 0];
    let event = [op::GET_EVENT_STATUS, 1, 0, 0, 0x10, 0, 0, 0, 8, 0];
    cdrom.run(&[op::PREVENT_ALLOW, 0, 0, 0, 1, 0]).unwrap();
    assert_eq!(cdrom.run(&eject), Err(Sense::REMOVAL_PREVENTED));
    cdrom.run(&[op::PREVENT_ALLOW, 0, 0, 0, 0, 0]).unwrap();
    assert_eq!(cdrom.run(&event).unwrap(), [0, 6, 4, 16, 0, 2, 0, 0]);
    cdrom.run(&eject).unwrap();
    assert_eq!(cdrom.run(&event).unwrap(), [0, 6, 4, 16, 3, 1, 0, 0]);
    assert_eq!(cdrom.run(&[op::TEST_UNIT_READY]), Err(Sense::TRAY_OPEN));
    assert_eq!(cdrom.run(&[op::READ_10, 0, 0, 0, 0, 0, 0, 0, 1, 0]), Err(Sense::TRAY_OPEN));
    let saved = cdrom.lun.save();
    cdrom.run(&load).unwrap();
    assert_eq!(cdrom.run(&event).unwrap(), [0, 6, 4, 16, 2, 2, 0, 0]);
    assert_eq!(cdrom.run(&[op::TEST_UNIT_READY]), Ok(vec![]));
    cdrom.lun.check(&saved).unwrap();
    cdrom.lun.restore(&saved);
    assert_eq!(cdrom.lun.save(), saved);
    assert_eq!(cdrom.run(&[op::TEST_UNIT_READY]), Err(Sense::TRAY_OPEN));
}

#[test]
fn a_change_of_medium_is_told_once() {
    let cdrom = cdrom();
    let event = [op::GET_EVENT_STATUS, 1, 0, 0, 0x10, 0, 0, 0, 8, 0];
    let drive = cdrom.lun.drive();
    cdrom.run(&[op::PREVENT_ALLOW, 0, 0, 0, 1, 0]).unwrap();
    assert!(drive.eject(false).is_err());
    assert_eq!(cdrom.run(&event).unwrap()[4], 1, "the guest is asked for it");
    drive.eject(true).unwrap();
    assert_eq!(cdrom.run(&[op::TEST_UNIT_READY]), Err(Sense::TRAY_OPEN));
    let other = cdrom.path.with_extension("other");
    std::fs::write(&other, [7; 4096]).unwrap();
    let medium = drive.open_medium(&other, None, None).unwrap();
    drive.change_medium(medium, false).unwrap();
    assert_eq!(cdrom.run(&event).unwrap()[4..6], [2, 2]);
    assert_eq!(cdrom.run(&[op::READ_CAPACITY_10]), Err(Sense::MEDIUM_CHANGED));
    assert_eq!(cdrom.run(&[op::READ_CAPACITY_10]).unwrap()[3], 1);
    drive.eject(false).unwrap();
    drive.close_tray().unwrap();
    cdrom.run(&[op::TEST_UNIT_READY]).unwrap_err();
    assert_eq!(cdrom.run(&[op::TEST_UNIT_READY]), Err(Sense::NO_MEDIUM));
}

#[test]
fn units_have_addresses_and_targets_answer_for_absent_ones() {
    let bus = ScsiBus::new(0, 255, 16383);
    let disk = disk();
    let first = bus.find(0, None, None).unwrap();
    bus.attach(first, "a", disk.lun.clone());
    assert_eq!(bus.find(0, None, None).unwrap().target, 1);
    assert_eq!(bus.find(0, Some(0), None).unwrap().lun, 1);
    assert_eq!(bus.find(0, Some(0), Some(0)), Err(AddressError::Used("a".into())));
    assert_eq!(bus.find(1, None, None), Err(AddressError::Channel(1)));
    assert_eq!(bus.find(0, Some(256), None), Err(AddressError::Target(256)));
    assert_eq!(bus.find(0, None, Some(16384)), Err(AddressError::Lun(16384)));
    let far = bus.find(0, Some(0), Some(300)).unwrap();
    bus.attach(far, "b", disk.lun.clone());
    let report = [op::REPORT_LUNS, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
    let Ok(Task::Reply(luns)) = bus.start(first, &disk.lun, &report) else { panic!("no reply") };
    assert_eq!(luns[..8], [0, 0, 0, 16, 0, 0, 0, 0]);
    assert_eq!(luns[16..18], [0x41, 0x2c]);
    let absent = Address { lun: 5, ..first };
    assert!(matches!(bus.route(absent), Route::Target));
    assert!(matches!(bus.route(Address { target: 9, ..first }), Route::Nothing));
    let inquiry = bus.start_absent(absent, &[op::INQUIRY, 0, 0, 0, 36, 0]).unwrap();
    assert!(matches!(inquiry, Task::Reply(data) if data[0] == 0x7f && data.len() == 36));
    assert_eq!(bus.start_absent(absent, &[op::READ_10]), Err(Sense::NO_SUCH_UNIT));
}

/// Command blocks that make sense more often than not.
fn hostile_cdb() -> impl Strategy<Value = Vec<u8>> {
    let opcode = prop_oneof![
        3 => prop::sample::select(vec![
            0x00, 0x01, 0x03, 0x08, 0x0a, 0x12, 0x15, 0x1a, 0x1b, 0x1e, 0x25, 0x28, 0x2a, 0x2b, 0x2e,
            0x2f, 0x35, 0x41, 0x42, 0x43, 0x46, 0x4a, 0x51, 0x52, 0x55, 0x5a, 0x88, 0x8a, 0x8f, 0x93,
            0x9e, 0xa0, 0xa8, 0xaa, 0xad, 0xae, 0xaf, 0xb9, 0xbb, 0xbd, 0xbe_u8,
        ]),
        1 => any::<u8>(),
    ];
    let byte = prop_oneof![4 => Just(0_u8), 1 => Just(0xff), 1 => Just(0x10), 2 => any::<u8>()];
    (opcode, prop::collection::vec(byte, 0..31))
        .prop_map(|(opcode, rest)| [vec![opcode], rest].concat())
}

proptest! {
    /// Whatever comes, units neither panic nor move more than there is memory for, and work after it.
    #[test]
    fn hostile_commands_do_no_harm(
        cdbs in prop::collection::vec((hostile_cdb(), prop::collection::vec(any::<u8>(), 0..600)), 1..20),
        cd in any::<bool>(),
    ) {
        let bench = if cd { cdrom() } else { disk() };
        for (cdb, out) in cdbs {
            if let Ok(data) = bench.run_with(&cdb, &out) {
                prop_assert!(data.len() <= 3 + 509 + 0xe000);
            }
        }
        let saved = bench.lun.save();
        prop_assert!(bench.lun.check(&saved).is_ok());
        bench.lun.restore(&saved);
        bench.lun.reset();
        while bench.run(&[op::TEST_UNIT_READY]).is_err() {}
        let block = bench.lun.block_size() as usize;
        prop_assert_eq!(bench.run(&[op::READ_10, 0, 0, 0, 0, 50, 0, 0, 1, 0]).unwrap().len(), block);
    }
}
