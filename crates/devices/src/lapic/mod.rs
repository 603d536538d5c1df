//! Local APICs: the interrupt controller next to each CPU, in xAPIC and x2APIC mode.
//!
//! Follows Intel's Software Developer's Manual, volume 3A, chapter 11 ("Advanced Programmable
//! Interrupt Controller"). Reset leaves the APIC of CPU 0 in the virtual-wire set-up that firmware
//! leaves it in (MultiProcessor Specification 1.4, section 3.6.2.2), since kernels are booted without
//! firmware.
//!
//! - [`LocalApic`]: one CPU's; answers MMIO, MSRs and the CPU's acknowledge cycle.
//! - [`ApicBus`]: all of them, and what carries messages between them, the I/O APIC and MSI.
//! - `registers`: what one APIC holds, and its rules, without a lock or a wire.
//! - `timer`: its timer.
//! - `quiet`: ends of interrupts that the guest tells by a flag in memory.
//!
//! Interrupts arrive from timer and I/O threads while the vCPU acknowledges others. Invariant: while
//! the lock is free, [`Signal::Interrupt`] is raised exactly if the registers have an interrupt that the
//! CPU could take now, task priority considered. Messages, ends of interrupts and the 8259's
//! acknowledgement leave with the lock released.

mod delivery;
mod quiet;
mod registers;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod timer;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};

use accel::{GuestClock, InterruptController, Signal, Signals};
use bus::{BusDevice, Device, IrqSink, Timer, TimerQueue};
use memory::GuestMemory;
use serde::{Deserialize, Serialize};
use vmstate::{RestoreError, Saved, State};

use crate::lock;
pub use delivery::{ApicBus, DeliveryMode, Destination, EndOfInterrupt, Message, Shorthand};
pub use quiet::EndFlag;
use registers::{Action, LvtEntry, Registers, Source, VectorSet, reg};

/// Guest physical address of the registers after reset.
pub const DEFAULT_BASE: u64 = 0xfee0_0000;
/// Length of the register page in bytes.
pub const MMIO_SIZE: u64 = 0x1000;

/// Input 0 as an [`IrqSink`]: LINT0, where the 8259's output arrives on CPU 0.
pub const LINT0: u32 = 0;
/// Input 1: LINT1, the NMI line.
pub const LINT1: u32 = 1;

const MSR_APIC_BASE: u32 = 0x1b;
const MSR_TSC_DEADLINE: u32 = 0x6e0;
const MSR_KVM_PV_EOI: u32 = 0x4b56_4d04;
const MSR_X2APIC_FIRST: u32 = 0x800;
const MSR_X2APIC_LAST: u32 = 0x8ff;

/// Address that stands for "no register page".
const NO_PAGE: u64 = u64::MAX;

/// Hears of every end of an interrupt that a guest tells a local APIC of.
pub trait Ends: Send + Sync {
    /// CPU `index` is done with an interrupt.
    fn interrupt_ended(&self, index: usize);
}

/// What answers the acknowledge cycle for an interrupt of delivery mode ExtINT: the 8259.
pub trait ExternalInterrupts: Send + Sync {
    /// Acknowledges and returns the vector.
    fn acknowledge(&self) -> u8;
}

/// Saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalApicState {
    registers: Registers,
    /// Signals that the CPU has not taken yet: NMI, SMI, INIT, start-up.
    signals: u32,
}

/// Signals that belong to the APIC's saved state.
const SAVED_SIGNALS: [Signal; 4] = [Signal::Nmi, Signal::Smi, Signal::Init, Signal::Startup];

impl State for LocalApicState {
    const NAME: &'static str = "lapic";
    const VERSION: u32 = 2;

    fn validate(&self) -> Result<(), String> {
        let known = SAVED_SIGNALS.iter().fold(0, |bits, &s| bits | s as u32);
        if self.signals & !known != 0 {
            return Err(format!("signals {:#x}", self.signals));
        }
        self.registers.validate()
    }
}

/// One CPU's local APIC.
pub struct LocalApic {
    index: u32,
    signals: Arc<Signals>,
    clock: Arc<dyn GuestClock>,
    timer: Timer,
    bus: Weak<ApicBus>,
    external: OnceLock<Weak<dyn ExternalInterrupts>>,
    /// Who hears of ends of interrupts, and which CPU to them this one is.
    ends: OnceLock<(usize, Weak<dyn Ends>)>,
    /// Where KVM's flag is.
    memory: OnceLock<Arc<GuestMemory>>,
    /// The flag by which the guest may tell of one.
    end_flag: Mutex<Option<Arc<dyn EndFlag>>>,
    /// Where the register page is, or [`NO_PAGE`]; read on every MMIO access of the CPU.
    page: AtomicU64,
    registers: Mutex<Registers>,
}

