//! The translator: from guest x86 to host x86, for hosts that are x86-64.
//!
//! Code that is run often enough is translated; everything else is interpreted, and so is each
//! instruction in translated code that the translator does not know.
//!
//! - `regs`: which host register holds what.
//! - `state`: what translated code and the rest of the CPU exchange.
//! - `asm`, `code`: writing host code, and the memory it is in.
//! - `compile`: the frame of a translation, and the flags; `memory`: the probe of the TLB; `integer`,
//!   `control`, `vector`, `system`: instructions by kind.
//! - `thunks`, `enter`: the ways in and out, and the helpers.
//! - `cache`: which translations there are.
//!
//! **Safety.** Guest code decides nothing about host code but by the instructions that `integer`,
//! `control`, `vector` and `system` name one by one. Host code reaches guest memory only by an address that the
//! probe of the TLB has given it, with no index added after; and the CPU's state, the TLB and the jump
//! cache, at addresses below two gigabytes that are part of the code. It calls nothing but the two
//! helpers of `enter`, through the thunks.
//!
//! **Going from one translation to another.** Within a page, by a direct jump: if the page is mapped
//! where the first translation was entered, so is the second. Into another page, or to an address that
//! is only known when it is reached, by the jump cache, which knows for an address where its code is as
//! the page tables are now; it is emptied when the TLB drops an entry for instructions. Loops look at
//! the CPU's signals: each jump back, each way through the jump cache.

mod asm;
mod cache;
mod code;
mod compile;
mod control;
mod enter;
mod integer;
mod memory;
mod regs;
mod state;
mod system;
#[cfg(test)]
mod tests;
mod thunks;
mod vector;

use std::sync::Arc;

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
use cache::{Cache, Found, Key, NewTranslation, Place, SourcePage};
use code::CodeBuffer;
use compile::{Compiler, FOR_ACCESS, Input, Places, goes_on};
use enter::Left;
use state::{JUMPS, Jump, State};
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
/// Jump caches: one a class for 64-bit code, and one for code of 32 bits.
const JUMP_TABLES: usize = 2 * CLASSES;

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
    /// The link by which translated code was left.
    link: u32,
}

