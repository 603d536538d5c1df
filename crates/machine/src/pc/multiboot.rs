//! Multiboot kernels (Multiboot Specification 0.6.96): 32-bit ELF images, or any file whose header says
//! where it is to be loaded.
//!
//! The kernel starts in flat 32-bit protected mode with a magic number in EAX and a structure at EBX
//! that tells of memory, command line, modules and the screen. A kernel that asks for a graphics mode finds
//! text if the adapter has it not: the specification lets a loader leave the wish open.

use memory::{GuestMemory, PAGE_SIZE};
use object::elf::{FileHeader32, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{LittleEndian, ReadRef};

use super::boot::{BootError, Entry};
use super::graphics_mode::{Screen, Wish};
use super::layout::{E820Type, EBDA_START, HIGH_MEMORY, Layout};

/// The header lies within this many bytes of the file's start.
pub(super) const SEARCH: u64 = 8192;
const HEADER_MAGIC: u32 = 0x1bad_b002;
/// What the kernel finds in EAX.
const LOADER_MAGIC: u32 = 0x2bad_b002;
/// Header flag: the address fields are valid.
const FLAG_ADDRESSES: u32 = 1 << 16;
/// Header flag: the fields of the video mode are valid.
const FLAG_VIDEO: u32 = 1 << 2;
/// Where these fields are in the header, and the kind of mode that is graphics.
const VIDEO: usize = 32;
const LINEAR_GRAPHICS: u32 = 0;
/// Header flags that a loader must understand: page-aligned modules, memory information, video mode.
const FLAGS_REQUIRED: u32 = 0xffff;
const FLAGS_KNOWN: u32 = 0x7;

/// Where the information structure can be in guest physical memory: at the first of these where the
/// kernel leaves room.
const PLACES: [u64; 3] = [0x9000, 0x2_0000, 0x7_0000];
/// Offsets from there: the memory map, the list of modules, and the strings up to the end of the room.
const MEMORY_MAP: u64 = 0x100;
const MODULE_LIST: u64 = 0x400;
const STRINGS: u64 = 0x1000;
const ROOM: u64 = 0x1_1000;
/// Modules that fit into their list.
const MAX_MODULES: usize = 128;

/// Information flags: which fields are valid.
const INFO_MEMORY: u32 = 1 << 0;
const INFO_COMMAND_LINE: u32 = 1 << 2;
const INFO_MODULES: u32 = 1 << 3;
const INFO_MEMORY_MAP: u32 = 1 << 6;
const INFO_LOADER_NAME: u32 = 1 << 9;
const INFO_FRAMEBUFFER: u32 = 1 << 12;

/// A multiboot header's words, without magic and checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Offset of the header in the file, in bytes.
    offset: u64,
    /// Present if the header gives addresses.
    addresses: Option<Addresses>,
    /// The graphics mode that the kernel asks for.
    pub(super) wish: Option<Wish>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Addresses {
    header: u32,
    load: u32,
    load_end: u32,
    bss_end: u32,
    entry: u32,
}

/// A module: its bytes and the text that goes with it.
pub(super) struct Module {
    /// The contents.
    pub(super) bytes: Vec<u8>,
    /// File name and arguments.
    pub(super) text: String,
}

/// What is to be booted.
pub(super) struct Boot<'a> {
    /// The kernel's name, for messages and as the first word of its command line.
    pub(super) name: &'a str,
    /// The kernel's file.
    pub(super) image: &'a [u8],
    /// The rest of the command line.
    pub(super) command_line: &'a str,
    /// Its modules, in order.
    pub(super) modules: &'a [Module],
    /// The screen that there is.
    pub(super) screen: Screen,
}

/// Why an image can't be loaded, apart from lack of room.
type Reason = String;

