//! Programs for what the translator does on its own: both engines have to come to the same, memory
//! included. Tables of pages are in memory, so their accessed and dirty bits are compared as well.

mod calls;
mod pages;
mod shared;

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::cpu::Cpu;
use crate::testing::{STACK, load, long_mode, run_to_halt};

/// Where a page table for the linear addresses from [`WINDOW`] on is.
const TABLE: u64 = 0x6_0000;
/// Linear address of the first of 512 pages.
const WINDOW: u64 = 0x4000_0000;
/// Where they are: 64 pages, over and over.
const FRAMES: u64 = 0x20_0000;
/// Where data of the tests is.
const DATA: u64 = 0x9_0000;

fn write(cpu: &Cpu, at: u64, value: u64) {
    cpu.memory.write(at, &value.to_le_bytes()).expect("RAM");
}

/// A CPU with pages of 4 KiB at [`WINDOW`].
fn paged() -> Cpu {
    let cpu = long_mode();
    // The second entry of the page directory pointer table, at 0x2000, and a directory.
    write(&cpu, 0x2008, 0x6_1007);
    write(&cpu, 0x6_1000, TABLE | 7);
    for page in 0..512 {
        write(&cpu, TABLE + 8 * page, (FRAMES + ((page % 64) << 12)) | 7);
    }
    cpu
}

/// A branch that the interpreter has to execute, as the TLB has lost its operand, to what follows it.
#[test]
fn branches_to_what_follows_them() {
    const TABLE: u64 = 0x2_0000;
    let mut cpu = long_mode();
    load(&cpu, |a| {
        let (mut top, mut next) = (a.create_label(), a.create_label());
        let (mut called, mut returned) = (a.create_label(), a.create_label());
        a.lea(rax, qword_ptr(next)).unwrap();
        a.mov(qword_ptr(TABLE), rax).unwrap();
        a.lea(rax, qword_ptr(called)).unwrap();
        a.mov(qword_ptr(TABLE + 8), rax).unwrap();
        a.lea(rsi, qword_ptr(returned)).unwrap();
        a.mov(ecx, 100).unwrap();
        a.set_label(&mut top).unwrap();
        a.invlpg(ptr(TABLE)).unwrap();
        a.jmp(qword_ptr(TABLE)).unwrap();
        a.set_label(&mut next).unwrap();
        a.add(rbx, 3).unwrap();
        a.invlpg(ptr(TABLE)).unwrap();
        a.call(qword_ptr(TABLE + 8)).unwrap();
        a.set_label(&mut called).unwrap();
        a.pop(rdx).unwrap();
        a.push(rsi).unwrap();
        a.invlpg(ptr(STACK - 8)).unwrap();
        a.ret().unwrap();
        a.set_label(&mut returned).unwrap();
        a.dec(ecx).unwrap();
        a.jne(top).unwrap();
        a.hlt().unwrap();
    });
    run_to_halt(&mut cpu);
    assert_eq!(cpu.gpr[3], 300);
}

#[test]
fn pages_that_miss_are_found_by_reads_and_writes() {
    let mut cpu = paged();
    load(&cpu, |a| {
        let (mut top, mut skip) = (a.create_label(), a.create_label());
        a.mov(ecx, 3000).unwrap();
        a.mov(r14, WINDOW).unwrap();
        a.mov(esi, 1).unwrap();
        a.xor(edx, edx).unwrap();
        a.set_label(&mut top).unwrap();
        // A page, and an offset that now and then runs into the next.
        a.imul_3(edx, edx, 1_103_515_245).unwrap();
        a.add(edx, 12_345).unwrap();
        a.mov(eax, edx).unwrap();
        a.shr(eax, 11).unwrap();
        a.and(eax, 0x1f_e7ff).unwrap();
        a.or(eax, 0x7f9).unwrap();
        a.cmp(edx, 0).unwrap();
        a.mov(rbx, qword_ptr(r14 + rax)).unwrap();
        a.adc(rsi, rbx).unwrap();
        a.test(edx, 0x1000).unwrap();
        a.jz(skip).unwrap();
        a.add(qword_ptr(r14 + rax * 1 + 5), rsi).unwrap();
        a.set_label(&mut skip).unwrap();
        a.dec(ecx).unwrap();
        a.jnz(top).unwrap();
        a.hlt().unwrap();
    });
    run_to_halt(&mut cpu);
    assert_ne!(cpu.gpr[6], 0);
}

