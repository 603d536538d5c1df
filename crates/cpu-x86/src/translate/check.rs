//! Both engines in step: translated blocks are run by the interpreter, taken back, run translated, and
//! compared.
//!
//! The interpreter goes first, with what it writes recorded. It stops before an instruction that the
//! translator leaves to it anyway, or that would access a device: those are executed once. Then memory
//! and registers become again what they were, and the translations run; by the TLB they can write only to
//! the pages that the interpreter wrote to. Registers, exceptions, and every byte of those pages have to
//! be the same at the end.
//!
//! To look at all registers and at whole pages takes longer than to run a block. So a sequence of blocks
//! is run before that; after each of them only the general registers and the flags are compared. If the
//! engines do not agree, the sequence is taken back and its blocks are compared one by one, so that a
//! report is about one block.
//!
//! What is not checked: jumps from one translation to another, as each translation is left at its end,
//! by the jump cache if it goes there; flags that are not saved as nobody reads them; looks at signals;
//! system calls and what else changes more than registers; and repeated string instructions, which the
//! engines interrupt in different places. Flags that the manuals leave undefined need not agree, and
//! whatever would show them is left to the interpreter. The interpreter's result is what the guest gets.
//!
//! Devices write to memory at any time. So where the engines differ they are tried again, and only what
//! is different each time is a divergence. CPUs take turns (`CpuGroup::turn`).

use std::collections::HashSet;
use std::fmt::Write;
use std::sync::Arc;

use accel::log::Topic;
use iced_x86::{Instruction, Mnemonic, RflagsBits};

use super::Translator;
use super::cache::{Found, Key, Place};
use super::compile::Input;
use super::enter::{Left, enter};
use super::flags::{ARITH, may_count_zero};
use super::group::Windows;
use super::state::{Jump, jump_index, no_jump};
use crate::block::BlockCache;
use crate::cpu::Cpu;
use crate::exception::{Exception, Result};
use crate::flags::bits;
use crate::fpu::Fpu;
use crate::host::{HostPtr, PAGE_OFFSET};
use crate::op::Op;
use crate::record::{Images, Recorder, Written};
use crate::trace::disassemble;

/// How often engines may differ in a block because of what others write.
const ATTEMPTS: u32 = 4;
/// Most translations that run before the engines are compared.
const SEQUENCE: usize = 64;
/// The bits of an entry of page tables, all in its first byte, that walks set: accessed and dirty.
const WALK_BITS: u8 = 0x60;
/// Most bytes of memory in a report.
const BYTES_SHOWN: usize = 64;

/// What is to be known of a translated instruction.
struct About {
    /// The interpreter executes it in any case.
    stepped: bool,
    /// Flags that it gives a value, as bits of RFLAGS.
    defined: u64,
    /// Flags that it may leave with any value.
    undefined: u64,
}

/// What is to be known of a translation.
struct Known {
    /// The page that it was in when it was made, which `ops` are for.
    page: u64,
    /// The instructions.
    ops: Box<[Op]>,
    instructions: Box<[About]>,
    /// Flags that it reads as they were before it, as bits of RFLAGS.
    reads: u64,
}

impl Known {
    /// How far code at `rip` is from where it was when this was made.
    fn distance(&self, rip: u64) -> u64 {
        (rip & !PAGE_OFFSET).wrapping_sub(self.page)
    }
}

/// What the helper that executes an instruction has to do for a translation that is checked.
#[derive(Clone, Copy, Debug, Default)]
struct Plan {
    /// The instruction before which the interpreter stopped.
    before: Option<usize>,
    /// The instruction after which it did.
    after: Option<usize>,
}

/// What checking a translator needs.
#[derive(Default)]
pub(super) struct Checker {
    /// By translation.
    known: Vec<Known>,
    plan: Plan,
    /// The record of the engine that ran first, while the other one runs.
    first: Box<Recorder>,
    /// The pages in it as that engine left them.
    images: Images,
    /// Makes the translated engine fail.
    #[cfg(test)]
    sabotage: Option<fn(&mut Cpu)>,
}

