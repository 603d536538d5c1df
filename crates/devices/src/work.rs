//! Who serves the queues, and when: kicks, pauses and the end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};

use crate::lock;

#[derive(Debug, Default)]
struct State {
    /// One bit for each queue that wants service.
    kicked: u64,
    /// How many pauses are on.
    pauses: u32,
    /// Workers that serve a queue now.
    busy: u32,
    closed: bool,
}

/// What vCPUs, workers and the machine's owner tell each other.
#[derive(Debug, Default)]
pub(crate) struct Work {
    state: Mutex<State>,
    /// Workers wait here.
    wake: Condvar,
    /// Pausing threads wait here.
    idle: Condvar,
    /// Whether a pause is on or the end has come; read by workers between requests.
    pausing: AtomicBool,
}

impl Work {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Asks for service of `queue` (below 64).
    pub(crate) fn kick(&self, queue: u16) {
        self.kick_mask(1 << (queue & 63));
    }

    /// Asks for service of the queues whose bits are set.
    pub(crate) fn kick_mask(&self, mask: u64) {
        let mut state = self.lock();
        state.kicked |= mask;
        let wake = state.pauses == 0 && mask != 0;
        drop(state);
        if wake {
            self.wake.notify_one();
        }
    }

    /// Whether workers are to stop after the request at hand.
    pub(crate) fn is_pausing(&self) -> bool {
        self.pausing.load(Ordering::Acquire)
    }

    /// Waits until no worker serves a queue, and keeps it so until [`Work::resume`].
    pub(crate) fn pause(&self) {
        let mut state = self.lock();
        state.pauses += 1;
        self.pausing.store(true, Ordering::Release);
        while state.busy > 0 {
            state = self.idle.wait(state).unwrap_or_else(|e| e.into_inner());
        }
    }

    /// Ends one pause; tells whether it was the last. `kick` are queues to serve then.
    pub(crate) fn resume(&self, kick: u64) -> bool {
        let mut state = self.lock();
        state.pauses = state.pauses.saturating_sub(1);
        state.kicked |= kick;
        let last = state.pauses == 0;
        if last && !state.closed {
            self.pausing.store(false, Ordering::Release);
            drop(state);
            self.wake.notify_all();
        }
        last
    }

    /// Forgets all kicks.
    pub(crate) fn forget_kicks(&self) {
        self.lock().kicked = 0;
    }

    /// Sends the workers home.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.pausing.store(true, Ordering::Release);
        self.wake.notify_all();
    }

    /// Waits for a queue to serve; `None` at the end.
    pub(crate) fn next(&self) -> Option<Job<'_>> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            if state.pauses == 0 && state.kicked != 0 {
                let queue = state.kicked.trailing_zeros() as u16;
                state.kicked &= state.kicked - 1;
                state.busy += 1;
                if state.kicked != 0 {
                    self.wake.notify_one();
                }
                return Some(Job { work: self, queue });
            }
            state = self.wake.wait(state).unwrap_or_else(|e| e.into_inner());
        }
    }
}

/// A queue that a worker serves; dropping it says that it is done.
pub(crate) struct Job<'a> {
    work: &'a Work,
    pub(crate) queue: u16,
}

impl Drop for Job<'_> {
    fn drop(&mut self) {
        let mut state = self.work.lock();
        state.busy -= 1;
        let idle = state.busy == 0 && state.pauses > 0;
        if state.pauses > 0 {
            // What the pause cut short is taken up again after it.
            state.kicked |= 1 << (self.queue & 63);
        }
        drop(state);
        if idle {
            self.work.idle.notify_all();
        }
    }
}
