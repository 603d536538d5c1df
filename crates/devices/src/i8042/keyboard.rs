//! A PS/2 keyboard of 102 and more keys (IBM PS/2 Hardware Interface Technical Reference, "Keyboards").
//!
//! The key that went down last repeats by itself ("typematic") until it goes up. Whoever presses it again
//! meanwhile, as displays do that repeat keys themselves, begins its delay anew.

use input::{Key, ScanCodeSet};
use serde::{Deserialize, Serialize};

use super::ps2::{ACK, Output, RESEND, TEST_PASSED, command};

/// No command, but taken.
const NOTHING: u8 = 0x00;
const SET_LEDS: u8 = 0xed;
const ECHO: u8 = 0xee;
const SCAN_CODE_SET: u8 = 0xf0;
/// Commands on which keys of set 3 repeat and tell of their release: for all keys, and for single ones.
const ALL_TYPEMATIC: u8 = 0xf7;
const ALL_MAKE_BREAK: u8 = 0xf8;
const ALL_MAKE: u8 = 0xf9;
const ALL_TYPEMATIC_MAKE_BREAK: u8 = 0xfa;
const KEY_TYPEMATIC: u8 = 0xfb;
const KEY_MAKE_BREAK: u8 = 0xfc;
const KEY_MAKE: u8 = 0xfd;
const ID: [u8; 2] = [0xab, 0x83];
/// Typematic rate after power-on: 10.9 a second after half a second.
const DEFAULT_RATE: u8 = 0x2b;
/// The unit of the delay, and that of the period, in nanoseconds.
const DELAY_NS: u64 = 250_000_000;
const PERIOD_NS: u64 = 4_170_000;
/// Precedes the code of a key that goes up, in sets 2 and 3.
const RELEASE: u8 = 0xf0;
/// Precedes the code of a key that the first keyboards did not have, in sets 1 and 2.
const EXTENDED: u8 = 0xe0;

/// Modifier keys that are down.
mod held {
    pub(super) const SHIFT: u8 = 0b11;
    pub(super) const CTRL: u8 = 0b1100;
    pub(super) const ALT: u8 = 0b11_0000;
    pub(super) const ALT_LEFT: u8 = 0b1_0000;
}

/// A keyboard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Keyboard {
    pub(super) output: Output,
    /// The command whose argument comes next.
    awaits: Option<u8>,
    leds: u8,
    set: ScanCodeSet,
    rate: u8,
    scanning: bool,
    /// Modifier keys that are down, one bit each: [`held`].
    held: u8,
    /// Codes of set 3 whose keys say nothing when they go up, one bit each.
    silent: [u64; 4],
    /// Those whose keys do not repeat.
    still: [u64; 4],
    repeat: Option<Repeat>,
}

/// The key that repeats.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Repeat {
    key: Key,
    /// Guest time at which it does next, in nanoseconds.
    at_ns: u64,
}

impl Default for Keyboard {
    fn default() -> Self {
        Self {
            output: Output::default(),
            awaits: None,
            leds: 0,
            set: ScanCodeSet::Two,
            rate: DEFAULT_RATE,
            scanning: true,
            held: 0,
            silent: [0; 4],
            still: [0; 4],
            repeat: None,
        }
    }
}

impl Keyboard {
    pub(super) fn validate(&self) -> Result<(), String> {
        self.output.validate()
    }

    /// When [`Self::repeat`] has something to do.
    pub(super) fn repeats_at(&self) -> Option<u64> {
        self.repeat.as_ref().map(|repeat| repeat.at_ns)
    }

    /// Time has passed.
    pub(super) fn repeat(&mut self, now_ns: u64) {
        let period = self.period_ns();
        let Some(Repeat { key, at_ns }) = &mut self.repeat else { return };
        if *at_ns > now_ns {
            return;
        }
        *at_ns = now_ns.saturating_add(period);
        let key = *key;
        // What the guest has not read yet is not repeated on top of: there has to be room for the release.
        if self.output.reports.is_empty() {
            let mut codes = self.codes(key, true);
            // What goes down around PrtSc does so only once; its own code is the last.
            if matches!(key, Key::Print | Key::Sysrq) && self.set != ScanCodeSet::Three {
                let is_extended = codes.iter().rev().nth(1) == Some(&EXTENDED);
                codes.drain(..codes.len().saturating_sub(1 + usize::from(is_extended)));
            }
            self.output.reports.push(&codes);
        }
    }

