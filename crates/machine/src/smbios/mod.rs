//! The SMBIOS tables: what software is told about the machine's maker, case, processors and memory
//! (DMTF DSP0134, System Management BIOS Reference Specification 3.6).
//!
//! [`Smbios::new`] makes the table of structures and its entry point, without addresses and checksums, as
//! firmware takes them from fw_cfg. [`Smbios::place`] puts them where software searches, for machines
//! without firmware.
//!
//! Invariant: handles are unique and count up within a type, in the order in which the structures lie.

mod spec;
mod structure;
#[cfg(test)]
mod tests;

pub use spec::{
    Bios, Board, Chassis, Connector, EntryPoint, MemoryDevice, OemString, OnboardDevice, Processor,
    SmbiosSpec, System,
};

use uuid::Uuid;

use crate::pc::layout::{FOUR_GIB, Layout};
use crate::spec::Smp;
use structure::{Structure, Table};

/// Files of fw_cfg.
pub const ANCHOR_FILE: &str = "etc/smbios/smbios-anchor";
/// See [`ANCHOR_FILE`].
pub const TABLES_FILE: &str = "etc/smbios/smbios-tables";

/// What the tables tell where nothing else is asked for. Guests know virtual machines of this kind by
/// these names.
const MANUFACTURER: &str = "QEMU";
const PRODUCT: &str = "Standard PC (i440FX + PIIX, 1996)";
const VERSION: &str = "pc-i440fx-7.2";
const SOCKET_PREFIX: &str = "CPU";
const LOCATOR_PREFIX: &str = "DIMM";
/// Speed of processors in MHz.
const SPEED: u16 = 2000;
/// The firmware of machines without one.
const OWN_VENDOR: &str = "Rhea";
const OWN_VERSION: &str = env!("CARGO_PKG_VERSION");
const OWN_DATE: &str = "11/29/2026";

/// Handles of the first structure of each type.
mod handle {
    pub(super) const BIOS: u16 = 0;
    pub(super) const SYSTEM: u16 = 0x100;
    pub(super) const BOARD: u16 = 0x200;
    pub(super) const CHASSIS: u16 = 0x300;
    pub(super) const PROCESSOR: u16 = 0x400;
    pub(super) const CONNECTOR: u16 = 0x800;
    pub(super) const OEM_STRINGS: u16 = 0xe00;
    pub(super) const MEMORY_ARRAY: u16 = 0x1000;
    pub(super) const MEMORY_DEVICE: u16 = 0x1100;
    pub(super) const MAPPED_ADDRESS: u16 = 0x1300;
    pub(super) const BOOT: u16 = 0x2000;
    pub(super) const ONBOARD_DEVICE: u16 = 0x2900;
    pub(super) const END: u16 = 0x7f00;
}

/// A memory device has at most this many MiB.
const DEVICE_MAX_MIB: u64 = 16 << 10;
/// The version that the 32-bit entry point tells, and that of the 64-bit one.
const VERSION_2: [u8; 2] = [2, 8];
const VERSION_3: [u8; 2] = [3, 0];
/// The longest table that the 32-bit entry point has numbers for.
const LENGTH_MAX: usize = 0xffff;

/// Why there can be no tables. The text says it all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SmbiosError(String);

/// An [`OnboardDevice`] and where it is: bus 0, this device and function.
pub type OnboardPlace = (OnboardDevice, u8);

/// What the tables depend on besides what the user says.
#[derive(Clone, Debug)]
pub struct Config<'a> {
    /// What the user says.
    pub spec: &'a SmbiosSpec,
    /// Structures that take the place of ours of their types; see [`check_structure`].
    pub structures: Vec<Vec<u8>>,
    /// Texts of type 11.
    pub oem_strings: Vec<Vec<u8>>,
    /// Devices on the board.
    pub onboard_devices: Vec<OnboardPlace>,
    /// The machine's UUID.
    pub uuid: Uuid,
    /// Processors.
    pub smp: Smp,
    /// EAX and EDX of CPUID leaf 1, EDX in the upper half.
    pub processor_id: u64,
    /// Memory.
    pub layout: Layout,
    /// There is firmware that describes itself.
    pub firmware: bool,
}

