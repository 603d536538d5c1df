//! Pages that move, and rights that change, under code that is hot.

use iced_x86::code_asm::*;

use crate::scene::{CODE, DATA, PML4, RESUME, Scene, TABLE};

/// Where functions are mapped, one at a time.
const WINDOW: u64 = 0x5_0000;
const ENTRY: u64 = TABLE + 8 * (WINDOW >> 12);
/// Physical pages with functions in them.
const ONE: u64 = 0x6_0000;
const TWO: u64 = 0x6_1000;

/// mov eax, value; ret, and a branch in it.
fn function(value: u32) -> impl FnOnce(&mut CodeAssembler) {
    move |a| {
        let mut over = a.create_label();
        a.mov(eax, value).unwrap();
        a.test(eax, eax).unwrap();
        a.jne(over).unwrap();
        a.ud2().unwrap();
        a.set_label(&mut over).unwrap();
        a.ret().unwrap();
    }
}

fn functions() -> Scene {
    Scene::new().code(ONE, function(1)).code(TWO, function(1000))
}

/// 50 times maps one page at the window and then the other, each time followed by `then`.
fn swap_pages(a: &mut CodeAssembler, then: impl Fn(&mut CodeAssembler)) {
    let mut top = a.create_label();
    a.mov(ecx, 50).unwrap();
    a.set_label(&mut top).unwrap();
    for page in [ONE, TWO] {
        a.mov(qword_ptr(ENTRY), (page | 0x67) as i32).unwrap();
        then(a);
    }
    a.dec(ecx).unwrap();
    a.jne(top).unwrap();
}

#[test]
fn a_page_of_code_that_moves_is_followed_after_invlpg() {
    let outcome = functions()
        .code(CODE, |a| {
            swap_pages(a, |a| {
                a.invlpg(ptr(WINDOW)).unwrap();
                for _ in 0..3 {
                    a.call(WINDOW).unwrap();
                    a.add(r8, rax).unwrap();
                }
                // By a pointer, too.
                a.mov(edx, WINDOW as u32).unwrap();
                a.call(rdx).unwrap();
                a.add(r8, rax).unwrap();
            });
            a.hlt().unwrap();
        })
        .run();
    assert_eq!(outcome.state.gpr[8], 50 * 4 * 1001);
}

/// Without INVLPG either page may be seen, until CR3 is loaded.
#[test]
fn a_page_that_moves_in_silence_is_followed_after_a_load_of_cr3() {
    let outcome = functions()
        .code(CODE, |a| {
            swap_pages(a, |a| {
                // What it says now is nobody's business.
                a.call(WINDOW).unwrap();
                a.mov(rax, cr3).unwrap();
                a.mov(cr3, rax).unwrap();
                a.call(WINDOW).unwrap();
                a.add(r8, rax).unwrap();
            });
            a.xor(eax, eax).unwrap();
            a.hlt().unwrap();
        })
        .run();
    assert_eq!(outcome.state.gpr[8], 50 * 1001);
}

/// The second page of an instruction moves.
#[test]
fn an_instruction_across_pages_follows_its_second_page() {
    // mov eax, imm32 with three bytes in the next page; then ret.
    let at = WINDOW - 2;
    let tail = |value: u8| [value, 0, 0, 0xc3];
    let outcome = Scene::new()
        .bytes(at, &[0xb8, 5])
        .bytes(ONE, &tail(1))
        .bytes(TWO, &tail(2))
        .code(CODE, |a| {
            swap_pages(a, |a| {
                a.invlpg(ptr(WINDOW)).unwrap();
                for _ in 0..3 {
                    a.call(at).unwrap();
                    a.add(r8, rax).unwrap();
                }
            });
            a.hlt().unwrap();
        })
        .run();
    assert_eq!(outcome.state.gpr[8], 50 * 3 * (0x105 + 0x205));
}

/// Code that stops being executable, and data that stops being writable or there at all, at once after
/// INVLPG.
#[test]
fn rights_that_are_taken_away_are_missed() {
    let at = CODE + 0x700;
    for (entry, access, error) in [
        (ONE | 0x67 | 1 << 63, 'x', 0x11),
        (0, 'x', 0x10),
        (ONE | 0x65, 'w', 3),
        (0, 'w', 2),
        (0, 'r', 0),
    ] {
        let outcome = functions()
            .word(ENTRY, ONE | 0x67)
            .word(RESUME, at)
            .code(at, |a| a.hlt().unwrap())
            .code(CODE, |a| {
                let (mut top, mut same) = (a.create_label(), a.create_label());
                a.mov(ecx, 30).unwrap();
                a.mov(rbx, entry).unwrap();
                a.set_label(&mut top).unwrap();
                a.cmp(ecx, 5).unwrap();
                a.jne(same).unwrap();
                a.mov(qword_ptr(ENTRY), rbx).unwrap();
                a.invlpg(ptr(WINDOW)).unwrap();
                a.set_label(&mut same).unwrap();
                match access {
                    'x' => a.call(WINDOW).unwrap(),
                    'w' => a.mov(qword_ptr(WINDOW + 0x800), rcx).unwrap(),
                    _ => a.mov(rdx, qword_ptr(WINDOW + 0x800)).unwrap(),
                }
                a.dec(ecx).unwrap();
                a.jne(top).unwrap();
                a.hlt().unwrap();
            })
            .run();
        let seen: Vec<_> = outcome.events().iter().map(|e| (e.vector, e.error, e.rcx)).collect();
        assert_eq!(seen, [(14, error, 5)], "{entry:#x} {access}");
    }
}

