//! The machine's firmware: the ROM that CPUs start in, and what it is told by fw_cfg.
//!
//! A machine that boots a kernel directly has no firmware; [`super::firmware`] does its work. Any other
//! has SeaBIOS, another BIOS image (`-bios`), or what is in its flash.

mod boot_order;
mod contents;
mod files;
mod kernel;
mod linux_rom;
mod smbios;

pub(super) use boot_order::{BootOrder, pci_path};
pub use files::RomFiles;
pub(super) use files::package_of;

use std::path::Path;
use std::sync::Arc;

use block::Drive;
use devices::fw_cfg::Content;
use devices::pci::OptionRom;
use devices::pflash::{self, Pflash};
use devices::rom::SystemRom;
use memory::{Access, Mapping, MemoryBlock};
use options::Properties;

use super::board::Pc;
use super::layout::FOUR_GIB;
use crate::BuildError;
use crate::spec::{DriveInterface, MachineSpec, OptionRomSpec};

/// The BIOS of a machine that is told nothing else.
const DEFAULT_BIOS: &str = "bios-256k.bin";
/// A BIOS is made of pieces of this many bytes.
const BIOS_UNIT: usize = 64 << 10;
/// The largest BIOS image: it must stay clear of the local APICs.
const BIOS_MAX: u64 = 16 << 20;
/// The most flash memory, and in how many pieces.
const FLASH_MAX: u64 = 8 << 20;
const FLASH_UNITS: usize = 2;
/// The largest option ROM.
const ROM_MAX: u64 = 16 << 20;

/// Whether a machine starts in firmware. Otherwise it is put into the state that firmware would leave it
/// in, and enters its kernel.
pub(super) fn has_firmware(spec: &MachineSpec) -> bool {
    let has_flash = spec.drives.iter().any(|drive| drive.interface == DriveInterface::Pflash)
        || spec.board.flash.iter().any(Option::is_some);
    spec.boot.is_none() || spec.firmware.bios.is_some() || has_flash
}

impl Pc {
    /// The BIOS, in place below 4 GiB; `None` if the machine boots without.
    pub(super) fn load_bios(&mut self) -> Result<Option<Arc<MemoryBlock>>, BuildError> {
        if !has_firmware(&self.spec) {
            return Ok(None);
        }
        if let Some(flash) = self.add_flash()? {
            return Ok(Some(flash));
        }
        let name = self.spec.firmware.bios.as_deref().unwrap_or(DEFAULT_BIOS);
        let failed = |reason: String| {
            BuildError::Device(format!("could not load PC BIOS '{name}': {reason}"))
        };
        let image = self.rom_files.load(name, BIOS_MAX).map_err(failed)?;
        if image.is_empty() || !image.len().is_multiple_of(BIOS_UNIT) {
            let reason = format!("{} bytes are no multiple of 64 KiB", image.len());
            return Err(failed(reason));
        }
        let block = self.memory.allocate("pc.bios", image.len() as u64)?;
        block.write(0, &image)?;
        self.memory.map(Mapping::new(FOUR_GIB - block.len(), &block, Access::ROM))?;
        self.devices.push(SystemRom::new(block.clone()));
        Ok(Some(block))
    }

    /// The flash memories, one below the other from 4 GiB down; returns the first, which CPUs start in.
    fn add_flash(&mut self) -> Result<Option<Arc<MemoryBlock>>, BuildError> {
        let mut total = 0;
        let mut first = None;
        for (at, (origin, drive)) in self.flash_drives()?.into_iter().enumerate() {
            let failed = |reason: String| BuildError::Device(format!("{origin}: {reason}"));
            let size = drive.size();
            if size == 0 || !size.is_multiple_of(pflash::SECTOR) {
                return Err(failed(format!(
                    "system firmware block device {} has invalid size {size}; its size must be a \
                     non-zero multiple of {:#x}",
                    drive.id(),
                    pflash::SECTOR
                )));
            }
            total += size;
            let max = self.spec.board.max_firmware.unwrap_or(FLASH_MAX);
            if total > max {
                return Err(failed(format!(
                    "combined size of system firmware exceeds {max} bytes"
                )));
            }
            let name = format!("system.flash{at}");
            drive.claim(&name, false).map_err(|e| failed(e.to_string()))?;
            let flash =
                Pflash::new(&name, drive, &self.memory, FOUR_GIB - total).map_err(failed)?;
            flash.attach(&self.mmio)?;
            first.get_or_insert(flash.block().clone());
            self.devices.push(flash);
        }
        Ok(first)
    }

