//! Programs that several CPUs run with the same translations.

use std::thread;

use iced_x86::code_asm::*;

use accel::{Exit, Vcpu};

use crate::counters::Count;
use crate::cpu::{Cpu, Translation};
use crate::testing::{STACK, load, long_mode_cpus};

/// How many functions there are, and how often all are called.
const FUNCTIONS: u32 = 2000;
const ROUNDS: u32 = 20;

/// CPUs that each call all functions, which add their numbers to RAX, with a code buffer of `buffer` bytes.
fn cpus(count: u32, buffer: usize) -> Vec<Cpu> {
    let mut cpus = long_mode_cpus(count);
    load(&cpus[0], |a| {
        let mut round = a.create_label();
        let mut functions: Vec<_> = (0..FUNCTIONS).map(|_| a.create_label()).collect();
        a.xor(eax, eax).unwrap();
        a.mov(ebx, ROUNDS).unwrap();
        a.set_label(&mut round).unwrap();
        functions.iter().for_each(|&function| a.call(function).unwrap());
        a.dec(ebx).unwrap();
        a.jne(round).unwrap();
        a.hlt().unwrap();
        for (number, function) in (0..).zip(&mut functions) {
            let mut odd = a.create_label();
            a.set_label(function).unwrap();
            a.test(ebx, 1).unwrap();
            a.jne(odd).unwrap();
            a.nop().unwrap();
            a.set_label(&mut odd).unwrap();
            a.add(rax, number).unwrap();
            a.ret().unwrap();
        }
    });
    let start = cpus[0].rip;
    let how = Translation { threshold: 1, buffer, ..Translation::default() };
    for (n, cpu) in (0..).zip(&mut cpus) {
        assert!(cpu.set_translation(Some(how)), "the host can translate");
        (cpu.rip, cpu.gpr[4]) = (start, STACK - 0x1000 * n);
    }
    cpus
}

fn check(cpu: &mut Cpu) {
    assert!(matches!(cpu.run(), Exit::Halt { .. }));
    let sum = u64::from(FUNCTIONS) * u64::from(FUNCTIONS - 1) / 2 * u64::from(ROUNDS);
    assert_eq!(cpu.gpr[0], sum);
}

#[test]
fn what_one_cpu_has_translated_others_run() {
    let mut cpus = cpus(2, 16 << 20);
    cpus.iter_mut().for_each(check);
    let made = |cpu: &Cpu| cpu.counters.value(Count::Made);
    assert!(made(&cpus[0]) >= u64::from(FUNCTIONS) && made(&cpus[1]) == 0);
}

#[test]
fn a_full_buffer_is_replaced_while_others_run_in_it() {
    let mut cpus = cpus(3, 0);
    thread::scope(|scope| {
        cpus.iter_mut().for_each(|cpu| drop(scope.spawn(|| check(cpu))));
    });
    let flushes: u64 = cpus.iter().map(|cpu| cpu.counters.value(Count::Flushes)).sum();
    assert!(flushes >= u64::from(ROUNDS), "flushed {flushes} times");
}
