//! Addition, subtraction, multiplication, division in all operand forms; comparisons.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use super::status::{C0, C2, C3};
use crate::cpu::Cpu;
use crate::exception::Result;
use crate::flags::bits;
use crate::fpu::Fpu;
use crate::fpu::float::order_flags;
use crate::fpu::softfloat::{self as soft, Env, F80, Order, from_int, widen_operand};
use crate::int::Int;
use crate::op::{Handler, Op};

/// Finds the handler.
pub(super) fn select(insn: &Instruction) -> Option<Handler> {
    select_arithmetic(insn)
        .or_else(|| select_compare(insn.code()))
        .or_else(|| select_compare_memory(insn.code()))
}

/// Forms of operands.
#[derive(Clone, Copy)]
enum Form {
    Single,
    Double,
    Int16,
    Int32,
    /// ST(0) with ST(i), to ST(0).
    ToTop,
    /// ST(i) with ST(0), to ST(i).
    ToOther,
    /// Likewise, and pop.
    ToOtherPop,
}

fn form(insn: &Instruction) -> Form {
    use Mnemonic::*;
    let integer = matches!(insn.mnemonic(), Fiadd | Fimul | Fisub | Fisubr | Fidiv | Fidivr);
    let pop = matches!(insn.mnemonic(), Faddp | Fmulp | Fsubp | Fsubrp | Fdivp | Fdivrp);
    let size = insn.memory_size().size();
    match insn.op0_kind() {
        OpKind::Memory if integer && size == 2 => Form::Int16,
        OpKind::Memory if integer => Form::Int32,
        OpKind::Memory if size == 4 => Form::Single,
        OpKind::Memory => Form::Double,
        _ if pop => Form::ToOtherPop,
        // Of the two forms that ST(0), ST(0) fits, both do the same.
        _ if insn.op0_register() == Register::ST0 => Form::ToTop,
        _ => Form::ToOther,
    }
}

fn select_arithmetic(insn: &Instruction) -> Option<Handler> {
    use Mnemonic::*;
    let form = form(insn);
    /// A handler for each form of one operation.
    macro_rules! forms {
        ($f:expr) => {
            match form {
                Form::Single => |cpu, op| with_memory(cpu, op, widen_operand::<u32>, $f),
                Form::Double => |cpu, op| with_memory(cpu, op, widen_operand::<u64>, $f),
                Form::Int16 => |cpu, op| with_memory(cpu, op, integer::<u16>, $f),
                Form::Int32 => |cpu, op| with_memory(cpu, op, integer::<u32>, $f),
                Form::ToTop => |cpu, op| with_register(cpu, op, 0, op.src, 0, $f),
                Form::ToOther => |cpu, op| with_register(cpu, op, op.dst, 0, 0, $f),
                Form::ToOtherPop => |cpu, op| with_register(cpu, op, op.dst, 0, 1, $f),
            }
        };
    }
    let handler: Handler = match insn.mnemonic() {
        Fadd | Faddp | Fiadd => forms!(soft::add),
        Fmul | Fmulp | Fimul => forms!(soft::mul),
        Fsub | Fsubp | Fisub => forms!(soft::sub),
        Fsubr | Fsubrp | Fisubr => forms!(|env, a, b| soft::sub(env, b, a)),
        Fdiv | Fdivp | Fidiv => forms!(soft::div),
        Fdivr | Fdivrp | Fidivr => forms!(|env, a, b| soft::div(env, b, a)),
        _ => return None,
    };
    Some(handler)
}

/// A signed integer operand, which is exact in double extended precision.
fn integer<T: Int>(env: &mut Env, value: T) -> F80 {
    from_int(&mut env.full_precision(), value.sext() as i64)
}

