//! What a program shows that engines need not agree about: flags that the manuals leave undefined, clocks
//! and the like.
//!
//! The programs are made without: after an instruction with undefined flags, all are set. But one that
//! jumps into the middle of an instruction, or that writes to its code, executes what nobody has looked
//! at. So a program about which engines differ is run once more, by the interpreter and instruction by
//! instruction, to see whether that may be why.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use accel::{Exit, InstructionTime, Signal, Signals, Vcpu};
use cpu_x86::state::Activity;
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, RflagsBits};

use super::{Engine, HANDLER, RAM, is_vague};
use crate::splitmix::Rng;

/// Programs that are longer are not looked through to their end.
const MOST_STEPS: u32 = 1_000_000;
const ARITH: u32 = RflagsBits::OF
    | RflagsBits::SF
    | RflagsBits::ZF
    | RflagsBits::AF
    | RflagsBits::CF
    | RflagsBits::PF;

/// What is not the same in all engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Vague {
    /// Undefined flags are seen.
    Flags,
    /// An instruction has no certain result.
    Instruction,
}

/// Stops the CPU after each instruction.
struct EachInstruction {
    next: AtomicU64,
    signals: Arc<Signals>,
}

impl InstructionTime for EachInstruction {
    fn at(&self, count: u64) -> u64 {
        self.next.load(Ordering::Relaxed).max(count)
    }
    fn expire(&self, count: u64) {
        self.next.store(count + 1, Ordering::Relaxed);
        self.signals.raise(Signal::Exit);
    }
    fn idle(&self, signals: &Signals, _: u32) {
        signals.raise(Signal::Exit);
    }
}

/// An interpreter that stops after each instruction.
pub(super) struct Stepper(Engine);

impl Stepper {
    pub(super) fn new() -> Self {
        let mut engine = Engine::new(None);
        let signals = Arc::clone(&engine.board.signals);
        let time = EachInstruction { next: AtomicU64::new(1), signals };
        engine.cpu.set_instruction_time(Arc::new(time));
        Self(engine)
    }

    /// What the program that `rng` gives shows that is vague.
    pub(super) fn vagueness(&mut self, mut rng: Rng) -> Option<Vague> {
        let bits = self.0.load(&mut rng).bits();
        let Engine { cpu, board } = &mut self.0;
        let mut undefined = 0;
        for _ in 0..MOST_STEPS {
            let state = cpu.state();
            // Exceptions have pushed the flags; so has whatever else goes there.
            if state.rip == HANDLER || state.activity != Activity::Running {
                return (undefined != 0).then_some(Vague::Flags);
            }
            if let Some(insn) = fetch(board, state.rip, bits) {
                if is_vague(&insn) {
                    return Some(Vague::Instruction);
                }
                if insn.rflags_read() & undefined != 0 {
                    return Some(Vague::Flags);
                }
                undefined = undefined & !defined(&insn) | insn.rflags_undefined() & ARITH;
            }
            board.signals.clear(Signal::Exit);
            if cpu.run() != Exit::Interrupted {
                return (undefined != 0).then_some(Vague::Flags);
            }
        }
        None
    }
}

fn fetch(board: &crate::board::Board, rip: u64, bits: u32) -> Option<Instruction> {
    let len = RAM.checked_sub(rip)?.min(15);
    let mut bytes = vec![0; len as usize];
    // What is in RAM is mapped to where it is.
    board.memory.read(rip, &mut bytes).ok()?;
    Some(Decoder::with_ip(bits, &bytes, rip, DecoderOptions::AMD).decode())
}

/// The flags that have a certain value after `insn`, whatever they were.
fn defined(insn: &Instruction) -> u32 {
    use Mnemonic::*;
    let may_count_zero = match insn.mnemonic() {
        Shl | Sal | Shr | Sar | Rol | Ror | Rcl | Rcr | Shld | Shrd => {
            let last = insn.op_count() - 1;
            let by_one = insn.op_count() == 1;
            let known = insn.op_kind(last) == OpKind::Immediate8 && insn.immediate8() & 31 != 0;
            !by_one && !known
        }
        _ => insn.has_rep_prefix() || insn.has_repne_prefix(),
    };
    let certain = ARITH & insn.rflags_modified() & !insn.rflags_undefined();
    if may_count_zero { 0 } else { certain }
}
