//! USB host controllers and devices.

use std::sync::Arc;

use block::OnError;
use devices::pci::{Devfn, PciFunction, PciWiring};
use devices::scsi::{Kind, Lun, LunOptions, Transport};
use devices::usb::hid::{Hid, HidKind};
use devices::usb::hub::{self, UsbHub};
use devices::usb::storage::{UsbStorage, Worker};
use devices::usb::uhci::{Uhci, UhciModel};
use devices::usb::{FreePort, Peripheral, UsbBus};
use input::Target;
use options::{OptionError, Properties};

use super::scsi::take_blocks;
use super::storage::query_name;
use super::{Bus, Driver, ON_OFF_AUTO, PciPlace};
use crate::BuildError;
use crate::pc::bios::pci_path;
use crate::pc::board::Pc;

/// Place of the chipset's controller on the PCI bus.
const CHIPSET_PLACE: Devfn = Devfn::new(1, 2);

const fn controller(
    name: &'static str,
    description: &'static str,
    make: fn(&mut Pc, &str, Properties) -> Result<(), BuildError>,
) -> Driver {
    Driver { name, aliases: &[], bus: "PCI", description, make }
}

/// The kinds of this topic.
pub(super) const DRIVERS: &[Driver] = &[
    controller("ich9-usb-uhci1", "USB 1.1 controller", |pc, id, p| uhci(pc, id, p, ICH9[0])),
    controller("ich9-usb-uhci2", "USB 1.1 controller", |pc, id, p| uhci(pc, id, p, ICH9[1])),
    controller("ich9-usb-uhci3", "USB 1.1 controller", |pc, id, p| uhci(pc, id, p, ICH9[2])),
    controller("ich9-usb-uhci4", "USB 1.1 controller", |pc, id, p| uhci(pc, id, p, ICH9[3])),
    controller("ich9-usb-uhci5", "USB 1.1 controller", |pc, id, p| uhci(pc, id, p, ICH9[4])),
    controller("ich9-usb-uhci6", "USB 1.1 controller", |pc, id, p| uhci(pc, id, p, ICH9[5])),
    controller("piix3-usb-uhci", "USB 1.1 controller of the PIIX3", |pc, id, p| {
        uhci(pc, id, p, UhciModel::PIIX3)
    }),
    controller("piix4-usb-uhci", "USB 1.1 controller of the PIIX4", |pc, id, p| {
        uhci(pc, id, p, UhciModel::PIIX4)
    }),
    Driver {
        name: "usb-hub",
        aliases: &[],
        bus: "usb-bus",
        description: "hub with up to eight ports",
        make: usb_hub,
    },
    Driver {
        name: "usb-kbd",
        aliases: &[],
        bus: "usb-bus",
        description: "keyboard",
        make: |pc, path, properties| hid(pc, path, properties, HidKind::Keyboard),
    },
    Driver {
        name: "usb-mouse",
        aliases: &[],
        bus: "usb-bus",
        description: "mouse",
        make: |pc, path, properties| hid(pc, path, properties, HidKind::Mouse),
    },
    Driver {
        name: "usb-storage",
        aliases: &[],
        bus: "usb-bus",
        description: "disk or CD-ROM drive",
        make: usb_storage,
    },
    Driver {
        name: "usb-tablet",
        aliases: &[],
        bus: "usb-bus",
        description: "pointer that tells of positions",
        make: |pc, path, properties| hid(pc, path, properties, HidKind::Tablet),
    },
];

const ICH9: [UhciModel; 6] = [
    UhciModel::ich9(0),
    UhciModel::ich9(1),
    UhciModel::ich9(2),
    UhciModel::ich9(3),
    UhciModel::ich9(4),
    UhciModel::ich9(5),
];

/// A host controller's ports, and where it is.
pub struct UsbHost {
    name: String,
    /// Begins the serial numbers of the devices that have none of their own.
    path: String,
    ports: UsbBus,
    /// The controller as firmware names it.
    firmware: String,
}

impl Pc {
    /// Adds the chipset's controller if the machine is to have it.
    pub(in crate::pc) fn add_usb(&mut self) -> Result<(), BuildError> {
        if !self.spec.usb {
            return Ok(());
        }
        let devfn = self
            .pci
            .reserve(Some(CHIPSET_PLACE), "piix3-usb-uhci")
            .map_err(|e| BuildError::Device(e.to_string()))?;
        let wiring = self.pci.wiring(devfn, UhciModel::PIIX3.pin);
        self.add_uhci("piix3-usb-uhci", (devfn, wiring), UhciModel::PIIX3, None);
        Ok(())
    }

