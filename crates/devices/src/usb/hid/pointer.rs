//! A mouse and a tablet.

use std::collections::VecDeque;

use input::{ABSOLUTE_MAX, Axis, Button, InputEvent};
use serde::{Deserialize, Serialize};

/// What a mouse reports: five buttons, movements in both axes, the wheel.
pub(super) const MOUSE_DESCRIPTOR: &[u8] = &[
    0x05, 0x01, // Usage Page (Generic Desktop)
    0x09, 0x02, // Usage (Mouse)
    0xa1, 0x01, // Collection (Application)
    0x09, 0x01, //   Usage (Pointer)
    0xa1, 0x00, //   Collection (Physical)
    0x05, 0x09, //     Usage Page (Button)
    0x19, 0x01, //     Usage Minimum (1)
    0x29, 0x05, //     Usage Maximum (5)
    0x15, 0x00, //     Logical Minimum (0)
    0x25, 0x01, //     Logical Maximum (1)
    0x95, 0x05, //     Report Count (5)
    0x75, 0x01, //     Report Size (1)
    0x81, 0x02, //     Input (Data, Variable, Absolute)
    0x95, 0x01, //     Report Count (1)
    0x75, 0x03, //     Report Size (3)
    0x81, 0x01, //     Input (Constant)
    0x05, 0x01, //     Usage Page (Generic Desktop)
    0x09, 0x30, //     Usage (X)
    0x09, 0x31, //     Usage (Y)
    0x09, 0x38, //     Usage (Wheel)
    0x15, 0x81, //     Logical Minimum (-127)
    0x25, 0x7f, //     Logical Maximum (127)
    0x75, 0x08, //     Report Size (8)
    0x95, 0x03, //     Report Count (3)
    0x81, 0x06, //     Input (Data, Variable, Relative)
    0xc0, //   End Collection
    0xc0, // End Collection
];

/// What a tablet reports: three buttons, the position, the wheel.
pub(super) const TABLET_DESCRIPTOR: &[u8] = &[
    0x05, 0x01, // Usage Page (Generic Desktop)
    0x09, 0x02, // Usage (Mouse)
    0xa1, 0x01, // Collection (Application)
    0x09, 0x01, //   Usage (Pointer)
    0xa1, 0x00, //   Collection (Physical)
    0x05, 0x09, //     Usage Page (Button)
    0x19, 0x01, //     Usage Minimum (1)
    0x29, 0x03, //     Usage Maximum (3)
    0x15, 0x00, //     Logical Minimum (0)
    0x25, 0x01, //     Logical Maximum (1)
    0x95, 0x03, //     Report Count (3)
    0x75, 0x01, //     Report Size (1)
    0x81, 0x02, //     Input (Data, Variable, Absolute)
    0x95, 0x01, //     Report Count (1)
    0x75, 0x05, //     Report Size (5)
    0x81, 0x01, //     Input (Constant)
    0x05, 0x01, //     Usage Page (Generic Desktop)
    0x09, 0x30, //     Usage (X)
    0x09, 0x31, //     Usage (Y)
    0x15, 0x00, //     Logical Minimum (0)
    0x26, 0xff, 0x7f, // Logical Maximum (0x7fff)
    0x35, 0x00, //     Physical Minimum (0)
    0x46, 0xff, 0x7f, // Physical Maximum (0x7fff)
    0x75, 0x10, //     Report Size (16)
    0x95, 0x02, //     Report Count (2)
    0x81, 0x02, //     Input (Data, Variable, Absolute)
    0x05, 0x01, //     Usage Page (Generic Desktop)
    0x09, 0x38, //     Usage (Wheel)
    0x15, 0x81, //     Logical Minimum (-127)
    0x25, 0x7f, //     Logical Maximum (127)
    0x35, 0x00, //     Physical Minimum (0)
    0x45, 0x00, //     Physical Maximum (as logical)
    0x75, 0x08, //     Report Size (8)
    0x95, 0x01, //     Report Count (1)
    0x81, 0x06, //     Input (Data, Variable, Relative)
    0xc0, //   End Collection
    0xc0, // End Collection
];

/// Most that one report tells of a movement.
const STEP: i32 = 127;
/// Most that is remembered of one.
const FAR: i32 = 1 << 20;
/// Most states that wait to be reported; those after it become one with the last.
const MAX_WAITING: usize = 16;

/// Buttons, position or movement, and wheel at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Moment {
    buttons: u8,
    /// A position, or how far it moved.
    x: i32,
    y: i32,
    wheel: i32,
}

/// A pointer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pointer {
    tablet: bool,
    /// What was reported last, movements apart.
    told: Moment,
    /// What waits to be reported; presses of buttons are not merged away.
    waiting: VecDeque<Moment>,
    /// What came since the last moment.
    coming: Moment,
}

impl Pointer {
    pub(super) fn mouse() -> Self {
        Self {
            tablet: false,
            told: Moment::default(),
            waiting: VecDeque::new(),
            coming: Moment::default(),
        }
    }

