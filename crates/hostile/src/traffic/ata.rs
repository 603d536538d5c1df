//! IDE: the ports of both channels, and the bus master (SFF-8038i).

use anyhow::Result;

use super::{Bytes, Payload, scsi};
use crate::guest::Guest;
use crate::pci::Function;

/// Commands of disks and packet devices.
const COMMANDS: &[u8] = &[
    0x00, 0x06, 0x08, 0x10, 0x20, 0x21, 0x24, 0x25, 0x27, 0x29, 0x2f, 0x30, 0x31, 0x34, 0x35, 0x37,
    0x39, 0x3f, 0x40, 0x42, 0x45, 0x60, 0x61, 0x70, 0x87, 0x90, 0x91, 0xa0, 0xa1, 0xb0, 0xb1, 0xc0,
    0xc4, 0xc5, 0xc6, 0xc8, 0xca, 0xcd, 0xce, 0xd0, 0xda, 0xde, 0xe0, 0xe1, 0xe2, 0xe3, 0xe5, 0xe6,
    0xe7, 0xea, 0xec, 0xef, 0xf1, 0xf5, 0xf8, 0xf9,
];

/// How a command moves its data.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Ports,
    Dma,
    /// By DMA, several commands at a time.
    Queued,
}

/// Commands that read sectors; those that write them, with 48 bits of address or 28.
const READS: &[(u8, Way)] = &[
    (0x20, Way::Ports),
    (0x24, Way::Ports),
    (0xc4, Way::Ports),
    (0x29, Way::Ports),
    (0xc8, Way::Dma),
    (0x25, Way::Dma),
    (0x60, Way::Queued),
];
const WRITES: &[(u8, Way)] = &[
    (0x30, Way::Ports),
    (0x34, Way::Ports),
    (0xc5, Way::Ports),
    (0x39, Way::Ports),
    (0xca, Way::Dma),
    (0x35, Way::Dma),
    (0x61, Way::Queued),
];

/// The PACKET command.
const PACKET: u8 = 0xa0;

/// Bits of the status register.
const BUSY: u32 = 0x80;
const DATA: u32 = 0x08;

/// A command with its registers and data.
pub(super) struct Command {
    pub(super) code: u8,
    pub(super) features: u64,
    pub(super) count: u64,
    pub(super) lba: u64,
    /// The block of a PACKET command.
    pub(super) packet: [u8; 16],
    pub(super) payload: Payload,
}

/// A command to a disk: mostly one that it can do.
pub(super) fn disk_command(guest: &mut Guest<'_>, way: Option<Way>) -> Command {
    let (lba, count) = (guest.within(0..=2000), guest.within(1..=16));
    let (lba, told, len) = (guest.nearly(lba), guest.nearly(count), guest.nearly(512 * count));
    let mut command =
        Command { code: 0, features: 0, count: told, lba, packet: [0; 16], payload: Payload::Any };
    match guest.within(0..=9) {
        choice @ 0..=6 => {
            let table = if choice < 4 { READS } else { WRITES };
            let (code, kind) = guest.pick(table);
            if way.is_some_and(|way| way != kind) {
                // One of the same table that goes the wanted way.
                command.code =
                    table.iter().find(|entry| Some(entry.1) == way).map_or(code, |e| e.0);
            } else {
                command.code = code;
            }
            if matches!(command.code, 0x60 | 0x61) {
                let tag = guest.within(0..=31) << 3;
                (command.features, command.count) = (told, tag);
            }
            command.payload = if choice < 4 { Payload::In(len) } else { Payload::Out(len) };
        }
        7 => {
            // SMART, a log, identification, TRIM.
            (command.code, command.features, command.lba, command.payload) =
                match guest.within(0..=3) {
                    0 => {
                        let what = guest.pick(&[0xd0, 0xd1, 0xd2, 0xd4, 0xd5, 0xd8, 0xd9, 0xda]);
                        let log = guest.pick(&[0, 1, 6, 0xe0]);
                        (0xb0, what, 0xc2_4f00 | log, Payload::In(512))
                    }
                    1 => (0x2f, 0, guest.within(0..=0x30), Payload::In(len)),
                    2 => (0xec, 0, 0, Payload::In(512)),
                    _ => (0x06, 1, 0, Payload::Bytes(ranges(guest, count))),
                };
        }
        _ => {
            command.code = if guest.percent(5) { guest.any() } else { guest.pick(COMMANDS) };
            (command.features, command.count) = (guest.amount(), guest.amount());
        }
    }
    command
}

/// Sectors with ranges to trim.
fn ranges(guest: &mut Guest<'_>, sectors: u64) -> Vec<u8> {
    let mut bytes = Bytes::default();
    for _ in 0..guest.within(1..=8) {
        let (lba, count) = (guest.within(0..=2000), guest.within(0..=64));
        bytes = bytes.u64(guest.nearly(lba) & 0xffff_ffff_ffff | count << 48);
    }
    bytes.0.resize(512 * sectors as usize, 0);
    bytes.0
}

/// A PACKET command with its SCSI command.
pub(super) fn packet_command(guest: &mut Guest<'_>, dma: bool) -> Command {
    let scsi::Command { block, payload } = scsi::command(guest, scsi::CD_BLOCK);
    let limit = guest.pick(&[2048, 2048, 0xfffe, 512, 12, 0, 0xffff, 7]);
    Command {
        code: PACKET,
        features: guest.nearly(dma.into()),
        count: 0,
        lba: guest.nearly(limit) << 8,
        packet: block,
        payload,
    }
}

