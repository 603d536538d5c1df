//! Devices on the ISA bus, and what the board has there by itself.

use std::sync::Arc;

use block::{Drive, DriveOptions};
use chardev::{CharBackend, Chardev, ChardevSpec};
use devices::fdc::{DriveType, Fdc, FdcPlace, FloppyUnit};
use devices::irq::line;
use devices::parallel::{self, LPT_PORTS, Parallel};
use devices::piix::Piix3;
use devices::pvpanic::{self, PvPanic, PvPanicPci};
use devices::uart16550::COM_PORTS;
use devices::vmgenid::VmGenId;
use options::{OptionError, Properties};
use uuid::Uuid;

use super::storage::{id_of, query_name};
use super::{Bus, Driver, PciPlace};
use crate::BuildError;
use crate::pc::bios::pci_path;
use crate::pc::board::{Pc, com_line};
use crate::spec::{DriveInterface, SerialSpec};

/// Interrupt lines of the ISA bus.
const ISA_LINES: u32 = 16;
/// The path of the first floppy drive that no `-device` made.
const FLOPPY_PATH: &str = "/machine/unattached/device[16]";
/// The path of the real-time clock.
pub const RTC_PATH: &str = "/machine/unattached/device[9]";

/// Types of floppy drives; by the medium, if nobody says.
const DRIVE_TYPES: &[(&str, Option<DriveType>)] = &[
    ("144", Some(DriveType::D144)),
    ("288", Some(DriveType::D288)),
    ("120", Some(DriveType::D120)),
    ("auto", None),
];

/// The kinds of this topic.
pub(super) const DRIVERS: &[Driver] = &[
    Driver {
        name: "floppy",
        aliases: &[],
        bus: "floppy-bus",
        description: "virtual floppy drive",
        make: floppy,
    },
    Driver {
        name: "isa-fdc",
        aliases: &[],
        bus: "ISA",
        description: "one more floppy controller",
        make: isa_fdc,
    },
    Driver {
        name: "isa-parallel",
        aliases: &[],
        bus: "ISA",
        description: "parallel port with a printer that prints on a character device",
        make: isa_parallel,
    },
    Driver {
        name: "isa-serial",
        aliases: &[],
        bus: "ISA",
        description: "16550 serial port",
        make: isa_serial,
    },
    Driver {
        name: "pvpanic",
        aliases: &[],
        bus: "ISA",
        description: "port by which a guest says that it panicked",
        make: isa_pvpanic,
    },
    Driver {
        name: "vmgenid",
        aliases: &[],
        bus: "System",
        description: "number by which a guest sees that it is a copy",
        make: vmgenid,
    },
    Driver {
        name: "pvpanic-pci",
        aliases: &[],
        bus: "PCI",
        description: "function by which a guest says that it panicked",
        make: pci_pvpanic,
    },
];

impl Pc {
    /// Adds the DMA controllers and the floppy controller, with the drives of `if=floppy`. It is always there,
    /// so that its properties come by `-global isa-fdc...`.
    pub(in crate::pc) fn add_floppy_controller(&mut self) -> Result<Arc<Fdc>, BuildError> {
        self.dma.attach(&self.ports)?;
        self.devices.push(self.dma.clone());
        let mut properties = self.global_properties("isa-fdc");
        let mut drive_type = |key| properties.take_choice(key, DRIVE_TYPES).map(Option::flatten);
        let types = [drive_type("fdtypeA")?, drive_type("fdtypeB")?];
        let fallback = drive_type("fallback")?.unwrap_or(DriveType::D288);
        let place = FdcPlace::FIRST;
        self.add_floppy_boot_order(&mut properties, place.port)?;
        properties.finish()?;
        let fdc = self.add_fdc("fdc", place, line::FLOPPY, "floppy-bus.0".to_owned())?;
        for (spec, drive) in self.spec.drives.iter().zip(&self.drives) {
            if spec.interface != DriveInterface::Floppy {
                continue;
            }
            let number = spec.unit as usize;
            let drive_type = types.get(number).copied().flatten();
            let unit = FloppyUnit { drive: drive.clone(), drive_type, fallback };
            fdc.connect(Some(number), unit, FLOPPY_PATH)
                .map_err(|e| BuildError::Device(format!("{}: {e}", spec.origin)))?;
        }
        Ok(fdc)
    }

    fn add_fdc(
        &mut self,
        id: &str,
        place: FdcPlace,
        irq: u32,
        bus: String,
    ) -> Result<Arc<Fdc>, BuildError> {
        let fdc = Fdc::new(id, place, &self.dma, self.isa_line(irq));
        fdc.attach(&self.ports)?;
        self.devices.push(fdc.clone());
        self.buses.add(bus, Bus::Floppy(fdc.clone()));
        Ok(fdc)
    }

