//! Delivery of exceptions and interrupts (APM volume 2, chapter 8; section 14.1 for INIT and start-up).
//!
//! [`Cpu::deliver`] enters a handler through the interrupt vector table or a gate. It checks and writes
//! everything before it changes a register, so that an exception on the way can be delivered in place
//! of the event. [`Cpu::deliver_exception`] combines such exceptions into double faults and, at last,
//! shutdown.

use accel::Signal;

use crate::counters::Count;
use crate::cpu::Cpu;
use crate::descriptor::{Descriptor, gp, is_null, np, system_type};
use crate::exception::{Exception, Result, vector};
use crate::flags::bits;
use crate::segment::{CS, DS, ES, FS, GS, SS, attr};
use crate::stack::NewStack;
use crate::state::{Activity, Segment};
use crate::svm::code;
use crate::task::Cause;

/// Bit 0 of an error code: the event came from outside.
const EXTERNAL: u16 = 1;
/// The error code of a security exception that an INIT raised (APM volume 2, section 8.2.21).
const REDIRECTED_INIT: u16 = 1;
/// Bit 1 of an error code: the index is one into the IDT.
const IN_IDT: u16 = 2;

/// Where an event comes from, which decides about privilege checks and error codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// INT n, INT3 and INTO: the gate's DPL counts.
    Software,
    /// INT1 (ICEBP): a software interrupt whose gate's DPL does not count.
    Icebp,
    /// An exception.
    Exception,
    /// An external interrupt or NMI.
    External,
}

/// Whether the CPU goes on after an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Delivered {
    /// It continues with the handler.
    Yes,
    /// A triple fault: it shuts down.
    Shutdown,
}

/// Vectors that give a double fault when one meets another.
fn is_contributory(v: u8) -> bool {
    matches!(v, vector::DE | vector::TS | vector::NP | vector::SS | vector::GP)
}

impl Cpu {
    /// Delivers an exception that an instruction raised, with `rip` at that instruction (a fault) or
    /// after it (a trap).
    pub(crate) fn deliver_exception(&mut self, exception: Exception) -> Delivered {
        match exception {
            Exception::RETRY => Delivered::Yes,
            Exception::EXIT => self.vmexit(),
            _ => self.deliver_event(exception, Source::Exception),
        }
    }

    /// Delivers `event` or the exception that comes of trying.
    pub(crate) fn deliver_event(&mut self, event: Exception, source: Source) -> Delivered {
        if self.svm.guest && source == Source::Exception && self.intercepts_exception(event) {
            return self.vmexit();
        }
        match self.deliver(event.vector, source, event.error_code) {
            Ok(()) => Delivered::Yes,
            Err(next) => self.deliver_instead(event, source, next),
        }
    }

    /// Delivers the exception that comes of `next`, which was raised in the attempt to deliver `event`.
    #[cold]
    pub(crate) fn deliver_instead(
        &mut self,
        event: Exception,
        source: Source,
        next: Exception,
    ) -> Delivered {
        self.keep_rip = false;
        self.note_vectoring(event.vector, source, event.error_code);
        if next == Exception::EXIT {
            return self.vmexit();
        }
        if event.vector == vector::DF && source == Source::Exception {
            self.svm.vectoring = 0;
            return self.shut_down();
        }
        // The second exception is intercepted for itself, before it is combined with the first.
        if self.svm.guest && self.intercepts_exception(next) {
            return self.vmexit();
        }
        let first = if source == Source::Exception { event.vector } else { vector::NMI };
        let doubles = is_contributory(first) && is_contributory(next.vector)
            || first == vector::PF && (next.vector == vector::PF || is_contributory(next.vector));
        self.svm.vectoring = 0;
        if doubles {
            self.deliver_event(Exception::with_code(vector::DF, 0), Source::Exception)
        } else {
            match self.deliver(next.vector, Source::Exception, next.error_code) {
                Ok(()) => Delivered::Yes,
                Err(third) => self.deliver_instead(next, Source::Exception, third),
            }
        }
    }

    /// Enters the handler of `vector`. On an error nothing has changed but accessed bits.
    pub(crate) fn deliver(
        &mut self,
        vector: u8,
        source: Source,
        error_code: Option<u16>,
    ) -> Result {
        self.trace_event(vector, source, error_code);
        self.counters.count(Count::Events);
        let from = self.code_linear();
        let done = if self.mode.is_real() {
            self.deliver_real(vector)
        } else {
            self.deliver_gate(vector, source, error_code)
        };
        done.map_err(|mut fault| {
            // To Intel an earlier exception is outside the program; to AMD it is not outside the processor.
            let external =
                source == Source::External || source == Source::Exception && self.limits.intel;
            if external && matches!(fault.vector, vector::TS..=vector::GP) {
                fault.error_code = fault.error_code.map(|code| code | EXTERNAL);
            }
            fault
        })?;
        self.activity = Activity::Running;
        self.shadow = false;
        self.svm.vectoring = 0;
        if self.records_branches() {
            self.record_event(from);
        }
        if vector == vector::DB && source == Source::Exception {
            self.msrs.stop_branch_tracing();
        }
        Ok(())
    }

