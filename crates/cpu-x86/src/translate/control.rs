//! Branches, calls and returns.

use iced_x86::{Code, FlowControl, Instruction, MemoryOperand, OpKind, Register};

use super::asm::{Cond, Label, at as memory_at, at_plus, low32, near_plus, near_plus_8};
use super::compile::{Compiler, Input, JumpTable, LookUp, Return, Unlinked};
use super::group::Windows;
use super::memory::{For, number};
use super::regs::{GUEST_RSP, S1, S2};
use super::state::{Jump, RETURN_MASK};
use crate::decode::MAX_LEN;
use crate::host::PAGE_OFFSET;
use crate::mmu::LINEAR_BITS;
use crate::op::Op;
use crate::tlb::Class;

const _: () = assert!(size_of::<Jump>() == 16);
/// Offset of a jump's code in its entry.
pub(super) const CODE: i32 = std::mem::offset_of!(Jump, code) as i32;

impl Compiler<'_> {
    /// Whether code at `target` is wherever this translation is: in the same page, and so that no
    /// instruction there can go on in the next.
    pub(super) fn is_near(&self, target: u64) -> bool {
        let crosses = |at: u64| at & PAGE_OFFSET > PAGE_OFFSET + 1 - MAX_LEN as u64;
        self.start >> 12 == target >> 12 && !crosses(self.start) && !crosses(target)
    }

    /// Translates a branch: `Some(true)` if nothing comes after it, `None`, with nothing done, if it is
    /// none or can't be translated.
    pub(super) fn control(&mut self, insn: &Instruction, input: &Input) -> Option<bool> {
        let op = &input.op;
        let near = if self.places.wide { OpKind::NearBranch64 } else { OpKind::NearBranch32 };
        let wide = insn.op0_kind() == near;
        match insn.flow_control() {
            FlowControl::ConditionalBranch if wide && insn.is_jcc_short_or_near() => {
                self.branch(insn, input);
                Some(false)
            }
            FlowControl::ConditionalBranch if wide && self.is_near(op.imm) => {
                self.branch_by_count(insn, op)
            }
            FlowControl::UnconditionalBranch if input.followed => Some(false),
            FlowControl::UnconditionalBranch if wide => {
                self.go_to(op.rip(), op.imm);
                Some(true)
            }
            FlowControl::Call if wide && is_safely_canonical(op.imm) => {
                self.save();
                let displacement = self.access_at(GUEST_RSP, -(self.word() as i32), For::Write);
                self.push_return(displacement, op.next_rip);
                self.remember_return(op.next_rip);
                self.slow_returns();
                self.go_to(op.rip(), op.imm);
                Some(true)
            }
            FlowControl::Return if self.is_return(insn) => {
                self.ret(op);
                Some(true)
            }
            FlowControl::IndirectBranch if self.is_target(insn) => {
                self.save();
                self.target(insn);
                self.look_up();
                self.jump_to_found();
                self.slow_returns();
                Some(true)
            }
            FlowControl::IndirectCall if self.is_target(insn) => {
                self.indirect_call(insn, op);
                Some(true)
            }
            _ => None,
        }
    }

    fn branch(&mut self, insn: &Instruction, &Input { ref op, followed, .. }: &Input) {
        let condition = insn.condition_code() as u8 - 1;
        let (condition, target) =
            if followed { (condition ^ 1, op.next_rip) } else { (condition, op.imm) };
        self.want_flags();
        if self.is_near(target) {
            self.branch_near(condition, op.rip(), target);
        } else {
            let exit = self.exit(op.rip(), target);
            self.asm.jcc_raw(condition, exit);
        }
    }

    /// JRCXZ, LOOP and their like within the page, whose condition the flags have no part in.
    fn branch_by_count(&mut self, insn: &Instruction, op: &Op) -> Option<bool> {
        let (rcx, ecx) = (Register::RCX, Register::ECX);
        let (wide, taken, counts) = match insn.code() {
            Code::Jrcxz_rel8_64 => (true, Cond::Equal, false),
            Code::Jecxz_rel8_64 | Code::Jecxz_rel8_32 => (false, Cond::Equal, false),
            Code::Loop_rel8_64_RCX => (true, Cond::NotEqual, true),
            Code::Loop_rel8_64_ECX | Code::Loop_rel8_32_ECX => (false, Cond::NotEqual, true),
            _ => return None,
        };
        self.save();
        let (lea, test, register) = if wide {
            (Code::Lea_r64_m, Code::Test_rm64_r64, rcx)
        } else {
            (Code::Lea_r32_m, Code::Test_rm32_r32, ecx)
        };
        if counts {
            self.asm.rm(lea, register, MemoryOperand::with_base_displ(rcx, -1));
        }
        self.asm.rr(test, register, register);
        self.destroyed();
        let exit = self.exit(op.rip(), op.imm);
        self.asm.jcc(taken, exit);
        self.go_to(op.next_rip, op.next_rip);
        Some(true)
    }

    /// A conditional branch within the page. The flags are live.
    fn branch_near(&mut self, condition: u8, rip: u64, target: u64) {
        // On the way, there is nothing else to be done.
        let only_jumps =
            self.notes.is_empty() && !self.places.counts && (!self.lent || self.is_again(target));
        if only_jumps && target <= rip {
            // Mostly a loop: it goes on where the jump leads. Signals are looked at on the way.
            let not_taken = self.asm.label();
            self.save();
            self.asm.jcc_raw(condition ^ 1, not_taken);
            self.look_at_bell();
            self.jump_linked(Some(Cond::NotEqual as u8), target);
            let leave = self.leave_out_of_line(target, 0);
            self.asm.jmp(leave);
            self.asm.bind(not_taken);
            // Where it is not taken, the flags still are in both places.
            self.still_live();
        } else if only_jumps && (self.flags.saved || self.is_saved_soon()) {
            self.save();
            self.jump_linked(Some(condition), target);
        } else {
            let exit = self.exit(rip, target);
            self.asm.jcc_raw(condition, exit);
        }
    }

    /// Goes to `target`, from the instruction at `rip`.
    pub(super) fn go_to(&mut self, rip: u64, target: u64) {
        self.save();
        let exit = self.exit_now(rip, target);
        self.write_exit(exit);
    }

    /// Goes to `target` by the jump cache of `class`. The flags are saved.
    pub(super) fn jump_by_cache(&mut self, target: u64, class: Class) {
        let jumps = self.places.jumps_of(class);
        let unknown = self.leave_out_of_line(target, 0);
        self.address(S1, target);
        if class == self.places.class {
            self.look_up_or(unknown);
        } else {
            self.look_up_in(jumps, unknown);
        }
        self.asm.m(Code::Jmp_rm64, near_plus_8(jumps.at + CODE, S2));
    }

    /// Enters where the code for the return address `rip` is, which [`Self::push_return`] has just put on top of the
    /// stack, into the table of returns.
    fn remember_return(&mut self, rip: u64) {
        if !self.places.chains || !self.is_near(rip) {
            return;
        }
        let (returns, not) = (self.places.returns(), self.asm.label());
        self.asm.mov_imm(S1, RETURN_MASK.into());
        self.asm.rr(Code::And_r32_rm32, low32(S1), low32(GUEST_RSP));
        // The first is what is looked at when the bell has been rung. It stays empty.
        self.asm.jcc(Cond::Equal, not);
        self.destroyed();
        self.asm.mr(Code::Mov_rm64_r64, near_plus(returns.at, S1, 2), S2);
        let from = self.asm.label();
        let displacement = self.asm.address_changeable(from);
        self.asm.mr(Code::Mov_rm64_r64, near_plus(returns.at + CODE, S1, 2), S2);
        self.asm.bind(not);
        let windows = Windows::Wide;
        self.unlinked.push(Unlinked { from, target: rip, displacement, windows, returns: true });
    }

    /// Looks up the address in [`S1`], which is on top of the stack, in the table of returns; [`S2`] then tells the
    /// entry.
    fn look_up_return(&mut self, elsewhere: Label) {
        let returns = self.places.returns();
        self.asm.rm(Code::Mov_r32_rm32, low32(S2), returns.mask);
        self.asm.rr(Code::And_r32_rm32, low32(S2), low32(GUEST_RSP));
        self.asm.rm(Code::Cmp_r64_rm64, S1, near_plus(returns.at, S2, 2));
        self.asm.jcc(Cond::NotEqual, elsewhere);
        self.destroyed();
    }

    /// Writes code out of line for returns.
    pub(super) fn finish_returns(&mut self) {
        for Return { from, unknown, released } in std::mem::take(&mut self.returns) {
            self.asm.bind(from);
            self.look_up_or(unknown);
            self.lea_word(GUEST_RSP, GUEST_RSP, released);
            self.jump_to_found();
        }
    }

    /// Stores the return address `rip` to what [`S1`] and the displacement tell, and moves the stack pointer. [`S2`]
    /// has the address, too.
    fn push_return(&mut self, displacement: i64, rip: u64) {
        self.address(S2, rip);
        self.store_word(at_plus(S1, displacement), S2);
        self.move_stack(-(self.word() as i32));
    }

    /// Puts the target of an indirect branch into [`S1`].
    fn target(&mut self, insn: &Instruction) {
        if insn.op0_kind() == OpKind::Memory {
            self.access_alone(insn, self.word(), For::Read, false);
            self.load_word(S1, memory_at(S1));
        } else {
            let from = self.read_gpr(number(insn.op0_register()), S1);
            if self.places.wide {
                self.asm.mov(S1, from);
            } else {
                self.asm.rr(Code::Mov_r32_rm32, low32(S1), low32(from));
            }
        }
    }

    /// Looks up the address in [`S1`] in the jump cache; [`S2`] then tells the entry. If it is not
    /// there, or the bell has been rung, the interpreter executes the instruction.
    fn look_up(&mut self) {
        let unknown = self.slow();
        self.look_up_or(unknown);
    }

    /// The same; goes to `unknown` if there is no code for it.
    fn look_up_or(&mut self, unknown: Label) {
        let (from, begin) = (self.asm.label(), self.asm.label());
        self.asm.bind(begin);
        self.look_up_in(self.places.jumps_of(self.places.class), from);
        self.look_ups.push(LookUp { from, begin, unknown });
    }

    /// The same in the jump cache `jumps`; goes to `unknown` if it is not there.
    pub(super) fn look_up_in(&mut self, jumps: JumpTable, unknown: Label) {
        self.asm.look_up(jumps, unknown);
        self.destroyed();
    }

    /// Goes to the code that [`Self::look_up`] has found.
    fn jump_to_found(&mut self) {
        let jumps = self.places.jumps_of(self.places.class);
        self.asm.m(Code::Jmp_rm64, near_plus_8(jumps.at + CODE, S2));
    }

    fn ret(&mut self, op: &Op) {
        self.save();
        let displacement = self.access_at(GUEST_RSP, 0, For::Read);
        self.load_word(S1, at_plus(S1, displacement));
        let (elsewhere, unknown) = (self.asm.label(), self.slow());
        self.look_up_return(elsewhere);
        let released = self.word() as i32 + op.imm as i32;
        self.lea_word(GUEST_RSP, GUEST_RSP, released);
        self.asm.m(Code::Jmp_rm64, near_plus(self.places.returns().at + CODE, S2, 2));
        self.returns.push(Return { from: elsewhere, unknown, released });
        self.slow_returns();
    }

    fn indirect_call(&mut self, insn: &Instruction, op: &Op) {
        self.save();
        self.target(insn);
        self.look_up();
        self.keep_code(self.places.class);
        self.access_at_alone(GUEST_RSP, -(self.word() as i32), For::Write);
        self.push_return(0, op.next_rip);
        self.remember_return(op.next_rip);
        self.go_to_kept();
        self.slow_returns();
    }

    /// Whether `insn` is a return to an address of the code's width.
    fn is_return(&self, insn: &Instruction) -> bool {
        if self.places.wide {
            matches!(insn.code(), Code::Retnq | Code::Retnq_imm16)
        } else {
            matches!(insn.code(), Code::Retnd | Code::Retnd_imm16)
        }
    }

    /// Whether an indirect branch takes a target of the code's width.
    fn is_target(&self, insn: &Instruction) -> bool {
        match insn.op0_kind() {
            OpKind::Memory => insn.memory_size().size() == self.word() && !is_far(insn),
            OpKind::Register => {
                let register = insn.op0_register();
                register.is_gpr() && register.size() == self.word()
            }
            _ => false,
        }
    }
}

/// Whether `address` is canonical, however many levels the page tables have.
pub(super) fn is_safely_canonical(address: u64) -> bool {
    let shift = 64 - LINEAR_BITS;
    ((address << shift) as i64 >> shift) as u64 == address
}

fn is_far(insn: &Instruction) -> bool {
    insn.is_jmp_far_indirect() || insn.is_call_far_indirect()
}
