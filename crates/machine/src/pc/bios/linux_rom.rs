//! The option ROM by which a PC BIOS boots the kernel of `-kernel`.
//!
//! It has a Plug and Play expansion header with a bootstrap entry vector (Plug and Play BIOS
//! Specification 1.0A, section 3.2; BIOS Boot Specification 1.01, section 3), so that the BIOS lists it
//! among what can be booted. There, it fetches the kernel's parts by fw_cfg's DMA, which reaches memory
//! above 1 MiB from real mode, completes the setup header, and enters the setup code (Linux/x86 boot
//! protocol, `x86/boot.rst`, "Running the Kernel").
//!
//! Sizes and addresses are those of one machine: the ROM is assembled for it.

use devices::fw_cfg::{self, key};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::kernel::{COMMAND_LINE_ADDRESS, KERNEL_ADDRESS, Linux, SETUP_ADDRESS, header};

/// ROMs are made of so many bytes.
const UNIT: usize = 512;
/// Offsets of what is in the ROM: the expansion header, its names, the message, the code.
const EXPANSION: usize = 0x20;
const NAMES: usize = 0x40;
const MESSAGE: usize = 0x60;
const CODE: usize = 0xa0;
/// Names in the expansion header; zeroes end them.
const MANUFACTURER: &[u8] = b"Rhea\0";
const PRODUCT: &[u8] = b"Linux (-kernel)\0";
const FAILURE: &[u8] = b"-kernel: the machine has too little memory for it.\r\n\0";

/// What initialisation returns (Plug and Play BIOS Specification, section 3.3): there is something to
/// boot from.
const DEVICE_ATTACHED: u32 = 2 << 4;
/// Where the code that starts the kernel has its stack, in the setup code's segment, and how much of the
/// segment it may use as heap.
const STACK: u32 = 0xfff0;
const HEAP_END: u32 = 0xfe00;
/// The setup code is entered this many paragraphs after its start.
const ENTRY_PARAGRAPHS: u32 = 0x20;
const LOADER_UNDEFINED: u32 = 0xff;
const CAN_USE_HEAP: u32 = 1 << 7;

/// The ROM for `linux`.
///
/// # Errors
/// Never: the program is fixed but for its numbers.
pub(super) fn build(linux: &Linux) -> Result<Vec<u8>, IcedError> {
    let (code, bootstrap) = program(linux)?;
    let length = (CODE + code.len() + 1).next_multiple_of(UNIT);
    let mut rom = vec![0; length];
    let mut put = |at: usize, bytes: &[u8]| rom[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &[0x55, 0xaa, (length / UNIT) as u8]);
    // A near jump from offset 3 to the initialisation, which the code begins with.
    put(3, &[0xe9]);
    put(4, &((CODE - 6) as u16).to_le_bytes());
    put(0x1a, &(EXPANSION as u16).to_le_bytes());
    put(EXPANSION, &expansion_header(bootstrap));
    put(NAMES, MANUFACTURER);
    put(NAMES + MANUFACTURER.len(), PRODUCT);
    put(MESSAGE, FAILURE);
    put(CODE, &code);
    rom[length - 1] = checksum(&rom);
    Ok(rom)
}

/// What makes the sum of `bytes` zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

fn expansion_header(bootstrap: u16) -> [u8; 32] {
    // Mass storage, other.
    const TYPE: [u8; 3] = [1, 0x80, 0];
    // Read-cacheable ROM, shadowable, and only needed to boot.
    const INDICATORS: u8 = 0x64;
    let mut header = [0; 32];
    header[..4].copy_from_slice(b"$PnP");
    // Revision, and length in units of 16 bytes.
    header[4..6].copy_from_slice(&[1, 2]);
    header[14..16].copy_from_slice(&(NAMES as u16).to_le_bytes());
    header[16..18].copy_from_slice(&((NAMES + MANUFACTURER.len()) as u16).to_le_bytes());
    header[18..21].copy_from_slice(&TYPE);
    header[21] = INDICATORS;
    header[26..28].copy_from_slice(&bootstrap.to_le_bytes());
    header[9] = checksum(&header);
    header
}

