//! Performance counters: the four of AMD's processors from the K7 on, or the six that came later (APM volume
//! 2, section 13.2), or the architectural ones of Intel's, version 2 (SDM volume 3, section 20.2).
//!
//! A processor that is software has no cycles of its own; every instruction takes one. Events that a
//! guest can rely on are counted: cycles, instructions, branches; anything else stays at zero.
//!
//! Counting is exact, and a block begins with each instruction that can see a counter. A counter of cycles
//! at all privilege levels, such as a kernel's watchdog keeps running, is computed from the CPU's own count
//! when somebody looks, and costs nothing; its overflow is found some blocks late at most. For any other
//! the run loop accounts block by block while it is enabled.
//!
//! While code is translated, the CPU's own count is an estimate (see `Cpu::count_translated`); with a
//! counter enabled that is not computed from it, all code is interpreted.

use crate::cpu::Cpu;
use crate::exception::{Exception, Result};
use crate::model::Vendor;

/// General-purpose counters: the most there are, of AMD's with the core extensions, and of all others.
const GENERAL: usize = 6;
const FEWER: usize = 4;
/// Fixed-function counters of Intel's: instructions, cycles, reference cycles.
const FIXED: usize = 3;
/// Width of all counters.
const WIDTH: u32 = 48;
const COUNT_MASK: u64 = (1 << WIDTH) - 1;

/// Bits of an event select register.
mod select {
    pub(super) const USER: u64 = 1 << 16;
    pub(super) const SYSTEM: u64 = 1 << 17;
    pub(super) const INTERRUPT: u64 = 1 << 20;
    pub(super) const ENABLE: u64 = 1 << 22;
    pub(super) const INVERT: u64 = 1 << 23;
    pub(super) const THRESHOLD_SHIFT: u32 = 24;
    /// What exists on AMD's processors; the rest reads as zero.
    pub(super) const AMD: u64 = 0x0000_030f_fff7_ffff & !(1 << 19);
    /// What exists on Intel's; the rest raises #GP.
    pub(super) const INTEL: u64 = 0xffdf_ffff;
}

/// Fixed counter control: four bits a counter.
mod fixed {
    /// Number of the counter of instructions; the others count cycles.
    pub(super) const INSTRUCTIONS: usize = 0;
    pub(super) const SYSTEM: u64 = 1 << 0;
    pub(super) const USER: u64 = 1 << 1;
    pub(super) const INTERRUPT: u64 = 1 << 3;
    pub(super) const WRITABLE: u64 = 0xbbb;
}

/// Register numbers.
mod index {
    pub(super) const AMD_SELECT: u32 = 0xc001_0000;
    pub(super) const AMD_SELECT_LAST: u32 = AMD_SELECT + super::FEWER as u32 - 1;
    pub(super) const AMD_COUNTER: u32 = 0xc001_0004;
    pub(super) const AMD_COUNTER_LAST: u32 = AMD_COUNTER + super::FEWER as u32 - 1;
    /// Of the core extensions: select and counter of each in turn.
    pub(super) const CORE: u32 = 0xc001_0200;
    pub(super) const CORE_LAST: u32 = CORE + 2 * super::GENERAL as u32 - 1;
    pub(super) const COUNTER: u32 = 0xc1;
    pub(super) const COUNTER_LAST: u32 = COUNTER + super::FEWER as u32 - 1;
    pub(super) const SELECT: u32 = 0x186;
    pub(super) const SELECT_LAST: u32 = SELECT + super::FEWER as u32 - 1;
    pub(super) const FIXED: u32 = 0x309;
    pub(super) const FIXED_LAST: u32 = FIXED + super::FIXED as u32 - 1;
    pub(super) const FIXED_CONTROL: u32 = 0x38d;
    pub(super) const STATUS: u32 = 0x38e;
    pub(super) const CONTROL: u32 = 0x38f;
    pub(super) const OVERFLOW_CONTROL: u32 = 0x390;
}

