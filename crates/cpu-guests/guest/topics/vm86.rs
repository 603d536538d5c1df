//! Virtual-8086 mode: what depends on IOPL, virtual interrupts (CR4.VME, CR4.PVI), the map of interrupts,
//! ports, the way in and out (SDM volume 3, chapter 21; APM volume 2, sections 8.10 and 12.2.5).

use crate::kit::legacy::*;
use crate::kit::{check, has, skip};
use crate::{code16, legacy};

const IF: u32 = 1 << 9;
const TF: u32 = 1 << 8;
const NT: u32 = 1 << 14;
const AC: u32 = 1 << 18;
const VIF: u32 = 1 << 19;
const VIP: u32 = 1 << 20;
const VM: u32 = 1 << 17;
const IOPL: u32 = 3 << 12;
const VME: u32 = 1;
const PVI: u32 = 2;
const GP: u32 = 13;
/// HLT at the end was reached.
const END: u32 = 13;

const NO_REGS: [u32; 4] = [0; 4];

fn program(eflags: u32, features: u32, code: (u64, u64)) -> (u32, u32, u32) {
    reset();
    run_vm86(code, eflags, features, NO_REGS);
    vm86_end()
}

/// One instruction (or what has no other effect with it): the fault, or how far it came and EFLAGS.
macro_rules! one {
    ($name:literal, $flags:expr, $features:expr, [$($line:expr),+], $expected:expr) => {{
        let code = code16!($($line),+);
        let len = (code.1 - code.0) as u32;
        let (vector, ip, flags) = program($flags, $features, code);
        let expected: (u32, Option<u32>, u32) = $expected;
        let at = expected.1.unwrap_or(len);
        check(format_args!("{} ({})", $name, concat!($($line, "; "),+)), (vector, ip, flags),
            (expected.0, at, expected.2));
    }};
}

/// The register EAX at the end, too.
fn eax(eflags: u32, features: u32, code: (u64, u64), regs: [u32; 4]) -> (u32, u32) {
    reset();
    run_vm86(code, eflags, features, regs);
    let last = events().last().copied().unwrap_or_default();
    (last.vector, last.eax)
}

fn privileges() {
    one!("IOPL 0", 0, 0, ["cli"], (GP, Some(0), 0));
    one!("IOPL 0", 0, 0, ["sti"], (GP, Some(0), 0));
    one!("IOPL 0", 0, 0, ["pushf"], (GP, Some(0), 0));
    one!("IOPL 0", 0, 0, ["popf"], (GP, Some(0), 0));
    one!("IOPL 0", 0, 0, ["iret"], (GP, Some(0), 0));
    one!("IOPL 0", 0, 0, ["int 0x21"], (GP, Some(0), 0));
    one!("IOPL 0", 0, 0, ["int3"], (3, Some(1), 0));
    one!("IOPL 3", IOPL, 0, ["sti"], (END, None, IOPL | IF));
    one!("IOPL 3", IOPL | IF, 0, ["cli"], (END, None, IOPL));
    one!("IOPL 3", IOPL, 0, ["pushf"], (END, None, IOPL));
    one!("IOPL 3", IOPL, 0, ["int 0x21"], (0x21, Some(2), IOPL));
    one!("IOPL 3", IOPL, 0, ["int3"], (3, Some(1), IOPL));
    // What is privileged at any IOPL.
    one!("privileged", IOPL, 0, ["hlt"], (GP, Some(0), IOPL));
    one!("privileged", IOPL, 0, ["mov eax, cr0"], (GP, Some(0), IOPL));
    one!("privileged", IOPL, 0, ["mov cr0, eax"], (GP, Some(0), IOPL));
    one!("privileged", IOPL, 0, ["clts"], (GP, Some(0), IOPL));
    one!("privileged", IOPL, 0, ["mov eax, dr7"], (GP, Some(0), IOPL));
    one!("privileged", IOPL, 0, ["lgdt [0]"], (GP, Some(0), IOPL));
    one!("privileged", IOPL, 0, ["lidt [0]"], (GP, Some(0), IOPL));
    one!("privileged", IOPL, 0, ["lmsw ax"], (GP, Some(0), IOPL));
    one!("privileged", IOPL, 0, ["wbinvd"], (GP, Some(0), IOPL));
    one!("privileged", IOPL, 0, ["rdmsr"], (GP, Some(0), IOPL));
    one!("privileged", IOPL, 0, ["invlpg [0]"], (GP, Some(0), IOPL));
    // What does not exist in this mode.
    one!("protected mode's", IOPL, 0, ["sldt ax"], (6, Some(0), IOPL));
    one!("protected mode's", IOPL, 0, ["str ax"], (6, Some(0), IOPL));
    one!("protected mode's", IOPL, 0, ["lldt ax"], (6, Some(0), IOPL));
    one!("protected mode's", IOPL, 0, ["ltr ax"], (6, Some(0), IOPL));
    one!("protected mode's", IOPL, 0, ["lar ax, ax"], (6, Some(0), IOPL));
    one!("protected mode's", IOPL, 0, ["lsl ax, ax"], (6, Some(0), IOPL));
    one!("protected mode's", IOPL, 0, ["verr ax"], (6, Some(0), IOPL));
    one!("protected mode's", IOPL, 0, ["arpl ax, ax"], (6, Some(0), IOPL));
    // What is allowed.
    one!("allowed", IOPL, 0, ["smsw ax"], (END, None, IOPL));
    one!("allowed", IOPL, 0, ["sgdt [0]"], (END, None, IOPL));
    one!("allowed", IOPL, 0, ["sidt [0]"], (END, None, IOPL));
    one!("allowed", 0, 0, ["cpuid"], (END, None, 0));
}

