//! What all devices share (specification, chapters 8.5.3 and 9).

use std::sync::{Arc, Mutex, OnceLock, Weak};

use bus::Device;
use serde::{Deserialize, Serialize};
use vmstate::{RestoreError, Saved, State};

use super::descriptor::{CONTROL_PACKET, TO_HOST, attribute};
use super::{
    Handshake, MAX_PACKET, Setup, Stalled, Token, Transaction, Upstream, UsbFunction, Waker,
};
use crate::lock;

/// Most data that a request may bring.
const MAX_REQUEST: u16 = 1024;

/// Standard requests, by [`Setup::code`].
mod request {
    pub(super) const DEVICE_STATUS: u16 = 0x8000;
    pub(super) const INTERFACE_STATUS: u16 = 0x8100;
    pub(super) const ENDPOINT_STATUS: u16 = 0x8200;
    pub(super) const CLEAR_DEVICE_FEATURE: u16 = 0x0001;
    pub(super) const CLEAR_ENDPOINT_FEATURE: u16 = 0x0201;
    pub(super) const SET_DEVICE_FEATURE: u16 = 0x0003;
    pub(super) const SET_ENDPOINT_FEATURE: u16 = 0x0203;
    pub(super) const SET_ADDRESS: u16 = 0x0005;
    pub(super) const GET_DESCRIPTOR: u16 = 0x8006;
    pub(super) const GET_CONFIGURATION: u16 = 0x8008;
    pub(super) const SET_CONFIGURATION: u16 = 0x0009;
    pub(super) const GET_INTERFACE: u16 = 0x810a;
    pub(super) const SET_INTERFACE: u16 = 0x010b;
}

/// Features of standard requests.
const ENDPOINT_HALT: u16 = 0;
const REMOTE_WAKEUP: u16 = 1;

/// Where a control transfer is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Stage {
    #[default]
    Idle,
    DataIn,
    DataOut,
    StatusIn,
    Stalled,
}

/// State of the core.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Core {
    address: u8,
    /// The address that comes into force once its request is over.
    next_address: Option<u8>,
    configuration: u8,
    remote_wakeup: bool,
    /// Endpoints that are halted, a bit for each in the order of the descriptors.
    halted: u16,
    stage: Stage,
    setup: [u8; 8],
    data: Vec<u8>,
    /// How much of the data was sent.
    sent: u16,
}

/// Saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct PeripheralState {
    core: Core,
    function: Saved,
}

impl State for PeripheralState {
    const NAME: &'static str = "usb-device";
    const VERSION: u32 = 2;

    fn validate(&self) -> Result<(), String> {
        let Core { address, next_address, configuration, data, sent, .. } = &self.core;
        if *address > 127 || next_address.is_some_and(|address| address > 127) {
            return Err(format!("address {address}"));
        }
        if *configuration > 1 {
            return Err(format!("configuration {configuration}"));
        }
        if data.len() > usize::from(MAX_REQUEST) || usize::from(*sent) > data.len() {
            return Err(format!("{sent} of {} bytes were sent", data.len()));
        }
        Ok(())
    }
}

/// A device on a port.
pub struct Peripheral {
    id: String,
    function: Arc<dyn UsbFunction>,
    core: Mutex<Core>,
    upstream: OnceLock<(Weak<dyn Upstream>, usize)>,
}

impl Peripheral {
    /// A device with `id` that does what `function` does.
    pub fn new(id: impl Into<String>, function: Arc<dyn UsbFunction>) -> Arc<Self> {
        let this = Arc::new(Self {
            id: id.into(),
            function,
            core: Mutex::default(),
            upstream: OnceLock::new(),
        });
        this.function.connect(Waker(Arc::downgrade(&this)));
        this
    }

    /// Tells it which port it is on; only the first call counts.
    pub(super) fn connect(&self, upstream: Weak<dyn Upstream>, port: usize) {
        let _ = self.upstream.set((upstream, port));
    }

    /// Tells the port that there is something to say.
    pub(super) fn wake(&self) {
        let resume = lock(&self.core).remote_wakeup;
        if let Some((upstream, port)) = self.upstream.get()
            && let Some(upstream) = upstream.upgrade()
        {
            upstream.wake(*port, resume);
        }
    }

