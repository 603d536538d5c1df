//! The PCI function of a virtio device (specification, section 4.1).

use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use bus::{BusDevice, Device};
use memory::{GuestMemory, MemoryBlock};
use serde::{Deserialize, Serialize};
use vmstate::{RestoreError, Saved, State};

use super::core::CoreState;
use super::legacy::{self, LegacyBar};
use super::modern::{self, Layout, ModernBar};
use super::{VirtioCore, VirtioDevice, feature};
use crate::lock;
use crate::pci::{
    BarKind, EndpointState, Identity, MsiX, OptionRom, PciEndpoint, PciFunction, PciWiring,
};

const VENDOR: u16 = 0x1af4;
/// Subsystem id of a device that is not transitional.
const MODERN_SUBSYSTEM: u16 = 0x1100;
/// Device id of a modern device, plus its type.
const MODERN_DEVICE: u16 = 0x1040;
/// Capability id: vendor specific.
const VENDOR_CAPABILITY: u8 = 9;

const LEGACY_BAR: usize = 0;
/// BAR of a VGA's memory.
const VGA_BAR: usize = 0;

/// Types of the vendor capabilities.
mod cfg_type {
    pub(super) const COMMON: u8 = 1;
    pub(super) const NOTIFY: u8 = 2;
    pub(super) const ISR: u8 = 3;
    pub(super) const DEVICE: u8 = 4;
    pub(super) const PCI: u8 = 5;
}

/// Offsets in the capability that gives access to BARs through configuration space.
mod window {
    pub(super) const BAR: u16 = 4;
    pub(super) const OFFSET: u16 = 8;
    pub(super) const LENGTH: u16 = 12;
    pub(super) const DATA: u16 = 16;
}

/// How a virtio device shows itself on PCI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtioPciOptions {
    /// The device's id.
    pub id: String,
    /// Version 1 drivers only.
    pub disable_legacy: bool,
    /// Legacy drivers only.
    pub disable_modern: bool,
    /// MSI-X vectors, 0 for none; `None` for as many as the kind wants.
    pub vectors: Option<u16>,
    /// Offer that each side says from which entry on it wants to hear of more.
    pub event_idx: bool,
    /// Offer tables of descriptors outside the ring.
    pub indirect_desc: bool,
}

impl Default for VirtioPciOptions {
    fn default() -> Self {
        Self {
            id: String::new(),
            disable_legacy: false,
            disable_modern: false,
            vectors: None,
            event_idx: true,
            indirect_desc: true,
        }
    }
}

impl VirtioPciOptions {
    /// The features of the transport that are offered.
    fn features(&self) -> u64 {
        let when = |yes: bool, bit: u64| if yes { bit } else { 0 };
        when(self.indirect_desc, feature::INDIRECT_DESC)
            | when(self.event_idx, feature::EVENT_IDX)
            | when(!self.disable_modern, feature::VERSION_1 | feature::RING_RESET)
    }
}

/// Why a device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// Both interfaces are disabled.
    #[error(
        "device cannot work as neither modern nor legacy mode is enabled\nSet either \
         disable-modern or disable-legacy to off"
    )]
    NoMode,
    /// Too many vectors.
    #[error("vectors={0} is out of range; the most is 2048")]
    Vectors(u16),
    /// The host can't start a thread.
    #[error("cannot start a worker thread for '{id}': {source}")]
    Thread {
        /// The device.
        id: String,
        /// What the host said.
        source: std::io::Error,
    },
}

/// The VGA that a virtio device has in front, for software that knows no virtio.
pub struct VgaFront {
    /// Its registers, one page of them, below the device's own.
    pub registers: Arc<dyn BusDevice>,
    /// Its memory, in a BAR of its own.
    pub video_memory: Arc<MemoryBlock>,
    /// The function's expansion ROM.
    pub rom: Option<OptionRom>,
}

/// A virtio device on PCI.
pub struct VirtioPci {
    id: String,
    core: Arc<VirtioCore>,
    endpoint: Arc<Mutex<PciEndpoint>>,
    /// The modern BAR, for accesses through configuration space, and where their capability is.
    window: Option<(u16, Arc<ModernBar>)>,
    workers: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Serialize, Deserialize)]
struct VirtioPciState {
    endpoint: EndpointState,
    core: CoreState,
}

impl State for VirtioPciState {
    const NAME: &'static str = "virtio-pci";
    const VERSION: u32 = 1;
}

