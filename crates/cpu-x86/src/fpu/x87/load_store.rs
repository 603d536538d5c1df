//! Loads, stores, exchanges, constants and packed BCD.

use iced_x86::{Code, Instruction};

use super::arith::select_move_if;
use crate::cpu::Cpu;
use crate::exception::Result;
use crate::fpu::Fpu;
use crate::fpu::softfloat::{
    Class, Env, F80, Format, Integer, Round, convert, flag, from_int, to_int, widen,
};
use crate::int::Int;
use crate::op::{Handler, Op};

/// Finds the handler.
pub(super) fn select(insn: &Instruction) -> Option<Handler> {
    select_load(insn.code())
        .or_else(|| select_store(insn.code()))
        .or_else(|| select_register(insn.code()))
        .or_else(|| select_constant(insn.code()))
        .or_else(|| select_move_if(insn.mnemonic()))
}

fn select_load(code: Code) -> Option<Handler> {
    use Code::*;
    let handler: Handler = match code {
        Fld_m32fp => load_float::<u32>,
        Fld_m64fp => load_float::<u64>,
        Fld_m80fp => |cpu, op| {
            cpu.x87_wait()?;
            let value = F80::from_bits(load_80(cpu, op)?);
            cpu.x87_note(op);
            cpu.fpu.push_checked(value);
            Ok(())
        },
        Fild_m16int => load_int::<u16>,
        Fild_m32int => load_int::<u32>,
        Fild_m64int => load_int::<u64>,
        Fbld_m80bcd => |cpu, op| {
            cpu.x87_wait()?;
            let value = from_bcd(load_80(cpu, op)?);
            cpu.x87_note(op);
            cpu.fpu.push_checked(value);
            Ok(())
        },
        _ => return None,
    };
    Some(handler)
}

/// FLD of binary32 and binary64, which raises invalid operation and denormal operand.
fn load_float<T: Int + Format>(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.x87_from_memory(op, |fpu, value: T| {
        let num = value.unpack();
        let mut env = fpu.env();
        let mut result = widen(value);
        match num.class {
            Class::SignallingNan => {
                env.raise(flag::IE);
                result = F80::quiet(&num);
            }
            Class::Denormal => env.raise(flag::DE),
            _ => {}
        }
        if !fpu.is_empty(7) {
            if fpu.stack_overflow() {
                fpu.push(F80::INDEFINITE);
            }
            return;
        }
        fpu.commit(&env);
        // A denormal is loaded even if its exception is not masked.
        if env.unmasked() & flag::IE == 0 {
            fpu.push(result);
        }
    })
}

fn load_int<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.x87_from_memory(op, |fpu, value: T| {
        let mut exact = fpu.env().full_precision();
        fpu.push_checked(from_int(&mut exact, value.sext() as i64));
    })
}

/// 80 bits of memory.
fn load_80(cpu: &mut Cpu, op: &Op) -> Result<u128> {
    let mut bytes = [0; 16];
    let offset = cpu.ea(op);
    cpu.load_bytes(op.seg, offset, &mut bytes[..10])?;
    Ok(u128::from_le_bytes(bytes))
}

fn store_80(cpu: &mut Cpu, op: &Op, value: u128) -> Result {
    let offset = cpu.ea(op);
    cpu.store_bytes(op.seg, offset, &value.to_le_bytes()[..10])
}

fn select_store(code: Code) -> Option<Handler> {
    use Code::*;
    let handler: Handler = match code {
        Fst_m32fp => |cpu, op| store_float::<u32>(cpu, op, 0),
        Fstp_m32fp => |cpu, op| store_float::<u32>(cpu, op, 1),
        Fst_m64fp => |cpu, op| store_float::<u64>(cpu, op, 0),
        Fstp_m64fp => |cpu, op| store_float::<u64>(cpu, op, 1),
        Fstp_m80fp => |cpu, op| {
            let write = |cpu: &mut Cpu, value: F80| store_80(cpu, op, value.to_bits());
            store(cpu, op, 1, F80::INDEFINITE, |_, value| value, write)
        },
        Fist_m16int => |cpu, op| store_int::<u16, i16>(cpu, op, 0, false),
        Fistp_m16int => |cpu, op| store_int::<u16, i16>(cpu, op, 1, false),
        Fisttp_m16int => |cpu, op| store_int::<u16, i16>(cpu, op, 1, true),
        Fist_m32int => |cpu, op| store_int::<u32, i32>(cpu, op, 0, false),
        Fistp_m32int => |cpu, op| store_int::<u32, i32>(cpu, op, 1, false),
        Fisttp_m32int => |cpu, op| store_int::<u32, i32>(cpu, op, 1, true),
        Fistp_m64int => |cpu, op| store_int::<u64, i64>(cpu, op, 1, false),
        Fisttp_m64int => |cpu, op| store_int::<u64, i64>(cpu, op, 1, true),
        Fbstp_m80bcd => |cpu, op| {
            let write = |cpu: &mut Cpu, value| store_80(cpu, op, value);
            store(cpu, op, 1, BCD_INDEFINITE, to_bcd, write)
        },
        _ => return None,
    };
    Some(handler)
}

