//! The map of guest physical memory as CPUs see it.
//!
//! RAM is where it is; over it lie [`Mapping`]s of [`MemoryBlock`]s, which come and go at run time as
//! the guest programs the chipset. Each says for reads and for writes on its own whether they go to its
//! block, to the bus, or to what lies below, which is all it takes for ROM, flash, shadow RAM in its
//! four states, and memory for system management mode alone.
//!
//! Where mappings overlap, the one with the highest priority counts; among equals the one mapped last.
//! The result is kept as a sorted table for each of the two views (in and outside system management
//! mode), which readers load without a lock. A change replaces the tables and then calls the hook.
//!
//! Devices do not look here: their DMA sees RAM only.

use std::sync::Arc;

use crate::{HostPage, MemoryBlock, PAGE_SHIFT, PAGE_SIZE, PageLog};

/// Where reads of a mapping go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// To its block, instruction fetches too.
    Block,
    /// To the bus.
    Bus,
    /// To what lies below.
    Below,
}

/// Where writes to a mapping go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    /// To its block.
    Block,
    /// To the bus.
    Bus,
    /// Nowhere.
    Lost,
    /// To what lies below.
    Below,
}

/// What a mapping does with accesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Reads and instruction fetches.
    pub reads: Reads,
    /// Writes.
    pub writes: Writes,
}

impl Access {
    /// Memory.
    pub const RAM: Self = Self { reads: Reads::Block, writes: Writes::Block };
    /// Writes change nothing.
    pub const ROM: Self = Self { reads: Reads::Block, writes: Writes::Lost };
    /// Read and executed directly, writes are a device's commands: flash.
    pub const ROM_DEVICE: Self = Self { reads: Reads::Block, writes: Writes::Bus };
    /// As if neither the block nor anything below were there.
    pub const BUS: Self = Self { reads: Reads::Bus, writes: Writes::Bus };
}

/// Who sees a mapping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Visible {
    /// Every CPU.
    #[default]
    Everyone,
    /// CPUs in system management mode.
    Smm,
}

/// A block, or a part of one, at a guest physical address. All numbers are multiples of [`PAGE_SIZE`]:
/// anything smaller is for the bus.
#[derive(Clone, Debug)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// The memory.
    pub block: Arc<MemoryBlock>,
    /// Where in the block `start` is, in bytes.
    pub offset: u64,
    /// What is done with accesses.
    pub access: Access,
    /// Who sees it.
    pub visible: Visible,
    /// The highest counts.
    pub priority: i32,
}

/// Identifies a mapping, to take it away again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MapId(pub(crate) u64);

impl Mapping {
    /// All of `block` at `start` for every CPU, at priority 0.
    pub fn new(start: u64, block: &Arc<MemoryBlock>, access: Access) -> Self {
        Self {
            start,
            len: block.len(),
            block: Arc::clone(block),
            offset: 0,
            access,
            visible: Visible::Everyone,
            priority: 0,
        }
    }

    pub(crate) fn is_sound(&self) -> bool {
        let aligned = (self.start | self.len | self.offset).is_multiple_of(PAGE_SIZE);
        let in_block = self.offset.checked_add(self.len).is_some_and(|end| end <= self.block.len());
        aligned && in_block && self.len > 0 && self.start.checked_add(self.len - 1).is_some()
    }
}

/// Memory on the host from a stretch's first page on.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    /// Address on the host.
    pub(crate) addr: usize,
    pub(crate) log: PageLog,
    /// Index of the first page in `log`.
    pub(crate) page: usize,
}

impl Host {
    /// This memory from `offset` bytes on, a multiple of the page size.
    fn at(&self, offset: u64) -> Self {
        Self {
            addr: self.addr + offset as usize,
            log: self.log.clone(),
            page: self.page + (offset >> PAGE_SHIFT) as usize,
        }
    }
}

/// Where the writes of a stretch go.
#[derive(Clone, Debug)]
pub(crate) enum Sink {
    Host(Host),
    Bus,
    Lost,
}

/// A range of addresses where the same holds for all pages.
#[derive(Clone, Debug)]
pub(crate) struct Stretch {
    start: u64,
    last: u64,
    /// `None`: the bus.
    read: Option<Host>,
    write: Sink,
}

/// RAM, at the bottom of everything.
#[derive(Debug)]
pub(crate) struct Ram {
    pub(crate) start: u64,
    pub(crate) last: u64,
    pub(crate) host: Host,
}

/// How writes to a page go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WritePath {
    /// To the memory that reads come from.
    Direct,
    /// To the bus.
    Bus,
    /// Elsewhere: ask [`crate::GuestMemory::write_target`] at each write.
    Other,
}

/// What a page is to a CPU.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// Where it reads from; `None` for the bus.
    pub host: Option<HostPage>,
    /// Where writes go.
    pub writes: WritePath,
}

/// Where a write goes.
#[derive(Clone, Copy, Debug)]
pub enum WriteTarget {
    /// To this page on the host.
    Host(HostPage),
    /// To the bus.
    Bus,
    /// Nowhere.
    Lost,
}

/// What one view sees, in the order of addresses.
#[derive(Debug, Default)]
pub(crate) struct View(Vec<Stretch>);

