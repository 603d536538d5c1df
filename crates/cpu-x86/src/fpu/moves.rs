//! Moves of MMX and SSE: whole registers and parts, inserts and extracts, masked and non-temporal
//! stores; MXCSR and EMMS.

use iced_x86::{Code, Instruction, Mnemonic};

use super::encoding::Legacy;
use super::lanes;
use super::packed::{select_masks, uses_mmx};
use crate::cpu::Cpu;
use crate::exception::{Exception, Result};
use crate::int::Int;
use crate::op::{Handler, Op, OpFlags};
use crate::reg::{RDI, addr_mask};

/// Finds the handler of a move.
pub(super) fn select(insn: &Instruction) -> Option<Handler> {
    select_whole(insn)
        .or_else(|| select_half(insn))
        .or_else(|| select_scalar(insn))
        .or_else(|| select_general(insn.code()))
        .or_else(|| select_field(insn.code()))
        .or_else(|| select_mmx_move(insn.code()))
        .or_else(|| select_masks::<Legacy>(insn, insn.mnemonic()))
        .or_else(|| select_control(insn))
}

/// Moves of all 128 bits.
fn select_whole(insn: &Instruction) -> Option<Handler> {
    use Mnemonic::*;
    let handler: Handler = match insn.mnemonic() {
        Movaps | Movapd | Movdqa => |cpu, op| {
            cpu.sse_check()?;
            if op.flags.contains(OpFlags::MEM_DST) {
                return cpu.store_aligned(op, cpu.xmm(op.dst));
            }
            let in_memory = op.flags.contains(OpFlags::MEM);
            let value = if in_memory { cpu.load_aligned(op)? } else { cpu.xmm(op.src) };
            cpu.set_xmm(op.dst, value);
            Ok(())
        },
        Movups | Movupd | Movdqu | Lddqu => |cpu, op| {
            cpu.sse_check()?;
            if op.flags.contains(OpFlags::MEM_DST) {
                return cpu.store_op(op, cpu.xmm(op.dst));
            }
            let value = cpu.xmm_source_low::<u128>(op)?;
            cpu.set_xmm(op.dst, value);
            Ok(())
        },
        Movntps | Movntpd | Movntdq => |cpu, op| {
            cpu.sse_check()?;
            cpu.store_aligned(op, cpu.xmm(op.dst))
        },
        Movntdqa => |cpu, op| {
            cpu.sse_check()?;
            let value = cpu.load_aligned(op)?;
            cpu.set_xmm(op.dst, value);
            Ok(())
        },
        Movsldup => |cpu, op| map(cpu, op, |v| lanes::shuffle4::<u32>(v, 0b10_10_00_00)),
        Movshdup => |cpu, op| map(cpu, op, |v| lanes::shuffle4::<u32>(v, 0b11_11_01_01)),
        Movddup => |cpu, op| {
            cpu.sse_check()?;
            let low = u128::from(cpu.xmm_source_low::<u64>(op)?);
            cpu.set_xmm(op.dst, low << 64 | low);
            Ok(())
        },
        _ => return None,
    };
    Some(handler)
}

#[inline(always)]
fn map(cpu: &mut Cpu, op: &Op, f: impl Fn(u128) -> u128) -> Result {
    cpu.sse_check()?;
    let source = cpu.xmm_source(op)?;
    cpu.set_xmm(op.dst, f(source));
    Ok(())
}

/// Moves of one half of a register to memory or to a half of another.
fn select_half(insn: &Instruction) -> Option<Handler> {
    use Mnemonic::*;
    const LOW: u128 = u64::MAX as u128;
    let handler: Handler = match insn.mnemonic() {
        Movlps | Movlpd => |cpu, op| {
            cpu.sse_check()?;
            if op.flags.contains(OpFlags::MEM_DST) {
                return cpu.store_op(op, cpu.xmm(op.dst) as u64);
            }
            let low = cpu.load_op::<u64>(op)?;
            cpu.set_xmm_low(op.dst, low);
            Ok(())
        },
        Movhps | Movhpd => |cpu, op| {
            cpu.sse_check()?;
            if op.flags.contains(OpFlags::MEM_DST) {
                return cpu.store_op(op, (cpu.xmm(op.dst) >> 64) as u64);
            }
            let high = u128::from(cpu.load_op::<u64>(op)?);
            cpu.set_xmm(op.dst, cpu.xmm(op.dst) & LOW | high << 64);
            Ok(())
        },
        Movhlps => |cpu, op| {
            cpu.sse_check()?;
            cpu.set_xmm_low(op.dst, (cpu.xmm(op.src) >> 64) as u64);
            Ok(())
        },
        Movlhps => |cpu, op| {
            cpu.sse_check()?;
            cpu.set_xmm(op.dst, cpu.xmm(op.dst) & LOW | cpu.xmm(op.src) << 64);
            Ok(())
        },
        _ => return None,
    };
    Some(handler)
}