    /// (8 + A) 2^B units, A being the rate's low three bits and B the next two.
    fn period_ns(&self) -> u64 {
        (u64::from(8 + (self.rate & 7)) * PERIOD_NS) << (self.rate >> 3 & 3)
    }

    /// Whether a key repeats when it is held.
    fn is_typematic(&self, key: Key) -> bool {
        match self.set {
            // It has no code of its own for going up.
            _ if key == Key::Pause => false,
            ScanCodeSet::One | ScanCodeSet::Two => true,
            ScanCodeSet::Three => {
                let code = key.scan_code(ScanCodeSet::Three).unwrap_or_default() as u8;
                self.still[usize::from(code >> 6)] & 1 << (code & 63) == 0
            }
        }
    }

    /// A key went down or up at this time.
    pub(super) fn key(&mut self, key: Key, down: bool, now_ns: u64) {
        let modifier = match key {
            Key::Shift => 0,
            Key::ShiftR => 1,
            Key::Ctrl => 2,
            Key::CtrlR => 3,
            Key::Alt => 4,
            Key::AltR => 5,
            _ => 6,
        };
        if modifier < 6 {
            self.held = self.held & !(1 << modifier) | u8::from(down) << modifier;
        }
        if !self.scanning {
            return;
        }
        let codes = self.codes(key, down);
        self.output.reports.push(&codes);
        if down {
            let delay = u64::from((self.rate >> 5 & 3) + 1) * DELAY_NS;
            let at_ns = now_ns.saturating_add(delay);
            let repeats = !codes.is_empty() && self.is_typematic(key);
            self.repeat = repeats.then_some(Repeat { key, at_ns });
        } else if self.repeat.as_ref().is_some_and(|repeat| repeat.key == key) {
            self.repeat = None;
        }
    }

    fn codes(&self, key: Key, down: bool) -> Vec<u8> {
        match self.set {
            ScanCodeSet::One => self.set1(key, down),
            ScanCodeSet::Two => self.set2(key, down),
            ScanCodeSet::Three => self.set3(key, down),
        }
    }

    fn is_held(&self, keys: u8) -> bool {
        self.held & keys != 0
    }

    fn set1(&self, key: Key, down: bool) -> Vec<u8> {
        let up = if down { 0 } else { 0x80 };
        match key {
            Key::Print | Key::Sysrq if self.is_held(held::ALT) => {
                let (left, right) = ([0xb8, 0x38], [EXTENDED, 0xb8, EXTENDED, 0x38]);
                sysrq(if self.is_held(held::ALT_LEFT) { &left } else { &right }, &[0x54 | up], down)
            }
            Key::Print | Key::Sysrq if !self.is_held(held::SHIFT | held::CTRL) => {
                if down {
                    vec![EXTENDED, 0x2a, EXTENDED, 0x37]
                } else {
                    vec![EXTENDED, 0xb7, EXTENDED, 0xaa]
                }
            }
            // Pause says nothing when it goes up: the sequence has both.
            Key::Pause if !down => Vec::new(),
            Key::Pause if self.is_held(held::CTRL) => vec![EXTENDED, 0x46, EXTENDED, 0xc6],
            Key::Pause => vec![0xe1, 0x1d, 0x45, 0xe1, 0x9d, 0xc5],
            _ => match key.scan_code(ScanCodeSet::One).map(u16::to_be_bytes) {
                Some([0, code]) => vec![code | up],
                Some([prefix, code]) => vec![prefix, code | up],
                None => Vec::new(),
            },
        }
    }

    fn set2(&self, key: Key, down: bool) -> Vec<u8> {
        match key {
            Key::Print | Key::Sysrq if self.is_held(held::ALT) => {
                let left = [RELEASE, 0x11, 0x11];
                let right = [EXTENDED, RELEASE, 0x11, EXTENDED, 0x11];
                let code: &[u8] = if down { &[0x84] } else { &[RELEASE, 0x84] };
                sysrq(if self.is_held(held::ALT_LEFT) { &left } else { &right }, code, down)
            }
            Key::Print | Key::Sysrq if !self.is_held(held::SHIFT | held::CTRL) => {
                if down {
                    vec![EXTENDED, 0x12, EXTENDED, 0x7c]
                } else {
                    vec![EXTENDED, RELEASE, 0x7c, EXTENDED, RELEASE, 0x12]
                }
            }
            Key::Pause if !down => Vec::new(),
            Key::Pause if self.is_held(held::CTRL) => {
                vec![EXTENDED, 0x7e, EXTENDED, RELEASE, 0x7e]
            }
            Key::Pause => vec![0xe1, 0x14, 0x77, 0xe1, RELEASE, 0x14, RELEASE, 0x77],
            _ => match (key.scan_code(ScanCodeSet::Two).map(u16::to_be_bytes), down) {
                (Some([0, code]), true) => vec![code],
                (Some([0, code]), false) => vec![RELEASE, code],
                (Some([prefix, code]), true) => vec![prefix, code],
                (Some([prefix, code]), false) => vec![prefix, RELEASE, code],
                (None, _) => Vec::new(),
            },
        }
    }