#[inline(always)]
fn with_memory<T: Int>(
    cpu: &mut Cpu,
    op: &Op,
    widen: impl Fn(&mut Env, T) -> F80,
    f: impl Fn(&mut Env, F80, F80) -> F80,
) -> Result {
    cpu.x87_from_memory(op, |fpu, value| match fpu.st(0) {
        Some(a) => {
            let mut env = fpu.env();
            let b = widen(&mut env, value);
            let result = f(&mut env, a, b);
            fpu.finish(&env, 0, result, 0);
        }
        None => fpu.finish_underflow(0, 0),
    })
}

#[inline(always)]
fn with_register(
    cpu: &mut Cpu,
    op: &Op,
    dst: u8,
    src: u8,
    pops: u8,
    f: impl Fn(&mut Env, F80, F80) -> F80,
) -> Result {
    cpu.x87_on_stack(op, |fpu| match (fpu.st(dst), fpu.st(src)) {
        (Some(a), Some(b)) => {
            let mut env = fpu.env();
            let result = f(&mut env, a, b);
            fpu.finish(&env, dst, result, pops);
        }
        _ => fpu.finish_underflow(dst, pops),
    })
}

/// Condition codes of a comparison.
fn codes(order: Order) -> u16 {
    match order {
        Order::Greater => 0,
        Order::Less => C0,
        Order::Equal => C3,
        Order::Unordered => C0 | C2 | C3,
    }
}

impl Fpu {
    /// Compares ST(0) with `b`, `None` being an empty register; then pops.
    fn compare(&mut self, b: Option<F80>, signalling: bool, pops: u8) {
        self.compare_in(self.env(), b, signalling, pops);
    }

    fn compare_in(&mut self, mut env: Env, b: Option<F80>, signalling: bool, pops: u8) {
        let (Some(a), Some(b)) = (self.st(0), b) else {
            let masked = self.stack_underflow();
            self.set_codes(codes(Order::Unordered));
            if masked {
                self.pop_times(pops);
            }
            return;
        };
        let order = soft::compare(&mut env, a, b, signalling);
        let done = self.commit(&env);
        self.set_codes(codes(order));
        if done {
            self.pop_times(pops);
        }
    }
}

fn select_compare(code: Code) -> Option<Handler> {
    use Code::*;
    let handler: Handler = match code {
        Fcom_st0_sti | Fcom_st0_sti_DCD0 => |cpu, op| compare(cpu, op, true, 0),
        Fcomp_st0_sti | Fcomp_st0_sti_DCD8 | Fcomp_st0_sti_DED0 => {
            |cpu, op| compare(cpu, op, true, 1)
        }
        Fucom_st0_sti => |cpu, op| compare(cpu, op, false, 0),
        Fucomp_st0_sti => |cpu, op| compare(cpu, op, false, 1),
        Fcompp => |cpu, op| cpu.x87_on_stack(op, |fpu| fpu.compare(fpu.st(1), true, 2)),
        Fucompp => |cpu, op| cpu.x87_on_stack(op, |fpu| fpu.compare(fpu.st(1), false, 2)),
        Ftst => |cpu, op| cpu.x87_on_stack(op, |fpu| fpu.compare(Some(F80::ZERO), true, 0)),
        Fcomi_st0_sti => |cpu, op| compare_flags(cpu, op, true, 0),
        Fcomip_st0_sti => |cpu, op| compare_flags(cpu, op, true, 1),
        Fucomi_st0_sti => |cpu, op| compare_flags(cpu, op, false, 0),
        Fucomip_st0_sti => |cpu, op| compare_flags(cpu, op, false, 1),
        _ => return None,
    };
    Some(handler)
}

