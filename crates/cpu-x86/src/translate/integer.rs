//! Integer instructions.
//!
//! Most are encoded again with other registers, and the host address of their memory operand. What has
//! RAX as an implicit operand, or might fault on the host for other reasons than memory, is written out.

use iced_x86::{Code, Instruction, MemoryOperand, Mnemonic, OpAccess, OpKind, Register};

use super::asm::{Cond, at, at_plus, in_state, low32};
use super::compile::{Compiler, Store, reads, writes};
use super::flags::FlagUse;
use super::memory::{For, number, purpose};
use super::regs::{GUEST_RAX, GUEST_RSP, S1, S2, sized};
use super::state;
use super::x87::is_x87;
use crate::op::Op;

/// A register operand that is in memory between instructions.
#[derive(Clone, Copy)]
struct Borrowed {
    number: usize,
    scratch: Register,
    read: bool,
    written: bool,
    /// It stands for the second byte of the register, rotated to be the first.
    high: bool,
}

/// Instructions that only do with their operands what their encoding says.
pub(super) fn is_plain(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        mnemonic,
        Mov | Movzx
            | Movsx
            | Movsxd
            | Movbe
            | Movnti
            | Bswap
            | Add
            | Adc
            | Sub
            | Sbb
            | Cmp
            | And
            | Or
            | Xor
            | Test
            | Inc
            | Dec
            | Neg
            | Not
            | Adcx
            | Adox
            | Shl
            | Sal
            | Shr
            | Sar
            | Rol
            | Ror
            | Rcl
            | Rcr
            | Shld
            | Shrd
            | Bsf
            | Bsr
            | Popcnt
            | Lzcnt
            | Tzcnt
            | Crc32
            | Xadd
            | Xchg
            | Andn
            | Bextr
            | Blsi
            | Blsmsk
            | Blsr
            | Bzhi
            | Pdep
            | Pext
            | Rorx
            | Sarx
            | Shlx
            | Shrx
            | Clc
            | Stc
            | Cmc
            | Seto
            | Setno
            | Setb
            | Setae
            | Sete
            | Setne
            | Setbe
            | Seta
            | Sets
            | Setns
            | Setp
            | Setnp
            | Setl
            | Setge
            | Setle
            | Setg
            | Cmovo
            | Cmovno
            | Cmovb
            | Cmovae
            | Cmove
            | Cmovne
            | Cmovbe
            | Cmova
            | Cmovs
            | Cmovns
            | Cmovp
            | Cmovnp
            | Cmovl
            | Cmovge
            | Cmovle
            | Cmovg
    )
}

/// Instructions that may have no effect at all.
pub(super) fn is_prefetch(mnemonic: Mnemonic) -> bool {
    use Mnemonic::{Prefetchnta, Prefetcht0, Prefetcht1, Prefetcht2, Prefetchw};
    matches!(mnemonic, Prefetcht0 | Prefetcht1 | Prefetcht2 | Prefetchnta | Prefetchw)
}

