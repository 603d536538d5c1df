//! 5-level paging: how it is entered and left, addresses of 57 bits, and what is canonical (SDM volume
//! 3, section 4.5; volume 1, section 3.3.7.1).

use core::arch::asm;

use crate::kit::*;

#[repr(C, align(4096))]
struct Table([u64; 512]);
static mut PML5: Table = Table([0; 512]);
static mut T4: Table = Table([0; 512]);
static mut T3: Table = Table([0; 512]);
static mut T2: Table = Table([0; 512]);
static mut T1: Table = Table([0; 512]);
static mut PAGE: Table = Table([0x1122_3344_5566_7788; 512]);

const LA57: u64 = 1 << 12;
/// Canonical in 57 bits only.
const WIDE: u64 = 0x00a5_1234_5678_9000;
const NEGATIVE: u64 = 0xff5a_1234_5678_9000;
const NOWHERE: u64 = 0x0f00_0000_0000_0000;

/// Turns paging off and on again with other tables and CR4.
fn switch(cr4: u64, cr3: u64) {
    unsafe {
        asm!(
            // Registers are halved in compatibility mode.
            "push rbx", "push rbp",
            "mov rax, rsp",
            "mov [rip + 90f], rax",
            "push 0x18",
            "lea rax, [rip + 91f]",
            "push rax",
            "retfq",
            "90: .quad 0",
            ".code32",
            "91:",
            "mov eax, cr0",
            "and eax, 0x7fffffff",
            "mov cr0, eax",
            "mov cr4, esi",
            "mov cr3, edi",
            "or eax, 0x80000000",
            "mov cr0, eax",
            "push 0x8",
            "lea eax, [93f]",
            "push eax",
            "retf",
            ".code64",
            "93:",
            "mov rsp, [rip + 90b]",
            "pop rbp", "pop rbx",
            in("rsi") cr4, in("rdi") cr3,
            out("rax") _, out("rcx") _, out("rdx") _, out("r8") _, out("r9") _, out("r10") _,
            out("r11") _, out("r12") _, out("r13") _, out("r14") _, out("r15") _,
        );
    }
}

fn load(at: u64) -> Result<u64, (u64, u64)> {
    let value: u64;
    let vector = attempt!(["mov {1}, [{0}]"], in(reg) at, out(reg) value);
    if vector == NONE { Ok(value) } else { Err(fault()) }
}

/// What registers take does not depend on the paging that is active, but on what the processor has.
fn registers(has_wide: bool) {
    let expected = if has_wide { NONE } else { GP };
    for (name, msr) in [
        ("FS_BASE", 0xc000_0100),
        ("GS_BASE", 0xc000_0101),
        ("KERNEL_GS_BASE", 0xc000_0102),
        ("LSTAR", 0xc000_0082),
        ("CSTAR", 0xc000_0083),
    ] {
        let old = rdmsr(msr);
        check(name, try_wrmsr(msr, WIDE), expected);
        check(name, try_wrmsr(msr, NEGATIVE), expected);
        check(name, try_wrmsr(msr, NOWHERE), GP);
        wrmsr(msr, old);
    }
    let mut table = [0u16; 5];
    for (at, expected) in [(WIDE, expected), (NOWHERE, GP)] {
        table[0] = 0xfff;
        table[1..].copy_from_slice(&[
            at as u16,
            (at >> 16) as u16,
            (at >> 32) as u16,
            (at >> 48) as u16,
        ]);
        let vector = attempt!(["sidt [{1}]", "lidt [{0}]", "lidt [{1}]"],
            in(reg) &table, in(reg) &mut [0u16; 5]);
        check("LIDT", vector, expected);
        let vector = attempt!(["sgdt [{1}]", "lgdt [{0}]", "lgdt [{1}]"],
            in(reg) &table, in(reg) &mut [0u16; 5]);
        check("LGDT", vector, expected);
    }
    if has(7, 1, 10) {
        for (at, expected) in [(WIDE, expected), (NOWHERE, GP)] {
            let vector = attempt!(["invpcid {0}, [{1}]"], in(reg) 0u64, in(reg) &[0u64, at]);
            check("INVPCID", vector, expected);
        }
    }
}

/// What memory accesses and branches take does.
fn accesses(wide: bool) {
    let at = WIDE;
    if wide {
        check("not mapped", load(at), Err((PF, 0)));
        check("CR2", last().cr2, at);
        check("jump to no page", attempt!(["jmp {}"], in(reg) at), PF);
    } else {
        check("not canonical", load(at), Err((GP, 0)));
        check("jump", attempt!(["jmp {}"], in(reg) at), GP);
        let vector = attempt!(["mov rax, rsp", "mov rsp, {}", "push 1"], in(reg) at, out("rax") _);
        check("push", vector, SS);
    }
    check("nowhere", load(NOWHERE), Err((GP, 0)));
    check("INVLPG of anything", attempt!(["invlpg [{}]"], in(reg) NOWHERE), NONE);
}

pub fn run() {
    if !has(7, 2, 16) {
        check("CR4.LA57 without the feature", try_cr4(cr4() | LA57), GP);
        registers(false);
        accesses(false);
        return skip("LA57");
    }
    let width = cpuid(0x8000_0008, 0)[0] >> 8 & 0xff;
    check("linear address width", width, 57);
    check("CR4.LA57 in long mode", try_cr4(cr4() | LA57), GP);
    registers(true);
    accesses(false);
    let old = cr3();
    unsafe {
        let put =
            |table: u64, n: usize, value: u64| (table as *mut u64).add(n).write_volatile(value);
        let pml5 = (&raw mut PML5) as u64;
        put(pml5, 0, (&raw mut PML4) as u64 | 7);
        switch(cr4() | LA57, pml5);
        check("CR4.LA57", cr4() & LA57, LA57);
        check("CR4.LA57 can't be cleared in long mode", try_cr4(cr4() & !LA57), GP);
        registers(true);
        accesses(true);
        let index = |level: u32| (WIDE >> (12 + 9 * (level - 1)) & 0x1ff) as usize;
        put(pml5, index(5), (&raw mut T4) as u64 | 7);
        put((&raw mut T4) as u64, index(4), (&raw mut T3) as u64 | 7);
        put((&raw mut T3) as u64, index(3), (&raw mut T2) as u64 | 7);
        put((&raw mut T2) as u64, index(2), (&raw mut T1) as u64 | 7);
        put((&raw mut T1) as u64, index(1), (&raw mut PAGE) as u64 | 7);
        check("a page above 48 bits", load(WIDE), Ok(0x1122_3344_5566_7788));
        let entry = (pml5 as *const u64).add(index(5)).read_volatile();
        check("its accessed bit", entry & 0x20, 0x20);
        put(pml5, index(5), (&raw mut T4) as u64 | 0x87);
        invlpg(WIDE);
        check("PS in a PML5 entry is reserved", load(WIDE), Err((PF, 9)));
        put(pml5, index(5), (&raw mut T4) as u64 | 3);
        invlpg(WIDE);
        let vector = user!(["mov al, [rdi]"], in("rdi") WIDE, out("al") _);
        check("rights of the PML5 entry count", (vector, last().trap.code), (PF, 5));
        put(pml5, index(5), 0);
        invlpg(WIDE);
    }
    switch(cr4() & !LA57, old);
    check("4 levels again", cr4() & LA57, 0);
    accesses(false);
}