    fn deliver_real(&mut self, vector: u8) -> Result {
        let at = u64::from(vector) * 4;
        if at + 3 > u64::from(self.idtr.limit) {
            return Err(gp((u16::from(vector) * 8) | IN_IDT));
        }
        let entry: u32 = self.load_linear(self.idtr.base.wrapping_add(at))?;
        let mut stack = self.current_stack(false);
        self.push_to(&mut stack, 2, self.rflags())?;
        self.push_to(&mut stack, 2, u64::from(self.seg[usize::from(CS)].selector))?;
        self.push_to(&mut stack, 2, self.rip)?;
        self.gpr[4] = stack.sp;
        self.system_flags &= !(bits::IF | bits::TF | bits::AC | bits::RF);
        self.load_segment_real(CS, (entry >> 16) as u16);
        self.rip = u64::from(entry as u16);
        Ok(())
    }

    /// Reads and checks the gate of `vector`; returns it with the upper half of its target.
    fn gate(&mut self, vector: u8, source: Source) -> Result<(Descriptor, u64)> {
        let code = (u16::from(vector) * 8) | IN_IDT;
        let fault = Exception::with_code(vector::GP, code);
        let long = self.long_mode();
        let size = if long { 16 } else { 8 };
        let offset = u64::from(vector) * size;
        if offset + size - 1 > u64::from(self.idtr.limit) {
            return Err(fault);
        }
        let at = self.idtr.base.wrapping_add(offset);
        let gate = Descriptor { raw: self.load_linear(at)?, at };
        let high = if long { self.load_linear::<u64>(at.wrapping_add(8))? << 32 } else { 0 };
        let known = match gate.system_type() {
            Some(system_type::INT_GATE | system_type::TRAP_GATE) => true,
            Some(system_type::INT_GATE16 | system_type::TRAP_GATE16 | system_type::TASK_GATE) => {
                !long
            }
            _ => false,
        };
        if !known || source == Source::Software && gate.dpl() < self.cpl {
            return Err(fault);
        }
        if !gate.present() {
            return Err(Exception::with_code(vector::NP, code));
        }
        Ok((gate, high))
    }

    fn deliver_gate(&mut self, vector: u8, source: Source, error_code: Option<u16>) -> Result {
        let (gate, high) = self.gate(vector, source)?;
        let kind = gate.system_type();
        if kind == Some(system_type::TASK_GATE) {
            let exception = source == Source::Exception;
            return self.task_gate(gate, Cause::Event { vector, exception, error_code });
        }
        let selector = gate.gate_selector();
        if is_null(selector) {
            return Err(gp(0));
        }
        let mut target = self.descriptor(selector)?;
        if !target.is_code() || target.dpl() > self.cpl {
            return Err(gp(selector));
        }
        if !target.present() {
            return Err(np(selector));
        }
        let conforming = target.has(attr::CONFORMING);
        let level = if conforming { self.cpl } else { target.dpl() };
        if self.mode.is_vm86() && level != 0 {
            return Err(gp(selector));
        }
        let long = self.long_mode();
        if long && (!target.has(attr::LONG) || target.has(attr::BIG)) {
            return Err(gp(selector));
        }
        let offset = match kind {
            Some(system_type::INT_GATE16 | system_type::TRAP_GATE16) => gate.gate_offset() & 0xffff,
            _ => gate.gate_offset() | high,
        };
        self.mark_accessed(&mut target)?;
        let code = target.segment(selector);
        let mut flags = self.rflags();
        if source == Source::Exception && is_fault(vector) {
            flags |= bits::RF;
        } else if source != Source::Exception || vector != vector::DB {
            flags &= !bits::RF;
        }
        let stack = if long {
            self.check_code_offset(&code, offset)?;
            self.long_frame(level, (gate.raw >> 32 & 7) as u8, flags, error_code)?
        } else {
            let size = if matches!(kind, Some(system_type::INT_GATE | system_type::TRAP_GATE)) {
                4
            } else {
                2
            };
            self.check_code_offset(&code, offset)?;
            self.legacy_frame(level, size, flags, error_code)?
        };
        let is_interrupt_gate =
            matches!(kind, Some(system_type::INT_GATE | system_type::INT_GATE16));
        self.system_flags &= !(bits::TF | bits::NT | bits::RF | bits::VM);
        if is_interrupt_gate {
            self.system_flags &= !bits::IF;
        }
        let changed = level != self.cpl;
        self.cpl = level;
        if long {
            if changed {
                let selector = u16::from(level);
                self.seg[usize::from(SS)] = Segment { selector, ..Segment::default() };
            }
        } else {
            self.seg[usize::from(SS)] = stack.segment;
        }
        self.gpr[4] = stack.sp;
        self.set_code(code, level, offset);
        Ok(())
    }

