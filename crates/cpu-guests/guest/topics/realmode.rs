//! Real mode: the instructions as programs of 16 bits use them, with operands and addresses of 32 bits
//! besides, segments, limits, and the interrupt vector table (APM volume 3; SDM volume 3, chapter 21).

use crate::code16;
use crate::kit::check;
use crate::kit::legacy::*;

const CF: u32 = 1;
const PF: u32 = 4;
const AF: u32 = 0x10;
const ZF: u32 = 0x40;
const SF: u32 = 0x80;
const IF: u32 = 0x200;
const DF: u32 = 0x400;
const OF: u32 = 0x800;
/// Flags that instructions set.
const ARITHMETIC: u32 = CF | PF | AF | ZF | SF | OF;

/// Where DS and ES are in these programs.
const DATA: u64 = 0x3_0000;
const EXTRA: u64 = 0x4_0000;

fn poke(at: u64, bytes: &[u8]) {
    for (n, byte) in bytes.iter().enumerate() {
        unsafe { ((at + n as u64) as *mut u8).write_volatile(*byte) };
    }
}
fn peek(at: u64) -> u32 {
    unsafe { (at as *const u32).read_unaligned() }
}

/// Registers as most programs begin.
fn start() -> Regs {
    Regs {
        eax: 0x1122_3344,
        ebx: 0x5566_7788,
        ecx: 0x99aa_bbcc,
        edx: 0xddee_ff00,
        esi: 0x0123_4567,
        edi: 0x89ab_cdef,
        ebp: 0xcafe_1000,
        ..real_regs()
    }
}

/// Runs instructions; all registers but those that are named have to stay. Flags count if they are
/// named, as `[mask] = value`.
macro_rules! t {
    ([$($line:expr),+] $(, with {$($before:ident = $given:expr),*})?
        => {$($after:ident = $wanted:expr),*} $(flags $mask:expr, $value:expr)?) => {{
        #[allow(unused_mut)]
        let mut before = start();
        $($(before.$before = $given;)*)?
        let after = run_real(code16!($($line),+), &before);
        let name = concat!($($line, "; "),+);
        #[allow(unused_mut)]
        let mut wanted = Regs {
            vector: after.vector, ip: after.ip, cs: after.cs, flags: after.flags, eflags: after.eflags,
            ..before
        };
        $(wanted.$after = $wanted;)*
        check(format_args!("{name}: event"), after.vector, NOTHING);
        check(name, after, wanted);
        $(check(format_args!("{name}: flags"), after.eflags & $mask, $value);)?
    }};
}

/// An instruction that raises an exception: vector, and where.
macro_rules! raises {
    ([$($line:expr),+] $(, with {$($before:ident = $given:expr),*})? => $vector:expr, $at:expr) => {{
        #[allow(unused_mut)]
        let mut before = start();
        $($(before.$before = $given;)*)?
        let after = run_real(code16!($($line),+), &before);
        let name = concat!($($line, "; "),+);
        check(name, (after.vector, after.ip, after.cs), ($vector, $at, 0x1000));
    }};
}