#[test]
fn a_table_that_is_replaced_is_used_after_invlpg_and_after_cr3() {
    let mut cpu = paged();
    // Another table, whose pages are elsewhere.
    for page in 0..512 {
        write(&cpu, 0x6_2000 + 8 * page, (0x30_0000 + ((page % 64) << 12)) | 7);
    }
    write(&cpu, FRAMES + 0x1000, 1);
    write(&cpu, FRAMES + 0x2000, 2);
    write(&cpu, 0x30_1000, 3);
    write(&cpu, 0x30_2000, 4);
    load(&cpu, |a| {
        let mut top = a.create_label();
        a.mov(edi, 4).unwrap();
        a.mov(r9, WINDOW).unwrap();
        a.set_label(&mut top).unwrap();
        a.imul_3(r8, r8, 8).unwrap();
        a.add(r8, qword_ptr(r9 + 0x1000)).unwrap();
        // The other of the two tables.
        a.xor(qword_ptr(0x6_1000), 0x6_2000 ^ TABLE as i32).unwrap();
        a.invlpg(byte_ptr(r9 + 0x1000)).unwrap();
        a.invlpg(byte_ptr(r9 + 0x2000)).unwrap();
        a.imul_3(r8, r8, 8).unwrap();
        a.add(r8, qword_ptr(r9 + 0x2000)).unwrap();
        a.imul_3(r8, r8, 8).unwrap();
        a.add(r8, qword_ptr(r9 + 0x1000)).unwrap();
        a.xor(qword_ptr(0x6_1000), 0x6_2000 ^ TABLE as i32).unwrap();
        a.mov(rax, cr3).unwrap();
        a.mov(cr3, rax).unwrap();
        a.dec(edi).unwrap();
        a.jnz(top).unwrap();
        a.hlt().unwrap();
    });
    run_to_halt(&mut cpu);
    assert_eq!(cpu.gpr[8], 0o143_143_143_143);
}

/// A function that is mapped at several addresses knows at each where it is.
#[test]
fn code_at_several_addresses_sees_its_own() {
    let mut cpu = paged();
    const FUNCTION: u64 = 0x7_0000;
    for page in 0..4 {
        write(&cpu, TABLE + 8 * page, FUNCTION | 7);
    }
    write(&cpu, FUNCTION + 0x800, 0x1234_5678);
    let mut function = CodeAssembler::new(64).expect("64 is a bitness");
    let a = &mut function;
    let (mut next, mut data) = (a.create_label(), a.create_label());
    a.mov(rax, qword_ptr(FUNCTION + 0x800)).unwrap();
    a.lea(rbx, qword_ptr(data)).unwrap();
    a.add(rsi, rax).unwrap();
    a.jmp(next).unwrap();
    a.int3().unwrap();
    a.set_label(&mut next).unwrap();
    a.rol(rsi, 5).unwrap();
    a.add(rsi, rbx).unwrap();
    a.ret().unwrap();
    a.set_label(&mut data).unwrap();
    a.nop().unwrap();
    let code = function.assemble(FUNCTION).expect("the function assembles");
    cpu.memory.write(FUNCTION, &code).expect("RAM");
    load(&cpu, |a| {
        let mut top = a.create_label();
        a.mov(ecx, 40).unwrap();
        a.set_label(&mut top).unwrap();
        a.mov(edx, ecx).unwrap();
        a.and(edx, 3).unwrap();
        a.shl(edx, 12).unwrap();
        a.add(rdx, WINDOW as i32).unwrap();
        a.call(rdx).unwrap();
        a.sub(rbx, rdx).unwrap();
        a.add(rdi, rbx).unwrap();
        a.dec(ecx).unwrap();
        a.jnz(top).unwrap();
        a.hlt().unwrap();
    });
    run_to_halt(&mut cpu);
    let nop = code.len() as u64 - 1;
    assert_eq!(cpu.gpr[7], 40 * nop);
}

