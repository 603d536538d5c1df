//! The translator: from guest x86 to host x86, for hosts that are x86-64.
//!
//! Code that is run often enough is translated; everything else is interpreted, and so is each
//! instruction in translated code that the translator does not know.
//!
//! - `regs`: which host register holds what.
//! - `state`: what translated code and the rest of the CPU exchange.
//! - `asm`, `code`: writing host code, and the memory it is in.
//! - `compile`: the frame of a translation; `flags`: where the flags are; `memory`: the probe of the TLB;
//!   `group`: accesses that share one; `integer`, `control`, `string`, `system`, `vector`, `x87`:
//!   instructions by kind.
//! - `thunks`, `enter`: the ways in and out, and the helpers.
//! - `cache`: which translations there are.
//!
//! **Safety.** Guest code decides nothing about host code but by the instructions that `integer`,
//! `control`, `string`, `system`, `vector` and `x87` name one by one. Host code reaches guest memory only by
//! an address that the probe of the TLB has given it. Added to that is nothing but a displacement that the
//! translator chose, within what was probed for (`group`), and a repeated string instruction's index, whose
//! count has been compared with what is left of the page. It reaches the CPU's state by the stack pointer,
//! which only calls of thunks move, and the TLB and the jump cache at addresses below two gigabytes that are part of
//! the code. It calls nothing but the four helpers of `enter`, through the thunks.
//!
//! **Where code is.** Translated code knows the page that it runs in from the state, where it is put when
//! the code is entered from elsewhere, with its address in a register. All addresses relative to RIP are
//! made from that.
//!
//! **Going from one translation to another.** Within a page, by a direct jump: if the page is mapped
//! where the first translation was entered, so is the second. Into another page, or to an address that
//! is only known when it is reached, by the jump cache, which knows for an address where its code is as
//! the page tables are now; it is emptied when the TLB drops an entry for instructions. Loops look at
//! the CPU's signals: each jump back, each way through the jump cache.

mod asm;
mod budget;
mod cache;
mod check;
mod code;
mod compile;
mod control;
mod enter;
mod flags;
mod group;
mod integer;
mod memory;
mod regs;
mod state;
mod string;
mod system;
#[cfg(test)]
mod tests;
mod thunks;
mod vector;
mod x87;

use std::sync::Arc;

use accel::log::Topic;

use crate::block::BlockCache;
use crate::counters::{Count, Counters};
use crate::cpu::{Cpu, Translation};
use crate::decode::{MAX_LEN, decode_whole};
use crate::exception::Result;
use crate::host::{HostPtr, PAGE_OFFSET};
use crate::low::LowBox;
use crate::op::{Op, OpFlags};
use crate::segment::Mode;
use crate::tlb::CLASSES;
use cache::{Cache, Found, Key, Link, NewTranslation, Place, SourcePage};
use check::Checker;
use code::CodeBuffer;
use compile::{Compiled, Compiler, ENTRY, FOR_ACCESS, Input, LinkSite, Places, goes_on};
use enter::Left;
use state::{JUMPS, Jump, State, TRANSLATIONS};
use thunks::Thunks;
use vector::HostFeatures;

/// log2 of the number of places where executions are counted.
const HEAT_BITS: u32 = 16;
/// Most instructions in a translation.
const MAX_OPS: usize = 64;
/// Most bytes that a translation is made from.
const MAX_SOURCE: usize = 512;
/// Room that a translation may take, and more than any does.
const ROOM: usize = 64 << 10;
/// The largest buffer: jumps reach two gigabytes.
const MAX_BUFFER: usize = 2047 << 20;
/// Jump caches: one a class for 64-bit code, and one for code of 32 bits.
const JUMP_TABLES: usize = 2 * CLASSES;

/// How many instructions are kept decoded that the interpreter executed for translated code.
const RECENT: usize = 512;

/// An instruction that the interpreter executed for translated code.
#[derive(Clone, Copy)]
struct Recent {
    /// See [`Translator::site`].
    site: u64,
    page: u64,
    op: Op,
    key: Key,
}

