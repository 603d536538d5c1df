use std::sync::Arc;

use accel::{GuestClock, InterruptController, Partition, Posted};
use bus::{AddressSpace, BusDevice, Device};
use memory::{GuestMemory, WriteTarget};

use super::{HyperV, Options, register as reg};
use crate::lapic::testing::{Bench, BenchClock};
use crate::testdev::HyperVTestDev;
use crate::testing::Wishes;

/// Where the message page is put.
const MESSAGES: u64 = 0x3000;
/// The source that is used.
const SOURCE: u64 = 2;
const VECTOR: u64 = 0x55;
const MASKED: u64 = 1 << 16;
const AUTO_EOI: u64 = 1 << 17;
/// A timer's configuration: enabled, with messages from the source.
const ONE_SHOT: u64 = 1 | SOURCE << 16;
const PERIODIC: u64 = ONE_SHOT | 2;
/// HvMessageTimerExpired, and the length of its payload.
const EXPIRED: u64 = 0x18_8000_0010;

struct Rig {
    bench: Bench,
    memory: Arc<GuestMemory>,
    wishes: Arc<Wishes>,
    hyperv: Arc<HyperV>,
}

fn rig(processors: usize) -> Rig {
    let bench = Bench::new(processors);
    let memory = Arc::new(GuestMemory::new(&[(0, 0x10_0000)]).unwrap());
    let wishes = Arc::<Wishes>::default();
    let options = Options { intel: false, direct_timers: true, phys_bits: 40 };
    let clock: Arc<dyn GuestClock> = Arc::new(BenchClock(bench.clock.clone()));
    let hyperv =
        HyperV::new(options, &memory, &bench.bus, &clock, &bench.timers, wishes.clone()).unwrap();
    for apic in bench.bus.apics() {
        // Software enable.
        BusDevice::write(&**apic, 0xf0, 4, 0x1ff);
    }
    Rig { bench, memory, wishes, hyperv }
}

impl Rig {
    fn set(&self, register: u32, value: u64) {
        assert!(self.hyperv.write_register(0, register, value), "{register:#x} {value:#x}");
    }

    fn get(&self, register: u32) -> u64 {
        self.hyperv.read_register(0, register).unwrap()
    }

    fn refuses(&self, register: u32, value: u64) -> bool {
        !self.hyperv.write_register(0, register, value)
    }

    /// The vector of the interrupt that CPU 0 takes.
    fn taken(&self) -> Option<u8> {
        self.bench.bus.apics()[0].acknowledge()
    }

    /// What CPU 0's APIC has in service, of the vectors from 0x40 to 0x5f.
    fn in_service(&self) -> u64 {
        BusDevice::read(&*self.bench.bus.apics()[0], 0x120, 4)
    }

    /// Switches the controller on, with a source and its page.
    fn open(&self, source: u64) {
        self.set(reg::SCONTROL, 1);
        self.set(reg::SIMP, MESSAGES | 1);
        self.set(reg::SINT0 + SOURCE as u32, source);
    }

    /// Word `n` of the slot.
    fn slot(&self, n: u64) -> u64 {
        u64::from_le_bytes(self.hyperv.processors[0].pages()[1].read(SOURCE * 256 + 8 * n))
    }

    /// Empties the slot, as a guest does.
    fn empty(&self) {
        self.hyperv.processors[0].pages()[1].write(SOURCE * 256, &[0; 4]);
    }

    fn at(&self, units: u64) {
        // A count is over once the clock, which does not show units, is past it.
        self.bench.at(units * 100 + 1);
    }
}

