//! The balloon with a driver of the test's own.

use bus::{Clock, Device, TimerQueue};

use super::*;
use crate::virtio::VirtioPciOptions;
use crate::virtio::testing::{Machine, PLAIN, RAM, READ, conformance};

const LIST: u64 = 0x10000;

struct Fixture {
    clock: Clock,
    timers: TimerQueue,
    balloon: Arc<VirtioBalloon>,
    machine: Machine,
}

fn fixture() -> Fixture {
    let clock = Clock::manual();
    let timers = TimerQueue::without_thread(clock.clone());
    let memory = Machine::memory();
    let balloon = VirtioBalloon::new(memory.clone(), RAM, true, &timers);
    let options = VirtioPciOptions { id: "balloon0".into(), ..Default::default() };
    let machine = Machine::fresh(memory, balloon.clone(), options);
    Fixture { clock, timers, balloon, machine }
}

fn mapped() -> Fixture {
    let fixture = fixture();
    fixture.machine.map_bars();
    fixture
}

#[test]
fn the_guest_is_told_the_target_and_tells_what_it_gave() {
    let Fixture { balloon, machine, .. } = mapped();
    assert_eq!(machine.config(0, 4), 0x1002_1af4);
    machine.set_config(0x10, 4, u32::MAX);
    assert_eq!(machine.config(0x10, 4), 0xffff_ffc1);
    assert_eq!(machine.config(0x34, 1), 0x84, "no MSI-X");
    machine.negotiate(PLAIN);
    machine.driver_ok();
    let changes = Arc::new(Mutex::new(Vec::new()));
    let seen = changes.clone();
    balloon.set_change_hook(Box::new(move |actual| seen.lock().unwrap().push(actual)));
    let generation = machine.read(0x15, 1);
    balloon.set_target(RAM / 2);
    assert!(machine.intx());
    assert_eq!(machine.read(0x1000, 1), 3);
    assert!(!machine.intx());
    assert_ne!(machine.read(0x15, 1), generation);
    assert_eq!(machine.read(0x2000, 4), (RAM / 2) >> 12);
    assert_eq!(balloon.guest_memory(), RAM);
    machine.write(0x2004, 4, 100);
    machine.write(0x2004, 4, 100);
    assert_eq!(balloon.guest_memory(), RAM - 100 * 4096);
    assert_eq!(*changes.lock().unwrap(), [RAM - 100 * 4096]);
    machine.write(0x2004, 4, 0xffff_ffff);
    assert_eq!(balloon.guest_memory(), 0);
    balloon.set_target(u64::MAX);
    assert_eq!(machine.read(0x2000, 4), 0);
}

#[test]
fn inflated_pages_are_given_to_the_host() {
    let Fixture { machine, .. } = mapped();
    machine.negotiate(PLAIN);
    let mut inflate = machine.queue(0, 128);
    let mut deflate = machine.queue(1, 128);
    machine.driver_ok();
    machine.memory.write(0x8_0000, &[7; 0x8000]).unwrap();
    // A run, a single page, and pages that are no RAM at all.
    let pages: [u32; 6] = [0x80, 0x81, 0x83, 0xffff_ffff, 0x400, 0x85];
    let list: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
    machine.memory.write(LIST, &list).unwrap();
    inflate.submit(&[(LIST, 16, READ), (LIST + 16, 10, READ)]);
    inflate.kick();
    inflate.wait_used();
    let first = |page: u64| {
        let mut byte = [0];
        machine.memory.read(page << 12, &mut byte).unwrap();
        byte[0]
    };
    let left: Vec<u8> = (0x80..0x88).map(first).collect();
    assert_eq!(left, [0, 0, 7, 0, 7, 0, 7, 7]);
    deflate.submit(&[(LIST, 24, READ)]);
    deflate.kick();
    deflate.wait_used();
}

#[test]
fn a_list_without_end_is_not_read_to_its_end() {
    let Fixture { machine, .. } = mapped();
    machine.negotiate(PLAIN);
    let mut inflate = machine.queue(0, 128);
    machine.driver_ok();
    machine.memory.write(0x8_0000, &[7; 0x2000]).unwrap();
    // Pages that are no RAM, then one on each side of the limit.
    let list_len = 4 * (MAX_PAGES + 1);
    let list_at = RAM - list_len;
    machine.memory.write(list_at, &vec![0xff; list_len as usize]).unwrap();
    machine.memory.write(RAM - 8, &[0x80, 0, 0, 0, 0x81, 0, 0, 0]).unwrap();
    inflate.submit(&[(list_at, list_len as u32, READ)]);
    inflate.kick();
    inflate.wait_used();
    let mut bytes = [0; 0x2000];
    machine.memory.read(0x8_0000, &mut bytes).unwrap();
    assert_eq!((bytes[0], bytes[0x1000]), (0, 7));
}

#[test]
fn statistics_are_polled() {
    let Fixture { clock, timers, balloon, machine } = mapped();
    machine.negotiate(PLAIN);
    let mut stats = machine.queue(2, 128);
    machine.driver_ok();
    let tell = |tag: u16, value: u64| {
        machine.memory.write(LIST, &tag.to_le_bytes()).unwrap();
        machine.memory.write(LIST + 2, &value.to_le_bytes()).unwrap();
        machine.memory.write(LIST + 10, &0xffff_u16.to_le_bytes()).unwrap();
    };
    tell(5, 1234);
    stats.submit(&[(LIST, 20, READ)]);
    stats.kick();
    machine.wait("statistics", || balloon.stats().values[5] == Some(1234));
    assert_eq!(balloon.stats().values.iter().flatten().count(), 1);
    assert_eq!(stats.used_index(), 0, "the buffer is kept");
    clock.set(1_000_000_000);
    balloon.set_polling_interval(2);
    stats.wait_used();
    tell(4, 99);
    stats.submit(&[(LIST, 20, READ)]);
    stats.kick();
    machine.wait("statistics", || balloon.stats().values[4] == Some(99));
    assert_eq!(balloon.stats().updated_ns, 1_000_000_000);

    machine.function.core().pause();
    let saved = machine.function.save();
    machine.function.reset();
    assert_eq!(balloon.stats(), BalloonStats::default());
    machine.function.restore(&saved).unwrap();
    assert_eq!(machine.function.save(), saved);
    machine.function.core().resume();
    clock.set(3_000_000_000);
    timers.fire_due();
    stats.wait_used();
    balloon.set_polling_interval(0);
    assert_eq!(balloon.polling_interval(), 0);
}

#[test]
fn keeps_the_promises_of_every_device() {
    let Fixture { balloon, machine, .. } = &fixture();
    conformance(machine, || {
        machine.negotiate(PLAIN);
        let mut stats = machine.queue(2, 128);
        machine.driver_ok();
        machine.write(0x2004, 4, 3);
        machine.write(0x200c, 4, 0xaa);
        machine.memory.write(LIST, &[1; 10]).unwrap();
        stats.submit(&[(LIST, 10, READ)]);
        stats.kick();
        machine.wait("statistics", || machine.function.core().features() != 0);
        balloon.set_polling_interval(0);
    });
}