fn moves() {
    t!(["mov al, 0x12"] => {eax = 0x1122_3312});
    t!(["mov ah, 0x12"] => {eax = 0x1122_1244});
    t!(["mov ax, 0x5678"] => {eax = 0x1122_5678});
    t!(["mov eax, 0x12345678"] => {eax = 0x1234_5678});
    t!(["mov bx, ax"] => {ebx = 0x5566_3344});
    t!(["movzx eax, bl"] => {eax = 0x88});
    t!(["movsx eax, bl"] => {eax = 0xffff_ff88});
    t!(["movsx ax, bl"] => {eax = 0x1122_ff88});
    t!(["movzx eax, bx"] => {eax = 0x7788});
    t!(["xchg ax, bx"] => {eax = 0x1122_7788, ebx = 0x5566_3344});
    t!(["xchg eax, ebx"] => {eax = 0x5566_7788, ebx = 0x1122_3344});
    t!(["bswap eax"] => {eax = 0x4433_2211});
    t!(["lea ax, [bx + si + 0x10]"] => {eax = 0x1122_bcff});
    t!(["lea eax, [bx + si + 0x10]"] => {eax = 0xbcff});
    t!(["lea ax, [eax + ebx * 2 + 3]"] => {eax = 0x1122_2257});
    t!(["lea eax, [eax + ebx * 2 + 3]"] => {eax = 0xbbef_2257});
    t!(["cbw"] => {eax = 0x1122_0044});
    t!(["cwde"], with {eax = 0x8344} => {eax = 0xffff_8344});
    t!(["cwd"], with {eax = 0x8344} => {edx = 0xddee_ffff});
    t!(["cdq"], with {eax = 0x8000_0000} => {edx = 0xffff_ffff});
    t!(["xlatb"], with {eax = 0x1122_3305, ebx = 0x100} => {eax = 0x1122_3377});
    t!(["mov ax, [0x20]"] => {eax = 0x1122_b2a1});
    t!(["mov eax, [0x20]"] => {eax = 0xd4c3_b2a1});
    t!(["mov al, es:[bx]"], with {ebx = 0xffff_0020} => {eax = 0x1122_33e5});
    t!(["mov ax, [bp + si]"], with {ebp = 0x1f00, esi = 0xfe} => {eax = 0x1122_5a5a});
    t!(["mov eax, [ebx]"], with {ebx = 0x20} => {eax = 0xd4c3_b2a1});
    // Offsets of 16 bits wrap, and leave the upper halves of registers alone.
    t!(["mov ax, [bx + si]"], with {ebx = 0xffff_ff00, esi = 0xffff_0120} => {eax = 0x1122_b2a1});
    t!(["mov ax, [bx + 0x7fff]"], with {ebx = 0x8021} => {eax = 0x1122_b2a1});
    t!(["mov ds, ax", "mov bx, ds"], with {eax = 0x4321} => {ds = 0x4321, ebx = 0x5566_4321});
    t!([".byte 0x66, 0x8c, 0xdb"] => {ebx = 0x3000});
    t!(["lds si, [0x40]"] => {ds = 0x9abc, esi = 0x0123_5678});
    t!(["les edi, [0x40]"] => {es = 0xdef0, edi = 0x9abc_5678});
    t!(["lfs bx, [0x40]"] => {fs = 0x9abc, ebx = 0x5566_5678});
    t!(["lgs bx, [0x40]"] => {gs = 0x9abc, ebx = 0x5566_5678});
}

fn stacks() {
    t!(["push ax", "pop bx"] => {ebx = 0x5566_3344});
    t!(["push eax", "pop ebx"] => {ebx = 0x1122_3344});
    t!(["push ax", "mov ax, sp", "pop cx"] => {eax = 0x1122_1ffe, ecx = 0x99aa_3344});
    t!(["push sp", "pop ax"] => {eax = 0x1122_2000});
    t!(["push 0x1234", "pop ax"] => {eax = 0x1122_1234});
    t!(["push -2", "pop ax"] => {eax = 0x1122_fffe});
    t!([".byte 0x66, 0x6a, 0xfe", "pop eax"] => {eax = 0xffff_fffe});
    t!([".byte 0x66, 0x1e", "pop ax", "pop cx"], with {ds = 0x3000} => {eax = 0x1122_3000,
        ecx = 0x99aa_0000 | peek(0x7_1ffe) & 0xffff});
    t!(["push word ptr [0x20]", "pop ax"] => {eax = 0x1122_b2a1});
    t!(["push dword ptr [0x20]", "pop eax"] => {eax = 0xd4c3_b2a1});
    t!(["push ax", "pop word ptr [0x60]", "mov bx, [0x60]"] => {ebx = 0x5566_3344});
    t!(["push ds", "pop es"] => {es = 0x3000});
    t!(["push fs", "pop gs"], with {fs = 0x1357} => {gs = 0x1357});
    t!(["pusha", "pop ax", "add sp, 14"] => {eax = 0x1122_cdef});
    t!(["pushad", "pop eax", "add sp, 28"] => {eax = 0x89ab_cdef});
    t!(["pusha", "mov bp, sp", "mov word ptr [bp + 14], 0x7777", "popa"] => {eax = 0x1122_7777});
    t!(["pushad", "xor eax, eax", "xor edi, edi", "popad"] => {});
    t!(["pushf", "pop ax"] => {eax = 0x1122_0002});
    t!(["push 0x7ed7", "popf", "pushf", "pop ax", "cld", "cli"] => {eax = 0x1122_7ed7}
        flags ARITHMETIC, 0x8d5);
    t!(["pushfd", "pop eax"] => {eax = 2});
    t!(["enter 8, 0", "mov ax, sp", "leave"] => {eax = 0x1122_1ff6});
    t!(["enter 8, 2", "mov ax, sp", "mov bx, bp", "leave"] => {eax = 0x1122_1ff2, ebx = 0x5566_1ffe});
    t!(["push bp", "mov bp, sp", "sub sp, 6", "leave"] => {});
    // The stack pointer has 16 bits, and wraps.
    t!(["push ax", "mov cx, sp", "pop bx"], with {esp = 0xabcd_0000} => {ecx = 0x99aa_fffe,
        ebx = 0x5566_3344});
    t!(["mov ss, ax", "mov sp, 0x100", "push bx", "pop cx"], with {eax = 0x6000} => {ss = 0x6000,
        esp = 0x100, ecx = 0x99aa_7788});
    t!(["lss sp, [0x40]"] => {ss = 0x9abc, esp = 0x5678});
}

