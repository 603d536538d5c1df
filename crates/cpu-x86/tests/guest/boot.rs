//! From the reset vector through all modes (APM volume 2, chapter 14), and start-up of a second CPU.

use accel::{Exit, Signal, Vcpu};
use iced_x86::code_asm::*;

use super::*;

const ROM: u64 = 0xffff_0000;

/// A far jump to `selector:offset` with a 32-bit offset, in 16-bit code and in 32-bit code.
fn far_jump(a: &mut CodeAssembler, selector: u16, offset: u32) {
    let mut bytes = vec![0xea];
    if a.bitness() == 16 {
        bytes.insert(0, 0x66);
    }
    bytes.extend(offset.to_le_bytes());
    bytes.extend(selector.to_le_bytes());
    a.db(&bytes).unwrap();
}

#[test]
fn from_reset_to_64_bit_code() {
    let (mut cpu, board) = machine(&[(0, RAM), (ROM, 0x1_0000)], 1).pop().expect("one CPU");
    for (n, descriptor) in DESCRIPTORS.into_iter().enumerate() {
        put(&board, GDT + 8 * n as u64, descriptor);
    }
    put(&board, PML4, PDPT | 3);
    put(&board, PDPT, PD | 3);
    put(&board, PD, 0x83);
    // What LGDT loads: limit, base.
    put(&board, 0x500, 0x1f | GDT << 16);
    // A near jump to offset 0xe000: a far one would leave for the first megabyte.
    code(&board, 16, ROM + 0xfff0, |a| a.db(&[0xe9, 0x0d, 0xe0]).unwrap());
    code(&board, 16, ROM + 0xe000, |a| {
        a.mov(ax, cs).unwrap();
        a.out(0xe9, ax).unwrap();
        a.xor(ax, ax).unwrap();
        a.mov(ds, ax).unwrap();
        a.lgdt(ptr(0x500)).unwrap();
        a.mov(eax, cr0).unwrap();
        a.or(al, 1).unwrap();
        a.mov(cr0, eax).unwrap();
        far_jump(a, CODE32, CODE as u32);
    });
    code(&board, 32, CODE, |a| {
        a.mov(ax, u32::from(DATA)).unwrap();
        a.mov(ss, ax).unwrap();
        a.mov(ds, ax).unwrap();
        a.mov(esp, STACK as u32).unwrap();
        a.mov(ax, cs).unwrap();
        a.out(0xe9, ax).unwrap();
        a.mov(eax, cr4).unwrap();
        a.or(eax, 1 << 5).unwrap();
        a.mov(cr4, eax).unwrap();
        a.mov(eax, PML4 as u32).unwrap();
        a.mov(cr3, eax).unwrap();
        a.mov(ecx, EFER).unwrap();
        a.rdmsr().unwrap();
        a.or(eax, 0x100).unwrap();
        a.wrmsr().unwrap();
        a.mov(eax, cr0).unwrap();
        a.or(eax, 0x8000_0000u32).unwrap();
        a.mov(cr0, eax).unwrap();
        // Still 32-bit code, now in compatibility mode.
        a.rdmsr().unwrap();
        a.out(0xe9, eax).unwrap();
        far_jump(a, CODE64, HANDLER as u32);
    });
    code(&board, 64, HANDLER, |a| {
        a.mov(rax, 0x1_2345_6789u64).unwrap();
        a.push(rax).unwrap();
        a.shr(rax, 32).unwrap();
        a.out(0xe9, eax).unwrap();
        a.hlt().unwrap();
    });
    // EFER shows LMA with LME.
    assert_eq!(run_to_halt(&mut cpu, &board), [0xf000, u32::from(CODE32), 0x500, 1]);
    assert_eq!(get(&board, STACK - 8), 0x1_2345_6789);
}

#[test]
fn a_start_up_ipi_names_the_page_to_begin_in() {
    let mut machine = machine(&[(0, RAM)], 2);
    let (mut second, board) = machine.pop().expect("two CPUs");
    assert!(matches!(second.run(), Exit::Halt { .. }), "it waits");
    code(&board, 16, 0x9000, |a| {
        a.mov(ax, cs).unwrap();
        a.out(0xe9, ax).unwrap();
        a.hlt().unwrap();
    });
    board.startup.store(9, std::sync::atomic::Ordering::Relaxed);
    board.signals.raise(Signal::Init);
    assert!(matches!(second.run(), Exit::Halt { .. }), "INIT alone starts nothing");
    board.signals.raise(Signal::Startup);
    assert_eq!(run_to_halt(&mut second, &board), [0x900]);
    // A second one is ignored.
    board.signals.raise(Signal::Startup);
    assert_eq!(run_to_halt(&mut second, &board), [0x900]);
}