/// MOVSS, MOVSD, MOVQ and SSE4a's MOVNTSS and MOVNTSD between XMM registers and memory.
fn select_scalar(insn: &Instruction) -> Option<Handler> {
    let handler: Handler = match insn.code() {
        Code::Movss_xmm_xmmm32 | Code::Movss_xmmm32_xmm => scalar::<u32, false>,
        Code::Movsd_xmm_xmmm64 | Code::Movsd_xmmm64_xmm => scalar::<u64, false>,
        Code::Movq_xmm_xmmm64 | Code::Movq_xmmm64_xmm => scalar::<u64, true>,
        Code::Movntss_m32_xmm => scalar::<u32, false>,
        Code::Movntsd_m64_xmm => scalar::<u64, false>,
        _ => return None,
    };
    Some(handler)
}

/// Loads clear the rest of the register; moves between registers do so only for MOVQ.
fn scalar<T: Int, const CLEAR: bool>(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.sse_check()?;
    if op.flags.contains(OpFlags::MEM_DST) {
        return cpu.store_op(op, T::from_u128(cpu.xmm(op.dst)));
    }
    if op.flags.contains(OpFlags::MEM) {
        let value = cpu.load_op::<T>(op)?;
        cpu.set_xmm(op.dst, value.to_u128());
    } else if CLEAR {
        cpu.set_xmm(op.dst, T::from_u128(cpu.xmm(op.src)).to_u128());
    } else {
        cpu.set_xmm_low(op.dst, T::from_u128(cpu.xmm(op.src)));
    }
    Ok(())
}

/// Moves between XMM registers and general registers or memory; inserts and extracts.
fn select_general(code: Code) -> Option<Handler> {
    use Code::*;
    let handler: Handler = match code {
        Movd_xmm_rm32 => from_general::<u32>,
        Movq_xmm_rm64 => from_general::<u64>,
        Movd_rm32_xmm => |cpu, op| extract::<u32>(cpu, op, 0),
        Movq_rm64_xmm => |cpu, op| extract::<u64>(cpu, op, 0),
        Pextrb_r32m8_xmm_imm8 | Pextrb_r64m8_xmm_imm8 => |cpu, op| extract::<u8>(cpu, op, op.imm),
        Pextrw_r32_xmm_imm8
        | Pextrw_r64_xmm_imm8
        | Pextrw_r32m16_xmm_imm8
        | Pextrw_r64m16_xmm_imm8 => |cpu, op| extract::<u16>(cpu, op, op.imm),
        Pextrd_rm32_xmm_imm8 | Extractps_rm32_xmm_imm8 | Extractps_r64m32_xmm_imm8 => {
            |cpu, op| extract::<u32>(cpu, op, op.imm)
        }
        Pextrq_rm64_xmm_imm8 => |cpu, op| extract::<u64>(cpu, op, op.imm),
        Pinsrb_xmm_r32m8_imm8 | Pinsrb_xmm_r64m8_imm8 => |cpu, op| {
            cpu.sse_check()?;
            let value = low_source::<u8>(cpu, op)?;
            cpu.set_xmm(op.dst, lanes::put(cpu.xmm(op.dst), op.imm as u32 & 15, value));
            Ok(())
        },
        Pinsrw_xmm_r32m16_imm8 | Pinsrw_xmm_r64m16_imm8 => |cpu, op| {
            cpu.sse_check()?;
            let value = low_source::<u16>(cpu, op)?;
            cpu.set_xmm(op.dst, lanes::put(cpu.xmm(op.dst), op.imm as u32 & 7, value));
            Ok(())
        },
        Pinsrd_xmm_rm32_imm8 => |cpu, op| {
            cpu.sse_check()?;
            let value = cpu.gpr_source::<u32>(op)?;
            cpu.set_xmm(op.dst, lanes::put(cpu.xmm(op.dst), op.imm as u32 & 3, value));
            Ok(())
        },
        Pinsrq_xmm_rm64_imm8 => |cpu, op| {
            cpu.sse_check()?;
            let value = cpu.gpr_source::<u64>(op)?;
            cpu.set_xmm(op.dst, lanes::put(cpu.xmm(op.dst), op.imm as u32 & 1, value));
            Ok(())
        },
        Insertps_xmm_xmmm32_imm8 => insert_single,
        _ => return None,
    };
    Some(handler)
}

fn from_general<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.sse_check()?;
    let value = cpu.gpr_source::<T>(op)?;
    cpu.set_xmm(op.dst, value.to_u128());
    Ok(())
}

