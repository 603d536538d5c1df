//! The translator: from guest x86 to host x86, for hosts that are x86-64.
//!
//! Code that is run often enough is translated; everything else is interpreted, and so is each
//! instruction in translated code that the translator does not know.
//!
//! - `regs`: which host register holds what.
//! - `state`: what translated code and the rest of the CPU exchange; `bell`: how others get its attention.
//! - `asm`, `code`: writing host code, and the memory it is in.
//! - `compile`: the frame of a translation; `flags`: where the flags are; `memory`: the probe of the TLB;
//!   `group`: accesses that share one; `integer`, `control`, `string`, `system`, `vector`, `x87`:
//!   instructions by kind; `far`: direct jumps to other pages.
//! - `thunks`, `enter`: the ways in and out, and the helpers.
//! - `cache`: which translations there are; `shared`: they and their code, which the CPUs of a machine share;
//!   `jumps`: where a CPU finds them.
//!
//! **Safety.** Guest code decides nothing about host code but by the instructions that `integer`,
//! `control`, `string`, `system`, `vector` and `x87` name one by one. Host code reaches guest memory only by
//! an address that the probe of the TLB has given it. Added to that is nothing but a displacement that the
//! translator chose, within what was probed for (`group`), and a repeated string instruction's index, whose
//! count has been compared with what is left of the page. It reaches the CPU's state, the TLB and the jump
//! cache by the stack pointer, which only calls of thunks move. It calls nothing but the four helpers of `enter`, through the thunks.
//!
//! **Where code is.** Translated code knows the page that it runs in from the state, where it is put when
//! the code is entered from elsewhere, with its address in a register. All addresses relative to RIP are
//! made from that.
//!
//! **Going from one translation to another.** Within a page, by a direct jump: if the page is mapped
//! where the first translation was entered, so is the second. Into another page, directly if that is what it was
//! (`far`). To an address that is only known when it is reached, by the jump cache, which knows for an address where
//! its code is as the page tables are now; it is emptied when the TLB drops an entry for instructions. Returns look
//! first for what the call has left for them (`control`). Loops look at the bell (`bell`): each jump back, each return,
//! each way through the jump cache.

mod asm;
mod bell;
mod budget;
mod cache;
mod check;
mod code;
mod compile;
mod control;
mod enter;
mod far;
mod flags;
mod group;
mod integer;
mod jumps;
mod loans;
mod memory;
mod regs;
mod shared;
mod state;
mod string;
mod system;
#[cfg(test)]
mod tests;
mod thunks;
mod vector;
mod x87;

use std::sync::Arc;

use ::memory::PageLog;
use accel::Signals;
use accel::log::Topic;

use crate::block::BlockCache;
use crate::counters::{Count, Counters};
use crate::cpu::{Cpu, Translation};
use crate::decode::{MAX_LEN, decode_whole};
use crate::exception::Result;
use crate::host::{HostPtr, PAGE_OFFSET, TlbEntry};
use crate::near::NearBox;
use crate::op::{Op, OpFlags};
use crate::tlb::{CLASSES, L1_ENTRIES};
use asm::before_state;
use bell::Bell;
use cache::{FarLink, Found, Key, Link, NewTranslation, Place, SourcePage};
use check::Checker;
use compile::{Compiled, Compiler, Input, LinkSite, Places, goes_on};
use enter::Left;
use far::FarSite;
use group::Windows;
use jumps::Jumps;
pub(crate) use shared::Sharing;
use shared::{Held, Kind, Shared};
use state::{Jump, Reached, Site, at, jump_table};
use thunks::Missed;
use vector::HostFeatures;

/// log2 of the number of places where executions are counted.
const HEAT_BITS: u32 = 16;
/// Most instructions in a translation.
const MAX_OPS: usize = 64;
/// Most instructions in a translation that is several rounds of a loop, and most rounds.
const MAX_UNROLLED: usize = 40;
const MAX_ROUNDS: usize = 8;
/// Most bytes that a translation is made from.
const MAX_SOURCE: usize = 512;
/// Room that a translation may take, and more than any does.
const ROOM: usize = 64 << 10;
/// How much of that may be lost between translations.
const PADDING: usize = 64;
/// The largest buffer: jumps reach two gigabytes.
const MAX_BUFFER: usize = 2047 << 20;

