//! Debug exceptions: breakpoints on instructions and data, single step, shadows, DR6 and DR7 (APM volume
//! 2, chapter 13; SDM volume 3, chapter 18).

use core::arch::asm;
use core::ptr::{addr_of, addr_of_mut};

use crate::kit::*;

const BS: u64 = 1 << 14;
const BD: u64 = 1 << 13;
const FIXED: u64 = 0xffff_0ff0;
const RF: u64 = 1 << 16;

const MOST: usize = 16;
/// What each #DB found: RIP and DR6.
static mut SEEN: [(u64, u64); MOST] = [(0, 0); MOST];
static mut COUNT: usize = 0;
static mut WATCHED: [u64; 4] = [0; 4];
static mut SELECTOR: u16 = 0x10;

fn on_debug(trap: &mut Trap) {
    unsafe {
        if COUNT < MOST {
            (*addr_of_mut!(SEEN))[COUNT] = (trap.rip, dr6());
        }
        COUNT += 1;
    }
    set_dr6(0);
    // Instruction breakpoints are met again without RF.
    trap.rflags |= RF;
}

fn begin() {
    set_dr6(0);
    unsafe { COUNT = 0 };
}
fn count() -> usize {
    unsafe { addr_of!(COUNT).read_volatile() }
}
fn seen(n: usize) -> (u64, u64) {
    unsafe { (*addr_of!(SEEN))[n] }
}

/// Whether the traps were those expected, at labels relative to `start`.
fn expect(name: &str, start: u64, expected: &[(u64, u64)]) {
    check(format_args!("{name}: number of traps"), count(), expected.len());
    for (n, &(at, conditions)) in expected.iter().enumerate().take(count()) {
        let (rip, dr6) = seen(n);
        check(
            format_args!("{name}: trap {n}"),
            (rip.wrapping_sub(start), dr6),
            (at, conditions | FIXED),
        );
    }
}

/// Runs code with TF set for its instructions; returns where the instruction after POPFQ is.
macro_rules! stepped {
    ([$($line:expr),* $(,)?] $(, $($operand:tt)+)?) => {{
        begin();
        let start: u64;
        unsafe {
            asm!(
                "pushfq",
                "or qword ptr [rsp], 0x100",
                "lea {start}, [rip + 2f]",
                "popfq",
                "2:",
                $($line,)*
                "pushfq",
                "and qword ptr [rsp], -0x101",
                "popfq",
                start = out(reg) start,
                $($($operand)+,)?
            );
        }
        start
    }};
}

fn registers() {
    set_dr6(0);
    check("DR6 after writing 0", dr6(), FIXED);
    set_dr6(0xffff_ffff);
    check(
        "DR6 after writing ones",
        dr6() & !(1 << 11 | 1 << 16),
        0xffff_efff & !(1 << 11 | 1 << 16),
    );
    set_dr7(0);
    check("DR7 after writing 0", dr7(), 0x400);
    check("DR6, upper half", attempt!(["mov dr6, {}"], in(reg) 1u64 << 32), GP);
    check("DR7, upper half", attempt!(["mov dr7, {}"], in(reg) 1u64 << 32), GP);
    check("MOV at CPL 3", user!(["mov rax, dr0"], out("rax") _), GP);
    let cr4_before = cr4();
    set_cr4(cr4_before & !8);
    set_dr6(0);
    let aliased: u64;
    unsafe { asm!(".byte 0x0f, 0x21, 0xe0", out("rax") aliased) };
    check("DR4 is DR6 without CR4.DE", aliased, FIXED);
    set_cr4(cr4_before | 8);
    check("DR4 with CR4.DE", attempt!([".byte 0x0f, 0x21, 0xe0"], out("rax") _), UD);
    check("DR5 with CR4.DE", attempt!([".byte 0x0f, 0x21, 0xe8"], out("rax") _), UD);
    set_cr4(cr4_before);
}

