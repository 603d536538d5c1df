//! Code that changes while it is run.

use iced_x86::code_asm::*;

use crate::scene::{CODE, DATA, Scene, TABLE};

const END: u64 = CODE + 0x1000;

/// A loop whose body rewrites the immediate of the instruction that comes next.
#[test]
fn the_instruction_that_is_next_is_the_new_one() {
    let outcome = Scene::new()
        .code(CODE, |a| {
            let (mut top, mut patched) = (a.create_label(), a.create_label());
            a.mov(ecx, 100).unwrap();
            a.lea(rbx, qword_ptr(patched)).unwrap();
            a.set_label(&mut top).unwrap();
            a.mov(dword_ptr(rbx + 1), ecx).unwrap();
            a.set_label(&mut patched).unwrap();
            a.mov(edx, 0x1234_5678).unwrap();
            a.add(eax, edx).unwrap();
            a.dec(ecx).unwrap();
            a.jne(top).unwrap();
            a.hlt().unwrap();
        })
        .run();
    assert_eq!(outcome.state.gpr[0], 5050);
}

/// The same with the writer in one page and the instruction in another, in both, or across the two, and
/// written by each kind of store.
#[test]
fn wherever_it_is_and_however_it_is_written() {
    for at in [END + 0x100, END - 1, END - 2, END - 4, END - 5, END] {
        for kind in 0..7 {
            let function = |a: &mut CodeAssembler| {
                a.mov(edx, 0x1234_5678).unwrap();
                a.ret().unwrap();
            };
            let outcome = Scene::new()
                .code(at, function)
                .code(CODE, |a| {
                    let mut top = a.create_label();
                    a.mov(r9d, 60).unwrap();
                    a.mov(rbx, at).unwrap();
                    a.set_label(&mut top).unwrap();
                    write_immediate(a, kind);
                    a.call(at).unwrap();
                    a.add(r8d, edx).unwrap();
                    a.dec(r9d).unwrap();
                    a.jne(top).unwrap();
                    a.hlt().unwrap();
                })
                .run();
            assert_eq!(outcome.state.gpr[8], 1830, "at {at:#x}, kind {kind}");
        }
    }
}

/// Stores R9D to RBX + 1.
fn write_immediate(a: &mut CodeAssembler, kind: u32) {
    match kind {
        0 => a.mov(dword_ptr(rbx + 1), r9d).unwrap(),
        1 => {
            a.lea(rdi, rbx + 1).unwrap();
            a.mov(eax, r9d).unwrap();
            a.stosd().unwrap();
        }
        2 => {
            a.mov(eax, r9d).unwrap();
            a.xchg(dword_ptr(rbx + 1), eax).unwrap();
        }
        3 => {
            a.movd(xmm0, r9d).unwrap();
            a.movd(dword_ptr(rbx + 1), xmm0).unwrap();
        }
        4 => {
            // By the copy of a string.
            a.mov(dword_ptr(DATA), r9d).unwrap();
            a.mov(esi, DATA as u32).unwrap();
            a.lea(rdi, rbx + 1).unwrap();
            a.mov(ecx, 4).unwrap();
            a.rep().movsb().unwrap();
        }
        5 => {
            // As a return address.
            a.mov(r10, rsp).unwrap();
            a.lea(rsp, rbx + 9).unwrap();
            a.mov(r11d, dword_ptr(rbx + 5)).unwrap();
            a.shl(r11, 32).unwrap();
            a.or(r11, r9).unwrap();
            a.push(r11).unwrap();
            a.mov(rsp, r10).unwrap();
        }
        _ => {
            a.mov(eax, dword_ptr(rbx + 1)).unwrap();
            a.lock().cmpxchg(dword_ptr(rbx + 1), r9d).unwrap();
        }
    }
}

/// A block that overwrites what it has executed already, and itself as it goes.
#[test]
fn a_block_that_overwrites_its_own_beginning_goes_on() {
    let outcome = Scene::new()
        .code(CODE, |a| {
            let mut top = a.create_label();
            a.mov(ecx, 40).unwrap();
            a.lea(rbx, qword_ptr(top)).unwrap();
            a.set_label(&mut top).unwrap();
            a.add(eax, 1).unwrap();
            // The immediate of the addition, for the next round.
            a.mov(byte_ptr(rbx + 1), cl).unwrap();
            a.inc(edx).unwrap();
            // And with the same byte: nothing changes, but the page was written.
            a.mov(byte_ptr(rbx + 1), cl).unwrap();
            a.inc(edx).unwrap();
            a.dec(ecx).unwrap();
            a.jne(top).unwrap();
            a.hlt().unwrap();
        })
        .run();
    assert_eq!(outcome.state.gpr[0], 1 + (2..=40).sum::<u64>());
    assert_eq!(outcome.state.gpr[2], 80);
}

