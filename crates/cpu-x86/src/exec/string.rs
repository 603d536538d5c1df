//! String instructions (APM volume 3: CMPSx, INSx, LODSx, MOVSx, OUTSx, SCASx, STOSx; section 1.2.6
//! for the repeat prefixes).
//!
//! A repeated instruction updates its registers after every step, so it may stop between any two: at
//! a fault, or to let an interrupt in, with RIP at itself. REP MOVS and REP STOS go a page at a time
//! where both sides are ordinary memory.

use iced_x86::{Instruction, Mnemonic};

use super::sized;
use crate::cpu::Cpu;
use crate::exception::Result;
use crate::flags::bits;
use crate::host::{Access, HostPtr, PAGE_OFFSET};
use crate::int::Int;
use crate::op::{Handler, Op, OpFlags};
use crate::reg::{RAX, RCX, RDI, RDX, RSI, addr_mask};
use crate::segment::ES;
use crate::smm::IoAccess;
use crate::svm::IoKind;
use crate::tlb::Class;

/// Steps of a repeated instruction between two looks at the CPU's signals.
const STEPS_UNCHECKED: u32 = 64;
/// Shortest run in bytes that is worth the setup of a bulk copy.
const BULK_MIN: u64 = 16;

/// How a step ended.
struct Step {
    /// Elements done.
    done: u64,
    /// Whether the repetition ends here, whatever the count.
    last: bool,
    /// Whether something waits to be looked at before the repetition goes on.
    pause: bool,
}

const ONE: Step = Step { done: 1, last: false, pause: false };

/// Runs `step` once, or with a repeat prefix until the count in rCX is used up. `step` is told how
/// many elements it may do.
#[inline(always)]
fn repeat(cpu: &mut Cpu, op: &Op, step: impl Fn(&mut Cpu, &Op, u64) -> Result<Step>) -> Result {
    if !op.flags.intersects(OpFlags::REP | OpFlags::REPNE) {
        return step(cpu, op, 1).map(|_| ());
    }
    let mut left = cpu.reg_sized(RCX, op.addr_size);
    let one_by_one = cpu.system_flags & bits::TF != 0 || cpu.class == Class::Watched;
    let mut steps = 0;
    while left != 0 {
        let Step { done, last, pause } = step(cpu, op, if one_by_one { 1 } else { left })?;
        left -= done;
        cpu.set_reg_sized(RCX, op.addr_size, left);
        if last {
            break;
        }
        steps += 1;
        let look =
            one_by_one || pause || steps % STEPS_UNCHECKED == 0 && cpu.signals.pending() != 0;
        if look && left != 0 {
            cpu.rip = op.rip();
            cpu.break_block = true;
            break;
        }
    }
    Ok(())
}

/// Moves an index register past `count` elements in the direction that DF gives.
#[inline(always)]
fn advance<T: Int>(cpu: &mut Cpu, op: &Op, n: u8, count: u64) {
    let bytes = count.wrapping_mul(T::BYTES as u64);
    let old = cpu.gpr(n);
    let new = if cpu.system_flags & bits::DF != 0 {
        old.wrapping_sub(bytes)
    } else {
        old.wrapping_add(bytes)
    };
    cpu.set_reg_sized(n, op.addr_size, new);
}

/// Where the elements from `seg:offset` upwards are on the host, if they are ordinary memory at hand:
/// the address, and how many bytes of the `wanted` ones are in the same page.
#[inline(always)]
fn run_of(
    cpu: &Cpu,
    op: &Op,
    seg: u8,
    offset: u64,
    wanted: u64,
    access: Access,
) -> Option<(HostPtr, u64)> {
    let linear = cpu.linear(seg, offset, 1, access).ok()?;
    let bytes = wanted.min(PAGE_OFFSET + 1 - (linear & PAGE_OFFSET));
    if offset.checked_add(bytes)? - 1 > addr_mask(op.addr_size) {
        return None;
    }
    cpu.linear(seg, offset, bytes as usize, access).ok()?;
    let host = cpu.tlb.probe(cpu.class, linear, bytes as usize, access)?;
    Some((host, bytes))
}

