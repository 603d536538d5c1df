//! A hub with up to eight ports (specification, chapter 11).

use std::sync::{Arc, Mutex, OnceLock};

use serde::{Deserialize, Serialize};
use vmstate::{RestoreError, Saved, State};

use super::descriptor::{ConfigurationInfo, Descriptors, DeviceInfo, EndpointInfo, attribute};
use super::{
    Handshake, Peripheral, Ports, Setup, Stalled, Transaction, Upstream, UsbFunction, Waker,
};
use crate::lock;

/// Most ports of a hub, and how many it has unless told otherwise.
pub const MAX_PORTS: usize = 8;

/// Class requests, by [`Setup::code`].
mod request {
    pub(super) const HUB_STATUS: u16 = 0xa000;
    pub(super) const PORT_STATUS: u16 = 0xa300;
    pub(super) const CLEAR_HUB_FEATURE: u16 = 0x2001;
    pub(super) const SET_HUB_FEATURE: u16 = 0x2003;
    pub(super) const CLEAR_PORT_FEATURE: u16 = 0x2301;
    pub(super) const SET_PORT_FEATURE: u16 = 0x2303;
    pub(super) const HUB_DESCRIPTOR: u16 = 0xa006;
}

/// A port's status; its changes are the same bits, sixteen higher. Features have the bits' numbers.
mod status {
    pub(super) const CONNECTED: u32 = 1 << 0;
    pub(super) const ENABLED: u32 = 1 << 1;
    pub(super) const SUSPENDED: u32 = 1 << 2;
    pub(super) const RESET: u32 = 1 << 4;
    pub(super) const POWERED: u32 = 1 << 8;
    pub(super) const CHANGES: u32 = 0x1f << 16;
    pub(super) const ALL: u32 = CHANGES | 0x31f;
}

/// The change of a bit of a port's status.
const fn change(bit: u32) -> u32 {
    bit << 16
}

/// Bytes of a bitmap with a bit for the hub and each of its ports.
fn bitmap_len(ports: usize) -> usize {
    (1 + ports).div_ceil(8)
}

/// Descriptor of the class: port power is switched one by one and is always good after 2 ms, no
/// compound device, no overcurrent protection; all devices can be removed.
fn hub_descriptor(ports: usize) -> Vec<u8> {
    let bitmap = bitmap_len(ports);
    let length = 7 + 2 * bitmap;
    let mut descriptor = vec![length as u8, 0x29, ports as u8, 0x0a, 0, 1, 0];
    descriptor.resize(7 + bitmap, 0);
    descriptor.resize(length, 0xff);
    descriptor
}

/// Saved state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct HubState {
    ports: Vec<u32>,
}

impl State for HubState {
    const NAME: &'static str = "usb-hub";
    const VERSION: u32 = 2;

    fn validate(&self) -> Result<(), String> {
        match self.ports.iter().find(|&&port| port & !status::ALL != 0) {
            Some(port) => Err(format!("port status {port:#x}")),
            None => Ok(()),
        }
    }
}

/// A hub.
pub struct UsbHub {
    descriptors: Descriptors,
    devices: Vec<OnceLock<Arc<Peripheral>>>,
    state: Mutex<HubState>,
    waker: OnceLock<Waker>,
}

impl UsbHub {
    /// A hub with this serial number and as many ports, 1 to [`MAX_PORTS`].
    pub fn new(serial: String, ports: usize) -> Arc<Self> {
        let ports = ports.clamp(1, MAX_PORTS);
        let device = DeviceInfo {
            usb: 0x0110,
            class: 9,
            vendor: 0x0409,
            product: 0x55aa,
            release: 0x0101,
            strings: [1, 2, 3],
        };
        let configuration = ConfigurationInfo {
            string: 0,
            attributes: attribute::ALWAYS | attribute::SELF_POWERED | attribute::REMOTE_WAKEUP,
            power: 0,
            class: [9, 0, 0],
            class_descriptors: Vec::new(),
            endpoints: vec![EndpointInfo::interrupt(bitmap_len(ports) as u8, 255)],
        };
        let strings = vec![(1, "QEMU".into()), (2, "QEMU USB Hub".into()), (3, serial)];
        Arc::new(Self {
            descriptors: Descriptors::new(&device, &configuration, strings),
            devices: (0..ports).map(|_| OnceLock::new()).collect(),
            state: Mutex::new(HubState { ports: vec![status::POWERED; ports] }),
            waker: OnceLock::new(),
        })
    }

    fn wake_host(&self) {
        if let Some(waker) = self.waker.get() {
            waker.wake();
        }
    }

    fn power_on_status(&self, port: usize) -> u32 {
        let connected = self.devices[port].get().is_some();
        status::POWERED | if connected { status::CONNECTED | change(status::CONNECTED) } else { 0 }
    }

