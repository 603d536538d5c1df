//! Direct boot of kernels, without firmware.
//!
//! - bzImage by the 32-bit entry of the Linux/x86 boot protocol (kernel documentation,
//!   `x86/boot.rst`, "32-bit Boot Protocol"): the CPU starts in flat 32-bit protected mode with ESI at
//!   the zero page.
//! - ELF kernels with a PVH note by the x86/HVM direct boot ABI (Xen documentation, `misc/pvh.html`):
//!   the same mode, EBX at the start-info page.
//! - Multiboot kernels of both versions: see [`super::multiboot`] and [`super::multiboot2`].
//!
//! [`BootImages`] keeps the files open and puts the guest's memory into its start state again at each
//! reset.

use std::fs::File;
use std::io::{Cursor, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Mutex;

use accel::Vcpu;
use cpu_x86::Cpu;
use cpu_x86::state::{Segment, TableRegister};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use linux_loader::loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use linux_loader::loader::{BzImage, KernelLoader, KernelLoaderResult};
use memory::{GuestMemory, PAGE_SIZE};
use vm_memory::{ByteValued, GuestAddress, ReadVolatile};

use super::graphics_mode::{Screen, Wish};
use super::layout::{HIGH_MEMORY, Layout};
use super::{multiboot, multiboot2, text_mode};
use crate::files;
use crate::spec::{BootImage, DirectBoot};

/// Guest physical addresses of what we hand over.
const GDT: u64 = 0x500;
const PVH_START_INFO: u64 = 0x6000;
const PVH_MODULES: u64 = 0x6100;
const PVH_MEMORY_MAP: u64 = 0x6200;
const ZERO_PAGE: u64 = 0x7000;
const COMMAND_LINE: u64 = 0x2_0000;
/// Room for the command line with its terminating zero, in bytes.
const COMMAND_LINE_MAX: usize = 0x1_0000;
/// Initial RAM disks stay below this unless the kernel says otherwise.
pub(super) const INITRD_MAX: u64 = 0x37ff_ffff;
/// A boot loader that has no number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
/// First word of a PVH start-info page.
const PVH_MAGIC: u32 = 0x336e_c578;

/// Selectors of the boot protocol's flat segments.
pub const BOOT_CS: u16 = 0x10;
/// See [`BOOT_CS`].
pub const BOOT_DS: u16 = 0x18;
/// Descriptors in the table that holds them.
const GDT_ENTRIES: usize = 4;
/// Indices into [`cpu_x86::CpuState`]: the code segment, RAX, RBX, RSI.
const CS: usize = 1;
const RAX: usize = 0;
const RBX: usize = 3;
const RSI: usize = 6;

/// Why a kernel could not be made ready.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file could not be opened or read.
    #[error("could not open kernel file '{file}': {source}")]
    Open {
        /// The file.
        file: String,
        /// What the host said.
        source: std::io::Error,
    },
    /// The initial RAM disk could not be opened or read.
    #[error("could not load initrd '{file}': {reason}")]
    Initrd {
        /// The file.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// The kernel is of no kind that can be booted directly, or damaged.
    #[error(
        "cannot boot kernel '{file}': {reason}; a Linux bzImage, an ELF64 kernel with a PVH note or a multiboot kernel is needed"
    )]
    Format {
        /// The file.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// The command line is too long.
    #[error("kernel command line has {length} bytes, at most {max} fit")]
    CommandLine {
        /// Its length in bytes.
        length: usize,
        /// The most that fits.
        max: usize,
    },
    /// Guest memory is too small.
    #[error("'{file}' does not fit into guest memory; give the machine more with -m")]
    NoRoom {
        /// The file.
        file: String,
    },
}

