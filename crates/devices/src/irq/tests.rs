//! Where lines end, and what a change of route does to a level.

use super::testing::Recorder;
use super::*;

fn setup() -> (Arc<IrqRouter>, Arc<Recorder>, Arc<Recorder>) {
    let (pic, ioapic) = (Arc::new(Recorder::default()), Arc::new(Recorder::default()));
    (IrqRouter::new(pic.clone(), ioapic.clone()), pic, ioapic)
}

#[test]
fn isa_lines_reach_both_controllers_and_the_timer_is_on_pin_2() {
    let (router, pic, ioapic) = setup();
    router.isa_line(line::COM1).set(true);
    assert!(pic.level(4) && ioapic.level(4));
    router.isa_line(line::TIMER).set(true);
    assert!(pic.level(0) && ioapic.level(2) && !ioapic.level(0));
    router.isa_line(line::COM1).set(false);
    assert!(!pic.level(4) && !ioapic.level(4));
}

#[test]
fn pirqs_are_routed_and_a_route_takes_the_level_along() {
    let (router, pic, _) = setup();
    for (pirq, line) in [10, 10, 11, 11].into_iter().enumerate() {
        router.set_route(pirq, Some(line));
    }
    let [a, b, c, _] = router.pirq_lines();
    a.set(true);
    b.set(true);
    assert!(pic.level(10) && !pic.level(11));
    a.set(false);
    assert!(pic.level(10), "PIRQB still asserts it");
    c.set(true);
    assert!(pic.level(11));
    b.set(false);
    assert!(!pic.level(10));
    router.set_route(2, Some(5));
    assert!(pic.level(5) && !pic.level(11));
    router.set_route(2, None);
    assert!(!pic.level(5));
}

#[test]
fn a_line_shared_by_isa_and_pci_is_their_or() {
    let (router, pic, _) = setup();
    router.set_route(0, Some(9));
    let sci = router.isa_line(line::SCI);
    let [pirq, ..] = router.pirq_lines();
    sci.set(true);
    pirq.set(true);
    sci.set(false);
    assert!(pic.level(9));
    pirq.set(false);
    assert!(!pic.level(9));
}
