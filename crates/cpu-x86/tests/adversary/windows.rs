//! Runs of accesses by the same registers, near to each other, where pages end, can't be written, are not there,
//! have the code itself, or are no memory: random programs. Whatever the translator makes of accesses that
//! belong together, each instruction faults or not by itself, and leaves what it leaves.

use iced_x86::code_asm::*;

use crate::scene::{CODE, DATA, READ_ONLY, RESUME, STACK, Scene, TABLE, UNMAPPED};
use crate::splitmix::Rng;

/// Where the values are that the register has, round by round, the last first.
const TARGETS: u64 = 0x6_0000;
const ROUNDS: u64 = 40;
/// Where a round ends.
const NEXT: u64 = CODE + 0x800;
/// Counts down in loops, and is a part of addresses.
const INDEX: AsmRegister64 = r13;
/// What a program calls.
const CALLED: u64 = CODE + 0x900;

/// Where the register may point, a little before or after.
fn target(rng: &mut Rng) -> u64 {
    let edge = match rng.below(12) {
        0 => UNMAPPED,
        1 => READ_ONLY,
        2 => READ_ONLY + 0x1000,
        // Code in the same page as the program's own.
        3 => CODE + 0xf80,
        4 => 0x8000_0000_0000,
        5 => DATA + 0x2000,
        // Beyond all RAM.
        6 => 0x10_0000,
        _ => DATA + 0x400 + 64 * rng.below(64),
    };
    edge.wrapping_add(rng.below(160)).wrapping_sub(80)
}

/// One instruction by `base`, or one that changes it, or one between.
fn step(a: &mut CodeAssembler, rng: &mut Rng, base: AsmRegister64) {
    let mut near = base + rng.below(48) as i32 - 24;
    if rng.one_in(3) {
        near = near + INDEX * rng.pick(&[1, 2, 8]);
    }
    let near = if rng.one_in(2) { base + (rng.below(5) as i32 - 2) * 16 } else { near };
    let other = rng.pick(&[rax, rdx, rsi, r9, r10, r14]);
    let narrow = rng.pick(&[eax, edx, esi, r9d, r11d, r15d]);
    let small = rng.below(40) as i32 - 20;
    match rng.below(28) {
        25 => a.movaps(xmm3, xmmword_ptr(near)),
        26 => a.paddd(xmm3, xmmword_ptr(near)),
        23 => a.inc(INDEX),
        24 => a.lea(INDEX, INDEX - 2),
        0..=3 => a.mov(other, qword_ptr(near)),
        4 => a.mov(narrow, dword_ptr(near)),
        5 => a.movzx(narrow, byte_ptr(near)),
        6..=8 => a.mov(qword_ptr(near), other),
        9 => a.mov(dword_ptr(near), small),
        10 => a.mov(byte_ptr(near), dl),
        11 => a.add(dword_ptr(near), narrow),
        12 => a.add(other, qword_ptr(near)),
        13 => a.cmp(qword_ptr(near), small),
        14 => a.movups(xmm1, xmmword_ptr(near)),
        15 => a.movups(xmmword_ptr(near), xmm2),
        16 => a.add(base, small),
        17 => a.sub(base, small),
        18 => a.lea(base, near),
        19 => rng.pick(&[CodeAssembler::inc::<AsmRegister64>, CodeAssembler::dec])(a, base),
        20 => a.cmp(other, small),
        21 => a.adc(narrow, small),
        22 => a.lock().xadd(qword_ptr(near), other),
        // A pointer that is followed.
        _ => a.mov(r8, qword_ptr(near)).and_then(|()| a.lea(r8, r8 + 1)),
    }
    .expect("an instruction");
}

/// The same with the stack pointer.
fn stack_step(a: &mut CodeAssembler, rng: &mut Rng) {
    let other = rng.pick(&[rax, rdx, rbp, r9, r10, r14]);
    match rng.below(10) {
        0..=2 => a.push(other),
        3..=5 => a.pop(other),
        6 => a.push(rng.below(100) as i32),
        7 => a.call(CALLED),
        8 => a.push(rsp).and_then(|()| a.pop(rbp)),
        _ => return step(a, rng, rsp),
    }
    .expect("an instruction");
}

fn scene(rng: &mut Rng) -> Scene {
    let base = rng.pick(&[rbx, rbp, rdi, r12, r10, r15, rsp, rsp]);
    let mut scene = Scene::new().word(RESUME, NEXT);
    // A page that can be written before the one that can't.
    scene = scene.word(TABLE + 8 * ((READ_ONLY >> 12) - 1), (READ_ONLY - 0x1000) | 0x67);
    for n in 1..=ROUNDS {
        scene = scene.word(TARGETS + 8 * n, target(rng));
    }
    scene
        .code(CODE, |a| {
            a.mov(ecx, ROUNDS as u32).unwrap();
            // Here, at CODE + 5, a round begins.
            a.mov(base, qword_ptr(rcx * 8 + TARGETS as i32)).unwrap();
            a.lea(rax, rcx + rcx * 4).unwrap();
            a.mov(INDEX, 1 + rng.below(60)).unwrap();
            a.cmp(eax, 100).unwrap();
            let mut again = a.create_label();
            a.set_label(&mut again).unwrap();
            for _ in 0..2 + rng.below(14) {
                let mut over = a.create_label();
                let skips = rng.one_in(7);
                if skips {
                    rng.pick(&[CodeAssembler::jb, CodeAssembler::je, CodeAssembler::jno])(a, over)
                        .unwrap();
                }
                match base {
                    _ if base == rsp && !rng.one_in(4) => stack_step(a, rng),
                    _ => step(a, rng, base),
                }
                if skips {
                    a.set_label(&mut over).unwrap();
                    a.nop().unwrap();
                }
            }
            if rng.one_in(2) {
                // More than a round can add.
                a.sub(INDEX, 16).unwrap();
                a.jg(again).unwrap();
            }
            if base == rsp && rng.one_in(2) {
                // To where all rounds end, and not to data that would be code.
                a.mov(eax, NEXT as u32).unwrap();
                a.mov(qword_ptr(rsp), rax).unwrap();
                a.ret().unwrap();
            } else {
                a.jmp(NEXT).unwrap();
            }
        })
        .code(NEXT, |a| {
            a.mov(rsp, STACK).unwrap();
            a.dec(ecx).unwrap();
            a.jne(CODE + 5).unwrap();
            a.hlt().unwrap();
        })
        .code(CALLED, |a| {
            a.inc(r11).unwrap();
            a.mov(qword_ptr(rsp - 16), r11).unwrap();
            a.ret().unwrap();
        })
}

#[test]
fn accesses_near_to_each_other_fault_one_by_one() {
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let rounds = number("RHEA_ROUNDS").unwrap_or(300);
    let seeds = number("RHEA_SEED").map_or(0..rounds, |seed| seed..seed + 1);
    let mut faults = 0;
    for seed in seeds {
        let scene = scene(&mut Rng(seed));
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| scene.run()));
        let outcome = outcome.unwrap_or_else(|_| panic!("program {seed}"));
        faults += outcome.events().len();
    }
    println!("{faults} faults");
    assert!(faults as u64 > rounds, "{faults} faults");
}
