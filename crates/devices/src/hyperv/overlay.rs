//! Pages of the hypervisor that lie over guest memory where the guest wants them (Top Level Functional
//! Specification: "Establishing the Hypercall Interface", "SIM Page", "SIEF Page", "Virtual Processor Assist
//! Page", "Partition Reference Time Stamp Counter Page").
//!
//! A page keeps its contents wherever it is seen, and while it is seen nowhere; what is below it is there
//! again when it goes away. Invariant: a page is mapped exactly while `place` has it somewhere.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use memory::map::{Access, MapId, Mapping};
use memory::{GuestMemory, MemoryBlock, MemoryError, PAGE_SIZE};

use crate::lapic::EndFlag;
use crate::lock;

/// Above whatever the chipset maps.
const PRIORITY: i32 = 100;

/// One page.
pub(super) struct Overlay {
    memory: Arc<GuestMemory>,
    block: Arc<MemoryBlock>,
    /// Its bytes in the block.
    bytes: Range<u64>,
    access: Access,
    place: Mutex<Option<(u64, MapId)>>,
}

impl Overlay {
    /// Pages that the guest reads and writes, or only reads, as `access` has for each.
    ///
    /// # Errors
    /// If the host has no memory for them.
    pub(super) fn pages(
        memory: &Arc<GuestMemory>,
        access: &[Access],
    ) -> Result<Vec<Arc<Self>>, MemoryError> {
        let block = memory.allocate("hyperv", access.len() as u64 * PAGE_SIZE)?;
        let page = |(n, &access): (u64, &Access)| {
            let bytes = n * PAGE_SIZE..(n + 1) * PAGE_SIZE;
            let (memory, block) = (Arc::clone(memory), Arc::clone(&block));
            Arc::new(Self { memory, block, bytes, access, place: Mutex::default() })
        };
        Ok((0..).zip(access).map(page).collect())
    }

    /// Puts the page to guest physical address `at`, or nowhere.
    pub(super) fn place(&self, at: Option<u64>) {
        let mut place = lock(&self.place);
        if place.map(|(start, _)| start) == at {
            return;
        }
        let old: Vec<_> = place.iter().map(|(_, id)| *id).collect();
        let new = at.map(|start| Mapping {
            len: PAGE_SIZE,
            offset: self.bytes.start,
            priority: PRIORITY,
            ..Mapping::new(start, &self.block, self.access)
        });
        // A page at the very end of all addresses is no mapping; it is then nowhere.
        let ids = self.memory.remap(&old, new.into_iter().collect());
        let ids = ids.unwrap_or_else(|_| {
            old.iter().for_each(|id| self.memory.unmap(*id));
            Vec::new()
        });
        *place = at.zip(ids.first().copied());
    }

    /// Whether guest physical `address` is in it where it is seen now.
    pub(super) fn holds(&self, address: u64) -> bool {
        lock(&self.place).is_some_and(|(start, _)| address & !(PAGE_SIZE - 1) == start)
    }

    /// Reads from `offset` on, within the page.
    pub(super) fn read<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut bytes = [0; N];
        // The offsets are the hypervisor's own.
        let _ = self.block.read(self.bytes.start + offset, &mut bytes);
        bytes
    }

    /// Writes from `offset` on, within the page.
    pub(super) fn write(&self, offset: u64, bytes: &[u8]) {
        let _ = self.block.write(self.bytes.start + offset, bytes);
    }

    /// Sets bit `bit` of the byte at `offset`; whether it was set before.
    pub(super) fn set_bit(&self, offset: u64, bit: u32) -> bool {
        let before = self.block.set_bits(self.bytes.start + offset, 1 << bit);
        before.is_ok_and(|byte| byte >> bit & 1 != 0)
    }

    /// All of it; `None` if it is all zeroes.
    pub(super) fn contents(&self) -> Option<Vec<u8>> {
        let bytes = self.read::<{ PAGE_SIZE as usize }>(0);
        bytes.iter().any(|&byte| byte != 0).then(|| bytes.to_vec())
    }

    /// Replaces all of it, by zeroes where nothing is given.
    pub(super) fn fill(&self, bytes: &[u8]) {
        let mut page = [0; PAGE_SIZE as usize];
        for (to, from) in page.iter_mut().zip(bytes) {
            *to = *from;
        }
        self.write(0, &page);
    }
}

/// "No EOI required", the first bit of a virtual processor's assist page.
impl EndFlag for Overlay {
    fn is_set(&self) -> bool {
        let [byte] = self.read(0);
        byte & 1 != 0
    }

    fn set(&self, value: bool) -> bool {
        let [byte] = self.read(0);
        self.write(0, &[byte & !1 | u8::from(value)]);
        true
    }
}
