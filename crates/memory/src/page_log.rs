//! What is known about each page of a RAM range: whether it was written since the log was last
//! cleared, and whether a software CPU decoded instructions from it.
//!
//! A page that holds decoded code has a version. The first write to it, from a CPU or a device, gives it
//! a new version, and it counts as plain data until instructions are decoded from it again. Decoded
//! blocks remember the version they were made from and are stale once it differs.

use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, RwLock, Weak};

use vm_memory::bitmap::{Bitmap, BitmapSlice, NewBitmap, WithBitmapSlice};

/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in a page.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;

/// A point in a code page's history. Odd while the page holds decoded code.
pub type CodeVersion = u32;

const CODE: u32 = 1;

/// Is told when a page that held decoded code was written; on the writer's thread, so it must be quick.
pub type CodeWatcher = dyn Fn() + Send + Sync;

#[derive(Default)]
struct Watchers(RwLock<Vec<Weak<CodeWatcher>>>);

impl fmt::Debug for Watchers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watchers")
    }
}

#[derive(Debug, Default)]
struct Pages {
    /// One bit a page: written since last cleared.
    dirty: Vec<AtomicU64>,
    /// One [`CodeVersion`] a page.
    code: Vec<AtomicU32>,
    /// How often a page that held decoded code was written.
    code_writes: AtomicU64,
    watchers: Watchers,
}

/// The log of one RAM range, or of its tail from some offset on.
#[derive(Clone, Debug, Default)]
pub struct PageLog {
    pages: Arc<Pages>,
    /// Offset of this view's first byte in the range.
    offset: usize,
}

impl PageLog {
    /// The page's current version.
    pub fn code_version(&self, page: usize) -> CodeVersion {
        self.pages.code[page].load(Ordering::Acquire)
    }

    /// A number that changes after the version of any page changes.
    pub fn code_writes(&self) -> u64 {
        self.pages.code_writes.load(Ordering::Acquire)
    }

    /// Has `watcher`, while it lives, called after each change of a page's version.
    pub fn watch_code(&self, watcher: &Arc<CodeWatcher>) {
        let mut watchers = self.pages.watchers.0.write().unwrap_or_else(|e| e.into_inner());
        watchers.retain(|watcher| watcher.strong_count() > 0);
        watchers.push(Arc::downgrade(watcher));
    }

    /// Whether `self` and `other` are logs of the same range.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.pages, &other.pages)
    }

    /// Whether instructions were decoded from this page.
    pub fn is_code(&self, page: usize) -> bool {
        self.code_version(page) & CODE != 0
    }

    /// Declares that instructions are about to be decoded from this page; returns its version, and
    /// whether that was known already.
    pub fn mark_code(&self, page: usize) -> (CodeVersion, bool) {
        let before = self.pages.code[page].fetch_or(CODE, Ordering::SeqCst);
        (before | CODE, before & CODE != 0)
    }

    /// Notes a write to `page`: it becomes dirty, and stale as code.
    pub fn note_write(&self, page: usize) {
        let bit = 1 << (page % 64);
        let word = &self.pages.dirty[page / 64];
        if word.load(Ordering::Relaxed) & bit == 0 {
            word.fetch_or(bit, Ordering::Relaxed);
        }
        // Either the page is seen to be code, or whoever marks it sees what was written.
        fence(Ordering::SeqCst);
        let code = &self.pages.code[page];
        let version = code.load(Ordering::Acquire);
        if version & CODE != 0 {
            // If it fails, someone else has just done the same.
            let next = version.wrapping_add(1);
            let _ = code.compare_exchange(version, next, Ordering::AcqRel, Ordering::Relaxed);
            self.pages.code_writes.fetch_add(1, Ordering::Release);
            let watchers = self.pages.watchers.0.read().unwrap_or_else(|e| e.into_inner());
            watchers.iter().filter_map(Weak::upgrade).for_each(|watcher| watcher());
        }
    }

    /// Whether `page` was written since it was last cleared.
    pub fn is_dirty(&self, page: usize) -> bool {
        self.pages.dirty[page / 64].load(Ordering::Relaxed) & (1 << (page % 64)) != 0
    }

    /// Forgets that `page` was written; tells whether it had been.
    pub fn clear_dirty(&self, page: usize) -> bool {
        let bit = 1 << (page % 64);
        self.pages.dirty[page / 64].fetch_and(!bit, Ordering::AcqRel) & bit != 0
    }
}

impl WithBitmapSlice<'_> for PageLog {
    type S = PageLog;
}

impl BitmapSlice for PageLog {}

impl Bitmap for PageLog {
    fn mark_dirty(&self, offset: usize, len: usize) {
        // A default log covers nothing: it belongs to memory that is not the guest's.
        if len == 0 || self.pages.code.is_empty() {
            return;
        }
        let first = (self.offset + offset) >> PAGE_SHIFT;
        let last = (self.offset + offset + len - 1) >> PAGE_SHIFT;
        for page in first..=last.min(self.pages.code.len().saturating_sub(1)) {
            self.note_write(page);
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let page = (self.offset + offset) >> PAGE_SHIFT;
        page < self.pages.code.len() && self.is_dirty(page)
    }

    fn slice_at(&self, offset: usize) -> PageLog {
        PageLog { pages: Arc::clone(&self.pages), offset: self.offset + offset }
    }
}

/// Whether the host has room for the log of `len` bytes of RAM.
///
/// # Errors
/// Says that it has none.
pub(crate) fn check_room(len: u64) -> Result<(), String> {
    let pages = usize::try_from(len.div_ceil(PAGE_SIZE)).map_err(|e| e.to_string())?;
    let mut code = Vec::<AtomicU32>::new();
    code.try_reserve_exact(pages).map_err(|_| "Cannot allocate memory".to_owned())
}

impl NewBitmap for PageLog {
    fn with_len(len: usize) -> Self {
        let pages = len.div_ceil(PAGE_SIZE as usize);
        // Zeroes that come from the host take no memory until they are used, and turning them into
        // atomics in place touches none of them: a machine with much RAM starts as fast as a small one.
        let dirty = vec![0; pages.div_ceil(64)].into_iter().map(AtomicU64::new).collect();
        let code = vec![0; pages].into_iter().map(AtomicU32::new).collect();
        Self { pages: Arc::new(Pages { dirty, code, ..Pages::default() }), offset: 0 }
    }
}
