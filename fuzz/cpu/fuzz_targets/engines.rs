//! Any bytes are a program, and both engines come to the same with it: interpreted and translated, and
//! by both in step. The programs are those of the test `engines` of crate `cpu-x86`, with the fuzzer's
//! bytes in place of random numbers.
//!
//! `cargo +nightly fuzz run --fuzz-dir fuzz/cpu engines -- -max_len=8192`
#![no_main]
#![cfg(target_arch = "x86_64")]

#[path = "../../../crates/cpu-x86/tests/board/mod.rs"]
mod board;
#[path = "../../../crates/cpu-x86/tests/engines/pair.rs"]
mod pair;
mod splitmix;

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use accel::Signal;
use cpu_x86::Translation;
use libfuzzer_sys::fuzz_target;

use pair::{Engine, compare};
use splitmix::Rng;

/// The interpreter with the translator, and with both in step.
fn engines() -> [[Engine; 2]; 2] {
    let translated = Translation { threshold: 2, ..Translation::default() };
    let in_step = Translation { check: true, ..translated };
    let pairs = [translated, in_step].map(|how| [Engine::new(None), Engine::new(Some(how))]);
    let signals = [0, 1].map(|n: usize| Arc::clone(&pairs[n][0].board.signals));
    // Programs that run for good are stopped in the interpreter, and then not compared.
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(Duration::from_millis(200));
            signals.iter().for_each(|signals| signals.raise(Signal::Exit));
        }
    });
    pairs
}

thread_local! {
    static ENGINES: RefCell<[[Engine; 2]; 2]> = RefCell::new(engines());
}

fuzz_target!(|bytes: &[u8]| {
    let rng = Rng::new(bytes);
    ENGINES.with_borrow_mut(|pairs| {
        for pair in pairs {
            compare(&rng, pair).unwrap_or_else(|different| panic!("{different}"));
        }
    });
});