/// The index of the instruction that `site` names in its translation.
fn index_of(site: u64) -> usize {
    (site & (FOR_ACCESS - 1)) as usize
}

/// What one CPU needs to run translated code.
pub(crate) struct Translator {
    state: LowBox<State>,
    jumps: LowBox<[[Jump; JUMPS]; JUMP_TABLES]>,
    /// Entries of each jump cache that are set.
    jumps_used: [Vec<u16>; JUMP_TABLES],
    /// How often each jump cache was emptied.
    emptied: [u64; JUMP_TABLES],
    /// The mode of the code of 32 bits that the jump cache of each class knows.
    narrow_modes: [Mode; CLASSES],
    code: CodeBuffer,
    /// Bytes of `code` that the thunks take.
    fixed: usize,
    thunks: Thunks,
    features: HostFeatures,
    cache: Cache,
    heat: Box<[u8]>,
    threshold: u8,
    /// The TLB's `code_epochs` that `jumps` is of.
    code_epochs: [u64; CLASSES],
    counters: Arc<Counters>,
    /// Instructions that the interpreter executed for translated code not long ago.
    recent: Box<[Option<Recent>]>,
    /// The link by which translated code was left.
    link: u32,
    /// Instructions are counted.
    counts: bool,
    /// What the budget in the state was when the CPU's count of instructions was last right.
    settled: i64,
    /// Translations lead to each other.
    chains: bool,
    /// Both engines run.
    checker: Option<Box<Checker>>,
}

impl Translator {
    /// Whether the host's processor has what translated code needs.
    pub(crate) fn is_possible() -> bool {
        HostFeatures::detect().usable
    }

    /// A translator for `cpu`. `None` if the host can't have one.
    pub(crate) fn new(cpu: &Cpu, how: Translation) -> Option<Self> {
        let features = HostFeatures::detect();
        if !features.usable {
            return None;
        }
        cpu.tlb.table(cpu.class)?;
        let mut state = LowBox::<State>::new();
        let mut jumps = LowBox::<[[Jump; JUMPS]; JUMP_TABLES]>::new();
        jumps.low_addr()?;
        jumps.iter_mut().for_each(|jumps| jumps[0].rip = state::no_jump(0));
        state.signals = match how.check {
            false => std::ptr::from_ref(cpu.signals.word()) as u64,
            true => u64::from(state.low_addr()? + state::at::NEVER),
        };
        [state.step, state.units, state.refill, state.time] = enter::helpers();
        let mut code = CodeBuffer::new(how.buffer.clamp(4 * ROOM, MAX_BUFFER)).ok()?;
        let (bytes, thunks) = thunks::write(code.next([0; 2])[0], state.low_addr()?, features.avx);
        code.push(&bytes).ok()?;
        cpu.counters.set(Count::Size, code.size() as u64);
        cpu.counters.set(Count::Used, code.used() as u64);
        Some(Self {
            state,
            jumps,
            jumps_used: Default::default(),
            emptied: [0; JUMP_TABLES],
            narrow_modes: [Mode::default(); CLASSES],
            fixed: code.used(),
            code,
            thunks,
            features,
            cache: Cache::new(&cpu.signals),
            heat: vec![0; 1 << HEAT_BITS].into(),
            threshold: how.threshold.max(1),
            code_epochs: [0; CLASSES],
            counters: cpu.counters(),
            recent: vec![None; RECENT].into(),
            link: 0,
            counts: cpu.timed.is_some(),
            settled: 0,
            chains: !how.check && !cpu.log.wants(Topic::NoChain),
            checker: how.check.then(Box::default),
        })
    }

