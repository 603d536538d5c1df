//! From bytes to [`Op`]s.
//!
//! `iced-x86` decodes; [`decode`] unpacks the operands (`operands`) and picks the handler. Handlers are
//! found by group: each group of instructions has a `select` function that knows its mnemonics and
//! operand forms, and says `None` to the others. What no group knows raises #UD.

mod operands;

use iced_x86::{
    Code, CpuidFeature, Decoder, DecoderError, DecoderOptions, EncodingKind, FlowControl,
    Instruction, Mnemonic, Register,
};

use crate::cpu::Cpu;
use crate::exception::{Exception, Result};
use crate::exec;
use crate::feature::Instructions;
use crate::fpu;
use crate::op::{Handler, Op, OpFlags};
use crate::svm;
use crate::system;

/// Longest possible instruction in bytes; a longer one raises #GP(0).
pub(crate) const MAX_LEN: usize = 15;

/// How iced-x86 is to read bytes for a CPU with `known` instructions: those of extensions that it does
/// not have decode as the older ones they extend.
fn options(known: &Instructions) -> u32 {
    let mut options = if known.intel { DecoderOptions::NONE } else { DecoderOptions::AMD };
    if !known.has(CpuidFeature::WBNOINVD) {
        options |= DecoderOptions::NO_WBNOINVD;
    }
    if !known.has(CpuidFeature::BMI1) {
        options |= DecoderOptions::NO_MPFX_0FBC;
    }
    if !known.has(CpuidFeature::LZCNT) {
        options |= DecoderOptions::NO_MPFX_0FBD;
    }
    options
}

/// Decodes the instruction that `bytes` begin with, for RIP `rip` in a code segment of 16, 32 or 64
/// `bits`, for a CPU with `known` instructions; VEX is for
/// `protected` mode. `None` if the bytes end before the instruction does; with
/// [`MAX_LEN`] bytes that never happens.
pub(crate) fn decode(
    known: &Instructions,
    protected: bool,
    bits: u32,
    rip: u64,
    bytes: &[u8],
) -> Option<Op> {
    decode_whole(known, protected, bits, rip, bytes).map(|(op, _)| op)
}

/// As [`decode`], with the instruction that the operation is of, if it is one that the CPU has.
pub(crate) fn decode_whole(
    known: &Instructions,
    protected: bool,
    bits: u32,
    rip: u64,
    bytes: &[u8],
) -> Option<(Op, Option<Instruction>)> {
    let options = options(known);
    let mut decoder = Decoder::with_ip(bits, bytes, rip, options);
    let mut insn = decoder.decode();
    // F3 REX.B 90 exchanges R8 and RAX: only without REX.B it is PAUSE.
    if insn.code() == Code::Pause && bytes[insn.len() - 2] & 0xf1 == 0x41 {
        let options = options | DecoderOptions::NO_PAUSE;
        decoder = Decoder::with_ip(bits, bytes, rip, options);
        insn = decoder.decode();
    }
    if known.wide_far && bits == 64 && has_far_pointer(insn.code()) {
        decoder = Decoder::with_ip(bits, bytes, rip, options & !DecoderOptions::AMD);
        insn = decoder.decode();
    }
    if insn.is_invalid() && decoder.last_error() == DecoderError::NoMoreBytes {
        return None;
    }
    let mut op = Op {
        run: undefined,
        next_rip: rip.wrapping_add(insn.len() as u64),
        len: insn.len() as u8,
        mnemonic: insn.mnemonic() as u16,
        ..Op::EMPTY
    };
    if insn.is_invalid() {
        op.flags = OpFlags::ENDS_BLOCK;
        if insn.len() >= MAX_LEN {
            // What is only not allowed, such as a LOCK prefix, is not too long.
            let options = options | DecoderOptions::NO_INVALID_CHECK;
            if Decoder::with_ip(bits, bytes, rip, options).decode().is_invalid() {
                op.run = too_long;
            }
        }
        return Some((op, None));
    }
    operands::unpack(&insn, &mut op);
    if let Some(opcode) = fpu::x87_opcode(&bytes[..insn.len()]) {
        op.imm = u64::from(opcode);
    }
    let handler = select(&insn).filter(|_| is_there(&insn, known, protected));
    match handler {
        Some(handler) => op.run = handler,
        None => op.flags |= OpFlags::ENDS_BLOCK,
    }
    if matches!(insn.code(), Code::Rdpmc | Code::Rdmsr | Code::Wrmsr) {
        op.flags |= OpFlags::STARTS_BLOCK;
    }
    if !matches!(insn.flow_control(), FlowControl::Next | FlowControl::Exception) {
        op.flags |= OpFlags::BRANCH;
    }
    if ends_block(&insn) {
        op.flags |= OpFlags::ENDS_BLOCK;
    }
    Some((op, handler.map(|_| insn)))
}

