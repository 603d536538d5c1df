//! Running translated code, and the helpers that it calls. The only place where generated code and Rust
//! meet.
//!
//! While translated code runs, the CPU and the translator belong to it: the exclusive borrows of
//! [`enter`] are lent to the helpers through a `Context` whose address is in the state. A helper that
//! panics must not unwind through generated code, so the panic is carried past it.
#![allow(unsafe_code)]

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use super::Translator;
use super::state::{bits_to_flags, flags_to_bits};
use super::thunks::{GIVE_UP, GO_ON, LEFT, LEFT_BY_STEP};
use crate::cpu::Cpu;
use crate::exception::Result;
use crate::flags::bits::ARITH;
use crate::op::OpFlags;
use crate::segment::{FS, GS};

/// What helpers work on.
struct Context {
    cpu: *mut Cpu,
    translator: *mut Translator,
    result: Result,
    panic: Option<Box<dyn Any + Send>>,
}

/// How translated code came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// The CPU's RIP says where to go on; a link, if it came by one that leads there, is to be made.
    At { link: u32 },
    /// The block at RIP is to be interpreted.
    Interpret,
}

/// Addresses of the helpers, as the state has them.
pub(super) fn helpers() -> [u64; 2] {
    let step: extern "sysv64" fn(*mut Context, u64) -> u64 = step;
    let vectors: extern "sysv64" fn(*mut Context, u64) -> u64 = vectors;
    [step as usize as u64, vectors as usize as u64]
}

/// Runs the translation at `code`.
///
/// # Errors
/// The exception that an instruction raised; RIP is at it.
pub(super) fn enter(translator: &mut Translator, cpu: &mut Cpu, code: u64) -> Result<Left> {
    give_registers(translator, cpu);
    translator.state.loaded = 0;
    let run = translator.thunks.enter as usize as *const ();
    let mut context = Context { cpu, translator, result: Ok(()), panic: None };
    let context = &raw mut context;
    // SAFETY: `context` and what it points to live until this function ends, and are not used otherwise
    // while translated code runs. `run` is the thunk that `thunks` wrote for a function of this type, and
    // `code` a translation in the same buffer.
    let how = unsafe {
        let translator = &mut *(*context).translator;
        translator.state.context = context as u64;
        let run = std::mem::transmute::<*const (), extern "sysv64" fn(u64) -> u32>(run);
        run(code)
    };
    // SAFETY: as above; translated code is done.
    let (cpu, translator, result, panic) = unsafe {
        let context = &mut *context;
        (&mut *context.cpu, &mut *context.translator, context.result, context.panic.take())
    };
    if let Some(panic) = panic {
        resume_unwind(panic);
    }
    if how == LEFT_BY_STEP {
        return result.map(|()| Left::At { link: 0 });
    }
    take_registers(translator, cpu);
    cpu.rip = translator.state.rip;
    Ok(if how == LEFT { Left::At { link: translator.state.link as u32 } } else { Left::Interpret })
}

/// The CPU's registers to where translated code has them, but for vectors.
fn give_registers(translator: &mut Translator, cpu: &Cpu) {
    let state = &mut *translator.state;
    state.gpr.copy_from_slice(&cpu.gpr[..16]);
    state.flags = bits_to_flags(cpu.rflags() & ARITH);
    state.system_flags = cpu.system_flags;
    state.bases = [cpu.seg_access[usize::from(FS)].base, cpu.seg_access[usize::from(GS)].base];
}

/// The registers that translated code has to the CPU.
fn take_registers(translator: &mut Translator, cpu: &mut Cpu) {
    let state = &mut *translator.state;
    cpu.gpr[..16].copy_from_slice(&state.gpr);
    cpu.set_rflags_arith(flags_to_bits(state.flags));
    cpu.system_flags = state.system_flags;
    if state.loaded != 0 {
        cpu.fpu.xmm = state.xmm;
        cpu.fpu.ymm_high = state.ymm_high;
        cpu.fpu.mxcsr = state.mxcsr[0];
    }
}