/// Stores ST(0) to memory: `compute` converts, `write` stores, then pops. Memory is written before
/// anything else changes, and not at all if an exception other than inexact is unmasked.
#[inline(always)]
fn store<T: Copy>(
    cpu: &mut Cpu,
    op: &Op,
    pops: u8,
    indefinite: T,
    compute: impl Fn(&mut Env, F80) -> T,
    write: impl Fn(&mut Cpu, T) -> Result,
) -> Result {
    cpu.x87_wait()?;
    let Some(value) = cpu.fpu.st(0) else {
        if cpu.fpu.control & u16::from(flag::IE) != 0 {
            write(cpu, indefinite)?;
        } else {
            probe_store(cpu, op)?;
        }
        cpu.x87_note(op);
        if cpu.fpu.stack_underflow() {
            cpu.fpu.pop_times(pops);
        }
        return Ok(());
    };
    let mut env = cpu.fpu.env();
    let result = compute(&mut env, value);
    let stored = env.unmasked() & !flag::PE == 0;
    if stored {
        write(cpu, result)?;
    } else {
        probe_store(cpu, op)?;
    }
    cpu.x87_note(op);
    cpu.fpu.commit(&env);
    if stored {
        cpu.fpu.pop_times(pops);
    }
    Ok(())
}

/// Raises what the store would raise that an exception keeps from happening: the operand's faults come
/// before the numeric ones.
fn probe_store(cpu: &mut Cpu, op: &Op) -> Result {
    let offset = cpu.ea(op);
    cpu.probe_write(op.seg, offset, usize::from(op.size))
}

fn store_float<T: Int + Format>(cpu: &mut Cpu, op: &Op, pops: u8) -> Result {
    let write = |cpu: &mut Cpu, value: T| cpu.store_op(op, value);
    store(cpu, op, pops, T::INDEFINITE, convert::<F80, T>, write)
}

/// FIST and its like: `U` is `I` unsigned.
fn store_int<U: Int, I: Integer + Into<i64>>(
    cpu: &mut Cpu,
    op: &Op,
    pops: u8,
    truncate: bool,
) -> Result {
    let compute = |env: &mut Env, value| {
        if !truncate {
            return to_int::<F80, I>(env, value);
        }
        let mut local = env.rounding(Round::Zero);
        let result = to_int(&mut local, value);
        env.raise(local.flags);
        result
    };
    let write = |cpu: &mut Cpu, value: I| {
        let value: i64 = value.into();
        cpu.store_op(op, U::from_u64(value as u64))
    };
    store(cpu, op, pops, I::INDEFINITE, compute, write)
}

/// FBSTP's result for what does not fit 18 digits.
const BCD_INDEFINITE: u128 = 0xffff_c000_0000_0000_0000;

/// 18 digits, and the sign in the top bit of the tenth byte. Digits above nine count as they are.
fn from_bcd(bits: u128) -> F80 {
    let magnitude = (0..18)
        .rev()
        .fold(0u64, |n, digit| n.wrapping_mul(10).wrapping_add((bits >> (4 * digit)) as u64 & 15));
    let value: F80 = from_int(&mut Env::x87(0x37f), magnitude as i64);
    F80 { exp: value.exp | (bits >> 64) as u16 & 0x8000, ..value }
}

fn to_bcd(env: &mut Env, value: F80) -> u128 {
    let mut local = *env;
    let integer: i64 = to_int(&mut local, value);
    let magnitude = integer.unsigned_abs();
    if local.flags & flag::IE != 0 || magnitude > 999_999_999_999_999_999 {
        env.raise(flag::IE);
        return BCD_INDEFINITE;
    }
    env.raise(local.flags);
    env.rounded_up = local.rounded_up;
    let digits = (0..18).fold((0u128, magnitude), |(bits, rest), digit| {
        (bits | u128::from(rest % 10) << (4 * digit), rest / 10)
    });
    digits.0 | u128::from(value.sign()) << 79
}

