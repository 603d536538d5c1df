//! Packed integer instructions of MMX and SSE.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::lanes::{self, Lane};
use crate::cpu::Cpu;
use crate::exception::Result;
use crate::flags::bits;
use crate::op::{Handler, Op, OpFlags};

/// Whether the instruction is the MMX form: one of its registers is an MMX register.
pub(super) fn uses_mmx(insn: &Instruction) -> bool {
    (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Register && insn.op_register(i).is_mm())
}

/// `dst = f(dst, src)` on XMM registers.
#[inline(always)]
fn on_xmm(cpu: &mut Cpu, op: &Op, f: impl Fn(u128, u128) -> u128) -> Result {
    cpu.sse_check()?;
    let b = cpu.xmm_source(op)?;
    cpu.set_xmm(op.dst, f(cpu.xmm(op.dst), b));
    Ok(())
}

/// `dst = f(dst, src)` on MMX registers.
#[inline(always)]
fn on_mmx(cpu: &mut Cpu, op: &Op, f: impl Fn(u128, u128) -> u128) -> Result {
    cpu.mmx_check()?;
    let b = cpu.mm_source::<u64>(op)?;
    cpu.enter_mmx();
    let a = cpu.mm(op.dst);
    cpu.set_mm(op.dst, f(u128::from(a), u128::from(b)) as u64);
    Ok(())
}

/// PUNPCKL's MMX forms, whose memory operand has 4 bytes.
#[inline(always)]
fn on_mmx_low(cpu: &mut Cpu, op: &Op, f: impl Fn(u128, u128) -> u128) -> Result {
    cpu.mmx_check()?;
    let b = cpu.mm_source::<u32>(op)?;
    cpu.enter_mmx();
    let a = cpu.mm(op.dst);
    cpu.set_mm(op.dst, f(u128::from(a), u128::from(b)) as u64);
    Ok(())
}

/// Instructions with a function of both operands and, where it matters, the width in bytes.
pub(super) fn select(insn: &Instruction) -> Option<Handler> {
    let mmx = uses_mmx(insn);
    select_arithmetic(insn.mnemonic(), mmx)
        .or_else(|| select_compare(insn.mnemonic(), mmx))
        .or_else(|| select_rearranging(insn.mnemonic(), mmx))
        .or_else(|| select_shift(insn, mmx))
        .or_else(|| select_sse4(insn.mnemonic()))
}

/// A handler for both forms of an instruction.
macro_rules! both {
    ($mmx:expr, $f:expr) => {
        if $mmx { |cpu, op| on_mmx(cpu, op, $f) } else { |cpu, op| on_xmm(cpu, op, $f) }
    };
}

