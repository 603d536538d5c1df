//! Performance counters: AMD's four legacy ones, or Intel's architectural ones (APM volume 2, section
//! 13.2; SDM volume 3, section 20.2).

use core::arch::asm;

use crate::kit::*;

const USER: u64 = 1 << 16;
const SYSTEM: u64 = 1 << 17;
const ENABLE: u64 = 1 << 22;
const WIDTH: u64 = 48;

struct Layout {
    select: u32,
    counter: u32,
    /// From one counter's registers to the next's.
    stride: u32,
    count: u32,
    cycles: u64,
    instructions: u64,
    branches: u64,
}

const AMD: Layout = Layout {
    select: 0xc001_0000,
    counter: 0xc001_0004,
    stride: 1,
    count: 4,
    cycles: 0x76,
    instructions: 0xc0,
    branches: 0xc2,
};
/// The core extensions, whose first counters are the old ones.
const AMD_CORE: Layout =
    Layout { select: 0xc001_0200, counter: 0xc001_0201, stride: 2, count: 6, ..AMD };
const INTEL: Layout = Layout {
    select: 0x186,
    counter: 0xc1,
    stride: 1,
    count: 4,
    cycles: 0x3c,
    instructions: 0xc0,
    branches: 0xc4,
};

fn rdpmc(n: u32) -> u64 {
    let (low, high): (u32, u32);
    unsafe { asm!("rdpmc", in("ecx") n, out("eax") low, out("edx") high) };
    u64::from(low) | u64::from(high) << 32
}

/// What `event` counts while a loop of 1000 rounds, 10 instructions each, runs.
fn measure(layout: &Layout, n: u32, event: u64, mode: u64) -> u64 {
    let (select, counter) = (layout.select + n * layout.stride, layout.counter + n * layout.stride);
    wrmsr(counter, 0);
    wrmsr(select, event | mode | ENABLE);
    unsafe {
        asm!("mov ecx, 1000", "2:", "nop", "nop", "nop", "nop", "nop", "nop", "nop", "nop", "dec ecx",
            "jne 2b", out("ecx") _);
    }
    wrmsr(select, 0);
    rdpmc(n)
}

fn user_measure(layout: &Layout, mode: u64) -> u64 {
    wrmsr(layout.counter, 0);
    wrmsr(layout.select, layout.instructions | mode | ENABLE);
    let vector = user!(["mov ecx, 1000", "2:", "dec ecx", "jne 2b"], out("ecx") _);
    wrmsr(layout.select, 0);
    check("user loop", vector, NONE);
    rdpmc(0)
}

fn counters(layout: &Layout) {
    for n in 0..layout.count {
        let got = measure(layout, n, layout.instructions, SYSTEM);
        check(format_args!("instructions on {n}: {got}"), (10_000..10_060).contains(&got), true);
        let got = measure(layout, n, layout.branches, SYSTEM);
        check(format_args!("branches on {n}: {got}"), (1000..1010).contains(&got), true);
        let got = measure(layout, n, layout.cycles, SYSTEM);
        check(format_args!("cycles on {n}: {got}"), (1000..500_000).contains(&got), true);
        check("user mode only", measure(layout, n, layout.instructions, USER), 0);
        check(
            "disabled",
            {
                wrmsr(layout.counter + n * layout.stride, 7);
                rdpmc(n)
            },
            7,
        );
    }
    let got = user_measure(layout, USER);
    check(format_args!("user instructions: {got}"), (2001..2010).contains(&got), true);
    // Two measurements of the same are the same: nothing is lost or guessed.
    let first = measure(layout, 0, layout.instructions, SYSTEM);
    check("the same again", measure(layout, 0, layout.instructions, SYSTEM), first);
    let count = if has(0x8000_0001, 2, 23) && !is_intel() { 6 } else { 4 };
    check("one more", attempt!(["rdpmc"], in("ecx") count, out("eax") _, out("edx") _), GP);
    check("RDPMC at CPL 3", user!(["rdpmc"], in("ecx") 0, out("eax") _, out("edx") _), GP);
    set_cr4(cr4() | 1 << 8);
    check("with CR4.PCE", user!(["rdpmc"], in("ecx") 0, out("eax") _, out("edx") _), NONE);
    set_cr4(cr4() & !(1 << 8));
    // Wraps at 48 bits.
    wrmsr(layout.counter, if is_intel() { 0xffff_ff00 } else { (1 << WIDTH) - 0x100 });
    check("counter before a wrap", rdpmc(0), (1 << WIDTH) - 0x100);
    wrmsr(layout.select, layout.instructions | SYSTEM | ENABLE);
    for _ in 0..500 {
        unsafe { asm!("nop") };
    }
    wrmsr(layout.select, 0);
    check("and after", rdpmc(0) < 1 << 20, true);
}

fn intel_globals() {
    let [a, _, _, d] = cpuid(0xa, 0);
    check("general counters", a >> 8 & 0xff, 4);
    check("width", a >> 16 & 0xff, 48);
    check("fixed counters", d & 0x1f, 3);
    check("overflow of counter 0", rdmsr(0x38e) & 1, 1);
    check("status is read-only", try_wrmsr(0x38e, 0), GP);
    wrmsr(0x390, 1);
    check("cleared", rdmsr(0x38e) & 1, 0);
    wrmsr(0x38d, 0x3);
    wrmsr(0x309, 0);
    wrmsr(0x38f, 1 << 32);
    unsafe { asm!("mov ecx, 1000", "2:", "dec ecx", "jne 2b", out("ecx") _) };
    wrmsr(0x38f, 0);
    let got = rdpmc(1 << 30);
    check(format_args!("fixed counter of instructions: {got}"), (2000..2030).contains(&got), true);
    check("control, reserved", try_wrmsr(0x38f, 1 << 20), GP);
    check("fixed control, reserved", try_wrmsr(0x38d, 1 << 12), GP);
    check("select, reserved", try_wrmsr(0x186, 1 << 32), GP);
}

pub fn run() {
    if is_intel() {
        if cpuid(0xa, 0)[0] & 0xff < 2 {
            return skip("architectural counters");
        }
        wrmsr(0x38f, 0xf);
        counters(&INTEL);
        intel_globals();
    } else {
        if try_wrmsr(AMD.counter, 5) != NONE || try_rdmsr(AMD.counter) != Some(5) {
            return skip("legacy counters");
        }
        counters(&AMD);
        if has(0x8000_0001, 2, 23) {
            counters(&AMD_CORE);
            wrmsr(AMD_CORE.counter, 77);
            check("the first is the same", rdmsr(AMD.counter), 77);
        } else {
            check("core extensions", try_rdmsr(AMD_CORE.select), None);
        }
    }
}
