//! SSE's conversions between floating-point formats and integers.

use iced_x86::{Code, Instruction};

use super::encoding::{Encoding, Legacy};
use super::float::FloatLane;
use super::lanes::{self, Lane};
use super::moves::mixed_check;
use super::softfloat::{self as soft, Env, Format, Integer, Round};
use crate::cpu::Cpu;
use crate::exception::Result;
use crate::int::Int;
use crate::op::{Handler, Op, OpFlags};

/// Finds the handler of a conversion.
pub(super) fn select(insn: &Instruction) -> Option<Handler> {
    select_packed(insn.code())
        .or_else(|| select_scalar(insn.code()))
        .or_else(|| select_mmx(insn.code()))
}

/// Lanes of `v` from `S` to `D`, as many as fit; the rest is zero.
#[inline(always)]
pub(super) fn lanes_to<S: Lane, D: Lane>(
    env: &mut Env,
    v: u128,
    f: impl Fn(&mut Env, S) -> D,
) -> u128 {
    let count = 128 / S::BITS.max(D::BITS);
    (0..count).fold(0, |r, i| r | f(env, lanes::get(v, i)).to_bits() << (i * D::BITS))
}

/// Converts a source of 128 bits.
#[inline(always)]
fn full(cpu: &mut Cpu, op: &Op, f: impl Fn(&mut Env, u128) -> u128) -> Result {
    cpu.sse_check()?;
    let source = cpu.xmm_source(op)?;
    finish_vector(cpu, op, source, f)
}

/// Converts a source of 64 bits.
#[inline(always)]
fn half(cpu: &mut Cpu, op: &Op, f: impl Fn(&mut Env, u128) -> u128) -> Result {
    cpu.sse_check()?;
    let source = u128::from(cpu.xmm_source_low::<u64>(op)?);
    finish_vector(cpu, op, source, f)
}

#[inline(always)]
fn finish_vector(
    cpu: &mut Cpu,
    op: &Op,
    source: u128,
    f: impl Fn(&mut Env, u128) -> u128,
) -> Result {
    let mut env = cpu.sse_env();
    let result = f(&mut env, source);
    cpu.sse_finish(&env)?;
    cpu.set_xmm(op.dst, result);
    Ok(())
}

/// To an integer in MXCSR's rounding mode.
#[inline(always)]
pub(super) fn to_int<F: Format, I: Integer>(env: &mut Env, value: F) -> I {
    soft::to_int(env, value)
}

/// To an integer by truncation.
#[inline(always)]
pub(super) fn truncate<F: Format, I: Integer>(env: &mut Env, value: F) -> I {
    let mut local = env.rounding(Round::Zero);
    let result = soft::to_int(&mut local, value);
    env.raise(local.flags);
    result
}

#[inline(always)]
pub(super) fn from_i32<F: Format>(env: &mut Env, value: i32) -> F {
    soft::from_int(env, i64::from(value))
}

fn select_packed(code: Code) -> Option<Handler> {
    use Code::*;
    let handler: Handler = match code {
        Cvtdq2ps_xmm_xmmm128 => |cpu, op| full(cpu, op, |e, v| lanes_to(e, v, from_i32::<u32>)),
        Cvtps2dq_xmm_xmmm128 => |cpu, op| full(cpu, op, |e, v| lanes_to(e, v, to_int::<u32, i32>)),
        Cvttps2dq_xmm_xmmm128 => {
            |cpu, op| full(cpu, op, |e, v| lanes_to(e, v, truncate::<u32, i32>))
        }
        Cvtpd2dq_xmm_xmmm128 => |cpu, op| full(cpu, op, |e, v| lanes_to(e, v, to_int::<u64, i32>)),
        Cvttpd2dq_xmm_xmmm128 => {
            |cpu, op| full(cpu, op, |e, v| lanes_to(e, v, truncate::<u64, i32>))
        }
        Cvtpd2ps_xmm_xmmm128 => {
            |cpu, op| full(cpu, op, |e, v| lanes_to(e, v, soft::convert::<u64, u32>))
        }
        Cvtps2pd_xmm_xmmm64 => {
            |cpu, op| half(cpu, op, |e, v| lanes_to(e, v, soft::convert::<u32, u64>))
        }
        Cvtdq2pd_xmm_xmmm64 => |cpu, op| half(cpu, op, |e, v| lanes_to(e, v, from_i32::<u64>)),
        _ => return None,
    };
    Some(handler)
}

fn select_scalar(code: Code) -> Option<Handler> {
    use Code::*;
    let handler: Handler = match code {
        Cvtss2sd_xmm_xmmm32 => |cpu, op| between::<u32, u64>(cpu, op),
        Cvtsd2ss_xmm_xmmm64 => |cpu, op| between::<u64, u32>(cpu, op),
        Cvtsi2ss_xmm_rm32 => |cpu, op| from_general::<u32, u32>(cpu, op),
        Cvtsi2ss_xmm_rm64 => |cpu, op| from_general::<u64, u32>(cpu, op),
        Cvtsi2sd_xmm_rm32 => |cpu, op| from_general::<u32, u64>(cpu, op),
        Cvtsi2sd_xmm_rm64 => |cpu, op| from_general::<u64, u64>(cpu, op),
        Cvtss2si_r32_xmmm32 => |cpu, op| to_general::<Legacy, _, _>(cpu, op, to_int::<u32, i32>),
        Cvtss2si_r64_xmmm32 => |cpu, op| to_general::<Legacy, _, _>(cpu, op, to_int::<u32, i64>),
        Cvtsd2si_r32_xmmm64 => |cpu, op| to_general::<Legacy, _, _>(cpu, op, to_int::<u64, i32>),
        Cvtsd2si_r64_xmmm64 => |cpu, op| to_general::<Legacy, _, _>(cpu, op, to_int::<u64, i64>),
        Cvttss2si_r32_xmmm32 => |cpu, op| to_general::<Legacy, _, _>(cpu, op, truncate::<u32, i32>),
        Cvttss2si_r64_xmmm32 => |cpu, op| to_general::<Legacy, _, _>(cpu, op, truncate::<u32, i64>),
        Cvttsd2si_r32_xmmm64 => |cpu, op| to_general::<Legacy, _, _>(cpu, op, truncate::<u64, i32>),
        Cvttsd2si_r64_xmmm64 => |cpu, op| to_general::<Legacy, _, _>(cpu, op, truncate::<u64, i64>),
        _ => return None,
    };
    Some(handler)
}

