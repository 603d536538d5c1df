//! `pci-testdev`: a function whose BARs count the writes that a test makes to them.
//!
//! Follows "PCI test device" of QEMU's specifications. Each of the BARs 0 (memory) and 1 (ports)
//! begins with a header: a byte that chooses a test, the width of the access that the test makes, its
//! offset and its data, the number of such writes that were seen, and the test's name. The tests
//! `wildcard-eventfd` and `datamatch-eventfd` measure writes that a host hands to another thread
//! instead of the device; those are not counted. BAR 2 is memory, of a size that can be chosen, that
//! holds nothing.

use std::sync::{Arc, Mutex, Weak};

use bus::{BusDevice, Device};
use serde::{Deserialize, Serialize};
use vmstate::{RestoreError, Saved, State};

use crate::lock;
use crate::pci::{BarKind, EndpointState, Identity, PciEndpoint, PciFunction, PciWiring};

const IDENTITY: Identity = Identity {
    vendor: 0x1b36,
    device: 0x0005,
    revision: 0,
    class: 0x00_ff_00,
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
};

const MEMORY_BAR_SIZE: u64 = 0x1000;
const IO_BAR_SIZE: u64 = 0x100;
/// Length of a header, its name included.
const HEADER_SIZE: usize = 64;

/// The kinds of tests, by their number in a BAR.
const KINDS: [Kind; 3] = [
    Kind { name: "no-eventfd", data: 0xfa, handed_on: HandedOn::Never },
    Kind { name: "wildcard-eventfd", data: 0xce, handed_on: HandedOn::Any },
    Kind { name: "datamatch-eventfd", data: 0xfa, handed_on: HandedOn::Matching },
];

struct Kind {
    name: &'static str,
    data: u8,
    handed_on: HandedOn,
}

/// Which writes do not reach the device.
#[derive(Clone, Copy, PartialEq, Eq)]
enum HandedOn {
    Never,
    Any,
    Matching,
}

/// The two BARs with tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Memory,
    Ports,
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Self::Memory => "mmio",
            Self::Ports => "portio",
        }
    }

    /// The number that the header shows for the first test, and the offset of its writes.
    fn first(self) -> (u8, u32) {
        match self {
            Self::Memory => (0, 0x800),
            Self::Ports => (3, 0x83),
        }
    }
}

/// A test that was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Chosen {
    /// Which of [`KINDS`].
    kind: u8,
    ports: bool,
    count: u32,
}

/// Saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct PciTestDevState {
    endpoint: EndpointState,
    chosen: Option<Chosen>,
}

impl State for PciTestDevState {
    const NAME: &'static str = "pci-testdev";
    const VERSION: u32 = 1;

    fn validate(&self) -> Result<(), String> {
        match self.chosen {
            Some(chosen) if usize::from(chosen.kind) >= KINDS.len() => {
                Err(format!("test {}", chosen.kind))
            }
            _ => Ok(()),
        }
    }
}

struct Registers {
    endpoint: PciEndpoint,
    chosen: Option<Chosen>,
}

impl Registers {
    /// The chosen test, if it is one of `side`.
    fn on(&mut self, side: Side) -> Option<&mut Chosen> {
        self.chosen.as_mut().filter(|chosen| chosen.ports == (side == Side::Ports))
    }

    fn header(&mut self, side: Side) -> [u8; HEADER_SIZE] {
        let mut header = [0; HEADER_SIZE];
        let Some(&mut Chosen { kind: index, count, .. }) = self.on(side) else { return header };
        let kind = &KINDS[usize::from(index) % KINDS.len()];
        let (number, offset) = side.first();
        header[0] = number + index;
        // Width of the access.
        header[1] = 1;
        header[4..8].copy_from_slice(&(offset + u32::from(index)).to_le_bytes());
        header[8..12].copy_from_slice(&u32::from(kind.data).to_le_bytes());
        header[12..16].copy_from_slice(&count.to_le_bytes());
        let name = format!("{}-{}", side.name(), kind.name);
        header[16..16 + name.len()].copy_from_slice(name.as_bytes());
        header
    }

