//! Segments: loads with their faults, far jumps, calls and returns, call gates, LAR, LSL, VERR, VERW, task
//! register and local table, in 64-bit and compatibility mode (APM volume 2, chapter 4; volume 3).

use core::arch::asm;

use crate::kit::*;

/// Descriptors: base 0, limit 4 GiB, by type and attributes.
const fn descriptor(kind: u64, dpl: u64, present: bool, flags: u64) -> u64 {
    let access = kind | 0x10 | dpl << 5 | (present as u64) << 7;
    0xffff | 0xf << 48 | access << 40 | flags << 52
}
const G: u64 = 8;
const D: u64 = 4;
const L: u64 = 2;
/// Types.
const READ_ONLY: u64 = 0x1;
const DATA_RW: u64 = 0x3;
const EXECUTE_ONLY: u64 = 0x9;
const CODE: u64 = 0xb;
const CONFORMING: u64 = 0xf;

fn slot(n: usize, value: u64) -> u16 {
    set_descriptor(FREE_SLOT + n, value);
    FREE + 8 * n as u16
}

fn load_ds(selector: u16) -> (u64, u64) {
    attempt!(["mov ds, {0:x}", "mov {1:e}, 0x10", "mov ds, {1:x}"], in(reg) selector, out(reg) _);
    fault()
}
fn load_ss(selector: u16) -> (u64, u64) {
    attempt!(["mov ss, {0:x}", "mov {1:e}, 0x10", "mov ss, {1:x}"], in(reg) selector, out(reg) _);
    fault()
}
const FINE: (u64, u64) = (NONE, 0);

fn loads() {
    check("DS: null", load_ds(0), FINE);
    check("DS: null with RPL", load_ds(3), FINE);
    check("DS: data", load_ds(DATA), FINE);
    check("DS: data with RPL 3 of DPL 0", load_ds(DATA | 3), (GP, DATA.into()));
    check("DS: user data", load_ds(USER_DATA), FINE);
    check("DS: beyond the table", load_ds(0xfff8), (GP, 0xfff8));
    check("DS: in no LDT", load_ds(0x14), (GP, 0x14));
    check("DS: task state segment", load_ds(TSS_SELECTOR), (GP, TSS_SELECTOR.into()));
    check("DS: readable code", load_ds(CODE64), FINE);
    let s = slot(0, descriptor(EXECUTE_ONLY, 0, true, G | L));
    check("DS: code that is not readable", load_ds(s), (GP, s.into()));
    let s = slot(0, descriptor(DATA_RW, 0, false, G | D));
    check("DS: not present", load_ds(s), (NP, s.into()));
    let s = slot(0, descriptor(CONFORMING, 0, true, G | L));
    check("DS: conforming code, RPL 3", load_ds(s | 3), FINE);
    check("SS: data", load_ss(DATA), FINE);
    check("SS: null at CPL 0", load_ss(0), FINE);
    check("SS: null with another RPL", load_ss(3), (GP, 0));
    check("SS: RPL 3", load_ss(DATA | 3), (GP, DATA.into()));
    check("SS: user data", load_ss(USER_DATA), (GP, (USER_DATA & !3).into()));
    check("SS: code", load_ss(CODE64), (GP, CODE64.into()));
    let s = slot(0, descriptor(READ_ONLY, 0, true, G | D));
    check("SS: read-only", load_ss(s), (GP, s.into()));
    let s = slot(0, descriptor(DATA_RW, 0, false, G | D));
    check("SS: not present", load_ss(s), (SS, s.into()));
    check("MOV to CS", attempt!([".byte 0x8e, 0xc8"], in("eax") 8), UD);
    check("DS at CPL 3: supervisor's", user!(["mov ds, ax"], in("ax") DATA), GP);
    check("SS null at CPL 3", user!(["xor eax, eax", "mov ss, ax"], out("eax") _), GP);
    // The accessed bit.
    let s = slot(0, descriptor(DATA_RW, 0, true, G | D) & !(1 << 40));
    check("DS: not accessed yet", load_ds(s), FINE);
    let bit = unsafe { (&raw const GDT).cast::<u64>().add(FREE_SLOT).read_volatile() } >> 40 & 1;
    check("the accessed bit is set", bit, 1);
    // A base in FS follows the descriptor, and survives a null load on Intel's only.
    let s = slot(0, descriptor(DATA_RW, 0, true, G | D) | 0x12_3456 << 16);
    unsafe { asm!("mov fs, {0:x}", in(reg) s) };
    check("FS: base from the descriptor", rdmsr(0xc000_0100), 0x12_3456);
    unsafe { asm!("mov fs, {0:x}", in(reg) 0u64) };
}