#[test]
fn the_hypercall_page_is_there_while_the_guest_says_who_it_is() {
    let rig = rig(1);
    let is_protected = |at| {
        let lost = matches!(rig.memory.write_target(at, false), WriteTarget::Lost);
        assert_eq!(lost, rig.hyperv.is_protected(at));
        lost
    };
    rig.set(reg::HYPERCALL, 0x5001);
    assert_eq!((rig.get(reg::HYPERCALL), rig.hyperv.takes_calls()), (0x5000, false));
    rig.set(reg::GUEST_OS_ID, 1 << 48);
    rig.set(reg::HYPERCALL, 0x5001);
    assert_eq!((rig.get(reg::HYPERCALL), rig.hyperv.takes_calls()), (0x5001, true));
    assert!(is_protected(0x5123) && !is_protected(0x6000));
    assert_eq!(rig.hyperv.hypercall.read(0), [0x0f, 0x01, 0xd9, 0xc3]);
    rig.set(reg::HYPERCALL, 0x7001);
    assert!(is_protected(0x7123) && !is_protected(0x5000));
    assert!(rig.refuses(reg::HYPERCALL, 1 << 40 | 1));
    rig.set(reg::GUEST_OS_ID, 0);
    assert!(!is_protected(0x7123));
    assert_eq!(rig.get(reg::HYPERCALL), 0x7000);
    // A lock holds until a reset.
    rig.set(reg::GUEST_OS_ID, 1 << 48);
    rig.set(reg::HYPERCALL, 0x7003);
    rig.set(reg::HYPERCALL, 0x9001);
    assert_eq!(rig.get(reg::HYPERCALL), 0x7003);
    rig.hyperv.reset();
    assert_eq!((rig.get(reg::HYPERCALL), rig.get(reg::GUEST_OS_ID)), (0, 0));
    assert!(!is_protected(0x7123));
}

#[test]
fn a_page_that_goes_away_leaves_what_was_below() {
    let rig = rig(1);
    let below = rig.memory.page(MESSAGES, false).host.unwrap().ptr;
    rig.set(reg::SIMP, MESSAGES | 1);
    assert_ne!(rig.memory.page(MESSAGES, false).host.unwrap().ptr, below);
    rig.set(reg::SIMP, MESSAGES);
    assert_eq!(rig.memory.page(MESSAGES, false).host.unwrap().ptr, below);
    // Wherever the guest wants them, if it makes sense or not.
    for at in [0, 1 << 39, !0xfff] {
        for register in [reg::SIMP, reg::SIEFP, reg::VP_ASSIST_PAGE, reg::REFERENCE_TSC] {
            rig.set(register, at | 1);
            assert_eq!(rig.get(register), at | 1);
        }
    }
}

#[test]
fn timers_send_messages_when_the_slot_is_empty() {
    let rig = rig(1);
    rig.open(VECTOR);
    rig.set(reg::STIMER0_CONFIG + 1, 500);
    rig.set(reg::STIMER0_CONFIG, ONE_SHOT);
    rig.at(499);
    assert_eq!((rig.slot(0), rig.taken()), (0, None));
    rig.at(520);
    assert_eq!((rig.slot(0), rig.slot(1), rig.slot(2), rig.slot(3)), (EXPIRED, 0, 0, 500));
    assert!((500..=521).contains(&rig.slot(4)));
    assert_eq!((rig.taken(), rig.get(reg::STIMER0_CONFIG) & 1), (Some(VECTOR as u8), 0));
    // Another timer finds the slot full, and says so.
    rig.set(reg::STIMER0_CONFIG + 2, PERIODIC);
    rig.set(reg::STIMER0_CONFIG + 3, 100);
    rig.at(630);
    assert_eq!(rig.slot(0), EXPIRED | 1 << 40);
    rig.set(reg::EOM, 0);
    assert_eq!((rig.slot(0), rig.taken()), (EXPIRED | 1 << 40, None));
    rig.set(reg::EOI, 0);
    rig.empty();
    rig.set(reg::EOM, 0);
    assert_eq!((rig.slot(0), rig.slot(2)), (EXPIRED, 1));
    assert_eq!(rig.taken(), Some(VECTOR as u8));
    // The end of an interrupt has the queue looked at as well.
    rig.at(730);
    rig.empty();
    rig.set(reg::EOI, 0);
    assert_eq!((rig.slot(0), rig.taken()), (EXPIRED, Some(VECTOR as u8)));
    assert_eq!(rig.get(reg::EOM), 0);
}

