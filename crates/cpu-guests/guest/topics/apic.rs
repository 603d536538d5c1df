//! The local APIC in both modes, and the I/O APIC: registers, priorities, interprocessor interrupts, timer,
//! level and edge (SDM volume 3, chapter 11; 82093AA data sheet).

use core::arch::asm;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::kit::io_apic::{MASKED, io, line, redirect, set_io};
use crate::kit::xapic::*;
use crate::kit::*;

const MSR_BASE: u32 = 0x1b;
const ENABLE: u64 = 1 << 11;
const EXTENDED: u64 = 1 << 10;

const SELF: u32 = 1 << 18;

static COUNTS: [AtomicU32; 256] = [const { AtomicU32::new(0) }; 256];

fn is_x2apic() -> bool {
    rdmsr(MSR_BASE) & EXTENDED != 0
}
fn read(register: u32) -> u32 {
    if is_x2apic() {
        rdmsr(0x800 + (register >> 4)) as u32
    } else {
        xapic::read(register)
    }
}
fn write(register: u32, value: u32) {
    if is_x2apic() {
        wrmsr(0x800 + (register >> 4), value.into());
    } else {
        xapic::write(register, value);
    }
}
fn command(destination: u32, low: u32) {
    if is_x2apic() {
        wrmsr(0x830, u64::from(destination) << 32 | u64::from(low));
    } else {
        xapic::command(destination, low);
    }
}
fn bit(set: u32, vector: u32) -> bool {
    read(set + vector / 32 * 16) >> (vector % 32) & 1 != 0
}
fn took(vector: u32) -> u32 {
    COUNTS[vector as usize].swap(0, Ordering::SeqCst)
}
fn counts(vector: u32) -> u32 {
    COUNTS[vector as usize].load(Ordering::SeqCst)
}
fn on_interrupt(trap: &mut Trap) {
    COUNTS[trap.vector as usize].fetch_add(1, Ordering::SeqCst);
    write(EOI, 0);
}
/// Counts, and leaves the interrupt in service.
fn on_quiet(trap: &mut Trap) {
    COUNTS[trap.vector as usize].fetch_add(1, Ordering::SeqCst);
}
fn window() {
    unsafe { asm!("sti", "nop", "nop", "cli") };
}
fn wait_for(vector: u32, times: u32) -> bool {
    let end = rdtsc() + (1 << 36);
    unsafe { asm!("sti") };
    while counts(vector) < times && rdtsc() < end {
        unsafe { asm!("pause") };
    }
    unsafe { asm!("cli") };
    counts(vector) >= times
}

fn interprocessor(own: u32) {
    for vector in [0x40, 0x51, 0xf0] {
        handle(vector.into(), Some(on_interrupt));
        command(0, vector | SELF);
        check("requested", bit(IRR, vector), true);
        window();
        check(format_args!("self IPI {vector:#x}"), took(vector), 1);
        check("no longer requested", (bit(IRR, vector), bit(ISR, vector)), (false, false));
        command(own, vector);
        window();
        check("physical", took(vector), 1);
        let everyone = if is_x2apic() { u32::MAX } else { 0xff };
        command(everyone, vector);
        window();
        check("physical broadcast", took(vector), 1);
    }
    if is_x2apic() {
        command(read(LDR), 0x40 | 1 << 11);
        window();
        check("logical", took(0x40), 1);
        wrmsr(0x83f, 0x51);
        window();
        check("SELF IPI", took(0x51), 1);
    } else {
        write(DFR, u32::MAX);
        write(LDR, 0x0400_0000);
        command(4, 0x40 | 1 << 11);
        window();
        check("flat logical", took(0x40), 1);
        command(3, 0x40 | 1 << 11);
        window();
        check("flat logical, other bits", took(0x40), 0);
        write(DFR, 0x0fff_ffff);
        write(LDR, 0x2100_0000);
        command(0x21, 0x40 | 1 << 11);
        window();
        check("cluster", took(0x40), 1);
        command(0x31, 0x40 | 1 << 11);
        window();
        check("another cluster", took(0x40), 0);
        write(DFR, u32::MAX);
    }
    command(own, 0x40 | 1 << 8);
    window();
    check("lowest priority", took(0x40), 1);
}