/// Far jump by memory operand to `selector`, at the instruction after it; INT 0x94 ends it.
fn jump(selector: u16, offset: Option<u64>) -> (u64, u64) {
    let mut pointer = [0u32; 2];
    attempt!([
        "lea rax, [rip + 78f]", "test {at}, {at}", "cmovnz rax, {at}",
        "mov [rdi], eax", "mov [rdi + 4], {selector:x}",
        ".byte 0xff, 0x2f", "78: int 0x94"],
        at = in(reg) offset.unwrap_or(0), in("rdi") &mut pointer, selector = in(reg) selector, out("rax") _);
    fault()
}
fn call(selector: u16, offset: Option<u64>) -> (u64, u64) {
    let mut pointer = [0u32; 2];
    attempt!([
        "lea rax, [rip + 78f]", "test {at}, {at}", "cmovnz rax, {at}",
        "mov [rdi], eax", "mov [rdi + 4], {selector:x}",
        ".byte 0xff, 0x1f", "78: int 0x94"],
        at = in(reg) offset.unwrap_or(0), in("rdi") &mut pointer, selector = in(reg) selector, out("rax") _);
    fault()
}
fn ret(selector: u16, offset: Option<u64>) -> (u64, u64) {
    attempt!([
        "lea rax, [rip + 78f]", "test {at}, {at}", "cmovnz rax, {at}",
        "push {selector}", "push rax", "retfq", "78: int 0x94"],
        at = in(reg) offset.unwrap_or(0), selector = in(reg) u64::from(selector), out("rax") _);
    fault()
}
const DONE: (u64, u64) = (0x94, 0);

fn transfers(name: &str, go: fn(u16, Option<u64>) -> (u64, u64), is_return: bool) {
    let check = |what: &str, got: (u64, u64), expected: (u64, u64)| {
        crate::kit::check(format_args!("{name}: {what}"), got, expected);
    };
    check("code", go(CODE64, None), DONE);
    check("null", go(0, None), (GP, 0));
    check("data", go(DATA, None), (GP, DATA.into()));
    check("beyond the table", go(0xfff8, None), (GP, 0xfff8));
    check("in no LDT", go(0x0c, None), (GP, 0x0c));
    if is_return {
        check("not canonical", go(CODE64, Some(1 << 60)), (GP, 0));
    }
    check("CPL 3's code", go(USER_CODE64 & !3, None), (GP, (USER_CODE64 & !3).into()));
    let s = slot(0, descriptor(CODE, 0, false, G | L));
    check("not present", go(s, None), (NP, s.into()));
    let s = slot(0, descriptor(CODE, 0, true, G | L | D));
    check("L and D", go(s, None), (GP, s.into()));
    let s = slot(0, descriptor(CONFORMING, 0, true, G | L));
    check("conforming", go(s, None), DONE);
    let s = slot(0, descriptor(CONFORMING, 3, true, G | L));
    check("conforming, of a lower level", go(s, None), (GP, s.into()));
    let s = slot(0, descriptor(EXECUTE_ONLY, 0, true, G | L));
    check("code that can't be read", go(s, None), DONE);
    check("task state segment", go(TSS_SELECTOR, None), (GP, TSS_SELECTOR.into()));
    if !is_return {
        check("RPL above CPL", go(CODE64 | 3, None), (GP, CODE64.into()));
        let s = slot(0, 5 << 40 | 1 << 47);
        check("task gate", go(s, None), (GP, s.into()));
        let s = slot(0, 4 << 40 | 1 << 47);
        check("16-bit call gate", go(s, None), (GP, s.into()));
    }
}

/// A call gate of 16 bytes in slots 2 and 3.
fn gate(kind: u64, dpl: u64, selector: u16, offset: u64) -> u16 {
    let low = offset & 0xffff
        | u64::from(selector) << 16
        | (kind | dpl << 5 | 0x80) << 40
        | (offset >> 16 & 0xffff) << 48;
    slot(3, offset >> 32);
    slot(2, low)
}

