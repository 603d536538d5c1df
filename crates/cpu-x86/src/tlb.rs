//! The translation lookaside buffer (APM volume 2, section 5.5).
//!
//! Two levels. The first holds [`TlbEntry`]s, one direct-mapped table a [`Class`] of access, each
//! entry with all rights already decided, so that a hit needs one comparison. It is emptied whenever
//! anything that decided a right changes, which is cheap, as the second level refills it. Only global
//! pages stay when the address space changes.
//!
//! The second level holds results of page walks with the rights as the tables gave them. An entry is
//! valid while its stamp is the current one of its address space (or that of the global pages), so an
//! address space is flushed by giving it a new stamp, and a switch of address spaces by PCID costs
//! nothing. Guests have stamps of their own (`svm`): the address space identifier (ASID) says whose
//! are current, 0 for the host's.
//!
//! Pages larger than 4 KiB are entered in pieces of 4 KiB. A small bitmap knows in which large regions
//! that happened, so that INVLPG knows when it has to search for the other pieces.
//!
//! Beside them are [`Directory`]s: where the last level of tables for a region of 2 MiB is, so that a
//! walk has one step to make. As on silicon, INVLPG drops them all (SDM volume 3, section 4.10.4.1).

use std::sync::Arc;

use memory::WritePath;

use crate::counters::{Count, Counters};
use crate::host::{Access, HostPtr, TlbEntry};
use crate::near::{NearBox, NearWord, Plain, pair};

/// Entries of each first-level table. A table takes no memory where it is not used.
pub(crate) const L1_ENTRIES: usize = 1 << 15;
/// Entries of the second level.
const L2_ENTRIES: usize = 8192;
/// How many directories are remembered.
const DIRECTORIES: usize = 1024;
/// Words of the bitmap of large regions.
const LARGE_WORDS: usize = 1024;
/// Words of the bitmap of pages whose entries for instructions were replaced.
const REPLACED_WORDS: usize = 64;
/// Number of PCIDs, each with an address space of its own.
const ADDRESS_SPACES: usize = 4096;

/// On whose behalf memory is accessed; selects the first-level table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Class {
    /// CPL 0 to 2, or the CPU itself, where SMAP keeps user pages out of reach.
    Supervisor = 0,
    /// CPL 3.
    User = 1,
    /// CPL 0 to 2 with RFLAGS.AC set: SMAP is suspended.
    SupervisorAc = 2,
    /// Every data access has to be looked at: alignment checks or data breakpoints are active. Only
    /// instruction fetches are ever entered.
    Watched = 3,
}

/// Number of [`Class`]es.
pub(crate) const CLASSES: usize = 4;

bitflags::bitflags! {
    /// What the page tables say about a page, all levels combined.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub(crate) struct Rights: u16 {
        /// Writable at every level.
        const WRITE = 1 << 0;
        /// User-accessible at every level.
        const USER = 1 << 1;
        /// Executable: NX at no level.
        const EXECUTE = 1 << 2;
        /// The dirty bit is set.
        const DIRTY = 1 << 3;
        /// Global, and global pages are enabled.
        const GLOBAL = 1 << 4;
        /// Mapped by a page of 2 or 4 MiB.
        const LARGE = 1 << 5;
        /// Mapped by a page of 1 GiB.
        const HUGE = 1 << 6;
        /// The protection key, 0 outside long mode.
        const KEY = 0xf << Self::KEY_SHIFT;
    }
}

impl Rights {
    const KEY_SHIFT: u32 = 8;

    /// With protection key `key`, 0 to 15.
    pub(crate) fn with_key(self, key: u64) -> Self {
        self | Self::from_bits_truncate((key as u16) << Self::KEY_SHIFT & Self::KEY.bits())
    }

    /// The protection key.
    pub(crate) fn key(self) -> u32 {
        u32::from((self & Self::KEY).bits() >> Self::KEY_SHIFT)
    }
}