fn select_arithmetic(mnemonic: Mnemonic, mmx: bool) -> Option<Handler> {
    use Mnemonic::*;
    let handler: Handler = match mnemonic {
        Paddb => both!(mmx, |a, b| u8::zip(a, b, u8::wrapping_add)),
        Paddw => both!(mmx, |a, b| u16::zip(a, b, u16::wrapping_add)),
        Paddd => both!(mmx, |a, b| u32::zip(a, b, u32::wrapping_add)),
        Paddq => both!(mmx, |a, b| u64::zip(a, b, u64::wrapping_add)),
        Psubb => both!(mmx, |a, b| u8::zip(a, b, u8::wrapping_sub)),
        Psubw => both!(mmx, |a, b| u16::zip(a, b, u16::wrapping_sub)),
        Psubd => both!(mmx, |a, b| u32::zip(a, b, u32::wrapping_sub)),
        Psubq => both!(mmx, |a, b| u64::zip(a, b, u64::wrapping_sub)),
        Paddsb => both!(mmx, |a, b| lanes::saturating::<i8>(a, b, |x, y| x + y)),
        Paddsw => both!(mmx, |a, b| lanes::saturating::<i16>(a, b, |x, y| x + y)),
        Paddusb => both!(mmx, |a, b| lanes::saturating::<u8>(a, b, |x, y| x + y)),
        Paddusw => both!(mmx, |a, b| lanes::saturating::<u16>(a, b, |x, y| x + y)),
        Psubsb => both!(mmx, |a, b| lanes::saturating::<i8>(a, b, |x, y| x - y)),
        Psubsw => both!(mmx, |a, b| lanes::saturating::<i16>(a, b, |x, y| x - y)),
        Psubusb => both!(mmx, |a, b| lanes::saturating::<u8>(a, b, |x, y| x - y)),
        Psubusw => both!(mmx, |a, b| lanes::saturating::<u16>(a, b, |x, y| x - y)),
        Pavgb => both!(mmx, |a, b| lanes::saturating::<u8>(a, b, |x, y| (x + y + 1) >> 1)),
        Pavgw => both!(mmx, |a, b| lanes::saturating::<u16>(a, b, |x, y| (x + y + 1) >> 1)),
        Pmullw => both!(mmx, |a, b| u16::zip(a, b, u16::wrapping_mul)),
        Pmulhw => both!(mmx, |a, b| lanes::multiply_high::<i16>(a, b, 16)),
        Pmulhuw => both!(mmx, |a, b| lanes::multiply_high::<u16>(a, b, 16)),
        Pmulhrsw => both!(mmx, lanes::multiply_round),
        Pmuludq => both!(mmx, lanes::multiply_even::<u32>),
        Pmaddwd => both!(mmx, lanes::multiply_add_words),
        Pmaddubsw => both!(mmx, lanes::multiply_add_bytes),
        Psadbw => both!(mmx, lanes::sum_differences),
        Pminub => both!(mmx, |a, b| u8::zip(a, b, Ord::min)),
        Pminsw => both!(mmx, |a, b| i16::zip(a, b, Ord::min)),
        Pmaxub => both!(mmx, |a, b| u8::zip(a, b, Ord::max)),
        Pmaxsw => both!(mmx, |a, b| i16::zip(a, b, Ord::max)),
        Pabsb => both!(mmx, |_, b| i8::map(b, i8::wrapping_abs)),
        Pabsw => both!(mmx, |_, b| i16::map(b, i16::wrapping_abs)),
        Pabsd => both!(mmx, |_, b| i32::map(b, i32::wrapping_abs)),
        Psignb => both!(mmx, lanes::sign::<i8>),
        Psignw => both!(mmx, lanes::sign::<i16>),
        Psignd => both!(mmx, lanes::sign::<i32>),
        _ => return None,
    };
    Some(handler)
}

fn select_compare(mnemonic: Mnemonic, mmx: bool) -> Option<Handler> {
    use Mnemonic::*;
    let handler: Handler = match mnemonic {
        Pcmpeqb => both!(mmx, |a, b| lanes::compare::<u8>(a, b, |x, y| x == y)),
        Pcmpeqw => both!(mmx, |a, b| lanes::compare::<u16>(a, b, |x, y| x == y)),
        Pcmpeqd => both!(mmx, |a, b| lanes::compare::<u32>(a, b, |x, y| x == y)),
        Pcmpgtb => both!(mmx, |a, b| lanes::compare::<i8>(a, b, |x, y| x > y)),
        Pcmpgtw => both!(mmx, |a, b| lanes::compare::<i16>(a, b, |x, y| x > y)),
        Pcmpgtd => both!(mmx, |a, b| lanes::compare::<i32>(a, b, |x, y| x > y)),
        Pand => both!(mmx, |a, b| a & b),
        Pandn => both!(mmx, |a, b| !a & b),
        Por => both!(mmx, |a, b| a | b),
        Pxor => both!(mmx, |a, b| a ^ b),
        Andps | Andpd => |cpu, op| on_xmm(cpu, op, |a, b| a & b),
        Andnps | Andnpd => |cpu, op| on_xmm(cpu, op, |a, b| !a & b),
        Orps | Orpd => |cpu, op| on_xmm(cpu, op, |a, b| a | b),
        Xorps | Xorpd => |cpu, op| on_xmm(cpu, op, |a, b| a ^ b),
        _ => return None,
    };
    Some(handler)
}

/// A handler for both forms of an instruction for which the width in bytes matters.
macro_rules! sized {
    ($mmx:expr, $on_mmx:ident, |$a:ident, $b:ident, $width:ident| $f:expr) => {
        if $mmx {
            |cpu, op| {
                $on_mmx(cpu, op, |$a, $b| {
                    let $width = 8;
                    $f
                })
            }
        } else {
            |cpu, op| {
                on_xmm(cpu, op, |$a, $b| {
                    let $width = 16;
                    $f
                })
            }
        }
    };
}

