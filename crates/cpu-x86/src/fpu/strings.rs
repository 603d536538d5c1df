//! SSE4.2's string comparisons.

use iced_x86::{Code, Instruction};

use super::encoding::{Encoding, Legacy, Vex};
use super::lanes::{self, Lane};
use crate::cpu::Cpu;
use crate::exception::Result;
use crate::flags::bits;
use crate::int::Int;
use crate::op::{Handler, Op};
use crate::reg::{RAX, RCX, RDX};

/// Finds the handler of a string comparison.
pub(super) fn select(insn: &Instruction) -> Option<Handler> {
    use Code::*;
    let handler: Handler = match insn.code() {
        Pcmpistri_xmm_xmmm128_imm8 => |cpu, op| string::<Legacy>(cpu, op, implicit, index),
        Pcmpistrm_xmm_xmmm128_imm8 => |cpu, op| string::<Legacy>(cpu, op, implicit, mask),
        Pcmpestri_xmm_xmmm128_imm8 => |cpu, op| string::<Legacy>(cpu, op, explicit::<u32>, index),
        Pcmpestri64_xmm_xmmm128_imm8 => |cpu, op| string::<Legacy>(cpu, op, explicit::<u64>, index),
        Pcmpestrm_xmm_xmmm128_imm8 => |cpu, op| string::<Legacy>(cpu, op, explicit::<u32>, mask),
        Pcmpestrm64_xmm_xmmm128_imm8 => |cpu, op| string::<Legacy>(cpu, op, explicit::<u64>, mask),
        _ => return None,
    };
    Some(handler)
}

/// Finds the handler of a VEX-encoded string comparison.
pub(super) fn select_vex(code: Code) -> Option<Handler> {
    use Code::*;
    let handler: Handler = match code {
        VEX_Vpcmpistri_xmm_xmmm128_imm8 => |cpu, op| string::<Vex>(cpu, op, implicit, index),
        VEX_Vpcmpistrm_xmm_xmmm128_imm8 => |cpu, op| string::<Vex>(cpu, op, implicit, vex_mask),
        VEX_Vpcmpestri_xmm_xmmm128_imm8 => |cpu, op| string::<Vex>(cpu, op, explicit::<u32>, index),
        VEX_Vpcmpestri64_xmm_xmmm128_imm8 => {
            |cpu, op| string::<Vex>(cpu, op, explicit::<u64>, index)
        }
        VEX_Vpcmpestrm_xmm_xmmm128_imm8 => {
            |cpu, op| string::<Vex>(cpu, op, explicit::<u32>, vex_mask)
        }
        VEX_Vpcmpestrm64_xmm_xmmm128_imm8 => {
            |cpu, op| string::<Vex>(cpu, op, explicit::<u64>, vex_mask)
        }
        _ => return None,
    };
    Some(handler)
}

/// How the immediate says that strings are compared.
#[derive(Clone, Copy)]
struct Control(u8);

impl Control {
    /// Lanes of a string: 16 bytes or 8 words.
    fn lanes(self) -> u32 {
        if self.0 & 1 != 0 { 8 } else { 16 }
    }

    /// Lane `i` by value, with the sign that the format gives it.
    fn lane(self, v: u128, i: u32) -> i64 {
        match self.0 & 3 {
            0 => lanes::get::<u8>(v, i).to_i64(),
            1 => lanes::get::<u16>(v, i).to_i64(),
            2 => lanes::get::<i8>(v, i).to_i64(),
            _ => lanes::get::<i16>(v, i).to_i64(),
        }
    }

