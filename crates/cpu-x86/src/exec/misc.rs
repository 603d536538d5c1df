//! What fits no other group (APM volume 3: BOUND, CLFLUSH, CLZERO, LAHF, NOP, PAUSE, PREFETCH, SAHF; SALC), and
//! the memory fences.

use std::sync::atomic::{Ordering, fence};

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use super::sized;
use crate::cpu::Cpu;
use crate::exception::{Exception, Result, vector};
use crate::flags::bits::{AF, CF, PF, SF, ZF};
use crate::int::Int;
use crate::op::{Handler, Op};
use crate::reg::{RAX, addr_mask};
use crate::segment::DS;
use crate::svm::code;

/// AH, as an 8-bit operand's number.
const AH: u8 = 16;
/// The flags that LAHF and SAHF move.
const LOW_FLAGS: u64 = SF | ZF | AF | PF | CF;

fn nop(_: &mut Cpu, _: &Op) -> Result {
    Ok(())
}

fn pause(cpu: &mut Cpu, _: &Op) -> Result {
    cpu.intercept_pause()?;
    std::hint::spin_loop();
    Ok(())
}

fn full_fence(_: &mut Cpu, _: &Op) -> Result {
    fence(Ordering::SeqCst);
    Ok(())
}

/// CLFLUSH: nothing is cached, but the address is checked as for a load.
fn clflush(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.load_op::<u8>(op).map(|_| ())
}

fn lahf(cpu: &mut Cpu, _: &Op) -> Result {
    let flags = cpu.rflags() as u8;
    cpu.set_reg(AH, flags);
    Ok(())
}

fn sahf(cpu: &mut Cpu, _: &Op) -> Result {
    let flags = cpu.reg::<u8>(AH).to_u64();
    cpu.change_flags(LOW_FLAGS, flags);
    Ok(())
}

fn salc(cpu: &mut Cpu, _: &Op) -> Result {
    let value = if cpu.cf() { 0xff } else { 0 };
    cpu.set_reg::<u8>(RAX, value);
    Ok(())
}

fn bound<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let offset = cpu.ea(op);
    let index = cpu.reg::<T>(op.dst).sext() as i64;
    let lower = cpu.load::<T>(op.seg, offset)?.sext() as i64;
    let next = offset.wrapping_add(T::BYTES as u64) & addr_mask(op.addr_size);
    let upper = cpu.load::<T>(op.seg, next)?.sext() as i64;
    if index < lower || index > upper {
        cpu.intercept(code::EXCEPTION + u32::from(vector::BR))?;
        return Err(Exception::plain(vector::BR));
    }
    Ok(())
}

/// CLZERO clears the line of 64 bytes that DS:rAX is in.
fn clzero(cpu: &mut Cpu, op: &Op) -> Result {
    let width = if op.addr_size == 0 { 8 } else { op.addr_size };
    let offset = cpu.reg_sized(RAX, width) & !63;
    let seg = if op.addr_size == 0 { DS } else { op.seg };
    cpu.store_bytes(seg, offset, &[0; 64])
}

/// Whether `insn` is a hint, encoded such that CPUs that do not know it do nothing.
pub(crate) fn is_hint(insn: &Instruction) -> bool {
    matches!(
        insn.mnemonic(),
        Mnemonic::Reservednop
            | Mnemonic::Endbr32
            | Mnemonic::Endbr64
            | Mnemonic::Rdsspd
            | Mnemonic::Rdsspq
            | Mnemonic::Cldemote
            | Mnemonic::Prefetch
            | Mnemonic::Prefetchw
            | Mnemonic::Prefetchwt1
    )
}

/// The handler of `insn`, if it belongs to this group.
pub(super) fn select(insn: &Instruction) -> Option<Handler> {
    match insn.mnemonic() {
        // PREFETCH and PREFETCHW have no register form.
        Mnemonic::Reservednop
            if insn.op0_kind() == OpKind::Register
                && matches!(
                    insn.code(),
                    Code::Reservednop_rm16_r16_0F0D
                        | Code::Reservednop_rm32_r32_0F0D
                        | Code::Reservednop_rm64_r64_0F0D
                ) =>
        {
            Some(|_, _| Err(Exception::UD))
        }
        // Hints of extensions that this CPU lacks are no-ops by design of their encodings.
        Mnemonic::Nop
        | Mnemonic::Reservednop
        | Mnemonic::Endbr32
        | Mnemonic::Endbr64
        | Mnemonic::Rdsspd
        | Mnemonic::Rdsspq
        | Mnemonic::Cldemote
        | Mnemonic::Prefetch
        | Mnemonic::Prefetchw
        | Mnemonic::Prefetchwt1
        | Mnemonic::Prefetchnta
        | Mnemonic::Prefetcht0
        | Mnemonic::Prefetcht1
        | Mnemonic::Prefetcht2
        | Mnemonic::Lfence => Some(nop),
        Mnemonic::Pause => Some(pause),
        Mnemonic::Mfence | Mnemonic::Sfence => Some(full_fence),
        Mnemonic::Clflush | Mnemonic::Clflushopt | Mnemonic::Clwb => Some(clflush),
        Mnemonic::Clzero => Some(clzero),
        Mnemonic::Lahf => Some(lahf),
        Mnemonic::Sahf => Some(sahf),
        Mnemonic::Salc => Some(salc),
        Mnemonic::Bound if insn.op1_kind() == OpKind::Memory => {
            sized!(insn.op0_register().size(), bound)
        }
        _ => None,
    }
}
