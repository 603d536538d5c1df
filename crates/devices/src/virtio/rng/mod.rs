//! A source of randomness (specification, section 5.4): the host's own.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::time::Duration;

use bus::{Timer, TimerQueue};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};
use vmstate::{RestoreError, Saved, State};

use super::{Kind, VirtioCore, VirtioDevice};
use crate::lock;

#[cfg(test)]
mod tests;

const KIND: Kind = Kind {
    name: "virtio-rng",
    device_type: 4,
    transitional_id: 0x1005,
    class: 0x00_ff_00,
    extra_vectors: Some(1),
};

/// Most bytes for one request, so that none holds up a pause.
const MAX_REQUEST: u64 = 64 << 10;

/// How much randomness the guest may draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RngLimit {
    /// Bytes in each period.
    pub max_bytes: u64,
    /// Length of the period, in guest time.
    pub period: Duration,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Quota {
    /// Bytes left in this period.
    left: u64,
    /// When the period ends, in guest nanoseconds; `None` if none has begun.
    until_ns: Option<u64>,
}

impl State for Quota {
    const NAME: &'static str = "virtio-rng";
    const VERSION: u32 = 1;
}

/// A virtio source of randomness.
pub struct VirtioRng {
    limit: Option<RngLimit>,
    clock: bus::Clock,
    quota: Mutex<Quota>,
    /// Ends the period.
    timer: OnceLock<Timer>,
    core: OnceLock<Weak<VirtioCore>>,
}

impl VirtioRng {
    /// A source that draws no more than `limit`, by the clock of `timers`.
    pub fn new(limit: Option<RngLimit>, timers: &TimerQueue) -> Arc<Self> {
        let this = Arc::new(Self {
            limit,
            clock: timers.clock().clone(),
            quota: Mutex::new(Self::full(limit)),
            timer: OnceLock::new(),
            core: OnceLock::new(),
        });
        if limit.is_some() {
            let weak = Arc::downgrade(&this);
            let timer = timers.timer(move || {
                if let Some(this) = weak.upgrade() {
                    this.begin_period();
                }
            });
            let _ = this.timer.set(timer);
        }
        this
    }

    fn full(limit: Option<RngLimit>) -> Quota {
        Quota { left: limit.map_or(u64::MAX, |limit| limit.max_bytes), until_ns: None }
    }

    fn quota(&self) -> MutexGuard<'_, Quota> {
        lock(&self.quota)
    }

    fn begin_period(&self) {
        *self.quota() = Self::full(self.limit);
        if let Some(core) = self.core.get().and_then(Weak::upgrade) {
            core.kick(0);
        }
    }

    /// Takes up to `wanted` bytes from the quota.
    fn draw(&self, wanted: u64) -> u64 {
        let Some(limit) = self.limit else { return wanted };
        let mut quota = self.quota();
        let taken = wanted.min(quota.left);
        quota.left -= taken;
        if quota.until_ns.is_none() {
            let period = u64::try_from(limit.period.as_nanos()).unwrap_or(u64::MAX);
            let until = self.clock.now_ns().saturating_add(period);
            quota.until_ns = Some(until);
            self.arm(Some(until));
        }
        taken
    }

    fn arm(&self, until_ns: Option<u64>) {
        if let Some(timer) = self.timer.get() {
            match until_ns {
                Some(until) => timer.arm(until),
                None => timer.disarm(),
            }
        }
    }
}

/// Fills `buf` from the host.
fn fill(buf: &mut [u8]) -> Result<(), Errno> {
    let mut done = 0;
    while done < buf.len() {
        match getrandom(&mut buf[done..], GetRandomFlags::empty()) {
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl VirtioDevice for VirtioRng {
    fn kind(&self) -> &'static Kind {
        &KIND
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![8]
    }

    fn connect(&self, core: Weak<VirtioCore>) {
        let _ = self.core.set(core);
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn service(&self, core: &VirtioCore, queue: u16) {
        let mut random = Vec::new();
        while !core.is_pausing() {
            if self.quota().left == 0 {
                return;
            }
            let Some(chain) = core.pop(queue) else { return };
            let count = self.draw(chain.writable_len().min(MAX_REQUEST));
            random.resize(count as usize, 0);
            // A host without randomness gives nothing; the driver may ask again.
            let count = fill(&mut random).map_or(0, |()| count);
            match chain.write(core.memory(), 0, &random[..count as usize]) {
                Ok(_) => core.complete(queue, &chain, count as u32),
                Err(error) => return core.fail(&error),
            }
        }
    }

    fn reset(&self) {
        self.arm(None);
        *self.quota() = Self::full(self.limit);
    }

    fn save(&self) -> Saved {
        Saved::new(&*self.quota())
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let state: Quota = saved.decode()?;
        let left = state.left.min(Self::full(self.limit).left);
        let until_ns = state.until_ns.filter(|_| self.limit.is_some());
        *self.quota() = Quota { left, until_ns };
        self.arm(until_ns);
        Ok(())
    }
}
