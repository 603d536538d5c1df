//! Unpacks an instruction's operands into the fields of an [`Op`], the same way for every instruction.

use iced_x86::{CodeSize, EncodingKind, Instruction, OpKind, Register};

use crate::op::{Op, OpFlags, ZERO_REG};

/// Number of `register` within its class, as [`Op::dst`] describes; 0 for registers without one.
fn number(register: Register) -> u8 {
    match register {
        Register::AH | Register::CH | Register::DH | Register::BH => {
            16 + (register as u8 - Register::AH as u8)
        }
        // iced numbers the low bytes of RSP to R15 after the high ones.
        _ if register.is_gpr8() => register.full_register().number() as u8,
        _ => register.number() as u8,
    }
}

/// The number of a memory operand's segment: in 64-bit mode, prefixes for others than FS and GS are
/// ignored and `default` counts, which decides between #SS and #GP.
fn segment(insn: &Instruction, default: Register) -> u8 {
    let segment = insn.memory_segment();
    let ignored =
        insn.code_size() == CodeSize::Code64 && !matches!(segment, Register::FS | Register::GS);
    (if ignored { default } else { segment }).number() as u8
}

/// Whether addresses relative to `base` are in the stack segment.
fn is_stack_base(base: Register) -> bool {
    matches!(base.full_register(), Register::RSP | Register::RBP)
}

/// Fills `op`'s operands, sizes and prefix flags.
pub(super) fn unpack(insn: &Instruction, op: &mut Op) {
    let mut registers = 0;
    let mut immediates = 0;
    for index in 0..insn.op_count() {
        match insn.op_kind(index) {
            OpKind::Register => {
                let n = number(insn.op_register(index));
                match registers {
                    0 => op.dst = n,
                    1 => op.src = n,
                    2 => op.src2 = n,
                    _ => op.imm = u64::from(n),
                }
                registers += 1;
            }
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
                op.imm = insn.near_branch_target();
                op.flags |= OpFlags::RELATIVE_TARGET;
                op.flags.set(OpFlags::NARROW_TARGET, insn.op_kind(index) != OpKind::NearBranch64);
            }
            OpKind::FarBranch16 => {
                op.imm =
                    u64::from(insn.far_branch16()) | u64::from(insn.far_branch_selector()) << 32;
            }
            OpKind::FarBranch32 => {
                op.imm =
                    u64::from(insn.far_branch32()) | u64::from(insn.far_branch_selector()) << 32;
            }
            OpKind::Memory => {
                op.flags |= OpFlags::MEM;
                if index == 0 {
                    op.flags |= OpFlags::MEM_DST;
                }
                memory(insn, op);
            }
            OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => implicit(insn, op, 2),
            OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => {
                implicit(insn, op, 4);
            }
            OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => {
                implicit(insn, op, 8);
            }
            _ => {
                let value = insn.immediate(index);
                op.imm = match immediates {
                    0 => value,
                    _ => op.imm & 0xffff_ffff | value << 32,
                };
                immediates += 1;
            }
        }
    }
    if insn.op_code().encoding() == EncodingKind::VEX {
        // The last source is in the same place however many there are, and so is its index register.
        if registers == 2 {
            op.src2 = op.src;
        }
        if insn.is_vsib() {
            op.src2 = number(insn.memory_index());
        }
        op.flags.set(OpFlags::WIDE, is_wide(insn));
    }
    op.size = size(insn);
    op.flags.set(OpFlags::LOCK, insn.has_lock_prefix());
    op.flags.set(OpFlags::REP, insn.has_rep_prefix());
    op.flags.set(OpFlags::REPNE, insn.has_repne_prefix());
}

/// Whether a VEX-encoded instruction works on 256 bits: a register of that size, or memory, tells.
fn is_wide(insn: &Instruction) -> bool {
    let ymm = (0..insn.op_count())
        .any(|n| insn.op_kind(n) == OpKind::Register && insn.op_register(n).is_ymm());
    ymm || insn.memory_index().is_ymm() || insn.memory_size().size() == 32
}

/// An explicit memory operand.
fn memory(insn: &Instruction, op: &mut Op) {
    let base = insn.memory_base();
    let index = insn.memory_index();
    op.seg = segment(insn, if is_stack_base(base) { Register::SS } else { Register::DS });
    op.disp = insn.memory_displacement64();
    op.flags.set(OpFlags::RELATIVE_MEM, insn.is_ip_rel_memory_operand());
    op.scale = insn.memory_index_scale().trailing_zeros() as u8;
    op.addr_size = match (base, index) {
        (Register::None, _) if index.is_vector_register() => match insn.memory_displ_size() {
            8 => 8,
            _ => 4,
        },
        (Register::None, Register::None) => insn.memory_displ_size() as u8,
        (Register::None, _) => index.size() as u8,
        _ => base.size() as u8,
    };
    // For a base of RIP or EIP, iced's displacement is the resolved address.
    op.base = match base {
        Register::None | Register::RIP | Register::EIP => ZERO_REG,
        _ => number(base),
    };
    op.index = match index {
        // A vector of indices is not added here.
        _ if index == Register::None || index.is_vector_register() => ZERO_REG,
        _ => number(index),
    };
}

/// A memory operand addressed by rSI or rDI: its segment and address size.
fn implicit(insn: &Instruction, op: &mut Op, addr_size: u8) {
    op.seg = segment(insn, Register::DS);
    op.addr_size = addr_size;
}

/// Operand size in bytes: the memory operand's, else the first register's.
fn size(insn: &Instruction) -> u8 {
    let memory = insn.memory_size().size();
    if memory != 0 {
        return u8::try_from(memory).unwrap_or(0);
    }
    (0..insn.op_count())
        .find(|&index| insn.op_kind(index) == OpKind::Register)
        .map_or(0, |index| insn.op_register(index).size() as u8)
}
