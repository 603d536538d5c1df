//! Guest physical memory.
//!
//! [`GuestMemory`] owns the RAM of one machine: anonymous mappings of the host (crate `vm-memory`),
//! each with a [`PageLog`] that remembers, page by page, what was written and which pages a software
//! CPU has decoded instructions from. Devices read and write it by guest physical address with
//! [`GuestMemory::read`], [`GuestMemory::write`] or, for virtqueues, through [`GuestMemory::view`].
//!
//! It also owns what else there is of memory: [`MemoryBlock`]s, and where CPUs see them ([`map`]).
//!
//! Invariants:
//! - The set of RAM ranges is fixed for the life of the object, and blocks live as long as it does, so
//!   a host address obtained from it stays valid as long as an `Arc<GuestMemory>` is held.
//! - Every write by a device goes through `vm-memory` and so through the page log; a CPU that writes
//!   by host address calls [`PageLog::note_write`] itself, unless the page's state lets it skip that.

mod advice;
mod backing;
mod block;
mod hook;
mod lens;
pub mod map;
mod page_log;

pub use advice::HostAdvice;
pub use backing::Backing;
pub use block::MemoryBlock;
pub use hook::Change;
pub use lens::Lens;
pub use map::{Access, MapId, Mapping, Page, Reads, Visible, WritePath, WriteTarget, Writes};
pub use page_log::{CodeVersion, CodeWatcher, PAGE_SHIFT, PAGE_SIZE, PageLog};
pub use vm_memory;

use std::sync::{Arc, Mutex, MutexGuard};

use arc_swap::ArcSwap;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

/// The view that `vm-memory` and `virtio-queue`-style code works on.
pub type MemoryView = GuestMemoryMmap<PageLog>;

/// Why memory could not be created or reached.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host refused the mapping.
    #[error("cannot set up guest memory of {bytes} bytes: {reason}")]
    Create {
        /// Sum of all ranges, in bytes.
        bytes: u64,
        /// What the host said.
        reason: String,
    },
    /// Part of the range is not RAM.
    #[error("guest physical range {addr:#x}+{len:#x} is not RAM")]
    NotRam {
        /// First byte, a guest physical address.
        addr: u64,
        /// Length in bytes.
        len: usize,
    },
    /// A block does not have these bytes.
    #[error("memory '{name}' ends before {offset:#x}+{len:#x}")]
    OutsideBlock {
        /// The block's name.
        name: String,
        /// Offset of the first byte.
        offset: u64,
        /// Length in bytes.
        len: usize,
    },
    /// A mapping is not of whole pages, runs past its block, or past the end of all addresses.
    #[error("cannot map '{name}' at {start:#x}+{len:#x}")]
    Map {
        /// The block's name.
        name: String,
        /// First address.
        start: u64,
        /// Length in bytes.
        len: u64,
    },
    /// The host would not take pages back.
    #[error("cannot give the pages at guest physical {addr:#x} back to the host: {source}")]
    Discard {
        /// First byte, a guest physical address.
        addr: u64,
        /// What the host said.
        source: std::io::Error,
    },
}

/// One page of guest memory as the host sees it. The pointer is valid for [`PAGE_SIZE`] bytes while the
/// [`GuestMemory`] that it came from lives.
#[derive(Clone, Copy, Debug)]
pub struct HostPage {
    /// Host address of the page's first byte.
    pub ptr: *mut u8,
}

/// What [`map::Map`] is made from.
#[derive(Debug, Default)]
struct Layers {
    ram: Vec<map::Ram>,
    mappings: Vec<(MapId, Mapping)>,
    last_id: u64,
    blocks: Vec<Arc<MemoryBlock>>,
}

/// All memory of a machine.
#[derive(Debug)]
pub struct GuestMemory {
    view: MemoryView,
    layers: Mutex<Layers>,
    map: Arc<ArcSwap<map::Map>>,
    hook: Arc<hook::ChangeHook>,
}

impl GuestMemory {
    /// Maps `ranges`, each a guest physical start and a length in bytes, both page-aligned.
    ///
    /// # Errors
    /// [`MemoryError::Create`] if ranges overlap or the host has no room.
    pub fn new(ranges: &[(u64, u64)]) -> Result<Self, MemoryError> {
        let bytes = ranges.iter().map(|r| r.1).sum();
        // The log is allocated by `vm-memory`, which has no way to say that it can't be.
        for &(_, len) in ranges {
            page_log::check_room(len).map_err(|reason| MemoryError::Create { bytes, reason })?;
        }
        let mapped: Vec<_> =
            ranges.iter().map(|&(start, len)| (GuestAddress(start), len as usize)).collect();
        let view = MemoryView::from_ranges(&mapped)
            .map_err(|e| MemoryError::Create { bytes, reason: e.to_string() })?;
        let ram = view.iter().map(|region: &GuestRegionMmap<PageLog>| map::Ram {
            start: region.start_addr().0,
            last: region.last_addr().0,
            host: map::Host {
                addr: region.as_ptr() as usize,
                log: region.bitmap_ref().clone(),
                page: 0,
            },
        });
        let layers = Layers { ram: ram.collect(), ..Layers::default() };
        let map = Arc::new(ArcSwap::from_pointee(map::Map::new(&layers.ram, &[])));
        let memory = Self { view, layers: Mutex::new(layers), map, hook: Arc::default() };
        // A guest reaches its memory at random, and each page that it uses the first time is a fault on
        // the host. A host without large pages says so here, and there is nothing to be done.
        let _ = memory.advise(HostAdvice::LargePages);
        Ok(memory)
    }

