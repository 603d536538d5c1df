//! Control registers, their reserved bits and rules; UMIP, SMEP and SMAP instructions; memory
//! instructions; RDPID and their like (APM volume 2, chapter 3; volume 3).

use core::arch::asm;

use crate::kit::*;

fn control_registers() {
    for bit in 32..64 {
        check(format_args!("CR0 bit {bit}"), try_cr0(cr0() | 1 << bit), GP);
    }
    let before = cr0();
    check("CR0: NW without CD", try_cr0(before | 1 << 29), GP);
    set_cr0(before);
    set_cr0(before | 1 << 6);
    check("CR0: reserved bits read as zero", cr0(), before);
    set_cr0(before & !(1 << 4));
    check("CR0: ET reads as one", cr0() & 1 << 4, 1 << 4);
    // CR4 by CPUID: bit, leaf, register, bit there.
    let known = [
        (0, 1, 3, 1),
        (1, 1, 3, 1),
        (2, 1, 3, 4),
        (3, 1, 3, 2),
        (4, 1, 3, 3),
        (6, 1, 3, 7),
        (7, 1, 3, 13),
        (9, 1, 3, 24),
        (11, 7, 2, 2),
        (16, 7, 1, 0),
        (17, 1, 2, 17),
        (18, 1, 2, 26),
        (20, 7, 1, 7),
        (21, 7, 1, 20),
        (22, 7, 2, 3),
        (24, 7, 2, 31),
    ];
    for (bit, leaf, register, there) in known {
        let expected = if has(leaf, register, there) { NONE } else { GP };
        let before = cr4();
        check(format_args!("CR4 bit {bit}"), try_cr4(before ^ 1 << bit), expected);
        set_cr4(before);
    }
    // Bit 28 is of topic `lam`.
    for bit in (25..28).chain(29..64).chain([15, 19]) {
        check(format_args!("CR4 bit {bit}"), try_cr4(cr4() | 1 << bit), GP);
    }
    check("CR8", attempt!(["mov cr8, {}"], in(reg) 16u64), GP);
    check("CR1", attempt!([".byte 0x0f, 0x20, 0xc8"], out("rax") _), UD);
    check("CR5", attempt!([".byte 0x0f, 0x20, 0xe8"], out("rax") _), UD);
    for (name, vector) in [
        ("MOV from CR0", user!(["mov rax, cr0"], out("rax") _)),
        ("MOV to CR3", user!(["mov cr3, rax"], in("rax") 0u64)),
        ("LMSW", user!(["lmsw ax"], in("ax") 0u16)),
        ("CLTS", user!(["clts"])),
        ("INVLPG", user!(["invlpg [rax]"], in("rax") 0u64)),
        ("WBINVD", user!(["wbinvd"])),
        ("RDMSR", user!(["rdmsr"], in("ecx") 0x10, out("eax") _, out("edx") _)),
        ("WRMSR", user!(["wrmsr"], in("ecx") 0x10, in("eax") 0, in("edx") 0)),
        ("LGDT", user!(["lgdt [rsp]"])),
        ("LLDT", user!(["lldt ax"], in("ax") 0u16)),
        ("LTR", user!(["ltr ax"], in("ax") 0u16)),
        ("SWAPGS", user!(["swapgs"])),
    ] {
        check(format_args!("{name} at CPL 3"), vector, GP);
    }
    let before = cr0();
    unsafe { asm!("lmsw ax", in("ax") 0x3eu16) };
    check("LMSW does not clear PE", cr0() & 0xf, 0xf);
    set_cr0(before);
}

