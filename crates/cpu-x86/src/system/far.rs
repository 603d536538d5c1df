//! Far JMP, CALL and RET, IRET, and the software interrupts.

use iced_x86::{Code, Instruction};

use crate::cpu::Cpu;
use crate::exception::{Exception, Result, vector};
use crate::interrupt::Source;
use crate::op::{Handler, Op};
use crate::reg::addr_mask;
use crate::regs::{CR4_VME, DR6_BREAKPOINTS};
use crate::svm::code;

/// The far pointer in memory: offset, then selector.
fn pointer(cpu: &mut Cpu, op: &Op, size: u8) -> Result<(u16, u64)> {
    let at = cpu.ea(op);
    let offset = cpu.load_sized(op.seg, at, size)?;
    let next = at.wrapping_add(u64::from(size)) & addr_mask(op.addr_size);
    Ok((cpu.load(op.seg, next)?, offset))
}

fn jump_immediate(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.far_jump((op.imm >> 32) as u16, op.imm & 0xffff_ffff)
}

fn jump_memory<const SIZE: u8>(cpu: &mut Cpu, op: &Op) -> Result {
    let (selector, offset) = pointer(cpu, op, SIZE)?;
    cpu.far_jump(selector, offset)
}

fn call_immediate<const SIZE: u8>(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.far_call((op.imm >> 32) as u16, op.imm & 0xffff_ffff, SIZE)
}

fn call_memory<const SIZE: u8>(cpu: &mut Cpu, op: &Op) -> Result {
    let (selector, offset) = pointer(cpu, op, SIZE)?;
    cpu.far_call(selector, offset, SIZE)
}

fn ret<const SIZE: u8>(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.far_return(SIZE, op.imm & 0xffff)
}

fn iret<const SIZE: u8>(cpu: &mut Cpu, _: &Op) -> Result {
    cpu.interrupt_return(SIZE)
}

fn int_n(cpu: &mut Cpu, op: &Op) -> Result {
    let vector = op.imm as u8;
    cpu.intercept_assisted(code::SOFTWARE_INTERRUPT, vector.into())?;
    let by_program = cpu.mode.is_vm86() && cpu.cr4 & CR4_VME != 0;
    if cpu.mode.is_vm86() && cpu.iopl() != 3 && !by_program {
        return Err(Exception::GP0);
    }
    if by_program {
        if cpu.redirected_interrupt(vector)? {
            return Ok(());
        }
        if cpu.iopl() != 3 {
            return Err(Exception::GP0);
        }
    }
    cpu.software_interrupt(vector, Source::Software)
}

/// INT3 and INTO: exceptions to who intercepts them, though a gate's DPL counts.
fn raise(cpu: &mut Cpu, vector: u8) -> Result {
    cpu.intercept(code::EXCEPTION + u32::from(vector))?;
    cpu.software_interrupt(vector, Source::Software)
        .inspect_err(|_| cpu.note_vectoring(vector, Source::Exception, None))
}

fn int3(cpu: &mut Cpu, _: &Op) -> Result {
    raise(cpu, vector::BP)
}

fn into(cpu: &mut Cpu, _: &Op) -> Result {
    if cpu.of() { raise(cpu, vector::OF) } else { Ok(()) }
}

fn int1(cpu: &mut Cpu, _: &Op) -> Result {
    // By its own intercept alone: it is no exception, though its vector is one's.
    cpu.intercept(code::ICEBP)?;
    // What a load of SS met is not told in the handler of debug exceptions, which begins anyhow: on a stack of
    // the interrupt stack table a second frame would take the place of the first.
    cpu.pending_debug &= !DR6_BREAKPOINTS;
    cpu.software_interrupt(vector::DB, Source::Icebp)
}

/// The handler of `insn`, if it belongs to this group.
pub(super) fn select(insn: &Instruction) -> Option<Handler> {
    Some(match insn.code() {
        Code::Jmp_ptr1616 | Code::Jmp_ptr1632 => jump_immediate,
        Code::Jmp_m1616 => jump_memory::<2>,
        Code::Jmp_m1632 => jump_memory::<4>,
        Code::Jmp_m1664 => jump_memory::<8>,
        Code::Call_ptr1616 => call_immediate::<2>,
        Code::Call_ptr1632 => call_immediate::<4>,
        Code::Call_m1616 => call_memory::<2>,
        Code::Call_m1632 => call_memory::<4>,
        Code::Call_m1664 => call_memory::<8>,
        Code::Retfw | Code::Retfw_imm16 => ret::<2>,
        Code::Retfd | Code::Retfd_imm16 => ret::<4>,
        Code::Retfq | Code::Retfq_imm16 => ret::<8>,
        Code::Iretw => iret::<2>,
        Code::Iretd => iret::<4>,
        Code::Iretq => iret::<8>,
        Code::Int_imm8 => int_n,
        Code::Int3 => int3,
        Code::Into => into,
        Code::Int1 => int1,
        _ => return None,
    })
}