    /// The memory as `vm-memory` sees it.
    pub fn view(&self) -> &MemoryView {
        &self.view
    }

    /// Sum of all RAM, in bytes.
    pub fn size(&self) -> u64 {
        self.view.iter().map(|r| r.len()).sum()
    }

    /// Whether the byte at `addr` is RAM.
    pub fn is_ram(&self, addr: u64) -> bool {
        self.view.address_in_range(GuestAddress(addr))
    }

    /// Reads `buf.len()` bytes at guest physical `addr`.
    ///
    /// # Errors
    /// [`MemoryError::NotRam`] if any byte is outside RAM; `buf` may then be partly filled.
    pub fn read(&self, addr: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        let len = buf.len();
        self.view.read_slice(buf, GuestAddress(addr)).map_err(|_| MemoryError::NotRam { addr, len })
    }

    /// Writes `data` at guest physical `addr` and notes the pages as written.
    ///
    /// # Errors
    /// [`MemoryError::NotRam`] if any byte is outside RAM; what came before it is then written.
    pub fn write(&self, addr: u64, data: &[u8]) -> Result<(), MemoryError> {
        self.view
            .write_slice(data, GuestAddress(addr))
            .map_err(|_| MemoryError::NotRam { addr, len: data.len() })
    }

    /// Writes `len` zeroes from guest physical `addr` on.
    ///
    /// # Errors
    /// [`MemoryError::NotRam`] if any byte is outside RAM; what came before it is then zero.
    pub fn write_zeroes(&self, addr: u64, len: u64) -> Result<(), MemoryError> {
        let zeroes = [0; PAGE_SIZE as usize];
        let mut done = 0;
        while done < len {
            let part = (len - done).min(PAGE_SIZE);
            self.write(addr.wrapping_add(done), &zeroes[..part as usize])?;
            done += part;
        }
        Ok(())
    }

    /// The page log that covers `addr`, and the page's index in it, if `addr` is RAM.
    pub fn page_log(&self, addr: u64) -> Option<(&PageLog, usize)> {
        let (region, offset) = self.view.to_region_addr(GuestAddress(addr))?;
        let region: &GuestRegionMmap<PageLog> = region;
        Some((region.bitmap_ref(), (offset.0 >> PAGE_SHIFT) as usize))
    }
}

/// Memory as CPUs see it: RAM with blocks mapped over it. `smm` says that the CPU is in system
/// management mode.
impl GuestMemory {
    /// Makes a block of `len` bytes, a multiple of [`PAGE_SIZE`], called `name`. It is kept as long as
    /// `self`.
    ///
    /// # Errors
    /// [`MemoryError::Create`] if `len` won't do or the host has no room.
    pub fn allocate(&self, name: &str, len: u64) -> Result<Arc<MemoryBlock>, MemoryError> {
        let block = MemoryBlock::new(name, len, Arc::clone(&self.hook))?;
        self.layers().blocks.push(Arc::clone(&block));
        Ok(block)
    }

    /// Maps a block. CPUs see it before their next instruction.
    ///
    /// # Errors
    /// [`MemoryError::Map`] if the mapping is not what [`Mapping`] asks for.
    pub fn map(&self, mapping: Mapping) -> Result<MapId, MemoryError> {
        let ids = self.remap(&[], vec![mapping])?;
        Ok(ids[0])
    }

    /// Takes a mapping away.
    pub fn unmap(&self, id: MapId) {
        self.remap(&[id], Vec::new()).expect("nothing is mapped");
    }

    /// Replaces the mappings `old` by `new` in one step; returns the ids of the new ones.
    ///
    /// # Errors
    /// [`MemoryError::Map`] if one of `new` is not what [`Mapping`] asks for; nothing is then changed.
    pub fn remap(&self, old: &[MapId], new: Vec<Mapping>) -> Result<Vec<MapId>, MemoryError> {
        let mut layers = self.layers();
        if let Some(bad) = new.iter().find(|mapping| !mapping.is_sound()) {
            let name = bad.block.name().to_owned();
            return Err(MemoryError::Map { name, start: bad.start, len: bad.len });
        }
        layers.mappings.retain(|(id, _)| !old.contains(id));
        let mut ids = Vec::with_capacity(new.len());
        for mapping in new {
            layers.last_id += 1;
            let id = MapId(layers.last_id);
            layers.mappings.push((id, mapping));
            ids.push(id);
        }
        self.map.store(Arc::new(map::Map::new(&layers.ram, &layers.mappings)));
        drop(layers);
        self.hook.call(Change::Map);
        Ok(ids)
    }

