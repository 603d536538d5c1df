//! What all virtio devices share: status, features, queues, interrupts, workers.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};

use memory::GuestMemory;
use serde::{Deserialize, Serialize};
use vmstate::{RestoreError, Saved};

use super::{Chain, QueueError, QueueState, SplitQueue, VirtioDevice, feature};
use crate::lock;
use crate::pci::{MsiX, NO_VECTOR, PciEndpoint};
use crate::work::Work;

/// Bits of the status register (specification, section 2.1).
pub(super) mod status {
    pub(in super::super) const DRIVER_OK: u8 = 4;
    pub(in super::super) const FEATURES_OK: u8 = 8;
    pub(in super::super) const NEEDS_RESET: u8 = 0x40;
}

/// Bit of the ISR register: a queue.
const ISR_QUEUE: u8 = 1;
/// Bits of the ISR register: the configuration changed. That of the queues is set, too, as on other
/// machines of this kind, where programs wait for it; drivers then look at their queues for nothing.
const ISR_CONFIG: u8 = 2 | ISR_QUEUE;

/// Registers that are not a queue's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Registers {
    pub(super) status: u8,
    pub(super) device_feature_select: u32,
    pub(super) driver_feature_select: u32,
    pub(super) driver_features: u64,
    pub(super) queue_select: u16,
    pub(super) config_vector: u16,
    pub(super) config_generation: u8,
}

impl Registers {
    const RESET: Self = Self {
        status: 0,
        device_feature_select: 0,
        driver_feature_select: 0,
        driver_features: 0,
        queue_select: 0,
        config_vector: NO_VECTOR,
        config_generation: 0,
    };
}

/// The saved form of a [`VirtioCore`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CoreState {
    registers: Registers,
    isr: u8,
    queues: Vec<QueueState>,
    device: Saved,
}

/// How interrupts leave.
#[derive(Default)]
struct Interrupts {
    isr: AtomicU8,
    msix: Option<Arc<MsiX>>,
    /// Weak: the function's BAR handlers refer to the core.
    endpoint: OnceLock<Weak<Mutex<PciEndpoint>>>,
}

impl Interrupts {
    fn raise(&self, bit: u8, vector: u16) {
        match &self.msix {
            Some(msix) if msix.is_enabled() => {
                self.isr.fetch_or(bit, Ordering::AcqRel);
                msix.notify(vector);
            }
            _ => self.with_endpoint(|endpoint| {
                self.isr.fetch_or(bit, Ordering::AcqRel);
                endpoint.set_intx(true);
            }),
        }
    }

    /// Reads the ISR register, which clears it and lowers the wire.
    fn take(&self) -> u8 {
        let mut isr = 0;
        self.with_endpoint(|endpoint| {
            isr = self.isr.swap(0, Ordering::AcqRel);
            endpoint.set_intx(false);
        });
        isr
    }

    fn with_endpoint(&self, act: impl FnOnce(&mut PciEndpoint)) {
        // It is gone only while the machine is being taken apart.
        if let Some(endpoint) = self.endpoint.get().and_then(Weak::upgrade) {
            act(&mut lock(&endpoint));
        }
    }
}

/// Runs one virtio device. Lock order: registers, then a queue, then the PCI function; no worker waits
/// for any of them while it does I/O.
pub struct VirtioCore {
    device: Arc<dyn VirtioDevice>,
    memory: Arc<GuestMemory>,
    offered: u64,
    /// Whether a driver of the time before version 1 can't use it.
    modern_only: bool,
    registers: Mutex<Registers>,
    queues: Vec<Mutex<SplitQueue>>,
    /// Whether the driver is ready and the rings are sound.
    running: AtomicBool,
    /// What rule the driver broke.
    failure: Mutex<Option<String>>,
    interrupts: Interrupts,
    work: Work,
}

impl VirtioCore {
    pub(super) fn new(
        device: Arc<dyn VirtioDevice>,
        memory: Arc<GuestMemory>,
        transport_features: u64,
        legacy: bool,
        msix: Option<Arc<MsiX>>,
    ) -> Arc<Self> {
        let offered = device.features() | transport_features;
        let sizes = device.queue_sizes();
        assert!(sizes.len() <= 64, "{} queues", sizes.len());
        let core = Arc::new(Self {
            offered,
            modern_only: !legacy,
            memory,
            registers: Mutex::new(Registers::RESET),
            queues: sizes.into_iter().map(|size| Mutex::new(SplitQueue::new(size))).collect(),
            running: AtomicBool::new(false),
            failure: Mutex::default(),
            interrupts: Interrupts { msix, ..Interrupts::default() },
            work: Work::default(),
            device,
        });
        core.device.connect(Arc::downgrade(&core));
        core
    }

    pub(super) fn set_endpoint(&self, endpoint: Weak<Mutex<PciEndpoint>>) {
        let _ = self.interrupts.endpoint.set(endpoint);
    }

    pub(super) fn work(&self) -> &Work {
        &self.work
    }

    pub(super) fn device(&self) -> &dyn VirtioDevice {
        &*self.device
    }

