//! AMD's virtual machine mode: VMRUN's checks, intercepts with what their exits tell, event injection,
//! virtual interrupts, nested paging (APM volume 2, chapter 15 and appendices B and C).

use core::arch::asm;

use crate::kit::*;
use crate::{attempt, user};

#[macro_use]
#[path = "../kit/vmcb.rs"]
mod vmcb;
use vmcb::*;

fn host() {
    let own = &raw const BLOCK as u64;
    check("VMRUN without EFER.SVME", attempt!(["vmrun rax"], in("rax") own), UD);
    check("CLGI without it", attempt!(["clgi"]), UD);
    wrmsr(EFER, rdmsr(EFER) | SVME);
    check("EFER.SVME", rdmsr(EFER) & SVME, SVME);
    check("VM_CR can be read", try_rdmsr(VM_CR).map(|value| value >> 4 & 1), Some(0));
    check("VM_HSAVE_PA, not aligned", try_wrmsr(HSAVE, &raw const SAVE as u64 + 8), GP);
    let width = cpuid(0x8000_0008, 0)[0] & 0xff;
    check("VM_HSAVE_PA, beyond memory", try_wrmsr(HSAVE, 1 << width), GP);
    prepare();
    wrmsr(HSAVE, 0);
    check("VMRUN without a save area", attempt!(["vmrun rax", "stgi"], in("rax") own), GP);
    wrmsr(HSAVE, &raw const SAVE as u64);
    check("VM_HSAVE_PA", rdmsr(HSAVE), &raw const SAVE as u64);
    prepare();
    check("VMRUN, not aligned", attempt!(["vmrun rax"], in("rax") own + 8), GP);
    check("VMRUN, beyond memory", attempt!(["vmrun rax"], in("rax") 1u64 << width), GP);
    check("VMLOAD, not aligned", attempt!(["vmload rax"], in("rax") own + 8), GP);
    check("VMSAVE, beyond memory", attempt!(["vmsave rax"], in("rax") 1u64 << width), GP);
    // Where KVM is offered it is a call that there is not.
    let is_kvm = cpuid(0x4000_0000, 0)[1] == 0x4b4d_564b;
    let called = attempt!(["vmmcall"], inout("rax") 0x1234u64 => _);
    check("VMMCALL in the host", called, if is_kvm { NONE } else { UD });
    check("VMRUN at CPL 3", user!(["vmrun rax"], in("rax") own), GP);
    check("CLGI at CPL 3", user!(["clgi"]), GP);
    check("INVLPGA at CPL 3", user!(["invlpga rax, ecx"], in("rax") 0, in("ecx") 1), GP);
    check("INVLPGA", attempt!(["invlpga rax, ecx"], in("rax") 0, in("ecx") 1), NONE);
}

fn simple() {
    prepare();
    let code = guest!("mov rax, 0x123456789abcdef0", "mov r8, 5", "stc");
    check("VMMCALL leaves", begin(code), exit::VMMCALL);
    check("RAX", get(at::RAX), 0x1234_5678_9abc_def0);
    check("RFLAGS", get(at::RFLAGS), 3);
    check("CPL", get(at::CPL) & 0xff, 0);
    check("INFO", (get(at::INFO1), get(at::INFO2), get(at::INT_INFO)), (0, 0, 0));
    if has_next_rip() {
        check("next RIP", get(at::NEXT_RIP), get(at::RIP) + 3);
    }
    check("the host's CR0, CR3", (cr0(), cr3()), (get(at::CR0), get(at::CR3)));
    check("the host's DR7", dr7(), 0x400);
    // It goes on where it was.
    put(at::RIP, get(at::RIP) + 3);
    check("again", enter(), exit::VMMCALL);
    // CR2, DR6, DR7 and CR4 are its own.
    prepare();
    put(at::CR2, 0x7777);
    put(at::DR7, 0x700);
    let code = guest!(
        "mov rax, cr2", "mov rbx, dr7", "mov rcx, 0x5555", "mov cr2, rcx", "mov rcx, cr4",
        "or rcx, 4", "mov cr4, rcx", "shl rbx, 32", "or rax, rbx");
    set_cr2(0x1111);
    check("registers", begin(code), exit::VMMCALL);
    check("CR2 and DR7 in the guest", get(at::RAX), 0x700_0000_7777);
    check("CR2 and CR4 after", (get(at::CR2), get(at::CR4)), (0x5555, cr4() | 4));
    check("the host's CR4", cr4() & 4, 0);
    // CPL 3.
    prepare();
    put8(at::CPL, 3);
    segment(at::CS, USER_CODE64, 0xafb, u32::MAX, 0);
    segment(at::SEGMENTS + 0x20, USER_DATA, 0xcf3, u32::MAX, 0);
    put(at::RSP, stack_top() + USER_ALIAS);
    check("CPL 3", begin(guest!("mov rax, cs") + USER_ALIAS), exit::VMMCALL);
    check("CS and CPL", (get(at::RAX), get(at::CPL) & 0xff), (u64::from(USER_CODE64), 3));
}