/// A repeated store runs over the code behind it, up to itself.
#[test]
fn a_repeated_store_over_what_follows() {
    let outcome = Scene::new()
        .code(CODE, |a| {
            let (mut top, mut slide) = (a.create_label(), a.create_label());
            a.mov(r9d, 30).unwrap();
            a.set_label(&mut top).unwrap();
            a.lea(rdi, qword_ptr(slide)).unwrap();
            a.mov(ecx, 32).unwrap();
            // nop
            a.mov(al, 0x90).unwrap();
            a.rep().stosb().unwrap();
            a.set_label(&mut slide).unwrap();
            for _ in 0..16 {
                a.ud2().unwrap();
            }
            // ud2 again, by words.
            a.lea(rdi, qword_ptr(slide)).unwrap();
            a.mov(ecx, 16).unwrap();
            a.mov(eax, 0x0b0f).unwrap();
            a.rep().stosw().unwrap();
            a.inc(r8d).unwrap();
            a.dec(r9d).unwrap();
            a.jne(top).unwrap();
            a.hlt().unwrap();
        })
        .run();
    assert_eq!(outcome.events(), []);
    assert_eq!(outcome.state.gpr[8], 30);
}

/// Two functions at the same place, one after the other, copied there; the caller is hot.
#[test]
fn functions_take_turns_at_one_address() {
    let function = |value: i32| {
        move |a: &mut CodeAssembler| {
            let mut inner = a.create_label();
            a.mov(edx, 8).unwrap();
            a.set_label(&mut inner).unwrap();
            a.add(eax, value).unwrap();
            a.dec(edx).unwrap();
            a.jne(inner).unwrap();
            a.ret().unwrap();
        }
    };
    let place = END + 0x40;
    let outcome = Scene::new()
        .code(DATA, function(3))
        .code(DATA + 0x100, function(-2))
        .code(CODE, |a| {
            let mut top = a.create_label();
            a.mov(r9d, 50).unwrap();
            a.set_label(&mut top).unwrap();
            for from in [DATA, DATA + 0x100] {
                a.mov(esi, from as u32).unwrap();
                a.mov(edi, place as u32).unwrap();
                a.mov(ecx, 4).unwrap();
                a.rep().movsq().unwrap();
                for _ in 0..3 {
                    a.call(place).unwrap();
                }
            }
            a.dec(r9d).unwrap();
            a.jne(top).unwrap();
            a.hlt().unwrap();
        })
        .run();
    assert_eq!(outcome.state.gpr[0], 50 * 3 * 8);
}

/// Code at two linear addresses, written through a third.
#[test]
fn code_with_three_names() {
    let (first, second, third) = (0x5_0000u64, 0x5_1000u64, 0x5_2000u64);
    let mut scene = Scene::new();
    for alias in [first, second, third] {
        scene = scene.word(TABLE + 8 * (alias >> 12), DATA | 0x67);
    }
    let outcome = scene
        .code(DATA, |a| {
            // Position shows in what it comes to.
            let mut here = a.create_label();
            a.set_label(&mut here).unwrap();
            a.lea(rdx, qword_ptr(here)).unwrap();
            a.add(rax, rdx).unwrap();
            a.mov(edx, 0).unwrap();
            a.add(rax, rdx).unwrap();
            a.ret().unwrap();
        })
        .code(CODE, |a| {
            let mut top = a.create_label();
            a.mov(ecx, 64).unwrap();
            a.set_label(&mut top).unwrap();
            // The immediate of the second MOV.
            a.mov(byte_ptr(third + 11), cl).unwrap();
            a.call(first).unwrap();
            a.call(second).unwrap();
            a.inc(byte_ptr(first + 11)).unwrap();
            a.call(second).unwrap();
            a.dec(ecx).unwrap();
            a.jne(top).unwrap();
            a.hlt().unwrap();
        })
        .run();
    let rounds = (1..=64u64).map(|n| first + 2 * second + 3 * n + 1);
    assert_eq!(outcome.state.gpr[0], rounds.sum::<u64>());
}