/// How many instructions are kept decoded that the interpreter executed for translated code.
const RECENT: usize = 512;

/// An instruction that the interpreter executed for translated code.
#[derive(Clone, Copy)]
struct Recent {
    site: Site,
    page: u64,
    op: Op,
    key: Key,
}

/// How to come to the code for an instruction.
enum Way {
    /// It is here.
    Code(u64),
    /// It has to be searched for, and is for this jump cache.
    Search { key: Key, table: usize },
    /// There is none.
    None,
}

/// Why there is no translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Missing {
    /// The code was not executed often enough.
    Cold,
    /// It can't be translated, or not now.
    Unavailable,
}

/// What one CPU needs to run translated code.
pub(crate) struct Translator {
    reached: NearBox<Reached>,
    bell: Arc<Bell>,
    jumps: Jumps,
    sharing: Arc<Sharing>,
    shared: Arc<Shared>,
    /// What was shared before, which code that runs may still be in.
    left_behind: Vec<Arc<Shared>>,
    /// Each log that has translated pages, with its count of writes to code when it was last looked at.
    logs: Vec<(PageLog, u64)>,
    features: HostFeatures,
    threshold: u8,
    /// The TLB's `code_epochs` that the jump caches are of.
    code_epochs: [u64; CLASSES],
    signals: Arc<Signals>,
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

    /// A translator for `cpu`, whose TLB it moves. `None` if the host can't have one.
    pub(crate) fn new(cpu: &mut Cpu, how: Translation) -> Option<Self> {
        let features = HostFeatures::detect();
        if !features.usable {
            return None;
        }
        let (mut reached, bell) = cpu.tlb.move_next_to::<Reached>();
        let bell = Arc::new(Bell(bell));
        if !how.check {
            cpu.signals.tell(Arc::<Bell>::clone(&bell));
        }
        let state = &mut reached.state;
        state.signals = match how.check {
            false => std::ptr::from_ref(cpu.signals.word()) as u64,
            true => &raw const state.never as u64,
        };
        [state.step, state.units, state.refill, state.time] = enter::helpers();
        let kind = Kind {
            size: how.buffer.clamp(4 * ROOM, MAX_BUFFER).next_multiple_of(4096),
            chains: !how.check && !cpu.log.wants(Topic::NoChain),
            counts: cpu.timed.is_some(),
            avx: features.avx,
        };
        // Engines are compared one CPU at a time, each with what it alone has learnt.
        let together = if how.check { Arc::default() } else { cpu.group.sharing() };
        let (sharing, shared) = match together.join(&cpu.signals, kind).ok()? {
            Some(shared) => (together, shared),
            None => {
                let alone = Arc::<Sharing>::default();
                let shared = alone.join(&cpu.signals, kind).ok()??;
                (alone, shared)
            }
        };
        let jumps = Jumps::new(&mut reached.jumps, shared.thunks.leave);
        let this = Self {
            reached,
            bell,
            jumps,
            sharing,
            shared,
            left_behind: Vec::new(),
            logs: Vec::new(),
            features,
            threshold: how.threshold.max(1),
            code_epochs: [0; CLASSES],
            signals: Arc::clone(&cpu.signals),
            counters: cpu.counters(),
            recent: vec![None; RECENT].into(),
            link: 0,
            counts: kind.counts,
            settled: 0,
            chains: kind.chains,
            checker: how.check.then(Box::default),
        };
        this.tell_sizes(&this.shared.hold());
        Some(this)
    }

    /// The instruction that `site` names in the translated code that runs, and how the CPU has to run
    /// for it.
    fn site(&mut self, cpu: &Cpu, site: Site) -> Option<(Op, Key)> {
        let (site, page) = (site.insn(), self.reached.state.page);
        let slot = (site.0 ^ site.0 >> 7) as usize % RECENT;
        if let Some(recent) = &self.recent[slot]
            && (recent.site, recent.page) == (site, page)
        {
            return Some((recent.op, recent.key));
        }
        let (op, key) = self.site_in(cpu, site, page)?;
        self.recent[slot] = Some(Recent { site, page, op, key });
        Some((op, key))
    }

