//! Hardware task switching (SDM volume 3, chapter 8).

use accel::Vcpu;
use iced_x86::code_asm::*;

use super::*;

/// Task state segments: the first task's, two others of 32 bits, one of 16.
const TSS: [u64; 4] = [0x6000, 0x6100, 0x6200, 0x6300];
const TASK: [u16; 4] = [0x20, 0x28, 0x30, 0x38];
const TASK_GATE: u16 = 0x40;
/// A segment that is not present, and one that is code.
const ABSENT: u16 = 0x48;
/// Where the second task runs, and its stack.
const OTHER: u64 = 0x3_0000;
const OTHER_STACK: u64 = 0x7_0000;

fn put32(board: &Board, at: u64, value: u32) {
    board.memory.write(at, &value.to_le_bytes()).expect("RAM");
}

fn put16(board: &Board, at: u64, value: u16) {
    board.memory.write(at, &value.to_le_bytes()).expect("RAM");
}

fn get32(board: &Board, at: u64) -> u32 {
    get(board, at) as u32
}

/// Type of the descriptor of `selector`.
fn kind(board: &Board, selector: u16) -> u64 {
    get(board, GDT + u64::from(selector)) >> 40 & 0x1f
}

/// A far JMP (0xea) or CALL (0x9a) to `selector`.
fn far(a: &mut CodeAssembler, opcode: u8, selector: u16) {
    let [low, high] = selector.to_le_bytes();
    a.db(&[opcode, 0, 0, 0, 0, low, high]).unwrap();
}

fn report(a: &mut CodeAssembler, value: u32) {
    a.push(eax).unwrap();
    a.mov(eax, value).unwrap();
    a.out(0xe9, eax).unwrap();
    a.pop(eax).unwrap();
}

/// A machine whose first task is running, with the second at [`OTHER`].
fn tasks() -> (Cpu, Arc<Board>) {
    let (mut cpu, board) = protected_mode();
    for (n, (tss, task)) in TSS.into_iter().zip(TASK).enumerate() {
        let kind = if n == 3 { 0x81 } else { 0x89 };
        let limit = if n == 3 { 0x2b } else { 0x67 };
        put(&board, GDT + u64::from(task), tss << 16 | limit | kind << 40);
    }
    put(&board, GDT + u64::from(TASK_GATE), u64::from(TASK[1]) << 16 | 0x85 << 40);
    put(&board, GDT + u64::from(ABSENT), 0x00cf_1300_0000_ffff);
    for (n, tss) in TSS.into_iter().enumerate().take(3).skip(1) {
        put32(&board, tss + 0x20, OTHER as u32 + 0x1000 * (n as u32 - 1));
        put32(&board, tss + 0x24, 2);
        put32(&board, tss + 0x28, 0xaaaa_0000 + n as u32);
        put32(&board, tss + 0x38, OTHER_STACK as u32);
        for (at, selector) in [(0x48, DATA), (0x4c, CODE32), (0x50, DATA), (0x54, DATA)] {
            put16(&board, tss + at, selector);
        }
    }
    let mut state = cpu.state();
    state.tr = Segment { selector: TASK[0], base: TSS[0], limit: 0x67, attributes: 0x8b };
    cpu.set_state(&state).expect("a valid state");
    put(&board, GDT + u64::from(TASK[0]), TSS[0] << 16 | 0x67 | 0x8b << 40);
    for vector in 0..32 {
        let handler = HANDLER + 0x20 * u64::from(vector);
        gate32(&board, vector, handler);
        code(&board, 32, handler, |a| {
            report(a, 0xff00 | u32::from(vector));
            a.hlt().unwrap();
        });
    }
    (cpu, board)
}