fn arithmetic() {
    t!(["add al, 0xbc"] => {eax = 0x1122_3300} flags ARITHMETIC, CF | PF | AF | ZF);
    t!(["add ax, 0x7000"] => {eax = 0x1122_a344} flags ARITHMETIC, PF | SF | OF);
    t!(["add eax, 0x70000000"] => {eax = 0x8122_3344} flags ARITHMETIC, PF | SF | OF);
    t!(["adc ax, bx"], with {eflags = 3} => {eax = 0x1122_aacd} flags ARITHMETIC, OF | SF);
    t!(["sub ax, bx"] => {eax = 0x1122_bbbc} flags ARITHMETIC, CF | AF | SF);
    t!(["sbb eax, ebx"], with {eflags = 3} => {eax = 0xbbbb_bbbb} flags ARITHMETIC, CF | AF | SF | PF);
    t!(["cmp ax, 0x3344"] => {} flags ARITHMETIC, ZF | PF);
    t!(["neg ax"] => {eax = 0x1122_ccbc} flags ARITHMETIC, CF | AF | SF);
    t!(["inc al"], with {eax = 0xff, eflags = 3} => {eax = 0} flags ARITHMETIC, CF | AF | ZF | PF);
    t!(["dec ax"], with {eax = 0x1_0000} => {eax = 0x1_ffff} flags ARITHMETIC, AF | SF | PF);
    t!(["inc eax"], with {eax = 0x7fff_ffff} => {eax = 0x8000_0000} flags ARITHMETIC, AF | SF | PF | OF);
    t!(["inc word ptr [0x62]", "mov ax, [0x62]", "mov word ptr [0x62], 0"] =>
        {eax = 0x1122_0001});
    t!(["mul bl"] => {eax = 0x1122_2420} flags CF | OF, CF | OF);
    t!(["mul bx"] => {eax = 0x1122_d820, edx = 0xddee_17ef} flags CF | OF, CF | OF);
    t!(["mul ebx"], with {eax = 0x10} => {eax = 0x5667_7880, edx = 5} flags CF | OF, CF | OF);
    t!(["imul bl"], with {eax = 2} => {eax = 0xff10} flags CF | OF, CF | OF);
    t!(["imul ax, bx, 3"] => {eax = 0x1122_6698} flags CF | OF, CF | OF);
    t!(["imul eax, ebx, 16"] => {eax = 0x5667_7880} flags CF | OF, CF | OF);
    t!(["imul ax, bx"], with {eax = 2, ebx = 3} => {eax = 6} flags CF | OF, 0);
    t!(["div bl"], with {eax = 0x1234, ebx = 0x20} => {eax = 0x1491});
    t!(["div bx"], with {eax = 0x5678, edx = 0x12, ebx = 0x100} => {eax = 0x1256, edx = 0x78});
    t!(["div ebx"], with {eax = 0x1234_5678, edx = 1, ebx = 0x1000} => {eax = 0x11_2345, edx = 0x678});
    t!(["idiv bl"], with {eax = 0xfff9, ebx = 2} => {eax = 0xfffd});
    t!(["and ax, 0xf0f0"] => {eax = 0x1122_3040} flags CF | OF | ZF | SF | PF, 0);
    t!(["or al, 0x80"] => {eax = 0x1122_33c4} flags CF | OF | ZF | SF | PF, SF);
    t!(["xor eax, eax"] => {eax = 0} flags CF | OF | ZF | SF | PF, ZF | PF);
    t!(["test al, 0x3b"] => {} flags CF | OF | ZF | SF | PF, ZF | PF);
    t!(["not ax"] => {eax = 0x1122_ccbb});
    t!(["daa"], with {eax = 0x9a} => {eax = 0} flags CF | AF | ZF, CF | AF | ZF);
    t!(["das"], with {eax = 0xff, eflags = 0x12} => {eax = 0x99} flags CF | AF, CF | AF);
    t!(["aaa"], with {eax = 0x000b} => {eax = 0x0101} flags CF | AF, CF | AF);
    t!(["aas"], with {eax = 0x020f} => {eax = 0x0109} flags CF | AF, CF | AF);
    t!(["aam"], with {eax = 0x4b} => {eax = 0x0705} flags ZF | SF | PF, PF);
    t!(["aad"], with {eax = 0x0705} => {eax = 0x004b} flags ZF | SF | PF, PF);
    t!(["clc"], with {eflags = 3} => {} flags CF, 0);
    t!(["cmc"] => {} flags CF, CF);
    t!(["stc", "salc"] => {eax = 0x1122_33ff});
    t!(["lahf"], with {eflags = 0xd7} => {eax = 0x1122_d744});
    t!(["sahf"], with {eax = 0xd700} => {} flags ARITHMETIC, 0xd5);
    t!(["xadd ax, bx"] => {eax = 0x1122_aacc, ebx = 0x5566_3344});
    t!(["cmpxchg bx, cx"], with {eax = 0x7788} => {ebx = 0x5566_bbcc} flags ZF, ZF);
    t!(["cmpxchg bx, cx"] => {eax = 0x1122_7788} flags ZF, 0);
}

