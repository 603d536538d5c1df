//! What a function of type 0 is made of.

use std::sync::{Arc, Weak};

use ::bus::space::MappingId;
use ::bus::{AddressSpace, BusDevice};
use memory::{Access, GuestMemory, MapId, Mapping, MemoryBlock};
use serde::{Deserialize, Serialize};

use super::msi::Msi;
use super::{
    BarKind, ConfigSpace, ConfigState, Identity, MsiX, MsiXState, OptionRom, PciWiring, reg,
};

/// What is seen through a window.
enum Behind {
    /// Registers in this space.
    Device(Weak<AddressSpace>, Arc<dyn BusDevice>),
    /// Memory that CPUs reach directly.
    Memory(Weak<GuestMemory>, Arc<MemoryBlock>),
}

/// How a window was mapped.
#[derive(Clone, Copy)]
enum Place {
    Device(MappingId),
    Memory(MapId),
}

/// The window of a BAR or of the expansion ROM.
struct Window {
    behind: Behind,
    /// Where it is mapped now, if it is.
    mapped: Option<(u64, Place)>,
}

impl Window {
    fn new(behind: Behind) -> Self {
        Self { behind, mapped: None }
    }

    /// Where it is mapped.
    fn address(&self) -> Option<u64> {
        self.mapped.map(|(address, _)| address)
    }

    /// Moves the window to `wanted`, an address and a size, or takes it away.
    fn place(&mut self, wanted: Option<(u64, u64)>) {
        if self.address() == wanted.map(|(address, _)| address) {
            return;
        }
        let old = self.mapped.take().map(|(_, place)| place);
        // The spaces are gone only while the machine is being taken apart.
        let place = match &self.behind {
            Behind::Device(space, handler) => space.upgrade().and_then(|space| {
                if let Some(Place::Device(id)) = old {
                    space.unmap(id);
                }
                let (address, size) = wanted?;
                space.map(address, size, handler.clone()).ok().map(Place::Device)
            }),
            Behind::Memory(memory, block) => memory.upgrade().and_then(|memory| {
                let old = match old {
                    Some(Place::Memory(id)) => vec![id],
                    _ => Vec::new(),
                };
                let mapping = wanted.map(|(address, _)| Mapping::new(address, block, Access::RAM));
                let ids = memory.remap(&old, mapping.into_iter().collect()).ok()?;
                ids.first().copied().map(Place::Memory)
            }),
        };
        self.mapped = wanted.zip(place).map(|((address, _), place)| (address, place));
    }
}

/// Configuration space, BAR windows, INTx, MSI and MSI-X of one function.
pub struct PciEndpoint {
    config: ConfigSpace,
    wiring: PciWiring,
    windows: [Option<Window>; 6],
    rom: Option<Window>,
    msi: Option<Msi>,
    msix: Option<(u16, Arc<MsiX>)>,
    /// What the device asks of its INTx wire.
    intx: bool,
}

/// The saved form of a [`PciEndpoint`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointState {
    config: ConfigState,
    msix: Option<MsiXState>,
}

impl PciEndpoint {
    /// A function without BARs and capabilities.
    pub fn new(identity: &Identity, mut wiring: PciWiring) -> Self {
        let mut config = ConfigSpace::new(identity, wiring.pin);
        if wiring.multifunction {
            config.set_multifunction();
        }
        let windows = [const { None }; 6];
        let rom = wiring.rom.take();
        let mut endpoint =
            Self { config, wiring, windows, rom: None, msi: None, msix: None, intx: false };
        if let Some(rom) = rom {
            endpoint.add_rom(rom);
        }
        endpoint
    }

    /// The registers.
    pub fn config(&self) -> &ConfigSpace {
        &self.config
    }

    /// The registers, for capabilities and registers of the device's own.
    pub fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    /// Declares a BAR (see [`ConfigSpace::add_bar`]) whose window `handler` answers in.
    pub fn add_bar(&mut self, index: usize, kind: BarKind, size: u64, handler: Arc<dyn BusDevice>) {
        self.config.add_bar(index, kind, size);
        let space = if kind == BarKind::Io { &self.wiring.ports } else { &self.wiring.mmio };
        self.windows[index] = Some(Window::new(Behind::Device(space.clone(), handler)));
    }