fn flags() {
    // POPF: IOPL and VM stay, IF follows at IOPL 3.
    one!("POPF", IOPL, 0, ["push 0x4edf", "popf"], (END, None, IOPL | 0x4ed5));
    one!("POPFD", IOPL, 0, [".byte 0x66, 0x68; .long 0x240000", "popfd"], (END, None, IOPL | AC | 1 << 21));
    one!("POPFD", IOPL, 0, [".byte 0x66, 0x68; .long 0", "popfd"], (END, None, IOPL));
    // TF traps after the instruction that follows.
    one!("POPF with TF", IOPL, 0, ["push 0x100", "popf", "nop"], (1, None, IOPL | TF));
    let (vector, image) = eax(IOPL | IF | NT, 0, code16!("pushfd", "pop eax"), NO_REGS);
    check("PUSHFD shows no VM and RF", (vector, image), (END, IOPL | IF | NT | 2));
    let (_, image) = eax(IOPL, 0, code16!("pushf", "pop ax"), [0xffff_0000, 0, 0, 0]);
    check("PUSHF", image, 0xffff_0000 | IOPL | 2);
    // IRET at IOPL 3 within the mode.
    let code = code16!(
        "push 0x4ed7", "push cs", ".byte 0xe8; .word 22f - . - 2", "jmp 33f", "22: iret", "33: nop");
    let (vector, _, flags) = program(IOPL, 0, code);
    check("IRET", (vector, flags), (END, IOPL | 0x4ed5));
    check("IRET: where", events().last().map(|e| e.eip), Some((code.1 - code.0) as u32));
}

fn virtual_interrupts() {
    one!("VME", VIF, VME, ["cli"], (END, None, 0));
    one!("VME", VIF | IF, VME, ["cli"], (END, None, IF));
    one!("VME", 0, VME, ["sti"], (END, None, VIF));
    one!("VME", VIP, VME, ["sti"], (GP, Some(0), VIP));
    one!("VME, VIP", VIP, VME, ["cli"], (END, None, VIP));
    one!("VME at IOPL 3", VIP | IOPL, VME, ["sti"], (END, None, VIP | IOPL | IF));
    one!("VME", 0, VME, ["pushfd"], (GP, Some(0), 0));
    one!("VME", 0, VME, ["popfd"], (GP, Some(0), 0));
    one!("VME", 0, VME, ["iretd"], (GP, Some(0), 0));
    for (before, seen) in [(0, 0), (VIF, IF), (IF, 0), (IF | VIF, IF)] {
        let (vector, image) = eax(before, VME, code16!("pushf", "pop ax"), NO_REGS);
        check(format_args!("PUSHF with {before:#x}"), (vector, image), (END, IOPL | seen | 2));
    }
    one!("VME: POPF", 0, VME, ["push 0x202", "popf"], (END, None, VIF));
    one!("VME: POPF", VIF | IF, VME, ["push 2", "popf"], (END, None, IF));
    one!("VME: POPF", VIP, VME, ["push 0x202", "popf"], (GP, Some(3), VIP));
    one!("VME: POPF", VIP, VME, ["push 2", "popf"], (END, None, VIP));
    one!("VME: POPF of TF", 0, VME, ["push 0x102", "popf"], (GP, Some(3), 0));
    one!("VME: POPF of IOPL", 0, VME, ["push 0x3002", "popf"], (END, None, 0));
    // IRET of 16 bits.
    let back = |eflags, image| {
        let code = code16!(
            "push dx", "push cs", ".byte 0xe8; .word 22f - . - 2", "jmp 33f", "22: iret", "33: nop");
        reset();
        run_vm86(code, eflags, VME, [0, 0, image, 0]);
        let (vector, ip, flags) = vm86_end();
        (vector, ip == (code.1 - code.0) as u32, flags)
    };
    check("VME: IRET sets VIF", back(0, 0x202), (END, true, VIF));
    check("VME: IRET clears VIF", back(VIF | IF, 2), (END, true, IF));
    check("VME: IRET with VIP", back(VIP, 0x202), (GP, false, VIP));
    check("VME: IRET with VIP, IF clear", back(VIP, 2), (END, true, VIP));
    check("VME: IRET of TF", back(0, 0x102), (GP, false, 0));
}

