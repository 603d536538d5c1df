//! PIIX3, function 0: the ISA bridge, with PCI interrupt routing and the reset control register.
//!
//! Follows Intel's 82371SB data sheet (290550), chapter 2.

use std::sync::{Arc, Mutex};

use bus::{AddressSpace, Device, MachineControl, MapError, ShutdownCause};
use serde::{Deserialize, Serialize};
use vmstate::{RestoreError, Saved, State};

use super::reg;
use crate::irq::{IrqRouter, PIRQS};
use crate::isa::PortDevice;
use crate::lock;
use crate::pci::{self, ConfigSpace, ConfigState, Devfn, Identity, PciBus, PciFunction};

/// Reset control port; it lies within the host bridge's configuration address register.
const RESET_PORT: u16 = 0xcf9;
const RESET_CPU: u8 = 1 << 2;
const RESET_HARD: u8 = 1 << 1;

/// PIRQ route: not routed, and the line it is routed to otherwise.
const ROUTE_OFF: u8 = 1 << 7;
const ROUTE_LINE: u8 = 0xf;
/// Lines that a PIRQ can be routed to.
const ROUTABLE: u16 = 0b1101_1110_1111_1000;

/// Registers that firmware writes and reads, and that nothing here depends on, with what is in them after a
/// reset: I/O recovery, X-bus chip selects, top of memory, motherboard interrupt, motherboard DMA channels,
/// programmable chip select, APIC base, and those of system management interrupts.
const KEPT: [(u16, &[u8]); 9] = [
    (0x4c, &[0x4d]),
    (0x4e, &[0x03, 0]),
    (0x69, &[0x02]),
    (0x70, &[0x80]),
    (0x76, &[0x0c, 0x0c]),
    (0x78, &[0x02, 0]),
    (0x80, &[0]),
    (0xa0, &[0x08, 0, 0, 0, 0, 0, 0, 0, 0x0f]),
    (0xaa, &[0, 0, 0, 0, 0]),
];

const IDENTITY: Identity = Identity {
    vendor: 0x8086,
    device: 0x7000,
    revision: 0,
    class: 0x06_01_00,
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
};

/// Saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piix3State {
    config: ConfigState,
    reset_control: u8,
}

impl State for Piix3State {
    const NAME: &'static str = "piix3";
    const VERSION: u32 = 1;

    fn validate(&self) -> Result<(), String> {
        if self.reset_control & !RESET_HARD != 0 {
            return Err(format!("reset control {:#x}", self.reset_control));
        }
        Ok(())
    }
}

struct Registers {
    config: ConfigSpace,
    reset_control: u8,
}

/// The ISA bridge.
pub struct Piix3 {
    router: Arc<IrqRouter>,
    control: Arc<dyn MachineControl>,
    registers: Mutex<Registers>,
}

impl Piix3 {
    /// Place on the bus.
    pub const DEVFN: Devfn = Devfn::new(1, 0);

    /// A bridge that routes PIRQs in `router` and resets by way of `control`.
    pub fn new(router: Arc<IrqRouter>, control: Arc<dyn MachineControl>) -> Arc<Self> {
        let mut config = ConfigSpace::new(&IDENTITY, 0);
        config.define(pci::reg::STATUS, &pci::reg::STATUS_DEVSEL_MEDIUM.to_le_bytes());
        config.set_multifunction();
        config.allow_writes(reg::PIRQ_ROUTES, &[ROUTE_OFF | ROUTE_LINE; PIRQS]);
        config.define(reg::PIRQ_ROUTES, &[ROUTE_OFF; PIRQS]);
        config.keep(&KEPT);
        let registers = Mutex::new(Registers { config, reset_control: 0 });
        Arc::new(Self { router, control, registers })
    }

    /// Puts the bridge on `bus` and maps the reset control port over the host bridge's.
    ///
    /// # Errors
    /// Never in a space of 64 Ki ports.
    pub fn attach(self: &Arc<Self>, bus: &PciBus, ports: &AddressSpace) -> Result<(), MapError> {
        bus.attach(Self::DEVFN, self.clone());
        ports.map_with_priority(RESET_PORT.into(), 1, 1, Arc::new(ResetPort(self.clone())))?;
        Ok(())
    }

    fn apply_routes(&self, registers: &Registers) {
        for pirq in 0..PIRQS {
            let route = registers.config.read(reg::PIRQ_ROUTES + pirq as u16, 1) as u8;
            let line = route & ROUTE_LINE;
            let routed = route & ROUTE_OFF == 0 && ROUTABLE & 1 << line != 0;
            self.router.set_route(pirq, routed.then_some(line));
        }
    }
}

/// The reset control port as the bus sees it.
struct ResetPort(Arc<Piix3>);

impl bus::BusDevice for ResetPort {
    fn read(&self, _offset: u64, _size: u8) -> u64 {
        self.0.read_port(RESET_PORT).into()
    }

    fn write(&self, _offset: u64, _size: u8, value: u64) {
        self.0.write_port(RESET_PORT, value as u8);
    }
}

impl PortDevice for Piix3 {
    fn read_port(&self, _port: u16) -> u8 {
        lock(&self.registers).reset_control
    }

    fn write_port(&self, _port: u16, value: u8) {
        lock(&self.registers).reset_control = value & RESET_HARD;
        if value & RESET_CPU != 0 {
            self.control.request_reset(ShutdownCause::GuestReset);
        }
    }
}

impl PciFunction for Piix3 {
    fn read_config(&self, offset: u16, size: u8) -> u32 {
        lock(&self.registers).config.read(offset, size)
    }

    fn write_config(&self, offset: u16, size: u8, value: u32) {
        let mut registers = lock(&self.registers);
        registers.config.write(offset, size, value);
        self.apply_routes(&registers);
    }
}

impl Device for Piix3 {
    fn id(&self) -> String {
        "piix3".into()
    }

    fn reset(&self) {
        let mut registers = lock(&self.registers);
        registers.config.reset();
        registers.reset_control = 0;
        self.apply_routes(&registers);
    }

    fn save(&self) -> Saved {
        let Registers { config, reset_control } = &*lock(&self.registers);
        Saved::new(&Piix3State { config: config.save(), reset_control: *reset_control })
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let state: Piix3State = saved.decode()?;
        let mut registers = lock(&self.registers);
        registers
            .config
            .check(&state.config)
            .map_err(|reason| RestoreError::Damaged { name: Piix3State::NAME, reason })?;
        registers.config.restore(&state.config);
        registers.reset_control = state.reset_control;
        self.apply_routes(&registers);
        Ok(())
    }
}
