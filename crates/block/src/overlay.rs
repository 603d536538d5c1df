//! Copy on write: a disk whose changes go to a temporary file and are gone with the machine
//! (`-snapshot`, `snapshot=on`).
//!
//! The base is only read. Space is counted in granules of [`GRANULE`] bytes: each has a bit that says
//! whether the temporary file holds it. A write that covers a granule only in part fills the rest from
//! the base first.
//!
//! Invariants:
//! - A granule's bit goes from 0 to 1 once, after its bytes in the temporary file are whole.
//! - Filling a granule excludes all other writes, so what a write left in it is never overwritten with
//!   the base's bytes.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::backend::part_of;
use crate::file::zero;
use crate::{BlockBackend, DiscardMode, FileNode, GuestSlice, IoStats, LockError, OpenError, sys};
use crate::{Operation, slices_len};

/// Bytes of a granule: what file systems and guests mostly write at a time.
const GRANULE: u64 = 4096;
/// Words of bits in a chunk of the map.
const CHUNK_WORDS: usize = 512;
/// Granules that a chunk of the map tells about.
const CHUNK_GRANULES: u64 = 64 * CHUNK_WORDS as u64;

/// Part of the map; made when the first write falls into it.
type Chunk = Box<[AtomicU64; CHUNK_WORDS]>;

/// Which granules the temporary file holds.
#[derive(Default)]
struct Map {
    chunks: BTreeMap<u64, Chunk>,
}

impl Map {
    fn holds(&self, granule: u64) -> bool {
        let Some(chunk) = self.chunks.get(&(granule / CHUNK_GRANULES)) else { return false };
        let bit = granule % CHUNK_GRANULES;
        chunk[(bit / 64) as usize].load(Ordering::Acquire) & (1 << (bit % 64)) != 0
    }

    /// Whether bits of `granules` can be set.
    fn has_room(&self, granules: &Range<u64>) -> bool {
        chunks_of(granules).all(|chunk| self.chunks.contains_key(&chunk))
    }

    fn make_room(&mut self, granules: &Range<u64>) {
        for chunk in chunks_of(granules) {
            let empty = || Box::new([const { AtomicU64::new(0) }; CHUNK_WORDS]);
            self.chunks.entry(chunk).or_insert_with(empty);
        }
    }

    fn set(&self, granules: Range<u64>) {
        for granule in granules {
            if let Some(chunk) = self.chunks.get(&(granule / CHUNK_GRANULES)) {
                let bit = granule % CHUNK_GRANULES;
                chunk[(bit / 64) as usize].fetch_or(1 << (bit % 64), Ordering::AcqRel);
            }
        }
    }
}

fn chunks_of(granules: &Range<u64>) -> Range<u64> {
    granules.start / CHUNK_GRANULES..granules.end.div_ceil(CHUNK_GRANULES)
}

/// Granules that `len` bytes from `offset` on touch.
fn touched(offset: u64, len: u64) -> Range<u64> {
    offset / GRANULE..(offset + len).div_ceil(GRANULE)
}

/// A disk that is a base and what was written since.
pub struct OverlayNode {
    base: Arc<dyn BlockBackend>,
    size: AtomicU64,
    /// How much of the base was always part of this disk; the rest reads as zero.
    visible: AtomicU64,
    changes: FileNode,
    map: RwLock<Map>,
    discard: DiscardMode,
    stats: IoStats,
}

impl OverlayNode {
    /// An overlay over `base`, which is never written to.
    ///
    /// # Errors
    /// If no temporary file can be made.
    pub fn new(base: Arc<dyn BlockBackend>, discard: DiscardMode) -> Result<Self, OpenError> {
        let changes = FileNode::temporary(base.size())?;
        let [size, visible] = [base.size(), base.size().next_multiple_of(512)].map(AtomicU64::new);
        let (map, stats) = (RwLock::default(), IoStats::default());
        Ok(Self { base, size, visible, changes, map, discard, stats })
    }

    fn check_range(&self, offset: u64, len: u64) -> io::Result<()> {
        let end = offset.checked_add(len);
        if end.is_some_and(|end| end <= self.size().next_multiple_of(512)) {
            Ok(())
        } else {
            Err(io::Error::from(io::ErrorKind::InvalidInput))
        }
    }

