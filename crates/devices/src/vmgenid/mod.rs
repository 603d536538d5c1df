//! `vmgenid`: a number by which a guest sees that it is not the machine it was, but a copy.
//!
//! Follows Microsoft's "Virtual Machine Generation ID" (August 2012): 128 bits in memory that is no RAM
//! of the guest's and that an ACPI device points to, in the byte order of a Windows GUID. Firmware need
//! not do anything about it: the page has an address of its own. The guest can only read it.
//!
//! The number is [`OFFSET`] bytes into its page, where boards of this kind have it: those whose firmware
//! allocates the page need that much of it for what looks like the header of an ACPI table.

use std::sync::{Arc, Mutex};

use bus::Device;
use memory::{Access, GuestMemory, Mapping, MemoryBlock, MemoryError, PAGE_SIZE};
use serde::{Deserialize, Serialize};
use vmstate::{RestoreError, Saved, State};

use crate::lock;

/// Guest physical address of the page.
pub const BASE: u64 = 0xfed2_0000;
/// Where the number is in it.
pub const OFFSET: u64 = 40;

/// Saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmGenIdState {
    /// The number in the order of its bytes in memory.
    id: [u8; 16],
}

impl State for VmGenIdState {
    const NAME: &'static str = "vmgenid";
    const VERSION: u32 = 1;
}

/// The device.
pub struct VmGenId {
    block: Arc<MemoryBlock>,
    id: Mutex<[u8; 16]>,
}

impl VmGenId {
    /// A page in `memory` with the number `id`, given in the order of its bytes in memory.
    ///
    /// # Errors
    /// If the host has no room for the page.
    pub fn new(memory: &GuestMemory, id: [u8; 16]) -> Result<Arc<Self>, MemoryError> {
        let block = memory.allocate("vmgenid", PAGE_SIZE)?;
        block.write(OFFSET, &id)?;
        memory.map(Mapping::new(BASE, &block, Access::ROM))?;
        Ok(Arc::new(Self { block, id: Mutex::new(id) }))
    }

    /// The number, in the order of its bytes in memory.
    pub fn id(&self) -> [u8; 16] {
        *lock(&self.id)
    }
}

impl Device for VmGenId {
    fn id(&self) -> String {
        "vmgenid".into()
    }

    /// The number is the machine's, not the guest's: it stays.
    fn reset(&self) {}

    fn save(&self) -> Saved {
        Saved::new(&VmGenIdState { id: *lock(&self.id) })
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let state: VmGenIdState = saved.decode()?;
        self.block.write(OFFSET, &state.id).map_err(|e| RestoreError::Damaged {
            name: VmGenIdState::NAME,
            reason: e.to_string(),
        })?;
        *lock(&self.id) = state.id;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_sees_the_number_of_the_state_that_was_restored() {
        let memory = GuestMemory::new(&[(0, 0x1_0000)]).unwrap();
        let device = VmGenId::new(&memory, [7; 16]).unwrap();
        let seen = || {
            let mut seen = [0; 16];
            device.block.read(OFFSET, &mut seen).unwrap();
            seen
        };
        assert!(memory.page(BASE, false).host.is_some(), "CPUs see it");
        assert_eq!(seen(), [7; 16]);
        device.restore(&Saved::new(&VmGenIdState { id: [9; 16] })).unwrap();
        assert_eq!((seen(), device.id()), ([9; 16], [9; 16]));
    }
}
