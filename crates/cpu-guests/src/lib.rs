//! Bare-metal guests that check a CPU against the architecture manuals (AMD64 APM, Intel SDM), one topic
//! each, as multiboot images for any PC.
//!
//! A guest prints a line `FAIL what: got …, expected …` on the first serial port for each expectation
//! that is not met, `SKIP what` for what the CPU has not, and `DONE n passed, m failed` at the end. It
//! ends the machine through `isa-debug-exit` at port 0xf4: with 0 written if all is well, else 1.
//!
//! `docs/src/cpu-exactness.md` tells which of them silicon, Rhea and QEMU pass.

/// The guests: name and image.
pub const TOPICS: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/topics.rs"));

/// Those of them that need interrupt controllers, timers or devices, or a clock that goes by itself.
pub const NEEDS_MACHINE: &[&str] =
    &["apic", "hyperv", "ioapic", "kvm", "mmio", "sleep", "smm", "smp", "topology"];