/// Where a CPU starts: flat 32-bit protected mode, paging and interrupts off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Address of the first instruction.
    pub eip: u32,
    /// EAX: the loader's magic number, for multiboot.
    pub eax: u32,
    /// ESI: the zero page, for Linux.
    pub esi: u32,
    /// EBX: the start-info page, for PVH; the information structure, for multiboot.
    pub ebx: u32,
    /// Guest physical address of the descriptor table with the flat segments.
    pub gdt: u32,
}

/// Puts `cpu`, fresh from reset, into the mode that both protocols start in.
pub fn enter(cpu: &mut Cpu, entry: &Entry) {
    const CR0_PE: u64 = 1;
    let mut state = cpu.state();
    let flat = |selector, attributes| Segment { selector, base: 0, limit: u32::MAX, attributes };
    state.segments = [flat(BOOT_DS, 0xc093); 6];
    state.segments[CS] = flat(BOOT_CS, 0xc09b);
    state.gdtr = TableRegister { base: entry.gdt.into(), limit: (GDT_ENTRIES * 8 - 1) as u16 };
    state.cr0 |= CR0_PE;
    state.rip = entry.eip.into();
    state.gpr[RAX] = entry.eax.into();
    state.gpr[RBX] = entry.ebx.into();
    state.gpr[RSI] = entry.esi.into();
    if let Err(reason) = cpu.set_state(&state) {
        eprintln!("rhea: cannot enter the kernel: {reason}");
    }
}

/// Bytes that can be loaded again and again.
trait Image: Read + ReadVolatile + Seek + Send {}
impl<T: Read + ReadVolatile + Seek + Send> Image for T {}

/// A part of an ELF file that belongs into memory.
struct LoadSegment {
    /// Guest physical address.
    addr: u64,
    /// Length of what the file holds, in bytes.
    in_file: u64,
    /// Length in memory, in bytes; what the file does not hold of it is zero.
    in_memory: u64,
}

/// Refuses segments that lie upon each other: 65,535 of them could each fill all memory.
fn check_apart(segments: &[LoadSegment]) -> Result<(), &'static str> {
    let mut ranges = Vec::new();
    for segment in segments {
        let len = segment.in_memory.max(segment.in_file);
        let end = segment.addr.checked_add(len).ok_or("a segment ends beyond all addresses")?;
        ranges.push((segment.addr, end));
    }
    ranges.retain(|(start, end)| start < end);
    ranges.sort_unstable();
    let overlap = ranges.windows(2).any(|pair| pair[1].0 < pair[0].1);
    if overlap { Err("its segments overlap in memory") } else { Ok(()) }
}

/// A kernel image, wherever its bytes are.
enum Source {
    File(File),
    Embedded(Cursor<&'static [u8]>),
}

/// What is in the files of a boot.
pub(super) struct ImageFiles {
    /// The kernel.
    pub(super) kernel: Vec<u8>,
    /// The initial RAM disk; empty if there is none.
    pub(super) initrd: Vec<u8>,
}

/// The images of a direct boot.
pub struct BootImages {
    kernel_name: String,
    kernel: Mutex<Source>,
    initrd: Option<(String, Mutex<File>)>,
    /// Files and texts of a multiboot kernel's modules.
    modules: Vec<(String, Mutex<File>)>,
    command_line: String,
}

impl BootImages {
    /// Opens the images.
    ///
    /// # Errors
    /// If a file can't be opened or the command line is too long.
    pub fn open(spec: &DirectBoot) -> Result<Self, BootError> {
        let (kernel_name, kernel) = match &spec.kernel {
            BootImage::Embedded(name, bytes) => {
                ((*name).to_owned(), Source::Embedded(Cursor::new(*bytes)))
            }
            BootImage::File(path) => {
                let file = path.display().to_string();
                let opened = files::open(path)
                    .map_err(|source| BootError::Open { file: file.clone(), source })?;
                (file, Source::File(opened))
            }
        };
        let mut kernel = kernel;
        let head = kernel
            .head()
            .map_err(|e| BootError::Format { file: kernel_name.clone(), reason: e.to_string() })?;
        let is_multiboot = matches!(Kind::of(&head), Kind::Multiboot | Kind::Multiboot2);
        let mut initrd = None;
        let mut modules = Vec::new();
        match &spec.initrd {
            None => {}
            Some(list) if is_multiboot => modules = open_modules(list)?,
            Some(path) => initrd = Some((path.display().to_string(), open_initrd(path)?)),
        }
        let length = spec.command_line.len();
        if length >= COMMAND_LINE_MAX {
            return Err(BootError::CommandLine { length, max: COMMAND_LINE_MAX - 1 });
        }
        let command_line = spec.command_line.clone();
        Ok(Self { kernel_name, kernel: Mutex::new(kernel), initrd, modules, command_line })
    }

