//! Configuration space of a type 0 function: 256 bytes, each bit read-only, writable or cleared by
//! writing one (PCI Local Bus Specification 3.0, chapter 6).

use serde::{Deserialize, Serialize};

/// Bit of the header type: the slot has several functions.
pub(super) const HEADER_MULTIFUNCTION: u8 = 0x80;

/// Offsets and bits of the standard header.
pub mod reg {
    /// Vendor id, 16 bits.
    pub const VENDOR_ID: u16 = 0x00;
    /// Device id, 16 bits.
    pub const DEVICE_ID: u16 = 0x02;
    /// Command, 16 bits.
    pub const COMMAND: u16 = 0x04;
    /// Status, 16 bits.
    pub const STATUS: u16 = 0x06;
    /// Revision, 8 bits.
    pub const REVISION: u16 = 0x08;
    /// Programming interface, subclass and class, 24 bits.
    pub const CLASS: u16 = 0x09;
    /// Cache line size in 32-bit words, 8 bits.
    pub const CACHE_LINE_SIZE: u16 = 0x0c;
    /// Header type, 8 bits; bit 7 says that the slot has several functions.
    pub const HEADER_TYPE: u16 = 0x0e;
    /// First of six base address registers, 32 bits each.
    pub const BAR0: u16 = 0x10;
    /// Expansion ROM base address, 32 bits; bit 0 enables it.
    pub const ROM: u16 = 0x30;
    /// Subsystem vendor id, 16 bits.
    pub const SUBSYSTEM_VENDOR_ID: u16 = 0x2c;
    /// Subsystem id, 16 bits.
    pub const SUBSYSTEM_ID: u16 = 0x2e;
    /// Offset of the first capability, 8 bits.
    pub const CAPABILITIES: u16 = 0x34;
    /// Interrupt line, 8 bits, for software's own use.
    pub const INTERRUPT_LINE: u16 = 0x3c;
    /// Interrupt pin, 8 bits: 0 for none, 1 for INTA# to 4 for INTD#.
    pub const INTERRUPT_PIN: u16 = 0x3d;

    /// Command: answer in the port space.
    pub const COMMAND_IO: u16 = 1 << 0;
    /// Command: answer in the memory space.
    pub const COMMAND_MEMORY: u16 = 1 << 1;
    /// Command: may reach memory.
    pub const COMMAND_MASTER: u16 = 1 << 2;
    /// Command: may assert SERR#.
    pub const COMMAND_SERR: u16 = 1 << 8;
    /// Command: must not assert INTx#.
    pub const COMMAND_INTX_DISABLE: u16 = 1 << 10;
    /// Status: an INTx interrupt is pending.
    pub const STATUS_INTERRUPT: u16 = 1 << 3;
    /// Status: there is a capability list.
    pub const STATUS_CAPABILITIES: u16 = 1 << 4;
    /// Takes back-to-back transactions to different targets.
    pub const STATUS_FAST_BACK_TO_BACK: u16 = 1 << 7;
    /// Answers on the bus at medium speed.
    pub const STATUS_DEVSEL_MEDIUM: u16 = 1 << 9;
    /// Status: errors, each cleared by writing one.
    pub const STATUS_ERRORS: u16 = 0xf900;
}

/// Size of the space in bytes.
const SIZE: usize = 256;
/// Where capabilities begin.
const FIRST_CAPABILITY: u8 = 0x40;
/// Bit of the expansion ROM register that opens its window.
const ROM_ENABLE: u32 = 1;

/// Who a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Class, subclass and programming interface, from bit 23 down.
    pub class: u32,
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem id.
    pub subsystem: u16,
}

/// What a base address register asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// Ports.
    Io,
    /// Memory below 4 GiB.
    Memory32 {
        /// Reads have no side effects.
        prefetchable: bool,
    },
    /// Memory anywhere; takes this register and the next.
    Memory64 {
        /// Reads have no side effects.
        prefetchable: bool,
    },
}

#[derive(Clone, Copy, Debug)]
struct Bar {
    kind: BarKind,
    size: u64,
}

/// The registers of a function's configuration space.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    bytes: [u8; SIZE],
    /// Contents after a reset.
    initial: [u8; SIZE],
    /// Bits that software writes.
    writable: [u8; SIZE],
    /// Bits that software clears by writing one.
    write_one_clears: [u8; SIZE],
    bars: [Option<Bar>; 6],
    /// Size of the expansion ROM in bytes, 0 if there is none.
    rom: u32,
    /// First byte that no capability uses.
    free: u8,
}

/// The saved form of a [`ConfigSpace`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigState {
    bytes: Vec<u8>,
}

