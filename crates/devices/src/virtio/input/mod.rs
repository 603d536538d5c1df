//! Keyboards, mice and tablets (specification, section 5.8), whose events are those of Linux's input
//! subsystem.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock, Weak};

use input::{
    ABSOLUTE_MAX, Axis, Button, EventKinds, InputEvent, InputHub, InputSink, Key, SinkHandle,
    SinkSpec, Target,
};
use serde::{Deserialize, Serialize};
use vmstate::{RestoreError, Saved, State};

use super::{Kind, VirtioCore, VirtioDevice};
use crate::lock;

#[cfg(test)]
mod tests;

/// Queue of events to the driver.
const EVENTS: u16 = 0;
/// Entries in each queue.
const QUEUE_SIZE: u16 = 64;
/// Bytes of an event: type, code, value.
const EVENT_LEN: usize = 8;
/// Most events that wait for the driver's buffers. Those of a moment that finds no room are lost.
const MAX_WAITING: usize = 256;
/// Bytes of the configuration: what is selected, its size, and itself.
const CONFIG_LEN: usize = 136;
const CONFIG_DATA: usize = 8;

/// What the configuration can show.
mod select {
    pub(super) const NAME: u8 = 0x01;
    pub(super) const SERIAL: u8 = 0x02;
    pub(super) const IDS: u8 = 0x03;
    pub(super) const EVENT_BITS: u8 = 0x11;
    pub(super) const AXIS: u8 = 0x12;
}

/// Types and codes of events (Linux's `input-event-codes.h`).
mod code {
    pub(super) const SYN: u16 = 0x00;
    pub(super) const KEY: u16 = 0x01;
    pub(super) const REL: u16 = 0x02;
    pub(super) const ABS: u16 = 0x03;
    pub(super) const LED: u16 = 0x11;
    pub(super) const REP: u16 = 0x14;
    pub(super) const X: u16 = 0;
    pub(super) const Y: u16 = 1;
    pub(super) const REL_WHEEL: u16 = 8;
    pub(super) const BTN_LEFT: u16 = 0x110;
    pub(super) const BTN_RIGHT: u16 = 0x111;
    pub(super) const BTN_MIDDLE: u16 = 0x112;
    pub(super) const BTN_SIDE: u16 = 0x113;
    pub(super) const BTN_EXTRA: u16 = 0x114;
    /// Steps of the wheel, for devices without a wheel axis.
    pub(super) const BTN_GEAR_DOWN: u16 = 0x150;
    pub(super) const BTN_GEAR_UP: u16 = 0x151;
}

/// All buttons of a pointer.
const BUTTONS: [u16; 7] = [
    code::BTN_LEFT,
    code::BTN_RIGHT,
    code::BTN_MIDDLE,
    code::BTN_SIDE,
    code::BTN_EXTRA,
    code::BTN_GEAR_DOWN,
    code::BTN_GEAR_UP,
];

/// Bus, vendor and version in a device's ids.
const BUS_VIRTUAL: u16 = 6;
const VENDOR: u16 = 0x0627;

const fn kind(class: u32) -> Kind {
    // There is no transitional form, so no device id of one.
    Kind {
        name: "virtio-input",
        device_type: 18,
        transitional_id: 0,
        class,
        extra_vectors: Some(0),
    }
}

const KEYBOARD: Kind = kind(0x09_00_00);
const MOUSE: Kind = kind(0x09_02_00);
const TABLET: Kind = kind(0x09_80_00);

/// What an input device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputKind {
    /// A keyboard.
    Keyboard,
    /// A mouse, which tells of movements.
    Mouse,
    /// A tablet, which tells of positions.
    Tablet,
}

impl InputKind {
    fn name(self) -> &'static str {
        match self {
            Self::Keyboard => "QEMU Virtio Keyboard",
            Self::Mouse => "QEMU Virtio Mouse",
            Self::Tablet => "QEMU Virtio Tablet",
        }
    }

    fn kinds(self) -> EventKinds {
        match self {
            Self::Keyboard => EventKinds::KEY,
            Self::Mouse => EventKinds::BUTTON | EventKinds::RELATIVE,
            Self::Tablet => EventKinds::BUTTON | EventKinds::ABSOLUTE,
        }
    }

    /// Product and version.
    fn ids(self) -> [u16; 2] {
        match self {
            Self::Keyboard => [1, 1],
            Self::Mouse => [2, 2],
            Self::Tablet => [3, 2],
        }
    }
}

