//! AMD's virtual machine mode at its edges: the ends of the permission maps, what comes before an intercept and
//! what after, events that end in an exit on their way, guests of other modes, the time-stamp counter, halted
//! guests, nested tables in detail, and a host that is being debugged (APM volume 2, chapter 15).

use core::arch::asm;

use crate::attempt;
use crate::kit::*;

#[macro_use]
#[path = "../kit/vmcb.rs"]
mod vmcb;
use vmcb::*;

const IO: u32 = 1 << 27;
const MSRS: u32 = 1 << 28;
const INTR: u64 = 0x60;
const NMI: u64 = 0x61;
const HLT: u64 = 0x78;
const MASKING: u64 = 1 << 24;

fn io_byte(at: usize, value: u8) {
    unsafe { (&raw mut IO_MAP).cast::<u8>().add(at).write_volatile(value) }
}
fn msr_byte(at: usize, value: u8) {
    unsafe { (&raw mut MSR_MAP).cast::<u8>().add(at).write_volatile(value) }
}

/// Accesses whose bits are the last of the maps, or in two bytes or pages of them.
fn ends_of_maps() {
    let leaves = |name: &str, code: u64, byte: usize, bits: u8, expected: bool| {
        prepare();
        put32(at::WORD3, IO);
        io_byte(byte, bits);
        let expected = if expected { exit::IOIO } else { exit::VMMCALL };
        check(format_args!("{name}, byte {byte:#x} is {bits:#x}"), begin(code), expected);
    };
    let in8 = guest!("mov dx, 0xffff", "in al, dx");
    leaves("the last port", in8, 0x1fff, 0x80, true);
    leaves("the last port", in8, 0x1fff, 0x7f, false);
    leaves("the last port", in8, 0x2000, 0xff, false);
    let in16 = guest!("mov dx, 0xffff", "in ax, dx");
    leaves("a word at the last port", in16, 0x2000, 1, true);
    leaves("a word at the last port", in16, 0x2000, 0xfe, false);
    leaves("a word at the last port", in16, 0, 0xff, false);
    let in32 = guest!("mov dx, 0xfffd", "in eax, dx");
    leaves("a doubleword over the end", in32, 0x2000, 1, true);
    leaves("a doubleword over the end", in32, 0x2000, 2, false);
    leaves("a doubleword over the end", in32, 0x1fff, 0x1f, false);
    let across = guest!("mov dx, 0x7fff", "in ax, dx");
    leaves("a word across pages of the map", across, 0x1000, 1, true);
    leaves("a word across pages of the map", across, 0xfff, 0x80, true);
    leaves("a word across pages of the map", across, 0x1000, 0xfe, false);
    let string = guest!("mov dx, 0x87", "mov ecx, 1", "lea rsi, [rsp - 64]", "rep outsw");
    leaves("OUTS across bytes of the map", string, 0x11, 1, true);
    leaves("OUTS across bytes of the map", string, 0x11, 2, false);
    let nothing = guest!("mov dx, 0x87", "xor ecx, ecx", "rep outsb");
    leaves("OUTS of nothing", nothing, 0x10, 0xff, false);
    prepare();
    io_byte(0x1fff, 0xff);
    check("a map that is not used", begin(in8), exit::VMMCALL);

    let leaves = |register: u32, byte: usize, bits: u8, write: bool, expected: bool| {
        prepare();
        put32(at::WORD3, MSRS);
        put32(at::EXCEPTIONS, 1 << GP);
        msr_byte(byte, bits);
        // What there is not raises an exception, which also leaves.
        let read = guest!("mov rcx, rax", "rdmsr");
        let written = guest!("mov rcx, rax", "xor eax, eax", "xor edx, edx", "wrmsr");
        put(at::RAX, register.into());
        let code = begin(if write { written } else { read });
        check(format_args!("MSR {register:#x}, byte {byte:#x} is {bits:#x}"), code == exit::MSR, expected);
        if expected {
            check("its direction", get(at::INFO1), u64::from(write));
        }
    };
    for (last, byte) in [(0x1fff, 0x7ff), (0xc000_1fff, 0xfff), (0xc001_1fff, 0x17ff)] {
        leaves(last, byte, 0x40, false, true);
        leaves(last, byte, 0xbf, false, false);
        leaves(last, byte, 0x80, true, true);
        leaves(last, byte, 0x7f, true, false);
        leaves(last + 1, byte + 1, 0, false, true);
    }
    leaves(0, 0, 1, false, true);
    leaves(0xbfff_ffff, 0x7ff, 0, false, true);
    leaves(0xc000_ffff, 0x17ff, 0, true, true);
    leaves(0xffff_ffff, 0, 0, false, true);
    // The bits of the registers' upper halves do not count.
    leaves(0x10, 4, 1, false, true);
    prepare();
    put32(at::WORD3, MSRS);
    msr_byte(4, 1);
    put(at::RAX, 0xffff_ffff_0000_0010);
    check("ECX alone counts", begin(guest!("mov rcx, rax", "rdmsr")), exit::MSR);
    prepare();
    msr_byte(4, 3);
    put(at::RAX, 0x10);
    check("a map that is not used", begin(guest!("mov rcx, rax", "rdmsr")), exit::VMMCALL);
}