impl ConfigSpace {
    /// A type 0 header; `pin` is the interrupt pin, 0 if the function has none.
    pub fn new(identity: &Identity, pin: u8) -> Self {
        let mut config = Self {
            bytes: [0; SIZE],
            initial: [0; SIZE],
            writable: [0; SIZE],
            write_one_clears: [0; SIZE],
            bars: [None; 6],
            rom: 0,
            free: FIRST_CAPABILITY,
        };
        config.define(reg::VENDOR_ID, &identity.vendor.to_le_bytes());
        config.define(reg::DEVICE_ID, &identity.device.to_le_bytes());
        config.define(reg::REVISION, &[identity.revision]);
        config.define(reg::CLASS, &identity.class.to_le_bytes()[..3]);
        config.define(reg::SUBSYSTEM_VENDOR_ID, &identity.subsystem_vendor.to_le_bytes());
        config.define(reg::SUBSYSTEM_ID, &identity.subsystem.to_le_bytes());
        config.define(reg::INTERRUPT_PIN, &[pin]);
        let command = reg::COMMAND_IO
            | reg::COMMAND_MEMORY
            | reg::COMMAND_MASTER
            | reg::COMMAND_SERR
            | reg::COMMAND_INTX_DISABLE;
        config.allow_writes(reg::COMMAND, &command.to_le_bytes());
        config.allow_writes(reg::CACHE_LINE_SIZE, &[0xff]);
        config.allow_writes(reg::INTERRUPT_LINE, &[0xff]);
        let errors = reg::STATUS_ERRORS.to_le_bytes();
        config.write_one_clears[usize::from(reg::STATUS)..][..2].copy_from_slice(&errors);
        config
    }

    /// Sets bytes from `offset` on, now and after each reset.
    pub fn define(&mut self, offset: u16, bytes: &[u8]) {
        let range = usize::from(offset)..usize::from(offset) + bytes.len();
        self.bytes[range.clone()].copy_from_slice(bytes);
        self.initial[range].copy_from_slice(bytes);
    }

    /// Lets software write the bits that are set in `mask`, from `offset` on; the mask replaces an
    /// earlier one.
    pub fn allow_writes(&mut self, offset: u16, mask: &[u8]) {
        self.writable[usize::from(offset)..][..mask.len()].copy_from_slice(mask);
    }

    /// Marks the function as one of several in its slot.
    pub fn set_multifunction(&mut self) {
        let kind = self.initial[usize::from(reg::HEADER_TYPE)];
        self.define(reg::HEADER_TYPE, &[kind | HEADER_MULTIFUNCTION]);
    }

    /// Declares base address register `index` of `size` bytes, a power of two, at least 4 for ports
    /// and 16 for memory.
    ///
    /// # Panics
    /// If the size is none of these, or the register does not exist.
    pub fn add_bar(&mut self, index: usize, kind: BarKind, size: u64) {
        let least = if kind == BarKind::Io { 4 } else { 16 };
        assert!(size.is_power_of_two() && size >= least, "BAR of {size} bytes");
        let prefetch = |yes: bool| if yes { 8_u32 } else { 0 };
        let flags = match kind {
            BarKind::Io => 1,
            BarKind::Memory32 { prefetchable } => prefetch(prefetchable),
            BarKind::Memory64 { prefetchable } => 4 | prefetch(prefetchable),
        };
        let offset = reg::BAR0 + 4 * index as u16;
        self.define(offset, &flags.to_le_bytes());
        let mask = !(size - 1);
        self.allow_writes(offset, &(mask as u32).to_le_bytes());
        if matches!(kind, BarKind::Memory64 { .. }) {
            assert!(index < 5, "a 64-bit BAR takes two registers");
            self.allow_writes(offset + 4, &((mask >> 32) as u32).to_le_bytes());
        }
        self.bars[index] = Some(Bar { kind, size });
    }

    /// Declares an expansion ROM of `size` bytes, a power of two.
    pub fn add_rom(&mut self, size: u32) {
        assert!(size.is_power_of_two() && size > ROM_ENABLE, "ROM of {size} bytes");
        self.allow_writes(reg::ROM, &(!(size - 1) | ROM_ENABLE).to_le_bytes());
        self.rom = size;
    }

    /// Address and size of the window that the expansion ROM register opens now.
    pub fn rom_window(&self) -> Option<(u64, u64)> {
        let register = self.read(reg::ROM, 4);
        let enabled = register & ROM_ENABLE != 0 && self.command() & reg::COMMAND_MEMORY != 0;
        let address = register & !self.rom.checked_sub(1)?;
        let last = address.checked_add(self.rom - 1)?;
        let open = enabled && address != 0 && last != u32::MAX;
        open.then_some((address.into(), self.rom.into()))
    }

