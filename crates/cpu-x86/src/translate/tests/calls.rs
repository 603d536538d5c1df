//! Programs that make system calls.

use iced_x86::code_asm::*;

use accel::{Exit, Vcpu};

use crate::counters::Count;
use crate::cpu::Translation;
use crate::flags::bits;
use crate::regs::EFER_SCE;
use crate::testing::{STACK, load, long_mode, run_to_halt};

const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const SFMASK: u32 = 0xc000_0084;
const KERNEL_GS: u32 = 0xc000_0102;
const ROUNDS: i32 = 300;

/// Writes a model-specific register.
fn write_msr(a: &mut CodeAssembler, index: u32, low: u32, high: u32) {
    a.mov(ecx, index).unwrap();
    a.mov(eax, low).unwrap();
    a.mov(edx, high).unwrap();
    a.wrmsr().unwrap();
}

/// A kernel whose program makes system calls, and looks at its flags after each. `mask` is what the
/// calls clear of the flags.
fn calls(a: &mut CodeAssembler, mask: u64) {
    let (mut user, mut entry) = (a.create_label(), a.create_label());
    let mut done = a.create_label();
    write_msr(a, SFMASK, mask as u32, 0);
    write_msr(a, STAR, 0, 0x0010_0008);
    write_msr(a, KERNEL_GS, 0x3_0000, 0);
    a.lea(rax, qword_ptr(entry)).unwrap();
    a.mov(ecx, LSTAR).unwrap();
    a.xor(edx, edx).unwrap();
    a.wrmsr().unwrap();
    a.mov(ebx, ROUNDS).unwrap();
    a.lea(rcx, qword_ptr(user)).unwrap();
    a.mov(r11d, 0x202).unwrap();
    a.sysretq().unwrap();

    a.set_label(&mut user).unwrap();
    a.mov(eax, ebx).unwrap();
    a.add(eax, 0x7fff_ff80u32 as i32).unwrap();
    a.syscall().unwrap();
    a.adc(r9, 1).unwrap();
    a.pushfq().unwrap();
    a.pop(rdi).unwrap();
    a.rol(r10, 1).unwrap();
    a.xor(r10, rdi).unwrap();
    for _ in 0..2 {
        a.mov(rdi, ss).unwrap();
        a.add(r10, rdi).unwrap();
        a.mov(edi, cs).unwrap();
        a.add(r10, rdi).unwrap();
    }
    a.jmp(user).unwrap();

    a.set_label(&mut entry).unwrap();
    a.swapgs().unwrap();
    a.mov(qword_ptr(8).gs(), rsp).unwrap();
    a.mov(rsp, STACK - 0x1000).unwrap();
    a.push(r11).unwrap();
    a.push(rcx).unwrap();
    a.pushfq().unwrap();
    a.pop(rax).unwrap();
    a.rol(r12, 1).unwrap();
    a.xor(r12, rax).unwrap();
    for _ in 0..2 {
        a.mov(rax, cs).unwrap();
        a.add(r13, rax).unwrap();
        a.mov(eax, ss).unwrap();
        a.add(r13, rax).unwrap();
    }
    a.sti().unwrap();
    a.nop().unwrap();
    a.pushfq().unwrap();
    a.pop(rax).unwrap();
    a.xor(r14, rax).unwrap();
    a.cli().unwrap();
    a.stac().unwrap();
    a.pushfq().unwrap();
    a.clac().unwrap();
    a.pop(rax).unwrap();
    a.xor(r15, rax).unwrap();
    a.dec(ebx).unwrap();
    a.je(done).unwrap();
    a.pop(rcx).unwrap();
    a.pop(r11).unwrap();
    a.mov(rsp, qword_ptr(8).gs()).unwrap();
    a.swapgs().unwrap();
    a.sysretq().unwrap();
    a.set_label(&mut done).unwrap();
    a.hlt().unwrap();
}

#[test]
fn system_calls_are_the_same_in_both_engines() {
    let usual = bits::AC | bits::TF | bits::IF | bits::DF | bits::NT | bits::IOPL;
    // Without some of the flags the translator leaves them to the interpreter.
    for mask in [usual, usual | bits::ARITH, 0, bits::IF, u64::from(u32::MAX)] {
        let mut cpu = long_mode();
        cpu.efer |= EFER_SCE;
        load(&cpu, |a| calls(a, mask));
        run_to_halt(&mut cpu);
        assert_eq!(cpu.gpr[13], 2 * (8 + 16) * ROUNDS as u64, "the kernel's selectors");
        assert_eq!(cpu.cpl, 0);
    }
}

#[test]
fn system_calls_stay_in_translated_code() {
    let mut cpu = long_mode();
    cpu.efer |= EFER_SCE;
    load(&cpu, |a| calls(a, bits::AC | bits::TF | bits::IF));
    assert!(cpu.set_translation(Some(Translation { threshold: 1, ..Translation::default() })));
    assert!(matches!(cpu.run(), Exit::Halt { .. }));
    let steps = cpu.counters.value(Count::Steps);
    // MOV from CS is the interpreter's in each round; SYSCALL and SYSRET and the others are not.
    assert!(steps < 2 * ROUNDS as u64, "{steps} instructions stepped");
    assert!(cpu.counters.value(Count::Entries) < 100, "the run loop is hardly needed");
}
