//! A PS/2 keyboard: answers everything that drivers ask of one.

use serde::{Deserialize, Serialize};

use super::ps2::{ACK, Queue, RESEND, TEST_PASSED, command};

const SET_LEDS: u8 = 0xed;
const ECHO: u8 = 0xee;
const SCAN_CODE_SET: u8 = 0xf0;
/// Commands that change how keys repeat, for all or for single keys.
const SET_ALL_TYPEMATIC: u8 = 0xf7;
const SET_KEY_MAKE: u8 = 0xfd;
const ID: [u8; 2] = [0xab, 0x83];

/// A keyboard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Keyboard {
    pub(super) queue: Queue,
    /// The command whose argument comes next.
    awaits: Option<u8>,
    leds: u8,
    /// Scan code set, 1 to 3.
    set: u8,
    rate: u8,
    scanning: bool,
    last: u8,
}

impl Default for Keyboard {
    fn default() -> Self {
        Self {
            queue: Queue::default(),
            awaits: None,
            leds: 0,
            set: 2,
            rate: 0x2b,
            scanning: true,
            last: 0,
        }
    }
}

impl Keyboard {
    pub(super) fn validate(&self) -> Result<(), String> {
        if !(1..=3).contains(&self.set) {
            return Err(format!("scan code set {}", self.set));
        }
        self.queue.validate()
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
            SCAN_CODE_SET => match byte {
                0 => return self.say(&[ACK, self.set]),
                1..=3 => self.set = byte,
                _ => return self.say(&[RESEND]),
            },
            // A scan code for the key that a command is about.
            _ => {}
        }
        self.say(&[ACK]);
    }

    fn start(&mut self, byte: u8) {
        match byte {
            SET_LEDS | SCAN_CODE_SET | command::SET_RATE => {
                self.awaits = Some(byte);
                self.say(&[ACK]);
            }
            ECHO => self.say(&[ECHO]),
            command::IDENTIFY => self.say(&[ACK, ID[0], ID[1]]),
            command::ENABLE => {
                self.scanning = true;
                self.say(&[ACK]);
            }
            command::DISABLE | command::SET_DEFAULTS => {
                let fresh = Self { scanning: byte == command::SET_DEFAULTS, ..Self::default() };
                *self = fresh;
                self.say(&[ACK]);
            }
            SET_ALL_TYPEMATIC..=SET_KEY_MAKE => self.say(&[ACK]),
            command::RESEND => {
                let last = self.last;
                self.queue.answer(&[last]);
            }
            command::RESET => {
                *self = Self::default();
                self.say(&[ACK, TEST_PASSED]);
            }
            _ => self.say(&[RESEND]),
        }
    }

    fn say(&mut self, bytes: &[u8]) {
        self.queue.answer(bytes);
        self.last = bytes.last().copied().unwrap_or(0);
    }
}