    /// The first result: for each lane of `b`, whether it matches. `m` and `n` are the valid lanes of
    /// `a` and `b`.
    fn aggregate(self, a: u128, b: u128, m: u32, n: u32) -> u32 {
        let lanes = self.lanes();
        let x = |i| self.lane(a, i);
        let y = |j| self.lane(b, j);
        let matches = |j: u32| match self.0 >> 2 & 3 {
            // Equal any: b's lane occurs in a.
            0 => j < n && (0..m).any(|i| x(i) == y(j)),
            // Ranges: it lies between a pair of a's lanes.
            1 => j < n && (0..m / 2).any(|i| x(2 * i) <= y(j) && y(j) <= x(2 * i + 1)),
            // Equal each: lanes with the same index; past both ends is equal.
            2 => (j < m && j < n && x(j) == y(j)) || (j >= m && j >= n),
            // Equal ordered: a occurs in b from here on.
            _ => (0..m.min(lanes - j)).all(|i| j + i < n && x(i) == y(j + i)),
        };
        (0..lanes).filter(|&j| matches(j)).fold(0, |r, j| r | 1 << j)
    }

    /// The second result: the first with its polarity.
    fn polarize(self, result: u32, n: u32) -> u32 {
        let all = (1 << self.lanes()) - 1;
        match self.0 >> 4 & 3 {
            1 => !result & all,
            3 => result ^ ((1 << n) - 1),
            _ => result,
        }
    }
}

/// Lengths by the terminating zero.
fn implicit(_: &Cpu, control: Control, a: u128, b: u128) -> (u32, u32) {
    let length = |v| (0..control.lanes()).find(|&i| control.lane(v, i) == 0);
    let all = control.lanes();
    (length(a).unwrap_or(all), length(b).unwrap_or(all))
}

/// Lengths in rAX and rDX, whose magnitude counts.
fn explicit<T: Int>(cpu: &Cpu, control: Control, _: u128, _: u128) -> (u32, u32) {
    let all = u64::from(control.lanes());
    let length = |n| (cpu.reg::<T>(n).sext() as i64).unsigned_abs().min(all) as u32;
    (length(RAX), length(RDX))
}

/// PCMPESTRI and its like: `lengths` finds the valid lanes, `output` takes the second result.
#[inline(always)]
fn string<E: Encoding>(
    cpu: &mut Cpu,
    op: &Op,
    lengths: impl Fn(&Cpu, Control, u128, u128) -> (u32, u32),
    output: impl Fn(&mut Cpu, Control, u32),
) -> Result {
    E::check(cpu)?;
    // The memory operand may be unaligned.
    let b = cpu.xmm_source_low::<u128>(op)?;
    let a = cpu.xmm(op.dst);
    let control = Control(op.imm as u8);
    let (m, n) = lengths(cpu, control, a, b);
    let result = control.polarize(control.aggregate(a, b, m, n), n);
    output(cpu, control, result);
    let flag = |set: bool, flag: u64| if set { flag } else { 0 };
    cpu.set_rflags_arith(
        flag(result != 0, bits::CF)
            | flag(n < control.lanes(), bits::ZF)
            | flag(m < control.lanes(), bits::SF)
            | flag(result & 1 != 0, bits::OF),
    );
    Ok(())
}

/// The lowest or highest set bit's number to ECX.
fn index(cpu: &mut Cpu, control: Control, result: u32) {
    let index = match (result, control.0 & 0x40 != 0) {
        (0, _) => control.lanes(),
        (_, false) => result.trailing_zeros(),
        (_, true) => 31 - result.leading_zeros(),
    };
    cpu.set_reg::<u32>(RCX, index);
}

/// The bits, or a mask of lanes, to XMM0.
fn mask(cpu: &mut Cpu, control: Control, result: u32) {
    let set = |i| result >> i & 1 != 0;
    let value = match (control.0 & 0x40 != 0, control.lanes()) {
        (false, _) => u128::from(result),
        (true, 16) => lanes::build::<u8>(16, |i| if set(i) { 0xff } else { 0 }),
        (true, _) => lanes::build::<u16>(16, |i| if set(i) { 0xffff } else { 0 }),
    };
    cpu.set_xmm(0, value);
}

/// [`mask`], with the rest of YMM0 cleared.
fn vex_mask(cpu: &mut Cpu, control: Control, result: u32) {
    mask(cpu, control, result);
    cpu.set_ymm(0, [cpu.xmm(0), 0]);
}