/// The translation of one 4 KiB page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Translation {
    /// Guest physical address of the page.
    pub(crate) phys: u64,
    /// Where it is read from on the host; `None` for the bus.
    pub(crate) host: Option<HostPtr>,
    /// Where writes go.
    pub(crate) writes: WritePath,
    /// Rights of the page.
    pub(crate) rights: Rights,
}

#[derive(Clone, Copy)]
struct L2Entry {
    /// Linear address of the page.
    page: u64,
    /// 0 when empty.
    stamp: u64,
    translation: Translation,
}

const L2_EMPTY: L2Entry = L2Entry {
    page: 0,
    stamp: 0,
    translation: Translation {
        phys: 0,
        host: None,
        writes: WritePath::Bus,
        rights: Rights::empty(),
    },
};

/// The last level of page tables for a region of 2 MiB.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Directory {
    /// Guest physical address of the table.
    pub(crate) table: u64,
    /// Where it is on the host.
    pub(crate) host: HostPtr,
    /// What the levels above allow.
    pub(crate) rights: Rights,
}

#[derive(Clone, Copy)]
struct DirectoryEntry {
    /// The linear address, in units of 2 MiB.
    region: u64,
    stamp: u64,
    epoch: u64,
    directory: Directory,
}

/// What decides how a guest's tables are read, and so whether what was entered for it is of use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SpaceKey {
    /// Paging is on.
    pub(crate) paged: bool,
    /// The bits of CR4 and EFER that are about the form of entries.
    pub(crate) cr4: u64,
    pub(crate) efer: u64,
    /// The root of the nested tables.
    pub(crate) nested: Option<u64>,
}

/// The address spaces of one ASID.
struct Spaces {
    key: SpaceKey,
    /// Stamp of global pages.
    global_stamp: u64,
    /// Stamps of all address spaces by PCID; 0 for one that has no entries.
    stamps: Box<[u64]>,
    /// Bit n: a piece of a 2 or 4 MiB page was entered whose 2 MiB region hashes to n.
    large: [u64; LARGE_WORDS],
    /// The same for 1 GiB.
    huge: u64,
}

impl Spaces {
    /// Those of an ASID that no entry is of, with a stamp that none has.
    fn new(global_stamp: u64) -> Self {
        Self {
            key: SpaceKey::default(),
            global_stamp,
            stamps: vec![0; ADDRESS_SPACES].into_boxed_slice(),
            large: [0; LARGE_WORDS],
            huge: 0,
        }
    }
}

/// The first-level tables by class.
pub(crate) type FirstLevel = [[TlbEntry; L1_ENTRIES]; CLASSES];

/// Empties tables that are all zeroes.
fn make_empty(l1: &mut FirstLevel) {
    // All the others are empty as they are.
    l1.iter_mut().for_each(|table| table[0] = TlbEntry::empty(0));
}

/// Both levels.
pub(crate) struct Tlb {
    l1: NearBox<FirstLevel>,
    /// What is known of each first-level table beside its entries.
    tables: [Table; CLASSES],
    /// By class: changes whenever an entry for instructions may have become invalid.
    code_epochs: [u64; CLASSES],
    l2: Box<[L2Entry]>,
    directories: Vec<DirectoryEntry>,
    /// Changes when all directories are dropped.
    directory_epoch: u64,
    last_stamp: u64,
    /// Stamp of the current address space.
    stamp: u64,
    /// The address spaces of the current ASID.
    spaces: Spaces,
    asid: usize,
    /// Those of the others, by ASID, as far as they were ever entered.
    others: Vec<Option<Spaces>>,
    counters: Arc<Counters>,
}