    /// The kernel's file, for messages.
    pub(super) fn kernel_name(&self) -> &str {
        &self.kernel_name
    }

    /// The kernel's command line.
    pub(super) fn command_line(&self) -> &str {
        &self.command_line
    }

    /// The images as they are, for firmware to boot from.
    ///
    /// # Errors
    /// If one can't be read or has more than `limit` bytes.
    pub(super) fn read(&self, limit: u64) -> Result<ImageFiles, BootError> {
        let no_room = |file: &str| BootError::NoRoom { file: file.to_owned() };
        let mut source = self.kernel.lock().unwrap_or_else(|e| e.into_inner());
        let kernel = source
            .read_all(limit)
            .map_err(|e| self.format_error(&e.to_string()))?
            .ok_or_else(|| no_room(&self.kernel_name))?;
        let Some((name, file)) = &self.initrd else {
            return Ok(ImageFiles { kernel, initrd: Vec::new() });
        };
        let mut file = file.lock().unwrap_or_else(|e| e.into_inner());
        let initrd = read_all(&mut *file, limit)
            .map_err(|e| BootError::Initrd { file: name.clone(), reason: e.to_string() })?
            .ok_or_else(|| no_room(name))?;
        Ok(ImageFiles { kernel, initrd })
    }

    /// Writes everything that the kernel starts from into guest memory. `screen` sets the screen up, in the
    /// mode that the kernel wishes for, and tells what it has become.
    ///
    /// # Errors
    /// If the kernel is of an unknown kind, or something does not fit.
    pub(super) fn load(
        &self,
        memory: &GuestMemory,
        layout: &Layout,
        rsdp: u64,
        screen: &dyn Fn(Option<Wish>) -> Screen,
    ) -> Result<Entry, BootError> {
        let mut source = self.kernel.lock().unwrap_or_else(|e| e.into_inner());
        let head = source.head().map_err(|e| self.format_error(&e.to_string()))?;
        self.write(memory, GDT, gdt().as_slice())?;
        let entry = match Kind::of(&head) {
            kind @ (Kind::Multiboot | Kind::Multiboot2) => {
                self.load_multiboot(&mut source, memory, layout, kind, rsdp, screen)?
            }
            Kind::Elf => {
                screen(None);
                self.write_command_line(memory)?;
                let segments = source.segments().map_err(|e| self.format_error(&e.to_string()))?;
                check_apart(&segments).map_err(|e| self.format_error(e))?;
                let kernel = source.load::<Elf>(memory).map_err(|e| self.format_error(&e))?;
                for segment in segments {
                    let tail = segment.in_memory.saturating_sub(segment.in_file);
                    memory
                        .write_zeroes(segment.addr.saturating_add(segment.in_file), tail)
                        .map_err(|_| BootError::NoRoom { file: self.kernel_name.clone() })?;
                }
                self.prepare_pvh(memory, layout, rsdp, &kernel)?
            }
            Kind::BzImage => {
                self.write_command_line(memory)?;
                let kernel = source.load::<BzImage>(memory).map_err(|e| self.format_error(&e))?;
                self.prepare_linux(memory, layout, rsdp, screen(None), kernel)?
            }
        };
        Ok(Entry { gdt: GDT as u32, ..entry })
    }

