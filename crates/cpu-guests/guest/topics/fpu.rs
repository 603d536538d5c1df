//! Exceptions of the x87, MMX, SSE and AVX units as a system gets them: which unit is not available, which
//! exceptions wait and which do not, what is told of them (SDM volume 1, chapters 8, 11 and 14; volume 3,
//! sections 2.5 and 6.15).

use core::arch::{asm, global_asm};

use crate::kit::*;

const MP: u64 = 1 << 1;
const EM: u64 = 1 << 2;
const TS: u64 = 1 << 3;
const NE: u64 = 1 << 5;
const OSFXSR: u64 = 1 << 9;
const OSXMMEXCPT: u64 = 1 << 10;
const OSXSAVE: u64 = 1 << 18;

// Events are recorded by compiled code, which has to have its unit: both registers are as they should be
// before it is entered.
global_asm!(
    ".section .text",
    ".balign 32",
    ".global unit_stubs",
    "unit_stubs:",
    ".set n, 0",
    ".rept 20",
    ".balign 32",
    "push rax",
    "mov rax, [rip + UNIT_CR0]",
    "mov cr0, rax",
    "mov rax, [rip + UNIT_CR4]",
    "mov cr4, rax",
    "pop rax",
    "jmp stubs + 16 * n",
    ".set n, n + 1",
    ".endr",
);
unsafe extern "C" {
    static unit_stubs: u8;
}
#[unsafe(no_mangle)]
static mut UNIT_CR0: u64 = 0;
#[unsafe(no_mangle)]
static mut UNIT_CR4: u64 = 0;

fn install() {
    unsafe {
        UNIT_CR0 = cr0();
        UNIT_CR4 = cr4();
        for vector in [UD, NM, MF, XM] {
            let to = &raw const unit_stubs as u64 + 32 * vector;
            let low = gate(vector).read_volatile() & !0xffff_0000_0000_ffff;
            gate(vector).write_volatile(low & !(0xffff << 48) | to & 0xffff | (to >> 16 & 0xffff) << 48);
        }
    }
}

/// What an instruction raises with these values of CR0 and CR4.
macro_rules! with {
    ($cr0:expr, $cr4:expr, [$($line:expr),+]) => {{
        attempt!(["mov cr0, {c0}", "mov cr4, {c4}", $($line,)+ "mov cr0, {g0}", "mov cr4, {g4}"],
            c0 = in(reg) $cr0, c4 = in(reg) $cr4, g0 = in(reg) UNIT_CR0, g4 = in(reg) UNIT_CR4,
            out("rax") _, out("xmm0") _)
    }};
}

