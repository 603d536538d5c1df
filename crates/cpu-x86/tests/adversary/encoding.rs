//! Instructions that are as long as they may be, longer, or in two pages.

use crate::scene::{CODE, Event, Scene, TABLE};

/// Where a page of code ends.
const END: u64 = CODE + 0x1000;
/// A page that is taken away, to be what follows the code.
const NEXT: u64 = TABLE + 8 * (END >> 12);

/// Jumps to `at`, where `code` is, again and again; a fault or HLT ends it.
fn run_at(at: u64, code: &[u8], mapped: bool) -> (Vec<Event>, u64) {
    let mut scene = Scene::new().code(CODE, |a| {
        let mut top = a.create_label();
        a.mov(iced_x86::code_asm::ecx, 20).unwrap();
        a.set_label(&mut top).unwrap();
        a.call(at).unwrap();
        a.dec(iced_x86::code_asm::ecx).unwrap();
        a.jne(top).unwrap();
        a.hlt().unwrap();
    });
    scene = scene.bytes(at, code);
    // A handler that faults are recorded by, and that ends it.
    scene = scene.word(crate::scene::RESUME, CODE + 0x300);
    if !mapped {
        scene = scene.word(NEXT, 0);
    }
    let outcome = scene.run();
    (outcome.events(), outcome.state.gpr[1])
}

#[test]
fn fifteen_bytes_are_an_instruction_wherever_they_are() {
    for prefixes in [0usize, 1, 7, 13, 14] {
        for distance in 1..=16 {
            let mut code = vec![0x66; prefixes];
            code.extend([0x90, 0xc3]);
            let (events, left) = run_at(END - distance, &code, true);
            assert_eq!((events.len(), left), (0, 0), "{prefixes} prefixes {distance} from the end");
        }
    }
}

#[test]
fn sixteen_bytes_are_none() {
    for distance in [0x200, 16, 15, 14, 8, 1] {
        for first in [0x66u8, 0x2e, 0xf3, 0x48] {
            let at = END - distance;
            // The last one is no operand-size prefix, so that something follows it in any case.
            let mut code = vec![0x66; 15];
            code[14] = first;
            code.extend([0x90, 0xc3]);
            let (events, _) = run_at(at, &code, true);
            let seen: Vec<_> = events.iter().map(|e| (e.vector, e.error, e.rip)).collect();
            assert_eq!(seen, [(13, 0, at)], "{first:#x} {distance} from the end");
        }
    }
}

#[test]
fn prefixes_without_end_are_a_general_protection_fault() {
    let (events, _) = run_at(CODE + 0x400, &[0x66; 0xc00], false);
    assert_eq!(events.iter().map(|e| (e.vector, e.rip)).collect::<Vec<_>>(), [(13, CODE + 0x400)]);
    // Fifteen of them, and then nothing: what is behind is not looked at.
    let (events, _) = run_at(END - 15, &[0x66; 15], false);
    assert_eq!(events.iter().map(|e| (e.vector, e.rip)).collect::<Vec<_>>(), [(13, END - 15)]);
}

#[test]
fn an_instruction_that_ends_in_nothing_is_a_page_fault_there() {
    for len in 1..15 {
        let (events, _) = run_at(END - len, &vec![0x66; len as usize], false);
        let seen: Vec<_> = events.iter().map(|e| (e.vector, e.error, e.rip, e.cr2)).collect();
        // A fetch, of a page that is not present.
        assert_eq!(seen, [(14, 0x10, END - len, END)], "{len} prefixes");
    }
    // mov eax, imm32, cut anywhere.
    for len in 1..5 {
        let code = [0xb8, 1, 2, 3, 4];
        let (events, _) = run_at(END - len, &code[..len as usize], false);
        let seen: Vec<_> = events.iter().map(|e| (e.vector, e.rip, e.cr2)).collect();
        assert_eq!(seen, [(14, END - len, END)], "{len} bytes");
    }
    // One that is complete needs nothing behind it: ret.
    let (events, left) = run_at(END - 1, &[0xc3], false);
    assert_eq!((events.len(), left), (0, 0));
}