/// The vector registers to where translated code loads them from. False if blocks that use them at
/// `level` can't run now.
fn give_vectors(translator: &mut Translator, cpu: &Cpu, level: u32) -> bool {
    let allowed = cpu.vector_level();
    if allowed < level {
        return false;
    }
    let state = &mut *translator.state;
    state.xmm = cpu.fpu.xmm;
    state.ymm_high = cpu.fpu.ymm_high;
    state.mxcsr[0] = cpu.fpu.mxcsr;
    state.loaded = allowed;
    true
}

/// Runs `f` on what `context` has; a panic counts as failure.
fn with(
    context: *mut Context,
    f: impl FnOnce(&mut Cpu, &mut Translator, &mut Result) -> u64,
) -> u64 {
    // SAFETY: translated code passes the context of the `enter` that runs it, which lent both to it.
    let context = unsafe { &mut *context };
    // SAFETY: as above.
    let (cpu, translator) = unsafe { (&mut *context.cpu, &mut *context.translator) };
    let result = &mut context.result;
    match catch_unwind(AssertUnwindSafe(|| f(cpu, translator, result))) {
        Ok(answer) => answer,
        Err(panic) => {
            context.panic = Some(panic);
            GIVE_UP
        }
    }
}

/// Executes an instruction with the interpreter. Returns [`GO_ON`] if translated code may go on after it,
/// or the address of other translated code to go on with, both with the registers in the state again.
extern "sysv64" fn step(context: *mut Context, site: u64) -> u64 {
    with(context, |cpu, translator, result| {
        take_registers(translator, cpu);
        let Some((op, key)) = translator.site(site) else { return GIVE_UP };
        let code_epoch = cpu.tlb.code_epoch();
        if translator.checker.as_ref().is_some_and(|c| c.stops_before(site as u32 as usize)) {
            cpu.rip = op.rip();
            return GIVE_UP;
        }
        let left = translator.left(site);
        translator.settle_before(cpu, left);
        cpu.rip = op.next_rip;
        *result = (op.run)(cpu, &op);
        let broken = std::mem::take(&mut cpu.break_block);
        if result.is_err() {
            if !std::mem::take(&mut cpu.keep_rip) {
                cpu.rip = op.rip();
            }
            return GIVE_UP;
        }
        let in_time = translator.settle_after(cpu, !cpu.is_unfinished(&op), left);
        if !in_time {
            return GIVE_UP;
        }
        if cpu.pending_debug != 0 || cpu.needs_care() {
            translator.give_back(left);
            return GIVE_UP;
        }
        let broken = broken
            || translator.checker.as_ref().is_some_and(|c| c.stops_after(site as u32 as usize));
        let goes_on = !broken
            && !op.flags.contains(OpFlags::ENDS_BLOCK)
            && cpu.rip == op.next_rip
            && key.fits(cpu)
            && cpu.tlb.code_epoch() == code_epoch;
        let level = translator.state.loaded;
        if goes_on && (level == 0 || give_vectors(translator, cpu, level)) {
            give_registers(translator, cpu);
            return GO_ON;
        }
        translator.give_back(left);
        translator.state.loaded = 0;
        if !translator.chains || cpu.signals.pending() != 0 || cpu.counts_performance() {
            return GIVE_UP;
        }
        let Some(code) = translator.next(cpu) else { return GIVE_UP };
        give_registers(translator, cpu);
        code
    })
}

/// Gives translated code the vector registers, at the level `level`.
extern "sysv64" fn vectors(context: *mut Context, level: u64) -> u64 {
    with(context, |cpu, translator, _| {
        take_registers(translator, cpu);
        translator.state.loaded = 0;
        if give_vectors(translator, cpu, level as u32) { GO_ON } else { GIVE_UP }
    })
}