impl VirtioPci {
    /// Puts `device` behind a PCI function with `wiring`.
    ///
    /// # Errors
    /// If the options contradict each other, or the host has no thread.
    pub fn new(
        device: Arc<dyn VirtioDevice>,
        options: VirtioPciOptions,
        wiring: PciWiring,
        memory: Arc<GuestMemory>,
    ) -> Result<Arc<Self>, TransportError> {
        let class = device.kind().class;
        Self::build(device, options, wiring, memory, (class, None))
    }

    /// The same for a display with a VGA `front`, which makes the function one of class VGA.
    ///
    /// # Errors
    /// As for [`VirtioPci::new`].
    pub fn with_vga(
        device: Arc<dyn VirtioDevice>,
        options: VirtioPciOptions,
        wiring: PciWiring,
        memory: Arc<GuestMemory>,
        front: VgaFront,
    ) -> Result<Arc<Self>, TransportError> {
        const CLASS_VGA: u32 = 0x03_0000;
        let options = VirtioPciOptions { disable_legacy: true, ..options };
        Self::build(device, options, wiring, memory, (CLASS_VGA, Some(front)))
    }

    fn build(
        device: Arc<dyn VirtioDevice>,
        options: VirtioPciOptions,
        wiring: PciWiring,
        memory: Arc<GuestMemory>,
        (class, front): (u32, Option<VgaFront>),
    ) -> Result<Arc<Self>, TransportError> {
        let features = options.features();
        let VirtioPciOptions { id, disable_legacy, disable_modern, vectors, .. } = options;
        if disable_legacy && disable_modern {
            return Err(TransportError::NoMode);
        }
        let kind = device.kind();
        let queues = device.queue_sizes().len() as u16;
        let vectors = vectors.unwrap_or(kind.extra_vectors.map_or(0, |extra| queues + extra));
        if vectors > 2048 {
            return Err(TransportError::Vectors(vectors));
        }
        let (device_id, revision, subsystem) = if disable_legacy {
            (MODERN_DEVICE + kind.device_type, 1, MODERN_SUBSYSTEM)
        } else {
            (kind.transitional_id, 0, kind.device_type)
        };
        let identity = Identity {
            vendor: VENDOR,
            device: device_id,
            revision,
            class,
            subsystem_vendor: VENDOR,
            subsystem,
        };
        let msi = Arc::clone(&wiring.msi);
        let msix = (vectors > 0).then(|| Arc::new(MsiX::new(vectors, msi)));
        let config_len = device.config().len();
        let workers = device.workers();
        let layout = if front.is_some() { Layout::VGA } else { Layout::PAGES };
        let (modern, legacy) = (!disable_modern, !disable_legacy);
        let core = VirtioCore::new(device, memory.clone(), features, legacy, msix.clone());
        let mut endpoint = PciEndpoint::new(&identity, wiring);
        if legacy {
            let size = legacy::bar_size(config_len, msix.is_some());
            let handler = Arc::new(LegacyBar(Arc::clone(&core)));
            endpoint.add_bar(LEGACY_BAR, BarKind::Io, size, handler);
        }
        let below = front.map(|front| {
            let kind = BarKind::Memory32 { prefetchable: true };
            endpoint.add_memory_bar(VGA_BAR, kind, &memory, front.video_memory);
            if let Some(rom) = front.rom {
                endpoint.add_rom(rom);
            }
            front.registers
        });
        let window = modern.then(|| {
            let bar = Arc::new(ModernBar { core: Arc::clone(&core), layout, below });
            let kind = BarKind::Memory64 { prefetchable: true };
            endpoint.add_bar(layout.bar, kind, modern::BAR_SIZE, bar.clone());
            (add_capabilities(&mut endpoint, layout), bar)
        });
        if let Some(msix) = msix {
            endpoint.add_msix(layout.msix_bar, msix);
        }
        let endpoint = Arc::new(Mutex::new(endpoint));
        core.set_endpoint(Arc::downgrade(&endpoint));
        let this = Self { id, core, endpoint, window, workers: Mutex::default() };
        this.start_workers(workers)?;
        Ok(Arc::new(this))
    }

    fn start_workers(&self, count: usize) -> Result<(), TransportError> {
        for _ in 0..count {
            let core = Arc::clone(&self.core);
            let thread = std::thread::Builder::new()
                .name(self.core.device().kind().name.into())
                .spawn(move || {
                    while let Some(job) = core.work().next() {
                        core.device().service(&core, job.queue);
                    }
                })
                .map_err(|source| TransportError::Thread { id: self.id.clone(), source })?;
            lock(&self.workers).push(thread);
        }
        Ok(())
    }