#[test]
fn what_decoders_are_known_to_differ_on() {
    // Bytes, and the vector that they raise; 0 for none.
    let cases: &[(&[u8], u64)] = &[
        // REX before another prefix does not count; two operand sizes; REX.W wins over 66.
        (&[0x48, 0x66, 0x05, 1, 0, 0xc3], 0),
        (&[0x66, 0x66, 0x05, 1, 0, 0xc3], 0),
        (&[0x66, 0x48, 0x05, 1, 0, 0, 0, 0xc3], 0),
        // Near branches with an operand-size prefix: AMD takes 16 bits off the instruction pointer.
        (&[0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00, 0xc3], 0),
        // LOCK where it must not be: mov, cmp, a register.
        (&[0xf0, 0x89, 0x04, 0x25, 0, 0, 2, 0], 6),
        (&[0xf0, 0x39, 0x04, 0x25, 0, 0, 2, 0], 6),
        (&[0xf0, 0x01, 0xc0], 6),
        (&[0xf0, 0x90], 6),
        (&[0xf0, 0x0f, 0xa3, 0x04, 0x25, 0, 0, 2, 0], 6),
        // LOCK where it may: add [data], eax; ret
        (&[0xf0, 0x01, 0x04, 0x25, 0, 0, 2, 0, 0xc3], 0),
        // F2 and F3 together: the last one counts. pause; ret
        (&[0xf2, 0xf3, 0x90, 0xc3], 0),
        // Invalid in 64-bit mode.
        (&[0x06], 6),
        (&[0x27], 6),
        (&[0x62, 0xf1, 0x7c, 0x48, 0x28, 0xc0], 6),
        (&[0x82, 0xc0, 0x01], 6),
        (&[0x9a, 0, 0, 0, 0, 0, 0], 6),
        (&[0xd6], 6),
        // VEX after a prefix that is not allowed before it.
        (&[0x66, 0xc5, 0xf8, 0x28, 0xc1], 6),
        (&[0xf0, 0xc5, 0xf8, 0x28, 0xc1], 6),
        (&[0x40, 0xc5, 0xf8, 0x28, 0xc1], 6),
        // VEX.vvvv that must be all ones; VEX.L where there is no such form.
        (&[0xc5, 0xf0, 0x28, 0xc1], 6),
        (&[0xc5, 0xfc, 0x6e, 0xc1], 6),
        // ud2, ud1, and a group's empty place.
        (&[0x0f, 0x0b], 6),
        (&[0x0f, 0xb9, 0xc0], 6),
        (&[0xfe, 0xd0], 6),
        (&[0xc6, 0xc8, 0x01], 6),
        (&[0x8f, 0xc8], 6),
        // rep ret, and a null segment's override, which 64-bit mode ignores.
        (&[0xf3, 0xc3], 0),
        (&[0x2e, 0x8b, 0x04, 0x25, 0, 0, 2, 0, 0xc3], 0),
        // mov to cs; cr1, cr5; dr4 with CR4.DE set.
        (&[0x8e, 0xc8], 6),
        (&[0x0f, 0x20, 0xc8], 6),
        (&[0x0f, 0x20, 0xe8], 6),
        (&[0x0f, 0x21, 0xe0], 6),
    ];
    for &(code, vector) in cases {
        for at in [CODE + 0x400, END - 1, END - code.len() as u64] {
            let (events, left) = run_at(at, code, true);
            let seen: Vec<_> = events.iter().map(|e| (e.vector, e.rip)).collect();
            let wanted = if vector == 0 { vec![] } else { vec![(vector, at)] };
            assert_eq!(seen, wanted, "{code:x?} at {at:#x}");
            assert_eq!(left == 0, vector == 0, "{code:x?}");
        }
    }
}

/// The same bytes, entered at each of their offsets: instructions that overlap.
#[test]
fn instructions_inside_of_instructions() {
    // mov rax, imm64 with code in its immediate, and so on.
    let code = [
        0x48, 0xb8, 0x83, 0xc0, 0x01, 0x66, 0x90, 0x83, 0xe8, 0x03, 0x48, 0x05, 0x83, 0xc2, 0x05,
        0x90, 0xc3,
    ];
    let mut scene = Scene::new().bytes(CODE + 0x400, &code).code(CODE, |a| {
        use iced_x86::code_asm::*;
        let mut top = a.create_label();
        a.mov(ecx, 50).unwrap();
        a.set_label(&mut top).unwrap();
        for offset in [0, 2, 5, 7, 10, 12, 15] {
            a.call(CODE + 0x400 + offset).unwrap();
            a.add(rbx, rax).unwrap();
        }
        a.dec(ecx).unwrap();
        a.jne(top).unwrap();
        a.hlt().unwrap();
    });
    scene = scene.word(crate::scene::RESUME, CODE + 0x800);
    let outcome = scene.run();
    assert_eq!(outcome.state.gpr[1], 0);
    assert_eq!(outcome.events(), []);
}