    fn write_command_line(&self, memory: &GuestMemory) -> Result<(), BootError> {
        let mut command_line = self.command_line.clone().into_bytes();
        command_line.push(0);
        self.write(memory, COMMAND_LINE, &command_line)
    }

    fn load_multiboot(
        &self,
        source: &mut Source,
        memory: &GuestMemory,
        layout: &Layout,
        kind: Kind,
        rsdp: u64,
        screen: &dyn Fn(Option<Wish>) -> Screen,
    ) -> Result<Entry, BootError> {
        let no_room = |file: &str| BootError::NoRoom { file: file.to_owned() };
        let image = source
            .read_all(layout.low_end)
            .map_err(|e| self.format_error(&e.to_string()))?
            .ok_or_else(|| no_room(&self.kernel_name))?;
        let mut modules = Vec::new();
        for (text, file) in &self.modules {
            let mut file = file.lock().unwrap_or_else(|e| e.into_inner());
            let bytes = read_all(&mut *file, layout.low_end)
                .map_err(|e| BootError::Initrd { file: text.clone(), reason: e.to_string() })?
                .ok_or_else(|| no_room(text))?;
            modules.push(multiboot::Module { bytes, text: text.clone() });
        }
        let boot = |screen| multiboot::Boot {
            name: &self.kernel_name,
            image: &image,
            command_line: &self.command_line,
            modules: &modules,
            screen,
        };
        let gone = || self.format_error("its multiboot header is gone");
        if kind == Kind::Multiboot2 {
            let header = multiboot2::find_header(&image).map_err(|e| self.format_error(&e))?;
            let header = header.ok_or_else(gone)?;
            multiboot2::load(&boot(screen(header.wish)), &header, memory, layout, rsdp)
        } else {
            let header = multiboot::find_header(&image).map_err(|e| self.format_error(&e))?;
            let header = header.ok_or_else(gone)?;
            multiboot::load(&boot(screen(header.wish)), &header, memory, layout)
        }
    }