/// The form with a ModRM byte of what has a short form for the accumulator.
fn long_form(code: Code) -> Code {
    use Code::*;
    match code {
        Add_AL_imm8 => Add_rm8_imm8,
        Add_AX_imm16 => Add_rm16_imm16,
        Add_EAX_imm32 => Add_rm32_imm32,
        Add_RAX_imm32 => Add_rm64_imm32,
        Or_AL_imm8 => Or_rm8_imm8,
        Or_AX_imm16 => Or_rm16_imm16,
        Or_EAX_imm32 => Or_rm32_imm32,
        Or_RAX_imm32 => Or_rm64_imm32,
        Adc_AL_imm8 => Adc_rm8_imm8,
        Adc_AX_imm16 => Adc_rm16_imm16,
        Adc_EAX_imm32 => Adc_rm32_imm32,
        Adc_RAX_imm32 => Adc_rm64_imm32,
        Sbb_AL_imm8 => Sbb_rm8_imm8,
        Sbb_AX_imm16 => Sbb_rm16_imm16,
        Sbb_EAX_imm32 => Sbb_rm32_imm32,
        Sbb_RAX_imm32 => Sbb_rm64_imm32,
        And_AL_imm8 => And_rm8_imm8,
        And_AX_imm16 => And_rm16_imm16,
        And_EAX_imm32 => And_rm32_imm32,
        And_RAX_imm32 => And_rm64_imm32,
        Sub_AL_imm8 => Sub_rm8_imm8,
        Sub_AX_imm16 => Sub_rm16_imm16,
        Sub_EAX_imm32 => Sub_rm32_imm32,
        Sub_RAX_imm32 => Sub_rm64_imm32,
        Xor_AL_imm8 => Xor_rm8_imm8,
        Xor_AX_imm16 => Xor_rm16_imm16,
        Xor_EAX_imm32 => Xor_rm32_imm32,
        Xor_RAX_imm32 => Xor_rm64_imm32,
        Cmp_AL_imm8 => Cmp_rm8_imm8,
        Cmp_AX_imm16 => Cmp_rm16_imm16,
        Cmp_EAX_imm32 => Cmp_rm32_imm32,
        Cmp_RAX_imm32 => Cmp_rm64_imm32,
        Test_AL_imm8 => Test_rm8_imm8,
        Test_AX_imm16 => Test_rm16_imm16,
        Test_EAX_imm32 => Test_rm32_imm32,
        Test_RAX_imm32 => Test_rm64_imm32,
        Inc_r16 => Inc_rm16,
        Inc_r32 => Inc_rm32,
        Dec_r16 => Dec_rm16,
        Dec_r32 => Dec_rm32,
        Xchg_r16_AX => Xchg_rm16_r16,
        Xchg_r32_EAX => Xchg_rm32_r32,
        Xchg_r64_RAX => Xchg_rm64_r64,
        Mov_AL_moffs8 => Mov_r8_rm8,
        Mov_AX_moffs16 => Mov_r16_rm16,
        Mov_EAX_moffs32 => Mov_r32_rm32,
        Mov_RAX_moffs64 => Mov_r64_rm64,
        Mov_moffs8_AL => Mov_rm8_r8,
        Mov_moffs16_AX => Mov_rm16_r16,
        Mov_moffs32_EAX => Mov_rm32_r32,
        Mov_moffs64_RAX => Mov_rm64_r64,
        other => other,
    }
}

/// Whether nobody can see the flags before `insn`, unless it reads them: it is an integer instruction on
/// registers, which can't fault.
pub(super) fn is_unseen(insn: &Instruction) -> bool {
    let in_memory = (0..insn.op_count()).any(|n| insn.op_kind(n) == OpKind::Memory);
    match insn.mnemonic() {
        Mnemonic::Lea | Mnemonic::Nop => true,
        Mnemonic::Imul => !in_memory && insn.op_count() > 1,
        mnemonic => !in_memory && is_plain(mnemonic) && gpr_only(insn),
    }
}

/// Whether all register operands are general registers.
fn gpr_only(insn: &Instruction) -> bool {
    (0..insn.op_count())
        .filter(|&n| insn.op_kind(n) == OpKind::Register)
        .all(|n| insn.op_register(n).is_gpr())
}

pub(super) fn is_high_byte(register: Register) -> bool {
    matches!(register, Register::AH | Register::CH | Register::DH | Register::BH)
}

/// Makes the memory operand of `out` what [`S1`] points to.
pub(super) fn point_at_host(out: &mut Instruction) {
    out.set_memory_base(S1);
    out.set_memory_index(Register::None);
    out.set_memory_index_scale(1);
    out.set_memory_displacement64(0);
    out.set_memory_displ_size(0);
    out.set_segment_prefix(Register::None);
}

/// Whether `register` is a general register of `size` bytes.
fn is_gpr_of(register: Register, size: usize) -> bool {
    register.is_gpr() && register.size() == size
}

