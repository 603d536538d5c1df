//! Each intercept: that it is taken with what there is to tell, and that without it the guest goes on.

use iced_x86::code_asm::*;

use super::*;

const NP: u64 = 1 << 63;

/// An instruction, its exit, and EXITINFO1. The guest goes on from it without the intercept if `passes`.
struct Case {
    code: u32,
    bytes: &'static [u8],
    info1: u64,
    passes: bool,
}

const fn case(code: u32, bytes: &'static [u8], info1: u64, passes: bool) -> Case {
    Case { code, bytes, info1, passes }
}

/// RBX points to memory, RDX is 0x80, RCX is 0 in all of them.
const CASES: &[Case] = &[
    // MOV R8, CR0 and its relatives.
    case(code::CR_READ, &[0x41, 0x0f, 0x20, 0xc0], NP | 8, true),
    case(code::CR_READ + 2, &[0x0f, 0x20, 0xd6], NP | 6, true),
    case(code::CR_READ + 3, &[0x0f, 0x20, 0xde], NP | 6, true),
    case(code::CR_READ + 4, &[0x0f, 0x20, 0xe6], NP | 6, true),
    case(code::CR_READ + 8, &[0x44, 0x0f, 0x20, 0xc6], NP | 6, true),
    // SMSW, LMSW, CLTS.
    case(code::CR_READ, &[0x0f, 0x01, 0xe6], 0, true),
    case(code::CR_WRITE, &[0x0f, 0x01, 0xf2], 0, true),
    case(code::CR_WRITE, &[0x0f, 0x06], 0, true),
    case(code::CR_WRITE + 2, &[0x0f, 0x22, 0xd2], NP | 2, true),
    case(code::CR_WRITE + 8, &[0x44, 0x0f, 0x22, 0xc1], NP | 1, true),
    case(code::DR_READ, &[0x0f, 0x21, 0xc6], 6, true),
    case(code::DR_READ + 7, &[0x0f, 0x21, 0xfe], 6, true),
    case(code::DR_WRITE + 3, &[0x0f, 0x23, 0xda], 2, true),
    case(code::DR_WRITE + 6, &[0x0f, 0x23, 0xf1], 1, true),
    case(code::IDTR_READ, &[0x0f, 0x01, 0x0b], 0, true),
    case(code::GDTR_READ, &[0x0f, 0x01, 0x03], 0, true),
    case(code::LDTR_READ, &[0x0f, 0x00, 0xc6], 0, true),
    case(code::TR_READ, &[0x0f, 0x00, 0xce], 0, true),
    case(code::IDTR_WRITE, &[0x0f, 0x01, 0x1b], 0, true),
    case(code::GDTR_WRITE, &[0x0f, 0x01, 0x13], 0, true),
    case(code::LDTR_WRITE, &[0x0f, 0x00, 0xd1], 0, true),
    case(code::TR_WRITE, &[0x0f, 0x00, 0xda], 0, false),
    case(code::RDTSC, &[0x0f, 0x31], 0, true),
    case(code::RDPMC, &[0x0f, 0x33], 0, false),
    case(code::PUSHF, &[0x9c], 0, true),
    case(code::POPF, &[0x9d], 0, true),
    case(code::CPUID, &[0x0f, 0xa2], 0, true),
    case(code::RSM, &[0x0f, 0xaa], 0, false),
    case(code::IRET, &[0x48, 0xcf], 0, false),
    case(code::SOFTWARE_INTERRUPT, &[0xcd, 0x42], 0x42, false),
    case(code::INVD, &[0x0f, 0x08], 0, true),
    case(code::PAUSE, &[0xf3, 0x90], 0, true),
    case(code::HLT, &[0xf4], 0, false),
    case(code::INVLPG, &[0x0f, 0x01, 0x3b], 0x6_0000, true),
    case(code::INVLPGA, &[0x0f, 0x01, 0xdf], 0, true),
    case(code::VMRUN, &[0x0f, 0x01, 0xd8], 0, false),
    case(code::VMMCALL, &[0x0f, 0x01, 0xd9], 0, false),
    case(code::VMLOAD, &[0x0f, 0x01, 0xda], 0, false),
    case(code::VMSAVE, &[0x0f, 0x01, 0xdb], 0, false),
    case(code::STGI, &[0x0f, 0x01, 0xdc], 0, true),
    case(code::CLGI, &[0x0f, 0x01, 0xdd], 0, true),
    case(code::RDTSCP, &[0x0f, 0x01, 0xf9], 0, true),
    case(code::ICEBP, &[0xf1], 0, false),
    case(code::WBINVD, &[0x0f, 0x09], 0, true),
    case(code::XSETBV, &[0x0f, 0x01, 0xd1], 0, false),
    case(code::EXCEPTION + 3, &[0xcc], 0, false),
    case(code::EXCEPTION + 6, &[0x0f, 0x0b], 0, false),
];

