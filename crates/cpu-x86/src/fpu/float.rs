//! Floating-point arithmetic of SSE to SSE4.1, packed and scalar.

use iced_x86::{Instruction, Mnemonic};

use super::host;
use super::lanes::{self, Lane};
use super::softfloat::{self as soft, Env, Native, Order, Round};
use crate::cpu::Cpu;
use crate::exception::Result;
use crate::flags::bits;
use crate::int::Int;
use crate::op::{Handler, Op};

/// Bit patterns of binary32 and binary64 as lanes.
pub(super) trait FloatLane: Native + Lane + Int {}
impl FloatLane for u32 {}
impl FloatLane for u64 {}

/// Finds the handler of an arithmetic instruction.
pub(super) fn select(insn: &Instruction) -> Option<Handler> {
    let mnemonic = insn.mnemonic();
    select_packed(mnemonic)
        .or_else(|| select_scalar(mnemonic))
        .or_else(|| select_horizontal(mnemonic))
        .or_else(|| select_compare(mnemonic))
        .or_else(|| select_approximate(mnemonic))
        .or_else(|| select_round(mnemonic))
}

/// `f` of each pair of lanes of the destination and the source.
#[inline(always)]
fn packed<F: FloatLane>(cpu: &mut Cpu, op: &Op, f: impl Fn(&mut Env, F, F) -> F) -> Result {
    vector(cpu, op, |env, a, b| {
        (0..128 / <F as Lane>::BITS).fold(0, |r, i| {
            r | Lane::to_bits(f(env, lanes::get(a, i), lanes::get(b, i))) << (i * <F as Lane>::BITS)
        })
    })
}

/// `f` of both registers.
#[inline(always)]
fn vector(cpu: &mut Cpu, op: &Op, f: impl Fn(&mut Env, u128, u128) -> u128) -> Result {
    cpu.sse_check()?;
    let b = cpu.xmm_source(op)?;
    let a = cpu.xmm(op.dst);
    let mut env = cpu.sse_env();
    let result = f(&mut env, a, b);
    cpu.sse_finish(&env)?;
    cpu.set_xmm(op.dst, result);
    Ok(())
}

/// `f` of the lowest lanes; the destination keeps the others.
#[inline(always)]
fn scalar<F: FloatLane>(cpu: &mut Cpu, op: &Op, f: impl Fn(&mut Env, F, F) -> F) -> Result {
    cpu.sse_check()?;
    let b = cpu.xmm_source_low::<F>(op)?;
    let a = F::from_u128(cpu.xmm(op.dst));
    let mut env = cpu.sse_env();
    let result = f(&mut env, a, b);
    cpu.sse_finish(&env)?;
    cpu.set_xmm_low(op.dst, result);
    Ok(())
}

fn select_packed(mnemonic: Mnemonic) -> Option<Handler> {
    use Mnemonic::*;
    let handler: Handler = match mnemonic {
        Addps => |cpu, op| packed::<u32>(cpu, op, soft::add),
        Addpd => |cpu, op| packed::<u64>(cpu, op, soft::add),
        Subps => |cpu, op| packed::<u32>(cpu, op, soft::sub),
        Subpd => |cpu, op| packed::<u64>(cpu, op, soft::sub),
        Mulps => |cpu, op| packed::<u32>(cpu, op, soft::mul),
        Mulpd => |cpu, op| packed::<u64>(cpu, op, soft::mul),
        Divps => |cpu, op| packed::<u32>(cpu, op, soft::div),
        Divpd => |cpu, op| packed::<u64>(cpu, op, soft::div),
        Minps => |cpu, op| packed::<u32>(cpu, op, soft::min),
        Minpd => |cpu, op| packed::<u64>(cpu, op, soft::min),
        Maxps => |cpu, op| packed::<u32>(cpu, op, soft::max),
        Maxpd => |cpu, op| packed::<u64>(cpu, op, soft::max),
        Sqrtps => |cpu, op| packed::<u32>(cpu, op, |env, _, b| soft::sqrt(env, b)),
        Sqrtpd => |cpu, op| packed::<u64>(cpu, op, |env, _, b| soft::sqrt(env, b)),
        _ => return None,
    };
    Some(handler)
}