fn checks() {
    let code = guest!("nop");
    let refused = |name: &str, change: &dyn Fn()| {
        prepare();
        change();
        put(at::RAX, 0x4242);
        check(name, begin(code), exit::INVALID);
        check("the guest's state stays", (get(at::RAX), get(at::RIP)), (0x4242, code));
    };
    let width = cpuid(0x8000_0008, 0)[0] & 0xff;
    refused("EFER.SVME", &|| put(at::EFER, rdmsr(EFER) & !SVME));
    refused("EFER, reserved", &|| put(at::EFER, rdmsr(EFER) | 1 << 63));
    refused("EFER, reserved", &|| put(at::EFER, rdmsr(EFER) | 1 << 9));
    refused("CR0.NW without CD", &|| put(at::CR0, cr0() | 1 << 29));
    refused("CR0, upper half", &|| put(at::CR0, cr0() | 1 << 32));
    refused("CR3, reserved", &|| put(at::CR3, cr3() | 1 << 63));
    refused("CR3, beyond memory", &|| put(at::CR3, cr3() | 1 << width));
    refused("CR4, reserved", &|| put(at::CR4, cr4() | 1 << 63));
    refused("CR4, reserved", &|| put(at::CR4, cr4() | 1 << 15));
    refused("DR6, upper half", &|| put(at::DR6, 0xffff_0ff0 | 1 << 32));
    refused("DR7, upper half", &|| put(at::DR7, 0x400 | 1 << 32));
    refused("long mode without PAE", &|| put(at::CR4, cr4() & !0x20));
    refused("long mode without PE", &|| put(at::CR0, cr0() & !1));
    refused("CS with L and D", &|| put16(at::CS + 2, 0xe9b));
    refused("VMRUN is not intercepted", &|| put32(at::WORD4, 2));
    refused("ASID 0", &|| put32(at::ASID, 0));
    refused("the map of registers", &|| put(at::MSRPM, (1 << width) - 4096));
    refused("the map of ports", &|| put(at::IOPM, (1 << width) - 4096));
    for kind in [1, 5, 6, 7] {
        refused("an event of no type", &|| put(at::INJECT, VALID | kind << 8 | 0x30));
    }
    refused("NMI is no exception", &|| put(at::INJECT, VALID | 3 << 8 | 2));
    refused("no exception", &|| put(at::INJECT, VALID | 3 << 8 | 32));
    refused("INTO's exception in 64-bit mode", &|| put(at::INJECT, VALID | 3 << 8 | 4));
    refused("BOUND's exception in 64-bit mode", &|| put(at::INJECT, VALID | 3 << 8 | 5));
    if feature(0) {
        refused("PAT", &|| {
            nested();
            put(at::PAT, 2);
        });
        refused("N_CR3", &|| {
            nested();
            put(at::N_CR3, get(at::N_CR3) | 1 << width);
        });
    }
    // What is not checked.
    prepare();
    put(at::CR0, cr0() | 3 << 29);
    check("CD and NW", begin(code), exit::VMMCALL);
    prepare();
    put(at::EFER, rdmsr(EFER) & !(1 << 10));
    check("EFER.LMA is derived", begin(code), exit::VMMCALL);
    check("and set then", get(at::EFER) >> 10 & 1, 1);
    prepare();
    put(at::IOPM, get(at::IOPM) | 0xfff);
    check("the map's lowest bits", begin(code), exit::VMMCALL);
    prepare();
    put(at::INJECT, 7 << 8);
    check("an event that is not valid", begin(code), exit::VMMCALL);
}

/// An instruction that is intercepted by a bit: where it left, and what it told.
macro_rules! intercepted {
    ($name:literal, $word:expr, $bit:expr, $code:expr, $info:expr, [$($line:expr),+]) => {{
        let (start, end): (u64, u64);
        #[allow(unused_unsafe)]
        unsafe {
            asm!("lea {0}, [rip + 66f]", "lea {1}, [rip + 77f]", "jmp 88f",
                "66:", $($line,)+ "77: vmmcall", "88:", out(reg) start, out(reg) end);
        }
        prepare();
        let word = unsafe { (&raw mut BLOCK).cast::<u8>().add($word).cast::<u32>() };
        unsafe { word.write_unaligned(word.read_unaligned() | 1 << $bit) };
        put(at::RAX, &raw const OTHER_BLOCK as u64);
        check($name, begin(start), $code);
        check(concat!($name, ": RIP"), get(at::RIP), start);
        if has_next_rip() {
            check(concat!($name, ": next RIP"), get(at::NEXT_RIP), end);
        }
        let info: u64 = $info;
        check(concat!($name, ": info"), get(at::INFO1), if has_assists() { info } else { 0 });
    }};
}

