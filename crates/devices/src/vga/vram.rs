//! Video memory.
//!
//! A byte of each of the four planes makes one 32-bit cell: plane `p` of plane address `a` is byte
//! `4 * a + p`. The linear modes see the same memory byte by byte.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Granularity in which writes are noted, in bytes.
const PAGE: u32 = 4096;

/// The memory of one adapter; its size is a power of two.
pub(super) struct Vram {
    cells: Box<[AtomicU32]>,
    dirty: Box<[AtomicU64]>,
}

impl Vram {
    /// Zeroed memory of `len` bytes, a power of two, at least one page.
    pub(super) fn new(len: u32) -> Self {
        let zeroes = |count: u32| vec![0; count as usize].into_iter();
        Self {
            cells: zeroes(len / 4).map(AtomicU32::new).collect(),
            dirty: vec![0; len.div_ceil(PAGE * 64) as usize]
                .into_iter()
                .map(AtomicU64::new)
                .collect(),
        }
    }

    /// Size in bytes.
    pub(super) fn len(&self) -> u32 {
        self.cells.len() as u32 * 4
    }

    /// The cell that holds byte `offset`, which wraps around at the end.
    pub(super) fn cell(&self, offset: u32) -> u32 {
        self.cells[(offset & (self.len() - 1)) as usize / 4].load(Ordering::Relaxed)
    }

    /// Sets the cell that holds byte `offset`.
    pub(super) fn set_cell(&self, offset: u32, value: u32) {
        let offset = offset & (self.len() - 1);
        self.cells[offset as usize / 4].store(value, Ordering::Relaxed);
        let page = offset / PAGE;
        self.dirty[page as usize / 64].fetch_or(1 << (page % 64), Ordering::Relaxed);
    }

    /// Byte `offset`.
    pub(super) fn byte(&self, offset: u32) -> u8 {
        self.cell(offset).to_le_bytes()[offset as usize & 3]
    }

    /// Sets byte `offset`.
    pub(super) fn set_byte(&self, offset: u32, value: u8) {
        let mut bytes = self.cell(offset).to_le_bytes();
        bytes[offset as usize & 3] = value;
        self.set_cell(offset, u32::from_le_bytes(bytes));
    }

    /// Copies bytes from `offset` on, which wraps around at the end.
    pub(super) fn read(&self, offset: u32, out: &mut [u8]) {
        for (at, byte) in (0..).zip(out) {
            *byte = self.byte(offset.wrapping_add(at));
        }
    }

    /// Clears the first `len` bytes, or all there are.
    pub(super) fn clear(&self, len: u32) {
        for offset in (0..len.min(self.len())).step_by(4) {
            self.set_cell(offset, 0);
        }
    }

    /// Which pages of the bytes `range` were written since they were last asked for; one flag a page.
    pub(super) fn take_dirty(&self, range: Range<u32>) -> Vec<bool> {
        let pages = range.start / PAGE..range.end.div_ceil(PAGE);
        pages
            .map(|page| {
                let bit = 1 << (page % 64);
                self.dirty[page as usize / 64].fetch_and(!bit, Ordering::AcqRel) & bit != 0
            })
            .collect()
    }
}
