//! Hyper-V's interface for guests, as the CPU has it (Microsoft's "Hypervisor Top Level Functional
//! Specification"): what CPUID tells ("Feature and Interface Discovery"), which of the synthetic registers the
//! guest may use ("Partition Privilege Flags"), and calls ("Hypercall Interface"). The registers themselves,
//! but for the time that this processor has run, are the board's ([`accel::Partition`]).
//!
//! - `options`: what is offered.
//! - `call`: calls.
//! - `flush`: translations that other processors are to forget.
//!
//! Invariant: a register that leaf 0x4000_0003 does not tell of raises #GP, and so does all of it on a CPU
//! whose model has none of the interface. A nested guest has no calls: its hypervisor intercepts them, or they
//! are undefined.

mod call;
mod flush;
mod options;

use std::sync::Arc;

use accel::Partition;
use rustix::time::{ClockId, clock_gettime};

use crate::cpu::Cpu;
use crate::cpuid::{Leaf, leaf, signature};
pub(crate) use flush::{Asked, Invalidation};
pub use options::Enlightenments;
use options::{Offered, Told};

/// The highest leaf, less the first.
pub(crate) const MAX_HYPERV: u32 = 5;
/// "Hv#1".
const INTERFACE: u32 = 0x3123_7648;
/// The most virtual processors, and processors of the host, that there can be.
const MAX_PROCESSORS: u32 = 64;
/// Nanoseconds of a unit of run time.
const RUN_TIME_NS: u64 = 100;

/// Registers that are not all the board's, and ranges of those that are.
pub(crate) mod index {
    pub(crate) const FIRST: u32 = 0x4000_0000;
    pub(crate) const LAST: u32 = 0x4000_01ff;
    pub(super) const GUEST_OS_ID: u32 = 0x4000_0000;
    pub(super) const HYPERCALL: u32 = 0x4000_0001;
    pub(super) const VP_INDEX: u32 = 0x4000_0002;
    pub(super) const RESET: u32 = 0x4000_0003;
    pub(crate) const VP_RUNTIME: u32 = 0x4000_0010;
    pub(super) const TIME_REF_COUNT: u32 = 0x4000_0020;
    pub(super) const REFERENCE_TSC: u32 = 0x4000_0021;
    pub(super) const TSC_FREQUENCY: u32 = 0x4000_0022;
    pub(super) const APIC_FREQUENCY: u32 = 0x4000_0023;
    pub(super) const EOI: u32 = 0x4000_0070;
    pub(super) const VP_ASSIST_PAGE: u32 = 0x4000_0073;
    pub(super) const SCONTROL: u32 = 0x4000_0080;
    pub(super) const SINT15: u32 = 0x4000_009f;
    pub(super) const STIMER0_CONFIG: u32 = 0x4000_00b0;
    pub(super) const STIMER3_COUNT: u32 = 0x4000_00b7;
    pub(super) const CRASH_P0: u32 = 0x4000_0100;
    pub(super) const CRASH_CTL: u32 = 0x4000_0105;
}

/// Which virtual processor of which partition a CPU is.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) partition: Arc<dyn Partition>,
    pub(crate) processor: u32,
}

/// The time that a CPU has spent executing.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RunTime {
    /// Nanoseconds until it last stopped.
    before: u64,
    /// Nanoseconds until then in which it was to execute, and the host had it wait.
    stolen_before: u64,
    /// What its clock and the host's showed when it began to run, if it runs.
    since: Option<(u64, u64)>,
}

impl Cpu {
    /// Makes the CPU virtual processor `processor` of `partition`, for a guest that finds Hyper-V's interface if
    /// its CPU model offers any of it.
    pub fn set_partition(&mut self, partition: Arc<dyn Partition>, processor: u32) {
        self.partition = Some(Place { partition, processor });
    }

    /// Hypervisor leaf `n`, from 0.
    pub(crate) fn cpuid_hyperv(&self, n: u32) -> Leaf {
        let hyperv = &self.config.model.hyperv;
        let version = hyperv.version;
        match n {
            0 => signature(0x4000_0000 + MAX_HYPERV, &hyperv.vendor, [0, 1, 2]),
            1 => leaf(INTERFACE, 0, 0, 0),
            2 => leaf(
                version.build,
                u32::from(version.major) << 16 | u32::from(version.minor),
                version.service_pack,
                u32::from(version.service_branch) << 24 | version.service_number,
            ),
            3 => leaf(
                hyperv.told(Told::Registers),
                hyperv.told(Told::Calls),
                0,
                hyperv.told(Told::Features),
            ),
            4 => leaf(hyperv.told(Told::Recommendations), hyperv.spinlocks(), 0, 0),
            _ => leaf(MAX_PROCESSORS, MAX_PROCESSORS, 0, 0),
        }
    }

    /// Whether the guest may use `register`.
    fn may_use(&self, register: u32) -> bool {
        let hyperv = &self.config.model.hyperv;
        let offers = |what| hyperv.offers(what);
        match register {
            index::GUEST_OS_ID | index::HYPERCALL => hyperv.is_on(),
            index::VP_INDEX => offers(Offered::VPINDEX),
            index::RESET => offers(Offered::RESET),
            index::VP_RUNTIME => offers(Offered::RUNTIME),
            index::TIME_REF_COUNT | index::REFERENCE_TSC => offers(Offered::TIME),
            index::TSC_FREQUENCY | index::APIC_FREQUENCY => offers(Offered::FREQUENCIES),
            index::EOI..=index::VP_ASSIST_PAGE => offers(Offered::VAPIC),
            index::SCONTROL..=index::SINT15 => offers(Offered::SYNIC),
            index::STIMER0_CONFIG..=index::STIMER3_COUNT => offers(Offered::STIMER),
            index::CRASH_P0..=index::CRASH_CTL => offers(Offered::CRASH),
            _ => false,
        }
    }