fn single_step() {
    let start = stepped!(["nop", "xor eax, eax", "nop"], out("eax") _);
    // The last traps are those of PUSHFQ and AND, and of POPFQ, which was begun with TF set.
    expect("single step", start, &[(1, BS), (3, BS), (4, BS), (5, BS), (13, BS), (14, BS)]);
    let start = stepped!(["mov r11, rbx", "cpuid", "mov rbx, r11"], inout("eax") 0 => _, out("ecx") _,
        out("edx") _, out("r11") _);
    expect("CPUID", start, &[(3, BS), (5, BS), (8, BS), (9, BS), (17, BS), (18, BS)]);
    // STI holds off interrupts, not traps.
    let start = stepped!(["sti", "cli"]);
    expect("STI", start, &[(1, BS), (2, BS), (3, BS), (11, BS), (12, BS)]);
    // A load of SS has no trap of its own.
    let start = stepped!(["mov ss, [rip + {s}]", "nop", "nop"], s = sym SELECTOR);
    expect("MOV SS", start, &[(7, BS), (8, BS), (9, BS), (17, BS), (18, BS)]);
    // A string instruction traps after each step.
    let start = stepped!(["mov ecx, 3", "lea rdi, [rip + {w}]", "rep stosb"], w = sym WATCHED,
        out("rcx") _, out("rdi") _, in("al") 0u8);
    expect(
        "REP",
        start,
        &[(5, BS), (12, BS), (12, BS), (12, BS), (14, BS), (15, BS), (23, BS), (24, BS)],
    );
    let known = knows_icebp();
    check("ICEBP is known", known, true);
    if !known {
        return;
    }
    // ICEBP is a trap that DR6 says nothing of, and is not stepped.
    let start = stepped!([".byte 0xf1", "nop"]);
    expect("ICEBP", start, &[(1, 0), (2, BS), (3, BS), (11, BS), (12, BS)]);
    begin();
    let start: u64;
    unsafe { asm!("lea {0}, [rip]", ".byte 0xf1", out(reg) start) };
    expect("ICEBP alone", start, &[(1, 0)]);
}

/// Whether ICEBP is a debug trap; emulators may not know it.
fn knows_icebp() -> bool {
    handle(DB, None);
    let known = attempt!([".byte 0xf1"]) == DB;
    handle(DB, Some(on_debug));
    known
}

fn instruction_breakpoints() {
    begin();
    let at: u64;
    unsafe {
        asm!(
            "lea {at}, [rip + 2f]",
            "mov dr0, {at}",
            "mov eax, 0x402",
            "mov dr7, rax",
            "nop",
            "2: nop",
            "mov eax, 0x400",
            "mov dr7, rax",
            at = out(reg) at, out("rax") _,
        );
    }
    expect("breakpoint", at, &[(0, 1)]);
    // Two on one instruction.
    begin();
    let at: u64;
    unsafe {
        asm!(
            "lea {at}, [rip + 2f]",
            "mov dr1, {at}",
            "mov dr3, {at}",
            "mov eax, 0x488",
            "mov dr7, rax",
            "2: nop",
            "mov eax, 0x400",
            "mov dr7, rax",
            at = out(reg) at, out("rax") _,
        );
    }
    expect("two breakpoints", at, &[(0, 0xa)]);
    // In the shadow of a load of SS there are none.
    begin();
    let at: u64;
    unsafe {
        asm!(
            "lea {at}, [rip + 2f]",
            "mov dr0, {at}",
            "mov eax, 0x402",
            "mov dr7, rax",
            "mov ss, [rip + {s}]",
            "2: nop",
            "mov eax, 0x400",
            "mov dr7, rax",
            at = out(reg) at, out("rax") _, s = sym SELECTOR,
        );
    }
    expect("breakpoint after MOV SS", at, &[]);
    // The saved RF is clear for an instruction breakpoint.
    check("RF of a breakpoint", last().trap.rflags & RF, 0);
}

