//! The run loop: blocks are found and executed, and between them the CPU looks at what wants its
//! attention (APM volume 2, section 8.5 gives the order of priorities).
//!
//! Most of the time a block runs from its first to its last instruction. One instruction at a time is
//! executed while something has to be looked at after (or before) each: single step, instruction
//! breakpoints, the instruction after STI or a load of SS, and the one that RF shields.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use accel::{CpuGlance, Exit, Signal, Signals, Vcpu};

use crate::block::{BlockCache, Decoded, decode_one};
use crate::counters::Count;
use crate::cpu::Cpu;
use crate::exception::{Exception, Result, vector};
use crate::flags::bits::{RF, TF};
use crate::interrupt::Delivered;
use crate::op::{Op, OpFlags};
use crate::pmu::{Done, Pmu};
use crate::regs::{DR6_BREAKPOINTS, DR6_BS, PENDING_SHUTDOWN};
use crate::segment::CS;
use crate::state::{Activity, CpuState};
#[cfg(target_arch = "x86_64")]
use crate::translate::Translator;

/// Blocks between two updates of what other threads see.
const BLOCKS_PER_GLANCE: u32 = 1024;
/// Blocks, or sequences of blocks that are compared, between two turns of a CPU, if CPUs take turns.
const BLOCKS_PER_TURN: u32 = 8;
/// Enable bits of the four breakpoints in DR7.
const DR7_ENABLES: u64 = 0xff;

/// What a CPU has taken out of itself while it runs.
struct Engine {
    blocks: BlockCache,
    #[cfg(target_arch = "x86_64")]
    translator: Option<Box<Translator>>,
}

/// What other threads may see of a CPU.
#[derive(Debug, Default)]
pub(crate) struct Glance {
    pc: AtomicU64,
    halted: AtomicBool,
    instructions: AtomicU64,
}

impl Cpu {
    /// The linear address of the current instruction.
    #[inline(always)]
    pub(crate) fn code_linear(&self) -> u64 {
        self.seg_access[usize::from(CS)].base.wrapping_add(self.rip) & self.linear_mask
    }

    /// Raises what a near branch to `target` raises before it goes there.
    #[inline(always)]
    pub(crate) fn check_jump(&self, target: u64) -> Result {
        let allowed = if self.mode.is_64() {
            self.is_canonical(target)
        } else {
            target <= u64::from(self.seg[usize::from(CS)].limit)
        };
        if allowed { Ok(()) } else { Err(Exception::GP0) }
    }

    /// Branches to `target` in the same code segment.
    #[inline(always)]
    pub(crate) fn jump(&mut self, target: u64) -> Result {
        self.check_jump(target)?;
        self.rip = target;
        Ok(())
    }

    /// Executes instructions in order until one branches, raises, or ends the block.
    #[inline(always)]
    pub(crate) fn execute(&mut self, ops: &[Op]) -> Result {
        if self.timed.is_some() {
            return self.execute_timed(ops);
        }
        let mut done = 0;
        let mut result = Ok(());
        for op in ops {
            self.rip = op.next_rip;
            result = (op.run)(self, op);
            if result.is_err() {
                if !std::mem::take(&mut self.keep_rip) {
                    self.rip = op.rip();
                }
                break;
            }
            done += 1;
            if self.break_block {
                break;
            }
        }
        self.break_block = false;
        self.instructions += done;
        result
    }

    /// Whether instructions have to be executed one at a time now, or none at all.
    #[inline(always)]
    pub(crate) fn needs_care(&self) -> bool {
        self.shadow
            | (self.system_flags & self.care_flags != 0)
            | (self.dr[7] & DR7_ENABLES != 0)
            | (self.activity != Activity::Running)
            | self.records_branches()
    }

    /// Outside 64-bit mode: raises #GP if the `len` bytes of code at RIP run past CS's limit.
    #[inline(always)]
    fn check_code_limit(&self, len: u32) -> Result {
        let limit = u64::from(self.seg[usize::from(CS)].limit);
        if !self.mode.is_64() && self.rip.saturating_add(u64::from(len) - 1) > limit {
            return Err(Exception::GP0);
        }
        Ok(())
    }