fn umip() {
    const UMIP: u64 = 1 << 11;
    let all = |expected: u64, name: &str| {
        for (instruction, vector) in [
            ("SGDT", user!(["sgdt [rsp - 64]"])),
            ("SIDT", user!(["sidt [rsp - 64]"])),
            ("SLDT", user!(["sldt ax"], out("ax") _)),
            ("STR", user!(["str ax"], out("ax") _)),
            ("SMSW", user!(["smsw ax"], out("ax") _)),
            ("SLDT to memory", user!(["sldt [rsp - 64]"])),
            ("SMSW to memory", user!(["smsw [rsp - 64]"])),
        ] {
            check(format_args!("{instruction} {name}"), vector, expected);
        }
    };
    all(NONE, "without UMIP");
    if !has(7, 2, 2) {
        check("CR4.UMIP without the feature", try_cr4(cr4() | UMIP), GP);
        return skip("UMIP");
    }
    set_cr4(cr4() | UMIP);
    all(GP, "with UMIP");
    check("SGDT at CPL 0", attempt!(["sgdt [rsp - 64]"]), NONE);
    check("SMSW at CPL 0", attempt!(["smsw ax"], out("ax") _), NONE);
    set_cr4(cr4() & !UMIP);
}

fn access_control() {
    if !has(7, 1, 20) {
        check("STAC without the feature", attempt!(["stac"]), UD);
        return skip("SMAP");
    }
    // They do not ask for CR4.SMAP.
    check("STAC", attempt!(["stac"]), NONE);
    check("CLAC", attempt!(["clac"]), NONE);
    check("STAC at CPL 3", user!(["stac"]), UD);
    check("CLAC at CPL 3", user!(["clac"]), UD);
    check("LOCK STAC", attempt!([".byte 0xf0, 0x0f, 0x01, 0xcb"]), UD);
    const SMAP: u64 = 1 << 21;
    set_cr4(cr4() | SMAP);
    // What the processor reads by itself is the supervisor's, whatever AC says: here a descriptor of
    // the local table.
    let table = [0x00cf_9300_0000_ffffu64; 2];
    let at = &raw const table as u64 + USER_ALIAS;
    let low = 15 | (at & 0xff_ffff) << 16 | 0x82 << 40 | (at >> 24 & 0xff) << 56;
    set_descriptor(FREE_SLOT, low);
    set_descriptor(FREE_SLOT + 1, at >> 32);
    let vector =
        attempt!(["lldt {0:x}", "stac", "mov ds, {1:x}", "clac"], in(reg) FREE, in(reg) 0xcu64);
    check("a descriptor in a user page, with AC", vector, PF);
    check("code", last().trap.code, 1);
    unsafe { asm!("clac", "lldt {0:x}", in(reg) 0u16) };
    set_cr4(cr4() & !SMAP);
}

