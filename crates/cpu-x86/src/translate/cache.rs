//! The translations: how they are found, and how they become stale.
//!
//! A translation is found by the host address of its first byte and how the CPU runs. Where in the
//! guest's address space its page is does not matter: a program is translated once, wherever it is loaded.
//! (Code whose addresses have 32 bits that count, and code near where canonical addresses end, is for one
//! address.) It is made from one page, and is good while the page's version is the one it was made at, as the
//! interpreter's blocks are. Links lead from one translation to another in the same page at the same linear address:
//! they hold whenever the page is where it was when the first was entered. Those to other pages (`far`) hold while
//! those are the same mappings. All links to a page are undone when its version changes.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use hashbrown::HashTable;
use memory::{CodeVersion, CodeWatcher, PageLog};

use super::compile::ENTRY;
use super::far::{FAR, NEVER};
use super::group::Windows;
use super::state::Jump;
use crate::cpu::Cpu;
use crate::decode::decode;
use crate::feature::Instructions;
use crate::host::{HostPtr, PAGE_OFFSET};
use crate::op::Op;
use crate::segment::{CS, DS, ES, Mode, READ_FLAT, SS, WRITE_FLAT};
use crate::tlb::Class;

/// How the CPU runs, as far as translations depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) mode: Mode,
    pub(super) class: Class,
}

impl Key {
    /// How `cpu` runs now, if that is a way that translations are made for.
    pub(super) fn of(cpu: &Cpu) -> Option<Self> {
        // Nobody uses the levels between.
        let level = matches!(cpu.cpl, 0 | 3);
        let key = Self { mode: cpu.mode, class: cpu.class };
        (level && cpu.class != Class::Watched && key.fits(cpu)).then_some(key)
    }

    /// Whether code of 32 bits can run now as it is translated: with a stack of the same width, and in
    /// segments that are the whole address space. FS and GS are looked at when they are used.
    fn is_flat(cpu: &Cpu) -> bool {
        let flat = |segment: u8, flags| {
            let access = &cpu.seg_access[usize::from(segment)];
            access.base == 0 && access.flags & flags == flags
        };
        let data = READ_FLAT | WRITE_FLAT;
        cpu.mode.code_bits() == 32
            && cpu.mode.is_protected()
            && cpu.stack_mask == 0xffff_ffff
            && flat(CS, READ_FLAT)
            && [DS, ES, SS].into_iter().all(|segment| flat(segment, data))
    }

    /// Whether `cpu` still runs so.
    pub(super) fn fits(self, cpu: &Cpu) -> bool {
        // Translated code intercepts nothing, and takes events wherever it may.
        let intercepts = cpu.svm.guest || !cpu.svm.gif;
        let mode = self.mode == cpu.mode && (self.mode.is_64() || Self::is_flat(cpu));
        mode && self.class == cpu.class && !intercepts
    }
}

/// What a translation is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Host address of the first byte.
    pub(super) host: usize,
    /// The page of its RIP, if the translation is for that one only; otherwise 0.
    pub(super) page: u64,
    pub(super) key: Key,
    /// Accesses may share a probe there (see `group`).
    pub(super) windows: Windows,
}

impl Place {
    fn hash(&self) -> u64 {
        let key = self.key.class as u64 | (self.windows as u64) << 3;
        let mut hasher = PlaceHasher::default();
        hasher.write_u64(self.host as u64 ^ self.page.rotate_left(32) ^ key);
        hasher.finish()
    }

    /// Whether it is at `offset` in its page, and for code that runs as that of `other` does.
    fn is_at(&self, offset: u16, other: &Self) -> bool {
        let rest = |place: &Self| (place.page, place.key, place.windows);
        self.host as u64 & PAGE_OFFSET == u64::from(offset) && rest(self) == rest(other)
    }
}

/// One multiplication.
#[derive(Default)]
pub(super) struct PlaceHasher(u64);

impl Hasher for PlaceHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(byte.into()));
    }

    fn write_u64(&mut self, value: u64) {
        let mixed = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ mixed >> 32;
    }

    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }
}

type Map<K, V> = HashMap<K, V, BuildHasherDefault<PlaceHasher>>;

