//! The I/O APIC (82093AA data sheet), and the lines that the test device drives.

use super::outb;

const BASE: u64 = 0xfec0_0000;
/// In the lower half of an entry: it lets nothing through.
pub const MASKED: u32 = 1 << 16;

pub fn io(register: u32) -> u32 {
    unsafe {
        (BASE as *mut u32).write_volatile(register);
        ((BASE + 16) as *const u32).read_volatile()
    }
}

pub fn set_io(register: u32, value: u32) {
    unsafe {
        (BASE as *mut u32).write_volatile(register);
        ((BASE + 16) as *mut u32).write_volatile(value);
    }
}

/// Sets the entry of `pin`: its lower half, and for whom it is.
pub fn redirect(pin: u32, low: u32, destination: u32) {
    set_io(0x10 + 2 * pin, MASKED);
    set_io(0x11 + 2 * pin, destination << 24);
    set_io(0x10 + 2 * pin, low);
}

/// Drives the line of `pin`, as the test device lets us.
pub fn line(pin: u32, level: u32) {
    outb(0x2000 + pin as u16, level as u8);
}