/// Bits of Intel's global registers: the general counters from bit 0, the fixed ones from bit 32 on.
const GLOBAL: u64 = ((1 << FEWER) - 1) | ((1 << FIXED) - 1) << 32;
/// Overflow control clears these besides, which never are set here.
const OVERFLOW_OTHERS: u64 = 3 << 62;

/// What a stretch of execution came to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Done {
    pub(crate) instructions: u64,
    pub(crate) branches: u64,
    /// At CPL 1 to 3.
    pub(crate) user: bool,
}

/// The counters.
#[derive(Clone, Debug)]
pub(crate) struct Pmu {
    vendor: Vendor,
    /// Of [`GENERAL`], those that there are.
    general: usize,
    selects: [u64; GENERAL],
    counters: [u64; GENERAL],
    fixed: [u64; FIXED],
    fixed_control: u64,
    control: u64,
    status: u64,
    /// Whether a counter is enabled that the run loop has to account for.
    counting: bool,
    /// The CPU's count of instructions up to which counters that are computed have been brought.
    synced: u64,
}

impl Pmu {
    /// The counters after power-on: AMD's with or without the core extensions, or Intel's.
    pub(crate) fn new(vendor: Vendor, core_extensions: bool) -> Self {
        Self {
            vendor,
            general: if core_extensions && vendor == Vendor::Amd { GENERAL } else { FEWER },
            selects: [0; GENERAL],
            counters: [0; GENERAL],
            fixed: [0; FIXED],
            fixed_control: 0,
            control: (1 << FEWER) - 1,
            status: 0,
            counting: false,
            synced: 0,
        }
    }

    /// Whether the run loop has to account for what it does.
    #[inline(always)]
    pub(crate) fn is_counting(&self) -> bool {
        self.counting
    }

    /// EAX, EBX and EDX of CPUID leaf 0xa: version 2; of the architectural events those of the last level
    /// cache are not there.
    pub(crate) fn cpuid() -> (u32, u32, u32) {
        (2 | (FEWER as u32) << 8 | WIDTH << 16 | 7 << 24, 0x18, FIXED as u32 | WIDTH << 5)
    }

    fn is_enabled(&self, n: usize) -> bool {
        let globally = self.vendor == Vendor::Amd || self.control >> n & 1 != 0;
        globally && self.selects[n] & select::ENABLE != 0
    }

    fn is_fixed_enabled(&self, n: usize) -> bool {
        self.control >> (32 + n) & 1 != 0 && self.fixed_control >> (4 * n) & 3 != 0
    }

    /// Whether `select` is of the event of retired instructions.
    fn is_of_instructions(select: u64) -> bool {
        select & 0xff == 0xc0
    }

    /// Whether counter `n` counts cycles at all levels and interrupts, as those do that watch over a system
    /// or take samples, and so can be computed. One that is only read is for measuring, and counted.
    fn is_computed(&self, n: usize) -> bool {
        let select = self.selects[n];
        let wanted = select::USER | select::SYSTEM | select::INTERRUPT;
        let everywhere = select & wanted == wanted && !Self::is_of_instructions(select);
        let done = |user| Done { instructions: 1, branches: 0, user };
        everywhere && self.count(select, done(true)) == 1 && self.count(select, done(false)) == 1
    }

    /// The same of fixed counter `n`.
    fn is_fixed_computed(&self, n: usize) -> bool {
        let wanted = fixed::USER | fixed::SYSTEM | fixed::INTERRUPT;
        n != fixed::INSTRUCTIONS && self.fixed_control >> (4 * n) & wanted == wanted
    }

    fn update(&mut self) {
        self.counting = (0..self.general).any(|n| self.is_enabled(n) && !self.is_computed(n))
            || (0..FIXED).any(|n| self.is_fixed_enabled(n) && !self.is_fixed_computed(n));
    }

