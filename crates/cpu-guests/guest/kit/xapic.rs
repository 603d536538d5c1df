//! The local APIC by its page of memory (SDM volume 3, table 11-1).

pub const BASE: u64 = 0xfee0_0000;

pub const ID: u32 = 0x20;
pub const VERSION: u32 = 0x30;
pub const TPR: u32 = 0x80;
pub const PPR: u32 = 0xa0;
pub const EOI: u32 = 0xb0;
pub const LDR: u32 = 0xd0;
pub const DFR: u32 = 0xe0;
pub const SVR: u32 = 0xf0;
pub const ISR: u32 = 0x100;
pub const TMR: u32 = 0x180;
pub const IRR: u32 = 0x200;
pub const ESR: u32 = 0x280;
pub const ICR: u32 = 0x300;
pub const ICR_HIGH: u32 = 0x310;
pub const LVT_TIMER: u32 = 0x320;
pub const LVT_COUNTER: u32 = 0x340;
pub const LVT_LINT0: u32 = 0x350;
pub const LVT_LINT1: u32 = 0x360;
pub const LVT_ERROR: u32 = 0x370;
pub const INITIAL: u32 = 0x380;
pub const CURRENT: u32 = 0x390;
pub const DIVIDE: u32 = 0x3e0;

pub fn read(register: u32) -> u32 {
    unsafe { ((BASE + u64::from(register)) as *const u32).read_volatile() }
}

pub fn write(register: u32, value: u32) {
    unsafe { ((BASE + u64::from(register)) as *mut u32).write_volatile(value) }
}

/// Sends the interprocessor interrupt `low` to `destination`.
pub fn command(destination: u32, low: u32) {
    write(ICR_HIGH, destination << 24);
    write(ICR, low);
    while read(ICR) & 1 << 12 != 0 {}
}