/// A translation.
pub(super) struct Translation {
    pub(super) place: Place,
    /// Address of its code.
    pub(super) code: u64,
    /// The version of its page that it is known to agree with.
    version: CodeVersion,
    /// Index of its page.
    page: u32,
    /// See [`Cache::mapping`].
    mapping: u32,
    /// Where what it was made from begins in [`Cache::bytes`]; after it comes how long each instruction is.
    start: u32,
    /// Length of what it was made from.
    len: u16,
    /// How many instructions there are in what it was made from.
    count: u8,
    /// Its only instruction crosses into another page.
    crosses: bool,
}

impl Translation {
    /// How many instructions there are. If it is a loop, in a round.
    pub(super) fn len(&self) -> usize {
        self.count.into()
    }
}

/// The second page of an instruction that crosses into it.
#[derive(Clone, Copy, Debug)]
struct Second {
    host: HostPtr,
    page: usize,
    version: CodeVersion,
}

/// A page that code is translated from.
#[derive(Clone)]
pub(super) struct SourcePage {
    pub(super) host: HostPtr,
    pub(super) log: PageLog,
    pub(super) index: usize,
    pub(super) version: CodeVersion,
}

/// A page with translations.
struct Page {
    log: PageLog,
    index: usize,
    /// The version when it was last looked at.
    version: CodeVersion,
    /// The numbers of links to here that are made.
    made: Vec<u32>,
    /// The translations that begin in it.
    translations: Vec<u32>,
}

/// A jump that can be made to lead to another translation in the same page.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    /// Where its displacement is in the buffer.
    pub(super) at: u32,
    /// Where what it leads to is, while it is not made.
    pub(super) unlinked: u32,
    /// The translation that it is in.
    pub(super) from: u32,
    /// The offset in the page of where it leads.
    pub(super) target: u16,
    /// What windows the code may have that it leads to.
    pub(super) windows: Windows,
    /// It is where a call returns to: come to from anywhere.
    pub(super) returns: bool,
}

/// A jump that can be made to lead to a translation in another page; see `far`. All are offsets in the buffer.
#[derive(Clone, Copy, Debug)]
pub(super) struct FarLink {
    pub(super) guard: u32,
    pub(super) jump: u32,
    pub(super) other: u32,
    pub(super) linked: u32,
    pub(super) unlinked: u32,
    /// The translation that it is in.
    pub(super) from: u32,
    /// The mapping that it has led to; 0 if to none yet.
    pub(super) mapping: u32,
    /// The offset in the page of where it leads.
    pub(super) target: u16,
}

/// A change of code: four bytes in the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Patch {
    pub(super) at: u32,
    pub(super) to: To,
}

/// What bytes of code are changed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum To {
    /// The displacement of what is at this offset in the buffer.
    Offset(u32),
    /// That of translated code at this address.
    Code(u64),
    Number(u32),
}

impl Link {
    /// Has it lead to code at `code`.
    fn make(&self, code: u64) -> [Option<Patch>; 3] {
        let code = code + if self.returns { 0 } else { ENTRY as u64 };
        [Some(Patch { at: self.at, to: To::Code(code) }), None, None]
    }

    fn undo(&self) -> [Option<Patch>; 3] {
        [Some(Patch { at: self.at, to: To::Offset(self.unlinked) }), None, None]
    }
}

impl FarLink {
    /// See [`Link::make`]. What is compared is changed last.
    fn make(&self, code: u64) -> [Option<Patch>; 3] {
        let jump = Patch { at: self.jump, to: To::Code(code + ENTRY as u64) };
        let guard = Patch { at: self.guard, to: To::Number(self.mapping) };
        [jump, self.give_up(), guard].map(Some)
    }

    /// Has it look into the jump cache where what is expected is not so.
    fn give_up(&self) -> Patch {
        Patch { at: self.other, to: To::Offset(self.linked) }
    }

    fn undo(&self) -> [Option<Patch>; 3] {
        let guard = Patch { at: self.guard, to: To::Number(NEVER) };
        let other = Patch { at: self.other, to: To::Offset(self.unlinked) };
        [Some(guard), Some(other), None]
    }
}

/// A translation as it is made.
pub(super) struct NewTranslation<'a> {
    pub(super) place: Place,
    pub(super) code: u64,
    /// What it is made from.
    pub(super) source: &'a [u8],
    /// How long each instruction is. If it is a loop, those of a round.
    pub(super) lens: Vec<u8>,
    pub(super) first: SourcePage,
    pub(super) second: Option<SourcePage>,
}