/// Looks for a header in `image`.
///
/// # Errors
/// If there is one that asks for what this loader has not.
pub(super) fn find_header(image: &[u8]) -> Result<Option<Header>, Reason> {
    let word =
        |at: usize| image.get(at..at + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let end = image.len().min(SEARCH as usize);
    for at in (0..end).step_by(4) {
        let (Some(HEADER_MAGIC), Some(flags), Some(checksum)) =
            (word(at), word(at + 4), word(at + 8))
        else {
            continue;
        };
        if HEADER_MAGIC.wrapping_add(flags).wrapping_add(checksum) != 0 {
            continue;
        }
        if flags & FLAGS_REQUIRED & !FLAGS_KNOWN != 0 {
            return Err(format!("its multiboot header asks for unknown features ({flags:#x})"));
        }
        let addresses = if flags & FLAG_ADDRESSES == 0 {
            None
        } else {
            let field = |i: usize| word(at + 12 + 4 * i).ok_or("its multiboot header is cut off");
            Some(Addresses {
                header: field(0)?,
                load: field(1)?,
                load_end: field(2)?,
                bss_end: field(3)?,
                entry: field(4)?,
            })
        };
        let wish = if flags & FLAG_VIDEO == 0 {
            None
        } else {
            let field =
                |i: usize| word(at + VIDEO + 4 * i).ok_or("its multiboot header is cut off");
            let (kind, wish) =
                (field(0)?, Wish { width: field(1)?, height: field(2)?, depth: field(3)? });
            (kind == LINEAR_GRAPHICS).then_some(wish)
        };
        return Ok(Some(Header { offset: at as u64, addresses, wish }));
    }
    Ok(None)
}

/// A stretch of the image in memory: where, the bytes from the file, and how many zeroes follow.
struct Segment<'a> {
    at: u64,
    bytes: &'a [u8],
    zeroes: u64,
}

impl Segment<'_> {
    /// Its length in memory.
    fn len(&self) -> u64 {
        self.bytes.len() as u64 + self.zeroes
    }
}

/// What there is to load, and where it starts.
struct Plan<'a> {
    segments: Vec<Segment<'a>>,
    entry: u32,
}

fn plan<'a>(image: &'a [u8], header: &Header) -> Result<Plan<'a>, Reason> {
    match header.addresses {
        Some(addresses) => plan_flat(image, header.offset, &addresses),
        None => plan_elf(image),
    }
}

fn plan_flat<'a>(image: &'a [u8], offset: u64, to: &Addresses) -> Result<Plan<'a>, Reason> {
    let before = u64::from(to.header).checked_sub(u64::from(to.load));
    let start = before.and_then(|before| offset.checked_sub(before));
    let start = start.ok_or("its multiboot load address is beyond its header")? as usize;
    let available = image.len() - start.min(image.len());
    let len = match to.load_end {
        0 => available,
        end => {
            (end.checked_sub(to.load).ok_or("its multiboot load area ends before it starts")?)
                as usize
        }
    };
    let bytes = image.get(start..start.saturating_add(len));
    let bytes = bytes.ok_or("its multiboot load area is larger than the file")?;
    let loaded_end = u64::from(to.load) + len as u64;
    let zeroes = match to.bss_end {
        0 => 0,
        end => u64::from(end).saturating_sub(loaded_end),
    };
    let segment = Segment { at: to.load.into(), bytes, zeroes };
    Ok(Plan { segments: vec![segment], entry: to.entry })
}

fn plan_elf(image: &[u8]) -> Result<Plan<'_>, Reason> {
    let wrong = |e: object::read::Error| format!("its ELF headers are damaged: {e}");
    let elf = FileHeader32::<LittleEndian>::parse(image)
        .map_err(|_| "its multiboot header gives no addresses, and it is no 32-bit ELF file")?;
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
        let in_memory = u64::from(header.p_memsz(endian));
        let at = header.p_paddr(endian).into();
        segments.push(Segment { at, bytes, zeroes: in_memory.saturating_sub(len) });
    }
    Ok(Plan { segments, entry: elf.e_entry(endian) })
}

