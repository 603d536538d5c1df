//! System management mode (APM volume 2, chapter 10), and the A20 gate.

use accel::{Exit, Signal, Vcpu};
use cpu_x86::state::Activity;
use iced_x86::code_asm::*;

use super::*;

/// SMBASE after power-on, and where tests move it.
const SMBASE: u64 = 0x3_0000;
const MOVED: u64 = 0x4_0000;
/// Offsets of the state save area within SMBASE's 64 KiB.
const IO_TRAP: u32 = 0xfec0;
const IO_RESTART: u32 = 0xfec8;
const HALT_RESTART: u32 = 0xfec9;
const REVISION: u32 = 0xfefc;
const BASE: u32 = 0xff00;
const CR0: u32 = 0xff58;
const RIP: u32 = 0xff78;
const RAX: u32 = 0xfff8;

/// A handler for an SMI at `base`: 16-bit code that can reach all of the first 4 GiB.
fn handler(board: &Board, base: u64, program: impl FnOnce(&mut CodeAssembler)) {
    code(board, 16, base + 0x8000, |a| {
        program(a);
        // RSM
        a.db(&[0x0f, 0xaa]).unwrap();
    });
}

/// Reports `value`, using EAX.
fn report(a: &mut CodeAssembler, value: u32) {
    a.mov(eax, value).unwrap();
    a.out(0xe9, eax).unwrap();
}

/// Reports the doubleword at `at` of the save area.
fn report_saved(a: &mut CodeAssembler, at: u32) {
    a.mov(ebx, at).unwrap();
    a.mov(eax, dword_ptr(ebx).cs()).unwrap();
    a.out(0xe9, eax).unwrap();
}

#[test]
fn an_smi_comes_and_goes_without_a_trace() {
    let (mut cpu, board) = long_mode();
    handler(&board, SMBASE, |a| {
        report_saved(a, REVISION);
        report_saved(a, BASE);
        report_saved(a, RIP);
        report_saved(a, IO_TRAP);
        a.mov(ax, cs).unwrap();
        a.out(0xe9, ax).unwrap();
        a.mov(eax, cr0).unwrap();
        a.out(0xe9, eax).unwrap();
        // Segments reach beyond their 64 KiB.
        a.mov(ebx, HANDLER as u32 + 0x10_0000).unwrap();
        a.mov(dword_ptr(ebx), 0x5555).unwrap();
        a.mov(ecx, 0).unwrap();
        a.mov(esp, 0).unwrap();
    });
    code(&board, 64, CODE, |a| {
        a.mov(rcx, 0x1234_5678_9abc_def0u64).unwrap();
        a.mov(eax, 7).unwrap();
        a.out(0xec, al).unwrap();
        a.hlt().unwrap();
    });
    let mut before = cpu.state();
    // An OUT to port 0xec of one byte.
    let expected = [0x2_0064, SMBASE as u32, CODE as u32 + 17, 0xec_0012, 0x3000];
    let output = run_to_halt(&mut cpu, &board);
    let after = cpu.state();
    assert_eq!(output[..5], expected);
    // PE, EM, TS and PG are off, the rest is as it was.
    assert_eq!(u64::from(output[5]), before.cr0 & !(1 | 1 << 31));
    before.gpr[1] = 0x1234_5678_9abc_def0;
    before.gpr[0] = 7;
    before.rip = CODE + 18;
    before.activity = Activity::Halted;
    before.msrs = after.msrs.clone();
    assert_eq!(after, before);
    assert_eq!(get(&board, HANDLER + 0x10_0000), 0x5555);
}

