//! Programs that wait for memory.

use crate::random::{Random, fnv};
use crate::{Iteration, Place, Program, simple};
use anyhow::Result;
use std::hint::black_box;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) const PROGRAMS: &[Program] = &[
    Program {
        name: "memcpy",
        about: "copies of 16 bytes to 1 MiB, by the C library",
        make: copies,
    },
    Program { name: "chase", about: "pointers chased through 2 MiB", make: chase },
    Program { name: "atomic", about: "locked instructions and a mutex", make: atomic },
];

fn copies(_: &Place) -> Result<Iteration> {
    let mut random = Random::new(47);
    let from: Vec<u8> = (0..1 << 20).map(|_| random.next() as u8).collect();
    let mut to = vec![0; from.len()];
    simple(move || {
        for (size, times) in [(16, 2_000), (200, 1_000), (4_096, 200), (65_536, 16), (1 << 20, 2)] {
            for index in 0..times {
                let at = (index * 61) % (from.len() - size + 1);
                to[at..at + size].copy_from_slice(black_box(&from[at..at + size]));
            }
        }
        fnv(&to[..1_000])
    })
}

/// A cache line with a pointer to another.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(u32);

fn chase(_: &Place) -> Result<Iteration> {
    let count = (2 << 20) / size_of::<Line>();
    // One cycle through all lines (Sattolo's shuffle).
    let mut order: Vec<u32> = (0..count as u32).collect();
    let mut random = Random::new(53);
    for last in (1..count).rev() {
        order.swap(last, random.below(last));
    }
    let lines: Vec<Line> = order.into_iter().map(Line).collect();
    simple(move || {
        let mut at = black_box(0_u32);
        let mut sum = 0_u64;
        for _ in 0..count * 3 {
            at = lines[at as usize].0;
            sum = sum.wrapping_add(u64::from(at));
        }
        sum
    })
}

fn atomic(_: &Place) -> Result<Iteration> {
    simple(|| {
        let (counter, mutex) = (AtomicU64::new(0), Mutex::new(1_u64));
        for index in 0..30_000_u64 {
            let old = counter.fetch_add(index, Ordering::SeqCst);
            let _ =
                counter.compare_exchange(old + index, old ^ 1, Ordering::SeqCst, Ordering::Relaxed);
            if let Ok(mut value) = mutex.lock() {
                *value = value.wrapping_mul(31).wrapping_add(old);
            }
        }
        let value = mutex.lock().map_or(0, |value| *value);
        value ^ counter.load(Ordering::SeqCst)
    })
}
