//! What KVM offers its guests (Linux's documentation, virt/kvm/x86: "cpuid", "msr", "hypercalls"): a clock
//! that needs no calibration and no exit to be read, and calls of the hypervisor.
//!
//! The clock is a structure in guest memory, one for each CPU, that says how to make nanoseconds from the
//! time-stamp counter. Guest time and the counter go by one clock here, which stands still while the
//! machine is stopped. So what is written down is where the counter is at time zero and its rate, and
//! that is the same for as long as the guest leaves the counter alone: it is written when the guest asks
//! for it and when the counter is moved, and all CPUs with the same counter have the same structure,
//! which the flag for a stable clock promises.
//!
//! Another structure tells of stolen time: in which a CPU was to execute, and the host had its thread wait. It
//! is renewed when the CPU begins to execute, and from time to time while it does. Where the guest may tell of
//! ends of interrupts by a flag in memory is the interrupt controller's business.
//!
//! A guest may also ask to be told of pages that the host has yet to fetch, so that it does something else
//! meanwhile. That is the host's to tell or not; ours fetches pages while the CPU waits, and never has anything to
//! tell. The registers are there, as kernels and test programs write to them.
//!
//! Where Hyper-V's interface is offered as well, calls are its calls once the guest has said what it is.
//!
//! A nested guest has none of it but the structure in memory: calls are undefined to it, unless its
//! hypervisor intercepts them.

use std::sync::atomic::{Ordering, fence};

use accel::Signal;
use iced_x86::{Code, Instruction};

use crate::cpu::Cpu;
use crate::exception::{Exception, Result};
use crate::feature::Word;
use crate::op::{Handler, Op};
use crate::reg::{RAX, RBX, RCX};

/// Register numbers. The first interface had others, which do the same.
pub(crate) mod index {
    pub(crate) const OLD_WALL_CLOCK: u32 = 0x11;
    pub(crate) const OLD_SYSTEM_TIME: u32 = 0x12;
    pub(crate) const WALL_CLOCK: u32 = 0x4b56_4d00;
    pub(crate) const SYSTEM_TIME: u32 = 0x4b56_4d01;
    pub(crate) const ASYNC_PF: u32 = 0x4b56_4d02;
    pub(crate) const STEAL_TIME: u32 = 0x4b56_4d03;
    pub(crate) const PV_EOI: u32 = 0x4b56_4d04;
    pub(crate) const ASYNC_PF_INT: u32 = 0x4b56_4d06;
    pub(crate) const ASYNC_PF_ACK: u32 = 0x4b56_4d07;
}

/// Bits of leaf 0x4000_0001, EAX.
pub(crate) mod has {
    pub(crate) const OLD_CLOCK: u32 = 1 << 0;
    pub(crate) const CLOCK: u32 = 1 << 3;
    pub(crate) const ASYNC_PF: u32 = 1 << 4;
    pub(crate) const STEAL_TIME: u32 = 1 << 5;
    pub(crate) const PV_EOI: u32 = 1 << 6;
    pub(crate) const ASYNC_PF_INT: u32 = 1 << 14;
    pub(crate) const STABLE_CLOCK: u32 = 1 << 24;
}

/// SYSTEM_TIME and STEAL_TIME: the clock, or the count, is on; the rest is the structure's physical address.
const ENABLED: u64 = 1;
/// STEAL_TIME: bits that must be zero.
const STEAL_RESERVED: u64 = 0x3e;
/// ASYNC_PF: bits that must be zero, one of which is of a feature that there is not, and the one for
/// interrupts, by a vector in ASYNC_PF_INT.
const ASYNC_PF_RESERVED: u64 = 0x34;
const ASYNC_PF_BY_INTERRUPT: u64 = 1 << 3;
/// The structure's flag: the clocks of all CPUs go as one.
const STABLE: u8 = 1;

/// Calls.
mod call {
    pub(super) const VAPIC_POLL_IRQ: u64 = 1;
    pub(super) const CLOCK_PAIRING: u64 = 9;
}

/// What calls return that fail.
mod error {
    pub(super) const PERM: i64 = -1;
    pub(super) const FAULT: i64 = -14;
    pub(super) const OPNOTSUPP: i64 = -95;
    pub(super) const NOSYS: i64 = -1000;
}

const NS: u64 = 1_000_000_000;

