//! The tables' form, and what the reference tool reads in them.

use std::process::Command;

use super::*;

fn config(spec: &SmbiosSpec) -> Config<'_> {
    Config {
        spec,
        structures: Vec::new(),
        oem_strings: Vec::new(),
        onboard_devices: Vec::new(),
        uuid: Uuid::parse_str("00112233-4455-6677-8899-aabbccddeeff").unwrap(),
        smp: Smp { cpus: 4, sockets: 2, cores: 1, threads: 2 },
        processor_id: 0x078b_fbfd_0006_0fb1,
        layout: Layout::new(20 << 30),
        firmware: true,
    }
}

/// Type and handle of each structure.
fn walk(table: &[u8]) -> Vec<(u8, u16)> {
    let mut found = Vec::new();
    let mut rest = table;
    while !rest.is_empty() {
        let length = usize::from(rest[1]);
        let strings = rest[length..].windows(2).position(|pair| pair == [0, 0]).unwrap();
        let (this, after) = rest.split_at(length + strings + 2);
        assert_eq!(check_structure(this), Ok(this[0]));
        found.push((this[0], u16::from_le_bytes([this[2], this[3]])));
        rest = after;
    }
    found
}

#[test]
fn structures_follow_each_other_with_handles_of_their_own() {
    let spec = SmbiosSpec::default();
    let smbios = Smbios::new(&config(&spec)).unwrap();
    let found = walk(&smbios.tables);
    let kinds: Vec<u8> = found.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, [1, 3, 4, 4, 16, 17, 17, 19, 19, 32, 127]);
    let mut handles: Vec<u16> = found.iter().map(|(_, handle)| *handle).collect();
    handles.dedup();
    assert_eq!(handles.len(), found.len());
    assert_eq!(smbios.anchor.len(), 0x1f);
    let count = u16::from_le_bytes([smbios.anchor[28], smbios.anchor[29]]);
    assert_eq!(usize::from(count), found.len());
}

#[test]
fn entry_points_add_up_to_zero_and_lead_to_the_table() {
    for (entry_point, length) in [(EntryPoint::Version2, 0x1f), (EntryPoint::Version3, 0x18)] {
        let spec = SmbiosSpec { entry_point, ..SmbiosSpec::default() };
        let placed = Smbios::new(&config(&spec)).unwrap().place(0xf_0000);
        let [(0xf_0000, anchor), (0xf_0020, table)] = &placed[..] else { panic!("{placed:?}") };
        let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!((anchor.len(), sum(anchor)), (length, 0));
        if entry_point == EntryPoint::Version2 {
            assert_eq!(sum(&anchor[16..]), 0);
            assert_eq!(anchor[24..28], 0xf_0020u32.to_le_bytes());
        } else {
            assert_eq!(anchor[16..24], 0xf_0020u64.to_le_bytes());
            assert_eq!(anchor[12..16], (table.len() as u32).to_le_bytes());
        }
    }
}

#[test]
fn a_structure_from_a_file_takes_the_place_of_ours() {
    let spec = SmbiosSpec::default();
    let own = b"\x01\x05\x34\x12\x01own\0\0".to_vec();
    let with_file = Config { structures: vec![own], ..config(&spec) };
    let found = walk(&Smbios::new(&with_file).unwrap().tables);
    assert_eq!(found[0], (1, 0x1234));
    assert_eq!(found.iter().filter(|(kind, _)| *kind == 1).count(), 1);
    let spec = SmbiosSpec { system: Some(System::default()), ..SmbiosSpec::default() };
    let both = Config { spec: &spec, ..with_file };
    assert!(Smbios::new(&both).unwrap_err().to_string().contains("type 1"));
}

#[test]
fn damaged_structures_are_refused() {
    for bytes in [
        &b""[..],
        b"\x01\x04\0",
        b"\x01\x03\0\0\0\0",
        b"\x01\x20\0\0\0\0",
        b"\x01\x04\0\0\0",
        b"\x01\x04\0\0\0\0\0",
        b"\x01\x04\0\0text\0",
    ] {
        assert!(check_structure(bytes).is_err(), "{bytes:?}");
    }
    assert_eq!(check_structure(b"\x80\x04\0\0text\0\0"), Ok(0x80));
}

#[test]
fn too_much_is_refused() {
    let spec = SmbiosSpec::default();
    let many = Config { oem_strings: vec![b"x".to_vec(); 256], ..config(&spec) };
    assert!(Smbios::new(&many).unwrap_err().to_string().contains("256 strings"));
    let long = Config { oem_strings: vec![vec![b'x'; 0x1_0000]], ..config(&spec) };
    assert!(Smbios::new(&long).unwrap_err().to_string().contains("exceeds"));
}

/// dmidecode reads everything that can be said, from a file in the form of its own dumps.
#[test]
fn dmidecode_reads_what_was_asked_for() {
    let Some(program) = ["/usr/sbin/dmidecode", "/sbin/dmidecode", "/usr/bin/dmidecode"]
        .into_iter()
        .find(|path| std::path::Path::new(path).exists())
    else {
        eprintln!("SKIPPED: dmidecode is not installed");
        return;
    };
    let text = |text: &str| Some(text.to_owned());
    let spec = SmbiosSpec {
        bios: Some(Bios { vendor: text("a vendor"), release: Some((4, 5)), ..Bios::default() }),
        system: Some(System { serial: text("s-1"), sku: text("sku-1"), ..System::default() }),
        board: Some(Board { location: text("below"), ..Board::default() }),
        chassis: Some(Chassis { asset: text("asset-3"), ..Chassis::default() }),
        processor: Some(Processor { max_speed: Some(3000), ..Processor::default() }),
        connectors: vec![Connector {
            internal: text("J1"),
            connector: 3,
            port: 4,
            ..Connector::default()
        }],
        memory_device: Some(MemoryDevice { speed: 1600, ..MemoryDevice::default() }),
        ..SmbiosSpec::default()
    };
    let onboard =
        OnboardDevice { designation: text("eth"), kind: 5, instance: 2, pci_device: None };
    let config = Config {
        oem_strings: vec![b"one".to_vec(), b"two".to_vec()],
        onboard_devices: vec![(onboard, 0x28)],
        ..config(&spec)
    };
    let placed = Smbios::new(&config).unwrap().place(0);
    let mut image = vec![0; 0x1000];
    for (at, bytes) in placed {
        image[at as usize..][..bytes.len()].copy_from_slice(&bytes);
    }
    let dir = tempfile::tempdir().unwrap();
    let dump = dir.path().join("dump");
    std::fs::write(&dump, image).unwrap();
    let output = Command::new(program).arg("--from-dump").arg(&dump).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    for line in [
        "Vendor: a vendor",
        "BIOS Revision: 4.5",
        "Manufacturer: QEMU",
        "Serial Number: s-1",
        "UUID: 00112233-4455-6677-8899-aabbccddeeff",
        "SKU Number: sku-1",
        "Location In Chassis: below",
        "Asset Tag: asset-3",
        "Socket Designation: CPU 1",
        "Max Speed: 3000 MHz",
        "Thread Count: 2",
        "Internal Reference Designator: J1",
        "String 2: two",
        "Maximum Capacity: 20 GB",
        "Speed: 1600 MT/s",
        "Range Size: 17 GB",
        "Reference Designation: eth",
        "Bus Address: 0000:00:05.0",
    ] {
        assert!(told.contains(line), "'{line}' is missing:\n{told}");
    }
    for complaint in ["Invalid", "BAD", "TRUNCATED", "Wrong", "broken"] {
        assert!(!told.contains(complaint), "{told}");
    }
}