/// All translations.
pub(super) struct Cache {
    pub(super) translations: Vec<Translation>,
    /// What they were made from.
    bytes: Vec<u8>,
    /// Where those go on that cross into another page.
    seconds: HashMap<u32, Second>,
    /// Those that are found, by their places.
    places: HashTable<u32>,
    pages: Vec<Page>,
    /// Indices into `pages` by host page.
    page_of: Map<usize, usize>,
    pub(super) links: Vec<Link>,
    pub(super) far_links: Vec<FarLink>,
    /// By page and the address that its translations are for, or 0 if they are for any.
    mappings: HashMap<(usize, u64), u32>,
    /// Each log that has translated pages.
    logs: Vec<PageLog>,
    /// Makes CPUs leave translated code when any of it may have been written.
    watcher: Arc<CodeWatcher>,
}

/// What was found for a place.
pub(super) enum Found {
    /// Good code.
    Code(u32),
    /// Code for a page whose version has changed since.
    Stale(u32),
    Nothing,
}

impl Cache {
    /// No translations yet; `watcher` is to be called when any may have become stale.
    pub(super) fn new(watcher: Arc<CodeWatcher>) -> Self {
        Self {
            // What is not used yet takes no memory; as they grow, large lists move without leaving gaps.
            translations: Vec::with_capacity(1 << 15),
            bytes: Vec::with_capacity(1 << 20),
            seconds: HashMap::new(),
            places: HashTable::new(),
            pages: Vec::new(),
            page_of: Map::default(),
            links: Vec::with_capacity(1 << 16),
            far_links: Vec::with_capacity(1 << 15),
            mappings: HashMap::new(),
            logs: Vec::new(),
            watcher,
        }
    }

    pub(super) fn find(&self, place: &Place) -> Found {
        let is_there = |&n: &u32| self.translations[n as usize].place == *place;
        match self.places.find(place.hash(), is_there) {
            None => Found::Nothing,
            Some(&n) => {
                let translation = &self.translations[n as usize];
                let page = &self.pages[translation.page as usize];
                let version = page.log.code_version(page.index);
                let second = self.second_of(n).is_none_or(|second| {
                    let page = &self.pages[second.page];
                    page.log.code_version(page.index) == second.version
                });
                if translation.version == version && page.version == version && second {
                    Found::Code(n)
                } else {
                    Found::Stale(n)
                }
            }
        }
    }

    /// Looks for pages that were written since this was last done; returns how many links are undone, and how.
    pub(super) fn look_for_writes(&mut self) -> (usize, Vec<Patch>) {
        let mut undone = Vec::new();
        for page in &mut self.pages {
            let version = page.log.code_version(page.index);
            if version != page.version {
                page.version = version;
                undone.append(&mut page.made);
            }
        }
        let patches = undone.iter().flat_map(|&number| match number & FAR {
            0 => self.links[number as usize - 1].undo(),
            _ => self.far_links[(number & !FAR) as usize - 1].undo(),
        });
        (undone.len(), patches.flatten().collect())
    }

    /// The mapping of the page of translation `n`, from 1: a number that no other page has, and with code that is for
    /// one address only, not the same page at another address.
    pub(super) fn mapping(&self, n: u32) -> u32 {
        self.translations[n as usize].mapping
    }

    /// Logs that have translated pages, but for the first `known`.
    pub(super) fn logs(&self, known: usize) -> &[PageLog] {
        &self.logs[known..]
    }

    /// The version of page number `page` when it was last looked at.
    pub(super) fn version(&self, page: usize) -> CodeVersion {
        self.pages[page].version
    }

    /// The number of the page that translation `n` begins in.
    pub(super) fn page_of(&self, n: u32) -> usize {
        self.translations[n as usize].page as usize
    }

    /// The numbers of all pages that translation `n` is in.
    pub(super) fn pages_of(&self, n: u32) -> impl Iterator<Item = usize> + use<> {
        [Some(self.page_of(n)), self.second_of(n).map(|second| second.page)].into_iter().flatten()
    }

