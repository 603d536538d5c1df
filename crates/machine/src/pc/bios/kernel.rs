//! The kernel of `-kernel` for machines that start in firmware: its parts as fw_cfg items, from which UEFI
//! firmware boots it, and for a PC BIOS an option ROM that does ([`super::linux_rom`]).
//!
//! Only Linux can be booted so: its image holds real-mode code that takes over from a BIOS, and is an
//! application for UEFI (Linux/x86 boot protocol, kernel documentation, `x86/boot.rst`).

use std::fmt::Display;

use devices::fw_cfg::key;

use super::linux_rom;
use crate::BuildError;
use crate::pc::board::Pc;
use crate::pc::boot::{BootError, BootImages, INITRD_MAX};

/// Where the parts go: the setup code into a segment of its own, the command line above it, the kernel to
/// 1 MiB.
pub(super) const SETUP_ADDRESS: u32 = 0x1_0000;
pub(super) const COMMAND_LINE_ADDRESS: u32 = 0x2_0000;
pub(super) const KERNEL_ADDRESS: u32 = 0x10_0000;
/// The most setup code that fits below its stack, in bytes.
const SETUP_MAX: usize = 0x8000;
/// The name under which firmware finds the option ROM, and its path in the boot order.
const ROM_FILE: &str = "genroms/linuxboot_dma.bin";
const ROM_PATH: &str = "/rom@genroms/linuxboot_dma.bin";
/// The oldest boot protocol that has a pointer to the command line.
const PROTOCOL_MIN: u16 = 0x202;

/// Offsets of fields in the setup header, which is part of the setup code.
pub(super) mod header {
    pub(super) const SETUP_SECTORS: usize = 0x1f1;
    pub(in super::super) const VID_MODE: u32 = 0x1fa;
    pub(super) const SIGNATURE: usize = 0x202;
    pub(super) const VERSION: usize = 0x206;
    pub(in super::super) const TYPE_OF_LOADER: u32 = 0x210;
    pub(in super::super) const LOADFLAGS: u32 = 0x211;
    pub(in super::super) const RAMDISK_IMAGE: u32 = 0x218;
    pub(in super::super) const RAMDISK_SIZE: u32 = 0x21c;
    pub(in super::super) const HEAP_END_PTR: u32 = 0x224;
    pub(in super::super) const CMD_LINE_PTR: u32 = 0x228;
    pub(super) const INITRD_ADDR_MAX: usize = 0x22c;
    pub(super) const INIT_SIZE: usize = 0x260;
}

/// A kernel taken apart. Sizes are below 4 GiB.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Linux {
    /// The real-mode part.
    pub(super) setup: Vec<u8>,
    /// The protected-mode part.
    pub(super) kernel: Vec<u8>,
    /// The initial RAM disk.
    pub(super) initrd: Vec<u8>,
    /// The command line with its final zero.
    pub(super) command_line: Vec<u8>,
    /// The video mode that the command line asks for with `vga=`.
    pub(super) video_mode: u16,
    /// First address that the kernel leaves free.
    pub(super) kernel_end: u32,
    /// The initial RAM disk has to end here at the latest.
    pub(super) initrd_end: u32,
}

impl Linux {
    /// Takes a kernel image apart.
    ///
    /// # Errors
    /// Says what is wrong with it.
    fn new(image: Vec<u8>, initrd: Vec<u8>, command_line: &str) -> Result<Self, String> {
        let number = |at: usize, len: usize| {
            let bytes = image.get(at..at + len).unwrap_or_default();
            bytes.iter().rev().fold(0u32, |value, &byte| value << 8 | u32::from(byte))
        };
        if image.get(header::SIGNATURE..header::VERSION) != Some(b"HdrS") {
            return Err(
                "firmware boots Linux bzImages only; without -bios and without pflash, a kernel \
                        of this kind is booted directly"
                    .to_owned(),
            );
        }
        let version = number(header::VERSION, 2) as u16;
        if version < PROTOCOL_MIN {
            return Err(format!("its boot protocol {version:#x} is older than {PROTOCOL_MIN:#x}"));
        }
        if number(header::LOADFLAGS as usize, 1) & 1 == 0 {
            return Err("it is a zImage, which is loaded below 1 MiB".to_owned());
        }
        let sectors = match number(header::SETUP_SECTORS, 1) {
            0 => 4,
            sectors => sectors as usize,
        };
        let setup_size = (sectors + 1) * 512;
        if setup_size > SETUP_MAX || setup_size >= image.len() {
            return Err("its setup code has a wrong size".to_owned());
        }
        let limit = match number(header::INITRD_ADDR_MAX, 4) {
            max if version >= 0x203 && max != 0 => max,
            _ => INITRD_MAX as u32,
        };
        let init_size = if version >= 0x20a { number(header::INIT_SIZE, 4) } else { 0 };
        let mut setup = image;
        let kernel = setup.split_off(setup_size);
        let size = init_size.max(kernel.len() as u32);
        Ok(Self {
            setup,
            kernel,
            initrd,
            command_line: [command_line.as_bytes(), &[0]].concat(),
            video_mode: video_mode(command_line)?,
            kernel_end: KERNEL_ADDRESS.saturating_add(size),
            initrd_end: limit.saturating_add(1),
        })
    }
}

