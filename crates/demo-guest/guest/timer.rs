//! The 8254's channel 0 as a periodic interrupt through the 8259.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::port;

/// Interrupts a second.
pub const HZ: u64 = 100;
const PIT_HZ: u64 = 1_193_182;
/// Vector of IRQ 0.
const TIMER_VECTOR: usize = 0x20;

/// Interrupts so far; `start.s` counts it up.
#[unsafe(no_mangle)]
static TICKS: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" {
    fn timer_entry();
    fn fault_entry();
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Gate {
    low: u64,
    high: u64,
}

#[repr(C, packed)]
struct IdtPointer {
    limit: u16,
    base: u64,
}

static mut IDT: [Gate; 256] = [Gate { low: 0, high: 0 }; 256];

fn gate(handler: unsafe extern "C" fn()) -> Gate {
    let at = handler as usize as u64;
    // Present 64-bit interrupt gate in the code segment 8.
    Gate { low: (at & 0xffff) | 8 << 16 | 0x8e00 << 32 | (at >> 16 & 0xffff) << 48, high: at >> 32 }
}

/// Starts the timer and turns interrupts on.
pub fn start() {
    // SAFETY: one CPU, interrupts still off: nothing else looks at the table while it is filled, and
    // nobody writes it afterwards.
    unsafe {
        let table = &raw mut IDT;
        for vector in 0..256 {
            (*table)[vector] = gate(fault_entry);
        }
        (*table)[TIMER_VECTOR] = gate(timer_entry);
        let pointer = IdtPointer { limit: (256 * 16 - 1) as u16, base: table as u64 };
        asm!("lidt [{}]", in(reg) &pointer, options(nostack));
    }
    // Both controllers: edge-triggered, cascaded, vectors from 0x20 on, only IRQ 0 let through.
    for (port, value) in [
        (0x20, 0x11),
        (0xa0, 0x11),
        (0x21, TIMER_VECTOR as u8),
        (0xa1, TIMER_VECTOR as u8 + 8),
        (0x21, 4),
        (0xa1, 2),
        (0x21, 1),
        (0xa1, 1),
        (0x21, 0xfe),
        (0xa1, 0xff),
    ] {
        port::write8(port, value);
    }
    let divisor = (PIT_HZ / HZ) as u16;
    port::write8(0x43, 0x34);
    port::write8(0x40, divisor as u8);
    port::write8(0x40, (divisor >> 8) as u8);
}

/// Sleeps until `ticks` more interrupts have come.
pub fn wait(ticks: u64) {
    let until = TICKS.load(Ordering::Relaxed) + ticks;
    while TICKS.load(Ordering::Relaxed) < until {
        port::halt();
    }
}
