//! `-device` and `-drive`: the one list of devices that users can add, and how each is made from its
//! properties.

use std::sync::Arc;

use block::{Drive, DriveOptions};
use devices::debug::{DebugConsole, DebugExit};
use devices::pci::Devfn;
use devices::uart16550::COM_PORTS;
use devices::virtio::balloon::VirtioBalloon;
use devices::virtio::blk::{BlkOptions, VirtioBlk};
use devices::virtio::rng::{RngLimit, VirtioRng};
use devices::virtio::{VirtioDevice, VirtioPci, VirtioPciOptions};
use options::{OptionError, Properties};

use super::board::Pc;
use crate::BuildError;
use crate::spec::{DeviceSpec, DriveInterface};

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

/// Every kind, in the order of `-device help`.
pub const DRIVERS: &[Driver] = &[
    Driver {
        name: "isa-debug-exit",
        aliases: &[],
        bus: "ISA",
        description: "a write ends the process with status 2n+1",
        make: isa_debug_exit,
    },
    Driver {
        name: "isa-debugcon",
        aliases: &[],
        bus: "ISA",
        description: "a port whose writes go to a character device",
        make: isa_debugcon,
    },
    Driver {
        name: "isa-serial",
        aliases: &[],
        bus: "ISA",
        description: "16550 serial port",
        make: isa_serial,
    },
    Driver {
        name: "virtio-balloon-pci",
        aliases: &["virtio-balloon"],
        bus: "PCI",
        description: "memory balloon",
        make: |pc, id, properties| virtio_balloon(pc, id, properties, Generation::Either),
    },
    Driver {
        name: "virtio-balloon-pci-non-transitional",
        aliases: &[],
        bus: "PCI",
        description: "memory balloon for version 1 drivers only",
        make: |pc, id, properties| virtio_balloon(pc, id, properties, Generation::Modern),
    },
    Driver {
        name: "virtio-balloon-pci-transitional",
        aliases: &[],
        bus: "PCI",
        description: "memory balloon for old and new drivers",
        make: |pc, id, properties| virtio_balloon(pc, id, properties, Generation::Transitional),
    },
    Driver {
        name: "virtio-blk-pci",
        aliases: &["virtio-blk"],
        bus: "PCI",
        description: "disk",
        make: |pc, id, properties| virtio_blk(pc, id, properties, Generation::Either),
    },
    Driver {
        name: "virtio-blk-pci-non-transitional",
        aliases: &[],
        bus: "PCI",
        description: "disk for version 1 drivers only",
        make: |pc, id, properties| virtio_blk(pc, id, properties, Generation::Modern),
    },
    Driver {
        name: "virtio-blk-pci-transitional",
        aliases: &[],
        bus: "PCI",
        description: "disk for old and new drivers",
        make: |pc, id, properties| virtio_blk(pc, id, properties, Generation::Transitional),
    },
    Driver {
        name: "virtio-rng-pci",
        aliases: &["virtio-rng"],
        bus: "PCI",
        description: "source of randomness",
        make: |pc, id, properties| virtio_rng(pc, id, properties, Generation::Either),
    },
    Driver {
        name: "virtio-rng-pci-non-transitional",
        aliases: &[],
        bus: "PCI",
        description: "source of randomness for version 1 drivers only",
        make: |pc, id, properties| virtio_rng(pc, id, properties, Generation::Modern),
    },
    Driver {
        name: "virtio-rng-pci-transitional",
        aliases: &[],
        bus: "PCI",
        description: "source of randomness for old and new drivers",
        make: |pc, id, properties| virtio_rng(pc, id, properties, Generation::Transitional),
    },
];

/// Which interfaces a virtio device offers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Generation {
    /// As `disable-legacy` and `disable-modern` say; both by default.
    Either,
    Transitional,
    Modern,
}

impl Pc {
    /// Opens the images of all drives.
    pub(super) fn open_drives(&mut self) -> Result<(), BuildError> {
        let spec = Arc::clone(&self.spec);
        for drive in &spec.drives {
            let failed = |e: String| BuildError::Device(format!("-drive {}: {e}", drive.id));
            let option = format!("-drive {}", drive.id);
            let options =
                DriveOptions::parse(Properties::from_map(&option, drive.options.clone()))?;
            let opened = match &drive.file {
                Some(path) => {
                    Drive::open(&drive.id, path, &options).map_err(|e| failed(e.to_string()))?
                }
                None => Drive::empty(&drive.id, &options),
            };
            self.drives.push(Arc::new(opened));
        }
        Ok(())
    }