    /// Pushes the frame of 64-bit mode.
    fn long_frame(
        &mut self,
        level: u8,
        ist: u8,
        flags: u64,
        error_code: Option<u16>,
    ) -> Result<NewStack> {
        let top = if ist != 0 {
            self.tss_stack_long(28 + 8 * u64::from(ist))?
        } else if level != self.cpl {
            self.tss_stack_long(4 + 8 * u64::from(level))?
        } else {
            self.gpr[4]
        };
        let mut stack = self.new_stack(Segment::default(), top & !0xf, level, true);
        self.push_to(&mut stack, 8, u64::from(self.seg[usize::from(SS)].selector))?;
        self.push_to(&mut stack, 8, self.gpr[4])?;
        self.push_to(&mut stack, 8, flags)?;
        self.push_to(&mut stack, 8, u64::from(self.seg[usize::from(CS)].selector))?;
        self.push_to(&mut stack, 8, self.rip)?;
        if let Some(code) = error_code {
            self.push_to(&mut stack, 8, u64::from(code))?;
        }
        Ok(stack)
    }

    /// Pushes the frame of 16- and 32-bit modes.
    fn legacy_frame(
        &mut self,
        level: u8,
        size: u8,
        flags: u64,
        error_code: Option<u16>,
    ) -> Result<NewStack> {
        let selector_of = |cpu: &Self, index: u8| u64::from(cpu.seg[usize::from(index)].selector);
        let inner = level != self.cpl;
        let mut stack = if inner {
            let (sp, selector) = self.tss_stack(level)?;
            let segment = self.inner_stack_segment(selector, level)?;
            let mut stack = self.new_stack(segment, sp, level, false);
            if self.mode.is_vm86() {
                for index in [GS, FS, DS, ES] {
                    self.push_to(&mut stack, size, selector_of(self, index))?;
                }
            }
            self.push_to(&mut stack, size, selector_of(self, SS))?;
            self.push_to(&mut stack, size, self.gpr[4])?;
            stack
        } else {
            self.current_stack(false)
        };
        self.push_to(&mut stack, size, flags)?;
        self.push_to(&mut stack, size, selector_of(self, CS))?;
        self.push_to(&mut stack, size, self.rip)?;
        if let Some(code) = error_code {
            self.push_to(&mut stack, size, u64::from(code))?;
        }
        if self.mode.is_vm86() {
            for index in [GS, FS, DS, ES] {
                self.seg[usize::from(index)] = Segment::default();
            }
        }
        Ok(stack)
    }

    /// INT n in virtual-8086 mode with virtual interrupts (CR4.VME), if the task state segment's map
    /// says that the program handles `vector` itself: as in real mode, but with VIF for IF below IOPL 3.
    /// Tells whether it did.
    pub(crate) fn redirected_interrupt(&mut self, vector: u8) -> Result<bool> {
        if self.tr.attributes & 0xd != system_type::TSS || self.tr.limit < 0x67 {
            return Err(Exception::GP0);
        }
        let io_map: u16 = self.load_linear(self.tr.base.wrapping_add(0x66))?;
        let at = (u64::from(io_map) + u64::from(vector / 8)).wrapping_sub(32);
        if at > u64::from(self.tr.limit) {
            return Err(Exception::GP0);
        }
        let map: u8 = self.load_linear(self.tr.base.wrapping_add(at))?;
        if map >> (vector % 8) & 1 != 0 {
            return Ok(false);
        }
        let own_if = self.iopl() == 3;
        let flags = if own_if { self.rflags() } else { self.virtual_flags() };
        let entry: u32 = self.load_linear(u64::from(vector) * 4)?;
        let mut stack = self.current_stack(false);
        self.push_to(&mut stack, 2, flags)?;
        self.push_to(&mut stack, 2, u64::from(self.seg[usize::from(CS)].selector))?;
        self.push_to(&mut stack, 2, self.rip)?;
        self.gpr[4] = stack.sp;
        let masked = if own_if { bits::IF } else { bits::VIF };
        self.system_flags &= !(masked | bits::TF | bits::NT | bits::RF);
        self.load_segment_real(CS, (entry >> 16) as u16);
        self.rip = u64::from(entry as u16);
        self.ends_step = true;
        Ok(true)
    }

