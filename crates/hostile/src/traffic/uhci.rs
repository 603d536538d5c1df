//! UHCI: schedules in memory, with loops (Universal Host Controller Interface 1.1, section 3).

use std::time::Duration;

use anyhow::Result;

use super::{Bytes, Payload, scsi};
use crate::guest::Guest;
use crate::pci::Function;

/// Places of transfer descriptors and queue heads: few, so that they point at each other.
const POOL: u64 = 0x30_0000;
/// How many there are.
const ENTRIES: u64 = 24;

/// The frame list.
const FRAMES: u64 = 0x2f_0000;
/// Descriptors of an orderly transfer.
const ORDERLY: u64 = 0x2e_0000;

/// Kinds of packets.
const SETUP: u64 = 0x2d;
const IN: u64 = 0x69;
const OUT: u64 = 0xe1;
/// Longest packet of the disk, in bytes.
const PACKET: u64 = 64;

/// Changes the schedule, or lets the controller run it.
pub(super) fn one(guest: &mut Guest<'_>, function: &Function) -> Result<()> {
    let Some(bar) = function.bar(4) else { return Ok(()) };
    let base = bar.start as u16;
    if guest.percent(25) {
        return disk(guest, base);
    }
    for _ in 0..guest.within(1..=6) {
        entry(guest)?;
    }
    if guest.percent(50) {
        let first = link(guest);
        let frame: Vec<u8> = (0..1024).flat_map(|_| (first as u32).to_le_bytes()).collect();
        guest.write(FRAMES, &frame)?;
        guest.output(base + 8, 4, FRAMES)?;
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

/// A transaction with the disk.
struct Transaction {
    kind: u64,
    endpoint: u64,
    toggle: u64,
    buffer: u64,
    len: u64,
}

/// Commands to the disk at the second port (Bulk-Only Transport 1.0): it gets its address first.
fn disk(guest: &mut Guest<'_>, base: u16) -> Result<()> {
    // Nobody else answers to address 0.
    guest.output(base + 0x10, 2, 0)?;
    guest.output(base + 0x12, 2, 0x200)?;
    guest.wait(50_000_000)?;
    guest.output(base + 0x12, 2, 0x0e)?;
    control(guest, base, 0, [0x00, 5, DISK as u8, 0, 0, 0, 0, 0])?;
    control(guest, base, DISK, [0x00, 9, 1, 0, 0, 0, 0, 0])?;
    let mut toggles = [0, 0];
    for number in 0..guest.within(1..=4) {
        let scsi::Command { block, payload } = scsi::command(guest, scsi::DISK_BLOCK);
        let is_in = payload.is_in(guest);
        let len = payload.len(guest).min(0x4000);
        let code_len = [6, 10, 10, 16, 16, 12, 10, 10][usize::from(block[0] >> 5)];
        let wrapper = Bytes::default()
            .bytes(b"USBC")
            .u32(number)
            .u32(guest.nearly(len))
            .u8(u64::from(is_in) << 7)
            .u8(guest.nearly(0))
            .u8(guest.nearly(code_len))
            .bytes(&block);
        let (place, buffer) = (guest.place(), guest.place());
        guest.write(place, &wrapper.0)?;
        if let Payload::Bytes(bytes) = &payload {
            guest.write(buffer, bytes)?;
        }
        let told = guest.nearly(31).min(PACKET);
        move_bytes(guest, base, OUT, &mut toggles, place, told)?;
        if guest.percent(95) {
            let kind = if guest.percent(98) == is_in { IN } else { OUT };
            let len = guest.nearly(len).min(0x4000);
            move_bytes(guest, base, kind, &mut toggles, buffer, len)?;
        }
        let told = guest.nearly(13).min(PACKET);
        move_bytes(guest, base, IN, &mut toggles, place, told)?;
    }
    if guest.percent(30) {
        control(guest, base, DISK, [0x21, 0xff, 0, 0, 0, 0, 0, 0])?;
    }
    Ok(())
}

/// The disk's address.
const DISK: u64 = 5;

/// A request without data to the default pipe.
fn control(guest: &mut Guest<'_>, base: u16, address: u64, request: [u8; 8]) -> Result<()> {
    let buffer = guest.place();
    guest.write(buffer, &request)?;
    let setup = Transaction { kind: SETUP, endpoint: 0, toggle: 0, buffer, len: 8 };
    let status = Transaction { kind: IN, endpoint: 0, toggle: 1, buffer, len: 0 };
    transact(guest, base, address, &[setup, status])
}

/// Moves bytes by the disk's endpoints: 1 sends, 2 receives.
fn move_bytes(
    guest: &mut Guest<'_>,
    base: u16,
    kind: u64,
    toggles: &mut [u64; 2],
    buffer: u64,
    len: u64,
) -> Result<()> {
    let (endpoint, toggle) = if kind == IN { (1, &mut toggles[0]) } else { (2, &mut toggles[1]) };
    let mut transactions = Vec::new();
    let mut at = 0;
    while at < len {
        let part = (len - at).min(PACKET);
        let (toggle, buffer) = (std::mem::replace(toggle, *toggle ^ 1), buffer + at);
        transactions.push(Transaction { kind, endpoint, toggle, buffer, len: part });
        at += part;
    }
    transact(guest, base, DISK, &transactions)
}

/// Has the controller do some transactions, in their order, and waits for them a while.
fn transact(
    guest: &mut Guest<'_>,
    base: u16,
    address: u64,
    transactions: &[Transaction],
) -> Result<()> {
    let Some(last) = transactions.len().checked_sub(1) else { return Ok(()) };
    let mut bytes = Bytes::default();
    for (index, transaction) in transactions.iter().enumerate() {
        let next = if index == last { 1 } else { (ORDERLY + 32 * (index as u64 + 1)) | 4 };
        let len = transaction.len.wrapping_sub(1) & 0x7ff;
        let token = transaction.kind
            | address << 8
            | transaction.endpoint << 15
            | transaction.toggle << 19
            | len << 21;
        // Active, with three tries.
        bytes = bytes.u32(next).u32(0x1880_0000).u32(token).u32(transaction.buffer).bytes(&[0; 16]);
    }
    guest.write(ORDERLY, &bytes.0)?;
    let frames: Vec<u8> = (0..1024).flat_map(|_| (ORDERLY as u32).to_le_bytes()).collect();
    guest.write(FRAMES, &frames)?;
    guest.output(base + 8, 4, FRAMES)?;
    guest.output(base, 2, 0xc1)?;
    for _ in 0..60 {
        guest.wait(1_000_000)?;
        if guest.load(ORDERLY + 32 * last as u64 + 4, 4)? & 0x0080_0000 == 0 {
            break;
        }
        // The disk works meanwhile.
        std::thread::sleep(Duration::from_micros(20));
    }
    guest.output(base + 2, 2, 0x3f)
}