/// What is known of a first-level table beside its entries.
struct Table {
    /// The entries that are not empty and not global, and maybe some that are.
    local: Vec<u16>,
    /// The entries that are not empty and global, and maybe some that are not.
    global: Vec<u16>,
    /// Bit n: entry n is global.
    is_global: [u64; L1_ENTRIES / 64],
    /// The entries that have the right to write, and maybe some that have not, each once: whoever marks a page
    /// as code, or is told that somebody did, looks through those only.
    writable: Vec<u16>,
    /// Bit n: entry n is among them.
    is_writable: [u64; L1_ENTRIES / 64],
    /// Bit n: an entry for instructions was replaced, of a page whose number hashes to n.
    replaced: [u64; REPLACED_WORDS],
    /// There is such an entry; one that was not global.
    any_replaced: bool,
    local_replaced: bool,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            local: Vec::new(),
            global: Vec::new(),
            is_global: [0; L1_ENTRIES / 64],
            writable: Vec::new(),
            is_writable: [0; L1_ENTRIES / 64],
            replaced: [0; REPLACED_WORDS],
            any_replaced: false,
            local_replaced: false,
        }
    }
}

impl Table {
    fn is_global(&self, index: usize) -> bool {
        self.is_global[index / 64] >> (index % 64) & 1 != 0
    }

    fn set_global(&mut self, index: usize, global: bool) {
        let bit = 1 << (index % 64);
        let word = &mut self.is_global[index / 64];
        *word = if global { *word | bit } else { *word & !bit };
    }

    /// Takes note that the entry for instructions in `page` is replaced.
    fn note_replaced(&mut self, page: u64, global: bool) {
        let (word, bit) = replaced_bit(page);
        self.replaced[word] |= bit;
        self.any_replaced = true;
        self.local_replaced |= !global;
    }

    /// Whether instructions in the page at `linear` may be known to whoever keeps what the table had.
    fn may_have_had(&self, linear: u64) -> bool {
        let (word, bit) = replaced_bit(linear);
        self.replaced[word] & bit != 0
    }

    fn forget_replaced(&mut self) {
        if self.any_replaced {
            self.replaced = [0; REPLACED_WORDS];
            (self.any_replaced, self.local_replaced) = (false, false);
        }
    }

    /// Adds entry `index` of `entries` to the list that it belongs to.
    fn note_used(&mut self, index: usize, entries: &[TlbEntry]) {
        let global = self.is_global(index);
        let used = if global { &mut self.global } else { &mut self.local };
        if used.len() < 2 * L1_ENTRIES {
            used.push(index as u16);
            return;
        }
        // Entries were emptied and filled again one by one, and are in the list as often.
        let entries = entries.iter().enumerate();
        let is_used = |(index, entry): &(usize, &TlbEntry)| {
            !entry.is_empty(*index) && self.is_global(*index) == global
        };
        let listed = entries.filter(is_used).map(|(index, _)| index as u16).collect();
        if global {
            self.global = listed;
        } else {
            self.local = listed;
        }
    }

    /// Takes note that entry `index` has the right to write.
    fn note_writable(&mut self, index: usize) {
        let (word, bit) = (&mut self.is_writable[index / 64], 1 << (index % 64));
        if *word & bit == 0 {
            *word |= bit;
            self.writable.push(index as u16);
        }
    }

    /// The entries that may have the right to write, which have it no more.
    fn take_writable(&mut self) -> impl Iterator<Item = usize> {
        let is_writable = &mut self.is_writable;
        self.writable.drain(..).map(move |index| {
            let index = usize::from(index) % L1_ENTRIES;
            is_writable[index / 64] &= !(1 << (index % 64));
            index
        })
    }

    fn used(&self) -> impl Iterator<Item = usize> {
        self.local.iter().chain(&self.global).map(|&index| usize::from(index) % L1_ENTRIES)
    }
}

fn replaced_bit(linear: u64) -> (usize, u64) {
    let hash = (linear >> 12 ^ linear >> 28) as usize % (REPLACED_WORDS * 64);
    (hash / 64, 1 << (hash % 64))
}

fn l1_index(linear: u64) -> usize {
    (linear >> 12) as usize % L1_ENTRIES
}

fn l2_index(linear: u64) -> usize {
    // Kernel and user halves differ in the high bits only; folding them in keeps them apart.
    ((linear >> 12) ^ (linear >> 40)) as usize % L2_ENTRIES
}

fn large_bit(linear: u64) -> (usize, u64) {
    let hash = (linear >> 21 ^ linear >> 36) as usize % (LARGE_WORDS * 64);
    (hash / 64, 1 << (hash % 64))
}