fn data_breakpoints() {
    let to = addr_of!(WATCHED) as u64;
    set_dr0(to);
    let enable = |kind: u64, size: u64| 0x402 | kind << 16 | size << 18;
    let try_at = |dr7: u64, code: u32| {
        begin();
        let start: u64;
        unsafe {
            set_dr7(dr7);
            match code {
                0 => {
                    asm!("lea {1}, [rip + 2f]", "mov [{0}], rax", "2: nop", in(reg) to, out(reg) start, in("rax") 0)
                }
                1 => {
                    asm!("lea {1}, [rip + 2f]", "mov rax, [{0}]", "2: nop", in(reg) to, out(reg) start, out("rax") _)
                }
                2 => {
                    asm!("lea {1}, [rip + 2f]", "mov [{0} + 3], ax", "2: nop", in(reg) to, out(reg) start, in("ax") 0u16)
                }
                3 => {
                    asm!("lea {1}, [rip + 2f]", "mov [{0} + 4], eax", "2: nop", in(reg) to, out(reg) start, in("eax") 0)
                }
                _ => {
                    asm!("lea {1}, [rip + 2f]", "push [{0}]", "2: pop {0}", inout(reg) to => _, out(reg) start)
                }
            }
            set_dr7(0x400);
        }
        start
    };
    let start = try_at(enable(1, 3), 0);
    expect("write, on writes", start, &[(0, 1)]);
    let start = try_at(enable(1, 3), 1);
    expect("read, on writes", start, &[]);
    let start = try_at(enable(3, 3), 1);
    expect("read, on both", start, &[(0, 1)]);
    let start = try_at(enable(3, 3), 3);
    expect("last byte", start, &[]);
    let start = try_at(enable(3, 2), 3);
    expect("eight bytes", start, &[(0, 1)]);
    let start = try_at(enable(3, 0), 2);
    expect("one byte, not met", start, &[]);
    let start = try_at(enable(3, 3), 2);
    expect("overlap", start, &[(0, 1)]);
    let start = try_at(enable(3, 3), 4);
    expect("PUSH of it", start, &[(0, 1)]);
    // With single step: both are told.
    set_dr7(enable(1, 3));
    let start = stepped!(["mov [rip + {w}], al"], w = sym WATCHED, in("al") 0u8);
    check("data breakpoint and step", seen(0), (start + 6, BS | 1 | FIXED));
    // A load of SS that meets one: told after the next instruction.
    set_dr7(0x400);
    set_dr0(addr_of!(SELECTOR) as u64);
    set_dr7(enable(3, 1));
    begin();
    let start: u64;
    unsafe {
        asm!("lea {0}, [rip + 2f]", "mov ss, [rip + {s}]", "2: nop", "nop", out(reg) start, s = sym SELECTOR);
    }
    expect("MOV SS that meets one", start, &[(1, 1)]);
    after_stack_segment(enable(3, 1));
    set_dr7(0x400);
}