/// Of an exception that is not of memory and an intercept, the exception comes first, but for a few instructions
/// (table "Instruction Intercepts").
fn what_comes_first() {
    let first = |name: &str, code: u64, word: usize, bits: u32, expected: u64| {
        prepare();
        put32(word, bits);
        put32(at::WORD4, if word == at::WORD4 { bits | 3 } else { 3 });
        put32(at::EXCEPTIONS, 1 << GP | 1 << UD | 1 << PF);
        put(at::RAX, 0x12_3456_7000);
        check(name, begin(code), expected);
    };
    const GENERAL: u64 = exit::EXCEPTION + GP;
    const WRITES: u32 = 0xffff_0000;
    let to = |name: &str, code: u64| first(name, code, at::CR_READS, WRITES, GENERAL);
    to("MOV CR0: PG without PE", guest!("mov eax, 0x80000010", "mov cr0, rax"));
    to("MOV CR0: upper half", guest!("mov rax, cr2", "bts rax, 32", "mov cr0, rax"));
    to("MOV CR0: NW without CD", guest!("mov eax, 0xa0000033", "mov cr0, rax"));
    to("MOV CR0: paging off in 64-bit mode", guest!("mov eax, 0x33", "mov cr0, rax"));
    to("MOV CR3: beyond memory", guest!("mov rax, -1", "mov cr3, rax"));
    to("MOV CR4: reserved", guest!("mov eax, 0x620", "bts rax, 63", "mov cr4, rax"));
    to("MOV CR4: PAE off", guest!("mov eax, 0x600", "mov cr4, rax"));
    to("MOV CR8: 16", guest!("mov eax, 16", "mov cr8, rax"));
    first("MOV CR1", guest!(".byte 0x0f, 0x20, 0xc8"), at::CR_READS, u32::MAX, exit::EXCEPTION + UD);
    let selective = guest!("mov eax, 0x80000010", "mov cr0, rax");
    first("selective: PG without PE", selective, at::WORD3, 1 << 5, GENERAL);
    let lmsw = guest!("lmsw word ptr [rax]");
    first("LMSW, memory", lmsw, at::CR_READS, 1 << 16, exit::EXCEPTION + PF);
    first("LMSW, memory, selective", lmsw, at::WORD3, 1 << 5, exit::EXCEPTION + PF);
    let debug = guest!("mov rax, -1", "mov dr7, rax");
    first("MOV DR7: upper half", debug, at::DR_READS, WRITES, GENERAL);
    let xsetbv = guest!("xor ecx, ecx", "xor eax, eax", "xor edx, edx", "xsetbv");
    if has(1, 2, 26) {
        prepare();
        put(at::CR4, cr4() | 1 << 18);
        put32(at::WORD4, 3 | 1 << 13);
        check("XSETBV", begin(guest!("xor ecx, ecx", "xgetbv", "xsetbv")), 0x8d);
        first("XSETBV without OSXSAVE", xsetbv, at::WORD4, 1 << 13, exit::EXCEPTION + UD);
    }
    if has(0x8000_0008, 1, 4) {
        first("RDPRU", guest!("xor ecx, ecx", "rdpru"), at::WORD4, 1 << 14, 0x8e);
    }
    if has(7, 1, 10) {
        prepare();
        put32(0x14, 1 << 2);
        check("INVPCID", begin(guest!("xor eax, eax", "invpcid rax, [rsp - 64]")), 0xa2);
    }
    first("RDPMC", guest!("mov ecx, 0", "rdpmc"), at::WORD3, 1 << 15, 0x6f);
    first("RDMSR of none", guest!("mov ecx, 0x1fff", "rdmsr"), at::WORD3, MSRS, GENERAL);
    // From memory that there is not.
    let lidt = guest!("lidt [rax]");
    first("LIDT", lidt, at::WORD3, 1 << 10, 0x6a);
    // ICEBP is no exception, though vector 1 is #DB's.
    prepare();
    put32(at::EXCEPTIONS, u32::MAX);
    check("ICEBP is not #DB's intercept's", begin(guest!(".byte 0xf1")), exit::VMMCALL);
    check("its vector", frame(0), DB);
    // INT3 with its own opcode is an exception, with INT's it is not.
    prepare();
    put32(at::EXCEPTIONS, 1 << 3);
    put32(at::WORD3, 1 << 21);
    check("INT3", begin(guest!("int3")), exit::EXCEPTION + 3);
    check("INT 3", begin(guest!(".byte 0xcd, 3")), exit::INTN);
}

