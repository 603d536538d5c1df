//! Memory that is not RAM: ROM, flash, video memory, system management RAM.
//!
//! A block is allocated once and then mapped wherever the board wants it (see [`crate::map`]). It has a
//! page log of its own, so that instructions decoded from it go stale when it changes, and so that a
//! display learns which parts were drawn on.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use vm_memory::mmap::MmapRegion;
use vm_memory::{Bytes, VolatileMemory};

use crate::hook::{Change, ChangeHook};
use crate::{MemoryError, PAGE_SHIFT, PAGE_SIZE, PageLog, page_log};

/// A block of memory. It reads as zero at first.
pub struct MemoryBlock {
    name: String,
    region: MmapRegion<PageLog>,
    hook: Arc<ChangeHook>,
    /// Pages that [`MemoryBlock::take_dirty`] told of last, in order.
    told: Mutex<Vec<usize>>,
}

impl MemoryBlock {
    pub(crate) fn new(
        name: &str,
        len: u64,
        hook: Arc<ChangeHook>,
    ) -> Result<Arc<Self>, MemoryError> {
        let refused = |reason: String| MemoryError::Create { bytes: len, reason };
        if len == 0 || !len.is_multiple_of(PAGE_SIZE) {
            return Err(refused(format!("'{name}' is not made of whole pages")));
        }
        page_log::check_room(len).map_err(refused)?;
        let bytes = usize::try_from(len).map_err(|e| refused(e.to_string()))?;
        let region = MmapRegion::new(bytes).map_err(|e| refused(e.to_string()))?;
        Ok(Arc::new(Self { name: name.to_owned(), region, hook, told: Mutex::default() }))
    }

    /// What it was called when it was allocated.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its length in bytes, a multiple of [`PAGE_SIZE`], never 0.
    #[expect(clippy::len_without_is_empty, reason = "no block is empty")]
    pub fn len(&self) -> u64 {
        self.region.size() as u64
    }

    /// Reads `buf.len()` bytes from `offset` on.
    ///
    /// # Errors
    /// [`MemoryError::OutsideBlock`] if the block ends before; `buf` may then be partly filled.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        let len = buf.len();
        let slice = self.region.as_volatile_slice();
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        slice.read_slice(buf, at).map_err(|_| self.outside(offset, len))
    }

    /// Writes `data` from `offset` on and notes the pages as written.
    ///
    /// # Errors
    /// [`MemoryError::OutsideBlock`] if the block ends before; what fits may then be written.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), MemoryError> {
        let slice = self.region.as_volatile_slice();
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        slice.write_slice(data, at).map_err(|_| self.outside(offset, data.len()))
    }

    /// Sets the bits of `mask` in the byte at `offset`, as one step to whoever else writes it; what the byte was.
    ///
    /// # Errors
    /// [`MemoryError::OutsideBlock`] if the block ends before.
    pub fn set_bits(&self, offset: u64, mask: u8) -> Result<u8, MemoryError> {
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        let byte = self.region.get_atomic_ref::<AtomicU8>(at);
        let before = byte.map_err(|_| self.outside(offset, 1))?.fetch_or(mask, Ordering::SeqCst);
        self.region.bitmap().note_write(at >> PAGE_SHIFT);
        Ok(before)
    }

    /// The block's contents, all of it.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.region.size()];
        self.read(0, &mut bytes).expect("a block reads as long as it is");
        bytes
    }

    /// Sets every byte to `value`.
    pub fn fill(&self, value: u8) {
        let page = [value; PAGE_SIZE as usize];
        for offset in (0..self.len()).step_by(PAGE_SIZE as usize) {
            self.write(offset, &page).expect("a block is made of whole pages");
        }
    }

    fn outside(&self, offset: u64, len: usize) -> MemoryError {
        MemoryError::OutsideBlock { name: self.name.clone(), offset, len }
    }

    /// Where the pages in `range` (offsets in bytes) were written to since the last call for them, as
    /// ranges of whole pages in ascending order. A page is told of once more by the call after: a CPU
    /// may still have written to it before it heard that its writes are being watched again.
    pub fn take_dirty(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let end = range.end.min(self.len()).div_ceil(PAGE_SIZE) as usize;
        let pages = (range.start >> PAGE_SHIFT) as usize..end;
        let mut told = self.told.lock().unwrap_or_else(|e| e.into_inner());
        let log = self.region.bitmap();
        let fresh: Vec<usize> = pages.clone().filter(|&page| log.clear_dirty(page)).collect();
        if !fresh.is_empty() {
            self.hook.call(Change::Watch);
        }
        let mut all: Vec<usize> =
            told.iter().copied().filter(|page| pages.contains(page)).collect();
        all.extend(&fresh);
        all.sort_unstable();
        all.dedup();
        told.retain(|page| !pages.contains(page));
        told.extend(fresh);
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for page in all {
            let start = (page as u64) << PAGE_SHIFT;
            match ranges.last_mut() {
                Some(last) if last.end == start => last.end += PAGE_SIZE,
                _ => ranges.push(start..start + PAGE_SIZE),
            }
        }
        ranges
    }

    /// Address on the host of the first byte.
    pub(crate) fn host_addr(&self) -> usize {
        self.region.as_ptr() as usize
    }

    pub(crate) fn log(&self) -> &PageLog {
        self.region.bitmap()
    }
}

impl fmt::Debug for MemoryBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryBlock({}, {:#x})", self.name, self.len())
    }
}

#[cfg(test)]
mod tests {
    use crate::GuestMemory;

    #[test]
    fn a_block_is_bounded() {
        let memory = GuestMemory::new(&[(0, 0x1000)]).unwrap();
        let block = memory.allocate("rom", 0x2000).unwrap();
        block.write(0x1ffc, &[1, 2, 3, 4]).unwrap();
        let mut buf = [0; 4];
        block.read(0x1ffc, &mut buf).unwrap();
        assert_eq!(buf, [1, 2, 3, 4]);
        assert!(block.write(0x1ffd, &[0; 4]).is_err());
        assert!(block.read(u64::MAX, &mut buf).is_err());
        assert!(memory.allocate("odd", 0x1001).is_err());
        assert!(memory.allocate("none", 0).is_err());
        assert!(memory.allocate("huge", !0xfff).is_err());
        block.fill(7);
        assert_eq!(block.to_vec(), vec![7; 0x2000]);
    }

    #[test]
    fn written_pages_are_told_of_twice_and_then_no_more() {
        let memory = GuestMemory::new(&[(0, 0x1000)]).unwrap();
        let block = memory.allocate("vram", 0x8000).unwrap();
        block.write(0x1fff, &[1, 1]).unwrap();
        block.write(0x6000, &[1]).unwrap();
        assert_eq!(block.take_dirty(0..0x5000), vec![0x1000..0x3000]);
        assert_eq!(block.take_dirty(0..0x8000), vec![0x1000..0x3000, 0x6000..0x7000]);
        assert_eq!(block.take_dirty(0..0x8000), vec![0x6000..0x7000]);
        assert!(block.take_dirty(0..u64::MAX).is_empty());
    }
}
