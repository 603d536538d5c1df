//! Floating-point arithmetic of SSE to SSE4.1, packed and scalar.

use iced_x86::Mnemonic;

use super::encoding::{Encoding, Ymm};
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

/// Finds the handler of an arithmetic instruction, whose legacy form is `mnemonic`.
pub(super) fn select<E: Encoding>(mnemonic: Mnemonic) -> Option<Handler> {
    select_packed::<E>(mnemonic)
        .or_else(|| select_scalar::<E>(mnemonic))
        .or_else(|| select_horizontal::<E>(mnemonic))
        .or_else(|| select_compare::<E>(mnemonic))
        .or_else(|| select_approximate::<E>(mnemonic))
        .or_else(|| select_round::<E>(mnemonic))
}

/// `f` of each pair of lanes of both sources.
#[inline(always)]
fn packed<E: Encoding, F: FloatLane>(
    cpu: &mut Cpu,
    op: &Op,
    f: impl Fn(&mut Env, F, F) -> F,
) -> Result {
    E::float(cpu, op, |env, a, b| {
        (0..128 / <F as Lane>::BITS).fold(0, |r, i| {
            r | Lane::to_bits(f(env, lanes::get(a, i), lanes::get(b, i))) << (i * <F as Lane>::BITS)
        })
    })
}

/// `f` of the lowest lanes.
#[inline(always)]
fn scalar<E: Encoding, F: FloatLane>(
    cpu: &mut Cpu,
    op: &Op,
    f: impl Fn(&mut Env, F, F) -> F,
) -> Result {
    E::scalar(cpu, op, f)
}

fn select_packed<E: Encoding>(mnemonic: Mnemonic) -> Option<Handler> {
    use Mnemonic::*;
    let handler: Handler = match mnemonic {
        Addps => |cpu, op| packed::<E, u32>(cpu, op, soft::add),
        Addpd => |cpu, op| packed::<E, u64>(cpu, op, soft::add),
        Subps => |cpu, op| packed::<E, u32>(cpu, op, soft::sub),
        Subpd => |cpu, op| packed::<E, u64>(cpu, op, soft::sub),
        Mulps => |cpu, op| packed::<E, u32>(cpu, op, soft::mul),
        Mulpd => |cpu, op| packed::<E, u64>(cpu, op, soft::mul),
        Divps => |cpu, op| packed::<E, u32>(cpu, op, soft::div),
        Divpd => |cpu, op| packed::<E, u64>(cpu, op, soft::div),
        Minps => |cpu, op| packed::<E, u32>(cpu, op, soft::min),
        Minpd => |cpu, op| packed::<E, u64>(cpu, op, soft::min),
        Maxps => |cpu, op| packed::<E, u32>(cpu, op, soft::max),
        Maxpd => |cpu, op| packed::<E, u64>(cpu, op, soft::max),
        Sqrtps => |cpu, op| packed::<E, u32>(cpu, op, |env, _, b| soft::sqrt(env, b)),
        Sqrtpd => |cpu, op| packed::<E, u64>(cpu, op, |env, _, b| soft::sqrt(env, b)),
        _ => return None,
    };
    Some(handler)
}