/// An exit on an event's way tells of the event.
fn on_the_way() {
    const GONE: u64 = 0x12_3456_7000;
    let fault = guest!("ud2");
    let general = guest!("mov eax, 0xfff8", "mov ds, eax");
    prepare();
    put32(at::EXCEPTIONS, 1 << PF);
    segment(at::IDTR, 0, 0, 4095, GONE);
    check("#UD, no IDT", begin(fault), exit::EXCEPTION + PF);
    check("#UD: address", (get(at::INFO1), get(at::INFO2)), (0, GONE + 16 * UD));
    check("#UD: what was vectored", get(at::INT_INFO), VALID | 3 << 8 | UD);
    check("#UD: RIP", get(at::RIP), fault);
    prepare();
    put32(at::EXCEPTIONS, 1 << PF);
    segment(at::IDTR, 0, 0, 4095, GONE);
    check("#GP, no IDT", begin(general), exit::EXCEPTION + PF);
    check("#GP: what was vectored", get(at::INT_INFO), VALID | 3 << 8 | HAS_CODE | GP | 0xfff8 << 32);
    for (name, event) in [("an interrupt", 0x55), ("an NMI", 2 << 8 | 2), ("INT n", 4 << 8 | 0x55)] {
        prepare();
        put32(at::EXCEPTIONS, 1 << PF);
        segment(at::IDTR, 0, 0, 4095, GONE);
        put(at::INJECT, VALID | event);
        put(at::NEXT_RIP, fault + 2);
        check(format_args!("{name} injected, no IDT"), begin(fault), exit::EXCEPTION + PF);
        check(format_args!("{name}: what was vectored"), get(at::INT_INFO), VALID | event);
        check(format_args!("{name}: RIP"), get(at::RIP), fault);
        // Injected once more it arrives.
        segment(at::IDTR, 0, 0, 4095, &raw const GUEST_IDT as u64);
        put(at::INJECT, get(at::INT_INFO));
        check(format_args!("{name} once more"), enter(), exit::VMMCALL);
        check(format_args!("{name}: vector"), frame(0), event & 0xff);
        check(format_args!("{name}: nothing is vectored now"), get(at::INT_INFO), 0);
    }
    // Double faults.
    let double = |name: &str, bits: u32, expected: u64| {
        prepare();
        put32(at::EXCEPTIONS, bits);
        segment(at::IDTR, 0, 0, 16 * 9 - 1, &raw const GUEST_IDT as u64);
        put32(at::WORD3, 1 << 31);
        check(name, begin(general), expected);
    };
    double("#GP on #GP's way", 1 << GP, exit::EXCEPTION + GP);
    double("#DF", 1 << 8, exit::EXCEPTION + 8);
    check("#DF: error code", get(at::INFO1), 0);
    double("#DF is the guest's", 0, exit::VMMCALL);
    check("#DF: vector and code", (frame(0), frame(1)), (8, 0));
    prepare();
    segment(at::IDTR, 0, 0, 0, 0);
    put32(at::WORD3, 1 << 31);
    put32(at::EXCEPTIONS, 1 << 8);
    check("#DF before the shutdown", begin(general), exit::EXCEPTION + 8);
    put32(at::EXCEPTIONS, 0);
    check("the shutdown", begin(general), exit::SHUTDOWN);
    if !feature(0) {
        return skip("nested page faults on the way");
    }
    const PLACE: u64 = 0x200_0000;
    const FINAL: u64 = 1 << 32;
    // The nested tables have nothing where the IDT is, or the stack.
    prepare();
    nested();
    set_nested(PLACE, |entry| entry & !1);
    segment(at::IDTR, 0, 0, 4095, PLACE);
    check("#UD, IDT not present for the host", begin(fault), exit::NPF);
    check("the access", (get(at::INFO1), get(at::INFO2)), (FINAL | 4, PLACE + 16 * UD));
    check("what was vectored", get(at::INT_INFO), VALID | 3 << 8 | UD);
    prepare();
    nested();
    set_nested(PLACE, |entry| entry & !3);
    put(at::RSP, PLACE + 0x100);
    check("#GP, stack not present for the host", begin(general), exit::NPF);
    check("the access", (get(at::INFO1), get(at::INFO2) & !0xff), (FINAL | 6, PLACE));
    check("what was vectored", get(at::INT_INFO), VALID | 3 << 8 | HAS_CODE | GP | 0xfff8 << 32);
    check("RSP stays", get(at::RSP), PLACE + 0x100);
    set_nested(PLACE, |entry| entry | 3);
    put(at::INJECT, get(at::INT_INFO));
    check("#GP once more", enter(), exit::VMMCALL);
    check("vector and code", (frame(0), frame(1)), (GP, 0xfff8));
    prepare();
    nested();
    set_nested(PLACE, |entry| entry & !2);
    put(at::RSP, PLACE + 0x100);
    put(at::INJECT, VALID | 0x77);
    check("an interrupt, stack read-only", begin(fault), exit::NPF);
    check("the access", get(at::INFO1), FINAL | 7);
    check("what was vectored", get(at::INT_INFO), VALID | 0x77);
}

