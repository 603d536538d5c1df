//! Hardware task switching (APM volume 2, sections 12.2 to 12.4; SDM volume 3, chapter 8).
//!
//! A task is entered by a far JMP or CALL to its task state segment or to a task gate, by an interrupt
//! through a task gate, and by an IRET with NT set, which goes back to the task that the link field
//! names. Long mode has none of this.
//!
//! Up to the commit, exceptions belong to the old task, and nothing has changed. After it they belong to
//! the new one: registers then have what its segment held, and RIP is its (see `Cpu::keep_rip`).

use crate::cpu::Cpu;
use crate::descriptor::{Descriptor, gp, is_null, np, rpl, ss, system_type, ts};
use crate::exception::{Exception, Result, vector};
use crate::flags::bits;
use crate::interrupt::is_fault;
use crate::regs::{CR0_PG, CR0_TS, DR6_BT};
use crate::segment::{CS, DS, ES, FS, GS, SS, attr};
use crate::state::Segment;
use crate::svm::task_info;

/// Local enable bits of DR7's breakpoints, and LE.
const DR7_LOCAL: u64 = 0x155;

/// Why a task is switched to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    Jump,
    Call,
    /// An interrupt or exception.
    Event {
        vector: u8,
        exception: bool,
        error_code: Option<u16>,
    },
    Return,
}

impl Cause {
    /// Whether the new task can return to the old one.
    fn nests(self) -> bool {
        matches!(self, Self::Call | Self::Event { .. })
    }
}

/// Offsets in a 32-bit task state segment.
mod at32 {
    pub(super) const CR3: u64 = 0x1c;
    pub(super) const RIP: u64 = 0x20;
    pub(super) const FLAGS: u64 = 0x24;
    pub(super) const GPRS: u64 = 0x28;
    pub(super) const SEGMENTS: u64 = 0x48;
    pub(super) const LDT: u64 = 0x60;
    pub(super) const DEBUG: u64 = 0x64;
    pub(super) const LIMIT: u32 = 0x67;
    /// Length of the part that a switch writes.
    pub(super) const SAVED: u64 = 0x60;
}

/// Offsets in a 16-bit task state segment.
mod at16 {
    pub(super) const RIP: u64 = 0x0e;
    pub(super) const FLAGS: u64 = 0x10;
    pub(super) const GPRS: u64 = 0x12;
    pub(super) const SEGMENTS: u64 = 0x22;
    pub(super) const LDT: u64 = 0x2a;
    pub(super) const LIMIT: u32 = 0x2b;
    pub(super) const SAVED: u64 = 0x2a;
}

/// What a task state segment holds of a task.
#[derive(Clone, Copy, Debug, Default)]
struct Task {
    /// Of a 32-bit segment.
    wide: bool,
    cr3: u32,
    rip: u32,
    flags: u32,
    gpr: [u32; 8],
    /// ES, CS, SS, DS, FS, GS.
    selectors: [u16; 6],
    ldt: u16,
    /// The debug trap flag.
    trap: bool,
}

fn is_wide(attributes: u16) -> bool {
    attributes & 8 != 0
}

/// What EXITINFO2 tells of a switch because of `cause`, which would save `flags`.
fn task_exit_info(cause: Cause, flags: u64) -> u64 {
    let why = match cause {
        Cause::Return => task_info::IRET,
        Cause::Jump => task_info::JUMP,
        Cause::Event { error_code: Some(code), .. } => task_info::HAS_CODE | u64::from(code),
        Cause::Call | Cause::Event { .. } => 0,
    };
    if flags & bits::RF != 0 { why | task_info::RF } else { why }
}

impl Cpu {
    /// Switches through the task gate `gate`.
    pub(crate) fn task_gate(&mut self, gate: Descriptor, cause: Cause) -> Result {
        let selector = gate.gate_selector();
        let descriptor = self.tss_descriptor(selector, gp(selector))?;
        self.enter_task(descriptor, selector, cause)
    }

    /// The descriptor of a task state segment, which has to be in the GDT.
    fn tss_descriptor(&mut self, selector: u16, fault: Exception) -> Result<Descriptor> {
        if selector & 4 != 0 || is_null(selector) {
            return Err(fault);
        }
        self.find_descriptor(selector)?.ok_or(fault)
    }

    /// Switches to the task of an available task state segment.
    pub(crate) fn enter_task(
        &mut self,
        descriptor: Descriptor,
        selector: u16,
        cause: Cause,
    ) -> Result {
        let available =
            matches!(descriptor.system_type(), Some(system_type::TSS | system_type::TSS16));
        if !available || selector & 4 != 0 {
            return Err(gp(selector));
        }
        if !descriptor.present() {
            return Err(np(selector));
        }
        self.switch_task(descriptor, selector, cause)
    }

