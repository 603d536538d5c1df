//! CPUID, model-specific registers, time-stamp counter, random numbers.

use iced_x86::{Code, Instruction};

use super::require_cpl0;
use crate::cpu::Cpu;
use crate::exception::{Exception, Result};
use crate::flags::bits;
use crate::int::Int;
use crate::msr::index;
use crate::op::{Handler, Op};
use crate::reg::{RAX, RBX, RCX, RDX};
use crate::regs::CR4_TSD;
use crate::svm::code;

fn cpuid(cpu: &mut Cpu, _: &Op) -> Result {
    if !cpu.may_identify() {
        return Err(Exception::GP0);
    }
    cpu.intercept(code::CPUID)?;
    let leaf = cpu.cpuid(cpu.reg(RAX), cpu.reg(RCX));
    cpu.set_reg(RAX, leaf.eax);
    cpu.set_reg(RBX, leaf.ebx);
    cpu.set_reg(RCX, leaf.ecx);
    cpu.set_reg(RDX, leaf.edx);
    Ok(())
}

fn set_pair(cpu: &mut Cpu, value: u64) {
    cpu.set_reg(RAX, value as u32);
    cpu.set_reg(RDX, (value >> 32) as u32);
}

fn rdmsr(cpu: &mut Cpu, _: &Op) -> Result {
    require_cpl0(cpu)?;
    let register = cpu.reg(RCX);
    cpu.intercept_msr(register, false)?;
    cpu.sync_performance();
    let Some(value) = cpu.read_msr(register) else {
        cpu.trace_msr("read", register);
        return Err(Exception::GP0);
    };
    set_pair(cpu, value);
    Ok(())
}

fn wrmsr(cpu: &mut Cpu, _: &Op) -> Result {
    require_cpl0(cpu)?;
    let value = u64::from(cpu.reg::<u32>(RAX)) | u64::from(cpu.reg::<u32>(RDX)) << 32;
    let register = cpu.reg(RCX);
    cpu.intercept_msr(register, true)?;
    if cpu.write_msr(register, value) {
        return Ok(());
    }
    cpu.trace_msr("write", register);
    Err(Exception::GP0)
}

impl Cpu {
    /// Whether the program may read the time-stamp counter.
    pub(crate) fn may_read_tsc(&self) -> bool {
        self.cr4 & CR4_TSD == 0 || self.cpl == 0
    }
}

/// #GP(0) unless the program may read the time-stamp counter.
fn require_tsc(cpu: &Cpu) -> Result {
    if cpu.may_read_tsc() { Ok(()) } else { Err(Exception::GP0) }
}

fn rdtsc(cpu: &mut Cpu, _: &Op) -> Result {
    require_tsc(cpu)?;
    cpu.intercept(code::RDTSC)?;
    let now = cpu.tsc();
    set_pair(cpu, now);
    Ok(())
}

fn rdtscp(cpu: &mut Cpu, _: &Op) -> Result {
    require_tsc(cpu)?;
    cpu.intercept(code::RDTSCP)?;
    let now = cpu.tsc();
    set_pair(cpu, now);
    cpu.set_reg(RCX, cpu.msrs.tsc_aux as u32);
    Ok(())
}

/// RDPRU: MPERF (0) or APERF (1); zero for what there is not.
fn rdpru(cpu: &mut Cpu, _: &Op) -> Result {
    if !cpu.may_read_tsc() {
        return Err(Exception::UD);
    }
    cpu.intercept(code::RDPRU)?;
    let register = match cpu.reg::<u32>(RCX) {
        0 => index::MPERF,
        1 => index::APERF,
        _ => 0,
    };
    let value = cpu.read_effective_frequency(register).unwrap_or(0);
    set_pair(cpu, value);
    Ok(())
}

fn rdpid<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.set_reg(op.dst, T::from_u64(cpu.msrs.tsc_aux));
    Ok(())
}

fn rdpmc(cpu: &mut Cpu, _: &Op) -> Result {
    if let Some(value) = cpu.backdoor_counter(cpu.reg(RCX)) {
        set_pair(cpu, value);
        return Ok(());
    }
    if cpu.may_read_counters() {
        cpu.intercept(code::RDPMC)?;
    }
    let value = cpu.read_performance_counter(cpu.reg(RCX))?;
    set_pair(cpu, value);
    Ok(())
}

/// RDRAND and RDSEED. Without entropy from the host they report that none is ready.
fn rdrand<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let random = cpu.entropy.next();
    cpu.set_reg(op.dst, T::from_u64(random.unwrap_or(0)));
    cpu.change_flags(bits::ARITH, if random.is_some() { bits::CF } else { 0 });
    Ok(())
}

/// The handler of `insn`, if it belongs to this group.
pub(super) fn select(insn: &Instruction) -> Option<Handler> {
    Some(match insn.code() {
        Code::Cpuid => cpuid,
        Code::Rdmsr => rdmsr,
        Code::Wrmsr => wrmsr,
        Code::Rdtsc => rdtsc,
        Code::Rdtscp => rdtscp,
        Code::Rdpru => rdpru,
        Code::Rdpid_r32 => rdpid::<u32>,
        Code::Rdpid_r64 => rdpid::<u64>,
        Code::Rdpmc => rdpmc,
        Code::Rdrand_r16 | Code::Rdseed_r16 => rdrand::<u16>,
        Code::Rdrand_r32 | Code::Rdseed_r32 => rdrand::<u32>,
        Code::Rdrand_r64 | Code::Rdseed_r64 => rdrand::<u64>,
        _ => return None,
    })
}
