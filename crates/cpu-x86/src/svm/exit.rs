//! #VMEXIT (APM volume 2, section 15.6): from a guest back to its host.

use super::vmcb::{Vmcb, at};
use super::{has, int_ctl};
use crate::cpu::Cpu;
use crate::exception::vector;
use crate::flags::bits;
use crate::host::PAGE_OFFSET;
use crate::interrupt::{Delivered, Source};
use crate::reg::{RAX, RSP};
use crate::regs::{CR0_PE, DR6_BS, DR7_FIXED};
use crate::state::Activity;

/// Longest instruction, of which an exit tells the bytes.
const INSN_LEN: usize = 15;

/// Reasons of an exit (appendix C). Those below 0xc0 are numbered as their bits in the words of
/// intercepts.
pub(crate) mod code {
    pub(crate) const CR_READ: u32 = 0x00;
    pub(crate) const CR_WRITE: u32 = 0x10;
    pub(crate) const DR_READ: u32 = 0x20;
    pub(crate) const DR_WRITE: u32 = 0x30;
    pub(crate) const EXCEPTION: u32 = 0x40;
    pub(crate) const INTR: u32 = 0x60;
    pub(crate) const NMI: u32 = 0x61;
    pub(crate) const SMI: u32 = 0x62;
    pub(crate) const INIT: u32 = 0x63;
    pub(crate) const VINTR: u32 = 0x64;
    pub(crate) const CR0_SELECTIVE_WRITE: u32 = 0x65;
    pub(crate) const IDTR_READ: u32 = 0x66;
    pub(crate) const GDTR_READ: u32 = 0x67;
    pub(crate) const LDTR_READ: u32 = 0x68;
    pub(crate) const TR_READ: u32 = 0x69;
    pub(crate) const IDTR_WRITE: u32 = 0x6a;
    pub(crate) const GDTR_WRITE: u32 = 0x6b;
    pub(crate) const LDTR_WRITE: u32 = 0x6c;
    pub(crate) const TR_WRITE: u32 = 0x6d;
    pub(crate) const RDTSC: u32 = 0x6e;
    pub(crate) const RDPMC: u32 = 0x6f;
    pub(crate) const PUSHF: u32 = 0x70;
    pub(crate) const POPF: u32 = 0x71;
    pub(crate) const CPUID: u32 = 0x72;
    pub(crate) const RSM: u32 = 0x73;
    pub(crate) const IRET: u32 = 0x74;
    pub(crate) const SOFTWARE_INTERRUPT: u32 = 0x75;
    pub(crate) const INVD: u32 = 0x76;
    pub(crate) const PAUSE: u32 = 0x77;
    pub(crate) const HLT: u32 = 0x78;
    pub(crate) const INVLPG: u32 = 0x79;
    pub(crate) const INVLPGA: u32 = 0x7a;
    pub(crate) const IOIO: u32 = 0x7b;
    pub(crate) const MSR: u32 = 0x7c;
    pub(crate) const TASK_SWITCH: u32 = 0x7d;
    pub(crate) const FERR_FREEZE: u32 = 0x7e;
    pub(crate) const SHUTDOWN: u32 = 0x7f;
    pub(crate) const VMRUN: u32 = 0x80;
    pub(crate) const VMMCALL: u32 = 0x81;
    pub(crate) const VMLOAD: u32 = 0x82;
    pub(crate) const VMSAVE: u32 = 0x83;
    pub(crate) const STGI: u32 = 0x84;
    pub(crate) const CLGI: u32 = 0x85;
    pub(crate) const RDTSCP: u32 = 0x87;
    pub(crate) const ICEBP: u32 = 0x88;
    pub(crate) const WBINVD: u32 = 0x89;
    pub(crate) const MONITOR: u32 = 0x8a;
    pub(crate) const MWAIT: u32 = 0x8b;
    /// MWAIT with an address that is monitored.
    pub(crate) const MWAIT_ARMED: u32 = 0x8c;
    pub(crate) const XSETBV: u32 = 0x8d;
    pub(crate) const RDPRU: u32 = 0x8e;
    pub(crate) const INVPCID: u32 = 0xa2;
    pub(crate) const NPF: u32 = 0x400;
    /// The state in the control block is illegal.
    pub(crate) const INVALID: u32 = u32::MAX;
}

