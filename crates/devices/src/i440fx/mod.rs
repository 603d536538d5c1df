//! The i440FX host bridge: configuration mechanism #1, shadow RAM, and system management RAM.
//!
//! Follows Intel's 82441FX data sheet (290549) and PCI Local Bus 3.0, section 3.2.2.3.2. What PAM and
//! SMRAM registers say is carried out by [`shadow`].

use std::sync::{Arc, Mutex, OnceLock, Weak};

use bus::{AddressSpace, BusDevice, Device, MapError};
use memory::{GuestMemory, MemoryBlock, MemoryError};
use serde::{Deserialize, Serialize};
use vmstate::{RestoreError, Saved, State};

use crate::lock;
use crate::pci::{ConfigSpace, ConfigState, Devfn, Identity, PciBus, PciFunction};

mod shadow;

pub use shadow::SMRAM_START;
use shadow::Shadow;

/// Place on the bus.
pub const DEVFN: Devfn = Devfn::new(0, 0);
/// Configuration address port; the data port follows.
pub const CONFIG_PORT: u16 = 0xcf8;

const ADDRESS_ENABLE: u32 = 1 << 31;
/// First of [`PAMS`] PAM registers.
pub const PAM: u16 = 0x59;
/// Number of PAM registers.
pub const PAMS: usize = 7;
/// All areas of a PAM register, both halves, are RAM that is read and written.
pub const PAM_RAM: u8 = 0x33;
/// System management RAM control.
pub const SMRAM: u16 = 0x72;
/// SMRAM's bits: it is there for everyone.
const SMRAM_OPEN: u8 = 1 << 6;
const SMRAM_CLOSED_TO_DATA: u8 = 1 << 5;
const SMRAM_LOCKED: u8 = 1 << 4;
/// It is there at all.
pub const SMRAM_ENABLED: u8 = 1 << 3;

/// Registers that firmware writes and reads, and that nothing here depends on, with what is in them after a
/// reset on machines of this kind: the bridge's own configuration, DRAM row types, control, timing and
/// boundaries, fixed holes, latency timers, error commands, turbo reset.
const KEPT: [(u16, &[u8]); 5] = [
    (0x50, &[0, 0, 0, 0, 0, 0, 0, 0x10, 0]),
    (0x60, &[0; 9]),
    (0x70, &[0, 0]),
    (0x90, &[0]),
    (0x93, &[0]),
];

const IDENTITY: Identity = Identity {
    vendor: 0x8086,
    device: 0x1237,
    revision: 2,
    class: 0x06_00_00,
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
};

/// Saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct I440fxState {
    config: ConfigState,
    address: u32,
    /// What is in system management RAM.
    smram: Vec<u8>,
}

impl State for I440fxState {
    const NAME: &'static str = "i440fx";
    const VERSION: u32 = 2;
}

struct Registers {
    config: ConfigSpace,
    /// Configuration address register.
    address: u32,
}

/// The host bridge.
pub struct I440fx {
    /// The bus that holds this bridge too.
    bus: OnceLock<Weak<PciBus>>,
    shadow: OnceLock<Shadow>,
    registers: Mutex<Registers>,
}

impl I440fx {
    /// A bridge; [`I440fx::attach`] gives it its bus.
    pub fn new() -> Arc<Self> {
        let mut config = ConfigSpace::new(&IDENTITY, 0);
        config.keep(&KEPT);
        config.define(SMRAM, &[0x02]);
        let mut pams = [PAM_RAM; PAMS];
        // The first has no lower half.
        pams[0] &= 0xf0;
        config.allow_writes(PAM, &pams);
        let smram = SMRAM_OPEN | SMRAM_CLOSED_TO_DATA | SMRAM_LOCKED | SMRAM_ENABLED;
        config.allow_writes(SMRAM, &[smram]);
        Arc::new(Self {
            bus: OnceLock::new(),
            shadow: OnceLock::new(),
            registers: Mutex::new(Registers { config, address: 0 }),
        })
    }

    /// Puts the bridge on `bus` and maps its ports.
    ///
    /// # Errors
    /// Never in a space of 64 Ki ports.
    pub fn attach(
        self: &Arc<Self>,
        bus: &Arc<PciBus>,
        ports: &AddressSpace,
    ) -> Result<(), MapError> {
        // Only the first call counts: the wiring is fixed.
        let _ = self.bus.set(Arc::downgrade(bus));
        bus.attach(DEVFN, self.clone());
        ports.map(CONFIG_PORT.into(), 8, self.clone())?;
        Ok(())
    }

    /// Has the PAM and SMRAM registers act on `memory`. `bios` is what its last 128 KiB are seen from
    /// 0xe0000 on while that area is not RAM.
    ///
    /// # Errors
    /// If there is no room for system management RAM.
    pub fn connect_memory(
        &self,
        memory: &Arc<GuestMemory>,
        bios: Option<Arc<MemoryBlock>>,
    ) -> Result<(), MemoryError> {
        let shadow = Shadow::new(memory, bios)?;
        // Only the first call counts: the wiring is fixed.
        let _ = self.shadow.set(shadow);
        self.apply(&lock(&self.registers));
        Ok(())
    }

    /// Puts `bytes` into system management RAM from `offset` on, as firmware does before it closes it. What
    /// does not fit is lost.
    pub fn load_smram(&self, offset: u64, bytes: &[u8]) {
        if let Some(block) = self.smram() {
            let _ = block.write(offset, bytes);
        }
    }

    fn smram(&self) -> Option<&Arc<MemoryBlock>> {
        self.shadow.get().map(Shadow::smram)
    }