    /// IRET with NT set: switches to the task that the link field names.
    pub(crate) fn return_from_task(&mut self) -> Result {
        let selector: u16 = self.load_linear(self.tr.base)?;
        let descriptor = self.tss_descriptor(selector, ts(selector))?;
        let kind = descriptor.system_type().map(|kind| kind ^ system_type::BUSY);
        if !matches!(kind, Some(system_type::TSS | system_type::TSS16)) {
            return Err(ts(selector));
        }
        if !descriptor.present() {
            return Err(np(selector));
        }
        self.switch_task(descriptor, selector, Cause::Return)
    }

    fn switch_task(&mut self, descriptor: Descriptor, selector: u16, cause: Cause) -> Result {
        let mut new = descriptor.segment(selector);
        let limit = if is_wide(new.attributes) { at32::LIMIT } else { at16::LIMIT };
        if new.limit < limit {
            return Err(ts(selector));
        }
        let mut flags = self.rflags();
        match cause {
            Cause::Return => flags &= !bits::NT,
            Cause::Event { vector, exception, .. } if exception && is_fault(vector) => {
                flags |= bits::RF;
            }
            _ => {}
        }
        self.intercept_task_switch(selector, task_exit_info(cause, flags))?;
        // Everything that may fault comes first.
        let task = self.read_task(&new)?;
        let old = self.tr;
        let saved = if is_wide(old.attributes) { at32::SAVED } else { at16::SAVED };
        if u64::from(old.limit) < saved - 1 {
            return Err(ts(old.selector));
        }
        self.probe_linear(old.base, saved as usize)?;
        if cause.nests() {
            self.probe_linear(new.base, 2)?;
        }
        let old_descriptor = self.find_descriptor(old.selector)?.ok_or(ts(old.selector))?;
        self.probe_linear(old_descriptor.at, 8)?;
        self.probe_linear(descriptor.at, 8)?;

        let busy = system_type::BUSY as u8;
        if matches!(cause, Cause::Jump | Cause::Return) {
            self.update_linear::<u8>(old_descriptor.at.wrapping_add(5), |kind| kind & !busy)?;
        }
        self.write_task(&old, flags as u32)?;
        if cause.nests() {
            self.store_linear(new.base, old.selector)?;
        }
        if cause != Cause::Return {
            self.update_linear::<u8>(descriptor.at.wrapping_add(5), |kind| kind | busy)?;
        }
        new.attributes |= system_type::BUSY;
        self.tr = new;
        self.cr0 |= CR0_TS;
        self.dr[7] &= !DR7_LOCAL;
        self.ends_step = true;
        self.break_block = true;
        if cause == Cause::Return {
            self.unblock_nmis();
        }
        self.load_task(&task, cause).inspect_err(|_| self.keep_rip = true)
    }

    /// Reads the task state segment `tss`.
    fn read_task(&mut self, tss: &Segment) -> Result<Task> {
        let at = |offset: u64| tss.base.wrapping_add(offset);
        let mut task = Task { wide: is_wide(tss.attributes), ..Task::default() };
        if task.wide {
            task.cr3 = self.load_linear(at(at32::CR3))?;
            task.rip = self.load_linear(at(at32::RIP))?;
            task.flags = self.load_linear(at(at32::FLAGS))?;
            for (n, gpr) in (0..).zip(&mut task.gpr) {
                *gpr = self.load_linear(at(at32::GPRS + 4 * n))?;
            }
            for (n, selector) in (0..).zip(&mut task.selectors) {
                *selector = self.load_linear(at(at32::SEGMENTS + 4 * n))?;
            }
            task.ldt = self.load_linear(at(at32::LDT))?;
            task.trap = self.load_linear::<u16>(at(at32::DEBUG))? & 1 != 0;
        } else {
            task.rip = self.load_linear::<u16>(at(at16::RIP))?.into();
            task.flags = self.load_linear::<u16>(at(at16::FLAGS))?.into();
            for (n, gpr) in (0..).zip(&mut task.gpr) {
                *gpr = self.load_linear::<u16>(at(at16::GPRS + 2 * n))?.into();
            }
            for (n, selector) in (0..).zip(&mut task.selectors[..4]) {
                *selector = self.load_linear(at(at16::SEGMENTS + 2 * n))?;
            }
            task.ldt = self.load_linear(at(at16::LDT))?;
        }
        Ok(task)
    }

