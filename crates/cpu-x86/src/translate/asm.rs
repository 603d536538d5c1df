//! The assembler that translations are written with: `iced-x86`'s encoder for instructions that come
//! from the guest, bytes written directly for what every translation is made of, and labels.
//!
//! Every instruction is encoded from its decoded form with operands that the translator chose; a byte of
//! the guest's is never copied.

use iced_x86::{Code, Encoder, Instruction, MemoryOperand, OpKind, Register};

use super::compile::JumpTable;
use super::regs::{S1, S2};
use super::state::JUMP_SHIFT;
use super::state::at::TOP;

/// A place in the code that jumps go to, known by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Label(usize);

/// Conditions of jumps, as encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Cond {
    Below = 2,
    AboveEqual = 3,
    Equal = 4,
    NotEqual = 5,
    BelowEqual = 6,
    Above = 7,
    Sign = 8,
}

/// One instruction's code.
#[derive(Clone, Copy, Debug)]
pub(super) struct Encoded {
    bytes: [u8; 15],
    len: usize,
    /// One of its operands is [`S1`].
    names_s1: bool,
}

/// What a displacement leads to.
#[derive(Clone, Copy)]
enum Target {
    Label(Label),
    /// An address elsewhere.
    Fixed(u64),
}

/// Code under construction. Where it will be is known when it is finished; what is written after
/// [`Asm::go_out_of_line`] may be elsewhere than what was written before.
pub(super) struct Asm {
    encoder: Encoder,
    bytes: Vec<u8>,
    /// Length of what was written before going out of line.
    inline: Option<usize>,
    labels: Vec<Option<usize>>,
    /// Where a label was put last.
    joined: usize,
    /// The end of what may have changed [`S1`] last.
    s1_changed: usize,
    /// Where displacements of 32 bits are.
    fixups: Vec<(usize, Target)>,
}

/// Finished code, which can be placed.
pub(super) struct Finished {
    bytes: Vec<u8>,
    inline: usize,
    fixups: Vec<(usize, Target)>,
    labels: Vec<Option<usize>>,
}

/// Code that has its place.
pub(super) struct Placed {
    bytes: Vec<u8>,
    inline: usize,
    /// Addresses of what is in line and what is not.
    at: [u64; 2],
}

impl Asm {
    pub(super) fn new() -> Self {
        Self {
            encoder: Encoder::new(64),
            bytes: Vec::with_capacity(1024),
            inline: None,
            labels: Vec::new(),
            joined: 0,
            s1_changed: 0,
            fixups: Vec::new(),
        }
    }

    /// Where code was written last, if the only way here is from there.
    pub(super) fn straight(&self) -> Option<usize> {
        (self.joined != self.bytes.len()).then_some(self.bytes.len())
    }

    /// Where [`S1`] may have changed last; the same as long as it has what it had.
    pub(super) fn s1_changed(&self) -> usize {
        self.s1_changed.max(self.joined)
    }

    /// Length so far in bytes.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// What comes now is seldom run.
    pub(super) fn go_out_of_line(&mut self) {
        self.inline = Some(self.bytes.len());
    }

    pub(super) fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// Puts `label` here.
    pub(super) fn bind(&mut self, label: Label) {
        self.joined = self.bytes.len();
        self.labels[label.0] = Some(self.joined);
    }

    /// The finished code.
    pub(super) fn finish(self) -> Finished {
        let inline = self.inline.unwrap_or(self.bytes.len());
        Finished { bytes: self.bytes, inline, fixups: self.fixups, labels: self.labels }
    }

    /// Appends `insn`, or nothing if it can't be encoded.
    fn append(&mut self, insn: &Instruction) -> Result<(), iced_x86::IcedError> {
        let len = self.bytes.len();
        self.encoder.set_buffer(std::mem::take(&mut self.bytes));
        // Nothing that is encoded here is relative to where it is.
        let done = self.encoder.encode(insn, 0);
        self.bytes = self.encoder.take_buffer();
        if done.is_err() {
            self.bytes.truncate(len);
        } else if names_s1(insn) {
            self.s1_changed = self.bytes.len();
        }
        done.map(|_| ())
    }

    /// The code of `insn`, which does not depend on where it is; `None` if it can't be encoded.
    pub(super) fn encode(&mut self, insn: &Instruction) -> Option<Encoded> {
        let (start, s1_changed) = (self.bytes.len(), self.s1_changed);
        self.append(insn).ok()?;
        self.s1_changed = s1_changed;
        let len = self.bytes.len() - start;
        let mut encoded = Encoded { bytes: [0; 15], len, names_s1: names_s1(insn) };
        encoded.bytes.get_mut(..encoded.len)?.copy_from_slice(&self.bytes[start..]);
        self.bytes.truncate(start);
        Some(encoded)
    }

