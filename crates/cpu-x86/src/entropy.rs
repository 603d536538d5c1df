//! Random numbers for RDRAND and RDSEED, from the host's generator, or the same in each run.

use std::fs::File;
use std::io::Read;

/// A small supply of random words.
#[derive(Default)]
pub(crate) struct Entropy {
    source: Option<File>,
    words: Vec<u64>,
    /// The generator's state, if numbers are to be the same in each run.
    seed: Option<u64>,
}

impl Entropy {
    /// Numbers that follow from `seed`.
    pub(crate) fn fixed(seed: u64) -> Self {
        Self { seed: Some(seed), ..Self::default() }
    }

    /// The next word; `None` if the host has none to give.
    pub(crate) fn next(&mut self) -> Option<u64> {
        if let Some(seed) = &mut self.seed {
            // SplitMix64.
            *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (*seed ^ *seed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            return Some(mixed ^ mixed >> 31);
        }
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