/// The tables without addresses and checksums.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Smbios {
    /// The entry point.
    pub anchor: Vec<u8>,
    /// The structures.
    pub tables: Vec<u8>,
}

/// Offsets in the entry points.
mod anchor {
    /// 32-bit: checksum, start and checksum of the second part, address.
    pub(super) const CHECKSUM: usize = 4;
    pub(super) const SECOND: usize = 16;
    pub(super) const SECOND_CHECKSUM: usize = 21;
    pub(super) const ADDRESS: usize = 24;
    /// 64-bit: checksum, address.
    pub(super) const CHECKSUM_64: usize = 5;
    pub(super) const ADDRESS_64: usize = 16;
}

/// Checks that `bytes` are one structure with its strings; returns its type.
///
/// # Errors
/// Says what is wrong.
pub fn check_structure(bytes: &[u8]) -> Result<u8, String> {
    let [kind, length, _, _, ..] = *bytes else {
        return Err("it is shorter than a structure's header".to_owned());
    };
    let strings = match bytes.get(usize::from(length)..) {
        Some(strings) if length >= 4 => strings,
        _ => {
            return Err(format!("its formatted area has {length} bytes, the file {}", bytes.len()));
        }
    };
    let end = strings.windows(2).position(|pair| pair == [0, 0]);
    match end {
        Some(end) if end + 2 == strings.len() => Ok(kind),
        Some(_) => Err("something follows its strings".to_owned()),
        None => Err("its strings do not end in two zeroes".to_owned()),
    }
}

impl Smbios {
    /// Makes the tables.
    ///
    /// # Errors
    /// If a structure or the whole is too long, or there are fields for a structure that is given as a
    /// file.
    pub fn new(config: &Config) -> Result<Self, SmbiosError> {
        let mut table = Table::default();
        for structure in &config.structures {
            let kind = structure[0];
            if has_fields(config.spec, kind) {
                let text = format!("can't load type {kind} struct, fields already specified!");
                return Err(SmbiosError(text));
            }
            table.add_bytes(structure.clone());
        }
        let given = |kind: u8| config.structures.iter().any(|bytes| bytes[0] == kind);
        for structure in structures(config).into_iter().filter(|s| !given(s.kind())) {
            table.add(structure)?;
        }
        if config.spec.entry_point == EntryPoint::Version2 && table.bytes.len() > LENGTH_MAX {
            return Err(SmbiosError(format!(
                "SMBIOS 2.1 table length {} exceeds {LENGTH_MAX}; use -machine \
                 smbios-entry-point-type=64",
                table.bytes.len()
            )));
        }
        let anchor = match config.spec.entry_point {
            EntryPoint::Version2 => anchor_32(&table),
            EntryPoint::Version3 => anchor_64(&table),
        };
        Ok(Self { anchor, tables: table.bytes })
    }

    /// The tables from `start` on, a multiple of 16: address and contents of each piece.
    pub fn place(mut self, start: u64) -> Vec<(u64, Vec<u8>)> {
        let at = start + (self.anchor.len() as u64).next_multiple_of(16);
        if self.anchor.starts_with(b"_SM_") {
            self.anchor[anchor::ADDRESS..][..4].copy_from_slice(&(at as u32).to_le_bytes());
            set_checksum(
                &mut self.anchor[anchor::SECOND..],
                anchor::SECOND_CHECKSUM - anchor::SECOND,
            );
            set_checksum(&mut self.anchor, anchor::CHECKSUM);
        } else {
            self.anchor[anchor::ADDRESS_64..][..8].copy_from_slice(&at.to_le_bytes());
            set_checksum(&mut self.anchor, anchor::CHECKSUM_64);
        }
        vec![(start, self.anchor), (at, self.tables)]
    }
}

/// Has all bytes add up to zero by the one at `at`.
fn set_checksum(bytes: &mut [u8], at: usize) {
    bytes[at] = 0;
    bytes[at] = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
}

