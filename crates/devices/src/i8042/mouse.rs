//! A PS/2 mouse with a wheel and five buttons, which is a plain one until a driver knocks for more (IBM
//! PS/2 Hardware Interface Technical Reference, "Mouse"; Microsoft's documents on the IntelliMouse and
//! IntelliMouse Explorer protocols).
//!
//! No click is lost because the guest is slow: while reports wait for room, each change of the buttons
//! is a [`Moment`] of its own, and movements add up within it.

use std::collections::VecDeque;

use input::{Axis, Button};
use serde::{Deserialize, Serialize};

use super::ps2::{ACK, Output, RESEND, TEST_PASSED, command};

const SCALE_1_TO_1: u8 = 0xe6;
const SCALE_2_TO_1: u8 = 0xe7;
const SET_RESOLUTION: u8 = 0xe8;
const STATUS: u8 = 0xe9;
const STREAM_MODE: u8 = 0xea;
const READ_DATA: u8 = 0xeb;
const LEAVE_WRAP_MODE: u8 = 0xec;
const WRAP_MODE: u8 = 0xee;
const REMOTE_MODE: u8 = 0xf0;

/// Ids: a plain mouse, one with a wheel, one with a wheel and five buttons; and the rates that turn
/// one into the other.
const PLAIN: u8 = 0;
const WHEEL: u8 = 3;
const FIVE_BUTTONS: u8 = 4;
const KNOCK_WHEEL: [u8; 3] = [200, 100, 80];
const KNOCK_FIVE_BUTTONS: [u8; 3] = [200, 200, 80];

/// First byte of a movement report: always set, and the signs of the movements.
const REPORT: u8 = 1 << 3;
const X_NEGATIVE: u8 = 1 << 4;
const Y_NEGATIVE: u8 = 1 << 5;
/// Fourth byte, with five buttons: the rest is a step of the wheel to a side.
const SIDEWAYS: u8 = 0x40;

/// Most that one report tells of a movement.
const STEP: i32 = 127;
/// Most that is remembered of one.
const FAR: i32 = 1 << 20;
/// Most changes of the buttons that are remembered before the last; more of them are one.
const MOMENTS: usize = 64;

/// Bits of the buttons, in the order of reports.
mod button {
    pub(super) const LEFT: u8 = 1 << 0;
    pub(super) const RIGHT: u8 = 1 << 1;
    pub(super) const MIDDLE: u8 = 1 << 2;
    pub(super) const SIDE: u8 = 1 << 3;
    pub(super) const EXTRA: u8 = 1 << 4;
    pub(super) const PLAIN: u8 = LEFT | RIGHT | MIDDLE;
}

/// Something to tell the guest: how the buttons are, and how far the mouse was moved meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Moment {
    buttons: u8,
    /// Right, up, wheel towards the user, wheel to the right.
    moved: [i32; 4],
}

/// A mouse.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mouse {
    output: Output,
    /// The command whose argument comes next.
    awaits: Option<u8>,
    id: u8,
    reporting: bool,
    double_scale: bool,
    remote: bool,
    wrap: bool,
    resolution: u8,
    rate: u8,
    /// The last rates that were set, oldest first.
    rates: [u8; 3],
    /// Buttons as the guest was told last.
    told: u8,
    /// What the guest was not told of before `now`, oldest first.
    past: VecDeque<Moment>,
    /// The buttons as they are, and movements that the guest was not told of.
    now: Moment,
}

impl Default for Mouse {
    fn default() -> Self {
        Self {
            output: Output::default(),
            awaits: None,
            id: PLAIN,
            reporting: false,
            double_scale: false,
            remote: false,
            wrap: false,
            resolution: 2,
            rate: 100,
            rates: [0; 3],
            told: 0,
            past: VecDeque::new(),
            now: Moment::default(),
        }
    }
}