    /// Makes the devices of drives that ask for one, then those of `-device`, in their order.
    pub(super) fn add_devices(&mut self) -> Result<(), BuildError> {
        let spec = Arc::clone(&self.spec);
        let implied = spec.drives.iter().filter_map(|drive| match drive.interface {
            DriveInterface::None => None,
            DriveInterface::Virtio => {
                let properties = [("drive".to_owned(), drive.id.as_str().into())];
                Some(DeviceSpec {
                    driver: "virtio-blk-pci".to_owned(),
                    id: None,
                    properties: properties.into_iter().collect(),
                })
            }
        });
        let all: Vec<DeviceSpec> = implied.chain(spec.devices.iter().cloned()).collect();
        for (index, device) in all.iter().enumerate() {
            self.add_device(device, index)?;
        }
        Ok(())
    }

    fn add_device(&mut self, device: &DeviceSpec, index: usize) -> Result<(), BuildError> {
        let names: Vec<&str> =
            DRIVERS.iter().flat_map(|d| d.aliases.iter().copied().chain([d.name])).collect();
        let driver = DRIVERS
            .iter()
            .find(|d| d.name == device.driver || d.aliases.contains(&device.driver.as_str()))
            .ok_or_else(|| {
                OptionError::unknown("-device: not a device model name:", &device.driver, &names)
            })?;
        let path = match &device.id {
            Some(id) => format!("/machine/peripheral/{id}"),
            None => format!("/machine/peripheral-anon/device[{index}]"),
        };
        let option = format!("-device {}", device.driver);
        let properties = Properties::from_map(&option, device.properties.clone());
        (driver.make)(self, &path, properties)
    }

    /// Puts a virtio device on the PCI bus.
    fn add_virtio(
        &mut self,
        path: &str,
        device: Arc<dyn VirtioDevice>,
        transport: VirtioTransport,
    ) -> Result<(), BuildError> {
        let failed = |e: String| BuildError::Device(format!("device {path}: {e}"));
        let devfn = self
            .pci
            .reserve(transport.address, device.kind().name)
            .map_err(|e| failed(e.to_string()))?;
        let wiring = self.pci.wiring(devfn, 1);
        let pci = VirtioPci::new(device, transport.options, wiring, self.memory.clone())
            .map_err(|e| failed(e.to_string()))?;
        self.pci.attach(devfn, pci.clone());
        self.devices.push(pci.clone());
        self.virtio.push(pci);
        Ok(())
    }
}

/// What all virtio devices on PCI have in common.
struct VirtioTransport {
    address: Option<Devfn>,
    options: VirtioPciOptions,
}

impl VirtioTransport {
    fn take(
        path: &str,
        properties: &mut Properties,
        generation: Generation,
    ) -> Result<Self, OptionError> {
        let address = match properties.take("addr") {
            None => None,
            Some(text) => Some(text.parse::<Devfn>().map_err(|e| {
                OptionError::new(format!("{}: addr={text}: {e}", properties.option()))
            })?),
        };
        if let Some(bus) = properties.take("bus")
            && bus != "pci.0"
            && bus != "pci"
        {
            return Err(OptionError::new(format!(
                "{}: Bus '{bus}' not found; there is 'pci.0'",
                properties.option()
            )));
        }
        let (disable_legacy, disable_modern) = match generation {
            Generation::Transitional => (false, false),
            Generation::Modern => (true, false),
            Generation::Either => {
                let words = [("on", true), ("off", false), ("auto", false)];
                let legacy = properties.take_choice("disable-legacy", &words)?;
                let modern = properties.take_bool("disable-modern")?;
                (legacy.unwrap_or(false), modern.unwrap_or(false))
            }
        };
        let vectors = properties.take_number("vectors")?;
        let options =
            VirtioPciOptions { id: path.to_owned(), disable_legacy, disable_modern, vectors };
        Ok(Self { address, options })
    }
}

