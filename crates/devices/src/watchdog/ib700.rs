//! The watchdog of the single-board computer IB700.
//!
//! Follows its manual (iBASE IB700, chapter "Watchdog Timer Configuration"): a write to port 443h starts the
//! time anew, from 30 seconds down to 0 in steps of 2 as the low four bits go up; a write to port 441h ends
//! it. Both read as ones.

use std::sync::{Arc, Mutex, Weak};

use bus::{AddressSpace, Clock, Device, MachineControl, MapError, Notice, Timer, TimerQueue};
use serde::{Deserialize, Serialize};
use vmstate::{RestoreError, Saved, State};

use crate::isa::{PortDevice, map_ports};
use crate::lock;

const DISABLE: u16 = 0x441;
const ENABLE: u16 = 0x443;
/// Nanoseconds of a step.
const STEP_NS: u64 = 2_000_000_000;
/// Steps of the longest time.
const LONGEST: u8 = 15;

/// Saved state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Ib700State {
    /// Guest time at which it expires, in nanoseconds.
    deadline_ns: Option<u64>,
}

impl State for Ib700State {
    const NAME: &'static str = "ib700";
    const VERSION: u32 = 1;
}

/// The watchdog.
pub struct Ib700 {
    clock: Clock,
    timer: Timer,
    control: Arc<dyn MachineControl>,
    state: Mutex<Ib700State>,
}

impl Ib700 {
    /// A watchdog that tells `control`.
    pub fn new(timers: &TimerQueue, control: Arc<dyn MachineControl>) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| {
            let this = this.clone();
            let timer = timers.timer(move || {
                if let Some(watchdog) = this.upgrade() {
                    watchdog.expire();
                }
            });
            Self { clock: timers.clock().clone(), timer, control, state: Mutex::default() }
        })
    }

    /// Maps the ports.
    ///
    /// # Errors
    /// Never in a space of 64 Ki ports.
    pub fn attach(self: &Arc<Self>, ports: &AddressSpace) -> Result<(), MapError> {
        map_ports(ports, DISABLE, 1, self.clone())?;
        map_ports(ports, ENABLE, 1, self.clone())?;
        Ok(())
    }

    fn expire(&self) {
        let mut state = lock(&self.state);
        // It may have been fed in this moment.
        if state.deadline_ns.is_some_and(|deadline| deadline <= self.clock.now_ns()) {
            state.deadline_ns = None;
            self.control.notify(Notice::WatchdogExpired);
        }
    }

    fn set(&self, state: &mut Ib700State, deadline_ns: Option<u64>) {
        state.deadline_ns = deadline_ns;
        match deadline_ns {
            Some(deadline) => self.timer.arm(deadline),
            None => self.timer.disarm(),
        }
    }
}

impl PortDevice for Ib700 {
    fn read_port(&self, _port: u16) -> u8 {
        0xff
    }

    fn write_port(&self, port: u16, value: u8) {
        let steps = u64::from(LONGEST - (value & LONGEST));
        let deadline = self.clock.now_ns().saturating_add(steps * STEP_NS);
        self.set(&mut lock(&self.state), (port == ENABLE).then_some(deadline));
    }
}

impl Device for Ib700 {
    fn id(&self) -> String {
        "ib700".into()
    }

    fn reset(&self) {
        self.set(&mut lock(&self.state), None);
    }

    fn save(&self) -> Saved {
        Saved::new(&*lock(&self.state))
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let state: Ib700State = saved.decode()?;
        self.set(&mut lock(&self.state), state.deadline_ns);
        Ok(())
    }
}
