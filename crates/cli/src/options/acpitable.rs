//! `-acpitable`.

use ::options::{OptionError, Properties};
use machine::acpi::TableSpec;

use super::{Builder, take_padded};

pub(super) fn acpitable(builder: &mut Builder, value: &str) -> Result<(), OptionError> {
    let option = format!("-acpitable {value}");
    let mut options = Properties::parse(&option, value, None)?;
    let (data, file) = (options.take("data"), options.take("file"));
    let is_body = data.is_some();
    let files = match (data, file) {
        (Some(_), Some(_)) => {
            return Err(OptionError::new(format!(
                "{option}: '-acpitable' requires one of 'data' or 'file', not both"
            )));
        }
        (Some(files), None) | (None, Some(files)) => files,
        (None, None) => {
            return Err(OptionError::new(format!(
                "{option}: '-acpitable' requires one of 'data' or 'file'"
            )));
        }
    };
    let table = TableSpec {
        files: files.split(':').map(Into::into).collect(),
        is_body,
        signature: take_padded(&mut options, "sig")?,
        revision: options.take_number("rev")?,
        oem_id: take_padded(&mut options, "oem_id")?,
        oem_table_id: take_padded(&mut options, "oem_table_id")?,
        oem_revision: options.take_number("oem_rev")?,
        creator_id: take_padded(&mut options, "asl_compiler_id")?,
        creator_revision: options.take_number("asl_compiler_rev")?,
    };
    options.finish()?;
    builder.machine().firmware.acpi_tables.push((option, table));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_one_source_and_ids_their_length() {
        let mut builder = Builder::default();
        let value = "sig=SSDT,rev=2,oem_id=ME,oem_rev=0x10,data=a:b";
        acpitable(&mut builder, value).unwrap();
        let table = &builder.machine().firmware.acpi_tables[0].1;
        assert_eq!(table.files, ["a", "b"].map(std::path::PathBuf::from));
        assert_eq!((table.signature, table.revision), (Some(*b"SSDT"), Some(2)));
        assert_eq!((table.oem_id, table.oem_revision), (Some(*b"ME\0\0\0\0"), Some(16)));
        let refused = |value| acpitable(&mut Builder::default(), value).unwrap_err().to_string();
        assert!(refused("sig=SSDT").ends_with("requires one of 'data' or 'file'"));
        assert!(refused("data=a,file=b").ends_with("not both"));
        assert!(refused("data=a,sig=LONGER").contains("bigger than 4 bytes"));
        assert!(refused("data=a,rev=300").contains("'rev'"));
    }
}