    /// Adds a capability whose contents after the two bytes of id and link are `body`, all read-only;
    /// returns its offset. The one added last is the first in the list.
    ///
    /// # Panics
    /// If the space has no room.
    pub fn add_capability(&mut self, id: u8, body: &[u8]) -> u16 {
        self.add_capability_at(self.free, id, body)
    }

    /// As [`ConfigSpace::add_capability`], at `offset`, where there is none.
    ///
    /// # Panics
    /// If the space has no room.
    pub fn add_capability_at(&mut self, offset: u8, id: u8, body: &[u8]) -> u16 {
        let len = (body.len() as u8 + 2).next_multiple_of(4);
        self.free = self.free.max(offset.checked_add(len).expect("room for the capability"));
        let offset = u16::from(offset);
        let next = self.initial[usize::from(reg::CAPABILITIES)];
        self.define(offset, &[id, next]);
        self.define(offset + 2, body);
        self.define(reg::CAPABILITIES, &[offset as u8]);
        let status = self.u16_at(reg::STATUS) | reg::STATUS_CAPABILITIES;
        self.define(reg::STATUS, &status.to_le_bytes());
        offset
    }

    /// Reads `size` bytes, 1 to 4, at `offset`; what lies past the end reads as zero.
    pub fn read(&self, offset: u16, size: u8) -> u32 {
        let start = usize::from(offset);
        let mut value = [0; 4];
        for (i, byte) in value.iter_mut().enumerate().take(usize::from(size)) {
            *byte = self.bytes.get(start + i).copied().unwrap_or(0);
        }
        u32::from_le_bytes(value)
    }

    /// A write by software: only what is writable changes.
    pub fn write(&mut self, offset: u16, size: u8, value: u32) {
        let start = usize::from(offset);
        for (i, &new) in value.to_le_bytes().iter().enumerate().take(usize::from(size)) {
            let Some(byte) = self.bytes.get_mut(start + i) else { return };
            let writable = self.writable[start + i];
            *byte =
                (*byte & !writable | new & writable) & !(new & self.write_one_clears[start + i]);
        }
    }

    /// Lets software write all bits of these registers, which the function only keeps; each comes with what
    /// is in it after a reset.
    pub fn keep(&mut self, registers: &[(u16, &[u8])]) {
        for &(offset, initial) in registers {
            self.define(offset, initial);
            self.allow_writes(offset, &vec![0xff; initial.len()]);
        }
    }

    /// A write by the device itself, past the write masks.
    pub fn set(&mut self, offset: u16, bytes: &[u8]) {
        self.bytes[usize::from(offset)..][..bytes.len()].copy_from_slice(bytes);
    }

    /// The 16 bits at `offset`.
    pub fn u16_at(&self, offset: u16) -> u16 {
        self.read(offset, 2) as u16
    }

    /// The command register.
    pub fn command(&self) -> u16 {
        self.u16_at(reg::COMMAND)
    }

    /// Kind, address and size of the window that register `index` opens now; `None` if it is not
    /// there, not enabled, or holds no address that can be decoded.
    pub fn bar_window(&self, index: usize) -> Option<(BarKind, u64, u64)> {
        let Bar { kind, size } = (*self.bars.get(index)?)?;
        let offset = reg::BAR0 + 4 * index as u16;
        let low = u64::from(self.read(offset, 4)) & !(size - 1);
        let (enable, address, limit) = match kind {
            BarKind::Io => (reg::COMMAND_IO, low, 0xffff),
            BarKind::Memory32 { .. } => (reg::COMMAND_MEMORY, low, u64::from(u32::MAX)),
            BarKind::Memory64 { .. } => {
                let high = u64::from(self.read(offset + 4, 4)) << 32;
                (reg::COMMAND_MEMORY, (high | low) & !(size - 1), u64::MAX)
            }
        };
        // While software sizes a register it holds all ones: a window that would end with the
        // address space is not opened.
        let last = address.checked_add(size - 1)?;
        let open = self.command() & enable != 0 && address != 0 && last < limit;
        open.then_some((kind, address, size))
    }

    /// Kind of base address register `index`, if there is one.
    pub fn bar_kind(&self, index: usize) -> Option<BarKind> {
        (*self.bars.get(index)?).map(|bar| bar.kind)
    }

    /// Back to the contents after power-on.
    pub fn reset(&mut self) {
        self.bytes = self.initial;
    }

