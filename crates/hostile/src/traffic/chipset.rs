//! The chipset and the devices of the ISA bus, by their ports and pages; and time.

use anyhow::Result;

use super::Bytes;
use crate::guest::Guest;

/// First port and count of what is at fixed places.
const PORTS: &[(u16, u16)] = &[
    (0x00, 0x10),
    (0x20, 2),
    (0x40, 4),
    (0x60, 5),
    (0x70, 2),
    (0x80, 16),
    (0x92, 1),
    (0xa0, 2),
    (0xb2, 2),
    (0xc0, 32),
    (0xe0, 16),
    (0xf0, 2),
    (0x1ce, 4),
    (0x278, 3),
    (0x2e8, 8),
    (0x2f8, 8),
    (0x378, 8),
    (0x441, 3),
    (0x3e8, 8),
    (0x3f8, 8),
    (0x4d0, 2),
    (0x501, 4),
    (0x505, 1),
    (0x510, 12),
    (0x600, 64),
    (0x700, 64),
    (0xae00, 32),
    (0xcd8, 16),
    (0xcf8, 8),
    (0xf4, 4),
];

/// Physical pages of devices that are no PCI functions.
const PAGES: &[u64] = &[0xfee0_0000, 0xfec0_0000, 0xfed0_0000, 0xff00_0000, 0xfffe_0000];

/// Does one thing.
pub(super) fn one(guest: &mut Guest<'_>) -> Result<()> {
    match guest.within(0..=9) {
        0..=4 => ports(guest),
        5 => page(guest),
        6 => power_management(guest),
        7 => flash(guest),
        8 => fw_cfg(guest),
        _ => lines(guest),
    }
}

/// Lets time pass.
pub(super) fn time(guest: &mut Guest<'_>) -> Result<()> {
    let ns = match guest.within(0..=9) {
        0 => guest.within(0..=1_000_000_000),
        1..=3 => guest.within(0..=100_000_000),
        _ => guest.within(0..=3_000_000),
    };
    guest.wait(ns)
}

fn ports(guest: &mut Guest<'_>) -> Result<()> {
    let (first, count) = guest.pick(PORTS);
    for _ in 0..guest.within(1..=10) {
        let port = first + guest.within(0..=u64::from(count) - 1) as u16;
        let size = guest.pick(&[1, 1, 1, 2, 4]);
        if guest.percent(70) {
            let value = guest.value();
            guest.output(port, size, value)?;
        } else {
            guest.input(port, size)?;
        }
    }
    Ok(())
}

fn page(guest: &mut Guest<'_>) -> Result<()> {
    let page = guest.pick(PAGES);
    for _ in 0..guest.within(1..=6) {
        let offset = guest.within(0..=0x3ff);
        let size = guest.pick(&[1, 2, 4, 4, 4, 8]);
        let offset = if guest.percent(80) { offset & !15 } else { offset };
        if guest.percent(70) {
            let value = guest.value();
            guest.store(page + offset, size, value)?;
        } else {
            guest.load(page + offset, size)?;
        }
    }
    // An APIC timer with a period, an HPET timer that runs.
    if guest.percent(20) {
        let (mode, count) = (guest.within(0..=3) << 17 | guest.within(0..=255), guest.amount());
        guest.store(0xfee0_00f0, 4, 0x1ff)?;
        guest.store(0xfee0_0320, 4, mode)?;
        guest.store(0xfee0_0380, 4, count)?;
    }
    if guest.percent(20) {
        let (timer, config, period) = (guest.within(0..=2), guest.value(), guest.amount());
        guest.store(0xfed0_0100 + 0x20 * timer, 8, config | 0x4c)?;
        guest.store(0xfed0_0108 + 0x20 * timer, 8, period)?;
        guest.store(0xfed0_0010, 8, 1)?;
    }
    Ok(())
}

/// The ports of ACPI and of the SMBus, which the function's configuration space places.
fn power_management(guest: &mut Guest<'_>) -> Result<()> {
    let pm = guest.functions.iter().find(|function| function.device == 0x7113);
    let Some(devfn) = pm.map(|function| function.devfn) else { return Ok(()) };
    for (register, base, switch) in [(0x40, 0x601, 0x80), (0x90, 0x701, 0xd2)] {
        guest.write_config(devfn, register, 4, base)?;
        guest.write_config(devfn, switch, 1, if switch == 0xd2 { 9 } else { 1 })?;
    }
    for _ in 0..guest.within(1..=10) {
        let port = guest.pick(&[0x600, 0x700]) + guest.within(0..=0x3f) as u16;
        let value = guest.value();
        guest.output(port, guest_size(value), value)?;
        guest.input(port, 1)?;
    }
    Ok(())
}

fn guest_size(value: u64) -> u8 {
    [1, 2, 4][(value % 3) as usize]
}

/// Commands of flash memory (Intel's CFI command set, 0001).
fn flash(guest: &mut Guest<'_>) -> Result<()> {
    let base = guest.pick(&[0xffff_0000, 0xfffc_0000, 0xfffd_f000, 0xffff_f000]);
    for _ in 0..guest.within(1..=6) {
        let command =
            guest.pick(&[0x20, 0xd0, 0x40, 0x10, 0xe8, 0x50, 0x70, 0x90, 0x98, 0xff, 0x60, 0x01]);
        let offset = guest.within(0..=0xfff);
        guest.store(base + offset, 1, command)?;
        let (value, size) = (guest.value(), guest.pick(&[1, 2, 4]));
        guest.store(base + offset, size, value)?;
        guest.load(base + offset, 1)?;
    }
    Ok(())
}

/// The firmware configuration device, with DMA.
fn fw_cfg(guest: &mut Guest<'_>) -> Result<()> {
    let item = guest.pick(&[0, 1, 2, 5, 0x19, 0x20, 0x21, 0x22, 0x28, 0xffff]);
    if guest.percent(50) {
        guest.output(0x510, 2, item)?;
        for _ in 0..guest.within(0..=9) {
            guest.input(0x511, 1)?;
        }
        return Ok(());
    }
    let control = item << 16 | guest.within(0..=0x1f);
    let (len, addr) = (guest.amount() as u32, guest.address());
    let command = Bytes::default()
        .u32((control as u32).swap_bytes().into())
        .u32(len.swap_bytes().into())
        .u64(addr.swap_bytes());
    let place = guest.address();
    guest.write(place, &command.0)?;
    guest.output(0x514, 4, ((place >> 32) as u32).swap_bytes().into())?;
    guest.output(0x518, 4, (place as u32).swap_bytes().into())
}

/// Interrupt lines driven from outside, and listened to.
fn lines(guest: &mut Guest<'_>) -> Result<()> {
    let (line, level) = (guest.within(0..=30), guest.within(0..=1));
    guest.say(&format!("set_irq_in /machine/ioapic unnamed-gpio-in {line} {level}"));
    guest.say("irq_intercept_in ioapic");
    Ok(())
}
