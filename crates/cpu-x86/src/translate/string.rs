//! REP MOVS and REP STOS: by the host's own, as many elements at a time as lie in one page each of what is
//! read and what is written. In between, the guest's registers tell what is left, as an interrupt would find
//! them.

use iced_x86::{Code, Instruction, MemoryOperand, Mnemonic, OpKind, Register};

use super::asm::{Cond, Label, in_state, low32};
use super::compile::Compiler;
use super::memory::For;
use super::regs::{GUEST_RAX, S1, S2};
use super::state;
use crate::flags::bits;
use crate::host::PAGE_OFFSET;

/// log2 of the size of an element, and the bytes of the host's instruction.
fn repeated(mnemonic: Mnemonic) -> Option<(u8, &'static [u8])> {
    use Mnemonic::*;
    Some(match mnemonic {
        Movsb => (0, &[0xf3, 0xa4]),
        Movsw => (1, &[0x66, 0xf3, 0xa5]),
        Movsd => (2, &[0xf3, 0xa5]),
        Movsq => (3, &[0xf3, 0x48, 0xa5]),
        Stosb => (0, &[0xf3, 0xaa]),
        Stosw => (1, &[0x66, 0xf3, 0xab]),
        Stosd => (2, &[0xf3, 0xab]),
        Stosq => (3, &[0xf3, 0x48, 0xab]),
        _ => return None,
    })
}

