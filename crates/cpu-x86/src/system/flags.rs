//! CLI, STI, PUSHF, POPF, CLAC, STAC: flags that the system owns; HLT and its relatives.

use iced_x86::{Code, Instruction};

use super::require_cpl0;
use crate::cpu::Cpu;
use crate::exception::{Exception, Result};
use crate::flags::bits;
use crate::int::Int;
use crate::op::{Handler, Op};
use crate::reg::RAX;
use crate::regs::{CR4_PVI, CR4_VME};
use crate::segment::DS;
use crate::state::Activity;
use crate::svm::code;

/// Which flag CLI and STI change.
enum InterruptFlag {
    Real,
    /// VIF: CR4 gives it to virtual-8086 mode (VME) or to programs at CPL 3 (PVI).
    Virtual,
}

/// #GP(0) if the program may change neither IF nor VIF.
fn interrupt_flag(cpu: &Cpu) -> Result<InterruptFlag> {
    let virtual_by = if cpu.mode.is_vm86() { CR4_VME } else { CR4_PVI };
    if cpu.mode.is_real() || cpu.cpl <= cpu.iopl() {
        Ok(InterruptFlag::Real)
    } else if cpu.cpl == 3 && cpu.cr4 & virtual_by != 0 {
        Ok(InterruptFlag::Virtual)
    } else {
        Err(Exception::GP0)
    }
}

fn cli(cpu: &mut Cpu, _: &Op) -> Result {
    match interrupt_flag(cpu)? {
        InterruptFlag::Real => cpu.system_flags &= !bits::IF,
        InterruptFlag::Virtual => cpu.set_virtual_if(false),
    }
    Ok(())
}

fn sti(cpu: &mut Cpu, _: &Op) -> Result {
    match interrupt_flag(cpu)? {
        InterruptFlag::Real if cpu.system_flags & bits::IF == 0 => {
            cpu.system_flags |= bits::IF;
            cpu.shadow = true;
        }
        InterruptFlag::Real => {}
        InterruptFlag::Virtual if cpu.system_flags & bits::VIP != 0 => {
            return Err(Exception::GP0);
        }
        InterruptFlag::Virtual => cpu.set_virtual_if(true),
    }
    Ok(())
}

/// Whether PUSHF and POPF of `size` bytes are about VIF instead of IF. #GP(0) if they are not allowed.
fn is_virtual(cpu: &Cpu, size: usize) -> Result<bool> {
    if !cpu.mode.is_vm86() || cpu.iopl() == 3 {
        Ok(false)
    } else if cpu.cr4 & CR4_VME != 0 && size == 2 {
        Ok(true)
    } else {
        Err(Exception::GP0)
    }
}

fn pushf<T: Int>(cpu: &mut Cpu, _: &Op) -> Result {
    // An intercept comes before what the mode refuses.
    cpu.intercept(code::PUSHF)?;
    let is_virtual = is_virtual(cpu, T::BYTES)?;
    let flags =
        if is_virtual { cpu.virtual_flags() } else { cpu.rflags() & !(bits::VM | bits::RF) };
    cpu.push(T::from_u64(flags))
}

fn popf<T: Int>(cpu: &mut Cpu, _: &Op) -> Result {
    // An intercept comes before what the mode refuses.
    cpu.intercept(code::POPF)?;
    let is_virtual = is_virtual(cpu, T::BYTES)?;
    if is_virtual {
        let before = cpu.gpr[4];
        let value = cpu.pop::<T>()?.to_u64();
        if let Err(fault) = cpu.check_virtual_flags(value) {
            cpu.gpr[4] = before;
            return Err(fault);
        }
        cpu.write_virtual_flags(value);
        return Ok(());
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
    cpu.intercept(code::HLT)?;
    cpu.activity = Activity::Halted;
    cpu.break_block = true;
    Ok(())
}

/// MONITOR: the address is checked as for a load; nothing is watched.
fn monitor(cpu: &mut Cpu, op: &Op) -> Result {
    require_cpl0(cpu)?;
    cpu.intercept(code::MONITOR)?;
    if cpu.gpr(1) as u32 != 0 {
        return Err(Exception::GP0);
    }
    let width = if op.addr_size == 0 { 8 } else { op.addr_size };
    let offset = cpu.reg_sized(RAX, width);
    let seg = if op.addr_size == 0 { DS } else { op.seg };
    cpu.load::<u8>(seg, offset)?;
    cpu.monitors = true;
    Ok(())
}

/// MWAIT returns at once, as it may at any time.
fn mwait(cpu: &mut Cpu, _: &Op) -> Result {
    require_cpl0(cpu)?;
    cpu.intercept(code::MWAIT)?;
    if std::mem::take(&mut cpu.monitors) {
        cpu.intercept(code::MWAIT_ARMED)?;
    }
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