impl Checker {
    /// Takes note of a new translation of `input`, in `page`, of which the interpreter executes `stepped`.
    pub(super) fn learn(&mut self, page: u64, input: &[Input], stepped: &[usize]) {
        let about = |(n, input): (usize, &Input)| {
            let flags = Certainty::of(&input.insn.unwrap_or_default());
            About {
                stepped: stepped.contains(&n),
                defined: rflags(flags.defined),
                undefined: rflags(flags.undefined),
            }
        };
        let (mut reads, mut defined) = (0, 0);
        for insn in input.iter().filter_map(|input| input.insn.as_ref()) {
            reads |= insn.rflags_read() & ARITH & !defined;
            defined |= Certainty::of(insn).defined;
        }
        let instructions = input.iter().enumerate().map(about).collect();
        let ops = input.iter().map(|input| input.op).collect();
        self.known.push(Known { page, ops, instructions, reads: rflags(reads) });
    }

    /// All translations are gone.
    pub(super) fn forget(&mut self) {
        self.known.clear();
    }

    /// Whether the instruction numbered `n` of the running translation is not to be executed.
    pub(super) fn stops_before(&self, n: usize) -> bool {
        self.plan.before == Some(n)
    }

    /// Whether nothing is to be executed after the instruction numbered `n`.
    pub(super) fn stops_after(&self, n: usize) -> bool {
        self.plan.after == Some(n)
    }
}

/// Leaves instructions to the interpreter about which engines need not agree.
pub(super) fn leave_vague(input: &mut Vec<Input>) {
    let mut undefined = 0;
    let mut end = input.len();
    for (n, input) in input.iter_mut().enumerate() {
        let Some(insn) = input.insn else { continue };
        let shows_flags = insn.rflags_read() & undefined != 0;
        let to_next = insn.is_jcc_short_or_near() && insn.near_branch_target() == insn.next_ip();
        if shows_flags || to_next || is_approximate(&insn) {
            input.insn = None;
        }
        // The second may take away what the code after it needs.
        if to_next || insn.mnemonic() == Mnemonic::Fldcw {
            end = n + 1;
            break;
        }
        let flags = Certainty::of(&insn);
        undefined = undefined & !flags.defined | flags.undefined;
    }
    input.truncate(end);
}

/// What an instruction does to flags, as bits of iced-x86's.
struct Certainty {
    /// Have a value after it, whatever they were.
    defined: u32,
    /// May have any.
    undefined: u32,
}

impl Certainty {
    fn of(insn: &Instruction) -> Self {
        let undefined = insn.rflags_undefined() & ARITH;
        let modified = if may_count_zero(insn) { 0 } else { insn.rflags_modified() };
        Self { defined: modified & ARITH & !undefined, undefined }
    }
}

/// The bits of RFLAGS that are iced-x86's `flags`, which it counts in an order of its own.
fn rflags(flags: u32) -> u64 {
    let bits = [
        (RflagsBits::CF, bits::CF),
        (RflagsBits::PF, bits::PF),
        (RflagsBits::AF, bits::AF),
        (RflagsBits::ZF, bits::ZF),
        (RflagsBits::SF, bits::SF),
        (RflagsBits::OF, bits::OF),
    ];
    bits.iter().filter(|(flag, _)| flags & flag != 0).map(|(_, bit)| bit).sum()
}

/// Instructions whose results each processor approximates in its own way.
fn is_approximate(insn: &Instruction) -> bool {
    use Mnemonic::*;
    matches!(
        insn.mnemonic(),
        Rcpps | Rcpss | Rsqrtps | Rsqrtss | Vrcpps | Vrcpss | Vrsqrtps | Vrsqrtss
    )
}

/// What a block may change, but for memory.
#[derive(Clone)]
struct Snapshot {
    gpr: [u64; 16],
    rip: u64,
    rflags: u64,
    cr2: u64,
    fpu: Fpu,
    pending_debug: u64,
    instructions: u64,
    shadows: [bool; 2],
}

