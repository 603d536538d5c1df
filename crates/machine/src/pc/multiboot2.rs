//! Multiboot2 kernels (Multiboot2 Specification 2.0): ELF images of 32 or 64 bits, or any file whose
//! header says where it is to be loaded; relocated if it allows that and has to be.
//!
//! The kernel starts as one of the first version does, with another magic number and a list of tags at
//! EBX. What only UEFI's boot services could give is refused, unless the header calls it optional.

use memory::{GuestMemory, PAGE_SIZE};
use object::elf::{FileHeader32, FileHeader64, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{LittleEndian, ReadRef, pod};

use super::boot::{BootError, Entry};
use super::graphics_mode::{Screen, Wish};
use super::layout::{E820Type, EBDA_START, HIGH_MEMORY, Layout};
use super::multiboot::Boot;

/// The header lies within this many bytes of the file's start.
pub(super) const SEARCH: u64 = 32768;
const HEADER_MAGIC: u32 = 0xe852_50d6;
/// Protected mode of i386.
const ARCHITECTURE: u32 = 0;
/// What the kernel finds in EAX.
const LOADER_MAGIC: u32 = 0x36d7_6289;
/// Header tags: a loader may do without this one.
const OPTIONAL: u16 = 1;

/// Where the information is, and the end of the room for it.
const INFO: u64 = 0x9000;
const INFO_END: u64 = 0x1_a000;

/// Tags of the information.
mod tag {
    pub(super) const END: u32 = 0;
    pub(super) const COMMAND_LINE: u32 = 1;
    pub(super) const LOADER_NAME: u32 = 2;
    pub(super) const MODULE: u32 = 3;
    pub(super) const BASIC_MEMORY: u32 = 4;
    pub(super) const MEMORY_MAP: u32 = 6;
    pub(super) const FRAMEBUFFER: u32 = 8;
    pub(super) const ELF_SECTIONS: u32 = 9;
    pub(super) const ACPI_OLD: u32 = 14;
    pub(super) const ACPI_NEW: u32 = 15;
    pub(super) const LOAD_BASE: u32 = 21;
    /// What a header may ask for.
    pub(super) const OFFERED: [u32; 11] = [
        END,
        COMMAND_LINE,
        LOADER_NAME,
        MODULE,
        BASIC_MEMORY,
        MEMORY_MAP,
        FRAMEBUFFER,
        ELF_SECTIONS,
        ACPI_OLD,
        ACPI_NEW,
        LOAD_BASE,
    ];
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Addresses {
    header: u32,
    load: u32,
    load_end: u32,
    bss_end: u32,
}

/// Where a kernel may be moved to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Relocatable {
    min: u32,
    max: u32,
    align: u32,
    /// The highest address is preferred, not the lowest.
    high: bool,
}

/// What a header says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    /// Offset of the header in the file, in bytes.
    offset: u64,
    addresses: Option<Addresses>,
    entry: Option<u32>,
    relocatable: Option<Relocatable>,
    /// The graphics mode that the kernel asks for.
    pub(super) wish: Option<Wish>,
}

type Reason = String;

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

/// Looks for a header in `image`.
///
/// # Errors
/// If there is one that asks for what this loader has not, or is damaged.
pub(super) fn find_header(image: &[u8]) -> Result<Option<Header>, Reason> {
    let end = image.len().min(SEARCH as usize);
    for at in (0..end).step_by(8) {
        let words = [0, 4, 8, 12].map(|i| u32_at(image, at + i));
        let [Some(HEADER_MAGIC), Some(ARCHITECTURE), Some(length), Some(checksum)] = words else {
            continue;
        };
        if HEADER_MAGIC.wrapping_add(ARCHITECTURE).wrapping_add(length).wrapping_add(checksum) != 0
        {
            continue;
        }
        let last = at.checked_add(length as usize).filter(|&last| last <= end);
        let tags = last.and_then(|last| image.get(at + 16..last));
        let tags = tags.ok_or("its multiboot2 header is cut off")?;
        return read_tags(tags, at as u64).map(Some);
    }
    Ok(None)
}