    /// Executes one block.
    #[inline(always)]
    pub(crate) fn run_block(&mut self, cache: &mut BlockCache) -> Result {
        let block = cache.get(self)?;
        self.run_decoded(block)
    }

    /// Executes `block`, which is at RIP.
    #[inline(always)]
    pub(crate) fn run_decoded(&mut self, block: Decoded<'_>) -> Result {
        if self.check_code_limit(block.len).is_err() {
            return self.run_one();
        }
        self.execute(block.ops)
    }

    /// Whether all that has to be taken care of is that one instruction is executed before interrupts
    /// are looked at. A nested guest's host wants to know of the shadow.
    fn needs_shadow_only(&self) -> bool {
        self.system_flags & (TF | RF) == 0
            && self.dr[7] & DR7_ENABLES == 0
            && !self.records_branches()
            && !self.svm.guest
            && self.activity == Activity::Running
    }

    /// Executes one instruction from the cache, which the shadow is for.
    fn run_first(&mut self, cache: &mut BlockCache) -> Result {
        self.shadow = false;
        self.debug_shadow = false;
        let block = cache.get(self)?;
        if self.check_code_limit(block.len).is_err() {
            return self.run_one();
        }
        self.execute(&block.ops[..1])
    }

    /// Executes one instruction.
    #[inline(never)]
    fn run_one(&mut self) -> Result {
        self.check_code_limit(1)?;
        let op = decode_one(self)?;
        self.check_code_limit(op.len.into())?;
        self.execute(&[op])
    }

    /// Executes one instruction with everything that may have to happen around it.
    #[cold]
    #[inline(never)]
    fn run_with_care(&mut self) -> Result {
        let shielded = self.system_flags & RF != 0;
        let breakpoints = self.dr[7] & DR7_ENABLES != 0 && self.svm.gif;
        if !shielded && !self.debug_shadow && breakpoints {
            self.check_code_breakpoints(self.code_linear())?;
        }
        let single_step = self.system_flags & TF != 0;
        let by_branch = single_step && self.steps_branches();
        let traced = self.records_branches() || by_branch;
        let from = self.code_linear();
        let not_taken = if traced { self.after_branch() } else { None };
        self.system_flags &= !RF;
        let shadow = std::mem::take(&mut self.shadow);
        self.debug_shadow = false;
        self.ends_step = false;
        let met_before = self.pending_debug & DR6_BREAKPOINTS;
        if let Err(exception) = self.run_one() {
            // An instruction that did not come to its end meets its breakpoints when it is tried again. What
            // a load of SS before it met is lost by a fault, as on processors.
            let kept = if exception == Exception::RETRY { met_before } else { 0 };
            self.pending_debug = self.pending_debug & !DR6_BREAKPOINTS | kept;
            if shielded {
                self.system_flags |= RF;
            }
            // A host is told whether the instruction was held in a shadow.
            self.shadow |= shadow && self.svm.guest && exception != Exception::RETRY;
            return Err(exception);
        }
        let taken = not_taken.is_some_and(|next| self.rip != next);
        if taken && self.records_branches() && !self.ends_step {
            self.record_branch(from);
        }
        // A step that ends in a shadow has no trap; breakpoints that were met there wait.
        if single_step && !self.ends_step && !self.debug_shadow && (taken || !by_branch) {
            self.pending_debug |= DR6_BS;
        }
        Ok(())
    }

    /// Where the CPU goes on after the instruction at RIP if that is a branch that is not taken; `None` if
    /// it is no branch.
    fn after_branch(&mut self) -> Option<u64> {
        let op = decode_one(self).ok()?;
        let next = self.rip.wrapping_add(u64::from(op.len));
        op.flags.contains(OpFlags::BRANCH).then_some(next)
    }

    /// Whether a performance counter is enabled for which every instruction has to be accounted for.
    #[inline(always)]
    pub(crate) fn counts_performance(&self) -> bool {
        self.msrs.pmu.as_ref().is_some_and(Pmu::is_counting)
    }

    /// Translated code does not count its instructions: for each tick of the time-stamp counter while the
    /// CPU runs, one is counted instead.
    pub(crate) fn count_translated(&mut self) {
        let exact = self.timed.is_some() || self.recorder.is_some();
        if self.translates && !exact {
            let now = self.clock.tsc();
            self.instructions += now.saturating_sub(self.counted_to);
            self.counted_to = now;
        }
    }

