//! VEX-encoded conversions, F16C among them.

use iced_x86::{Code, Mnemonic};

use super::super::encoding::{Encoding, Vex, is_wide};
use super::super::float::FloatLane;
use super::super::float_convert::{from_i32, lanes_to, to_general, to_int, truncate};
use super::super::softfloat::{self as soft, Env, Round, flag};
use crate::cpu::Cpu;
use crate::exception::Result;
use crate::int::Int;
use crate::op::{Handler, Op, OpFlags};

/// Finds the handler of a conversion.
pub(super) fn select(mnemonic: Mnemonic, code: Code) -> Option<Handler> {
    select_packed(mnemonic).or_else(|| select_scalar(code))
}

/// Both halves to 64 bits each.
#[inline(always)]
fn narrow(cpu: &mut Cpu, op: &Op, f: impl Fn(&mut Env, u128) -> u128) -> Result {
    cpu.avx_check()?;
    let [low, high] = cpu.ymm_source(op)?;
    let mut env = cpu.sse_env();
    let low = f(&mut env, low);
    let high = if is_wide(op) { f(&mut env, high) } else { 0 };
    cpu.sse_finish(&env)?;
    cpu.set_ymm(op.dst, [low | high << 64, 0]);
    Ok(())
}

/// 64 bits, or twice that, to 128 each.
#[inline(always)]
fn widen(cpu: &mut Cpu, op: &Op, f: impl Fn(&mut Env, u128) -> u128) -> Result {
    cpu.avx_check()?;
    let source = if is_wide(op) {
        cpu.vex_source_low::<u128>(op)?
    } else {
        u128::from(cpu.vex_source_low::<u64>(op)?)
    };
    let mut env = cpu.sse_env();
    let low = f(&mut env, source & u128::from(u64::MAX));
    let high = if is_wide(op) { f(&mut env, source >> 64) } else { 0 };
    cpu.sse_finish(&env)?;
    cpu.set_ymm(op.dst, [low, high]);
    Ok(())
}

fn select_packed(mnemonic: Mnemonic) -> Option<Handler> {
    use Mnemonic::*;
    let handler: Handler = match mnemonic {
        Vcvtdq2ps => |cpu, op| Vex::float(cpu, op, |e, _, v| lanes_to(e, v, from_i32::<u32>)),
        Vcvtps2dq => |cpu, op| Vex::float(cpu, op, |e, _, v| lanes_to(e, v, to_int::<u32, i32>)),
        Vcvttps2dq => |cpu, op| Vex::float(cpu, op, |e, _, v| lanes_to(e, v, truncate::<u32, i32>)),
        Vcvtpd2dq => |cpu, op| narrow(cpu, op, |e, v| lanes_to(e, v, to_int::<u64, i32>)),
        Vcvttpd2dq => |cpu, op| narrow(cpu, op, |e, v| lanes_to(e, v, truncate::<u64, i32>)),
        Vcvtpd2ps => |cpu, op| narrow(cpu, op, |e, v| lanes_to(e, v, soft::convert::<u64, u32>)),
        Vcvtps2pd => |cpu, op| widen(cpu, op, |e, v| lanes_to(e, v, soft::convert::<u32, u64>)),
        Vcvtdq2pd => |cpu, op| widen(cpu, op, |e, v| lanes_to(e, v, from_i32::<u64>)),
        Vcvtph2ps => |cpu, op| widen(cpu, op, |e, v| lanes_to(e, v, from_half)),
        Vcvtps2ph => to_half,
        _ => return None,
    };
    Some(handler)
}

/// From half precision. Denormals are exact, and nothing is told of them.
fn from_half(env: &mut Env, value: u16) -> u32 {
    let mut local = *env;
    local.daz = false;
    local.masks |= flag::DE;
    local.flags = 0;
    let result = soft::convert::<u16, u32>(&mut local, value);
    env.raise(local.flags & !flag::DE);
    result
}

