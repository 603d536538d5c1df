//! What the guest does, one file a kind of device. Structures are mostly well formed, so that what is
//! behind the first check is reached too.

mod ahci;
mod ata;
mod chipset;
mod floppy;
mod scsi;
mod uhci;
mod user;
mod vga;
mod virtio;

use anyhow::Result;

use crate::guest::Guest;
use crate::pci::Function;

/// Does one thing.
pub(crate) fn one(guest: &mut Guest<'_>) -> Result<()> {
    match guest.within(0..=19) {
        0 => chipset::one(guest),
        1 => chipset::time(guest),
        2 => config(guest),
        3 => floppy::one(guest),
        4 => ata::one(guest),
        5 => vga::one(guest),
        6 => user::one(guest),
        7 => blind(guest),
        _ => {
            let Some(function) = busy_function(guest) else { return blind(guest) };
            if guest.percent(5) {
                return bar(guest, &function);
            }
            match (function.vendor, function.class) {
                (0x1af4, _) if function.device >= 0x1000 => virtio::one(guest, &function),
                (_, 0x0106) => ahci::one(guest, &function),
                (_, 0x0c03) => uhci::one(guest, &function),
                (_, 0x0101) => ata::bus_master(guest, &function),
                (_, 0x0300 | 0x0380) => vga::card(guest, &function),
                _ => bar(guest, &function),
            }
        }
    }
}

/// A function to give work to. Behind some are drives: they have more turns, as much has to be right before
/// a command gets to one.
fn busy_function(guest: &mut Guest<'_>) -> Option<Function> {
    const STORAGE: u16 = 1;
    let has_drives = |function: &&Function| function.class >> 8 == STORAGE;
    let with_drives: Vec<Function> = guest.functions.iter().filter(has_drives).cloned().collect();
    if with_drives.is_empty() || guest.percent(50) {
        return any_function(guest);
    }
    let index = guest.within(0..=with_drives.len() as u64 - 1) as usize;
    with_drives.into_iter().nth(index)
}

fn any_function(guest: &mut Guest<'_>) -> Option<Function> {
    let count = guest.functions.len().checked_sub(1)?;
    let index = guest.within(0..=count as u64) as usize;
    Some(guest.functions[index].clone())
}

/// An access to any BAR of a function: what is in it is unknown.
fn bar(guest: &mut Guest<'_>, function: &Function) -> Result<()> {
    if function.bars.is_empty() {
        return Ok(());
    }
    let bar = guest.pick(&function.bars);
    for _ in 0..guest.within(1..=8) {
        let offset = match guest.within(0..=3) {
            0 => guest.within(0..=bar.len.max(1) - 1),
            _ => guest.within(0..=bar.len.clamp(1, 0x100) - 1),
        };
        let size = guest.pick(&[1, 2, 4, 8]);
        let write = guest.percent(70);
        match (bar.is_ports, write) {
            (true, true) => {
                let value = guest.value();
                guest.output((bar.start + offset) as u16, size.min(4), value)?;
            }
            (true, false) => drop(guest.input((bar.start + offset) as u16, size.min(4))?),
            (false, true) => {
                let value = if guest.percent(30) { guest.address() } else { guest.value() };
                guest.store(bar.start + offset, size, value)?;
            }
            (false, false) => drop(guest.load(bar.start + offset, size)?),
        }
    }
    Ok(())
}

/// An access to configuration space.
fn config(guest: &mut Guest<'_>) -> Result<()> {
    let Some(function) = any_function(guest) else { return Ok(()) };
    let offset = match guest.within(0..=2) {
        0 => guest.any(),
        1 => guest.within(0..=0x3f) as u8,
        _ => match function.capabilities.as_slice() {
            [] => 4,
            capabilities => {
                let (at, _) = guest.pick(capabilities);
                at.wrapping_add(guest.within(0..=19) as u8)
            }
        },
    };
    let size = guest.pick(&[1, 2, 4]);
    let offset = offset & !(size - 1);
    let value = guest.value();
    guest.write_config(function.devfn, offset, size, value)?;
    guest.read_config(function.devfn, offset, size)?;
    // Most of what comes needs the function.
    if guest.percent(90) { guest.settle(&function) } else { Ok(()) }
}

/// An access to anywhere.
fn blind(guest: &mut Guest<'_>) -> Result<()> {
    let size = guest.pick(&[1, 2, 4, 8]);
    match guest.within(0..=4) {
        0 => {
            let (port, value) = (guest.any(), guest.value());
            guest.output(port, size.min(4), value)
        }
        1 => {
            let port = guest.any();
            guest.input(port, size.min(4)).map(drop)
        }
        2 => {
            let (addr, value) = (guest.address(), guest.value());
            guest.store(addr, size, value)
        }
        3 => {
            let addr = guest.address();
            guest.load(addr, size).map(drop)
        }
        _ => {
            let (addr, len, byte) = (guest.address(), guest.within(1..=0x1000), guest.any());
            guest.fill(addr, len, byte)
        }
    }
}

/// The data of a command.
enum Payload {
    /// Whatever.
    Any,
    /// So many bytes from the device.
    In(u64),
    /// So many bytes to the device, whatever they are.
    Out(u64),
    /// These, to the device.
    Bytes(Vec<u8>),
}

impl Payload {
    /// Whether the device writes the data.
    fn is_in(&self, guest: &mut Guest<'_>) -> bool {
        match self {
            Self::Any => guest.any(),
            Self::In(_) => true,
            Self::Out(_) | Self::Bytes(_) => false,
        }
    }

    fn len(&self, guest: &mut Guest<'_>) -> u64 {
        match self {
            Self::Any => guest.data().1,
            Self::In(len) | Self::Out(len) => *len,
            Self::Bytes(bytes) => bytes.len() as u64,
        }
    }

    /// Where the data is to be in memory: addresses and lengths, one to three of them. What the device
    /// is to read is there then.
    fn place(&self, guest: &mut Guest<'_>) -> Result<Vec<(u64, u64)>> {
        if matches!(self, Self::Any) {
            return Ok((0..guest.within(0..=2)).map(|_| guest.data()).collect());
        }
        let mut left = self.len(guest);
        let mut pieces = Vec::new();
        let mut done = 0;
        while left > 0 && pieces.len() < 3 {
            let address = if guest.percent(95) { guest.place() } else { guest.address() };
            let is_last = pieces.len() == 2 || guest.percent(60);
            let len = if is_last { left } else { guest.within(1..=left) };
            if let Self::Bytes(bytes) = self {
                guest.write(address, &bytes[done..done + len as usize])?;
            }
            pieces.push((address, guest.nearly(len)));
            done += len as usize;
            left -= len;
        }
        Ok(pieces)
    }
}

/// Bytes of a structure under way, little-endian.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn u8(mut self, value: u64) -> Self {
        self.0.push(value as u8);
        self
    }
    fn u16(mut self, value: u64) -> Self {
        self.0.extend((value as u16).to_le_bytes());
        self
    }
    fn u32(mut self, value: u64) -> Self {
        self.0.extend((value as u32).to_le_bytes());
        self
    }
    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }
    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }
}
