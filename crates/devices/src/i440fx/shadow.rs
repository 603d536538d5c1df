//! What the host bridge makes of the memory from 640 KiB to 1 MiB.
//!
//! - Each PAM register's half says of an area of 16 KiB (the first one's of 64 KiB) whether reads and,
//!   apart from that, writes go to RAM or to PCI (82441FX data sheet, section 3.2.18). On PCI there is
//!   the BIOS ROM in the upper 128 KiB, and whatever has a BAR there below.
//! - The RAM behind the VGA window is system management RAM (section 3.2.20): closed, it is there for
//!   CPUs in system management mode only.

use std::sync::{Arc, Mutex};

use memory::{
    Access, GuestMemory, MapId, Mapping, MemoryBlock, MemoryError, Reads, Visible, Writes,
};

use super::{PAMS, SMRAM_ENABLED, SMRAM_OPEN};
use crate::lock;

/// Bits of a PAM register's half.
const READ_RAM: u8 = 1 << 0;
const WRITE_RAM: u8 = 1 << 1;

/// Start of the areas of PAM1 to PAM6, each of [`AREA`] bytes.
const AREAS: u64 = 0xc_0000;
const AREA: u64 = 0x4000;
/// PAM0's area is 64 KiB from here on.
const TOP_AREA: u64 = 0xf_0000;
const TOP_AREA_LEN: u64 = 0x1_0000;
/// The BIOS's last 128 KiB are seen from here to 1 MiB.
const BIOS_AREA: u64 = 0xe_0000;
const ONE_MIB: u64 = 0x10_0000;

/// Where system management RAM is, over the VGA window.
pub const SMRAM_START: u64 = 0xa_0000;
const SMRAM_LEN: u64 = 0x2_0000;

/// Priorities of our mappings: over video memory and what else is mapped by BARs.
const PAM_PRIORITY: i32 = 10;
const SMRAM_PRIORITY: i32 = 20;

#[derive(Default)]
struct Applied {
    /// PAM and SMRAM registers as they were carried out last.
    registers: Option<([u8; PAMS], u8)>,
    mappings: Vec<MapId>,
}

/// The bridge's part in the memory map.
pub(super) struct Shadow {
    memory: Arc<GuestMemory>,
    bios: Option<Arc<MemoryBlock>>,
    smram: Arc<MemoryBlock>,
    applied: Mutex<Applied>,
}

impl Shadow {
    pub(super) fn new(
        memory: &Arc<GuestMemory>,
        bios: Option<Arc<MemoryBlock>>,
    ) -> Result<Self, MemoryError> {
        let smram = memory.allocate("smram", SMRAM_LEN)?;
        Ok(Self { memory: Arc::clone(memory), bios, smram, applied: Mutex::default() })
    }

    pub(super) fn smram(&self) -> &Arc<MemoryBlock> {
        &self.smram
    }

    /// Carries out what the registers say.
    pub(super) fn apply(&self, pams: [u8; PAMS], smram: u8) {
        let mut applied = lock(&self.applied);
        if applied.registers == Some((pams, smram)) {
            return;
        }
        let mut mappings = Vec::new();
        mappings.extend(self.area(TOP_AREA, TOP_AREA_LEN, pams[0] >> 4));
        for (start, pam) in (AREAS..TOP_AREA).step_by(2 * AREA as usize).zip(&pams[1..]) {
            mappings.extend(self.area(start, AREA, pam & 0xf));
            mappings.extend(self.area(start + AREA, AREA, pam >> 4));
        }
        if smram & SMRAM_ENABLED != 0 {
            let is_open = smram & SMRAM_OPEN != 0;
            mappings.push(Mapping {
                visible: if is_open { Visible::Everyone } else { Visible::Smm },
                priority: SMRAM_PRIORITY,
                ..Mapping::new(SMRAM_START, &self.smram, Access::RAM)
            });
        }
        // Each mapping is of whole pages and lies in its block.
        if let Ok(ids) = self.memory.remap(&applied.mappings, mappings) {
            applied.mappings = ids;
            applied.registers = Some((pams, smram));
        }
    }

