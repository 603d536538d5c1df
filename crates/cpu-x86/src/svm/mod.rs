//! Secure virtual machine mode, AMD's virtualisation (APM volume 2, chapter 15).
//!
//! VMRUN saves the host's state, takes the guest's from a control block in memory and goes on in it,
//! until something happens that the block's intercepts name: then the guest's state goes back to the
//! block, with the reason, and the host continues after its VMRUN.
//!
//! - `vmcb`: the control block's layout.
//! - `entry`: VMRUN, with its consistency checks and the injection of an event.
//! - `exit`: the way back, and the codes of its reasons.
//! - `intercept`: what instructions and events ask before they act.
//! - `interrupt`: virtual interrupts, and what is held off while the global interrupt flag is clear.
//! - `nested`: guest physical addresses, translated by the host's page tables.
//! - `insn`: the instructions.
//! - `msr`: model-specific registers and CPUID's leaf.
//!
//! An intercept leaves the running instruction as an exception would, by [`Exception::EXIT`]; what is
//! to be told is in [`Svm::exit`] until [`Cpu::vmexit`] writes it down. While no guest runs, all of this
//! costs the test of one byte in instructions that can be intercepted.
//!
//! The host's state is kept here, not in the area that VM_HSAVE_PA names, as the architecture leaves
//! it to the processor. So is the control area while its guest runs. Clean bits are not looked at:
//! VMRUN always reads all.
//!
//! [`Exception::EXIT`]: crate::exception::Exception::EXIT

mod entry;
mod exit;
mod insn;
mod intercept;
mod interrupt;
mod msr;
mod nested;
mod saved;
#[cfg(test)]
mod tests;
mod vmcb;

pub(crate) use exit::{Exit, code};
pub(crate) use insn::{is_one, select};
pub(crate) use intercept::{IoKind, task_info};
pub(crate) use nested::Purpose;

use crate::cpu::Cpu;
use crate::feature::Word;
use crate::state::{SvmControl, SvmHost};
use nested::NestedTlb;

/// Number of address space identifiers, the host's 0 included.
const ASIDS: u32 = 64;
/// TSC_RATIO after reset: 1, with 32 bits behind the point.
const TSC_RATIO_ONE: u64 = 1 << 32;

/// Bits of leaf 0x8000_000a, EDX, that the processor itself goes by.
mod has {
    pub(super) const NPT: u32 = 1 << 0;
    pub(super) const LBR_VIRTUALIZATION: u32 = 1 << 1;
    pub(super) const NRIP_SAVE: u32 = 1 << 3;
    pub(super) const TSC_SCALE: u32 = 1 << 4;
    pub(super) const DECODE_ASSISTS: u32 = 1 << 7;
    pub(super) const PAUSE_FILTER: u32 = 1 << 10;
    pub(super) const PAUSE_THRESHOLD: u32 = 1 << 12;
    pub(super) const VIRTUAL_VMLOAD: u32 = 1 << 15;
    pub(super) const VGIF: u32 = 1 << 16;
    pub(super) const VNMI: u32 = 1 << 25;
    pub(super) const ADDRESS_CHECK: u32 = 1 << 28;
}

/// Bits of the control area's virtual interrupt word.
pub(crate) mod int_ctl {
    pub(crate) const V_TPR: u64 = 0xff;
    pub(crate) const V_IRQ: u64 = 1 << 8;
    pub(crate) const V_GIF: u64 = 1 << 9;
    pub(crate) const V_NMI: u64 = 1 << 11;
    pub(crate) const V_NMI_MASK: u64 = 1 << 12;
    pub(crate) const V_IGN_TPR: u64 = 1 << 20;
    pub(crate) const V_INTR_MASKING: u64 = 1 << 24;
    pub(crate) const V_GIF_ENABLE: u64 = 1 << 25;
    pub(crate) const V_NMI_ENABLE: u64 = 1 << 26;
    pub(crate) const PRIORITY_SHIFT: u32 = 16;
    pub(crate) const VECTOR_SHIFT: u32 = 32;
}

