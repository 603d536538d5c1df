//! Which of several exceptions an instruction raises, and what comes first between two (SDM volume 3, section
//! 6.9; APM volume 2, section 8.5).

use core::arch::asm;

use crate::kit::*;

/// An address that nothing is mapped at, and one that is none.
const NOWHERE: u64 = 5 << 39;
const NO_ADDRESS: u64 = 1 << 60;

/// An instruction with an operand at `at`, at CPL 0 and at CPL 3.
macro_rules! case {
    ($how:ident, $name:literal, $at:expr, $expected:expr, [$($line:expr),+]) => {
        let vector = $how!([$($line),+], in("rdi") $at, inout("rax") 0u64 => _, inout("rcx") 0u64 => _,
            out("rdx") _, out("xmm0") _);
        check($name, vector, $expected);
    };
}

fn decoding() {
    case!(attempt, "LOCK where there is none, no memory", NOWHERE, UD, [".byte 0xf0", "mov [rdi], eax"]);
    case!(attempt, "LOCK with a register", 0u64, UD, [".byte 0xf0, 0x01, 0xc0"]);
    case!(attempt, "UD with an operand that is not there", NOWHERE, UD, [".byte 0x0f, 0xff, 0x07"]);
    case!(attempt, "MOV to CS", NOWHERE, UD, [".byte 0x8e, 0x0f"]);
    case!(attempt, "LEA of a register", 0u64, UD, [".byte 0x48, 0x8d, 0xc0"]);
    case!(attempt, "MOV to CR1", 0u64, UD, [".byte 0x0f, 0x22, 0xc8"]);
    case!(user, "MOV to CR1 by a program", 0u64, UD, [".byte 0x0f, 0x22, 0xc8"]);
    case!(user, "RSM by a program", 0u64, UD, [".byte 0x0f, 0xaa"]);
    case!(user, "LOCK HLT by a program", 0u64, UD, [".byte 0xf0, 0xf4"]);
}

fn privilege() {
    case!(user, "LGDT by a program, no memory", NOWHERE, GP, ["lgdt [rdi]"]);
    check("its error code", last().trap.code, 0);
    case!(user, "LLDT by a program, no memory", NOWHERE, GP, ["lldt word ptr [rdi]"]);
    case!(user, "LTR by a program, no memory", NOWHERE, GP, ["ltr word ptr [rdi]"]);
    case!(user, "LMSW by a program, no memory", NOWHERE, GP, ["lmsw word ptr [rdi]"]);
    case!(user, "INVLPG by a program", NOWHERE, GP, ["invlpg [rdi]"]);
    case!(user, "INS by a program, no memory", NOWHERE, GP, ["mov edx, 0x80", "insb"]);
    case!(user, "RDMSR of nothing by a program", 0u64, GP, ["mov ecx, 0x3fff", "rdmsr"]);
    case!(user, "MOV to CR4 by a program, reserved", 0u64, GP, ["mov rax, -1", "mov cr4, rax"]);
    if has(1, 2, 26) {
        set_cr4(cr4() | 1 << 18);
        case!(user, "XSETBV by a program, of nothing", 0u64, GP, ["mov ecx, 5", "xsetbv"]);
        set_cr4(cr4() & !(1 << 18));
        case!(user, "XSETBV by a program, without OSXSAVE", 0u64, UD, ["xsetbv"]);
    }
}