fn instructions() {
    const MOV: u64 = 1 << 63;
    intercepted!("MOV from CR0", at::CR_READS, 0, 0, MOV | 3, ["mov rbx, cr0"]);
    intercepted!("MOV from CR3", at::CR_READS, 3, 3, MOV | 9, ["mov r9, cr3"]);
    intercepted!("MOV from CR8", at::CR_READS, 8, 8, MOV | 2, ["mov rdx, cr8"]);
    intercepted!("SMSW", at::CR_READS, 0, 0, 0, ["smsw ecx"]);
    intercepted!("MOV to CR2", at::CR_READS, 18, 0x12, MOV | 12, ["mov cr2, r12"]);
    // To others, values that they can have.
    let to = |n: u64, value: u64, code: u64| {
        prepare();
        put16(at::CR_WRITES, 1 << n);
        put(at::RAX, value);
        check(format_args!("MOV to CR{n}"), begin(code), 0x10 + n);
        let len = if n == 8 { 4 } else { 3 };
        check("RIP", get(at::RIP), code + 3);
        if has_next_rip() {
            check("next RIP", get(at::NEXT_RIP), code + 3 + len);
        }
        check("info", get(at::INFO1), if has_assists() { MOV | 1 } else { 0 });
    };
    to(0, cr0(), guest!("mov rcx, rax", "mov cr0, rcx"));
    to(3, cr3(), guest!("mov rcx, rax", "mov cr3, rcx"));
    to(4, cr4(), guest!("mov rcx, rax", "mov cr4, rcx"));
    to(8, 15, guest!("mov rcx, rax", "mov cr8, rcx"));
    intercepted!("CLTS", at::CR_READS, 16, 0x10, 0, ["clts"]);
    intercepted!("LMSW", at::CR_READS, 16, 0x10, 0, ["lmsw ax"]);
    intercepted!("MOV from DR0", at::DR_READS, 0, 0x20, 3, ["mov rbx, dr0"]);
    intercepted!("MOV from DR6", at::DR_READS, 6, 0x26, 10, ["mov r10, dr6"]);
    intercepted!("MOV to DR7", at::DR_READS, 23, 0x37, 1, ["mov dr7, rcx"]);
    intercepted!("SIDT", at::WORD3, 6, 0x66, 0, ["sidt [rsp - 64]"]);
    intercepted!("SGDT", at::WORD3, 7, 0x67, 0, ["sgdt [rsp - 64]"]);
    intercepted!("SLDT", at::WORD3, 8, 0x68, 0, ["sldt eax"]);
    intercepted!("STR", at::WORD3, 9, 0x69, 0, ["str eax"]);
    intercepted!("LIDT", at::WORD3, 10, 0x6a, 0, ["lidt [rsp - 64]"]);
    intercepted!("LGDT", at::WORD3, 11, 0x6b, 0, ["lgdt [rsp - 64]"]);
    intercepted!("LLDT", at::WORD3, 12, 0x6c, 0, ["lldt ax"]);
    intercepted!("LTR", at::WORD3, 13, 0x6d, 0, ["ltr ax"]);
    intercepted!("RDTSC", at::WORD3, 14, 0x6e, 0, ["rdtsc"]);
    intercepted!("PUSHF", at::WORD3, 16, 0x70, 0, ["pushfq"]);
    intercepted!("POPF", at::WORD3, 17, 0x71, 0, ["popfq"]);
    intercepted!("CPUID", at::WORD3, 18, 0x72, 0, ["cpuid"]);
    intercepted!("RSM", at::WORD3, 19, 0x73, 0, [".byte 0x0f, 0xaa"]);
    intercepted!("IRET", at::WORD3, 20, 0x74, 0, ["iretq"]);
    intercepted!("INT n", at::WORD3, 21, exit::INTN, 0x90, ["int 0x90"]);
    intercepted!("INVD", at::WORD3, 22, 0x76, 0, ["invd"]);
    intercepted!("PAUSE", at::WORD3, 23, 0x77, 0, ["pause"]);
    intercepted!("HLT", at::WORD3, 24, 0x78, 0, ["hlt"]);
    intercepted!("INVLPG", at::WORD3, 25, 0x79, 0x1234_5000, ["invlpg [0x12345000]"]);
    intercepted!("VMRUN", at::WORD4, 0, 0x80, 0, ["vmrun rax"]);
    intercepted!("VMLOAD", at::WORD4, 2, 0x82, 0, ["vmload rax"]);
    intercepted!("VMSAVE", at::WORD4, 3, 0x83, 0, ["vmsave rax"]);
    intercepted!("STGI", at::WORD4, 4, 0x84, 0, ["stgi"]);
    intercepted!("CLGI", at::WORD4, 5, 0x85, 0, ["clgi"]);
    intercepted!("ICEBP", at::WORD4, 8, 0x88, 0, [".byte 0xf1"]);
    intercepted!("WBINVD", at::WORD4, 9, 0x89, 0, ["wbinvd"]);
    if has(1, 2, 3) {
        intercepted!("MONITOR", at::WORD4, 10, 0x8a, 0, ["monitor"]);
        intercepted!("MWAIT", at::WORD4, 11, 0x8b, 0, ["mwait"]);
        let armed = |name: &str, code: u64, expected: u64| {
            prepare();
            put32(at::WORD4, 3 | 1 << 12);
            put(at::RAX, &raw const SAVE as u64);
            check(name, begin(code), expected);
        };
        let waits = guest!("xor ecx, ecx", "xor edx, edx", "monitor", "xor eax, eax", "mwait");
        armed("MWAIT that waits for something", waits, 0x8c);
        let waits_not = guest!("xor ecx, ecx", "xor eax, eax", "mwait");
        armed("MWAIT that waits for nothing", waits_not, exit::VMMCALL);
    }
    if has(0x8000_0001, 3, 27) {
        intercepted!("RDTSCP", at::WORD4, 7, 0x87, 0, ["rdtscp"]);
    }
    // Exceptions come before: the instruction is refused.
    prepare();
    put32(at::WORD3, 1 << 6 | 1 << 24);
    put8(at::CPL, 3);
    segment(at::CS, USER_CODE64, 0xafb, u32::MAX, 0);
    segment(at::SEGMENTS + 0x20, USER_DATA, 0xcf3, u32::MAX, 0);
    put32(at::EXCEPTIONS, 1 << GP);
    check("HLT at CPL 3", begin(guest!("hlt") + USER_ALIAS), exit::EXCEPTION + GP);
    // VMMCALL that nobody intercepts.
    prepare();
    put32(at::WORD4, 1);
    put32(at::EXCEPTIONS, 1 << UD);
    check("VMMCALL without intercept", begin(guest!("nop")), exit::EXCEPTION + UD);
}

fn control_register_0() {
    let leaves = |name: &str, code: u64, expected: u64| {
        prepare();
        put32(at::WORD3, 1 << 5);
        put(at::RAX, cr0());
        check(name, begin(code), expected);
    };
    const SELECTIVE: u64 = exit::CR0_SELECTIVE;
    leaves("the same value", guest!("mov cr0, rax"), exit::VMMCALL);
    leaves("TS", guest!("or rax, 8", "mov cr0, rax"), exit::VMMCALL);
    leaves("MP", guest!("xor rax, 2", "mov cr0, rax"), exit::VMMCALL);
    leaves("CD", guest!("bts rax, 30", "mov cr0, rax"), SELECTIVE);
    leaves("AM", guest!("btc rax, 18", "mov cr0, rax"), SELECTIVE);
    leaves("CLTS", guest!("clts"), exit::VMMCALL);
    leaves("LMSW, whatever it writes", guest!("lmsw ax"), SELECTIVE);
    prepare();
    put32(at::CR_READS, 1 << 16);
    put32(at::WORD3, 1 << 5);
    put(at::RAX, cr0());
    check("both: the same value", begin(guest!("mov cr0, rax")), 0x10);
}

/// Of PAUSEs that follow each other fast, the one after as many as the filter counts leaves.
fn pauses() {
    if !feature(10) {
        return skip("the pause filter");
    }
    let ends = |name: &str, pauses: u64, count: u64, threshold: u64, expected: u64| {
        prepare();
        put32(at::WORD3, 1 << 23);
        put32(0x3c, (count << 16 | threshold) as u32);
        let code = guest!("2:", "pause", "mov ecx, 500", "3:", "dec ecx", "jnz 3b", "dec rax", "jnz 2b");
        put(at::RAX, pauses);
        check(name, begin(code), expected);
    };
    ends("fewer PAUSEs than the filter counts", 10, 11, 0, exit::VMMCALL);
    ends("as many", 10, 10, 0, exit::VMMCALL);
    ends("more", 10, 9, 0, 0x77);
    if feature(12) {
        ends("too slow for the threshold", 40, 9, 1, exit::VMMCALL);
        ends("fast enough", 40, 9, 0xffff, 0x77);
    }
}

