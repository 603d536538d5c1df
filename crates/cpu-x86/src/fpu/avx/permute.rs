//! What AVX and AVX2 add to packed integers and permutations.

use iced_x86::Mnemonic;

use super::super::encoding::{Encoding, Vex, Ymm};
use super::super::lanes::{self, Lane};
use super::super::packed::test;
use crate::cpu::Cpu;
use crate::exception::Result;
use crate::op::{Handler, Op, OpFlags};

/// Finds the handler.
pub(super) fn select(mnemonic: Mnemonic, immediate: bool) -> Option<Handler> {
    select_blend(mnemonic)
        .or_else(|| select_permute(mnemonic, immediate))
        .or_else(|| select_variable_shift(mnemonic))
}

/// The sign bits of all singles, and of all doubles.
const SIGNS_32: u128 = 0x8000_0000_8000_0000_8000_0000_8000_0000;
const SIGNS_64: u128 = 0x8000_0000_0000_0000_8000_0000_0000_0000;

fn select_blend(mnemonic: Mnemonic) -> Option<Handler> {
    use Mnemonic::*;
    let handler: Handler = match mnemonic {
        Vpblendvb => blend_variable::<u8>,
        Vblendvps => blend_variable::<u32>,
        Vblendvpd => blend_variable::<u64>,
        Vpblendd => |cpu, op| Vex::binary_imm(cpu, op, 4, lanes::blend::<u32>),
        Vtestps => |cpu, op| test::<Vex>(cpu, op, SIGNS_32),
        Vtestpd => |cpu, op| test::<Vex>(cpu, op, SIGNS_64),
        _ => return None,
    };
    Some(handler)
}

/// Blends by the sign bits in a fourth register.
fn blend_variable<T: Lane>(cpu: &mut Cpu, op: &Op) -> Result {
    // With the third operand in memory, the fourth is the third register.
    let mask = if op.flags.contains(OpFlags::MEM) { op.src2 } else { op.imm as u8 };
    let masks = cpu.ymm(mask);
    let mut half = masks.into_iter();
    Vex::binary(cpu, op, |a, b| lanes::blend_variable::<T>(a, b, half.next().unwrap_or(0)))
}

/// The lanes of `v` that `f` picks by their index, all of them anew.
fn pick<T: Lane>(v: &Ymm, f: impl Fn(u32) -> u32) -> Ymm {
    let half = 128 / T::BITS;
    let lane = |i: u32| lanes::get::<T>(v[(i / half) as usize & 1], i % half);
    [0, half].map(|first| lanes::build::<T>(16, |i| lane(f(first + i) % (2 * half))))
}

fn select_permute(mnemonic: Mnemonic, immediate: bool) -> Option<Handler> {
    use Mnemonic::*;
    let handler: Handler = match mnemonic {
        Vperm2f128 | Vperm2i128 => |cpu, op| {
            cpu.avx_check()?;
            let b = cpu.ymm_source(op)?;
            let a = cpu.ymm(op.src);
            let part = |control: u64| match control & 0xb {
                0 => a[0],
                1 => a[1],
                2 => b[0],
                3 => b[1],
                _ => 0,
            };
            cpu.set_ymm(op.dst, [part(op.imm), part(op.imm >> 4)]);
            Ok(())
        },
        Vpermq | Vpermpd => |cpu, op| {
            cpu.avx_check()?;
            let source = cpu.ymm_source(op)?;
            let result = pick::<u64>(&source, |i| (op.imm >> (2 * i)) as u32 & 3);
            cpu.set_ymm(op.dst, result);
            Ok(())
        },
        Vpermd | Vpermps => |cpu, op| {
            cpu.avx_check()?;
            let source = cpu.ymm_source(op)?;
            let control = cpu.ymm(op.src);
            let index = |i: u32| lanes::get::<u32>(control[(i / 4) as usize & 1], i % 4) & 7;
            let result = pick::<u32>(&source, index);
            cpu.set_ymm(op.dst, result);
            Ok(())
        },
        Vpermilps if immediate => {
            |cpu, op| Vex::binary_imm(cpu, op, 0, |_, b, imm| lanes::shuffle4::<u32>(b, imm))
        }
        Vpermilpd if immediate => |cpu, op| {
            Vex::binary_imm(cpu, op, 2, |_, b, imm| {
                lanes::build::<u64>(16, |i| lanes::get(b, u32::from(imm >> i & 1)))
            })
        },
        Vpermilps => |cpu, op| {
            Vex::binary(cpu, op, |a, b| {
                lanes::build::<u32>(16, |i| lanes::get(a, lanes::get::<u32>(b, i) & 3))
            })
        },
        Vpermilpd => |cpu, op| {
            Vex::binary(cpu, op, |a, b| {
                lanes::build::<u64>(16, |i| {
                    lanes::get(a, (lanes::get::<u64>(b, i) >> 1) as u32 & 1)
                })
            })
        },
        _ => return None,
    };
    Some(handler)
}

/// Each lane by a count of its own.
fn select_variable_shift(mnemonic: Mnemonic) -> Option<Handler> {
    use Mnemonic::*;
    fn shift<T: Lane>(cpu: &mut Cpu, op: &Op, f: impl Fn(T, u64) -> T) -> Result {
        Vex::binary(cpu, op, |a, b| T::zip(a, b, |x, count| f(x, count.to_bits() as u64)))
    }
    let handler: Handler = match mnemonic {
        Vpsllvd => |cpu, op| shift::<u32>(cpu, op, |x, n| if n < 32 { x << n } else { 0 }),
        Vpsllvq => |cpu, op| shift::<u64>(cpu, op, |x, n| if n < 64 { x << n } else { 0 }),
        Vpsrlvd => |cpu, op| shift::<u32>(cpu, op, |x, n| if n < 32 { x >> n } else { 0 }),
        Vpsrlvq => |cpu, op| shift::<u64>(cpu, op, |x, n| if n < 64 { x >> n } else { 0 }),
        Vpsravd => |cpu, op| shift::<i32>(cpu, op, |x, n| x >> n.min(31)),
        _ => return None,
    };
    Some(handler)
}
