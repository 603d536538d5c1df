//! Far transfers of control: JMP, CALL and RET between segments, call gates, and IRET (APM volume 2,
//! sections 4.9 and 8.9; volume 3 for each instruction). Those that lead to another task go on in
//! `task`.

use crate::cpu::Cpu;
use crate::descriptor::{Descriptor, gp, is_null, np, rpl, ss, system_type};
use crate::exception::{Exception, Result};
use crate::flags::bits;
use crate::regs::CR4_VME;
use crate::segment::{CS, DS, ES, FS, GS, SS, attr};
use crate::state::Segment;
use crate::svm::code;
use crate::task::Cause;

/// The two kinds of entry to another segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    Jump,
    /// A call that pushes return addresses of this many bytes.
    Call(u8),
}

/// Flags that POPF and IRET at the most privileged level may change, VM and RF aside.
const FLAGS_CPL0: u64 =
    bits::ARITH | bits::TF | bits::IF | bits::DF | bits::IOPL | bits::NT | bits::AC | bits::ID;

impl Cpu {
    /// Far JMP to `selector:offset`.
    pub(crate) fn far_jump(&mut self, selector: u16, offset: u64) -> Result {
        self.far_entry(selector, offset, Entry::Jump)
    }

    /// Far CALL to `selector:offset`, pushing `size` bytes each of CS and RIP.
    pub(crate) fn far_call(&mut self, selector: u16, offset: u64, size: u8) -> Result {
        self.far_entry(selector, offset, Entry::Call(size))
    }

    fn far_entry(&mut self, selector: u16, offset: u64, entry: Entry) -> Result {
        if !self.mode.is_protected() {
            let segment = &self.seg[usize::from(CS)];
            if offset > u64::from(segment.limit) {
                return Err(Exception::GP0);
            }
            self.push_return(entry)?;
            self.load_segment_real(CS, selector);
            self.rip = offset;
            return Ok(());
        }
        if is_null(selector) {
            return Err(Exception::GP0);
        }
        let mut descriptor = self.descriptor(selector)?;
        match descriptor.system_type() {
            None => {
                self.check_code(descriptor, selector)?;
                let code = descriptor.segment(selector);
                self.check_code_offset(&code, offset)?;
                self.mark_accessed(&mut descriptor)?;
                self.push_return(entry)?;
                self.set_code(descriptor.segment(selector), self.cpl, offset);
                Ok(())
            }
            Some(system_type::CALL_GATE) => self.call_gate(descriptor, selector, entry, true),
            Some(system_type::CALL_GATE16) if !self.long_mode() => {
                self.call_gate(descriptor, selector, entry, false)
            }
            Some(system_type::TSS | system_type::TSS16 | system_type::TASK_GATE)
                if !self.long_mode() =>
            {
                if descriptor.dpl() < self.cpl.max(rpl(selector)) {
                    return Err(gp(selector));
                }
                if !descriptor.present() {
                    return Err(np(selector));
                }
                let cause = if entry == Entry::Jump { Cause::Jump } else { Cause::Call };
                if descriptor.system_type() == Some(system_type::TASK_GATE) {
                    self.task_gate(descriptor, cause)
                } else {
                    self.enter_task(descriptor, selector, cause)
                }
            }
            _ => Err(gp(selector)),
        }
    }

    /// Pushes the return address on the running stack.
    fn push_return(&mut self, entry: Entry) -> Result {
        if let Entry::Call(size) = entry {
            let long = self.mode.is_64();
            let mut stack = self.current_stack(long);
            stack.on_behalf_of(self.class);
            self.push_to(&mut stack, size, u64::from(self.seg[usize::from(CS)].selector))?;
            self.push_to(&mut stack, size, self.rip)?;
            self.gpr[4] = stack.sp;
        }
        Ok(())
    }