/// Moves within the stack, and of the stack.
fn select_register(code: Code) -> Option<Handler> {
    use Code::*;
    let handler: Handler = match code {
        Fld_sti => |cpu, op| {
            cpu.x87_on_stack(op, |fpu| match fpu.st(op.dst) {
                Some(value) => fpu.push_checked(value),
                None => {
                    if fpu.stack_underflow() {
                        fpu.push(F80::INDEFINITE);
                    }
                }
            })
        },
        Fst_sti => |cpu, op| copy_top(cpu, op, 0),
        Fstp_sti | Fstp_sti_DFD0 | Fstp_sti_DFD8 => |cpu, op| copy_top(cpu, op, 1),
        Fstpnce_sti => |cpu, op| {
            // Like FSTP, but an empty ST(0) is no fault and is not copied.
            cpu.x87_on_stack(op, |fpu| {
                fpu.set_c1(false);
                if let Some(value) = fpu.st(0) {
                    fpu.set_st(op.dst, value);
                }
                fpu.pop();
            })
        },
        Fxch_st0_sti | Fxch_st0_sti_DDC8 | Fxch_st0_sti_DFC8 => {
            |cpu, op| cpu.x87_on_stack(op, |fpu| exchange(fpu, op.src))
        }
        Ffree_sti => |cpu, op| {
            cpu.x87_on_stack(op, |fpu| {
                fpu.free(op.dst);
                fpu.set_c1(false);
            })
        },
        Ffreep_sti => |cpu, op| {
            cpu.x87_on_stack(op, |fpu| {
                fpu.free(op.dst);
                fpu.set_c1(false);
                fpu.pop();
            })
        },
        Fincstp => |cpu, op| cpu.x87_on_stack(op, |fpu| turn(fpu, 1)),
        Fdecstp => |cpu, op| cpu.x87_on_stack(op, |fpu| turn(fpu, 7)),
        Fnop => |cpu, op| cpu.x87_on_stack(op, |_| ()),
        _ => return None,
    };
    Some(handler)
}

fn copy_top(cpu: &mut Cpu, op: &Op, pops: u8) -> Result {
    cpu.x87_on_stack(op, |fpu| match fpu.st(0) {
        Some(value) => {
            fpu.set_c1(false);
            fpu.set_st(op.dst, value);
            fpu.pop_times(pops);
        }
        None => fpu.finish_underflow(op.dst, pops),
    })
}

fn exchange(fpu: &mut Fpu, i: u8) {
    let (top, other) = (fpu.st(0), fpu.st(i));
    fpu.set_c1(false);
    if (top.is_none() || other.is_none()) && !fpu.stack_underflow() {
        return;
    }
    fpu.set_st(0, other.unwrap_or(F80::INDEFINITE));
    fpu.set_st(i, top.unwrap_or(F80::INDEFINITE));
}

/// Turns the stack without touching its registers.
fn turn(fpu: &mut Fpu, by: u8) {
    fpu.top = fpu.top.wrapping_add(by) & 7;
    fpu.set_c1(false);
}

fn select_constant(code: Code) -> Option<Handler> {
    use Code::*;
    let handler: Handler = match code {
        Fld1 => |cpu, op| cpu.x87_on_stack(op, |fpu| fpu.push_checked(F80::ONE)),
        Fldz => |cpu, op| cpu.x87_on_stack(op, |fpu| fpu.push_checked(F80::ZERO)),
        Fldl2t => |cpu, op| constant(cpu, op, 0x4000, 0xd49a_784b_cd1b_8afe_492b_f6ff_4daf_db4c),
        Fldl2e => |cpu, op| constant(cpu, op, 0x3fff, 0xb8aa_3b29_5c17_f0bb_be87_fed0_691d_3e88),
        Fldpi => |cpu, op| constant(cpu, op, 0x4000, 0xc90f_daa2_2168_c234_c4c6_628b_80dc_1cd1),
        Fldlg2 => |cpu, op| constant(cpu, op, 0x3ffd, 0x9a20_9a84_fbcf_f798_8f89_59ac_0b7c_9178),
        Fldln2 => |cpu, op| constant(cpu, op, 0x3ffe, 0xb172_17f7_d1cf_79ab_c9e3_b398_03f2_f6af),
        _ => return None,
    };
    Some(handler)
}

/// Pushes a constant, given to 128 bits, rounded to 64 by the rounding mode alone: the inexact
/// exception and precision control have no part in it.
fn constant(cpu: &mut Cpu, op: &Op, exp: u16, sig: u128) -> Result {
    cpu.x87_on_stack(op, |fpu| {
        let (kept, rest) = ((sig >> 64) as u64, sig as u64);
        let up = match fpu.env().round {
            Round::Nearest => rest >> 63 != 0,
            Round::Up => true,
            Round::Down | Round::Zero => false,
        };
        fpu.push_checked(F80 { sig: kept + u64::from(up), exp });
    })
}