/// A load of SS that meets a breakpoint, and an instruction that enters a handler: the trap is told where
/// the handler begins (SDM volume 3, section 6.8.3).
fn after_stack_segment(dr7: u64) {
    let stub = |vector: u64| &raw const stubs as u64 + 16 * vector;
    handle(BP, Some(|_| {}));
    handle(0x91, Some(|_| {}));
    macro_rules! enters {
        ($name:literal, $to:expr, [$($instruction:literal),+]) => {
            set_dr7(dr7);
            begin();
            unsafe { asm!("mov ss, [rip + {s}]", $($instruction),+, s = sym SELECTOR) };
            set_dr7(0x400);
            expect($name, $to, &[(0, 1)]);
        };
    }
    enters!("MOV SS, INT3", stub(BP), ["int3"]);
    enters!("MOV SS, INT n", stub(0x91), ["int 0x91"]);
    handle(BP, None);
    handle(0x91, None);
    // It is lost if that instruction faults, or is itself a debug trap (Linux's selftest `mov_ss_trap` has this
    // from processors).
    set_dr7(dr7);
    begin();
    let vector = attempt!(["mov ss, [rip + {s}]", "ud2"], s = sym SELECTOR);
    check("MOV SS, UD2", (vector, count()), (UD, 0));
    begin();
    let vector = attempt!(["mov ss, [rip + {s}]", "mov al, [{at}]"], s = sym SELECTOR,
        at = in(reg) 1u64 << 63, out("al") _);
    check("MOV SS, a fault of an operand", (vector, count()), (GP, 0));
    set_dr7(0x400);
    if knows_icebp() {
        set_dr7(dr7);
        begin();
        let start: u64;
        unsafe {
            asm!("lea {0}, [rip + 2f]", "mov ss, [rip + {s}]", "2: .byte 0xf1", "nop", out(reg) start,
                s = sym SELECTOR);
        }
        set_dr7(0x400);
        expect("MOV SS, ICEBP", start, &[(1, 0)]);
    }
    // Into 64-bit code of CPL 0, which is where we are.
    let (star, lstar, mask) = (rdmsr(0xc000_0081), rdmsr(0xc000_0082), rdmsr(0xc000_0084));
    wrmsr(0xc000_0081, u64::from(CODE64) << 32);
    wrmsr(0xc000_0084, 0);
    let entry: u64;
    unsafe { asm!("lea {}, [rip + 2f]", "jmp 3f", "2: jmp rbp", "3:", out(reg) entry) };
    wrmsr(0xc000_0082, entry);
    set_dr7(dr7);
    begin();
    unsafe {
        asm!("push rbp", "lea rbp, [rip + 2f]", "mov ss, [rip + {s}]", "syscall", "2: pop rbp",
            s = sym SELECTOR, out("rcx") _, out("r11") _);
    }
    set_dr7(0x400);
    expect("MOV SS, SYSCALL", entry, &[(0, 1)]);
    wrmsr(0xc000_0081, star);
    wrmsr(0xc000_0082, lstar);
    wrmsr(0xc000_0084, mask);
}

/// Single steps and breakpoints at CPL 3.
fn programs() {
    begin();
    let vector = user!(["lea rdi, [rip + 2f]", "push 0x102", "popfq", "2: nop", "nop", "push 2", "popfq"],
        out("rdi") _);
    check("steps of a program end", vector, 0x80);
    check("steps of a program", count(), 4);
    let (first, conditions) = seen(0);
    check("one of its steps", conditions, BS | FIXED);
    check("where they are", seen(1).0, first + 1);
    check("and whose", first >= USER_ALIAS, true);
    // The linear address counts, not the page.
    set_dr0(addr_of!(WATCHED) as u64);
    set_dr7(0x402 | 1 << 16 | 3 << 18);
    begin();
    let store = |to: u64| user!(["mov [rdi], eax"], in("rdi") to, in("eax") 0);
    check("a program writes beside", store(addr_of!(WATCHED) as u64 + USER_ALIAS), 0x80);
    check("by another address", count(), 0);
    set_dr0(addr_of!(WATCHED) as u64 + USER_ALIAS);
    begin();
    check("a program writes", store(addr_of!(WATCHED) as u64 + USER_ALIAS), 0x80);
    check("to what is watched", (count(), seen(0).1), (1, 1 | FIXED));
    set_dr7(0x400);
}