    /// Adds to general counter `n`; tells whether it overflows and asks for an interrupt.
    fn add(&mut self, n: usize, count: u64) -> bool {
        let sum = self.counters[n] + count;
        self.counters[n] = sum & COUNT_MASK;
        let overflows = sum > COUNT_MASK;
        if overflows {
            self.status |= 1 << n;
        }
        overflows && self.selects[n] & select::INTERRUPT != 0
    }

    /// Adds to fixed counter `n`; tells whether it overflows and asks for an interrupt.
    fn add_fixed(&mut self, n: usize, count: u64) -> bool {
        let sum = self.fixed[n] + count;
        self.fixed[n] = sum & COUNT_MASK;
        let overflows = sum > COUNT_MASK;
        if overflows {
            self.status |= 1 << (32 + n);
        }
        overflows && self.fixed_control >> (4 * n) & fixed::INTERRUPT != 0
    }

    /// Brings the counters that are computed up to the CPU's count of instructions, `now`; tells whether
    /// an overflow asks for an interrupt.
    pub(crate) fn sync(&mut self, now: u64) -> bool {
        let count = now.saturating_sub(std::mem::replace(&mut self.synced, now)) & COUNT_MASK;
        let mut interrupt = false;
        for n in 0..self.general {
            if count != 0 && self.is_enabled(n) && self.is_computed(n) {
                interrupt |= self.add(n, count);
            }
        }
        for n in 0..FIXED {
            if count != 0 && self.is_fixed_enabled(n) && self.is_fixed_computed(n) {
                interrupt |= self.add_fixed(n, count);
            }
        }
        interrupt
    }

    /// How often the event that `select` selects came up in `done`.
    fn count(&self, select: u64, done: Done) -> u64 {
        let wanted = if done.user { select::USER } else { select::SYSTEM };
        let threshold = select >> select::THRESHOLD_SHIFT & 0xff;
        // At most one event a cycle.
        let passes = (threshold <= 1) != (select & select::INVERT != 0 && threshold != 0);
        if select & wanted == 0 || !passes {
            return 0;
        }
        let event = select & 0xff | (select >> 32 & 0xf) << 8;
        let unit = select >> 8 & 0xff;
        match (self.vendor, event, unit) {
            (Vendor::Amd, 0x76 | 0xc0, _)
            | (Vendor::Intel, 0xc0, 0)
            | (Vendor::Intel, 0x3c, 0 | 1) => done.instructions,
            (Vendor::Amd, 0xc2, _) | (Vendor::Intel, 0xc4, 0) => done.branches,
            _ => 0,
        }
    }

    /// Counts `done` where the run loop has to; tells whether a counter that asks for an interrupt has overflown.
    pub(crate) fn account(&mut self, done: Done) -> bool {
        let mut interrupt = false;
        for n in 0..self.general {
            if self.is_enabled(n) && !self.is_computed(n) {
                interrupt |= self.add(n, self.count(self.selects[n], done));
            }
        }
        for n in 0..FIXED {
            let control = self.fixed_control >> (4 * n);
            let wanted = if done.user { fixed::USER } else { fixed::SYSTEM };
            let exact = self.is_fixed_enabled(n) && !self.is_fixed_computed(n);
            if exact && control & wanted != 0 {
                interrupt |= self.add_fixed(n, done.instructions);
            }
        }
        interrupt
    }

    /// RDPMC: counter `number`, after [`Self::sync`].
    pub(crate) fn counter(&self, number: u32) -> Option<u64> {
        const FIXED_ONES: u32 = 1 << 30;
        match self.vendor {
            Vendor::Intel if number & FIXED_ONES != 0 => {
                self.fixed.get((number & !FIXED_ONES) as usize).copied()
            }
            _ => self.counters[..self.general].get(number as usize).copied(),
        }
    }

    /// Whether `register` is one of the core extensions'; there is no other with its number.
    fn is_cores(&self, register: u32) -> bool {
        self.general == GENERAL && (index::CORE..=index::CORE_LAST).contains(&register)
    }