fn priorities() {
    handle(0x40, Some(on_interrupt));
    handle(0x81, Some(on_interrupt));
    set_cr8(5);
    check("TPR by CR8", read(TPR), 0x50);
    write(TPR, 0x6c);
    check("CR8 by TPR", cr8(), 6);
    check("PPR", read(PPR) & 0xf0, 0x60);
    command(0, 0x40 | SELF);
    command(0, 0x81 | SELF);
    window();
    check("one above the task", (took(0x81), took(0x40)), (1, 0));
    set_cr8(0);
    window();
    check("the other then", took(0x40), 1);
    // One in service holds off others of its class and below.
    handle(0x52, Some(on_quiet));
    command(0, 0x52 | SELF);
    window();
    check("in service", (took(0x52), bit(ISR, 0x52), read(PPR)), (1, true, 0x50));
    command(0, 0x58 | SELF);
    command(0, 0x61 | SELF);
    handle(0x58, Some(on_interrupt));
    handle(0x61, Some(on_interrupt));
    window();
    check("of its class and above", (took(0x58), took(0x61)), (0, 1));
    write(EOI, 0);
    window();
    check("after its end", took(0x58), 1);
    check("PPR", read(PPR), 0);
}

fn errors() {
    write(LVT_ERROR, 0xe1);
    handle(0xe1, Some(on_interrupt));
    handle(5, Some(on_interrupt));
    write(ESR, 0);
    command(0, 5 | SELF);
    window();
    check("an illegal vector is not delivered", took(5), 0);
    check("an illegal vector raises the error interrupt", took(0xe1), 1);
    write(ESR, 0);
    check("error status: send", read(ESR) & 1 << 5, 1 << 5);
    write(ESR, 0);
    check("and is clear then", read(ESR), 0);
    write(LVT_ERROR, MASKED);
}

fn timer() {
    handle(0x70, Some(on_interrupt));
    write(DIVIDE, 0xb);
    write(LVT_TIMER, 0x70);
    write(INITIAL, 1000);
    check("one-shot", wait_for(0x70, 1), true);
    check("it stops", read(CURRENT), 0);
    check("once", took(0x70), 1);
    write(LVT_TIMER, 0x70 | MASKED);
    write(INITIAL, 100_000);
    let first = read(CURRENT);
    check("it counts down", first <= 100_000, true);
    while read(CURRENT) != 0 {}
    window();
    check("masked", took(0x70), 0);
    write(LVT_TIMER, 0x70 | 1 << 17);
    write(INITIAL, 200_000);
    check("periodic", wait_for(0x70, 3), true);
    write(INITIAL, 0);
    check("stopped", read(CURRENT), 0);
    window();
    took(0x70);
    // A change of mode while it counts.
    write(LVT_TIMER, 0x70 | 1 << 17);
    write(INITIAL, 10_000_000);
    write(LVT_TIMER, 0x70);
    check("from periodic to one-shot, it goes on", read(CURRENT) > 0, true);
    let stays = |_| {
        write(LVT_TIMER, 0x70 | MASKED);
        write(INITIAL, 20_000);
        while read(CURRENT) != 0 {}
        write(LVT_TIMER, 0x70 | MASKED | 1 << 17);
        read(CURRENT) == 0
    };
    check("a count that has ended does not begin again", (0..100).all(stays), true);
    write(INITIAL, 0);
    if has(1, 2, 24) {
        const DEADLINE: u32 = 0x6e0;
        write(LVT_TIMER, 0x70 | 2 << 17);
        check(
            "the count is off",
            {
                write(INITIAL, 5000);
                read(CURRENT)
            },
            0,
        );
        wrmsr(DEADLINE, rdtsc() + 1_000_000);
        check("deadline", wait_for(0x70, 1), true);
        check("it is clear", (took(0x70), rdmsr(DEADLINE)), (1, 0));
        wrmsr(DEADLINE, 1);
        window();
        check("a deadline in the past", took(0x70), 1);
        wrmsr(DEADLINE, u64::MAX);
        window();
        check("one that never comes", took(0x70), 0);
        wrmsr(DEADLINE, 0);
        // It is on the guest's clock.
        if has(7, 1, 1) {
            wrmsr(0x3b, 1 << 45);
            wrmsr(DEADLINE, rdtsc() + 1_000_000);
            check("deadline on a moved clock", wait_for(0x70, 1), true);
            took(0x70);
            let far = rdtsc() + (1 << 44);
            wrmsr(DEADLINE, far);
            check("it reads back", rdmsr(DEADLINE), far);
            wrmsr(0x3b, 1 << 46);
            check("the clock passes it", wait_for(0x70, 1), true);
            took(0x70);
            wrmsr(0x3b, 0);
        }
        write(LVT_TIMER, MASKED);
    } else {
        skip("TSC deadline");
    }
}