    /// The bus was reset: the device has address 0 and no configuration.
    pub fn bus_reset(&self) {
        *lock(&self.core) = Core::default();
        self.function.reset();
    }

    /// Takes part in a transaction; `None` if it is not for this device nor any behind it.
    pub fn transact(&self, transaction: &mut Transaction<'_>) -> Option<Handshake> {
        let mut core = lock(&self.core);
        if transaction.address != core.address {
            drop(core);
            return self.function.forward(transaction);
        }
        let Transaction { endpoint, token, data, .. } = transaction;
        Some(match (*endpoint, *token) {
            (0, Token::Setup) => self.setup(&mut core, data),
            (0, Token::In) => control_in(&mut core, data),
            (0, Token::Out) => self.control_out(&mut core, data),
            (number @ 1.., Token::In) => match self.endpoint(&core, TO_HOST | number) {
                Some(most) => {
                    drop(core);
                    self.data_in(number, most, data)
                }
                None => Handshake::Stall,
            },
            (number @ 1.., Token::Out) => match self.endpoint(&core, number) {
                // More than the endpoint takes is noise to it.
                Some(most) if data.len() <= most => {
                    drop(core);
                    self.function.data_out(number, data)
                }
                Some(_) => Handshake::Babble,
                None => Handshake::Stall,
            },
            _ => Handshake::Stall,
        })
    }

    /// Largest packet of the endpoint at `address`, if it is there and works.
    fn endpoint(&self, core: &Core, address: u8) -> Option<usize> {
        let (index, endpoint) = self.function.descriptors().endpoint(address)?;
        let works = core.configuration != 0 && core.halted & 1 << index == 0;
        works.then_some(endpoint.packet.into())
    }

    /// Asks the function for a packet of up to `most` bytes.
    fn data_in(&self, number: u8, most: usize, data: &mut [u8]) -> Handshake {
        let mut packet = [0; MAX_PACKET];
        match self.function.data_in(number, &mut packet[..most]) {
            Handshake::Ack(len) if len > data.len() => Handshake::Babble,
            Handshake::Ack(len) => {
                data[..len].copy_from_slice(&packet[..len]);
                Handshake::Ack(len)
            }
            other => other,
        }
    }

    fn setup(&self, core: &mut Core, data: &[u8]) -> Handshake {
        // A packet of another length is noise, which no device answers.
        let Ok(bytes) = <[u8; 8]>::try_from(data) else { return Handshake::Stall };
        core.setup = bytes;
        core.data.clear();
        core.sent = 0;
        core.next_address = None;
        let setup = parse(bytes);
        core.stage = if setup.request_type & 0x80 == 0 && setup.length > 0 {
            if setup.length > MAX_REQUEST { Stage::Stalled } else { Stage::DataOut }
        } else {
            self.execute(core, &setup)
        };
        Handshake::Ack(8)
    }

    fn control_out(&self, core: &mut Core, data: &[u8]) -> Handshake {
        match core.stage {
            // The host has heard enough.
            Stage::DataIn => {
                core.stage = Stage::Idle;
                Handshake::Ack(data.len())
            }
            Stage::DataOut => {
                let setup = parse(core.setup);
                let room = usize::from(setup.length).saturating_sub(core.data.len());
                core.data.extend(&data[..data.len().min(room)]);
                if core.data.len() >= usize::from(setup.length) {
                    core.stage = self.execute(core, &setup);
                }
                Handshake::Ack(data.len())
            }
            _ => Handshake::Stall,
        }
    }

    /// Does what a request asks, all of whose data is there; returns the next stage.
    fn execute(&self, core: &mut Core, setup: &Setup) -> Stage {
        let answer = match self.standard(core, setup) {
            Some(answer) => answer,
            None => self.function.request(setup, &core.data),
        };
        let Ok(mut answer) = answer else { return Stage::Stalled };
        if setup.request_type & 0x80 == 0 || setup.length == 0 {
            return Stage::StatusIn;
        }
        answer.truncate(setup.length.into());
        core.data = answer;
        Stage::DataIn
    }

