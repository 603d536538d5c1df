//! A keyboard of 255 keys, six of which can be down at a time beside the modifiers.

use std::collections::VecDeque;

use input::InputEvent;
use serde::{Deserialize, Serialize};

/// What reports are made of, in the class's own language: modifiers, LEDs, six keys.
pub(super) const REPORT_DESCRIPTOR: &[u8] = &[
    0x05, 0x01, // Usage Page (Generic Desktop)
    0x09, 0x06, // Usage (Keyboard)
    0xa1, 0x01, // Collection (Application)
    0x75, 0x01, //   Report Size (1)
    0x95, 0x08, //   Report Count (8)
    0x05, 0x07, //   Usage Page (Key Codes)
    0x19, 0xe0, //   Usage Minimum (Left Control)
    0x29, 0xe7, //   Usage Maximum (Right GUI)
    0x15, 0x00, //   Logical Minimum (0)
    0x25, 0x01, //   Logical Maximum (1)
    0x81, 0x02, //   Input (Data, Variable, Absolute)
    0x95, 0x01, //   Report Count (1)
    0x75, 0x08, //   Report Size (8)
    0x81, 0x01, //   Input (Constant)
    0x95, 0x05, //   Report Count (5)
    0x75, 0x01, //   Report Size (1)
    0x05, 0x08, //   Usage Page (LEDs)
    0x19, 0x01, //   Usage Minimum (Num Lock)
    0x29, 0x05, //   Usage Maximum (Kana)
    0x91, 0x02, //   Output (Data, Variable, Absolute)
    0x95, 0x01, //   Report Count (1)
    0x75, 0x03, //   Report Size (3)
    0x91, 0x01, //   Output (Constant)
    0x95, 0x06, //   Report Count (6)
    0x75, 0x08, //   Report Size (8)
    0x15, 0x00, //   Logical Minimum (0)
    0x25, 0xff, //   Logical Maximum (255)
    0x05, 0x07, //   Usage Page (Key Codes)
    0x19, 0x00, //   Usage Minimum (0)
    0x29, 0xff, //   Usage Maximum (255)
    0x81, 0x00, //   Input (Data, Array)
    0xc0, // End Collection
];

/// First usage of the eight modifiers.
const MODIFIERS: u8 = 0xe0;
/// In place of all keys: more are down than a report can tell.
const ROLL_OVER: u8 = 1;
/// Keys in a report.
const KEYS: usize = 6;
/// Most keys that are remembered as down.
const MAX_DOWN: usize = 32;
/// Most changes that wait to be reported; what comes after is lost.
const MAX_WAITING: usize = 16;

/// A keyboard, as the guest was told of it, and what it was not told yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Keyboard {
    modifiers: u8,
    /// Usages of the keys that are down.
    down: Vec<u8>,
    /// Changes: usage, and whether the key went down.
    waiting: VecDeque<(u8, bool)>,
}

impl Keyboard {
    pub(super) fn validate(&self) -> Result<(), String> {
        let (down, waiting) = (self.down.len(), self.waiting.len());
        if down > MAX_DOWN || waiting > MAX_WAITING {
            return Err(format!("{down} keys are down, {waiting} changes wait"));
        }
        Ok(())
    }

    pub(super) fn event(&mut self, event: &InputEvent) {
        let InputEvent::Key { key, down } = event else { return };
        if let Some(usage) = key.hid_usage()
            && self.waiting.len() < MAX_WAITING
        {
            self.waiting.push_back((usage, *down));
        }
    }

    /// The report of the next change. A key that repeats is no change.
    pub(super) fn next(&mut self) -> Option<Vec<u8>> {
        while let Some((usage, down)) = self.waiting.pop_front() {
            if self.change(usage, down) {
                return Some(self.now());
            }
        }
        None
    }

    fn change(&mut self, usage: u8, down: bool) -> bool {
        if usage >= MODIFIERS {
            let bit = 1 << (usage & 7);
            let before = self.modifiers;
            self.modifiers = if down { before | bit } else { before & !bit };
            return self.modifiers != before;
        }
        match (self.down.iter().position(|&other| other == usage), down) {
            (None, true) if self.down.len() < MAX_DOWN => self.down.push(usage),
            (Some(at), false) => drop(self.down.remove(at)),
            _ => return false,
        }
        true
    }

    pub(super) fn now(&self) -> Vec<u8> {
        let mut report = vec![self.modifiers, 0];
        if self.down.len() > KEYS {
            report.extend([ROLL_OVER; KEYS]);
        } else {
            report.extend(&self.down);
            report.resize(2 + KEYS, 0);
        }
        report
    }
}
