//! The run loop: blocks are found and executed, and between them the CPU looks at what wants its
//! attention (APM volume 2, section 8.5 gives the order of priorities).
//!
//! Most of the time a block runs from its first to its last instruction. One instruction at a time is
//! executed while something has to be looked at after (or before) each: single step, instruction
//! breakpoints, the instruction after STI or a load of SS, and the one that RF shields.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use accel::{CpuGlance, Exit, Signal, Signals, Vcpu};

use crate::block::{BlockCache, decode_block};
use crate::cpu::Cpu;
use crate::exception::{Exception, Result};
use crate::flags::bits::{IF, RF, TF};
use crate::mmu::is_canonical;
use crate::op::Op;
use crate::regs::DR6_BS;
use crate::segment::CS;
use crate::state::{Activity, CpuState};

/// Blocks between two updates of what other threads see.
const BLOCKS_PER_GLANCE: u32 = 1024;
/// Enable bits of the four breakpoints in DR7.
const DR7_ENABLES: u64 = 0xff;

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
            is_canonical(target)
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
    fn execute(&mut self, ops: &[Op]) -> Result {
        let mut done = 0;
        let mut result = Ok(());
        for op in ops {
            self.rip = op.next_rip;
            result = (op.run)(self, op);
            if result.is_err() {
                self.rip = op.rip();
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
    fn needs_care(&self) -> bool {
        self.shadow
            | (self.system_flags & (TF | RF) != 0)
            | (self.dr[7] & DR7_ENABLES != 0)
            | (self.activity != Activity::Running)
    }

    /// Outside 64-bit mode: raises #GP if the `len` bytes of code at RIP run past CS's limit.
    #[inline(always)]
    fn check_code_limit(&self, len: u32) -> Result {
        let limit = u64::from(self.seg[usize::from(CS)].limit);
        if !self.mode.is_64() && self.rip + u64::from(len) - 1 > limit {
            return Err(Exception::GP0);
        }
        Ok(())
    }

    /// Executes one block.
    #[inline(always)]
    fn run_block(&mut self, cache: &mut BlockCache) -> Result {
        let block = cache.get(self)?;
        if self.check_code_limit(block.len()).is_err() {
            return self.run_one();
        }
        self.execute(block.ops())
    }

    /// Executes one instruction.
    #[inline(never)]
    fn run_one(&mut self) -> Result {
        self.check_code_limit(1)?;
        let block = decode_block(self, self.code_linear(), 1)?;
        self.check_code_limit(block.len())?;
        self.execute(block.ops())
    }

    /// Executes one instruction with everything that may have to happen around it.
    #[cold]
    #[inline(never)]
    fn run_with_care(&mut self) -> Result {
        let shielded = self.system_flags & RF != 0;
        if !shielded && self.dr[7] & DR7_ENABLES != 0 {
            self.check_code_breakpoints(self.code_linear())?;
        }
        let single_step = self.system_flags & TF != 0;
        let shadowed = self.shadow;
        self.system_flags &= !RF;
        self.shadow = false;
        if let Err(exception) = self.run_one() {
            if shielded {
                self.system_flags |= RF;
            }
            return Err(exception);
        }
        if single_step {
            self.pending_debug |= DR6_BS;
        }
        // A shadow holds debug traps off, too; but only one instruction long, however many are set.
        if shadowed {
            self.shadow = false;
        }
        if self.pending_debug != 0 && !self.shadow {
            self.deliver_debug_trap();
        }
        Ok(())
    }

    /// Looks at everything that may want attention between two instructions. `Some` leaves `run`.
    #[cold]
    #[inline(never)]
    fn attend(&mut self) -> Option<Exit> {
        let signals = Arc::clone(&self.signals);
        if signals.is_raised(Signal::Exit) {
            return Some(Exit::Interrupted);
        }
        if signals.is_raised(Signal::Flush) {
            signals.clear(Signal::Flush);
            let epoch = self.group.epoch();
            self.tlb.flush_l1();
            self.group.pass(&self.member, epoch);
            self.passed_epoch = epoch;
        }
        if signals.clear(Signal::Init) {
            self.reset_state(true);
        }
        if self.activity == Activity::WaitForStartup {
            if !signals.clear(Signal::Startup) {
                return Some(Exit::Halt);
            }
            self.start_up(self.interrupts.startup_vector());
        } else {
            signals.clear(Signal::Startup);
        }
        // There is no system management mode to enter.
        signals.clear(Signal::Smi);
        if !self.shadow {
            if !self.nmi_blocked && signals.clear(Signal::Nmi) {
                self.activity = Activity::Running;
                self.deliver_nmi();
            } else if self.system_flags & IF != 0
                && signals.is_raised(Signal::Interrupt)
                && let Some(vector) = self.interrupts.acknowledge()
            {
                self.activity = Activity::Running;
                self.deliver_interrupt(vector);
            }
        }
        if self.shutdown {
            return Some(Exit::Shutdown);
        }
        (self.activity == Activity::Halted).then_some(Exit::Halt)
    }

    fn run_loop(&mut self, cache: &mut BlockCache) -> Exit {
        let signals = Arc::clone(&self.signals);
        let mut until_glance = BLOCKS_PER_GLANCE;
        loop {
            let careful = self.needs_care();
            if (careful || signals.pending() != 0)
                && let Some(exit) = self.attend()
            {
                return exit;
            }
            let result = if careful && self.needs_care() {
                self.run_with_care()
            } else {
                self.run_block(cache)
            };
            if let Err(exception) = result {
                self.deliver_exception(exception);
                if self.shutdown {
                    return Exit::Shutdown;
                }
            }
            until_glance -= 1;
            if until_glance == 0 {
                until_glance = BLOCKS_PER_GLANCE;
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

    /// The signals that can wake the CPU from [`Exit::Halt`]: with interrupts disabled, a pending
    /// interrupt can't.
    pub fn wake_mask(&self) -> u32 {
        let mut mask = Signal::Exit as u32 | Signal::Init as u32;
        match self.activity {
            Activity::WaitForStartup => mask |= Signal::Startup as u32,
            _ => {
                if !self.nmi_blocked {
                    mask |= Signal::Nmi as u32;
                }
                if self.system_flags & IF != 0 {
                    mask |= Signal::Interrupt as u32;
                }
            }
        }
        mask
    }
}

impl Vcpu for Cpu {
    type State = CpuState;

    fn run(&mut self) -> Exit {
        let mut cache = std::mem::take(&mut self.blocks);
        let (epoch, stale) = self.group.enter(&self.member, self.passed_epoch);
        self.passed_epoch = epoch;
        if stale {
            self.tlb.flush_l1();
        }
        self.glance.halted.store(false, Ordering::Relaxed);
        let exit = self.run_loop(&mut cache);
        self.group.rest(&self.member);
        self.publish();
        self.blocks = cache;
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