fn prepare(case: &Case) -> Machine {
    let mut machine = Machine::new();
    machine.put(at::CR4, machine.cpu.cr4 | 1 << 18);
    machine.put(at::RAX, 0);
    machine.set_memory(GUEST_STACK, 2);
    machine.cpu.gpr[3] = 0x6_0000;
    machine.cpu.gpr[2] = 0;
    machine.cpu.gpr[1] = 0;
    machine.write(GUEST, case.bytes);
    machine.write(GUEST + case.bytes.len() as u64, &[0x0f, 0x01, 0xd9]);
    machine
}

#[test]
fn instructions_that_are_intercepted_have_not_begun() {
    for case in CASES {
        let mut machine = prepare(case);
        machine.intercept(case.code);
        let found = machine.run();
        let name = format!("{:#x} {:02x?}", case.code, case.bytes);
        assert_eq!(found, u64::from(case.code), "{name}: exit {found:#x}");
        assert_eq!(machine.get(at::RIP), GUEST, "{name}");
        assert_eq!(machine.get(at::EXIT_INFO1), case.info1, "{name}");
        // An exception has no next instruction.
        let next = if case.bytes == [0x0f, 0x0b] { 0 } else { GUEST + case.bytes.len() as u64 };
        assert_eq!(machine.get(at::NEXT_RIP), next, "{name}");
        assert_eq!(machine.get(at::RSP), GUEST_STACK, "{name}");
        assert_eq!(machine.get(at::EXIT_INT_INFO), 0, "{name}");
    }
}

#[test]
fn instructions_that_are_not_intercepted_are_the_guests() {
    for case in CASES.iter().filter(|case| case.passes) {
        let mut machine = prepare(case);
        let found = machine.run();
        let name = format!("{:#x} {:02x?}", case.code, case.bytes);
        assert_eq!(found, u64::from(code::VMMCALL), "{name}: exit {found:#x}");
        assert_eq!(machine.get(at::RIP), GUEST + case.bytes.len() as u64, "{name}");
    }
}

#[test]
fn privilege_is_checked_before_the_intercept() {
    for bytes in [&[0xf4u8][..], &[0x0f, 0x20, 0xc0], &[0x0f, 0x32], &[0x0f, 0x01, 0xd8]] {
        let mut machine = Machine::new();
        for code in [code::HLT, code::CR_READ, code::MSR, code::VMRUN, code::EXCEPTION + 13] {
            machine.intercept(code);
        }
        machine.write(MSRPM, &[0xff; 0x2000]);
        machine.write(GUEST, bytes);
        machine.write(VMCB + at::CPL as u64, &[3]);
        machine.expect(code::EXCEPTION + 13, GUEST);
        assert_eq!(machine.get(at::EXIT_INFO1), 0);
        assert_eq!(machine.get(at::CPL) as u8, 3);
    }
}

