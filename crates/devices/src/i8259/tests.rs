//! The pair against the data sheet: priorities, modes, and the ways to end an interrupt.

use super::*;
use crate::irq::testing::Recorder;

/// Initialised as Linux does: vectors 0x30 and 0x38, nothing masked.
fn initialised(icw4: u8) -> (Arc<I8259>, Arc<Recorder>) {
    let recorder = Arc::new(Recorder::default());
    let pic = I8259::new(IrqLine::new(recorder.clone(), 0));
    for (port, vector, icw3) in [(MASTER_PORT, 0x30, 4), (SLAVE_PORT, 0x38, 2)] {
        pic.write_port(port, 0x11);
        pic.write_port(port + 1, vector);
        pic.write_port(port + 1, icw3);
        pic.write_port(port + 1, icw4);
        pic.write_port(port + 1, 0);
    }
    (pic, recorder)
}

#[test]
fn an_edge_is_delivered_once_and_by_priority() {
    let (pic, out) = initialised(1);
    pic.set_level(4, true);
    pic.set_level(1, true);
    assert!(out.level(0));
    assert_eq!(pic.acknowledge(), 0x31);
    // 4 is less urgent than 1, which is in service.
    assert!(!out.level(0));
    pic.write_port(MASTER_PORT, 0x20);
    assert!(out.level(0));
    assert_eq!(pic.acknowledge(), 0x34);
    pic.write_port(MASTER_PORT, 0x64);
    assert!(!out.level(0), "the lines are still high, but there was no new edge");
    pic.set_level(4, false);
    pic.set_level(4, true);
    assert!(out.level(0));
}

#[test]
fn the_slave_comes_through_the_cascade() {
    let (pic, out) = initialised(1);
    pic.set_level(12, true);
    assert!(out.level(0));
    assert_eq!(pic.acknowledge(), 0x3c);
    pic.write_port(MASTER_PORT, 0x0b);
    assert_eq!(pic.read_port(MASTER_PORT), 4);
    pic.write_port(SLAVE_PORT, 0x0b);
    assert_eq!(pic.read_port(SLAVE_PORT), 0x10);
    pic.write_port(SLAVE_PORT, 0x20);
    pic.write_port(MASTER_PORT, 0x20);
    pic.write_port(SLAVE_PORT, 0x0b);
    assert_eq!(pic.read_port(SLAVE_PORT), 0);
}

#[test]
fn a_request_that_went_away_is_spurious_and_not_in_service() {
    let (pic, out) = initialised(1);
    pic.write_port(ELCR_PORT, 0x20);
    pic.set_level(5, true);
    assert!(out.level(0));
    pic.set_level(5, false);
    assert!(!out.level(0));
    assert_eq!(pic.acknowledge(), 0x37);
    pic.write_port(MASTER_PORT, 0x0b);
    assert_eq!(pic.read_port(MASTER_PORT), 0);
}

#[test]
fn a_level_repeats_until_it_falls() {
    let (pic, out) = initialised(1);
    pic.write_port(ELCR_PORT + 1, 0xff);
    assert_eq!(pic.read_port(ELCR_PORT + 1), 0xde);
    pic.set_level(10, true);
    for _ in 0..2 {
        assert_eq!(pic.acknowledge(), 0x3a);
        pic.write_port(SLAVE_PORT, 0x20);
        pic.write_port(MASTER_PORT, 0x20);
        assert!(out.level(0));
    }
    pic.set_level(10, false);
    assert!(!out.level(0));
}

#[test]
fn masks_and_special_mask_mode() {
    let (pic, out) = initialised(1);
    pic.set_level(3, true);
    assert_eq!(pic.acknowledge(), 0x33);
    pic.set_level(6, true);
    assert!(!out.level(0));
    // In special mask mode a masked input in service holds nothing back.
    pic.write_port(MASTER_PORT, 0x68);
    pic.write_port(MASTER_PORT + 1, 1 << 3);
    assert!(out.level(0));
    assert_eq!(pic.acknowledge(), 0x36);
    assert_eq!(pic.read_port(MASTER_PORT + 1), 1 << 3);
}

#[test]
fn automatic_end_of_interrupt_with_rotation() {
    let (pic, out) = initialised(3);
    pic.write_port(MASTER_PORT, 0x80);
    pic.set_level(0, true);
    assert_eq!(pic.acknowledge(), 0x30);
    pic.set_level(0, false);
    // 0 is now the least urgent.
    pic.set_level(0, true);
    pic.set_level(7, true);
    assert_eq!(pic.acknowledge(), 0x37);
    assert_eq!(pic.acknowledge(), 0x30);
    assert!(!out.level(0));
}

#[test]
fn poll_acknowledges() {
    let (pic, out) = initialised(1);
    pic.write_port(MASTER_PORT, 0x0c);
    assert_eq!(pic.read_port(MASTER_PORT), 0);
    pic.set_level(6, true);
    pic.write_port(MASTER_PORT, 0x0c);
    assert_eq!(pic.read_port(MASTER_PORT), 0x86);
    assert!(!out.level(0));
    pic.write_port(MASTER_PORT, 0x0b);
    assert_eq!(pic.read_port(MASTER_PORT), 0x40);
}

#[test]
fn rotation_on_specific_end_of_interrupt_and_set_priority() {
    let (pic, _) = initialised(1);
    pic.write_port(MASTER_PORT, 0xc0 | 4);
    for pin in [1, 5] {
        pic.set_level(pin, true);
    }
    assert_eq!(pic.acknowledge(), 0x35);
    pic.write_port(MASTER_PORT, 0xe0 | 5);
    pic.set_level(5, false);
    pic.set_level(5, true);
    assert_eq!(pic.acknowledge(), 0x31);
}
