//! Keyboards, mice and tablets (Device Class Definition for Human Interface Devices, version 1.11).

mod keyboard;
mod pointer;

use std::sync::{Arc, Mutex, OnceLock, Weak};

use bus::Clock;
use input::{EventKinds, InputEvent, InputHub, InputSink, SinkHandle, SinkSpec, Target};
use serde::{Deserialize, Serialize};
use vmstate::{RestoreError, Saved, State};

use super::descriptor::{ConfigurationInfo, Descriptors, DeviceInfo, EndpointInfo, attribute};
use super::{Handshake, Setup, Stalled, UsbFunction, Waker};
use crate::lock;
use keyboard::Keyboard;
use pointer::Pointer;

/// Requests, by [`Setup::code`].
mod request {
    pub(super) const GET_DESCRIPTOR: u16 = 0x8106;
    pub(super) const GET_REPORT: u16 = 0xa101;
    pub(super) const GET_IDLE: u16 = 0xa102;
    pub(super) const GET_PROTOCOL: u16 = 0xa103;
    pub(super) const SET_REPORT: u16 = 0x2109;
    pub(super) const SET_IDLE: u16 = 0x210a;
    pub(super) const SET_PROTOCOL: u16 = 0x210b;
}

/// Types of descriptors, in the high byte of a request's value.
const HID_DESCRIPTOR: u16 = 0x2100;
const REPORT_DESCRIPTOR: u16 = 0x2200;
/// Type of a report, likewise.
const INPUT_REPORT: u16 = 1;
const OUTPUT_REPORT: u16 = 2;

/// Unit of the idle rate, in ns.
const IDLE_UNIT: u64 = 4_000_000;

/// What a human interface device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HidKind {
    /// A keyboard.
    Keyboard,
    /// A mouse, which tells of movements.
    Mouse,
    /// A tablet, which tells of positions.
    Tablet,
}

/// What tells one kind from another.
struct Traits {
    product: &'static str,
    /// Numbers of the strings that name product, serial number and configuration.
    strings: [u8; 3],
    configuration: &'static str,
    /// Begins the serial number.
    serial: &'static str,
    /// Name of the sink.
    sink: &'static str,
    kinds: EventKinds,
    /// Version of the class.
    version: u16,
    /// Protocol of the interface that boot firmware knows, with its subclass.
    class: [u8; 3],
    packet: u8,
    report: &'static [u8],
}

impl HidKind {
    fn traits(self) -> Traits {
        match self {
            Self::Keyboard => Traits {
                product: "QEMU USB Keyboard",
                strings: [4, 11, 8],
                configuration: "HID Keyboard",
                serial: "68284",
                sink: "QEMU HID Keyboard",
                kinds: EventKinds::KEY,
                version: 0x0111,
                class: [3, 1, 1],
                packet: 8,
                report: keyboard::REPORT_DESCRIPTOR,
            },
            Self::Mouse => Traits {
                product: "QEMU USB Mouse",
                strings: [2, 9, 6],
                configuration: "HID Mouse",
                serial: "89126",
                sink: "QEMU HID Mouse",
                kinds: EventKinds::BUTTON.union(EventKinds::RELATIVE),
                version: 0x0001,
                class: [3, 1, 2],
                packet: 4,
                report: pointer::MOUSE_DESCRIPTOR,
            },
            Self::Tablet => Traits {
                product: "QEMU USB Tablet",
                strings: [3, 10, 7],
                configuration: "HID Tablet",
                serial: "28754",
                sink: "QEMU HID Tablet",
                kinds: EventKinds::BUTTON.union(EventKinds::ABSOLUTE),
                version: 0x0001,
                class: [3, 0, 0],
                packet: 8,
                report: pointer::TABLET_DESCRIPTOR,
            },
        }
    }

    /// The serial number of one that is reached by `path`.
    pub fn serial(self, path: &str) -> String {
        format!("{}-{path}", self.traits().serial)
    }
}

/// What is behind the interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Hands {
    Keyboard(Keyboard),
    Pointer(Pointer),
}

