//! Guest time that goes by instructions: each one that a CPU executes makes time pass, so time is the
//! same whenever the guest does the same.
//!
//! What can tell the time is told exactly how many instructions came before it, and no instruction is
//! executed at which a timer is due before the timer has fired.

use std::sync::Arc;

use accel::InstructionTime;

use crate::cpu::Cpu;
use crate::entropy::Entropy;
use crate::exception::Result;
use crate::op::{Op, OpFlags};

/// How a CPU makes time pass.
pub(crate) struct Timed {
    time: Arc<dyn InstructionTime>,
    /// Instructions executed before the CPU's own count began at zero.
    before: u64,
    /// The count at which a timer is due, as it was last known.
    pub(crate) limit: u64,
}

impl Cpu {
    /// Has `time` go by the instructions that this CPU executes, and its random numbers be the same in
    /// each run. To be called before [`Cpu::set_translation`].
    pub fn set_instruction_time(&mut self, time: Arc<dyn InstructionTime>) {
        self.entropy = Entropy::fixed(self.config.apic_id.into());
        self.timed = Some(Box::new(Timed { time, before: 0, limit: 0 }));
    }

    /// The count of instructions is about to become zero.
    pub(crate) fn keep_time(&mut self) {
        if let Some(timed) = &mut self.timed {
            timed.before += self.instructions;
        }
    }

    /// Instructions executed since the machine was made.
    pub(crate) fn executed(&self) -> u64 {
        self.timed.as_ref().map_or(0, |timed| timed.before) + self.instructions
    }

    /// Lets it be as late as the instructions say; returns how many may be executed until a timer is due.
    pub(crate) fn tell_time(&mut self) -> u64 {
        let count = self.executed();
        let Some(timed) = &mut self.timed else { return u64::MAX };
        timed.limit = timed.time.at(count);
        timed.limit.saturating_sub(count)
    }

    /// Fires the timers that are due.
    pub(crate) fn fire_timers(&mut self) {
        while self.tell_time() == 0 {
            if let Some(timed) = &self.timed {
                timed.time.expire(self.executed());
            }
        }
    }

    /// Lets time pass until one of `wake` is raised; false if time does not go by instructions.
    pub(crate) fn idle(&mut self, wake: u32) -> bool {
        self.tell_time();
        let Some(timed) = &self.timed else { return false };
        timed.time.idle(&self.signals, wake);
        true
    }

    /// As [`Cpu::execute`], with the time told before each instruction. Stops before the first one, but
    /// for the first of all, at which a timer is due.
    #[cold]
    #[inline(never)]
    pub(crate) fn execute_timed(&mut self, ops: &[Op]) -> Result {
        let mut result = Ok(());
        for (n, op) in ops.iter().enumerate() {
            if self.tell_time() == 0 && n != 0 {
                break;
            }
            self.rip = op.next_rip;
            result = (op.run)(self, op);
            if result.is_err() {
                if !std::mem::take(&mut self.keep_rip) {
                    self.rip = op.rip();
                }
                break;
            }
            self.instructions += u64::from(!self.is_unfinished(op));
            if self.break_block {
                break;
            }
        }
        self.break_block = false;
        result
    }

    /// Whether `op`, which was just executed, is a repeated one that has more to do: when it is left for
    /// a moment depends on the host, so only its end counts.
    pub(crate) fn is_unfinished(&self, op: &Op) -> bool {
        op.flags.intersects(OpFlags::REP | OpFlags::REPNE)
            && !op.flags.contains(OpFlags::BRANCH)
            && self.rip == op.rip()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{Arc, Mutex};

    use accel::{Exit, InstructionTime, Signal, Signals, Vcpu};
    use iced_x86::code_asm::*;

    use crate::cpu::{Cpu, Translation};
    use crate::testing::{load, long_mode};

    /// Stops the CPU at a count of instructions.
    struct StopAt {
        count: AtomicU64,
        signals: Mutex<Option<Arc<Signals>>>,
    }

    impl InstructionTime for StopAt {
        fn at(&self, count: u64) -> u64 {
            if self.signals.lock().unwrap().is_some() {
                self.count.load(Ordering::Relaxed)
            } else {
                assert!(count <= self.count.load(Ordering::Relaxed), "stopped too late");
                u64::MAX
            }
        }
        fn expire(&self, count: u64) {
            assert_eq!(count, self.count.load(Ordering::Relaxed));
            if let Some(signals) = self.signals.lock().unwrap().take() {
                signals.raise(Signal::Exit);
            }
        }
        fn idle(&self, _: &Signals, _: u32) {}
    }

    /// A program with loops, calls, faults of the TLB, and instructions that are interpreted.
    fn program() -> Cpu {
        let cpu = long_mode();
        load(&cpu, |a| {
            let (mut top, mut inner, mut function) =
                (a.create_label(), a.create_label(), a.create_label());
            a.mov(ecx, 12).unwrap();
            a.set_label(&mut top).unwrap();
            a.mov(edx, 3).unwrap();
            a.set_label(&mut inner).unwrap();
            a.add(rax, rdx).unwrap();
            a.mov(qword_ptr(0x2_0000 + 0x1000), rax).unwrap();
            a.dec(edx).unwrap();
            a.jne(inner).unwrap();
            a.cpuid().unwrap();
            a.mov(ecx, dword_ptr(0x2_0000)).unwrap();
            a.inc(ecx).unwrap();
            a.mov(dword_ptr(0x2_0000), ecx).unwrap();
            a.call(function).unwrap();
            a.mov(edi, 0x3_0000).unwrap();
            a.mov(ecx, 100).unwrap();
            a.rep().stosb().unwrap();
            a.cmp(dword_ptr(0x2_0000), 12).unwrap();
            a.jb(top).unwrap();
            a.mov(eax, 77).unwrap();
            a.hlt().unwrap();
            a.set_label(&mut function).unwrap();
            a.xor(ebx, ecx).unwrap();
            a.lea(rsi, rbx + rcx * 2).unwrap();
            a.ret().unwrap();
        });
        cpu
    }

    /// The state after `count` instructions, and how many were executed in fact.
    fn after(engine: Option<Translation>, count: u64) -> (crate::CpuState, u64) {
        let mut cpu = program();
        let signals = Mutex::new(Some(cpu.signals()));
        let time = StopAt { count: AtomicU64::new(count), signals };
        cpu.set_instruction_time(Arc::new(time));
        assert!(cpu.set_translation(engine));
        match cpu.run() {
            Exit::Interrupted | Exit::Halt { .. } => {}
            exit => panic!("{exit:?}"),
        }
        (cpu.save(), cpu.executed())
    }

    /// Both engines stop at every count, in the same state.
    #[test]
    fn code_stops_at_any_count() {
        let eager = Translation { threshold: 1, ..Translation::default() };
        let later = Translation { threshold: 4, ..eager };
        for count in 1..315 {
            let (state, executed) = after(None, count);
            assert_eq!(executed, count);
            for engine in [eager, later] {
                let (other, executed) = after(Some(engine), count);
                assert_eq!(executed, count, "{engine:?}");
                assert_eq!(state, other, "{engine:?} after {count}");
            }
        }
    }
}
