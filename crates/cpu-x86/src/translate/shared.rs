//! What the CPUs of a machine share: the code buffer and the translations in it.
//!
//! CPUs look up and add translations one at a time, holding a lock. They run code without it, and go from
//! one translation to the next while another CPU adds more and changes where jumps lead: that is one store
//! of four bytes (`code`). What a CPU knows by itself is its jump cache, and which versions of pages it has
//! seen; each finds out by itself that code was written, and the first that does undoes the links.
//!
//! When the buffer is full, another takes its place, and CPUs go over to it before they next look for code.
//! The old one lives until the last CPU has; one that sleeps keeps what it had, so at worst there is a buffer
//! for each CPU.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};

use accel::{Signal, Signals};

use super::cache::Cache;
use super::code::CodeBuffer;
use super::state::TRANSLATIONS;
use super::thunks::{self, Thunks};
use super::{HEAT_BITS, ROOM};

/// What has to be the same for CPUs that share translations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    /// Size of the code buffer in bytes.
    pub(super) size: usize,
    /// Translations lead to each other.
    pub(super) chains: bool,
    /// Instructions are counted.
    pub(super) counts: bool,
    /// The host has AVX.
    pub(super) avx: bool,
}

/// The translations that CPUs share, and who they are.
#[derive(Default)]
pub(crate) struct Sharing {
    current: Mutex<Option<Arc<Shared>>>,
    /// That of `current`.
    generation: AtomicU64,
    /// The signals of all that share.
    signals: Arc<RwLock<Vec<Arc<Signals>>>>,
}

impl fmt::Debug for Sharing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sharing").field("generation", &self.generation).finish_non_exhaustive()
    }
}

impl Sharing {
    /// Adds the CPU with `signals`. `None` if what there is is of another kind.
    ///
    /// # Errors
    /// The host's, if it has no memory for the buffer.
    pub(super) fn join(
        &self,
        signals: &Arc<Signals>,
        kind: Kind,
    ) -> io::Result<Option<Arc<Shared>>> {
        let mut current = self.current.lock().unwrap_or_else(|e| e.into_inner());
        let shared = match &*current {
            Some(shared) if shared.kind != kind => return Ok(None),
            Some(shared) => Arc::clone(shared),
            None => Arc::clone(current.insert(self.next(kind)?)),
        };
        self.signals.write().unwrap_or_else(|e| e.into_inner()).push(Arc::clone(signals));
        Ok(Some(shared))
    }

    /// The CPU with `signals` needs translations no more.
    pub(super) fn leave(&self, signals: &Arc<Signals>) {
        let mut current = self.current.lock().unwrap_or_else(|e| e.into_inner());
        let mut all = self.signals.write().unwrap_or_else(|e| e.into_inner());
        all.retain(|other| !Arc::ptr_eq(other, signals));
        if all.is_empty() {
            *current = None;
        }
    }

    /// The number of the buffer in use.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The buffer in use.
    pub(super) fn current(&self) -> Option<Arc<Shared>> {
        self.current.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// Another buffer takes the place of `full`, if none has yet. Returns whether it did.
    ///
    /// # Errors
    /// The host's, if it has no memory for it.
    pub(super) fn replace(&self, full: &Shared) -> io::Result<bool> {
        let mut current = self.current.lock().unwrap_or_else(|e| e.into_inner());
        if current.as_ref().is_none_or(|current| current.generation != full.generation) {
            return Ok(false);
        }
        *current = Some(self.next(full.kind)?);
        drop(current);
        wake(&self.signals);
        Ok(true)
    }

    /// The next buffer. `current` is locked.
    fn next(&self, kind: Kind) -> io::Result<Arc<Shared>> {
        let generation = self.generation() + 1;
        let signals = Arc::clone(&self.signals);
        let mut code = CodeBuffer::new(kind.size)?;
        let (bytes, thunks) = thunks::write(code.next([0; 2])[0], kind.avx);
        code.push(&bytes)?;
        let cache = Cache::new(Arc::new(move || wake(&signals)));
        let heat = (0..1 << HEAT_BITS).map(|_| AtomicU8::new(0)).collect();
        let held = Mutex::new(Held { cache, code });
        let shared = Shared { generation, kind, thunks, heat, held };
        self.generation.store(generation, Ordering::Release);
        Ok(Arc::new(shared))
    }
}

/// Makes all CPUs leave translated code.
fn wake(signals: &RwLock<Vec<Arc<Signals>>>) {
    let signals = signals.read().unwrap_or_else(|e| e.into_inner());
    signals.iter().for_each(|signals| signals.raise(Signal::Code));
}

/// A code buffer with the translations in it.
pub(super) struct Shared {
    pub(super) generation: u64,
    kind: Kind,
    pub(super) thunks: Thunks,
    /// How often code was executed that is not translated.
    heat: Box<[AtomicU8]>,
    held: Mutex<Held>,
}

/// What one CPU at a time has.
pub(super) struct Held {
    pub(super) cache: Cache,
    pub(super) code: CodeBuffer,
}

impl Held {
    /// Whether there may be no room for another translation.
    pub(super) fn is_full(&self) -> bool {
        self.code.free() < ROOM || self.cache.translations.len() >= TRANSLATIONS as usize
    }
}

impl Shared {
    pub(super) fn hold(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Code at host address `host` is executed `more` times; whether that makes it `threshold` times. CPUs may
    /// take no notice of each other.
    pub(super) fn warm(&self, host: usize, more: u8, threshold: u8) -> bool {
        let hash = (host as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let heat = &self.heat[(hash >> (64 - HEAT_BITS)) as usize];
        let times = heat.load(Ordering::Relaxed).saturating_add(more);
        let warm = times >= threshold;
        heat.store(if warm { 0 } else { times }, Ordering::Relaxed);
        warm
    }
}
