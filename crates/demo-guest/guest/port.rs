//! Ports and the few instructions that Rust has no words for.

use core::arch::asm;

pub fn read8(port: u16) -> u8 {
    let value;
    // SAFETY: port accesses touch devices, never memory that Rust knows of.
    unsafe { asm!("in al, dx", out("al") value, in("dx") port, options(nomem, nostack)) };
    value
}

pub fn write8(port: u16, value: u8) {
    // SAFETY: as for `read8`; DMA is started only by `disk`, which shares its buffers explicitly.
    unsafe { asm!("out dx, al", in("al") value, in("dx") port, options(nostack)) };
}

pub fn read16(port: u16) -> u16 {
    let value;
    // SAFETY: as for `read8`.
    unsafe { asm!("in ax, dx", out("ax") value, in("dx") port, options(nomem, nostack)) };
    value
}

pub fn write16(port: u16, value: u16) {
    // SAFETY: as for `write8`.
    unsafe { asm!("out dx, ax", in("ax") value, in("dx") port, options(nostack)) };
}

pub fn read32(port: u16) -> u32 {
    let value;
    // SAFETY: as for `read8`.
    unsafe { asm!("in eax, dx", out("eax") value, in("dx") port, options(nomem, nostack)) };
    value
}

pub fn write32(port: u16, value: u32) {
    // SAFETY: as for `write8`.
    unsafe { asm!("out dx, eax", in("eax") value, in("dx") port, options(nostack)) };
}

/// Sleeps until the next interrupt.
pub fn halt() {
    // SAFETY: interrupt handlers keep every register and touch only their own counter.
    unsafe { asm!("sti", "hlt", options(nostack)) };
}
