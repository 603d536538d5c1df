//! A sector of mode 1 with all that is around its user data (ECMA-130, sections 14 to 16 and annex A).

use serde::{Deserialize, Serialize};

use super::super::Sense;
use super::{BLOCK, msf};

/// Lengths of the parts, in their order.
const SYNC: usize = 12;
const HEADER: usize = 4;
const USER: usize = BLOCK as usize;
const EDC: usize = 4;
/// The intermediate field, which is zero.
const GAP: usize = 8;
const P_PARITY: usize = 172;
const Q_PARITY: usize = 104;
/// A whole sector.
const SECTOR: usize = SYNC + HEADER + USER + EDC + GAP + P_PARITY + Q_PARITY;
/// What the error correction covers begins with the header.
const COVERED: usize = SYNC;

/// Which parts of a sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SectorParts {
    sync: bool,
    header: bool,
    user: bool,
    correction: bool,
}

impl SectorParts {
    /// The user data alone.
    pub(super) const USER: Self =
        Self { sync: false, header: false, user: true, correction: false };

    /// From the byte of READ CD that chooses. Error flags there are none.
    pub(super) fn from_bits(bits: u8) -> Result<Self, Sense> {
        if bits & 7 != 0 {
            return Err(Sense::INVALID_FIELD);
        }
        Ok(Self {
            sync: bits & 0x80 != 0,
            // The other bit asks for a subheader, which mode 1 has not.
            header: bits & 0x20 != 0,
            user: bits & 0x10 != 0,
            correction: bits & 0x08 != 0,
        })
    }

