//! Model-specific registers (APM volume 2, section 15.30) and CPUID's leaf 0x8000_000a.

use super::{ASIDS, has};
use crate::cpu::Cpu;
use crate::feature::Word;
use crate::msr::index;
use crate::regs::EFER_SVME;

/// Bits of VM_CR.
mod vm_cr {
    /// External debug ports are disabled: there are none.
    pub(super) const DPD: u64 = 1 << 0;
    /// INIT raises a security exception instead.
    pub(super) const R_INIT: u64 = 1 << 1;
    /// The A20 gate has no effect: kept, as firmware opens the gate.
    pub(super) const DIS_A20M: u64 = 1 << 2;
    /// LOCK and SVMDIS can't be changed any more.
    pub(super) const LOCK: u64 = 1 << 3;
    /// EFER.SVME can't be set.
    pub(super) const SVMDIS: u64 = 1 << 4;
    pub(super) const ALL: u64 = DPD | R_INIT | DIS_A20M | LOCK | SVMDIS;
}

/// Integer and fraction of TSC_RATIO: 8 and 32 bits.
const TSC_RATIO_BITS: u32 = 40;

impl Cpu {
    /// Whether the model has this mode at all.
    pub(crate) fn has_svm(&self) -> bool {
        self.limits.efer & EFER_SVME != 0
    }

    /// Reads one of the mode's registers; `None` for others.
    pub(crate) fn read_svm_msr(&self, register: u32) -> Option<u64> {
        match register {
            // To a processor without the mode it is disabled.
            index::VM_CR if !self.has_svm() => Some(vm_cr::SVMDIS),
            index::VM_CR => Some(self.svm.vm_cr),
            index::VM_HSAVE_PA if self.has_svm() => Some(self.svm.hsave),
            index::TSC_RATIO if self.has_tsc_ratio() => Some(self.svm.tsc_ratio),
            _ => None,
        }
    }

    /// Writes one of the mode's registers; false if there is none or it can't have this value.
    pub(crate) fn write_svm_msr(&mut self, register: u32, value: u64) -> bool {
        match register {
            index::VM_CR if self.has_svm() => self.write_vm_cr(value),
            index::VM_HSAVE_PA if self.has_svm() => {
                let valid = value & 0xfff == 0 && value >> self.limits.phys_bits == 0;
                if valid {
                    self.svm.hsave = value;
                }
                valid
            }
            index::TSC_RATIO if self.has_tsc_ratio() => {
                let valid = value >> TSC_RATIO_BITS == 0;
                if valid {
                    self.svm.tsc_ratio = value;
                }
                valid
            }
            _ => false,
        }
    }

    fn has_tsc_ratio(&self) -> bool {
        self.has_svm() && self.svm_has(has::TSC_SCALE)
    }

    fn write_vm_cr(&mut self, value: u64) -> bool {
        let locked =
            if self.svm.vm_cr & vm_cr::LOCK != 0 { vm_cr::LOCK | vm_cr::SVMDIS } else { 0 };
        let value = value & !locked | self.svm.vm_cr & locked;
        let disables = value & vm_cr::SVMDIS != 0 && self.efer & EFER_SVME != 0;
        if value & !vm_cr::ALL != 0 || disables {
            return false;
        }
        self.svm.vm_cr = value;
        true
    }

    /// Whether VM_HSAVE_PA names an area: zero is none.
    pub(super) fn has_save_area(&self) -> bool {
        self.svm.hsave != 0
    }

    /// Whether EFER.SVME can't be set.
    pub(crate) fn is_svm_disabled(&self) -> bool {
        self.svm.vm_cr & vm_cr::SVMDIS != 0
    }

    /// Whether INIT raises a security exception.
    pub(crate) fn redirects_init(&self) -> bool {
        self.svm.vm_cr & vm_cr::R_INIT != 0
    }

    /// The time-stamp counter as a guest sees it when its host sees `tsc`.
    pub(crate) fn guest_tsc(&self, tsc: u64) -> u64 {
        let ratio = self.svm.tsc_ratio;
        let scaled = if self.has_tsc_ratio() {
            ((u128::from(tsc) * u128::from(ratio)) >> 32) as u64
        } else {
            tsc
        };
        scaled.wrapping_add(self.svm.control.tsc_offset)
    }

    /// Leaf 0x8000_000a: revision 1, the number of address spaces, features.
    pub(crate) fn cpuid_svm(&self) -> [u32; 4] {
        if self.has_svm() {
            [1, ASIDS, 0, self.config.model.features.word(Word::SvmEdx)]
        } else {
            [0; 4]
        }
    }
}