    /// The good translations of the page of translation `n`, which is good, that are for the same key, and where
    /// they are if the page is `at` now.
    pub(super) fn neighbours(&self, n: u32, at: u64) -> impl Iterator<Item = Jump> {
        let this = &self.translations[n as usize];
        let page = &self.pages[this.page as usize];
        let others = page.translations.iter().map(|&n| &self.translations[n as usize]);
        let good = others.filter(|other| {
            other.version == page.version
                && !other.crosses
                && other.place.windows == Windows::Wide
                && (other.place.page, other.place.key) == (this.place.page, this.place.key)
        });
        good.map(move |other| {
            let offset = other.place.host as u64 & PAGE_OFFSET;
            Jump { rip: at | offset, code: other.code }
        })
    }

    /// Takes note that translation `n` agrees with memory at its page's `version`. Links within the page
    /// stay as they are: if it has that version since it was last looked at for writes, they have still
    /// to be undone.
    pub(super) fn renew(&mut self, n: u32, version: CodeVersion) {
        self.translations[n as usize].version = version;
    }

    /// Whether the memory at `host` has what translation `n` was made from.
    pub(super) fn matches(&self, n: u32, host: HostPtr) -> bool {
        let source = self.source(n);
        let mut bytes = vec![0; source.len()];
        host.read_bytes(&mut bytes);
        bytes[..] == source[..]
    }

    /// The log of the page of translation `n`.
    pub(super) fn page_log(&self, n: u32) -> (PageLog, usize) {
        let page = &self.pages[self.translations[n as usize].page as usize];
        (page.log.clone(), page.index)
    }

    /// The host page that translation `n` goes on in, if it does.
    pub(super) fn second(&self, n: u32) -> Option<HostPtr> {
        self.second_of(n).map(|second| second.host)
    }

    fn second_of(&self, n: u32) -> Option<Second> {
        let crosses = self.translations[n as usize].crosses;
        crosses.then(|| self.seconds.get(&n).copied()).flatten()
    }

    /// The index of a page, which is known from now on.
    fn page(&mut self, source: SourcePage) -> usize {
        let next = self.pages.len();
        let page = *self.page_of.entry(source.host.addr() >> 12).or_insert(next);
        if page == next {
            if !self.logs.iter().any(|log| log.is_same(&source.log)) {
                source.log.watch_code(&self.watcher);
                self.logs.push(source.log.clone());
                // The page may have been written since its version was asked for.
                (self.watcher)();
            }
            let SourcePage { log, index, version, .. } = source;
            self.pages.push(Page {
                log,
                index,
                version,
                made: Vec::new(),
                translations: Vec::new(),
            });
        }
        page
    }

    /// Adds a translation; returns its number.
    pub(super) fn add(&mut self, new: NewTranslation) -> u32 {
        let version = new.first.version;
        let page = self.page(new.first);
        let second = new.second.map(|source| {
            let (host, version) = (source.host, source.version);
            Second { host, version, page: self.page(source) }
        });
        let n = self.translations.len() as u32;
        let next = self.mappings.len() as u32 + 1;
        let mapping = *self.mappings.entry((page, new.place.page)).or_insert(next);
        self.translations.push(Translation {
            place: new.place,
            code: new.code,
            version,
            page: page as u32,
            mapping,
            start: self.bytes.len() as u32,
            len: new.source.len() as u16,
            count: new.lens.len() as u8,
            crosses: second.is_some(),
        });
        self.bytes.extend(new.source.iter().chain(&new.lens));
        self.pages[page].translations.push(n);
        if let Some(stale) = self.enter(n) {
            self.pages[page].translations.retain(|&other| other != stale);
        }
        self.seconds.extend(second.map(|second| (n, second)));
        n
    }

    /// Has translation `n` be found at its place. Returns the one that was there.
    fn enter(&mut self, n: u32) -> Option<u32> {
        let translations = &self.translations;
        let place = |n: u32| &translations[n as usize].place;
        let there = |&other: &u32| place(other) == place(n);
        match self.places.find_mut(place(n).hash(), there) {
            Some(stale) => Some(std::mem::replace(stale, n)),
            None => {
                self.places.insert_unique(place(n).hash(), n, |&other| place(other).hash());
                None
            }
        }
    }

    /// What translation `n` was made from.
    pub(super) fn source(&self, n: u32) -> &[u8] {
        let translation = &self.translations[n as usize];
        &self.bytes[translation.start as usize..][..translation.len.into()]
    }