/// The low bits of a general register, whose number is that of a 32- or 64-bit one, or memory.
fn low_source<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<T> {
    if op.flags.contains(OpFlags::MEM) { cpu.load_op(op) } else { Ok(T::from_u64(cpu.gpr(op.src))) }
}

/// One lane of an XMM register to memory or, zero-extended, to a general register.
#[inline(always)]
fn extract<T: Int>(cpu: &mut Cpu, op: &Op, index: u64) -> Result {
    cpu.sse_check()?;
    let shift = (index as u32 & (128 / T::BITS - 1)) * T::BITS;
    if op.flags.contains(OpFlags::MEM_DST) {
        return cpu.store_op(op, T::from_u128(cpu.xmm(op.dst) >> shift));
    }
    let value = T::from_u128(cpu.xmm(op.src) >> shift);
    cpu.set_reg::<u64>(op.dst, value.to_u64());
    Ok(())
}

/// INSERTPS: a lane of the source (or memory) into a lane of the destination, then zeros by mask.
fn insert_single(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.sse_check()?;
    let imm = op.imm as u32;
    let value = if op.flags.contains(OpFlags::MEM) {
        cpu.load_op::<u32>(op)?
    } else {
        lanes::get(cpu.xmm(op.src), imm >> 6 & 3)
    };
    let inserted = lanes::put(cpu.xmm(op.dst), imm >> 4 & 3, value);
    let result =
        (0..4).filter(|i| imm >> i & 1 != 0).fold(inserted, |v, i| lanes::put::<u32>(v, i, 0));
    cpu.set_xmm(op.dst, result);
    Ok(())
}

/// A field of 64 bits: its lowest bit and its mask, from six bits for its length, 64 if that is zero, and
/// six for where it begins. What would be above bit 63 is cut off; the manual leaves it undefined.
fn field(length: u64, index: u64) -> (u64, u64) {
    let length = match length & 63 {
        0 => 64,
        length => length,
    };
    (index & 63, u64::MAX >> (64 - length))
}

/// SSE4a's extraction and insertion of a field. The upper half of the destination becomes undefined.
fn select_field(code: Code) -> Option<Handler> {
    use Code::*;
    let handler: Handler = match code {
        Extrq_xmm_imm8_imm8 => |cpu, op| extract_field(cpu, op, op.imm, op.imm >> 32),
        Extrq_xmm_xmm => |cpu, op| {
            let control = cpu.xmm(op.src) as u64;
            extract_field(cpu, op, control, control >> 8)
        },
        Insertq_xmm_xmm_imm8_imm8 => |cpu, op| insert_field(cpu, op, op.imm, op.imm >> 32),
        Insertq_xmm_xmm => |cpu, op| {
            let control = (cpu.xmm(op.src) >> 64) as u64;
            insert_field(cpu, op, control, control >> 8)
        },
        _ => return None,
    };
    Some(handler)
}

fn extract_field(cpu: &mut Cpu, op: &Op, length: u64, index: u64) -> Result {
    cpu.sse_check()?;
    let (index, mask) = field(length, index);
    cpu.set_xmm(op.dst, u128::from(cpu.xmm(op.dst) as u64 >> index & mask));
    Ok(())
}

fn insert_field(cpu: &mut Cpu, op: &Op, length: u64, index: u64) -> Result {
    cpu.sse_check()?;
    let (index, mask) = field(length, index);
    let value = (cpu.xmm(op.src) as u64 & mask) << index;
    let kept = cpu.xmm(op.dst) as u64 & !(mask << index);
    cpu.set_xmm(op.dst, u128::from(kept | value));
    Ok(())
}

