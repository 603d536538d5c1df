//! The translator: from guest x86 to host x86, for hosts that are x86-64.
//!
//! Code that is run often enough is translated; everything else is interpreted, and so is each
//! instruction in translated code that the translator does not know.
//!
//! - `regs`: which host register holds what.
//! - `state`: what translated code and the rest of the CPU exchange.
//! - `asm`, `code`: writing host code, and the memory it is in.
//! - `compile`: the frame of a translation, and the flags; `memory`: the probe of the TLB; `integer`,
//!   `control`, `vector`: instructions by kind.
//! - `thunks`, `enter`: the ways in and out, and the helpers.
//! - `cache`: which translations there are.
//!
//! **Safety.** Guest code decides nothing about host code but by the instructions that `integer`,
//! `control` and `vector` name one by one. Host code reaches guest memory only by an address that the
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
mod budget;
mod cache;
mod check;
mod code;
mod compile;
mod control;
mod enter;
mod integer;
mod memory;
mod regs;
mod state;
mod thunks;
mod vector;

use accel::log::Topic;

use crate::block::BlockCache;
use crate::cpu::{Cpu, Translation};
use crate::decode::{MAX_LEN, decode_whole};
use crate::exception::Result;
use crate::host::{HostPtr, PAGE_OFFSET};
use crate::low::LowBox;
use crate::op::{Op, OpFlags};
use crate::tlb::CLASSES;
use cache::{Cache, Found, Key, NewTranslation, Place, SourcePage};
use check::Checker;
use code::CodeBuffer;
use compile::{Compiled, Compiler, Input, Places};
use enter::Left;
use state::{JUMPS, Jump, NOWHERE, State};
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

