//! Local APICs against the manual: priorities, messages, timer, modes.

use super::testing::{Bench, TSC_HZ};
use super::*;
use bus::{MsiMessage, MsiSink};

fn write(apic: &LocalApic, index: u32, value: u32) {
    apic.write(u64::from(index) << 4, 4, value.into());
}

fn read(apic: &LocalApic, index: u32) -> u32 {
    apic.read(u64::from(index) << 4, 4) as u32
}

/// All APICs software-enabled, with ids and flat logical destinations as Linux sets them.
fn enabled(count: usize) -> Bench {
    let bench = Bench::new(count);
    for (i, apic) in bench.bus.apics().iter().enumerate() {
        write(apic, reg::SVR, 0x1ff);
        write(apic, reg::LDR, 1 << (24 + i));
        write(apic, reg::DFR, u32::MAX);
    }
    bench
}

fn interrupted(apic: &LocalApic) -> bool {
    apic.signals().is_raised(Signal::Interrupt)
}

#[test]
fn requests_nest_by_priority_class() {
    let bench = enabled(1);
    let apic = &bench.bus.apics()[0];
    let to_0 = Destination::default();
    assert!(bench.bus.deliver(Message::fixed(to_0, 0x41)));
    assert!(bench.bus.deliver(Message::fixed(to_0, 0x45)));
    assert!(interrupted(apic));
    assert_eq!(apic.acknowledge(), Some(0x45));
    assert!(!interrupted(apic), "41h is of the same class as what is in service");
    bench.bus.deliver(Message::fixed(to_0, 0x51));
    assert_eq!(apic.acknowledge(), Some(0x51));
    assert_eq!(read(apic, reg::PPR), 0x50);
    write(apic, reg::EOI, 0);
    assert_eq!(read(apic, reg::PPR), 0x40);
    assert!(!interrupted(apic));
    write(apic, reg::EOI, 0);
    assert!(interrupted(apic));
    assert_eq!(apic.acknowledge(), Some(0x41));
    write(apic, reg::EOI, 0);
    assert_eq!(apic.acknowledge(), None);
}

#[test]
fn task_priority_holds_back_and_lets_go() {
    let bench = enabled(1);
    let apic = &bench.bus.apics()[0];
    apic.set_task_priority(6);
    assert_eq!(read(apic, reg::TPR), 0x60);
    bench.bus.deliver(Message::fixed(Destination::default(), 0x61));
    assert!(!interrupted(apic));
    assert_eq!(apic.acknowledge(), None);
    apic.set_task_priority(5);
    assert!(interrupted(apic));
    assert_eq!(apic.acknowledge(), Some(0x61));
}

#[test]
fn destinations_physical_logical_and_shorthands() {
    let bench = enabled(4);
    let apics = bench.bus.apics();
    let send = |from: usize, high: u32, low: u32| {
        write(&apics[from], reg::ICR_HIGH, high << 24);
        write(&apics[from], reg::ICR_LOW, low);
        let taken: Vec<_> = apics.iter().map(|a| a.acknowledge()).collect();
        for apic in apics {
            write(apic, reg::EOI, 0);
        }
        taken.iter().map(Option::is_some).collect::<Vec<_>>()
    };
    assert_eq!(send(0, 2, 0x50), [false, false, true, false]);
    assert_eq!(send(0, 0xff, 0x50), [true; 4]);
    assert_eq!(send(0, 0b1010, 0x850), [false, true, false, true]);
    assert_eq!(send(3, 0, 1 << 18 | 0x50), [false, false, false, true]);
    assert_eq!(send(3, 0, 2 << 18 | 0x50), [true; 4]);
    assert_eq!(send(3, 0, 3 << 18 | 0x50), [true, true, true, false]);
    // Clusters: 0 and 1 in cluster 1, 2 and 3 in cluster 2.
    for (i, ldr) in [0x11, 0x12, 0x21, 0x22].into_iter().enumerate() {
        write(&apics[i], reg::DFR, 0x0fff_ffff);
        write(&apics[i], reg::LDR, ldr << 24);
    }
    assert_eq!(send(0, 0x13, 0x850), [true, true, false, false]);
    assert_eq!(send(0, 0xf2, 0x850), [false, true, false, true]);
}

#[test]
fn lowest_priority_goes_to_the_least_busy() {
    let bench = enabled(3);
    let apics = bench.bus.apics();
    apics[0].set_task_priority(8);
    apics[1].set_task_priority(3);
    apics[2].set_task_priority(5);
    bench.bus.send(MsiMessage { address: 0xfee0_0000 | 7 << 12 | 1 << 3 | 1 << 2, data: 0x1a0 });
    assert_eq!([0, 1, 2].map(|i| apics[i].acknowledge()), [None, Some(0xa0), None]);
}