/// The 32-bit entry point (section 5.2.1).
fn anchor_32(table: &Table) -> Vec<u8> {
    let mut anchor = b"_SM_\0\x1f".to_vec();
    anchor.extend(VERSION_2);
    anchor.extend((table.longest as u16).to_le_bytes());
    // Revision of the entry point, and its formatted area.
    anchor.extend([0; 6]);
    anchor.extend(b"_DMI_\0");
    anchor.extend((table.bytes.len() as u16).to_le_bytes());
    anchor.extend([0; 4]);
    anchor.extend(table.count.to_le_bytes());
    anchor.push(VERSION_2[0] << 4 | VERSION_2[1]);
    anchor
}

/// The 64-bit entry point (section 5.2.2).
fn anchor_64(table: &Table) -> Vec<u8> {
    let mut anchor = b"_SM3_\0\x18".to_vec();
    anchor.extend(VERSION_3);
    // Revision of the specification's text and of the entry point, and a reserved byte.
    anchor.extend([0, 1, 0]);
    anchor.extend((table.bytes.len() as u32).to_le_bytes());
    anchor.extend([0; 8]);
    anchor
}

fn has_fields(spec: &SmbiosSpec, kind: u8) -> bool {
    match kind {
        0 => spec.bios.is_some(),
        1 => spec.system.is_some(),
        2 => spec.board.is_some(),
        3 => spec.chassis.is_some(),
        4 => spec.processor.is_some(),
        8 => !spec.connectors.is_empty(),
        11 => !spec.oem_strings.is_empty(),
        17 => spec.memory_device.is_some(),
        41 => !spec.onboard_devices.is_empty(),
        _ => false,
    }
}

/// All structures of our own, in their order.
fn structures(config: &Config) -> Vec<Structure> {
    let spec = config.spec;
    let mut all = Vec::new();
    if let Some(bios) = &spec.bios {
        all.push(describe_bios(bios));
    } else if !config.firmware {
        all.push(describe_bios(&Bios {
            vendor: Some(OWN_VENDOR.to_owned()),
            version: Some(OWN_VERSION.to_owned()),
            date: Some(OWN_DATE.to_owned()),
            ..Bios::default()
        }));
    }
    all.push(describe_system(&spec.system.clone().unwrap_or_default(), config.uuid));
    all.extend(spec.board.as_ref().map(describe_board));
    all.push(describe_chassis(&spec.chassis.clone().unwrap_or_default()));
    let processor = spec.processor.clone().unwrap_or_default();
    all.extend((0..config.smp.sockets as u16).map(|n| describe_processor(&processor, n, config)));
    all.extend((handle::CONNECTOR..).zip(&spec.connectors).map(describe_connector));
    if !config.oem_strings.is_empty() {
        let mut structure = Structure::new(11, handle::OEM_STRINGS);
        structure.byte(config.oem_strings.len().min(255) as u8);
        config.oem_strings.iter().for_each(|text| structure.add_string(text));
        all.push(structure);
    }
    all.extend(describe_memory(&spec.memory_device.clone().unwrap_or_default(), &config.layout));
    let mut boot = Structure::new(32, handle::BOOT);
    // Reserved, then: no errors.
    boot.bytes(&[0; 7]);
    all.push(boot);
    all.extend((handle::ONBOARD_DEVICE..).zip(&config.onboard_devices).map(describe_onboard));
    all.push(Structure::new(127, handle::END));
    all
}

/// The text, or what stands for it by default.
fn or<'a>(text: &'a Option<String>, default: &'a str) -> Option<&'a str> {
    Some(text.as_deref().unwrap_or(default))
}

fn describe_bios(bios: &Bios) -> Structure {
    /// Start of the BIOS's segment.
    const SEGMENT: u16 = 0xe800;
    /// Characteristics are not given, but those in the extension's second byte.
    const NOT_SUPPORTED: u64 = 1 << 3;
    const TARGETED_CONTENT: u8 = 1 << 2;
    const UEFI: u8 = 1 << 3;
    const VIRTUAL_MACHINE: u8 = 1 << 4;
    let mut s = Structure::new(0, handle::BIOS);
    s.text(bios.vendor.as_deref());
    s.text(bios.version.as_deref());
    s.word(SEGMENT);
    s.text(bios.date.as_deref());
    // Size in units of 64 KiB, less one.
    s.byte(0);
    s.bytes(&NOT_SUPPORTED.to_le_bytes());
    let uefi = if bios.uefi { UEFI } else { 0 };
    s.bytes(&[0, TARGETED_CONTENT | VIRTUAL_MACHINE | uefi]);
    let (major, minor) = bios.release.unwrap_or_default();
    s.bytes(&[major, minor]);
    // There is no embedded controller.
    s.bytes(&[0xff; 2]);
    s
}

