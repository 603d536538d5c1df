//! Every operation against the host's own, on random and special operands, in all modes.
#![allow(unsafe_code)]

use std::arch::asm;

use super::*;
use crate::fpu::host::x86::{Image, image_of, run_x87};

/// xorshift64*: fast, seeded, good enough to find operands.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 8) % n
    }

    /// A significand: random, or with long runs of equal bits.
    fn fraction(&mut self) -> u64 {
        match self.below(6) {
            0 => 0,
            1 => !0,
            2 => 1 << self.below(64),
            3 => !0 << self.below(64),
            4 => self.next() & !0 << self.below(64),
            _ => self.next(),
        }
    }

    /// A number in a format with biased exponents up to `max`: often special, often close to 1.
    pub(crate) fn number<F: Format>(&mut self) -> F {
        let max = 2 * F::EMAX as u64 + 1;
        let biased = match self.below(8) {
            0 => 0,
            1 => max,
            2 => self.below(3),
            3 => max - self.below(3),
            4 | 5 => (F::EMAX as u64 + self.below(140)).saturating_sub(70) % max,
            _ => self.below(max + 1),
        };
        let sig = self.fraction();
        F::pack(self.below(2) != 0, biased as u32, sig)
    }

    /// Likewise with the integer bit that belongs to the exponent, mostly.
    pub(crate) fn number80(&mut self) -> F80 {
        let n = self.number::<F80>();
        match self.below(16) {
            0 => n,
            _ if n.exp & 0x7fff == 0 => F80 { sig: n.sig & !(1 << 63), ..n },
            _ => F80 { sig: n.sig | 1 << 63, ..n },
        }
    }

    /// Control words: all masked half of the time.
    pub(crate) fn control(&mut self) -> u16 {
        let masks = if self.below(2) == 0 { 0x3f } else { self.below(64) as u16 };
        0x40 | masks | ([0, 2, 3][self.below(3) as usize] << 8) | (self.below(4) as u16) << 10
    }
}

const CASES: u32 = 200_000;

run_x87! {
    host_fadd: "fadd st, st(1)";
    host_fsub: "fsub st, st(1)";
    host_fmul: "fmul st, st(1)";
    host_fdiv: "fdiv st, st(1)";
    host_fsqrt: "fsqrt";
    host_fprem: "fprem";
    host_fprem1: "fprem1";
    host_fscale: "fscale";
    host_frndint: "frndint";
    host_fcom: "fcom st(1)";
    host_fucom: "fucom st(1)";
    host_fxtract: "fxtract";
}

/// ST(0) and the status word's exceptions and C1, as they should be after `env` and `result`.
fn expected(env: &Env, a: F80, result: F80) -> (F80, u16) {
    let status = u16::from(env.flags)
        | if env.unmasked() != 0 { 0x8080 } else { 0 }
        | if env.rounded_up { 0x200 } else { 0 };
    (if env.faults_before_result() { a } else { result }, status)
}

fn check80(
    name: &str,
    host: fn(&mut Image),
    ours: fn(&mut Env, F80, F80) -> F80,
    full_precision: bool,
) {
    let mut rng = Rng(0x1234_5678_9abc_def1);
    let mut failures = 0;
    for _ in 0..CASES {
        let (a, b, control) = (rng.number80(), rng.number80(), rng.control());
        let mut image = image_of(control, a, b);
        host(&mut image);
        let theirs = (image.st(0), image.status as u16 & 0x82ff);
        let mut env = Env::x87(control);
        if full_precision {
            env = env.full_precision();
        }
        let result = ours(&mut env, a, b);
        let ours = expected(&env, a, result);
        if ours != theirs {
            failures += 1;
            if failures <= 12 {
                println!("{name} {a:x?} {b:x?} cw {control:#x}: ours {ours:x?} host {theirs:x?}");
            }
        }
    }
    assert_eq!(failures, 0, "{name}");
}

#[test]
fn x87_add() {
    check80("fadd", host_fadd, add, false);
}

#[test]
fn x87_sub() {
    check80("fsub", host_fsub, sub, false);
}

#[test]
fn x87_mul() {
    check80("fmul", host_fmul, mul, false);
}

#[test]
fn x87_div() {
    check80("fdiv", host_fdiv, div, false);
}