/// B0 to B3 tell of this exception only; BD, BS and BT stay until they are cleared.
fn conditions() {
    let to = addr_of!(WATCHED) as u64;
    handle(DB, None);
    set_dr0(to);
    set_dr7(0x400 | 2 | 1 << 16 | 3 << 18);
    set_dr6(0x800e | BS);
    let vector = attempt!(["mov [{}], eax", "nop"], in(reg) to, in("eax") 0);
    check("watchpoint", vector, DB);
    check("DR6 keeps what is not of breakpoints", last().dr6, FIXED | 0x8001 | BS);
    set_dr7(0x400);
    // General detect.
    set_dr6(0);
    set_dr7(0x2400);
    check("MOV DR with GD", attempt!(["mov rax, dr3"], out("rax") _), DB);
    check("BD", last().dr6, FIXED | BD);
    check("RF of that fault", last().trap.rflags & RF, RF);
    check("GD is cleared", dr7(), 0x400);
    set_dr6(0);
    // INT 1 and ICEBP are not alike at CPL 3.
    unsafe {
        let gate = gate(DB);
        gate.write_volatile(gate.read_volatile() & !(0x6000 << 32));
        check("INT 1 through a gate of DPL 0", user!(["int 1"]), GP);
        check("its error code", last().trap.code, 8 + 2);
        check("ICEBP through a gate of DPL 0", user!([".byte 0xf1"]), DB);
        gate.write_volatile(gate.read_volatile() | 0x6000 << 32);
    }
    check("DR6 says nothing of ICEBP", last().dr6, FIXED);
    handle(DB, Some(on_debug));
}

fn io_breakpoints() {
    let before = cr4();
    set_cr4(before | 8);
    begin();
    set_dr0(0x80);
    set_dr7(0x402 | 2 << 16);
    let start: u64;
    unsafe {
        asm!("lea {0}, [rip + 2f]", "out 0x80, al", "2: nop", "in al, 0x81", out(reg) start, out("al") _)
    };
    set_dr7(0x400);
    expect("OUT to a port with a breakpoint", start, &[(0, 1)]);
    set_cr4(before);
}

/// The last branch, and single steps from branch to branch (APM volume 2, section 13.1.1).
fn branches() {
    const DEBUG_CTL: u32 = 0x1d9;
    check("DEBUG_CTL, reserved", try_wrmsr(DEBUG_CTL, 1 << 40), GP);
    check("DEBUG_CTL", try_wrmsr(DEBUG_CTL, 3), NONE);
    check("DEBUG_CTL reads back", rdmsr(DEBUG_CTL), 3);
    let (from, to): (u64, u64);
    unsafe {
        asm!(
            "lea {from}, [rip + 2f]", "lea {to}, [rip + 3f]",
            "xor edx, edx", "mov eax, 1", "wrmsr",
            "2: jmp 3f", "nop", "3: nop", "jc 2b", "xor eax, eax", "wrmsr",
            from = out(reg) from, to = out(reg) to,
            in("ecx") DEBUG_CTL, out("eax") _, out("edx") _,
        );
    }
    check("the last branch", (rdmsr(0x1db), rdmsr(0x1dc)), (from, to));
    check("it can't be written", try_wrmsr(0x1db, 0), GP);
    fn on_step(trap: &mut Trap) {
        on_debug(trap);
        trap.rflags &= !0x100;
    }
    handle(DB, Some(on_step));
    begin();
    wrmsr(DEBUG_CTL, 2);
    let after: u64;
    unsafe {
        asm!(
            "lea {after}, [rip + 3f]", "push 0x102", "popfq",
            "nop", "nop", "stc", "jnc 3f", "jc 3f", "nop", "3: nop", "nop",
            after = out(reg) after,
        );
    }
    expect("BTF", after, &[(0, BS)]);
    check("BTF is clear then", rdmsr(DEBUG_CTL), 0);
    // An exception's branch is one, too; what was before it is kept.
    handle(DB, Some(on_debug));
    handle(0x92, Some(|_| wrmsr(DEBUG_CTL, 0)));
    wrmsr(DEBUG_CTL, 1);
    unsafe { asm!("jmp 2f", "2: int 0x92") };
    check("an event keeps the branch before it", rdmsr(0x1dd) != 0 && rdmsr(0x1de) != 0, true);
    check("and is off as its handler left it", rdmsr(DEBUG_CTL), 0);
    handle(0x92, None);
}

pub fn run() {
    handle(DB, Some(on_debug));
    registers();
    single_step();
    instruction_breakpoints();
    data_breakpoints();
    conditions();
    programs();
    io_breakpoints();
    branches();
}