/// Accessed and dirty bits, levels, sizes and reserved bits of nested tables.
fn nested_tables() {
    if !feature(0) {
        return skip("nested tables");
    }
    const PLACE: u64 = 0x200_0000;
    const FINAL: u64 = 1 << 32;
    let read = guest!("mov cl, [rax]");
    let write = guest!("mov byte ptr [rax], 1");
    let entry = || unsafe {
        let entry = (&raw const NESTED).cast::<u64>().add(1024 + (PLACE >> 21) as usize);
        entry.read_volatile()
    };
    let begins = |code: u64| {
        put(at::RAX, PLACE + 0x1234);
        begin(code)
    };
    prepare();
    nested();
    set_nested(PLACE, |entry| entry & !0x60);
    check("a read", begins(read), exit::VMMCALL);
    check("is accessed, not dirty", entry() & 0x60, 0x20);
    check("a write", begins(write), exit::VMMCALL);
    check("is dirty", entry() & 0x60, 0x60);
    prepare();
    nested();
    set_nested(PLACE, |entry| entry & !0x62);
    check("a write that is not allowed", begins(write), exit::NPF);
    check("is not dirty", entry() & 0x40, 0);
    let width = cpuid(0x8000_0008, 0)[0] & 0xff;
    for bit in [13, 20, width.min(51), 51] {
        prepare();
        nested();
        set_nested(PLACE, |entry| entry | 1 << bit);
        check(format_args!("bit {bit} of a large page"), begins(read), exit::NPF);
        check("is reserved", get(at::INFO1), FINAL | 0xd);
    }
    for bit in [52, 58, 62, 9, 11, 8] {
        prepare();
        nested();
        set_nested(PLACE, |entry| entry | 1 << bit);
        check(format_args!("bit {bit} is free"), begins(read), exit::VMMCALL);
    }
    // Without NX in the host its bit is reserved.
    prepare();
    nested();
    set_nested(PLACE, |entry| entry | 1 << 63);
    check("NX", begins(read), exit::VMMCALL);
    wrmsr(EFER, rdmsr(EFER) & !(1 << 11));
    check("NX without EFER.NXE", begins(read), exit::NPF);
    wrmsr(EFER, rdmsr(EFER) | 1 << 11);
    check("is reserved", get(at::INFO1), FINAL | 0xd);
    // A user's rights of the tables above, and of a page of 1 GiB.
    let table = |n: usize, index: usize, change: &dyn Fn(u64) -> u64| unsafe {
        let entry = (&raw mut NESTED).cast::<u64>().add(512 * n + index);
        entry.write_volatile(change(entry.read_volatile()));
    };
    prepare();
    nested();
    table(1, 0, &|entry| entry & !2);
    put(at::RSP, PLACE + 0x100);
    check("read-only by the pointer", begins(write), exit::NPF);
    check("info", get(at::INFO1) & 0xff, 7);
    if has(0x8000_0001, 3, 26) {
        prepare();
        nested();
        table(1, 0, &|_| 0xe7);
        check("a page of 1 GiB", begins(write), exit::VMMCALL);
        prepare();
        nested();
        table(1, 0, &|_| 0xe7 | 1 << 13);
        check("reserved in it", begins(write), exit::NPF);
        check("info", get(at::INFO1) & 0x1f, 0xf);
    }
    // The guest's own rights come first, and its fault is its own.
    prepare();
    nested();
    set_nested(PLACE, |entry| entry & !1);
    put32(at::EXCEPTIONS, 1 << PF);
    put(at::RAX, 0x12_3456_7000);
    check("the guest's page fault", begin(read), exit::EXCEPTION + PF);
    check("its address", get(at::INFO2), 0x12_3456_7000);
    // Beyond what nested tables reach.
    prepare();
    nested();
    put(at::EFER, rdmsr(EFER) & !0x500);
    put(at::CR0, 0x33);
    put(at::CR4, 0x600);
    segment(at::CS, CODE32, 0xc9b, u32::MAX, 0);
    set_nested(PLACE, |entry| entry & !1);
    put(at::RAX, PLACE);
    check("32 bits", begin(guest!(".code32", "mov cl, [eax]", ".code64")), exit::NPF);
    check("32 bits: info", (get(at::INFO1), get(at::INFO2)), (FINAL | 4, PLACE));
    // PAE: the page directory pointers are read when they are needed.
    let pae = |pointer: u64| unsafe {
        let table = PLACE as *mut u64;
        table.write_volatile(pointer);
        for n in 1..4u64 {
            table.add(n as usize).write_volatile(0);
        }
        let directory = (PLACE + 0x1000) as *mut u64;
        for page in 0..512u64 {
            directory.add(page as usize).write_volatile(page << 21 | 0xe7);
        }
        prepare();
        nested();
        put(at::EFER, rdmsr(EFER) & !0x500);
        put(at::CR0, 0x8001_0033);
        put(at::CR4, 0x620);
        put(at::CR3, PLACE);
        put32(at::EXCEPTIONS, 1 << PF);
        segment(at::CS, CODE32, 0xc9b, u32::MAX, 0);
    };
    let code = guest!(".code32", "mov eax, 0x1234", ".code64");
    pae(PLACE + 0x1000 | 1);
    check("PAE", begin(code), exit::VMMCALL);
    pae(0);
    check("PAE, a pointer that is not present", begin(code), exit::EXCEPTION + PF);
    check("PAE: info", (get(at::INFO1) & 0xf, get(at::INFO2)), (0, code));
    pae(PLACE + 0x1000 | 1 | 1 << 62);
    check("PAE, a reserved bit", begin(code), exit::EXCEPTION + PF);
    check("PAE: info", get(at::INFO1) & 0xf, 9);
    pae(PLACE + 0x1000 | 1);
    set_nested(PLACE, |entry| entry & !1);
    check("PAE, pointers not present for the host", begin(code), exit::NPF);
    check("PAE: info", (get(at::INFO1), get(at::INFO2)), (1 << 33 | 6, PLACE));
    pae(PLACE + 0x1000 | 1);
    let reload = guest!(".code32", "mov eax, cr3", "mov cr3, eax", ".code64");
    check("PAE, MOV CR3", begin(reload), exit::VMMCALL);
}