fn virtio_blk(
    pc: &mut Pc,
    path: &str,
    mut properties: Properties,
    generation: Generation,
) -> Result<(), BuildError> {
    let transport = VirtioTransport::take(path, &mut properties, generation)?;
    let drive_id = properties.require("drive")?;
    let defaults = BlkOptions::default();
    let options = BlkOptions {
        serial: properties.take("serial").unwrap_or_default(),
        logical_block_size: properties
            .take_size("logical_block_size", 1)?
            .map_or(defaults.logical_block_size, |n| n.try_into().unwrap_or(u32::MAX)),
        physical_block_size: properties
            .take_size("physical_block_size", 1)?
            .map_or(defaults.physical_block_size, |n| n.try_into().unwrap_or(u32::MAX)),
        num_queues: properties.take_number("num-queues")?.unwrap_or(defaults.num_queues),
        queue_size: properties.take_number("queue-size")?.unwrap_or(defaults.queue_size),
        discard: properties.take_bool("discard")?.unwrap_or(defaults.discard),
        write_zeroes: properties.take_bool("write-zeroes")?.unwrap_or(defaults.write_zeroes),
        share_rw: properties.take_bool("share-rw")?.unwrap_or(defaults.share_rw),
    };
    // The order in which firmware would try disks; a direct boot has no use for it.
    properties.take_number::<u32>("bootindex")?;
    let option = properties.option().to_owned();
    properties.finish()?;
    let drive = pc.drives.iter().find(|drive| drive.id() == drive_id).ok_or_else(|| {
        let ids: Vec<&str> = pc.drives.iter().map(|drive| drive.id()).collect();
        OptionError::unknown(
            &format!("{option}: Property 'virtio-blk-device.drive' can't find value"),
            &drive_id,
            &ids,
        )
    })?;
    let backend = format!("{path}/virtio-backend");
    let device = VirtioBlk::new(drive.clone(), &backend, options)
        .map_err(|e| BuildError::Device(format!("{option}: {e}")))?;
    pc.add_virtio(path, device, transport)
}

fn virtio_balloon(
    pc: &mut Pc,
    path: &str,
    mut properties: Properties,
    generation: Generation,
) -> Result<(), BuildError> {
    let transport = VirtioTransport::take(path, &mut properties, generation)?;
    let deflate_on_oom = properties.take_bool("deflate-on-oom")?.unwrap_or(false);
    let option = properties.option().to_owned();
    properties.finish()?;
    if pc.balloon.is_some() {
        return Err(BuildError::Device(format!("{option}: only one balloon device is supported")));
    }
    let device = VirtioBalloon::new(pc.memory.clone(), pc.spec.memory, deflate_on_oom, &pc.timers);
    pc.balloon = Some(device.clone());
    pc.add_virtio(path, device, transport)
}

fn virtio_rng(
    pc: &mut Pc,
    path: &str,
    mut properties: Properties,
    generation: Generation,
) -> Result<(), BuildError> {
    let transport = VirtioTransport::take(path, &mut properties, generation)?;
    let max_bytes: Option<u64> = properties.take_number("max-bytes")?;
    let period: Option<u64> = properties.take_number("period")?;
    let option = properties.option().to_owned();
    properties.finish()?;
    let period = std::time::Duration::from_millis(period.unwrap_or(1 << 16));
    if period.is_zero() {
        return Err(BuildError::Device(format!("{option}: 'period' expects a positive integer")));
    }
    let limit = max_bytes.map(|max_bytes| RngLimit { max_bytes, period });
    let device = VirtioRng::new(limit, &pc.timers);
    pc.add_virtio(path, device, transport)
}

fn isa_debug_exit(pc: &mut Pc, _: &str, mut properties: Properties) -> Result<(), BuildError> {
    let iobase = properties.take_number("iobase")?.unwrap_or(DebugExit::IOBASE);
    let iosize = properties.take_number("iosize")?.unwrap_or(DebugExit::IOSIZE);
    properties.finish()?;
    let device = DebugExit::new(pc.control.clone());
    device.attach(&pc.ports, iobase, iosize)?;
    pc.devices.push(device);
    Ok(())
}

fn isa_debugcon(pc: &mut Pc, _: &str, mut properties: Properties) -> Result<(), BuildError> {
    let iobase = properties.take_number("iobase")?.unwrap_or(DebugConsole::IOBASE);
    let readback = properties.take_number("readback")?.unwrap_or(DebugConsole::READBACK);
    let chardev = properties.require("chardev")?;
    properties.finish()?;
    let device = DebugConsole::new(pc.chardevs.claim(&chardev)?, readback);
    device.attach(&pc.ports, iobase)?;
    pc.devices.push(device);
    Ok(())
}

fn isa_serial(pc: &mut Pc, path: &str, mut properties: Properties) -> Result<(), BuildError> {
    let chardev = properties.require("chardev")?;
    let index: Option<usize> = properties.take_number("index")?;
    let iobase: Option<u16> = properties.take_number("iobase")?;
    let option = properties.option().to_owned();
    properties.finish()?;
    let used = pc.spec.serials.len();
    let port =
        iobase.or_else(|| COM_PORTS.get(index.unwrap_or(used)).copied()).ok_or_else(|| {
            let last = COM_PORTS.len() - 1;
            BuildError::Device(format!("{option}: index must be from 0 to {last}"))
        })?;
    pc.add_serial_port(path, port, &chardev)
}