    /// Bytes of the parts.
    pub fn len(self) -> u32 {
        let when = |yes: bool, len: usize| if yes { len as u32 } else { 0 };
        when(self.sync, SYNC)
            + when(self.header, HEADER)
            + when(self.user, USER)
            + when(self.correction, SECTOR - SYNC - HEADER - USER)
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// The parts of sector `lba` whose user data are `user`.
    pub(super) fn make(self, lba: u32, user: &[u8]) -> Vec<u8> {
        let sector = whole(lba, user);
        let (header, data, end) = (SYNC, SYNC + HEADER, SYNC + HEADER + USER);
        let chosen = [
            (self.sync, &sector[..header]),
            (self.header, &sector[header..data]),
            (self.user, &sector[data..end]),
            (self.correction, &sector[end..]),
        ];
        let chosen = chosen.into_iter().filter(|(wanted, _)| *wanted);
        chosen.flat_map(|(_, bytes)| bytes.iter().copied()).collect()
    }
}

/// The sector at minute, second and frame.
pub(super) fn lba_of([m, s, f]: [u8; 3]) -> Result<u32, Sense> {
    let frames = (u32::from(m) * 60 + u32::from(s)) * 75 + u32::from(f);
    if s < 60 && f < 75 { frames.checked_sub(150) } else { None }.ok_or(Sense::INVALID_FIELD)
}

/// Two digits in a byte.
fn bcd(n: u8) -> u8 {
    ((n / 10 % 10) << 4) | (n % 10)
}

fn whole(lba: u32, user: &[u8]) -> [u8; SECTOR] {
    let mut sector = [0; SECTOR];
    sector[1..11].fill(0xff);
    let time = msf(lba).map(bcd);
    sector[SYNC..SYNC + 3].copy_from_slice(&time);
    sector[SYNC + 3] = 1;
    let end = SYNC + HEADER + USER;
    sector[SYNC + HEADER..end].copy_from_slice(user);
    let edc = edc(&sector[..end]).to_le_bytes();
    sector[end..end + EDC].copy_from_slice(&edc);
    let p = end + EDC + GAP;
    let (before, parity) = sector.split_at_mut(p);
    // Columns of 24 rows of 43 words of two bytes.
    let column = |vector: usize, i: usize| vector + 86 * i;
    write_parity(&before[COVERED..], &mut parity[..P_PARITY], 24, column);
    let (before, parity) = sector.split_at_mut(p + P_PARITY);
    // Diagonals of the same and the parity of the columns.
    let diagonal = |vector: usize, i: usize| (vector / 2 * 86 + vector % 2 + 88 * i) % (2 * 1118);
    write_parity(&before[COVERED..], parity, 43, diagonal);
    sector
}

/// Computes the parity of `parity.len() / 2` vectors of `len` bytes of `data`, which are where `place`
/// says; each has two bytes of parity, one in each half.
fn write_parity(data: &[u8], parity: &mut [u8], len: usize, place: impl Fn(usize, usize) -> usize) {
    /// 1 / (α + 1) in the field.
    const INVERSE: u8 = 0xf4;
    let (first, second) = parity.split_at_mut(parity.len() / 2);
    for (vector, (first, second)) in first.iter_mut().zip(second).enumerate() {
        // Such that the sum of all is zero, and that of all times α to the power of the place.
        let (mut sum, mut weighted) = (0, 0);
        for i in 0..len {
            let byte = data[place(vector, i)];
            sum ^= byte;
            weighted = times_alpha(weighted ^ byte);
        }
        let weighted = times_alpha(weighted);
        *first = times(weighted ^ sum, INVERSE);
        *second = sum ^ *first;
    }
}

/// In the field of 256 elements with x^8 + x^4 + x^3 + x^2 + 1.
fn times_alpha(a: u8) -> u8 {
    a << 1 ^ if a & 0x80 != 0 { 0x1d } else { 0 }
}

fn times(mut a: u8, mut b: u8) -> u8 {
    let mut product = 0;
    while b != 0 {
        if b & 1 != 0 {
            product ^= a;
        }
        a = times_alpha(a);
        b >>= 1;
    }
    product
}

/// The error detection code: a CRC whose polynomial is (x^16 + x^15 + x^2 + 1)(x^16 + x^2 + x + 1),
/// lowest bits first.
fn edc(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |mut crc, &byte| {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 != 0 { 0xd801_8001 } else { 0 };
        }
        crc
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parity_makes_every_vector_a_code_word() {
        let user: Vec<u8> = (0..USER).map(|i| ((i * i) >> 3) as u8).collect();
        let sector = whole(16, &user);
        assert_eq!(
            sector[..16],
            [0, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 2, 0x16, 1]
        );
        let covered = &sector[COVERED..];
        // α to the power of the distance from the end, by the definition.
        let check = |vector: Vec<u8>| {
            let sum = vector.iter().fold(0, |sum, byte| sum ^ byte);
            let weighted = vector.iter().fold(0, |sum, byte| times_alpha(sum) ^ byte);
            assert_eq!((sum, weighted), (0, 0));
        };
        for column in 0..86 {
            check((0..26).map(|row| covered[column + 86 * row]).collect());
        }
        let q = &covered[2236..];
        for diagonal in 0..52 {
            let start = diagonal / 2 * 86 + diagonal % 2;
            let mut vector: Vec<u8> = (0..43).map(|i| covered[(start + 88 * i) % 2236]).collect();
            vector.extend([q[diagonal], q[52 + diagonal]]);
            check(vector);
        }
        // Of a message and its code there is no remainder.
        assert_eq!(edc(&sector[..SYNC + HEADER + USER + EDC]), 0);
    }

    #[test]
    fn parts_are_chosen_one_by_one() {
        let parts = SectorParts::from_bits(0xf8).unwrap();
        assert_eq!(parts.len(), 2352);
        assert_eq!(SectorParts::from_bits(0x10).unwrap(), SectorParts::USER);
        let header = SectorParts::from_bits(0x20).unwrap();
        assert_eq!(header.make(0, &[0; USER]), [0, 2, 0, 1]);
        assert!(SectorParts::from_bits(0xfa).is_err());
        assert_eq!(lba_of([0, 2, 0]), Ok(0));
        assert!(lba_of([0, 1, 74]).is_err());
        assert!(lba_of([0, 60, 0]).is_err());
        assert_eq!(times(3, 0xf4), 1);
    }
}