/// Virtual-8086 mode, which VMRUN can enter.
fn vm86() {
    let start = |code: u64, iopl: u64| {
        prepare();
        put(at::EFER, rdmsr(EFER) & !0x500);
        put(at::CR0, 0x33);
        put(at::CR4, 0x600);
        for n in 0..6 {
            segment(at::SEGMENTS + 16 * n, 0, 0x0f3, 0xffff, 0);
        }
        segment(at::CS, 0x1000, 0x0f3, 0xffff, code & !0xf);
        segment(at::SEGMENTS + 0x20, 0x1000, 0x0f3, 0xffff, stack_top() & !0xfff);
        put(at::RSP, 0x800);
        put(at::RFLAGS, 1 << 17 | iopl << 12 | 2);
        put32(at::EXCEPTIONS, 1 << GP);
        // The level is what the mode has.
        put8(at::CPL, 0);
    };
    let code = guest!(".code16", "mov ax, cs", "vmmcall", ".code64");
    start(code, 0);
    check("virtual-8086 mode", begin(code & 0xf), exit::VMMCALL);
    check("CS and CPL", (get(at::RAX) & 0xffff, get(at::CPL) & 0xff), (0x1000, 3));
    for (name, code, bit, expected) in [
        ("PUSHF", guest!(".code16", "pushf", ".code64"), 16, 0x70),
        ("POPF", guest!(".code16", "popf", ".code64"), 17, 0x71),
        ("IRET", guest!(".code16", "iret", ".code64"), 20, 0x74),
        ("INT n", guest!(".code16", "int 0x30", ".code64"), 21, exit::INTN),
    ] {
        start(code, 0);
        check(format_args!("{name}: IOPL"), begin(code & 0xf), exit::EXCEPTION + GP);
        start(code, 0);
        put32(at::WORD3, 1 << bit);
        check(format_args!("{name}: intercepted first"), begin(code & 0xf), expected);
        start(code, 3);
        put32(at::WORD3, 1 << bit);
        check(format_args!("{name}: IOPL 3"), begin(code & 0xf), expected);
    }
    let hlt = guest!(".code16", "hlt", ".code64");
    start(hlt, 3);
    put32(at::WORD3, 1 << 24);
    check("HLT: its exception comes first", begin(hlt & 0xf), exit::EXCEPTION + GP);
}