    /// Executes as much as [`Self::run_loop`] does at a time, with performance counters on.
    #[cold]
    #[inline(never)]
    fn run_counted(&mut self, cache: &mut BlockCache) -> Result {
        let (user, before) = (self.cpl != 0, self.instructions);
        let (len, is_branch, result);
        if self.needs_care() {
            let op = decode_one(self);
            (len, is_branch) = (1, op.is_ok_and(|op| op.flags.contains(OpFlags::BRANCH)));
            result = self.run_with_care();
        } else {
            let block = cache.get(self)?;
            (len, is_branch) = (block.ops.len() as u64, block.ends_in_branch());
            result = self.run_block(cache);
        }
        let instructions = self.instructions - before;
        let branches = u64::from(is_branch && instructions == len);
        self.count_performance(Done { instructions, branches, user });
        result
    }

    /// Delivers the debug conditions that were met as a trap.
    fn deliver_debug_trap(&mut self) -> Delivered {
        let pending = std::mem::take(&mut self.pending_debug);
        if pending & PENDING_SHUTDOWN != 0 {
            return self.shut_down();
        }
        // While the global interrupt flag is clear, breakpoints are not noticed.
        let pending = if self.svm.gif { pending } else { pending & !DR6_BREAKPOINTS };
        if pending == 0 {
            return Delivered::Yes;
        }
        self.set_debug_conditions(pending);
        self.deliver_exception(Exception::plain(vector::DB))
    }

    /// Looks at everything that may want attention between two instructions. `Some` leaves `run`.
    #[cold]
    #[inline(never)]
    fn attend(&mut self) -> Option<Exit> {
        if self.signals.is_raised(Signal::Exit) {
            return Some(Exit::Interrupted);
        }
        if self.signals.clear(Signal::Flush) {
            let epoch = self.group.epoch();
            self.take_up_map();
            self.tlb.forbid_writes();
            self.group.pass(&self.member, epoch);
            self.passed_epoch = epoch;
            self.forget_what_is_asked();
            self.renew_clock();
        }
        // Those are looked for whenever translated code is entered; it had to be left, no more.
        self.signals.clear(Signal::Code);
        self.signals.clear(Signal::Time);
        if self.take_event() == Delivered::Shutdown
            || self.pending_debug != 0
                && !self.debug_shadow
                && self.deliver_debug_trap() == Delivered::Shutdown
        {
            return Some(Exit::Shutdown);
        }
        (self.activity != Activity::Running).then(|| Exit::Halt { wake: self.wanted_signals() })
    }

    /// Executes one block, or translated code until it is left.
    #[inline(always)]
    #[cfg(target_arch = "x86_64")]
    fn run_some(&mut self, engine: &mut Engine) -> Result {
        match &mut engine.translator {
            // What is pending has been looked at; if it stays so, translated code would be left for it
            // again and again, but where engines are compared, which look at nothing.
            Some(translator)
                if self.signals.pending() & self.urgent_signals() == 0
                    || self.recorder.is_some() =>
            {
                translator.run(self, &mut engine.blocks)
            }
            Some(_) => {
                self.counters.count(Count::Pending);
                self.run_block(&mut engine.blocks)
            }
            None => self.run_block(&mut engine.blocks),
        }
    }

    /// Executes one block.
    #[inline(always)]
    #[cfg(not(target_arch = "x86_64"))]
    fn run_some(&mut self, engine: &mut Engine) -> Result {
        self.run_block(&mut engine.blocks)
    }

