//! Bare-metal guests, assembled here: what a system sees of its CPU beyond single instructions. All of
//! them run twice, interpreted and translated.

/// Executed by the interpreter alone.
#[path = "suite.rs"]
mod interpreted;

/// Translated, where the translator can, from the second execution on.
#[cfg(target_arch = "x86_64")]
#[path = "suite.rs"]
#[allow(clippy::duplicate_mod)]
mod translated;