fn read_tags(mut tags: &[u8], offset: u64) -> Result<Header, Reason> {
    const CUT: &str = "a tag of its multiboot2 header is cut off";
    let mut header = Header { offset, ..Header::default() };
    loop {
        let word = u32_at(tags, 0).ok_or(CUT)?;
        let (kind, flags) = (word as u16, (word >> 16) as u16);
        let size = u32_at(tags, 4).ok_or(CUT)? as usize;
        let body = tags.get(8..size).ok_or(CUT)?;
        let field = |i: usize| u32_at(body, 4 * i).ok_or(CUT);
        let needed = flags & OPTIONAL == 0;
        match kind {
            0 => return Ok(header),
            1 => {
                let wanted = body.chunks_exact(4).filter_map(|word| u32_at(word, 0));
                let missing = |kind: &u32| !tag::OFFERED.contains(kind);
                if let Some(kind) = wanted.into_iter().find(missing).filter(|_| needed) {
                    return Err(format!("its multiboot2 header asks for information {kind}"));
                }
            }
            2 => {
                header.addresses = Some(Addresses {
                    header: field(0)?,
                    load: field(1)?,
                    load_end: field(2)?,
                    bss_end: field(3)?,
                });
            }
            3 => header.entry = Some(field(0)?),
            // A graphics mode is a wish, to be fulfilled if the adapter has the mode.
            5 => {
                header.wish = Some(Wish { width: field(0)?, height: field(1)?, depth: field(2)? });
            }
            // A console in text mode, aligned modules: so it is. Entries for UEFI: not started by it.
            4 | 6 | 8 | 9 => {}
            10 => {
                let align = field(2)?.max(1);
                if !align.is_power_of_two() {
                    return Err(format!("its multiboot2 header asks for an alignment of {align}"));
                }
                let high = field(3)? == 2;
                header.relocatable =
                    Some(Relocatable { min: field(0)?, max: field(1)?, align, high });
            }
            7 if needed => {
                return Err("its multiboot2 header asks for UEFI's boot services".to_owned());
            }
            _ if needed && kind != 7 => {
                return Err(format!("its multiboot2 header asks for an unknown feature ({kind})"));
            }
            _ => {}
        }
        tags = tags.get(size.next_multiple_of(8)..).ok_or(CUT)?;
    }
}

/// A stretch of the image in memory: where, the bytes from the file, and how many zeroes follow.
struct Segment<'a> {
    at: u64,
    bytes: &'a [u8],
    zeroes: u64,
}

impl Segment<'_> {
    fn end(&self) -> u64 {
        self.at.saturating_add(self.bytes.len() as u64).saturating_add(self.zeroes)
    }
}

/// What there is to load, and where it starts.
struct Plan<'a> {
    segments: Vec<Segment<'a>>,
    entry: u64,
    /// Section headers: their number, size, string section, and bytes.
    sections: Option<(u32, u32, u32, &'a [u8])>,
}

fn plan<'a>(image: &'a [u8], header: &Header) -> Result<Plan<'a>, Reason> {
    let mut plan = match &header.addresses {
        Some(addresses) => plan_flat(image, header, addresses)?,
        None if image.get(4) == Some(&2) => plan_elf::<FileHeader64<LittleEndian>>(image)?,
        None => plan_elf::<FileHeader32<LittleEndian>>(image)?,
    };
    if let Some(entry) = header.entry {
        plan.entry = entry.into();
    }
    Ok(plan)
}

fn plan_flat<'a>(image: &'a [u8], header: &Header, to: &Addresses) -> Result<Plan<'a>, Reason> {
    let start = match to.load {
        // The file from its beginning.
        u32::MAX => 0,
        load => {
            let before = u64::from(to.header).checked_sub(load.into());
            let start = before.and_then(|before| header.offset.checked_sub(before));
            start.ok_or("its multiboot2 load address is beyond its header")?
        }
    };
    let at = u64::from(to.header)
        .checked_sub(header.offset - start)
        .ok_or("its multiboot2 header is below its load address")?;
    let available = image.len() as u64 - start.min(image.len() as u64);
    let len = match u64::from(to.load_end) {
        0 => available,
        end => end.checked_sub(at).ok_or("its multiboot2 load area ends before it starts")?,
    };
    let bytes = usize::try_from(len).ok().and_then(|len| image.get(start as usize..)?.get(..len));
    let bytes = bytes.ok_or("its multiboot2 load area is larger than the file")?;
    let zeroes = u64::from(to.bss_end).saturating_sub(at + len);
    let entry = header.entry.ok_or("its multiboot2 header has load addresses, but no entry")?;
    let segments = vec![Segment { at, bytes, zeroes }];
    Ok(Plan { segments, entry: entry.into(), sections: None })
}