fn exceptions() {
    let raised = |name: &str, vector: u64, code: u64, info: u64| {
        prepare();
        put32(at::EXCEPTIONS, 1 << vector);
        put(at::CR2, 0x1357);
        put(at::RAX, 0x12_3456_7000);
        check(name, begin(code), exit::EXCEPTION + vector);
        check(format_args!("{name}: error code"), get(at::INFO1), info);
        check(format_args!("{name}: nothing was vectored"), get(at::INT_INFO), 0);
    };
    raised("#UD", UD, guest!("ud2"), 0);
    raised("#DE", DE, guest!("xor ecx, ecx", "div ecx"), 0);
    raised("#GP", GP, guest!("mov eax, 0xfff8", "mov ds, eax"), 0xfff8);
    raised("#PF", PF, guest!("mov byte ptr [rax], 1"), 2);
    check("#PF: address", get(at::INFO2), 0x12_3456_7000);
    check("#PF: CR2 stays", get(at::CR2), 0x1357);
    let code = guest!("nop", "int3");
    raised("#BP", BP, code, 0);
    check("#BP: RIP", get(at::RIP), code + 1);
    if has_next_rip() {
        check("#BP: next RIP", get(at::NEXT_RIP), code + 2);
    }
    let code = guest!("push 0x102", "popfq", "nop");
    raised("#DB", DB, code, 0);
    check("#DB: RIP is after the instruction", get(at::RIP) > code, true);
    check("#DB: DR6.BS", get(at::DR6) & 0x4000, 0x4000);
    // INT n is no exception, and neither is one that has its own intercept.
    prepare();
    put32(at::EXCEPTIONS, u32::MAX);
    check("INT 3 as INT n", begin(guest!(".byte 0xcd, 3")), exit::VMMCALL);
    check("its vector", frame(0), 3);
    // A shutdown.
    prepare();
    segment(at::IDTR, 0, 0, 0, 0);
    put32(at::WORD3, 1 << 31);
    check("shutdown", begin(guest!("ud2")), exit::SHUTDOWN);
}

fn ports() {
    let info = |name: &str, code: u64, expected: u64| {
        prepare();
        put32(at::WORD3, 1 << 27);
        unsafe { (&raw mut IO_MAP).cast::<u8>().add(0x1f0 / 8).write(2) };
        put(at::RAX, 0);
        check(name, begin(code), exit::IOIO);
        check(format_args!("{name}: info"), get(at::INFO1), expected);
        check(format_args!("{name}: next"), get(at::INFO2), get(at::RIP) + frame_len(get(at::RIP)));
    };
    /// The length of one of these I/O instructions.
    fn frame_len(rip: u64) -> u64 {
        let byte = |n: u64| unsafe { ((rip + n) as *const u8).read() };
        let prefixes = (0..4).take_while(|&n| matches!(byte(n), 0x66 | 0x67 | 0xf3)).count() as u64;
        prefixes + if byte(prefixes) & 0xfc == 0xe4 { 2 } else { 1 }
    }
    const A64: u64 = 1 << 9;
    const A32: u64 = 1 << 8;
    let port = 0x1f1 << 16;
    info("IN AL", guest!("mov dx, 0x1f1", "in al, dx"), port | A64 | 0x11);
    info("OUT AL", guest!("mov dx, 0x1f1", "out dx, al"), port | A64 | 0x10);
    info("OUT AX", guest!("mov dx, 0x1f1", "out dx, ax"), port | A64 | 0x20);
    info("IN EAX", guest!("mov dx, 0x1f1", "in eax, dx"), port | A64 | 0x41);
    info("IN AX across", guest!("mov dx, 0x1f0", "in ax, dx"), 0x1f0 << 16 | A64 | 0x21);
    info("IN EAX across", guest!("mov dx, 0x1ee", "in eax, dx"), 0x1ee << 16 | A64 | 0x41);
    let segment = |n: u64| if has_assists() { n << 10 } else { 0 };
    info("OUTSB", guest!("mov dx, 0x1f1", "outsb"), port | A64 | 0x14 | segment(3));
    info("REP INSD", guest!("mov dx, 0x1f1", "mov ecx, 2", "rep insd"), port | A64 | 0x4d);
    info("INSB, 32-bit address", guest!("mov dx, 0x1f1", ".byte 0x67; insb"), port | A32 | 0x15);
    prepare();
    put32(at::WORD3, 1 << 27);
    unsafe { (&raw mut IO_MAP).cast::<u8>().add(0x80 / 8).write(2) };
    check("a port that is not in the map", begin(guest!("in al, 0x80")), exit::VMMCALL);
}

fn registers() {
    let leaves = |name: &str, code: u64, expected: Option<u64>| {
        prepare();
        put32(at::WORD3, 1 << 28);
        let map = (&raw mut MSR_MAP).cast::<u8>();
        unsafe {
            map.add(0x174 / 4).write(1);
            map.add(0x800 + 0x82 / 4).write(0x20);
            map.add(0x1000 + 0x114 / 4).write(1);
        }
        put32(at::EXCEPTIONS, 1 << GP);
        check(name, begin(code), if expected.is_some() { exit::MSR } else { exit::VMMCALL });
        if let Some(expected) = expected {
            check(format_args!("{name}: info"), get(at::INFO1), expected);
        }
    };
    leaves("RDMSR", guest!("mov ecx, 0x174", "rdmsr"), Some(0));
    leaves("WRMSR that is free", guest!("mov ecx, 0x174", "rdmsr", "nop"), Some(0));
    leaves("another", guest!("mov ecx, 0x175", "rdmsr"), None);
    leaves("WRMSR", guest!("mov ecx, 0xc0000082", "rdmsr", "wrmsr"), Some(1));
    leaves("of the third range", guest!("mov ecx, 0xc0010114", "rdmsr"), Some(0));
    leaves("of no range", guest!("mov ecx, 0x40000000", "rdmsr"), Some(0));
    leaves("of no range", guest!("mov ecx, 0xc0002000", "xor eax, eax", "wrmsr"), Some(1));
}

