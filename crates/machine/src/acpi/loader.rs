//! The script by which firmware puts the tables into memory: allocate the files, add their addresses to
//! pointers, set checksums.
//!
//! Each command has 128 bytes: its number, then its fields, file names in 56 bytes each, numbers
//! little-endian. The format is what SeaBIOS (`src/fw/romfile_loader.h`) and OVMF
//! (`OvmfPkg/AcpiPlatformDxe/QemuLoader.h`) document.

use super::{ALIGNMENT, CHECKSUM, Image, make_rsdp, rsdp};

/// Files, as fw_cfg names them.
pub const TABLES_FILE: &str = "etc/acpi/tables";
/// See [`TABLES_FILE`].
pub const RSDP_FILE: &str = "etc/acpi/rsdp";
/// The script.
pub const SCRIPT_FILE: &str = "etc/table-loader";

const COMMAND_LEN: usize = 128;
const NAME_LEN: usize = 56;

const ALLOCATE: u32 = 1;
const ADD_POINTER: u32 = 2;
const ADD_CHECKSUM: u32 = 3;

/// Where a file goes: anywhere, or below 1 MiB where the root pointer is searched for.
const ZONE_HIGH: u8 = 1;
const ZONE_BIOS: u8 = 2;

/// The files by which firmware gets the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// [`TABLES_FILE`].
    pub tables: Vec<u8>,
    /// [`RSDP_FILE`].
    pub rsdp: Vec<u8>,
    /// [`SCRIPT_FILE`].
    pub script: Vec<u8>,
}

#[derive(Default)]
struct Script(Vec<u8>);

impl Script {
    /// Adds a command of these fields.
    fn command(&mut self, number: u32, fields: &[&[u8]]) {
        let end = self.0.len() + COMMAND_LEN;
        self.0.extend(number.to_le_bytes());
        fields.iter().for_each(|field| self.0.extend(*field));
        self.0.resize(end, 0);
    }

    fn allocate(&mut self, file: &str, alignment: usize, zone: u8) {
        let alignment = (alignment as u32).to_le_bytes();
        self.command(ALLOCATE, &[&name(file), &alignment, &[zone]]);
    }

    /// The number of `size` bytes at `at` in `file` becomes an address in `target`.
    fn pointer(&mut self, file: &str, target: &str, at: usize, size: u8) {
        let at = (at as u32).to_le_bytes();
        self.command(ADD_POINTER, &[&name(file), &name(target), &at, &[size]]);
    }

    /// The byte at `at` becomes the checksum of the bytes `start..start + len`.
    fn checksum(&mut self, file: &str, at: usize, start: usize, len: usize) {
        let numbers = [at, start, len].map(|number| (number as u32).to_le_bytes());
        self.command(ADD_CHECKSUM, &[&name(file), &numbers[0], &numbers[1], &numbers[2]]);
    }
}

fn name(file: &str) -> [u8; NAME_LEN] {
    let mut padded = [0; NAME_LEN];
    padded[..file.len()].copy_from_slice(file.as_bytes());
    padded
}

impl Files {
    /// The files for `image`.
    pub fn new(image: &Image) -> Self {
        let mut tables = image.bytes.clone();
        let mut script = Script::default();
        script.allocate(TABLES_FILE, ALIGNMENT, ZONE_HIGH);
        script.allocate(RSDP_FILE, 16, ZONE_BIOS);
        for pointer in &image.pointers {
            script.pointer(TABLES_FILE, TABLES_FILE, pointer.at, pointer.size);
        }
        for &(at, len) in &image.checksums {
            // What is there counts for the sum.
            tables[at + CHECKSUM] = 0;
            script.checksum(TABLES_FILE, at + CHECKSUM, at, len);
        }
        let mut root = make_rsdp(image.oem_id, image.rsdt as u64, image.xsdt as u64);
        root[rsdp::CHECKSUM] = 0;
        root[rsdp::EXTENDED_CHECKSUM] = 0;
        script.pointer(RSDP_FILE, TABLES_FILE, rsdp::RSDT, 4);
        script.pointer(RSDP_FILE, TABLES_FILE, rsdp::XSDT, 8);
        script.checksum(RSDP_FILE, rsdp::CHECKSUM, 0, rsdp::FIRST_PART);
        script.checksum(RSDP_FILE, rsdp::EXTENDED_CHECKSUM, 0, root.len());
        Self { tables, rsdp: root, script: script.0 }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::acpi::tests::config;

    /// Does what firmware does; returns the files where they were put.
    fn run(files: &Files) -> BTreeMap<String, (u64, Vec<u8>)> {
        let contents = |name: &str| match name {
            TABLES_FILE => files.tables.clone(),
            RSDP_FILE => files.rsdp.clone(),
            other => panic!("no file {other}"),
        };
        let mut placed: BTreeMap<String, (u64, Vec<u8>)> = BTreeMap::new();
        for command in files.script.chunks(COMMAND_LEN) {
            let word = |at: usize| u32::from_le_bytes(command[at..at + 4].try_into().unwrap());
            let text = |at: usize| {
                let bytes = &command[at..at + NAME_LEN];
                let end = bytes.iter().position(|byte| *byte == 0).unwrap();
                String::from_utf8(bytes[..end].to_vec()).unwrap()
            };
            let file = text(4);
            match word(0) {
                ALLOCATE => {
                    let address = if command[64] == ZONE_BIOS { 0xe_0040 } else { 0xe_0080 };
                    placed.insert(file.clone(), (address, contents(&file)));
                }
                ADD_POINTER => {
                    let target = placed[&text(60)].0;
                    let (at, size) = (word(116) as usize, usize::from(command[120]));
                    let field = &mut placed.get_mut(&file).unwrap().1[at..at + size];
                    let mut value = [0; 8];
                    value[..size].copy_from_slice(field);
                    let value = u64::from_le_bytes(value) + target;
                    field.copy_from_slice(&value.to_le_bytes()[..size]);
                }
                ADD_CHECKSUM => {
                    let (at, start, len) =
                        (word(60) as usize, word(64) as usize, word(68) as usize);
                    let bytes = &mut placed.get_mut(&file).unwrap().1;
                    let sum = bytes[start..start + len].iter().fold(0u8, |s, b| s.wrapping_add(*b));
                    bytes[at] = bytes[at].wrapping_sub(sum);
                }
                other => panic!("command {other}"),
            }
        }
        placed
    }

    #[test]
    fn firmware_arrives_at_what_we_would_have_put_there() {
        let image = Image::new(&config());
        let placed = run(&Files::new(&image));
        let ours = image.place(0xe_0040, 0xe_0080);
        assert_eq!(placed[RSDP_FILE], ours.blobs[0]);
        assert_eq!(placed[TABLES_FILE], ours.blobs[1]);
    }
}