fn plan_elf<'a, H: FileHeader<Endian = LittleEndian>>(image: &'a [u8]) -> Result<Plan<'a>, Reason> {
    let wrong = |e: object::read::Error| format!("its ELF headers are damaged: {e}");
    let elf = H::parse(image)
        .map_err(|_| "its multiboot2 header gives no addresses, and it is no ELF file")?;
    let endian = elf.endian().map_err(wrong)?;
    let mut segments = Vec::new();
    for header in elf.program_headers(endian, image).map_err(wrong)? {
        if header.p_type(endian) != PT_LOAD {
            continue;
        }
        let (offset, len) = header.file_range(endian);
        let bytes = image
            .read_bytes_at(offset, len)
            .map_err(|()| "one of its ELF segments lies beyond the end of the file")?;
        let in_memory: u64 = header.p_memsz(endian).into();
        let at = header.p_paddr(endian).into();
        segments.push(Segment { at, bytes, zeroes: in_memory.saturating_sub(len) });
    }
    // Sections are for debuggers: a file without sound ones boots all the same.
    let sections = elf.section_headers(endian, image).ok().filter(|all| !all.is_empty());
    let sections = sections.map(|all| {
        let size = size_of::<H::SectionHeader>() as u32;
        let strings = elf.shstrndx(endian, image).unwrap_or(0);
        (all.len() as u32, size, strings, pod::bytes_of_slice(all))
    });
    Ok(Plan { segments, entry: elf.e_entry(endian).into(), sections })
}

/// How far the kernel has to be moved from where it was linked for, if it fits anywhere.
fn displacement(plan: &Plan<'_>, header: &Header, top: u64) -> Option<i64> {
    let start = plan.segments.iter().map(|s| s.at).min()?;
    let end = plan.segments.iter().map(Segment::end).max()?;
    let fits = |start: u64, end: u64| start >= HIGH_MEMORY && end <= top;
    let Some(relocatable) = header.relocatable else {
        return fits(start, end).then_some(0);
    };
    let (min, align) = (u64::from(relocatable.min).max(HIGH_MEMORY), u64::from(relocatable.align));
    let limit = top.min(u64::from(relocatable.max).saturating_add(1));
    let wanted = start >= min && end <= limit && start.is_multiple_of(align);
    if wanted {
        return Some(0);
    }
    let len = end - start;
    let lowest = min.checked_next_multiple_of(align)?;
    let highest = limit.checked_sub(len)? / align * align;
    (lowest <= highest).then(|| {
        let base = if relocatable.high { highest } else { lowest };
        base as i64 - start as i64
    })
}