    /// The instruction that `site` names in the translated code that runs, and how the CPU has to run
    /// for it.
    fn site(&mut self, cpu: &Cpu, site: u64) -> Option<(Op, Key)> {
        let (name, page) = (site & !FOR_ACCESS, self.state.page);
        let slot = (name ^ name >> 29) as usize % RECENT;
        if let Some(recent) = &self.recent[slot]
            && (recent.site, recent.page) == (name, page)
        {
            return Some((recent.op, recent.key));
        }
        let (op, key) = self.site_in(cpu, name, page)?;
        self.recent[slot] = Some(Recent { site: name, page, op, key });
        Some((op, key))
    }

    /// The same in code that ran in `page`.
    fn site_in(&self, cpu: &Cpu, site: u64, page: u64) -> Option<(Op, Key)> {
        let translation = self.cache.translations.get((site >> 32) as usize)?;
        let op = translation.op(&cpu.limits.instructions, index_of(site), page)?;
        Some((op, translation.place.key))
    }

    /// How many instructions come after the one that `site` names, in its translation.
    fn left(&self, site: u64) -> usize {
        let translation = self.cache.translations.get((site >> 32) as usize);
        translation.map_or(0, |translation| translation.len() - index_of(site) - 1)
    }

    /// Runs translated code from `cpu`'s current instruction on, or interprets a block.
    ///
    /// # Errors
    /// The exception that an instruction raised.
    #[inline]
    pub(crate) fn run(&mut self, cpu: &mut Cpu, blocks: &mut BlockCache) -> Result {
        if self.checker.is_some() {
            return self.run_checked(cpu, blocks);
        }
        if self.counts {
            return self.run_counted(cpu, blocks);
        }
        let Some(code) = self.next(cpu) else { return cpu.run_block(blocks) };
        match enter::enter(self, cpu, code)? {
            Left::At { link } => {
                self.link = link;
                Ok(())
            }
            Left::Interpret => cpu.run_block(blocks),
        }
    }

    /// The code for `cpu`'s current instruction, if there is some, or shall be.
    #[inline]
    fn next(&mut self, cpu: &mut Cpu) -> Option<u64> {
        self.take_up_changes(cpu);
        let Some(key) = Key::of(cpu) else {
            self.link = 0;
            self.counters.count(Count::OtherMode);
            return None;
        };
        self.look_up(cpu, key)
    }

    /// Drops what is no longer so: code was written, or pages are elsewhere.
    #[inline]
    fn take_up_changes(&mut self, cpu: &Cpu) {
        if let Some(undone) = self.cache.look_for_writes() {
            undone
                .links
                .iter()
                .for_each(|link| self.code.patch(link.at, self.code.address(link.unlinked)));
            self.counters.count(Count::Invalidations);
            self.counters.add(Count::Unlinks, undone.links.len() as u64);
            if undone.all_jumps {
                self.empty_jumps();
            }
            for (table, index) in undone.jumps {
                let index = usize::from(index);
                self.jumps[usize::from(table)][index].rip = state::no_jump(index);
            }
        }
        if self.code_epochs != cpu.tlb.code_epochs() {
            self.follow_tlb(cpu.tlb.code_epochs());
        }
    }

    /// Empties the jump caches of the classes for which the TLB has dropped entries for instructions.
    fn follow_tlb(&mut self, epochs: [u64; CLASSES]) {
        for (class, epoch) in epochs.into_iter().enumerate() {
            if std::mem::replace(&mut self.code_epochs[class], epoch) != epoch {
                self.empty_table(class);
                self.empty_table(CLASSES + class);
            }
        }
    }

    fn empty_jumps(&mut self) {
        (0..JUMP_TABLES).for_each(|table| self.empty_table(table));
    }

    fn empty_table(&mut self, table: usize) {
        if !self.jumps_used[table].is_empty() {
            self.counters.count(Count::Emptied);
            self.emptied[table] += 1;
        }
        for index in self.jumps_used[table].drain(..) {
            let index = usize::from(index);
            self.jumps[table][index].rip = state::no_jump(index);
        }
    }

