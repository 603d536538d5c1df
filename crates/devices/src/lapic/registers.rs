//! What one local APIC holds and the rules by which it changes.

use accel::GuestClock;
use serde::{Deserialize, Serialize};

use super::delivery::{DeliveryMode, Destination, Message, Shorthand};
use super::timer::{ApicTimer, DIVIDE_MASK, Mode};
use super::{DEFAULT_BASE, MMIO_SIZE};

/// Register numbers: the MMIO offset in units of 16 bytes, the MSR less 800h.
pub(super) mod reg {
    pub(crate) const ID: u32 = 0x02;
    pub(crate) const VERSION: u32 = 0x03;
    pub(crate) const TPR: u32 = 0x08;
    pub(crate) const APR: u32 = 0x09;
    pub(crate) const PPR: u32 = 0x0a;
    pub(crate) const EOI: u32 = 0x0b;
    pub(crate) const RRD: u32 = 0x0c;
    pub(crate) const LDR: u32 = 0x0d;
    pub(crate) const DFR: u32 = 0x0e;
    pub(crate) const SVR: u32 = 0x0f;
    pub(crate) const ISR: u32 = 0x10;
    pub(crate) const TMR: u32 = 0x18;
    pub(crate) const IRR: u32 = 0x20;
    pub(crate) const ESR: u32 = 0x28;
    pub(crate) const ICR_LOW: u32 = 0x30;
    pub(crate) const ICR_HIGH: u32 = 0x31;
    pub(crate) const LVT_TIMER: u32 = 0x32;
    pub(crate) const LVT_ERROR: u32 = 0x37;
    pub(crate) const INITIAL_COUNT: u32 = 0x38;
    pub(crate) const CURRENT_COUNT: u32 = 0x39;
    pub(crate) const DIVIDE: u32 = 0x3e;
    pub(crate) const SELF_IPI: u32 = 0x3f;
}

/// Version 14h with six entries in the local vector table.
const VERSION: u32 = 0x0005_0014;

const BASE_BSP: u64 = 1 << 8;
const BASE_X2APIC: u64 = 1 << 10;
const BASE_ENABLE: u64 = 1 << 11;
/// As far as the CPU's physical addresses go, which have 40 bits.
const BASE_ADDRESS: u64 = 0x0000_00ff_ffff_f000;

const SVR_ENABLE: u32 = 1 << 8;
const SVR_WRITABLE: u32 = 0x1ff;

const LVT_MASKED: u32 = 1 << 16;
const LVT_LEVEL: u32 = 1 << 15;
const LVT_REMOTE_IRR: u32 = 1 << 14;
/// Writable bits of each entry: timer, thermal, performance, LINT0, LINT1, error.
const LVT_WRITABLE: [u32; 6] = [0x7_00ff, 0x1_07ff, 0x1_07ff, 0x1_a7ff, 0x1_a7ff, 0x1_00ff];

const ESR_SEND_ILLEGAL: u32 = 1 << 5;
const ESR_RECEIVE_ILLEGAL: u32 = 1 << 6;
const ESR_ILLEGAL_REGISTER: u32 = 1 << 7;

const ICR_WRITABLE: u32 = 0x000c_cfff;
const ICR_LEVEL_ASSERT: u32 = 1 << 14;
const ICR_TRIGGER_LEVEL: u32 = 1 << 15;

const DFR_FLAT: u32 = 0xffff_ffff;

/// A local source of interrupts; the value is its index in the local vector table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Timer = 0,
    Performance = 2,
    Lint0 = 3,
    Lint1 = 4,
    Error = 5,
}

/// An entry of the local vector table, taken apart.
pub(super) struct LvtEntry {
    pub(super) vector: u8,
    pub(super) mode: DeliveryMode,
    pub(super) level: bool,
    pub(super) masked: bool,
}

/// What a register write asks of other parts of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// A level-triggered interrupt with this vector is done.
    EndOfInterrupt(u8),
    /// A message for other APICs, or this one.
    Send(Message),
}

/// 256 bits, one a vector.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct VectorSet([u32; 8]);

impl VectorSet {
    /// The vectors of `vectors`.
    pub(super) fn of(vectors: impl IntoIterator<Item = u8>) -> Self {
        let mut set = Self::default();
        vectors.into_iter().for_each(|vector| set.set(vector, true));
        set
    }

    fn contains(&self, vector: u8) -> bool {
        self.0[usize::from(vector / 32)] & 1 << (vector % 32) != 0
    }

