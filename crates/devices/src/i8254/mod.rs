//! The 8254 programmable interval timer of a PC, with the system control port B at 61h.
//!
//! Follows Intel's 8254 data sheet (231164) and the PIIX3 data sheet (290550), section 3.7.
//! Counting is exact: a count is computed from the guest clock when somebody looks, at 1.193182 MHz.
//! Channel 0 drives IRQ 0, channel 1 was DRAM refresh and is seen only in the refresh toggle of port
//! 61h, channel 2 is gated by port 61h and would drive the speaker.
//!
//! Interrupts of channel 0 that the host was late for are made up for, up to [`MAX_CATCH_UP`] of them,
//! and come no closer together than [`MIN_SPACING`]: a guest may program a period of 2 ticks.

mod channel;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, Weak};

use bus::{AddressSpace, Clock, Device, IrqLine, MapError, Timer, TimerQueue};
use serde::{Deserialize, Serialize};
use vmstate::{RestoreError, Saved, State};

use crate::isa::{PortDevice, map_ports};
use crate::lock;
use channel::Channel;

/// Input frequency of the counters in Hz.
pub const FREQUENCY_HZ: u64 = 1_193_182;
/// First of the four ports.
pub const PORT: u16 = 0x40;
/// System control port B.
pub const CONTROL_B_PORT: u16 = 0x61;

const CONTROL: u16 = PORT + 3;
/// Control word: select bits of the read-back command, and its fields.
const READ_BACK: u8 = 3;
const READ_BACK_NO_COUNT: u8 = 1 << 5;
const READ_BACK_NO_STATUS: u8 = 1 << 4;

/// Port 61h.
const GATE_2: u8 = 1 << 0;
const REFRESH: u8 = 1 << 4;
const OUT_2: u8 = 1 << 5;
const CONTROL_B_WRITABLE: u8 = 0x0f;
/// Ticks between two memory refreshes on a PC: 15 microseconds.
const REFRESH_TICKS: u64 = 18;

/// Least distance of two interrupts, in ticks: about 10 microseconds.
const MIN_SPACING: u64 = 12;
/// Most periods that are made up for.
const MAX_CATCH_UP: u64 = 64;

/// Saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct I8254State {
    channels: [Channel; 3],
    /// Written bits of port 61h.
    control_b: u8,
    /// Tick of channel 0's next rising edge.
    next_rise: Option<u64>,
    irq_level: bool,
}

impl Default for I8254State {
    fn default() -> Self {
        let mut channels: [Channel; 3] = Default::default();
        // The gates of channels 0 and 1 are wired high.
        channels[2].set_gate(false, 0);
        Self { channels, control_b: 0, next_rise: None, irq_level: false }
    }
}

impl State for I8254State {
    const NAME: &'static str = "i8254";
    const VERSION: u32 = 1;

    fn validate(&self) -> Result<(), String> {
        if self.control_b & !CONTROL_B_WRITABLE != 0 {
            return Err(format!("port 61h holds {:#x}", self.control_b));
        }
        self.channels.iter().try_for_each(Channel::validate)
    }
}

/// The timer.
pub struct I8254 {
    irq: IrqLine,
    clock: Clock,
    timer: Timer,
    state: Mutex<I8254State>,
}

impl I8254 {
    /// A timer that counts by the clock of `timers` and interrupts on `irq`.
    pub fn new(timers: &TimerQueue, irq: IrqLine) -> Arc<Self> {
        let clock = timers.clock().clone();
        Arc::new_cyclic(|this: &Weak<Self>| {
            let this = this.clone();
            let timer = timers.timer(move || {
                if let Some(pit) = this.upgrade() {
                    pit.expired();
                }
            });
            Self { irq, clock, timer, state: Mutex::default() }
        })
    }

    /// Maps the ports.
    ///
    /// # Errors
    /// Never in a space of 64 Ki ports.
    pub fn attach(self: &Arc<Self>, ports: &AddressSpace) -> Result<(), MapError> {
        map_ports(ports, PORT, 4, self.clone())?;
        map_ports(ports, CONTROL_B_PORT, 1, self.clone())?;
        Ok(())
    }

    fn now(&self) -> u64 {
        ticks_of(self.clock.now_ns())
    }