    /// Reads a model-specific register, after [`Self::sync`]; `None` if it is none of these.
    pub(crate) fn read(&self, register: u32) -> Option<u64> {
        if self.vendor == Vendor::Amd {
            return match register {
                index::AMD_SELECT..=index::AMD_SELECT_LAST => {
                    Some(self.selects[(register - index::AMD_SELECT) as usize])
                }
                index::AMD_COUNTER..=index::AMD_COUNTER_LAST => {
                    Some(self.counters[(register - index::AMD_COUNTER) as usize])
                }
                _ if self.is_cores(register) => {
                    let n = (register - index::CORE) as usize;
                    Some(if n.is_multiple_of(2) {
                        self.selects[n / 2]
                    } else {
                        self.counters[n / 2]
                    })
                }
                _ => None,
            };
        }
        Some(match register {
            index::SELECT..=index::SELECT_LAST => self.selects[(register - index::SELECT) as usize],
            index::COUNTER..=index::COUNTER_LAST => {
                self.counters[(register - index::COUNTER) as usize]
            }
            index::FIXED..=index::FIXED_LAST => self.fixed[(register - index::FIXED) as usize],
            index::FIXED_CONTROL => self.fixed_control,
            index::STATUS => self.status,
            index::CONTROL => self.control,
            index::OVERFLOW_CONTROL => 0,
            _ => return None,
        })
    }

    /// Writes a register as WRMSR does, after [`Self::sync`]; `None` if it is none of these, false if it can't have the value.
    pub(crate) fn write(&mut self, register: u32, value: u64) -> Option<bool> {
        self.read(register)?;
        let valid = match (self.vendor, register) {
            (Vendor::Amd, _) => true,
            (_, index::SELECT..=index::SELECT_LAST) => value & !select::INTEL == 0,
            (_, index::FIXED..=index::FIXED_LAST) => value & !COUNT_MASK == 0,
            (_, index::FIXED_CONTROL) => value & !fixed::WRITABLE == 0,
            (_, index::CONTROL) => value & !GLOBAL == 0,
            (_, index::OVERFLOW_CONTROL) => value & !(GLOBAL | OVERFLOW_OTHERS) == 0,
            (_, index::STATUS) => false,
            _ => true,
        };
        if valid {
            let value = match (self.vendor, register) {
                // Writes are 32 bits wide, and extended with their sign.
                (Vendor::Intel, index::COUNTER..=index::COUNTER_LAST) => value as i32 as u64,
                _ => value,
            };
            self.set(register, value);
        }
        Some(valid)
    }

    fn set(&mut self, register: u32, value: u64) {
        match register {
            index::AMD_SELECT..=index::AMD_SELECT_LAST => {
                self.selects[(register - index::AMD_SELECT) as usize] = value & select::AMD;
            }
            index::AMD_COUNTER..=index::AMD_COUNTER_LAST => {
                self.counters[(register - index::AMD_COUNTER) as usize] = value & COUNT_MASK;
            }
            index::SELECT..=index::SELECT_LAST => {
                self.selects[(register - index::SELECT) as usize] = value;
            }
            index::COUNTER..=index::COUNTER_LAST => {
                self.counters[(register - index::COUNTER) as usize] = value & COUNT_MASK;
            }
            index::FIXED..=index::FIXED_LAST => {
                self.fixed[(register - index::FIXED) as usize] = value & COUNT_MASK;
            }
            index::FIXED_CONTROL => self.fixed_control = value & fixed::WRITABLE,
            index::STATUS => self.status = value & GLOBAL,
            index::CONTROL => self.control = value & GLOBAL,
            index::OVERFLOW_CONTROL => self.status &= !value,
            _ if self.is_cores(register) => {
                let n = (register - index::CORE) as usize;
                if n.is_multiple_of(2) {
                    self.selects[n / 2] = value & select::AMD;
                } else {
                    self.counters[n / 2] = value & COUNT_MASK;
                }
            }
            _ => {}
        }
        self.update();
    }

