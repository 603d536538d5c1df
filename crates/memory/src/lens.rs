//! The memory map at hand for one CPU.
//!
//! The map is replaced as a whole when it changes. A [`Lens`] keeps the one that it saw last and looks
//! whether it still is the current one, which is a load and a comparison.

use std::fmt;
use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};

use crate::Page;
use crate::map::Map;

/// See the module's documentation. `smm` says that the CPU is in system management mode.
#[derive(Clone)]
pub struct Lens(Cache<Arc<ArcSwap<Map>>, Arc<Map>>);

impl Lens {
    pub(crate) fn new(map: &Arc<ArcSwap<Map>>) -> Self {
        Self(Cache::new(Arc::clone(map)))
    }

    /// What the page that holds `addr` is to a CPU.
    #[inline]
    pub fn page(&mut self, addr: u64, smm: bool) -> Page {
        self.0.load().view(smm).page(addr)
    }

    /// Whether writes to the page that holds `addr` need not be noted: it holds no decoded code and is
    /// known to be dirty already.
    #[inline]
    pub fn is_quiet(&mut self, addr: u64, smm: bool) -> bool {
        let log = self.0.load().view(smm).write_log(addr);
        log.is_some_and(|(log, page)| log.is_dirty(page) && !log.is_code(page))
    }

    /// Notes a write that is about to be done within the page that holds `addr`, unless instructions were
    /// decoded from it; tells whether [`Self::is_quiet`] holds of it now.
    #[inline]
    pub fn prepare_write(&mut self, addr: u64, smm: bool) -> bool {
        let Some((log, page)) = self.0.load().view(smm).write_log(addr) else { return false };
        if log.is_code(page) {
            return false;
        }
        log.note_write(page);
        true
    }

    /// Notes a write by host address within the page that holds `addr`; tells whether instructions were
    /// decoded from that page.
    #[inline]
    pub fn note_write(&mut self, addr: u64, smm: bool) -> bool {
        let Some((log, page)) = self.0.load().view(smm).write_log(addr) else { return false };
        let was_code = log.is_code(page);
        log.note_write(page);
        was_code
    }
}

impl fmt::Debug for Lens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lens")
    }
}

#[cfg(test)]
mod tests {
    use crate::{Access, GuestMemory, Mapping, WritePath};

    #[test]
    fn a_new_map_is_seen_at_once() {
        let memory = GuestMemory::new(&[(0, 0x4000)]).unwrap();
        let rom = memory.allocate("rom", 0x1000).unwrap();
        let mut lens = memory.lens();
        let ram = lens.page(0x1000, false).host.unwrap().ptr;
        let id = memory.map(Mapping::new(0x1000, &rom, Access::ROM)).unwrap();
        assert_ne!(lens.page(0x1000, false).host.unwrap().ptr, ram);
        memory.unmap(id);
        assert_eq!(lens.page(0x1000, false).host.unwrap().ptr, ram);
        assert_eq!(lens.page(0x1000, false).writes, WritePath::Direct);
    }

    #[test]
    fn a_write_is_prepared_to_data_only() {
        let memory = GuestMemory::new(&[(0, 0x4000)]).unwrap();
        let mut lens = memory.lens();
        assert!(!lens.is_quiet(0x1000, false));
        assert!(lens.prepare_write(0x1000, false));
        assert!(lens.is_quiet(0x1000, false));
        let (log, page) = memory.page_log(0x2000).unwrap();
        let (version, _) = log.mark_code(page);
        assert!(!lens.prepare_write(0x2000, false));
        assert_eq!(log.code_version(page), version);
        assert!(!log.is_dirty(page));
        assert!(lens.note_write(0x2000, false));
        assert_ne!(log.code_version(page), version);
    }
}