/// Loads `boot`'s image with its modules and writes what the kernel is told; `rsdp` is where the ACPI
/// tables begin.
///
/// # Errors
/// [`BootError::Format`] and [`BootError::NoRoom`], which name the file.
pub(super) fn load(
    boot: &Boot<'_>,
    header: &Header,
    memory: &GuestMemory,
    layout: &Layout,
    rsdp: u64,
) -> Result<Entry, BootError> {
    let file = boot.name.to_owned();
    let plan = match plan(boot.image, header) {
        Ok(plan) => plan,
        Err(reason) => return Err(BootError::Format { file, reason }),
    };
    let no_room = || BootError::NoRoom { file: file.clone() };
    // Segments that lie upon each other could each fill all memory.
    let total = plan.segments.iter().fold(0, |sum: u64, s| sum.saturating_add(s.end() - s.at));
    if total > layout.low_end {
        return Err(no_room());
    }
    let moved = displacement(&plan, header, layout.low_end).ok_or_else(no_room)?;
    let mut top = HIGH_MEMORY;
    for segment in &plan.segments {
        let at = segment.at.wrapping_add_signed(moved);
        memory.write(at, segment.bytes).map_err(|_| no_room())?;
        let after = at + segment.bytes.len() as u64;
        memory.write_zeroes(after, segment.zeroes).map_err(|_| no_room())?;
        top = top.max(after + segment.zeroes);
    }
    let mut info = Info::default();
    info.describe(boot, layout);
    info.modules(boot, memory, layout, top).ok_or_else(no_room)?;
    info.tables(memory, rsdp);
    info.screen(boot.screen);
    if let Some((count, size, strings, bytes)) = plan.sections {
        let head = [count, size, strings].map(u32::to_le_bytes);
        info.add(tag::ELF_SECTIONS, &[head.as_flattened(), bytes].concat());
    }
    if header.relocatable.is_some() {
        let base = plan.segments.iter().map(|s| s.at).min().unwrap_or(0);
        info.add(tag::LOAD_BASE, &(base.wrapping_add_signed(moved) as u32).to_le_bytes());
    }
    let info = info.finish();
    if INFO + info.len() as u64 > INFO_END {
        return Err(no_room());
    }
    memory.write(INFO, &info).map_err(|_| no_room())?;
    let entry = plan.entry.wrapping_add_signed(moved);
    let eip = u32::try_from(entry).map_err(|_| BootError::Format {
        file: file.clone(),
        reason: "its entry is beyond 4 GiB".to_owned(),
    })?;
    Ok(Entry { eip, eax: LOADER_MAGIC, ebx: INFO as u32, ..Entry::default() })
}

/// The information, tag by tag.
#[derive(Default)]
struct Info {
    tags: Vec<u8>,
}

impl Info {
    fn add(&mut self, kind: u32, body: &[u8]) {
        self.tags.extend_from_slice(&kind.to_le_bytes());
        self.tags.extend_from_slice(&(8 + body.len() as u32).to_le_bytes());
        self.tags.extend_from_slice(body);
        self.tags.resize(self.tags.len().next_multiple_of(8), 0);
    }

    fn add_text(&mut self, kind: u32, head: &[u8], text: &str) {
        self.add(kind, &[head, text.as_bytes(), &[0]].concat());
    }

    fn describe(&mut self, boot: &Boot<'_>, layout: &Layout) {
        self.add_text(tag::COMMAND_LINE, &[], boot.command_line);
        self.add_text(tag::LOADER_NAME, &[], "rhea");
        let lower = (EBDA_START / 1024) as u32;
        let upper = ((layout.low_end - HIGH_MEMORY) / 1024) as u32;
        self.add(tag::BASIC_MEMORY, [lower, upper].map(u32::to_le_bytes).as_flattened());
        // Size of an entry, version of its format.
        let mut map = [24u32, 0].map(u32::to_le_bytes).concat();
        for (addr, len, kind) in layout.e820() {
            let kind = match kind {
                E820Type::Ram => 1u32,
                E820Type::Reserved => 2,
            };
            map.extend_from_slice(&addr.to_le_bytes());
            map.extend_from_slice(&len.to_le_bytes());
            map.extend_from_slice([kind, 0].map(u32::to_le_bytes).as_flattened());
        }
        self.add(tag::MEMORY_MAP, &map);
    }

    /// Puts the modules after the kernel, page-aligned. `None` if they have no room.
    fn modules(
        &mut self,
        boot: &Boot<'_>,
        memory: &GuestMemory,
        layout: &Layout,
        kernel_end: u64,
    ) -> Option<()> {
        let mut at = kernel_end;
        for module in boot.modules {
            at = at.next_multiple_of(PAGE_SIZE);
            let end = at + module.bytes.len() as u64;
            if end > layout.low_end {
                return None;
            }
            memory.write(at, &module.bytes).ok()?;
            let place = [at as u32, end as u32].map(u32::to_le_bytes);
            self.add_text(tag::MODULE, place.as_flattened(), &module.text);
            at = end;
        }
        Some(())
    }