impl Hands {
    fn new(kind: HidKind) -> Self {
        match kind {
            HidKind::Keyboard => Self::Keyboard(Keyboard::default()),
            HidKind::Mouse => Self::Pointer(Pointer::mouse()),
            HidKind::Tablet => Self::Pointer(Pointer::tablet()),
        }
    }

    /// The next report, if something happened.
    fn next(&mut self, boot: bool) -> Option<Vec<u8>> {
        match self {
            Self::Keyboard(keyboard) => keyboard.next(),
            Self::Pointer(pointer) => pointer.next(boot),
        }
    }

    /// A report of how things are.
    fn now(&self, boot: bool) -> Vec<u8> {
        match self {
            Self::Keyboard(keyboard) => keyboard.now(),
            Self::Pointer(pointer) => pointer.now(boot),
        }
    }
}

/// Saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct HidState {
    hands: Hands,
    /// Reports have the fixed form that firmware knows.
    boot: bool,
    /// How often a report is repeated though nothing happened, in units of 4 ms; 0 for never.
    idle: u8,
    leds: u8,
    /// When the last report was sent, in ns of guest time.
    reported_ns: u64,
    /// The guest asked for a report since it configured the device.
    polled: bool,
}

impl State for HidState {
    const NAME: &'static str = "usb-hid";
    const VERSION: u32 = 1;

    fn validate(&self) -> Result<(), String> {
        match &self.hands {
            Hands::Keyboard(keyboard) => keyboard.validate(),
            Hands::Pointer(pointer) => pointer.validate(),
        }
    }
}

impl HidState {
    fn new(kind: HidKind) -> Self {
        let hands = Hands::new(kind);
        Self { hands, boot: false, idle: 0, leds: 0, reported_ns: 0, polled: false }
    }
}

/// A human interface device.
pub struct Hid {
    kind: HidKind,
    descriptors: Descriptors,
    hid_descriptor: Vec<u8>,
    clock: Clock,
    state: Mutex<HidState>,
    waker: OnceLock<Waker>,
    sink: OnceLock<SinkHandle>,
}

impl Hid {
    /// A device with this serial number that gets its events from `hub`, those of `console` if it is bound
    /// to one. Guest time is that of `clock`.
    pub fn new(
        kind: HidKind,
        serial: String,
        console: Option<Target>,
        hub: &Arc<InputHub>,
        clock: Clock,
    ) -> Arc<Self> {
        let Traits { product, strings, configuration, sink, kinds, version, .. } = kind.traits();
        let Traits { class, packet, report, .. } = kind.traits();
        let mut hid_descriptor = vec![9, 0x21];
        hid_descriptor.extend(version.to_le_bytes());
        hid_descriptor.extend([0, 1, 0x22]);
        hid_descriptor.extend((report.len() as u16).to_le_bytes());
        let device = DeviceInfo {
            usb: 0x0200,
            class: 0,
            vendor: 0x0627,
            product: 0x0001,
            release: 0,
            strings: [1, strings[0], strings[1]],
        };
        let configuration_info = ConfigurationInfo {
            string: strings[2],
            attributes: attribute::ALWAYS | attribute::REMOTE_WAKEUP,
            power: 50,
            class,
            class_descriptors: hid_descriptor.clone(),
            endpoints: vec![EndpointInfo::interrupt(packet, 10)],
        };
        let texts = vec![
            (1, "QEMU".to_owned()),
            (strings[0], product.to_owned()),
            (strings[1], serial),
            (strings[2], configuration.to_owned()),
        ];
        let this = Arc::new(Self {
            kind,
            descriptors: Descriptors::new(&device, &configuration_info, texts),
            hid_descriptor,
            clock,
            state: Mutex::new(HidState::new(kind)),
            waker: OnceLock::new(),
            sink: OnceLock::new(),
        });
        let weak: Weak<Self> = Arc::downgrade(&this);
        let handle = hub.register(SinkSpec { name: sink, kinds, console }, weak);
        if kind == HidKind::Keyboard {
            handle.activate();
        }
        let _ = this.sink.set(handle);
        this
    }