    /// Appends what [`Self::encode`] gave.
    pub(super) fn put(&mut self, encoded: &Encoded) {
        self.bytes.extend_from_slice(&encoded.bytes[..encoded.len]);
        if encoded.names_s1 {
            self.s1_changed = self.bytes.len();
        }
    }

    /// Encodes `insn`, which is known to be encodable.
    pub(super) fn emit(&mut self, insn: &Instruction) {
        if let Err(error) = self.append(insn) {
            unreachable!("{insn}: {error}");
        }
    }

    fn made(&mut self, insn: Result<Instruction, iced_x86::IcedError>) {
        match insn {
            Ok(insn) => self.emit(&insn),
            Err(error) => unreachable!("operands of a kind that the code has: {error}"),
        }
    }

    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// `code` with two registers.
    pub(super) fn rr(&mut self, code: Code, a: Register, b: Register) {
        self.made(Instruction::with2(code, a, b));
    }

    /// `code` with three registers.
    pub(super) fn rrr(&mut self, code: Code, a: Register, b: Register, c: Register) {
        self.made(Instruction::with3(code, a, b, c));
    }

    /// `code` with two registers and a number.
    pub(super) fn rri(&mut self, code: Code, a: Register, b: Register, imm: i32) {
        self.made(Instruction::with3(code, a, b, imm));
    }

    /// `code` with a register and a number.
    pub(super) fn ri(&mut self, code: Code, a: Register, imm: i32) {
        self.made(Instruction::with2(code, a, imm));
    }

    /// `code` with a register, loaded from memory.
    pub(super) fn rm(&mut self, code: Code, a: Register, memory: MemoryOperand) {
        self.made(Instruction::with2(code, a, memory));
    }

    /// `code` with memory, stored from a register.
    pub(super) fn mr(&mut self, code: Code, memory: MemoryOperand, b: Register) {
        self.made(Instruction::with2(code, memory, b));
    }

    /// `code` with memory and a number.
    pub(super) fn mi(&mut self, code: Code, memory: MemoryOperand, imm: i32) {
        self.made(Instruction::with2(code, memory, imm));
    }

    /// `code` with memory, a register and a number.
    pub(super) fn mri(&mut self, code: Code, memory: MemoryOperand, b: Register, imm: i32) {
        self.made(Instruction::with3(code, memory, b, imm));
    }

    /// `code` with two registers, memory and a number.
    pub(super) fn rrmi(
        &mut self,
        code: Code,
        (a, b): (Register, Register),
        memory: MemoryOperand,
        imm: i32,
    ) {
        self.made(Instruction::with4(code, a, b, memory, imm));
    }

    /// `code` with memory alone.
    pub(super) fn m(&mut self, code: Code, memory: MemoryOperand) {
        self.made(Instruction::with1(code, memory));
    }

    /// `code` with a register alone.
    pub(super) fn r(&mut self, code: Code, a: Register) {
        self.made(Instruction::with1(code, a));
    }

    /// Moves between 64-bit registers. This and what follows is written most often, and directly.
    pub(super) fn mov(&mut self, to: Register, from: Register) {
        if to != from {
            let (to, from) = (to.number() as u8, from.number() as u8);
            // mov r/m64, r64
            let rex = 0x48 | from >> 3 << 2 | to >> 3;
            self.bytes.extend([rex, 0x89, 0xc0 | (from & 7) << 3 | to & 7]);
            self.s1_changed = self.bytes.len();
        }
    }

    pub(super) fn mov_imm(&mut self, to: Register, value: u64) {
        let to = to.number() as u8;
        let (rex, low) = (to >> 3, to & 7);
        match (u32::try_from(value), i32::try_from(value as i64)) {
            (Ok(value), _) => {
                if rex != 0 {
                    self.bytes.push(0x40 | rex);
                }
                self.bytes.push(0xb8 | low);
                self.bytes.extend(value.to_le_bytes());
            }
            (Err(_), Ok(value)) => {
                self.bytes.extend([0x48 | rex, 0xc7, 0xc0 | low]);
                self.bytes.extend(value.to_le_bytes());
            }
            _ => {
                self.bytes.extend([0x48 | rex, 0xb8 | low]);
                self.bytes.extend(value.to_le_bytes());
            }
        }
        self.s1_changed = self.bytes.len();
    }