/// Fields of EVENTINJ and EXITINTINFO.
pub(super) mod event {
    pub(in crate::svm) const TYPE_SHIFT: u32 = 8;
    pub(in crate::svm) const EXTERNAL: u64 = 0;
    pub(in crate::svm) const NMI: u64 = 2;
    pub(in crate::svm) const EXCEPTION: u64 = 3;
    pub(in crate::svm) const SOFTWARE: u64 = 4;
    pub(in crate::svm) const HAS_CODE: u64 = 1 << 11;
    pub(in crate::svm) const VALID: u64 = 1 << 31;
    pub(in crate::svm) const CODE_SHIFT: u32 = 32;
}

/// An exit that is under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Exit {
    /// One of [`code`].
    pub(crate) code: u32,
    pub(crate) info1: u64,
    pub(crate) info2: u64,
    /// Address of the instruction after the intercepted one; 0 if none was.
    pub(crate) next_rip: u64,
}

/// An event as EXITINTINFO tells of it.
pub(crate) fn event_info(vector: u8, source: Source, error_code: Option<u16>) -> u64 {
    let kind = match source {
        Source::External if vector == vector::NMI => event::NMI,
        Source::External => event::EXTERNAL,
        Source::Exception | Source::Icebp => event::EXCEPTION,
        Source::Software => event::SOFTWARE,
    };
    let code = error_code.map_or(0, |code| event::HAS_CODE | u64::from(code) << event::CODE_SHIFT);
    u64::from(vector) | kind << event::TYPE_SHIFT | event::VALID | code
}

impl Cpu {
    /// Remembers that the delivery of an event did not get to its end, if a guest runs.
    #[cold]
    pub(crate) fn note_vectoring(&mut self, vector: u8, source: Source, error_code: Option<u16>) {
        if self.svm.guest {
            self.svm.vectoring = event_info(vector, source, error_code);
        }
    }

    /// Leaves the guest for a reason that is no instruction's.
    pub(crate) fn exit_for(&mut self, code: u32) -> Delivered {
        self.svm.exit = Exit { code, ..Exit::default() };
        self.vmexit()
    }

    /// What a shutdown comes to: an exit, if the guest's is intercepted.
    pub(crate) fn shut_down(&mut self) -> Delivered {
        if self.intercepts(code::SHUTDOWN) {
            return self.exit_for(code::SHUTDOWN);
        }
        Delivered::Shutdown
    }

    /// Leaves the guest: [`Svm::exit`](super::Svm) says why.
    pub(crate) fn vmexit(&mut self) -> Delivered {
        let at = self.svm.vmcb;
        let mut vmcb = Vmcb::read(self, at);
        self.put_reason(&mut vmcb);
        self.put_guest(&mut vmcb);
        // The block is the host's: its address is not translated.
        self.svm.guest = false;
        self.svm.nested = false;
        vmcb.write_exit(self, at);
        self.return_to_host()
    }

    /// VMRUN found a state that it can't enter.
    pub(super) fn vmexit_invalid(&mut self, vmcb: &mut Vmcb) -> Delivered {
        let at = self.svm.vmcb;
        self.svm.exit = Exit { code: code::INVALID, ..Exit::default() };
        self.put_reason(vmcb);
        vmcb.write_exit(self, at);
        self.return_to_host()
    }

    fn put_reason(&mut self, vmcb: &mut Vmcb) {
        let exit = self.svm.exit;
        let code = if exit.code == code::INVALID { u64::MAX } else { u64::from(exit.code) };
        vmcb.put_u64(at::EXIT_CODE, code);
        vmcb.put_u64(at::EXIT_INFO1, exit.info1);
        vmcb.put_u64(at::EXIT_INFO2, exit.info2);
        vmcb.put_u64(at::EXIT_INT_INFO, std::mem::take(&mut self.svm.vectoring));
        if self.svm_has(has::NRIP_SAVE) {
            vmcb.put_u64(at::NEXT_RIP, exit.next_rip);
        }
        if self.svm_has(has::DECODE_ASSISTS) {
            let page_fault = code::EXCEPTION + u32::from(vector::PF);
            let told = exit.code == code::NPF || exit.code == page_fault;
            let mut bytes = [0; 1 + INSN_LEN];
            if told && !self.svm.fetching {
                self.peek_instruction(&mut bytes);
            }
            vmcb.put(at::INSN_BYTES, &bytes);
        }
    }

