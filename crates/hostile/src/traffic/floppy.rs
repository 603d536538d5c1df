//! The floppy controller with its DMA channel.

use anyhow::Result;

use crate::guest::Guest;

/// Commands with the number of bytes that follow.
const COMMANDS: &[(u8, u8)] = &[
    (0x46, 8),
    (0xe6, 8),
    (0x45, 8),
    (0xc5, 8),
    (0x4c, 8),
    (0x42, 8),
    (0x4a, 1),
    (0x4d, 5),
    (0x07, 1),
    (0x0f, 2),
    (0x8f, 2),
    (0x08, 0),
    (0x04, 1),
    (0x03, 2),
    (0x0e, 0),
    (0x10, 0),
    (0x13, 3),
    (0x12, 1),
    (0x14, 0),
    (0x94, 0),
    (0x18, 0),
    (0x2e, 0),
    (0x4e, 15),
    (0x2c, 0),
    (0x33, 1),
    (0x8e, 5),
    (0x56, 8),
    (0x51, 8),
    (0x59, 8),
    (0x5d, 8),
    (0xcd, 5),
];

/// The controller's ports: digital output, main status, data, data rate.
const OUTPUT: u16 = 0x3f2;
const STATUS: u16 = 0x3f4;
const DATA: u16 = 0x3f5;
const RATE: u16 = 0x3f7;
/// Bits of the status: it waits for an access, and which.
const REQUEST: u32 = 0x80;
const TO_HOST: u32 = 0x40;

/// Commands that move data: code, and whether the drive is read.
const TRANSFERS: &[(u8, bool)] = &[
    (0xe6, true),
    (0xe6, true),
    (0x46, true),
    (0x66, true),
    (0xc5, false),
    (0xc5, false),
    (0x45, false),
    (0x4c, true),
    (0xc9, false),
    (0x4d, false),
    (0x42, true),
    (0x51, false),
    (0x59, false),
    (0x5d, false),
    (0xf6, true),
];

/// Does one thing.
pub(super) fn one(guest: &mut Guest<'_>) -> Result<()> {
    if guest.percent(75) { transfer(guest) } else { any(guest) }
}

/// A command that moves data, by DMA or by the port, set up as drivers do.
fn transfer(guest: &mut Guest<'_>) -> Result<()> {
    let drive = guest.within(0..=1);
    let by_dma = guest.percent(60);
    // Out of reset, the drive's motor on.
    if guest.percent(10) {
        guest.output(OUTPUT, 1, 0)?;
    }
    let motor = guest.nearly(0x0c | drive | 0x10 << drive);
    guest.output(OUTPUT, 1, motor)?;
    // One disk is of high density, the other of double density.
    let rate = guest.nearly(if drive == 0 { 0 } else { 2 });
    guest.output(RATE, 1, rate)?;
    guest.wait(1_000_000)?;
    drain(guest)?;
    send(guest, &[0x03, 0xdf, 0x02 | u64::from(!by_dma)])?;
    let (track, head) = (guest.within(0..=79), guest.within(0..=1));
    let unit = drive | head << 2;
    if guest.percent(60) {
        let seek = if guest.percent(80) { [0x0f, unit, track] } else { [0x8f, unit, 1] };
        send(guest, &seek)?;
        guest.wait(300_000_000)?;
        send(guest, &[0x08])?;
        drain(guest)?;
    }
    let (code, reads) = guest.pick(TRANSFERS);
    let (sector, sectors) = (guest.within(1..=9), guest.within(1..=9));
    let last = guest.nearly((sector + sectors - 1).min(18));
    let len = 512 * sectors;
    if by_dma {
        // Pages of 64 KiB below 16 MiB are all that the DMA controller reaches.
        let page = 0x10_0000 + 0x1_0000 * guest.within(0..=7);
        let addr = guest.nearly(page);
        let mode = if reads { 0x46 } else { 0x4a };
        program(guest, mode, addr, len - 1)?;
    }
    let parameters = if code == 0x4d {
        vec![code.into(), unit, 2, guest.nearly(18), 0x50, 0xf6]
    } else {
        let right = [unit, track, head, sector, 2, last, 0x1b, 0xff];
        let given = right.map(|value| guest.nearly(value));
        std::iter::once(code.into()).chain(given).collect()
    };
    send(guest, &parameters)?;
    if by_dma {
        guest.wait(20_000_000)?;
    } else {
        for _ in 0..guest.nearly(len).min(8192) {
            let status = guest.input(STATUS, 1)?;
            if status & REQUEST == 0 {
                guest.wait(1_000_000)?;
            } else if status & TO_HOST != 0 {
                guest.input(DATA, 1)?;
            } else {
                guest.output(DATA, 1, 0x5a)?;
            }
        }
    }
    if guest.percent(80) { drain(guest) } else { Ok(()) }
}

/// Gives the controller the bytes of a command.
fn send(guest: &mut Guest<'_>, bytes: &[u64]) -> Result<()> {
    bytes.iter().try_for_each(|&byte| guest.output(DATA, 1, byte))
}

/// Reads what the controller has to say.
fn drain(guest: &mut Guest<'_>) -> Result<()> {
    for _ in 0..16 {
        if guest.input(STATUS, 1)? & (REQUEST | TO_HOST) != REQUEST | TO_HOST {
            break;
        }
        guest.input(DATA, 1)?;
    }
    Ok(())
}

/// Sets up the DMA channel.
fn program(guest: &mut Guest<'_>, mode: u64, addr: u64, count: u64) -> Result<()> {
    for (port, value) in [
        (0x0a, 6),
        (0x0c, 0),
        (0x0b, mode),
        (0x04, addr),
        (0x04, addr >> 8),
        (0x81, addr >> 16),
        (0x05, count),
        (0x05, count >> 8),
        (0x0a, 2),
        (0xd4, 0),
    ] {
        guest.output(port, 1, value & 0xff)?;
    }
    Ok(())
}

/// Any command, with any parameters.
fn any(guest: &mut Guest<'_>) -> Result<()> {
    let motors = if guest.percent(95) { 0x3c } else { guest.value() };
    guest.output(OUTPUT, 1, motors)?;
    if guest.percent(50) {
        let (addr, count) = (guest.address(), guest.amount());
        let mode = guest.pick(&[0x46, 0x4a, 0x42, 0x56, 0x5a, 0x02, 0xc6]);
        program(guest, mode, addr, count)?;
    }
    let (command, parameters) = guest.pick(COMMANDS);
    let command = if guest.percent(5) { guest.any() } else { command };
    guest.output(DATA, 1, command.into())?;
    for index in 0..parameters {
        let value = match (index, guest.within(0..=9)) {
            (_, 0) => guest.any::<u8>().into(),
            (4, _) => 2,
            (0, _) => guest.within(0..=7),
            _ => guest.within(0..=20),
        };
        guest.output(DATA, 1, value)?;
    }
    if guest.percent(50) {
        guest.wait(20_000_000)?;
    }
    for _ in 0..guest.within(0..=40) {
        if guest.percent(80) {
            guest.input(DATA, 1)?;
        } else {
            let value = guest.any::<u8>().into();
            guest.output(DATA, 1, value)?;
        }
    }
    Ok(())
}
