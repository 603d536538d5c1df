//! PCI functions found and switched on, as firmware does (PCI Local Bus 3.0, section 6.2.5).

use anyhow::Result;

use crate::guest::Guest;

/// Where memory BARs are put.
const MEMORY: u64 = 0xc000_0000;
/// Where port BARs are put.
const PORTS: u64 = 0x5000;

/// A stretch of addresses that a function answers to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bar {
    /// Which base address register it is.
    pub(crate) index: u8,
    /// Ports, not memory.
    pub(crate) is_ports: bool,
    pub(crate) start: u64,
    pub(crate) len: u64,
}

/// A function with its BARs.
#[derive(Clone, Debug)]
pub(crate) struct Function {
    pub(crate) devfn: u8,
    pub(crate) vendor: u16,
    pub(crate) device: u16,
    /// Base class and subclass.
    pub(crate) class: u16,
    pub(crate) bars: Vec<Bar>,
    /// Offset of each capability with its id.
    pub(crate) capabilities: Vec<(u8, u8)>,
}

impl Function {
    /// The BAR with this number.
    pub(crate) fn bar(&self, index: u8) -> Option<Bar> {
        self.bars.iter().find(|bar| bar.index == index).copied()
    }
}

/// Where the next BARs go.
struct Room {
    memory: u64,
    ports: u64,
}

impl Guest<'_> {
    /// Finds all functions, places their BARs and switches them on.
    pub(crate) fn find_functions(&mut self) -> Result<()> {
        self.functions.clear();
        let mut room = Room { memory: MEMORY, ports: PORTS };
        for devfn in 0..=255 {
            let id = self.read_config(devfn, 0, 4)?;
            if id == u32::MAX {
                continue;
            }
            let function = self.switch_on(devfn, id, &mut room)?;
            self.functions.push(function);
        }
        Ok(())
    }

    /// Puts the BARs of a function back in their places, and switches it on.
    pub(crate) fn settle(&mut self, function: &Function) -> Result<()> {
        for bar in &function.bars {
            let offset = 0x10 + 4 * bar.index;
            self.write_config(function.devfn, offset, 4, bar.start)?;
        }
        self.write_config(function.devfn, 4, 2, 7)
    }

    fn switch_on(&mut self, devfn: u8, id: u32, room: &mut Room) -> Result<Function> {
        self.write_config(devfn, 4, 2, 0)?;
        let mut bars = Vec::new();
        let mut index = 0;
        while index < 6 {
            let offset = 0x10 + 4 * index;
            self.write_config(devfn, offset, 4, 0xffff_ffff)?;
            let mask = self.read_config(devfn, offset, 4)?;
            let is_ports = mask & 1 != 0;
            let is_wide = mask & 7 == 4;
            let size = !(mask & if is_ports { !3 } else { !15 }) as u64 + 1;
            if mask != 0 && size <= 1 << 28 {
                let next = if is_ports { &mut room.ports } else { &mut room.memory };
                let start = next.next_multiple_of(size);
                *next = start + size;
                self.write_config(devfn, offset, 4, start)?;
                if is_wide {
                    self.write_config(devfn, offset + 4, 4, 0)?;
                }
                let len = if is_ports { size & 0xffff } else { size };
                bars.push(Bar { index, is_ports, start, len });
            }
            index += if is_wide { 2 } else { 1 };
        }
        self.write_config(devfn, 4, 2, 7)?;
        let class = (self.read_config(devfn, 8, 4)? >> 16) as u16;
        let capabilities = self.capabilities(devfn)?;
        let (vendor, device) = (id as u16, (id >> 16) as u16);
        Ok(Function { devfn, vendor, device, class, bars, capabilities })
    }

    fn capabilities(&mut self, devfn: u8) -> Result<Vec<(u8, u8)>> {
        let mut found = Vec::new();
        if self.read_config(devfn, 6, 2)? & 0x10 == 0 {
            return Ok(found);
        }
        let mut offset = self.read_config(devfn, 0x34, 1)? as u8;
        while offset >= 0x40 && found.len() < 48 {
            let header = self.read_config(devfn, offset & 0xfc, 2)?;
            found.push((offset & 0xfc, header as u8));
            offset = (header >> 8) as u8;
        }
        Ok(found)
    }
}
