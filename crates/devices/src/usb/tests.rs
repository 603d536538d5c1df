//! Devices as a host sees them that sends them packets itself.

use bus::{Clock, TimerQueue};
use input::{Axis, Button, InputEvent, InputHub, Key};

use super::hid::{Hid, HidKind};
use super::hub::UsbHub;
use super::*;

pub(crate) struct Host {
    pub(crate) hub: Arc<InputHub>,
    pub(crate) clock: Clock,
}

impl Host {
    pub(crate) fn new() -> Self {
        let clock = Clock::manual();
        Self { hub: InputHub::new(&TimerQueue::without_thread(clock.clone())), clock }
    }

    pub(crate) fn hid(&self, kind: HidKind) -> Arc<Peripheral> {
        let hid = Hid::new(kind, "7".into(), None, &self.hub, self.clock.clone());
        Peripheral::new("usb0", hid)
    }
}

/// One transaction; what came back.
pub(super) fn packet(
    device: &Peripheral,
    address: u8,
    endpoint: u8,
    token: Token,
    data: &mut [u8],
) -> Option<Handshake> {
    device.transact(&mut Transaction { address, endpoint, token, data })
}

/// A control transfer that reads.
pub(super) fn control_read(device: &Peripheral, address: u8, setup: [u8; 8]) -> Option<Vec<u8>> {
    let mut setup = setup;
    let length = usize::from(u16::from_le_bytes([setup[6], setup[7]]));
    assert_eq!(packet(device, address, 0, Token::Setup, &mut setup), Some(Handshake::Ack(8)));
    let mut answer = Vec::new();
    loop {
        let mut room = [0; 64];
        match packet(device, address, 0, Token::In, &mut room)? {
            Handshake::Ack(len) => {
                answer.extend(&room[..len]);
                if len < 8 || answer.len() >= length {
                    break;
                }
            }
            Handshake::Stall => return None,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(packet(device, address, 0, Token::Out, &mut []), Some(Handshake::Ack(0)));
    Some(answer)
}

/// A control transfer that writes; whether it was taken.
pub(super) fn control_write(device: &Peripheral, address: u8, setup: [u8; 8], data: &[u8]) -> bool {
    let mut setup = setup;
    assert_eq!(packet(device, address, 0, Token::Setup, &mut setup), Some(Handshake::Ack(8)));
    for chunk in data.chunks(8) {
        let mut chunk = chunk.to_vec();
        match packet(device, address, 0, Token::Out, &mut chunk) {
            Some(Handshake::Ack(_)) => {}
            _ => return false,
        }
    }
    packet(device, address, 0, Token::In, &mut []) == Some(Handshake::Ack(0))
}

/// Gives the device an address and its configuration.
pub(super) fn set_up(device: &Peripheral, address: u8) {
    device.bus_reset();
    assert!(control_write(device, 0, [0, 5, address, 0, 0, 0, 0, 0], &[]));
    assert!(control_write(device, address, [0, 9, 1, 0, 0, 0, 0, 0], &[]));
}

fn poll(device: &Peripheral, address: u8) -> Option<Vec<u8>> {
    let mut room = [0; 64];
    match packet(device, address, 1, Token::In, &mut room) {
        Some(Handshake::Ack(len)) => Some(room[..len].to_vec()),
        Some(Handshake::Nak) => None,
        other => panic!("{other:?}"),
    }
}

#[test]
fn descriptors_are_read_in_packets() {
    let host = Host::new();
    let keyboard = host.hid(HidKind::Keyboard);
    let device = control_read(&keyboard, 0, [0x80, 6, 0, 1, 0, 0, 64, 0]).unwrap();
    assert_eq!(device.len(), 18);
    assert_eq!(device[8..12], [0x27, 0x06, 1, 0]);
    let config = control_read(&keyboard, 0, [0x80, 6, 0, 2, 0, 0, 255, 0]).unwrap();
    assert_eq!(config.len(), 34);
    assert_eq!(config[2..4], [34, 0]);
    let report = control_read(&keyboard, 0, [0x81, 6, 0, 0x22, 0, 0, 255, 0]).unwrap();
    assert_eq!(report.len(), usize::from(config[25]));
    let serial = control_read(&keyboard, 0, [0x80, 6, 11, 3, 9, 4, 255, 0]).unwrap();
    assert_eq!(serial, [4, 3, b'7', 0]);
    // The length that the host asks for is kept to, and what is not there stalls.
    assert_eq!(control_read(&keyboard, 0, [0x80, 6, 0, 1, 0, 0, 8, 0]).unwrap().len(), 8);
    assert_eq!(control_read(&keyboard, 0, [0x80, 6, 0, 6, 0, 0, 10, 0]), None);
    assert_eq!(control_read(&keyboard, 0, [0x80, 6, 99, 3, 0, 0, 10, 0]), None);
    // Less room than a packet is babble.
    let mut setup = [0x80, 6, 0, 1, 0, 0, 18, 0];
    packet(&keyboard, 0, 0, Token::Setup, &mut setup);
    assert_eq!(packet(&keyboard, 0, 0, Token::In, &mut [0; 4]), Some(Handshake::Babble));
}

#[test]
fn addresses_come_into_force_after_their_request() {
    let host = Host::new();
    let mouse = host.hid(HidKind::Mouse);
    let mut setup = [0, 5, 9, 0, 0, 0, 0, 0];
    packet(&mouse, 0, 0, Token::Setup, &mut setup);
    assert_eq!(packet(&mouse, 9, 0, Token::In, &mut []), None);
    assert_eq!(packet(&mouse, 0, 0, Token::In, &mut []), Some(Handshake::Ack(0)));
    assert_eq!(packet(&mouse, 0, 0, Token::In, &mut []), None);
    assert!(!control_write(&mouse, 9, [0, 5, 200, 0, 0, 0, 0, 0], &[]));
    // Without a configuration there is only the control endpoint.
    assert_eq!(packet(&mouse, 9, 1, Token::In, &mut [0; 8]), Some(Handshake::Stall));
    assert!(control_write(&mouse, 9, [0, 9, 1, 0, 0, 0, 0, 0], &[]));
    assert_eq!(control_read(&mouse, 9, [0x80, 8, 0, 0, 0, 0, 1, 0]), Some(vec![1]));
    assert_eq!(poll(&mouse, 9), None);
    // Halted, and no longer.
    assert!(control_write(&mouse, 9, [2, 3, 0, 0, 0x81, 0, 0, 0], &[]));
    assert_eq!(control_read(&mouse, 9, [0x82, 0, 0, 0, 0x81, 0, 2, 0]), Some(vec![1, 0]));
    assert_eq!(packet(&mouse, 9, 1, Token::In, &mut [0; 8]), Some(Handshake::Stall));
    assert!(control_write(&mouse, 9, [2, 1, 0, 0, 0x81, 0, 0, 0], &[]));
    assert_eq!(poll(&mouse, 9), None);
    mouse.bus_reset();
    assert_eq!(control_read(&mouse, 0, [0x80, 8, 0, 0, 0, 0, 1, 0]), Some(vec![0]));
}

#[test]
fn a_keyboard_reports_its_keys() {
    let host = Host::new();
    let keyboard = host.hid(HidKind::Keyboard);
    set_up(&keyboard, 3);
    let key = |key, down| host.hub.send(None, &[InputEvent::Key { key, down }]);
    key(Key::ShiftR, true);
    key(Key::A, true);
    key(Key::A, true);
    key(Key::A, false);
    assert_eq!(poll(&keyboard, 3).unwrap(), [0x20, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(poll(&keyboard, 3).unwrap(), [0x20, 0, 4, 0, 0, 0, 0, 0]);
    assert_eq!(poll(&keyboard, 3).unwrap(), [0x20, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(poll(&keyboard, 3), None);
    for letter in [Key::A, Key::B, Key::C, Key::D, Key::E, Key::F, Key::G] {
        key(letter, true);
    }
    let last = std::iter::from_fn(|| poll(&keyboard, 3)).last().unwrap();
    assert_eq!(last, [0x20, 0, 1, 1, 1, 1, 1, 1], "too many to tell");
    key(Key::B, false);
    assert_eq!(poll(&keyboard, 3).unwrap(), [0x20, 0, 4, 6, 7, 8, 9, 10]);
    let now = control_read(&keyboard, 3, [0xa1, 1, 0, 1, 0, 0, 8, 0]).unwrap();
    assert_eq!(now, [0x20, 0, 4, 6, 7, 8, 9, 10]);
    // LEDs, protocol, and a report now and then if the host wants that.
    assert!(control_write(&keyboard, 3, [0x21, 9, 0, 2, 0, 0, 1, 0], &[2]));
    assert_eq!(control_read(&keyboard, 3, [0xa1, 1, 0, 2, 0, 0, 1, 0]), Some(vec![2]));
    assert!(control_write(&keyboard, 3, [0x21, 11, 0, 0, 0, 0, 0, 0], &[]));
    assert_eq!(control_read(&keyboard, 3, [0xa1, 3, 0, 0, 0, 0, 1, 0]), Some(vec![0]));
    assert!(control_write(&keyboard, 3, [0x21, 10, 0, 5, 0, 0, 0, 0], &[]));
    host.clock.set(19_999_999);
    assert_eq!(poll(&keyboard, 3), None);
    host.clock.set(20_000_000);
    assert!(poll(&keyboard, 3).is_some());
    assert_eq!(poll(&keyboard, 3), None);
}

#[test]
fn pointers_report_movements_positions_and_every_click() {
    let host = Host::new();
    let mouse = host.hid(HidKind::Mouse);
    set_up(&mouse, 1);
    let button = |button, down| host.hub.send(None, &[InputEvent::Button { button, down }]);
    let by = |x, y| {
        let event = |axis, value| InputEvent::Relative { axis, value };
        host.hub.send(None, &[event(Axis::X, x), event(Axis::Y, y)]);
    };
    by(5, -3);
    by(1, 1);
    assert_eq!(poll(&mouse, 1).unwrap(), [0, 6, 0xfe, 0]);
    assert_eq!(poll(&mouse, 1), None);
    by(300, 0);
    let moved: i32 =
        std::iter::from_fn(|| poll(&mouse, 1)).map(|report| i32::from(report[1] as i8)).sum();
    assert_eq!(moved, 300);
    for down in [true, false, true, false] {
        button(Button::Right, down);
    }
    button(Button::WheelUp, true);
    let reports: Vec<_> = std::iter::from_fn(|| poll(&mouse, 1)).collect();
    assert_eq!(reports, [[2, 0, 0, 0], [0, 0, 0, 0], [2, 0, 0, 0], [0, 0, 0, 1]]);

    let tablet = host.hid(HidKind::Tablet);
    set_up(&tablet, 2);
    let at = |x, y| {
        let event = |axis, value| InputEvent::Absolute { axis, value };
        host.hub.send(None, &[event(Axis::X, x), event(Axis::Y, y)]);
    };
    at(0x1234, 0x7fff);
    assert_eq!(poll(&tablet, 2).unwrap(), [0, 0x34, 0x12, 0xff, 0x7f, 0]);
    assert!(host.hub.pointers().iter().any(|p| p.absolute && p.current), "it took over");
    button(Button::Left, true);
    button(Button::WheelDown, true);
    assert_eq!(poll(&tablet, 2).unwrap(), [1, 0x34, 0x12, 0xff, 0x7f, 0xff]);
    assert_eq!(poll(&tablet, 2), None);
    assert_eq!(poll(&mouse, 1), None);
}

#[test]
fn a_hub_forwards_to_its_enabled_ports() {
    let host = Host::new();
    let function = UsbHub::new("1".into(), 8);
    let bus = UsbBus::default();
    let hub = Peripheral::new("hub0", function.clone());
    bus.add_ports(None, &function);
    let mouse = host.hid(HidKind::Mouse);
    bus.take(Some("2")).unwrap().plug(mouse.clone());
    assert!(bus.take(Some("2")).is_none());
    assert_eq!(bus.free(), 7);
    set_up(&hub, 5);
    assert_eq!(poll(&hub, 5).unwrap(), [4, 0]);
    let status = |port| control_read(&hub, 5, [0xa3, 0, 0, 0, port, 0, 4, 0]);
    assert_eq!(status(2), Some(vec![1, 1, 1, 0]));
    assert_eq!(status(1), Some(vec![0, 1, 0, 0]));
    assert_eq!(status(9), None);
    let feature = |request, feature, port| {
        control_write(&hub, 5, [0x23, request, feature, 0, port, 0, 0, 0], &[])
    };
    assert!(feature(1, 16, 2));
    assert_eq!(poll(&hub, 5), None);
    assert_eq!(packet(&hub, 0, 0, Token::In, &mut []), None, "the port is off");
    assert!(feature(3, 4, 2));
    assert_eq!(status(2), Some(vec![3, 1, 0x10, 0]));
    assert_eq!(poll(&hub, 5).unwrap(), [4, 0]);
    assert!(feature(1, 20, 2));
    assert!(control_write(&hub, 0, [0, 5, 6, 0, 0, 0, 0, 0], &[]), "through the hub");
    assert!(control_write(&hub, 6, [0, 9, 1, 0, 0, 0, 0, 0], &[]));
    assert!(feature(3, 2, 2));
    assert_eq!(packet(&hub, 6, 0, Token::In, &mut []), None, "suspended");
    assert!(feature(1, 2, 2));
    assert_eq!(poll(&hub, 6), None);
    assert!(!feature(3, 77, 2));
}

#[test]
fn a_hub_can_have_fewer_ports() {
    let function = UsbHub::new("1".into(), 3);
    let bus = UsbBus::default();
    let hub = Peripheral::new("hub0", function.clone());
    bus.add_ports(None, &function);
    assert_eq!(bus.free(), 3);
    bus.take(Some("3")).unwrap().plug(Host::new().hid(HidKind::Mouse));
    assert!(bus.take(Some("4")).is_none());
    set_up(&hub, 5);
    assert_eq!(poll(&hub, 5).unwrap(), [8], "a bit for the hub and each port");
    let descriptor = control_read(&hub, 5, [0xa0, 6, 0, 0x29, 0, 0, 16, 0]);
    assert_eq!(descriptor, Some(vec![9, 0x29, 3, 0x0a, 0, 1, 0, 0, 0xff]));
    let larger = UsbHub::new("1".into(), 8);
    assert!(larger.restore(&function.save()).is_err(), "the state of a hub with fewer ports");
}