    fn run_loop(&mut self, engine: &mut Engine) -> Exit {
        let signals = Arc::clone(&self.signals);
        let mut until_glance = BLOCKS_PER_GLANCE;
        // Engines can be compared while nobody else runs.
        let group = self.recorder.is_some().then(|| Arc::clone(&self.group));
        let (mut turn, mut until_turn) = (None, BLOCKS_PER_TURN);
        loop {
            if let Some(group) = &group {
                if until_turn == 0 {
                    // Others come first.
                    turn = None;
                    until_turn = BLOCKS_PER_TURN;
                }
                turn.get_or_insert_with(|| group.turn());
                until_turn -= 1;
            }
            if self.timed.is_some() {
                self.fire_timers();
            }
            let careful = self.needs_care();
            if (careful || signals.pending() != 0)
                && let Some(exit) = self.attend()
            {
                match exit {
                    Exit::Halt { wake } if self.idle(wake | Signal::Exit as u32) => continue,
                    exit => return exit,
                }
            }
            self.trace_entry();
            let result = if self.counts_performance() {
                self.run_counted(&mut engine.blocks)
            } else if careful && self.needs_care() {
                self.counters.count(Count::Careful);
                if self.needs_shadow_only() {
                    self.run_first(&mut engine.blocks)
                } else {
                    self.run_with_care()
                }
            } else {
                self.run_some(engine)
            };
            if let Err(exception) = result {
                if exception == Exception::DIVERGED {
                    return Exit::InternalError(self.divergence.take().unwrap_or_default());
                }
                if self.deliver_exception(exception) == Delivered::Shutdown {
                    return Exit::Shutdown;
                }
            }
            if self.pending_debug != 0
                && !self.debug_shadow
                && self.deliver_debug_trap() == Delivered::Shutdown
            {
                return Exit::Shutdown;
            }
            until_glance -= 1;
            if until_glance == 0 {
                until_glance = BLOCKS_PER_GLANCE;
                self.sync_performance();
                self.tell_stolen_time();
                self.publish();
            }
        }
    }

    /// Lets other threads see where the CPU is.
    fn publish(&self) {
        self.glance.pc.store(self.rip, Ordering::Relaxed);
        self.glance.halted.store(self.activity != Activity::Running, Ordering::Relaxed);
        self.glance.instructions.store(self.instructions, Ordering::Relaxed);
    }
}

impl Vcpu for Cpu {
    type State = CpuState;

    fn run(&mut self) -> Exit {
        let mut engine = Engine {
            blocks: std::mem::take(&mut self.blocks),
            #[cfg(target_arch = "x86_64")]
            translator: self.translator.take(),
        };
        // A reset or a saved state may have put it elsewhere.
        self.take_up_controller_page();
        let (epoch, stale) = self.group.enter(&self.member, self.passed_epoch);
        self.passed_epoch = epoch;
        if stale {
            self.tlb.forbid_writes();
        }
        self.glance.halted.store(false, Ordering::Relaxed);
        self.counted_to = self.clock.tsc();
        self.begin_run_time();
        self.tell_stolen_time();
        let exit = self.run_loop(&mut engine);
        self.end_run_time();
        self.group.rest(&self.member);
        self.sync_performance();
        self.publish();
        self.blocks = engine.blocks;
        #[cfg(target_arch = "x86_64")]
        {
            self.translator = engine.translator;
        }
        exit
    }

    fn signals(&self) -> Arc<Signals> {
        Arc::clone(&self.signals)
    }

    fn glance(&self) -> Arc<dyn Fn() -> CpuGlance + Send + Sync> {
        let glance = Arc::clone(&self.glance);
        Arc::new(move || CpuGlance {
            pc: glance.pc.load(Ordering::Relaxed),
            halted: glance.halted.load(Ordering::Relaxed),
            instructions: glance.instructions.load(Ordering::Relaxed),
        })
    }

    fn reset(&mut self) {
        self.reset_state(false);
        self.publish();
    }

    fn state(&self) -> CpuState {
        self.save()
    }

    fn set_state(&mut self, state: &CpuState) -> std::result::Result<(), String> {
        self.restore(state)?;
        self.publish();
        Ok(())
    }
}

impl Drop for Cpu {
    fn drop(&mut self) {
        self.group.leave(&self.member);
    }
}

#[cfg(test)]
mod tests {
    use iced_x86::code_asm::*;

    use accel::{Exit, Vcpu};

    use crate::state::Activity;
    use crate::testing::{CODE, load, long_mode, run_to_halt};

