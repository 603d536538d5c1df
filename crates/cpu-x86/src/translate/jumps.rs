//! The jump caches of a CPU: where the code for an address is *as the page tables are now*.
//!
//! Translated code looks addresses up in their tables, those to return to in tables of returns first. Which
//! entries are used, and which lead to the translations of which page, is known here, so that they can be
//! emptied: all of a class when its TLB has dropped entries for instructions, those of a page when it was written.

use memory::CodeVersion;

use super::cache::{Cache, Key};
use super::state::{JUMP_TABLES, JUMPS, Jump, PAGES, Tables, jump_index, jump_table, no_jump};
use crate::counters::{Count, Counters};
use crate::host::PAGE_OFFSET;
use crate::segment::Mode;
use crate::tlb::CLASSES;

/// Most places that are remembered where a page is.
const MAX_PLACES: usize = 64;

/// What is known of the jump caches beside their entries.
#[derive(Default)]
pub(super) struct Jumps {
    /// Entries of each that are set, and maybe some that were.
    used: [Vec<u32>; JUMP_TABLES],
    /// Entries of the table of pages of each that are set, and maybe some that were.
    used_pages: [Vec<u16>; JUMP_TABLES],
    /// How often each was emptied.
    emptied: [u64; JUMP_TABLES],
    /// The modes of the code of 32 bits that they know, by class.
    narrow_modes: [Mode; CLASSES],
    /// There may have been code of 32 bits.
    has_narrow: bool,
    /// By number, the pages that translations are in.
    pages: Vec<Option<Page>>,
    /// Address of the code that leaves to go on at the address in a register.
    leave: u64,
}

/// A page that entries lead to.
struct Page {
    /// Its version when it was last looked at.
    version: CodeVersion,
    /// Where it is, so that entries lead to it.
    places: Vec<Place>,
    /// They are so many that nobody keeps the list.
    is_everywhere: bool,
}

/// Entries of a jump cache for the addresses of a page.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Place {
    table: usize,
    /// The addresses, but for the offset.
    page: u64,
    /// How often the jump cache had been emptied. If it was since, none of them is left.
    age: u64,
}

impl Jumps {
    /// Of `tables` that are all zeroes, which are made empty; `leave` is where code leaves to go on at the address
    /// in a register.
    pub(super) fn new(tables: &mut Tables, leave: u64) -> Self {
        for table in 0..JUMP_TABLES {
            tables.get_mut(table, 0).rip = no_jump(0);
            tables.empty_returns(table, leave);
        }
        Self { leave, ..Self::default() }
    }

    /// Which jump cache is for code of `key`.
    pub(super) fn table(&mut self, tables: &mut Tables, key: Key, counters: &Counters) -> usize {
        let (class, table) = (key.class as usize, jump_table(key.class, key.mode.is_64()));
        if key.mode.is_64() {
            return table;
        }
        self.has_narrow = true;
        if self.narrow_modes[class] != key.mode {
            self.narrow_modes[class] = key.mode;
            self.empty(tables, table, counters);
        }
        table
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
        for index in self.used_pages[table].drain(..) {
            tables.empty_mapping(table, index.into());
        }
        // Those for code of 32 bits are as they are made, unless there has been such code.
        if table < CLASSES || self.has_narrow {
            tables.empty_returns(table, self.leave);
        }
    }

    /// Empties all, and forgets all pages, as their numbers will be given to others. Code leaves at `leave` from now
    /// on.
    pub(super) fn forget(&mut self, tables: &mut Tables, leave: u64, counters: &Counters) {
        (self.leave, self.has_narrow) = (leave, true);
        (0..JUMP_TABLES).for_each(|table| self.empty(tables, table, counters));
        self.pages.clear();
    }

    /// Enters `jump`, which leads to translation `n`, into jump cache `table`. If that knows nothing of the page,
    /// enters the others in there, too: they are where they were.
    pub(super) fn enter(
        &mut self,
        tables: &mut Tables,
        cache: &Cache,
        table: usize,
        (n, jump): (u32, Jump),
    ) {
        let page = jump.rip & !PAGE_OFFSET;
        let place = Place { table, page, age: self.emptied[table] };
        let mapping = cache.mapping(n);
        if tables.mapping(table, page) != u64::from(mapping) {
            let index = tables.set_page(table, page, mapping);
            note_used(&mut self.used_pages[table], index as u16, PAGES);
        }
        for (index, number) in cache.pages_of(n).enumerate() {
            let is_new = self.note(cache, number, place);
            if is_new && index == 0 {
                cache.neighbours(n, page).for_each(|jump| self.set(tables, table, jump));
            }
        }
        self.set(tables, table, jump);
    }

    /// Sets an entry.
    fn set(&mut self, tables: &mut Tables, table: usize, jump: Jump) {
        let index = jump_index(jump.rip);
        let entry = tables.get_mut(table, index);
        let was_empty = entry.rip == no_jump(index);
        *entry = jump;
        if was_empty {
            note_used(&mut self.used[table], index as u32, JUMPS);
        }
    }

    /// Takes note that entries at `place` may lead to page number `page`; tells whether that is new.
    fn note(&mut self, cache: &Cache, page: usize, place: Place) -> bool {
        let emptied = self.emptied;
        let page = self.page(cache, page);
        if page.is_everywhere || page.places.contains(&place) {
            return false;
        }
        page.places.retain(|place| place.age == emptied[place.table]);
        page.places.push(place);
        page.is_everywhere = page.places.len() > MAX_PLACES;
        true
    }

    fn page(&mut self, cache: &Cache, page: usize) -> &mut Page {
        if page >= self.pages.len() {
            self.pages.resize_with(page + 1, || None);
        }
        self.pages[page].get_or_insert_with(|| Page {
            version: cache.version(page),
            places: Vec::new(),
            is_everywhere: false,
        })
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
            let places = page.places.drain(..);
            let fresh = places.filter(|place| place.age == self.emptied[place.table]);
            fresh.for_each(|place| tables.empty_page(place.table, place.page));
        }
        if any {
            (0..JUMP_TABLES).for_each(|table| tables.empty_returns(table, self.leave));
        }
        if all {
            (0..JUMP_TABLES).for_each(|table| self.empty(tables, table, counters));
        }
        any
    }
}

/// Adds entry `index`, of a table of `entries`, to the list of those that are `used`.
fn note_used<T: Ord>(used: &mut Vec<T>, index: T, entries: usize) {
    if used.len() >= 2 * entries {
        // Entries were emptied and filled again one by one, and are in the list as often.
        used.sort_unstable();
        used.dedup();
    }
    used.push(index);
}
