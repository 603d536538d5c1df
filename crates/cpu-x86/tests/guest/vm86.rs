//! Virtual-8086 mode: what depends on IOPL, virtual interrupts (CR4.VME, CR4.PVI), ports, and the way in
//! and out (APM volume 2, sections 8.10 and 12.2.5; SDM volume 3, chapter 21).

use accel::Vcpu;
use iced_x86::code_asm::*;

use super::*;

const TSS: u64 = 0x6000;
const TASK: u16 = 0x20;
/// The I/O map's offset; 32 bytes before it is the map of interrupts.
const IO_MAP: u64 = 0x88;
/// Where the program runs: CS is this by 16.
const PROGRAM: u64 = 0x2000 << 4;
const SS_SELECTOR: u32 = 0x7000;

const IF: u32 = 1 << 9;
const IOPL3: u32 = 3 << 12;
const VM: u32 = 1 << 17;
const VIF: u32 = 1 << 19;
const VIP: u32 = 1 << 20;
const VME: u64 = 1;
const PVI: u64 = 2;

/// How a program ended.
#[derive(Debug, PartialEq, Eq)]
struct Ended {
    vector: u8,
    /// Of the saved instruction pointer.
    ip: u32,
    flags: u32,
    /// What the program wrote to the port.
    output: Vec<u32>,
}

/// Runs 16-bit `program` in virtual-8086 mode with `flags` and CR4's `features`, to its first exception or interrupt.
fn run(flags: u32, features: u64, program: impl FnOnce(&mut CodeAssembler)) -> Ended {
    run_on(|_| {}, flags | VM, features, 16, program)
}

fn run_on(
    prepare: impl FnOnce(&Board),
    flags: u32,
    features: u64,
    bits: u32,
    program: impl FnOnce(&mut CodeAssembler),
) -> Ended {
    let (mut cpu, board) = protected_mode();
    put(&board, TSS + 4, STACK | u64::from(DATA) << 32);
    put(&board, TSS + 0x60, IO_MAP << 48);
    // Port 0xe9 is allowed, as are all of its neighbours; 0x3f8 is not.
    for at in (0..0x2000).step_by(8) {
        put(&board, TSS + IO_MAP + at, 0);
    }
    put(&board, TSS + IO_MAP + 0x78, 0xff << 56);
    put(&board, GDT + 0x28, 0x00cf_fb00_0000_ffff);
    put(&board, GDT + 0x30, 0x00cf_f300_0000_ffff);
    for vector in 0..64 {
        let handler = HANDLER + 0x1_0000 + 0x10 * u64::from(vector);
        gate32(&board, vector, handler);
        code(&board, 32, handler, |a| a.hlt().unwrap());
    }
    // INT 0x21 as a program of its own handles it, through the table at address 0.
    put(&board, 4 * 0x21, (PROGRAM >> 4) << 16 | 0x800);
    code(&board, 16, PROGRAM + 0x800, |a| {
        a.mov(ax, 0x2121).unwrap();
        a.out(0xe9, ax).unwrap();
        a.pushf().unwrap();
        a.pop(ax).unwrap();
        a.out(0xe9, ax).unwrap();
        // The flags that INT saved.
        a.mov(bp, sp).unwrap();
        a.mov(ax, word_ptr(bp + 4)).unwrap();
        a.out(0xe9, ax).unwrap();
        a.iret().unwrap();
    });
    prepare(&board);
    code(&board, bits, PROGRAM, program);
    let vm86 = flags & VM != 0;
    code(&board, 32, CODE, |a| {
        if vm86 {
            // GS, FS, DS, ES.
            for selector in [0x4444, 0x3333, 0x2222, 0x1111] {
                a.push(selector).unwrap();
            }
        }
        a.push(if vm86 { SS_SELECTOR as i32 } else { 0x33 }).unwrap();
        a.push(0xf00).unwrap();
        a.push(flags as i32).unwrap();
        a.push(if vm86 { (PROGRAM >> 4) as i32 } else { 0x2b }).unwrap();
        a.push(if vm86 { 0 } else { PROGRAM as i32 }).unwrap();
        a.iretd().unwrap();
    });
    let mut state = cpu.state();
    state.tr = Segment { selector: TASK, base: TSS, limit: 0x2fff, attributes: 0x8b };
    state.cr4 |= features;
    cpu.set_state(&state).expect("a valid state");
    let output = run_to_halt(&mut cpu, &board);
    let state = cpu.state();
    let vector = ((state.rip - 1 - HANDLER - 0x1_0000) / 0x10) as u8;
    let has_code = matches!(vector, 8 | 10..=14 | 17);
    let frame = state.gpr[4] + if has_code { 4 } else { 0 };
    let word = |n: u64| get(&board, frame + 4 * n) as u32;
    if vm86 {
        let segments: Vec<u32> = (5..9).map(word).collect();
        assert_eq!(segments[0] & 0xff, 0x11, "ES");
        assert_eq!(segments[3] & 0xff, 0x44, "GS");
        for index in [0, 3, 4, 5] {
            assert_eq!(state.segments[index], Segment::default(), "data segments are emptied");
        }
    }
    let base = if vm86 { 0 } else { PROGRAM as u32 };
    Ended { vector, ip: word(0) - base, flags: word(2), output }
}