impl Compiler<'_> {
    /// Translates REP MOVS or REP STOS; false, with nothing done, if `insn` is none that can be.
    pub(super) fn string(&mut self, insn: &Instruction) -> bool {
        // MOVSD is an SSE instruction, too.
        if !insn.is_string_instruction() || !insn.has_rep_prefix() && !insn.has_repne_prefix() {
            return false;
        }
        let Some((shift, host)) = repeated(insn.mnemonic()) else { return false };
        let moves = host.last().is_some_and(|opcode| matches!(opcode, 0xa4 | 0xa5));
        let plain_segment = !matches!(insn.memory_segment(), Register::FS | Register::GS);
        // With addresses of the code's width.
        let registers = [insn.op0_kind(), insn.op1_kind()];
        let width = if self.places.wide { OpKind::MemoryESRDI } else { OpKind::MemoryESEDI };
        // Engines that are compared would stop at different rounds.
        if !self.places.chains || !registers.contains(&width) || moves && !plain_segment {
            return false;
        }
        self.save();
        let (again, begin) = (self.asm.label(), self.asm.label());
        let (done, slow) = (self.asm.label(), self.slow());
        let system = in_state(state::at::SYSTEM_FLAGS);
        self.asm.jmp(begin);
        // What is beyond a page. Somebody may want the CPU's attention meanwhile.
        self.asm.bind(again);
        self.look_at_bell();
        self.asm.jcc(Cond::Equal, slow);
        self.asm.bind(begin);
        if self.places.wide {
            self.asm.rr(Code::Test_rm64_r64, Register::RCX, Register::RCX);
        } else {
            self.asm.rr(Code::Test_rm32_r32, Register::ECX, Register::ECX);
        }
        self.asm.jcc(Cond::Equal, done);
        self.asm.mi(Code::Test_rm32_imm32, system, bits::DF as i32);
        self.asm.jcc(Cond::NotEqual, slow);
        self.narrow(moves);
        if moves {
            self.moves(shift, host, slow)
        } else {
            self.fills(shift, host, slow)
        }
        self.narrow(moves);
        self.asm.jmp(again);
        self.asm.bind(done);
        self.destroyed();
        self.slow_returns();
        true
    }

    /// In code of 32 bits, takes only the lower halves of the registers that are about to change, or have.
    fn narrow(&mut self, moves: bool) {
        if self.places.wide {
            return;
        }
        self.asm.rr(Code::Mov_r32_rm32, Register::ECX, Register::ECX);
        self.asm.rr(Code::Mov_r32_rm32, Register::EDI, Register::EDI);
        if moves {
            self.asm.rr(Code::Mov_r32_rm32, Register::ESI, Register::ESI);
        }
    }

    /// Puts into [`S2`] how many elements from the host address in [`S1`] on are in its page, at most as many as
    /// `most` or RCX says. Goes to `slow` if there is none.
    fn count(&mut self, shift: u8, most: Option<MemoryOperand>, slow: Label) {
        self.asm.rr(Code::Mov_r32_rm32, low32(S2), low32(S1));
        self.asm.r(Code::Not_rm32, low32(S2));
        self.asm.ri(Code::And_rm32_imm32, low32(S2), PAGE_OFFSET as i32);
        let more = MemoryOperand::with_base_displ(S2, 1);
        self.asm.rm(Code::Lea_r32_m, low32(S2), more);
        if shift > 0 {
            self.asm.ri(Code::Shr_rm32_imm8, low32(S2), shift.into());
            // One may go on in the next page.
            self.asm.jcc(Cond::Equal, slow);
        }
        for code in [Code::Cmp_r64_rm64, Code::Cmova_r64_rm64] {
            match most {
                Some(most) => self.asm.rm(code, S2, most),
                None => self.asm.rr(code, S2, Register::RCX),
            }
        }
    }

    fn moves(&mut self, shift: u8, host: &[u8], slow: Label) {
        let [spare, source, target] =
            [state::at::SPARE, state::at::SOURCE, state::at::TARGET].map(in_state);
        let left = in_state(state::at::SPARE + 8);
        self.asm.mov(S1, Register::RSI);
        self.probe(1, For::Read, false);
        self.count(shift, None, slow);
        self.asm.mr(Code::Mov_rm64_r64, spare, S1);
        self.asm.mr(Code::Mov_rm64_r64, left, S2);
        self.asm.mov(S1, Register::RDI);
        self.probe(1, For::Write, false);
        self.count(shift, Some(left), slow);
        self.asm.rr(Code::Sub_r64_rm64, Register::RCX, S2);
        for (to, from) in [(left, Register::RCX), (source, Register::RSI), (target, Register::RDI)]
        {
            self.asm.mr(Code::Mov_rm64_r64, to, from);
        }
        self.asm.mov(Register::RCX, S2);
        self.asm.mov(Register::RDI, S1);
        self.asm.rm(Code::Mov_r64_rm64, Register::RSI, spare);
        if shift > 0 {
            self.asm.ri(Code::Shl_rm64_imm8, S2, shift.into());
        }
        self.asm.raw(host);
        for (register, before) in [(Register::RSI, source), (Register::RDI, target)] {
            self.asm.mov(register, S2);
            self.asm.rm(Code::Add_r64_rm64, register, before);
        }
        self.asm.rm(Code::Mov_r64_rm64, Register::RCX, left);
    }

    fn fills(&mut self, shift: u8, host: &[u8], slow: Label) {
        let spare = in_state(state::at::SPARE);
        let left = in_state(state::at::SPARE + 8);
        self.asm.mov(S1, Register::RDI);
        self.probe(1, For::Write, false);
        self.count(shift, None, slow);
        self.asm.rr(Code::Sub_r64_rm64, Register::RCX, S2);
        self.asm.mr(Code::Mov_rm64_r64, left, Register::RCX);
        self.asm.mr(Code::Mov_rm64_r64, spare, Register::RAX);
        self.asm.mov(Register::RCX, S2);
        let end = MemoryOperand::with_base_index_scale(Register::RDI, S2, 1 << shift);
        self.asm.rm(Code::Lea_r64_m, S2, end);
        self.asm.mov(Register::RDI, S1);
        self.asm.mov(Register::RAX, GUEST_RAX);
        self.asm.raw(host);
        self.asm.mov(Register::RDI, S2);
        self.asm.rm(Code::Mov_r64_rm64, Register::RAX, spare);
        self.asm.rm(Code::Mov_r64_rm64, Register::RCX, left);
    }
}
