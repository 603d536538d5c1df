//! The commands as firmware gives them.

use super::*;
use block::DriveOptions;
use memory::WritePath;

const START: u64 = 0xffff_e000;

struct Bench {
    _file: tempfile::NamedTempFile,
    drive: Arc<Drive>,
    memory: Arc<GuestMemory>,
    mmio: AddressSpace,
    flash: Arc<Pflash>,
}

fn bench() -> Bench {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), [0x5a; 0x2000]).unwrap();
    let drive = Arc::new(Drive::open("flash", file.path(), &DriveOptions::default()).unwrap());
    let memory = Arc::new(GuestMemory::new(&[(0, 0x1000)]).unwrap());
    let flash = Pflash::new("system.flash0", drive.clone(), &memory, START).unwrap();
    let mmio = AddressSpace::new();
    flash.attach(&mmio).unwrap();
    Bench { _file: file, drive, memory, mmio, flash }
}

impl Bench {
    fn put(&self, offset: u64, bytes: &[u8]) {
        for byte in bytes {
            self.mmio.write(START + offset, 1, u64::from(*byte));
        }
    }

    fn read(&self, offset: u64) -> u64 {
        self.mmio.read(START + offset, 1).unwrap()
    }

    fn on_drive(&self, offset: u64) -> u8 {
        let mut block = [0; 512];
        self.drive.read_bytes(offset & !511, &mut block).unwrap();
        block[offset as usize & 511]
    }

    fn is_shown(&self) -> bool {
        let page = self.memory.page(START, false);
        assert_eq!(page.writes, WritePath::Bus);
        page.host.is_some()
    }
}

#[test]
fn firmware_finds_flash_and_not_ram_or_rom() {
    let bench = bench();
    assert!(bench.is_shown());
    bench.put(0, &[0x50]);
    assert_eq!(bench.read(0), 0x5a);
    bench.put(0, &[0x70]);
    assert!(!bench.is_shown());
    assert_eq!(bench.read(0), 0);
    bench.put(0, &[0xff]);
    assert!(bench.is_shown());
    bench.put(0, &[0x90]);
    assert_eq!((bench.read(0), bench.read(1)), (0x89, 0x18));
    bench.put(0, &[0x98]);
    assert_eq!([0x10, 0x11, 0x12].map(|at| bench.read(at) as u8), *b"QRY");
    assert_eq!((bench.read(0x27), bench.read(0x2d)), (13, 1));
    bench.flash.reset();
    assert!(bench.is_shown());
}

#[test]
fn programming_clears_bits_and_erasing_sets_them() {
    let bench = bench();
    bench.put(0x1003, &[0x10, 0x0f]);
    assert_eq!(bench.read(0x1003), 0x80);
    bench.put(0x1003, &[0xff]);
    assert_eq!((bench.read(0x1003), bench.on_drive(0x1003)), (0x0a, 0x0a));
    bench.put(0x1800, &[0x20, 0xd0, 0xff]);
    assert_eq!((bench.read(0x1003), bench.on_drive(0x1fff)), (0xff, 0xff));
    assert_eq!(bench.read(0xfff), 0x5a);
    bench.put(0x1800, &[0x20, 0x00]);
    assert_eq!(bench.read(0), 0xa0, "not confirmed");
}

#[test]
fn a_buffered_write_is_programmed_when_it_is_confirmed() {
    let bench = bench();
    bench.put(0x1000, &[0x20, 0xd0, 0xe8, 2]);
    for (offset, byte) in [(0x1000, 1), (0x1001, 2), (0x1200, 3)] {
        bench.put(offset, &[byte]);
    }
    let saved = bench.flash.save();
    bench.put(0x1000, &[0xd0, 0xff]);
    assert_eq!([0x1000, 0x1001, 0x1200].map(|at| bench.on_drive(at)), [1, 2, 3]);
    bench.flash.restore(&saved).unwrap();
    assert_eq!(bench.on_drive(0x1000), 0xff);
    bench.put(0x1000, &[0xd0]);
    assert_eq!(bench.on_drive(0x1200), 3);
}