#[test]
fn jumps_save_one_task_and_load_the_other() {
    let (mut cpu, board) = tasks();
    code(&board, 32, CODE, |a| {
        a.mov(ebx, 0x1111).unwrap();
        a.mov(esi, 0x6666).unwrap();
        far(a, 0xea, TASK[1]);
        report(a, 2);
        a.mov(eax, ebx).unwrap();
        a.out(0xe9, eax).unwrap();
        a.hlt().unwrap();
    });
    code(&board, 32, OTHER, |a| {
        a.out(0xe9, eax).unwrap();
        a.str(ecx).unwrap();
        a.mov(eax, ecx).unwrap();
        a.out(0xe9, eax).unwrap();
        a.mov(eax, cr0).unwrap();
        a.and(eax, 8).unwrap();
        a.out(0xe9, eax).unwrap();
        a.mov(ebx, 0).unwrap();
        far(a, 0xea, TASK[0]);
    });
    let expected = [0xaaaa_0001, u32::from(TASK[1]), 8, 2, 0x1111];
    assert_eq!(run_to_halt(&mut cpu, &board), expected);
    assert_eq!((kind(&board, TASK[0]), kind(&board, TASK[1])), (0xb, 9));
    assert_eq!(get32(&board, TSS[0] + 0x40), 0x6666, "ESI was saved");
    assert_eq!(get32(&board, TSS[0] + 0x20), CODE as u32 + 17);
    assert_eq!(get32(&board, TSS[1] + 0x20), OTHER as u32 + 31);
    assert_eq!(cpu.state().tr.selector, TASK[0]);
}

#[test]
fn calls_nest_and_iret_comes_back() {
    let (mut cpu, board) = tasks();
    code(&board, 32, CODE, |a| {
        far(a, 0x9a, TASK_GATE);
        report(a, 2);
        far(a, 0x9a, TASK[1]);
        a.pushfd().unwrap();
        a.pop(eax).unwrap();
        a.out(0xe9, eax).unwrap();
        a.hlt().unwrap();
    });
    code(&board, 32, OTHER, |a| {
        let mut again = a.create_label();
        a.set_label(&mut again).unwrap();
        a.pushfd().unwrap();
        a.pop(eax).unwrap();
        a.out(0xe9, eax).unwrap();
        a.iretd().unwrap();
        a.jmp(again).unwrap();
    });
    // NT is set in the called task alone.
    assert_eq!(run_to_halt(&mut cpu, &board), [0x4002, 2, 0x4002, 2]);
    assert_eq!(get(&board, TSS[1]) as u16, TASK[0], "the link");
    assert_eq!((kind(&board, TASK[0]), kind(&board, TASK[1])), (0xb, 9));
    assert_eq!(get32(&board, TSS[1] + 0x24), 2, "NT is not saved by IRET");
}

#[test]
fn exceptions_and_interrupts_through_task_gates() {
    let (mut cpu, board) = tasks();
    for vector in [6, 13, 0x40u64] {
        put(&board, IDT + 8 * vector, u64::from(TASK[1]) << 16 | 0x85 << 40);
    }
    code(&board, 32, CODE, |a| {
        a.ud2().unwrap();
        report(a, 3);
        // #GP(DATA | 4): a selector in an LDT that there is not.
        a.mov(eax, u32::from(DATA | 4)).unwrap();
        a.mov(ds, eax).unwrap();
        report(a, 4);
        a.int(0x40).unwrap();
        report(a, 5);
        a.hlt().unwrap();
    });
    // Steps over the instruction, two bytes long, unless it was INT.
    code(&board, 32, OTHER, |a| {
        let (mut again, mut done) = (a.create_label(), a.create_label());
        a.set_label(&mut again).unwrap();
        a.mov(eax, esp).unwrap();
        a.out(0xe9, eax).unwrap();
        a.cmp(esp, OTHER_STACK as u32).unwrap();
        a.mov(eax, dword_ptr(TSS[0] + 0x20)).unwrap();
        a.out(0xe9, eax).unwrap();
        let mut no_code = a.create_label();
        a.je(no_code).unwrap();
        a.pop(eax).unwrap();
        a.out(0xe9, eax).unwrap();
        a.set_label(&mut no_code).unwrap();
        a.mov(eax, dword_ptr(TSS[0] + 0x20)).unwrap();
        a.cmp(byte_ptr(eax), 0x40).unwrap();
        a.mov(ecx, dword_ptr(eax - 2)).unwrap();
        a.cmp(cx, 0x40cd).unwrap();
        a.je(done).unwrap();
        a.add(dword_ptr(TSS[0] + 0x20), 2).unwrap();
        a.set_label(&mut done).unwrap();
        a.iretd().unwrap();
        a.jmp(again).unwrap();
    });
    let at = CODE as u32;
    let stack = OTHER_STACK as u32;
    let report_len = 9;
    let load = at + 2 + report_len + 5;
    let int = load + 2 + report_len;
    let expected = [stack, at, 3, stack - 4, load, u32::from(DATA | 4), 4, stack, int + 2, 5];
    assert_eq!(run_to_halt(&mut cpu, &board), expected);
    // RF is set in what a fault saves, not in what INT does; the last one was INT.
    assert_eq!(get32(&board, TSS[0] + 0x24) & 0x1_0000, 0);
}

