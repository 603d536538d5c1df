//! Graphics adapters.

use std::sync::Arc;

use devices::vga::{VgaKind, VgaOptions, VgaPci};
use devices::virtio::gpu::{GpuOptions, MAX_OUTPUTS, VirtioGpu, VirtioVga};
use display::{Console, Size, Source};
use input::Target;
use options::Properties;
use serde_json::Map;

use super::virtio::{Generation, VirtioTransport};
use super::{Driver, PciPlace};
use crate::BuildError;
use crate::pc::board::Pc;
use crate::spec::{DeviceSpec, Graphics, MachineSpec};

/// The VGA's BIOS.
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
    Driver {
        name: "virtio-gpu-pci",
        aliases: &["virtio-gpu"],
        bus: "PCI",
        description: "graphics adapter without acceleration",
        make: virtio_gpu,
    },
    Driver {
        name: "virtio-vga",
        aliases: &[],
        bus: "PCI",
        description: "the same with a VGA",
        make: virtio_vga,
    },
];

/// The device that `-vga` stands for.
pub(super) fn implied(spec: &MachineSpec) -> Option<DeviceSpec> {
    let driver = match spec.graphics {
        Graphics::None => return None,
        Graphics::Std => "VGA",
        Graphics::Virtio => "virtio-vga",
    };
    Some(DeviceSpec { driver: driver.to_owned(), id: None, properties: Map::new() })
}

impl Pc {
    /// Adds the outputs of a graphics device to the machine's consoles.
    fn add_consoles(&mut self, path: &str, source: &Arc<dyn Source>, heads: u32) {
        for head in 0..heads {
            let index = self.consoles.len();
            self.consoles.push(Console::new(index, path, head, Arc::clone(source)));
            self.input.add_console(Target { device: path.to_owned(), head });
        }
    }
}

fn vga(
    pc: &mut Pc,
    path: &str,
    mut properties: Properties,
    kind: VgaKind,
) -> Result<(), BuildError> {
    let rom = (kind == VgaKind::Primary).then_some(VGA_BIOS);
    let mut place = PciPlace::take_with_rom(pc, &mut properties, rom)?;
    let defaults = VgaOptions::default();
    let options = VgaOptions {
        memory_mib: properties.take_number("vgamem_mb")?.unwrap_or(defaults.memory_mib),
        mmio: properties.take_bool("mmio")?.unwrap_or(defaults.mmio),
        edid: properties.take_bool("edid")?.unwrap_or(defaults.edid),
        x_res: properties.take_number("xres")?.unwrap_or(defaults.x_res),
        y_res: properties.take_number("yres")?.unwrap_or(defaults.y_res),
    };
    let rom = place.rom.take();
    let option = properties.option().to_owned();
    properties.finish()?;
    let failed = |e: String| BuildError::Device(format!("{option}: {e}"));
    let name = if kind == VgaKind::Primary { "VGA" } else { "secondary-vga" };
    let (devfn, wiring) = place.reserve(pc, name).map_err(|e| failed(e.to_string()))?;
    let clock = pc.timers.clock().clone();
    let device = VgaPci::new(path, kind, options, rom, clock, wiring, &pc.memory)?;
    if kind == VgaKind::Primary {
        device.vga().attach(&pc.ports, &pc.mmio)?;
    }
    pc.pci.attach(devfn, device.clone());
    let source: Arc<dyn Source> = device.vga().clone();
    pc.devices.push(device);
    pc.add_consoles(path, &source, 1);
    Ok(())
}

/// What `virtio-gpu-pci` and `virtio-vga` have in common.
fn take_gpu(properties: &mut Properties) -> Result<Arc<VirtioGpu>, BuildError> {
    let defaults = GpuOptions::default();
    let width = properties.take_number("xres")?.unwrap_or(defaults.size.width);
    let height = properties.take_number("yres")?.unwrap_or(defaults.size.height);
    let options = GpuOptions {
        outputs: properties.take_number("max_outputs")?.unwrap_or(defaults.outputs),
        size: Size::new(width, height),
        edid: properties.take_bool("edid")?.unwrap_or(defaults.edid),
        max_host_memory: properties
            .take_size("max_hostmem", 1)?
            .unwrap_or(defaults.max_host_memory),
    };
    if !(1..=MAX_OUTPUTS).contains(&options.outputs) {
        return Err(BuildError::Device(format!(
            "{}: invalid max_outputs > {MAX_OUTPUTS}, or 0",
            properties.option()
        )));
    }
    Ok(VirtioGpu::new(options))
}

fn virtio_gpu(pc: &mut Pc, path: &str, mut properties: Properties) -> Result<(), BuildError> {
    let transport = VirtioTransport::take(pc, path, &mut properties, Generation::OnlyModern)?;
    let gpu = take_gpu(&mut properties)?;
    properties.finish()?;
    pc.add_virtio(path, gpu.clone(), transport)?;
    let heads = gpu.outputs();
    let source: Arc<dyn Source> = gpu;
    pc.add_consoles(path, &source, heads);
    Ok(())
}

fn virtio_vga(pc: &mut Pc, path: &str, mut properties: Properties) -> Result<(), BuildError> {
    let rom = Some("vgabios-virtio.bin");
    let mut place = PciPlace::take_with_rom(pc, &mut properties, rom)?;
    let rom = place.rom.take();
    let transport = VirtioTransport::at(place, path, &mut properties, Generation::OnlyModern)?;
    let memory_mib = properties.take_number("vgamem_mb")?.unwrap_or(8);
    let gpu = take_gpu(&mut properties)?;
    let option = properties.option().to_owned();
    properties.finish()?;
    let failed = |e: String| BuildError::Device(format!("{option}: {e}"));
    let (devfn, wiring) =
        transport.place.reserve(pc, "virtio-vga").map_err(|e| failed(e.to_string()))?;
    let vga = VgaOptions { memory_mib, edid: false, ..VgaOptions::default() };
    let clock = pc.timers.clock().clone();
    let heads = gpu.outputs();
    let device = VirtioVga::new(gpu, &vga, rom, transport.options, clock, wiring, &pc.memory)
        .map_err(|e| failed(e.to_string()))?;
    device.vga().attach(&pc.ports, &pc.mmio)?;
    pc.pci.attach(devfn, device.clone());
    pc.devices.push(device.clone());
    let source: Arc<dyn Source> = device;
    pc.add_consoles(path, &source, heads);
    Ok(())
}