/// Whether more than one register operand of `insn` is a part of general register `n`.
fn uses_twice(insn: &Instruction, n: usize) -> bool {
    let is_part = |&k: &u32| {
        let register = insn.op_register(k);
        insn.op_kind(k) == OpKind::Register && register.is_gpr() && number(register) == n
    };
    (0..insn.op_count()).filter(is_part).count() > 1
}

impl Compiler<'_> {
    /// Translates an integer instruction; false, with nothing done, if it is none that can be.
    pub(super) fn integer(&mut self, insn: &Instruction, op: &Op) -> bool {
        use Mnemonic::*;
        match insn.mnemonic() {
            Nop | Endbr64 | Endbr32 => true,
            mnemonic if is_prefetch(mnemonic) => {
                self.prefetch(insn);
                true
            }
            Lfence | Mfence | Sfence => {
                self.asm.emit(insn);
                true
            }
            Lea => self.lea(insn),
            Push => self.push(insn, op),
            Pop => self.pop(insn),
            Leave => self.leave(insn),
            Cwde | Cdqe | Cbw => self.extend_rax(insn),
            Cdq | Cqo => self.extend_to_rdx(insn),
            Mul | Imul if insn.op_count() == 1 => self.multiply(insn),
            Div | Idiv => self.divide(insn),
            Cmpxchg => self.compare_exchange(insn),
            Mulx => self.mulx(insn),
            Cmpxchg8b | Cmpxchg16b => self.compare_exchange_pair(insn),
            Imul => self.plain(insn),
            // Undefined.
            Bswap if insn.op0_register().size() == 2 => false,
            Bt | Bts | Btr | Btc => {
                // With a bit number in a register, a memory operand is a bit string of any length.
                let string =
                    insn.op0_kind() == OpKind::Memory && insn.op1_kind() == OpKind::Register;
                if string { self.bit_string(insn) } else { self.plain(insn) }
            }
            Pushfq | Pushfd => self.push_flags(insn),
            Mov if self.move_home(insn) => true,
            mnemonic if is_plain(mnemonic) => self.plain(insn),
            _ => false,
        }
    }

    /// What the instruction under translation does with its operands.
    fn accesses(&self) -> &[OpAccess; 5] {
        &self.facts[self.index].accesses
    }

    /// Encodes the instruction again. False, with nothing done, if it can't be.
    pub(super) fn plain(&mut self, insn: &Instruction) -> bool {
        if !self.features.has_all(insn) {
            return false;
        }
        let mut out = *insn;
        if long_form(insn.code()) != insn.code() {
            out.set_code(long_form(insn.code()));
        }
        let in_memory = (0..insn.op_count()).any(|n| insn.op_kind(n) == OpKind::Memory);
        let Some(borrowed) = self.rename(insn, &mut out, in_memory) else { return false };
        let mut access = None;
        if in_memory {
            let size = insn.memory_size().size();
            if insn.is_vsib() || size == 0 {
                return false;
            }
            point_at_host(&mut out);
            access = Some(size);
        }
        let Some(mut code) = self.asm.encode(&out) else { return false };
        if let Some(size) = access {
            let operand = (0..insn.op_count()).find(|&n| insn.op_kind(n) == OpKind::Memory);
            let written = operand.is_some_and(|n| writes(self.accesses()[n as usize]));
            let what = purpose(insn, written);
            let aligned = super::vector::must_be_aligned(insn);
            let displacement = self.access(insn, size, what, aligned);
            if displacement != 0 {
                out.set_memory_displacement64(displacement as u64);
                out.set_memory_displ_size(1);
                let Some(displaced) = self.asm.encode(&out) else { unreachable!("{out}") };
                code = displaced;
            }
        }
        if in_memory && self.only_stores(insn) {
            let from = borrowed[0].filter(|borrowed| !borrowed.high).map(|from| from.number);
            let known = from.is_some() || borrowed[0].is_none();
            if let Some(size) = access.filter(|_| known) {
                self.is_for(Store { code, from, size });
            }
        }
        for borrowed in borrowed.iter().flatten().filter(|borrowed| borrowed.read) {
            let from = self.read_gpr(borrowed.number, borrowed.scratch);
            if borrowed.high {
                self.asm.rri(Code::VEX_Rorx_r64_rm64_imm8, borrowed.scratch, from, 8);
            }
        }
        let flags = FlagUse::of(insn);
        self.before(flags);
        self.asm.put(&code);
        self.after(flags, insn, &out);
        for borrowed in borrowed.iter().flatten().filter(|borrowed| borrowed.written) {
            if borrowed.high {
                let scratch = borrowed.scratch;
                self.asm.rri(Code::VEX_Rorx_r64_rm64_imm8, scratch, scratch, 56);
            }
            self.write_gpr(borrowed.number, borrowed.scratch);
        }
        self.slow_returns();
        true
    }

    /// Whether all that `insn` does is to store what is in a register, or a number.
    fn only_stores(&self, insn: &Instruction) -> bool {
        let accesses = self.accesses();
        insn.op0_kind() == OpKind::Memory
            && insn.op_count() == 2
            && (accesses[0], accesses[1]) == (OpAccess::Write, OpAccess::Read)
            && insn.rflags_modified() == 0
    }

    /// Replaces the general registers of `insn` by the host's, and those without by scratch registers,
    /// which are returned. `None` if there are too few of those, or a register can't be named.
    fn rename(
        &mut self,
        insn: &Instruction,
        out: &mut Instruction,
        in_memory: bool,
    ) -> Option<[Option<Borrowed>; 2]> {
        // With a memory operand, the other holds its address.
        let scratch = [S2, S1];
        let available = if in_memory { 1 } else { 2 };
        let mut borrowed: [Option<Borrowed>; 2] = [None; 2];
        for n in 0..insn.op_count() {
            if insn.op_kind(n) != OpKind::Register {
                continue;
            }
            let register = insn.op_register(n);
            if !register.is_gpr() {
                if register.is_xmm() || register.is_ymm() || is_x87(register) {
                    continue;
                }
                return None;
            }
            let guest = number(register);
            let access = self.accesses()[n as usize];
            let high = is_high_byte(register);
            let guest = if high { guest & 3 } else { guest };
            if high && writes(access) && uses_twice(insn, guest) {
                return None;
            }
            let full = match self.place_of(guest) {
                Some(full) if !high => full,
                _ => {
                    let same = |b: &Borrowed| b.number == guest && b.high == high;
                    let slot = borrowed
                        .iter()
                        .position(|b| b.as_ref().is_none_or(same))
                        .filter(|&slot| slot < available)?;
                    let entry = borrowed[slot].get_or_insert(Borrowed {
                        number: guest,
                        scratch: scratch[slot],
                        read: high,
                        written: false,
                        high,
                    });
                    // BSF and BSR leave it alone if there is no bit.
                    let scan = matches!(insn.mnemonic(), Mnemonic::Bsf | Mnemonic::Bsr);
                    let whole = register.size() >= 4 && access == OpAccess::Write && !scan;
                    let partial = writes(access) && !whole;
                    entry.read |= reads(access) || partial;
                    entry.written |= writes(access);
                    entry.scratch
                }
            };
            out.set_op_register(n, sized(full, register.size()));
        }
        Some(borrowed)
    }

    /// MOV between a general register that the host has and one that is in memory, or of a number to that: one
    /// load or store. False, with nothing done, if it is another one. (What computes gets no such operands:
    /// processors rename memory for loads and stores by the stack pointer, but not for other instructions,
    /// which would wait for what was stored.)
    fn move_home(&mut self, insn: &Instruction) -> bool {
        if insn.op0_kind() != OpKind::Register {
            return false;
        }
        let (to, size) = (number(insn.op0_register()), insn.op0_register().size());
        match insn.code() {
            Code::Mov_rm64_imm32 if self.place_of(to).is_none() => {
                self.asm.mi(Code::Mov_rm64_imm32, self.home(to), insn.immediate32() as i32);
                return true;
            }
            Code::Mov_rm64_r64 | Code::Mov_r64_rm64 | Code::Mov_rm32_r32 | Code::Mov_r32_rm32
                if insn.op1_kind() == OpKind::Register => {}
            _ => return false,
        }
        let from = number(insn.op1_register());
        match (self.place_of(to), self.place_of(from)) {
            (None, Some(register)) if size == 8 => self.write_gpr(to, register),
            (Some(register), None) if !self.is_at_hand(from, S2) => {
                let code = if size == 8 { Code::Mov_r64_rm64 } else { Code::Mov_r32_rm32 };
                self.asm.rm(code, sized(register, size), self.home(from));
            }
            _ => return false,
        }
        true
    }

    fn lea(&mut self, insn: &Instruction) -> bool {
        let to = insn.op0_register();
        let wide = match to.size() {
            8 => true,
            4 => false,
            _ => return false,
        };
        match self.place_of(number(to)).filter(|_| wide) {
            // A register that the address is computed from may be written before all is read only by
            // the last step.
            Some(host) => self.offset(insn, host),
            None => {
                self.offset(insn, S1);
                if !wide {
                    self.asm.rr(Code::Mov_r32_rm32, low32(S1), low32(S1));
                }
                self.write_gpr(number(to), S1);
            }
        }
        true
    }

    fn push(&mut self, insn: &Instruction, op: &Op) -> bool {
        let word = self.word();
        if insn.stack_pointer_increment() != -(word as i32) {
            return false;
        }
        if insn.op0_kind() == OpKind::Memory {
            self.push_memory(insn);
            return true;
        }
        let register = insn.op0_kind() == OpKind::Register;
        if register && !is_gpr_of(insn.op0_register(), word) {
            return false;
        }
        let displacement = self.access_at(GUEST_RSP, -(word as i32), For::Write);
        let to = at_plus(S1, displacement);
        if register {
            let value = self.read_gpr(number(insn.op0_register()), S2);
            self.store_word(to, value);
        } else {
            let code = if self.places.wide { Code::Mov_rm64_imm32 } else { Code::Mov_rm32_imm32 };
            self.asm.mi(code, to, op.imm as i32);
        }
        self.move_stack(-(word as i32));
        self.slow_returns();
        true
    }

    fn push_memory(&mut self, insn: &Instruction) {
        let spare = in_state(state::at::SPARE);
        let word = self.word();
        self.access_alone(insn, word, For::Read, false);
        self.load_word(S2, at(S1));
        self.asm.mr(Code::Mov_rm64_r64, spare, S2);
        self.access_at_alone(GUEST_RSP, -(word as i32), For::Write);
        self.asm.rm(Code::Mov_r64_rm64, S2, spare);
        self.store_word(at(S1), S2);
        self.move_stack(-(word as i32));
        self.slow_returns();
    }

    fn push_flags(&mut self, insn: &Instruction) -> bool {
        let code = if self.places.wide { Code::Pushfq } else { Code::Pushfd };
        if insn.code() != code {
            return false;
        }
        self.save();
        self.access_at_alone(GUEST_RSP, -(self.word() as i32), For::Write);
        self.read_flags();
        self.store_word(at(S1), S2);
        self.move_stack(-(self.word() as i32));
        self.slow_returns();
        true
    }

    /// BT and its like with a bit number in a register, which selects an element first.
    fn bit_string(&mut self, insn: &Instruction) -> bool {
        let size = insn.op1_register().size();
        let narrow = insn.memory_base().is_gpr32() || insn.memory_index().is_gpr32();
        if !matches!(size, 4 | 8) || narrow && self.places.wide {
            return false;
        }
        let (bits, sar, movsx) = if size == 8 {
            (6, Code::Sar_rm64_imm8, None)
        } else {
            (5, Code::Sar_rm64_imm8, Some(Code::Movsxd_r64_rm32))
        };
        let bit = number(insn.op1_register());
        self.save();
        self.linear(insn);
        let from = self.read_gpr(bit, S2);
        match movsx {
            Some(code) => self.asm.rr(code, S2, low32(from)),
            None => self.asm.mov(S2, from),
        }
        self.asm.ri(sar, S2, bits);
        let element = MemoryOperand::with_base_index_scale(S1, S2, size as u32);
        if self.places.wide {
            self.asm.rm(Code::Lea_r64_m, S1, element);
        } else {
            self.asm.rm(Code::Lea_r32_m, low32(S1), element);
        }
        let what = if insn.mnemonic() == Mnemonic::Bt { For::Read } else { For::Write };
        self.probe(size, what, false);
        let from = self.read_gpr(bit, S2);
        self.asm.mov(S2, from);
        self.asm.ri(Code::And_rm32_imm8, low32(S2), size as i32 * 8 - 1);
        let mut out = *insn;
        point_at_host(&mut out);
        out.set_op1_register(sized(S2, size));
        let flags = FlagUse::of(insn);
        self.before(flags);
        self.asm.emit(&out);
        self.after(flags, insn, &out);
        self.slow_returns();
        true
    }

    /// Adds to the stack pointer and leaves the flags alone.
    pub(super) fn move_stack(&mut self, by: i32) {
        self.lea_word(GUEST_RSP, GUEST_RSP, by);
    }

    fn pop(&mut self, insn: &Instruction) -> bool {
        let to = insn.op0_register();
        let word = self.word();
        let known = insn.op0_kind() == OpKind::Register && is_gpr_of(to, word);
        if !known {
            return false;
        }
        let displacement = self.access_at(GUEST_RSP, 0, For::Read);
        let from = at_plus(S1, displacement);
        if number(to) == number(Register::RSP) {
            self.load_word(GUEST_RSP, from);
            self.slow_returns();
            return true;
        }
        match self.place_of(number(to)) {
            Some(host) => self.load_word(host, from),
            None => {
                self.load_word(S2, from);
                self.write_gpr(number(to), S2);
            }
        }
        self.move_stack(word as i32);
        self.slow_returns();
        true
    }

    fn leave(&mut self, insn: &Instruction) -> bool {
        if insn.code() != if self.places.wide { Code::Leaveq } else { Code::Leaved } {
            return false;
        }
        let displacement = self.access_at(Register::RBP, 0, For::Read);
        self.lea_word(GUEST_RSP, Register::RBP, self.word() as i32);
        self.load_word(Register::RBP, at_plus(S1, displacement));
        self.slow_returns();
        true
    }

    fn extend_rax(&mut self, insn: &Instruction) -> bool {
        let part = |size| sized(GUEST_RAX, size);
        match insn.mnemonic() {
            Mnemonic::Cdqe => self.asm.rr(Code::Movsxd_r64_rm32, part(8), part(4)),
            Mnemonic::Cwde => self.asm.rr(Code::Movsx_r32_rm16, part(4), part(2)),
            _ => self.asm.rr(Code::Movsx_r16_rm8, part(2), part(1)),
        }
        true
    }

    fn extend_to_rdx(&mut self, insn: &Instruction) -> bool {
        let wide = insn.mnemonic() == Mnemonic::Cqo;
        self.asm.mov_imm(S1, if wide { 63 } else { 31 });
        if wide {
            self.asm.rrr(Code::VEX_Sarx_r64_rm64_r64, Register::RDX, GUEST_RAX, S1);
        } else {
            let (edx, eax) = (Register::EDX, low32(GUEST_RAX));
            self.asm.rrr(Code::VEX_Sarx_r32_rm32_r32, edx, eax, low32(S1));
        }
        true
    }

    /// The explicit operand of an instruction whose others are RAX and RDX: in [`S1`], loaded from
    /// memory if it is there. `None`, with nothing done, if it can't be. The flags are saved, and
    /// destroyed.
    fn explicit(&mut self, insn: &Instruction, size: usize) -> Option<()> {
        self.save();
        if insn.op0_kind() == OpKind::Memory {
            self.access_alone(insn, size, For::Read, false);
            let code = if size == 8 { Code::Mov_r64_rm64 } else { Code::Mov_r32_rm32 };
            self.asm.rm(code, sized(S1, size), at(S1));
            return Some(());
        }
        let from = self.read_gpr(number(insn.op0_register()), S1);
        self.asm.mov(S1, from);
        Some(())
    }

    /// Size of the operands of such an instruction, if it is one that is translated.
    fn explicit_size(insn: &Instruction) -> Option<usize> {
        let size = if insn.op0_kind() == OpKind::Memory {
            insn.memory_size().size()
        } else {
            insn.op0_register().size()
        };
        matches!(size, 4 | 8).then_some(size)
    }

    fn multiply(&mut self, insn: &Instruction) -> bool {
        let Some(size) = Self::explicit_size(insn) else { return false };
        let signed = insn.mnemonic() == Mnemonic::Imul;
        if self.explicit(insn, size).is_none() {
            return false;
        }
        let code = match (size, signed) {
            (8, false) => Code::Mul_rm64,
            (8, true) => Code::Imul_rm64,
            (_, false) => Code::Mul_rm32,
            (_, true) => Code::Imul_rm32,
        };
        self.asm.mov(Register::RAX, GUEST_RAX);
        self.asm.r(code, sized(S1, size));
        self.asm.mov(GUEST_RAX, Register::RAX);
        self.wrote_flags();
        self.slow_returns();
        true
    }

    /// What the host divides is known not to overflow: for an unsigned division the upper half is below
    /// the divisor; a signed one is only done if the upper half is the lower's sign, and the divisor
    /// neither 0 nor -1.
    fn divide(&mut self, insn: &Instruction) -> bool {
        let Some(size) = Self::explicit_size(insn) else { return false };
        let signed = insn.mnemonic() == Mnemonic::Idiv;
        if self.explicit(insn, size).is_none() {
            return false;
        }
        let slow = self.slow();
        let part = |register| sized(register, size);
        let wide = size == 8;
        if signed {
            // Divisors from -1 to 0 become 0 and 1.
            let (lea, cmp) = if wide {
                (Code::Lea_r64_m, Code::Cmp_rm64_imm8)
            } else {
                (Code::Lea_r32_m, Code::Cmp_rm32_imm8)
            };
            self.asm.rm(lea, part(S2), MemoryOperand::with_base_displ(S1, 1));
            self.asm.ri(cmp, part(S2), 1);
            self.asm.jcc_raw(6, slow);
            self.asm.mov_imm(S2, if wide { 63 } else { 31 });
            let (sarx, cmp) = if wide {
                (Code::VEX_Sarx_r64_rm64_r64, Code::Cmp_r64_rm64)
            } else {
                (Code::VEX_Sarx_r32_rm32_r32, Code::Cmp_r32_rm32)
            };
            self.asm.rrr(sarx, part(S2), part(GUEST_RAX), part(S2));
            self.asm.rr(cmp, part(S2), part(Register::RDX));
            self.asm.jcc(Cond::NotEqual, slow);
        } else {
            let cmp = if wide { Code::Cmp_r64_rm64 } else { Code::Cmp_r32_rm32 };
            self.asm.rr(cmp, part(Register::RDX), part(S1));
            self.asm.jcc(Cond::AboveEqual, slow);
        }
        // The flags are undefined afterwards; they stay as they were.
        self.asm.mov(S2, Register::RAX);
        self.asm.mov(Register::RAX, GUEST_RAX);
        let code = match (wide, signed) {
            (true, false) => Code::Div_rm64,
            (true, true) => Code::Idiv_rm64,
            (false, false) => Code::Div_rm32,
            (false, true) => Code::Idiv_rm32,
        };
        self.asm.r(code, part(S1));
        self.asm.mov(GUEST_RAX, Register::RAX);
        self.asm.mov(Register::RAX, S2);
        self.destroyed();
        self.slow_returns();
        true
    }

    fn compare_exchange(&mut self, insn: &Instruction) -> bool {
        let mut out = *insn;
        let size = insn.op1_register().size();
        if insn.op0_kind() != OpKind::Memory {
            return false;
        }
        let Some(borrowed) = self.rename(insn, &mut out, true) else { return false };
        point_at_host(&mut out);
        let Some(code) = self.asm.encode(&out) else { return false };
        self.access_alone(insn, size, For::Write, false);
        for borrowed in borrowed.iter().flatten() {
            self.read_gpr(borrowed.number, borrowed.scratch);
        }
        self.asm.mov(Register::RAX, GUEST_RAX);
        self.asm.put(&code);
        // As the processor left it: with operands of 32 bits, the upper half is cleared only where the
        // comparison failed.
        self.asm.mov(GUEST_RAX, Register::RAX);
        self.wrote_flags();
        for borrowed in borrowed.iter().flatten().filter(|borrowed| borrowed.written) {
            self.write_gpr(borrowed.number, borrowed.scratch);
        }
        self.slow_returns();
        true
    }

    /// MULX, for whose operands a plain translation would have too few registers.
    fn mulx(&mut self, insn: &Instruction) -> bool {
        if !self.features.has_all(insn) {
            return false;
        }
        let size = insn.op0_register().size();
        let source = if insn.op2_kind() == OpKind::Memory {
            let displacement = self.access(insn, size, For::Read, false);
            let code = if size == 8 { Code::Mov_r64_rm64 } else { Code::Mov_r32_rm32 };
            self.asm.rm(code, sized(S1, size), at_plus(S1, displacement));
            S1
        } else {
            self.read_gpr(number(insn.op2_register()), S1)
        };
        let (high, low) = (number(insn.op0_register()), number(insn.op1_register()));
        let [to_high, to_low] =
            [(high, S1), (low, S2)].map(|(n, scratch)| self.place_of(n).unwrap_or(scratch));
        let [to_high, to_low, source] = [to_high, to_low, source].map(|full| sized(full, size));
        self.asm.rrr(insn.code(), to_high, to_low, source);
        // Where both are the same, the upper half is what stays.
        for (n, from, scratch) in [(low, to_low, S2), (high, to_high, S1)] {
            if from.full_register() == scratch {
                self.write_gpr(n, scratch);
            }
        }
        self.slow_returns();
        true
    }

    /// CMPXCHG8B and CMPXCHG16B. Of the flags, only ZF changes.
    fn compare_exchange_pair(&mut self, insn: &Instruction) -> bool {
        /// ZF in RAX, as LAHF puts it there.
        const ZERO: i32 = 1 << 14;
        let mut out = *insn;
        point_at_host(&mut out);
        let size = insn.memory_size().size();
        let Some(code) = self.asm.encode(&out).filter(|_| self.features.has_all(insn)) else {
            return false;
        };
        self.save();
        self.access_alone(insn, size, For::Write, size == 16);
        self.asm.mov(S2, Register::RAX);
        self.asm.mov(Register::RAX, GUEST_RAX);
        self.asm.put(&code);
        self.asm.mov(GUEST_RAX, Register::RAX);
        self.asm.mov(Register::RAX, S2);
        self.asm.r(Code::Sete_rm8, sized(S2, 1));
        self.asm.rr(Code::Movzx_r32_rm8, low32(S2), sized(S2, 1));
        self.asm.ri(Code::Shl_rm32_imm8, low32(S2), 14);
        self.asm.ri(Code::And_rm32_imm32, Register::EAX, !ZERO);
        self.asm.rr(Code::Or_r32_rm32, Register::EAX, low32(S2));
        self.destroyed();
        self.slow_returns();
        true
    }
}
