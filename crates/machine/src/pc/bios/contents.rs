//! What firmware is told of the machine (QEMU's documentation, "QEMU Firmware Configuration (fw_cfg)
//! Device"; SeaBIOS's documentation, "Runtime config").

use std::path::Path;
use std::sync::Arc;

use devices::fw_cfg::{Content, FileError, key};
use devices::piix::{self, Piix4Pm};

use crate::BuildError;
use crate::acpi::{self, loader};
use crate::files;
use crate::pc::board::Pc;
use crate::pc::firmware::PM_BASE;
use crate::pc::layout::{FOUR_GIB, Layout};
use crate::spec::{BootSpec, FwCfgItem, FwCfgValue};

/// Files of the user's own are at most this long.
const ITEM_MAX: u64 = 64 << 20;
/// CMOS registers of the boot order: the first two devices, and the third.
const CMOS_BOOT_FIRST: u8 = 0x3d;
const CMOS_BOOT_THIRD: u8 = 0x38;
/// The order of those who say nothing.
const DEFAULT_ORDER: &str = "cad";
/// The bits of the power management function's base register that are the address.
const PM_BASE_BITS: u16 = 0xffc0;
/// Never.
const NO_REBOOT: u32 = u32::MAX;

/// A device's number in the CMOS's boot order.
fn boot_number(letter: char) -> u8 {
    match letter {
        'a' | 'b' => 1,
        'c' => 2,
        'd' => 3,
        'n' => 4,
        _ => 0,
    }
}

/// Usable memory as `etc/e820` tells it: address, length, kind of each range.
fn e820(layout: &Layout) -> Vec<u8> {
    const RAM: u32 = 1;
    let mut ranges = vec![(0, layout.low_end)];
    if layout.high_size > 0 {
        ranges.push((FOUR_GIB, layout.high_size));
    }
    let mut bytes = Vec::new();
    for (start, len) in ranges {
        bytes.extend(start.to_le_bytes());
        bytes.extend(len.to_le_bytes());
        bytes.extend(RAM.to_le_bytes());
    }
    bytes
}

/// The name that firmware knows a boot picture by, from how it begins.
fn splash_name(picture: &[u8]) -> Option<&'static str> {
    if picture.starts_with(&[0xff, 0xd8]) {
        Some("bootsplash.jpg")
    } else if picture.starts_with(b"BM") {
        Some("bootsplash.bmp")
    } else {
        None
    }
}

impl Pc {
    /// Tells firmware of the machine, once all devices are there.
    pub(in crate::pc) fn fill_fw_cfg(&self) -> Result<(), BuildError> {
        let spec = &self.spec;
        let device = &self.fw_cfg;
        let cpus = spec.smp.cpus as u16;
        device.set(key::UUID, spec.uuid.unwrap_or_default().as_bytes());
        device.set(key::RAM_SIZE, spec.memory.to_le_bytes());
        device.set(key::NO_GRAPHIC, u16::from(spec.no_graphic).to_le_bytes());
        device.set(key::CPUS, cpus.to_le_bytes());
        let end = self.apic_ids().last().map_or(1, |id| u16::from(*id) + 1);
        device.set(key::MAX_CPUS, end.to_le_bytes());
        device.set(key::IRQ0_OVERRIDE, [1]);
        let boot = &spec.firmware.boot;
        device.set(key::BOOT_MENU, u16::from(boot.menu == Some(true)).to_le_bytes());
        self.add_item("etc/e820", e820(&self.layout))?;
        self.add_item("bootorder", self.boot_order.file(boot.strict))?;
        self.add_boot_items(boot)?;
        if !spec.board.no_acpi {
            self.add_acpi_tables()?;
        }
        self.add_item("etc/system-states", self.sleep.file().to_vec())?;
        self.add_smbios()?;
        for item in &spec.firmware.items {
            self.add_user_item(item)?;
        }
        Ok(())
    }

    pub(in crate::pc) fn add_item(
        &self,
        name: &str,
        content: impl Into<Content>,
    ) -> Result<(), BuildError> {
        self.fw_cfg.add_file(name, content.into()).map_err(|e| BuildError::Device(e.to_string()))
    }

