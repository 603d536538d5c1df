//! `-device loader`: puts a file or a number into guest memory at each reset, and says where a CPU
//! starts.
//!
//! A file that is an ELF image (System V ABI) is loaded by its program headers, to physical addresses, and
//! one in Intel's hexadecimal format to the addresses in its records; any other, or any at all with
//! `force-raw=on`, as it is from `addr=` on.

use std::path::Path;

use object::elf::{FileHeader32, FileHeader64, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{LittleEndian, ReadRef};
use options::{OptionError, Properties};

use super::Driver;
use crate::BuildError;
use crate::files;
use crate::pc::board::Pc;

/// The kinds of this topic.
pub(super) const DRIVERS: &[Driver] = &[Driver {
    name: "loader",
    aliases: &[],
    bus: "none",
    description: "a file or a number in memory, and where a CPU starts",
    make: loader,
}];

/// What one `-device loader` does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadedImage {
    /// Guest physical address and bytes of each part.
    parts: Vec<(u64, Vec<u8>)>,
    /// The CPU that starts there, and its program counter.
    start: Option<(u32, u64)>,
}

fn loader(pc: &mut Pc, _: &str, mut properties: Properties) -> Result<(), BuildError> {
    let option = properties.option().to_owned();
    let wrong = |reason: &str| BuildError::Option(OptionError::new(format!("{option}: {reason}")));
    let addr: Option<u64> = properties.take_number("addr")?;
    let data: Option<u64> = properties.take_number("data")?;
    let data_len: Option<u8> = properties.take_number("data-len")?;
    let big_endian = properties.take_bool("data-be")?;
    let file = properties.take("file");
    let raw = properties.take_bool("force-raw")?;
    let cpu: Option<u32> = properties.take_number("cpu-num")?;
    properties.finish()?;
    if let Some(cpu) = cpu.filter(|&cpu| cpu >= pc.spec.smp.cpus) {
        return Err(wrong(&format!("Specified boot CPU#{cpu} is nonexistent")));
    }
    let is_data = data.is_some() || data_len.is_some() || big_endian.is_some();
    let at = addr.unwrap_or(0);
    let mut image = LoadedImage::default();
    match file {
        Some(_) if is_data => {
            return Err(wrong("Specifying a file is not supported when loading memory values"));
        }
        None if is_data => {
            if raw.is_some() {
                return Err(wrong(
                    "Specifying force-raw is not supported when loading memory values",
                ));
            }
            let (Some(data), Some(len)) = (data, data_len.filter(|&len| len > 0)) else {
                return Err(wrong("Both data and data-len must be specified"));
            };
            if len > 8 {
                return Err(wrong("data-len cannot be greater then 8 bytes"));
            }
            let mut bytes = data.to_le_bytes()[..usize::from(len)].to_vec();
            if big_endian == Some(true) {
                bytes.reverse();
            }
            image.parts.push((at, bytes));
            image.start = cpu.map(|cpu| (cpu, at));
        }
        Some(file) => {
            let bytes = files::read(Path::new(&file), pc.memory.size()).map_err(|reason| {
                wrong(&format!("Cannot load specified image {file}: {reason}"))
            })?;
            let known = if raw == Some(true) { None } else { recognise(&bytes, pc.memory.size()) };
            let (parts, entry) =
                known.unwrap_or_else(|| Ok((vec![(at, bytes)], at))).map_err(|reason| {
                    wrong(&format!("Cannot load specified image {file}: {reason}"))
                })?;
            image.parts = parts;
            image.start = cpu.map(|cpu| (cpu, entry));
        }
        None if addr.is_some() => match cpu {
            Some(cpu) => image.start = Some((cpu, at)),
            None => return Err(wrong("cpu_num must be specified when setting a program counter")),
        },
        None => return Err(wrong("please include valid arguments")),
    }
    for (addr, bytes) in &image.parts {
        let fits = bytes.len() as u64 <= pc.memory.size()
            && pc.memory.is_ram(*addr)
            && pc.memory.is_ram(addr.saturating_add(bytes.len().saturating_sub(1) as u64));
        if !fits {
            return Err(wrong(&format!(
                "{} bytes at {addr:#x} are not in guest memory; choose another address, or give the \
                 machine more with -m",
                bytes.len()
            )));
        }
    }
    pc.images.push(image);
    Ok(())
}

type Parts = Vec<(u64, Vec<u8>)>;

/// The parts of a file that says itself where it belongs, and its entry; `None` if it does not. All parts
/// have at most `limit` bytes.
fn recognise(file: &[u8], limit: u64) -> Option<Result<(Parts, u64), String>> {
    if file.starts_with(b"\x7fELF") {
        return Some(elf(file, limit));
    }
    let text = std::str::from_utf8(file).ok()?;
    // A first line with the right checksum is no chance.
    ihex::Record::from_record_string(text.lines().next()?).ok()?;
    Some(hex(text))
}

