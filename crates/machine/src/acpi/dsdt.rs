//! The DSDT: the board's devices in AML.

use acpi_tables::aml::*;
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};
use devices::irq::line;
use devices::piix::reg;
use devices::vmgenid;

use super::{Config, Interrupts, OEM_ID, OEM_REVISION, OEM_TABLE_ID, PCI_LINES};

/// A link's register has this bit set while it is routed nowhere.
const ROUTE_OFF: u8 = 0x80;
const ROUTE_LINE: u8 = 0x0f;
/// Offset of the interrupt number in [`Interrupts`].
const INTERRUPT_NUMBER: u8 = 5;
/// Status: present, enabled, shown, working; and the same without enabled.
const WORKING: u8 = 0x0b;
const DISABLED: u8 = 0x09;

const LINKS: [&str; 4] = ["LNKA", "LNKB", "LNKC", "LNKD"];
const ROUTES: [&str; 4] = ["PRQ0", "PRQ1", "PRQ2", "PRQ3"];

/// Objects one after another.
struct Sequence(Vec<u8>);

impl Sequence {
    fn new() -> Self {
        Self(Vec::new())
    }

    fn add(&mut self, object: &dyn Aml) {
        object.to_aml_bytes(&mut self.0);
    }
}

impl Aml for Sequence {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// Builds the table.
pub(super) fn build(config: &Config) -> Vec<u8> {
    let mut body = Sequence::new();
    body.add(&Scope::new("\\_SB_".into(), vec![&pci_root(config), &links(), &processors(config)]));
    // Soft off: sleep type 0 for both control registers.
    body.add(&Name::new("\\_S5_".into(), &Package::new(vec![&ZERO, &ZERO, &ZERO, &ZERO])));
    if config.suspend {
        // Memory kept, and hibernation.
        body.add(&Name::new("\\_S3_".into(), &Package::new(vec![&ONE, &ONE, &ZERO, &ZERO])));
        body.add(&Name::new("\\_S4_".into(), &Package::new(vec![&2u8, &2u8, &ZERO, &ZERO])));
    }
    if config.vmgenid {
        body.add(&Scope::new("\\_SB_".into(), vec![&generation_id()]));
    }
    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    dsdt.append_slice(&body.0);
    dsdt.as_slice().to_vec()
}

fn hid(name: &str) -> Name {
    Name::new("_HID".into(), &EISAName::new(name))
}

fn pci_root(config: &Config) -> Sequence {
    let hole = &config.pci_hole;
    let memory = |start: u32, last: u32| {
        AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, start, last, None)
    };
    let resources = ResourceTemplate::new(vec![
        &AddressSpace::new_bus_number(0u16, 0xff),
        &IO::new(0xcf8, 0xcf8, 1, 8),
        &AddressSpace::new_io(0u16, 0xcf7, None),
        &AddressSpace::new_io(0xd00u16, 0xffff, None),
        &memory(0xa_0000, 0xb_ffff),
        &memory(hole.start as u32, (hole.end - 1) as u32),
    ])
    .to_bytes();
    let mut root = Sequence::new();
    root.add(&Device::new(
        "PCI0".into(),
        vec![
            &hid("PNP0A03"),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &resources),
            &Name::new("_PRT".into(), &routing_table()),
            &isa_bridge(config),
        ],
    ));
    root
}

/// Each slot's four pins and the link they end at.
fn routing_table() -> PackageBuilder {
    let mut table = PackageBuilder::new();
    for slot in 0..32u32 {
        for pin in 0..4u8 {
            let link = (slot as usize + usize::from(pin) + 3) % 4;
            let address = slot << 16 | 0xffff;
            let link = Path::new(LINKS[link]);
            table.add_element(&Package::new(vec![&address, &pin, &link, &ZERO]));
        }
    }
    table
}

fn isa_bridge(config: &Config) -> Sequence {
    let registers = u8::try_from(reg::PIRQ_ROUTES).unwrap_or(u8::MAX);
    let routes = ROUTES.map(|name| {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(name.as_bytes());
        FieldEntry::Named(bytes, 8)
    });
    let field = Field::new(
        "P40C".into(),
        FieldAccessType::Byte,
        FieldLockRule::NoLock,
        FieldUpdateRule::Preserve,
        routes.to_vec(),
    );
    let mut bridge = Sequence::new();
    bridge.add(&Device::new(
        "ISA_".into(),
        vec![
            &Name::new("_ADR".into(), &0x0001_0000u32),
            &OpRegion::new("P40C".into(), OpRegionSpace::PCIConfig, &registers, &4u8),
            &field,
            &isa_devices(config),
        ],
    ));
    bridge
}