#[test]
fn the_return_of_a_task_lets_the_next_nmi_in() {
    let (mut cpu, board) = tasks();
    put(&board, IDT + 8 * 2, u64::from(TASK[1]) << 16 | 0x85 << 40);
    code(&board, 32, CODE, |a| {
        a.out(0xeb, al).unwrap();
        report(a, 3);
        a.out(0xeb, al).unwrap();
        report(a, 4);
        a.hlt().unwrap();
    });
    // The first raises another, which waits for its return.
    code(&board, 32, OTHER, |a| {
        let (mut again, mut done) = (a.create_label(), a.create_label());
        a.set_label(&mut again).unwrap();
        report(a, 1);
        a.inc(ebx).unwrap();
        a.cmp(ebx, 1).unwrap();
        a.jne(done).unwrap();
        a.out(0xeb, al).unwrap();
        report(a, 2);
        a.set_label(&mut done).unwrap();
        a.iretd().unwrap();
        a.jmp(again).unwrap();
    });
    put32(&board, TSS[1] + 0x34, 0);
    assert_eq!(run_to_halt(&mut cpu, &board), [1, 2, 1, 3, 1, 4]);
}

/// Runs `program` in the first task; returns what was reported, and for an exception its error code and
/// saved EIP.
fn faults(
    prepare: impl FnOnce(&Board),
    program: impl FnOnce(&mut CodeAssembler),
) -> (Vec<u32>, u32, u32) {
    let (mut cpu, board) = tasks();
    prepare(&board);
    code(&board, 32, CODE, |a| {
        program(a);
        a.hlt().unwrap();
    });
    let output = run_to_halt(&mut cpu, &board);
    let top = cpu.state().gpr[4];
    (output, get32(&board, top), get32(&board, top + 4))
}

#[test]
fn tasks_that_cannot_be_entered_fault_in_the_old_one() {
    let at = CODE as u32;
    let busy = faults(|_| {}, |a| far(a, 0xea, TASK[0]));
    assert_eq!(busy, (vec![0xff0d], TASK[0].into(), at));
    let short = faults(
        |board| put(board, GDT + u64::from(TASK[1]), TSS[1] << 16 | 0x66 | 0x89 << 40),
        |a| far(a, 0xea, TASK[1]),
    );
    assert_eq!(short, (vec![0xff0a], TASK[1].into(), at));
    let absent = faults(
        |board| put(board, GDT + u64::from(TASK[1]), TSS[1] << 16 | 0x67 | 0x09 << 40),
        |a| far(a, 0x9a, TASK_GATE),
    );
    assert_eq!(absent, (vec![0xff0b], TASK[1].into(), at));
    // IRET to a task that is not busy.
    let idle = faults(
        |board| put(board, TSS[0], TASK[1].into()),
        |a| {
            a.push(0x4002).unwrap();
            a.popfd().unwrap();
            a.iretd().unwrap();
        },
    );
    assert_eq!(idle, (vec![0xff0a], TASK[1].into(), at + 6));
}