    /// Enters through a call gate.
    fn call_gate(
        &mut self,
        gate: Descriptor,
        gate_selector: u16,
        entry: Entry,
        wide: bool,
    ) -> Result {
        if gate.dpl() < self.cpl.max(rpl(gate_selector)) {
            return Err(gp(gate_selector));
        }
        if !gate.present() {
            return Err(np(gate_selector));
        }
        let long = self.long_mode();
        let high = if long { self.descriptor_high(gate_selector)? << 32 } else { 0 };
        let mask = if wide { u64::MAX } else { 0xffff };
        let offset = (gate.gate_offset() | high) & mask;
        let selector = gate.gate_selector();
        if is_null(selector) {
            return Err(Exception::GP0);
        }
        let mut target = self.descriptor(selector)?;
        if !target.is_code() || target.dpl() > self.cpl {
            return Err(gp(selector));
        }
        if long && (!target.has(attr::LONG) || target.has(attr::BIG)) {
            return Err(gp(selector));
        }
        if !target.present() {
            return Err(np(selector));
        }
        let conforming = target.has(attr::CONFORMING);
        let inner = !conforming && target.dpl() < self.cpl;
        if entry == Entry::Jump && inner {
            return Err(gp(selector));
        }
        self.mark_accessed(&mut target)?;
        let code = target.segment(selector);
        self.check_code_offset(&code, offset)?;
        let size = match () {
            () if long => 8,
            () if wide => 4,
            () => 2,
        };
        if inner {
            let parameters = if long { 0 } else { (gate.raw >> 32 & 0x1f) as u8 };
            self.call_inner(code, target.dpl(), offset, size, parameters)
        } else {
            if entry != Entry::Jump {
                self.push_return(Entry::Call(size))?;
            }
            self.set_code(code, self.cpl, offset);
            Ok(())
        }
    }

    /// A call to a more privileged level, on that level's stack.
    fn call_inner(
        &mut self,
        code: Segment,
        level: u8,
        offset: u64,
        size: u8,
        parameters: u8,
    ) -> Result {
        let long = self.long_mode();
        let mut stack = if long {
            let sp = self.tss_stack_long(4 + 8 * u64::from(level))?;
            let null = Segment { selector: u16::from(level), ..Segment::default() };
            self.new_stack(null, sp, level, true)
        } else {
            let (sp, selector) = self.tss_stack(level)?;
            let segment = self.inner_stack_segment(selector, level)?;
            self.new_stack(segment, sp, level, false)
        };
        self.push_to(&mut stack, size, u64::from(self.seg[usize::from(SS)].selector))?;
        self.push_to(&mut stack, size, self.gpr[4])?;
        for index in (0..parameters).rev() {
            let value = self.peek(u64::from(index) * u64::from(size), size)?;
            self.push_to(&mut stack, size, value)?;
        }
        self.push_to(&mut stack, size, u64::from(self.seg[usize::from(CS)].selector))?;
        self.push_to(&mut stack, size, self.rip)?;
        self.seg[usize::from(SS)] = stack.segment;
        self.gpr[4] = stack.sp;
        self.set_code(code, level, offset);
        Ok(())
    }

    /// Far RET with operands of `size` bytes that releases `release` bytes of parameters.
    pub(crate) fn far_return(&mut self, size: u8, release: u64) -> Result {
        let width = u64::from(size);
        let rip = self.peek(0, size)?;
        let selector = self.peek(width, size)? as u16;
        if !self.mode.is_protected() {
            if rip > u64::from(self.seg[usize::from(CS)].limit) {
                return Err(Exception::GP0);
            }
            self.set_sp(self.gpr[4].wrapping_add(2 * width + release));
            self.load_segment_real(CS, selector);
            self.rip = rip;
            return Ok(());
        }
        let code = self.return_code(selector, rip)?;
        let level = rpl(selector);
        if level == self.cpl {
            self.set_sp(self.gpr[4].wrapping_add(2 * width + release));
            self.set_code(code, level, rip);
            return Ok(());
        }
        let sp = self.peek(2 * width + release, size)?;
        let stack_selector = self.peek(3 * width + release, size)? as u16;
        let stack = self.return_stack(stack_selector, level, &code)?;
        self.return_outward(code, level, rip, stack, sp);
        self.set_sp(self.gpr[4].wrapping_add(release));
        Ok(())
    }