    fn set(&mut self, vector: u8, value: bool) {
        let bit = 1 << (vector % 32);
        let word = &mut self.0[usize::from(vector / 32)];
        *word = if value { *word | bit } else { *word & !bit };
    }

    fn highest(&self) -> Option<u8> {
        let (i, word) = self.0.iter().enumerate().rev().find(|(_, word)| **word != 0)?;
        Some((i as u32 * 32 + word.ilog2()) as u8)
    }
}

/// The registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Registers {
    /// IA32_APIC_BASE.
    base: u64,
    /// The id in x2APIC mode, and after reset.
    initial_id: u32,
    /// The id in xAPIC mode, which the guest can change.
    id: u8,
    tpr: u8,
    /// Logical destination, in xAPIC mode.
    ldr: u32,
    dfr: u32,
    svr: u32,
    isr: VectorSet,
    tmr: VectorSet,
    irr: VectorSet,
    /// Error status as it reads, and what has gathered since it was last written.
    esr: u32,
    esr_gathered: u32,
    /// New errors ask for the error interrupt.
    error_raised: bool,
    icr_low: u32,
    icr_high: u32,
    lvt: [u32; 6],
    /// Levels of LINT0 and LINT1.
    lint: [bool; 2],
    pub(super) startup_vector: u8,
    pub(super) timer: ApicTimer,
    /// The guest may end the interrupt in service by the flag in memory, without a word.
    quiet_end: bool,
    /// KVM's register for that flag.
    pub(super) kvm_end_flag: u64,
    /// Interrupts that are not in service once the CPU has them. Who asks for that saves it.
    #[serde(skip)]
    pub(super) ends_itself: VectorSet,
}

impl Registers {
    /// The state after power-on: virtual wire on CPU 0.
    pub(super) fn power_on(index: u32) -> Self {
        let mut registers = Self::reset(index);
        if index == 0 {
            registers.svr |= SVR_ENABLE;
            registers.lvt[Source::Lint0 as usize] = DeliveryMode::ExtInt.bits();
            registers.lvt[Source::Lint1 as usize] = DeliveryMode::Nmi.bits();
        }
        registers
    }

    /// The state after a reset, before firmware sets anything up (section 11.4.7.1).
    fn reset(index: u32) -> Self {
        let bsp = if index == 0 { BASE_BSP } else { 0 };
        Self {
            base: DEFAULT_BASE | BASE_ENABLE | bsp,
            initial_id: index,
            id: index as u8,
            tpr: 0,
            ldr: 0,
            dfr: DFR_FLAT,
            svr: 0xff,
            isr: VectorSet::default(),
            tmr: VectorSet::default(),
            irr: VectorSet::default(),
            esr: 0,
            esr_gathered: 0,
            error_raised: false,
            icr_low: 0,
            icr_high: 0,
            lvt: [LVT_MASKED; 6],
            lint: [false; 2],
            startup_vector: 0,
            timer: ApicTimer::default(),
            quiet_end: false,
            kvm_end_flag: 0,
            ends_itself: VectorSet::default(),
        }
    }

    /// INIT, and being switched off: as after a reset, but the id, the base and the wires stay.
    pub(super) fn init(&mut self) {
        let fresh = Self::reset(self.initial_id);
        let ends_itself = std::mem::take(&mut self.ends_itself);
        *self = Self { base: self.base, id: self.id, lint: self.lint, ends_itself, ..fresh };
    }

    /// Takes up other contents. Which interrupts end by themselves is for who asked for it to change.
    pub(super) fn replace(&mut self, other: Self) {
        let ends_itself = std::mem::take(&mut self.ends_itself);
        *self = Self { ends_itself, ..other };
    }

    pub(super) fn validate(&self) -> Result<(), String> {
        let known = BASE_ADDRESS | BASE_ENABLE | BASE_X2APIC | BASE_BSP;
        let both = BASE_ENABLE | BASE_X2APIC;
        if self.base & !known != 0 || self.base & both == BASE_X2APIC {
            return Err(format!("IA32_APIC_BASE {:#x}", self.base));
        }
        for (i, (entry, writable)) in self.lvt.iter().zip(LVT_WRITABLE).enumerate() {
            if entry & !(writable | LVT_REMOTE_IRR) != 0 {
                return Err(format!("entry {i} of the local vector table is {entry:#x}"));
            }
        }
        let timer_mode = Mode::from_bits(self.lvt[Source::Timer as usize] >> 17);
        if timer_mode != self.timer.mode() {
            return Err("the timer's mode is not that of its vector table entry".into());
        }
        for set in [&self.irr, &self.isr] {
            if set.0[0] & 0xffff != 0 {
                return Err("an interrupt with a vector below 16".into());
            }
        }
        if self.svr & !SVR_WRITABLE != 0 || self.icr_low & !ICR_WRITABLE != 0 {
            return Err("a register has reserved bits set".into());
        }
        self.timer.validate()
    }

