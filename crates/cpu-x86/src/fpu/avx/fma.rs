//! Fused multiplication and addition (FMA3): one rounding for both.
//!
//! The number in a mnemonic says which operands are multiplied and which is added: 132 multiplies the
//! first by the third and adds the second.

use iced_x86::Mnemonic;

use super::super::encoding::is_wide;
use super::super::float::FloatLane;
use super::super::lanes::{self, Lane};
use super::super::softfloat::{self as soft, Env};
use crate::cpu::Cpu;
use crate::exception::Result;
use crate::int::Int;
use crate::op::{Handler, Op};

/// What is negated, in even lanes and in odd ones: the product, the addend.
#[derive(Clone, Copy)]
struct Signs([[bool; 2]; 2]);

impl Signs {
    const ADD: Self = Self([[false, false]; 2]);
    const SUB: Self = Self([[false, true]; 2]);
    const NEGATED_ADD: Self = Self([[true, false]; 2]);
    const NEGATED_SUB: Self = Self([[true, true]; 2]);
    const SUB_ADD: Self = Self([[false, true], [false, false]]);
    const ADD_SUB: Self = Self([[false, false], [false, true]]);
}

/// Finds the handler. A line for each mnemonic, by sign, order and type.
#[rustfmt::skip]
pub(super) fn select(mnemonic: Mnemonic) -> Option<Handler> {
    use Mnemonic::*;
    let handler: Handler = match mnemonic {
        Vfmadd132ps => |cpu, op| packed::<u32, 132>(cpu, op, Signs::ADD),
        Vfmadd132pd => |cpu, op| packed::<u64, 132>(cpu, op, Signs::ADD),
        Vfmadd132ss => |cpu, op| scalar::<u32, 132>(cpu, op, Signs::ADD),
        Vfmadd132sd => |cpu, op| scalar::<u64, 132>(cpu, op, Signs::ADD),
        Vfmadd213ps => |cpu, op| packed::<u32, 213>(cpu, op, Signs::ADD),
        Vfmadd213pd => |cpu, op| packed::<u64, 213>(cpu, op, Signs::ADD),
        Vfmadd213ss => |cpu, op| scalar::<u32, 213>(cpu, op, Signs::ADD),
        Vfmadd213sd => |cpu, op| scalar::<u64, 213>(cpu, op, Signs::ADD),
        Vfmadd231ps => |cpu, op| packed::<u32, 231>(cpu, op, Signs::ADD),
        Vfmadd231pd => |cpu, op| packed::<u64, 231>(cpu, op, Signs::ADD),
        Vfmadd231ss => |cpu, op| scalar::<u32, 231>(cpu, op, Signs::ADD),
        Vfmadd231sd => |cpu, op| scalar::<u64, 231>(cpu, op, Signs::ADD),
        Vfmsub132ps => |cpu, op| packed::<u32, 132>(cpu, op, Signs::SUB),
        Vfmsub132pd => |cpu, op| packed::<u64, 132>(cpu, op, Signs::SUB),
        Vfmsub132ss => |cpu, op| scalar::<u32, 132>(cpu, op, Signs::SUB),
        Vfmsub132sd => |cpu, op| scalar::<u64, 132>(cpu, op, Signs::SUB),
        Vfmsub213ps => |cpu, op| packed::<u32, 213>(cpu, op, Signs::SUB),
        Vfmsub213pd => |cpu, op| packed::<u64, 213>(cpu, op, Signs::SUB),
        Vfmsub213ss => |cpu, op| scalar::<u32, 213>(cpu, op, Signs::SUB),
        Vfmsub213sd => |cpu, op| scalar::<u64, 213>(cpu, op, Signs::SUB),
        Vfmsub231ps => |cpu, op| packed::<u32, 231>(cpu, op, Signs::SUB),
        Vfmsub231pd => |cpu, op| packed::<u64, 231>(cpu, op, Signs::SUB),
        Vfmsub231ss => |cpu, op| scalar::<u32, 231>(cpu, op, Signs::SUB),
        Vfmsub231sd => |cpu, op| scalar::<u64, 231>(cpu, op, Signs::SUB),
        Vfnmadd132ps => |cpu, op| packed::<u32, 132>(cpu, op, Signs::NEGATED_ADD),
        Vfnmadd132pd => |cpu, op| packed::<u64, 132>(cpu, op, Signs::NEGATED_ADD),
        Vfnmadd132ss => |cpu, op| scalar::<u32, 132>(cpu, op, Signs::NEGATED_ADD),
        Vfnmadd132sd => |cpu, op| scalar::<u64, 132>(cpu, op, Signs::NEGATED_ADD),
        Vfnmadd213ps => |cpu, op| packed::<u32, 213>(cpu, op, Signs::NEGATED_ADD),
        Vfnmadd213pd => |cpu, op| packed::<u64, 213>(cpu, op, Signs::NEGATED_ADD),
        Vfnmadd213ss => |cpu, op| scalar::<u32, 213>(cpu, op, Signs::NEGATED_ADD),
        Vfnmadd213sd => |cpu, op| scalar::<u64, 213>(cpu, op, Signs::NEGATED_ADD),
        Vfnmadd231ps => |cpu, op| packed::<u32, 231>(cpu, op, Signs::NEGATED_ADD),
        Vfnmadd231pd => |cpu, op| packed::<u64, 231>(cpu, op, Signs::NEGATED_ADD),
        Vfnmadd231ss => |cpu, op| scalar::<u32, 231>(cpu, op, Signs::NEGATED_ADD),
        Vfnmadd231sd => |cpu, op| scalar::<u64, 231>(cpu, op, Signs::NEGATED_ADD),
        Vfnmsub132ps => |cpu, op| packed::<u32, 132>(cpu, op, Signs::NEGATED_SUB),
        Vfnmsub132pd => |cpu, op| packed::<u64, 132>(cpu, op, Signs::NEGATED_SUB),
        Vfnmsub132ss => |cpu, op| scalar::<u32, 132>(cpu, op, Signs::NEGATED_SUB),
        Vfnmsub132sd => |cpu, op| scalar::<u64, 132>(cpu, op, Signs::NEGATED_SUB),
        Vfnmsub213ps => |cpu, op| packed::<u32, 213>(cpu, op, Signs::NEGATED_SUB),
        Vfnmsub213pd => |cpu, op| packed::<u64, 213>(cpu, op, Signs::NEGATED_SUB),
        Vfnmsub213ss => |cpu, op| scalar::<u32, 213>(cpu, op, Signs::NEGATED_SUB),
        Vfnmsub213sd => |cpu, op| scalar::<u64, 213>(cpu, op, Signs::NEGATED_SUB),
        Vfnmsub231ps => |cpu, op| packed::<u32, 231>(cpu, op, Signs::NEGATED_SUB),
        Vfnmsub231pd => |cpu, op| packed::<u64, 231>(cpu, op, Signs::NEGATED_SUB),
        Vfnmsub231ss => |cpu, op| scalar::<u32, 231>(cpu, op, Signs::NEGATED_SUB),
        Vfnmsub231sd => |cpu, op| scalar::<u64, 231>(cpu, op, Signs::NEGATED_SUB),
        Vfmaddsub132ps => |cpu, op| packed::<u32, 132>(cpu, op, Signs::SUB_ADD),
        Vfmaddsub132pd => |cpu, op| packed::<u64, 132>(cpu, op, Signs::SUB_ADD),
        Vfmaddsub213ps => |cpu, op| packed::<u32, 213>(cpu, op, Signs::SUB_ADD),
        Vfmaddsub213pd => |cpu, op| packed::<u64, 213>(cpu, op, Signs::SUB_ADD),
        Vfmaddsub231ps => |cpu, op| packed::<u32, 231>(cpu, op, Signs::SUB_ADD),
        Vfmaddsub231pd => |cpu, op| packed::<u64, 231>(cpu, op, Signs::SUB_ADD),
        Vfmsubadd132ps => |cpu, op| packed::<u32, 132>(cpu, op, Signs::ADD_SUB),
        Vfmsubadd132pd => |cpu, op| packed::<u64, 132>(cpu, op, Signs::ADD_SUB),
        Vfmsubadd213ps => |cpu, op| packed::<u32, 213>(cpu, op, Signs::ADD_SUB),
        Vfmsubadd213pd => |cpu, op| packed::<u64, 213>(cpu, op, Signs::ADD_SUB),
        Vfmsubadd231ps => |cpu, op| packed::<u32, 231>(cpu, op, Signs::ADD_SUB),
        Vfmsubadd231pd => |cpu, op| packed::<u64, 231>(cpu, op, Signs::ADD_SUB),
        _ => return None,
    };
    Some(handler)
}