    /// Which jump cache is for code of `key`.
    fn jump_table(&mut self, key: Key) -> usize {
        let class = key.class as usize;
        if key.mode.is_64() {
            return class;
        }
        if self.narrow_modes[class] != key.mode {
            self.narrow_modes[class] = key.mode;
            self.empty_table(CLASSES + class);
        }
        CLASSES + class
    }

    /// As [`Self::next`], when what is known of code is current.
    #[inline]
    fn look_up(&mut self, cpu: &mut Cpu, key: Key) -> Option<u64> {
        let link = std::mem::take(&mut self.link);
        let table = self.jump_table(key);
        let jump = self.jumps[table][state::jump_index(cpu.rip)];
        if link == 0 && jump.rip == cpu.rip {
            return Some(jump.code);
        }
        let windows = !self.cache.avoids_windows(link);
        let n = self.translation(cpu, key, windows)?;
        let code = self.cache.translations[n as usize].code;
        if !self.chains {
            return Some(code);
        }
        if let Some(link) = self.cache.make_link(link, n) {
            self.counters.count(Count::Links);
            self.code.patch(link.at, code + ENTRY as u64);
        }
        if !windows {
            return Some(code);
        }
        self.fill_jumps(table, n, cpu.rip);
        self.note_jump(table, n, Jump { rip: cpu.rip, code });
        Some(code)
    }

    /// Enters `jump`, which leads to translation `n`, into a jump cache.
    fn note_jump(&mut self, table: usize, n: u32, jump: Jump) {
        let index = state::jump_index(jump.rip);
        let slot = &mut self.jumps[table][index];
        let was_empty = slot.rip == state::no_jump(index);
        *slot = jump;
        self.cache.note_jump(n, (table as u8, index as u16));
        if !was_empty {
            return;
        }
        let used = &mut self.jumps_used[table];
        if used.len() >= 2 * JUMPS {
            // Entries were emptied and filled again one by one, and are in the list as often.
            used.sort_unstable();
            used.dedup();
        }
        used.push(index as u16);
    }

    /// The jump cache was emptied, and now translation `n` is at `rip` again: the others in its page are
    /// where they were, too. Enters them all, once after each time that the cache was emptied.
    fn fill_jumps(&mut self, table: usize, n: u32, rip: u64) {
        let jumps = self.cache.neighbours(n, rip, (table, self.emptied[table]));
        for (n, jump) in jumps {
            self.note_jump(table, n, jump);
        }
    }

    /// The translation of `cpu`'s current instruction and what follows, if there is one, or shall be.
    fn translation(&mut self, cpu: &mut Cpu, key: Key, windows: bool) -> Option<u32> {
        self.counters.count(Count::LookUps);
        let Some(host) = cpu.probe_code(cpu.rip) else {
            self.counters.count(Count::NoEntry);
            return None;
        };
        let page = if is_movable(cpu.rip, key) { 0 } else { cpu.rip & !PAGE_OFFSET };
        let place = Place { host: host.addr(), page, key, windows };
        let n = match self.cache.find(&place) {
            Found::Code(n) => n,
            Found::Stale(n) if self.cache.second(n).is_none() && self.renew(cpu, n, host) => n,
            Found::Stale(_) => self.translated(cpu, &place, host)?,
            Found::Nothing if !windows => self.translated(cpu, &place, host)?,
            Found::Nothing => {
                let hash = (host.addr() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let heat = &mut self.heat[(hash >> (64 - HEAT_BITS)) as usize];
                *heat += 1;
                if *heat < self.threshold {
                    self.counters.count(Count::Cold);
                    return None;
                }
                *heat = 0;
                self.translated(cpu, &place, host)?
            }
        };
        match self.cache.second(n) {
            // Where its second page is, is known if the TLB knows.
            Some(second) => match cpu.probe_code((cpu.rip | PAGE_OFFSET).wrapping_add(1))? {
                host if host == second => Some(n),
                _ => self.translated(cpu, &place, host),
            },
            None => Some(n),
        }
    }

    /// Whether translation `n`, made from a page that has changed since, still is what `host` has.
    fn renew(&mut self, cpu: &mut Cpu, n: u32, host: HostPtr) -> bool {
        let (log, page) = self.cache.page_log(n);
        let (version, epoch) = cpu.mark_code(&log, page, host);
        if epoch > cpu.group.settled() || !self.cache.matches(n, host) {
            return false;
        }
        self.cache.renew(n, version);
        self.counters.count(Count::Renewed);
        true
    }

    /// The instructions of translation `n`, in code that runs in the page of `rip`, where engines are
    /// compared.
    fn ops_at(&self, n: u32, rip: u64) -> impl Iterator<Item = Op> + '_ {
        let translation = &self.cache.translations[n as usize];
        let distance = (rip & !PAGE_OFFSET).wrapping_sub(translation.made_at);
        translation.ops.iter().map(move |op| if distance == 0 { *op } else { op.moved(distance) })
    }