fn gates() {
    const CALL_GATE: u64 = 12;
    let here: u64;
    unsafe {
        asm!("lea {0}, [rip + 2f]", "jmp 3f", "2: int 0x95", "3:", out(reg) here);
    }
    let through = |s: u16| call(s, Some(0x5555));
    let s = gate(CALL_GATE, 0, CODE64, here);
    check("call gate", through(s), (0x95, 0));
    check("the offset of the pointer does not count", jump(s, Some(1 << 60)), (0x95, 0));
    check("call gate of DPL 0, RPL 3", through(s | 3), (GP, s.into()));
    let s = gate(CALL_GATE, 0, 0, here);
    check("to a null selector", through(s), (GP, 0));
    let s = gate(CALL_GATE, 0, DATA, here);
    check("to data", through(s), (GP, DATA.into()));
    let s = gate(CALL_GATE, 0, CODE32, here);
    check("to 32-bit code", through(s), (GP, CODE32.into()));
    let s = gate(CALL_GATE, 0, CODE64, 1 << 60);
    check("to nowhere", through(s), (GP, 0));
    let s = gate(CALL_GATE, 0, USER_CODE64 & !3, here);
    check("to CPL 3's code", through(s), (GP, (USER_CODE64 & !3).into()));
    let s = gate(CALL_GATE, 0, CODE64, here);
    slot(3, here >> 32 | 1 << 40);
    check("a type in the second half", through(s), (GP, s.into()));
    let s = gate(CALL_GATE, 0, CODE64, here);
    slot(
        2,
        unsafe { (&raw const GDT).cast::<u64>().add(FREE_SLOT + 2).read_volatile() } & !(1 << 47),
    );
    check("not present", through(s), (NP, s.into()));
    // From CPL 3: to the inner stack, with a null SS.
    let s = gate(CALL_GATE, 3, CODE64, here);
    let mut image = [0u16; 3];
    image[2] = s | 3;
    let at = image.as_ptr() as u64 + USER_ALIAS;
    let vector = user!([".byte 0xff, 0x1f"], in("rdi") at);
    check("from CPL 3", vector, 0x95);
    check("CS and SS there", (last().trap.cs, last().trap.ss), (CODE64.into(), 0));
    let s = gate(CALL_GATE, 0, CODE64, here);
    image[2] = s | 3;
    let vector = user!([".byte 0xff, 0x1f"], in("rdi") at);
    check("from CPL 3, gate of DPL 0", (vector, last().trap.code), (GP, s.into()));
    let s = gate(CALL_GATE, 3, CODE64, here);
    image[2] = s | 3;
    let vector = user!([".byte 0xff, 0x2f"], in("rdi") at);
    check(
        "jump from CPL 3 through a gate to CPL 0",
        (vector, last().trap.code),
        (GP, CODE64.into()),
    );
}

fn queries() {
    let lar = |selector: u16| -> Option<u32> {
        let (value, zf): (u32, u8);
        unsafe {
            asm!("lar {0:e}, {2:e}", "setz {1}", out(reg) value, out(reg_byte) zf, in(reg) u32::from(selector))
        };
        (zf != 0).then_some(value)
    };
    let lsl = |selector: u16| -> Option<u32> {
        let (value, zf): (u32, u8);
        unsafe {
            asm!("lsl {0:e}, {2:e}", "setz {1}", out(reg) value, out(reg_byte) zf, in(reg) u32::from(selector))
        };
        (zf != 0).then_some(value)
    };
    let verr = |selector: u16| -> bool {
        let zf: u8;
        unsafe { asm!("verr {1:x}", "setz {0}", out(reg_byte) zf, in(reg) selector) };
        zf != 0
    };
    let verw = |selector: u16| -> bool {
        let zf: u8;
        unsafe { asm!("verw {1:x}", "setz {0}", out(reg_byte) zf, in(reg) selector) };
        zf != 0
    };
    check("LAR of data", lar(DATA).map(|v| v & 0xf0_ff00), Some(0x00c0_9300));
    check("LAR of null", lar(0), None);
    check("LAR beyond the table", lar(0xfff8), None);
    check("LAR of data, RPL 3", lar(DATA | 3), None);
    check("LAR of the task state segment", lar(TSS_SELECTOR).map(|v| v & 0xff00), Some(0x8b00));
    check("LSL of data", lsl(DATA), Some(0xffff_ffff));
    check("LSL of the task state segment", lsl(TSS_SELECTOR), Some(0x67));
    check("LSL of null", lsl(0), None);
    let s = slot(2, 12 << 40 | 1 << 47);
    slot(3, 0);
    check("LAR of a call gate", lar(s).is_some(), true);
    check("LSL of a call gate", lsl(s), None);
    let s = slot(0, descriptor(READ_ONLY, 0, true, G | D));
    check("VERR, VERW of read-only data", (verr(s), verw(s)), (true, false));
    let s = slot(0, descriptor(EXECUTE_ONLY, 0, true, G | L));
    check("VERR of code that can't be read", verr(s), false);
    check("VERR, VERW of data", (verr(DATA), verw(DATA)), (true, true));
    check("VERR of data, RPL 3", verr(DATA | 3), false);
    check("VERW of code", verw(CODE64), false);
}

