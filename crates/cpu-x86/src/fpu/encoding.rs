//! The two encodings of vector instructions, legacy SSE and VEX: where operands are, and what becomes of
//! the rest of the destination.
//!
//! A legacy instruction works on its destination and one source, which must be aligned in memory, and
//! leaves the upper half of the YMM register alone. A VEX-encoded one has two sources beside its
//! destination, does not care about alignment, works on both halves of YMM registers one after the other
//! if it is wide, and clears what it does not write.
//!
//! Most instructions exist in both forms and do the same to 128 bits: those are written once, for any
//! [`Encoding`]. [`legacy_of`] knows them by name.

use std::sync::OnceLock;

use iced_x86::Mnemonic;

use super::float::FloatLane;
use super::softfloat::Env;
use super::xsave::component;
use crate::cpu::Cpu;
use crate::exception::{Exception, Result};
use crate::int::Int;
use crate::op::{Op, OpFlags};
use crate::reg::addr_mask;
use crate::regs::{CR0_TS, CR4_OSXSAVE};

/// Both halves of a YMM register, the lower one first.
pub(super) type Ymm = [u128; 2];

/// Whether an instruction works on YMM registers.
#[inline(always)]
pub(super) fn is_wide(op: &Op) -> bool {
    op.flags.contains(OpFlags::WIDE)
}

impl Cpu {
    /// Checks that VEX-encoded vector instructions may run.
    #[inline(always)]
    pub(super) fn avx_check(&self) -> Result {
        const STATE: u64 = component::SSE | component::AVX;
        if self.cr4 & CR4_OSXSAVE == 0 || self.xcr0 & STATE != STATE {
            return Err(Exception::UD);
        }
        if self.cr0 & CR0_TS != 0 { Err(Exception::NM) } else { Ok(()) }
    }

    /// YMM register `n`.
    #[inline(always)]
    pub(super) fn ymm(&self, n: u8) -> Ymm {
        let n = usize::from(n & 15);
        [self.fpu.xmm[n], self.fpu.ymm_high[n]]
    }

    #[inline(always)]
    pub(super) fn set_ymm(&mut self, n: u8, value: Ymm) {
        let n = usize::from(n & 15);
        self.fpu.xmm[n] = value[0];
        self.fpu.ymm_high[n] = value[1];
    }

    /// The 16 or, if the instruction is wide, 32 bytes of the memory operand.
    #[inline(always)]
    pub(super) fn load_ymm(&mut self, op: &Op) -> Result<Ymm> {
        let offset = self.ea(op);
        if !is_wide(op) {
            return Ok([self.load(op.seg, offset)?, 0]);
        }
        let mut bytes = [0; 32];
        self.load_bytes(op.seg, offset, &mut bytes)?;
        let half = |n: usize| <u128 as Int>::from_le(&bytes[16 * n..]);
        Ok([half(0), half(1)])
    }

    /// Stores 16 or, if the instruction is wide, 32 bytes to the memory operand.
    #[inline(always)]
    pub(super) fn store_ymm(&mut self, op: &Op, value: Ymm) -> Result {
        let offset = self.ea(op);
        if !is_wide(op) {
            return self.store(op.seg, offset, value[0]);
        }
        let mut bytes = [0; 32];
        bytes[..16].copy_from_slice(&value[0].to_le_bytes());
        bytes[16..].copy_from_slice(&value[1].to_le_bytes());
        self.store_bytes(op.seg, offset, &bytes)
    }

    /// The last source, a register or memory, as wide as the instruction is.
    #[inline(always)]
    pub(super) fn ymm_source(&mut self, op: &Op) -> Result<Ymm> {
        if op.flags.contains(OpFlags::MEM) { self.load_ymm(op) } else { Ok(self.ymm(op.src2)) }
    }