    /// Puts a controller at a place that was reserved; its bus is called after `id` if it has one.
    fn add_uhci(
        &mut self,
        path: &str,
        (devfn, wiring): (Devfn, PciWiring),
        model: UhciModel,
        id: Option<&str>,
    ) {
        let uhci = Uhci::new(path, model, wiring, self.memory.clone(), &self.timers);
        self.pci.attach(devfn, uhci.clone() as Arc<dyn PciFunction>);
        let name = match id {
            Some(id) => format!("{id}.0"),
            None => format!(
                "usb-bus.{}",
                self.buses.all(|bus| matches!(bus, Bus::Usb(_)).then_some(())).len()
            ),
        };
        let host = UsbHost {
            name: name.clone(),
            path: format!("0000:00:{devfn}"),
            ports: UsbBus::default(),
            firmware: pci_path("usb", devfn),
        };
        host.ports.add_ports(None, &uhci);
        self.buses.add(name, Bus::Usb(Arc::new(host)));
        self.devices.push(uhci);
    }

    /// Makes a hub with as many ports and plugs it in.
    fn plug_hub(&mut self, path: &str, host: &UsbHost, port: FreePort, ports: usize) {
        let hub = UsbHub::new(format!("314159-{}-{}", host.path, port.path), ports);
        host.ports.add_ports(Some(&port.path), &hub);
        let peripheral = Peripheral::new(path, hub);
        port.plug(peripheral.clone());
        self.devices.push(peripheral);
    }
}

fn uhci(
    pc: &mut Pc,
    path: &str,
    mut properties: Properties,
    model: UhciModel,
) -> Result<(), BuildError> {
    let place = PciPlace::take(pc, &mut properties)?;
    properties.finish()?;
    let failed = |e: String| BuildError::Device(format!("device {path}: {e}"));
    let (devfn, wiring) = place.reserve(pc, "uhci").map_err(|e| failed(e.to_string()))?;
    // The board's first is not on pin A.
    let wiring =
        PciWiring { multifunction: wiring.multifunction, ..pc.pci.wiring(devfn, model.pin) };
    let id = path.strip_prefix("/machine/peripheral/");
    pc.add_uhci(path, (devfn, wiring), model, id);
    Ok(())
}

/// Takes `bus=` and `port=` of a device of this kind and finds its port. When only one port is left, a
/// device that is no hub gets a hub to itself, so that there is room for more.
fn take_port(
    pc: &mut Pc,
    path: &str,
    driver: &str,
    properties: &mut Properties,
) -> Result<(Arc<UsbHost>, FreePort), BuildError> {
    let hosts = pc.buses.take(properties, |bus| match bus {
        Bus::Usb(host) => Some(host.clone()),
        _ => None,
    })?;
    let option = properties.option().to_owned();
    let wanted = properties.take("port");
    let refused = |text: String| BuildError::Device(format!("{option}: {text}"));
    let Some(first) = hosts.first() else {
        return Err(refused(format!(
            "No 'usb-bus' bus found for device '{driver}'; -usb adds a controller"
        )));
    };
    let host = hosts.iter().find(|host| host.ports.free() > 0).unwrap_or(first).clone();
    if wanted.is_none()
        && driver != "usb-hub"
        && host.ports.free() == 1
        && let Some(port) = host.ports.take(None)
    {
        pc.plug_hub(&format!("{path}/usb-hub"), &host, port, hub::MAX_PORTS);
    }
    let port = host.ports.take(wanted.as_deref()).ok_or_else(|| match wanted {
        Some(port) => refused(format!("usb port {port} (bus {}) not found (in use?)", host.name)),
        None => refused(format!(
            "tried to attach usb device {driver} to a bus with no free ports; add a usb-hub"
        )),
    })?;
    Ok((host, port))
}

fn usb_hub(pc: &mut Pc, path: &str, mut properties: Properties) -> Result<(), BuildError> {
    let ports = properties.take_number("ports")?.unwrap_or(hub::MAX_PORTS);
    if !(1..=hub::MAX_PORTS).contains(&ports) {
        let option = properties.option();
        let reason = format!("num_ports ({ports}) out of range (1..{})", hub::MAX_PORTS);
        return Err(BuildError::Device(format!("{option}: {reason}")));
    }
    let (host, port) = take_port(pc, path, "usb-hub", &mut properties)?;
    properties.finish()?;
    pc.plug_hub(path, &host, port, ports);
    Ok(())
}

