//! Devices on the ISA bus: what Plug and Play identifiers they have, and their ports, interrupts and DMA
//! channels.

use acpi_tables::aml::*;
use acpi_tables::{Aml, AmlSink};
use devices::fdc::DriveType;
use devices::irq::line;

use super::dsdt::{Sequence, hid};
use super::{Config, PRESENT, WORKING};

/// The floppy controller's ports: from the digital output register on, and the digital input register.
const FLOPPY_PORTS: [(u16, u8); 2] = [(0x3f2, 4), (0x3f7, 1)];
const FLOPPY_DMA: u8 = 2;
const FLOPPY_DRIVES: [&str; 2] = ["FLPA", "FLPB"];

/// A channel of the 8237s, for transfers of bytes (ACPI 6.5, section 6.4.2.2).
struct Dma(u8);

impl Aml for Dma {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        const DESCRIPTOR: u8 = 0x2a;
        sink.byte(DESCRIPTOR);
        sink.byte(1 << self.0);
        // Compatible timing, no bus master, 8 bits: all clear.
        sink.byte(0);
    }
}

fn ports(start: u16, count: u8) -> IO {
    IO::new(start, start, 1, count)
}

/// An interrupt as devices on ISA have it: by an edge.
fn interrupt(line: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, line)
}

/// A device of the Plug and Play kind `id` with an interrupt and these ports.
fn device(name: &str, id: &str, uid: Option<u8>, line: u32, ports: Vec<IO>) -> Sequence {
    let interrupt = interrupt(line);
    let mut resources: Vec<&dyn Aml> = ports.iter().map(|ports| ports as &dyn Aml).collect();
    resources.push(&interrupt);
    let mut body = Sequence::new();
    body.add(&hid(id));
    if let Some(uid) = uid {
        body.add(&Name::new("_UID".into(), &uid));
    }
    body.add(&Name::new("_STA".into(), &PRESENT));
    body.add(&Name::new("_CRS".into(), &ResourceTemplate::new(resources)));
    let mut device = Sequence::new();
    device.add(&Device::new(name.into(), vec![&body]));
    device
}

/// All of them.
pub(super) fn devices(config: &Config) -> Sequence {
    let mut all = Sequence::new();
    all.add(&device("RTC_", "PNP0B00", None, line::RTC, vec![ports(0x70, 2)]));
    let keyboard = vec![ports(0x60, 1), ports(0x64, 1)];
    all.add(&device("KBD_", "PNP0303", None, line::KEYBOARD, keyboard));
    all.add(&device("MOU_", "PNP0F13", None, line::MOUSE, vec![]));
    all.add(&floppy_controller(&config.floppies));
    for (&(port, line), uid) in config.parallel_ports.iter().zip(1..) {
        let name = format!("LPT{uid}");
        all.add(&device(&name, "PNP0400", Some(uid), line, vec![ports(port, 8)]));
    }
    for (&(port, line), uid) in config.serial_ports.iter().zip(1..) {
        let name = format!("COM{uid}");
        all.add(&device(&name, "PNP0501", Some(uid), line, vec![ports(port, 8)]));
    }
    if let Some(port) = config.pvpanic {
        all.add(&Device::new(
            "PEVT".into(),
            vec![
                &Name::new("_HID".into(), &"QEMU0001"),
                &Name::new("_STA".into(), &WORKING),
                &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports(port, 1)])),
            ],
        ));
    }
    all
}

/// The controller, which drives it has (`_FDE`), and each drive.
fn floppy_controller(drives: &[Option<DriveType>; 2]) -> Sequence {
    let mut present = [0u8; 20];
    // A drive for tapes is never there.
    present[16] = 2;
    let mut children = Sequence::new();
    for ((name, drive), number) in FLOPPY_DRIVES.into_iter().zip(drives).zip(0u8..) {
        let Some(drive) = drive else { continue };
        present[usize::from(number) * 4] = 1;
        children.add(&Device::new(
            name.into(),
            vec![
                &Name::new("_ADR".into(), &number),
                &Name::new("_FDI".into(), &drive_information(number, *drive)),
            ],
        ));
    }
    let [output, input] = FLOPPY_PORTS.map(|(start, count)| ports(start, count));
    let interrupt = interrupt(line::FLOPPY);
    let resources: Vec<&dyn Aml> = vec![&output, &input, &interrupt, &Dma(FLOPPY_DMA)];
    let mut controller = Sequence::new();
    controller.add(&Device::new(
        "FDC0".into(),
        vec![
            &hid("PNP0700"),
            &Name::new("_STA".into(), &PRESENT),
            &Name::new("_CRS".into(), &ResourceTemplate::new(resources)),
            &children,
            &Name::new("_FDE".into(), &BufferData::new(present.to_vec())),
        ],
    ));
    controller
}

/// A drive's parameters (ACPI 6.5, section 9.9.2), the second half as BIOSes have them in their table of
/// diskette parameters.
fn drive_information(number: u8, drive: DriveType) -> PackageBuilder {
    let (cylinders, sectors) = drive.capacity();
    let information: [u8; 16] = [
        number,
        drive.cmos(),
        cylinders - 1,
        sectors,
        1,
        // Step rate and head unload time, head load time and DMA, time until the motor is switched off.
        0xaf,
        0x02,
        0x25,
        // Size code, last sector, gap, data length.
        2,
        sectors,
        0x1b,
        0xff,
        // For formatting: gap and filling.
        0x6c,
        0xf6,
        // Head settle time in ms, motor start time in units of 125 ms.
        0x0f,
        0x08,
    ];
    let mut package = PackageBuilder::new();
    information.iter().for_each(|number| package.add_element(number));
    package
}