    #[test]
    fn a_loop_sums() {
        let mut cpu = long_mode();
        load(&cpu, |a| {
            let mut top = a.create_label();
            a.xor(eax, eax).unwrap();
            a.mov(ecx, 1000).unwrap();
            a.set_label(&mut top).unwrap();
            a.add(rax, rcx).unwrap();
            a.mov(qword_ptr(0x20000), rax).unwrap();
            a.dec(ecx).unwrap();
            a.jne(top).unwrap();
            a.push(rax).unwrap();
            a.pop(rbx).unwrap();
            a.mov(rdx, qword_ptr(0x20000)).unwrap();
            a.hlt().unwrap();
        });
        run_to_halt(&mut cpu);
        assert_eq!(cpu.gpr[0], 500_500);
        assert_eq!(cpu.gpr[3], 500_500);
        assert_eq!(cpu.gpr[2], 500_500);
    }

    #[test]
    fn the_interpreter_counts_instructions() {
        let mut cpu = long_mode();
        load(&cpu, |a| {
            let mut top = a.create_label();
            a.mov(ecx, 1000).unwrap();
            a.set_label(&mut top).unwrap();
            a.dec(ecx).unwrap();
            a.jne(top).unwrap();
            a.hlt().unwrap();
        });
        assert!(matches!(cpu.run(), Exit::Halt { .. }));
        assert_eq!(cpu.instructions, 1 + 2 * 1000 + 1);
    }

    /// A loop whose body rewrites the immediate of an instruction that follows in the same block.
    #[test]
    fn code_written_by_a_device_is_decoded_again() {
        let mut cpu = long_mode();
        for value in [1u8, 2, 3] {
            load(&cpu, |a| {
                a.mov(eax, u32::from(value)).unwrap();
                a.hlt().unwrap();
            });
            cpu.rip = CODE;
            cpu.activity = Activity::Running;
            run_to_halt(&mut cpu);
            assert_eq!(cpu.gpr[0], u64::from(value));
        }
    }

    #[test]
    fn an_instruction_across_two_pages_follows_changes_in_both() {
        let mut cpu = long_mode();
        // mov eax, imm32 from two bytes before a page's end; hlt.
        let at = CODE + 0xffe;
        for (offset, byte) in [(1, 0x11), (2, 0x22), (4, 0x44)] {
            cpu.memory.write(at, &[0xb8, 0, 0, 0, 0, 0xf4]).unwrap();
            for _ in 0..2 {
                cpu.rip = at;
                cpu.activity = Activity::Running;
                run_to_halt(&mut cpu);
                assert_eq!(cpu.gpr[0], 0);
            }
            cpu.memory.write(at + offset, &[byte]).unwrap();
            cpu.rip = at;
            cpu.activity = Activity::Running;
            run_to_halt(&mut cpu);
            assert_eq!(cpu.gpr[0], u64::from(byte) << (8 * (offset - 1)));
        }
    }

    #[test]
    fn a_store_to_code_at_another_linear_address_is_seen() {
        let mut cpu = long_mode();
        // Map linear 2 MiB to physical 0 as well.
        cpu.memory.write(0x3008, &0x87u64.to_le_bytes()).unwrap();
        load(&cpu, |a| {
            let mut patched = a.create_label();
            let mut top = a.create_label();
            a.lea(rbx, qword_ptr(patched)).unwrap();
            a.xor(eax, eax).unwrap();
            a.mov(ecx, 5).unwrap();
            a.set_label(&mut top).unwrap();
            a.mov(byte_ptr(rbx + 0x20_0001), cl).unwrap();
            a.set_label(&mut patched).unwrap();
            a.mov(edx, 0).unwrap();
            a.add(eax, edx).unwrap();
            a.dec(ecx).unwrap();
            a.jne(top).unwrap();
            a.hlt().unwrap();
        });
        run_to_halt(&mut cpu);
        assert_eq!(cpu.gpr[0], 15);
    }

    #[test]
    fn an_exception_leaves_rip_at_the_instruction() {
        let mut cpu = long_mode();
        load(&cpu, |a| {
            a.nop().unwrap();
            a.mov(eax, dword_ptr(0x4000_0000u64)).unwrap();
            a.hlt().unwrap();
        });
        // Without an IDT this ends in shutdown; the state is that of the first fault.
        cpu.idtr.limit = 0;
        assert_eq!(cpu.run(), Exit::Shutdown);
        assert_eq!(cpu.rip, CODE + 1);
        assert_eq!(cpu.cr2, 0x4000_0000);
    }
}
