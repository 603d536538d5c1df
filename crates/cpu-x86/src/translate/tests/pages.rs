//! Code in several pages, which page tables move about while it runs.

use std::thread;
use std::time::Duration;

use accel::{Exit, Signal, Vcpu};
use iced_x86::code_asm::*;

use super::{FRAMES, TABLE, WINDOW, paged, write};
use crate::cpu::{Cpu, Translation};
use crate::testing::{STACK, load, run_to_halt};

/// Where the window is for a second time: where code is translated for any address.
const HIGH: u64 = 0x4000_4000_0000;
/// How often functions are called whose page is another one each time.
const ROUNDS: i32 = 300;

/// As [`paged`], with what is in the window at [`HIGH`], too.
fn paged_twice() -> Cpu {
    let cpu = paged();
    write(&cpu, 0x1000 + 8 * (HIGH >> 39), 0x2007);
    cpu
}

/// Writes a program to frame number `frame`, which is mapped at `linear`.
fn put(cpu: &Cpu, frame: u64, linear: u64, program: impl FnOnce(&mut CodeAssembler)) {
    let mut assembler = CodeAssembler::new(64).unwrap();
    program(&mut assembler);
    let code = assembler.assemble(linear).unwrap();
    cpu.memory.write(FRAMES + (frame << 12), &code).expect("RAM");
}

/// Calls the function at `base` again and again.
fn call_often(cpu: &Cpu, base: u64, more: impl FnOnce(&mut CodeAssembler)) {
    load(cpu, |a| {
        let mut top = a.create_label();
        a.mov(r9, base).unwrap();
        a.mov(ecx, ROUNDS).unwrap();
        a.set_label(&mut top).unwrap();
        a.call(r9).unwrap();
        more(a);
        a.dec(ecx).unwrap();
        a.jne(top).unwrap();
        a.hlt().unwrap();
    });
}

/// Has the page of the window number `page` be the one of two frames that it is not now.
fn exchange(a: &mut CodeAssembler, page: i32, frames: [i32; 2]) {
    a.xor(qword_ptr(TABLE + 8 * page as u64), (frames[0] ^ frames[1]) << 12).unwrap();
    a.invlpg(byte_ptr(r9 + (page << 12))).unwrap();
}

#[test]
fn jumps_to_a_page_go_to_what_it_is_now() {
    for base in [WINDOW, HIGH] {
        let mut cpu = paged_twice();
        put(&cpu, 0, base, |a| {
            let mut not = a.create_label();
            a.test(ecx, 2).unwrap();
            a.jne(base + 0x1010).unwrap();
            a.set_label(&mut not).unwrap();
            a.jmp(base + 0x1000).unwrap();
        });
        for (frame, step) in [(1, 1), (2, 100)] {
            put(&cpu, frame, base + 0x1000, |a| {
                a.add(rbx, step).unwrap();
                a.ret().unwrap();
                let len = a.assemble(0).unwrap().len();
                a.nops_with_size(0x10 - len).unwrap();
                a.add(rsi, step).unwrap();
                a.ret().unwrap();
            });
        }
        call_often(&cpu, base, |a| exchange(a, 1, [1, 2]));
        run_to_halt(&mut cpu);
        assert_eq!(cpu.gpr[3] + cpu.gpr[6], 101 * ROUNDS as u64 / 2, "{base:#x}");
    }
}

#[test]
fn returns_go_to_what_the_page_of_the_call_is_now() {
    for base in [WINDOW, HIGH] {
        let mut cpu = paged_twice();
        for (frame, step) in [(0, 1), (3, 100)] {
            put(&cpu, frame, base, |a| {
                a.call(base + 0x2000).unwrap();
                a.add(rbx, step).unwrap();
                a.ret().unwrap();
            });
        }
        put(&cpu, 2, base + 0x2000, |a| {
            exchange(a, 0, [0, 3]);
            a.ret().unwrap();
        });
        call_often(&cpu, base, |_| ());
        run_to_halt(&mut cpu);
        assert_eq!(cpu.gpr[3], 101 * ROUNDS as u64 / 2, "{base:#x}");
    }
}