/// Whether a bulk step over `count` elements is possible at all.
#[inline(always)]
fn bulk_bytes<T: Int>(cpu: &Cpu, count: u64) -> Option<u64> {
    let bytes = count.min(PAGE_OFFSET + 1) * T::BYTES as u64;
    (bytes >= BULK_MIN && cpu.system_flags & bits::DF == 0).then_some(bytes)
}

/// Copies as much as is in one page on both sides; returns the number of elements.
fn bulk_movs<T: Int>(cpu: &mut Cpu, op: &Op, count: u64) -> Option<u64> {
    let wanted = bulk_bytes::<T>(cpu, count)?;
    let rsi = cpu.reg_sized(RSI, op.addr_size);
    let rdi = cpu.reg_sized(RDI, op.addr_size);
    let (from, readable) = run_of(cpu, op, op.seg, rsi, wanted, Access::Read)?;
    let (to, bytes) = run_of(cpu, op, ES, rdi, readable, Access::Write)?;
    // A destination a little above the source repeats a pattern: no more at a time than its length.
    let distance = (to.addr() as u64).wrapping_sub(from.addr() as u64);
    let bytes = if distance == 0 { bytes } else { bytes.min(distance) };
    let elements = bytes / T::BYTES as u64;
    let bytes = elements * T::BYTES as u64;
    if bytes < BULK_MIN {
        return None;
    }
    to.copy_from(from, bytes as usize);
    Some(elements)
}

fn movs<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    repeat(cpu, op, |cpu, op, count| {
        let done = match bulk_movs::<T>(cpu, op, count) {
            Some(done) => done,
            None => {
                let value = cpu.load::<T>(op.seg, cpu.reg_sized(RSI, op.addr_size))?;
                cpu.store(ES, cpu.reg_sized(RDI, op.addr_size), value)?;
                1
            }
        };
        advance::<T>(cpu, op, RSI, done);
        advance::<T>(cpu, op, RDI, done);
        Ok(Step { done, ..ONE })
    })
}

/// Fills as much as is in one page; returns the number of elements.
fn bulk_stos<T: Int>(cpu: &mut Cpu, op: &Op, count: u64) -> Option<u64> {
    let wanted = bulk_bytes::<T>(cpu, count)?;
    let rdi = cpu.reg_sized(RDI, op.addr_size);
    let (to, bytes) = run_of(cpu, op, ES, rdi, wanted, Access::Write)?;
    let elements = bytes / T::BYTES as u64;
    let bytes = elements * T::BYTES as u64;
    let value = cpu.reg::<T>(RAX);
    let pattern = (u64::MAX / T::ONES.to_u64()).wrapping_mul(value.to_u64());
    to.fill(pattern, bytes as usize);
    (elements > 0).then_some(elements)
}

fn stos<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    repeat(cpu, op, |cpu, op, count| {
        let done = match bulk_stos::<T>(cpu, op, count) {
            Some(done) => done,
            None => {
                cpu.store(ES, cpu.reg_sized(RDI, op.addr_size), cpu.reg::<T>(RAX))?;
                1
            }
        };
        advance::<T>(cpu, op, RDI, done);
        Ok(Step { done, ..ONE })
    })
}

fn lods<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    repeat(cpu, op, |cpu, op, _| {
        let value = cpu.load::<T>(op.seg, cpu.reg_sized(RSI, op.addr_size))?;
        cpu.set_reg(RAX, value);
        advance::<T>(cpu, op, RSI, 1);
        Ok(ONE)
    })
}

