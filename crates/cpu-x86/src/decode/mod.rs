//! From bytes to [`Op`]s.
//!
//! `iced-x86` decodes; [`decode`] unpacks the operands (`operands`) and picks the handler. Handlers are
//! found by group: each group of instructions has a `select` function that knows its mnemonics and
//! operand forms, and says `None` to the others. What no group knows raises #UD.

mod operands;

use iced_x86::{
    Decoder, DecoderError, DecoderOptions, FlowControl, Instruction, Mnemonic, Register,
};

use crate::cpu::Cpu;
use crate::exception::{Exception, Result};
use crate::exec;
use crate::op::{Handler, Op, OpFlags};
use crate::system;

/// Longest possible instruction in bytes; a longer one raises #GP(0).
pub(crate) const MAX_LEN: usize = 15;

/// Decodes the instruction that `bytes` begin with, for RIP `rip` in a code segment of 16, 32 or 64
/// `bits`. `None` if the bytes end before the
/// instruction does; with [`MAX_LEN`] bytes that never happens.
pub(crate) fn decode(bits: u32, rip: u64, bytes: &[u8]) -> Option<Op> {
    // Instructions of extensions that the CPU does not have decode as the older ones they extend.
    let options = DecoderOptions::AMD | DecoderOptions::NO_WBNOINVD | DecoderOptions::NO_MPFX_0FBC;
    let mut decoder = Decoder::with_ip(bits, bytes, rip, options);
    let insn = decoder.decode();
    if insn.is_invalid() && decoder.last_error() == DecoderError::NoMoreBytes {
        return None;
    }
    let mut op = Op {
        run: undefined,
        next_rip: rip.wrapping_add(insn.len() as u64),
        code: insn.code(),
        len: insn.len() as u8,
        ..Op::EMPTY
    };
    if insn.is_invalid() {
        op.flags = OpFlags::ENDS_BLOCK;
        if insn.len() >= MAX_LEN {
            op.run = too_long;
        }
        return Some(op);
    }
    operands::unpack(&insn, &mut op);
    match select(&insn) {
        Some(handler) => op.run = handler,
        None => op.flags |= OpFlags::ENDS_BLOCK,
    }
    if ends_block(&insn) {
        op.flags |= OpFlags::ENDS_BLOCK;
    }
    Some(op)
}

/// The handler of an instruction, if any group knows it.
fn select(insn: &Instruction) -> Option<Handler> {
    exec::select(insn).or_else(|| system::select(insn))
}

fn undefined(_: &mut Cpu, _: &Op) -> Result {
    Err(Exception::UD)
}

fn too_long(_: &mut Cpu, _: &Op) -> Result {
    Err(Exception::GP0)
}

/// Whether what follows `insn` may have to be decoded, or interrupted, differently because of it.
fn ends_block(insn: &Instruction) -> bool {
    if insn.flow_control() != FlowControl::Next || insn.is_privileged() {
        return true;
    }
    match insn.mnemonic() {
        Mnemonic::Mov | Mnemonic::Pop => insn.op0_register() == Register::SS,
        Mnemonic::Lss
        | Mnemonic::Popf
        | Mnemonic::Popfd
        | Mnemonic::Popfq
        | Mnemonic::Sti
        | Mnemonic::Cli
        | Mnemonic::In
        | Mnemonic::Out
        | Mnemonic::Insb
        | Mnemonic::Insw
        | Mnemonic::Insd
        | Mnemonic::Outsb
        | Mnemonic::Outsw
        | Mnemonic::Outsd
        | Mnemonic::Cpuid
        | Mnemonic::Serialize
        | Mnemonic::Pause => true,
        _ => false,
    }
}