#[test]
fn the_selective_intercept_lets_ts_and_mp_pass() {
    let mut machine = Machine::new();
    machine.intercept(code::CR0_SELECTIVE_WRITE);
    machine.guest(|a| {
        a.mov(rax, cr0).unwrap();
        a.xor(eax, 0xa).unwrap();
        a.mov(cr0, rax).unwrap();
        a.xor(eax, 0x4_0000).unwrap();
        a.mov(cr0, rax).unwrap();
    });
    assert_eq!(machine.run(), u64::from(code::CR0_SELECTIVE_WRITE));
    assert_eq!(machine.get(at::CR0) & 0x4_000a, 0xa);
    // LMSW leaves whatever it writes.
    machine.guest(|a| a.lmsw(ax).unwrap());
    machine.put(at::RIP, GUEST);
    assert_eq!(machine.run(), u64::from(code::CR0_SELECTIVE_WRITE));
    // The plain one comes first.
    machine.intercept(code::CR_WRITE);
    machine.put(at::RIP, GUEST);
    assert_eq!(machine.run(), u64::from(code::CR_WRITE));
}

#[test]
fn msr_map_decides_by_register_and_direction() {
    let run = |register: u32, write: bool, offset: u64, bit: u32| {
        let mut machine = Machine::new();
        machine.intercept(code::MSR);
        if bit < 8 {
            machine.write(MSRPM + offset, &[1 << bit]);
        }
        machine.guest(|a| {
            a.mov(ecx, register).unwrap();
            if write { a.wrmsr() } else { a.rdmsr() }.unwrap();
            a.vmmcall().unwrap();
        });
        (machine.run() as u32, machine.get(at::EXIT_INFO1))
    };
    const NONE: u32 = 8;
    const MSR: u32 = code::MSR;
    // SYSENTER_CS: bit 2 * 0x174 of the first part.
    assert_eq!(run(0x174, false, 0x5d, 0), (MSR, 0));
    assert_eq!(run(0x174, true, 0x5d, 1), (MSR, 1));
    assert_eq!(run(0x174, true, 0x5d, 0), (code::VMMCALL, 0));
    // STAR, in the second; VM_CR, in the third.
    assert_eq!(run(0xc000_0081, false, 0x820, 2), (MSR, 0));
    assert_eq!(run(0xc000_0081, false, 0x820, 3), (code::VMMCALL, 0));
    assert_eq!(run(0xc001_0114, true, 0x1045, 1), (MSR, 1));
    // What the map does not have is intercepted, if there is such a register or not.
    assert_eq!(run(0x4000_0000, false, 0, NONE), (MSR, 0));
    assert_eq!(run(0x2000, true, 0, NONE), (MSR, 1));
}

#[test]
fn io_map_decides_by_port_and_all_that_there_is_of_it_is_told() {
    let run = |bits: &[(u64, u8)], bytes: &[u8]| {
        let mut machine = Machine::new();
        machine.intercept(code::IOIO);
        for &(offset, value) in bits {
            machine.write(IOPM + offset, &[value]);
        }
        machine.cpu.gpr[1] = 3;
        machine.cpu.gpr[2] = 0x3f7;
        machine.cpu.gpr[6] = 0x6_0000;
        machine.cpu.gpr[7] = 0x6_0000;
        machine.write(GUEST, bytes);
        machine.write(GUEST + bytes.len() as u64, &[0x0f, 0x01, 0xd9]);
        let exit = machine.run() as u32;
        assert!(exit == code::VMMCALL || machine.get(at::EXIT_INFO2) == GUEST + bytes.len() as u64);
        (exit, machine.get(at::EXIT_INFO1))
    };
    const IO: u32 = code::IOIO;
    // OUT 0x80, AL; IN AX, DX (port 0x3f7, whose second byte is in the map's next byte).
    assert_eq!(run(&[(0x10, 1)], &[0xe6, 0x80]), (IO, 0x80_0210));
    assert_eq!(run(&[(0x10, 2)], &[0xe6, 0x80]).0, code::VMMCALL);
    assert_eq!(run(&[(0x7e, 0x80)], &[0x66, 0xed]), (IO, 0x3f7_0221));
    assert_eq!(run(&[(0x7f, 1)], &[0x66, 0xed]), (IO, 0x3f7_0221));
    assert_eq!(run(&[(0x7f, 1)], &[0xec]).0, code::VMMCALL);
    // REP OUTSD with an FS prefix and 32-bit addresses; INSB.
    let rep_outs = &[0x64, 0x67, 0xf3, 0x6f];
    assert_eq!(run(&[(0x7f, 2)], rep_outs), (IO, 0x3f7_114c));
    assert_eq!(run(&[(0x7e, 0x80)], &[0x6c]), (IO, 0x3f7_0215));
    // Port 0xffff is followed by bits of the map's third page.
    assert_eq!(run(&[(0x2000, 1)], &[0x66, 0xba, 0xff, 0xff, 0x66, 0xed]).0, IO);
}