/// The ports of a channel's command block and of its control register.
const CHANNELS: [(u16, u16); 2] = [(0x1f0, 0x3f6), (0x170, 0x376)];

/// A channel, and whether its first device is a CD-ROM drive.
fn channel(guest: &mut Guest<'_>) -> (usize, bool) {
    let index = guest.within(0..=1) as usize;
    (index, index == 1)
}

/// A command by ports, with the data that it wants or has.
pub(super) fn one(guest: &mut Guest<'_>) -> Result<()> {
    let (index, is_cdrom) = channel(guest);
    let (base, control) = CHANNELS[index];
    if guest.percent(4) {
        let value = guest.value();
        guest.output(control, 1, value)?;
    }
    let is_packet = is_cdrom && guest.percent(75);
    let command = if is_packet {
        packet_command(guest, false)
    } else {
        disk_command(guest, Some(Way::Ports))
    };
    issue(guest, base, &command, is_packet)?;
    let size = guest.pick(&[2, 4, 4, 4]);
    // A block at a time, as long as the device has or wants one.
    for _ in 0..guest.within(1..=20) {
        let status = guest.settled(base + 7, BUSY)?;
        if status & (BUSY | DATA) != DATA && guest.percent(97) {
            break;
        }
        let cylinder = guest.input(base + 4, 1)? | guest.input(base + 5, 1)? << 8;
        let len = if is_packet { u64::from(cylinder) } else { 512 };
        let writes = !command.payload.is_in(guest);
        let accesses = guest.nearly(len / u64::from(size)).min(1024);
        for _ in 0..accesses {
            if writes {
                let value = u64::from(guest.any::<u8>());
                guest.output(base, size, value)?;
            } else {
                guest.input(base, size)?;
            }
        }
    }
    guest.input(base + 7, 1).map(drop)
}

/// Writes the task file, and the command block of a PACKET command.
fn issue(guest: &mut Guest<'_>, base: u16, command: &Command, is_packet: bool) -> Result<()> {
    // Out of old troubles.
    if guest.settled(base + 7, BUSY)? & DATA != 0 && guest.percent(80) {
        let control = if base == CHANNELS[0].0 { CHANNELS[0].1 } else { CHANNELS[1].1 };
        guest.output(control, 1, 4)?;
        guest.output(control, 1, 0)?;
        guest.settled(base + 7, BUSY)?;
    }
    let is_second = if is_packet { 0 } else { guest.within(0..=1) };
    let is_wide = matches!(command.code, 0x24 | 0x25 | 0x29 | 0x34 | 0x35 | 0x39 | 0x60 | 0x61);
    let top = if is_wide { 0 } else { command.lba >> 24 & 0xf };
    let drive = if guest.percent(95) { 0xe0 } else { guest.pick(&[0xa0, 0x40, 0]) };
    guest.output(base + 6, 1, drive | is_second << 4 | top)?;
    let registers = [
        (1, command.features, 8),
        (2, command.count, 8),
        (3, command.lba, 24),
        (4, command.lba >> 8, 24),
        (5, command.lba >> 16, 24),
    ];
    // The upper halves of 48 bits come first.
    let rounds: &[bool] = if is_wide && guest.percent(97) { &[true, false] } else { &[false] };
    for is_upper in rounds {
        for (register, value, distance) in registers {
            let value = if *is_upper { value >> distance } else { value };
            guest.output(base + register, 1, value & 0xff)?;
        }
    }
    guest.output(base + 7, 1, command.code.into())?;
    if is_packet {
        guest.settled(base + 7, BUSY)?;
        for pair in command.packet[..12].chunks(2) {
            guest.output(base, 2, u16::from_le_bytes([pair[0], pair[1]]).into())?;
        }
    }
    Ok(())
}

/// A command by DMA.
pub(super) fn bus_master(guest: &mut Guest<'_>, function: &Function) -> Result<()> {
    let Some(bar) = function.bar(4) else { return Ok(()) };
    let (index, is_cdrom) = channel(guest);
    let base = CHANNELS[index].0;
    let registers = bar.start as u16 + 8 * index as u16;
    let is_packet = is_cdrom && guest.percent(75);
    let command =
        if is_packet { packet_command(guest, true) } else { disk_command(guest, Some(Way::Dma)) };
    let table = if guest.percent(95) { guest.place() } else { guest.address() & !3 };
    regions(guest, table, &command.payload)?;
    guest.output(registers, 1, 0)?;
    guest.output(registers + 4, 4, table)?;
    guest.output(registers + 2, 1, 0x66)?;
    issue(guest, base, &command, is_packet)?;
    let reads = command.payload.is_in(guest);
    let start = if guest.percent(97) == reads { 9 } else { 1 };
    guest.output(registers, 1, start)?;
    if guest.percent(70) {
        guest.settled(base + 7, BUSY)?;
        guest.input(registers + 2, 1)?;
    }
    if guest.percent(20) {
        guest.output(registers, 1, 0)?;
    }
    Ok(())
}

/// A table of physical regions for the data.
fn regions(guest: &mut Guest<'_>, table: u64, payload: &Payload) -> Result<()> {
    let mut pieces = payload.place(guest)?;
    if guest.percent(2) {
        // A long one, that ends in itself.
        pieces.resize(512, (table, 0));
    }
    let mut bytes = Bytes::default();
    let count = pieces.len();
    for (index, (addr, len)) in pieces.into_iter().enumerate() {
        let last = index + 1 == count && !guest.percent(2);
        bytes = bytes.u32(addr).u32((len & 0xffff) | u64::from(last) << 31);
    }
    guest.write(table, &bytes.0)
}
