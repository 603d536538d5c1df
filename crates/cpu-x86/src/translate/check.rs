//! Both engines in step: each translated block is run by the interpreter, taken back, run translated,
//! and compared.
//!
//! The interpreter goes first, with what it writes recorded. It stops before an instruction that the
//! translator leaves to it anyway, or that would access a device: those are executed once. Then memory
//! and registers become again what they were, and the translation runs; by the TLB it can write only to
//! the pages that the interpreter wrote to. Registers, exceptions, and every byte of those pages have to
//! be the same at the end.
//!
//! What is not checked: jumps from one translation to another, as each translation is left at its end,
//! by the jump cache if it goes there; flags that are not saved as nobody reads them; looks at signals; system calls and what else changes more than
//! registers; and repeated string instructions, which the engines interrupt in different places. Flags that the manuals leave undefined
//! need not agree. The interpreter's result is what the guest gets.
//!
//! Devices write to memory at any time. So where the engines differ they are tried again, and only what
//! is different each time is a divergence. CPUs take turns (`CpuGroup::turn`).

use std::fmt::Write;

use iced_x86::{Instruction, Mnemonic};

use super::Translator;
use super::compile::Input;
use super::enter::{Left, enter};
use super::flags::ARITH;
use super::state::{Jump, jump_index, no_jump};
use crate::block::BlockCache;
use crate::cpu::Cpu;
use crate::exception::{Exception, Result};
use crate::fpu::Fpu;
use crate::host::HostPtr;
use crate::op::Op;
use crate::record::{Image, Recorder, Written, image};
use crate::trace::disassemble;

/// How often engines may differ because of what others write.
const ATTEMPTS: u32 = 4;
/// Most bytes of memory in a report.
const BYTES_SHOWN: usize = 64;

/// What is to be known of a translated instruction.
struct About {
    /// The interpreter executes it in any case.
    stepped: bool,
    /// Flags that it gives a value.
    defined: u32,
    /// Flags that it may leave with any value.
    undefined: u32,
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
    known: Vec<Box<[About]>>,
    plan: Plan,
    /// The record of the engine that ran first, while the other one runs.
    first: Box<Recorder>,
    /// Makes the translated engine fail.
    #[cfg(test)]
    sabotage: Option<fn(&mut Cpu)>,
}

