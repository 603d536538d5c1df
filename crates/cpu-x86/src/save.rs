//! Between the running form of a CPU and its [`CpuState`].
//!
//! Restoring checks that the state is one the CPU could have come to by itself as far as memory safety
//! and the invariants of `cpu` and `segment` need it; nonsense within that is the saver's own.

use crate::cpu::Cpu;
use crate::flags::bits;
use crate::fpu::Fpu;
use crate::msr::index;
use crate::regs::{
    CR0_ET, CR0_PE, CR0_PG, CR0_VALID, CR4_PAE, DR6_FIXED, DR7_FIXED, EFER_LMA, EFER_LME,
};
use crate::segment::{CS, SS};
use crate::smm::IoTrap;
use crate::state::CpuState;

impl Cpu {
    /// The whole architectural state.
    pub(crate) fn save(&self) -> CpuState {
        let mut gpr = [0; 16];
        gpr.copy_from_slice(&self.gpr[..16]);
        let mut state = CpuState {
            gpr,
            rip: self.rip,
            rflags: self.rflags(),
            segments: self.seg,
            ldtr: self.ldtr,
            tr: self.tr,
            gdtr: self.gdtr,
            idtr: self.idtr,
            cr0: self.cr0,
            cr2: self.cr2,
            cr3: self.cr3,
            cr4: self.cr4,
            pdptes: self.pdptes,
            xcr0: self.xcr0,
            pkru: self.pkru,
            dr: self.dr,
            msrs: self.saved_msrs(),
            activity: self.activity,
            interrupt_shadow: self.shadow,
            debug_shadow: self.debug_shadow,
            nmi_blocked: self.nmi_blocked,
            smm: self.smm,
            smm_nmi_blocked: self.smm_nmi_blocked,
            smbase: self.smbase as u32,
            svm: self.save_svm(),
            ..CpuState::default()
        };
        self.fpu.save(&mut state);
        state
    }

    /// Replaces the whole architectural state.
    ///
    /// # Errors
    /// Names the part that the CPU can't be in; nothing has changed then.
    pub(crate) fn restore(&mut self, state: &CpuState) -> Result<(), String> {
        let efer = self.check(state)?;
        let fpu = Fpu::restore(state)?;
        let msrs = self.msrs.clone();
        if let Err(reason) = self.restore_msrs(&state.msrs) {
            self.msrs = msrs;
            return Err(reason);
        }
        self.fpu = fpu;
        self.gpr[..16].copy_from_slice(&state.gpr);
        self.rip = state.rip;
        self.set_rflags(state.rflags);
        self.seg = state.segments;
        self.ldtr = state.ldtr;
        self.tr = state.tr;
        self.gdtr = state.gdtr;
        self.idtr = state.idtr;
        self.cr0 = state.cr0;
        self.cr2 = state.cr2;
        self.cr3 = state.cr3;
        self.cr4 = state.cr4;
        self.pdptes = state.pdptes;
        self.xcr0 = state.xcr0;
        self.pkru = state.pkru;
        self.efer = efer;
        self.dr = state.dr;
        self.dr[6] |= DR6_FIXED;
        self.dr[7] |= DR7_FIXED;
        self.activity = state.activity;
        self.shadow = state.interrupt_shadow;
        self.debug_shadow = state.debug_shadow;
        self.nmi_blocked = state.nmi_blocked;
        self.smm = state.smm;
        self.smm_nmi_blocked = state.smm_nmi_blocked;
        self.smbase = u64::from(state.smbase);
        self.io_trap = IoTrap::default();
        self.keep_rip = false;
        self.pending_debug = 0;
        self.counter_restored();
        self.derive_cpl();
        self.take_up_map();
        self.restore_svm(&state.svm);
        self.tlb.switch(self.pcid(), true);
        self.update_mode();
        Ok(())
    }
}

impl Cpu {
    /// Sets the privilege level from the mode and the segments.
    pub(crate) fn derive_cpl(&mut self) {
        self.cpl = match () {
            () if self.cr0 & CR0_PE == 0 => 0,
            () if self.system_flags & bits::VM != 0 => 3,
            // SS tells the privilege level: a conforming CS need not.
            () => {
                let stack = &self.seg[usize::from(SS)];
                let code = &self.seg[usize::from(CS)];
                if stack.attributes == 0 { (code.selector & 3) as u8 } else { stack.dpl() }
            }
        };
    }

