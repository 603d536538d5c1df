//! USB 1.1 and 2.0 at full speed (Universal Serial Bus Specification, revision 2.0).
//!
//! ```text
//! vCPU, timer ──► host controller ──► ports ──► Peripheral ──► UsbFunction
//!                 (uhci)                 ▲         │ hub: ports of its own
//!                                        └─ wake ──┘
//! ```
//!
//! - A host controller gives each [`Transaction`] to the devices on its enabled ports; the one with the
//!   address answers.
//! - [`Peripheral`] is what all devices share: address, control transfers, standard requests,
//!   configuration, halted endpoints. [`UsbFunction`] is what a kind of device adds: [`hid`], [`hub`],
//!   [`storage`].
//! - [`UsbBus`] knows the ports by their paths, as `port=` names them.
//!
//! Locks are taken downstream only: controller, hub, device. A device that has something to say upstream
//! ([`Upstream::wake`]) says it with its own lock released.

pub mod descriptor;
pub mod hid;
pub mod hub;
mod peripheral;
pub mod storage;
#[cfg(test)]
mod tests;
pub mod uhci;

use std::sync::{Arc, Mutex, Weak};

use vmstate::{RestoreError, Saved};

use crate::lock;
use descriptor::Descriptors;
pub use peripheral::Peripheral;

/// Largest packet of a full-speed endpoint that is not isochronous.
pub const MAX_PACKET: usize = 64;

/// What kind of transaction it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// Eight bytes that begin a control transfer.
    Setup,
    /// The device sends.
    In,
    /// The device receives.
    Out,
}

/// One transaction on the bus.
#[derive(Debug)]
pub struct Transaction<'a> {
    /// The device's address, up to 127.
    pub address: u8,
    /// The endpoint's number, up to 15.
    pub endpoint: u8,
    /// Its kind.
    pub token: Token,
    /// What the host sends, or the room for what it receives.
    pub data: &'a mut [u8],
}

/// A device's answer to a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// It is done; of the room, so many bytes are filled.
    Ack(usize),
    /// Not now.
    Nak,
    /// The endpoint is halted, or the request is not one that the device knows.
    Stall,
    /// The device sent more than there is room for.
    Babble,
}

/// A request on the control endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Direction, type and recipient.
    pub request_type: u8,
    /// The request.
    pub request: u8,
    /// Its first argument.
    pub value: u16,
    /// Its second argument.
    pub index: u16,
    /// Bytes of data.
    pub length: u16,
}

impl Setup {
    /// Type and request in one number, as the specification's tables have them.
    pub fn code(&self) -> u16 {
        u16::from_be_bytes([self.request_type, self.request])
    }
}

/// The request is not one that the device knows.
#[derive(Debug, PartialEq, Eq)]
pub struct Stalled;

/// What a kind of device adds to [`Peripheral`].
pub trait UsbFunction: Send + Sync {
    /// What the device tells of itself.
    fn descriptors(&self) -> &Descriptors;

    /// Called once with the way to the host.
    fn connect(&self, _waker: Waker) {}

    /// A request that is not a standard one of all devices; returns the answer of one that reads.
    ///
    /// # Errors
    /// If it is not known.
    fn request(&self, setup: &Setup, data: &[u8]) -> Result<Vec<u8>, Stalled>;

    /// The host asks an endpoint for a packet of up to `room.len()` bytes, at most [`MAX_PACKET`].
    fn data_in(&self, endpoint: u8, room: &mut [u8]) -> Handshake;

    /// The host sends a packet of at most [`MAX_PACKET`] bytes to an endpoint.
    fn data_out(&self, _endpoint: u8, _data: &[u8]) -> Handshake {
        Handshake::Stall
    }

    /// The host chose a configuration, or none.
    fn configured(&self, _yes: bool) {}

    /// A transaction for another device: hubs give it to those on their ports.
    fn forward(&self, _transaction: &mut Transaction<'_>) -> Option<Handshake> {
        None
    }

    /// A bus reset.
    fn reset(&self);

    /// The machine's reset.
    fn power_on(&self) {
        self.reset();
    }

    /// Waits for work that is under way, and begins none until [`UsbFunction::resume`].
    fn pause(&self) {}

    /// Ends a pause.
    fn resume(&self) {}

    /// What is to be saved.
    fn save(&self) -> Saved;

    /// Takes over saved state.
    ///
    /// # Errors
    /// If it does not fit; the function is then unchanged.
    fn restore(&self, saved: &Saved) -> Result<(), RestoreError>;
}

/// Who owns a port: a host controller or a hub. Called with no lock of the device held.
pub trait Upstream: Send + Sync {
    /// The device on `port` has something to say; with `resume`, it asks for the bus to be resumed.
    fn wake(&self, port: usize, resume: bool);
}

/// A device's way to tell the host that it has something to say.
#[derive(Clone)]
pub struct Waker(Weak<Peripheral>);

impl Waker {
    /// Tells it.
    pub fn wake(&self) {
        if let Some(peripheral) = self.0.upgrade() {
            peripheral.wake();
        }
    }
}

/// Something with ports to plug devices into.
pub trait Ports: Upstream {
    /// How many ports there are.
    fn count(&self) -> usize;

    /// Plugs a device into `port`, below [`Ports::count`].
    fn plug(&self, port: usize, device: Arc<Peripheral>);
}

struct Place {
    path: String,
    owner: Weak<dyn Ports>,
    port: usize,
    taken: bool,
}

/// The ports of a controller and of the hubs on it, by path: `1` is the controller's first, `1.2` the
/// second of the hub on that.
#[derive(Default)]
pub struct UsbBus {
    places: Mutex<Vec<Place>>,
}

/// A port that a device was promised.
pub struct FreePort {
    /// Its path.
    pub path: String,
    owner: Weak<dyn Ports>,
    port: usize,
}

impl FreePort {
    /// Plugs the device in.
    pub fn plug(self, device: Arc<Peripheral>) {
        if let Some(owner) = self.owner.upgrade() {
            device.connect(self.owner, self.port);
            owner.plug(self.port, device);
        }
    }
}

impl UsbBus {
    /// Adds the ports of a controller, or of a hub on the port `parent`.
    pub fn add_ports<P: Ports + 'static>(&self, parent: Option<&str>, owner: &Arc<P>) {
        let weak = Arc::downgrade(owner);
        let mut places = lock(&self.places);
        places.extend((0..owner.count()).map(|port| Place {
            path: match parent {
                Some(parent) => format!("{parent}.{}", port + 1),
                None => (port + 1).to_string(),
            },
            owner: weak.clone(),
            port,
            taken: false,
        }));
    }

    /// How many ports are free.
    pub fn free(&self) -> usize {
        lock(&self.places).iter().filter(|place| !place.taken).count()
    }

    /// Takes the port called `path`, or the first that is free.
    pub fn take(&self, path: Option<&str>) -> Option<FreePort> {
        let mut places = lock(&self.places);
        let wanted = |place: &&mut Place| path.is_none_or(|path| place.path == path);
        let place = places.iter_mut().filter(|place| !place.taken).find(wanted)?;
        place.taken = true;
        let Place { path, owner, port, .. } = place;
        Some(FreePort { path: path.clone(), owner: owner.clone(), port: *port })
    }
}
