//! The tables' form, and what the reference compiler says of them.

use std::process::Command;

use super::*;

fn config() -> Config {
    Config {
        cpus: 4,
        pci_hole: 0x8000_0000..0xfec0_0000,
        pm_base: 0x600,
        hpet: true,
        vmgenid: true,
        suspend: true,
        serial_ports: vec![(0x3f8, 4), (0x2f8, 3)],
    }
}

/// The tables with their signatures; those that have one in the first four bytes.
fn tables() -> Vec<(String, Vec<u8>)> {
    let name = |blob: &[u8]| String::from_utf8_lossy(&blob[..4]).trim().to_owned();
    build(&config(), 0xe_0000).blobs.into_iter().map(|(_, blob)| (name(&blob), blob)).collect()
}

#[test]
fn tables_add_up_to_zero_and_say_their_length() {
    for (name, table) in tables() {
        let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        match name.as_str() {
            "RSD" => assert_eq!(sum, 0, "extended checksum"),
            // FACS has no checksum.
            "FACS" => assert_eq!(table.len(), 64),
            _ => {
                assert_eq!(sum, 0, "{name}");
                let length = u32::from_le_bytes([table[4], table[5], table[6], table[7]]);
                assert_eq!(length as usize, table.len(), "{name}");
            }
        }
    }
}

#[test]
fn tables_lie_in_order_below_one_mebibyte_and_point_to_each_other() {
    let tables = build(&config(), 0xe_0000);
    assert_eq!(tables.rsdp, 0xe_0000);
    for pair in tables.blobs.windows(2) {
        assert!(pair[0].0 + pair[0].1.len() as u64 <= pair[1].0);
    }
    let (last, blob) = tables.blobs.last().unwrap();
    assert!(last + (blob.len() as u64) < 0x10_0000);
    let at = |address: u64| &tables.blobs.iter().find(|(at, _)| *at == address).unwrap().1;
    let word = |table: &[u8], offset: usize| {
        u64::from_le_bytes(table[offset..offset + 8].try_into().unwrap())
    };
    let xsdt = at(word(at(tables.rsdp), 24));
    assert_eq!(&xsdt[..4], b"XSDT");
    let fadt = at(word(xsdt, 36));
    assert_eq!(&fadt[..4], b"FACP");
    assert_eq!(&at(word(xsdt, 44))[..4], b"APIC");
    assert_eq!(&at(word(fadt, 140))[..4], b"DSDT");
    assert_eq!(&at(word(fadt, 36) & 0xffff_ffff)[..4], b"FACS");
}

/// Intel's compiler takes all tables apart without a complaint, and compiles what it got from the
/// DSDT again.
#[test]
fn the_reference_compiler_accepts_them() {
    if Command::new("iasl").arg("-v").output().is_err() {
        eprintln!("SKIPPED: iasl is not installed (Debian package acpica-tools)");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for (name, table) in tables() {
        if name == "RSD" {
            continue;
        }
        let file = dir.path().join(format!("{name}.aml"));
        std::fs::write(&file, table).unwrap();
        let output = Command::new("iasl").arg("-d").arg(&file).output().unwrap();
        let text =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {text}");
        for complaint in ["Error", "Warning", "Invalid", "**"] {
            assert!(!text.contains(complaint), "{name}: {text}");
        }
    }
    let source = dir.path().join("DSDT.dsl");
    let again = dir.path().join("again");
    let output = Command::new("iasl").arg("-p").arg(again).arg(source).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("0 Errors, 0 Warnings"), "{text}");
}
