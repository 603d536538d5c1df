//! The ACPI tables of the `pc` machine (ACPI 6.5).
//!
//! [`Image::new`] makes RSDT, XSDT, FADT, FACS, MADT, DSDT and others as one image that can go anywhere: pointers
//! are offsets in it. [`Image::place`] puts it to an address, for machines without firmware; [`loader`]
//! has firmware do the same. The tables describe the board as its devices are wired in `devices`;
//! addresses that firmware chooses come in [`Config`].

mod custom;
mod dsdt;
mod generation_id;
mod isa;
pub mod loader;
#[cfg(test)]
mod tests;

use std::ops::Range;

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use devices::fdc::DriveType;
use devices::irq::line;
use devices::piix::{ACPI_DISABLE, ACPI_ENABLE, GPE_PORT, GPE_PORTS};
use devices::{hpet, ioapic, lapic};

use crate::pc::SleepStates;
pub use custom::TableSpec;
pub(crate) use custom::licensee;

/// Who made the tables, and their id.
pub const OEM_ID: [u8; 6] = *b"RHEA  ";
/// See [`OEM_ID`].
pub const OEM_TABLE_ID: [u8; 8] = *b"RHEAPC  ";
const OEM_REVISION: u32 = 1;

/// Port of PIIX3's reset control register, and the value that resets everything.
const RESET_PORT: u64 = 0xcf9;
const RESET_VALUE: u8 = 0x06;
/// PIIX4's SMI command port.
const SMI_COMMAND_PORT: u32 = 0xb2;
/// CMOS register of the century.
const CENTURY: u8 = 0x32;
/// Id of the I/O APIC, as other boards of this kind have it.
const IOAPIC_ID: u8 = 0;

/// Status of devices: present, enabled, shown and working; and not to be shown.
const PRESENT: u8 = 0x0f;
const WORKING: u8 = 0x0b;

/// Interrupt lines that PCI interrupts can be routed to, level-triggered and active high.
const PCI_LINES: [u32; 3] = [5, 10, 11];

/// What the tables depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Who made the tables.
    pub oem_id: [u8; 6],
    /// The tables' id.
    pub oem_table_id: [u8; 8],
    /// The local APIC id of each CPU.
    pub apic_ids: Vec<u8>,
    /// Window for PCI memory below 4 GiB.
    pub pci_hole: Range<u64>,
    /// The same above.
    pub pci_hole_64: Range<u64>,
    /// Base of PIIX4's power management ports.
    pub pm_base: u16,
    /// There is an HPET.
    pub hpet: bool,
    /// There is a generation ID.
    pub vmgenid: bool,
    /// How the guest may sleep.
    pub sleep: SleepStates,
    /// There is a VGA.
    pub vga: bool,
    /// Serial ports: first port, interrupt line.
    pub serial_ports: Vec<(u16, u32)>,
    /// Parallel ports: first port, interrupt line.
    pub parallel_ports: Vec<(u16, u32)>,
    /// Floppy drives.
    pub floppies: [Option<DriveType>; 2],
    /// The port of the device by which a guest says that it panicked.
    pub pvpanic: Option<u16>,
    /// Tables of the user's.
    pub custom: Vec<Vec<u8>>,
}

impl Config {
    /// A table without a body.
    fn table(&self, signature: &[u8; 4], revision: u8) -> Sdt {
        let (id, table_id) = (self.oem_id, self.oem_table_id);
        Sdt::new(*signature, BODY as u32, revision, id, table_id, OEM_REVISION)
    }
}

/// Tables at their address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables {
    /// Guest physical address of the RSDP.
    pub rsdp: u64,
    /// Guest physical address and contents of each piece, in ascending order.
    pub blobs: Vec<(u64, Vec<u8>)>,
}

/// A pointer in one of the tables to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pointer {
    /// Where it is in the image.
    pub at: usize,
    /// Its size, 4 or 8 bytes.
    pub size: u8,
}