#[test]
fn messages_wait_for_the_controller_and_their_page() {
    let rig = rig(1);
    rig.set(reg::SINT0 + SOURCE as u32, VECTOR);
    rig.set(reg::STIMER0_CONFIG + 1, 1);
    rig.set(reg::STIMER0_CONFIG, ONE_SHOT);
    rig.at(10);
    rig.set(reg::SCONTROL, 1);
    assert_eq!((rig.slot(0), rig.taken()), (0, None));
    rig.set(reg::SIMP, MESSAGES | 1);
    assert_eq!((rig.slot(0), rig.taken()), (EXPIRED, Some(VECTOR as u8)));
}

#[test]
fn a_source_that_is_masked_or_polled_interrupts_nobody() {
    for source in [MASKED | VECTOR, VECTOR | 1 << 18] {
        let rig = rig(1);
        rig.open(source);
        rig.set(reg::STIMER0_CONFIG + 1, 5);
        rig.set(reg::STIMER0_CONFIG, ONE_SHOT);
        rig.at(10);
        assert_eq!((rig.slot(0), rig.taken()), (EXPIRED, None));
    }
    let rig = rig(1);
    assert_eq!(rig.get(reg::SINT0), MASKED);
    assert!(rig.refuses(reg::SINT0, 15) && rig.refuses(reg::SVERSION, 1));
    rig.set(reg::SINT0, MASKED | 3);
    assert_eq!(rig.get(reg::SVERSION), 1);
}

#[test]
fn interrupts_end_by_themselves_if_they_are_to() {
    let rig = rig(1);
    rig.open(VECTOR | AUTO_EOI);
    rig.set(reg::STIMER0_CONFIG + 1, 5);
    rig.set(reg::STIMER0_CONFIG, ONE_SHOT);
    rig.at(10);
    assert_eq!((rig.taken(), rig.in_service()), (Some(VECTOR as u8), 0));
    rig.set(reg::SINT0 + SOURCE as u32, VECTOR);
    rig.hyperv.interrupt(0, VECTOR as u8);
    assert_eq!((rig.taken(), rig.in_service()), (Some(VECTOR as u8), 1 << (VECTOR - 0x40)));
}

#[test]
fn direct_timers_assert_their_vector() {
    let rig = rig(2);
    let direct = 1 | 1 << 12 | 0x61 << 4;
    assert!(rig.hyperv.write_register(1, reg::STIMER0_CONFIG + 1, 100));
    assert!(rig.hyperv.write_register(1, reg::STIMER0_CONFIG, direct));
    rig.at(101);
    assert_eq!((rig.taken(), rig.bench.bus.apics()[1].acknowledge()), (None, Some(0x61)));
}

#[test]
fn ends_of_interrupts_can_be_told_by_the_assist_page() {
    let rig = rig(1);
    let apic = &rig.bench.bus.apics()[0];
    let flag = || rig.hyperv.processors[0].pages()[2].read::<1>(0)[0] & 1;
    let clear = || rig.hyperv.processors[0].pages()[2].write(0, &[0]);
    rig.set(reg::VP_ASSIST_PAGE, 0x8001);
    let (low, high) = (0x45, 0x56);
    rig.hyperv.interrupt(0, low);
    assert_eq!((rig.taken(), flag()), (Some(low), 1));
    // The handler ends by the flag; the next one of the same vector is taken.
    clear();
    rig.hyperv.interrupt(0, low);
    assert_eq!((rig.taken(), flag()), (Some(low), 1));
    // A more urgent one comes before the handler is done: the first has to be ended by the register.
    rig.hyperv.interrupt(0, high);
    assert_eq!((rig.taken(), flag()), (Some(high), 1));
    assert_eq!(rig.in_service(), 1 << (low - 0x40) | 1 << (high - 0x40));
    assert_eq!(flag(), 0);
    rig.set(reg::EOI, 0);
    assert_eq!(rig.in_service(), 1 << (low - 0x40));
    rig.set(reg::EOI, 0);
    assert_eq!(rig.in_service(), 0);
    // While another waits, there is no such flag.
    rig.hyperv.interrupt(0, low);
    rig.hyperv.interrupt(0, high);
    assert_eq!((rig.taken(), flag()), (Some(high), 0));
    rig.set(reg::EOI, 0);
    assert_eq!((rig.taken(), flag()), (Some(low), 1));
    // What is saved while it may still be used goes on.
    let (saved, page) = (apic.save(), rig.hyperv.save());
    clear();
    assert_eq!(rig.in_service(), 0);
    apic.restore(&saved).unwrap();
    rig.hyperv.restore(&page).unwrap();
    assert_eq!(flag(), 1);
    clear();
    assert_eq!(rig.in_service(), 0);
}