    fn set3(&self, key: Key, down: bool) -> Vec<u8> {
        let Some(code) = key.scan_code(ScanCodeSet::Three) else { return Vec::new() };
        let code = code as u8;
        let silent = self.silent[usize::from(code >> 6)] & 1 << (code & 63) != 0;
        match down {
            true => vec![code],
            false if silent => Vec::new(),
            false => vec![RELEASE, code],
        }
    }

    /// A byte from the controller.
    pub(super) fn command(&mut self, byte: u8) {
        // A command in place of an argument is a command.
        let is_argument = byte < SET_LEDS;
        match self.awaits.take() {
            Some(command) if is_argument => self.argument(command, byte),
            _ => self.start(byte),
        }
    }

    fn argument(&mut self, command: u8, byte: u8) {
        match command {
            SET_LEDS => self.leds = byte & 7,
            command::SET_RATE => self.rate = byte & 0x7f,
            SCAN_CODE_SET => match (byte, self.set) {
                (0, ScanCodeSet::One) => return self.output.answer(&[ACK, 1]),
                (0, ScanCodeSet::Two) => return self.output.answer(&[ACK, 2]),
                (0, ScanCodeSet::Three) => return self.output.answer(&[ACK, 3]),
                (1, _) => self.set = ScanCodeSet::One,
                (2, _) => self.set = ScanCodeSet::Two,
                (3, _) => self.set = ScanCodeSet::Three,
                _ => return self.output.answer(&[RESEND]),
            },
            KEY_TYPEMATIC | KEY_MAKE_BREAK | KEY_MAKE => {
                let (word, bit) = (usize::from(byte >> 6), 1 << (byte & 63));
                let mark = |set: &mut [u64; 4], on: bool| {
                    set[word] = set[word] & !bit | if on { bit } else { 0 };
                };
                mark(&mut self.silent, command != KEY_MAKE_BREAK);
                mark(&mut self.still, command != KEY_TYPEMATIC);
                // More keys may follow.
                self.awaits = Some(command);
            }
            _ => {}
        }
        self.output.answer(&[ACK]);
    }

    fn start(&mut self, byte: u8) {
        match byte {
            NOTHING => {}
            SET_LEDS | SCAN_CODE_SET | command::SET_RATE | KEY_TYPEMATIC..=KEY_MAKE => {
                self.awaits = Some(byte);
            }
            ECHO => return self.output.answer(&[ECHO]),
            command::IDENTIFY => return self.output.answer(&[ACK, ID[0], ID[1]]),
            command::ENABLE => {
                self.output.reports.clear();
                self.scanning = true;
            }
            // The keys that are held stay so.
            command::DISABLE | command::SET_DEFAULTS => {
                let scanning = byte == command::SET_DEFAULTS;
                *self = Self { scanning, held: self.held, leds: self.leds, ..Self::default() };
            }
            ALL_TYPEMATIC..=ALL_TYPEMATIC_MAKE_BREAK => {
                let all = |on: bool| [if on { u64::MAX } else { 0 }; 4];
                self.silent = all(matches!(byte, ALL_TYPEMATIC | ALL_MAKE));
                self.still = all(matches!(byte, ALL_MAKE_BREAK | ALL_MAKE));
            }
            command::RESEND => return self.output.resend(),
            command::RESET => {
                *self = Self { held: self.held, ..Self::default() };
                return self.output.answer(&[ACK, TEST_PASSED]);
            }
            _ => return self.output.answer(&[RESEND]),
        }
        self.output.answer(&[ACK]);
    }
}

/// The codes of the key that asks for the system's attention, which is another one's with Alt held: Alt is
/// told to go up and down again (`alt`) before the key's own `code` when it goes down, else after it.
fn sysrq(alt: &[u8], code: &[u8], down: bool) -> Vec<u8> {
    if down { [alt, code].concat() } else { [code, alt].concat() }
}
