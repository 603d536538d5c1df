//! Control registers: MOV, LMSW, SMSW, CLTS, XGETBV, XSETBV; INVLPG, INVPCID, INVD, WBINVD.

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use super::{require_cpl0, require_visible_tables, store16};
use crate::cpu::Cpu;
use crate::exception::{Exception, Result};
use crate::fpu::xsave::component;
use crate::op::{Handler, Op, OpFlags};
use crate::reg::{RAX, RCX, RDX};
use crate::regs::*;
use crate::segment::{CS, attr};
use crate::svm::code;

impl Cpu {
    /// Whether XCR0 can be `value`.
    pub(crate) fn is_xcr0(&self, value: u64) -> bool {
        let avx_alone = value & component::AVX != 0 && value & component::SSE == 0;
        value & component::X87 != 0 && value & !self.limits.xcr0 == 0 && !avx_alone
    }

    /// The address space in use: CR3's PCID, if PCIDs are enabled.
    pub(crate) fn pcid(&self) -> u16 {
        if self.cr4 & CR4_PCIDE != 0 { (self.cr3 & 0xfff) as u16 } else { 0 }
    }

    /// What CR0 would have for `value`, and EFER with it, unless it can't be written.
    fn check_cr0(&self, value: u64) -> Result<(u64, u64)> {
        let set = |bit: u64| value & bit != 0;
        if value >> 32 != 0 || set(CR0_PG) && !set(CR0_PE) || set(CR0_NW) && !set(CR0_CD) {
            return Err(Exception::GP0);
        }
        let mut efer = self.efer;
        if (value ^ self.cr0) & CR0_PG != 0 {
            let long_code = self.seg[usize::from(CS)].has(attr::LONG);
            if set(CR0_PG) {
                if efer & EFER_LME != 0 {
                    if self.cr4 & CR4_PAE == 0 || long_code {
                        return Err(Exception::GP0);
                    }
                    efer |= EFER_LMA;
                }
            } else {
                if self.mode.is_64() || self.cr4 & CR4_PCIDE != 0 {
                    return Err(Exception::GP0);
                }
                efer &= !EFER_LMA;
            }
        }
        Ok((value & CR0_VALID | CR0_ET, efer))
    }

    /// Writes CR0 with all checks and consequences.
    pub(crate) fn write_cr0(&mut self, value: u64) -> Result {
        let (value, efer) = self.check_cr0(value)?;
        let changed = value ^ self.cr0;
        if changed & CR0_PG != 0 && Self::is_pae(value, self.cr4, efer) {
            self.pdptes = self.read_pdptes(self.cr3)?;
        }
        self.cr0 = value;
        self.efer = efer;
        if changed & (CR0_PG | CR0_PE) != 0 {
            self.tlb.flush_all();
        } else if changed & CR0_WP != 0 {
            self.tlb.flush_l1();
        }
        if changed & (CR0_PG | CR0_PE | CR0_AM) != 0 {
            self.update_mode();
        }
        self.break_block = true;
        Ok(())
    }

    /// What CR3 would have for `value`, unless it can't be written.
    fn check_cr3(&self, value: u64) -> Result<u64> {
        let pcids = self.cr4 & CR4_PCIDE != 0;
        let value = if pcids { value & !(1 << 63) } else { value };
        if self.long_mode() && (value & !self.limits.cr3_tags) >> self.limits.phys_bits != 0 {
            return Err(Exception::GP0);
        }
        Ok(value)
    }

    /// Writes CR3: another address space.
    pub(crate) fn write_cr3(&mut self, value: u64) -> Result {
        let keep = self.cr4 & CR4_PCIDE != 0 && value >> 63 != 0;
        let value = self.check_cr3(value)?;
        if Self::is_pae(self.cr0, self.cr4, self.efer) {
            self.pdptes = self.read_pdptes(value)?;
        }
        self.cr3 = value;
        self.tlb.switch_space(self.pcid(), !keep);
        self.break_block = true;
        Ok(())
    }

    /// Whether CR4 can be written.
    fn check_cr4(&self, value: u64) -> Result {
        let changed = value ^ self.cr4;
        let gains = changed & value;
        if value & !self.limits.cr4 != 0
            || self.long_mode() && (value & CR4_PAE == 0 || changed & CR4_LA57 != 0)
            || gains & CR4_PCIDE != 0 && (!self.long_mode() || self.cr3 & 0xfff != 0)
        {
            return Err(Exception::GP0);
        }
        Ok(())
    }

    /// Writes CR4.
    pub(crate) fn write_cr4(&mut self, value: u64) -> Result {
        self.check_cr4(value)?;
        let changed = value ^ self.cr4;
        const RELOADS: u64 = CR4_PAE | CR4_PGE | CR4_PSE | CR4_SMEP;
        if changed & RELOADS != 0 && Self::is_pae(self.cr0, value, self.efer) {
            self.pdptes = self.read_pdptes(self.cr3)?;
        }
        self.cr4 = value;
        const TRANSLATION: u64 =
            CR4_PSE | CR4_PAE | CR4_PGE | CR4_PCIDE | CR4_SMEP | CR4_SMAP | CR4_LA57;
        if changed & TRANSLATION != 0 {
            self.tlb.flush_all();
            self.tlb.switch(self.pcid(), true);
        } else if changed & (CR4_PKE | CR4_PKS) != 0 {
            self.tlb.flush_l1();
        }
        self.break_block = true;
        Ok(())
    }

