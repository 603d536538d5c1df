//! The assembler that translations are written with: `iced-x86`'s encoder for instructions that come
//! from the guest, bytes written directly for what every translation is made of, and labels.
//!
//! Every instruction is encoded from its decoded form with operands that the translator chose; a byte of
//! the guest's is never copied.

use iced_x86::{Code, Encoder, Instruction, MemoryOperand, Register};

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
    Above = 7,
    Sign = 8,
}

/// Code under construction, to be run at a known address.
pub(super) struct Asm {
    encoder: Encoder,
    bytes: Vec<u8>,
    start: u64,
    labels: Vec<Option<usize>>,
    /// Where displacements of 32 bits to labels are.
    fixups: Vec<(usize, Label)>,
}

impl Asm {
    /// Begins code that will be at address `start`.
    pub(super) fn new(start: u64) -> Self {
        Self {
            encoder: Encoder::new(64),
            bytes: Vec::with_capacity(1024),
            start,
            labels: Vec::new(),
            fixups: Vec::new(),
        }
    }

    /// Length so far in bytes.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The address of what comes next.
    pub(super) fn here(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    pub(super) fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// Puts `label` here.
    pub(super) fn bind(&mut self, label: Label) {
        self.labels[label.0] = Some(self.bytes.len());
    }

    /// The finished code.
    pub(super) fn finish(mut self) -> Vec<u8> {
        for (at, label) in self.fixups {
            let target =
                self.labels[label.0].unwrap_or_else(|| unreachable!("a label without place"));
            let distance = target as i64 - (at as i64 + 4);
            self.bytes[at..at + 4].copy_from_slice(&(distance as i32).to_le_bytes());
        }
        self.bytes
    }

    /// Whether `insn` can be encoded.
    pub(super) fn can_encode(&mut self, insn: &Instruction) -> bool {
        let done = self.encoder.encode(insn, self.start).is_ok();
        drop(self.encoder.take_buffer());
        done
    }

    /// Encodes `insn`, which is known to be encodable.
    pub(super) fn emit(&mut self, insn: &Instruction) {
        let at = self.here();
        match self.encoder.encode(insn, at) {
            Ok(_) => self.bytes.extend_from_slice(&self.encoder.take_buffer()),
            Err(error) => unreachable!("{insn}: {error}"),
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

    /// Moves between 64-bit registers.
    pub(super) fn mov(&mut self, to: Register, from: Register) {
        if to != from {
            self.rr(Code::Mov_r64_rm64, to, from);
        }
    }

    pub(super) fn mov_imm(&mut self, to: Register, value: u64) {
        let low = u32::try_from(value).ok();
        let insn = match (low, i32::try_from(value as i64)) {
            (Some(low), _) => Instruction::with2(Code::Mov_r32_imm32, low32(to), low),
            (None, Ok(signed)) => Instruction::with2(Code::Mov_rm64_imm32, to, signed),
            _ => Instruction::with2(Code::Mov_r64_imm64, to, value),
        };
        self.made(insn);
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

    fn reference(&mut self, label: Label) {
        self.fixups.push((self.bytes.len(), label));
        self.bytes.extend([0; 4]);
    }

    /// Jumps to code elsewhere, within two gigabytes.
    pub(super) fn jmp_to(&mut self, target: u64) {
        self.bytes.push(0xe9);
        self.distance(target);
    }

    /// Calls code elsewhere, within two gigabytes.
    pub(super) fn call_to(&mut self, target: u64) {
        self.bytes.push(0xe8);
        self.distance(target);
    }

    fn distance(&mut self, target: u64) {
        let distance = target.wrapping_sub(self.here() + 4) as i32;
        self.bytes.extend(distance.to_le_bytes());
    }
}

/// The 32-bit part of a 64-bit register.
pub(super) fn low32(register: Register) -> Register {
    register.full_register32()
}

/// Memory at an absolute address below two gigabytes.
pub(super) fn abs(at: u32) -> MemoryOperand {
    MemoryOperand::with_displ(u64::from(at), 8)
}

/// Memory at an absolute address below two gigabytes plus `base`.
pub(super) fn abs_plus(at: u32, base: Register) -> MemoryOperand {
    MemoryOperand::with_base_displ_size(base, i64::from(at), 8)
}

/// Memory at `base`.
pub(super) fn at(base: Register) -> MemoryOperand {
    MemoryOperand::with_base(base)
}
