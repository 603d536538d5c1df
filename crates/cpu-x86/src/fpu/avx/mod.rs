//! VEX-encoded vector instructions (APM volume 4): AVX, AVX2, FMA and F16C.
//!
//! Most are the legacy instructions with other operands, and found among those (see `encoding`). Here is
//! what they have no like of, or what differs in more than that.

mod convert;
mod fma;
mod moves;
mod permute;

use iced_x86::{Instruction, OpKind};

use super::encoding::{Vex, legacy_of};
use super::{float, packed, strings};
use crate::op::Handler;

/// Finds the handler of a VEX-encoded instruction.
pub(super) fn select(insn: &Instruction) -> Option<Handler> {
    let mnemonic = insn.mnemonic();
    let last = insn.op_count().saturating_sub(1);
    let immediate = insn.op_count() > 0 && insn.op_kind(last) == OpKind::Immediate8;
    moves::select(insn)
        .or_else(|| permute::select(mnemonic, immediate))
        .or_else(|| convert::select(mnemonic, insn.code()))
        .or_else(|| fma::select(mnemonic))
        .or_else(|| strings::select_vex(insn.code()))
        .or_else(|| {
            let legacy = legacy_of(mnemonic)?;
            packed::select::<Vex>(insn, legacy)
                .or_else(|| packed::select_masks::<Vex>(insn, legacy))
                .or_else(|| float::select::<Vex>(legacy))
        })
}
