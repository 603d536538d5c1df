//! A memory balloon (specification, section 5.5): the guest gives pages to the host, and takes them
//! back, as the host asks.
//!
//! Pages in the balloon are freed on the host at once; they read as zero when the guest takes them back.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::time::Duration;

use bus::{Clock, Timer, TimerQueue};
use memory::GuestMemory;
use serde::{Deserialize, Serialize};
use vmstate::{RestoreError, Saved, State};

use super::{Chain, Kind, QueueError, VirtioCore, VirtioDevice};
use crate::lock;

#[cfg(test)]
mod tests;

const KIND: Kind = Kind {
    name: "virtio-balloon",
    device_type: 5,
    transitional_id: 0x1002,
    class: 0x00_ff_00,
    extra_vectors: None,
};

/// Queue of pages that go into the balloon.
const INFLATE: u16 = 0;
/// Queue of pages that come out of it.
const DEFLATE: u16 = 1;
/// Queue of the guest's statistics.
const STATS: u16 = 2;

/// log2 of the balloon's pages, whatever the guest's are.
const PAGE_SHIFT: u32 = 12;
/// Bytes of a page number in a request.
const PFN_LEN: u64 = 4;
/// Bytes of one statistic: a tag of 16 bits and a value of 64.
const STAT_LEN: usize = 10;
/// Bytes of the configuration, up to `poison_val`.
const CONFIG_LEN: usize = 16;
/// Offset of the number of pages that the guest gave.
const CONFIG_ACTUAL: usize = 4;
/// Offset of the value that the guest fills free pages with.
const CONFIG_POISON: usize = 12;

/// Feature bits.
mod feature {
    pub(super) const STATS_VQ: u64 = 1 << 1;
    pub(super) const DEFLATE_ON_OOM: u64 = 1 << 2;
    pub(super) const PAGE_POISON: u64 = 1 << 4;
}

/// Names of the statistics, by tag.
pub const STAT_NAMES: [&str; 10] = [
    "stat-swap-in",
    "stat-swap-out",
    "stat-major-faults",
    "stat-minor-faults",
    "stat-free-memory",
    "stat-total-memory",
    "stat-available-memory",
    "stat-disk-caches",
    "stat-htlb-pgalloc",
    "stat-htlb-pgfail",
];

/// What the guest told about itself, by tag: see [`STAT_NAMES`]. Memory is in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonStats {
    /// One value a tag, `None` if the guest did not tell it.
    pub values: [Option<u64>; STAT_NAMES.len()],
    /// When they came, in guest nanoseconds; 0 if never.
    pub updated_ns: u64,
}

/// The saved form of a [`VirtioBalloon`].
#[derive(Debug, Serialize, Deserialize)]
struct BalloonState {
    target_pages: u32,
    actual_pages: u32,
    poison: u32,
    stats: BalloonStats,
    stats_request: Option<Chain>,
    poll_seconds: u32,
}

impl State for BalloonState {
    const NAME: &'static str = "virtio-balloon";
    const VERSION: u32 = 1;
}

#[derive(Default)]
struct StatsState {
    latest: BalloonStats,
    /// The driver's buffer, held until new statistics are wanted.
    request: Option<Chain>,
    /// Seconds between two updates, 0 for none.
    poll_seconds: u32,
}

/// Most pages of one request; drivers have 256. A list may be 4 GiB long, and each page can cost the host
/// a system call.
const MAX_PAGES: u64 = 1 << 16;

/// Told when the guest changed the balloon: the guest's memory without it, in bytes.
pub type BalloonHook = Box<dyn Fn(u64) + Send + Sync>;

/// A virtio memory balloon.
pub struct VirtioBalloon {
    memory: Arc<GuestMemory>,
    /// Bytes of memory that the machine was given, holes in the address space included.
    ram_size: u64,
    deflate_on_oom: bool,
    clock: Clock,
    /// Pages that the host wants.
    target_pages: AtomicU32,
    /// Pages that the guest says it gave.
    actual_pages: AtomicU32,
    poison: AtomicU32,
    stats: Mutex<StatsState>,
    timer: OnceLock<Timer>,
    core: OnceLock<Weak<VirtioCore>>,
    on_change: OnceLock<BalloonHook>,
}

