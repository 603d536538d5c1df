//! Caches as CPUID tells of them: in full in leaf 4 (SDM volume 2, CPUID) and leaf 0x8000_001d, in short in leaves
//! 0x8000_0005 and 0x8000_0006 (APM volume 3, appendix E.4).

/// Kinds, as leaf 4 numbers them.
mod kind {
    pub(super) const DATA: u32 = 1;
    pub(super) const INSTRUCTIONS: u32 = 2;
    pub(super) const BOTH: u32 = 3;
}

/// A cache. A socket shares those of the third level, a core those below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cache {
    kind: u32,
    level: u32,
    /// Bytes of a line.
    line: u32,
    ways: u32,
    sets: u32,
}

/// 32 KiB for data and for instructions, 512 KiB a core, 16 MiB a socket, all with lines of 64 bytes.
pub(super) const DEFAULT: [Cache; 4] = [
    Cache { kind: kind::DATA, level: 1, line: 64, ways: 8, sets: 64 },
    Cache { kind: kind::INSTRUCTIONS, level: 1, line: 64, ways: 8, sets: 64 },
    Cache { kind: kind::BOTH, level: 2, line: 64, ways: 8, sets: 1024 },
    Cache { kind: kind::BOTH, level: LAST, line: 64, ways: 16, sets: 16384 },
];

/// The level that a socket shares.
const LAST: u32 = 3;
/// A cache that initialises itself.
const SELF_INITIALIZING: u32 = 1 << 8;

impl Cache {
    /// The one that `registers` (EAX, EBX, ECX) of leaf 4 or leaf 0x8000_001d tell of, or none.
    pub(super) fn of_leaf([eax, ebx, ecx]: [u32; 3]) -> Option<Self> {
        let (kind, level) = (eax & 0x1f, eax >> 5 & 7);
        // Some have several lines to a tag; they are as if they had so many times the sets.
        let partitions = (ebx >> 12 & 0x3ff) + 1;
        (kind != 0).then(|| Self {
            kind,
            level,
            line: (ebx & 0xfff) + 1,
            ways: (ebx >> 22) + 1,
            sets: ecx.saturating_add(1).saturating_mul(partitions),
        })
    }

    /// Whether all of a socket share it.
    pub(crate) fn is_last(self) -> bool {
        self.level >= LAST
    }

    fn kib(self) -> u32 {
        self.line.saturating_mul(self.ways).saturating_mul(self.sets) / 1024
    }

    /// EAX, EBX and ECX of leaf 4 or leaf 0x8000_001d, where `sharing` logical processors have it.
    pub(crate) fn leaf(self, sharing: u32) -> [u32; 3] {
        let eax = self.kind | self.level << 5 | SELF_INITIALIZING | (sharing - 1) << 14;
        [eax, (self.line - 1) | (self.ways - 1) << 22, self.sets - 1]
    }

    /// The word that leaf 0x8000_0005 has of it.
    fn first_level(self) -> u32 {
        self.kib().min(0xff) << 24 | self.ways.min(0xff) << 16 | 1 << 8 | self.line & 0xff
    }

    /// Associativity as leaf 0x8000_0006 encodes it.
    fn associativity(self) -> u32 {
        match self.ways {
            0..=2 => self.ways,
            3..=4 => 4,
            5..=8 => 6,
            9..=16 => 8,
            17..=32 => 0xa,
            33..=48 => 0xb,
            49..=64 => 0xc,
            65..=96 => 0xd,
            _ => 0xe,
        }
    }

    /// What the words of leaf 0x8000_0006 have in common. Intel's lack the lines of a tag.
    fn further_level(self, intel: bool) -> u32 {
        let lines = if intel { 0 } else { 1 << 8 };
        self.associativity() << 12 | lines | self.line & 0xff
    }
}

/// The first of `caches` at `level` of `kind`.
fn at(caches: &[Cache], level: u32, kind: u32) -> Option<Cache> {
    caches.iter().copied().find(|cache| (cache.level, cache.kind) == (level, kind))
}

/// ECX and EDX of leaf 0x8000_0005: data, instructions.
pub(crate) fn first_levels(caches: &[Cache]) -> [u32; 2] {
    [kind::DATA, kind::INSTRUCTIONS].map(|kind| at(caches, 1, kind).map_or(0, Cache::first_level))
}

/// ECX and EDX of leaf 0x8000_0006: second level, in KiB, and third, in units of 512 KiB, which Intel leaves out.
pub(crate) fn further_levels(caches: &[Cache], intel: bool) -> [u32; 2] {
    let second = at(caches, 2, kind::BOTH)
        .map_or(0, |cache| cache.kib().min(0xffff) << 16 | cache.further_level(intel));
    let third = at(caches, LAST, kind::BOTH).filter(|_| !intel);
    let third =
        third.map_or(0, |cache| (cache.kib() / 512).min(0x3fff) << 18 | cache.further_level(intel));
    [second, third]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_tell_of_the_same_caches() {
        assert_eq!(first_levels(&DEFAULT), [0x2008_0140, 0x2008_0140]);
        assert_eq!(further_levels(&DEFAULT, false), [0x0200_6140, 32 << 18 | 0x8140]);
        assert_eq!(further_levels(&DEFAULT, true), [0x0200_6040, 0]);
        for cache in DEFAULT {
            assert_eq!(Cache::of_leaf(cache.leaf(4)), Some(cache));
        }
        assert_eq!(Cache::of_leaf([0; 3]), None);
    }

    #[test]
    fn a_cache_that_is_not_there_is_not_told_of() {
        assert_eq!(further_levels(&DEFAULT[..3], false), [0x0200_6140, 0]);
        assert_eq!(first_levels(&[]), [0; 2]);
    }

    #[test]
    fn no_host_is_too_strange() {
        for registers in [[u32::MAX; 3], [3, 0, u32::MAX], [1, u32::MAX, 0]] {
            let cache = Cache::of_leaf(registers).unwrap();
            first_levels(&[cache]);
            further_levels(&[cache], false);
            cache.leaf(1);
        }
    }
}
