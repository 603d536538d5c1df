//! `-device` and `-drive`: the list of devices that users can add, one file a topic, and what making
//! them from their properties has in common.

mod ahci;
mod bus;
mod display;
mod ide;
mod input;
mod isa;
mod loader;
mod scsi;
mod storage;
mod test;
mod usb;
mod virtio;
mod watchdog;

use std::sync::Arc;

use devices::pci::{Devfn, OptionRom, PciFunction, PciWiring, SlotError};
use options::{OptionError, Properties};
use serde_json::{Map, Value};

pub use bus::{Bus, Buses};
pub use isa::RTC_PATH;
pub use loader::LoadedImage;
pub use usb::UsbHost;

use super::board::Pc;
use crate::BuildError;
use crate::spec::DeviceSpec;

/// A kind of device that users can add.
pub struct Driver {
    /// Its name in `-device`.
    pub name: &'static str,
    /// Other names.
    pub aliases: &'static [&'static str],
    /// The bus it sits on.
    pub bus: &'static str,
    /// What it is, in one line.
    pub description: &'static str,
    make: fn(&mut Pc, &str, Properties) -> Result<(), BuildError>,
}

impl Driver {
    fn is_called(&self, name: &str) -> bool {
        self.name == name || self.aliases.contains(&name)
    }
}

/// Every kind, in the order of `-device help`.
pub fn drivers() -> Vec<&'static Driver> {
    let topics = [
        ahci::DRIVERS,
        display::DRIVERS,
        ide::DRIVERS,
        input::DRIVERS,
        isa::DRIVERS,
        loader::DRIVERS,
        scsi::DRIVERS,
        storage::DRIVERS,
        test::DRIVERS,
        usb::DRIVERS,
        virtio::DRIVERS,
        watchdog::DRIVERS,
    ];
    let mut all: Vec<_> = topics.into_iter().flatten().collect();
    all.sort_by_key(|driver| driver.name);
    all
}

/// A property that can be left to the device.
const ON_OFF_AUTO: &[(&str, Option<bool>)] =
    &[("on", Some(true)), ("off", Some(false)), ("auto", None)];

/// The path of the graphics card that is there by default.
const GRAPHICS_PATH: &str = "/machine/unattached/device[22]";

impl Pc {
    /// Makes the devices of drives that ask for one, then those of `-device`, in their order.
    pub(in crate::pc) fn add_devices(&mut self) -> Result<(), BuildError> {
        let spec = Arc::clone(&self.spec);
        self.add_ide_drives()?;
        if let Some(graphics) = display::implied(&spec) {
            self.add_device(&graphics, GRAPHICS_PATH)?;
        }
        let implied = storage::devices_of(&spec.drives).into_iter();
        let all: Vec<DeviceSpec> = implied.chain(spec.devices.iter().cloned()).collect();
        let mut unnamed = 0;
        for device in &all {
            let path = if let Some(id) = &device.id {
                format!("/machine/peripheral/{id}")
            } else {
                unnamed += 1;
                format!("/machine/peripheral-anon/device[{}]", unnamed - 1)
            };
            self.add_device(device, &path)?;
        }
        self.check_drives()
    }

    /// Makes a PCI function called `name` at a place of its own; the caller adds it to the devices.
    fn make_function<F: PciFunction + 'static>(
        &self,
        path: &str,
        place: &PciPlace,
        name: &str,
        make: impl FnOnce(PciWiring) -> Result<Arc<F>, String>,
    ) -> Result<Arc<F>, BuildError> {
        let failed = |e: String| BuildError::Device(format!("device {path}: {e}"));
        let (devfn, wiring) = place.reserve(self, name).map_err(|e| failed(e.to_string()))?;
        let function = make(wiring).map_err(failed)?;
        self.pci.attach(devfn, function.clone());
        Ok(function)
    }

    /// What `-global` says of the device `driver`, which is part of the board.
    fn global_properties(&self, driver: &str) -> Properties {
        let ours = self.spec.globals.iter().filter(|global| global.driver == driver);
        let values = ours.map(|g| (g.property.clone(), g.value.as_str().into())).collect();
        Properties::from_map(&format!("-global {driver}"), values)
    }

    fn add_device(&mut self, device: &DeviceSpec, path: &str) -> Result<(), BuildError> {
        let drivers = drivers();
        let names: Vec<&str> =
            drivers.iter().flat_map(|d| d.aliases.iter().copied().chain([d.name])).collect();
        let driver = drivers.iter().find(|d| d.is_called(&device.driver)).ok_or_else(|| {
            OptionError::unknown("-device: not a device model name:", &device.driver, &names)
        })?;
        let option = format!("-device {}", device.driver);
        self.make_device(driver, path, &option, device.properties.clone())
    }

    /// Makes a device; `-global` sets what `values` leave open.
    fn make_device(
        &mut self,
        driver: &Driver,
        path: &str,
        option: &str,
        mut values: Map<String, Value>,
    ) -> Result<(), BuildError> {
        for global in self.spec.globals.iter().filter(|global| driver.is_called(&global.driver)) {
            let value = || global.value.as_str().into();
            values.entry(global.property.clone()).or_insert_with(value);
        }
        (driver.make)(self, path, Properties::from_map(option, values))
    }
}

/// Where on the PCI bus a device goes (`bus=`, `addr=`), whether it says that others may be in its slot
/// (`multifunction=`), and its expansion ROM (`romfile=`, `rombar=`).
struct PciPlace {
    address: Option<Devfn>,
    multifunction: bool,
    rom: Option<OptionRom>,
}

impl PciPlace {
    fn take(pc: &Pc, properties: &mut Properties) -> Result<Self, BuildError> {
        Self::take_with_rom(pc, properties, None)
    }

    /// The same for a device that has the ROM `default` unless the user says.
    fn take_with_rom(
        pc: &Pc,
        properties: &mut Properties,
        default: Option<&str>,
    ) -> Result<Self, BuildError> {
        let address = match properties.take("addr") {
            None => None,
            Some(text) => Some(text.parse::<Devfn>().map_err(|e| {
                OptionError::new(format!("{}: addr={text}: {e}", properties.option()))
            })?),
        };
        pc.buses.take(properties, |bus| matches!(bus, Bus::Pci).then_some(()))?;
        let multifunction = properties.take_bool("multifunction")?.unwrap_or(false);
        let rom = pc.take_rom(properties, default)?;
        Ok(Self { address, multifunction, rom })
    }

    /// Reserves the place for a function called `name`; returns it with its wires.
    fn reserve(&self, pc: &Pc, name: &str) -> Result<(Devfn, PciWiring), SlotError> {
        let devfn = pc.pci.reserve_in_slot(self.address, name, self.multifunction)?;
        let wiring = PciWiring {
            multifunction: self.multifunction,
            rom: self.rom.clone(),
            ..pc.pci.wiring(devfn, 1)
        };
        Ok((devfn, wiring))
    }
}