    fn add_floppy_boot_order(
        &mut self,
        properties: &mut Properties,
        port: u16,
    ) -> Result<(), BuildError> {
        for (number, key) in ["bootindexA", "bootindexB"].into_iter().enumerate() {
            let index = self.boot_order.take_key(properties, key)?;
            let path = format!("{}/fdc@{port:04x}/floppy@{number}", pci_path("isa", Piix3::DEVFN));
            self.boot_order.add(index, path);
        }
        Ok(())
    }

    /// Adds the ports of `-parallel`.
    pub(in crate::pc) fn add_parallel_ports(&mut self) -> Result<(), BuildError> {
        let spec = Arc::clone(&self.spec);
        for (index, port) in spec.parallels.iter().enumerate() {
            let SerialSpec::Chardev(id) = port else { continue };
            let Some(&port) = LPT_PORTS.get(index) else {
                return Err(BuildError::Device(format!(
                    "-parallel: a machine has at most {} parallel ports",
                    LPT_PORTS.len()
                )));
            };
            let backend = self.claim_chardev("-parallel", id)?;
            self.add_parallel_port(&format!("parallel{index}"), port, parallel::IRQ, backend)?;
        }
        Ok(())
    }

    fn add_parallel_port(
        &mut self,
        id: &str,
        port: u16,
        irq: u32,
        backend: Arc<dyn CharBackend>,
    ) -> Result<(), BuildError> {
        let device = Parallel::new(id, port, self.isa_line(irq), backend);
        device.attach(&self.ports)?;
        self.devices.push(device);
        self.parallel_ports.push((port, irq));
        Ok(())
    }
}

fn floppy(pc: &mut Pc, path: &str, mut properties: Properties) -> Result<(), BuildError> {
    let drive_id = properties.take("drive");
    let unit: Option<usize> = properties.take_number("unit")?;
    let drive_type = properties.take_choice("drive-type", DRIVE_TYPES)?.flatten();
    let option = properties.option().to_owned();
    let named = |bus: &Bus| if let Bus::Floppy(fdc) = bus { Some(fdc.clone()) } else { None };
    let buses = pc.buses.take(&mut properties, named)?;
    properties.finish()?;
    let failed = |e: String| BuildError::Device(format!("{option}: {e}"));
    let fdc = buses.first().ok_or_else(|| failed("No 'floppy-bus' bus found".to_owned()))?;
    let drive = match drive_id {
        Some(id) => pc.find_drive(&option, "floppy.drive", &id)?,
        None => {
            let drive = Arc::new(Drive::empty("", &DriveOptions::default()));
            pc.drives.push(drive.clone());
            drive
        }
    };
    let fallback = DriveType::D288;
    let connected = FloppyUnit { drive, drive_type, fallback };
    fdc.connect(unit, connected, query_name(path)).map_err(|e| failed(e.to_string()))?;
    Ok(())
}

fn isa_fdc(pc: &mut Pc, path: &str, mut properties: Properties) -> Result<(), BuildError> {
    /// Channels that move bytes.
    const CHANNELS: u8 = 4;
    const LAST_PORT: u16 = 0xfff8;
    let option = properties.option().to_owned();
    let wrong = |reason: String| BuildError::Device(format!("{option}: {reason}"));
    let port = properties.take_number("iobase")?.unwrap_or(FdcPlace::FIRST.port);
    let irq = take_isa_irq(&mut properties)?.unwrap_or(line::FLOPPY);
    let channel = properties.take_number("dma")?.unwrap_or(FdcPlace::FIRST.channel);
    pc.add_floppy_boot_order(&mut properties, port)?;
    properties.finish()?;
    if port > LAST_PORT {
        return Err(wrong(format!("iobase={port:#x}: its eight ports end beyond 0xffff")));
    }
    if channel >= CHANNELS {
        return Err(wrong(format!("dma={channel}: it needs a channel of bytes, 0 to 3")));
    }
    let controllers = pc.buses.all(|bus| matches!(bus, Bus::Floppy(_)).then_some(())).len();
    let bus = match id_of(path) {
        Some(id) => format!("{id}.0"),
        None => format!("floppy-bus.{controllers}"),
    };
    pc.add_fdc(path, FdcPlace { port, channel }, irq, bus)?;
    Ok(())
}

/// Where a port of a kind that has a few usual places goes: its number and its first port. Told neither
/// `index` nor `iobase`, it takes the first place that no other has.
fn port_place(
    properties: &mut Properties,
    what: &str,
    usual: &[u16],
    used: &[(u16, u32)],
) -> Result<(usize, u16), BuildError> {
    let index: Option<usize> = properties.take_number("index")?;
    let iobase: Option<u16> = properties.take_number("iobase")?;
    let is_free = |port: &u16| used.iter().all(|(other, _)| other != port);
    let index = index.or_else(|| usual.iter().position(is_free)).unwrap_or(usual.len());
    match (usual.get(index), iobase) {
        (Some(&port), None) => Ok((index, port)),
        (_, Some(port)) => Ok((index, port)),
        (None, None) => Err(BuildError::Device(format!(
            "{}: Max. supported number of {what} ports is {}; give an index below that, or iobase and irq",
            properties.option(),
            usual.len()
        ))),
    }
}