    /// What is to be saved.
    pub fn save(&self) -> ConfigState {
        ConfigState { bytes: self.bytes.to_vec() }
    }

    /// Whether `state` fits this function: it differs from it only in what software or the device may
    /// change.
    ///
    /// # Errors
    /// What does not fit.
    pub fn check(&self, state: &ConfigState) -> Result<(), String> {
        if state.bytes.len() != SIZE {
            return Err(format!("configuration space of {} bytes", state.bytes.len()));
        }
        for offset in [reg::VENDOR_ID, reg::DEVICE_ID, reg::SUBSYSTEM_ID] {
            let range = usize::from(offset)..usize::from(offset) + 2;
            if state.bytes[range.clone()] != self.initial[range] {
                return Err(format!("configuration space of another device at {offset:#x}"));
            }
        }
        Ok(())
    }

    /// Takes over a state that [`ConfigSpace::check`] accepted. Bits of the header and of capabilities
    /// that nobody may change stay as they are.
    pub fn restore(&mut self, state: &ConfigState) {
        let changeable = reg::STATUS_ERRORS | reg::STATUS_INTERRUPT;
        for (i, &saved) in state.bytes.iter().enumerate().take(SIZE) {
            let mut mask = self.writable[i];
            if i == usize::from(reg::STATUS) || i == usize::from(reg::STATUS) + 1 {
                mask |= changeable.to_le_bytes()[i & 1];
            }
            // Past the header a device may have registers that only it changes.
            if i >= usize::from(FIRST_CAPABILITY) && i >= usize::from(self.free) {
                mask = 0xff;
            }
            self.bytes[i] = self.bytes[i] & !mask | saved & mask;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ConfigSpace {
        let identity = Identity {
            vendor: 0x1af4,
            device: 0x1001,
            revision: 0,
            class: 0x01_00_00,
            subsystem_vendor: 0x1af4,
            subsystem: 2,
        };
        let mut config = ConfigSpace::new(&identity, 1);
        config.add_bar(0, BarKind::Io, 0x80);
        config.add_bar(1, BarKind::Memory32 { prefetchable: false }, 0x1000);
        config.add_bar(4, BarKind::Memory64 { prefetchable: true }, 0x4000);
        config
    }

    #[test]
    fn sizing_tells_kind_and_size() {
        let mut config = config();
        for (offset, want) in
            [(0x10, 0xffff_ff81), (0x14, 0xffff_f000), (0x18, 0), (0x20, 0xffff_c00c), (0x24, !0)]
        {
            config.write(offset, 4, u32::MAX);
            assert_eq!(config.read(offset, 4), want, "{offset:#x}");
        }
    }

    #[test]
    fn windows_open_with_the_command_bits() {
        let mut config = config();
        config.write(0x10, 4, 0xc000);
        config.write(0x20, 4, 0xfe00_0000);
        config.write(0x24, 4, 0x1);
        assert_eq!(config.bar_window(0), None);
        config.write(reg::COMMAND, 2, 3);
        assert_eq!(config.bar_window(0), Some((BarKind::Io, 0xc000, 0x80)));
        assert_eq!(config.bar_window(1), None, "no address yet");
        let mem64 = BarKind::Memory64 { prefetchable: true };
        assert_eq!(config.bar_window(4), Some((mem64, 0x1_fe00_0000, 0x4000)));
        config.write(0x10, 4, u32::MAX);
        assert_eq!(config.bar_window(0), None, "all ones while sizing");
        config.reset();
        assert_eq!(config.bar_window(4), None);
    }

    #[test]
    fn capabilities_chain_from_the_last_added() {
        let mut config = config();
        let first = config.add_capability(9, &[16; 14]);
        let second = config.add_capability(0x11, &[0; 10]);
        assert_eq!((first, second), (0x40, 0x50));
        assert_eq!(config.read(0x34, 1), 0x50);
        assert_eq!(config.read(0x50, 2), 0x4011);
        assert_eq!(config.read(0x40, 2), 0x0009);
        assert_eq!(config.read(reg::STATUS, 2), 0x10);
        config.write(0x40, 4, u32::MAX);
        assert_eq!(config.read(0x40, 2), 0x0009);
    }

    #[test]
    fn a_read_only_bit_survives_writes_and_a_foreign_state_is_refused() {
        let mut config = config();
        config.write(0, 4, 0);
        assert_eq!(config.read(0, 4), 0x1001_1af4);
        let mut state = config.save();
        assert!(config.check(&state).is_ok());
        state.bytes[0] = 0;
        assert!(config.check(&state).is_err());
        state.bytes.clear();
        assert!(config.check(&state).is_err());
    }
}
