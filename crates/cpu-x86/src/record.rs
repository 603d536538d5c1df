//! A record of what instructions write to memory, so that it can be taken back and done again.
//!
//! A CPU with a [`Recorder`] never has a TLB entry to write by, so that every store goes where it is
//! noted: its address on the host, and the bytes that it replaces. While the record is on, a device is
//! out of reach: what would access one raises [`Exception::UNTRIED`] before anything has happened.
//!
//! [`Exception::UNTRIED`]: crate::exception::Exception::UNTRIED

use crate::host::{HostPtr, PAGE_OFFSET};
use crate::tlb::Class;

/// Bytes of a page.
const LEN: usize = PAGE_OFFSET as usize + 1;

/// A page's contents.
type Image = [u8; LEN];

/// Copies of pages. Their memory is kept for the next ones.
#[derive(Debug, Default)]
pub(crate) struct Images {
    pages: Vec<HostPtr>,
    kept: Vec<Box<Image>>,
}

impl Images {
    /// Copies the pages that `record` tells were written.
    pub(crate) fn take(&mut self, record: &Recorder) {
        record.host_pages(&mut self.pages);
        for (n, page) in self.pages.iter().enumerate() {
            if n == self.kept.len() {
                self.kept.push(Box::new([0; LEN]));
            }
            page.read_bytes(&mut self.kept[n][..]);
        }
    }

    /// Whether `page` is among them.
    pub(crate) fn has(&self, page: HostPtr) -> bool {
        self.pages.contains(&page)
    }

    /// Calls `f` for each byte that is not what it was, with where it is, what it was, and what it is.
    pub(crate) fn compare(&self, mut f: impl FnMut(HostPtr, u8, u8)) {
        let mut now = [0; LEN];
        for (page, image) in self.pages.iter().zip(&self.kept) {
            page.read_bytes(&mut now);
            if now != **image {
                let bytes = (0..).zip(image.iter().zip(&now)).filter(|(_, (a, b))| a != b);
                bytes.for_each(|(n, (&was, &is))| f(page.at(n), was, is));
            }
        }
    }
}

/// A page that was written by its linear address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Written {
    pub(crate) class: Class,
    /// Linear address of the page.
    pub(crate) linear: u64,
    /// The page on the host.
    pub(crate) host: HostPtr,
    /// Stores to it need no notice.
    pub(crate) quiet: bool,
}

/// Bytes that were replaced.
#[derive(Clone, Copy, Debug)]
struct Old {
    host: HostPtr,
    start: usize,
    len: usize,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    on: bool,
    old: Vec<Old>,
    bytes: Vec<u8>,
    pages: Vec<Written>,
    /// Entries of page tables in which walks have set bits.
    walks: Vec<HostPtr>,
}

impl Recorder {
    pub(crate) fn is_on(&self) -> bool {
        self.on
    }

    /// Begins a record.
    pub(crate) fn begin(&mut self) {
        self.on = true;
        self.old.clear();
        self.bytes.clear();
        self.pages.clear();
        self.walks.clear();
    }

    pub(crate) fn end(&mut self) {
        self.on = false;
    }

    /// Notes that the page at `linear` is found for a store.
    pub(crate) fn note_page(&mut self, page: Written) {
        let known = |p: &Written| (p.linear, p.class) == (page.linear, page.class);
        if self.on && !self.pages.iter().any(known) {
            self.pages.push(page);
        }
    }

    /// Notes that the `len` bytes at `host`, in one page, are about to be replaced.
    pub(crate) fn note(&mut self, host: HostPtr, len: usize) {
        if self.on {
            let start = self.bytes.len();
            self.bytes.resize(start + len, 0);
            host.read_bytes(&mut self.bytes[start..]);
            self.old.push(Old { host, start, len });
        }
    }

    /// Notes that a page walk sets bits in the entry at `host`.
    pub(crate) fn note_walk(&mut self, host: HostPtr) {
        if self.on {
            self.walks.push(host);
        }
    }

    /// Whether what is taken back are bits that page walks have set, so that the TLB knows too much.
    pub(crate) fn walked(&self) -> bool {
        !self.walks.is_empty()
    }

    /// Whether a walk has set bits in the entry at `host`.
    pub(crate) fn has_walked(&self, host: HostPtr) -> bool {
        self.walks.contains(&host)
    }

    /// The pages that were looked up to be written.
    pub(crate) fn pages(&self) -> &[Written] {
        &self.pages
    }

    /// Makes `pages` the host pages that were written, each once.
    fn host_pages(&self, pages: &mut Vec<HostPtr>) {
        pages.clear();
        for old in &self.old {
            let page = old.host.at(0);
            if !pages.contains(&page) {
                pages.push(page);
            }
        }
    }

    /// Whether the byte at `host` was replaced.
    pub(crate) fn has(&self, host: HostPtr) -> bool {
        let at = host.addr();
        self.old.iter().any(|old| (old.host.addr()..old.host.addr() + old.len).contains(&at))
    }

    /// Every byte that was replaced, once for each time in their order, and what was there.
    pub(crate) fn replaced(&self) -> impl Iterator<Item = (HostPtr, u8)> {
        self.old.iter().flat_map(|old| {
            let bytes = self.bytes[old.start..old.start + old.len].iter();
            (old.host.addr() as u64..).zip(bytes).map(|(at, &byte)| (old.host.at(at), byte))
        })
    }

    /// How much there is, for [`Self::undo_from`].
    pub(crate) fn mark(&self) -> usize {
        self.old.len()
    }

    /// Takes back what was recorded since [`Self::mark`] was `mark`, and forgets it.
    pub(crate) fn undo_from(&mut self, mark: usize) {
        self.undo_last(self.old.len() - mark);
        self.old.truncate(mark);
    }

    /// Takes everything back.
    pub(crate) fn undo(&self) {
        self.undo_last(self.old.len());
    }

    fn undo_last(&self, count: usize) {
        for old in self.old.iter().rev().take(count) {
            old.host.write_bytes(&self.bytes[old.start..old.start + old.len]);
        }
    }
}
