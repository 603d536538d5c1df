//! Saving and restoring this mode's part of a CPU's state.

use super::{Exit, Svm};
use crate::cpu::Cpu;
use crate::state::{SvmGuest, SvmState};

impl Cpu {
    /// This mode's state.
    pub(crate) fn save_svm(&self) -> SvmState {
        let svm = &self.svm;
        let guest = (svm.guest || svm.suspended).then(|| {
            Box::new(SvmGuest {
                vmcb: svm.vmcb,
                suspended: svm.suspended,
                control: svm.control.clone(),
                host: svm.host.clone(),
                pause_left: svm.pause_left,
            })
        });
        SvmState {
            gif: svm.gif,
            vm_cr: svm.vm_cr,
            hsave: svm.hsave,
            tsc_ratio: svm.tsc_ratio,
            guest,
        }
    }

    /// Whether [`Self::restore_svm`] can take `state`.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub(crate) fn check_svm(&self, state: &SvmState) -> Result<(), String> {
        let Some(guest) = &state.guest else { return Ok(()) };
        if !self.has_svm() {
            return Err("a nested guest is running, but the CPU model has no 'svm'".into());
        }
        let pages = [guest.vmcb, guest.control.iopm, guest.control.msrpm];
        if pages.iter().any(|&page| page & 0xfff != 0 || page >> self.limits.phys_bits != 0) {
            return Err("a nested guest's control block or map is at no page's address".into());
        }
        let host = &guest.host;
        self.check_modes(host.cr0, host.cr3, host.cr4, host.efer, false)
            .map_err(|reason| format!("the host of a nested guest: {reason}"))
    }

    /// Takes up `state`, which has been checked. Control registers are restored already.
    pub(crate) fn restore_svm(&mut self, state: &SvmState) {
        self.svm = Svm {
            gif: state.gif,
            vm_cr: state.vm_cr,
            hsave: state.hsave,
            tsc_ratio: state.tsc_ratio,
            exit: Exit::default(),
            ..Svm::default()
        };
        self.tlb.enter_asid(0);
        self.tlb.flush_every_asid();
        if let Some(guest) = &state.guest {
            self.svm.vmcb = guest.vmcb;
            self.svm.control = guest.control.clone();
            self.svm.host = guest.host.clone();
            self.svm.pause_left = guest.pause_left;
            self.svm.suspended = guest.suspended;
            self.svm.guest = !guest.suspended;
            self.svm.nested = self.svm.guest && guest.control.nested;
            if self.svm.guest {
                self.enter_guest_asid();
            }
        }
        self.update_virtual_interrupt();
    }
}
