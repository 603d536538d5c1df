//! Limits and types of segments in 32-bit protected mode, and 16-bit addresses in real mode (APM
//! volume 2, chapter 4).

use accel::Vcpu;
use cpu_x86::state::Activity;
use iced_x86::code_asm::*;

use super::*;

const UP: u16 = 0x4093;
const READ_ONLY: u16 = 0x4091;
const DOWN: u16 = 0x4097;
const EXECUTE_ONLY: u16 = 0x4099;

/// What a guest in 32-bit protected mode comes to that accesses EBX bytes into a segment: the vector
/// that was raised, if any.
fn try_access(
    attributes: u16,
    limit: u32,
    offset: u32,
    in_stack: bool,
    access: impl FnOnce(&mut CodeAssembler),
) -> Option<u8> {
    let (mut cpu, board) = machine(&[(0, RAM)], 1).pop().expect("one CPU");
    for (n, descriptor) in DESCRIPTORS.into_iter().enumerate() {
        put(&board, GDT + 8 * n as u64, descriptor);
    }
    for vector in 0..32 {
        let handler = HANDLER + 16 * vector;
        let gate = handler & 0xffff | u64::from(CODE32) << 16 | 0x8e00 << 32 | handler >> 16 << 48;
        put(&board, IDT + 8 * vector, gate);
        code(&board, 32, handler, |a| a.hlt().unwrap());
    }
    code(&board, 32, CODE, |a| {
        access(a);
        a.hlt().unwrap();
    });
    let mut state = cpu.state();
    state.cr0 = 0x11;
    let data = Segment { selector: DATA, base: 0, limit: u32::MAX, attributes: 0xc093 };
    let flat = Segment { selector: CODE32, base: 0, limit: u32::MAX, attributes: 0xc09b };
    let tried = Segment { selector: 0x20, base: 0x10_0000, limit, attributes };
    state.segments = [data, flat, data, data, data, data];
    state.segments[if in_stack { 2 } else { 3 }] = tried;
    state.gdtr = TableRegister { base: GDT, limit: 0x1f };
    state.idtr = TableRegister { base: IDT, limit: 0xff };
    state.rip = CODE;
    state.gpr[4] = STACK;
    state.gpr[3] = offset.into();
    state.activity = Activity::Running;
    cpu.set_state(&state).expect("a valid state");
    // With a bad stack the fault itself can't be delivered.
    let exit = cpu.run();
    match exit {
        Exit::Shutdown => Some(8),
        Exit::Halt { .. } => {
            let rip = cpu.state().rip;
            (rip >= HANDLER).then(|| ((rip - HANDLER - 1) / 16) as u8)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn data_accesses_stay_within_limits_and_types() {
    let read = |a: &mut CodeAssembler| a.mov(eax, dword_ptr(ebx)).unwrap();
    let write = |a: &mut CodeAssembler| a.mov(dword_ptr(ebx), eax).unwrap();
    let cases = [
        (UP, 0xfff, 0xffc, None, None),
        (UP, 0xfff, 0xffd, Some(13), Some(13)),
        (UP, 0xfff, 0x1000, Some(13), Some(13)),
        (UP, 0xfff, 0xffff_ffff, Some(13), Some(13)),
        (UP, u32::MAX, 0xffff_fffc, None, None),
        (READ_ONLY, 0xfff, 0, None, Some(13)),
        (EXECUTE_ONLY, 0xfff, 0, Some(13), Some(13)),
        // Expand down: what is above the limit.
        (DOWN, 0xfff, 0xfff, Some(13), Some(13)),
        (DOWN, 0xfff, 0x1000, None, None),
        (DOWN, 0xfff, 0xffff_fffc, None, None),
        (DOWN, 0xfff, 0xffff_fffd, Some(13), Some(13)),
        // Its upper end is at 64 KiB without the B bit.
        (DOWN & !0x4000, 0xfff, 0xfffc, None, None),
        (DOWN & !0x4000, 0xfff, 0xfffd, Some(13), Some(13)),
        (DOWN & !0x4000, 0xfff, 0x1_0000, Some(13), Some(13)),
    ];
    for (attributes, limit, offset, on_read, on_write) in cases {
        let context = format!("{attributes:#x} {limit:#x} {offset:#x}");
        assert_eq!(try_access(attributes, limit, offset, false, read), on_read, "read {context}");
        assert_eq!(
            try_access(attributes, limit, offset, false, write),
            on_write,
            "write {context}"
        );
    }
}

#[test]
fn faults_of_the_stack_segment_are_their_own() {
    // Beyond the limit: #SS; and the frame of that, on the same stack, fits.
    let pop = |a: &mut CodeAssembler| a.mov(eax, dword_ptr(ebx).ss()).unwrap();
    assert_eq!(try_access(UP, STACK as u32 - 1, STACK as u32 - 4, true, pop), None);
    assert_eq!(try_access(UP, STACK as u32 - 1, STACK as u32 - 3, true, pop), Some(12));
    // Where nothing can be pushed, a fault of any kind ends in shutdown.
    let push = |a: &mut CodeAssembler| a.push(eax).unwrap();
    assert_eq!(try_access(UP, 0xfff, 0, true, push), Some(8));
}

#[test]
fn real_mode_segments_end_at_64_kib() {
    let (mut cpu, board) = machine(&[(0, RAM)], 1).pop().expect("one CPU");
    code(&board, 16, 0x8000, |a| {
        // Vector 13 reports.
        a.xor(ax, ax).unwrap();
        a.mov(ds, ax).unwrap();
        a.mov(word_ptr(13 * 4), 0x9000).unwrap();
        a.mov(word_ptr(13 * 4 + 2), 0).unwrap();
        // The last word is in the segment; one byte further is not.
        a.mov(bx, 0xfffe).unwrap();
        a.mov(cx, word_ptr(bx)).unwrap();
        a.mov(ax, 1).unwrap();
        a.out(0xe9, ax).unwrap();
        a.inc(bx).unwrap();
        a.mov(cx, word_ptr(bx)).unwrap();
        a.hlt().unwrap();
    });
    code(&board, 16, 0x9000, |a| {
        a.mov(ax, bx).unwrap();
        a.out(0xe9, ax).unwrap();
        a.hlt().unwrap();
    });
    let mut state = cpu.state();
    for segment in &mut state.segments {
        *segment = Segment { selector: 0, base: 0, limit: 0xffff, attributes: segment.attributes };
    }
    state.rip = 0x8000;
    state.gpr[4] = 0x7000;
    cpu.set_state(&state).expect("a valid state");
    assert_eq!(run_to_halt(&mut cpu, &board), [1, 0xffff]);
}