fn shifts_and_bits() {
    t!(["shl ax, 4"] => {eax = 0x1122_3440} flags CF, CF);
    t!(["shl eax, cl"], with {ecx = 33} => {eax = 0x2244_6688});
    t!(["shr ax, 1"], with {eax = 3} => {eax = 1} flags CF, CF);
    t!(["sar al, 1"], with {eax = 0x83} => {eax = 0xc1} flags CF, CF);
    t!(["rol ax, 4"] => {eax = 0x1122_3443});
    t!(["ror eax, 8"] => {eax = 0x4411_2233});
    t!(["rcl al, 1"], with {eax = 0x80, eflags = 3} => {eax = 1} flags CF, CF);
    t!(["rcr ax, 17"], with {eflags = 3} => {} flags CF, CF);
    t!(["shld ax, bx, 4"] => {eax = 0x1122_3447});
    t!(["shrd eax, ebx, 8"] => {eax = 0x8811_2233});
    t!(["bt ax, 2"] => {} flags CF, CF);
    t!(["bts ax, bx"], with {ebx = 0x10} => {eax = 0x1122_3345} flags CF, 0);
    t!(["btr eax, 28"] => {eax = 0x0122_3344} flags CF, CF);
    t!(["btc word ptr [0x62], bx", "mov ax, [0x66]", "mov word ptr [0x66], 0"], with {ebx = 35} =>
        {eax = 0x1122_0008});
    t!(["bts word ptr [0x66], bx", "mov ax, [0x62]", "mov word ptr [0x62], 0"], with {ebx = 0xffe3} =>
        {eax = 0x1122_0008});
    t!(["bsf ax, bx"] => {eax = 0x1122_0003} flags ZF, 0);
    t!(["bsr eax, ebx"] => {eax = 30} flags ZF, 0);
    t!(["setz al", "setnz ah"] => {eax = 0x1122_0100});
    t!(["cmovnz ax, bx"] => {eax = 0x1122_7788});
    t!(["cmovz eax, ebx"] => {});
}

