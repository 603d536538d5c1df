//! Who answers at an address, for agents that are no CPU and keep no host addresses.

use std::sync::Arc;

use crate::map::{Reads, Visible, Writes};
use crate::{GuestMemory, Mapping, MemoryBlock};

/// What an access outside of system management mode goes to.
#[derive(Debug)]
pub enum Backing {
    /// RAM at this address.
    Ram,
    /// A block, from this offset on.
    Block(Arc<MemoryBlock>, u64),
    /// The bus.
    Bus,
    /// Nothing: a write is lost.
    Nowhere,
}

impl GuestMemory {
    /// Where a read of the page that holds `addr` comes from.
    pub fn reads_at(&self, addr: u64) -> Backing {
        let layers = self.layers();
        match top(&layers.mappings, addr, |m| m.access.reads != Reads::Below) {
            Some(m) if m.access.reads == Reads::Block => in_block(m, addr),
            Some(_) => Backing::Bus,
            None => self.bottom(addr),
        }
    }

    /// Where a write to the page that holds `addr` goes.
    pub fn writes_at(&self, addr: u64) -> Backing {
        let layers = self.layers();
        match top(&layers.mappings, addr, |m| m.access.writes != Writes::Below) {
            Some(m) => match m.access.writes {
                Writes::Block => in_block(m, addr),
                Writes::Lost => Backing::Nowhere,
                Writes::Bus | Writes::Below => Backing::Bus,
            },
            None => self.bottom(addr),
        }
    }

    fn bottom(&self, addr: u64) -> Backing {
        if self.is_ram(addr) { Backing::Ram } else { Backing::Bus }
    }
}

fn in_block(mapping: &Mapping, addr: u64) -> Backing {
    Backing::Block(Arc::clone(&mapping.block), mapping.offset + (addr - mapping.start))
}

/// The mapping at `addr` that counts among those that `decide` it.
fn top(
    mappings: &[(crate::MapId, Mapping)],
    addr: u64,
    decide: impl Fn(&Mapping) -> bool,
) -> Option<&Mapping> {
    mappings
        .iter()
        .map(|(_, mapping)| mapping)
        .filter(|m| m.visible == Visible::Everyone && m.start <= addr && addr - m.start < m.len)
        .filter(|m| decide(m))
        // Among equals the last counts.
        .max_by_key(|m| m.priority)
}
