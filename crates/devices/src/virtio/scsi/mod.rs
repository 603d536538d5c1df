//! A SCSI host adapter (specification, section 5.6).
//!
//! Commands go from the request queues to the units of a [`ScsiBus`], their data straight between guest
//! memory and the drive. Task management waits for the commands that it concerns rather than cutting
//! them short: the host's I/O can't be called back.
//!
//! Of task attributes ORDERED is kept: such a command begins when all before it are done, and those
//! after it when it is. A command for the head of the queue begins at once, as all do.

mod control;
mod events;
mod request;
#[cfg(test)]
mod tests;

use std::sync::{
    Arc, Condvar, Mutex, MutexGuard, OnceLock, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak,
};

use serde::{Deserialize, Serialize};
use vmstate::{RestoreError, Saved, State};

use self::events::{Event, Events};
use super::backlog::{Backlog, HeldRequest};
use super::{Chain, Kind, VirtioCore, VirtioDevice};
use crate::lock;
use crate::scsi::{Address, Lun, LunState, ScsiBus, Sense};

const KIND: Kind = Kind {
    name: "virtio-scsi",
    device_type: 8,
    transitional_id: 0x1004,
    class: 0x01_00_00,
    extra_vectors: Some(1),
};

/// Queue of task management.
const CONTROL_QUEUE: u16 = 0;
/// Queue of events.
const EVENT_QUEUE: u16 = 1;
/// First queue of commands.
const REQUEST_QUEUE: u16 = 2;
/// Most queues of commands.
pub const MAX_REQUEST_QUEUES: u16 = 62;
/// Highest target and unit that can be addressed; there is one channel.
const MAX_TARGET: u16 = 255;
const MAX_LUN: u16 = 16383;
/// Threads that serve the queues, so that a command that waits for the host does not hold up others.
const WORKERS: usize = 4;

/// Feature bits.
mod feature {
    pub(super) const HOTPLUG: u64 = 1 << 1;
    pub(super) const CHANGE: u64 = 1 << 2;
}

/// Offsets in the configuration that the driver writes.
mod config {
    pub(super) const SENSE_SIZE: usize = 20;
    pub(super) const CDB_SIZE: usize = 24;
}

/// Sizes of sense data and command blocks in requests, as long as the driver sets no others.
const SENSE_SIZE: u32 = 96;
const CDB_SIZE: u32 = 32;
/// What a driver may set them to.
const MAX_SENSE_SIZE: u32 = 0xffff;
const MAX_CDB_SIZE: u32 = 0xff;

/// What can be set about an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScsiOptions {
    /// Queues of commands, 1 to 62.
    pub num_queues: u16,
    /// Entries of each queue: a power of two from 4 to 1024.
    pub queue_size: u16,
    /// The most segments of a request are as many as fit a queue, rather than 126.
    pub seg_max_adjust: bool,
    /// Most sectors of 512 bytes in one command.
    pub max_sectors: u32,
    /// Most commands of one unit at a time.
    pub cmd_per_lun: u32,
    /// Tell of units that come and go.
    pub hotplug: bool,
    /// Tell of units that change.
    pub param_change: bool,
}

impl Default for ScsiOptions {
    fn default() -> Self {
        Self {
            num_queues: 1,
            queue_size: 256,
            seg_max_adjust: true,
            max_sectors: 0xffff,
            cmd_per_lun: 128,
            hotplug: true,
            param_change: true,
        }
    }
}

/// Why an adapter can't be had.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScsiError {
    /// No queue, or too many.
    #[error("Invalid number of queues (= {0}), must be a positive integer less than 63.")]
    Queues(u16),
    /// A queue too small.
    #[error("invalid virtqueue_size property (= {0}), must be > 2")]
    SmallQueue(u16),
    /// A queue that is no power of two, or too large.
    #[error("invalid virtqueue_size property (= {0}), must be a power of 2 up to 1024")]
    QueueSize(u16),
}

impl ScsiOptions {
    fn check(&self) -> Result<(), ScsiError> {
        if !(1..=MAX_REQUEST_QUEUES).contains(&self.num_queues) {
            return Err(ScsiError::Queues(self.num_queues));
        }
        if self.queue_size <= 2 {
            return Err(ScsiError::SmallQueue(self.queue_size));
        }
        if !self.queue_size.is_power_of_two() || self.queue_size > 1024 {
            return Err(ScsiError::QueueSize(self.queue_size));
        }
        Ok(())
    }
}

/// The saved form of a [`VirtioScsi`].
#[derive(Debug, Serialize, Deserialize)]
struct ScsiState {
    sizes: Sizes,
    events: Events,
    held: Vec<HeldRequest>,
    luns: Vec<(u8, u16, u16, LunState)>,
}