fn strings() {
    t!(["movsb"], with {esi = 0xffff_0020, edi = 0xffff_0060} => {esi = 0xffff_0021,
        edi = 0xffff_0061});
    check("MOVSB stored", peek(EXTRA + 0x60), 0xa1);
    t!(["movsw"], with {esi = 0x20, edi = 0x60} => {esi = 0x22, edi = 0x62});
    t!(["movsd"], with {esi = 0x20, edi = 0x60} => {esi = 0x24, edi = 0x64});
    check("MOVSD stored", peek(EXTRA + 0x60), 0xd4c3_b2a1);
    t!(["std", "movsd", "cld"], with {esi = 0x20, edi = 0x60} => {esi = 0x1c, edi = 0x5c});
    t!(["rep movsb"], with {esi = 0x20, edi = 0x70, ecx = 0xffff_0004} => {esi = 0x24, edi = 0x74,
        ecx = 0xffff_0000});
    check("REP MOVSB stored", peek(EXTRA + 0x70), 0xd4c3_b2a1);
    t!(["rep movsb"], with {ecx = 0x8_0000} => {});
    t!([".byte 0x67; rep movsb"], with {esi = 0x20, edi = 0x78, ecx = 4} => {esi = 0x24, edi = 0x7c,
        ecx = 0});
    t!([".byte 0x26; movsb"], with {esi = 0x20, edi = 0x7c} => {esi = 0x21, edi = 0x7d});
    check("MOVSB of ES stored", peek(EXTRA + 0x7c) & 0xff, 0xe5);
    t!(["rep stosw"], with {edi = 0x80, ecx = 2} => {edi = 0x84, ecx = 0});
    check("STOSW stored", peek(EXTRA + 0x80), 0x3344_3344);
    t!(["stosd"], with {edi = 0x80} => {edi = 0x84});
    t!(["lodsb"], with {esi = 0x21} => {esi = 0x22, eax = 0x1122_33b2});
    t!(["lodsw"], with {esi = 0x20} => {esi = 0x22, eax = 0x1122_b2a1});
    t!(["lodsd"], with {esi = 0x20} => {esi = 0x24, eax = 0xd4c3_b2a1});
    t!(["lodsw"], with {esi = 0xffff_fffe} => {esi = 0xffff_0000, eax = 0x1122_8642});
    t!(["repne scasb"], with {edi = 0x20, ecx = 9, eax = 0xe7} => {edi = 0x23, ecx = 6} flags ZF, ZF);
    t!(["repe scasb"], with {edi = 0x20, ecx = 9, eax = 0xe5} => {edi = 0x23, ecx = 6} flags ZF, 0);
    t!(["cmpsb"], with {esi = 0x20, edi = 0x20} => {esi = 0x21, edi = 0x21} flags ZF | CF, CF);
    t!(["repe cmpsw"], with {esi = 0x62, edi = 0x162, ecx = 3} => {esi = 0x68, edi = 0x168, ecx = 0}
        flags ZF, ZF);
    t!(["insb"], with {edi = 0x90, edx = 0x80} => {edi = 0x91});
    t!(["rep outsb"], with {esi = 0x20, ecx = 2, edx = 0x80} => {esi = 0x22, ecx = 0});
    t!(["outsd"], with {esi = 0x20, edx = 0x80} => {esi = 0x24});
    t!(["out 0x80, al"] => {});
    t!(["out dx, eax"], with {edx = 0x80} => {});
}