/// A guest that waits, and what ends that.
fn waiting() {
    const REQUEST: u64 = 1 << 8;
    let code = guest!("sti", "hlt", "nop");
    prepare();
    put(at::INT_CTL, 0x66 << 32 | 6 << 16 | REQUEST);
    check("a virtual interrupt ends HLT", begin(code), exit::VMMCALL);
    check("vector and RIP", (frame(0), frame(1)), (0x66, code + 2));
    prepare();
    put32(at::WORD3, 1 << 24);
    check("HLT in the shadow of STI", begin(code), HLT);
    check("RIP and shadow", (get(at::RIP), get(at::SHADOW) & 1), (code + 1, 1));
    put(at::RIP, code + 2);
    put(at::SHADOW, 0);
    put32(at::WORD3, 0);
    check("and after it", enter(), exit::VMMCALL);
    prepare();
    put(at::INT_CTL, 0x66 << 32 | 6 << 16 | REQUEST);
    put32(at::WORD3, 1 << 4);
    check("VINTR ends HLT", begin(code), exit::VINTR);
    check("RIP", get(at::RIP), code + 2);
    check("it waits still", get(at::INT_CTL) & REQUEST, REQUEST);
}

/// NMIs that the processor keeps for the guest (section 15.21.10).
fn virtual_nmis() {
    if !feature(25) {
        return skip("virtual NMIs");
    }
    const PENDING: u64 = 1 << 11;
    const MASKED: u64 = 1 << 12;
    const ENABLED: u64 = 1 << 26;
    let state = || get(at::INT_CTL) & (PENDING | MASKED);
    let code = guest!("nop", "nop");
    let start = |control: u64| {
        prepare();
        put32(at::WORD3, 1 << 1);
        put(at::INT_CTL, ENABLED | control);
    };
    start(0);
    put32(at::WORD3, 0);
    check("without the intercept of NMIs", begin(code), exit::INVALID);
    start(0);
    check("none", (begin(code), get(at::RSP), state()), (exit::VMMCALL, stack_top(), 0));
    start(PENDING);
    check("a virtual NMI", begin(code), exit::VMMCALL);
    check("vector and RIP", (frame(0), frame(1)), (2, code));
    check("it is masked then", state(), MASKED);
    start(PENDING | MASKED);
    check("one that is masked", begin(code), exit::VMMCALL);
    check("waits", (get(at::RSP), state()), (stack_top(), PENDING | MASKED));
    // IRET lets it in.
    let back = guest!("mov rcx, rsp", "push 0x10", "push rcx", "pushfq", "push 8", "lea rax, [rip + 7f]",
        "push rax", "iretq", "7: nop");
    start(PENDING | MASKED);
    check("IRET", begin(back), exit::VMMCALL);
    check("lets it in", (frame(0), frame(1), state()), (2, get(at::RAX), MASKED));
    start(MASKED);
    check("IRET", (begin(back), state()), (exit::VMMCALL, 0));
    // In a shadow it waits for one instruction.
    start(PENDING);
    put(at::SHADOW, 1);
    check("in a shadow", begin(code), exit::VMMCALL);
    check("RIP", (frame(0), frame(1)), (2, code + 1));
    let sti = guest!("sti", "hlt", "nop");
    start(PENDING | MASKED);
    put(at::INT_CTL, get(at::INT_CTL) | 0x66 << 32 | 6 << 16 | 1 << 8);
    check("a virtual interrupt comes meanwhile", (begin(sti), frame(0)), (exit::VMMCALL, 0x66));
    // An NMI that is injected masks the next.
    start(PENDING);
    put(at::INJECT, VALID | 2 << 8 | 2);
    check("injected", begin(code), exit::VMMCALL);
    check("the other waits", (frame(0), frame(1), state()), (2, code, PENDING | MASKED));
    if feature(16) {
        let flags = guest!("nop", "stgi", "nop");
        start(PENDING | 1 << 25);
        check("the guest's GIF holds it off", begin(flags), exit::VMMCALL);
        check("until STGI", (frame(0), frame(1)), (2, flags + 4));
    }
    // What there is on its way is told.
    start(PENDING);
    put32(at::EXCEPTIONS, 1 << PF);
    segment(at::IDTR, 0, 0, 4095, 0x12_3456_7000);
    check("no IDT", begin(code), exit::EXCEPTION + PF);
    check("what was vectored", (get(at::INT_INFO), state()), (VALID | 2 << 8 | 2, MASKED));
}

