//! What PS/2 devices share: the queues of bytes that wait for the controller, and common bytes.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// The device took the byte.
pub(super) const ACK: u8 = 0xfa;
/// The device did not understand the byte.
pub(super) const RESEND: u8 = 0xfe;
/// The device's self-test passed.
pub(super) const TEST_PASSED: u8 = 0xaa;

/// Commands that both kinds of device have.
pub(super) mod command {
    pub(crate) const IDENTIFY: u8 = 0xf2;
    pub(crate) const SET_RATE: u8 = 0xf3;
    pub(crate) const ENABLE: u8 = 0xf4;
    pub(crate) const DISABLE: u8 = 0xf5;
    pub(crate) const SET_DEFAULTS: u8 = 0xf6;
    pub(crate) const RESEND: u8 = 0xfe;
    pub(crate) const RESET: u8 = 0xff;
}

/// Bytes on their way to the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Queue(VecDeque<u8>);

impl Queue {
    const LIMIT: usize = 16;

    pub(super) fn validate(&self) -> Result<(), String> {
        if self.0.len() > Self::LIMIT {
            return Err(format!("{} bytes wait in a queue of {}", self.0.len(), Self::LIMIT));
        }
        Ok(())
    }

    /// How many more bytes it takes.
    pub(super) fn room(&self) -> usize {
        Self::LIMIT.saturating_sub(self.0.len())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Adds bytes that belong together, all of them or, if there is no room, none.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        if bytes.len() <= self.room() {
            self.0.extend(bytes);
        }
    }

    pub(super) fn pop(&mut self) -> Option<u8> {
        self.0.pop_front()
    }
}

/// What a device has to say: the answer to a command goes before what happened to the device, and a
/// command ends the answer to the one before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Output {
    answer: Queue,
    /// Scan codes, or movements.
    pub(super) reports: Queue,
    /// The last byte that was sent.
    last: u8,
}

impl Output {
    pub(super) fn validate(&self) -> Result<(), String> {
        self.answer.validate()?;
        self.reports.validate()
    }

    /// Answers a command.
    pub(super) fn answer(&mut self, bytes: &[u8]) {
        self.answer.clear();
        self.answer.push(bytes);
    }

    /// Answers the command to send the last byte again.
    pub(super) fn resend(&mut self) {
        let last = self.last;
        self.answer(&[last]);
    }

    pub(super) fn next(&mut self) -> Option<u8> {
        let byte = self.answer.pop().or_else(|| self.reports.pop())?;
        self.last = byte;
        Some(byte)
    }
}