    /// Standard requests that all devices know; `None` for others.
    fn standard(&self, core: &mut Core, setup: &Setup) -> Option<Result<Vec<u8>, Stalled>> {
        let descriptors = self.function.descriptors();
        let attributes = descriptors.attributes();
        let done = Ok(Vec::new());
        // The bit of the endpoint that a request is about; none for the control endpoint.
        let endpoint = match descriptors.endpoint(setup.index as u8) {
            _ if setup.index & 0x0f == 0 => Some(0),
            Some((place, _)) if setup.index < 0x100 => Some(1 << place),
            _ => None,
        };
        Some(match (setup.code(), setup.value) {
            (request::DEVICE_STATUS, _) => {
                let powered = attributes & attribute::SELF_POWERED != 0;
                Ok(vec![u8::from(powered) | u8::from(core.remote_wakeup) << 1, 0])
            }
            (request::INTERFACE_STATUS, _) => Ok(vec![0, 0]),
            (request::ENDPOINT_STATUS, _) => match endpoint {
                Some(bit) => Ok(vec![u8::from(core.halted & bit != 0), 0]),
                None => Err(Stalled),
            },
            (request::CLEAR_DEVICE_FEATURE, REMOTE_WAKEUP) => {
                core.remote_wakeup = false;
                done
            }
            (request::SET_DEVICE_FEATURE, REMOTE_WAKEUP)
                if attributes & attribute::REMOTE_WAKEUP != 0 =>
            {
                core.remote_wakeup = true;
                done
            }
            (request::CLEAR_ENDPOINT_FEATURE, ENDPOINT_HALT) if endpoint.is_some() => {
                core.halted &= !endpoint.unwrap_or(0);
                done
            }
            (request::SET_ENDPOINT_FEATURE, ENDPOINT_HALT) if endpoint.is_some() => {
                core.halted |= endpoint.unwrap_or(0);
                done
            }
            (request::SET_ADDRESS, 0..=127) => {
                core.next_address = Some(setup.value as u8);
                done
            }
            (request::GET_DESCRIPTOR, value) => {
                let [index, kind] = value.to_le_bytes();
                descriptors.get(kind, index).ok_or(Stalled)
            }
            (request::GET_CONFIGURATION, _) => Ok(vec![core.configuration]),
            (request::SET_CONFIGURATION, value @ 0..=1) => {
                core.configuration = value as u8;
                core.halted = 0;
                self.function.configured(value == 1);
                done
            }
            (request::GET_INTERFACE, _) if setup.index == 0 => Ok(vec![0]),
            (request::SET_INTERFACE, 0) if setup.index == 0 => {
                core.halted = 0;
                done
            }
            _ if setup.request_type & 0x60 == 0 && setup.request_type & 0x1f != 1 => Err(Stalled),
            _ => return None,
        })
    }
}

fn control_in(core: &mut Core, room: &mut [u8]) -> Handshake {
    match core.stage {
        Stage::DataIn => {
            let rest = &core.data[usize::from(core.sent)..];
            let packet = &rest[..rest.len().min(CONTROL_PACKET)];
            let Some(room) = room.get_mut(..packet.len()) else {
                core.stage = Stage::Stalled;
                return Handshake::Babble;
            };
            room.copy_from_slice(packet);
            let len = packet.len();
            core.sent += len as u16;
            Handshake::Ack(len)
        }
        Stage::StatusIn => {
            core.stage = Stage::Idle;
            if let Some(address) = core.next_address.take() {
                core.address = address;
            }
            Handshake::Ack(0)
        }
        _ => Handshake::Stall,
    }
}

fn parse(bytes: [u8; 8]) -> Setup {
    let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    Setup {
        request_type: bytes[0],
        request: bytes[1],
        value: word(2),
        index: word(4),
        length: word(6),
    }
}

impl Device for Peripheral {
    fn id(&self) -> String {
        self.id.clone()
    }

    fn reset(&self) {
        *lock(&self.core) = Core::default();
        self.function.power_on();
    }

    fn pause(&self) {
        self.function.pause();
    }

    fn resume(&self) {
        self.function.resume();
    }

    fn save(&self) -> Saved {
        Saved::new(&PeripheralState {
            core: lock(&self.core).clone(),
            function: self.function.save(),
        })
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let state: PeripheralState = saved.decode()?;
        self.function.restore(&state.function)?;
        *lock(&self.core) = state.core;
        Ok(())
    }
}
