//! Moving bytes between scattered guest memory and ours.

use block::GuestSlice;
use memory::GuestMemory;
use memory::vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

/// Bytes of memory of ours that data of the medium pass through where they can't go straight; blocks
/// that are larger take as much as one of them.
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