impl Mouse {
    pub(super) fn validate(&self) -> Result<(), String> {
        if !matches!(self.id, PLAIN | WHEEL | FIVE_BUTTONS) {
            return Err(format!("mouse id {}", self.id));
        }
        if self.past.len() > MOMENTS {
            return Err(format!("{} moments of a mouse; it has {MOMENTS}", self.past.len()));
        }
        for Moment { moved, .. } in self.past.iter().chain([&self.now]) {
            if moved.iter().any(|far| !(-FAR..=FAR).contains(far)) {
                return Err(format!("mouse movements {moved:?}"));
            }
        }
        self.output.validate()
    }

    /// A button went down or up.
    pub(super) fn button(&mut self, which: Button, down: bool) {
        let step = i32::from(down);
        let bit = match which {
            Button::Left => button::LEFT,
            Button::Right => button::RIGHT,
            Button::Middle => button::MIDDLE,
            Button::Side => button::SIDE,
            Button::Extra => button::EXTRA,
            Button::WheelUp => return self.add(2, -step),
            Button::WheelDown => return self.add(2, step),
            Button::WheelLeft => return self.add(3, -step),
            Button::WheelRight => return self.add(3, step),
        };
        let buttons = if down { self.now.buttons | bit } else { self.now.buttons & !bit };
        let before = self.past.back().map_or(self.told, |moment| moment.buttons);
        let untold = (self.now.buttons ^ before) & self.visible() != 0;
        if untold && buttons != self.now.buttons && self.streams() && self.past.len() < MOMENTS {
            self.past.push_back(self.now);
            self.now.moved = [0; 4];
        }
        self.now.buttons = buttons;
    }

    /// It was moved.
    pub(super) fn movement(&mut self, axis: Axis, value: i32) {
        match axis {
            Axis::X => self.add(0, value),
            Axis::Y => self.add(1, value.saturating_neg()),
        }
    }

    fn add(&mut self, axis: usize, value: i32) {
        let listens = match axis {
            0 | 1 => true,
            2 => self.id != PLAIN,
            _ => self.id == FIVE_BUTTONS,
        };
        // Nobody hears of what happens while reports are off.
        if listens && (self.reporting || self.remote) {
            let moved = &mut self.now.moved[axis];
            *moved = moved.saturating_add(value).clamp(-FAR, FAR);
        }
    }

    /// It reports by itself.
    fn streams(&self) -> bool {
        self.reporting && !self.remote && !self.wrap
    }

    /// The buttons that reports have.
    fn visible(&self) -> u8 {
        if self.id == FIVE_BUTTONS { u8::MAX } else { button::PLAIN }
    }

    /// Reports what there is to tell, as far as there is room.
    pub(super) fn report(&mut self) {
        while self.streams() && self.has_news() && self.output.reports.room() >= 4 {
            let report = self.take_report(self.double_scale);
            self.output.reports.push(&report);
        }
    }

    /// Whether there is something to tell; drops what is told.
    fn has_news(&mut self) -> bool {
        loop {
            let first = self.past.front().unwrap_or(&self.now);
            if first.moved != [0; 4] || (first.buttons ^ self.told) & self.visible() != 0 {
                return true;
            }
            if self.past.pop_front().is_none() {
                return false;
            }
        }
    }

    /// The next byte for the controller.
    pub(super) fn next(&mut self) -> Option<u8> {
        let byte = self.output.next();
        if self.output.reports.is_empty() {
            self.report();
        }
        byte
    }