impl Snapshot {
    fn of(cpu: &Cpu) -> Self {
        let mut gpr = [0; 16];
        gpr.copy_from_slice(&cpu.gpr[..16]);
        Self {
            gpr,
            rip: cpu.rip,
            rflags: cpu.rflags(),
            cr2: cpu.cr2,
            fpu: cpu.fpu.clone(),
            pending_debug: cpu.pending_debug,
            instructions: cpu.instructions,
            shadows: [cpu.shadow, cpu.debug_shadow],
        }
    }

    /// Makes the state that of `cpu`, whose mode has not changed.
    fn give(&self, cpu: &mut Cpu) {
        cpu.gpr[..16].copy_from_slice(&self.gpr);
        cpu.rip = self.rip;
        cpu.set_rflags(self.rflags);
        cpu.cr2 = self.cr2;
        cpu.fpu.clone_from(&self.fpu);
        cpu.pending_debug = self.pending_debug;
        cpu.instructions = self.instructions;
        [cpu.shadow, cpu.debug_shadow] = self.shadows;
        cpu.break_block = false;
        cpu.keep_rip = false;
    }

    /// Name and value of everything that is to be the same, without the flags in `vague`.
    fn values(&self, vague: u64) -> Vec<(String, u128)> {
        const NAMES: [&str; 16] = [
            "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11",
            "r12", "r13", "r14", "r15",
        ];
        let mut values = Vec::with_capacity(80);
        let mut put = |name: &str, value: u128| values.push((name.to_owned(), value));
        put("rip", self.rip.into());
        for (name, value) in NAMES.iter().zip(self.gpr) {
            put(name, value.into());
        }
        put("rflags", (self.rflags & !vague).into());
        put("cr2", self.cr2.into());
        put("pending debug conditions", self.pending_debug.into());
        put("interrupt shadow", self.shadows[0].into());
        let fpu = &self.fpu;
        put("mxcsr", fpu.mxcsr.into());
        put("x87 control", fpu.control.into());
        put("x87 status", fpu.status_word().into());
        put("x87 opcode", fpu.opcode.into());
        put("x87 ip", fpu.ip.into());
        put("x87 dp", fpu.dp.into());
        put("x87 tags", fpu.valid.into());
        for n in 0..16 {
            put(&format!("xmm{n}"), fpu.xmm[n]);
            put(&format!("ymm{n} upper"), fpu.ymm_high[n]);
        }
        for (n, register) in fpu.regs.iter().enumerate() {
            put(&format!("x87 r{n}"), register.to_bits());
        }
        values
    }

    /// Whether everything is the same but the flags in `vague`.
    fn is_as(&self, other: &Self, vague: u64) -> bool {
        let (a, b) = (&self.fpu, &other.fpu);
        let fpu = |fpu: &Fpu| {
            let words = [fpu.control, fpu.status_word(), fpu.opcode, fpu.valid.into()];
            (words, fpu.mxcsr, fpu.ip, fpu.dp)
        };
        self.gpr == other.gpr
            && self.rip == other.rip
            && (self.rflags ^ other.rflags) & !vague == 0
            && (self.cr2, self.pending_debug) == (other.cr2, other.pending_debug)
            && self.shadows == other.shadows
            && fpu(a) == fpu(b)
            && a.xmm == b.xmm
            && a.ymm_high == b.ymm_high
            && a.regs.map(|r| r.to_bits()) == b.regs.map(|r| r.to_bits())
    }
}

/// Where the interpreter was after a block.
struct Point {
    /// The block's translation.
    n: u32,
    gpr: [u64; 16],
    rip: u64,
    rflags: u64,
    /// Flags with undefined values.
    vague: u64,
}

impl Point {
    fn of(cpu: &Cpu, n: u32, vague: u64) -> Self {
        let mut gpr = [0; 16];
        gpr.copy_from_slice(&cpu.gpr[..16]);
        Self { n, gpr, rip: cpu.rip, rflags: cpu.rflags(), vague }
    }

    fn is_of(&self, cpu: &Cpu) -> bool {
        self.rip == cpu.rip
            && self.gpr[..] == cpu.gpr[..16]
            && (self.rflags ^ cpu.rflags()) & !self.vague == 0
    }
}

