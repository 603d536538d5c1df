//! Tables that the user gives (`-acpitable`), beside those of the board.

use std::path::PathBuf;

use super::{BODY, CHECKSUM, set_checksum};
use crate::files;

/// Most bytes of a table.
const MAX_LEN: usize = 1 << 20;

/// Offsets in the header that all tables begin with (ACPI 6.5, section 5.2.6).
mod header {
    pub(super) const SIGNATURE: usize = 0;
    pub(super) const LENGTH: usize = 4;
    pub(super) const REVISION: usize = 8;
    pub(super) const OEM_ID: usize = 10;
    pub(super) const OEM_TABLE_ID: usize = 16;
    pub(super) const OEM_REVISION: usize = 24;
    pub(super) const CREATOR_ID: usize = 28;
    pub(super) const CREATOR_REVISION: usize = 32;
}

/// The header of a table without one, as far as nothing is said about it.
const DEFAULT_HEADER: &[u8; BODY] = b"QEMU\0\0\0\0\x01\0QEMUQEQEMUQEMU\x01\0\0\0QEMU\x01\0\0\0";

/// A table, and what is to be in its header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableSpec {
    /// Files whose bytes follow one another.
    pub files: Vec<PathBuf>,
    /// The bytes are what follows the header; else they begin with it.
    pub is_body: bool,
    /// What kind of table it is.
    pub signature: Option<[u8; 4]>,
    /// Revision of the kind.
    pub revision: Option<u8>,
    /// Who made it.
    pub oem_id: Option<[u8; 6]>,
    /// The table's id.
    pub oem_table_id: Option<[u8; 8]>,
    /// Revision of the table.
    pub oem_revision: Option<u32>,
    /// What compiled it.
    pub creator_id: Option<[u8; 4]>,
    /// Revision of that.
    pub creator_revision: Option<u32>,
}

impl TableSpec {
    /// Reads the files and makes the table: with the header that is asked for, its length and checksum.
    ///
    /// # Errors
    /// What is wrong with the files.
    pub fn build(&self) -> Result<Vec<u8>, String> {
        let mut table = if self.is_body { DEFAULT_HEADER.to_vec() } else { Vec::new() };
        for path in &self.files {
            let failed = |e| format!("can't open file {}: {e}", path.display());
            table.extend(files::read(path, MAX_LEN as u64).map_err(failed)?);
            if table.len() > MAX_LEN {
                return Err(format!("a table has at most {MAX_LEN} bytes"));
            }
        }
        if table.len() < BODY {
            return Err(format!(
                "ACPI table is too short: its header alone has {BODY} bytes; data= takes a table \
                 without one"
            ));
        }
        self.fill_header(&mut table);
        Ok(table)
    }

    fn fill_header(&self, table: &mut [u8]) {
        let length = table.len() as u32;
        let mut put = |at: usize, bytes: Option<&[u8]>| {
            if let Some(bytes) = bytes {
                table[at..at + bytes.len()].copy_from_slice(bytes);
            }
        };
        put(header::SIGNATURE, self.signature.as_ref().map(|id| &id[..]));
        put(header::LENGTH, Some(&length.to_le_bytes()));
        put(header::REVISION, self.revision.as_ref().map(std::slice::from_ref));
        put(header::OEM_ID, self.oem_id.as_ref().map(|id| &id[..]));
        put(header::OEM_TABLE_ID, self.oem_table_id.as_ref().map(|id| &id[..]));
        let revisions = [self.oem_revision, self.creator_revision].map(|n| n.map(u32::to_le_bytes));
        put(header::OEM_REVISION, revisions[0].as_ref().map(|n| &n[..]));
        put(header::CREATOR_ID, self.creator_id.as_ref().map(|id| &id[..]));
        put(header::CREATOR_REVISION, revisions[1].as_ref().map(|n| &n[..]));
        set_checksum(table, CHECKSUM);
    }
}

/// Who made the system and what it is, by the table that its licence is in: a system that looks for it
/// wants the same in the other tables.
pub(crate) fn licensee(tables: &[Vec<u8>]) -> Option<([u8; 6], [u8; 8])> {
    let table = tables.iter().find(|table| table.starts_with(b"SLIC"))?;
    let oem_id = table[header::OEM_ID..header::OEM_TABLE_ID].try_into().ok()?;
    Some((oem_id, table[header::OEM_TABLE_ID..header::OEM_REVISION].try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_the_header_that_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let paths = ["a", "b"].map(|name| dir.path().join(name));
        paths.iter().for_each(|path| std::fs::write(path, b"body").unwrap());
        let spec = TableSpec { files: paths.to_vec(), is_body: true, ..TableSpec::default() };
        let table = spec.build().unwrap();
        assert_eq!((&table[..8], &table[BODY..]), (&b"QEMU\x2c\0\0\0"[..], &b"bodybody"[..]));
        let whole = dir.path().join("whole");
        std::fs::write(&whole, &table).unwrap();
        let table = TableSpec {
            files: vec![whole],
            signature: Some(*b"SLIC"),
            oem_id: Some(*b"MAKER\0"),
            oem_table_id: Some(*b"MODEL\0\0\0"),
            creator_revision: Some(0x102),
            ..TableSpec::default()
        };
        let table = table.build().unwrap();
        assert_eq!(table.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte)), 0);
        assert_eq!(&table[..4], b"SLIC");
        assert_eq!(table[32..36], [2, 1, 0, 0]);
        assert_eq!(licensee(&[table]), Some((*b"MAKER\0", *b"MODEL\0\0\0")));
        let short = TableSpec { files: paths[..1].to_vec(), ..TableSpec::default() };
        assert!(short.build().unwrap_err().contains("too short"));
        let missing = TableSpec { files: vec!["/nope".into()], ..TableSpec::default() };
        assert!(missing.build().unwrap_err().contains("can't open file /nope"));
        std::fs::write(&paths[0], vec![0; MAX_LEN]).unwrap();
        let long = TableSpec { files: paths.to_vec(), ..TableSpec::default() };
        assert!(long.build().unwrap_err().contains("at most"));
    }
}
