//! The AHCI adapter of ICH9: six ports of Serial ATA.
//!
//! Follows the Serial ATA AHCI specification 1.3.1, and for its place on PCI the I/O Controller Hub 9
//! data sheet (316972), section 15. What the devices do is in [`crate::ata`].
//!
//! ```text
//! vCPU ── BAR 5, or index and data in BAR 4 ──► Ahci ──► Port ──► AtaDevice
//!                                                │ kick
//!                                                ▼
//!                                          workers ──► Job::run, on guest memory
//! ```
//!
//! Invariants:
//! - A vCPU that issues commands does none of their work; one that stops a port waits until no data of
//!   its commands move any more.
//! - Everything in command lists is the guest's: it is read once and checked before use. What is not RAM
//!   stops the port with a host bus error.
//! - Lock order: port, adapter, PCI function. None is held during I/O.

mod command;
mod fis;
mod port;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use std::thread::JoinHandle;

use bus::{BusDevice, Device};
use memory::GuestMemory;
use serde::{Deserialize, Serialize};
use vmstate::{RestoreError, Saved, State};

use self::port::{Port, PortState, Step};
use crate::ata::{AtaDevice, Connector};
use crate::ide::Workers;
use crate::lock;
use crate::pci::{BarKind, EndpointState, Identity, PciEndpoint, PciFunction, PciWiring, reg};
use crate::work::Work;

/// Ports of the adapter.
pub const PORTS: usize = 6;
/// Threads that do what may wait for the host.
const THREADS: usize = 4;

const IDENTITY: Identity = Identity {
    vendor: 0x8086,
    device: 0x2922,
    revision: 2,
    class: 0x01_06_01,
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
};

/// BAR of the index and data pair, and their offsets.
const INDEX_BAR: usize = 4;
const INDEX_BAR_LEN: u64 = 32;
const INDEX: u64 = 0x10;
const DATA: u64 = 0x14;
/// BAR of the registers.
const MEMORY_BAR: usize = 5;
const MEMORY_BAR_LEN: u64 = 4096;

/// Where capabilities are, and the id of Serial ATA's.
const MSI_OFFSET: u8 = 0x80;
const SATA_OFFSET: u8 = 0xa8;
const SATA_CAPABILITY: u8 = 0x12;
/// Address map: AHCI with all six ports; and which ports are enabled.
const ADDRESS_MAP: u16 = 0x90;

/// Registers of the adapter.
mod hba {
    pub(super) const CAP: u64 = 0x00;
    pub(super) const GHC: u64 = 0x04;
    pub(super) const IS: u64 = 0x08;
    pub(super) const PI: u64 = 0x0c;
    pub(super) const VS: u64 = 0x10;
    /// Where the ports' registers begin, and how long those of one are.
    pub(super) const PORTS: u64 = 0x100;
    pub(super) const PORT_LEN: u64 = 0x80;
}

/// 64-bit addresses, NCQ, AHCI only, generation 1 speed, 32 slots, and the ports.
const CAPABILITIES: u32 = 1 << 31 | 1 << 30 | 1 << 18 | 1 << 20 | 31 << 8 | (PORTS as u32 - 1);
/// AHCI 1.0.
const VERSION: u32 = 0x1_0000;
/// Global control: reset, interrupts, AHCI.
const GHC_RESET: u32 = 1 << 0;
const GHC_INTERRUPTS: u32 = 1 << 1;
const GHC_AHCI: u32 = 1 << 31;

/// Registers that belong to no port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Global {
    control: u32,
    /// Ports that want attention.
    is: u32,
    /// Offset that the data register reaches.
    index: u32,
}

/// Saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct AhciState {
    endpoint: EndpointState,
    global: Global,
    ports: Vec<PortState>,
}

impl State for AhciState {
    const NAME: &'static str = "ich9-ahci";
    const VERSION: u32 = 2;

    fn validate(&self) -> Result<(), String> {
        let count = self.ports.len();
        if count == PORTS { Ok(()) } else { Err(format!("{count} ports")) }
    }
}

/// A port with its lock.
struct Place {
    port: Mutex<Port>,
    /// Told when a job ends.
    idle: Condvar,
}

/// What the registers, the workers and the PCI function share.
struct Adapter {
    memory: Arc<GuestMemory>,
    places: [Place; PORTS],
    global: Mutex<Global>,
    endpoint: Mutex<PciEndpoint>,
    /// Whether the function may reach memory.
    is_master: AtomicBool,
    work: Work,
    inline: bool,
}