    /// The registers to save.
    pub(crate) fn saved(&self) -> Vec<(u32, u64)> {
        let registers: Vec<u32> = match self.vendor {
            Vendor::Amd if self.general == GENERAL => (index::CORE..=index::CORE_LAST).collect(),
            Vendor::Amd => (index::AMD_SELECT..=index::AMD_COUNTER_LAST).collect(),
            Vendor::Intel => (index::COUNTER..=index::COUNTER_LAST)
                .chain(index::SELECT..=index::SELECT_LAST)
                .chain(index::FIXED..=index::FIXED_LAST)
                .chain(index::FIXED_CONTROL..=index::CONTROL)
                .collect(),
        };
        registers.into_iter().filter_map(|n| Some((n, self.read(n)?))).collect()
    }

    /// Takes up a saved register; false if it is none of these.
    pub(crate) fn restore(&mut self, register: u32, value: u64) -> bool {
        let known = self.read(register).is_some();
        if known {
            self.set(register, value);
        }
        known
    }
}

impl Cpu {
    /// Counts `done`, and has the interrupt controller told of overflows.
    pub(crate) fn count_performance(&mut self, done: Done) {
        if self.msrs.pmu.as_mut().is_some_and(|pmu| pmu.account(done)) {
            self.interrupts.performance_interrupt(self.limits.intel);
        }
    }

    /// Brings the performance counters up to now. Before any look at them, and every now and then.
    pub(crate) fn sync_performance(&mut self) {
        self.count_translated();
        let now = self.instructions;
        if self.msrs.pmu.as_mut().is_some_and(|pmu| pmu.sync(now)) {
            self.interrupts.performance_interrupt(self.limits.intel);
        }
    }

    /// Whether the program may execute RDPMC.
    pub(crate) fn may_read_counters(&self) -> bool {
        self.cpl == 0 || self.mode.is_real() || self.cr4 & crate::regs::CR4_PCE != 0
    }

