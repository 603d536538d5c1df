//! VGA: registers, planes, the Bochs extensions.

use anyhow::Result;

use super::{bar, user};
use crate::guest::Guest;
use crate::pci::Function;

/// Index and data port of each group of registers.
const GROUPS: &[(u16, u16)] =
    &[(0x3d4, 0x3d5), (0x3b4, 0x3b5), (0x3c4, 0x3c5), (0x3ce, 0x3cf), (0x3c0, 0x3c0)];

/// Changes registers or video memory, and looks.
pub(super) fn one(guest: &mut Guest<'_>) -> Result<()> {
    match guest.within(0..=4) {
        0 | 1 => registers(guest)?,
        2 => extensions(guest)?,
        3 => window(guest)?,
        _ => palette(guest)?,
    }
    if guest.percent(30) {
        user::look(guest);
    }
    Ok(())
}

/// The BARs of a card, and the same.
pub(super) fn card(guest: &mut Guest<'_>, function: &Function) -> Result<()> {
    if guest.percent(50) {
        return one(guest);
    }
    if let Some(registers) = function.bar(2).filter(|_| guest.percent(50)) {
        let (index, value) = (guest.within(0..=10), guest.amount());
        guest.store(registers.start + 0x500 + 2 * index, 2, value)?;
        user::look(guest);
    }
    bar(guest, function)
}

fn registers(guest: &mut Guest<'_>) -> Result<()> {
    for _ in 0..guest.within(1..=12) {
        let (index, data) = guest.pick(GROUPS);
        guest.input(0x3da, 1)?;
        let (register, value) = (guest.within(0..=0x3f), guest.value());
        guest.output(index, 1, register)?;
        guest.output(data, 1, value)?;
    }
    if guest.percent(30) {
        let value = guest.value();
        guest.output(0x3c2, 1, value)?;
    }
    guest.input(0x3da, 1)?;
    guest.output(0x3c0, 1, 0x20)
}

fn extensions(guest: &mut Guest<'_>) -> Result<()> {
    let enabled = guest.pick(&[0x41, 0x01, 0xc1, 0x61, 0]);
    for _ in 0..guest.within(1..=6) {
        let index = guest.within(0..=10);
        let value = match guest.within(0..=2) {
            0 => guest.pick(&[4, 8, 15, 16, 24, 32]),
            1 => guest.amount(),
            _ => guest.within(0..=2000),
        };
        guest.output(0x1ce, 2, index)?;
        guest.output(0x1cf, 2, value)?;
    }
    guest.output(0x1ce, 2, 4)?;
    guest.output(0x1cf, 2, enabled)
}

fn window(guest: &mut Guest<'_>) -> Result<()> {
    let addr = 0xa_0000 + guest.within(0..=0x1_ffff);
    match guest.within(0..=2) {
        0 => {
            let (len, byte) = (guest.within(1..=0x3000), guest.any());
            guest.fill(addr, len, byte)
        }
        1 => guest.load(addr, 4).map(drop),
        _ => {
            let value = guest.value();
            guest.store(addr, 4, value)
        }
    }
}

fn palette(guest: &mut Guest<'_>) -> Result<()> {
    for _ in 0..guest.within(1..=8) {
        let (port, value) = (guest.pick(&[0x3c6, 0x3c7, 0x3c8, 0x3c9]), guest.value());
        guest.output(port, 1, value)?;
        guest.input(0x3c9, 1)?;
    }
    Ok(())
}
