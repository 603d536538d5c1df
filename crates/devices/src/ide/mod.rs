//! The IDE interface of PIIX3, function 1: two channels of two devices at their old ports, with
//! bus-master DMA.
//!
//! Follows Intel's 82371SB data sheet (290550) for the function, SFF-8038i for the bus master, and
//! ATA/ATAPI-6 (T13/1410D), chapter 7, for the ports. What the devices do is in [`crate::ata`].
//!
//! The ports answer whether or not the timing registers enable them: those who boot without firmware
//! find nobody to set them.

mod busmaster;
mod channel;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use bus::{AddressSpace, BusDevice, Device, IrqLine, MapError};
use memory::GuestMemory;
use serde::{Deserialize, Serialize};
use vmstate::{RestoreError, Saved, State};

use crate::ata::Connector;
use crate::lock;
use crate::pci::{
    BarKind, Devfn, EndpointState, Identity, PciBus, PciEndpoint, PciFunction, PciWiring, reg,
};
use channel::{Channel, ChannelState};

/// First port of each channel's command block, and its control port.
pub const PORTS: [(u16, u16); 2] = [(0x1f0, 0x3f6), (0x170, 0x376)];
/// Interrupt line of each channel.
pub const IRQS: [u32; 2] = [14, 15];
/// Devices on a channel.
pub const UNITS: usize = 2;

/// Configuration register: timing of the first channel, 16 bits; that of the second follows.
pub const TIMING: u16 = 0x40;
/// Bit of a timing register: the channel's ports are decoded.
pub const TIMING_ENABLE: u16 = 1 << 15;

/// BAR of the bus master, and the ports of a channel in it.
const BUS_MASTER_BAR: usize = 4;
const BUS_MASTER_PORTS: u64 = 8;

const IDENTITY: Identity = Identity {
    vendor: 0x8086,
    device: 0x7010,
    revision: 0,
    class: 0x01_01_80,
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
};

/// Who does what may wait for the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workers {
    /// A thread for each channel.
    Threads,
    /// Whoever accesses a register, at once: for tests that want the same every time.
    None,
}

/// Saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct IdeState {
    endpoint: EndpointState,
    channels: [ChannelState; 2],
}

impl State for IdeState {
    const NAME: &'static str = "piix3-ide";
    const VERSION: u32 = 1;
}

/// The controller.
pub struct PiixIde {
    endpoint: Mutex<PciEndpoint>,
    channels: [Arc<Channel>; 2],
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl PiixIde {
    /// Place on the bus.
    pub const DEVFN: Devfn = Devfn::new(1, 1);

    /// A controller without devices, whose channels have the interrupt lines `irqs`.
    ///
    /// # Errors
    /// If the host has no threads.
    pub fn new(
        wiring: PciWiring,
        irqs: [IrqLine; 2],
        memory: &Arc<GuestMemory>,
        workers: Workers,
    ) -> std::io::Result<Arc<Self>> {
        let inline = workers == Workers::None;
        let channels = irqs.map(|irq| Arc::new(Channel::new(irq, memory.clone(), inline)));
        // Its interrupts are not the bus's.
        let mut endpoint = PciEndpoint::new(&IDENTITY, PciWiring { pin: 0, ..wiring });
        let bus_master = Arc::new(BusMasterBar(channels.clone()));
        endpoint.add_bar(BUS_MASTER_BAR, BarKind::Io, 2 * BUS_MASTER_PORTS, bus_master);
        let config = endpoint.config_mut();
        config.define(reg::STATUS, &0x0280_u16.to_le_bytes());
        // Timing of both channels, and of their second devices.
        config.allow_writes(TIMING, &[0xff, 0xff, 0xff, 0xff, 0xff]);
        let mut threads = Vec::new();
        if !inline {
            for (channel, name) in channels.iter().zip(["ide0", "ide1"]) {
                let channel = channel.clone();
                let thread = std::thread::Builder::new().name(name.into());
                threads.push(thread.spawn(move || channel.serve())?);
            }
        }
        let (endpoint, threads) = (Mutex::new(endpoint), Mutex::new(threads));
        Ok(Arc::new(Self { endpoint, channels, threads }))
    }

    /// Puts the controller on `bus` and maps its ports.
    ///
    /// # Errors
    /// Never in a space of 64 Ki ports.
    pub fn attach(self: &Arc<Self>, bus: &PciBus, ports: &AddressSpace) -> Result<(), MapError> {
        bus.attach(Self::DEVFN, self.clone());
        for (index, (command, control)) in PORTS.into_iter().enumerate() {
            let handlers = self.ports(index);
            ports.map(command.into(), 8, handlers.0)?;
            ports.map(control.into(), 1, handlers.1)?;
        }
        Ok(())
    }

    /// What answers at the command block and at the control port of `channel` (0 or 1).
    pub fn ports(&self, channel: usize) -> (Arc<dyn BusDevice>, Arc<dyn BusDevice>) {
        let channel = &self.channels[channel % 2];
        (channel.clone(), Arc::new(ControlPort(channel.clone())))
    }

    /// What devices of `channel` (0 or 1) are plugged into.
    pub fn connector(&self, channel: usize) -> Arc<dyn Connector> {
        self.channels[channel % 2].clone()
    }

    fn endpoint(&self) -> MutexGuard<'_, PciEndpoint> {
        lock(&self.endpoint)
    }