    /// The same in code that ran in `page`.
    fn site_in(&self, cpu: &Cpu, site: Site, page: u64) -> Option<(Op, Key)> {
        let (held, n) = (self.shared.hold(), site.number());
        let op = held.cache.op(&cpu.limits.instructions, n, site.index(), page)?;
        Some((op, held.cache.translations[n as usize].place.key))
    }

    /// How many instructions come after the one that `site` names, in its translation, if they are counted.
    fn left(&self, site: Site) -> usize {
        if !self.counts {
            return 0;
        }
        let held = self.shared.hold();
        let translation = held.cache.translations.get(site.number() as usize);
        translation.map_or(0, |translation| translation.len() - site.index() - 1)
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
        let code = match self.way(cpu) {
            Way::Code(code) => code,
            Way::None => return cpu.run_block(blocks),
            Way::Search { key, table } => {
                let mut times = 1;
                if self.link == 0 && self.threshold > 1 {
                    match blocks.get_put_off(cpu) {
                        Ok(block) => {
                            self.counters.count(Count::Cold);
                            return cpu.run_decoded(block);
                        }
                        Err(executed) => times = executed,
                    }
                }
                match self.search(cpu, key, table, times) {
                    Ok(code) => code,
                    Err(Missing::Unavailable) => return cpu.run_block(blocks),
                    Err(Missing::Cold) => {
                        let block = blocks.put_off(cpu)?;
                        return cpu.run_decoded(block);
                    }
                }
            }
        };
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
        match self.way(cpu) {
            Way::Code(code) => Some(code),
            Way::Search { key, table } => self.search(cpu, key, table, 1).ok(),
            Way::None => None,
        }
    }

    /// Whether the jump cache knows now where the code for `rip` is, where code runs that has looked for it.
    fn knows_way(&mut self, cpu: &mut Cpu, rip: u64) -> bool {
        let came_from = std::mem::replace(&mut cpu.rip, rip);
        // Code that goes on afterwards has its numbers from the buffer that it is in.
        self.follow_changes(cpu);
        let found = match self.way_here(cpu) {
            Way::Code(_) => true,
            Way::Search { key, table } => {
                let found = self.search(cpu, key, table, 0).is_ok();
                found && self.reached.jumps.entry(table, rip).rip == rip
            }
            Way::None => false,
        };
        cpu.rip = came_from;
        found
    }

    /// How to come to that code.
    #[inline]
    fn way(&mut self, cpu: &Cpu) -> Way {
        self.take_up_changes(cpu);
        self.way_here(cpu)
    }

    /// The same where all changes have been taken up.
    #[inline]
    fn way_here(&mut self, cpu: &Cpu) -> Way {
        let Some(key) = Key::of(cpu) else {
            self.link = 0;
            self.counters.count(Count::OtherMode);
            return Way::None;
        };
        let table = self.jump_table(key);
        let jump = *self.reached.jumps.entry(table, cpu.rip);
        if self.link == 0 && jump.rip == cpu.rip {
            return Way::Code(jump.code);
        }
        Way::Search { key, table }
    }

    /// Drops what is no longer so: the buffer is another one, code was written, or pages are elsewhere.
    #[inline]
    fn take_up_changes(&mut self, cpu: &Cpu) {
        if self.sharing.generation() != self.shared.generation {
            self.go_over();
        }
        self.follow_changes(cpu);
    }

    /// The same, but stays with the buffer.
    #[inline]
    fn follow_changes(&mut self, cpu: &Cpu) {
        if self.was_code_written() {
            self.follow_writes();
        }
        if self.code_epochs != cpu.tlb.code_epochs() {
            self.follow_tlb(cpu.tlb.code_epochs());
        }
    }

