//! virtio: devices set up through their capabilities, and chains in their queues (Virtual I/O Device 1.2,
//! sections 2.7 and 4.1).

use anyhow::Result;

use super::{Bytes, Payload, bar, scsi};
use crate::guest::Guest;
use crate::pci::Function;

/// What a vendor capability points at: the structures' addresses.
#[derive(Clone, Copy, Default)]
struct Structures {
    common: u64,
    notify: u64,
    notify_multiplier: u64,
    device: u64,
}

/// Sets a device up, or gives it work.
pub(super) fn one(guest: &mut Guest<'_>, function: &Function) -> Result<()> {
    let found = structures(guest, function)?;
    // One that runs is left to it mostly; one that was reset, or gave up, is set up again.
    let is_running = match &found {
        Some(at) => guest.load(at.common + 0x14, 1)? == 0xf,
        None => true,
    };
    match (found, guest.within(0..=9)) {
        (Some(at), _) if !is_running && guest.percent(90) => set_up(guest, function, &at),
        (Some(at), 0) if guest.percent(50) => set_up(guest, function, &at),
        (Some(at), 2) => {
            let (offset, value, size) =
                (guest.within(0..=0x40), guest.value(), guest.pick(&[1, 2, 4]));
            let base = guest.pick(&[at.common, at.device]);
            guest.store(base + offset, size, value)?;
            guest.load(base + offset, size).map(drop)
        }
        (Some(at), _) => work(guest, function, &at),
        (None, 0..=2) => bar(guest, function),
        (None, _) => legacy(guest, function),
    }
}

fn structures(guest: &mut Guest<'_>, function: &Function) -> Result<Option<Structures>> {
    // Transitional devices are driven the old way at times.
    if function.device < 0x1040 && guest.percent(10) {
        return Ok(None);
    }
    let mut found = Structures::default();
    for &(at, id) in &function.capabilities {
        if id != 9 {
            continue;
        }
        let kind = guest.read_config(function.devfn, at + 3, 1)?;
        let index = guest.read_config(function.devfn, at + 4, 1)? as u8;
        let offset = u64::from(guest.read_config(function.devfn, at + 8, 4)?);
        let Some(bar) = function.bar(index) else { continue };
        match kind {
            1 => found.common = bar.start + offset,
            2 => {
                found.notify = bar.start + offset;
                found.notify_multiplier = guest.read_config(function.devfn, at + 16, 4)?.into();
            }
            4 => found.device = bar.start + offset,
            _ => {}
        }
    }
    Ok((found.common != 0 && found.notify != 0).then_some(found))
}

/// Where a queue's parts are when nothing else is said: descriptors, available and used ring.
fn rings(function: &Function, queue: u64) -> (u64, u64, u64) {
    let slot = u64::from(function.devfn >> 3);
    let base = 0x200_0000 + 0x1_0000 * (8 * slot + queue);
    (base, base + 0x4000, base + 0x8000)
}

/// Entries of a queue when nothing else is said.
const QUEUE_SIZE: u64 = 16;

fn set_up(guest: &mut Guest<'_>, function: &Function, at: &Structures) -> Result<()> {
    guest.store(at.common + 0x14, 1, 0)?;
    guest.store(at.common + 0x14, 1, 3)?;
    let mask = if guest.percent(50) { u64::MAX } else { guest.any() };
    for half in 0..2 {
        guest.store(at.common, 4, half)?;
        let offered = guest.load(at.common + 4, 4)?;
        guest.store(at.common + 8, 4, half)?;
        let wanted = if half == 0 { mask } else { mask >> 32 | 1 };
        guest.store(at.common + 0xc, 4, offered & wanted)?;
    }
    guest.store(at.common + 0x14, 1, 0xb)?;
    let queues = guest.load(at.common + 0x12, 2)?.min(8);
    for queue in 0..queues {
        let (mut desc, mut avail, mut used) = rings(function, queue);
        if guest.percent(3) {
            (desc, avail, used) = (guest.address(), guest.address(), guest.address());
        }
        let size = if guest.percent(95) { QUEUE_SIZE } else { guest.amount() };
        guest.store(at.common + 0x16, 2, queue)?;
        guest.store(at.common + 0x18, 2, size)?;
        for (offset, value) in [(0x20, desc), (0x28, avail), (0x30, used)] {
            guest.store(at.common + offset, 4, value)?;
            guest.store(at.common + offset + 4, 4, value >> 32)?;
        }
        if guest.percent(30) {
            let vector = guest.within(0..=4);
            guest.store(at.common + 0x1a, 2, vector)?;
        }
        guest.fill(avail & 0xffff_ffff, 4, 0)?;
        guest.store(at.common + 0x1c, 2, 1)?;
    }
    guest.store(at.common + 0x14, 1, 0xf)
}

