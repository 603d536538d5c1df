//! Files and drives as devices use them: data, errors, locks, what opens and what does not.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use memory::GuestMemory;
use memory::vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::{
    BlockBackend, CacheMode, DiscardMode, Drive, DriveOptions, FileNode, GuestSlice, ImageFormat,
    IoStatus,
};

struct Fixture {
    dir: tempfile::TempDir,
    memory: GuestMemory,
}

impl Fixture {
    fn new() -> Self {
        let memory = GuestMemory::new(&[(0, 1 << 20)]).unwrap();
        Self { dir: tempfile::tempdir().unwrap(), memory }
    }

    fn image(&self, bytes: &[u8]) -> PathBuf {
        let path = self.dir.path().join("x.img");
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn slice(&self, addr: u64, len: usize) -> GuestSlice<'_> {
        GuestMemoryBackend::get_slice(self.memory.view(), GuestAddress(addr), len).unwrap()
    }

    fn bytes(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(addr, &mut bytes).unwrap();
        bytes
    }
}

fn open(path: &Path) -> FileNode {
    FileNode::open(path, false, CacheMode::WRITEBACK, DiscardMode::Unmap).unwrap()
}

#[test]
fn moves_bytes_between_the_file_and_scattered_memory() {
    let f = Fixture::new();
    let content: Vec<u8> = (0..8192_u32).map(|i| ((i * 7) >> 3) as u8).collect();
    let path = f.image(&content);
    let node = open(&path);
    let (log, page) = f.memory.page_log(0x2000).unwrap();
    log.clear_dirty(page);
    let bufs = [f.slice(0x1000, 100), f.slice(0x2000, 3), f.slice(0x5000, 409)];
    node.read_at(512, &bufs).unwrap();
    let got = [f.bytes(0x1000, 100), f.bytes(0x2000, 3), f.bytes(0x5000, 409)].concat();
    assert_eq!(got, content[512..1024]);
    assert!(log.is_dirty(page));
    node.write_at(4096, &bufs).unwrap();
    assert_eq!(std::fs::read(&path).unwrap()[4096..4608], content[512..1024]);
    let stats = node.stats().snapshot();
    assert_eq!((stats.rd_bytes, stats.wr_bytes, stats.wr_highest_offset), (512, 512, 4608));
}

#[test]
fn more_pieces_than_one_call_takes_are_moved_too() {
    let f = Fixture::new();
    let content: Vec<u8> = (0..3000 * 8_u32).map(|i| (i / 8) as u8).collect();
    let node = open(&f.image(&content));
    let bufs: Vec<_> = (0..3000).map(|i| f.slice(i * 16, 8)).collect();
    node.read_at(0, &bufs).unwrap();
    for i in 0..3000 {
        assert_eq!(f.bytes(i * 16, 8), content[i as usize * 8..][..8]);
    }
    let stats = node.stats().snapshot();
    assert_eq!((stats.rd_operations, stats.rd_bytes), (1, 24000));
}

#[test]
fn the_last_sector_may_be_cut_short_and_nothing_lies_behind_it() {
    let f = Fixture::new();
    let node = open(&f.image(&[7; 700]));
    f.memory.write(0, &[9; 1024]).unwrap();
    node.read_at(0, &[f.slice(0, 1024)]).unwrap();
    assert_eq!(f.bytes(0, 1024), [vec![7; 700], vec![0; 324]].concat());
    assert!(node.read_at(1024, &[f.slice(0, 1)]).is_err());
    assert!(node.write_at(512, &[f.slice(0, 513)]).is_err());
    assert!(node.read_at(u64::MAX, &[f.slice(0, 2)]).is_err());
    assert!(node.write_zeroes(0, u64::MAX, false).is_err());
}

#[test]
fn zeroes_and_discards_keep_the_rest_and_free_space() {
    let f = Fixture::new();
    let path = f.image(&[5; 1 << 20]);
    let node = open(&path);
    node.write_zeroes(1000, 3000, false).unwrap();
    let content = std::fs::read(&path).unwrap();
    assert!(content[..1000].iter().chain(&content[4000..]).all(|&b| b == 5));
    assert!(content[1000..4000].iter().all(|&b| b == 0));
    let before = node.allocated_size();
    node.discard(64 << 10, 512 << 10).unwrap();
    assert!(node.allocated_size() < before, "the file system of the tests has holes");
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 20);
    let deaf = FileNode::open(&path, false, CacheMode::WRITEBACK, DiscardMode::Ignore).unwrap();
    deaf.discard(0, 512).unwrap();
    assert_eq!(std::fs::read(&path).unwrap()[0], 5);
}