fn injection() {
    let inject = |event: u64, code: u64| {
        prepare();
        put(at::INJECT, event);
        let end = begin(code);
        check("an event that is injected", end, exit::VMMCALL);
        check("it is gone", get(at::INJECT) & VALID, 0);
    };
    let code = guest!("nop", "nop");
    inject(VALID | 0x55, code);
    check("an interrupt", (frame(0), frame(1)), (0x55, code));
    inject(VALID | 2 << 8 | 2, code);
    check("an NMI", (frame(0), frame(1)), (2, code));
    inject(VALID | 2 << 8 | 0x55, code);
    check("an NMI with another vector", frame(0), 2);
    inject(VALID | 3 << 8 | 6, code);
    check("#UD", (frame(0), frame(1)), (6, code));
    inject(VALID | 3 << 8 | HAS_CODE | 13 | 0x1234 << 32, code);
    check("#GP", (frame(0), frame(1), frame(2)), (13, 0x1234, code));
    inject(VALID | 3 << 8 | HAS_CODE | 14 | 7 << 32, code);
    check("#PF leaves CR2", (frame(0), frame(1), get(at::CR2)), (14, 7, 0));
    if has_next_rip() {
        prepare();
        put(at::INJECT, VALID | 4 << 8 | 0x77);
        put(at::NEXT_RIP, code + 1);
        check("INT n", begin(code), exit::VMMCALL);
        check("INT n: saved RIP", (frame(0), frame(1)), (0x77, code + 1));
    }
    // Faults on the way.
    let gate = |vector: usize, change: &dyn Fn(u64) -> u64| unsafe {
        let gate = (&raw mut GUEST_IDT).cast::<u64>().add(2 * vector);
        gate.write_volatile(change(gate.read_volatile()));
    };
    let absent = |low: u64| low & !(1 << 47);
    prepare();
    gate(0x55, &absent);
    put32(at::EXCEPTIONS, 1 << NP);
    put(at::INJECT, VALID | 0x55);
    check("a gate that is not present", begin(code), exit::EXCEPTION + NP);
    check("error code", get(at::INFO1), 0x55 << 3 | 3);
    check("what was vectored", get(at::INT_INFO), VALID | 0x55);
    prepare();
    gate(13, &absent);
    put32(at::EXCEPTIONS, 1 << NP);
    put(at::INJECT, VALID | 3 << 8 | HAS_CODE | 13 | 0x18 << 32);
    check("for an exception", begin(code), exit::EXCEPTION + NP);
    check("what was vectored", get(at::INT_INFO), VALID | 3 << 8 | HAS_CODE | 13 | 0x18 << 32);
    // Injected events are not intercepted.
    prepare();
    put32(at::EXCEPTIONS, u32::MAX);
    put(at::INJECT, VALID | 3 << 8 | 6);
    check("#UD is not intercepted", begin(code), exit::VMMCALL);
    // Vectoring that the guest began itself.
    let soft = guest!("int 0x55");
    prepare();
    gate(0x55, &absent);
    put32(at::EXCEPTIONS, 1 << NP);
    check("INT n, gate not present", begin(soft), exit::EXCEPTION + NP);
    check("what was vectored", get(at::INT_INFO), VALID | 4 << 8 | 0x55);
    check("RIP", get(at::RIP), soft);
    let break_point = guest!("int3");
    prepare();
    gate(3, &absent);
    put32(at::EXCEPTIONS, 1 << NP);
    check("INT3, gate not present", begin(break_point), exit::EXCEPTION + NP);
    check("what was vectored", get(at::INT_INFO), VALID | 3 << 8 | 3);
    check("RIP", get(at::RIP), break_point);
    let fault = guest!("ud2");
    prepare();
    gate(6, &absent);
    put32(at::EXCEPTIONS, 1 << NP);
    check("#UD, gate not present", begin(fault), exit::EXCEPTION + NP);
    check("what was vectored", get(at::INT_INFO), VALID | 3 << 8 | 6);
    // A gate of DPL 0 for what INT3 would have raised at CPL 3.
    prepare();
    gate(3, &|low| low & !(3 << 45));
    put8(at::CPL, 3);
    segment(at::CS, USER_CODE64, 0xafb, u32::MAX, 0);
    segment(at::SEGMENTS + 0x20, USER_DATA, 0xcf3, u32::MAX, 0);
    put(at::RSP, stack_top() + USER_ALIAS);
    put32(at::EXCEPTIONS, 1 << GP);
    put(at::INJECT, VALID | 3 << 8 | 3);
    put(at::NEXT_RIP, code + USER_ALIAS);
    check("#BP looks at the gate's DPL", begin(code + USER_ALIAS), exit::EXCEPTION + GP);
    check("error code", get(at::INFO1) & !1, 3 << 3 | 2);
}

