//! Counting the instructions that translated code executes.
//!
//! The state has a budget: how many instructions may be executed until a timer is due. Each translation
//! takes all its instructions off at its beginning, and is left at once if there are too few; whatever
//! leaves it in the middle gives back what was not executed. The helper that executes an instruction
//! settles: the CPU's count is then exact, as whatever the instruction does may ask for the time, or arm
//! a timer.

use iced_x86::Code;

use super::Translator;
use super::asm::{Cond, in_state};
use super::compile::Compiler;
use super::enter::{Left, enter};
use super::state::at;
use crate::block::BlockCache;
use crate::cpu::Cpu;
use crate::exception::Result;

impl Compiler<'_> {
    /// Takes the instructions of this translation off the budget, or leaves. The flags are saved.
    pub(super) fn charge(&mut self) {
        if !self.places.counts {
            return;
        }
        let budget = in_state(at::BUDGET);
        self.asm.mi(Code::Sub_rm64_imm32, budget, self.len as i32);
        let none_left = self.leave_out_of_line(self.start, self.len);
        self.asm.jcc(Cond::Sign, none_left);
    }

    /// Gives back `count` instructions. Destroys the host's flags, which are saved.
    pub(super) fn give_back(&mut self, count: usize) {
        if self.places.counts && count != 0 {
            let budget = in_state(at::BUDGET);
            self.asm.mi(Code::Add_rm64_imm32, budget, count as i32);
        }
    }

    /// Instructions of this translation that come after the one under way.
    pub(super) fn left(&self) -> usize {
        self.len - self.index - 1
    }
}

impl Translator {
    /// As [`Translator::run`], with instructions counted.
    pub(super) fn run_counted(&mut self, cpu: &mut Cpu, blocks: &mut BlockCache) -> Result {
        let budget = cpu.tell_time();
        let Some(code) = self.next(cpu) else { return cpu.run_block(blocks) };
        let before = cpu.instructions;
        self.set_budget(budget);
        let left = enter(self, cpu, code);
        self.settle(cpu);
        match left? {
            Left::At { .. } if cpu.instructions != before => Ok(()),
            // Fewer instructions are left than the translation has.
            Left::At { .. } | Left::Interpret => cpu.run_block(blocks),
        }
    }

    /// Lets `budget` instructions be executed from here on.
    fn set_budget(&mut self, budget: u64) {
        self.settled = i64::try_from(budget).unwrap_or(i64::MAX).min(i64::MAX >> 1);
        self.reached.state.budget = self.settled;
    }

    /// Adds to the CPU's count what was executed.
    fn settle(&mut self, cpu: &mut Cpu) {
        cpu.instructions =
            cpu.instructions.wrapping_add_signed(self.settled - self.reached.state.budget);
        self.settled = self.reached.state.budget;
    }

    /// An instruction after which, in its translation, come `left` is about to be executed by the
    /// interpreter.
    pub(super) fn settle_before(&mut self, cpu: &mut Cpu, left: usize) {
        if self.counts {
            self.reached.state.budget += left as i64 + 1;
            self.settle(cpu);
            cpu.tell_time();
        }
    }

    /// It was executed, and counted if `done`. Returns whether what is left of the translation may be
    /// executed before a timer is due; it is then taken off the budget.
    pub(super) fn settle_after(&mut self, cpu: &mut Cpu, done: bool, left: usize) -> bool {
        if !self.counts {
            return true;
        }
        cpu.instructions += u64::from(done);
        let budget = cpu.tell_time();
        self.set_budget(budget);
        if budget < left as u64 {
            return false;
        }
        self.reached.state.budget -= left as i64;
        true
    }

    /// What [`Self::settle_after`] has taken off is not executed.
    pub(super) fn give_back(&mut self, left: usize) {
        if self.counts {
            self.reached.state.budget += left as i64;
        }
    }
}
