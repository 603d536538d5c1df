//! The buses that devices can be put on by `bus=`.

use std::sync::Arc;

use devices::ata::Connector;
use devices::fdc::Fdc;
use devices::virtio::scsi::VirtioScsi;
use options::{OptionError, Properties};

use super::usb::UsbHost;

/// A bus, with what it takes to put a device on it.
#[derive(Clone)]
pub enum Bus {
    /// The PCI bus.
    Pci,
    /// The ISA bus.
    Isa,
    /// The floppy controller's.
    Floppy(Arc<Fdc>),
    /// The bus of a SCSI adapter, and what firmware calls the adapter.
    Scsi(Arc<VirtioScsi>, String),
    /// An IDE channel or a port of an AHCI controller, and what firmware calls it.
    Ata(Arc<dyn Connector>, String),
    /// The ports of a USB host controller.
    Usb(Arc<UsbHost>),
}

/// The machine's buses by name, in the order in which they came.
#[derive(Default)]
pub struct Buses(Vec<(String, Bus)>);

impl Buses {
    /// Adds a bus.
    pub fn add(&mut self, name: impl Into<String>, bus: Bus) {
        self.0.push((name.into(), bus));
    }

    /// All buses of the kind that `of_kind` picks.
    pub fn all<T>(&self, of_kind: impl Fn(&Bus) -> Option<T>) -> Vec<T> {
        self.0.iter().filter_map(|(_, bus)| of_kind(bus)).collect()
    }

    /// The bus that `bus=` names, or all there are without it: those of the kind that `of_kind` picks.
    ///
    /// # Errors
    /// If `bus=` names no bus, or one of another kind.
    pub fn take<T>(
        &self,
        properties: &mut Properties,
        of_kind: impl Fn(&Bus) -> Option<T>,
    ) -> Result<Vec<T>, OptionError> {
        let fitting = || self.0.iter().filter_map(|(name, bus)| Some((name, of_kind(bus)?)));
        let Some(wanted) = properties.take("bus") else {
            return Ok(self.all(of_kind));
        };
        // A bus is also known without its number.
        let is_wanted = |name: &str| name == wanted || name.strip_suffix(".0") == Some(&wanted);
        if let Some((_, bus)) = fitting().find(|(name, _)| is_wanted(name)) {
            return Ok(vec![bus]);
        }
        let option = properties.option();
        if self.0.iter().any(|(name, _)| is_wanted(name)) {
            return Err(OptionError::new(format!(
                "{option}: the device can't go on bus '{wanted}'"
            )));
        }
        let names: Vec<&str> = fitting().map(|(name, _)| name.as_str()).collect();
        Err(OptionError::unknown(&format!("{option}: Bus not found:"), &wanted, &names))
    }
}