    /// As [`Self::translate`], and counts.
    fn translated(&mut self, cpu: &mut Cpu, place: &Place, host: HostPtr) -> Option<u32> {
        let made = self.translate(cpu, place, host);
        self.counters.count(if made.is_some() { Count::Made } else { Count::NotWorth });
        self.counters.set(Count::Present, self.cache.translations.len() as u64);
        self.counters.set(Count::Used, self.code.used() as u64);
        made
    }

    /// Translates from `cpu`'s current instruction on, which is at `host`. `None` if it is to be
    /// interpreted for now.
    #[cold]
    fn translate(&mut self, cpu: &mut Cpu, place: &Place, host: HostPtr) -> Option<u32> {
        // There the instruction pointer wraps around.
        let rip = cpu.rip;
        if !place.key.mode.is_64() && rip >> 12 == 0xf_ffff {
            return None;
        }
        let first = source_page(cpu, rip)?;
        if first.host.at(rip) != host {
            return None;
        }
        let in_page = ((PAGE_OFFSET + 1 - (rip & PAGE_OFFSET)) as usize).min(MAX_SOURCE);
        let mut buffer = [0; MAX_SOURCE];
        host.read_bytes(&mut buffer[..in_page]);
        let (mut input, mut len) = decode_line(cpu, rip, &buffer[..in_page]);
        let mut second = None;
        if input.is_empty() {
            // The instruction goes on in the next page.
            let source = source_page(cpu, (rip | PAGE_OFFSET).wrapping_add(1))?;
            source.host.read_bytes(&mut buffer[in_page..MAX_LEN]);
            (input, len) = decode_line(cpu, rip, &buffer[..MAX_LEN]);
            input.truncate(1);
            len = input.first().map_or(len, |input| usize::from(input.op.len));
            second = Some(source);
        }
        if self.checker.is_some() {
            check::leave_vague(&mut input);
            len = input.iter().map(|input| usize::from(input.op.len)).sum();
        }
        if self.code.free() < ROOM || self.cache.translations.len() >= TRANSLATIONS as usize {
            self.forget_all(cpu);
        }
        let number = self.cache.translations.len() as u32;
        let places = self.places(cpu, place)?;
        let first_link = self.cache.links.len();
        let numbers = (number, first_link);
        let Compiled { code, links, stepped } =
            Compiler::compile(&input, rip, places, numbers, &self.features);
        if stepped.len() == input.len() && !leads_on(&input) {
            input.iter().for_each(|input| self.counters.leave(input.op.mnemonic));
            return None;
        }
        let lens = code.lens();
        if lens.iter().sum::<usize>() > self.code.free() {
            return None;
        }
        let code = code.place(self.code.next(lens));
        self.code.push(&code).ok()?;
        cpu.trace_block(cpu.mode.code_bits(), &buffer[..len]);
        cpu.trace_translation(&code.parts());
        if let Some(checker) = &mut self.checker {
            checker.learn(&input, &stepped);
        }
        let from = self.cache.add(NewTranslation {
            place: *place,
            made_at: rip & !PAGE_OFFSET,
            code: code.address(0),
            source: buffer[..len].into(),
            lens: input.iter().map(|input| input.op.len).collect(),
            ops: match self.checker {
                Some(_) => input.iter().map(|input| input.op).collect(),
                None => Box::default(),
            },
            first,
            second,
        });
        for LinkSite { displacement, unlinked, target, windows } in links {
            let [at, unlinked] =
                [displacement, unlinked].map(|offset| self.code.offset(code.address(offset)));
            let target = (target & PAGE_OFFSET) as u16;
            self.cache.links.push(Link { at, unlinked, from, target, windows });
        }
        Some(number)
    }

