//! What a machine tells about its inner life, for whoever looks for a fault (`-d`, `-D`).
//!
//! Each line belongs to a [`Topic`]; lines of topics that nobody asked for cost a test of one bit. A log
//! belongs to a machine, not to the process.

use std::fmt;
use std::io::Write;
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
}

impl Topic {
    /// All topics with their names as `-d` has them and what they show.
    pub const ALL: [(Self, &'static str, &'static str); 5] = [
        (Self::GuestCode, "in_asm", "guest code, each block when it is decoded"),
        (Self::Interrupts, "int", "interrupts and exceptions as they are delivered"),
        (Self::CpuReset, "cpu_reset", "the state of each CPU at a reset"),
        (Self::GuestErrors, "guest_errors", "accesses that no sane guest makes"),
        (Self::Unimplemented, "unimp", "what a guest asked for and is not there"),
    ];
}

/// A machine's log.
pub struct Log {
    topics: u32,
    out: Mutex<Box<dyn Write + Send>>,
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
        Self { topics, out: Mutex::new(out) }
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
