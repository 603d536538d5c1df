//! UHCI: schedules in memory, with loops (Universal Host Controller Interface 1.1, section 3).

use anyhow::Result;

use super::Bytes;
use crate::guest::Guest;
use crate::pci::Function;

/// Places of transfer descriptors and queue heads: few, so that they point at each other.
const POOL: u64 = 0x30_0000;
/// How many there are.
const ENTRIES: u64 = 24;

/// Changes the schedule, or lets the controller run it.
pub(super) fn one(guest: &mut Guest<'_>, function: &Function) -> Result<()> {
    let Some(bar) = function.bar(4) else { return Ok(()) };
    let base = bar.start as u16;
    for _ in 0..guest.within(1..=6) {
        entry(guest)?;
    }
    if guest.percent(50) {
        let frames = 0x2f_0000;
        let first = link(guest);
        let frame: Vec<u8> = (0..1024).flat_map(|_| (first as u32).to_le_bytes()).collect();
        guest.write(frames, &frame)?;
        guest.output(base + 8, 4, frames)?;
    }
    if guest.percent(30) {
        // Reset the ports and switch them on.
        for port in [0x10, 0x12] {
            guest.output(base + port, 2, 0x200)?;
            guest.wait(50_000_000)?;
            guest.output(base + port, 2, 0x0e)?;
        }
    }
    if guest.percent(30) {
        let (register, value) = (guest.within(0..=0x13) as u16, guest.value());
        guest.output(base + register, 2, value)?;
    }
    guest.output(base + 4, 2, 0xf)?;
    let command = if guest.percent(90) { 0xc1 } else { guest.value() };
    guest.output(base, 2, command)?;
    let frames = guest.within(1..=20);
    guest.wait(frames * 1_000_000)?;
    guest.input(base + 2, 2)?;
    guest.output(base + 2, 2, 0x3f)
}

fn link(guest: &mut Guest<'_>) -> u64 {
    if guest.percent(3) {
        return guest.address();
    }
    let flags = guest.pick(&[0, 0, 2, 2, 4, 1]);
    (POOL + 32 * guest.within(0..=ENTRIES - 1)) | flags
}

/// A transfer descriptor or a queue head.
fn entry(guest: &mut Guest<'_>) -> Result<()> {
    let place = POOL + 32 * guest.within(0..=ENTRIES - 1);
    let next = link(guest);
    if guest.percent(30) {
        let element = link(guest);
        return guest.write(place, &Bytes::default().u32(next).u32(element).0);
    }
    let status = 0x0080_0000 | guest.within(0..=3) << 27 | guest.pick(&[0, 1, 2, 4, 8, 32]) << 24;
    let pid = guest.pick(&[0x69, 0x69, 0xe1, 0x2d, 0x2d, 0]);
    let len = guest.pick(&[7, 0x7ff, 0, 17, 63, 0x4ff, 0x3ff, 1]);
    let (address, endpoint) = (guest.within(0..=4), guest.within(0..=2));
    let token = pid | address << 8 | endpoint << 15 | guest.within(0..=1) << 19 | len << 21;
    let buffer = guest.address();
    guest.write(place, &Bytes::default().u32(next).u32(status).u32(token).u32(buffer).0)?;
    if pid == 0x2d {
        // A request for the default pipe.
        let request = Bytes::default()
            .u8(guest.pick(&[0x80, 0x00, 0x81, 0x01, 0x21, 0xa1, 0xa0, 0xa3, 0x20, 0x23]))
            .u8(guest.within(0..=12))
            .u16(
                guest.pick(&[0, 1, 2, 3, 4, 8, 16, 20, 0x100, 0x200, 0x300, 0x302, 0x2200, 0x2900]),
            )
            .u16(guest.within(0..=3))
            .u16(guest.pick(&[0, 8, 18, 64, 255, 0xffff]));
        guest.write(buffer, &request.0)?;
    }
    Ok(())
}
