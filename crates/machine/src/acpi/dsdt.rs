//! The DSDT: the board's devices in AML.

use acpi_tables::aml::*;
use acpi_tables::{Aml, AmlSink};
use devices::irq::line;
use devices::piix::{self, reg};
use devices::{fw_cfg, hpet};

use super::{Config, Interrupts, PCI_LINES, WORKING, isa};

/// A link's register has this bit set while it is routed nowhere.
const ROUTE_OFF: u8 = 0x80;
const ROUTE_LINE: u8 = 0x0f;
/// Offset of the interrupt number in [`Interrupts`].
const INTERRUPT_NUMBER: u8 = 5;
/// Status of a link that is routed nowhere: present and working.
const DISABLED: u8 = 0x09;

const LINKS: [&str; 4] = ["LNKA", "LNKB", "LNKC", "LNKD"];
const SCI_LINK: &str = "LNKS";
const ROUTES: [&str; 4] = ["PRQ0", "PRQ1", "PRQ2", "PRQ3"];

/// Objects one after another.
pub(super) struct Sequence(Vec<u8>);

impl Sequence {
    pub(super) fn new() -> Self {
        Self(Vec::new())
    }

    pub(super) fn add(&mut self, object: &dyn Aml) {
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
    let mut system = Sequence::new();
    system.add(&pci_root(config));
    system.add(&links());
    if config.hpet {
        system.add(&hpet_device());
    }
    system.add(&processors(config));
    body.add(&Scope::new("\\_SB_".into(), vec![&system]));
    body.add(&Scope::new("\\_GPE".into(), vec![&Name::new("_HID".into(), &"ACPI0006")]));
    // Soft off: sleep type 0 for both control registers.
    body.add(&Name::new("\\_S5_".into(), &Package::new(vec![&ZERO, &ZERO, &ZERO, &ZERO])));
    let sleep = &config.sleep;
    if sleep.suspend {
        body.add(&Name::new("\\_S3_".into(), &Package::new(vec![&ONE, &ONE, &ZERO, &ZERO])));
    }
    if sleep.hibernate {
        let kind = &sleep.hibernate_type;
        body.add(&Name::new("\\_S4_".into(), &Package::new(vec![kind, kind, &ZERO, &ZERO])));
    }
    let mut dsdt = config.table(b"DSDT", 2);
    dsdt.append_slice(&body.0);
    dsdt.as_slice().to_vec()
}

pub(super) fn hid(name: &str) -> Name {
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
        &AddressSpace::new_memory(
            AddressSpaceCacheable::Cacheable,
            true,
            config.pci_hole_64.start,
            config.pci_hole_64.end - 1,
            None,
        ),
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
            &general_purpose_events(),
            &firmware_configuration(),
        ],
    ));
    root
}

/// The ports of the general purpose events, which are nowhere else on the bus.
fn general_purpose_events() -> Sequence {
    let mut device = Sequence::new();
    let ports = IO::new(piix::GPE_PORT, piix::GPE_PORT, 1, piix::GPE_PORTS);
    device.add(&Device::new(
        "GPE0".into(),
        vec![
            &hid("PNP0A06"),
            &Name::new("_UID".into(), &"GPE0 resources"),
            &Name::new("_STA".into(), &WORKING),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports])),
        ],
    ));
    device
}

/// The firmware configuration device, by the name that its drivers know.
fn firmware_configuration() -> Sequence {
    const PORTS: u8 = 12;
    let mut device = Sequence::new();
    let ports = IO::new(fw_cfg::PORT, fw_cfg::PORT, 1, PORTS);
    device.add(&Device::new(
        "FWCF".into(),
        vec![
            &Name::new("_HID".into(), &"QEMU0002"),
            &Name::new("_STA".into(), &WORKING),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports])),
        ],
    ));
    device
}

/// The high precision event timer.
fn hpet_device() -> Sequence {
    let registers = Memory32Fixed::new(false, hpet::BASE as u32, hpet::MMIO_SIZE as u32);
    let mut device = Sequence::new();
    device.add(&Device::new(
        "HPET".into(),
        vec![
            &hid("PNP0103"),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&registers])),
        ],
    ));
    device
}

/// Each slot's four pins and the link they end at. The first pin of the chipset's own slot is that of the
/// power management function, whose interrupt is wired to the SCI.
fn routing_table() -> PackageBuilder {
    let mut table = PackageBuilder::new();
    for slot in 0..32u32 {
        for pin in 0..4u8 {
            let link = (slot as usize + usize::from(pin) + 3) % 4;
            let address = slot << 16 | 0xffff;
            let is_sci = (slot, pin) == (1, 0);
            let link = Path::new(if is_sci { SCI_LINK } else { LINKS[link] });
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
            &isa::devices(config),
        ],
    ));
    bridge
}

/// The four PCI interrupt links: devices whose interrupt the guest may choose.
fn links() -> Sequence {
    let mut links = Sequence::new();
    for ((name, route), uid) in LINKS.into_iter().zip(ROUTES).zip(0u8..) {
        let route = Path::new(&format!("\\_SB_.PCI0.ISA_.{route}"));
        links.add(&link(name, &route, uid));
    }
    links.add(&sci_link());
    links
}

/// The link that can't be routed elsewhere.
fn sci_link() -> Sequence {
    let resources = ResourceTemplate::new(vec![&Interrupts(&[line::SCI])]).to_bytes();
    let uid = LINKS.len() as u8;
    let mut link = Sequence::new();
    link.add(&Device::new(
        SCI_LINK.into(),
        vec![
            &hid("PNP0C0F"),
            &Name::new("_UID".into(), &uid),
            &Name::new("_STA".into(), &WORKING),
            &Name::new("_PRS".into(), &resources),
            &Name::new("_CRS".into(), &resources),
            &Method::new("_DIS".into(), 0, false, vec![]),
            &Method::new("_SRS".into(), 1, false, vec![]),
        ],
    ));
    link
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

fn processors(config: &Config) -> Sequence {
    let mut processors = Sequence::new();
    for cpu in 0..config.apic_ids.len() as u8 {
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