#[test]
fn x87_sqrt() {
    check80("fsqrt", host_fsqrt, |env, a, _| sqrt(env, a), false);
}

#[test]
fn x87_scale() {
    check80("fscale", host_fscale, scale, true);
}

#[test]
fn x87_round_to_integral() {
    check80("frndint", host_frndint, |env, a, _| round_to_integral(env, a, true), true);
}

#[test]
fn x87_remainder() {
    for (name, host, nearest) in
        [("fprem", host_fprem as fn(&mut Image), false), ("fprem1", host_fprem1, true)]
    {
        let mut rng = Rng(77);
        let mut failures = 0;
        for _ in 0..CASES {
            let (a, b, control) = (rng.number80(), rng.number80(), rng.control());
            let mut image = image_of(control, a, b);
            host(&mut image);
            let theirs = (image.st(0), image.status as u16 & !0x3800);
            let mut env = Env::x87(control).full_precision();
            let result = remainder(&mut env, a, b, nearest);
            let (value, mut status) = expected(&env, a, result.value);
            status &= !0x200;
            if !env.faults_before_result() {
                status |= match result.quotient {
                    Quotient::None => 0,
                    Quotient::Partial => 0x400,
                    Quotient::Low(q) => {
                        let bit = |n: u8, to: u16| u16::from(q >> n & 1) << to;
                        bit(0, 9) | bit(1, 14) | bit(2, 8)
                    }
                };
            }
            if (value, status) != theirs {
                failures += 1;
                if failures <= 12 {
                    println!(
                        "{name} {a:x?} {b:x?} cw {control:#x}: ours {:x?} host {theirs:x?}",
                        (value, status)
                    );
                }
            }
        }
        assert_eq!(failures, 0, "{name}");
    }
}

#[test]
fn x87_compare() {
    for (host, signalling) in [(host_fcom as fn(&mut Image), true), (host_fucom, false)] {
        let mut rng = Rng(99);
        for _ in 0..CASES {
            let (a, control) = (rng.number80(), rng.control());
            let b = if rng.below(8) == 0 { a } else { rng.number80() };
            let mut image = image_of(control, a, b);
            host(&mut image);
            let mut env = Env::x87(control);
            let order = compare(&mut env, a, b, signalling);
            // The condition codes are set even if the exception is not masked.
            let status = expected(&env, a, a).1
                | match order {
                    Order::Greater => 0,
                    Order::Less => 0x100,
                    Order::Equal => 0x4000,
                    Order::Unordered => 0x4500,
                };
            assert_eq!(
                status,
                image.status as u16 & !0x3800,
                "{a:x?} {b:x?} cw {control:#x} {signalling} {order:?}"
            );
        }
    }
}

#[test]
fn x87_extract() {
    let mut rng = Rng(111);
    let mut failures = 0;
    for _ in 0..CASES {
        let (a, control) = (rng.number80(), rng.control());
        let mut image = image_of(control, a, F80::ONE);
        host_fxtract(&mut image);
        let mut env = Env::x87(control).full_precision();
        let (exponent, significand) = extract_exponent(&mut env, a);
        let (_, status) = expected(&env, a, a);
        let ours = if env.faults_before_result() {
            (a, F80::ONE, status)
        } else {
            (significand, exponent, status)
        };
        let theirs = (image.st(0), image.st(1), image.status as u16 & !0x3800);
        if ours != theirs {
            failures += 1;
            if failures <= 12 {
                println!("fxtract {a:x?} cw {control:#x}: ours {ours:x?} host {theirs:x?}");
            }
        }
    }
    assert_eq!(failures, 0);
}

/// Defines functions that store ST(0) to memory in some format: result and status.
macro_rules! host_store {
    ($($name:ident $t:ty: $text:literal;)*) => {$(
        fn $name(image: &mut Image) -> $t {
            let mut result: $t = 0x55;
            // SAFETY: as for `run_x87`; the store goes to `result`.
            unsafe {
                asm!("frstor [{p}]", $text, "fnsave [{p}]", p = in(reg) image,
                    m = in(reg) &mut result, clobber_abi("C"), options(nostack));
            }
            result
        }
    )*};
}

