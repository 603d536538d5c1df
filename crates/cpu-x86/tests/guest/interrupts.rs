//! When interrupts and NMIs are taken, and what holds them off (APM volume 2, sections 8.1 and 8.5).

use accel::{Exit, Signal, Vcpu};
use iced_x86::code_asm::*;

use super::*;

/// A handler that reports `value` and RBX.
fn reporter(board: &Board, vector: u8, value: u32) {
    let at = HANDLER + 0x100 * u64::from(vector);
    gate(board, vector, at);
    code(board, 64, at, |a| {
        a.mov(eax, value).unwrap();
        a.out(0xe9, eax).unwrap();
        a.mov(eax, ebx).unwrap();
        a.out(0xe9, eax).unwrap();
        a.iretq().unwrap();
    });
}

#[test]
fn hlt_waits_for_an_interrupt_and_goes_on_after_it() {
    let (mut cpu, board) = long_mode();
    reporter(&board, 0x40, 7);
    code(&board, 64, CODE, |a| {
        a.xor(ebx, ebx).unwrap();
        a.sti().unwrap();
        a.hlt().unwrap();
        a.inc(ebx).unwrap();
        a.cli().unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(run_to_halt(&mut cpu, &board), [0u32; 0]);
    assert_eq!(run_to_halt(&mut cpu, &board), [0u32; 0], "nothing has happened");
    board.interrupt(0x40);
    assert_eq!(run_to_halt(&mut cpu, &board), [7, 0]);
    assert_eq!(cpu.state().gpr[3], 1);
    // With interrupts off only an NMI ends the halt.
    board.interrupt(0x40);
    let Exit::Halt { wake } = cpu.run() else { panic!("it halts") };
    assert_eq!(wake & Signal::Interrupt as u32, 0);
    assert_ne!(wake & Signal::Nmi as u32, 0);
}

#[test]
fn sti_and_loads_of_ss_hold_interrupts_off_for_one_instruction() {
    let (mut cpu, board) = long_mode();
    reporter(&board, 0x40, 7);
    code(&board, 64, CODE, |a| {
        a.xor(ebx, ebx).unwrap();
        a.mov(eax, 0x40).unwrap();
        a.out(0xea, al).unwrap();
        // Never taken: the shadow covers CLI.
        a.sti().unwrap();
        a.cli().unwrap();
        a.inc(ebx).unwrap();
        // Taken after INC.
        a.sti().unwrap();
        a.inc(ebx).unwrap();
        a.inc(ebx).unwrap();
        // Taken after the instruction that follows the load.
        a.mov(ecx, ss).unwrap();
        a.cli().unwrap();
        a.mov(eax, 0x40).unwrap();
        a.out(0xea, al).unwrap();
        a.pushfq().unwrap();
        a.or(dword_ptr(rsp), 0x200).unwrap();
        a.mov(edx, ebx).unwrap();
        a.popfq().unwrap();
        a.inc(ebx).unwrap();
        a.cli().unwrap();
        a.hlt().unwrap();
    });
    // POPF, unlike STI, has no shadow.
    assert_eq!(run_to_halt(&mut cpu, &board), [7, 2, 7, 3]);
}

#[test]
fn an_nmi_is_held_off_until_the_handler_of_the_first_returns() {
    let (mut cpu, board) = long_mode();
    gate(&board, 2, HANDLER);
    code(&board, 64, HANDLER, |a| {
        let mut last = a.create_label();
        a.inc(ebx).unwrap();
        a.mov(eax, ebx).unwrap();
        a.out(0xe9, eax).unwrap();
        a.cmp(ebx, 2).unwrap();
        a.je(last).unwrap();
        // Another one now: it has to wait for the IRET.
        a.out(0xeb, al).unwrap();
        a.mov(eax, 100).unwrap();
        a.out(0xe9, eax).unwrap();
        a.set_label(&mut last).unwrap();
        a.iretq().unwrap();
    });
    code(&board, 64, CODE, |a| {
        a.xor(ebx, ebx).unwrap();
        a.out(0xeb, al).unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(run_to_halt(&mut cpu, &board), [1, 100, 2]);
}

/// With CR0.NE clear, an x87 error goes to the board, and the next instruction that waits for the unit
/// waits until the board says that it may go on.
#[test]
fn x87_errors_can_go_through_an_interrupt() {
    let (mut cpu, board) = long_mode();
    gate(&board, 0x75, HANDLER);
    code(&board, 64, HANDLER, |a| {
        a.fnstsw(ax).unwrap();
        a.and(eax, 0x84).unwrap();
        a.out(0xe9, eax).unwrap();
        // The address of the instruction that failed, not of the one that waits.
        a.sub(rsp, 32).unwrap();
        a.fnstenv(dword_ptr(rsp)).unwrap();
        a.mov(eax, dword_ptr(rsp + 12)).unwrap();
        a.out(0xe9, eax).unwrap();
        a.add(rsp, 32).unwrap();
        a.fnclex().unwrap();
        a.iretq().unwrap();
    });
    code(&board, 64, CODE, |a| {
        a.mov(rax, cr0).unwrap();
        a.and(eax, !0x20).unwrap();
        a.mov(cr0, rax).unwrap();
        a.fninit().unwrap();
        a.push(0x37b).unwrap();
        a.fldcw(word_ptr(rsp)).unwrap();
        a.sti().unwrap();
        a.fld1().unwrap();
        a.fldz().unwrap();
        // Division by zero, unmasked.
        a.fdivp(st1, st0).unwrap();
        a.fld1().unwrap();
        a.mov(eax, 1).unwrap();
        a.out(0xe9, eax).unwrap();
        a.hlt().unwrap();
    });
    let output = run_to_halt(&mut cpu, &board);
    assert_eq!((output[0], output.last()), (0x84, Some(&1)));
    assert_eq!(output.len(), 3);
    let mut failed = [0; 2];
    board.memory.read(u64::from(output[1]), &mut failed).unwrap();
    assert_eq!(failed, [0xde, 0xf9], "FDIVP");
}

#[test]
fn the_task_priority_is_cr8() {
    let (mut cpu, board) = long_mode();
    code(&board, 64, CODE, |a| {
        a.mov(eax, 5).unwrap();
        a.mov(cr8, rax).unwrap();
        a.xor(eax, eax).unwrap();
        a.mov(rax, cr8).unwrap();
        a.out(0xe9, eax).unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(run_to_halt(&mut cpu, &board), [5]);
}
