//! Guest instructions a second on a loop of arithmetic and memory operations.

use super::Bench;
use anyhow::{Result, ensure};
use std::path::Path;
use std::time::{Duration, Instant};
use testkit::VmBuilder;

/// Times around the loop in the long run; the short one is a tenth. The difference of the two has
/// no start-up in it.
const ITERATIONS: u32 = 20_000_000;
const INSTRUCTIONS_EACH: f64 = 8.0;

pub(super) fn run(bench: &Bench) -> Result<()> {
    println!("\nloop: a loop of eight ALU and memory instructions in 32-bit protected mode");
    bench.compare(&["million guest instructions a second"], 3, |binary| {
        let long = time(binary, ITERATIONS)?;
        let short = time(binary, ITERATIONS / 10)?;
        let seconds = long.saturating_sub(short).as_secs_f64();
        let instructions = f64::from(ITERATIONS - ITERATIONS / 10) * INSTRUCTIONS_EACH;
        Ok(vec![instructions / seconds / 1e6])
    })
}

/// Runs the loop in a machine of its own, which ends when the loop does.
fn time(binary: &Path, iterations: u32) -> Result<Duration> {
    let mut code = vec![0xfa, 0xb9]; // cli; mov ecx, iterations
    code.extend_from_slice(&iterations.to_le_bytes());
    code.extend_from_slice(&[
        0xbf, 0x00, 0x00, 0x20, 0x00, // mov edi, 0x200000
        // the loop
        0x01, 0xc8, // add eax, ecx
        0x31, 0xc3, // xor ebx, eax
        0x89, 0x07, // mov [edi], eax
        0x03, 0x17, // add edx, [edi]
        0x8d, 0x34, 0x58, // lea esi, [eax+ebx*2]
        0xc1, 0xc6, 0x03, // rol esi, 3
        0x49, // dec ecx
        0x75, 0xef, // jnz to the loop
    ]);
    code.extend_from_slice(testkit::bare::DEBUG_EXIT);
    let builder = VmBuilder::new(binary)?.args(["-device", "isa-debug-exit"]).code(&code)?;
    let start = Instant::now();
    let mut vm = builder.spawn()?;
    let status = vm.wait_exit()?;
    let elapsed = start.elapsed();
    ensure!(status.code() == Some(0x21), "the loop ended with {status}: {}", vm.stderr());
    Ok(elapsed)
}
