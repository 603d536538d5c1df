//! How other threads get the attention of translated code.
//!
//! All it looks at is one word behind its state, by which it also masks addresses to find them in the jump
//! cache, and the stack pointer for the table of returns. Whoever raises a signal clears it. Then whatever is looked
//! up is found in no entry but the first: the code of a jump cache's looks at the word by itself, and that of returns
//! stays empty. Jumps back look at it, too. So no loop goes on for long.
//!
//! The word tells nothing about what is wanted. It is *armed* again when that has been looked at, before code is
//! entered, or when the helper that fills the jump cache finds that the CPU does not want what is pending: an
//! interrupt while IF is clear. Code that sets IF has to look for that.
//!
//! Who arms looks at the signals afterwards, and who raises one clears the word afterwards; so one of them
//! sees the other.

use std::sync::atomic::{Ordering, fence};

use crate::cpu::Cpu;
use crate::near::NearWord;

use super::Translator;
use super::state::ARMED;

/// The word.
pub(super) struct Bell(pub(super) NearWord);

impl std::fmt::Debug for Bell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Bell").field(&*self.0).finish()
    }
}

impl accel::Bell for Bell {
    fn ring(&self) {
        self.0.store(0, Ordering::SeqCst);
    }
}

impl Bell {
    /// Nothing is wanted, unless [`Translator::listen`] says so.
    pub(super) fn arm(&self) {
        self.0.store(ARMED, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    fn is_rung(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }
}

impl Translator {
    /// Rings the bell if `cpu` wants what is pending; tells whether it does.
    pub(super) fn listen(&self, cpu: &Cpu) -> bool {
        // Where engines are compared, signals are looked at in between.
        let wanted = self.checker.is_none() && cpu.signals.pending() & cpu.urgent_signals() != 0;
        if wanted {
            accel::Bell::ring(&*self.bell);
        }
        wanted
    }

    /// Whether the bell has been rung for something that `cpu` wants.
    pub(super) fn is_wanted(&self, cpu: &Cpu) -> bool {
        self.bell.is_rung() && {
            self.bell.arm();
            self.listen(cpu)
        }
    }
}
