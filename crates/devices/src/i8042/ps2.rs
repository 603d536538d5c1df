//! What PS/2 devices share: the queue of bytes that wait for the controller, and common bytes.

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

/// Bytes on their way to the guest. What comes when it is full is lost, as on the wire.
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

    pub(super) fn push(&mut self, byte: u8) {
        if self.0.len() < Self::LIMIT {
            self.0.push_back(byte);
        }
    }

    /// Replaces whatever waits: a command ends the answer to the one before.
    pub(super) fn answer(&mut self, bytes: &[u8]) {
        self.0.clear();
        self.0.extend(bytes.iter().take(Self::LIMIT));
    }

    pub(super) fn pop(&mut self) -> Option<u8> {
        self.0.pop_front()
    }

    pub(super) fn pop_if(&mut self, allowed: bool) -> Option<u8> {
        if allowed { self.0.pop_front() } else { None }
    }
}