impl LocalApic {
    fn new(
        index: u32,
        signals: Arc<Signals>,
        clock: Arc<dyn GuestClock>,
        timers: &TimerQueue,
        bus: Weak<ApicBus>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| {
            let this = this.clone();
            let timer = timers.timer(move || {
                if let Some(apic) = this.upgrade() {
                    apic.timer_expired();
                }
            });
            Self {
                index,
                signals,
                clock,
                timer,
                bus,
                external: OnceLock::new(),
                ends: OnceLock::new(),
                memory: OnceLock::new(),
                end_flag: Mutex::default(),
                page: AtomicU64::new(DEFAULT_BASE),
                registers: Mutex::new(Registers::power_on(index)),
            }
        })
    }

    /// Says who answers for ExtINT. Only the first call counts: the wiring is fixed.
    pub fn connect_external(&self, source: Weak<dyn ExternalInterrupts>) {
        let _ = self.external.set(source);
    }

    /// Says who hears of ends of interrupts, to whom this is CPU `index`. Only the first call counts.
    pub fn connect_ends(&self, index: usize, ends: Weak<dyn Ends>) {
        let _ = self.ends.set((index, ends));
    }

    /// Interrupts with these vectors end as the CPU takes them.
    pub fn set_ends_itself(&self, vectors: impl IntoIterator<Item = u8>) {
        self.registers().ends_itself = VectorSet::of(vectors);
    }

    /// Requests `vector`, edge-triggered, as a message of mode fixed would.
    pub fn request(&self, vector: u8) {
        self.accept(DeliveryMode::Fixed, vector, false);
    }

    /// The guest's end of an interrupt, by a register that is not the APIC's own.
    pub fn end_interrupt(&self) {
        self.write_register(reg::EOI, 0, None);
    }

    /// Both halves of the interrupt command register.
    pub fn interrupt_command(&self) -> u64 {
        let mut registers = self.registers();
        let low = registers.read(reg::ICR_LOW, &*self.clock);
        u64::from(registers.icr_high()) << 32 | u64::from(low)
    }

    /// Writes both halves of the interrupt command register, and so sends what it says.
    pub fn command_interrupt(&self, command: u64) {
        let high = (command >> 32) as u32;
        let high = if self.registers().is_x2apic() { high } else { high & 0xff00_0000 };
        self.write_register(reg::ICR_LOW, command as u32, Some(high));
    }

    /// The task priority register, all eight bits of it.
    pub fn task_priority_register(&self) -> u8 {
        self.registers().task_priority()
    }

    /// Writes the task priority register.
    pub fn set_task_priority_register(&self, value: u8) {
        self.write_register(reg::TPR, value.into(), None);
    }

    /// Offset of `addr` in the register page, if the page is there and in xAPIC mode.
    #[inline]
    pub fn mmio_offset(&self, addr: u64) -> Option<u64> {
        let page = self.page.load(Ordering::Relaxed);
        if addr & !(MMIO_SIZE - 1) == page { Some(addr & (MMIO_SIZE - 1)) } else { None }
    }

    /// The signals of the CPU.
    pub fn signals(&self) -> &Arc<Signals> {
        &self.signals
    }

    fn registers(&self) -> MutexGuard<'_, Registers> {
        lock(&self.registers)
    }

    /// Restores the invariant after a change.
    fn refresh(&self, registers: &Registers) {
        if registers.wants_cpu() {
            self.signals.raise(Signal::Interrupt);
        } else {
            self.signals.clear(Signal::Interrupt);
        }
        self.page.store(registers.page().unwrap_or(NO_PAGE), Ordering::Relaxed);
    }

    /// Arms the host's timer for what the APIC's timer waits for.
    fn rearm(&self, registers: &Registers) {
        match registers.timer.deadline_ns(&*self.clock) {
            Some(deadline) => self.timer.arm(deadline),
            None => self.timer.disarm(),
        }
    }

    fn timer_expired(&self) {
        let mut registers = self.registers();
        self.expire(&mut registers);
        self.rearm(&registers);
        self.refresh(&registers);
    }

    /// Raises the timer's interrupt if its time has come.
    fn expire(&self, registers: &mut Registers) {
        if registers.timer.take_expired(&*self.clock) {
            self.raise_local(registers, Source::Timer);
        }
    }

    /// Delivers one of the local sources as its entry in the vector table says.
    fn raise_local(&self, registers: &mut Registers, source: Source) {
        let entry: LvtEntry = registers.lvt_entry(source);
        if entry.masked {
            return;
        }
        match entry.mode {
            DeliveryMode::Fixed => {
                registers.request(entry.vector, entry.level);
            }
            DeliveryMode::ExtInt => {}
            mode => {
                self.accept_locked(registers, mode, entry.vector, false);
            }
        }
    }

    /// Takes a message addressed to this APIC; false if it can't.
    fn accept(&self, mode: DeliveryMode, vector: u8, level: bool) -> bool {
        let mut registers = self.registers();
        let accepted = self.accept_locked(&mut registers, mode, vector, level);
        self.refresh(&registers);
        accepted
    }

    fn accept_locked(
        &self,
        registers: &mut Registers,
        mode: DeliveryMode,
        vector: u8,
        level: bool,
    ) -> bool {
        if !registers.is_enabled() {
            return false;
        }
        match mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                let accepted = registers.is_software_enabled() && registers.request(vector, level);
                if registers.take_error_interrupt() {
                    self.raise_local(registers, Source::Error);
                }
                return accepted;
            }
            DeliveryMode::Nmi => self.signals.raise(Signal::Nmi),
            DeliveryMode::Smi => self.signals.raise(Signal::Smi),
            DeliveryMode::Init => {
                // A system that starts anew has other things where KVM's flag was.
                let had_flag = registers.kvm_end_flag != 0;
                registers.init();
                if had_flag {
                    self.renew_end_flag(registers);
                }
                self.rearm(registers);
                // A start-up IPI from before the INIT must not start the CPU after it.
                self.signals.clear(Signal::Startup);
                self.signals.raise(Signal::Init);
            }
            DeliveryMode::Startup => {
                registers.startup_vector = vector;
                self.signals.raise(Signal::Startup);
            }
            // Nothing but LINT0 leads to an 8259 on this board.
            DeliveryMode::ExtInt => return false,
        }
        true
    }

    /// Whether a message to `destination` means this APIC.
    fn matches(&self, destination: Destination) -> bool {
        self.registers().matches(destination)
    }

    /// The priority that lowest-priority delivery compares; none if the APIC takes no interrupts.
    fn arbitration_priority(&self) -> Option<u8> {
        let mut registers = self.registers();
        self.notice_quiet_end(&mut registers);
        registers.is_software_enabled().then(|| registers.processor_priority())
    }

    fn read_register(&self, index: u32) -> u32 {
        let mut registers = self.registers();
        self.settle_quiet_end(&mut registers);
        if index == reg::CURRENT_COUNT {
            // Who sees that the count has ended sees its interrupt, too.
            self.expire(&mut registers);
            self.refresh(&registers);
        }
        let value = registers.read(index, &*self.clock);
        if registers.take_error_interrupt() {
            self.raise_local(&mut registers, Source::Error);
            self.refresh(&registers);
        }
        value
    }

    /// Writes a register; `high` is the upper half of a 64-bit x2APIC register.
    fn write_register(&self, index: u32, value: u32, high: Option<u32>) {
        let action = {
            let mut registers = self.registers();
            if index == reg::EOI {
                self.settle_quiet_end(&mut registers);
            }
            let is_timers = matches!(index, reg::LVT_TIMER | reg::INITIAL_COUNT | reg::DIVIDE);
            if is_timers {
                // A count that has ended does not go on in another mode.
                self.expire(&mut registers);
            }
            let action = registers.write(index, value, high, &*self.clock);
            if is_timers {
                self.rearm(&registers);
            }
            if registers.take_error_interrupt() {
                self.raise_local(&mut registers, Source::Error);
            }
            self.refresh(&registers);
            action
        };
        self.perform(action);
        if index == reg::EOI
            && let Some((cpu, ends)) = self.ends.get()
            && let Some(ends) = ends.upgrade()
        {
            ends.interrupt_ended(*cpu);
        }
    }

    /// What a register write asks of others; called without the lock.
    fn perform(&self, action: Option<Action>) {
        let Some(bus) = self.bus.upgrade() else { return };
        match action {
            Some(Action::EndOfInterrupt(vector)) => bus.end_of_interrupt(vector),
            Some(Action::Send(message)) => {
                bus.deliver_from(self.index, message);
            }
            None => {}
        }
    }

    fn set_base(&self, value: u64) -> bool {
        let mut registers = self.registers();
        let done = registers.set_base(value);
        if done {
            self.rearm(&registers);
            self.refresh(&registers);
        }
        done
    }

    fn set_tsc_deadline(&self, value: u64) {
        let mut registers = self.registers();
        registers.timer.set_tsc_deadline(value);
        // One that has passed already fires here and now, not by way of the timer thread.
        self.expire(&mut registers);
        self.rearm(&registers);
        self.refresh(&registers);
    }
}

