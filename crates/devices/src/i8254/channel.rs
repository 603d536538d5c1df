//! One counter of an 8254.
//!
//! A counter is described by the tick at which it began to count and the ticks counted before that
//! (the gate can halt it); count and output follow from the current tick. All times are in ticks of
//! the input clock.

use serde::{Deserialize, Serialize};

/// Which bytes of the count a port access moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Access {
    Low = 1,
    High = 2,
    #[default]
    LowHigh = 3,
}

/// A counter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Channel {
    mode: u8,
    bcd: bool,
    access: Access,
    gate: bool,
    /// The count register: what is counted from after the next load. 1 to 65,536.
    reload: u32,
    /// What the present round counts from.
    count: u32,
    /// A count was written in modes 2 and 3 and waits for the end of the round.
    reload_waits: bool,
    /// A count was written and not yet loaded.
    null_count: bool,
    /// The counter has been loaded since its mode was set.
    loaded: bool,
    /// Ticks counted up to `since`.
    elapsed: u64,
    /// Since when it counts; none while it stands.
    since: Option<u64>,
    /// The first byte of a count that takes two.
    low_byte: Option<u8>,
    /// The next read gives the high byte.
    high_next: bool,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
}

impl Default for Channel {
    fn default() -> Self {
        Self {
            mode: 0,
            bcd: false,
            access: Access::default(),
            gate: true,
            reload: 0x1_0000,
            count: 0x1_0000,
            reload_waits: false,
            null_count: false,
            loaded: false,
            elapsed: 0,
            since: None,
            low_byte: None,
            high_next: false,
            latched_count: None,
            latched_status: None,
        }
    }
}

impl Channel {
    pub(super) fn validate(&self) -> Result<(), String> {
        if self.mode > 5 {
            return Err(format!("counter mode {}", self.mode));
        }
        for count in [self.reload, self.count] {
            if !(1..=0x1_0000).contains(&count) {
                return Err(format!("count {count:#x} is not within 1 to 0x10000"));
            }
        }
        Ok(())
    }

    fn is_periodic(&self) -> bool {
        matches!(self.mode, 2 | 3)
    }

    /// Ticks counted in this round and earlier ones since the last load by a write or the gate.
    fn ticks(&self, now: u64) -> u64 {
        self.elapsed.saturating_add(self.since.map_or(0, |since| now.saturating_sub(since)))
    }

    /// Ticks of the first half of a square wave, when the output is high.
    fn high_half(count: u32) -> u64 {
        u64::from(count).div_ceil(2)
    }

    /// Length of a round in ticks.
    pub(super) fn period(&self) -> u64 {
        self.count.into()
    }

    /// Takes up a waiting count if the round (or half of a square wave) has ended by `now`.
    pub(super) fn sync(&mut self, now: u64) {
        if !self.reload_waits {
            return;
        }
        let ticks = self.ticks(now);
        // `elapsed` is where in the round the count was written.
        let half = Self::high_half(self.count);
        let (end, resume_at) = if self.mode == 3 && self.elapsed < half {
            (half, Self::high_half(self.reload))
        } else {
            (self.period(), 0)
        };
        if ticks >= end {
            self.count = self.reload;
            self.reload_waits = false;
            self.null_count = false;
            self.elapsed = resume_at.saturating_add(ticks - end);
            self.since = self.since.map(|_| now);
        }
    }

    pub(super) fn output(&self, now: u64) -> bool {
        let ticks = self.ticks(now);
        let count = self.period();
        if !self.loaded {
            return self.mode != 0;
        }
        match self.mode {
            0 => ticks >= count,
            1 => ticks >= count,
            2 => !self.gate || ticks % count != count - 1,
            3 => !self.gate || ticks % count < Self::high_half(self.count),
            _ => ticks != count,
        }
    }

    /// The next tick after `now` at which the output rises.
    pub(super) fn next_rise(&self, now: u64) -> Option<u64> {
        let since = self.since.filter(|_| self.loaded)?;
        let ticks = self.ticks(now);
        let rise = match self.mode {
            0 | 1 => Some(self.period()),
            // The low half will be the waiting count's.
            3 if self.reload_waits && self.elapsed < Self::high_half(self.count) => {
                Some(Self::high_half(self.count) + u64::from(self.reload / 2))
            }
            2 | 3 => Some((ticks / self.period() + 1) * self.period()),
            _ => Some(self.period() + 1),
        };
        let rise = rise.filter(|&rise| rise > ticks)?;
        Some(since.saturating_add(rise.saturating_sub(self.elapsed)))
    }