    /// Declares a memory BAR that shows `block`, whose length is a power of two, in `memory`: CPUs read,
    /// write and execute it as fast as RAM.
    pub fn add_memory_bar(
        &mut self,
        index: usize,
        kind: BarKind,
        memory: &Arc<GuestMemory>,
        block: Arc<MemoryBlock>,
    ) {
        self.config.add_bar(index, kind, block.len());
        let behind = Behind::Memory(Arc::downgrade(memory), block);
        self.windows[index] = Some(Window::new(behind));
    }

    /// Gives the function an expansion ROM, which is made to name its ids.
    pub fn add_rom(&mut self, mut rom: OptionRom) {
        let ids = [reg::VENDOR_ID, reg::DEVICE_ID].map(|offset| self.config.u16_at(offset));
        rom.set_ids(ids[0], ids[1]);
        self.config.add_rom(rom.size());
        let behind = Behind::Device(self.wiring.mmio.clone(), Arc::new(rom));
        self.rom = Some(Window::new(behind));
    }

    /// Adds an MSI capability for `count` messages, a power of two up to 32.
    pub fn add_msi(&mut self, count: u8) {
        self.msi = Some(Msi::new(&mut self.config, None, count));
    }

    /// As [`PciEndpoint::add_msi`], with the capability at `offset`, where there is none.
    pub fn add_msi_at(&mut self, offset: u8, count: u8) {
        self.msi = Some(Msi::new(&mut self.config, Some(offset), count));
    }

    /// Whether software uses MSI; the INTx wire is then low.
    pub fn is_msi_enabled(&self) -> bool {
        self.msi.as_ref().is_some_and(|msi| msi.is_enabled(&self.config))
    }

    /// Sends message `vector`, if software uses MSI and lets the function reach memory.
    pub fn send_msi(&self, vector: u8) {
        let master = self.config.command() & reg::COMMAND_MASTER != 0;
        if let Some(msi) = self.msi.as_ref().filter(|msi| master && msi.is_enabled(&self.config)) {
            self.wiring.msi.send(msi.message(&self.config, vector));
        }
    }

    /// Shows `msix` in a 32-bit memory BAR of its own.
    pub fn add_msix(&mut self, bar: usize, msix: Arc<MsiX>) {
        let kind = BarKind::Memory32 { prefetchable: false };
        self.add_bar(bar, kind, msix.bar_size(), msix.clone());
        let offset = self.config.add_capability(0x11, &msix.capability(bar as u32));
        let control = MsiX::control_mask();
        self.config.allow_writes(offset + 2, &control.to_le_bytes());
        self.msix = Some((offset, msix));
    }

    /// A configuration read.
    pub fn read(&self, offset: u16, size: u8) -> u32 {
        self.config.read(offset, size)
    }

    /// A configuration write, with all that follows from it: windows move, the INTx wire and messages
    /// follow their enable bits.
    pub fn write(&mut self, offset: u16, size: u8, value: u32) {
        self.config.write(offset, size, value);
        self.apply();
    }

    /// What the device asks of its INTx wire; shown in the status register, and on the wire unless
    /// software disabled it or uses MSI-X.
    pub fn set_intx(&mut self, level: bool) {
        self.intx = level;
        self.drive_intx();
    }

    fn drive_intx(&mut self) {
        let mut status = self.config.u16_at(reg::STATUS) & !reg::STATUS_INTERRUPT;
        if self.intx {
            status |= reg::STATUS_INTERRUPT;
        }
        self.config.set(reg::STATUS, &status.to_le_bytes());
        let disabled = self.config.command() & reg::COMMAND_INTX_DISABLE != 0;
        let replaced =
            self.is_msi_enabled() || self.msix.as_ref().is_some_and(|(_, msix)| msix.is_enabled());
        self.wiring.intx.set(self.intx && !disabled && !replaced);
    }

    fn apply(&mut self) {
        if let Some((offset, msix)) = &self.msix {
            msix.set_control(self.config.u16_at(offset + 2));
        }
        self.drive_intx();
        self.place_windows();
    }