/// The fault of `program`, which is one instruction.
fn one(flags: u32, features: u64, program: impl FnOnce(&mut CodeAssembler)) -> (u8, u32, u32) {
    let ended = run(flags, features, |a| {
        program(a);
        a.ud2().unwrap();
    });
    // RF is set in what faults save.
    (ended.vector, ended.ip, ended.flags & !(VM | 2 | 1 << 16))
}

#[test]
fn instructions_that_depend_on_iopl() {
    let gp = (13, 0, 0);
    assert_eq!(one(0, 0, |a| a.cli().unwrap()), gp);
    assert_eq!(one(0, 0, |a| a.sti().unwrap()), gp);
    assert_eq!(one(0, 0, |a| a.pushf().unwrap()), gp);
    assert_eq!(one(0, 0, |a| a.popf().unwrap()), gp);
    assert_eq!(one(0, 0, |a| a.int(0x21).unwrap()), gp);
    assert_eq!(one(0, 0, |a| a.iret().unwrap()), gp);
    assert_eq!(one(0, 0, |a| a.int3().unwrap()), gp, "the gate's DPL is 0");
    assert_eq!(one(IOPL3, 0, |a| a.sti().unwrap()), (6, 1, IOPL3 | IF));
    assert_eq!(one(IOPL3 | IF, 0, |a| a.cli().unwrap()), (6, 1, IOPL3));
    assert_eq!(one(IOPL3, 0, |a| a.pushf().unwrap()), (6, 1, IOPL3));
    assert_eq!(one(IOPL3, 0, |a| a.hlt().unwrap()), (13, 0, IOPL3));
    // Ports depend on the map alone.
    assert_eq!(one(IOPL3, 0, |a| a.in_(al, dx).unwrap()), (6, 1, IOPL3));
    let refused = run(IOPL3, 0, |a| {
        a.mov(dx, 0x3f8).unwrap();
        a.in_(al, dx).unwrap();
    });
    assert_eq!((refused.vector, refused.ip), (13, 3));
    // POPF changes neither IOPL nor VM, and what is above 16 bits only as a doubleword.
    let popped = run(IOPL3, 0, |a| {
        a.push(0x4fff).unwrap();
        a.popf().unwrap();
        a.nop().unwrap();
        a.ud2().unwrap();
    });
    assert_eq!((popped.vector, popped.ip), (1, 5), "with TF set, the next instruction traps");
    let popped = run(IOPL3, 0, |a| {
        a.push(0x4edf).unwrap();
        a.popf().unwrap();
        a.ud2().unwrap();
    });
    assert_eq!(popped.flags & !0x1_0000, VM | IOPL3 | 0x4ed7);
}