/// Whether a comparison ends the repetition: REPE at a difference, REPNE at a match.
#[inline(always)]
fn compared(cpu: &Cpu, op: &Op) -> Step {
    let wanted = !op.flags.contains(OpFlags::REPNE);
    Step { last: cpu.zf() != wanted, ..ONE }
}

fn cmps<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    repeat(cpu, op, |cpu, op, _| {
        // In this order: it shows if both fault.
        let b = cpu.load::<T>(ES, cpu.reg_sized(RDI, op.addr_size))?;
        let a = cpu.load::<T>(op.seg, cpu.reg_sized(RSI, op.addr_size))?;
        advance::<T>(cpu, op, RSI, 1);
        advance::<T>(cpu, op, RDI, 1);
        cpu.flags_sub(a, b, a.wsub(b));
        Ok(compared(cpu, op))
    })
}

fn scas<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    repeat(cpu, op, |cpu, op, _| {
        let a = cpu.reg::<T>(RAX);
        let b = cpu.load::<T>(ES, cpu.reg_sized(RDI, op.addr_size))?;
        advance::<T>(cpu, op, RDI, 1);
        cpu.flags_sub(a, b, a.wsub(b));
        Ok(compared(cpu, op))
    })
}

/// Asks a guest's host, unless nothing is to be repeated.
fn intercept_io(cpu: &mut Cpu, op: &Op, port: u16, size: usize, is_in: bool) -> Result {
    let repeated = op.flags.intersects(OpFlags::REP | OpFlags::REPNE);
    if repeated && cpu.reg_sized(RCX, op.addr_size) == 0 {
        return Ok(());
    }
    cpu.intercept_io(op, port, size as u8, IoKind { is_in, is_string: true })
}

fn ins<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let port = cpu.reg::<u16>(RDX);
    cpu.check_io(port, T::BYTES as u8)?;
    intercept_io(cpu, op, port, T::BYTES, true)?;
    repeat(cpu, op, |cpu, op, _| {
        let offset = cpu.reg_sized(RDI, op.addr_size);
        cpu.probe_write(ES, offset, T::BYTES)?;
        cpu.note_io_breakpoints(port, T::BYTES);
        let value = cpu.bus.read_port(port, T::BYTES as u8);
        let access = IoAccess { port, size: T::BYTES as u8, is_in: true, is_string: true };
        let pause = cpu.note_io(op, access);
        cpu.store(ES, offset, T::from_u64(value.into()))?;
        advance::<T>(cpu, op, RDI, 1);
        Ok(Step { pause, ..ONE })
    })
}

fn outs<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let port = cpu.reg::<u16>(RDX);
    cpu.check_io(port, T::BYTES as u8)?;
    intercept_io(cpu, op, port, T::BYTES, false)?;
    repeat(cpu, op, |cpu, op, _| {
        let value = cpu.load::<T>(op.seg, cpu.reg_sized(RSI, op.addr_size))?;
        cpu.note_io_breakpoints(port, T::BYTES);
        cpu.bus.write_port(port, T::BYTES as u8, value.to_u64() as u32);
        let access = IoAccess { port, size: T::BYTES as u8, is_in: false, is_string: true };
        let pause = cpu.note_io(op, access);
        advance::<T>(cpu, op, RSI, 1);
        Ok(Step { pause, ..ONE })
    })
}

/// The handler of `insn`, if it belongs to this group.
pub(super) fn select(insn: &Instruction) -> Option<Handler> {
    // MOVSD and CMPSD are SSE instructions, too.
    if !insn.is_string_instruction() {
        return None;
    }
    let size = insn.memory_size().size();
    match insn.mnemonic() {
        Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq => {
            sized!(size, movs)
        }
        Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => {
            sized!(size, stos)
        }
        Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => {
            sized!(size, lods)
        }
        Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd | Mnemonic::Cmpsq => {
            sized!(size, cmps)
        }
        Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq => {
            sized!(size, scas)
        }
        Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd => sized!(size, ins),
        Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => sized!(size, outs),
        _ => None,
    }
}
