//! Stacks other than the running one, as delivery of interrupts and far transfers to another privilege
//! level fill them: all is checked and written before any register changes.

use crate::cpu::Cpu;
use crate::descriptor::{is_null, rpl, ss, ts};
use crate::exception::{Exception, Result};
use crate::segment::{SS, attr};
use crate::state::Segment;
use crate::tlb::Class;

/// A stack that a frame is being pushed to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewStack {
    /// The segment; only its base, limit and attributes matter outside 64-bit mode.
    pub(crate) segment: Segment,
    /// Stack pointer.
    pub(crate) sp: u64,
    /// Width of the stack pointer.
    mask: u64,
    /// Whether addresses are linear ones: 64-bit mode.
    flat: bool,
    /// On whose behalf it is written.
    class: Class,
    /// What a violation of the limit raises.
    fault: Exception,
}

impl NewStack {
    /// Has the stack written on behalf of `class`.
    pub(crate) fn on_behalf_of(&mut self, class: Class) {
        self.class = class;
    }
}

impl Cpu {
    /// The stack of privilege level `cpl` at `segment:sp`. `long` says that 64-bit rules apply.
    pub(crate) fn new_stack(&self, segment: Segment, sp: u64, cpl: u8, long: bool) -> NewStack {
        let class = if cpl == 3 { Class::User } else { Class::Supervisor };
        let mask = match () {
            () if long => u64::MAX,
            () if segment.has(attr::BIG) => 0xffff_ffff,
            () => 0xffff,
        };
        NewStack { segment, sp, mask, flat: long, class, fault: ss(segment.selector) }
    }

    /// The running stack, to be filled by the CPU itself.
    pub(crate) fn current_stack(&self, long: bool) -> NewStack {
        let mut stack = self.new_stack(self.seg[usize::from(SS)], self.gpr[4], self.cpl, long);
        stack.fault = Exception::SS0;
        if self.mode.is_vm86() || self.mode.is_real() {
            stack.mask = self.stack_mask;
        }
        stack
    }

    /// Pushes the low `size` bytes of `value`.
    pub(crate) fn push_to(&mut self, stack: &mut NewStack, size: u8, value: u64) -> Result {
        let sp = stack.sp.wrapping_sub(u64::from(size)) & stack.mask;
        let linear = if stack.flat {
            sp
        } else {
            if !stack.segment.holds(sp, usize::from(size)) {
                return Err(stack.fault);
            }
            stack.segment.base.wrapping_add(sp)
        };
        match size {
            2 => self.store_as(stack.class, linear, value as u16)?,
            4 => self.store_as(stack.class, linear, value as u32)?,
            _ => self.store_as(stack.class, linear, value)?,
        }
        let keep = if stack.mask == 0xffff { !0xffff } else { 0 };
        stack.sp = stack.sp & keep | sp;
        Ok(())
    }

    /// The stack pointer and selector for privilege level `level` from a legacy task state segment.
    pub(crate) fn tss_stack(&mut self, level: u8) -> Result<(u64, u16)> {
        let wide = self.tr.attributes & 8 != 0;
        let (offset, last) =
            if wide { (4 + 8 * u64::from(level), 5) } else { (2 + 4 * u64::from(level), 3) };
        if offset + last > u64::from(self.tr.limit) {
            return Err(ts(self.tr.selector));
        }
        let at = self.tr.base.wrapping_add(offset);
        if wide {
            let sp = u64::from(self.load_linear::<u32>(at)?);
            Ok((sp, self.load_linear(at.wrapping_add(4))?))
        } else {
            let sp = u64::from(self.load_linear::<u16>(at)?);
            Ok((sp, self.load_linear(at.wrapping_add(2))?))
        }
    }

    /// A stack pointer from a 64-bit task state segment, at byte `offset` of it.
    pub(crate) fn tss_stack_long(&mut self, offset: u64) -> Result<u64> {
        if offset + 7 > u64::from(self.tr.limit) {
            return Err(ts(self.tr.selector));
        }
        self.load_linear(self.tr.base.wrapping_add(offset))
    }

    /// The segment of an inner stack for privilege level `level`, checked as #TS demands.
    pub(crate) fn inner_stack_segment(&mut self, selector: u16, level: u8) -> Result<Segment> {
        if is_null(selector) {
            return Err(ts(0));
        }
        let mut descriptor = self.find_descriptor(selector)?.ok_or(ts(selector))?;
        if rpl(selector) != level || descriptor.dpl() != level || !descriptor.is_writable_data() {
            return Err(ts(selector));
        }
        if !descriptor.present() {
            return Err(ss(selector));
        }
        self.mark_accessed(&mut descriptor)?;
        Ok(descriptor.segment(selector))
    }

    /// Reads `size` bytes at `offset` bytes above the top of the running stack.
    pub(crate) fn peek(&mut self, offset: u64, size: u8) -> Result<u64> {
        let sp = self.gpr[4].wrapping_add(offset) & self.stack_mask;
        self.load_sized(SS, sp, size)
    }

    /// Loads 1, 2, 4 or 8 bytes from `seg:offset`.
    pub(crate) fn load_sized(&mut self, seg: u8, offset: u64, size: u8) -> Result<u64> {
        Ok(match size {
            1 => u64::from(self.load::<u8>(seg, offset)?),
            2 => u64::from(self.load::<u16>(seg, offset)?),
            4 => u64::from(self.load::<u32>(seg, offset)?),
            _ => self.load::<u64>(seg, offset)?,
        })
    }
}
