//! What the CPU writes to the machine's log: all of it off the path of ordinary instructions.

use std::fmt::Write;
use std::sync::Arc;

use accel::log::{Log, Topic};
use iced_x86::{Decoder, DecoderOptions, Formatter, GasFormatter};

use crate::cpu::Cpu;
use crate::interrupt::Source;

impl Cpu {
    /// Sets where the CPU tells of its inner life.
    pub fn set_log(&mut self, log: Arc<Log>) {
        self.log = log;
    }

    /// Tells of a block of code that was decoded from `source` at the current RIP.
    pub(crate) fn trace_block(&self, bits: u32, source: &[u8]) {
        if !self.log.wants(Topic::GuestCode) {
            return;
        }
        let mut text = format!("CPU {} IN:", self.config.apic_id);
        let mut decoder = Decoder::with_ip(bits, source, self.rip, DecoderOptions::NONE);
        let mut formatter = GasFormatter::new();
        while decoder.can_decode() {
            let insn = decoder.decode();
            let _ = write!(text, "\n{:#014x}:  ", insn.ip());
            formatter.format(&insn, &mut text);
        }
        self.log.line(Topic::GuestCode, format_args!("{text}"));
    }

    /// Tells of an event that is about to be delivered through `vector`.
    pub(crate) fn trace_event(&self, vector: u8, source: Source, error_code: Option<u16>) {
        if !self.log.wants(Topic::Interrupts) {
            return;
        }
        let code = error_code.map(|code| format!(" e={code:04x}")).unwrap_or_default();
        self.log.line(
            Topic::Interrupts,
            format_args!(
                "CPU {} v={vector:02x} {source:?}{code} cpl={} ip={:04x}:{:016x} sp={:016x} cr2={:016x}",
                self.config.apic_id,
                self.cpl,
                self.seg[1].selector,
                self.rip,
                self.gpr[4],
                self.cr2
            ),
        );
    }

    /// Tells of the state that a reset ends.
    pub(crate) fn trace_reset(&self) {
        if !self.log.wants(Topic::CpuReset) {
            return;
        }
        let mut text = format!("CPU Reset (CPU {})", self.config.apic_id);
        for (i, value) in self.gpr[..16].iter().enumerate() {
            let _ = write!(text, "{}r{i:<2}={value:016x}", if i % 4 == 0 { "\n" } else { " " });
        }
        let _ = write!(
            text,
            "\nrip={:016x} rflags={:08x} cpl={}\ncr0={:08x} cr2={:016x} cr3={:016x} cr4={:08x} efer={:04x}",
            self.rip,
            self.rflags(),
            self.cpl,
            self.cr0,
            self.cr2,
            self.cr3,
            self.cr4,
            self.efer
        );
        self.log.line(Topic::CpuReset, format_args!("{text}"));
    }

    /// Tells of a model-specific register that is not there, or refused the value.
    pub(crate) fn trace_msr(&self, access: &str, register: u32) {
        self.log.line(
            Topic::Unimplemented,
            format_args!(
                "CPU {}: {access} of MSR {register:#x} refused at {:#x}",
                self.config.apic_id, self.rip
            ),
        );
    }
}