/// Saved state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct InputState {
    select: u8,
    subselect: u8,
    /// A driver listens.
    active: bool,
    /// Events that wait for buffers.
    waiting: VecDeque<[u8; EVENT_LEN]>,
    /// Events of the moment that is not complete yet.
    coming: Vec<[u8; EVENT_LEN]>,
}

impl State for InputState {
    const NAME: &'static str = "virtio-input";
    const VERSION: u32 = 1;

    fn validate(&self) -> Result<(), String> {
        let (waiting, coming) = (self.waiting.len(), self.coming.len());
        if waiting > MAX_WAITING || coming > MAX_WAITING {
            return Err(format!("{waiting} and {coming} events wait"));
        }
        Ok(())
    }
}

/// An input device.
pub struct VirtioInput {
    what: InputKind,
    serial: Option<String>,
    /// The wheel is an axis, not two buttons.
    wheel: bool,
    state: Mutex<InputState>,
    core: OnceLock<Weak<VirtioCore>>,
    sink: OnceLock<SinkHandle>,
}

impl VirtioInput {
    /// A device that gets its events from `hub`, those of `console` if it is bound to one.
    pub fn new(
        what: InputKind,
        serial: Option<String>,
        wheel: bool,
        console: Option<Target>,
        hub: &Arc<InputHub>,
    ) -> Arc<Self> {
        let this = Arc::new(Self {
            what,
            serial,
            wheel,
            state: Mutex::default(),
            core: OnceLock::new(),
            sink: OnceLock::new(),
        });
        let weak: Weak<Self> = Arc::downgrade(&this);
        let spec = SinkSpec { name: what.name(), kinds: what.kinds(), console };
        let _ = this.sink.set(hub.register(spec, weak));
        this
    }

    /// Goes to the head or the end of the line for events.
    fn set_active(&self, active: bool) {
        if std::mem::replace(&mut lock(&self.state).active, active) == active {
            return;
        }
        match (self.sink.get(), active) {
            (Some(sink), true) => sink.activate(),
            (Some(sink), false) => sink.deactivate(),
            (None, _) => {}
        }
    }

    /// Type, code and value of an event, if the driver knows it.
    fn encode(&self, event: &InputEvent) -> Option<(u16, u16, i32)> {
        let axis_code = |axis: Axis| match axis {
            Axis::X => code::X,
            Axis::Y => code::Y,
        };
        Some(match *event {
            InputEvent::Key { key, down } => (code::KEY, key.evdev(), down.into()),
            InputEvent::Relative { axis, value } => (code::REL, axis_code(axis), value),
            InputEvent::Absolute { axis, value } => (code::ABS, axis_code(axis), value),
            InputEvent::Button { button, down } => {
                let number = match button {
                    Button::Left => code::BTN_LEFT,
                    Button::Right => code::BTN_RIGHT,
                    Button::Middle => code::BTN_MIDDLE,
                    Button::Side => code::BTN_SIDE,
                    Button::Extra => code::BTN_EXTRA,
                    Button::WheelUp | Button::WheelDown if self.wheel => {
                        let step = if button == Button::WheelUp { 1 } else { -1 };
                        return down.then_some((code::REL, code::REL_WHEEL, step));
                    }
                    Button::WheelUp => code::BTN_GEAR_UP,
                    Button::WheelDown => code::BTN_GEAR_DOWN,
                    Button::WheelLeft | Button::WheelRight => return None,
                };
                (code::KEY, number, down.into())
            }
        })
    }

    /// What the configuration shows of a selection.
    fn selected(&self, select: u8, subselect: u8) -> Vec<u8> {
        match select {
            select::NAME | select::SERIAL | select::IDS if subselect != 0 => Vec::new(),
            // With the zero that ends it, as drivers find it elsewhere.
            select::NAME => [self.what.name().as_bytes(), &[0]].concat(),
            select::SERIAL => self.serial.clone().unwrap_or_default().into(),
            select::IDS => {
                let [product, version] = self.what.ids();
                let words = [BUS_VIRTUAL, VENDOR, product, version];
                words.into_iter().flat_map(u16::to_le_bytes).collect()
            }
            select::EVENT_BITS => self.event_bits(subselect.into()),
            select::AXIS if self.what == InputKind::Tablet && subselect <= code::Y as u8 => {
                let words = [0, ABSOLUTE_MAX as u32, 0, 0, 0];
                words.into_iter().flat_map(u32::to_le_bytes).collect()
            }
            _ => Vec::new(),
        }
    }

