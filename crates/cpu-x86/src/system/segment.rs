//! MOV, PUSH and POP with segment registers, and loads of far pointers.

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use super::{source16, store16};
use crate::cpu::Cpu;
use crate::exception::{Exception, Result};
use crate::int::Int;
use crate::op::{Handler, Op};
use crate::reg::addr_mask;
use crate::segment::{CS, DS, ES, FS, GS, SS};

impl Cpu {
    /// MOV and POP to SS hold off interrupts and debug exceptions until the stack pointer is loaded, too.
    fn shadow_stack_load(&mut self) {
        self.shadow = true;
        self.debug_shadow = true;
    }
}

fn load(cpu: &mut Cpu, op: &Op) -> Result {
    if op.dst == CS {
        return Err(Exception::UD);
    }
    // The register operand comes after the segment register, or is the only one.
    let selector = source16(cpu, op, op.src)?;
    cpu.load_segment(op.dst, selector)?;
    if op.dst == SS {
        cpu.shadow_stack_load();
    }
    Ok(())
}

fn store<const BYTES: u8>(cpu: &mut Cpu, op: &Op) -> Result {
    let index = if op.flags.contains(crate::op::OpFlags::MEM) { op.dst } else { op.src };
    let selector = cpu.seg.get(usize::from(index)).ok_or(Exception::UD)?.selector;
    store16(cpu, op, BYTES, selector)
}

/// PUSH of a segment register: the selector, zero-extended.
fn push<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let selector = cpu.seg.get(usize::from(op.dst)).ok_or(Exception::UD)?.selector;
    cpu.push(T::from_u64(u64::from(selector)))
}

fn pop<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let before = cpu.gpr[4];
    let selector = cpu.pop::<T>()?.to_u64() as u16;
    let after = cpu.gpr[4];
    // The load may fault: the stack pointer then is what it was.
    cpu.gpr[4] = before;
    cpu.load_segment(op.dst, selector)?;
    cpu.gpr[4] = after;
    if op.dst == SS {
        cpu.shadow_stack_load();
    }
    Ok(())
}

/// LDS, LES, LSS, LFS, LGS: the offset, then the selector.
fn load_pointer<T: Int, const SEGMENT: u8>(cpu: &mut Cpu, op: &Op) -> Result {
    let at = cpu.ea(op);
    let offset = cpu.load::<T>(op.seg, at)?;
    let next = at.wrapping_add(T::BYTES as u64) & addr_mask(op.addr_size);
    let selector = cpu.load::<u16>(op.seg, next)?;
    cpu.load_segment(SEGMENT, selector)?;
    cpu.set_reg(op.dst, offset);
    Ok(())
}

/// The handler of `insn`, if it belongs to this group.
pub(super) fn select(insn: &Instruction) -> Option<Handler> {
    let segment0 = insn.op0_kind() == OpKind::Register && insn.op0_register().is_segment_register();
    match insn.mnemonic() {
        Mnemonic::Push if segment0 => match insn.code() {
            Code::Pushw_ES
            | Code::Pushw_CS
            | Code::Pushw_SS
            | Code::Pushw_DS
            | Code::Pushw_FS
            | Code::Pushw_GS => Some(push::<u16>),
            Code::Pushq_FS | Code::Pushq_GS => Some(push::<u64>),
            _ => Some(push::<u32>),
        },
        Mnemonic::Pop if segment0 => match insn.code() {
            Code::Popw_ES
            | Code::Popw_CS
            | Code::Popw_SS
            | Code::Popw_DS
            | Code::Popw_FS
            | Code::Popw_GS => Some(pop::<u16>),
            Code::Popq_FS | Code::Popq_GS => Some(pop::<u64>),
            _ => Some(pop::<u32>),
        },
        _ => match insn.code() {
            Code::Mov_Sreg_rm16 | Code::Mov_Sreg_r32m16 | Code::Mov_Sreg_r64m16 => Some(load),
            Code::Mov_rm16_Sreg => Some(store::<2>),
            Code::Mov_r32m16_Sreg => Some(store::<4>),
            Code::Mov_r64m16_Sreg => Some(store::<8>),
            Code::Lds_r16_m1616 => Some(load_pointer::<u16, DS>),
            Code::Lds_r32_m1632 => Some(load_pointer::<u32, DS>),
            Code::Les_r16_m1616 => Some(load_pointer::<u16, ES>),
            Code::Les_r32_m1632 => Some(load_pointer::<u32, ES>),
            Code::Lss_r16_m1616 => Some(load_pointer::<u16, SS>),
            Code::Lss_r32_m1632 => Some(load_pointer::<u32, SS>),
            Code::Lss_r64_m1664 => Some(load_pointer::<u64, SS>),
            Code::Lfs_r16_m1616 => Some(load_pointer::<u16, FS>),
            Code::Lfs_r32_m1632 => Some(load_pointer::<u32, FS>),
            Code::Lfs_r64_m1664 => Some(load_pointer::<u64, FS>),
            Code::Lgs_r16_m1616 => Some(load_pointer::<u16, GS>),
            Code::Lgs_r32_m1632 => Some(load_pointer::<u32, GS>),
            Code::Lgs_r64_m1664 => Some(load_pointer::<u64, GS>),
            _ => None,
        },
    }
}