/// The x87's registers, control and pointers are compared by the images that the program stores, too.
#[test]
fn x87_programs_leave_the_same_state() {
    let mut cpu = long_mode();
    for (n, value) in [1.5f64, -2.25, 1e300, 3.0e-310, 0.0, 7.0].into_iter().enumerate() {
        write(&cpu, DATA + 8 * n as u64, value.to_bits());
    }
    load(&cpu, |a| {
        let (mut top, mut below) = (a.create_label(), a.create_label());
        a.fninit().unwrap();
        a.mov(ecx, 20).unwrap();
        a.mov(r14, DATA).unwrap();
        a.mov(ebx, DATA as u32).unwrap();
        a.set_label(&mut top).unwrap();
        a.fld(qword_ptr(rbx)).unwrap();
        a.fld(qword_ptr(r14 + 8)).unwrap();
        a.fmul_2(st0, st1).unwrap();
        a.fadd(qword_ptr(rbx + 0x18)).unwrap();
        a.fsqrt().unwrap();
        a.fnstsw(ax).unwrap();
        a.add(edx, eax).unwrap();
        a.fld(st0).unwrap();
        a.fsin().unwrap();
        a.fstp(tbyte_ptr(rbx + 0x40)).unwrap();
        a.fild(dword_ptr(rbx + 4)).unwrap();
        a.fistp(qword_ptr(r14 + 0x50)).unwrap();
        a.fcomi(st0, st1).unwrap();
        a.jb(below).unwrap();
        a.fxch(st0, st1).unwrap();
        a.set_label(&mut below).unwrap();
        a.fcmovne(st0, st1).unwrap();
        a.fstp(qword_ptr(rbx + 0x58)).unwrap();
        a.fnstenv(ptr(rbx + 0x100)).unwrap();
        a.fldenv(ptr(rbx + 0x100)).unwrap();
        a.fst(dword_ptr(rbx + 0x60)).unwrap();
        a.fxsave(ptr(rbx + 0x200)).unwrap();
        a.fstp(qword_ptr(rbx)).unwrap();
        a.dec(ecx).unwrap();
        a.jnz(top).unwrap();
        // Rounding down, all masked; then with the exception for a division by zero.
        a.mov(dword_ptr(rbx + 0x70), 0x077f).unwrap();
        a.fldcw(word_ptr(rbx + 0x70)).unwrap();
        a.fld(qword_ptr(rbx + 0x10)).unwrap();
        a.frndint().unwrap();
        a.fnstcw(word_ptr(rbx + 0x74)).unwrap();
        a.mov(dword_ptr(rbx + 0x70), 0x037b).unwrap();
        a.fldcw(word_ptr(rbx + 0x70)).unwrap();
        a.fdiv(qword_ptr(rbx + 0x20)).unwrap();
        a.fnstsw(ax).unwrap();
        a.fnclex().unwrap();
        a.fld1().unwrap();
        a.fnsave(ptr(rbx + 0x400)).unwrap();
        a.hlt().unwrap();
    });
    run_to_halt(&mut cpu);
    assert_eq!(cpu.gpr[0] & 0x84, 0x84, "the division's exception is pending");
}

#[test]
fn mmx_programs_leave_the_same_state() {
    let mut cpu = long_mode();
    write(&cpu, DATA, 0x0102_0304_0506_0708);
    load(&cpu, |a| {
        let mut top = a.create_label();
        a.fninit().unwrap();
        a.mov(ecx, 5).unwrap();
        a.mov(r14, DATA).unwrap();
        a.set_label(&mut top).unwrap();
        a.movq(mm0, qword_ptr(r14)).unwrap();
        a.paddb(mm0, mm0).unwrap();
        a.movd(mm1, ecx).unwrap();
        a.pxor(mm0, mm1).unwrap();
        a.movq(qword_ptr(r14), mm0).unwrap();
        a.cvtpi2ps(xmm0, mm0).unwrap();
        a.movdq2q(mm2, xmm0).unwrap();
        a.emms().unwrap();
        a.fldpi().unwrap();
        a.fstp(dword_ptr(r14 + 16)).unwrap();
        a.dec(ecx).unwrap();
        a.jnz(top).unwrap();
        a.movq(mm7, mm2).unwrap();
        a.hlt().unwrap();
    });
    run_to_halt(&mut cpu);
}