fn isa_devices(config: &Config) -> Sequence {
    let mut devices = Sequence::new();
    let mut device = |name: &str, id: &str, uid: Option<u8>, resources: Vec<&dyn Aml>| {
        let mut body = Sequence::new();
        body.add(&hid(id));
        if let Some(uid) = uid {
            body.add(&Name::new("_UID".into(), &uid));
        }
        body.add(&Name::new("_STA".into(), &0x0fu8));
        body.add(&Name::new("_CRS".into(), &ResourceTemplate::new(resources)));
        devices.add(&Device::new(name.into(), vec![&body]));
    };
    let isa = |line: u32| Interrupt::new(true, true, false, false, line);
    device("RTC_", "PNP0B00", None, vec![&IO::new(0x70, 0x70, 1, 2), &isa(line::RTC)]);
    device(
        "KBD_",
        "PNP0303",
        None,
        vec![&IO::new(0x60, 0x60, 1, 1), &IO::new(0x64, 0x64, 1, 1), &isa(line::KEYBOARD)],
    );
    device("MOU_", "PNP0F13", None, vec![&isa(line::MOUSE)]);
    for (&(port, line), uid) in config.serial_ports.iter().zip(1..) {
        let name = format!("COM{uid}");
        device(&name, "PNP0501", Some(uid), vec![&IO::new(port, port, 1, 8), &isa(line)]);
    }
    devices
}

/// The four PCI interrupt links: devices whose interrupt the guest may choose.
fn links() -> Sequence {
    let mut links = Sequence::new();
    for ((name, route), uid) in LINKS.into_iter().zip(ROUTES).zip(0u8..) {
        let route = Path::new(&format!("\\_SB_.PCI0.ISA_.{route}"));
        links.add(&link(name, &route, uid));
    }
    links
}

fn link(name: &str, route: &Path, uid: u8) -> Sequence {
    let possible = ResourceTemplate::new(vec![&Interrupts(&PCI_LINES)]).to_bytes();
    let current = ResourceTemplate::new(vec![&Interrupts(&[0])]).to_bytes();
    let buffer = Path::new("BUF0");
    let number = Path::new("NUM0");
    let status = Method::new(
        "_STA".into(),
        0,
        false,
        vec![
            &If::new(&And::new(&ZERO, route, &ROUTE_OFF), vec![&Return::new(&DISABLED)]),
            &Return::new(&WORKING),
        ],
    )
    .to_bytes();
    let disable =
        Method::new("_DIS".into(), 0, false, vec![&Or::new(route, route, &ROUTE_OFF)]).to_bytes();
    let get = Method::new(
        "_CRS".into(),
        0,
        true,
        vec![
            &CreateDWordField::new(&number, &buffer, &INTERRUPT_NUMBER),
            &If::new(
                &Equal::new(&And::new(&ZERO, route, &ROUTE_OFF), &ZERO),
                vec![&And::new(&number, route, &ROUTE_LINE)],
            ),
            &Return::new(&buffer),
        ],
    )
    .to_bytes();
    let set = Method::new(
        "_SRS".into(),
        1,
        true,
        vec![
            &CreateDWordField::new(&number, &Arg(0), &INTERRUPT_NUMBER),
            &Store::new(route, &number),
        ],
    )
    .to_bytes();
    let mut link = Sequence::new();
    link.add(&Device::new(
        name.into(),
        vec![
            &hid("PNP0C0F"),
            &Name::new("_UID".into(), &uid),
            &Name::new("_PRS".into(), &possible),
            &Name::new("BUF0".into(), &current),
            &status,
            &disable,
            &get,
            &set,
        ],
    ));
    link
}

/// The generation ID ("Virtual Machine Generation ID", 2012).
fn generation_id() -> Sequence {
    let low = vmgenid::BASE as u32;
    let mut device = Sequence::new();
    device.add(&Device::new(
        "VGEN".into(),
        vec![
            &Name::new("_HID".into(), &"QEMUVGID"),
            &Name::new("_CID".into(), &"VM_Gen_Counter"),
            &Name::new("_DDN".into(), &"VM_Gen_Counter"),
            &Name::new("ADDR".into(), &Package::new(vec![&low, &ZERO])),
        ],
    ));
    device
}

fn processors(config: &Config) -> Sequence {
    let mut processors = Sequence::new();
    for cpu in 0..config.cpus as u8 {
        processors.add(&Device::new(
            Path::new(&format!("C{cpu:03X}")),
            vec![&Name::new("_HID".into(), &"ACPI0007"), &Name::new("_UID".into(), &cpu)],
        ));
    }
    processors
}

/// Bytes of an object, to go into one that outlives it.
trait ToBytes: Aml {
    fn to_bytes(&self) -> Sequence {
        let mut bytes = Sequence::new();
        bytes.add(self.as_aml());
        bytes
    }

    fn as_aml(&self) -> &dyn Aml;
}

impl<T: Aml> ToBytes for T {
    fn as_aml(&self) -> &dyn Aml {
        self
    }
}
