//! The adapter as a PCI function: `VGA`, with the legacy ports, and `secondary-vga`, without.

use std::sync::{Arc, Mutex, MutexGuard};

use ::bus::{Clock, Device};
use memory::{GuestMemory, MemoryError};
use serde::{Deserialize, Serialize};
use vmstate::{RestoreError, Saved, State};

use super::{MMIO_SIZE, Vga, VgaState};
use crate::lock;
use crate::pci::{
    BarKind, EndpointState, Identity, OptionRom, PciEndpoint, PciFunction, PciWiring,
};

/// BAR of the memory.
const MEMORY_BAR: usize = 0;
/// BAR of the registers.
const MMIO_BAR: usize = 2;

/// What kind of function it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VgaKind {
    /// The machine's VGA, at the legacy ports too.
    Primary,
    /// One more display, reached through its BARs only.
    Secondary,
}

/// What users can choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VgaOptions {
    /// Size of the video memory in MiB; made a power of two from 1 to 512.
    pub memory_mib: u32,
    /// Show the registers in a BAR.
    pub mmio: bool,
    /// Describe a monitor that would like this many pixels; 0 by 0 for 1280 by 800.
    pub edid: bool,
    /// See `edid`.
    pub x_res: u32,
    /// See `edid`.
    pub y_res: u32,
}

impl Default for VgaOptions {
    fn default() -> Self {
        Self { memory_mib: 16, mmio: true, edid: true, x_res: 0, y_res: 0 }
    }
}

impl VgaOptions {
    /// Size of the video memory in bytes.
    pub fn memory_size(&self) -> u32 {
        self.memory_mib.clamp(1, 512).next_power_of_two() << 20
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct VgaPciState {
    endpoint: EndpointState,
    vga: VgaState,
}

impl State for VgaPciState {
    const NAME: &'static str = "vga-pci";
    const VERSION: u32 = 1;
}

/// A [`Vga`] on the PCI bus.
pub struct VgaPci {
    id: String,
    vga: Arc<Vga>,
    endpoint: Mutex<PciEndpoint>,
}

impl VgaPci {
    /// A function called `id` with expansion ROM `rom`, and video memory allocated from `memory`.
    ///
    /// # Errors
    /// If the host has no room for the video memory.
    pub fn new(
        id: &str,
        kind: VgaKind,
        options: VgaOptions,
        rom: Option<OptionRom>,
        clock: Clock,
        wiring: PciWiring,
        memory: &Arc<GuestMemory>,
    ) -> Result<Arc<Self>, MemoryError> {
        let vga = Vga::with_options(id, &options, clock, memory)?;
        let identity = Identity {
            vendor: 0x1234,
            device: 0x1111,
            revision: 2,
            class: if kind == VgaKind::Primary { 0x03_0000 } else { 0x03_8000 },
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
        };
        let mut endpoint = PciEndpoint::new(&identity, PciWiring { pin: 0, ..wiring });
        let kind_of_memory = BarKind::Memory32 { prefetchable: true };
        endpoint.add_memory_bar(MEMORY_BAR, kind_of_memory, memory, vga.memory_block().clone());
        if options.mmio || kind == VgaKind::Secondary {
            let registers = BarKind::Memory32 { prefetchable: false };
            endpoint.add_bar(MMIO_BAR, registers, MMIO_SIZE, vga.register_page());
        }
        if let Some(rom) = rom {
            endpoint.add_rom(rom);
        }
        Ok(Arc::new(Self { id: id.to_owned(), vga, endpoint: Mutex::new(endpoint) }))
    }

    /// Gives the function the adapter's BIOS.
    pub fn add_rom(&self, rom: OptionRom) {
        self.endpoint().add_rom(rom);
    }

    /// The adapter.
    pub fn vga(&self) -> &Arc<Vga> {
        &self.vga
    }

    fn endpoint(&self) -> MutexGuard<'_, PciEndpoint> {
        lock(&self.endpoint)
    }
}

impl PciFunction for VgaPci {
    fn read_config(&self, offset: u16, size: u8) -> u32 {
        self.endpoint().read(offset, size)
    }

    fn write_config(&self, offset: u16, size: u8, value: u32) {
        self.endpoint().write(offset, size, value);
    }
}

impl Device for VgaPci {
    fn id(&self) -> String {
        self.id.clone()
    }

    fn reset(&self) {
        self.endpoint().reset();
        self.vga.reset();
    }

    fn save(&self) -> Saved {
        Saved::new(&VgaPciState { endpoint: self.endpoint().save(), vga: self.vga.save() })
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let state: VgaPciState = saved.decode()?;
        let mut endpoint = self.endpoint();
        endpoint
            .check(&state.endpoint)
            .and_then(|()| self.vga.check(&state.vga))
            .map_err(|reason| RestoreError::Damaged { name: VgaPciState::NAME, reason })?;
        endpoint.restore(&state.endpoint);
        self.vga.restore(&state.vga);
        Ok(())
    }
}