    /// R14 and R15 from the linear address in R14 to the host address in R14, as `memory` explains; `tag`
    /// and `host` are relative to the stack pointer.
    pub(super) fn probe(&mut self, tag: i32, host: i32, mask: u32, last: u32, slow: Label) {
        // rorx r15, r14, 7; and r15d, mask
        self.raw(&[0xc4, 0x43, 0xfb, 0xf0, 0xfe, 0x07, 0x41, 0x81, 0xe7]);
        self.raw(&mask.to_le_bytes());
        // xor r14, [rsp + r15 + tag]
        self.raw(&[0x4e, 0x33, 0xb4, 0x3c]);
        self.raw(&tag.to_le_bytes());
        // cmp r14, last
        self.raw(&[0x49, 0x81, 0xfe]);
        self.raw(&last.to_le_bytes());
        self.jcc(Cond::Above, slow);
        // add r14, [rsp + r15 + host]
        self.raw(&[0x4e, 0x03, 0xb4, 0x3c]);
        self.raw(&host.to_le_bytes());
        self.s1_changed = self.bytes.len();
    }

    /// Looks up the address in [`S1`] in the jump cache `jumps`, and puts twice the number of its entry into [`S2`];
    /// goes to `unknown` if it is not there. Destroys the flags.
    pub(super) fn look_up(&mut self, jumps: JumpTable, unknown: Label) {
        self.rri(Code::VEX_Rorx_r64_rm64_imm8, S2, S1, JUMP_SHIFT as i32 - 1);
        self.rm(Code::And_r32_rm32, low32(S2), jumps.mask);
        self.rm(Code::Cmp_r64_rm64, S1, near_plus_8(jumps.at, S2));
        self.jcc(Cond::NotEqual, unknown);
    }

    /// Jumps to `label`.
    pub(super) fn jmp(&mut self, label: Label) {
        self.bytes.push(0xe9);
        self.reference(label);
    }

    /// Jumps to `label` if `cond`.
    pub(super) fn jcc(&mut self, cond: Cond, label: Label) {
        self.jcc_raw(cond as u8, label);
    }

    /// As [`Self::jcc`], with the condition as encoded.
    pub(super) fn jcc_raw(&mut self, cond: u8, label: Label) {
        self.bytes.extend([0x0f, 0x80 | cond & 15]);
        self.reference(label);
    }

    /// Jumps to `label` on a condition as encoded, or in any case. Where it leads can be changed while it is
    /// executed (see [`super::code::CodeBuffer::patch`]), as both parts of the code begin at a quadword.
    /// Returns the offset of its displacement.
    pub(super) fn jump_changeable(&mut self, condition: Option<u8>, label: Label) -> usize {
        self.prefix_changeable(if condition.is_some() { 2 } else { 1 });
        match condition {
            Some(condition) => self.jcc_raw(condition, label),
            None => self.jmp(label),
        }
        self.bytes.len() - 4
    }

    /// Puts the address of `label`, which can be changed in the same way, into R15. Returns the offset of its
    /// displacement.
    pub(super) fn address_changeable(&mut self, label: Label) -> usize {
        self.prefix_changeable(3);
        // lea r15, [rip + displacement]
        self.raw(&[0x4c, 0x8d, 0x3d]);
        self.reference(label);
        self.bytes.len() - 4
    }

    /// Compares the 32 bits at `memory` with `with`, which can be changed in the same way. Returns its offset.
    pub(super) fn compare_changeable(&mut self, memory: MemoryOperand, with: i32) -> usize {
        let start = self.bytes.len();
        self.mi(Code::Cmp_rm32_imm32, memory, with);
        let opcode = self.bytes.len() - start - 4;
        let compare = self.bytes.split_off(start);
        self.prefix_changeable(opcode);
        self.raw(&compare);
        self.bytes.len() - 4
    }

    /// Writes prefixes that mean nothing, so that the displacement after an instruction's first `opcode` bytes is
    /// in one quadword.
    fn prefix_changeable(&mut self, opcode: usize) {
        let displacement = self.bytes.len() - self.inline.unwrap_or(0) + opcode;
        let prefixes = if displacement % 8 > 4 { 8 - displacement % 8 } else { 0 };
        self.bytes.extend(std::iter::repeat_n(0x2e, prefixes));
    }

    fn reference(&mut self, label: Label) {
        self.displacement(Target::Label(label));
    }

    fn displacement(&mut self, target: Target) {
        self.fixups.push((self.bytes.len(), target));
        self.bytes.extend([0; 4]);
    }

    /// Jumps to code elsewhere, within two gigabytes.
    pub(super) fn jmp_to(&mut self, target: u64) {
        self.bytes.push(0xe9);
        self.displacement(Target::Fixed(target));
    }

    /// Calls code elsewhere, within two gigabytes.
    pub(super) fn call_to(&mut self, target: u64) {
        self.bytes.push(0xe8);
        self.displacement(Target::Fixed(target));
        self.s1_changed = self.bytes.len();
    }
}

impl Finished {
    /// Lengths of what is in line and what is not.
    pub(super) fn lens(&self) -> [usize; 2] {
        [self.inline, self.bytes.len() - self.inline]
    }

