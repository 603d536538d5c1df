//! Single steps, breakpoints and RF in code that is hot.

use iced_x86::code_asm::*;

use crate::scene::{CODE, DATA, HOOK, Scene, UNMAPPED};

const DB: u64 = 1;
const TF: i32 = 1 << 8;
const RF: u64 = 1 << 16;
/// A routine that handlers call, with RDI pointing at the frame: RIP, CS, RFLAGS.
const ROUTINE: u64 = CODE + 0x800;

/// A loop that is stepped through in some of its rounds.
#[test]
fn single_steps_in_a_hot_loop_stop_after_each_instruction() {
    let outcome = Scene::new()
        .code(CODE, |a| {
            let (mut top, mut same) = (a.create_label(), a.create_label());
            a.mov(ecx, 40).unwrap();
            a.set_label(&mut top).unwrap();
            a.add(eax, ecx).unwrap();
            a.mov(dword_ptr(DATA), eax).unwrap();
            a.cmp(ecx, 20).unwrap();
            a.jne(same).unwrap();
            a.pushfq().unwrap();
            a.or(dword_ptr(rsp), TF).unwrap();
            a.popfq().unwrap();
            a.set_label(&mut same).unwrap();
            a.lea(rdx, qword_ptr(rax + rcx)).unwrap();
            a.dec(ecx).unwrap();
            a.jne(top).unwrap();
            a.pushfq().unwrap();
            a.and(dword_ptr(rsp), !TF).unwrap();
            a.popfq().unwrap();
            a.hlt().unwrap();
        })
        .run();
    let events = outcome.events();
    assert!(events.iter().all(|e| e.vector == DB && e.dr6 & 1 << 14 != 0), "{events:?}");
    // After three instructions of the round in which it is set, as POPF itself has no trap; seven in each
    // other; and the three that end it.
    assert_eq!(events.len(), 3 + 7 * 19 + 3, "{events:?}");
    assert!(events.windows(2).all(|pair| pair[0].rip != pair[1].rip), "no instruction twice");
}

/// Debug registers that are set while a loop is hot, with each kind of breakpoint.
#[test]
fn breakpoints_that_are_set_in_a_hot_loop_are_met() {
    // DR7: kind and length of breakpoint 0, enabled globally.
    for (kind, wanted) in [(0u64, 0u64), (1, 1), (3, 2)] {
        let target = CODE + 0x400;
        let outcome = Scene::new()
            .word(HOOK, ROUTINE)
            .code(ROUTINE, |a| {
                // RF, so that an instruction breakpoint is passed; DR6 clear.
                a.or(dword_ptr(rdi + 16), RF as i32).unwrap();
                a.xor(eax, eax).unwrap();
                a.mov(dr6, rax).unwrap();
                a.ret().unwrap();
            })
            .code(target, |a| {
                a.mov(rdx, qword_ptr(DATA + 8)).unwrap();
                a.mov(qword_ptr(DATA + 8), rcx).unwrap();
                a.ret().unwrap();
            })
            .code(CODE, |a| {
                let (mut top, mut same, mut other) =
                    (a.create_label(), a.create_label(), a.create_label());
                a.mov(ecx, 40).unwrap();
                a.set_label(&mut top).unwrap();
                a.cmp(ecx, 10).unwrap();
                a.jne(same).unwrap();
                a.mov(rax, if kind == 0 { target } else { DATA + 8 }).unwrap();
                a.mov(dr0, rax).unwrap();
                a.mov(rax, 2 | kind << 16 | if kind == 0 { 0 } else { 2 << 18 }).unwrap();
                a.mov(dr7, rax).unwrap();
                a.set_label(&mut same).unwrap();
                a.cmp(ecx, 5).unwrap();
                a.jne(other).unwrap();
                a.xor(eax, eax).unwrap();
                a.mov(dr7, rax).unwrap();
                a.set_label(&mut other).unwrap();
                a.call(target).unwrap();
                a.dec(ecx).unwrap();
                a.jne(top).unwrap();
                a.hlt().unwrap();
            })
            .run();
        let events = outcome.events();
        // In rounds 10 to 6.
        let rounds: Vec<_> = events.iter().map(|e| e.rcx).collect();
        let per_round = if wanted == 2 { 2 } else { 1 };
        let expected: Vec<u64> =
            (6..=10).rev().flat_map(|n| std::iter::repeat_n(n, per_round)).collect();
        assert_eq!(rounds, expected, "kind {kind}: {events:?}");
        assert!(events.iter().all(|e| e.vector == DB && e.dr6 & 15 == 1), "{events:?}");
        let fault = kind == 0;
        assert!(events.iter().all(|e| (e.rip == target) == fault), "{events:?}");
        // Alone of all faults, an instruction breakpoint has RF clear in what it pushes (Intel SDM,
        // volume 3, section 19.3.1.1).
        assert!(events.iter().all(|e| e.rflags & RF == 0), "{events:?}");
    }
}

/// A breakpoint on the instruction that is under way when its page is run hot is met each time, if the
/// handler does not set RF but moves on.
#[test]
fn without_rf_the_breakpoint_is_met_again() {
    let outcome = Scene::new()
        .word(HOOK, ROUTINE)
        .code(ROUTINE, |a| {
            let mut done = a.create_label();
            a.inc(r8d).unwrap();
            a.cmp(r8d, 3).unwrap();
            a.jne(done).unwrap();
            a.or(dword_ptr(rdi + 16), RF as i32).unwrap();
            a.xor(r8d, r8d).unwrap();
            a.set_label(&mut done).unwrap();
            a.ret().unwrap();
        })
        .code(CODE, |a| {
            let (mut top, mut here) = (a.create_label(), a.create_label());
            a.lea(rax, qword_ptr(here)).unwrap();
            a.mov(dr1, rax).unwrap();
            a.mov(eax, 1 << 3).unwrap();
            a.mov(dr7, rax).unwrap();
            a.mov(ecx, 10).unwrap();
            a.set_label(&mut top).unwrap();
            a.add(edx, ecx).unwrap();
            a.set_label(&mut here).unwrap();
            a.add(edx, 1).unwrap();
            a.dec(ecx).unwrap();
            a.jne(top).unwrap();
            a.hlt().unwrap();
        })
        .run();
    assert_eq!(outcome.events().len(), 30);
    assert_eq!(outcome.state.gpr[2], 65);
}

/// A data breakpoint and a page fault in one instruction: the fault comes first, and the instruction is
/// tried again.
#[test]
fn an_instruction_that_faults_meets_no_breakpoint() {
    let outcome = Scene::new()
        .word(crate::scene::RESUME, CODE + 0x700)
        .code(CODE + 0x700, |a| a.hlt().unwrap())
        .code(CODE, |a| {
            let mut top = a.create_label();
            a.mov(ecx, 30).unwrap();
            a.set_label(&mut top).unwrap();
            a.dec(ecx).unwrap();
            a.jne(top).unwrap();
            a.mov(rax, UNMAPPED).unwrap();
            a.mov(dr0, rax).unwrap();
            a.mov(eax, 2 | 1 << 16 | 3 << 18).unwrap();
            a.mov(dr7, rax).unwrap();
            a.mov(dword_ptr(UNMAPPED), ecx).unwrap();
            a.hlt().unwrap();
        })
        .run();
    let seen: Vec<_> = outcome.events().iter().map(|e| (e.vector, e.error)).collect();
    assert_eq!(seen, [(14, 2)]);
}
