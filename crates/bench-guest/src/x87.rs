//! Extended precision, in the instructions of the x87.

#![allow(unsafe_code, reason = "Rust has no type for extended precision: assembly language")]

use crate::{Iteration, Place, Program, simple};
use anyhow::Result;
use std::arch::asm;
use std::hint::black_box;

pub(crate) const PROGRAMS: &[Program] = &[
    Program { name: "x87", about: "extended precision: products, sums, roots", make: arithmetic },
    Program { name: "x87-trig", about: "sines and logarithms of the x87", make: functions },
];

fn arithmetic(_: &Place) -> Result<Iteration> {
    simple(|| logistic(20_000, black_box(0.3)))
}

/// Iterates x = 3.9 x (1 - x), and adds the roots of all.
fn logistic(count: u64, start: f64) -> u64 {
    let mut sum = 0.0_f64;
    // SAFETY: reads and writes the named variables only; all of the x87's stack is declared as
    // changed, and empty at the end.
    unsafe {
        asm!(
            "fldz",
            "fld qword ptr [{factor}]",
            "fld qword ptr [{x}]",
            "2:",                  // x, factor, sum
            "fld1",
            "fsub st(0), st(1)",   // 1-x, x, factor, sum
            "fmulp st(1), st(0)",
            "fmul st(0), st(1)",
            "fld st(0)",
            "fsqrt",
            "faddp st(3), st(0)",
            "dec {count}",
            "jnz 2b",
            "fstp st(0)",
            "fstp st(0)",
            "fstp qword ptr [{sum}]",
            factor = in(reg) &3.9_f64,
            x = in(reg) &start,
            sum = in(reg) &mut sum,
            count = inout(reg) count => _,
            out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
            out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
            options(nostack),
        );
    }
    sum.to_bits()
}

fn functions(_: &Place) -> Result<Iteration> {
    simple(|| {
        let sum: f64 = (1..500).map(|index| sine_and_logarithm(black_box(f64::from(index)))).sum();
        // The last bits differ between makers of CPUs.
        (sum * 1e6) as u64
    })
}

/// sin(x) + ln(x)
fn sine_and_logarithm(x: f64) -> f64 {
    let mut result = 0.0_f64;
    // SAFETY: as above.
    unsafe {
        asm!(
            "fldln2",
            "fld qword ptr [{x}]",
            "fyl2x",
            "fld qword ptr [{x}]",
            "fsin",
            "faddp st(1), st(0)",
            "fstp qword ptr [{result}]",
            x = in(reg) &x,
            result = in(reg) &mut result,
            out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
            out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
            options(nostack),
        );
    }
    result
}

#[cfg(test)]
mod tests {
    #[test]
    fn agrees_with_double_precision() {
        let (mut x, mut sum) = (0.3_f64, 0.0);
        for _ in 0..10 {
            x = 3.9 * x * (1.0 - x);
            sum += x.sqrt();
        }
        let ours = f64::from_bits(super::logistic(10, 0.3));
        assert!((ours - sum).abs() < 1e-9, "{ours} {sum}");
        let ours = super::sine_and_logarithm(2.5);
        assert!((ours - (2.5_f64.sin() + 2.5_f64.ln())).abs() < 1e-12);
    }
}
