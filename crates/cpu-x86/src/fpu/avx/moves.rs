//! VEX-encoded moves: whole registers and parts, inserts and extracts, broadcasts, masked moves and
//! gathers.

use iced_x86::{Code, Instruction, Mnemonic};

use super::super::encoding::{Ymm, is_wide};
use super::super::lanes::{self, Lane};
use super::super::moves::{masked_store, stored_mxcsr};
use crate::cpu::Cpu;
use crate::exception::{Exception, Result};
use crate::host::Access;
use crate::int::Int;
use crate::op::{Handler, Op, OpFlags};

/// The lower half of a register.
const HALF: u128 = u64::MAX as u128;

/// Finds the handler of a move.
pub(super) fn select(insn: &Instruction) -> Option<Handler> {
    select_whole(insn.mnemonic())
        .or_else(|| select_half(insn.mnemonic()))
        .or_else(|| select_general(insn.code()))
        .or_else(|| select_broadcast(insn.mnemonic()))
        .or_else(|| select_masked(insn.mnemonic()))
        .or_else(|| select_gather(insn.mnemonic()))
        .or_else(|| select_control(insn.mnemonic()))
}

/// #GP(0) unless the memory operand is aligned to its size.
fn check_aligned(cpu: &Cpu, op: &Op, access: Access) -> Result {
    let size = if is_wide(op) { 32 } else { 16 };
    let linear = cpu.linear(op.seg, cpu.ea(op), size, access)?;
    if linear & (size as u64 - 1) != 0 {
        return Err(Exception::GP0);
    }
    Ok(())
}

fn whole<const ALIGNED: bool>(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.avx_check()?;
    if op.flags.contains(OpFlags::MEM_DST) {
        if ALIGNED {
            check_aligned(cpu, op, Access::Write)?;
        }
        return cpu.store_ymm(op, cpu.ymm(op.dst));
    }
    if ALIGNED && op.flags.contains(OpFlags::MEM) {
        check_aligned(cpu, op, Access::Read)?;
    }
    map(cpu, op, |v| v)
}

/// `f` of each half of the only source.
#[inline(always)]
fn map(cpu: &mut Cpu, op: &Op, f: impl Fn(u128) -> u128) -> Result {
    cpu.avx_check()?;
    let [low, high] = cpu.ymm_source(op)?;
    cpu.set_ymm(op.dst, [f(low), if is_wide(op) { f(high) } else { 0 }]);
    Ok(())
}

fn select_whole(mnemonic: Mnemonic) -> Option<Handler> {
    use Mnemonic::*;
    let handler: Handler = match mnemonic {
        Vmovaps | Vmovapd | Vmovdqa | Vmovntps | Vmovntpd | Vmovntdq | Vmovntdqa => whole::<true>,
        Vmovups | Vmovupd | Vmovdqu | Vlddqu => whole::<false>,
        Vmovsldup => |cpu, op| map(cpu, op, |v| lanes::shuffle4::<u32>(v, 0b10_10_00_00)),
        Vmovshdup => |cpu, op| map(cpu, op, |v| lanes::shuffle4::<u32>(v, 0b11_11_01_01)),
        Vmovddup => |cpu, op| {
            if is_wide(op) {
                return map(cpu, op, |v| v & HALF | v << 64);
            }
            cpu.avx_check()?;
            let low = u128::from(cpu.vex_source_low::<u64>(op)?);
            cpu.set_ymm(op.dst, [low << 64 | low, 0]);
            Ok(())
        },
        _ => return None,
    };
    Some(handler)
}

/// Moves of one half of an XMM register; the other comes from the first source.
fn select_half(mnemonic: Mnemonic) -> Option<Handler> {
    use Mnemonic::*;
    let handler: Handler = match mnemonic {
        Vmovlps | Vmovlpd => |cpu, op| {
            cpu.avx_check()?;
            if op.flags.contains(OpFlags::MEM_DST) {
                return cpu.store_op(op, cpu.xmm(op.dst) as u64);
            }
            let low = u128::from(cpu.load_op::<u64>(op)?);
            cpu.set_ymm(op.dst, [cpu.xmm(op.src) & !HALF | low, 0]);
            Ok(())
        },
        Vmovhps | Vmovhpd => |cpu, op| {
            cpu.avx_check()?;
            if op.flags.contains(OpFlags::MEM_DST) {
                return cpu.store_op(op, (cpu.xmm(op.dst) >> 64) as u64);
            }
            let high = u128::from(cpu.load_op::<u64>(op)?);
            cpu.set_ymm(op.dst, [cpu.xmm(op.src) & HALF | high << 64, 0]);
            Ok(())
        },
        Vmovhlps => |cpu, op| {
            cpu.avx_check()?;
            let value = cpu.xmm(op.src) & !HALF | cpu.xmm(op.src2) >> 64;
            cpu.set_ymm(op.dst, [value, 0]);
            Ok(())
        },
        Vmovlhps => |cpu, op| {
            cpu.avx_check()?;
            let value = cpu.xmm(op.src) & HALF | cpu.xmm(op.src2) << 64;
            cpu.set_ymm(op.dst, [value, 0]);
            Ok(())
        },
        Vmovss => scalar::<u32>,
        Vmovsd => scalar::<u64>,
        _ => return None,
    };
    Some(handler)
}