fn tables() {
    let lldt = |selector: u16| {
        attempt!(["lldt {0:x}"], in(reg) selector);
        fault()
    };
    let ltr = |selector: u16| {
        attempt!(["ltr {0:x}"], in(reg) selector);
        fault()
    };
    check("LLDT null", lldt(0), FINE);
    check("LLDT of data", lldt(DATA), (GP, DATA.into()));
    check("LLDT from the LDT", lldt(4), (GP, 4));
    slot(3, 0);
    let s = slot(2, 0xffff | 0x82 << 40);
    check("LLDT", lldt(s), FINE);
    let s = slot(2, 0xffff | 0x02 << 40);
    check("LLDT, not present", lldt(s), (NP, s.into()));
    let s = slot(2, 0xffff | 0x82 << 40);
    slot(3, 0x4000_0000);
    check("LLDT, base not canonical", lldt(s), (GP, s.into()));
    check("LTR null", ltr(0), (GP, 0));
    check("LTR of data", ltr(DATA), (GP, DATA.into()));
    check("LTR of a busy one", ltr(TSS_SELECTOR), (GP, TSS_SELECTOR.into()));
    slot(3, 0);
    let s = slot(2, 0x67 | 0x09 << 40);
    check("LTR, not present", ltr(s), (NP, s.into()));
    let s = slot(2, 0x67 | 0x81 << 40);
    check("LTR of a 16-bit one", ltr(s), (GP, s.into()));
    let tss = &raw const TSS as u64;
    let s = slot(2, 0x67 | (tss & 0xff_ffff) << 16 | 0x89 << 40 | (tss >> 24) << 56);
    check("LTR", ltr(s), FINE);
    let kind =
        unsafe { (&raw const GDT).cast::<u64>().add(FREE_SLOT + 2).read_volatile() } >> 40 & 0xf;
    check("it is busy now", kind, 0xb);
    let selector: u16;
    unsafe { asm!("str {0:x}", out(reg) selector) };
    check("STR", selector, s);
    unsafe { asm!("lldt {0:x}", in(reg) 0u16) };
}

/// Compatibility mode: limits count, and 64-bit instructions are others.
fn compatibility() {
    // PUSH/POP of 32 bits, a data access with a limit, then back by a far return.
    let s = slot(0, 0x0040_9300_0000_0fff & !(1 << 55) | (0x20_0000 & 0xff_ffff) << 16);
    let got: u32;
    unsafe {
        asm!(
            "mov {sp}, rsp",
            "mov ds, {s:x}",
            "push 0x18", "lea rax, [rip + 2f]", "push rax", "retfq",
            ".code32",
            "2: mov eax, 0x12345678",
            "inc eax", // 40h would be a REX prefix
            "push 8", "call 3f", "3: pop edx", "add edx, 12", "push edx", "retf",
            ".code64", "nop", "nop", "nop", "nop", "nop", "nop", "nop", "nop",
            "mov rsp, {sp}",
            "mov {s:e}, 0x10", "mov ds, {s:x}",
            sp = out(reg) _, s = inout(reg) s => _, out("rax") got, out("rdx") _,
        );
    }
    check("INC in compatibility mode", got, 0x1234_5679);
    let vector = attempt!([
        "mov ds, {s:x}",
        "push 0x18", "lea rax, [rip + 2f]", "push rax", "retfq",
        ".code32", "2: mov al, [0x0fff]", "mov al, [0x1000]", ".code64"],
        s = in(reg) s, out("rax") _);
    unsafe { asm!("mov ds, {0:x}", in(reg) DATA) };
    check("beyond the limit in compatibility mode", (vector, last().trap.code), (GP, 0));
    check("SYSCALL's target would be CSTAR", last().trap.cs, CODE32.into());
}

pub fn run() {
    loads();
    transfers("JMP", jump, false);
    transfers("CALL", call, false);
    transfers("RET", ret, true);
    gates();
    queries();
    tables();
    compatibility();
}