    pub(super) fn base(&self) -> u64 {
        self.base
    }

    pub(super) fn is_enabled(&self) -> bool {
        self.base & BASE_ENABLE != 0
    }

    pub(super) fn is_x2apic(&self) -> bool {
        self.base & BASE_X2APIC != 0
    }

    pub(super) fn is_software_enabled(&self) -> bool {
        self.is_enabled() && self.svr & SVR_ENABLE != 0
    }

    /// Address of the register page in xAPIC mode.
    pub(super) fn page(&self) -> Option<u64> {
        (self.is_enabled() && !self.is_x2apic())
            .then_some(self.base & BASE_ADDRESS & !(MMIO_SIZE - 1))
    }

    /// Writes IA32_APIC_BASE; false for a transition that the architecture forbids.
    pub(super) fn set_base(&mut self, value: u64) -> bool {
        if value & !(BASE_ADDRESS | BASE_ENABLE | BASE_X2APIC | BASE_BSP) != 0 {
            return false;
        }
        let mode = |base: u64| (base & BASE_ENABLE != 0, base & BASE_X2APIC != 0);
        match (mode(self.base), mode(value)) {
            // x2APIC without APIC; into x2APIC from disabled; out of it other than by disabling.
            ((_, _), (false, true))
            | ((false, _), (true, true))
            | ((true, true), (true, false)) => return false,
            ((true, _), (false, false)) => {
                self.init();
                self.id = self.initial_id as u8;
            }
            _ => {}
        }
        self.base = value;
        true
    }

    pub(super) fn task_priority(&self) -> u8 {
        self.tpr
    }

    pub(super) fn set_task_priority(&mut self, priority: u8) {
        self.tpr = priority;
    }

    /// PPR: the higher of the task's priority and that of what is in service.
    pub(super) fn processor_priority(&self) -> u8 {
        let serving = self.isr.highest().unwrap_or(0) & 0xf0;
        if self.tpr & 0xf0 >= serving { self.tpr } else { serving }
    }

    /// The request that the CPU would take now.
    fn deliverable(&self) -> Option<u8> {
        if !self.is_software_enabled() {
            return None;
        }
        self.irr.highest().filter(|vector| vector >> 4 > self.processor_priority() >> 4)
    }

    /// Moves the most urgent request into service.
    pub(super) fn take_deliverable(&mut self) -> Option<u8> {
        let vector = self.deliverable()?;
        self.irr.set(vector, false);
        self.isr.set(vector, !self.ends_itself.contains(vector));
        Some(vector)
    }

    /// Whether the end of the interrupt `vector`, which the CPU has just taken, need not be told at once:
    /// nobody else wants to know of it, and nothing waits for it.
    pub(super) fn allows_quiet_end(&self, vector: u8) -> bool {
        self.isr.contains(vector) && !self.tmr.contains(vector) && self.irr.highest().is_none()
    }

    /// The guest may end the interrupt in service by the flag.
    pub(super) fn expect_quiet_end(&mut self) {
        self.quiet_end = true;
    }

    /// Whether it may, or may have.
    pub(super) fn expects_quiet_end(&self) -> bool {
        self.quiet_end
    }

    /// The guest has ended it so (`ended`), or can no longer.
    pub(super) fn settle_quiet_end(&mut self, ended: bool) {
        if std::mem::take(&mut self.quiet_end) && ended {
            self.end_of_interrupt();
        }
    }

    /// Whether the 8259 asks and LINT0 lets it through.
    pub(super) fn wants_external(&self) -> bool {
        let entry = self.lvt_entry(Source::Lint0);
        let open = !self.is_enabled() || !entry.masked && entry.mode == DeliveryMode::ExtInt;
        self.lint[0] && open
    }

    pub(super) fn wants_cpu(&self) -> bool {
        let ends = self.quiet_end && self.irr.highest().is_some();
        self.deliverable().is_some() || ends || self.wants_external()
    }

    /// Notes a request; false if the vector is not one that can be requested.
    pub(super) fn request(&mut self, vector: u8, level: bool) -> bool {
        if vector < 16 {
            self.error(ESR_RECEIVE_ILLEGAL);
            return false;
        }
        self.irr.set(vector, true);
        self.tmr.set(vector, level);
        true
    }