#[test]
fn virtual_interrupts_take_vif_for_if() {
    assert_eq!(one(VIF, VME, |a| a.cli().unwrap()), (6, 1, 0));
    assert_eq!(one(0, VME, |a| a.sti().unwrap()), (6, 1, VIF));
    assert_eq!(one(VIP, VME, |a| a.sti().unwrap()), (13, 0, VIP));
    assert_eq!(one(VIP | IOPL3, VME, |a| a.sti().unwrap()), (6, 1, VIP | IOPL3 | IF));
    for flags in [0, VIF, IF] {
        let pushed = run(flags, VME, |a| {
            a.pushf().unwrap();
            a.pop(ax).unwrap();
            a.out(0xe9, ax).unwrap();
            a.ud2().unwrap();
        });
        let seen = if flags == VIF { IF } else { 0 };
        assert_eq!(pushed.output, [2 | IOPL3 | seen]);
    }
    assert_eq!(one(0, VME, |a| a.pushfd().unwrap()), (13, 0, 0));
    assert_eq!(one(0, VME, |a| a.popfd().unwrap()), (13, 0, 0));
    let popf = |flags: u32, value: i32| {
        let ended = run(flags, VME, |a| {
            a.push(value).unwrap();
            a.popf().unwrap();
            a.ud2().unwrap();
        });
        (ended.vector, ended.flags & !(0x1_0002 | VM))
    };
    assert_eq!(popf(0, 0x202), (6, VIF));
    assert_eq!(popf(VIF | IF, 0x2), (6, IF), "IF itself stays");
    assert_eq!(popf(VIP, 0x202), (13, VIP));
    assert_eq!(popf(VIP, 0x2), (6, VIP));
    assert_eq!(popf(0, 0x102), (13, 0), "TF can't be set");
}

#[test]
fn the_map_of_interrupts_redirects_them_to_the_program() {
    let program = |a: &mut CodeAssembler| {
        a.mov(ax, 0x1111).unwrap();
        a.int(0x21).unwrap();
        a.mov(ax, 0x3333).unwrap();
        a.out(0xe9, ax).unwrap();
        a.ud2().unwrap();
    };
    // The handler runs with virtual interrupts off; IRET has them back.
    let ended = run(VIF, VME, program);
    assert_eq!(ended.output, [0x2121, 2 | IOPL3, 2 | IOPL3 | IF, 0x3333]);
    assert_eq!((ended.vector, ended.flags & (VIF | IF)), (6, VIF));
    // At IOPL 3 it is IF.
    let ended = run(IF | IOPL3, VME, program);
    assert_eq!(ended.output, [0x2121, 2 | IOPL3, 2 | IOPL3 | IF, 0x3333]);
    assert_eq!((ended.vector, ended.flags & (VIF | IF)), (6, IF));
    // A bit that is set leads to the IDT, which wants IOPL 3.
    let map_it = |board: &Board| put(board, TSS + IO_MAP - 32 + 4, 1 << 1);
    let ended = run_on(map_it, VM, VME, 16, program);
    assert_eq!((ended.vector, ended.ip), (13, 3));
}

#[test]
fn protected_mode_programs_have_virtual_interrupts_too() {
    let run = |flags, features, program: fn(&mut CodeAssembler)| {
        let ended = run_on(
            |_| {},
            flags,
            features,
            32,
            |a| {
                program(a);
                a.ud2().unwrap();
            },
        );
        (ended.vector, ended.ip, ended.flags & !0x1_0002)
    };
    assert_eq!(run(VIF, PVI, |a| a.cli().unwrap()), (6, 1, 0));
    assert_eq!(run(0, PVI, |a| a.sti().unwrap()), (6, 1, VIF));
    assert_eq!(run(VIP, PVI, |a| a.sti().unwrap()), (13, 0, VIP));
    assert_eq!(run(0, 0, |a| a.sti().unwrap()), (13, 0, 0));
    assert_eq!(run(IOPL3, PVI, |a| a.sti().unwrap()), (6, 1, IOPL3 | IF));
    assert_eq!(run(0, VME, |a| a.cli().unwrap()), (13, 0, 0), "VME is for the other mode");
}