    fn apply_master(&self, endpoint: &PciEndpoint) {
        let enabled = endpoint.config().command() & reg::COMMAND_MASTER != 0;
        for channel in &self.channels {
            channel.set_master(enabled);
        }
    }
}

/// The control port of a channel as the bus sees it.
struct ControlPort(Arc<Channel>);

impl BusDevice for ControlPort {
    fn read(&self, _offset: u64, _size: u8) -> u64 {
        self.0.alternate_status().into()
    }

    fn write(&self, _offset: u64, _size: u8, value: u64) {
        self.0.write_control(value as u8);
    }
}

/// The bus master's ports of both channels.
struct BusMasterBar([Arc<Channel>; 2]);

impl BusMasterBar {
    fn channel(&self, offset: u64) -> (&Channel, u64) {
        let channel = usize::from(offset >= BUS_MASTER_PORTS);
        (&self.0[channel], offset % BUS_MASTER_PORTS)
    }
}

impl BusDevice for BusMasterBar {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let (channel, offset) = self.channel(offset);
        channel.read_bus_master(offset, size)
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        let (channel, offset) = self.channel(offset);
        channel.write_bus_master(offset, size, value);
    }
}

impl PciFunction for PiixIde {
    fn read_config(&self, offset: u16, size: u8) -> u32 {
        self.endpoint().read(offset, size)
    }

    fn write_config(&self, offset: u16, size: u8, value: u32) {
        let mut endpoint = self.endpoint();
        endpoint.write(offset, size, value);
        self.apply_master(&endpoint);
    }
}

impl Device for PiixIde {
    fn id(&self) -> String {
        "piix3-ide".into()
    }

    fn reset(&self) {
        for channel in &self.channels {
            channel.reset();
        }
        let mut endpoint = self.endpoint();
        endpoint.reset();
        self.apply_master(&endpoint);
    }

    fn pause(&self) {
        for channel in &self.channels {
            channel.pause();
        }
    }

    fn resume(&self) {
        for channel in &self.channels {
            channel.resume();
        }
    }

    fn save(&self) -> Saved {
        let endpoint = self.endpoint().save();
        Saved::new(&IdeState { endpoint, channels: self.channels.each_ref().map(|c| c.save()) })
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let state: IdeState = saved.decode()?;
        let damaged = |reason| RestoreError::Damaged { name: IdeState::NAME, reason };
        let mut endpoint = self.endpoint();
        endpoint.check(&state.endpoint).map_err(damaged)?;
        for (channel, state) in self.channels.iter().zip(&state.channels) {
            channel.check(state).map_err(damaged)?;
        }
        endpoint.restore(&state.endpoint);
        self.apply_master(&endpoint);
        for (channel, state) in self.channels.iter().zip(&state.channels) {
            channel.restore(state);
        }
        Ok(())
    }
}

impl Drop for PiixIde {
    fn drop(&mut self) {
        for channel in &self.channels {
            channel.close();
        }
        for thread in lock(&self.threads).drain(..) {
            // A worker that panicked has said so.
            let _ = thread.join();
        }
    }
}
