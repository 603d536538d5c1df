//! `hyperv-testdev`: synthetic interrupts, messages and events at a suite's command.
//!
//! One port of 32 bits at 3000h takes commands: from the lowest byte on, a source of synthetic interrupts, the
//! virtual processor that has it, what to do, and the number of a connection. Routes have to be made before a
//! source can be asserted; connections say where messages that the guest posts and events that it signals go:
//! to a source, a message with the connection as its sender, an event as the flag with the connection's number.
//! A command that makes what is there, takes away what is not, or names no source is ignored.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, Weak};

use accel::Posted;
use bus::{AddressSpace, BusDevice, Device, MapError};
use serde::{Deserialize, Serialize};
use vmstate::{RestoreError, Saved, State};

use crate::hyperv::{Connections, HyperV, Message};
use crate::lock;

const PORT: u64 = 0x3000;

/// What to do.
mod command {
    pub(super) const ROUTE: u8 = 1;
    pub(super) const ROUTE_NO_MORE: u8 = 2;
    pub(super) const ASSERT: u8 = 3;
    pub(super) const CONNECT_MESSAGES: u8 = 4;
    pub(super) const DISCONNECT_MESSAGES: u8 = 5;
    pub(super) const CONNECT_EVENTS: u8 = 6;
    pub(super) const DISCONNECT_EVENTS: u8 = 7;
}

/// A virtual processor and one of its sources.
type Source = (u8, u8);

/// Saved state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct HyperVTestDevState {
    routes: BTreeSet<Source>,
    /// By the numbers of connections.
    messages: BTreeMap<u8, Source>,
    events: BTreeMap<u8, Source>,
}

impl State for HyperVTestDevState {
    const NAME: &'static str = "hyperv-testdev";
    const VERSION: u32 = 1;
}

impl HyperVTestDevState {
    fn sources(&self) -> impl Iterator<Item = Source> {
        let connected = self.messages.values().chain(self.events.values());
        self.routes.iter().chain(connected).copied()
    }
}

/// The device.
pub struct HyperVTestDev {
    partition: Arc<HyperV>,
    state: Mutex<HyperVTestDevState>,
}

impl HyperVTestDev {
    /// A device that has the connections of `partition`; `None` if another has them.
    pub fn new(partition: Arc<HyperV>) -> Option<Arc<Self>> {
        let device = Arc::new(Self { partition: partition.clone(), state: Mutex::default() });
        let connections: Arc<dyn Connections> = device.clone();
        let connections: Weak<dyn Connections> = Arc::downgrade(&connections);
        partition.connect(connections).then_some(device)
    }

    /// Maps its port.
    ///
    /// # Errors
    /// If something else is there.
    pub fn attach(self: &Arc<Self>, ports: &AddressSpace) -> Result<(), MapError> {
        ports.map(PORT, 4, Arc::new(Port(self.clone())))?;
        Ok(())
    }

    fn command(&self, [source, processor, command, connection]: [u8; 4]) {
        if !self.partition.has_source(processor, source) {
            return;
        }
        let place = (processor, source);
        let mut state = lock(&self.state);
        match command {
            command::ROUTE => {
                state.routes.insert(place);
            }
            command::ROUTE_NO_MORE => {
                state.routes.remove(&place);
            }
            command::ASSERT if state.routes.contains(&place) => {
                self.partition.assert(processor, source);
            }
            command::CONNECT_MESSAGES => {
                state.messages.entry(connection).or_insert(place);
            }
            command::DISCONNECT_MESSAGES => {
                state.messages.remove(&connection);
            }
            command::CONNECT_EVENTS => {
                state.events.entry(connection).or_insert(place);
            }
            command::DISCONNECT_EVENTS => {
                state.events.remove(&connection);
            }
            _ => {}
        }
    }
}

impl Connections for HyperVTestDev {
    fn post_message(&self, connection: u32, kind: u32, payload: &[u8]) -> Posted {
        let number = u8::try_from(connection).ok();
        let place = number.and_then(|number| lock(&self.state).messages.get(&number).copied());
        let Some((processor, source)) = place else { return Posted::Unconnected };
        let message = Message { kind, origin: connection.into(), payload: payload.to_vec() };
        if self.partition.deliver(processor, source, message) {
            Posted::Taken
        } else {
            Posted::Full
        }
    }

    fn signal_event(&self, connection: u32) -> bool {
        let Ok(number) = u8::try_from(connection) else { return false };
        let place = lock(&self.state).events.get(&number).copied();
        if let Some((processor, source)) = place {
            self.partition.set_event(processor, source, number.into());
        }
        place.is_some()
    }
}

struct Port(Arc<HyperVTestDev>);

impl BusDevice for Port {
    fn read(&self, _offset: u64, _size: u8) -> u64 {
        0
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        if (offset, size) == (0, 4) {
            self.0.command((value as u32).to_le_bytes());
        }
    }
}

impl Device for HyperVTestDev {
    fn id(&self) -> String {
        "hyperv-testdev".into()
    }

    fn reset(&self) {
        *lock(&self.state) = HyperVTestDevState::default();
    }

    fn save(&self) -> Saved {
        Saved::new(&*lock(&self.state))
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let state: HyperVTestDevState = saved.decode()?;
        if let Some((processor, source)) = state
            .sources()
            .find(|&(processor, source)| !self.partition.has_source(processor, source))
        {
            return Err(RestoreError::Damaged {
                name: HyperVTestDevState::NAME,
                reason: format!("there is no source {source} of processor {processor}"),
            });
        }
        *lock(&self.state) = state;
        Ok(())
    }
}