/// A counter that overflows raises its interrupt.
fn performance() {
    let (select, counter, start) = if is_intel() {
        if cpuid(0xa, 0)[0] & 0xff < 2 {
            return skip("performance counters");
        }
        wrmsr(0x38f, 1);
        (0x186, 0xc1, 0xffff_fc00u64)
    } else {
        (0xc001_0000, 0xc001_0004, (1 << 48) - 0x400)
    };
    if try_wrmsr(counter, start) != NONE || try_rdmsr(counter).unwrap_or(0) >> 40 != 0xff {
        return skip("performance counters");
    }
    handle(0x77, Some(on_interrupt));
    write(LVT_COUNTER, 0x77);
    wrmsr(select, 0xc0 | 1 << 17 | 1 << 20 | 1 << 22);
    unsafe { asm!("sti", "mov ecx, 5000", "2:", "dec ecx", "jne 2b", "cli", out("ecx") _) };
    wrmsr(select, 0);
    check("overflow of a counter", took(0x77), 1);
    // Intel's controller masks the entry.
    let masked = if is_intel() { MASKED } else { 0 };
    check("its entry", read(LVT_COUNTER), 0x77 | masked);
    write(LVT_COUNTER, MASKED);
}

fn software_disable() {
    write(LVT_LINT1, 0x400);
    write(SVR, 0xff);
    check("entries are masked", read(LVT_LINT1) & MASKED, MASKED);
    write(LVT_LINT1, 0x400);
    check("and can't be unmasked", read(LVT_LINT1) & MASKED, MASKED);
    command(0, 0x40 | SELF);
    window();
    check("nothing is taken", took(0x40), 0);
    write(SVR, 0x1ff);
    write(LVT_LINT1, 0x400);
    check("unmasked again", read(LVT_LINT1) & MASKED, 0);
}

fn non_maskable(own: u32) {
    fn on_nmi(_: &mut Trap) {
        COUNTS[2].fetch_add(1, Ordering::SeqCst);
        if counts(2) == 1 {
            // Another waits for IRET.
            command(read(ID) >> if is_x2apic() { 0 } else { 24 }, 4 << 8);
            for _ in 0..100 {
                unsafe { asm!("nop") };
            }
            COUNTS[3].store(counts(2), Ordering::SeqCst);
        }
    }
    handle(NMI, Some(on_nmi));
    command(own, 4 << 8);
    for _ in 0..100 {
        unsafe { asm!("nop") };
    }
    check("NMI in its handler", took(3), 1);
    check("NMI after it", took(2), 2);
    // An IRET that faults lets the next one in, before the fault's handler.
    fn on_first(trap: &mut Trap) {
        if COUNTS[2].fetch_add(1, Ordering::SeqCst) == 0 {
            command(read(ID) >> if is_x2apic() { 0 } else { 24 }, 4 << 8);
            let vector = attempt!(["push 0x10", "push rsp", "push 2", "push 0x10", "push 0", "iretq"]);
            COUNTS[3].store(vector as u32, Ordering::SeqCst);
        } else {
            AT.store(trap.rip, Ordering::SeqCst);
        }
    }
    static AT: AtomicU64 = AtomicU64::new(0);
    handle(NMI, Some(on_first));
    command(own, 4 << 8);
    for _ in 0..100 {
        unsafe { asm!("nop") };
    }
    check("an IRET that faults, and two NMIs", (took(3), took(2)), (GP as u32, 2));
    let stub = &raw const stubs as u64 + 16 * GP;
    check("the second NMI is before the fault's handler", AT.load(Ordering::SeqCst), stub);
    handle(NMI, None);
}