    fn expired(&self) {
        let mut state = lock(&self.state);
        let now = self.now();
        if let Some(rise) = state.next_rise.filter(|&rise| rise <= now) {
            self.irq.set(false);
            self.irq.set(true);
            state.irq_level = true;
            let channel = &mut state.channels[0];
            channel.sync(now);
            let behind = (now - rise) / channel.period();
            let from = if behind > MAX_CATCH_UP { now } else { rise };
            state.next_rise = channel.next_rise(from.saturating_add(MIN_SPACING - 1));
        }
        self.arm(&state, now);
    }

    /// After channel 0 was written: its output may have changed, and so may its next edge.
    fn channel_0_changed(&self, state: &mut I8254State, now: u64) {
        let out = state.channels[0].output(now);
        if out != state.irq_level {
            state.irq_level = out;
            self.irq.set(out);
        }
        state.next_rise = state.channels[0].next_rise(now);
        self.arm(state, now);
    }

    fn arm(&self, state: &I8254State, now: u64) {
        match state.next_rise {
            // Also when catching up, so that the guest gets to run between two.
            Some(rise) if rise <= now => self.timer.arm(ns_of(now.saturating_add(MIN_SPACING))),
            Some(rise) => self.timer.arm(ns_of(rise)),
            None => self.timer.disarm(),
        }
    }
}

/// Ticks that have begun by `ns` nanoseconds.
fn ticks_of(ns: u64) -> u64 {
    (u128::from(ns) * u128::from(FREQUENCY_HZ) / 1_000_000_000) as u64
}

/// The first nanosecond of a tick.
fn ns_of(ticks: u64) -> u64 {
    let ns = (u128::from(ticks) * 1_000_000_000).div_ceil(u128::from(FREQUENCY_HZ));
    u64::try_from(ns).unwrap_or(u64::MAX)
}

impl PortDevice for I8254 {
    fn read_port(&self, port: u16) -> u8 {
        let mut state = lock(&self.state);
        let now = self.now();
        match port {
            CONTROL => 0,
            CONTROL_B_PORT => {
                let channel = &mut state.channels[2];
                channel.sync(now);
                let out = if channel.output(now) { OUT_2 } else { 0 };
                let refresh = if (now / REFRESH_TICKS) & 1 != 0 { REFRESH } else { 0 };
                state.control_b | out | refresh
            }
            _ => {
                let channel = &mut state.channels[usize::from(port - PORT) % 3];
                channel.sync(now);
                channel.read(now)
            }
        }
    }

    fn write_port(&self, port: u16, value: u8) {
        let mut state = lock(&self.state);
        let now = self.now();
        for channel in &mut state.channels {
            channel.sync(now);
        }
        let channel_0 = match port {
            CONTROL_B_PORT => {
                state.control_b = value & CONTROL_B_WRITABLE;
                state.channels[2].set_gate(value & GATE_2 != 0, now);
                false
            }
            CONTROL if value >> 6 == READ_BACK => {
                for (i, channel) in state.channels.iter_mut().enumerate() {
                    if value & 2 << i != 0 {
                        channel.read_back(
                            value & READ_BACK_NO_COUNT == 0,
                            value & READ_BACK_NO_STATUS == 0,
                            now,
                        );
                    }
                }
                false
            }
            CONTROL => {
                let i = usize::from(value >> 6);
                state.channels[i].control(value, now);
                i == 0 && value & 0x30 != 0
            }
            _ => {
                let i = usize::from(port - PORT) % 3;
                state.channels[i].write(value, now);
                i == 0
            }
        };
        if channel_0 {
            self.channel_0_changed(&mut state, now);
        }
    }
}

impl Device for I8254 {
    fn id(&self) -> String {
        "i8254".into()
    }

    fn reset(&self) {
        let mut state = lock(&self.state);
        *state = I8254State::default();
        self.irq.set(false);
        self.timer.disarm();
    }

    fn save(&self) -> Saved {
        Saved::new(&*lock(&self.state))
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let restored: I8254State = saved.decode()?;
        let mut state = lock(&self.state);
        *state = restored;
        self.irq.set(state.irq_level);
        let now = self.now();
        self.arm(&state, now);
        Ok(())
    }
}
