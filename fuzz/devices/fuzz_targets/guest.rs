//! Any bytes are a guest, and no guest breaks its machine: see crate `hostile` for what that means.
//!
//! `cargo +nightly fuzz run --fuzz-dir fuzz/devices guest -- -max_len=65536`
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    hostile::watch::start();
    if let Err(broken) = hostile::run(bytes) {
        panic!("{broken:#}");
    }
});