/// Bits of the control area's word at 0xb8: the guest has a record of branches of its own; VMLOAD and VMSAVE are the
/// guest's own.
const LBR_VIRTUALIZATION_ENABLE: u64 = 1 << 0;
const VIRTUAL_VMLOAD_ENABLE: u64 = 1 << 1;

/// A CPU's part of this mode.
pub(crate) struct Svm {
    /// A guest runs.
    pub(crate) guest: bool,
    /// Guest physical addresses are translated by the host's tables.
    pub(crate) nested: bool,
    /// The global interrupt flag.
    pub(crate) gif: bool,
    /// A guest ran when system management mode was entered, and goes on after it.
    pub(crate) suspended: bool,
    /// VM_CR.
    vm_cr: u64,
    /// VM_HSAVE_PA.
    hsave: u64,
    /// TSC_RATIO.
    tsc_ratio: u64,
    /// Physical address of the running guest's control block.
    vmcb: u64,
    /// Its control area.
    pub(crate) control: SvmControl,
    /// The host's state.
    pub(crate) host: SvmHost,
    /// The exit that is under way.
    pub(crate) exit: Exit,
    /// The event whose delivery did not get to its end, as EXITINTINFO has it; 0 for none.
    pub(crate) vectoring: u64,
    /// CR2 before the page fault that is being raised: one that is intercepted does not change it.
    pub(crate) old_cr2: u64,
    /// The address translation that went wrong was for an instruction fetch.
    pub(crate) fetching: bool,
    /// PAUSEs until one is intercepted.
    pause_left: u16,
    /// When the last PAUSE was, by the time-stamp counter.
    last_pause: u64,
    nested_tlb: NestedTlb,
}

impl Default for Svm {
    fn default() -> Self {
        Self {
            guest: false,
            nested: false,
            gif: true,
            suspended: false,
            vm_cr: 0,
            hsave: 0,
            tsc_ratio: TSC_RATIO_ONE,
            vmcb: 0,
            control: SvmControl::default(),
            host: SvmHost::default(),
            exit: Exit::default(),
            vectoring: 0,
            old_cr2: 0,
            fetching: false,
            pause_left: 0,
            last_pause: 0,
            nested_tlb: NestedTlb::default(),
        }
    }
}

impl Cpu {
    /// Whether the model has one of [`has`]'s features.
    fn svm_has(&self, feature: u32) -> bool {
        self.config.model.features.word(Word::SvmEdx) & feature != 0
    }

    /// A reset, or INIT, which leaves the model-specific registers alone.
    pub(crate) fn reset_svm(&mut self, init: bool) {
        let (vm_cr, hsave, ratio) = (self.svm.vm_cr, self.svm.hsave, self.svm.tsc_ratio);
        if self.svm.guest && self.svm.nested {
            self.msrs.pat = self.svm.host.pat;
        }
        self.restore_branch_record();
        self.svm = Svm::default();
        if init {
            (self.svm.vm_cr, self.svm.hsave, self.svm.tsc_ratio) = (vm_cr, hsave, ratio);
        }
        self.tlb.enter_asid(0);
        self.update_virtual_interrupt();
    }

    /// Before system management mode: the guest rests, and nothing of it is intercepted or translated.
    pub(crate) fn suspend_guest(&mut self) {
        if !self.svm.guest {
            return;
        }
        self.svm.suspended = true;
        self.svm.guest = false;
        self.svm.nested = false;
        self.tlb.enter_asid(0);
        self.update_virtual_interrupt();
    }

    /// After system management mode.
    pub(crate) fn resume_guest(&mut self) {
        if !std::mem::take(&mut self.svm.suspended) {
            return;
        }
        self.svm.guest = true;
        self.svm.nested = self.svm.control.nested;
        self.enter_guest_asid();
        self.update_virtual_interrupt();
    }

    /// Takes up the host's record of branches, if its guest has one of its own.
    fn restore_branch_record(&mut self) {
        if let Some(branches) = self.svm.host.branches.take() {
            self.msrs.set_branch_record(branches);
        }
    }

    /// The address of the running or suspended guest's control block, if there is a guest.
    pub(crate) fn guest_vmcb(&self) -> Option<u64> {
        (self.svm.guest || self.svm.suspended).then_some(self.svm.vmcb)
    }
}
