//! Hand-made hostile code, on both engines: what decoders, caches of code and translations, and precise
//! events are known to go wrong on.
//!
//! Each scene is run by the interpreter, by the translator, and by both in step; all architectural state
//! and all memory have to be the same at the end, and where the manuals say what has to come of it, it
//! has to be that.
#![cfg(target_arch = "x86_64")]

#[path = "../board/mod.rs"]
mod board;
mod debugging;
mod encoding;
mod interrupts;
mod modifying;
mod operands;
mod paging;
mod scene;
#[path = "../splitmix/mod.rs"]
mod splitmix;
mod windows;