#[test]
fn unaligned_requests_work_with_direct_io() {
    let f = Fixture::new();
    let path = f.image(&[0; 1 << 16]);
    let cache = CacheMode::NONE;
    // Not every file system has direct I/O; one that hasn't says so.
    let node = match FileNode::open(&path, false, cache, DiscardMode::Ignore) {
        Ok(node) => node,
        Err(error) => {
            assert!(error.to_string().contains("does not support O_DIRECT"), "{error}");
            return;
        }
    };
    f.memory.write(0x1000, &[3; 4096]).unwrap();
    node.write_at(4096, &[f.slice(0x1000, 4096)]).unwrap();
    node.write_at(100, &[f.slice(0x1001, 10)]).unwrap();
    node.read_at(0, &[f.slice(0x8000, 8192)]).unwrap();
    let got = f.bytes(0x8000, 8192);
    assert_eq!(got[100..110], [3; 10]);
    assert_eq!(got[4096..], [3; 4096]);
}

#[test]
fn what_cannot_be_opened_is_named_with_the_reason() {
    let f = Fixture::new();
    let options = DriveOptions::default();
    let error = |path: &Path| Drive::open("d", path, &options).err().unwrap().to_string();
    assert_eq!(
        error(Path::new("/nonexistent/x.img")),
        "Could not open '/nonexistent/x.img': No such file or directory"
    );
    let dir = f.dir.path();
    let message = format!("'file' driver requires '{}' to be a regular file", dir.display());
    assert_eq!(error(dir), message);
    assert!(error(Path::new("/dev/null")).contains("regular file"));
    let qcow2 = f.image(b"QFI\xfb\0\0\0\x03");
    assert_eq!(error(&qcow2), "Unknown driver 'qcow2'");
    let raw = DriveOptions { format: Some(ImageFormat::Raw), ..options.clone() };
    assert!(Drive::open("d", &qcow2, &raw).is_ok());
}

#[test]
fn an_image_has_one_writer_unless_it_is_shared() {
    let f = Fixture::new();
    let path = f.image(&[0; 512]);
    let writer = DriveOptions::default();
    let reader = DriveOptions { read_only: true, ..writer.clone() };
    let open = |options: &DriveOptions| Drive::open("d", &path, options).unwrap();
    let text = |result: Result<(), crate::BlockError>| result.unwrap_err().to_string();

    let first = open(&writer);
    first.claim("a", false).unwrap();
    let second = open(&writer);
    let remedy = format!("\nIs another process using the image [{}]?", path.display());
    assert_eq!(text(second.claim("b", false)), format!("Failed to get \"write\" lock{remedy}"));
    let message = format!("Failed to get shared \"write\" lock{remedy}");
    assert_eq!(text(open(&reader).claim("c", false)), message);
    assert_eq!(text(first.claim("d", false)), "Drive 'd' is already in use by another device");
    first.release();
    second.claim("b", true).unwrap();
    open(&writer).claim("e", true).unwrap();
    drop(second);
    let readers = [open(&reader), open(&reader)];
    for reader in &readers {
        reader.claim("f", false).unwrap();
    }
    assert!(open(&writer).claim("g", true).is_err());
    drop(readers);
    open(&writer).claim("g", false).unwrap();
}

#[test]
fn queries_show_what_is_there() {
    let f = Fixture::new();
    let path = f.image(&[0; 4096]);
    let options = DriveOptions { read_only: true, cache: CacheMode::UNSAFE, ..Default::default() };
    let drive = Drive::open("virtio0", &path, &options).unwrap();
    drive.claim("/machine/peripheral/disk", false).unwrap();
    let info = drive.info();
    assert_eq!(info.device, "virtio0");
    assert_eq!(info.qdev.as_deref(), Some("/machine/peripheral/disk"));
    assert_eq!(info.io_status, Some(IoStatus::Ok));
    assert!(!info.removable && !info.locked && info.tray_open.is_none());
    let inserted = info.inserted.unwrap();
    assert_eq!(inserted.file, path.display().to_string());
    assert_eq!((inserted.driver, inserted.read_only), ("raw", true));
    assert_eq!(inserted.virtual_size, 4096);
    assert!(inserted.cache.no_flush && inserted.cache.writeback);
    assert!(drive.write(0, &[f.slice(0, 512)]).is_err());
    assert_eq!(drive.stats().failed_wr_operations, 1);

    let empty = Drive::empty("cd0", &options);
    assert!(empty.info().inserted.is_none() && empty.parent_stats().is_none());
    let error = empty.read(0, &[f.slice(0, 512)]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(123));
}

#[test]
fn write_through_makes_each_write_last() {
    let f = Fixture::new();
    let path = f.image(&[0; 4096]);
    let cache = CacheMode::WRITETHROUGH;
    let drive = Drive::open("d", &path, &DriveOptions { cache, ..Default::default() }).unwrap();
    f.memory.write(0, &[6; 512]).unwrap();
    drive.write(512, &[f.slice(0, 512)]).unwrap();
    drive.write_zeroes(1024, 512, true).unwrap();
    let parent = drive.parent_stats().unwrap();
    assert_eq!((parent.wr_operations, parent.flush_operations), (2, 2));
    assert_eq!(drive.stats().flush_operations, 0);
    let mut sector = [0; 512];
    File::open(&path).unwrap().read_exact_at(&mut sector, 512).unwrap();
    assert_eq!(sector, [6; 512]);
}