impl InterruptController for LocalApic {
    fn acknowledge(&self) -> Option<u8> {
        let external = {
            let mut registers = self.registers();
            self.settle_quiet_end(&mut registers);
            if let Some(vector) = registers.take_deliverable() {
                self.allow_quiet_end(&mut registers, vector);
                self.refresh(&registers);
                return Some(vector);
            }
            self.refresh(&registers);
            registers.wants_external()
        };
        // The 8259 drives our LINT0 while it answers, so our lock must be free.
        let source = self.external.get().filter(|_| external)?.upgrade()?;
        Some(source.acknowledge())
    }

    fn task_priority(&self) -> u8 {
        self.registers().task_priority() >> 4
    }

    fn set_task_priority(&self, priority: u8) {
        let mut registers = self.registers();
        registers.set_task_priority(priority << 4);
        self.refresh(&registers);
    }

    fn read_msr(&self, index: u32) -> Option<u64> {
        match index {
            MSR_APIC_BASE => Some(self.registers().base()),
            MSR_TSC_DEADLINE => Some(self.registers().timer.tsc_deadline()),
            MSR_KVM_PV_EOI => self.kvm_end_flag(),
            MSR_X2APIC_FIRST..=MSR_X2APIC_LAST => {
                let mut registers = self.registers();
                let index = index - MSR_X2APIC_FIRST;
                if !registers.is_x2apic() || !registers::x2apic_readable(index) {
                    return None;
                }
                self.settle_quiet_end(&mut registers);
                let low = u64::from(registers.read(index, &*self.clock));
                let high = if index == reg::ICR_LOW { registers.icr_high() } else { 0 };
                Some(low | u64::from(high) << 32)
            }
            _ => None,
        }
    }