/// The registers.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct KvmMsrs {
    wall_clock: u64,
    system_time: u64,
    steal_time: u64,
    async_pf: u64,
    async_pf_vector: u8,
    /// How much stolen time the guest was told of, or need not be.
    told: u64,
    /// Whether the structure says that the clock is stable, if that is known.
    stable: Option<bool>,
}

impl KvmMsrs {
    /// The registers as they were saved. Memory has been saved, too, so nothing is written to it.
    pub(crate) fn restored(self, register: u32, value: u64) -> Option<Self> {
        match register {
            index::WALL_CLOCK => Some(Self { wall_clock: value, ..self }),
            index::SYSTEM_TIME => Some(Self { system_time: value, ..self }),
            index::STEAL_TIME => Some(Self { steal_time: value, ..self }),
            index::ASYNC_PF => Some(Self { async_pf: value, ..self }),
            index::ASYNC_PF_INT => Some(Self { async_pf_vector: value as u8, ..self }),
            _ => None,
        }
    }
}

/// How many nanoseconds a tick is at `hz`: `(ticks << shift) * multiplier >> 32`, with a negative shift to
/// the right, and the multiplier as large as 32 bits can hold.
fn scale(hz: u64) -> (i8, u32) {
    let ratio = (u128::from(NS) << 64) / u128::from(hz.max(1));
    let bits = ratio.max(1 << 31).ilog2() + 1;
    (bits as i8 - 64, (ratio >> (bits - 32)) as u32)
}

impl Cpu {
    /// What leaf 0x4000_0001 tells in EAX.
    pub(crate) fn kvm_features(&self) -> u32 {
        let features = self.config.model.features.word(Word::KvmEax);
        features | if features & has::OLD_CLOCK != 0 { has::CLOCK } else { 0 }
    }

    fn has_kvm(&self, feature: u32) -> bool {
        self.kvm_features() & feature != 0
    }

    /// Whether the guest is told how much time was stolen from it.
    pub(crate) fn tells_stolen_time(&self) -> bool {
        self.msrs.kvm.steal_time & ENABLED != 0
    }

    fn set_steal_time(&mut self, value: u64) -> bool {
        let valid = self.has_kvm(has::STEAL_TIME) && value & STEAL_RESERVED == 0;
        if valid {
            self.msrs.kvm.steal_time = value;
            // What was stolen before it asked does not concern it.
            self.end_run_time();
            self.begin_run_time();
            self.msrs.kvm.told = self.stolen_time();
            self.tell_stolen_time();
        }
        valid
    }

    fn set_async_pf(&mut self, value: u64) -> bool {
        let by_interrupt = value & ASYNC_PF_BY_INTERRUPT != 0;
        let nowhere = value & ENABLED != 0 && !self.memory.is_ram(value & !0x3f);
        let valid = self.has_kvm(has::ASYNC_PF)
            && value & ASYNC_PF_RESERVED == 0
            && (!by_interrupt || self.has_kvm(has::ASYNC_PF_INT))
            && !nowhere;
        if valid {
            self.msrs.kvm.async_pf = value;
        }
        valid
    }

    fn set_async_pf_vector(&mut self, value: u64) -> bool {
        let vector = u8::try_from(value).ok().filter(|_| self.has_kvm(has::ASYNC_PF_INT));
        if let Some(vector) = vector {
            self.msrs.kvm.async_pf_vector = vector;
        }
        vector.is_some()
    }

    /// Adds the time that was stolen since it was last told to what the guest knows of, if it is told.
    pub(crate) fn tell_stolen_time(&mut self) {
        if !self.tells_stolen_time() {
            return;
        }
        let at = self.msrs.kvm.steal_time & !0x3f;
        let stolen = self.stolen_time();
        // After a reset or a restored state the count may be another.
        let more = stolen.saturating_sub(self.msrs.kvm.told);
        self.msrs.kvm.told = stolen;
        let (mut steal, mut version) = ([0; 8], [0; 4]);
        let there = self.memory.read(at, &mut steal).is_ok();
        if !there || self.memory.read(at + 8, &mut version).is_err() {
            return;
        }
        let steal = u64::from_le_bytes(steal).wrapping_add(more);
        let odd = u32::from_le_bytes(version).wrapping_add(1) | 1;
        // The version follows the count, and it is not running less than it could: no flags, not preempted.
        let pieces = [
            (8, &odd.to_le_bytes()[..]),
            (0, &steal.to_le_bytes()),
            (12, &[0; 8]),
            (8, &odd.wrapping_add(1).to_le_bytes()),
        ];
        for (offset, piece) in pieces {
            let _ = self.memory.write(at + offset, piece);
            fence(Ordering::SeqCst);
        }
    }

