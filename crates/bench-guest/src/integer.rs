//! Programs of integer instructions, as compilers make them.

use crate::random::{Random, fnv};
use crate::{Iteration, Place, Program, simple};
use anyhow::Result;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::hint::black_box;

pub(crate) const PROGRAMS: &[Program] = &[
    Program {
        name: "integer",
        about: "shifts, multiplications, rotations in a loop",
        make: integer,
    },
    Program { name: "divide", about: "greatest common divisors by division", make: divide },
    Program { name: "sieve", about: "prime numbers: byte loads and stores", make: sieve },
    Program { name: "hash", about: "FNV, CRC-32 by table, a hash map with SipHash", make: hash },
    Program { name: "sort", about: "numbers and strings", make: sort },
    Program { name: "calls", about: "indirect calls by tables of functions", make: calls },
    Program { name: "recursion", about: "direct calls and returns", make: recursion },
    Program { name: "bytecode", about: "an interpreter: indirect jumps", make: bytecode },
    Program { name: "text", about: "numbers formatted, split and parsed", make: text },
];

fn integer(_: &Place) -> Result<Iteration> {
    simple(|| {
        let (mut x, mut sum) = (black_box(88_172_645_463_325_252_u64), 0_u64);
        for _ in 0..200_000 {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            sum = sum.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(x);
            if x & 7 == 0 {
                sum = sum.rotate_left((x >> 58) as u32) ^ u64::from(x.count_ones());
            }
        }
        sum
    })
}

fn divide(_: &Place) -> Result<Iteration> {
    simple(|| {
        let mut random = Random::new(black_box(7));
        let mut sum = 0_u64;
        for _ in 0..2_000 {
            let (mut a, mut b) = (random.next() >> 8, random.next() >> 20);
            while b != 0 {
                (a, b) = (b, a % b);
            }
            sum = sum.wrapping_add(a);
        }
        sum
    })
}

fn sieve(_: &Place) -> Result<Iteration> {
    simple(|| {
        let mut composite = vec![false; black_box(300_000)];
        let mut primes = 0;
        for candidate in 2..composite.len() {
            if !composite[candidate] {
                primes += 1;
                let mut multiple = candidate * candidate;
                while multiple < composite.len() {
                    composite[multiple] = true;
                    multiple += candidate;
                }
            }
        }
        primes
    })
}

fn hash(_: &Place) -> Result<Iteration> {
    let mut table = [0_u32; 256];
    for (index, entry) in table.iter_mut().enumerate() {
        *entry = (0..8).fold(index as u32, |crc, _| {
            if crc & 1 == 1 { 0xedb8_8320 ^ (crc >> 1) } else { crc >> 1 }
        });
    }
    let mut random = Random::new(11);
    let data: Vec<u8> = (0..100_000).map(|_| random.next() as u8).collect();
    simple(move || {
        let crc = data
            .iter()
            .fold(u32::MAX, |crc, &byte| table[usize::from(crc as u8 ^ byte)] ^ (crc >> 8));
        let mut random = Random::new(black_box(13));
        let mut map = HashMap::new();
        for _ in 0..10_000 {
            *map.entry(random.next() % 4_096).or_insert(0_u64) += 1;
        }
        let most = (0..8_192).filter_map(|key| map.get(&key)).max().copied().unwrap_or(0);
        fnv(&data) ^ u64::from(crc) ^ (most << 40)
    })
}

fn sort(_: &Place) -> Result<Iteration> {
    let mut random = Random::new(17);
    let numbers: Vec<u64> = (0..20_000).map(|_| random.next()).collect();
    let words: Vec<String> = (0..3_000).map(|_| format!("{:x}", random.next() >> 30)).collect();
    simple(move || {
        let mut sorted = numbers.clone();
        sorted.sort_unstable();
        let mut stable = numbers.clone();
        stable.sort_by_key(|number| number & 0xffff);
        let mut names: Vec<&str> = words.iter().map(String::as_str).collect();
        names.sort_unstable();
        sorted[9_999] ^ stable[777] ^ fnv(names[1_234].as_bytes())
    })
}

/// Something to call by a table.
trait Step {
    fn step(&mut self, value: u64) -> u64;
}

macro_rules! steps {
    ($($name:ident: |$state:ident, $value:ident| $result:expr;)*) => {
        $(
            struct $name(u64);
            impl Step for $name {
                fn step(&mut self, $value: u64) -> u64 {
                    let $state = &mut self.0;
                    $result
                }
            }
        )*
    };
}