fn select_rearranging(mnemonic: Mnemonic, mmx: bool) -> Option<Handler> {
    use Mnemonic::*;
    use lanes::{horizontal, interleave, pack};
    let handler: Handler = match mnemonic {
        Packsswb => sized!(mmx, on_mmx, |a, b, w| pack::<i16, i8>(a, b, w)),
        Packssdw => sized!(mmx, on_mmx, |a, b, w| pack::<i32, i16>(a, b, w)),
        Packuswb => sized!(mmx, on_mmx, |a, b, w| pack::<i16, u8>(a, b, w)),
        Packusdw => |cpu, op| on_xmm(cpu, op, |a, b| pack::<i32, u16>(a, b, 16)),
        Punpcklbw => sized!(mmx, on_mmx_low, |a, b, w| interleave::<u8>(a, b, w, false)),
        Punpcklwd => sized!(mmx, on_mmx_low, |a, b, w| interleave::<u16>(a, b, w, false)),
        Punpckldq => sized!(mmx, on_mmx_low, |a, b, w| interleave::<u32>(a, b, w, false)),
        Punpckhbw => sized!(mmx, on_mmx, |a, b, w| interleave::<u8>(a, b, w, true)),
        Punpckhwd => sized!(mmx, on_mmx, |a, b, w| interleave::<u16>(a, b, w, true)),
        Punpckhdq => sized!(mmx, on_mmx, |a, b, w| interleave::<u32>(a, b, w, true)),
        Unpcklps => |cpu, op| on_xmm(cpu, op, |a, b| interleave::<u32>(a, b, 16, false)),
        Unpckhps => |cpu, op| on_xmm(cpu, op, |a, b| interleave::<u32>(a, b, 16, true)),
        Punpcklqdq | Unpcklpd => |cpu, op| on_xmm(cpu, op, |a, b| a & HALF | b << 64),
        Punpckhqdq | Unpckhpd => |cpu, op| on_xmm(cpu, op, |a, b| a >> 64 | b & !HALF),
        Phaddw => {
            sized!(mmx, on_mmx, |a, b, w| horizontal::<i16>(a, b, w, i16::wrapping_add))
        }
        Phaddd => {
            sized!(mmx, on_mmx, |a, b, w| horizontal::<i32>(a, b, w, i32::wrapping_add))
        }
        Phaddsw => {
            sized!(mmx, on_mmx, |a, b, w| horizontal::<i16>(a, b, w, i16::saturating_add))
        }
        Phsubw => {
            sized!(mmx, on_mmx, |a, b, w| horizontal::<i16>(a, b, w, i16::wrapping_sub))
        }
        Phsubd => {
            sized!(mmx, on_mmx, |a, b, w| horizontal::<i32>(a, b, w, i32::wrapping_sub))
        }
        Phsubsw => {
            sized!(mmx, on_mmx, |a, b, w| horizontal::<i16>(a, b, w, i16::saturating_sub))
        }
        Pshufb => sized!(mmx, on_mmx, |a, b, w| lanes::shuffle_bytes(a, b, w)),
        Palignr if mmx => {
            |cpu, op| on_mmx(cpu, op, |a, b| lanes::align_right(a, b, 8, op.imm as u8))
        }
        Palignr => |cpu, op| on_xmm(cpu, op, |a, b| lanes::align_right(a, b, 16, op.imm as u8)),
        Pshufw => |cpu, op| on_mmx(cpu, op, |_, b| lanes::shuffle4::<u16>(b, op.imm as u8)),
        Pshufd => |cpu, op| on_xmm(cpu, op, |_, b| lanes::shuffle4::<u32>(b, op.imm as u8)),
        Pshuflw => {
            |cpu, op| on_xmm(cpu, op, |_, b| b & !HALF | lanes::shuffle4::<u16>(b, op.imm as u8))
        }
        Pshufhw => |cpu, op| {
            on_xmm(cpu, op, |_, b| b & HALF | lanes::shuffle4::<u16>(b >> 64, op.imm as u8) << 64)
        },
        Shufps => |cpu, op| {
            on_xmm(cpu, op, |a, b| {
                let low = lanes::shuffle4::<u32>(a, op.imm as u8);
                let high = lanes::shuffle4::<u32>(b, op.imm as u8);
                low & HALF | high & !HALF
            })
        },
        Shufpd => |cpu, op| {
            on_xmm(cpu, op, |a, b| {
                let (low, high) = (a >> (64 * (op.imm & 1)), b >> (64 * (op.imm >> 1 & 1)));
                low & HALF | high << 64
            })
        },
        _ => return None,
    };
    Some(handler)
}

/// The lower half of a register.
const HALF: u128 = u64::MAX as u128;

