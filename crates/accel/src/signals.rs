//! The word through which other threads get a CPU's attention.
//!
//! One atomic word a CPU; a set bit is a level, not a count. [`Signals::raise`] wakes the CPU's thread
//! if it sleeps in [`Signals::wait`]. Between instructions the CPU reads the word once: a zero word,
//! the common case, costs one load. What runs without reading it has a [`Bell`].

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// Something a CPU has to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Signal {
    /// Leave `run` between two instructions. Raised and cleared by the CPU's own thread's owner.
    Exit = 1 << 0,
    /// A maskable interrupt waits in the interrupt controller.
    Interrupt = 1 << 1,
    /// A non-maskable interrupt; the CPU clears it when it takes it.
    Nmi = 1 << 2,
    /// A system management interrupt; the CPU clears it when it takes it.
    Smi = 1 << 3,
    /// INIT; the CPU clears it when it takes it.
    Init = 1 << 4,
    /// Start-up IPI; the CPU clears it, and takes it only while it waits for one.
    Startup = 1 << 5,
    /// Other CPUs ask this one to drop cached translations; internal to an accelerator.
    Flush = 1 << 6,
    /// Code that was translated may have been written; internal to an accelerator.
    Code = 1 << 7,
    /// A timer is due earlier than the CPU knows, whose instructions make time pass.
    Time = 1 << 8,
}

/// What is told of each signal as it is raised.
pub trait Bell: std::fmt::Debug + Send + Sync {
    /// A signal has been raised, and is pending.
    fn ring(&self);
}

/// The signals of one CPU.
#[derive(Debug, Default)]
pub struct Signals {
    pending: AtomicU32,
    bell: Mutex<Option<Arc<dyn Bell>>>,
    sleeping: Mutex<()>,
    wake: Condvar,
}

impl Signals {
    /// All raised signals as a bit set of [`Signal`] values.
    #[inline]
    pub fn pending(&self) -> u32 {
        self.pending.load(Ordering::Relaxed)
    }

    /// Whether `signal` is raised.
    #[inline]
    pub fn is_raised(&self, signal: Signal) -> bool {
        self.pending() & signal as u32 != 0
    }

    /// From now on, `bell` is told of signals.
    pub fn tell(&self, bell: Arc<dyn Bell>) {
        *self.bell.lock().unwrap_or_else(|e| e.into_inner()) = Some(bell);
    }

    /// Raises `signal` and wakes the CPU's thread.
    pub fn raise(&self, signal: Signal) {
        let before = self.pending.fetch_or(signal as u32, Ordering::SeqCst);
        if before & signal as u32 == 0 {
            if let Some(bell) = &*self.bell.lock().unwrap_or_else(|e| e.into_inner()) {
                bell.ring();
            }
            // Taking the lock orders this with a sleeper that has checked but not yet waited.
            drop(self.sleeping.lock().unwrap_or_else(|e| e.into_inner()));
            self.wake.notify_all();
        }
    }

    /// Lowers `signal`; tells whether it was raised.
    pub fn clear(&self, signal: Signal) -> bool {
        self.pending.fetch_and(!(signal as u32), Ordering::SeqCst) & signal as u32 != 0
    }

    /// Address of the word, for generated code that polls it.
    pub fn word(&self) -> &AtomicU32 {
        &self.pending
    }

    /// Sleeps until one of the signals in `mask` is raised, or `timeout` has passed.
    pub fn wait(&self, mask: u32, timeout: Option<Duration>) {
        let mut guard = self.sleeping.lock().unwrap_or_else(|e| e.into_inner());
        while self.pending.load(Ordering::SeqCst) & mask == 0 {
            guard = match timeout {
                None => self.wake.wait(guard).unwrap_or_else(|e| e.into_inner()),
                Some(limit) => {
                    let (_guard, _) =
                        self.wake.wait_timeout(guard, limit).unwrap_or_else(|e| e.into_inner());
                    return;
                }
            };
        }
    }
}
