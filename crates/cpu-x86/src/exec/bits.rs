//! Bit tests, scans and counts (APM volume 3: BSF, BSR, BT, BTC, BTR, BTS, CRC32, LZCNT, POPCNT).

use iced_x86::{Instruction, Mnemonic};

use super::{Form, form, size0, size1, sized};
use crate::cpu::Cpu;
use crate::exception::Result;
use crate::flags::bits;
use crate::int::Int;
use crate::op::{Handler, Op};
use crate::reg::addr_mask;

/// What happens to the tested bit.
trait Change: 'static {
    /// Whether anything happens.
    const WRITES: bool = true;
    /// The operand after it; `bit` is the tested bit alone.
    fn apply<T: Int>(value: T, bit: T) -> T;
}

struct Keep;
struct Set;
struct Reset;
struct Complement;

impl Change for Keep {
    const WRITES: bool = false;
    #[inline(always)]
    fn apply<T: Int>(value: T, _: T) -> T {
        value
    }
}
impl Change for Set {
    #[inline(always)]
    fn apply<T: Int>(value: T, bit: T) -> T {
        value | bit
    }
}
impl Change for Reset {
    #[inline(always)]
    fn apply<T: Int>(value: T, bit: T) -> T {
        value & !bit
    }
}
impl Change for Complement {
    #[inline(always)]
    fn apply<T: Int>(value: T, bit: T) -> T {
        value ^ bit
    }
}

#[inline(always)]
fn test_reg<T: Int, C: Change>(cpu: &mut Cpu, op: &Op, index: u64) -> Result {
    let value = cpu.reg::<T>(op.dst);
    let bit = T::ONE.wshl(index as u32 & (T::BITS - 1));
    if C::WRITES {
        cpu.set_reg(op.dst, C::apply(value, bit));
    }
    cpu.set_cf(value & bit != T::ZERO);
    Ok(())
}

#[inline(always)]
fn test_mem<T: Int, C: Change>(cpu: &mut Cpu, op: &Op, offset: u64, index: u64) -> Result {
    let bit = T::ONE.wshl(index as u32 & (T::BITS - 1));
    let value = if C::WRITES {
        cpu.update::<T>(op.seg, offset, op.locked(), |value| C::apply(value, bit))?
    } else {
        cpu.load::<T>(op.seg, offset)?
    };
    cpu.set_cf(value & bit != T::ZERO);
    Ok(())
}

fn bt_reg_reg<T: Int, C: Change>(cpu: &mut Cpu, op: &Op) -> Result {
    let index = cpu.gpr(op.src);
    test_reg::<T, C>(cpu, op, index)
}

fn bt_reg_imm<T: Int, C: Change>(cpu: &mut Cpu, op: &Op) -> Result {
    test_reg::<T, C>(cpu, op, op.imm)
}

fn bt_mem_imm<T: Int, C: Change>(cpu: &mut Cpu, op: &Op) -> Result {
    test_mem::<T, C>(cpu, op, cpu.ea(op), op.imm)
}

/// With the index in a register, memory is a string of bits: the index reaches beyond the operand.
fn bt_mem_reg<T: Int, C: Change>(cpu: &mut Cpu, op: &Op) -> Result {
    let index = cpu.reg::<T>(op.dst).sext();
    let element = (index as i64 >> T::BITS.trailing_zeros()) as u64;
    let offset = cpu.ea(op).wrapping_add(element.wrapping_mul(T::BYTES as u64));
    test_mem::<T, C>(cpu, op, offset & addr_mask(op.addr_size), index)
}

fn bit_test<C: Change>(insn: &Instruction) -> Option<Handler> {
    let size = size0(insn);
    match form(insn) {
        Form::RegReg => sized!(size, bt_reg_reg, C),
        Form::RegImm => sized!(size, bt_reg_imm, C),
        Form::MemReg => sized!(size, bt_mem_reg, C),
        Form::MemImm => sized!(size, bt_mem_imm, C),
        _ => None,
    }
}

/// An instruction that computes a register from one source.
trait Count: 'static {
    fn apply<T: Int>(cpu: &mut Cpu, op: &Op, source: T);
}

struct Bsf;
struct Bsr;
struct Lzcnt;
struct Popcnt;