    /// Lets memory follow the registers.
    fn apply(&self, registers: &Registers) {
        if let Some(shadow) = self.shadow.get() {
            let config = &registers.config;
            let pams = std::array::from_fn(|n| config.read(PAM + n as u16, 1) as u8);
            shadow.apply(pams, config.read(SMRAM, 1) as u8);
        }
    }

    /// The function and register that the address register selects on this bus.
    fn target(&self, offset: u64) -> Option<(Arc<PciBus>, Devfn, u16)> {
        let address = lock(&self.registers).address;
        let on_bus_0 = address >> 16 & 0xff == 0;
        if address & ADDRESS_ENABLE == 0 || !on_bus_0 {
            return None;
        }
        let bus = self.bus.get()?.upgrade()?;
        // The lowest bits are reserved. Programs made for QEMU set them and expect them to count.
        let register = (address & 0xff) as u16 | (offset & 3) as u16;
        Some((bus, Devfn::from_bits((address >> 8) as u8), register))
    }
}

impl BusDevice for I440fx {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let ones = u64::MAX >> (64 - 8 * u32::from(size.clamp(1, 8)));
        match offset {
            0 if size == 4 => lock(&self.registers).address.into(),
            0..4 => ones,
            _ => match self.target(offset) {
                Some((bus, devfn, register)) => bus.read_config(devfn, register, size).into(),
                None => ones,
            },
        }
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        match offset {
            // Narrower accesses to these ports are not the mechanism's.
            0 if size == 4 => lock(&self.registers).address = value as u32,
            0..4 => {}
            _ => {
                if let Some((bus, devfn, register)) = self.target(offset) {
                    bus.write_config(devfn, register, size, value as u32);
                }
            }
        }
    }
}

impl PciFunction for I440fx {
    fn read_config(&self, offset: u16, size: u8) -> u32 {
        lock(&self.registers).config.read(offset, size)
    }

    fn write_config(&self, offset: u16, size: u8, value: u32) {
        let mut registers = lock(&self.registers);
        let before = registers.config.read(SMRAM, 1) as u8;
        registers.config.write(offset, size, value);
        let mut smram = registers.config.read(SMRAM, 1) as u8;
        if before & SMRAM_LOCKED != 0 {
            smram = before & !SMRAM_CLOSED_TO_DATA | smram & SMRAM_CLOSED_TO_DATA;
        } else if smram & SMRAM_LOCKED != 0 {
            smram &= !SMRAM_OPEN;
        }
        registers.config.set(SMRAM, &[smram]);
        self.apply(&registers);
    }
}

impl Device for I440fx {
    fn id(&self) -> String {
        "i440fx".into()
    }

    fn reset(&self) {
        let mut registers = lock(&self.registers);
        registers.config.reset();
        registers.address = 0;
        if let Some(block) = self.smram() {
            block.fill(0);
        }
        self.apply(&registers);
    }

    fn save(&self) -> Saved {
        let registers = lock(&self.registers);
        Saved::new(&I440fxState {
            config: registers.config.save(),
            address: registers.address,
            smram: self.smram().map(|block| block.to_vec()).unwrap_or_default(),
        })
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let state: I440fxState = saved.decode()?;
        let mut registers = lock(&self.registers);
        registers
            .config
            .check(&state.config)
            .map_err(|reason| RestoreError::Damaged { name: I440fxState::NAME, reason })?;
        if state.smram.len() as u64 != self.smram().map_or(0, |block| block.len()) {
            let reason = "system management RAM of another size".into();
            return Err(RestoreError::Damaged { name: I440fxState::NAME, reason });
        }
        if let Some(block) = self.smram() {
            block.write(0, &state.smram).expect("the length was compared");
        }
        registers.config.restore(&state.config);
        registers.address = state.address;
        self.apply(&registers);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bus::{IrqLine, MsiMessage, MsiSink};

    struct NoMsi;
    impl MsiSink for NoMsi {
        fn send(&self, _message: MsiMessage) {}
    }

    #[test]
    fn configuration_mechanism_1_reaches_functions_on_bus_0_only() {
        let ports = Arc::new(AddressSpace::new());
        let router = [0; 4].map(|_| IrqLine::unconnected());
        let bus = PciBus::new(ports.clone(), Arc::default(), router, Arc::new(NoMsi));
        let bus = Arc::new(bus);
        I440fx::new().attach(&bus, &ports).unwrap();
        let select = |address: u64| ports.write(0xcf8, 4, address);
        select(0x8000_0000);
        assert_eq!(ports.read(0xcf8, 4), Some(0x8000_0000));
        assert_eq!(ports.read(0xcfc, 4), Some(0x1237_8086));
        assert_eq!(ports.read(0xcfe, 2), Some(0x1237));
        select(0);
        assert_eq!(ports.read(0xcfc, 4), Some(0xffff_ffff));
        select(0x8001_0000);
        assert_eq!(ports.read(0xcfc, 4), Some(0xffff_ffff));
        select(0x8000_0058);
        ports.write(0xcfd, 1, 0xff);
        assert_eq!(ports.read(0xcfc, 4), Some(0x3000));
        // What is only kept.
        select(0x8000_0060);
        ports.write(0xcfc, 4, 0x1020_4080);
        assert_eq!(ports.read(0xcfc, 4), Some(0x1020_4080));
        select(0x8000_0002);
        assert_eq!(ports.read(0xcfc, 2), Some(0x1237));
        select(0x8000_0058);
        // Narrow accesses to the address port change nothing.
        ports.write(0xcf8, 1, 0);
        assert_eq!(ports.read(0xcf8, 4), Some(0x8000_0058));
    }
}