/// How far the interpreter came.
#[derive(Default)]
struct End {
    /// The translations of which it executed something.
    path: Vec<Point>,
    /// Of the last one.
    plan: Plan,
    /// Instructions of the last one that were executed, or raised an exception.
    tried: usize,
    fault: Option<Exception>,
    /// Flags with undefined values, as bits of RFLAGS.
    vague: u64,
}

impl End {
    /// Whether it came to the end of a translation.
    fn goes_on(&self) -> bool {
        self.fault.is_none() && self.plan.before.is_none() && self.plan.after.is_none()
    }
}

/// What became of the translations that were run after the interpreter.
#[derive(Default)]
struct Ran {
    /// They went the way that the interpreter had gone.
    whole: bool,
    /// Already the first one can't be run as the CPU is now.
    refused: bool,
    fault: Option<Exception>,
}

/// How a comparison came out.
enum Outcome {
    /// The engines agree, and the CPU is where they came to.
    Same(End),
    /// The interpreter has to execute the first instruction, once. The CPU is before it.
    Untried(End),
    /// Only the interpreter can run the block. The CPU is before it.
    Refused,
    /// They do not agree after as many blocks; the CPU is before them.
    Different(usize),
}

/// A byte of memory that is not what it should be.
struct WrongByte {
    at: HostPtr,
    interpreted: u8,
    translated: u8,
}

impl Translator {
    /// As [`Translator::run`], with both engines.
    pub(super) fn run_checked(&mut self, cpu: &mut Cpu, blocks: &mut BlockCache) -> Result {
        let Some(n) = self.find_checked(cpu) else { return cpu.run_block(blocks) };
        // What others wrote to while engines ran.
        let mut foreign: Vec<(HostPtr, u8)> = Vec::new();
        let alone = cpu.timed.is_some() || cpu.log.wants(Topic::NoChain);
        let limit = if alone { 1 } else { SEQUENCE };
        let outcome = match self.compare(cpu, n, limit, &mut foreign) {
            Outcome::Different(len) => self.compare_each(cpu, n, len, &mut foreign),
            outcome => outcome,
        };
        foreign.iter().for_each(|&(at, byte)| at.write(byte));
        match outcome {
            Outcome::Same(End { fault: Some(exception), .. }) => Err(exception),
            Outcome::Same(end) | Outcome::Untried(end) => self.execute_one(cpu, &end),
            Outcome::Refused => cpu.run_block(blocks),
            Outcome::Different(_) => Err(Exception::DIVERGED),
        }
    }

    /// Compares up to `len` blocks from translation `n` on, each by itself.
    fn compare_each(
        &mut self,
        cpu: &mut Cpu,
        mut n: u32,
        len: usize,
        foreign: &mut Vec<(HostPtr, u8)>,
    ) -> Outcome {
        let key = self.shared.hold().cache.translations[n as usize].place.key;
        let mut done = 0;
        loop {
            let mut outcome = self.compare(cpu, n, 1, foreign);
            for _ in 1..ATTEMPTS {
                if matches!(outcome, Outcome::Different(_)) {
                    outcome = self.compare(cpu, n, 1, foreign);
                }
            }
            done += 1;
            match outcome {
                Outcome::Same(end) if end.goes_on() && done < len => {
                    // The TLB may be empty.
                    let _ = cpu.code_page(cpu.rip);
                    match self.known(cpu, key) {
                        Some(next) => n = next,
                        None => return Outcome::Same(end),
                    }
                }
                outcome => return outcome,
            }
        }
    }