    fn has_kvm_clock(&self) -> bool {
        self.kvm_features() & has::CLOCK != 0
    }

    fn has_stable_clock(&self) -> bool {
        self.kvm_features() & has::STABLE_CLOCK != 0 && self.group.clocks_agree()
    }

    /// Reads a register of this interface; `None` if there is none.
    pub(crate) fn read_kvm_msr(&self, register: u32) -> Option<u64> {
        let kvm = &self.msrs.kvm;
        match register {
            index::STEAL_TIME => self.has_kvm(has::STEAL_TIME).then_some(kvm.steal_time),
            index::ASYNC_PF => self.has_kvm(has::ASYNC_PF).then_some(kvm.async_pf),
            index::ASYNC_PF_INT => {
                self.has_kvm(has::ASYNC_PF_INT).then_some(kvm.async_pf_vector.into())
            }
            index::ASYNC_PF_ACK => self.has_kvm(has::ASYNC_PF_INT).then_some(0),
            index::PV_EOI if self.has_kvm(has::PV_EOI) => self.interrupts.read_msr(register),
            index::PV_EOI => None,
            _ if !self.has_kvm_clock() => None,
            index::WALL_CLOCK | index::OLD_WALL_CLOCK => Some(kvm.wall_clock),
            index::SYSTEM_TIME | index::OLD_SYSTEM_TIME => Some(kvm.system_time),
            _ => None,
        }
    }

    /// Writes a register of this interface; false if there is none.
    pub(crate) fn write_kvm_msr(&mut self, register: u32, value: u64) -> bool {
        match register {
            index::STEAL_TIME => return self.set_steal_time(value),
            index::ASYNC_PF => return self.set_async_pf(value),
            index::ASYNC_PF_INT => return self.set_async_pf_vector(value),
            // There is nothing that could be acknowledged.
            index::ASYNC_PF_ACK => return self.has_kvm(has::ASYNC_PF_INT),
            index::PV_EOI => {
                return self.has_kvm(has::PV_EOI) && self.interrupts.write_msr(register, value);
            }
            _ if !self.has_kvm_clock() => return false,
            index::WALL_CLOCK | index::OLD_WALL_CLOCK => {
                self.msrs.kvm.wall_clock = value;
                self.publish_wall_clock(value);
            }
            index::SYSTEM_TIME | index::OLD_SYSTEM_TIME => {
                self.msrs.kvm.system_time = value;
                self.publish_clock();
            }
            _ => return false,
        }
        true
    }

    /// Time of day at guest time zero, in nanoseconds since 1970.
    fn wall_clock_start(&self) -> u64 {
        self.clock.time_of_day_ns().saturating_sub(self.clock.now_ns())
    }

    /// Writes the time of day at guest time zero: version, seconds, nanoseconds.
    fn publish_wall_clock(&mut self, at: u64) {
        let start = self.wall_clock_start();
        let mut body = [0; 8];
        body[..4].copy_from_slice(&((start / NS) as u32).to_le_bytes());
        body[4..].copy_from_slice(&((start % NS) as u32).to_le_bytes());
        self.write_versioned(at, 4, &body);
    }

    /// Writes how the time-stamp counter makes time, if the guest has this clock on.
    pub(crate) fn publish_clock(&mut self) {
        let system_time = self.msrs.kvm.system_time;
        if system_time & ENABLED == 0 {
            return;
        }
        let stable = self.has_stable_clock();
        self.msrs.kvm.stable = Some(stable);
        let (shift, multiplier) = scale(self.clock.tsc_hz());
        // After the version and a gap: the counter at a time, that time, and the rate.
        let mut body = [0; 24];
        body[..8].copy_from_slice(&self.msrs.tsc_offset.to_le_bytes());
        body[16..20].copy_from_slice(&multiplier.to_le_bytes());
        body[20] = shift.to_le_bytes()[0];
        body[21] = if stable { STABLE } else { 0 };
        self.write_versioned(system_time & !ENABLED, 8, &body);
    }

