//! The source of randomness with a driver of the test's own.

use std::time::Duration;

use bus::{Clock, Device, TimerQueue};

use super::*;
use crate::virtio::VirtioPciOptions;
use crate::virtio::testing::{Machine, PLAIN, Queue, WRITE, conformance};

const AT: u64 = 0x10000;

fn machine(limit: Option<RngLimit>, timers: &TimerQueue) -> Machine {
    let options = VirtioPciOptions { id: "rng0".into(), ..Default::default() };
    Machine::new(Machine::memory(), VirtioRng::new(limit, timers), options)
}

fn start(machine: &Machine) -> Queue<'_> {
    machine.negotiate(PLAIN);
    let queue = machine.queue(0, 8);
    machine.driver_ok();
    queue
}

#[test]
fn gives_randomness() {
    let timers = TimerQueue::without_thread(Clock::manual());
    let machine = machine(None, &timers);
    assert_eq!(machine.config(0, 4), 0x1005_1af4);
    machine.set_config(0x10, 4, u32::MAX);
    assert_eq!(machine.config(0x10, 4), 0xffff_ffe1);
    let mut queue = start(&machine);
    queue.submit(&[(AT, 32, WRITE), (AT + 0x1000, 32, WRITE)]);
    queue.kick();
    assert_eq!(queue.wait_used().1, 64);
    let mut random = [0; 64];
    machine.memory.read(AT, &mut random[..32]).unwrap();
    machine.memory.read(AT + 0x1000, &mut random[32..]).unwrap();
    assert!(random.iter().filter(|&&byte| byte != 0).count() > 40);
    queue.submit(&[(0, 0x20_0000, WRITE)]);
    queue.kick();
    assert_eq!(u64::from(queue.wait_used().1), MAX_REQUEST);
}

#[test]
fn a_limit_holds_until_the_period_ends_also_over_a_restore() {
    let clock = Clock::manual();
    let timers = TimerQueue::without_thread(clock.clone());
    let limit = RngLimit { max_bytes: 10, period: Duration::from_millis(5) };
    let machine = machine(Some(limit), &timers);
    let mut queue = start(&machine);
    queue.submit(&[(AT, 8, WRITE)]);
    queue.submit(&[(AT, 8, WRITE)]);
    queue.submit(&[(AT, 8, WRITE)]);
    queue.kick();
    assert_eq!(queue.wait_used().1, 8);
    assert_eq!(queue.wait_used().1, 2);
    machine.function.core().pause();
    let saved = machine.function.save();
    machine.function.reset();
    machine.function.restore(&saved).unwrap();
    machine.function.core().resume();
    assert_eq!(queue.used_index(), 2);
    clock.set(5_000_000);
    timers.fire_due();
    assert_eq!(queue.wait_used().1, 8);
}

#[test]
fn keeps_the_promises_of_every_device() {
    let timers = TimerQueue::without_thread(Clock::manual());
    let limit = RngLimit { max_bytes: 10, period: Duration::from_millis(5) };
    let options = VirtioPciOptions { id: "rng0".into(), ..Default::default() };
    let device = VirtioRng::new(Some(limit), &timers);
    let machine = Machine::fresh(Machine::memory(), device, options);
    conformance(&machine, || {
        let mut queue = start(&machine);
        queue.submit(&[(AT, 8, WRITE)]);
        queue.kick();
        queue.wait_used();
    });
}
