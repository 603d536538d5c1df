//! AHCI: command lists, tables and regions in memory (AHCI 1.3.1, section 4).

use anyhow::Result;

use super::{Bytes, ata};
use crate::guest::Guest;
use crate::pci::Function;

/// The port with a CD-ROM drive; disks are at others.
const CDROM: u64 = 2;
/// Ports with something on them, and one without.
const PORTS: &[u64] = &[0, 0, 1, CDROM, CDROM, 5, 5, 3];

/// Registers of a port.
const LIST: u64 = 0x00;
const RECEIVED: u64 = 0x08;
const INTERRUPTS: u64 = 0x10;
const COMMAND: u64 = 0x18;
const SATA_ERROR: u64 = 0x30;
const SATA_ACTIVE: u64 = 0x34;
const ISSUE: u64 = 0x38;
/// It runs, and takes frames.
const RUNNING: u64 = 0x17;

/// Gives a port commands.
pub(super) fn one(guest: &mut Guest<'_>, function: &Function) -> Result<()> {
    let Some(bar) = function.bar(5) else { return Ok(()) };
    let index = guest.pick(PORTS);
    let port = bar.start + 0x100 + 0x80 * index;
    let is_ready = guest.load(port + COMMAND, 4)? & 0x8001 == 0x8001;
    if !is_ready || guest.percent(15) {
        set_up(guest, bar.start, port)?;
    }
    let list = guest.load(port + LIST, 4)? | guest.load(port + LIST + 4, 4)? << 32;
    let (mut issued, mut queued) = (0, 0);
    for _ in 0..guest.within(1..=4) {
        let slot = guest.within(0..=31);
        issued |= 1 << slot;
        if slot_of(guest, list, slot, index == CDROM)? {
            queued |= 1 << slot;
        }
    }
    let active = guest.nearly(queued);
    guest.store(port + SATA_ACTIVE, 4, active)?;
    guest.store(port + ISSUE, 4, issued)?;
    if guest.percent(60) {
        // They are done meanwhile.
        for _ in 0..20 {
            if guest.load(port + ISSUE, 4)? == 0 {
                break;
            }
            std::thread::sleep(std::time::Duration::from_micros(50));
        }
        let happened = guest.load(port + INTERRUPTS, 4)?;
        guest.store(port + INTERRUPTS, 4, happened)?;
        // Errors stop a port until it is set up again.
        if happened & 0x4000_0000 != 0 {
            guest.store(port + COMMAND, 4, 0x16)?;
        }
    }
    if guest.percent(5) {
        let (register, value) = (guest.within(0..=0x1f) * 4, guest.value());
        guest.store(port + register, 4, value)?;
    }
    Ok(())
}

/// Stops a port and starts it with lists of its own.
fn set_up(guest: &mut Guest<'_>, base: u64, port: u64) -> Result<()> {
    let (list, received) = if guest.percent(95) {
        (guest.place(), guest.place())
    } else {
        (guest.address(), guest.address())
    };
    guest.store(base + 4, 4, 0x8000_0002)?;
    guest.store(port + COMMAND, 4, 0x06)?;
    for (offset, value) in [(LIST, list), (RECEIVED, received)] {
        guest.store(port + offset, 4, value)?;
        guest.store(port + offset + 4, 4, value >> 32)?;
    }
    guest.store(port + INTERRUPTS, 4, 0xffff_ffff)?;
    guest.store(port + INTERRUPTS + 4, 4, 0xffff_ffff)?;
    guest.store(port + SATA_ERROR, 4, 0xffff_ffff)?;
    let command = if guest.percent(97) { RUNNING } else { guest.value() };
    guest.store(port + COMMAND, 4, command)
}

/// Fills a slot; returns whether its command is one of several at a time.
fn slot_of(guest: &mut Guest<'_>, list: u64, slot: u64, is_cdrom: bool) -> Result<bool> {
    let table = if guest.percent(97) { guest.place() } else { guest.address() & !127 };
    let is_packet = is_cdrom && guest.percent(85);
    let command = if is_packet {
        let dma = guest.any();
        ata::packet_command(guest, dma)
    } else {
        ata::disk_command(guest, None)
    };
    let is_queued = matches!(command.code, 0x60 | 0x61);
    let writes = !command.payload.is_in(guest);
    let pieces = command.payload.place(guest)?;
    let flags = guest.nearly(5 | u64::from(is_packet) << 5 | u64::from(writes) << 6);
    let odd = if guest.percent(5) { u64::from(guest.any::<u8>() & 7) << 8 } else { 0 };
    let count = guest.nearly(pieces.len() as u64);
    let header =
        Bytes::default().u32(flags & 0xff | odd | count << 16).u32(0).u32(table).u32(table >> 32);
    guest.write(list.wrapping_add(32 * slot), &header.0)?;
    // The tag of a queued command is its slot.
    let told = if is_queued { guest.nearly(slot << 3) } else { command.count };
    let lba = command.lba.to_le_bytes();
    let frame = Bytes::default()
        .u8(guest.nearly(0x27))
        .u8(guest.nearly(0x80))
        .u8(command.code.into())
        .u8(command.features)
        .bytes(&lba[..3])
        .u8(0x40)
        .bytes(&lba[3..6])
        .u8(command.features >> 8)
        .u16(told)
        .u8(0)
        .u8(if guest.percent(2) { guest.value() } else { 0 })
        .u32(0);
    guest.write(table, &frame.0)?;
    guest.write(table.wrapping_add(0x40), &command.packet)?;
    let regions = pieces.into_iter().fold(Bytes::default(), |bytes, (addr, len)| {
        bytes.u64(addr).u32(0).u32(len.wrapping_sub(1) & 0x3f_ffff)
    });
    guest.write(table.wrapping_add(0x80), &regions.0)?;
    Ok(is_queued)
}