    /// Writes the clock anew if another CPU's counter was moved, and it is no longer or is again stable.
    pub(crate) fn renew_clock(&mut self) {
        let kvm = self.msrs.kvm;
        let stable = self.has_stable_clock();
        if kvm.system_time & ENABLED != 0 && kvm.stable != Some(stable) {
            self.publish_clock();
        }
        self.tell_partition_of_counters();
    }

    /// The time-stamp counter is another one now, or may be.
    pub(crate) fn counter_moved(&mut self) {
        self.group.set_apart(&self.member, self.msrs.tsc_offset != 0);
        self.publish_clock();
        self.tell_partition_of_counters();
    }

    /// The counter is what it was when it was saved, of all CPUs or of those so far. Memory may not be there
    /// yet, so the clock is looked at when the CPU runs.
    pub(crate) fn counter_restored(&mut self) {
        self.group.set_apart(&self.member, self.msrs.tsc_offset != 0);
        self.signals.raise(Signal::Flush);
    }

    /// Writes a structure that begins with a version, which is odd while `body`, `offset` bytes into it, is
    /// not consistent. What lies outside RAM is lost.
    fn write_versioned(&mut self, at: u64, offset: u64, body: &[u8]) {
        let mut version = [0; 4];
        if self.memory.read(at, &mut version).is_err() {
            return;
        }
        let odd = u32::from_le_bytes(version).wrapping_add(1) | 1;
        let ends = [odd, odd.wrapping_add(1)];
        let pieces = [(0, &ends[0].to_le_bytes()[..]), (offset, body), (0, &ends[1].to_le_bytes())];
        for (offset, piece) in pieces {
            let Some(at) = at.checked_add(offset) else { return };
            // The pages of a structure may be on different sides of RAM's end.
            let _ = self.memory.write(at, piece);
            fence(Ordering::SeqCst);
        }
        // It may be in a page of code.
        self.break_block = true;
    }

    /// Whether VMCALL and VMMCALL are calls of this interface.
    fn has_hypercalls(&self) -> bool {
        self.config.model.kvm && !self.svm.guest
    }

    /// VMCALL or VMMCALL that nobody intercepts: call RAX with what is in RBX and RCX, 32 bits of each outside
    /// 64-bit mode. The result is in RAX.
    pub(crate) fn hypercall(&mut self) -> Result {
        if self.takes_hyperv_calls() {
            return self.hyperv_call();
        }
        if !self.has_hypercalls() {
            return Err(Exception::UD);
        }
        let wide = self.mode.is_64();
        let get = |register: u8| {
            if wide { self.reg::<u64>(register) } else { self.reg::<u32>(register).into() }
        };
        let (number, first, second) = (get(RAX), get(RBX), get(RCX));
        let result = match number {
            _ if self.cpl != 0 => error::PERM,
            // Nothing is held back from a CPU that could be polled for.
            call::VAPIC_POLL_IRQ => 0,
            call::CLOCK_PAIRING => self.pair_clocks(first, second),
            _ => error::NOSYS,
        };
        if wide {
            self.set_reg(RAX, result as u64);
        } else {
            self.set_reg(RAX, result as u32);
        }
        Ok(())
    }

    /// Writes the time of day (clock 0, the only one) and the time-stamp counter of the same moment: seconds,
    /// nanoseconds, counter, flags.
    fn pair_clocks(&mut self, at: u64, clock: u64) -> i64 {
        if clock != 0 || !self.has_kvm_clock() {
            return error::OPNOTSUPP;
        }
        let day = self.clock.time_of_day_ns();
        let mut pair = [0; 64];
        let words = [day / NS, day % NS, self.tsc()];
        for (bytes, word) in pair.as_chunks_mut::<8>().0.iter_mut().zip(words) {
            *bytes = word.to_le_bytes();
        }
        self.break_block = true;
        if self.memory.write(at, &pair).is_ok() { 0 } else { error::FAULT }
    }
}

fn vmcall(cpu: &mut Cpu, _: &Op) -> Result {
    cpu.hypercall()
}

/// The handler of `insn`, if it is Intel's way to call a hypervisor; AMD's is with the instructions of SVM.
pub(crate) fn select(insn: &Instruction) -> Option<Handler> {
    (insn.code() == Code::Vmcall).then_some(vmcall as Handler)
}