    /// RDPMC's value. #GP(0) if there is no such counter or the program may not read it.
    pub(crate) fn read_performance_counter(&mut self, number: u32) -> Result<u64> {
        self.sync_performance();
        let allowed = self.may_read_counters();
        let counter = self.msrs.pmu.as_ref().and_then(|pmu| pmu.counter(number));
        counter.filter(|_| allowed).ok_or(Exception::GP0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNTED: Done = Done { instructions: 10, branches: 1, user: false };

    #[test]
    fn amd_counters_count_what_is_selected_and_wrap() {
        let mut pmu = Pmu::new(Vendor::Amd, false);
        assert!(!pmu.is_counting());
        let enabled = select::ENABLE | select::SYSTEM | select::INTERRUPT;
        assert_eq!(pmu.write(0xc001_0000, 0xc0 | enabled), Some(true));
        assert_eq!(pmu.write(0xc001_0001, 0xc2 | enabled), Some(true));
        assert_eq!(pmu.write(0xc001_0004, COUNT_MASK - 14), Some(true));
        assert!(pmu.is_counting());
        assert!(!pmu.account(COUNTED));
        assert!(!pmu.account(Done { user: true, ..COUNTED }));
        assert!(pmu.account(COUNTED));
        assert_eq!((pmu.counter(0), pmu.counter(1), pmu.counter(4)), (Some(5), Some(2), None));
        assert_eq!(pmu.write(0x186, 0), None);
    }

    #[test]
    fn the_core_extensions_are_six_with_registers_of_their_own() {
        let mut pmu = Pmu::new(Vendor::Amd, true);
        let enabled = select::ENABLE | select::SYSTEM;
        for n in 0..6 {
            assert_eq!(pmu.write(0xc001_0200 + 2 * n, 0xc0 | enabled), Some(true));
            assert_eq!(pmu.write(0xc001_0201 + 2 * n, 100 * u64::from(n)), Some(true));
        }
        assert!(!pmu.account(COUNTED));
        assert_eq!((pmu.counter(5), pmu.counter(6)), (Some(510), None));
        // The first four are the old ones.
        assert_eq!((pmu.read(0xc001_0007), pmu.read(0xc001_0207)), (Some(310), Some(310)));
        assert_eq!(pmu.write(0xc001_0000, 0), Some(true));
        assert_eq!((pmu.read(0xc001_0200), pmu.read(0xc001_020c)), (Some(0), None));
        let mut copy = Pmu::new(Vendor::Amd, true);
        pmu.saved().into_iter().for_each(|(n, value)| assert!(copy.restore(n, value)));
        assert_eq!(copy.saved(), pmu.saved());
        assert_eq!(Pmu::new(Vendor::Amd, false).read(0xc001_0200), None);
    }

    #[test]
    fn a_counter_of_everything_is_computed_from_the_instructions() {
        let mut pmu = Pmu::new(Vendor::Amd, false);
        let enabled = select::ENABLE | select::SYSTEM | select::USER | select::INTERRUPT;
        pmu.sync(1000);
        assert_eq!(pmu.write(0xc001_0000, 0x76 | enabled), Some(true));
        assert!(!pmu.is_counting());
        assert!(!pmu.sync(1500));
        assert!(!pmu.account(COUNTED));
        assert_eq!(pmu.counter(0), Some(500));
        assert_eq!(pmu.write(0xc001_0004, COUNT_MASK - 9), Some(true));
        assert!(!pmu.sync(1509) && pmu.sync(1512));
        assert_eq!(pmu.counter(0), Some(2));
        // Branches, a counter for one level, and one that does not interrupt, are the run loop's.
        let quiet = enabled & !select::INTERRUPT;
        assert_eq!(pmu.write(0xc001_0001, 0x76 | quiet), Some(true));
        assert!(pmu.is_counting());
        assert_eq!(pmu.write(0xc001_0001, 0xc2 | enabled), Some(true));
        assert!(pmu.is_counting());
        assert_eq!(pmu.write(0xc001_0001, 0), Some(true));
        assert!(!pmu.is_counting());
        // Off, it stands still.
        assert_eq!(pmu.write(0xc001_0000, 0), Some(true));
        assert!(!pmu.sync(9999));
        assert_eq!(pmu.counter(0), Some(2));
    }

    #[test]
    fn intel_counters_need_both_enables_and_tell_of_overflows() {
        let mut pmu = Pmu::new(Vendor::Intel, false);
        let enabled = select::ENABLE | select::SYSTEM;
        assert_eq!(pmu.write(0x186, 0xc0 | enabled), Some(true));
        assert_eq!(pmu.write(0xc1, 0xffff_fffe), Some(true));
        assert_eq!(pmu.read(0xc1), Some(COUNT_MASK - 1));
        assert_eq!(pmu.write(0x38f, 0), Some(true));
        assert!(!pmu.is_counting());
        assert_eq!(pmu.write(0x38d, 0xb), Some(true));
        assert_eq!(pmu.write(0x38f, 1 | 1 << 32), Some(true));
        assert!(!pmu.account(COUNTED));
        assert_eq!(pmu.read(0x38e), Some(1));
        assert_eq!((pmu.counter(0), pmu.counter(1 << 30)), (Some(8), Some(10)));
        assert_eq!(pmu.write(0x390, 1), Some(true));
        assert_eq!(pmu.read(0x38e), Some(0));
        assert_eq!(pmu.write(0x38e, 0), Some(false));
        assert_eq!(pmu.write(0x186, 1 << 32), Some(false));
        let mut copy = Pmu::new(Vendor::Intel, false);
        pmu.saved().into_iter().for_each(|(n, value)| assert!(copy.restore(n, value)));
        assert_eq!(copy.saved(), pmu.saved());
        assert_eq!(copy.is_counting(), pmu.is_counting());
    }
}