fn control() {
    t!(["jmp 22f", "mov al, 1", "22:"] => {});
    t!([".byte 0xe9; .word 2", "mov al, 1"] => {});
    t!(["stc", "jc 22f", "mov al, 1", "22:"] => {});
    t!(["clc", "jc 22f", "mov al, 1", "22:"] => {eax = 0x1122_3301});
    t!([".byte 0x0f, 0x85; .word 2", "mov al, 1"] => {});
    t!(["jcxz 22f", "mov al, 1", "22:"], with {ecx = 0xffff_0000} => {ecx = 0xffff_0000});
    t!(["jecxz 22f", "mov al, 1", "22:"], with {ecx = 0xffff_0000} => {eax = 0x1122_3301});
    t!(["22: inc ax", "loop 22b"], with {eax = 0, ecx = 0xffff_0005} => {eax = 5, ecx = 0xffff_0000});
    t!(["22: inc ax", ".byte 0x67; loop 22b"], with {eax = 0, ecx = 5} => {eax = 5, ecx = 0});
    t!(["22: inc ax", "cmp ax, 3", "loopne 22b"], with {eax = 0, ecx = 9} => {eax = 3, ecx = 6});
    t!([".byte 0xe8; .word 22f - . - 2", "jmp 33f", "22: mov al, 2", ".byte 0xc3", "33:"] => {eax = 0x1122_3302});
    t!(["push 5", ".byte 0xe8; .word 22f - . - 2", "jmp 33f", "22: mov al, 3", ".byte 0xc2; .word 2", "33:"] => {eax = 0x1122_3303});
    t!([".byte 0xe8; .word 22f - . - 2", "22: pop ax"] => {eax = 0x1122_0003});
    t!([".byte 0x66, 0xe8; .long 0", "pop eax"] => {eax = 6});
    t!([".byte 0x9a; .word 5, 0x1000", "pop ax", "pop bx"] => {eax = 0x1122_0005, ebx = 0x5566_1000});
    t!([".byte 0x66, 0x9a; .long 8; .word 0x1000", "pop eax", "pop bx", "pop cx"] =>
        {eax = 8, ebx = 0x5566_1000, ecx = 0x99aa_0000 | peek(0x7_1ffe) & 0xffff});
    t!([".byte 0xea; .word 7, 0x1000", "mov al, 1"] => {});
    t!(["push cs", ".byte 0xe8; .word 22f - . - 2", "jmp 33f", "22: mov al, 4", ".byte 0xcb", "33:"] => {eax = 0x1122_3304});
    t!(["push 7", "push cs", ".byte 0xe8; .word 22f - . - 2", "jmp 33f", "22: mov al, 4", ".byte 0xca; .word 2", "33:"] =>
        {eax = 0x1122_3304});
    t!(["pushf", "push cs", ".byte 0xe8; .word 22f - . - 2", "jmp 33f", "22: mov al, 5", "stc", "iret", "33:"] =>
        {eax = 0x1122_3305} flags CF, 0);
    t!(["call word ptr [0x68]", "pop cx"] => {ecx = 0x99aa_0004});
    t!(["call bx", "jmp 33f", "nop", "mov al, 6", ".byte 0xc3", "33:"], with {ebx = 5} => {eax = 0x1122_3306});
    t!([".byte 0xff, 0x2e; .word 0x6c", "mov al, 1"] => {});
    // An interrupt of the program's own.
    t!(["jmp 22f", "pushf", "pop bx", "mov bp, sp", "mov cx, [bp + 4]", "iret", "22: mov fs, ax",
        "mov word ptr fs:[0x200], 2", "mov word ptr fs:[0x202], cs", "sti", "int 0x80", "cli"],
        with {eax = 0} => {ebx = 0x5566_0002, ecx = 0x99aa_0202, fs = 0, ebp = 0xcafe_1ffa});
    t!(["cli", "sti", "pushf", "cli", "pop ax"] => {eax = 0x1122_0202} flags IF | DF, 0);
    // What protected mode has and real mode can do.
    t!(["smsw ax", "and ax, 1"] => {eax = 0x1122_0000});
    t!(["mov eax, cr0", "and eax, 0x80000001"] => {eax = 0});
    t!(["sgdt [0x100]", "sidt [0x108]", "mov ax, [0x108]", "mov word ptr [0x108], 0", "mov ecx, [0x10a]"]
        => {eax = 0x1122_03ff, ecx = 0});
    t!(["bound ax, [0x64]"], with {eax = 0} => {});
}

