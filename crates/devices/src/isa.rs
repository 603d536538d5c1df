//! The ISA bus: devices with 8-bit ports.
//!
//! An ISA device decodes byte ports. A wider access reaches it as one byte cycle after another, lowest
//! port first, which is what the bus bridge of a PC does for an 8-bit card.

use std::sync::Arc;

use bus::{AddressSpace, BusDevice, MapError, MappingId};

/// A device with byte-wide ports.
pub trait PortDevice: Send + Sync {
    /// Reads `port`, an absolute port number.
    fn read_port(&self, port: u16) -> u8;
    /// Writes `port`.
    fn write_port(&self, port: u16, value: u8);
}

/// Puts `len` ports from `first` on before `device`.
///
/// # Errors
/// If the range is empty or runs past the last port.
pub fn map_ports(
    ports: &AddressSpace,
    first: u16,
    len: u16,
    device: Arc<dyn PortDevice>,
) -> Result<MappingId, MapError> {
    let last = u16::try_from(u32::from(first) + u32::from(len.max(1)) - 1).unwrap_or(u16::MAX);
    ports.map(first.into(), len.into(), Arc::new(ByteCycles { first, last, device }))
}

/// Cuts accesses into byte cycles.
struct ByteCycles {
    first: u16,
    last: u16,
    device: Arc<dyn PortDevice>,
}

impl ByteCycles {
    /// The ports of an access, in the order of the cycles; those past the range are nobody's.
    fn cycles(&self, offset: u64, size: u8) -> impl Iterator<Item = (u32, Option<u16>)> + '_ {
        (0..u64::from(size.min(8))).map(move |i| {
            let port = u64::from(self.first) + offset + i;
            let port = u16::try_from(port).ok().filter(|&p| p <= self.last);
            (i as u32 * 8, port)
        })
    }
}

impl BusDevice for ByteCycles {
    fn read(&self, offset: u64, size: u8) -> u64 {
        self.cycles(offset, size).fold(0, |value, (shift, port)| {
            let byte = port.map_or(0xff, |p| self.device.read_port(p));
            value | u64::from(byte) << shift
        })
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        for (shift, port) in self.cycles(offset, size) {
            if let Some(port) = port {
                self.device.write_port(port, (value >> shift) as u8);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u16, u8)>>);

    impl PortDevice for Recorder {
        fn read_port(&self, port: u16) -> u8 {
            port as u8
        }
        fn write_port(&self, port: u16, value: u8) {
            self.0.lock().unwrap().push((port, value));
        }
    }

    #[test]
    fn wide_accesses_become_byte_cycles_that_end_with_the_range() {
        let ports = AddressSpace::new();
        let device = Arc::new(Recorder::default());
        map_ports(&ports, 0x60, 2, device.clone()).unwrap();
        assert_eq!(ports.read(0x60, 2), Some(0x6160));
        assert_eq!(ports.read(0x61, 4), Some(0xffff_ff61));
        assert!(ports.write(0x60, 4, 0x4433_2211));
        assert_eq!(*device.0.lock().unwrap(), [(0x60, 0x11), (0x61, 0x22)]);
    }
}