fn select_scalar(mnemonic: Mnemonic) -> Option<Handler> {
    use Mnemonic::*;
    let handler: Handler = match mnemonic {
        Addss => |cpu, op| scalar::<u32>(cpu, op, soft::add),
        Addsd => |cpu, op| scalar::<u64>(cpu, op, soft::add),
        Subss => |cpu, op| scalar::<u32>(cpu, op, soft::sub),
        Subsd => |cpu, op| scalar::<u64>(cpu, op, soft::sub),
        Mulss => |cpu, op| scalar::<u32>(cpu, op, soft::mul),
        Mulsd => |cpu, op| scalar::<u64>(cpu, op, soft::mul),
        Divss => |cpu, op| scalar::<u32>(cpu, op, soft::div),
        Divsd => |cpu, op| scalar::<u64>(cpu, op, soft::div),
        Minss => |cpu, op| scalar::<u32>(cpu, op, soft::min),
        Minsd => |cpu, op| scalar::<u64>(cpu, op, soft::min),
        Maxss => |cpu, op| scalar::<u32>(cpu, op, soft::max),
        Maxsd => |cpu, op| scalar::<u64>(cpu, op, soft::max),
        Sqrtss => |cpu, op| scalar::<u32>(cpu, op, |env, _, b| soft::sqrt(env, b)),
        Sqrtsd => |cpu, op| scalar::<u64>(cpu, op, |env, _, b| soft::sqrt(env, b)),
        _ => return None,
    };
    Some(handler)
}

/// HADDPS and its like: `f` of neighbours, of the destination and then of the source.
fn horizontal<F: FloatLane>(env: &mut Env, a: u128, b: u128, f: fn(&mut Env, F, F) -> F) -> u128 {
    let lanes = 128 / <F as Lane>::BITS;
    (0..lanes).fold(0, |r, i| {
        let (v, first) = if i < lanes / 2 { (a, 2 * i) } else { (b, 2 * i - lanes) };
        lanes::put(r, i, f(env, lanes::get(v, first), lanes::get(v, first + 1)))
    })
}

/// ADDSUBPS and ADDSUBPD: differences in even lanes, sums in odd ones.
fn add_sub<F: FloatLane>(env: &mut Env, a: u128, b: u128) -> u128 {
    (0..128 / <F as Lane>::BITS).fold(0, |r, i| {
        let (x, y) = (lanes::get::<F>(a, i), lanes::get(b, i));
        lanes::put(r, i, if i % 2 == 0 { soft::sub(env, x, y) } else { soft::add(env, x, y) })
    })
}

/// DPPS and DPPD: the sum, in pairs, of the products that the upper half of `imm` selects, to the
/// lanes that the lower half selects. Each step rounds and raises exceptions.
fn dot_product<F: FloatLane>(env: &mut Env, a: u128, b: u128, imm: u8) -> u128 {
    let lanes = 128 / <F as Lane>::BITS;
    let mut terms = [F::zero(false); 4];
    for i in 0..lanes {
        if imm >> (4 + i) & 1 != 0 {
            terms[i as usize] = soft::mul(env, lanes::get(a, i), lanes::get(b, i));
        }
    }
    if !env.settle() {
        return 0;
    }
    let low = soft::add(env, terms[0], terms[1]);
    let sum = if lanes == 4 {
        let high = soft::add(env, terms[2], terms[3]);
        if !env.settle() {
            return 0;
        }
        soft::add(env, low, high)
    } else {
        low
    };
    (0..lanes).filter(|i| imm >> i & 1 != 0).fold(0, |r, i| lanes::put(r, i, sum))
}

fn select_horizontal(mnemonic: Mnemonic) -> Option<Handler> {
    use Mnemonic::*;
    let handler: Handler = match mnemonic {
        Haddps => |cpu, op| vector(cpu, op, |env, a, b| horizontal::<u32>(env, a, b, soft::add)),
        Haddpd => |cpu, op| vector(cpu, op, |env, a, b| horizontal::<u64>(env, a, b, soft::add)),
        Hsubps => |cpu, op| vector(cpu, op, |env, a, b| horizontal::<u32>(env, a, b, soft::sub)),
        Hsubpd => |cpu, op| vector(cpu, op, |env, a, b| horizontal::<u64>(env, a, b, soft::sub)),
        Addsubps => |cpu, op| vector(cpu, op, add_sub::<u32>),
        Addsubpd => |cpu, op| vector(cpu, op, add_sub::<u64>),
        Dpps => |cpu, op| vector(cpu, op, |env, a, b| dot_product::<u32>(env, a, b, op.imm as u8)),
        Dppd => |cpu, op| vector(cpu, op, |env, a, b| dot_product::<u64>(env, a, b, op.imm as u8)),
        _ => return None,
    };
    Some(handler)
}