/// VCVTPS2PH: to half precision. Bits 0 and 1 of the immediate are a rounding mode, bit 2 takes MXCSR's
/// instead; MXCSR.FTZ does not count.
fn to_half(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.avx_check()?;
    let memory = op.flags.contains(OpFlags::MEM_DST);
    let source = cpu.ymm(if memory { op.dst } else { op.src });
    let mut env = cpu.sse_env();
    let mut local = env;
    local.ftz = false;
    if op.imm & 4 == 0 {
        local = local.rounding(Round::from_rc(op.imm as u32));
    }
    let mut half = |v| lanes_to(&mut local, v, soft::convert::<u32, u16>);
    let low = half(source[0]);
    let high = if is_wide(op) { half(source[1]) } else { 0 };
    env.raise(local.flags);
    let result = low | high << 64;
    if !memory {
        cpu.sse_finish(&env)?;
        cpu.set_ymm(op.dst, [result, 0]);
        return Ok(());
    }
    let offset = cpu.ea(op);
    let len = if is_wide(op) { 16 } else { 8 };
    cpu.probe_write(op.seg, offset, len)?;
    cpu.sse_finish(&env)?;
    if is_wide(op) {
        cpu.store(op.seg, offset, result)
    } else {
        cpu.store(op.seg, offset, result as u64)
    }
}

fn select_scalar(code: Code) -> Option<Handler> {
    use Code::*;
    let handler: Handler = match code {
        VEX_Vcvtss2sd_xmm_xmm_xmmm32 => between::<u32, u64>,
        VEX_Vcvtsd2ss_xmm_xmm_xmmm64 => between::<u64, u32>,
        VEX_Vcvtsi2ss_xmm_xmm_rm32 => from_general::<u32, u32>,
        VEX_Vcvtsi2ss_xmm_xmm_rm64 => from_general::<u64, u32>,
        VEX_Vcvtsi2sd_xmm_xmm_rm32 => from_general::<u32, u64>,
        VEX_Vcvtsi2sd_xmm_xmm_rm64 => from_general::<u64, u64>,
        VEX_Vcvtss2si_r32_xmmm32 => |cpu, op| to_general::<Vex, _, _>(cpu, op, to_int::<u32, i32>),
        VEX_Vcvtss2si_r64_xmmm32 => |cpu, op| to_general::<Vex, _, _>(cpu, op, to_int::<u32, i64>),
        VEX_Vcvtsd2si_r32_xmmm64 => |cpu, op| to_general::<Vex, _, _>(cpu, op, to_int::<u64, i32>),
        VEX_Vcvtsd2si_r64_xmmm64 => |cpu, op| to_general::<Vex, _, _>(cpu, op, to_int::<u64, i64>),
        VEX_Vcvttss2si_r32_xmmm32 => {
            |cpu, op| to_general::<Vex, _, _>(cpu, op, truncate::<u32, i32>)
        }
        VEX_Vcvttss2si_r64_xmmm32 => {
            |cpu, op| to_general::<Vex, _, _>(cpu, op, truncate::<u32, i64>)
        }
        VEX_Vcvttsd2si_r32_xmmm64 => {
            |cpu, op| to_general::<Vex, _, _>(cpu, op, truncate::<u64, i32>)
        }
        VEX_Vcvttsd2si_r64_xmmm64 => {
            |cpu, op| to_general::<Vex, _, _>(cpu, op, truncate::<u64, i64>)
        }
        _ => return None,
    };
    Some(handler)
}

/// The first source with its lowest lane replaced.
fn set_scalar<D: FloatLane>(cpu: &mut Cpu, op: &Op, result: D) {
    let low = <D as Int>::ONES.to_u128();
    cpu.set_ymm(op.dst, [cpu.xmm(op.src) & !low | result.to_u128(), 0]);
}

fn between<S: FloatLane, D: FloatLane>(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.avx_check()?;
    let source = cpu.vex_source_low::<S>(op)?;
    let mut env = cpu.sse_env();
    let result: D = soft::convert(&mut env, source);
    cpu.sse_finish(&env)?;
    set_scalar(cpu, op, result);
    Ok(())
}

fn from_general<I: Int, D: FloatLane>(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.avx_check()?;
    let memory = op.flags.contains(OpFlags::MEM);
    let value = if memory { cpu.load_op::<I>(op)? } else { cpu.reg(op.src2) };
    let mut env = cpu.sse_env();
    let result: D = soft::from_int(&mut env, value.sext() as i64);
    cpu.sse_finish(&env)?;
    set_scalar(cpu, op, result);
    Ok(())
}