    /// Whether any page that may have translations was written since this was last asked.
    #[inline]
    fn was_code_written(&mut self) -> bool {
        let mut written = false;
        for (log, seen) in &mut self.logs {
            let writes = log.code_writes();
            written |= writes != *seen;
            *seen = writes;
        }
        written
    }

    /// Undoes what leads to translations of pages that were written.
    #[cold]
    fn follow_writes(&mut self) {
        let mut held = self.shared.hold();
        let Held { cache, code } = &mut *held;
        let (links, patches) = cache.look_for_writes();
        patches.iter().for_each(|patch| code.patch(patch));
        self.counters.add(Count::Unlinks, links as u64);
        if self.jumps.follow(&mut self.reached.jumps, cache, &self.counters) {
            self.counters.count(Count::Invalidations);
        }
    }

    /// Empties the jump caches of the classes for which the TLB has dropped entries for instructions.
    fn follow_tlb(&mut self, epochs: [u64; CLASSES]) {
        for (class, epoch) in epochs.into_iter().enumerate() {
            if std::mem::replace(&mut self.code_epochs[class], epoch) != epoch {
                for table in [class, CLASSES + class] {
                    self.jumps.empty(&mut self.reached.jumps, table, &self.counters);
                }
            }
        }
    }

    /// Goes over to the code buffer that is in use now.
    #[cold]
    fn go_over(&mut self) {
        let Some(current) = self.sharing.current() else { return };
        let before = std::mem::replace(&mut self.shared, current);
        // Code that runs, and has asked a helper for more, is there.
        self.left_behind.push(before);
        self.jumps.forget(&mut self.reached.jumps, self.shared.thunks.leave, &self.counters);
        self.logs.clear();
        self.recent.fill(None);
        self.checker.iter_mut().for_each(|checker| checker.forget());
        self.link = 0;
        self.tell_sizes(&self.shared.hold());
    }

    /// Tells the counters how much there is in the code buffer.
    fn tell_sizes(&self, held: &Held) {
        self.counters.set(Count::Present, held.cache.translations.len() as u64);
        self.counters.set(Count::Used, held.code.used() as u64);
        self.counters.set(Count::Size, held.code.size() as u64);
    }

    /// Which jump cache is for code of `key`.
    fn jump_table(&mut self, key: Key) -> usize {
        self.jumps.table(&mut self.reached.jumps, key, &self.counters)
    }

    /// The code for `cpu`'s current instruction, which is executed for the `times`-th time since it was last
    /// searched for, where jump cache `table` does not know it, or a link may be made.
    fn search(
        &mut self,
        cpu: &mut Cpu,
        key: Key,
        table: usize,
        times: u8,
    ) -> std::result::Result<u64, Missing> {
        let link = std::mem::take(&mut self.link);
        let shared = Arc::clone(&self.shared);
        let mut held = shared.hold();
        let windows = held.cache.windows_of(link);
        let n = self.translation(cpu, &mut held, key, (windows, times))?;
        let Held { cache, code: buffer } = &mut *held;
        let code = cache.translations[n as usize].code;
        if !self.chains {
            return Ok(code);
        }
        if let Some(patches) = cache.make_link(link, n) {
            self.counters.count(Count::Links);
            patches.iter().flatten().for_each(|patch| buffer.patch(patch));
        }
        if windows == Windows::Wide {
            let jumps = &mut self.reached.jumps;
            self.jumps.enter(jumps, cache, table, (n, Jump { rip: cpu.rip, code }));
        }
        Ok(code)
    }

