//! What the MMX and SSE instructions share: whether they may run, their operands, and how their
//! numeric exceptions are delivered.
//!
//! Order of checks (APM volume 2, table 8-8): #UD by CR0.EM and CR4.OSFXSR, #NM by CR0.TS, for MMX a
//! pending x87 exception, then the memory operand's faults (the segment, alignment, the page), then
//! #XF.

use super::MXCSR_MM;
use super::softfloat::{Env, F80};
use crate::cpu::Cpu;
use crate::exception::{Exception, Result, vector};
use crate::host::Access;
use crate::int::Int;
use crate::op::{Op, OpFlags};
use crate::regs::{CR0_EM, CR0_NE, CR0_TS, CR4_OSFXSR, CR4_OSXMMEXCPT};
use crate::svm::code;

impl Cpu {
    /// Checks that SSE instructions may run.
    #[inline(always)]
    pub(super) fn sse_check(&self) -> Result {
        if self.cr0 & (CR0_EM | CR0_TS) == 0 && self.cr4 & CR4_OSFXSR != 0 {
            return Ok(());
        }
        self.sse_unavailable()
    }

    /// What vector instructions the host may execute in the guest's place: 0 none, 1 SSE, 2 AVX as well.
    /// None while one of them might raise an exception.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn vector_level(&self) -> u32 {
        const MASKS: u32 = 0x1f80;
        // Nor may the host not mind what the guest's processor does not mind.
        if self.fpu.mxcsr & (MASKS | MXCSR_MM) != MASKS || self.sse_check().is_err() {
            return 0;
        }
        if self.avx_check().is_ok() { 2 } else { 1 }
    }

    /// Whether the host's x87 may execute the guest's instructions: they can run, and raise no exception.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn x87_is_masked(&self) -> bool {
        self.cr0 & (CR0_EM | CR0_TS) == 0 && self.fpu.control & 0x3f == 0x3f
    }

    #[cold]
    fn sse_unavailable(&self) -> Result {
        Err(if self.cr0 & CR0_EM != 0 || self.cr4 & CR4_OSFXSR == 0 {
            Exception::UD
        } else {
            Exception::NM
        })
    }

    /// Checks that MMX instructions may run.
    pub(super) fn mmx_check(&mut self) -> Result {
        if self.cr0 & CR0_EM != 0 {
            return Err(Exception::UD);
        }
        if self.cr0 & CR0_TS != 0 {
            return Err(Exception::NM);
        }
        self.x87_pending_check()
    }

    /// Delivers an exception that an earlier x87 instruction left pending: as #MF or, with CR0.NE clear,
    /// through FERR# to the board, which answers with an interrupt.
    #[inline]
    pub(super) fn x87_pending_check(&mut self) -> Result {
        if self.fpu.pending() { self.x87_error() } else { Ok(()) }
    }

    #[cold]
    fn x87_error(&mut self) -> Result {
        if self.cr0 & CR0_NE != 0 {
            return Err(Exception::plain(vector::MF));
        }
        if self.bus.floating_point_error(true) {
            return Ok(());
        }
        self.intercept(code::FERR_FREEZE)?;
        Err(Exception::RETRY)
    }

    /// Tells the board that the x87's errors are about to be cleared, if it knows of them.
    pub(super) fn x87_clear_error(&self) {
        if self.fpu.pending() && self.cr0 & CR0_NE == 0 {
            self.bus.floating_point_error(false);
        }
    }

    /// Loads 16 bytes that must be aligned.
    #[inline(always)]
    pub(super) fn load_aligned(&mut self, op: &Op) -> Result<u128> {
        let offset = self.ea(op);
        let linear = self.linear(op.seg, offset, 16, Access::Read)?;
        if linear & 15 != 0 {
            return Err(Exception::GP0);
        }
        self.load(op.seg, offset)
    }

    /// Stores 16 bytes that must be aligned.
    #[inline(always)]
    pub(super) fn store_aligned(&mut self, op: &Op, value: u128) -> Result {
        let offset = self.ea(op);
        let linear = self.linear(op.seg, offset, 16, Access::Write)?;
        if linear & 15 != 0 {
            return Err(Exception::GP0);
        }
        self.store(op.seg, offset, value)
    }

    /// XMM register `n`.
    #[inline(always)]
    pub(super) fn xmm(&self, n: u8) -> u128 {
        self.fpu.xmm[usize::from(n & 15)]
    }

    #[inline(always)]
    pub(super) fn set_xmm(&mut self, n: u8, value: u128) {
        self.fpu.xmm[usize::from(n & 15)] = value;
    }

    /// Replaces the low bits of XMM register `n`.
    #[inline(always)]
    pub(super) fn set_xmm_low<T: Int>(&mut self, n: u8, value: T) {
        let low = T::ONES.to_u128();
        let slot = &mut self.fpu.xmm[usize::from(n & 15)];
        *slot = *slot & !low | value.to_u128();
    }

    /// The second operand, all 128 bits: a register or memory, aligned unless MXCSR lets it be as it is.
    #[inline(always)]
    pub(super) fn xmm_source(&mut self, op: &Op) -> Result<u128> {
        match () {
            () if !op.flags.contains(OpFlags::MEM) => Ok(self.xmm(op.src)),
            () if self.fpu.mxcsr & MXCSR_MM != 0 => self.load_op(op),
            () => self.load_aligned(op),
        }
    }

    /// The second operand, of which only the low bits count: a register or memory of any alignment.
    #[inline(always)]
    pub(super) fn xmm_source_low<T: Int>(&mut self, op: &Op) -> Result<T> {
        if op.flags.contains(OpFlags::MEM) {
            self.load_op(op)
        } else {
            Ok(T::from_u128(self.xmm(op.src)))
        }
    }

    /// The second operand: a general register or memory.
    #[inline(always)]
    pub(super) fn gpr_source<T: Int>(&mut self, op: &Op) -> Result<T> {
        if op.flags.contains(OpFlags::MEM) { self.load_op(op) } else { Ok(self.reg(op.src)) }
    }

    /// MMX register `n`.
    pub(super) fn mm(&self, n: u8) -> u64 {
        self.fpu.regs[usize::from(n & 7)].sig
    }

    /// Writes an MMX register.
    pub(super) fn set_mm(&mut self, n: u8, value: u64) {
        self.fpu.regs[usize::from(n & 7)] = F80 { sig: value, exp: 0xffff };
    }

    /// What every MMX instruction but EMMS does to x87: the stack is full and starts at R0.
    pub(super) fn enter_mmx(&mut self) {
        self.fpu.top = 0;
        self.fpu.valid = 0xff;
    }

    /// The second operand: an MMX register, or memory of `T`'s size.
    pub(super) fn mm_source<T: Int>(&mut self, op: &Op) -> Result<u64> {
        if op.flags.contains(OpFlags::MEM) {
            Ok(self.load_op::<T>(op)?.to_u64())
        } else {
            Ok(self.mm(op.src))
        }
    }

    /// The environment of SSE arithmetic.
    #[inline(always)]
    pub(super) fn sse_env(&self) -> Env {
        Env::sse(self.fpu.mxcsr)
    }

    /// Takes up the flags that SSE arithmetic raised. An error means that its result must be dropped.
    #[inline(always)]
    pub(super) fn sse_finish(&mut self, env: &Env) -> Result {
        if env.flags == 0 { Ok(()) } else { self.sse_raise(env) }
    }

    fn sse_raise(&mut self, env: &Env) -> Result {
        self.fpu.mxcsr |= u32::from(env.sse_flags());
        if env.unmasked() == 0 {
            Ok(())
        } else if self.cr4 & CR4_OSXMMEXCPT != 0 {
            Err(Exception::plain(vector::XF))
        } else {
            Err(Exception::UD)
        }
    }
}
