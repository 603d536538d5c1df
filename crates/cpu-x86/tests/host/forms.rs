//! Which instruction forms are compared, and why others are not.

use std::arch::is_x86_feature_detected;

use iced_x86::{Code, CpuidFeature as F, EncodingKind, Instruction, Mnemonic, OpCodeOperandKind};

/// What becomes of one of iced-x86's instruction forms.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// Compared.
    Covered,
    /// Part of the CPU's model, but not compared, for this reason.
    Excluded(&'static str),
    /// This host's processor has no such instruction.
    NotOnHost,
    /// Not part of the CPU's model, or not of 64-bit mode.
    Outside,
}

/// Whether the host has what not every x86-64 processor has.
fn host_has(feature: F) -> bool {
    match feature {
        F::CMPXCHG16B => is_x86_feature_detected!("cmpxchg16b"),
        F::LZCNT => is_x86_feature_detected!("lzcnt"),
        F::MOVBE => is_x86_feature_detected!("movbe"),
        F::POPCNT => is_x86_feature_detected!("popcnt"),
        F::SSE3 => is_x86_feature_detected!("sse3"),
        F::SSSE3 => is_x86_feature_detected!("ssse3"),
        F::SSE4_1 => is_x86_feature_detected!("sse4.1"),
        F::SSE4_2 => is_x86_feature_detected!("sse4.2"),
        F::ADX => is_x86_feature_detected!("adx"),
        F::AES => is_x86_feature_detected!("aes"),
        F::AVX => is_x86_feature_detected!("avx"),
        F::AVX2 => is_x86_feature_detected!("avx2"),
        F::BMI1 => is_x86_feature_detected!("bmi1"),
        F::BMI2 => is_x86_feature_detected!("bmi2"),
        F::F16C => is_x86_feature_detected!("f16c"),
        F::FMA => is_x86_feature_detected!("fma"),
        F::PCLMULQDQ => is_x86_feature_detected!("pclmulqdq"),
        F::SHA => is_x86_feature_detected!("sha"),
        F::VAES => is_x86_feature_detected!("vaes"),
        F::VPCLMULQDQ => is_x86_feature_detected!("vpclmulqdq"),
        _ => true,
    }
}

/// Why an instruction of the model is not compared.
fn reason(code: Code) -> Option<&'static str> {
    use Mnemonic::*;
    let operands = code.op_code();
    let loads_segment =
        operands.op_count() > 0 && is_segment(operands.op_kind(0)) && code.mnemonic() != Push;
    Some(match code.mnemonic() {
        Cpuid | Xgetbv | Rdtsc | Rdtscp | Rdpmc | Rdpid | Rdpru | Rdrand | Rdseed => {
            "its result is the machine's own"
        }
        Syscall | Sysenter | Sysexit | Sysexitq => "the host's kernel or hypervisor takes it",
        Sgdt | Sidt | Sldt | Str | Smsw => "the host's kernel answers in the processor's stead",
        Lar | Lsl | Verr | Verw | Lfs | Lgs | Lss | Retf | Iret | Iretd | Iretq => {
            "depends on the kernel's descriptor tables"
        }
        Call | Jmp if code.op_code().memory_size().size() > 8 || is_far(code) => {
            "depends on the kernel's descriptor tables"
        }
        _ if loads_segment => "depends on the kernel's descriptor tables",
        Rdfsbase | Rdgsbase | Wrfsbase | Wrgsbase => "the bases are the host program's own",
        Rdpkru | Wrpkru => "the keys guard the test's own memory, too",
        Clzero => "not every host has it (see the guest `system`)",
        Xsave | Xsave64 | Xsaveopt | Xsaveopt64 | Xsavec | Xsavec64 | Xsaves | Xsaves64
        | Xrstor | Xrstor64 | Xrstors | Xrstors64 => {
            "the image's layout follows the host's XCR0 (see the unit's own tests)"
        }
        Movsxd if code == Code::Movsxd_r16_rm16 => {
            "some processors load four bytes for it, others two"
        }
        Fclex | Fdisi | Feni | Finit | Fsave | Fsetpm | Fstcw | Fstenv | Fstsw => {
            "it is two instructions, WAIT and one that is compared"
        }
        Ud0 if operands.op_count() > 0 => "AMD's processors know the one without operands",
        Vmrun | Vmload | Vmsave | Vmmcall | Stgi | Clgi | Invlpga | Skinit => {
            "whether there is virtualisation is the host's kernel's or hypervisor's to say"
        }
        Int1 => "the kernel does not tell it from a single step",
        _ => return None,
    })
}

fn is_segment(kind: OpCodeOperandKind) -> bool {
    use OpCodeOperandKind::*;
    matches!(kind, seg_reg | es | cs | ss | ds | fs | gs)
}

