//! SYSCALL, SYSRET, SYSENTER and SYSEXIT: segments, flags, faults, single step (APM volume 2, section
//! 6.1; volume 3).

use core::arch::asm;

use crate::kit::*;

const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const SFMASK: u32 = 0xc000_0084;
const EFER: u32 = 0xc000_0080;

static mut SEEN: [u64; 8] = [0; 8];

/// Runs SYSCALL at CPL 3 with `flags`; the kernel side records what it finds and comes back.
fn call(flags: u64) -> [u64; 8] {
    let vector = unsafe {
        forget();
        asm!(
            "lea r15, [rip + 77f]",
            "mov [rip + RECOVER], r15",
            "mov [rip + RECOVER_SP], rsp",
            // LSTAR points to what follows the call.
            "lea rax, [rip + 55f]",
            "mov rdx, rax",
            "shr rdx, 32",
            "mov ecx, 0xc0000082",
            "wrmsr",
            "lea r15, [rip + user_stack_top]",
            "bts r15, 39",
            "push 0x2b",
            "push r15",
            "push r14",
            "push 0x33",
            "lea r15, [rip + 66f]",
            "bts r15, 39",
            "push r15",
            "iretq",
            "66:",
            "syscall",
            "67: int 0x80",
            "55:",
            "mov [rip + {seen}], rcx",
            "mov [rip + {seen} + 8], r11",
            "mov eax, cs",
            "mov [rip + {seen} + 16], rax",
            "mov eax, ss",
            "mov [rip + {seen} + 24], rax",
            "mov [rip + {seen} + 32], rsp",
            "mov rsp, [rip + RECOVER_SP]",
            "pushfq",
            "pop rax",
            "mov [rip + {seen} + 40], rax",
            "lea rax, [rip + 67b]",
            "bts rax, 39",
            "mov [rip + {seen} + 48], rax",
            "int 0x80",
            "77:",
            "mov qword ptr [rip + RECOVER], 0",
            "mov r15d, 0x10",
            "mov ds, r15d",
            "mov es, r15d",
            "mov ss, r15d",
            seen = sym SEEN,
            in("r14") flags, out("r15") _, out("rax") _, out("rcx") _, out("rdx") _, out("r11") _,
        );
        last().trap.vector
    };
    check("the way there and back", vector, NONE);
    unsafe { (&raw const SEEN).read_volatile() }
}

fn syscalls() {
    wrmsr(STAR, 0x0023_0008 << 32);
    wrmsr(SFMASK, 0);
    wrmsr(EFER, rdmsr(EFER) | 1);
    let seen = call(0x8d7);
    check("RCX is the return address", seen[0], seen[6]);
    check("R11 has the flags", seen[1], 0x8d7);
    check("CS and SS from STAR", (seen[2], seen[3]), (0x08, 0x10));
    check("RSP is untouched", seen[4], &raw const user_stack_top as u64 + USER_ALIAS);
    check("flags", seen[5] & 0xfd7, 0x8d7);
    wrmsr(SFMASK, 0x8d5);
    let seen = call(0x8d7);
    check("flags, masked", seen[5] & 0xfd7, 2);
    check("R11 has them unmasked", seen[1], 0x8d7);
    wrmsr(SFMASK, 0);
    wrmsr(EFER, rdmsr(EFER) & !1);
    check("SYSCALL without EFER.SCE", user!(["syscall"], out("rcx") _, out("r11") _), UD);
    check("SYSRET without EFER.SCE", attempt!(["sysretq"]), UD);
    wrmsr(EFER, rdmsr(EFER) | 1);
    check("SYSRET at CPL 3", user!(["sysretq"]), GP);
}

/// SYSRET to CPL 3 at an INT.
fn sysret() {
    wrmsr(STAR, 0x0023_0008 << 32);
    let vector = attempt!(["lea rcx, [rip + 66f]", "bts rcx, 39", "mov r11d, 0x202", "sysretq", "66: int 0x93"],
        out("rcx") _, out("r11") _);
    check("SYSRETQ", vector, 0x93);
    let trap = last().trap;
    check("CS and SS", (trap.cs, trap.ss), (0x33, 0x2b));
    check("flags", trap.rflags, 0x202);
    let vector = attempt!(["lea rcx, [rip + 66f]", "bts rcx, 39", "mov r11d, 0x10202", "sysretq", "66: int 0x93"],
        out("rcx") _, out("r11") _);
    check("SYSRETQ", vector, 0x93);
    check("RF is not loaded", last().trap.rflags, 0x202);
}

fn sysenter() {
    const CS: u32 = 0x174;
    const ESP: u32 = 0x175;
    const EIP: u32 = 0x176;
    wrmsr(CS, 0);
    if !is_intel() {
        check("SYSENTER in long mode", user!(["sysenter"]), UD);
        check("SYSEXIT in long mode", attempt!(["sysexit"], in("rcx") 0u64, in("rdx") 0u64), UD);
        return;
    }
    check("SYSENTER with a null CS", user!(["sysenter"]), GP);
    check("SYSEXIT with a null CS", attempt!(["sysexit"], in("rcx") 0u64, in("rdx") 0u64), GP);
    wrmsr(CS, 0x08);
    wrmsr(ESP, &raw const ist_stack_top as u64 - 8192);
    check("SYSEXIT at CPL 3", user!(["sysexit"], in("rcx") 0u64, in("rdx") 0u64), GP);
    let vector = attempt!([".byte 0x48, 0x0f, 0x35"], in("rcx") 0u64, in("rdx") 1u64 << 60);
    check("SYSEXIT to nowhere", vector, GP);
    // To 32-bit code, of which address 0 is no user's.
    let vector = attempt!(["sysexit"], in("rcx") 0u64, in("rdx") 1u64 << 60);
    check("SYSEXIT to compatibility mode", (vector, last().trap.cs), (PF, 0x1b));
}

/// Single step across SYSCALL: the trap comes if the flag survives SFMASK.
fn stepping() {
    wrmsr(STAR, 0x0023_0008 << 32);
    handle(
        DB,
        Some(|trap| {
            if trap.cs == 8 {
                trap.rflags &= !0x100;
            }
        }),
    );
    wrmsr(SFMASK, 0x100);
    let seen = call(0x102);
    check("TF masked: flags", seen[5] & 0x100, 0);
    wrmsr(SFMASK, 0);
    let seen = call(0x102);
    check("TF kept: the handler cleared it", seen[5] & 0x100, 0);
    handle(DB, None);
}

pub fn run() {
    syscalls();
    sysret();
    sysenter();
    stepping();
}
