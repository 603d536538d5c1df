//! Delivery and return, frame by frame.

use accel::{Exit, Vcpu};
use iced_x86::code_asm::{
    ax, byte_ptr, ch, cl, dr0, dr7, dword_ptr, eax, ebx, edx, qword_ptr, rax, rcx,
};

use super::*;
use crate::msr::index;
use crate::regs::*;
use crate::testing::{CODE, STACK, cpu, load, long_mode, run_to_halt};

const GDT: u64 = 0x4000;
const IDT: u64 = 0x5000;
const TSS: u64 = 0x6000;
/// Where handlers are; each is a HLT.
const HANDLER: u64 = 0x7000;
const RSP0: u64 = 0x7_0000;
const IST1: u64 = 0x6_0000;
const USER_STACK: u64 = 0x5_0ff8;

const CODE64: u16 = 0x08;
const DATA: u16 = 0x10;
const CODE32: u16 = 0x18;
const USER_CODE32: u16 = 0x23;
const USER_DATA: u16 = 0x2b;
const USER_CODE64: u16 = 0x33;
const TASK: u16 = 0x40;

fn put(cpu: &Cpu, at: u64, value: u64) {
    cpu.memory.write(at, &value.to_le_bytes()).unwrap();
}

fn get(cpu: &Cpu, at: u64) -> u64 {
    let mut bytes = [0; 8];
    cpu.memory.read(at, &mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}

fn get32(cpu: &Cpu, at: u64) -> u32 {
    get(cpu, at) as u32
}

/// Writes gate `v`: `kind` is 14 or 15, with `dpl`.
fn gate(cpu: &Cpu, v: u8, selector: u16, kind: u64, dpl: u64, ist: u64) {
    let target = HANDLER + 16 * u64::from(v);
    let raw = target & 0xffff
        | u64::from(selector) << 16
        | ist << 32
        | (0x80 | dpl << 5 | kind) << 40
        | (target >> 16 & 0xffff) << 48;
    let size = if cpu.long_mode() { 16 } else { 8 };
    put(cpu, IDT + size * u64::from(v), raw);
    if size == 16 {
        put(cpu, IDT + 16 * u64::from(v) + 8, target >> 32);
    }
    cpu.memory.write(target, &[0xf4]).unwrap();
}

/// Descriptors for both kinds of code at both levels.
fn tables(cpu: &mut Cpu) {
    let entries = [
        0,
        0x00af_9b00_0000_ffff,              // CODE64
        0x00cf_9300_0000_ffff,              // DATA
        0x00cf_9b00_0000_ffff,              // CODE32
        0x00cf_fb00_0000_ffff,              // USER_CODE32
        0x00cf_f300_0000_ffff,              // USER_DATA
        0x00af_fb00_0000_ffff,              // USER_CODE64
        0x00cf_9300_0000_ffff & !(1 << 47), // not present
        TSS << 16 | 0x67 | 0x89 << 40,
        0,
    ];
    for (n, entry) in entries.into_iter().enumerate() {
        put(cpu, GDT + 8 * n as u64, entry);
    }
    cpu.gdtr = crate::state::TableRegister { base: GDT, limit: 0x4f };
    cpu.idtr = crate::state::TableRegister { base: IDT, limit: 0xfff };
    cpu.tr = Segment { selector: TASK, base: TSS, limit: 0x67, attributes: 0x8b };
}

/// A CPU in 64-bit mode with descriptor tables, a task state segment and some gates.
fn long_cpu() -> Cpu {
    let mut cpu = long_mode();
    tables(&mut cpu);
    cpu.seg[usize::from(SS)].selector = DATA;
    put(&cpu, TSS + 4, RSP0);
    put(&cpu, TSS + 36, IST1);
    for v in 0..=32 {
        gate(&cpu, v, CODE64, 14, 0, 0);
    }
    gate(&cpu, 3, CODE64, 14, 3, 0);
    gate(&cpu, 0x80, CODE64, 15, 3, 0);
    gate(&cpu, 0x81, CODE64, 14, 0, 0);
    gate(&cpu, 0x82, CODE64, 14, 3, 1);
    cpu.set_rflags(0x202);
    cpu
}

/// Continues at CPL 3 in 64-bit code.
fn enter_user(cpu: &mut Cpu) {
    let mut data = cpu.seg[usize::from(SS)];
    data.attributes |= 3 << 5;
    data.selector = USER_DATA;
    cpu.seg[usize::from(SS)] = data;
    let mut code = cpu.seg[usize::from(CS)];
    code.attributes |= 3 << 5;
    code.selector = USER_CODE64;
    cpu.gpr[4] = USER_STACK;
    cpu.set_code(code, 3, CODE);
}

fn handler(v: u64) -> u64 {
    HANDLER + 16 * v + 1
}

#[test]
fn a_system_call_gate_switches_stacks_in_long_mode() {
    let mut cpu = long_cpu();
    load(&cpu, |a| a.int(0x80).unwrap());
    enter_user(&mut cpu);
    run_to_halt(&mut cpu);
    assert_eq!(cpu.rip, handler(0x80));
    assert_eq!((cpu.cpl, cpu.gpr[4]), (0, RSP0 - 40));
    assert_eq!(cpu.seg[usize::from(SS)], Segment::default(), "SS is a null selector");
    let frame: Vec<u64> = (0..5).map(|n| get(&cpu, RSP0 - 40 + 8 * n)).collect();
    let (ss, cs) = (u64::from(USER_DATA), u64::from(USER_CODE64));
    assert_eq!(frame, [CODE + 2, cs, 0x202, USER_STACK, ss]);
    assert_ne!(cpu.rflags() & bits::IF, 0, "a trap gate keeps IF");
}

#[test]
fn stacks_are_aligned_and_ist_replaces_them() {
    let mut cpu = long_cpu();
    load(&cpu, |a| a.ud2().unwrap());
    cpu.gpr[4] = STACK - 5;
    run_to_halt(&mut cpu);
    assert_eq!(cpu.rip, handler(6));
    assert_eq!(cpu.gpr[4], STACK - 16 - 40);
    assert_eq!(get(&cpu, cpu.gpr[4]), CODE, "a fault saves its own address");
    assert_eq!(get(&cpu, cpu.gpr[4] + 16) & bits::RF, bits::RF);
    assert_eq!(cpu.rflags() & bits::IF, 0, "an interrupt gate clears IF");

    let mut cpu = long_cpu();
    load(&cpu, |a| a.int(0x82).unwrap());
    run_to_halt(&mut cpu);
    assert_eq!(cpu.gpr[4], IST1 - 40);
    assert_eq!(get(&cpu, IST1 - 16), STACK);
    assert_eq!(get(&cpu, IST1 - 24) & bits::RF, 0);
}

#[test]
fn a_gate_that_user_code_may_not_call_gives_its_index() {
    let mut cpu = long_cpu();
    load(&cpu, |a| a.int(0x81).unwrap());
    enter_user(&mut cpu);
    run_to_halt(&mut cpu);
    assert_eq!(cpu.rip, handler(13));
    assert_eq!(cpu.gpr[4], RSP0 - 48);
    assert_eq!(get(&cpu, RSP0 - 48), 0x81 * 8 + 2);
    assert_eq!(get(&cpu, RSP0 - 40), CODE, "the fault is at INT");
}

#[test]
fn a_page_fault_tells_code_and_address() {
    let mut cpu = long_cpu();
    load(&cpu, |a| {
        a.mov(rax, 0x7fff_f000u64).unwrap();
        a.mov(byte_ptr(rax), 1).unwrap();
    });
    enter_user(&mut cpu);
    run_to_halt(&mut cpu);
    assert_eq!(cpu.rip, handler(14));
    assert_eq!(get(&cpu, RSP0 - 48), 6, "a user's write to a page that is not present");
    assert_eq!(cpu.cr2, 0x7fff_f000);
}

#[test]
fn faults_double_and_triple() {
    // #GP whose handler's segment is not present: #NP on the way, so #DF with code 0.
    let mut cpu = long_cpu();
    gate(&cpu, 13, 0x38, 14, 0, 0);
    load(&cpu, |a| a.mov(dr7, rax).unwrap());
    cpu.gpr[0] = 1 << 40;
    run_to_halt(&mut cpu);
    assert_eq!(cpu.rip, handler(8));
    assert_eq!(get(&cpu, cpu.gpr[4]), 0);

    // #UD is benign: the #NP of its delivery is delivered, on Intel's with the external bit.
    for (intel, code) in [(false, 0x38), (true, 0x38 | 1)] {
        let mut cpu = long_cpu();
        cpu.limits.intel = intel;
        gate(&cpu, 6, 0x38, 14, 0, 0);
        // The descriptor is data; make it absent code to get past the type check.
        put(&cpu, GDT + 0x38, 0x00af_1b00_0000_ffff);
        load(&cpu, |a| a.ud2().unwrap());
        run_to_halt(&mut cpu);
        assert_eq!(cpu.rip, handler(11));
        assert_eq!(get(&cpu, cpu.gpr[4]), code);
    }

    let mut cpu = long_cpu();
    cpu.idtr.limit = 0;
    load(&cpu, |a| a.ud2().unwrap());
    assert_eq!(cpu.run(), Exit::Shutdown);
}

#[test]
fn iret_goes_back_to_user_code_of_both_kinds() {
    for (selector, code_bits) in [(USER_CODE64, 64), (USER_CODE32, 32)] {
        let mut cpu = long_cpu();
        load(&cpu, |a| {
            a.push(u32::from(USER_DATA) as i32).unwrap();
            a.push(USER_STACK as i32).unwrap();
            a.push(0x3202).unwrap();
            a.push(u32::from(selector) as i32).unwrap();
            a.push(0x9000).unwrap();
            a.iretq().unwrap();
        });
        // INT 0x80
        cpu.memory.write(0x9000, &[0xcd, 0x80]).unwrap();
        run_to_halt(&mut cpu);
        assert_eq!(cpu.rip, handler(0x80), "{code_bits}");
        let frame: Vec<u64> = (0..5).map(|n| get(&cpu, RSP0 - 40 + 8 * n)).collect();
        let (ss, cs) = (u64::from(USER_DATA), u64::from(selector));
        assert_eq!(frame, [0x9002, cs, 0x3202, USER_STACK, ss]);
    }
}

#[test]
fn iret_checks_what_it_returns_to() {
    // (CS, RIP, SS) and the fault.
    let cases: [(u64, u64, u64, u64, u64); 7] = [
        (0, 0x9000, u64::from(DATA), 13, 0),
        (0x1000, 0x9000, u64::from(DATA), 13, 0x1000),
        (u64::from(DATA), 0x9000, u64::from(DATA), 13, u64::from(DATA)),
        (u64::from(CODE64), 1 << 47, u64::from(DATA), 13, 0),
        (u64::from(USER_CODE64), 0x9000, 0, 13, 0),
        (u64::from(USER_CODE64), 0x9000, u64::from(DATA), 13, u64::from(DATA)),
        (u64::from(USER_CODE64), 0x9000, 0x38 | 3, 13, 0x38),
    ];
    for (cs, rip, ss, v, code) in cases {
        let mut cpu = long_cpu();
        load(&cpu, |a| a.iretq().unwrap());
        cpu.gpr[4] = STACK - 40;
        for (n, value) in [rip, cs, 2, USER_STACK, ss].into_iter().enumerate() {
            put(&cpu, STACK - 40 + 8 * n as u64, value);
        }
        run_to_halt(&mut cpu);
        assert_eq!(cpu.rip, handler(v), "to {cs:#x}:{rip:#x}, SS {ss:#x}");
        assert_eq!(get(&cpu, cpu.gpr[4]), code, "to {cs:#x}:{rip:#x}, SS {ss:#x}");
        assert_eq!(get(&cpu, cpu.gpr[4] + 32), STACK - 40, "RSP is as before");
    }
}

#[test]
fn a_null_stack_segment_is_good_enough_for_64_bit_kernels() {
    let mut cpu = long_cpu();
    load(&cpu, |a| a.iretq().unwrap());
    cpu.memory.write(0x9000, &[0xf4]).unwrap();
    cpu.gpr[4] = STACK - 40;
    for (n, value) in [0x9000, u64::from(CODE64), 2, 0x1234, 0].into_iter().enumerate() {
        put(&cpu, STACK - 40 + 8 * n as u64, value);
    }
    run_to_halt(&mut cpu);
    assert_eq!((cpu.rip, cpu.gpr[4]), (0x9001, 0x1234));
}

#[test]
fn syscall_and_sysret() {
    let mut cpu = long_cpu();
    cpu.efer |= EFER_SCE;
    // The bases of SYSRET's and SYSCALL's selectors.
    assert!(cpu.write_msr(index::STAR, 0x0023_0008 << 32));
    assert!(cpu.write_msr(index::LSTAR, 0x9000));
    // The processor has 5-level paging, so its addresses have 57 bits, whatever the mode.
    assert!(!cpu.write_msr(index::LSTAR, 1 << 56));
    assert!(cpu.write_msr(index::SFMASK, bits::IF | bits::DF));
    load(&cpu, |a| {
        a.std().unwrap();
        a.syscall().unwrap();
        a.int(0x80).unwrap();
    });
    // SYSRETQ
    cpu.memory.write(0x9000, &[0x48, 0x0f, 0x07]).unwrap();
    enter_user(&mut cpu);
    let stack = cpu.gpr[4];
    run_to_halt(&mut cpu);
    assert_eq!(cpu.rip, handler(0x80));
    assert_eq!(cpu.gpr[1], CODE + 3);
    assert_eq!(cpu.gpr[11], 0x602);
    let frame: Vec<u64> = (0..5).map(|n| get(&cpu, RSP0 - 40 + 8 * n)).collect();
    assert_eq!(frame, [CODE + 5, u64::from(USER_CODE64), 0x602, stack, u64::from(USER_DATA)]);
}

#[test]
fn real_mode_uses_the_vector_table() {
    let mut cpu = cpu();
    cpu.load_segment_real(CS, 0x1000);
    cpu.load_segment_real(SS, 0x2000);
    cpu.rip = 0x10;
    cpu.gpr[4] = 0xdead_0100;
    cpu.set_rflags(0x202);
    // INT 0x21; HLT. The handler at 0x3000:0x8000: IRET.
    cpu.memory.write(0x1_0010, &[0xcd, 0x21, 0xf4]).unwrap();
    cpu.memory.write(0x21 * 4, &[0x00, 0x80, 0x00, 0x30]).unwrap();
    cpu.memory.write(0x3_8000, &[0xcf]).unwrap();
    run_to_halt(&mut cpu);
    assert_eq!(get(&cpu, 0x2_00fa) & 0xffff_ffff_ffff, 0x0202_1000_0012);
    assert_eq!(cpu.gpr[4], 0xdead_0100);
    assert_eq!((cpu.seg[usize::from(CS)].selector, cpu.rip), (0x1000, 0x13));
    assert_eq!(cpu.rflags(), 0x202);
}

/// A CPU in flat 32-bit protected mode at CPL 0.
fn protected_cpu() -> Cpu {
    let mut cpu = cpu();
    tables(&mut cpu);
    put(&cpu, TSS + 4, RSP0 | u64::from(DATA) << 32);
    cpu.cr0 |= CR0_PE;
    cpu.update_mode();
    for v in 0..=32 {
        gate(&cpu, v, CODE32, 14, 0, 0);
    }
    gate(&cpu, 0x80, CODE32, 14, 3, 0);
    let code = cpu.descriptor(CODE32).unwrap().segment(CODE32);
    cpu.set_code(code, 0, CODE);
    for index in [SS, DS, ES, FS, GS] {
        cpu.load_segment(index, DATA).unwrap();
    }
    cpu.gpr[4] = STACK;
    cpu
}

#[test]
fn protected_mode_enters_inner_levels_through_the_tss() {
    let mut cpu = protected_cpu();
    cpu.memory.write(CODE, &[0xcd, 0x80]).unwrap();
    let stack = cpu.descriptor(USER_DATA).unwrap().segment(USER_DATA);
    cpu.seg[usize::from(SS)] = stack;
    let code = cpu.descriptor(USER_CODE32).unwrap().segment(USER_CODE32);
    cpu.set_code(code, 3, CODE);
    cpu.gpr[4] = USER_STACK;
    run_to_halt(&mut cpu);
    assert_eq!(cpu.rip, handler(0x80));
    assert_eq!((cpu.cpl, cpu.gpr[4]), (0, RSP0 - 20));
    assert_eq!(cpu.seg[usize::from(SS)].selector, DATA);
    let frame: Vec<u32> = (0..5).map(|n| get32(&cpu, RSP0 - 20 + 4 * n)).collect();
    let (ss, cs) = (u32::from(USER_DATA), u32::from(USER_CODE32));
    assert_eq!(frame, [CODE as u32 + 2, cs, 2, USER_STACK as u32, ss]);
}

#[test]
fn virtual_8086_mode_and_back() {
    let mut cpu = protected_cpu();
    // IRETD to 0x1000:0x20 with VM; there INT 0x80 with IOPL 3.
    cpu.memory.write(CODE, &[0xcf]).unwrap();
    cpu.memory.write(0x1_0020, &[0xcd, 0x80]).unwrap();
    let frame = [0x20u32, 0x1000, 0x2_3002, 0xff0, 0x2000, 0x11, 0x22, 0x33, 0x44];
    cpu.gpr[4] = STACK - 36;
    for (n, value) in frame.into_iter().enumerate() {
        cpu.memory.write(STACK - 36 + 4 * n as u64, &value.to_le_bytes()).unwrap();
    }
    run_to_halt(&mut cpu);
    assert_eq!((cpu.rip, cpu.cpl), (handler(0x80), 0));
    let frame: Vec<u32> = (0..9).map(|n| get32(&cpu, RSP0 - 36 + 4 * n)).collect();
    assert_eq!(frame, [0x22, 0x1000, 0x2_3002, 0xff0, 0x2000, 0x11, 0x22, 0x33, 0x44]);
    for index in [ES, DS, FS, GS] {
        assert_eq!(cpu.seg[usize::from(index)], Segment::default());
    }
    assert_eq!(cpu.rflags() & bits::VM, 0);
}

#[test]
fn descriptor_loads_raise_what_the_manuals_say() {
    let mut cpu = protected_cpu();
    let not_present = 0x38;
    assert_eq!(cpu.load_segment(DS, 0x100), Err(gp(0x100)), "outside the table");
    assert_eq!(cpu.load_segment(DS, not_present), Err(np(not_present)));
    assert_eq!(cpu.load_segment(SS, not_present), Err(crate::descriptor::ss(not_present)));
    assert_eq!(cpu.load_segment(SS, 0), Err(Exception::GP0));
    assert_eq!(cpu.load_segment(SS, CODE32), Err(gp(CODE32)));
    assert_eq!(cpu.load_segment(SS, USER_DATA), Err(gp(USER_DATA)));
    assert_eq!(cpu.load_segment(DS, TASK), Err(gp(TASK)));
    assert_eq!(cpu.load_segment(DS, 0), Ok(()));
    assert_eq!(cpu.load::<u8>(DS, 0), Err(Exception::GP0), "a null segment can't be used");
    put(&cpu, GDT + 0x10, 0x0040_9200_0000_0fff);
    assert_eq!(cpu.load_segment(DS, DATA), Ok(()));
    assert_eq!(get(&cpu, GDT + 0x10) >> 40 & 1, 1, "loading sets the accessed bit");
    assert_eq!(cpu.load::<u32>(DS, 0xffc), Ok(0));
    assert_eq!(cpu.load::<u32>(DS, 0xffd), Err(Exception::GP0));
    put(&cpu, GDT + 0x10, 0x0040_9700_0000_0fff);
    cpu.load_segment(DS, DATA).unwrap();
    assert_eq!(cpu.load::<u32>(DS, 0xfff), Err(Exception::GP0), "expand-down");
    assert_eq!(cpu.load::<u32>(DS, 0x1000).map(|_| ()), Ok(()));
}

#[test]
fn call_gates_change_level_and_copy_parameters() {
    let mut cpu = protected_cpu();
    let target = 0x9000u64;
    put(&cpu, GDT + 0x48, target | u64::from(CODE32) << 16 | 2 << 32 | 0xec << 40);
    // At the target: RETF 8.
    cpu.memory.write(target, &[0xca, 8, 0]).unwrap();
    // CALL 0x48:0; INT 0x80
    cpu.memory.write(CODE, &[0x9a, 0, 0, 0, 0, 0x4b, 0, 0xcd, 0x80]).unwrap();
    let stack = cpu.descriptor(USER_DATA).unwrap().segment(USER_DATA);
    cpu.seg[usize::from(SS)] = stack;
    let code = cpu.descriptor(USER_CODE32).unwrap().segment(USER_CODE32);
    cpu.set_code(code, 3, CODE);
    cpu.gpr[4] = USER_STACK - 8;
    put(&cpu, USER_STACK - 8, 0x2222_2222_1111_1111);
    run_to_halt(&mut cpu);
    assert_eq!(cpu.rip, handler(0x80));
    let frame: Vec<u32> = (0..5).map(|n| get32(&cpu, RSP0 - 20 + 4 * n)).collect();
    let (ss, cs) = (u32::from(USER_DATA), u32::from(USER_CODE32));
    assert_eq!(frame, [CODE as u32 + 9, cs, 2, USER_STACK as u32, ss]);
    assert_eq!(get32(&cpu, RSP0 - 24), CODE as u32 + 7, "what the call pushed before");
}

#[test]
fn ports_follow_the_permission_bitmap() {
    let mut cpu = long_cpu();
    enter_user(&mut cpu);
    assert_eq!(cpu.check_io(0x3f8, 1), Err(Exception::GP0), "no bitmap within the limit");
    cpu.tr.limit = 0x1067;
    cpu.memory.write(TSS + 0x66, &0x68u16.to_le_bytes()).unwrap();
    cpu.memory.write(TSS + 0x68, &[0xff; 0x1000]).unwrap();
    cpu.memory.write(TSS + 0x68 + 0x7f, &[0x0f]).unwrap();
    assert_eq!(cpu.check_io(0x3fc, 4), Ok(()));
    assert_eq!(cpu.check_io(0x3fb, 1), Err(Exception::GP0));
    assert_eq!(cpu.check_io(0x3fe, 4), Err(Exception::GP0));
    cpu.system_flags |= bits::IOPL;
    assert_eq!(cpu.check_io(0x3fb, 1), Ok(()));
}

#[test]
fn single_steps_and_breakpoints() {
    let mut cpu = long_cpu();
    load(&cpu, |a| {
        a.nop().unwrap();
        a.nop().unwrap();
    });
    cpu.set_rflags(0x102);
    run_to_halt(&mut cpu);
    assert_eq!((cpu.rip, get(&cpu, cpu.gpr[4])), (handler(1), CODE + 1));
    assert_eq!(cpu.dr[6], DR6_FIXED | DR6_BS);
    assert_eq!(cpu.rflags() & bits::TF, 0);

    // An instruction breakpoint is a fault, before the instruction; RF gets past it.
    let mut cpu = long_cpu();
    load(&cpu, |a| {
        a.nop().unwrap();
        a.inc(rax).unwrap();
        a.hlt().unwrap();
    });
    cpu.dr[0] = CODE + 1;
    cpu.dr[7] = DR7_FIXED | 2;
    cpu.update_class();
    run_to_halt(&mut cpu);
    assert_eq!((cpu.rip, get(&cpu, cpu.gpr[4])), (handler(1), CODE + 1));
    assert_eq!((cpu.gpr[0], cpu.dr[6]), (0, DR6_FIXED | 1));
    cpu.rip = CODE + 1;
    cpu.activity = Activity::Running;
    cpu.system_flags |= bits::RF;
    run_to_halt(&mut cpu);
    assert_eq!((cpu.gpr[0], cpu.system_flags & bits::RF), (1, 0));

    // A data breakpoint traps after the instruction.
    let mut cpu = long_cpu();
    load(&cpu, |a| {
        a.mov(rcx, qword_ptr(0x20000)).unwrap();
        a.mov(dword_ptr(0x20006), ebx).unwrap();
        a.nop().unwrap();
    });
    cpu.dr[3] = 0x2_0008;
    // Writes, 4 bytes.
    cpu.dr[7] = DR7_FIXED | 0x80 | 0xd << 28;
    cpu.update_class();
    run_to_halt(&mut cpu);
    let after = CODE + 8 + 7;
    assert_eq!((cpu.rip, get(&cpu, cpu.gpr[4])), (handler(1), after));
    assert_eq!(cpu.dr[6], DR6_FIXED | 8);
}

#[test]
fn entering_the_kernel_ends_a_single_step() {
    let mut cpu = long_cpu();
    load(&cpu, |a| a.int(0x80).unwrap());
    cpu.set_rflags(0x102);
    run_to_halt(&mut cpu);
    assert_eq!((cpu.rip, cpu.dr[6]), (handler(0x80), DR6_FIXED));
    assert_eq!(get(&cpu, cpu.gpr[4] + 16), 0x102, "the saved flags still step");

    // POPF that clears TF is itself still stepped.
    let mut cpu = long_cpu();
    load(&cpu, |a| a.popfq().unwrap());
    cpu.gpr[4] = STACK - 8;
    put(&cpu, STACK - 8, 2);
    cpu.set_rflags(0x102);
    run_to_halt(&mut cpu);
    assert_eq!((cpu.rip, cpu.dr[6]), (handler(1), DR6_FIXED | DR6_BS));
}

#[test]
fn general_detect_guards_the_debug_registers() {
    let mut cpu = long_cpu();
    load(&cpu, |a| a.mov(rax, dr0).unwrap());
    cpu.dr[7] |= DR7_GD;
    run_to_halt(&mut cpu);
    assert_eq!((cpu.rip, get(&cpu, cpu.gpr[4])), (handler(1), CODE));
    assert_eq!(cpu.dr[6], DR6_FIXED | DR6_BD);
    assert_eq!(cpu.dr[7] & DR7_GD, 0);
}

#[test]
fn control_registers_refuse_nonsense() {
    let mut cpu = long_cpu();
    for value in [CR0_PG, CR0_PE | CR0_NW, 1 << 32 | cpu.cr0, cpu.cr0 & !CR0_PG] {
        assert_eq!(cpu.write_cr0(value), Err(Exception::GP0), "CR0 {value:#x}");
    }
    for value in [cpu.cr4 & !CR4_PAE, cpu.cr4 | 1 << 12, cpu.cr4 | 1 << 30] {
        assert_eq!(cpu.write_cr4(value), Err(Exception::GP0), "CR4 {value:#x}");
    }
    assert_eq!(cpu.write_cr3(1 << 40), Err(Exception::GP0));
    cpu.cr3 |= 8;
    assert_eq!(cpu.write_cr4(cpu.cr4 | CR4_PCIDE), Err(Exception::GP0));
    assert!(!cpu.write_msr(index::EFER, 1 << 12));
    assert!(!cpu.write_msr(index::EFER, 0), "LME can't change while paging");
    assert!(!cpu.write_msr(index::PAT, 2));
    assert!(cpu.write_msr(index::TSC, 1000));
    assert_eq!(cpu.read_msr(index::TSC_ADJUST), Some(1000), "the clock of the tests stands at 0");
    assert!(!cpu.write_msr(0xdead, 0));
    assert_eq!(cpu.read_msr(0xdead), None);
}

#[test]
fn the_switch_to_long_mode_and_back() {
    let mut cpu = long_cpu();
    // A far jump to 32-bit code, which turns paging off.
    load(&cpu, |a| {
        a.push(u32::from(CODE32) as i32).unwrap();
        a.push(0x9000).unwrap();
        a.db(&[0x48, 0xcb]).unwrap(); // RETFQ
    });
    // mov eax, cr0; btr eax, 31; mov cr0, eax; hlt
    let code = [0x0f, 0x20, 0xc0, 0x0f, 0xba, 0xf0, 31, 0x0f, 0x22, 0xc0, 0xf4];
    cpu.memory.write(0x9000, &code).unwrap();
    run_to_halt(&mut cpu);
    assert_eq!(cpu.efer & EFER_LMA, 0);
    assert_eq!(cpu.rip, 0x9000 + code.len() as u64);
    assert_eq!(cpu.mode.code_bits(), 32);
    assert_eq!(cpu.write_cr0(cpu.cr0 | CR0_PG), Ok(()));
    assert_eq!(cpu.efer & EFER_LMA, EFER_LMA);
}

#[test]
fn state_survives_saving() {
    let mut cpu = long_cpu();
    enter_user(&mut cpu);
    cpu.gpr[7] = 77;
    cpu.set_rflags(0x3ed7);
    cpu.msrs.lstar = 0xffff_8000_0000_1234;
    cpu.nmi_blocked = true;
    cpu.fpu.xmm[15] = 1 << 100;
    cpu.fpu.mxcsr = 0x1fa0;
    let saved = cpu.state();
    let mut other = crate::testing::cpu();
    other.set_state(&saved).unwrap();
    assert_eq!(other.state(), saved);
    assert_eq!((other.fpu.xmm[15], other.fpu.mxcsr), (1 << 100, 0x1fa0));
    assert_eq!((other.cpl, other.mode, other.class), (cpu.cpl, cpu.mode, cpu.class));
    for damage in [
        |s: &mut crate::state::CpuState| s.cr0 = CR0_PG,
        |s: &mut crate::state::CpuState| s.cr4 |= 1 << 63,
        |s: &mut crate::state::CpuState| s.msrs.push((0xdead, 1)),
        |s: &mut crate::state::CpuState| {
            s.msrs.retain(|(n, _)| *n != index::EFER);
            s.msrs.push((index::EFER, EFER_LME));
        },
        |s: &mut crate::state::CpuState| s.xcr0 = 0,
    ] {
        let mut bad = saved.clone();
        damage(&mut bad);
        assert!(other.set_state(&bad).is_err());
        assert_eq!(other.state(), saved, "a refused state changes nothing");
    }
}

#[test]
fn lar_lsl_and_verr_see_only_what_they_may() {
    let mut cpu = long_cpu();
    load(&cpu, |a| {
        a.mov(eax, u32::from(USER_DATA)).unwrap();
        a.lar(ebx, eax).unwrap();
        a.setz(cl).unwrap();
        a.lsl(edx, eax).unwrap();
        a.mov(eax, u32::from(DATA)).unwrap();
        a.verw(ax).unwrap();
        a.setz(ch).unwrap();
        a.int(0x80).unwrap();
    });
    enter_user(&mut cpu);
    run_to_halt(&mut cpu);
    assert_eq!(cpu.gpr[3], 0x00cf_f300);
    assert_eq!(cpu.gpr[2], 0xffff_ffff);
    assert_eq!(cpu.gpr[1] & 0xffff, 1, "a kernel segment is not visible");
}

/// A controller with one interrupt, vector 0x20, that is pending until acknowledged.
struct OneInterrupt(std::sync::Arc<accel::Signals>);

impl accel::InterruptController for OneInterrupt {
    fn acknowledge(&self) -> Option<u8> {
        self.0.clear(Signal::Interrupt).then_some(0x20)
    }
    fn task_priority(&self) -> u8 {
        0
    }
    fn set_task_priority(&self, _: u8) {}
    fn read_msr(&self, _: u32) -> Option<u64> {
        None
    }
    fn write_msr(&self, _: u32, _: u64) -> bool {
        false
    }
    fn startup_vector(&self) -> u8 {
        9
    }
}

#[test]
fn interrupts_wait_for_if_and_for_the_instruction_after_sti() {
    let mut cpu = long_cpu();
    cpu.interrupts = std::sync::Arc::new(OneInterrupt(cpu.signals.clone()));
    load(&cpu, |a| {
        a.inc(rax).unwrap();
        a.sti().unwrap();
        a.inc(rax).unwrap();
        a.inc(rax).unwrap();
        a.hlt().unwrap();
    });
    cpu.set_rflags(2);
    cpu.signals.raise(Signal::Interrupt);
    run_to_halt(&mut cpu);
    assert_eq!((cpu.rip, cpu.gpr[0]), (handler(0x20), 2));
    assert_eq!(get(&cpu, cpu.gpr[4]), CODE + 7, "after the instruction that follows STI");
    assert!(!cpu.signals.is_raised(Signal::Interrupt));
}

#[test]
fn a_halt_ends_with_an_interrupt_and_saves_the_address_after_it() {
    let mut cpu = long_cpu();
    cpu.interrupts = std::sync::Arc::new(OneInterrupt(cpu.signals.clone()));
    load(&cpu, |a| a.hlt().unwrap());
    let wake = match cpu.run() {
        Exit::Halt { wake } => wake,
        other => panic!("{other:?}"),
    };
    assert_ne!(wake & Signal::Interrupt as u32, 0);
    assert_eq!(cpu.rip, CODE + 1);
    cpu.signals.raise(Signal::Interrupt);
    run_to_halt(&mut cpu);
    assert_eq!((cpu.rip, get(&cpu, cpu.gpr[4])), (handler(0x20), CODE + 1));
}

#[test]
fn nmis_are_held_off_until_iret() {
    let mut cpu = long_cpu();
    load(&cpu, |a| a.hlt().unwrap());
    // The handler is HLT; IRETQ.
    cpu.memory.write(handler(2), &[0x48, 0xcf]).unwrap();
    cpu.signals.raise(Signal::Nmi);
    run_to_halt(&mut cpu);
    assert_eq!((cpu.rip, cpu.nmi_blocked), (handler(2), true));
    cpu.signals.raise(Signal::Nmi);
    run_to_halt(&mut cpu);
    assert_eq!(cpu.gpr[4], STACK - 40, "the second one waits");
    cpu.activity = Activity::Running;
    run_to_halt(&mut cpu);
    assert_eq!((cpu.rip, cpu.nmi_blocked), (handler(2), true), "IRET let it in");
    assert!(!cpu.signals.is_raised(Signal::Nmi));
}

#[test]
fn init_and_startup_bring_a_processor_up_in_real_mode() {
    let mut cpu = long_cpu();
    cpu.config.apic_id = 1;
    cpu.interrupts = std::sync::Arc::new(OneInterrupt(cpu.signals.clone()));
    load(&cpu, |a| a.hlt().unwrap());
    cpu.memory.write(0x9000, &[0xf4]).unwrap();
    cpu.signals.raise(Signal::Init);
    let Exit::Halt { wake } = cpu.run() else { panic!("runs after INIT") };
    assert_eq!(cpu.activity, Activity::WaitForStartup);
    assert_ne!(wake & Signal::Startup as u32, 0);
    cpu.signals.raise(Signal::Startup);
    run_to_halt(&mut cpu);
    assert_eq!((cpu.seg[usize::from(CS)].selector, cpu.rip), (0x900, 1));
    assert!(cpu.mode.is_real());
    cpu.signals.raise(Signal::Startup);
    cpu.activity = Activity::Running;
    cpu.rip = 0;
    run_to_halt(&mut cpu);
    assert_eq!(cpu.rip, 1, "a start-up IPI for a running processor is dropped");
}