#[test]
fn registers_of_the_local_apic_have_a_second_way() {
    let rig = rig(2);
    rig.set(reg::TPR, 0x50);
    assert_eq!((rig.get(reg::TPR), rig.bench.bus.apics()[0].task_priority()), (0x50, 5));
    rig.set(reg::ICR, 1 << 56 | 0x4045);
    assert_eq!(rig.bench.bus.apics()[1].acknowledge(), Some(0x45));
    assert_eq!(rig.get(reg::ICR), 1 << 56 | 0x4045);
    assert!(rig.refuses(reg::TPR, 0x100) && rig.refuses(reg::EOI, 1 << 32));
    assert_eq!(rig.hyperv.read_register(0, reg::EOI), None);
}

#[test]
fn the_reference_page_tells_the_time_while_counters_agree() {
    let rig = rig(1);
    let page = |at| u64::from_le_bytes(rig.hyperv.reference_page.read(at));
    rig.set(reg::REFERENCE_TSC, 0x6001);
    assert_eq!(page(0), 1);
    rig.at(123_456_789);
    let tsc = BenchClock(rig.bench.clock.clone()).tsc();
    let time = ((u128::from(tsc) * u128::from(page(8))) >> 64) as u64 + page(16);
    assert_eq!(time, rig.get(reg::TIME_REF_COUNT));
    assert!(time.abs_diff(123_456_789) < 2);
    rig.hyperv.counters_agree(false);
    assert_eq!(page(0), 0);
    rig.hyperv.counters_agree(true);
    assert_eq!(page(0), 3);
    assert!(rig.refuses(reg::TIME_REF_COUNT, 0) && rig.refuses(reg::VP_INDEX, 0));
    assert_eq!(rig.get(reg::TSC_FREQUENCY), crate::lapic::testing::TSC_HZ);
}

#[test]
fn crashes_and_resets_are_told_of() {
    let rig = rig(1);
    for n in 0..5 {
        rig.set(reg::CRASH_P0 + n, 0x10 + u64::from(n));
    }
    rig.set(reg::CRASH_CTL, 1);
    rig.set(reg::RESET, 2);
    assert!(rig.wishes.taken().is_empty());
    rig.set(reg::CRASH_CTL, 1 << 63);
    rig.set(reg::RESET, 1);
    let wishes = rig.wishes.taken();
    assert_eq!(wishes, ["notice HyperVCrash([16, 17, 18, 19, 20])", "reset guest-reset"]);
    assert_eq!((rig.get(reg::CRASH_CTL), rig.get(reg::CRASH_P0 + 4)), (1 << 63, 0x14));
}

#[test]
fn what_is_no_register_is_none() {
    let rig = rig(1);
    for register in [0x4000_0004, 0x4000_0074, 0x4000_00a0, 0x4000_00b8, 0x4000_0106] {
        assert_eq!(rig.hyperv.read_register(0, register), None);
        assert!(rig.refuses(register, 0));
    }
    assert_eq!(rig.hyperv.read_register(1, reg::SCONTROL), None);
    assert!(!rig.hyperv.write_register(1, reg::SCONTROL, 0));
    rig.hyperv.interrupt(7, 0x50);
}