/// Loads `boot`'s image with its modules and writes what the kernel is told.
///
/// # Errors
/// [`BootError::Format`] and [`BootError::NoRoom`], which name the file.
pub(super) fn load(
    boot: &Boot<'_>,
    header: &Header,
    memory: &GuestMemory,
    layout: &Layout,
) -> Result<Entry, BootError> {
    let file = boot.name.to_owned();
    let plan = match plan(boot.image, header) {
        Ok(plan) => plan,
        Err(reason) => return Err(BootError::Format { file, reason }),
    };
    let no_room = || BootError::NoRoom { file: file.clone() };
    let mut top = HIGH_MEMORY;
    for segment in &plan.segments {
        let end = segment.at + segment.len();
        if end > layout.low_end {
            return Err(no_room());
        }
        memory.write(segment.at, segment.bytes).map_err(|_| no_room())?;
        memory
            .write_zeroes(segment.at + segment.bytes.len() as u64, segment.zeroes)
            .map_err(|_| no_room())?;
        top = top.max(end);
    }
    let is_free = |place: &u64| {
        plan.segments
            .iter()
            .all(|segment| segment.at >= place + ROOM || segment.at + segment.len() <= *place)
    };
    let place = PLACES.into_iter().find(is_free).ok_or_else(no_room)?;
    let mut writer = InfoWriter { memory, place, next_string: place + STRINGS };
    writer.write(layout, boot, top).ok_or_else(no_room)?;
    Ok(Entry { eip: plan.entry, eax: LOADER_MAGIC, ebx: place as u32, ..Entry::default() })
}

/// Writes the information structure and all it points to.
struct InfoWriter<'a> {
    memory: &'a GuestMemory,
    /// Where the structure is.
    place: u64,
    next_string: u64,
}

impl InfoWriter<'_> {
    /// `None` if something has no room.
    fn write(&mut self, layout: &Layout, boot: &Boot<'_>, kernel_end: u64) -> Option<()> {
        let Boot { name, command_line, modules, .. } = *boot;
        let mut list = Vec::new();
        let mut at = kernel_end;
        if modules.len() > MAX_MODULES {
            return None;
        }
        for module in modules {
            at = at.next_multiple_of(PAGE_SIZE);
            let end = at + module.bytes.len() as u64;
            if end > layout.low_end {
                return None;
            }
            self.memory.write(at, &module.bytes).ok()?;
            let text = self.string(&module.text)?;
            for word in [at as u32, end as u32, text, 0] {
                list.extend_from_slice(&word.to_le_bytes());
            }
            at = end;
        }
        self.memory.write(self.place + MODULE_LIST, &list).ok()?;
        let map = memory_map(layout);
        self.memory.write(self.place + MEMORY_MAP, &map).ok()?;
        // The kernel's own name is the first word of its command line.
        let full = if command_line.is_empty() {
            name.to_owned()
        } else {
            format!("{name} {command_line}")
        };
        let command_line = self.string(&full)?;
        let loader = self.string("rhea")?;
        let flags =
            INFO_MEMORY | INFO_COMMAND_LINE | INFO_MODULES | INFO_MEMORY_MAP | INFO_LOADER_NAME;
        let mut info = [0u32; 29];
        info[0] = flags;
        info[1] = (EBDA_START / 1024) as u32;
        info[2] = ((layout.low_end - HIGH_MEMORY) / 1024) as u32;
        info[4] = command_line;
        info[5] = modules.len() as u32;
        info[6] = (self.place + MODULE_LIST) as u32;
        info[11] = map.len() as u32;
        info[12] = (self.place + MEMORY_MAP) as u32;
        info[16] = loader;
        if let Some(fields) = screen_fields(boot.screen) {
            info[0] |= INFO_FRAMEBUFFER;
            info[22..].copy_from_slice(&fields);
        }
        let bytes: Vec<u8> = info.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.memory.write(self.place, &bytes).ok()
    }

    /// Writes a string with its terminating zero; returns where it is.
    fn string(&mut self, text: &str) -> Option<u32> {
        let at = self.next_string;
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.next_string += bytes.len() as u64;
        if self.next_string > self.place + ROOM {
            return None;
        }
        self.memory.write(at, &bytes).ok()?;
        Some(at as u32)
    }
}