/// Shifts by an immediate have their operand in `dst`, and no source register.
fn select_shift(insn: &Instruction, mmx: bool) -> Option<Handler> {
    let immediate = insn.op1_kind() == OpKind::Immediate8;
    macro_rules! shift {
        ($f:expr) => {
            match (mmx, immediate) {
                (true, true) => |cpu, op| shift_mmx(cpu, op, $f),
                (false, true) => |cpu, op| shift_xmm(cpu, op, $f),
                (true, false) => |cpu, op| on_mmx(cpu, op, |a, b| $f(a, b as u64)),
                (false, false) => |cpu, op| on_xmm(cpu, op, |a, b| $f(a, b as u64)),
            }
        };
    }
    let handler: Handler = match insn.mnemonic() {
        Mnemonic::Psllw => shift!(lanes::shift_left::<u16>),
        Mnemonic::Pslld => shift!(lanes::shift_left::<u32>),
        Mnemonic::Psllq => shift!(lanes::shift_left::<u64>),
        Mnemonic::Psrlw => shift!(lanes::shift_right::<u16>),
        Mnemonic::Psrld => shift!(lanes::shift_right::<u32>),
        Mnemonic::Psrlq => shift!(lanes::shift_right::<u64>),
        Mnemonic::Psraw => shift!(lanes::shift_right_sign::<i16>),
        Mnemonic::Psrad => shift!(lanes::shift_right_sign::<i32>),
        Mnemonic::Pslldq => {
            |cpu, op| shift_xmm(cpu, op, |a, bytes| if bytes > 15 { 0 } else { a << (bytes * 8) })
        }
        Mnemonic::Psrldq => {
            |cpu, op| shift_xmm(cpu, op, |a, bytes| if bytes > 15 { 0 } else { a >> (bytes * 8) })
        }
        _ => return None,
    };
    Some(handler)
}

#[inline(always)]
fn shift_xmm(cpu: &mut Cpu, op: &Op, f: impl Fn(u128, u64) -> u128) -> Result {
    cpu.sse_check()?;
    cpu.set_xmm(op.dst, f(cpu.xmm(op.dst), op.imm & 0xff));
    Ok(())
}

#[inline(always)]
fn shift_mmx(cpu: &mut Cpu, op: &Op, f: impl Fn(u128, u64) -> u128) -> Result {
    cpu.mmx_check()?;
    cpu.enter_mmx();
    let a = cpu.mm(op.dst);
    cpu.set_mm(op.dst, f(u128::from(a), op.imm & 0xff) as u64);
    Ok(())
}