/// Two address spaces with a page that differs, with and without PCIDs, and flushed or not.
#[test]
fn address_spaces_take_turns() {
    // The other space's tables: it shares all but the last level.
    let (pml4, pdpt, pd, table) = (0x6_2000u64, 0x6_3000u64, 0x6_4000u64, 0x6_5000u64);
    for (pcid, keep) in [(false, false), (true, false), (true, true)] {
        let mut scene = functions()
            .word(pml4, pdpt | 7)
            .word(pdpt, pd | 7)
            .word(pd, table | 7)
            .word(ENTRY, ONE | 0x67);
        for page in 0..256u64 {
            let to = if page == WINDOW >> 12 { TWO } else { page << 12 };
            scene = scene.word(table + 8 * page, to | 0x67);
        }
        let ids = if pcid { [1, 2] } else { [0, 0] };
        let outcome = scene
            .code(CODE, |a| {
                let mut top = a.create_label();
                if pcid {
                    a.mov(rax, cr4).unwrap();
                    a.or(eax, 1 << 17).unwrap();
                    a.mov(cr4, rax).unwrap();
                }
                a.mov(ecx, 60).unwrap();
                a.set_label(&mut top).unwrap();
                for (root, id) in [PML4, pml4].into_iter().zip(ids) {
                    a.mov(rax, root | id | u64::from(keep) << 63).unwrap();
                    a.mov(cr3, rax).unwrap();
                    for _ in 0..3 {
                        a.call(WINDOW).unwrap();
                        a.add(r8, rax).unwrap();
                    }
                }
                a.dec(ecx).unwrap();
                a.jne(top).unwrap();
                a.hlt().unwrap();
            })
            .run();
        assert_eq!(outcome.state.gpr[8], 60 * 3 * 1001, "PCID {pcid}, kept {keep}");
        assert_eq!(outcome.events(), []);
    }
}

/// A store through one name of a page is seen through another in the same block.
#[test]
fn one_page_with_two_names() {
    let alias = 0x5_3000u64;
    let outcome = Scene::new()
        .word(TABLE + 8 * (alias >> 12), DATA | 0x67)
        .code(CODE, |a| {
            let mut top = a.create_label();
            a.mov(ecx, 40).unwrap();
            a.set_label(&mut top).unwrap();
            a.mov(qword_ptr(DATA + 8), rcx).unwrap();
            a.add(rax, qword_ptr(alias + 8)).unwrap();
            a.inc(qword_ptr(alias + 8)).unwrap();
            a.add(rax, qword_ptr(DATA + 8)).unwrap();
            a.dec(ecx).unwrap();
            a.jne(top).unwrap();
            a.hlt().unwrap();
        })
        .run();
    assert_eq!(outcome.state.gpr[0], (1..=40u64).map(|n| 2 * n + 1).sum::<u64>());
}

/// Code writes the page table that maps it, in its own block.
#[test]
fn accessed_and_dirty_bits_come_back_after_they_are_cleared() {
    let entry = TABLE + 8 * (DATA >> 12);
    let outcome = Scene::new()
        .code(CODE, |a| {
            let mut top = a.create_label();
            a.mov(ecx, 40).unwrap();
            a.set_label(&mut top).unwrap();
            a.and(qword_ptr(entry), !0x60i32).unwrap();
            a.invlpg(ptr(DATA)).unwrap();
            a.mov(rdx, qword_ptr(DATA)).unwrap();
            a.mov(rdx, qword_ptr(entry)).unwrap();
            a.and(edx, 0x60).unwrap();
            a.add(r8, rdx).unwrap();
            a.mov(qword_ptr(DATA), rcx).unwrap();
            a.mov(rdx, qword_ptr(entry)).unwrap();
            a.and(edx, 0x60).unwrap();
            a.add(r9, rdx).unwrap();
            a.dec(ecx).unwrap();
            a.jne(top).unwrap();
            a.hlt().unwrap();
        })
        .run();
    assert_eq!((outcome.state.gpr[8], outcome.state.gpr[9]), (40 * 0x20, 40 * 0x60));
}
