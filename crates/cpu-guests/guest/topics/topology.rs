//! What CPUID tells of a machine of two sockets, each with two cores of two threads (APM volume 3, appendix
//! E; SDM volume 2, CPUID), as each of its processors sees it.

use core::arch::{asm, global_asm};

use crate::kit::*;

const CPUS: u32 = 8;
const THREADS: u32 = 2;
const PACKAGE: u32 = 4;
/// Leaves and subleaves that the other processors are asked for.
const ASKED: [(u32, u32); 4] = [(1, 0), (0xb, 0), (0xb, 1), (0x8000_001e, 0)];
/// What they answer, by the number of their start: EAX to EDX of each.
const ANSWERS: u64 = 0x3_0000;
const BLOCK: u64 = 4 * 16;
const START: u64 = 0x8000;

global_asm!(
    ".section .text",
    ".code16",
    ".global asked_code, asked_end",
    "asked_code:",
    "cli",
    "mov ax, 0x3000",
    "mov es, ax",
    // Which of them this is: they come here one at a time.
    "mov di, word ptr cs:[0x0ff0]",
    ".irp leaf, 1, 0xb, 0x1000b, 0x8000001e",
    "mov eax, \\leaf",
    "xor ecx, ecx",
    "cmp eax, 0x1000b",
    "jne 2f",
    "mov eax, 0xb",
    "inc ecx",
    "2:",
    "cpuid",
    "mov dword ptr es:[di], eax",
    "mov dword ptr es:[di + 4], ebx",
    "mov dword ptr es:[di + 8], ecx",
    "mov dword ptr es:[di + 12], edx",
    "add di, 16",
    ".endr",
    "mov word ptr cs:[0x0ff2], 1",
    "3:",
    "hlt",
    "jmp 3b",
    "asked_end:",
    ".code64",
);

unsafe extern "C" {
    static asked_code: u8;
    static asked_end: u8;
}

fn wait() {
    let end = rdtsc() + (1 << 26);
    while rdtsc() < end {
        unsafe { asm!("pause") };
    }
}

/// Starts the processor with this id, and has it answer in block `n`; false if there is none.
fn ask(id: u32, n: u64) -> bool {
    let done = (START + 0xff2) as *mut u16;
    unsafe {
        ((START + 0xff0) as *mut u16).write_volatile((n * BLOCK) as u16);
        done.write_volatile(0);
    }
    for command in [0x4500, 0x4600 | START as u32 >> 12] {
        xapic::write(xapic::ICR_HIGH, id << 24);
        xapic::write(xapic::ICR, command);
        wait();
    }
    (0..100).any(|_| {
        wait();
        unsafe { done.read_volatile() != 0 }
    })
}

fn answer(n: u64, leaf: usize) -> [u32; 4] {
    let at = (ANSWERS + n * BLOCK + 16 * leaf as u64) as *const [u32; 4];
    unsafe { at.read_volatile() }
}

fn everywhere(id: u32, answers: [[u32; 4]; 4]) {
    let [one, threads, cores, amd] = answers;
    check(format_args!("{id}: id in leaf 1"), one[1] >> 24, id);
    check(format_args!("{id}: processors of a socket"), one[1] >> 16 & 0xff, PACKAGE);
    check(format_args!("{id}: there are several"), one[3] >> 28 & 1, 1);
    check(format_args!("{id}: leaf 0xb, threads"), threads, [1, THREADS, 0x100, id]);
    check(format_args!("{id}: leaf 0xb, cores"), cores, [2, PACKAGE, 0x201, id]);
    if has(0x8000_0001, 2, 22) {
        let (core, socket) = (id >> 1 & 1, id >> 2);
        let expected = [id, (THREADS - 1) << 8 | core, socket, 0];
        check(format_args!("{id}: leaf 0x8000001e"), amd, expected);
    }
}

/// Processors that share cache `n`, by leaf 4 or 0x8000001d.
fn sharing(leaf: u32, n: u32) -> u32 {
    (cpuid(leaf, n)[0] >> 14 & 0xfff) + 1
}

pub fn run() {
    if cpuid(1, 0)[1] >> 16 & 0xff != PACKAGE {
        check("processors of a socket", cpuid(1, 0)[1] >> 16 & 0xff, PACKAGE);
        return;
    }
    everywhere(0, ASKED.map(|(leaf, sub)| cpuid(leaf, sub)));
    check("no third level", cpuid(0xb, 2), [0, 0, 2, 0]);
    unsafe {
        let len = &raw const asked_end as usize - &raw const asked_code as usize;
        core::ptr::copy_nonoverlapping(&raw const asked_code, START as *mut u8, len);
    }
    for id in 1..CPUS {
        check(format_args!("{id} starts"), ask(id, id.into()), true);
        everywhere(id, core::array::from_fn(|leaf| answer(id.into(), leaf)));
    }
    if is_intel() {
        check("cores of a socket", (cpuid(4, 0)[0] >> 26) + 1, PACKAGE / THREADS);
        check("caches", [0, 1, 2, 3].map(|n| sharing(4, n)), [THREADS, THREADS, THREADS, PACKAGE]);
        return;
    }
    check("CmpLegacy", has(0x8000_0001, 2, 1), true);
    let sizes = cpuid(0x8000_0008, 0)[2];
    check("leaf 0x80000008", (sizes >> 12 & 15, sizes & 0xff), (2, PACKAGE - 1));
    if has(0x8000_0001, 2, 22) {
        let shared = [0, 1, 2, 3].map(|n| sharing(0x8000_001d, n));
        check("caches", shared, [THREADS, THREADS, THREADS, PACKAGE]);
    }
}