fn modes() {
    let base = rdmsr(MSR_BASE);
    check("xAPIC", base & (ENABLE | EXTENDED), ENABLE);
    check("x2APIC registers in xAPIC mode", try_rdmsr(0x802), None);
    check("EXTD without EN", try_wrmsr(MSR_BASE, base & !ENABLE | EXTENDED), GP);
    if !has(1, 2, 21) {
        check("EXTD without the feature", try_wrmsr(MSR_BASE, base | EXTENDED), GP);
        return skip("x2APIC");
    }
    let id = read(ID) >> 24;
    check("x2APIC", try_wrmsr(MSR_BASE, base | EXTENDED), NONE);
    check("its id", read(ID), id);
    check("LDR from the id", read(LDR), (id >> 4) << 16 | 1 << (id & 15));
    check("back to xAPIC", try_wrmsr(MSR_BASE, base), GP);
    for (name, index) in
        [("DFR", 0x80e), ("ICR high", 0x831), ("nothing", 0x8ff), ("RRD", 0x80c), ("APR", 0x809)]
    {
        check(format_args!("{name} can't be read"), try_rdmsr(index), None);
        check(format_args!("{name} can't be written"), try_wrmsr(index, 0), GP);
    }
    check("ID can't be written", try_wrmsr(0x802, 0), GP);
    check("EOI can't be read", try_rdmsr(0x80b), None);
    check("EOI takes zero only", try_wrmsr(0x80b, 1), GP);
    check("TPR, reserved", try_wrmsr(0x808, 0x100), GP);
    check("SVR, upper half", try_wrmsr(0x80f, 1 << 32), GP);
    check("SELF IPI can't be read", try_rdmsr(0x83f), None);
    interprocessor(id);
    priorities();
    check("off", try_wrmsr(MSR_BASE, base & !(ENABLE | EXTENDED)), NONE);
    check("CPUID tells", has(1, 3, 9), false);
    check("from off to x2APIC", try_wrmsr(MSR_BASE, base | EXTENDED), GP);
    check("on again", try_wrmsr(MSR_BASE, base), NONE);
    check("CPUID tells", has(1, 3, 9), true);
    fresh(id);
}

/// What is there after the controller was off.
fn fresh(id: u32) {
    check("fresh: ID", read(ID) >> 24, id);
    check("fresh: SVR", read(SVR), 0xff);
    check("fresh: TPR, LDR, DFR", (read(TPR), read(LDR), read(DFR)), (0, 0, u32::MAX));
    let lines = [LVT_TIMER, LVT_COUNTER, LVT_LINT0, LVT_LINT1, LVT_ERROR];
    for entry in lines {
        check(format_args!("fresh: entry {entry:#x}"), read(entry), MASKED);
    }
    check("fresh: timer", (read(INITIAL), read(CURRENT), read(DIVIDE)), (0, 0, 0));
    for n in 0..8 {
        check("fresh: requests", (read(IRR + 16 * n), read(ISR + 16 * n)), (0, 0));
    }
    write(SVR, 0x1ff);
}

/// Switched off and on again, in the mode of the page.
fn off_and_on(id: u32) {
    let base = rdmsr(MSR_BASE);
    write(TPR, 0x20);
    write(LVT_TIMER, 0x70 | 1 << 17);
    write(INITIAL, 1 << 30);
    command(0, 0x40 | SELF);
    check("off", try_wrmsr(MSR_BASE, base & !ENABLE), NONE);
    check("off: CPUID tells", has(1, 3, 9), false);
    check("on again", try_wrmsr(MSR_BASE, base), NONE);
    fresh(id);
    window();
    check("what was requested is gone", took(0x40), 0);
}