/// Loads clear the rest of the register; moves between registers take it from the first source.
fn scalar<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.avx_check()?;
    if op.flags.contains(OpFlags::MEM_DST) {
        return cpu.store_op(op, T::from_u128(cpu.xmm(op.dst)));
    }
    let value = if op.flags.contains(OpFlags::MEM) {
        cpu.load_op::<T>(op)?.to_u128()
    } else {
        let low = T::ONES.to_u128();
        cpu.xmm(op.src) & !low | cpu.xmm(op.src2) & low
    };
    cpu.set_ymm(op.dst, [value, 0]);
    Ok(())
}

/// Moves between XMM registers and general registers or memory; inserts and extracts.
fn select_general(code: Code) -> Option<Handler> {
    use Code::*;
    let handler: Handler = match code {
        VEX_Vmovd_xmm_rm32 => from_general::<u32>,
        VEX_Vmovq_xmm_rm64 => from_general::<u64>,
        VEX_Vmovq_xmm_xmmm64 => |cpu, op| {
            cpu.avx_check()?;
            let value = cpu.vex_source_low::<u64>(op)?;
            cpu.set_ymm(op.dst, [value.into(), 0]);
            Ok(())
        },
        VEX_Vmovq_xmmm64_xmm => |cpu, op| {
            cpu.avx_check()?;
            if op.flags.contains(OpFlags::MEM_DST) {
                return cpu.store_op(op, cpu.xmm(op.dst) as u64);
            }
            cpu.set_ymm(op.dst, [cpu.xmm(op.src) & HALF, 0]);
            Ok(())
        },
        VEX_Vmovd_rm32_xmm => |cpu, op| extract::<u32>(cpu, op, 0),
        VEX_Vmovq_rm64_xmm => |cpu, op| extract::<u64>(cpu, op, 0),
        VEX_Vpextrb_r32m8_xmm_imm8 | VEX_Vpextrb_r64m8_xmm_imm8 => {
            |cpu, op| extract::<u8>(cpu, op, op.imm)
        }
        VEX_Vpextrw_r32_xmm_imm8
        | VEX_Vpextrw_r64_xmm_imm8
        | VEX_Vpextrw_r32m16_xmm_imm8
        | VEX_Vpextrw_r64m16_xmm_imm8 => |cpu, op| extract::<u16>(cpu, op, op.imm),
        VEX_Vpextrd_rm32_xmm_imm8
        | VEX_Vextractps_rm32_xmm_imm8
        | VEX_Vextractps_r64m32_xmm_imm8 => |cpu, op| extract::<u32>(cpu, op, op.imm),
        VEX_Vpextrq_rm64_xmm_imm8 => |cpu, op| extract::<u64>(cpu, op, op.imm),
        VEX_Vpinsrb_xmm_xmm_r32m8_imm8 | VEX_Vpinsrb_xmm_xmm_r64m8_imm8 => insert::<u8>,
        VEX_Vpinsrw_xmm_xmm_r32m16_imm8 | VEX_Vpinsrw_xmm_xmm_r64m16_imm8 => insert::<u16>,
        VEX_Vpinsrd_xmm_xmm_rm32_imm8 => insert::<u32>,
        VEX_Vpinsrq_xmm_xmm_rm64_imm8 => insert::<u64>,
        VEX_Vinsertps_xmm_xmm_xmmm32_imm8 => insert_single,
        _ => return None,
    };
    Some(handler)
}

fn from_general<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.avx_check()?;
    let value = cpu.gpr_source::<T>(op)?;
    cpu.set_ymm(op.dst, [value.to_u128(), 0]);
    Ok(())
}