    fn error(&mut self, bit: u32) {
        if self.esr_gathered & bit == 0 {
            self.esr_gathered |= bit;
            self.error_raised = true;
        }
    }

    /// Whether the error interrupt is due; it is then the caller's to deliver.
    pub(super) fn take_error_interrupt(&mut self) -> bool {
        std::mem::take(&mut self.error_raised)
    }

    /// Masks the entry of `source`.
    pub(super) fn mask(&mut self, source: Source) {
        self.lvt[source as usize] |= LVT_MASKED;
    }

    pub(super) fn lvt_entry(&self, source: Source) -> LvtEntry {
        let entry = self.lvt[source as usize];
        let mode = match source {
            Source::Timer | Source::Error => DeliveryMode::Fixed,
            _ => DeliveryMode::from_bits(entry >> 8).unwrap_or(DeliveryMode::Fixed),
        };
        LvtEntry {
            vector: entry as u8,
            mode,
            // LINT1 is always edge-sensitive, and only a fixed interrupt has a trigger mode.
            level: source == Source::Lint0 && entry & LVT_LEVEL != 0,
            masked: entry & LVT_MASKED != 0,
        }
    }

    /// Drives LINT0 or LINT1; tells whether it rose.
    pub(super) fn set_lint(&mut self, line: usize, level: bool) -> bool {
        let rose = level && !self.lint[line];
        self.lint[line] = level;
        rose
    }

    fn x2apic_ldr(&self) -> u32 {
        (self.initial_id >> 4) << 16 | 1 << (self.initial_id & 0xf)
    }

    pub(super) fn matches(&self, destination: Destination) -> bool {
        if !self.is_enabled() {
            return false;
        }
        let Destination { id, logical, wide } = destination;
        let everyone = if wide { u32::MAX } else { 0xff };
        match (self.is_x2apic(), logical) {
            (true, false) => id == everyone || id == self.initial_id,
            (true, true) => {
                let ldr = self.x2apic_ldr();
                id == everyone || id >> 16 == ldr >> 16 && id & ldr & 0xffff != 0
            }
            (false, false) => id == everyone || id == u32::from(self.id),
            (false, true) => {
                let ldr = self.ldr >> 24;
                if id == u32::MAX {
                    true
                } else if id > 0xff {
                    false
                } else if self.dfr >> 28 == 0xf {
                    id & ldr != 0
                } else {
                    (id >> 4 == 0xf || id >> 4 == ldr >> 4) && id & ldr & 0xf != 0
                }
            }
        }
    }

    pub(super) fn icr_high(&self) -> u32 {
        self.icr_high
    }

    /// Reads a register, which some may not be: see [`x2apic_readable`].
    pub(super) fn read(&mut self, index: u32, clock: &dyn GuestClock) -> u32 {
        match index {
            reg::ID if self.is_x2apic() => self.initial_id,
            reg::ID => u32::from(self.id) << 24,
            reg::VERSION => VERSION,
            reg::TPR => self.tpr.into(),
            reg::APR | reg::PPR => self.processor_priority().into(),
            reg::EOI | reg::RRD => 0,
            reg::LDR if self.is_x2apic() => self.x2apic_ldr(),
            reg::LDR => self.ldr,
            reg::DFR => self.dfr,
            reg::SVR => self.svr,
            reg::ISR..reg::TMR => self.isr.0[(index - reg::ISR) as usize],
            reg::TMR..reg::IRR => self.tmr.0[(index - reg::TMR) as usize],
            reg::IRR..reg::ESR => self.irr.0[(index - reg::IRR) as usize],
            reg::ESR => self.esr,
            reg::ICR_LOW => self.icr_low,
            reg::ICR_HIGH => self.icr_high,
            reg::LVT_TIMER..=reg::LVT_ERROR => self.lvt[(index - reg::LVT_TIMER) as usize],
            reg::INITIAL_COUNT => self.timer.initial(),
            reg::CURRENT_COUNT => self.timer.current(clock),
            reg::DIVIDE => self.timer.divide(),
            _ => {
                self.error(ESR_ILLEGAL_REGISTER);
                0
            }
        }
    }