/// Between formats; the destination keeps its other bits.
#[inline(always)]
fn between<S: FloatLane, D: FloatLane>(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.sse_check()?;
    let source = cpu.xmm_source_low::<S>(op)?;
    let mut env = cpu.sse_env();
    let result: D = soft::convert(&mut env, source);
    cpu.sse_finish(&env)?;
    cpu.set_xmm_low(op.dst, result);
    Ok(())
}

/// From a signed integer as wide as `I`.
#[inline(always)]
fn from_general<I: Int, D: FloatLane>(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.sse_check()?;
    let value = cpu.gpr_source::<I>(op)?.sext() as i64;
    let mut env = cpu.sse_env();
    let result: D = soft::from_int(&mut env, value);
    cpu.sse_finish(&env)?;
    cpu.set_xmm_low(op.dst, result);
    Ok(())
}

/// To a general register.
#[inline(always)]
pub(super) fn to_general<E: Encoding, S: FloatLane, I: Lane>(
    cpu: &mut Cpu,
    op: &Op,
    f: impl Fn(&mut Env, S) -> I,
) -> Result {
    E::check(cpu)?;
    let source = cpu.xmm_source_low::<S>(op)?;
    let mut env = cpu.sse_env();
    let result = f(&mut env, source);
    cpu.sse_finish(&env)?;
    // 32-bit results are zero-extended.
    cpu.set_reg::<u64>(op.dst, result.to_bits() as u64);
    Ok(())
}

fn select_mmx(code: Code) -> Option<Handler> {
    use Code::*;
    let handler: Handler = match code {
        Cvtpi2ps_xmm_mmm64 => |cpu, op| {
            // With its operand in memory, no MMX register is involved.
            let in_memory = op.flags.contains(OpFlags::MEM);
            if in_memory {
                cpu.sse_check()?
            } else {
                mixed_check(cpu)?
            }
            let source = cpu.mm_source::<u64>(op)?;
            let mut env = cpu.sse_env();
            let result = lanes_to(&mut env, u128::from(source), from_i32::<u32>);
            // Only two lanes were there.
            let result = result as u64;
            // Even if there is an exception.
            if !in_memory {
                cpu.enter_mmx();
            }
            cpu.sse_finish(&env)?;
            cpu.set_xmm_low(op.dst, result);
            Ok(())
        },
        Cvtpi2pd_xmm_mmm64 => |cpu, op| {
            if op.flags.contains(OpFlags::MEM) {
                return half(cpu, op, |e, v| lanes_to(e, v, from_i32::<u64>));
            }
            mixed_check(cpu)?;
            cpu.enter_mmx();
            let source = u128::from(cpu.mm(op.src));
            finish_vector(cpu, op, source, |e, v| lanes_to(e, v, from_i32::<u64>))
        },
        Cvtps2pi_mm_xmmm64 => |cpu, op| to_mmx::<u64>(cpu, op, to_int::<u32, i32>),
        Cvttps2pi_mm_xmmm64 => |cpu, op| to_mmx::<u64>(cpu, op, truncate::<u32, i32>),
        Cvtpd2pi_mm_xmmm128 => |cpu, op| to_mmx::<u128>(cpu, op, to_int::<u64, i32>),
        Cvttpd2pi_mm_xmmm128 => |cpu, op| to_mmx::<u128>(cpu, op, truncate::<u64, i32>),
        _ => return None,
    };
    Some(handler)
}

/// Two lanes to an MMX register. A source of 16 bytes must be aligned.
#[inline(always)]
fn to_mmx<T: TwoFloats>(cpu: &mut Cpu, op: &Op, f: impl Fn(&mut Env, T::Float) -> i32) -> Result {
    mixed_check(cpu)?;
    let source =
        if T::BYTES == 16 { cpu.xmm_source(op)? } else { cpu.xmm_source_low::<T>(op)?.to_u128() };
    let mut env = cpu.sse_env();
    let lane = |env: &mut Env, i| f(env, lanes::get(source, i)) as u32;
    let low = lane(&mut env, 0);
    let high = lane(&mut env, 1);
    // Even if there is an exception.
    cpu.enter_mmx();
    cpu.sse_finish(&env)?;
    cpu.set_mm(op.dst, u64::from(high) << 32 | u64::from(low));
    Ok(())
}

/// An operand of two floating-point numbers.
trait TwoFloats: Int {
    type Float: FloatLane;
}
impl TwoFloats for u64 {
    type Float = u32;
}
impl TwoFloats for u128 {
    type Float = u64;
}