    fn prepare_linux(
        &self,
        memory: &GuestMemory,
        layout: &Layout,
        rsdp: u64,
        screen: Screen,
        kernel: KernelLoaderResult,
    ) -> Result<Entry, BootError> {
        let mut header =
            kernel.setup_header.ok_or_else(|| self.format_error("it has no setup header"))?;
        let start = kernel.kernel_load.0;
        // The kernel unpacks itself over `init_size` bytes from where it was loaded.
        let kernel_end = kernel.kernel_end.max(start.saturating_add(u64::from(header.init_size)));
        let max = if header.initrd_addr_max == 0 {
            INITRD_MAX
        } else {
            u64::from(header.initrd_addr_max)
        };
        if let Some((addr, size)) = self.load_initrd(memory, layout, kernel_end, max)? {
            header.ramdisk_image = addr;
            header.ramdisk_size = size;
        }
        header.type_of_loader = LOADER_UNDEFINED;
        header.cmd_line_ptr = COMMAND_LINE as u32;
        header.cmdline_size = self.command_line.len() as u32;
        header.code32_start = start as u32;
        header.vid_mode = 0xffff;
        let mut params = boot_params { hdr: header, acpi_rsdp_addr: rsdp, ..Default::default() };
        if screen == Screen::Text {
            params.screen_info.orig_video_mode = text_mode::BIOS_MODE;
            params.screen_info.orig_video_cols = text_mode::SIZE.0 as u8;
            params.screen_info.orig_video_lines = text_mode::SIZE.1 as u8;
            params.screen_info.orig_video_isVGA = 1;
            params.screen_info.orig_video_points = text_mode::CHARACTER_HEIGHT;
        }
        let e820 = layout.e820();
        for (slot, &(addr, size, kind)) in params.e820_table.iter_mut().zip(&e820) {
            *slot = boot_e820_entry { addr, size, r#type: kind as u32 };
        }
        params.e820_entries = e820.len() as u8;
        self.write(memory, ZERO_PAGE, params.as_slice())?;
        Ok(Entry { eip: start as u32, esi: ZERO_PAGE as u32, ..Entry::default() })
    }

    fn prepare_pvh(
        &self,
        memory: &GuestMemory,
        layout: &Layout,
        rsdp: u64,
        kernel: &KernelLoaderResult,
    ) -> Result<Entry, BootError> {
        let PvhBootCapability::PvhEntryPresent(entry) = kernel.pvh_boot_cap else {
            return Err(self.format_error("this ELF file has no PVH entry note"));
        };
        let eip = u32::try_from(entry.0)
            .map_err(|_| self.format_error("its PVH entry is beyond 4 GiB"))?;
        let initrd = self.load_initrd(memory, layout, kernel.kernel_end, INITRD_MAX)?;
        let e820 = layout.e820();
        let mut info = hvm_start_info {
            magic: PVH_MAGIC,
            version: 1,
            cmdline_paddr: COMMAND_LINE,
            rsdp_paddr: rsdp,
            memmap_paddr: PVH_MEMORY_MAP,
            memmap_entries: e820.len() as u32,
            ..Default::default()
        };
        if let Some((addr, size)) = initrd {
            let module = hvm_modlist_entry {
                paddr: u64::from(addr),
                size: u64::from(size),
                ..Default::default()
            };
            self.write(memory, PVH_MODULES, module.as_slice())?;
            info.nr_modules = 1;
            info.modlist_paddr = PVH_MODULES;
        }
        let mut map = Vec::new();
        for (addr, size, kind) in e820 {
            let entry =
                hvm_memmap_table_entry { addr, size, type_: kind as u32, ..Default::default() };
            map.extend_from_slice(entry.as_slice());
        }
        self.write(memory, PVH_MEMORY_MAP, &map)?;
        self.write(memory, PVH_START_INFO, info.as_slice())?;
        Ok(Entry { eip, ebx: PVH_START_INFO as u32, ..Entry::default() })
    }

    /// Reads the initial RAM disk to the highest page-aligned place that is free and allowed; returns
    /// its address and size in bytes.
    fn load_initrd(
        &self,
        memory: &GuestMemory,
        layout: &Layout,
        kernel_end: u64,
        max: u64,
    ) -> Result<Option<(u32, u32)>, BootError> {
        let Some((name, file)) = &self.initrd else { return Ok(None) };
        let no_room = || BootError::NoRoom { file: name.clone() };
        let failed =
            |e: std::io::Error| BootError::Initrd { file: name.clone(), reason: e.to_string() };
        let mut file = file.lock().unwrap_or_else(|e| e.into_inner());
        let size = file.metadata().map_err(failed)?.len();
        let top = layout.low_end.min(max.saturating_add(1));
        let addr = top.checked_sub(size).ok_or_else(no_room)? & !(PAGE_SIZE - 1);
        if addr < kernel_end.max(HIGH_MEMORY) {
            return Err(no_room());
        }
        file.rewind().map_err(failed)?;
        let mut chunk = vec![0; (1 << 20).min(size.max(1)) as usize];
        let mut done = 0;
        while done < size {
            let part = ((size - done) as usize).min(chunk.len());
            file.read_exact(&mut chunk[..part]).map_err(failed)?;
            memory.write(addr + done, &chunk[..part]).map_err(|_| no_room())?;
            done += part as u64;
        }
        Ok(Some((addr as u32, size as u32)))
    }

    fn write(&self, memory: &GuestMemory, addr: u64, bytes: &[u8]) -> Result<(), BootError> {
        memory.write(addr, bytes).map_err(|_| BootError::NoRoom { file: self.kernel_name.clone() })
    }

    fn format_error(&self, reason: &str) -> BootError {
        BootError::Format { file: self.kernel_name.clone(), reason: reason.to_owned() }
    }
}

/// What a kernel image is, by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    BzImage,
    Elf,
    Multiboot,
    Multiboot2,
}

impl Kind {
    /// Offset and text of the Linux setup header's signature.
    const LINUX: (usize, &[u8]) = (0x202, b"HdrS");

