//! Guests of a few instructions, without firmware or operating system: an ELF file whose PVH note
//! names the entry point, in 32-bit protected mode with flat segments.
//!
//! Follows the Xen project's "x86/HVM direct boot ABI" (note type 18, `PHYS32_ENTRY`) and the ELF
//! specification for the two headers.

const LOAD_ADDRESS: u64 = 0x10_0000;
const HEADERS: u64 = 64 + 2 * 56;
const NOTE_SIZE: u64 = 12 + 4 + 8;

/// Writes `S` to the first serial port, disables interrupts and jumps to itself for ever.
pub const SPIN: &[u8] = &[
    0xfa, // cli
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, b'S', // mov al, 'S'
    0xee, // out dx, al
    0xeb, 0xfe, // jmp $
];

/// Writes 0x10 to port 0x501, where `-device isa-debug-exit` listens, then halts.
pub const DEBUG_EXIT: &[u8] = &[
    0xfa, // cli
    0x66, 0xba, 0x01, 0x05, // mov dx, 0x501
    0xb0, 0x10, // mov al, 0x10
    0xee, // out dx, al
    0xf4, // hlt
];

/// Loads an empty interrupt descriptor table and executes an undefined instruction: a triple fault.
pub const TRIPLE_FAULT: &[u8] = &[
    0x6a, 0x00, // push 0
    0x6a, 0x00, // push 0
    0x0f, 0x01, 0x1c, 0x24, // lidt [esp]
    0x0f, 0x0b, // ud2
];

/// Writes `values` to model-specific registers by their numbers, in order, and halts.
pub fn write_registers(values: &[(u32, u64)]) -> Vec<u8> {
    let mut code = vec![0xfa]; // cli
    for (register, value) in values {
        let halves = [(0xb9, *register), (0xb8, *value as u32), (0xba, (value >> 32) as u32)];
        for (mov, word) in halves {
            code.push(mov); // mov ecx, eax, edx
            code.extend_from_slice(&word.to_le_bytes());
        }
        code.extend_from_slice(&[0x0f, 0x30]); // wrmsr
    }
    code.extend_from_slice(&[0xf4, 0xeb, 0xfd]); // hlt; jmp to it
    code
}

/// An ELF file that loads `code` at 1 MiB and enters at its first byte.
pub fn elf(code: &[u8]) -> Vec<u8> {
    let entry = LOAD_ADDRESS;
    let code_offset = HEADERS + NOTE_SIZE;
    let code_size = code.len() as u64;
    let mut file = Vec::new();
    // e_ident: 64-bit, little-endian, version 1; then EXEC, x86-64, version 1
    file.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend_from_slice(&[2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [entry, 64, 0] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    // flags; sizes of the headers and the number of program headers; no sections
    file.extend_from_slice(&0u32.to_le_bytes());
    for half in [64u16, 56, 2, 0, 0, 0] {
        file.extend_from_slice(&half.to_le_bytes());
    }
    let mut program_header = |kind: u32, offset: u64, address: u64, size: u64, align: u64| {
        file.extend_from_slice(&kind.to_le_bytes());
        file.extend_from_slice(&7u32.to_le_bytes());
        for word in [offset, address, address, size, size, align] {
            file.extend_from_slice(&word.to_le_bytes());
        }
    };
    program_header(1, code_offset, entry, code_size, 1);
    program_header(4, HEADERS, 0, NOTE_SIZE, 4);
    for word in [4u32, 8, 18] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    file.extend_from_slice(b"Xen\0");
    file.extend_from_slice(&entry.to_le_bytes());
    file.extend_from_slice(code);
    file
}

/// One step of a [`script`]. Addresses are guest physical, below 4 GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Writes a byte to a port.
    Out8(u16, u8),
    /// Writes 16 bits to a port.
    Out16(u16, u16),
    /// Writes a byte to memory.
    Store8(u32, u8),
    /// Writes 32 bits to memory.
    Store32(u32, u32),
    /// Reads a byte from a port.
    In8(u16),
    /// Reads a byte from memory.
    Load8(u32),
}

/// A guest that does `steps`, writes `S` to the first serial port and jumps to itself for ever.
pub fn script(steps: &[Step]) -> Vec<u8> {
    let mut code = vec![
        0xfa, 0xfc, // cli; cld
        0xbe, 0, 0, 0, 0,    // mov esi, table
        0xad, // step: lodsd
        0x89, 0xc3, // mov ebx, eax
        0xad, 0x89, 0xc2, // lodsd; mov edx, eax
        0xad, // lodsd
        0x85, 0xdb, 0x75, 0x00, // test ebx, ebx; jnz act
    ];
    let act = code.len() - 1;
    code.extend(SPIN);
    code[act] = (code.len() - act - 1) as u8;
    // Each kind of step counts ebx down to its own zero.
    let kinds: [&[u8]; 6] = [
        &[0xee],       // out dx, al
        &[0x66, 0xef], // out dx, ax
        &[0x88, 0x02], // mov [edx], al
        &[0x89, 0x02], // mov [edx], eax
        &[0xec],       // in al, dx
        &[0x8a, 0x02], // mov al, [edx]
    ];
    const STEP: i32 = 7;
    for kind in kinds {
        code.extend([0x4b, 0x75, kind.len() as u8 + 5]); // dec ebx; jnz past
        code.extend(kind);
        code.push(0xe9); // jmp step
        let back = STEP - (code.len() as i32 + 4);
        code.extend(back.to_le_bytes());
    }
    let table = LOAD_ADDRESS as u32 + code.len() as u32;
    code[3..7].copy_from_slice(&table.to_le_bytes());
    for step in steps {
        let (kind, address, value): (u32, u32, u32) = match *step {
            Step::Out8(port, value) => (1, port.into(), value.into()),
            Step::Out16(port, value) => (2, port.into(), value.into()),
            Step::Store8(address, value) => (3, address, value.into()),
            Step::Store32(address, value) => (4, address, value),
            Step::In8(port) => (5, port.into(), 0),
            Step::Load8(address) => (6, address, 0),
        };
        code.extend([kind, address, value].into_iter().flat_map(u32::to_le_bytes));
    }
    code.extend([0; 12]);
    code
}