impl Translator {
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
        state.signals = std::ptr::from_ref(cpu.signals.word()) as u64;
        [state.step, state.vectors] = enter::helpers();
        let mut code = CodeBuffer::new(how.buffer.max(4 * ROOM)).ok()?;
        let (bytes, thunks) = thunks::write(code.next(), state.low_addr()?, features.avx);
        code.push(&bytes);
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
            link: 0,
        })
    }

    /// The instruction that `site` names in translated code, and how the CPU has to run for it.
    fn site(&self, site: u64) -> Option<(Op, Key)> {
        let translation = self.cache.translations.get((site >> 32) as usize)?;
        let index = (site & (FOR_ACCESS - 1)) as usize;
        Some((*translation.ops.get(index)?, translation.place.key))
    }

    /// Runs translated code from `cpu`'s current instruction on, or interprets a block.
    ///
    /// # Errors
    /// The exception that an instruction raised.
    #[inline]
    pub(crate) fn run(&mut self, cpu: &mut Cpu, blocks: &mut BlockCache) -> Result {
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
        if let Some(undone) = self.cache.look_for_writes() {
            undone.iter().for_each(|link| self.code.patch(link.at, link.unlinked));
            self.counters.count(Count::Invalidations);
            self.counters.add(Count::Unlinks, undone.len() as u64);
            self.empty_jumps();
        }
        if self.code_epochs != cpu.tlb.code_epochs() {
            self.follow_tlb(cpu.tlb.code_epochs());
        }
        let Some(key) = Key::of(cpu) else {
            self.link = 0;
            self.counters.count(Count::OtherMode);
            return None;
        };
        self.look_up(cpu, key)
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
        self.counters.count(Count::LookUps);
        let Some(host) = cpu.probe_code(cpu.rip) else {
            self.counters.count(Count::NoEntry);
            return None;
        };
        let place = Place { host: host.addr(), rip: cpu.rip, key };
        let n = match self.cache.find(&place) {
            Found::Code(n) => n,
            Found::Stale(n) if self.cache.second(n).is_none() && self.renew(cpu, n, host) => n,
            Found::Stale(_) => self.translated(cpu, &place, host)?,
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
        let n = match self.cache.second(n) {
            // Where its second page is, is known if the TLB knows.
            Some(second) => match cpu.probe_code((cpu.rip | PAGE_OFFSET).wrapping_add(1))? {
                host if host == second => n,
                _ => self.translated(cpu, &place, host)?,
            },
            None => n,
        };
        let code = self.cache.translations[n as usize].code;
        if let Some(link) = self.cache.make_link(link, n) {
            self.counters.count(Count::Links);
            self.code.patch(link.at, code);
        }
        self.fill_jumps(table, n);
        self.note_jump(table, Jump { rip: cpu.rip, code });
        Some(code)
    }

    fn note_jump(&mut self, table: usize, jump: Jump) {
        let index = state::jump_index(jump.rip);
        let slot = &mut self.jumps[table][index];
        if slot.rip == state::no_jump(index) {
            self.jumps_used[table].push(index as u16);
        }
        *slot = jump;
    }

    /// The jump cache was emptied, and now translation `n` is where it was: so are the others in its
    /// page. Enters them all, once after each time that the cache was emptied.
    fn fill_jumps(&mut self, table: usize, n: u32) {
        let jumps = self.cache.neighbours(n, (table, self.emptied[table]));
        for jump in jumps {
            self.note_jump(table, jump);
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
        if !place.key.mode.is_64() && place.rip >> 12 == 0xf_ffff {
            return None;
        }
        let first = source_page(cpu, place.rip)?;
        if first.host.at(place.rip) != host {
            return None;
        }
        let in_page = ((PAGE_OFFSET + 1 - (place.rip & PAGE_OFFSET)) as usize).min(MAX_SOURCE);
        let mut buffer = [0; MAX_SOURCE];
        host.read_bytes(&mut buffer[..in_page]);
        let (mut input, mut len) = decode_line(cpu, place.rip, &buffer[..in_page]);
        let mut second = None;
        if input.is_empty() {
            // The instruction goes on in the next page.
            let source = source_page(cpu, (place.rip | PAGE_OFFSET).wrapping_add(1))?;
            source.host.read_bytes(&mut buffer[in_page..MAX_LEN]);
            (input, len) = decode_line(cpu, place.rip, &buffer[..MAX_LEN]);
            input.truncate(1);
            len = input.first().map_or(len, |input| usize::from(input.op.len));
            second = Some(source);
        }
        if !is_worth_it(&input) {
            input.iter().for_each(|input| self.counters.leave(input.op.mnemonic));
            return None;
        }
        if self.code.free() < ROOM {
            self.forget_all(cpu);
        }
        let number = self.cache.translations.len() as u32;
        let places = self.places(cpu, place.key)?;
        let at = self.code.next();
        let first_link = self.cache.links.len();
        let numbers = (number, first_link);
        let (code, sites) =
            Compiler::compile(&input, (place.rip, at), places, numbers, &self.features);
        if code.len() > self.code.free() {
            return None;
        }
        self.code.push(&code);
        let version = first.version;
        let page = self.cache.add(NewTranslation {
            place: *place,
            code: at,
            source: buffer[..len].into(),
            ops: input.iter().map(|input| input.op).collect(),
            first,
            second,
        });
        self.cache.renew(number, version);
        for site in sites {
            let (displacement, unlinked) =
                (at + site.displacement as u64, at + site.unlinked as u64);
            self.cache.add_link(displacement, unlinked, site.target, place.key, page);
        }
        Some(number)
    }

    /// Where translations for `key` find what does not change.
    fn places(&self, cpu: &Cpu, key: Key) -> Option<Places> {
        let wide = key.mode.is_64();
        let first = if wide { 0 } else { (size_of::<[Jump; JUMPS]>() * CLASSES) as u32 };
        Some(Places {
            state: self.state.low_addr()?,
            tlb: cpu.tlb.table(key.class)?,
            jumps: self.jumps.low_addr()? + first,
            class: key.class,
            wide,
            step: self.thunks.step,
            leave: self.thunks.leave,
            leave_by_link: self.thunks.leave_by_link,
            vectors: self.thunks.vectors,
            kernel: cpu.cpl == 0,
        })
    }

    /// Drops all translations.
    fn forget_all(&mut self, cpu: &Cpu) {
        self.counters.count(Count::Flushes);
        self.cache = Cache::new(&cpu.signals);
        self.code.truncate(self.fixed);
        self.empty_jumps();
        self.link = 0;
    }
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

/// Whether anything in `input` might not be left to the interpreter.
fn is_worth_it(input: &[Input]) -> bool {
    input.len() > 1
        || input.iter().any(|input| {
            let branch = |insn: &iced_x86::Instruction| {
                insn.flow_control() != iced_x86::FlowControl::Next && !insn.is_privileged()
            };
            input.insn.as_ref().is_some_and(branch) || !input.op.flags.contains(OpFlags::ENDS_BLOCK)
        })
}