    /// The drives that are flash memory, with the options that they come from: those with `if=pflash` by
    /// their units, and those that the machine's properties name.
    fn flash_drives(&self) -> Result<Vec<(String, Arc<Drive>)>, BuildError> {
        let mut places: [Option<(String, Arc<Drive>)>; FLASH_UNITS] = [None, None];
        for (spec, drive) in self.spec.drives.iter().zip(&self.drives) {
            if spec.interface != DriveInterface::Pflash {
                continue;
            }
            let Some(place) = places.get_mut(spec.unit as usize) else {
                return Err(BuildError::Device(format!(
                    "{}: there are {FLASH_UNITS} flash memories, no unit {}",
                    spec.origin, spec.unit
                )));
            };
            *place = Some((spec.origin.clone(), drive.clone()));
        }
        for (at, (id, place)) in self.spec.board.flash.iter().zip(&mut places).enumerate() {
            let Some(id) = id else { continue };
            let origin = format!("-machine pflash{at}={id}");
            if let Some((other, _)) = place {
                return Err(BuildError::Device(format!("{origin}: it is there by {other}")));
            }
            let drive = self.find_drive(&origin, "cfi.pflash01.drive", id)?;
            *place = Some((origin, drive));
        }
        if let [None, Some((origin, _))] = &places {
            return Err(BuildError::Device(format!("{origin}: pflash1 requires pflash0")));
        }
        Ok(places.into_iter().flatten().collect())
    }

    /// The firmware configuration device, still without what depends on other devices.
    pub(super) fn add_fw_cfg(&mut self) -> Result<(), BuildError> {
        self.fw_cfg.attach(&self.ports)?;
        self.devices.push(self.fw_cfg.clone());
        Ok(())
    }

    /// Gives firmware the ROMs of `-option-rom`. Each is a file below `genroms/`, and firmware that boots
    /// from one knows it by that name.
    pub(super) fn add_option_roms(&mut self) -> Result<(), BuildError> {
        let spec = Arc::clone(&self.spec);
        for OptionRomSpec { file, boot_index } in &spec.firmware.option_roms {
            let failed =
                |reason: String| BuildError::Device(format!("-option-rom {file}: {reason}"));
            if !has_firmware(&spec) {
                let reason =
                    "a kernel that is booted directly has no firmware to run it; add -bios";
                return Err(failed(format!("{reason} {DEFAULT_BIOS}")));
            }
            let rom = self.rom_files.load(file, ROM_MAX).map_err(failed)?;
            let name = Path::new(file).file_name().unwrap_or_default().to_string_lossy();
            let item = format!("genroms/{name}");
            if self.fw_cfg.has_file(&item) {
                return Err(failed(format!("there is a ROM called {name} already")));
            }
            let index = self.boot_order.check(*boot_index)?;
            self.fw_cfg.add_file(&item, Content::Fixed(rom)).map_err(|e| failed(e.to_string()))?;
            self.boot_order.add(index, format!("/rom@{item}"));
        }
        Ok(())
    }

    /// Takes the ROM that a PCI function is to have out of its properties: `romfile=`, or else `default`;
    /// none with `rombar=0` or an empty name. A machine that boots a kernel directly does without the
    /// default if that is not to be had.
    pub(in crate::pc) fn take_rom(
        &self,
        properties: &mut Properties,
        default: Option<&str>,
    ) -> Result<Option<OptionRom>, BuildError> {
        let shown = properties.take_number::<u32>("rombar")?.unwrap_or(1) != 0;
        let named = properties.take("romfile");
        let name = named.as_deref().or(default).filter(|name| !name.is_empty() && shown);
        let Some(name) = name else { return Ok(None) };
        match self.rom_files.load(name, ROM_MAX).and_then(OptionRom::new) {
            Ok(rom) => Ok(Some(rom)),
            Err(_) if named.is_none() && !has_firmware(&self.spec) => Ok(None),
            Err(reason) => Err(BuildError::Device(format!(
                "{}: failed to find romfile \"{name}\": {reason}",
                properties.option()
            ))),
        }
    }
}