fn availability() {
    let (c0, c4) = (cr0(), cr4());
    let ts = c0 | TS | MP;
    let no_wait = (c0 | TS) & !MP;
    let em = (c0 | EM) & !MP;
    check("x87", with!(c0, c4, ["fnop"]), NONE);
    check("x87 with TS", with!(ts, c4, ["fnop"]), NM);
    check("FNSTCW with TS", with!(ts, c4, ["fnstcw [rsp - 16]"]), NM);
    check("WAIT with TS and MP", with!(ts, c4, ["fwait"]), NM);
    check("WAIT with TS", with!(no_wait, c4, ["fwait"]), NONE);
    check("x87 with TS, not MP", with!(no_wait, c4, ["fnop"]), NM);
    check("x87 with EM", with!(em, c4, ["fnop"]), NM);
    check("WAIT with EM", with!(em, c4, ["fwait"]), NONE);
    check("MMX with TS", with!(ts, c4, ["pxor mm0, mm0", "emms"]), NM);
    check("MMX with EM", with!(em, c4, ["pxor mm0, mm0", "emms"]), UD);
    check("MMX with both", with!(em | TS, c4, ["pxor mm0, mm0", "emms"]), UD);
    check("SSE with TS", with!(ts, c4, ["pxor xmm0, xmm0"]), NM);
    check("SSE with EM", with!(em, c4, ["pxor xmm0, xmm0"]), UD);
    check("SSE with both", with!(em | TS, c4, ["pxor xmm0, xmm0"]), UD);
    check("SSE without OSFXSR", with!(c0, c4 & !OSFXSR, ["pxor xmm0, xmm0"]), UD);
    check("and with TS", with!(ts, c4 & !OSFXSR, ["pxor xmm0, xmm0"]), UD);
    check("MMX without OSFXSR", with!(c0, c4 & !OSFXSR, ["pxor mm0, mm0", "emms"]), NONE);
    check("LDMXCSR with TS", with!(ts, c4, ["stmxcsr [rsp - 16]", "ldmxcsr [rsp - 16]"]), NM);
    for (name, cr0) in [("PREFETCH with TS", ts), ("PREFETCH with EM", em)] {
        check(name, with!(cr0, c4, ["prefetcht0 [rsp]", "sfence", "lfence", "mfence"]), NONE);
    }
    // A unit that is not available is told before what is wrong with the operand.
    check("x87 with TS, no memory", with!(ts, c4, ["mov rax, 5", "shl rax, 39", "fld qword ptr [rax]"]), NM);
    check("SSE with TS, not aligned", with!(ts, c4, ["movaps xmm0, [rsp + 1]"]), NM);
    if !has(1, 2, 28) {
        return skip("AVX");
    }
    let avx = c4 | OSXSAVE;
    let enable = |components: u32| {
        set_cr4(avx);
        unsafe { asm!("xsetbv", in("ecx") 0, in("eax") components, in("edx") 0) };
    };
    enable(3);
    check("AVX without its state", with!(c0, avx, ["vpxor xmm0, xmm0, xmm0"]), UD);
    check("and with TS", with!(ts, avx, ["vpxor xmm0, xmm0, xmm0"]), UD);
    enable(7);
    check("AVX", with!(c0, avx, ["vpxor xmm0, xmm0, xmm0"]), NONE);
    check("AVX with TS", with!(ts, avx, ["vpxor xmm0, xmm0, xmm0"]), NM);
    check("AVX with EM", with!(em, avx, ["vpxor xmm0, xmm0, xmm0"]), NONE);
    check("AVX without OSFXSR", with!(c0, avx & !OSFXSR, ["vpxor xmm0, xmm0, xmm0"]), NONE);
    check("AVX without OSXSAVE", with!(c0, c4 & !OSXSAVE, ["vpxor xmm0, xmm0, xmm0"]), UD);
    set_cr4(c4);
}

#[repr(C, align(64))]
#[derive(Default)]
struct Environment {
    control: u32,
    status: u32,
    tags: u32,
    ip: u32,
    cs_opcode: u32,
    operand: u32,
    data_segment: u32,
}
static ZERO: f64 = 0.0;
static LARGE: f64 = 1e300;
/// Control words: all masked; with some exceptions unmasked.
static ALL_MASKED: u16 = 0x37f;
static ZERO_DIVIDE: u16 = 0x37b;
static OVERFLOW: u16 = 0x377;
static INVALID: u16 = 0x37e;