    fn write_msr(&self, index: u32, value: u64) -> bool {
        match index {
            MSR_APIC_BASE => self.set_base(value),
            MSR_KVM_PV_EOI => self.set_kvm_end_flag(value),
            MSR_TSC_DEADLINE => {
                self.set_tsc_deadline(value);
                true
            }
            MSR_X2APIC_FIRST..=MSR_X2APIC_LAST => {
                let index = index - MSR_X2APIC_FIRST;
                if !self.registers().is_x2apic() || !registers::x2apic_writable(index, value) {
                    return false;
                }
                self.write_register(index, value as u32, Some((value >> 32) as u32));
                true
            }
            _ => false,
        }
    }

    fn performance_interrupt(&self, masks: bool) {
        let mut registers = self.registers();
        if registers.is_enabled() {
            self.raise_local(&mut registers, Source::Performance);
            if masks {
                registers.mask(Source::Performance);
            }
            self.refresh(&registers);
        }
    }

    fn startup_vector(&self) -> u8 {
        self.registers().startup_vector
    }
}

impl BusDevice for LocalApic {
    fn read(&self, offset: u64, size: u8) -> u64 {
        // The architecture has only aligned 32-bit accesses; anything narrower that lies within a
        // register reads that part of it.
        let index = (offset >> 4) as u32 & 0xff;
        let shift = (offset & 0xf) * 8;
        if shift + u64::from(size.min(4)) * 8 > 32 {
            return 0;
        }
        let value = u64::from(self.read_register(index)) >> shift;
        if size >= 4 { value } else { value & ((1 << (size * 8)) - 1) }
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        if offset & 0xf == 0 && size >= 4 {
            self.write_register((offset >> 4) as u32 & 0xff, value as u32, None);
        }
    }
}

impl IrqSink for LocalApic {
    fn set_level(&self, pin: u32, level: bool) {
        let source = match pin {
            LINT0 => Source::Lint0,
            LINT1 => Source::Lint1,
            _ => return,
        };
        let mut registers = self.registers();
        let rose = registers.set_lint(pin as usize, level);
        if rose && registers.is_enabled() {
            self.raise_local(&mut registers, source);
        }
        self.refresh(&registers);
    }
}

impl Device for LocalApic {
    fn id(&self) -> String {
        format!("lapic{}", self.index)
    }

    fn reset(&self) {
        let mut registers = self.registers();
        registers.replace(Registers::power_on(self.index));
        self.renew_end_flag(&registers);
        for signal in SAVED_SIGNALS {
            self.signals.clear(signal);
        }
        self.timer.disarm();
        self.refresh(&registers);
    }

    fn save(&self) -> Saved {
        let registers = self.registers().clone();
        let raised = SAVED_SIGNALS.iter().filter(|&&s| self.signals.is_raised(s));
        let signals = raised.fold(0, |bits, &s| bits | s as u32);
        Saved::new(&LocalApicState { registers, signals })
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let state: LocalApicState = saved.decode()?;
        let mut registers = self.registers();
        registers.replace(state.registers);
        self.renew_end_flag(&registers);
        for signal in SAVED_SIGNALS {
            if state.signals & signal as u32 != 0 {
                self.signals.raise(signal);
            } else {
                self.signals.clear(signal);
            }
        }
        self.rearm(&registers);
        self.refresh(&registers);
        Ok(())
    }
}