/// The registers' page goes where APIC_BASE says.
fn relocation() {
    const ELSEWHERE: u64 = 0xd000_0000;
    let base = rdmsr(MSR_BASE);
    let version = read(0x30);
    check("another place", try_wrmsr(MSR_BASE, base & 0xfff | ELSEWHERE), NONE);
    let there = unsafe { ((ELSEWHERE + 0x30) as *const u32).read_volatile() };
    check("version there", there, version);
    check("back", (try_wrmsr(MSR_BASE, base), read(0x30)), (NONE, version));
    // Over RAM, which is there again afterwards.
    const MEMORY: u64 = 0x200_0000;
    let word = |at: u64| at as *mut u32;
    unsafe { word(MEMORY + 0x30).write_volatile(0x5a5a_5a5a) };
    check("over RAM", try_wrmsr(MSR_BASE, base & 0xfff | MEMORY), NONE);
    check("version over RAM", unsafe { word(MEMORY + 0x30).read_volatile() }, version);
    unsafe { word(MEMORY + 0x80).write_volatile(0x20) };
    check("a register over RAM", (unsafe { word(MEMORY + 0x80).read_volatile() }, cr8()), (0x20, 2));
    unsafe { word(MEMORY + 0x80).write_volatile(0) };
    unsafe { word(MEMORY + 0x1000).write_volatile(0x1234) };
    check("the page after it", unsafe { word(MEMORY + 0x1000).read_volatile() }, 0x1234);
    check("back from RAM", (try_wrmsr(MSR_BASE, base), read(0x30)), (NONE, version));
    check("RAM again", unsafe { word(MEMORY + 0x30).read_volatile() }, 0x5a5a_5a5a);
    let width = cpuid(0x8000_0008, 0)[0] & 0xff;
    check("beyond memory", try_wrmsr(MSR_BASE, base | 1 << width), GP);
    for bit in [0, 7, 9] {
        check(format_args!("APIC_BASE, bit {bit}"), try_wrmsr(MSR_BASE, base | 1 << bit), GP);
    }
}

fn io_apic(own: u32) {
    const PIN: u32 = 14;
    check("version", io(1) & 0xff >= 0x11, true);
    handle(0x76, Some(on_interrupt));
    redirect(PIN, 0x76, own);
    line(PIN, 0);
    line(PIN, 1);
    window();
    check("an edge", took(0x76), 1);
    line(PIN, 1);
    window();
    check("a level that stays is no edge", took(0x76), 0);
    line(PIN, 0);
    line(PIN, 1);
    line(PIN, 0);
    line(PIN, 1);
    window();
    check("two edges are one request", took(0x76), 1);
    line(PIN, 0);
    // Level.
    handle(0x76, Some(on_quiet));
    redirect(PIN, 0x76 | 1 << 15, own);
    line(PIN, 1);
    window();
    check("a level", took(0x76), 1);
    check("remote IRR", io(0x10 + 2 * PIN) & 1 << 14, 1 << 14);
    write(EOI, 0);
    window();
    check("again, as it is still there", took(0x76), 1);
    line(PIN, 0);
    write(EOI, 0);
    window();
    check("no more", took(0x76), 0);
    check("remote IRR is clear", io(0x10 + 2 * PIN) & 1 << 14, 0);
    // Masked.
    handle(0x76, Some(on_interrupt));
    redirect(PIN, 0x76 | 1 << 15 | MASKED, own);
    line(PIN, 1);
    window();
    check("masked", took(0x76), 0);
    set_io(0x10 + 2 * PIN, 0x76 | 1 << 15);
    line(PIN, 0);
    window();
    check("a level that waited", took(0x76) >= 1, true);
    redirect(PIN, 0x76, own);
    // To nobody.
    redirect(PIN, 0x76, own ^ 0x0f);
    line(PIN, 1);
    window();
    check("to another CPU", took(0x76), 0);
    line(PIN, 0);
    // Logical.
    write(DFR, u32::MAX);
    write(LDR, 0x0200_0000);
    redirect(PIN, 0x76 | 1 << 11, 2);
    line(PIN, 1);
    window();
    check("logical", took(0x76), 1);
    line(PIN, 0);
    redirect(PIN, MASKED, 0);
}

pub fn run() {
    let own = read(ID) >> 24;
    write(SVR, 0x1ff);
    check("SVR", read(SVR), 0x1ff);
    check("version", read(0x30) & 0xf0, 0x10);
    interprocessor(own);
    priorities();
    errors();
    timer();
    performance();
    software_disable();
    non_maskable(own);
    io_apic(own);
    relocation();
    off_and_on(own);
    modes();
}