fn describe_system(system: &System, uuid: Uuid) -> Structure {
    const POWER_SWITCH: u8 = 6;
    let mut s = Structure::new(1, handle::SYSTEM);
    s.text(or(&system.manufacturer, MANUFACTURER));
    s.text(or(&system.product, PRODUCT));
    s.text(or(&system.version, VERSION));
    s.text(system.serial.as_deref());
    s.bytes(&system.uuid.unwrap_or(uuid).to_bytes_le());
    s.byte(POWER_SWITCH);
    s.text(system.sku.as_deref());
    s.text(system.family.as_deref());
    s
}

fn describe_board(board: &Board) -> Structure {
    const HOSTING: u8 = 1;
    const MOTHERBOARD: u8 = 10;
    let mut s = Structure::new(2, handle::BOARD);
    s.text(or(&board.manufacturer, MANUFACTURER));
    s.text(or(&board.product, PRODUCT));
    s.text(or(&board.version, VERSION));
    s.text(board.serial.as_deref());
    s.text(board.asset.as_deref());
    s.byte(HOSTING);
    s.text(board.location.as_deref());
    s.word(handle::CHASSIS);
    // No objects are contained.
    s.bytes(&[MOTHERBOARD, 0]);
    s
}

fn describe_chassis(chassis: &Chassis) -> Structure {
    const OTHER: u8 = 1;
    const SAFE: u8 = 3;
    const UNKNOWN: u8 = 2;
    let mut s = Structure::new(3, handle::CHASSIS);
    s.text(or(&chassis.manufacturer, MANUFACTURER));
    s.byte(OTHER);
    s.text(or(&chassis.version, VERSION));
    s.text(chassis.serial.as_deref());
    s.text(chassis.asset.as_deref());
    // State at boot, of the power supply, of temperature; then security.
    s.bytes(&[SAFE, SAFE, SAFE, UNKNOWN]);
    // The maker's own; height and power cords, not given; no elements, of no length.
    s.bytes(&[0; 4 + 1 + 1 + 1 + 1]);
    s.text(chassis.sku.as_deref());
    s
}

fn describe_processor(processor: &Processor, socket: u16, config: &Config) -> Structure {
    const CENTRAL: u8 = 3;
    const OTHER: u8 = 1;
    /// The socket is populated, and the processor enabled.
    const ENABLED: u8 = 0x41;
    const NO_CACHE: [u8; 6] = [0xff; 6];
    const UNKNOWN: u16 = 1 << 1;
    let smp = &config.smp;
    let mut s = Structure::new(4, handle::PROCESSOR + socket);
    let prefix = processor.socket_prefix.as_deref().unwrap_or(SOCKET_PREFIX);
    s.text(Some(&format!("{prefix} {socket}")));
    s.bytes(&[CENTRAL, OTHER]);
    s.text(or(&processor.manufacturer, MANUFACTURER));
    s.bytes(&processor.id.unwrap_or(config.processor_id).to_le_bytes());
    s.text(or(&processor.version, VERSION));
    // Voltage and external clock are not known.
    s.bytes(&[0; 3]);
    s.word(processor.max_speed.unwrap_or(SPEED));
    s.word(processor.current_speed.unwrap_or(SPEED));
    s.bytes(&[ENABLED, OTHER]);
    s.bytes(&NO_CACHE);
    s.text(processor.serial.as_deref());
    s.text(processor.asset.as_deref());
    s.text(processor.part.as_deref());
    // At most 64 of each.
    let (cores, threads) = (smp.cores as u8, (smp.cores * smp.threads) as u8);
    s.bytes(&[cores, cores, threads]);
    s.word(UNKNOWN);
    s.word(OTHER.into());
    if config.spec.entry_point == EntryPoint::Version3 {
        [cores, cores, threads].into_iter().for_each(|count| s.word(count.into()));
    }
    s
}

