//! `pvpanic` and `pvpanic-pci`: by writing a byte, a guest says that its kernel panicked.
//!
//! Follows "PVPANIC DEVICE" of QEMU's specifications. Bit 0 of the byte is a panic, bit 1 says that the
//! guest deals with it itself, by starting a crash kernel. Reading tells which of these a guest should use; one
//! that writes another is heard all the same, as by QEMU. On the
//! ISA bus it is a port, on PCI the first byte of BAR 0.

use std::sync::{Arc, Mutex, Weak};

use bus::{AddressSpace, BusDevice, Device, MachineControl, MapError, Notice};
use serde::{Deserialize, Serialize};
use vmstate::{RestoreError, Saved, State};

use crate::isa::{PortDevice, map_ports};
use crate::lock;
use crate::pci::{BarKind, EndpointState, Identity, PciEndpoint, PciFunction, PciWiring};

/// Port on the ISA bus, unless told.
pub const PORT: u16 = 0x505;
const PANICKED: u8 = 1 << 0;
const CRASH_LOADED: u8 = 1 << 1;
/// All that can be told.
pub const EVENTS: u8 = PANICKED | CRASH_LOADED;

const IDENTITY: Identity = Identity {
    vendor: 0x1b36,
    device: 0x0011,
    revision: 1,
    class: 0x08_80_00,
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
};
/// The smallest BAR of memory that there is.
const BAR_SIZE: u64 = 16;

/// What both forms do with a byte.
struct Register {
    events: u8,
    control: Arc<dyn MachineControl>,
}

impl Register {
    fn write(&self, value: u8) {
        if value & PANICKED != 0 {
            self.control.notify(Notice::Panicked);
        } else if value & CRASH_LOADED != 0 {
            self.control.notify(Notice::CrashLoaded);
        }
    }
}

/// Saved state of [`PvPanic`], which holds nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PvPanicState {}

impl State for PvPanicState {
    const NAME: &'static str = "pvpanic";
    const VERSION: u32 = 1;
}

/// The device on the ISA bus.
pub struct PvPanic(Register);

impl PvPanic {
    /// A device that offers the bits `events`.
    pub fn new(events: u8, control: Arc<dyn MachineControl>) -> Arc<Self> {
        Arc::new(Self(Register { events: events & EVENTS, control }))
    }

    /// Maps the port.
    ///
    /// # Errors
    /// Never in a space of 64 Ki ports.
    pub fn attach(self: &Arc<Self>, ports: &AddressSpace, port: u16) -> Result<(), MapError> {
        map_ports(ports, port, 1, self.clone())?;
        Ok(())
    }
}

impl PortDevice for PvPanic {
    fn read_port(&self, _port: u16) -> u8 {
        self.0.events
    }

    fn write_port(&self, _port: u16, value: u8) {
        self.0.write(value);
    }
}

impl Device for PvPanic {
    fn id(&self) -> String {
        "pvpanic".into()
    }

    fn reset(&self) {}

    fn save(&self) -> Saved {
        Saved::new(&PvPanicState {})
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        saved.decode::<PvPanicState>().map(drop)
    }
}

/// Saved state of [`PvPanicPci`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PvPanicPciState {
    endpoint: EndpointState,
}

impl State for PvPanicPciState {
    const NAME: &'static str = "pvpanic-pci";
    const VERSION: u32 = 1;
}

/// The device on the PCI bus.
pub struct PvPanicPci {
    path: String,
    register: Register,
    endpoint: Mutex<PciEndpoint>,
}

impl PvPanicPci {
    /// A function named `path` that offers the bits `events`.
    pub fn new(
        path: &str,
        events: u8,
        wiring: PciWiring,
        control: Arc<dyn MachineControl>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| {
            let mut endpoint = PciEndpoint::new(&IDENTITY, PciWiring { pin: 0, ..wiring });
            let kind = BarKind::Memory32 { prefetchable: false };
            endpoint.add_bar(0, kind, BAR_SIZE, Arc::new(Bar(this.clone())));
            Self {
                path: path.to_owned(),
                register: Register { events: events & EVENTS, control },
                endpoint: Mutex::new(endpoint),
            }
        })
    }
}

struct Bar(Weak<PvPanicPci>);

impl BusDevice for Bar {
    fn read(&self, offset: u64, _size: u8) -> u64 {
        let events = self.0.upgrade().map_or(0, |device| device.register.events);
        if offset == 0 { events.into() } else { 0 }
    }

    fn write(&self, offset: u64, _size: u8, value: u64) {
        if let Some(device) = self.0.upgrade().filter(|_| offset == 0) {
            device.register.write(value as u8);
        }
    }
}

impl PciFunction for PvPanicPci {
    fn read_config(&self, offset: u16, size: u8) -> u32 {
        lock(&self.endpoint).read(offset, size)
    }

    fn write_config(&self, offset: u16, size: u8, value: u32) {
        lock(&self.endpoint).write(offset, size, value);
    }
}

impl Device for PvPanicPci {
    fn id(&self) -> String {
        self.path.clone()
    }

    fn reset(&self) {
        lock(&self.endpoint).reset();
    }

    fn save(&self) -> Saved {
        Saved::new(&PvPanicPciState { endpoint: lock(&self.endpoint).save() })
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let state: PvPanicPciState = saved.decode()?;
        let mut endpoint = lock(&self.endpoint);
        endpoint
            .check(&state.endpoint)
            .map_err(|reason| RestoreError::Damaged { name: PvPanicPciState::NAME, reason })?;
        endpoint.restore(&state.endpoint);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Wishes;

    #[test]
    fn a_panic_and_a_crash_kernel_are_told_apart() {
        let wishes = Arc::new(Wishes::default());
        let ports = AddressSpace::new();
        PvPanic::new(EVENTS, wishes.clone()).attach(&ports, PORT).unwrap();
        assert_eq!(ports.read(0x505, 1), Some(3));
        for value in [0, 0xfc, 2, 3] {
            ports.write(0x505, 1, value);
        }
        assert_eq!(wishes.taken(), ["notice CrashLoaded", "notice Panicked"]);
        PvPanic::new(2, wishes.clone()).attach(&ports, 0x506).unwrap();
        assert_eq!(ports.read(0x506, 1), Some(2));
        ports.write(0x506, 1, 1);
        assert_eq!(wishes.taken(), ["notice Panicked"], "not offered, and heard");
    }
}