/// Repeated moves and fills of all sizes: none, within a page, across pages, overlapping, downwards.
#[test]
fn repeated_strings_end_the_same() {
    let mut cpu = paged();
    for n in 0..0x800 {
        write(&cpu, FRAMES + 8 * n, n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    }
    type Emit = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    let moves: [Emit; 8] = [
        |a| a.rep().movsb(),
        |a| a.rep().movsw(),
        |a| a.rep().movsd(),
        |a| a.rep().movsq(),
        |a| a.rep().stosb(),
        |a| a.rep().stosw(),
        |a| a.rep().stosd(),
        |a| a.rep().stosq(),
    ];
    load(&cpu, |a| {
        let mut where_to = WINDOW;
        for (n, emit) in moves.into_iter().enumerate() {
            for (count, distance) in [(0, 0x4000), (1, 0x5003), (100, 7), (500, 0x6ffb), (1500, 3)]
            {
                where_to = WINDOW + (where_to - WINDOW + 0x123) % 0x2000;
                a.mov(rsi, where_to).unwrap();
                a.mov(rdi, where_to + distance).unwrap();
                a.mov(ecx, count).unwrap();
                a.mov(rax, 0x1122_3344_5566_7788u64 + n as u64).unwrap();
                a.cmp(ecx, eax).unwrap();
                emit(a).unwrap();
                a.adc(rbx, rsi).unwrap();
                a.add(rbx, rdi).unwrap();
            }
        }
        a.std().unwrap();
        a.mov(rsi, WINDOW + 0x1fff).unwrap();
        a.mov(rdi, WINDOW + 0x2fff).unwrap();
        a.mov(ecx, 0x1800).unwrap();
        a.rep().movsb().unwrap();
        a.cld().unwrap();
        a.hlt().unwrap();
    });
    run_to_halt(&mut cpu);
}

/// The same code at two addresses is translated once, and what is relative to RIP goes with it.
#[test]
fn code_that_is_mapped_twice_runs_at_both_addresses() {
    const SHARED: u64 = FRAMES;
    let mut cpu = paged();
    // In the page: a function that reads and writes what is relative to it, calls, steps and faults to
    // the interpreter, and returns its own address.
    let mut a = CodeAssembler::new(64).expect("64 bits");
    let (mut helper, mut data, mut over) = (a.create_label(), a.create_label(), a.create_label());
    a.lea(rax, qword_ptr(data)).unwrap();
    a.inc(qword_ptr(data)).unwrap();
    a.add(r8, rax).unwrap();
    a.call(helper).unwrap();
    a.fld1().unwrap();
    a.mov(rdx, cr2).unwrap();
    a.fstp(qword_ptr(data) + 8).unwrap();
    a.fnstenv(ptr(rsp - 64)).unwrap();
    a.mov(edx, dword_ptr(rsp - 64 + 12)).unwrap();
    a.add(r9, rdx).unwrap();
    a.jmp(over).unwrap();
    a.set_label(&mut helper).unwrap();
    a.pop(rdx).unwrap();
    a.xor(r10, rdx).unwrap();
    a.rol(r10, 7).unwrap();
    a.push(rdx).unwrap();
    a.ret().unwrap();
    a.set_label(&mut over).unwrap();
    a.ret().unwrap();
    a.nops_with_size(8).unwrap();
    a.set_label(&mut data).unwrap();
    a.dq(&[0, 0]).unwrap();
    let bytes = a.assemble(WINDOW).expect("encodable");
    cpu.memory.write(SHARED, &bytes).expect("RAM");
    load(&cpu, |a| {
        let mut top = a.create_label();
        a.fninit().unwrap();
        a.mov(ecx, 100).unwrap();
        a.mov(rsi, WINDOW).unwrap();
        a.mov(rdi, WINDOW + 0x4_0000).unwrap();
        a.set_label(&mut top).unwrap();
        a.call(rsi).unwrap();
        a.call(rdi).unwrap();
        a.dec(ecx).unwrap();
        a.jnz(top).unwrap();
        a.hlt().unwrap();
    });
    run_to_halt(&mut cpu);
    let data = WINDOW + bytes.len() as u64 - 16;
    assert_eq!(cpu.gpr[8], (200 * data).wrapping_add(100 * 0x4_0000));
    let mut count = [0; 8];
    cpu.memory.read(SHARED + bytes.len() as u64 - 16, &mut count).expect("RAM");
    assert_eq!(u64::from_le_bytes(count), 200);
}