fn virtual_interrupts() {
    const REQUEST: u64 = 1 << 8;
    let control = |vector: u64, priority: u64, task: u64| {
        vector << 32 | priority << 16 | REQUEST | task
    };
    let code = guest!("nop", "sti", "nop", "nop", "cli");
    prepare();
    put(at::INT_CTL, control(0x66, 6, 0));
    check("V_IRQ", begin(code), exit::VMMCALL);
    check("after the shadow of STI", (frame(0), frame(1)), (0x66, code + 3));
    check("V_IRQ is clear", get(at::INT_CTL) & REQUEST, 0);
    prepare();
    put(at::INT_CTL, control(0x66, 6, 6));
    let quiet = begin(code);
    check("V_TPR holds it off", (quiet, get(at::INT_CTL) & REQUEST), (exit::VMMCALL, REQUEST));
    check("nothing came", get(at::RSP), stack_top());
    prepare();
    put(at::INT_CTL, control(0x66, 6, 6) | 1 << 20);
    begin(code);
    check("V_IGN_TPR", frame(0), 0x66);
    prepare();
    put(at::INT_CTL, control(0x66, 6, 0));
    put32(at::WORD3, 1 << 4);
    check("VINTR", begin(code), exit::VINTR);
    check("VINTR: RIP", get(at::RIP), code + 3);
    check("VINTR: V_IRQ stays", get(at::INT_CTL) & REQUEST, REQUEST);
    prepare();
    put(at::INT_CTL, control(0x66, 6, 0));
    check("IF is clear", begin(guest!("nop")), exit::VMMCALL);
    check("nothing came", get(at::RSP), stack_top());
    // The shadow that the host gives.
    prepare();
    put(at::INT_CTL, control(0x66, 6, 0));
    put(at::RFLAGS, 0x202);
    put(at::SHADOW, 1);
    let code = guest!("nop", "nop");
    begin(code);
    check("an interrupt shadow", (frame(0), frame(1)), (0x66, code + 1));
    // CR8 is the virtual priority.
    prepare();
    put(at::INT_CTL, 1 << 24 | 3);
    set_cr8(0);
    begin(guest!("mov rax, cr8", "mov ecx, 9", "mov cr8, rcx"));
    check("CR8 in the guest", (get(at::RAX), get(at::INT_CTL) & 0xff), (3, 9));
    check("CR8 of the host", cr8(), 0);
}

fn time() {
    prepare();
    put(at::TSC_OFFSET, 1 << 60);
    let before = rdtsc();
    let code = guest!("rdtsc", "shl rdx, 32", "or rax, rdx");
    begin(code);
    let after = rdtsc();
    let seen = get(at::RAX).wrapping_sub(1 << 60);
    check("TSC offset", before <= seen && seen <= after, true);
    check("the host's counter", after >> 60, before >> 60);
    if feature(4) {
        const RATIO: u32 = 0xc000_0104;
        check("TSC ratio", rdmsr(RATIO), 1 << 32);
        check("TSC ratio, reserved", try_wrmsr(RATIO, 1 << 40), GP);
        wrmsr(RATIO, 1 << 31);
        prepare();
        let before = rdtsc();
        begin(code);
        let after = rdtsc();
        let seen = get(at::RAX);
        check("half the rate", before / 2 <= seen && seen <= after / 2, true);
        wrmsr(RATIO, 1 << 32);
    }
}

fn load_and_save() {
    let other = &raw const OTHER_BLOCK as u64;
    let word = |offset: usize| unsafe { ((other + offset as u64) as *const u64).read_unaligned() };
    wrmsr(0xc000_0082, 0x1234_5000);
    wrmsr(0xc000_0102, 0x7777_0000);
    wrmsr(0xc000_0100, 0x1111_2222);
    unsafe { asm!("vmsave rax", in("rax") other) };
    check("LSTAR", word(0x608), 0x1234_5000);
    check("KERNEL_GS_BASE", word(0x620), 0x7777_0000);
    check("FS", word(0x448), 0x1111_2222);
    check("TR", (word(0x490) & 0xffff, word(0x498)), (TSS_SELECTOR.into(), &raw const TSS as u64));
    check("TR: attributes", word(0x490) >> 16 & 0xfff, 0x08b);
    let set = |offset: usize, value: u64| unsafe {
        ((other + offset as u64) as *mut u64).write_unaligned(value)
    };
    set(0x608, 0x4242_0000);
    set(0x448, 0x8000_0000_0000_0000);
    // The highest bit of a linear address is the sign.
    let sign = (cpuid(0x8000_0008, 0)[0] >> 8 & 0xff) - 1;
    set(0x610, 1 << sign);
    unsafe { asm!("vmload rax", in("rax") other) };
    check("LSTAR loaded", rdmsr(0xc000_0082), 0x4242_0000);
    check("an address is made canonical", rdmsr(0xc000_0100), 0);
    check("and CSTAR's", rdmsr(0xc000_0083), u64::MAX << sign);
    wrmsr(0xc000_0083, 0);
    // The guest has them as they are.
    prepare();
    wrmsr(0xc000_0102, 0x5555);
    begin(guest!("mov ecx, 0xc0000102", "rdmsr"));
    check("not switched by VMRUN", get(at::RAX) as u32, 0x5555);
}

fn other_modes() {
    // Protected mode without paging, 32 bits.
    let legacy = |cr0_now: u64, attributes: u16| {
        prepare();
        put(at::EFER, rdmsr(EFER) & !0x500);
        put(at::CR0, cr0_now);
        put(at::CR4, 0x600);
        segment(at::CS, CODE32, attributes, u32::MAX, 0);
    };
    let code = guest!(".code32", "mov eax, 0x12345678", "mov bx, ds", "add eax, 1", ".code64");
    legacy(0x33, 0xc9b);
    check("32 bits", begin(code), exit::VMMCALL);
    check("32 bits: RAX", get(at::RAX), 0x1234_5679);
    check("32 bits: EFER", get(at::EFER) & 0x500, 0);
    // A task switch.
    set_descriptor(FREE_SLOT, 0x0000_8900_0000_0067 | (&raw const STACK as u64) << 16);
    let jump = guest!(".code32", ".byte 0xea; .long 0; .word 0x60", ".code64");
    legacy(0x33, 0xc9b);
    put32(at::WORD3, 1 << 29);
    check("JMP to a task", begin(jump), exit::TASK);
    check("JMP: selector", get(at::INFO1), FREE.into());
    check("JMP: info", get(at::INFO2) & !(1 << 48), 1 << 38);
    check("JMP: RIP", get(at::RIP), jump);
    let call = guest!(".code32", ".byte 0x9a; .long 0; .word 0x60", ".code64");
    legacy(0x33, 0xc9b);
    put32(at::WORD3, 1 << 29);
    check("CALL of a task", begin(call), exit::TASK);
    check("CALL: info", (get(at::INFO1), get(at::INFO2)), (FREE.into(), 0));
    unsafe {
        let idt = (&raw mut GUEST_IDT).cast::<u64>();
        legacy(0x33, 0xc9b);
        for vector in [13, 0x40] {
            idt.add(vector).write_volatile(u64::from(FREE) << 16 | 0xe5 << 40);
        }
    }
    put32(at::WORD3, 1 << 29);
    let fault = guest!(".code32", "mov eax, 0xfff8", "mov ds, eax", ".code64");
    check("#GP by a task gate", begin(fault), exit::TASK);
    check("#GP: info", get(at::INFO2), 1 << 48 | 1 << 44 | 0xfff8);
    let vectored = VALID | 3 << 8 | HAS_CODE | 13 | 0xfff8 << 32;
    check("#GP: what was vectored", get(at::INT_INFO), vectored);
    set_descriptor(FREE_SLOT, 0);
    // Real mode.
    let real = guest!(".code16", "mov ax, cs", "mov bx, 0x100", "add ax, bx", "vmmcall", ".code64");
    legacy(0x32, 0x09b);
    segment(at::CS, 0x1000, 0x09b, 0xffff, real & !0xf);
    check("real mode", begin(real & 0xf), exit::VMMCALL);
    check("real mode: AX", get(at::RAX) & 0xffff, 0x1100);
}