    /// Replaces the rights to user pages by protection key.
    pub(crate) fn set_pkru(&mut self, pkru: u32) {
        if pkru != self.pkru {
            self.pkru = pkru;
            if self.cr4 & CR4_PKE != 0 {
                self.tlb.flush_l1();
            }
        }
    }
}

fn read_cr(cpu: &mut Cpu, op: &Op) -> Result {
    require_cpl0(cpu)?;
    if !matches!(op.src, 0 | 2 | 3 | 4 | 8) {
        return Err(Exception::UD);
    }
    cpu.intercept_mov_cr(code::CR_READ, op.src, op.dst)?;
    let value = match op.src {
        0 => cpu.cr0,
        2 => cpu.cr2,
        3 => cpu.cr3,
        4 => cpu.cr4,
        _ => cpu.cr8(),
    };
    if cpu.mode.is_64() {
        cpu.set_reg(op.dst, value);
    } else {
        cpu.set_reg(op.dst, value as u32);
    }
    Ok(())
}

fn write_cr(cpu: &mut Cpu, op: &Op) -> Result {
    if !matches!(op.dst, 0 | 2 | 3 | 4 | 8) {
        return Err(Exception::UD);
    }
    require_cpl0(cpu)?;
    let mask = if cpu.mode.is_64() { u64::MAX } else { 0xffff_ffff };
    let value = cpu.gpr(op.src) & mask;
    if cpu.svm.guest {
        // What a register can't have is found before the intercept, but for what is in memory.
        match op.dst {
            0 => cpu.check_cr0(value).map(|_| ())?,
            3 => cpu.check_cr3(value).map(|_| ())?,
            4 => cpu.check_cr4(value)?,
            8 if value > 15 => return Err(Exception::GP0),
            _ => {}
        }
    }
    cpu.intercept_mov_cr(code::CR_WRITE, op.dst, op.src)?;
    match op.dst {
        0 => {
            cpu.intercept_cr0_change(value, Cpu::mov_cr_info(op.src))?;
            cpu.write_cr0(value)
        }
        2 => {
            cpu.cr2 = value;
            Ok(())
        }
        3 => cpu.write_cr3(value),
        4 => cpu.write_cr4(value),
        _ if value > 15 => Err(Exception::GP0),
        _ => {
            cpu.write_cr8(value as u8);
            Ok(())
        }
    }
}

fn lmsw(cpu: &mut Cpu, op: &Op) -> Result {
    require_cpl0(cpu)?;
    // All exceptions come before the intercept.
    let value = u64::from(super::source16(cpu, op, op.dst)?);
    cpu.intercept(code::CR_WRITE)?;
    // PE can be set, not cleared.
    let low = CR0_MP | CR0_EM | CR0_TS;
    let value = cpu.cr0 & !low | value & (low | CR0_PE);
    // The selective intercept does not look at the value here.
    cpu.intercept(code::CR0_SELECTIVE_WRITE)?;
    cpu.write_cr0(value)
}

fn smsw<const BYTES: u8>(cpu: &mut Cpu, op: &Op) -> Result {
    require_visible_tables(cpu)?;
    cpu.intercept(code::CR_READ)?;
    if op.flags.contains(OpFlags::MEM) {
        return store16(cpu, op, BYTES, cpu.cr0 as u16);
    }
    match BYTES {
        2 => cpu.set_reg(op.dst, cpu.cr0 as u16),
        4 => cpu.set_reg(op.dst, cpu.cr0 as u32),
        _ => cpu.set_reg(op.dst, cpu.cr0),
    }
    Ok(())
}

fn clts(cpu: &mut Cpu, _: &Op) -> Result {
    require_cpl0(cpu)?;
    cpu.intercept(code::CR_WRITE)?;
    cpu.cr0 &= !CR0_TS;
    Ok(())
}

fn invlpg(cpu: &mut Cpu, op: &Op) -> Result {
    require_cpl0(cpu)?;
    let offset = cpu.ea(op);
    let linear =
        cpu.seg_access[usize::from(op.seg & 7)].base.wrapping_add(offset) & cpu.linear_mask;
    cpu.intercept_assisted(code::INVLPG, linear)?;
    cpu.tlb.invalidate(linear);
    Ok(())
}