#[inline(always)]
fn extract<T: Int>(cpu: &mut Cpu, op: &Op, index: u64) -> Result {
    cpu.avx_check()?;
    let shift = (index as u32 & (128 / T::BITS - 1)) * T::BITS;
    if op.flags.contains(OpFlags::MEM_DST) {
        return cpu.store_op(op, T::from_u128(cpu.xmm(op.dst) >> shift));
    }
    let value = T::from_u128(cpu.xmm(op.src) >> shift);
    cpu.set_reg::<u64>(op.dst, value.to_u64());
    Ok(())
}

fn insert<T: Int + Lane>(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.avx_check()?;
    let value = if op.flags.contains(OpFlags::MEM) {
        cpu.load_op::<T>(op)?
    } else {
        <T as Int>::from_u64(cpu.gpr(op.src2))
    };
    let index = op.imm as u32 & (128 / <T as Lane>::BITS - 1);
    cpu.set_ymm(op.dst, [lanes::put(cpu.xmm(op.src), index, value), 0]);
    Ok(())
}

fn insert_single(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.avx_check()?;
    let imm = op.imm as u32;
    let value = if op.flags.contains(OpFlags::MEM) {
        cpu.load_op::<u32>(op)?
    } else {
        lanes::get(cpu.xmm(op.src2), imm >> 6 & 3)
    };
    let inserted = lanes::put(cpu.xmm(op.src), imm >> 4 & 3, value);
    let result =
        (0..4).filter(|i| imm >> i & 1 != 0).fold(inserted, |v, i| lanes::put::<u32>(v, i, 0));
    cpu.set_ymm(op.dst, [result, 0]);
    Ok(())
}

fn select_broadcast(mnemonic: Mnemonic) -> Option<Handler> {
    use Mnemonic::*;
    let handler: Handler = match mnemonic {
        Vbroadcastss | Vpbroadcastd => broadcast::<u32>,
        Vbroadcastsd | Vpbroadcastq => broadcast::<u64>,
        Vpbroadcastb => broadcast::<u8>,
        Vpbroadcastw => broadcast::<u16>,
        Vbroadcastf128 | Vbroadcasti128 => broadcast::<u128>,
        Vinsertf128 | Vinserti128 => |cpu, op| {
            cpu.avx_check()?;
            let value = cpu.vex_source_low::<u128>(op)?;
            let mut result = cpu.ymm(op.src);
            result[op.imm as usize & 1] = value;
            cpu.set_ymm(op.dst, result);
            Ok(())
        },
        Vextractf128 | Vextracti128 => |cpu, op| {
            cpu.avx_check()?;
            if op.flags.contains(OpFlags::MEM_DST) {
                let value = cpu.ymm(op.dst)[op.imm as usize & 1];
                return cpu.store_op(op, value);
            }
            cpu.set_ymm(op.dst, [cpu.ymm(op.src)[op.imm as usize & 1], 0]);
            Ok(())
        },
        _ => return None,
    };
    Some(handler)
}

fn broadcast<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.avx_check()?;
    let mut value = cpu.vex_source_low::<T>(op)?.to_u128();
    let mut bits = T::BITS;
    while bits < 128 {
        value |= value << bits;
        bits *= 2;
    }
    cpu.set_ymm(op.dst, [value, if is_wide(op) { value } else { 0 }]);
    Ok(())
}

/// Elements of an instruction as wide as `op` is.
fn count<T: Lane>(op: &Op) -> u32 {
    if is_wide(op) { 256 / T::BITS } else { 128 / T::BITS }
}

fn element<T: Lane>(v: &Ymm, index: u32) -> T {
    let half = 128 / T::BITS;
    lanes::get(v[(index / half) as usize & 1], index % half)
}

fn put_element<T: Lane>(v: &mut Ymm, index: u32, value: T) {
    let half = 128 / T::BITS;
    let part = &mut v[(index / half) as usize & 1];
    *part = lanes::put(*part, index % half, value);
}

/// Whether the sign bit of element `index` is set.
fn is_selected<T: Lane>(mask: &Ymm, index: u32) -> bool {
    element::<T>(mask, index).to_bits() >> (T::BITS - 1) != 0
}

fn select_masked(mnemonic: Mnemonic) -> Option<Handler> {
    use Mnemonic::*;
    let handler: Handler = match mnemonic {
        Vmaskmovps | Vpmaskmovd => |cpu, op| cpu.unaligned(|cpu| masked_move::<u32>(cpu, op)),
        Vmaskmovpd | Vpmaskmovq => |cpu, op| cpu.unaligned(|cpu| masked_move::<u64>(cpu, op)),
        Vmaskmovdqu => |cpu, op| {
            cpu.avx_check()?;
            masked_store(cpu, op, cpu.xmm(op.dst), cpu.xmm(op.src), 16)
        },
        _ => return None,
    };
    Some(handler)
}