host_store! {
    host_fst32 u32: "fst dword ptr [{m}]";
    host_fst64 u64: "fst qword ptr [{m}]";
    host_fist16 i16: "fist word ptr [{m}]";
    host_fist32 i32: "fist dword ptr [{m}]";
    host_fistp64 i64: "fistp qword ptr [{m}]";
}

fn check_store<T: Copy + PartialEq + std::fmt::LowerHex>(
    untouched: T,
    host: fn(&mut Image) -> T,
    ours: fn(&mut Env, F80) -> T,
    keep: fn(&Env) -> bool,
) {
    let mut rng = Rng(0xabcdef);
    let mut failures = 0;
    for _ in 0..CASES {
        let (mut a, control) = (rng.number80(), rng.control());
        if rng.below(4) == 0 {
            // Near the edges of binary32 and binary64.
            let edge = [1022u16, 1024, 1074, 1100, 126, 128, 149, 160][rng.below(8) as usize];
            let near = edge + rng.below(4) as u16;
            a.exp = a.exp & 0x8000 | if rng.below(2) == 0 { 16383 - near } else { 16381 + near };
        }
        let mut image = image_of(control, a, F80::ONE);
        let theirs = (host(&mut image), image.status as u16 & 0x82ff);
        let mut env = Env::x87(control);
        let result = ours(&mut env, a);
        let status = expected(&env, a, a).1;
        let ours = (if keep(&env) { result } else { untouched }, status);
        if ours != theirs {
            failures += 1;
            if failures <= 12 {
                println!(
                    "{a:x?} cw {control:#x}: ours {:x} {:x} host {:x} {:x}",
                    ours.0, ours.1, theirs.0, theirs.1
                );
            }
        }
    }
    assert_eq!(failures, 0);
}

fn stores(env: &Env) -> bool {
    env.unmasked() & !flag::PE == 0
}

#[test]
fn x87_store_single() {
    check_store(0x55, host_fst32, convert::<F80, u32>, stores);
}

#[test]
fn x87_store_double() {
    check_store(0x55, host_fst64, convert::<F80, u64>, stores);
}

#[test]
fn x87_store_integers() {
    check_store(0x55, host_fist16, to_int::<F80, i16>, stores);
    check_store(0x55, host_fist32, to_int::<F80, i32>, stores);
    check_store(0x55, host_fistp64, to_int::<F80, i64>, stores);
}

/// Defines functions that run an SSE instruction under an MXCSR: result and new MXCSR.
macro_rules! host_sse {
    ($($name:ident($t:ty) -> $r:ty: $text:literal;)*) => {$(
        fn $name(mxcsr: u32, a: $t, b: $t) -> ($r, u32) {
            let mut control = [mxcsr, 0];
            let (mut x, y) = (u128::from(a), u128::from(b));
            let saved: u32 = 0;
            // SAFETY: loads and stores the three variables; MXCSR is restored. All exceptions are
            // masked in `mxcsr`.
            unsafe {
                asm!("stmxcsr [{s}]", "ldmxcsr [{c}]", "movdqu xmm0, [{x}]", "movdqu xmm1, [{y}]",
                    $text, "movdqu [{x}], xmm0", "stmxcsr [{c} + 4]", "ldmxcsr [{s}]",
                    s = in(reg) &saved, c = in(reg) &mut control, x = in(reg) &mut x,
                    y = in(reg) &y, out("xmm0") _, out("xmm1") _, out("rax") _,
                    options(nostack));
            }
            (x as $r, control[1])
        }
    )*};
}

