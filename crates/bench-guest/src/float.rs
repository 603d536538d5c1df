//! Floating point and packed integers, in instructions that every x86-64 has (SSE2).

use crate::random::Random;
use crate::{Iteration, Place, Program, simple};
use anyhow::Result;
use std::hint::black_box;

pub(crate) const PROGRAMS: &[Program] = &[
    Program { name: "double", about: "planets: scalar double, roots, divisions", make: double },
    Program { name: "convert", about: "between integers, floats and doubles", make: convert },
    Program { name: "matrix", about: "product of matrices: packed double", make: matrix },
    Program { name: "pixels", about: "pictures blended: packed integers", make: pixels },
];

#[derive(Clone, Copy)]
struct Body {
    position: [f64; 3],
    speed: [f64; 3],
    mass: f64,
}

fn double(_: &Place) -> Result<Iteration> {
    let mut random = Random::new(29);
    let mut number = move || random.below(1 << 20) as f64 / f64::from(1 << 20) - 0.5;
    let bodies: [Body; 5] = std::array::from_fn(|_| Body {
        position: [number() * 30.0, number() * 30.0, number() * 30.0],
        speed: [number(), number(), number()],
        mass: 0.1 + number().abs(),
    });
    simple(move || {
        let mut bodies = black_box(bodies);
        for _ in 0..3_000 {
            advance(&mut bodies, 0.001);
        }
        bodies.iter().fold(0, |sum, body| sum ^ body.position[0].to_bits())
    })
}

/// One step of a system of bodies that attract each other.
fn advance(bodies: &mut [Body; 5], time: f64) {
    for first in 0..bodies.len() {
        for second in first + 1..bodies.len() {
            let (a, b) = (bodies[first], bodies[second]);
            let apart: [f64; 3] = std::array::from_fn(|axis| a.position[axis] - b.position[axis]);
            let square = apart.iter().map(|x| x * x).sum::<f64>() + 0.01;
            let force = time / (square * square.sqrt());
            for (axis, apart) in apart.into_iter().enumerate() {
                bodies[first].speed[axis] -= apart * b.mass * force;
                bodies[second].speed[axis] += apart * a.mass * force;
            }
        }
    }
    for body in bodies {
        for axis in 0..3 {
            body.position[axis] += time * body.speed[axis];
        }
    }
}

fn convert(_: &Place) -> Result<Iteration> {
    let mut random = Random::new(31);
    let numbers: Vec<i64> = (0..20_000).map(|_| random.next() as i64 >> 24).collect();
    simple(move || {
        let mut sum = 0_i64;
        for &number in black_box(&numbers) {
            let narrow = (number as f64 * 0.731) as f32;
            let root = narrow.abs().sqrt();
            sum = sum.wrapping_add(root as i64).wrapping_add((root as f64 * 1e3) as i32 as i64);
            if root > 900.5 {
                sum ^= number;
            }
        }
        sum as u64
    })
}

const SIDE: usize = 80;

fn matrix(_: &Place) -> Result<Iteration> {
    let mut random = Random::new(37);
    let mut some = move || -> Vec<[f64; SIDE]> {
        let mut number = || random.below(2_048) as f64 / 512.0 - 2.0;
        (0..SIDE).map(|_| std::array::from_fn(|_| number())).collect()
    };
    let (left, right) = (some(), some());
    simple(move || {
        let mut product = vec![[0.0; SIDE]; SIDE];
        for (row, sums) in black_box(&left).iter().zip(&mut product) {
            for (factor, row) in row.iter().zip(&right) {
                for (sum, number) in sums.iter_mut().zip(row) {
                    *sum += factor * number;
                }
            }
        }
        product.iter().flatten().fold(0, |sum: u64, number| sum.rotate_left(7) ^ number.to_bits())
    })
}

fn pixels(_: &Place) -> Result<Iteration> {
    let mut random = Random::new(41);
    let mut picture = move || -> Vec<u8> { (0..200_000).map(|_| random.next() as u8).collect() };
    let (above, below) = (picture(), picture());
    let mut mixed = vec![0; above.len()];
    simple(move || {
        let weight = black_box(77_u16);
        for ((mixed, &above), &below) in mixed.iter_mut().zip(&above).zip(&below) {
            let sum = u16::from(above) * weight + u16::from(below) * (256 - weight);
            *mixed = (sum >> 8) as u8;
        }
        let difference: u64 =
            mixed.iter().zip(&above).map(|(&a, &b)| u64::from(a.abs_diff(b))).sum();
        let largest = mixed.iter().copied().max().unwrap_or(0);
        difference * 256 + u64::from(largest)
    })
}