/// The bit of the map of interrupts for `vector`, set: to the IDT.
fn not_redirected(vector: usize) {
    unsafe {
        let map = (&raw mut LEGACY_TSS).cast::<u8>().add(IO_MAP - 32 + vector / 8);
        map.write_volatile(map.read_volatile() | 1 << (vector % 8));
    }
}

fn redirected() {
    // The program's own handler of interrupt 0x21 at 0x2000:0x800.
    let handler = code16!("mov bx, 0x2121", "pushf", "pop cx", "mov bp, sp", "mov dx, [bp + 4]", "iret");
    let run = |eflags, prepare: fn()| {
        reset();
        prepare();
        unsafe {
            core::ptr::copy_nonoverlapping(
                handler.0 as *const u8,
                (VM86_CODE + 0x800) as *mut u8,
                64,
            );
            (0x84 as *mut u32).write_volatile((VM86_CODE as u32 >> 4) << 16 | 0x800);
        }
        run_vm86(code16!("int 0x21", "nop"), eflags, VME, NO_REGS);
        let last = events().last().copied().unwrap_or_default();
        (last.vector, last.eip, last.ebx, last.ecx, last.edx, last.eflags & !0x3_0002)
    };
    let own = |within, saved, after| (END, 3, 0x2121, within, saved, after);
    check("IOPL 0, VIF", run(VIF, || {}), own(IOPL | 2, IOPL | IF | 2, VIF));
    check("IOPL 0", run(0, || {}), own(IOPL | 2, IOPL | 2, 0));
    check("IOPL 0, IF", run(IF | VIF, || {}), own(IOPL | 2, IOPL | IF | 2, IF | VIF));
    check("IOPL 3, IF", run(IOPL | IF, || {}), own(IOPL | 2, IOPL | IF | 2, IOPL | IF));
    check("IOPL 3, VIF stays", run(IOPL | VIF, || {}).5, IOPL | VIF);
    let mapped = run(0, || not_redirected(0x21));
    check("by the IDT, IOPL 0", (mapped.0, mapped.1), (GP, 0));
    let mapped = run(IOPL, || not_redirected(0x21));
    check("by the IDT, IOPL 3", (mapped.0, mapped.1), (0x21, 2));
    // Others of the map do not matter.
    let other = run(0, || {
        not_redirected(0x20);
        not_redirected(0x22);
    });
    check("others by the IDT", other.0, END);
    // INT3 and INTO are never redirected, and do not look at IOPL.
    one!("VME", 0, VME, ["int3"], (3, Some(1), 0));
    one!("VME", 0, VME, ["mov al, 0x7f", "add al, al", "into"], (4, None, 0x890));
}

fn protected() {
    // The same flags for programs of protected mode at CPL 3, by CR4.PVI.
    let run = |eflags: u32, features: u32, byte: u8| {
        reset();
        unsafe {
            let to = VM86_CODE as *mut u8;
            to.write_volatile(byte);
            to.add(1).write_volatile(0xf4);
        }
        set_out(0, VM86_CODE as u32);
        set_out(1, eflags);
        set_out(2, features | 0x600);
        legacy!([
            "mov eax, [LEGACY_OUT + 8]",
            "mov cr4, eax",
            "push 0x2b",
            "push 0x72000",
            "push dword ptr [LEGACY_OUT + 4]",
            "push 0x23",
            "push dword ptr [LEGACY_OUT]",
            "iretd",
        ]);
        let last = events().last().copied().unwrap_or_default();
        (last.vector, last.eip.wrapping_sub(VM86_CODE as u32), last.eflags & !0x1_0002)
    };
    const CLI: u8 = 0xfa;
    const STI: u8 = 0xfb;
    check("PVI: CLI", run(VIF, PVI, CLI), (GP, 1, 0));
    check("PVI: STI", run(0, PVI, STI), (GP, 1, VIF));
    check("PVI: STI with VIP", run(VIP, PVI, STI), (GP, 0, VIP));
    check("PVI: STI at IOPL 3", run(IOPL | VIP, PVI, STI), (GP, 1, IOPL | VIP | IF));
    check("no PVI: STI", run(0, 0, STI), (GP, 0, 0));
    check("VME is not PVI", run(0, VME, CLI), (GP, 0, 0));
}