    /// Writes the running task to its task state segment `tss`. CR3 and the LDT's selector are not
    /// written.
    fn write_task(&mut self, tss: &Segment, flags: u32) -> Result {
        let at = |offset: u64| tss.base.wrapping_add(offset);
        let selectors = self.seg.map(|segment| segment.selector);
        if is_wide(tss.attributes) {
            self.store_linear(at(at32::RIP), self.rip as u32)?;
            self.store_linear(at(at32::FLAGS), flags)?;
            for n in 0..8 {
                self.store_linear(at(at32::GPRS + 4 * n), self.gpr[n as usize] as u32)?;
            }
            for (n, selector) in (0..).zip(selectors) {
                self.store_linear(at(at32::SEGMENTS + 4 * n), selector)?;
            }
        } else {
            self.store_linear(at(at16::RIP), self.rip as u16)?;
            self.store_linear(at(at16::FLAGS), flags as u16)?;
            for n in 0..8 {
                self.store_linear(at(at16::GPRS + 2 * n), self.gpr[n as usize] as u16)?;
            }
            for (n, selector) in (0..4).zip(selectors) {
                self.store_linear(at(at16::SEGMENTS + 2 * n), selector)?;
            }
        }
        Ok(())
    }

    /// Makes `task` the running one.
    fn load_task(&mut self, task: &Task, cause: Cause) -> Result {
        let nested = if cause.nests() { bits::NT } else { 0 };
        self.set_rflags(u64::from(task.flags) | nested);
        self.rip = u64::from(task.rip);
        for (register, value) in self.gpr.iter_mut().zip(task.gpr) {
            *register = u64::from(value);
        }
        let selector_only = |selector| Segment { selector, ..Segment::default() };
        self.seg = task.selectors.map(selector_only);
        self.ldtr = selector_only(task.ldt);
        let vm86 = self.system_flags & bits::VM != 0;
        self.cpl = if vm86 { 3 } else { rpl(task.selectors[usize::from(CS)]) };
        self.update_mode();
        if task.wide && self.cr0 & CR0_PG != 0 {
            self.write_cr3(u64::from(task.cr3))?;
        }
        self.load_task_ldt(task.ldt)?;
        if vm86 {
            for index in [ES, CS, SS, DS, FS, GS] {
                self.load_segment_real(index, task.selectors[usize::from(index)]);
            }
        } else {
            self.load_task_code(task.selectors[usize::from(CS)])?;
            self.load_task_stack(task.selectors[usize::from(SS)])?;
            for index in [ES, DS, FS, GS] {
                self.load_task_data(index, task.selectors[usize::from(index)])?;
            }
        }
        if task.trap {
            self.pending_debug |= DR6_BT;
        }
        if let Cause::Event { error_code: Some(code), .. } = cause {
            let mut stack = self.current_stack(false);
            let size = if task.wide { 4 } else { 2 };
            self.push_to(&mut stack, size, u64::from(code))?;
            self.gpr[4] = stack.sp;
        }
        if self.rip > u64::from(self.seg[usize::from(CS)].limit) {
            return Err(Exception::GP0);
        }
        Ok(())
    }

    fn load_task_ldt(&mut self, selector: u16) -> Result {
        if is_null(selector) {
            return Ok(());
        }
        let descriptor = self.tss_descriptor(selector, ts(selector))?;
        if descriptor.system_type() != Some(system_type::LDT) || !descriptor.present() {
            return Err(ts(selector));
        }
        self.ldtr = descriptor.segment(selector);
        Ok(())
    }

    /// A descriptor for a register that can't be null.
    fn task_descriptor(&mut self, selector: u16) -> Result<Descriptor> {
        if is_null(selector) {
            return Err(ts(selector));
        }
        self.find_descriptor(selector)?.ok_or(ts(selector))
    }

    fn load_task_code(&mut self, selector: u16) -> Result {
        let mut descriptor = self.task_descriptor(selector)?;
        let level = rpl(selector);
        let allowed = if descriptor.has(attr::CONFORMING) {
            descriptor.dpl() <= level
        } else {
            descriptor.dpl() == level
        };
        if !descriptor.is_code() || !allowed {
            return Err(ts(selector));
        }
        if !descriptor.present() {
            return Err(np(selector));
        }
        self.mark_accessed(&mut descriptor)?;
        let rip = self.rip;
        self.set_code(descriptor.segment(selector), level, rip);
        Ok(())
    }

    fn load_task_stack(&mut self, selector: u16) -> Result {
        let mut descriptor = self.task_descriptor(selector)?;
        let level = self.cpl;
        if rpl(selector) != level || descriptor.dpl() != level || !descriptor.is_writable_data() {
            return Err(ts(selector));
        }
        if !descriptor.present() {
            return Err(ss(selector));
        }
        self.mark_accessed(&mut descriptor)?;
        self.set_segment(SS, descriptor.segment(selector));
        Ok(())
    }

    fn load_task_data(&mut self, index: u8, selector: u16) -> Result {
        if is_null(selector) {
            return Ok(());
        }
        // The checks are those of a load, with another exception.
        self.load_segment(index, selector).map_err(|fault| match fault.vector {
            vector::GP => ts(selector),
            _ => fault,
        })
    }
}
