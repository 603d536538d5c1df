//! One decoded instruction, ready to execute.
//!
//! `iced-x86` decodes; the decoder turns its `Instruction` into an [`Op`]: a handler chosen by
//! instruction, operand kinds and size, and the operands unpacked so that the handler does no decoding.
//!
//! While a handler runs, `cpu.rip` already holds the address of the *next* instruction; a handler that
//! branches overwrites it. The run loop takes it back by `len` when the handler raises a fault.

use crate::cpu::Cpu;
use crate::exception::Result;

/// Executes one instruction.
pub(crate) type Handler = fn(&mut Cpu, &Op) -> Result;

/// Index into `Cpu::gpr` of a slot that is always zero: an absent base or index register.
pub(crate) const ZERO_REG: u8 = 16;

bitflags::bitflags! {
    /// Properties of an [`Op`].
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub(crate) struct OpFlags: u16 {
        /// LOCK prefix.
        const LOCK = 1 << 0;
        /// REP or REPE prefix.
        const REP = 1 << 1;
        /// REPNE prefix.
        const REPNE = 1 << 2;
        /// One operand is in memory, at `seg:[base + index * 2^scale + disp]`.
        const MEM = 1 << 3;
        /// Nothing after this instruction may be decoded into the same block: it branches, or changes
        /// the mode, the address space, or what may interrupt.
        const ENDS_BLOCK = 1 << 4;
        /// The memory operand is the destination (its first operand).
        const MEM_DST = 1 << 5;
        /// A vector instruction of 256 bits.
        const WIDE = 1 << 6;
        /// Nothing before this instruction may be in its block: it sees what the run loop accounts for
        /// between blocks.
        const STARTS_BLOCK = 1 << 7;
        /// A branch, conditional or not, as performance counters count them.
        const BRANCH = 1 << 8;
        /// `disp` is an address relative to RIP.
        const RELATIVE_MEM = 1 << 9;
        /// `imm` is a branch target relative to RIP.
        const RELATIVE_TARGET = 1 << 10;
        /// That target is of fewer bits than RIP.
        const NARROW_TARGET = 1 << 11;
    }
}

/// A decoded instruction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Op {
    /// What executes it.
    pub(crate) run: Handler,
    /// Address of the following instruction: this one's RIP plus its length, not yet wrapped at 32 bits
    /// outside 64-bit mode.
    pub(crate) next_rip: u64,
    /// Displacement of the memory operand, sign-extended; for RIP-relative operands the resolved
    /// address with `base` = `index` = [`ZERO_REG`].
    pub(crate) disp: u64,
    /// Immediate operand, extended to 64 bits as the instruction does; for near branches the target.
    /// For instructions with two immediates (ENTER, far pointers) the second is in bits 32 and up. For
    /// x87 instructions their opcode as the unit's opcode register has it; a fourth register operand's
    /// number.
    pub(crate) imm: u64,
    /// Length of the instruction in bytes, 1 to 15.
    pub(crate) len: u8,
    /// First register operand, in its class's numbering (GPR 0 to 15; as 8-bit operands 16 to 19 are
    /// AH, CH, DH, BH; XMM 0 to 15; MM and ST 0 to 7; segment registers ES CS SS DS FS GS 0 to 5).
    pub(crate) dst: u8,
    /// Second register operand.
    pub(crate) src: u8,
    /// Third register operand; of VEX-encoded instructions with two, the second again. The index
    /// register of a gather.
    pub(crate) src2: u8,
    /// Base register of the memory operand, or [`ZERO_REG`].
    pub(crate) base: u8,
    /// Index register of the memory operand, or [`ZERO_REG`].
    pub(crate) index: u8,
    /// log2 of the index's scale.
    pub(crate) scale: u8,
    /// Segment of the memory operand, 0 to 5.
    pub(crate) seg: u8,
    /// Operand size in bytes: 1, 2, 4 or 8 (for vector operands: of the memory operand).
    pub(crate) size: u8,
    /// Address size in bytes: 2, 4 or 8.
    pub(crate) addr_size: u8,
    /// Prefixes and properties.
    pub(crate) flags: OpFlags,
    /// `iced-x86`'s number of the instruction's name.
    pub(crate) mnemonic: u16,
}

impl Op {
    /// No operands, no prefixes; raises nothing and does nothing.
    pub(crate) const EMPTY: Self = Self {
        run: |_, _| Ok(()),
        next_rip: 0,
        disp: 0,
        imm: 0,
        len: 0,
        dst: 0,
        src: 0,
        src2: 0,
        base: ZERO_REG,
        index: ZERO_REG,
        scale: 0,
        seg: 0,
        size: 0,
        addr_size: 0,
        flags: OpFlags::empty(),
        mnemonic: 0,
    };

    /// The same instruction `distance` bytes further on, in 64-bit code.
    pub(crate) fn moved(mut self, distance: u64) -> Self {
        self.next_rip = self.next_rip.wrapping_add(distance);
        if self.flags.contains(OpFlags::RELATIVE_MEM) {
            let mask = if self.addr_size == 8 { u64::MAX } else { 0xffff_ffff };
            self.disp = self.disp.wrapping_add(distance) & mask;
        }
        if self.flags.contains(OpFlags::RELATIVE_TARGET) {
            let narrow = self.flags.contains(OpFlags::NARROW_TARGET);
            self.imm = self.imm.wrapping_add(distance) & if narrow { 0xffff } else { u64::MAX };
        }
        self
    }

    /// Whether the instruction has a LOCK prefix.
    #[inline(always)]
    pub(crate) fn locked(&self) -> bool {
        self.flags.contains(OpFlags::LOCK)
    }

    /// Address of this instruction, as RIP held it.
    #[inline(always)]
    pub(crate) fn rip(&self) -> u64 {
        self.next_rip.wrapping_sub(u64::from(self.len))
    }
}
