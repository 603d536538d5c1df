//! Events: units that come, go and change (specification, section 5.6.6.3).

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::super::VirtioCore;
use super::{EVENT_QUEUE, VirtioScsi};
use crate::lock;
use crate::scsi::{Address, Sense};

/// Bytes of an event.
pub(super) const EVENT_LEN: usize = 16;
/// Most events that wait for a worker; more are missed.
const MAX_WAITING: usize = 64;

/// Kinds of events.
const NO_EVENT: u32 = 0;
const TRANSPORT_RESET: u32 = 1;
const PARAM_CHANGE: u32 = 3;
/// Set in an event after others that found no buffer.
const MISSED: u32 = 1 << 31;

/// Reasons of a transport reset.
const RESCAN: u32 = 1;
const REMOVED: u32 = 2;

/// Something that the driver is to hear of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Event {
    kind: u32,
    /// Target and unit; none for no event.
    unit: Option<(u16, u16)>,
    reason: u32,
}

impl Event {
    fn new(kind: u32, address: Address, reason: u32) -> Self {
        Self { kind, unit: Some((address.target, address.lun)), reason }
    }

    /// A unit came.
    pub(super) fn rescan(address: Address) -> Self {
        Self::new(TRANSPORT_RESET, address, RESCAN)
    }

    /// A unit went.
    pub(super) fn removed(address: Address) -> Self {
        Self::new(TRANSPORT_RESET, address, REMOVED)
    }

    /// A unit changed in the way that `sense` tells.
    pub(super) fn changed(address: Address, sense: Sense) -> Self {
        Self::new(PARAM_CHANGE, address, u32::from(sense.asc) | u32::from(sense.ascq) << 8)
    }

    fn bytes(self, missed: bool) -> [u8; EVENT_LEN] {
        let mut bytes = [0; EVENT_LEN];
        let kind = self.kind | if missed { MISSED } else { 0 };
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        if let Some((target, lun)) = self.unit {
            let [high, low] = lun.to_be_bytes();
            // The same forms of unit numbers as REPORT LUNS.
            let high = if lun < 256 { 0 } else { 0x40 | high };
            bytes[4..8].copy_from_slice(&[1, target as u8, high, low]);
        }
        bytes[12..].copy_from_slice(&self.reason.to_le_bytes());
        bytes
    }
}

/// Events that wait.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Events {
    waiting: VecDeque<Event>,
    /// Some found no buffer.
    pub(super) missed: bool,
}

impl Events {
    pub(super) fn push(&mut self, event: Event) {
        if self.waiting.len() < MAX_WAITING {
            self.waiting.push_back(event);
        } else {
            self.missed = true;
        }
    }

    /// What is impossible about a saved state.
    pub(super) fn validate(&self) -> Result<(), String> {
        let count = self.waiting.len();
        if count > MAX_WAITING { Err(format!("{count} events")) } else { Ok(()) }
    }
}

impl VirtioScsi {
    /// Gives events to the driver as far as it has buffers for them; the rest is missed.
    pub(super) fn serve_events(&self, core: &VirtioCore) {
        loop {
            // Held until the event is gone, so that events keep their order.
            let mut events = lock(&self.events);
            let missed = events.missed;
            let nothing = Event { kind: NO_EVENT, unit: None, reason: 0 };
            let event = match events.waiting.front() {
                Some(&event) => event,
                None if missed => nothing,
                None => return,
            };
            let Some(chain) = core.pop(EVENT_QUEUE) else {
                events.missed |= !events.waiting.is_empty();
                events.waiting.clear();
                return;
            };
            if chain.writable_len() < EVENT_LEN as u64 {
                core.fail(&super::super::QueueError::BadLength);
                return;
            }
            events.waiting.pop_front();
            events.missed = false;
            match chain.write(core.memory(), 0, &event.bytes(missed)) {
                Ok(written) => core.complete(EVENT_QUEUE, &chain, written as u32),
                Err(error) => core.fail(&error),
            }
        }
    }
}