/// The adapter.
pub struct Ahci {
    id: String,
    adapter: Arc<Adapter>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Ahci {
    /// An adapter without devices, called `id`.
    ///
    /// # Errors
    /// If the host has no threads.
    pub fn new(
        id: &str,
        wiring: PciWiring,
        memory: Arc<GuestMemory>,
        workers: Workers,
    ) -> std::io::Result<Arc<Self>> {
        let mut endpoint = PciEndpoint::new(&IDENTITY, wiring);
        let config = endpoint.config_mut();
        // Revision 1.0; index and data are in BAR 4, from this word on.
        let place = (INDEX as u32 / 4) << 4 | (INDEX_BAR as u32 + 4);
        let mut body = vec![0x10, 0];
        body.extend(place.to_le_bytes());
        config.add_capability_at(SATA_OFFSET, SATA_CAPABILITY, &body);
        config.define(ADDRESS_MAP, &[0x40, 0, 0x3f, 0]);
        endpoint.add_msi_at(MSI_OFFSET, 1);
        let adapter = Arc::new(Adapter {
            memory,
            places: std::array::from_fn(|_| Place {
                port: Mutex::new(Port::new()),
                idle: Condvar::new(),
            }),
            global: Mutex::default(),
            endpoint: Mutex::new(endpoint),
            is_master: AtomicBool::new(false),
            work: Work::default(),
            inline: workers == Workers::None,
        });
        {
            let mut endpoint = lock(&adapter.endpoint);
            let index = Arc::new(IndexBar(Arc::downgrade(&adapter)));
            endpoint.add_bar(INDEX_BAR, BarKind::Io, INDEX_BAR_LEN, index);
            let kind = BarKind::Memory32 { prefetchable: false };
            let memory = Arc::new(MemoryBar(Arc::downgrade(&adapter)));
            endpoint.add_bar(MEMORY_BAR, kind, MEMORY_BAR_LEN, memory);
        }
        let this = Self { id: id.to_owned(), adapter, threads: Mutex::default() };
        if workers == Workers::Threads {
            for _ in 0..THREADS {
                let adapter = this.adapter.clone();
                let thread = std::thread::Builder::new().name("ahci".into());
                let thread = thread.spawn(move || {
                    while let Some(job) = adapter.work.next() {
                        adapter.serve(job.queue.into());
                    }
                })?;
                lock(&this.threads).push(thread);
            }
        }
        Ok(Arc::new(this))
    }

    /// The connector of `port`, below [`PORTS`]. Devices are plugged in before the machine starts.
    pub fn connector(&self, port: usize) -> Arc<dyn Connector> {
        Arc::new(PortConnector { adapter: self.adapter.clone(), port: port % PORTS })
    }
}

/// What a device is plugged into.
struct PortConnector {
    adapter: Arc<Adapter>,
    port: usize,
}

impl Connector for PortConnector {
    fn units(&self) -> usize {
        1
    }

    fn is_taken(&self, unit: usize) -> bool {
        unit == 0 && self.adapter.port(self.port).is_taken()
    }

    fn takes_queued(&self) -> bool {
        true
    }

    fn plug(&self, _unit: usize, device: AtaDevice) {
        self.adapter.port(self.port).plug(device);
    }
}

impl Adapter {
    fn port(&self, index: usize) -> MutexGuard<'_, Port> {
        lock(&self.places[index].port)
    }

    /// Goes through the commands of a port until there are none, or the machine stops.
    fn serve(&self, index: usize) {
        let place = &self.places[index];
        let mut port = self.port(index);
        while !self.work.is_pausing() && self.is_master.load(Ordering::Acquire) {
            match port.step(&self.memory) {
                Step::Idle => break,
                Step::Again => {}
                Step::Run(run) => {
                    port.in_flight += 1;
                    let has_more = port.has_more();
                    drop(port);
                    if has_more && !self.inline {
                        self.work.kick(index as u16);
                    }
                    let ran = run.perform(&self.memory);
                    port = self.port(index);
                    port.in_flight -= 1;
                    place.idle.notify_all();
                    port.settle(&self.memory, ran);
                }
            }
            self.update(index, &port);
        }
    }