    /// Runs up to `limit` translations, of which `n` is the first, in both engines. What others seem to have
    /// written meanwhile is taken back and added to `foreign`.
    fn compare(
        &mut self,
        cpu: &mut Cpu,
        n: u32,
        limit: usize,
        foreign: &mut Vec<(HostPtr, u8)>,
    ) -> Outcome {
        let before = Snapshot::of(cpu);
        let end = self.interpret(cpu, n, limit);
        if end.tried == 0 {
            return Outcome::Untried(end);
        }
        let after = Snapshot::of(cpu);
        self.take_back(cpu);
        before.give(cpu);
        let ran = self.run_translated(cpu, &end);
        if ran.refused {
            before.give(cpu);
            return Outcome::Refused;
        }
        let now = Snapshot::of(cpu);
        let wrong = self.compare_memory(cpu, end.plan.before.is_some());
        let same = ran.whole && ran.fault == end.fault && wrong.is_empty();
        if same && now.is_as(&after, end.vague) {
            after.give(cpu);
            return Outcome::Same(end);
        }
        if limit == 1 {
            let report = self.report(cpu, &end, [&before, &after, &now], ran.fault, &wrong);
            cpu.divergence = Some(report);
        }
        let first = self.checker.as_ref().map(|checker| &checker.first);
        cpu.recorder.iter().for_each(|second| second.undo());
        first.iter().for_each(|first| first.undo());
        // What walks have set is taken back, too, and the TLB must not know better.
        cpu.tlb.flush_every_asid();
        for byte in wrong {
            if first.is_none_or(|first| !first.has(byte.at)) {
                byte.at.write(byte.interpreted);
                foreign.push((byte.at, byte.translated));
            }
        }
        before.give(cpu);
        Outcome::Different(end.path.len())
    }

    /// The translation to run next, if there is one that can be.
    fn find_checked(&mut self, cpu: &mut Cpu) -> Option<u32> {
        self.take_up_changes(cpu);
        let key = Key::of(cpu)?;
        let shared = Arc::clone(&self.shared);
        self.translation(cpu, &mut shared.hold(), key, (Windows::Wide, 1)).ok()
    }

    /// The translation for `cpu`'s current instruction and `key`, if there is one and nothing has to be
    /// done before it is run.
    fn known(&self, cpu: &Cpu, key: Key) -> Option<u32> {
        if Key::of(cpu) != Some(key) {
            return None;
        }
        let host = cpu.probe_code(cpu.rip)?.addr();
        let page = if super::is_movable(cpu.rip, key) { 0 } else { cpu.rip & !PAGE_OFFSET };
        let held = self.shared.hold();
        match held.cache.find(&Place { host, page, key, windows: Windows::Wide }) {
            Found::Code(n) if held.cache.second(n).is_none() => Some(n),
            _ => None,
        }
    }

    /// Runs up to `limit` translations' instructions with the interpreter, from those of `n` on, recorded.
    fn interpret(&self, cpu: &mut Cpu, n: u32, limit: usize) -> End {
        let mut end = End::default();
        let Some(checker) = &self.checker else { return end };
        let key = self.shared.hold().cache.translations[n as usize].place.key;
        cpu.recorder.iter_mut().for_each(|recorder| recorder.begin());
        let mut next = Some(n);
        while let Some(n) = next {
            let tried = self.interpret_one(cpu, n, &mut end);
            if tried == 0 && !end.path.is_empty() {
                // It is the next one to begin with.
                end.plan = Plan::default();
                break;
            }
            end.tried = tried;
            end.path.push(Point::of(cpu, n, end.vague));
            // After a write to code, translations may not be what they were.
            let noticed =
                |recorder: &Recorder| recorder.pages().iter().any(|written| !written.quiet);
            if !end.goes_on()
                || end.path.len() >= limit
                || cpu.signals.pending() & cpu.urgent_signals() != 0
                || cpu.recorder.as_deref().is_some_and(noticed)
            {
                break;
            }
            next = self.known(cpu, key);
            next = next.filter(|&n| checker.known[n as usize].reads & end.vague == 0);
        }
        cpu.recorder.iter_mut().for_each(|recorder| recorder.end());
        end
    }

