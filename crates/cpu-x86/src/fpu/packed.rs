//! Packed integer instructions of MMX and SSE.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::crypto;
use super::encoding::{Encoding, Legacy, is_wide};
use super::lanes::{self, Lane};
use crate::cpu::Cpu;
use crate::exception::Result;
use crate::flags::bits;
use crate::op::{Handler, Op, OpFlags};

/// Whether the instruction is the MMX form: one of its registers is an MMX register.
pub(super) fn uses_mmx(insn: &Instruction) -> bool {
    (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Register && insn.op_register(i).is_mm())
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
/// `mnemonic` is the legacy form's.
pub(super) fn select<E: Encoding>(insn: &Instruction, mnemonic: Mnemonic) -> Option<Handler> {
    let mmx = uses_mmx(insn);
    select_arithmetic::<E>(mnemonic, mmx)
        .or_else(|| select_compare::<E>(mnemonic, mmx))
        .or_else(|| select_rearranging::<E>(mnemonic, mmx))
        .or_else(|| select_shift::<E>(insn, mnemonic, mmx))
        .or_else(|| select_sse4::<E>(mnemonic))
        .or_else(|| select_crypto::<E>(mnemonic))
        .or_else(|| select_test::<E>(mnemonic))
}

/// A handler for both forms of an instruction.
macro_rules! both {
    ($mmx:expr, $f:expr) => {
        if $mmx { |cpu, op| on_mmx(cpu, op, $f) } else { |cpu, op| E::binary(cpu, op, $f) }
    };
}

fn select_arithmetic<E: Encoding>(mnemonic: Mnemonic, mmx: bool) -> Option<Handler> {
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

fn select_compare<E: Encoding>(mnemonic: Mnemonic, mmx: bool) -> Option<Handler> {
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
        Andps | Andpd => |cpu, op| E::binary(cpu, op, |a, b| a & b),
        Andnps | Andnpd => |cpu, op| E::binary(cpu, op, |a, b| !a & b),
        Orps | Orpd => |cpu, op| E::binary(cpu, op, |a, b| a | b),
        Xorps | Xorpd => |cpu, op| E::binary(cpu, op, |a, b| a ^ b),
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
                E::binary(cpu, op, |$a, $b| {
                    let $width = 16;
                    $f
                })
            }
        }
    };
}