    /// Has a port served.
    fn kick(&self, index: usize) {
        if self.inline {
            self.serve(index);
        } else {
            self.work.kick(index as u16);
        }
    }

    fn kick_all(&self) {
        (0..PORTS).for_each(|index| self.kick(index));
    }

    /// Tells the adapter whether a port wants attention.
    fn update(&self, index: usize, port: &Port) {
        let mut global = lock(&self.global);
        let before = self.interrupts(&global);
        if port.wants_interrupt() {
            global.is |= 1 << index;
        }
        self.drive(&global, before);
    }

    /// The ports that interrupt.
    fn interrupts(&self, global: &Global) -> u32 {
        if global.control & GHC_INTERRUPTS != 0 { global.is } else { 0 }
    }

    /// Puts what changed since the ports `before` interrupted on the wire, or sends it.
    fn drive(&self, global: &Global, before: u32) {
        let now = self.interrupts(global);
        if now == before {
            return;
        }
        let mut endpoint = lock(&self.endpoint);
        endpoint.set_intx(now != 0);
        if now & !before != 0 {
            endpoint.send_msi(0);
        }
    }

    /// Waits until no job of `port` is being done, not even one that was dropped.
    fn wait_idle<'a>(
        &'a self,
        index: usize,
        mut port: MutexGuard<'a, Port>,
    ) -> MutexGuard<'a, Port> {
        while port.in_flight > 0 {
            port = self.places[index].idle.wait(port).unwrap_or_else(|e| e.into_inner());
        }
        port
    }

    fn reset_ports(&self, reset: impl Fn(&mut Port)) {
        for index in 0..PORTS {
            let mut port = self.port(index);
            reset(&mut port);
            drop(self.wait_idle(index, port));
        }
    }

    fn read(&self, offset: u64) -> u32 {
        if let Some(at) = offset.checked_sub(hba::PORTS) {
            let index = (at / hba::PORT_LEN) as usize;
            return if index < PORTS { self.port(index).read(at % hba::PORT_LEN) } else { 0 };
        }
        match offset {
            hba::CAP => CAPABILITIES,
            hba::GHC => lock(&self.global).control | GHC_AHCI,
            hba::IS => lock(&self.global).is,
            hba::PI => (1 << PORTS) - 1,
            hba::VS => VERSION,
            _ => 0,
        }
    }

    fn write(&self, offset: u64, value: u32) {
        if let Some(at) = offset.checked_sub(hba::PORTS) {
            let index = (at / hba::PORT_LEN) as usize;
            if index < PORTS {
                self.write_port(index, at % hba::PORT_LEN, value);
            }
            return;
        }
        match offset {
            hba::GHC if value & GHC_RESET != 0 => {
                self.reset_ports(Port::reset_by_adapter);
                let mut global = lock(&self.global);
                let before = self.interrupts(&global);
                (global.control, global.is) = (0, 0);
                self.drive(&global, before);
            }
            hba::GHC => {
                let mut global = lock(&self.global);
                let before = self.interrupts(&global);
                global.control = value & GHC_INTERRUPTS;
                self.drive(&global, before);
            }
            hba::IS => self.clear_interrupts(value),
            _ => {}
        }
    }

    fn write_port(&self, index: usize, offset: u64, value: u32) {
        let mut port = self.port(index);
        if port.write(&self.memory, offset, value) {
            port = self.wait_idle(index, port);
        }
        self.update(index, &port);
        drop(port);
        if matches!(offset, port::reg::CMD | port::reg::CI) {
            self.kick(index);
        }
    }

    /// Clears the bits of `ports`, but for those that still want attention.
    fn clear_interrupts(&self, ports: u32) {
        let mut global = lock(&self.global);
        let before = self.interrupts(&global);
        global.is &= !ports;
        self.drive(&global, before);
        drop(global);
        for index in (0..PORTS).filter(|index| ports & 1 << index != 0) {
            self.update(index, &self.port(index));
        }
    }

    fn apply_master(&self) {
        let master = lock(&self.endpoint).config().command() & reg::COMMAND_MASTER != 0;
        if self.is_master.swap(master, Ordering::AcqRel) != master && master {
            self.kick_all();
        }
    }
}

/// The registers. They are read in words, or two of them.
struct MemoryBar(Weak<Adapter>);