/// Two pages that exclude each other in any table that has places for fewer than there are pages.
#[test]
fn pages_far_from_each_other_lead_to_each_other() {
    let mut cpu = paged_twice();
    put(&cpu, 0, HIGH, |a| a.jmp(HIGH + 0x8000).unwrap());
    put(&cpu, 8, HIGH + 0x8000, |a| {
        a.inc(rbx).unwrap();
        a.ret().unwrap();
    });
    put(&cpu, 1, HIGH + 0x1000, |a| a.jmp(HIGH - 0xff_8000).unwrap());
    // The same offset 16 MiB lower, by a directory of its own.
    write(&cpu, 0x2000, 0x6_4007);
    write(&cpu, 0x6_4000, 0x87);
    write(&cpu, 0x6_4008, 0x20_0087);
    write(&cpu, 0x6_4000 + 8 * 504, 0x6_5007);
    write(&cpu, 0x6_5000 + 8 * 8, (FRAMES + 0x9000) | 7);
    put(&cpu, 9, HIGH - 0xff_8000, |a| {
        a.add(rbx, 1000).unwrap();
        a.ret().unwrap();
    });
    call_often(&cpu, HIGH, |a| {
        a.lea(rax, byte_ptr(r9 + 0x1000)).unwrap();
        a.call(rax).unwrap();
    });
    run_to_halt(&mut cpu);
    assert_eq!(cpu.gpr[3], 1001 * ROUNDS as u64);
}

/// Stacks at any address, return addresses that no call has put there, and one that is 0.
#[test]
fn returns_without_calls_go_where_the_stack_says() {
    let mut cpu = paged();
    cpu.memory.write(0, &[0x41, 0xff, 0xe0]).expect("RAM");
    load(&cpu, |a| {
        let (mut top, mut called) = (a.create_label(), a.create_label());
        let (mut returned, mut other) = (a.create_label(), a.create_label());
        let mut back = a.create_label();
        a.mov(ecx, 2000).unwrap();
        a.lea(r8, qword_ptr(back)).unwrap();
        a.lea(r9, qword_ptr(other)).unwrap();
        a.set_label(&mut top).unwrap();
        a.mov(esp, ecx).unwrap();
        a.add(rsp, STACK as i32 - 0x4000).unwrap();
        a.call(called).unwrap();
        a.set_label(&mut returned).unwrap();
        a.add(rbx, 1).unwrap();
        a.push(0).unwrap();
        // What is at 0 jumps to R8.
        a.ret().unwrap();
        a.set_label(&mut back).unwrap();
        a.push(r9).unwrap();
        a.ret().unwrap();
        a.add(rbx, 1 << 30).unwrap();
        a.set_label(&mut other).unwrap();
        a.add(rbx, 3).unwrap();
        a.dec(ecx).unwrap();
        a.jne(top).unwrap();
        a.hlt().unwrap();
        a.set_label(&mut called).unwrap();
        a.test(ecx, 1).unwrap();
        a.je(back).unwrap();
        a.ret().unwrap();
    });
    run_to_halt(&mut cpu);
    assert_eq!(cpu.gpr[3], 1000 + 3 * 2000);
}

/// A loop of nothing but returns and jumps ahead, from where on the stack calls have returned to the same place.
#[test]
fn loops_of_returns_end_when_they_have_to() {
    let mut cpu = paged();
    load(&cpu, |a| {
        let (mut top, mut called) = (a.create_label(), a.create_label());
        let (mut returned, mut spin) = (a.create_label(), a.create_label());
        a.lea(r8, qword_ptr(returned)).unwrap();
        a.mov(r9, STACK).unwrap();
        a.mov(ecx, 600).unwrap();
        a.set_label(&mut top).unwrap();
        a.mov(rsp, r9).unwrap();
        a.call(called).unwrap();
        a.set_label(&mut returned).unwrap();
        a.test(rbp, rbp).unwrap();
        a.jne(spin).unwrap();
        a.sub(r9, 8).unwrap();
        a.dec(ecx).unwrap();
        a.jne(top).unwrap();
        a.inc(rbp).unwrap();
        a.set_label(&mut spin).unwrap();
        a.push(r8).unwrap();
        a.set_label(&mut called).unwrap();
        a.ret().unwrap();
    });
    let start = cpu.save();
    for engine in [None, Some(Translation { threshold: 1, ..Translation::default() })] {
        cpu.restore(&start).expect("a state that the CPU was in");
        assert!(cpu.set_translation(engine), "the host can translate");
        let signals = std::sync::Arc::clone(&cpu.signals);
        let later = thread::spawn(move || {
            thread::sleep(Duration::from_millis(100));
            signals.raise(Signal::Exit);
        });
        let exit = cpu.run();
        cpu.signals.clear(Signal::Exit);
        assert!(matches!(exit, Exit::Interrupted), "{exit:?}");
        assert_eq!(cpu.gpr[5], 1, "it was in the loop");
        later.join().expect("the thread ends");
    }
}