fn ports_and_memory() {
    // Ports go by the map at any IOPL.
    one!("a port that is allowed", 0, 0, ["in al, 0x80"], (END, None, 0));
    let deny = |port: usize| unsafe {
        let map = (&raw mut LEGACY_TSS).cast::<u8>().add(IO_MAP + port / 8);
        map.write_volatile(map.read_volatile() | 1 << (port % 8));
    };
    for (iopl, name) in [(0, "IOPL 0"), (IOPL, "IOPL 3")] {
        reset();
        deny(0x81);
        run_vm86(code16!("in al, 0x80", "in al, 0x81"), iopl, 0, NO_REGS);
        check(format_args!("a port that is not, {name}"), vm86_end(), (GP, 2, iopl));
        reset();
        deny(0x81);
        run_vm86(code16!("in ax, 0x80"), iopl, 0, NO_REGS);
        check(format_args!("half of a word that is not, {name}"), vm86_end(), (GP, 0, iopl));
    }
    // Segments are the selector by 16, with limits of 64 KiB.
    unsafe { ((0x1111 << 4) as *mut u32).write_volatile(0x5566_7788) };
    let (_, value) = eax(0, 0, code16!("mov ax, es:[0]"), [0xffff_0000, 0, 0, 0]);
    check("ES at the start", value, 0xffff_7788);
    let (_, value) = eax(0, 0, code16!("mov ax, 0x1111", "mov fs, ax", "mov eax, fs:[0]"), NO_REGS);
    check("FS loaded", value, 0x5566_7788);
    one!("beyond the limit", 0, 0, ["mov al, [eax + 0x10000]"], (GP, Some(0), 0));
    one!("across the limit", 0, 0, ["mov ax, [0xffff]"], (GP, Some(0), 0));
    one!("beyond the stack's", 0, 0, ["mov al, ss:[eax + 0x10000]"], (12, Some(0), 0));
    // A far jump and a far call.
    one!("far JMP", 0, 0, [".byte 0xea; .word 5, 0x2000"], (END, None, 0));
    let (vector, value) = eax(
        0,
        0,
        code16!(".byte 0x9a; .word 5, 0x2000", "pop ax", "pop bx", "shl ebx, 16", "or eax, ebx"),
        NO_REGS,
    );
    check("far CALL pushes CS and IP", (vector, value), (END, 0x2000_0005));
    one!("LDS", 0, 0, ["lds ax, [0]"], (END, None, 0));
}

fn frames() {
    reset();
    run_vm86(code16!("mov ax, 0x8888", "mov gs, ax"), 0, 0, NO_REGS);
    let seen = events().last().copied().unwrap_or_default();
    check("frame: CS", seen.cs & 0xffff, VM86_CODE as u32 >> 4);
    check("frame: SS and ESP", (seen.ss & 0xffff, seen.esp), (STACK_SEGMENT, STACK));
    let segments = [seen.es, seen.ds, seen.fs, seen.gs].map(|s| s & 0xffff);
    check("frame: ES, DS, FS, GS", segments, [0x1111, 0x2222, 0x3333, 0x8888]);
    check("frame: VM", seen.eflags & VM, VM);
    // The handler has null data segments and comes back.
    reset();
    resume(0x21);
    run_vm86(code16!("int 0x21", "mov ax, es", "mov bx, gs"), IOPL, 0, NO_REGS);
    check("two events", events().len(), 2);
    let seen = events().last().copied().unwrap_or_default();
    check("IRET to the mode", (seen.vector, seen.eax & 0xffff, seen.ebx & 0xffff), (GP, 0x1111, 0x4444));
    // A gate to a segment that is not of CPL 0.
    reset();
    set_gate(0x21, gate_to(0x23, 0, 0xee));
    run_vm86(code16!("int 0x21"), IOPL, 0, NO_REGS);
    let seen = events().last().copied().unwrap_or_default();
    check("a gate to CPL 3", (seen.vector, seen.code), (GP, 0x20));
    // 16-bit operands of a prefix, wrapping IP.
    one!("UD2", 0, 0, ["ud2"], (6, Some(0), 0));
    let (vector, image) = eax(0, 0, code16!("mov eax, 0x12345678", "bswap eax"), NO_REGS);
    check("32-bit operands", (vector, image), (END, 0x7856_3412));
}

pub fn run() {
    privileges();
    flags();
    ports_and_memory();
    frames();
    if has(1, 3, 1) {
        virtual_interrupts();
        redirected();
        protected();
    } else {
        skip("CR4.VME");
    }
}