fn nested_paging() {
    if !feature(0) {
        return skip("nested paging");
    }
    const PLACE: u64 = 0x200_0000;
    const FINAL: u64 = 1 << 32;
    const TABLE: u64 = 1 << 33;
    let code = guest!("mov al, [rax]");
    let read = guest!("mov cl, [rax]");
    let write = guest!("mov byte ptr [rax], 1");
    let jump = guest!("jmp rax");
    unsafe {
        for n in 0..16 {
            ((PLACE + n) as *mut u8).write_volatile([0x0f, 0x01, 0xd9][n as usize % 3]);
        }
    }
    let faults = |name: &str, code: u64, change: &dyn Fn(u64) -> u64, info: u64| {
        prepare();
        nested();
        set_nested(PLACE, change);
        put(at::RAX, PLACE + 0x18);
        check(name, begin(code), exit::NPF);
        check(format_args!("{name}: info"), get(at::INFO1), info);
        check(format_args!("{name}: address"), get(at::INFO2), PLACE + 0x18);
        check(format_args!("{name}: RIP"), get(at::RIP) == code || get(at::RIP) == PLACE + 0x18, true);
    };
    prepare();
    nested();
    put(at::RAX, PLACE);
    check("nothing wrong", begin(code), exit::VMMCALL);
    if !is_intel() {
        // The bit that is the global one of a leaf is reserved above directories.
        let mut table = |n: usize| unsafe {
            prepare();
            nested();
            let entry = (&raw mut NESTED).cast::<u64>().add(512 * n);
            entry.write_volatile(entry.read_volatile() | 1 << 8);
            (begin(code), get(at::INFO1) & 0x1f)
        };
        check("PML4, bit 8", table(0), (exit::NPF, 0xf));
        check("PDPT, bit 8", table(1), (exit::NPF, 0xf));
    }
    faults("a read, not present", read, &|entry| entry & !1, FINAL | 4);
    faults("a write, not present", write, &|entry| entry & !1, FINAL | 6);
    faults("a write, read-only", write, &|entry| entry & !2, FINAL | 7);
    faults("a read, supervisor's", read, &|entry| entry & !4, FINAL | 5);
    faults("a fetch, no execution", jump, &|entry| entry | 1 << 63, FINAL | 0x15);
    faults("a fetch, not present", jump, &|entry| entry & !1, FINAL | 0x14);
    faults("a read, reserved", read, &|entry| entry | 1 << 51, FINAL | 0xd);
    prepare();
    nested();
    set_nested(PLACE, |entry| entry & !2);
    put(at::RAX, PLACE);
    check("a read, read-only", begin(read), exit::VMMCALL);
    // The guest's tables are written as a user would.
    let tables = cr3() & !0x1f_ffff;
    prepare();
    nested();
    set_nested(tables, |entry| entry & !1);
    put(at::CR3, PLACE);
    set_nested(PLACE, |entry| entry & !1);
    check("a table, not present", begin(code), exit::NPF);
    check("a table: info", get(at::INFO1), TABLE | 6);
    check("a table: address", get(at::INFO2) & !0xfff, PLACE);
    // Another page than ours.
    prepare();
    nested();
    set_nested(PLACE, |entry| entry + 0x20_0000);
    unsafe { ((PLACE + 0x20_0000) as *mut u8).write_volatile(0x99) };
    put(at::RAX, PLACE);
    check("another page", begin(code), exit::VMMCALL);
    check("what is there", get(at::RAX) & 0xff, 0x99);
    // Without the guest's own paging.
    prepare();
    nested();
    put(at::EFER, rdmsr(EFER) & !0x500);
    put(at::CR0, 0x33);
    put(at::CR4, 0x600);
    segment(at::CS, CODE32, 0xc9b, u32::MAX, 0);
    set_nested(PLACE, |entry| entry + 0x20_0000);
    put(at::RAX, PLACE);
    check("32 bits, no paging", begin(guest!(".code32", "mov al, [eax]", ".code64")), exit::VMMCALL);
    check("what is there", get(at::RAX) & 0xff, 0x99);
    // PAT is the guest's own.
    prepare();
    nested();
    put(at::PAT, 0x0606_0606_0606_0606);
    let pat = rdmsr(0x277);
    begin(guest!("mov ecx, 0x277", "rdmsr"));
    check("PAT in the guest", get(at::RAX) as u32, 0x0606_0606);
    check("PAT of the host", rdmsr(0x277), pat);
}