/// Initialisation, then the bootstrap code and what it calls; the offset in the ROM of the second.
fn program(linux: &Linux) -> Result<(Vec<u8>, u16), IcedError> {
    let mut a = CodeAssembler::new(16)?;
    a.mov(ax, DEVICE_ATTACHED)?;
    a.retf()?;
    let bootstrap = a.assemble(CODE as u64)?.len();
    let (mut fetch, mut fail) = (a.create_label(), a.create_label());

    a.cld()?;
    let parts = [
        (key::SETUP_DATA, SETUP_ADDRESS, linux.setup.len()),
        (key::COMMAND_LINE_DATA, COMMAND_LINE_ADDRESS, linux.command_line.len()),
        (key::KERNEL_DATA, KERNEL_ADDRESS, linux.kernel.len()),
    ];
    for (key, address, size) in parts {
        a.mov(edi, address.swap_bytes())?;
        request(&mut a, key, size, fetch)?;
        a.jc(fail)?;
    }
    a.mov(ax, SETUP_ADDRESS >> 4)?;
    a.mov(es, ax)?;
    if !linux.initrd.is_empty() {
        place_initrd(&mut a, linux, fail)?;
        a.mov(dword_ptr(header::RAMDISK_IMAGE).es(), eax)?;
        a.mov(dword_ptr(header::RAMDISK_SIZE).es(), linux.initrd.len() as u32)?;
        a.mov(edi, eax)?;
        a.bswap(edi)?;
        request(&mut a, key::INITRD_DATA, linux.initrd.len(), fetch)?;
        a.jc(fail)?;
    }
    a.mov(byte_ptr(header::TYPE_OF_LOADER).es(), LOADER_UNDEFINED)?;
    a.or(byte_ptr(header::LOADFLAGS).es(), CAN_USE_HEAP)?;
    a.mov(word_ptr(header::HEAP_END_PTR).es(), HEAP_END - 0x200)?;
    a.mov(dword_ptr(header::CMD_LINE_PTR).es(), COMMAND_LINE_ADDRESS)?;
    a.mov(word_ptr(header::VID_MODE).es(), u32::from(linux.video_mode))?;
    enter(&mut a)?;

    a.set_label(&mut fail)?;
    complain(&mut a)?;
    a.set_label(&mut fetch)?;
    fetch_part(&mut a)?;
    let code = a.assemble(CODE as u64)?;
    Ok((code, (CODE + bootstrap) as u16))
}

/// Asks for all of an item, to the address in EDI, big-endian.
fn request(
    a: &mut CodeAssembler,
    key: u16,
    size: usize,
    fetch: CodeLabel,
) -> Result<(), IcedError> {
    let command = u32::from(key) << 16 | fw_cfg::control::SELECT | fw_cfg::control::READ;
    a.mov(ebx, command.swap_bytes())?;
    a.mov(ecx, (size as u32).swap_bytes())?;
    a.call(fetch)
}

/// Gives fw_cfg the command in EBX, with the length in ECX and the address in EDI, and waits. Carry says
/// that it failed. The structure is built on the stack.
fn fetch_part(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut wait, mut failed, mut done) = (a.create_label(), a.create_label(), a.create_label());
    let error = fw_cfg::control::ERROR.swap_bytes();
    a.push(bp)?;
    a.push(edi)?;
    a.push(0)?;
    a.push(0)?;
    a.push(ecx)?;
    a.push(ebx)?;
    a.mov(bp, sp)?;
    // The upper half of the structure's address, then the lower, which starts the command.
    a.xor(eax, eax)?;
    a.mov(dx, u32::from(fw_cfg::DMA_PORT))?;
    a.out(dx, eax)?;
    a.mov(ax, ss)?;
    a.shl(eax, 4)?;
    a.movzx(ecx, sp)?;
    a.add(eax, ecx)?;
    a.bswap(eax)?;
    a.mov(dx, u32::from(fw_cfg::DMA_PORT) + 4)?;
    a.out(dx, eax)?;
    a.set_label(&mut wait)?;
    a.mov(eax, dword_ptr(bp + 0))?;
    a.test(eax, error)?;
    a.jnz(failed)?;
    a.test(eax, eax)?;
    a.jnz(wait)?;
    a.add(sp, 16)?;
    a.clc()?;
    a.jmp(done)?;
    a.set_label(&mut failed)?;
    a.add(sp, 16)?;
    a.stc()?;
    a.set_label(&mut done)?;
    a.pop(bp)?;
    a.ret()
}

