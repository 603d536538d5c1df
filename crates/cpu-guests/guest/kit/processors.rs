//! Other processors: how they come from real mode to 64-bit mode, and waiting for them.

use core::arch::asm;

use super::rdtsc;

unsafe extern "C" {
    static GDTR: u8;
}

/// 16-bit code for the page where a processor starts, put there by [`put_start_up`]: it goes to the label `$to`,
/// in 64-bit mode.
#[macro_export]
macro_rules! to_long_mode {
    ($to:literal) => {
        concat!(
            // lgdt cs:[0x840]
            ".byte 0x2e, 0x66, 0x0f, 0x01, 0x16\n.word 0x840\n",
            "mov eax, 0x620\nmov cr4, eax\n",
            "mov eax, offset PML4\nmov cr3, eax\n",
            "mov ecx, 0xc0000080\nrdmsr\nor eax, 0x901\nwrmsr\n",
            "mov eax, 0x80010033\nmov cr0, eax\n",
            // jmp far 8:$to
            ".byte 0x66, 0xea\n.long ",
            $to,
            "\n.word 8\n"
        )
    };
}

/// Puts the code from `start` to `end` at `page`, with what [`to_long_mode!`] needs.
pub fn put_start_up(page: u64, start: *const u8, end: *const u8) {
    unsafe {
        core::ptr::copy_nonoverlapping(start, page as *mut u8, end as usize - start as usize);
        core::ptr::copy_nonoverlapping(&raw const GDTR, (page + 0x840) as *mut u8, 6);
    }
}

pub fn pause() {
    unsafe { asm!("pause") };
}

/// Whether `what` comes true in time.
pub fn soon(what: impl Fn() -> bool) -> bool {
    let end = rdtsc() + (1 << 33);
    while rdtsc() < end {
        if what() {
            return true;
        }
        pause();
    }
    false
}

/// A time in which what should not come would come.
pub fn a_while() {
    let end = rdtsc() + (1 << 23);
    while rdtsc() < end {
        pause();
    }
}
