//! What a device tells of itself (specification, chapter 9.6).

/// Types of descriptors.
mod kind {
    pub(super) const DEVICE: u8 = 1;
    pub(super) const CONFIGURATION: u8 = 2;
    pub(super) const STRING: u8 = 3;
    pub(super) const INTERFACE: u8 = 4;
    pub(super) const ENDPOINT: u8 = 5;
}

/// English (United States), the only language.
const LANGUAGE: u16 = 0x0409;

/// Attributes of a configuration: always set, powered by itself, able to wake the host.
pub mod attribute {
    /// Set in all.
    pub const ALWAYS: u8 = 0x80;
    /// It has power of its own.
    pub const SELF_POWERED: u8 = 0x40;
    /// It can wake the host.
    pub const REMOTE_WAKEUP: u8 = 0x20;
}

/// Who a device is.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// Version of the specification, in binary-coded decimal.
    pub usb: u16,
    /// Class; 0 if the interface tells.
    pub class: u8,
    /// Vendor id.
    pub vendor: u16,
    /// Product id.
    pub product: u16,
    /// Release, in binary-coded decimal.
    pub release: u16,
    /// Numbers of the strings that name manufacturer, product and serial number.
    pub strings: [u8; 3],
}

/// How an endpoint is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointKind {
    /// When there is room on the bus.
    Bulk,
    /// Every so many milliseconds.
    Interrupt(u8),
}

/// An endpoint beside the control endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointInfo {
    /// Its number, 1 to 15, with [`TO_HOST`] if it sends.
    pub address: u8,
    /// How it is served.
    pub kind: EndpointKind,
    /// Its largest packet, up to [`MAX_PACKET`](super::MAX_PACKET).
    pub packet: u8,
}

/// Set in the address of an endpoint that sends.
pub const TO_HOST: u8 = 0x80;

impl EndpointInfo {
    /// Endpoint 1, which sends packets of up to `packet` bytes and is asked every `interval` ms.
    pub const fn interrupt(packet: u8, interval: u8) -> Self {
        Self { address: TO_HOST | 1, kind: EndpointKind::Interrupt(interval), packet }
    }

    fn descriptor(&self) -> [u8; 7] {
        let (kind, interval) = match self.kind {
            EndpointKind::Bulk => (2, 0),
            EndpointKind::Interrupt(interval) => (3, interval),
        };
        [7, kind::ENDPOINT, self.address, kind, self.packet, 0, interval]
    }
}

/// The one configuration, with one interface.
#[derive(Clone, Debug)]
pub struct ConfigurationInfo {
    /// Number of the string that names it, 0 for none.
    pub string: u8,
    /// Attributes; see [`attribute`].
    pub attributes: u8,
    /// Power that it takes, in units of 2 mA.
    pub power: u8,
    /// Class, subclass and protocol of the interface.
    pub class: [u8; 3],
    /// Descriptors of the class, between those of the interface and the endpoints.
    pub class_descriptors: Vec<u8>,
    /// The endpoints, at most 16.
    pub endpoints: Vec<EndpointInfo>,
}

/// A device's descriptors.
#[derive(Clone, Debug)]
pub struct Descriptors {
    device: Vec<u8>,
    configuration: Vec<u8>,
    /// By number; numbers without a string are left out.
    strings: Vec<(u8, String)>,
    attributes: u8,
    endpoints: Vec<EndpointInfo>,
}

/// Largest packet of the control endpoint.
pub(super) const CONTROL_PACKET: usize = 8;

impl Descriptors {
    /// The descriptors of such a device.
    pub fn new(
        device: &DeviceInfo,
        configuration: &ConfigurationInfo,
        strings: Vec<(u8, String)>,
    ) -> Self {
        let mut bytes = vec![18, kind::DEVICE];
        bytes.extend(device.usb.to_le_bytes());
        bytes.extend([device.class, 0, 0, CONTROL_PACKET as u8]);
        for word in [device.vendor, device.product, device.release] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(device.strings);
        bytes.push(1);
        let ConfigurationInfo { string, attributes, power, .. } = *configuration;
        let ConfigurationInfo { class, class_descriptors, endpoints, .. } = configuration;
        let total = 9 + 9 + class_descriptors.len() as u16 + 7 * endpoints.len() as u16;
        let mut config = vec![9, kind::CONFIGURATION];
        config.extend(total.to_le_bytes());
        config.extend([1, 1, string, attributes, power]);
        config.extend([9, kind::INTERFACE, 0, 0, endpoints.len() as u8]);
        config.extend(class);
        config.push(0);
        config.extend(class_descriptors);
        config.extend(endpoints.iter().flat_map(EndpointInfo::descriptor));
        let endpoints = endpoints.clone();
        Self { device: bytes, configuration: config, strings, attributes, endpoints }
    }

    /// The descriptor of a type and number, if there is one.
    pub(super) fn get(&self, kind: u8, index: u8) -> Option<Vec<u8>> {
        match (kind, index) {
            (kind::DEVICE, 0) => Some(self.device.clone()),
            (kind::CONFIGURATION, 0) => Some(self.configuration.clone()),
            (kind::STRING, 0) => Some(string([LANGUAGE])),
            (kind::STRING, _) => {
                let (_, text) = self.strings.iter().find(|(number, _)| *number == index)?;
                Some(string(text.encode_utf16()))
            }
            _ => None,
        }
    }

    /// Attributes of the configuration.
    pub(super) fn attributes(&self) -> u8 {
        self.attributes
    }

    /// The endpoint with this address, and its place among all.
    pub(super) fn endpoint(&self, address: u8) -> Option<(usize, &EndpointInfo)> {
        self.endpoints.iter().enumerate().find(|(_, endpoint)| endpoint.address == address)
    }
}

/// A string descriptor; what does not fit into its length is cut.
fn string(units: impl IntoIterator<Item = u16>) -> Vec<u8> {
    let mut bytes = vec![0, kind::STRING];
    bytes.extend(units.into_iter().take(126).flat_map(u16::to_le_bytes));
    bytes[0] = bytes.len() as u8;
    bytes
}