impl Checker {
    /// Takes note of a new translation of `input`, of which the interpreter executes `stepped`.
    pub(super) fn learn(&mut self, input: &[Input], stepped: &[usize]) {
        let about = |(n, input): (usize, &Input)| {
            let insn = input.insn.unwrap_or_default();
            let undefined = insn.rflags_undefined() & ARITH;
            About {
                stepped: stepped.contains(&n),
                defined: insn.rflags_modified() & ARITH & !undefined,
                undefined,
            }
        };
        self.known.push(input.iter().enumerate().map(about).collect());
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
        let shows_flags = matches!(
            insn.mnemonic(),
            Mnemonic::Pushf | Mnemonic::Pushfd | Mnemonic::Pushfq | Mnemonic::Lahf
        );
        let to_next = insn.is_jcc_short_or_near() && insn.near_branch_target() == insn.next_ip();
        if shows_flags && undefined != 0 || to_next || is_approximate(&insn) {
            input.insn = None;
        }
        // The second may take away what the code after it needs.
        if to_next || insn.mnemonic() == Mnemonic::Fldcw {
            end = n + 1;
            break;
        }
        let vague = insn.rflags_undefined() & ARITH;
        undefined = undefined & !insn.rflags_modified() | vague;
    }
    input.truncate(end);
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
    fn values(&self, vague: u32) -> Vec<(String, u128)> {
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
        put("rflags", (self.rflags & !u64::from(vague)).into());
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
    fn is_as(&self, other: &Self, vague: u32) -> bool {
        let (a, b) = (&self.fpu, &other.fpu);
        let fpu = |fpu: &Fpu| {
            let words = [fpu.control, fpu.status_word(), fpu.opcode, fpu.valid.into()];
            (words, fpu.mxcsr, fpu.ip, fpu.dp)
        };
        self.gpr == other.gpr
            && self.rip == other.rip
            && (self.rflags ^ other.rflags) & !u64::from(vague) == 0
            && (self.cr2, self.pending_debug) == (other.cr2, other.pending_debug)
            && self.shadows == other.shadows
            && fpu(a) == fpu(b)
            && a.xmm == b.xmm
            && a.ymm_high == b.ymm_high
            && a.regs.map(|r| r.to_bits()) == b.regs.map(|r| r.to_bits())
    }
}

/// How far the interpreter came.
#[derive(Default)]
struct End {
    plan: Plan,
    /// Instructions that were executed, or raised an exception.
    tried: usize,
    fault: Option<Exception>,
    /// Flags with undefined values.
    vague: u32,
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
        let before = Snapshot::of(cpu);
        // What others wrote to while engines ran.
        let mut foreign: Vec<(HostPtr, u8)> = Vec::new();
        let mut report = String::new();
        for _ in 0..ATTEMPTS {
            let end = self.interpret(cpu, n);
            let after = Snapshot::of(cpu);
            if end.tried == 0 {
                foreign.iter().for_each(|&(at, byte)| at.write(byte));
                return self.execute_one(cpu, n, &end);
            }
            let images = self.take_back(cpu);
            before.give(cpu);
            let result = self.run_translated(cpu, n, &end, after.rip);
            if matches!(result, Ok(Left::Interpret)) {
                before.give(cpu);
                return cpu.run_block(blocks);
            }
            let now = Snapshot::of(cpu);
            let wrong = self.compare_memory(cpu, &images);
            let fault = result.err();
            if fault == end.fault && wrong.is_empty() && now.is_as(&after, end.vague) {
                after.give(cpu);
                foreign.iter().for_each(|&(at, byte)| at.write(byte));
                return match end.fault {
                    Some(exception) => Err(exception),
                    None => self.execute_one(cpu, n, &end),
                };
            }
            report = self.report(cpu, n, &end, [&before, &after, &now], fault, &wrong);
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
        }
        cpu.divergence = Some(report);
        Err(Exception::DIVERGED)
    }

    /// The translation to run next, if there is one that can be.
    fn find_checked(&mut self, cpu: &mut Cpu) -> Option<u32> {
        self.take_up_changes(cpu);
        let key = super::Key::of(cpu)?;
        self.translation(cpu, key, true)
    }