    /// What lies over the RAM of an area; nothing if it is RAM altogether.
    fn area(&self, start: u64, len: u64, attributes: u8) -> Option<Mapping> {
        let rom = self.bios.as_ref().and_then(|bios| {
            // The block ends where the area below 1 MiB ends.
            let offset = bios.len().checked_sub(ONE_MIB - start)?;
            (start >= BIOS_AREA).then_some((bios, offset))
        });
        let (from_pci, to_pci) = match rom {
            Some(_) => (Reads::Block, Writes::Lost),
            None => (Reads::Bus, Writes::Bus),
        };
        let access = match (attributes & READ_RAM != 0, attributes & WRITE_RAM != 0) {
            (true, true) => return None,
            (true, false) => Access { reads: Reads::Below, writes: to_pci },
            (false, true) => Access { reads: from_pci, writes: Writes::Below },
            (false, false) => Access { reads: from_pci, writes: to_pci },
        };
        // Nothing is read from or written to the block unless it is the BIOS.
        let (block, offset) = rom.map_or((&self.smram, 0), |(bios, offset)| (bios, offset));
        Some(Mapping { len, offset, priority: PAM_PRIORITY, ..Mapping::new(start, block, access) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::i440fx::I440fx;
    use crate::pci::PciFunction;
    use ::bus::Device;
    use memory::{WritePath, WriteTarget};

    fn bridge() -> (Arc<I440fx>, Arc<GuestMemory>, Arc<MemoryBlock>) {
        let ram = [(0, 0xa_0000), (0xc_0000, 0x4_0000)];
        let memory = Arc::new(GuestMemory::new(&ram).unwrap());
        let bios = memory.allocate("bios", 0x4_0000).unwrap();
        bios.write(0x3_fff0, &[0xea]).unwrap();
        let bridge = I440fx::new();
        bridge.connect_memory(&memory, Some(bios.clone())).unwrap();
        (bridge, memory, bios)
    }

    fn shows_block(memory: &GuestMemory, at: u64) -> bool {
        let ram = memory.view();
        let address = memory::vm_memory::GuestAddress(at & !0xfff);
        let ram = memory::vm_memory::GuestMemoryBackend::get_host_address(ram, address).ok();
        let page = memory.page(at, false);
        page.host.is_some_and(|host| Some(host.ptr) != ram)
    }

    #[test]
    fn areas_are_rom_until_they_are_made_ram() {
        let (bridge, memory, _) = bridge();
        assert!(shows_block(&memory, 0xf_fff0));
        assert!(shows_block(&memory, 0xe_0000));
        let is_on_bus = |at| {
            let page = memory.page(at, false);
            page.host.is_none() && page.writes == WritePath::Bus
        };
        assert!(is_on_bus(0xc_0000) && is_on_bus(0xd_ffff));
        // Write-only: what is read still is the ROM.
        bridge.write_config(0x59, 1, 0x20);
        assert!(shows_block(&memory, 0xf_fff0));
        assert!(matches!(memory.write_target(0xf_fff0, false), WriteTarget::Host(_)));
        assert!(matches!(memory.write_target(0xe_0000, false), WriteTarget::Lost));
        bridge.write_config(0x59, 1, 0x10);
        assert!(!shows_block(&memory, 0xf_fff0));
        assert!(matches!(memory.write_target(0xf_fff0, false), WriteTarget::Lost));
        bridge.write_config(0x5c, 4, 0x0033_3333);
        assert!(!is_on_bus(0xd_ffff) && is_on_bus(0xc_0000));
        assert_eq!(memory.page(0xe_4000, false).writes, WritePath::Direct);
        bridge.reset();
        assert!(shows_block(&memory, 0xe_4000));
        assert!(is_on_bus(0xd_ffff));
    }

    #[test]
    fn system_management_ram_opens_closes_and_locks() {
        let (bridge, memory, _) = bridge();
        let seen = |smm| memory.page(0xa_0000, smm).host.is_some();
        assert!(!seen(false) && !seen(true));
        bridge.write_config(0x72, 1, 0x4a);
        assert!(seen(false) && seen(true));
        bridge.write_config(0x72, 1, 0x0a);
        assert!(!seen(false) && seen(true));
        let open = bridge.save();
        bridge.write_config(0x72, 1, 0x5a);
        assert_eq!(bridge.read_config(0x72, 1), 0x1a, "locking closes");
        bridge.write_config(0x72, 1, 0x42);
        assert_eq!(bridge.read_config(0x72, 1), 0x1a);
        assert!(!seen(false) && seen(true));
        bridge.restore(&open).unwrap();
        assert_eq!(bridge.read_config(0x72, 1), 0x0a);
        bridge.reset();
        assert!(!seen(true));
    }
}
