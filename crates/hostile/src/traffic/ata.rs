//! IDE: the ports of both channels, and the bus master (SFF-8038i).

use anyhow::Result;

use super::{Bytes, scsi};
use crate::guest::Guest;
use crate::pci::Function;

/// Commands of disks and packet devices.
pub(super) const COMMANDS: &[u8] = &[
    0x00, 0x06, 0x08, 0x10, 0x20, 0x21, 0x24, 0x25, 0x27, 0x29, 0x2f, 0x30, 0x31, 0x34, 0x35, 0x37,
    0x39, 0x3f, 0x40, 0x42, 0x45, 0x60, 0x61, 0x70, 0x87, 0x90, 0x91, 0xa0, 0xa1, 0xb0, 0xb1, 0xc0,
    0xc4, 0xc5, 0xc6, 0xc8, 0xca, 0xcd, 0xce, 0xd0, 0xda, 0xde, 0xe0, 0xe1, 0xe2, 0xe3, 0xe5, 0xe6,
    0xe7, 0xea, 0xec, 0xef, 0xf1, 0xf5, 0xf8, 0xf9,
];

/// Commands that move data by DMA, out of those.
const DMA: &[u8] = &[0xc8, 0xca, 0x25, 0x35, 0xa0, 0x06, 0x60, 0x61];

/// A command to a device, with the data that it wants or has.
pub(super) fn one(guest: &mut Guest<'_>) -> Result<()> {
    let (base, control) = guest.pick(&[(0x1f0, 0x3f6), (0x170, 0x376)]);
    if guest.percent(5) {
        let value = guest.value();
        guest.output(control, 1, value)?;
    }
    let command = issue(guest, base, COMMANDS)?;
    if command == 0xa0 {
        packet(guest, base)?;
    }
    if guest.percent(50) {
        guest.wait(1000)?;
    }
    let size = guest.pick(&[2, 4, 4, 1]);
    for _ in 0..guest.pick(&[0, 1, 16, 128, 256, 700]) {
        if guest.percent(50) {
            let value = guest.value();
            guest.output(base, size, value)?;
        } else {
            guest.input(base, size)?;
        }
    }
    guest.input(base + 7, 1)?;
    Ok(())
}

/// Writes the task file; returns the command.
fn issue(guest: &mut Guest<'_>, base: u16, commands: &[u8]) -> Result<u8> {
    let drive = guest.pick(&[0xe0, 0xf0, 0xa0, 0xb0, 0x40, 0x50]) | guest.within(0..=1);
    guest.output(base + 6, 1, drive)?;
    // Twice, for the upper halves of 48 bits.
    for _ in 0..guest.within(1..=2) {
        for register in 1..=5 {
            // A disk is small: high addresses are rare.
            let value = if register > 3 && guest.percent(85) { 0 } else { guest.amount() };
            guest.output(base + register, 1, value)?;
        }
    }
    let command = if guest.percent(5) { guest.any() } else { guest.pick(commands) };
    if guest.percent(80) && command == 0xb0 {
        // SMART's signature.
        guest.output(base + 4, 1, 0x4f)?;
        guest.output(base + 5, 1, 0xc2)?;
    }
    guest.output(base + 7, 1, command.into())?;
    Ok(command)
}

fn packet(guest: &mut Guest<'_>, base: u16) -> Result<()> {
    let block = scsi::command(guest);
    for pair in block[..12].chunks(2) {
        guest.output(base, 2, u16::from_le_bytes([pair[0], pair[1]]).into())?;
    }
    Ok(())
}

/// A command by DMA.
pub(super) fn bus_master(guest: &mut Guest<'_>, function: &Function) -> Result<()> {
    let Some(bar) = function.bar(4) else { return Ok(()) };
    let channel = guest.within(0..=1);
    let registers = (bar.start + 8 * channel) as u16;
    let table = guest.address() & !3;
    let count = guest.pick(&[1, 2, 3, 16, 512]);
    regions(guest, table, count)?;
    guest.output(registers, 1, 0)?;
    guest.output(registers + 4, 4, table)?;
    guest.output(registers + 2, 1, 0x66)?;
    let base = [0x1f0, 0x170][channel as usize];
    let command = issue(guest, base, DMA)?;
    if command == 0xa0 {
        packet(guest, base)?;
    }
    let start = guest.pick(&[1, 9]);
    guest.output(registers, 1, start)?;
    if guest.percent(60) {
        guest.wait(1000)?;
        guest.input(registers + 2, 1)?;
        guest.input(base + 7, 1)?;
    }
    if guest.percent(20) {
        guest.output(registers, 1, 0)?;
    }
    Ok(())
}

/// A table of physical regions.
fn regions(guest: &mut Guest<'_>, table: u64, count: u64) -> Result<()> {
    let mut bytes = Bytes::default();
    for index in 0..count {
        let (addr, len) = match index {
            0 if guest.percent(60) => (guest.place(), 0),
            0..4 => guest.data(),
            _ => (table, 0),
        };
        let last = index + 1 == count && !guest.percent(5);
        bytes = bytes.u32(addr).u32((len & 0xffff) | u64::from(last) << 31);
    }
    guest.write(table, &bytes.0)
}
