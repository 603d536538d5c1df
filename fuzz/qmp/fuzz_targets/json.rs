//! Any bytes, cut anywhere: no panic, the same values and errors, and what is written reads back.
//!
//! `cd fuzz/qmp && cargo +nightly fuzz run json`
#![no_main]

use libfuzzer_sys::fuzz_target;
use qmp::json::{Parser, write_compact};

fn outcomes(chunks: [&[u8]; 2]) -> Vec<Result<Vec<u8>, String>> {
    let mut parser = Parser::new();
    let mut outcomes = Vec::new();
    for mut rest in chunks {
        while let Some(outcome) = parser.next(&mut rest) {
            outcomes.push(outcome.map_err(|error| error.to_string()).map(|value| {
                let mut written = Vec::new();
                write_compact(&value, &mut written);
                written
            }));
        }
    }
    outcomes
}

fuzz_target!(|input: (usize, &[u8])| {
    let (cut, bytes) = input;
    let cut = cut % (bytes.len() + 1);
    let whole = outcomes([bytes, b""]);
    assert_eq!(whole, outcomes([&bytes[..cut], &bytes[cut..]]));
    for written in whole.into_iter().flatten() {
        // A number needs something behind it to be complete.
        let again = outcomes([&written, b"\n"]);
        assert_eq!(again, [Ok(written)]);
    }
});
