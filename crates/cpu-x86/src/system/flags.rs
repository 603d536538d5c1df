//! CLI, STI, PUSHF, POPF, CLAC, STAC: flags that the system owns; HLT and its relatives.

use iced_x86::{Code, Instruction};

use super::require_cpl0;
use crate::cpu::Cpu;
use crate::exception::{Exception, Result};
use crate::flags::bits;
use crate::int::Int;
use crate::op::{Handler, Op};
use crate::reg::RAX;
use crate::segment::DS;
use crate::state::Activity;

/// #GP(0) unless the program may change IF.
fn require_iopl(cpu: &Cpu) -> Result {
    if cpu.mode.is_real() || cpu.cpl <= cpu.iopl() { Ok(()) } else { Err(Exception::GP0) }
}

fn cli(cpu: &mut Cpu, _: &Op) -> Result {
    require_iopl(cpu)?;
    cpu.system_flags &= !bits::IF;
    Ok(())
}

fn sti(cpu: &mut Cpu, _: &Op) -> Result {
    require_iopl(cpu)?;
    if cpu.system_flags & bits::IF == 0 {
        cpu.system_flags |= bits::IF;
        cpu.shadow = true;
    }
    Ok(())
}

fn pushf<T: Int>(cpu: &mut Cpu, _: &Op) -> Result {
    if cpu.mode.is_vm86() && cpu.iopl() != 3 {
        return Err(Exception::GP0);
    }
    let flags = cpu.rflags() & !(bits::VM | bits::RF);
    cpu.push(T::from_u64(flags))
}

fn popf<T: Int>(cpu: &mut Cpu, _: &Op) -> Result {
    if cpu.mode.is_vm86() && cpu.iopl() != 3 {
        return Err(Exception::GP0);
    }
    let value = cpu.pop::<T>()?.to_u64();
    let mut mask = cpu.changeable_flags();
    if cpu.mode.is_vm86() {
        mask = mask & !bits::IOPL | bits::IF;
    }
    // RF is cleared, as the mask includes it and the value does not.
    cpu.write_flags(value & !bits::RF, mask | bits::RF, T::BYTES as u8);
    Ok(())
}

fn clac(cpu: &mut Cpu, _: &Op) -> Result {
    if cpu.cpl != 0 || cpu.mode.is_vm86() {
        return Err(Exception::UD);
    }
    cpu.system_flags &= !bits::AC;
    cpu.update_class();
    Ok(())
}

fn stac(cpu: &mut Cpu, _: &Op) -> Result {
    if cpu.cpl != 0 || cpu.mode.is_vm86() {
        return Err(Exception::UD);
    }
    cpu.system_flags |= bits::AC;
    cpu.update_class();
    Ok(())
}

fn hlt(cpu: &mut Cpu, _: &Op) -> Result {
    require_cpl0(cpu)?;
    cpu.activity = Activity::Halted;
    cpu.break_block = true;
    Ok(())
}

/// MONITOR: the address is checked as for a load; nothing is watched.
fn monitor(cpu: &mut Cpu, op: &Op) -> Result {
    require_cpl0(cpu)?;
    if cpu.gpr(1) as u32 != 0 {
        return Err(Exception::GP0);
    }
    let width = if op.addr_size == 0 { 8 } else { op.addr_size };
    let offset = cpu.reg_sized(RAX, width);
    let seg = if op.addr_size == 0 { DS } else { op.seg };
    cpu.load::<u8>(seg, offset).map(|_| ())
}

/// MWAIT returns at once, as it may at any time.
fn mwait(cpu: &mut Cpu, _: &Op) -> Result {
    require_cpl0(cpu)?;
    if cpu.gpr(1) as u32 > 1 {
        return Err(Exception::GP0);
    }
    std::thread::yield_now();
    Ok(())
}

/// The handler of `insn`, if it belongs to this group.
pub(super) fn select(insn: &Instruction) -> Option<Handler> {
    Some(match insn.code() {
        Code::Cli => cli,
        Code::Sti => sti,
        Code::Pushfw => pushf::<u16>,
        Code::Pushfd => pushf::<u32>,
        Code::Pushfq => pushf::<u64>,
        Code::Popfw => popf::<u16>,
        Code::Popfd => popf::<u32>,
        Code::Popfq => popf::<u64>,
        Code::Clac => clac,
        Code::Stac => stac,
        Code::Hlt => hlt,
        Code::Monitorw | Code::Monitord | Code::Monitorq => monitor,
        Code::Mwait => mwait,
        _ => return None,
    })
}
