//! The two engines against each other: programs of random instructions, run by the interpreter and
//! translated, must come to the same registers and the same memory.
//!
//! A program sets all registers, runs some instructions, and does that again, so that code becomes hot.
//! The first exception or HLT ends it. Instructions are whatever random bytes decode to: with useless
//! prefixes, across pages, into themselves; some programs write to their own code. Half of them are of 64
//! bits, the others of 32, under an operating system of 64 bits or of 32.
//!
//! Each program is run twice: interpreted and translated, and some also by both in step (`check`).
//!
//! Where they differ, and the program shows flags that the manuals leave undefined (see `vague`), they have to
//! be the same in step.
//!
//! `RHEA_ROUNDS` asks for more programs than the default, `RHEA_SEED` for one of them, both for as many from
//! that one on. The fuzz target `fuzz/cpu` takes its programs from here as well.
#![cfg(target_arch = "x86_64")]

#[path = "../board/mod.rs"]
mod board;
mod pair;
#[path = "../splitmix/mod.rs"]
mod splitmix;

use std::sync::Arc;

use accel::Signal;
use cpu_x86::Translation;

use pair::{Engine, Verdict, compare};
use splitmix::Rng;

#[test]
fn both_engines_come_to_the_same() {
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let (rounds, seed) = (number("RHEA_ROUNDS"), number("RHEA_SEED"));
    let seeds = match seed {
        Some(seed) => seed..seed + rounds.unwrap_or(1),
        None => 0..rounds.unwrap_or(3000),
    };
    let most_vague = 5 + (seeds.end - seeds.start) / 500;
    let translation = Translation { threshold: 2, ..Translation::default() };
    let mut engines = [Engine::new(None), Engine::new(Some(translation))];
    let in_step = Translation { check: true, ..translation };
    let mut checked = [Engine::new(None), Engine::new(Some(in_step))];
    let signals =
        [&engines, &checked].map(|[interpreter, _]| Arc::clone(&interpreter.board.signals));
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stop = Arc::clone(&done);
    let watchdog = std::thread::spawn(move || {
        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
            std::thread::sleep(std::time::Duration::from_millis(200));
            signals.iter().for_each(|signals| signals.raise(Signal::Exit));
        }
    });
    let (mut different, mut vague) = (None, 0);
    for seed in seeds {
        let engines = if seed % 4 == 3 { &mut checked } else { &mut engines };
        match compare(&Rng(seed), engines) {
            Ok(Verdict::Same) => {}
            Ok(Verdict::Vague) => vague += 1,
            Err(text) => {
                different = Some(format!("program {seed}:\n{text}"));
                break;
            }
        }
    }
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    watchdog.join().expect("no panic");
    assert!(different.is_none(), "{}", different.unwrap_or_default());
    println!("{vague} programs show what is undefined");
    assert!(vague <= most_vague, "{vague} programs show what is undefined");
}