/// What a guest writes to the time-stamp counter is its host's; what it reads has the offset.
fn counter() {
    const TSC: u32 = 0x10;
    const ADJUST: u32 = 0x3b;
    let adjusts = has(7, 1, 1);
    let adjust = || if adjusts { rdmsr(ADJUST) } else { 0 };
    let before = adjust();
    prepare();
    put(at::TSC_OFFSET, 1 << 50);
    let code = guest!("mov ecx, 0x10", "mov edx, 0x100", "xor eax, eax", "wrmsr", "rdmsr",
        "shl rdx, 32", "or rax, rdx");
    let was = rdtsc();
    check("WRMSR to the counter", begin(code), exit::VMMCALL);
    let now = rdtsc();
    check("the host's counter", now >> 40, 1);
    check("RDMSR has the offset", get(at::RAX) >> 40, 1 << 10 | 1);
    if adjusts {
        let moved = adjust().wrapping_sub(before);
        check("TSC_ADJUST follows", moved <= (0x100u64 << 32) - was && moved > (0x100 << 32) - was - (1 << 36), true);
        wrmsr(ADJUST, before);
        check("and back", rdtsc() >> 40, was >> 40);
        prepare();
        put(at::TSC_OFFSET, 1 << 50);
        begin(guest!("mov ecx, 0x3b", "rdmsr"));
        check("TSC_ADJUST is the host's", get(at::RAX) as u32, before as u32);
    } else {
        wrmsr(TSC, was);
    }
    if has(0x8000_0001, 3, 27) {
        prepare();
        put(at::TSC_OFFSET, 1 << 50);
        begin(guest!("rdtscp", "shl rdx, 32", "or rax, rdx"));
        check("RDTSCP", get(at::RAX) >> 48, 4);
    }
}

/// A debug exception: told by [`last`], and not again.
fn on_debug(trap: &mut Trap) {
    trap.rflags = trap.rflags & !0x100 | 0x1_0000;
}

/// VMRUN under a debugger.
fn debugged() {
    handle(DB, Some(on_debug));
    // A step over VMRUN ends after it, when the host is back.
    prepare();
    put(at::RIP, guest!("nop"));
    let after: u64;
    forget();
    unsafe {
        asm!("push rbx", "push rbp", "pushfq", "or qword ptr [rsp], 0x100", "mov rsi, rax",
            "lea rax, [rip + 5f]", "mov [rip + RECOVER_SP], rax", "mov rax, rsi", "clgi", "popfq",
            "vmrun rax", "5: nop", "stgi", "pop rbp", "pop rbx",
            inout("rax") &raw const BLOCK as u64 => _, out("rcx") _, out("rdx") _,
            out("rsi") _, out("rdi") _, out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            out("r12") _, out("r13") _, out("r14") _, out("r15") _);
        after = (&raw const RECOVER_SP).read_volatile();
    }
    check("a step over VMRUN: the guest ran", get(at::CODE), exit::VMMCALL);
    check("a step over VMRUN", (last().trap.vector, last().trap.rip, last().count), (DB, after, 1));
    check("DR6", last().dr6 & 0x4000, 0x4000);
    // A breakpoint of the host's is not the guest's.
    prepare();
    let code = guest!("nop");
    put(at::RIP, code);
    forget();
    unsafe { asm!("mov dr0, {}", "mov dr7, {}", in(reg) code, in(reg) 0x402u64) };
    check("the guest has its own DR7", enter(), exit::VMMCALL);
    check("no breakpoint", last().trap.vector, NONE);
    check("the host's DR7 is gone", dr7(), 0x400);
    prepare();
    put(at::DR7, 0x402);
    put32(at::EXCEPTIONS, 1 << DB);
    check("the guest's breakpoint", begin(code), exit::EXCEPTION + DB);
    check("its RIP and DR6", (get(at::RIP), get(at::DR6) & 0xf), (code, 1));
    put(at::RFLAGS, 0x1_0002);
    put(at::DR6, 0xffff_0ff0);
    check("RF", enter(), exit::VMMCALL);
    check("is clear after an instruction", get(at::RFLAGS) >> 16 & 1, 0);
    // While GIF is clear breakpoints are not met.
    forget();
    unsafe {
        asm!("lea {0}, [rip + 5f]", "mov dr0, {0}", "mov {1}, 0x402", "clgi", "mov dr7, {1}", "5: nop",
            "mov {1}, 0x400", "mov dr7, {1}", "stgi", out(reg) _, out(reg) _);
    }
    check("a breakpoint while GIF is clear", last().trap.vector, NONE);
    forget();
    unsafe {
        asm!("lea {0}, [rip + 5f]", "mov dr0, {0}", "mov {1}, 0x402", "mov dr7, {1}", "5: nop",
            "mov {1}, 0x400", "mov dr7, {1}", out(reg) _, out(reg) _);
    }
    check("and while it is set", last().trap.vector, DB);
    handle(DB, None);
}

