//! What a CPU counts of its own work: translations, the ways into and out of them, the TLB.
//!
//! Each number has one writer, the CPU's thread, so that counting costs a load and a store; anyone may
//! read at any time. They count from the machine's start and are never reset.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use iced_x86::Mnemonic;

/// Most instructions that [`report`] names.
const MOST_NAMED: usize = 40;

macro_rules! counts {
    ($($(#[doc = $doc:literal])* $variant:ident => $name:literal,)*) => {
        /// A number that is counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub(crate) enum Count {
            $($(#[doc = $doc])* $variant,)*
        }

        impl Count {
            /// All of them with their names.
            const ALL: &[(Self, &str)] = &[$((Self::$variant, $name),)*];
        }
    };
}

counts! {
    /// Translations that there are now.
    Present => "translations present",
    /// Bytes of the code buffer in use.
    Used => "code buffer used",
    /// Bytes of the code buffer.
    Size => "code buffer size",
    /// Translations made since the start.
    Made => "translations made",
    /// Translations that were found to be still right after their page was written.
    Renewed => "translations renewed",
    /// Times that the code buffer was full and all translations were dropped.
    Flushes => "translation flushes",
    /// Times that code was found to have been written.
    Invalidations => "invalidations by writes",
    /// Direct jumps between translations made.
    Links => "jumps chained",
    /// Direct jumps undone because their page was written.
    Unlinks => "jumps unchained",
    /// Times that the run loop entered translated code.
    Entries => "entries into translations",
    /// Searches for a translation that the jump cache did not know.
    LookUps => "jump cache misses",
    /// Times that the jump cache was emptied.
    Emptied => "jump cache flushes",
    /// Instructions that translated code had the interpreter execute.
    Steps => "instructions stepped",
    /// Accesses to memory that translated code left to the interpreter.
    SlowAccesses => "accesses stepped",
    /// Blocks interpreted because the CPU's mode is none that is translated.
    OtherMode => "blocks interpreted, mode",
    /// Blocks interpreted because a signal is pending that can't be taken.
    Pending => "blocks interpreted, signal",
    /// Blocks interpreted because they were not run often enough.
    Cold => "blocks interpreted, cold",
    /// Blocks interpreted because the first-level TLB had no entry for them.
    NoEntry => "blocks interpreted, TLB miss",
    /// Blocks interpreted because translating them gains nothing or is not possible now.
    NotWorth => "blocks interpreted, no gain",
    /// Blocks interpreted because vector registers were not available.
    Refused => "blocks interpreted, vectors",
    /// Instructions executed one at a time.
    Careful => "instructions with care",
    /// Events delivered: exceptions and interrupts.
    Events => "exceptions and interrupts",
    /// Misses of the first-level TLB.
    TlbMisses => "TLB misses, first level",
    /// Misses of the second level: page walks.
    Walks => "TLB misses, second level",
    /// Times that the first level was emptied.
    TlbFlushes => "TLB flushes",
    /// Switches of address spaces.
    Switches => "address space switches",
    /// Single pages invalidated.
    PageFlushes => "TLB pages invalidated",
    /// Searches of the whole TLB for the pieces of a large page.
    Searches => "TLB searches",
}

/// One CPU's counters.
pub struct Counters {
    values: [AtomicU64; Count::ALL.len()],
    /// For each mnemonic, how often the interpreter executed it because it is not translated.
    left: Box<[AtomicU64]>,
}

impl Default for Counters {
    fn default() -> Self {
        let left = Mnemonic::values().map(|_| AtomicU64::new(0)).collect();
        Self { values: std::array::from_fn(|_| AtomicU64::new(0)), left }
    }
}

fn bump(value: &AtomicU64, by: u64) {
    value.store(value.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
}

impl Counters {
    /// Counts one.
    #[inline]
    pub(crate) fn count(&self, what: Count) {
        self.add(what, 1);
    }

    /// Counts `n`.
    #[inline]
    pub(crate) fn add(&self, what: Count, n: u64) {
        bump(&self.values[what as usize], n);
    }

    /// Sets what is no count but a size.
    pub(crate) fn set(&self, what: Count, value: u64) {
        self.values[what as usize].store(value, Ordering::Relaxed);
    }

    /// A number as it is now.
    #[cfg(test)]
    pub(crate) fn value(&self, what: Count) -> u64 {
        self.values[what as usize].load(Ordering::Relaxed)
    }

    /// Counts an instruction that the interpreter executed because it is not translated.
    #[inline]
    pub(crate) fn leave(&self, mnemonic: u16) {
        if let Some(count) = self.left.get(usize::from(mnemonic)) {
            bump(count, 1);
        }
    }
}

/// What all CPUs have counted together, as text: a line each, a name and a number.
pub fn report(cpus: &[Arc<Counters>]) -> String {
    let sum = |value: fn(&Counters, usize) -> &AtomicU64, index| {
        let values = cpus.iter().map(|counters| value(counters, index).load(Ordering::Relaxed));
        values.fold(0, u64::wrapping_add)
    };
    let most = |index: usize| {
        cpus.iter().map(|counters| counters.values[index].load(Ordering::Relaxed)).max()
    };
    let mut text = String::new();
    let mut line = |name: &str, value: u64| {
        let _ = writeln!(text, "{name:<32}{value}");
    };
    for &(count, name) in Count::ALL {
        let value = match count {
            // They are of what CPUs share, as each last saw it.
            Count::Present | Count::Used | Count::Size => most(count as usize).unwrap_or(0),
            _ => sum(|counters, index| &counters.values[index], count as usize),
        };
        line(name, value);
    }
    let mut left: Vec<_> = Mnemonic::values()
        .map(|mnemonic| (sum(|counters, index| &counters.left[index], mnemonic as usize), mnemonic))
        .filter(|&(count, _)| count != 0)
        .collect();
    left.sort_by_key(|&(count, _)| std::cmp::Reverse(count));
    for (count, mnemonic) in left.into_iter().take(MOST_NAMED) {
        line(&format!("left: {}", format!("{mnemonic:?}").to_lowercase()), count);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_sums_and_sorts() {
        let cpus = [Arc::new(Counters::default()), Arc::new(Counters::default())];
        cpus[0].count(Count::Made);
        cpus[1].add(Count::Made, 2);
        cpus[0].set(Count::Present, 2);
        cpus[1].set(Count::Present, 3);
        cpus[0].leave(Mnemonic::Cpuid as u16);
        cpus[0].leave(Mnemonic::Iretq as u16);
        cpus[1].leave(Mnemonic::Iretq as u16);
        cpus[1].leave(u16::MAX);
        let text = report(&cpus);
        assert!(text.contains("translations made               3\n"), "{text}");
        assert!(text.contains("translations present            3\n"), "{text}");
        assert!(
            text.ends_with(
                "left: iretq                     2\nleft: cpuid                     1\n"
            ),
            "{text}"
        );
    }
}
