//! x87 instructions (APM volume 1, chapter 6; volume 5).
//!
//! - `arith`: arithmetic and comparisons.
//! - `load_store`: moves between the stack and memory, constants, BCD.
//! - `unary`: functions of ST(0), and of ST(0) and ST(1).
//! - `control`: the control, status and tag words, the environment and its images.
//!
//! Here are the stack and what all instructions do first. Exceptions become pending in the status word
//! and are delivered by the next waiting instruction. An unmasked exception found before there is a
//! result leaves the stack as it was; overflow, underflow and inexact do not.

mod arith;
pub(super) mod control;
mod load_store;
mod unary;

use iced_x86::Instruction;

use super::Fpu;
use super::softfloat::{Env, F80, Format, flag};
use crate::cpu::Cpu;
use crate::exception::{Exception, Result};
use crate::int::Int;
use crate::op::{Handler, Op, OpFlags};
use crate::regs::{CR0_EM, CR0_TS};
use crate::segment::CS;

/// Status word bits beyond the exceptions.
pub(super) mod status {
    /// Stack fault.
    pub(crate) const SF: u16 = 1 << 6;
    pub(crate) const C0: u16 = 1 << 8;
    pub(crate) const C1: u16 = 1 << 9;
    pub(crate) const C2: u16 = 1 << 10;
    pub(crate) const C3: u16 = 1 << 14;
}

/// Finds the handler of an x87 instruction.
pub(super) fn select(insn: &Instruction) -> Option<Handler> {
    arith::select(insn)
        .or_else(|| load_store::select(insn))
        .or_else(|| unary::select(insn))
        .or_else(|| control::select(insn))
}

impl Fpu {
    /// The physical register behind ST(`i`).
    fn physical(&self, i: u8) -> usize {
        usize::from(self.top.wrapping_add(i) & 7)
    }

    fn is_empty(&self, i: u8) -> bool {
        self.valid >> self.physical(i) & 1 == 0
    }

    /// ST(`i`), unless it is empty.
    pub(super) fn st(&self, i: u8) -> Option<F80> {
        (!self.is_empty(i)).then(|| self.regs[self.physical(i)])
    }

    fn set_st(&mut self, i: u8, value: F80) {
        let n = self.physical(i);
        self.regs[n] = value;
        self.valid |= 1 << n;
    }

    fn free(&mut self, i: u8) {
        self.valid &= !(1 << self.physical(i));
    }

    fn pop(&mut self) {
        self.free(0);
        self.top = self.top.wrapping_add(1) & 7;
    }

    fn pop_times(&mut self, count: u8) {
        (0..count).for_each(|_| self.pop());
    }

    /// Pushes; the caller has checked that there is room.
    fn push(&mut self, value: F80) {
        self.top = self.top.wrapping_sub(1) & 7;
        self.set_st(0, value);
    }

    fn set_c1(&mut self, set: bool) {
        self.status = self.status & !status::C1 | if set { status::C1 } else { 0 };
    }

    fn set_codes(&mut self, codes: u16) {
        let all = status::C0 | status::C1 | status::C2 | status::C3;
        self.status = self.status & !all | codes;
    }

    /// An operand is empty. Says whether the masked response is wanted.
    fn stack_underflow(&mut self) -> bool {
        self.set_c1(false);
        self.stack_fault()
    }

    /// There is no room for a push. Says whether the masked response is wanted.
    fn stack_overflow(&mut self) -> bool {
        self.set_c1(true);
        self.stack_fault()
    }

    fn stack_fault(&mut self) -> bool {
        self.status |= status::SF | u16::from(flag::IE);
        self.control & u16::from(flag::IE) != 0
    }

    /// The environment of arithmetic.
    fn env(&self) -> Env {
        Env::x87(self.control)
    }

    /// Takes up the exceptions that an operation raised.
    fn raise(&mut self, env: &Env) {
        self.status |= u16::from(env.flags);
    }

    /// Takes up what an operation raised, and C1. Says whether its result is to be written.
    fn commit(&mut self, env: &Env) -> bool {
        self.set_c1(env.rounded_up);
        self.raise(env);
        !env.faults_before_result()
    }

    /// Replaces ST(`i`) by a result, if it is one, and pops.
    fn finish(&mut self, env: &Env, i: u8, result: F80, pops: u8) {
        if self.commit(env) {
            self.set_st(i, result);
            self.pop_times(pops);
        }
    }

    /// Replaces ST(`i`) by the masked response to a stack underflow, and pops.
    fn finish_underflow(&mut self, i: u8, pops: u8) {
        if self.stack_underflow() {
            self.set_st(i, F80::INDEFINITE);
            self.pop_times(pops);
        }
    }

    /// Pushes `value`, or what a stack overflow gives.
    fn push_checked(&mut self, value: F80) {
        if self.is_empty(7) {
            self.set_c1(false);
            self.push(value);
        } else if self.stack_overflow() {
            self.push(F80::INDEFINITE);
        }
    }
}

impl Cpu {
    /// Checks that x87 instructions may run.
    fn x87_available(&self) -> Result {
        if self.cr0 & (CR0_EM | CR0_TS) != 0 { Err(Exception::NM) } else { Ok(()) }
    }

    /// What waiting instructions do first.
    fn x87_wait(&mut self) -> Result {
        self.x87_available()?;
        self.x87_pending_check()
    }

    /// Notes opcode and address of an instruction that is not a control instruction, and its memory
    /// operand's address.
    fn x87_note(&mut self, op: &Op) {
        self.fpu.opcode = op.imm as u16 & 0x7ff;
        self.fpu.ip = op.rip();
        self.fpu.cs = self.seg[usize::from(CS)].selector;
        if op.flags.contains(OpFlags::MEM) {
            self.fpu.dp = self.ea(op);
            self.fpu.ds = self.seg[usize::from(op.seg) % 6].selector;
        }
    }

    /// Runs an instruction that works on registers only.
    #[inline(always)]
    fn x87_on_stack(&mut self, op: &Op, f: impl FnOnce(&mut Fpu)) -> Result {
        self.x87_wait()?;
        self.x87_note(op);
        f(&mut self.fpu);
        Ok(())
    }

    /// Runs an instruction with a memory source.
    #[inline(always)]
    fn x87_from_memory<T: Int>(&mut self, op: &Op, f: impl FnOnce(&mut Fpu, T)) -> Result {
        self.x87_wait()?;
        let value = self.load_op::<T>(op)?;
        self.x87_note(op);
        f(&mut self.fpu, value);
        Ok(())
    }
}