fn select_rearranging<E: Encoding>(mnemonic: Mnemonic, mmx: bool) -> Option<Handler> {
    use Mnemonic::*;
    use lanes::{horizontal, interleave, pack};
    let handler: Handler = match mnemonic {
        Packsswb => sized!(mmx, on_mmx, |a, b, w| pack::<i16, i8>(a, b, w)),
        Packssdw => sized!(mmx, on_mmx, |a, b, w| pack::<i32, i16>(a, b, w)),
        Packuswb => sized!(mmx, on_mmx, |a, b, w| pack::<i16, u8>(a, b, w)),
        Packusdw => |cpu, op| E::binary(cpu, op, |a, b| pack::<i32, u16>(a, b, 16)),
        Punpcklbw => sized!(mmx, on_mmx_low, |a, b, w| interleave::<u8>(a, b, w, false)),
        Punpcklwd => sized!(mmx, on_mmx_low, |a, b, w| interleave::<u16>(a, b, w, false)),
        Punpckldq => sized!(mmx, on_mmx_low, |a, b, w| interleave::<u32>(a, b, w, false)),
        Punpckhbw => sized!(mmx, on_mmx, |a, b, w| interleave::<u8>(a, b, w, true)),
        Punpckhwd => sized!(mmx, on_mmx, |a, b, w| interleave::<u16>(a, b, w, true)),
        Punpckhdq => sized!(mmx, on_mmx, |a, b, w| interleave::<u32>(a, b, w, true)),
        Unpcklps => |cpu, op| E::binary(cpu, op, |a, b| interleave::<u32>(a, b, 16, false)),
        Unpckhps => |cpu, op| E::binary(cpu, op, |a, b| interleave::<u32>(a, b, 16, true)),
        Punpcklqdq | Unpcklpd => |cpu, op| E::binary(cpu, op, |a, b| a & HALF | b << 64),
        Punpckhqdq | Unpckhpd => |cpu, op| E::binary(cpu, op, |a, b| a >> 64 | b & !HALF),
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
        Palignr => |cpu, op| E::binary(cpu, op, |a, b| lanes::align_right(a, b, 16, op.imm as u8)),
        Pshufw => |cpu, op| on_mmx(cpu, op, |_, b| lanes::shuffle4::<u16>(b, op.imm as u8)),
        Pshufd => |cpu, op| E::binary(cpu, op, |_, b| lanes::shuffle4::<u32>(b, op.imm as u8)),
        Pshuflw => {
            |cpu, op| E::binary(cpu, op, |_, b| b & !HALF | lanes::shuffle4::<u16>(b, op.imm as u8))
        }
        Pshufhw => |cpu, op| {
            E::binary(cpu, op, |_, b| {
                b & HALF | lanes::shuffle4::<u16>(b >> 64, op.imm as u8) << 64
            })
        },
        Shufps => |cpu, op| {
            E::binary(cpu, op, |a, b| {
                let low = lanes::shuffle4::<u32>(a, op.imm as u8);
                let high = lanes::shuffle4::<u32>(b, op.imm as u8);
                low & HALF | high & !HALF
            })
        },
        Shufpd => |cpu, op| {
            E::binary_imm(cpu, op, 2, |a, b, imm| {
                let (low, high) = (a >> (64 * (imm & 1)), b >> (64 * (imm >> 1 & 1)));
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
fn select_shift<E: Encoding>(insn: &Instruction, mnemonic: Mnemonic, mmx: bool) -> Option<Handler> {
    let last = insn.op_count().saturating_sub(1);
    let immediate = insn.op_kind(last) == OpKind::Immediate8;
    macro_rules! shift {
        ($f:expr) => {
            match (mmx, immediate) {
                (true, true) => |cpu, op| shift_mmx(cpu, op, $f),
                (false, true) => |cpu, op| E::shift_imm(cpu, op, $f),
                (true, false) => |cpu, op| on_mmx(cpu, op, |a, b| $f(a, b as u64)),
                (false, false) => |cpu, op| E::shift(cpu, op, $f),
            }
        };
    }
    let handler: Handler = match mnemonic {
        Mnemonic::Psllw => shift!(lanes::shift_left::<u16>),
        Mnemonic::Pslld => shift!(lanes::shift_left::<u32>),
        Mnemonic::Psllq => shift!(lanes::shift_left::<u64>),
        Mnemonic::Psrlw => shift!(lanes::shift_right::<u16>),
        Mnemonic::Psrld => shift!(lanes::shift_right::<u32>),
        Mnemonic::Psrlq => shift!(lanes::shift_right::<u64>),
        Mnemonic::Psraw => shift!(lanes::shift_right_sign::<i16>),
        Mnemonic::Psrad => shift!(lanes::shift_right_sign::<i32>),
        Mnemonic::Pslldq => |cpu, op| {
            E::shift_imm(cpu, op, |a, bytes| if bytes > 15 { 0 } else { a << (bytes * 8) })
        },
        Mnemonic::Psrldq => |cpu, op| {
            E::shift_imm(cpu, op, |a, bytes| if bytes > 15 { 0 } else { a >> (bytes * 8) })
        },
        _ => return None,
    };
    Some(handler)
}

#[inline(always)]
fn shift_mmx(cpu: &mut Cpu, op: &Op, f: impl Fn(u128, u64) -> u128) -> Result {
    cpu.mmx_check()?;
    cpu.enter_mmx();
    let a = cpu.mm(op.dst);
    cpu.set_mm(op.dst, f(u128::from(a), op.imm & 0xff) as u64);
    Ok(())
}

fn select_sse4<E: Encoding>(mnemonic: Mnemonic) -> Option<Handler> {
    use Mnemonic::*;
    let handler: Handler = match mnemonic {
        Pcmpeqq => |cpu, op| E::binary(cpu, op, |a, b| lanes::compare::<u64>(a, b, |x, y| x == y)),
        Pcmpgtq => |cpu, op| E::binary(cpu, op, |a, b| lanes::compare::<i64>(a, b, |x, y| x > y)),
        Pminsb => |cpu, op| E::binary(cpu, op, |a, b| i8::zip(a, b, Ord::min)),
        Pminsd => |cpu, op| E::binary(cpu, op, |a, b| i32::zip(a, b, Ord::min)),
        Pminuw => |cpu, op| E::binary(cpu, op, |a, b| u16::zip(a, b, Ord::min)),
        Pminud => |cpu, op| E::binary(cpu, op, |a, b| u32::zip(a, b, Ord::min)),
        Pmaxsb => |cpu, op| E::binary(cpu, op, |a, b| i8::zip(a, b, Ord::max)),
        Pmaxsd => |cpu, op| E::binary(cpu, op, |a, b| i32::zip(a, b, Ord::max)),
        Pmaxuw => |cpu, op| E::binary(cpu, op, |a, b| u16::zip(a, b, Ord::max)),
        Pmaxud => |cpu, op| E::binary(cpu, op, |a, b| u32::zip(a, b, Ord::max)),
        Pmulld => |cpu, op| E::binary(cpu, op, |a, b| u32::zip(a, b, u32::wrapping_mul)),
        Pmuldq => |cpu, op| E::binary(cpu, op, lanes::multiply_even::<i32>),
        Phminposuw => |cpu, op| E::binary(cpu, op, |_, b| lanes::min_position(b)),
        Mpsadbw => |cpu, op| E::binary_imm(cpu, op, 3, lanes::multiple_sum_differences),
        Pblendw => |cpu, op| E::binary(cpu, op, |a, b| lanes::blend::<u16>(a, b, op.imm as u8)),
        Blendps => |cpu, op| E::binary_imm(cpu, op, 4, lanes::blend::<u32>),
        Blendpd => |cpu, op| E::binary_imm(cpu, op, 2, lanes::blend::<u64>),
        Pmovsxbw => |cpu, op| E::widen::<u64>(cpu, op, lanes::extend::<i8, i16>),
        Pmovsxbd => |cpu, op| E::widen::<u32>(cpu, op, lanes::extend::<i8, i32>),
        Pmovsxbq => |cpu, op| E::widen::<u16>(cpu, op, lanes::extend::<i8, i64>),
        Pmovsxwd => |cpu, op| E::widen::<u64>(cpu, op, lanes::extend::<i16, i32>),
        Pmovsxwq => |cpu, op| E::widen::<u32>(cpu, op, lanes::extend::<i16, i64>),
        Pmovsxdq => |cpu, op| E::widen::<u64>(cpu, op, lanes::extend::<i32, i64>),
        Pmovzxbw => |cpu, op| E::widen::<u64>(cpu, op, lanes::extend::<u8, i16>),
        Pmovzxbd => |cpu, op| E::widen::<u32>(cpu, op, lanes::extend::<u8, i32>),
        Pmovzxbq => |cpu, op| E::widen::<u16>(cpu, op, lanes::extend::<u8, i64>),
        Pmovzxwd => |cpu, op| E::widen::<u64>(cpu, op, lanes::extend::<u16, i32>),
        Pmovzxwq => |cpu, op| E::widen::<u32>(cpu, op, lanes::extend::<u16, i64>),
        Pmovzxdq => |cpu, op| E::widen::<u64>(cpu, op, lanes::extend::<u32, i64>),
        _ => return None,
    };
    Some(handler)
}

/// AES and carry-less multiplication.
fn select_crypto<E: Encoding>(mnemonic: Mnemonic) -> Option<Handler> {
    use Mnemonic::*;
    let handler: Handler = match mnemonic {
        Aesenc => |cpu, op| E::binary(cpu, op, |a, b| crypto::aes_encrypt(a, b, false)),
        Aesenclast => |cpu, op| E::binary(cpu, op, |a, b| crypto::aes_encrypt(a, b, true)),
        Aesdec => |cpu, op| E::binary(cpu, op, |a, b| crypto::aes_decrypt(a, b, false)),
        Aesdeclast => |cpu, op| E::binary(cpu, op, |a, b| crypto::aes_decrypt(a, b, true)),
        Aesimc => |cpu, op| E::binary(cpu, op, |_, b| crypto::aes_unmix(b)),
        Aeskeygenassist => {
            |cpu, op| E::binary_imm(cpu, op, 0, |_, b, imm| crypto::aes_key_assist(b, imm))
        }
        Pclmulqdq => |cpu, op| E::binary_imm(cpu, op, 0, crypto::carryless_multiply),
        _ => return None,
    };
    Some(handler)
}

/// What only legacy encodings have: SHA, and blends by the sign bits in XMM0.
pub(super) fn select_legacy(mnemonic: Mnemonic) -> Option<Handler> {
    use Mnemonic::*;
    // SHA does not care about alignment.
    fn apply(cpu: &mut Cpu, op: &Op, f: impl FnOnce(u128, u128, u8) -> u128) -> Result {
        cpu.sse_check()?;
        let b = cpu.xmm_source_low::<u128>(op)?;
        cpu.set_xmm(op.dst, f(cpu.xmm(op.dst), b, op.imm as u8));
        Ok(())
    }
    let handler: Handler = match mnemonic {
        Pblendvb => blend_variable::<u8>,
        Blendvps => blend_variable::<u32>,
        Blendvpd => blend_variable::<u64>,
        Sha1rnds4 => |cpu, op| apply(cpu, op, crypto::sha1_rounds),
        Sha1nexte => |cpu, op| apply(cpu, op, |a, b, _| crypto::sha1_next(a, b)),
        Sha1msg1 => |cpu, op| apply(cpu, op, |a, b, _| crypto::sha1_message1(a, b)),
        Sha1msg2 => |cpu, op| apply(cpu, op, |a, b, _| crypto::sha1_message2(a, b)),
        Sha256rnds2 => |cpu, op| {
            let keys = cpu.xmm(0);
            apply(cpu, op, |a, b, _| crypto::sha256_rounds(a, b, keys))
        },
        Sha256msg1 => |cpu, op| apply(cpu, op, |a, b, _| crypto::sha256_message1(a, b)),
        Sha256msg2 => |cpu, op| apply(cpu, op, |a, b, _| crypto::sha256_message2(a, b)),
        _ => return None,
    };
    Some(handler)
}

/// Blends by the sign bits in XMM0.
fn blend_variable<T: Lane>(cpu: &mut Cpu, op: &Op) -> Result {
    let mask = cpu.xmm(0);
    Legacy::binary(cpu, op, |a, b| lanes::blend_variable::<T>(a, b, mask))
}

fn select_test<E: Encoding>(mnemonic: Mnemonic) -> Option<Handler> {
    (mnemonic == Mnemonic::Ptest).then_some(|cpu, op| test::<E>(cpu, op, u128::MAX))
}

/// PTEST: ZF if the operands have no bit of `mask` in common, CF if the source has none beyond the first.
pub(super) fn test<E: Encoding>(cpu: &mut Cpu, op: &Op, mask: u128) -> Result {
    E::check(cpu)?;
    let [a, b] = E::compared(cpu, op)?;
    let none = |f: fn(u128, u128) -> u128| a.iter().zip(b).all(|(&a, b)| f(a, b) & mask == 0);
    let zf = if none(|a, b| a & b) { bits::ZF } else { 0 };
    let cf = if none(|a, b| !a & b) { bits::CF } else { 0 };
    cpu.set_rflags_arith(zf | cf);
    Ok(())
}

/// PMOVMSKB, MOVMSKPS and MOVMSKPD.
pub(super) fn select_masks<E: Encoding>(insn: &Instruction, mnemonic: Mnemonic) -> Option<Handler> {
    let handler: Handler = match mnemonic {
        Mnemonic::Pmovmskb if uses_mmx(insn) => |cpu, op| {
            cpu.mmx_check()?;
            cpu.enter_mmx();
            let mask = lanes::byte_signs(u128::from(cpu.mm(op.src)));
            cpu.set_reg::<u64>(op.dst, mask);
            Ok(())
        },
        Mnemonic::Pmovmskb => |cpu, op| mask::<E>(cpu, op, 16, lanes::byte_signs),
        Mnemonic::Movmskps => |cpu, op| mask::<E>(cpu, op, 4, lanes::lane_signs::<u32>),
        Mnemonic::Movmskpd => |cpu, op| mask::<E>(cpu, op, 2, lanes::lane_signs::<u64>),
        _ => return None,
    };
    Some(handler)
}

/// The sign bits of all lanes, of which each half has `count`.
#[inline(always)]
fn mask<E: Encoding>(cpu: &mut Cpu, op: &Op, count: u32, f: impl Fn(u128) -> u64) -> Result {
    debug_assert!(!op.flags.contains(OpFlags::MEM));
    E::check(cpu)?;
    let [low, high] = cpu.ymm(op.src);
    let high = if is_wide(op) { f(high) << count } else { 0 };
    cpu.set_reg::<u64>(op.dst, f(low) | high);
    Ok(())
}
