//! How workers go through the requests of a device with a backend that may be slow or fail.
//!
//! A request whose failure stops the machine is held back and made again when it continues. Requests
//! that take long are served by several workers at a time.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{Chain, VirtioCore};
use crate::lock;

/// Requests that take longer than this, on average, are served by several threads at a time; for shorter
/// ones waking a thread costs more than it gains. In nanoseconds.
const SLOW_REQUEST_NS: u64 = 100_000;

/// A request that waits for the machine to continue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct HeldRequest {
    pub(super) queue: u16,
    pub(super) chain: Chain,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// It was answered.
    Done,
    /// It is to be made again when the machine continues.
    Held,
}

/// The requests of one device.
#[derive(Default)]
pub(super) struct Backlog {
    held: Mutex<Vec<HeldRequest>>,
    /// Moving average of how long requests took, in nanoseconds.
    pace_ns: AtomicU64,
    /// A failure asked for the machine to stop; nothing more is taken until it continues.
    halted: AtomicBool,
    /// Held while a request is taken and admitted, so that both go in one order.
    turn: Mutex<()>,
}

impl Backlog {
    /// Takes requests of `queue` and those held back, one by one, until there are none or the machine
    /// stops. `admit` is called for each, in the order in which they are taken; what it returns lives
    /// until `act` is through with the request.
    pub(super) fn serve<G>(
        &self,
        core: &VirtioCore,
        queue: u16,
        admit: impl Fn(&Chain) -> G,
        act: impl Fn(u16, &Chain) -> Progress,
    ) {
        while !core.is_pausing() && !self.halted.load(Ordering::Acquire) {
            let turn = lock(&self.turn);
            let held = self.held().pop();
            let (queue, chain) = match held {
                Some(held) => (held.queue, held.chain),
                None => match core.pop(queue) {
                    Some(chain) => (queue, chain),
                    None => return,
                },
            };
            let admitted = admit(&chain);
            drop(turn);
            let pace = self.pace_ns.load(Ordering::Relaxed);
            if pace > SLOW_REQUEST_NS && core.has_next(queue) {
                core.kick(queue);
            }
            let begin = Instant::now();
            if act(queue, &chain) == Progress::Held {
                self.halted.store(true, Ordering::Release);
                self.held().push(HeldRequest { queue, chain });
            }
            drop(admitted);
            let took = u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.pace_ns.store((pace / 8 * 7).saturating_add(took / 8), Ordering::Relaxed);
        }
    }

    /// The requests that wait for the machine to continue.
    pub(super) fn held(&self) -> MutexGuard<'_, Vec<HeldRequest>> {
        lock(&self.held)
    }

    /// The machine continues.
    pub(super) fn resumed(&self) {
        self.halted.store(false, Ordering::Release);
    }

    /// Forgets requests of `queue`.
    pub(super) fn queue_reset(&self, queue: u16) {
        self.held().retain(|held| held.queue != queue);
    }

    /// Forgets all requests.
    pub(super) fn reset(&self) {
        self.restore(Vec::new());
    }

    /// Takes over requests that a saved device held back.
    pub(super) fn restore(&self, held: Vec<HeldRequest>) {
        *self.held() = held;
        self.halted.store(false, Ordering::Release);
    }
}