/// The console that an input device is bound to (`display=`, `head=`).
pub(super) fn take_console(properties: &mut Properties) -> Result<Option<Target>, OptionError> {
    let head = properties.take_number("head")?.unwrap_or(0);
    let console = |id| Target { device: format!("/machine/peripheral/{id}"), head };
    Ok(properties.take("display").map(console))
}

fn hid(
    pc: &mut Pc,
    path: &str,
    mut properties: Properties,
    kind: HidKind,
) -> Result<(), BuildError> {
    let driver = match kind {
        HidKind::Keyboard => "usb-kbd",
        HidKind::Mouse => "usb-mouse",
        HidKind::Tablet => "usb-tablet",
    };
    let console = take_console(&mut properties)?;
    let serial = properties.take("serial");
    let version: u32 = properties.take_number("usb_version")?.unwrap_or(2);
    if !(1..=2).contains(&version) {
        return Err(BuildError::Device(format!(
            "{}: Invalid usb version {version} for usb hid device",
            properties.option()
        )));
    }
    let (host, port) = take_port(pc, path, driver, &mut properties)?;
    properties.finish()?;
    let serial = serial.unwrap_or_else(|| kind.serial(&format!("{}-{}", host.path, port.path)));
    let clock = pc.timers.clock().clone();
    let device = Hid::new(kind, serial, console, &pc.input, clock);
    let peripheral = Peripheral::new(path, device);
    port.plug(peripheral.clone());
    pc.devices.push(peripheral);
    Ok(())
}

fn usb_storage(pc: &mut Pc, path: &str, mut properties: Properties) -> Result<(), BuildError> {
    let option = properties.option().to_owned();
    let failed = |e: String| BuildError::Device(format!("{option}: {e}"));
    let drive_id =
        properties.take("drive").ok_or_else(|| failed("drive property not set".into()))?;
    let kind = pc.spec.drives.iter().find(|spec| spec.id == drive_id).map(|spec| spec.is_cdrom);
    let mut options = match kind {
        Some(true) => LunOptions::cdrom(Transport::Scsi),
        _ => LunOptions::disk(),
    };
    options.keeps_sense = true;
    let serial = properties.take("serial");
    options.serial = serial.clone().unwrap_or_default();
    let removable = properties.take_bool("removable")?.unwrap_or(false);
    let share_rw = properties.take_bool("share-rw")?;
    options.share_rw = share_rw.unwrap_or(options.share_rw);
    if options.kind == Kind::Disk {
        options.removable = removable;
        take_blocks(&mut properties, &mut options)?;
    }
    let on_read_error = properties.take_choice("rerror", OnError::READ)?;
    let on_write_error = properties.take_choice("werror", OnError::WRITE)?;
    let write_cache = properties.take_choice("write-cache", ON_OFF_AUTO)?.flatten();
    let bootindex = pc.boot_order.take(&mut properties)?;
    let (host, port) = take_port(pc, path, "usb-storage", &mut properties)?;
    properties.finish()?;
    let drive = pc.find_drive(&option, "usb-storage.drive", &drive_id)?;
    options.device_id = serial.as_deref().unwrap_or(&drive_id).chars().take(20).collect();
    drive.set_error_policy(on_read_error, on_write_error);
    if let Some(on) = write_cache {
        drive.set_write_cache(on);
    }
    let lun = Lun::new(drive, query_name(path), options).map_err(|e| failed(e.to_string()))?;
    let serial = serial.unwrap_or_else(|| format!("1-{}-{}", host.path, port.path));
    let device = UsbStorage::new(lun, serial, Worker::Thread).map_err(|e| failed(e.to_string()))?;
    pc.boot_order.add(bootindex, storage_path(&host.firmware, &port.path));
    let peripheral = Peripheral::new(path, device);
    port.plug(peripheral.clone());
    pc.devices.push(peripheral);
    Ok(())
}

/// How firmware names the disk at `port`, behind hubs if the port's path has more than one part.
fn storage_path(controller: &str, port: &str) -> String {
    let (hubs, last) = port.rsplit_once('.').map_or(("", port), |(hubs, last)| (hubs, last));
    let hubs: String =
        hubs.split('.').filter(|hub| !hub.is_empty()).map(|hub| format!("/hub@{hub}")).collect();
    format!("{controller}{hubs}/storage@{last}/channel@0/disk@0,0")
}