    /// The last source, of which only the low bits count.
    #[inline(always)]
    pub(super) fn vex_source_low<T: Int>(&mut self, op: &Op) -> Result<T> {
        if op.flags.contains(OpFlags::MEM) {
            self.load_op(op)
        } else {
            Ok(T::from_u128(self.xmm(op.src2)))
        }
    }

    /// The memory operand's part at `offset` bytes.
    pub(super) fn element_offset(&self, op: &Op, offset: u64) -> u64 {
        self.ea(op).wrapping_add(offset) & addr_mask(op.addr_size)
    }
}

/// How an instruction is encoded.
pub(super) trait Encoding: 'static {
    /// Bits of a comparison's predicate.
    const PREDICATE: u8;

    /// Checks that the instruction may run.
    fn check(cpu: &Cpu) -> Result;

    /// `f` of 128 bits of both sources, and of the immediate: the upper halves see it shifted right by
    /// `bits`.
    fn binary_imm(
        cpu: &mut Cpu,
        op: &Op,
        bits: u32,
        f: impl FnMut(u128, u128, u8) -> u128,
    ) -> Result;

    /// `f` of 128 bits of both sources.
    #[inline(always)]
    fn binary(cpu: &mut Cpu, op: &Op, mut f: impl FnMut(u128, u128) -> u128) -> Result {
        Self::binary_imm(cpu, op, 0, |a, b, _| f(a, b))
    }

    /// `f` of both sources, of which only the lower halves count unless told that the instruction is
    /// wide, in floating point.
    fn float_whole(
        cpu: &mut Cpu,
        op: &Op,
        f: impl FnOnce(&mut Env, Ymm, Ymm, bool) -> Ymm,
    ) -> Result;

    /// `f` of 128 bits of both sources, in floating point.
    fn float(cpu: &mut Cpu, op: &Op, f: impl FnMut(&mut Env, u128, u128) -> u128) -> Result;

    /// `f` of the lowest lanes; the others come from the first source.
    fn scalar<F: FloatLane>(cpu: &mut Cpu, op: &Op, f: impl FnOnce(&mut Env, F, F) -> F) -> Result;

    /// Shifts 128 bits of the first source by the low 64 bits of the second, 128 bits wide.
    fn shift(cpu: &mut Cpu, op: &Op, f: impl FnMut(u128, u64) -> u128) -> Result;

    /// Shifts by an immediate.
    fn shift_imm(cpu: &mut Cpu, op: &Op, f: impl FnMut(u128, u64) -> u128) -> Result;

    /// The operands of an instruction that compares its destination with its source, both halves.
    fn compared(cpu: &mut Cpu, op: &Op) -> Result<[Ymm; 2]>;

    /// Widens: `f` of the low `T::BITS` of the source, and of the next for the upper half.
    fn widen<T: Int>(cpu: &mut Cpu, op: &Op, f: impl FnMut(u128) -> u128) -> Result;
}

/// Legacy SSE.
pub(super) struct Legacy;

impl Encoding for Legacy {
    const PREDICATE: u8 = 7;

    #[inline(always)]
    fn check(cpu: &Cpu) -> Result {
        cpu.sse_check()
    }

    #[inline(always)]
    fn binary_imm(
        cpu: &mut Cpu,
        op: &Op,
        _: u32,
        mut f: impl FnMut(u128, u128, u8) -> u128,
    ) -> Result {
        cpu.sse_check()?;
        let b = cpu.xmm_source(op)?;
        cpu.set_xmm(op.dst, f(cpu.xmm(op.dst), b, op.imm as u8));
        Ok(())
    }

    fn float_whole(
        cpu: &mut Cpu,
        op: &Op,
        f: impl FnOnce(&mut Env, Ymm, Ymm, bool) -> Ymm,
    ) -> Result {
        Self::float(cpu, op, {
            let mut f = Some(f);
            move |env, a, b| f.take().map_or(0, |f| f(env, [a, 0], [b, 0], false)[0])
        })
    }

