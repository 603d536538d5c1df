//! What the CPU writes to the machine's log: all of it off the path of ordinary instructions.

use std::fmt::Write;
use std::sync::Arc;

use accel::log::{Log, Topic};
use iced_x86::{Decoder, DecoderOptions, Formatter, GasFormatter};

use crate::cpu::Cpu;
use crate::interrupt::Source;

/// Appends the instructions in `source`, which is at `at`, to `text`, a line each.
pub(crate) fn disassemble(bits: u32, source: &[u8], at: u64, text: &mut String) {
    let mut decoder = Decoder::with_ip(bits, source, at, DecoderOptions::NONE);
    let mut formatter = GasFormatter::new();
    while decoder.can_decode() {
        let insn = decoder.decode();
        let _ = write!(text, "\n{:#014x}:  ", insn.ip());
        formatter.format(&insn, text);
    }
}

impl Cpu {
    /// Sets where the CPU tells of its inner life.
    pub fn set_log(&mut self, log: Arc<Log>) {
        self.log = log;
    }

    /// Tells of a block of code that was decoded from `source` at the current RIP.
    pub(crate) fn trace_block(&self, bits: u32, source: &[u8]) {
        if !self.log.wants_at(Topic::GuestCode, self.rip) {
            return;
        }
        let mut text = format!("CPU {} IN:", self.config.apic_id);
        disassemble(bits, source, self.rip, &mut text);
        self.log.line(Topic::GuestCode, format_args!("{text}"));
    }

    /// Tells of the host code at `at` that the instructions at the current RIP were translated to.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn trace_translation(&self, parts: &[(u64, &[u8])]) {
        if self.log.maps_code() {
            let rip = self.rip;
            let level = if self.cpl == 3 { "user" } else { "kernel" };
            for &(at, code) in parts {
                self.log.map_code(at, code.len(), format_args!("guest-{level}-{rip:#x}"));
            }
        }
        if self.log.wants_at(Topic::HostCode, self.rip) {
            let (id, rip) = (self.config.apic_id, self.rip);
            let len: usize = parts.iter().map(|(_, code)| code.len()).sum();
            let mut text = format!("CPU {id} OUT: [size={len}] for {rip:#x}");
            for &(at, code) in parts {
                disassemble(64, code, at, &mut text);
            }
            self.log.line(Topic::HostCode, format_args!("{text}"));
        }
    }

    /// Tells that a block at the current RIP is entered.
    #[inline(always)]
    pub(crate) fn trace_entry(&self) {
        if self.log.wants(Topic::Execution) || self.log.wants(Topic::Registers) {
            self.trace_execution();
        }
    }

    #[cold]
    fn trace_execution(&self) {
        let (id, rip) = (self.config.apic_id, self.rip);
        if self.log.wants_at(Topic::Execution, rip) {
            let (cs, cpl) = (self.seg_access[1].base, self.cpl);
            self.log.line(
                Topic::Execution,
                format_args!("Trace {id}: [cs={cs:x} rip={rip:016x} cpl={cpl}]"),
            );
        }
        if self.log.wants_at(Topic::Registers, rip) {
            let text = self.register_text(format!("CPU {id}"));
            self.log.line(Topic::Registers, format_args!("{text}"));
        }
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
        let text = self.register_text(format!("CPU Reset (CPU {})", self.config.apic_id));
        self.log.line(Topic::CpuReset, format_args!("{text}"));
    }

    /// `text` and the registers.
    fn register_text(&self, mut text: String) -> String {
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
        text
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