    /// The bytes at RIP, after their number, as far as they can be fetched.
    fn peek_instruction(&mut self, out: &mut [u8; 1 + INSN_LEN]) {
        let before = (self.svm.exit, self.cr2, self.svm.old_cr2);
        let linear = self.code_linear();
        let first = INSN_LEN.min((PAGE_OFFSET + 1 - (linear & PAGE_OFFSET)) as usize);
        let (_, bytes) = out.split_at_mut(1);
        let mut len = 0;
        if self.fetch(linear, &mut bytes[..first]).is_ok() {
            len = first;
            let next = linear.wrapping_add(first as u64) & self.linear_mask;
            if first < INSN_LEN && self.fetch(next, &mut bytes[first..]).is_ok() {
                len = INSN_LEN;
            }
        }
        bytes[len..].fill(0);
        out[0] = len as u8;
        (self.svm.exit, self.cr2, self.svm.old_cr2) = before;
        self.svm.fetching = false;
    }

    /// The guest's state goes to its block.
    fn put_guest(&mut self, vmcb: &mut Vmcb) {
        for n in 0..4 {
            vmcb.put_segment(at::SEGMENTS + 16 * n, &self.seg[n]);
        }
        vmcb.put_table(at::GDTR, self.gdtr);
        vmcb.put_table(at::IDTR, self.idtr);
        vmcb.put(at::CPL, &[self.cpl]);
        vmcb.put_u64(at::EFER, self.efer);
        vmcb.put_u64(at::CR0, self.cr0);
        vmcb.put_u64(at::CR2, self.cr2);
        vmcb.put_u64(at::CR3, self.cr3);
        vmcb.put_u64(at::CR4, self.cr4);
        vmcb.put_u64(at::DR6, self.dr[6]);
        vmcb.put_u64(at::DR7, self.dr[7]);
        vmcb.put_u64(at::RFLAGS, self.rflags());
        vmcb.put_u64(at::RIP, self.rip);
        vmcb.put_u64(at::RSP, self.gpr(RSP));
        vmcb.put_u64(at::RAX, self.gpr(RAX));
        if self.svm.control.nested {
            vmcb.put_u64(at::G_PAT, self.msrs.pat);
        }
        if self.svm.host.branches.is_some() {
            for (n, value) in self.msrs.branch_record().into_iter().enumerate() {
                vmcb.put_u64(at::DEBUG_CTL + 8 * n, value);
            }
        }
        let nmi = int_ctl::V_NMI | int_ctl::V_NMI_MASK;
        let changed = int_ctl::V_TPR | int_ctl::V_IRQ | int_ctl::V_GIF | nmi;
        let interrupts = vmcb.u64(at::INT_CTL) & !changed | self.svm.control.int_ctl & changed;
        vmcb.put_u64(at::INT_CTL, interrupts);
        let shadow = vmcb.u64(at::INTERRUPT_SHADOW) & !1 | u64::from(self.shadow);
        vmcb.put_u64(at::INTERRUPT_SHADOW, shadow);
        vmcb.put_u64(at::EVENT_INJ, vmcb.u64(at::EVENT_INJ) & !event::VALID);
    }

    /// Takes up the host's state after its VMRUN, with the global interrupt flag clear.
    fn return_to_host(&mut self) -> Delivered {
        let host = self.svm.host.clone();
        if self.svm.control.nested {
            self.msrs.pat = host.pat;
        }
        self.restore_branch_record();
        self.svm.guest = false;
        self.svm.nested = false;
        self.svm.gif = false;
        self.seg[..4].copy_from_slice(&host.segments);
        self.gdtr = host.gdtr;
        self.idtr = host.idtr;
        self.efer = host.efer;
        self.cr0 = host.cr0 | CR0_PE;
        self.cr3 = host.cr3;
        self.cr4 = host.cr4;
        self.dr[7] = DR7_FIXED;
        self.cpl = 0;
        self.set_rflags(host.rflags & !bits::VM);
        self.rip = host.rip;
        self.gpr[usize::from(RSP)] = host.rsp;
        self.gpr[usize::from(RAX)] = host.rax;
        self.shadow = false;
        self.debug_shadow = false;
        self.activity = Activity::Running;
        self.keep_rip = false;
        // A host that steps has stepped its VMRUN.
        self.pending_debug = if host.rflags & bits::TF != 0 { DR6_BS } else { 0 };
        self.tlb.enter_asid(0);
        self.tlb.switch(self.pcid(), false);
        self.update_virtual_interrupt();
        self.update_mode();
        self.break_block = true;
        if Self::is_pae(self.cr0, self.cr4, self.efer) {
            match self.read_pdptes(self.cr3) {
                Ok(entries) => self.pdptes = entries,
                Err(_) => return Delivered::Shutdown,
            }
        }
        Delivered::Yes
    }
}
