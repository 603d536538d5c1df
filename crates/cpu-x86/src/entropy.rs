//! Random numbers for RDRAND and RDSEED, from the host's generator.

use std::fs::File;
use std::io::Read;

/// A small supply of random words.
#[derive(Default)]
pub(crate) struct Entropy {
    source: Option<File>,
    words: Vec<u64>,
}

impl Entropy {
    /// The next word; `None` if the host has none to give.
    pub(crate) fn next(&mut self) -> Option<u64> {
        if self.words.is_empty() {
            self.refill();
        }
        self.words.pop()
    }

    fn refill(&mut self) {
        if self.source.is_none() {
            self.source = File::open("/dev/urandom").ok();
        }
        let mut bytes = [0; 512];
        if let Some(source) = &mut self.source
            && source.read_exact(&mut bytes).is_ok()
        {
            let (words, _) = bytes.as_chunks::<8>();
            self.words.extend(words.iter().map(|word| u64::from_le_bytes(*word)));
        }
    }
}