/// INVPCID: the type is in the register, PCID and address in memory.
fn invpcid(cpu: &mut Cpu, op: &Op) -> Result {
    require_cpl0(cpu)?;
    cpu.intercept(code::INVPCID)?;
    let offset = cpu.ea(op);
    let wide = cpu.mode.is_64();
    let kind = if wide { cpu.gpr(op.dst) } else { cpu.gpr(op.dst) & 0xffff_ffff };
    let mut operand = [0; 16];
    cpu.load_bytes(op.seg, offset, &mut operand)?;
    let low = u64::from_le_bytes(operand[..8].try_into().unwrap_or_default());
    let linear = u64::from_le_bytes(operand[8..].try_into().unwrap_or_default());
    let pcid = (low & 0xfff) as u16;
    if kind > 3 || low >> 12 != 0 {
        return Err(Exception::GP0);
    }
    if kind < 2 && cpu.cr4 & CR4_PCIDE == 0 && pcid != 0 {
        return Err(Exception::GP0);
    }
    let current = cpu.pcid();
    match kind {
        0 if !cpu.is_canonical_base(linear) => return Err(Exception::GP0),
        0 if pcid == current => cpu.tlb.invalidate(linear),
        // Another address space is found empty when it is next used.
        0 | 1 => cpu.tlb.flush_space(pcid, pcid == current),
        2 => {
            cpu.tlb.flush_all();
            cpu.tlb.switch(current, true);
        }
        _ => cpu.tlb.flush_non_global(current),
    }
    Ok(())
}

/// INVD: there are no caches.
fn invd(cpu: &mut Cpu, _: &Op) -> Result {
    require_cpl0(cpu)?;
    cpu.intercept(code::INVD)
}

/// WBINVD, WBNOINVD: there is nothing to write back.
fn wbinvd(cpu: &mut Cpu, _: &Op) -> Result {
    require_cpl0(cpu)?;
    cpu.intercept(code::WBINVD)
}

fn xgetbv(cpu: &mut Cpu, _: &Op) -> Result {
    if cpu.cr4 & CR4_OSXSAVE == 0 {
        return Err(Exception::UD);
    }
    let value = match cpu.gpr(RCX) as u32 {
        0 => cpu.xcr0,
        1 if cpu.limits.xgetbv1 => cpu.xcr0 & cpu.components_in_use(),
        _ => return Err(Exception::GP0),
    };
    cpu.set_reg(RAX, value as u32);
    cpu.set_reg(RDX, (value >> 32) as u32);
    Ok(())
}

fn xsetbv(cpu: &mut Cpu, _: &Op) -> Result {
    if cpu.cr4 & CR4_OSXSAVE == 0 {
        return Err(Exception::UD);
    }
    require_cpl0(cpu)?;
    cpu.intercept(code::XSETBV)?;
    let value = u64::from(cpu.reg::<u32>(RAX)) | u64::from(cpu.reg::<u32>(RDX)) << 32;
    if cpu.gpr(RCX) as u32 != 0 || !cpu.is_xcr0(value) {
        return Err(Exception::GP0);
    }
    cpu.xcr0 = value;
    Ok(())
}

fn rdpkru(cpu: &mut Cpu, _: &Op) -> Result {
    if cpu.cr4 & CR4_PKE == 0 {
        return Err(Exception::UD);
    }
    if cpu.reg::<u32>(RCX) != 0 {
        return Err(Exception::GP0);
    }
    cpu.set_reg(RAX, cpu.pkru);
    cpu.set_reg(RDX, 0u32);
    Ok(())
}

fn wrpkru(cpu: &mut Cpu, _: &Op) -> Result {
    if cpu.cr4 & CR4_PKE == 0 {
        return Err(Exception::UD);
    }
    if cpu.reg::<u32>(RCX) != 0 || cpu.reg::<u32>(RDX) != 0 {
        return Err(Exception::GP0);
    }
    cpu.set_pkru(cpu.reg(RAX));
    Ok(())
}

/// The handler of `insn`, if it belongs to this group.
pub(super) fn select(insn: &Instruction) -> Option<Handler> {
    let is_cr = |n| insn.op_kind(n) == OpKind::Register && insn.op_register(n).is_cr();
    if insn.mnemonic() == Mnemonic::Mov {
        return match (is_cr(0), is_cr(1)) {
            (true, _) => Some(write_cr),
            (_, true) => Some(read_cr),
            _ => None,
        };
    }
    Some(match insn.code() {
        Code::Lmsw_rm16 | Code::Lmsw_r32m16 | Code::Lmsw_r64m16 => lmsw,
        Code::Smsw_rm16 => smsw::<2>,
        Code::Smsw_r32m16 => smsw::<4>,
        Code::Smsw_r64m16 => smsw::<8>,
        Code::Clts => clts,
        Code::Invlpg_m => invlpg,
        Code::Invpcid_r32_m128 | Code::Invpcid_r64_m128 => invpcid,
        Code::Invd => invd,
        Code::Wbinvd | Code::Wbnoinvd => wbinvd,
        Code::Xgetbv => xgetbv,
        Code::Xsetbv => xsetbv,
        Code::Rdpkru => rdpkru,
        Code::Wrpkru => wrpkru,
        _ => return None,
    })
}