    /// The stretches of a range that are in one of the two nodes: whether in the temporary file, start
    /// and length.
    fn stretches(&self, offset: u64, len: u64) -> Vec<(bool, u64, u64)> {
        let map = self.map.read().unwrap_or_else(PoisonError::into_inner);
        let mut stretches: Vec<(bool, u64, u64)> = Vec::new();
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let held = map.holds(at / GRANULE);
            let next = ((at / GRANULE + 1) * GRANULE).min(end);
            match stretches.last_mut() {
                Some((last, _, len)) if *last == held => *len += next - at,
                _ => stretches.push((held, at, next - at)),
            }
            at = next;
        }
        stretches
    }

    /// Changes `len` bytes from `offset` on by `change`, which gets the temporary file.
    fn change(
        &self,
        offset: u64,
        len: u64,
        change: impl Fn(&FileNode) -> io::Result<()>,
    ) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let granules = touched(offset, len);
        // The first and the last granule may be covered in part; the end of the disk is an end too.
        let end = offset + len;
        let limit = self.size().next_multiple_of(512);
        let cut_first = !offset.is_multiple_of(GRANULE);
        let cut_last = !end.is_multiple_of(GRANULE) && end < limit;
        let cut = |map: &Map| -> [Option<u64>; 2] {
            let (first, last) = (granules.start, granules.end - 1);
            let first_in_part = cut_first || (cut_last && first == last);
            let fill = |cut: bool, granule| Some(granule).filter(|&g| cut && !map.holds(g));
            [fill(first_in_part, first), fill(cut_last && first != last, last)]
        };
        {
            let map = self.map.read().unwrap_or_else(PoisonError::into_inner);
            if map.has_room(&granules) && cut(&map) == [None, None] {
                change(&self.changes)?;
                map.set(granules);
                return Ok(());
            }
        }
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        map.make_room(&granules);
        for granule in cut(&map).into_iter().flatten() {
            self.fill(granule, limit)?;
            map.set(granule..granule + 1);
        }
        change(&self.changes)?;
        map.set(granules.clone());
        Ok(())
    }

    /// Copies a granule from the base.
    fn fill(&self, granule: u64, limit: u64) -> io::Result<()> {
        let start = granule * GRANULE;
        let mut bytes = vec![0; (limit - start).min(GRANULE) as usize];
        let slice = sys::buffer_slice(&mut bytes);
        self.read_base(start, std::slice::from_ref(&slice))?;
        self.changes.write_at(start, &[slice])
    }

    /// Fills `bufs` from the base, as far as that is to be seen.
    fn read_base(&self, offset: u64, bufs: &[GuestSlice<'_>]) -> io::Result<()> {
        let len = slices_len(bufs);
        let seen = self.visible.load(Ordering::Acquire).saturating_sub(offset).min(len);
        if seen > 0 {
            self.base.read_at(offset, &part_of(bufs, 0, seen))?;
        }
        part_of(bufs, seen, len - seen).iter().try_for_each(zero)
    }
}

