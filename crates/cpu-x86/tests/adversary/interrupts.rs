//! Interrupts from outside while code is hot: wherever they come, what the handler sees is a state that
//! the code was in between two instructions.

use std::collections::HashSet;
use std::time::Duration;

use accel::Exit;
use iced_x86::code_asm::*;

use crate::scene::{CODE, DATA, EXTERNAL, Event, Scene, engines};

/// A loop of which each state can be told from RCX and RIP.
fn body(a: &mut CodeAssembler, rounds: u32, before: impl FnOnce(&mut CodeAssembler)) {
    let (mut top, mut over) = (a.create_label(), a.create_label());
    before(a);
    a.mov(ecx, rounds).unwrap();
    a.set_label(&mut top).unwrap();
    a.lea(eax, dword_ptr(rcx + rcx * 2)).unwrap();
    a.mov(qword_ptr(DATA), rax).unwrap();
    a.add(rax, qword_ptr(DATA)).unwrap();
    a.push(rax).unwrap();
    a.test(cl, 1).unwrap();
    a.je(over).unwrap();
    a.not(rax).unwrap();
    a.set_label(&mut over).unwrap();
    a.pop(rdx).unwrap();
    a.cmp(eax, edx).unwrap();
    a.dec(ecx).unwrap();
    a.jne(top).unwrap();
    a.cli().unwrap();
    a.hlt().unwrap();
}

/// Where an event came, and RAX in terms of RCX, which is the same in all rounds; from the address of the
/// loop's first instruction.
fn relation(event: &Event, top: u64) -> (u64, i64, i64) {
    let (count, value) = (event.rcx as i64, event.rax as i64);
    let near = [3, 6, -6, -3].into_iter().find_map(|factor| {
        let rest = value - factor * count;
        (-16..16).contains(&rest).then_some((factor, rest))
    });
    let (factor, rest) = near.unwrap_or((0, value));
    (event.rip.wrapping_sub(top), factor, rest)
}

#[test]
fn interrupts_see_states_between_instructions() {
    // The reference: the interpreter, stepped.
    let stepped = Scene::new()
        .code(CODE, |a| {
            body(a, 100, |a| {
                a.pushfq().unwrap();
                a.or(dword_ptr(rsp), 1 << 8).unwrap();
                a.popfq().unwrap();
            });
        })
        .run_on(None);
    let steps = stepped.events();
    assert!(steps.len() > 200, "{}", steps.len());
    let legal: HashSet<_> = steps.iter().map(|event| relation(event, steps[0].rip)).collect();
    for engine in engines() {
        // Some milliseconds each.
        let rounds = match engine {
            None => 100_000,
            Some(how) if how.check => 4000,
            Some(_) => 4_000_000,
        };
        let mut seen = HashSet::new();
        for _ in 0..3 {
            let outcome = Scene::new()
                .code(CODE, |a| body(a, rounds, |a| a.sti().unwrap()))
                .state(|state| state.rflags |= 1 << 9)
                .run_with(engine, |board| {
                    for n in 0..300u64 {
                        board.interrupt(EXTERNAL);
                        std::thread::sleep(Duration::from_micros(20 + n % 7 * 13));
                    }
                });
            assert!(matches!(outcome.exit, Exit::Halt { .. }), "{engine:?}: {:?}", outcome.exit);
            for event in outcome.events() {
                assert_eq!(event.vector, u64::from(EXTERNAL));
                // Behind STI, of one byte, and MOV ECX, of five.
                let state = relation(&event, CODE + 6);
                // With less in RCX, more than one factor fits.
                if (16..u64::from(rounds) - 2).contains(&event.rcx) {
                    assert!(legal.contains(&state), "{engine:?}: {event:x?} {state:?} {legal:?}");
                    seen.insert(state.0);
                }
            }
        }
        println!("{engine:?}: interrupted at {} places", seen.len());
    }
}

/// STI and a load of SS hold interrupts off for one instruction, also in a block that is translated.
#[test]
fn shadows_hold_for_one_instruction() {
    let outcome = Scene::new()
        .code(CODE, |a| {
            let mut top = a.create_label();
            a.mov(r9d, 40).unwrap();
            a.set_label(&mut top).unwrap();
            // The board raises an interrupt to this very CPU, whose flag is clear.
            a.mov(al, i32::from(EXTERNAL)).unwrap();
            a.out(0xea, al).unwrap();
            a.xor(ecx, ecx).unwrap();
            a.sti().unwrap();
            a.inc(ecx).unwrap();
            a.inc(ecx).unwrap();
            a.cli().unwrap();
            a.dec(r9d).unwrap();
            a.jne(top).unwrap();
            a.hlt().unwrap();
        })
        .run();
    let events = outcome.events();
    assert_eq!(events.len(), 40);
    assert!(events.iter().all(|e| e.rcx == 1), "{events:?}");
}