#[test]
fn what_is_wrong_with_a_new_task_faults_in_it() {
    let other = OTHER as u32;
    let data =
        faults(|board| put16(board, TSS[1] + 0x54, CODE32 + 0x100), |a| far(a, 0xea, TASK[1]));
    assert_eq!(data, (vec![0xff0a], u32::from(CODE32) + 0x100, other));
    let absent = faults(|board| put16(board, TSS[1] + 0x48, ABSENT), |a| far(a, 0xea, TASK[1]));
    assert_eq!(absent, (vec![0xff0b], ABSENT.into(), other));
}

/// The error code that a handler of #TS, #NP and #SS in a task of its own finds after a jump to the
/// second task. Its link has to be that task, with EIP still at the first instruction.
fn fault_in_new_task(prepare: impl FnOnce(&Board)) -> (u32, u32) {
    let (mut cpu, board) = tasks();
    prepare(&board);
    for vector in [10, 11, 12] {
        put(&board, IDT + 8 * vector, u64::from(TASK[2]) << 16 | 0x85 << 40);
    }
    put32(&board, TSS[2] + 0x38, OTHER_STACK as u32 - 0x1000);
    code(&board, 32, CODE, |a| far(a, 0xea, TASK[1]));
    code(&board, 32, OTHER + 0x1000, |a| a.hlt().unwrap());
    run_to_halt(&mut cpu, &board);
    assert_eq!(cpu.state().tr.selector, TASK[2]);
    assert_eq!(get(&board, TSS[2]) as u16, TASK[1]);
    assert_eq!(get32(&board, TSS[1] + 0x20), OTHER as u32);
    let top = cpu.state().gpr[4];
    assert_eq!(top, OTHER_STACK - 0x1004);
    (get32(&board, top), get32(&board, TSS[1] + 0x24) >> 16 & 1)
}

#[test]
fn faults_of_a_new_task_are_for_handlers_that_are_tasks() {
    let selector = |at: u64, value: u16| move |board: &Board| put16(board, TSS[1] + at, value);
    // The handler's RF is set, as it returns to an instruction that has not begun.
    assert_eq!(fault_in_new_task(selector(0x60, DATA)), (DATA.into(), 1));
    assert_eq!(fault_in_new_task(selector(0x4c, DATA)), (DATA.into(), 1));
    assert_eq!(fault_in_new_task(selector(0x4c, 0)), (0, 1));
    assert_eq!(fault_in_new_task(selector(0x50, CODE32)), (CODE32.into(), 1));
    assert_eq!(fault_in_new_task(selector(0x50, DATA | 3)), (DATA.into(), 1));
    assert_eq!(fault_in_new_task(selector(0x50, ABSENT)), (ABSENT.into(), 1));
}

#[test]
fn the_debug_trap_flag_traps_before_the_first_instruction() {
    let (mut cpu, board) = tasks();
    put16(&board, TSS[1] + 0x64, 1);
    code(&board, 32, CODE, |a| far(a, 0x9a, TASK[1]));
    code(&board, 32, OTHER, |a| report(a, 1));
    assert_eq!(run_to_halt(&mut cpu, &board), [0xff01]);
    let state = cpu.state();
    assert_eq!(state.dr[6], 0xffff_0ff0 | 1 << 15);
    assert_eq!(get32(&board, state.gpr[4]), OTHER as u32);
}