    /// The translation of `cpu`'s current instruction and what follows, if there is one, or shall be.
    fn translation(
        &mut self,
        cpu: &mut Cpu,
        held: &mut Held,
        key: Key,
        (windows, times): (Windows, u8),
    ) -> std::result::Result<u32, Missing> {
        self.counters.count(Count::LookUps);
        let Some(host) = cpu.probe_code(cpu.rip) else {
            self.counters.count(Count::NoEntry);
            return Err(Missing::Unavailable);
        };
        let page = if is_movable(cpu.rip, key) { 0 } else { cpu.rip & !PAGE_OFFSET };
        let place = Place { host: host.addr(), page, key, windows };
        let n = match held.cache.find(&place) {
            Found::Code(n) => n,
            Found::Stale(n) if held.cache.second(n).is_none() && self.renew(cpu, held, n, host) => {
                n
            }
            Found::Stale(_) => self.translated(cpu, held, &place, host)?,
            Found::Nothing
                if windows != Windows::Wide
                    || self.shared.warm(host.addr(), times, self.threshold) =>
            {
                self.translated(cpu, held, &place, host)?
            }
            Found::Nothing => {
                self.counters.count(Count::Cold);
                return Err(Missing::Cold);
            }
        };
        let n = match held.cache.second(n) {
            // Where its second page is, is known if the TLB knows.
            Some(second) => match cpu.probe_code((cpu.rip | PAGE_OFFSET).wrapping_add(1)) {
                None => return Err(Missing::Unavailable),
                Some(host) if host == second => n,
                Some(_) => self.translated(cpu, held, &place, host)?,
            },
            None => n,
        };
        for log in held.cache.logs(self.logs.len()) {
            // It may have been written since the page's version was asked for.
            self.logs.push((log.clone(), log.code_writes().wrapping_sub(1)));
        }
        Ok(n)
    }

    /// Whether translation `n`, made from a page that has changed since, still is what `host` has.
    fn renew(&self, cpu: &mut Cpu, held: &mut Held, n: u32, host: HostPtr) -> bool {
        let (log, page) = held.cache.page_log(n);
        let (version, epoch) = cpu.mark_code(&log, page, host);
        if epoch > cpu.group.settled() || !held.cache.matches(n, host) {
            return false;
        }
        held.cache.renew(n, version);
        self.counters.count(Count::Renewed);
        true
    }

    /// As [`Self::translate`], and counts.
    fn translated(
        &mut self,
        cpu: &mut Cpu,
        held: &mut Held,
        place: &Place,
        host: HostPtr,
    ) -> std::result::Result<u32, Missing> {
        if held.is_full() {
            // The next time that this code is looked for, there is another buffer.
            if self.sharing.replace(&self.shared).is_ok_and(|replaced| replaced) {
                self.counters.count(Count::Flushes);
            }
            return Err(Missing::Unavailable);
        }
        let made = self.translate(cpu, held, place, host);
        self.counters.count(if made.is_some() { Count::Made } else { Count::NotWorth });
        self.tell_sizes(held);
        made.ok_or(Missing::Unavailable)
    }

    /// Translates from `cpu`'s current instruction on, which is at `host`. `None` if it is to be
    /// interpreted for now.
    #[cold]
    fn translate(
        &mut self,
        cpu: &mut Cpu,
        held: &mut Held,
        place: &Place,
        host: HostPtr,
    ) -> Option<u32> {
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
        let mut round = input.len();
        if place.windows == Windows::Wide && self.chains && !self.counts && second.is_none() {
            round = unroll(&mut input, rip);
            len = input[..round].iter().map(|input| usize::from(input.op.len)).sum();
        }
        let Held { cache, code: host_code } = held;
        let number = cache.translations.len() as u32;
        let places = self.places(cpu, place);
        let numbers = (number, [cache.links.len(), cache.far_links.len()]);
        let Compiled { code, links, far_links, stepped } =
            Compiler::compile(&input, rip, places, numbers, &self.features);
        if stepped.len() == input.len() && !leads_on(&input) {
            input.iter().for_each(|input| self.counters.leave(input.op.mnemonic));
            return None;
        }
        let lens = code.lens();
        if lens.iter().sum::<usize>() > ROOM - PADDING {
            return None;
        }
        let code = code.place(host_code.next(lens));
        host_code.push(&code).ok()?;
        cpu.trace_block(cpu.mode.code_bits(), &buffer[..len]);
        cpu.trace_translation(&code.parts());
        if let Some(checker) = &mut self.checker {
            checker.learn(rip & !PAGE_OFFSET, &input, &stepped);
        }
        let from = cache.add(NewTranslation {
            place: *place,
            code: code.address(0),
            source: &buffer[..len],
            lens: input[..round].iter().map(|input| input.op.len).collect(),
            first,
            second,
        });
        for LinkSite { displacement, unlinked, target, windows, returns } in links {
            let [at, unlinked] =
                [displacement, unlinked].map(|offset| host_code.offset(code.address(offset)));
            let target = (target & PAGE_OFFSET) as u16;
            cache.links.push(Link { at, unlinked, from, target, windows, returns });
        }
        let linked = host_code.offset(places.by_cache);
        for FarSite { guard, jump, other, unlinked, target } in far_links {
            let [guard, jump, other, unlinked] =
                [guard, jump, other, unlinked].map(|offset| host_code.offset(code.address(offset)));
            let (mapping, target) = (0, (target & PAGE_OFFSET) as u16);
            cache.far_links.push(FarLink {
                guard,
                jump,
                other,
                linked,
                unlinked,
                from,
                mapping,
                target,
            });
        }
        Some(number)
    }