fn work(guest: &mut Guest<'_>, function: &Function, at: &Structures) -> Result<()> {
    let queue = guest.pick(match function.device {
        0x1004 | 0x1048 => &[2, 2, 2, 2, 2, 0, 1, 3],
        _ => &[0, 0, 0, 1, 1, 2, 3],
    });
    chains(guest, function, queue)?;
    guest.store(at.common + 0x16, 2, queue)?;
    let offset = guest.load(at.common + 0x1e, 2)?;
    guest.store(at.notify + offset * at.notify_multiplier, 2, queue)?;
    if guest.percent(30) {
        guest.wait(1_000_000)?;
    }
    Ok(())
}

/// The registers of before 1.0 (section 4.1.4.10).
fn legacy(guest: &mut Guest<'_>, function: &Function) -> Result<()> {
    let Some(bar) = function.bar(0).filter(|bar| bar.is_ports) else { return Ok(()) };
    let base = bar.start as u16;
    let queue = guest.within(0..=3);
    if guest.percent(30) {
        let features = guest.value();
        guest.output(base + 4, 4, features)?;
        guest.output(base + 18, 1, 3)?;
        for queue in 0..4 {
            guest.output(base + 14, 2, queue)?;
            // With the size that the device has, available entries are behind all descriptors.
            let page =
                (if guest.percent(95) { rings(function, queue).0 } else { guest.address() }) >> 12;
            guest.output(base + 8, 4, page)?;
        }
        guest.output(base + 18, 1, 7)?;
    }
    chains(guest, function, queue)?;
    guest.output(base + 14, 2, queue)?;
    let size = u64::from(guest.input(base + 12, 2)?);
    let avail = rings(function, queue).0 + 16 * size;
    let (index, head) = (guest.within(0..=20), guest.within(0..=20));
    guest.write(avail, &Bytes::default().u16(0).u16(index).u16(head).u16(0).0)?;
    guest.output(base + 16, 2, queue)
}

/// Puts chains into a queue and makes them available.
fn chains(guest: &mut Guest<'_>, function: &Function, queue: u64) -> Result<()> {
    let (desc, avail, _) = rings(function, queue);
    let index = guest.load(avail + 2, 2)?;
    let mut ring = Bytes::default();
    let count = guest.within(1..=3);
    for number in 0..count {
        let head = 5 * number;
        chain(guest, function, queue, desc, head)?;
        ring = ring.u16(if guest.percent(98) { head } else { guest.any::<u16>().into() });
    }
    let slot = index % QUEUE_SIZE;
    guest.write(avail + 4 + 2 * slot, &ring.0)?;
    let index = if guest.percent(98) { index + count } else { guest.value() };
    guest.store(avail + 2, 2, index & 0xffff)
}

/// A chain of a header, data and room for an answer.
fn chain(
    guest: &mut Guest<'_>,
    function: &Function,
    queue: u64,
    desc: u64,
    head: u64,
) -> Result<()> {
    let (header, payload) = request(guest, function, queue);
    let place = 0x300_0000 + 0x1_0000 * u64::from(function.devfn >> 3) + 0x1000 * head;
    guest.write(place, &header)?;
    let mut parts = vec![(place, guest.nearly(header.len() as u64), 0)];
    // Data go one way.
    let flags = if payload.is_in(guest) { 2 } else { 0 };
    let pieces = payload.place(guest)?;
    parts.extend(pieces.into_iter().map(|(addr, len)| (addr, len, flags)));
    let answer = match function.device {
        0x1001 | 0x1042 => 1,
        0x1004 | 0x1048 => 108,
        _ => 1024,
    };
    let answer = (place + 0x800, if guest.percent(95) { answer } else { guest.amount() }, 2);
    // A SCSI response is before the data, the others are behind.
    let at = if answer.1 == 108 && flags == 2 { 1 } else { parts.len() };
    parts.insert(at, answer);
    let mut table = Bytes::default();
    let last = parts.len() as u64 - 1;
    // At times a table of its own, which is then the only entry.
    let is_indirect = guest.percent(15);
    let first = if is_indirect { 0 } else { head };
    for (number, (addr, len, flags)) in (0..).zip(parts) {
        let more = u64::from(number != last || guest.percent(2));
        let odd = if guest.percent(2) { 4 } else { 0 };
        let next = if guest.percent(98) { first + number + 1 } else { guest.within(0..=20) };
        table = table.u64(addr).u32(len).u16(flags | more | odd).u16(next);
    }
    if is_indirect {
        let at = place + 0x400;
        guest.write(at, &table.0)?;
        let len = if guest.percent(95) { table.0.len() as u64 } else { guest.amount() };
        table = Bytes::default().u64(at).u32(len).u16(4).u16(0);
    }
    guest.write(desc + 16 * head, &table.0)
}