/// The tables without an address: pointers hold offsets in the image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// All tables but the RSDP.
    pub bytes: Vec<u8>,
    /// Pointers in them.
    pub pointers: Vec<Pointer>,
    /// Offset and length of each table that has a pointer, and so a checksum that follows from the
    /// address.
    pub checksums: Vec<(usize, usize)>,
    /// Offset of the RSDT.
    pub rsdt: usize,
    /// Offset of the XSDT.
    pub xsdt: usize,
    /// Who made them, as the RSDP says too.
    pub oem_id: [u8; 6],
}

/// Offset of a table's checksum.
pub const CHECKSUM: usize = 9;
/// Where a table's body begins.
const BODY: usize = 36;
/// Where the image may begin: FACS needs 64; the others are as well off with it.
pub const ALIGNMENT: usize = 64;

/// Offsets of pointers in the FADT.
mod fadt_pointer {
    pub(super) const FACS: usize = 36;
    pub(super) const DSDT: usize = 40;
    pub(super) const X_DSDT: usize = 140;
}

/// Offsets in the RSDP.
mod rsdp {
    pub(super) const CHECKSUM: usize = 8;
    pub(super) const RSDT: usize = 16;
    pub(super) const XSDT: usize = 24;
    pub(super) const EXTENDED_CHECKSUM: usize = 32;
    /// Length of what the first checksum is over.
    pub(super) const FIRST_PART: usize = 20;
}

impl Image {
    /// Builds the tables.
    pub fn new(config: &Config) -> Self {
        let mut image = Self { oem_id: config.oem_id, ..Self::default() };
        let facs = image.add(&bytes(&FACS::new()));
        let dsdt = image.add(&dsdt::build(config));
        let fadt = fadt(config, facs, dsdt);
        let fadt_at = image.add(&fadt);
        image.point(
            fadt_at,
            fadt.len(),
            &[
                Pointer { at: fadt_pointer::FACS, size: 4 },
                Pointer { at: fadt_pointer::DSDT, size: 4 },
                Pointer { at: fadt_pointer::X_DSDT, size: 8 },
            ],
        );
        let madt = image.add(&madt(config));
        let mut all = vec![fadt_at, madt];
        if config.hpet {
            all.push(image.add(&hpet_table(config)));
        }
        all.push(image.add(&emulated_devices(config)));
        if config.vmgenid {
            all.push(image.add(&generation_id::build(config)));
        }
        all.extend(config.custom.iter().map(|table| image.add(table)));
        let mut rsdt = config.table(b"RSDT", 1);
        let mut xsdt = XSDT::new(config.oem_id, config.oem_table_id, OEM_REVISION);
        for table in all {
            rsdt.append_slice(&(table as u32).to_le_bytes());
            xsdt.add_entry(table as u64);
        }
        image.rsdt = image.add_root(rsdt.as_slice(), 4);
        image.xsdt = image.add_root(&bytes(&xsdt), 8);
        image
    }

    /// Adds a table; returns where it is.
    fn add(&mut self, table: &[u8]) -> usize {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
        let at = self.bytes.len();
        self.bytes.extend(table);
        at
    }

    /// Adds a table whose body is pointers of `size` bytes.
    fn add_root(&mut self, table: &[u8], size: u8) -> usize {
        let at = self.add(table);
        let pointers: Vec<_> =
            (BODY..table.len()).step_by(usize::from(size)).map(|at| Pointer { at, size }).collect();
        self.point(at, table.len(), &pointers);
        at
    }

    /// Notes the pointers, by their offsets in it, of the table at `at`.
    fn point(&mut self, at: usize, len: usize, pointers: &[Pointer]) {
        let moved = pointers.iter().map(|pointer| Pointer { at: at + pointer.at, ..*pointer });
        self.pointers.extend(moved);
        self.checksums.push((at, len));
    }

