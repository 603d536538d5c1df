//! What a machine tells about its inner life, for whoever looks for a fault (`-d`, `-D`).
//!
//! Each line belongs to a [`Topic`]; lines of topics that nobody asked for cost a test of one bit. A log
//! belongs to a machine, not to the process. Lines about guest code can be limited to ranges of
//! addresses (`-dfilter`). Host code that was made from the guest's is told to `perf` by a map
//! (`-perfmap`).

use std::fmt;
use std::io::Write;
use std::ops::RangeInclusive;
use std::sync::Mutex;

/// Something to tell about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Topic {
    /// Guest code as it is decoded.
    GuestCode = 1 << 0,
    /// Interrupts and exceptions as they are delivered.
    Interrupts = 1 << 1,
    /// CPU states at resets.
    CpuReset = 1 << 2,
    /// Accesses that no sane guest makes.
    GuestErrors = 1 << 3,
    /// What a guest asked for and is not there.
    Unimplemented = 1 << 4,
    /// Host code that guest code was translated to.
    HostCode = 1 << 5,
    /// Where translated code, or a block of the interpreter's, is entered.
    Execution = 1 << 6,
    /// The registers at those places.
    Registers = 1 << 7,
    /// Nothing to tell: translated code is left at the end of each block, so that each is entered.
    NoChain = 1 << 8,
}

impl Topic {
    /// All topics with their names as `-d` has them and what they show.
    pub const ALL: [(Self, &'static str, &'static str); 9] = [
        (Self::HostCode, "out_asm", "host code, each block when it is translated"),
        (Self::GuestCode, "in_asm", "guest code, each block when it is decoded or translated"),
        (Self::Interrupts, "int", "interrupts and exceptions as they are delivered"),
        (Self::Execution, "exec", "where blocks are entered, of those chained together the first"),
        (Self::Registers, "cpu", "registers where blocks are entered"),
        (Self::NoChain, "nochain", "chain no blocks, so that 'exec' and 'cpu' show each"),
        (Self::CpuReset, "cpu_reset", "the state of each CPU at a reset"),
        (Self::GuestErrors, "guest_errors", "accesses that no sane guest makes"),
        (Self::Unimplemented, "unimp", "what a guest asked for and is not there"),
    ];
}

/// A machine's log.
pub struct Log {
    topics: u32,
    /// Where lines about guest code have to be about; everywhere if empty.
    ranges: Vec<RangeInclusive<u64>>,
    out: Mutex<Box<dyn Write + Send>>,
    perf: Option<Mutex<Box<dyn Write + Send>>>,
}

impl Default for Log {
    /// A log that nobody reads.
    fn default() -> Self {
        Self::new(&[], Box::new(std::io::sink()))
    }
}

impl Log {
    /// A log of `topics` into `out`.
    pub fn new(topics: &[Topic], out: Box<dyn Write + Send>) -> Self {
        let topics = topics.iter().fold(0, |bits, &topic| bits | topic as u32);
        Self { topics, ranges: Vec::new(), out: Mutex::new(out), perf: None }
    }

    /// With lines about guest code at addresses in `ranges` alone, unless there are none.
    #[must_use]
    pub fn with_ranges(mut self, ranges: Vec<RangeInclusive<u64>>) -> Self {
        self.ranges = ranges;
        self
    }

    /// With a map of host code, written to `out`.
    #[must_use]
    pub fn with_perf_map(mut self, out: Box<dyn Write + Send>) -> Self {
        self.perf = Some(Mutex::new(out));
        self
    }

    /// Whether lines of `topic` about the guest code at `address` are wanted.
    #[inline]
    pub fn wants_at(&self, topic: Topic, address: u64) -> bool {
        self.wants(topic)
            && (self.ranges.is_empty() || self.ranges.iter().any(|range| range.contains(&address)))
    }

    /// Whether host code is to be told by [`Self::map_code`].
    pub fn maps_code(&self) -> bool {
        self.perf.is_some()
    }

    /// Tells that there is host code at `start`, `len` bytes of it, and what it is. A map that can't be
    /// written to is not there.
    pub fn map_code(&self, start: u64, len: usize, name: fmt::Arguments<'_>) {
        if let Some(perf) = &self.perf {
            let mut perf = perf.lock().unwrap_or_else(|e| e.into_inner());
            let _ = writeln!(perf, "{start:x} {len:x} {name}");
        }
    }

    /// Whether lines of `topic` are wanted.
    #[inline]
    pub fn wants(&self, topic: Topic) -> bool {
        self.topics & topic as u32 != 0
    }

    /// Writes a line of `topic`, if it is wanted. A log that can't be written to is silent.
    pub fn line(&self, topic: Topic, line: fmt::Arguments<'_>) {
        if self.wants(topic) {
            let mut out = self.out.lock().unwrap_or_else(|e| e.into_inner());
            let _ = writeln!(out, "{line}");
        }
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("topics", &self.topics).finish_non_exhaustive()
    }
}