#[test]
fn init_and_startup_reach_the_cpu() {
    let bench = enabled(2);
    let apics = bench.bus.apics();
    write(&apics[0], reg::ICR_HIGH, 1 << 24);
    write(&apics[0], reg::ICR_LOW, 0xc500);
    assert!(apics[1].signals().is_raised(Signal::Init));
    assert_eq!(read(&apics[1], reg::SVR), 0xff);
    assert_eq!(read(&apics[1], reg::ID), 1 << 24);
    apics[1].signals().clear(Signal::Init);
    write(&apics[0], reg::ICR_LOW, 0x8500);
    assert!(!apics[1].signals().is_raised(Signal::Init), "de-assert does nothing");
    write(&apics[0], reg::ICR_LOW, 0x4699);
    assert!(apics[1].signals().is_raised(Signal::Startup));
    assert_eq!(apics[1].startup_vector(), 0x99);
    write(&apics[0], reg::ICR_LOW, 0xc500);
    assert!(!apics[1].signals().is_raised(Signal::Startup));
    write(&apics[0], reg::ICR_LOW, 0x4400);
    assert!(apics[1].signals().is_raised(Signal::Nmi));
}

#[test]
fn one_shot_and_periodic_timers_keep_time() {
    let bench = enabled(1);
    let apic = &bench.bus.apics()[0];
    write(apic, reg::DIVIDE, 0b1011);
    write(apic, reg::LVT_TIMER, 0xee);
    write(apic, reg::INITIAL_COUNT, 1_000_000);
    bench.at(400_000);
    assert_eq!(read(apic, reg::CURRENT_COUNT), 600_000);
    bench.at(999_999);
    assert!(!interrupted(apic));
    bench.at(1_000_000);
    assert_eq!(apic.acknowledge(), Some(0xee));
    write(apic, reg::EOI, 0);
    assert_eq!(read(apic, reg::CURRENT_COUNT), 0);
    bench.at(9_000_000);
    assert!(!interrupted(apic));

    write(apic, reg::DIVIDE, 0b0011); // 16
    write(apic, reg::LVT_TIMER, 0x2_00ee);
    write(apic, reg::INITIAL_COUNT, 62_500);
    for tick in 10..20 {
        bench.at(tick * 1_000_000 - 1);
        assert!(!interrupted(apic));
        bench.at(tick * 1_000_000);
        assert_eq!(apic.acknowledge(), Some(0xee));
        write(apic, reg::EOI, 0);
        assert_eq!(read(apic, reg::CURRENT_COUNT), 62_500);
    }
    // Missed periods are one interrupt, and the phase is kept.
    bench.at(25_300_000);
    assert_eq!(apic.acknowledge(), Some(0xee));
    write(apic, reg::EOI, 0);
    bench.at(25_999_999);
    assert!(!interrupted(apic));
    bench.at(26_000_000);
    assert!(interrupted(apic));
}

#[test]
fn a_divider_changes_on_the_fly() {
    let bench = enabled(1);
    let apic = &bench.bus.apics()[0];
    bench.at(5000);
    write(apic, reg::DIVIDE, 0b1011);
    write(apic, reg::LVT_TIMER, 0xee);
    write(apic, reg::INITIAL_COUNT, 1000);
    bench.at(5400);
    write(apic, reg::DIVIDE, 0);
    assert_eq!(read(apic, reg::CURRENT_COUNT), 600);
    bench.at(5400 + 1199);
    assert!(!interrupted(apic));
    bench.at(5400 + 1200);
    assert!(interrupted(apic));
}

#[test]
fn tsc_deadline_fires_then_reads_zero() {
    let bench = enabled(1);
    let apic = &bench.bus.apics()[0];
    assert!(apic.write_msr(MSR_TSC_DEADLINE, 5));
    assert_eq!(apic.read_msr(MSR_TSC_DEADLINE), Some(0), "not in deadline mode");
    write(apic, reg::LVT_TIMER, 0x4_00ec);
    let deadline = TSC_HZ / 1000 + 1;
    apic.write_msr(MSR_TSC_DEADLINE, deadline);
    assert_eq!(apic.read_msr(MSR_TSC_DEADLINE), Some(deadline));
    bench.at(1_000_000);
    assert!(!interrupted(apic));
    bench.at(1_000_001);
    assert_eq!(apic.acknowledge(), Some(0xec));
    write(apic, reg::EOI, 0);
    assert_eq!(apic.read_msr(MSR_TSC_DEADLINE), Some(0));
    // One that has passed fires at once.
    apic.write_msr(MSR_TSC_DEADLINE, 1);
    assert_eq!(apic.acknowledge(), Some(0xec));
}

