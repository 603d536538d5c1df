//! The jump caches of a CPU: where the code for an address is *as the page tables are now*.
//!
//! Translated code looks addresses up in their tables. Which entries are used, and which lead to the
//! translations of which page, is known here, so that they can be emptied: all of a class when its TLB has
//! dropped entries for instructions, those of a page when it was written.

use memory::CodeVersion;

use super::cache::{Cache, Key};
use super::state::{JUMP_TABLES, Jump, Tables, jump_index, jumps_of, no_jump};
use crate::counters::{Count, Counters};
use crate::segment::Mode;
use crate::tlb::CLASSES;

/// Most entries that are remembered for a page. A page has hardly more instructions, unless it is mapped
/// again and again.
const MAX_OF_PAGE: usize = 8192;

/// A jump cache, and the index of an entry.
type Entry = (u8, u32);

/// What is known of the jump caches beside their entries.
#[derive(Default)]
pub(super) struct Jumps {
    /// Entries of each that are set, and maybe some that were.
    used: [Vec<u32>; JUMP_TABLES],
    /// How often each was emptied.
    emptied: [u64; JUMP_TABLES],
    /// The modes of the code of 32 bits that they know, by class.
    narrow_modes: [Mode; CLASSES],
    /// By number, the pages that translations are in.
    pages: Vec<Option<Page>>,
}

/// A page that entries lead to.
struct Page {
    /// Its version when it was last looked at.
    version: CodeVersion,
    /// The entries that lead to it, and maybe some that did.
    entries: Vec<Entry>,
    /// How long that list may become before it is looked through.
    limit: usize,
    /// They are so many that nobody keeps the list.
    is_everywhere: bool,
    /// For which jump cache, and of what age, its translations were last entered together.
    filled: (usize, u64),
}

impl Page {
    fn new(version: CodeVersion) -> Self {
        let filled = (usize::MAX, 0);
        Self { version, entries: Vec::new(), limit: 0, is_everywhere: false, filled }
    }

    fn note(&mut self, entry: Entry) {
        if self.is_everywhere {
            return;
        }
        if self.entries.len() >= self.limit {
            self.entries.sort_unstable();
            self.entries.dedup();
            if self.entries.len() > MAX_OF_PAGE {
                self.entries = Vec::new();
                self.is_everywhere = true;
                return;
            }
            self.limit = 2 * self.entries.len().max(32);
        }
        self.entries.push(entry);
    }
}

impl Jumps {
    /// Which jump cache is for code of `key`.
    pub(super) fn table(&mut self, tables: &mut Tables, key: Key, counters: &Counters) -> usize {
        let class = key.class as usize;
        if key.mode.is_64() {
            return class;
        }
        if self.narrow_modes[class] != key.mode {
            self.narrow_modes[class] = key.mode;
            self.empty(tables, CLASSES + class, counters);
        }
        CLASSES + class
    }

    /// Empties the jump cache numbered `table`.
    pub(super) fn empty(&mut self, tables: &mut Tables, table: usize, counters: &Counters) {
        if !self.used[table].is_empty() {
            counters.count(Count::Emptied);
            self.emptied[table] += 1;
        }
        for index in self.used[table].drain(..) {
            let index = index as usize;
            tables.get_mut(table, index).rip = no_jump(index);
        }
    }

    /// Empties all, and forgets all pages, as their numbers will be given to others.
    pub(super) fn forget(&mut self, tables: &mut Tables, counters: &Counters) {
        (0..JUMP_TABLES).for_each(|table| self.empty(tables, table, counters));
        self.pages.clear();
    }

    /// Enters `jump`, which leads to translation `n`, into jump cache `table`.
    pub(super) fn enter(
        &mut self,
        tables: &mut Tables,
        cache: &Cache,
        table: usize,
        (n, jump): (u32, Jump),
    ) {
        let index = jump_index(table, jump.rip);
        let slot = tables.get_mut(table, index);
        let was_empty = slot.rip == no_jump(index);
        *slot = jump;
        for page in cache.pages_of(n) {
            self.page(cache, page).note((table as u8, index as u32));
        }
        if !was_empty {
            return;
        }
        let used = &mut self.used[table];
        if used.len() >= 2 * jumps_of(table) {
            // Entries were emptied and filled again one by one, and are in the list as often.
            used.sort_unstable();
            used.dedup();
        }
        used.push(index as u32);
    }

    /// Jump cache `table` may have been emptied, and now translation `n` is at `rip` again: the others in its
    /// page are where they were, too. Enters them all, once after each time.
    pub(super) fn fill(
        &mut self,
        tables: &mut Tables,
        cache: &Cache,
        table: usize,
        (n, rip): (u32, u64),
    ) {
        let age = (table, self.emptied[table]);
        let page = self.page(cache, cache.page_of(n));
        if std::mem::replace(&mut page.filled, age) != age {
            cache.neighbours(n, rip).for_each(|jump| self.enter(tables, cache, table, jump));
        }
    }

    fn page(&mut self, cache: &Cache, page: usize) -> &mut Page {
        if page >= self.pages.len() {
            self.pages.resize_with(page + 1, || None);
        }
        self.pages[page].get_or_insert_with(|| Page::new(cache.version(page)))
    }

    /// Empties what leads to pages that `cache` knows to have another version than when this was last done.
    /// Returns whether there were such pages.
    pub(super) fn follow(
        &mut self,
        tables: &mut Tables,
        cache: &Cache,
        counters: &Counters,
    ) -> bool {
        let (mut any, mut all) = (false, false);
        let pages = self.pages.iter_mut().enumerate();
        for (number, page) in pages.filter_map(|(number, page)| Some((number, page.as_mut()?))) {
            let version = cache.version(number);
            if std::mem::replace(&mut page.version, version) == version {
                continue;
            }
            any = true;
            all |= std::mem::take(&mut page.is_everywhere);
            for (table, index) in page.entries.drain(..) {
                let index = index as usize;
                tables.get_mut(table.into(), index).rip = no_jump(index);
            }
        }
        if all {
            (0..JUMP_TABLES).for_each(|table| self.empty(tables, table, counters));
        }
        any
    }
}