/// The number for what `vga=` on a kernel's command line says; the boot loader has to see to it.
fn video_mode(command_line: &str) -> Result<u16, String> {
    const NORMAL: u16 = 0xffff;
    const EXTENDED: u16 = 0xfffe;
    const ASK: u16 = 0xfffd;
    let Some(mode) =
        command_line.split(' ').filter_map(|word| word.strip_prefix("vga=")).next_back()
    else {
        return Ok(NORMAL);
    };
    let parsed = match mode {
        "normal" => Some(NORMAL),
        "ext" => Some(EXTENDED),
        "ask" => Some(ASK),
        number => match number.strip_prefix("0x") {
            Some(hex) => u16::from_str_radix(hex, 16).ok(),
            None => number.parse().ok(),
        },
    };
    parsed.ok_or_else(|| {
        format!("its command line has vga={mode}, which is neither normal, ext, ask nor a number")
    })
}

impl Pc {
    /// Gives firmware the kernel, if there is one: items, and a ROM that comes first in the boot order.
    pub(in crate::pc) fn add_kernel(&mut self, images: &BootImages) -> Result<(), BuildError> {
        let files = images.read(self.layout.low_end)?;
        let wrong = |reason: &dyn Display| BootError::Format {
            file: images.kernel_name().to_owned(),
            reason: reason.to_string(),
        };
        let linux = Linux::new(files.kernel, files.initrd, images.command_line())
            .map_err(|reason| wrong(&reason))?;
        let room = self.layout.low_end.saturating_sub(linux.initrd.len() as u64);
        if u64::from(linux.kernel_end) > room {
            return Err(BootError::NoRoom { file: images.kernel_name().to_owned() }.into());
        }
        let rom = linux_rom::build(&linux).map_err(|e| wrong(&e))?;
        self.add_item(ROM_FILE, rom)?;
        self.boot_order.add_first(ROM_PATH);
        let initrd_end = self.layout.low_end.min(linux.initrd_end.into());
        let initrd_address = (initrd_end as u32).saturating_sub(linux.initrd.len() as u32) & !0xfff;
        let device = &self.fw_cfg;
        let set = |key, number: u32| device.set(key, number.to_le_bytes());
        set(key::KERNEL_ADDRESS, KERNEL_ADDRESS);
        set(key::KERNEL_SIZE, linux.kernel.len() as u32);
        device.set(key::KERNEL_DATA, linux.kernel);
        set(key::SETUP_ADDRESS, SETUP_ADDRESS);
        set(key::SETUP_SIZE, linux.setup.len() as u32);
        device.set(key::SETUP_DATA, linux.setup);
        set(key::COMMAND_LINE_ADDRESS, COMMAND_LINE_ADDRESS);
        set(key::COMMAND_LINE_SIZE, linux.command_line.len() as u32);
        device.set(key::COMMAND_LINE_DATA, linux.command_line);
        if !linux.initrd.is_empty() {
            set(key::INITRD_ADDRESS, initrd_address);
            set(key::INITRD_SIZE, linux.initrd.len() as u32);
            device.set(key::INITRD_DATA, linux.initrd);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Vec<u8> {
        let mut image = vec![0; 0x2000];
        image[header::SETUP_SECTORS] = 3;
        image[header::SIGNATURE..header::VERSION].copy_from_slice(b"HdrS");
        image[header::VERSION..header::VERSION + 2].copy_from_slice(&[0x0f, 2]);
        image[header::LOADFLAGS as usize] = 1;
        image[header::INITRD_ADDR_MAX..][..4].copy_from_slice(&[0xff, 0xff, 0xff, 0x7f]);
        image[header::INIT_SIZE..][..4].copy_from_slice(&[0, 0, 0x10, 0]);
        image
    }

    #[test]
    fn an_image_is_taken_apart_after_its_setup_code() {
        let linux = Linux::new(image(), vec![1], "quiet vga=0x317").unwrap();
        assert_eq!((linux.setup.len(), linux.kernel.len()), (0x800, 0x1800));
        assert_eq!((linux.kernel_end, linux.initrd_end), (0x20_0000, 0x8000_0000));
        assert_eq!((linux.command_line.len(), linux.video_mode), (16, 0x317));
    }

    #[test]
    fn other_images_are_refused() {
        let with = |at: usize, value: u8| {
            let mut image = image();
            image[at] = value;
            Linux::new(image, Vec::new(), "").unwrap_err()
        };
        assert!(with(header::SIGNATURE, 0).contains("bzImages only"));
        assert!(with(header::VERSION + 1, 1).contains("boot protocol"));
        assert!(with(header::LOADFLAGS as usize, 0).contains("zImage"));
        assert!(with(header::SETUP_SECTORS, 200).contains("size"));
        assert!(Linux::new(Vec::new(), Vec::new(), "").is_err());
        assert!(Linux::new(image(), Vec::new(), "vga=wide").unwrap_err().contains("vga=wide"));
    }
}
