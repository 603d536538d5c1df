//! Interrupts in this mode (APM volume 2, sections 15.17 and 15.21): the global interrupt flag, virtual
//! interrupts and the virtual task priority, virtual NMIs.
//!
//! A virtual NMI that is due is found when the run loop looks up, which `Signal::Code` has it do.

use super::exit::code;
use accel::Signal;

use super::{has, int_ctl};
use crate::cpu::Cpu;
use crate::exception::{Exception, vector};
use crate::flags::bits;
use crate::interrupt::{Delivered, Source};

/// Flags for which the run loop executes one instruction at a time.
const STEPPING: u64 = bits::TF | bits::RF;

impl Cpu {
    /// Whether external interrupts are let in: the host's own flag counts while a guest has a virtual
    /// one.
    #[inline]
    pub(crate) fn interrupts_enabled(&self) -> bool {
        let flags = if self.masks_virtually() { self.svm.host.rflags } else { self.system_flags };
        flags & bits::IF != 0
    }

    /// Whether IF and the task priority of the running code are a guest's own.
    pub(crate) fn masks_virtually(&self) -> bool {
        self.svm.guest && self.svm.control.int_ctl & int_ctl::V_INTR_MASKING != 0
    }

    /// Whether the running guest has a global interrupt flag of its own.
    fn has_virtual_gif(&self) -> bool {
        let enabled = self.svm.guest && self.svm.control.int_ctl & int_ctl::V_GIF_ENABLE != 0;
        enabled && self.svm_has(has::VGIF)
    }

    /// Whether the running guest's NMIs are virtual.
    pub(super) fn has_virtual_nmi(&self) -> bool {
        let enabled = self.svm.guest && self.svm.control.int_ctl & int_ctl::V_NMI_ENABLE != 0;
        enabled && self.svm_has(has::VNMI)
    }

    /// Whether the running guest's global interrupt flag, or the CPU's if it has none, lets events in.
    fn is_open(&self) -> bool {
        let own = !self.has_virtual_gif() || self.svm.control.int_ctl & int_ctl::V_GIF != 0;
        self.svm.gif && own
    }

    /// Whether a virtual NMI is to be taken now, the interrupt shadow left aside.
    #[inline]
    pub(crate) fn virtual_nmi_is_due(&self) -> bool {
        const STATE: u64 = int_ctl::V_NMI | int_ctl::V_NMI_MASK;
        self.svm.guest
            && self.svm.control.int_ctl & STATE == int_ctl::V_NMI
            && self.has_virtual_nmi()
            && self.is_open()
    }

    /// Takes the virtual NMI that is due.
    pub(crate) fn take_virtual_nmi(&mut self) -> Delivered {
        self.svm.control.int_ctl &= !int_ctl::V_NMI;
        self.svm.control.int_ctl |= int_ctl::V_NMI_MASK;
        self.deliver_event(Exception::plain(vector::NMI), Source::External)
    }

    /// What holds off NMIs ends: their handler returns.
    pub(crate) fn unblock_nmis(&mut self) {
        if self.has_virtual_nmi() {
            self.svm.control.int_ctl &= !int_ctl::V_NMI_MASK;
            self.update_virtual_interrupt();
        } else {
            self.nmi_blocked = false;
        }
    }

    /// STGI and CLGI.
    pub(super) fn set_gif(&mut self, gif: bool) {
        if self.has_virtual_gif() {
            self.svm.control.int_ctl &= !int_ctl::V_GIF;
            if gif {
                self.svm.control.int_ctl |= int_ctl::V_GIF;
            }
        } else {
            self.svm.gif = gif;
        }
        self.update_virtual_interrupt();
    }

    /// Derives for which flags the run loop looks up after each instruction: IF is one of them while a
    /// virtual interrupt waits for it alone.
    pub(crate) fn update_virtual_interrupt(&mut self) {
        let control = self.svm.control.int_ctl;
        let urgent = control & int_ctl::V_IGN_TPR != 0
            || control >> int_ctl::PRIORITY_SHIFT & 15 > control & 15;
        let waits = self.svm.guest && control & int_ctl::V_IRQ != 0 && urgent && self.is_open();
        self.care_flags = if waits { STEPPING | bits::IF } else { STEPPING };
        if self.virtual_nmi_is_due() {
            self.signals.raise(Signal::Code);
        }
    }

    /// Whether a virtual interrupt is to be taken now, the interrupt shadow left aside.
    #[inline]
    pub(crate) fn virtual_interrupt_is_due(&self) -> bool {
        self.care_flags & self.system_flags & bits::IF != 0
    }

    /// Takes the virtual interrupt that is due.
    pub(crate) fn take_virtual_interrupt(&mut self) -> Delivered {
        if self.intercepts(code::VINTR) {
            return self.exit_for(code::VINTR);
        }
        let vector = (self.svm.control.int_ctl >> int_ctl::VECTOR_SHIFT) as u8;
        self.svm.control.int_ctl &= !int_ctl::V_IRQ;
        self.update_virtual_interrupt();
        self.deliver_event(Exception::plain(vector), Source::External)
    }

    /// CR8: the guest's own task priority, or the interrupt controller's.
    pub(crate) fn cr8(&self) -> u64 {
        if self.masks_virtually() {
            self.svm.control.int_ctl & 15
        } else {
            u64::from(self.interrupts.task_priority())
        }
    }

    /// Writes CR8, 0 to 15. A guest's virtual priority follows in any case.
    pub(crate) fn write_cr8(&mut self, priority: u8) {
        if !self.masks_virtually() {
            self.interrupts.set_task_priority(priority);
        }
        if self.svm.guest {
            let control = self.svm.control.int_ctl & !int_ctl::V_TPR;
            self.svm.control.int_ctl = control | u64::from(priority);
            self.update_virtual_interrupt();
        }
    }
}
