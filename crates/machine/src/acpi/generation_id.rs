//! The generation ID's device ("Virtual Machine Generation ID", 2012), in an SSDT of its own.
//!
//! Programs that look for the number without an interpreter of AML know this table by its id, and read
//! the address of the number's page from its first object.

use acpi_tables::Aml as _;
use acpi_tables::aml::{Device, Name, Package, Scope, ZERO};
use acpi_tables::sdt::Sdt;
use devices::vmgenid;

use super::dsdt::Sequence;
use super::{BODY, Config, OEM_REVISION};

const TABLE_ID: [u8; 8] = *b"VMGENID\0";

/// Builds the table.
pub(super) fn build(config: &Config) -> Vec<u8> {
    let page = vmgenid::BASE as u32;
    let number = page + vmgenid::OFFSET as u32;
    let mut device = Sequence::new();
    device.add(&Device::new(
        "VGEN".into(),
        vec![
            &Name::new("_HID".into(), &"QEMUVGID"),
            &Name::new("_CID".into(), &"VM_Gen_Counter"),
            &Name::new("_DDN".into(), &"VM_Gen_Counter"),
            &Name::new("ADDR".into(), &Package::new(vec![&number, &ZERO])),
        ],
    ));
    let mut body = Vec::new();
    Name::new("VGIA".into(), &page).to_aml_bytes(&mut body);
    Scope::new("\\_SB_".into(), vec![&device]).to_aml_bytes(&mut body);
    let mut ssdt = Sdt::new(*b"SSDT", BODY as u32, 1, config.oem_id, TABLE_ID, OEM_REVISION);
    ssdt.append_slice(&body);
    ssdt.as_slice().to_vec()
}
