//! VMRUN (APM volume 2, section 15.5): from the host into a guest.

use super::exit::{code, event};
use super::vmcb::{Vmcb, at};
use super::{ASIDS, LBR_VIRTUALIZATION_ENABLE, has, int_ctl};
use crate::cpu::Cpu;
use crate::exception::{Exception, vector};
use crate::flags::bits;
use crate::interrupt::{Delivered, Source};
use crate::msr::is_pat;
use crate::reg::{RAX, RSP};
use crate::regs::*;
use crate::segment::{CS, attr};
use crate::state::{Activity, SvmControl, SvmHost};
use crate::tlb::SpaceKey;

/// Lengths of the permission maps in bytes.
const MSRPM_LEN: u64 = 0x2000;
const IOPM_LEN: u64 = 0x3000;
/// What of an address is a page's.
const PAGE: u64 = !0xfff;

/// What TLB_CONTROL asks for.
mod tlb_control {
    pub(super) const NOTHING: u8 = 0;
    pub(super) const FLUSH_GUEST: u8 = 3;
    pub(super) const FLUSH_GUEST_NON_GLOBAL: u8 = 7;
}

/// An event that the host injects.
#[derive(Clone, Copy, Debug)]
struct Injected {
    event: Exception,
    source: Source,
    /// INT n, INT3 and INTO: they return to the instruction after, and their gate's DPL counts.
    is_instruction: bool,
}

/// What EVENTINJ asks for. The outer `None` if it is nothing that can be injected, or, in 64-bit mode, an
/// exception that there is only without: of INTO and BOUND (section 15.20).
fn injected(raw: u64, is_64: bool) -> Option<Option<Injected>> {
    if raw & event::VALID == 0 {
        return Some(None);
    }
    let number = raw as u8;
    let source = match raw >> event::TYPE_SHIFT & 7 {
        event::EXTERNAL => Source::External,
        event::NMI => Source::External,
        event::EXCEPTION if is_64 && matches!(number, vector::OF | vector::BR) => return None,
        event::EXCEPTION if number < 32 && number != vector::NMI => Source::Exception,
        event::SOFTWARE => Source::Software,
        _ => return None,
    };
    let kind = raw >> event::TYPE_SHIFT & 7;
    let number = if kind == event::NMI { vector::NMI } else { number };
    let has_code = kind == event::EXCEPTION && raw & event::HAS_CODE != 0;
    let error_code = has_code.then_some((raw >> event::CODE_SHIFT) as u16);
    let is_instruction = kind == event::SOFTWARE
        || kind == event::EXCEPTION && matches!(number, vector::BP | vector::OF);
    let event = Exception { vector: number, error_code };
    Some(Some(Injected { event, source, is_instruction }))
}

/// The guest's state as the block has it, as far as the checks need it together.
struct Modes {
    cr0: u64,
    cr3: u64,
    cr4: u64,
    efer: u64,
}

impl Modes {
    fn of(vmcb: &Vmcb) -> Self {
        let (cr0, efer) = (vmcb.u64(at::CR0), vmcb.u64(at::EFER) & !EFER_LMA);
        let long = efer & EFER_LME != 0 && cr0 & CR0_PG != 0;
        Self {
            cr0,
            cr3: vmcb.u64(at::CR3),
            cr4: vmcb.u64(at::CR4),
            efer: efer | if long { EFER_LMA } else { 0 },
        }
    }

    fn is_long(&self) -> bool {
        self.efer & EFER_LMA != 0
    }
}

impl Cpu {
    /// Enters the guest of the control block at physical address `base`, a page's. RIP is after VMRUN.
    pub(super) fn vmrun(&mut self, base: u64) -> Delivered {
        let mut vmcb = Vmcb::read(self, base);
        self.svm.vmcb = base;
        self.svm.suspended = false;
        self.svm.host = self.host_state();
        self.svm.control = self.read_control(&vmcb);
        let modes = Modes::of(&vmcb);
        let Some(injected) = self.check_guest(&vmcb, &modes) else {
            self.svm.control.nested = false;
            return self.vmexit_invalid(&mut vmcb);
        };
        self.svm.guest = true;
        self.svm.gif = true;
        self.svm.nested = self.svm.control.nested;
        self.svm.vectoring = 0;
        self.svm.pause_left = self.svm.control.pause_count;
        self.svm.last_pause = self.clock.tsc();
        self.load_guest(&vmcb, &modes);
        if !self.enter_address_space(vmcb.u8(at::TLB_CONTROL)) {
            // The page directory pointers that the guest would have are illegal.
            self.svm.guest = false;
            self.svm.nested = false;
            return self.vmexit_invalid(&mut vmcb);
        }
        self.update_virtual_interrupt();
        self.update_mode();
        self.break_block = true;
        match injected {
            Some(injected) => self.inject(injected, vmcb.u64(at::NEXT_RIP)),
            None => Delivered::Yes,
        }
    }

