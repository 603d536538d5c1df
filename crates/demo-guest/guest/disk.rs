//! A virtio block device over the legacy PCI interface (Virtual I/O Device 1.2, sections 2.7.2, 4.1.4.10
//! and 5.2), polled.

use core::sync::atomic::{Ordering, fence};

use crate::{port, timer};

const VIRTIO_VENDOR: u32 = 0x1af4;
const BLOCK_DEVICE: u32 = 0x1001;
/// Offsets in the legacy I/O BAR.
const GUEST_FEATURES: u16 = 4;
const QUEUE_ADDRESS: u16 = 8;
const QUEUE_SIZE: u16 = 12;
const QUEUE_SELECT: u16 = 14;
const QUEUE_NOTIFY: u16 = 16;
const STATUS: u16 = 18;
const CAPACITY: u16 = 20;

const DESC_NEXT: u16 = 1;
const DESC_WRITE: u16 = 2;
const REQUEST_READ: u32 = 0;
const REQUEST_WRITE: u32 = 1;
const REQUEST_FLUSH: u32 = 4;

const MAX_QUEUE: usize = 1024;
const CHUNK: usize = 4096;
const CHUNKS: usize = 16;

#[derive(Clone, Copy)]
#[repr(C)]
struct Descriptor {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

#[repr(C)]
struct Header {
    kind: u32,
    reserved: u32,
    sector: u64,
}

#[repr(C, align(4096))]
struct Ring([u8; 32 * 1024]);

static mut RING: Ring = Ring([0; 32 * 1024]);
static mut DATA: [u8; CHUNK] = [0; CHUNK];

/// What was done.
pub struct Report {
    pub bytes: usize,
}

struct Disk {
    io: u16,
    size: usize,
    used_seen: u16,
}

/// Writes a pattern over the first sectors, reads it back and compares.
pub fn exercise() -> Result<Report, &'static str> {
    let io = find().ok_or("none found")?;
    let mut disk = Disk::open(io)?;
    let sectors = port::read32(io + CAPACITY);
    if (sectors as usize) * 512 < CHUNK * CHUNKS {
        return Err("too small to try");
    }
    let pattern = |chunk: usize, i: usize| (chunk * 31 + i * 7) as u8;
    for chunk in 0..CHUNKS {
        // SAFETY: the device touches the buffer only during `request`.
        let data = unsafe { &mut *(&raw mut DATA) };
        data.iter_mut().enumerate().for_each(|(i, byte)| *byte = pattern(chunk, i));
        disk.request(REQUEST_WRITE, (chunk * CHUNK / 512) as u64)?;
    }
    disk.request(REQUEST_FLUSH, 0)?;
    for chunk in 0..CHUNKS {
        // SAFETY: as above.
        unsafe { (*(&raw mut DATA)).fill(0) };
        disk.request(REQUEST_READ, (chunk * CHUNK / 512) as u64)?;
        // SAFETY: as above.
        let data = unsafe { &*(&raw const DATA) };
        if !data.iter().enumerate().all(|(i, &byte)| byte == pattern(chunk, i)) {
            return Err("read back something else than was written");
        }
    }
    Ok(Report { bytes: CHUNK * CHUNKS })
}

/// The I/O base of the first virtio disk on bus 0.
fn find() -> Option<u16> {
    for slot in 0..32u32 {
        let config = |offset: u32| {
            port::write32(0xcf8, 0x8000_0000 | slot << 11 | offset);
            port::read32(0xcfc)
        };
        if config(0) == BLOCK_DEVICE << 16 | VIRTIO_VENDOR {
            let bar = config(0x10);
            // I/O decoding and bus mastering on.
            let command = config(4) | 5;
            port::write32(0xcf8, 0x8000_0000 | slot << 11 | 4);
            port::write16(0xcfc, command as u16);
            return Some((bar & !3) as u16);
        }
    }
    None
}

impl Disk {
    fn open(io: u16) -> Result<Self, &'static str> {
        port::write8(io + STATUS, 0);
        port::write8(io + STATUS, 1);
        port::write8(io + STATUS, 3);
        port::write32(io + GUEST_FEATURES, 1 << 9);
        port::write16(io + QUEUE_SELECT, 0);
        let size = usize::from(port::read16(io + QUEUE_SIZE));
        if size < 4 || size > MAX_QUEUE {
            return Err("a queue of no use");
        }
        port::write32(io + QUEUE_ADDRESS, (&raw const RING as usize >> 12) as u32);
        port::write8(io + STATUS, 7);
        Ok(Self { io, size, used_seen: 0 })
    }

    /// One request for the whole data buffer; waits for its end.
    fn request(&mut self, kind: u32, sector: u64) -> Result<(), &'static str> {
        let header = Header { kind, reserved: 0, sector };
        let status = 0xffu8;
        let data = &raw const DATA as u64;
        let ring = &raw mut RING as *mut u8;
        let data_flags = DESC_NEXT | if kind == REQUEST_READ { DESC_WRITE } else { 0 };
        let chain = [
            Descriptor { addr: &raw const header as u64, len: 16, flags: DESC_NEXT, next: 1 },
            Descriptor { addr: data, len: CHUNK as u32, flags: data_flags, next: 2 },
            Descriptor { addr: &raw const status as u64, len: 1, flags: DESC_WRITE, next: 0 },
        ];
        // SAFETY: the ring is ours alone and large enough for `size` descriptors and both index
        // rings; the device reads it after the fence and the notification only.
        unsafe {
            let descriptors = ring as *mut Descriptor;
            descriptors.write_volatile(chain[0]);
            descriptors.add(1).write_volatile(chain[1]);
            descriptors.add(2).write_volatile(chain[2]);
            if kind == REQUEST_FLUSH {
                descriptors.write_volatile(Descriptor { next: 2, ..chain[0] });
            }
            let available = ring.add(self.size * 16) as *mut u16;
            let index = available.add(1).read_volatile();
            available.add(2 + usize::from(index) % self.size).write_volatile(0);
            fence(Ordering::SeqCst);
            available.add(1).write_volatile(index.wrapping_add(1));
            fence(Ordering::SeqCst);
            port::write16(self.io + QUEUE_NOTIFY, 0);
            let used_at = (self.size * 16 + 6 + self.size * 2).next_multiple_of(4096);
            let used = ring.add(used_at + 2) as *const u16;
            while used.read_volatile() == self.used_seen {
                timer::wait(1);
            }
            self.used_seen = used.read_volatile();
            fence(Ordering::SeqCst);
            match (&raw const status).read_volatile() {
                0 => Ok(()),
                _ => Err("a request failed"),
            }
        }
    }
}