fn huge_bit(linear: u64) -> u64 {
    1 << ((linear >> 30) % 64)
}

impl Tlb {
    pub(crate) fn new(counters: &Arc<Counters>) -> Self {
        let mut l1 = NearBox::new();
        make_empty(&mut l1);
        Self {
            l1,
            tables: Default::default(),
            code_epochs: [1; CLASSES],
            directories: Vec::new(),
            directory_epoch: 0,
            l2: vec![L2_EMPTY; L2_ENTRIES].into_boxed_slice(),
            last_stamp: 2,
            stamp: 1,
            spaces: Spaces::new(2),
            asid: 0,
            others: Vec::new(),
            counters: Arc::clone(counters),
        }
    }

    /// Probes the first level.
    #[inline(always)]
    pub(crate) fn probe(
        &self,
        class: Class,
        linear: u64,
        len: usize,
        access: Access,
    ) -> Option<HostPtr> {
        self.l1[class as usize][l1_index(linear)].hit(linear, len, access)
    }

    /// Enters the page of `linear`, at `host`, into the table of `class`, for reads, writes and
    /// execution as `rights` say. `global` says that the page is in all address spaces.
    pub(crate) fn enter(
        &mut self,
        class: Class,
        linear: u64,
        host: HostPtr,
        rights: [bool; 3],
        global: bool,
    ) {
        let index = l1_index(linear);
        let entries = &mut self.l1[class as usize];
        let table = &mut self.tables[class as usize];
        let was_empty = entries[index].is_empty(index);
        let was_global = table.is_global(index);
        let new = TlbEntry::new(index, linear, host, rights);
        if let Some(page) = entries[index].code(index)
            && new.code(index) != Some(page)
        {
            table.note_replaced(page, was_global);
        }
        entries[index] = new;
        let [_, writable, _] = rights;
        if writable {
            table.note_writable(index);
        }
        if was_empty || was_global != global {
            table.set_global(index, global);
            table.note_used(index, &entries[..]);
        }
    }

    /// The tag, for accesses of the kind `access`, of entry `index` of the table of `class`.
    pub(crate) fn tag(&self, class: Class, index: usize, access: Access) -> u64 {
        self.l1[class as usize][index % L1_ENTRIES].tag(access)
    }

    /// Moves the first-level tables, which are empty then, to where a `T` and a word are at known distances.
    pub(crate) fn move_next_to<T: Plain>(&mut self) -> (NearBox<T>, NearWord) {
        self.flush_l1();
        let (l1, other, word) = pair();
        self.l1 = l1;
        make_empty(&mut self.l1);
        (other, word)
    }

    /// For each class a number that changes whenever instructions that could be fetched by the
    /// first-level table of the class no longer can, or are elsewhere.
    pub(crate) fn code_epochs(&self) -> [u64; CLASSES] {
        self.code_epochs
    }

    fn change_code(&mut self, class: usize) {
        self.tables[class].forget_replaced();
        self.code_epochs[class] += 1;
    }

    /// The directory for `linear`, if it is remembered for the current address space.
    pub(crate) fn directory(&self, linear: u64) -> Option<Directory> {
        let region = linear >> 21;
        let entry = self.directories.get(region as usize % DIRECTORIES)?;
        let valid = entry.region == region
            && entry.stamp == self.stamp
            && entry.epoch == self.directory_epoch;
        valid.then_some(entry.directory)
    }

    /// Remembers the directory for `linear`.
    pub(crate) fn remember_directory(&mut self, linear: u64, directory: Directory) {
        let region = linear >> 21;
        let (stamp, epoch) = (self.stamp, self.directory_epoch);
        let entry = DirectoryEntry { region, stamp, epoch, directory };
        if self.directories.is_empty() {
            self.directories.resize(DIRECTORIES, DirectoryEntry { stamp: 0, ..entry });
        }
        self.directories[region as usize % DIRECTORIES] = entry;
    }