#[test]
fn firmware_moves_smbase_and_changes_saved_registers() {
    let (mut cpu, board) = long_mode();
    handler(&board, SMBASE, |a| {
        a.mov(ebx, BASE).unwrap();
        a.mov(dword_ptr(ebx).cs(), MOVED as u32).unwrap();
    });
    handler(&board, MOVED, |a| {
        a.mov(ax, cs).unwrap();
        a.out(0xe9, ax).unwrap();
        a.mov(ebx, RAX).unwrap();
        a.mov(dword_ptr(ebx).cs(), 0x77).unwrap();
    });
    code(&board, 64, CODE, |a| {
        a.out(0xec, al).unwrap();
        a.out(0xec, al).unwrap();
        a.out(0xe9, eax).unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(run_to_halt(&mut cpu, &board), [0x4000, 0x77]);
    assert_eq!(u64::from(cpu.state().smbase), MOVED);
    // INIT leaves it, a reset does not.
    cpu.reset();
    assert_eq!(u64::from(cpu.state().smbase), SMBASE);
}

#[test]
fn a_halted_cpu_halts_again_unless_the_handler_says_otherwise() {
    let (mut cpu, board) = long_mode();
    handler(&board, SMBASE, |a| {
        a.mov(ebx, HALT_RESTART).unwrap();
        a.movzx(eax, byte_ptr(ebx).cs()).unwrap();
        a.out(0xe9, eax).unwrap();
    });
    code(&board, 64, CODE, |a| {
        a.hlt().unwrap();
        a.inc(ebx).unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(run_to_halt(&mut cpu, &board), [0u32; 0]);
    board.signals.raise(Signal::Smi);
    assert_eq!(run_to_halt(&mut cpu, &board), [1]);
    assert_eq!(cpu.state().rip, CODE + 1, "it still is in the first HLT");
    handler(&board, SMBASE, |a| {
        a.mov(ebx, HALT_RESTART).unwrap();
        a.mov(byte_ptr(ebx).cs(), 0).unwrap();
    });
    board.signals.raise(Signal::Smi);
    run_to_halt(&mut cpu, &board);
    assert_eq!(cpu.state().rip, CODE + 4);
}

#[test]
fn an_io_instruction_is_executed_again_if_the_handler_asks() {
    let (mut cpu, board) = long_mode();
    handler(&board, SMBASE, |a| {
        report_saved(a, IO_TRAP);
        // The second time, all is well.
        a.mov(ebx, 0x100).unwrap();
        a.inc(dword_ptr(ebx).cs()).unwrap();
        a.cmp(dword_ptr(ebx).cs(), 1).unwrap();
        a.mov(al, 0xffu32).unwrap();
        let mut first = a.create_label();
        a.je(first).unwrap();
        a.mov(al, 0).unwrap();
        a.set_label(&mut first).unwrap();
        a.mov(ebx, IO_RESTART).unwrap();
        a.mov(byte_ptr(ebx).cs(), al).unwrap();
    });
    code(&board, 64, CODE, |a| {
        a.mov(edx, 0xec).unwrap();
        a.mov(esi, CODE as u32).unwrap();
        a.mov(ecx, 1).unwrap();
        a.rep().outsd().unwrap();
        a.mov(eax, esi).unwrap();
        a.out(0xe9, eax).unwrap();
        a.hlt().unwrap();
    });
    // Of four bytes, repeated, a string.
    let word = 0xec_004e;
    assert_eq!(run_to_halt(&mut cpu, &board), [word, word, CODE as u32 + 4]);
}

#[test]
fn in_the_mode_interrupts_of_all_kinds_wait() {
    let (mut cpu, board) = long_mode();
    gate(&board, 2, HANDLER);
    code(&board, 64, HANDLER, |a| {
        report(a, 2);
        a.iretq().unwrap();
    });
    handler(&board, SMBASE, |a| {
        report(a, 0x51);
        // Another SMI and an NMI: taken after RSM, the SMI first.
        let mut last = a.create_label();
        a.mov(ebx, 0x100).unwrap();
        a.inc(dword_ptr(ebx).cs()).unwrap();
        a.cmp(dword_ptr(ebx).cs(), 2).unwrap();
        a.je(last).unwrap();
        a.out(0xeb, al).unwrap();
        a.out(0xec, al).unwrap();
        a.set_label(&mut last).unwrap();
        report(a, 0x52);
    });
    code(&board, 64, CODE, |a| {
        a.out(0xec, al).unwrap();
        report(a, 1);
        a.hlt().unwrap();
    });
    let expected = [0x51, 0x52, 0x51, 0x52, 2, 1];
    assert_eq!(run_to_halt(&mut cpu, &board), expected);
}

#[test]
fn init_waits_for_rsm() {
    let (mut cpu, board) = long_mode();
    handler(&board, SMBASE, |a| {
        let mut wait = a.create_label();
        report(a, 1);
        a.mov(ecx, 10).unwrap();
        a.set_label(&mut wait).unwrap();
        a.dec(cx).unwrap();
        a.jne(wait).unwrap();
        report(a, 2);
    });
    code(&board, 64, CODE, |a| {
        a.out(0xec, al).unwrap();
        a.hlt().unwrap();
    });
    board.signals.raise(Signal::Init);
    board.signals.raise(Signal::Smi);
    // The SMI is taken first. INIT then leads to the reset vector, where there is no memory and so
    // nothing that reports.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while board.output.lock().unwrap().len() < 2 {
                std::thread::yield_now();
            }
            board.signals.raise(Signal::Exit);
        });
        while cpu.run() != Exit::Interrupted {}
    });
    assert_eq!(*board.output.lock().unwrap(), [1, 2]);
}