#[cfg(test)]
mod tests {
    use iced_x86::code_asm::*;

    use super::*;
    use crate::testing::{load, long_mode, run_to_halt};

    const AT: u64 = 0x2_0000;

    fn read<const N: usize>(cpu: &Cpu, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        cpu.memory.read(at, &mut bytes).unwrap();
        bytes
    }

    /// What a guest makes of its clock for a value of the time-stamp counter.
    fn time(cpu: &Cpu, tsc: u64) -> u64 {
        let word = |at| u64::from_le_bytes(read(cpu, AT + at));
        let multiplier = u32::from_le_bytes(read(cpu, AT + 24));
        let [shift, _] = read(cpu, AT + 28);
        let ticks = u128::from(tsc.wrapping_sub(word(8)));
        let shift = shift as i8;
        let ticks = if shift < 0 { ticks >> -shift } else { ticks << shift };
        word(16) + ((ticks * u128::from(multiplier)) >> 32) as u64
    }

    #[test]
    fn rates_come_out_to_the_nanosecond() {
        for hz in [1, 1000, 999_999_937, NS, 2_400_000_000, 5_000_000_000_000] {
            let (shift, multiplier) = scale(hz);
            let ticks = u128::from(hz) * 1000;
            let shifted = if shift < 0 { ticks >> -shift } else { ticks << shift };
            let ns = (shifted * u128::from(multiplier)) >> 32;
            let off = ns.abs_diff(u128::from(NS) * 1000);
            assert!(off <= (u128::from(NS) * 1000) >> 31, "{hz}: {ns}");
        }
        assert_eq!(scale(NS), (1, 1 << 31));
    }

    #[test]
    fn the_clock_is_guest_time_wherever_the_counter_is_moved() {
        let mut cpu = long_mode();
        assert!(cpu.write_msr(index::SYSTEM_TIME, AT | ENABLED));
        for offset in [0u64, 1 << 40, 5u64.wrapping_neg()] {
            let now = cpu.clock.tsc();
            assert!(cpu.write_msr(crate::msr::index::TSC, now.wrapping_add(offset)));
            let (before, tsc, after) = (cpu.clock.now_ns(), cpu.tsc(), cpu.clock.now_ns());
            let time = time(&cpu, tsc);
            assert!((before..=after + 1000).contains(&time), "{before} {time} {after}");
            let [version, ..] = read::<4>(&cpu, AT);
            assert_eq!(version % 2, 0);
            assert_eq!(read::<1>(&cpu, AT + 29)[0], u8::from(cpu.msrs.tsc_offset == 0));
        }
    }

    #[test]
    fn a_clock_that_is_off_or_nowhere_is_not_written() {
        let mut cpu = long_mode();
        assert!(cpu.write_msr(index::OLD_SYSTEM_TIME, AT));
        assert!(cpu.write_msr(index::SYSTEM_TIME, u64::MAX));
        assert!(cpu.write_msr(index::WALL_CLOCK, u64::MAX - 3));
        assert_eq!(read(&cpu, AT), [0; 32]);
        assert_eq!(cpu.read_msr(index::OLD_SYSTEM_TIME), Some(u64::MAX));
        let state = accel::Vcpu::state(&cpu);
        accel::Vcpu::reset(&mut cpu);
        assert_eq!(cpu.read_msr(index::SYSTEM_TIME), Some(0));
        accel::Vcpu::set_state(&mut cpu, &state).unwrap();
        assert_eq!(cpu.read_msr(index::SYSTEM_TIME), Some(u64::MAX));
    }

    #[test]
    fn calls_answer_by_either_instruction() {
        for intel in [false, true] {
            let mut cpu = long_mode();
            load(&cpu, |a| {
                a.mov(eax, 0x777).unwrap();
                if intel {
                    a.vmcall().unwrap()
                } else {
                    a.vmmcall().unwrap()
                };
                a.mov(r8, rax).unwrap();
                a.mov(eax, call::VAPIC_POLL_IRQ as u32).unwrap();
                if intel {
                    a.vmcall().unwrap()
                } else {
                    a.vmmcall().unwrap()
                };
                a.hlt().unwrap();
            });
            run_to_halt(&mut cpu);
            assert_eq!((cpu.gpr[8] as i64, cpu.gpr[0]), (error::NOSYS, 0), "VMCALL {intel}");
        }
    }
}
