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

/// Does one thing.
pub(super) fn one(guest: &mut Guest<'_>) -> Result<()> {
    let motors = if guest.percent(95) { 0x3c } else { guest.value() };
    guest.output(0x3f2, 1, motors)?;
    if guest.percent(50) {
        let (addr, count) = (guest.address(), guest.amount());
        let mode = guest.pick(&[0x46, 0x4a, 0x42, 0x56, 0x5a, 0x02, 0xc6]);
        for (port, value) in [
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
            guest.output(port, 1, value)?;
        }
    }
    let (command, parameters) = guest.pick(COMMANDS);
    let command = if guest.percent(5) { guest.any() } else { command };
    guest.output(0x3f5, 1, command.into())?;
    for index in 0..parameters {
        let value = match (index, guest.within(0..=9)) {
            (_, 0) => guest.any::<u8>().into(),
            (4, _) => 2,
            (0, _) => guest.within(0..=7),
            _ => guest.within(0..=20),
        };
        guest.output(0x3f5, 1, value)?;
    }
    if guest.percent(50) {
        guest.wait(20_000_000)?;
    }
    for _ in 0..guest.within(0..=40) {
        if guest.percent(80) {
            guest.input(0x3f5, 1)?;
        } else {
            let value = guest.any::<u8>().into();
            guest.output(0x3f5, 1, value)?;
        }
    }
    Ok(())
}