    /// Instruction `index` of translation `n`, counted from the first round of a loop on, decoded as code of a
    /// CPU that has `known` instructions and runs it in `page`. `None` if there is no such translation.
    pub(super) fn op(&self, known: &Instructions, n: u32, index: usize, page: u64) -> Option<Op> {
        let translation = self.translations.get(n as usize)?;
        let source = self.source(n);
        let lens = &self.bytes[translation.start as usize + source.len()..][..translation.len()];
        let before: usize = lens[..index % lens.len()].iter().map(|&len| usize::from(len)).sum();
        let mode = translation.place.key.mode;
        let rip = page | (translation.place.host as u64 & PAGE_OFFSET);
        let (rip, bytes) = (rip.wrapping_add(before as u64), source.get(before..)?);
        decode(known, mode.is_protected(), mode.code_bits(), rip, bytes)
    }

    /// What windows the code may have that link number `n`, from 1, leads to; or that of none.
    pub(super) fn windows_of(&self, n: u32) -> Windows {
        let link = n.checked_sub(1).and_then(|n| self.links.get(n as usize));
        // One to another page has a number that is none of those.
        link.map_or(Windows::Wide, |link| link.windows)
    }

    /// How the link numbered `n`, from 1, is made to lead to translation `to`, if it may be. It is then taken to be
    /// made.
    pub(super) fn make_link(&mut self, n: u32, to: u32) -> Option<[Option<Patch>; 3]> {
        if n & FAR != 0 {
            return self.make_far_link(n, to);
        }
        let link = *self.links.get(n.checked_sub(1)? as usize)?;
        let [from, to] = [link.from, to].map(|n| &self.translations[n as usize]);
        let place = Place { windows: link.windows, ..from.place };
        if to.crosses || from.page != to.page || !to.place.is_at(link.target, &place) {
            return None;
        }
        let patches = link.make(to.code);
        self.pages[from.page as usize].made.push(n);
        Some(patches)
    }

    fn make_far_link(&mut self, n: u32, to: u32) -> Option<[Option<Patch>; 3]> {
        let link = self.far_links.get_mut((n & !FAR).checked_sub(1)? as usize)?;
        let [from, to] = [link.from, to].map(|n| &self.translations[n as usize]);
        let offset = to.place.host as u64 & PAGE_OFFSET;
        let fits = offset == u64::from(link.target)
            && to.place.key == from.place.key
            && to.place.windows == Windows::Wide
            && !to.crosses
            && [0, to.mapping].contains(&link.mapping);
        if !fits {
            // It goes by the jump cache from now on.
            return Some([Some(link.give_up()), None, None]);
        }
        link.mapping = to.mapping;
        let patches = link.make(to.code);
        self.pages[to.page as usize].made.push(n);
        Some(patches)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{CODE, long_mode};

    /// A page is written between the look for writes and the translation of something else in it.
    #[test]
    fn links_are_undone_though_the_page_was_looked_at_since() {
        let mut cpu = long_mode();
        let found = cpu.code_page(CODE).expect("mapped");
        let host = found.host.expect("RAM");
        let (log, index) = cpu.memory.code_log(found.phys, cpu.smm).expect("RAM");
        let key = Key { mode: cpu.mode, class: cpu.class };
        let mut cache = Cache::new(Arc::new(|| ()));
        let add = |cache: &mut Cache, at: u64| {
            let (version, _) = log.mark_code(index);
            cache.add(NewTranslation {
                place: Place { host: host.at(at).addr(), page: 0, key, windows: Windows::Wide },
                code: 0,
                source: &[0x90],
                lens: vec![1],
                first: SourcePage { host, log: log.clone(), index, version },
                second: None,
            })
        };
        let from = add(&mut cache, CODE);
        add(&mut cache, CODE + 16);
        cache.links.push(Link {
            at: 1,
            unlinked: 2,
            from,
            target: 16,
            windows: Windows::Wide,
            returns: false,
        });
        assert_eq!(cache.look_for_writes(), (0, Vec::new()), "nothing was written");
        assert!(cache.make_link(1, 1).is_some());
        cpu.memory.write(CODE + 16, &[0xcc]).expect("RAM");
        add(&mut cache, CODE + 32);
        let undone = cache.look_for_writes();
        assert_eq!(undone, (1, vec![Patch { at: 1, to: To::Offset(2) }]));
    }
}
