//! The tables' form, and what the reference compiler says of them.

use std::process::Command;

use super::*;

pub(super) fn config() -> Config {
    Config {
        oem_id: OEM_ID,
        oem_table_id: OEM_TABLE_ID,
        apic_ids: vec![0, 1, 4, 5],
        pci_hole: 0x8000_0000..0xfec0_0000,
        pm_base: 0x600,
        hpet: true,
        vmgenid: true,
        sleep: SleepStates::default(),
        vga: true,
        serial_ports: vec![(0x3f8, 4), (0x2f8, 3)],
        pci_hole_64: 1 << 32..1 << 40,
        parallel_ports: vec![(0x378, 7)],
        floppies: [Some(DriveType::D144), Some(DriveType::D288)],
        pvpanic: Some(0x505),
        custom: Vec::new(),
    }
}

/// The tables at an address.
fn placed() -> Tables {
    Image::new(&config()).place(0xf_0000, 0xe_0000)
}

/// The tables with their signatures; those that have one in the first four bytes.
fn tables() -> Vec<(String, Vec<u8>)> {
    let name = |blob: &[u8]| String::from_utf8_lossy(&blob[..4]).trim().to_owned();
    let placed = placed();
    let mut tables = vec![("RSD".to_owned(), placed.blobs[0].1.clone())];
    let mut rest = placed.blobs[1].1.as_slice();
    while rest.len() > 8 {
        let length = u32::from_le_bytes([rest[4], rest[5], rest[6], rest[7]]) as usize;
        tables.push((name(rest), rest[..length].to_vec()));
        rest = rest.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
    }
    tables
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
fn tables_lie_below_one_mebibyte_and_point_to_each_other() {
    let tables = placed();
    assert_eq!(tables.rsdp, 0xf_0000);
    let [(start, root), (base, image)] = &tables.blobs[..] else { panic!("two pieces") };
    assert!(start + (root.len() as u64) < 0x10_0000);
    assert!(base + image.len() as u64 <= *start);
    let at = |address: u64| &image[(address - base) as usize..];
    let wide = |table: &[u8], offset: usize| {
        u64::from_le_bytes(table[offset..offset + 8].try_into().unwrap())
    };
    let narrow = |table: &[u8], offset: usize| {
        u64::from(u32::from_le_bytes(table[offset..offset + 4].try_into().unwrap()))
    };
    let xsdt = at(wide(root, 24));
    assert_eq!(&xsdt[..4], b"XSDT");
    let rsdt = at(narrow(root, 16));
    assert_eq!(&rsdt[..4], b"RSDT");
    for (n, name) in [b"FACP", b"APIC"].into_iter().enumerate() {
        assert_eq!(&at(wide(xsdt, 36 + 8 * n))[..4], name);
        assert_eq!(wide(xsdt, 36 + 8 * n), narrow(rsdt, 36 + 4 * n));
    }
    let fadt = at(wide(xsdt, 36));
    assert_eq!(&at(wide(fadt, 140))[..4], b"DSDT");
    assert_eq!(wide(fadt, 140), narrow(fadt, 40));
    assert_eq!(&at(narrow(fadt, 36))[..4], b"FACS");
}

/// Intel's compiler takes all tables apart without a complaint, and compiles what it got from the
/// DSDT and SSDT again.
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
    for source in ["DSDT.dsl", "SSDT.dsl"].map(|name| dir.path().join(name)) {
        // The generation ID's device has the name that guests know, which is no proper one.
        let text = std::fs::read_to_string(&source).unwrap();
        std::fs::write(&source, text.replace("QEMUVGID", "QEMU0000")).unwrap();
        let again = dir.path().join("again");
        let output = Command::new("iasl").arg("-p").arg(again).arg(source).output().unwrap();
        let text =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(text.contains("0 Errors, 0 Warnings"), "{text}");
    }
}