    /// Puts the windows where the registers say. Of those that lie over each other the first register's is
    /// on top, whichever came first, so that it is the same after the state was restored.
    fn place_windows(&mut self) {
        let config = &self.config;
        let bars = self.windows.iter_mut().enumerate().filter_map(|(index, window)| {
            let place = config.bar_window(index).map(|(_, address, size)| (address, size));
            window.as_mut().map(|window| (window, place))
        });
        let rom = self.rom.as_mut().map(|rom| (rom, config.rom_window()));
        let mut windows: Vec<_> = bars.chain(rom).collect();
        if windows.iter().all(|(window, place)| window.address() == place.map(|place| place.0)) {
            return;
        }
        let places: Vec<_> = windows.iter().filter_map(|(_, place)| *place).collect();
        for (window, place) in &mut windows {
            let Some((start, size)) = *place else { continue };
            let meets = |&(other, len): &(u64, u64)| {
                other < start.saturating_add(size) && start < other.saturating_add(len)
            };
            if places.iter().filter(|place| meets(place)).count() > 1 {
                window.place(None);
            }
        }
        for (window, place) in windows {
            window.place(place);
        }
    }

    /// Power-on state: windows closed, the wire low.
    pub fn reset(&mut self) {
        self.config.reset();
        if let Some((_, msix)) = &self.msix {
            msix.reset();
        }
        self.intx = false;
        self.apply();
    }

    /// What is to be saved.
    pub fn save(&self) -> EndpointState {
        let msix = self.msix.as_ref().map(|(_, msix)| msix.save());
        EndpointState { config: self.config.save(), msix }
    }

    /// Whether `state` fits this function.
    ///
    /// # Errors
    /// What does not fit.
    pub fn check(&self, state: &EndpointState) -> Result<(), String> {
        self.config.check(&state.config)?;
        match (&self.msix, &state.msix) {
            (Some((_, msix)), Some(state)) => msix.check(state),
            (None, None) => Ok(()),
            _ => Err("MSI-X on one side only".into()),
        }
    }

    /// Takes over a state that [`PciEndpoint::check`] accepted: windows, wire and messages follow.
    pub fn restore(&mut self, state: &EndpointState) {
        self.config.restore(&state.config);
        if let (Some((_, msix)), Some(state)) = (&self.msix, &state.msix) {
            msix.restore(state);
        }
        self.intx = self.config.u16_at(reg::STATUS) & reg::STATUS_INTERRUPT != 0;
        self.apply();
    }
}

