//! The SMBIOS tables of this machine: for firmware as files of fw_cfg, and in memory for machines that boot
//! a kernel directly.

use super::has_firmware;
use crate::BuildError;
use crate::files;
use crate::pc::board::Pc;
use crate::pc::layout::{HIGH_MEMORY, SMBIOS_TABLES};
use crate::smbios::{self, Config, OemString, OnboardPlace, Smbios};

/// Files of structures and texts have at most this many bytes.
const FILE_MAX: u64 = 1 << 20;

impl Pc {
    /// Makes the tables.
    fn smbios(&self) -> Result<Smbios, BuildError> {
        let spec = &self.spec.smbios;
        let refused = |text: String| BuildError::Device(format!("-smbios {text}"));
        let mut structures = Vec::new();
        for path in &spec.files {
            let failed = |reason: &dyn std::fmt::Display| {
                let path = path.display();
                refused(format!("file={path}: Cannot read SMBIOS file {path}: {reason}"))
            };
            let bytes = files::read(path, FILE_MAX).map_err(|e| failed(&e))?;
            smbios::check_structure(&bytes).map_err(|e| failed(&e))?;
            structures.push(bytes);
        }
        let mut oem_strings = Vec::new();
        for string in &spec.oem_strings {
            oem_strings.push(match string {
                OemString::Text(text) => text.clone().into_bytes(),
                OemString::File(path) => files::read(path, FILE_MAX).map_err(|reason| {
                    let path = path.display();
                    refused(format!("type=11,path={path}: Could not open '{path}': {reason}"))
                })?,
            });
        }
        let config = Config {
            spec,
            structures,
            oem_strings,
            onboard_devices: self.onboard_devices()?,
            uuid: self.spec.uuid.unwrap_or_default(),
            smp: self.spec.smp,
            processor_id: self.spec.cpu.processor_id(),
            layout: self.layout,
            firmware: has_firmware(&self.spec),
        };
        Smbios::new(&config).map_err(|e| BuildError::Device(e.to_string()))
    }

    /// The devices of type 41 with their places.
    fn onboard_devices(&self) -> Result<Vec<OnboardPlace>, BuildError> {
        let functions = self.pci.functions();
        let mut devices = Vec::new();
        for device in &self.spec.smbios.onboard_devices {
            let place = match &device.pci_device {
                None => 0,
                Some(id) => {
                    let path = format!("/machine/peripheral/{id}");
                    let found = functions.iter().find(|(_, function)| function.id() == path);
                    found.ok_or_else(|| no_device(id, device.designation.as_deref()))?.0.bits()
                }
            };
            devices.push((device.clone(), place));
        }
        Ok(devices)
    }

    /// Hands the tables to firmware.
    pub(super) fn add_smbios(&self) -> Result<(), BuildError> {
        let Smbios { anchor, tables } = self.smbios()?;
        self.add_item(smbios::ANCHOR_FILE, anchor)?;
        self.add_item(smbios::TABLES_FILE, tables)
    }

    /// Puts the tables where an operating system searches for them.
    pub(in crate::pc) fn write_smbios(&self) -> Result<(), BuildError> {
        for (address, bytes) in self.smbios()?.place(SMBIOS_TABLES) {
            if address + bytes.len() as u64 > HIGH_MEMORY {
                return Err(BuildError::Device(format!(
                    "-smbios: {} bytes of tables do not fit below 1 MiB",
                    bytes.len()
                )));
            }
            self.memory.write(address, &bytes)?;
        }
        Ok(())
    }
}

fn no_device(id: &str, designation: Option<&str>) -> BuildError {
    BuildError::Device(format!(
        "No PCI device {id} for SMBIOS type 41 entry {}",
        designation.unwrap_or_default()
    ))
}