    /// Whether the control registers can have these values together; `guest` says that they are a nested
    /// guest's.
    ///
    /// # Errors
    /// Names the one that can't.
    pub(crate) fn check_modes(
        &self,
        cr0: u64,
        cr3: u64,
        cr4: u64,
        efer: u64,
        guest: bool,
    ) -> Result<(), String> {
        let reject = |what: &str, value: u64| Err(format!("{what} cannot hold {value:#x}"));
        let long = cr0 & CR0_PG != 0 && efer & EFER_LME != 0;
        // VMRUN may enter real mode with paging, and RSM go back there.
        let paged = cr0 & CR0_PG != 0 && cr0 & CR0_PE == 0 && !guest;
        if cr0 & !(CR0_VALID | CR0_ET) != 0 || paged {
            return reject("CR0", cr0);
        }
        if cr4 & !self.limits.cr4 != 0 || long && cr4 & CR4_PAE == 0 {
            return reject("CR4", cr4);
        }
        if efer & !self.limits.efer != 0 || long != (efer & EFER_LMA != 0) {
            return reject("EFER", efer);
        }
        if (cr3 & !self.limits.cr3_tags) >> self.limits.phys_bits != 0 {
            return reject("CR3", cr3);
        }
        Ok(())
    }

    /// Whether the CPU can be in `state`; returns EFER.
    fn check(&self, state: &CpuState) -> Result<u64, String> {
        let efer =
            state.msrs.iter().find(|(n, _)| *n == index::EFER).map_or(0, |(_, value)| *value);
        self.check_modes(state.cr0, state.cr3, state.cr4, efer, state.svm.guest.is_some())?;
        self.check_svm(&state.svm)?;
        if state.mxcsr & !self.limits.mxcsr != 0 {
            return Err(format!("MXCSR {:#x} has reserved bits set", state.mxcsr));
        }
        if !self.is_xcr0(state.xcr0) {
            return Err(format!("XCR0 cannot hold {:#x}", state.xcr0));
        }
        Ok(efer)
    }
}

#[cfg(test)]
mod tests {
    use crate::state::X87State;
    use crate::testing::cpu;

    /// Every part of the state that any restore could forget, changed and read back.
    #[test]
    fn what_is_restored_is_what_is_saved() {
        let mut cpu = cpu();
        let fresh = cpu.save();
        let mut state = fresh.clone();
        for (i, gpr) in state.gpr.iter_mut().enumerate() {
            *gpr = 0x1111_2222_3333_0000 + i as u64;
        }
        state.rip ^= 0x10;
        state.rflags |= 0x8d5;
        state.cr2 = 0xdead_0000;
        state.pdptes = [1, 2, 3, 4];
        state.pkru = 0x5555_5554;
        state.dr[0] = 0x1234;
        state.x87 = X87State {
            regs: std::array::from_fn(|i| 0x3fff_8000_0000_0000_0000 + i as u128),
            control: 0x27f,
            status: 0x3800,
            tags: 0,
            opcode: 0x123,
            ip: 0x4000,
            cs: 8,
            dp: 0x5000,
            ds: 16,
        };
        state.xmm = std::array::from_fn(|i| 0x77 << 64 | i as u128);
        state.ymm_high = std::array::from_fn(|i| 0x99 << 64 | i as u128);
        state.mxcsr = 0x1fa0;
        state.interrupt_shadow = true;
        state.debug_shadow = true;
        state.nmi_blocked = true;
        state.smm = true;
        state.smm_nmi_blocked = true;
        state.smbase = 0xa_0000;
        cpu.restore(&state).unwrap();
        assert_eq!(cpu.save(), state);
        state.mxcsr = u32::MAX;
        let before = cpu.save();
        assert!(cpu.restore(&state).is_err());
        assert_eq!(cpu.save(), before);
        cpu.restore(&fresh).unwrap();
        assert_eq!(cpu.save(), fresh);
    }
}
