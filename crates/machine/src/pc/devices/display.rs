//! Graphics adapters.

use std::sync::Arc;

use devices::vga::{VgaKind, VgaOptions, VgaPci};
use display::{Console, Source};
use options::Properties;
use serde_json::Map;

use super::{Driver, PciPlace};
use crate::BuildError;
use crate::pc::board::Pc;
use crate::spec::{DeviceSpec, Graphics, MachineSpec};

/// The adapters' BIOS.
const VGA_BIOS: &str = "vgabios-stdvga.bin";

/// The kinds of this topic.
pub(super) const DRIVERS: &[Driver] = &[
    Driver {
        name: "VGA",
        aliases: &[],
        bus: "PCI",
        description: "VGA with the Bochs VBE extensions",
        make: |pc, id, properties| vga(pc, id, properties, VgaKind::Primary),
    },
    Driver {
        name: "secondary-vga",
        aliases: &[],
        bus: "PCI",
        description: "one more such display, without the legacy ports",
        make: |pc, id, properties| vga(pc, id, properties, VgaKind::Secondary),
    },
];

/// The device that `-vga` stands for.
pub(super) fn implied(spec: &MachineSpec) -> Option<DeviceSpec> {
    let driver = match spec.graphics {
        Graphics::None => return None,
        Graphics::Std => "VGA",
    };
    Some(DeviceSpec { driver: driver.to_owned(), id: None, properties: Map::new() })
}

impl Pc {
    /// Adds the outputs of a graphics device to the machine's consoles.
    fn add_consoles(&mut self, path: &str, source: &Arc<dyn Source>, heads: u32) {
        for head in 0..heads {
            let index = self.consoles.len();
            self.consoles.push(Console::new(index, path, head, Arc::clone(source)));
        }
    }
}

fn vga(
    pc: &mut Pc,
    path: &str,
    mut properties: Properties,
    kind: VgaKind,
) -> Result<(), BuildError> {
    let place = PciPlace::take(pc, &mut properties)?;
    let defaults = VgaOptions::default();
    let options = VgaOptions {
        memory_mib: properties.take_number("vgamem_mb")?.unwrap_or(defaults.memory_mib),
        mmio: properties.take_bool("mmio")?.unwrap_or(defaults.mmio),
        edid: properties.take_bool("edid")?.unwrap_or(defaults.edid),
        x_res: properties.take_number("xres")?.unwrap_or(defaults.x_res),
        y_res: properties.take_number("yres")?.unwrap_or(defaults.y_res),
    };
    let rom = pc.take_rom(&mut properties, Some(VGA_BIOS))?;
    let option = properties.option().to_owned();
    properties.finish()?;
    let failed = |e: String| BuildError::Device(format!("{option}: {e}"));
    let name = if kind == VgaKind::Primary { "VGA" } else { "secondary-vga" };
    let devfn = pc.pci.reserve(place.0, name).map_err(|e| failed(e.to_string()))?;
    let wiring = pc.pci.wiring(devfn, 1);
    let clock = pc.timers.clock().clone();
    let device = VgaPci::new(path, kind, options, clock, wiring, &pc.memory)?;
    if kind == VgaKind::Primary {
        device.vga().attach(&pc.ports, &pc.mmio)?;
    }
    if let Some(rom) = rom {
        device.add_rom(rom);
    }
    pc.pci.attach(devfn, device.clone());
    let source: Arc<dyn Source> = device.vga().clone();
    pc.devices.push(device);
    pc.add_consoles(path, &source, 1);
    Ok(())
}