impl VirtioBalloon {
    /// A balloon, empty, in `memory`, of a machine that was given `ram_size` bytes of it. With `deflate_on_oom` the guest may take pages back when it runs
    /// out of memory. Statistics are polled by the clock of `timers`.
    pub fn new(
        memory: Arc<GuestMemory>,
        ram_size: u64,
        deflate_on_oom: bool,
        timers: &TimerQueue,
    ) -> Arc<Self> {
        let this = Arc::new(Self {
            memory,
            ram_size,
            deflate_on_oom,
            clock: timers.clock().clone(),
            target_pages: AtomicU32::new(0),
            actual_pages: AtomicU32::new(0),
            poison: AtomicU32::new(0),
            stats: Mutex::default(),
            timer: OnceLock::new(),
            core: OnceLock::new(),
            on_change: OnceLock::new(),
        });
        let weak = Arc::downgrade(&this);
        let timer = timers.timer(move || {
            if let Some(this) = weak.upgrade() {
                this.request_stats();
                this.arm_poll();
            }
        });
        let _ = this.timer.set(timer);
        this
    }

    /// Sets who is told when the guest changed the balloon; only the first call counts.
    pub fn set_change_hook(&self, hook: BalloonHook) {
        let _ = self.on_change.set(hook);
    }

    /// Asks the guest to keep `bytes` of memory and give the rest.
    pub fn set_target(&self, bytes: u64) {
        let given = self.ram_size.saturating_sub(bytes) >> PAGE_SHIFT;
        self.target_pages.store(u32::try_from(given).unwrap_or(u32::MAX), Ordering::Release);
        if let Some(core) = self.core() {
            core.config_changed();
        }
    }

    /// The guest's memory without the balloon, in bytes.
    pub fn guest_memory(&self) -> u64 {
        let given = u64::from(self.actual_pages.load(Ordering::Acquire)) << PAGE_SHIFT;
        self.ram_size.saturating_sub(given)
    }

    /// The guest's latest statistics.
    pub fn stats(&self) -> BalloonStats {
        self.lock_stats().latest
    }

    /// Polls statistics every `seconds`; 0 ends it.
    pub fn set_polling_interval(&self, seconds: u32) {
        self.lock_stats().poll_seconds = seconds;
        if seconds == 0 {
            if let Some(timer) = self.timer.get() {
                timer.disarm();
            }
        } else {
            self.request_stats();
            self.arm_poll();
        }
    }

    /// Seconds between two updates of the statistics, 0 for none.
    pub fn polling_interval(&self) -> u32 {
        self.lock_stats().poll_seconds
    }

    fn core(&self) -> Option<Arc<VirtioCore>> {
        self.core.get().and_then(Weak::upgrade)
    }

    fn lock_stats(&self) -> MutexGuard<'_, StatsState> {
        lock(&self.stats)
    }

    fn arm_poll(&self) {
        let seconds = self.lock_stats().poll_seconds;
        if let Some(timer) = self.timer.get().filter(|_| seconds > 0) {
            let period = Duration::from_secs(u64::from(seconds)).as_nanos() as u64;
            timer.arm(self.clock.now_ns().saturating_add(period));
        }
    }

    /// Gives the driver its buffer back, which asks it for new statistics.
    fn request_stats(&self) {
        let Some(core) = self.core() else { return };
        let request = self.lock_stats().request.take();
        if let Some(chain) = request {
            core.complete(STATS, &chain, 0);
        }
    }

    /// Frees the pages whose numbers a request lists, in runs. What it lists beyond [`MAX_PAGES`] the
    /// guest gave for nothing.
    fn free_pages(&self, chain: &Chain) -> Result<(), QueueError> {
        let mut run: Option<(u64, u64)> = None;
        let count = (chain.readable_len() / PFN_LEN).min(MAX_PAGES);
        let mut chunk = [0; 1024];
        let mut offset = 0;
        while offset < count * PFN_LEN {
            let len = (count * PFN_LEN - offset).min(chunk.len() as u64) as usize;
            chain.read(&self.memory, offset, &mut chunk[..len])?;
            for pfn in chunk[..len].as_chunks::<4>().0 {
                let page = u64::from(u32::from_le_bytes(*pfn));
                run = match run {
                    Some((first, pages)) if page == first + pages => Some((first, pages + 1)),
                    Some((first, pages)) => {
                        self.free_run(first, pages);
                        Some((page, 1))
                    }
                    None => Some((page, 1)),
                };
            }
            offset += len as u64;
        }
        if let Some((first, pages)) = run {
            self.free_run(first, pages);
        }
        Ok(())
    }

    /// Pages that are not RAM are the guest's mistake and nobody's loss; so is a host that keeps them.
    fn free_run(&self, first: u64, pages: u64) {
        let _ = self.memory.discard(first << PAGE_SHIFT, pages << PAGE_SHIFT);
    }

    fn take_stats(&self, core: &VirtioCore, chain: Chain) -> Result<(), QueueError> {
        let mut latest = BalloonStats { updated_ns: self.clock.now_ns(), ..Default::default() };
        let mut buf = [0; 64 * STAT_LEN];
        let len = chain.read(&self.memory, 0, &mut buf)?;
        for stat in buf[..len].as_chunks::<STAT_LEN>().0 {
            let tag = usize::from(u16::from_le_bytes([stat[0], stat[1]]));
            let value = u64::from_le_bytes(stat[2..].try_into().unwrap_or_default());
            if let Some(slot) = latest.values.get_mut(tag) {
                *slot = Some(value);
            }
        }
        let mut stats = self.lock_stats();
        stats.latest = latest;
        let previous = stats.request.replace(chain);
        drop(stats);
        // A driver has one buffer here; one too many goes back at once.
        if let Some(previous) = previous {
            core.complete(STATS, &previous, 0);
        }
        Ok(())
    }
}