impl State for ScsiState {
    const NAME: &'static str = "virtio-scsi";
    const VERSION: u32 = 1;

    fn validate(&self) -> Result<(), String> {
        if !self.sizes.are_valid() {
            return Err(format!("{:?}", self.sizes));
        }
        self.events.validate()
    }
}

/// Sizes in requests, as the driver set them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Sizes {
    sense: u32,
    cdb: u32,
}

impl Sizes {
    const RESET: Self = Self { sense: SENSE_SIZE, cdb: CDB_SIZE };

    fn are_valid(self) -> bool {
        self.sense <= MAX_SENSE_SIZE && (1..=MAX_CDB_SIZE).contains(&self.cdb)
    }
}

/// A command that a worker has begun.
struct Running {
    tag: u64,
    address: Address,
}

/// A virtio SCSI adapter.
pub struct VirtioScsi {
    options: ScsiOptions,
    bus: Arc<ScsiBus>,
    core: OnceLock<Weak<VirtioCore>>,
    sizes: Mutex<Sizes>,
    events: Mutex<Events>,
    backlog: Backlog,
    /// Shared by commands that may overlap, taken whole by those that may not.
    order: RwLock<()>,
    running: Mutex<Vec<Running>>,
    /// Told when a command ends.
    ended: Condvar,
}

/// A command's place in the order of all.
enum Admission<'a> {
    Shared { _guard: RwLockReadGuard<'a, ()> },
    Alone { _guard: RwLockWriteGuard<'a, ()> },
}

impl VirtioScsi {
    /// An adapter with an empty bus.
    ///
    /// # Errors
    /// If an option is out of range.
    pub fn new(options: ScsiOptions) -> Result<Arc<Self>, ScsiError> {
        options.check()?;
        Ok(Arc::new(Self {
            options,
            bus: Arc::new(ScsiBus::new(0, MAX_TARGET, MAX_LUN)),
            core: OnceLock::new(),
            sizes: Mutex::new(Sizes::RESET),
            events: Mutex::default(),
            backlog: Backlog::default(),
            order: RwLock::default(),
            running: Mutex::default(),
            ended: Condvar::new(),
        }))
    }

    /// The units.
    pub fn bus(&self) -> &Arc<ScsiBus> {
        &self.bus
    }

    /// Puts `lun`, called `name`, at an address that [`ScsiBus::find`] found, and tells the driver if
    /// there is one.
    pub fn attach(self: &Arc<Self>, address: Address, name: &str, lun: Arc<Lun>) {
        let adapter = Arc::downgrade(self);
        lun.set_change_hook(Box::new(move |sense| {
            if let Some(adapter) = adapter.upgrade() {
                adapter.changed(address, sense);
            }
        }));
        self.bus.attach(address, name, lun);
        self.units_changed(address, Event::rescan(address));
    }

    /// Takes the unit at `address` away, waits for its commands, and tells the driver.
    pub fn detach(&self, address: Address) -> Option<Arc<Lun>> {
        let lun = self.bus.detach(address)?;
        self.wait_for(|running| running.address == address);
        self.units_changed(address, Event::removed(address));
        Some(lun)
    }

    /// Tells a driver that is there of a unit that came or went.
    fn units_changed(&self, address: Address, event: Event) {
        if !self.core.get().and_then(Weak::upgrade).is_some_and(|core| core.is_running()) {
            return;
        }
        for (_, other) in self.bus.units().iter().filter(|(other, _)| *other != address) {
            other.attention(Sense::LUNS_CHANGED);
        }
        self.tell(feature::HOTPLUG, event);
    }

    /// What a unit says of itself changed. Of media in CD drives the driver hears by polling.
    fn changed(&self, address: Address, sense: Sense) {
        let is_cdrom = self.bus.lun(address).is_some_and(|lun| lun.is_cdrom());
        if !is_cdrom && sense != Sense::LUNS_CHANGED {
            self.tell(feature::CHANGE, Event::changed(address, sense));
        }
    }

    fn tell(&self, wanted: u64, event: Event) {
        let Some(core) = self.core.get().and_then(Weak::upgrade) else { return };
        if core.is_running() && core.features() & wanted != 0 {
            lock(&self.events).push(event);
            core.kick(EVENT_QUEUE);
        }
    }

    fn sizes(&self) -> MutexGuard<'_, Sizes> {
        lock(&self.sizes)
    }

    /// Waits until no command that `concerned` picks is running.
    fn wait_for(&self, concerned: impl Fn(&Running) -> bool) {
        let mut running = lock(&self.running);
        while running.iter().any(&concerned) {
            running = self.ended.wait(running).unwrap_or_else(|e| e.into_inner());
        }
    }

    fn admit(&self, core: &VirtioCore, chain: &Chain) -> Admission<'_> {
        if request::is_ordered(core.memory(), chain) {
            let _guard = self.order.write().unwrap_or_else(|e| e.into_inner());
            Admission::Alone { _guard }
        } else {
            let _guard = self.order.read().unwrap_or_else(|e| e.into_inner());
            Admission::Shared { _guard }
        }
    }

    fn serve_requests(&self, core: &VirtioCore, queue: u16) {
        self.backlog.serve(
            core,
            queue,
            |chain| self.admit(core, chain),
            |queue, chain| self.serve_request(core, queue, chain),
        );
    }
}