    /// The codes that there are of a type of events, one bit each.
    fn event_bits(&self, event: u16) -> Vec<u8> {
        let axes = [code::X, code::Y];
        match (event, self.what) {
            (code::KEY, InputKind::Keyboard) => bitmap(Key::ALL.iter().map(|key| key.evdev())),
            // Num Lock, Caps Lock and Scroll Lock.
            (code::LED, InputKind::Keyboard) => bitmap(0..3),
            // That it repeats, without a code.
            (code::REP, InputKind::Keyboard) => vec![0],
            (code::KEY, InputKind::Mouse | InputKind::Tablet) => bitmap(BUTTONS),
            (code::REL, InputKind::Mouse) if self.wheel => bitmap([axes[0], axes[1], 8]),
            (code::REL, InputKind::Mouse) => bitmap(axes),
            (code::REL, InputKind::Tablet) if self.wheel => bitmap([code::REL_WHEEL]),
            (code::ABS, InputKind::Tablet) => bitmap(axes),
            _ => Vec::new(),
        }
    }
}

fn bitmap(codes: impl IntoIterator<Item = u16>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for code in codes {
        let at = usize::from(code / 8);
        if bytes.len() <= at {
            bytes.resize(at + 1, 0);
        }
        bytes[at] |= 1 << (code % 8);
    }
    bytes
}

fn event_bytes(event: u16, code: u16, value: i32) -> [u8; EVENT_LEN] {
    let mut bytes = [0; EVENT_LEN];
    bytes[..2].copy_from_slice(&event.to_le_bytes());
    bytes[2..4].copy_from_slice(&code.to_le_bytes());
    bytes[4..].copy_from_slice(&value.to_le_bytes());
    bytes
}

impl InputSink for VirtioInput {
    fn event(&self, event: &InputEvent) {
        let Some((kind, code, value)) = self.encode(event) else { return };
        let mut state = lock(&self.state);
        if state.active && state.coming.len() < MAX_WAITING {
            state.coming.push(event_bytes(kind, code, value));
        }
    }

    fn sync(&self) {
        let mut state = lock(&self.state);
        let coming = std::mem::take(&mut state.coming);
        if coming.is_empty() || state.waiting.len() + coming.len() >= MAX_WAITING {
            return;
        }
        state.waiting.extend(coming);
        state.waiting.push_back(event_bytes(code::SYN, 0, 0));
        drop(state);
        if let Some(core) = self.core.get().and_then(Weak::upgrade) {
            core.kick(EVENTS);
        }
    }
}

impl VirtioDevice for VirtioInput {
    fn kind(&self) -> &'static Kind {
        match self.what {
            InputKind::Keyboard => &KEYBOARD,
            InputKind::Mouse => &MOUSE,
            InputKind::Tablet => &TABLET,
        }
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 2]
    }

    fn connect(&self, core: Weak<VirtioCore>) {
        let _ = self.core.set(core);
    }

    fn config(&self) -> Vec<u8> {
        let (select, subselect) = {
            let state = lock(&self.state);
            (state.select, state.subselect)
        };
        let mut data = self.selected(select, subselect);
        data.truncate(CONFIG_LEN - CONFIG_DATA);
        let mut config = vec![select, subselect, data.len() as u8, 0, 0, 0, 0, 0];
        config.extend(data);
        config.resize(CONFIG_LEN, 0);
        config
    }

    fn write_config(&self, offset: usize, data: &[u8]) {
        let mut state = lock(&self.state);
        for (at, &byte) in (offset..).zip(data) {
            match at {
                0 => state.select = byte,
                1 => state.subselect = byte,
                _ => {}
            }
        }
    }

    fn service(&self, core: &VirtioCore, queue: u16) {
        // Queues are served when the driver gets ready.
        if core.is_running() {
            self.set_active(true);
        }
        while !core.is_pausing() {
            if queue == EVENTS && lock(&self.state).waiting.is_empty() {
                return;
            }
            let Some(chain) = core.pop(queue) else { return };
            let mut written = 0;
            if queue == EVENTS {
                let Some(event) = lock(&self.state).waiting.pop_front() else { return };
                match chain.write(core.memory(), 0, &event) {
                    Ok(len) => written = len as u32,
                    Err(error) => return core.fail(&error),
                }
            }
            // What the driver says in the other queue is of LEDs, which nobody looks at.
            core.complete(queue, &chain, written);
        }
    }

    fn reset(&self) {
        self.set_active(false);
        *lock(&self.state) = InputState::default();
    }

    fn save(&self) -> Saved {
        Saved::new(&*lock(&self.state))
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let state: InputState = saved.decode()?;
        self.set_active(state.active);
        *lock(&self.state) = state;
        Ok(())
    }
}