    pub(super) fn registers(&self) -> MutexGuard<'_, Registers> {
        lock(&self.registers)
    }

    /// Queue `index`, if there is one.
    pub(super) fn queue(&self, index: u16) -> Option<MutexGuard<'_, SplitQueue>> {
        let queue = self.queues.get(usize::from(index))?;
        Some(lock(queue))
    }

    pub(super) fn queue_count(&self) -> u16 {
        self.queues.len() as u16
    }

    /// Bits that the device offers to a version 1 driver.
    pub(super) fn offered(&self) -> u64 {
        self.offered
    }

    /// Bits that the device offers to a legacy driver.
    pub(super) fn offered_legacy(&self) -> u32 {
        (self.offered | feature::NOTIFY_ON_EMPTY | feature::ANY_LAYOUT) as u32
    }

    /// A vector as the driver wrote it, or [`NO_VECTOR`] if there is no such vector.
    pub(super) fn valid_vector(&self, vector: u16) -> u16 {
        let count = self.interrupts.msix.as_ref().map_or(0, |msix| msix.count());
        if vector < count { vector } else { NO_VECTOR }
    }

    /// Whether MSI-X is in use.
    pub(super) fn uses_msix(&self) -> bool {
        self.interrupts.msix.as_ref().is_some_and(|msix| msix.is_enabled())
    }

    pub(super) fn take_isr(&self) -> u8 {
        self.interrupts.take()
    }

    // What devices use.

    /// Guest memory.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Whether the driver is ready and its rings are sound.
    pub fn is_running(&self) -> bool {
        self.running.load(Ordering::Acquire)
    }

    /// Whether the device is to leave its queues after the request at hand.
    pub fn is_pausing(&self) -> bool {
        self.work.is_pausing()
    }

    /// Asks for service of `queue` by a worker.
    pub fn kick(&self, queue: u16) {
        if queue < self.queue_count() {
            self.work.kick(queue);
        }
    }

    /// Takes the next request of `queue`; `None` if there is none, or the driver is not ready, or the
    /// ring broke the rules, which stops the device.
    pub fn pop(&self, queue: u16) -> Option<Chain> {
        if !self.running.load(Ordering::Acquire) {
            return None;
        }
        let popped = self.queue(queue)?.pop(&self.memory);
        popped.unwrap_or_else(|error| {
            self.fail(&error);
            None
        })
    }

    /// Whether another request waits in `queue`.
    pub fn has_next(&self, queue: u16) -> bool {
        self.running.load(Ordering::Acquire)
            && self.queue(queue).is_some_and(|queue| {
                queue.state().enabled && queue.has_next(&self.memory).unwrap_or(false)
            })
    }

    /// Gives a request back, `written` bytes of whose buffers are written, and interrupts the driver if
    /// it wants that.
    pub fn complete(&self, queue: u16, chain: &Chain, written: u32) {
        let Some(mut guard) = self.queue(queue) else { return };
        let pushed = guard.push(&self.memory, chain, written);
        let vector = guard.state().vector;
        drop(guard);
        match pushed {
            Ok(true) => self.interrupts.raise(ISR_QUEUE, vector),
            Ok(false) => {}
            Err(error) => self.fail(&error),
        }
    }

    /// The driver broke the rules: the device stops until it is reset, and says so.
    pub fn fail(&self, error: &QueueError) {
        self.running.store(false, Ordering::Release);
        *lock(&self.failure) = Some(error.to_string());
        let mut registers = self.registers();
        registers.status |= status::NEEDS_RESET;
        let tell = registers.driver_features & feature::VERSION_1 != 0;
        let vector = registers.config_vector;
        drop(registers);
        if tell {
            self.interrupts.raise(ISR_CONFIG, vector);
        }
    }

    /// Why the device stopped, while it waits for the driver to reset it.
    pub fn failure(&self) -> Option<String> {
        lock(&self.failure).clone()
    }

    /// The configuration structure changed: the driver is told if there is one.
    pub fn config_changed(&self) {
        let mut registers = self.registers();
        registers.config_generation = registers.config_generation.wrapping_add(1);
        let ready = registers.status & status::DRIVER_OK != 0;
        let vector = registers.config_vector;
        drop(registers);
        if ready {
            self.interrupts.raise(ISR_CONFIG, vector);
        }
    }

    /// Features that the driver accepted.
    pub fn features(&self) -> u64 {
        self.registers().driver_features
    }

    // What the transport's registers do.

    /// The driver wrote the status register. May wait for requests in flight.
    pub(super) fn set_status(&self, value: u8) {
        if value == 0 {
            self.reset();
            return;
        }
        let mut registers = self.registers();
        let old = registers.status;
        let mut new = value | old & status::NEEDS_RESET;
        let known = self.offered | u64::from(self.offered_legacy());
        let mut features = registers.driver_features;
        let rises = |bit: u8| new & !old & bit != 0;
        if rises(status::FEATURES_OK) {
            let foreign = features & !known != 0;
            if foreign || self.modern_only && features & feature::VERSION_1 == 0 {
                new &= !status::FEATURES_OK;
            }
        }
        let settled = new & !old & (status::FEATURES_OK | status::DRIVER_OK) != 0;
        if settled && old & (status::FEATURES_OK | status::DRIVER_OK) == 0 {
            // A driver that goes on without FEATURES_OK gets no more than was offered either.
            features &= known;
            registers.driver_features = features;
            for index in 0..self.queue_count() {
                if let Some(mut queue) = self.queue(index) {
                    let state = queue.state_mut();
                    state.event_idx = features & feature::EVENT_IDX != 0;
                    state.notify_on_empty = features & feature::NOTIFY_ON_EMPTY != 0;
                }
            }
            self.device.negotiated(features);
        }
        registers.status = new;
        let running = new & status::DRIVER_OK != 0 && new & status::NEEDS_RESET == 0;
        let started = running && !self.running.swap(running, Ordering::AcqRel);
        drop(registers);
        if started {
            self.work.kick_mask(self.all_queues());
        }
    }

    fn all_queues(&self) -> u64 {
        u64::MAX >> (64 - self.queues.len().max(1))
    }

    /// The driver, or the machine, resets the device. Waits for requests in flight.
    pub(super) fn reset(&self) {
        self.running.store(false, Ordering::Release);
        self.work.pause();
        self.running.store(false, Ordering::Release);
        *self.registers() = Registers::RESET;
        *lock(&self.failure) = None;
        for index in 0..self.queue_count() {
            if let Some(mut queue) = self.queue(index) {
                queue.reset();
            }
        }
        self.device.reset();
        self.interrupts.take();
        self.work.forget_kicks();
        self.work.resume(0);
    }

    /// The driver resets one queue. Waits for requests in flight.
    pub(super) fn reset_queue(&self, index: u16) {
        self.work.pause();
        if let Some(mut queue) = self.queue(index) {
            let state = queue.state();
            let (event_idx, notify_on_empty) = (state.event_idx, state.notify_on_empty);
            queue.reset();
            queue.state_mut().event_idx = event_idx;
            queue.state_mut().notify_on_empty = notify_on_empty;
        }
        self.device.queue_reset(index);
        self.work.resume(self.all_queues());
    }

    /// Reads `size` bytes of the configuration structure; ones past its end.
    pub(super) fn read_config(&self, offset: u64, size: u8) -> u64 {
        let config = self.device.config();
        let size = usize::from(size);
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = start.checked_add(size).and_then(|end| config.get(start..end));
        let Some(bytes) = bytes else { return u64::MAX >> (64 - 8 * size.clamp(1, 8)) };
        let mut value = [0; 8];
        value[..size].copy_from_slice(bytes);
        u64::from_le_bytes(value)
    }

    /// Writes `size` bytes of the configuration structure; lost past its end.
    pub(super) fn write_config(&self, offset: u64, size: u8, value: u64) {
        let len = self.device.config().len();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        if start.checked_add(usize::from(size)).is_some_and(|end| end <= len) {
            self.device.write_config(start, &value.to_le_bytes()[..usize::from(size)]);
        }
    }

    // What the machine's owner uses.

    /// Waits until no request is in flight and starts none until [`VirtioCore::resume`]. Pauses nest.
    pub fn pause(&self) {
        self.work.pause();
    }

    /// Ends one pause; after the last, requests that wait are served.
    pub fn resume(&self) {
        // Whoever makes it the last one: what was held back is made again after it.
        self.device.resumed();
        self.work.resume(self.all_queues());
    }

    /// State of the core and the device; the device is paused.
    pub(super) fn save(&self) -> CoreState {
        let queues = (0..self.queue_count()).filter_map(|i| self.queue(i));
        CoreState {
            registers: self.registers().clone(),
            isr: self.interrupts.isr.load(Ordering::Acquire),
            queues: queues.map(|q| q.state().clone()).collect(),
            device: self.device.save(),
        }
    }

    /// Whether `state` fits.
    pub(super) fn check(&self, state: &CoreState) -> Result<(), String> {
        if state.queues.len() != self.queues.len() {
            return Err(format!("{} queues, not {}", state.queues.len(), self.queues.len()));
        }
        let known = self.offered | u64::from(self.offered_legacy());
        let ready = status::FEATURES_OK | status::DRIVER_OK;
        if state.registers.status & ready != 0 && state.registers.driver_features & !known != 0 {
            return Err("features that this device does not offer".into());
        }
        for (index, saved) in (0..).zip(&state.queues) {
            if let Some(queue) = self.queue(index) {
                queue.check(saved)?;
            }
        }
        Ok(())
    }

    /// Takes over a state that [`VirtioCore::check`] accepted; the device is paused.
    pub(super) fn restore(&self, state: &CoreState) -> Result<(), RestoreError> {
        self.device.restore(&state.device)?;
        let registers = state.registers.clone();
        for (index, saved) in (0..).zip(&state.queues) {
            if let Some(mut queue) = self.queue(index) {
                queue.restore(saved);
            }
        }
        let status = registers.status;
        let running = status & status::DRIVER_OK != 0 && status & status::NEEDS_RESET == 0;
        *self.registers() = registers;
        self.interrupts.isr.store(state.isr, Ordering::Release);
        self.running.store(running, Ordering::Release);
        Ok(())
    }
}