impl Drop for PciEndpoint {
    /// Takes the windows away.
    fn drop(&mut self) {
        self.config.reset();
        self.place_windows();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::{Devfn, PciBus};
    use ::bus::{IrqLine, IrqSink, MsiMessage, MsiSink};
    use std::sync::atomic::{AtomicBool, Ordering};

    struct Echo;
    impl BusDevice for Echo {
        fn read(&self, offset: u64, _size: u8) -> u64 {
            offset
        }
        fn write(&self, _offset: u64, _size: u8, _value: u64) {}
    }
    #[derive(Default)]
    struct Wire(AtomicBool);
    impl IrqSink for Wire {
        fn set_level(&self, _pin: u32, level: bool) {
            self.0.store(level, Ordering::SeqCst);
        }
    }
    struct NoMsi;
    impl MsiSink for NoMsi {
        fn send(&self, _message: MsiMessage) {}
    }

    const IDENTITY: Identity = Identity {
        vendor: 0x1af4,
        device: 0x1000,
        revision: 0,
        class: 0x00ff_0000,
        subsystem_vendor: 0x1af4,
        subsystem: 1,
    };

    #[test]
    fn windows_and_wire_follow_the_registers() {
        let (ports, mmio) = (Arc::new(AddressSpace::new()), Arc::new(AddressSpace::new()));
        let wire = Arc::new(Wire::default());
        let router = [0; 4].map(|_| IrqLine::new(wire.clone(), 0));
        let bus = PciBus::new(ports.clone(), mmio.clone(), router, Arc::new(NoMsi));
        let mut endpoint = PciEndpoint::new(&IDENTITY, bus.wiring(Devfn::new(3, 0), 1));
        endpoint.add_bar(0, BarKind::Io, 0x20, Arc::new(Echo));
        endpoint.add_msix(1, Arc::new(MsiX::new(2, Arc::new(NoMsi))));
        endpoint.add_rom(OptionRom::new(vec![0x55, 0xaa]).unwrap());
        let memory = Arc::new(GuestMemory::new(&[(0, 0x1000)]).unwrap());
        let block = memory.allocate("video memory", 0x10_0000).unwrap();
        let kind = BarKind::Memory32 { prefetchable: true };
        endpoint.add_memory_bar(2, kind, &memory, block);
        let is_memory = |at| memory.page(at, false).host.is_some();
        endpoint.write(0x18, 4, 0xe000_0000);
        endpoint.write(0x30, 4, u32::MAX);
        assert_eq!(endpoint.read(0x30, 4), 0xffff_f801);
        endpoint.write(0x30, 4, 0xfeb0_0001);
        endpoint.write(0x10, 4, 0xc000);
        endpoint.write(0x14, 4, 0xfebf_0000);
        assert_eq!(ports.read(0xc004, 1), None);
        endpoint.write(reg::COMMAND, 2, 3);
        assert_eq!(ports.read(0xc004, 1), Some(4));
        assert_eq!(mmio.read(0xfebf_000c, 4), Some(1), "masked vector");
        assert_eq!(mmio.read(0xfeb0_0000, 2), Some(0xaa55));
        assert!(is_memory(0xe00f_f000) && !is_memory(0xe010_0000));
        endpoint.write(0x18, 4, 0xd000_0000);
        assert!(is_memory(0xd00f_f000) && !is_memory(0xe00f_f000));
        endpoint.write(0x30, 4, 0xfeb0_0000);
        assert_eq!(mmio.read(0xfeb0_0000, 2), None);
        endpoint.write(0x10, 4, 0xd000);
        assert_eq!(ports.read(0xc004, 1), None);
        assert_eq!(ports.read(0xd004, 1), Some(4));

        endpoint.set_intx(true);
        assert!(wire.0.load(Ordering::SeqCst));
        assert_eq!(endpoint.read(reg::STATUS, 2) & 8, 8);
        endpoint.write(reg::COMMAND, 2, 0x403);
        assert!(!wire.0.load(Ordering::SeqCst));
        assert_eq!(endpoint.read(reg::STATUS, 2) & 8, 8);
        let saved = endpoint.save();
        endpoint.reset();
        assert_eq!(ports.read(0xd004, 1), None);
        endpoint.check(&saved).unwrap();
        endpoint.restore(&saved);
        assert_eq!(ports.read(0xd004, 1), Some(4));
        assert_eq!(endpoint.save(), saved);
        endpoint.write(reg::COMMAND, 2, 3);
        assert!(wire.0.load(Ordering::SeqCst));
        drop(endpoint);
        assert_eq!(ports.read(0xd004, 1), None);
        assert_eq!(mmio.read(0xfebf_000c, 4), None);
        assert!(!is_memory(0xd000_0000));
    }

    struct Constant(u64);
    impl BusDevice for Constant {
        fn read(&self, _offset: u64, _size: u8) -> u64 {
            self.0
        }
        fn write(&self, _offset: u64, _size: u8, _value: u64) {}
    }

    #[test]
    fn of_windows_over_each_other_the_same_is_on_top_whichever_came_first() {
        for registers in [[0x10, 0x14], [0x14, 0x10]] {
            let (ports, mmio) = (Arc::new(AddressSpace::new()), Arc::new(AddressSpace::new()));
            let router = [0; 4].map(|_| IrqLine::new(Arc::new(Wire::default()), 0));
            let bus = PciBus::new(ports, mmio.clone(), router, Arc::new(NoMsi));
            let mut endpoint = PciEndpoint::new(&IDENTITY, bus.wiring(Devfn::new(3, 0), 1));
            let kind = BarKind::Memory32 { prefetchable: false };
            endpoint.add_bar(0, kind, 0x1000, Arc::new(Constant(0)));
            endpoint.add_bar(1, kind, 0x1000, Arc::new(Constant(1)));
            endpoint.write(reg::COMMAND, 2, 2);
            for register in registers {
                endpoint.write(register, 4, 0xfeb0_0000);
            }
            assert_eq!(mmio.read(0xfeb0_0000, 4), Some(0));
            endpoint.write(0x10, 4, 0xfec0_0000);
            assert_eq!(mmio.read(0xfeb0_0000, 4), Some(1));
        }
    }
}