/// Leaves in EAX where the initial RAM disk goes: as high as the kernel allows and the BIOS has memory.
fn place_initrd(a: &mut CodeAssembler, linux: &Linux, fail: CodeLabel) -> Result<(), IcedError> {
    const KIB_SHIFT: u32 = 10;
    const PAGE_MASK: u32 = !0xfff;
    let (mut counted, mut small, mut known, mut fits) =
        (a.create_label(), a.create_label(), a.create_label(), a.create_label());
    // KiB from 1 MiB up in CX, and units of 64 KiB from 16 MiB up in DX; or in AX and BX.
    a.xor(cx, cx)?;
    a.xor(dx, dx)?;
    a.mov(ax, 0xe801)?;
    a.int(0x15)?;
    a.jc(fail)?;
    a.mov(si, cx)?;
    a.or(si, dx)?;
    a.jnz(counted)?;
    a.mov(cx, ax)?;
    a.mov(dx, bx)?;
    a.set_label(&mut counted)?;
    a.movzx(eax, dx)?;
    a.shl(eax, 16)?;
    a.jz(small)?;
    a.add(eax, 16 << 20)?;
    a.jmp(known)?;
    a.set_label(&mut small)?;
    a.movzx(eax, cx)?;
    a.shl(eax, KIB_SHIFT)?;
    a.add(eax, 1 << 20)?;
    a.set_label(&mut known)?;
    a.cmp(eax, linux.initrd_end)?;
    a.jbe(fits)?;
    a.mov(eax, linux.initrd_end)?;
    a.set_label(&mut fits)?;
    a.sub(eax, linux.initrd.len() as u32)?;
    a.jc(fail)?;
    a.and(eax, PAGE_MASK)?;
    a.cmp(eax, linux.kernel_end)?;
    a.jc(fail)
}

/// Enters the setup code.
fn enter(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let segment = SETUP_ADDRESS >> 4;
    a.cli()?;
    a.mov(ax, segment)?;
    a.mov(ds, ax)?;
    a.mov(es, ax)?;
    a.mov(fs, ax)?;
    a.mov(gs, ax)?;
    a.mov(ss, ax)?;
    a.mov(sp, STACK)?;
    a.push((segment + ENTRY_PARAGRAPHS) as i32)?;
    a.push(0)?;
    a.retf()
}

/// Shows the message and lets the BIOS try the next device.
fn complain(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut next, mut end) = (a.create_label(), a.create_label());
    a.mov(si, MESSAGE as u32)?;
    a.set_label(&mut next)?;
    a.mov(al, byte_ptr(si).cs())?;
    a.inc(si)?;
    a.test(al, al)?;
    a.jz(end)?;
    a.mov(ah, 0x0e)?;
    a.mov(bx, 7)?;
    a.int(0x10)?;
    a.jmp(next)?;
    a.set_label(&mut end)?;
    a.int(0x18)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rom_is_one_that_firmware_takes() {
        let linux = Linux {
            setup: vec![0; 0x4000],
            kernel: vec![0; 0x1000],
            initrd: vec![0; 0x1000],
            command_line: vec![0],
            ..Linux::default()
        };
        let rom = build(&linux).unwrap();
        assert_eq!(rom.len(), UNIT * usize::from(rom[2]));
        assert_eq!(rom.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        let expansion = &rom[EXPANSION..EXPANSION + 32];
        assert_eq!(&expansion[..4], b"$PnP");
        assert_eq!(expansion.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        let bootstrap = usize::from(u16::from_le_bytes([expansion[26], expansion[27]]));
        // The bootstrap code begins with CLD.
        assert_eq!(rom[bootstrap], 0xfc);
        assert!(NAMES + MANUFACTURER.len() + PRODUCT.len() <= MESSAGE);
        assert!(MESSAGE + FAILURE.len() <= CODE);
    }
}