fn select_compare_memory(code: Code) -> Option<Handler> {
    use Code::*;
    let handler: Handler = match code {
        Fcom_m32fp => |cpu, op| compare_memory(cpu, op, widen_operand::<u32>, 0),
        Fcomp_m32fp => |cpu, op| compare_memory(cpu, op, widen_operand::<u32>, 1),
        Fcom_m64fp => |cpu, op| compare_memory(cpu, op, widen_operand::<u64>, 0),
        Fcomp_m64fp => |cpu, op| compare_memory(cpu, op, widen_operand::<u64>, 1),
        Ficom_m16int => |cpu, op| compare_memory(cpu, op, integer::<u16>, 0),
        Ficomp_m16int => |cpu, op| compare_memory(cpu, op, integer::<u16>, 1),
        Ficom_m32int => |cpu, op| compare_memory(cpu, op, integer::<u32>, 0),
        Ficomp_m32int => |cpu, op| compare_memory(cpu, op, integer::<u32>, 1),
        _ => return None,
    };
    Some(handler)
}

#[inline(always)]
fn compare(cpu: &mut Cpu, op: &Op, signalling: bool, pops: u8) -> Result {
    cpu.x87_on_stack(op, |fpu| fpu.compare(fpu.st(op.src), signalling, pops))
}

#[inline(always)]
fn compare_memory<T: Int>(
    cpu: &mut Cpu,
    op: &Op,
    widen: impl Fn(&mut Env, T) -> F80,
    pops: u8,
) -> Result {
    cpu.x87_from_memory(op, |fpu, value| {
        let mut env = fpu.env();
        let b = widen(&mut env, value);
        fpu.compare_in(env, Some(b), true, pops);
    })
}

/// FCOMI and its like: the result goes to RFLAGS; the condition codes stay.
fn compare_flags(cpu: &mut Cpu, op: &Op, signalling: bool, pops: u8) -> Result {
    cpu.x87_wait()?;
    cpu.x87_note(op);
    let fpu = &mut cpu.fpu;
    let (order, done) = match (fpu.st(0), fpu.st(op.src)) {
        (Some(a), Some(b)) => {
            let mut env = fpu.env();
            let order = soft::compare(&mut env, a, b, signalling);
            fpu.raise(&env);
            (order, !env.faults_before_result())
        }
        _ => (Order::Unordered, fpu.stack_underflow()),
    };
    if done {
        fpu.pop_times(pops);
    }
    cpu.set_rflags_arith(order_flags(order));
    Ok(())
}

/// FCMOV: moves ST(i) to ST(0) if `condition` holds for RFLAGS.
pub(super) fn move_if(cpu: &mut Cpu, op: &Op, condition: fn(u64) -> bool) -> Result {
    cpu.x87_wait()?;
    cpu.x87_note(op);
    let holds = condition(cpu.rflags());
    let fpu = &mut cpu.fpu;
    match (fpu.st(0), fpu.st(op.src)) {
        (Some(_), Some(value)) => {
            if holds {
                fpu.set_st(0, value);
            }
        }
        // Whether the condition holds or not.
        _ => fpu.finish_underflow(0, 0),
    }
    Ok(())
}

/// Finds FCMOV's handler.
pub(super) fn select_move_if(mnemonic: Mnemonic) -> Option<Handler> {
    use Mnemonic::*;
    const BELOW_EQUAL: u64 = bits::CF | bits::ZF;
    let handler: Handler = match mnemonic {
        Fcmovb => |cpu, op| move_if(cpu, op, |flags| flags & bits::CF != 0),
        Fcmove => |cpu, op| move_if(cpu, op, |flags| flags & bits::ZF != 0),
        Fcmovbe => |cpu, op| move_if(cpu, op, |flags| flags & BELOW_EQUAL != 0),
        Fcmovu => |cpu, op| move_if(cpu, op, |flags| flags & bits::PF != 0),
        Fcmovnb => |cpu, op| move_if(cpu, op, |flags| flags & bits::CF == 0),
        Fcmovne => |cpu, op| move_if(cpu, op, |flags| flags & bits::ZF == 0),
        Fcmovnbe => |cpu, op| move_if(cpu, op, |flags| flags & BELOW_EQUAL == 0),
        Fcmovnu => |cpu, op| move_if(cpu, op, |flags| flags & bits::PF == 0),
        _ => return None,
    };
    Some(handler)
}