    fn write(&mut self, side: Side, offset: u64, size: u8, value: u64) {
        if offset == 0 {
            let kind = value as u8;
            let known = usize::from(kind) < KINDS.len();
            let ports = side == Side::Ports;
            self.chosen = known.then_some(Chosen { kind, ports, count: 0 });
            return;
        }
        let (_, first) = side.first();
        let Some(chosen) = self.on(side) else { return };
        let kind = &KINDS[usize::from(chosen.kind) % KINDS.len()];
        let at_test = offset == u64::from(first) + u64::from(chosen.kind);
        let matches = value as u8 == kind.data;
        // Ports hand on writes of the test's own width only.
        let width = side == Side::Memory || size == 1;
        let handed_on = match kind.handed_on {
            HandedOn::Never => false,
            HandedOn::Any => width,
            HandedOn::Matching => true,
        };
        if at_test && matches && !handed_on {
            chosen.count = chosen.count.wrapping_add(1);
        }
    }
}

/// The function.
pub struct PciTestDev {
    path: String,
    registers: Mutex<Registers>,
}

impl PciTestDev {
    /// A function named `path`, with a third BAR of `membar` bytes, a power of two, if that is not zero.
    ///
    /// # Errors
    /// If `membar` is no size that a BAR can have.
    pub fn new(path: &str, membar: u64, wiring: PciWiring) -> Result<Arc<Self>, String> {
        if membar != 0 && !(membar.is_power_of_two() && (16..1 << 39).contains(&membar)) {
            return Err(format!("membar={membar}: a power of two from 16 to 256G is expected"));
        }
        Ok(Arc::new_cyclic(|this: &Weak<Self>| {
            let mut endpoint = PciEndpoint::new(&IDENTITY, PciWiring { pin: 0, ..wiring });
            let side = |side| Arc::new(Bar { device: this.clone(), side });
            let memory = BarKind::Memory32 { prefetchable: false };
            endpoint.add_bar(0, memory, MEMORY_BAR_SIZE, side(Side::Memory));
            endpoint.add_bar(1, BarKind::Io, IO_BAR_SIZE, side(Side::Ports));
            if membar != 0 {
                let kind = BarKind::Memory64 { prefetchable: true };
                endpoint.add_bar(2, kind, membar, Arc::new(Nothing));
            }
            Self {
                path: path.to_owned(),
                registers: Mutex::new(Registers { endpoint, chosen: None }),
            }
        }))
    }
}

/// A BAR with tests.
struct Bar {
    device: Weak<PciTestDev>,
    side: Side,
}

impl BusDevice for Bar {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let Some(device) = self.device.upgrade() else { return 0 };
        let header = lock(&device.registers).header(self.side);
        // Registers are read a byte at a time.
        usize::try_from(offset)
            .ok()
            .and_then(|at| header.get(at..))
            .into_iter()
            .flatten()
            .take(size.min(8).into())
            .zip(0..)
            .fold(0, |value, (&byte, i)| value | u64::from(byte) << (8 * i))
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        if let Some(device) = self.device.upgrade() {
            lock(&device.registers).write(self.side, offset, size, value);
        }
    }
}

/// Memory that holds nothing.
struct Nothing;

impl BusDevice for Nothing {
    fn read(&self, _offset: u64, _size: u8) -> u64 {
        0
    }
    fn write(&self, _offset: u64, _size: u8, _value: u64) {}
}

impl PciFunction for PciTestDev {
    fn read_config(&self, offset: u16, size: u8) -> u32 {
        lock(&self.registers).endpoint.read(offset, size)
    }

    fn write_config(&self, offset: u16, size: u8, value: u32) {
        lock(&self.registers).endpoint.write(offset, size, value);
    }
}

impl Device for PciTestDev {
    fn id(&self) -> String {
        self.path.clone()
    }

    fn reset(&self) {
        let mut registers = lock(&self.registers);
        registers.endpoint.reset();
        registers.chosen = None;
    }

    fn save(&self) -> Saved {
        let registers = lock(&self.registers);
        let endpoint = registers.endpoint.save();
        Saved::new(&PciTestDevState { endpoint, chosen: registers.chosen })
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let state: PciTestDevState = saved.decode()?;
        let mut registers = lock(&self.registers);
        registers
            .endpoint
            .check(&state.endpoint)
            .map_err(|reason| RestoreError::Damaged { name: PciTestDevState::NAME, reason })?;
        registers.endpoint.restore(&state.endpoint);
        registers.chosen = state.chosen;
        Ok(())
    }
}
