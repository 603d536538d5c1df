//! AHCI: command lists, tables and regions in memory (AHCI 1.3.1, section 4).

use anyhow::Result;

use super::{Bytes, ata, scsi};
use crate::guest::Guest;
use crate::pci::Function;

/// Gives a port commands.
pub(super) fn one(guest: &mut Guest<'_>, function: &Function) -> Result<()> {
    let Some(bar) = function.bar(5) else { return Ok(()) };
    let port = bar.start + 0x100 + 0x80 * guest.within(0..=5);
    let (list, received) = if guest.percent(90) {
        (guest.place(), guest.place())
    } else {
        (guest.address(), guest.address())
    };
    if guest.percent(60) {
        guest.store(bar.start + 4, 4, 0x8000_0002)?;
        for (offset, value) in [(0x00, list), (0x04, list >> 32), (0x08, received), (0x0c, 0)] {
            guest.store(port + offset, 4, value)?;
        }
        guest.store(port + 0x14, 4, 0xffff_ffff)?;
        guest.store(port + 0x30, 4, 0xffff_ffff)?;
        let command = if guest.percent(90) { 0x17 } else { guest.value() };
        guest.store(port + 0x18, 4, command)?;
    }
    let list = if guest.percent(90) {
        guest.load(port, 4)? | guest.load(port + 4, 4)? << 32
    } else {
        list
    };
    let mut issued = 0;
    for _ in 0..guest.within(1..=4) {
        let slot = guest.within(0..=31);
        issued |= 1 << slot;
        slot_of(guest, list, slot)?;
    }
    if guest.percent(30) {
        guest.store(port + 0x34, 4, issued)?;
    }
    guest.store(port + 0x38, 4, issued)?;
    if guest.percent(50) {
        guest.wait(1000)?;
        guest.load(port + 0x10, 4)?;
        guest.load(port + 0x38, 4)?;
    }
    if guest.percent(10) {
        let (register, value) = (guest.within(0..=0x1f) * 4, guest.value());
        guest.store(port + register, 4, value)?;
    }
    Ok(())
}

fn slot_of(guest: &mut Guest<'_>, list: u64, slot: u64) -> Result<()> {
    let table = if guest.percent(95) { guest.place() } else { guest.address() & !127 };
    let count = guest.pick(&[0, 1, 1, 2, 3, 200, 65535]);
    let is_packet = guest.percent(40);
    let length = if guest.percent(95) { 5 } else { guest.within(0..=31) };
    let flags = u64::from(guest.any::<u8>()) & 0xc7 | u64::from(guest.any::<u8>() & 7) << 8;
    let header = Bytes::default()
        .u32(length | u64::from(is_packet) << 5 | flags & !0x3f | count << 16)
        .u32(0)
        .u32(table)
        .u32(table >> 32);
    guest.write(list.wrapping_add(32 * slot), &header.0)?;
    let command = if is_packet { 0xa0 } else { guest.pick(ata::COMMANDS) };
    let (lba, sectors) = (guest.amount(), guest.amount());
    let kind = if guest.percent(97) { 0x27 } else { guest.any::<u8>().into() };
    let features = guest.amount();
    let fis = Bytes::default()
        .u8(kind)
        .u8(if guest.percent(95) { 0x80 } else { 0 })
        .u8(command.into())
        .u8(features)
        .bytes(&lba.to_le_bytes()[..3])
        .u8(0x40)
        .bytes(&lba.to_le_bytes()[3..6])
        .u8(features >> 8)
        .u16(sectors)
        .u8(0)
        .u8(if guest.percent(5) { guest.value() } else { 0 })
        .u32(0);
    guest.write(table, &fis.0)?;
    let block = scsi::command(guest);
    guest.write(table.wrapping_add(0x40), &block)?;
    let mut regions = Bytes::default();
    for index in 0..count.min(3) {
        let whole = index == 0 && guest.percent(60);
        let (addr, len) = if whole { (guest.place(), 1 << 22) } else { guest.data() };
        regions = regions.u64(addr).u32(0).u32(len.wrapping_sub(1));
    }
    guest.write(table.wrapping_add(0x80), &regions.0)
}