impl VirtioDevice for VirtioBalloon {
    fn kind(&self) -> &'static Kind {
        &KIND
    }

    fn features(&self) -> u64 {
        let oom = if self.deflate_on_oom { feature::DEFLATE_ON_OOM } else { 0 };
        feature::STATS_VQ | feature::PAGE_POISON | oom
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![128; 3]
    }

    fn connect(&self, core: Weak<VirtioCore>) {
        let _ = self.core.set(core);
    }

    fn config(&self) -> Vec<u8> {
        let mut config = Vec::with_capacity(CONFIG_LEN);
        config.extend(self.target_pages.load(Ordering::Acquire).to_le_bytes());
        config.extend(self.actual_pages.load(Ordering::Acquire).to_le_bytes());
        config.extend([0; 4]); // free_page_hint_cmd_id
        config.extend(self.poison.load(Ordering::Acquire).to_le_bytes());
        config
    }

    fn write_config(&self, offset: usize, data: &[u8]) {
        let mut config = self.config();
        config[offset..offset + data.len()].copy_from_slice(data);
        let word =
            |at: usize| u32::from_le_bytes(config[at..at + 4].try_into().unwrap_or_default());
        self.poison.store(word(CONFIG_POISON), Ordering::Release);
        let actual = word(CONFIG_ACTUAL);
        if self.actual_pages.swap(actual, Ordering::AcqRel) != actual
            && let Some(hook) = self.on_change.get()
        {
            hook(self.guest_memory());
        }
    }

    fn service(&self, core: &VirtioCore, queue: u16) {
        while !core.is_pausing() {
            let Some(chain) = core.pop(queue) else { return };
            let result = match queue {
                INFLATE => self.free_pages(&chain),
                STATS => {
                    if let Err(error) = self.take_stats(core, chain) {
                        core.fail(&error);
                    }
                    continue;
                }
                DEFLATE => Ok(()),
                _ => Ok(()),
            };
            match result {
                Ok(()) => core.complete(queue, &chain, 0),
                Err(error) => core.fail(&error),
            }
        }
    }

    fn queue_reset(&self, queue: u16) {
        if queue == STATS {
            self.lock_stats().request = None;
        }
    }

    fn reset(&self) {
        self.poison.store(0, Ordering::Release);
        self.actual_pages.store(0, Ordering::Release);
        let mut stats = self.lock_stats();
        stats.request = None;
        stats.latest = BalloonStats::default();
    }

    fn save(&self) -> Saved {
        let stats = self.lock_stats();
        Saved::new(&BalloonState {
            target_pages: self.target_pages.load(Ordering::Acquire),
            actual_pages: self.actual_pages.load(Ordering::Acquire),
            poison: self.poison.load(Ordering::Acquire),
            stats: stats.latest,
            stats_request: stats.request.clone(),
            poll_seconds: stats.poll_seconds,
        })
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let state: BalloonState = saved.decode()?;
        self.target_pages.store(state.target_pages, Ordering::Release);
        self.actual_pages.store(state.actual_pages, Ordering::Release);
        self.poison.store(state.poison, Ordering::Release);
        let mut stats = self.lock_stats();
        stats.latest = state.stats;
        stats.request = state.stats_request;
        stats.poll_seconds = state.poll_seconds;
        drop(stats);
        match (self.timer.get(), state.poll_seconds) {
            (Some(timer), 0) => timer.disarm(),
            _ => self.arm_poll(),
        }
        Ok(())
    }
}