steps! {
    Add: |state, value| { *state += 1; value.wrapping_add(*state) };
    Xor: |state, value| { *state ^= value; value ^ (*state >> 3) };
    Rotate: |state, value| { *state += 3; value.rotate_left(*state as u32) };
    Multiply: |state, value| { *state |= 1; value.wrapping_mul(*state) };
    Swap: |state, value| std::mem::replace(state, value);
    Negate: |state, value| { *state += 7; !value ^ *state };
}

fn calls(_: &Place) -> Result<Iteration> {
    simple(|| {
        let mut random = Random::new(19);
        let mut steps: Vec<Box<dyn Step>> = (0..64)
            .map(|index| -> Box<dyn Step> {
                match random.below(6) {
                    0 => Box::new(Add(index)),
                    1 => Box::new(Xor(index)),
                    2 => Box::new(Rotate(index)),
                    3 => Box::new(Multiply(index)),
                    4 => Box::new(Swap(index)),
                    _ => Box::new(Negate(index)),
                }
            })
            .collect();
        let mut value = black_box(1);
        for _ in 0..2_000 {
            for step in &mut steps {
                value = step.step(value);
            }
        }
        value
    })
}

fn recursion(_: &Place) -> Result<Iteration> {
    fn fibonacci(n: u64) -> u64 {
        // The black box keeps one call from becoming a loop.
        if n < 2 { n } else { black_box(fibonacci(n - 1)) + fibonacci(n - 2) }
    }
    simple(|| fibonacci(black_box(23)))
}

#[derive(Clone, Copy)]
enum Code {
    Push(i64),
    Load(u8),
    Store(u8),
    Add,
    Subtract,
    Multiply,
    And,
    JumpIfNotZero(u16),
    Duplicate,
    Drop,
    End,
}

fn bytecode(_: &Place) -> Result<Iteration> {
    use Code::*;
    // Counts register 0 down to zero and mixes the counts into register 1.
    let code = vec![
        Load(1),
        Push(31),
        Multiply,
        Load(0),
        Add,
        Push(0xffff_ffff),
        And,
        Store(1),
        Load(0),
        Duplicate,
        Multiply,
        Load(2),
        Subtract,
        Duplicate,
        Store(2),
        Drop,
        Load(0),
        Push(1),
        Subtract,
        Duplicate,
        Store(0),
        JumpIfNotZero(0),
        End,
    ];
    simple(move || interpret(&code, black_box(8_000)) as u64)
}

fn interpret(code: &[Code], count: i64) -> i64 {
    let mut registers = [count, 1, 0, 0];
    let mut stack: Vec<i64> = Vec::with_capacity(16);
    let mut next = 0;
    loop {
        let code = code[next];
        next += 1;
        let mut pop = || stack.pop().unwrap_or(0);
        let result = match code {
            Code::Push(value) => value,
            Code::Load(register) => registers[usize::from(register)],
            Code::Store(register) => {
                registers[usize::from(register)] = pop();
                continue;
            }
            Code::Add => pop().wrapping_add(pop()),
            Code::Subtract => {
                let subtrahend = pop();
                pop().wrapping_sub(subtrahend)
            }
            Code::Multiply => pop().wrapping_mul(pop()),
            Code::And => pop() & pop(),
            Code::JumpIfNotZero(target) => {
                if pop() != 0 {
                    next = usize::from(target);
                }
                continue;
            }
            Code::Duplicate => {
                let top = pop();
                stack.push(top);
                top
            }
            Code::Drop => {
                pop();
                continue;
            }
            Code::End => return registers[1] ^ registers[2],
        };
        stack.push(result);
    }
}

fn text(_: &Place) -> Result<Iteration> {
    simple(|| {
        let mut random = Random::new(black_box(23));
        let mut lines = String::new();
        for index in 0..500 {
            let (a, b) = (random.next() >> 40, random.below(1_000_000) as f64 / 64.0);
            let _ = writeln!(lines, "{index},{a},{b},{:x},name-{}", a * 3, a % 97);
        }
        let mut sum = 0_u64;
        for line in lines.lines() {
            let mut fields = line.split(',');
            let mut field = || fields.next().unwrap_or_default();
            sum = sum.wrapping_add(field().parse().unwrap_or(0));
            sum = sum.wrapping_add(field().parse().unwrap_or(0));
            sum ^= field().parse::<f64>().unwrap_or(0.0).to_bits();
            sum ^= u64::from_str_radix(field(), 16).unwrap_or(0);
            sum = sum.rotate_left(1) ^ field().trim_start_matches("name-").len() as u64;
        }
        sum
    })
}