    /// Where the translation for `place` finds what does not change.
    fn places(&self, cpu: &Cpu, place: &Place) -> Option<Places> {
        let key = place.key;
        let wide = key.mode.is_64();
        let first = if wide { 0 } else { (size_of::<[Jump; JUMPS]>() * CLASSES) as u32 };
        Some(Places {
            tlb: cpu.tlb.table(key.class)?,
            jumps: self.jumps.low_addr()? + first,
            class: key.class,
            wide,
            relative: place.page == 0,
            step: self.thunks.step,
            leave: self.thunks.leave,
            leave_by_link: self.thunks.leave_by_link,
            units: self.thunks.units,
            refill: self.thunks.refill,
            time: self.thunks.time,
            kernel: cpu.cpl == 0,
            chains: self.chains,
            counts: self.counts,
            windows: place.windows,
        })
    }

    /// Drops all translations.
    fn forget_all(&mut self, cpu: &Cpu) {
        self.counters.count(Count::Flushes);
        self.cache = Cache::new(&cpu.signals);
        self.code.truncate(self.fixed);
        self.recent.fill(None);
        self.checker.iter_mut().for_each(|checker| checker.forget());
        self.empty_jumps();
        self.link = 0;
    }
}

/// Whether a translation for `key` of code at `rip` can run wherever that is mapped: it goes nowhere that
/// is canonical there and would not be elsewhere.
fn is_movable(rip: u64, key: Key) -> bool {
    const REACH: u64 = 4 << 30;
    let ends = [rip.wrapping_sub(REACH), rip.wrapping_add(REACH)];
    key.mode.is_64() && ends.into_iter().all(control::is_safely_canonical)
}

/// The page at `linear` as one that code is translated from. `None` if it is none, or if writes to it
/// might not be noticed yet.
fn source_page(cpu: &mut Cpu, linear: u64) -> Option<SourcePage> {
    let page = cpu.code_page(linear).ok()?;
    let host = page.host?.at(0);
    let (log, index) = cpu.memory.code_log(page.phys, cpu.smm)?;
    let (version, epoch) = cpu.mark_code(&log, index, host);
    (epoch <= cpu.group.settled()).then_some(SourcePage { host, log, index, version })
}

/// The instructions that `bytes` begin with, at `rip`, up to one that nothing comes after; and their
/// length.
fn decode_line(cpu: &Cpu, rip: u64, bytes: &[u8]) -> (Vec<Input>, usize) {
    let mut input = Vec::new();
    let mut len = 0;
    while input.len() < MAX_OPS {
        let bits = cpu.mode.code_bits();
        let rip = rip.wrapping_add(len as u64);
        let known = &cpu.limits.instructions;
        let decoded = decode_whole(known, cpu.mode.is_protected(), bits, rip, &bytes[len..]);
        let Some((op, insn)) = decoded else { break };
        len += usize::from(op.len);
        let next = Input { op, insn };
        let ends = op.flags.contains(OpFlags::ENDS_BLOCK) && !goes_on(&next);
        input.push(next);
        if ends {
            break;
        }
    }
    (input, len)
}

/// Whether `input`, all of which the interpreter executes, ends in a branch: from there translated code is
/// found without being left.
fn leads_on(input: &[Input]) -> bool {
    input.last().and_then(|input| input.insn).is_some_and(|insn| {
        insn.flow_control() != iced_x86::FlowControl::Next && !insn.is_privileged()
    })
}
