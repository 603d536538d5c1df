//! Moving bytes between scattered guest memory and ours.

use std::sync::{Mutex, MutexGuard, OnceLock};

use block::GuestSlice;
use memory::GuestMemory;
use memory::vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::lock;

/// Bytes of memory of ours that data of the medium pass through where they can't go straight.
pub const BOUNCE_LEN: usize = 1 << 16;

/// Copies `data` to the bytes of `to` from `offset` on; returns how much found room.
pub(super) fn scatter(to: &[GuestSlice<'_>], offset: usize, data: &[u8]) -> usize {
    let mut done = 0;
    walk(to, offset, data.len(), |slice, at, len| {
        // The range is within the slice.
        let _ = slice.write_slice(&data[done..done + len], at);
        done += len;
    });
    done
}

/// Copies the bytes of `from` from `offset` on into `into`; returns how many there were.
pub(super) fn gather(from: &[GuestSlice<'_>], offset: usize, into: &mut [u8]) -> usize {
    let mut done = 0;
    let len = into.len();
    walk(from, offset, len, |slice, at, len| {
        let _ = slice.read_slice(&mut into[done..done + len], at);
        done += len;
    });
    done
}

/// The first `len` bytes of `of`, or what there is.
pub(super) fn first<'a>(of: &[GuestSlice<'a>], len: u64) -> Vec<GuestSlice<'a>> {
    let mut result = Vec::with_capacity(of.len());
    walk(of, 0, usize::try_from(len).unwrap_or(usize::MAX), |slice, at, len| {
        result.extend(slice.subslice(at, len).ok());
    });
    result
}

/// Calls `part` with each slice, and the range of it, that `len` bytes from `offset` on are in.
fn walk<'s, 'a>(
    slices: &'s [GuestSlice<'a>],
    mut offset: usize,
    mut len: usize,
    mut part: impl FnMut(&'s GuestSlice<'a>, usize, usize),
) {
    for slice in slices {
        if offset >= slice.len() {
            offset -= slice.len();
            continue;
        }
        let taken = (slice.len() - offset).min(len);
        if taken == 0 {
            return;
        }
        part(slice, offset, taken);
        offset = 0;
        len -= taken;
    }
}

/// The guest memory at each `(address, length)`; `None` if any of it is not RAM.
pub fn slices<'m>(memory: &'m GuestMemory, ranges: &[(u64, u32)]) -> Option<Vec<GuestSlice<'m>>> {
    let mut result = Vec::with_capacity(ranges.len());
    for &(addr, len) in ranges {
        for slice in GuestMemoryBackend::get_slices(memory.view(), GuestAddress(addr), len as usize)
        {
            result.push(slice.ok()?);
        }
    }
    Some(result)
}

/// Memory of ours that a drive can read into and write from; made when it is first needed.
#[derive(Default)]
pub(super) struct Bounce {
    memory: OnceLock<Option<GuestMemory>>,
    turn: Mutex<()>,
}

impl Bounce {
    /// The memory, for one at a time; `None` if the host has none.
    pub(super) fn take(&self) -> Option<BounceGuard<'_>> {
        let turn = lock(&self.turn);
        let make = || GuestMemory::new(&[(0, BOUNCE_LEN as u64)]).ok();
        let memory = self.memory.get_or_init(make).as_ref()?;
        Some(BounceGuard { memory, _turn: turn })
    }
}

/// [`BOUNCE_LEN`] bytes for whoever holds it.
pub(super) struct BounceGuard<'a> {
    memory: &'a GuestMemory,
    _turn: MutexGuard<'a, ()>,
}

impl BounceGuard<'_> {
    /// The first `len` bytes, as a drive takes them.
    pub(super) fn slices(&self, len: usize) -> Vec<GuestSlice<'_>> {
        slices(self.memory, &[(0, len.min(BOUNCE_LEN) as u32)]).unwrap_or_default()
    }

    pub(super) fn get(&self, into: &mut [u8]) {
        // Both are no longer than the memory.
        let _ = self.memory.read(0, into);
    }

    pub(super) fn put(&self, bytes: &[u8]) {
        let _ = self.memory.write(0, bytes);
    }
}