#[test]
fn x2apic_mode_and_its_transitions() {
    let bench = enabled(2);
    let apic = &bench.bus.apics()[1];
    let base = apic.read_msr(MSR_APIC_BASE).unwrap();
    assert_eq!(base, 0xfee0_0800);
    assert_eq!(bench.bus.apics()[0].read_msr(MSR_APIC_BASE), Some(0xfee0_0900));
    assert_eq!(apic.read_msr(0x802), None, "not in x2APIC mode yet");
    assert!(!apic.write_msr(MSR_APIC_BASE, DEFAULT_BASE | 1 << 10));
    assert!(apic.write_msr(MSR_APIC_BASE, base | 1 << 10));
    assert_eq!(apic.mmio_offset(DEFAULT_BASE + 0x20), None);
    assert_eq!(apic.read_msr(0x802), Some(1));
    assert_eq!(apic.read_msr(0x80d), Some(2));
    assert!(!apic.write_msr(0x80e, 0), "no DFR");
    assert!(!apic.write_msr(0x80b, 1), "only 0 ends an interrupt");
    assert!(apic.write_msr(0x83f, 0x77));
    assert_eq!(apic.acknowledge(), Some(0x77));
    assert!(apic.write_msr(0x80b, 0));
    // To everyone, 32 bits wide.
    assert!(apic.write_msr(0x830, 0xffff_ffff_0000_0078));
    assert_eq!(apic.read_msr(0x830), Some(0xffff_ffff_0000_0078));
    assert_eq!(bench.bus.apics()[0].acknowledge(), Some(0x78));
    assert_eq!(apic.acknowledge(), Some(0x78));
    assert!(!apic.write_msr(MSR_APIC_BASE, base), "the way back is by disabling");
    assert!(apic.write_msr(MSR_APIC_BASE, base & !(1 << 11)));
    assert_eq!(apic.mmio_offset(DEFAULT_BASE), None);
    assert!(apic.write_msr(MSR_APIC_BASE, base));
    assert_eq!(apic.mmio_offset(DEFAULT_BASE + 0x20), Some(0x20));
}

#[test]
fn errors_are_gathered_until_written() {
    let bench = enabled(1);
    let apic = &bench.bus.apics()[0];
    write(apic, reg::LVT_ERROR, 0xfe);
    write(apic, reg::ICR_LOW, 0x0f);
    assert_eq!(apic.acknowledge(), Some(0xfe));
    assert_eq!(read(apic, reg::ESR), 0);
    write(apic, reg::ESR, 0);
    assert_eq!(read(apic, reg::ESR), 0x20);
    write(apic, reg::ESR, 0);
    assert_eq!(read(apic, reg::ESR), 0);
    bench.bus.deliver(Message::fixed(Destination::default(), 3));
    write(apic, reg::ESR, 0);
    assert_eq!(read(apic, reg::ESR), 0x40);
}

#[test]
fn the_8259_comes_through_lint0_until_it_is_masked() {
    struct Pic;
    impl ExternalInterrupts for Pic {
        fn acknowledge(&self) -> u8 {
            0x30
        }
    }
    let bench = Bench::new(1);
    let apic = &bench.bus.apics()[0];
    let pic: Arc<dyn ExternalInterrupts> = Arc::new(Pic);
    apic.connect_external(Arc::downgrade(&pic));
    apic.set_level(LINT0, true);
    assert!(interrupted(apic));
    assert_eq!(apic.acknowledge(), Some(0x30));
    write(apic, reg::LVT_TIMER + 3, 0x1_0700);
    assert!(!interrupted(apic));
    assert_eq!(apic.acknowledge(), None);
    write(apic, reg::LVT_TIMER + 3, 0x700);
    assert!(interrupted(apic));
    apic.set_level(LINT0, false);
    assert!(!interrupted(apic));
}

#[test]
fn software_disable_masks_the_table() {
    let bench = enabled(1);
    let apic = &bench.bus.apics()[0];
    write(apic, reg::LVT_TIMER, 0xee);
    write(apic, reg::SVR, 0xff);
    assert_eq!(read(apic, reg::LVT_TIMER), 0x1_00ee);
    write(apic, reg::LVT_TIMER, 0xee);
    assert_eq!(read(apic, reg::LVT_TIMER), 0x1_00ee);
    assert!(!bench.bus.deliver(Message::fixed(Destination::default(), 0x50)));
}

/// Interrupts raised by other threads while the CPU acknowledges are neither lost nor made up.
#[test]
fn no_interrupt_is_lost_between_threads() {
    let bench = enabled(2);
    let sent = AtomicU64::new(0);
    let taken = AtomicU64::new(0);
    let target = &bench.bus.apics()[1];
    let destination = Destination { id: 1, ..Destination::default() };
    const ROUNDS: u64 = 20_000;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..=ROUNDS {
                sent.store(round, Ordering::SeqCst);
                assert!(bench.bus.deliver(Message::fixed(destination, 0x60)));
                // One at a time: each must be seen before the next is sent.
                while taken.load(Ordering::SeqCst) < round {
                    std::hint::spin_loop();
                    std::thread::yield_now();
                }
            }
        });
        scope.spawn(|| {
            for round in 1..=ROUNDS {
                target.signals().wait(Signal::Interrupt as u32, None);
                assert_eq!(target.acknowledge(), Some(0x60));
                assert_eq!(sent.load(Ordering::SeqCst), round);
                write(target, reg::EOI, 0);
                taken.store(round, Ordering::SeqCst);
            }
        });
    });
    assert_eq!(target.acknowledge(), None);
}