    /// Runs translation `n`'s instructions with the interpreter; returns how many were tried.
    fn interpret_one(&self, cpu: &mut Cpu, n: u32, end: &mut End) -> usize {
        let Some(checker) = &self.checker else { return 0 };
        let mut tried = 0;
        let known = &checker.known[n as usize];
        let distance = known.distance(cpu.rip);
        for (k, (op, about)) in known.ops.iter().zip(&known.instructions).enumerate() {
            let moved;
            // Most are where they were translated; copies take time.
            let op = if distance == 0 {
                op
            } else {
                moved = op.moved(distance);
                &moved
            };
            if about.stepped {
                end.plan.before = Some(k);
                break;
            }
            let mark = cpu.recorder.as_ref().map_or(0, |recorder| recorder.mark());
            cpu.rip = op.next_rip;
            let result = (op.run)(cpu, op);
            let broken = std::mem::take(&mut cpu.break_block);
            if result == Err(Exception::UNTRIED) {
                // Walks may have set bits before that was known.
                cpu.recorder.iter_mut().for_each(|recorder| recorder.undo_from(mark));
                cpu.rip = op.rip();
                end.plan.before = Some(k);
                break;
            }
            tried = k + 1;
            if let Err(exception) = result {
                if !std::mem::take(&mut cpu.keep_rip) {
                    cpu.rip = op.rip();
                }
                end.fault = Some(exception);
                break;
            }
            cpu.instructions += 1;
            end.vague = end.vague & !about.defined | about.undefined;
            if broken || cpu.pending_debug != 0 || cpu.needs_care() {
                end.plan.after = Some(k);
                break;
            }
            if cpu.rip != op.next_rip {
                break;
            }
        }
        tried
    }

    /// Undoes what was recorded, and puts the record aside, with the pages as they were written.
    fn take_back(&mut self, cpu: &mut Cpu) {
        let (Some(checker), Some(recorder)) = (&mut self.checker, &mut cpu.recorder) else {
            unreachable!("whoever checks has both")
        };
        std::mem::swap(&mut checker.first, recorder);
        checker.images.take(&checker.first);
        checker.first.undo();
        if checker.first.walked() {
            cpu.tlb.flush_every_asid();
        }
    }

    /// Runs translations as far as the interpreter came.
    fn run_translated(&mut self, cpu: &mut Cpu, end: &End) -> Ran {
        let mut pages: Vec<Written> = Vec::new();
        if let Some(checker) = &self.checker {
            let first = checker.first.pages().iter().copied();
            pages.extend(first.filter(|page| page.quiet && page.class == cpu.class));
        }
        pages.iter().for_each(|p| cpu.tlb.let_write(p.class, p.linear, p.host, true));
        cpu.recorder.iter_mut().for_each(|recorder| recorder.begin());
        let mut ran = Ran::default();
        for (k, point) in end.path.iter().enumerate() {
            let is_last = k + 1 == end.path.len();
            let plan = if is_last { end.plan } else { Plan::default() };
            match self.run_one_translated(cpu, point.n, plan, point.rip) {
                Ok(Left::At { .. }) if is_last => ran.whole = true,
                Ok(Left::At { .. }) if point.is_of(cpu) => continue,
                Ok(Left::At { .. }) => {}
                Ok(Left::Interpret) => ran.refused = k == 0,
                Err(exception) => (ran.fault, ran.whole) = (Some(exception), is_last),
            }
            break;
        }
        cpu.recorder.iter_mut().for_each(|recorder| recorder.end());
        pages.iter().for_each(|p| cpu.tlb.let_write(p.class, p.linear, p.host, false));
        ran
    }

    /// Runs translation `n`, which should lead to `rip`.
    fn run_one_translated(&mut self, cpu: &mut Cpu, n: u32, plan: Plan, rip: u64) -> Result<Left> {
        let (code, key) = {
            let translation = &self.shared.hold().cache.translations[n as usize];
            (translation.code, translation.place.key)
        };
        self.reached.state.expected = rip;
        let table = self.jump_table(key);
        let index = jump_index(rip);
        *self.reached.jumps.get_mut(table, index) = Jump { rip, code: self.shared.thunks.arrived };
        self.checker.iter_mut().for_each(|checker| checker.plan = plan);
        let result = enter(self, cpu, code);
        *self.reached.jumps.get_mut(table, index) = Jump { rip: no_jump(index), code: 0 };
        #[cfg(test)]
        if let Some(sabotage) = self.checker.as_ref().and_then(|checker| checker.sabotage) {
            sabotage(cpu);
        }
        result
    }