fn isa_parallel(pc: &mut Pc, path: &str, mut properties: Properties) -> Result<(), BuildError> {
    let chardev = properties.require("chardev")?;
    let (_, port) = port_place(&mut properties, "parallel", &LPT_PORTS, &pc.parallel_ports)?;
    let irq = take_isa_irq(&mut properties)?.unwrap_or(parallel::IRQ);
    let option = properties.option().to_owned();
    properties.finish()?;
    let backend = pc.claim_chardev(&option, &chardev)?;
    pc.add_parallel_port(path, port, irq, backend)
}

/// Without a character device it is a port that nobody is at the other end of.
fn isa_serial(pc: &mut Pc, path: &str, mut properties: Properties) -> Result<(), BuildError> {
    let chardev = properties.take("chardev");
    let (index, port) = port_place(&mut properties, "ISA serial", &COM_PORTS, &pc.serial_ports)?;
    let irq = take_isa_irq(&mut properties)?.unwrap_or(com_line(index));
    let option = properties.option().to_owned();
    properties.finish()?;
    let backend = match chardev {
        Some(id) => pc.claim_chardev(&option, &id)?,
        None => Chardev::open(path, &ChardevSpec::Null, &|_| ())
            .map_err(|source| BuildError::Chardev { id: path.to_owned(), source })?,
    };
    pc.add_serial_port(path, port, irq, backend)
}

/// An interrupt line of the ISA bus.
fn take_isa_irq(properties: &mut Properties) -> Result<Option<u32>, OptionError> {
    let irq: Option<u32> = properties.take_number("irq")?;
    match irq.filter(|&irq| irq >= ISA_LINES) {
        Some(irq) => Err(OptionError::new(format!(
            "{}: irq={irq}: the ISA bus has interrupt lines 0 to {}",
            properties.option(),
            ISA_LINES - 1
        ))),
        None => Ok(irq),
    }
}

/// The bits that a pvpanic device knows.
fn take_events(properties: &mut Properties) -> Result<u8, OptionError> {
    Ok(properties.take_number("events")?.unwrap_or(pvpanic::EVENTS))
}

fn isa_pvpanic(pc: &mut Pc, _: &str, mut properties: Properties) -> Result<(), BuildError> {
    let port = properties.take_number("ioport")?.unwrap_or(pvpanic::PORT);
    let events = take_events(&mut properties)?;
    properties.finish()?;
    let device = PvPanic::new(events, pc.control.clone());
    device.attach(&pc.ports, port)?;
    // Guests find it by this item, or by ACPI.
    pc.pvpanic = Some(port);
    pc.add_item("etc/pvpanic-port", port.to_le_bytes().to_vec())?;
    pc.devices.push(device);
    Ok(())
}

fn pci_pvpanic(pc: &mut Pc, path: &str, mut properties: Properties) -> Result<(), BuildError> {
    let place = PciPlace::take(pc, &mut properties)?;
    let events = take_events(&mut properties)?;
    properties.finish()?;
    let control = pc.control.clone();
    let make = |wiring| Ok(PvPanicPci::new(path, events, wiring, control));
    let function = pc.make_function(path, &place, "pvpanic-pci", make)?;
    pc.devices.push(function);
    Ok(())
}

fn vmgenid(pc: &mut Pc, _: &str, mut properties: Properties) -> Result<(), BuildError> {
    let text = properties.take("guid").unwrap_or_else(|| "auto".to_owned());
    let option = properties.option().to_owned();
    properties.finish()?;
    let guid = match text.as_str() {
        "auto" => random_uuid().map_err(|e| BuildError::Device(format!("{option}: {e}")))?,
        text => Uuid::try_parse(text)
            .map_err(|_| OptionError::value(&option, text, "guid= expects a UUID or 'auto'"))?,
    };
    if pc.vmgenid.is_some() {
        let reason = "at most one vmgenid device is permitted";
        return Err(BuildError::Device(format!("{option}: {reason}")));
    }
    // Windows' order: the first three fields are little-endian.
    let device = VmGenId::new(&pc.memory, guid.to_bytes_le())?;
    pc.vmgenid = Some(device.clone());
    pc.devices.push(device);
    Ok(())
}

/// A UUID of random bits (RFC 9562, version 4).
fn random_uuid() -> std::io::Result<Uuid> {
    let mut bytes = [0; 16];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(uuid::Builder::from_random_bytes(bytes).into_uuid())
}