    #[inline(always)]
    fn float(cpu: &mut Cpu, op: &Op, mut f: impl FnMut(&mut Env, u128, u128) -> u128) -> Result {
        cpu.sse_check()?;
        let b = cpu.xmm_source(op)?;
        let a = cpu.xmm(op.dst);
        let mut env = cpu.sse_env();
        let result = f(&mut env, a, b);
        cpu.sse_finish(&env)?;
        cpu.set_xmm(op.dst, result);
        Ok(())
    }

    #[inline(always)]
    fn scalar<F: FloatLane>(cpu: &mut Cpu, op: &Op, f: impl FnOnce(&mut Env, F, F) -> F) -> Result {
        cpu.sse_check()?;
        let b = cpu.xmm_source_low::<F>(op)?;
        let a = F::from_u128(cpu.xmm(op.dst));
        let mut env = cpu.sse_env();
        let result = f(&mut env, a, b);
        cpu.sse_finish(&env)?;
        cpu.set_xmm_low(op.dst, result);
        Ok(())
    }

    #[inline(always)]
    fn shift(cpu: &mut Cpu, op: &Op, mut f: impl FnMut(u128, u64) -> u128) -> Result {
        Self::binary(cpu, op, |a, b| f(a, b as u64))
    }

    #[inline(always)]
    fn shift_imm(cpu: &mut Cpu, op: &Op, mut f: impl FnMut(u128, u64) -> u128) -> Result {
        cpu.sse_check()?;
        cpu.set_xmm(op.dst, f(cpu.xmm(op.dst), op.imm & 0xff));
        Ok(())
    }

    #[inline(always)]
    fn compared(cpu: &mut Cpu, op: &Op) -> Result<[Ymm; 2]> {
        let b = cpu.xmm_source(op)?;
        Ok([[cpu.xmm(op.dst), 0], [b, 0]])
    }

    #[inline(always)]
    fn widen<T: Int>(cpu: &mut Cpu, op: &Op, mut f: impl FnMut(u128) -> u128) -> Result {
        cpu.sse_check()?;
        let source = cpu.xmm_source_low::<T>(op)?;
        cpu.set_xmm(op.dst, f(source.to_u128()));
        Ok(())
    }
}

/// VEX.
pub(super) struct Vex;

impl Encoding for Vex {
    const PREDICATE: u8 = 31;

    #[inline(always)]
    fn check(cpu: &Cpu) -> Result {
        cpu.avx_check()
    }

    #[inline(always)]
    fn binary_imm(
        cpu: &mut Cpu,
        op: &Op,
        bits: u32,
        mut f: impl FnMut(u128, u128, u8) -> u128,
    ) -> Result {
        cpu.avx_check()?;
        let b = cpu.ymm_source(op)?;
        let a = cpu.ymm(op.src);
        let imm = op.imm as u8;
        let low = f(a[0], b[0], imm);
        let high = if is_wide(op) { f(a[1], b[1], imm >> bits) } else { 0 };
        cpu.set_ymm(op.dst, [low, high]);
        Ok(())
    }

    fn float_whole(
        cpu: &mut Cpu,
        op: &Op,
        f: impl FnOnce(&mut Env, Ymm, Ymm, bool) -> Ymm,
    ) -> Result {
        cpu.avx_check()?;
        let b = cpu.ymm_source(op)?;
        let a = cpu.ymm(op.src);
        let mut env = cpu.sse_env();
        let result = f(&mut env, a, b, is_wide(op));
        cpu.sse_finish(&env)?;
        cpu.set_ymm(op.dst, result);
        Ok(())
    }

    #[inline(always)]
    fn float(cpu: &mut Cpu, op: &Op, mut f: impl FnMut(&mut Env, u128, u128) -> u128) -> Result {
        cpu.avx_check()?;
        let b = cpu.ymm_source(op)?;
        let a = cpu.ymm(op.src);
        let mut env = cpu.sse_env();
        let low = f(&mut env, a[0], b[0]);
        let high = if is_wide(op) { f(&mut env, a[1], b[1]) } else { 0 };
        cpu.sse_finish(&env)?;
        cpu.set_ymm(op.dst, [low, high]);
        Ok(())
    }