/// What one CPU needs to run translated code.
pub(crate) struct Translator {
    state: LowBox<State>,
    jumps: LowBox<[[Jump; JUMPS]; CLASSES]>,
    /// Entries of `jumps` that are set, by class.
    jumps_used: Vec<(u8, u16)>,
    code: CodeBuffer,
    /// Bytes of `code` that the thunks take.
    fixed: usize,
    thunks: Thunks,
    features: HostFeatures,
    cache: Cache,
    heat: Box<[u8]>,
    threshold: u8,
    /// The TLB's `code_epoch` that `jumps` is of.
    code_epoch: u64,
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
        let mut jumps = LowBox::<[[Jump; JUMPS]; CLASSES]>::new();
        jumps.low_addr()?;
        jumps.as_flattened_mut().fill(Jump { rip: NOWHERE, code: 0 });
        state.signals = match how.check {
            false => std::ptr::from_ref(cpu.signals.word()) as u64,
            true => u64::from(state.low_addr()? + state::at::NEVER),
        };
        [state.step, state.vectors] = enter::helpers();
        let mut code = CodeBuffer::new(how.buffer.max(4 * ROOM)).ok()?;
        let (bytes, thunks) = thunks::write(code.next(), state.low_addr()?, features.avx);
        code.push(&bytes);
        Some(Self {
            state,
            jumps,
            jumps_used: Vec::new(),
            fixed: code.used(),
            code,
            thunks,
            features,
            cache: Cache::new(&cpu.signals),
            heat: vec![0; 1 << HEAT_BITS].into(),
            threshold: how.threshold.max(1),
            code_epoch: 0,
            link: 0,
            counts: cpu.timed.is_some(),
            settled: 0,
            chains: !how.check && !cpu.log.wants(Topic::NoChain),
            checker: how.check.then(Box::default),
        })
    }

    /// The instruction that `site` names in translated code, and how the CPU has to run for it.
    fn site(&self, site: u64) -> Option<(Op, Key)> {
        let translation = self.cache.translations.get((site >> 32) as usize)?;
        Some((*translation.ops.get(site as u32 as usize)?, translation.place.key))
    }

    /// How many instructions come after the one that `site` names, in its translation.
    fn left(&self, site: u64) -> usize {
        let translation = self.cache.translations.get((site >> 32) as usize);
        translation.map_or(0, |translation| translation.ops.len() - site as u32 as usize - 1)
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
        let key = Key::of(cpu)?;
        self.look_up(cpu, key)
    }

    /// Drops what is no longer so: code was written, or pages are elsewhere.
    #[inline]
    fn take_up_changes(&mut self, cpu: &Cpu) {
        if let Some(undone) = self.cache.look_for_writes() {
            undone.iter().for_each(|link| self.code.patch(link.at, link.unlinked));
            self.empty_jumps();
        }
        if self.code_epoch != cpu.tlb.code_epoch() {
            self.code_epoch = cpu.tlb.code_epoch();
            self.empty_jumps();
        }
    }

    fn empty_jumps(&mut self) {
        for (class, index) in self.jumps_used.drain(..) {
            self.jumps[usize::from(class)][usize::from(index)].rip = NOWHERE;
        }
    }

    /// As [`Self::next`], when what is known of code is current.
    #[inline]
    fn look_up(&mut self, cpu: &mut Cpu, key: Key) -> Option<u64> {
        let link = std::mem::take(&mut self.link);
        let jump = self.jumps[key.class as usize][state::jump_index(cpu.rip)];
        if link == 0 && jump.rip == cpu.rip {
            return Some(jump.code);
        }
        let n = self.translation(cpu, key)?;
        let code = self.cache.translations[n as usize].code;
        if !self.chains {
            return Some(code);
        }
        if let Some(link) = self.cache.make_link(link, n) {
            self.code.patch(link.at, code);
        }
        let index = state::jump_index(cpu.rip);
        self.jumps[key.class as usize][index] = Jump { rip: cpu.rip, code };
        self.jumps_used.push((key.class as u8, index as u16));
        Some(code)
    }

    /// The translation of `cpu`'s current instruction and what follows, if there is one, or shall be.
    fn translation(&mut self, cpu: &mut Cpu, key: Key) -> Option<u32> {
        let host = cpu.probe_code(cpu.rip)?;
        let place = Place { host: host.addr(), rip: cpu.rip, key };
        let n = match self.cache.find(&place) {
            Found::Code(n) => n,
            Found::Stale(n) if self.cache.second(n).is_none() && self.renew(cpu, n, host) => n,
            Found::Stale(_) => self.translate(cpu, &place, host)?,
            Found::Nothing => {
                let hash = (host.addr() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let heat = &mut self.heat[(hash >> (64 - HEAT_BITS)) as usize];
                *heat += 1;
                if *heat < self.threshold {
                    return None;
                }
                *heat = 0;
                self.translate(cpu, &place, host)?
            }
        };
        match self.cache.second(n) {
            // Where its second page is, is known if the TLB knows.
            Some(second) => match cpu.probe_code((cpu.rip | PAGE_OFFSET).wrapping_add(1))? {
                host if host == second => Some(n),
                _ => self.translate(cpu, &place, host),
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
        true
    }

    /// Translates from `cpu`'s current instruction on, which is at `host`. `None` if it is to be
    /// interpreted for now.
    #[cold]
    fn translate(&mut self, cpu: &mut Cpu, place: &Place, host: HostPtr) -> Option<u32> {
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
            return None;
        }
        if self.checker.is_some() {
            check::leave_vague(&mut input);
            len = input.iter().map(|input| usize::from(input.op.len)).sum();
        }
        if self.code.free() < ROOM {
            self.forget_all(cpu);
        }
        let number = self.cache.translations.len() as u32;
        let places = self.places(cpu, place.key)?;
        let at = self.code.next();
        let first_link = self.cache.links.len();
        let numbers = (number, first_link);
        let Compiled { code, links, stepped } =
            Compiler::compile(&input, (place.rip, at), places, numbers, &self.features);
        if code.len() > self.code.free() {
            return None;
        }
        self.code.push(&code);
        cpu.trace_block(cpu.mode.code_bits(), &buffer[..len]);
        cpu.trace_translation(at, &code);
        if let Some(checker) = &mut self.checker {
            checker.learn(&input, &stepped);
        }
        let page = self.cache.add(NewTranslation {
            place: *place,
            code: at,
            source: buffer[..len].into(),
            ops: input.iter().map(|input| input.op).collect(),
            first,
            second,
        });
        for site in links {
            let (displacement, unlinked) =
                (at + site.displacement as u64, at + site.unlinked as u64);
            self.cache.add_link(displacement, unlinked, site.target, place.key, page);
        }
        Some(number)
    }

    /// Where translations for `key` find what does not change.
    fn places(&self, cpu: &Cpu, key: Key) -> Option<Places> {
        let jumps = size_of::<[Jump; JUMPS]>() as u32 * key.class as u32;
        Some(Places {
            state: self.state.low_addr()?,
            tlb: cpu.tlb.table(key.class)?,
            jumps: self.jumps.low_addr()? + jumps,
            step: self.thunks.step,
            leave: self.thunks.leave,
            leave_by_link: self.thunks.leave_by_link,
            vectors: self.thunks.vectors,
            kernel: cpu.cpl == 0,
            chains: self.chains,
            counts: self.counts,
        })
    }

    /// Drops all translations.
    fn forget_all(&mut self, cpu: &Cpu) {
        self.cache = Cache::new(&cpu.signals);
        self.code.truncate(self.fixed);
        self.checker.iter_mut().for_each(|checker| checker.forget());
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
        let goes_on = insn.is_some_and(|insn| insn.is_jcc_short_or_near());
        input.push(Input { op, insn });
        if op.flags.contains(OpFlags::ENDS_BLOCK) && !goes_on {
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
