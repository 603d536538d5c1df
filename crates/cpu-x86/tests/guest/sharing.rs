//! Memory that others change: code written by another CPU and by devices, and locked operations.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use accel::{Exit, Signal, Vcpu};
use iced_x86::code_asm::*;

use super::*;

/// Runs `cpu` until it halts; gives up after a time that no correct guest comes near.
fn run_for_long(cpu: &mut Cpu, board: &Board) -> Exit {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let start = Instant::now();
            while !done.load(Ordering::Relaxed) && start.elapsed() < Duration::from_secs(60) {
                std::thread::sleep(Duration::from_millis(1));
            }
            board.signals.raise(Signal::Exit);
        });
        let exit = cpu.run();
        done.store(true, Ordering::Relaxed);
        exit
    })
}

#[test]
fn code_that_another_cpu_writes_is_executed() {
    const FUNCTION: u64 = 0x3_0000;
    const LAST: u32 = 300;
    let mut machine = machine(&[(0, RAM)], 2);
    let (mut writer, writer_board) = machine.pop().expect("two CPUs");
    let (mut caller, board) = machine.pop().expect("two CPUs");
    enter_long_mode(&mut caller, &board);
    enter_long_mode(&mut writer, &writer_board);
    let mut state = writer.state();
    state.rip = HANDLER;
    state.gpr[4] = STACK - 0x1000;
    writer.set_state(&state).unwrap();
    code(&board, 64, FUNCTION, |a| {
        a.mov(eax, 0).unwrap();
        a.ret().unwrap();
    });
    // Calls the function until it returns the last number; numbers never go back.
    code(&board, 64, CODE, |a| {
        let (mut again, mut wrong) = (a.create_label(), a.create_label());
        a.xor(ebx, ebx).unwrap();
        a.set_label(&mut again).unwrap();
        a.call(FUNCTION).unwrap();
        a.mov(dword_ptr(0x4_0000), eax).unwrap();
        a.cmp(eax, ebx).unwrap();
        a.jb(wrong).unwrap();
        a.mov(ebx, eax).unwrap();
        a.cmp(eax, LAST).unwrap();
        a.jne(again).unwrap();
        a.hlt().unwrap();
        a.set_label(&mut wrong).unwrap();
        a.ud2().unwrap();
    });
    // Writes the next number once the caller has shown the present one.
    code(&board, 64, HANDLER, |a| {
        let (mut next, mut wait) = (a.create_label(), a.create_label());
        a.mov(ecx, 1).unwrap();
        a.set_label(&mut next).unwrap();
        a.mov(dword_ptr(FUNCTION + 1), ecx).unwrap();
        a.set_label(&mut wait).unwrap();
        a.pause().unwrap();
        a.cmp(dword_ptr(0x4_0000), ecx).unwrap();
        a.jne(wait).unwrap();
        a.inc(ecx).unwrap();
        a.cmp(ecx, LAST + 1).unwrap();
        a.jne(next).unwrap();
        a.hlt().unwrap();
    });
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let exit = run_for_long(&mut writer, &writer_board);
            assert!(matches!(exit, Exit::Halt { .. }), "writer: {exit:?}");
        });
        let exit = run_for_long(&mut caller, &board);
        assert!(matches!(exit, Exit::Halt { .. }), "caller: {exit:?}");
    });
    assert_eq!(caller.state().gpr[3], u64::from(LAST));
}

#[test]
fn code_that_a_device_writes_is_executed() {
    let (mut cpu, board) = long_mode();
    // A tight loop, which a device turns into a HLT.
    code(&board, 64, CODE, |a| a.db(&[0xeb, 0xfe]).unwrap());
    let exit = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(20));
            board.memory.write(CODE, &[0xf4]).unwrap();
        });
        run_for_long(&mut cpu, &board)
    });
    assert!(matches!(exit, Exit::Halt { .. }), "{exit:?}");
}

#[test]
fn locked_operations_of_four_cpus_lose_nothing() {
    const TIMES: u32 = 20_000;
    // Aligned, across two cache lines, across two pages; each has room for 64 bits.
    const COUNTERS: [u64; 3] = [0x30_0100, 0x30_023d, 0x30_0ffd];
    let mut machine = machine(&[(0, RAM)], 4);
    for (n, (cpu, board)) in machine.iter_mut().enumerate() {
        enter_long_mode(cpu, board);
        let mut state = cpu.state();
        state.gpr[4] = STACK - 0x1000 * n as u64;
        cpu.set_state(&state).unwrap();
    }
    code(&machine[0].1, 64, CODE, |a| {
        let (mut again, mut retry) = (a.create_label(), a.create_label());
        a.mov(ecx, TIMES).unwrap();
        a.set_label(&mut again).unwrap();
        a.lock().inc(qword_ptr(COUNTERS[0])).unwrap();
        a.mov(eax, 3).unwrap();
        a.lock().xadd(qword_ptr(COUNTERS[1]), rax).unwrap();
        a.mov(rax, qword_ptr(COUNTERS[2])).unwrap();
        a.set_label(&mut retry).unwrap();
        a.lea(rdx, qword_ptr(rax + 5)).unwrap();
        a.lock().cmpxchg(qword_ptr(COUNTERS[2]), rdx).unwrap();
        a.jne(retry).unwrap();
        a.dec(ecx).unwrap();
        a.jne(again).unwrap();
        a.hlt().unwrap();
    });
    std::thread::scope(|scope| {
        for (cpu, board) in &mut machine {
            scope.spawn(move || {
                let exit = run_for_long(cpu, board);
                assert!(matches!(exit, Exit::Halt { .. }), "{exit:?}");
            });
        }
    });
    let board = &machine[0].1;
    let total = 4 * u64::from(TIMES);
    assert_eq!(COUNTERS.map(|at| get(board, at)), [total, 3 * total, 5 * total]);
}