/// What the information says of the screen: address, bytes of a row, columns, rows, bits of a character or
/// pixel with the kind, and where the colours are in a pixel.
fn screen_fields(screen: Screen) -> Option<[u32; 7]> {
    let frame = screen.frame()?;
    let [red, red_bits, rest @ ..] = frame.colours.unwrap_or_default();
    let kind = u32::from_le_bytes([frame.bits, frame.kind, red, red_bits]);
    let (low, high) = (frame.address as u32, (frame.address >> 32) as u32);
    let colours = u32::from_le_bytes(rest);
    Some([low, high, frame.pitch, frame.width, frame.height, kind, colours])
}

/// The memory map: entries of a size that does not count itself, address, length and type.
fn memory_map(layout: &Layout) -> Vec<u8> {
    const ENTRY: u32 = 20;
    let mut map = Vec::new();
    for (addr, len, kind) in layout.e820() {
        let kind = match kind {
            E820Type::Ram => 1u32,
            E820Type::Reserved => 2,
        };
        map.extend_from_slice(&ENTRY.to_le_bytes());
        map.extend_from_slice(&addr.to_le_bytes());
        map.extend_from_slice(&len.to_le_bytes());
        map.extend_from_slice(&kind.to_le_bytes());
    }
    map
}

#[cfg(test)]
mod tests {
    use super::super::graphics_mode::Mode;
    use super::*;

    /// A flat kernel of `body` after a header with addresses, loaded at 1 MiB.
    fn flat(body: &[u8], bss: u32) -> Vec<u8> {
        flat_at(HIGH_MEMORY as u32, body, bss)
    }

    fn flat_at(load: u32, body: &[u8], bss: u32) -> Vec<u8> {
        let flags = FLAG_ADDRESSES | 3;
        let checksum = 0u32.wrapping_sub(HEADER_MAGIC).wrapping_sub(flags);
        let end = load + 32 + body.len() as u32;
        let words = [HEADER_MAGIC, flags, checksum, load, load, end, end + bss, load + 32];
        let mut image: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        image.extend_from_slice(body);
        image
    }

    fn boot(image: &[u8], modules: &[Module]) -> Result<(GuestMemory, Entry), BootError> {
        let layout = Layout::new(32 << 20);
        let memory = GuestMemory::new(&layout.ram()).unwrap();
        let header = find_header(image).unwrap().expect("a header");
        let screen = header.wish.map_or(Screen::Text, graphics);
        let boot = Boot { name: "k", image, command_line: "a=b", modules, screen };
        let entry = load(&boot, &header, &memory, &layout)?;
        Ok((memory, entry))
    }

    fn graphics(wish: Wish) -> Screen {
        let Wish { width, height, .. } = wish;
        let (address, pitch, depth) = (0xfd00_0000, 2 * width, 16);
        Screen::Graphics(Mode { address, pitch, width, height, depth })
    }

    fn word(memory: &GuestMemory, at: u64) -> u32 {
        let mut bytes = [0; 4];
        memory.read(at, &mut bytes).unwrap();
        u32::from_le_bytes(bytes)
    }

    fn text(memory: &GuestMemory, at: u32) -> String {
        let mut bytes = vec![0; 64];
        memory.read(at.into(), &mut bytes).unwrap();
        String::from_utf8_lossy(bytes.split(|&b| b == 0).next().unwrap()).into_owned()
    }