    fn set_report(&self, data: &[u8]) {
        if let (HidKind::Keyboard, Some(&leds)) = (self.kind, data.first()) {
            lock(&self.state).leds = leds;
        }
    }
}

impl InputSink for Hid {
    fn event(&self, event: &InputEvent) {
        match &mut lock(&self.state).hands {
            Hands::Keyboard(keyboard) => keyboard.event(event),
            Hands::Pointer(pointer) => pointer.event(event),
        }
    }

    fn sync(&self) {
        if let Hands::Pointer(pointer) = &mut lock(&self.state).hands {
            pointer.sync();
        }
        if let Some(waker) = self.waker.get() {
            waker.wake();
        }
    }
}

impl UsbFunction for Hid {
    fn descriptors(&self) -> &Descriptors {
        &self.descriptors
    }

    fn connect(&self, waker: Waker) {
        let _ = self.waker.set(waker);
    }

    fn request(&self, setup: &Setup, data: &[u8]) -> Result<Vec<u8>, Stalled> {
        if setup.index != 0 {
            return Err(Stalled);
        }
        let mut state = lock(&self.state);
        match (setup.code(), setup.value) {
            (request::GET_DESCRIPTOR, HID_DESCRIPTOR) => Ok(self.hid_descriptor.clone()),
            (request::GET_DESCRIPTOR, REPORT_DESCRIPTOR) => Ok(self.kind.traits().report.to_vec()),
            (request::GET_REPORT, value) if value >> 8 == INPUT_REPORT => {
                Ok(state.hands.now(state.boot))
            }
            (request::GET_REPORT, value)
                if value >> 8 == OUTPUT_REPORT && self.kind == HidKind::Keyboard =>
            {
                Ok(vec![state.leds])
            }
            (request::SET_REPORT, value) if value >> 8 == OUTPUT_REPORT => {
                drop(state);
                self.set_report(data);
                Ok(Vec::new())
            }
            (request::GET_IDLE, _) => Ok(vec![state.idle]),
            (request::SET_IDLE, value) => {
                state.idle = (value >> 8) as u8;
                Ok(Vec::new())
            }
            (request::GET_PROTOCOL, _) if self.kind != HidKind::Tablet => {
                Ok(vec![u8::from(!state.boot)])
            }
            (request::SET_PROTOCOL, value @ 0..=1) if self.kind != HidKind::Tablet => {
                state.boot = value == 0;
                Ok(Vec::new())
            }
            _ => Err(Stalled),
        }
    }

    fn data_in(&self, _endpoint: u8, room: &mut [u8]) -> Handshake {
        let mut state = lock(&self.state);
        if !std::mem::replace(&mut state.polled, true)
            && self.kind != HidKind::Keyboard
            && let Some(sink) = self.sink.get()
        {
            sink.activate();
        }
        let now = self.clock.now_ns();
        let boot = state.boot;
        let repeat = u64::from(state.idle) * IDLE_UNIT;
        let due = repeat != 0 && now.saturating_sub(state.reported_ns) >= repeat;
        let report = match state.hands.next(boot) {
            Some(report) => report,
            None if due => state.hands.now(boot),
            None => return Handshake::Nak,
        };
        state.reported_ns = now;
        room[..report.len()].copy_from_slice(&report);
        Handshake::Ack(report.len())
    }

    fn configured(&self, _yes: bool) {
        lock(&self.state).polled = false;
    }

    fn reset(&self) {
        *lock(&self.state) = HidState::new(self.kind);
    }

    fn save(&self) -> Saved {
        Saved::new(&*lock(&self.state))
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let restored: HidState = saved.decode()?;
        let fits = match (&restored.hands, self.kind) {
            (Hands::Keyboard(_), kind) => kind == HidKind::Keyboard,
            (Hands::Pointer(pointer), kind) => pointer.is_tablet() == (kind == HidKind::Tablet),
        };
        if !fits {
            let reason = "state of another kind of device".to_owned();
            return Err(RestoreError::Damaged { name: HidState::NAME, reason });
        }
        *lock(&self.state) = restored;
        Ok(())
    }
}
