//! Fast system calls and segment bases: SYSCALL, SYSRET, SYSENTER, SYSEXIT, SWAPGS, and RDFSBASE with
//! its relatives (APM volume 2, section 6.1).

use iced_x86::{Code, Instruction};

use super::require_cpl0;
use crate::cpu::Cpu;
use crate::descriptor::SELECTOR_INDEX;
use crate::exception::{Exception, Result};
use crate::flags::bits;
use crate::int::Int;
use crate::op::{Handler, Op};
use crate::reg::{RCX, RDX, RSP};
use crate::regs::{CR4_FSGSBASE, EFER_SCE};
use crate::segment::{CS, FS, GS, SS, attr};
use crate::state::Segment;

/// A flat segment as these instructions load without looking at a table.
fn flat(selector: u16, attributes: u16) -> Segment {
    let attributes =
        attributes | attr::NOT_SYSTEM | attr::PRESENT | attr::ACCESSED | attr::GRANULAR;
    Segment { selector, base: 0, limit: u32::MAX, attributes }
}

fn flat_code(selector: u16, long: bool, level: u16) -> Segment {
    let size = if long { attr::LONG } else { attr::BIG };
    flat(selector, attr::CODE | attr::READABLE | size | level << 5)
}

fn flat_stack(selector: u16, level: u16) -> Segment {
    flat(selector, attr::WRITABLE | attr::BIG | level << 5)
}

/// Whether SYSCALL and SYSRET are there now: an Intel processor has them in 64-bit mode only.
fn has_syscall(cpu: &Cpu) -> bool {
    cpu.efer & EFER_SCE != 0 && cpu.mode.is_protected() && (cpu.mode.is_64() || !cpu.limits.intel)
}

/// What SYSCALL and SYSRET between 64-bit code of the two levels do beside registers, for whoever
/// executes the rest of them: the mode stays.
impl Cpu {
    /// Whether they do nothing that is unusual: SYSCALL leaves neither AC nor TF set.
    pub(crate) fn has_plain_syscall(&self) -> bool {
        let cleared = bits::AC | bits::TF;
        self.efer & EFER_SCE != 0 && self.msrs.sfmask & cleared == cleared
    }

    /// SYSCALL came from level 3 to level 0.
    pub(crate) fn finish_syscall(&mut self) {
        let selector = (self.msrs.star >> 32) as u16 & 0xfffc;
        self.cross(flat_code(selector, true, 0), flat_stack(selector.wrapping_add(8), 0), 0);
    }

    /// SYSRET went back.
    pub(crate) fn finish_sysret(&mut self) {
        let base = (self.msrs.star >> 48) as u16 | 3;
        let stack = flat_stack(base.wrapping_add(8) | 3, 3);
        self.cross(flat_code(base.wrapping_add(16) | 3, true, 3), stack, 3);
    }

    fn cross(&mut self, code: Segment, stack: Segment, level: u8) {
        self.seg[usize::from(CS)] =
            Segment { selector: code.selector & SELECTOR_INDEX | u16::from(level), ..code };
        self.seg[usize::from(SS)] = stack;
        self.cpl = level;
        self.update_class();
    }
}

fn syscall(cpu: &mut Cpu, _: &Op) -> Result {
    if !has_syscall(cpu) {
        return Err(Exception::UD);
    }
    let star = cpu.msrs.star;
    let selector = (star >> 32) as u16 & 0xfffc;
    let long = cpu.long_mode();
    let target;
    if long {
        target = if cpu.mode.is_64() { cpu.msrs.lstar } else { cpu.msrs.cstar };
        cpu.set_reg(RCX, cpu.rip);
        cpu.set_reg(11, cpu.rflags() & !bits::RF);
        let mask = !(cpu.msrs.sfmask | bits::RF);
        let flags = cpu.rflags() & mask;
        cpu.set_rflags(flags);
    } else {
        target = star & 0xffff_ffff;
        cpu.set_reg(RCX, cpu.rip as u32);
        cpu.system_flags &= !(bits::VM | bits::IF | bits::RF);
    }
    cpu.ends_step = cpu.system_flags & bits::TF == 0;
    cpu.seg[usize::from(SS)] = flat_stack(selector.wrapping_add(8), 0);
    cpu.set_code(flat_code(selector, long, 0), 0, target);
    Ok(())
}

fn sysret<const LONG: bool>(cpu: &mut Cpu, _: &Op) -> Result {
    if !has_syscall(cpu) {
        return Err(Exception::UD);
    }
    require_cpl0(cpu)?;
    let base = (cpu.msrs.star >> 48) as u16 | 3;
    let rcx = cpu.gpr(RCX);
    if cpu.long_mode() {
        let flags = cpu.gpr(11) & !(bits::RF | bits::VM);
        cpu.set_rflags(flags);
    } else {
        cpu.system_flags |= bits::IF;
    }
    cpu.seg[usize::from(SS)] = flat_stack(base.wrapping_add(8) | 3, 3);
    let selector = if LONG { base.wrapping_add(16) | 3 } else { base };
    let target = if LONG { rcx } else { rcx & 0xffff_ffff };
    cpu.set_code(flat_code(selector, LONG, 3), 3, target);
    Ok(())
}