/// Moves from and to MMX registers.
fn select_mmx_move(code: Code) -> Option<Handler> {
    use Code::*;
    let handler: Handler = match code {
        Movd_mm_rm32 => {
            |cpu, op| mmx_load(cpu, op, |cpu, op| Ok(cpu.gpr_source::<u32>(op)?.into()))
        }
        Movq_mm_rm64 => |cpu, op| mmx_load(cpu, op, |cpu, op| cpu.gpr_source::<u64>(op)),
        Movq_mm_mmm64 => |cpu, op| mmx_load(cpu, op, |cpu, op| cpu.mm_source::<u64>(op)),
        Movq_mmm64_mm | Movntq_m64_mm => |cpu, op| {
            cpu.mmx_check()?;
            if op.flags.contains(OpFlags::MEM_DST) {
                cpu.store_op(op, cpu.mm(op.dst))?;
                cpu.enter_mmx();
                return Ok(());
            }
            cpu.enter_mmx();
            cpu.set_mm(op.dst, cpu.mm(op.src));
            Ok(())
        },
        Movd_rm32_mm => mmx_extract::<u32>,
        Movq_rm64_mm => mmx_extract::<u64>,
        Movq2dq_xmm_mm => |cpu, op| {
            mixed_check(cpu)?;
            cpu.enter_mmx();
            cpu.set_xmm(op.dst, u128::from(cpu.mm(op.src)));
            Ok(())
        },
        Movdq2q_mm_xmm => |cpu, op| {
            mixed_check(cpu)?;
            cpu.enter_mmx();
            cpu.set_mm(op.dst, cpu.xmm(op.src) as u64);
            Ok(())
        },
        Pinsrw_mm_r32m16_imm8 | Pinsrw_mm_r64m16_imm8 => |cpu, op| {
            cpu.mmx_check()?;
            let value = low_source::<u16>(cpu, op)?;
            cpu.enter_mmx();
            let old = u128::from(cpu.mm(op.dst));
            cpu.set_mm(op.dst, lanes::put(old, op.imm as u32 & 3, value) as u64);
            Ok(())
        },
        Pextrw_r32_mm_imm8 | Pextrw_r64_mm_imm8 => |cpu, op| {
            cpu.mmx_check()?;
            cpu.enter_mmx();
            let value = cpu.mm(op.src) >> (16 * (op.imm & 3)) & 0xffff;
            cpu.set_reg::<u64>(op.dst, value);
            Ok(())
        },
        _ => return None,
    };
    Some(handler)
}

/// Checks for instructions that use both kinds of registers.
pub(super) fn mixed_check(cpu: &mut Cpu) -> Result {
    cpu.sse_check()?;
    cpu.mmx_check()
}

#[inline(always)]
fn mmx_load(cpu: &mut Cpu, op: &Op, source: impl Fn(&mut Cpu, &Op) -> Result<u64>) -> Result {
    cpu.mmx_check()?;
    let value = source(cpu, op)?;
    cpu.enter_mmx();
    cpu.set_mm(op.dst, value);
    Ok(())
}

fn mmx_extract<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.mmx_check()?;
    if op.flags.contains(OpFlags::MEM_DST) {
        cpu.store_op(op, T::from_u64(cpu.mm(op.dst)))?;
        cpu.enter_mmx();
    } else {
        cpu.enter_mmx();
        cpu.set_reg(op.dst, T::from_u64(cpu.mm(op.src)));
    }
    Ok(())
}

/// Masked stores, MXCSR and EMMS.
fn select_control(insn: &Instruction) -> Option<Handler> {
    use Mnemonic::*;
    let handler: Handler = match insn.mnemonic() {
        Maskmovdqu => |cpu, op| {
            cpu.sse_check()?;
            masked_store(cpu, op, cpu.xmm(op.dst), cpu.xmm(op.src), 16)
        },
        Maskmovq if uses_mmx(insn) => |cpu, op| {
            cpu.mmx_check()?;
            let (data, mask) = (u128::from(cpu.mm(op.dst)), u128::from(cpu.mm(op.src)));
            // Also if the store faults.
            cpu.enter_mmx();
            masked_store(cpu, op, data, mask, 8)
        },
        Ldmxcsr => |cpu, op| {
            cpu.sse_check()?;
            cpu.fpu.mxcsr = stored_mxcsr(cpu, op)?;
            Ok(())
        },
        Stmxcsr => |cpu, op| {
            cpu.sse_check()?;
            cpu.store_op(op, cpu.fpu.mxcsr)
        },
        Emms => |cpu, _| {
            cpu.mmx_check()?;
            cpu.fpu.top = 0;
            cpu.fpu.valid = 0;
            Ok(())
        },
        _ => return None,
    };
    Some(handler)
}

/// MXCSR's new value in memory; #GP(0) if it has bits that do not exist.
pub(super) fn stored_mxcsr(cpu: &mut Cpu, op: &Op) -> Result<u32> {
    let value = cpu.load_op::<u32>(op)?;
    if value & !cpu.limits.mxcsr != 0 { Err(Exception::GP0) } else { Ok(value) }
}

/// Stores the bytes of `data` whose mask byte has its top bit set to `seg:[rDI]`. All of them are
/// known to be writable before the first is written.
pub(super) fn masked_store(cpu: &mut Cpu, op: &Op, data: u128, mask: u128, width: u32) -> Result {
    let base = cpu.gpr(RDI);
    let selected = lanes::byte_signs(mask);
    let offset = |i: u32| base.wrapping_add(u64::from(i)) & addr_mask(op.addr_size);
    // The mask does not keep faults away, as the manuals allow; alignment is that of eight bytes.
    for i in (0..width).step_by(8) {
        cpu.probe_write(op.seg, offset(i), 8)?;
    }
    for i in (0..width).filter(|i| selected >> i & 1 != 0) {
        cpu.store(op.seg, offset(i), lanes::get::<u8>(data, i))?;
    }
    Ok(())
}
