//! Expansion ROMs (PCI Firmware Specification 3.0, chapter 5): what a function's own firmware is read
//! from.

use ::bus::BusDevice;

/// The least that an expansion ROM register can ask for, in bytes.
const MIN_SIZE: usize = 2 << 10;
/// The most, in bytes.
const MAX_SIZE: usize = 16 << 20;
/// Start of a ROM image, and of its PCI data structure.
const SIGNATURE: [u8; 2] = [0x55, 0xaa];
const DATA_SIGNATURE: [u8; 4] = *b"PCIR";
/// Where the offset of the data structure is.
const DATA_POINTER: usize = 0x18;
/// A byte of the image that is free to make its sum right.
const CHECKSUM: usize = 6;

/// A ROM, padded to a power of two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionRom {
    bytes: Vec<u8>,
}

impl OptionRom {
    /// A ROM with the contents of `image`.
    ///
    /// # Errors
    /// If it is empty or larger than 16 MiB.
    pub fn new(mut image: Vec<u8>) -> Result<Self, String> {
        if image.is_empty() || image.len() > MAX_SIZE {
            let most = MAX_SIZE >> 20;
            return Err(format!("{} bytes; a ROM has from 1 byte to {most} MiB", image.len()));
        }
        image.resize(image.len().next_power_of_two().max(MIN_SIZE), 0);
        Ok(Self { bytes: image })
    }

    /// Its length in bytes, a power of two.
    pub(super) fn size(&self) -> u32 {
        self.bytes.len() as u32
    }

    /// Has the first image say that it is for the function with these ids: one ROM serves several
    /// similar functions.
    pub(super) fn set_ids(&mut self, vendor: u16, device: u16) {
        let bytes = &mut self.bytes;
        if bytes[..2] != SIGNATURE {
            return;
        }
        let at = usize::from(u16::from_le_bytes([bytes[DATA_POINTER], bytes[DATA_POINTER + 1]]));
        let Some(data) = bytes.get_mut(at..at + 8).filter(|data| data[..4] == DATA_SIGNATURE)
        else {
            return;
        };
        let mut ids = [0; 4];
        ids[..2].copy_from_slice(&vendor.to_le_bytes());
        ids[2..].copy_from_slice(&device.to_le_bytes());
        let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        let change = sum(&data[4..]).wrapping_sub(sum(&ids));
        data[4..].copy_from_slice(&ids);
        bytes[CHECKSUM] = bytes[CHECKSUM].wrapping_add(change);
    }
}

impl BusDevice for OptionRom {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let byte = |i: u64| usize::try_from(offset + i).ok().and_then(|at| self.bytes.get(at));
        (0..u64::from(size.min(8)))
            .fold(0, |value, i| value | u64::from(byte(i).copied().unwrap_or(0xff)) << (8 * i))
    }

    fn write(&self, _offset: u64, _size: u8, _value: u64) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_change_and_the_sum_stays() {
        let mut image = vec![0; 512];
        image[..3].copy_from_slice(&[0x55, 0xaa, 1]);
        image[0x18] = 0x40;
        image[0x40..0x48].copy_from_slice(b"PCIR\x86\x80\x0e\x10");
        let sum = |rom: &OptionRom| rom.bytes.iter().fold(0u8, |sum, b| sum.wrapping_add(*b));
        let mut rom = OptionRom::new(image).unwrap();
        let before = sum(&rom);
        rom.set_ids(0x1af4, 0x1000);
        assert_eq!(rom.read(0x44, 4), 0x1000_1af4);
        assert_eq!(sum(&rom), before);
        assert_eq!(rom.size(), 2048);
    }

    #[test]
    fn what_is_no_image_stays_as_it_is() {
        let mut rom = OptionRom::new(vec![0x55, 0xaa, 1]).unwrap();
        let before = rom.clone();
        rom.set_ids(1, 2);
        assert_eq!(rom, before);
        assert_eq!(rom.read(2047, 4), 0xffff_ff00);
        assert!(OptionRom::new(vec![]).is_err());
    }
}