impl VirtioDevice for VirtioScsi {
    fn kind(&self) -> &'static Kind {
        &KIND
    }

    fn features(&self) -> u64 {
        let when = |yes: bool, bit: u64| if yes { bit } else { 0 };
        when(self.options.hotplug, feature::HOTPLUG)
            | when(self.options.param_change, feature::CHANGE)
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![self.options.queue_size; usize::from(REQUEST_QUEUE + self.options.num_queues)]
    }

    fn workers(&self) -> usize {
        WORKERS
    }

    fn connect(&self, core: Weak<VirtioCore>) {
        let _ = self.core.set(core);
    }

    fn config(&self) -> Vec<u8> {
        let options = &self.options;
        let seg_max = if options.seg_max_adjust { options.queue_size - 2 } else { 126 };
        let sizes = *self.sizes();
        let words = [
            options.num_queues.into(),
            seg_max.into(),
            options.max_sectors,
            options.cmd_per_lun,
            events::EVENT_LEN as u32,
            sizes.sense,
            sizes.cdb,
        ];
        let mut config: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
        config.extend(0_u16.to_le_bytes()); // max_channel
        config.extend(MAX_TARGET.to_le_bytes());
        config.extend(u32::from(MAX_LUN).to_le_bytes());
        config
    }

    fn write_config(&self, offset: usize, data: &[u8]) {
        let Ok(value) = data.try_into().map(u32::from_le_bytes) else { return };
        let mut sizes = self.sizes();
        let mut new = *sizes;
        match offset {
            config::SENSE_SIZE => new.sense = value,
            config::CDB_SIZE => new.cdb = value,
            _ => {}
        }
        if new.are_valid() {
            *sizes = new;
        }
    }

    fn service(&self, core: &VirtioCore, queue: u16) {
        match queue {
            CONTROL_QUEUE => self.serve_control(core),
            EVENT_QUEUE => self.serve_events(core),
            _ => self.serve_requests(core, queue),
        }
    }

    fn resumed(&self) {
        self.backlog.resumed();
    }

    fn queue_reset(&self, queue: u16) {
        self.backlog.queue_reset(queue);
    }

    fn reset(&self) {
        self.backlog.reset();
        *self.sizes() = Sizes::RESET;
        *lock(&self.events) = Events::default();
        for (_, lun) in self.bus.units() {
            lun.reset();
        }
    }

    fn save(&self) -> Saved {
        let luns = self.bus.units().into_iter();
        Saved::new(&ScsiState {
            sizes: *self.sizes(),
            events: lock(&self.events).clone(),
            held: self.backlog.held().clone(),
            luns: luns.map(|(at, lun)| (at.channel, at.target, at.lun, lun.save())).collect(),
        })
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let state: ScsiState = saved.decode()?;
        let damaged = |reason| RestoreError::Damaged { name: ScsiState::NAME, reason };
        let queues = REQUEST_QUEUE..REQUEST_QUEUE + self.options.num_queues;
        if !state.held.iter().all(|held| queues.contains(&held.queue)) {
            return Err(damaged("a request of a queue that is not there".into()));
        }
        let units = self.bus.units();
        if units.len() != state.luns.len() {
            return Err(damaged(format!("{} units, not {}", state.luns.len(), units.len())));
        }
        for ((address, lun), (channel, target, number, saved)) in units.iter().zip(&state.luns) {
            let there = Address { channel: *channel, target: *target, lun: *number };
            if there != *address {
                return Err(damaged(format!("a unit at {there}")));
            }
            lun.check(saved).map_err(damaged)?;
        }
        for ((_, lun), (.., saved)) in units.iter().zip(&state.luns) {
            lun.restore(saved);
        }
        *self.sizes() = state.sizes;
        *lock(&self.events) = state.events;
        self.backlog.restore(state.held);
        Ok(())
    }
}