fn select_sse4(mnemonic: Mnemonic) -> Option<Handler> {
    use Mnemonic::*;
    let handler: Handler = match mnemonic {
        Pcmpeqq => |cpu, op| on_xmm(cpu, op, |a, b| lanes::compare::<u64>(a, b, |x, y| x == y)),
        Pcmpgtq => |cpu, op| on_xmm(cpu, op, |a, b| lanes::compare::<i64>(a, b, |x, y| x > y)),
        Pminsb => |cpu, op| on_xmm(cpu, op, |a, b| i8::zip(a, b, Ord::min)),
        Pminsd => |cpu, op| on_xmm(cpu, op, |a, b| i32::zip(a, b, Ord::min)),
        Pminuw => |cpu, op| on_xmm(cpu, op, |a, b| u16::zip(a, b, Ord::min)),
        Pminud => |cpu, op| on_xmm(cpu, op, |a, b| u32::zip(a, b, Ord::min)),
        Pmaxsb => |cpu, op| on_xmm(cpu, op, |a, b| i8::zip(a, b, Ord::max)),
        Pmaxsd => |cpu, op| on_xmm(cpu, op, |a, b| i32::zip(a, b, Ord::max)),
        Pmaxuw => |cpu, op| on_xmm(cpu, op, |a, b| u16::zip(a, b, Ord::max)),
        Pmaxud => |cpu, op| on_xmm(cpu, op, |a, b| u32::zip(a, b, Ord::max)),
        Pmulld => |cpu, op| on_xmm(cpu, op, |a, b| u32::zip(a, b, u32::wrapping_mul)),
        Pmuldq => |cpu, op| on_xmm(cpu, op, lanes::multiply_even::<i32>),
        Phminposuw => |cpu, op| on_xmm(cpu, op, |_, b| lanes::min_position(b)),
        Mpsadbw => {
            |cpu, op| on_xmm(cpu, op, |a, b| lanes::multiple_sum_differences(a, b, op.imm as u8))
        }
        Pblendw => |cpu, op| on_xmm(cpu, op, |a, b| lanes::blend::<u16>(a, b, op.imm as u8)),
        Blendps => |cpu, op| on_xmm(cpu, op, |a, b| lanes::blend::<u32>(a, b, op.imm as u8)),
        Blendpd => |cpu, op| on_xmm(cpu, op, |a, b| lanes::blend::<u64>(a, b, op.imm as u8)),
        Pblendvb => blend_variable::<u8>,
        Blendvps => blend_variable::<u32>,
        Blendvpd => blend_variable::<u64>,
        Pmovsxbw => |cpu, op| extend::<u64>(cpu, op, lanes::extend::<i8, i16>),
        Pmovsxbd => |cpu, op| extend::<u32>(cpu, op, lanes::extend::<i8, i32>),
        Pmovsxbq => |cpu, op| extend::<u16>(cpu, op, lanes::extend::<i8, i64>),
        Pmovsxwd => |cpu, op| extend::<u64>(cpu, op, lanes::extend::<i16, i32>),
        Pmovsxwq => |cpu, op| extend::<u32>(cpu, op, lanes::extend::<i16, i64>),
        Pmovsxdq => |cpu, op| extend::<u64>(cpu, op, lanes::extend::<i32, i64>),
        Pmovzxbw => |cpu, op| extend::<u64>(cpu, op, lanes::extend::<u8, i16>),
        Pmovzxbd => |cpu, op| extend::<u32>(cpu, op, lanes::extend::<u8, i32>),
        Pmovzxbq => |cpu, op| extend::<u16>(cpu, op, lanes::extend::<u8, i64>),
        Pmovzxwd => |cpu, op| extend::<u64>(cpu, op, lanes::extend::<u16, i32>),
        Pmovzxwq => |cpu, op| extend::<u32>(cpu, op, lanes::extend::<u16, i64>),
        Pmovzxdq => |cpu, op| extend::<u64>(cpu, op, lanes::extend::<u32, i64>),
        Ptest => test,
        _ => return None,
    };
    Some(handler)
}

/// Blends by the sign bits in XMM0.
fn blend_variable<T: Lane>(cpu: &mut Cpu, op: &Op) -> Result {
    let mask = cpu.xmm(0);
    on_xmm(cpu, op, |a, b| lanes::blend_variable::<T>(a, b, mask))
}

/// PMOVSX and PMOVZX, whose memory operand is as small as what it reads.
#[inline(always)]
fn extend<T: crate::int::Int>(cpu: &mut Cpu, op: &Op, f: impl Fn(u128) -> u128) -> Result {
    cpu.sse_check()?;
    let source = cpu.xmm_source_low::<T>(op)?;
    cpu.set_xmm(op.dst, f(source.to_u128()));
    Ok(())
}

/// PTEST: ZF if the operands have no bit in common, CF if the source has none beyond the first.
fn test(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.sse_check()?;
    let b = cpu.xmm_source(op)?;
    let a = cpu.xmm(op.dst);
    let zf = if a & b == 0 { bits::ZF } else { 0 };
    let cf = if !a & b == 0 { bits::CF } else { 0 };
    cpu.set_rflags_arith(zf | cf);
    Ok(())
}

/// PMOVMSKB, MOVMSKPS and MOVMSKPD.
pub(super) fn select_masks(insn: &Instruction) -> Option<Handler> {
    let handler: Handler = match insn.mnemonic() {
        Mnemonic::Pmovmskb if uses_mmx(insn) => |cpu, op| {
            cpu.mmx_check()?;
            cpu.enter_mmx();
            let mask = lanes::byte_signs(u128::from(cpu.mm(op.src)));
            cpu.set_reg::<u64>(op.dst, mask);
            Ok(())
        },
        Mnemonic::Pmovmskb => |cpu, op| mask(cpu, op, lanes::byte_signs),
        Mnemonic::Movmskps => |cpu, op| mask(cpu, op, lanes::lane_signs::<u32>),
        Mnemonic::Movmskpd => |cpu, op| mask(cpu, op, lanes::lane_signs::<u64>),
        _ => return None,
    };
    Some(handler)
}

#[inline(always)]
fn mask(cpu: &mut Cpu, op: &Op, f: impl Fn(u128) -> u64) -> Result {
    debug_assert!(!op.flags.contains(OpFlags::MEM));
    cpu.sse_check()?;
    cpu.set_reg::<u64>(op.dst, f(cpu.xmm(op.src)));
    Ok(())
}