    /// Copies of the root of the ACPI tables (ACPI 6.5, section 5.2.5.3), as 1.0 knew it and as it is.
    fn tables(&mut self, memory: &GuestMemory, rsdp: u64) {
        const OLD: usize = 20;
        const REVISION: usize = 15;
        let mut root = [0; 36];
        if memory.read(rsdp, &mut root).is_ok() && root.starts_with(b"RSD PTR ") {
            self.add(tag::ACPI_OLD, &root[..OLD]);
            if root[REVISION] >= 2 {
                self.add(tag::ACPI_NEW, &root);
            }
        }
    }

    /// The screen that there is, if any.
    fn screen(&mut self, screen: Screen) {
        let Some(frame) = screen.frame() else { return };
        let mut body = frame.address.to_le_bytes().to_vec();
        let fields = [frame.pitch, frame.width, frame.height];
        body.extend_from_slice(fields.map(u32::to_le_bytes).as_flattened());
        body.extend_from_slice(&[frame.bits, frame.kind, 0, 0]);
        body.extend(frame.colours.into_iter().flatten());
        self.add(tag::FRAMEBUFFER, &body);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add(tag::END, &[]);
        let size = 8 + self.tags.len() as u32;
        [&size.to_le_bytes(), &[0; 4], self.tags.as_slice()].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::super::graphics_mode::Mode;
    use super::super::multiboot::Module;
    use super::*;

    fn header(tags: &[(u16, u16, &[u32])]) -> Vec<u8> {
        let mut body = Vec::new();
        for (kind, flags, words) in tags.iter().copied().chain([(0, 0, &[][..])]) {
            body.extend_from_slice(&kind.to_le_bytes());
            body.extend_from_slice(&flags.to_le_bytes());
            body.extend_from_slice(&(8 + 4 * words.len() as u32).to_le_bytes());
            body.extend(words.iter().flat_map(|w| w.to_le_bytes()));
            body.resize(body.len().next_multiple_of(8), 0);
        }
        let length = 16 + body.len() as u32;
        let checksum = 0u32.wrapping_sub(HEADER_MAGIC).wrapping_sub(length);
        let words = [HEADER_MAGIC, ARCHITECTURE, length, checksum];
        [words.map(u32::to_le_bytes).concat(), body].concat()
    }

    fn boot(image: &[u8], modules: &[Module]) -> Result<(GuestMemory, Entry), BootError> {
        let layout = Layout::new(32 << 20);
        let memory = GuestMemory::new(&layout.ram()).unwrap();
        let header = find_header(image).unwrap().expect("a header");
        let screen = header.wish.map_or(Screen::Text, graphics);
        let boot = Boot { name: "k", image, command_line: "a=b", modules, screen };
        let entry = load(&boot, &header, &memory, &layout, 0)?;
        Ok((memory, entry))
    }

    fn graphics(wish: Wish) -> Screen {
        let Wish { width, height, .. } = wish;
        let (address, pitch, depth) = (0xfd00_0000, 4 * width, 32);
        Screen::Graphics(Mode { address, pitch, width, height, depth })
    }

    /// The tags of the information: kind and body.
    fn tags(memory: &GuestMemory, at: u64) -> Vec<(u32, Vec<u8>)> {
        let mut bytes = vec![0; 4096];
        memory.read(at, &mut bytes).unwrap();
        let mut rest = &bytes[8..u32_at(&bytes, 0).unwrap() as usize];
        let mut all = Vec::new();
        while !rest.is_empty() {
            let size = u32_at(rest, 4).unwrap() as usize;
            all.push((u32_at(rest, 0).unwrap(), rest[8..size].to_vec()));
            rest = &rest[size.next_multiple_of(8)..];
        }
        all
    }

    const LOAD: u32 = 0x20_0000;

    #[test]
    fn a_flat_kernel_is_loaded_and_told_of_its_modules() {
        let image = header(&[(2, 0, &[LOAD, LOAD, 0, LOAD + 0x1000]), (3, 0, &[LOAD + 8])]);
        let module = Module { bytes: vec![7; 5000], text: "mod arg".to_owned() };
        let (memory, entry) = boot(&image, &[module]).unwrap();
        assert_eq!((entry.eip, entry.eax), (LOAD + 8, LOADER_MAGIC));
        let mut there = vec![0; image.len()];
        memory.read(LOAD.into(), &mut there).unwrap();
        assert_eq!(there, image);
        let tags = tags(&memory, entry.ebx.into());
        let body = |kind| &tags.iter().find(|(k, _)| *k == kind).unwrap().1;
        assert_eq!(body(tag::COMMAND_LINE), b"a=b\0");
        let module = body(tag::MODULE);
        let (start, end) = (u32_at(module, 0).unwrap(), u32_at(module, 4).unwrap());
        assert_eq!((start % 4096, end - start), (0, 5000));
        assert_eq!(&module[8..], b"mod arg\0");
        assert_eq!(tags.last().unwrap().0, tag::END);
    }

    #[test]
    fn a_kernel_that_asks_for_graphics_is_told_of_the_mode() {
        let flat: (u16, u16, &[u32]) = (2, 0, &[LOAD, LOAD, 0, 0]);
        let told = |asked: &[(u16, u16, &[u32])]| {
            let image = header(&[&[flat, (3, 0, &[LOAD])], asked].concat());
            let (memory, entry) = boot(&image, &[]).unwrap();
            let tags = tags(&memory, entry.ebx.into());
            tags.into_iter().find(|(kind, _)| *kind == tag::FRAMEBUFFER).unwrap().1
        };
        let body = told(&[(5, 0, &[640, 480, 32])]);
        let words = [0, 4, 8, 12, 16, 20].map(|at| u32_at(&body, at).unwrap());
        assert_eq!(words, [0xfd00_0000, 0, 2560, 640, 480, 0x120]);
        assert_eq!(body[24..], [16, 8, 8, 8, 0, 8]);
        let body = told(&[]);
        assert_eq!(
            (u32_at(&body, 0), u32_at(&body, 20), body.len()),
            (Some(0xb_8000), Some(0x210), 24)
        );
    }

    #[test]
    fn a_kernel_that_has_no_place_moves_if_it_may() {
        let flat: (u16, u16, &[u32]) = (2, 0, &[0x8000, 0x8000, 0, 0]);
        let image = header(&[flat, (3, 0, &[0x8010])]);
        assert!(boot(&image, &[]).is_err(), "below 1 MiB");
        let free = (10, 0, &[0, u32::MAX, 0x10_0000, 1][..]);
        let image = header(&[flat, (3, 0, &[0x8010]), free]);
        let (memory, entry) = boot(&image, &[]).unwrap();
        assert_eq!(entry.eip, 0x10_0010);
        let tags = tags(&memory, entry.ebx.into());
        assert!(tags.contains(&(tag::LOAD_BASE, 0x10_0000u32.to_le_bytes().to_vec())));
        let high = (10, 0, &[0, u32::MAX, 0x10_0000, 2][..]);
        let (_, entry) = boot(&header(&[flat, (3, 0, &[0x8010]), high]), &[]).unwrap();
        assert_eq!(entry.eip, (31 << 20) + 0x10);
    }

    #[test]
    fn what_is_not_to_be_had_is_refused_unless_it_is_optional() {
        let refusal = |tags: &[(u16, u16, &[u32])]| find_header(&header(tags)).unwrap_err();
        assert!(refusal(&[(7, 0, &[])]).contains("UEFI"));
        assert!(refusal(&[(1, 0, &[5])]).contains("information 5"));
        assert!(refusal(&[(99, 0, &[])]).contains("99"));
        assert!(refusal(&[(10, 0, &[0, 0, 3, 0])]).contains("alignment"));
        for optional in [(7, 1, &[][..]), (1, 1, &[5][..]), (99, 1, &[][..]), (9, 0, &[1][..])] {
            assert!(find_header(&header(&[optional])).unwrap().is_some());
        }
        let whole = header(&[(3, 0, &[1])]);
        for len in 16..whole.len() {
            assert!(find_header(&whole[..len]).is_err(), "cut at {len}");
        }
        assert_eq!(find_header(&[0; 64]), Ok(None));
    }
}