/// SYSENTER: an AMD processor has it in legacy mode only.
fn sysenter(cpu: &mut Cpu, _: &Op) -> Result {
    let long = cpu.long_mode();
    if long && !cpu.limits.intel {
        return Err(Exception::UD);
    }
    let selector = cpu.msrs.sysenter_cs as u16 & 0xfffc;
    if cpu.mode.is_real() || selector == 0 {
        return Err(Exception::GP0);
    }
    cpu.system_flags &= !(bits::VM | bits::IF | bits::RF);
    cpu.seg[usize::from(SS)] = flat_stack(selector.wrapping_add(8), 0);
    let mask = if long { u64::MAX } else { 0xffff_ffff };
    cpu.set_reg(RSP, cpu.msrs.sysenter_esp & mask);
    let target = cpu.msrs.sysenter_eip & mask;
    cpu.set_code(flat_code(selector, long, 0), 0, target);
    Ok(())
}

/// SYSEXIT, to 64-bit code if `LONG`.
fn sysexit<const LONG: bool>(cpu: &mut Cpu, _: &Op) -> Result {
    if cpu.long_mode() && !cpu.limits.intel {
        return Err(Exception::UD);
    }
    let selector = cpu.msrs.sysenter_cs as u16 & 0xfffc;
    if !cpu.mode.is_protected() || selector == 0 {
        return Err(Exception::GP0);
    }
    require_cpl0(cpu)?;
    let mask = if LONG { u64::MAX } else { 0xffff_ffff };
    let (target, sp) = (cpu.gpr(RDX) & mask, cpu.gpr(RCX) & mask);
    if LONG && !(cpu.is_canonical(target) && cpu.is_canonical(sp)) {
        return Err(Exception::GP0);
    }
    let code = selector.wrapping_add(if LONG { 32 } else { 16 }) | 3;
    cpu.seg[usize::from(SS)] = flat_stack(code.wrapping_add(8), 3);
    cpu.set_reg(RSP, sp);
    cpu.set_code(flat_code(code, LONG, 3), 3, target);
    Ok(())
}

fn swapgs(cpu: &mut Cpu, _: &Op) -> Result {
    if !cpu.mode.is_64() {
        return Err(Exception::UD);
    }
    require_cpl0(cpu)?;
    std::mem::swap(&mut cpu.seg[usize::from(GS)].base, &mut cpu.msrs.kernel_gs_base);
    cpu.update_segment(GS);
    Ok(())
}

/// #UD unless the instructions for FS and GS bases are enabled.
fn require_fsgsbase(cpu: &Cpu) -> Result {
    if cpu.mode.is_64() && cpu.cr4 & CR4_FSGSBASE != 0 { Ok(()) } else { Err(Exception::UD) }
}

fn read_base<T: Int, const SEGMENT: u8>(cpu: &mut Cpu, op: &Op) -> Result {
    require_fsgsbase(cpu)?;
    let base = cpu.seg[usize::from(SEGMENT)].base;
    cpu.set_reg(op.dst, T::from_u64(base));
    Ok(())
}

fn write_base<T: Int, const SEGMENT: u8>(cpu: &mut Cpu, op: &Op) -> Result {
    require_fsgsbase(cpu)?;
    let base = cpu.reg::<T>(op.dst).to_u64();
    if !cpu.is_canonical_base(base) {
        return Err(Exception::GP0);
    }
    cpu.seg[usize::from(SEGMENT)].base = base;
    cpu.update_segment(SEGMENT);
    Ok(())
}

/// The handler of `insn`, if it belongs to this group.
pub(super) fn select(insn: &Instruction) -> Option<Handler> {
    Some(match insn.code() {
        Code::Syscall => syscall,
        Code::Sysretd => sysret::<false>,
        Code::Sysretq => sysret::<true>,
        Code::Sysenter => sysenter,
        Code::Sysexitd => sysexit::<false>,
        Code::Sysexitq => sysexit::<true>,
        Code::Swapgs => swapgs,
        Code::Rdfsbase_r32 => read_base::<u32, FS>,
        Code::Rdfsbase_r64 => read_base::<u64, FS>,
        Code::Rdgsbase_r32 => read_base::<u32, GS>,
        Code::Rdgsbase_r64 => read_base::<u64, GS>,
        Code::Wrfsbase_r32 => write_base::<u32, FS>,
        Code::Wrfsbase_r64 => write_base::<u64, FS>,
        Code::Wrgsbase_r32 => write_base::<u32, GS>,
        Code::Wrgsbase_r64 => write_base::<u64, GS>,
        _ => return None,
    })
}