/// x87 exceptions wait for the next instruction that looks for them.
fn waiting() {
    let mut environment = Environment::default();
    let (at, waits, status): (u64, u64, u64);
    let vector = attempt!(["fninit", "fldcw [{cw}]", "fld1", "lea {at}, [rip + 2f]", "2: fdiv qword ptr [{zero}]",
        "lea {waits}, [rip + 3f]", "fnstsw ax", "fnstcw [rsp - 16]", "fnstenv [{environment}]",
        "fldenv [{environment}]", "3: fnop"],
        cw = in(reg) &ZERO_DIVIDE, zero = in(reg) &ZERO, environment = in(reg) &mut environment,
        at = out(reg) at, waits = out(reg) waits, out("rax") status);
    check("division by zero, at FNOP", (vector, last().trap.rip), (MF, waits));
    check("RF of it", last().trap.rflags >> 16 & 1, 1);
    check("status: B, ES, ZE", status & 0x80ff, 0x8084);
    check("instruction pointer", environment.ip, at as u32);
    check("operand pointer", environment.operand, &raw const ZERO as u32);
    check("status in the environment", environment.status & 0xffff, status as u32 & 0xffff);
    // It is still there.
    let each = |name: &str, vector: u64, expected: u64| check(name, vector, expected);
    each("WAIT", attempt!(["fwait"]), MF);
    each("FLD", attempt!(["fld1"]), MF);
    each("EMMS", attempt!(["emms"]), MF);
    each("MMX", attempt!(["movq mm0, mm1"]), MF);
    each("SSE", attempt!(["pxor xmm0, xmm0"], out("xmm0") _), NONE);
    each("FXSAVE", attempt!(["fxsave64 [{0}]", "fxrstor64 [{0}]"], in(reg) &mut Image([0; 512])), NONE);
    each("and FXRSTOR brings it back", attempt!(["fwait"]), MF);
    each("FNCLEX", attempt!(["fnclex", "fnop"]), NONE);
    // What is stored with an exception that is not masked is not stored.
    let mut place = 0x5a5a_5a5au32;
    let vector = attempt!(["fninit", "fldcw [{cw}]", "fld qword ptr [{large}]", "fstp dword ptr [{place}]", "fwait"],
        cw = in(reg) &OVERFLOW, large = in(reg) &LARGE, place = in(reg) &mut place);
    check("overflow of a store", (vector, place), (MF, 0x5a5a_5a5a));
    let status: u64;
    unsafe { asm!("fnstsw ax", "fnclex", out("rax") status) };
    check("OE, and nothing is popped", (status & 8, status >> 11 & 7), (8, 7));
    // The stack's own faults.
    let stack = |vector: u64, status: u64| (vector, status & 0x241);
    let status: u64;
    let vector = attempt!(["fninit", "fldcw [{cw}]", "fstp st(0)", "fnstsw ax", "fwait"], cw = in(reg) &INVALID,
        out("rax") status);
    check("stack underflow: IE, SF, not C1", stack(vector, status), (MF, 0x41));
    let status: u64;
    let vector = attempt!(["fninit", "fldz", "fldz", "fldz", "fldz", "fldz", "fldz", "fldz", "fldz",
        "fldcw [{cw}]", "fldz", "fnstsw ax", "fwait"], cw = in(reg) &INVALID, out("rax") status);
    check("stack overflow: IE, SF, C1", stack(vector, status), (MF, 0x241));
    let vector = attempt!(["fnclex", "fldcw [{cw}]", "fldz", "fwait"], cw = in(reg) &ALL_MASKED);
    check("masked", vector, NONE);
    // A control word that unmasks what is there already.
    let vector = attempt!(["fldcw [{cw}]", "fwait"], cw = in(reg) &INVALID);
    check("unmasked later", vector, MF);
    unsafe { asm!("fninit") };
    check("FNINIT", attempt!(["fwait"]), NONE);
}

#[repr(C, align(16))]
struct Image([u8; 512]);