impl BusDevice for MemoryBar {
    fn read(&self, offset: u64, size: u8) -> u64 {
        // The adapter is gone only while the machine is being taken apart.
        let Some(adapter) = self.0.upgrade() else { return 0 };
        let word = |at: u64| u64::from(adapter.read(at & !3));
        let value = word(offset);
        match size {
            8 => value | word(offset + 4) << 32,
            _ => value >> (8 * (offset & 3)) & (u64::MAX >> (64 - 8 * u32::from(size.clamp(1, 4)))),
        }
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        let Some(adapter) = self.0.upgrade() else { return };
        // Software writes words; parts of them have no meaning.
        match size {
            4 if offset.is_multiple_of(4) => adapter.write(offset, value as u32),
            8 if offset.is_multiple_of(4) => {
                adapter.write(offset, value as u32);
                adapter.write(offset + 4, (value >> 32) as u32);
            }
            _ => {}
        }
    }
}

/// The registers through a window.
struct IndexBar(Weak<Adapter>);

impl BusDevice for IndexBar {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let Some(adapter) = self.0.upgrade() else { return 0 };
        let index = lock(&adapter.global).index;
        match (offset, size) {
            (INDEX, 4) => index.into(),
            (DATA, 4) => adapter.read(index.into()).into(),
            _ => 0,
        }
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        let Some(adapter) = self.0.upgrade() else { return };
        match (offset, size) {
            (INDEX, 4) => lock(&adapter.global).index = value as u32 & (MEMORY_BAR_LEN as u32 - 4),
            (DATA, 4) => {
                let index = lock(&adapter.global).index;
                adapter.write(index.into(), value as u32);
            }
            _ => {}
        }
    }
}

impl PciFunction for Ahci {
    fn read_config(&self, offset: u16, size: u8) -> u32 {
        lock(&self.adapter.endpoint).read(offset, size)
    }

    fn write_config(&self, offset: u16, size: u8, value: u32) {
        lock(&self.adapter.endpoint).write(offset, size, value);
        self.adapter.apply_master();
    }
}

impl Device for Ahci {
    fn id(&self) -> String {
        self.id.clone()
    }

    fn reset(&self) {
        self.adapter.work.pause();
        self.adapter.reset_ports(Port::reset);
        let mut global = lock(&self.adapter.global);
        *global = Global::default();
        lock(&self.adapter.endpoint).reset();
        drop(global);
        self.adapter.apply_master();
        self.adapter.work.forget_kicks();
        self.adapter.work.resume(0);
    }

    fn pause(&self) {
        self.adapter.work.pause();
    }

    fn resume(&self) {
        for index in 0..PORTS {
            self.adapter.port(index).halted = false;
        }
        if self.adapter.work.resume((1 << PORTS) - 1) && self.adapter.inline {
            self.adapter.kick_all();
        }
    }

    fn save(&self) -> Saved {
        self.adapter.work.pause();
        let state = AhciState {
            endpoint: lock(&self.adapter.endpoint).save(),
            global: lock(&self.adapter.global).clone(),
            ports: (0..PORTS).map(|index| self.adapter.port(index).save()).collect(),
        };
        self.adapter.work.resume((1 << PORTS) - 1);
        Saved::new(&state)
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let state: AhciState = saved.decode()?;
        let damaged = |reason| RestoreError::Damaged { name: AhciState::NAME, reason };
        self.adapter.work.pause();
        let checked = lock(&self.adapter.endpoint).check(&state.endpoint).and_then(|()| {
            let mut ports = state.ports.iter().enumerate();
            ports.try_for_each(|(index, saved)| self.adapter.port(index).check(saved))
        });
        if checked.is_ok() {
            for (index, saved) in state.ports.iter().enumerate() {
                self.adapter.port(index).restore(saved);
            }
            let mut global = lock(&self.adapter.global);
            *global = state.global.clone();
            let mut endpoint = lock(&self.adapter.endpoint);
            endpoint.restore(&state.endpoint);
            endpoint.set_intx(self.adapter.interrupts(&global) != 0);
            drop((endpoint, global));
            self.adapter.apply_master();
        }
        self.adapter.work.resume((1 << PORTS) - 1);
        checked.map_err(damaged)
    }
}

impl Drop for Ahci {
    fn drop(&mut self) {
        self.adapter.work.close();
        for thread in lock(&self.threads).drain(..) {
            let _ = thread.join();
        }
    }
}