    /// The counting element as it reads.
    fn value(&self, now: u64) -> u16 {
        let ticks = self.ticks(now);
        let count = self.period();
        let modulus = if self.bcd { 10_000 } else { 0x1_0000 };
        let value = match self.mode {
            2 => count - ticks % count,
            3 => {
                let half = Self::high_half(self.count);
                let into = ticks % count;
                let into_half = if into < half { into } else { into - half };
                (count & !1).saturating_sub(2 * into_half)
            }
            _ => (count + modulus - ticks % modulus) % modulus,
        };
        let value = (value % modulus) as u16;
        if self.bcd { to_bcd(value) } else { value }
    }

    fn status(&self, now: u64) -> u8 {
        u8::from(self.output(now)) << 7
            | u8::from(self.null_count) << 6
            | (self.access as u8) << 4
            | self.mode << 1
            | u8::from(self.bcd)
    }

    /// A control word for this counter.
    pub(super) fn control(&mut self, word: u8, now: u64) {
        let access = match word >> 4 & 3 {
            0 => {
                self.latch_count(now);
                return;
            }
            1 => Access::Low,
            2 => Access::High,
            _ => Access::LowHigh,
        };
        *self = Self {
            mode: match word >> 1 & 7 {
                6 => 2,
                7 => 3,
                mode => mode,
            },
            bcd: word & 1 != 0,
            access,
            gate: self.gate,
            null_count: true,
            // The counting element itself keeps its value until it is loaded.
            count: self.count,
            ..Self::default()
        };
    }

    fn latch_count(&mut self, now: u64) {
        if self.latched_count.is_none() {
            self.latched_count = Some(self.value(now));
        }
    }

    pub(super) fn read_back(&mut self, count: bool, status: bool, now: u64) {
        if count {
            self.latch_count(now);
        }
        if status && self.latched_status.is_none() {
            self.latched_status = Some(self.status(now));
        }
    }

    pub(super) fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let [low, high] = self.latched_count.unwrap_or_else(|| self.value(now)).to_le_bytes();
        let (byte, last) = match self.access {
            Access::Low => (low, true),
            Access::High => (high, true),
            Access::LowHigh if self.high_next => (high, true),
            Access::LowHigh => (low, false),
        };
        self.high_next = !last;
        if last {
            self.latched_count = None;
        }
        byte
    }

    pub(super) fn write(&mut self, value: u8, now: u64) {
        let count = match (self.access, self.low_byte.take()) {
            (Access::Low, _) => u16::from(value),
            (Access::High, _) => u16::from(value) << 8,
            (Access::LowHigh, Some(low)) => u16::from_le_bytes([low, value]),
            (Access::LowHigh, None) => {
                self.low_byte = Some(value);
                if self.mode == 0 {
                    // The first byte stops the counter and lowers its output.
                    self.elapsed = 0;
                    self.since = None;
                    self.loaded = false;
                }
                return;
            }
        };
        self.reload = if self.bcd { from_bcd(count, 10_000) } else { from_binary(count) };
        self.null_count = true;
        match self.mode {
            0 | 4 => self.load(now),
            2 | 3 if !self.loaded => self.load(now),
            2 | 3 => {
                self.elapsed = self.ticks(now) % self.period();
                self.since = self.since.map(|_| now);
                self.reload_waits = true;
            }
            // Modes 1 and 5 load when the gate rises.
            _ => {}
        }
    }

    /// Loads the counting element: it takes one tick, then counting begins if the gate lets it.
    fn load(&mut self, now: u64) {
        self.count = self.reload;
        self.reload_waits = false;
        self.null_count = false;
        self.loaded = true;
        self.elapsed = 0;
        self.since = (self.gate || matches!(self.mode, 1 | 5)).then_some(now.saturating_add(1));
    }

    pub(super) fn set_gate(&mut self, gate: bool, now: u64) {
        let rose = gate && !self.gate;
        let fell = !gate && self.gate;
        self.gate = gate;
        match self.mode {
            1 | 5 if rose && (self.null_count || self.loaded) => self.load(now),
            2 | 3 if rose && self.loaded => self.load(now),
            0 | 4 if rose && self.loaded => self.since = Some(now),
            0 | 2 | 3 | 4 if fell => {
                self.elapsed = self.ticks(now);
                self.since = None;
            }
            _ => {}
        }
        debug_assert!(self.gate || !self.is_periodic() || self.since.is_none());
    }
}

/// A count of zero is the largest there is.
fn from_binary(count: u16) -> u32 {
    if count == 0 { 0x1_0000 } else { count.into() }
}

fn from_bcd(count: u16, largest: u32) -> u32 {
    // Digits past 9 are undefined; they count for what they are.
    let digits = [12, 8, 4, 0].map(|shift| u32::from(count >> shift & 0xf));
    let value = digits.iter().fold(0, |value, digit| value * 10 + digit) % largest;
    if value == 0 { largest } else { value }
}

fn to_bcd(value: u16) -> u16 {
    (0..4).fold((value, 0), |(rest, bcd), i| (rest / 10, bcd | (rest % 10) << (4 * i))).1
}