#[test]
fn a_test_device_has_sources_interrupt_and_messages_and_events_come() {
    let rig = rig(2);
    for (register, value) in [
        (reg::SCONTROL, 1),
        (reg::SIEFP, 0x5001),
        (reg::SIMP, MESSAGES | 1),
        (reg::SINT0 + SOURCE as u32, VECTOR),
    ] {
        assert!(rig.hyperv.write_register(1, register, value));
    }
    let device = HyperVTestDev::new(rig.hyperv.clone()).unwrap();
    assert!(HyperVTestDev::new(rig.hyperv.clone()).is_none(), "there is one already");
    let ports = AddressSpace::new();
    device.attach(&ports).unwrap();
    let command = |command: u64, connection: u64| {
        ports.write(0x3000, 4, connection << 24 | command << 16 | 1 << 8 | SOURCE);
    };
    let apic = &rig.bench.bus.apics()[1];
    let taken = || {
        let vector = apic.acknowledge();
        apic.end_interrupt();
        vector.map(u64::from)
    };
    let pages = rig.hyperv.processors[1].pages();
    let slot = |at: u64| pages[1].read::<1>(SOURCE * 256 + at)[0];
    command(3, 0);
    assert_eq!(taken(), None, "there is no route");
    command(1, 0);
    ports.write(0x3000, 2, 3);
    assert_eq!(taken(), None, "a command has 32 bits");
    command(3, 0);
    assert_eq!(taken(), Some(VECTOR));
    for nowhere in [1 << 8 | 16, 2 << 8 | SOURCE] {
        ports.write(0x3000, 4, 1 << 16 | nowhere);
        ports.write(0x3000, 4, 3 << 16 | nowhere);
    }
    assert_eq!(taken(), None, "there are no such sources");

    assert_eq!(rig.hyperv.post_message(9, 7, &[1, 2]), Posted::Unconnected);
    command(4, 9);
    assert_eq!(rig.hyperv.post_message(9, 7, &[1, 2]), Posted::Taken);
    assert_eq!([0, 4, 5, 8, 16, 17].map(slot), [7, 2, 0, 9, 1, 2]);
    assert_eq!(taken(), Some(VECTOR));
    assert_eq!(rig.hyperv.post_message(9, 8, &[3]), Posted::Taken);
    assert_eq!(rig.hyperv.post_message(9, 8, &[3]), Posted::Full);
    assert_eq!((slot(5), taken()), (1, None), "others wait");

    let flags = || pages[0].read::<2>(SOURCE * 256);
    assert!(!rig.hyperv.signal_event(9));
    command(6, 9);
    assert!(rig.hyperv.signal_event(9) && rig.hyperv.signal_event(9));
    assert_eq!((flags(), taken(), taken()), ([0, 2], Some(VECTOR), None));

    // Both keep what they have.
    let (partition, connections) = (rig.hyperv.save(), device.save());
    rig.hyperv.reset();
    device.reset();
    assert!(!rig.hyperv.signal_event(9));
    assert_eq!(rig.hyperv.post_message(9, 7, &[]), Posted::Unconnected);
    rig.hyperv.restore(&partition).unwrap();
    device.restore(&connections).unwrap();
    assert_eq!(slot(0), 7);
    pages[1].write(SOURCE * 256, &[0; 4]);
    assert!(rig.hyperv.write_register(1, reg::EOM, 0));
    assert_eq!((slot(0), slot(16)), (8, 3), "what waited comes");
    command(5, 9);
    command(7, 9);
    assert_eq!(rig.hyperv.post_message(9, 7, &[]), Posted::Unconnected);
    assert!(!rig.hyperv.signal_event(9));
}