    /// Looks `linear` up in the second level.
    pub(crate) fn lookup(&self, linear: u64) -> Option<Translation> {
        let entry = &self.l2[l2_index(linear)];
        let valid = entry.stamp == self.stamp || entry.stamp == self.spaces.global_stamp;
        (valid && entry.page == linear & !0xfff).then_some(entry.translation)
    }

    /// Remembers the result of a page walk.
    pub(crate) fn remember(&mut self, linear: u64, translation: Translation) {
        let rights = translation.rights;
        if rights.contains(Rights::LARGE) {
            let (word, bit) = large_bit(linear);
            self.spaces.large[word] |= bit;
        } else if rights.contains(Rights::HUGE) {
            self.spaces.huge |= huge_bit(linear);
        }
        let stamp =
            if rights.contains(Rights::GLOBAL) { self.spaces.global_stamp } else { self.stamp };
        self.l2[l2_index(linear)] = L2Entry { page: linear & !0xfff, stamp, translation };
    }

    fn next_stamp(&mut self) -> u64 {
        self.last_stamp += 1;
        self.last_stamp
    }

    /// Empties the first level: what decides a right has changed, or another CPU wants to be asked
    /// again before this one writes.
    pub(crate) fn flush_l1(&mut self) {
        self.counters.count(Count::TlbFlushes);
        for class in 0..CLASSES {
            let (entries, table) = (&mut self.l1[class], &mut self.tables[class]);
            for index in table.local.drain(..).chain(table.global.drain(..)) {
                let index = usize::from(index) % L1_ENTRIES;
                entries[index] = TlbEntry::empty(index);
            }
            table.take_writable().for_each(drop);
            self.change_code(class);
        }
    }

    /// Empties the first level but for global pages.
    fn flush_local(&mut self) {
        self.counters.count(Count::TlbFlushes);
        for class in 0..CLASSES {
            let (entries, table) = (&mut self.l1[class], &mut self.tables[class]);
            let mut local = std::mem::take(&mut table.local);
            let mut code = table.local_replaced;
            for index in local.drain(..) {
                let index = usize::from(index) % L1_ENTRIES;
                if !table.is_global(index) {
                    code |= entries[index].is_code(index);
                    entries[index] = TlbEntry::empty(index);
                }
            }
            table.local = local;
            if code {
                self.change_code(class);
            }
        }
    }

    /// Takes away the right to write from all first-level entries: whoever writes has to ask again.
    pub(crate) fn forbid_writes(&mut self) {
        for (entries, table) in self.l1.iter_mut().zip(&mut self.tables) {
            table.take_writable().for_each(|index| entries[index].forbid_writes(index));
        }
    }

    /// Makes the address spaces of `asid` current: [`Self::switch`] says which of them.
    pub(crate) fn enter_asid(&mut self, asid: usize) {
        if asid == self.asid {
            return;
        }
        self.flush_l1();
        let unused = self.next_stamp();
        let most = asid.max(self.asid) + 1;
        if self.others.len() < most {
            self.others.resize_with(most, || None);
        }
        let spaces = self.others[asid].take().unwrap_or_else(|| Spaces::new(unused));
        let left = std::mem::replace(&mut self.spaces, spaces);
        self.others[self.asid] = Some(left);
        self.asid = asid;
        self.stamp = unused;
    }

    /// Empties the address spaces of the current ASID if they were filled by other rules than `key`'s.
    pub(crate) fn require(&mut self, key: SpaceKey) {
        if self.spaces.key != key {
            self.spaces.key = key;
            self.flush_all();
        }
    }

    /// Empties everything, of all ASIDs.
    pub(crate) fn flush_every_asid(&mut self) {
        self.others.clear();
        self.flush_all();
    }

    /// Forgets the page at `linear` in all address spaces of `asid`.
    pub(crate) fn invalidate_in(&mut self, asid: usize, linear: u64) {
        if asid == self.asid {
            self.invalidate(linear);
        } else if let Some(spaces) = self.others.get_mut(asid) {
            // One that has to be filled anew has forgotten.
            *spaces = None;
        }
    }

