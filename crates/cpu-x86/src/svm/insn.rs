//! The instructions of this mode (APM volume 3): VMRUN, VMLOAD, VMSAVE, VMMCALL, STGI, CLGI, INVLPGA.
//! SKINIT, a feature of its own that needs a trusted platform module, is undefined.

use iced_x86::{Code, Instruction};

use super::exit::code;
use super::nested::Purpose;
use super::vmcb::{Vmcb, at};
use super::{ASIDS, has};
use crate::cpu::Cpu;
use crate::exception::{Exception, Result};
use crate::host::Access;
use crate::interrupt::Delivered;
use crate::op::{Handler, Op};
use crate::reg::{RAX, RCX};
use crate::regs::{EFER_SVME, PENDING_SHUTDOWN};
use crate::segment::{FS, GS};

/// The checks that all of them share, for the current mode and privilege level.
fn require_svm(cpu: &Cpu) -> Result {
    if cpu.efer & EFER_SVME == 0 || !cpu.mode.is_protected() {
        return Err(Exception::UD);
    }
    if cpu.cpl == 0 { Ok(()) } else { Err(Exception::GP0) }
}

/// The physical address of a control block in rAX: a page that there can be.
fn block_address(cpu: &Cpu, op: &Op) -> Result<u64> {
    let address = cpu.reg_sized(RAX, op.addr_size);
    if address & 0xfff != 0 || address >> cpu.limits.phys_bits != 0 {
        Err(Exception::GP0)
    } else {
        Ok(address)
    }
}

/// The address in rAX, and the exit if `code` is intercepted; which of the two is first looked at is a
/// feature.
fn block(cpu: &mut Cpu, op: &Op, code: u32) -> Result<u64> {
    require_svm(cpu)?;
    if cpu.svm_has(has::ADDRESS_CHECK) {
        block_address(cpu, op)?;
    }
    cpu.intercept(code)?;
    block_address(cpu, op)
}

fn vmrun(cpu: &mut Cpu, op: &Op) -> Result {
    let at = block(cpu, op, code::VMRUN)?;
    if !cpu.has_save_area() {
        return Err(Exception::GP0);
    }
    cpu.ends_step = true;
    if cpu.vmrun(at) == Delivered::Shutdown {
        cpu.pending_debug |= PENDING_SHUTDOWN;
    }
    Ok(())
}

/// The block that VMLOAD (a read) and VMSAVE (a write) work on. A guest's own is at a guest physical
/// address.
fn guest_block(cpu: &mut Cpu, op: &Op, code: u32, access: Access) -> Result<u64> {
    let address = block(cpu, op, code)?;
    if cpu.virtual_vmload() {
        return cpu.nested_page(address, access, Purpose::Final).map(|page| page.phys);
    }
    Ok(address)
}

fn vmload(cpu: &mut Cpu, op: &Op) -> Result {
    let base = guest_block(cpu, op, code::VMLOAD, Access::Read)?;
    let vmcb = Vmcb::read(cpu, base);
    cpu.seg[usize::from(FS)] = vmcb.segment(at::FS);
    cpu.seg[usize::from(GS)] = vmcb.segment(at::GS);
    cpu.ldtr = vmcb.segment(at::LDTR);
    cpu.tr = vmcb.segment(at::TR);
    let msrs = &mut cpu.msrs;
    msrs.kernel_gs_base = vmcb.linear(at::KERNEL_GS_BASE);
    msrs.star = vmcb.u64(at::STAR);
    msrs.lstar = vmcb.linear(at::LSTAR);
    msrs.cstar = vmcb.linear(at::CSTAR);
    msrs.sfmask = vmcb.u64(at::SFMASK) & 0xffff_ffff;
    msrs.sysenter_cs = vmcb.u64(at::SYSENTER_CS);
    msrs.sysenter_esp = vmcb.linear(at::SYSENTER_ESP);
    msrs.sysenter_eip = vmcb.linear(at::SYSENTER_EIP);
    cpu.update_segment(FS);
    cpu.update_segment(GS);
    Ok(())
}

fn vmsave(cpu: &mut Cpu, op: &Op) -> Result {
    let base = guest_block(cpu, op, code::VMSAVE, Access::Write)?;
    let mut vmcb = Vmcb::read(cpu, base);
    vmcb.put_segment(at::FS, &cpu.seg[usize::from(FS)]);
    vmcb.put_segment(at::GS, &cpu.seg[usize::from(GS)]);
    vmcb.put_segment(at::LDTR, &cpu.ldtr);
    vmcb.put_segment(at::TR, &cpu.tr);
    let msrs = &cpu.msrs;
    vmcb.put_u64(at::KERNEL_GS_BASE, msrs.kernel_gs_base);
    vmcb.put_u64(at::STAR, msrs.star);
    vmcb.put_u64(at::LSTAR, msrs.lstar);
    vmcb.put_u64(at::CSTAR, msrs.cstar);
    vmcb.put_u64(at::SFMASK, msrs.sfmask);
    vmcb.put_u64(at::SYSENTER_CS, msrs.sysenter_cs);
    vmcb.put_u64(at::SYSENTER_ESP, msrs.sysenter_esp);
    vmcb.put_u64(at::SYSENTER_EIP, msrs.sysenter_eip);
    vmcb.write_saved(cpu, base);
    Ok(())
}

/// VMMCALL is there for hosts that intercept it; the others' guests must not have it. To who is no guest
/// it is a call of the hypervisor that this CPU is.
fn vmmcall(cpu: &mut Cpu, _: &Op) -> Result {
    cpu.intercept(code::VMMCALL)?;
    cpu.hypercall()
}

fn stgi(cpu: &mut Cpu, _: &Op) -> Result {
    require_svm(cpu)?;
    cpu.intercept(code::STGI)?;
    cpu.set_gif(true);
    Ok(())
}

fn clgi(cpu: &mut Cpu, _: &Op) -> Result {
    require_svm(cpu)?;
    cpu.intercept(code::CLGI)?;
    cpu.set_gif(false);
    Ok(())
}

/// INVLPGA: forgets the page at the linear address in rAX in the address space that ECX names.
fn invlpga(cpu: &mut Cpu, op: &Op) -> Result {
    require_svm(cpu)?;
    let linear = cpu.reg_sized(RAX, op.addr_size);
    cpu.intercept_assisted(code::INVLPGA, linear)?;
    let asid = cpu.reg::<u32>(RCX).min(ASIDS) as usize;
    cpu.tlb.invalidate_in(asid, linear);
    Ok(())
}

fn skinit(_: &mut Cpu, _: &Op) -> Result {
    Err(Exception::UD)
}

/// The handler of `insn`, if it belongs to this group.
pub(crate) fn select(insn: &Instruction) -> Option<Handler> {
    Some(match insn.code() {
        Code::Vmrunw | Code::Vmrund | Code::Vmrunq => vmrun,
        Code::Vmloadw | Code::Vmloadd | Code::Vmloadq => vmload,
        Code::Vmsavew | Code::Vmsaved | Code::Vmsaveq => vmsave,
        Code::Vmmcall => vmmcall,
        Code::Skinit => skinit,
        Code::Stgi => stgi,
        Code::Clgi => clgi,
        Code::Invlpgaw | Code::Invlpgad | Code::Invlpgaq => invlpga,
        _ => return None,
    })
}

/// Whether `insn` is one of them: what follows it may run in another mode, or be interrupted.
pub(crate) fn is_one(insn: &Instruction) -> bool {
    select(insn).is_some()
}