/// Whether an instruction has a far pointer in memory, whose offset may be wide.
fn has_far_pointer(code: Code) -> bool {
    matches!(
        code,
        Code::Jmp_m1632
            | Code::Call_m1632
            | Code::Lss_r32_m1632
            | Code::Lfs_r32_m1632
            | Code::Lgs_r32_m1632
    )
}

/// The handler of an instruction, if any group knows it.
fn select(insn: &Instruction) -> Option<Handler> {
    exec::select(insn).or_else(|| fpu::select(insn)).or_else(|| system::select(insn))
}

/// Whether a CPU with `known` instructions has `insn` now. Hints are no-ops to those that don't know them.
fn is_there(insn: &Instruction, known: &Instructions, protected: bool) -> bool {
    if known.hypercalls && matches!(insn.code(), Code::Vmcall | Code::Vmmcall) {
        return true;
    }
    let mode = protected || insn.op_code().encoding() == EncodingKind::Legacy;
    mode && (known.have_all(insn.cpuid_features()) || exec::is_hint(insn))
}

fn undefined(_: &mut Cpu, _: &Op) -> Result {
    Err(Exception::UD)
}

fn too_long(_: &mut Cpu, _: &Op) -> Result {
    Err(Exception::GP0)
}

/// Whether what follows `insn` may have to be decoded, or interrupted, differently because of it.
fn ends_block(insn: &Instruction) -> bool {
    if insn.flow_control() != FlowControl::Next || insn.is_privileged() || svm::is_one(insn) {
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
        | Mnemonic::Rsm
        | Mnemonic::Pause => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use iced_x86::{Code, Decoder, DecoderOptions, EncodingKind, Mnemonic};

    use super::{decode_whole, select};
    use crate::feature::is_implemented;
    use crate::model::{CpuModel, Limits};

    /// Instructions whose purpose is to raise #UD.
    fn is_undefined(code: Code) -> bool {
        matches!(code.mnemonic(), Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2)
    }

    /// Every opcode of the legacy maps with every prefix that selects an instruction, register and
    /// memory forms, in all modes.
    fn encodings() -> impl Iterator<Item = (u32, Vec<u8>)> {
        let maps: [&[u8]; 4] = [&[], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]];
        let prefixes: [&[u8]; 4] = [&[], &[0x66], &[0xf2], &[0xf3]];
        let modes = [16, 32, 64];
        let mut all = Vec::new();
        for bits in modes {
            for map in maps {
                for prefix in prefixes {
                    for rex in [false, true] {
                        for opcode in 0..=255u8 {
                            for modrm in (0..=0x38u8).step_by(8).chain(0xc0..=0xff) {
                                if rex && bits != 64 {
                                    continue;
                                }
                                let mut bytes = prefix.to_vec();
                                if rex {
                                    bytes.push(0x48);
                                }
                                bytes.extend(map);
                                bytes.extend([opcode, modrm, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
                                all.push((bits, bytes));
                            }
                        }
                    }
                }
            }
        }
        all.into_iter()
    }

    #[test]
    fn wide_far_pointers_are_intels_and_the_model_max_has_them() {
        // JMP FAR [RDX] and LSS RAX, [RDX], with REX.W.
        let (jump, load) = ([0x48, 0xff, 0x2a], [0x48, 0x0f, 0xb2, 0x02]);
        let code = |model: &str, bytes: &[u8]| {
            let known = Limits::of(&CpuModel::parse(model).unwrap()).instructions;
            let (_, insn) = decode_whole(&known, true, 64, 0, bytes).unwrap();
            insn.map(|insn| insn.code())
        };
        for model in ["max", "Haswell"] {
            assert_eq!(code(model, &jump), Some(Code::Jmp_m1664), "{model}");
            assert_eq!(code(model, &load), Some(Code::Lss_r64_m1664), "{model}");
        }
        assert_eq!(code("EPYC", &jump), Some(Code::Jmp_m1632));
        assert_eq!(code("EPYC", &load), Some(Code::Lss_r32_m1632));
        // An operand size prefix does not shorten Intel's near branches in 64-bit mode.
        let near = [0x66, 0xe9, 0, 0, 0, 0];
        assert_eq!(code("Haswell", &near), Some(Code::Jmp_rel32_64));
        assert_eq!(code("EPYC", &near), Some(Code::Jmp_rel16));
    }

    #[test]
    fn every_instruction_of_the_offered_features_has_a_handler() {
        let mut missing = BTreeSet::new();
        for (bits, bytes) in encodings() {
            let mut decoder = Decoder::with_ip(bits, &bytes, 0, DecoderOptions::AMD);
            let insn = decoder.decode();
            let offered = !insn.is_invalid()
                && insn.code().op_code().encoding() == EncodingKind::Legacy
                && is_implemented(insn.cpuid_features());
            if offered && !is_undefined(insn.code()) && select(&insn).is_none() {
                missing.insert(format!("{:?}", insn.code()));
            }
        }
        assert!(missing.is_empty(), "no handler for {missing:#?}");
    }
}
