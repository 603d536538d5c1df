//! Translations that virtual processors forget because another one asks for it ("HvFlushVirtualAddressSpace"
//! and its relatives): who asks may go on when they all have.
//!
//! Who asks notes what is to be forgotten with each processor ([`CpuGroup::invalidate`]), raises
//! [`Signal::Flush`](accel::Signal::Flush), and waits. A processor looks at it before its next block of
//! instructions. One that is halted or stopped need not be waited for: it publishes that it runs before it
//! looks at its signals, and does that before it executes anything.
//!
//! Waiting is never for long, as others may wait for this processor, and the machine for all: after a moment,
//! or when something wants attention, the call is begun anew. It then asks again, which does no harm. Where
//! processors take turns, nothing happens before this one's turn is over, so there it is remembered what was
//! asked for as long as no other instruction has been executed.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::cpu::Cpu;
use crate::exception::{Exception, Result};
use crate::group::{CpuGroup, Member};
use crate::regs::CR4_PCIDE;

/// Pages that are noted one by one.
const MOST_PAGES: usize = 64;
/// Looks at the others before the call is begun anew.
const MOST_LOOKS: u32 = 200;

/// What is to be forgotten.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Invalidation {
    /// Everything.
    everything: bool,
    /// All pages that are not global.
    local: bool,
    /// The pages at these linear addresses.
    pages: Vec<u64>,
}

impl Invalidation {
    /// Everything, or all pages that are not global.
    pub(super) fn space(global: bool) -> Self {
        Self { everything: global, local: !global, pages: Vec::new() }
    }

    /// `count` pages from `linear` on.
    pub(super) fn add_pages(&mut self, linear: u64, count: u64) {
        if self.everything {
            return;
        }
        if count.saturating_add(self.pages.len() as u64) > MOST_PAGES as u64 {
            *self = Self::space(true);
            return;
        }
        self.pages.extend((0..count).map(|n| linear.wrapping_add(n << 12)));
    }

    /// `other`, too.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.everything |= other.everything;
        self.local |= other.local;
        if self.pages.len() + other.pages.len() > MOST_PAGES {
            self.everything = true;
        } else {
            self.pages.extend(&other.pages);
        }
        if self.everything {
            self.pages.clear();
        }
    }
}

/// What processors were asked for: each with the number of the request.
#[derive(Default)]
pub(crate) struct Asked {
    /// The instruction count at which it was.
    at: u64,
    members: Vec<(Arc<Member>, u64)>,
}

impl Asked {
    fn is_done(&self) -> bool {
        self.members.iter().all(|(member, number)| member.has_invalidated(*number))
    }
}

impl Cpu {
    /// Has each processor that `wanted` names forget `what`. Comes back when all have, or with
    /// [`Exception::RETRY`].
    pub(super) fn invalidate_on(
        &mut self,
        wanted: impl Fn(u32) -> bool,
        what: &Invalidation,
    ) -> Result {
        let takes_turns = self.recorder.is_some();
        let again =
            takes_turns && self.asked.at == self.instructions && !self.asked.members.is_empty();
        if !again {
            let group: Arc<CpuGroup> = Arc::clone(&self.group);
            let members = group.invalidate(&self.member, &wanted, what);
            self.asked = Asked { at: self.instructions, members };
            let own = self.partition.as_ref().is_some_and(|place| wanted(place.processor));
            if own {
                self.forget(what);
            }
        }
        let mut looks = if takes_turns { 1 } else { MOST_LOOKS };
        while !self.asked.is_done() {
            looks -= 1;
            if looks == 0 || self.signals.pending() & self.urgent_signals() != 0 {
                return Err(Exception::RETRY);
            }
            std::thread::yield_now();
        }
        self.asked.members.clear();
        Ok(())
    }

    /// Forgets what other processors have asked for.
    pub(crate) fn forget_what_is_asked(&mut self) {
        let member = Arc::clone(&self.member);
        if let Some((number, what)) = member.take_invalidation() {
            self.forget(&what);
            member.note_invalidated(number);
        }
    }

    fn forget(&mut self, what: &Invalidation) {
        // With process-context identifiers or a nested guest, there are more address spaces than the one whose
        // pages could be forgotten one by one.
        let several = self.cr4 & CR4_PCIDE != 0 || self.svm.guest;
        if what.everything || several {
            self.tlb.flush_every_asid();
            self.tlb.switch(self.pcid(), true);
            return;
        }
        if what.local {
            self.tlb.flush_non_global(self.pcid());
        }
        what.pages.iter().for_each(|&linear| self.tlb.invalidate(linear));
    }
}

impl Member {
    /// Notes that `what` is to be forgotten; returns the number of the request.
    pub(crate) fn ask(&self, what: &Invalidation) -> u64 {
        let mut wanted = self.wanted.lock().unwrap_or_else(|e| e.into_inner());
        wanted.merge(what);
        self.asked.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// What is asked for, with the number of the last request.
    fn take_invalidation(&self) -> Option<(u64, Invalidation)> {
        let mut wanted = self.wanted.lock().unwrap_or_else(|e| e.into_inner());
        let asked = self.asked.load(Ordering::SeqCst);
        let fresh = asked != self.invalidated.load(Ordering::SeqCst);
        fresh.then(|| (asked, std::mem::take(&mut *wanted)))
    }

    fn note_invalidated(&self, number: u64) {
        self.invalidated.store(number, Ordering::SeqCst);
    }

    /// Whether request `number` is done with, or will be before anything is executed.
    fn has_invalidated(&self, number: u64) -> bool {
        self.invalidated.load(Ordering::SeqCst) >= number || self.rests()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_pages_are_everything() {
        let mut few = Invalidation::default();
        few.add_pages(0x7000, 2);
        assert_eq!(few.pages, [0x7000, 0x8000]);
        let mut many = few.clone();
        many.add_pages(0, 4096);
        assert_eq!(many, Invalidation::space(true));
        let mut merged = Invalidation::space(false);
        merged.merge(&few);
        assert!(merged.local && merged.pages.len() == 2);
        for _ in 0..MOST_PAGES {
            merged.merge(&few);
        }
        assert!(merged.everything && merged.pages.is_empty());
        let mut none = Invalidation::default();
        none.add_pages(!0xfff, 2);
        assert_eq!(none.pages, [!0xfff, 0]);
    }
}