/// SSE and AVX raise at once, and leave the destination.
fn at_once() {
    #[repr(C, align(16))]
    struct Vector([f32; 4]);
    let (ones, zeroes) = (Vector([1.0; 4]), Vector([0.0; 4]));
    let unmasked: u32 = 0x1f80 & !(1 << 9);
    let normal: u32 = 0x1f80;
    let start: u64;
    let mut after = 0u32;
    let vector = attempt!(["movaps xmm0, [{ones}]", "ldmxcsr [{mxcsr}]", "lea {start}, [rip + 2f]",
        "2: divps xmm0, [{zeroes}]"],
        ones = in(reg) &ones, zeroes = in(reg) &zeroes, mxcsr = in(reg) &unmasked, start = out(reg) start,
        out("xmm0") _);
    unsafe { asm!("stmxcsr [{}]", "ldmxcsr [{}]", in(reg) &mut after, in(reg) &normal) };
    check("division by zero", (vector, last().trap.rip), (XM, start));
    check("MXCSR: ZE", after & 0x3f, 4);
    // Which exception it is counts, not which is not masked.
    let vector = attempt!(["ldmxcsr [{mxcsr}]", "xorps xmm0, xmm0", "sqrtps xmm0, xmm0", "divps xmm0, xmm0",
        "ldmxcsr [{normal}]"], mxcsr = in(reg) &unmasked, normal = in(reg) &normal, out("xmm0") _);
    check("invalid, masked", vector, NONE);
    // Without CR4.OSXMMEXCPT it is an undefined instruction.
    let quiet = cr4() & !OSXMMEXCPT;
    let vector = attempt!(["mov cr4, {quiet}", "movaps xmm0, [{ones}]", "ldmxcsr [{mxcsr}]",
        "divps xmm0, [{zeroes}]"], quiet = in(reg) quiet,
        ones = in(reg) &ones, zeroes = in(reg) &zeroes, mxcsr = in(reg) &unmasked, out("xmm0") _);
    unsafe { asm!("stmxcsr [{}]", "ldmxcsr [{}]", in(reg) &mut after, in(reg) &normal) };
    check("without OSXMMEXCPT", vector, UD);
    let reserved: u32 = 1 << 31 | normal;
    misaligned();
    check("MXCSR, reserved", attempt!(["ldmxcsr [{}]"], in(reg) &reserved), GP);
    // Flags that are set do not raise when they are unmasked.
    let sticky: u32 = unmasked | 4;
    let vector = attempt!(["ldmxcsr [{sticky}]", "addps xmm0, xmm0", "ldmxcsr [{normal}]"],
        sticky = in(reg) &sticky, normal = in(reg) &normal, out("xmm0") _);
    check("a flag of before", vector, NONE);
    check("its flag without OSXMMEXCPT", after & 4, 4);
    // x87 does not mind.
    check("MXCSR and x87", attempt!(["fninit", "fld1", "fdiv qword ptr [{}]", "fwait", "fninit"], in(reg) &ZERO), NONE);
    // Alignment comes first.
    let odd = &raw const zeroes as u64 + 4;
    let vector = attempt!(["movaps xmm0, [{ones}]", "divps xmm0, [{odd}]"], ones = in(reg) &ones, odd = in(reg) odd,
        out("xmm0") _);
    check("not aligned", vector, GP);
    if has(1, 2, 28) {
        set_cr4(cr4() | OSXSAVE);
        unsafe { asm!("xsetbv", in("ecx") 0, in("eax") 7, in("edx") 0) };
        let vector = attempt!(["ldmxcsr [{mxcsr}]", "movaps xmm0, [{ones}]", "vdivps xmm0, xmm0, [{odd}]"],
            ones = in(reg) &ones, odd = in(reg) odd, mxcsr = in(reg) &unmasked, out("xmm0") _);
        unsafe { asm!("ldmxcsr [{}]", in(reg) &normal) };
        check("AVX: not aligned, division by zero", vector, XM);
        unsafe { set_cr4(UNIT_CR4) };
    }
}

/// AMD's misaligned mode (APM volume 1, section 4.2.2; volume 3, appendix E, leaf 8000_0001h).
fn misaligned() {
    let mode = 0x2_1f80u32;
    let normal = 0x1f80u32;
    let there = has(0x8000_0001, 2, 7);
    let image = &raw mut STATE as u64;
    unsafe { asm!("fxsave64 [{}]", in(reg) image) };
    let mask = unsafe { ((image + 28) as *const u32).read_volatile() };
    check("MXCSR_MASK", mask >> 17 & 1 != 0, there);
    check("MXCSR.MM", attempt!(["ldmxcsr [{}]", "ldmxcsr [{}]"], in(reg) &mode, in(reg) &normal),
        if there { NONE } else { GP });
    let odd = image + 65;
    // More often than it takes to be translated.
    for round in 0..60 {
        for (name, value) in [("aligned mode", normal), ("misaligned mode", if there { mode } else { normal })] {
            let allowed = if value == mode { NONE } else { GP };
            macro_rules! operand {
                ($instruction:literal, $expected:expr) => {
                    check(format_args!("{name}, {}, {round}", $instruction),
                        attempt!(["ldmxcsr [{value}]", $instruction, "ldmxcsr [{normal}]"],
                            value = in(reg) &value, normal = in(reg) &normal, in("rdi") odd, out("xmm0") _),
                        $expected);
                    unsafe { asm!("ldmxcsr [{}]", in(reg) &normal) };
                };
            }
            operand!("paddd xmm0, [rdi]", allowed);
            operand!("addps xmm0, [rdi]", allowed);
            operand!("xorps xmm0, [rdi]", allowed);
            operand!("movaps xmm0, [rdi]", GP);
            operand!("movdqa [rdi], xmm0", GP);
            operand!("movups xmm0, [rdi]", NONE);
        }
    }
}
#[repr(align(64))]
struct State([u8; 640]);
static mut STATE: State = State([0; 640]);

pub fn run() {
    install();
    check("CR0.NE", cr0() & NE, NE);
    availability();
    waiting();
    at_once();
}