    /// Puts the parts at these addresses, within two gigabytes.
    pub(super) fn place(self, at: [u64; 2]) -> Placed {
        let mut placed = Placed { bytes: self.bytes, inline: self.inline, at };
        for (offset, target) in self.fixups {
            let target = match target {
                Target::Fixed(address) => address,
                Target::Label(label) => {
                    let bound = self.labels[label.0];
                    placed.address(bound.unwrap_or_else(|| unreachable!("a label without place")))
                }
            };
            let distance = target.wrapping_sub(placed.address(offset) + 4) as i32;
            placed.bytes[offset..offset + 4].copy_from_slice(&distance.to_le_bytes());
        }
        placed
    }
}

impl Placed {
    /// The parts, each with its address.
    pub(super) fn parts(&self) -> [(u64, &[u8]); 2] {
        let (inline, other) = self.bytes.split_at(self.inline);
        [(self.at[0], inline), (self.at[1], other)]
    }

    /// The address of what is at `offset` in the order in which it was written.
    pub(super) fn address(&self, offset: usize) -> u64 {
        match offset.checked_sub(self.inline) {
            Some(offset) => self.at[1] + offset as u64,
            None => self.at[0] + offset as u64,
        }
    }
}

/// Whether [`S1`] is an operand of `insn`, rather than a part of an address.
fn names_s1(insn: &Instruction) -> bool {
    let is_it =
        |n| insn.op_kind(n) == OpKind::Register && insn.op_register(n).full_register() == S1;
    (0..insn.op_count()).any(is_it)
}

/// The 32-bit part of a 64-bit register.
pub(super) fn low32(register: Register) -> Register {
    register.full_register32()
}

/// What is at `offset` in the state, which the stack pointer tells while translated code runs.
pub(super) fn in_state(offset: u32) -> MemoryOperand {
    at_plus(Register::RSP, i64::from(offset) - i64::from(TOP))
}

/// What is `before` bytes before the state, relative to the stack pointer while translated code runs.
pub(super) fn before_state(before: u32) -> i32 {
    -((before + TOP) as i32)
}

/// Memory at `displacement` from the stack pointer, plus eight times `index`.
pub(super) fn near_plus_8(displacement: i32, index: Register) -> MemoryOperand {
    near_plus(displacement, index, 8)
}

/// The same, plus `scale` times `index`.
pub(super) fn near_plus(displacement: i32, index: Register, scale: u32) -> MemoryOperand {
    let (base, displacement) = (Register::RSP, i64::from(displacement));
    MemoryOperand::with_base_index_scale_displ_size(base, index, scale, displacement, 8)
}

/// Memory at `base`.
pub(super) fn at(base: Register) -> MemoryOperand {
    MemoryOperand::with_base(base)
}

/// Memory at `base` and a displacement.
pub(super) fn at_plus(base: Register, displacement: i64) -> MemoryOperand {
    let size = u32::from(displacement != 0);
    MemoryOperand::with_base_displ_size(base, displacement, size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions};

    fn listing(asm: Asm) -> String {
        let placed = asm.finish().place([0x1000, 0]);
        let insns = Decoder::with_ip(64, placed.parts()[0].1, 0x1000, DecoderOptions::NONE);
        insns.into_iter().map(|insn| format!("{insn}; ")).collect()
    }

    #[test]
    fn what_is_written_directly_is_what_it_says() {
        let mut asm = Asm::new();
        asm.mov(Register::RBX, Register::R14);
        asm.mov(Register::R9, Register::RAX);
        asm.mov_imm(Register::RSI, 0x8000_0000);
        asm.mov_imm(Register::R14, 5);
        asm.mov_imm(Register::R15, u64::MAX);
        asm.mov_imm(Register::RDX, u64::MAX - 1);
        asm.mov_imm(Register::R14, 1 << 40);
        let expected = "mov %r14,%rbx; mov %rax,%r9; mov $0x80000000,%esi; mov $5,%r14d; \
                        mov $0xFFFFFFFFFFFFFFFF,%r15; \
                        mov $0xFFFFFFFFFFFFFFFE,%rdx; movabs $0x10000000000,%r14; ";
        assert_eq!(listing(asm), expected);
        let mut asm = Asm::new();
        let slow = asm.label();
        asm.bind(slow);
        asm.probe(-0x1_0008, 0x1_0018, 0xf_ffe0, 4088, slow);
        let expected = "rorx $7,%r14,%r15; and $0xFFFE0,%r15d; xor -0x10008(%rsp,%r15),%r14; \
                        cmp $0xFF8,%r14; ja 0x0000000000001000; \
                        add 0x10018(%rsp,%r15),%r14; ";
        assert_eq!(listing(asm), expected);
    }
}