/// What the device reads first, and the data.
fn request(guest: &mut Guest<'_>, function: &Function, queue: u64) -> (Vec<u8>, Payload) {
    let (header, payload) = match function.device {
        0x1001 | 0x1042 => block(guest),
        0x1004 | 0x1048 if queue == 0 => (scsi_control(guest), Payload::Any),
        0x1004 | 0x1048 => scsi_request(guest),
        0x1050 => (gpu(guest), Payload::Any),
        _ => {
            let words: Vec<u64> = (0..guest.within(0..=8)).map(|_| guest.amount()).collect();
            (words.into_iter().fold(Bytes::default(), Bytes::u32), Payload::Any)
        }
    };
    (header.0, payload)
}

fn block(guest: &mut Guest<'_>) -> (Bytes, Payload) {
    let kind = guest.pick(&[0, 0, 1, 1, 4, 8, 11, 13, 14, 2]);
    let sector = guest.within(0..=2000);
    let header = Bytes::default().u32(kind).u32(0).u64(guest.nearly(sector));
    let len = 512 * guest.within(1..=24);
    let payload = match kind {
        0 => Payload::In(guest.nearly(len)),
        1 => Payload::Out(guest.nearly(len)),
        8 => Payload::In(guest.nearly(20)),
        // Segments of a discard.
        11 | 13 | 14 => {
            let mut segments = Bytes::default();
            for _ in 0..guest.within(1..=3) {
                let (first, count, flags) =
                    (guest.within(0..=2000), guest.within(0..=64), guest.within(0..=1));
                segments = segments.u64(guest.nearly(first)).u32(guest.nearly(count)).u32(flags);
            }
            Payload::Bytes(segments.0)
        }
        _ => Payload::Any,
    };
    (header, payload)
}

/// The address of a logical unit, and the length of its blocks.
fn unit(guest: &mut Guest<'_>) -> (u64, u64) {
    // A disk, a tiny one, a CD-ROM drive and an empty one, and what is not there.
    const UNITS: [(u8, u8); 10] =
        [(0, 0), (0, 0), (0, 0), (0, 0), (5, 1), (5, 1), (1, 0), (2, 0), (5, 0), (255, 7)];
    let (target, lun) = guest.pick(&UNITS);
    let address = [guest.nearly(1) as u8, target, 0x40, lun, 0, 0, 0, 0];
    let is_cdrom = matches!(target, 1 | 2);
    (u64::from_le_bytes(address), if is_cdrom { scsi::CD_BLOCK } else { scsi::DISK_BLOCK })
}

fn scsi_control(guest: &mut Guest<'_>) -> Bytes {
    let (kind, subtype) = (guest.within(0..=3), guest.within(0..=8));
    let ((unit, _), tag) = (unit(guest), guest.within(0..=4));
    Bytes::default().u32(kind).u32(subtype).u64(unit).u64(tag)
}

fn scsi_request(guest: &mut Guest<'_>) -> (Bytes, Payload) {
    let ((unit, block_len), tag) = (unit(guest), guest.within(0..=4));
    let scsi::Command { block, payload } = scsi::command(guest, block_len);
    let attribute = guest.pick(&[0, 0, 1, 2, 3]);
    // 32 bytes of command block, unless the driver has changed that.
    let header = Bytes::default().u64(unit).u64(tag).u8(attribute).u8(0).u8(0);
    (header.bytes(&block).bytes(&[0; 16]), payload)
}

/// A command of the graphics device (section 5.7.6).
fn gpu(guest: &mut Guest<'_>) -> Bytes {
    let command = match guest.within(0..=20) {
        number @ 0..=17 => 0x100 + number % 13,
        18 => 0x300,
        19 => 0x301,
        _ => guest.value(),
    };
    let flags = guest.within(0..=3);
    let header = Bytes::default().u32(command).u32(flags).u64(1).u32(0).u32(0);
    let resource = guest.within(0..=3);
    let format = guest.pick(&[1, 2, 67, 134, 0]);
    let mut side = || match guest.within(0..=5) {
        0 => guest.amount(),
        1 => 16384,
        _ => guest.within(1..=300),
    };
    let rectangle = [side(), side(), side(), side()];
    let place = |bytes: Bytes| rectangle.into_iter().fold(bytes, Bytes::u32);
    match command {
        0x101 => header.u32(resource).u32(format).u32(rectangle[0]).u32(rectangle[1]),
        0x103 => place(header).u32(guest.within(0..=2)).u32(resource),
        0x105 => place(header).u64(guest.amount()).u32(resource).u32(0),
        0x106 => {
            let count = guest.pick(&[1, 1, 2, 3, 0, 16384, 0xffff_ffff]);
            let mut bytes = header.u32(resource).u32(count);
            for _ in 0..count.min(3) {
                let (addr, len) = (guest.address(), guest.amount() << 9);
                bytes = bytes.u64(addr).u32(len).u32(0);
            }
            bytes
        }
        0x300 | 0x301 => header
            .u32(guest.within(0..=2))
            .u32(guest.value())
            .u32(guest.value())
            .u32(0)
            .u32(resource)
            .u32(guest.amount())
            .u32(guest.amount())
            .u32(0),
        _ => place(header).u32(resource).u32(0),
    }
}