    /// Reads a register of the interface; `None` if there is none or the guest may not use it.
    pub(crate) fn read_hyperv_msr(&self, register: u32) -> Option<u64> {
        let place = self.partition.as_ref().filter(|_| self.may_use(register))?;
        match register {
            index::VP_RUNTIME => Some(self.run_time() / RUN_TIME_NS),
            _ => place.partition.read_register(place.processor, register),
        }
    }

    /// Writes a register of the interface; false if there is none or it can't have this value.
    pub(crate) fn write_hyperv_msr(&mut self, register: u32, value: u64) -> bool {
        let Some(place) = self.partition.as_ref().filter(|_| self.may_use(register)) else {
            return false;
        };
        if register == index::VP_RUNTIME {
            return false;
        }
        let done = place.partition.write_register(place.processor, register, value);
        // Pages may have come and gone, and interrupts been asked for.
        self.break_block = true;
        done
    }

    /// The run time as it was saved.
    pub(crate) fn restore_run_time(&mut self, units: u64) {
        self.run_time.before = units.saturating_mul(RUN_TIME_NS);
        self.run_time.since = None;
    }

    /// What run time is measured by: what the host says that the CPU's thread has had, or guest time where that
    /// goes by instructions.
    fn thread_time(&self) -> u64 {
        self.host_time(ClockId::ThreadCPUTime)
    }

    fn host_time(&self, clock: ClockId) -> u64 {
        if self.timed.is_some() {
            return self.clock.now_ns();
        }
        let time = clock_gettime(clock);
        (time.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(time.tv_nsec as u64)
    }

    /// Nanoseconds in which the CPU was to execute, and its thread waited for the host.
    pub(crate) fn stolen_time(&self) -> u64 {
        let stolen = self.run_time.since.map_or(0, |(thread, host)| {
            let passed = self.host_time(ClockId::Monotonic).saturating_sub(host);
            passed.saturating_sub(self.thread_time().saturating_sub(thread))
        });
        self.run_time.stolen_before.saturating_add(stolen)
    }

    /// Nanoseconds that the CPU has spent executing.
    pub(crate) fn run_time(&self) -> u64 {
        let RunTime { before, since, .. } = self.run_time;
        let now = since.map_or(0, |(thread, _)| self.thread_time().saturating_sub(thread));
        before.saturating_add(now)
    }

    /// The CPU begins to execute.
    pub(crate) fn begin_run_time(&mut self) {
        if self.keeps_run_time() {
            self.run_time.since = Some((self.thread_time(), self.host_time(ClockId::Monotonic)));
        }
    }

    /// The CPU has stopped executing.
    pub(crate) fn end_run_time(&mut self) {
        if self.run_time.since.is_some() {
            let (before, stolen_before) = (self.run_time(), self.stolen_time());
            self.run_time = RunTime { before, stolen_before, since: None };
        }
    }

    /// Whether anybody can ask for the run time.
    fn keeps_run_time(&self) -> bool {
        self.config.model.hyperv.offers(Offered::RUNTIME) || self.tells_stolen_time()
    }

    /// The time-stamp counters of all CPUs may have begun or ceased to agree.
    pub(crate) fn tell_partition_of_counters(&self) {
        if let Some(place) = &self.partition {
            place.partition.counters_agree(self.group.clocks_agree());
        }
    }

    /// Whether the guest must not write to the page that holds guest physical `address`.
    pub(crate) fn is_protected(&self, address: u64) -> bool {
        self.partition.as_ref().is_some_and(|place| place.partition.is_protected(address))
    }
}

#[cfg(test)]
mod tests {
    use crate::model::CpuModel;
    use crate::testing::long_mode;

    #[test]
    fn kvm_comes_second_where_hyperv_is_first() {
        let mut cpu = long_mode();
        let with = |text: &str| std::sync::Arc::new(CpuModel::parse(text).unwrap());
        cpu.config.model = with("qemu64,hv-relaxed,hv-spinlocks=0x1fff");
        let first = cpu.cpuid(0x4000_0000, 0);
        assert_eq!((first.eax, first.ebx), (0x4000_0005, u32::from_le_bytes(*b"Micr")));
        assert_eq!(cpu.cpuid(0x4000_0001, 0).eax, u32::from_le_bytes(*b"Hv#1"));
        assert_eq!(cpu.cpuid(0x4000_0002, 0).ebx, 10 << 16);
        assert_eq!((cpu.cpuid(0x4000_0004, 0).eax, cpu.cpuid(0x4000_0004, 0).ebx), (0x20, 0x1fff));
        let second = cpu.cpuid(0x4000_0100, 0);
        assert_eq!((second.eax, second.ebx), (0x4000_0101, u32::from_le_bytes(*b"KVMK")));
        assert_eq!(cpu.cpuid(0x4000_0101, 0).eax, cpu.kvm_features());
        assert_eq!(cpu.cpuid(0x4000_0006, 0).eax, 0);
        cpu.config.model = with("qemu64,kvm=off,hv-relaxed");
        assert_eq!(cpu.cpuid(0x4000_0100, 0).eax, 0);
        cpu.config.model = with("qemu64");
        assert_eq!(cpu.cpuid(0x4000_0000, 0).eax, 0x4000_0001);
        assert_eq!(cpu.cpuid(0x4000_0100, 0).eax, 0);
    }
}
