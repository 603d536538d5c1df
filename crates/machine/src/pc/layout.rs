//! Where things are in the `pc` machine's guest physical address space.
//!
//! ```text
//!  0x0000_0000  RAM, 640 KiB
//!  0x000a_0000  VGA window
//!  0x000c_0000  RAM (option ROM and BIOS area: shadow RAM; ACPI tables from 0xe0000)
//!  0x0010_0000  RAM up to the PCI hole
//!  …            PCI hole: memory BARs
//!  0xfec0_0000  IOAPIC        0xfee0_0000  local APICs
//!  0x1_0000_0000  the rest of RAM
//! ```

use std::ops::Range;

/// End of conventional memory; the extended BIOS data area below it is reserved.
pub const CONVENTIONAL_END: u64 = 0xa_0000;
/// Where the firmware would keep its extended BIOS data area.
pub const EBDA_START: u64 = 0x9_fc00;
/// First byte after the VGA window.
pub const SHADOW_START: u64 = 0xc_0000;
/// Firmware tables live from here to 1 MiB.
pub const FIRMWARE_TABLES: u64 = 0xe_0000;
/// ACPI's root pointer among them. Software searches for it from [`FIRMWARE_TABLES`] on, or only where PCs
/// have had it.
pub const ACPI_ROOT: u64 = 0xf_0000;
/// The SMBIOS tables, where software searches for their entry point.
pub const SMBIOS_TABLES: u64 = 0xf_0040;
/// First byte of extended memory.
pub const HIGH_MEMORY: u64 = 0x10_0000;
/// With at least this much RAM, the part from [`LOW_RAM_SPLIT`] on moves above 4 GiB.
const LOW_RAM_MAX: u64 = 0xe000_0000;
/// See [`LOW_RAM_MAX`].
const LOW_RAM_SPLIT: u64 = 0xc000_0000;
/// End of the 32-bit PCI hole.
pub const PCI_HOLE_END: u64 = 0xfec0_0000;
/// First byte beyond 32-bit addresses.
pub const FOUR_GIB: u64 = 1 << 32;

/// End of the CPU's 40-bit physical addresses.
const ADDRESS_END: u64 = 1 << 40;
/// The most RAM, in bytes: with it, and a GiB for PCI memory, they are used up.
pub const MEMORY_MAX: u64 = ADDRESS_END - (FOUR_GIB - LOW_RAM_SPLIT) - (1 << 30);

/// How much RAM is below and above 4 GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// End of RAM below 4 GiB.
    pub low_end: u64,
    /// Bytes of RAM from 4 GiB on.
    pub high_size: u64,
}

impl Layout {
    /// The layout for `memory` bytes of RAM, at least 1 MiB.
    pub fn new(memory: u64) -> Self {
        Self::with_low_memory(memory, None)
    }

    /// The same, with the RAM from `max_low` on, at least 1 MiB, above 4 GiB.
    pub fn with_low_memory(memory: u64, max_low: Option<u64>) -> Self {
        let max = max_low.map_or(LOW_RAM_MAX, |max| max.min(LOW_RAM_MAX));
        let low_end = if memory >= max { max.min(LOW_RAM_SPLIT) } else { memory };
        Self { low_end, high_size: memory - low_end }
    }

    /// Start and length of each RAM range.
    pub fn ram(&self) -> Vec<(u64, u64)> {
        let mut ranges = vec![(0, CONVENTIONAL_END), (SHADOW_START, self.low_end - SHADOW_START)];
        if self.high_size > 0 {
            ranges.push((FOUR_GIB, self.high_size));
        }
        ranges
    }

    /// The 32-bit window for PCI memory BARs.
    pub fn pci_hole(&self) -> Range<u64> {
        self.low_end..PCI_HOLE_END
    }

    /// The window for PCI memory above 4 GiB: from the end of RAM, at a whole GiB, up to what the CPUs
    /// can address.
    pub fn pci_hole_64(&self) -> Range<u64> {
        (FOUR_GIB + self.high_size).next_multiple_of(1 << 30)..ADDRESS_END
    }

    /// The map that firmware gives the operating system: start, length, type.
    pub fn e820(&self) -> Vec<(u64, u64, E820Type)> {
        use E820Type::{Ram, Reserved};
        let mut map = vec![
            (0, EBDA_START, Ram),
            (EBDA_START, CONVENTIONAL_END - EBDA_START, Reserved),
            (FIRMWARE_TABLES, HIGH_MEMORY - FIRMWARE_TABLES, Reserved),
            (HIGH_MEMORY, self.low_end - HIGH_MEMORY, Ram),
            (0xfffc_0000, 0x4_0000, Reserved),
        ];
        if self.high_size > 0 {
            map.push((FOUR_GIB, self.high_size, Ram));
        }
        map
    }
}

/// Kinds of memory in the E820 map (ACPI 6.5, table 15.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum E820Type {
    /// Free for the operating system.
    Ram = 1,
    /// Not to be touched.
    Reserved = 2,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_splits_at_the_pci_hole() {
        let small = Layout::new(128 << 20);
        assert_eq!((small.low_end, small.high_size), (128 << 20, 0));
        let large = Layout::new(4 << 30);
        assert_eq!((large.low_end, large.high_size), (3 << 30, 1 << 30));
        assert_eq!(large.ram().last(), Some(&(FOUR_GIB, 1 << 30)));
        let asked_for = Layout::with_low_memory(3 << 30, Some(1 << 30));
        assert_eq!((asked_for.low_end, asked_for.high_size), (1 << 30, 2 << 30));
    }

    #[test]
    fn the_e820_map_is_sorted_and_disjoint_within_four_gib() {
        for memory in [16 << 20, 3 << 30, 8u64 << 30] {
            let mut map = Layout::new(memory).e820();
            map.sort_by_key(|e| e.0);
            assert!(map.windows(2).all(|w| w[0].0 + w[0].1 <= w[1].0));
        }
    }
}