/// Interrupts of the board's, where there is a controller.
fn interrupts() {
    if xapic::read(xapic::VERSION) == u32::MAX {
        return skip("a local APIC");
    }
    xapic::write(xapic::SVR, 0x1ff);
    handle(0x62, Some(|_| xapic::write(xapic::EOI, 0)));
    let send = |command: u32| xapic::write(xapic::ICR, command);
    const SELF: u32 = 0x4_4062;
    /// An NMI to the processor with this identity.
    fn nmi() {
        xapic::write(xapic::ICR + 0x10, xapic::read(0x20) & 0xff00_0000);
        xapic::write(xapic::ICR, 0x4400);
    }
    let code = guest!("nop", "sti", "nop", "nop", "cli");
    // With virtual masking and the host's flag clear, the guest's does nothing to them.
    prepare();
    put(at::INT_CTL, MASKING);
    put32(at::WORD3, 1);
    forget();
    send(SELF);
    check("masked by the host", begin(code), exit::VMMCALL);
    check("nobody took it", last().trap.vector, NONE);
    unsafe { asm!("sti", "nop", "cli") };
    check("the host takes it", last().trap.vector, 0x62);
    // Without, the guest's flag lets it through to the intercept.
    prepare();
    put32(at::WORD3, 1);
    forget();
    send(SELF);
    check("after the guest's STI", begin(code), INTR);
    check("in its shadow", get(at::RIP), code + 3);
    check("no vector is told", get(at::INFO1) | get(at::INT_INFO), 0);
    unsafe { asm!("sti", "nop", "cli") };
    check("the host takes it", last().trap.vector, 0x62);
    // The priority of the guest's virtual interrupt does not matter to it.
    prepare();
    put32(at::WORD3, 1 | 1 << 4);
    put(at::INT_CTL, 0x66 << 32 | 15 << 16 | 1 << 8);
    put(at::RFLAGS, 0x202);
    forget();
    send(SELF);
    check("a real interrupt and a virtual one", begin(guest!("nop")), INTR);
    unsafe { asm!("sti", "nop", "cli") };
    // HLT ends with one that is intercepted.
    prepare();
    put(at::INT_CTL, MASKING);
    put32(at::WORD3, 1);
    put(at::RAX, xapic::BASE + u64::from(xapic::ICR));
    let halts = guest!("mov dword ptr [rax], 0x44062", "hlt", "nop");
    forget();
    put(at::RIP, halts);
    unsafe {
        asm!("push rbx", "push rbp", "clgi", "sti", "vmrun rax", "cli", "stgi", "pop rbp", "pop rbx",
            inout("rax") &raw const BLOCK => _,
            out("rcx") _, out("rdx") _, out("rsi") _, out("rdi") _, out("r8") _, out("r9") _,
            out("r10") _, out("r11") _, out("r12") _, out("r13") _, out("r14") _, out("r15") _);
    }
    check("in the guest, by the host's flag", get(at::CODE), INTR);
    unsafe { asm!("sti", "nop", "cli") };
    check("the host takes it", last().trap.vector, 0x62);

    // NMIs.
    handle(2, Some(|_| ()));
    prepare();
    put32(at::WORD3, 1 << 1);
    put(at::RFLAGS, 2);
    forget();
    unsafe { asm!("clgi") };
    nmi();
    check("held off by GIF", last().trap.vector, NONE);
    let code = guest!("nop");
    check("NMI", begin(code), NMI);
    check("before the guest's first instruction", get(at::RIP), code);
    check("the host has it once GIF is set", last().trap.vector, 2);
    prepare();
    forget();
    unsafe { asm!("clgi") };
    nmi();
    check("an NMI that is not intercepted", begin(code), exit::VMMCALL);
    check("is the guest's", (frame(0), frame(1)), (2, code));
    check("and not the host's", last().trap.vector, NONE);
    // It is held off until an IRET, here the host's own.
    nmi();
    check("the next is held off", last().trap.vector, NONE);
    unsafe {
        asm!("mov {1}, rsp", "push 0x10", "push {1}", "pushfq", "push 8", "lea {0}, [rip + 5f]", "push {0}", "iretq",
            "5:", "nop", out(reg) _, out(reg) _);
    }
    check("until IRET", last().trap.vector, 2);
    handle(2, None);
    handle(0x62, None);
}

pub fn run() {
    if !has(0x8000_0001, 2, 2) {
        return skip("SVM");
    }
    wrmsr(EFER, rdmsr(EFER) | SVME);
    wrmsr(HSAVE, &raw const SAVE as u64);
    ends_of_maps();
    what_comes_first();
    on_the_way();
    nested_tables();
    vm86();
    waiting();
    virtual_nmis();
    counter();
    debugged();
    interrupts();
}