    /// INT n and its relatives, called by their handlers with `rip` after the instruction.
    pub(crate) fn software_interrupt(&mut self, vector: u8, source: Source) -> Result {
        self.deliver(vector, source, None)
            .inspect_err(|_| self.note_vectoring(vector, source, None))?;
        // The handler was entered with TF clear, and INT itself is not stepped.
        self.ends_step = true;
        Ok(())
    }

    /// Takes the most urgent of the raised signals, if the CPU is in a state to take it. Called between
    /// instructions; [`Signal::Exit`] and [`Signal::Flush`] are the run loop's.
    pub(crate) fn take_event(&mut self) -> Delivered {
        let io = std::mem::take(&mut self.io_trap);
        if !self.svm.gif {
            return Delivered::Yes;
        }
        let ready = self.activity != Activity::WaitForStartup && !self.shadow;
        if ready && !self.in_smm() && self.signals.is_raised(Signal::Smi) {
            if self.intercepts(code::SMI) {
                return self.exit_for(code::SMI);
            }
            self.signals.clear(Signal::Smi);
            self.enter_smm(io);
            return Delivered::Yes;
        }
        if !self.in_smm() && self.signals.is_raised(Signal::Init) {
            if self.intercepts(code::INIT) {
                return self.exit_for(code::INIT);
            }
            self.signals.clear(Signal::Init);
            if self.redirects_init() {
                let redirected = Exception::with_code(vector::SX, REDIRECTED_INIT);
                return self.deliver_event(redirected, Source::Exception);
            }
            self.reset_state(true);
            if self.config.apic_id != 0 {
                self.activity = Activity::WaitForStartup;
            }
        }
        if self.signals.is_raised(Signal::Startup) {
            let waits = self.activity == Activity::WaitForStartup;
            self.signals.clear(Signal::Startup);
            if waits {
                self.start_up(self.interrupts.startup_vector());
            }
        }
        if self.activity == Activity::WaitForStartup || self.shadow {
            if self.virtual_nmi_is_due() {
                // After the shadow it is to be looked for again.
                self.signals.raise(Signal::Code);
            }
            return Delivered::Yes;
        }
        self.take_interrupt()
    }

    /// Takes an NMI, a virtual one, an external interrupt or a virtual one, in this order.
    fn take_interrupt(&mut self) -> Delivered {
        if self.signals.is_raised(Signal::Nmi) && !self.nmi_blocked {
            if self.intercepts(code::NMI) {
                return self.exit_for(code::NMI);
            }
            self.signals.clear(Signal::Nmi);
            self.nmi_blocked = true;
            return self.deliver_event(Exception::plain(vector::NMI), Source::External);
        }
        if self.virtual_nmi_is_due() {
            return self.take_virtual_nmi();
        }
        if self.signals.is_raised(Signal::Interrupt) && self.interrupts_enabled() {
            if self.intercepts(code::INTR) {
                return self.exit_for(code::INTR);
            }
            if let Some(vector) = self.interrupts.acknowledge() {
                return self.deliver_event(Exception::plain(vector), Source::External);
            }
        }
        if self.virtual_interrupt_is_due() {
            return self.take_virtual_interrupt();
        }
        Delivered::Yes
    }

    /// The bits of `signals` that [`Self::take_event`] would act on in the CPU's present state.
    #[inline]
    pub(crate) fn wanted_signals(&self) -> u32 {
        if !self.svm.gif {
            return 0;
        }
        let mut wanted = Signal::Startup as u32;
        if !self.in_smm() {
            wanted |= Signal::Init as u32;
        }
        if self.activity != Activity::WaitForStartup && !self.shadow {
            if !self.in_smm() {
                wanted |= Signal::Smi as u32;
            }
            if !self.nmi_blocked {
                wanted |= Signal::Nmi as u32;
            }
            if self.interrupts_enabled() {
                wanted |= Signal::Interrupt as u32;
            }
        }
        wanted
    }

    /// The bits of `signals` for which running code has to stop between two instructions.
    #[inline]
    pub(crate) fn urgent_signals(&self) -> u32 {
        const ALWAYS: u32 = Signal::Exit as u32 | Signal::Flush as u32 | Signal::Code as u32;
        self.wanted_signals() | ALWAYS
    }

    /// Starts a waiting application processor at page `vector` of the first megabyte.
    fn start_up(&mut self, vector: u8) {
        self.load_segment_real(CS, u16::from(vector) << 8);
        self.rip = 0;
        self.activity = Activity::Running;
    }
}

/// Exceptions whose saved RIP is that of the instruction, and whose saved RF is set so that the
/// instruction does not meet its own breakpoint again. A #DB manages RF itself.
pub(crate) fn is_fault(v: u8) -> bool {
    !matches!(v, vector::DB | vector::NMI | vector::BP | vector::OF | vector::DF | vector::MC)
}

#[cfg(test)]
mod tests;