    fn host_state(&self) -> SvmHost {
        let [es, cs, ss, ds, ..] = self.seg;
        SvmHost {
            segments: [es, cs, ss, ds],
            gdtr: self.gdtr,
            idtr: self.idtr,
            efer: self.efer,
            cr0: self.cr0,
            cr3: self.cr3,
            cr4: self.cr4,
            rflags: self.rflags(),
            rip: self.rip,
            rsp: self.gpr(RSP),
            rax: self.gpr(RAX),
            pat: self.msrs.pat,
            branches: None,
        }
    }

    /// The control area, without what counts at the entry alone.
    fn read_control(&self, vmcb: &Vmcb) -> SvmControl {
        SvmControl {
            intercepts: std::array::from_fn(|n| vmcb.u32(at::INTERCEPTS + 4 * n)),
            pause_threshold: vmcb.u16(at::PAUSE_THRESHOLD),
            pause_count: vmcb.u16(at::PAUSE_COUNT),
            iopm: vmcb.u64(at::IOPM_BASE) & PAGE,
            msrpm: vmcb.u64(at::MSRPM_BASE) & PAGE,
            tsc_offset: vmcb.u64(at::TSC_OFFSET),
            asid: vmcb.u32(at::ASID),
            int_ctl: vmcb.u64(at::INT_CTL),
            nested: self.svm_has(has::NPT) && vmcb.u64(at::NP_ENABLE) & 1 != 0,
            n_cr3: vmcb.u64(at::N_CR3),
            virt_ext: vmcb.u64(at::VIRT_EXT),
        }
    }

    /// The consistency checks (section 15.5.1). `None` if the state is illegal, else the event to inject.
    fn check_guest(&self, vmcb: &Vmcb, modes: &Modes) -> Option<Option<Injected>> {
        let control = &self.svm.control;
        let vmrun = control.intercepts[4] >> (code::VMRUN % 32) & 1 != 0;
        let physical = self.limits.phys_bits;
        let beyond = |base: u64, len: u64| base.saturating_add(len) > 1 << physical;
        let maps = beyond(control.msrpm, MSRPM_LEN) || beyond(control.iopm, IOPM_LEN);
        // Virtual NMIs are for guests whose host has the others.
        let nmi = control.intercepts[3] >> (code::NMI % 32) & 1 != 0;
        let nmis = self.svm_has(has::VNMI) && control.int_ctl & int_ctl::V_NMI_ENABLE != 0 && !nmi;
        if !vmrun || control.asid == 0 || maps || nmis {
            return None;
        }
        if control.nested {
            let tables = self.cr0 & CR0_PG != 0 && control.n_cr3 >> physical == 0;
            if !tables || !is_pat(vmcb.u64(at::G_PAT)) {
                return None;
            }
        }
        let debug = vmcb.u64(at::DR6) >> 32 != 0 || vmcb.u64(at::DR7) >> 32 != 0;
        if debug || !self.are_modes_legal(vmcb, modes) {
            return None;
        }
        let cs = vmcb.segment(at::SEGMENTS + 16 * usize::from(CS));
        let is_64 = modes.is_long() && cs.has(attr::LONG);
        injected(vmcb.u64(at::EVENT_INJ), is_64)
    }

    fn are_modes_legal(&self, vmcb: &Vmcb, modes: &Modes) -> bool {
        let &Modes { cr0, cr3, cr4, efer } = modes;
        let caches = cr0 & CR0_CD == 0 && cr0 & CR0_NW != 0;
        if caches
            || cr0 >> 32 != 0
            || (cr3 & !self.limits.cr3_tags) >> self.limits.phys_bits != 0
            || cr4 & !self.limits.cr4 != 0
        {
            return false;
        }
        // LMA is the processor's to say, but has to exist.
        let raw = vmcb.u64(at::EFER);
        if efer & EFER_SVME == 0 || raw & !self.limits.efer != 0 {
            return false;
        }
        if !modes.is_long() {
            return true;
        }
        let cs = vmcb.segment(at::SEGMENTS + 16 * usize::from(CS));
        cr4 & CR4_PAE != 0 && cr0 & CR0_PE != 0 && !cs.has(attr::LONG | attr::BIG)
    }

