//! What the tables are to say, as `-smbios` gives it. Texts that are not given have the machine's values
//! or are left out.

use std::path::PathBuf;

use uuid::Uuid;

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SmbiosSpec {
    /// Which of the two entry points there is.
    pub entry_point: EntryPoint,
    /// Structures that are in files, one each.
    pub files: Vec<PathBuf>,
    /// The firmware (type 0), which else describes itself.
    pub bios: Option<Bios>,
    /// The system (type 1).
    pub system: Option<System>,
    /// The board (type 2), which else is not described.
    pub board: Option<Board>,
    /// The case (type 3).
    pub chassis: Option<Chassis>,
    /// Each processor (type 4).
    pub processor: Option<Processor>,
    /// Connectors (type 8).
    pub connectors: Vec<Connector>,
    /// The maker's own texts (type 11).
    pub oem_strings: Vec<OemString>,
    /// Each memory device (type 17).
    pub memory_device: Option<MemoryDevice>,
    /// Devices on the board (type 41).
    pub onboard_devices: Vec<OnboardDevice>,
}

/// How the tables are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EntryPoint {
    /// By the 32-bit entry point of version 2.
    #[default]
    Version2,
    /// By the 64-bit entry point of version 3.
    Version3,
}

/// Type 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bios {
    /// Who made it.
    pub vendor: Option<String>,
    /// Its version.
    pub version: Option<String>,
    /// When it was released, mm/dd/yyyy.
    pub date: Option<String>,
    /// Major and minor number of the release.
    pub release: Option<(u8, u8)>,
    /// It is UEFI firmware.
    pub uefi: bool,
}

/// Type 1.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct System {
    /// Who made it.
    pub manufacturer: Option<String>,
    /// What it is.
    pub product: Option<String>,
    /// Its version.
    pub version: Option<String>,
    /// Its serial number.
    pub serial: Option<String>,
    /// Its number in a catalogue.
    pub sku: Option<String>,
    /// Its family.
    pub family: Option<String>,
    /// Its UUID, if it is not the machine's.
    pub uuid: Option<Uuid>,
}

/// Type 2.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Board {
    /// Who made it.
    pub manufacturer: Option<String>,
    /// What it is.
    pub product: Option<String>,
    /// Its version.
    pub version: Option<String>,
    /// Its serial number.
    pub serial: Option<String>,
    /// Its asset tag.
    pub asset: Option<String>,
    /// Where in the case it is.
    pub location: Option<String>,
}

/// Type 3.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chassis {
    /// Who made it.
    pub manufacturer: Option<String>,
    /// Its version.
    pub version: Option<String>,
    /// Its serial number.
    pub serial: Option<String>,
    /// Its asset tag.
    pub asset: Option<String>,
    /// Its number in a catalogue.
    pub sku: Option<String>,
}

/// Type 4.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Processor {
    /// What the sockets are called, before their number.
    pub socket_prefix: Option<String>,
    /// Who made it.
    pub manufacturer: Option<String>,
    /// Its version.
    pub version: Option<String>,
    /// Its serial number.
    pub serial: Option<String>,
    /// Its asset tag.
    pub asset: Option<String>,
    /// Its part number.
    pub part: Option<String>,
    /// The fastest that the socket allows, in MHz.
    pub max_speed: Option<u16>,
    /// Its speed in MHz.
    pub current_speed: Option<u16>,
    /// EAX and EDX of CPUID leaf 1, EDX in the upper half.
    pub id: Option<u64>,
}

/// Type 8.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Connector {
    /// What it is called on the board.
    pub internal: Option<String>,
    /// What it is called outside.
    pub external: Option<String>,
    /// Its form (SMBIOS, section 7.9.2).
    pub connector: u8,
    /// What it is for (SMBIOS, section 7.9.3).
    pub port: u8,
}

/// One text of type 11.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OemString {
    /// This.
    Text(String),
    /// What is in this file.
    File(PathBuf),
}

/// Type 17.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryDevice {
    /// What the slots are called, before their number.
    pub locator_prefix: Option<String>,
    /// The bank.
    pub bank: Option<String>,
    /// Who made it.
    pub manufacturer: Option<String>,
    /// Its serial number.
    pub serial: Option<String>,
    /// Its asset tag.
    pub asset: Option<String>,
    /// Its part number.
    pub part: Option<String>,
    /// Its speed in millions of transfers a second; 0 if unknown.
    pub speed: u16,
}

/// One device of type 41.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OnboardDevice {
    /// What it is called on the board.
    pub designation: Option<String>,
    /// What it is (SMBIOS, section 7.42.2), 1 for anything else.
    pub kind: u8,
    /// Which of its kind.
    pub instance: u8,
    /// The PCI device that it is.
    pub pci_device: Option<String>,
}