    pub(super) fn tablet() -> Self {
        Self { tablet: true, ..Self::mouse() }
    }

    pub(super) fn is_tablet(&self) -> bool {
        self.tablet
    }

    pub(super) fn validate(&self) -> Result<(), String> {
        if self.waiting.len() > MAX_WAITING {
            return Err(format!("{} moments wait", self.waiting.len()));
        }
        let limits = if self.tablet { 0..=ABSOLUTE_MAX } else { -FAR..=FAR };
        let fits = |m: &Moment| {
            limits.contains(&m.x) && limits.contains(&m.y) && (-FAR..=FAR).contains(&m.wheel)
        };
        match self.waiting.iter().chain([&self.told, &self.coming]).find(|m| !fits(m)) {
            Some(moment) => Err(format!("impossible {moment:?}")),
            None => Ok(()),
        }
    }

    pub(super) fn event(&mut self, event: &InputEvent) {
        match *event {
            InputEvent::Button { button, down } => self.button(button, down),
            InputEvent::Relative { axis, value } if !self.tablet => {
                let sum = |before: i32| before.saturating_add(value).clamp(-FAR, FAR);
                match axis {
                    Axis::X => self.coming.x = sum(self.coming.x),
                    Axis::Y => self.coming.y = sum(self.coming.y),
                }
            }
            InputEvent::Absolute { axis, value } if self.tablet => match axis {
                Axis::X => self.coming.x = value.clamp(0, ABSOLUTE_MAX),
                Axis::Y => self.coming.y = value.clamp(0, ABSOLUTE_MAX),
            },
            _ => {}
        }
    }

    fn button(&mut self, button: Button, down: bool) {
        let bit = match button {
            Button::Left => 1 << 0,
            Button::Right => 1 << 1,
            Button::Middle => 1 << 2,
            Button::Side => 1 << 3,
            Button::Extra => 1 << 4,
            Button::WheelUp | Button::WheelDown => {
                let step = if button == Button::WheelUp { 1 } else { -1 };
                self.coming.wheel = (self.coming.wheel + step * i32::from(down)).clamp(-FAR, FAR);
                return;
            }
            // It has no wheel to the sides.
            Button::WheelLeft | Button::WheelRight => return,
        };
        // A tablet has three buttons.
        let bit = if self.tablet { bit & 0b111 } else { bit };
        self.coming.buttons =
            if down { self.coming.buttons | bit } else { self.coming.buttons & !bit };
    }

    /// The events of a moment are complete.
    pub(super) fn sync(&mut self) {
        let coming = self.coming;
        let last = self.waiting.back().copied().unwrap_or(self.told);
        let moved = if self.tablet {
            (coming.x, coming.y) != (last.x, last.y)
        } else {
            (coming.x, coming.y) != (0, 0)
        };
        if !moved && coming.wheel == 0 && coming.buttons == last.buttons {
            return;
        }
        let full = self.waiting.len() >= MAX_WAITING;
        match self.waiting.back_mut() {
            Some(last) if full || last.buttons == coming.buttons => {
                last.buttons = coming.buttons;
                last.wheel = (last.wheel + coming.wheel).clamp(-FAR, FAR);
                if self.tablet {
                    (last.x, last.y) = (coming.x, coming.y);
                } else {
                    last.x = (last.x + coming.x).clamp(-FAR, FAR);
                    last.y = (last.y + coming.y).clamp(-FAR, FAR);
                }
            }
            _ => self.waiting.push_back(coming),
        }
        self.coming.wheel = 0;
        if !self.tablet {
            (self.coming.x, self.coming.y) = (0, 0);
        }
    }

    /// The report of what happened next.
    pub(super) fn next(&mut self, boot: bool) -> Option<Vec<u8>> {
        let first = self.waiting.front_mut()?;
        let take = |rest: &mut i32| {
            let step = (*rest).clamp(-STEP, STEP);
            *rest -= step;
            step
        };
        let mut moment = *first;
        moment.wheel = take(&mut first.wheel);
        if !self.tablet {
            (moment.x, moment.y) = (take(&mut first.x), take(&mut first.y));
        }
        let done = first.wheel == 0 && (self.tablet || (first.x, first.y) == (0, 0));
        if done {
            self.waiting.pop_front();
        }
        self.told = Moment { wheel: 0, ..moment };
        if !self.tablet {
            (self.told.x, self.told.y) = (0, 0);
        }
        Some(self.report(moment, boot))
    }

    /// A report without movement.
    pub(super) fn now(&self, boot: bool) -> Vec<u8> {
        self.report(self.told, boot)
    }

    fn report(&self, moment: Moment, boot: bool) -> Vec<u8> {
        let Moment { buttons, x, y, wheel } = moment;
        let mut report = vec![buttons];
        if self.tablet {
            report.extend((x as u16).to_le_bytes());
            report.extend((y as u16).to_le_bytes());
            report.push(wheel as u8);
        } else {
            report.extend([x as u8, y as u8]);
            if !boot {
                report.push(wheel as u8);
            }
        }
        report
    }
}
