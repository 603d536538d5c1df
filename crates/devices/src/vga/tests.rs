//! Tests of the whole adapter through its ports and its window.

use std::sync::Arc;

use ::bus::{AddressSpace, Clock};
use display::{Console, Size};
use memory::GuestMemory;
use proptest::prelude::*;

use super::vram::Vram;
use super::{Vga, edid, planes};

/// An adapter with 1 MiB of memory on a bench.
struct Bench {
    vga: Arc<Vga>,
    ports: AddressSpace,
    mmio: AddressSpace,
    memory: Arc<GuestMemory>,
    clock: Clock,
}

impl Bench {
    fn new() -> Self {
        let memory = Arc::new(GuestMemory::new(&[(0, 1 << 20)]).unwrap());
        let clock = Clock::manual();
        let vram = Vram::new(&memory, "vram", 1 << 20).unwrap();
        let edid = edid::monitor(1280, 800);
        let vga = Vga::new(memory.clone(), vram, clock.clone(), Some(edid));
        let (ports, mmio) = (AddressSpace::new(), AddressSpace::new());
        vga.attach(&ports, &mmio).unwrap();
        Self { vga, ports, mmio, memory, clock }
    }

    /// Writes register `index` behind the index port `port`.
    fn set(&self, port: u64, index: u64, value: u64) {
        assert!(self.ports.write(port, 2, value << 8 | index));
    }

    fn vbe(&self, index: u64, value: u64) {
        self.ports.write(0x1ce, 2, index);
        self.ports.write(0x1cf, 2, value);
    }

    fn screen_on(&self) {
        self.ports.write(0x3c2, 1, 0x63);
        self.ports.read(0x3da, 1);
        self.ports.write(0x3c0, 1, 0x20);
    }
}

#[test]
fn the_window_is_mapped_while_memory_is_chained_and_follows_the_bank() {
    let bench = Bench::new();
    let host = || bench.memory.page(planes::WINDOW, false).host.map(|page| page.ptr);
    let below = host();
    bench.set(0x3c4, 4, 0x0e);
    bench.set(0x3c4, 2, 0x0f);
    bench.set(0x3ce, 6, 5);
    assert_eq!(bench.vga.registers().direct_window(), Some((0, 0x1_0000, 0)));
    let first = host();
    assert_ne!(first, below);
    bench.vbe(1, 64);
    bench.vbe(2, 64);
    bench.vbe(3, 32);
    bench.vbe(4, 0x41);
    bench.vbe(5, 3);
    assert_eq!(bench.vga.registers().direct_window(), Some((0, 0x1_0000, 0x3_0000)));
    assert!(host() != first && host() != below);
    bench.vbe(4, 0);
    bench.set(0x3c4, 2, 0x07);
    assert_eq!(bench.vga.registers().direct_window(), None);
    assert_eq!(host(), below);
}

#[test]
fn vbe_registers_become_what_the_memory_can_show() {
    let bench = Bench::new();
    let read = |index| {
        bench.ports.write(0x1ce, 2, index);
        bench.ports.read(0x1cf, 2).unwrap()
    };
    assert_eq!(read(0), 0xb0c5);
    bench.vbe(0, 0xb0c2);
    bench.vbe(0, 0x1234);
    assert_eq!(read(0), 0xb0c2);
    assert_eq!(read(10), 16);
    for (index, value) in [(1, 1027), (2, 9999), (3, 33), (4, 0x41)] {
        bench.vbe(index, value);
    }
    assert_eq!([1, 2, 3, 6, 7].map(read), [1024, 1024, 8, 1024, 1024]);
    bench.vbe(4, 3);
    assert_eq!([1, 2, 3].map(read), [16000, 12000, 32]);
    bench.vbe(3, 32);
    bench.vbe(9, 1000);
    bench.vbe(4, 1);
    assert_eq!([2, 9].map(read), [256, 0]);
}

#[test]
fn only_what_was_written_is_drawn_again() {
    let bench = Bench::new();
    bench.screen_on();
    for (index, value) in [(1, 64), (2, 64), (3, 32), (4, 0x41)] {
        bench.vbe(index, value);
    }
    let console = Console::new(0, "vga", 0, bench.vga.clone());
    let mut view = console.view();
    view.refresh();
    assert_eq!(view.surface().size(), Size::new(64, 64));
    // What was written is told of twice.
    view.refresh();
    view.refresh();
    assert!(view.refresh().rects.is_empty());
    bench.vga.vram.block().write(64 * 4 * 40 + 4, &[1, 2, 3, 0]).unwrap();
    let rects = view.refresh().rects;
    assert!(rects.iter().all(|rect| rect.y >= 32 && rect.height <= 16), "{rects:?}");
    assert_eq!(view.surface().row(40)[1], 0x03_0201);
}

#[test]
fn the_beam_goes_by_guest_time() {
    let bench = Bench::new();
    bench.screen_on();
    // 640 by 480 at 60 Hz.
    let crtc =
        [(0, 0x5f), (1, 0x4f), (6, 0x0b), (7, 0x3e), (0x10, 0xea), (0x11, 0x0c), (0x12, 0xdf)];
    for (index, value) in crtc {
        bench.set(0x3d4, index, value);
    }
    bench.set(0x3c4, 1, 1);
    let (mut retrace, mut blank) = (0, 0);
    const SAMPLES: u64 = 10_000;
    for sample in 0..SAMPLES {
        bench.clock.set(sample * 1_000_000_000 / 60 / SAMPLES);
        let status = bench.ports.read(0x3da, 1).unwrap();
        retrace += status >> 3 & 1;
        blank += status & 1;
        assert!(status & 8 == 0 || status & 1 != 0, "nothing is shown in the retrace");
    }
    // 2 of 525 lines; all but 640 of 800 dots in 480 of 525 lines.
    assert!((20..60).contains(&retrace), "{retrace}");
    assert!((2500..2900).contains(&blank), "{blank}");
}

proptest! {
    /// Whatever the registers hold, drawing and the window work.
    #[test]
    fn any_registers_can_be_drawn(
        writes in prop::collection::vec((0..6_u64, any::<u8>(), any::<u8>(), any::<u16>()), 1..80),
    ) {
        let bench = Bench::new();
        bench.screen_on();
        for (what, index, value, wide) in writes {
            match what {
                0 => bench.set(0x3c4, (index & 7).into(), value.into()),
                1 => bench.set(0x3ce, (index & 15).into(), value.into()),
                2 => bench.set(0x3d4, (index & 31).into(), value.into()),
                3 => bench.vbe((index % 11).into(), if index < 128 { wide & 0xfff } else { wide }.into()),
                4 => {
                    bench.ports.write(0x3c0, 1, (index & 0x1f | 0x20).into());
                    bench.ports.write(0x3c0, 1, value.into());
                    bench.ports.read(0x3da, 1);
                    bench.ports.write(0x3c0, 1, 0x20);
                    bench.ports.read(0x3da, 1);
                }
                _ => {
                    let address = planes::WINDOW + (u64::from(index) << 16 | u64::from(wide)) % 0x2_0000;
                    bench.mmio.write(address, 8, u64::MAX / u64::from(value.max(1)));
                    bench.mmio.read(address, 8);
                }
            }
        }
        let console = Console::new(0, "vga", 0, bench.vga.clone());
        let mut view = console.view();
        view.refresh();
        let first = view.surface().clone();
        let size = first.size();
        prop_assert_eq!(first.pixels().len() as u32, size.width * size.height);
        if let Some(text) = console.text() {
            prop_assert_eq!(text.cells.len() as u32, text.columns * text.rows);
        }
    }
}