    /// The ACPI tables and the script that puts them into memory. Firmware reads the tables after it has
    /// chosen where the power management ports are.
    fn add_acpi_tables(&self) -> Result<(), BuildError> {
        let config = self.acpi_config(PM_BASE);
        let files = loader::Files::new(&acpi::Image::new(&config));
        self.add_item(loader::SCRIPT_FILE, files.script)?;
        self.add_item(loader::RSDP_FILE, files.rsdp)?;
        let pci = Arc::downgrade(&self.pci);
        let make = move || {
            let base = pci
                .upgrade()
                .map_or(u32::MAX, |pci| pci.read_config(Piix4Pm::DEVFN, piix::reg::PM_BASE, 4));
            let pm_base = base as u16 & PM_BASE_BITS;
            let config = acpi::Config { pm_base, ..config.clone() };
            loader::Files::new(&acpi::Image::new(&config)).tables
        };
        self.add_item(loader::TABLES_FILE, Content::Made(files.tables, Box::new(make)))
    }

    fn add_boot_items(&self, boot: &BootSpec) -> Result<(), BuildError> {
        let timeout = boot.reboot_timeout.map_or(NO_REBOOT, u32::from);
        self.add_item("etc/boot-fail-wait", timeout.to_le_bytes().to_vec())?;
        if let Some(time) = boot.splash_time {
            self.add_item("etc/boot-menu-wait", time.to_le_bytes().to_vec())?;
        }
        let Some(path) = &boot.splash else { return Ok(()) };
        match self.splash(path) {
            Ok((name, picture)) => self.add_item(name, picture),
            // A picture is no reason not to start.
            Err(reason) => {
                eprintln!("rhea: warning: -boot splash={}: {reason}", path.display());
                Ok(())
            }
        }
    }

    /// The picture at `path`, and the name that firmware looks for it by.
    fn splash(&self, path: &Path) -> Result<(&'static str, Vec<u8>), String> {
        let found = self.rom_files.find(&path.to_string_lossy());
        let picture = files::read(found.as_deref().unwrap_or(path), ITEM_MAX);
        let picture = picture.map_err(|reason| reason.to_string())?;
        let name = splash_name(&picture).ok_or("neither a JPEG nor a BMP picture")?;
        Ok((name, picture))
    }

    fn add_user_item(&self, item: &FwCfgItem) -> Result<(), BuildError> {
        let FwCfgItem { name, value } = item;
        let failed = |reason: String| BuildError::Device(format!("-fw_cfg name={name}: {reason}"));
        if self.fw_cfg.has_file(name) {
            return Err(failed(FileError::Duplicate(name.clone()).to_string()));
        }
        let bytes = match value {
            FwCfgValue::Text(text) => text.clone().into_bytes(),
            FwCfgValue::File(path) => files::read(path, ITEM_MAX)
                .map_err(|reason| failed(format!("can't load {}: {reason}", path.display())))?,
        };
        self.fw_cfg.add_file(name, Content::Fixed(bytes)).map_err(|e| failed(e.to_string()))
    }

    /// Writes into CMOS memory what to boot from; `first` says that it is the machine's first boot.
    pub(in crate::pc) fn set_boot_devices(&self, first: bool) {
        let BootSpec { order, once, no_floppy_check, .. } = &self.spec.firmware.boot;
        let order = once.as_deref().filter(|_| first).or(order.as_deref());
        let mut numbers = order.unwrap_or(DEFAULT_ORDER).chars().map(boot_number);
        let mut next = || numbers.next().unwrap_or(0);
        let (first, second, third) = (next(), next(), next());
        self.rtc.set_memory(CMOS_BOOT_FIRST, second << 4 | first);
        self.rtc.set_memory(CMOS_BOOT_THIRD, third << 4 | u8::from(*no_floppy_check));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_told_up_to_the_hole_and_from_four_gib_on() {
        let small = e820(&Layout::new(128 << 20));
        assert_eq!(small.len(), 20);
        assert_eq!(small[8..], [0, 0, 0, 8, 0, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(e820(&Layout::new(4 << 30)).len(), 40);
    }

    #[test]
    fn pictures_are_known_by_their_first_bytes() {
        assert_eq!(splash_name(b"BM1234"), Some("bootsplash.bmp"));
        assert_eq!(splash_name(&[0xff, 0xd8, 0xff]), Some("bootsplash.jpg"));
        assert_eq!(splash_name(b""), None);
    }
}