/// Of a zero source a scan leaves the destination alone, as AMD documents.
#[inline(always)]
fn scan<T: Int>(cpu: &mut Cpu, op: &Op, source: T, found: u32) {
    if source == T::ZERO {
        cpu.change_flags(bits::ZF, bits::ZF);
    } else {
        cpu.set_reg(op.dst, T::from_u64(found.into()));
        cpu.change_flags(bits::ZF, 0);
    }
}

impl Count for Bsf {
    #[inline(always)]
    fn apply<T: Int>(cpu: &mut Cpu, op: &Op, source: T) {
        scan(cpu, op, source, source.tzcnt());
    }
}
impl Count for Bsr {
    #[inline(always)]
    fn apply<T: Int>(cpu: &mut Cpu, op: &Op, source: T) {
        scan(cpu, op, source, (T::BITS - 1).wrapping_sub(source.lzcnt()));
    }
}
impl Count for Lzcnt {
    #[inline(always)]
    fn apply<T: Int>(cpu: &mut Cpu, op: &Op, source: T) {
        let count = T::from_u64(source.lzcnt().into());
        cpu.set_reg(op.dst, count);
        let zero = if count == T::ZERO { bits::ZF } else { 0 };
        let carry = u64::from(source == T::ZERO);
        cpu.change_flags(bits::ZF | bits::CF, zero | carry);
    }
}
impl Count for Popcnt {
    #[inline(always)]
    fn apply<T: Int>(cpu: &mut Cpu, op: &Op, source: T) {
        cpu.set_reg(op.dst, T::from_u64(source.ones().into()));
        cpu.set_rflags_arith(if source == T::ZERO { bits::ZF } else { 0 });
    }
}

fn count_reg<T: Int, C: Count>(cpu: &mut Cpu, op: &Op) -> Result {
    let source = cpu.reg::<T>(op.src);
    C::apply(cpu, op, source);
    Ok(())
}

fn count_mem<T: Int, C: Count>(cpu: &mut Cpu, op: &Op) -> Result {
    let source = cpu.load_op::<T>(op)?;
    C::apply(cpu, op, source);
    Ok(())
}

fn count<C: Count>(insn: &Instruction) -> Option<Handler> {
    let size = insn.op0_register().size();
    match form(insn) {
        Form::RegReg => sized!(size, count_reg, C),
        Form::RegMem => sized!(size, count_mem, C),
        _ => None,
    }
}

/// The CRC-32C polynomial, bits reversed.
const CRC32C: u32 = 0x82f6_3b78;

/// Remainders of all bytes.
const CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 != 0 { crc >> 1 ^ CRC32C } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

#[inline(always)]
fn crc32<S: Int>(cpu: &mut Cpu, op: &Op, source: S) {
    let mut crc = cpu.reg::<u32>(op.dst);
    let source = source.to_u64().to_le_bytes();
    for &byte in &source[..S::BYTES] {
        crc = crc >> 8 ^ CRC_TABLE[usize::from(crc as u8 ^ byte)];
    }
    cpu.set_reg(op.dst, crc);
}

fn crc32_reg<S: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let source = cpu.reg::<S>(op.src);
    crc32(cpu, op, source);
    Ok(())
}

fn crc32_mem<S: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let source = cpu.load_op::<S>(op)?;
    crc32(cpu, op, source);
    Ok(())
}

/// The handler of `insn`, if it belongs to this group.
pub(super) fn select(insn: &Instruction) -> Option<Handler> {
    match insn.mnemonic() {
        Mnemonic::Bt => bit_test::<Keep>(insn),
        Mnemonic::Bts => bit_test::<Set>(insn),
        Mnemonic::Btr => bit_test::<Reset>(insn),
        Mnemonic::Btc => bit_test::<Complement>(insn),
        Mnemonic::Bsf => count::<Bsf>(insn),
        Mnemonic::Bsr => count::<Bsr>(insn),
        Mnemonic::Lzcnt => count::<Lzcnt>(insn),
        Mnemonic::Popcnt => count::<Popcnt>(insn),
        Mnemonic::Crc32 => match form(insn) {
            Form::RegReg => sized!(size1(insn), crc32_reg),
            Form::RegMem => sized!(size1(insn), crc32_mem),
            _ => None,
        },
        _ => None,
    }
}
