//! Suspend to RAM and back by the real-time clock's alarm (ACPI 6.5, chapters 4, 5 and 16; MC146818 data
//! sheet): the tables as a kernel without a boot loader finds them.

use core::arch::{asm, global_asm};

use crate::kit::*;

global_asm!(
    ".section .text",
    ".code16",
    ".global waking_code, waking_end",
    "waking_code:",
    "cli",
    "xor eax, eax",
    "mov ds, ax",
    ".byte 0x66, 0x0f, 0x01, 0x16, 0x00, 0x7f", // lgdt [0x7f00], with the base's 32 bits
    "mov eax, cr0",
    "or al, 1",
    "mov cr0, eax",
    "mov ax, 0x10",
    "mov ds, ax",
    "mov es, ax",
    "mov ss, ax",
    ".byte 0x66, 0xea", ".long start", ".word 0x18",
    "waking_end:",
    ".code64",
);

unsafe extern "C" {
    static waking_code: u8;
    static waking_end: u8;
    static GDTR: [u8; 10];
}

/// 0 at first, 1 while the machine sleeps. In initialised data, which nothing clears on the way back.
#[unsafe(link_section = ".data")]
static mut STAGE: u32 = 0;

const WAKING_CODE: u64 = 0x8000;
/// Where real mode reaches it.
const GDTR_COPY: u64 = 0x7f00;
const SCI_EN: u32 = 1;
const SLEEP: u32 = 1 << 13;
const WAKE_STATUS: u32 = 1 << 15;
const RTC_STATUS: u32 = 1 << 10;

fn byte(at: u64) -> u8 {
    unsafe { (at as *const u8).read_volatile() }
}
fn word(at: u64) -> u32 {
    unsafe { (at as *const u32).read_unaligned() }
}
fn sums_to_zero(at: u64, len: u32) -> bool {
    (0..u64::from(len)).fold(0u8, |sum, n| sum.wrapping_add(byte(at + n))) == 0
}
fn inl(port: u16) -> u32 {
    let value;
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value) };
    value
}
fn inw(port: u16) -> u32 {
    let value: u32;
    unsafe { asm!("xor eax, eax", "in ax, dx", in("dx") port, out("eax") value) };
    value
}
fn outw(port: u16, value: u32) {
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value as u16) };
}
fn cmos(index: u8) -> u8 {
    outb(0x70, index);
    inb(0x71)
}
fn set_cmos(index: u8, value: u8) {
    outb(0x70, index);
    outb(0x71, value);
}

/// The fixed description table, by the root pointer in the BIOS's memory.
fn fadt() -> Option<u64> {
    let rsdp = (0xe_0000..0x10_0000)
        .step_by(16)
        .find(|&at| (word(at), word(at + 4)) == (0x2044_5352, 0x2052_5450) && sums_to_zero(at, 20))?;
    let rsdt = u64::from(word(rsdp + 16));
    check("RSDT", (word(rsdt), sums_to_zero(rsdt, word(rsdt + 4))), (0x5444_5352, true));
    let entries = u64::from(word(rsdt + 4) - 36) / 4;
    let mut tables = (0..entries).map(|n| u64::from(word(rsdt + 36 + 4 * n)));
    tables.find(|&at| word(at) == 0x5043_4146)
}

pub fn run() {
    let Some(fadt) = fadt() else {
        check("there is a FADT", false, true);
        return;
    };
    check("FADT", sums_to_zero(fadt, word(fadt + 4)), true);
    let facs = u64::from(word(fadt + 36));
    check("FACS", word(facs), 0x5343_4146);
    let [event, control, timer] = [56, 64, 76].map(|field| word(fadt + field) as u16);
    let before = inl(timer);
    while inl(timer) == before {}
    if unsafe { (&raw const STAGE).read_volatile() } == 1 {
        let status = inw(event) & (WAKE_STATUS | RTC_STATUS);
        check("woken by the clock", status, WAKE_STATUS | RTC_STATUS);
        set_cmos(0xb, cmos(0xb) & !0x20);
        return;
    }
    unsafe {
        (&raw mut STAGE).write_volatile(1);
        let len = &raw const waking_end as usize - &raw const waking_code as usize;
        core::ptr::copy_nonoverlapping(&raw const waking_code, WAKING_CODE as *mut u8, len);
        core::ptr::copy_nonoverlapping(&raw const GDTR, GDTR_COPY as *mut [u8; 10], 1);
        ((facs + 12) as *mut u32).write_unaligned(WAKING_CODE as u32);
    }
    // An alarm with each second.
    for index in [1, 3, 5] {
        set_cmos(index, 0xc0);
    }
    cmos(0xc);
    set_cmos(0xb, cmos(0xb) | 0x20);
    outw(event, WAKE_STATUS | RTC_STATUS);
    outw(event + 2, RTC_STATUS);
    // The sleep type of S3 is 1, as the package _S3 says.
    outw(control, SCI_EN | 1 << 10 | SLEEP);
    loop {
        unsafe { asm!("hlt") };
    }
}