impl BlockBackend for OverlayNode {
    fn read_at(&self, offset: u64, bufs: &[GuestSlice<'_>]) -> io::Result<()> {
        let begin = std::time::Instant::now();
        let len = slices_len(bufs);
        self.check_range(offset, len)?;
        for (held, start, len) in self.stretches(offset, len) {
            let part = part_of(bufs, start - offset, len);
            let read = if held {
                self.changes.read_at(start, &part)
            } else {
                self.read_base(start, &part)
            };
            read.inspect_err(|_| self.stats.count_failure(Operation::Read))?;
        }
        self.stats.count_read(len, begin.elapsed());
        Ok(())
    }

    fn write_at(&self, offset: u64, bufs: &[GuestSlice<'_>]) -> io::Result<()> {
        let begin = std::time::Instant::now();
        let len = slices_len(bufs);
        self.check_range(offset, len)?;
        self.change(offset, len, |changes| changes.write_at(offset, bufs))
            .inspect_err(|_| self.stats.count_failure(Operation::Write))?;
        self.stats.count_write(offset, len, begin.elapsed());
        Ok(())
    }

    /// Makes nothing durable: what is written here does not outlive the machine.
    fn flush(&self) -> io::Result<()> {
        self.changes.flush()?;
        self.stats.count_flush(std::time::Duration::ZERO);
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check_range(offset, len)?;
        match self.discard {
            DiscardMode::Ignore => Ok(()),
            DiscardMode::Unmap => self.write_zeroes(offset, len, true),
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()> {
        self.check_range(offset, len)?;
        self.change(offset, len, |changes| changes.write_zeroes(offset, len, may_unmap))
    }

    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// The base keeps its size: it is never written to.
    fn resize(&self, size: u64) -> io::Result<()> {
        // No write is under way meanwhile.
        let _map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        let whole = size.checked_next_multiple_of(512).ok_or(io::ErrorKind::FileTooLarge)?;
        // What the last sector has beyond the end is to read as zero, too.
        self.changes.resize(size)?;
        self.changes.resize(whole)?;
        self.visible.fetch_min(size, Ordering::AcqRel);
        self.size.store(size, Ordering::Release);
        Ok(())
    }

    fn allocated_size(&self) -> u64 {
        self.changes.allocated_size()
    }

    fn lock(&self, share_write: bool) -> Result<(), LockError> {
        self.base.lock(share_write)
    }

    fn unlock(&self) {
        self.base.unlock();
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn driver(&self) -> &'static str {
        "copy-on-write"
    }

    fn filename(&self) -> String {
        self.base.filename()
    }

    fn stats(&self) -> &IoStats {
        &self.stats
    }

    fn backing(&self) -> Option<&dyn BlockBackend> {
        Some(&*self.base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CacheMode;

    fn read(node: &dyn BlockBackend, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0xee; len];
        node.read_at(offset, &[sys::buffer_slice(&mut bytes)]).unwrap();
        bytes
    }

    fn write(node: &dyn BlockBackend, offset: u64, bytes: &[u8]) -> io::Result<()> {
        sys::with_buffer(bytes, |slice| node.write_at(offset, std::slice::from_ref(slice)))
    }

    #[test]
    fn changes_are_seen_through_the_overlay_and_never_reach_the_base() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("base.img");
        let mut content: Vec<u8> = (0..20_000u32).map(|i| (i / 7) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let open = || FileNode::open(&path, true, CacheMode::WRITEBACK, DiscardMode::Ignore);
        let overlay = OverlayNode::new(Arc::new(open().unwrap()), DiscardMode::Unmap).unwrap();
        assert_eq!(read(&overlay, 0, 20_000), content);
        // In one granule, over the border of two, whole ones, and at the end of the disk.
        let writes = [(512, 512), (3584, 1024), (8192, 4096), (19_456, 1024), (4000, 90), (0, 1)];
        content.resize(20_480, 0);
        for (i, (offset, len)) in writes.into_iter().enumerate() {
            let bytes = vec![0x80 | i as u8; len];
            write(&overlay, offset as u64, &bytes).unwrap();
            content[offset..offset + len].copy_from_slice(&bytes);
            assert_eq!(read(&overlay, 0, 20_480), content, "write {i}");
        }
        overlay.write_zeroes(5000, 9000, true).unwrap();
        content[5000..14_000].fill(0);
        assert_eq!(read(&overlay, 0, 20_480), content);
        overlay.discard(0, 4096).unwrap();
        assert_eq!(read(&overlay, 4096, 16_384), content[4096..]);
        assert!(write(&overlay, 20_480, &[1]).is_err());
        assert!(write(&overlay, u64::MAX, &[1]).is_err());
        let base: Vec<u8> = (0..20_000u32).map(|i| (i / 7) as u8).collect();
        assert_eq!(std::fs::read(&path).unwrap(), base);
    }

    #[test]
    fn writers_of_one_granule_do_not_lose_each_others_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("base.img");
        std::fs::write(&path, vec![0xff; 1 << 20]).unwrap();
        let base = FileNode::open(&path, true, CacheMode::WRITEBACK, DiscardMode::Ignore).unwrap();
        let overlay = OverlayNode::new(Arc::new(base), DiscardMode::Ignore).unwrap();
        std::thread::scope(|scope| {
            for lane in 0..8_u64 {
                let overlay = &overlay;
                scope.spawn(move || {
                    for granule in 0..256 {
                        let offset = granule * GRANULE + lane * 512;
                        write(overlay, offset, &[lane as u8; 512]).unwrap();
                    }
                });
            }
        });
        let bytes = read(&overlay, 0, 1 << 20);
        assert!(bytes.chunks(512).enumerate().all(|(i, c)| c.iter().all(|&b| b == i as u8 % 8)));
    }
}