    /// The tables from `base` on, a 64-byte boundary, and the RSDP at `root`: a 16-byte boundary within 0xe0000 to
    /// 0xfffff, so that systems that are not told where it is find it by searching.
    pub fn place(mut self, root: u64, base: u64) -> Tables {
        for Pointer { at, size } in self.pointers {
            let field = &mut self.bytes[at..at + usize::from(size)];
            let mut value = [0; 8];
            value[..field.len()].copy_from_slice(field);
            let value = u64::from_le_bytes(value) + base;
            field.copy_from_slice(&value.to_le_bytes()[..field.len()]);
        }
        for (at, len) in self.checksums {
            set_checksum(&mut self.bytes[at..at + len], CHECKSUM);
        }
        let rsdp = make_rsdp(self.oem_id, base + self.rsdt as u64, base + self.xsdt as u64);
        Tables { rsdp: root, blobs: vec![(root, rsdp), (base, self.bytes)] }
    }
}

/// The root pointer with these addresses, and its checksums.
fn make_rsdp(oem_id: [u8; 6], rsdt: u64, xsdt: u64) -> Vec<u8> {
    let mut bytes = bytes(&Rsdp::new(oem_id, xsdt));
    bytes[rsdp::RSDT..rsdp::RSDT + 4].copy_from_slice(&(rsdt as u32).to_le_bytes());
    set_checksum(&mut bytes[..rsdp::FIRST_PART], rsdp::CHECKSUM);
    set_checksum(&mut bytes, rsdp::EXTENDED_CHECKSUM);
    bytes
}

/// Has all bytes of `table` add up to zero by the one at `at`.
fn set_checksum(table: &mut [u8], at: usize) {
    table[at] = 0;
    let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    table[at] = sum.wrapping_neg();
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn fadt(config: &Config, facs: usize, dsdt: usize) -> Vec<u8> {
    let pm = u32::from(config.pm_base);
    let port = |offset: u32, width: u8, access| {
        GAS::new(AddressSpace::SystemIo, width, 0, access, (pm + offset).into())
    };
    let mut fadt = FADTBuilder::new(config.oem_id, config.oem_table_id, OEM_REVISION)
        .dsdt_64(dsdt as u64)
        .firmware_ctrl_32(facs as u32)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // The power button and the RTC's alarm are fixed features (flags clear); there is no sleep
        // button (flag set).
        .flag(Flags::SlpButton)
        .flag(Flags::UsePlatformClock)
        .flag(Flags::ResetRegSup)
        .gpe_info(GPE_PORT.into(), 0, GPE_PORTS, 0, 0);
    fadt.dsdt = (dsdt as u32).into();
    fadt.sci_int = (line::SCI as u16).into();
    fadt.smi_cmd = SMI_COMMAND_PORT.into();
    fadt.acpi_enable = ACPI_ENABLE;
    fadt.acpi_disable = ACPI_DISABLE;
    fadt.pm1a_evt_blk = pm.into();
    fadt.pm1_evt_len = 4;
    fadt.pm1a_cnt_blk = (pm + 4).into();
    fadt.pm1_cnt_len = 2;
    fadt.pm_tmr_blk = (pm + 8).into();
    fadt.pm_tmr_len = 4;
    // Latencies past these limits say that there are no C2 and C3.
    fadt.p_lvl2_lat = 0xfff.into();
    fadt.p_lvl3_lat = 0xfff.into();
    fadt.century = CENTURY;
    // Legacy devices and a keyboard controller are there; VGA must not be probed if there is none.
    fadt.iapc_boot_arch = (if config.vga { 0b011 } else { 0b111 }).into();
    fadt.reset_reg = GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, RESET_PORT);
    fadt.reset_value = RESET_VALUE;
    fadt.x_pm1a_evt_blk = port(0, 32, AccessSize::WordAccess);
    fadt.x_pm1a_cnt_blk = port(4, 16, AccessSize::WordAccess);
    fadt.x_pm_tmr_blk = port(8, 32, AccessSize::DwordAccess);
    let gpe = u64::from(GPE_PORT);
    fadt.x_gpe0_blk = GAS::new(AddressSpace::SystemIo, 32, 0, AccessSize::ByteAccess, gpe);
    bytes(&fadt.finalize())
}