#[test]
fn a_switch_turns_local_breakpoints_off() {
    let (mut cpu, board) = tasks();
    code(&board, 32, CODE, |a| {
        // L0, G1, L3 and LE, on addresses that nothing touches.
        a.mov(eax, 0x5000_0000u32).unwrap();
        a.mov(dr0, eax).unwrap();
        a.mov(dr1, eax).unwrap();
        a.mov(dr3, eax).unwrap();
        a.mov(eax, 0x549).unwrap();
        a.mov(dr7, eax).unwrap();
        far(a, 0xea, TASK[1]);
    });
    code(&board, 32, OTHER, |a| a.hlt().unwrap());
    run_to_halt(&mut cpu, &board);
    assert_eq!(cpu.state().dr[7], 0x408);
}

#[test]
fn tasks_of_16_bits() {
    let (mut cpu, board) = tasks();
    put16(&board, TSS[3] + 0x0e, OTHER as u16);
    put16(&board, TSS[3] + 0x10, 2);
    put16(&board, TSS[3] + 0x12, 0x4444);
    put16(&board, TSS[3] + 0x1a, 0x8000);
    for (at, selector) in [(0x22, DATA), (0x24, 0x50), (0x26, DATA), (0x28, DATA)] {
        put16(&board, TSS[3] + at, selector);
    }
    // Code of 16 bits whose base makes up for the offset's missing bits.
    let base = OTHER & !0xffff;
    put(&board, GDT + 0x50, 0xffff | base << 16 | 0x9b << 40);
    code(&board, 32, CODE, |a| {
        a.mov(eax, 0x1234_5678).unwrap();
        a.mov(ebx, 0x9999_8888u32).unwrap();
        far(a, 0x9a, TASK[3]);
        a.mov(eax, ebx).unwrap();
        a.out(0xe9, eax).unwrap();
        a.hlt().unwrap();
    });
    code(&board, 16, OTHER, |a| {
        a.out(0xe9, ax).unwrap();
        a.mov(ebx, 0).unwrap();
        a.mov(ax, gs).unwrap();
        a.out(0xe9, ax).unwrap();
        a.iret().unwrap();
    });
    // The first task's segment has 32 bits, so nothing of EBX is lost.
    assert_eq!(run_to_halt(&mut cpu, &board), [0x4444, 0, 0x9999_8888]);
    assert_eq!(get(&board, TSS[3] + 0x0e) as u16, OTHER as u16 + 13);
    assert_eq!(kind(&board, TASK[3]), 1);
}

#[test]
fn a_task_in_virtual_8086_mode() {
    let (mut cpu, board) = tasks();
    put32(&board, TSS[1] + 0x20, 0);
    put32(&board, TSS[1] + 0x24, 0x2_3002);
    for (at, selector) in [(0x4c, OTHER >> 4), (0x50, 0x7000), (0x54, 0x1234)] {
        put16(&board, TSS[1] + at, selector as u16);
    }
    put32(&board, TSS[1] + 0x38, 0x100);
    put16(&board, TSS[1] + 0x66, 0x68);
    put32(&board, TSS[1] + 4, STACK as u32);
    put16(&board, TSS[1] + 8, DATA);
    code(&board, 32, CODE, |a| far(a, 0xea, TASK[1]));
    code(&board, 16, OTHER, |a| {
        a.mov(ax, ds).unwrap();
        a.mov(bx, cs).unwrap();
        a.hlt().unwrap();
    });
    // HLT is not for CPL 3.
    assert_eq!(run_to_halt(&mut cpu, &board), [0xff0d]);
    let state = cpu.state();
    assert_eq!(state.gpr[3] & 0xffff, OTHER >> 4);
    let frame: Vec<u32> = (0..10).map(|n| get32(&board, state.gpr[4] + 4 * n)).collect();
    assert_eq!(frame[..6], [0, 4, (OTHER >> 4) as u32, 0x3_3002, 0x100, 0x7000]);
    assert_eq!(frame[7], 0x1234, "DS");
}