/// One lane of the operands in their order.
#[inline(always)]
fn lane<F: FloatLane, const ORDER: u32>(
    env: &mut Env,
    [first, second, third]: [F; 3],
    [negate_product, negate_addend]: [bool; 2],
) -> F {
    let (a, b, c) = match ORDER {
        132 => (first, third, second),
        213 => (second, first, third),
        _ => (second, third, first),
    };
    soft::multiply_add(env, a, b, c, negate_product, negate_addend)
}

fn packed<F: FloatLane, const ORDER: u32>(cpu: &mut Cpu, op: &Op, signs: Signs) -> Result {
    cpu.avx_check()?;
    let third = cpu.ymm_source(op)?;
    let (first, second) = (cpu.ymm(op.dst), cpu.ymm(op.src));
    let mut env = cpu.sse_env();
    let mut half = |n: usize| {
        (0..128 / <F as Lane>::BITS).fold(0, |r, i| {
            let operands = [first, second, third].map(|v| lanes::get(v[n], i));
            let result: F = lane::<F, ORDER>(&mut env, operands, signs.0[i as usize % 2]);
            lanes::put(r, i, result)
        })
    };
    let low = half(0);
    let high = if is_wide(op) { half(1) } else { 0 };
    cpu.sse_finish(&env)?;
    cpu.set_ymm(op.dst, [low, high]);
    Ok(())
}

/// The lowest lane; the destination keeps the others.
fn scalar<F: FloatLane, const ORDER: u32>(cpu: &mut Cpu, op: &Op, signs: Signs) -> Result {
    cpu.avx_check()?;
    let third = cpu.vex_source_low::<F>(op)?;
    let first = cpu.xmm(op.dst);
    let operands = [F::from_u128(first), F::from_u128(cpu.xmm(op.src)), third];
    let mut env = cpu.sse_env();
    let result = lane::<F, ORDER>(&mut env, operands, signs.0[0]);
    cpu.sse_finish(&env)?;
    let low = <F as Int>::ONES.to_u128();
    cpu.set_ymm(op.dst, [first & !low | result.to_u128(), 0]);
    Ok(())
}
