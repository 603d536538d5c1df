//! Address spaces: which device answers where.
//!
//! An [`AddressSpace`] maps ranges of addresses to devices. Lookups happen on every port and MMIO
//! access of every vCPU, so readers take no lock: they load an immutable sorted table (`arc-swap`).
//! Changes (a guest moving a PCI BAR) replace the table.
//!
//! Where ranges overlap the one with the higher priority answers; among equals the one mapped first.
//! An access goes to the device that owns its first byte; it may be cut at the end of that device's
//! range by the caller only if the device asks for it (none does today).

use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;

/// Something that answers reads and writes. Offsets count from the start of the mapped range; `size`
/// is 1, 2, 4 or 8 bytes; values sit in the low bytes.
pub trait BusDevice: Send + Sync {
    /// Reads `size` bytes at `offset`.
    fn read(&self, offset: u64, size: u8) -> u64;
    /// Writes the low `size` bytes of `value` at `offset`.
    fn write(&self, offset: u64, size: u8, value: u64);
}

/// Identifies one mapping, to take it away again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MappingId(u64);

/// Why a range could not be mapped.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("range {start:#x}+{len:#x} is empty or runs past the end of the address space")]
pub struct MapError {
    /// First address.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
}

#[derive(Clone)]
struct Mapping {
    id: MappingId,
    start: u64,
    last: u64,
    priority: i32,
    device: Arc<dyn BusDevice>,
}

/// One stretch of the flattened table: no two overlap.
#[derive(Clone)]
struct Stretch {
    start: u64,
    last: u64,
    /// Offset of `start` in the device's range.
    offset: u64,
    device: Arc<dyn BusDevice>,
}

#[derive(Default)]
struct Mappings {
    next_id: u64,
    all: Vec<Mapping>,
}

/// A space of ports or memory addresses.
pub struct AddressSpace {
    mappings: Mutex<Mappings>,
    flat: ArcSwap<Vec<Stretch>>,
}

impl Default for AddressSpace {
    fn default() -> Self {
        Self { mappings: Mutex::default(), flat: ArcSwap::from_pointee(Vec::new()) }
    }
}

impl AddressSpace {
    /// An empty space.
    pub fn new() -> Self {
        Self::default()
    }

    /// Maps `len` bytes from `start` on to `device`, at priority 0.
    ///
    /// # Errors
    /// If the range is empty or wraps around.
    pub fn map(
        &self,
        start: u64,
        len: u64,
        device: Arc<dyn BusDevice>,
    ) -> Result<MappingId, MapError> {
        self.map_with_priority(start, len, 0, device)
    }

    /// Maps with a priority: the highest answers where ranges overlap.
    ///
    /// # Errors
    /// If the range is empty or wraps around.
    pub fn map_with_priority(
        &self,
        start: u64,
        len: u64,
        priority: i32,
        device: Arc<dyn BusDevice>,
    ) -> Result<MappingId, MapError> {
        let last =
            len.checked_sub(1).and_then(|n| start.checked_add(n)).ok_or(MapError { start, len })?;
        let mut mappings = self.lock();
        let id = MappingId(mappings.next_id);
        mappings.next_id += 1;
        mappings.all.push(Mapping { id, start, last, priority, device });
        self.flat.store(Arc::new(flatten(&mappings.all)));
        Ok(id)
    }

    /// Takes a mapping away. Accesses under way still finish.
    pub fn unmap(&self, id: MappingId) {
        let mut mappings = self.lock();
        mappings.all.retain(|m| m.id != id);
        self.flat.store(Arc::new(flatten(&mappings.all)));
    }

    /// Reads; `None` if nothing answers there.
    pub fn read(&self, addr: u64, size: u8) -> Option<u64> {
        let flat = self.flat.load();
        let stretch = find(&flat, addr)?;
        Some(stretch.device.read(addr - stretch.start + stretch.offset, size))
    }

    /// Writes; false if nothing answers there.
    pub fn write(&self, addr: u64, size: u8, value: u64) -> bool {
        let flat = self.flat.load();
        let Some(stretch) = find(&flat, addr) else { return false };
        stretch.device.write(addr - stretch.start + stretch.offset, size, value);
        true
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Mappings> {
        self.mappings.lock().unwrap_or_else(|e| e.into_inner())
    }
}

fn find(flat: &[Stretch], addr: u64) -> Option<&Stretch> {
    let after = flat.partition_point(|s| s.start <= addr);
    flat[..after].last().filter(|s| addr <= s.last)
}

/// Cuts all ranges at each other's ends and keeps the winner of each piece.
fn flatten(all: &[Mapping]) -> Vec<Stretch> {
    let mut cuts: Vec<u64> = Vec::with_capacity(all.len() * 2);
    for mapping in all {
        cuts.push(mapping.start);
        cuts.extend(mapping.last.checked_add(1));
    }
    cuts.sort_unstable();
    cuts.dedup();
    let mut flat: Vec<Stretch> = Vec::new();
    for (i, &start) in cuts.iter().enumerate() {
        let winner = all
            .iter()
            .filter(|m| m.start <= start && start <= m.last)
            .reduce(|best, m| if m.priority > best.priority { m } else { best });
        let Some(winner) = winner else { continue };
        let last = cuts.get(i + 1).map_or(winner.last, |next| winner.last.min(next - 1));
        let offset = start - winner.start;
        flat.push(Stretch { start, last, offset, device: Arc::clone(&winner.device) });
    }
    flat
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Tag(u64);

    impl BusDevice for Tag {
        fn read(&self, offset: u64, _size: u8) -> u64 {
            self.0 | offset
        }
        fn write(&self, _offset: u64, _size: u8, _value: u64) {}
    }

    #[test]
    fn the_highest_priority_answers_and_offsets_count_from_the_range() {
        let space = AddressSpace::new();
        space.map(0x1000, 0x1000, Arc::new(Tag(0x10_0000))).unwrap();
        let over = space.map_with_priority(0x1800, 0x10, 1, Arc::new(Tag(0x20_0000))).unwrap();
        assert_eq!(space.read(0x17ff, 1), Some(0x10_07ff));
        assert_eq!(space.read(0x1804, 1), Some(0x20_0004));
        assert_eq!(space.read(0x1810, 1), Some(0x10_0810));
        assert_eq!(space.read(0xfff, 1), None);
        assert_eq!(space.read(0x2000, 1), None);
        space.unmap(over);
        assert_eq!(space.read(0x1804, 1), Some(0x10_0804));
    }

    #[test]
    fn the_last_address_can_be_mapped_and_bad_ranges_are_refused() {
        let space = AddressSpace::new();
        space.map(u64::MAX, 1, Arc::new(Tag(0))).unwrap();
        assert_eq!(space.read(u64::MAX, 1), Some(0));
        assert!(space.map(u64::MAX, 2, Arc::new(Tag(0))).is_err());
        assert!(space.map(5, 0, Arc::new(Tag(0))).is_err());
    }
}