fn describe_connector((handle, connector): (u16, &Connector)) -> Structure {
    const NONE: u8 = 0;
    let mut s = Structure::new(8, handle);
    s.text(connector.internal.as_deref());
    s.byte(NONE);
    s.text(connector.external.as_deref());
    s.bytes(&[connector.connector, connector.port]);
    s
}

/// The array of memory devices, the devices, and the addresses that they are at.
fn describe_memory(device: &MemoryDevice, layout: &Layout) -> Vec<Structure> {
    const OTHER: u8 = 1;
    const SYSTEM_MEMORY: u8 = 3;
    const MULTI_BIT_ECC: u8 = 6;
    const NO_ERROR_HANDLE: u16 = 0xfffe;
    const DIMM: u8 = 9;
    const RAM: u8 = 7;
    const TECHNOLOGY_OTHER: u16 = 1 << 1;
    const UNKNOWN_WIDTH: u16 = 0xffff;
    let mib = (layout.low_end + layout.high_size) >> 20;
    let devices = mib.div_ceil(DEVICE_MAX_MIB);
    let mut array = Structure::new(16, handle::MEMORY_ARRAY);
    array.bytes(&[OTHER, SYSTEM_MEMORY, MULTI_BIT_ECC]);
    // A machine has at most 1 TiB, so that all numbers fit here and the extended ones are not used.
    array.dword((mib << 10) as u32);
    array.word(NO_ERROR_HANDLE);
    array.word(devices as u16);
    array.bytes(&[0; 8]);
    let mut all = vec![array];
    for n in 0..devices {
        let size = (mib - n * DEVICE_MAX_MIB).min(DEVICE_MAX_MIB);
        let mut s = Structure::new(17, handle::MEMORY_DEVICE + n as u16);
        s.word(handle::MEMORY_ARRAY);
        s.word(NO_ERROR_HANDLE);
        s.word(UNKNOWN_WIDTH);
        s.word(UNKNOWN_WIDTH);
        s.word(size as u16);
        // Of no set.
        s.bytes(&[DIMM, 0]);
        let prefix = device.locator_prefix.as_deref().unwrap_or(LOCATOR_PREFIX);
        s.text(Some(&format!("{prefix} {n}")));
        s.text(device.bank.as_deref());
        s.byte(RAM);
        s.word(TECHNOLOGY_OTHER);
        s.word(device.speed);
        s.text(or(&device.manufacturer, MANUFACTURER));
        s.text(device.serial.as_deref());
        s.text(device.asset.as_deref());
        s.text(device.part.as_deref());
        // Unknown rank, no extended size.
        s.bytes(&[0; 1 + 4]);
        s.word(device.speed);
        // Unknown voltages.
        s.bytes(&[0; 6]);
        all.push(s);
    }
    let ranges = [(0, layout.low_end), (FOUR_GIB, layout.high_size)];
    let ranges = ranges.into_iter().filter(|(_, len)| *len > 0);
    for ((start, len), handle) in ranges.zip(handle::MAPPED_ADDRESS..) {
        let mut s = Structure::new(19, handle);
        s.dword((start >> 10) as u32);
        s.dword(((start + len - 1) >> 10) as u32);
        s.word(handle::MEMORY_ARRAY);
        // One device a row; no extended addresses.
        s.byte(1);
        s.bytes(&[0; 16]);
        all.push(s);
    }
    all
}

fn describe_onboard((handle, (device, devfn)): (u16, &OnboardPlace)) -> Structure {
    const ENABLED: u8 = 1 << 7;
    let mut s = Structure::new(41, handle);
    s.text(device.designation.as_deref());
    s.bytes(&[ENABLED | device.kind, device.instance]);
    // Segment group and bus.
    s.bytes(&[0; 3]);
    s.byte(*devfn);
    s
}