/// The global interrupt flag and real interrupts, where there is a controller.
fn interrupts() {
    unsafe {
        if xapic::read(xapic::VERSION) == u32::MAX {
            return skip("a local APIC");
        }
        xapic::write(xapic::SVR, 0x1ff);
        handle(0x62, Some(|_| xapic::write(xapic::EOI, 0)));
        let taken = || last().trap.vector == 0x62;
        let send = || xapic::write(xapic::ICR, 0x4_4062);
        forget();
        asm!("clgi", "sti");
        send();
        asm!("nop", "nop");
        check("held off by GIF", taken(), false);
        asm!("stgi", "nop", "nop", "cli");
        check("taken after STGI", taken(), true);
        // While a guest runs: by the host's IF, and intercepted.
        prepare();
        put(at::INT_CTL, 1 << 24);
        put32(at::WORD3, 1);
        forget();
        asm!("clgi", "sti");
        send();
        let code = guest!("nop");
        put(at::RIP, code);
        asm!("push rbx", "push rbp", "vmrun rax", "pop rbp", "pop rbx", inout("rax") &raw const BLOCK => _,
            out("rcx") _, out("rdx") _, out("rsi") _, out("rdi") _, out("r8") _, out("r9") _,
            out("r10") _, out("r11") _, out("r12") _, out("r13") _, out("r14") _, out("r15") _);
        check("INTR", (get(at::CODE), get(at::RIP)), (0x60, code));
        check("still held off", taken(), false);
        asm!("stgi", "nop", "nop", "cli");
        check("and taken then", taken(), true);
        // Not intercepted: it is the guest's.
        prepare();
        put(at::RFLAGS, 0x202);
        asm!("clgi");
        send();
        check("the guest's", begin(code), exit::VMMCALL);
        check("vector and RIP", (frame(0), frame(1)), (0x62, code));
        xapic::write(xapic::EOI, 0);
        handle(0x62, None);
        if feature(0) {
            let version = xapic::BASE + u64::from(xapic::VERSION);
            let read = guest!("mov ecx, [rax]", "mov eax, ecx");
            prepare();
            nested();
            put(at::RAX, version);
            check("the controller's page, nested", begin(read), exit::VMMCALL);
            check("its version", get(at::RAX), xapic::read(xapic::VERSION).into());
            let write = guest!("mov dword ptr [rax], ecx");
            prepare();
            nested();
            set_nested(xapic::BASE, |entry| entry & !2);
            put(at::RAX, version);
            check("read-only", begin(write), exit::NPF);
            check("info and address", (get(at::INFO1), get(at::INFO2)), (1 << 32 | 7, version));
        }
    }
}

/// The record of branches: the guest goes on with the host's, or has its own (section 15.23).
fn branches() {
    const DEBUG_CTL: u32 = 0x1d9;
    let record = || (rdmsr(0x1db), rdmsr(0x1dc));
    let runs = |debug_ctl: u64| {
        let own: u64;
        unsafe {
            asm!("push rbx", "push rbp", "xor edx, edx", "mov ecx, {msr}", "wrmsr", "mov rax, rsi", "clgi",
                "vmrun rax", "mov ecx, {msr}", "rdmsr", "mov esi, eax", "xor eax, eax", "xor edx, edx",
                "wrmsr", "stgi", "pop rbp", "pop rbx", msr = const DEBUG_CTL,
                inout("rax") debug_ctl => _, inout("rsi") &raw const BLOCK as u64 => own,
                out("rcx") _, out("rdx") _, out("rdi") _, out("r8") _, out("r9") _,
                out("r10") _, out("r11") _, out("r12") _, out("r13") _, out("r14") _, out("r15") _);
        }
        own
    };
    let code = guest!("jmp 3f", "nop", "3: nop");
    prepare();
    put(at::RIP, code);
    check("the host's: DEBUG_CTL", runs(1), 1);
    check("the host's: a branch of the guest", record(), (code, code + 3));
    prepare();
    put(at::RIP, guest!("xor edx, edx", "mov eax, 1", "mov ecx, 0x1d9", "wrmsr"));
    check("the host's: DEBUG_CTL as the guest set it", runs(0), 1);
    if !feature(1) {
        return skip("a record of branches of the guest's own");
    }
    let before = record();
    prepare();
    put(at::RIP, code);
    put(at::EXTENSIONS, 1);
    put(at::DEBUG_CTL, 1);
    check("the guest's own: DEBUG_CTL of the host", runs(0), 0);
    check("the guest's own: the host's record", record(), before);
    check("the guest's own", (get(at::BRANCH_FROM), get(at::BRANCH_TO)), (code, code + 3));
    check("the guest's own: DEBUG_CTL", get(at::DEBUG_CTL), 1);
    prepare();
    put(at::RIP, code);
    put(at::EXTENSIONS, 1);
    put(at::BRANCH_FROM, 0x1234);
    check("the guest's own, off: DEBUG_CTL of the host", runs(1), 1);
    check("the guest's own, off", get(at::BRANCH_FROM), 0x1234);
}

/// System management interrupts around a guest: intercepted, they wait for the host.
fn system_management() {
    if xapic::read(xapic::VERSION) == u32::MAX {
        return skip("system management interrupts");
    }
    prepare();
    put32(at::WORD3, 1 << 2);
    put(at::RAX, xapic::BASE + u64::from(xapic::ICR));
    let code = guest!("mov dword ptr [rax], 0x4200", "nop", "nop");
    check("SMI", begin(code), 0x62);
    // The board's handler went back when the flag was set again.
    prepare();
    put(at::RAX, xapic::BASE + u64::from(xapic::ICR));
    check("SMI that is not intercepted", begin(code), exit::VMMCALL);
    xapic::write(xapic::ICR, 0x4200);
    for _ in 0..100 {
        unsafe { asm!("nop") };
    }
    check("nothing is left of it", (cr0() & 1, rdmsr(EFER) & SVME), (1, SVME));
}

pub fn run() {
    if !has(0x8000_0001, 2, 2) {
        check("EFER.SVME without the feature", try_wrmsr(EFER, rdmsr(EFER) | SVME), GP);
        check("VMRUN without the feature", attempt!(["vmrun rax"], in("rax") 0), UD);
        return skip("SVM");
    }
    host();
    simple();
    checks();
    instructions();
    control_register_0();
    pauses();
    exceptions();
    ports();
    registers();
    injection();
    virtual_interrupts();
    time();
    load_and_save();
    other_modes();
    nested_paging();
    interrupts();
    branches();
    system_management();
}