fn exceptions() {
    raises!(["ud2"] => 6, 0);
    raises!(["nop", "int3"] => 3, 2);
    raises!(["int 0x55"] => 0x55, 2);
    raises!(["xor cx, cx", "div cx"] => 0, 2);
    raises!(["mov al, 0x7f", "add al, al", "into"] => 4, 5);
    raises!(["bound ax, [0x64]"], with {eax = 1} => 5, 0);
    raises!(["push 0x102", "popf", "nop", "nop"] => 1, 5);
    raises!(["mov ax, [0xffff]"] => 13, 0);
    raises!(["mov eax, [0xfffd]"] => 13, 0);
    raises!(["mov al, [eax]"], with {eax = 0x1_0000} => 13, 0);
    raises!(["mov al, [ebp]"], with {ebp = 0x1_0000} => 12, 0);
    raises!(["mov al, [esp]"], with {esp = 0x1_0000} => 12, 0);
    raises!(["mov ax, [bp]"], with {ebp = 0xffff} => 12, 0);
    raises!([".byte 0x66, 0xea; .long 0x10000; .word 0x1000"] => 13, 0);
    raises!(["sldt ax"] => 6, 0);
    raises!(["str ax"] => 6, 0);
    raises!(["lldt ax"] => 6, 0);
    raises!(["ltr ax"] => 6, 0);
    raises!(["lar ax, bx"] => 6, 0);
    raises!(["verr ax"] => 6, 0);
    raises!(["arpl ax, bx"] => 6, 0);
    raises!([".byte 0x0f, 0x34"] => 13, 0);
    raises!([".byte 0x0f, 0x0a"] => 6, 0);
    raises!([".byte 0xf0, 0x89, 0xc0"] => 6, 0);
    raises!([".byte 0x8e, 0xc8"] => 6, 0);
    raises!([".byte 0xc4, 0xe3, 0x79, 0x04, 0xc0, 0"] => 6, 0);
    // Fifteen bytes are the longest.
    raises!([".fill 15, 1, 0x66", "nop"] => 13, 0);
    t!([".fill 14, 1, 0x66", "nop"] => {});
    // Beyond the vector table's limit; a fault on the way to a handler is not one of the table's.
    raises!(["mov word ptr [0x100], 0x7f", "mov dword ptr [0x102], 0", "lidt [0x100]", "int 0x20"] =>
        13, 20);
}

/// Segments keep the limits that protected mode gave them.
fn unreal() {
    unsafe { (0x30_0000 as *mut u32).write_volatile(0x5eed_5eed) };
    t!(["cli", "mov eax, cr0", "or al, 1", "mov cr0, eax", "mov bx, 0x10", "mov fs, bx", "and al, 0xfe",
        "mov cr0, eax", "mov ecx, 0x300000", "mov ecx, fs:[ecx]", "xor eax, eax", "xor bx, bx"] =>
        {eax = 0, ebx = 0x5566_0000, ecx = 0x5eed_5eed, fs = 0x10});
    // Loading it in real mode gives another base, and the same limit.
    t!(["mov eax, cr0", "or al, 1", "mov cr0, eax", "mov bx, 0x10", "mov fs, bx", "and al, 0xfe",
        "mov cr0, eax", "mov bx, 0x1000", "mov fs, bx", "mov ecx, 0x2f0000", "mov ecx, fs:[ecx]",
        "xor eax, eax", "mov bx, 0x1000"] =>
        {eax = 0, ebx = 0x5566_1000, ecx = 0x5eed_5eed, fs = 0x1000});
}

pub fn run() {
    for page in [DATA, EXTRA] {
        for n in 0..0x4000 {
            poke(page + 4 * n, &[0; 4]);
        }
    }
    poke(DATA + 0x20, &[0xa1, 0xb2, 0xc3, 0xd4]);
    poke(EXTRA + 0x20, &[0xe5, 0xe5, 0xe7, 0xe8]);
    poke(DATA + 0x40, &[0x78, 0x56, 0xbc, 0x9a, 0xf0, 0xde]);
    // A near pointer, then a far one.
    poke(DATA + 0x68, &[4, 0, 0, 0, 6, 0, 0, 0x10]);
    poke(DATA + 0x105, &[0x77]);
    poke(DATA + 0xfffe, &[0x42, 0x86]);
    poke(0x7_1ffe, &[0x5a, 0x5a]);
    moves();
    poke(0x7_1ffe, &[0; 2]);
    stacks();
    arithmetic();
    shifts_and_bits();
    strings();
    control();
    exceptions();
    unreal();
}