    /// The checks of the code segment that a far RET or IRET returns to.
    fn return_code(&mut self, selector: u16, rip: u64) -> Result<Segment> {
        if is_null(selector) {
            return Err(Exception::GP0);
        }
        let mut descriptor = self.descriptor(selector)?;
        let level = rpl(selector);
        let allowed = if descriptor.has(attr::CONFORMING) {
            descriptor.dpl() <= level
        } else {
            descriptor.dpl() == level
        };
        if !descriptor.is_code() || level < self.cpl || !allowed {
            return Err(gp(selector));
        }
        self.check_code_kind(descriptor, selector)?;
        self.check_code_offset(&descriptor.segment(selector), rip)?;
        self.mark_accessed(&mut descriptor)?;
        Ok(descriptor.segment(selector))
    }

    /// The stack segment that a return to `level` uses.
    fn return_stack(&mut self, selector: u16, level: u8, code: &Segment) -> Result<Segment> {
        if is_null(selector) {
            let null_allowed = self.long_mode() && code.has(attr::LONG) && level != 3;
            return if null_allowed && rpl(selector) == level {
                Ok(Segment { selector, ..Segment::default() })
            } else {
                Err(Exception::GP0)
            };
        }
        let mut descriptor = self.descriptor(selector)?;
        if rpl(selector) != level || !descriptor.is_writable_data() || descriptor.dpl() != level {
            return Err(gp(selector));
        }
        if !descriptor.present() {
            return Err(ss(selector));
        }
        self.mark_accessed(&mut descriptor)?;
        Ok(descriptor.segment(selector))
    }

    /// Completes a return with a change of stack.
    fn return_outward(&mut self, code: Segment, level: u8, rip: u64, stack: Segment, sp: u64) {
        let outward = level != self.cpl;
        self.seg[usize::from(SS)] = stack;
        self.set_code(code, level, rip);
        self.set_sp(sp);
        if outward {
            self.drop_privileged_segments(level);
        }
    }

    /// IRET with operands of `size` bytes. NMIs are let in again even if it faults (SDM volume 3, section 6.7.1).
    pub(crate) fn interrupt_return(&mut self, size: u8) -> Result {
        self.intercept(code::IRET)?;
        let width = u64::from(size);
        // With virtual interrupts, 16-bit programs in virtual-8086 mode manage VIF instead of IF.
        let virtual_if = self.mode.is_vm86() && self.iopl() != 3;
        if virtual_if && (self.cr4 & CR4_VME == 0 || size != 2) {
            self.unblock_nmis();
            return Err(Exception::GP0);
        }
        self.unblock_nmis();
        if self.mode.is_protected() && self.system_flags & bits::NT != 0 {
            return if self.long_mode() { Err(Exception::GP0) } else { self.return_from_task() };
        }
        let rip = self.peek(0, size)?;
        let selector = self.peek(width, size)? as u16;
        let flags = self.peek(2 * width, size)?;
        if !self.mode.is_protected() {
            if rip > u64::from(self.seg[usize::from(CS)].limit) {
                return Err(Exception::GP0);
            }
            if virtual_if {
                self.check_virtual_flags(flags)?;
            }
            self.set_sp(self.gpr[4].wrapping_add(3 * width));
            let keep = if self.mode.is_vm86() { bits::IOPL } else { 0 };
            self.load_segment_real(CS, selector);
            self.rip = rip;
            if virtual_if {
                self.write_virtual_flags(flags);
            } else {
                self.write_flags(flags, (FLAGS_CPL0 | bits::RF) & !keep, size);
            }
            return Ok(());
        }
        if flags & bits::VM != 0 && size == 4 && self.cpl == 0 && !self.long_mode() {
            return self.return_to_vm86(rip, selector, flags);
        }
        let code = self.return_code(selector, rip)?;
        let level = rpl(selector);
        let mut mask = self.changeable_flags() | bits::RF;
        if self.cpl == 0 {
            mask |= bits::VIF | bits::VIP;
        }
        if level == self.cpl && !self.mode.is_64() {
            self.set_sp(self.gpr[4].wrapping_add(3 * width));
            self.set_code(code, level, rip);
        } else {
            let sp = self.peek(3 * width, size)?;
            let stack_selector = self.peek(4 * width, size)? as u16;
            let stack = self.return_stack(stack_selector, level, &code)?;
            self.return_outward(code, level, rip, stack, sp);
        }
        self.write_flags(flags, mask, size);
        Ok(())
    }

