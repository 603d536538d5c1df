//! The demonstration guest: a kernel of three hundred lines that uses a serial port, a timer with its
//! interrupt controller, PCI and a virtio disk, and says what it found.

#![no_std]
#![no_main]

mod disk;
mod port;
mod serial;
mod timer;

use core::arch::global_asm;
use core::fmt::Write;

use serial::Serial;

global_asm!(include_str!("start.s"));

/// What the loader hands over (x86/HVM direct boot ABI, `hvm_start_info`).
#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    modules_at: u64,
    command_line_at: u64,
    rsdp_at: u64,
    memory_map_at: u64,
    memory_map_entries: u32,
    reserved: u32,
}

/// One range of the loader's memory map.
#[repr(C)]
struct MemoryRange {
    addr: u64,
    size: u64,
    kind: u32,
    reserved: u32,
}

#[unsafe(no_mangle)]
extern "C" fn guest_main(info: &StartInfo) -> ! {
    let mut out = Serial::new();
    let _ = writeln!(out, "guest: hello from 64-bit mode");
    // SAFETY: the loader's map stays where it is, in memory that nothing here writes to.
    let map = unsafe {
        core::slice::from_raw_parts(
            info.memory_map_at as *const MemoryRange,
            info.memory_map_entries as usize,
        )
    };
    let usable: u64 = map.iter().filter(|r| r.kind == 1).map(|r| r.size).sum();
    let _ = writeln!(out, "guest: {} MiB of memory", usable >> 20);

    timer::start();
    timer::wait(10);
    let _ = writeln!(out, "guest: timer: 10 interrupts at {} Hz", timer::HZ);

    match disk::exercise() {
        Ok(report) => {
            let _ = writeln!(
                out,
                "guest: disk: {} KiB written and read back, the same",
                report.bytes / 1024
            );
        }
        Err(reason) => {
            let _ = writeln!(out, "guest: disk: {reason}");
        }
    }
    let _ = writeln!(out, "guest: ready");
    let mut seconds = 0u64;
    loop {
        timer::wait(timer::HZ);
        seconds += 1;
        let _ = writeln!(out, "guest: up {seconds} s");
    }
}

#[unsafe(no_mangle)]
extern "C" fn guest_fault() -> ! {
    let _ = writeln!(Serial::new(), "guest: unexpected exception");
    power_off()
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let _ = writeln!(Serial::new(), "guest: {info}");
    power_off()
}

/// ACPI S5 by the PIIX4's power management block where firmware puts it.
fn power_off() -> ! {
    port::write16(0x604, 0x2000);
    loop {
        port::halt();
    }
}