    /// Runs translation `n`'s instructions with the interpreter, recorded.
    fn interpret(&self, cpu: &mut Cpu, n: u32) -> End {
        let mut end = End::default();
        let Some(checker) = &self.checker else { return end };
        let ops = self.ops_at(n, cpu.rip);
        cpu.recorder.iter_mut().for_each(|recorder| recorder.begin());
        for (k, (op, about)) in ops.zip(&checker.known[n as usize]).enumerate() {
            if about.stepped {
                end.plan.before = Some(k);
                break;
            }
            cpu.rip = op.next_rip;
            let result = (op.run)(cpu, &op);
            let broken = std::mem::take(&mut cpu.break_block);
            if result == Err(Exception::UNTRIED) {
                cpu.rip = op.rip();
                end.plan.before = Some(k);
                break;
            }
            end.tried = k + 1;
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
        cpu.recorder.iter_mut().for_each(|recorder| recorder.end());
        end
    }

    /// Undoes what was recorded, and puts the record aside; returns the pages as they were written.
    fn take_back(&mut self, cpu: &mut Cpu) -> Vec<(HostPtr, Box<Image>)> {
        let (Some(checker), Some(recorder)) = (&mut self.checker, &mut cpu.recorder) else {
            unreachable!("whoever checks has both")
        };
        std::mem::swap(&mut checker.first, recorder);
        let first = &checker.first;
        let images = first.host_pages().into_iter().map(|page| (page, image(page))).collect();
        first.undo();
        if first.walked() {
            cpu.tlb.flush_every_asid();
        }
        images
    }

    /// Runs translation `n` as far as the interpreter came, which was to `rip`.
    fn run_translated(&mut self, cpu: &mut Cpu, n: u32, end: &End, rip: u64) -> Result<Left> {
        let (code, key) = {
            let translation = &self.cache.translations[n as usize];
            (translation.code, translation.place.key)
        };
        self.state.expected = rip;
        let entry = (self.jump_table(key), jump_index(rip));
        self.jumps[entry.0][entry.1] = Jump { rip, code: self.thunks.arrived };
        let mut pages: Vec<Written> = Vec::new();
        if let Some(checker) = &mut self.checker {
            checker.plan = end.plan;
            let first = checker.first.pages().iter().copied();
            pages.extend(first.filter(|page| page.quiet && page.class == cpu.class));
        }
        pages.iter().for_each(|p| cpu.tlb.let_write(p.class, p.linear, p.host, true));
        cpu.recorder.iter_mut().for_each(|recorder| recorder.begin());
        let result = enter(self, cpu, code);
        cpu.recorder.iter_mut().for_each(|recorder| recorder.end());
        pages.iter().for_each(|p| cpu.tlb.let_write(p.class, p.linear, p.host, false));
        self.jumps[entry.0][entry.1] = Jump { rip: no_jump(entry.1), code: 0 };
        #[cfg(test)]
        if let Some(sabotage) = self.checker.as_ref().and_then(|checker| checker.sabotage) {
            sabotage(cpu);
        }
        result
    }

    /// What translated code left in memory that it should not have: in pages that the interpreter wrote
    /// to, and in those that only the helpers of translated code did.
    fn compare_memory(&self, cpu: &Cpu, images: &[(HostPtr, Box<Image>)]) -> Vec<WrongByte> {
        let mut wrong = Vec::new();
        for (page, image) in images {
            for (n, &word) in image.iter().enumerate() {
                let found = page.at(8 * n as u64).read::<u64>();
                if found != word {
                    let bytes = word.to_le_bytes().into_iter().zip(found.to_le_bytes());
                    for (i, (interpreted, translated)) in bytes.enumerate() {
                        if interpreted != translated {
                            let at = page.at((8 * n + i) as u64);
                            wrong.push(WrongByte { at, interpreted, translated });
                        }
                    }
                }
            }
        }
        let strays = cpu.recorder.iter().flat_map(|second| second.replaced());
        for (at, old) in strays.filter(|(at, _)| images.iter().all(|(page, _)| *page != at.at(0))) {
            wrong.push(WrongByte { at, interpreted: old, translated: at.read() });
        }
        wrong
    }

    /// Executes the instruction that both engines stopped before, if there is one.
    fn execute_one(&self, cpu: &mut Cpu, n: u32, end: &End) -> Result {
        match end.plan.before {
            Some(k) => {
                // RIP is at it.
                let op = self.ops_at(n, cpu.rip).nth(k).unwrap_or(Op::EMPTY);
                cpu.execute(&[op])
            }
            None => Ok(()),
        }
    }

    fn report(
        &self,
        cpu: &Cpu,
        n: u32,
        end: &End,
        [before, after, now]: [&Snapshot; 3],
        fault: Option<Exception>,
        wrong: &[WrongByte],
    ) -> String {
        let translation = &self.cache.translations[n as usize];
        let mut text = format!(
            "the interpreter and translated code differ in the block at {:#x} (CPU {}, privilege level {}):",
            before.rip, cpu.config.apic_id, cpu.cpl
        );
        disassemble(cpu.mode.code_bits(), translation.source(), before.rip, &mut text);
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