/// What the records of a file in Intel's hexadecimal format say ("Hexadecimal Object File Format
/// Specification", revision A).
fn hex(text: &str) -> Result<(Parts, u64), String> {
    use ihex::Record;
    let mut parts = Parts::new();
    let (mut base, mut entry) = (0u64, 0);
    for (number, record) in (1..).zip(ihex::Reader::new(text)) {
        match record.map_err(|e| format!("record {number} of its hexadecimal format: {e}"))? {
            Record::Data { offset, value } => {
                let at = base + u64::from(offset);
                match parts.last_mut() {
                    Some((start, bytes)) if *start + bytes.len() as u64 == at => {
                        bytes.extend(value);
                    }
                    _ => parts.push((at, value)),
                }
            }
            Record::ExtendedSegmentAddress(segment) => base = u64::from(segment) << 4,
            Record::ExtendedLinearAddress(high) => base = u64::from(high) << 16,
            Record::StartSegmentAddress { cs, ip } => entry = (u64::from(cs) << 4) + u64::from(ip),
            Record::StartLinearAddress(start) => entry = start.into(),
            Record::EndOfFile => return Ok((parts, entry)),
        }
    }
    Err("its hexadecimal format has no last record".to_owned())
}

/// The parts of an ELF file of either class, and its entry; all of them have at most `limit` bytes.
fn elf(file: &[u8], limit: u64) -> Result<(Parts, u64), String> {
    if file.get(4) == Some(&2) {
        elf_of::<FileHeader64<LittleEndian>>(file, limit)
    } else {
        elf_of::<FileHeader32<LittleEndian>>(file, limit)
    }
}

fn elf_of<H: FileHeader<Endian = LittleEndian>>(
    file: &[u8],
    limit: u64,
) -> Result<(Parts, u64), String> {
    let wrong = |e: object::read::Error| format!("its ELF headers are damaged: {e}");
    let header = H::parse(file).map_err(wrong)?;
    let endian = header.endian().map_err(wrong)?;
    let mut parts = Vec::new();
    let mut left = limit;
    for segment in header.program_headers(endian, file).map_err(wrong)? {
        if segment.p_type(endian) != PT_LOAD {
            continue;
        }
        let (offset, len) = segment.file_range(endian);
        let size = len.max(segment.p_memsz(endian).into());
        left = left.checked_sub(size).ok_or("its segments are larger than guest memory")?;
        let from_file = file
            .read_bytes_at(offset, len)
            .map_err(|()| "one of its segments lies beyond the end of the file")?;
        let mut bytes = from_file.to_vec();
        bytes.resize(size as usize, 0);
        parts.push((segment.p_paddr(endian).into(), bytes));
    }
    Ok((parts, header.e_entry(endian).into()))
}

impl Pc {
    /// Puts what was asked for into memory.
    pub(in crate::pc) fn load_images(&self) {
        for (addr, bytes) in self.images.iter().flat_map(|image| &image.parts) {
            if let Err(e) = self.memory.write(*addr, bytes) {
                eprintln!("rhea: -device loader: {e}");
            }
        }
    }

    /// Where CPU `index` starts, if a loader says so.
    pub(in crate::pc) fn start_of(&self, index: usize) -> Option<u64> {
        let starts = self.images.iter().filter_map(|image| image.start);
        starts.filter(|&(cpu, _)| cpu as usize == index).map(|(_, entry)| entry).next_back()
    }
}

#[cfg(test)]
mod tests {
    use super::{elf, recognise};

    #[test]
    fn hexadecimal_files_say_where_they_belong() {
        let text = ":020000040010EA\n:0410000001020304E2\n:021004000506DF\n:01200000AA35\n\
                    :0400000500101000D7\n:00000001FF\n";
        let (parts, entry) = recognise(text.as_bytes(), 1 << 20).unwrap().unwrap();
        assert_eq!(parts, [(0x10_1000, vec![1, 2, 3, 4, 5, 6]), (0x10_2000, vec![0xaa])]);
        assert_eq!(entry, 0x10_1000);
        let refused = |text: &str| recognise(text.as_bytes(), 1 << 20).unwrap().unwrap_err();
        assert!(refused(&text.replace("AA35", "AA36")).contains("record 4"));
        assert!(refused(&text.replace(":00000001FF\n", "")).contains("last record"));
        assert!(recognise(b":not a record", 1 << 20).is_none());
        assert!(recognise(b"\xff\xfe", 1 << 20).is_none());
    }

    #[test]
    fn damaged_elf_files_are_refused() {
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        assert!(elf(&file, 1 << 20).is_err());
        file.resize(64, 0);
        // One program header far beyond the file's end.
        file[32] = 0xff;
        file[54] = 56;
        file[56] = 1;
        assert!(elf(&file, 1 << 20).is_err());
    }
}