    #[inline(always)]
    fn scalar<F: FloatLane>(cpu: &mut Cpu, op: &Op, f: impl FnOnce(&mut Env, F, F) -> F) -> Result {
        cpu.avx_check()?;
        let b = cpu.vex_source_low::<F>(op)?;
        let a = cpu.xmm(op.src);
        let mut env = cpu.sse_env();
        let result = f(&mut env, F::from_u128(a), b);
        cpu.sse_finish(&env)?;
        let low = <F as Int>::ONES.to_u128();
        cpu.set_ymm(op.dst, [a & !low | result.to_u128(), 0]);
        Ok(())
    }

    #[inline(always)]
    fn shift(cpu: &mut Cpu, op: &Op, mut f: impl FnMut(u128, u64) -> u128) -> Result {
        cpu.avx_check()?;
        let count = cpu.vex_source_low::<u128>(op)? as u64;
        let a = cpu.ymm(op.src);
        let high = if is_wide(op) { f(a[1], count) } else { 0 };
        cpu.set_ymm(op.dst, [f(a[0], count), high]);
        Ok(())
    }

    #[inline(always)]
    fn shift_imm(cpu: &mut Cpu, op: &Op, mut f: impl FnMut(u128, u64) -> u128) -> Result {
        cpu.avx_check()?;
        let a = cpu.ymm(op.src);
        let high = if is_wide(op) { f(a[1], op.imm & 0xff) } else { 0 };
        cpu.set_ymm(op.dst, [f(a[0], op.imm & 0xff), high]);
        Ok(())
    }

    #[inline(always)]
    fn compared(cpu: &mut Cpu, op: &Op) -> Result<[Ymm; 2]> {
        let b = cpu.ymm_source(op)?;
        let a = cpu.ymm(op.dst);
        if is_wide(op) { Ok([a, b]) } else { Ok([[a[0], 0], [b[0], 0]]) }
    }

    #[inline(always)]
    fn widen<T: Int>(cpu: &mut Cpu, op: &Op, mut f: impl FnMut(u128) -> u128) -> Result {
        cpu.avx_check()?;
        let low_mask = T::ONES.to_u128();
        if !is_wide(op) {
            let source = cpu.vex_source_low::<T>(op)?.to_u128();
            cpu.set_ymm(op.dst, [f(source), 0]);
            return Ok(());
        }
        let source = if op.flags.contains(OpFlags::MEM) {
            let offset = cpu.ea(op);
            match T::BYTES {
                2 => u128::from(cpu.load::<u32>(op.seg, offset)?),
                4 => u128::from(cpu.load::<u64>(op.seg, offset)?),
                _ => cpu.load(op.seg, offset)?,
            }
        } else {
            cpu.xmm(op.src2)
        };
        let high = source >> T::BITS & low_mask;
        cpu.set_ymm(op.dst, [f(source & low_mask), f(high)]);
        Ok(())
    }
}

/// The SSE instruction that a VEX-encoded one extends, if there is one: it has its name without the V.
pub(super) fn legacy_of(mnemonic: Mnemonic) -> Option<Mnemonic> {
    static TABLE: OnceLock<Vec<Option<Mnemonic>>> = OnceLock::new();
    let table = TABLE.get_or_init(|| {
        let names: std::collections::HashMap<String, Mnemonic> =
            Mnemonic::values().map(|m| (format!("{m:?}").to_lowercase(), m)).collect();
        Mnemonic::values()
            .map(|m| names.get(format!("{m:?}").to_lowercase().strip_prefix('v')?).copied())
            .collect()
    });
    *table.get(mnemonic as usize)?
}
