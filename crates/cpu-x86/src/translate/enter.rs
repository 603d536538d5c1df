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
use super::group::MAX_WINDOW;
use super::state::{
    ENTERED_KERNEL, JOINED as JOINED_LEN, LEFT_KERNEL, Site, State, bits_to_flags, flags_to_bits,
    noted,
};
use super::thunks::{GIVE_UP, GO_ON, JOINED, LEFT, LEFT_BY_STEP, Missed};
use crate::counters::Count;
use crate::cpu::Cpu;
use crate::exception::Result;
use crate::flags::bits::{AC, ARITH, RF};
use crate::host::{Access, PAGE_OFFSET, TlbEntry};
use crate::op::OpFlags;
use crate::regs::CR4_PKE;
use crate::segment::{CS, FS, GS, READ_FLAT, WRITE_FLAT};

/// Among the units that translations ask for: the x87. Below it is the level of vector registers.
pub(super) const X87: u32 = 4;

/// What helpers work on.
struct Context {
    cpu: *mut Cpu,
    translator: *mut Translator,
    result: Result,
    /// The next block is to be interpreted.
    interpret: bool,
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
pub(super) fn helpers() -> [u64; 4] {
    let step: extern "sysv64" fn(*mut Context, u64) -> u64 = step;
    let units: extern "sysv64" fn(*mut Context, u64) -> u64 = units;
    let refill: extern "sysv64" fn(*mut Context, u64, u64, u64) -> u64 = refill;
    let time: extern "sysv64" fn(*mut Context) -> u64 = time;
    [step as usize as u64, units as usize as u64, refill as usize as u64, time as usize as u64]
}

/// Runs the translation at `code`.
///
/// # Errors
/// The exception that an instruction raised; RIP is at it.
pub(super) fn enter(translator: &mut Translator, cpu: &mut Cpu, code: u64) -> Result<Left> {
    // No code runs that could be there.
    translator.left_behind.clear();
    translator.bell.arm();
    give_registers(translator, cpu);
    translator.reached.state.drop_units();
    let run = translator.shared.thunks.enter as usize as *const ();
    cpu.counters.count(Count::Entries);
    let mut context = Context { cpu, translator, result: Ok(()), interpret: false, panic: None };
    let context = &raw mut context;
    // SAFETY: `context` and what it points to live until this function ends, and are not used otherwise
    // while translated code runs. `run` is the thunk that `thunks` wrote for a function of this type, and
    // `code` a translation in the same buffer.
    let how = unsafe {
        let translator = &mut *(*context).translator;
        let state = &mut translator.reached.state;
        state.context = context as u64;
        let top = &raw mut state.page as u64;
        let run = std::mem::transmute::<*const (), extern "sysv64" fn(u64, u64) -> u32>(run);
        run(code, top)
    };
    // SAFETY: as above; translated code is done.
    let (cpu, translator, result, panic) = unsafe {
        let context = &mut *context;
        (&mut *context.cpu, &mut *context.translator, context.result, context.panic.take())
    };
    // SAFETY: as above.
    let interpret = unsafe { (*context).interpret };
    if let Some(panic) = panic {
        resume_unwind(panic);
    }
    if how == LEFT_BY_STEP {
        return result.map(|()| if interpret { Left::Interpret } else { Left::At { link: 0 } });
    }
    take_registers(translator, cpu);
    cpu.rip = translator.reached.state.rip;
    if how == LEFT {
        return Ok(Left::At { link: translator.reached.state.link as u32 });
    }
    cpu.counters.count(Count::Refused);
    Ok(Left::Interpret)
}

/// The CPU's registers to where translated code has them, but for vectors.
fn give_registers(translator: &mut Translator, cpu: &Cpu) {
    give_general(translator, cpu);
    give_system(translator, cpu);
}

/// The registers that any instruction may change.
fn give_general(translator: &mut Translator, cpu: &Cpu) {
    let state = &mut translator.reached.state;
    state.set_gpr(&cpu.gpr[..16]);
    state.rip = cpu.rip;
    state.flags = bits_to_flags(cpu.rflags() & ARITH);
}

/// What system instructions change.
fn give_system(translator: &mut Translator, cpu: &Cpu) {
    let state = &mut translator.reached.state;
    state.system_flags = cpu.system_flags;
    let [fs, gs] = [FS, GS].map(|segment| &cpu.seg_access[usize::from(segment)]);
    state.bases = [fs.base, gs.base];
    let flat = READ_FLAT | WRITE_FLAT;
    state.flat = [fs, gs].map(|access| u32::from(access.flags & flat == flat));
    state.kernel_gs = cpu.msrs.kernel_gs_base;
    state.lstar = cpu.msrs.lstar;
    state.flag_mask = !(cpu.msrs.sfmask | RF);
    (state.cr2, state.cr3) = (cpu.cr2, cpu.cr3);
    state.pkru = [cpu.pkru, u32::from(cpu.cr4 & CR4_PKE != 0)];
    give_selectors(state, cpu);
    state.fast_calls = u32::from(cpu.has_plain_syscall());
    translator.listen(cpu);
}

fn give_selectors(state: &mut State, cpu: &Cpu) {
    state.selectors = std::array::from_fn(|segment| cpu.seg[segment].selector.into());
}

/// The registers that translated code has to the CPU.
fn take_registers(translator: &mut Translator, cpu: &mut Cpu) {
    let state = &mut translator.reached.state;
    state.copy_gpr(&mut cpu.gpr[..16]);
    cpu.set_rflags_arith(flags_to_bits(state.flags));
    take_mode(state, cpu);
    if state.loaded != 0 {
        cpu.fpu.xmm = state.xmm;
        cpu.fpu.ymm_high = state.ymm_high;
        cpu.fpu.mxcsr = state.mxcsr[0];
    }
    if state.x87 != 0 {
        let image = &state.x87_image;
        cpu.fpu.take_x87(image.control, image.status, image.valid as u8, &image.st);
        take_x87_notes(translator, cpu);
    }
}

/// What translated code has changed of how the CPU runs: for whom, with which rights, and the base of GS.
fn take_mode(state: &mut State, cpu: &mut Cpu) {
    let gs = usize::from(GS);
    (cpu.seg[gs].base, cpu.seg_access[gs].base) = (state.bases[1], state.bases[1]);
    cpu.msrs.kernel_gs_base = state.kernel_gs;
    let changed = cpu.system_flags ^ state.system_flags;
    cpu.system_flags = state.system_flags;
    match std::mem::take(&mut state.crossing) {
        ENTERED_KERNEL => cpu.finish_syscall(),
        LEFT_KERNEL => cpu.finish_sysret(),
        _ => {
            if changed & AC != 0 {
                cpu.update_class();
            }
            return;
        }
    }
    give_selectors(state, cpu);
}

/// Brings the x87's registers that tell its last instruction and operand up to date.
fn take_x87_notes(translator: &mut Translator, cpu: &mut Cpu) {
    let state = &translator.reached.state;
    let (notes, pointer) = ([state.x87_last, state.x87_data], state.x87_pointer);
    let [last, data] = notes.map(|note| {
        let (number, index) = noted(note)?;
        translator.site_in(cpu, Site::new(number, index), state.x87_page)
    });
    if let Some((op, _)) = last {
        cpu.fpu.opcode = op.imm as u16 & 0x7ff;
        cpu.fpu.ip = op.rip();
        cpu.fpu.cs = cpu.seg[usize::from(CS)].selector;
    }
    if let Some((op, _)) = data {
        cpu.fpu.dp = pointer;
        cpu.fpu.ds = cpu.seg[usize::from(op.seg) % 6].selector;
    }
    (translator.reached.state.x87_last, translator.reached.state.x87_data) = (0, 0);
}

/// The x87's registers to where translated code loads them from. False if blocks that use them can't run
/// now.
fn give_x87(translator: &mut Translator, cpu: &Cpu) -> bool {
    if !cpu.x87_is_masked() {
        return false;
    }
    let state = &mut translator.reached.state;
    let image = &mut state.x87_image;
    (image.control, image.status) = (cpu.fpu.control, cpu.fpu.status_word());
    image.valid = cpu.fpu.valid.into();
    image.st = cpu.fpu.stack();
    image.header[0] = 1;
    (state.x87_last, state.x87_data) = (0, 0);
    state.x87_pointer = cpu.fpu.dp;
    state.x87 = 1;
    true
}

/// Gives translated code vector registers at `level`, and the x87's if `x87`. False, and it has none, if
/// that can't be.
fn give_units(translator: &mut Translator, cpu: &Cpu, level: u32, x87: bool) -> bool {
    translator.reached.state.drop_units();
    let given =
        (level == 0 || give_vectors(translator, cpu, level)) && (!x87 || give_x87(translator, cpu));
    if !given {
        translator.reached.state.drop_units();
    }
    given
}

/// The vector registers to where translated code loads them from. False if blocks that use them at
/// `level` can't run now.
fn give_vectors(translator: &mut Translator, cpu: &Cpu, level: u32) -> bool {
    let allowed = cpu.vector_level();
    if allowed < level {
        return false;
    }
    let state = &mut translator.reached.state;
    state.xmm = cpu.fpu.xmm;
    state.ymm_high = cpu.fpu.ymm_high;
    state.mxcsr[0] = cpu.fpu.mxcsr;
    state.loaded = allowed;
    true
}

/// Runs `f` on what `context` has; a panic counts as failure.
fn with(
    context: *mut Context,
    f: impl FnOnce(&mut Cpu, &mut Translator, &mut Result, &mut bool) -> u64,
) -> u64 {
    // SAFETY: translated code passes the context of the `enter` that runs it, which lent both to it.
    let context = unsafe { &mut *context };
    // SAFETY: as above.
    let (cpu, translator) = unsafe { (&mut *context.cpu, &mut *context.translator) };
    let (result, interpret) = (&mut context.result, &mut context.interpret);
    match catch_unwind(AssertUnwindSafe(|| f(cpu, translator, result, interpret))) {
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
    with(context, |cpu, translator, result, interpret| {
        let site = Site(site as u32);
        take_registers(translator, cpu);
        let Some((op, key)) = translator.site(cpu, site) else { return GIVE_UP };
        if site.is_for_access() {
            cpu.counters.count(Count::SlowAccesses);
        } else {
            cpu.counters.count(Count::Steps);
            cpu.counters.leave(op.mnemonic);
        }
        let code_epochs = cpu.tlb.code_epochs();
        let index = site.index();
        if translator.checker.as_ref().is_some_and(|checker| checker.stops_before(index)) {
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
        // What may have changed what interrupts, or how instructions are accounted for.
        let ends = op.flags.contains(OpFlags::ENDS_BLOCK);
        if ends && must_leave(cpu) {
            translator.give_back(left);
            return GIVE_UP;
        }
        let broken =
            broken || translator.checker.as_ref().is_some_and(|checker| checker.stops_after(index));
        // After a branch there may be no code to go on with, even if it led to what comes next.
        let goes_on = !broken
            && !op.flags.contains(OpFlags::BRANCH)
            && cpu.rip == op.next_rip
            && key.fits(cpu)
            && cpu.tlb.code_epochs() == code_epochs;
        let (level, x87) = (translator.reached.state.loaded, translator.reached.state.x87 != 0);
        if goes_on && give_units(translator, cpu, level, x87) {
            give_general(translator, cpu);
            // One that is done here for its access alone changes nothing else.
            if !site.is_for_access() {
                give_system(translator, cpu);
            }
            return GO_ON;
        }
        translator.give_back(left);
        translator.reached.state.drop_units();
        if !translator.chains || must_leave(cpu) {
            return GIVE_UP;
        }
        let Some(code) = translator.next(cpu) else {
            *interpret = true;
            return GIVE_UP;
        };
        give_registers(translator, cpu);
        code
    })
}

/// Whether translated code can't run now although the CPU's mode allows it.
fn must_leave(cpu: &Cpu) -> bool {
    cpu.signals.pending() & cpu.urgent_signals() != 0 || cpu.counts_performance()
}

/// Gives translated code the units that it wants, and those that it has.
extern "sysv64" fn units(context: *mut Context, wanted: u64) -> u64 {
    with(context, |cpu, translator, _, _| {
        take_registers(translator, cpu);
        let level = translator.reached.state.loaded.max(wanted as u32 % X87);
        let x87 = translator.reached.state.x87 != 0 || wanted as u32 & X87 != 0;
        if give_units(translator, cpu, level, x87) { GO_ON } else { GIVE_UP }
    })
}

/// Refills an entry of the first-level TLB. The probe has combined the linear address with a tag of the
/// entry at `offset` in the table, which gives `combined`; `what` is a [`Missed`]. Returns [`GO_ON`] if
/// the access hits now, and [`JOINED`] if what was to be read has been put together. Registers are not in
/// the state.
extern "sysv64" fn refill(context: *mut Context, combined: u64, offset: u64, what: u64) -> u64 {
    with(context, |cpu, translator, _, _| {
        // For whom the access is may have changed.
        take_mode(&mut translator.reached.state, cpu);
        let is = |missed: Missed| what == missed as u64;
        if is(Missed::Code) {
            translator.reached.state.address = combined;
            if translator.is_wanted(cpu) {
                return GIVE_UP;
            }
            return if translator.knows_way(cpu, combined) { GO_ON } else { GIVE_UP };
        }
        cpu.counters.count(Count::TlbMisses);
        let access = if is(Missed::Read) { Access::Read } else { Access::Write };
        let index = offset as usize / size_of::<TlbEntry>();
        let linear = combined ^ cpu.tlb.tag(cpu.class, index, access);
        translator.reached.state.address = linear;
        // One that may go on in a page that faults must not leave the first one dirty.
        let last = PAGE_OFFSET + 1 - MAX_WINDOW as u64;
        if is(Missed::Write) && linear & PAGE_OFFSET > last {
            return GIVE_UP;
        }
        let now = if is(Missed::Write) { Access::Write } else { Access::Read };
        if cpu.refill(linear, now, access) {
            return GO_ON;
        }
        if is(Missed::Read) && join(translator, cpu, linear).is_some() { JOINED } else { GIVE_UP }
    })
}

/// Reads the time-stamp counter, for RDTSC and RDTSCP. Registers are not in the state.
extern "sysv64" fn time(context: *mut Context) -> u64 {
    with(context, |cpu, translator, _, _| {
        // For whom it is read may have changed.
        take_mode(&mut translator.reached.state, cpu);
        if !cpu.may_read_tsc() {
            return GIVE_UP;
        }
        (translator.reached.state.address, translator.reached.state.tsc_aux) =
            (cpu.tsc(), cpu.msrs.tsc_aux);
        GO_ON
    })
}

/// Puts together what is at `linear`, if that is at a page's end, and where the next page begins. `None`
/// if one of them is not at hand.
fn join(translator: &mut Translator, cpu: &mut Cpu, linear: u64) -> Option<()> {
    let first_len = (PAGE_OFFSET + 1 - (linear & PAGE_OFFSET)) as usize;
    let first = cpu.tlb.probe(cpu.class, linear, 1, Access::Read)?;
    let next = linear.checked_add(first_len as u64).filter(|_| first_len < JOINED_LEN)?;
    let hits = cpu.tlb.probe(cpu.class, next, 1, Access::Read).is_some();
    if !hits && !cpu.refill(next, Access::Read, Access::Read) {
        return None;
    }
    let second = cpu.tlb.probe(cpu.class, next, 1, Access::Read)?;
    let joined = &mut translator.reached.state.joined[..JOINED_LEN];
    let (head, tail) = joined.split_at_mut(first_len);
    first.read_bytes(head);
    second.read_bytes(tail);
    translator.reached.state.address = translator.reached.state.joined.as_ptr() as u64;
    Some(())
}
