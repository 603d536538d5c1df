//! What is there of a BIOS when the board enters a kernel without firmware: the table of interrupts, whose
//! services answer that they do not exist, and the data areas, which say how much conventional memory there is.
//!
//! No boot protocol promises more, but some kernels look and ask: Xen places code below the extended BIOS data
//! area, goes back to real mode and calls. With an empty table it would run on from address 0, through its own
//! memory. Places are those of IBM's "PS/2 and PC BIOS Interface Technical Reference".

use memory::{GuestMemory, MemoryError};

use super::layout::EBDA_START;

/// Real mode's interrupt table has this many vectors, a segment and an offset each, from address 0 on.
const VECTORS: u8 = u8::MAX;
/// The vector of the service that tells the size of conventional memory.
const MEMORY_SIZE: u8 = 0x12;
/// In the data area: the extended data area's segment, and KiB of conventional memory.
const EBDA_SEGMENT: u64 = 0x40e;
const CONVENTIONAL_KIB: u64 = 0x413;

/// What the extended data area begins with: its size in KiB, and then the services.
const EBDA: &[u8] = &[1, 0];
/// Sets the carry flag that the caller gets back, and says "no such function".
const NO_SERVICE: &[u8] = &[
    0x55, // push bp
    0x89, 0xe5, // mov bp, sp
    0x80, 0x4e, 6, 1,    // or byte [bp + 6], 1
    0x5d, // pop bp
    0xb4, 0x86, // mov ah, 0x86
    0xcf, // iret
];
const TELL_MEMORY_SIZE: &[u8] = &[
    0x1e, // push ds
    0x6a, 0x40, 0x1f, // push 0x40; pop ds
    0xa1, 0x13, 0,    // mov ax, [CONVENTIONAL_KIB]
    0x1f, // pop ds
    0xcf, // iret
];

/// Writes all of it.
///
/// # Errors
/// If memory ends below.
pub(super) fn write(memory: &GuestMemory) -> Result<(), MemoryError> {
    let segment = ((EBDA_START >> 4) as u16).to_le_bytes();
    let vectors = (0..=VECTORS).flat_map(|vector| {
        let before = if vector == MEMORY_SIZE { NO_SERVICE.len() } else { 0 };
        let [low, high] = ((EBDA.len() + before) as u16).to_le_bytes();
        [low, high, segment[0], segment[1]]
    });
    memory.write(0, &vectors.collect::<Vec<u8>>())?;
    memory.write(EBDA_SEGMENT, &segment)?;
    memory.write(CONVENTIONAL_KIB, &((EBDA_START >> 10) as u16).to_le_bytes())?;
    memory.write(EBDA_START, &[EBDA, NO_SERVICE, TELL_MEMORY_SIZE].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_vector_leads_to_a_service() {
        let memory = GuestMemory::new(&[(0, 1 << 20)]).unwrap();
        write(&memory).unwrap();
        let word = |at| {
            let mut bytes = [0; 2];
            memory.read(at, &mut bytes).unwrap();
            u16::from_le_bytes(bytes)
        };
        for vector in 0..256 {
            let service = if vector == 0x12 { TELL_MEMORY_SIZE } else { NO_SERVICE };
            let at = u64::from(word(4 * vector)) + 16 * u64::from(word(4 * vector + 2));
            let mut code = vec![0; service.len()];
            memory.read(at, &mut code).unwrap();
            assert_eq!(code, service, "vector {vector:#x}");
        }
        assert_eq!((word(0x40e), word(0x413)), (0x9fc0, 639));
    }
}
