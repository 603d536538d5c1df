//! The JSON dialect of QMP: an incremental parser and a writer.
//!
//! QMP is JSON (RFC 8259) with the habits that QEMU's monitor has shown for years and that clients
//! have come to rely on:
//!
//! * the input is a stream of bytes, not of lines: a value ends where its last token ends;
//! * strings may stand in single quotes, and `\'` is an escape;
//! * code points that can never be assigned (non-characters, surrogates) are refused, and the
//!   overlong form `C0 80` of U+0000 is accepted;
//! * an error costs one message, after which the parser skips to the next byte that promises a fresh
//!   start: a structural character, a control character other than tab, `FE` or `FF`;
//! * output separates with `": "` and `", "` and escapes everything that isn't printable ASCII.
//!
//! Invariants: memory is bounded by [`Limits`], no input makes the parser recurse or panic, and how
//! the stream was cut into pieces never changes what comes out.

mod build;
mod lexer;
mod parser;
mod text;
mod write;

pub use lexer::Limits;
pub use parser::{JsonError, Parser};
pub use write::{write_compact, write_pretty, write_string};