fn is_far(code: Code) -> bool {
    let mut instruction = Instruction::default();
    instruction.set_code(code);
    instruction.is_call_far_indirect() || instruction.is_jmp_far_indirect()
}

/// What becomes of `code`.
pub(crate) fn classify(code: Code) -> Verdict {
    let form = code.op_code();
    let encoding = matches!(form.encoding(), EncodingKind::Legacy | EncodingKind::VEX);
    if !form.is_instruction() || !encoding || !form.mode64() {
        return Verdict::Outside;
    }
    let features = code.cpuid_features();
    if !cpu_x86::feature::is_implemented(features) {
        return Verdict::Outside;
    }
    if let Some(reason) = reason(code) {
        return Verdict::Excluded(reason);
    }
    if !features.iter().all(|&feature| host_has(feature)) {
        return Verdict::NotOnHost;
    }
    Verdict::Covered
}

/// What the table says of `code`, whatever the host has; `None` if it is not part of the CPU's model in
/// any mode.
fn told(code: Code) -> Option<String> {
    let form = code.op_code();
    let known = matches!(form.encoding(), EncodingKind::Legacy | EncodingKind::VEX);
    let features = code.cpuid_features();
    if !form.is_instruction() || !known || !cpu_x86::feature::is_implemented(features) {
        return None;
    }
    let mut instruction = Instruction::default();
    instruction.set_code(code);
    Some(match classify(code) {
        Verdict::Covered | Verdict::NotOnHost if instruction.is_privileged() => {
            "privileged: compared as the fault that it is at CPL 3".into()
        }
        Verdict::Covered | Verdict::NotOnHost => "covered".into(),
        Verdict::Excluded(reason) => format!("excluded: {reason}"),
        Verdict::Outside => "excluded: not in 64-bit mode (see the guests)".into(),
    })
}

/// A line for each form of the model: what it is, and what becomes of it.
pub(crate) fn table() -> String {
    let line = |code: Code| Some(format!("{code:?}: {}\n", told(code)?));
    Code::values().filter_map(line).collect()
}

/// All forms that are compared.
pub(crate) fn covered() -> Vec<Code> {
    Code::values().filter(|&code| classify(code) == Verdict::Covered).collect()
}

/// Bits of RFLAGS.
mod flag {
    pub(super) const CF: u64 = 1;
    pub(super) const PF: u64 = 1 << 2;
    pub(super) const AF: u64 = 1 << 4;
    pub(super) const ZF: u64 = 1 << 6;
    pub(super) const SF: u64 = 1 << 7;
    pub(super) const OF: u64 = 1 << 11;
}

/// The flags that the architecture leaves undefined after `insn`, of which `rcx` is the count register.
/// `None` if even the result is undefined.
pub(crate) fn undefined_flags(insn: &Instruction, rcx: u64) -> Option<u64> {
    use Mnemonic::*;
    use flag::*;
    Some(match insn.mnemonic() {
        And | Or | Xor | Test => AF,
        Mul | Imul => SF | ZF | AF | PF,
        Div | Idiv => CF | PF | AF | ZF | SF | OF,
        Bsf | Bsr => CF | OF | SF | AF | PF,
        Lzcnt | Tzcnt => OF | SF | AF | PF,
        Andn | Bzhi | Blsi | Blsr | Blsmsk => AF | PF,
        Bextr => SF | AF | PF,
        Bt | Bts | Btr | Btc => OF | SF | AF | PF,
        Shl | Sal | Shr | Sar | Rol | Ror | Rcl | Rcr | Shld | Shrd => {
            return undefined_after_shift(insn, rcx);
        }
        _ => 0,
    })
}

fn undefined_after_shift(insn: &Instruction, rcx: u64) -> Option<u64> {
    use Mnemonic::*;
    use flag::*;
    let size = match insn.op0_register().size() {
        0 => insn.memory_size().size(),
        register => register,
    } as u64;
    let bits = size * 8;
    let last = insn.op_count() - 1;
    let count = match insn.op_kind(last) {
        iced_x86::OpKind::Register => rcx,
        _ => insn.immediate(last),
    } & if size == 8 { 63 } else { 31 };
    if count == 0 {
        return Some(0);
    }
    let overflow = if count == 1 { 0 } else { OF };
    Some(match insn.mnemonic() {
        // The overflow flag is defined for a count of one.
        Rol | Ror | Rcl | Rcr => overflow,
        // Shifted by more than there is, the last bit out is anyone's guess; SAR repeats the sign.
        Shl | Sal | Shr if count > bits => AF | overflow | CF,
        Shld | Shrd if count > bits => return None,
        _ => AF | overflow,
    })
}