#[test]
fn pauses_are_counted_by_the_filter() {
    let mut machine = Machine::new();
    machine.intercept(code::PAUSE);
    machine.put16(at::PAUSE_COUNT, 10);
    machine.guest(|a| {
        for _ in 0..20 {
            a.pause().unwrap();
        }
        a.vmmcall().unwrap();
    });
    machine.expect(code::PAUSE, GUEST + 2 * 10);
    machine.put16(at::PAUSE_COUNT, 25);
    machine.put(at::RIP, GUEST);
    machine.expect(code::VMMCALL, GUEST + 2 * 20);
}

#[test]
fn a_page_fault_that_is_intercepted_leaves_cr2_alone() {
    let mut machine = Machine::new();
    machine.intercept(code::EXCEPTION + 14);
    machine.put(at::CR2, 0x1234);
    machine.guest(|a| a.mov(byte_ptr(0x4000_0000u64), al).unwrap());
    machine.expect(code::EXCEPTION + 14, GUEST);
    assert_eq!(machine.get(at::EXIT_INFO1), 2);
    assert_eq!(machine.get(at::EXIT_INFO2), 0x4000_0000);
    assert_eq!(machine.get(at::CR2), 0x1234);
    // Decode assists: the instruction's bytes, as many as there can be.
    assert_eq!(machine.get(at::INSN_BYTES) & 0xffff, 0xa20f);
}

#[test]
fn exceptions_that_are_not_intercepted_are_the_guests() {
    let mut machine = Machine::new();
    machine.handlers();
    machine.guest(|a| a.mov(byte_ptr(0x4000_0000u64), al).unwrap());
    machine.expect(code::VMMCALL, HANDLERS + 16 * 14);
    assert_eq!(machine.get(at::CR2), 0x4000_0000);
    assert_eq!((frame(&machine, 0), frame(&machine, 1)), (2, GUEST));
}

#[test]
fn a_triple_fault_is_the_guests_own() {
    let mut machine = Machine::new();
    machine.intercept(code::SHUTDOWN);
    machine.put32(at::IDTR + 4, 0);
    machine.guest(|a| a.ud2().unwrap());
    assert_eq!(machine.run(), u64::from(code::SHUTDOWN));
}

#[test]
fn time_is_scaled_and_moved() {
    let mut machine = Machine::new();
    machine.put(at::TSC_OFFSET, 0x100_0000_0000);
    machine.guest(|a| {
        a.rdtsc().unwrap();
        a.mov(ebx, edx).unwrap();
        a.mov(ecx, 0x10).unwrap();
        a.rdmsr().unwrap();
        a.vmmcall().unwrap();
    });
    machine.expect(code::VMMCALL, GUEST + 11);
    // The board's clock stands still at zero.
    assert_eq!((machine.cpu.gpr[3], machine.cpu.gpr[2]), (0x100, 0x100));
    // With the clock at 1000 ticks, three quarters of them.
    machine.cpu.msrs.tsc_offset = 1000;
    assert!(machine.cpu.write_svm_msr(index::TSC_RATIO, 3 << 30));
    machine.put(at::TSC_OFFSET, 7);
    machine.put(at::RIP, GUEST);
    machine.run();
    assert_eq!(machine.get(at::RAX), 757);
}