    /// Has `hook` called after each change, on the thread that made it.
    pub fn set_change_hook(&self, hook: impl Fn(Change) + Send + Sync + 'static) {
        self.hook.set(Box::new(hook));
    }

    /// What the page that holds `addr` is to a CPU.
    pub fn page(&self, addr: u64, smm: bool) -> Page {
        self.map.load().view(smm).page(addr)
    }

    /// Where a write within the page that holds `addr` goes.
    pub fn write_target(&self, addr: u64, smm: bool) -> WriteTarget {
        self.map.load().view(smm).write_target(addr)
    }

    /// The log of the page that reads at `addr` come from, and its index there; `None` for the bus.
    pub fn code_log(&self, addr: u64, smm: bool) -> Option<(PageLog, usize)> {
        let map = self.map.load();
        let (log, page) = map.view(smm).read_log(addr)?;
        Some((log.clone(), page))
    }

    /// The map for one CPU, to ask it often.
    pub fn lens(&self) -> Lens {
        Lens::new(&self.map)
    }

    fn layers(&self) -> MutexGuard<'_, Layers> {
        self.layers.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl GuestMemory {
    /// Tells the host something about all RAM.
    ///
    /// # Errors
    /// What the host says if it does not want to know.
    pub fn advise(&self, advice: HostAdvice) -> std::io::Result<()> {
        for region in self.view.iter() {
            let slice = region.as_volatile_slice().map_err(std::io::Error::other)?;
            advice::advise(&slice, advice)?;
        }
        Ok(())
    }

    /// Gives the whole pages `addr..addr + len` back to the host: they read as zero from now on, take no
    /// memory until they are used again, and count as written.
    ///
    /// # Errors
    /// [`MemoryError::NotRam`] if any of it is outside RAM or not whole pages; nothing is then given
    /// back. [`MemoryError::Discard`] if the host refuses.
    pub fn discard(&self, addr: u64, len: u64) -> Result<(), MemoryError> {
        let bytes = usize::try_from(len).unwrap_or(usize::MAX);
        let not_ram = || MemoryError::NotRam { addr, len: bytes };
        let whole = addr.is_multiple_of(PAGE_SIZE) && len.is_multiple_of(PAGE_SIZE);
        if !whole || !GuestMemoryBackend::check_range(&self.view, GuestAddress(addr), bytes) {
            return Err(not_ram());
        }
        for slice in GuestMemoryBackend::get_slices(&self.view, GuestAddress(addr), bytes) {
            let slice = slice.map_err(|_| not_ram())?;
            advice::discard(&slice).map_err(|source| MemoryError::Discard { addr, source })?;
        }
        Ok(())
    }
}

/// Access to a region's page log; a trait so that the log's type stays private to `vm-memory`'s shape.
trait RegionLog {
    fn bitmap_ref(&self) -> &PageLog;
}

impl RegionLog for GuestRegionMmap<PageLog> {
    fn bitmap_ref(&self) -> &PageLog {
        (**self).bitmap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_what_was_written_and_refuses_holes() {
        let memory = GuestMemory::new(&[(0, 0x10000), (0x10_0000, 0x10000)]).unwrap();
        memory.write(0xfffc, &[1, 2, 3, 4]).unwrap();
        let mut buf = [0; 4];
        memory.read(0xfffc, &mut buf).unwrap();
        assert_eq!(buf, [1, 2, 3, 4]);
        assert!(memory.write(0xfffd, &[0; 4]).is_err());
        assert!(memory.read(u64::MAX, &mut buf).is_err());
        assert_eq!(memory.size(), 0x20000);
    }

    #[test]
    fn discarded_pages_read_as_zero_and_count_as_written() {
        let memory = GuestMemory::new(&[(0, 0x10000)]).unwrap();
        memory.write(0x2000, &[7; 0x3000]).unwrap();
        let (log, page) = memory.page_log(0x3000).unwrap();
        let (before, _) = log.mark_code(page);
        memory.discard(0x3000, 0x1000).unwrap();
        let mut buf = [1; 3];
        memory.read(0x2fff, &mut buf).unwrap();
        assert_eq!(buf, [7, 0, 0]);
        memory.read(0x3fff, &mut buf).unwrap();
        assert_eq!(buf, [0, 7, 7]);
        assert_ne!(log.code_version(page), before);
        assert!(memory.discard(0x3800, 0x1000).is_err());
        assert!(memory.discard(0xf000, 0x2000).is_err());
        assert!(memory.discard(!0xfff, 0x2000).is_err());
    }

    #[test]
    fn a_device_write_changes_the_version_of_a_code_page() {
        let memory = GuestMemory::new(&[(0, 0x10000)]).unwrap();
        let (log, page) = memory.page_log(0x3123).unwrap();
        let (before, _) = log.mark_code(page);
        memory.write(0x2ffe, &[0; 4]).unwrap();
        assert_ne!(log.code_version(page), before);
        let (_, other) = memory.page_log(0x5000).unwrap();
        assert!(!log.is_code(other));
    }
}