    /// A Linux kernel may have a multiboot header by chance, so its own signature comes first. What
    /// is nothing known is tried as a bzImage, whose loader says what is wrong with it.
    fn of(head: &[u8]) -> Self {
        let (at, signature) = Self::LINUX;
        if head.get(at..at + signature.len()) == Some(signature) {
            Self::BzImage
        } else if !matches!(multiboot::find_header(head), Ok(None)) {
            Self::Multiboot
        } else if !matches!(multiboot2::find_header(head), Ok(None)) {
            Self::Multiboot2
        } else if head.starts_with(b"\x7fELF") {
            Self::Elf
        } else {
            Self::BzImage
        }
    }
}

/// Reads all of `image`; `None` if it has more than `limit` bytes.
fn read_all(image: &mut (impl Read + Seek), limit: u64) -> std::io::Result<Option<Vec<u8>>> {
    image.rewind()?;
    let mut bytes = Vec::new();
    image.take(limit + 1).read_to_end(&mut bytes)?;
    Ok(Some(bytes).filter(|bytes| bytes.len() as u64 <= limit))
}

fn open_initrd(path: &Path) -> Result<Mutex<File>, BootError> {
    let file = path.display().to_string();
    let failed = |e: std::io::Error| BootError::Initrd { file, reason: e.to_string() };
    files::open(path).map(Mutex::new).map_err(failed)
}

/// Opens the modules of `list`: files separated by commas, each followed by its arguments. A doubled comma
/// stands for one in a name or an argument.
fn open_modules(list: &Path) -> Result<Vec<(String, Mutex<File>)>, BootError> {
    let list = list.to_string_lossy();
    let mut rest = &*list;
    let mut modules = Vec::new();
    while !rest.is_empty() {
        let (text, after) = options::next_part(rest);
        let path = text.split_whitespace().next().unwrap_or_default();
        let file = open_initrd(Path::new(path))?;
        modules.push((text, file));
        rest = after;
    }
    Ok(modules)
}

impl Source {
    /// The first bytes, as many as may hold a header of any kind.
    fn head(&mut self) -> std::io::Result<Vec<u8>> {
        fn head(image: &mut (impl Read + Seek)) -> std::io::Result<Vec<u8>> {
            image.rewind()?;
            let mut bytes = Vec::new();
            image.take(multiboot::SEARCH.max(multiboot2::SEARCH)).read_to_end(&mut bytes)?;
            Ok(bytes)
        }
        match self {
            Self::File(file) => head(file),
            Self::Embedded(bytes) => head(bytes),
        }
    }

    fn read_all(&mut self, limit: u64) -> std::io::Result<Option<Vec<u8>>> {
        match self {
            Self::File(file) => read_all(file, limit),
            Self::Embedded(bytes) => read_all(bytes, limit),
        }
    }

    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        match self {
            Self::File(file) => {
                file.seek(SeekFrom::Start(offset))?;
                file.read_exact(buf)
            }
            Self::Embedded(bytes) => {
                bytes.seek(SeekFrom::Start(offset))?;
                bytes.read_exact(buf)
            }
        }
    }