    fn load_guest(&mut self, vmcb: &Vmcb, modes: &Modes) {
        for n in 0..4 {
            self.seg[n] = vmcb.segment(at::SEGMENTS + 16 * n);
        }
        self.gdtr = vmcb.table(at::GDTR);
        self.idtr = vmcb.table(at::IDTR);
        self.cr0 = modes.cr0 & CR0_VALID | CR0_ET;
        self.cr2 = vmcb.u64(at::CR2);
        self.cr3 = modes.cr3;
        self.cr4 = modes.cr4;
        self.efer = modes.efer;
        self.dr[6] = vmcb.u64(at::DR6) & 0xe00f | DR6_FIXED;
        self.dr[7] = vmcb.u64(at::DR7) & 0xffff_2fff | DR7_FIXED;
        self.set_rflags(vmcb.u64(at::RFLAGS));
        self.rip = vmcb.u64(at::RIP);
        self.gpr[usize::from(RSP)] = vmcb.u64(at::RSP);
        self.gpr[usize::from(RAX)] = vmcb.u64(at::RAX);
        self.cpl = match () {
            () if self.cr0 & CR0_PE == 0 => 0,
            () if self.system_flags & bits::VM != 0 => 3,
            () => vmcb.u8(at::CPL) & 3,
        };
        if self.svm.control.nested {
            self.msrs.pat = vmcb.u64(at::G_PAT);
        }
        if self.svm.control.virt_ext & LBR_VIRTUALIZATION_ENABLE != 0
            && self.svm_has(has::LBR_VIRTUALIZATION)
        {
            self.svm.host.branches = Some(self.msrs.branch_record());
            let own = std::array::from_fn(|n| vmcb.u64(at::DEBUG_CTL + 8 * n));
            self.msrs.set_branch_record(own);
        }
        self.debug_shadow = false;
        self.shadow = vmcb.u64(at::INTERRUPT_SHADOW) & 1 != 0;
        self.activity = Activity::Running;
        self.pending_debug = 0;
    }

    /// Switches to the guest's address space. False if it can't be.
    fn enter_address_space(&mut self, control: u8) -> bool {
        let asid = self.svm.control.asid;
        if !matches!(
            control,
            tlb_control::NOTHING | tlb_control::FLUSH_GUEST | tlb_control::FLUSH_GUEST_NON_GLOBAL
        ) {
            self.tlb.flush_every_asid();
        }
        self.enter_guest_asid();
        // Those that have no space of their own share one, which is empty whenever it is entered.
        if control == tlb_control::FLUSH_GUEST || asid >= ASIDS {
            self.tlb.flush_all();
            self.tlb.switch(self.pcid(), true);
        } else if control == tlb_control::FLUSH_GUEST_NON_GLOBAL {
            self.tlb.flush_non_global(self.pcid());
        }
        if !self.svm.nested && Self::is_pae(self.cr0, self.cr4, self.efer) {
            match self.read_pdptes(self.cr3) {
                Ok(entries) => self.pdptes = entries,
                Err(_) => return false,
            }
        }
        true
    }

    /// Has the TLB work on the guest's address spaces. What was entered while paging worked in another
    /// way is of no use: hosts change modes without a flush.
    pub(super) fn enter_guest_asid(&mut self) {
        const PAGING: u64 = CR4_PSE | CR4_PAE | CR4_PGE | CR4_PCIDE | CR4_LA57;
        let control = &self.svm.control;
        let key = SpaceKey {
            paged: self.cr0 & CR0_PG != 0,
            cr4: self.cr4 & PAGING,
            efer: self.efer & (EFER_LMA | EFER_NXE),
            nested: control.nested.then_some(control.n_cr3),
        };
        let asid = control.asid.min(ASIDS);
        self.tlb.enter_asid(asid as usize);
        self.tlb.require(key);
        self.tlb.switch(self.pcid(), false);
        self.svm.nested_tlb.flush();
    }

    /// Delivers an event to the guest that was just entered. It is not intercepted itself.
    fn inject(&mut self, injected: Injected, next_rip: u64) -> Delivered {
        let Injected { event, source, is_instruction } = injected;
        let rip = self.rip;
        if is_instruction && self.svm_has(has::NRIP_SAVE) {
            self.rip = next_rip;
        }
        self.ends_step = true;
        if event.vector == vector::NMI && self.has_virtual_nmi() {
            self.svm.control.int_ctl |= int_ctl::V_NMI_MASK;
        }
        let by = if is_instruction { Source::Software } else { source };
        match self.deliver(event.vector, by, event.error_code) {
            Ok(()) => Delivered::Yes,
            Err(fault) => {
                self.rip = rip;
                self.deliver_instead(event, source, fault)
            }
        }
    }

    /// Whether VMLOAD and VMSAVE of the running guest work on guest physical addresses.
    pub(super) fn virtual_vmload(&self) -> bool {
        const ENABLE: u64 = super::VIRTUAL_VMLOAD_ENABLE;
        self.svm.nested
            && self.svm.control.virt_ext & ENABLE != 0
            && self.svm_has(has::VIRTUAL_VMLOAD)
            && self.long_mode()
    }
}
