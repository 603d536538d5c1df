//! Near branches, conditional moves and sets, and the flag instructions (APM volume 3: CALL, CMOVcc,
//! Jcc, JCXZ, JMP, LOOPcc, RET, SETcc, CLC, CLD, CMC, STC, STD).

use iced_x86::{Code, CodeSize, ConditionCode, Instruction, Mnemonic, OpKind};

use super::{Form, form, size0, sized};
use crate::cpu::Cpu;
use crate::exception::Result;
use crate::flags::bits;
use crate::int::Int;
use crate::op::{Handler, Op};
use crate::reg::{RCX, RSP};
use crate::segment::SS;

/// A condition on the flags.
pub(super) trait Condition: 'static {
    /// Whether it holds.
    fn holds(cpu: &Cpu) -> bool;
}

macro_rules! conditions {
    ($($name:ident, $code:ident, |$cpu:ident| $test:expr;)*) => {
        $(
            struct $name;
            impl Condition for $name {
                #[inline(always)]
                fn holds($cpu: &Cpu) -> bool {
                    $test
                }
            }
        )*
        /// Picks the instance of a generic handler for a condition; `T` may stand before it.
        macro_rules! by_condition {
            ($cc:expr, $f:ident) => {
                match $cc {
                    $(ConditionCode::$code => Some($f::<$name> as Handler),)*
                    ConditionCode::None => None,
                }
            };
            ($cc:expr, $size:expr, $f:ident) => {
                match $cc {
                    $(ConditionCode::$code => sized!($size, $f, $name),)*
                    ConditionCode::None => None,
                }
            };
        }
    };
}

conditions! {
    O, o, |cpu| cpu.of();
    No, no, |cpu| !cpu.of();
    B, b, |cpu| cpu.cf();
    Ae, ae, |cpu| !cpu.cf();
    E, e, |cpu| cpu.zf();
    Ne, ne, |cpu| !cpu.zf();
    Be, be, |cpu| cpu.cf() | cpu.zf();
    A, a, |cpu| !(cpu.cf() | cpu.zf());
    S, s, |cpu| cpu.sf();
    Ns, ns, |cpu| !cpu.sf();
    P, p, |cpu| cpu.pf();
    Np, np, |cpu| !cpu.pf();
    L, l, |cpu| cpu.sf() != cpu.of();
    Ge, ge, |cpu| cpu.sf() == cpu.of();
    Le, le, |cpu| cpu.zf() | (cpu.sf() != cpu.of());
    G, g, |cpu| !(cpu.zf() | (cpu.sf() != cpu.of()));
}

/// In 64-bit mode: the target of a relative branch can only be wrong by not being canonical, which
/// fetching from it finds.
fn jcc<C: Condition>(cpu: &mut Cpu, op: &Op) -> Result {
    if C::holds(cpu) {
        cpu.rip = op.imm;
    }
    Ok(())
}

fn jcc_checked<C: Condition>(cpu: &mut Cpu, op: &Op) -> Result {
    if C::holds(cpu) { cpu.jump(op.imm) } else { Ok(()) }
}

fn jmp(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.rip = op.imm;
    Ok(())
}

fn jmp_checked(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.jump(op.imm)
}

fn jmp_reg<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.jump(cpu.reg::<T>(op.dst).to_u64())
}

fn jmp_mem<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let target = cpu.load_op::<T>(op)?.to_u64();
    cpu.jump(target)
}

/// Pushes the return address and goes to `target`.
#[inline(always)]
fn call_to<T: Int>(cpu: &mut Cpu, op: &Op, target: u64) -> Result {
    if let Err(fault) = cpu.check_jump(target) {
        // A fault of the stack comes first.
        let sp = cpu.gpr(RSP).wrapping_sub(T::BYTES as u64) & cpu.stack_mask;
        cpu.probe_write(SS, sp, T::BYTES)?;
        return Err(fault);
    }
    cpu.push(T::from_u64(op.next_rip))?;
    cpu.rip = target;
    Ok(())
}