    /// IRET from level 0 to virtual-8086 mode.
    fn return_to_vm86(&mut self, rip: u64, selector: u16, flags: u64) -> Result {
        if rip > 0xffff {
            return Err(Exception::GP0);
        }
        let sp = self.peek(12, 4)?;
        let mut selectors = [0; 5];
        for (slot, value) in selectors.iter_mut().enumerate() {
            *value = self.peek(16 + 4 * slot as u64, 4)? as u16;
        }
        self.cpl = 3;
        self.set_rflags(flags | bits::VM);
        self.update_mode();
        self.load_segment_real(CS, selector);
        for (index, value) in [SS, ES, DS, FS, GS].into_iter().zip(selectors) {
            self.load_segment_real(index, value);
        }
        self.gpr[4] = sp;
        self.rip = rip;
        Ok(())
    }

    /// I/O privilege level.
    pub(crate) fn iopl(&self) -> u8 {
        (self.system_flags >> 12 & 3) as u8
    }

    /// The flags that POPF and IRET may change at the present privilege level.
    pub(crate) fn changeable_flags(&self) -> u64 {
        match self.cpl {
            0 => FLAGS_CPL0,
            level if level <= self.iopl() => FLAGS_CPL0 & !bits::IOPL,
            _ => FLAGS_CPL0 & !(bits::IOPL | bits::IF),
        }
    }

    /// With virtual interrupts: raises what loading `flags`, 16 of them, in virtual-8086 mode below IOPL
    /// 3 raises.
    pub(crate) fn check_virtual_flags(&self, flags: u64) -> Result {
        let awaited = flags & bits::IF != 0 && self.system_flags & bits::VIP != 0;
        if awaited || flags & bits::TF != 0 { Err(Exception::GP0) } else { Ok(()) }
    }

    /// Loads `flags`, which [`Self::check_virtual_flags`] has passed: IF goes to VIF.
    pub(crate) fn write_virtual_flags(&mut self, flags: u64) {
        self.write_flags(flags, FLAGS_CPL0 & !(bits::IF | bits::IOPL), 2);
        self.set_virtual_if(flags & bits::IF != 0);
    }

    /// Sets VIF.
    pub(crate) fn set_virtual_if(&mut self, enabled: bool) {
        self.system_flags &= !bits::VIF;
        if enabled {
            self.system_flags |= bits::VIF;
        }
    }

    /// The low 16 flags as virtual-8086 programs with virtual interrupts get them: with VIF for IF, and
    /// IOPL 3.
    pub(crate) fn virtual_flags(&self) -> u64 {
        let flags = self.rflags() & 0xffff & !bits::IF | bits::IOPL;
        if self.system_flags & bits::VIF != 0 { flags | bits::IF } else { flags }
    }

    /// Sets the flags in `mask` from `value`, of which `size` bytes count.
    pub(crate) fn write_flags(&mut self, value: u64, mask: u64, size: u8) {
        let mask = if size == 2 { mask & 0xffff } else { mask };
        let flags = self.rflags() & !mask | value & mask;
        self.set_rflags(flags);
        self.update_class();
    }
}