/// CMPPS and its like: all ones where predicate `imm` holds.
fn predicate<F: FloatLane>(env: &mut Env, a: F, b: F, imm: u8) -> F {
    // LT, LE, NLT and NLE raise invalid operation for quiet NaNs too.
    let order = soft::compare(env, a, b, matches!(imm & 3, 1 | 2));
    let holds = match imm & 3 {
        0 => order == Order::Equal,
        1 => order == Order::Less,
        2 => matches!(order, Order::Less | Order::Equal),
        _ => order == Order::Unordered,
    };
    if holds != (imm & 4 != 0) { <F as Int>::ONES } else { <F as Int>::ZERO }
}

/// COMISS and its like.
fn compare_flags<F: FloatLane, const SIGNALLING: bool>(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.sse_check()?;
    let b = cpu.xmm_source_low::<F>(op)?;
    let a = F::from_u128(cpu.xmm(op.dst));
    let mut env = cpu.sse_env();
    let order = soft::compare(&mut env, a, b, SIGNALLING);
    cpu.sse_finish(&env)?;
    cpu.set_rflags_arith(order_flags(order));
    Ok(())
}

/// ZF, PF and CF as comparisons set them.
pub(super) fn order_flags(order: Order) -> u64 {
    match order {
        Order::Greater => 0,
        Order::Less => bits::CF,
        Order::Equal => bits::ZF,
        Order::Unordered => bits::ZF | bits::PF | bits::CF,
    }
}

fn select_compare(mnemonic: Mnemonic) -> Option<Handler> {
    use Mnemonic::*;
    let handler: Handler = match mnemonic {
        Cmpps => {
            |cpu, op| packed::<u32>(cpu, op, |env, a, b| predicate(env, a, b, op.imm as u8 & 7))
        }
        Cmppd => {
            |cpu, op| packed::<u64>(cpu, op, |env, a, b| predicate(env, a, b, op.imm as u8 & 7))
        }
        Cmpss => {
            |cpu, op| scalar::<u32>(cpu, op, |env, a, b| predicate(env, a, b, op.imm as u8 & 7))
        }
        Cmpsd => {
            |cpu, op| scalar::<u64>(cpu, op, |env, a, b| predicate(env, a, b, op.imm as u8 & 7))
        }
        Comiss => compare_flags::<u32, true>,
        Comisd => compare_flags::<u64, true>,
        Ucomiss => compare_flags::<u32, false>,
        Ucomisd => compare_flags::<u64, false>,
        _ => return None,
    };
    Some(handler)
}

/// Reciprocals, which raise nothing and do not look at MXCSR.
fn select_approximate(mnemonic: Mnemonic) -> Option<Handler> {
    use Mnemonic::*;
    let handler: Handler = match mnemonic {
        Rcpps => |cpu, op| packed::<u32>(cpu, op, |_, _, b| host::reciprocal(b)),
        Rcpss => |cpu, op| scalar::<u32>(cpu, op, |_, _, b| host::reciprocal(b)),
        Rsqrtps => |cpu, op| packed::<u32>(cpu, op, |_, _, b| host::reciprocal_sqrt(b)),
        Rsqrtss => |cpu, op| scalar::<u32>(cpu, op, |_, _, b| host::reciprocal_sqrt(b)),
        _ => return None,
    };
    Some(handler)
}

/// ROUNDPS and its like: bits 0 and 1 of `imm` are a rounding mode, bit 2 takes MXCSR's instead, bit 3
/// suppresses the inexact exception.
fn round<F: FloatLane>(env: &mut Env, value: F, imm: u8) -> F {
    let mut local = *env;
    if imm & 4 == 0 {
        local = local.rounding(Round::from_rc(u32::from(imm)));
    }
    let before = local.flags;
    let result = soft::round_to_integral(&mut local, value, false);
    let suppressed = if imm & 8 != 0 { soft::flag::PE } else { 0 };
    env.raise(local.flags & !(suppressed & !before));
    result
}

fn select_round(mnemonic: Mnemonic) -> Option<Handler> {
    use Mnemonic::*;
    let handler: Handler = match mnemonic {
        Roundps => |cpu, op| packed::<u32>(cpu, op, |env, _, b| round(env, b, op.imm as u8)),
        Roundpd => |cpu, op| packed::<u64>(cpu, op, |env, _, b| round(env, b, op.imm as u8)),
        Roundss => |cpu, op| scalar::<u32>(cpu, op, |env, _, b| round(env, b, op.imm as u8)),
        Roundsd => |cpu, op| scalar::<u64>(cpu, op, |env, _, b| round(env, b, op.imm as u8)),
        _ => return None,
    };
    Some(handler)
}
