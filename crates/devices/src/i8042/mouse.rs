//! A PS/2 mouse with a wheel: answers everything that drivers ask of one.

use serde::{Deserialize, Serialize};

use super::ps2::{ACK, Queue, RESEND, TEST_PASSED, command};

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

/// First byte of a movement report: always set.
const REPORT: u8 = 1 << 3;

/// A mouse.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mouse {
    pub(super) queue: Queue,
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
    last: u8,
}

impl Default for Mouse {
    fn default() -> Self {
        Self {
            queue: Queue::default(),
            awaits: None,
            id: PLAIN,
            reporting: false,
            double_scale: false,
            remote: false,
            wrap: false,
            resolution: 2,
            rate: 100,
            rates: [0; 3],
            last: 0,
        }
    }
}

impl Mouse {
    pub(super) fn validate(&self) -> Result<(), String> {
        if !matches!(self.id, PLAIN | WHEEL | FIVE_BUTTONS) {
            return Err(format!("mouse id {}", self.id));
        }
        self.queue.validate()
    }

    /// A byte from the controller.
    pub(super) fn command(&mut self, byte: u8) {
        if let Some(command) = self.awaits.take() {
            self.argument(command, byte);
        } else if self.wrap && byte != LEAVE_WRAP_MODE && byte != command::RESET {
            self.say(&[byte]);
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
                KNOCK_WHEEL if self.id == PLAIN => self.id = WHEEL,
                KNOCK_FIVE_BUTTONS if self.id == WHEEL => self.id = FIVE_BUTTONS,
                _ => {}
            }
        }
        self.say(&[ACK]);
    }

    fn start(&mut self, byte: u8) {
        match byte {
            SET_RESOLUTION | command::SET_RATE => self.awaits = Some(byte),
            SCALE_1_TO_1 => self.double_scale = false,
            SCALE_2_TO_1 => self.double_scale = true,
            STREAM_MODE => self.remote = false,
            REMOTE_MODE => self.remote = true,
            WRAP_MODE => self.wrap = true,
            LEAVE_WRAP_MODE => self.wrap = false,
            command::ENABLE => self.reporting = true,
            command::DISABLE => self.reporting = false,
            command::SET_DEFAULTS => *self = Self { id: self.id, ..Self::default() },
            STATUS => return self.say(&[ACK, self.status(), self.resolution, self.rate]),
            READ_DATA => {
                // It lies still.
                let wheel = if self.id == PLAIN { 4 } else { 5 };
                return self.say(&[ACK, REPORT, 0, 0, 0][..wheel]);
            }
            command::IDENTIFY => return self.say(&[ACK, self.id]),
            command::RESEND => {
                let last = self.last;
                return self.queue.answer(&[last]);
            }
            command::RESET => {
                *self = Self::default();
                return self.say(&[ACK, TEST_PASSED, PLAIN]);
            }
            _ => return self.say(&[RESEND]),
        }
        self.say(&[ACK]);
    }

    fn status(&self) -> u8 {
        u8::from(self.remote) << 6
            | u8::from(self.reporting) << 5
            | u8::from(self.double_scale) << 4
    }

    fn say(&mut self, bytes: &[u8]) {
        self.queue.answer(bytes);
        self.last = bytes.last().copied().unwrap_or(0);
    }
}
