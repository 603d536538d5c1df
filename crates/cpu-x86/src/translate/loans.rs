//! Registers lent within a loop.
//!
//! Four of the guest's general registers are in memory (see `regs`). In a loop that uses some of them, and
//! not all of those that have registers of the host's, they are lent these. What was lent is given back
//! wherever the translation is left, and before the interpreter executes an instruction for it: outside, the
//! registers are where they always are.
//!
//! Only registers that no instruction of the loop uses are lent, so nothing needs to know what is where but
//! [`Compiler::place_of`]. Both ways leave the flags alone.

use iced_x86::{Code, MemoryOperand, Register};

use super::asm::in_state;
use super::compile::{Compiler, Facts, Input};
use super::flags::is_simple;
use super::regs::HOST;
use super::state::at;

/// In how many instructions a round has to use a register for a loan to be worth its while, if there are a few
/// rounds.
const MIN_USES: usize = 2;

/// A register of the host's that is lent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Loan {
    register: Register,
    /// The general register that it is lent to, by number.
    to: usize,
    /// It changes while it is lent.
    changed: bool,
}

/// What is to be lent in a translation of `input` that goes back to its beginning, with what is known of each
/// instruction.
pub(super) fn loans(input: &[Input], facts: &[Facts]) -> Vec<Loan> {
    let is_plain = |input: &Input| {
        input.insn.as_ref().is_some_and(|insn| {
            is_simple(insn) || insn.is_jcc_short_or_near() || insn.is_jmp_short_or_near()
        })
    };
    if !input.iter().all(is_plain) {
        return Vec::new();
    }
    let all = |of: fn(&Facts) -> u16| facts.iter().fold(0, |all, facts| all | of(facts));
    let (used, changed) = (all(|facts| facts.used), all(|facts| facts.changed));
    let round = input.iter().position(|input| input.followed).map_or(input.len(), |last| last + 1);
    let uses = |n: usize| facts[..round].iter().filter(|facts| facts.used & 1 << n != 0).count();
    let mut wanted: Vec<usize> =
        (0..HOST.len()).filter(|&n| HOST[n].is_none() && uses(n) >= MIN_USES).collect();
    wanted.sort_by_key(|&n| std::cmp::Reverse(uses(n)));
    let unused = HOST.iter().enumerate().filter(|&(n, _)| used & 1 << n == 0);
    let free = unused.filter_map(|(_, register)| *register);
    wanted
        .into_iter()
        .zip(free)
        .map(|(to, register)| Loan { register, to, changed: changed & 1 << to != 0 })
        .collect()
}

impl Compiler<'_> {
    /// The host's register that general register `n` is in; `None` if it is in memory.
    pub(super) fn place_of(&self, n: usize) -> Option<Register> {
        let lent = self.loans.iter().find(|loan| loan.to == n);
        lent.map_or(HOST[n & 15], |loan| Some(loan.register))
    }

    /// Lends what is to be lent.
    pub(super) fn lend(&mut self) {
        for (n, Loan { register, to, .. }) in self.loans.clone().into_iter().enumerate() {
            let to = self.home(to);
            self.asm.mr(Code::Mov_rm64_r64, owned(n), register);
            self.asm.rm(Code::Mov_r64_rm64, register, to);
        }
        self.lent = !self.loans.is_empty();
    }

    /// Gives back what is lent, if `lent`.
    pub(super) fn give_back_loans(&mut self, lent: bool) {
        let loans = if lent { self.loans.clone() } else { Vec::new() };
        for (n, Loan { register, to, changed }) in loans.into_iter().enumerate() {
            if changed {
                let to = self.home(to);
                self.asm.mr(Code::Mov_rm64_r64, to, register);
            }
            self.asm.rm(Code::Mov_r64_rm64, register, owned(n));
        }
    }
}

/// Where it is kept what was in the register of loan `n`. (Where the state has that otherwise, helpers keep
/// what is in the register now.)
fn owned(n: usize) -> MemoryOperand {
    in_state(at::OWNED + 8 * n as u32)
}