/// HPET (IA-PC HPET specification 1.0a, section 3.2.4).
fn hpet_table(config: &Config) -> Vec<u8> {
    let mut table = config.table(b"HPET", 1);
    // Low half of the capabilities, then where the registers are: memory, 64 bits.
    table.append_slice(&(hpet::CAPABILITIES as u32).to_le_bytes());
    table.append_slice(&[0, 64, 0, 0]);
    table.append_slice(&hpet::BASE.to_le_bytes());
    // Number of the block, least period, no page protection.
    table.append_slice(&[0; 4]);
    table.as_slice().to_vec()
}

/// WAET ("Windows ACPI Emulated Devices Table", Microsoft, 2009): which workarounds for hardware this
/// machine needs not.
fn emulated_devices(config: &Config) -> Vec<u8> {
    /// One read of the power management timer is enough.
    const TIMER_GOOD: u32 = 1 << 1;
    let mut table = config.table(b"WAET", 1);
    table.append_slice(&TIMER_GOOD.to_le_bytes());
    table.as_slice().to_vec()
}

/// MADT (ACPI 6.5, section 5.2.12).
fn madt(config: &Config) -> Vec<u8> {
    const LOCAL_APIC: u8 = 0;
    const IO_APIC: u8 = 1;
    const OVERRIDE: u8 = 2;
    const LOCAL_NMI: u8 = 4;
    const ENABLED: u32 = 1;
    /// There is a pair of 8259s too.
    const PCAT_COMPAT: u32 = 1;
    /// Flags of an override: active high; edge or level.
    const EDGE_AS_ON_ISA: u16 = 0;
    const LEVEL_HIGH: u16 = 0b1101;
    const ALL_CPUS: u8 = 0xff;

    let mut madt = config.table(b"APIC", 4);
    madt.append_slice(&(lapic::DEFAULT_BASE as u32).to_le_bytes());
    madt.append_slice(&PCAT_COMPAT.to_le_bytes());
    for (&id, cpu) in config.apic_ids.iter().zip(0..) {
        madt.append_slice(&[LOCAL_APIC, 8, cpu, id]);
        madt.append_slice(&ENABLED.to_le_bytes());
    }
    madt.append_slice(&[IO_APIC, 12, IOAPIC_ID, 0]);
    madt.append_slice(&(ioapic::BASE as u32).to_le_bytes());
    madt.append_slice(&0u32.to_le_bytes());
    let mut override_line = |line: u32, input: u32, flags: u16| {
        madt.append_slice(&[OVERRIDE, 10, 0, line as u8]);
        madt.append_slice(&input.to_le_bytes());
        madt.append_slice(&flags.to_le_bytes());
    };
    override_line(line::TIMER, 2, EDGE_AS_ON_ISA);
    for line in PCI_LINES.into_iter().chain([line::SCI]) {
        override_line(line, line, LEVEL_HIGH);
    }
    madt.append_slice(&[LOCAL_NMI, 6, ALL_CPUS, 0, 0, lapic::LINT1 as u8]);
    madt.as_slice().to_vec()
}

/// Several interrupts as one resource (ACPI 6.5, section 6.4.3.6); one of them, or the one in use.
struct Interrupts<'a>(&'a [u32]);

impl Aml for Interrupts<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        const DESCRIPTOR: u8 = 0x89;
        const CONSUMER: u8 = 1 << 0;
        const SHARED: u8 = 1 << 3;
        sink.byte(DESCRIPTOR);
        sink.word(2 + 4 * self.0.len() as u16);
        // Level-triggered and active high are the cleared bits.
        sink.byte(CONSUMER | SHARED);
        sink.byte(self.0.len() as u8);
        for &line in self.0 {
            sink.dword(line);
        }
    }
}