    /// The loadable segments (System V ABI, ELF-64 program headers).
    fn segments(&mut self) -> std::io::Result<Vec<LoadSegment>> {
        const HEADER: usize = 64;
        const PROGRAM_HEADER: usize = 56;
        const PT_LOAD: u64 = 1;
        let field = |bytes: &[u8], at: usize, len: usize| {
            bytes[at..at + len].iter().rev().fold(0, |value, &b| value << 8 | u64::from(b))
        };
        let mut header = [0; HEADER];
        self.read_at(0, &mut header)?;
        let (table, count) = (field(&header, 32, 8), field(&header, 56, 2));
        let mut segments = Vec::new();
        for i in 0..count {
            let mut entry = [0; PROGRAM_HEADER];
            self.read_at(table.saturating_add(i * PROGRAM_HEADER as u64), &mut entry)?;
            if field(&entry, 0, 4) == PT_LOAD {
                segments.push(LoadSegment {
                    addr: field(&entry, 24, 8),
                    in_file: field(&entry, 32, 8),
                    in_memory: field(&entry, 40, 8),
                });
            }
        }
        Ok(segments)
    }

    fn load<L: KernelLoader>(
        &mut self,
        memory: &GuestMemory,
    ) -> Result<KernelLoaderResult, String> {
        fn load<L: KernelLoader, F: Image>(
            memory: &GuestMemory,
            image: &mut F,
        ) -> Result<KernelLoaderResult, String> {
            let start = Some(GuestAddress(HIGH_MEMORY));
            L::load(memory.view(), None, image, start).map_err(|e| e.to_string())
        }
        match self {
            Self::File(file) => load::<L, _>(memory, file),
            Self::Embedded(bytes) => load::<L, _>(memory, bytes),
        }
    }
}

/// The boot protocol's descriptors: null, unused, flat code at [`BOOT_CS`], flat data at [`BOOT_DS`].
fn gdt() -> Vec<u8> {
    let descriptors: [u64; GDT_ENTRIES] = [0, 0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
    descriptors.iter().flat_map(|d| d.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn spec(bytes: &[u8], dir: &tempfile::TempDir) -> DirectBoot {
        let path = dir.path().join("kernel");
        File::create(&path).unwrap().write_all(bytes).unwrap();
        DirectBoot { kernel: BootImage::File(path), ..DirectBoot::default() }
    }

    #[test]
    fn damaged_kernels_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(32 << 20);
        let memory = GuestMemory::new(&layout.ram()).unwrap();
        let mut header = vec![0u8; 0x1000];
        header[0x1f1] = 4;
        header[0x202..0x206].copy_from_slice(b"HdrS");
        for bytes in [&b""[..], b"abc", b"\x7fELF", &[0; 4096], &header, &[0xff; 70000]] {
            let images = BootImages::open(&spec(bytes, &dir)).unwrap();
            let error = images.load(&memory, &layout, 0, &|_| Screen::None).unwrap_err();
            assert!(error.to_string().contains("kernel"), "{error}");
        }
    }

    #[test]
    fn a_missing_file_and_an_endless_command_line_are_refused() {
        let missing = DirectBoot {
            kernel: BootImage::File("/nonexistent/vmlinuz".into()),
            ..DirectBoot::default()
        };
        assert!(matches!(BootImages::open(&missing), Err(BootError::Open { .. })));
        let dir = tempfile::tempdir().unwrap();
        let long = DirectBoot { command_line: "x".repeat(1 << 20), ..spec(b"abc", &dir) };
        assert!(matches!(BootImages::open(&long), Err(BootError::CommandLine { .. })));
    }

    #[test]
    fn a_doubled_comma_belongs_to_a_modules_name() {
        let dir = tempfile::tempdir().unwrap();
        let [one, two] = ["a,b", "c"].map(|name| dir.path().join(name).display().to_string());
        File::create(&one).unwrap();
        File::create(&two).unwrap();
        let list = format!("{} x=1,,2,{two}", one.replace(',', ",,"));
        let modules = open_modules(Path::new(&list)).unwrap();
        let texts: Vec<_> = modules.into_iter().map(|(text, _)| text).collect();
        assert_eq!(texts, [format!("{one} x=1,2"), two]);
    }
}