fn call<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    call_to::<T>(cpu, op, op.imm)
}

fn call_reg<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let target = cpu.reg::<T>(op.dst).to_u64();
    call_to::<T>(cpu, op, target)
}

fn call_mem<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let target = cpu.load_op::<T>(op)?.to_u64();
    call_to::<T>(cpu, op, target)
}

/// RET, releasing `op.imm` bytes of arguments.
fn ret<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let sp = cpu.gpr(RSP) & cpu.stack_mask;
    let target = cpu.load::<T>(SS, sp)?.to_u64();
    cpu.jump(target)?;
    cpu.set_sp(sp.wrapping_add(T::BYTES as u64).wrapping_add(op.imm));
    Ok(())
}

/// Whether a LOOP goes on, apart from its count.
trait LoopCondition: 'static {
    fn holds(cpu: &Cpu) -> bool;
}
struct Always;
impl LoopCondition for Always {
    fn holds(_: &Cpu) -> bool {
        true
    }
}
impl LoopCondition for E {
    fn holds(cpu: &Cpu) -> bool {
        cpu.zf()
    }
}
impl LoopCondition for Ne {
    fn holds(cpu: &Cpu) -> bool {
        !cpu.zf()
    }
}

/// LOOPcc with a count of type `T`.
fn loop_<T: Int, C: LoopCondition>(cpu: &mut Cpu, op: &Op) -> Result {
    let count = cpu.reg::<T>(RCX).wsub(T::ONE);
    if count != T::ZERO && C::holds(cpu) {
        cpu.jump(op.imm)?;
    }
    cpu.set_reg(RCX, count);
    Ok(())
}

fn jcxz<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    if cpu.reg::<T>(RCX) == T::ZERO { cpu.jump(op.imm) } else { Ok(()) }
}

fn set_reg<C: Condition>(cpu: &mut Cpu, op: &Op) -> Result {
    let value = u8::from(C::holds(cpu));
    cpu.set_reg(op.dst, value);
    Ok(())
}

fn set_mem<C: Condition>(cpu: &mut Cpu, op: &Op) -> Result {
    let value = u8::from(C::holds(cpu));
    cpu.store_op(op, value)
}

fn cmov_reg<T: Int, C: Condition>(cpu: &mut Cpu, op: &Op) -> Result {
    let n = if C::holds(cpu) { op.src } else { op.dst };
    let value = cpu.reg::<T>(n);
    cpu.set_reg(op.dst, value);
    Ok(())
}

fn cmov_mem<T: Int, C: Condition>(cpu: &mut Cpu, op: &Op) -> Result {
    let loaded = cpu.load_op::<T>(op)?;
    let value = if C::holds(cpu) { loaded } else { cpu.reg::<T>(op.dst) };
    cpu.set_reg(op.dst, value);
    Ok(())
}

fn clc(cpu: &mut Cpu, _: &Op) -> Result {
    cpu.set_cf(false);
    Ok(())
}

fn stc(cpu: &mut Cpu, _: &Op) -> Result {
    cpu.set_cf(true);
    Ok(())
}

fn cmc(cpu: &mut Cpu, _: &Op) -> Result {
    cpu.set_cf(!cpu.cf());
    Ok(())
}

fn cld(cpu: &mut Cpu, _: &Op) -> Result {
    cpu.system_flags &= !bits::DF;
    Ok(())
}

fn std(cpu: &mut Cpu, _: &Op) -> Result {
    cpu.system_flags |= bits::DF;
    Ok(())
}

/// Size in bytes of the instruction pointer that a relative branch works on.
fn branch_size(insn: &Instruction) -> usize {
    match insn.op0_kind() {
        OpKind::NearBranch16 => 2,
        OpKind::NearBranch32 => 4,
        _ => 8,
    }
}