    /// Where the translation for `place` finds what does not change.
    fn places(&self, cpu: &Cpu, place: &Place) -> Places {
        let key = place.key;
        let wide = key.mode.is_64();
        let table = size_of::<[TlbEntry; L1_ENTRIES]>() as i32 * key.class as i32;
        Places {
            tlb: before_state(at::TLB) + table,
            class: key.class,
            wide,
            relative: place.page == 0,
            step: self.shared.thunks.step,
            leave: self.shared.thunks.leave,
            leave_by_link: self.shared.thunks.leave_by_link,
            leave_for_link: self.shared.thunks.leave_for_link,
            by_cache: self.shared.thunks.by_cache[jump_table(key.class, wide)],
            units: self.shared.thunks.units,
            refill: {
                let mut refill = self.shared.thunks.refill;
                let [read, write] = self.shared.thunks.join[key.class as usize];
                refill[Missed::Read as usize] = read;
                refill[Missed::Write as usize] = write;
                refill
            },
            written: self.shared.thunks.written,
            time: self.shared.thunks.time,
            kernel: cpu.cpl == 0,
            chains: self.chains,
            counts: self.counts,
            windows: place.windows,
            registers: std::array::from_fn(|n| cpu.gpr[n]),
        }
    }
}

impl Drop for Translator {
    fn drop(&mut self) {
        self.sharing.leave(&self.signals);
    }
}

/// Whether a translation for `key` of code at `rip` can run wherever that is mapped: it goes nowhere that
/// is canonical there and would not be elsewhere. Where addresses have 32 bits that count, as those of kernels and
/// of programs that are made for one place, it is for one address, as it is shorter then.
fn is_movable(rip: u64, key: Key) -> bool {
    const REACH: u64 = 4 << 30;
    let ends = [rip.wrapping_sub(REACH), rip.wrapping_add(REACH)];
    let far = i32::try_from(rip as i64).is_err();
    key.mode.is_64() && far && ends.into_iter().all(control::is_safely_canonical)
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
        let next = Input { op, insn, followed: false };
        let ends = op.flags.contains(OpFlags::ENDS_BLOCK) && !goes_on(&next);
        input.push(next);
        if ends {
            break;
        }
    }
    (input, len)
}

/// If `input`, whose first instruction is at `start`, jumps back to there, makes it several rounds of that
/// loop. Returns how many instructions a round has.
fn unroll(input: &mut Vec<Input>, start: u64) -> usize {
    let Some(last) = input.iter().position(|input| input.goes_to(start)) else {
        return input.len();
    };
    let round = last + 1;
    let rounds = (MAX_UNROLLED / round).clamp(1, MAX_ROUNDS);
    input.truncate(round);
    input[last].followed = true;
    *input = input.repeat(rounds);
    input[round * rounds - 1].followed = false;
    round
}

/// Whether `input`, all of which the interpreter executes, ends in a branch: from there translated code is
/// found without being left.
fn leads_on(input: &[Input]) -> bool {
    input.last().and_then(|input| input.insn).is_some_and(|insn| {
        insn.flow_control() != iced_x86::FlowControl::Next && !insn.is_privileged()
    })
}