    #[test]
    fn a_flat_kernel_is_loaded_with_its_modules_and_told_of_them() {
        let module = Module { bytes: vec![7; 5000], text: "mod arg".to_owned() };
        let (memory, entry) = boot(&flat(b"code", 100), &[module]).unwrap();
        assert_eq!((entry.eip, entry.eax), (0x10_0020, LOADER_MAGIC));
        let mut code = [0; 4];
        memory.read(0x10_0020, &mut code).unwrap();
        assert_eq!(&code, b"code");
        let info = u64::from(entry.ebx);
        assert_eq!(text(&memory, word(&memory, info + 16)), "k a=b");
        assert_eq!((word(&memory, info + 4), word(&memory, info + 8)), (639, 31 << 10));
        assert_eq!(word(&memory, info + 20), 1);
        let list = u64::from(word(&memory, info + 24));
        let (start, end) = (word(&memory, list), word(&memory, list + 4));
        assert_eq!((start % 4096, end - start), (0, 5000));
        assert_eq!(text(&memory, word(&memory, list + 8)), "mod arg");
        let map = u64::from(word(&memory, info + 48));
        assert_eq!(word(&memory, map), 20);
        assert_eq!(word(&memory, info) & INFO_FRAMEBUFFER, INFO_FRAMEBUFFER);
        let screen = [22, 23, 24, 25, 26, 27].map(|field| word(&memory, info + 4 * field));
        assert_eq!(screen, [0xb_8000, 0, 160, 80, 25, 0x210]);
    }

    #[test]
    fn a_kernel_that_asks_for_graphics_is_told_of_the_mode() {
        let flags = FLAG_ADDRESSES | FLAG_VIDEO;
        let checksum = 0u32.wrapping_sub(HEADER_MAGIC).wrapping_sub(flags);
        let load = HIGH_MEMORY as u32;
        let image = |kind: u32| -> Vec<u8> {
            let addresses = [HEADER_MAGIC, flags, checksum, load, load, 0, 0, load + 48];
            let words = addresses.into_iter().chain([kind, 800, 600, 16, 0]);
            words.flat_map(u32::to_le_bytes).collect()
        };
        let told = |kind: u32| {
            let (memory, entry) = boot(&image(kind), &[]).unwrap();
            [22, 23, 24, 25, 26, 27, 28]
                .map(|field| word(&memory, u64::from(entry.ebx) + 4 * field))
        };
        let colours = 0x0500_0605;
        assert_eq!(told(0), [0xfd00_0000, 0, 1600, 800, 600, 0x050b_0110, colours]);
        assert_eq!(told(1), [0xb_8000, 0, 160, 80, 25, 0x210, 0], "text is what it asks for");
        assert!(find_header(&image(0)[..40]).unwrap_err().contains("cut off"));
    }

    #[test]
    fn a_kernel_in_low_memory_stays_whole() {
        let body = vec![0xa5; 0x1_0000];
        let (memory, entry) = boot(&flat_at(0x4000, &body, 0x1000), &[]).unwrap();
        let mut loaded = vec![0; body.len()];
        memory.read(0x4020, &mut loaded).unwrap();
        assert!(loaded == body);
        assert_eq!(text(&memory, word(&memory, u64::from(entry.ebx) + 16)), "k a=b");
        assert!(boot(&flat_at(0x4000, &body, 0x9_0000), &[]).is_err(), "no room is left");
    }

    #[test]
    fn damaged_headers_are_refused() {
        let mut image = flat(b"code", 0);
        image[20..24].copy_from_slice(&0x20_0000u32.to_le_bytes());
        assert!(boot(&image, &[]).is_err(), "load area larger than the file");
        let mut image = flat(b"code", 0);
        image[12..16].copy_from_slice(&0u32.to_le_bytes());
        assert!(boot(&image, &[]).is_err(), "header before the load address");
        assert!(boot(&flat(b"code", u32::MAX - 0x20_0000), &[]).is_err(), "larger than memory");
        assert_eq!(find_header(&[0; 64]), Ok(None));
        assert_eq!(find_header(&flat(b"", 0)[..20]).map_err(|e| e.contains("cut off")), Err(true));
    }
}