fn select_loop(insn: &Instruction) -> Option<Handler> {
    use Code as C;
    let size = match insn.code() {
        C::Loopne_rel8_16_CX
        | C::Loopne_rel8_32_CX
        | C::Loope_rel8_16_CX
        | C::Loope_rel8_32_CX
        | C::Loop_rel8_16_CX
        | C::Loop_rel8_32_CX
        | C::Jcxz_rel8_16
        | C::Jcxz_rel8_32 => 2,
        C::Loopne_rel8_16_RCX
        | C::Loopne_rel8_64_RCX
        | C::Loope_rel8_16_RCX
        | C::Loope_rel8_64_RCX
        | C::Loop_rel8_16_RCX
        | C::Loop_rel8_64_RCX
        | C::Jrcxz_rel8_16
        | C::Jrcxz_rel8_64 => 8,
        _ => 4,
    };
    match insn.mnemonic() {
        Mnemonic::Loop => sized!(size, loop_, Always),
        Mnemonic::Loope => sized!(size, loop_, E),
        Mnemonic::Loopne => sized!(size, loop_, Ne),
        _ => sized!(size, jcxz),
    }
}

fn select_branch(insn: &Instruction) -> Option<Handler> {
    let flat = insn.code_size() == CodeSize::Code64 && branch_size(insn) == 8;
    if insn.is_jcc_short_or_near() {
        return if flat {
            by_condition!(insn.condition_code(), jcc)
        } else {
            by_condition!(insn.condition_code(), jcc_checked)
        };
    }
    if insn.is_jmp_short_or_near() {
        return Some(if flat { jmp } else { jmp_checked });
    }
    if insn.is_call_near() {
        return sized!(branch_size(insn), call);
    }
    match (insn.is_jmp_near_indirect(), insn.is_call_near_indirect(), form(insn)) {
        (true, _, Form::Reg) => sized!(size0(insn), jmp_reg),
        (true, _, Form::Mem) => sized!(size0(insn), jmp_mem),
        (_, true, Form::Reg) => sized!(size0(insn), call_reg),
        (_, true, Form::Mem) => sized!(size0(insn), call_mem),
        _ => None,
    }
}

/// The handler of `insn`, if it belongs to this group.
pub(super) fn select(insn: &Instruction) -> Option<Handler> {
    match insn.mnemonic() {
        Mnemonic::Jmp | Mnemonic::Call => select_branch(insn),
        Mnemonic::Ret => match insn.code() {
            Code::Retnw | Code::Retnw_imm16 => Some(ret::<u16>),
            Code::Retnd | Code::Retnd_imm16 => Some(ret::<u32>),
            Code::Retnq | Code::Retnq_imm16 => Some(ret::<u64>),
            _ => None,
        },
        Mnemonic::Loop
        | Mnemonic::Loope
        | Mnemonic::Loopne
        | Mnemonic::Jcxz
        | Mnemonic::Jecxz
        | Mnemonic::Jrcxz => select_loop(insn),
        Mnemonic::Clc => Some(clc),
        Mnemonic::Stc => Some(stc),
        Mnemonic::Cmc => Some(cmc),
        Mnemonic::Cld => Some(cld),
        Mnemonic::Std => Some(std),
        _ if insn.is_jcc_short_or_near() => select_branch(insn),
        _ if insn.condition_code() != ConditionCode::None => match (form(insn), size0(insn)) {
            (Form::Reg, 1) => by_condition!(insn.condition_code(), set_reg),
            (Form::Mem, 1) => by_condition!(insn.condition_code(), set_mem),
            (Form::RegReg, size) if insn.op1_register().is_gpr() => {
                by_condition!(insn.condition_code(), size, cmov_reg)
            }
            (Form::RegMem, size) if insn.op0_register().is_gpr() => {
                by_condition!(insn.condition_code(), size, cmov_mem)
            }
            _ => None,
        },
        _ => None,
    }
}