    /// The core that runs the device.
    pub fn core(&self) -> &Arc<VirtioCore> {
        &self.core
    }

    fn endpoint(&self) -> MutexGuard<'_, PciEndpoint> {
        lock(&self.endpoint)
    }

    /// What an access to the window's data register reaches: offset in the BAR and width.
    fn window_target(&self, offset: u16) -> Option<(&ModernBar, u64, u8)> {
        let (capability, bar) = self.window.as_ref()?;
        if offset != capability + window::DATA {
            return None;
        }
        let endpoint = self.endpoint();
        let index = endpoint.read(capability + window::BAR, 1) as usize;
        let at = u64::from(endpoint.read(capability + window::OFFSET, 4));
        let length = endpoint.read(capability + window::LENGTH, 4);
        drop(endpoint);
        let valid = index == bar.layout.bar
            && matches!(length, 1 | 2 | 4)
            && at % u64::from(length) == 0
            && at < modern::BAR_SIZE;
        valid.then_some((&**bar, at, length as u8))
    }
}

/// Adds the capabilities that tell where the structures are; returns the offset of the last one,
/// through which they can be reached without a BAR.
fn add_capabilities(endpoint: &mut PciEndpoint, layout: Layout) -> u16 {
    let body = |kind: u8, (offset, size): (u64, u64), extra: &[u8]| {
        let mut body = vec![16 + extra.len() as u8, kind, layout.bar as u8, 0, 0, 0];
        body.extend((offset as u32).to_le_bytes());
        body.extend((size as u32).to_le_bytes());
        body.extend(extra);
        body
    };
    let config = endpoint.config_mut();
    let id = VENDOR_CAPABILITY;
    config.add_capability(id, &body(cfg_type::COMMON, (layout.common, layout.size), &[]));
    config.add_capability(id, &body(cfg_type::ISR, (layout.isr, layout.size), &[]));
    config.add_capability(id, &body(cfg_type::DEVICE, (modern::DEVICE, modern::REGION), &[]));
    let multiplier = modern::NOTIFY_MULTIPLIER.to_le_bytes();
    config
        .add_capability(id, &body(cfg_type::NOTIFY, (modern::NOTIFY, modern::REGION), &multiplier));
    let mut window = vec![0; 18];
    (window[0], window[1]) = (20, cfg_type::PCI);
    let offset = config.add_capability(id, &window);
    config.allow_writes(offset + window::BAR, &[0xff]);
    config.allow_writes(offset + window::OFFSET, &[0xff; 12]);
    offset
}

impl PciFunction for VirtioPci {
    fn read_config(&self, offset: u16, size: u8) -> u32 {
        match self.window_target(offset) {
            Some((bar, at, length)) => bar.read(at, length) as u32,
            None => self.endpoint().read(offset, size),
        }
    }

    fn write_config(&self, offset: u16, size: u8, value: u32) {
        // The lock is not held while the BAR's handler runs: a reset waits for workers, which need it
        // to interrupt.
        match self.window_target(offset) {
            Some((bar, at, length)) => bar.write(at, length, u64::from(value)),
            None => self.endpoint().write(offset, size, value),
        }
    }
}

impl Device for VirtioPci {
    fn id(&self) -> String {
        self.id.clone()
    }

    fn reset(&self) {
        self.core.reset();
        self.endpoint().reset();
    }

    fn pause(&self) {
        self.core.pause();
    }

    fn resume(&self) {
        self.core.resume();
    }

    fn save(&self) -> Saved {
        self.core.pause();
        let state = VirtioPciState { endpoint: self.endpoint().save(), core: self.core.save() };
        self.core.resume();
        Saved::new(&state)
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let state: VirtioPciState = saved.decode()?;
        let damaged = |reason| RestoreError::Damaged { name: VirtioPciState::NAME, reason };
        self.core.pause();
        let restored = self
            .endpoint()
            .check(&state.endpoint)
            .and_then(|()| self.core.check(&state.core))
            .map_err(damaged)
            .and_then(|()| self.core.restore(&state.core));
        if restored.is_ok() {
            self.endpoint().restore(&state.endpoint);
        }
        self.core.resume();
        restored
    }
}

impl Drop for VirtioPci {
    fn drop(&mut self) {
        self.core.work().close();
        for worker in lock(&self.workers).drain(..) {
            // A worker may hold the last reference; it can't wait for itself.
            if worker.thread().id() != std::thread::current().id() {
                let _ = worker.join();
            }
        }
    }
}