    /// A report of three bytes, or four with a wheel.
    fn take_report(&mut self, double: bool) -> Vec<u8> {
        let id = self.id;
        let Moment { buttons, moved } = self.past.front_mut().unwrap_or(&mut self.now);
        let buttons = *buttons;
        self.told = buttons;
        let most = if double { STEP / 2 } else { STEP };
        let mut take = |axis: usize, most: i32| {
            let step = moved[axis].clamp(-most, most);
            moved[axis] -= step;
            step
        };
        let scale = |step: i32| match step.abs() {
            _ if !double => step,
            0 | 1 => step,
            2 => step.signum(),
            3 => step,
            4 => step.signum() * 6,
            5 => step.signum() * 9,
            _ => step * 2,
        };
        let (x, y) = (scale(take(0, most)), scale(take(1, most)));
        let first = REPORT
            | buttons & button::PLAIN
            | if x < 0 { X_NEGATIVE } else { 0 }
            | if y < 0 { Y_NEGATIVE } else { 0 };
        let mut report = vec![first, x as u8, y as u8];
        match id {
            WHEEL => report.push(take(2, STEP) as u8),
            FIVE_BUTTONS => {
                // One wheel at a time.
                let sideways = take(3, 31);
                report.push(if sideways != 0 {
                    SIDEWAYS | (-sideways) as u8 & 0x3f
                } else {
                    let wheel = take(2, 7) as u8 & 0x0f;
                    wheel | (buttons & (button::SIDE | button::EXTRA)) << 1
                });
            }
            _ => {}
        }
        report
    }

    /// A byte from the controller.
    pub(super) fn command(&mut self, byte: u8) {
        if let Some(command) = self.awaits.take() {
            self.argument(command, byte);
        } else if self.wrap && byte != LEAVE_WRAP_MODE && byte != command::RESET {
            self.output.answer(&[byte]);
        } else {
            self.start(byte);
        }
    }

    fn argument(&mut self, command: u8, byte: u8) {
        if command == SET_RESOLUTION {
            self.resolution = byte;
        } else {
            self.rate = byte;
            self.rates = [self.rates[1], self.rates[2], byte];
            match self.rates {
                KNOCK_WHEEL => self.id = WHEEL,
                KNOCK_FIVE_BUTTONS => self.id = FIVE_BUTTONS,
                _ => {}
            }
        }
        self.output.answer(&[ACK]);
    }

    fn start(&mut self, byte: u8) {
        match byte {
            SET_RESOLUTION | command::SET_RATE => self.awaits = Some(byte),
            SCALE_1_TO_1 => self.double_scale = false,
            SCALE_2_TO_1 => self.double_scale = true,
            STREAM_MODE => self.remote = false,
            REMOTE_MODE => {
                self.remote = true;
                self.forget();
            }
            WRAP_MODE => {
                self.wrap = true;
                self.output.reports.clear();
            }
            LEAVE_WRAP_MODE => self.wrap = false,
            command::ENABLE => {
                self.reporting = true;
                self.forget();
                self.told = self.now.buttons;
            }
            command::DISABLE => {
                self.reporting = false;
                self.forget();
            }
            command::SET_DEFAULTS => {
                *self = Self { id: self.id, now: self.held(), ..Self::default() };
            }
            STATUS => {
                return self.output.answer(&[ACK, self.status(), self.resolution, self.rate]);
            }
            READ_DATA => {
                let mut answer = vec![ACK];
                answer.extend(self.take_report(false));
                return self.output.answer(&answer);
            }
            command::IDENTIFY => return self.output.answer(&[ACK, self.id]),
            command::RESEND => return self.output.resend(),
            command::RESET => {
                *self = Self { now: self.held(), ..Self::default() };
                return self.output.answer(&[ACK, TEST_PASSED, PLAIN]);
            }
            _ => return self.output.answer(&[RESEND]),
        }
        self.output.answer(&[ACK]);
    }

    /// Drops what the guest was not told of.
    fn forget(&mut self) {
        self.output.reports.clear();
        self.past.clear();
        self.now = self.held();
    }

    /// The buttons as they are, without movements.
    fn held(&self) -> Moment {
        Moment { buttons: self.now.buttons, ..Moment::default() }
    }

    /// The status byte has the buttons in another order than reports.
    fn status(&self) -> u8 {
        let held = |bit: u8| u8::from(self.now.buttons & bit != 0);
        u8::from(self.remote) << 6
            | u8::from(self.reporting) << 5
            | u8::from(self.double_scale) << 4
            | held(button::LEFT) << 2
            | held(button::MIDDLE) << 1
            | held(button::RIGHT)
    }
}