fn memory() {
    let cell = [0u64; 8];
    let at = &raw const cell as u64;
    let there = |leaf, register, bit| if has(leaf, register, bit) { NONE } else { UD };
    check("CLFLUSH", attempt!(["clflush [{}]"], in(reg) at), there(1, 3, 19));
    check("CLFLUSHOPT", attempt!(["clflushopt [{}]"], in(reg) at), there(7, 1, 23));
    check("CLWB", attempt!(["clwb [{}]"], in(reg) at), there(7, 1, 24));
    check("PCOMMIT", attempt!([".byte 0x66, 0x0f, 0xae, 0xf8"]), there(7, 1, 22));
    check(
        "CLFLUSH of a page that is not there",
        attempt!(["clflush [{}]"], in(reg) 5u64 << 39),
        PF,
    );
    check("code", last().trap.code, 0);
    check("PREFETCH of it", attempt!(["prefetcht0 [{}]"], in(reg) 5u64 << 39), NONE);
    check("PREFETCH of nowhere", attempt!(["prefetcht0 [{}]"], in(reg) 1u64 << 60), NONE);
    if has(1, 2, 13) {
        check(
            "CMPXCHG16B, not aligned",
            attempt!(["push rbx", "cmpxchg16b [{} + 8]", "pop rbx"], in(reg) at & !15,
                inout("rax") 0u64 => _, inout("rdx") 0u64 => _, in("rcx") 0u64),
            GP,
        );
    }
    check(
        "MOVAPS, not aligned",
        attempt!(["movaps xmm0, [{}]"], in(reg) at + 1, out("xmm0") _),
        GP,
    );
    check("MOVUPS", attempt!(["movups xmm0, [{}]"], in(reg) at + 1, out("xmm0") _), NONE);
    check("a load from nowhere", attempt!(["mov al, [{}]"], in(reg) 1u64 << 60, out("al") _), GP);
    check(
        "from nowhere by RBP",
        attempt!(["push rbp", "mov rbp, {}", "mov al, [rbp]", "pop rbp"],
        in(reg) 1u64 << 60, out("al") _),
        SS,
    );
    if has(0x8000_0008, 1, 0) {
        let mut line = [1u8; 192];
        let at = (line.as_mut_ptr() as u64 + 63) & !63;
        unsafe { asm!("clzero", in("rax") at + 21) };
        let start = (at - line.as_ptr() as u64) as usize;
        let zeroes = line.iter().enumerate().all(|(n, &byte)| (byte == 0) == (start..start + 64).contains(&n));
        check("CLZERO clears its line", zeroes, true);
        check("CLZERO of no page", attempt!(["clzero"], in("rax") 5u64 << 39), PF);
    } else {
        check("CLZERO without the feature", attempt!([".byte 0x0f, 0x01, 0xfc"], in("rax") at), UD);
    }
    fields();
    rdpru();
    if has(1, 2, 22) {
        let swapped: u32;
        let value = 0x1122_3344u32;
        unsafe { asm!("movbe {0:e}, [{1}]", out(reg) swapped, in(reg) &value) };
        check("MOVBE", swapped, 0x4433_2211);
    } else {
        check(
            "MOVBE without the feature",
            attempt!([".byte 0x0f, 0x38, 0xf0, 0x07"], in("rdi") at, out("eax") _),
            UD,
        );
    }
}

fn identity() {
    const TSC_AUX: u32 = 0xc000_0103;
    if has(0x8000_0001, 3, 27) {
        wrmsr(TSC_AUX, 0x1234_5678);
        check("TSC_AUX, upper half", try_wrmsr(TSC_AUX, 1 << 32), if is_intel() { GP } else { GP });
        let aux: u32;
        unsafe { asm!("rdtscp", out("eax") _, out("edx") _, out("ecx") aux) };
        check("RDTSCP", aux, 0x1234_5678);
        if has(7, 2, 22) {
            let id: u64;
            unsafe { asm!("rdpid {}", out(reg) id) };
            check("RDPID", id, 0x1234_5678);
        } else {
            check(
                "RDPID without the feature",
                attempt!([".byte 0xf3, 0x0f, 0xc7, 0xf8"], out("rax") _),
                UD,
            );
        }
    } else {
        check(
            "RDTSCP without the feature",
            attempt!(["rdtscp"], out("eax") _, out("edx") _, out("ecx") _),
            UD,
        );
    }
    // CR4.TSD.
    set_cr4(cr4() | 4);
    check("RDTSC at CPL 3 with TSD", user!(["rdtsc"], out("eax") _, out("edx") _), GP);
    check("RDTSC at CPL 0", attempt!(["rdtsc"], out("eax") _, out("edx") _), NONE);
    set_cr4(cr4() & !4);
    check("RDTSC at CPL 3", user!(["rdtsc"], out("eax") _, out("edx") _), NONE);
    let rdpru = has(0x8000_0008, 1, 4);
    check(
        "RDPRU",
        attempt!([".byte 0x0f, 0x01, 0xfd"], in("ecx") 0, out("eax") _, out("edx") _) == UD,
        !rdpru,
    );
    check("RSM outside SMM", attempt!([".byte 0x0f, 0xaa"]), UD);
    check("FSGSBASE without CR4", attempt!(["rdfsbase rax"], out("rax") _), UD);
    let max = cpuid(0, 0)[0];
    check("highest leaf", max >= 1, true);
    check("address widths", cpuid(0x8000_0008, 0)[0] & 0xff >= 36, true);
}

