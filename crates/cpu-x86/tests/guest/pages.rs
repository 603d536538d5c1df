//! Page faults in the middle of things: repeated instructions go on where they were.

use iced_x86::code_asm::*;

use super::*;

/// A table that maps the 2 MiB at 2 MiB in small pages.
const PT: u64 = 0x6000;
const BUFFER: u64 = 0x20_0000;

#[test]
fn a_repeated_move_continues_after_a_page_fault() {
    let (mut cpu, board) = long_mode();
    put(&board, PD + 8, PT | 7);
    // Only the first page is there; the handler maps each next one.
    put(&board, PT, BUFFER | 7);
    gate(&board, 14, HANDLER);
    code(&board, 64, HANDLER, |a| {
        a.pop(r8).unwrap();
        a.mov(rax, cr2).unwrap();
        a.out(0xe9, eax).unwrap();
        // What is left to do is in RCX already.
        a.mov(eax, ecx).unwrap();
        a.out(0xe9, eax).unwrap();
        a.mov(rax, cr2).unwrap();
        a.mov(r9, rax).unwrap();
        a.and(rax, -4096).unwrap();
        a.sub(eax, BUFFER as u32).unwrap();
        a.shr(eax, 9).unwrap();
        a.and(r9, -4096).unwrap();
        a.or(r9, 7).unwrap();
        a.mov(qword_ptr(rax + PT), r9).unwrap();
        a.iretq().unwrap();
    });
    code(&board, 64, CODE, |a| {
        a.mov(esi, 0x10_0000).unwrap();
        a.mov(edi, BUFFER as u32 + 0x800).unwrap();
        a.mov(ecx, 0x500).unwrap();
        a.cld().unwrap();
        a.rep().movsq().unwrap();
        a.hlt().unwrap();
    });
    let source: Vec<u8> = (0..0x2800u32).map(|n| ((n * 7) >> 3) as u8).collect();
    board.memory.write(0x10_0000, &source).unwrap();
    let base = BUFFER as u32;
    let expected = [base + 0x1000, 0x400, base + 0x2000, 0x200, base + 0x3000, 0];
    assert_eq!(run_to_halt(&mut cpu, &board), expected[..4]);
    let mut copy = vec![0; source.len()];
    board.memory.read(BUFFER + 0x800, &mut copy).unwrap();
    assert!(copy == source, "all bytes arrive once");
    let state = cpu.state();
    assert_eq!((state.gpr[1], state.gpr[7]), (0, BUFFER + 0x3000));
}

#[test]
fn an_instruction_that_faults_halfway_has_done_nothing() {
    let (mut cpu, board) = long_mode();
    put(&board, PD + 8, PT | 7);
    put(&board, PT, BUFFER | 7);
    gate(&board, 14, HANDLER);
    code(&board, 64, HANDLER, |a| a.hlt().unwrap());
    // A push that straddles into a page that is not there.
    code(&board, 64, CODE, |a| {
        a.mov(eax, 0x5555_5555).unwrap();
        a.mov(qword_ptr(BUFFER + 0xffc), rax).unwrap();
        a.hlt().unwrap();
    });
    put(&board, BUFFER + 0xff8, 0x1111_1111_2222_2222);
    run_to_halt(&mut cpu, &board);
    let state = cpu.state();
    assert_eq!(state.rip, HANDLER + 1);
    assert_eq!(state.cr2, BUFFER + 0x1000);
    assert_eq!(get(&board, BUFFER + 0xff8), 0x1111_1111_2222_2222);
    // Error code: a write by the supervisor to a page that is not there. RIP: at the store.
    assert_eq!((get(&board, state.gpr[4]), get(&board, state.gpr[4] + 8)), (2, CODE + 5));
}