host_sse! {
    host_addss(u32) -> u32: "addss xmm0, xmm1";
    host_subss(u32) -> u32: "subss xmm0, xmm1";
    host_mulss(u32) -> u32: "mulss xmm0, xmm1";
    host_divss(u32) -> u32: "divss xmm0, xmm1";
    host_minss(u32) -> u32: "minss xmm0, xmm1";
    host_maxss(u32) -> u32: "maxss xmm0, xmm1";
    host_sqrtss(u32) -> u32: "sqrtss xmm0, xmm0";
    host_addsd(u64) -> u64: "addsd xmm0, xmm1";
    host_subsd(u64) -> u64: "subsd xmm0, xmm1";
    host_mulsd(u64) -> u64: "mulsd xmm0, xmm1";
    host_divsd(u64) -> u64: "divsd xmm0, xmm1";
    host_minsd(u64) -> u64: "minsd xmm0, xmm1";
    host_maxsd(u64) -> u64: "maxsd xmm0, xmm1";
    host_sqrtsd(u64) -> u64: "sqrtsd xmm0, xmm0";
    host_roundsd(u64) -> u64: "roundsd xmm0, xmm0, 4";
    host_roundss(u32) -> u32: "roundss xmm0, xmm0, 4";
    host_cvtss2sd(u32) -> u64: "cvtss2sd xmm0, xmm0";
    host_cvtsd2ss(u64) -> u32: "cvtsd2ss xmm0, xmm0";
    host_cvtsd2si(u64) -> u64: "cvtsd2si rax, xmm0; movq xmm0, rax";
    host_cvtss2si(u32) -> u32: "cvtss2si eax, xmm0; movd xmm0, eax";
    host_cvtsi2ss(u64) -> u32: "movq rax, xmm0; cvtsi2ss xmm0, rax";
    host_cvtsi2sd(u64) -> u64: "movq rax, xmm0; cvtsi2sd xmm0, rax";
    host_cmplesd(u64) -> u64: "cmplesd xmm0, xmm1";
    host_cmpeqss(u32) -> u32: "cmpeqss xmm0, xmm1";
}

fn check_sse<F: Format + Into<u128>, R: Copy + PartialEq + std::fmt::LowerHex>(
    host: fn(u32, F, F) -> (R, u32),
    ours: fn(&mut Env, F, F) -> R,
) {
    let mut rng = Rng(0x5eed);
    let mut failures = 0;
    for _ in 0..CASES {
        let (a, b) = (rng.number::<F>(), rng.number::<F>());
        let extras = rng.next() as u32;
        let mxcsr = 0x1f80 | extras & 0xe060;
        let theirs = host(mxcsr, a, b);
        let mut env = Env::sse(mxcsr);
        let result = ours(&mut env, a, b);
        let ours = (result, mxcsr | u32::from(env.flags));
        if ours != theirs {
            failures += 1;
            if failures <= 12 {
                println!(
                    "{a:x?} {b:x?} mxcsr {mxcsr:#x}: ours {:x} {:x} host {:x} {:x}",
                    ours.0, ours.1, theirs.0, theirs.1
                );
            }
        }
    }
    assert_eq!(failures, 0);
}

#[test]
fn sse_single() {
    check_sse(host_addss, add);
    check_sse(host_subss, sub);
    check_sse(host_mulss, mul);
    check_sse(host_divss, div);
    check_sse(host_minss, min);
    check_sse(host_maxss, max);
    check_sse(host_sqrtss, |env, a, _| sqrt(env, a));
    check_sse(host_roundss, |env, a, _| round_to_integral(env, a, false));
}

#[test]
fn sse_double() {
    check_sse(host_addsd, add);
    check_sse(host_subsd, sub);
    check_sse(host_mulsd, mul);
    check_sse(host_divsd, div);
    check_sse(host_minsd, min);
    check_sse(host_maxsd, max);
    check_sse(host_sqrtsd, |env, a, _| sqrt(env, a));
    check_sse(host_roundsd, |env, a, _| round_to_integral(env, a, false));
}

#[test]
fn sse_compare() {
    check_sse(host_cmplesd, |env, a, b| {
        let order = compare(env, a, b, true);
        let mask = |set: bool| if set { !0u64 } else { 0 };
        mask(order == Order::Less || order == Order::Equal)
    });
    check_sse(
        host_cmpeqss,
        |env, a, b| {
            if compare(env, a, b, false) == Order::Equal { !0u32 } else { 0 }
        },
    );
}

#[test]
fn sse_convert() {
    check_sse(host_cvtss2sd, |env, a, _| convert::<u32, u64>(env, a));
    check_sse(host_cvtsd2ss, |env, a, _| convert::<u64, u32>(env, a));
    check_sse(host_cvtsd2si, |env, a, _| to_int::<u64, i64>(env, a) as u64);
    check_sse(host_cvtss2si, |env, a, _| to_int::<u32, i32>(env, a) as u32);
    check_sse(host_cvtsi2ss, |env, a, _| from_int::<u32>(env, a as i64));
    check_sse(host_cvtsi2sd, |env, a, _| from_int::<u64>(env, a as i64));
}