    /// Writes a register. `high` is there in x2APIC mode: the upper half of the MSR.
    pub(super) fn write(
        &mut self,
        index: u32,
        value: u32,
        high: Option<u32>,
        clock: &dyn GuestClock,
    ) -> Option<Action> {
        match index {
            reg::ID => self.id = (value >> 24) as u8,
            reg::TPR => self.tpr = value as u8,
            reg::EOI => return self.end_of_interrupt(),
            reg::LDR => self.ldr = value & 0xff00_0000,
            reg::DFR => self.dfr = value | 0x0fff_ffff,
            reg::SVR => {
                self.svr = value & SVR_WRITABLE;
                if self.svr & SVR_ENABLE == 0 {
                    for entry in &mut self.lvt {
                        *entry |= LVT_MASKED;
                    }
                }
            }
            reg::ESR => self.esr = std::mem::take(&mut self.esr_gathered),
            reg::ICR_LOW => {
                self.icr_low = value & ICR_WRITABLE;
                self.icr_high = high.unwrap_or(self.icr_high);
                return self.command();
            }
            reg::ICR_HIGH => self.icr_high = value & 0xff00_0000,
            reg::LVT_TIMER..=reg::LVT_ERROR => self.write_lvt(index, value),
            reg::INITIAL_COUNT => self.timer.set_initial(value, clock),
            reg::DIVIDE => self.timer.set_divide(value, clock),
            reg::SELF_IPI if high.is_some() => {
                return Some(Action::Send(Message {
                    shorthand: Shorthand::Myself,
                    ..Message::fixed(Destination::default(), value as u8)
                }));
            }
            // Read-only registers ignore writes.
            reg::VERSION | reg::APR | reg::PPR | reg::RRD | reg::CURRENT_COUNT => {}
            reg::ISR..reg::ESR => {}
            _ => self.error(ESR_ILLEGAL_REGISTER),
        }
        None
    }

    fn write_lvt(&mut self, index: u32, value: u32) {
        let i = (index - reg::LVT_TIMER) as usize;
        let mut entry = value & LVT_WRITABLE[i];
        if self.svr & SVR_ENABLE == 0 {
            entry |= LVT_MASKED;
        }
        self.lvt[i] = entry;
        if index == reg::LVT_TIMER {
            self.timer.set_mode(Mode::from_bits(entry >> 17));
        }
    }

    fn end_of_interrupt(&mut self) -> Option<Action> {
        let vector = self.isr.highest()?;
        self.isr.set(vector, false);
        self.tmr.contains(vector).then_some(Action::EndOfInterrupt(vector))
    }

    /// Carries out the interrupt command register.
    fn command(&mut self) -> Option<Action> {
        let icr = self.icr_low;
        let mode = DeliveryMode::from_bits(icr >> 8)?;
        let vector = icr as u8;
        let shorthand = Shorthand::from_bits(icr >> 18);
        let level = icr & ICR_TRIGGER_LEVEL != 0;
        if mode == DeliveryMode::Init && level && icr & ICR_LEVEL_ASSERT == 0 {
            // INIT level de-assert only mattered to the arbitration of old buses.
            return None;
        }
        match mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority if vector < 16 => {
                self.error(ESR_SEND_ILLEGAL);
                return None;
            }
            DeliveryMode::ExtInt => return None,
            _ => {}
        }
        let id = if self.is_x2apic() { self.icr_high } else { self.icr_high >> 24 };
        let destination = Destination { id, logical: icr & 1 << 11 != 0, wide: self.is_x2apic() };
        // IPIs are edge-triggered, whatever the command says (Intel SDM, table 11-3, note).
        Some(Action::Send(Message { destination, shorthand, mode, vector, level: false }))
    }
}

/// Whether an x2APIC register can be read; else the CPU raises #GP.
pub(super) fn x2apic_readable(index: u32) -> bool {
    matches!(
        index,
        reg::ID
            | reg::VERSION
            | reg::TPR
            | reg::PPR
            | reg::LDR
            | reg::SVR
            | reg::ISR..=reg::ESR
            | reg::ICR_LOW
            | reg::LVT_TIMER..=reg::CURRENT_COUNT
            | reg::DIVIDE
    )
}

/// Whether `value` can be written to an x2APIC register; else the CPU raises #GP.
pub(super) fn x2apic_writable(index: u32, value: u64) -> bool {
    let writable: u64 = match index {
        reg::EOI | reg::ESR => 0,
        reg::TPR | reg::SELF_IPI => 0xff,
        reg::SVR => SVR_WRITABLE.into(),
        reg::ICR_LOW => 0xffff_ffff_0000_0000 | u64::from(ICR_WRITABLE),
        reg::LVT_TIMER..=reg::LVT_ERROR => {
            // The read-only status bits may be written back as they were read.
            u64::from(LVT_WRITABLE[(index - reg::LVT_TIMER) as usize]) | 0x5000
        }
        reg::INITIAL_COUNT => u32::MAX.into(),
        reg::DIVIDE => DIVIDE_MASK.into(),
        _ => return false,
    };
    value & !writable == 0
}