pub fn run() {
    control_registers();
    umip();
    access_control();
    memory();
    identity();
    let width = cpuid(0x8000_0008, 0)[0] & 0xff;
    check("CR3 above the physical addresses", try_cr3(cr3() | 1 << width), GP);
    // A processor that lets these pass does not come back.
    check("CR4: PAE in long mode", try_cr4(cr4() & !(1 << 5)), GP);
    check("CR0: PG without PE", try_cr0(cr0() & !1), GP);
    check("CR0: PG in 64-bit mode", try_cr0(cr0() & !(1 << 31)), GP);
}

/// EXTRQ and INSERTQ of SSE4a.
fn fields() {
    if !has(0x8000_0001, 2, 6) {
        check("EXTRQ without SSE4a", attempt!([".byte 0x66, 0x0f, 0x78, 0xc0, 4, 8"]), UD);
        check("INSERTQ without SSE4a", attempt!([".byte 0xf2, 0x0f, 0x79, 0xc1"]), UD);
        return;
    }
    const VALUE: u64 = 0x0123_4567_89ab_cdef;
    let (mut taken, mut put, mut stored): (u64, u64, u64) = (0, 0, 0);
    let vector = attempt!([
        "movq xmm0, {value}",
        // Four bits from bit 8.
        ".byte 0x66, 0x0f, 0x78, 0xc0, 4, 8",
        "movq {taken}, xmm0",
        "movq xmm0, {value}",
        "movq xmm1, {field}",
        // Twelve bits at bit 8.
        ".byte 0xf2, 0x0f, 0x78, 0xc1, 12, 8",
        "movq {put}, xmm0",
        // MOVNTSD.
        ".byte 0xf2, 0x0f, 0x2b, 0x07",
    ], value = in(reg) VALUE, field = in(reg) 0xfabcu64, taken = out(reg) taken, put = out(reg) put,
        in("rdi") &raw mut stored, out("xmm0") _, out("xmm1") _);
    check("SSE4a", vector, NONE);
    check("EXTRQ", taken, 0xd);
    check("INSERTQ", put, 0x0123_4567_89aa_bcef);
    check("MOVNTSD", stored, put);
    // The whole register, by a length of zero.
    let vector = attempt!(["movq xmm0, {value}", "movq xmm1, {control}", ".byte 0x66, 0x0f, 0x79, 0xc1",
        "movq {taken}, xmm0"], value = in(reg) VALUE, control = in(reg) 0u64, taken = out(reg) taken,
        out("xmm0") _, out("xmm1") _);
    check("EXTRQ of all", (vector, taken), (NONE, VALUE));
}

/// RDPRU: MPERF and APERF for programs, unless they may not know the time.
fn rdpru() {
    macro_rules! read {
        ($how:ident, $number:expr) => {{
            let (low, high): (u32, u32);
            let vector = $how!([".byte 0x0f, 0x01, 0xfd"], in("ecx") $number, out("eax") low, out("edx") high);
            (vector, u64::from(low) | u64::from(high) << 32)
        }};
    }
    if !has(0x8000_0008, 1, 4) {
        check("RDPRU without the feature", read!(attempt, 0).0, UD);
        return;
    }
    for (number, register) in [(0, 0xe7), (1, 0xe8)] {
        wrmsr(register, 1 << 40);
        let (vector, first) = read!(attempt, number);
        let (_, second) = read!(user, number);
        check(format_args!("RDPRU {number}"), (vector, first >> 40, second > first), (NONE, 1, true));
        check(format_args!("RDPRU {number} and its register"), rdmsr(register) > second, true);
    }
    const TSD: u64 = 1 << 2;
    set_cr4(cr4() | TSD);
    check("RDPRU from CPL 3 with TSD", read!(user, 0).0, UD);
    check("RDPRU from CPL 0 with TSD", read!(attempt, 0).0, NONE);
    set_cr4(cr4() & !TSD);
}