    /// What translated code left in memory that it should not have: in pages that the interpreter wrote
    /// to, and in those that only the helpers of translated code did. If both `stopped` before an
    /// instruction, translated code may have looked for its operand's page already, and so have set the
    /// bits in page tables that it is about to set.
    fn compare_memory(&self, cpu: &Cpu, stopped: bool) -> Vec<WrongByte> {
        let (Some(checker), Some(second)) = (&self.checker, &cpu.recorder) else {
            return Vec::new();
        };
        let mut wrong = Vec::new();
        let mut compare = |at: HostPtr, interpreted: u8, translated: u8| {
            let set = interpreted ^ translated;
            let walked =
                stopped && interpreted & set == 0 && set & !WALK_BITS == 0 && second.has_walked(at);
            if set != 0 && !walked {
                wrong.push(WrongByte { at, interpreted, translated });
            }
        };
        checker.images.compare(&mut compare);
        // Of a byte that was replaced several times, what was there first counts.
        let mut seen = HashSet::new();
        for (at, old) in second.replaced().filter(|(at, _)| !checker.images.has(at.at(0))) {
            if seen.insert(at.addr()) {
                compare(at, old, at.read());
            }
        }
        wrong
    }

    /// Executes the instruction that both engines stopped before, if there is one.
    fn execute_one(&self, cpu: &mut Cpu, end: &End) -> Result {
        match (end.plan.before, end.path.last()) {
            (Some(k), Some(&Point { n, .. })) => {
                // RIP is at it.
                let known = self.checker.as_ref().map(|checker| &checker.known[n as usize]);
                let op =
                    known.and_then(|known| Some(known.ops.get(k)?.moved(known.distance(cpu.rip))));
                cpu.execute(&[op.unwrap_or(Op::EMPTY)])
            }
            _ => Ok(()),
        }
    }