fn select_scalar<E: Encoding>(mnemonic: Mnemonic) -> Option<Handler> {
    use Mnemonic::*;
    let handler: Handler = match mnemonic {
        Addss => |cpu, op| scalar::<E, u32>(cpu, op, soft::add),
        Addsd => |cpu, op| scalar::<E, u64>(cpu, op, soft::add),
        Subss => |cpu, op| scalar::<E, u32>(cpu, op, soft::sub),
        Subsd => |cpu, op| scalar::<E, u64>(cpu, op, soft::sub),
        Mulss => |cpu, op| scalar::<E, u32>(cpu, op, soft::mul),
        Mulsd => |cpu, op| scalar::<E, u64>(cpu, op, soft::mul),
        Divss => |cpu, op| scalar::<E, u32>(cpu, op, soft::div),
        Divsd => |cpu, op| scalar::<E, u64>(cpu, op, soft::div),
        Minss => |cpu, op| scalar::<E, u32>(cpu, op, soft::min),
        Minsd => |cpu, op| scalar::<E, u64>(cpu, op, soft::min),
        Maxss => |cpu, op| scalar::<E, u32>(cpu, op, soft::max),
        Maxsd => |cpu, op| scalar::<E, u64>(cpu, op, soft::max),
        Sqrtss => |cpu, op| scalar::<E, u32>(cpu, op, |env, _, b| soft::sqrt(env, b)),
        Sqrtsd => |cpu, op| scalar::<E, u64>(cpu, op, |env, _, b| soft::sqrt(env, b)),
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

/// DPPS and DPPD: in each half the sum, in pairs, of the products that the upper half of `imm` selects,
/// to the lanes that the lower half selects. Each step rounds and raises exceptions, of both halves
/// before the next.
fn dot_product<F: FloatLane>(env: &mut Env, a: Ymm, b: Ymm, wide: bool, imm: u8) -> Ymm {
    let lanes = 128 / <F as Lane>::BITS;
    let halves = if wide { 0..2 } else { 0..1 };
    let mut terms = [[F::zero(false); 4]; 2];
    for half in halves.clone() {
        for i in (0..lanes).filter(|i| imm >> (4 + i) & 1 != 0) {
            terms[half][i as usize] =
                soft::mul(env, lanes::get(a[half], i), lanes::get(b[half], i));
        }
    }
    // Of four terms, pairs are added first.
    let mut count = lanes as usize;
    while count > 1 {
        if !env.settle() {
            return [0; 2];
        }
        count /= 2;
        for half in halves.clone() {
            for i in 0..count {
                let [x, y] = [terms[half][2 * i], terms[half][2 * i + 1]];
                terms[half][i] = soft::add(env, x, y);
            }
        }
    }
    let mut result = [0; 2];
    for half in halves {
        let sum = terms[half][0];
        result[half] =
            (0..lanes).filter(|i| imm >> i & 1 != 0).fold(0, |r, i| lanes::put(r, i, sum));
    }
    result
}

fn select_horizontal<E: Encoding>(mnemonic: Mnemonic) -> Option<Handler> {
    use Mnemonic::*;
    let handler: Handler = match mnemonic {
        Haddps => |cpu, op| E::float(cpu, op, |env, a, b| horizontal::<u32>(env, a, b, soft::add)),
        Haddpd => |cpu, op| E::float(cpu, op, |env, a, b| horizontal::<u64>(env, a, b, soft::add)),
        Hsubps => |cpu, op| E::float(cpu, op, |env, a, b| horizontal::<u32>(env, a, b, soft::sub)),
        Hsubpd => |cpu, op| E::float(cpu, op, |env, a, b| horizontal::<u64>(env, a, b, soft::sub)),
        Addsubps => |cpu, op| E::float(cpu, op, add_sub::<u32>),
        Addsubpd => |cpu, op| E::float(cpu, op, add_sub::<u64>),
        Dpps => |cpu, op| {
            E::float_whole(cpu, op, |env, a, b, wide| {
                dot_product::<u32>(env, a, b, wide, op.imm as u8)
            })
        },
        Dppd => |cpu, op| {
            E::float_whole(cpu, op, |env, a, b, wide| {
                dot_product::<u64>(env, a, b, wide, op.imm as u8)
            })
        },
        _ => return None,
    };
    Some(handler)
}

/// CMPPS and its like: all ones where predicate `imm` holds.
fn predicate<F: FloatLane>(env: &mut Env, a: F, b: F, imm: u8) -> F {
    // The second sixteen raise invalid operation for quiet NaNs where the first do not, and the other
    // way round: there, LT, LE, NLT, NLE and what else is about order do.
    let signalling = matches!(imm & 3, 1 | 2) != (imm & 16 != 0);
    let order = soft::compare(env, a, b, signalling);
    let unordered = order == Order::Unordered;
    let holds = match imm & 7 {
        0 => order == Order::Equal,
        1 => order == Order::Less,
        2 => matches!(order, Order::Less | Order::Equal),
        3 => unordered,
        4 => order != Order::Equal,
        5 => order != Order::Less,
        6 => !matches!(order, Order::Less | Order::Equal),
        _ => !unordered,
    };
    // The second eight take "unordered" the other way: EQ_UQ, NGE, NGT, FALSE, NEQ_OQ, GE, GT, TRUE.
    let holds = match imm & 15 {
        8 => holds || unordered,
        9 => order == Order::Less || unordered,
        10 => matches!(order, Order::Less | Order::Equal) || unordered,
        11 => false,
        12 => holds && !unordered,
        13 => matches!(order, Order::Greater | Order::Equal),
        14 => order == Order::Greater,
        15 => true,
        _ => holds,
    };
    if holds { <F as Int>::ONES } else { <F as Int>::ZERO }
}

/// COMISS and its like.
fn compare_flags<E: Encoding, F: FloatLane, const SIGNALLING: bool>(
    cpu: &mut Cpu,
    op: &Op,
) -> Result {
    E::check(cpu)?;
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

fn select_compare<E: Encoding>(mnemonic: Mnemonic) -> Option<Handler> {
    use Mnemonic::*;
    let handler: Handler = match mnemonic {
        Cmpps => |cpu, op| {
            packed::<E, u32>(cpu, op, |env, a, b| predicate(env, a, b, op.imm as u8 & E::PREDICATE))
        },
        Cmppd => |cpu, op| {
            packed::<E, u64>(cpu, op, |env, a, b| predicate(env, a, b, op.imm as u8 & E::PREDICATE))
        },
        Cmpss => |cpu, op| {
            scalar::<E, u32>(cpu, op, |env, a, b| predicate(env, a, b, op.imm as u8 & E::PREDICATE))
        },
        Cmpsd => |cpu, op| {
            scalar::<E, u64>(cpu, op, |env, a, b| predicate(env, a, b, op.imm as u8 & E::PREDICATE))
        },
        Comiss => compare_flags::<E, u32, true>,
        Comisd => compare_flags::<E, u64, true>,
        Ucomiss => compare_flags::<E, u32, false>,
        Ucomisd => compare_flags::<E, u64, false>,
        _ => return None,
    };
    Some(handler)
}

/// Reciprocals, which raise nothing and do not look at MXCSR.
fn select_approximate<E: Encoding>(mnemonic: Mnemonic) -> Option<Handler> {
    use Mnemonic::*;
    let handler: Handler = match mnemonic {
        Rcpps => |cpu, op| packed::<E, u32>(cpu, op, |_, _, b| host::reciprocal(b)),
        Rcpss => |cpu, op| scalar::<E, u32>(cpu, op, |_, _, b| host::reciprocal(b)),
        Rsqrtps => |cpu, op| packed::<E, u32>(cpu, op, |_, _, b| host::reciprocal_sqrt(b)),
        Rsqrtss => |cpu, op| scalar::<E, u32>(cpu, op, |_, _, b| host::reciprocal_sqrt(b)),
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

fn select_round<E: Encoding>(mnemonic: Mnemonic) -> Option<Handler> {
    use Mnemonic::*;
    let handler: Handler = match mnemonic {
        Roundps => |cpu, op| packed::<E, u32>(cpu, op, |env, _, b| round(env, b, op.imm as u8)),
        Roundpd => |cpu, op| packed::<E, u64>(cpu, op, |env, _, b| round(env, b, op.imm as u8)),
        Roundss => |cpu, op| scalar::<E, u32>(cpu, op, |env, _, b| round(env, b, op.imm as u8)),
        Roundsd => |cpu, op| scalar::<E, u64>(cpu, op, |env, _, b| round(env, b, op.imm as u8)),
        _ => return None,
    };
    Some(handler)
}