fn operands() {
    case!(attempt, "no memory", NOWHERE, PF, ["mov eax, [rdi]"]);
    case!(attempt, "no address", NO_ADDRESS, GP, ["mov eax, [rdi]"]);
    case!(attempt, "no address, by the stack", NO_ADDRESS, SS, ["mov eax, [rsp + rdi]"]);
    case!(attempt, "not aligned, no memory", NOWHERE + 1, GP, ["movaps xmm0, [rdi]"]);
    case!(attempt, "not aligned, no address", NO_ADDRESS + 1, GP, ["movaps xmm0, [rdi]"]);
    case!(attempt, "FXSAVE: not aligned, no memory", NOWHERE + 8, GP, ["fxsave [rdi]"]);
    if has(1, 2, 13) {
        case!(attempt, "CMPXCHG16B: not aligned, no memory", NOWHERE + 8, GP, ["lock cmpxchg16b [rdi]"]);
        case!(attempt, "CMPXCHG16B: no memory", NOWHERE, PF, ["lock cmpxchg16b [rdi]"]);
        check("it is a write", last().trap.code, 2);
    }
    // A value is looked at when it is there.
    case!(attempt, "DIV: no memory", NOWHERE, PF, ["div dword ptr [rdi]"]);
    case!(attempt, "MOV to DS: no memory", NOWHERE, PF, ["mov ds, [rdi]"]);
    // Both ends of what lies across two pages.
    let end = NOWHERE - 4;
    case!(attempt, "a write across a page's end", end, PF, ["mov [rdi], rax"]);
    check("the first that is not there", last().cr2, end);
    // What a program may not do is told of its own write, whether or not it is there.
    case!(user, "a program's write", 0x10_0000u64, PF, ["mov [rdi], eax"]);
    check("there, write, program", last().trap.code, 7);
    // An instruction changes nothing before it faults.
    let (count, to): (u64, u64);
    let vector = attempt!(["mov rdi, {at}", "mov ecx, 3", "rep stosb"], at = in(reg) NOWHERE,
        out("rcx") count, out("rdi") to, in("al") 0u8);
    check("REP STOS", (vector, count, to), (PF, 3, NOWHERE));
    macro_rules! stack {
        ($name:literal, $instruction:literal) => {
            let sp: u64;
            let vector =
                attempt!(["mov {sp}, rsp", $instruction], at = in(reg) NOWHERE, sp = out(reg) sp);
            check($name, (vector, last().trap.rsp), (PF, sp));
        };
    }
    stack!("PUSH: RSP", "push [{at}]");
    stack!("POP: RSP", "pop [{at}]");
    stack!("CALL: RSP", "call [{at}]");
}

/// Faults of the fetch, and breakpoints before and after.
fn fetches() {
    let jump = |to: u64| attempt!(["jmp {}"], in(reg) to);
    check("a jump to nowhere", jump(NOWHERE), PF);
    check("is a fetch", (last().trap.code & !0x10, last().trap.rip, last().cr2), (0, NOWHERE, NOWHERE));
    check("a jump to no address", jump(NO_ADDRESS), GP);
    check("is that of the jump", last().trap.rip != NO_ADDRESS, true);
    let sp: u64;
    let vector =
        attempt!(["mov {sp}, rsp", "push {to}", "ret"], to = in(reg) NO_ADDRESS, sp = out(reg) sp);
    check("RET to no address", (vector, last().trap.rsp), (GP, sp - 8));
    // A breakpoint is met before the fetch.
    set_dr6(0);
    set_dr0(NOWHERE);
    set_dr7(0x402);
    check("a breakpoint where nothing is", jump(NOWHERE), DB);
    check("is told as such", last().dr6 & 0xf, 1);
    set_dr7(0x400);
    // A trap of what was done before comes before the fault of what follows.
    set_dr6(0);
    static WATCHED: u64 = 0;
    set_dr0(&raw const WATCHED as u64);
    set_dr7(0x402 | 3 << 16 | 3 << 18);
    let vector = attempt!(["mov rax, [{}]", "ud2"], in(reg) &raw const WATCHED, out("rax") _);
    check("a data breakpoint before UD2", vector, DB);
    // A fault has none of the traps of its instruction.
    set_dr6(0);
    let vector = attempt!(["movs qword ptr [rdi], qword ptr [rsi]"], in("rsi") &raw const WATCHED, in("rdi") NOWHERE);
    check("a read that is watched, and a write to nowhere", (vector, last().dr6 & 0xf), (PF, 0));
    set_dr7(0x400);
    set_dr6(0);
}

pub fn run() {
    decoding();
    privilege();
    operands();
    fetches();
}
