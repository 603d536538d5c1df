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

/// The one configuration, with one interface and one interrupt endpoint.
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
    /// Descriptors of the class, between those of the interface and the endpoint.
    pub class_descriptors: Vec<u8>,
    /// Largest packet of the endpoint, which is number 1 and sends.
    pub packet: u8,
    /// How often the endpoint is asked, in ms.
    pub interval: u8,
}

/// A device's descriptors.
#[derive(Clone, Debug)]
pub struct Descriptors {
    device: Vec<u8>,
    configuration: Vec<u8>,
    /// By number; numbers without a string are left out.
    strings: Vec<(u8, String)>,
    attributes: u8,
    packet: u8,
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
        let total = 9 + 9 + configuration.class_descriptors.len() as u16 + 7;
        let ConfigurationInfo { string, attributes, power, packet, interval, .. } = *configuration;
        let mut config = vec![9, kind::CONFIGURATION];
        config.extend(total.to_le_bytes());
        config.extend([1, 1, string, attributes, power]);
        config.extend([9, kind::INTERFACE, 0, 0, 1]);
        config.extend(configuration.class);
        config.push(0);
        config.extend(&configuration.class_descriptors);
        config.extend([7, kind::ENDPOINT, 0x81, 3, packet, 0, interval]);
        Self { device: bytes, configuration: config, strings, attributes, packet }
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

    /// Largest packet of the interrupt endpoint.
    pub(super) fn packet(&self) -> usize {
        self.packet.into()
    }
}

/// A string descriptor; what does not fit into its length is cut.
fn string(units: impl IntoIterator<Item = u16>) -> Vec<u8> {
    let mut bytes = vec![0, kind::STRING];
    bytes.extend(units.into_iter().take(126).flat_map(u16::to_le_bytes));
    bytes[0] = bytes.len() as u8;
    bytes
}