    fn set_port_feature(&self, port: usize, feature: u16) -> Result<(), Stalled> {
        let mut state = lock(&self.state);
        let bits = &mut state.ports[port];
        match 1_u32.checked_shl(feature.into()).unwrap_or(0) {
            status::SUSPENDED => *bits |= status::SUSPENDED,
            status::RESET => {
                // It is over at once.
                *bits &= !status::SUSPENDED;
                *bits |= change(status::RESET);
                let Some(device) = self.devices[port].get() else { return Ok(()) };
                *bits |= status::ENABLED;
                device.bus_reset();
            }
            status::POWERED => {
                if *bits & status::POWERED == 0 {
                    *bits = self.power_on_status(port);
                }
            }
            _ => return Err(Stalled),
        }
        Ok(())
    }

    fn clear_port_feature(&self, port: usize, feature: u16) -> Result<(), Stalled> {
        let mut state = lock(&self.state);
        let bits = &mut state.ports[port];
        match 1_u32.checked_shl(feature.into()).unwrap_or(0) {
            status::ENABLED => *bits &= !status::ENABLED,
            status::SUSPENDED => {
                if *bits & status::SUSPENDED != 0 {
                    *bits &= !status::SUSPENDED;
                    *bits |= change(status::SUSPENDED);
                }
            }
            status::POWERED => *bits = 0,
            bit if bit & status::CHANGES != 0 => *bits &= !bit,
            _ => return Err(Stalled),
        }
        Ok(())
    }
}

impl UsbFunction for UsbHub {
    fn descriptors(&self) -> &Descriptors {
        &self.descriptors
    }

    fn connect(&self, waker: Waker) {
        let _ = self.waker.set(waker);
    }

    fn request(&self, setup: &Setup, _data: &[u8]) -> Result<Vec<u8>, Stalled> {
        let port = || usize::from(setup.index).checked_sub(1).filter(|&p| p < self.count());
        match setup.code() {
            request::HUB_STATUS => Ok(vec![0; 4]),
            request::CLEAR_HUB_FEATURE | request::SET_HUB_FEATURE if setup.value <= 1 => {
                Ok(Vec::new())
            }
            request::HUB_DESCRIPTOR => Ok(hub_descriptor(self.count())),
            request::PORT_STATUS => {
                let port = port().ok_or(Stalled)?;
                Ok(lock(&self.state).ports[port].to_le_bytes().to_vec())
            }
            request::SET_PORT_FEATURE => {
                self.set_port_feature(port().ok_or(Stalled)?, setup.value).map(|()| Vec::new())
            }
            request::CLEAR_PORT_FEATURE => {
                self.clear_port_feature(port().ok_or(Stalled)?, setup.value).map(|()| Vec::new())
            }
            _ => Err(Stalled),
        }
    }

    fn data_in(&self, _endpoint: u8, room: &mut [u8]) -> Handshake {
        let state = lock(&self.state);
        let changed = state.ports.iter().zip(1..).fold(0_u16, |changed, (&bits, port)| {
            if bits & status::CHANGES != 0 { changed | 1 << port } else { changed }
        });
        if changed == 0 {
            return Handshake::Nak;
        }
        let len = bitmap_len(self.count());
        room[..len].copy_from_slice(&changed.to_le_bytes()[..len]);
        Handshake::Ack(len)
    }

    fn forward(&self, transaction: &mut Transaction<'_>) -> Option<Handshake> {
        let ports = lock(&self.state).ports.clone();
        let open = |bits: u32| bits & (status::ENABLED | status::SUSPENDED) == status::ENABLED;
        let devices = self.devices.iter().zip(ports).filter(|(_, bits)| open(*bits));
        devices.filter_map(|(device, _)| device.get()).find_map(|d| d.transact(transaction))
    }

    fn reset(&self) {
        let mut state = lock(&self.state);
        state.ports = (0..self.count()).map(|port| self.power_on_status(port)).collect();
    }

    fn save(&self) -> Saved {
        Saved::new(&*lock(&self.state))
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let restored: HubState = saved.decode()?;
        if restored.ports.len() != self.count() {
            return Err(RestoreError::Damaged {
                name: HubState::NAME,
                reason: format!("{} ports of {}", restored.ports.len(), self.count()),
            });
        }
        *lock(&self.state) = restored;
        Ok(())
    }
}

impl Upstream for UsbHub {
    fn wake(&self, port: usize, resume: bool) {
        let mut state = lock(&self.state);
        if let Some(bits) = state.ports.get_mut(port)
            && *bits & status::SUSPENDED != 0
            && resume
        {
            *bits &= !status::SUSPENDED;
            *bits |= change(status::SUSPENDED);
        }
        drop(state);
        self.wake_host();
    }
}

impl Ports for UsbHub {
    fn count(&self) -> usize {
        self.devices.len()
    }

    fn plug(&self, port: usize, device: Arc<Peripheral>) {
        if self.devices[port].set(device).is_ok() {
            lock(&self.state).ports[port] |= self.power_on_status(port);
        }
        self.wake_host();
    }
}