    fn report(
        &self,
        cpu: &Cpu,
        end: &End,
        [before, after, now]: [&Snapshot; 3],
        fault: Option<Exception>,
        wrong: &[WrongByte],
    ) -> String {
        let n = end.path.last().map_or(0, |point| point.n);
        let held = self.shared.hold();
        let translation = &held.cache.translations[n as usize];
        let mut text = format!(
            "the interpreter and translated code differ in the block at {:#x} (CPU {}, privilege level {}):",
            before.rip, cpu.config.apic_id, cpu.cpl
        );
        disassemble(cpu.mode.code_bits(), held.cache.source(n), before.rip, &mut text);
        let _ = write!(text, "\nthe interpreter executed {} of {}", end.tried, translation.len());
        if fault != end.fault {
            let told = |fault: Option<Exception>| match fault {
                None => "none".to_owned(),
                Some(Exception { vector, error_code }) => match error_code {
                    Some(code) => format!("{vector} with error code {code:#x}"),
                    None => vector.to_string(),
                },
            };
            let (interpreted, translated) = (told(end.fault), told(fault));
            let _ = write!(text, "\nexception: interpreted {interpreted}, translated {translated}");
        }
        let values = [before, after, now].map(|snapshot| snapshot.values(end.vague));
        for ((name, a), ((_, b), (_, c))) in values[0].iter().zip(values[1].iter().zip(&values[2]))
        {
            if b != c {
                let _ =
                    write!(text, "\n{name}: before {a:#x}, interpreted {b:#x}, translated {c:#x}");
            }
        }
        let first = self.checker.iter().flat_map(|checker| checker.first.pages());
        let pages: Vec<&Written> =
            first.chain(cpu.recorder.iter().flat_map(|second| second.pages())).collect();
        for byte in wrong.iter().take(BYTES_SHOWN) {
            let page = pages.iter().find(|page| page.host.at(0) == byte.at.at(0));
            let at = page.map_or(0, |page| page.linear | byte.at.addr() as u64 & 0xfff);
            let (a, b) = (byte.interpreted, byte.translated);
            let _ = write!(text, "\nmemory at {at:#x}: interpreted {a:#04x}, translated {b:#04x}");
        }
        if wrong.len() > BYTES_SHOWN {
            let _ = write!(text, "\nand {} bytes more", wrong.len() - BYTES_SHOWN);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use accel::{Exit, Vcpu};
    use iced_x86::code_asm::*;

    use crate::cpu::{Cpu, Translation};
    use crate::testing::{load, long_mode};

    /// A loop that stores; the engines are made to differ by `sabotage`.
    fn run(sabotage: Option<fn(&mut Cpu)>) -> (Cpu, Exit) {
        let mut cpu = long_mode();
        load(&cpu, |a| {
            let mut top = a.create_label();
            a.xor(eax, eax).unwrap();
            a.mov(ecx, 100).unwrap();
            a.set_label(&mut top).unwrap();
            a.add(rax, rcx).unwrap();
            a.mov(qword_ptr(0x2_0000), rax).unwrap();
            a.push(rax).unwrap();
            a.pop(rdx).unwrap();
            a.dec(ecx).unwrap();
            a.jne(top).unwrap();
            a.hlt().unwrap();
        });
        assert!(cpu.set_translation(Some(Translation {
            threshold: 1,
            check: true,
            ..Translation::default()
        })));
        if let Some(checker) = cpu.translator.as_mut().and_then(|t| t.checker.as_mut()) {
            checker.sabotage = sabotage;
        }
        let exit = cpu.run();
        (cpu, exit)
    }

    fn report(sabotage: fn(&mut Cpu)) -> String {
        match run(Some(sabotage)) {
            (_, Exit::InternalError(report)) => report,
            (_, exit) => panic!("not noticed: {exit:?}"),
        }
    }

    #[test]
    fn engines_that_agree_go_on() {
        let (cpu, exit) = run(None);
        assert!(matches!(exit, Exit::Halt { .. }), "{exit:?}");
        assert_eq!((cpu.gpr[0], cpu.gpr[2]), (5050, 5050));
        let mut stored = [0; 8];
        cpu.memory.read(0x2_0000, &mut stored).unwrap();
        assert_eq!(u64::from_le_bytes(stored), 5050);
        assert_eq!(cpu.instructions, 2 + 100 * 6 + 1);
    }

    #[test]
    fn a_wrong_register_is_told_with_its_block() {
        let report = report(|cpu| cpu.gpr[0] ^= u64::from(cpu.gpr[1] == 42) << 7);
        for part in ["block at 0x10007", "add", "rax: before ", "interpreted 0x", "translated 0x"] {
            assert!(report.contains(part), "no {part:?} in {report}");
        }
        assert!(!report.contains("\nrcx"), "rcx is the same: {report}");
    }

    #[test]
    fn a_wrong_flag_is_told() {
        let report = report(|cpu| {
            let flags = cpu.rflags();
            cpu.set_rflags(flags ^ u64::from(cpu.gpr[1] == 3) << 6);
        });
        assert!(report.contains("\nrflags: before "), "{report}");
    }

    #[test]
    fn a_wrong_byte_of_memory_is_told() {
        let report = report(|cpu| cpu.memory.write(0x2_0003, &[0x99]).unwrap());
        let wanted = "memory at 0x20003: interpreted 0x00, translated 0x99";
        assert!(report.contains(wanted), "{report}");
    }

    /// What a device writes meanwhile is no fault, and stays.
    #[test]
    fn others_may_write_meanwhile() {
        let (cpu, exit) = run(Some(|cpu| {
            // Once: a debug register remembers.
            if cpu.gpr[1] == 50 && cpu.dr[0] == 0 {
                cpu.dr[0] = 1;
                cpu.memory.write(0x2_0100, &[0x77]).unwrap();
            }
        }));
        assert!(matches!(exit, Exit::Halt { .. }), "{exit:?}");
        let mut seen = [0];
        cpu.memory.read(0x2_0100, &mut seen).unwrap();
        assert_eq!(seen, [0x77]);
    }
}
