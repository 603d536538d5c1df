//! Vectors of 256 bits. The loops are plain; the compiler may use AVX2 and FMA for them.

#![allow(unsafe_code, reason = "calls of functions for instructions that were asked for before")]

use crate::random::Random;
use crate::{Iteration, Place, Program, simple};
use anyhow::{Result, ensure};
use std::hint::black_box;

pub(crate) const PROGRAMS: &[Program] =
    &[Program { name: "avx2", about: "256-bit integers and floats, with FMA", make }];

const COUNT: usize = 16_384;

fn make(_: &Place) -> Result<Iteration> {
    ensure!(
        is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
        "this CPU has no AVX2, or no FMA"
    );
    let mut random = Random::new(43);
    let integers: Vec<u32> = (0..COUNT).map(|_| random.next() as u32).collect();
    let floats: Vec<f32> = (0..COUNT).map(|_| random.below(4_096) as f32 / 1_024.0 - 2.0).collect();
    let mut polynomial = vec![0.0; COUNT];
    simple(move || {
        let mut check = 0;
        for round in 0..8 {
            // SAFETY: `make` has asked whether this CPU has what these functions use.
            check ^= unsafe { mix(black_box(&integers), round) };
            // SAFETY: as above.
            unsafe { evaluate(black_box(&floats), &mut polynomial) };
        }
        polynomial
            .iter()
            .fold(check, |sum, number| sum.rotate_left(5) ^ u64::from(number.to_bits()))
    })
}

/// Multiplies, shifts, compares and selects; eight numbers at once.
#[target_feature(enable = "avx2")]
fn mix(numbers: &[u32], round: u32) -> u64 {
    let mut sums = [0_u32; 8];
    for chunk in numbers.chunks_exact(8) {
        for (sum, &number) in sums.iter_mut().zip(chunk) {
            let mixed = number.wrapping_mul(2_654_435_769).wrapping_add(round) ^ (number >> 15);
            *sum = (*sum).wrapping_add(mixed.max(number) & !(mixed << 3));
        }
    }
    sums.iter().fold(0, |sum, &number| sum * 31 + u64::from(number))
}

/// A polynomial by Horner's rule with fused multiplications.
#[target_feature(enable = "avx2,fma")]
fn evaluate(numbers: &[f32], results: &mut [f32]) {
    for (result, &x) in results.iter_mut().zip(numbers) {
        let mut value = 0.25_f32;
        for coefficient in [0.5, -0.75, 1.5, -0.125, 2.0] {
            value = value.mul_add(x, coefficient);
        }
        *result = value;
    }
}