#[test]
fn rsm_is_undefined_elsewhere_and_refuses_impossible_states() {
    let (mut cpu, board) = long_mode();
    gate(&board, 6, HANDLER);
    code(&board, 64, HANDLER, |a| a.hlt().unwrap());
    code(&board, 64, CODE, |a| a.db(&[0x0f, 0xaa]).unwrap());
    run_to_halt(&mut cpu, &board);
    assert_eq!(cpu.state().rip, HANDLER + 1);

    let (mut cpu, board) = long_mode();
    code(&board, 64, CODE, |a| a.out(0xec, al).unwrap());
    handler(&board, SMBASE, |a| {
        // Paging without protection.
        a.mov(ebx, CR0).unwrap();
        a.mov(dword_ptr(ebx).cs(), 0x8000_0010u32).unwrap();
    });
    assert_eq!(cpu.run(), Exit::Shutdown);
}

#[test]
fn a_state_within_the_mode_is_saved_and_restored() {
    let (mut cpu, board) = long_mode();
    handler(&board, SMBASE, |a| {
        report(a, 1);
        a.hlt().unwrap();
        report(a, 2);
    });
    code(&board, 64, CODE, |a| {
        a.out(0xec, al).unwrap();
        report(a, 3);
        a.hlt().unwrap();
    });
    assert_eq!(run_to_halt(&mut cpu, &board), [1]);
    let mut state = cpu.state();
    assert!(state.smm);
    cpu.reset();
    state.activity = Activity::Running;
    cpu.set_state(&state).unwrap();
    assert_eq!(run_to_halt(&mut cpu, &board), [1, 2, 3]);
    assert!(!cpu.state().smm);
}

#[test]
fn with_the_a20_gate_closed_addresses_wrap_at_one_megabyte() {
    let (mut cpu, board) = machine(&[(0, RAM)], 1).pop().expect("one CPU");
    put(&board, 0x500, 0x1111);
    put(&board, 0x10_0500, 0x2222);
    let load = |a: &mut CodeAssembler| {
        a.mov(ax, word_ptr(0x510)).unwrap();
        a.out(0xe9, ax).unwrap();
    };
    handler(&board, SMBASE, |a| {
        // The line is on in system management mode.
        a.mov(ebx, 0x10_0500).unwrap();
        a.mov(ax, word_ptr(ebx)).unwrap();
        a.out(0xe9, ax).unwrap();
    });
    code(&board, 16, CODE, |a| {
        a.mov(ax, 0xffff).unwrap();
        a.mov(ds, ax).unwrap();
        load(a);
        a.mov(al, 0).unwrap();
        a.out(0xed, al).unwrap();
        load(a);
        a.mov(word_ptr(0x510), 0x3333).unwrap();
        a.out(0xec, al).unwrap();
        a.mov(al, 1).unwrap();
        a.out(0xed, al).unwrap();
        load(a);
        a.hlt().unwrap();
    });
    let mut state = cpu.state();
    state.segments[1].base = 0;
    state.rip = CODE & 0xffff;
    state.segments[1].base = CODE & !0xffff;
    cpu.set_state(&state).unwrap();
    assert_eq!(run_to_halt(&mut cpu, &board), [0x2222, 0x1111, 0x2222, 0x2222]);
    assert_eq!(get(&board, 0x500), 0x3333);
}