/// VMASKMOVPS and its like: elements whose mask has its sign clear are not accessed.
fn masked_move<T: Int + Lane>(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.avx_check()?;
    let store = op.flags.contains(OpFlags::MEM_DST);
    let mask = cpu.ymm(if store { op.dst } else { op.src });
    let bytes = T::BYTES as u64;
    let selected: Vec<u32> = (0..count::<T>(op)).filter(|&n| is_selected::<T>(&mask, n)).collect();
    if store {
        let data = cpu.ymm(op.src);
        for &n in &selected {
            let offset = cpu.element_offset(op, u64::from(n) * bytes);
            cpu.probe_write(op.seg, offset, T::BYTES)?;
        }
        for n in selected {
            let offset = cpu.element_offset(op, u64::from(n) * bytes);
            cpu.store(op.seg, offset, element::<T>(&data, n))?;
        }
        return Ok(());
    }
    let mut result = [0; 2];
    for n in selected {
        let offset = cpu.element_offset(op, u64::from(n) * bytes);
        put_element(&mut result, n, cpu.load::<T>(op.seg, offset)?);
    }
    cpu.set_ymm(op.dst, result);
    Ok(())
}

fn select_gather(mnemonic: Mnemonic) -> Option<Handler> {
    use Mnemonic::*;
    let handler: Handler = match mnemonic {
        Vgatherdps | Vpgatherdd => |cpu, op| cpu.unaligned(|cpu| gather::<i32, u32>(cpu, op)),
        Vgatherdpd | Vpgatherdq => |cpu, op| cpu.unaligned(|cpu| gather::<i32, u64>(cpu, op)),
        Vgatherqps | Vpgatherqd => |cpu, op| cpu.unaligned(|cpu| gather::<i64, u32>(cpu, op)),
        Vgatherqpd | Vpgatherqq => |cpu, op| cpu.unaligned(|cpu| gather::<i64, u64>(cpu, op)),
        _ => return None,
    };
    Some(handler)
}

/// VPGATHERDD and its like, with indices of type `I`. Elements that are done have their mask cleared, so
/// that after a fault the instruction goes on with the next one. The index register is `src2`.
fn gather<I: Lane, T: Int + Lane>(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.avx_check()?;
    let elements = count::<I>(op).min(count::<T>(op));
    let indices = cpu.ymm(op.src2);
    let mut mask = cpu.ymm(op.src);
    let mut result = cpu.ymm(op.dst);
    let base = cpu.ea(op);
    for n in 0..elements {
        if is_selected::<T>(&mask, n) {
            let index = element::<I>(&indices, n).to_i64() as u64;
            let offset = base.wrapping_add(index << (op.scale & 3));
            let offset = offset & crate::reg::addr_mask(op.addr_size);
            match cpu.load::<T>(op.seg, offset) {
                Ok(value) => put_element(&mut result, n, value),
                Err(fault) => {
                    cpu.set_ymm(op.dst, result);
                    cpu.set_ymm(op.src, mask);
                    return Err(fault);
                }
            }
        }
        put_element(&mut mask, n, <T as Lane>::ZERO);
    }
    // What lies beyond the elements is zero.
    let bits = elements * <T as Lane>::BITS;
    let low = if bits < 128 { result[0] & ((1 << bits) - 1) } else { result[0] };
    cpu.set_ymm(op.dst, [low, if bits > 128 { result[1] } else { 0 }]);
    cpu.set_ymm(op.src, [0, 0]);
    Ok(())
}

fn select_control(mnemonic: Mnemonic) -> Option<Handler> {
    use Mnemonic::*;
    let handler: Handler = match mnemonic {
        Vzeroupper => |cpu, _| {
            cpu.avx_check()?;
            let count = if cpu.mode.is_64() { 16 } else { 8 };
            cpu.fpu.ymm_high[..count].fill(0);
            Ok(())
        },
        Vzeroall => |cpu, _| {
            cpu.avx_check()?;
            let count = if cpu.mode.is_64() { 16 } else { 8 };
            cpu.fpu.ymm_high[..count].fill(0);
            cpu.fpu.xmm[..count].fill(0);
            Ok(())
        },
        Vldmxcsr => |cpu, op| {
            cpu.avx_check()?;
            cpu.fpu.mxcsr = stored_mxcsr(cpu, op)?;
            Ok(())
        },
        Vstmxcsr => |cpu, op| {
            cpu.avx_check()?;
            cpu.store_op(op, cpu.fpu.mxcsr)
        },
        _ => return None,
    };
    Some(handler)
}