/// What is seen in and outside of system management mode.
#[derive(Debug, Default)]
pub(crate) struct Map {
    views: [View; 2],
}

impl Map {
    pub(crate) fn new(ram: &[Ram], mappings: &[(MapId, Mapping)]) -> Self {
        let everyone = |mapping: &Mapping| mapping.visible == Visible::Everyone;
        Self { views: [View::new(ram, mappings, everyone), View::new(ram, mappings, |_| true)] }
    }

    pub(crate) fn view(&self, smm: bool) -> &View {
        &self.views[usize::from(smm)]
    }
}

fn page_in(host: &Host, within: u64) -> HostPage {
    HostPage { ptr: (host.addr + within as usize) as *mut u8 }
}

impl View {
    /// Cuts all ranges at each other's ends and settles who counts in each piece.
    fn new(ram: &[Ram], mappings: &[(MapId, Mapping)], is_seen: impl Fn(&Mapping) -> bool) -> Self {
        let mut seen: Vec<&Mapping> =
            mappings.iter().map(|(_, mapping)| mapping).filter(|m| is_seen(m)).collect();
        // From the top down; of equals, which are in order of their coming, the last first.
        seen.reverse();
        seen.sort_by_key(|m| std::cmp::Reverse(m.priority));
        let mut cuts: Vec<u64> = Vec::new();
        let ranges = seen.iter().map(|m| (m.start, m.start + (m.len - 1)));
        for (start, last) in ranges.chain(ram.iter().map(|r| (r.start, r.last))) {
            cuts.push(start);
            cuts.extend(last.checked_add(1));
        }
        cuts.sort_unstable();
        cuts.dedup();
        let mut stretches = Vec::with_capacity(cuts.len());
        for (i, &start) in cuts.iter().enumerate() {
            let here = |first: u64, last: u64| first <= start && start <= last;
            let over: Vec<&Mapping> =
                seen.iter().copied().filter(|m| here(m.start, m.start + (m.len - 1))).collect();
            let below = ram.iter().find(|r| here(r.start, r.last));
            if over.is_empty() && below.is_none() {
                continue;
            }
            let last = cuts.get(i + 1).map_or(u64::MAX, |next| next - 1);
            let below = below.map(|r| r.host.at(start - r.start));
            let in_block = |m: &Mapping| {
                let offset = m.offset + (start - m.start);
                Host { addr: m.block.host_addr(), log: m.block.log().clone(), page: 0 }.at(offset)
            };
            let read = match over.iter().find(|m| m.access.reads != Reads::Below) {
                Some(m) if m.access.reads == Reads::Block => Some(in_block(m)),
                Some(_) => None,
                None => below.clone(),
            };
            let write = match over.iter().find(|m| m.access.writes != Writes::Below) {
                Some(m) => match m.access.writes {
                    Writes::Block => Sink::Host(in_block(m)),
                    Writes::Lost => Sink::Lost,
                    Writes::Bus | Writes::Below => Sink::Bus,
                },
                None => below.map_or(Sink::Bus, Sink::Host),
            };
            stretches.push(Stretch { start, last, read, write });
        }
        Self(stretches)
    }

    /// The stretch that `addr` is in, and the offset in bytes of its page there.
    fn find(&self, addr: u64) -> Option<(&Stretch, u64)> {
        let after = self.0.partition_point(|s| s.start <= addr);
        let stretch = self.0[..after].last().filter(|s| addr <= s.last)?;
        Some((stretch, (addr - stretch.start) & !(PAGE_SIZE - 1)))
    }

    /// The page that `addr` is in.
    pub(crate) fn page(&self, addr: u64) -> Page {
        let Some((stretch, within)) = self.find(addr) else {
            return Page { host: None, writes: WritePath::Bus };
        };
        let writes = match (&stretch.read, &stretch.write) {
            (Some(read), Sink::Host(write)) if read.addr == write.addr => WritePath::Direct,
            (_, Sink::Bus) => WritePath::Bus,
            _ => WritePath::Other,
        };
        Page { host: stretch.read.as_ref().map(|host| page_in(host, within)), writes }
    }

    /// Where writes to the page that `addr` is in go.
    pub(crate) fn write_target(&self, addr: u64) -> WriteTarget {
        match self.find(addr) {
            Some((Stretch { write: Sink::Host(host), .. }, within)) => {
                WriteTarget::Host(page_in(host, within))
            }
            Some((Stretch { write: Sink::Lost, .. }, _)) => WriteTarget::Lost,
            _ => WriteTarget::Bus,
        }
    }

    /// The log and index of the page that reads at `addr` come from.
    pub(crate) fn read_log(&self, addr: u64) -> Option<(&PageLog, usize)> {
        let (stretch, within) = self.find(addr)?;
        let host = stretch.read.as_ref()?;
        Some((&host.log, host.page + (within >> PAGE_SHIFT) as usize))
    }

    /// The log and index of the page that writes at `addr` go to.
    pub(crate) fn write_log(&self, addr: u64) -> Option<(&PageLog, usize)> {
        let (stretch, within) = self.find(addr)?;
        let Sink::Host(host) = &stretch.write else { return None };
        Some((&host.log, host.page + (within >> PAGE_SHIFT) as usize))
    }
}