    /// Empties everything of the current ASID.
    pub(crate) fn flush_all(&mut self) {
        self.flush_l1();
        self.spaces.stamps.fill(0);
        self.spaces.global_stamp = self.next_stamp();
        self.stamp = self.next_stamp();
        self.spaces.large = [0; LARGE_WORDS];
        self.spaces.huge = 0;
    }

    /// Switches to address space `pcid`; `flush` empties it first. Global pages stay.
    pub(crate) fn switch(&mut self, pcid: u16, flush: bool) {
        self.flush_l1();
        self.select(pcid, flush);
    }

    /// The same when nothing else changes that decides about pages: CR3 is loaded.
    pub(crate) fn switch_space(&mut self, pcid: u16, flush: bool) {
        self.counters.count(Count::Switches);
        self.flush_local();
        self.select(pcid, flush);
    }

    fn select(&mut self, pcid: u16, flush: bool) {
        let fresh = self.next_stamp();
        let slot = &mut self.spaces.stamps[usize::from(pcid) % ADDRESS_SPACES];
        if flush || *slot == 0 {
            *slot = fresh;
        }
        self.stamp = *slot;
    }

    /// Empties address space `pcid` without its global pages. `current` says that it is the active one.
    pub(crate) fn flush_space(&mut self, pcid: u16, current: bool) {
        self.spaces.stamps[usize::from(pcid) % ADDRESS_SPACES] = 0;
        if current {
            self.switch(pcid, true);
        }
    }

    /// Empties all address spaces, but not the global pages.
    pub(crate) fn flush_non_global(&mut self, pcid: u16) {
        self.spaces.stamps.fill(0);
        self.switch(pcid, true);
    }

    /// INVLPG: forgets the page at `linear`, of whatever size, global or not.
    pub(crate) fn invalidate(&mut self, linear: u64) {
        self.counters.count(Count::PageFlushes);
        let index = l1_index(linear);
        for class in 0..CLASSES {
            let entry = &mut self.l1[class][index];
            let mut code = self.tables[class].may_have_had(linear);
            if entry.is_for(linear) {
                code |= entry.is_code(index);
                *entry = TlbEntry::empty(index);
            }
            if code {
                self.change_code(class);
            }
        }
        self.directory_epoch += 1;
        let entry = &mut self.l2[l2_index(linear)];
        if entry.page == linear & !0xfff {
            entry.stamp = 0;
        }
        let (word, bit) = large_bit(linear);
        if self.spaces.large[word] & bit != 0 {
            // A page of 4 MiB (32-bit paging) has two such regions.
            self.forget_region(linear, 22);
        }
        if self.spaces.huge & huge_bit(linear) != 0 {
            self.forget_region(linear, 30);
        }
    }

    fn forget_region(&mut self, linear: u64, shift: u32) {
        self.counters.count(Count::Searches);
        for class in 0..CLASSES {
            let (entries, table) = (&mut self.l1[class], &self.tables[class]);
            let mut code = table.any_replaced;
            for index in table.used() {
                if entries[index].is_within(index, linear, shift) {
                    code |= entries[index].is_code(index);
                    entries[index] = TlbEntry::empty(index);
                }
            }
            if code {
                self.change_code(class);
            }
        }
        for entry in self.l2.iter_mut() {
            if entry.page >> shift == linear >> shift {
                entry.stamp = 0;
            }
        }
    }

    /// Has stores of `class` to the page at `linear`, if it is entered there as `host`, done by the first
    /// level from now on, or not any more.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn let_write(&mut self, class: Class, linear: u64, host: HostPtr, allowed: bool) {
        let index = l1_index(linear);
        self.l1[class as usize][index].let_write(index, linear, host, allowed);
        self.tables[class as usize].note_writable(index);
    }

    /// Takes away the right to write to the host page at `host` from every first-level entry.
    pub(crate) fn protect(&mut self, host: HostPtr) {
        for (entries, table) in self.l1.iter_mut().zip(&self.tables) {
            for index in table.writable.iter().map(|&index| usize::from(index) % L1_ENTRIES) {
                entries[index].protect(index, host);
            }
        }
    }
}
